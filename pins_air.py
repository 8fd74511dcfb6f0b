"""Search by pins: where a single pass was refused, guess, and solve the puzzle again with the guess filled in.

A node is the puzzle with some cells pinned, solved from fresh states. Where the rules refuse its answer, the open cell
whose two best digits the model believes most evenly gets each digit in turn, and the likeliest guesses go first. The
rules judge finished answers only. The only loop is `AirModel.solve`: the nodes of all puzzles share its batch.

This file travels to the Hub: it needs numpy, torch and transformers, nothing else.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from .answers_air import Answers, Attempts, Node, Work, pins_of, symmetric_views
from .modeling_air import AirModel, stablemax_log_probs
from .processing_air import GridTask, Symmetry
from .solving_air import AirUpdate, Hook

AHEAD = 3  # nodes of a puzzle that may be computed ahead of their turn, where the batch would be empty otherwise
# A search spends fewer ACT steps with these two, for as many solved (results/search_by_pins.md): a refused answer that
# has not changed for a step is over, and the nodes after the first run a share of the steps.
STILL, SHARE = 1, 0.5
# Searches have a long tail: one that has not ended by then begins anew in another symmetric view, where the model
# believes otherwise (of three that 512 nodes had not solved, 18 of 24 other views took 96 or fewer).
RESTART = 64
LEAST_BELIEF = 1e-6
BAR_DELAY = 1.0  # seconds: what is done sooner needs no bar


class _Candidate(NamedTuple):
    """A node that waits: sorted by cost, then by the order of making."""

    cost: float
    order: int
    parent: int
    cell: int
    token: int


class _Result(NamedTuple):
    """What came out of a node. faults: cells that break a rule. cell (-1: none) and costs (n,): of its children."""

    answer: np.ndarray
    accepted: bool
    act_steps: int
    q: float
    faults: int
    cell: int
    costs: np.ndarray


class _Tree:
    """The search at one puzzle: nodes are judged one after another, the cheapest first.

    Nodes may be computed ahead of their turn, several at a time, but are judged in turn: so the course of a search is
    a function of its puzzle alone, whatever else is in the batch.
    """

    def __init__(self, puzzle: np.ndarray, most: int) -> None:
        self.puzzle, self.most = puzzle, most
        self.queue: list[_Candidate] = []
        self.made, self.over, self.view = 0, False, -1
        self.nodes: list[Node] = []
        self.grids: list[np.ndarray] = []  # the puzzle with the pins of each node
        self.came: dict[int, _Result | None] = {}  # by order of making; None while it is being computed
        self.best: tuple[tuple, int] | None = None  # the better the smaller, and which node
        self.begin()

    def begin(self) -> None:
        """Start from the puzzle as given, in the next view."""
        self.queue = [_Candidate(0.0, self.made, -1, -1, 0)]
        self.made, self.view = self.made + 1, self.view + 1

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
            result, at = self.came.pop(node.order), len(self.nodes)
            self.grids.append(self.grid(node))
            found = (result.accepted, result.act_steps, result.q, result.answer, self.view)
            self.nodes.append(Node(*node[2:], node.cost, *found))
            mark = (not result.accepted, result.faults, -result.q, at)
            self.best = min(self.best or (mark, at), (mark, at))
            for token, cost in enumerate(result.costs if result.cell >= 0 else (), start=2):
                child = _Candidate(node.cost + float(cost), self.made, at, result.cell, token)
                heapq.heappush(self.queue, child)
                self.made += 1
            self.over = result.accepted or len(self.nodes) == self.most or not self.queue
            if not self.over and len(self.nodes) % RESTART == 0:
                self.begin()


class Search(Attempts):
    """A search by pins at each of N puzzles: the nodes of all of them share one batch."""

    def __init__(self, work: Work, attempts: int) -> None:
        super().__init__(work, symmetric_views(work.task, math.ceil(attempts / RESTART)))
        n, self.most, self.keep = len(self.puzzles), attempts, work.options["return_rollout"]
        self.tokens, self.q = self.puzzles.copy(), np.full(n, -np.inf, np.float32)
        self.steps, self.attempts, self.view = np.zeros((3, n), np.int64)
        self.marks: list[tuple] = [(True, math.inf)] * n
        self.pins: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        self.kept: list[list[Node]] = [[] for _ in range(n)]
        self.trees: dict[int, _Tree] = {}  # of the puzzles begun and not yet done with
        self.rollout: tuple[np.ndarray, np.ndarray, list[str]] | None = None

    def run(self) -> Answers:
        self.counts_nodes = len(self.puzzles) == 1
        most, unit = (self.most * len(self.models), "node") if self.counts_nodes else (len(self.puzzles), "puzzle")
        shown = self.work.options["progress"]
        with logging.tqdm(total=most, unit=unit, delay=BAR_DELAY, disable=not shown) as self.bar:
            return super().run()

    def end(self) -> None:
        for i, tree in self.trees.items():
            self._take(i, tree)
        if self.keep:
            self._roll_out()

    # ---- one model

    def attempt(self, m: int, model: AirModel) -> dict[str, Any]:
        self.m, self.config, options, ids = m, model.config, self.work.options, self.work.puzzle_ids
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
        self.owner, self.order, self.turned, self.most_steps, self.still, self.ran = np.zeros((6, slots), np.int64)
        self.last = np.zeros((slots, size), np.uint8)
        self.steps_of_root = options["max_act_steps"] or model.config.halt_max_steps
        self.free = list(range(slots))[::-1]
        plain = {"progress": False, "return_rollout": False}
        if options["halt"] == "rules":
            plain["halt"] = self._stops
        solution = model.solve(
            self.inputs,
            puzzle_ids=self.ids,
            queue=self._fill(),
            hook=None if self.work.hook is None else self._named(self.work.hook),
            return_logits=False,
            on_finish=self._finish,
            **(options | plain),
        )
        return solution.stats

    def _named(self, hook: Hook) -> Hook:
        """The user's hook, which knows nodes instead of slots."""

        def called(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
            at = update.rows.cpu().numpy()
            names = self.order[at] * len(self.puzzles) + self.owner[at]
            return hook(update._replace(rows=torch.from_numpy(names).to(update.rows.device)), z_h, z_l)

        return called

    def _fill(self) -> Tensor:
        """Nodes for the free slots: of puzzles begun, then of new ones; where none waits, ahead of their turn."""
        filled: list[int] = []

        def place(i: int, node: _Candidate) -> None:
            row, tree = self.free.pop(), self.trees[i]
            grid = tree.grid(node)
            tree.came[node.order] = None
            turn = Symmetry(self.views.cells[tree.view], self.views.tokens[tree.view])
            self.inputs[row] = torch.from_numpy(turn.apply(grid)).to(self.inputs.device)
            if self.ids is not None:
                self.ids[row] = self.work.puzzle_ids[i]
            self.owner[row], self.order[row], self.turned[row], self.last[row] = i, node.order, tree.view, 0
            self.most_steps[row] = math.ceil((1 if node.parent < 0 else SHARE) * self.steps_of_root)
            self.still[row] = self.ran[row] = 0
            filled.append(row)

        while self.free and (self.ready or self.waiting):
            if not self.ready:
                self.ready.append(self.waiting.popleft())
                self.trees[self.ready[0]] = _Tree(self.puzzles[self.ready[0]], self.most)
            i = self.ready.popleft()
            for node in self.trees[i].wanted():
                place(i, node)
        if self.free:
            near = [(i, node) for i, tree in self.trees.items() for node in tree.wanted(AHEAD)]
            near.sort(key=lambda one: (one[1].cost - self.trees[one[0]].queue[0].cost, one[0]))
            for i, node in near[: len(self.free)]:
                place(i, node)
        return torch.tensor(filled, dtype=torch.long)

    def _clamped(self, at: np.ndarray, grids: Tensor) -> np.ndarray:
        """What slots `at` hold or answer (R, S), in the orientation of their puzzles."""
        return self.home(grids, self.turned[at], self.owner[at])

    def _stops(self, rows: Tensor, predictions: Tensor) -> Tensor:
        """A node ends where the rules accept its answer, and where it will not change any more."""
        at = rows.cpu().numpy()
        answers = self._clamped(at, predictions)
        same = (answers == self.last[at]).all(-1)
        self.still[at] = np.where(same, self.still[at] + 1, 0)
        self.last[at], self.ran[at] = answers, self.ran[at] + 1
        spent = self.ran[at] >= self.most_steps[at]
        gone = np.array([i not in self.trees for i in self.owner[at]])
        valid = self.task.verdicts(self.puzzles[self.owner[at]], answers).valid
        return torch.from_numpy(valid | gone | spent | (self.still[at] >= STILL))

    def _finish(self, rows: Tensor, predictions: Tensor, q: Tensor, steps: Tensor, logits: Tensor) -> Tensor:
        at, steps, q = rows.cpu().numpy(), steps.cpu().numpy(), q.float().cpu().numpy()
        owner, answers = self.owner[at], self._clamped(at, predictions)
        valid = self.task.verdicts(self.puzzles[owner], answers).valid
        faults = (self.task.conflicts(answers) | (answers <= self.task.blank_token)).sum(-1)
        cells, costs = _split(self.task, self._clamped(at, self.inputs[rows]), self._beliefs(at, logits))
        plain = (part.tolist() for part in (valid, steps, q, faults, cells))
        for row, i, *found in zip(at, owner, answers, *plain, costs):
            if i in self.trees:
                self.trees[i].came[int(self.order[row])] = _Result(*found)
        self.free.extend(at.tolist())
        done = []
        for i in dict.fromkeys(owner.tolist()):
            if (tree := self.trees.get(i)) is None:  # computed ahead, in vain
                continue
            before = len(tree.nodes)
            tree.judge()
            if self.counts_nodes:
                self.bar.update(len(tree.nodes) - before)
            if self.work.on_nodes is not None and len(tree.nodes) > before:
                self.work.on_nodes(i, tree.nodes)
            if not tree.over:
                self.ready.append(i)
                continue
            self._take(i, self.trees.pop(i))
            if self.accepted[i] or self.m == len(self.models) - 1:
                done.append(i)
        if not self.counts_nodes:
            self.bar.update(len(done))
        self.tell(np.array(done, np.int64))
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
        self.accepted[i], self.view[i] = node.accepted, self.m * self.most + at
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
        options, first = self.work.options, self.models[0].config
        updates = list(first.schedule) * (options["max_act_steps"] or first.halt_max_steps)
        states = np.zeros((2, len(self.puzzles), len(updates), self.puzzles.shape[1]), np.int8)
        for m, model in enumerate(self.models):
            mine = np.flatnonzero((self.view // self.most == m) & (self.attempts > 0))
            if not len(mine):
                continue
            nodes = [self.kept[i][self.view[i] % self.most] for i in mine]
            turned = np.array([node.view for node in nodes])
            grids, left = self.puzzles[mine].copy(), torch.tensor([node.act_steps for node in nodes])
            for row, i in enumerate(mine):
                for cell, token in self.pins[i]:
                    grids[row, cell] = token
            grids = Symmetry(self.views.cells[turned], self.views.tokens[turned]).apply(grids)

            def enough(rows: Tensor, predictions: Tensor, left: Tensor = left) -> Tensor:
                left[rows.cpu()] -= 1
                return left[rows.cpu()] <= 0

            ids = None if self.work.puzzle_ids is None else self.work.puzzle_ids[mine]
            again = options | {"progress": False, "halt": enough}
            solution = model.solve(torch.from_numpy(grids), puzzle_ids=ids, return_logits=False, **again)
            states[:, mine] = self.rolled_out(solution.rollout, slice(None), turned, mine)
        self.rollout = (*states, updates)


def beliefs_of(logits: Tensor, loss_type: str) -> np.ndarray:
    """Probabilities of the digits, (R, S, V) -> (R, S, n), by the loss that the model was trained with."""
    logs = stablemax_log_probs(logits) if loss_type == "stablemax_cross_entropy" else logits.double().log_softmax(-1)
    beliefs = logs[..., 2:].exp().cpu().numpy()
    return beliefs / beliefs.sum(-1, keepdims=True)


def _split(task: GridTask, grids: np.ndarray, beliefs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where to guess: the open cell whose two best digits are most evenly believed (R,), and -log belief (R, n) there.

    grids (R, S): the pinned puzzles; beliefs (R, S, n). The cell is -1 where none is open.
    """
    two = np.partition(beliefs, -2, axis=-1)[..., -2:]
    even = two[..., 0] - (1 - two.sum(-1))
    open_cells = grids == task.blank_token
    cells = np.where(open_cells, even, -np.inf).argmax(-1)
    costs = -np.log(np.maximum(beliefs[np.arange(len(cells)), cells], LEAST_BELIEF))
    return np.where(open_cells.any(-1), cells, -1), costs


__all__ = ["Search", "beliefs_of"]
