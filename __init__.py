"""AIR: two-state recursive reasoning models that solve puzzles, for transformers (arXiv:2605.17811)."""

from .attempts_air import solve_puzzles
from .configuration_air import VARIANTS, AirConfig, __version__
from .modeling_air import AirModel, AirOutput
from .pipeline_air import PuzzleSolvingPipeline, load_model, register, save_release
from .processing_air import AirProcessor
from .solving_air import AirCarry, AirSolution

# pytest imports this folder a second time, under the folder's own name: that copy must not take over.
if __name__ == "air_model":
    register()

__all__ = [
    "VARIANTS",
    "AirCarry",
    "AirConfig",
    "AirModel",
    "AirOutput",
    "AirProcessor",
    "AirSolution",
    "PuzzleSolvingPipeline",
    "__version__",
    "load_model",
    "register",
    "save_release",
    "solve_puzzles",
]
