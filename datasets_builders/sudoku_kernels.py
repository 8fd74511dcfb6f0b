"""Sudoku copies compiled by numba; `sampler.py` holds the numpy form of the same arithmetic."""

from __future__ import annotations

import numba as nb
import numpy as np

CLUE = 64  # as in sampler.py


@nb.njit(cache=True, nogil=True)
def permute(
    codes: np.ndarray,
    rows: np.ndarray,
    down: np.ndarray,
    across: np.ndarray,
    digits: np.ndarray,
    moved: np.ndarray,
    labels: np.ndarray,
) -> None:
    """moved[b, i, j] = codes[rows[b]][down[b, i] + across[b, j]], labels likewise through digits[b].

    codes (N, S) uint8 = label + clue bit; down, across (B, n); digits (B, n + 2); moved, labels (B, S) are filled.
    """
    n = down.shape[1]
    for b in range(len(rows)):
        code = codes[rows[b]]
        for i in range(n):
            base = down[b, i]
            for j in range(n):
                c = code[base + across[b, j]]
                moved[b, i * n + j] = c
                labels[b, i * n + j] = digits[b, c & (CLUE - 1)]


@nb.njit(cache=True, nogil=True)
def reveal(
    clue: np.ndarray, rows: np.ndarray, level: np.ndarray, drawn: np.ndarray, out: np.ndarray, again: np.ndarray
) -> None:
    """out[rows[r]] = blanks whose number is below level[r]; again[r] = none or all of two or more blanks were."""
    for r in range(len(rows)):
        row = rows[r]
        filled, blanks = 0, 0
        for i in range(clue.shape[1]):
            blank = not clue[row, i]
            new = blank and drawn[r, i] < level[r]
            blanks += blank
            filled += new
            out[row, i] = new
        again[r] = blanks >= 2 and (filled == 0 or filled == blanks)
        if blanks < 2:
            out[row] = False
