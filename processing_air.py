"""Puzzles as text and as tokens, and the rules of each task: everything about AIR that is not a network.

One `GridTask` object per task holds geometry, letters, rules, neighbourhoods and symmetries, so that training,
evaluation, analyses and the demo never retype them. `AirProcessor` wraps one for transformers:

    processor = AirProcessor(task="sudoku")                  # or AirProcessor.from_pretrained(model folder)
    input_ids = processor("53..7....6..195...…")["input_ids"]  # (1, 81)
    text = processor.decode(input_ids[0])
    verdict = processor.check(puzzle_text, answer_text)      # verdict.complete, .consistent, .valid, .message

Shape letters: N puzzles, S cells (row-major), H rows, W columns, V tokens. Tokens are uint8, token 0 is PAD. Cells in
messages are counted from 1. Numbers may mean digits or tokens (blank 1, digit d is d + 1): `values` says which, and
what people call a processor or a pipeline with is never guessed.
"""

import json
import math
import numbers
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import BatchFeature, ProcessorMixin

from .reading_air import BLANKS, DIGITS, encode_puzzles, is_one_grid, maze_cells, numbering, sudoku_cells, tokens_of
from .search_air import count_solutions, flood

PAD = 0
SIZES = ("grid_height", "grid_width", "box_height", "box_width", "vocab_size")  # fields of a config and a processor
UNKNOWN = "?"  # how a PAD token (a model may predict it) is written; as input it is a blank of a Sudoku
CHUNK = 1024  # rows handled at once by the vectorised rules


def in_chunks(function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """function(*arrays), a row of its result for each of theirs, some rows at a time: memory stays flat."""
    starts = range(0, max(len(arrays[0]), 1), CHUNK)
    return np.concatenate([function(*(array[at : at + CHUNK] for array in arrays)) for at in starts])


class Verdict(NamedTuple):
    """What the rules say of one answer (or, from `verdicts`, of N answers: then each field is an array (N,)).

    complete: nothing is left open. Sudoku: a digit in every cell; maze: no PAD, and the marks join S to G.
    consistent: the answer keeps what the puzzle gave (clues; walls, S and G).
    valid: it is a right answer: complete, consistent, and no rule of the task is broken.
    message: one sentence; names the first cell that is wrong.
    """

    complete: Any
    consistent: Any
    valid: Any
    message: Any = ""

    def __bool__(self) -> bool:
        return bool(np.all(self.valid))


class Symmetry(NamedTuple):
    """A map of puzzles that keeps the rules: out[j] = tokens[in[cells[j]]].

    cells: (S,) permutation, or (N, S): one per row of a batch. tokens: (V,) or (N, V) permutation; PAD and blank stay.
    """

    cells: np.ndarray
    tokens: np.ndarray

    def apply(self, grids: np.ndarray) -> np.ndarray:
        """Map grids (..., S), or (..., N, S) when this holds one symmetry per row; dtype is kept."""
        grids = np.asarray(grids)
        if self.cells.ndim == 1:
            return self.tokens.astype(grids.dtype)[grids[..., self.cells]]
        lead = (1,) * (grids.ndim - 2)
        moved = np.take_along_axis(grids, self.cells.reshape(*lead, *self.cells.shape), axis=-1)
        tokens = self.tokens.astype(grids.dtype).reshape(*lead, *self.tokens.shape)
        return np.take_along_axis(tokens, moved.astype(np.intp), axis=-1)

    def inverse(self) -> "Symmetry":
        """The symmetry that undoes this one."""
        order = lambda p: np.argsort(p, axis=-1).astype(p.dtype)  # noqa: E731
        return Symmetry(order(self.cells), order(self.tokens))


class GridTask:
    """A grid of H x W cells and V tokens without rules of its own; Sudoku and maze build on it.

    Text of a generic grid: one character per token, 0-9, then a-z, then A-Z; white space is ignored. Its puzzles alone
    may hold PAD: smaller grids are padded to one size.
    """

    name = "grid"
    has_rules = False  # that judge an answer; without them puzzles may be padded
    blank_token = 1
    box_height: int | None = None
    box_width: int | None = None

    def __init__(self, height: int, width: int | None, vocab_size: int):
        width = height if width is None else width
        for what, value in (("height", height), ("width", width)):
            if int(value) != value or value < 1:
                raise ValueError(f"The grid {what} must be a whole number of at least 1, got {value!r}.")
        if not 2 <= vocab_size <= 255:
            raise ValueError(f"vocab_size must be from 2 to 255 (tokens are stored as uint8), got {vocab_size}.")
        self.height, self.width, self.vocab_size = int(height), int(width), int(vocab_size)

    @property
    def seq_len(self) -> int:
        return self.height * self.width

    @property
    def sizes(self) -> tuple[int | None, ...]:
        """The values of `SIZES`."""
        return self.height, self.width, self.box_height, self.box_width, self.vocab_size

    @cached_property
    def alphabet(self) -> str:
        """Character of each token; position = token."""
        letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        if self.vocab_size > len(letters):
            raise ValueError(f"A grid of {self.vocab_size} tokens has no text form; pass token arrays instead.")
        return letters[: self.vocab_size]

    def __repr__(self) -> str:
        box = f", box {self.box_height}x{self.box_width}" if self.box_height else ""
        return f"{type(self).__name__}({self.height}x{self.width}{box}, {self.vocab_size} tokens)"

    def _key(self) -> tuple:
        return self.name, self.height, self.width, self.vocab_size, self.box_height, self.box_width

    def __eq__(self, other: object) -> bool:
        # Not isinstance: the same class may have been imported twice, here and as remote code.
        return hasattr(other, "_key") and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    # ---- text

    def cell(self, index: int) -> str:
        """'row 3, column 7': how messages name a cell."""
        return f"row {index // self.width + 1}, column {index % self.width + 1}"

    def _cells_of(self, text: str) -> str:
        """The S characters of the cells, without what `encode` tolerates around them."""
        return "".join(text.split())

    def foreign(self, letter: str, where: str) -> ValueError:
        return ValueError(f"Foreign letter {letter!r} at {where}: this {self.name} uses {self._letters_help}.")

    def encode(self, text: str) -> np.ndarray:
        """Text to tokens, uint8 (S,). Raises ValueError for a foreign letter (naming its cell) or a wrong length."""
        if not isinstance(text, str):
            raise ValueError(f"A puzzle must be text (str), got {type(text).__name__}.")
        cells, table = text, self._codes
        if len(text) != self.seq_len or not table.keys() >= set(text):
            cells = self._cells_of(text)
        for index, letter in enumerate(cells):
            if letter not in table:
                raise self.foreign(letter, self.cell(index) if index < self.seq_len else f"cell {index + 1}")
        if (count := len(cells)) != self.seq_len:
            where = f" The cells end at {self.cell(count - 1)}." if 0 < count < self.seq_len else ""
            if count > self.seq_len and count % self.seq_len == 0:
                where = f" These look like {count // self.seq_len} puzzles: give each by itself, in a list or a file."
            rows = f"{self.height} rows of {self.width}"
            raise ValueError(f"The {self.name} text has {count} cells, {self.seq_len} expected ({rows}).{where}")
        return np.fromiter((table[c] for c in cells), np.uint8, self.seq_len)

    @cached_property
    def letters(self) -> frozenset[str]:
        """All letters that a text of this task may use for its cells."""
        return frozenset(self._codes)

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.alphabet)}

    @cached_property
    def _letters_help(self) -> str:
        return " ".join(self.alphabet)

    def decode(self, tokens: Any) -> str:
        """Tokens (S,) to text: S characters, row-major, no line breaks."""
        return "".join(self.alphabet[t] for t in self.as_tokens(tokens))

    def format(self, tokens: Any, puzzle: Any = None, ansi: bool = False) -> str:
        """Several readable lines; with `ansi` and the puzzle given, what the answer added is coloured."""
        return "\n".join(map("".join, self._styled(tokens, puzzle, ansi)))

    def _styled(self, tokens: Any, puzzle: Any, ansi: bool) -> list[list[str]]:
        text = list(self.decode(tokens))
        if ansi and puzzle is not None:
            added = self.as_tokens(puzzle) != self.as_tokens(tokens)
            text = [f"\x1b[1;34m{c}\x1b[0m" if new else c for c, new in zip(text, added)]
        return [text[r * self.width : (r + 1) * self.width] for r in range(self.height)]

    as_tokens = tokens_of

    def text_of_number(self, number: numbers.Real) -> str:
        raise ValueError(f"A {self.name} puzzle must be text or tokens, got the number {number!r}.")

    def tokens_of_numbers(self, grid: np.ndarray, values: str | None) -> np.ndarray:
        if values == "digits":
            raise ValueError(f"values='digits' is for Sudokus: give a {self.name} as text or tokens.")
        if grid.dtype.kind not in "iu":
            raise ValueError(f"Tokens must be whole numbers, got an array of {grid.dtype}.")
        return grid

    def values_of(self, grids: Any, tensor: bool = False) -> str | None:
        """What numbers are where they can be one thing only: "tokens", or None where they may be digits as well.

        tensor: they were one, so they are tokens unless every digit occurs as often as in a whole grid of digits.
        """
        return "tokens"

    # ---- rules

    def check_puzzle(self, puzzle: Any, values: str | None = "tokens") -> None:
        """Raise ValueError naming the cell unless this is a well-formed puzzle (as for `as_tokens`)."""
        self._check(self.as_tokens(puzzle, values))

    def _check(self, tokens: np.ndarray) -> None:
        if self.has_rules and len(pads := np.flatnonzero(tokens == PAD)):
            digits = " Digits, with 0 for a blank, need values='digits'." if self.name == "sudoku" else ""
            raise ValueError(f"{self.cell(pads[0])} holds the PAD token 0: every cell needs a value.{digits}")

    def ill_formed(self, puzzles: np.ndarray) -> np.ndarray:
        """Which of N puzzles `check_puzzle` refuses: tokens (N, S) -> bool (N,)."""
        return (puzzles == PAD).any(-1) & self.has_rules

    def check_solvable(self, puzzle: Any) -> None:
        """`check_puzzle`, and ValueError where it shows at once that a well-formed puzzle has no answer.

        For who makes puzzles (data sets, the page's editor). Solving takes such a puzzle: its answer is never valid.
        """
        self.check_puzzle(puzzle)

    def verdict(self, puzzle: Any, answer: Any, values: str | None = "tokens") -> Verdict:
        """Judge one answer by the rules (not by a stored label). Raises ValueError when the puzzle is ill-formed."""
        puzzle, answer = self.as_tokens(puzzle, values), self.as_tokens(answer, values)
        self._check(puzzle)
        verdict = Verdict(*(bool(f[0]) for f in self.verdicts(puzzle[None], answer[None])[:3]))
        return verdict._replace(message=self.explain(puzzle, answer, verdict))

    def explain(self, puzzle: np.ndarray, answer: np.ndarray, verdict: Verdict) -> str:
        """A verdict on one answer (tokens) in words, naming the first cell that is wrong."""
        right = "Solved." if self.has_rules else "Complete; no rule says whether it is right."
        return right if verdict.valid else self._explain(puzzle, answer, verdict.complete, verdict.consistent)

    def solutions(self, puzzle: np.ndarray, effort: int = 100_000) -> int | str | None:
        """How many answers a well-formed puzzle (tokens) has: 0, 1, "several", or None where that is not known.

        effort: guesses times cells, after which the search gives up.
        """
        return None

    def _explain(self, puzzle: np.ndarray, answer: np.ndarray, complete: bool, consistent: bool) -> str:
        if not consistent:
            i = (~self._kept(puzzle, answer)).argmax()
            given, found = self.alphabet[puzzle[i]], self.alphabet[answer[i]]
            return f"{self.cell(i)} was given as {given!r} but the answer has {found!r}."
        return f"{self.cell(((answer == PAD) & (puzzle != PAD)).argmax())} is empty."

    def _given(self, puzzles: np.ndarray) -> np.ndarray:
        """Cells that an answer must keep, bool, same shape. No rule says what a generic grid gives."""
        return (puzzles != self.blank_token) & self.has_rules

    def _kept(self, puzzles: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Cells where an answer agrees with what was given, bool, same shape."""
        return (puzzles == answers) | ~self._given(puzzles)

    def verdicts(self, puzzles: np.ndarray, answers: np.ndarray) -> Verdict:
        """`verdict` for N well-formed puzzles at once; puzzles, answers (N, S) -> bool arrays (N,)."""
        puzzles, answers = np.asarray(puzzles), np.asarray(answers)
        if puzzles.shape != answers.shape or puzzles.ndim != 2 or puzzles.shape[1] != self.seq_len:
            raise ValueError(
                f"puzzles and answers must both be (N, {self.seq_len}), got {puzzles.shape} and {answers.shape}."
            )
        return Verdict(*in_chunks(lambda p, a: np.stack(self._verdicts(p, a), -1), puzzles, answers).T)

    def _verdicts(self, puzzles: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        consistent = self._kept(puzzles, answers).all(-1)
        complete = ((answers != PAD) | (puzzles == PAD)).all(-1)
        return complete, consistent, complete & consistent

    def conflicts(self, tokens: Any, labels: Any = None) -> np.ndarray:
        """Cells at fault in decoded grids (..., S) -> bool (..., S).

        Sudoku: cells whose digit occurs twice in a row, column or box (labels are not used). Other tasks: cells that
        differ from `labels`, where these say anything (PAD does not).
        """
        if labels is None:
            raise ValueError(f"The {self.name} task finds faults by comparing with labels: pass labels as well.")
        tokens, labels = np.asarray(tokens), np.asarray(labels)
        return (tokens != labels) & (labels != PAD)

    # ---- geometry

    @cached_property
    def neighbours(self) -> dict[str, np.ndarray]:
        """Named (S, S) bool masks, True where key j belongs to the neighbourhood of query i."""
        return self.neighbours_of(np.arange(self.seq_len))

    def neighbours_of(self, cells: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of `neighbours` for cells (Q,): (Q, S) bool masks. All of a large grid take much memory."""
        row, column = np.divmod(np.arange(self.seq_len), self.width)
        down, right = abs(row[cells, None] - row), abs(column[cells, None] - column)
        far = np.maximum(down, right)
        return {"nbr4": down + right == 1, "nbr8": far == 1, "window5": (far <= 2) & (far > 0)}

    @cached_property
    def peers(self) -> np.ndarray:
        """(S, S) bool: the cells that make a query 'adjacent' to a fault (query itself excluded)."""
        return self.neighbours["nbr4"]

    @cached_property
    def dihedral(self) -> np.ndarray:
        """(8, S) cell permutations of a square grid, (4, S) of a rectangle; the first is the identity."""
        grid = np.arange(self.seq_len).reshape(self.height, self.width)
        turned = [grid, grid.T] if self.height == self.width else [grid]
        return np.stack([g[::up, ::left].reshape(-1) for g in turned for up in (1, -1) for left in (1, -1)])

    @cached_property
    def token_maps(self) -> np.ndarray:
        """(K, V) further symmetries of tokens that `random_symmetries` does not draw; the first is the identity."""
        return np.arange(self.vocab_size, dtype=np.uint8)[None]

    def random_symmetries(self, rng: np.random.Generator, n: int) -> Symmetry:
        """n symmetries drawn uniformly: cells (n, S), tokens (n, V)."""
        return Symmetry(self.dihedral[rng.integers(len(self.dihedral), size=n)], np.repeat(self.token_maps[:1], n, 0))

    def sample_symmetry(self, rng: np.random.Generator) -> Symmetry:
        """One symmetry drawn uniformly: cells (S,), tokens (V,)."""
        return Symmetry(*(part[0] for part in self.random_symmetries(rng, 1)))


class SudokuTask(GridTask):
    """Sudoku of any size n = box_height * box_width: blank 1, digits 2 ... n + 1 (A, B, ... stand for 10, 11, ...)."""

    name = "sudoku"
    has_rules = True

    def __init__(self, height: int = 9, width: int | None = None, box_height: int | None = None,
                 box_width: int | None = None):  # fmt: skip
        if width not in (None, height):
            raise ValueError(f"A Sudoku grid is square, got {height} rows and {width} columns.")
        if not 2 <= height <= len(DIGITS):
            raise ValueError(f"A Sudoku has from 2 to {len(DIGITS)} rows, got {height}.")
        super().__init__(height, width, height + 2)
        self.box_height, self.box_width = default_box(height, box_height, box_width)
        self.alphabet = UNKNOWN + "." + DIGITS[:height]
        letters = f" and A-{DIGITS[height - 1]}" if height > 9 else ""
        self._letters_help = f"the digits 1-{min(height, 9)}{letters}, and . 0 - _ * ? x for a blank"

    @cached_property
    def _codes(self) -> dict[str, int]:
        codes = dict.fromkeys(BLANKS, self.blank_token)
        for value, digit in enumerate(DIGITS[: self.height], start=2):
            codes[digit] = codes[digit.lower()] = value
        return codes

    _cells_of = sudoku_cells

    def text_of_number(self, number: numbers.Real) -> str:
        """The text of a Sudoku whose digits a table read as one number, so that its leading zeros are gone."""
        if number != number:
            raise ValueError("An empty cell of a table (NaN) is no puzzle.")
        if number < 0 or number != int(number):
            raise ValueError(
                f"{number!r} is no puzzle: the digits of a Sudoku, read as one number, are a whole number."
            )
        if isinstance(number, (float, np.floating)) and number >= 2**53:
            raise ValueError("The puzzle was read as a floating-point number and is rounded: read its column as text.")
        text, own = str(int(number)), self.height
        fits = [size for size in (4, 6, 8, 9) if len(text) <= size * size and int(max(text)) <= size]
        if own in fits and min(fits) < own:
            raise ValueError(
                f"The number {text} may be a Sudoku of {min(fits)} or of {own} rows whose leading zeros are lost: "
                "give it as text."
            )
        return text.zfill(self.seq_len)

    def tokens_of_numbers(self, grid: np.ndarray, values: str | None) -> np.ndarray:
        values = values or self.values_of(grid)
        if values is None:
            raise ValueError(
                "These numbers may be digits (0 for a blank) or tokens (1 for a blank, digit d is d + 1): say which, "
                "with values='digits' or values='tokens'."
            )
        if values == "tokens":
            return super().tokens_of_numbers(grid, values)
        grid = np.where(grid != grid, 0, grid)  # NaN: an empty field of a table
        if len(bad := np.flatnonzero((grid < 0) | (grid > self.height) | (grid != np.floor(grid)))):
            raise ValueError(f"{grid[bad[0]]} at {self.cell(bad[0])} is no digit from 0 (a blank) to {self.height}.")
        return grid.astype(np.int64) + 1

    def values_of(self, grids: Any, tensor: bool = False) -> str | None:
        grids = np.asarray(grids)
        if tensor:
            whole, count = np.repeat(np.arange(1, self.height + 1), self.height), self.seq_len
            certain = grids.size % count or not (np.sort(grids.reshape(-1, count)) == whole).all(-1).any()
        else:
            certain = grids.size and grids.dtype.kind in "iu" and grids.min() > PAD and grids.max() == self.height + 1
        return "tokens" if certain else None

    def format(self, tokens: Any, puzzle: Any = None, ansi: bool = False) -> str:
        w, h, starts = self.box_width, self.box_height, range(0, self.width, self.box_width)
        boxes = [[f" {' '.join(line[c : c + w])} " for c in starts] for line in self._styled(tokens, puzzle, ansi)]
        lines = ["|".join(line).rstrip() for line in boxes]
        rule = "+".join("-" * (2 * w + 1) for _ in starts)
        return f"\n{rule}\n".join("\n".join(lines[r : r + h]) for r in range(0, self.height, h))

    # ---- rules

    @cached_property
    def units(self) -> np.ndarray:
        """(3n, n) cell numbers of every row, column and box, in this order."""
        n, h, w = self.height, self.box_height, self.box_width
        grid = np.arange(n * n).reshape(n, n)
        boxes = grid.reshape(n // h, h, n // w, w).transpose(0, 2, 1, 3).reshape(n, n)
        return np.concatenate([grid, grid.T, boxes])

    @cached_property
    def units_of(self) -> np.ndarray:
        """(S, 3): the row, column and box number of each cell, as indices into `units`."""
        places = np.argsort(self.units.reshape(3, -1), axis=1)  # of each cell among all rows, columns and boxes
        return np.ascontiguousarray((places // self.height + np.arange(3)[:, None] * self.height).T)

    def _unit_masks(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bit per digit: of each cell (N, S), seen in each unit (N, 3n), seen at least twice there (N, 3n)."""
        bits = np.where(tokens >= 2, np.uint64(1) << np.maximum(tokens, 2).astype(np.uint64), np.uint64(0))
        once = np.zeros((len(tokens), len(self.units)), np.uint64)
        twice = np.zeros_like(once)
        for k in range(self.height):
            bit = bits[:, self.units[:, k]]
            twice |= once & bit
            once |= bit
        return bits, once, twice

    def conflicts(self, tokens: Any, labels: Any = None) -> np.ndarray:
        tokens = np.asarray(tokens)
        if tokens.shape[-1:] != (self.seq_len,):
            raise ValueError(f"tokens must be (..., {self.seq_len}), got {tokens.shape}.")
        return in_chunks(self._conflicts, tokens.reshape(-1, self.seq_len)).reshape(tokens.shape)

    def _conflicts(self, tokens: np.ndarray) -> np.ndarray:
        bits, _, twice = self._unit_masks(tokens)
        row, column, box = (twice[:, self.units_of[:, kind]] for kind in range(3))
        return (bits & (row | column | box)) != 0

    def _twins(self, tokens: np.ndarray) -> str | None:
        """The first two cells of one unit that hold the same digit, in words."""
        for u, cells in enumerate(self.units):
            values = tokens[cells]
            for digit in np.unique(values[values >= 2]):
                if len(same := cells[values == digit]) > 1:
                    unit = ("row", "column", "box")[u // self.height]
                    both = " and ".join(map(self.cell, same[:2]))
                    return f"{both} both hold {self.alphabet[digit]} in the same {unit}."
        return None

    def _check(self, tokens: np.ndarray) -> None:
        super()._check(tokens)
        if twins := self._twins(tokens):
            raise ValueError(f"Contradicting clues: {twins}")

    def ill_formed(self, puzzles: np.ndarray) -> np.ndarray:
        return super().ill_formed(puzzles) | self.conflicts(puzzles).any(-1)

    def _verdicts(self, puzzles: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        consistent, complete = self._kept(puzzles, answers).all(-1), (answers >= 2).all(-1)
        _, once, _ = self._unit_masks(answers)
        every_digit = np.uint64(((1 << self.height) - 1) << 2)
        return complete, consistent, complete & consistent & (once == every_digit).all(-1)

    def _explain(self, puzzle: np.ndarray, answer: np.ndarray, complete: bool, consistent: bool) -> str:
        if not consistent:
            return super()._explain(puzzle, answer, complete, consistent)
        return self._twins(answer) or (
            f"{self.cell((answer < 2).argmax())} is empty ({int((answer < 2).sum())} empty cells in all)."
        )

    def solutions(self, puzzle: np.ndarray, effort: int = 100_000) -> int | str | None:
        can = [1 << int(t) - 2 if t >= 2 else (1 << self.height) - 1 for t in puzzle]
        return count_solutions(can, *self._lists, effort=effort // self.seq_len)

    @cached_property
    def _lists(self) -> tuple[list[list[int]], list[list[int]]]:
        return [np.flatnonzero(row).tolist() for row in self.peers], self.units.tolist()

    # ---- geometry

    def neighbours_of(self, cells: np.ndarray) -> dict[str, np.ndarray]:
        """{"units": (Q, S)}: same row, column or box; the query itself belongs to it (21 cells at 9x9)."""
        return {"units": (self.units_of[cells, None] == self.units_of[None]).any(-1)}

    @cached_property
    def peers(self) -> np.ndarray:
        return self.neighbours["units"] & ~np.eye(self.seq_len, dtype=bool)

    def random_symmetries(self, rng: np.random.Generator, n: int) -> Symmetry:
        """Digit relabelling; bands, stacks, and rows and columns within them, permuted; transposed where boxes are
        square. Uniform over the group, n draws at once."""
        size, h, w = self.height, self.box_height, self.box_width
        row = random_lines(rng, n, size, h)
        column = random_lines(rng, n, size, w)
        cells = row[:, :, None] * size + column[:, None, :]
        if h == w:  # elsewhere a transposed box no longer is a box
            cells = np.where((rng.random(n) < 0.5)[:, None, None], cells.transpose(0, 2, 1), cells)
        tokens = np.empty((n, self.vocab_size), np.uint8)
        tokens[:, :2] = PAD, self.blank_token
        tokens[:, 2:] = np.argsort(rng.random((n, size)), axis=-1) + 2
        return Symmetry(cells.reshape(n, -1), tokens)


def random_lines(rng: np.random.Generator, n: int, size: int, per_group: int) -> np.ndarray:
    """(n, size) orders of rows (or columns): groups of `per_group` permuted, and the lines within each."""
    groups = np.argsort(rng.random((n, size // per_group)), axis=-1)
    within = np.argsort(rng.random((n, size // per_group, per_group)), axis=-1)
    return (groups[:, :, None] * per_group + within).reshape(n, size)


class MazeTask(GridTask):
    """A maze of any rectangle: `#` wall 1, space 2, `S` 3, `G` 4, `o` path 5. The answer marks a shortest path.

    Moves go down, left, right, up. The benchmark's label is deterministic: from S, step to the first of Down, Left,
    Right, Up that lowers the distance to G (`label`); any other shortest path is valid too.
    """

    name = "maze"
    has_rules = True
    blank_token = 2
    WALL, SPACE, START, GOAL, PATH = 1, 2, 3, 4, 5
    alphabet = UNKNOWN + "# SGo"
    _codes = {c: i for i, c in enumerate("# SGo", start=1)}
    _letters_help = "# (wall), space or . (free), S, G and o (path)"

    def __init__(self, height: int = 30, width: int | None = None):
        super().__init__(height, width, 6)

    _cells_of = maze_cells

    def format(self, tokens: Any, puzzle: Any = None, ansi: bool = False) -> str:
        lines = self._styled(tokens, puzzle, ansi)
        rule = "─" * self.width
        return "\n".join([f"┌{rule}┐", *(f"│{''.join(line)}│" for line in lines), f"└{rule}┘"])

    @cached_property
    def token_maps(self) -> np.ndarray:
        swapped = np.arange(self.vocab_size, dtype=np.uint8)
        swapped[[self.START, self.GOAL]] = self.GOAL, self.START  # a path is as short from G to S
        return np.stack([np.arange(self.vocab_size, dtype=np.uint8), swapped])

    # ---- rules

    def _check(self, tokens: np.ndarray) -> None:
        super()._check(tokens)
        for token in (self.START, self.GOAL):
            found = np.flatnonzero(tokens == token)
            if len(found) != 1:
                letter = self.alphabet[token]
                where = ": " + " and ".join(self.cell(i) for i in found[:2]) if len(found) else ""
                raise ValueError(f"A maze needs exactly one {letter}, found {len(found)}{where}.")
        if len(marks := np.flatnonzero(tokens == self.PATH)):
            raise ValueError(f"{self.cell(marks[0])} holds a path mark o: that belongs to an answer, not to a puzzle.")

    def ill_formed(self, puzzles: np.ndarray) -> np.ndarray:
        start, goal = ((puzzles == token).sum(-1) for token in (self.START, self.GOAL))
        return super().ill_formed(puzzles) | (start != 1) | (goal != 1) | (puzzles == self.PATH).any(-1)

    def check_solvable(self, puzzle: Any) -> None:
        super().check_solvable(puzzle)
        tokens = self.as_tokens(puzzle)
        if self.distances(tokens[None])[0, (tokens == self.START).argmax()] < 0:
            raise ValueError(self._no_path(tokens))

    def _no_path(self, puzzle: np.ndarray) -> str:
        start, goal = (self.cell((puzzle == token).argmax()) for token in (self.START, self.GOAL))
        return f"No path leads from S ({start}) to G ({goal})."

    def solutions(self, puzzle: np.ndarray, effort: int = 0) -> int | str | None:
        """Shortest paths; these are counted without a search."""
        start, goal = (self._grid((puzzle == token)[None]) for token in (self.START, self.GOAL))
        there, back = (flood(self._grid(puzzle[None] > self.WALL), end)[0] for end in (start, goal))
        moves = int(back[(puzzle == self.START).argmax()])
        on_some = int(((there >= 0) & (there + back == moves)).sum())
        return 0 if moves < 0 else 1 if on_some == moves + 1 else "several"

    def _kept(self, puzzles: np.ndarray, answers: np.ndarray) -> np.ndarray:
        return (puzzles == answers) | ((puzzles == self.SPACE) & (answers == self.PATH))

    def _verdicts(self, puzzles: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        marks = answers == self.PATH
        consistent = self._kept(puzzles, answers).all(-1)
        start, goal = puzzles == self.START, puzzles == self.GOAL
        at_start = np.argmax(start, axis=-1)[:, None]
        walked = np.take_along_axis(flood(self._grid(marks | start | goal), self._grid(goal)), at_start, 1)[:, 0]
        shortest = np.take_along_axis(self.distances(puzzles), at_start, 1)[:, 0]
        complete = (walked >= 0) & (answers != PAD).all(-1)
        # As many marks as a shortest path has inner cells, and joined: then the marks are exactly one such path.
        valid = complete & consistent & (walked == shortest) & (marks.sum(-1) == shortest - 1)
        return complete, consistent, valid

    def _explain(self, puzzle: np.ndarray, answer: np.ndarray, complete: bool, consistent: bool) -> str:
        marks = answer == self.PATH
        distance = self.distances(puzzle[None])[0]
        start, goal = (puzzle == self.START).argmax(), (puzzle == self.GOAL).argmax()
        if distance[start] < 0:
            return self._no_path(puzzle)
        if not consistent:
            return super()._explain(puzzle, answer, complete, consistent)
        ends = np.isin(puzzle, (self.START, self.GOAL))
        walked = flood(self._grid(marks | ends), self._grid(puzzle == self.START))[0]
        if walked[goal] < 0:
            reached = np.flatnonzero(walked >= 0)
            end = reached[np.argmax(walked[reached])]
            return f"The marks do not join S to G: from S they lead as far as {self.cell(end)}."
        if walked[goal] > distance[start]:
            return f"The marked path takes {walked[goal]} moves, a shortest one takes {distance[start]}."
        stray = marks & ((walked < 0) | (walked + distance != distance[start]))
        if not stray.any():  # several shortest paths are marked at once: name a cell where they part
            level = np.where(marks, walked, -1)
            stray = marks & (np.bincount(level[marks], minlength=level.max() + 1)[level] > 1)
        return f"{self.cell(stray.argmax())} is marked but is not on the path: mark one shortest path only."

    def _grid(self, mask: np.ndarray) -> np.ndarray:
        return mask.reshape(-1, self.height, self.width)

    def distances(self, puzzles: np.ndarray) -> np.ndarray:
        """Moves from every cell to G: puzzles (N, S) -> int32 (N, S), -1 where there is no way."""
        return in_chunks(lambda p: flood(self._grid(p > self.WALL), self._grid(p == self.GOAL)), np.asarray(puzzles))

    def label(self, puzzles: Any) -> np.ndarray:
        """The benchmark's answer: the shortest path by the Down, Left, Right, Up rule, marked o.

        Args:
            puzzles: text, tokens (S,) or (N, S).

        Returns:
            uint8, (S,) or (N, S).

        Raises:
            ValueError: a puzzle has no path from S to G, or not exactly one of each; names the row of the batch.
        """
        single = isinstance(puzzles, str) or np.ndim(puzzles) == 1
        grids = self.as_tokens(puzzles)[None] if single else np.asarray(puzzles, np.uint8)
        n, width, rim = len(grids), self.width + 2, ((0, 0), (1, 1), (1, 1))
        if len(bad := np.flatnonzero(((grids == self.START).sum(-1) != 1) | ((grids == self.GOAL).sum(-1) != 1))):
            raise ValueError(f"Maze {bad[0] + 1} of {n} does not have exactly one S and one G.")
        # A rim of -1 spares every bounds check; flat cell numbers below are those of the rimmed grid.
        distance = np.pad(self._grid(self.distances(grids)), rim, constant_values=-1).reshape(n, -1)
        out = np.pad(self._grid(grids), rim).reshape(n, -1)
        here = np.argmax(out == self.START, axis=-1)
        left = distance[np.arange(n), here]
        if len(bad := np.flatnonzero(left < 0)):
            raise ValueError(f"Maze {bad[0] + 1} of {n} has no path from S to G.")
        moves = np.array([width, -1, 1, -width])  # down, left, right, up
        while len(walking := np.flatnonzero(left > 1)):
            near = here[walking, None] + moves
            step = np.argmax(distance[walking[:, None], near] == left[walking, None] - 1, axis=-1)
            here[walking] = near[np.arange(len(walking)), step]
            left[walking] -= 1
            out[walking, here[walking]] = self.PATH
        out = out.reshape(n, self.height + 2, width)[:, 1:-1, 1:-1].reshape(n, -1)
        return out[0] if single else out


def default_box(size: int, box_height: int | None = None, box_width: int | None = None) -> tuple[int, int]:
    """Box shape of a size x size Sudoku: what is given, completed; else the squarest, wider than high (6 -> 2 x 3)."""
    if box_height is None and box_width is None:
        box_height = next(h for h in range(math.isqrt(size), 0, -1) if size % h == 0)
        if box_height == 1:
            raise ValueError(
                f"A {size}x{size} Sudoku has no boxes ({size} is prime); choose another size, or pass box_height=1 for"
                " rows and columns only."
            )
    height = size // max(box_width, 1) if box_height is None else box_height
    width = size // max(box_height, 1) if box_width is None else box_width
    if min(height, width) < 1 or height * width != size:
        raise ValueError(
            f"Boxes of {height} x {width} do not tile a {size}x{size} Sudoku: box_height * box_width must be {size}."
        )
    return height, width


def make_task(
    name: str,
    height: int | None = None,
    width: int | None = None,
    box_height: int | None = None,
    box_width: int | None = None,
    vocab_size: int | None = None,
) -> GridTask:
    """The task object for a name and a grid shape; shapes default to the published ones (9x9 and 30x30)."""
    if name not in ("sudoku", "maze", "grid"):
        raise ValueError(f"Unknown task {name!r}. Known: sudoku, maze, grid.")
    if name != "sudoku" and (box_height or box_width):
        raise ValueError(f"task={name!r} has no boxes: leave box_height and box_width out.")
    if name == "grid":
        if height is None or vocab_size is None:
            raise ValueError(
                f"task='grid' has no default size: got {height=}, {vocab_size=}. Set both (in a config: grid_height)."
            )
        return GridTask(height, width, vocab_size)
    height = {"sudoku": 9, "maze": 30}[name] if height is None else height
    task = SudokuTask(height, width, box_height, box_width) if name == "sudoku" else MazeTask(height, width)
    if vocab_size not in (None, task.vocab_size):
        raise ValueError(
            f"A {task.height}x{task.width} {name} has {task.vocab_size} tokens, got {vocab_size=}. Leave it out, or "
            "use task='grid'."
        )
    return task


def task_from_config(config: Any) -> GridTask:
    """The task object of an AirConfig."""
    return make_task(*(getattr(config, name) for name in ("task", *SIZES)))


class AirProcessor(ProcessorMixin):
    """Puzzle text <-> token ids, and the verdict of the rules; saved beside a model and loaded by AutoProcessor.

    Attributes: `task` (name), `grid_task` (the GridTask with geometry, rules and symmetries).
    """

    attributes: list[str] = []
    # transformers.Trainer asks every processor for the special tokens of its tokenizer.
    tokenizer = BatchFeature(dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id")))
    model_input_names = ["input_ids"]
    _auto_class = "AutoProcessor"  # save_pretrained then copies this file and writes auto_map

    def __init__(self, task="sudoku", grid_height=None, grid_width=None, box_height=None, box_width=None,
                 vocab_size=None, **kwargs):  # fmt: skip
        super().__init__(**kwargs)
        self.grid_task = make_task(task, grid_height, grid_width, box_height, box_width, vocab_size)
        self.task = task
        for name, size in zip(SIZES, self.grid_task.sizes):
            setattr(self, name, size)

    @classmethod
    def from_config(cls, config: Any) -> "AirProcessor":
        """The processor that fits an AirConfig."""
        return cls(*(getattr(config, name) for name in ("task", *SIZES)))

    def __call__(self, text: Any = None, **kwargs) -> BatchFeature:
        """Encode one puzzle or a list of puzzles.

        Args:
            text: a puzzle as text, rows, S digits or tokens, or a list (or (N, S) array) of them.
            values: "digits" or "tokens": what numbers are. Needed where they may be either; a tensor holds tokens.
            return_tensors: "pt" (default), "np" or None (lists).
            check: (default True) refuse ill-formed puzzles (contradicting clues, a maze without S or G). Texts of
                mazes with path marks are answers, not puzzles: only their letters are checked.

        Returns:
            BatchFeature with input_ids (N, S), int64.

        Raises:
            ValueError: names what is wrong and where; in a list also which puzzle (counted from 1).
        """
        # By keyword only: transformers keeps defaults out of a processor's explicit arguments.
        return_tensors, check = kwargs.pop("return_tensors", "pt"), kwargs.pop("check", True)
        values = kwargs.pop("values", None)
        if not hasattr(text, "__len__") or len(text) == 0 and not isinstance(text, str):
            raise ValueError("AirProcessor takes one puzzle or more, as text: processor('53..7....…').")
        puzzles = [text] if is_one_grid(self.grid_task, text) else text
        tokens = encode_puzzles(self.grid_task, puzzles, False, values=values)
        if check:
            answers = (tokens == MazeTask.PATH).any(-1) & (self.task == "maze")
            for number in np.flatnonzero(self.grid_task.ill_formed(tokens) & ~answers):
                with numbering(int(number) + 1, len(tokens) > 1):
                    self.grid_task.check_puzzle(tokens[number])
        return BatchFeature({"input_ids": tokens.astype(np.int64)}, tensor_type=return_tensors)

    def decode(self, ids: Any, **kwargs) -> str | list[str]:
        """Token ids (S,) to text, or (N, S) to a list of texts."""
        ids = np.asarray(ids.detach().cpu() if hasattr(ids, "detach") else ids)
        return self.grid_task.decode(ids) if ids.ndim == 1 else [self.grid_task.decode(row) for row in ids]

    batch_decode = decode

    def format(self, grid: Any, puzzle: Any = None, ansi: bool = False, values: str | None = None) -> str:
        """A puzzle or answer (text, digits or tokens) as readable lines."""
        task = self.grid_task
        puzzle = None if puzzle is None else task.as_tokens(puzzle, values)
        return task.format(task.as_tokens(grid, values), puzzle, ansi)

    def check_puzzle(self, puzzle: Any, values: str | None = None) -> None:
        """Raise ValueError naming the cell unless `puzzle` (text, digits or tokens) is well-formed."""
        self.grid_task.check_puzzle(puzzle, values)

    def check(self, puzzle: Any, answer: Any, values: str | None = None) -> Verdict:
        """Is `answer` complete, consistent with `puzzle`, and valid?

        Both as text or numbers; values: "digits" or "tokens", what numbers are (see `__call__`).
        """
        return self.grid_task.verdict(puzzle, answer, values)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs) -> "AirProcessor":
        """Load from a folder or the Hub; a local folder without processor_config.json is read from its config.json."""
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir() and not (folder / "processor_config.json").exists():
            # transformers would quietly build the default processor, a 9x9 Sudoku, whatever the model is.
            if not (folder / "config.json").exists():
                raise FileNotFoundError(
                    f"{folder} holds neither processor_config.json nor config.json: give a folder that"
                    " save_pretrained wrote."
                )
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return cls(config.get("task", "sudoku"), *map(config.get, SIZES))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
