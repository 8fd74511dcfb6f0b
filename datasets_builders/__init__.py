"""Both data sets: load, build, generate, verify, publish. See scripts/build_dataset.py for the commands."""

from air_model.datasets_builders.loading import BadRows, PuzzleSet, load_puzzles

__all__ = ["BadRows", "PuzzleSet", "load_puzzles"]
