"""Roll-outs, freeze studies, interventions and attention contrasts: golden numbers, definitions, independence."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import SHARED, tiny_model

from air_model import AirModel
from air_model.analysis import common
from air_model.analysis.attention import Geometry, attention_maps, attention_rows, attention_study, checked_steps
from air_model.analysis.commands import attention_sentence
from air_model.analysis.common import Study
from air_model.analysis.freeze import across_runs, count_changes, freeze_study, from_published
from air_model.analysis.geometry import probe_targets
from air_model.analysis.interventions import Intervention, parse_intervention, run_with
from air_model.analysis.rollout import rollout_study
from air_model.processing_air import make_task, task_from_config

needs_golden = pytest.mark.skipif(not (SHARED / "golden").is_dir(), reason="no ../shared folder with golden analyses")
MAZE = {"task": "maze", "grid_height": 4, "grid_width": 5}


def lively(variant: str = "Lx_H", seed: int = 0, **fields) -> AirModel:
    """A tiny model whose decodes change a lot: random weights, enlarged so that attention is not flat."""
    model = tiny_model(variant, seed, **{"halt_max_steps": 5, "num_hidden_layers": 2, **fields})
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "qkv" in name or "lm_head" in name:
                p.mul_(3)
            if "token" in name and p.dim() == 1:
                p.normal_(generator=torch.Generator().manual_seed(seed + 1))
    return model


def study_of(model: AirModel, n: int = 5, seed: int = 0, **fields) -> Study:
    """Random grids of the model's task: not puzzles, but every code path sees them the same way."""
    task = task_from_config(model.config)
    rng = np.random.default_rng(seed)
    if task.name == "maze":
        inputs = rng.integers(1, 3, (n, task.seq_len))
        inputs[:, 0], inputs[:, -1] = 3, 4
        labels = np.where((inputs == 2) & (rng.random(inputs.shape) < 0.5), 5, inputs)
    else:
        labels = rng.integers(2, task.vocab_size, (n, task.seq_len))
        inputs = np.where(rng.random(labels.shape) < 0.5, 1, labels)
    return Study(model, inputs, labels, **fields)


@pytest.fixture(scope="module")
def golden():
    """{task: (Study, analysis.json, rollout)}."""
    from air_model.publishing.convert import convert

    out = {}
    for name, size in (("sudoku", 81), ("maze", 900)):
        folder = SHARED / "golden" / f"analysis_{name}"
        expected, task = json.loads((folder / "analysis.json").read_text()), make_task(name)
        inputs, labels = (np.stack([task.encode(p[i]) for p in expected["puzzles"]]) for i in (0, 1))
        study = Study(convert(folder / "step_10", size), inputs, labels)
        out[name] = study, expected, np.load(folder / "rollout_first_puzzle.npz")
    return out


@needs_golden
@pytest.mark.parametrize("task", ["sudoku", "maze"])
def test_golden_rollout_and_freeze_counts_agree_exactly(golden, task):
    study, expected, rollout = golden[task]
    ours = run_with(study).rollout
    for state in "hl":
        stored = rollout[f"z_{state.upper()}"].reshape(96, -1)
        assert np.array_equal(getattr(ours, f"z_{state}")[0].numpy(), stored)
    assert [s.lower() for s in rollout["stage"]] == ours.updates
    assert freeze_study(study).records() == expected["freeze"]


@needs_golden
@pytest.mark.parametrize("task", ["sudoku", "maze"])
def test_golden_attention_contrasts_agree(golden, task):
    study, expected, _ = golden[task]
    tables = attention_study(study).tables()
    for layer, classes in expected["attention"].items():
        for name, entry in classes.items():
            ours = tables[layer][name]
            assert (ours["n_queries"], ours["n_puzzles"]) == (entry["n_queries"], entry["n_puzzles"])
            for metric, values in entry["metrics"].items():
                for key, value in values.items():
                    assert ours["metrics"][metric][key] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("variant", ["Lx_H", "L2x_H2x_prepend_no_strip", "HRM", "TRM"])
def test_skipping_updates_of_a_frozen_state_gives_what_solve_gives(variant):
    study = study_of(lively(variant))
    for state in ("z_h", "z_l"):
        expected = study.solve(return_rollout=True, freeze=state)
        ours = run_with(study, Intervention("freeze", state))
        assert torch.equal(ours.rollout.z_h, expected.rollout.z_h)
        assert torch.equal(ours.rollout.z_l, expected.rollout.z_l)
        assert torch.equal(ours.q_halt_logits, expected.q_halt_logits)


@pytest.mark.parametrize(
    "nothing",
    [None, *(Intervention(*one) for one in ((), ("freeze", "z_l", 2, 2), ("perturb",), ("freeze", "z_h", 0, 0)))],
    ids=repr,
)
def test_interventions_that_do_nothing_give_the_normal_run_bit_for_bit(nothing):
    study = study_of(lively("L2x_H2x_prepend"))
    states: dict[str, list] = {"plain": [], "ours": []}

    def keep(name):
        return lambda update, z_h, z_l: states[name].append((z_h.clone(), z_l.clone()))

    plain = study.solve(return_rollout=True, hook=keep("plain"))
    ours = run_with(study, nothing, hook=keep("ours"))
    assert torch.equal(plain.rollout.z_h, ours.rollout.z_h) and torch.equal(plain.rollout.z_l, ours.rollout.z_l)
    assert len(states["plain"]) == len(states["ours"])
    assert all(torch.equal(a, b) for x, y in zip(states["plain"], states["ours"]) for a, b in zip(x, y))


def test_a_freeze_study_says_of_each_run_and_state_what_came_out_right():
    study = study_of(lively())
    study.labels = study.solve().predictions.clone()
    study.labels[0, 0] = 2 + (study.labels[0, 0] == 2)
    found = freeze_study(study)
    exact = {key: [record[key]["exact"] for record in found.records()] for key in found.summary()}
    assert exact["normal.z_H"] == [0, 1, 1, 1, 1] and found.summary()["normal.z_H"]["exact_accuracy"]["mean"] == 0.8


@pytest.mark.parametrize(
    "text", ["freeze:z_l:2-", "freeze:z_h:1-3", "reset:z_l:1", "swap:2", "perturb:z_h:0.5:1-3", "through:z_l"]
)
def test_interventions_do_not_depend_on_the_batch_and_their_text_reads_back(text):
    intervention = parse_intervention(text)
    assert parse_intervention(intervention.name) == intervention
    model = lively(seed=3)  # seed 0 under torch 2.10, which draws other weights, answers a swap as nothing
    whole = freeze_study(study_of(model, batch_size=5), [intervention])
    single = freeze_study(study_of(model, batch_size=2), [intervention])
    assert whole.records() == single.records()
    changed = whole.changes[text]["h"].sum() != whole.changes["normal"]["h"].sum()
    assert changed or whole.changes[text]["l"].sum() != whole.changes["normal"]["l"].sum()


def test_a_frozen_window_holds_the_state_and_a_reset_and_a_swap_move_it():
    study = study_of(lively())
    seen: dict[str, list] = {}

    def states(intervention):
        seen[repr(intervention)] = kept = []
        run_with(
            study, intervention, hook=lambda u, h, z: kept.append((int(u.steps[0]), u.index, h.clone(), z.clone()))
        )
        return {(step, index): (h, z) for step, index, h, z in kept}

    frozen, normal = states(Intervention("freeze", "z_l", 1, 3)), states(None)
    assert all(torch.equal(frozen[step, i][1], normal[0, 5][1]) for step in (1, 2) for i in range(6))
    assert not torch.equal(frozen[3, 0][1], normal[0, 5][1])
    assert torch.equal(states(Intervention("reset", "z_h", 2))[2, 5][0], study.model.initial_carry(5).z_h)
    swapped = states(Intervention("swap", start=1))
    assert torch.equal(swapped[1, 5][0], normal[1, 5][1]) and torch.equal(swapped[1, 5][1], normal[1, 5][0])


def test_decoding_through_the_others_statistics_takes_its_mean_and_spread():
    z_h, z_l = torch.randn(2, 9, 4) * 3 + 1, torch.randn(2, 9, 4)
    same, moved = Intervention("through", "z_l").view(z_h, z_l)
    assert same is z_h
    assert torch.allclose(moved.mean(1), z_h.mean(1), atol=1e-5) and torch.allclose(
        moved.std(1), z_h.std(1), atol=1e-5
    )


def test_mask_flips_and_content_changes_are_counted_apart():
    grids = np.array([[1, 2, 3, 4], [2, 2, 3, 5], [2, 1, 1, 5]])  # blank is 1
    flips, changes = count_changes(grids, 1)
    assert flips.tolist() == [1, 2] and changes.tolist() == [1, 0]


def test_studies_of_a_generic_grid_look_at_all_its_cells_alike():
    study = study_of(lively(task="grid", grid_height=3, vocab_size=5), n=2)
    result, attention = freeze_study(study), attention_study(study, steps=(0,))
    assert not any(by[state].any() for by in result.flips.values() for state in "hl")  # no token is a mask
    assert len(attention.puzzle) == 2 * 9
    assert probe_targets(study.task, study.inputs.numpy(), study.labels.numpy())[1].all()


def test_means_over_runs_take_each_run_once():
    summaries = [{"normal.z_H": {"exact_accuracy": {"mean": m, "n": n}}} for m, n in ((0.2, 10), (0.6, 1000))]
    stats = across_runs(summaries)["normal.z_H"]["exact_accuracy"]
    assert stats["n_runs"] == 2 and stats["mean"] == pytest.approx(0.4)
    assert stats["std"] == pytest.approx(np.std([0.2, 0.6], ddof=1))


# ---- attention -----------------------------------------------------------------------------------------------------


def traced(study: Study, number: int) -> dict:
    """{(ACT step, update): ({layer: (q, k)}, decoded z_H)} of one puzzle."""
    out, calls = {}, []

    def hook(update, z_h, z_l):
        out[int(update.steps[0]), update.index] = dict(calls), study.model.decode_state(z_h).argmax(-1)[0].numpy()
        calls.clear()

    with study.model.observe_attention(lambda layer, q, k, s: calls.append((layer, (q[0].clone(), k[0].clone())))):
        study.part(slice(number, number + 1)).solve(hook=hook)
    return out


def slow_contrasts(study: Study, steps: tuple[int, ...]) -> list[dict]:
    """The paper's definition by the letter: one puzzle, one query, one head at a time, in float64."""
    model, task, rows = study.model, study.task, []
    size, schedule = task.seq_len, model.config.schedule
    for number in range(len(study)):
        at = traced(study, number)
        puzzle = study.inputs[number].numpy()
        label = study.labels[number].numpy()
        queries = np.flatnonzero(label == 5) if task.name == "maze" else np.flatnonzero(puzzle == 1)
        near = task.neighbours
        for step in steps:
            low, (high, decode) = at[step, schedule.index("l")][0], at[step, schedule.index("h")]
            faults = decode != label if task.name == "maze" else task.conflicts(decode)
            for q in queries:
                for layer in low.keys() & high.keys():
                    deltas = []
                    for head in range(model.config.num_attention_heads):
                        sides = []
                        for qk in (low[layer], high[layer]):
                            query, key = (t[head].double() for t in qk)
                            logits = (key @ query[len(query) - size + q]) / math.sqrt(key.shape[-1])
                            p = torch.softmax(logits, 0)[-size:].numpy()
                            p = p / p.sum()
                            masses = [p[near[k][q]].sum() / d for k, d in divisors(task)]
                            local = faults & near["nbr4"][q] if task.name == "maze" else faults
                            entropy = -(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(size)
                            sides.append(np.array([*masses, entropy, p[local].sum()]))
                        delta = sides[0] - sides[1]
                        delta[-2] *= -1
                        deltas.append(delta)
                    beside = faults[task.peers[q]].any()
                    rows.append(
                        {"puzzle": number, "step": step, "query": q, "layer": layer, "beside": bool(beside),
                         "mean": np.mean(deltas, 0)}
                    )  # fmt: skip
    return rows


def divisors(task):
    return [("units", 1)] if task.name == "sudoku" else [("nbr4", 4), ("nbr8", 8), ("window5", 24)]


CASES = [
    ("Lx_H", {}),
    ("L2x_H2x_prepend", {}),
    ("L2x_H2x_prepend_no_strip", {"position_embedding": "learned"}),
    ("HRM", {"l_layers": 2, "h_layers": 3}),
    ("TRM", {"num_attention_heads": 4}),
    ("Lx_H", {**MAZE, "puzzle_embedding_size": 0}),
    ("had_prod", MAZE),
]


@pytest.mark.parametrize(("variant", "fields"), CASES)
def test_contrasts_follow_the_definitions_one_query_at_a_time(variant, fields):
    study = study_of(lively(variant, **fields), n=2)
    result = attention_study(study, steps=(1, 4))
    expected = slow_contrasts(study, (1, 4))
    ours = {
        (int(p), int(s), int(q), layer): (bool(b), result.mean[i, layer])
        for i, (p, s, q, b) in enumerate(zip(result.puzzle, result.step, result.query, result.beside_fault))
        for layer in range(result.layers)
    }
    assert len(expected) == len(ours) > 0
    for row in expected:
        beside, mean = ours[row["puzzle"], row["step"], row["query"], row["layer"]]
        assert beside == row["beside"]
        assert np.allclose(mean, row["mean"], atol=1e-4)


def test_attention_does_not_depend_on_the_batch_size_nor_on_how_maps_are_split(monkeypatch):
    model = lively(**MAZE)
    whole = attention_study(study_of(model, 5))
    monkeypatch.setattr("air_model.analysis.attention.MAP_ELEMENTS", 1)
    split = attention_study(study_of(model, 5, batch_size=2))
    assert np.array_equal(whole.query, split.query) and np.allclose(whole.mean, split.mean, atol=1e-4)
    assert np.allclose(whole.best, split.best, atol=1e-4)
    assert [e["puzzle"] for e in whole.examples] == [e["puzzle"] for e in split.examples]


def test_head_tables_average_to_the_pooled_table_and_examples_have_the_best_score():
    result = attention_study(study_of(lively()))
    heads, pooled = result.per_head(), result.tables()
    for layer, classes in pooled.items():
        for name, entry in classes.items():
            for metric, values in entry["metrics"].items() if entry["n_queries"] else ():
                means = [head[metric]["mean"] for head in heads[layer][name].values()]
                assert np.mean(means) == pytest.approx(values["mean"], abs=1e-12)
    best = result.examples[0]
    assert all(best["score"] >= other["score"] for other in result.examples)
    maps = attention_maps(study_of(lively()), best["puzzle"], best["layer"], best["head"], result.steps)
    at, query = maps.steps.index(best["act_step"]), best["query"]
    near = make_task("sudoku", 4).neighbours["units"][query]
    faults = make_task("sudoku", 4).conflicts(maps.decoded[at])
    low, high = maps.l[at, query], maps.h[at, query]
    entropy = [-(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(16) for p in (high, low)]
    score = (low - high)[near].sum() + (low - high)[faults].sum() + 0.5 * (entropy[0] - entropy[1])
    assert score == pytest.approx(best["score"], abs=1e-4)


def test_a_row_whose_cells_hold_no_mass_counts_as_uniform_and_is_counted():
    q = torch.ones(1, 1, 5, 2)
    k = torch.cat([torch.full((1, 1, 1, 2), 200.0), torch.zeros(1, 1, 4, 2)], dim=2)  # the prefix takes all
    probs, empty = attention_rows(q, k, 1.0, None, 4)
    assert empty.all() and torch.allclose(probs, torch.full_like(probs, 0.25))
    model = lively()
    with torch.no_grad():
        model.puzzle_embedding.weight.fill_(50.0)
        for layer in model.stack.layers:
            layer.self_attn.qkv_proj.weight.mul_(100)
    result = attention_study(study_of(model))
    assert result.empty_rows.sum() > 0 and np.isfinite(result.mean).all()


def test_attention_rows_hold_nothing_that_a_head_does_not_see():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 2, 5, 4, generator=generator)  # (B, H, T, D / H) each, one prefix position
    seen = torch.ones(1, 2, 5, 5, dtype=torch.bool)
    seen[0, 1] = torch.eye(5, dtype=torch.bool)  # the second head: only the cell itself
    every, _ = attention_rows(q, k, 1.0, None, 4, seen)
    some, _ = attention_rows(q, k, 1.0, torch.tensor([[2, 0], [3, 3]]), 4, seen)
    assert torch.equal(every[:, 0], attention_rows(q, k, 1.0, None, 4)[0][:, 0])
    assert torch.equal(every[:, 1], torch.eye(4).double().expand(2, 4, 4))
    assert torch.equal(some, torch.stack([every[0][:, [2, 0]], every[1][:, [3, 3]]]))


def test_an_empty_class_has_n_0_and_empty_cells():
    model = lively()
    with torch.no_grad():
        model.lm_head.weight.zero_()  # decodes PAD everywhere: nothing is at fault
    study = study_of(model)
    tables = attention_study(study).tables()["0"]
    empty = [entry for entry in tables.values() if entry["n_queries"] == 0]
    assert len(tables) == 2 and len(empty) == 1
    assert empty[0]["n_puzzles"] == 0 and all(m["mean"] is None for m in empty[0]["metrics"].values())


def test_per_puzzle_means_come_before_the_interval_across_puzzles():
    result = attention_study(study_of(lively()))
    table = result.tables("per_puzzle")["0"]
    for name, chosen in zip(result.geometry.classes, (result.beside_fault, ~result.beside_fault)):
        means = [result.best[chosen & (result.puzzle == p), 0, 0].mean() for p in np.unique(result.puzzle[chosen])]
        if means:
            assert table[name]["metrics"]["neighborhood"]["mean"] == pytest.approx(np.mean(means), abs=1e-12)
            assert table[name]["n_puzzles"] == len(means)


@pytest.mark.parametrize(
    ("means", "words"),
    [
        ((0.1, 0.3), "nearer in layers 0, 1 than"),
        ((0.1, -0.3), "nearer in layer 0 and farther in layer 1 than"),
        ((-0.3, 0.01), "farther in layer 0 and neither nearer nor farther in layer 1 than"),
    ],
)
def test_updates_look_nearer_only_where_the_interval_leaves_out_0(means, words):
    classes = [{"beside": {"n_queries": 0}, "control": {"n_queries": 5, "metrics": {"nbr": {"mean": m, "ci95": 0.02}}}}
               for m in means]  # fmt: skip
    said = attention_sentence({str(layer): by for layer, by in enumerate(classes)}, "nbr")
    assert said == f"Averaged over all rows, L-updates look {words} H-updates (nbr).\n"


@pytest.mark.parametrize("fields", [{}, MAZE])
def test_attention_is_studied_without_float64_where_a_device_has_none(fields, monkeypatch):
    whole = attention_study(study_of(lively(**fields)))
    monkeypatch.setattr("air_model.analysis.attention.widest", torch.Tensor.float)  # as on Apple's GPUs
    single = attention_study(study_of(lively(**fields)))
    assert single.mean.dtype == single.head_sum.dtype == np.float32
    np.testing.assert_allclose(single.mean, whole.mean, atol=1e-5)


def test_neighbourhood_weights_cover_edges_and_centres():
    geometry = Geometry.of(make_task("maze", 5, 5))
    sizes = geometry.weights.sum(1)  # (S, 3)
    assert sizes[0].tolist() == [2, 3, 8] and sizes[12].tolist() == [4, 8, 24]


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_a_model_of_another_task_than_the_data_is_refused():
    with pytest.raises(ValueError, match="give data of the model's task"):
        Study(tiny_model(), np.ones((2, 36), int), np.ones((2, 36), int))


def test_steps_beyond_the_model_and_no_attention_are_said():
    with pytest.raises(ValueError, match=r"ACT steps \[7\] are beyond the model's"):
        checked_steps(lively(), [1, 7])
    assert checked_steps(lively(), None) == (2, 4)
    assert checked_steps(tiny_model(halt_max_steps=1), None) == (0,)
    with pytest.raises(ValueError, match="no attention to analyse"):
        attention_study(study_of(lively("TRM_mlp")))
    with pytest.raises(ValueError, match="lies beyond the run"):
        freeze_study(study_of(lively()), [Intervention("freeze", "z_h", 9)])
    with pytest.raises(ValueError, match="Cannot read the intervention"):
        parse_intervention("melt:z_h")


def test_mlp_models_have_rollouts_and_freeze_studies():
    study = study_of(lively("TRM_mlp"))
    assert len(freeze_study(study).records()) == 5
    assert rollout_study(study).curves()["z_H"]["accuracy"]["mean"].shape == (5 * 21,)


# ---- the loop ------------------------------------------------------------------------------------------------------


def test_a_second_run_takes_finished_chunks_from_the_cache_and_another_model_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHUNK", 2)
    model = lively()
    first = freeze_study(study_of(model, 5, batch_size=2, cache_dir=tmp_path))
    runs = []
    monkeypatch.setattr(AirModel, "solve", lambda *a, **k: runs.append(1))
    assert freeze_study(study_of(model, 5, batch_size=2, cache_dir=tmp_path)).records() == first.records()
    assert not runs
    with pytest.raises(AttributeError):
        freeze_study(study_of(lively(seed=3), 5, batch_size=2, cache_dir=tmp_path))
    assert runs


def test_rollout_measures_are_those_of_the_decodes():
    study = study_of(lively())
    result, rollout = rollout_study(study, keep=3), run_with(study).rollout
    for state in "hl":
        grids = getattr(rollout, f"z_{state}").numpy()
        assert np.array_equal(result.tokens[state], grids[:3])
        right = (grids == study.labels.numpy()[:, None]).mean(-1)
        assert np.allclose(result.values[state]["accuracy"], right)
        assert np.allclose(result.values[state]["blank"], (grids == 1).mean(-1))
        changed = (grids[:, 1:] != grids[:, :-1]).mean(-1)
        assert np.allclose(result.values[state]["changed"][:, 1:], changed)
    columns = result.columns()
    assert len({len(values) for values in columns.values()}) == 1


def test_a_grid_without_any_label_is_not_called_right():
    study = study_of(lively())
    study.labels[:] = 0
    assert not rollout_study(study).values["h"]["exact"].any() and not freeze_study(study).exact["normal"]["h"].any()


@needs_golden
def test_published_freeze_results_have_the_shape_of_ours():
    file = json.loads((SHARED / "published" / "freeze_5runs.json").read_text())
    table = from_published(file, "sudoku")
    changes = table["normal.z_L"]["content_changes"]
    assert round(changes["mean"]) == 1235 and round(changes["std"]) == 271 and len(changes["runs"]) == 5
    assert across_runs([{"a": {"b": {"mean": r}}} for r in changes["runs"]])["a"]["b"]["std"] == pytest.approx(
        changes["std"]
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("fields", [{}, MAZE])
def test_studies_on_a_gpu_agree_with_those_on_the_cpu(fields):
    slow, fast = (study_of(lively(**fields).to(device), dtype=torch.float32) for device in ("cpu", "cuda"))
    held = Intervention("freeze", "z_h", 1, 2)
    here, there = (run_with(study, held).rollout.z_l[:, :12].cpu() for study in (slow, fast))
    assert (here == there).float().mean() > 0.99  # rounding may decide a tie
    here, there = (attention_study(study, steps=(0,)) for study in (slow, fast))
    assert np.array_equal(here.query, there.query) and np.allclose(here.mean, there.mean, atol=1e-4)
