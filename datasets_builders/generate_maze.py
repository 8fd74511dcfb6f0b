"""Mazes by the verified recipe: random walls, start, goal, a length filter, labels by Down, Left, Right, Up.

The benchmark (30x30): walls uniformly placed, their number ~ U{240 ... 420}; S and G uniform on the free cells, kept
where they are at least 109 moves apart. So a layout with many far cells is kept more often: here with a chance of
their number over MANY_FAR (inexact above it), and G is one of them. Taking every layout that has a far cell would give
36 % paths of just 109 moves where the benchmark has 15. Other sizes scale the number of walls with the cells and the
length so that a layout that qualifies is about as rare (larger sizes) or less so (smaller ones); `min_path` overrides.
Maze `number` of a stream depends on (seed, stream, number) alone, so any number of threads writes the same bytes.
"""

import math

import numba as nb
import numpy as np

from air_model.datasets_builders.generate_sudoku import _random
from air_model.datasets_builders.threads import in_threads
from air_model.processing_air import MazeTask

WALL, SPACE, START, GOAL = MazeTask.WALL, MazeTask.SPACE, MazeTask.START, MazeTask.GOAL
FEWEST_WALLS, MOST_WALLS = 240 / 900, 420 / 900
BENCHMARK_LENGTH = 109
MANY_FAR = 64 / 900  # of the cells; few layouts with far cells have more
MAX_TRIES = 1_000_000  # layouts per maze; the benchmark needs about 6,000 walls-and-start draws


def default_min_path(height: int, width: int) -> int:
    """109 moves at 30x30 (the benchmark); above in proportion to area ** 0.54, below to area ** 0.69, at least 1.

    The longest shortest path of a random layout grows a little faster than the side: with 0.54 one layout in 6,000 to
    11,000 qualifies, as measured from 30x30 to 100x100. The larger power keeps small mazes quick to find.
    """
    area = height * width / 900
    return max(1, math.floor(BENCHMARK_LENGTH * area ** (0.54 if area > 1 else 0.69)))


@nb.njit(cache=True)
def _flood(open_: np.ndarray, source: int, width: int, distance: np.ndarray, queue: np.ndarray) -> int:
    """Breadth-first distances on a rimmed flat grid; fills `distance`, returns the number of cells reached."""
    distance[:] = -1
    distance[source] = 0
    queue[0] = source
    head, tail = 0, 1
    while head < tail:
        here = queue[head]
        head += 1
        far = distance[here] + 1
        for step in (width, -1, 1, -width):
            near = here + step
            if open_[near] and distance[near] < 0:
                distance[near] = far
                queue[tail] = near
                tail += 1
    return tail


@nb.njit(cache=True, nogil=True)
def _make_mazes(
    seeds: np.ndarray, height: int, width: int, fewest: int, most: int, min_path: int, many: int, mazes: np.ndarray,
    found: np.ndarray,
) -> None:  # fmt: skip
    wide, size = width + 2, height * width
    open_ = np.zeros((height + 2) * wide, np.bool_)
    distance = np.empty((height + 2) * wide, np.int32)
    queue = np.empty(size, np.int32)
    inner = np.array([(i // width + 1) * wide + i % width + 1 for i in range(size)])  # cells of the rimmed grid
    cells = inner.copy()
    grid = np.empty((height + 2) * wide, np.uint8)
    state = np.empty(1, np.uint64)
    for m in range(len(seeds)):
        state[0] = seeds[m]
        for _ in range(MAX_TRIES):
            walls = fewest + _random(state, most - fewest + 1)
            # the first `walls` cells of a partial shuffle are walls, the next one is S: uniform, without rejection
            for i in range(walls + 1):
                j = i + _random(state, size - i)
                cells[i], cells[j] = cells[j], cells[i]
            for i in range(size):
                open_[cells[i]] = i >= walls
            start = cells[walls]
            reached = _flood(open_, start, wide, distance, queue)
            # cells come out of the queue by distance: the far ones are its tail
            first = reached
            while first > 0 and distance[queue[first - 1]] >= min_path:
                first -= 1
            if first == reached or reached - first < many and _random(state, many) >= reached - first:
                continue
            goal = queue[first + _random(state, reached - first)]
            grid[:] = np.where(open_, SPACE, WALL)
            grid[start], grid[goal] = START, GOAL
            mazes[m] = grid[inner]
            found[m] = True
            break
        if not found[m]:
            return


def make_mazes(
    task: MazeTask,
    seeds: np.ndarray,
    min_path: int | None = None,
    threads: int | None = None,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mazes and labels, uint8 (N, S) each, one per seed (N,) uint64.

    Raises:
        ValueError: a path of `min_path` moves is so rare at this size that no layout was found.
    """
    size = task.seq_len
    min_path = default_min_path(task.height, task.width) if min_path is None else min_path
    if not 1 <= min_path < size:
        raise ValueError(f"The shortest path must take from 1 to {size - 1} moves in {task}, got {min_path}.")
    fewest, most = round(FEWEST_WALLS * size), min(round(MOST_WALLS * size), size - 2)
    kind = (task.height, task.width, min(fewest, most), most, min_path, max(1, round(MANY_FAR * size)))
    mazes, found = np.zeros((len(seeds), size), np.uint8), np.zeros(len(seeds), bool)

    def kernel(at: slice) -> None:
        _make_mazes(seeds[at], *kind, mazes[at], found[at])
        if not found[at].all():  # now, not after a million layouts for each of the others
            raise ValueError(
                f"No {task.height}x{task.width} maze with a shortest path of {min_path} moves or more in "
                f"{MAX_TRIES:,} layouts: ask for a shorter one (--min-path)."
            )

    in_threads(kernel, len(seeds), threads, block=8, progress=progress)
    return mazes, task.label(mazes)
