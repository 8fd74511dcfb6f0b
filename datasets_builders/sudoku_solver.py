"""A Sudoku solver compiled by numba: counts solutions up to a limit, and rates puzzles by the guesses that takes.

9x9 boards are held as 27 words: one per digit and band of three rows, a bit per cell that may still hold the digit.
Two small matrices per digit and band then carry the rules: which of the three stacks each row of a band may use, and
which of the three bands each column of a stack may use. Either must contain a permutation; the union of the
permutations it contains is all that can stay. One table of 512 entries answers this, and with it come the rule of
rows, columns and boxes, hidden singles, and the interplay of boxes with lines. Guesses are made at a cell of few
digits. Other sizes use plain candidate masks with naked and hidden singles (`_count_any`).

Puzzles here are tokens: blank 1, digits 2 ... n + 1.
"""

from __future__ import annotations

import itertools

import numba as nb
import numpy as np

from air_model.processing_air import SudokuTask

ROW = 0o777  # 9 bits: one row of a band
BAND = (1 << 27) - 1
COLUMNS = 1 | 1 << 9 | 1 << 18  # times a 9-bit mask of columns: those columns in all three rows
MAX_DEPTH = 82


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KEEP (512): 3x3 bit matrix -> union of the permutation matrices inside it; MINI (512): 9 columns -> which of the
    3 stacks are used; WIDE (512): 3x3 matrix of (row, stack) -> the 27 cells of a band."""
    keep = np.zeros(512, np.int64)
    permutations = [sum(1 << (3 * r + c) for r, c in enumerate(p)) for p in itertools.permutations(range(3))]
    for pattern in range(512):
        for p in permutations:
            if p & pattern == p:
                keep[pattern] |= p
    mini, wide = np.zeros(512, np.int64), np.zeros(512, np.int64)
    for pattern in range(512):
        for k in range(3):
            if pattern >> 3 * k & 7:
                mini[pattern] |= 1 << k
        for bit in range(9):
            if pattern >> bit & 1:
                wide[pattern] |= 7 << (9 * (bit // 3) + 3 * (bit % 3))
    return keep, mini, wide


KEEP, MINI, WIDE = _tables()


@nb.njit(cache=True)
def _close_digit(board: np.ndarray, d: int, keep: np.ndarray, mini: np.ndarray, wide: np.ndarray) -> bool:
    """Apply both permutation rules to one digit until nothing changes; False: the digit has no place left."""
    a, b, c = board[3 * d], board[3 * d + 1], board[3 * d + 2]
    while True:
        a0, b0, c0 = a, b, c
        a &= wide[keep[mini[a & 511] | mini[(a >> 9) & 511] << 3 | mini[a >> 18] << 6]]
        b &= wide[keep[mini[b & 511] | mini[(b >> 9) & 511] << 3 | mini[b >> 18] << 6]]
        c &= wide[keep[mini[c & 511] | mini[(c >> 9) & 511] << 3 | mini[c >> 18] << 6]]
        if a == 0 or b == 0 or c == 0:
            return False
        x, y, z = (a | a >> 9 | a >> 18) & 511, (b | b >> 9 | b >> 18) & 511, (c | c >> 9 | c >> 18) & 511
        k0 = keep[(x & 7) | (y & 7) << 3 | (z & 7) << 6]
        k1 = keep[(x >> 3 & 7) | (y >> 3 & 7) << 3 | (z >> 3 & 7) << 6]
        k2 = keep[(x >> 6) | (y >> 6) << 3 | (z >> 6) << 6]
        if k0 == 0 or k1 == 0 or k2 == 0:
            return False
        a &= ((k0 & 7) | (k1 & 7) << 3 | (k2 & 7) << 6) * COLUMNS
        b &= ((k0 >> 3 & 7) | (k1 >> 3 & 7) << 3 | (k2 >> 3 & 7) << 6) * COLUMNS
        c &= ((k0 >> 6) | (k1 >> 6) << 3 | (k2 >> 6) << 6) * COLUMNS
        if a == a0 and b == b0 and c == c0:
            break
    board[3 * d], board[3 * d + 1], board[3 * d + 2] = a, b, c
    return True


@nb.njit(cache=True)
def _propagate(board: np.ndarray, dirty: int, keep: np.ndarray, mini: np.ndarray, wide: np.ndarray) -> int:
    """Follow all forced moves. `dirty`: bit per digit that changed. Returns -1 contradiction, 1 solved, 0 open."""
    while True:
        for d in range(9):
            if dirty >> d & 1 and not _close_digit(board, d, keep, mini, wide):
                return -1
        dirty = 0
        solved = True
        for b in range(3):
            one, two = 0, 0
            for d in range(9):
                m = board[3 * d + b]
                two |= one & m
                one |= m
            if one != BAND:
                return -1
            if two == 0:
                continue
            solved = False
            naked = one & ~two
            for d in range(9):
                m = board[3 * d + b]
                # a row of this digit with one place left, in a cell that others still claim: a hidden single
                for r in range(3):
                    row = m & (ROW << 9 * r)
                    if row & (row - 1) == 0:
                        if row & two:
                            for e in range(9):
                                if e != d and board[3 * e + b] & row:
                                    board[3 * e + b] &= ~row
                                    dirty |= 1 << e
                    elif row & naked:
                        # a cell that only this digit claims: nowhere else in this row
                        board[3 * d + b] = (board[3 * d + b] & ~row) | (row & naked)
                        dirty |= 1 << d
        if solved:
            return 1
        if dirty == 0:
            return 0


@nb.njit(cache=True)
def _choose(board: np.ndarray) -> tuple[int, int]:
    """(band, cell bit) of an open cell with the fewest candidates: the first with two, else three, else any."""
    best_band, best_cell, best = -1, 0, 99
    for b in range(3):
        one, two, three, four = 0, 0, 0, 0
        for d in range(9):
            m = board[3 * d + b]
            four |= three & m
            three |= two & m
            two |= one & m
            one |= m
        pairs, triples = two & ~three, three & ~four
        if pairs:
            return b, pairs & (~pairs + 1)
        if triples and best > 3:
            best, best_band, best_cell = 3, b, triples & (~triples + 1)
        elif four and best > 4:
            best, best_band, best_cell = 4, b, four & (~four + 1)
    return best_band, best_cell


@nb.njit(cache=True)
def _count_9x9(
    tokens: np.ndarray,
    limit: int,
    boards: np.ndarray,
    first: np.ndarray,
    keep: np.ndarray,
    mini: np.ndarray,
    wide: np.ndarray,
) -> tuple[int, int]:
    """(solutions found, at most `limit`; guesses made). The first solution is written to `first` as tokens."""
    board = boards[0]
    board[:] = BAND
    for i in range(81):
        t = tokens[i]
        if t >= 2:
            d = t - 2
            b, bit = i // 27, 1 << i % 27
            if board[3 * d + b] & bit == 0:
                return 0, 0
            row = ROW << 9 * (i // 9 % 3)
            board[3 * d + b] = (board[3 * d + b] & ~row) | bit
            for e in range(9):
                if e != d:
                    board[3 * e + b] &= ~bit
    depth, found, guesses = 0, 0, 0
    state = _propagate(board, 511, keep, mini, wide)
    while True:
        if state == 1:
            if found == 0:
                board = boards[depth]
                for d in range(9):
                    for b in range(3):
                        m = board[3 * d + b]
                        for k in range(27):
                            if m >> k & 1:
                                first[27 * b + k] = d + 2
            found += 1
            if found >= limit:
                return found, guesses
        if state == 0:
            board = boards[depth]
            b, cell = _choose(board)
            guesses += 1
            d = 0
            while board[3 * d + b] & cell == 0:
                d += 1
            # the level below tries this digit; this level stays, without it
            after = boards[depth + 1]
            after[:] = board
            dirty = 0
            for e in range(9):
                if e != d and after[3 * e + b] & cell:
                    after[3 * e + b] &= ~cell
                    dirty |= 1 << e
            low = 0
            for r in range(3):
                row = ROW << 9 * r
                if cell & row:
                    low = row
            after[3 * d + b] = (after[3 * d + b] & ~low) | cell
            board[3 * d + b] &= ~cell
            boards[depth, 27] = d
            depth += 1
            state = _propagate(after, dirty | 1 << d, keep, mini, wide)
            continue
        # solved or contradiction: back to the last guess, whose digit is out
        depth -= 1
        if depth < 0:
            return found, guesses
        state = _propagate(boards[depth], 1 << boards[depth, 27], keep, mini, wide)


@nb.njit(cache=True, parallel=True)
def _solve_9x9(
    puzzles: np.ndarray, limit: int, counts: np.ndarray, guesses: np.ndarray, answers: np.ndarray,
    keep: np.ndarray, mini: np.ndarray, wide: np.ndarray,
) -> None:  # fmt: skip
    blocks = (len(puzzles) + 63) // 64
    for block in nb.prange(blocks):
        boards = np.empty((MAX_DEPTH, 28), np.int64)
        for i in range(64 * block, min(len(puzzles), 64 * block + 64)):
            counts[i], guesses[i] = _count_9x9(puzzles[i], limit, boards, answers[i], keep, mini, wide)


def solve(puzzles: np.ndarray, task: SudokuTask, limit: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count solutions of N puzzles.

    Args:
        puzzles: (N, S) uint8 tokens.
        limit: stop at so many solutions; 2 decides whether there is exactly one.

    Returns:
        counts int32 (N,), at most `limit`; guesses int32 (N,), made until then; first solutions uint8 (N, S), PAD
        where there is none.
    """
    puzzles = np.ascontiguousarray(puzzles, np.uint8)
    counts, guesses = np.zeros((2, len(puzzles)), np.int32)
    answers = np.zeros_like(puzzles)
    if task.height == 9 and task.box_height == 3:
        _solve_9x9(puzzles, limit, counts, guesses, answers, KEEP, MINI, WIDE)
    else:
        _solve_any(puzzles, limit, task.units, task.units_of, counts, guesses, answers)
    return counts, guesses, answers


# ---- any size


@nb.njit(cache=True)
def _bits(mask: int) -> int:
    count = 0
    while mask:
        mask &= mask - 1
        count += 1
    return count


@nb.njit(cache=True)
def _settle(cells: np.ndarray, used: np.ndarray, units: np.ndarray, units_of: np.ndarray, full: int) -> int:
    """Naked and hidden singles until none is left. cells: digit bit or 0; used: digits per unit. As `_propagate`."""
    n = units.shape[1]
    while True:
        progress, open_ = False, False
        for i in range(n * n):
            if cells[i] == 0:
                free = full & ~(used[units_of[i, 0]] | used[units_of[i, 1]] | used[units_of[i, 2]])
                if free == 0:
                    return -1
                if free & (free - 1) == 0:
                    cells[i] = free
                    for k in range(3):
                        used[units_of[i, k]] |= free
                    progress = True
                else:
                    open_ = True
        if not open_:
            return 1
        for u in range(3 * n):
            if used[u] == full:
                continue
            one, two = 0, 0
            for k in range(n):
                i = units[u, k]
                if cells[i] == 0:
                    free = full & ~(used[units_of[i, 0]] | used[units_of[i, 1]] | used[units_of[i, 2]])
                    two |= one & free
                    one |= free
            if one | used[u] != full:
                return -1
            single = one & ~two
            if single:
                for k in range(n):
                    i = units[u, k]
                    if cells[i] == 0:
                        hit = single & ~(used[units_of[i, 0]] | used[units_of[i, 1]] | used[units_of[i, 2]])
                        if hit:
                            if hit & (hit - 1):
                                return -1
                            cells[i] = hit
                            for j in range(3):
                                used[units_of[i, j]] |= hit
                            progress = True
        if not progress:
            return 0


@nb.njit(cache=True)
def _count_any(
    tokens: np.ndarray,
    limit: int,
    units: np.ndarray,
    units_of: np.ndarray,
    cells: np.ndarray,
    used: np.ndarray,
    first: np.ndarray,
) -> tuple[int, int]:
    """As `_count_9x9`; cells (depth, S + 1) and used (depth, 3n) int64 are scratch."""
    n = units.shape[1]
    full = (1 << n) - 1
    cells[0, :] = 0
    used[0, :] = 0
    for i in range(n * n):
        if tokens[i] >= 2:
            bit = 1 << (int(tokens[i]) - 2)
            for k in range(3):
                if used[0, units_of[i, k]] & bit:
                    return 0, 0
                used[0, units_of[i, k]] |= bit
            cells[0, i] = bit
    # A frame holds a settled grid, the cell guessed at (last column) and, in `todo`, the digits not tried yet.
    todo = np.zeros(len(cells), np.int64)
    depth, found, guesses = 0, 0, 0
    state = _settle(cells[0], used[0], units, units_of, full)
    while True:
        if state == 1:
            if found == 0:
                for i in range(n * n):
                    value, bit = 2, cells[depth, i]
                    while bit > 1:
                        bit >>= 1
                        value += 1
                    first[i] = value
            found += 1
            if found >= limit:
                return found, guesses
        if state == 0:
            best, at = 99, -1
            for i in range(n * n):
                if cells[depth, i] == 0:
                    free = full & ~(
                        used[depth, units_of[i, 0]] | used[depth, units_of[i, 1]] | used[depth, units_of[i, 2]]
                    )
                    count = _bits(free)
                    if count < best:
                        best, at, todo[depth] = count, i, free
                        if count == 2:
                            break
            cells[depth, n * n] = at
        else:
            depth -= 1
            while depth >= 0 and todo[depth] == 0:
                depth -= 1
            if depth < 0:
                return found, guesses
        bit = todo[depth] & -todo[depth]
        todo[depth] ^= bit
        if todo[depth]:
            guesses += 1
        at = cells[depth, n * n]
        cells[depth + 1] = cells[depth]
        used[depth + 1] = used[depth]
        depth += 1
        cells[depth, at] = bit
        for k in range(3):
            used[depth, units_of[at, k]] |= bit
        state = _settle(cells[depth], used[depth], units, units_of, full)


@nb.njit(cache=True, parallel=True)
def _solve_any(
    puzzles: np.ndarray, limit: int, units: np.ndarray, units_of: np.ndarray,
    counts: np.ndarray, guesses: np.ndarray, answers: np.ndarray,
) -> None:  # fmt: skip
    size = puzzles.shape[1]
    blocks = (len(puzzles) + 63) // 64
    for block in nb.prange(blocks):
        cells = np.zeros((size + 1, size + 1), np.int64)
        used = np.zeros((size + 1, len(units)), np.int64)
        for i in range(64 * block, min(len(puzzles), 64 * block + 64)):
            counts[i], guesses[i] = _count_any(puzzles[i], limit, units, units_of, cells, used, answers[i])
