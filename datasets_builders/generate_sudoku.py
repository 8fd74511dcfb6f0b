"""Sudokus of any size with one solution: random grids, clues dug away, and a walk of clue swaps to a wanted rating.

Every puzzle is a function of (seed, stream, number) alone, so any number of threads writes the same bytes.
"""

import numba as nb
import numpy as np

from air_model.datasets_builders.sudoku_solver import (
    NOT,
    Search,
    _bits,
    _free,
    _guess,
    _settle,
    _write_tokens,
    count_solutions,
    search_for,
    solve,
)
from air_model.datasets_builders.threads import in_threads
from air_model.processing_air import SudokuTask

# (lowest rating, highest rating, share): Sudoku-Extreme, measured on 2,175 real rows
BENCHMARK_BUCKETS = ((0, 0, 0.15), (1, 9, 0.24), (10, 19, 0.17), (20, 49, 0.33), (50, 1 << 30, 0.11))
MISSED = 0.25  # of the walks to the highest bucket end below it: so many more are drawn, and so many fewer below
RESTART = 6000  # steps of one walk of clue swaps
STEPS = 18_000  # of all walks for one puzzle
ENOUGH = 1.0  # times the lowest rating: a proof of so many guesses has a copy of that rating
COPIES = 200  # symmetric copies that are tried
OTHERS = 512  # other solutions of puzzles in the same grid that are remembered
DIG_BUDGET = 2000  # guesses after which a clue counts as needed: keeps 16x16 and larger from searching for hours


@nb.njit(cache=True)
def _random(state: np.ndarray, n: int) -> int:
    """splitmix64: a whole number from 0 to n - 1, n up to 2 ** 32; state (1,) uint64 moves on."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return int(((z >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@nb.njit(cache=True)
def _shuffle(values: np.ndarray, count: int, state: np.ndarray) -> None:
    for i in range(count - 1, 0, -1):
        j = _random(state, i + 1)
        values[i], values[j] = values[j], values[i]


@nb.njit(cache=True)
def _random_grid(search: Search, state: np.ndarray, out: np.ndarray) -> None:
    """A random solved grid, as tokens: search with random digits at a random cell of fewest candidates."""
    units, units_of, cells, used = search
    full = (1 << units.shape[1]) - 1
    todo = np.zeros(len(cells), np.int64)
    while True:
        cells[0, :] = 0
        used[0, :] = 0
        depth, status = 0, 0
        for _ in range(50 * len(out)):  # a hopeless start is left for a new one
            if status == 0:
                best, ties = 99, 0
                for i in range(len(out)):
                    if cells[depth, i] == 0:
                        free = _free(used[depth], units_of, i, full)
                        count = _bits(free)
                        if count < best:
                            best, ties = count, 0
                        if count == best:
                            ties += 1
                            if _random(state, ties) == 0:
                                cells[depth, -1], todo[depth] = i, free
            else:
                depth -= 1
                while depth >= 0 and todo[depth] == 0:
                    depth -= 1
                if depth < 0:
                    break
            free = todo[depth]
            for _ in range(_random(state, _bits(free))):
                free &= free - 1
            bit = free & -free
            todo[depth] &= ~bit
            _guess(search, depth, bit)
            depth += 1
            status = _settle(search, depth, full)
            if status == 1:
                _write_tokens(cells[depth], out)
                return


@nb.njit(cache=True)
def _known(others: np.ndarray, low: int, high: int) -> bool:
    """Whether one of the known other solutions agrees with the grid at these cells (bits of `_remember`)."""
    for k in range(min(others[-1, 0], len(others) - 1)):
        if others[k, 0] & low | others[k, 1] & high == 0:
            return True
    return False


@nb.njit(cache=True)
def _remember(others: np.ndarray, grid: np.ndarray, other: np.ndarray) -> None:
    """Note where another solution differs from the grid, over the oldest note; others[-1, 0] counts the notes."""
    k = others[-1, 0] % (len(others) - 1)
    others[-1, 0] += 1
    others[k] = 0
    for i in range(81):
        if other[i] != grid[i]:
            others[k, i // 54] |= 1 << i % 54


@nb.njit(cache=True)
def _dig(
    search: Search, boards: np.ndarray | None, others: np.ndarray, state: np.ndarray, puzzle: np.ndarray,
    grid: np.ndarray, order: np.ndarray, scratch: np.ndarray,
) -> None:  # fmt: skip
    """Take clues away in random order while one solution remains: a minimal puzzle."""
    low = high = 0  # the clues, as bits: cells 0 to 53, cells 54 to 80
    for i in range(len(puzzle)):
        order[i] = i
        if boards is not None and puzzle[i] >= 2:
            low, high = (low | 1 << i, high) if i < 54 else (low, high | 1 << i - 54)
    _shuffle(order, len(puzzle), state)
    for i in order:
        kept = puzzle[i]
        if kept < 2:
            continue
        if boards is None:
            puzzle[i] = 1
            needed = count_solutions(puzzle, 2, DIG_BUDGET, search, boards, scratch)[0] != 1
        else:
            rest = (low & ~(1 << i), high) if i < 54 else (low, high & ~(1 << i - 54))
            # A walk digs in the same grid thousands of times, so most answers are known.
            needed = _known(others, rest[0], rest[1])
            if not needed:  # is there a solution with another digit here? Asked so, the search is shorter.
                puzzle[i] = kept + NOT
                found, _, guesses = count_solutions(puzzle, 1, DIG_BUDGET, search, boards, scratch)
                needed = found == 1
                if needed and guesses < DIG_BUDGET:
                    _remember(others, grid, scratch)
            if not needed:
                low, high = rest
        puzzle[i] = kept if needed else 1


@nb.njit(cache=True)
def _add_clues(puzzle: np.ndarray, grid: np.ndarray, count: int, state: np.ndarray, order: np.ndarray) -> None:
    """Fill `count` random blanks from the solution."""
    blanks = 0
    for i in range(len(puzzle)):
        if puzzle[i] == 1:
            order[blanks] = i
            blanks += 1
    _shuffle(order, blanks, state)
    for i in order[: min(count, blanks)]:
        puzzle[i] = grid[i]


@nb.njit(cache=True)
def _make(
    search: Search, boards: np.ndarray | None, others: np.ndarray, lowest: int, highest: int, extra: int,
    state: np.ndarray, puzzle: np.ndarray, grid: np.ndarray,
) -> int:  # fmt: skip
    """One puzzle with a rating from `lowest` to `highest` in `puzzle`, its solution in `grid`; returns the rating.

    extra: clues added to a minimal puzzle. The rating is below the range where a proof of the one solution takes so
    many guesses that symmetric copies will fit, and outside when the walk found nothing.
    """
    order = np.empty(len(puzzle), np.int64)
    scratch, trial, best = np.empty_like(puzzle), np.empty_like(puzzle), np.empty_like(puzzle)
    rating, proof, best_rating, best_proof = -1, -1, -1, -1
    others[-1, 0] = 0
    # A walk starts by digging into the solved grid. Then, too hard: one clue more. Too easy: one to three clues in,
    # and dig again, so that other clues leave. It climbs by the guesses of the whole proof, because those until the
    # solution are a matter of luck. A step down is taken with a chance of the ratio of the guesses cubed, because most
    # hills are low; after RESTART steps a new walk starts.
    for step in range(STEPS + 1):
        if lowest <= rating <= highest or rating < lowest and proof >= ENOUGH * lowest:
            return rating
        start = step % RESTART == 0
        if rating <= highest and proof > best_proof:
            best[:] = puzzle
            best_rating, best_proof = rating, proof
        if start:
            puzzle[:] = grid
            rating = proof = -1
        trial[:] = puzzle
        too_hard = rating > highest
        if not start:
            _add_clues(trial, grid, 1 if too_hard else 1 + _random(state, 3), state, order)
        if not too_hard:
            _dig(search, boards, others, state, trial, grid, order, scratch)
        if start:
            _add_clues(trial, grid, extra, state, order)
        _, score, guesses = count_solutions(trial, 2, DIG_BUDGET, search, boards, scratch)
        chance = _random(state, 1 << 20)
        if start or (score >= lowest if too_hard else chance * (proof + 1) ** 3 < (guesses + 1) ** 3 << 20):
            puzzle[:] = trial
            rating, proof = score, guesses
    if best_proof >= 0 and not lowest <= rating <= highest:
        puzzle[:] = best
        rating = best_rating
    return rating


@nb.njit(cache=True, nogil=True)
def _make_many(
    search: Search, boards: np.ndarray | None, lowest: np.ndarray, highest: np.ndarray, extra: np.ndarray,
    seeds: np.ndarray, puzzles: np.ndarray, grids: np.ndarray, ratings: np.ndarray,
) -> None:  # fmt: skip
    others = np.zeros((OTHERS + 1, 2), np.int64)
    for i in range(len(seeds)):
        state = seeds[i : i + 1].copy()
        ratings[i] = _make(search, boards, others, lowest[i], highest[i], extra[i], state, puzzles[i], grids[i])


@nb.njit(cache=True, nogil=True)
def _random_grids(search: Search, seeds: np.ndarray, grids: np.ndarray) -> None:
    for i in range(len(seeds)):
        _random_grid(search, seeds[i : i + 1].copy(), grids[i])


def random_grids(task: SudokuTask, seeds: np.ndarray, threads: int | None = None) -> np.ndarray:
    """Solved grids uint8 (N, S), one per seed (N,) uint64."""
    grids = np.zeros((len(seeds), task.seq_len), np.uint8)
    kernel = lambda at: _random_grids(search_for(task)[0], seeds[at], grids[at])  # noqa: E731
    in_threads(kernel, len(seeds), threads, block=16)
    return grids


def seeds_for(seed: int, stream: int, first: int, count: int) -> np.ndarray:
    """uint64 seeds of the puzzles first ... first + count - 1 of a stream."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    key = np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0]
    z = key ^ (numbers * np.uint64(0xD1342543DE82EF95))
    z = (z ^ (z >> np.uint64(32))) * np.uint64(0xDABA0B6EB09322E3)
    return z ^ (z >> np.uint64(29))


def usual_difficulty(height: int, box_height: int) -> str:
    """Of generated puzzles where none is asked for: the benchmark's ratings exist for its own grid alone."""
    return "benchmark" if (height, box_height) == (9, 3) else "mixed"


def make_puzzles(
    task: SudokuTask,
    grids: np.ndarray,
    seeds: np.ndarray,
    difficulty: str = "mixed",
    threads: int | None = None,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One puzzle per solved grid.

    Args:
        grids: (N, S) tokens; seeds: (N,) uint64, which fix everything else.
        difficulty: "minimal" (no clue can be spared); "mixed" (half minimal, half with 1 ... blanks - 1 clues more);
            "benchmark" (9x9: ratings follow Sudoku-Extreme's buckets).

    Returns:
        puzzles, solved grids uint8 (N, S); ratings int32 (N,) = guesses. A rating may miss its bucket when the walk
        found nothing in time.
    """
    count = len(grids)
    lowest, highest = np.zeros(count, np.int64), np.full(count, 1 << 30, np.int64)
    extra = np.zeros(count, np.int64)
    # The coin of each puzzle comes from its own seed, as everything else.
    coin = (seeds >> np.uint64(40)).astype(np.float64) / 2**24
    if difficulty == "benchmark":
        lows, highs, shares = map(np.array, zip(*BENCHMARK_BUCKETS))
        more = shares[-1] * MISSED / (1 - MISSED)
        bounds = np.cumsum(shares + [0, 0, 0, -more, more])
        which = np.searchsorted(bounds / bounds[-1], coin, side="right").clip(0, len(BENCHMARK_BUCKETS) - 1)
        lowest, highest = lows[which], highs[which]
    elif difficulty == "mixed":
        # about n * n * 0.6 blanks in a minimal puzzle; _add_clues stops at a full grid
        most = int(0.55 * task.seq_len)
        extra = np.where(coin < 0.5, 0, 1 + ((coin - 0.5) * 2 * most).astype(np.int64))
    elif difficulty != "minimal":
        raise ValueError(f"Unknown difficulty {difficulty!r}. Known: benchmark, mixed, minimal.")
    puzzles, grids = np.zeros((count, task.seq_len), np.uint8), np.array(grids, np.uint8)
    rated = np.zeros(count, np.int32)
    arrays = (lowest, highest, extra, seeds, puzzles, grids, rated)
    kernel = lambda rows: _make_many(*search_for(task), *(array[rows] for array in arrays))  # noqa: E731
    in_threads(kernel, count, threads, block=16, progress=progress)
    # The rating is the guesses until the solution, so it depends on where the search begins: what the walk left too
    # easy is turned into the symmetric copy that fits, if one of COPIES does, else into the one rated highest.
    for i in np.flatnonzero(rated < lowest):
        symmetry = task.random_symmetries(np.random.default_rng(int(seeds[i])), COPIES)
        copies = symmetry.apply(np.repeat(puzzles[i : i + 1], COPIES, axis=0))
        ratings = solve(copies, task, limit=1, threads=threads)[1]
        fits = np.flatnonzero((ratings >= lowest[i]) & (ratings <= highest[i]))
        k = int(fits[0]) if len(fits) else int(np.argmax(np.where(ratings <= highest[i], ratings, -1)))
        if ratings[k] > rated[i]:
            solved = symmetry.apply(np.repeat(grids[i : i + 1], COPIES, axis=0))
            puzzles[i], grids[i], rated[i] = copies[k], solved[k], ratings[k]
    return puzzles, grids, rated
