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


def test_the_first_half_of_a_run_is_the_shorter_budget():
    runs = [run("Lx_H", 0, 0.6), run("Lx_Hx", 0, 0.8)]
    assert findings.budgets(runs) == [50, 100]
    assert findings.of_rung(runs, "published", "Lx_H", 50) == {0: 30.0}


def test_a_ladder_is_told_size_by_size():
    small, large = findings.LADDERS
    pairs = [(large, 0.9, 0.4), (small, 0.6, 0.8)]
    runs = [run(v, 0, exact, size=size) for size, *both in pairs for v, exact in zip(("Lx_H", "Lx_Hx"), both)]
    first, second = findings.say_ladder(runs).split("\n\n")
    assert first.startswith("4x4, 2 layers.") and "`Lx_Hx` by 10.0 (50 steps, 1 seed)" in first
    assert second.startswith("6x6, 2 layers.") and "`Lx_H` by 25.0 (50 steps, 1 seed)" in second
    assert findings.say_ladder(runs[:1]) == "No rung has been run yet."


def test_asymmetric_and_symmetric_rules_are_compared_as_groups_over_seeds_that_all_have():
    size = findings.TABLE
    asymmetric = ("L_Hx", "Lx_H", "L_H2x", "L2x_H", "Lx_H2x", "L2x_Hx")
    runs = [run(v, 0, 0.8 if v == "Lx_H" else 0.5, size=size) for v in asymmetric]
    runs += [run(v, 0, 0.4, size=size) for v in ("Lx_Hx", "L2x_H2x")]
    runs += [run("HRM", 0, 0.9, size=size), run("Lx_H", 1, 0.9, size=size)]
    assert findings.group_gap(runs, 100) == (pytest.approx(15.0), None, 1)
    assert findings.say_groups(runs).endswith(
        "by seed: +7.5 (1) points after 50 steps, +15.0 (1) points after 100 steps."
    )


def test_sentences_say_which_state_holds_back():
    text = findings.say_states({"air-4x4": study(held=0.2), "air-4x4-Lx_Hx": study("Lx_Hx", held=0.0)})
    assert "leaves clearly more cells open than z_H in 4x4 `Lx_H` (20.0 against 0.0 %)" in text
    assert "no more cells open than z_H in 4x4 twin `Lx_Hx`" in text


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
    assert all(f"<!-- table: {name} -->" in page for name in findings.tables(tmp_path, PUBLISHED))
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
