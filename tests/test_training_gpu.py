"""What only a GPU can show of training: nothing waits for it, compiled blocks agree, memory stays, the loss falls."""

import numpy as np
import pytest
import torch

from air_model import train_accelerate as ta
from air_model import training_air as parts
from air_model.datasets_builders import PuzzleSet
from air_model.processing_air import make_task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
TASK = make_task("sudoku", 9)


def puzzles(n: int = 64) -> PuzzleSet:
    rng = np.random.default_rng(0)
    rows = [[(r % 3 * 3 + r // 3 + c) % 9 + 2 for c in range(9)] for r in range(9)]
    labels = TASK.random_symmetries(rng, n).apply(np.tile(np.array(rows, np.uint8).reshape(1, -1), (n, 1)))
    return PuzzleSet(np.where(rng.random(labels.shape) < 0.5, 1, labels).astype(np.uint8), labels, TASK)


def trainer(tmp_path, **values) -> ta.Trainer:
    base = {
        "data": "given", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "batch_size": 64,
        "max_steps": 200, "warmup_steps": 10, "lr": 1e-3, "trackers": "none", "compile": "off", "ema": 0.99,
        "optimizer": "adamw", "weight_decay": 0.0, "easier_share": 0.5,
    }  # fmt: skip
    return ta.Trainer(parts.make_recipe({**base, **values}), tmp_path, puzzles(), None)


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
        losses.append(run.totals[parts.LOSSES.index("loss") + 1 + len(parts.HALTED_METRICS)] / 10)
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-2, atol=2e-2)


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
            losses.append(run.totals[1 + len(parts.HALTED_METRICS)].item())
            run.totals.zero_()
        assert losses[-1] < losses[0]
        peaks.append(torch.cuda.max_memory_allocated())
        del run
    assert peaks[1] < 1.1 * peaks[0]
