"""New puzzles by difficulty, generated here so that the page works offline."""

import numpy as np

from air_model.processing_air import GridTask

SUDOKU_LEVELS = ("easy", "medium", "hard")
MAZE_LEVELS = ("short", "medium", "long")


def levels(task: GridTask) -> list[str]:
    """Names of the difficulties that the page offers for a task, easiest first."""
    return {"sudoku": list(SUDOKU_LEVELS), "maze": list(MAZE_LEVELS)}.get(task.name, ["any"])


def new_puzzle(task: GridTask, level: str, rng: np.random.Generator) -> np.ndarray:
    """Tokens (S,) of a fresh puzzle that has a solution.

    Raises:
        ValueError: the task has no such level.
    """
    if level not in levels(task):
        raise ValueError(f"{level[:40]!r} is no difficulty of this task. Known: {', '.join(levels(task))}.")
    if task.name == "sudoku":
        n, h, w = task.height, task.box_height, task.box_width
        rows, columns = np.divmod(np.arange(n * n), n)
        solution = ((rows % h) * w + rows // h + columns) % n + 2
        solved = task.sample_symmetry(rng).apply(solution.astype(np.uint8))
        keep = rng.random(n * n) < {"easy": 0.65, "medium": 0.5, "hard": 0.4}[level]
        return np.where(keep, solved, task.blank_token).astype(np.uint8)
    while True:
        walls = rng.random(task.seq_len) < 0.3
        tokens = np.where(walls, task.WALL, task.SPACE).astype(np.uint8)
        start, goal = rng.choice(task.seq_len, 2, replace=False)
        tokens[start], tokens[goal] = task.START, task.GOAL
        if task.distances(tokens[None])[0, start] > task.height // 2:
            return tokens
