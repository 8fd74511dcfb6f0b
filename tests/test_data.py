"""Loading, sampling and building data sets; the solver, the generators and the canonical forms behind them."""

import contextlib
import csv
import gzip
import hashlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SHARED, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st

from air_model.datasets_builders import BadRows, load_puzzles
from air_model.datasets_builders.canonical import canonical, canonical_mazes
from air_model.datasets_builders.generate_maze import default_min_path, make_mazes
from air_model.datasets_builders.generate_sudoku import make_puzzles, random_grids, seeds_for
from air_model.datasets_builders.sudoku_solver import NOT, solve
from air_model.processing_air import MazeTask, SudokuTask, make_task
from air_model.scripts import build_dataset

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def sudokus(n: int, count: int, difficulty: str = "mixed", seed: int = 0):
    """(task, puzzles, solutions) of generated Sudokus."""
    task = SudokuTask(n)
    grids, seeds = random_grids(task, seeds_for(seed, 0, 0, count)), seeds_for(seed, 1, 0, count)
    return task, *make_puzzles(task, grids, seeds, difficulty)[:2]


def mazes(count: int, height: int = 7, width: int = 7):
    task = MazeTask(height, width)
    return task, *make_mazes(task, seeds_for(0, 0, 0, count))


def write_csv(path: Path, rows: list[tuple], header=("question", "answer", "rating", "source")) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def sudoku_rows(count: int = 6, n: int = 4) -> list[tuple]:
    task, puzzles, grids = sudokus(n, count, "minimal")
    return [(task.decode(p), task.decode(g), i, "here") for i, (p, g) in enumerate(zip(puzzles, grids))]


def build(*arguments: str) -> int:
    return build_dataset.main([*map(str, arguments), "--quiet"])


# ---- solver and generators


def plain_count(task: SudokuTask, puzzle: np.ndarray, limit: int) -> int:
    """Solutions by the plainest search, written apart from the package."""
    blanks = np.flatnonzero(puzzle == 1)
    if not len(blanks):
        return int(task.verdicts(puzzle[None], puzzle[None]).valid[0])
    options = [set(range(2, task.vocab_size)) - set(puzzle[task.peers[i]]) for i in blanks]
    at = min(range(len(blanks)), key=lambda k: len(options[k]))
    found = 0
    for digit in options[at]:
        filled = puzzle.copy()
        filled[blanks[at]] = digit
        found += plain_count(task, filled, limit - found)
        if found >= limit:
            break
    return found


@pytest.mark.parametrize("n, count", [(4, 8), (6, 8), (9, 2)])
def test_solution_counts_agree_with_a_plain_search(n, count):
    task, puzzles, solutions = sudokus(n, count, "minimal")
    rng = np.random.default_rng(0)
    if n == 9:  # a plain search of minimal ones takes seconds: a third of the open cells is shown
        shown = rng.random(puzzles.shape) < 1 / 3
        puzzles = np.where(shown, solutions, puzzles)
    for puzzle in puzzles:  # clues less, one clue wrong: two or more, or none
        clues = rng.permutation(np.flatnonzero(puzzle > 1))
        fewer, wrong = puzzle.copy(), puzzle.copy()
        fewer[clues[1 : 1 + n // 2]] = 1
        wrong[clues[0]] = (wrong[clues[0]] - 1) % n + 2
        three = np.stack([puzzle, fewer, wrong])
        fine = ~task.conflicts(three).any(-1)
        counts = solve(three[fine], task, limit=3)[0]
        assert counts.tolist() == [plain_count(task, p, 3) for p in three[fine]]


def test_the_solver_finds_the_known_answer_and_refuses_contradictions():
    task = SudokuTask()
    bad = task.encode("55" + PUZZLE[2:])
    counts, guesses, answers = solve(np.stack([task.encode(PUZZLE), bad, np.ones(81, np.uint8)]), task)
    assert counts.tolist() == [1, 0, 2] and task.decode(answers[0]) == ANSWER and guesses[0] == 0


def test_a_blank_that_is_not_its_digit_leaves_a_solved_puzzle_without_solution():
    task = SudokuTask()
    puzzle = task.encode(PUZZLE)
    puzzle[2] = task.encode(ANSWER)[2] + NOT
    other = task.encode(PUZZLE)
    other[2] = (task.encode(ANSWER)[2] - 1) % 9 + 2 + NOT
    assert solve(np.stack([puzzle, other]), task)[0].tolist() == [0, 1]


@pytest.mark.parametrize("n", [4, 6, 9])
@pytest.mark.parametrize("difficulty", ["mixed", "minimal"])
def test_generated_sudokus_have_one_solution(n, difficulty):
    task, puzzles, grids = sudokus(n, 24, difficulty)
    counts, _, answers = solve(puzzles, task)
    assert (counts == 1).all() and (answers == grids).all() and task.verdicts(puzzles, grids).valid.all()


def test_minimal_puzzles_can_spare_no_clue():
    task, puzzles, _ = sudokus(6, 4, "minimal")
    for puzzle in puzzles:
        fewer = np.repeat(puzzle[None], (puzzle > 1).sum(), axis=0)
        fewer[np.arange(len(fewer)), np.flatnonzero(puzzle > 1)] = 1
        assert (solve(fewer, task)[0] == 2).all()


def test_benchmark_like_sudokus_reach_high_ratings_and_easy_ones():
    task = SudokuTask()
    grids = random_grids(task, seeds_for(0, 0, 0, 24))
    puzzles, _, ratings = make_puzzles(task, grids, seeds_for(0, 1, 0, 24), "benchmark")
    assert (ratings >= 10).mean() > 0.3 and (ratings < 10).any()
    assert (solve(puzzles, task)[1] == ratings).all()


def test_remembered_solutions_change_no_puzzle():
    # The digest is of the walk that solved every time anew (commit f8f8c5c).
    task = SudokuTask()
    puzzles, *_ = make_puzzles(task, random_grids(task, seeds_for(3, 0, 0, 6)), seeds_for(3, 1, 0, 6), "benchmark")
    assert hashlib.sha256(puzzles.tobytes()).hexdigest().startswith("f295de06238b4bba")


def test_generators_do_not_depend_on_threads():
    task = SudokuTask(6)
    grids = [random_grids(task, seeds_for(3, 0, 0, 40), threads) for threads in (1, 3)]
    assert (grids[0] == grids[1]).all()
    both = [make_mazes(MazeTask(6), seeds_for(3, 0, 0, 40), threads=threads)[0] for threads in (1, 3)]
    assert (both[0] == both[1]).all()


@pytest.mark.parametrize("shape", [(5, 5), (7, 11), (13, 13), (1, 9)])
def test_generated_mazes_are_long_enough_and_labelled_by_the_rule(shape):
    task, puzzles, labels = mazes(20, *shape)
    assert task.verdicts(puzzles, labels).valid.all() and (task.label(puzzles) == labels).all()
    assert (labels == task.PATH).sum(-1).min() + 1 >= default_min_path(*shape)


def test_a_path_that_no_layout_has_is_refused():
    with pytest.raises(ValueError, match="from 1 to 8"):
        make_mazes(MazeTask(3), seeds_for(0, 0, 0, 1), min_path=20)


# ---- canonical forms


@pytest.mark.parametrize("n, classes", [(4, 2), (6, 49)])
def test_small_grids_fall_into_the_known_number_of_classes(n, classes):
    task = SudokuTask(n)
    assert len(np.unique(canonical(random_grids(task, seeds_for(0, 0, 0, 3000)), task), axis=0)) == classes


@pytest.mark.parametrize("n", [4, 6, 9])
def test_all_copies_of_a_puzzle_have_one_canonical_form(n):
    task, puzzles, grids = sudokus(n, 6, "minimal")
    symmetry = task.random_symmetries(np.random.default_rng(1), len(puzzles))
    forms = canonical(grids, task, puzzles)
    assert (canonical(symmetry.apply(grids), task, symmetry.apply(puzzles)) == forms).all()
    assert task.verdicts(np.ones_like(grids), forms[:, : task.seq_len]).valid.all()


def test_turned_mazes_have_one_canonical_form():
    task, puzzles, _ = mazes(5)
    turned = np.stack([p[task.dihedral[i % 8]] for i, p in enumerate(puzzles, start=1)])
    assert (canonical_mazes(puzzles, task) == canonical_mazes(turned, task)).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 6, 9]), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_a_symmetry_keeps_the_solution_count_and_maps_the_solution(n, seed, removed):
    task, puzzles, _ = sudokus(n, 1, "mixed", seed % 50)
    rng = np.random.default_rng(seed)
    puzzle = puzzles[0].copy()
    puzzle[rng.choice(np.flatnonzero(puzzle > 1), removed, replace=False)] = 1
    symmetry = task.sample_symmetry(rng)
    before, after = (solve(p[None], task, limit=5) for p in (puzzle, symmetry.apply(puzzle)))
    assert before[0] == after[0]
    if before[0] == 1:
        assert (symmetry.apply(before[2]) == after[2]).all()


# ---- copies


def copies(task, puzzles, labels, **options):
    """(rows, groups) of a training chunk with its copies."""
    from air_model.datasets_builders.build import BuildConfig, Rows, expanded

    rows = Rows(puzzles, labels, np.zeros(len(puzzles), np.int32), ["x"] * len(puzzles))
    config = BuildConfig(dataset="sudoku-extreme" if task.name == "sudoku" else "maze-hard", **options)
    ((out, groups),) = expanded(rows, 0, config, task)
    return out, groups


@pytest.mark.parametrize("n", [6, 9])
def test_stored_copies_are_valid_different_and_repeatable(n):
    task, puzzles, grids = sudokus(n, 4)
    out, groups = copies(task, puzzles, grids, num_aug=20)
    again, _ = copies(task, puzzles, grids, num_aug=20)
    assert task.verdicts(out.inputs, out.labels).valid.all() and (out.inputs == again.inputs).all()
    assert groups.tolist() == np.repeat(np.arange(4), 21).tolist() and (out.inputs[::21] == puzzles).all()
    assert len(np.unique(out.inputs, axis=0)) > 70


def test_easier_copies_fill_between_one_and_all_but_one_blank_uniformly():
    from air_model.datasets_builders.build import easier

    task, puzzles, grids = sudokus(6, 1, "minimal")
    blanks = int((puzzles[0] == 1).sum())
    many, answers = np.repeat(puzzles, 8000, 0), np.repeat(grids, 8000, 0)
    inputs = easier(many, answers, task, np.random.default_rng(0))
    added = (inputs != 1).sum(-1) - (puzzles[0] != 1).sum()
    counts = np.bincount(added, minlength=blanks + 1)
    assert counts[0] == 0 and counts[blanks] == 0 and counts[1:blanks].min() > 0.7 * 8000 / (blanks - 1)
    assert ((inputs == many) | (inputs == answers)).all()
    one = np.where(np.arange(36) == 3, 1, grids)
    assert (easier(one, grids, task, np.random.default_rng(0)) == one).all()


def test_turned_mazes_are_labelled_anew():
    task, puzzles, labels = mazes(6)
    out, _ = copies(task, puzzles, labels, num_aug=7)
    assert (task.label(out.inputs) == out.labels).all() and len(np.unique(out.inputs, axis=0)) > 20


# ---- loading


@pytest.mark.parametrize("header", [("question", "answer", "rating", "source"), ("Q", "A", "Rating", "Source")])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_columns_are_found_by_name(tmp_path, header, suffix):
    rows = sudoku_rows()
    path = write_csv(tmp_path / f"train{suffix}", [row[::-1] for row in rows], header[::-1])
    puzzles = load_puzzles(path)
    assert [puzzles.task.decode(p) for p in puzzles.inputs] == [row[0] for row in rows]
    assert puzzles.rating.tolist() == list(range(6)) and puzzles.task == SudokuTask(4)
    assert len(load_puzzles(tmp_path, "train", limit=2)) == 2


def test_mazes_are_recognised_and_shaped_by_their_first_row(tmp_path):
    task, puzzles, labels = mazes(3)
    path = write_csv(tmp_path / "m.csv", [(task.decode(p), task.decode(x), 1, "") for p, x in zip(puzzles, labels)])
    loaded = load_puzzles(path)
    assert loaded.task == task and (loaded.labels == labels).all()


def test_all_bad_rows_are_named_not_only_the_first(tmp_path):
    rows = sudoku_rows()
    rows[1] = (rows[1][0][:-1], *rows[1][1:])
    rows[4] = ("q" + rows[4][0][1:], *rows[4][1:])
    rows[5] = (rows[4][1], *rows[0][1:])
    with pytest.raises(BadRows) as error:
        load_puzzles(write_csv(tmp_path / "bad.csv", rows))
    assert [row for row, _ in error.value.rows] == [2, 5, 6] and "bad.csv: row 5: " in str(error.value)
    assert "the answer contradicts the puzzle at row 1" in str(error.value)


def test_letters_beyond_ascii_are_one_cell_each_and_named(tmp_path):
    rows = sudoku_rows(2)
    rows[1] = ("é" + rows[1][0][1:], *rows[1][1:])
    with pytest.raises(BadRows, match="row 2: .*Foreign letter 'é' at row 1, column 1"):
        load_puzzles(write_csv(tmp_path / "x.csv", rows))


def test_names_of_sources_keep_their_letters(tmp_path):
    rows = [(*row[:3], "Löwe") for row in sudoku_rows(2)]
    source = write_csv(tmp_path / "x.csv", rows)
    assert build("sudoku-extreme", "--source", source, "--output-dir", tmp_path / "o") == 0
    from datasets import load_dataset

    stream = load_dataset(str(tmp_path / "o"), split="train", streaming=True)
    assert {row["source"] for row in stream} == {"Löwe"}


@pytest.mark.parametrize("mark, end", [("", "\r\n"), ("\ufeff", "\n"), ("", "\r")])
def test_any_line_end_and_a_byte_order_mark_are_read(tmp_path, mark, end):
    lines = [" A ,q", *(f"{answer},{question}" for question, answer, *_ in sudoku_rows(3))]
    (tmp_path / "x.csv").write_bytes((mark + "".join(line + end for line in lines)).encode())
    assert len(load_puzzles(tmp_path / "x.csv")) == 3


@pytest.mark.parametrize("name, says", [("nowhere", "no Hub data set id"), ("nobody/nothing", "--source generate")])
def test_data_that_is_nowhere_gets_one_sentence(name, says):
    with pytest.raises(FileNotFoundError, match=says):
        load_puzzles(name, "test")


def test_a_row_without_a_rating_among_rated_ones_is_unrated(tmp_path):
    path = write_csv(
        tmp_path / "a.csv", [("1...............", "1234341221434321", rating, "") for rating in (3, "", 5)]
    )
    assert load_puzzles(path, "train").rating.tolist() == [3, -1, 5]


def test_a_row_without_a_rating_is_built_unrated_and_left_out_of_the_statistics(tmp_path):
    rows = [(*row[:2], rating) for row, rating in zip(sudoku_rows(3), (3, "", 5))]
    source, out = write_csv(tmp_path / "a.csv", rows, ("q", "a", "rating")), tmp_path / "o"
    assert build("sudoku-extreme", "--source", source, "--output-dir", out) == 0
    assert load_puzzles(out, "train").rating.tolist() == [3, -1, 5]
    statistics = json.loads((out / "air_dataset.json").read_text())["statistics"]["train"]
    assert statistics["rating"] == {"mean": 4.0, "min": 3, "median": 3, "max": 5}
    unrated = write_csv(tmp_path / "b.csv", [row[:2] for row in rows], ("q", "a"))
    assert build("sudoku-extreme", "--source", unrated, "--output-dir", tmp_path / "p") == 0
    assert load_puzzles(tmp_path / "p", "train").rating is None


def test_a_missing_split_or_column_names_what_there_is(tmp_path):
    write_csv(tmp_path / "train_2.csv", sudoku_rows(2))
    with pytest.raises(FileNotFoundError, match="train_2.csv"):
        load_puzzles(tmp_path, "test")
    with pytest.raises(ValueError, match="no column of answers .answer, solution, .* header is puzzle, rating"):
        load_puzzles(write_csv(tmp_path / "x.csv", [], ("puzzle", "rating")))


def test_the_refusal_of_data_that_is_not_there_names_the_grid_that_the_recipe_is_for():
    from air_model.datasets_builders.loading import _stand_in

    texts = [recipe.read_text() for recipe in (ROOT / "recipes").glob("*.yaml")]
    wanted = [(text, data[1]) for text in texts if (data := re.search(r"^data: (data/\S+)", text, re.M))]
    assert wanted
    for text, data in wanted:
        assert re.search(r"--grid \d+x\d+", text)[0] in _stand_in(data)


# ---- building


def test_the_card_of_own_rows_tells_nothing_of_the_published_ones(tmp_path):
    source = write_csv(tmp_path / "mine.csv", sudoku_rows(2))
    assert build("sudoku-extreme", "--source", source, "--output-dir", tmp_path / "o") == 0
    card = (tmp_path / "o" / "README.md").read_text()
    assert "# 4x4 Sudokus for AIR\n" in card and "The rows are those of `mine.csv`" in card
    assert "Sudoku-Extreme" not in card and "Hierarchical" not in card


def test_the_card_of_generated_sudokus_tells_how_these_were_made(tmp_path):
    for kind, told in (("mixed", "clues back."), ("minimal", "one solution remains. ")):
        assert build("sudoku-extreme", "--source", "generate", "--grid", "4x4", "--num-train", 2, "--num-test", 0,
                     "--difficulty", kind, "--output-dir", tmp_path / kind) == 0  # fmt: skip
        card = (tmp_path / kind / "README.md").read_text()
        assert told in card and "walk" not in card and "kept for the test split" not in card


def test_a_build_loads_the_same_with_and_without_datasets(tmp_path):
    from datasets import load_dataset

    rows = sudoku_rows(8)
    source = write_csv(tmp_path / "mine.csv", rows)
    assert (
        build("sudoku-extreme", "--source", source, "--num-test", 2, "--num-aug", 3, "--output-dir", tmp_path / "o")
        == 0
    )
    train = load_puzzles(tmp_path / "o", "train")
    assert load_puzzles(tmp_path / "o", "train", limit=2).fingerprint != train.fingerprint
    assert len(train) == 24 and train.groups.tolist() == np.repeat(np.arange(6), 4).tolist()
    assert train.task.verdicts(train.inputs, train.labels).valid.all()
    hub = load_dataset(str(tmp_path / "o"), cache_dir=str(tmp_path / "cache"))
    assert (np.array(hub["train"]["inputs"][:]) == train.inputs).all() and len(hub["test"]) == 2
    assert hub["train"].features["inputs"].length == 16 and hub["train"].features["inputs"].feature.dtype == "uint8"
    stream = load_dataset(str(tmp_path / "o"), split="train", streaming=True)
    assert next(iter(stream))["labels"] == train.labels[0].tolist()
    originals = {train.task.decode(x) for x in train.inputs[::4]}
    assert originals < {row[0] for row in rows}


def test_same_seed_same_bytes_for_any_number_of_threads(tmp_path):
    for name, threads, seed in (("a", 1, 5), ("b", 3, 5), ("c", 2, 6)):
        arguments = ("--source", "generate", "--grid", "6x6", "--num-train", 40, "--num-test", 10, "--num-aug", 2)
        assert (
            build("sudoku-extreme", *arguments, "--num-proc", threads, "--seed", seed, "--output-dir", tmp_path / name)
            == 0
        )
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).rglob("*.parquet"))] for n in "abc")
    assert a == b and a != c


def test_generated_splits_share_no_grid_up_to_symmetry(tmp_path):
    assert build("sudoku-extreme", "--source", "generate", "--grid", "6x6", "--num-train", 60, "--num-test", 20,
                 "--output-dir", tmp_path / "s", "--verify") == 0  # fmt: skip
    report = json.loads((tmp_path / "s" / "verification.json").read_text())
    assert report["ok"] and report["overlaps"]["train and test"] == {
        "puzzles_up_to_symmetry": 0,
        "solved_grids_up_to_symmetry": 0,
    }
    assert [report["splits"][split]["rows"] for split in ("train", "test")] == [60, 20]
    assert (tmp_path / "s" / "verification.png").stat().st_size > 1000


def test_a_symmetric_copy_of_a_training_puzzle_among_the_test_puzzles_is_found(tmp_path):
    (tmp_path / "in").mkdir()
    rows, turned = sudoku_rows(6), str.maketrans("1234", "2341")
    write_csv(tmp_path / "in" / "train.csv", rows)
    write_csv(tmp_path / "in" / "test.csv", [[str(part).translate(turned) for part in rows[0][:2]] + [0, ""]])
    assert build("sudoku-extreme", "--source", tmp_path / "in", "--output-dir", tmp_path / "o", "--verify") == 1
    report = json.loads((tmp_path / "o" / "verification.json").read_text())
    assert report["overlaps"]["train and test"]["puzzles_up_to_symmetry"] == 1


def test_generated_mazes_build_and_verify(tmp_path):
    assert build("maze-hard", "--source", "generate", "--grid", "6x9", "--num-train", 12, "--num-test", 5,
                 "--num-aug", 3, "--output-dir", tmp_path / "m", "--verify") == 0  # fmt: skip
    train = load_puzzles(tmp_path / "m", "train")
    assert len(train) == 48 and train.task == MazeTask(6, 9)


def faulty_rows() -> list[tuple]:
    rows = sudoku_rows(8)
    question, answer = rows[0][:2]
    wrong = next(d for d in "1234" if d != answer[0])
    rows[1] = ("." * 16, answer, 0, "")  # many solutions
    rows[2] = (question[:-1], answer, 0, "")
    rows[3] = ("q" + question[1:], answer, 0, "")
    rows[4] = (question, answer[::-1], 0, "")
    rows[5] = ("11" + "." * 14, answer, 0, "")
    rows[6] = (wrong + answer[1:4] + question[4:], wrong + answer[1:], 0, "")
    return rows


def test_every_kind_of_bad_row_is_listed_and_nothing_is_written(tmp_path, capsys):
    source = write_csv(tmp_path / "bad.csv", faulty_rows())
    assert build("sudoku-extreme", "--source", source, "--output-dir", tmp_path / "o") == 1
    said = capsys.readouterr().err
    assert said.startswith("build_dataset: 6 bad rows") and "8: " not in said, said
    for reason in ("two or more solutions", "15 cells, 16 expected", "Foreign letter 'q'", "contradicts the puzzle"):
        assert reason in said
    assert "Contradicting clues: row 1, column 1 and row 1, column 2" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"]


def test_a_good_folder_is_not_replaced_by_an_empty_one(tmp_path, capsys):
    good = write_csv(tmp_path / "good.csv", sudoku_rows())
    assert build("sudoku-extreme", "--source", good, "--output-dir", tmp_path / "o") == 0
    bad = write_csv(tmp_path / "bad.csv", faulty_rows()[1:2])
    assert build("sudoku-extreme", "--source", bad, "--output-dir", tmp_path / "o", "--skip-bad") == 1
    assert "No good row is left" in capsys.readouterr().err and len(load_puzzles(tmp_path / "o", "train")) == 6


def test_splits_come_from_files_of_any_form(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    write_csv(tmp_path / "in" / "train.csv", sudoku_rows())
    rows = [dict(zip(("question", "answer"), row)) for row in sudoku_rows()[:2]]
    (tmp_path / "in" / "dataset_infos.json").write_text('{"no": "data"}')
    (tmp_path / "in" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["sudoku-extreme", "--source", tmp_path / "in", "--output-dir", tmp_path / "o"]
    assert build(*command) == 0 and len(load_puzzles(tmp_path / "o", "test")) == 2
    assert build(*command, "--num-test", "0") == 0
    with pytest.raises(FileNotFoundError, match="no split 'test'"):
        load_puzzles(tmp_path / "o", "test")
    write_csv(tmp_path / "in" / "2024.csv", sudoku_rows())
    assert build(*command) == 1 and "2024.csv names no split" in capsys.readouterr().err


def test_a_configuration_is_named_behind_a_colon_as_in_a_folder_so_on_the_hub(tmp_path, monkeypatch):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    _, puzzles, grids = sudokus(4, 3)
    for i, name in enumerate(("easy", "hard")):
        (tmp_path / name).mkdir()
        tokens = {"inputs": puzzles[i : i + 2].tolist(), "labels": grids[i : i + 2].tolist()}
        pq.write_table(pa.table(tokens), tmp_path / name / "train-0.parquet")
    assert np.array_equal(load_puzzles(f"{tmp_path}:hard").inputs, puzzles[1:3])
    folders = {"user/own": tmp_path}
    monkeypatch.setattr("air_model.datasets_builders.loading.hub_folder", lambda name, *_: folders[name])
    hub = load_puzzles("user/own:hard")
    assert np.array_equal(hub.inputs, puzzles[1:3]) and hub.source == "own"
    with pytest.raises(ValueError, match="several configurations: easy, hard. Name one of them, as in NAME:easy"):
        load_puzzles(tmp_path)
    with pytest.raises(ValueError, match="no configuration 'mild'; it has: easy, hard"):
        load_puzzles(f"{tmp_path}:mild")


def test_a_table_has_no_configurations(tmp_path):
    table = write_csv(tmp_path / "train.csv", sudoku_rows(2))
    for data in (table, tmp_path):
        with pytest.raises(ValueError, match="no configurations, so none is called 'hard'"):
            load_puzzles(f"{data}:hard")


def test_half_a_parquet_file_is_named(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1" + bytes(20))
    for data in (tmp_path, tmp_path / "train-0.parquet"):
        with pytest.raises(ValueError, match="train-0.parquet is no complete parquet file"):
            load_puzzles(data, "train")


def test_a_small_sudoku_with_the_ends_of_a_maze_is_still_one(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    inputs, labels = [3, 1, 1, 1, 1, 1, 1, 4, *[1] * 8], [3, 2, 5, 4, 4, 5, 2, 3, *[2] * 8]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"inputs": [inputs], "labels": [labels]}), tmp_path / "data" / "train-0.parquet")
    assert load_puzzles(tmp_path, "train").task == SudokuTask(4)


def test_labels_of_minus_100_do_not_count_and_tokens_that_no_byte_holds_are_refused(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    labels = SudokuTask(4).encode("1234341221434321").astype(int)
    inputs, open_cells = np.where(np.arange(16) % 2, 1, labels), np.where(np.arange(16) % 2, labels, -100)
    columns = {"inputs": [inputs], "labels": [open_cells]}
    pq.write_table(pa.table(columns), tmp_path / "test-0.parquet")
    assert (load_puzzles(tmp_path, "test").labels == np.maximum(open_cells, 0)).all()
    pq.write_table(pa.table(columns | {"labels": [labels + 256]}), tmp_path / "test-0.parquet")
    with pytest.raises(ValueError, match="the labels are not puzzles of SudokuTask"):
        load_puzzles(tmp_path, "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"labels": [[2] * 16, None]}, "column labels"), ({"inputs": [[1] * 16, [None, *[1] * 15]]}, "column inputs"),
     ({"inputs": [[1] * 20, [1] * 12]}, "column inputs"), ({"puzzle_id": [0, None]}, "column puzzle_id"),
     ({"inputs": [["1"] * 16, ["."] * 16]}, "column inputs"), ({"rating": [3, None]}, "")],
    ids=["row", "cell", "length", "number", "text", "unrated"],
)  # fmt: skip
def test_what_is_missing_in_a_table_of_tokens_is_named_and_a_rating_may_be(tmp_path, change, message):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    columns = {"inputs": [[1] * 16] * 2, "labels": [[2] * 16] * 2} | change
    pq.write_table(pa.table(columns), tmp_path / "test-0.parquet")
    with pytest.raises(ValueError, match=message) if message else contextlib.nullcontext():
        assert load_puzzles(tmp_path, "test").rating.tolist() == [3, -1]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "nested.parquet"])
@pytest.mark.parametrize("column", ["input_ids", "inputs"])
def test_columns_of_tokens_are_tokens_in_every_row_and_kind_of_file(tmp_path, name, column):
    labels = SudokuTask(4).encode("1234341221434321").astype(int)
    rows = [np.where(labels < 5, labels, 1), np.where(labels > 4, labels, 1)]  # the former may be digits
    rows = [{column: row.tolist(), "labels": labels.tolist(), "puzzle_id": i} for i, row in enumerate(rows)]
    if name == "t.jsonl":
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        if name.startswith("nested"):
            rows = [row | {key: np.reshape(row[key], (4, 4)).tolist() for key in (column, "labels")} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    found = load_puzzles(tmp_path / name)
    assert (found.inputs > 1).sum(-1).tolist() == [12, 4] and (found.labels == labels).all()
    assert name == "t.jsonl" or found.puzzle_ids.tolist() == [0, 1]


def test_arrays_of_the_public_code_are_a_data_set(tmp_path):
    task, puzzles, grids = sudokus(4, 3)
    columns = {"inputs": puzzles, "labels": grids, "puzzle_identifiers": [0, 7], "puzzle_indices": [0, 2, 3]}
    (tmp_path / "test").mkdir()
    for name, column in (columns | {"group_indices": [0, 1, 2]}).items():
        np.save(tmp_path / "test" / f"all__{name}.npy", column)
    found = load_puzzles(tmp_path, "test")
    assert found.task == task and (found.inputs == puzzles).all() and (found.labels == grids).all()
    assert found.puzzle_ids.tolist() == [0, 0, 7] and found.groups.tolist() == [0, 0, 1]
    assert load_puzzles(tmp_path, "test", limit=2).groups.tolist() == [0, 0]
    np.save(tmp_path / "test" / "all__labels.npy", grids[:2])
    with pytest.raises(ValueError, match=r"do not fit one another .*labels \(2, 16\)"):
        load_puzzles(tmp_path, "test")
    (tmp_path / "test" / "all__labels.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="all__labels.npy cannot be read"):
        load_puzzles(tmp_path, "test")


def test_tokens_of_generic_grids_alone_may_be_padded(tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [[2, 3, 0, 0]]  # as the public code pads ARC
    pq.write_table(pa.table({"inputs": rows, "labels": rows}), tmp_path / "t.parquet")
    assert load_puzzles(tmp_path / "t.parquet", task=make_task("grid", 2, vocab_size=4)).inputs.tolist() == rows
    with pytest.raises(ValueError, match="not puzzles of MazeTask"):
        load_puzzles(tmp_path / "t.parquet", task=make_task("maze", 2))


@pytest.mark.parametrize("form", ["list", "split"])
def test_a_table_in_json_may_be_written_column_by_column(tmp_path, form):
    rows = sudoku_rows()
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("question", "answer"))}
    if form == "split":  # what pandas writes
        columns = {name: {str(i): value for i, value in enumerate(values)} for name, values in columns.items()}
    (tmp_path / "table.json").write_text(json.dumps(columns))
    found = load_puzzles(tmp_path / "table.json")
    assert (found.task, len(found)) == (SudokuTask(4), len(rows))
    (tmp_path / "one.json").write_text(json.dumps({"puzzle": ["S..#", "#..G"], "solution": ["Soo#", "#.oG"]}))
    assert load_puzzles(tmp_path / "one.json", task=MazeTask(2, 4)).inputs.shape == (1, 8)


def test_bad_rows_with_one_fault_share_a_line(tmp_path):
    source = write_csv(tmp_path / "four.csv", sudoku_rows())
    with pytest.raises(BadRows) as error:
        load_puzzles(source, task=SudokuTask(6))
    said = str(error.value)
    assert said.count("\n") == 1 and f"rows 1-{len(sudoku_rows())}: The sudoku text has 16 cells" in said


def test_skip_bad_keeps_the_good_rows(tmp_path):
    source = write_csv(tmp_path / "bad.csv", faulty_rows())
    assert build("sudoku-extreme", "--source", source, "--skip-bad", "--output-dir", tmp_path / "o") == 0
    assert len(load_puzzles(tmp_path / "o", "train")) == 2
    assert len(json.loads((tmp_path / "o" / "air_dataset.json").read_text())["skipped_rows"]["train"]) == 6


def test_bad_mazes_are_listed(tmp_path, capsys):
    rows = [("S##G", "S##G", 0, ""), ("S  G", "S oG", 2, ""), ("S   ", "S   ", 0, ""), ("S  G", "SooG", 2, "")]
    assert build("maze-hard", "--source", write_csv(tmp_path / "m.csv", rows), "--output-dir", tmp_path / "o") == 1
    said = capsys.readouterr().err
    assert "row 1: No path" in said and "row 3: A maze needs exactly one G" in said
    assert "row 4: the answer is not a shortest path" in said and "row 2:" not in said


def test_a_truncated_gzip_is_reported_with_its_row(tmp_path, capsys):
    whole = write_csv(tmp_path / "whole.csv.gz", sudoku_rows(200)).read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert build("sudoku-extreme", "--source", tmp_path / "cut.csv.gz", "--output-dir", tmp_path / "o") == 1
    assert "ends early" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_an_interrupted_build_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    from air_model.datasets_builders import build as module

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Writer, "finish", stop)
    source = write_csv(tmp_path / "mine.csv", sudoku_rows(4))
    assert build("sudoku-extreme", "--source", source, "--output-dir", tmp_path / "o") == 130
    assert capsys.readouterr().err.endswith("build_dataset: stopped.\n")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_a_changed_source_builds_again_and_an_unchanged_one_does_not(tmp_path):
    source, out = write_csv(tmp_path / "mine.csv", sudoku_rows(4)), tmp_path / "o"
    assert build("sudoku-extreme", "--source", source, "--output-dir", out) == 0
    first = (out / "air_dataset.json").stat().st_mtime_ns
    assert build("sudoku-extreme", "--source", source, "--output-dir", out) == 0
    assert (out / "air_dataset.json").stat().st_mtime_ns == first
    write_csv(source, sudoku_rows(5))
    assert build("sudoku-extreme", "--source", source, "--output-dir", out) == 0
    assert len(load_puzzles(out, "train")) == 5


def test_a_foreign_folder_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("keep")
    assert build("sudoku-extreme", "--source", "generate", "--grid", "4x4", "--output-dir", tmp_path) == 1
    assert "new folder" in capsys.readouterr().err and (tmp_path / "precious.txt").read_text() == "keep"


def test_random_grids_too_many_to_repeat_are_not_searched_for_copies(tmp_path, monkeypatch):
    monkeypatch.setattr("air_model.datasets_builders.build.canonical", lambda *_: pytest.fail("takes far longer"))
    options = ["--source", "generate", "--grid", "10x10", "--num-train", 2, "--num-test", 1, "--quiet"]
    assert build("sudoku-extreme", *options, "--output-dir", tmp_path / "o") == 0


@pytest.mark.parametrize("dataset", ["sudoku-extreme", "maze-hard"])
def test_without_the_hub_the_generate_way_is_named(tmp_path, capsys, dataset):
    assert build(dataset, "--source", "hub", "--output-dir", tmp_path / "o") == 1
    said = capsys.readouterr().err
    assert f"{dataset} --source generate" in said and "Traceback" not in said and not (tmp_path / "o").exists()


def test_the_builder_class_gives_the_rows_of_the_script(tmp_path):
    from air_model.datasets_builders.builders import SudokuExtreme

    options = {"grid": (4, 4), "num_train": 20, "num_test": 4, "hold_out": "puzzles"}
    builder = SudokuExtreme(config_name="generated", cache_dir=str(tmp_path / "c"), **options)
    builder.download_and_prepare()
    assert build("sudoku-extreme", "--source", "generate", "--grid", "4x4", "--num-train", 20, "--num-test", 4,
                 "--hold-out", "puzzles", "--output-dir", tmp_path / "o") == 0  # fmt: skip
    rows = load_puzzles(tmp_path / "o", "train")
    assert (np.array(builder.as_dataset(split="train")["inputs"][:]) == rows.inputs).all()
    other = SudokuExtreme(config_name="generated", cache_dir=str(tmp_path / "c"), seed=1, **options)
    assert other.hash != builder.hash


# ---- real rows


@needs_shared
def test_every_real_sudoku_has_one_solution_and_its_rating_is_reproduced():
    for name in ("train_1000", "dev_1175"):
        real = load_puzzles(SHARED / "data/sudoku_extreme" / f"{name}.csv.gz")
        counts, guesses, answers = solve(real.inputs, real.task)
        assert (counts == 1).all() and (answers == real.labels).all()
        ranks = [np.unique(v, return_inverse=True)[1] for v in (guesses, real.rating)]
        assert np.corrcoef(*ranks)[0, 1] > 0.95 and (guesses == real.rating).mean() > 0.8


@needs_shared
def test_real_mazes_build_and_keep_their_labels(tmp_path):
    source = SHARED / "data/maze_hard"
    assert build("maze-hard", "--source", source, "--num-train", 100, "--output-dir", tmp_path / "m") == 0
    built = load_puzzles(tmp_path / "m", "dev")
    assert len(built) == 500 and (built.task.label(built.inputs) == built.labels).all()


def test_bad_rows_of_one_file_are_listed_once_though_it_feeds_two_splits(tmp_path, capsys):
    source = write_csv(tmp_path / "bad.csv", faulty_rows())
    assert build("sudoku-extreme", "--source", source, "--num-test", 2, "--output-dir", tmp_path / "o") == 1
    said = capsys.readouterr().err
    assert said.count("row 3: ") == 1


@pytest.mark.parametrize("option, least", [("--num-train", 1), ("--num-proc", 1), ("--num-aug", 0)])
def test_numbers_too_small_name_the_least_one(tmp_path, capsys, option, least):
    assert build("sudoku-extreme", "--source", "generate", option, least - 1, "--output-dir", tmp_path / "o") == 1
    assert f"at least {least}." in capsys.readouterr().err


def test_a_killed_build_leaves_no_data_set_and_the_next_one_clears_up(tmp_path):
    code = (
        "import os, signal, sys; sys.path.insert(0, 'scripts'); import _checkout;"
        "from air_model.datasets_builders import build as module;"
        "module._Writer.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL);"
        "from air_model.scripts import build_dataset; build_dataset.main(sys.argv[1:])"
    )
    source, out = write_csv(tmp_path / "mine.csv", sudoku_rows(4)), tmp_path / "o"
    arguments = ["sudoku-extreme", "--source", source, "--output-dir", out, "--quiet"]
    died = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True)
    assert died.returncode == -signal.SIGKILL and not out.exists()
    assert build(*arguments[:-1]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.csv", "o"]


@pytest.mark.parametrize("options", [("--min-rating", 5), ("--num-aug", 9), ("--box", "2x2"), ("--seed", -1)])
def test_options_that_cannot_be_met_are_refused(tmp_path, capsys, options):
    assert build("maze-hard", "--source", "generate", "--grid", "5x5", *options, "--output-dir", tmp_path / "o") == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1 and not (tmp_path / "o").exists()


def test_a_rating_can_only_choose_where_there_is_one(tmp_path, capsys):
    source = write_csv(tmp_path / "x.csv", [row[:2] for row in sudoku_rows()], ("q", "a"))
    assert build("sudoku-extreme", "--source", source, "--min-rating", 2, "--output-dir", tmp_path / "o") == 1
    assert "has no ratings" in capsys.readouterr().err
    rated = write_csv(tmp_path / "y.csv", sudoku_rows())
    assert build("sudoku-extreme", "--source", rated, "--min-rating", 2, "--output-dir", tmp_path / "p") == 0
    assert load_puzzles(tmp_path / "p", "train").rating.tolist() == [2, 3, 4, 5]
