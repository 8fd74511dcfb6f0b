"""A Sudoku solver compiled by numba: counts solutions up to a limit, and rates puzzles by the guesses that takes.

9x9 boards are held as 27 words: one per digit and band of three rows, a bit per cell that may still hold the digit.
Two small matrices per digit and band then carry the rules: which of the three stacks each row of a band may use, and
which of the three bands each column of a stack may use. Either must contain a permutation; the union of the
permutations it contains is all that can stay. One table of 512 entries answers this, and with it come the rule of
rows, columns and boxes, hidden singles, and the interplay of boxes with lines. Three cells in one row or column of a
box hold three digits, which is checked before a guess. A guess fixes one of these permutations. The published ratings
are guesses of the tdoku solver; rules and order of guesses here give the same number for nearly every real row.

Other sizes use plain candidate masks with naked and hidden singles (`_count_any`).

Puzzles here are tokens: blank 1, digits 2 ... n + 1.
"""

from typing import NamedTuple

import numba as nb
import numpy as np

from air_model.datasets_builders.threads import in_threads
from air_model.processing_air import SudokuTask

ROW = 0o777  # 9 bits: one row of a band
BAND = (1 << 27) - 1
COLUMNS = 1 | 1 << 9 | 1 << 18  # the first bit of each row; times columns: those columns in all three rows
TOP, LOW = 0o400 * COLUMNS, 0o377 * COLUMNS  # the last bit of each row, and the others
MAX_DEPTH = 82  # guesses in a row
WORDS = 40  # of one level: 27 of the board, the guess made there (3), scratch
NO_BUDGET = 1 << 60
NOT = 128  # added to a token: any digit but this


# Permutations of three lines as 3x3 bit matrices. In this order the guesses are nearly always those of tdoku, the
# published rating; other orders miss them.
_ORDER = [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0), (1, 0, 2), (0, 2, 1)]
_PERMUTATIONS = np.array([sum(1 << (3 * r + c) for r, c in enumerate(p)) for p in _ORDER])
_MATRICES = np.arange(512)[:, None]
_FITS = _PERMUTATIONS & _MATRICES == _PERMUTATIONS  # (512, 6): which permutations a matrix contains
_CHOSEN = np.arange(64)[:, None] >> np.arange(6) & 1  # (64, 6): every set of permutations
_CELLS = [7 << 9 * r + 3 * k for r in range(3) for k in range(3)]  # of row r and stack k in a band

# Of the permutations inside a matrix: the set (6 bits), their union, what all of them share.
SETS = _FITS @ (1 << np.arange(6))
KEEP = np.bitwise_or.reduce(_FITS * _PERMUTATIONS, axis=1)
SHARED = np.where(_FITS.any(1), np.bitwise_and.reduce(np.where(_FITS, _PERMUTATIONS, -1), axis=1), 0)
# Of a set of permutations: how many they are, and their union.
SIZE = _CHOSEN.sum(1)
UNION = np.bitwise_or.reduce(_CHOSEN * _PERMUTATIONS, axis=1)
MINI = (_MATRICES >> 3 * np.arange(3) & 7 > 0) @ (1 << np.arange(3))  # 9 columns -> which of the 3 stacks are used
WIDE = (_MATRICES >> np.arange(9) & 1) @ _CELLS  # matrix of (row, stack) -> the 27 cells of a band


@nb.njit(cache=True)
def _close_digit(board: np.ndarray, d: int) -> bool:
    """Apply both permutation rules to one digit until nothing changes; False: the digit has no place left."""
    a, b, c = board[3 * d], board[3 * d + 1], board[3 * d + 2]
    start = True
    while True:
        a0, b0, c0 = a, b, c
        a &= WIDE[KEEP[MINI[a & 511] | MINI[(a >> 9) & 511] << 3 | MINI[a >> 18] << 6]]
        b &= WIDE[KEEP[MINI[b & 511] | MINI[(b >> 9) & 511] << 3 | MINI[b >> 18] << 6]]
        c &= WIDE[KEEP[MINI[c & 511] | MINI[(c >> 9) & 511] << 3 | MINI[c >> 18] << 6]]
        if a == 0 or b == 0 or c == 0:
            return False
        if not start and a == a0 and b == b0 and c == c0:
            break
        start = False
        a0, b0, c0 = a, b, c
        x, y, z = (a | a >> 9 | a >> 18) & 511, (b | b >> 9 | b >> 18) & 511, (c | c >> 9 | c >> 18) & 511
        k0 = KEEP[(x & 7) | (y & 7) << 3 | (z & 7) << 6]
        k1 = KEEP[(x >> 3 & 7) | (y >> 3 & 7) << 3 | (z >> 3 & 7) << 6]
        k2 = KEEP[(x >> 6) | (y >> 6) << 3 | (z >> 6) << 6]
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
def _pattern(board: np.ndarray, k: int, d: int) -> int:
    """Where digit d can still stand in line band k (0-2) or stack k - 3: nine bits, three a line."""
    if k < 3:
        m = board[3 * d + k]
        return MINI[m & 511] | MINI[(m >> 9) & 511] << 3 | MINI[m >> 18] << 6
    pattern = 0
    for b in range(3):
        m = board[3 * d + b]
        pattern |= ((m | m >> 9 | m >> 18) >> 3 * (k - 3) & 7) << 3 * b
    return pattern


@nb.njit(cache=True)
def _restrict(board: np.ndarray, k: int, d: int, permutation: int) -> None:
    """Hold digit d to one permutation (a 9-bit matrix) of band or stack k."""
    if k < 3:
        board[3 * d + k] &= WIDE[permutation]
    else:
        shift = 3 * (k - 3)
        for b in range(3):
            columns = (511 & ~(7 << shift)) | (permutation >> 3 * b & 7) << shift
            board[3 * d + b] &= columns * COLUMNS


@nb.njit(cache=True)
def _triads(board: np.ndarray) -> int:
    """The rule of threes: three cells in one row (or column) of a box hold exactly three digits.

    Returns -1 for a contradiction, else a bit per digit that lost places.
    """
    dirty = 0
    for k in range(6):
        can1, can2, can3, can4 = 0, 0, 0, 0  # bit-sliced: triads that at least 1, 2, 3, 4 digits can use ...
        must1, must2, must3, must4 = 0, 0, 0, 0  # ... and must use
        for d in range(9):
            can = _pattern(board, k, d)
            must = SHARED[can]
            board[31 + d] = can
            can4 |= can3 & can
            can3 |= can2 & can
            can2 |= can1 & can
            can1 |= can
            must4 |= must3 & must
            must3 |= must2 & must
            must2 |= must1 & must
            must1 |= must
        if can3 != 511 or must4:
            return -1
        tight = ~can4 & 511  # exactly three digits can: all of them must
        if must3 | tight == 0:
            continue
        for d in range(9):
            can = board[31 + d]
            left = can & ~(must3 & ~SHARED[can])
            for r in range(3):
                row = left & tight & (7 << 3 * r)
                if row:
                    left = left & ~(7 << 3 * r) | row
            if left != can:
                dirty |= 1 << d
                _restrict(board, k, d, left)
    return dirty


@nb.njit(cache=True)
def _propagate(board: np.ndarray, dirty: int) -> int:
    """Follow all forced moves. `dirty`: bit per digit that changed. Returns -1 contradiction, 1 solved, 0 open."""
    while True:
        for d in range(9):
            if dirty >> d & 1 and not _close_digit(board, d):
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
                # Rows with one place left for this digit: clear the lowest bit of each row (none is empty after
                # _close_digit, unless digits were taken out below), and see which rows are empty then.
                rest = m & (m - COLUMNS)
                many = ((((rest & LOW) + LOW) | rest) & TOP) >> 8
                rows = (COLUMNS & ~many) * ROW
                hidden = m & rows & two
                if hidden:  # the only place in its row, but other digits still claim the cell
                    for e in range(9):
                        if e != d and board[3 * e + b] & hidden:
                            board[3 * e + b] &= ~hidden
                            dirty |= 1 << e
                hit = m & naked & ~rows
                if hit:  # a cell that only this digit claims: nowhere else in its row
                    for r in range(3):
                        row = ROW << 9 * r
                        cell = hit & row
                        if cell:
                            if cell & (cell - 1):
                                return -1
                            board[3 * d + b] = (board[3 * d + b] & ~row) | cell
                    dirty |= 1 << d
        if solved:
            return 1
        if dirty == 0:
            dirty = _triads(board)
            if dirty <= 0:
                return dirty


@nb.njit(cache=True)
def _choose(board: np.ndarray) -> tuple[int, int, int]:
    """What to guess: (line band 0-2 or stack 3-5, digit, the 6-bit set of its permutations that are left).

    Of the six bands and stacks the one with the fewest permutations in all (but not settled), and in it the digit
    with the fewest; so the board falls apart soonest.
    """
    best, best_total, best_digit, best_set = -1, 1 << 30, -1, 0
    for k in range(6):
        total, digit, fewest, chosen = 0, -1, 99, 0
        for d in range(9):
            sets = SETS[_pattern(board, k, d)]
            count = SIZE[sets]
            total += count
            if 1 < count < fewest:
                digit, fewest, chosen = d, count, sets
        if digit >= 0 and total < best_total:
            best, best_total, best_digit, best_set = k, total, digit, chosen
    return best, best_digit, best_set


@nb.njit(cache=True)
def _count_9x9(
    tokens: np.ndarray, limit: int, budget: int, boards: np.ndarray, first: np.ndarray
) -> tuple[int, int, int]:
    """(solutions found, at most `limit`; guesses made until the first, or in all without one; guesses in all).

    The first solution is written to `first` as tokens. A token plus NOT is a blank that is not this digit. After
    `budget` guesses the answer is (limit, budget, budget): too many to tell.
    """
    board = boards[0]
    board[:27] = BAND
    for i in range(81):
        t = tokens[i]
        b, bit = i // 27, 1 << i % 27
        if t >= NOT:
            board[3 * (t - NOT - 2) + b] &= ~bit
        elif t >= 2:
            d = t - 2
            if board[3 * d + b] & bit == 0:
                return 0, 0, 0
            row = ROW << 9 * (i // 9 % 3)
            board[3 * d + b] = (board[3 * d + b] & ~row) | bit
            for e in range(9):
                if e != d:
                    board[3 * e + b] &= ~bit
    depth, found, guesses, rating = 0, 0, 0, 0
    dirty = 511
    while True:
        # One call in one place: numba compiles a copy of the callee per call.
        state = _propagate(boards[depth], dirty)
        if state == 1:
            if found == 0:
                rating = guesses
                for i in range(81):
                    for d in range(9):
                        if boards[depth, 3 * d + i // 27] >> i % 27 & 1:
                            first[i] = d + 2
            found += 1
            if found >= limit:
                return found, rating, guesses
        if state == 0:
            k, d, sets = _choose(boards[depth])
            boards[depth, 27], boards[depth, 28] = k, d
        else:  # solved or contradiction: back to the last guess, which is out
            depth -= 1
            if depth < 0:
                return found, rating if found else guesses, guesses
            k, d, sets = boards[depth, 27], boards[depth, 28], boards[depth, 29]
        dirty = 1 << d
        union = UNION[sets]
        if state != 0 and SETS[union] == sets:  # what is left can be written on the board
            _restrict(boards[depth], k, d, union)
            continue
        bit = sets & -sets
        boards[depth, 29] = sets ^ bit
        guesses += 1
        if guesses > budget:
            return limit, budget, budget
        boards[depth + 1] = boards[depth]
        depth += 1
        _restrict(boards[depth], k, d, UNION[bit])


class Search(NamedTuple):
    """What a search of any size works with: the geometry of SudokuTask, and scratch that no two threads share.

    cells (S + 2, S + 1) and used (S + 2, 3n) int64: for every depth the digit (bit) of each cell, or 0, with the cell
    guessed at in the last column, and the digits of each unit.
    """

    units: np.ndarray
    units_of: np.ndarray
    cells: np.ndarray
    used: np.ndarray


def search_for(task: SudokuTask) -> tuple[Search, np.ndarray | None]:
    """A search, and the boards of the fast one, for 9x9 with 3x3 boxes; None where the plain one has to do."""
    cells, used = (np.zeros((task.seq_len + 2, count), np.int64) for count in (task.seq_len + 1, len(task.units)))
    boards = np.empty((MAX_DEPTH, WORDS), np.int64) if task.height == 9 and task.box_height == 3 else None
    return Search(task.units, task.units_of, cells, used), boards


# ---- any size


@nb.njit(cache=True)
def _bits(mask: int) -> int:
    count = 0
    while mask:
        mask &= mask - 1
        count += 1
    return count


@nb.njit(cache=True)
def _free(used: np.ndarray, units_of: np.ndarray, i: int, full: int) -> int:
    """The digits (bits) that no unit of cell i has."""
    return full & ~(used[units_of[i, 0]] | used[units_of[i, 1]] | used[units_of[i, 2]])


@nb.njit(cache=True)
def _place(cells: np.ndarray, used: np.ndarray, units_of: np.ndarray, i: int, bit: int) -> None:
    cells[i] = bit
    for k in range(3):
        used[units_of[i, k]] |= bit


@nb.njit(cache=True)
def _guess(search: Search, depth: int, bit: int) -> None:
    """Put a digit (bit) into the cell guessed at, one level deeper."""
    _, units_of, cells, used = search
    cells[depth + 1] = cells[depth]
    used[depth + 1] = used[depth]
    _place(cells[depth + 1], used[depth + 1], units_of, cells[depth, -1], bit)


@nb.njit(cache=True)
def _write_tokens(cells: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        out[i] = 2 + _bits(cells[i] - 1)


@nb.njit(cache=True)
def _settle(search: Search, depth: int, full: int) -> int:
    """Naked and hidden singles until none is left. Returns as `_propagate`."""
    units, units_of, cells, used = search.units, search.units_of, search.cells[depth], search.used[depth]
    n = units.shape[1]
    while True:
        progress, open_ = False, False
        for i in range(n * n):
            if cells[i] == 0:
                free = _free(used, units_of, i, full)
                if free == 0:
                    return -1
                if free & (free - 1) == 0:
                    _place(cells, used, units_of, i, free)
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
                    free = _free(used, units_of, i, full)
                    two |= one & free
                    one |= free
            if one | used[u] != full:
                return -1
            single = one & ~two
            if single == 0:
                continue
            for k in range(n):
                i = units[u, k]
                if cells[i] == 0:
                    hit = _free(used, units_of, i, single)
                    if hit & (hit - 1):
                        return -1
                    if hit:
                        _place(cells, used, units_of, i, hit)
                        progress = True
        if not progress:
            return 0


@nb.njit(cache=True)
def _count_any(tokens: np.ndarray, limit: int, budget: int, search: Search, first: np.ndarray) -> tuple[int, int, int]:
    """As `_count_9x9`."""
    units, units_of, cells, used = search
    n = units.shape[1]
    full = (1 << n) - 1
    cells[0, :] = 0
    used[0, :] = 0
    for i in range(n * n):
        if tokens[i] >= 2:
            bit = 1 << (int(tokens[i]) - 2)
            if not _free(used[0], units_of, i, bit):
                return 0, 0, 0
            _place(cells[0], used[0], units_of, i, bit)
    todo = np.zeros(len(cells), np.int64)  # of every depth: the digits not tried yet
    depth, found, guesses, rating = 0, 0, 0, 0
    while True:
        state = _settle(search, depth, full)
        if state == 1:
            if found == 0:
                rating = guesses
                _write_tokens(cells[depth], first)
            found += 1
            if found >= limit:
                return found, rating, guesses
        if state == 0:
            best, at = 99, -1
            for i in range(n * n):
                if cells[depth, i] == 0:
                    free = _free(used[depth], units_of, i, full)
                    count = _bits(free)
                    if count < best:
                        best, at, todo[depth] = count, i, free
                        if count == 2:
                            break
            cells[depth, -1] = at
        else:
            depth -= 1
            while depth >= 0 and todo[depth] == 0:
                depth -= 1
            if depth < 0:
                return found, rating if found else guesses, guesses
        bit = todo[depth] & -todo[depth]
        todo[depth] ^= bit
        if todo[depth]:
            guesses += 1
            if guesses > budget:
                return limit, budget, budget
        _guess(search, depth, bit)
        depth += 1


# ---- many puzzles


@nb.njit(cache=True)
def count_solutions(
    puzzle: np.ndarray, limit: int, budget: int, search: Search, boards: np.ndarray | None, first: np.ndarray
) -> tuple[int, int, int]:
    """`_count_9x9` with boards, `_count_any` without them."""
    # numba leaves the other branch, and its compilation, out
    if boards is None:
        return _count_any(puzzle, limit, budget, search, first)
    return _count_9x9(puzzle, limit, budget, boards, first)


@nb.njit(cache=True, nogil=True)
def _solve(
    search: Search, boards: np.ndarray | None, limit: int, puzzles: np.ndarray, counts: np.ndarray,
    guesses: np.ndarray, answers: np.ndarray,
) -> None:  # fmt: skip
    for i in range(len(puzzles)):
        counts[i], guesses[i], _ = count_solutions(puzzles[i], limit, NO_BUDGET, search, boards, answers[i])


def solve(
    puzzles: np.ndarray, task: SudokuTask, limit: int = 2, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count solutions of N puzzles.

    Args:
        puzzles: (N, S) uint8 tokens.
        limit: stop at so many solutions; 2 decides whether there is exactly one.
        threads: by default one per CPU core; the result does not depend on it.

    Returns:
        counts int32 (N,), at most `limit`; guesses int32 (N,), made until the first solution (the rating);
        first solutions uint8 (N, S), PAD where there is none.
    """
    puzzles = np.ascontiguousarray(puzzles, np.uint8)
    counts, guesses = np.zeros((2, len(puzzles)), np.int32)
    answers = np.zeros_like(puzzles)
    kernel = lambda at: _solve(*search_for(task), limit, puzzles[at], counts[at], guesses[at], answers[at])  # noqa: E731
    in_threads(kernel, len(puzzles), threads)
    return counts, guesses, answers
