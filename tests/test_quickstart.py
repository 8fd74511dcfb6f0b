"""The quickstart as a stranger meets it: what its exit status says."""

from air_model.scripts import quickstart


def test_a_result_below_the_mark_is_a_sentence_and_no_failure(tmp_path, monkeypatch, capsys):
    sizes = ["--grid", "6x6", "--num-train", "4", "--num-test", "2", "--seed", "0"]
    monkeypatch.setattr(quickstart, "DATA", ["sudoku-extreme", "--source", "generate", *sizes])
    monkeypatch.setattr(quickstart, "solve_with_shipped", lambda: None)
    tiny = ["max_steps=1", "batch_size=2", "hidden_size=16", "compile=off", "trackers=none"]
    assert quickstart.main(["--output-dir", str(tmp_path / "out"), *tiny]) == 0
    assert "below the 99%" in capsys.readouterr().out
