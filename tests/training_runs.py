"""Tiny trainings that several test files start."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from conftest import ROOT
from safetensors.torch import load_file

from air_model import train_accelerate as ta
from air_model.datasets_builders import PuzzleSet
from air_model.processing_air import make_task
from air_model.training.recipe import make_recipe
from air_model.training.trainer import Trainer

SUDOKU = make_task("sudoku", 4)

TINY = {
    "task": "sudoku", "grid_height": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "halt_max_steps": 4, "halt_exploration_prob": 0.5, "warmup_steps": 3, "lr": 1e-2,
    "batch_size": 8, "max_steps": 12, "log_every": 2, "save_every": 4, "eval_every": 6, "eval_limit": 8, "ema": 0.9,
    "easier_share": 0.3, "trackers": "none", "mixed_precision": "no",
}  # fmt: skip


def sudokus(n: int, seed: int = 0) -> PuzzleSet:
    """n random 4 x 4 puzzles with about half of the cells given (more than one solution is fine here)."""
    rng = np.random.default_rng(seed)
    solved = np.tile(SUDOKU.encode("1234341221434321"), (n, 1))
    labels = SUDOKU.random_symmetries(rng, n).apply(solved)
    return PuzzleSet(np.where(rng.random(labels.shape) < 0.5, 1, labels).astype(np.uint8), labels, SUDOKU)


def write_data(folder: Path) -> Path:
    """The folder, with train.csv (24 puzzles) and test.csv (10)."""
    for split, n in (("train", 24), ("test", 10)):
        puzzles = sudokus(n, seed=n)
        rows = [f"{SUDOKU.decode(a)},{SUDOKU.decode(b)}" for a, b in zip(puzzles.inputs, puzzles.labels)]
        (folder / f"{split}.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    return folder


def train(folder: Path, data: Path, name: str, /, *arguments: str, **values) -> int:
    """Writes a recipe file; runs main on it and gives its exit status."""
    path = folder / "tiny.yaml"
    lines = {"data": str(data), **TINY, **values}
    path.write_text("\n".join(f"{k}: {json.dumps(v)}" for k, v in lines.items()))
    return ta.main(["--recipe", str(path), "--output-dir", str(folder / name), *arguments])


def trainer(tmp_path: Path, **values) -> Trainer:
    recipe = make_recipe({"data": "given", **TINY, **values})
    return Trainer(recipe, tmp_path, sudokus(24), sudokus(10, 1))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model_last" / "model.safetensors")


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of a tensor, as a norm: Adam makes whole steps of gradients that are rounding.

    Some steps move every tensor by 0.05 of its norm or more; wrong gradients would end that far away. Compare models
    without q_continue: with it, fresh puzzles halt or not by the rounding of two equal numbers.
    """
    return max(float((a[n] - b[n]).detach().norm() / b[n].detach().norm().clamp_min(1e-12)) for n in b)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def command(tmp_path: Path, name: str, *arguments: str) -> list[str]:
    script = [str(ROOT / "train_accelerate.py"), "--recipe", str(tmp_path / "tiny.yaml")]
    return [*script, "--output-dir", str(tmp_path / name), *arguments]


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)
