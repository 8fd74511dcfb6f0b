"""What people bring: texts, files and Python's shapes, read alike at every door."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_model

from air_model import PuzzleSolvingPipeline
from air_model.datasets_builders import load_puzzles
from air_model.datasets_builders.files import puzzles_in, read_rows
from air_model.pipeline_air import readings
from air_model.processing_air import MazeTask, SudokuTask
from air_model.reading_air import puzzles_a_line, split_puzzles
from air_model.scripts import build_dataset

PUZZLE = "..3.2.6..9..3.5..1..18.64....81.29..7.......8..67.82....26.95..8..2.3..9..5.1.3.."
FOUR, ANSWER = "1...3...2...4...", "1234341221434321"
OTHER = ".2.............."
NINE = SudokuTask()
ROWS = [PUZZLE[i : i + 9] for i in range(0, 81, 9)]
BARS = [f"|{row[:3]}|{row[3:6]}|{row[6:]}|" for row in ROWS]
DIGITS = [[int(c) for c in row.replace(".", "0")] for row in ROWS]


def framed(top: str, between: str, bottom: str) -> str:
    return "\n".join([top, *BARS[:3], between, *BARS[3:6], between, *BARS[6:], bottom])


TEXTS = {
    **{f"blank {blank}": PUZZLE.replace(".", blank) for blank in "0-_*?xX·"},
    **{f"rows of {blank}": "\n".join(ROWS).replace(".", blank) for blank in "-_*?x"},
    "commas": "\n".join(",".join(row.replace(".", "0")) for row in ROWS),
    "empty fields": "\n".join(",".join(row).replace(".", "") for row in ROWS),
    "empty fields in quotes": "\n".join(",".join(f'"{c}"' for c in row).replace(".", "") for row in ROWS),
    "semicolons": "\n".join(";".join(row).replace(".", "") + ";" for row in ROWS),
    "tabs": "\n".join("\t".join(row).replace(".", "") for row in ROWS),
    "one line of fields": ",".join(PUZZLE).replace(".", ""),
    "stars": framed("*-----------*", "|---+---+---|", "*-----------*"),
    "stars, indented": framed(" *---*---*---*", " *---*---*---*", " *---*---*---*"),
    "pluses": framed("+---+---+---+", "+---+---+---+", "+---+---+---+"),
    "points": framed(".---.---.---.", ":---+---+---:", "'---'---'---'"),
    "dashes": framed("-" * 13, "-" * 13, "-" * 13),
    "dashes around dashes": framed("-" * 13, "-" * 13, "-" * 13).replace(".", "-"),
    "box drawing": framed("┌───┬───┬───┐", "├───┼───┼───┤", "└───┴───┴───┘"),
    "blanks left empty": framed("+---+---+---+", "+---+---+---+", "+---+---+---+").replace(".", " "),
    "bands": "\n\n".join("\n".join(ROWS[i : i + 3]) for i in (0, 3, 6)),
    "sdk": "#A Somebody\n#D 12 clues, very 3\n#L hard\n[Puzzle]\n" + "\n".join(ROWS) + "\n[State]\n" + "\n".join(ROWS),
    "sdm": f"# one of many\n{PUZZLE}\n",
    "ss": framed(" *-----------*", " |---+---+---|", " *-----------*").replace(".", "X"),
    "title": "Grid 01\n" + "\n".join(ROWS),
    "numbered title": "1. Easy (12)\n" + "\n".join(ROWS),
    "solution below": f"Puzzle:\n{PUZZLE}\nSolution:\n{PUZZLE}",
    "id and rating": f"0000183b305c {PUZZLE.replace('.', '0')}  1.2",
    "rating in fields": f"17;{PUZZLE};ED=7.2/1.2",
    "markdown": "```\n" + "\n".join(ROWS) + "\n```",
    "Python": "grid = [\n" + ",\n".join(map(str, DIGITS)) + "\n]",
    "remarks": "\n".join(f"{row}  # row {r}" for r, row in enumerate(ROWS)),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_sudoku_is_read_as_people_write_it(name):
    assert NINE.decode(NINE.encode(TEXTS[name])) == PUZZLE


@pytest.mark.parametrize("n", [4, 6, 16, 25])
def test_letters_that_are_digits_stay_digits(n):
    task = SudokuTask(n)
    grid = np.random.default_rng(n).integers(1, n + 2, n * n).astype(np.uint8)
    numbers = [str(t - 1) for t in grid]
    for text in (task.decode(grid), task.format(grid).lower(), ",".join(numbers), ";".join(numbers).replace("0", "0")):
        assert (task.encode(text) == grid).all()


def test_x_is_a_digit_where_a_sudoku_is_large_enough():
    task = SudokuTask(35)
    assert task.encode("X" + "." * (35 * 35 - 1))[0] == 34


def test_a_letter_that_is_no_cell_is_named_before_cells_are_counted():
    for text, where in ((PUZZLE[:24] + "q" + PUZZLE[26:], "row 3, column 7"), ("53q", "row 1, column 3")):
        with pytest.raises(ValueError, match=f"Foreign letter 'q' at {where}"):
            NINE.encode(text)


def test_several_puzzles_in_one_text_are_counted_not_cut():
    with pytest.raises(ValueError, match="162 cells, 81 expected .* like 2 puzzles: give each by itself"):
        NINE.encode(PUZZLE + PUZZLE)


DRAWN = "\n".join(ROWS)
FILES = {
    "blank lines": (f"{DRAWN}\n\n{DRAWN}\n\n\n{DRAWN}\n", 3),
    "bands": (f"{TEXTS['bands']}\n\n{TEXTS['bands']}", 2),
    "equal signs": (f"{DRAWN}\n========\n{DRAWN}\n", 2),
    "titles": (f"Grid 01\n{DRAWN}\nGrid 02\n{DRAWN}\n", 2),
    "frames": (f"{TEXTS['pluses']}\n\n{TEXTS['pluses']}\n", 2),
    "one a line": (f"# two\n{PUZZLE} 1.5\n{PUZZLE} 2.0\n", 2),
    "sections": (f"[Puzzle]\n{DRAWN}\n[Puzzle]\n{DRAWN}\n", 2),
    "a bad one between": (f"{DRAWN}\n\n{DRAWN[:-1]}\n\n{DRAWN}\n", 3),
}


@pytest.mark.parametrize("name", FILES)
def test_several_grids_of_a_text_are_told_apart(name):
    text, count = FILES[name]
    found = split_puzzles(text, [NINE])
    assert len(found) == count
    readable = [puzzle for puzzle in found if puzzle.count("\n") < 20]
    assert len(readable) == count and NINE.decode(NINE.encode(found[0])) == PUZZLE


def test_mazes_parted_by_titles_and_blank_lines_are_told_apart():
    maze = "####\n#SG#\n####"
    for tasks in ([MazeTask(3, 4)], [NINE, MazeTask(3, 4)]):
        assert split_puzzles(f"Maze 1\n{maze}\n\n{maze}\n===\n{maze}\n", tasks) == [maze] * 3


ROWS_OF = [{"quizzes": FOUR, "solutions": ANSWER}, {"quizzes": OTHER, "solutions": ANSWER}]
TABLE = f"quizzes,solutions\n{FOUR.replace('.', '0')},{ANSWER}\n{OTHER.replace('.', '0')},{ANSWER}\n"


def packed(name: str) -> bytes:
    """A table of two 4x4 puzzles with answers."""
    out = io.BytesIO()
    if name == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("__MACOSX/._sudoku.csv", b"\0")
            archive.writestr("data/sudoku.csv", TABLE)
        return out.getvalue()
    if name == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS_OF), out)
        return out.getvalue()
    text = {
        "csv": TABLE,
        "gz": TABLE,
        "tsv": TABLE.replace(",", "\t"),
        "semicolons": TABLE.replace(",", ";"),
        "pandas": ",".join(["", *TABLE.splitlines(keepends=True)]).replace("\n,", "\n0,"),
        "puzzle,solution": TABLE.replace("quizzes,solutions", "Puzzle,Solution"),
        "json": json.dumps(ROWS_OF),
        "json in one key": json.dumps({"version": 1, "data": ROWS_OF}),
        "jsonl": "\n".join(map(json.dumps, ROWS_OF)),
    }[name].encode()
    return gzip.compress(text) if name == "gz" else text


KINDS = ["csv", "gz", "tsv", "semicolons", "pandas", "puzzle,solution", "json", "json in one key", "jsonl"]
KINDS += ["zip", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_read_alike_by_solving_and_by_evaluating(kind, tmp_path):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "table"
    path.write_bytes(packed(kind))
    task = SudokuTask(4)
    with open(path, "rb") as file:
        found = puzzles_in(file, "table", [task])
    assert [task.decode(task.encode(puzzle)) for puzzle in found] == [FOUR, OTHER]
    loaded = load_puzzles(path)
    assert [task.decode(row) for row in loaded.inputs] == [FOUR, OTHER] and loaded.task == task
    assert [task.decode(row) for row in loaded.labels] == [ANSWER, ANSWER]


def test_json_grids_of_numbers_need_to_be_told_what_they_are(tmp_path):
    grid = [[int(c) for c in FOUR[i : i + 4].replace(".", "0")] for i in range(0, 16, 4)]
    solved = [[int(c) for c in ANSWER[i : i + 4]] for i in range(0, 16, 4)]
    (tmp_path / "a.json").write_text(json.dumps([{"puzzle": grid, "solution": solved}]))
    with pytest.raises(ValueError, match="values='digits' or values='tokens'"):
        load_puzzles(tmp_path / "a.json")
    loaded = load_puzzles(tmp_path / "a.json", values="digits")
    assert loaded.task.decode(loaded.inputs[0]) == FOUR and loaded.task.decode(loaded.labels[0]) == ANSWER


@pytest.mark.parametrize("kind", ["office", "locked", "binary", "columns", "nested"])
def test_what_holds_no_puzzles_is_refused_in_one_sentence(kind):
    data = {"binary": b"\xff\xfe\x00\x01" * 9, "columns": b'[{"name": "x"}]', "nested": b"[" * 200_000}.get(kind)
    if kind in ("office", "locked"):
        with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
            archive.writestr("[Content_Types].xml" if kind == "office" else "a.txt", "")
        data = out.getvalue()
    if kind == "locked":  # as its list of files says of a member
        data = data.replace(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\1")
    says = {"office": "save it as CSV", "binary": "is no text file", "columns": "has the columns name"}
    says = (says | {"nested": "nests lists deeper", "locked": "locked by a password"})[kind]
    with pytest.raises(ValueError, match=says):
        puzzles_in(io.BytesIO(data), "the file", [NINE])


@pytest.mark.parametrize("piece", ["-", "|", " ", "\t", "]", "],", "1\n\n", "S\n\n", "=", "─"])
def test_a_long_text_is_refused_in_time_that_grows_with_its_length(piece):
    text = (piece * 20_000)[:20_000]  # of what took minutes where a run was looked at again from each of its letters
    for start in ("", "1", "#"):
        for task in (NINE, MazeTask(30)):
            with pytest.raises(ValueError):
                task.encode(f"{start}{text}!")
    split_puzzles(f"{text}!", [NINE, MazeTask(30)])


def test_lines_too_short_for_a_puzzle_are_not_read_one_by_one(monkeypatch):
    monkeypatch.setattr(SudokuTask, "encode", lambda task, text: pytest.fail(f"read {text!r}"))
    assert not puzzles_a_line(["1 2 3"] * 1000, [NINE]) and not puzzles_a_line([PUZZLE], [NINE])


def test_every_size_of_sudoku_is_tried_once(monkeypatch):
    tried = []
    encode = SudokuTask.encode
    monkeypatch.setattr(SudokuTask, "encode", lambda task, text: tried.append(task.height) or encode(task, text))
    with pytest.raises(ValueError):
        readings([SudokuTask(6), NINE], "53q")
    assert tried[:2] == [6, 9] and len(tried[2:]) == len(set(tried[2:]))


# ---- mazes


CLOSED = ["######", "#S  ##", "##  G#", "######"]


@pytest.mark.parametrize("indent", ["    ", "\t", "  "])
def test_an_indented_maze_is_as_wide_as_it_is_drawn(indent):
    task, framed = MazeTask(4, 6), MazeTask(2, 4)
    text = "\n".join(indent + line for line in CLOSED)
    assert task.decode(task.encode(text)) == "".join(CLOSED)
    assert framed.decode(framed.encode(text)) == "S  ##  G"


def test_a_model_of_any_size_sees_an_indented_maze_without_its_margin():
    pipe = PuzzleSolvingPipeline(tiny_model(task="maze", grid_height=3, position_embedding="rope2d"), device="cpu")
    text = "\n".join(CLOSED)
    assert pipe("\n".join("    " + line + "  " for line in CLOSED)) == pipe(text)
    with pytest.raises(ValueError, match="Line 2 of the maze text"):
        pipe("\n".join(" " * (4 + (r == 1)) + line for r, line in enumerate(CLOSED)))


DRAWN = ["┌─────┐", "│S    │", "│ ╶─┐ │", "│   │ │", "│ │ ╵G│", "└─────┘"]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(DRAWN),
        "+-----+\n|S    |\n| --+ |\n|   | |\n| | |G|\n+-----+",
        "S    \n ███ \n   █ \n █ █G",
        "S,.,.,.,.\n.,#,#,#,.\n.,.,.,#,.\n.,#,.,#,G",
        "S, , , , ,\n ,#,#,#, ,\n , , ,#, ,\n ,#, ,#,G,",
        "S;.;.;.;.\n.;#;#;#;.\n.;.;.;#;.\n.;#;.;#;G",
    ],
)
def test_walls_are_drawn_with_lines_or_blocks_and_cells_parted_by_commas(text):
    task = MazeTask(4, 5)
    assert task.decode(task.encode(text)) == "S     ###    #  # #G"
    (other,) = readings([MazeTask(6)], text)
    assert (other[0].height, other[0].width) == (4, 5)


def test_a_drawn_frame_with_an_opening_belongs_to_the_maze():
    lines = [DRAWN[0], DRAWN[1][:-1] + " ", *DRAWN[2:]]
    task = MazeTask(6, 7)
    assert task.decode(task.encode("\n".join(lines)))[:14] == "########S     "


def test_columns_of_spaces_on_both_sides_are_not_guessed_at():
    with pytest.raises(ValueError, match="columns of spaces before and after"):
        MazeTask(2, 3).encode("  S  \n  G  ")
    assert MazeTask(2, 3).encode("   S #\n   G #").tolist() == MazeTask(2, 3).encode("S #\nG #").tolist()


# ---- Python's shapes


@pytest.fixture(scope="module")
def pipe():
    return PuzzleSolvingPipeline(tiny_model(), device="cpu", attempts=1)  # what is read is asked here


def digits(text: str) -> np.ndarray:
    return np.array([int(c) for c in text.replace(".", "0")])


@pytest.mark.parametrize("grid", [ANSWER, FOUR])
def test_an_array_of_digits_is_never_taken_for_tokens(pipe, grid):
    processor, array = pipe.processor, digits(grid)
    doors = (pipe, processor, processor.check_puzzle, processor.format, lambda a: processor.check(FOUR, a))
    for door in doors:
        for shape in (array, array.reshape(4, 4), array.tolist(), array.astype(np.uint8)):
            with pytest.raises(ValueError, match="values='digits' or values='tokens'"):
                door(shape)
    assert pipe(array, values="digits")["solution"] == pipe(grid)["solution"]
    assert pipe(array[None], values="digits")[0]["solution"] == pipe(grid)["solution"]
    assert processor.decode(processor(array[None], values="digits")["input_ids"]) == [grid]
    assert processor.check(FOUR, digits(ANSWER), values="digits").valid


def as_solved(answer: dict) -> dict:
    """But for the confidence, whose last digits depend on how many puzzles are computed together."""
    return {name: value for name, value in answer.items() if name != "confidence"}


def test_tokens_from_the_processor_need_no_argument(pipe):
    ids = pipe.processor([FOUR, OTHER])["input_ids"]
    wanted = pipe([FOUR, OTHER])
    for tokens in (ids, {"input_ids": ids}, {"input_ids": ids.tolist()}, ids.numpy()):
        assert pipe(tokens) == wanted
    assert as_solved(pipe(ids[1].numpy(), values="tokens")) == as_solved(wanted[1])
    with pytest.raises(ValueError, match="no digit from 0"):
        pipe(ids.numpy(), values="digits")
    with pytest.raises(ValueError, match="values must be"):
        pipe(ids, values="numbers")


def test_lists_of_rows_letters_and_digits_are_one_puzzle(pipe):
    wanted = pipe(FOUR)
    rows = [FOUR[i : i + 4] for i in range(0, 16, 4)]
    for grid in (rows, tuple(rows), [list(row) for row in rows], list(FOUR), np.array(list(FOUR)).reshape(4, 4)):
        assert pipe(grid) == wanted
    assert pipe([[int(c) if c != "." else None for c in row] for row in rows], values="digits") == wanted
    for grids in ([rows, rows], [FOUR] * 4):
        assert [*map(as_solved, pipe(grids))] == [as_solved(wanted)] * len(grids)


def test_a_maze_may_be_a_list_of_rows_or_of_letters():
    pipe = PuzzleSolvingPipeline(tiny_model(task="maze", grid_height=3, position_embedding="rope2d"), device="cpu")
    for maze in (["S #", "  #", "# G"], CLOSED):
        assert pipe(maze) == pipe("\n".join(maze)) == pipe([list(row) for row in maze])


def test_pandas_columns_are_puzzles_also_when_pandas_made_numbers_of_them(pipe):
    pandas = pytest.importorskip("pandas")
    zeros = ["0100200030004000", "1000200030004000"]
    wanted = pipe(zeros)
    assert pipe(pandas.Series(zeros)) == wanted == pipe(pandas.Series([int(z) for z in zeros]))
    assert pipe(pandas.Series([float(z) for z in zeros])) == wanted
    assert pipe(pandas.DataFrame({"quizzes": zeros, "solutions": ["", ""]})) == wanted
    assert pipe(pandas.DataFrame(digits(FOUR).reshape(4, 4)), values="digits") == pipe(FOUR)
    with pytest.raises(ValueError, match="Puzzle 2: An empty cell of a table"):
        pipe(pandas.Series([zeros[0], float("nan")], dtype=object))


def test_a_number_that_may_be_two_sizes_or_is_rounded_is_refused():
    assert NINE.decode(NINE.as_tokens(int(PUZZLE.replace(".", "0")))) == PUZZLE
    with pytest.raises(ValueError, match="a Sudoku of 4 or of 9 rows"):
        NINE.as_tokens(1000200030004000)
    with pytest.raises(ValueError, match="is rounded: read its column as text"):
        NINE.as_tokens(float(PUZZLE.replace(".", "0")))


def test_key_data_sets_and_columns_of_data_sets_are_read(pipe):
    datasets = pytest.importorskip("datasets")
    from transformers.pipelines.pt_utils import KeyDataset

    rows = datasets.Dataset.from_dict({"quizzes": [FOUR, OTHER], "solutions": [ANSWER, ANSWER]})
    wanted = pipe([FOUR, OTHER])
    assert list(pipe(KeyDataset(rows, "quizzes"))) == list(pipe(rows["quizzes"])) == list(pipe(rows)) == wanted


# ---- the metric


def load_metric(tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    return evaluate.load(str(ROOT / "metrics" / "puzzle_accuracy"), cache_dir=str(tmp_path))


def test_the_metric_reads_texts_and_digits_and_refuses_to_guess(tmp_path, monkeypatch):
    def compute(**given):
        return load_metric(tmp_path, monkeypatch).compute(task="sudoku", **given)

    texts = {"predictions": [ANSWER], "references": [ANSWER], "inputs": [FOUR]}
    plain = {name: [digits(rows[0]).tolist()] for name, rows in texts.items()}
    found = compute(**texts)
    assert found["valid_accuracy"] == found["exact_accuracy"] == found["blank_cell_accuracy"] == 1.0
    assert compute(**plain, values="digits") == found
    with pytest.raises(ValueError, match="values='digits' or values='tokens'"):
        compute(**plain)


# ---- how many solutions there are


def test_solutions_are_counted_within_bounds():
    assert NINE.solutions(NINE.encode(PUZZLE)) == 1
    assert NINE.solutions(NINE.encode("." * 81)) == "several"
    assert SudokuTask(4).solutions(SudokuTask(4).encode("123....4........")) == 0
    assert NINE.solutions(NINE.encode("." * 81), effort=0) is None
    assert SudokuTask(25).solutions(np.ones(625, np.uint8)) in (None, "several")


def test_the_small_search_agrees_with_the_compiled_solver():
    from air_model.datasets_builders.sudoku_solver import solve

    rng, task = np.random.default_rng(0), SudokuTask(6)
    grid = task.encode("123456456123231564564231312645645312")
    puzzles = np.where(rng.random((24, 36)) < 0.5, grid, 1).astype(np.uint8)
    puzzles[:12, 0] = rng.integers(2, 8, 12)
    wanted = solve(puzzles, task)[0]
    found = [task.solutions(puzzle) for puzzle in puzzles]
    assert [2 if f == "several" else f for f in found] == np.minimum(wanted, 2).tolist() and len(set(found)) == 3


@pytest.mark.parametrize(("maze", "count"), [("S G", 1), ("S#G", 0), ("S ##G#", 1), ("S  G", "several")])
def test_shortest_paths_are_counted(maze, count):
    task = {3: MazeTask(1, 3), 6: MazeTask(2, 3), 4: MazeTask(2, 2)}[len(maze)]
    assert task.solutions(task.encode(maze)) == count


def test_an_answer_says_how_many_solutions_there_are_and_an_unsolvable_one_has_no_confidence(pipe):
    one, several, none = pipe(["1234341221434...", "................", "123....4........"])
    assert (one["solutions"], several["solutions"], none["solutions"]) == (1, "several", 0)
    assert "several solutions" in several["message"] and none["confidence"] == 0.0
    assert none["message"].startswith("The puzzle has no solution.") and not none["solved"]
    assert pipe(FOUR, count_solutions=False)["solutions"] is None


def test_bytes_are_a_text_and_not_a_list_of_numbers(pipe):
    assert pipe(FOUR.encode()) == pipe(FOUR)
    assert [found["solution"] for found in pipe([FOUR.encode()] * 2)] == [pipe(FOUR)["solution"]] * 2


def test_puzzles_as_lists_of_rows_come_in_lists(pipe):
    rows = [FOUR[i : i + 4] for i in range(0, 16, 4)]
    for many in (2, 3, 4):
        assert len(pipe([rows] * many)) == many


def test_a_tensor_of_digits_is_never_taken_for_tokens(pipe):
    solved, digits = ([int(c.replace(".", "0")) for c in text] for text in (ANSWER, FOUR))
    for call in (pipe, pipe.processor, lambda numbers: pipe.processor.check(numbers, numbers)):
        for numbers in (solved, digits):
            with pytest.raises(ValueError, match="values='digits'"):
                call(torch.tensor(numbers))
    with pytest.raises(ValueError, match="values='digits'"):
        pipe(torch.tensor([digits, solved]))
    assert pipe.processor.check(torch.tensor(digits), torch.tensor(solved), values="digits").valid


def test_rows_of_a_table_may_be_named_tuples(pipe):
    table = pytest.importorskip("pandas").DataFrame({"puzzle": [FOUR], "rating": [3]})
    assert [found["solution"] for found in pipe(table.itertuples())] == [pipe(FOUR)["solution"]]


def test_numbers_alone_in_a_line_are_titles():
    for mark in (".", ")", ":"):
        text = f"1{mark}\n" + "\n".join(ROWS) + f"\n2{mark}\n" + "\n".join(ROWS)
        assert [NINE.decode(NINE.encode(puzzle)) for puzzle in split_puzzles(text, [NINE])] == [PUZZLE] * 2


@pytest.mark.parametrize("title", ["Übung {}", "Головоломка {}", "数独 {}", "R\ufffdtsel {}"])
def test_titles_may_be_in_any_language(title):
    text = "\n".join([title.format(1), *ROWS, title.format(2), *ROWS])
    assert [NINE.decode(NINE.encode(puzzle)) for puzzle in split_puzzles(text, [NINE])] == [PUZZLE] * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_text_file_may_have_any_common_encoding(encoding):
    held = io.BytesIO(("# Rätsel für heute\n" + "\n".join(ROWS)).encode(encoding))
    (puzzle,) = puzzles_in(held, "file", [NINE])
    assert NINE.decode(NINE.encode(puzzle)) == PUZZLE


def test_a_table_may_be_written_in_utf_16(tmp_path):
    table = f"question,answer\n{PUZZLE},{PUZZLE}\n"
    (tmp_path / "table.csv").write_bytes(table.encode("utf-16"))
    ((questions, answers, *_),) = read_rows(tmp_path / "table.csv", bad := [])
    assert (questions, answers, bad) == ([PUZZLE], [PUZZLE], [])


def test_a_complaint_is_about_the_size_that_a_puzzle_looks_like():
    for tasks in ([SudokuTask(6), NINE], [MazeTask(12), SudokuTask(6), NINE]):
        with pytest.raises(ValueError, match="'Q' at row 9, column 9: this sudoku uses the digits 1-9"):
            readings(tasks, PUZZLE[:-1] + "Q")


@pytest.mark.parametrize("values", [None, "digits"])
def test_a_build_is_told_what_numbers_are(values, tmp_path, capsys):
    puzzle = "." + ANSWER[1:]
    rows = [{"puzzle": [int(c.replace(".", "0")) for c in puzzle], "solution": [int(c) for c in ANSWER]}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sudoku-extreme", "--source", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out"), "--quiet"]
    assert build_dataset.main(words + ["--values", values] * (values is not None)) == (values is None)
    if values is None:
        assert "values='digits'" in capsys.readouterr().err
    else:
        assert load_puzzles(tmp_path / "out").task.decode(load_puzzles(tmp_path / "out").inputs[0]) == puzzle


def test_the_metric_reads_drawings_as_every_door_does(tmp_path, monkeypatch):
    metric = load_metric(tmp_path, monkeypatch)
    drawn = "12|34\n34|12\n--+--\n21|43\n43|21"
    found = metric.compute(predictions=[ANSWER], references=[drawn], inputs=[FOUR], task="sudoku")
    assert found["exact_accuracy"] == 1
    maze, path = "S #\n# G", "So#\n#oG"
    indented = ["\n".join("    " + line for line in text.split("\n")) for text in (maze, path)]
    found = metric.compute(predictions=[path], references=[indented[1]], inputs=[indented[0]], task="maze")
    assert found["exact_accuracy"] == found["valid_accuracy"] == 1
