"""AIR."""

from .configuration_air import VARIANTS, AirConfig, __version__
