"""New puzzles by difficulty, at once and offline.

    python spaces_demo/examples.py        # make static/puzzles.json anew, out of the generators (minutes)

An example is a random symmetric copy of one that our generators made (`static/puzzles.json`): a Sudoku relabelled, its
rows, columns and boxes permuted; a maze turned or mirrored. That keeps its solution and its difficulty, and the page
never waits for the generators' compiler; only sizes that the file lacks do.
"""

import itertools
import json
import sys
from functools import cache
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import numpy as np

from air_model.processing_air import GridTask, MazeTask, SudokuTask, make_task
from air_model.records import write_text

POOL = Path(__file__).parent / "static" / "puzzles.json"
SUDOKU_SIZES = (4, 6, 8, 9, 10, 12, 16)
MAZE_SIZES = (5, 6, 8, 10, 12, 14, 15, 16, 20, 30, 40, 60)
PER_LEVEL = {"sudoku": 12, "maze": 24}
EXTREME_RATING = 20  # guesses; half of Sudoku-Extreme lies above
# Share of a minimal puzzle's blanks that is filled in from the solution.
REVEALED = {"easy": 0.45, "medium": 0.2, "hard": 0.0}
# Fewest moves from S to G, as a share of the benchmark's at that size.
MAZE_LENGTHS = {"short": 0.35, "medium": 0.65, "long": 1.0}


def levels(task: GridTask) -> list[str]:
    """Names of the difficulties that the page offers for a task, easiest first."""
    if task.name == "sudoku":
        return [*REVEALED, "extreme"] if task.height == 9 and task.box_height == 3 else list(REVEALED)
    return list(MAZE_LENGTHS) if task.name == "maze" else ["random"]


def usual_level(task: GridTask) -> str:
    """What a task is shown with first: a Sudoku in the middle, a maze as long as the benchmark's."""
    return {"sudoku": "medium", "maze": "long"}.get(task.name, "random")


def new_puzzle(task: GridTask, level: str, rng: np.random.Generator) -> np.ndarray:
    """Tokens (S,) of a fresh puzzle that has a solution.

    Raises:
        ValueError: the task has no such level.
    """
    if level not in levels(task):
        raise ValueError(f"{level[:40]!r} is no difficulty of this task. Known: {', '.join(levels(task))}.")
    if task.name == "grid":
        return rng.integers(1, task.vocab_size, task.seq_len).astype(np.uint8)
    if known := pool().get(shape_of(task), {}).get(level):
        puzzle = task.encode(known[rng.integers(len(known))])
    else:
        puzzle = generated(task, level, 1, int(rng.integers(2**31)))[0]
    return task.sample_symmetry(rng).apply(puzzle)


@cache
def pool() -> dict[str, dict[str, list[str]]]:
    """{shape: {level: puzzles as text}}."""
    return json.loads(POOL.read_text(encoding="utf-8"))


def shape_of(task: GridTask) -> str:
    box = f" boxes {task.box_height}x{task.box_width}" if task.box_height else ""
    return f"{task.name} {task.height}x{task.width}{box}"


def generated(task: MazeTask | SudokuTask, level: str, count: int, seed: int) -> list[np.ndarray]:
    """Fresh puzzles of a level from the data sets' own generators."""
    from air_model.datasets_builders.generate_maze import default_min_path, make_mazes
    from air_model.datasets_builders.generate_sudoku import make_puzzles, random_grids, seeds_for

    if isinstance(task, MazeTask):
        length = max(1, round(MAZE_LENGTHS[level] * default_min_path(task.height, task.width)))
        return list(make_mazes(task, seeds_for(seed, 0, 0, count), min_path=length)[0])
    rng, found = np.random.default_rng(seed), []
    kind, least = ("benchmark", EXTREME_RATING) if level == "extreme" else ("minimal", 0)
    for stream in itertools.count():
        seeds = seeds_for(seed, stream, 0, count)
        puzzles, grids, ratings = make_puzzles(task, random_grids(task, seeds), seeds, kind)
        for puzzle, grid in zip(puzzles[ratings >= least], grids[ratings >= least]):
            blank = np.flatnonzero(puzzle == task.blank_token)
            shown = rng.permutation(blank)[: round(REVEALED.get(level, 0) * len(blank))]
            puzzle[shown] = grid[shown]
            found.append(puzzle)
        if len(found) >= count:
            return found[:count]


def main() -> int:
    content = {}
    tasks = [make_task("sudoku", n) for n in SUDOKU_SIZES] + [make_task("maze", n) for n in MAZE_SIZES]
    for task in tasks:
        count = PER_LEVEL[task.name] if task.height <= 30 else 4  # a text has a letter per cell
        made = {level: generated(task, level, count, seed=8) for level in levels(task)}
        content[shape_of(task)] = {level: [task.decode(p) for p in puzzles] for level, puzzles in made.items()}
        print(shape_of(task), {level: len(puzzles) for level, puzzles in made.items()}, flush=True)
    write_text(POOL, json.dumps(content, indent=0) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
