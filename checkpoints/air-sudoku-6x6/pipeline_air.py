"""Solving with more thought, and the `puzzle-solving` pipeline; the only loop is `AirModel.solve`.

    pipe = transformers.pipeline("puzzle-solving", model=folder, trust_remote_code=True)
    pipe("53..7....6..195...…")                      # {"solution": ..., "solved": True, "confidence": 0.99, ...}
    pipe(list_or_generator, attempts=8)              # symmetric views; stops at the first answer that the rules accept

    answers = solve_puzzles(model, None, puzzles, attempts=8, halt="q")   # the same for N puzzles, as arrays

No label is ever looked at: an answer is accepted by the rules of its task, and they need the puzzle alone.
This file travels to the Hub: it needs numpy, torch and transformers, nothing else.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import shutil
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor, Pipeline, PreTrainedConfig
from transformers.utils import logging

from .configuration_air import AirConfig
from .modeling_air import AirModel, AirUpdate, Hook, _chain, seen_by_heads
from .processing_air import AirProcessor, GridTask, Symmetry, Verdict, make_task, task_from_config

logger = logging.get_logger(__name__)

TASK = "puzzle-solving"
TRAVELLING_FILES = ("configuration_air.py", "modeling_air.py", "processing_air.py", "pipeline_air.py")
ROWS_AT_ONCE = 2**20  # puzzle x view rows held at once: a fixed amount of memory, whatever N and attempts are
PUZZLE_KEYS = ("question", "puzzle", "text", "input_ids", "inputs")  # where a data set's row may hold its puzzle


@dataclass
class Answers:
    """What `solve_puzzles` found for N puzzles of S cells; numpy arrays.

    tokens (N, S) uint8: the chosen answers. verdict: the rules' view of them, fields (N,) bool. q_halt_logits (N,):
    of the chosen answers; confidence is their sigmoid. act_steps (N,) int64: spent on the puzzle, over all attempts.
    attempts (N,): views run. view (N,): index of the chosen one (0 = the puzzle as given, first model).
    rollout: None, or (z_h, z_l, updates), decoded in the puzzle's own orientation, (N, U, S) int8.
    """

    tokens: np.ndarray
    verdict: Verdict
    q_halt_logits: np.ndarray
    act_steps: np.ndarray
    attempts: np.ndarray
    view: np.ndarray
    rollout: tuple[np.ndarray, np.ndarray, list[str]] | None = None
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def confidence(self) -> np.ndarray:
        return 1 / (1 + np.exp(-self.q_halt_logits.astype(np.float64)))


def symmetric_views(task: GridTask, attempts: int, seed: int = 0) -> Symmetry:
    """Up to `attempts` different symmetries of the task, the identity first; fewer where the group is smaller."""
    cells = np.arange(task.seq_len)[None]
    tokens = np.arange(task.vocab_size, dtype=np.uint8)[None]
    if attempts > 1:
        # Enough draws to meet each of a maze's 8 maps; among a Sudoku's trillions two hardly ever agree.
        drawn = task.random_symmetries(np.random.default_rng(seed), max(256, 2 * attempts))
        both = np.concatenate([np.concatenate([cells, drawn.cells]), np.concatenate([tokens, drawn.tokens])], axis=1)
        first = np.sort(np.unique(both, axis=0, return_index=True)[1])[:attempts]
        cells, tokens = both[first, : task.seq_len], both[first, task.seq_len :].astype(np.uint8)
    return Symmetry(cells, tokens)


def encode_puzzles(task: GridTask, puzzles: Any, check: bool = True, first: int = 1) -> np.ndarray:
    """Puzzles as text or tokens -> uint8 (N, S). ValueError names the cell, and the puzzle, counted from `first`."""
    if isinstance(puzzles, Tensor):
        puzzles = puzzles.detach().cpu().numpy()
    if isinstance(puzzles, np.ndarray) and puzzles.dtype == np.uint8 and not check:
        return puzzles
    puzzles = [puzzles] if isinstance(puzzles, str) else puzzles if hasattr(puzzles, "__len__") else list(puzzles)
    rows = []
    for number, puzzle in enumerate(puzzles, start=first):
        try:
            rows.append(task.as_tokens(puzzle))
            if check:
                task.check_puzzle(rows[-1])
        except ValueError as error:
            several = len(puzzles) > 1 or first > 1
            raise ValueError(f"Puzzle {number}: {error}" if several else str(error)) from None
    return np.stack(rows) if rows else np.zeros((0, task.seq_len), np.uint8)


class OtherSizeError(ValueError):
    """A well-formed puzzle, of a size that no model at hand can take."""


def tasks_of(tasks: list[GridTask], puzzle: Any) -> list[GridTask]:
    """The tasks that a puzzle may be of: those of `tasks`, else the same kinds in the size it is written in.

    Raises:
        ValueError: it is of none; the message is about the first, or about a drawing as large as it is drawn.
    """
    own, other, errors, drawn = [], [], [], []
    for task in tasks:
        try:
            task.as_tokens(puzzle)
            own.append(task)
        except ValueError as error:
            errors.append(error)
            other += _resized_tasks(task, puzzle, drawn)
    if not own and not other:
        raise (drawn or errors)[0]
    return own + other


def _resized_tasks(task: GridTask, puzzle: Any, drawn: list[ValueError]) -> list[GridTask]:
    lines = len(puzzle.splitlines()) if isinstance(puzzle, str) and task.name != "sudoku" else 0
    for height, width in _sizes_of(task, puzzle):
        try:
            other = make_task(task.name, height, width, vocab_size=task.vocab_size if task.name == "grid" else None)
            other.as_tokens(puzzle)
        except ValueError as error:
            if 1 < lines == height != task.height:  # so it is no puzzle of the model's size that lacks a cell
                drawn.append(error)
            continue
        return [other]
    return []


def _sizes_of(task: GridTask, puzzle: Any) -> Iterator[tuple[int, int]]:
    """Rows and columns that a puzzle may have by what it is written as."""
    if not isinstance(puzzle, str):
        shape = np.shape(puzzle)
        count = shape[0] if len(shape) == 1 else 0
        if len(shape) == 2:
            yield shape
    elif task.name == "sudoku":
        # Drawn lines and white space are no cells, so the text's own length says little: every size is tried.
        yield from ((side, side) for side in range(4, 36))
        return
    else:
        lines = [line for line in puzzle.splitlines() if line]
        count = len(lines[0]) if len(lines) == 1 else 0
        if len(lines) > 1:
            yield len(lines), len(lines[0])
            yield len(lines) - 2, len(lines[0]) - 2  # a drawn frame
    if count and math.isqrt(count) ** 2 == count:
        yield math.isqrt(count), math.isqrt(count)


def takes_size(config: AirConfig, task: GridTask) -> bool:
    """Whether a model of this config can compute puzzles of that task.

    Its own size always. Another one where no weight belongs to a cell and the rules are the same: mazes (and generic
    grids), by a model with attention whose position code is a formula. One-dimensional RoPE knows how far a row is
    from the next only for its own width. A Sudoku of another size has other digits and boxes: that is another task.
    """
    own = task_from_config(config)
    if own == task or (own.name, own.vocab_size) != (task.name, task.vocab_size) or own.name == "sudoku":
        return own == task
    free = config.position_embedding == "rope2d" or config.position_embedding == "rope" and own.width == task.width
    return free and config.token_mixer == "attention" and not config.cell_embedding


def in_size(model: AirModel, task: GridTask) -> AirModel:
    """The same weights (shared, not copied) for grids of another size; see `takes_size`."""
    if task_from_config(model.config) == task:
        return model
    own = task_from_config(model.config)
    logger.warning_once(
        f"A model that was made for {own.height}x{own.width} computes {task.name}s of {task.height}x{task.width}: its "
        "position code takes them; whether it has learned them is another matter. The rules judge the answers."
    )
    fields = {k: v for k, v in model.config.to_dict().items() if k not in ("transformers_version", "architectures")}
    config = type(model.config)(**fields | {"grid_height": task.height, "grid_width": task.width})
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        other = type(model)(config)
    other.load_state_dict(model.state_dict(), assign=True)
    for name, table in other.rotary.tables(config).items():
        setattr(other.rotary, name, table.to(model.device))
    if config.head_relations:
        other.seen_by_heads = seen_by_heads(config).to(model.device)
    return other.train(model.training)


def models_for(models: list[AirModel], task: GridTask) -> list[AirModel]:
    """The models that were made for a task; if there are none, those that can take its size."""
    return [m for m in models if task_from_config(m.config) == task] or [
        in_size(m, task) for m in models if takes_size(m.config, task)
    ]


def sort_by_size(
    models: list[AirModel], puzzles: Iterable[Any], check: bool = True
) -> tuple[dict[GridTask, tuple[list[int], np.ndarray]], dict[int, ValueError]]:
    """Puzzles of mixed sizes, by the task that each is of.

    Returns:
        {task: (places in the list, tokens (n, S) uint8)}, and what is refused: {place: ValueError}, an OtherSizeError
        where only the size is at fault.
    """
    tasks = list(dict.fromkeys(task_from_config(m.config) for m in models))
    groups: dict[GridTask, tuple[list[int], list]] = {}
    refused: dict[int, ValueError] = {}
    for place, puzzle in enumerate(puzzles):
        try:
            found = tasks_of(tasks, puzzle)
            task = next((t for t in found if any(takes_size(m.config, t) for m in models)), None)
            if task is None:
                made = " or ".join(f"{t.height}x{t.width}" for t in tasks)
                raise OtherSizeError(
                    f"This {found[0].name} is {found[0].height}x{found[0].width}; the model was made for {made} and "
                    "takes no other size."
                )
            tokens = task.as_tokens(puzzle)
            if check:
                task.check_puzzle(tokens)
        except ValueError as error:
            refused[place] = error
            continue
        places, rows = groups.setdefault(task, ([], []))
        places.append(place)
        rows.append(tokens)
    return {task: (places, np.stack(rows)) for task, (places, rows) in groups.items()}, refused


def solve_puzzles(
    model: AirModel | list[AirModel],
    processor: AirProcessor | GridTask | None,
    puzzles: Any,
    *,
    attempts: int = 1,
    max_act_steps: int | None = None,
    halt: str = "q",
    noise: float = 0.0,
    selection: str = "auto",
    symmetries: bool = True,
    batch_size: int | None = None,
    dtype: torch.dtype | str | None = None,
    puzzle_ids: Any = None,
    seed: int = 0,
    check: bool = True,
    return_rollout: bool = False,
    progress: bool = False,
    hook: Hook | None = None,
    on_answers: Callable[[np.ndarray, Answers], None] | None = None,
) -> Answers:
    """Solve N puzzles, trying again where the rules refuse the answer.

    Attempt 1 is the puzzle as given; further ones are symmetric views of it, whose answers are mapped back. A puzzle's
    next view starts when the one before has ended without an accepted answer, and joins the batch of all the others,
    so nothing is spent on solved puzzles and no answer depends on its neighbours.

    Args:
        model: one model, or several checkpoints: each then makes up to `attempts` attempts at what is still unsolved.
        processor: an AirProcessor or a GridTask; None takes the model's own task.
        puzzles: N texts or token grids, or an array (N, S).
        attempts: views per model. Without noise no more than the task has symmetries (8 for a square maze).
        max_act_steps, batch_size, dtype: as in `AirModel.solve`.
        halt: "q" (default) and "max" as there; "rules" stops an attempt at the first step whose answer the rules
            accept, which costs a check per step and never stops at a wrong answer.
        noise: standard deviation of normal noise on both states (whose RMS is 1) in every ACT step, from the second
            attempt on; a function of puzzle, attempt and seed alone.
        selection: "auto" stops at the first answer that the rules accept; if there is none, it takes the highest
            q_halt, then the most frequent answer (mazes: the shortest path that joins S and G, then the most
            frequent). "q" and "vote" run all attempts and do not ask the rules;
            a vote suits Sudokus, with one solution each: other views of a maze bring other shortest paths.
        symmetries: False repeats the puzzle as given (with noise, or for several models).
        puzzle_ids: (N,) rows of the puzzle embedding. check: refuse ill-formed puzzles, naming the cell.
        return_rollout: decode both states of the chosen attempt after every update. progress: show a bar.
        hook: called after every update, as in `AirModel.solve`; its `update.rows` are view * N + puzzle, the states
            those of the view (`symmetric_views(task, attempts, seed).inverse()` maps decodes back).
        on_answers: called with (indices of puzzles, their Answers) as soon as puzzles are done with.

    Raises:
        ValueError: ill-formed puzzles or settings.
    """
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    task = getattr(processor, "grid_task", processor) or task_from_config(models[0].config)
    for one in models:
        if task_from_config(one.config) != task:
            raise ValueError(f"The model was made for {task_from_config(one.config)}, the puzzles are of {task}.")
    for name, value in (("attempts", attempts), ("max_act_steps", max_act_steps), ("batch_size", batch_size)):
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 1):
            raise ValueError(f"{name} must be 1 or more, a whole number; got {value!r}.")
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of 0 or more, got {seed!r}.")
    if halt not in ("q", "max", "rules"):
        raise ValueError(f"halt must be 'q', 'max' or 'rules', got {halt!r}.")
    if halt == "rules" and task.name == "grid":
        raise ValueError("halt='rules' needs a task with rules; a generic grid has none. Use 'q' or 'max'.")
    if selection not in ("auto", "q", "vote"):
        raise ValueError(f"selection must be 'auto', 'q' or 'vote', got {selection!r}.")
    if not (isinstance(noise, numbers.Real) and math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a number of 0 or more, got {noise!r}.")
    updates = {(tuple(one.config.schedule), max_act_steps or one.config.halt_max_steps) for one in models}
    if return_rollout and len(updates) > 1:
        raise ValueError(
            "return_rollout needs models that make the same updates; these differ in l_cycles, h_cycles or "
            "halt_max_steps. Ask them one after another, or leave the roll-out out."
        )
    views = symmetric_views(task, attempts if symmetries else 1, seed)
    if attempts > len(views.cells):
        if noise == 0:
            what = f"{task.name}s of this shape have {len(views.cells)} symmetric views" if symmetries else "same view"
            warnings.warn(f"attempts={attempts}: {what}; more would repeat an answer unless noise is above 0.")
            attempts = len(views.cells)
        else:
            views = Symmetry(*(np.resize(part, (attempts, part.shape[1])) for part in views))
    tokens = encode_puzzles(task, puzzles, check)
    ids = None if puzzle_ids is None else torch.as_tensor(np.asarray(puzzle_ids))
    if ids is not None and ids.shape != (len(tokens),):
        raise ValueError(f"puzzle_ids must be ({len(tokens)},), one number per puzzle; got {tuple(ids.shape)}.")
    if isinstance(dtype, str):
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype must be of torch, for example torch.float32 or 'bfloat16', got {dtype!r}.")
        dtype = getattr(torch, dtype)
    options = {
        "max_act_steps": max_act_steps,
        "halt": halt,
        "batch_size": batch_size,
        "dtype": dtype,
        "return_rollout": return_rollout,
        "progress": progress,
    }
    if batch_size is None and len(tokens):
        model = models[0]  # by the number of puzzles, not by that of all their attempts
        options["batch_size"] = model.default_batch_size(model.device, dtype or torch.float32, len(tokens))
    size, parts = max(1, ROWS_AT_ONCE // attempts), []
    for at in range(0, max(len(tokens), 1), size):
        rows = slice(at, at + size)
        attempt = _Attempts(models, task, tokens[rows], None if ids is None else ids[rows], views, selection)
        tell = None if on_answers is None else lambda done, answers, at=at: on_answers(done + at, answers)
        parts.append(attempt.run(noise, seed, hook, options, tell))
    return parts[0] if len(parts) == 1 else _joined(parts)


class _Attempts:
    """All attempts at N puzzles that fit into memory at once: M models x K views of each, A = M * K."""

    def __init__(
        self,
        models: list[AirModel],
        task: GridTask,
        puzzles: np.ndarray,
        puzzle_ids: Tensor | None,
        views: Symmetry,
        selection: str,
    ) -> None:
        self.models, self.task, self.puzzles, self.selection = models, task, puzzles, selection
        self.views, self.back = views, views.inverse()
        self.n, self.k = len(puzzles), len(views.cells)
        total = len(models) * self.k
        self.puzzle_ids = None if puzzle_ids is None else puzzle_ids.repeat(self.k)
        self.answers = np.zeros((total, *puzzles.shape), np.uint8)
        self.q = np.full((total, self.n), -np.inf, np.float32)
        self.steps = np.zeros((total, self.n), np.int64)
        self.accepted = np.zeros(self.n, bool)
        self.rollouts: list = []

    def run(
        self,
        noise: float,
        seed: int,
        hook: Hook | None,
        options: dict[str, Any],
        on_answers: Callable[[np.ndarray, Answers], None] | None,
    ) -> Answers:
        n, k = self.n, self.k
        # Row v * n + i of a call of `solve` is view v of puzzle i.
        rows = [Symmetry(self.views.cells[v], self.views.tokens[v]).apply(self.puzzles) for v in range(k)]
        inputs = torch.from_numpy(np.ascontiguousarray(np.concatenate(rows)))
        stats: dict[str, Any] = {"batch_size": 0, "slot_steps": 0, "passes": 0, "capacity": 0}
        for m, model in enumerate(self.models):
            is_last = m == len(self.models) - 1

            def finish(
                rows: Tensor, predictions: Tensor, q: Tensor, steps: Tensor, m: int = m, is_last: bool = is_last
            ) -> Tensor:
                rows = rows.cpu().numpy()
                view, i = rows // n, rows % n
                self._record(m * k + view, i, view, predictions, q, steps)
                again = ~self.accepted[i] & (view + 1 < k)
                done = i[self.accepted[i] | (is_last & ~again)]
                if on_answers is not None and len(done):
                    on_answers(done, self.collect(done))
                return torch.from_numpy(rows[again] + n)

            def accepts(rows: Tensor, predictions: Tensor) -> Tensor:
                view, i = np.divmod(rows.cpu().numpy(), n)
                return torch.from_numpy(self.task.verdicts(self.puzzles[i], self._home(view, predictions)).valid)

            solution = model.solve(
                inputs,
                puzzle_ids=self.puzzle_ids,
                queue=torch.from_numpy(np.flatnonzero(~self.accepted)),
                hook=_chain(_noise_hook(self.puzzles, noise, seed + 7919 * m) if noise else None, hook),
                return_logits=False,
                on_finish=finish,
                **(options | {"halt": accepts if options["halt"] == "rules" else options["halt"]}),
            )
            self.rollouts.append(solution.rollout)
            for name in ("slot_steps", "passes", "capacity"):
                stats[name] += solution.stats[name]
            stats["batch_size"] = max(stats["batch_size"], solution.stats["batch_size"])
        result = self.collect(np.arange(n))
        result.stats = {**stats, "fill": stats["slot_steps"] / stats["capacity"] if stats["capacity"] else 1.0}
        return result

    def _record(self, at: np.ndarray, i: np.ndarray, view: np.ndarray, *found: Tensor) -> None:
        """Attempts `at` of puzzles `i` have ended."""
        predictions, q, steps = found
        mapped, q, steps = self._home(view, predictions), q.float().cpu().numpy(), steps.cpu().numpy()
        self.answers[at, i], self.q[at, i], self.steps[at, i] = mapped, q, steps
        # The generic grid has no rules that could accept an answer.
        if len(self.answers) > 1 and self.selection == "auto" and self.task.name != "grid":
            self.accepted[i] |= self.task.verdicts(self.puzzles[i], mapped).valid

    def _home(self, view: np.ndarray, predictions: Tensor) -> np.ndarray:
        """Answers of views, mapped back to the puzzles as given."""
        return Symmetry(self.back.cells[view], self.back.tokens[view]).apply(
            predictions.cpu().numpy().astype(np.uint8)
        )

    def collect(self, rows: np.ndarray) -> Answers:
        """The best answers so far to some puzzles."""
        puzzles, answers, q, steps = self.puzzles[rows], self.answers[:, rows], self.q[:, rows], self.steps[:, rows]
        chosen = _choose(self.task, puzzles, answers, q, steps > 0, self.selection)
        at = (chosen, np.arange(len(rows)))
        rollout = None
        if len(rows) and len(self.rollouts) == len(self.models) and self.rollouts[0] is not None:
            rollout = self._rollout(rows, chosen)
        return Answers(
            tokens=answers[at],
            verdict=Verdict(*self.task.verdicts(puzzles, answers[at])[:3]),
            q_halt_logits=q[at],
            act_steps=steps.sum(0),
            attempts=(steps > 0).sum(0),
            view=chosen,
            rollout=rollout,
        )

    def _rollout(self, rows: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """The chosen attempts' decoded states, mapped back to the puzzles as given."""
        states = []
        for name in ("z_h", "z_l"):
            decoded = []
            for i, at in zip(rows, chosen):
                m, v = divmod(int(at), self.k)
                grids = getattr(self.rollouts[m], name)[v * self.n + i].cpu().numpy()
                decoded.append(Symmetry(self.back.cells[v], self.back.tokens[v]).apply(grids))
            states.append(np.stack(decoded))
        return states[0], states[1], self.rollouts[0].updates


def _choose(
    task: GridTask, puzzles: np.ndarray, answers: np.ndarray, q: np.ndarray, ran: np.ndarray, selection: str
) -> np.ndarray:
    """The best of each puzzle's answers (A, N, S): indices (N,). No label is involved."""
    chosen = np.zeros(len(puzzles), np.int64)
    for i in np.flatnonzero(ran.sum(0) > 1):
        mine = np.flatnonzero(ran[:, i])
        found, confidence = answers[mine, i], q[mine, i]
        votes = Counter(grid.tobytes() for grid in found)
        votes = np.array([votes[grid.tobytes()] for grid in found])
        earlier = -np.arange(len(mine))
        if selection == "vote":
            marks = (votes, confidence, earlier)
        elif selection == "q" or task.name == "grid":
            marks = (confidence, votes, earlier)
        else:
            rules = task.verdicts(np.repeat(puzzles[i : i + 1], len(mine), 0), found)
            marks = (rules.valid, confidence, votes, earlier)
            if task.name == "maze":
                joined = rules.complete & rules.consistent
                moves = np.where(joined, (found == task.PATH).sum(-1), 0)
                marks = (rules.valid, joined, -moves, votes, confidence, earlier)
        # np.lexsort sorts by its last key first, and ascending.
        chosen[i] = mine[np.lexsort(marks[::-1])[-1]]
    return chosen


def _noise_hook(puzzles: np.ndarray, noise: float, seed: int) -> Callable:
    """A hook that disturbs both states after the first update of each ACT step, from the second attempt on."""
    n = len(puzzles)
    # Of the puzzle itself, not of its place in the list: the same puzzle meets the same noise in any company.
    keys = torch.tensor([zlib.crc32(puzzle.tobytes()) for puzzle in puzzles], dtype=torch.int64)

    shift = seed * 1_000_003 % 2**31  # any seed, in 64 bits
    on: dict[torch.device, Tensor] = {}  # the keys, copied once a device

    def disturb(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
        if update.index:
            return None
        view = update.rows // n
        if view.device not in on:
            on[view.device] = keys.to(view.device)
        key = on[view.device][update.rows % n] + (view << 32) + (update.steps.long() << 44) + shift
        strength = (noise * (view > 0)).to(z_h.dtype).view(-1, 1, 1)
        bell = normal_of(key, (2, *z_h.shape[1:])).to(z_h.dtype)
        return z_h + strength * bell[:, 0], z_l + strength * bell[:, 1]

    return disturb


def normal_of(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normals (B, *shape), float32, each row a function of its key (B,) int64 alone, on any device."""
    count = math.prod(shape)
    x = (
        keys.unsqueeze(1) * -7046029254386353131
        + torch.arange(1, 2 * count + 1, device=keys.device) * 2862933555777941757
    )
    # splitmix64's mixing steps; int64 products wrap, and the masks make the shifts logical.
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    uniform = (((x >> 40) & 0xFFFFFF).float() + 0.5) / 2**24
    a, b = uniform.view(len(keys), 2, count).unbind(1)
    return ((-2 * a.log()).sqrt() * (2 * math.pi * b).cos()).view(len(keys), *shape)


def _joined(parts: list[Answers]) -> Answers:
    whole = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("tokens", "q_halt_logits", "act_steps", "attempts", "view")
    }
    verdict = Verdict(*(np.concatenate([part.verdict[f] for part in parts]) for f in range(3)))
    stats = {name: sum(part.stats[name] for part in parts) for name in ("slot_steps", "passes", "capacity")}
    stats["batch_size"] = max(part.stats["batch_size"] for part in parts)
    stats["fill"] = stats["slot_steps"] / max(1, stats["capacity"])
    rollout = None
    if parts[0].rollout is not None:
        z_h, z_l = (np.concatenate([part.rollout[f] for part in parts]) for f in range(2))
        rollout = (z_h, z_l, parts[0].rollout[2])
    return Answers(**whole, verdict=verdict, rollout=rollout, stats=stats)


class PuzzleSolvingPipeline(Pipeline):
    """`pipeline("puzzle-solving")`: puzzles in, checked answers out.

    Call it with a puzzle (text or S tokens), a list of them, a generator, or a data set (rows: puzzles, or dicts with
    a "question", "puzzle" or "text"). A list gives a list; generators and data sets are read and answered lazily.
    Puzzles of mixed sizes are grouped by size and solved where the model can take them (see `takes_size`); one that it
    cannot take gets an entry whose `error` says so, while the others are solved. An ill-formed puzzle is a ValueError.
    Options, at construction or per call, are those of `solve_puzzles`, with halt="rules" by default; batch_size is the
    number of puzzles computed together and changes no answer.

    Each answer is a dict: solution (text), solved and valid (the rules accept it), complete, consistent (with the
    clues), message (a sentence, naming the first wrong cell), confidence (sigmoid of q_halt), act_steps (spent, over
    all attempts), attempts; with return_rollout=True also rollout: {"updates": [...], "z_h": [texts], "z_l": [texts]}.
    """

    _load_processor = None  # used where the folder has one; the model's config can stand in for it
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: AirModel, processor: AirProcessor | None = None, **kwargs: Any) -> None:
        super().__init__(model=model, processor=processor, **kwargs)
        if self.processor is None:
            self.processor = AirProcessor.from_config(self.model.config)
        if self.device.type == "cpu":
            # bfloat16 products are hundreds of times slower on processors without such instructions.
            self.model.float()
        self.model.eval()

    def _sanitize_parameters(self, **options: Any) -> tuple[dict, dict, dict]:
        known = ("attempts", "max_act_steps", "halt", "noise", "selection", "symmetries", "seed", "return_rollout")
        known += ("progress", "puzzle_ids", "dtype")
        if unknown := sorted(set(options) - set(known)):
            raise ValueError(f"The pipeline has no option {unknown}. Options: batch_size, {', '.join(known)}.")
        return {}, options, {}

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, num_workers: int | None = None, **options: Any
    ) -> dict[str, Any] | list[dict[str, Any]] | Iterator[dict[str, Any]]:
        options = {**self._forward_params, **self._sanitize_parameters(**options)[1]}
        options["batch_size"] = batch_size or self._batch_size
        if isinstance(inputs, Tensor):
            inputs = inputs.detach().cpu().numpy()
        if hasattr(inputs, "columns") and hasattr(inputs, "to_dict"):  # a pandas table: its rows, not its columns
            inputs = inputs.to_dict("records")
        if isinstance(inputs, Mapping):  # a row of a data set, or a batch of them: one column holds the puzzles
            inputs = _puzzle_of(inputs)
            inputs = inputs.detach().cpu().numpy() if isinstance(inputs, Tensor) else inputs
        if isinstance(inputs, np.ndarray) and not inputs.ndim:
            inputs = inputs.item()
        one = isinstance(inputs, str) or self._is_one_grid(inputs)
        if one or isinstance(inputs, (list, tuple, np.ndarray)):
            inputs = [inputs] if one else inputs
            found = list(self._stream(inputs, options, at_once=max(len(inputs), 1)))
            if found and all("error" in answer for answer in found):
                raise OtherSizeError(found[0]["error"])  # the wrong model, rather than a mixed list
            return found[0] if one else found
        if isinstance(inputs, Iterable) or hasattr(inputs, "__getitem__"):
            return self._stream(inputs, options)
        raise ValueError(
            f"Pass a puzzle as text, a list of them, a generator or a data set; got {type(inputs).__name__}."
        )

    def _is_one_grid(self, inputs: Any) -> bool:
        """S tokens, flat or as rows."""
        task = self.processor.grid_task
        try:
            shape = np.shape(inputs) if isinstance(inputs, (list, tuple, np.ndarray)) and _is_numeric(inputs) else ()
        except ValueError:  # grids of several sizes
            return False
        if len(shape) == 2:  # rows and columns, of another size as well; (S, S) are S puzzles of S tokens
            if shape == (task.height, task.width) or shape[0] == shape[1] != task.seq_len:
                return True
            return shape[1] != task.seq_len and math.isqrt(shape[1]) ** 2 != shape[1]  # no row is a puzzle by itself
        return len(shape) == 1 and shape != (0,)

    def _stream(self, inputs: Any, options: dict[str, Any], at_once: int | None = None) -> Iterator[dict[str, Any]]:
        """Answers in order, `at_once` puzzles read ahead; by default a few batches, then more at a time.

        The first answers come soon, and later the drain of a batch at the end of each part counts for little.
        """
        slots = options["batch_size"] or self.model.default_batch_size(self.device, torch.float32)
        at_once, done, waiting = at_once or 4 * slots, 0, []
        most = max(at_once, 100 * slots)
        for puzzle in _rows(inputs):
            waiting.append(puzzle)
            if len(waiting) == at_once:
                yield from self._solve(waiting, done + 1, options)
                done, waiting, at_once = done + len(waiting), [], min(most, 4 * at_once)
        if waiting:
            yield from self._solve(waiting, done + 1, options)

    def _solve(self, puzzles: list, first: int, options: dict[str, Any]) -> list[dict[str, Any]]:
        model_inputs = self.preprocess(puzzles, first=first)
        return self.postprocess(self.forward(model_inputs, **options))

    # Pipeline's three stages, each for a list of puzzles.

    def preprocess(self, puzzles: Any, first: int = 1) -> dict[str, Any]:
        """Tokens by size, and a sentence for each puzzle whose size the model cannot take; counted from `first`."""
        puzzles = [puzzles] if isinstance(puzzles, (str, dict)) else puzzles
        groups, errors = sort_by_size([self.model], (_puzzle_of(puzzle) for puzzle in puzzles))
        refused = {}
        for place, error in errors.items():
            refused[place] = f"Puzzle {first + place}: {error}" if len(puzzles) > 1 or first > 1 else str(error)
            if not isinstance(error, OtherSizeError):
                raise ValueError(refused[place]) from None
        return {"groups": groups, "refused": refused, "first": first}

    def _forward(self, model_inputs: dict[str, Any], puzzle_ids: Any = None, **options: Any) -> dict[str, Any]:
        outputs = []
        for task, (places, tokens) in model_inputs["groups"].items():
            options["halt"] = options.get("halt") or ("q" if task.name == "grid" else "rules")
            ids = None
            if puzzle_ids is not None:
                ids = np.asarray(puzzle_ids)
                if ids.ndim and len(ids) < (needed := max(places) + model_inputs["first"]):
                    raise ValueError(
                        f"puzzle_ids must have one number per puzzle: got {len(ids)} for {needed} or more."
                    )
                ids = ids[np.array(places) + model_inputs["first"] - 1] if ids.ndim else np.full(len(places), ids)
            model = in_size(self.model, task)
            answers = solve_puzzles(model, task, tokens, check=False, puzzle_ids=ids, **options)
            outputs.append({"task": task, "places": places, "puzzles": tokens, "answers": answers})
        return {"groups": outputs, "refused": model_inputs["refused"]}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        found = {place: refusal(sentence) for place, sentence in outputs["refused"].items()}
        for group in outputs["groups"]:
            for i, place in enumerate(group["places"]):
                found[place] = describe(group["task"], group["puzzles"][i], group["answers"], i)
        return [found[place] for place in sorted(found)]

    def _ensure_tensor_on_device(self, inputs: Any, device: torch.device) -> Any:
        return inputs  # numpy in, numpy out: `AirModel.solve` moves what it needs

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Write a folder that loads everywhere (see `save_release`)."""
        save_release(self.model, save_directory, self.processor)


def describe(task: GridTask, puzzle: np.ndarray, answers: Answers, i: int) -> dict[str, Any]:
    """Answer i as a dict of texts and numbers, ready for JSON."""
    tokens = answers.tokens[i]
    complete, consistent, valid = (bool(f[i]) for f in answers.verdict[:3])
    result = {
        "solution": task.decode(tokens),
        "solved": valid,
        "valid": valid,
        "complete": complete,
        "consistent": consistent,
        "message": task.verdict(puzzle, tokens).message,
        "confidence": float(answers.confidence[i]),
        "act_steps": int(answers.act_steps[i]),
        "attempts": int(answers.attempts[i]),
    }
    if answers.rollout is not None:
        z_h, z_l, updates = answers.rollout
        result["rollout"] = {
            "updates": list(updates),
            "z_h": [task.decode(grid) for grid in z_h[i]],
            "z_l": [task.decode(grid) for grid in z_l[i]],
        }
    return result


def refusal(sentence: str) -> dict[str, Any]:
    """The entry of a puzzle that was not computed: the fields of `describe`, and `error`."""
    verdict = dict.fromkeys(("solved", "valid", "complete", "consistent"), False)
    spent = {"confidence": 0.0, "act_steps": 0, "attempts": 0}
    return {"solution": None, **verdict, "message": sentence, **spent, "error": sentence}


def _is_numeric(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "iu"
    while isinstance(value, (list, tuple)) and len(value):
        value = value[0]
    return isinstance(value, (int, np.integer))


def _rows(inputs: Any) -> Iterator[Any]:
    """The rows of a list, generator, array, data set or map-style data set."""
    if isinstance(inputs, Iterable):
        yield from inputs
    else:
        yield from (inputs[i] for i in range(len(inputs)))


def _puzzle_of(row: Any) -> Any:
    """The puzzle of a data set's row: the row itself, or one of its columns."""
    if not isinstance(row, Mapping):
        return row
    for key in PUZZLE_KEYS:
        if key in row:
            return row[key]
    raise ValueError(f"A row with the columns {sorted(row)} has no puzzle; expected one of {', '.join(PUZZLE_KEYS)}.")


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """A model of one file needs no progress bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def save_release(model: AirModel, folder: str | os.PathLike, processor: AirProcessor | None = None) -> None:
    """Write a model folder that AutoModel, AutoProcessor and pipeline() load anywhere with trust_remote_code=True.

    It holds model.safetensors, config.json, processor_config.json and the four travelling source files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    processor = processor or AirProcessor.from_config(model.config)
    model.config.auto_map = {"AutoConfig": "configuration_air.AirConfig", "AutoModel": "modeling_air.AirModel"}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        with _without_bars():
            model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for name in TRAVELLING_FILES:
            shutil.copyfile(Path(__file__).parent / name, Path(temporary) / name)
        for path in sorted(Path(temporary).iterdir()):
            os.replace(path, folder / path.name)


def device_of(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; without one the GPU if there is one.

    Raises:
        ValueError: torch does not know it, or has no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no common error for this
        raise ValueError(f"There is no device {str(name)!r} here ({str(error).splitlines()[0]}). Try cpu.") from None
    return device


def load_model(
    source: str | os.PathLike, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> AirModel:
    """The AirModel of a folder or a Hub id, in eval(), on the GPU if there is one; in float32 on a CPU.

    Raises:
        FileNotFoundError: no such folder, or nothing in it. ValueError: damaged, incomplete, or not an AIR model.
    """
    folder, name = Path(source).expanduser(), str(source)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{source} holds no config.json: give a folder that save_pretrained or convert_checkpoint.py wrote, "
                "or a Hub id USER/NAME."
            )
        name = str(folder)
    device = device_of(device)
    if dtype is None and device.type == "cpu":
        dtype = torch.float32
    try:
        kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
        if kind != AirConfig.model_type:
            raise ValueError(f"its config.json is of a {kind!r} model, not of AIR")
        with _without_bars():
            model, report = AirModel.from_pretrained(name, dtype=dtype or "auto", output_loading_info=True)
    except Exception as error:  # safetensors, the Hub's client and transformers have no common error
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        where = "" if folder.exists() else " There is no folder of that name here either."
        raise ValueError(f"{source} cannot be loaded as an AIR model: {reason}{where}") from error
    if lacking := sorted(report["missing_keys"]):
        raise ValueError(f"{source} cannot be loaded as an AIR model: its weights lack {', '.join(lacking[:3])}.")
    return model.to(device).eval()


def register() -> None:
    """Make AutoConfig, AutoModel, AutoProcessor and pipeline("puzzle-solving") find the installed classes.

    The package does this when it is imported; the folders that it saves then need no trust_remote_code here.
    """
    from transformers.pipelines import PIPELINE_REGISTRY

    AutoConfig.register(AirConfig.model_type, AirConfig, exist_ok=True)
    AutoModel.register(AirConfig, AirModel, exist_ok=True)
    AutoProcessor.register(AirConfig, AirProcessor, exist_ok=True)
    # From now on save_pretrained copies the source files and writes auto_map.
    AirConfig.register_for_auto_class()
    AirModel.register_for_auto_class("AutoModel")
    AirConfig.pipeline_is_registered = True
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(TASK, PuzzleSolvingPipeline, pt_model=AutoModel, type="text")


__all__ = ["Answers", "PuzzleSolvingPipeline", "load_model", "register", "save_release", "solve_puzzles"]
