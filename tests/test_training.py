"""The training step: recipes, fresh puzzles, slots, precision, compilation."""

import json

import numpy as np
import pytest
import torch
from conftest import SHARED, needs_shared, tiny_model
from training_runs import SUDOKU, TINY, apart, sudokus, trainer

from air_model import AirConfig, AirModel
from air_model import train_accelerate as ta
from air_model.datasets_builders import PuzzleSet, load_puzzles
from air_model.optim_air import adam_atan2
from air_model.processing_air import make_task
from air_model.records import read_json
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
from air_model.training.cost import compile_mode, onednn_linear, training_flops, training_passes
from air_model.training.launch import RunError
from air_model.training.recipe import RECIPES, make_recipe, model_config, read_recipe
from air_model.training.start import widened
from air_model.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("quick_ends")


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


def test_cells_without_a_label_do_not_count_and_are_never_filled_in():
    puzzles = sudokus(24)
    puzzles.inputs[:], puzzles.labels[:, ::2] = 1, 0
    batch = PuzzleSampler(puzzles, 48, seed=0, easier_share=1.0).draw(1)
    unknown = batch.labels == -100
    assert (unknown.sum(1) == 8).all() and (batch.inputs[unknown] == 1).all() and (batch.inputs > 1).any()


def test_easier_copies_leave_the_only_open_cell_open():
    puzzles = sudokus(2)
    inputs = puzzles.labels.copy()
    inputs[:, 5] = 1
    batch = PuzzleSampler(PuzzleSet(inputs, puzzles.labels, SUDOKU), 16, seed=0, easier_share=1.0).draw(1)
    assert (batch.inputs == 1).sum(1).tolist() == [1] * 16


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


def test_nearly_solved_copies_leave_one_to_twelve_open_cells():
    puzzles = sudokus(24)
    puzzles.inputs[:] = 1  # 16 blanks each
    batch = PuzzleSampler(puzzles, 240, seed=0, augment="none", nearly_share=0.5).draw(1)
    blanks = (batch.inputs == 1).sum(1)
    near = blanks < 16
    assert 0.35 < near.float().mean() < 0.65 and set(blanks[near].tolist()) == set(range(1, 13))


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


def test_operations_are_counted_step_by_step(recipe, tmp_path):
    assert recipe("a", q_continue=False) == 0
    state = read_json(tmp_path / "a/checkpoints/checkpoint_12/state.json")
    config = AirConfig(**json.loads((tmp_path / "a/run.json").read_text())["model_config"])
    a_step = training_flops(config, TINY["batch_size"])
    assert state["work"]["steps"] == 12 and state["work"]["flops"] == pytest.approx(12 * a_step)


def test_auto_computes_in_bfloat16_where_that_is_fast_and_says_so(tmp_path, monkeypatch, capsys):
    for fast, word in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(loop, "bf16_is_fast", lambda _, fast=fast: fast)
        run = trainer(tmp_path, mixed_precision="auto")
        assert run.bf16 == fast or run.device.type == "cuda"
        assert f"mixed_precision=auto: {word}" in capsys.readouterr().err or run.device.type == "cuda"
