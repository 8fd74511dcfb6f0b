"""The task objects and AirProcessor: text, tokens, rules, geometry, symmetries."""

import csv
import gzip
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from air_model.processing_air import (
    AirProcessor,
    GridTask,
    MazeTask,
    SudokuTask,
    default_box,
    make_task,
    task_from_config,
)
from air_model.reading_air import encode_puzzles

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the real rows of ../shared/data are not here")

PUZZLE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
ANSWER = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"
SIZES = [(2, 2), (2, 3), (3, 2), (3, 3), (2, 4), (4, 4), (1, 5)]


def solved_grid(h: int, w: int) -> np.ndarray:
    """Tokens of the textbook pattern grid with h x w boxes."""
    n = h * w
    r, c = np.divmod(np.arange(n * n), n)
    return ((w * (r % h) + r // h + c) % n + 2).astype(np.uint8)


def random_mazes(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Solvable mazes, uint8 (n, S)."""
    rng, task, out = np.random.default_rng(seed), MazeTask(height, width), []
    while len(out) < n:
        grid = np.where(rng.random(height * width) < 0.3, 1, 2).astype(np.uint8)
        s, g = rng.choice(height * width, 2, replace=False)
        grid[s], grid[g] = 3, 4
        if task.distances(grid[None])[0, s] >= 0:
            out.append(grid)
    return np.stack(out)


def walk(grid: np.ndarray, height: int, width: int) -> tuple[int, np.ndarray]:
    """Written apart from the package: shortest distance S to G, and the Down-Left-Right-Up path."""
    cells = grid.reshape(height, width)
    find = lambda token: tuple(int(v) for v in np.argwhere(cells == token)[0])  # noqa: E731
    start, goal = find(3), find(4)
    distance, queue = {goal: 0}, deque([goal])
    while queue:
        r, c = queue.popleft()
        for near in ((r + 1, c), (r, c - 1), (r, c + 1), (r - 1, c)):
            inside = 0 <= near[0] < height and 0 <= near[1] < width
            if inside and cells[near] != 1 and near not in distance:
                distance[near] = distance[r, c] + 1
                queue.append(near)
    out, (r, c) = cells.copy(), start
    while distance[r, c] > 1:
        moves = ((r + 1, c), (r, c - 1), (r, c + 1), (r - 1, c))
        r, c = next(m for m in moves if distance.get(m, -1) == distance[r, c] - 1)
        out[r, c] = 5
    return distance[start], out.reshape(-1)


# ---- Sudoku


def test_sudoku_tokens_are_those_of_the_benchmark():
    tokens = SudokuTask().encode(PUZZLE)
    assert tokens.dtype == np.uint8 and tokens[:5].tolist() == [6, 4, 1, 1, 8]
    assert SudokuTask().decode(tokens) == PUZZLE and SudokuTask().vocab_size == 11


@pytest.mark.parametrize("blank", "._0*-?xX")
def test_every_blank_letter_means_blank(blank):
    assert SudokuTask().decode(SudokuTask().encode(PUZZLE.replace(".", blank))) == PUZZLE


@pytest.mark.parametrize("drawing", ["plain", "format", "box", "crlf", "equals"])
def test_drawn_sudokus_are_read(drawing):
    task = SudokuTask()
    rows = [PUZZLE[i : i + 9] for i in range(0, 81, 9)]
    text = {
        "plain": "\n".join(rows),
        "format": task.format(task.encode(PUZZLE)),
        "box": "┌───┬───┬───┐\n" + "\n".join("│" + r[:3] + "║" + r[3:6] + "│" + r[6:] + "│" for r in rows) + "\n└───┘",
        "crlf": "\r\n".join(" ".join(r) for r in rows),
        "equals": "\n+===+\n".join("|" + r + "|" for r in rows),
    }[drawing]
    assert task.decode(task.encode(text)) == PUZZLE


@pytest.mark.parametrize("h, w", SIZES)
def test_any_box_shape_encodes_decodes_and_formats(h, w):
    task = SudokuTask(h * w, box_height=h, box_width=w)
    grid = solved_grid(h, w)
    assert (task.encode(task.decode(grid)) == grid).all()
    assert (task.encode(task.decode(grid).lower()) == grid).all()
    assert (task.encode(task.format(grid)) == grid).all()
    assert task.verdict(np.ones_like(grid), grid).valid


def test_large_digits_may_be_letters_or_numbers():
    task, grid = SudokuTask(16), solved_grid(4, 4)
    numbers = " ".join(str(t - 1) for t in grid)
    assert (task.encode(numbers) == grid).all() and "G" in task.decode(grid)


@pytest.mark.parametrize(
    "text, says",
    [
        (PUZZLE[:-1], "80 cells, 81 expected"),
        (PUZZLE + ".", "82 cells, 81 expected"),
        ("q" + PUZZLE[1:], "'q' at row 1, column 1"),
        (PUZZLE[:24] + "A" + PUZZLE[25:], "'A' at row 3, column 7"),
        ("", "0 cells"),
    ],
)
def test_wrong_length_and_foreign_letters_are_named(text, says):
    with pytest.raises(ValueError, match=says):
        SudokuTask().encode(text)


@pytest.mark.parametrize(
    "cells, says",
    [
        ((0, 8), "row 1, column 1 and row 1, column 9 both hold 7 in the same row"),
        ((4, 76), "row 1, column 5 and row 9, column 5 both hold 7 in the same column"),
        ((30, 40), "row 4, column 4 and row 5, column 5 both hold 7 in the same box"),
    ],
)
def test_contradicting_clues_name_both_cells(cells, says):
    grid = np.ones(81, np.uint8)
    grid[list(cells)] = 8
    with pytest.raises(ValueError, match=says):
        SudokuTask().check_puzzle(grid)


def test_verdict_tells_solved_from_incomplete_inconsistent_and_invalid():
    task = SudokuTask()
    assert task.verdict(PUZZLE, ANSWER) == (True, True, True, "Solved.")
    assert task.verdict(PUZZLE, ANSWER[:2] + "." + ANSWER[3:])[:3] == (False, True, False)
    swapped = ANSWER.translate(str.maketrans("12", "21"))  # legal, but of another puzzle
    assert task.verdict(PUZZLE, swapped)[:3] == (True, False, False)
    wrong = ANSWER[:2] + "1" + ANSWER[3:]
    verdict = task.verdict(PUZZLE, wrong)
    assert verdict[:3] == (True, True, False) and "row 1, column 3" in verdict.message and not verdict


def test_conflicts_marks_every_cell_of_a_duplicate_and_no_other():
    task = SudokuTask()
    grid = task.encode(ANSWER)
    grid[2] = grid[8]  # row 1, columns 3 and 9
    seen = np.zeros(81, bool)
    for unit in task.units:
        for i in unit:
            seen[i] |= sum(grid[j] == grid[i] for j in unit) > 1
    assert (task.conflicts(grid) == seen).all() and task.conflicts(grid[None, None]).shape == (1, 1, 81)


def test_sudoku_units_have_21_cells_and_include_the_query():
    units = SudokuTask().neighbours["units"]
    assert (units.sum(1) == 21).all() and units.diagonal().all() and (units == units.T).all()
    assert (SudokuTask().peers.sum(1) == 20).all()


@pytest.mark.parametrize("h, w", SIZES)
def test_sudoku_symmetries_keep_solved_grids_solved_and_invert(h, w):
    task = SudokuTask(h * w, box_height=h, box_width=w)
    grids = np.tile(solved_grid(h, w), (64, 1))
    symmetry = task.random_symmetries(np.random.default_rng(1), 64)
    mapped = symmetry.apply(grids)
    assert task.verdicts(np.ones_like(mapped), mapped).valid.all()
    assert (symmetry.inverse().apply(mapped) == grids).all() and mapped.dtype == np.uint8
    assert len(np.unique(mapped, axis=0)) > 4
    turned = symmetry.cells[:, 0] % (h * w) == symmetry.cells[:, 1] % (h * w)  # a row that was a column
    assert turned.any() == (h == w) and not turned.all()


def test_single_symmetries_map_batches_of_any_rank():
    task = SudokuTask()
    symmetry = task.sample_symmetry(np.random.default_rng(0))
    grids = np.tile(task.encode(ANSWER), (2, 3, 1))
    assert (
        symmetry.apply(grids).shape == (2, 3, 81) and (symmetry.inverse().apply(symmetry.apply(grids)) == grids).all()
    )


@pytest.mark.parametrize("size, box", [(4, (2, 2)), (6, (2, 3)), (8, (2, 4)), (9, (3, 3)), (12, (3, 4)), (16, (4, 4))])
def test_boxes_default_to_the_squarest(size, box):
    assert default_box(size) == box


@pytest.mark.parametrize("args", [(7,), (9, 8), (9, 9, 2), (9, 9, 3, 4), (36,), (1,)])
def test_impossible_sudoku_shapes_are_refused(args):
    with pytest.raises(ValueError):
        SudokuTask(*args)


# ---- maze


def test_maze_tokens_are_those_of_the_benchmark():
    assert MazeTask(1, 5).encode("# SGo").tolist() == [1, 2, 3, 4, 5] and MazeTask().seq_len == 900


@pytest.mark.parametrize("height, width", [(5, 5), (6, 9), (13, 13), (3, 20)])
def test_labels_and_distances_agree_with_a_plain_search(height, width):
    task, mazes = MazeTask(height, width), random_mazes(30, height, width)
    labels = task.label(mazes)
    assert task.verdicts(mazes, labels).valid.all()
    for maze, label, distance in zip(mazes, labels, task.distances(mazes)):
        length, expected = walk(maze, height, width)
        assert (label == expected).all() and distance[np.flatnonzero(maze == 3)[0]] == length


def test_mazes_are_read_in_lines_framed_or_with_dots():
    task = MazeTask(4, 6)
    for maze in random_mazes(10, 4, 6):
        text = task.decode(maze)
        lines = [text[i : i + 6] for i in range(0, 24, 6)]
        framed = ["#" * 8, *("#" + line + "#" for line in lines), "#" * 8]
        for variant in (
            "\n".join(lines) + "\n",
            "\r\n".join(lines),
            text.replace(" ", "."),
            "\n".join(framed),
            task.format(maze),
        ):
            assert (task.encode(variant) == maze).all()


@pytest.mark.parametrize(
    "text, says",
    [
        ("S. G", "both . "),
        ("S \n G\n  ", "3 lines, 2 expected"),
        ("S\n G", "Line 1 of the maze text has 1 cells"),
        ("SxoG", "Foreign letter 'x' at row 1, column 2"),
        ("####\n#SG#\n# G#\n### ", "rim is not a frame"),
        ("S  G#", "5 cells, 4 expected"),
    ],
)
def test_ambiguous_maze_texts_are_refused(text, says):
    with pytest.raises(ValueError, match=says):
        MazeTask(2, 2).encode(text)


@pytest.mark.parametrize(
    "text, says",
    [
        ("   G", "exactly one S, found 0"),
        ("SG G", "exactly one G, found 2: row 1, column 2 and row 2, column 2"),
        ("SoGG", "exactly one G"),
        ("SoG#", "row 1, column 2 holds a path mark"),
    ],
)
def test_ill_formed_mazes_name_the_cell(text, says):
    with pytest.raises(ValueError, match=says):
        MazeTask(2, 2).check_puzzle(text)


def test_a_maze_without_a_path_is_wellformed_but_not_solvable():
    MazeTask(2, 2).check_puzzle("S##G")
    with pytest.raises(ValueError, match=r"No path leads from S \(row 1, column 1\) to G \(row 2, column 2\)"):
        MazeTask(2, 2).check_solvable("S##G")
    assert "No path leads" in MazeTask(2, 2).verdict("S##G", "S## ").message


@pytest.mark.parametrize(
    "answer, flags, says",
    [
        ("S  o  G  ", (True, True, True), "Solved"),
        ("S     G  ", (False, True, False), "do not join"),
        ("S  o oG  ", (True, True, False), "row 2, column 3 is marked but"),
        ("So o  G  ", (True, True, False), "row 1, column 2 is marked but"),
        ("So  o Go ", (True, True, False), "4 moves"),
        ("S# o  G  ", (True, False, False), "row 1, column 2 was given as"),
        ("oS    G  ", (False, False, False), "row 1, column 1 was given"),
    ],
)
def test_maze_verdicts(answer, flags, says):
    verdict = MazeTask(3, 3).verdict("S     G  ", answer)
    assert verdict[:3] == flags and says in verdict.message


def test_any_shortest_path_is_valid_but_two_at_once_are_not():
    task = MazeTask(2, 2)
    assert task.verdict("S  G", "So G").valid and task.verdict("S  G", "S oG").valid
    assert task.verdict("S  G", "SooG")[:3] == (True, True, False)
    assert task.decode(task.label("S  G")) == "S oG"  # Down comes first


def test_maze_neighbourhoods():
    masks = MazeTask(5, 6).neighbours
    assert [int(masks[k][14].sum()) for k in ("nbr4", "nbr8", "window5")] == [4, 8, 24]
    assert not any(m.diagonal().any() for m in masks.values()) and masks["nbr4"][0].sum() == 2


@pytest.mark.parametrize("shape, count", [((4, 4), 8), ((3, 5), 4)])
def test_dihedral_maps_are_all_different_and_keep_distances(shape, count):
    task = MazeTask(*shape)
    assert len(np.unique(task.dihedral, axis=0)) == count
    maze = random_mazes(1, *shape)[0]
    assert len({walk(maze[cells], *shape)[0] for cells in task.dihedral}) == 1


# ---- processor


def test_processor_round_trip_and_batches():
    processor = AirProcessor()
    ids = processor([PUZZLE, ANSWER])["input_ids"]
    assert ids.shape == (2, 81) and ids.dtype == torch.int64
    assert processor.decode(ids) == [PUZZLE, ANSWER] and processor.decode(ids[0]) == PUZZLE
    assert processor.check(PUZZLE, ids[1]).valid and processor.check(ids[0], ANSWER).valid


@pytest.mark.parametrize("task", [SudokuTask(4), SudokuTask(6, box_height=3), MazeTask(2, 3), GridTask(2, 2, 4)])
def test_the_puzzles_that_are_ill_formed_are_found_at_once(task):
    grids = np.random.default_rng(0).integers(0, task.vocab_size, (400, task.seq_len), np.uint8)
    grids[np.random.default_rng(1).random(grids.shape) < 0.6] = task.blank_token
    refused = []
    for grid in grids:
        try:
            task.check_puzzle(grid)
        except ValueError:
            refused.append(True)
        else:
            refused.append(False)
    assert not all(refused) and task.ill_formed(grids).tolist() == refused
    assert any(refused) == (task.name != "grid"), "a generic grid may be padded"


def test_only_ill_formed_puzzles_are_looked_at_one_by_one(monkeypatch):
    task, seen = SudokuTask(4), []
    monkeypatch.setattr(task, "check_puzzle", lambda tokens: (seen.append(tokens), SudokuTask(4).check_puzzle(tokens)))
    good, bad = task.encode("1" + "." * 15), task.encode("11" + "." * 14)
    for puzzles in (np.stack([good, good, bad, good]), ["1" + "." * 15, good, "11" + "." * 14, "foreign letters"]):
        with pytest.raises(ValueError, match="Puzzle 3: Contradicting clues: row 1, column 1 and row 1, column 2"):
            encode_puzzles(task, puzzles)
    assert len(seen) == 2


def test_processor_refuses_contradictions_unless_told_otherwise():
    bad = "55" + PUZZLE[2:]
    with pytest.raises(ValueError, match="Puzzle 2: Contradicting clues: row 1, column 1 and row 1, column 2"):
        AirProcessor()([PUZZLE, bad])
    assert AirProcessor()(bad, check=False)["input_ids"].shape == (1, 81)


@pytest.mark.parametrize("bad", [[], None, 5, [1.5] * 81, list(range(81)), "53"])
def test_processor_refuses_what_is_no_puzzle(bad):
    with pytest.raises(ValueError):
        AirProcessor()(bad)


@pytest.mark.parametrize("kwargs", [{}, {"task": "sudoku", "grid_height": 6}, {"task": "maze", "grid_height": 5}])
def test_processor_loads_through_auto_processor_from_its_folder(kwargs, tmp_path):
    from transformers import AutoProcessor

    processor = AirProcessor(**kwargs)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.grid_task == processor.grid_task and AirProcessor.from_pretrained(tmp_path).task == processor.task


def test_processor_reads_the_config_where_its_own_file_is_missing(tmp_path):
    (tmp_path / "config.json").write_text('{"task": "maze", "grid_height": 5, "grid_width": 7, "vocab_size": 6}')
    assert AirProcessor.from_pretrained(tmp_path).grid_task == MazeTask(5, 7)
    with pytest.raises(FileNotFoundError, match="processor_config.json"):
        AirProcessor.from_pretrained(tmp_path / "..")


def test_task_and_processor_follow_the_config():
    from air_model import AirConfig

    config = AirConfig.from_variant("Lx_H", task="sudoku", grid_height=6, grid_width=6, box_height=2, box_width=3)
    assert task_from_config(config) == SudokuTask(6) == AirProcessor.from_config(config).grid_task


def test_generic_grids_have_text_and_faults_by_comparison():
    task = make_task("grid", 2, 3, vocab_size=12)
    assert isinstance(task, GridTask) and task.decode(task.encode("1a2 b30")) == "1a2b30"
    assert task.verdict("120000", "130000").complete  # what the puzzle pads need not be filled
    assert not task.verdict("120000", "100000").complete
    assert task.conflicts([[1, 2], [2, 2]], [[1, 3], [0, 2]]).tolist() == [[False, True], [False, False]]
    for bad in (("chess",), ("grid",), ("maze", 5, 5, 2, 2), ("sudoku", 9, 9, 3, 3, 12)):
        with pytest.raises(ValueError):
            make_task(*bad)


# ---- properties and real rows


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(SIZES), st.integers(0, 2**32 - 1))
def test_symmetries_commute_with_the_rules(box, seed):
    task, rng = SudokuTask(box[0] * box[1], box_height=box[0], box_width=box[1]), np.random.default_rng(seed)
    symmetry = task.sample_symmetry(rng)
    grid = rng.integers(0, task.vocab_size, task.seq_len).astype(np.uint8)  # any grid, conflicts included
    assert (task.conflicts(symmetry.apply(grid)) == task.conflicts(grid)[symmetry.cells]).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 7), st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_maze_text_round_trips_and_labels_are_valid(height, width, seed):
    task = MazeTask(height, width)
    maze = random_mazes(1, height, width, seed)[0]
    assert (task.encode(task.decode(maze)) == maze).all()
    assert task.verdict(maze, task.label(maze)).valid


@needs_shared
@pytest.mark.parametrize("name", ["sudoku_extreme/train_1000", "sudoku_extreme/dev_1175"])
def test_real_sudoku_answers_are_valid(name):
    task = SudokuTask()
    with gzip.open(SHARED / f"{name}.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    grids = [np.stack([task.encode(row[column]) for row in rows]) for column in ("question", "answer")]
    assert task.verdicts(*grids).valid.all() and not task.conflicts(grids[0]).any()


@needs_shared
@pytest.mark.parametrize("name", ["maze_hard/train_1000", "maze_hard/dev_500"])
def test_real_maze_labels_follow_the_rule(name):
    task = MazeTask()
    with gzip.open(SHARED / f"{name}.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    mazes, labels = (np.stack([task.encode(row[column]) for row in rows]) for column in ("question", "answer"))
    assert (task.label(mazes) == labels).all() and task.verdicts(mazes, labels).valid.all()


def test_a_generic_grid_may_change_every_cell_and_its_verdict_claims_no_more_than_it_knows():
    verdict = GridTask(2, 2, 4).verdict([2, 3, 1, 1], [3, 3, 2, 1])
    assert verdict.valid and verdict.message == "Complete; no rule says whether it is right."
