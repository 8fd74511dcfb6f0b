"""Sudokus up to symmetry: one canonical form for all copies of a puzzle or of a solved grid (numba).

The form is the smallest of all copies: for every choice of first row, column order (and transposition) the digits are
relabelled so that the first row reads 1 ... n; the order of the other rows then follows from their first cells.
"""

import itertools
import math

import numba as nb
import numpy as np

from air_model.datasets_builders.threads import in_threads
from air_model.processing_air import GridTask, MazeTask, SudokuTask

MAX_TABLE = 400_000  # orders of lines that can be searched


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


@nb.njit(cache=True, nogil=True)
def _canonical(
    grids: np.ndarray, masks: np.ndarray, columns: np.ndarray, height: int, flips: int, out: np.ndarray,
    out_masks: np.ndarray,
) -> None:  # fmt: skip
    n = columns.shape[1]
    label, value = np.empty(n, np.int64), np.empty(n, np.int64)
    order, by_value = np.empty(n, np.int64), np.empty(n, np.int64)
    done = np.empty(n // height, np.bool_)
    grid, mask = np.empty((n, n), np.int64), np.empty((n, n), np.int64)
    best, best_mask = np.empty((n, n), np.int64), np.empty((n, n), np.int64)
    for g in range(len(grids)):
        best[:] = n + 1
        best_mask[:] = 2
        for flip in range(flips):
            for r in range(n):
                for c in range(n):
                    i = c * n + r if flip else r * n + c
                    grid[r, c], mask[r, c] = grids[g, i] - 2, masks[g, i]
            for first in range(n):
                for k in range(len(columns)):
                    column = columns[k]
                    for c in range(n):
                        label[grid[first, column[c]]] = c
                    for r in range(n):
                        value[r] = label[grid[r, column[0]]]
                        by_value[value[r]] = r
                    # bands by their smallest row, rows by their first cell
                    done[:] = False
                    place = 0
                    for v in range(n):
                        band = by_value[v] // height
                        if not done[band]:
                            done[band] = True
                            for w in range(v, n):
                                if by_value[w] // height == band:
                                    order[place] = by_value[w]
                                    place += 1
                    sign = 0
                    for i in range(n, n * n):
                        d = label[grid[order[i // n], column[i % n]]] - best[i // n, i % n]
                        if d:
                            sign = -1 if d < 0 else 1
                            break
                    if sign == 0:
                        for i in range(n * n):
                            d = mask[order[i // n], column[i % n]] - best_mask[i // n, i % n]
                            if d:
                                sign = -1 if d < 0 else 1
                                break
                    if sign < 0:
                        for i in range(n):
                            for c in range(n):
                                best[i, c] = label[grid[order[i], column[c]]]
                                best_mask[i, c] = mask[order[i], column[c]]
        for i in range(n * n):
            out[g, i] = best[i // n, i % n] + 2
            out_masks[g, i] = best_mask[i // n, i % n]


def canonical(grids: np.ndarray, task: SudokuTask, puzzles: np.ndarray | None = None) -> np.ndarray | None:
    """Canonical form of solved grids (N, S), or of puzzles with these solutions.

    Returns:
        uint8 (N, S) tokens; with `puzzles`, (N, 2S): then the places of the clues follow. None where the group is too
        large to search (16x16).
    """
    columns = _line_table(task.width, task.box_width)
    if columns is None:
        return None
    grids = np.ascontiguousarray(grids, np.uint8)
    masks = np.zeros_like(grids) if puzzles is None else (puzzles != task.blank_token).astype(np.uint8)
    out, out_masks = np.empty_like(grids), np.empty_like(grids)
    flips = 2 if task.box_height == task.box_width else 1
    in_threads(
        lambda rows: _canonical(grids[rows], masks[rows], columns, task.box_height, flips, out[rows], out_masks[rows]),
        len(grids),
        block=64,
    )
    return out if puzzles is None else np.concatenate([out, out_masks], axis=1)


def searchable(task: GridTask) -> bool:
    """Whether all copies of a puzzle can be compared."""
    return not isinstance(task, SudokuTask) or _line_table(task.width, task.box_width) is not None


def canonical_mazes(mazes: np.ndarray, task: MazeTask) -> np.ndarray:
    """The smallest of a maze's dihedral copies, uint8 (N, S)."""
    out = mazes.copy()
    for i, maze in enumerate(mazes):
        out[i] = min((maze[cells] for cells in task.dihedral), key=lambda copy: copy.tobytes())
    return out
