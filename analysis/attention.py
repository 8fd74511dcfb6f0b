"""Attention in L-updates against H-updates: where do the weights look when they write z_L, and when they write z_H?

    result = attention_study(Study(model, inputs, labels))      # all layers and heads, one pass
    result.tables("pooled")                                      # {"0": {"control": ...}, ...} as in analysis.json
    maps = attention_maps(study, row=3, layer=0, head=1)         # the maps behind one example

At some ACT steps, the first L-update and the first H-update are compared, per query cell, layer and head:
nbr = mass_L(N(q)) - mass_H(N(q)); entropy = H_H - H_L (of log S); violation = mass_L(V) - mass_H(V), V the faulty
cells of z_H decoded after that H-update. Maze neighbourhood masses are per cell (divided by 4, 8, 24).

Only queries and keys are kept until the faults V are known (the L-update comes before them); maps exist for one layer
of a part of one batch at a time. Source: AIR (arXiv:2605.17811), attention analysis.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from air_model.analysis.common import Filled, Study, interval, over_puzzles
from air_model.modeling_air import AirModel, widest
from air_model.processing_air import PAD, GridTask
from air_model.solving_air import AirUpdate

PUBLISHED_STEPS = (2, 4, 6, 8, 10, 12, 14, 15)  # ACT steps, counted from 0
MAP_ELEMENTS = 2**25  # entries of attention maps that exist at once
TOP = 20  # examples kept


@dataclass(frozen=True)
class Geometry:
    """What the contrasts of a task are taken over.

    metrics: names, in order. classes: (beside a fault, not). neighbours (S, J): cells near each query, padded with 0.
    weights (S, J, K) bool: whether neighbour j counts for mass k. divisors: of each mass. local_faults: violation mass
    only counts faults among the 4-neighbours (mazes); else anywhere, and the share of positive contrasts is told.
    """

    metrics: tuple[str, ...]
    classes: tuple[str, str]
    neighbours: np.ndarray
    weights: np.ndarray
    divisors: tuple[float, ...]
    local_faults: bool

    @classmethod
    def of(cls, task: GridTask) -> "Geometry":
        sudoku = task.name == "sudoku"
        masses = {"neighborhood": 1.0} if sudoku else {"nbr4": 4.0, "nbr8": 8.0, "window5": 24.0}
        stacked = np.stack(list(task.neighbours.values()), -1)  # (S, S, K)
        near = stacked.any(-1)
        order = np.argsort(~near, axis=-1, kind="stable")[:, : near.sum(-1).max()]  # near cells first, in order
        weights = np.take_along_axis(stacked, order[:, :, None], axis=1)
        classes = ("violation-adjacent" if sudoku else "error-adjacent", "control")
        return cls((*masses, "entropy", "violation"), classes, order, weights, tuple(masses.values()), not sudoku)


def checked_steps(model: AirModel, steps: Sequence[int] | None) -> tuple[int, ...]:
    """ACT steps to look at, counted from 0; by default those of the paper that the model has.

    Raises ValueError for a model without attention, and for steps that it does not take.
    """
    if model.config.token_mixer != "attention":
        raise ValueError(
            "This model mixes positions by a SwiGLU (token_mixer='mlp'): it has no attention to analyse. rollout, "
            "freeze and geometry work for it."
        )
    last = model.config.halt_max_steps - 1
    if steps is None:
        return tuple(s for s in PUBLISHED_STEPS if s <= last) or (last,)
    if beyond := [s for s in steps if not 0 <= s <= last]:
        raise ValueError(f"ACT steps {beyond} are beyond the model's {last + 1}: give some of 0 to {last}.")
    return tuple(sorted(set(steps)))


def num_paired_layers(model: AirModel) -> int:
    """Layers that an L- and an H-update both have (two stacks may differ in depth)."""
    return min(len(stack.layers) for stack in model.stacks)


def watch_pairs(study: Study, steps: Sequence[int], on_pair: Callable[..., None]) -> None:
    """Solve, and call `on_pair(rows, at, z_h, l, h)` after the first H-update of each of these ACT steps.

    `at` is the step's position in `steps`; l, h: {layer: (q, k, scaling)} of the step's first L- and first H-update.
    """
    schedule = study.config.schedule
    # A step may be given up for lack of memory and begin again: whatever came last for a layer counts.
    calls: dict[int, tuple[Tensor, Tensor, float]] = {}
    pair: dict[str, dict[int, tuple[Tensor, Tensor, float]]] = {}

    def observe(layer: int, q: Tensor, k: Tensor, scaling: float) -> None:
        calls[layer] = q, k, scaling

    def hook(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        step = int(update.steps[0])  # of all rows: every step is run
        if step in steps and update.index == schedule.index(update.level):
            pair[update.level] = dict(calls)
            if update.level == "h":
                on_pair(update.rows, steps.index(step), z_h, **pair)
                pair.clear()
        calls.clear()

    with study.model.observe_attention(observe):
        study.solve(hook=hook, max_act_steps=max(steps) + 1)


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
        (B, H, Q, S), `widest`, and (B, H, Q) bool: rows whose cells held no mass at all, set to uniform as the
        published numbers have it (softmax in float32 can round every cell to 0 where a prefix position takes all).
    """
    if queries is None:
        queries = torch.arange(cells, device=q.device).expand(len(q), -1)
    offset = q.shape[2] - cells
    at = queries + offset
    q = q.gather(2, at[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    scores = q.float() @ k.float().transpose(2, 3) * scaling
    if seen is not None:
        scores = scores.masked_fill(~seen[0][:, at].transpose(0, 1), -torch.inf)
    probs = widest(torch.softmax(scores, dim=-1)[..., offset:])
    total = probs.sum(-1, keepdim=True)
    empty = total <= 0
    probs = torch.where(empty, 1 / cells, probs / torch.where(empty, 1.0, total))
    return probs, empty.squeeze(-1)


def _row_metrics(probs: Tensor, near: Tensor, weights: Tensor, faults: Tensor, near_faults: Tensor | None) -> Tensor:
    """(B, H, Q, K + 2) of rows (B, H, Q, S): K neighbourhood masses (not divided), entropy / log S, violation mass.

    near: (B, Q, J) cells; weights: (B, Q, J, K); faults: (B, S), 0 or 1; near_faults: (B, Q, J), 1 where a neighbour's
    fault counts, or None where all faults do.
    """
    beside = probs.gather(-1, near[:, None].expand(-1, probs.shape[1], -1, -1))  # (B, H, Q, J)
    masses = torch.einsum("bhqj,bqjk->bhqk", beside, weights)
    entropy = torch.special.entr(probs).sum(-1) / math.log(max(probs.shape[-1], 2))
    if near_faults is None:
        violation = torch.einsum("bhqs,bs->bhq", probs, faults)
    else:
        violation = torch.einsum("bhqj,bqj->bhq", beside, near_faults)
    return torch.cat([masses, entropy.unsqueeze(-1), violation.unsqueeze(-1)], dim=-1)


class _Accumulator:
    """Contrasts of one chunk of puzzles, on the model's device until the chunk is done."""

    def __init__(self, part: Study, steps: Sequence[int], geometry: Geometry):
        self.study, self.task, self.local_faults = part, part.task, geometry.local_faults
        self.layers, self.heads = num_paired_layers(part.model), part.config.num_attention_heads
        inputs, self.labels = part.inputs.numpy(), part.labels.numpy()
        # Queries are the open cells of the puzzle (of a generic grid all); in a maze, those on the label's path.
        is_open = ~self.task._given(inputs) & (inputs != PAD)
        mask = self.labels == self.task.PATH if self.task.name == "maze" else is_open
        order = np.argsort(~mask, axis=-1, kind="stable")[:, : max(1, int(mask.sum(-1).max()))]
        constants = order, np.take_along_axis(mask, order, -1), geometry.neighbours, geometry.weights, self.task.peers
        tensors = [torch.from_numpy(values).to(part.device) for values in constants]
        self.queries, self.valid, self.neighbours = tensors[:3]  # the first two (n, Q)
        self.weights, self.peers = map(widest, tensors[3:])
        self.divisors = widest(torch.tensor([*geometry.divisors, 1.0, 1.0], device=part.device))
        self.kept = Filled(len(part), len(steps), self.layers)

    def __call__(self, rows: Tensor, at: int, z_h: Tensor, l: dict, h: dict) -> None:
        tokens = self.study.model.decode_state(z_h).argmax(-1).cpu().numpy()
        wrong = self.task.conflicts(tokens, self.labels[rows.cpu().numpy()])
        faults = widest(torch.from_numpy(wrong).to(z_h.device))  # (B, S), V
        adjacent = (faults @ self.peers.T > 0).gather(1, self.queries[rows])  # peers are symmetric
        self.kept.put("beside_fault", adjacent, rows, at)
        width, cells, seen = self.queries.shape[1], self.task.seq_len, self.study.model.seen_by_heads
        size = max(1, MAP_ELEMENTS // (self.heads * width * cells))
        for some in (slice(start, start + size) for start in range(0, len(rows), size)):
            r, queries, near_faults = rows[some], self.queries[rows[some]], None
            near, weights = self.neighbours[queries], self.weights[queries]  # (b, Q, J) and (b, Q, J, K)
            if self.local_faults:
                near_faults = faults[some][:, None].expand(-1, width, -1).gather(2, near) * weights[..., 0]
            for layer in range(self.layers):
                values, empty = [], []
                for q, k, scaling in (l[layer], h[layer]):
                    probs, nothing = attention_rows(q[some], k[some], scaling, queries, cells, seen)
                    empty.append((nothing & self.valid[r][:, None]).sum((1, 2)))
                    values.append(_row_metrics(probs, near, weights, faults[some], near_faults))
                    del probs
                self._store((r, at, layer), adjacent[some], *values)
                self.kept.put("empty_rows", torch.stack(empty, -1), r, at, layer)

    def _store(self, place: tuple, adjacent: Tensor, l_values: Tensor, h_values: Tensor) -> None:
        delta = l_values - h_values  # (b, H, Q, M)
        delta[..., -2] = -delta[..., -2]  # entropy is H - L
        valid = self.valid[place[0]][:, None]  # (b, 1, Q)
        score = delta[..., 0] + delta[..., -1] + 0.5 * delta[..., -2]
        score = torch.where(valid, score, -torch.inf)
        # The TOP best (score, query number, head) of every puzzle, step and layer suffice for the search.
        top = score.flatten(1).topk(min(TOP, score[0].numel()), dim=-1)
        delta = delta / self.divisors * valid.unsqueeze(-1)
        best = score.argmax(1)[:, None, :, None].expand(-1, 1, -1, delta.shape[-1])
        classes = [delta * which[:, None, :, None] for which in (adjacent, ~adjacent)]
        values = {
            "score": top.values,
            "score_at": top.indices,
            "mean": delta.mean(1),
            "best": delta.gather(1, best).squeeze(1),
            "head_sum": torch.stack([part.sum(2) for part in classes], 1),
            "head_square": torch.stack([part.square().sum(2) for part in classes], 1),
        }
        for name, value in values.items():
            self.kept.put(name, value, *place)


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
    examples: list[dict[str, Any]]

    @property
    def layers(self) -> int:
        return self.mean.shape[1]

    def _classes(self) -> dict[str, np.ndarray]:
        return dict(zip(self.geometry.classes, (self.beside_fault, ~self.beside_fault)))

    def tables(self, aggregation: str = "pooled", steps: Sequence[int] | None = None) -> dict[str, Any]:
        """{layer: {class: {"n_queries", "n_puzzles", "metrics": {name: {"mean", "ci95"}}}}}.

        A class without rows has n = 0 and None for its numbers.

        Args:
            aggregation: of AGGREGATIONS: "pooled" is the public script's and the golden numbers', "per_puzzle" (best
                head by the example score) the published Sudoku figures'. steps: only these ACT steps.
        """
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"aggregation must be one of {', '.join(AGGREGATIONS)}, got {aggregation!r}.")
        values = self.best if aggregation == "per_puzzle" else self.mean
        here = np.ones(len(self.step), bool) if steps is None else np.isin(self.step, steps)
        out: dict[str, Any] = {str(layer): {} for layer in range(self.layers)}
        for name, mask in self._classes().items():
            chosen = mask & here
            puzzles, index, counts = np.unique(self.puzzle[chosen], return_inverse=True, return_counts=True)
            for layer, table in enumerate(out.values()):
                columns = values[chosen, layer].T
                if aggregation != "pooled":
                    columns = [np.bincount(index, column, len(puzzles)) / np.maximum(counts, 1) for column in columns]
                found = [interval(column, not self.geometry.local_faults) for column in columns]
                metrics = dict(zip(self.geometry.metrics, found))
                table[name] = {"n_queries": int(chosen.sum()), "n_puzzles": len(puzzles), "metrics": metrics}
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
            ends = np.stack([mean, 1.96 * np.sqrt(variance / max(n, 1))], -1) if n else np.full((*mean.shape, 2), None)
            for table, heads in zip(out.values(), ends):
                table[name] = {
                    str(head): {m: dict(zip(("mean", "ci95"), e)) for m, e in zip(self.geometry.metrics, metrics)}
                    for head, metrics in enumerate(heads)
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
    """Contrasts of all layers and heads in one pass over the puzzles, at some ACT steps (see `checked_steps`).

    Raises ValueError where the model has no attention, or no such step.
    """
    steps = checked_steps(study.model, steps)
    geometry = Geometry.of(study.task)
    found = over_puzzles(study, "attention", lambda *some: _chunk(*some, steps, geometry), steps=steps, top=TOP)
    best = np.argsort(-found["examples"]["score"], kind="stable")[:TOP]
    found["examples"] = [{name: values[i].item() for name, values in found["examples"].items()} for i in best]
    found["empty_rows"] = found["empty_rows"].sum((0, 1))
    return AttentionResult(geometry, steps, **found)


def _chunk(part: Study, first: int, steps: tuple[int, ...], geometry: Geometry) -> dict[str, np.ndarray]:
    """Rows of one chunk of puzzles; `first` is the number of its first puzzle."""
    store = _Accumulator(part, steps, geometry)
    watch_pairs(part, steps, store)
    kept, queries, valid = store.kept.arrays(), store.queries.cpu().numpy(), store.valid.cpu().numpy()
    out = {name: kept[name] for name in ("head_sum", "head_square", "empty_rows")}
    puzzle, at, query = np.nonzero(np.broadcast_to(valid[:, None], kept["beside_fault"].shape))
    out |= {"puzzle": puzzle + first, "step": np.array(steps)[at], "query": queries[puzzle, query]}
    out["beside_fault"] = kept["beside_fault"][puzzle, at, query]
    for name in ("mean", "best"):
        out[name] = kept[name].transpose(0, 1, 3, 2, 4)[puzzle, at, query]
    score = kept["score"]
    order = np.argsort(-score, axis=None, kind="stable")[:TOP]
    order = order[np.isfinite(score.reshape(-1)[order])]
    puzzle, at, layer, _ = np.unravel_index(order, score.shape)
    head, query = np.divmod(kept["score_at"].reshape(-1)[order], queries.shape[1])
    columns = {"puzzle": puzzle + first, "act_step": np.array(steps)[at], "layer": layer, "head": head}
    columns |= {"query": queries[puzzle, query], "score": score.reshape(-1)[order]}
    return out | {f"examples|{name}": column for name, column in columns.items()}


@dataclass
class AttentionMaps:
    """Maps of one head for one puzzle: l, h (steps, S, S), rows sum to 1; decoded (steps, S): z_H after the update."""

    l: np.ndarray
    h: np.ndarray
    decoded: np.ndarray
    steps: tuple[int, ...]


def attention_maps(study: Study, row: int, layer: int, head: int, steps: Sequence[int] | None = None) -> AttentionMaps:
    """The maps behind one example, over some ACT steps (default those of the paper)."""
    steps = checked_steps(study.model, steps)
    counts = len(study), num_paired_layers(study.model), study.config.num_attention_heads
    for what, value, count in zip(("puzzle", "layer", "head"), (row, layer, head), counts):
        if not 0 <= value < count:
            raise ValueError(f"There is no {what} {value}: there are {count}, counted from 0.")
    seen, one = study.model.seen_by_heads, slice(head, head + 1)
    seen = None if seen is None else seen[:, one]
    kept = Filled(1, len(steps))

    def keep(rows: Tensor, at: int, z_h: Tensor, **calls: dict) -> None:
        kept.put("decoded", study.model.decode_state(z_h).argmax(-1), rows, at)
        for side, layers in calls.items():
            q, k, scaling = layers[layer]
            probs, _ = attention_rows(q[:, one], k[:, one], scaling, None, study.task.seq_len, seen)
            kept.put(side, probs[:, 0], rows, at)

    watch_pairs(study.part(slice(row, row + 1)), steps, keep)
    return AttentionMaps(**{name: values[0] for name, values in kept.arrays().items()}, steps=steps)
