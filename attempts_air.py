"""Several attempts at a puzzle: search by pins, symmetric views, noise, several models, and choosing.

    answers = solve_puzzles(model, None, puzzles, attempts=256, halt="rules")         # N puzzles: pins; arrays
    answers = solve_puzzles(model, None, puzzles, attempts=8, retry="views")          # symmetric views

A search by pins goes where a single pass was refused, and solves the puzzle again from fresh states with one more
cell filled in (a node of a tree). Sudokus: of the cells that clash in the refused answer the one whose two best digits
the model believes most evenly, each digit in turn, few and likely guesses first. Mazes: the marked cell that it
believes least is walled up, so that it must look for another way, each time in another symmetric view.

No label is ever looked at: an answer is accepted by the rules of its task, and they need the puzzle alone. The only
loop is `AirModel.solve`: the attempts at all puzzles share its batch.
"""

import contextlib
import functools
import heapq
import math
import numbers
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from .answers_air import Answers, Node, keep_givens, pins_of, symmetric_views
from .modeling_air import AirModel, stablemax_log_probs, widest
from .processing_air import AirProcessor, GridTask, MazeTask, Symmetry, Verdict, task_from_config
from .reading_air import encode_puzzles
from .search_air import bottlenecks
from .solving_air import AirRollout, AirUpdate, Hook, bf16_is_fast, chain, check_counts, normal_of, sum_of_stats

CELLS_AT_ONCE = 2**26  # of all views of the puzzles in memory at once: a fixed amount, whatever N and attempts are
NODES, MAZE_NODES = 256, 64  # attempts=None: Sudokus and mazes are searched so far
VIEWS = 16  # of a square maze
# Of 26 refused answers to 30x30 mazes 12 stood still for so many ACT steps; none of these came right in 64 (LOG.md).
STILL_VIEW = 3
AHEAD = 3  # nodes of a puzzle that may be computed ahead of their turn, where the batch would be empty otherwise
# Searches have a long tail: after so many nodes one begins anew in another symmetric view, where the model believes
# otherwise, after twice as many more in a third, and so on (results/LOG.md, "Search by pins: first wide, then deep").
RESTART = 8
LEAST_BELIEF = 1e-6
# What every guess at a Sudoku costs beside its -log belief: first wide, then deep (results/LOG.md).
GUESS_COST = 0.7
# What a guess below a node costs more the surer the model is that the node has lost the solution: a share of -log of
# its belief that it has not (results/LOG.md, "Search by pins: what is lost goes last").
LOST_COST = 0.5
# Of a maze: what every further view of it as given costs, and what a wall does. As much as gives two views first, then
# walls below the first and further views in turn (results/LOG.md, "Mazes: search by walls").
VIEW_COST, WALL_COST = 0.3, 0.7
BAR_DELAY = 1.0  # seconds: what is done sooner needs no bar


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
            to 256 nodes of a Sudoku, 64 of a maze.
        retry: "pins" (the default where there are rules, unless noise, selection or symmetries ask for views) or
            "views". With halt="rules" one of several attempts also ends when its answer stands still (a node after
            one step, of a maze after two, a view without noise after three), and a node of a Sudoku that is not the
            first after half of the ACT steps.
        max_act_steps, batch_size, dtype: as in `AirModel.solve`; a search takes bfloat16 by default on processors that
            multiply it in hardware.
        halt: "q" and "max" as there; "rules" stops at the first step whose answer the rules accept.
        noise: standard deviation of normal noise on both states (whose RMS is 1) in every ACT step, from the second
            attempt on; a function of puzzle, attempt and seed alone.
        selection: "auto" stops at the first answer that the rules accept; if there is none, it takes the highest
            q_halt, then the most frequent answer (mazes: the shortest path that joins S and G before these). "q" and
            "vote" run all attempts and do not ask the rules; a vote suits Sudokus, which have one solution each.
        symmetries: False repeats the puzzle as given (with noise, or for several models). puzzle_ids: (N,) rows of the
            puzzle embedding. check: refuse ill-formed puzzles, naming the cell. progress: show a bar. return_rollout:
            decode both states of the chosen attempt after every update.
        hook: called after every update, as in `AirModel.solve`; its `update.rows` are view * N + puzzle, the states
            those of the view (`symmetric_views(task, attempts, seed).inverse()` maps decodes back). Of a search they
            are node * N + puzzle, nodes in the order of making, and the chosen one's once more for a roll-out.
        on_answers: called with (indices of puzzles, their Answers) as soon as puzzles are done with.
        on_nodes: called by a search with (index of a puzzle, its tree so far) whenever nodes of it were judged.
        interruptible: Ctrl-C, or KeyboardInterrupt in a callback, ends the work: the best answers so far are returned.

    Raises:
        ValueError: ill-formed puzzles or settings.
    """
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    task = getattr(processor, "grid_task", processor) or task_from_config(models[0].config)
    asked, attempts = attempts, default_attempts(task) if attempts is None else attempts
    check_counts(attempts=attempts, max_act_steps=max_act_steps, batch_size=batch_size)
    _check_settings(task, halt, noise, selection, seed)
    by_pins = retry_of(task, retry, noise, selection, symmetries) == "pins" and attempts > 1
    _check_models(models, task, max_act_steps, return_rollout)
    views = _views(task, 1 if by_pins else attempts, symmetries, noise, seed, warn=asked is not None)
    tokens = encode_puzzles(task, puzzles, check)
    options = _options(models[0], len(tokens), by_pins, max_act_steps=max_act_steps, halt=halt, batch_size=batch_size,
                       dtype=dtype, return_rollout=return_rollout, progress=progress)  # fmt: skip
    ids = _ids(puzzle_ids, len(tokens))
    shared = (len(tokens), models, task, options, hook, on_answers, on_nodes, interruptible)
    kind, own = (Search, (attempts,)) if by_pins else (_Views, (views, selection, noise, seed))

    def part(rows: slice) -> Attempts:
        return kind(tokens[rows], ids if ids is None else ids[rows], rows.start, *shared, *own)

    config = models[0].config
    decodes = len(config.schedule) * (max_act_steps or config.halt_max_steps) * return_rollout  # kept of a state
    return _in_parts(part, len(tokens), len(views.cells) * task.seq_len * (1 + decodes))


def _options(model: AirModel, count: int, by_pins: bool, **options: Any) -> dict[str, Any]:
    """Options of `AirModel.solve`, with the precision and the batch that suit so many puzzles."""
    if by_pins and options["dtype"] is None and bf16_is_fast(model.device.type):
        options["dtype"] = torch.bfloat16
    if options["batch_size"] is None and count:  # by the number of puzzles, not by that of all their attempts
        options["batch_size"] = model.default_batch_size(count * (1 + AHEAD if by_pins else 1))
    return options


def _in_parts(part: Callable[[slice], "Attempts"], count: int, cells: int) -> Answers:
    """Puzzles of so many cells each, as many at once as memory is meant for; once broken off, none is begun."""
    size = max(1, CELLS_AT_ONCE // cells)
    parts: list[Answers] = []
    for first in range(0, max(count, 1), size):
        broken_off = bool(parts) and "interrupted" in parts[-1].stats
        parts.append(part(slice(first, first + size)).run(begun=not broken_off))
    return _joined(parts)


def _ids(puzzle_ids: Any, count: int) -> Tensor | None:
    ids = None if puzzle_ids is None else torch.as_tensor(np.asarray(puzzle_ids))
    if ids is not None and (ids.shape != (count,) or ids.is_floating_point()):
        raise ValueError(
            f"puzzle_ids must be ({count},), one whole number per puzzle; got {tuple(ids.shape)} of {ids.dtype}."
        )
    return ids


def _check_settings(task: GridTask, halt: str, noise: float, selection: str, seed: int) -> None:
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of 0 or more, got {seed!r}.")
    for name, value, known in (("halt", halt, ("q", "max", "rules")), ("selection", selection, ("auto", "q", "vote"))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}.")
    if halt == "rules" and not task.has_rules:
        raise ValueError("halt='rules' needs a task with rules; a generic grid has none. Use 'q' or 'max'.")
    if not (isinstance(noise, numbers.Real) and math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a number of 0 or more, got {noise!r}.")


def default_attempts(task: GridTask) -> int:
    """How far `attempts=None` goes."""
    return {"sudoku": NODES, "maze": MAZE_NODES}.get(task.name, 1)


def retry_of(
    task: GridTask, retry: str | None, noise: float = 0.0, selection: str = "auto", symmetries: bool = True
) -> str:
    """What `retry` means for a task: "pins" or "views"."""
    if retry not in (None, "pins", "views"):
        raise ValueError(f"retry must be 'pins' or 'views', got {retry!r}.")
    plain = not noise and selection == "auto" and symmetries
    if retry == "pins" and task.name not in GUESSING:
        raise ValueError("retry='pins' goes on until the rules accept an answer; a generic grid has none: 'views'.")
    if retry == "pins" and not plain:
        raise ValueError(
            "retry='pins' needs no noise, selection='auto' and symmetries=True: its attempts differ by their pins. "
            "Leave those out, or take retry='views'."
        )
    return retry or ("pins" if task.name in GUESSING and plain else "views")


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


def _views(task: GridTask, attempts: int, symmetries: bool, noise: float, seed: int, warn: bool) -> Symmetry:
    """The views to try; without noise no more than the task has symmetries, with a warning where more were asked."""
    views = symmetric_views(task, attempts if symmetries else 1, seed)
    if attempts > len(views.cells) and noise:
        return Symmetry(*(np.resize(part, (attempts, part.shape[1])) for part in views))
    if attempts > len(views.cells) and warn:
        what = f"{task.name}s of this shape have {len(views.cells)} symmetric views" if symmetries else "same view"
        warnings.warn(f"attempts={attempts}: {what}; more would repeat an answer unless noise is above 0.")
    return views


def _joined(parts: list[Answers]) -> Answers:
    if len(parts) == 1:
        return parts[0]

    def whole(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        if any(one is None for one in found):  # a part that was broken off has no roll-out
            return None
        if isinstance(found[0], np.ndarray):
            return np.concatenate(found)
        if isinstance(found[0], list):
            return [entry for part in found for entry in part]
        if isinstance(found[0], tuple):  # arrays, and what is the same in every part
            return [np.concatenate(p) if isinstance(p[0], np.ndarray) else p[0] for p in zip(*found)]
        return found[0]

    answers = Answers(**{field.name: whole(field.name) for field in fields(Answers)})
    stats = [part.stats for part in parts]
    answers.verdict, answers.stats = Verdict(*answers.verdict), sum_of_stats(stats)
    answers.stats |= {"interrupted": True} if any("interrupted" in one for one in stats) else {}
    answers.rollout = answers.rollout and tuple(answers.rollout)
    return answers


# ---- what all attempts share ---------------------------------------------------------------------------------------


@dataclass
class Attempts:
    """Puzzles that fit into memory at once (N, S), attempted by one model after another; a base for what attempts are.

    first: the number of the first puzzle, of so many in `total`. options: of `AirModel.solve`. Other names are those
    of `solve_puzzles`.
    A child adds attempt(m, model), which tries with model m what is not accepted yet and gives the stats of `solve`,
    and collect(rows), the best Answers so far to some puzzles.
    """

    puzzles: np.ndarray
    puzzle_ids: Tensor | None
    first: int
    total: int
    models: list[AirModel]
    task: GridTask
    options: dict[str, Any]
    hook: Hook | None
    on_answers: Callable[[np.ndarray, Answers], None] | None
    on_nodes: Callable[[int, list[Node]], None] | None
    interruptible: bool

    def set_views(self, views: Symmetry) -> None:
        self.views, self.back = views, views.inverse()
        self.accepted = np.zeros(len(self.puzzles), bool)

    def end(self) -> None:
        """Called when all have tried, or were broken off."""

    def run(self, begun: bool = True) -> Answers:
        """Not begun: the answers of no attempt, where the parts before were broken off."""
        stats, interrupted = [], {} if begun else {"interrupted": True}
        try:
            for m, model in enumerate(self.models if begun else ()):
                stats.append(self.attempt(m, model))
        except KeyboardInterrupt:
            if not self.interruptible:
                raise
            interrupted = {"interrupted": True}
        with contextlib.suppress(KeyboardInterrupt if self.interruptible else ()):
            self.end()
        result = self.collect(np.arange(len(self.puzzles)))
        result.stats = sum_of_stats(stats) | interrupted
        return result

    def report(self, done: np.ndarray) -> None:
        """These puzzles are done with."""
        if self.on_answers is not None and len(done):
            self.on_answers(self.first + done, self.collect(done))

    def home(self, grids: Tensor, view: np.ndarray, i: np.ndarray) -> np.ndarray:
        """What the model made of views `view` (R,) of puzzles `i`, (R, S), as the puzzles are given; uint8."""
        back = Symmetry(self.back.cells[view], self.back.tokens[view])
        return keep_givens(self.task, self.puzzles[i], back.apply(grids.cpu().numpy().astype(np.uint8)))

    def rolled_out(self, rollout: AirRollout, rows: Any, view: np.ndarray, i: np.ndarray) -> np.ndarray:
        """Both states of some rows of a roll-out, as `home`: (2, R, U, S) uint8."""
        both = torch.stack([rollout.z_h[rows], rollout.z_l[rows]], dim=1)
        return np.stack([self.home(*one) for one in zip(both, view, i)], axis=1)

    def named(self, number: Callable[[np.ndarray], np.ndarray]) -> Hook | None:
        """The user's hook, which knows attempts at puzzles, by `number` of rows, instead of rows of a tensor."""
        if self.hook is None:
            return None

        def called(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
            names = torch.from_numpy(number(update.rows.cpu().numpy()))
            return self.hook(update._replace(rows=names.to(update.rows.device)), z_h, z_l)

        return called


# ---- symmetric views -----------------------------------------------------------------------------------------------


@dataclass
class _Views(Attempts):
    """Symmetric views of N puzzles: M models x K views of each, A = M * K."""

    views: Symmetry
    selection: str
    noise: float
    seed: int

    def __post_init__(self) -> None:
        self.set_views(self.views)
        self.n, self.k = len(self.puzzles), len(self.views.cells)
        total = len(self.models) * self.k
        # Row v * n + i of a call of `solve` is view v of puzzle i.
        rows = [Symmetry(*view).apply(self.puzzles) for view in zip(*self.views)]
        self.inputs = torch.from_numpy(np.ascontiguousarray(np.concatenate(rows)))
        self.puzzle_ids = None if self.puzzle_ids is None else self.puzzle_ids.repeat(self.k)
        self.answers = np.tile(self.puzzles, (total, 1, 1))
        self.q = np.full((total, self.n), -np.inf, np.float32)
        self.steps = np.zeros((total, self.n), np.int64)
        self.rollouts: list[AirRollout | None] = []

    def attempt(self, m: int, model: AirModel) -> dict[str, Any]:
        n, options = self.n, self.options
        gives_up = len(self.answers) > 1 and not self.noise  # noise may move what stands still
        last, still = np.zeros_like(self.puzzles), np.zeros(n, np.int64)

        def finish(rows: Tensor, predictions: Tensor, q: QLogits, steps: Tensor, logits: Tensor) -> Tensor:
            rows = rows.cpu().numpy()
            view, i = np.divmod(rows, n)
            at, answers = (m * self.k + view, i), self.home(predictions, view, i)
            self.answers[at], self.q[at], self.steps[at] = answers, q[0].float().cpu().numpy(), steps.cpu().numpy()
            # The generic grid has no rules that could accept an answer.
            if len(self.answers) > 1 and self.selection == "auto" and self.task.has_rules:
                self.accepted[i] |= self.task.verdicts(self.puzzles[i], answers).valid
            again = ~self.accepted[i] & (view + 1 < self.k)
            self.report(i[self.accepted[i] | (m == len(self.models) - 1) & ~again])
            return torch.from_numpy(rows[again] + n)

        def accepts(rows: Tensor, predictions: Tensor, steps: Tensor) -> Tensor:
            view, i = np.divmod(rows.cpu().numpy(), n)
            answers = self.home(predictions, view, i)
            same = (answers == last[i]).all(-1) & (steps > 1).cpu().numpy()
            still[i], last[i] = np.where(same, still[i] + 1, 0), answers
            valid = self.task.verdicts(self.puzzles[i], answers).valid
            return torch.from_numpy(valid | (gives_up & (still[i] >= STILL_VIEW)))

        noise = _noise_hook(self.puzzles, self.noise, self.seed + 7919 * m) if self.noise else None
        solution = model.solve(
            self.inputs,
            puzzle_ids=self.puzzle_ids,
            queue=torch.from_numpy(np.flatnonzero(~self.accepted)),
            hook=chain(noise, self.named(lambda rows: rows // n * self.total + self.first + rows % n)),
            return_logits=False,
            on_finish=finish,
            **(options | {"halt": accepts if options["halt"] == "rules" else options["halt"]}),
        )
        self.rollouts.append(solution.rollout)
        return solution.stats

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
        states = np.zeros((2, len(rows), len(updates), self.task.seq_len), np.uint8)
        for m in np.unique(chosen // self.k):
            mine = np.flatnonzero(chosen // self.k == m)
            view, i = chosen[mine] % self.k, rows[mine]
            states[:, mine] = self.rolled_out(self.rollouts[m], torch.from_numpy(view * self.n + i), view, i)
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
        elif selection == "q" or not task.has_rules:
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
    keys_on = functools.cache(keys.to)  # copied once a device
    shift = seed * 1_000_003 % 2**31  # any seed, in 64 bits

    def disturb(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
        if update.index:
            return None
        view = update.rows // n
        key = keys_on(view.device)[update.rows % n] + (view << 32) + (update.steps.long() << 44) + shift
        strength = (noise * (view > 0)).to(z_h.dtype).view(-1, 1, 1)
        bell = normal_of(key, (2, *z_h.shape[1:])).to(z_h.dtype)
        return z_h + strength * bell[:, 0], z_l + strength * bell[:, 1]

    return disturb


# ---- search by pins ------------------------------------------------------------------------------------------------


QLogits = tuple[Tensor, Tensor]  # q_halt and q_continue (R,) of puzzles that finish


class _Candidate(NamedTuple):
    """A node that waits: sorted by cost, then by the order of making."""

    cost: float
    order: int
    parent: int
    cell: int
    token: int
    view: int


class _Tree:
    """The search at one puzzle: nodes are judged one after another, the cheapest first.

    Nodes may be computed ahead of their turn, several at a time, but are judged in turn: so the course of a search is
    a function of its puzzle alone, whatever else is in the batch.
    """

    def __init__(self, puzzle: np.ndarray, most: int, views: int, restart: int) -> None:
        self.puzzle, self.most, self.views, self.restart = puzzle, most, views, restart
        self.queue: list[_Candidate] = []
        self.made, self.over, self.view = 0, False, -1
        self.nodes: list[Node] = []
        self.grids: list[np.ndarray] = []  # the puzzle with the pins of each node
        self.orders: list[int] = []  # of making
        self.came: dict[int, list | None] = {}  # what came out, by order of making; None while it is being computed
        self.best: tuple[tuple, int] | None = None  # the better the smaller, and which node
        self.add_roots()

    def add_roots(self) -> None:
        """Start from the puzzle as given: in the next view, or, where a search never restarts, in each of them."""
        self.view += 1
        starts = [self.view] if self.restart else range(self.views)
        self.queue = [_Candidate(VIEW_COST * k, self.made + k, -1, -1, 0, view) for k, view in enumerate(starts)]
        self.made += len(starts)

    def grid(self, node: _Candidate) -> np.ndarray:
        if node.parent < 0:
            return self.puzzle
        grid = self.grids[node.parent].copy()
        grid[node.cell] = node.token
        return grid

    def wanted(self, ahead: int = 0) -> list[_Candidate]:
        """What to compute now: the node whose turn it is, and up to `ahead` of those that follow."""
        count = min(1 + ahead, self.most - len(self.nodes))
        near = self.queue[:1] if count == 1 else heapq.nsmallest(count, self.queue)
        return [node for node in near if node.order not in self.came]

    def judge(self) -> None:
        """Take what has been computed, in turn."""
        while not self.over and self.came.get(self.queue[0].order) is not None:
            node = heapq.heappop(self.queue)
            answer, accepted, steps, q, faults, cell, costs = self.came.pop(node.order)
            at = len(self.nodes)
            self.grids.append(self.grid(node))
            self.orders.append(node.order)
            self.nodes.append(
                Node(node.parent, node.cell, node.token, node.cost, accepted, steps, q, answer, node.view)
            )
            mark = (not accepted, faults, -round(q, 3), at)  # equal but for rounding: the earlier one
            self.best = min(self.best or (mark, at), (mark, at))
            for token, cost in costs.items():
                view = self.view if self.restart else self.made % self.views
                heapq.heappush(self.queue, _Candidate(node.cost + cost, self.made, at, cell, token, view))
                self.made += 1
            self.over = accepted or len(self.nodes) == self.most or not self.queue
            until = self.restart * (self.view + 1) * (self.view + 2) // 2
            if not self.over and len(self.nodes) == until:
                self.add_roots()


@dataclass
class Search(Attempts):
    """A search by pins at each of N puzzles, of so many nodes at most: the nodes of all of them share one batch."""

    most: int

    def __post_init__(self) -> None:
        self.how = GUESSING[self.task.name]
        views = VIEWS
        if first := self.how.restart:  # as many as are met: first * (1 + 2 + ... + views) nodes or fewer
            views = math.ceil((math.sqrt(1 + 8 * self.most / first) - 1) / 2)
        self.set_views(symmetric_views(self.task, views))
        n, self.keep = len(self.puzzles), self.options["return_rollout"]
        self.tokens, self.q = self.puzzles.copy(), np.full(n, -np.inf, np.float32)
        self.steps, self.attempts, self.view, self.chosen = np.zeros((4, n), np.int64)
        self.marks: list[tuple] = [(True, math.inf)] * n
        self.pins: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        self.kept: list[list[Node]] = [[] for _ in range(n)]
        self.trees: dict[int, _Tree] = {}  # of the puzzles begun and not yet done with
        self.rollout: tuple[np.ndarray, np.ndarray, list[str]] | None = None

    def run(self, begun: bool = True) -> Answers:
        self.counts_nodes = len(self.puzzles) == 1
        most, unit = (self.most * len(self.models), "node") if self.counts_nodes else (len(self.puzzles), "puzzle")
        with logging.tqdm(total=most, unit=unit, delay=BAR_DELAY, disable=not self.options["progress"]) as self.bar:
            return super().run(begun)

    def end(self) -> None:
        for i, tree in self.trees.items():
            self._take(i, tree)
        if self.keep:
            self._roll_out()

    # ---- one model

    def attempt(self, m: int, model: AirModel) -> dict[str, Any]:
        self.m, self.config, options, ids = m, model.config, self.options, self.puzzle_ids
        left = np.flatnonzero(~self.accepted)
        # Few clues mean many nodes: begun first, such puzzles do not run on in an empty batch at the end.
        blanks = (self.puzzles[left] == self.task.blank_token).sum(1)
        self.waiting = deque(left[np.argsort(-blanks, kind="stable")].tolist())
        self.trees = {}
        self.ready: deque[int] = deque()
        # Slots: rows of one tensor, written anew for each node.
        slots, size = options["batch_size"] or 1, self.puzzles.shape[1]
        self.inputs = torch.full((slots, size), self.task.blank_token, dtype=torch.uint8, device=model.device)
        self.ids = None if ids is None else torch.zeros_like(ids[:1]).repeat(slots).to(model.device)
        self.owner, self.order, self.turned, self.most_steps, self.still = np.zeros((5, slots), np.int64)
        self.held, self.last = np.zeros((2, slots, size), np.uint8)  # with its pins, and answered last
        self.steps_of_root = options["max_act_steps"] or model.config.halt_max_steps
        self.free = list(range(slots))[::-1]
        plain = {"progress": False, "return_rollout": False}
        if options["halt"] == "rules":
            plain["halt"] = self._stops
        solution = model.solve(
            self.inputs,
            puzzle_ids=self.ids,
            queue=self._fill(),
            hook=self.named(lambda at: self.order[at] * self.total + self.first + self.owner[at]),
            return_logits=False,
            on_finish=self._finish,
            **(options | plain),
        )
        return solution.stats

    def _fill(self) -> Tensor:
        """Nodes for the free slots: of puzzles begun, then of new ones; where none waits, ahead of their turn."""
        filled: list[int] = []

        def place(i: int, node: _Candidate) -> None:
            row, tree = self.free.pop(), self.trees[i]
            grid = tree.grid(node)
            tree.came[node.order] = None
            turn = Symmetry(self.views.cells[node.view], self.views.tokens[node.view])
            self.inputs[row] = torch.from_numpy(turn.apply(grid)).to(self.inputs.device)
            if self.ids is not None:
                self.ids[row] = self.puzzle_ids[i]
            self.owner[row], self.order[row], self.turned[row] = i, node.order, node.view
            self.held[row] = grid
            self.most_steps[row] = math.ceil((1 if node.parent < 0 else self.how.share) * self.steps_of_root)
            filled.append(row)

        while self.free and (self.ready or self.waiting):
            if not self.ready:
                self.ready.append(self.waiting.popleft())
                tree = _Tree(self.puzzles[self.ready[0]], self.most, len(self.views.cells), self.how.restart)
                self.trees[self.ready[0]] = tree
            i = self.ready.popleft()
            for node in self.trees[i].wanted():
                place(i, node)
        if self.free:
            near = [(i, node) for i, tree in self.trees.items() for node in tree.wanted(AHEAD)]
            near.sort(key=lambda one: (one[1].cost - self.trees[one[0]].queue[0].cost, one[0]))
            for i, node in near[: len(self.free)]:
                place(i, node)
        return torch.tensor(filled, dtype=torch.long)

    def _answers(self, at: np.ndarray, predictions: Tensor) -> np.ndarray:
        """What slots `at` answer (R, S), in the orientation of their puzzles."""
        answers, puzzles = self.home(predictions, self.turned[at], self.owner[at]), self.puzzles[self.owner[at]]
        return answers if self.how.pins_are_answers else np.where(self.held[at] != puzzles, puzzles, answers)

    def _stops(self, rows: Tensor, predictions: Tensor, steps: Tensor) -> Tensor:
        """A node ends where the rules accept its answer, and where it will not change any more."""
        at, ran = rows.cpu().numpy(), steps.cpu().numpy()
        answers = self._answers(at, predictions)
        same = (answers == self.last[at]).all(-1) & (ran > 1)
        self.still[at] = np.where(same, self.still[at] + 1, 0)
        self.last[at], spent = answers, ran >= self.most_steps[at]
        gone = np.array([i not in self.trees for i in self.owner[at]])
        valid = self.task.verdicts(self.puzzles[self.owner[at]], answers).valid
        return torch.from_numpy(valid | gone | spent | (self.still[at] >= self.how.still))

    def _finish(self, rows: Tensor, predictions: Tensor, q: QLogits, steps: Tensor, logits: Tensor) -> Tensor:
        at, steps, (q, lost) = rows.cpu().numpy(), steps.cpu().numpy(), (part.float().cpu().numpy() for part in q)
        owner, answers = self.owner[at], self._answers(at, predictions)
        rules, beliefs = self.task.verdicts(self.puzzles[owner], answers), self._beliefs(at, logits)
        faults = self.how.faults(self.task, answers, rules)
        doubt = LOST_COST * np.logaddexp(0, lost) * self.config.q_lost
        cells, costs = self.how.guess(self.task, self.held[at], answers, beliefs, doubt)
        plain = (part.tolist() for part in (rules.valid, steps, q, faults, cells))
        for row, i, *found in zip(at, owner, answers, *plain, costs):
            if i in self.trees:
                self.trees[i].came[int(self.order[row])] = found
        self.free.extend(at.tolist())
        done = []
        for i in dict.fromkeys(owner.tolist()):
            if (tree := self.trees.get(i)) is None:  # computed ahead, in vain
                continue
            before = len(tree.nodes)
            tree.judge()
            if self.counts_nodes:
                self.bar.update(len(tree.nodes) - before)
            if self.on_nodes is not None and len(tree.nodes) > before:
                self.on_nodes(self.first + i, tree.nodes)
            if not tree.over:
                self.ready.append(i)
                continue
            self._take(i, self.trees.pop(i))
            if self.accepted[i] or self.m == len(self.models) - 1:
                done.append(i)
        if not self.counts_nodes:
            self.bar.update(len(done))
        self.report(np.array(done, np.int64))
        return self._fill()

    def _beliefs(self, at: np.ndarray, logits: Tensor) -> np.ndarray:
        """`beliefs_of` the logits of slots `at`, in the orientation of their puzzles."""
        cells, tokens = self.back.cells[self.turned[at]], self.views.tokens[self.turned[at]].astype(np.int64)
        found = np.take_along_axis(beliefs_of(logits, self.config.loss_type), cells[:, :, None], axis=1)
        return np.take_along_axis(found, tokens[:, None, 2:] - 2, axis=2)

    def _take(self, i: int, tree: _Tree) -> None:
        """A search is over, or broken off: keep the best answer that any model gave."""
        self.steps[i] += sum(node.act_steps for node in tree.nodes)
        self.attempts[i] += len(tree.nodes)
        if tree.best is None or tree.best[0] >= self.marks[i]:
            return
        self.marks[i], at = tree.best
        node = tree.nodes[at]
        self.tokens[i], self.q[i], self.pins[i] = node.answer, node.q_halt_logit, pins_of(tree.nodes, at)
        self.accepted[i], self.view[i], self.chosen[i] = node.accepted, self.m * self.most + at, tree.orders[at]
        if self.keep:
            self.kept[i] = tree.nodes

    # ---- what was found

    def collect(self, rows: np.ndarray) -> Answers:
        return Answers(
            tokens=self.tokens[rows],
            verdict=self.task.verdicts(self.puzzles[rows], self.tokens[rows]),
            q_halt_logits=self.q[rows],
            act_steps=self.steps[rows],
            attempts=self.attempts[rows],
            view=self.view[rows],
            rollout=self.rollout and (*(z[rows] for z in self.rollout[:2]), self.rollout[2]),
            pins=[self.pins[i] for i in rows],
            trees=[self.kept[i] for i in rows] if self.keep else None,
        )

    def _roll_out(self) -> None:
        """Compute the chosen nodes once more, now recording: to record all of them would cost more."""
        options, first = self.options, self.models[0].config
        updates = list(first.schedule) * (options["max_act_steps"] or first.halt_max_steps)
        states = np.zeros((2, len(self.puzzles), len(updates), self.puzzles.shape[1]), np.uint8)
        for m, model in enumerate(self.models):
            mine = np.flatnonzero((self.view // self.most == m) & (self.attempts > 0))
            if not len(mine):
                continue
            nodes = [self.kept[i][self.view[i] % self.most] for i in mine]
            turned = np.array([node.view for node in nodes])
            grids, most = self.puzzles[mine].copy(), torch.tensor([node.act_steps for node in nodes])
            for row, i in enumerate(mine):
                for cell, token in self.pins[i]:
                    grids[row, cell] = token
            grids = Symmetry(self.views.cells[turned], self.views.tokens[turned]).apply(grids)

            def enough(rows: Tensor, predictions: Tensor, steps: Tensor, most: Tensor = most) -> Tensor:
                return steps.cpu() >= most[rows.cpu()]

            ids = None if self.puzzle_ids is None else self.puzzle_ids[mine]
            hook = self.named(lambda rows, mine=mine: self.chosen[mine[rows]] * self.total + self.first + mine[rows])
            again = options | {"progress": False, "halt": enough, "hook": hook}
            solution = model.solve(torch.from_numpy(grids), puzzle_ids=ids, return_logits=False, **again)
            states[:, mine] = self.rolled_out(solution.rollout, slice(None), turned, mine)
            for i in mine if not self.how.pins_are_answers else ():
                cells = [cell for cell, _ in self.pins[i]]
                states[:, i, :, cells] = self.puzzles[i, cells, None, None]
        self.rollout = (*states, updates)


def beliefs_of(logits: Tensor, loss_type: str) -> np.ndarray:
    """Probabilities of the digits, (R, S, V) -> (R, S, n), by the loss that the model was trained with."""
    logs = stablemax_log_probs(logits) if loss_type == "stablemax_cross_entropy" else widest(logits).log_softmax(-1)
    beliefs = logs[..., 2:].exp().cpu().numpy()
    return beliefs / beliefs.sum(-1, keepdims=True)


# Guesses: pinned puzzles and the answers to them (R, S), beliefs (R, S, n), how lost they look (R,) -> cells (R,), and
# R times {token: cost}, which is empty where there is nothing to guess.


def _split(
    task: GridTask, grids: np.ndarray, answers: np.ndarray, beliefs: np.ndarray, doubt: np.ndarray
) -> tuple[np.ndarray, list[dict[int, float]]]:
    """The open cell, of those that clash in the answer if any does, whose two best digits are most evenly believed;
    each digit costs its -log belief, the doubt and what every guess costs."""
    two = np.partition(beliefs, -2, axis=-1)[..., -2:]
    even = two[..., 0] - (1 - two.sum(-1))
    open_cells = grids == task.blank_token
    clashing = task.conflicts(answers) & open_cells
    at_issue = np.where(clashing.any(-1, keepdims=True), clashing, open_cells)
    cells = np.where(at_issue, even, -np.inf).argmax(-1)
    beliefs = np.maximum(beliefs[np.arange(len(cells)), cells], LEAST_BELIEF)
    costs = -np.log(beliefs) + doubt[:, None] + GUESS_COST
    some = open_cells.any(-1)
    return cells, [dict(enumerate(row, start=2)) if more else {} for row, more in zip(costs.tolist(), some)]


def _wall_up(
    task: MazeTask, grids: np.ndarray, answers: np.ndarray, beliefs: np.ndarray, doubt: np.ndarray
) -> tuple[np.ndarray, list[dict[int, float]]]:
    """A wall at the marked cell that is believed least of those that leave a way from S to G."""
    marked = (answers == task.PATH) & (grids == task.SPACE)
    for grid, marks in zip(grids, marked):
        ends = (int((grid == token).argmax()) for token in (task.START, task.GOAL))
        marks &= ~bottlenecks((grid > task.WALL).reshape(task.height, task.width), *ends)
    cells = np.where(marked, beliefs[..., task.PATH - 2], np.inf).argmin(-1)
    return cells, [{task.WALL: WALL_COST} if some else {} for some in marked.any(-1)]


def _clashes(task: GridTask, answers: np.ndarray, rules: Verdict) -> np.ndarray:
    """Cells that break a rule or are empty (R,)."""
    return (task.conflicts(answers) | (answers <= task.blank_token)).sum(-1)


def _moves(task: MazeTask, answers: np.ndarray, rules: Verdict) -> np.ndarray:
    """Cells of the path (R,): of two refused ones the shorter is the better. Without a path all cells."""
    return np.where(rules.complete & rules.consistent, (answers == task.PATH).sum(-1), task.seq_len)


class _Guessing(NamedTuple):
    """How a search goes about the puzzles of a task."""

    guess: Callable
    faults: Callable  # (task, answers (R, S), rules) -> (R,): the fewer, the better a refused answer
    pins_are_answers: bool  # else what was pinned is in the answer as the puzzle has it
    still: int  # ACT steps after which a refused answer that does not change is over
    share: float  # of the ACT steps, for nodes below the first
    restart: int  # nodes in the first view, more by as many in every next one; 0: it takes each view in turn


# Of Sudokus, still and share spend fewer ACT steps for as many solved (results/search_by_pins.md).
GUESSING = {
    "sudoku": _Guessing(_split, _clashes, pins_are_answers=True, still=1, share=0.5, restart=RESTART),
    "maze": _Guessing(_wall_up, _moves, pins_are_answers=False, still=2, share=1.0, restart=0),
}
