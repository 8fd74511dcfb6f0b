"""Sudoku copies compiled by numba; `sampler.py` holds the numpy form of the same arithmetic."""

from __future__ import annotations

import numba as nb
import numpy as np

CLUE, DIGITS = 64, np.uint64(1 << 32)  # as in sampler.py


@nb.njit(cache=True, nogil=True)
def copies(
    codes: np.ndarray, rows: np.ndarray, lines: np.ndarray, line: np.ndarray, columns: np.ndarray, column: np.ndarray,
    flip: np.ndarray, relabel: bool, easy: np.ndarray, keys: np.ndarray, blank: int, inputs: np.ndarray,
    labels: np.ndarray,
) -> None:  # fmt: skip
    """Fill inputs and labels (B, S): row b is a copy of codes[rows[b]] by lines[line[b]], columns[column[b]], flip[b]
    (transposed) and, if `relabel`, the digits of keys[b]; where easy[b], some blanks are filled.

    codes (N, S) uint8 = label + clue bit; lines, columns (orders, n) intp; keys (B,) uint64.
    """
    n = lines.shape[1]
    size = n * n
    clue, new, digit = np.empty(size, np.uint8), np.empty(size, np.uint8), np.arange(CLUE).astype(np.uint8)
    shift = np.empty(n, np.uint64)
    words = np.empty(1 + (size + 3) // 4, np.uint64)  # of one draw: the level, then 16 bits a cell
    drawn = words.view(np.uint16)
    # Views per row and unsigned indices spare the checks for negative indices.
    for b in range(len(rows)):
        code, down, across, label, out = codes[rows[b]], lines[line[b]], columns[column[b]], labels[b], inputs[b]
        by_row, by_column = (1, n) if flip[b] else (n, 1)
        if relabel:
            for k in range(n):
                digit[k + 2] = k + 2
            for k in range(n - 1, 0, -1):
                j = ((_mix(keys[b], DIGITS + np.uint64(k)) >> np.uint64(32)) * np.uint64(k + 1)) >> np.uint64(32)
                swap = digit[j + np.uint64(2)]
                digit[j + np.uint64(2)] = digit[k + 2]
                digit[k + 2] = swap
        for j in range(n):
            shift[j] = across[j] * by_column
        at = np.uint64(0)
        for i in range(n):
            base = np.uint64(down[i] * by_row)
            for j in range(n):
                c = code[base + shift[j]]
                label[at] = digit[np.uint64(c & np.uint8(CLUE - 1))]
                clue[at] = c >> np.uint8(6)
                at += np.uint64(1)
        if easy[b]:
            blanks = size
            for i in range(size):
                blanks -= clue[i]
            filled, counter = 0, np.uint64(0)
            while blanks >= 2 and (filled == 0 or filled == blanks):
                for w in range(len(words)):
                    words[w] = _mix(keys[b], counter)
                    counter += np.uint64(1)
                level, filled = drawn[0], 0
                for i in range(size):
                    new[i] = (drawn[4 + i] < level) & (np.uint8(1) - clue[i])
                    filled += new[i]
            if blanks >= 2:
                for i in range(size):
                    clue[i] |= new[i]
        for i in range(size):  # label where clue, blank elsewhere, without a branch
            out[i] = label[i] * clue[i] + np.uint8(blank) * (np.uint8(1) - clue[i])


@nb.njit(cache=True)
def _mix(key: int, counter: int) -> int:
    """Random word number `counter` of a stream (splitmix64)."""
    z = np.uint64(key) + (np.uint64(counter) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
