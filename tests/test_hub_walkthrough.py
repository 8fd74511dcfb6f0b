"""docs/walkthrough.md, run block by block in one place with fewer steps, so that it cannot rot."""

import importlib
import re
import shlex

import pytest
import torch
from conftest import ROOT

from air_model import AirConfig, AirModel
from air_model.pipeline_air import save_release

WALKTHROUGH = (ROOT / "docs/walkthrough.md").read_text()
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", WALKTHROUGH, re.M | re.S)
# What makes it long, and what it becomes here; each must be found.
SHORTER = {"max_steps=300": "max_steps=2", "save_every=100": "save_every=2 batch_size=4", "range(300)": "range(1)"}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """An empty folder to work in, with an untrained model of the shipped one's shape."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 176}
    rule = {"h_cycles": 1, "l_cycles": 1, "q_continue": False, "position_embedding": "rope2d", "cell_embedding": True}
    save_release(AirModel(AirConfig(grid_height=6, halt_max_steps=2, **sizes, **rule)), "checkpoints/air-sudoku-6x6")
    return tmp_path


def run_command(line: str) -> None:
    """`python scripts/x.py ...` in this process: the same main function, without the cost of an interpreter."""
    python, script, *arguments = shlex.split(line)
    assert python == "python"
    module = "air_model." + script.removesuffix(".py").replace("/", ".")
    assert importlib.import_module(module).main(arguments) == 0, line


def test_every_block_of_the_walkthrough_runs(stand_in, capsys):
    assert len(BLOCKS) == 6
    names: dict = {"__name__": "walkthrough"}
    found = set()
    for kind, text in BLOCKS:
        for long, short in SHORTER.items():
            found |= {long} if long in text else set()
            text = text.replace(long, short)
        if kind == "python":
            exec(compile(text, "walkthrough.md", "exec"), names)
        else:
            for line in text.strip().splitlines():
                run_command(line)
    assert found == set(SHORTER), "the walk-through changed: adapt what the test shortens"
    assert "of 200 new pictures" in capsys.readouterr().out
    assert (stand_in / "runs/mirror/model.safetensors").exists()
    card = (stand_in / "runs/mine/hub/README.md").read_text()
    assert "model-index" in card and "4 x 4 Sudokus" in card and "Trained on 48 puzzles" in card
