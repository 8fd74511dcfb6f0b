"""New puzzles by difficulty, at once and offline.

    python spaces_demo/examples.py        # make static/sudokus.json anew, out of the generator (minutes)

A Sudoku is a random symmetric copy of one that our generator made (`static/sudokus.json`): relabelled, its rows,
columns and boxes permuted, which keeps its one solution and its difficulty. So the page never waits for the
generator's compiler; only sizes that the file lacks do. Mazes are drawn directly.
"""

import json
import os
import sys
from functools import cache
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import numpy as np

from air_model.processing_air import GridTask, MazeTask, SudokuTask, make_task

POOL = Path(__file__).parent / "static" / "sudokus.json"
SIZES = (4, 6, 8, 9, 10, 12, 16)
PER_LEVEL = 12
EXTREME_RATING = 20  # guesses; half of Sudoku-Extreme lies above
# Share of a minimal puzzle's blanks that is filled in from the solution.
REVEALED = {"easy": 0.45, "medium": 0.2, "hard": 0.0}
# Moves from S to G as a multiple of the longer side: at least, at most.
MAZE_LEVELS = {"short": (0.3, 0.7), "medium": (0.8, 1.2), "long": (1.3, 9.0)}
MAZE_WALLS = (0.25, 0.4)


def levels(task: GridTask) -> list[str]:
    """Names of the difficulties that the page offers for a task, easiest first."""
    if task.name == "sudoku":
        return [*REVEALED, "extreme"] if task.height == 9 and task.box_height == 3 else list(REVEALED)
    return list(MAZE_LEVELS) if task.name == "maze" else ["random"]


def new_puzzle(task: GridTask, level: str, rng: np.random.Generator) -> np.ndarray:
    """Tokens (S,) of a fresh puzzle that has a solution.

    Raises:
        ValueError: the task has no such level.
    """
    if level not in levels(task):
        raise ValueError(f"{level[:40]!r} is no difficulty of this task. Known: {', '.join(levels(task))}.")
    if isinstance(task, SudokuTask):
        known = pool().get(shape_of(task), {}).get(level)
        if known:
            puzzle = task.encode(known[rng.integers(len(known))])
        else:
            puzzle = generated(task, level, 1, int(rng.integers(2**31)))[0]
        return task.sample_symmetry(rng).apply(puzzle)
    if isinstance(task, MazeTask):
        return maze(task, level, rng)
    return rng.integers(1, task.vocab_size, task.seq_len).astype(np.uint8)


def maze(task: MazeTask, level: str, rng: np.random.Generator) -> np.ndarray:
    """Random walls and G, then S where the shortest path has the wanted length (in tiny grids, the nearest to it)."""
    side = max(task.height, task.width)
    low, high = (share * side for share in MAZE_LEVELS[level])
    best, miss = None, np.inf
    for _ in range(100):
        tokens = np.where(rng.random(task.seq_len) < rng.uniform(*MAZE_WALLS), task.WALL, task.SPACE).astype(np.uint8)
        tokens[rng.integers(task.seq_len)] = task.GOAL
        moves = task.distances(tokens[None])[0]
        reached = np.flatnonzero(moves > 0)
        off = np.maximum(low - moves[reached], 0) + np.maximum(moves[reached] - high, 0)
        if len(reached) and off.min() < miss:
            miss, best = off.min(), tokens
            best[rng.choice(reached[off == miss])] = task.START
        if miss == 0:
            break
    assert best is not None, "100 random mazes without a path"
    return best


@cache
def pool() -> dict[str, dict[str, list[str]]]:
    """{shape: {level: puzzles as text}}."""
    return json.loads(POOL.read_text())


def shape_of(task: SudokuTask) -> str:
    return f"{task.height}x{task.width}/{task.box_height}x{task.box_width}"


def generated(task: SudokuTask, level: str, count: int, seed: int) -> list[np.ndarray]:
    """Fresh Sudokus of a level from the data sets' own generator."""
    from air_model.datasets_builders.generate_sudoku import make_puzzles, random_grids, seeds_for

    rng, found, stream = np.random.default_rng(seed), [], 0
    while len(found) < count:
        seeds = seeds_for(seed, stream, 0, count)
        batch = make_puzzles(task, random_grids(task, seeds), seeds, "benchmark" if level == "extreme" else "minimal")
        stream += 1
        for puzzle, grid, rating in zip(batch.puzzles, batch.grids, batch.ratings):
            if level == "extreme" and rating < EXTREME_RATING:
                continue
            blank = np.flatnonzero(puzzle == task.blank_token)
            shown = rng.permutation(blank)[: round(REVEALED.get(level, 0) * len(blank))]
            puzzle[shown] = grid[shown]
            found.append(puzzle)
    return found[:count]


def main() -> int:
    content = {}
    for size in SIZES:
        task = make_task("sudoku", size)
        content[shape_of(task)] = {
            level: [task.decode(p) for p in generated(task, level, PER_LEVEL, seed=8)] for level in levels(task)
        }
        print(shape_of(task), {level: len(puzzles) for level, puzzles in content[shape_of(task)].items()}, flush=True)
    partial = POOL.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=0) + "\n")
    os.replace(partial, POOL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
