"""scripts/evaluate.py: its numbers, parts that survive a kill, several processes, curves."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_model
from test_solve import TASK, brute_force, halting_model, puzzles_of

from air_model import load_model, save_release, solve_puzzles
from air_model.analysis.evaluation import Evaluation, draw_thought_curve, thought_curve
from air_model.answers_air import keep_givens
from air_model.datasets_builders.loading import PuzzleSet, load_for_models, load_puzzles
from air_model.scripts import evaluate as script
from air_model.training.trainer import evaluate_model


def puzzle_set(n: int = 20) -> PuzzleSet:
    puzzles = puzzles_of(n)
    labels = np.stack([brute_force(puzzle) for puzzle in puzzles])
    return PuzzleSet(puzzles, labels, TASK, rating=np.arange(n, dtype=np.int32) * 5)


@pytest.fixture
def files(tmp_path):
    """A model folder and a CSV of 20 puzzles."""
    save_release(halting_model(), tmp_path / "model")
    data = puzzle_set()
    rows = zip(data.inputs, data.labels, data.rating)
    lines = [f"x,{TASK.decode(question)},{TASK.decode(answer)},{rating}" for question, answer, rating in rows]
    (tmp_path / "dev.csv").write_text("\n".join(["source,question,answer,rating", *lines]) + "\n")
    return tmp_path


def run(files, *arguments: str) -> dict:
    output = files / "out.json"
    words = ["--model", str(files / "model"), "--data", str(files / "dev.csv"), "--device", "cpu"]
    assert script.main([*words, "--output", str(output), *arguments]) == 0
    return json.loads(output.read_text())


def test_the_json_has_what_design_promises(files):
    result = run(files, "--limit", "12", "--halt", "max", "--by-rating", "--calibration-plot", str(files / "c.png"))
    assert result["n"] == 12 and result["mean_act_steps"] == 8 and result["puzzles_per_second"] > 0
    for name in ("exact_accuracy", "cell_accuracy", "valid_accuracy", "blank_cell_accuracy"):
        low, high = result[f"{name}_ci95"]
        assert low <= result[name] <= high
    assert sum(row["n"] for row in result["by_rating"]) == 12
    assert result["settings"]["halt"] == "max" and result["settings"]["limit"] == 12
    assert sum(row["n"] for row in result["calibration"]["bins"]) == 12
    assert (files / "c.png").stat().st_size > 1000
    assert not list(files.glob("out.json.parts*"))


def test_each_of_several_checkpoints_takes_its_own_act_steps(files):
    short = halting_model()
    short.config.halt_max_steps, short.config.q_continue = 2, False  # so that its rule is no row of VARIANTS
    save_release(short, files / "short")
    models = ("--model", str(files / "short"), str(files / "model"))
    result = run(files, *models, "--limit", "3", "--halt", "max", "--attempts", "1")
    assert result["mean_act_steps"] == 2 + 8 and result["settings"]["max_act_steps"] is None
    both = sum(p.numel() for p in short.parameters()) * 2  # so that no card takes the numbers for one model's
    assert result["settings"]["parameters"] == both and result["settings"]["variant"] == "Lx_H + Lx_H"


def test_puzzles_without_a_label_are_not_in_the_calibration(tmp_path):
    puzzles = puzzle_set(5)
    labels = puzzles.labels.copy()
    labels[2] = 0  # PAD
    evaluation = Evaluation([halting_model()], PuzzleSet(puzzles.inputs, labels, TASK), tmp_path, progress=False)
    evaluation.run()
    assert sum(row["n"] for row in evaluation.result()["calibration"]["bins"]) == evaluation.result()["n"] == 4


def test_the_sides_of_a_model_hold_for_mazes_of_as_many_cells(tmp_path):
    save_release(tiny_model(task="maze", grid_height=2, grid_width=8, position_embedding="rope2d"), tmp_path / "model")
    maze = "S      #" + "#      G"  # 16 cells, which a guess would take for 4 x 4
    (tmp_path / "test.csv").write_text(f"question,answer\n{maze},Soooooo##     oG\n")
    puzzles = load_for_models([load_model(tmp_path / "model", "cpu")], str(tmp_path / "test.csv"), "test")
    assert (puzzles.task.height, puzzles.task.width) == (2, 8)


def test_mazes_of_another_size_that_the_model_takes_are_evaluated(tmp_path):
    fields = {"task": "maze", "position_embedding": "rope2d", "head_relations": ["adjacent", "all"]}
    save_release(tiny_model(grid_height=3, **fields), tmp_path / "model")
    question, answer = "S  #" + "   #" + " # G" + " ## ", "So #" + " oo#" + " #oG" + " ## "  # 4 x 4
    (tmp_path / "dev.csv").write_text(f"question,answer,rating\n{question},{answer},5\n")
    result = run(tmp_path, "--by-rating")
    assert result["n"] == 1 and result["by_rating"][0]["rating"] == "0-9"  # moves, not guesses


def test_drawn_mazes_are_evaluated_in_the_shape_that_they_are_drawn_in(tmp_path):
    save_release(tiny_model(task="maze", grid_height=4, position_embedding="rope2d"), tmp_path / "model")
    (tmp_path / "dev.csv").write_text('question,answer\n"S  #\n # G\n    ","So #\n #oG\n ooo"\n')
    assert run(tmp_path)["settings"]["task"] == "MazeTask(3x4, 6 tokens)"


@pytest.mark.parametrize("grid", ["1234" * 4, "12350000" * 2], ids=["of a Sudoku's letters", "padded"])
def test_a_generic_grid_is_evaluated_as_what_its_model_was_made_for(tmp_path, grid):
    save_release(tiny_model(task="grid", vocab_size=6), tmp_path / "model")
    (tmp_path / "dev.csv").write_text(f"question,answer\n{grid},{grid}\n")
    result = run(tmp_path)
    assert result["settings"]["task"] == "GridTask(4x4, 6 tokens)"
    assert not {"blank_cell_accuracy", "valid_accuracy"} & result.keys()  # its token 1 is like any other


def test_attempts_cost_steps_and_halting_saves_them(files):
    plain, tried = run(files, "--halt", "q"), run(files, "--halt", "q", "--attempts", "3", "--noise", "0.1")
    assert plain["mean_act_steps"] < 8 and plain["mean_attempts"] == 1
    assert tried["mean_act_steps"] > plain["mean_act_steps"] and tried["exact_accuracy"] >= plain["exact_accuracy"]


def test_exact_accuracy_is_what_the_answers_say(tmp_path):
    model, data = halting_model(), puzzle_set()
    evaluation = Evaluation([model], data, tmp_path, progress=False, halt="max", max_act_steps=3)
    evaluation.run()
    answers = model.solve(torch.from_numpy(data.inputs), max_act_steps=3).predictions.numpy()
    answers = keep_givens(data.task, data.inputs, answers)
    result = evaluation.result()
    assert result["cell_accuracy"] == pytest.approx((answers == data.labels).mean())
    assert result["exact_accuracy"] == pytest.approx((answers == data.labels).all(1).mean())


def test_a_training_scores_the_same_answers(files, tmp_path):
    scores = run(files, "--halt", "max")
    model, data = load_model(files / "model"), load_puzzles(files / "dev.csv")
    found = evaluate_model(model, data, batch_size=7)
    assert found == pytest.approx({name: scores[name] for name in found})
    raw = model.solve(torch.from_numpy(data.inputs)).predictions.numpy()
    assert found["cell_accuracy"] > (raw == data.labels).mean()  # no answer of these random weights keeps its givens


def test_the_shares_of_several_processes_are_the_answers_of_one():
    model, data, whole, shares = halting_model(), puzzle_set(7), [], []
    evaluate_model(model, data, batch_size=4, gather=whole.append)
    for rank in range(9):  # more of them than puzzles
        found = evaluate_model(model, data, batch_size=2, rank=rank, world=9, gather=shares.append)
        assert found is None  # as of a process whose neighbour was stopped
    assert [len(share) for share in shares] == [1] * 7 + [0] * 2
    assert np.array_equal(np.concatenate(shares), whole[0])


def test_a_puzzle_without_a_label_is_not_scored_in_training():
    model, data = halting_model(), puzzle_set(7)
    evaluate_model(model, data, batch_size=7, gather=lambda own: data.labels.__setitem__(slice(None), own))
    data.labels[:] = keep_givens(TASK, data.inputs, data.labels)
    data.labels[::2] = 0
    found = evaluate_model(model, data, batch_size=7)
    assert (found["n"], found["exact_accuracy"], found["cell_accuracy"]) == (3, 1.0, 1.0)


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, monkeypatch):
    model, data = halting_model(), puzzle_set()
    options = {"progress": False, "save_seconds": 0.0, "halt": "q", "batch_size": 2, "attempts": 2}
    whole = Evaluation([model], data, tmp_path / "whole", **options)
    whole.run()
    killed = Evaluation([model], data, tmp_path / "parts", **options)
    forward = model.forward

    def dies(*args, **kwargs):
        if len(killed.read()["row"]) >= 5:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "forward", dies)
        killed.run()
    done = len(killed.read()["row"])
    assert 0 < done < len(data)
    with pytest.raises(ValueError, match="unsolved .* Run the same command again"):
        killed.result()
    (killed.folder / ".half.partial").write_bytes(b"cut off")
    again = Evaluation([model], data, tmp_path / "parts", **options)
    again.run()
    wanted, found = whole.read(), again.read()
    assert all((wanted[name] == found[name]).all() for name in ("row", "tokens", "act_steps", "valid", "attempts"))
    assert sum(len(np.load(part)["row"]) for part in again.folder.glob("part-*.npz")) == len(data), "none twice"


def test_other_settings_or_weights_do_not_use_the_parts(tmp_path):
    data = puzzle_set(4)
    folders = {
        Evaluation([model], data, tmp_path, **options).folder
        for model in (halting_model(), halting_model(seed=3))
        for options in ({"halt": "q"}, {"halt": "max"})
    }
    assert len(folders) == 4
    same = Evaluation([halting_model()], data, tmp_path, halt="q", batch_size=3).folder
    assert same in folders


def test_parts_are_found_again_from_another_folder_and_with_another_number_of_threads(tmp_path):
    model, data = tiny_model(hidden_size=64, intermediate_size=512), puzzle_set(4)
    folders = set()
    for name, threads in (("a", 1), ("b", 2)):
        torch.set_num_threads(threads)
        save_release(model, tmp_path / name)
        folders.add(Evaluation([load_model(tmp_path / name, "cpu")], data, tmp_path / "parts", halt="q").folder)
    torch.set_num_threads(1)
    assert len(folders) == 1


def test_any_number_of_processes_lose_and_repeat_no_puzzle(tmp_path):
    model, data = halting_model(), puzzle_set()
    shares = [Evaluation([model], data, tmp_path, rank=r, world=3, progress=False, halt="q") for r in range(3)]
    # All three read before one writes, as the barrier makes sure of.
    for share in shares:
        share.read_first = share.read()
    rows = []
    for share in shares:
        share.read = lambda first=share.read_first: first
        share.run()
        del share.read
    table = np.concatenate([np.load(path)["row"] for path in shares[0].folder.glob("part-*.npz")])
    rows = sorted(table.tolist())
    assert rows == list(range(20)) and shares[0].result()["n"] == 20


@pytest.mark.slow
def test_two_processes_write_one_result(files):
    import subprocess

    output = files / "two.json"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        str(ROOT / "scripts/evaluate.py"),
    ]
    command += ["--model", str(files / "model"), "--data", str(files / "dev.csv"), "--halt", "q"]
    subprocess.run([*command, "--output", str(output)], check=True, timeout=280, capture_output=True)
    two, one = json.loads(output.read_text()), run(files, "--halt", "q")
    assert two["settings"]["processes"] == 2
    assert [two[k] for k in ("n", "exact_accuracy", "mean_act_steps")] == [
        one[k] for k in ("n", "exact_accuracy", "mean_act_steps")
    ]


def test_the_thought_curve_counts_no_cell_and_no_puzzle_without_a_label():
    model, data = halting_model(), puzzle_set(4)
    answers = model.solve(torch.from_numpy(data.inputs), max_act_steps=2).predictions.numpy().astype(np.uint8)
    data.labels[:] = keep_givens(data.task, data.inputs, answers)
    data.labels[:, ::3] = data.labels[0] = 0
    curve = thought_curve(model, data, max_act_steps=2, attempts=1)
    assert curve["n"] == 3 and curve["exact_accuracy"][0][-1] == 1


def test_the_thought_curve_agrees_with_solving(tmp_path):
    puzzles = puzzles_of(40, blanks=1)
    model, data = halting_model(seed=3), PuzzleSet(puzzles, np.stack([*map(brute_force, puzzles)]), TASK)
    curve = thought_curve(model, data, max_act_steps=8, attempts=3)
    assert curve["steps"] == [1, 2, 4, 8] and curve["attempts"] == [1, 2, 3]
    for k, step in ((1, 1), (1, 8), (3, 1), (3, 8)):
        at = curve["steps"].index(step)
        answers = solve_puzzles(model, None, puzzles, attempts=k, retry="views", halt="max", max_act_steps=step)
        assert curve["mean_act_steps"][k - 1][at] == pytest.approx(answers.act_steps.mean())
        right = curve["exact_accuracy"][k - 1][at]
        assert right == pytest.approx((answers.tokens == data.labels).all(1).mean()) and 0 < right < 1
    halted = model.solve(torch.from_numpy(data.inputs), halt="q")
    assert curve["halting"][-1]["mean_act_steps"] == pytest.approx(float(halted.act_steps.float().mean()))
    answers = keep_givens(TASK, puzzles, halted.predictions.numpy())
    assert curve["halting"][-1]["exact_accuracy"] == pytest.approx((answers == data.labels).all(1).mean()) != 0
    assert draw_thought_curve({"tiny": curve}, tmp_path / "curve.png").stat().st_size > 1000


def test_curves_of_models_whose_folders_have_one_name_stay_apart(files):
    (files / "other").mkdir()
    (files / "model").rename(files / "other/air")
    save_release(halting_model(), files / "air")
    models = [str(files / "air"), str(files / "other/air")]
    words = ["--model", *models, "--data", str(files / "dev.csv"), "--limit", "3", "--max-act-steps", "2"]
    assert script.main([*words, "--device", "cpu", "--curve", str(files / "c.png")]) == 0
    assert list(json.loads((files / "c.json").read_text())["curves"]) == models


def test_several_processes_of_which_one_was_started_are_refused(files, monkeypatch, capsys):
    # What `accelerate launch --cpu --num_processes 2` leaves behind: one process that knows of no other.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert script.main(["--model", str(files / "model"), "--data", str(files / "dev.csv"), "--device", "cpu"]) == 1
    assert "torchrun --nproc_per_node N scripts/evaluate.py" in capsys.readouterr().err


def test_bad_arguments_end_in_one_sentence(files, capsys):
    save_release(tiny_model(grid_height=6), files / "six")
    good = (files / "dev.csv").read_text().splitlines()[1].split(",")
    rows = ["question,answer", f"{good[1]},{good[2]}", "11..............,1134" + "1234" * 3]
    (files / "bad.csv").write_text("\n".join(rows))
    capsys.readouterr()
    fine = ["--model", str(files / "model"), "--data", str(files / "dev.csv")]
    for words, says in (
        (["--model", str(files / "nowhere"), "--data", str(files / "dev.csv")], "holds no config.json"),
        (["--model", str(files / "six"), "--data", str(files / "dev.csv")], "six was made for SudokuTask(6x6"),
        (["--model", str(files / "model"), str(files / "six"), "--data", str(files / "dev.csv")], "six was made for"),
        (["--model", str(files / "model"), "--data", str(files / "none.csv")], "none.csv"),
        (["--model", str(files / "model"), "--data", str(files / "dev.csv"), "--limit", "0"], "--limit must be"),
        (["--model", str(files / "model"), "--data", str(files / "dev.csv"), "--attempts", "0"], "attempts must be"),
        ([*fine, "--max-act-steps", "0"], "--max-act-steps must be"),
        ([*fine, "--output", str(files)], "is a folder"),
        ([*fine, "--curve", "c.png", "--halt", "q"], "leave out --halt"),
        ([*fine, "--calibration-plot", "c.xyz"], "no picture"),
        (
            ["--model", str(files / "model"), "--data", str(files / "bad.csv")],
            "bad.csv, puzzle 2: Contradicting clues",
        ),
    ):
        assert script.main([*words, "--device", "cpu"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("evaluate: ") and says in error and "Traceback" not in error
