"""transformers.Trainer, and peft where it is installed, with an AIR model as with any other of transformers."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_batch, tiny_model
from transformers import Trainer, TrainingArguments, pipeline

from air_model import AirModel, AirProcessor
from air_model.configuration_air import TRAVELLING_FILES
from air_model.pipeline_air import in_size
from air_model.processing_air import make_task

PUZZLE = "1" + "." * 15


@pytest.fixture
def trainer(tmp_path):
    inputs, labels = tiny_batch()
    rows = [{"input_ids": x, "labels": y} for x, y in zip(inputs.repeat(4, 1), labels.repeat(4, 1))]  # 12 puzzles

    def make(model: AirModel | None = None, **values) -> Trainer:
        options = {"max_steps": 4, "per_device_train_batch_size": 3, "save_steps": 2, "learning_rate": 1e-2, "seed": 0}
        options |= {"output_dir": str(tmp_path / "run"), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
        model = model or tiny_model()
        return Trainer(model, TrainingArguments(**options | values), train_dataset=rows, eval_dataset=rows[:5])

    return make


def weights(model: AirModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_trains_evaluates_and_predicts(trainer):
    run = trainer()
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before
    logits, q_halt, q_continue = run.predict(run.eval_dataset).predictions
    assert logits.shape == (5, 16, 6) and q_halt.shape == q_continue.shape == (5,)
    assert np.isfinite(logits).all()


def test_it_takes_the_processor_and_saves_it(trainer):
    run = trainer(max_steps=1)
    run.processing_class = AirProcessor.from_config(run.model.config)
    run.train()
    run.save_model()
    assert AirProcessor.from_pretrained(run.args.output_dir).grid_task == run.processing_class.grid_task


def test_accumulated_gradients_are_those_of_the_whole_batch(trainer):
    values = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    whole, parts = trainer(**values), trainer(**values, per_device_train_batch_size=1, gradient_accumulation_steps=3)
    for run in (whole, parts):
        run.train()
    start = weights(tiny_model())
    assert (weights(whole.model) - start).abs().max() > 1e-4
    torch.testing.assert_close(weights(parts.model), weights(whole.model), rtol=0, atol=1e-6)


def test_it_resumes_from_its_checkpoint_which_is_a_whole_model(trainer, tmp_path):
    run = trainer()
    run.train()
    again = trainer(tiny_model(seed=7))
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    torch.testing.assert_close(weights(again.model), weights(run.model))
    folder = tmp_path / "run" / "checkpoint-4"
    assert {*TRAVELLING_FILES, "processor_config.json"} <= {path.name for path in folder.iterdir()}
    assert pipeline("puzzle-solving", model=str(folder))(PUZZLE) == pipeline("puzzle-solving", model=run.model)(PUZZLE)


def test_what_it_writes_into_the_config_is_no_unknown_field(trainer, tmp_path, caplog):
    run = trainer(tiny_model(task="maze", position_embedding="rope2d"), max_steps=1)
    run.save_model()
    assert in_size(run.model, make_task("maze", 5)).config.grid_height == 5
    AirModel.from_pretrained(run.args.output_dir)
    assert "does not know" not in caplog.text


def test_what_peft_merged_is_saved_whole(tmp_path):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["o_proj", "down_proj"], r=2))
    inputs, labels = tiny_batch()
    adapted(input_ids=inputs, labels=labels).loss.backward()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.copy_(p.grad)
    merged = adapted.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert "puzzle-solving" in json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert {*TRAVELLING_FILES, "processor_config.json"} <= {path.name for path in tmp_path.iterdir()}
    loaded = AirModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(inputs).logits, merged(inputs).logits)
    assert not torch.equal(loaded(inputs).logits, tiny_model()(inputs).logits)
