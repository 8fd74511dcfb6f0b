"""Findings: what is kept of a report, what sentences and gaps say, and that the tour runs."""

import json

import pytest
from conftest import ROOT

from air_model.analysis import findings
from air_model.publishing.card import roles_text
from air_model.training import sweep

PUBLISHED = json.loads((ROOT / "results" / "published.json").read_text())


def run(variant: str, seed: int, exact: float, rung: str = "", size: findings.Size = findings.TABLE) -> dict:
    about = {"suite": "x", "rung": rung, "variant": variant, "seed": seed, "grid": size[0], "layers": size[1]}
    return {**about, "exact": {"50": exact / 2, "100": exact}}


def study(variant: str = "Lx_H", held: float = 0.2) -> dict:
    """A study as summary.json has it, z_L leaving `held` of its cells blank."""
    by = {name: [0.5, 1.0] * 2 for name in ("accuracy", "exact", "margin", "changed")} | {
        "pad": [0] * 4,
        "blank": [0] * 4,
    }
    changes = {name: {"mean": 1.0, "std": 0.0} for name in ("mask_flips", "content_changes", "exact_accuracy")}
    frozen = dict.fromkeys((*findings.FREEZE_KEYS, "freeze_z_H.z_H", "freeze_z_L.z_L"), changes)
    metrics = {name: {"mean": 0.1, "ci95": 0.01} for name in ("neighborhood", "entropy", "violation")}
    entry = {"n_queries": 4, "n_puzzles": 2, "metrics": metrics}
    classes = {"violation_adjacent": entry, "control": entry}
    return {
        "task": "sudoku", "grid": [4, 4], "variant": variant, "n_puzzles": 2, "schedule": "lh",
        "injections": [1, int(variant == "Lx_Hx")], "freeze": frozen, "attention": {"0": classes, "1": classes},
        "rollout": {"z_H": by, "z_L": {**by, "blank": [1, 1, held, held]}},
        "geometry": {"cosine": [0.0, 0.5]},
    }  # fmt: skip


def test_gaps_are_taken_seed_by_seed_with_students_interval():
    gap = findings.paired({0: 60.0, 1: 62.0, 2: 64.0, 9: 0.0}, {0: 50.0, 1: 51.0, 2: 56.0})
    assert gap[0] == pytest.approx(29 / 3) and gap[2] == 3
    assert gap[1] == pytest.approx(4.30 * (7 / 3) ** 0.5 / 3**0.5, rel=1e-3)
    assert findings.paired({0: 1.0}, {1: 1.0}) is None
    mean, half, n = findings.paired({seed: float(seed % 2) for seed in range(12)}, dict.fromkeys(range(12), 0.0))
    assert n == 12 and half >= 2.20 * (12 / 11 / 4 / 12) ** 0.5  # Student's t of eleven degrees, not the normal's


def test_the_first_half_of_a_run_is_the_shorter_budget():
    runs = [run("Lx_H", 0, 0.6), run("Lx_Hx", 0, 0.8)]
    assert findings.budgets(runs) == [50, 100]
    assert findings.of_rung(runs, "published", "Lx_H", 50) == {0: 30.0}


def test_the_gaps_of_a_rung_stand_size_by_size_and_bold_where_the_interval_leaves_out_0():
    small, large = findings.LADDERS
    pairs = [(large, 0.9, 0.4, "muon"), (small, 0.6, 0.8, "rope2d")]
    runs = [run(v, seed, exact + seed / 100, rung, size) for size, *both, rung in pairs for seed in (0, 1)
            for v, exact in zip(("Lx_H", "Lx_Hx"), both)]  # fmt: skip
    runs += [run("Lx_Hx", 2, 0.9, "rope2d", small), run("Lx_H", 2, 1.0, "rope2d", small)]
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in findings.gaps_table(runs).splitlines()}
    cells = {rung: [cell.strip(" |") for cell in row] for rung, row in rows.items()}
    assert cells["+ Muon"][4:] == ["50", "**+25.0 ± 0.0 (2)**", "100", "**+50.0 ± 0.0 (2)**"]
    assert cells["+ positions in two dimensions"][:2] == ["50", "-5.0 ± 21.5 (3)"]
    assert not any(cells["+ heads by relation"])


def test_rules_in_which_both_updates_see_the_puzzle_stand_beside_the_others():
    exact = {"Lx_H": 0.2, "L_Hx": 0.4, "Lx_Hx": 0.6, "L2x_H2x": 0.8, "L2x_H2x_prepend": 1.0}
    runs = [run(variant, 0, share, "relations") for variant, share in exact.items()]
    rows = {line.split(" | ")[0].strip("| "): line for line in findings.rules_table(runs).splitlines()}
    assert rows["+ heads by relation"] == "| + heads by relation | 30 to 50 | 10 to 20 |  |  |"
    runs.pop()  # not yet all of them
    assert "| + heads by relation |  |  |  |  |" in findings.rules_table(runs)


def test_asymmetric_and_symmetric_rules_are_compared_as_groups_over_seeds_that_all_have():
    size = findings.TABLE
    asymmetric = ("L_Hx", "Lx_H", "L_H2x", "L2x_H", "Lx_H2x", "L2x_Hx")
    runs = [run(v, 0, 0.8 if v == "Lx_H" else 0.5, size=size) for v in asymmetric]
    runs += [run(v, 0, 0.4, size=size) for v in ("Lx_Hx", "L2x_H2x")]
    runs += [run("HRM", 0, 0.9, size=size), run("Lx_H", 1, 0.9, size=size)]
    assert findings.group_gap(runs, 100) == (pytest.approx(15.0), None, 1)
    text = findings.say_groups(runs, PUBLISHED)
    assert text.endswith(
        "by seed: +7.5 (1) points after 50 steps, +15.0 (1) points after 100 steps; the paper's +7.6 (9x9)."
    )


def test_a_model_has_a_row_of_what_its_states_are_and_how_far_either_gets_alone():
    table = findings.states_table({"air-4x4": study(held=0.2), "air-4x4-Lx_Hx": study("Lx_Hx", held=0.0)})
    assert "| 4x4 `Lx_H` | 2 | 0.0 | 20.0 | 100.0 | 100.0 | 100.0 | 100.0 | 0.50 | 0.100 |" in table
    assert "| 4x4 twin `Lx_Hx` | 2 | 0.0 | 0.0 | " in table


def test_a_card_tells_what_the_states_of_its_model_do(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({**study(), "source": "made"}))
    text = roles_text("a", tmp_path)
    assert "On 2 puzzles (made) z_L keeps 20.0 % of its cells open, z_H 0.0 %" in text and not roles_text(
        "b", tmp_path
    )


def test_the_page_its_figures_and_the_spaces_part_come_out_of_files(tmp_path):
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "a.json").write_text(json.dumps(study()))
    ladder = [(v, s, r) for v in sweep.SMALL_SUITES["ladder"] for s in (0, 1) for r in ("", "rope2d")]
    lines = [run(v, s, 0.6, r, size) for v, s, r in ladder for size in findings.LADDERS]
    (tmp_path / "small_runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = (ROOT / "docs" / "findings.md").read_text()
    assert all(f"<!-- table: {name} -->" in page for name in findings.parts_of_the_page(tmp_path, PUBLISHED))
    assert all(table for _, table in findings.tables(tmp_path, PUBLISHED).values())
    drawn = findings.draw(tmp_path, PUBLISHED, tmp_path / "figures")
    assert len(drawn) == 5 and all(f"results/figures/{path.name}" in page for path in drawn)
    told = findings.for_the_space(tmp_path)
    assert told["models"]["a"]["asymmetric"] and told["models"]["a"]["solved"] == ["100.0", "100.0", "100.0"]
    assert [(row["steps"], row["seeds"], row["Lx_Hx"]) for row in told["ladder"]] == [(50, 2, 30.0)] * 2


def test_a_report_keeps_its_numbers_without_puzzles():
    for path in (ROOT / "results" / "studies").glob("*.json"):
        kept = json.loads(path.read_text())
        assert "puzzles" not in kept and path.stat().st_size < 60_000, path


def test_a_rung_keeps_what_the_ones_below_it_changed():
    values = sweep.rung_values("muon")
    assert values["optimizer"] == "muon_adamw" and values["position_embedding"] == "rope2d" and "qk_norm" not in values
    with pytest.raises(ValueError, match="Unknown rung"):
        sweep.rung_values("moon")


@pytest.mark.slow
def test_every_cell_of_the_tour_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    for cell in json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "valid: True" in capsys.readouterr().out and names["cosines"][-1] > 0.9
    assert {path.name for path in names["OUT"].glob("*.png")} == {"strip.png", "attention.png", "search.png"}
