"""The queue of GPU runs: its page is generated, its rows fit the recipes, its parcels fit the machine's limits."""

import json

import pytest
import torch
from conftest import ROOT, tiny_model
from safetensors.torch import save_file

from air_model.scripts import run_queue
from air_model.training_air import read_recipe


def test_the_page_is_what_the_script_writes(tmp_path, monkeypatch):
    committed = (ROOT / "results" / "QUEUE.md").read_text()
    assert run_queue.write_queue().read_text() == committed


@pytest.mark.parametrize("name", run_queue.QUEUE)
def test_every_row_is_a_recipe_with_known_overrides(name):
    item = run_queue.QUEUE[name]
    recipe = read_recipe(item.recipe, ["data=somewhere", *item.overrides])
    assert recipe.train.max_steps > 0 and (item.checkpoint is None or item.evaluations)


def work_folder(tmp_path, status):
    """What a run leaves: run.json and a checkpoint, or a model."""
    model, run = tiny_model(), tmp_path / "work" / "run"
    checkpoint = run / "checkpoints" / "checkpoint_7"
    checkpoint.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, checkpoint / "model.safetensors")
    save_file({"lm_head.weight": torch.ones_like(state["lm_head.weight"])}, checkpoint / "ema.safetensors")
    (run / "run.json").write_text(json.dumps({"status": status, "model_config": model.config.to_dict()}, default=str))
    return tmp_path / "work"


def test_an_unfinished_run_ships_its_averaged_weights_in_bfloat16(tmp_path):
    run_queue.write_parcel(work_folder(tmp_path, "running"), tmp_path / "parcel")
    from air_model import AirModel

    model = AirModel.from_pretrained(tmp_path / "parcel")
    assert model.dtype == torch.bfloat16 and (model.lm_head.weight == 1).all()
    assert len(list((tmp_path / "parcel").iterdir())) <= 8


def test_only_finished_runs_are_collected(tmp_path, capsys):
    run_queue.write_parcel(work_folder(tmp_path, "stopped"), tmp_path / "parcel")
    assert run_queue.main(["sudoku-published", "--collect", str(tmp_path / "parcel")]) == 1
    assert "init_from" in capsys.readouterr().err
    assert run_queue.main(["sudoku-published", "--collect", str(tmp_path / "nowhere")]) == 1
    assert "holds no run.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["configuration_air.py", "modeling_air.py", "processing_air.py", "pipeline_air.py"])
def test_shipped_checkpoints_carry_the_code_of_this_checkout(name):
    """`python scripts/run_queue.py --refresh` brings them up to date."""
    for folder in (ROOT / "checkpoints").glob("*/config.json"):
        assert (folder.parent / name).read_text() == (ROOT / name).read_text(), folder.parent.name


def test_shipped_checkpoints_fit_the_repository():
    files = [path for path in (ROOT / "checkpoints").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 50e6
    assert all(path.stat().st_size < 16e6 for path in files if path.suffix == ".safetensors")
