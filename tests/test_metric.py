"""The numbers of puzzle_accuracy, and the `evaluate` module around them."""

import numpy as np
import pytest
from conftest import ROOT

from air_model.metrics.puzzle_accuracy.scores import MAZE_EDGES, by_bucket, calibration, score, wilson

LABELS = np.array([[2, 3, 4], [4, 3, 2], [2, 4, 3], [3, 0, -100]])


def test_exact_and_cell_accuracy_count_labelled_cells_only():
    answers = LABELS.copy()
    answers[1, 0] = 9
    answers[3, 1:] = 7
    numbers = score(answers, LABELS)
    assert numbers["n"] == 4 and numbers["exact_accuracy"] == 0.75
    assert numbers["cell_accuracy"] == pytest.approx(9 / 10)


def test_blank_cells_are_those_that_the_puzzle_left_open():
    inputs = np.array([[2, 1, 1]] * 4)
    answers = LABELS.copy()
    answers[0] = [9, 3, 9]
    assert score(answers, LABELS, inputs=inputs, blank_token=1)["blank_cell_accuracy"] == pytest.approx(5 / 6)


def test_wilson_is_inside_zero_and_one_and_covers_the_share():
    assert wilson(0, 0) == [0.0, 1.0]
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == pytest.approx(1.0)
    low, high = wilson(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-4) and high == pytest.approx(0.5962, abs=1e-4)


def test_the_interval_of_a_share_of_cells_is_around_that_share():
    inputs, labels = np.full((105, 60), 2), np.full((105, 60), 2)
    inputs[:100, 0], inputs[100:] = 1, 1  # 100 puzzles with one open cell, solved; 5 with sixty, all wrong
    answers = np.where(inputs.sum(-1, keepdims=True) == 60, 3, labels)
    found = score(answers, labels, inputs=inputs, blank_token=1)
    low, high = found["blank_cell_accuracy_ci95"]
    assert found["blank_cell_accuracy"] == 0.25 and low < 0.25 < high


def test_puzzles_without_a_label_are_neither_right_nor_wrong():
    labels = np.array([[2, 3], [0, 0], [2, 3]])
    found = score(np.array([[2, 3], [2, 2], [3, 3]]), labels, rating=np.array([0, 0, 0]))
    assert (found["n"], found["exact_accuracy"], found["by_rating"][0]["n"]) == (2, 0.5, 2)


@pytest.mark.parametrize("rating", [[0.0, np.nan], ["easy", "hard"], [None, 1]])
def test_ratings_that_are_no_numbers_are_refused(rating):
    with pytest.raises(ValueError, match="rating must be finite numbers"):
        score(np.ones((2, 2)), np.ones((2, 2)), rating=rating)


def test_buckets_cover_every_rating_once():
    rows = by_bucket(np.array([0, 1, 9, 10, 400]), np.array([1, 0, 1, 1, 0], bool), (0, 1, 10, 50))
    assert [(r["rating"], r["n"], r["exact_accuracy"]) for r in rows] == [
        ("0", 1, 1.0),
        ("1-9", 2, 0.5),
        ("10-49", 1, 1.0),
        ("50+", 1, 0.0),
    ]


def test_puzzles_without_a_rating_are_a_bucket_of_their_own():
    rows = by_bucket(np.array([-1, 0, 7, -1]), np.array([True, False, True, False]), [0, 1, 10])
    assert [(row["rating"], row["n"], row["exact_accuracy"]) for row in rows] == [
        ("0", 1, 0.0), ("1-9", 1, 1.0), ("unrated", 2, 0.5),
    ]  # fmt: skip


def test_short_mazes_are_told_apart_by_their_paths():
    rows = by_bucket(np.array([3, 18, 25, 55, 110, 130]), np.ones(6, bool), MAZE_EDGES)
    assert [row["rating"] for row in rows] == ["0-9", "10-19", "20-29", "40-59", "110-111", "120+"]


def test_a_model_that_knows_what_it_knows_has_no_calibration_error():
    numbers = calibration(np.array([0.75] * 4 + [0.05] * 20), np.array([1, 1, 1, 0] + [1] + [0] * 19, bool))
    assert numbers["expected_calibration_error"] == pytest.approx(0.0)
    assert numbers["claimed_and_right"] == 0.75 and numbers["claimed"] == pytest.approx(4 / 24)
    numbers = calibration(np.array([0.75] * 4 + [0.05] * 20), np.zeros(24, bool))
    assert numbers["expected_calibration_error"] == pytest.approx((4 * 0.75 + 20 * 0.05) / 24)  # each bin by its size


@pytest.mark.parametrize("wrong", [np.zeros((4, 2)), np.zeros(4)])
def test_shapes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="must be equal in shape"):
        score(wrong, LABELS)


def test_grids_that_are_not_square_need_their_sides_and_an_empty_evaluation_is_no_error(tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    metric = evaluate.load(str(ROOT / "metrics" / "puzzle_accuracy"), cache_dir=str(tmp_path))
    maze, path = [[3, 2, 2, 1, 1, 4]], [[3, 5, 5, 1, 1, 4]]
    with pytest.raises(ValueError, match="pass height and width"):
        metric.compute(predictions=path, references=path, inputs=maze, task="maze")
    maze, path = [[3, 2, 4, 1, 1, 1]], [[3, 5, 4, 1, 1, 1]]
    found = metric.compute(predictions=path, references=path, inputs=maze, task="maze", width=3)
    assert found["valid_accuracy"] == 1.0


def test_the_evaluate_module_gives_the_same_numbers_and_asks_the_rules(tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    metric = evaluate.load(str(ROOT / "metrics" / "puzzle_accuracy"), cache_dir=str(tmp_path))
    label = np.array([[int(c) + 1 for c in "1234341221434321"]])
    other = label[:, [1, 0, *range(2, 16)]]
    puzzle = np.ones_like(label)
    found = metric.compute(
        predictions=np.concatenate([label, other]),
        references=np.concatenate([label, label]),
        inputs=np.concatenate([puzzle, puzzle]),
        task="sudoku",
        rating=[0, 30],
    )
    assert found["exact_accuracy"] == 0.5 and found["valid_accuracy"] == 0.5
    assert [row["rating"] for row in found["by_rating"]] == ["0", "20-49"]


def test_cells_that_are_all_right_or_all_wrong_leave_an_interval():
    labels = np.full((6, 4), 2, np.uint8)
    for predictions, inside in ((labels, (0.5, 1.0)), (labels + 1, (0.0, 0.5))):
        low, high = score(predictions, labels)["cell_accuracy_ci95"]
        assert inside[0] <= low < high <= inside[1]
