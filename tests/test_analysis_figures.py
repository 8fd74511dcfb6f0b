"""Figures, reports and the analyze command: what is written, and what is said when it cannot be."""

import csv
import gzip
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from test_analysis import MAZE, lively, study_of

from air_model.analysis import figures, geometry, plots, report
from air_model.analysis.attention import attention_study
from air_model.analysis.commands import held_back_sentence, redraw_published
from air_model.analysis.interventions import run_with
from air_model.processing_air import AirProcessor, make_task, task_from_config
from air_model.scripts import analyze

needs_published = pytest.mark.skipif(not (SHARED / "published").is_dir(), reason="no ../shared folder")
GRIDS = [
    {"grid_height": 4},
    {"grid_height": 6, "l_cycles": 3, "h_cycles": 1},
    MAZE,
    {"task": "grid", "grid_height": 3, "grid_width": 4, "vocab_size": 6},
]


@pytest.mark.parametrize("fields", GRIDS, ids=str)
def test_a_board_a_strip_and_an_animation_are_drawn_for_every_kind_of_grid(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 40)
    monkeypatch.setattr(figures, "ANIMATION_DPI", 40)
    model = lively(**fields, halt_max_steps=2)
    study, task = study_of(model, 2), task_from_config(model.config)
    rollout, per_step = run_with(study).rollout, len(model.config.schedule)
    puzzle, label = study.inputs[1].numpy(), study.labels[1].numpy()
    for name, given in (("with.png", label), ("without.png", None)):
        figures.draw_rollout(rollout, puzzle, task, tmp_path / name, label=given, row=1)
    figures.draw_film_strip(rollout, puzzle, task, tmp_path / "strip.png", row=1)
    animation = figures.animate_rollout(
        rollout, puzzle, task, tmp_path / "film.gif", label=label, row=1, per_step=per_step
    )
    with Image.open(animation) as image:
        assert 1 < image.n_frames <= len(rollout.updates)
    assert {p.name for p in tmp_path.iterdir()} == {"with.png", "without.png", "strip.png", "film.gif"}


def test_a_board_shades_what_is_held_back_and_marks_what_is_wrong_or_changed():
    task = make_task("sudoku", 4)
    puzzle = np.full(16, 1)
    puzzle[0] = 3
    tokens = np.array([3, 3, 1, 0] + [2] * 12)
    figure = figures.new_figure(2, 2)
    board = figures.Board(figure.add_subplot(), task, puzzle, "l")
    board.show(tokens, np.where(np.arange(16) == 4, 5, tokens))
    colours = np.asarray(board.image.get_array()).reshape(16, 3)
    held, padded, changed = (figures.to_rgb(c) for c in (figures.HELD, figures.PADDED, "#F0E442"))
    assert np.allclose(colours[2], held) and np.allclose(colours[3], padded)
    assert np.allclose(colours[4], figures.tint(figures.CHANGED, 0.8)) and changed != held
    assert board.wrong(tokens)[:2].all()  # two 2s in the first row
    assert board.texts[0].get_weight() == "bold" and board.texts[1].get_color() == figures.STATE_COLOURS["l"]
    assert board.texts[2].get_text() == ""


def test_only_cells_whose_answer_is_known_count_and_a_generic_grid_may_change_any():
    task, puzzle, label = make_task("grid", 1, 4, vocab_size=5), np.array([2, 1, 3, 1]), np.array([0, 2, 3, 0])
    states = np.array([[3, 3, 3, 4]])
    film = figures._Film(SimpleNamespace(z_h=states, z_l=states, updates=["h"]), puzzle, task, label)
    assert film.summary("h", 0) == "1 of 2 cells right"
    ax = figures.new_figure(2, 2).add_subplot()
    wrong = [figures.Board(ax, task, puzzle, "h", known).wrong(states[0]).tolist() for known in (label, None)]
    assert wrong == [[False, True, False, False], [False] * 4]
    figures._timeline(ax := figures.new_figure(2, 2).add_subplot(), film)
    assert [line.get_ydata()[0] for line in ax.lines[:2]] == [50, 50]


def test_pictures_that_cannot_be_made_are_refused_with_a_sentence(tmp_path):
    rollout = SimpleNamespace(z_h=np.ones((1, 6, 16), int), z_l=np.ones((1, 6, 16), int), updates=list("llhllh"))
    task, puzzle = make_task("sudoku", 4), np.ones(16, int)
    with pytest.raises(ValueError, match="Pass the task of the model"):
        figures.draw_rollout(rollout, np.ones(36, int), make_task("sudoku", 6), tmp_path / "a.png")
    with pytest.raises(ValueError, match="there is no update 9"):
        figures.draw_rollout(rollout, puzzle, task, tmp_path / "a.png", at=9)
    with pytest.raises(ValueError, match=r"written as \.gif"):
        figures.animate_rollout(rollout, puzzle, task, tmp_path / "a.webp")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("letters", "period"), [("llhllh" * 3, 6), ("lh" * 6, 6), ("lllh" * 5, 4), ("lh" * 5, 2)])
def test_act_steps_are_read_off_the_updates(letters, period):
    assert figures._period(list(letters)) == period


@needs_published
@pytest.mark.parametrize("name", ["asymmetric", "symmetric"])
def test_the_papers_rollouts_are_drawn_by_the_same_function(name, tmp_path):
    stored = json.loads(gzip.open(SHARED / "published" / f"rollout_sudoku_{name}.json.gz").read())
    traces = [trace for step in stored["act_steps"] for trace in step["recursive_traces"]]
    grids = {key: np.array([t[key] for t in traces]).reshape(len(traces), 81) for key in ("pred_H", "pred_L")}
    rollout = SimpleNamespace(z_h=grids["pred_H"], z_l=grids["pred_L"], updates=[t["stage"].lower() for t in traces])
    puzzle, label = np.array(stored["input"]).ravel(), np.array(stored["solution"]).ravel()
    film = figures._Film(rollout, puzzle, make_task("sudoku"), label)
    ends = [film.per_step * step - 1 for step in range(1, 5)]
    right = [(film.states["h"][at] == label).sum() for at in ends]
    assert right == {"asymmetric": [60, 79, 81, 81], "symmetric": [59, 70, 77, 81]}[name]
    assert figures.draw_rollout(rollout, puzzle, make_task("sudoku"), tmp_path / "a.png", label=label).exists()


@needs_published
def test_the_papers_figures_are_drawn_from_its_own_numbers_by_the_same_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "DPI", 30)
    folder = SHARED / "published"
    file = json.loads((folder / "attention_bars.json").read_text())
    for name, entropy in (("sudoku", 0.182), ("maze", 0.401)):
        bars = plots.attention_from_published(file, name)
        assert bars["3"]["control"]["metrics"]["entropy"]["mean"] == pytest.approx(entropy, abs=1e-3)
    stored, near = np.load(folder / "attention_sudoku_example.npz"), make_task("sudoku").neighbours["units"][14]
    rows = [plots._query_row(stored[key], 14, make_task("sudoku")) for key in ("l_map", "h_map")]
    assert [row[near].sum() for row in rows] == pytest.approx([0.797, 0.232], abs=1e-3)
    written = redraw_published(folder, tmp_path)
    assert len(written) == 10 and all(path.stat().st_size > 0 for path in written)


def test_a_folder_without_published_results_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="none of the published"):
        redraw_published(tmp_path, tmp_path)


def test_an_empty_class_leaves_its_place_in_the_bars_free(tmp_path):
    result = attention_study(study_of(lively()))
    result.beside_fault[:] = True
    tables = result.tables()
    assert tables["0"]["control"]["n_queries"] == 0
    plots.attention_bars(tables, tmp_path / "bars.png")
    plots.attention_by_step(result.by_step(), tmp_path / "steps.png")
    plots.attention_heads(result.per_head(), "control", tmp_path / "heads.png")
    assert len(list(tmp_path.iterdir())) == 3


# ---- geometry ------------------------------------------------------------------------------------------------------


def test_geometry_measures_are_those_of_the_states():
    study = study_of(lively("L2x_H2x_prepend_no_strip"), batch_size=2)
    result = geometry.geometry_study(study)
    states = []
    study.part(slice(0, 2)).solve(hook=lambda update, z_h, z_l: states.append((z_h.clone(), z_l.clone())))
    skip = study.config.num_prefix_positions
    before, after = states[7][1][:, skip:], states[9][1][:, skip:]  # z_L before and after update 9
    assert np.allclose(result.norm["l"][:2, 9], after.norm(dim=-1).mean(-1), atol=1e-4)
    assert np.allclose(result.step["l"][:2, 9], (after - states[8][1][:, skip:]).norm(dim=-1).mean(-1), atol=1e-4)
    assert not np.allclose(before, after)
    old, new = states[5][0][:, skip:].flatten(1), states[11][0][:, skip:].flatten(1)
    assert np.allclose(result.settle["h"][:2, 1], (new - old).norm(dim=-1) / old.norm(dim=-1), atol=1e-4)
    whole = geometry.geometry_study(study_of(lively("L2x_H2x_prepend_no_strip"), batch_size=5))
    assert np.allclose(whole.cosine, result.cosine, atol=1e-5) and np.allclose(whole.halt, result.halt, atol=1e-4)


def test_failures_tell_cells_that_were_never_right_from_cells_that_were_lost():
    labels = np.array([[2, 3, 4, 5]])
    ends = np.array([[[2, 5, 5, 5], [2, 3, 5, 5], [2, 4, 5, 5]]])  # cell 1 was right once, cell 2 never
    out = geometry._failure_arrays(ends, labels)
    assert out["never_right"] == [0.5] and out["lost"] == [0.5]
    assert out["right"].tolist() == [[0.5, 0.75, 0.5]]
    assert out["wrong_since"] == [(2 + 0) / 2]


def test_probes_find_what_is_there_and_nothing_where_nothing_is():
    truth = np.random.default_rng(0).random((60, 4)) < 0.5
    mask, train = np.ones((60, 4), bool), np.arange(60) % 2 == 0
    y = {True: truth[train].reshape(-1, 1), False: truth[~train].reshape(-1, 1)}
    noise = np.random.default_rng(1).normal(size=(60, 4, 3))
    assert geometry._probe(noise, mask, train, y) == pytest.approx(0.5, abs=0.15)
    assert geometry._probe(noise + 9 * truth[..., None], mask, train, y) > 0.99
    assert geometry._auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5


def test_probe_targets_are_the_candidates_and_the_shortest_paths():
    task = make_task("sudoku", 4)
    candidates, mask, _ = geometry.probe_targets(task, task.encode("12.. .... .... ...3")[None].astype(int), None)
    assert candidates[0, 2].tolist() == [False, False, True, True] and mask.sum() == 13
    assert candidates[0, 15].tolist() == [True, True, True, True]  # its own clue does not exclude itself
    maze = make_task("maze", 2, 3)
    on_path, free, _ = geometry.probe_targets(maze, maze.encode("S  # G")[None].astype(int), None)
    assert on_path[0, :, 0].tolist() == [True, True, True, False, True, True] and free.sum() == 3


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(model folder, CSV) of a 4 x 4 Sudoku."""
    folder = tmp_path_factory.mktemp("analyze")
    model = lively(halt_max_steps=3)
    model.save_pretrained(folder / "model")
    AirProcessor.from_config(model.config).save_pretrained(folder / "model")
    rows = [("1...2...3...4...", "1342213434214213"), ("1....3..........", "1234432121433412")]
    rows = [(q, a) for q, a in rows if all(x in (".", y) for x, y in zip(q, a))] or [("................", rows[0][1])]
    with open(folder / "puzzles.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("source", "question", "answer", "rating"), *(("x", q, a, 0) for q, a in rows)])
    return folder / "model", folder / "puzzles.csv"


@pytest.mark.parametrize("command", ["freeze", "search"])
def test_analyze_reads_digits_where_it_is_told_that_numbers_are_such(small, tmp_path, command):
    row = {"puzzle": list(map(int, "1034341221434320")), "solution": list(map(int, "1234341221434321"))}
    (tmp_path / "digits.json").write_text(json.dumps([row, row]))
    words = [command, "--model", str(small[0]), "--data", str(tmp_path / "digits.json"), "--output-dir", str(tmp_path)]
    assert analyze.main([*words, "--no-figures", "--quiet"]) == 1
    assert analyze.main([*words, "--no-figures", "--quiet", "--values", "digits"]) == 0


def test_analyze_writes_json_of_the_golden_shape_and_a_report(small, tmp_path, capsys):
    model, data = map(str, small)
    common = ["--model", model, "--data", data, "--output-dir", str(tmp_path), "--quiet", "--pictures", "1"]
    assert analyze.main(["freeze", *common, "--no-figures", "--interventions", "swap:1", "--parquet"]) == 0
    assert analyze.main(["attention", *common, "--no-figures"]) == 0
    result = json.loads((tmp_path / "analysis.json").read_text())
    assert (result["task"], result["variant"]) == ("sudoku", "Lx_H")
    assert set(result["freeze"][0]) >= {
        f"{r}.{s}" for r in ("normal", "freeze_z_H", "freeze_z_L") for s in ("z_H", "z_L")
    }
    assert set(result["freeze"][0]["normal.z_H"]) == {"updates", "mask_flips", "content_changes", "exact"}
    entry = result["attention"]["0"]["control"]
    assert set(entry) == {"n_queries", "n_puzzles", "metrics"} and "mean" in entry["metrics"]["neighborhood"]
    assert all(len(pair) == 2 and len(pair[0]) == 16 for pair in result["puzzles"])
    assert (tmp_path / "freeze.parquet").exists() and "swap:1" in (tmp_path / "freeze.md").read_text()
    assert "Results in" in capsys.readouterr().out


@pytest.mark.slow
def test_the_report_holds_every_table_and_figure_inside(small, tmp_path):
    model, data = map(str, small)
    options = ["--model", model, "--data", data, "--output-dir", str(tmp_path), "--quiet", "--pictures", "1"]
    assert analyze.main(["report", *options]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page) and page.count("<figure>") > 12
    assert "](figures/" in (tmp_path / "report.md").read_text()


def test_a_report_carries_its_figures_and_links_them(tmp_path):
    (tmp_path / "figures").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "figures" / "freeze.png")
    entry = report.Entry("one", tmp_path, "- model: `<b>`\n", {"freeze": ["## Freeze\n", "| a |\n| --- |\n| 1 |\n"]})
    text, page = report.write(tmp_path, [entry])
    assert "](figures/freeze.png)" in text.read_text() and "data:image/png;base64," in page.read_text()
    assert "<td>1</td>" in page.read_text() and "<code>&lt;b&gt;</code>" in page.read_text()


def test_several_checkpoints_get_a_mean_over_them(small, tmp_path):
    model, data = map(str, small)
    options = ["--data", data, "--output-dir", str(tmp_path), "--quiet", "--no-figures"]
    assert analyze.main(["freeze", "--model", model, model, *options]) == 0
    runs = json.loads((tmp_path / "freeze_runs.json").read_text())["runs"]
    assert runs["normal.z_H"]["mask_flips"]["n_runs"] == 2 and runs["normal.z_H"]["mask_flips"]["std"] == 0
    pages = [path.read_text().lower() for path in tmp_path.rglob("freeze*.md")]
    assert len(pages) == 3 and "published" not in "".join(pages)  # of 4x4 there is nothing


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--limit", "0"], "--limit must be 1 or more"),
        (["--steps", "7"], "beyond the model's"),
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_analyze_ends_with_one_sentence_on_bad_input(small, tmp_path, capsys, extra, sentence):
    model, data = map(str, small)
    given = ["--model", model, "--data", data, "--output-dir", str(tmp_path / "out"), "--quiet", "--no-figures"]
    assert analyze.main(["attention", *given, *extra]) == 1
    error = capsys.readouterr().err
    assert error.startswith("analyze: ") and sentence in error and "Traceback" not in error


def test_analyze_refuses_data_of_another_task(small, tmp_path, capsys):
    data = tmp_path / "maze.csv"
    data.write_text('question,answer\n"S  # G","So # G"\n')
    assert analyze.main(["freeze", "--model", str(small[0]), "--data", str(data), "--output-dir", str(tmp_path)]) == 1
    assert "analyze: " in capsys.readouterr().err


def test_token_1_of_a_generic_grid_is_no_blank():
    curves = {
        z: {"blank": {"mean": [blank]}, "pad": {"mean": [pad]}} for z, blank, pad in (("z_H", 1, 0), ("z_L", 0, 1))
    }
    said = held_back_sentence(curves, make_task("grid", 2, vocab_size=4))
    assert said == "Over the roll-out z_L leaves 100.00 % of its cells PAD, z_H 0.00 %.\n"


def test_analyze_takes_mazes_of_another_size_where_the_model_does(tmp_path):
    model = lively(**MAZE, position_embedding="rope2d", halt_max_steps=1)
    model.save_pretrained(tmp_path / "model")
    data = tmp_path / "maze.csv"
    task = make_task("maze", 3)
    answer = task.decode(task.label(task.encode("S    #  G")[None])[0])
    data.write_text(f'question,answer\n"S    #  G","{answer}"\n')
    given = ["--model", str(tmp_path / "model"), "--data", str(data), "--output-dir", str(tmp_path), "--quiet"]
    assert analyze.main(["freeze", *given, "--no-figures"]) == 0
    assert len(json.loads((tmp_path / "analysis.json").read_text())["puzzles"][0][0]) == 9
