"""Make the checkout around this file importable as `air_model`, installed or not; it wins over an installed one.

Wheels of plain Python under `.wheels` are imported as they lie, where nothing is installed in their place: a lent
machine may have no registry.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

loaded = sys.modules.get("air_model")
if loaded is None or Path(loaded.__file__).resolve().parent != ROOT:
    spec = importlib.util.spec_from_file_location(
        "air_model", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["air_model"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
sys.path += [str(path) for path in sorted((ROOT / ".wheels").glob("*-none-any.whl"))]
