"""Batches for training: base puzzles in, fresh symmetric copies and easier copies out.

The published protocol stores 1,000 random copies of each of 1,000 puzzles and an epoch takes one copy of each puzzle
at random. Drawing the symmetry when the row is used has the same distribution (except that a copy is not seen twice)
and stores nothing.

    sampler = PuzzleSampler(puzzles, symmetries=True, easier_share=0.5)
    inputs, labels = sampler.take(position, 768, seed=0)     # uint8 (768, S) each

Everything is a function of the arguments, so a run resumes by asking for the same positions again.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from air_model.processing_air import GridTask, MazeTask, SudokuTask, random_lines

MAX_TABLE = 400_000  # rows of a precomputed table of the orders of lines
MAX_CACHE_BYTES = 1 << 28  # re-labelled mazes kept
CLUE = 64  # bit beside the label token (at most 36): this cell is a clue
DIGITS = 1 << 32  # random words from this number on relabel the digits, those before it fill blanks


class PuzzleSampler:
    """Draws training batches from base puzzles.

    Args:
        inputs, labels: (N, S) uint8 tokens.
        task: the GridTask they belong to.
        symmetries: map every row by a fresh random symmetry. Sudoku: inputs and labels alike. Maze: the input is
            turned or mirrored, and the label is made anew by the Down, Left, Right, Up rule, because a turned label
            follows another rule.
        easier_share: share of rows in which k blanks are filled from the label, k uniform in 1 ... blanks - 1
            (augmented HRM mixes half and half: 0.5). Sudoku only.
        groups: (N,) number of the base puzzle that each row is a copy of; an epoch then takes one row per group.

    Raises:
        ValueError: shapes disagree; easier copies of mazes; symmetries over maze labels of another rule.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        labels: np.ndarray,
        task: GridTask,
        *,
        symmetries: bool = False,
        easier_share: float = 0.0,
        groups: np.ndarray | None = None,
    ):
        if inputs.shape != labels.shape or inputs.ndim != 2 or inputs.shape[1] != task.seq_len or len(inputs) == 0:
            raise ValueError(
                f"inputs and labels must both be (N, {task.seq_len}), N > 0, got {inputs.shape} and {labels.shape}."
            )
        if not 0 <= easier_share <= 1:
            raise ValueError(f"easier_share is a share from 0 to 1, got {easier_share}.")
        if easier_share and not isinstance(task, SudokuTask):
            raise ValueError("Easier copies fill in digits of a Sudoku: set easier_share to 0 for other tasks.")
        self.inputs, self.labels, self.task = np.ascontiguousarray(inputs), np.ascontiguousarray(labels), task
        self.symmetries, self.easier_share = symmetries, easier_share
        self._orders: dict[tuple[int, int], np.ndarray] = {}
        self.starts = self.order = None  # of groups: rows sorted by group, and where each group begins
        if groups is not None and (np.diff(np.sort(groups)) == 0).any():
            self.order = np.argsort(groups, kind="stable")
            self.starts = np.flatnonzero(np.diff(groups[self.order], prepend=groups[self.order[0]] - 1))
        if isinstance(task, SudokuTask):
            clue = inputs != task.blank_token
            if (clue & (inputs != labels)).any():
                row = np.flatnonzero((clue & (inputs != labels)).any(1))[0]
                raise ValueError(f"The label of puzzle {row + 1} contradicts its clues.")
            self._codes = (labels | np.where(clue, CLUE, 0)).astype(np.uint8)
            sides = (task.box_height, task.box_width)
            self._lines = [(_line_table(task.height, side), side) for side in sides]
        elif isinstance(task, MazeTask) and symmetries:
            some = slice(0, 1000)
            if (task.label(self.inputs[some]) != self.labels[some]).any():
                raise ValueError(
                    "These maze labels do not follow the Down, Left, Right, Up rule, so turned copies would be"
                    " labelled by another rule than the originals: switch symmetries off."
                )
            maps = len(task.dihedral)
            if inputs.size * maps <= MAX_CACHE_BYTES:
                self._relabelled = np.zeros((len(inputs), maps, task.seq_len), np.uint8)

    def __len__(self) -> int:
        """Base puzzles: rows of an epoch."""
        return len(self.inputs) if self.starts is None else len(self.starts)

    def rows(self, position: int, count: int, seed: int) -> np.ndarray:
        """Row numbers (count,) at `position` of the endless stream of shuffled epochs."""
        out = np.empty(count, np.int64)
        filled = 0
        while filled < count:
            epoch, offset = divmod(position + filled, len(self))
            part = self._epoch(epoch, seed)[offset : offset + count - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
        return out

    def _epoch(self, epoch: int, seed: int) -> np.ndarray:
        if (seed, epoch) not in self._orders:
            if len(self._orders) > 3:
                self._orders.clear()
            rng = np.random.default_rng([seed, epoch, 1])
            order = rng.permutation(len(self))
            if self.starts is not None:
                sizes = np.diff(self.starts, append=len(self.order))[order]
                order = self.order[self.starts[order] + rng.integers(sizes)]
            self._orders[seed, epoch] = order
        return self._orders[seed, epoch]

    def take(self, position: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """inputs, labels: uint8 (count, S) each, at `position` of the stream; equal arguments, equal bytes."""
        return self.batch(self.rows(position, count, seed), np.random.default_rng([seed, position, 2]))

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """inputs, labels: uint8 (B, S) each, copies of the base rows (B,)."""
        if isinstance(self.task, SudokuTask) and (self.symmetries or self.easier_share):
            return self._sudoku(rows, rng)
        if self.symmetries:
            return self._turned(rows, rng)
        return self.inputs[rows], self.labels[rows]

    # A Sudoku cell travels as one byte, label + clue bit: one gather moves both grids.
    def _sudoku(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        task, n, count = self.task, self.task.height, len(rows)
        same, flip = np.zeros(count, np.int64), np.zeros(count, bool)
        if self.symmetries:
            lines, columns = (_draw_lines(rng, count, n, *kind) for kind in self._lines)
            if task.box_height == task.box_width:  # transposed with probability 1/2
                flip = rng.random(count) < 0.5
        else:
            lines = columns = (np.arange(n, dtype=np.intp)[None], same)
        easy = rng.random(count) < self.easier_share
        keys = rng.integers(0, 1 << 64, count, np.uint64)
        inputs, labels = np.empty((2, count, task.seq_len), np.uint8)
        relabel = self.symmetries
        _copies(self._codes, rows, *lines, *columns, flip, relabel, easy, keys, task.blank_token, inputs, labels)
        return inputs, labels

    def _turned(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        task = self.task
        which = rng.integers(len(task.dihedral), size=len(rows))
        inputs = np.take_along_axis(self.inputs[rows], task.dihedral[which], axis=1)
        if not isinstance(task, MazeTask):
            return inputs, np.take_along_axis(self.labels[rows], task.dihedral[which], axis=1)
        if not hasattr(self, "_relabelled"):
            return inputs, label_mazes(task, inputs)
        fresh = np.flatnonzero(self._relabelled[rows, which, 0] == 0)  # PAD never is a label here
        if len(fresh):
            self._relabelled[rows[fresh], which[fresh]] = label_mazes(task, inputs[fresh])
        return inputs, self._relabelled[rows, which]


def _copies(
    codes: np.ndarray, rows: np.ndarray, lines: np.ndarray, line: np.ndarray, columns: np.ndarray, column: np.ndarray,
    flip: np.ndarray, relabel: bool, easy: np.ndarray, keys: np.ndarray, blank: int, inputs: np.ndarray,
    labels: np.ndarray,
) -> None:  # fmt: skip
    """`sudoku_kernels.copies` where numba is installed, else the same bytes by numpy; see there for the arguments."""
    try:
        from air_model.datasets_builders.sudoku_kernels import copies
    except ImportError:
        n = lines.shape[1]
        by_row, by_column = np.where(flip, 1, n)[:, None], np.where(flip, n, 1)[:, None]
        down, across = lines[line] * by_row, columns[column] * by_column
        where = (down[:, :, None] + across[:, None, :]).reshape(len(rows), -1)
        moved = np.take_along_axis(codes[rows], where, axis=1)
        labels[:] = moved & (CLUE - 1)
        if relabel:
            labels[:] = np.take_along_axis(digit_maps(n, keys), labels.astype(np.intp), axis=1)
        clue = moved >= CLUE
        reveal(clue, np.flatnonzero(easy), keys)
        inputs[:] = np.where(clue, labels, blank)
        return
    copies(codes, rows, lines, line, columns, column, flip, relabel, easy, keys, blank, inputs, labels)


def reveal(clue: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> None:
    """In `rows` of clue (B, S) bool, set k of the blanks, k uniform in 1 ... blanks - 1; keys: (B,) uint64, one each.

    Revealing each blank with one probability p ~ U(0, 1) makes k uniform in 0 ... blanks, and the k cells a uniform
    subset; 0 and all are drawn again. Rows with fewer than two blanks stay.
    """
    size = clue.shape[1]
    words = 1 + -(-size // 4)  # of one draw: p, then 16 bits a cell
    rows = rows[(~clue[rows]).sum(-1) >= 2]
    draw = 0
    while len(rows):
        counters = np.arange(draw * words, (draw + 1) * words, dtype=np.uint64)
        drawn = _mix(keys[rows, None], counters).astype("<u8").view("<u2")  # (R, 4 words)
        new = (drawn[:, 4 : 4 + size] < drawn[:, :1]) & ~clue[rows]
        filled, blanks = new.sum(-1), (~clue[rows]).sum(-1)
        done = (0 < filled) & (filled < blanks)
        clue[rows[done]] |= new[done]
        rows, draw = rows[~done], draw + 1


def digit_maps(size: int, keys: np.ndarray) -> np.ndarray:
    """A random digit relabelling per key (B,) as token maps (B, size + 2), shuffled from the last digit down."""
    out = np.tile(np.arange(size + 2, dtype=np.uint8), (len(keys), 1))
    every = np.arange(len(keys))
    for k in range(size - 1, 0, -1):
        word = _mix(keys, np.array([DIGITS + k], np.uint64)) >> np.uint64(32)
        j = ((word * np.uint64(k + 1)) >> np.uint64(32)).astype(np.intp)
        out[every, j + 2], out[:, k + 2] = out[:, k + 2].copy(), out[every, j + 2]
    return out


def _mix(key: np.ndarray, counter: np.ndarray) -> np.ndarray:
    """Random words number `counter` of the streams `key` (splitmix64), uint64."""
    z = key + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def label_mazes(task: MazeTask, mazes: np.ndarray) -> np.ndarray:
    """`MazeTask.label` of many mazes, by numba where it is installed; the same bytes either way."""
    try:
        from air_model.datasets_builders.maze_kernels import label
    except ImportError:
        return task.label(mazes)
    return label(mazes, task.height, task.width)


def _line_table(size: int, per_group: int) -> np.ndarray | None:
    """Every order of the lines (groups permuted, lines within each permuted), (orders, size); None if too many."""
    groups = size // per_group
    if math.factorial(groups) * math.factorial(per_group) ** groups > MAX_TABLE:
        return None
    inner = list(itertools.permutations(range(per_group)))
    return np.array(
        [
            [g * per_group + line for g, order in zip(outer, within) for line in order]
            for outer in itertools.permutations(range(groups))
            for within in itertools.product(inner, repeat=groups)
        ],
        np.intp,
    )


def _draw_lines(
    rng: np.random.Generator, count: int, size: int, table: np.ndarray | None, per_group: int
) -> tuple[np.ndarray, np.ndarray]:
    """(orders of lines, which of them each of `count` copies takes)."""
    if table is not None:
        return table, rng.integers(len(table), size=count)
    return random_lines(rng, count, size, per_group).astype(np.intp, copy=False), np.arange(count)
