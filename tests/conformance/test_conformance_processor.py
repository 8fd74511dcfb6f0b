"""AirProcessor against the common tests of transformers (see sources.py)."""

import unittest
import unittest.mock
from typing import Any

import pytest
import sources

from air_model import AirProcessor

try:
    processing = sources.load("test_processing_common")
except sources.Unavailable as error:
    pytest.skip(str(error), allow_module_level=True)


class SudokuTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = AirProcessor

    @classmethod
    def setUpClass(cls) -> None:
        # As transformers' own processors: saving custom code marks the instance that was saved with its auto_map.
        patcher = unittest.mock.patch.object(AirProcessor, "_auto_class", None)
        patcher.start()
        cls.addClassCleanup(patcher.stop)
        super().setUpClass()

    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        return {"task": "sudoku", "grid_height": 6, "box_height": 2}

    def prepare_text_inputs(self, batch_size: int | None = None, modalities: Any = None) -> str | list[str]:
        puzzle = "1" + 35 * "."
        return puzzle if batch_size is None else [puzzle] * batch_size


class MazeTest(SudokuTest):
    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        return {"task": "maze", "grid_height": 2, "grid_width": 3}

    def prepare_text_inputs(self, batch_size: int | None = None, modalities: Any = None) -> str | list[str]:
        return "S #  G" if batch_size is None else ["S #  G"] * batch_size
