"""Tables: what counts as a reproduction, how cells are filled, and that only marked parts of files change."""

import json
from pathlib import Path

import pytest
from conftest import ROOT

from air_model.analysis import leaderboard, tables
from air_model.scripts import make_tables
from air_model.training.recipe import read_recipe

PUBLISHED = json.loads((ROOT / "results" / "published.json").read_text())


def record(variant: str = "Lx_H", seed: int = 0, exact: float = 0.6, task: str = "sudoku", **changes) -> dict:
    """A run record as train_accelerate.py writes it, of a full run of the published recipe."""
    name = {"sudoku": "sudoku_extreme", "maze": "maze_hard"}[task]
    config = {**read_recipe(name, [f"variant={variant}", f"seed={seed}"]).flat(), **changes}
    steps = config["max_steps"]
    return {
        "status": "finished", "name": f"{variant}-{seed}", "task": task, "grid": [9, 9], "variant": variant,
        "seed": seed, "steps": steps, "max_steps": steps, "config": config, "date": "2026-11-22", "wall_seconds": 60.0,
        "metrics": {"eval": {"exact_accuracy": exact}}, "data": {"eval": {"n": 1000}}, "hardware": {"device": "x"},
    }  # fmt: skip


def row_of(table: str, variant: str) -> list[str]:
    line = next(line for line in table.splitlines() if f"| `{variant}`" in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_injection_table_sets_ours_beside_the_published_values():
    runs = [record(seed=s, exact=e) for s, e in ((0, 0.58), (1, 0.60), (2, 0.62))] + [record("L_H2x", task="maze")]
    table = tables.injection_table(runs, PUBLISHED)
    assert row_of(table, "Lx_H") == ["`Lx_H`", "1", "0", "1", "60.0 ± 2.0", "60.0 ± 2.0", "3", "71.0 ± 6.3", "", ""]
    assert row_of(table, "L_H2x")[-3:] == ["75.6 ± 1.9", "60.0", "1"]
    assert "*59.1*" in table and "*51.5*" in table  # the published group means


def test_a_table_says_on_how_many_puzzles_our_runs_were_evaluated():
    runs = [record(), record(seed=1), record("L_H2x", task="maze")]
    runs[1]["data"]["eval"]["n"] = 2048
    table = tables.injection_table(runs, PUBLISHED)
    assert table.endswith("Ours, sudoku: each run evaluated on 1,000 to 2,048 puzzles.\n\n"
                          "Ours, maze: each run evaluated on 1,000 puzzles.")  # fmt: skip
    assert tables.evaluated_on([5, 5]) == "5" and tables.evaluated_on([7, 5, 6]) == "5 to 7"
    assert "evaluated on" not in tables.injection_table([], PUBLISHED)


def test_without_runs_our_cells_are_empty():
    for name, (_, make) in tables.TABLES.items():
        assert "None" not in make([], PUBLISHED) and "nan" not in make([], PUBLISHED), name
    assert row_of(tables.suite_table("level-token", [], PUBLISHED), "L2x_H2x_prepend")[-3:] == ["57.5 ± 1.3", "", ""]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 64},
        {"max_steps": 100},
        {"ema": 0.999},
        {"cell_embedding": True},
        {"cycles": {0: [1, 1]}},
        {"num_hidden_layers": 1},
        {"intermediate_size": 64},
        {"h_cycles": 1},
        {"l_injection": 3},
        {"beta2": 0.999},
        {"q_continue": False},
        {"train_act_steps": 4},
        {"train_size": 100},
        {"eval_split": "train"},
        {"input_operator": "minus_x"},
        {"grad_clip": 1.0},
        {"eval_data": "easy.csv"},
        {"prefix_length": 16},
    ],
)
def test_a_run_of_another_size_or_method_does_not_count_as_a_reproduction(changes):
    assert tables.is_published_protocol(record())
    assert not tables.is_published_protocol(record(**changes))


@pytest.mark.parametrize("variant", ["L2x_H2x_prepend", "gx_linear", "HRM"])
def test_every_variant_of_the_published_recipe_counts(variant):
    assert tables.is_published_protocol(record(variant)) and tables.is_published_protocol(record(variant, task="maze"))


@pytest.mark.parametrize(
    "changes",
    [{"save_every": 7, "trackers": "none"}, {"data": "my/copy", "eval_split": "dev"}, {"position_embedding": "rope"},
     {"compile": "off", "accumulation": 2}],
)  # fmt: skip
def test_what_changes_no_weight_or_says_a_default_still_counts(changes):
    assert tables.is_published_protocol(record(**changes))


def test_a_seed_counts_once_however_often_it_ran(tmp_path):
    path = tmp_path / "runs.jsonl"
    runs = [record(exact=e, save_every=every) for e, every in ((0.5, 10), (0.7, 20))]
    path.write_text("".join(json.dumps(run) + "\n" for run in [*runs, record(seed=1, exact=0.6, compile="off")]))
    assert tables.ours(tables.read_runs(path), "Lx_H", "sudoku") == pytest.approx([70.0, 60.0])


def test_small_sweeps_have_their_own_table():
    runs = [record(v, s, 0.1 * s, hidden_size=64) for v in ("Lx_H", "Lx_Hx") for s in (0, 1)]
    table = tables.small_table(runs, PUBLISHED)
    assert table.count("d 64") == 2 and "5.0 ± 7.1" in table
    assert row_of(tables.injection_table(runs, PUBLISHED), "Lx_H")[5] == ""


def test_the_newest_of_two_equal_runs_counts(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(record(exact=e)) + "\n" for e in (0.5, 0.7)))
    assert [tables.accuracy(run)[0] for run in tables.read_runs(path)] == [70.0]
    runs = [record(exact=0.5), record(exact=0.6, log_every=1, eval_limit=100), record(exact=0.7)]
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert tables.ours(tables.read_runs(path), "Lx_H", "sudoku") == [70.0]


def test_a_full_evaluation_beside_the_run_replaces_its_subset():
    run = {**record(), "evaluation": {"exact_accuracy": 0.55, "n": 422786}}
    assert tables.accuracy(run) == (pytest.approx(55.0), 422786)


def test_a_share_that_is_not_all_is_not_written_as_all():
    assert [tables.share(x) for x in (100.0, 99.97, 99.996, 17.77, 0.02, 0.0)] == [
        "100.0", "99.97", "99.996", "17.8", "0.02", "0.0",
    ]  # fmt: skip


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(record()) + "\nnot json\n")
    with pytest.raises(ValueError, match="line 2"):
        tables.read_runs(path)


def test_only_what_stands_between_the_markers_changes():
    text = "before\n<!-- table: a -->\nold\n<!-- /table -->\nafter\n"
    filled = tables.fill(text, {"a": "| new |"}, "x.md")
    assert filled == "before\n<!-- table: a -->\n| new |\n<!-- /table -->\nafter\n"
    assert tables.fill(filled, {"a": "| new |"}, "x.md") == filled
    with pytest.raises(ValueError, match="Known: a"):
        tables.fill(text.replace("table: a", "table: b"), {"a": ""}, "x.md")
    with pytest.raises(ValueError, match="needs"):
        tables.fill("<!-- table: a -->\n", {"a": ""}, "x.md")


def test_the_command_writes_tables_and_charts_and_then_finds_them_up_to_date(tmp_path: Path):
    (tmp_path / "runs.jsonl").write_text(json.dumps(record()) + "\n")
    (tmp_path / "report.md").write_text("<!-- table: injection -->\n<!-- /table -->\n")
    command = ["--runs", str(tmp_path / "runs.jsonl"), "--file", str(tmp_path / "report.md")]
    command += ["--tables", str(tmp_path / "TABLES.md"), "--figures", str(tmp_path / "figures")]
    assert make_tables.main([*command, "--check"]) == 1
    assert make_tables.main(command) == 0
    assert "60.0 ± 2.0" in (tmp_path / "report.md").read_text()
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "injection_sudoku.png", "injection_maze.png", "level-token_sudoku.png", "operator_sudoku.png",
    }  # fmt: skip
    assert make_tables.main([*command, "--check"]) == 0


def test_a_report_of_ones_own_leaves_this_projects_pages_alone(tmp_path, capsys):
    (tmp_path / "runs.jsonl").write_text(json.dumps(record()) + "\n")
    (tmp_path / "report.md").write_text("<!-- table: injection -->\n<!-- /table -->\n")
    command = ["--runs", str(tmp_path / "runs.jsonl"), "--file", str(tmp_path / "report.md"), "--check"]
    assert make_tables.main(command) == 1
    assert capsys.readouterr().out.count("is out of date") == 1


def test_a_file_of_runs_that_is_not_there_empties_no_table(tmp_path, capsys):
    page = tmp_path / "report.md"
    page.write_text("<!-- table: injection -->\nfull\n<!-- /table -->\n")
    assert make_tables.main(["--runs", str(tmp_path / "typo.jsonl"), "--file", str(page)]) == 1
    assert "no such file" in capsys.readouterr().err and "full" in page.read_text()


def test_checkpoints_are_listed_with_every_evaluation_beside_them(tmp_path):
    home = tmp_path / "air-small"
    home.mkdir()
    config = {"task": "sudoku", "grid_height": 6, "grid_width": 6, "halt_max_steps": 16}
    (home / "config.json").write_text(json.dumps(config))
    evaluation = {
        "n": 500,
        "exact_accuracy": 0.98,
        "mean_act_steps": 3.2,
        "settings": {"halt": "q", "data": "a/b.csv"},
    }
    (home / "evaluation.json").write_text(json.dumps(evaluation))
    table = leaderboard.evaluations_table(leaderboard.read_checkpoints(tmp_path))
    assert "air-small" in table and "98.0" in table and "adaptive halting" in table and "3.2" in table
    assert "at most" not in table


def test_an_evaluation_with_another_budget_of_steps_says_so(tmp_path):
    (tmp_path / "m").mkdir()
    config = {"task": "maze", "grid_height": 12, "grid_width": 12, "halt_max_steps": 16}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    for most in (16, 64):
        evaluation = {"n": 5, "exact_accuracy": 0.98, "settings": {"halt": "q", "max_act_steps": most}}
        (tmp_path / "m" / f"{most}.json").write_text(json.dumps(evaluation))
    table = leaderboard.evaluations_table(leaderboard.read_checkpoints(tmp_path))
    assert table.count("adaptive halting") == 2 and table.count("adaptive halting, 64 at most") == 1


@pytest.mark.parametrize("task", ["sudoku", "maze"])
def test_the_recipe_of_hrm_counts_as_its_published_protocol(task):
    own = record("HRM", task=task)
    own["config"] = read_recipe(f"hrm_{task}").flat()
    assert tables.is_published_protocol(own)


def test_the_published_budget_may_be_given_in_epochs():
    run = record(epochs=20000, max_steps=26041)
    run["config"]["max_steps"] = None
    assert tables.is_published_protocol(run)
    assert not tables.is_published_protocol({**run, "steps": 26000})


def test_runs_on_mazes_have_columns_of_their_own_in_the_other_suites():
    plain, runs = (tables.suite_table("operator", some, PUBLISHED) for some in ([], [record("minus_x", task="maze")]))
    assert "Maze" not in plain and row_of(runs, "minus_x")[-3:] == ["", "60.0", "1"]
    assert row_of(plain, "minus_x")[2:5] == ["1", "0", "1"]


def test_hrm_by_its_own_recipe_counts_and_shares_a_table_with_the_others():
    own = record("HRM")
    own["config"] = {**own["config"], "atan2_scale": 1.0}
    assert tables.is_published_protocol(own)
    short = [record("Lx_H"), own]
    for run in short:
        run.update(steps=10, max_steps=10, config={**run["config"], "max_steps": 10})
    (sweep,) = tables.small_sweeps(short).values()
    assert set(sweep) == {"Lx_H", "HRM"}


def test_the_page_of_tables_links_from_where_it_lies():
    import re

    page = ROOT / "results" / "TABLES.md"
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    assert links and all((page.parent / link).exists() for link in links if "://" not in link)


# ---- checkpoints and the leaderboard -------------------------------------------------------------------------------


def shipped(folder: Path, size: int = 9, **evaluations: dict) -> list[leaderboard.Checkpoint]:
    """A checkpoint with these evaluation files, settings given flat."""
    home = folder / "air-x"
    home.mkdir(parents=True)
    config = {"task": "sudoku", "grid_height": size, "grid_width": size, "halt_max_steps": 16}
    (home / "config.json").write_text(json.dumps(config))
    for name, entry in evaluations.items():
        numbers = {k: entry.pop(k) for k in ("n", "exact_accuracy", "valid_accuracy") if k in entry}
        settings = {"data": "../sudoku_extreme", "split": "test", "halt": "max", "max_act_steps": 16, **entry}
        (home / f"{name}.json").write_text(json.dumps({**numbers, "settings": settings}))
    return leaderboard.read_checkpoints(folder)


ONE = {"n": 1000, "exact_accuracy": 0.25}
PINS = {"n": 1000, "exact_accuracy": 0.9, "valid_accuracy": 0.95, "attempts": 64, "retry": "pins", "halt": "q"}


def test_a_checkpoint_has_one_row_with_a_single_pass_and_with_thought(tmp_path):
    other = {"n": 9000, "exact_accuracy": 1.0, "attempts": 8, "data": "easy.csv"}
    table = leaderboard.checkpoints_table(shipped(tmp_path, one=dict(ONE), pins=dict(PINS), easy=other))
    assert len(table.splitlines()) == 3
    assert "| 25.0 (n = 1,000) | 95.0 (adaptive halting, 64 nodes of search, n = 1,000) |" in table


@pytest.mark.parametrize("more", [{"max_act_steps": 64}, {"attempts": 8}, {"halt": "rules"}, {"model": ["a", "b"]}])
def test_more_steps_attempts_rules_or_checkpoints_are_no_single_pass(tmp_path, more):
    (one,) = shipped(tmp_path, one={**ONE, **more})
    assert leaderboard.best(one.evaluations)[0] is None and "thought" in leaderboard.evaluations_table([one])


def test_the_leaderboard_sets_ours_among_the_published_systems_and_says_which_rows_were_solved(tmp_path):
    systems = json.loads((ROOT / "results" / "published_systems.json").read_text())
    table = leaderboard.leaderboard_table(systems, shipped(tmp_path, one={**ONE, "split": "dev"}, pins=dict(PINS)))
    (own,) = [line for line in table.splitlines() if "(ours)" in line]
    assert "25.0 (dev rows, n = 1,000)" in own and "nodes" not in own  # another split is another experiment
    assert table.index("SE-RRM") < table.index("| HRM |") < table.index("air-x")
    assert not [line for line in table.splitlines()[2:] if line.rstrip("| ").endswith("|")]  # each has a source


def test_a_checkpoint_of_another_size_is_not_on_the_leaderboard(tmp_path):
    systems = {"systems": [], "sources": {}}
    assert "air-x" not in leaderboard.leaderboard_table(systems, shipped(tmp_path, size=6, one=dict(ONE)))


def test_a_maze_model_that_was_asked_for_the_benchmark_s_size_is_on_the_leaderboard_and_says_so(tmp_path):
    (one,) = shipped(tmp_path, size=12, one={**PINS, "task": "MazeTask(30x30, 6 tokens)", "data": "maze_hard"})
    one.task = "maze"
    table = leaderboard.leaderboard_table({"systems": [], "sources": {}}, [one])
    assert (
        "90.0 (adaptive halting, 64 nodes of search, 95.0 where any shortest path counts, test rows, a model" in table
    )
    assert "a model for 12x12, n = 1,000)" in table


def test_a_published_number_without_a_source_is_refused():
    bare = {"system": "S", "parameters": "", "training": "", "sudoku": {"single": {"value": 1.0}}}
    with pytest.raises(ValueError, match="S, sudoku, single: a published number needs a source"):
        leaderboard.leaderboard_table({"systems": [bare], "sources": {}}, [])
