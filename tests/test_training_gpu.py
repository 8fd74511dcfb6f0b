"""What only a GPU can show of training: nothing waits for it, compiled blocks agree, memory stays, the loss falls."""

import numpy as np
import pytest
import torch

from air_model import AirModel
from air_model.datasets_builders import PuzzleSet
from air_model.processing_air import make_task
from air_model.training.batches import HALTED_METRICS, LOSSES
from air_model.training.recipe import make_recipe
from air_model.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
TASK = make_task("sudoku", 9)


def puzzles(n: int = 64) -> PuzzleSet:
    rng = np.random.default_rng(0)
    rows = [[(r % 3 * 3 + r // 3 + c) % 9 + 2 for c in range(9)] for r in range(9)]
    labels = TASK.random_symmetries(rng, n).apply(np.tile(np.array(rows, np.uint8).reshape(1, -1), (n, 1)))
    return PuzzleSet(np.where(rng.random(labels.shape) < 0.5, 1, labels).astype(np.uint8), labels, TASK)


def trainer(tmp_path, evaluation: PuzzleSet | None = None, **values) -> Trainer:
    base = {
        "data": "given", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "batch_size": 64,
        "max_steps": 200, "warmup_steps": 10, "lr": 1e-3, "trackers": "none", "compile": "off", "ema": 0.99,
        "optimizer": "adamw", "weight_decay": 0.0, "easier_share": 0.5,
    }  # fmt: skip
    return Trainer(make_recipe({**base, **values}), tmp_path, puzzles(), evaluation)


@pytest.mark.parametrize("optimizer", ["adamw", "muon_adamw"])
def test_no_part_of_a_training_step_waits_for_the_device(tmp_path, optimizer):
    run = trainer(tmp_path, optimizer=optimizer)
    for _ in range(3):
        run.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            run.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_blocks_train_as_eager_ones_up_to_rounding(tmp_path, mode):
    runs = [trainer(tmp_path, compile=value) for value in ("off", mode)]
    losses = []
    for run in runs:
        for _ in range(10):
            run.train_step()
        losses.append(run.totals[LOSSES.index("loss") + 1 + len(HALTED_METRICS)] / 10)
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mode", ["off", "default", "reduce-overhead"])
def test_training_goes_on_after_an_evaluation_as_if_there_had_been_none(tmp_path, mode):
    values = {"compile": mode, "gradient_scope": "last_updates", "ema": 0.9}
    plain, watched = (trainer(tmp_path / name, puzzles(32), **values) for name in ("a", "b"))
    for run in (plain, watched):
        for step in range(6):
            run.train_step()
            if run is watched and step == 2:
                assert run.evaluate()["n"] == 32
    for a, b in zip(plain.model.parameters(), watched.model.parameters()):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("heads", [4, 16])  # of 32 and of 8 numbers
@pytest.mark.parametrize("mode", ["off", "default"])
def test_heads_that_see_a_row_or_a_box_train_as_on_the_cpu(tmp_path, heads, mode):
    values = {"head_relations": ["row", "column", "box", "all"], "position_embedding": "rope2d", "batch_size": 16}
    values |= {"num_attention_heads": heads, "prefix_length": 1, "mixed_precision": "no"}
    run = trainer(tmp_path, compile=mode, **values)
    inputs, labels = (torch.from_numpy(part[:16]).long() for part in (puzzles().inputs, puzzles().labels))
    twin = AirModel(run.config)
    twin.load_state_dict({name: value.cpu() for name, value in run.model.state_dict().items()})
    losses = [
        model(inputs.to(place), labels=labels.to(place)).loss for model, place in ((run.model, "cuda"), (twin, "cpu"))
    ]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0].cpu(), losses[1], rtol=1e-3, atol=1e-3)
    for a, b in zip(run.model.parameters(), twin.parameters()):
        if b.grad is not None:
            torch.testing.assert_close(a.grad.cpu(), b.grad, rtol=2e-2, atol=1e-3)
    trainer(tmp_path, compile=mode, **{**values, "mixed_precision": "bf16"}).train_step()


def test_states_are_bfloat16_and_weights_float32(tmp_path):
    run = trainer(tmp_path)
    run.train_step()
    assert run.slots.carry.z_h.dtype == torch.bfloat16
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_the_loss_falls_and_the_peak_memory_does_not_grow_with_the_cycles(tmp_path):
    peaks = []
    for cycles in (1, 6):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run = trainer(tmp_path, h_cycles=cycles, l_cycles=2)
        losses = []
        for _ in range(30):
            run.train_step()
            losses.append(run.totals[1 + len(HALTED_METRICS)].item())
            run.totals.zero_()
        assert losses[-1] < losses[0]
        peaks.append(torch.cuda.max_memory_allocated())
        del run
    assert peaks[1] < 1.1 * peaks[0]
