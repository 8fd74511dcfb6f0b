"""Attention in L-updates against H-updates: where do the weights look when they write z_L, and when they write z_H?

    result = attention_study(Study(model, inputs, labels))      # all layers and heads, one pass
    result.tables("pooled")                                      # {"0": {"control": ...}, ...} as in analysis.json
    result.tables("per_puzzle")                                  # best head per query, then a mean per puzzle
    maps = attention_maps(study, row=3, layer=0, head=1)         # the maps behind one example

At some ACT steps, the first L-update and the first H-update are compared, per query cell, layer and head:
nbr = mass_L(N(q)) - mass_H(N(q)); entropy = H_H - H_L (of log S); violation = mass_L(V) - mass_H(V), V the faulty
cells of z_H decoded after that H-update. Maze neighbourhood masses are per cell (divided by 4, 8, 24).

Only queries and keys are kept until the faults V are known (the L-update comes before them); maps exist for one layer
of a part of one batch at a time. Source: AIR (arXiv:2605.17811), attention analysis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from air_model.analysis.common import Study, in_chunks, interval
from air_model.modeling_air import AirModel
from air_model.processing_air import GridTask
from air_model.solving_air import AirUpdate

PUBLISHED_STEPS = (2, 4, 6, 8, 10, 12, 14, 15)  # ACT steps, counted from 0
MAP_ELEMENTS = 2**25  # entries of attention maps that exist at once
TOP = 20  # examples kept


@dataclass(frozen=True)
class Geometry:
    """What the contrasts of a task are taken over.

    metrics: names, in order. classes: (beside a fault, not). neighbours (S, J): cells near each query, padded with 0.
    weights (S, J, K): share with which neighbour j counts for mass k. divisors: of each mass. local_faults: violation
    mass only counts faults among the 4-neighbours (mazes); else anywhere, and the share of positive contrasts is told.
    """

    metrics: tuple[str, ...]
    classes: tuple[str, str]
    neighbours: np.ndarray
    weights: np.ndarray
    divisors: tuple[float, ...]
    local_faults: bool

    @classmethod
    def of(cls, task: GridTask) -> Geometry:
        sudoku = task.name == "sudoku"
        masses = {"neighborhood": 1.0} if sudoku else {"nbr4": 4.0, "nbr8": 8.0, "window5": 24.0}
        stacked = np.stack(list(task.neighbours.values()), -1)  # (S, S, K)
        near = stacked.any(-1)
        order = np.argsort(~near, axis=-1, kind="stable")[:, : near.sum(-1).max()]  # near cells first, in order
        weights = np.take_along_axis(stacked, order[:, :, None], axis=1).astype(np.float64)
        classes = ("violation-adjacent" if sudoku else "error-adjacent", "control")
        return cls((*masses, "entropy", "violation"), classes, order, weights, tuple(masses.values()), not sudoku)


def query_mask(task: GridTask, inputs: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """(N, S) bool: cells that count as queries: open cells of the puzzle; in a maze, those on the label's path."""
    if task.name == "maze":
        return labels == task.PATH
    return inputs == task.blank_token


def checked_steps(model: AirModel, steps: Sequence[int] | None) -> tuple[int, ...]:
    """ACT steps to look at, counted from 0; by default those of the paper that the model has.

    Raises:
        ValueError: a step that the model does not take, none at all, or a model without attention.
    """
    config = model.config
    if config.token_mixer != "attention":
        raise ValueError(
            "This model mixes positions by a SwiGLU (token_mixer='mlp'): it has no attention to analyse. rollout, "
            "freeze and geometry work for it."
        )
    last = config.halt_max_steps - 1
    if steps is None:
        return tuple(s for s in PUBLISHED_STEPS if s <= last) or (last,)
    steps = tuple(sorted({int(s) for s in steps}))
    if not steps:
        raise ValueError("No ACT step was given: name at least one, counted from 0.")
    if beyond := [s for s in steps if not 0 <= s <= last]:
        raise ValueError(
            f"ACT steps {beyond} are beyond the model's: it takes {last + 1}, counted from 0 to {last}. Leave "
            "them out."
        )
    return steps


def num_paired_layers(model: AirModel) -> int:
    """Layers that an L- and an H-update both have (two stacks may differ in depth)."""
    config = model.config
    if config.shared_block:
        return config.num_hidden_layers
    return min(config.l_layers or config.num_hidden_layers, config.h_layers or config.num_hidden_layers)


class _PairWatcher:
    """Catches queries and keys of the first L- and the first H-update of chosen ACT steps.

    Used as attention observer and as hook at once; calls `on_pair(rows, at, z_h, l, h)` after the H-update, with `at`
    the position of the ACT step in `steps` (that of all rows: every step is run), and l, h: {layer: (q, k, scaling)}.
    """

    def __init__(self, model: AirModel, steps: Sequence[int], on_pair: Callable[..., None]):
        schedule = model.config.schedule
        self.first_l, self.first_h = schedule.index("l"), schedule.index("h")
        self.steps, self.on_pair = list(steps), on_pair
        # A step may be given up for lack of memory and begin again: whatever came last for a layer counts.
        self.calls: dict[int, tuple[Tensor, Tensor, float]] = {}
        self.l_calls: dict[int, tuple[Tensor, Tensor, float]] = {}

    def observe(self, layer: int, q: Tensor, k: Tensor, scaling: float) -> None:
        self.calls[layer] = (q, k, scaling)

    def __call__(self, update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        calls, self.calls = self.calls, {}
        if int(update.steps[0]) not in self.steps:
            self.l_calls = {}
        elif update.index == self.first_l:
            self.l_calls = calls
        elif update.index == self.first_h:
            self.on_pair(update.rows, self.steps.index(int(update.steps[0])), z_h, self.l_calls, calls)
            self.l_calls = {}


def attention_rows(
    q: Tensor, k: Tensor, scaling: float, queries: Tensor | None, cells: int, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Maps of some query cells over the cells of the grid, each row summing to 1.

    Args:
        q, k: (B, H, T, D / H), any precision; the last `cells` of the T positions are the grid.
        queries: (B, Q) cell numbers, or None for all.
        cells: S.
        seen: bool (1, H, T, T), what each head may look at (`model.seen_by_heads`), or None for everything.

    Returns:
        (B, H, Q, S) float64, and (B, H, Q) bool: rows whose cells held no mass at all, set to uniform as the published
        numbers have it (softmax in float32 can round every cell to 0 where a prefix position takes all).
    """
    offset = q.shape[2] - cells
    if queries is None:
        q = q[:, :, offset:]
    else:
        index = (queries + offset)[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])
        q = q.gather(2, index)
    scores = q.float() @ k.float().transpose(2, 3) * scaling
    if seen is not None:
        if queries is None:
            seen = seen[:, :, offset:]
        else:
            seen = seen[0].transpose(0, 1)[queries + offset].transpose(1, 2)  # (B, H, Q, T)
        scores = scores.masked_fill(~seen, -torch.inf)
    probs = torch.softmax(scores, dim=-1)[..., offset:].double()
    total = probs.sum(-1, keepdim=True)
    empty = total <= 0
    probs = torch.where(empty, 1 / cells, probs / torch.where(empty, 1.0, total))
    return probs, empty.squeeze(-1)


def row_metrics(
    probs: Tensor, near: Tensor, weights: Tensor, faults: Tensor, near_faults: Tensor, local_faults: bool
) -> Tensor:
    """Masses, entropy and violation mass of attention rows.

    Args:
        probs: (B, H, Q, S), rows sum to 1. near: (B, Q, J) neighbour cells. weights: (B, Q, J, K).
        faults: (B, S) 0 or 1. near_faults: (B, Q, J): weight of a fault among the neighbours (0 or 1).

    Returns:
        (B, H, Q, K + 2): the K neighbourhood masses (not divided), entropy / log S, violation mass.
    """
    beside = probs.gather(-1, near[:, None].expand(-1, probs.shape[1], -1, -1))  # (B, H, Q, J)
    masses = torch.einsum("bhqj,bqjk->bhqk", beside, weights)
    entropy = torch.special.entr(probs).sum(-1) / math.log(max(probs.shape[-1], 2))
    if local_faults:
        violation = torch.einsum("bhqj,bqj->bhq", beside, near_faults)
    else:
        violation = torch.einsum("bhqs,bs->bhq", probs, faults)
    return torch.cat([masses, entropy.unsqueeze(-1), violation.unsqueeze(-1)], dim=-1)


class _Accumulator:
    """Contrasts of one chunk of puzzles, on the model's device until the chunk is done."""

    def __init__(self, part: Study, steps: Sequence[int], geometry: Geometry):
        self.study, self.task, self.geometry = part, part.task, geometry
        config, device = part.config, part.device
        inputs = part.inputs.numpy()
        labels = None if part.labels is None else part.labels.numpy()
        mask = query_mask(part.task, inputs, labels)
        width = max(1, int(mask.sum(-1).max()))
        order = np.argsort(~mask, axis=-1, kind="stable")[:, :width]
        self.queries = torch.from_numpy(order).to(device)  # (n, Q)
        self.valid = torch.from_numpy(np.take_along_axis(mask, order, -1)).to(device)
        self.labels = None if part.labels is None else part.labels.to(device)
        self.neighbours = torch.from_numpy(geometry.neighbours).to(device)
        self.weights = torch.from_numpy(geometry.weights).to(device)
        self.peers = torch.from_numpy(part.task.peers).to(device).double()
        self.divisors = torch.tensor([*geometry.divisors, 1.0, 1.0], dtype=torch.float64, device=device)
        n, s, layers, m = len(part), len(steps), num_paired_layers(part.model), len(geometry.metrics)
        heads = config.num_attention_heads

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.mean = zeros(n, s, layers, width, m)
        self.best = zeros(n, s, layers, width, m)
        self.beside_fault = zeros(n, s, width, dtype=torch.bool)
        self.head_sum, self.head_square = zeros(n, s, layers, 2, heads, m), zeros(n, s, layers, 2, heads, m)
        self.empty_rows = zeros(n, s, layers, 2, dtype=torch.long)
        # The TOP best (score, query number, head) of every puzzle, step and layer suffice for the search.
        keep = min(TOP, width * heads)
        self.score = torch.full((n, s, layers, keep), -torch.inf, dtype=torch.float64, device=device)
        self.score_at = zeros(n, s, layers, keep, dtype=torch.long)

    def faults(self, rows: Tensor, z_h: Tensor) -> Tensor:
        """(B, S) bool: V, from z_H as decoded now."""
        tokens = self.study.model.decode_state(z_h).argmax(-1)
        if self.task.name == "sudoku":
            return torch.from_numpy(self.task.conflicts(tokens.cpu().numpy())).to(z_h.device)
        return tokens != self.labels[rows]

    def __call__(self, rows: Tensor, at: int, z_h: Tensor, l_calls: dict, h_calls: dict) -> None:
        task, g = self.task, self.geometry
        faults = self.faults(rows, z_h).double()
        adjacent = (faults @ self.peers.T > 0).gather(1, self.queries[rows])  # peers are symmetric
        self.beside_fault[rows, at] = adjacent
        heads, width = self.study.config.num_attention_heads, self.queries.shape[1]
        size, seen = max(1, MAP_ELEMENTS // (heads * width * task.seq_len)), self.study.model.seen_by_heads
        for start in range(0, len(rows), size):
            some = slice(start, start + size)
            r = rows[some]
            queries = self.queries[r]
            near = self.neighbours[queries]  # (b, Q, J)
            weights = self.weights[queries]  # (b, Q, J, K)
            near_faults = faults[some][:, None].expand(-1, width, -1).gather(2, near) * weights[..., 0]
            for layer in range(self.mean.shape[2]):
                values = []
                for side, calls in enumerate((l_calls, h_calls)):
                    q, k, scaling = calls[layer]
                    probs, empty = attention_rows(q[some], k[some], scaling, queries, task.seq_len, seen)
                    self.empty_rows[r, at, layer, side] = (empty & self.valid[r][:, None]).sum((1, 2))
                    values.append(row_metrics(probs, near, weights, faults[some], near_faults, g.local_faults))
                    del probs
                self._store(r, at, layer, *values)

    def _store(self, r: Tensor, s: int, layer: int, l_values: Tensor, h_values: Tensor) -> None:
        delta = l_values - h_values  # (b, H, Q, M)
        delta[..., -2] = -delta[..., -2]  # entropy is H - L
        valid = self.valid[r][:, None]  # (b, 1, Q)
        score = delta[..., 0] + delta[..., -1] + 0.5 * delta[..., -2]
        score = torch.where(valid, score, -torch.inf)
        top = score.flatten(1).topk(self.score.shape[-1], dim=-1)
        self.score[r, s, layer], self.score_at[r, s, layer] = top.values, top.indices
        delta = delta / self.divisors * valid.unsqueeze(-1)
        self.mean[r, s, layer] = delta.mean(1)
        best = score.argmax(1)[:, None, :, None].expand(-1, 1, -1, delta.shape[-1])
        self.best[r, s, layer] = delta.gather(1, best).squeeze(1)
        for c in range(2):
            chosen = (valid & ((self.beside_fault[r, s] == (c == 0))[:, None])).unsqueeze(-1)
            self.head_sum[r, s, layer, c] = (delta * chosen).sum(2)
            self.head_square[r, s, layer, c] = (delta.square() * chosen).sum(2)

    def arrays(self) -> dict[str, np.ndarray]:
        names = ("mean", "best", "queries", "valid", "beside_fault", "head_sum", "head_square", "empty_rows")
        return {name: getattr(self, name).cpu().numpy() for name in (*names, "score", "score_at")}


@dataclass
class AttentionResult:
    """Contrasts of all query rows.

    Row arrays, R rows = puzzle x step x query in this order: puzzle, step (the ACT step), query, beside_fault (R,);
    mean, best (R, layers, metrics): averaged over heads, or of the best head.
    """

    geometry: Geometry
    steps: tuple[int, ...]
    puzzle: np.ndarray
    step: np.ndarray
    query: np.ndarray
    beside_fault: np.ndarray
    mean: np.ndarray
    best: np.ndarray
    head_sum: np.ndarray  # (N, steps, layers, classes, heads, metrics)
    head_square: np.ndarray
    empty_rows: np.ndarray  # (layers, 2): rows without any mass, in L and in H
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def layers(self) -> int:
        return self.mean.shape[1]

    def _classes(self) -> dict[str, np.ndarray]:
        return dict(zip(self.geometry.classes, (self.beside_fault, ~self.beside_fault)))

    def tables(self, aggregation: str = "pooled", steps: Sequence[int] | None = None) -> dict[str, Any]:
        """{layer: {class: {"n_queries", "n_puzzles", "metrics": {name: {"mean", "ci95"}}}}}.

        Args:
            aggregation: "pooled" (heads averaged, all rows pooled: the public script and the golden numbers) or
                "per_puzzle" (best head of each row by the example score, mean per puzzle, interval across puzzles: the
                published Sudoku figures), or "per_puzzle_mean_heads".
            steps: only these ACT steps.

        A class without rows has n = 0 and None for its numbers.
        """
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}.")
        values = self.best if aggregation == "per_puzzle" else self.mean
        here = np.ones(len(self.step), bool) if steps is None else np.isin(self.step, steps)
        out: dict[str, Any] = {str(layer): {} for layer in range(self.layers)}
        for name, mask in self._classes().items():
            chosen = mask & here
            puzzles, index, counts = np.unique(self.puzzle[chosen], return_inverse=True, return_counts=True)
            for layer in range(self.layers):
                part = values[chosen, layer]
                if aggregation != "pooled":
                    part = np.stack(
                        [np.bincount(index, column, len(puzzles)) / np.maximum(counts, 1) for column in part.T], -1
                    )
                positive = not self.geometry.local_faults
                metrics = {m: interval(part[:, i], positive) for i, m in enumerate(self.geometry.metrics)}
                out[str(layer)][name] = {
                    "n_queries": int(chosen.sum()), "n_puzzles": len(puzzles), "metrics": metrics,
                }  # fmt: skip
        return out

    def by_step(self) -> dict[str, Any]:
        """{ACT step: pooled tables of that step}: how the contrasts evolve."""
        return {str(step): self.tables(steps=[step]) for step in self.steps}

    def per_head(self) -> dict[str, Any]:
        """{layer: {class: {head: {metric: {"mean", "ci95"}}}}}, rows pooled."""
        out: dict[str, Any] = {str(layer): {} for layer in range(self.layers)}
        for c, (name, mask) in enumerate(self._classes().items()):
            n = int(mask.sum())
            total, square = (sums[:, :, :, c].sum((0, 1)) for sums in (self.head_sum, self.head_square))
            mean = total / max(n, 1)  # (layers, heads, metrics)
            variance = np.maximum(square - n * mean**2, 0) / max(n - 1, 1)
            ci = 1.96 * np.sqrt(variance / max(n, 1))
            for layer in range(self.layers):
                out[str(layer)][name] = {
                    str(head): {
                        metric: {"mean": float(m), "ci95": float(e)} if n else {"mean": None, "ci95": None}
                        for metric, m, e in zip(self.geometry.metrics, mean[layer, head], ci[layer, head])
                    }
                    for head in range(mean.shape[1])
                }
        return out

    def columns(self) -> dict[str, np.ndarray]:
        """One line per row and layer, for parquet."""
        classes = np.array(self.geometry.classes)[1 - self.beside_fault.astype(int)]
        rows = {"puzzle": self.puzzle, "act_step": self.step, "query": self.query, "class": classes}
        out = {name: np.repeat(values, self.layers) for name, values in rows.items()}
        out["layer"] = np.tile(np.arange(self.layers), len(self.puzzle))
        for i, metric in enumerate(self.geometry.metrics):
            out[metric] = self.mean[:, :, i].reshape(-1)
            out[f"{metric}_best_head"] = self.best[:, :, i].reshape(-1)
        return out


AGGREGATIONS = {
    "pooled": "heads averaged, rows (puzzle x ACT step x query cell) pooled, 95 % interval over rows",
    "per_puzzle": "best head of each row, averaged per puzzle, 95 % interval across puzzles",
    "per_puzzle_mean_heads": "heads averaged, averaged per puzzle, 95 % interval across puzzles",
}


def attention_study(study: Study, steps: Sequence[int] | None = None) -> AttentionResult:
    """Contrasts of all layers and heads in one pass over the puzzles.

    Args:
        study: what to look at. Mazes and plain grids need labels: they define queries and faults.
        steps: ACT steps, counted from 0; default those of the paper.

    Raises:
        ValueError: no attention in this model, steps beyond it, or labels missing.
    """
    steps = checked_steps(study.model, steps)
    geometry = Geometry.of(study.task)
    if study.task.name != "sudoku" and study.labels is None:
        raise ValueError(
            "The attention study of a maze compares with the right answers, but these puzzles come without labels."
        )
    work = lambda some, first: _chunk(some, first, steps, geometry)  # noqa: E731
    parts = list(in_chunks(study, "attention", work, steps=steps, top=TOP))
    merged: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    merged["empty_rows"] = sum(part["empty_rows"] for part in parts)
    examples = merged["examples"]
    examples = examples[np.argsort(-examples["score"], kind="stable")][:TOP]
    merged["examples"] = [dict(zip(examples.dtype.names, example.tolist())) for example in examples]
    return AttentionResult(geometry, steps, **merged)


_EXAMPLE = np.dtype(
    [("puzzle", "i8"), ("act_step", "i8"), ("layer", "i8"), ("head", "i8"), ("query", "i8"), ("score", "f8")]
)


def _chunk(part: Study, first: int, steps: tuple[int, ...], geometry: Geometry) -> dict[str, np.ndarray]:
    """Rows of one chunk of puzzles; `first` is the number of its first puzzle."""
    store = _Accumulator(part, steps, geometry)
    watcher = _PairWatcher(part.model, steps, store)
    with part.model.observe_attention(watcher.observe):
        part.solve(hook=watcher, max_act_steps=max(steps) + 1)
    a = store.arrays()
    valid = np.broadcast_to(a["valid"][:, None], a["beside_fault"].shape)
    puzzle, step, query = np.nonzero(valid)
    rows = {
        "puzzle": puzzle + first,
        "step": np.array(steps)[step],
        "query": a["queries"][puzzle, query],
        "beside_fault": a["beside_fault"][puzzle, step, query],
    }
    for name in ("mean", "best"):
        rows[name] = a[name].transpose(0, 1, 3, 2, 4)[puzzle, step, query]
    score = a["score"]
    order = np.argsort(-score, axis=None, kind="stable")[:TOP]
    order = order[np.isfinite(score.reshape(-1)[order])]
    p, s, layer, _ = np.unravel_index(order, score.shape)
    head, at = np.divmod(a["score_at"].reshape(-1)[order], a["queries"].shape[1])
    columns = (p + first, np.array(steps)[s], layer, head, a["queries"][p, at], score.reshape(-1)[order])
    examples = np.zeros(len(order), _EXAMPLE)
    for name, column in zip(_EXAMPLE.names, columns):
        examples[name] = column
    heads = {name: a[name] for name in ("head_sum", "head_square")}
    return {**rows, **heads, "empty_rows": a["empty_rows"].sum((0, 1)), "examples": examples}


@dataclass
class AttentionMaps:
    """Maps of one head for one puzzle: l, h (steps, S, S), rows sum to 1; decoded (steps, S): z_H after the update."""

    l: np.ndarray  # noqa: E741
    h: np.ndarray
    decoded: np.ndarray
    steps: tuple[int, ...]


def attention_maps(study: Study, row: int, layer: int, head: int, steps: Sequence[int] | None = None) -> AttentionMaps:
    """The maps behind one example, over some ACT steps (default those of the paper)."""
    steps = checked_steps(study.model, steps)
    if not 0 <= row < len(study):
        raise ValueError(f"There is no puzzle {row}: the study has {len(study)}, counted from 0.")
    for what, value, count in (
        ("layer", layer, num_paired_layers(study.model)),
        ("head", head, study.config.num_attention_heads),
    ):
        if not 0 <= value < count:
            raise ValueError(f"There is no {what} {value}: the model has {count}, counted from 0.")
    size, seen = study.task.seq_len, study.model.seen_by_heads
    maps = {side: np.zeros((len(steps), size, size)) for side in "lh"}
    decoded = np.zeros((len(steps), size), np.int64)

    def keep(rows: Tensor, at: int, z_h: Tensor, l_calls: dict, h_calls: dict) -> None:
        decoded[at] = study.model.decode_state(z_h).argmax(-1)[0].cpu().numpy()
        for side, calls in (("l", l_calls), ("h", h_calls)):
            q, k, scaling = calls[layer]
            one = slice(head, head + 1)
            probs, _ = attention_rows(
                q[:, one], k[:, one], scaling, None, size, None if seen is None else seen[:, one]
            )
            maps[side][at] = probs[0, 0].cpu().numpy()

    part = study.part(slice(row, row + 1))
    watcher = _PairWatcher(study.model, steps, keep)
    with study.model.observe_attention(watcher.observe):
        part.solve(hook=watcher, max_act_steps=max(steps) + 1)
    return AttentionMaps(maps["l"], maps["h"], decoded, steps)
