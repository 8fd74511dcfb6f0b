"""Releases meet: older and newer configs, and the transformers before the installed one."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT, tiny_batch, tiny_model
from packaging.requirements import Requirement
from safetensors.torch import save_file

from air_model import AirModel, configuration_air
from air_model.pipeline_air import save_release


@pytest.fixture
def released(tmp_path):
    """A model folder, and its logits on a small batch."""
    model, (inputs, _) = tiny_model(), tiny_batch()
    save_release(model, tmp_path / "model")
    with torch.no_grad():
        return tmp_path / "model", inputs, model(inputs).logits


def rewrite(folder: Path, change) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_a_config_from_before_some_fields_existed_loads_the_same_model(released):
    folder, inputs, expected = released
    missing = ("code_version", "cell_embedding", "gradient_scope", "q_continue", "custom_pipelines", "level_token")
    rewrite(folder, lambda config: {k: v for k, v in config.items() if k not in missing})
    with torch.no_grad():
        assert torch.equal(AirModel.from_pretrained(folder)(inputs).logits, expected)


def test_the_version_stands_in_one_place(released):
    version = configuration_air.__version__
    assert json.loads((released[0] / "config.json").read_text())["code_version"] == version
    assert version in (ROOT / "CHANGELOG.md").read_text()
    text = (ROOT / "pyproject.toml").read_text()
    assert version not in text and "configuration_air.__version__" in text


def overlay(version: str, folder: Path) -> Path:
    """A folder with another transformers, and the huggingface_hub that it needs, to be put in front of the path."""

    def install(requirement: str) -> None:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            requirement,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be downloaded here: {done.stderr.strip().splitlines()[-1]}")

    install(f"transformers=={version}.*")
    (metadata,) = folder.glob("transformers-*.dist-info")
    for line in importlib.metadata.PathDistribution(metadata).requires or []:
        requirement = Requirement(line)
        if requirement.name == "huggingface-hub" and requirement.marker is None:
            if importlib.metadata.version("huggingface-hub") not in requirement.specifier:
                install(f"huggingface-hub{requirement.specifier}")
    return folder


def versions() -> list[str]:
    """The minor release before the installed transformers, and the oldest that pyproject.toml allows."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    floor = re.search(r"transformers>=(\d+\.\d+)", (ROOT / "pyproject.toml").read_text())[1]
    return sorted({f"{major}.{minor - 1}", floor}, key=lambda v: tuple(map(int, v.split("."))))


@pytest.mark.slow
@pytest.mark.parametrize("version", versions())
def test_other_releases_of_transformers_give_the_same_numbers(released, tmp_path, version):
    folder, inputs, expected = released
    save_file({"input_ids": inputs, "v1": expected}, tmp_path / "reference.safetensors")
    script = ROOT / "tests/clients/previous_transformers.py"
    folders = [overlay(version, tmp_path / "overlay"), ROOT, tmp_path / "reference.safetensors", folder]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(part) for part in [sys.executable, script, *folders, tmp_path / "new"]],
        env={**environment, "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["version"].startswith(version)
    assert facts["stranger"][0] == "transformers_modules"
    assert max(facts["stranger"][1], facts["package"], facts["saved"]) < 1e-4
    assert facts["trains"] and facts["processor"] == 16
    assert {"solution", "valid"} <= set(facts["pipeline"]) and facts["steps"] == [4, 4, 4]
    # What the other release saved loads here.
    with torch.no_grad():
        assert torch.equal(AirModel.from_pretrained(tmp_path / "new")(inputs).logits, expected)
