"""Both data sets: load, build, generate, verify, publish. See scripts/build_dataset.py for the commands."""

from air_model.datasets_builders.loading import BadRows, PuzzleSet, load_puzzles
from air_model.datasets_builders.sampler import PuzzleSampler

__all__ = ["BadRows", "PuzzleSampler", "PuzzleSet", "load_puzzles"]
