"""Miniature runs: every part of a run for real, in seconds, at a size that says nothing about results."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from air_model.processing_air import SIZES, make_task
from air_model.records import write_text
from air_model.training.launch import is_first_process

SIZE = {
    "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64, "halt_max_steps": 4, "l_layers": None,
    "h_layers": None, "puzzle_embedding_size": None, "prefix_length": None, "train_size": None,
    "train_act_steps": None, "batch_size": 16, "accumulation": 1, "lr": 3e-3, "eval_limit": 16, "trackers": "none",
    "compile": "off", "init_from": "",
}  # fmt: skip


def miniature(model: dict[str, Any], steps: int = 20) -> dict[str, Any]:
    """Recipe values of a miniature of `steps` optimizer steps; `model`: the model values of the recipe itself."""
    heads = max(2, len(model.get("head_relations") or []))  # as many as the recipe has relations for
    budget = {"max_steps": steps, "warmup_steps": steps // 10, "log_every": steps // 4}
    return {**SIZE, "num_attention_heads": heads, **budget, "save_every": steps // 2, "eval_every": steps // 2}


def on_miniature_data(task_name: str, folder: Path, write: bool = True) -> dict[str, Any]:
    """Recipe values that train on `miniature_data`, which the first process of a run writes into the folder."""
    if write and is_first_process():
        miniature_data(task_name, folder)
    while write and not (folder / "test.csv").is_file():  # another process of this run writes it
        time.sleep(0.1)
    return {**dict.fromkeys(SIZES), "data": str(folder), "eval_data": None, "eval_split": "auto"}


def miniature_data(task_name: str, folder: Path) -> Path:
    """4 x 4 Sudokus or 6 x 6 mazes as train.csv and test.csv; made once, the same every time."""
    if task_name not in ("sudoku", "maze"):
        raise ValueError(f"No miniature data for task={task_name}, only for sudoku and maze: give data=... as well.")
    if (folder / "test.csv").is_file():
        return folder
    for seed, (split, n) in enumerate((("train", 64), ("test", 32))):
        rng = np.random.default_rng(seed)
        if task_name == "sudoku":
            task = make_task("sudoku", 4)
            labels = task.random_symmetries(rng, n).apply(np.tile(task.encode("1234341221434321"), (n, 1)))
            inputs = np.where(rng.random(labels.shape) < 0.5, 1, labels).astype(np.uint8)
        else:
            task, rows = make_task("maze", 6), []
            while len(rows) < n:
                maze = np.where(rng.random(36) < 0.25, 1, 2).astype(np.uint8)
                maze[rng.choice(36, 2, replace=False)] = 3, 4
                if task.distances(maze[None])[0][maze == 3][0] > 3:
                    rows.append(maze)
            inputs = np.stack(rows)
            labels = task.label(inputs)
        lines = [f"{task.decode(a)},{task.decode(b)}" for a, b in zip(inputs, labels)]
        write_text(folder / f"{split}.csv", "\n".join(["question,answer", *lines]) + "\n")
    return folder
