"""Fixtures that several test files share: tiny models, golden folders, the optional folder of real puzzles."""

import functools
import importlib.util
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One thread, for the processes that tests start as well: two workers (`make test`) then share two cores.
os.environ["OMP_NUM_THREADS"] = os.environ.get("AIR_TEST_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("air_model") is None:
    # A bare machine with an accelerator has nothing installed. A folder whose `air_model` is this checkout will do,
    # for the processes that tests start as well.
    beside = tempfile.TemporaryDirectory(prefix="air-tests-")
    (Path(beside.name) / "air_model").symlink_to(ROOT)
    found = [beside.name, *map(str, sorted((ROOT / ".wheels").glob("*-none-any.whl")))]
    sys.path[:0] = found
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*found, os.environ.get("PYTHONPATH")]))

EMULATION = str(Path(__file__).resolve().parent / "rounding")
sys.path.append(EMULATION)
if os.environ.get("AIR_ROUNDING_SEED"):  # for the processes that tests start: its sitecustomize.py
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [EMULATION, os.environ.get("PYTHONPATH")]))

import air_rounding  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from air_model import AirConfig, AirModel  # noqa: E402

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
if os.environ.get("AIR_ROUNDING_SEED"):
    air_rounding.start()
GOLDEN = Path(__file__).resolve().parent / "golden"
SHARED = ROOT.parent / "shared"  # real puzzles and published results; not part of the repository
needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no ../shared folder with real puzzles")


def tiny_config(variant: str = "Lx_H", **overrides) -> AirConfig:
    """A 4 x 4 Sudoku model of width 16 with one layer."""
    fields = {
        "grid_height": 4,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 32,
        "halt_max_steps": 4,
    }
    if variant in ("TRM", "TRM_mlp"):
        fields["prefix_length"] = 3
    return AirConfig.from_variant(variant, **{**fields, **overrides})


def tiny_model(variant: str = "Lx_H", seed: int = 0, **overrides) -> AirModel:
    torch.manual_seed(seed)
    model = AirModel(tiny_config(variant, **overrides)).eval()
    # Fresh blocks multiply rounding up to a thousandfold in an ACT step, halved ones hardly: no halt and no cell that
    # a test compares hangs on it (`AIR_ROUNDING_SEED`).
    with torch.no_grad():
        for stack in model.stacks:
            for p in stack.parameters():
                p.mul_(0.5 if p.ndim == 2 else 1.0)
    return model


def tiny_batch(batch_size: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens and labels (batch, 16) of a 4 x 4 Sudoku; not puzzles, just numbers in range."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(1, 6, (batch_size, 16), generator=generator)
    return inputs, torch.randint(2, 6, (batch_size, 16), generator=generator)


def own_process(target: Callable[..., Any], *arguments: Any, **environment: str) -> multiprocessing.Process:
    """A process that calls target(*arguments): a copy of this one, so that nothing is imported again; started."""

    def run() -> None:
        from accelerate.state import AcceleratorState

        os.environ.update(environment)
        torch.set_num_threads(1)  # threads do not survive the copy
        AcceleratorState._reset_state(reset_partial_state=True)
        sys.exit(target(*arguments))

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    process.start()
    return process


@pytest.fixture
def quick_ends(monkeypatch):
    """A run ends without drawing its curve and measuring the machine, which take longer than all else of a tiny one.

    `monkeypatch.undo()` in a test that looks at either.
    """
    monkeypatch.setattr("air_model.training.run.leave_curve", lambda folder: None)
    monkeypatch.setattr("air_model.training.trainer.matmul_tflops", lambda *_, **__: 1.0)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with train.csv (24 puzzles) and test.csv (10)."""
    from training_runs import write_data

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(tmp_path, data):
    """`train` in the test's own folder."""
    from training_runs import train

    run = functools.partial(train, tmp_path, data)
    run.data = data
    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, data) -> Path:
    """The folder of a whole run of TINY, to look at or to copy."""
    from training_runs import train

    folder = tmp_path_factory.mktemp("finished")
    assert train(folder, data, "run") == 0
    return folder / "run"
