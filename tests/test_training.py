"""The training loop: recipes, fresh puzzles, slots, checkpoints, resuming, and what happens when things go wrong."""

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, needs_shared, own_process, tiny_model
from safetensors.torch import load_file

from air_model import AirConfig, AirModel
from air_model import train_accelerate as ta
from air_model.datasets_builders import PuzzleSet, load_puzzles
from air_model.optim_air import adam_atan2
from air_model.processing_air import make_task
from air_model.records import (
    all_seconds,
    append_runs_to,
    command_line,
    earlier_runs,
    model_name,
    source_state,
    whole_folder,
)
from air_model.training import checkpoints
from air_model.training import run as whole
from air_model.training import trainer as loop
from air_model.training.batches import (
    Puzzles,
    PuzzleSampler,
    exploration,
    misled,
    seeded,
    slots_to_refill,
    uniforms,
)
from air_model.training.checkpoints import CheckpointStore, _hash, read_state
from air_model.training.cost import compile_mode, onednn_linear, training_flops, training_passes
from air_model.training.journal import lasting_id
from air_model.training.launch import TAKEN, RunError, alone_in, refuse_lonely_process
from air_model.training.miniature import miniature_data
from air_model.training.recipe import RECIPES, make_recipe, model_config, read_recipe
from air_model.training.stages import read_stages
from air_model.training.start import widened
from air_model.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_ends")
SUDOKU = make_task("sudoku", 4)
TINY = {
    "task": "sudoku", "grid_height": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "halt_max_steps": 4, "halt_exploration_prob": 0.5, "warmup_steps": 3, "lr": 1e-2,
    "batch_size": 8, "max_steps": 12, "log_every": 2, "save_every": 4, "eval_every": 6, "eval_limit": 8, "ema": 0.9,
    "easier_share": 0.3, "trackers": "none", "mixed_precision": "no",
}  # fmt: skip


def sudokus(n: int, seed: int = 0) -> PuzzleSet:
    """n random 4 x 4 puzzles with about half of the cells given (more than one solution is fine here)."""
    rng = np.random.default_rng(seed)
    solved = np.tile(SUDOKU.encode("1234341221434321"), (n, 1))
    labels = SUDOKU.random_symmetries(rng, n).apply(solved)
    return PuzzleSet(np.where(rng.random(labels.shape) < 0.5, 1, labels).astype(np.uint8), labels, SUDOKU)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with train.csv (24 puzzles) and test.csv (10)."""
    folder = tmp_path_factory.mktemp("data")
    for split, n in (("train", 24), ("test", 10)):
        puzzles = sudokus(n, seed=n)
        rows = [f"{SUDOKU.decode(a)},{SUDOKU.decode(b)}" for a, b in zip(puzzles.inputs, puzzles.labels)]
        (folder / f"{split}.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    return folder


def train(folder: Path, data: Path, name: str, /, *arguments: str, **values) -> int:
    """Writes a recipe file; runs main on it and gives its exit status."""
    path = folder / "tiny.yaml"
    lines = {"data": str(data), **TINY, **values}
    path.write_text("\n".join(f"{k}: {json.dumps(v)}" for k, v in lines.items()))
    return ta.main(["--recipe", str(path), "--output-dir", str(folder / name), *arguments])


@pytest.fixture
def recipe(tmp_path, data):
    """`train` in the test's own folder."""
    run = functools.partial(train, tmp_path, data)
    run.data = data
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data) -> Path:
    """The folder of a whole run of TINY, to look at or to copy."""
    folder = tmp_path_factory.mktemp("finished")
    assert train(folder, data, "run") == 0
    return folder / "run"


def trainer(tmp_path: Path, **values) -> Trainer:
    recipe = make_recipe({"data": "given", **TINY, **values})
    return Trainer(recipe, tmp_path, sudokus(24), sudokus(10, 1))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model_last" / "model.safetensors")


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest relative distance of a tensor, as a norm: Adam makes whole steps of gradients that are rounding.

    Some steps move every tensor by 0.05 of its norm or more; wrong gradients would end that far away. Compare models
    without q_continue: with it, fresh puzzles halt or not by the rounding of two equal numbers.
    """
    return max(float((a[n] - b[n]).detach().norm() / b[n].detach().norm().clamp_min(1e-12)) for n in b)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- recipes


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_every_recipe_is_valid_and_names_the_keys_that_users_override(name):
    import yaml

    keys = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    wanted = {"max_steps", "batch_size", "seed", "save_every", "eval_every", "log_every", "variant", "data"}
    assert wanted <= keys.keys()
    recipe = read_recipe(name)
    model_config(recipe, make_task(recipe.model["task"], recipe.model.get("grid_height")))


@pytest.mark.parametrize(
    "override, message",
    [
        ("batchsize=3", "'batch_size'"),
        ("learning_rate=1", "'lr'"),
        ("epochs=.inf", "finite"),
        ("hiden_size=3", "'hidden_size'"),
        ("lerning_rate=1", "'lr'"),
        ("H_cycles=1", "'h_cycles'"),
        ("save_steps=1", "'save_every'"),
        ("lr=fast", "expected float"),
        ("hidden_size=4.5", "expected int"),
        ("batch_size=0", "1 or more"),
        ("optimizer=sgd", "adam_atan2"),
        ("variant=LxH", "'Lx_H'"),
        ("seed", "key=value"),
        ("easier_share=2", "between 0 and 1"),
        ("easier_most=-1", "between 0 and 1"),
        ("start_step=3", "needs init_from"),
        ("train_act_steps=0", "1 or more"),
        ("mixed_precision=fp16", "bf16"),
        ("data=@foo", "as YAML"),
        ("head_relations=[row", "as YAML"),
        ("compile=bogus", "max-autotune"),
        ("beta1=2", "below 1"),
        ("seed=9223372036854775808", "below 2"),
        ("lr=nan", "a number"),
        ("grad_clip=-1", "0 or more"),
        ("train_size=-5", "1 or more"),
        ("max_minutes=-1", "0 or more"),
        ("head_relations=row", "expected list"),
        ("eval_batch_size=-4", "0 or more"),
        ("tail_share=nan", "between 0 and 1"),
        ("atan2_scale=-1", "0 or more"),
        ("variant=[a]", "variant"),
        ("run_name=../x", "names a folder of logs"),
    ],
)
def test_a_wrong_override_is_refused_with_what_to_write_instead(override, message):
    with pytest.raises(ValueError, match=message):
        read_recipe("sudoku_extreme", [override])


def test_values_are_read_as_yaml_and_as_what_their_field_is():
    values = ["lr=1e-3", "hidden_size=64.0", "compile=off", "mixed_precision=no", "activation_dtype=bfloat16"]
    values += ["train_size=null", "head_relations=[row, all]"]
    recipe = read_recipe("sudoku_extreme", values)
    assert recipe.model["head_relations"] == ["row", "all"]
    assert (recipe.train.lr, recipe.train.compile, recipe.train.mixed_precision) == (1e-3, "off", "no")
    assert recipe.model["hidden_size"] == 64 and recipe.model["activation_dtype"] == "bfloat16"
    assert recipe.train.train_size is None


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match="sudoku_extreme"):
        read_recipe("sudoku_extrem")


def test_the_published_protocol_is_26040_steps_and_epochs_may_replace_them():
    recipe = read_recipe("sudoku_extreme")
    assert (recipe.train.steps(1000), recipe.train.batch_size, recipe.train.lr_min_ratio) == (26040, 768, 1.0)
    epochs = read_recipe("sudoku_extreme", ["epochs=20000"]).train
    assert epochs.max_steps is None and epochs.steps(1000) == 26041


@pytest.mark.parametrize(
    ("values", "name"),
    [({"q_continue": False}, "Lx_H"), ({"variant": "TRM"}, "TRM"), ({"h_injection": 1}, "Lx_Hx"),
     ({"variant": "TRM", "h_injection": 1}, "Lx_Hx"), ({"h_injection": 0.5}, None)],
)  # fmt: skip
def test_a_run_is_recorded_under_the_variant_whose_injections_it_has(tmp_path, values, name):
    run = Trainer(make_recipe(TINY | {"data": "x"} | values), tmp_path, sudokus(8), None)
    assert run.report("running")["variant"] == name


def test_a_variant_on_the_command_line_brings_its_whole_row():
    recipe = read_recipe("sudoku_extreme", ["variant=TRM_mlp"])
    config = model_config(recipe, make_task("sudoku"))
    assert (config.h_cycles, config.l_cycles, config.num_hidden_layers, config.token_mixer) == (3, 6, 2, "mlp")
    assert (
        model_config(read_recipe("sudoku_extreme", ["variant=TRM", "h_cycles=1"]), make_task("sudoku")).h_cycles == 1
    )


def test_a_recipe_whose_grid_is_not_that_of_the_data_is_refused():
    with pytest.raises(ValueError, match="grid_height=9"):
        model_config(make_recipe({"max_steps": 1, "grid_height": 9}), SUDOKU)


def test_the_arithmetic_of_the_published_step_is_28_teraflop():
    config = model_config(read_recipe("sudoku_extreme"), make_task("sudoku"))
    assert training_passes(config) == 16
    assert training_flops(config, 768) == pytest.approx(28.1e12, rel=0.01)


def test_a_generic_grid_trains_on_tokens_and_no_rules_are_claimed(recipe, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    labels = np.random.default_rng(0).integers(2, 5, (12, 6))
    table = pa.table({"inputs": (np.arange(6) % 2 * (labels - 1) + 1).tolist(), "labels": labels.tolist()})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-0.parquet")
    values = {"data": str(tmp_path), "task": "grid", "grid_height": 2, "grid_width": 3, "max_steps": 1}
    assert recipe("run", **values) == 1  # no vocab_size
    assert recipe("run", **values, vocab_size=5) == 0
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {*report["metrics"]["eval"]} == {"n", "exact_accuracy", "cell_accuracy"}


# ---- fresh puzzles


def test_an_epoch_draws_every_base_puzzle_once():
    sampler = PuzzleSampler(sudokus(24), 8, seed=0)
    for epoch in range(3):
        drawn = torch.cat([sampler.indices(3 * epoch + k) for k in (1, 2, 3)])
        assert sorted(drawn.tolist()) == list(range(24))


def test_processes_share_the_global_batch():
    whole = PuzzleSampler(sudokus(24), 8, seed=3, easier_share=0.5)
    halves = [PuzzleSampler(sudokus(24), 8, seed=3, easier_share=0.5, rank=r, world=2) for r in (0, 1)]
    for step in (1, 5, 4):
        for field in Puzzles._fields:
            shares = torch.cat([getattr(half.draw(step), field) for half in halves])
            assert torch.equal(getattr(whole.draw(step), field), shares)


@pytest.mark.parametrize("size", [4, 6, 9])
def test_sudoku_copies_are_puzzles_with_their_own_solutions(size):
    task = make_task("sudoku", size)
    h, w = task.box_height, task.box_width
    row = lambda r: [(r % h * w + r // h + c) % size for c in range(size)]  # noqa: E731
    labels = np.tile(np.array([row(r) for r in range(size)], np.uint8).reshape(1, -1) + 2, (5, 1))
    inputs = np.where(np.random.default_rng(0).random(labels.shape) < 0.5, 1, labels).astype(np.uint8)
    batch = PuzzleSampler(PuzzleSet(inputs, labels, task), 40, seed=0).draw(1)
    assert task.verdicts(batch.inputs.numpy().astype(np.uint8), batch.labels.numpy().astype(np.uint8)).valid.all()
    assert len({tuple(r) for r in batch.labels.tolist()}) > 30


def test_easier_copies_show_some_but_not_all_of_the_blanks():
    puzzles = sudokus(24)
    batch = PuzzleSampler(puzzles, 240, seed=0, augment="none", easier_share=1.0).draw(1)
    index = PuzzleSampler(puzzles, 240, seed=0, augment="none").indices(1)
    before, after = torch.from_numpy(puzzles.inputs)[index] == 1, batch.inputs == 1
    filled = (before & ~after).sum(1)
    assert not (after & ~before).any() and (filled >= 1).all() and (filled < before.sum(1)).all()
    assert len(filled.unique()) > 4
    assert (batch.inputs == batch.labels)[~after].all()


def test_easier_copies_leave_the_only_open_cell_open():
    puzzles = sudokus(2)
    inputs = puzzles.labels.copy()
    inputs[:, 5] = 1
    batch = PuzzleSampler(PuzzleSet(inputs, puzzles.labels, SUDOKU), 16, seed=0, easier_share=1.0).draw(1)
    assert (batch.inputs == 1).sum(1).tolist() == [1] * 16


def test_a_run_without_evaluation_data_ships_its_last_weights_when_it_goes_on(recipe, tmp_path):
    data = str(miniature_data("sudoku", tmp_path / "data") / "train.csv")
    assert recipe("run", data=data, eval_data=None, max_steps=2) == 0
    assert recipe("run", "--resume", data=data, eval_data=None, max_steps=4) == 0
    best, last = (load_file(tmp_path / "run" / name / "model.safetensors") for name in ("model", "model_last"))
    assert same(best, last)


def test_start_step_counts_on_where_an_earlier_machine_stopped(tmp_path, recipe):
    assert recipe("first", max_steps=4, eval_every=0) == 0
    source = str(tmp_path / "first" / "model_last")
    assert recipe("second", init_from=source, start_step=4, max_steps=10, log_every=1, eval_every=0) == 0
    record = json.loads((tmp_path / "second" / "run.json").read_text())
    assert record["steps"] == 10 and record["earlier_runs"][0]["steps"] == 4
    logged = [json.loads(line)["step"] for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert min(logged) == 5


def test_the_record_of_a_running_training_says_how_far_its_checkpoints_are(tmp_path, recipe, monkeypatch):
    written = []
    real = Trainer.write_progress
    monkeypatch.setattr(Trainer, "write_progress", lambda self: (real(self), written.append(
        json.loads((self.output_dir / "run.json").read_text()))))  # fmt: skip
    assert recipe("run", max_steps=10, save_every=4) == 0
    assert [(record["status"], record["steps"]) for record in written] == [("running", 4), ("running", 8)]
    assert all(record["wall_seconds"] > 0 for record in written)


def test_easier_most_keeps_easier_copies_near_the_hard_ones():
    puzzles = sudokus(24)
    settings = {"seed": 0, "augment": "none", "easier_share": 1.0}
    every = PuzzleSampler(puzzles, 240, **settings).draw(1).inputs
    near = PuzzleSampler(puzzles, 240, **settings, easier_most=0.25).draw(1).inputs
    index = PuzzleSampler(puzzles, 240, seed=0, augment="none").indices(1)
    blanks = (torch.from_numpy(puzzles.inputs)[index] == 1).sum(1)
    shown = blanks - (near == 1).sum(1)
    assert (shown >= 1).all() and (shown <= (0.25 * (blanks - 1)).floor().clamp(min=1)).all()
    assert (shown < blanks - (every == 1).sum(1)).any() and len(shown.unique()) > 1


def test_easier_mazes_show_some_but_not_all_of_the_path():
    task = make_task("maze", 6)
    rng = np.random.default_rng(0)
    inputs = np.full((40, 6, 6), 2, np.uint8)
    inputs[np.arange(40), rng.integers(1, 5, 40), rng.integers(0, 6, 40)] = 1  # one wall: a way round it remains
    inputs[:, 0, 0], inputs[:, 5, 5] = 3, 4
    inputs = inputs.reshape(40, 36)
    puzzles = PuzzleSet(inputs, task.label(inputs), task)
    batch = PuzzleSampler(puzzles, 60, seed=0, augment="none", easier_share=1.0).draw(1)
    shown, path = (batch.inputs == 5), (batch.labels == 5)
    assert (shown.sum(1) >= 1).all() and (shown.sum(1) < path.sum(1)).all()
    assert not (shown & ~path).any() and len(shown.sum(1).unique()) > 3


def test_maze_copies_are_labelled_by_the_benchmarks_rule():
    task = make_task("maze", 6)
    rng, mazes = np.random.default_rng(0), []
    while len(mazes) < 4:
        maze = np.where(rng.random(36) < 0.25, 1, 2).astype(np.uint8)
        maze[rng.choice(36, 2, replace=False)] = 3, 4
        with np.errstate(all="ignore"):
            try:
                task.label(maze)
            except ValueError:
                continue
        mazes.append(maze)
    inputs = np.stack(mazes)
    batch = PuzzleSampler(PuzzleSet(inputs, task.label(inputs), task), 32, seed=0).draw(1)
    assert np.array_equal(task.label(batch.inputs.numpy().astype(np.uint8)), batch.labels.numpy())
    assert len({tuple(r) for r in batch.inputs.tolist()}) > 8


def test_stored_copies_of_a_puzzle_count_as_one_base_puzzle():
    puzzles = sudokus(24)
    puzzles.groups = np.arange(24, dtype=np.int32) // 6
    sampler = PuzzleSampler(puzzles, 4, seed=0, augment="none")
    assert sampler.num_puzzles == 4
    seen = {tuple(row) for step in range(1, 60) for row in sampler.draw(step).inputs.tolist()}
    assert len(seen) == len({tuple(row) for row in puzzles.inputs.tolist()})


# ---- the loop


def test_fifty_steps_equal_a_plain_restatement_of_the_specification(tmp_path):
    """The public code's rule, slot by slot with Python lists and ifs, on the same random numbers."""
    run = trainer(tmp_path, max_steps=50, ema=0.0)
    torch.manual_seed(0)
    model = AirModel(run.config).train()
    adam = adam_atan2(
        [p for n, p in model.named_parameters() if "puzzle" not in n], lr=1.0, betas=(0.9, 0.95), weight_decay=1.0
    )
    slots = [None] * 8
    finished = 0
    for step in range(1, 51):
        fresh = run.sampler.draw(step)
        u = torch.rand(2, 8, generator=seeded(torch.Generator(), 0, 3, step))
        for i in range(8):
            if slots[i] is None:
                start = model.initial_carry(1)
                slots[i] = {"x": fresh.inputs[i], "y": fresh.labels[i], "h": start.z_h, "l": start.z_l, "steps": 0}
        carry = model.initial_carry(8)
        carry.z_h, carry.z_l = (torch.cat([s[k] for s in slots]) for k in "hl")
        carry.steps = torch.tensor([s["steps"] for s in slots], dtype=torch.int32)
        out = model(torch.stack([s["x"] for s in slots]), None, torch.stack([s["y"] for s in slots]), carry)
        out.loss.backward()
        lr = 1e-2 * min(1.0, step / 3)
        adam.param_groups[0]["lr"] = lr
        adam.step()
        table = model.puzzle_embedding.weight
        with torch.no_grad():
            table.mul_(1 - 1e-4 * min(1.0, step / 3)).sub_(1e-4 * min(1.0, step / 3) * table.grad.sign())
        model.zero_grad()
        for i, slot in enumerate(slots):
            slot["h"], slot["l"], slot["steps"] = out.carry.z_h[i : i + 1], out.carry.z_l[i : i + 1], slot["steps"] + 1
            stop = slot["steps"] >= 4
            if out.q_halt_logits[i] > out.q_continue_logits[i]:
                least = 2 + int(u[1, i] * 3) if u[0, i] < 0.5 else 0
                stop = stop or slot["steps"] >= least
            if stop:
                slots[i] = None
                finished += 1
    for _ in range(50):
        run.train_step()
    assert int(run.totals[0]) == finished
    for name, ours in run.model.named_parameters():
        torch.testing.assert_close(ours, dict(model.named_parameters())[name], rtol=1e-5, atol=1e-6, msg=name)


def test_accumulation_gives_the_weights_of_the_large_batch(tmp_path):
    runs = [trainer(tmp_path, accumulation=n, q_continue=False) for n in (1, 4)]
    for run in runs:
        for _ in range(6):
            run.train_step()
    assert apart(*(dict(run.model.named_parameters()) for run in runs)) < 1e-3
    torch.testing.assert_close(runs[0].totals, runs[1].totals, rtol=1e-4, atol=1e-4)


def test_fewer_act_steps_let_slots_leave_sooner(tmp_path):
    run = trainer(tmp_path, train_act_steps=3, halt_exploration_prob=0.0, q_continue=False)
    halted = []
    for _ in range(6):
        run.train_step()
        halted.append(bool(run.slots.halted.all()))
    assert halted == [False, False, True, False, False, True]


def test_bf16_on_a_cpu_keeps_float32_weights_and_bfloat16_states(tmp_path):
    run = trainer(tmp_path, mixed_precision="bf16")
    run.train_step()
    assert run.slots.carry.z_h.dtype == torch.bfloat16 and run.model.lm_head.weight.dtype == torch.float32
    assert torch.isfinite(run.totals).all()


def test_exploration_draws_from_two_to_the_last_step():
    drawn = exploration(torch.Generator(), 0, 1, 4000, 0.5, 16)
    assert set(drawn.tolist()) == {0, *range(2, 17)}
    assert 0.45 < (drawn == 0).float().mean() < 0.55


def test_a_slot_halts_at_the_last_step_or_when_it_wants_to_and_may():
    steps, least = torch.tensor([4, 1, 1, 2, 2]), torch.tensor([0, 0, 2, 2, 0])
    q_halt, q_continue = torch.tensor([-9.0, 1, 1, 1, -1]), torch.zeros(5)
    assert slots_to_refill(steps, q_halt, q_continue, least, 4).tolist() == [True, True, False, True, False]
    assert slots_to_refill(steps, q_halt, None, least, 4).tolist() == [True, True, False, True, False]


def test_a_cpu_compiles_long_runs_only_and_does_what_the_recipe_says_otherwise():
    assert [compile_mode("auto", "cpu", work) for work in (1e12, 1e15)] == ["off", "default"]
    assert (compile_mode("auto", "cuda", 1e9), compile_mode("auto", "mps", 1e18)) == ("default", "off")
    assert (compile_mode("off", "cuda", 1e18), compile_mode("default", "cpu", 1)) == ("off", "default")


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")


@needs_onednn
@pytest.mark.parametrize("width", [5, 256])
def test_onednns_product_has_the_values_and_gradients_of_torchs(width):
    torch.manual_seed(0)
    h, weight = torch.randn(2, 3, width, requires_grad=True), torch.randn(width + 1, width, requires_grad=True)
    for ours, plain in zip(*(
        (out := product(h, weight), *torch.autograd.grad((out**2).sum(), (h, weight)))
        for product in (onednn_linear, torch.nn.functional.linear)
    )):  # fmt: skip
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-2)


@needs_onednn
def test_training_with_onednns_products_equals_training_with_torchs_within_rounding(tmp_path, monkeypatch):
    runs = []
    for slow in (False, True):
        monkeypatch.setattr(loop, "slow_products", lambda slow=slow: slow)
        runs.append(trainer(tmp_path, hidden_size=64, intermediate_size=64, lr=1e-3))
        for _ in range(5):
            runs[-1].train_step()
    products = [module.product for module in runs[1].model.modules() if hasattr(module, "product")]
    assert products.count(onednn_linear) == 4  # of the block; the head has too few outputs
    assert not any(module.__dict__.get("product") for module in runs[0].model.modules())
    for a, b in zip(*(run.model.parameters() for run in runs)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_training_equals_eager_training_within_rounding(tmp_path):
    runs = [trainer(tmp_path, compile=mode) for mode in ("off", "default")]
    for run in runs:
        for _ in range(5):
            run.train_step()
    assert runs[1].stacks
    for a, b in zip(*(run.model.parameters() for run in runs)):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_training_in_bfloat16_goes_on_after_an_evaluation_as_if_there_had_been_none(tmp_path):
    # torch 2.11 would run the evaluation's graph, of bfloat16 weights, on the float32 weights of the next step.
    values = {"compile": "default", "mixed_precision": "bf16", "q_continue": True, "gradient_scope": "last_updates"}
    plain, watched = trainer(tmp_path / "a", **values), trainer(tmp_path / "b", **values)
    for run in (plain, watched):
        for step in range(4):
            run.train_step()
            if run is watched and step == 1:
                assert run.evaluate()["n"] == 8
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), watched.model.parameters()))


@pytest.mark.parametrize(
    "values",
    [
        {"position_embedding": "rope2d", "head_relations": ["row", "all"], "cell_embedding": True},
        {"position_embedding": "learned", "shared_block": False, "input_operator": "tanh_linear"},
        {"level_token": "prepend_keep", "position_embedding": "rope"},
        {"qk_norm": True},
        {"token_mixer": "mlp", "position_embedding": "none", "level_token": "add"},
    ],
)
def test_a_widened_model_computes_what_the_narrow_one_did(tmp_path, values):
    narrow = trainer(tmp_path, **values).model
    with torch.no_grad():
        for parameter in narrow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    wide = trainer(tmp_path, **values, hidden_size=32, intermediate_size=64).model
    weights = widened(narrow, noise=0.0)
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in wide.state_dict().items()}
    wide.load_state_dict(weights)
    inputs = torch.from_numpy(sudokus(4).inputs).long()
    old, new = (model.solve(inputs, max_act_steps=2) for model in (narrow, wide))
    torch.testing.assert_close(old.logits, new.logits, rtol=1e-3, atol=1e-3)
    assert (narrow.lm_head.weight[:, 0] / wide.lm_head.weight[:, 0]).std() > 0.1  # shared out unevenly


def test_a_run_may_start_from_a_model_of_half_its_width(recipe, tmp_path, capsys):
    assert recipe("narrow", max_steps=2) == 0
    source = str(tmp_path / "narrow" / "model_last")
    assert recipe("wide", init_from=source, hidden_size=32, intermediate_size=64, max_steps=2) == 0
    assert "widened from 16 to 32" in capsys.readouterr().err
    assert recipe("wider", init_from=source, hidden_size=64, intermediate_size=128, max_steps=2) == 1
    assert "twice its hidden_size" in capsys.readouterr().err


# ---- a run and its files


def test_a_run_writes_its_record_curve_and_a_model_that_loads_elsewhere(recipe, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert recipe("run", "--append-runs", str(tmp_path / "runs.jsonl")) == 0
    folder = tmp_path / "run"
    report = json.loads((folder / "run.json").read_text())
    assert report["status"] == "finished" and report["steps"] == 12 and report["config"]["batch_size"] == 8
    assert {"commit", "versions", "hardware", "wall_seconds", "puzzles_per_second", "tflops"} <= report.keys()
    assert min(report["tflops_of_large_matmul"], report["tflops"]) > 0
    shared = (tmp_path / "runs.jsonl").read_text()
    assert json.loads(shared)["name"] == "run" and str(tmp_path.parent) not in shared
    assert (folder / "curve.png").stat().st_size > 1000
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 6, 8, 10, 12, 12]
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"checkpoint_8", "checkpoint_12"}  # total_limit 2
    for name in ("model", "model_last"):
        assert {"config.json", "model.safetensors", "processor_config.json"} <= {
            p.name for p in (folder / name).iterdir()
        }
    model = AirModel.from_pretrained(folder / "model")
    assert torch.isfinite(model(torch.from_numpy(sudokus(2).inputs)).logits).all()


def test_a_second_run_into_the_same_folder_is_refused(recipe, tmp_path, capsys):
    assert recipe("run", max_steps=2) == 0
    assert recipe("run", max_steps=2) == 1
    assert "--resume" in capsys.readouterr().err
    assert recipe("run", "--overwrite", max_steps=2) == 0


def test_one_csv_without_evaluation_data_trains_and_says_so(recipe, tmp_path, data, capsys):
    assert recipe("run", max_steps=2, data=str(data / "train.csv")) == 0
    assert "eval_data" in capsys.readouterr().err
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_final_evaluation_on_all_puzzles_leaves_the_last_model_a_candidate_for_the_best(tmp_path):
    run = trainer(tmp_path, eval_limit=4, final_eval_limit=0)
    run.best = {"step": 6, "n": 4, "exact_accuracy": 0.0}
    run.step = 12
    assert run.evaluate(final=True)["n"] == 10
    assert (run.best["step"], run.best["n"]) == (12, 4) and (tmp_path / "model").is_dir()


def test_a_run_that_goes_on_from_a_model_counts_the_time_of_the_runs_before_it(tmp_path):
    for name, source, seconds in (("a", "", 5.0), ("b", "a", 7.0)):
        (tmp_path / name / "model").mkdir(parents=True)
        earlier = earlier_runs(str(tmp_path / source / "model") if source else "")
        run = {"name": name, "steps": 3, "wall_seconds": seconds, "earlier_runs": earlier}
        (tmp_path / name / "run.json").write_text(json.dumps(run))
    run = {"wall_seconds": 1.0, "earlier_runs": earlier_runs(str(tmp_path / "b" / "model"))}
    assert [part["name"] for part in run["earlier_runs"]] == ["a", "b"] and all_seconds(run) == 13.0
    (tmp_path / "b" / "run.json").write_text('{"name": ')
    assert earlier_runs(str(tmp_path / "b" / "model")) == []  # half a record costs no run


def test_missing_data_is_one_sentence(recipe, capsys):
    assert recipe("run", data="no/such/folder/here") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "no/such/folder/here" in error


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_a_smoke_run_needs_neither_data_nor_network(tmp_path, name):
    arguments = ["--recipe", name, "--output-dir", str(tmp_path / "run"), "--smoke", "max_steps=2"]
    assert ta.main(arguments) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("path", sorted((RECIPES / "shipped").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_stage_of_a_shipped_recipe_has_a_miniature(tmp_path, path):
    stages = read_stages(path, {})
    small = [ta.smoke_recipe(stage.recipe, set(), tmp_path) for stage in stages]
    assert stages and {recipe.model["hidden_size"] for recipe in small} == {32}


def test_a_run_that_cannot_begin_says_why(tmp_path, capsys):
    (tmp_path / "file").touch()
    for words, says in (
        (["--smoke", "task=foo", "--output-dir", str(tmp_path / "run")], "No miniature data for task=foo"),
        (["--smoke", "--output-dir", str(tmp_path / "file")], "file is a file, not a folder"),
        (["--smoke", "--output-dir", str(tmp_path / "file" / "run")], "file is a file, not a folder"),
    ):
        assert ta.main(["--recipe", "quickstart", *words]) == 1
        assert says in capsys.readouterr().err
        assert not (tmp_path / "run" / "run.json").exists()


def test_a_smoke_run_of_another_task_may_overwrite_one(tmp_path):
    for name in ("quickstart", "maze_small"):
        words = ["--recipe", name, "--output-dir", str(tmp_path), "--smoke", "--overwrite", "max_steps=1"]
        assert ta.main(words) == 0


# ---- never lose a run


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own code gets to clean up."""


@pytest.mark.parametrize("point", ["between steps", "before the rename", "half a file", "before the old one goes"])
def test_a_run_killed_at_any_point_resumes_to_the_same_bits(recipe, finished, tmp_path, monkeypatch, point):
    step, finish, save, replace = Trainer.train_step, CheckpointStore.finish, checkpoints.save_tensors, os.replace

    def step_then_die(self):
        if self.step == 7:
            raise Killed
        step(self)

    def die_before_rename(self, temporary, number):
        if number == 8:
            raise Killed
        return finish(self, temporary, number)

    def die_in_a_file(tensors, path):
        if path.name == "optimizer.safetensors" and ".checkpoint_8" in str(path):
            path.write_bytes(b"half")
            raise Killed
        save(tensors, path)

    def die_before_deleting(source, target):
        replace(source, target)
        if str(target).endswith(".checkpoint_4.old"):
            raise Killed

    with monkeypatch.context() as patch:
        if point == "between steps":
            patch.setattr(Trainer, "train_step", step_then_die)
        elif point == "before the rename":
            patch.setattr(CheckpointStore, "finish", die_before_rename)
        elif point == "half a file":
            patch.setattr(checkpoints, "save_tensors", die_in_a_file)
        else:
            patch.setattr(os, "replace", die_before_deleting)
        with pytest.raises(Killed):
            recipe("killed")
    assert recipe("killed", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "killed"))
    lines = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (finished, tmp_path / "killed")
    ]
    unclocked = [[{k: v for k, v in row.items() if "per_second" not in k} for row in rows] for rows in lines]
    assert unclocked[0] == unclocked[1]
    assert {p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()} == {"checkpoint_8", "checkpoint_12"}


@pytest.mark.parametrize(
    "values", [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"optimizer": "muon_adamw", "corrupted_share": 0.5}]
)
def test_every_optimizer_and_puzzles_begun_wrong_resume_to_the_same_bits(recipe, tmp_path, values, monkeypatch):
    assert recipe("whole", **values, max_steps=6, eval_every=0) == 0
    step = Trainer.train_step

    def step_then_die(self):
        if self.step == 5:
            raise Killed
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_then_die)
        with pytest.raises(Killed):
            recipe("killed", **values, max_steps=6, eval_every=0)
    assert recipe("killed", "--resume", **values, max_steps=6, eval_every=0) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_a_share_of_fresh_puzzles_begins_with_an_answer_that_has_the_clues_and_wrong_cells():
    model, n = tiny_model(puzzle_embedding_size=0), 400
    labels = torch.from_numpy(SUDOKU.encode("1234341221434321")).long().expand(n, -1)
    inputs = torch.where(torch.arange(16) % 2 == 1, labels, 1)
    uniform = uniforms(torch.Generator().manual_seed(0), n, slice(None))
    start = model.initial_carry(n)
    with torch.no_grad():
        found = misled(model, start, Puzzles(inputs, labels, labels[:, 0]), uniform, 0.5)
        told = (found.z_h - start.z_h)[:, -16:] / model.config.hidden_size**0.5
        answers = torch.cdist(told, model.embed_tokens.weight).argmin(-1)
    begun = told.flatten(1).any(1)
    assert 0.4 < begun.float().mean() < 0.6 and torch.equal(found.z_l, start.z_l)
    wrong = (answers != labels)[begun]
    assert not wrong[:, (inputs[0] > 1)].any(), "clues stay"
    assert wrong.any(0)[inputs[0] < 2].all() and answers[begun].min() >= 2
    assert 0 < (wrong.sum(1) == 0).float().mean() < 0.5 and wrong.sum(1).max() > 4, "from nothing to nearly all"


def test_answers_to_begin_with_are_for_sudokus(tmp_path):
    task = make_task("maze", 4)
    maze = task.encode("S...............").reshape(1, -1)
    maze[0, -1] = task.GOAL
    mazes = PuzzleSet(maze, task.label(maze), task)
    recipe = make_recipe({"data": "given", **TINY, "task": "maze", "corrupted_share": 0.5})
    with pytest.raises(RunError, match="corrupted_share=0.5 is for Sudokus"):
        Trainer(recipe, tmp_path, mazes, mazes)


def command(tmp_path: Path, name: str, *arguments: str) -> list[str]:
    script = [str(ROOT / "train_accelerate.py"), "--recipe", str(tmp_path / "tiny.yaml")]
    return [*script, "--output-dir", str(tmp_path / name), *arguments]


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def train_and_hang(arguments: list[str]) -> None:
    """Trains, and gets nowhere after 40 steps: a slow watcher never finds it finished."""
    step = Trainer.train_step
    Trainer.train_step = lambda self: time.sleep(600) if self.step == 40 else step(self)
    ta.main(arguments)


@pytest.fixture
def one_thread():
    """As many as `own_process` has: another number adds up in another order, and bits are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_real_sigkill_loses_nothing(recipe, tmp_path, one_thread):
    values = {"max_steps": 60, "save_every": 5, "eval_every": 0, "log_every": 10}
    assert recipe("whole", **values) == 0
    process = own_process(train_and_hang, command(tmp_path, "killed")[1:])
    wait_for(tmp_path / "killed" / "checkpoints" / "checkpoint_10")
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert recipe("killed", "--resume", **values) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_sigterm_saves_the_step_it_came_in_and_exits_cleanly(recipe, finished, tmp_path, monkeypatch):
    step = Trainer.train_step

    def step_and_signal(self):
        step(self)
        if self.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_signal)
        assert recipe("run") == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run" / "checkpoints" / "checkpoint_5").is_dir()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    assert recipe("run", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "run"))


def test_sigterm_in_the_set_up_ends_cleanly_before_the_first_step(recipe, finished, tmp_path, monkeypatch):
    load = whole.load_data

    def load_and_signal(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*args)

    with monkeypatch.context() as patch:
        patch.setattr(whole, "load_data", load_and_signal)
        assert recipe("run") == 0
    report = json.loads((tmp_path / "run/run.json").read_text())
    assert (report["status"], report["steps"]) == ("stopped", 0)
    assert recipe("run", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "run"))


def test_sigterm_after_the_last_step_does_not_cost_the_record(recipe, tmp_path, monkeypatch):
    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(whole, "leave_curve", signalled)
    assert recipe("run", "--append-runs", str(tmp_path / "runs.jsonl")) == 0
    assert json.loads((tmp_path / "runs.jsonl").read_text())["status"] == "finished"


def evaluations(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/exact_accuracy" in row]


@pytest.mark.parametrize("nth, last", [(0, 6), (1, 12), (2, 12)])
def test_sigterm_ends_an_evaluation_which_the_resumed_run_makes_up_for(recipe, tmp_path, monkeypatch, nth, last):
    evaluate, calls = loop.evaluate_model, []

    def signalled(*args, **kwargs):
        calls.append(None)
        if len(calls) == nth + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_model", signalled)
        assert recipe("run", final_eval_limit=10) == 0
    report = json.loads((tmp_path / "run/run.json").read_text())
    assert (report["status"], report["steps"]) == ("stopped", last) and len(evaluations(tmp_path / "run")) == nth
    assert recipe("run", "--resume", final_eval_limit=10) == 0 and recipe("whole", final_eval_limit=10) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert evaluations(tmp_path / "whole") == evaluations(tmp_path / "run")
    best = [json.loads((tmp_path / name / "run.json").read_text())["metrics"]["best"] for name in ("whole", "run")]
    assert best[0] == best[1]


class FullDisk:
    """A text stream on a disk without space."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = isatty = lambda self: False


def test_a_log_on_a_full_disk_does_not_stop_the_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", FullDisk())
    assert recipe("run") == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"


def test_half_a_line_of_metrics_costs_that_line_alone(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()
    words = ("--resume", "--append-runs", str(tmp_path / "runs.jsonl"))
    assert recipe("run", *words) == 0
    (tmp_path / "run/curve.png").unlink()
    with (tmp_path / "run/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": \xff{"step": 12}\n[]\n')
    assert recipe("run", *words) == 0  # finished already, and its picture is drawn again
    assert (tmp_path / "run/curve.png").is_file()
    (tmp_path / "run/run.json").write_text("[]")
    assert recipe("run", *words) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "finished"


def test_metrics_that_could_not_be_written_whole_are_not_left_in_half(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.journal.record(0, {"a": 1.0})
    before = (tmp_path / "metrics.jsonl").read_text()

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])
            self.file.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **how: Half(real(self, *args, **how)))
    run.journal.record(0, {"a": 2.0})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_run_names_the_commit_that_it_started_on(recipe, tmp_path, monkeypatch):
    source_state.cache_clear()
    step, run = Trainer.train_step, subprocess.run
    before = run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None

    def commit_meanwhile(self):
        monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: run(["echo", "another"], **kwargs))
        step(self)

    monkeypatch.setattr(Trainer, "train_step", commit_meanwhile)
    assert recipe("run", max_steps=1) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["commit"] == before


def test_a_recipe_that_cannot_run_costs_no_earlier_run(recipe, tmp_path, capsys):
    assert recipe("run") == 0
    assert recipe("run", "--overwrite", data=str(tmp_path / "nowhere")) == 1
    assert (tmp_path / "run/run.json").is_file() and weights(tmp_path / "run")
    assert recipe("run", "--overwrite", max_steps=4) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["steps"] == 4


def test_records_are_appended_on_a_line_of_their_own(tmp_path):
    target = tmp_path / "runs.jsonl"
    target.write_text('{"name": "a", "date": "x"}')  # an editor left the last line open
    assert append_runs_to(target, [{"name": "b", "date": "y"}]) == 1
    assert [json.loads(line)["name"] for line in target.read_text().splitlines()] == ["a", "b"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "missing"])
def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(recipe, finished, tmp_path, damage):
    newest = shutil.copytree(finished, tmp_path / "run") / "checkpoints" / "checkpoint_12"
    file = newest / "optimizer.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-7] ^= 1
        file.write_bytes(bytes(content))
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{")
    else:
        file.unlink()
    with pytest.warns(UserWarning, match="checkpoint_12 is damaged"):
        assert recipe("run", "--resume") == 0
    assert same(weights(finished), weights(tmp_path / "run"))


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(recipe, tmp_path, monkeypatch, capsys):
    save = checkpoints.save_tensors

    def full(tensors, path):
        if ".checkpoint_8" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_tensors", full)
        assert recipe("run") == 0
    assert "checkpoint 8 could not be written" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"checkpoint_4", "checkpoint_12"}


def test_a_disk_that_is_full_at_the_end_is_an_error_that_says_how_to_go_on(recipe, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_model_folder", full)
        assert recipe("run") == 1
    error = capsys.readouterr().err
    assert "the best model so far could not be written" in error and "--resume" in error
    assert recipe("run", "--resume") == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_an_evaluation_that_fails_costs_no_training_step(recipe, finished, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_model", fail)
        with pytest.raises(RuntimeError, match="boom"):
            recipe("run", save_every=100)
    state = read_state(tmp_path / "run" / "checkpoints" / "checkpoint_6")
    assert state["work"]["steps"] == 6 and state["seconds"] > 0
    capsys.readouterr()
    assert recipe("run", "--resume", save_every=100) == 0
    assert "step 6: exact_accuracy" in capsys.readouterr().err  # made up for
    assert same(weights(finished), weights(tmp_path / "run"))


def test_a_run_whose_evaluation_always_fails_goes_on_without(recipe, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("boom")

    monkeypatch.setattr(loop, "evaluate_model", fail)
    with pytest.raises(RuntimeError, match="boom"):
        recipe("run")
    with pytest.raises(RuntimeError, match="boom"):  # that of the end
        recipe("run", "--resume", eval_every=0)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint_12").is_dir()


def test_an_evaluation_that_is_made_again_has_one_line(recipe, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save_model", fail)  # after the line was written
        with pytest.raises(RuntimeError, match="boom"):
            recipe("run")
    assert recipe("run", "--resume") == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/exact_accuracy" in row] == [6, 12]


def test_out_of_memory_is_a_sentence_that_says_what_to_change(recipe, monkeypatch, capsys):
    def full(_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB.\nstack of the allocator")

    def empty(_):
        raise MemoryError  # Python's own says nothing

    monkeypatch.setattr(Trainer, "train_step", full)
    assert recipe("run") == 1
    error = capsys.readouterr().err
    assert "Tried to allocate 9 GiB. Out of memory. A new run with" in error and "stack of the" not in error
    monkeypatch.setattr(Trainer, "train_step", empty)
    assert recipe("other") == 1
    assert "error: MemoryError Out of memory." in capsys.readouterr().err


def test_what_a_kill_left_of_a_model_folder_is_put_right(recipe, tmp_path):
    run = tmp_path / "run"
    assert recipe("run", max_steps=6) == 0
    os.replace(run / "model", run / ".model.old")  # killed between the two renames
    for left in (".model.tmp", "..model.tmp-abc", ".model_last.old"):
        (run / left).mkdir()
    assert ta.main(["--recipe", str(tmp_path / "tiny.yaml"), "--output-dir", str(run), "--resume"]) == 0
    assert not [path.name for path in run.glob(".*model*")]
    assert (run / "model" / "config.json").is_file()


def test_a_folder_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in "ab":
        with whole_folder(tmp_path / "link") as folder:
            (folder / name).touch()
    assert (tmp_path / "link").is_symlink() and [path.name for path in (tmp_path / "real").iterdir()] == ["b"]
    with pytest.raises(ValueError, match="b is a file, not a folder"), whole_folder(tmp_path / "real" / "b" / "c"):
        raise AssertionError


def test_a_folder_survives_a_kill_between_the_renames_and_a_write_that_fails(tmp_path):
    (tmp_path / ".m.old").mkdir()
    (tmp_path / ".m.old" / "good").touch()
    with pytest.raises(OSError), whole_folder(tmp_path / "m"):
        raise OSError(errno.ENOSPC, "disk full")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["m", "m/good"]


def test_two_processes_that_write_a_folder_do_not_mix_their_files(tmp_path):
    def write() -> None:
        with whole_folder(tmp_path / "m") as folder:
            (folder / "theirs").touch()

    with whole_folder(tmp_path / "m") as folder:
        (folder / "ours").touch()
        other = own_process(write)
        other.join(60)
        assert other.exitcode == 0 and [path.name for path in (tmp_path / "m").iterdir()] == ["theirs"]
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["m", "m/ours"]


def test_a_run_that_starts_anew_takes_no_model_of_the_one_before(recipe, tmp_path):
    stale = tmp_path / "run" / ".model.old"
    stale.mkdir(parents=True)
    (stale / "stale").touch()
    single = {"data": str(tmp_path / "train.csv"), "eval_every": 0}
    shutil.copy(recipe.data / "train.csv", tmp_path / "train.csv")
    assert recipe("run", "--overwrite", max_steps=2, **single) == 0
    assert not (tmp_path / "run" / "model" / "stale").exists() and not stale.exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_state_before_it(recipe, tmp_path, monkeypatch, capsys):
    step = Trainer.train_step

    def poisoned(self):
        if self.step == 6:
            with torch.no_grad():
                self.slots.carry.z_h.fill_(float("nan"))
                self.slots.halted.fill_(False)
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", poisoned)
        assert recipe("run") == 1
    error = capsys.readouterr().err
    assert "step 7" in error and "checkpoint_6" in error
    kept = load_file(tmp_path / "run" / "checkpoints" / "checkpoint_6" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_resuming_with_another_recipe_is_refused_with_the_differences(recipe, tmp_path, capsys):
    assert recipe("run", max_steps=4) == 0
    assert recipe("run", "--resume", max_steps=4, lr=0.5, hidden_size=32) == 1
    error = capsys.readouterr().err
    assert "lr: 0.01 -> 0.5" in error and "hidden_size: 16 -> 32" in error and "batch_size" not in error


def test_what_changes_no_weight_may_change_on_resume(recipe, tmp_path):
    assert recipe("whole", save_every=6) == 0
    assert recipe("longer", max_steps=6) == 0  # the rate is constant, so the budget decides nothing but the end
    assert recipe("longer", "--resume", max_steps=12, log_every=3) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "longer"))


def test_a_model_key_written_out_with_the_value_that_it_had_is_no_change(recipe, tmp_path, capsys):
    assert recipe("run", max_steps=4) == 0
    assert recipe("run", "--resume", max_steps=6, rope_theta=10000.0, loss_type="stablemax_cross_entropy") == 0
    assert recipe("run", "--resume", max_steps=8) == 0  # and back
    assert recipe("run", "--resume", max_steps=9, rope_theta=20) == 1
    assert "rope_theta: 10000.0 -> 20" in capsys.readouterr().err


def test_the_same_puzzles_may_lie_elsewhere_on_resume(recipe, tmp_path, data):
    assert recipe("whole", max_steps=6) == 0
    assert recipe("moved", max_steps=4) == 0
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    assert recipe("moved", "--resume", max_steps=6, data=str(elsewhere)) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "moved"))


def test_a_resumed_run_needs_the_model_it_started_from_no_more(recipe, tmp_path):
    assert recipe("first", max_steps=4) == 0
    source = str(tmp_path / "first" / "model_last")
    assert recipe("whole", init_from=source, max_steps=6, ema=0.9) == 0
    assert recipe("run", init_from=source, max_steps=4, ema=0.9) == 0
    shutil.rmtree(tmp_path / "first")
    assert recipe("run", "--resume", init_from=source, max_steps=6, ema=0.9) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [run["name"] for run in report["earlier_runs"]] == ["first"]


def test_no_checkpoint_holds_a_pickle(recipe, tmp_path):
    assert recipe("run", max_steps=4) == 0
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".jsonl", ".png", ".py"}


# ---- several processes


def test_two_processes_give_the_weights_of_one_and_one_may_go_on_alone(recipe, tmp_path, capsys):
    assert recipe("one", q_continue=False) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    # What torchrun would start (the slow tests let it).
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    both = [own_process(ta.main, command(tmp_path, "two")[1:], **meet, **rank) for rank in ranks]
    for process in both:
        process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    assert apart(weights(tmp_path / "two"), weights(tmp_path / "one")) < 1e-3
    assert json.loads((tmp_path / "two" / "run.json").read_text())["hardware"]["processes"] == 2
    assert (tmp_path / "two" / "checkpoints" / "checkpoint_12" / "carry_1.safetensors").is_file()
    assert recipe("two", "--resume", max_steps=14, q_continue=False) == 0
    assert "carry is dropped" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_and_four_processes_give_the_weights_of_one_to_a_millionth(recipe, tmp_path):
    start = tiny_model(seed=1, q_continue=False)  # its blocks hardly multiply rounding; fresh ones do
    with torch.no_grad():
        start.q_head.weight.normal_(0.0, 1.0)  # some halt at once, some never
        start.q_head.bias.zero_()
    start.save_pretrained(tmp_path / "start")
    values = {"q_continue": False, "init_from": str(tmp_path / "start"), "lr": 1e-3, "eval_every": 0}
    assert recipe("one", **values) == 0
    lines = [json.loads(line) for line in (tmp_path / "one" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["train/steps"] for line in lines if line.get("train/steps")]
    assert 1 < sum(steps) / len(steps) < TINY["halt_max_steps"]  # slots halted early, and were refilled
    final = Path("checkpoints", "checkpoint_12", "model.safetensors")
    one = load_file(tmp_path / "one" / final)
    for count in ("2", "4"):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", count, "--standalone"]
        done = subprocess.run([*launch, *command(tmp_path, count)], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        several = load_file(tmp_path / count / final)
        assert max(float((one[name] - several[name]).abs().max()) for name in one) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name, machines", [("8_gpus", 1), ("2_nodes", 2)])
def test_a_launch_file_starts_two_processes_that_train_together_on_a_cpu(recipe, tmp_path, name, machines):
    assert recipe("whole", max_steps=2) == 0  # writes the recipe file
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    launch += ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{name}.yaml")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", str(free.getsockname()[1])]
    nodes = [
        subprocess.Popen([*launch, "--machine_rank", str(rank), *command(tmp_path, "run")], cwd=tmp_path)
        for rank in range(machines)
    ]
    assert [node.wait(timeout=600) for node in nodes] == [0] * machines
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (report["status"], report["hardware"]["processes"]) == ("finished", 2)


@pytest.mark.parametrize(
    "environment",
    [
        {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
        {"WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"},
    ],
)
def test_a_process_that_should_have_company_refuses_to_train_alone(monkeypatch, environment):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    refuse_lonely_process(1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun"):
        refuse_lonely_process(1)


def test_a_launch_with_fsdp_trains_as_ddp_and_says_so(recipe, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert recipe("run", max_steps=1) == 0
    assert "FSDP was asked for" in capsys.readouterr().err


def test_a_batch_that_cannot_be_cut_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Choose a divisor"):
        trainer(tmp_path, accumulation=3)


# ---- trackers


def test_tensorboard_gets_the_metrics_when_it_is_asked_for(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    assert recipe("run", max_steps=4, trackers="tensorboard", run_name="model") == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert not list((tmp_path / "run" / "model").rglob("events.out.tfevents*"))  # the run's own, replaced as it goes


def losses_in_tensorboard(run: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def test_tensorboard_shows_each_step_once_after_a_resume_and_nothing_of_an_overwritten_run(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    run, values = tmp_path / "run", {"trackers": "tensorboard", "run_name": "tb"}
    assert recipe("run", max_steps=8, **values) == 0
    shutil.rmtree(run / "checkpoints" / "checkpoint_8")  # as if it had been killed after logging step 8
    time.sleep(1.1)  # event files are read in the order of the seconds in their names
    assert recipe("run", "--resume", max_steps=8, **values) == 0
    assert losses_in_tensorboard(run) == [2, 4, 6, 8]
    assert recipe("run", "--overwrite", max_steps=4, **values) == 0
    assert losses_in_tensorboard(run) == [2, 4]


def test_every_session_of_a_run_has_the_same_id_at_wandb(tmp_path):
    first = lasting_id(tmp_path)
    assert first == lasting_id(tmp_path) and len(first) == 12


def test_puzzles_per_second_are_those_of_the_run_and_not_of_its_last_steps(recipe, tmp_path):
    # All slots halt together after 4 ACT steps: in most windows of two steps none does.
    assert recipe("run", max_steps=6, halt_exploration_prob=0.0, log_every=1, eval_every=0) == 0
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["metrics"]["train"]["puzzles_per_second"] == 0 < report["puzzles_per_second"]


def test_an_unknown_tracker_is_refused(recipe, capsys):
    assert recipe("run", trackers="tensorbord") == 1
    assert "Known:" in capsys.readouterr().err


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name, folder", [("sudoku_extreme", "sudoku_extreme"), ("maze_hard", "maze_hard")])
def test_the_published_recipes_start_on_the_real_rows(tmp_path, name, folder):
    assert load_puzzles(SHARED / "data" / folder, "train").inputs.shape[0] == 1000
    arguments = [
        "--recipe",
        name,
        "--output-dir",
        str(tmp_path / "run"),
        "--smoke",
        f"data={SHARED / 'data' / folder}",
    ]
    assert ta.main([*arguments, "max_steps=3"]) == 0


def test_a_checkpoint_from_before_a_new_recipe_key_still_resumes(recipe, tmp_path):
    assert recipe("run", max_steps=4) == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint_4"
    state = json.loads((checkpoint / "state.json").read_text())
    del state["recipe"]["init_from"], state["recipe"]["tail_share"]
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {
        "bytes": (checkpoint / "state.json").stat().st_size,
        "sha256": _hash(checkpoint / "state.json"),
    }
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert recipe("run", "--resume", max_steps=6) == 0


@pytest.mark.slow
def test_a_sigterm_to_torchrun_stops_both_processes_at_one_checkpoint(recipe, tmp_path):
    assert recipe("whole", max_steps=2) == 0  # writes the recipe file
    lines = (tmp_path / "tiny.yaml").read_text().replace("max_steps: 2", "max_steps: 100000")
    (tmp_path / "tiny.yaml").write_text(lines)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    process = subprocess.Popen([*launch, *command(tmp_path, "run")], cwd=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "checkpoint_8")
    process.terminate()
    process.wait(timeout=60)
    report = json.loads((tmp_path / "run" / "run.json").read_text())
    assert report["status"] == "stopped"
    newest = tmp_path / "run" / "checkpoints" / f"checkpoint_{report['steps']}"
    assert {"carry_0.safetensors", "carry_1.safetensors"} <= {path.name for path in newest.iterdir()}


@pytest.mark.slow
def test_a_sigterm_to_accelerate_launch_reaches_the_run(recipe, tmp_path):
    assert recipe("whole", max_steps=2) == 0  # writes the recipe file
    lines = (tmp_path / "tiny.yaml").read_text().replace("max_steps: 2", "max_steps: 100000")
    (tmp_path / "tiny.yaml").write_text(lines)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", *command(tmp_path, "run")]
    process = subprocess.Popen(launch, cwd=tmp_path)
    wait_for(tmp_path / "run" / "checkpoints" / "checkpoint_8")
    process.terminate()
    process.wait(timeout=60)
    end = time.monotonic() + 60
    while json.loads((tmp_path / "run" / "run.json").read_text())["status"] != "stopped":
        assert time.monotonic() < end
        time.sleep(0.2)


# ---- what is kept, counted and refused


def test_damaged_checkpoints_take_no_place_of_good_ones(recipe, tmp_path):
    assert recipe("a", total_limit=1) == 0
    (tmp_path / "a/checkpoints/checkpoint_12/optimizer.safetensors").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="damaged"):
        assert recipe("a", "--resume", total_limit=1, max_minutes=1e-9) == 0
    assert [step for step, _ in CheckpointStore(tmp_path / "a/checkpoints").found()] == [1]
    assert recipe("a", "--resume", total_limit=1) == 0


def test_a_copy_of_a_checkpoint_is_not_counted(tmp_path):
    for name in ("checkpoint_4", "checkpoint_4_backup", "checkpoint_x"):
        (tmp_path / name).mkdir()
    assert CheckpointStore(tmp_path).found() == [(4, tmp_path / "checkpoint_4")]


def test_weights_that_are_no_numbers_are_never_saved(tmp_path):
    run = trainer(tmp_path)
    run.train_step()
    assert checkpoints.save_checkpoint(run)
    with torch.no_grad():
        next(run.model.parameters())[0] = float("nan")
    run.step += 1
    with pytest.raises(loop.BadLoss, match="step 2 left weights"):
        checkpoints.save_checkpoint(run)
    assert [step for step, _ in run.store.found()] == [1]


def test_a_finished_run_that_is_resumed_keeps_its_numbers_and_is_appended_once(recipe, tmp_path):
    words = ("--resume", "--append-runs", str(tmp_path / "new/runs.jsonl"))
    assert recipe("a", *words) == 0
    before = (tmp_path / "a/run.json").read_text(), (tmp_path / "a/metrics.jsonl").read_text()
    assert recipe("a", *words) == 0
    assert before == ((tmp_path / "a/run.json").read_text(), (tmp_path / "a/metrics.jsonl").read_text())
    assert len((tmp_path / "new/runs.jsonl").read_text().splitlines()) == 1
    assert json.loads(before[0])["tflops"] > 0


def test_a_run_resumed_for_its_final_evaluation_keeps_its_speed_and_repeats_no_line(recipe, tmp_path):
    assert recipe("a") == 0
    whole = json.loads((tmp_path / "a/run.json").read_text())
    lines = (tmp_path / "a/metrics.jsonl").read_text()
    (tmp_path / "a/run.json").write_text(json.dumps({**whole, "status": "running"}))
    assert recipe("a", "--resume") == 0
    again = json.loads((tmp_path / "a/run.json").read_text())
    assert [again[k] for k in ("tflops", "puzzles_per_second")] == [whole[k] for k in ("tflops", "puzzles_per_second")]
    assert (tmp_path / "a/metrics.jsonl").read_text() == lines


def test_operations_are_counted_step_by_step(recipe, tmp_path):
    assert recipe("a", q_continue=False) == 0
    state = read_state(tmp_path / "a/checkpoints/checkpoint_12")
    config = AirConfig(**json.loads((tmp_path / "a/run.json").read_text())["model_config"])
    a_step = training_flops(config, TINY["batch_size"])
    assert state["work"]["steps"] == 12 and state["work"]["flops"] == pytest.approx(12 * a_step)


def test_the_best_model_is_chosen_anew_when_other_puzzles_evaluate_it(recipe, tmp_path):
    assert recipe("a", max_minutes=1e-9) == 0
    state = tmp_path / "a/checkpoints/checkpoint_1/state.json"
    content = json.loads(state.read_text())
    content["best"] = {"step": 1, "n": 8, "exact_accuracy": 2.0}  # better than anything
    state.write_text(json.dumps(content))
    manifest = state.with_name("manifest.json")
    entry = {"bytes": state.stat().st_size, "sha256": _hash(state)}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "state.json": entry}))
    assert recipe("a", "--resume", eval_limit=10) == 0
    assert json.loads((tmp_path / "a/run.json").read_text())["metrics"]["best"]["n"] == 10


def test_a_best_model_that_could_not_be_written_is_not_called_the_best(tmp_path, monkeypatch):
    run = trainer(tmp_path)

    def full(name):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run, "save_model", full)
    run.evaluate()
    assert run.best == {}


def test_two_runs_cannot_share_a_folder(recipe, tmp_path, capsys):
    with alone_in(tmp_path / "a"):
        assert recipe("a") == TAKEN
    assert "Another process is training into" in capsys.readouterr().err
    assert recipe("a", max_steps=1) == 0


def test_a_tracker_that_cannot_write_costs_the_tracker_and_not_the_run(tmp_path, capsys):
    class Full:
        def log(self, *_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

    run = trainer(tmp_path)
    run.journal.trackers = [Full()]
    run.journal.record(0, {"a": 1.0})
    assert run.journal.trackers == [] and "Full could not write" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file_is_one_sentence(recipe, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert recipe("file") == 1 and recipe("file/sub") == 1
    assert capsys.readouterr().err.count("error: ") == 2


def test_fewer_steps_than_were_done_are_refused_on_resume(recipe, tmp_path, capsys):
    assert recipe("a", lr_min_ratio=1.0) == 0
    assert recipe("a", "--resume", lr_min_ratio=1.0, max_steps=4) == 1
    assert "12 steps already, more than max_steps=4" in capsys.readouterr().err


def test_a_smoke_run_takes_the_epochs_and_dashed_keys_that_it_is_given(tmp_path):
    words = ["--recipe", "quickstart", "--smoke", "--output-dir", str(tmp_path / "a"), "epochs=1", "batch-size=8"]
    assert ta.main(words) == 0
    report = json.loads((tmp_path / "a/run.json").read_text())
    assert (report["config"]["epochs"], report["config"]["batch_size"]) == (1, 8)


# ---- stages, launchers, nearly solved copies


@contextlib.contextmanager
def killed_at(step: int, monkeypatch):
    """A training inside is killed before it makes that step."""
    train_step = Trainer.train_step

    def killed(self):
        if self.step == step:
            raise KeyboardInterrupt
        train_step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", killed)
        yield


def test_a_chain_that_is_killed_in_its_second_stage_resumes_to_the_same_mean_of_weights(recipe, tmp_path, monkeypatch):
    stages = [{"max_steps": 4}, {"max_steps": 12, "lr": 5e-3, "average": True}]
    values = {"stages": stages, "eval_every": 0}
    assert recipe("whole", **values) == 0
    with killed_at(6, monkeypatch):
        recipe("killed", **values)
    first = (tmp_path / "killed/stage_1/run.json").read_text()
    assert recipe("killed", **values) == 1  # holds a run already
    assert recipe("killed", "--resume", **values) == 0
    assert (tmp_path / "killed/stage_1/run.json").read_text() == first  # not run again
    whole, resumed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed"))
    assert same(whole, resumed)
    before, after = (load_file(tmp_path / f"whole/stage_{n}/model_last/model.safetensors") for n in (1, 2))
    assert all(torch.allclose(whole[key], (before[key] + after[key]) / 2) for key in whole)
    record = json.loads((tmp_path / "killed/run.json").read_text())
    assert record["status"] == "finished" and [part["steps"] for part in record["stages"]] == [4, 12]
    assert record["stages"][1]["average"]["n"] == 8


def test_a_chain_is_not_deleted_for_one_that_cannot_run(recipe, tmp_path, capsys):
    values = {"stages": [{"max_steps": 1}, {"max_steps": 1}], "eval_every": 0}
    assert recipe("run", **values) == 0
    assert recipe("run", "--overwrite", **values, data=str(tmp_path / "none")) == 1
    assert "There is no file or folder" in capsys.readouterr().err
    with alone_in(tmp_path / "run/stage_2"):
        assert recipe("run", "--overwrite", **values) == TAKEN
    assert all((tmp_path / "run" / name / "run.json").is_file() for name in ("stage_1", "stage_2", "."))


def test_a_stage_of_another_width_than_its_start_is_not_averaged(recipe, capsys):
    assert recipe("run", stages=[{"max_steps": 1}, {"hidden_size": 32, "average": True}]) == 1
    assert "Stage 2" in capsys.readouterr().err


@pytest.mark.parametrize("value", [{"level_token": "add"}, {"qk_norm": True}, {"shared_block": False}])
def test_a_stage_with_weights_that_its_start_lacks_is_not_averaged(recipe, tmp_path, capsys, value):
    assert recipe("run", stages=[{"max_steps": 1}, {"max_steps": 1, "average": True, **value}]) == 1
    assert "whose weights are of other shapes" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_chain_whose_folder_was_moved_goes_on(recipe, tmp_path, monkeypatch):
    values = {"stages": [{"max_steps": 2}, {"max_steps": 6}], "eval_every": 0, "lr_min_ratio": 0.1}
    with killed_at(5, monkeypatch):
        recipe("here", **values)
    first = (tmp_path / "here/stage_1/run.json").read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    assert recipe("there", "--resume", **values) == 0  # the half-done stage goes on
    assert (tmp_path / "there/stage_1/run.json").read_text() == first
    (tmp_path / "there").rename(tmp_path / "here")
    assert recipe("here", "--resume", **values) == 0  # nothing is left to do
    values["stages"][1]["start"] = "model"
    assert recipe("here", "--resume", **values) == 1  # another start is another run


def test_a_second_process_that_comes_late_joins_the_chain(recipe, tmp_path):
    stages = [{"max_steps": 1}, {"max_steps": 1, "average": True}]
    assert recipe("one", stages=stages, eval_every=0) == 0  # writes the recipe file
    meets, waits = torch.distributed.init_process_group, tmp_path / "the first one waits"

    def main(late: bool) -> int:
        if late:
            wait_for(waits)
        else:
            torch.distributed.init_process_group = lambda *a, **k: (waits.touch(), meets(*a, **k))[1]
        return ta.main(command(tmp_path, "two")[1:])

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"} for rank in "01"]
    both = [own_process(main, rank["RANK"] == "1", **meet, **rank) for rank in ranks]
    for process in reversed(both):
        process.join(240)
        assert process.exitcode == 0
    assert json.loads((tmp_path / "two/run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("name", sorted(p.parent.name for p in (ROOT / "checkpoints").glob("*/run.json")))
def test_every_shipped_checkpoint_has_a_recipe_in_stages(name):
    from air_model.training.stages import read_stages

    twins = {"air-sudoku-9x9": "air-sudoku-9x9-twins", "air-maze-12x12": "air-maze-twins"}  # one recipe for both
    base, _, rule = name.rpartition("-")
    stages = read_stages(twins[base] if rule in ("Lx_H", "Lx_Hx") else name, {})
    run = json.loads((ROOT / "checkpoints" / name / "run.json").read_text())
    runs = run.get("stages") or [*run["earlier_runs"], run]
    assert len(stages) == len(runs) and stages[-1].recipe.train.max_steps == run["steps"]


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed_precision=fp16"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "recipe says mixed_precision=no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "Add accumulation=4"),
    ],
)
def test_what_a_launcher_asks_for_is_refused_rather_than_ignored(tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path)


def test_auto_computes_in_bfloat16_where_that_is_fast_and_says_so(tmp_path, monkeypatch, capsys):
    for fast, word in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(loop, "bf16_is_fast", lambda _, fast=fast: fast)
        run = trainer(tmp_path, mixed_precision="auto")
        assert run.bf16 == fast or run.device.type == "cuda"
        assert f"mixed_precision=auto: {word}" in capsys.readouterr().err or run.device.type == "cuda"


def test_nearly_solved_copies_leave_one_to_twelve_open_cells():
    puzzles = sudokus(24)
    puzzles.inputs[:] = 1  # 16 blanks each
    batch = PuzzleSampler(puzzles, 240, seed=0, augment="none", nearly_share=0.5).draw(1)
    blanks = (batch.inputs == 1).sum(1)
    near = blanks < 16
    assert 0.35 < near.float().mean() < 0.65 and set(blanks[near].tolist()) == set(range(1, 13))


@pytest.mark.parametrize(
    ("source", "name"), [("runs/seed3/model", "seed3"), ("runs/seed3/model_last/", "model_last"), ("user/air", "air")]
)
def test_a_model_that_training_left_is_called_after_its_run(source, name):
    assert model_name(source) == name


@pytest.mark.parametrize(
    ("script", "named"), [("benchmarks/search.py", "benchmarks/search.py"), ("/elsewhere/mine.py", "mine.py")]
)
def test_a_recorded_command_names_the_script_from_the_root_and_no_folder_of_this_machine(monkeypatch, script, named):
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), "--data", "/mine/dev.csv", "data=/mine/x", "seed=1"])
    assert command_line() == f"python {named} --data dev.csv data=x seed=1"
