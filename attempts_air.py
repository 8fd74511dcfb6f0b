"""Several attempts at a puzzle: search by pins, symmetric views, noise, several models, and choosing.

    answers = solve_puzzles(model, None, puzzles, attempts=256, halt="rules")         # N Sudokus: pins; arrays
    answers = solve_puzzles(model, None, puzzles, attempts=8, retry="views")          # symmetric views

A search by pins goes where a single pass was refused: it takes the open cell whose two best digits the model believes
most evenly, and solves the puzzle again with that cell filled in, each digit in turn, the likeliest guesses first.

No label is ever looked at: an answer is accepted by the rules of its task, and they need the puzzle alone. The only
loop is `AirModel.solve`. This file travels to the Hub: it needs numpy, torch and transformers, nothing else.
"""

from __future__ import annotations

import math
import numbers
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .answers_air import Answers, Attempts, Node, Work, symmetric_views
from .modeling_air import AirModel
from .pins_air import AHEAD, Search
from .processing_air import AirProcessor, GridTask, Symmetry, Verdict, task_from_config
from .reading_air import encode_puzzles
from .solving_air import AirRollout, AirUpdate, Hook, bf16_is_fast, chain, normal_of, sum_of_stats

ROWS_AT_ONCE = 2**20  # puzzle x view rows held at once: a fixed amount of memory, whatever N and attempts are
NODES = 256  # attempts=None: Sudokus are searched so far
VIEWS = 16  # and mazes looked at in all their views
# Of 26 refused answers to 30x30 mazes 12 stood still for so many ACT steps; none of these came right in 64 (LOG.md).
STILL = 3


def solve_puzzles(
    model: AirModel | list[AirModel],
    processor: AirProcessor | GridTask | None,
    puzzles: Any,
    *,
    attempts: int | None = 1,
    retry: str | None = None,
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
    on_nodes: Callable[[int, list[Node]], None] | None = None,
    interruptible: bool = False,
) -> Answers:
    """Solve N puzzles, trying again where the rules refuse the answer.

    Attempt 1 is the puzzle as given; further ones are nodes of a search by pins, or symmetric views of the puzzle,
    whose answers are mapped back. The next one starts when the one before has ended without an accepted answer, in
    the batch of all puzzles: no answer depends on its neighbours but for rounding. Givens are the puzzle's own.

    Args:
        model: one model, or several checkpoints: each then makes up to `attempts` attempts at what is still unsolved.
        processor: an AirProcessor or a GridTask; None takes the model's own task.
        puzzles: N texts or token grids, or an array (N, S).
        attempts: nodes of the search, or views, per model; without noise no more views than the task has symmetries
            (16 for a square maze: 8 turns, each from S to G and from G to S). 1 is the single pass; None goes on: up
            to 256 nodes of a Sudoku, all views of a maze.
        retry: "pins" (Sudokus: the default, unless noise, selection or symmetries ask for views) or "views". With
            halt="rules" one of several attempts also ends when its answer stands still (a node after one step, a
            view without noise after three), and a node that is not the first after half of the ACT steps.
        max_act_steps, batch_size, dtype: as in `AirModel.solve`; a search takes bfloat16 by default on processors that
            multiply it in hardware.
        halt: "q" and "max" as there; "rules" stops at the first step whose answer the rules accept.
        noise: standard deviation of normal noise on both states (whose RMS is 1) in every ACT step, from the second
            attempt on; a function of puzzle, attempt and seed alone.
        selection: "auto" stops at the first answer that the rules accept; if there is none, it takes the highest
            q_halt, then the most frequent answer (mazes: the shortest path that joins S and G before these). "q" and
            "vote" run all attempts and do not ask the rules; a vote suits Sudokus, which have one solution each.
        symmetries: False repeats the puzzle as given (with noise, or for several models). puzzle_ids: (N,) rows of the
            puzzle embedding. check: refuse ill-formed puzzles, naming the cell. progress: show a bar.
        return_rollout: decode both states of the chosen attempt after every update.
        hook: called after every update, as in `AirModel.solve`; its `update.rows` are view * N + puzzle, the states
            those of the view (`symmetric_views(task, attempts, seed).inverse()` maps decodes back). Of a search they
            are node * N + puzzle, nodes by the order in which they were made.
        on_answers: called with (indices of puzzles, their Answers) as soon as puzzles are done with.
        on_nodes: called by a search with (index of a puzzle, its tree so far) whenever nodes of it were judged.
        interruptible: Ctrl-C, or KeyboardInterrupt in a callback, ends the work: the best answers so far are returned.

    Raises:
        ValueError: ill-formed puzzles or settings.
    """
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    task = getattr(processor, "grid_task", processor) or task_from_config(models[0].config)
    attempts = default_attempts(task) if attempts is None else attempts
    whole = {"attempts": attempts, "max_act_steps": max_act_steps, "batch_size": batch_size}
    _check_settings(task, whole, halt, noise, selection, seed)
    by_pins = retry_of(task, retry, noise, selection, symmetries) == "pins" and attempts > 1
    _check_models(models, task, max_act_steps, return_rollout)
    views = _views(task, 1 if by_pins else attempts, symmetries, noise, seed)
    tokens = encode_puzzles(task, puzzles, check)
    if by_pins and dtype is None and models[0].device.type == "cpu" and bf16_is_fast():
        dtype = torch.bfloat16
    if batch_size is None and len(tokens):  # by the number of puzzles, not by that of all their attempts
        batch_size = models[0].default_batch_size(len(tokens) * (1 + AHEAD if by_pins else 1))
    options = {"max_act_steps": max_act_steps, "halt": halt, "batch_size": batch_size, "dtype": dtype}
    options |= {"return_rollout": return_rollout, "progress": progress}
    ids = _ids(puzzle_ids, len(tokens))
    work = Work(models, task, tokens, ids, options, hook, on_answers, on_nodes, interruptible)
    size, parts = max(1, ROWS_AT_ONCE // len(views.cells)), []
    for first in range(0, max(len(tokens), 1), size):
        part = work.part(first, size)
        attempt = Search(part, attempts) if by_pins else _Views(part, views, selection, noise, seed)
        parts.append(attempt.run())
    return parts[0] if len(parts) == 1 else _joined(parts)


def _ids(puzzle_ids: Any, count: int) -> Tensor | None:
    ids = None if puzzle_ids is None else torch.as_tensor(np.asarray(puzzle_ids))
    if ids is not None and ids.shape != (count,):
        raise ValueError(f"puzzle_ids must be ({count},), one number per puzzle; got {tuple(ids.shape)}.")
    return ids


def _check_settings(task: GridTask, whole: dict[str, Any], halt: str, noise: float, selection: str, seed: int) -> None:
    for name, value in whole.items():
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


def default_attempts(task: GridTask) -> int:
    """How far `attempts=None` goes."""
    if task.name == "sudoku":
        return NODES
    return len(symmetric_views(task, VIEWS).cells) if task.name == "maze" else 1


def retry_of(
    task: GridTask, retry: str | None, noise: float = 0.0, selection: str = "auto", symmetries: bool = True
) -> str:
    """What `retry` means for a task: "pins" or "views"."""
    if retry not in (None, "pins", "views"):
        raise ValueError(f"retry must be 'pins' or 'views', got {retry!r}.")
    plain = not noise and selection == "auto" and symmetries
    if retry == "pins" and task.name != "sudoku":
        raise ValueError(f"retry='pins' fills in digits, so it is for Sudokus; a {task.name} takes retry='views'.")
    if retry == "pins" and not plain:
        raise ValueError(
            "retry='pins' needs no noise, selection='auto' and symmetries=True: its attempts differ by their pins. "
            "Leave those out, or take retry='views'."
        )
    return retry or ("pins" if task.name == "sudoku" and plain else "views")


def _check_models(models: list[AirModel], task: GridTask, max_act_steps: int | None, return_rollout: bool) -> None:
    for one in models:
        if task_from_config(one.config) != task:
            raise ValueError(f"The model was made for {task_from_config(one.config)}, the puzzles are of {task}.")
    updates = {(tuple(one.config.schedule), max_act_steps or one.config.halt_max_steps) for one in models}
    if return_rollout and len(updates) > 1:
        raise ValueError(
            "return_rollout needs models that make the same updates; these differ in l_cycles, h_cycles or "
            "halt_max_steps. Ask them one after another, or leave the roll-out out."
        )


def _views(task: GridTask, attempts: int, symmetries: bool, noise: float, seed: int) -> Symmetry:
    """The views to try; without noise no more than the task has symmetries, and a warning where that is fewer."""
    views = symmetric_views(task, attempts if symmetries else 1, seed)
    if attempts > len(views.cells) and noise:
        return Symmetry(*(np.resize(part, (attempts, part.shape[1])) for part in views))
    if attempts > len(views.cells):
        what = f"{task.name}s of this shape have {len(views.cells)} symmetric views" if symmetries else "same view"
        warnings.warn(f"attempts={attempts}: {what}; more would repeat an answer unless noise is above 0.")
    return views


class _Views(Attempts):
    """Symmetric views of N puzzles: M models x K views of each, A = M * K."""

    def __init__(self, work: Work, views: Symmetry, selection: str, noise: float, seed: int) -> None:
        super().__init__(work, views)
        self.selection, self.noise, self.seed = selection, noise, seed
        self.n, self.k = len(self.puzzles), len(views.cells)
        total = len(self.models) * self.k
        # Row v * n + i of a call of `solve` is view v of puzzle i.
        rows = [Symmetry(*view).apply(self.puzzles) for view in zip(views.cells, views.tokens)]
        self.inputs = torch.from_numpy(np.ascontiguousarray(np.concatenate(rows)))
        self.puzzle_ids = None if work.puzzle_ids is None else work.puzzle_ids.repeat(self.k)
        self.answers = np.tile(self.puzzles, (total, 1, 1))
        self.q = np.full((total, self.n), -np.inf, np.float32)
        self.steps = np.zeros((total, self.n), np.int64)
        self.rollouts: list[AirRollout | None] = []

    def attempt(self, m: int, model: AirModel) -> dict[str, Any]:
        n, options = self.n, self.work.options
        gives_up = len(self.answers) > 1 and not self.noise  # noise may move what stands still
        last, still = np.zeros_like(self.puzzles), np.full(n, -1)

        def finish(rows: Tensor, *found: Tensor) -> Tensor:
            rows = rows.cpu().numpy()
            view, i = rows // n, rows % n
            still[i] = -1
            self._record(m * self.k + view, i, view, *found[:3])  # logits are for a search
            again = ~self.accepted[i] & (view + 1 < self.k)
            self.tell(i[self.accepted[i] | (m == len(self.models) - 1) & ~again])
            return torch.from_numpy(rows[again] + n)

        def accepts(rows: Tensor, predictions: Tensor) -> Tensor:
            view, i = np.divmod(rows.cpu().numpy(), n)
            answers = self.home(predictions, view, i)
            same = (answers == last[i]).all(-1)
            still[i], last[i] = np.where(same, still[i] + 1, 0), answers
            valid = self.task.verdicts(self.puzzles[i], answers).valid
            return torch.from_numpy(valid | (gives_up & (still[i] >= STILL)))

        noise = _noise_hook(self.puzzles, self.noise, self.seed + 7919 * m) if self.noise else None
        solution = model.solve(
            self.inputs,
            puzzle_ids=self.puzzle_ids,
            queue=torch.from_numpy(np.flatnonzero(~self.accepted)),
            hook=chain(noise, self.work.hook),
            return_logits=False,
            on_finish=finish,
            **(options | {"halt": accepts if options["halt"] == "rules" else options["halt"]}),
        )
        self.rollouts.append(solution.rollout)
        return solution.stats

    def _record(
        self, at: np.ndarray, i: np.ndarray, view: np.ndarray, predictions: Tensor, q: Tensor, steps: Tensor
    ) -> None:
        """Attempts `at` of puzzles `i` have ended."""
        answers = self.home(predictions, view, i)
        self.answers[at, i], self.q[at, i], self.steps[at, i] = answers, q.float().cpu().numpy(), steps.cpu().numpy()
        # The generic grid has no rules that could accept an answer.
        if len(self.answers) > 1 and self.selection == "auto" and self.task.name != "grid":
            self.accepted[i] |= self.task.verdicts(self.puzzles[i], answers).valid

    def collect(self, rows: np.ndarray) -> Answers:
        puzzles, answers, q, steps = self.puzzles[rows], self.answers[:, rows], self.q[:, rows], self.steps[:, rows]
        chosen = _choose(self.task, puzzles, answers, q, steps > 0, self.selection)
        at, rollout = (chosen, np.arange(len(rows))), None
        if len(rows) and len(self.rollouts) == len(self.models) and self.rollouts[0] is not None:
            rollout = self._rollout(rows, chosen)
        return Answers(
            tokens=answers[at],
            verdict=self.task.verdicts(puzzles, answers[at]),
            q_halt_logits=q[at],
            act_steps=steps.sum(0),
            attempts=(steps > 0).sum(0),
            view=chosen,
            rollout=rollout,
        )

    def _rollout(self, rows: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """The chosen attempts' decoded states."""
        updates = self.rollouts[0].updates
        states = np.zeros((2, len(rows), len(updates), self.task.seq_len), np.int8)
        for m, rollout in enumerate(self.rollouts):
            mine = np.flatnonzero(chosen // self.k == m)
            view, i = chosen[mine] % self.k, rows[mine]
            states[:, mine] = self.rolled_out(rollout, torch.from_numpy(view * self.n + i), view, i)
        return *states, updates


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


def _joined(parts: list[Answers]) -> Answers:
    def whole(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        if isinstance(found[0], np.ndarray):
            return np.concatenate(found)
        if isinstance(found[0], list):
            return [entry for part in found for entry in part]
        if isinstance(found[0], tuple):  # arrays, and what is the same in every part
            return [np.concatenate(p) if isinstance(p[0], np.ndarray) else p[0] for p in zip(*found)]
        return found[0]

    answers = Answers(**{field.name: whole(field.name) for field in fields(Answers)})
    answers.verdict, answers.stats = Verdict(*answers.verdict), sum_of_stats([part.stats for part in parts])
    answers.rollout = answers.rollout and tuple(answers.rollout)
    return answers


__all__ = ["Answers", "Node", "solve_puzzles", "symmetric_views"]
