"""How people write puzzles: text, lines, lists and numbers, brought to one letter a cell or to an array.

Letters and shapes only, no rules: the tasks of `processing_air` say which letters are cells. Several puzzles in one
text are parted by `split_puzzles`, rows of tables are opened by `puzzle_of`. This file travels to the Hub: it needs
numpy and the standard library, nothing else.
"""

import contextlib
import math
import numbers
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

# Columns of tables and keys of rows. The last ones hold tokens where they hold numbers, as processors write them.
PUZZLE_KEYS = ("question", "puzzle", "quizzes", "quiz", "puzzles", "sudoku", "maze", "board", "grid", "text", "q")
TOKEN_KEYS = ("input_ids", "inputs")
PUZZLE_KEYS += TOKEN_KEYS
ANSWER_KEYS = ("answer", "solution", "solutions", "answers", "a", "labels")
DIGITS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # a 16x16 Sudoku uses 1-9 and A-G
BLANKS = ".0-_*?xX·"  # how people leave a cell of a Sudoku open; a letter that is a digit is none
BOX_DRAWING = "".join(map(chr, range(0x2500, 0x2580)))
FRAME = "+-|=" + BOX_DRAWING  # what a frame around a maze is drawn with
UPRIGHT = "│┃║┆┇┊┋╎╏"
ACROSS = frozenset(BOX_DRAWING) - set(UPRIGHT)
RULE = frozenset("-+=*|:.'`\"")  # what lines between the rows of a Sudoku are typed with
WALLS = str.maketrans(dict.fromkeys(FRAME, "#"))  # lines drawn inside a maze; blocks are walls everywhere
BLOCKS = str.maketrans(dict.fromkeys("█▓▒■⬛", "#"))
LINES = re.compile(rf"[|+=:'\"`\[\](){{}}{BOX_DRAWING}]")  # between the cells of a Sudoku
ASIDE = ("state", "pencil", "solution", "solved", "answer")  # sections that are not the puzzle


def puzzle_of(row: Any, values: str | None = None) -> tuple[Any, str | None]:
    """The puzzle of a data set's row (the row itself, or one of its columns), and what numbers in it mean."""
    row = row._asdict() if hasattr(row, "_asdict") else row  # of DataFrame.itertuples
    if not isinstance(row, Mapping):
        return row, values
    for key in PUZZLE_KEYS:
        if key in row:
            return row[key], values or ("tokens" if key in TOKEN_KEYS else None)
    raise ValueError(f"A row with the columns {sorted(row)} has no puzzle; expected one of {', '.join(PUZZLE_KEYS)}.")


# ---- Python's shapes


def as_text(grid: Any) -> str | None:
    """Text, a list of rows, of one-letter strings or of lists of them -> text; None where it holds something else."""
    if isinstance(grid, (str, bytes)):
        return grid if isinstance(grid, str) else grid.decode(errors="replace")
    if isinstance(grid, np.ndarray) and grid.dtype.kind in "UTOS":
        return as_text(grid.tolist())
    if not isinstance(grid, (list, tuple)) or not len(grid):
        return None
    if all(isinstance(row, (list, tuple, np.ndarray)) for row in grid):
        rows = [_row_text(list(row), " ") for row in grid]
        return None if None in rows else "\n".join(rows)
    return _row_text(list(grid), "\n")


def _row_text(cells: list, between: str) -> str | None:
    """Strings joined; None and "" are blanks among them."""
    if not any(isinstance(cell, str) for cell in cells) or not all(isinstance(c, (str, type(None))) for c in cells):
        return None
    letters = [cell or "." for cell in cells]
    return ("" if max(map(len, letters)) < 2 else between).join(letters)


def as_array(grid: Any) -> np.ndarray:
    """Numbers as an array; None becomes NaN."""
    try:
        array = np.asarray(grid)
        return array.astype(np.float64) if array.dtype.kind == "O" else array
    except (ValueError, TypeError):
        raise ValueError(
            "A grid must be text, or rows of numbers or of one-letter strings that are equally long."
        ) from None


def tokens_of(task: Any, grid: Any, values: str | None = "tokens") -> np.ndarray:
    """Text, a list, an array or a tensor of S cells -> uint8 (S,); ValueError when it is none of these.

    Args:
        values: what numbers are: "tokens", or "digits" of a Sudoku (0, None or NaN for a blank). None refuses
            numbers that may be either; a tensor, as processors and models give it, holds tokens.
    """
    if values not in (None, "tokens", "digits"):
        raise ValueError(f"values must be 'tokens' or 'digits', got {values!r}.")
    if hasattr(grid, "detach"):
        grid = grid.detach().cpu().numpy()
        values = values or task.values_of(grid, tensor=True)
    if isinstance(grid, np.ndarray) and not grid.ndim:
        grid = grid.item()
    if isinstance(grid, numbers.Real) and not isinstance(grid, bool):
        return task.encode(task.text_of_number(grid))
    if (text := as_text(grid)) is not None:
        return task.encode(text)
    grid = as_array(grid)
    grid = grid.reshape(-1) if grid.shape == (task.height, task.width) else grid
    if grid.shape != (task.seq_len,):
        raise ValueError(
            f"A {task.name} grid has {task.seq_len} cells ({task.height} x {task.width}), got shape {grid.shape}."
        )
    grid = task.tokens_of_numbers(grid, values)
    if len(bad := np.flatnonzero((grid < 0) | (grid >= task.vocab_size))):
        raise ValueError(
            f"Token {grid[bad[0]]} at {task.cell(bad[0])} is out of range: tokens go from 0 to {task.vocab_size - 1}."
        )
    return grid.astype(np.uint8)


def is_one_grid(task: Any, grid: Any) -> bool:
    """Whether a list, array or text is one puzzle (its cells, or its rows) rather than a list of puzzles."""
    if isinstance(grid, np.ndarray) and grid.dtype.kind in "UTO":
        grid = grid.tolist()
    if isinstance(grid, (str, bytes)):
        return True
    if isinstance(grid, (list, tuple)) and grid:
        if all(isinstance(row, str) for row in grid):
            return are_rows(list(grid), [task])
        if all(map(_are_lines, grid)):
            return False
    elif not isinstance(grid, np.ndarray) and not hasattr(grid, "detach"):
        return False
    try:
        shape = np.shape(grid)
    except ValueError:  # grids of several sizes
        return False
    if len(shape) == 1:  # numbers of many digits are Sudokus that a table has read as numbers
        plain = all(isinstance(v, numbers.Real) or v is None or hasattr(v, "detach") for v in grid)
        return bool(shape[0]) and plain and all(v is None or not abs(v) > 255 for v in grid)
    if len(shape) != 2:
        return False
    if shape == (task.height, task.width) or shape[0] == shape[1] != task.seq_len:
        return True
    return shape[1] != task.seq_len and math.isqrt(shape[1]) ** 2 != shape[1]  # no row is a puzzle by itself


def _are_lines(part: Any) -> bool:
    """Whether a list holds the lines of a puzzle, rather than the cells of a line (numbers up to 35)."""
    texts = isinstance(part, (list, tuple)) and len(part) > 0 and all(isinstance(line, str) for line in part)
    return texts and min(map(len, part)) > 2


def encode_puzzles(task: Any, puzzles: Iterable[Any], check: bool = True, values: str | None = "tokens") -> np.ndarray:
    """Puzzles as text or numbers -> uint8 (N, S). ValueError names the cell, and the puzzle, counted from 1."""
    if hasattr(puzzles, "detach"):
        puzzles = puzzles.detach().cpu().numpy()
        values = values or task.values_of(puzzles, tensor=True)
    if isinstance(puzzles, np.ndarray) and puzzles.dtype.kind in "iu":
        values = values or task.values_of(puzzles)
        in_range = values == "tokens" and ((puzzles >= 0) & (puzzles < task.vocab_size)).all()
        if in_range and puzzles.shape[1:] == (task.seq_len,):
            return _checked(task, puzzles.astype(np.uint8, copy=False), check, len(puzzles) > 1)
    puzzles = [puzzles] if isinstance(puzzles, str) else puzzles if hasattr(puzzles, "__len__") else list(puzzles)
    rows = []
    try:
        for number, puzzle in enumerate(puzzles, start=1):
            with numbering(number, len(puzzles) > 1):
                rows.append(task.as_tokens(puzzle, values))
    finally:  # an ill-formed puzzle before an unreadable one is named first
        tokens = np.stack(rows) if rows else np.zeros((0, task.seq_len), np.uint8)
        tokens = _checked(task, tokens, check, len(puzzles) > 1)
    return tokens


def _checked(task: Any, tokens: np.ndarray, check: bool, several: bool) -> np.ndarray:
    """The tokens (N, S); with `check` ValueError where a puzzle is ill-formed."""
    for index in np.flatnonzero(task.ill_formed(tokens)).tolist() if check else ():
        with numbering(index + 1, several):
            task.check_puzzle(tokens[index])
    return tokens


@contextlib.contextmanager
def numbering(number: int, several: bool) -> Iterator[None]:
    """Errors name the puzzle, where there are several."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Puzzle {number}: {error}" if several else str(error)) from None


# ---- text
#
# Visitors of a page paste what they like, and each text is read for many sizes: no pattern here may look at a run of
# letters again from each of its places.


def body(text: str, letters: Collection[str], comments: bool) -> list[str | None]:
    """The lines of a text that may hold cells; "" where they are blank, None at a title.

    Sections that are not the puzzle ([State] of an .sdk file, Solution) and Markdown fences are left out.

    Args:
        letters: the cells'. comments: a # begins one (in a maze it is a wall).
    """
    lines: list[str | None] = []
    found = text.lstrip("\ufeff").splitlines()
    aside = False
    for line in found:
        bare = line.strip()
        heading = re.fullmatch(r"\[([A-Za-z][\w -]*)\]", bare)
        if heading or is_title(line, letters) and len(found) > 1:
            name = heading or re.search(r"([A-Za-z]+)|$", bare)
            aside = (name[1] or "").lower().startswith(ASIDE)
            lines.append(None)
        elif not aside and not bare.startswith(("```", "~~~", "//")):
            cells, comment, _ = line.partition("#") if comments else (line, "", "")
            lines.append(cells.rstrip() if comment or comments and not bare else line)
    return lines


def is_title(line: str, letters: Collection[str]) -> bool:
    """Whether a line is a number ("2.") or begins with a word ("Grid 01", "2. Easy"), rather than with cells."""
    if "4" in letters and re.fullmatch(r"\s*(\d{1,2}\.|\d{1,3}[):])\s*", line):
        return True
    word = re.match(r"[^\w#]*(?:\d{1,4}[.):]\s*)?((?:[^\W\d_]|\ufffd){2,})(?![\w.*?#])", line)
    return word is not None and 2 * sum(letter not in letters for letter in word[1]) >= len(word[1])


def is_rule(line: str) -> bool:
    """Whether a line of a drawn Sudoku is no row for certain: +---+, *---*, :---+---:, ├───┼───┤."""
    letters = _letters(line)
    if letters & ACROSS:
        return not re.search(r"\w", line)
    return bool(letters & set("-=")) and letters <= RULE and ("+" in letters or line.lstrip()[0] in "*.:'`=")


def _letters(line: str) -> set[str]:
    """Those that are no white space."""
    return set("".join(line.split()))


def sudoku_cells(task: Any, text: str) -> str:
    """The cells of a Sudoku as people write it, a letter each, with "." for most kinds of blanks.

    Frames, separators, comments, titles, and an id or a rating beside a puzzle in one line are left out. What stays
    may have any length and hold foreign letters: the caller names them.
    """
    size, lines = task.height, [line for line in body(text, task.letters, comments=True) if line and not is_rule(line)]
    if len(lines) == 1 and (word := _whole_word(lines[0], size * size, task.letters)):
        return word
    rows = [_fields(line, size) for line in lines]
    # A dash is a blank or a drawn line: the number of cells tells, since each reading has more than the one before.
    readings = (
        [row.replace("-", " ") for row in rows],
        [row for row, line in zip(rows, lines) if not {"-"} <= _letters(line) <= {"-", "|"}],
        rows,
    )
    found = [_joined(LINES.sub(" ", " ".join(reading)).split(), size) for reading in readings]
    whole = [cells for cells in found if len(cells) == size * size]
    if not whole and (spaced := _spaced(lines, size)):
        return spaced
    return (whole or sorted(found, key=lambda cells: abs(len(cells) - size * size)))[0].replace("-", ".")


def _whole_word(line: str, count: int, letters: Collection[str]) -> str | None:
    """The one word of a line that is a whole puzzle, whatever stands beside it; a puzzle's answer may follow it."""
    words = [word for word in re.split(r"[\s,;|:=\"']+", line) if len(word) == count and set(word) <= set(letters)]
    if len(words) == 2 and all(a == b for a, b in zip(*words) if a not in BLANKS):
        words = words[:1]
    return words[0] if len(words) == 1 else None


def _fields(line: str, size: int) -> str:
    """A line whose cells are parted by commas, semicolons, tabs or bars: a field that is empty is a blank."""
    line = re.sub(r"^[\s\[({]*[\[({]", "", line)
    line = re.sub(r"^[\])},;\s]*[\])}]", "", line[::-1])[::-1].replace('"', "")  # backwards, as from its start
    for mark in ",;\t|":
        inner = line.strip(" ").strip("|") if mark == "|" else line
        if inner.count(mark) == size and inner.rstrip(" ").endswith(mark):
            inner = inner.rstrip(" ")[:-1]
        if inner.count(mark) in (size - 1, size * size - 1):
            return " ".join(field.strip() or "." for field in inner.split(mark))
    return re.sub("[,;]", " ", line)


def _joined(parts: list[str], size: int) -> str:
    """Numbers above 9 may be written out where white space parts all cells."""
    if size > 9 and len(parts) == size * size and any(len(part) > 1 for part in parts):
        for index, part in enumerate(parts):
            if len(part) > 1 and not (part.isdecimal() and 1 <= int(part) <= size):
                where = f"row {index // size + 1}, column {index % size + 1}"
                raise ValueError(f"{part!r} at {where} is not a number from 1 to {size}.")
        parts = [DIGITS[int(part) - 1] if len(part) > 1 else part for part in parts]
    return "".join(parts)


def _spaced(lines: list[str], size: int) -> str | None:
    """Cells of a drawing that leaves blanks empty: as many lines as rows, each as long as there are columns."""
    rows = [re.sub(f"[|{UPRIGHT}]", "", line) for line in lines]
    if len(rows) == size and all(len(row) == size for row in rows) and not set("".join(rows)) & set(".0-_*?"):
        return "".join(rows).replace(" ", ".")
    return None


def maze_lines(text: str, letters: Collection[str]) -> list[str]:
    """The lines of a maze's text that are not empty; tabs before and after a drawing as spaces.

    Cells may be parted by commas or semicolons, and walls be drawn as blocks.
    """
    lines = [line.translate(BLOCKS) for line in body(text, letters, comments=False) if line]
    fields = [re.split("[,;]", re.sub(r"[,;]\s*$", "", line)) for line in lines]
    if lines and all(len(row) > 1 and all(len(cell.strip()) < 2 for cell in row) for row in fields):
        lines = ["".join(cell.strip() or " " for cell in row) for row in fields]
    return [_tabs_around(line) for line in lines]


def _tabs_around(line: str) -> str:
    """Tabs before and after a drawing as spaces."""
    bare = line.strip(" \t")
    before, _, after = line.partition(bare) if bare else (line, "", "")
    return before.expandtabs(4) + bare + after.expandtabs(4)


def maze_cells(task: Any, text: str) -> str:
    """The cells of a maze's text, without line breaks, a drawn frame and a margin; every line must then be one row.

    A line drawn inside is a wall. Nothing else is guessed.
    """
    lines = maze_lines(text, task.letters)
    if len(lines) > 1:
        width = task.width + 2 * (len(lines) == task.height + 2)
        if any(len(line) != width for line in lines):
            lines = without_margin(lines, width)
        lines = [line.translate(WALLS) for line in _without_frame(lines, task.height, task.width)]
        for row, line in enumerate(lines, start=1):
            if foreign := set(line) - task.letters - {"."}:
                letter = next(c for c in line if c in foreign)
                raise task.foreign(letter, f"row {row}, column {line.index(letter) + 1}")
        if len(lines) != task.height:
            raise ValueError(
                f"The maze text has {len(lines)} lines, {task.height} expected (a row of {task.width} cells each)."
            )
        for row, line in enumerate(lines, start=1):
            if len(line) != task.width:
                raise ValueError(
                    f"Line {row} of the maze text has {len(line)} cells, {task.width} expected. Spaces at the end of a"
                    " line count; write . for a free cell where an editor drops them."
                )
    cells = "".join(lines)
    if "." in cells and " " in cells:
        raise ValueError(
            f"The maze text uses both . ({task.cell(cells.index('.'))}) and a space ({task.cell(cells.index(' '))}): "
            "write free cells one way only."
        )
    return cells.replace(".", " ")


def _without_frame(lines: list[str], height: int, width: int) -> list[str]:
    """Strip one surrounding frame where the text is exactly one cell larger on each side and the frame is uniform:
    walls all around, or a drawing of + - | = or box-drawing characters."""
    rim = set(lines[0] + lines[-1] + "".join(line[0] + line[-1] for line in lines))
    if len(lines) != height + 2 or any(len(line) != width + 2 for line in lines):
        if len(lines) == height and rim <= set(FRAME):
            raise ValueError(
                f"The maze text is a drawn frame around {height - 2} rows of {width - 2} cells, {height} of {width}"
                " expected."
            )
        return lines
    if rim == {"#"} or rim <= set(FRAME):
        return [line[1:-1] for line in lines[1:-1]]
    raise ValueError(
        f"The maze text has {len(lines)} lines of {width + 2}, {height} of {width} expected, and its rim is not a"
        " frame (walls or drawn lines all around)."
    )


def without_margin(lines: list[str], width: int | None = None) -> list[str]:
    """A drawn maze without the columns of spaces before and after it, which nothing closes.

    Args:
        width: how wide the maze is. Columns of spaces then stay where they are needed for that, and where it is clear
            which ones are.
    """
    if any("\t" in line for line in lines):
        return lines
    left = min(len(line) - len(line.lstrip(" ")) for line in lines)
    end = max(len(line.rstrip(" ")) for line in lines)
    full = len(lines[0])
    if width is not None and end - left < width <= full and all(len(line) == full for line in lines):
        if left and end < full:
            raise ValueError(
                f"The maze text has columns of spaces before and after the drawing, and {width} columns are expected: "
                "write . for free cells."
            )
        left, end = (full - width, full) if left else (0, width)
    return [line[left:end] for line in lines]


def most_like(tasks: list, puzzle: Any) -> int:
    """Which of several tasks, none of which can read a puzzle, it most looks like: by its letters, then its size."""
    text = as_text(puzzle)
    maze, size, foreign = False, np.size(puzzle), [0] * len(tasks)
    if text is not None:
        letters = "".join(text.translate(BLOCKS).split())
        foreign = [sum(c not in task.letters for c in letters if c not in FRAME + ".") for task in tasks]
        least, is_maze = min(zip(foreign, (task.name == "maze" for task in tasks)))
        is_maze = is_maze and 2 * least < len(letters)  # else it is like nothing
        maze = not re.search("[2-9]", text) and (is_maze or {"S", "G"} <= set(letters))
        size = len(re.sub(r"[\r\n]", "", text)) if maze else len(letters)
    # A size that fits says more than a letter that does not: "7" in 36 cells is a slip of a 6x6 Sudoku.
    fits = [(task.seq_len != size, n, abs(task.seq_len - size)) for task, n in zip(tasks, foreign)]
    return min(range(len(tasks)), key=lambda i: ((tasks[i].name == "maze") != maze, *fits[i]))


# ---- several puzzles


def reads(tasks: list, text: str) -> bool:
    """Whether one of the tasks can read a text (no puzzle is as long as a file of thousands of them)."""
    for task in tasks if len(text) <= 50_000 else ():
        if 4 * len(text) + 1 < task.seq_len:  # too short: a tab is four cells at the most, and a field may be empty
            continue
        with contextlib.suppress(ValueError):
            task.encode(text)
            return True
    return False


def split_puzzles(text: str, tasks: list) -> list[str]:
    """The puzzles of a text: one drawn over several lines, one a line, or several drawn ones parted by blank lines,
    rules (===) or titles. What is neither stays in one piece, for the caller to refuse."""
    if reads(tasks, text):
        return [text]
    mazes = [task for task in tasks if task.name != "sudoku"]
    maze = mazes and (len(mazes) == len(tasks) or {"S", "G", "#"} <= set(text))
    letters = set().union(*(task.letters for task in (mazes if maze else tasks)))
    puzzles: list[str] = []
    section: list[list[str]] = [[]]
    for line in [*body(text, letters, comments=not maze), None]:
        if line is None:
            puzzles += _of_section([piece for piece in section if piece], tasks)
            section = [[]]
        elif not line or re.fullmatch(r"\s*={3,}\s*", line):
            section.append([])
        elif maze or not is_rule(line):
            section[-1].append(line)
    return puzzles


def _of_section(pieces: list[list[str]], tasks: list) -> list[str]:
    """Puzzles of pieces between two titles: a piece is whole, or each of its lines, or some pieces together are."""

    # No puzzle has more pieces than rows and lines around them. Without an end, a long text would be read anew with
    # each of its pieces.
    most = 2 * max(task.height for task in tasks) + 1

    def refused() -> list[str]:
        tall = min(task.height for task in tasks) - 1
        whole = all(piece.count("\n") + 1 >= tall for piece in waiting)
        return waiting[:] if whole else ["\n".join(waiting)]

    puzzles, waiting = [], []
    for lines in pieces:
        block = "\n".join(lines)
        if found := [block] if reads(tasks, block) else puzzles_a_line(lines, tasks):
            puzzles, waiting = [*puzzles, *refused(), *found], []
            continue
        waiting.append(block)
        if len(waiting) <= most and reads(tasks, joined := "\n".join(waiting)):
            puzzles, waiting = [*puzzles, joined], []
    return puzzles + refused()


def puzzles_a_line(lines: list[str], tasks: list) -> list[str]:
    """The lines, where each is a puzzle (one of a task reads, or of some size) rather than a row of one; else none.

    A row of a maze may look like a small maze, and a row of a large Sudoku like a small one, but not every row.
    """
    if len(lines) < 2:
        return []
    some = any(reads(tasks, line) for line in lines) or any(all(map(whole, lines)) for whole in (_sudoku, _maze))
    return lines if some else []


def _sudoku(line: str) -> bool:
    word = max(re.split(r"[\s,;|]+", line), key=len)
    side = math.isqrt(len(word))
    return side > 3 and side * side == len(word) and {*word.upper()} <= {*DIGITS[:side], *BLANKS}


def _maze(line: str) -> bool:
    square = math.isqrt(len(line)) ** 2 == len(line)
    return square and line.count("S") == line.count("G") == 1 and set(line) <= set("#. SG")


def are_rows(parts: list[str], tasks: list) -> bool:
    """Whether the texts of a list are the rows (or the cells) of one puzzle rather than a puzzle each."""
    if not 1 < len(parts) < 10_000 or any(reads(tasks, part) for part in parts[:4]):
        return False
    joined = as_text(parts) or ""
    if reads(tasks, joined):
        return True
    widths = {len(part) for part in parts}
    if len(widths) > 1 or puzzles_a_line(parts, []):
        return False
    square = widths == {len(parts)} or widths == {1} and math.isqrt(len(parts)) ** 2 == len(parts)
    return square or joined.count("S") == joined.count("G") == 1
