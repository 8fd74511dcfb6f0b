"""These tests need a download and a minute or two: they run only where asked for (`make test-conformance`)."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked_for = any("conformance" in str(argument) for argument in config.invocation_params.args)
    return None if asked_for or not collection_path.name.startswith("test_") else True
