"""Python runs this first in every process that a test starts under AIR_ROUNDING_SEED: it waits for torch's modules."""

import importlib.abc
import importlib.machinery
import os
import sys


class AfterTorch(importlib.abc.MetaPathFinder):
    """Finds nothing itself, but what is found as `torch` starts the emulation once it has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            run = spec.loader.exec_module

            def run_and_start(module):
                run(module)
                import air_rounding

                if hasattr(air_rounding, "start"):  # else it is what imports torch, and conftest.py starts it
                    air_rounding.start()

            spec.loader.exec_module = run_and_start
        return spec


if os.environ.get("AIR_ROUNDING_SEED"):
    sys.meta_path.insert(0, AfterTorch())
