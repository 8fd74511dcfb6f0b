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
    # Views per row and unsigned indices spare the checks for negative indices.
    for b in range(len(rows)):
        code, shift, digit, out, label = codes[rows[b]], across[b], digits[b], moved[b], labels[b]
        at = 0
        for i in range(n):
            base = down[b, i]
            for j in range(n):
                c = code[np.uint64(base + shift[j])]
                out[at] = c
                label[at] = digit[np.uint64(c & np.uint8(CLUE - 1))]
                at += 1


@nb.njit(cache=True, nogil=True)
def reveal(
    clue: np.ndarray, rows: np.ndarray, level: np.ndarray, drawn: np.ndarray, out: np.ndarray, again: np.ndarray
) -> None:
    """out[rows[r]] = blanks whose number is below level[r]; again[r] = none or all of two or more blanks were."""
    for r in range(len(rows)):
        given, number, to, below = clue[rows[r]], drawn[r], out[rows[r]], level[r]
        filled, blanks = np.int32(0), np.int32(0)
        for i in range(len(given)):
            blank = np.uint8(not given[i])
            new = blank & np.uint8(number[i] < below)
            to[i] = new
            blanks += blank
            filled += new
        again[r] = blanks >= 2 and (filled == 0 or filled == blanks)
        if blanks < 2:
            to[:] = False
