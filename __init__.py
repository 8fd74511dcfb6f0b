"""AIR."""

from .configuration_air import VARIANTS, AirConfig, __version__
from .modeling_air import AirCarry, AirModel, AirOutput, AirSolution
from .processing_air import AirProcessor

__all__ = [
    "VARIANTS",
    "AirCarry",
    "AirConfig",
    "AirModel",
    "AirOutput",
    "AirProcessor",
    "AirSolution",
    "__version__",
]
