"""Batches: fresh random copies of base puzzles, and the slots that hold puzzles until they halt.

One optimizer step runs one ACT step for B slots. A slot holds a puzzle until it halts; then it gets a fresh puzzle
and fresh states. Everything of a step stays on the device: refilling is torch.where, metrics are summed there and read
every `log_every` steps. All randomness of step t comes from (seed, t) alone, so a resumed run needs no generator
state to draw the same numbers, and every process draws the same global batch and takes its own rows.

Shape letters: B slots (of this process), S cells, T state positions, D hidden, N puzzles, V tokens.
Source of the halting rule: the public training code (github.com/juchengshen/air).
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


def seeded(generator: torch.Generator, *key: int) -> torch.Generator:
    """The generator, set to a state that depends on the key alone. Host work only: nothing waits for the device."""
    digest = hashlib.blake2b(np.asarray(key, np.int64).tobytes(), digest_size=8).digest()
    return generator.manual_seed(int.from_bytes(digest, "little") >> 1)


def uniforms(generator: torch.Generator, batch_size: int, rows: slice) -> Callable[..., Tensor]:
    """uniform(*shape): random numbers of the whole batch, of which a process takes its own `rows`, (B, *shape)."""
    return lambda *shape: torch.rand(batch_size, *shape, generator=generator, device=generator.device)[rows]


NEARLY = 12  # open cells that a nearly solved copy has at most


class Puzzles(NamedTuple):
    """A batch: inputs (B, S) int64, labels (B, S) int64 with ignore_index where there is none, ids (B,) int64."""

    inputs: Tensor
    labels: Tensor
    ids: Tensor


class PuzzleSampler:
    """Endless fresh batches: every base puzzle once an epoch, each time another random copy (`draw`).

    Sudoku copies are drawn on the device: digits relabelled, bands, stacks, rows and columns permuted, the grid
    transposed where boxes are square: the distribution of the published 1,000 copies, never the same one twice. Maze
    copies are the eight (rectangles: four) turns and mirrors, each re-labelled by the benchmark's rule, because a
    turned label would follow another one. `easier_share` of them show k more cells of the solution (of a maze: of the
    path), k uniform on 1 to `easier_most` of the open cells but one; `nearly_share` show all but 1 to NEARLY of them.

    Args:
        puzzles: a PuzzleSet (inputs and labels uint8 (N, S), puzzle_ids, groups, task).
        batch_size: of all processes. rank, world: whose rows of it to return.
        device: where the puzzles live and the copies are made.
    """

    def __init__(
        self,
        puzzles: Any,
        batch_size: int,
        *,
        seed: int,
        augment: str = "symmetries",
        easier_share: float = 0.0,
        easier_most: float = 1.0,
        nearly_share: float = 0.0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        ignore_index: int = -100,
    ) -> None:
        self.task, self.seed, self.batch_size, self.ignore_index = puzzles.task, seed, batch_size, ignore_index
        self.augment, self.easier_share, self.easier_most = augment, easier_share, easier_most
        self.nearly_share = nearly_share
        self.rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.device = torch.device(device)
        inputs, labels = np.asarray(puzzles.inputs, np.uint8), np.asarray(puzzles.labels, np.uint8)
        if not len(inputs):
            raise ValueError("The training data has no puzzles. Build or choose another data set.")
        # Rows of one group are stored copies of one base puzzle; below, each group's first row and number of rows.
        order = np.argsort(puzzles.groups, kind="stable")
        first, sizes = np.unique(puzzles.groups[order], return_index=True, return_counts=True)[1:]
        inputs, labels, ids = inputs[order], labels[order], np.asarray(puzzles.puzzle_ids)[order]
        self.num_puzzles = len(first)
        if augment == "symmetries" and self.task.name == "maze":
            copies = inputs[:, self.task.dihedral]  # (N, K, S)
            labels = np.stack([self.task.label(copies[:, k]) for k in range(copies.shape[1])], axis=1)
        else:
            copies, labels = inputs[:, None], labels[:, None]
        self.inputs, self.labels = torch.from_numpy(copies).to(self.device), torch.from_numpy(labels).to(self.device)
        self.ids, self.first, self.sizes = (torch.from_numpy(a).long().to(self.device) for a in (ids, first, sizes))
        self.generator = torch.Generator(self.device)
        self._order = functools.lru_cache(maxsize=2)(self._order)  # a batch may reach into the next epoch

    def _order(self, epoch: int) -> Tensor:
        generator = seeded(self.generator, self.seed, 1, epoch)
        return torch.randperm(self.num_puzzles, generator=generator, device=self.device)

    def indices(self, step: int) -> Tensor:
        """(B,) int64: the base puzzles of this process's slots in optimizer step `step`, counted from 1."""
        n, first = self.num_puzzles, (step - 1) * self.batch_size
        low, high = first + self.rows.start, first + self.rows.stop
        epochs = range(low // n, (high - 1) // n + 1)
        return torch.cat([self._order(epoch)[max(0, low - epoch * n) : high - epoch * n] for epoch in epochs])

    def draw(self, step: int) -> Puzzles:
        """One fresh copy for every slot of this process."""
        index = self.indices(step)
        uniform = uniforms(seeded(self.generator, self.seed, 2, step), self.batch_size, self.rows)
        row = self.first[index] + (uniform() * self.sizes[index]).long()
        copy = (uniform() * self.inputs.shape[1]).long()
        inputs, labels = self.inputs[row, copy].long(), self.labels[row, copy].long()  # (B, S)
        if self.augment == "symmetries" and self.task.name == "sudoku":
            cells, tokens = sudoku_symmetries(self.task, uniform)
            inputs, labels = (tokens.gather(1, grid.gather(1, cells)) for grid in (inputs, labels))
        if self.easier_share:
            # For Sudokus the data mixing of arXiv:2601.10679, for mazes our own.
            all_but_one = is_open(inputs, labels).sum(1) - 1
            most = (all_but_one * self.easier_most).floor().clamp(min=0)
            count = (1 + (uniform() * most).long()).minimum(all_but_one)  # none, where one cell is open
            inputs = filled_in(inputs, labels, uniform, self.easier_share, count)
        if self.nearly_share:  # our own
            left = 1 + (uniform() * NEARLY).long()
            count = is_open(inputs, labels).sum(1) - left
            inputs = filled_in(inputs, labels, uniform, self.nearly_share, count)
        return Puzzles(inputs, labels.masked_fill(labels == 0, self.ignore_index), self.ids[row])


def sudoku_symmetries(task: Any, uniform: Any) -> tuple[Tensor, Tensor]:
    """Random maps out[j] = tokens[in[cells[j]]]: cells (B, S), tokens (B, V). `uniform(*shape)` draws (B, *shape)."""
    n, height, width = task.height, task.box_height, task.box_width

    def lines(per_group: int) -> Tensor:  # (B, n): groups of lines permuted, and the lines within each
        groups = uniform(n // per_group).argsort(-1)
        within = uniform(n // per_group, per_group).argsort(-1)
        return (groups[:, :, None] * per_group + within).flatten(1)

    rows, columns = lines(height), lines(width)
    cells = rows[:, :, None] * n + columns[:, None, :]  # (B, n, n)
    if height == width:
        flip = uniform() < 0.5
        cells = torch.where(flip[:, None, None], cells.transpose(1, 2), cells)
    digits = uniform(n).argsort(-1) + 2
    fixed = torch.arange(2, device=digits.device).expand(len(digits), 2)  # PAD and blank
    return cells.flatten(1), torch.cat([fixed, digits], dim=1)


def is_open(inputs: Tensor, labels: Tensor) -> Tensor:
    """(B, S) bool: where the label says something else than the input: blanks of a Sudoku, path cells of a maze."""
    return (inputs != labels) & (labels != 0)


def filled_in(inputs: Tensor, labels: Tensor, uniform: Any, share: float, count: Tensor) -> Tensor:
    """A `share` of the puzzles (B, S) with `count` (B,) random open cells filled in."""
    empty = is_open(inputs, labels)
    order = uniform(inputs.shape[1]).masked_fill(~empty, 2.0).argsort(1)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    chosen = (uniform() < share)[:, None] & (rank < count[:, None]) & empty
    return torch.where(chosen, labels, inputs)


@torch.no_grad()
def misled(model: nn.Module, start: Any, puzzles: Puzzles, uniform: Any, share: float) -> Any:
    """The carry `start` of fresh Sudokus, a `share` of which begin with an answer in z_H, as if it had been encoded.

    It has the clues; of its other cells a random part is wrong (between none and all, drawn for each puzzle). Our own
    form of corrupted-answer feedback (results/LOG.md, "9x9: out of wrong answers").
    """
    inputs, labels, _ = puzzles
    digits = model.config.vocab_size - 2
    other = 2 + (uniform(inputs.shape[1]) * digits).long()
    wrong = (uniform(inputs.shape[1]) < uniform(1)) & (inputs < 2)
    answers = torch.where(wrong, other, torch.where(labels < 2, inputs, labels))
    told = model.config.hidden_size**0.5 * model.embed_tokens(answers)
    chosen = (uniform(1) < share)[:, None]
    z_h = start.z_h.clone()
    cells = z_h[:, z_h.shape[1] - inputs.shape[1] :]  # behind the prefix
    cells += torch.where(chosen, told.to(z_h.dtype), 0)
    return type(start)(**{**start, "z_h": z_h})


class Slots:
    """B puzzles in work and their states. All fields are tensors on the device; `halted` asks for a refill."""

    def __init__(self, model: nn.Module, batch_size: int, seq_len: int, device: torch.device) -> None:
        zeros = torch.zeros(batch_size, seq_len, dtype=torch.long, device=device)
        self.puzzles = Puzzles(zeros, zeros.clone(), zeros[:, 0].clone())
        self.carry = model.initial_carry(batch_size, device)
        self.halted = torch.ones(batch_size, dtype=torch.bool, device=device)

    @torch.no_grad()
    def refill(self, fresh: Puzzles, start: Mapping[str, Tensor]) -> None:
        """Slots that halted take their row of `fresh` and of `start`, a carry of fresh puzzles."""
        halted = self.halted

        def put(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(halted.view(-1, *[1] * (old.dim() - 1)), new.to(old.dtype), old)

        self.puzzles = Puzzles(*(put(new, old) for new, old in zip(fresh, self.puzzles)))
        self.carry = type(self.carry)(**{name: put(start[name], old) for name, old in self.carry.items()})

    def state(self) -> dict[str, Tensor]:
        """All tensors that a checkpoint keeps."""
        puzzles = {f"puzzles.{k}": v for k, v in self.puzzles._asdict().items()}
        return {**self.carry, "halted": self.halted, **puzzles}

    def load(self, tensors: dict[str, Tensor]) -> None:
        device = self.halted.device
        tensors = {k: v.to(device) for k, v in tensors.items()}
        self.puzzles = Puzzles(*(tensors[f"puzzles.{k}"] for k in Puzzles._fields))
        self.carry = type(self.carry)(**{name: tensors[name] for name in self.carry})
        self.halted = tensors["halted"]


def joined(pieces: Sequence[Mapping[str, Tensor]], *names: str) -> list[Tensor]:
    """What the pieces of a batch gave, detached, their rows one after another."""
    return [torch.cat([piece[name].detach() for piece in pieces]) for name in names]


def slots_to_refill(
    steps: Tensor, q_halt: Tensor, q_continue: Tensor | None, min_steps: Tensor, max_steps: int
) -> Tensor:
    """Which slots stop after this ACT step while training, (B,) bool; source: see above.

    Args:
        steps: (B,) ACT steps done, this one included. q_continue: None in a model without it (halt on q_halt > 0).
        min_steps: (B,) exploration: no halt before this many steps.
    """
    wants = q_halt > (0.0 if q_continue is None else q_continue)
    return (steps >= max_steps) | (wants & (steps >= min_steps))


def exploration(
    generator: torch.Generator, seed: int, step: int, batch_size: int, prob: float, max_steps: int
) -> Tensor:
    """min_steps of every slot of the global batch, (B,) int64: (u < prob) · U{2 .. max_steps}."""
    u = torch.rand(2, batch_size, generator=seeded(generator, seed, 3, step), device=generator.device)
    return (u[0] < prob) * (2 + (u[1] * (max_steps - 1)).long()).clamp(max=max_steps)


HALTED_METRICS = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")


LOSSES = ("loss", "lm_loss", "q_halt_loss", "q_continue_loss")


@torch.no_grad()
def step_metrics(logits: Tensor, labels: Tensor, q_halt: Tensor, steps: Tensor, halted: Tensor, ignore: int) -> Tensor:
    """Sums over the slots that halt at this step: (5,) float32: their count, then HALTED_METRICS."""
    known = labels != ignore
    count = known.sum(-1)
    right = (known & (logits.argmax(-1) == labels)).sum(-1)
    exact = right == count
    valid = halted & (count > 0)
    columns = [torch.ones_like(q_halt), right / count.clamp(min=1), exact, (q_halt >= 0) == exact, steps]
    return torch.stack([torch.where(valid, column.float(), 0.0).sum() for column in columns])
