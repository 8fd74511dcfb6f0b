"""Puzzles as arrays, from a file (see `files`), a folder or the Hub; none of it needs the `datasets` package.

puzzles = load_puzzles("train_1000.csv.gz", "train")         # one file is one split
puzzles = load_puzzles("folder of build_dataset.py", "test")
puzzles = load_puzzles("sapientinc/sudoku-extreme", "test", limit=1000)
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from air_model.datasets_builders.files import ENDINGS, read_rows, whole_parquet
from air_model.processing_air import PAD, GridTask, make_task, task_from_config
from air_model.reading_air import TOKEN_KEYS, as_array, as_text, puzzle_of
from air_model.records import read_json

UNRATED = -1  # a row without a rating; the metric knows the number as well
ARRAYS = "all__{}.npy"  # a column of a split, as the public HRM, TRM and AIR code writes it
META = "air_dataset.json"  # written beside the parquet files by scripts/build_dataset.py
OF_TASK = ("name", "height", "width", "box_height", "box_width", "vocab_size")  # what it says of the task


class BadRows(ValueError):
    """Rows of files that cannot be used; `rows` lists (row, reason), counted from 1 without a header."""

    def __init__(self, files: dict[str, list[tuple[int, str]]], advice: str):
        self.rows = [row for rows in files.values() for row in rows]
        lines = [f"{file}: {line}" for file, rows in files.items() for line in fault_lines(rows)]
        super().__init__("\n".join([f"{len(self.rows)} bad row{'s' * (len(self.rows) > 1)}{advice}", *lines]))


def fault_lines(rows: list[tuple[int, str]]) -> list[str]:
    """'rows 2-9, 12: reason', a line for each reason."""
    found: dict[str, list[list[int]]] = {}  # the first and last row of each run
    for row, why in rows:
        runs = found.setdefault(why, [])
        if runs and runs[-1][-1] == row - 1:
            runs[-1] = [runs[-1][0], row]
        else:
            runs.append([row])
    spans = {why: ", ".join("-".join(map(str, run)) for run in runs) for why, runs in found.items()}
    return [f"row{'' if span.isdecimal() else 's'} {span}: {why}" for why, span in spans.items()]


@dataclass
class PuzzleSet:
    """N puzzles of one split.

    inputs, labels: uint8 (N, S). rating: int32 (N,) or None. puzzle_ids: int32 (N,), the row of the puzzle embedding.
    groups: int32 (N,), rows with one number are symmetric copies of one puzzle. fingerprint: hash of the content.
    """

    inputs: np.ndarray
    labels: np.ndarray
    task: GridTask
    rating: np.ndarray | None = None
    puzzle_ids: np.ndarray = field(default=None)  # type: ignore[assignment]
    groups: np.ndarray = field(default=None)  # type: ignore[assignment]
    source: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        n = len(self.inputs)
        self.puzzle_ids = np.zeros(n, np.int32) if self.puzzle_ids is None else self.puzzle_ids
        self.groups = np.arange(n, dtype=np.int32) if self.groups is None else self.groups
        if not self.fingerprint:
            digest = hashlib.sha256(repr(self.task._key()).encode())
            for part in (self.inputs, self.labels):
                digest.update(np.ascontiguousarray(part).data)
            self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.inputs)

    def ids_for(self, model: Any) -> np.ndarray | None:
        """puzzle_ids, or None where the model has no table of them."""
        return self.puzzle_ids if model.config.num_puzzle_identifiers > 1 else None

    def select(self, rows: np.ndarray | slice) -> "PuzzleSet":
        """The PuzzleSet of some rows."""
        names = ("inputs", "labels", "rating", "puzzle_ids", "groups")
        parts = {name: part[rows] for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **parts, fingerprint="")


def load_puzzles(
    data: str | Path,
    split: str = "train",
    *,
    task: str | GridTask | None = None,
    limit: int | None = None,
    config: str | None = None,
    revision: str | None = None,
    values: str | None = None,
) -> PuzzleSet:
    """Load one split.

    Args:
        data: a table with puzzles and answers (question,answer or puzzle,solution or quizzes,solutions; CSV, TSV,
            JSON, JSON lines, parquet; `.gz` and `.zip` allowed): the whole file, whatever `split` says; a folder that
            scripts/build_dataset.py wrote; a folder with one such file per split, named by it (train*.csv, …); a
            folder of arrays that the public HRM, TRM or AIR code built (SPLIT/all__inputs.npy, …); or a data set on
            the Hub ("user/name": such files, or what build_dataset.py wrote). "NAME:CONFIG" is `config` as well.
        split: "train", "test", "dev", ...
        task: name or GridTask; by default read from the folder or guessed from the letters. A rectangular maze in
            one line and boxes other than the squarest need a GridTask.
        limit: only the first rows.
        config: which table of a built folder or a Hub data set; by default its default one, or its only one.
        revision: of a Hub data set.
        values: "digits" or "tokens": what numbers are, where puzzles are lists of them (not of text).

    Raises:
        FileNotFoundError: no such file, folder, split or Hub data set (or no network).
        BadRows: a ValueError that lists every unusable row.
        ValueError: no such configuration, or several and none is named.
    """
    if config is None and not Path(data).exists() and (named := re.fullmatch(r"(.+):([\w.-]+)", str(data))):
        data, config = named.groups()
    path, name = Path(data), Path(data).name  # of the Hub's folder it would be a commit
    if not path.exists():
        path = hub_folder(str(data), split, revision)
    meta = read_json(path / META) if (path / META).exists() else None
    if (path / split / ARRAYS.format("inputs")).is_file():
        return _from_arrays(path / split, name, task, limit)
    if path.is_file() or (meta is None and not any(path.rglob("*.parquet"))):
        if config is not None:
            raise ValueError(f"{data} has no configurations, so none is called {config!r}: leave that out.")
        files = [path if path.is_file() else find_csv(tables_in(path), split, path)]
    else:
        config = config or (meta["default_config"] if meta else None)
        files = _parquet_files(path, split, config)
    if meta is None and not _holds_tokens(files[0]):
        return _load_rows(files, task, limit, values)
    fingerprint = ""
    if meta is not None:
        built = make_task(*map(meta["task"].get, OF_TASK))
        if task not in (None, built, built.name):
            raise ValueError(f"{path} holds {built}, not {task}.")
        task, name = built, f"{name}/{config}"
        fingerprint = meta["configs"][config]["splits"][split]["fingerprint"] if limit is None else ""
    return _from_tokens(files, name, task, limit, fingerprint)


def load_for_models(
    models: list[Any], data: str, split: str, limit: int | None = None, values: str | None = None
) -> PuzzleSet:
    """Load one split for AirModels; its puzzles are of their size, or of one that they take as well.

    Raises:
        ValueError: a model was made for other puzzles, or a puzzle is ill-formed (row and cell are named).
    """
    from air_model.pipeline_air import takes_size

    task = task_from_config(models[0].config)
    with contextlib.suppress(ValueError):  # not a square grid, or a damaged row: the full reading says so
        found = load_puzzles(data, split, limit=1, values=values).task
        # Where the number of cells is the model's, its sides count: the guess may have the wrong ones. A generic grid
        # is never guessed, its tokens may be those of a Sudoku.
        if task.name != "grid" and (found.name, found.seq_len) != (task.name, task.seq_len):
            task = found
    for model in models:
        own = task_from_config(model.config)
        if own != task and not takes_size(model.config, task):
            raise ValueError(
                f"{data} holds {task}, and {model.name_or_path or 'the model'} was made for {own}: choose the data or "
                "the model that fits."
            )
    puzzles = load_puzzles(data, split, task=task, limit=limit, values=values)
    for row in np.flatnonzero(task.ill_formed(puzzles.inputs)).tolist():
        try:
            task.check_puzzle(puzzles.inputs[row])
        except ValueError as error:
            advice = "(build_dataset.py --skip-bad leaves such out.)"
            raise ValueError(f"{data}, puzzle {row + 1}: {error} {advice}") from None
    return puzzles


def tables_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Files of puzzles in a folder; what build_dataset.py says of its own is none."""
    return sorted(p for p in folder.glob(pattern) if p.name.endswith(ENDINGS) and p.name != META)


def find_csv(files: list[Path], split: str, folder: Path) -> Path:
    """The one table of a split among a folder's; FileNotFoundError naming what is there."""
    found = [p for p in files if p.name.lower().startswith(split)]
    have = ", ".join(p.name for p in found or files) or "no table at all"
    if not found:
        raise FileNotFoundError(
            f"{folder} has no split {split!r} (a file named {split}*.csv, .csv.gz, .jsonl, ...); it has: {have}."
        )
    if len(found) > 1:
        raise ValueError(f"{folder} has several files for the split {split!r}: {have}. Name one of them.")
    return found[0]


def hub_folder(repo_id: str, split: str | None = None, revision: str | None = None) -> Path:
    """Download (or find in the cache) what is needed of a Hub data set; returns the local snapshot folder."""
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/")) or " " in repo_id:
        raise FileNotFoundError(
            f"There is no file or folder {repo_id!r}, and it is no Hub data set id (user/name) either."
        )
    from huggingface_hub import snapshot_download

    names = "*" if split is None else f"*{split}*"
    patterns = [*(f"{names}{ending}" for ending in ENDINGS), "README.md", META]
    try:
        revision = full_revision(repo_id, revision)
        folder = Path(snapshot_download(repo_id, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f"The data set {repo_id!r}{f' at {revision}' if revision else ''} could not be fetched from the Hub"
            f" ({type(error).__name__}; is there a network, and does the data set exist?). Without the Hub, make a"
            f" stand-in with `python scripts/build_dataset.py {_stand_in(repo_id)}`"
            + ("; a recipe's first lines say what it was made for." if repo_id.startswith("data/") else ".")
        ) from error
    if not tables_in(folder, "**/*"):
        what = "no CSV, JSON or parquet file" + ("" if split is None else f" of the split {split!r}")
        raise FileNotFoundError(f"The Hub data set {repo_id!r} has {what}.")
    return folder


def _stand_in(name: str) -> str:
    """Arguments of scripts/build_dataset.py for data of that name."""
    folder, size = name if name.startswith("data/") else "DIR", re.search(r"\d+x\d+", name)
    grid = f" --grid {size[0]}" if size and folder == name else ""
    return f"{'maze-hard' if 'maze' in name else 'sudoku-extreme'} --source generate{grid} --output-dir {folder}"


def full_revision(repo_id: str, revision: str | None) -> str | None:
    """A short commit hash completed from the repository's history (or from the cache, without a network).

    The Hub resolves branches, tags and full hashes only; anything else is returned as it is.
    """
    if revision is None or not re.fullmatch(r"[0-9a-f]{6,39}", revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / f"datasets--{repo_id.replace('/', '--')}" / "snapshots"
    cached = [p.name for p in snapshots.glob(f"{revision}*")]
    if len(cached) == 1:
        return cached[0]
    commits = (commit.commit_id for commit in HfApi().list_repo_commits(repo_id, repo_type="dataset"))
    return next((commit for commit in commits if commit.startswith(revision)), revision)


# ---- CSV


def guess_task(question: Any, where: str) -> GridTask:
    """Task of a puzzle: a maze has walls or spaces, everything else is a Sudoku. Square grids, and drawn mazes."""
    question, _ = puzzle_of(question)
    if (text := as_text(question)) is None:
        text = "." * (1 if np.isscalar(question) else as_array(question).size)
    cells = text.strip("\r\n")
    widths = {len(line) for line in cells.splitlines()}
    if "#" in cells and "\n" in cells and len(widths) == 1:
        return make_task("maze", len(cells.splitlines()), *widths)
    if "#" not in cells and math.isqrt(len(cells)) ** 2 != len(cells):
        cells = re.sub(r"\s", "", cells)  # drawn
    elif "\n" in cells:
        cells = "".join(cells.splitlines())
    side = math.isqrt(len(cells))
    if side < 2 or side * side != len(cells):
        raise ValueError(
            f"{where}: the first puzzle has {len(cells)} cells, which is no square grid; give its shape (for example"
            " build_dataset.py --grid 13x20; training: task=maze grid_height=13 grid_width=20)."
        )
    return make_task("maze" if "#" in cells or " " in cells else "sudoku", side, side)


def encode_many(puzzles: list[Any], task: GridTask, values: str | None = None) -> tuple[np.ndarray, dict[int, str]]:
    """Texts (or numbers, see `GridTask.as_tokens`) to tokens (N, S) uint8, and the faults {index: reason}.

    Plain texts are read all at once; bad rows hold PAD.
    """
    size = task.seq_len
    out = np.zeros((len(puzzles), size), np.uint8)
    faults: dict[int, str] = {}
    table = np.full(256, 255, np.uint8)
    for letter, token in task._codes.items():
        table[ord(letter)] = token
    plain = [i for i, text in enumerate(puzzles) if isinstance(text, str) and len(text) == size and text.isascii()]
    good = np.zeros(len(puzzles), bool)
    if plain:
        tokens = table[np.frombuffer("".join([puzzles[i] for i in plain]).encode("ascii"), np.uint8)].reshape(-1, size)
        good[plain] = (tokens != 255).all(-1)
        out[good] = tokens[good[plain]]
    for i in np.flatnonzero(~good).tolist():  # drawings, line breaks and numbers are tolerated; the rest is named
        try:
            out[i] = task.as_tokens(*puzzle_of(puzzles[i], values))
        except ValueError as error:
            faults[i] = str(error)
    return out, faults


@dataclass
class Rows:
    """Base puzzles on their way: tokens inputs, labels (N, S); rating int32 (N,); source: where each comes from."""

    inputs: np.ndarray
    labels: np.ndarray
    rating: np.ndarray
    source: Sequence[str]

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: np.ndarray | slice) -> "Rows":
        return Rows(self.inputs[rows], self.labels[rows], self.rating[rows], np.asarray(self.source, object)[rows])


@dataclass
class Chunk(Rows):
    """Rows of a table: the number of the first, and what is wrong with a row, by its index."""

    first_row: int
    faults: dict[int, str]

    def contradictions(self, task: GridTask) -> dict[int, str]:
        """The rows whose answer departs from what the puzzle gives."""
        bad = np.flatnonzero(~task._kept(self.inputs, self.labels).all(-1)).tolist()
        return {i: contradiction(task, self.inputs[i], self.labels[i]) for i in bad}

    def fault_rows(self) -> list[tuple[int, str]]:
        """(row, reason) of the faults."""
        return [(self.first_row + i, reason) for i, reason in sorted(self.faults.items())]


def read_chunks(
    path: Path, task: GridTask, values: str | None, bad: list[tuple[int, str]], limit: int | None = None
) -> Iterator[Chunk]:
    """A table with puzzles and answers in chunks of tokens; where the file is damaged, that goes to `bad`."""
    for questions, answers, ratings, sources, first_row in read_rows(path, bad, limit):
        inputs, faults = encode_many(questions, task, values)
        labels, more = encode_many(answers, task, values)
        faults = {i: f"answer: {reason}" for i, reason in more.items()} | faults
        yield Chunk(inputs, labels, parse_ratings(ratings, faults), sources, first_row, faults)


def parse_ratings(texts: list[str], faults: dict[int, str]) -> np.ndarray:
    """Ratings int32 (N,), UNRATED where a field is empty."""
    out = np.full(len(texts), UNRATED, np.int32)
    for i, text in enumerate(texts):
        try:
            out[i] = int(float(text)) if text else UNRATED
        except (ValueError, OverflowError):
            faults.setdefault(i, f"the rating {text!r} is not a number below 2**31")
    return out


def contradiction(task: GridTask, puzzle: np.ndarray, answer: np.ndarray) -> str | None:
    """Where an answer departs from what its puzzle gives, in words; None where it does not."""
    wrong = np.flatnonzero(~task._kept(puzzle, answer))
    if not len(wrong):
        return None
    given, found = (task.alphabet[tokens[wrong[0]]] for tokens in (puzzle, answer))
    return f"the answer contradicts the puzzle at {task.cell(wrong[0])}: {given!r} was given, {found!r} answered"


def _load_rows(paths: list[Path], task: str | GridTask | None, limit: int | None, values: str | None) -> PuzzleSet:
    task = task if isinstance(task, GridTask) else task_of(paths[0], task)
    bad: list[tuple[int, str]] = []
    parts: list[Chunk] = []
    for path in paths:
        left = None if limit is None else limit - sum(map(len, parts))
        for part in read_chunks(path, task, values, bad, left):
            part.faults = part.contradictions(task) | part.faults
            bad += part.fault_rows()
            parts.append(part)
    if bad:
        advice = f" in {paths[0]}. Repair or drop them (build_dataset.py --skip-bad), or set grid_height, grid_width."
        raise BadRows({str(paths[0]): bad}, advice)
    if not parts:
        raise ValueError(f"{paths[0]} holds no puzzles below its header.")
    inputs, labels, rating = (np.concatenate([getattr(p, n) for p in parts]) for n in ("inputs", "labels", "rating"))
    return PuzzleSet(inputs, labels, task, rating if (rating != UNRATED).any() else None, source=paths[0].name)


def task_of(path: Path, name: str | None = None) -> GridTask:
    """The task of a name (or a guess), shaped after the first puzzle of a table; the shape is guessed as a square."""
    bad: list[tuple[int, str]] = []
    for questions, *_ in read_rows(path, bad, 1):
        guess = guess_task(questions[0], str(path))
        return guess if name in (None, guess.name) else make_task(name, guess.height, guess.width)
    raise ValueError(f"{path} holds no puzzles below its header{''.join(f' ({why})' for _, why in bad)}.")


# ---- tokens in parquet files


def _parquet_files(path: Path, split: str, config: str | None) -> list[Path]:
    """The shards of a split, as build_dataset.py and DatasetDict.push_to_hub write them: CONFIG/split-*.parquet."""
    every = sorted(path.rglob("*.parquet"))
    folders = sorted({str(file.parent.relative_to(path)) for file in every})
    of_config = [f for f in every if config is None or f.parent.relative_to(path).parts[:1] == (config,)]
    if not of_config:
        raise ValueError(f"{path} has no configuration {config!r}; it has: {', '.join(folders)}.")
    files = [file for file in of_config if file.name.startswith(f"{split}-")]
    if not files:
        have = ", ".join(sorted({file.name.split("-")[0] for file in of_config}))
        where = "" if config is None else f" in its configuration {config!r}"
        raise FileNotFoundError(f"{path} has no split {split!r}{where}; it has: {have}.")
    if config is None and len({file.parent for file in files}) > 1:
        have = ", ".join(folders)
        raise ValueError(f"{path} has several configurations: {have}. Name one of them, as in NAME:{folders[0]}.")
    return files


def _holds_tokens(file: Path) -> bool:
    """Whether a parquet file has token columns inputs and labels; else it may have puzzles and answers as text."""
    import pyarrow.parquet as pq

    with open(file, "rb") as opened:
        if opened.read(4) != b"PAR1":
            return False
    with whole_parquet(str(file)):
        names = set(pq.read_schema(file).names)
    return "labels" in names and not names.isdisjoint(TOKEN_KEYS)


def _from_arrays(folder: Path, name: str, task: str | GridTask | None, limit: int | None) -> PuzzleSet:
    """A split of one array a column; where each puzzle, and each group of copies, begins stands in two of them."""
    wanted = ("inputs", "labels", "puzzle_identifiers", "puzzle_indices", "group_indices")
    arrays = []
    for path in (folder / ARRAYS.format(column) for column in wanted):
        try:
            arrays.append(np.load(path))
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}). Build the data set again.") from None
    inputs, labels, ids, puzzles, groups = arrays
    fits = inputs.ndim == 2 and inputs.shape == labels.shape and all(one.dtype.kind in "iu" for one in arrays)
    for starts, end in ((puzzles, len(inputs)), (groups, len(ids))):  # where each begins, and the end
        fits = fits and starts.ndim == 1 and len(starts) > 1 and starts[0] == 0 and starts[-1] == end
        fits = fits and bool((np.diff(starts) >= 0).all())
    if not (fits and ids.shape == (len(puzzles) - 1,)):
        found = ", ".join(f"{column} {one.shape} {one.dtype}" for column, one in zip(wanted, arrays))
        raise ValueError(f"{folder}: the arrays do not fit one another ({found}). Build the data set again.")
    columns = {
        "puzzle_id": np.repeat(ids, np.diff(puzzles)),
        "group": np.repeat(np.arange(len(groups) - 1), np.diff(puzzles[groups])),
    }
    columns = {column: part[:limit].astype(np.int32) for column, part in columns.items()}
    return _of_tokens(inputs[:limit], labels[:limit], columns, name, task)


def _from_tokens(
    files: list[Path], name: str, task: str | GridTask | None, limit: int | None, fingerprint: str
) -> PuzzleSet:
    import pyarrow.dataset

    data = pyarrow.dataset.dataset(files)
    puzzles = next(key for key in reversed(TOKEN_KEYS) if key in data.schema.names)
    wanted = [column for column in (puzzles, "labels", "rating", "puzzle_id", "group") if column in data.schema.names]
    table = data.to_table(wanted) if limit is None else data.head(limit, columns=wanted)
    if not len(table):
        raise ValueError(f"{files[0].parent} holds no rows.")
    columns = {column: table[column].combine_chunks() for column in wanted}
    inputs, labels = (_grids(columns.pop(column), f"{name}: the column {column}") for column in (puzzles, "labels"))
    numbers = {}
    for column, part in columns.items():
        if part.null_count and column != "rating":
            raise ValueError(f"{name}: the column {column} has rows without a number: give each one, or leave it out.")
        values = part.to_numpy(zero_copy_only=False)
        if values.dtype.kind in "iuf":
            numbers[column] = np.nan_to_num(values, nan=UNRATED).astype(np.int32)
    return _of_tokens(inputs, labels, numbers, name, task, fingerprint)


def _of_tokens(
    inputs: np.ndarray,
    labels: np.ndarray,
    numbers: dict[str, np.ndarray],
    name: str,
    task: str | GridTask | None,
    fingerprint: str = "",
) -> PuzzleSet:
    """Tokens (N, S) as a PuzzleSet, checked; `numbers` (N,) by column: rating, puzzle_id, group."""
    labels = np.where(labels == -100, PAD, labels)  # as losses have it: such cells do not count
    if not isinstance(task, GridTask):
        side = math.isqrt(inputs.shape[1])
        if side * side != inputs.shape[1]:
            raise ValueError(f"{name}: rows of {inputs.shape[1]} cells are no square grid; pass task=make_task(...).")
        ends = ((inputs == 3).sum(-1) == 1) & ((inputs == 4).sum(-1) == 1)
        filled = (inputs != labels) & (labels != PAD)  # of a maze free cells, with path
        is_maze = ends.all() and labels.max() <= 5 and (inputs[filled] == 2).all() and (labels[filled] == 5).all()
        guess = "maze" if is_maze else "sudoku"
        task = make_task(task or guess, side, side)
    if "rating" in numbers and (numbers["rating"] == UNRATED).all():
        del numbers["rating"]
    first = PAD + task.has_rules  # generic grids may be padded
    for what, tokens, least in (("inputs", inputs, first), ("labels", labels, PAD)):
        if tokens.shape[1:] != (task.seq_len,) or tokens.min() < least or tokens.max() >= task.vocab_size:
            raise ValueError(f"{name}: the {what} are not puzzles of {task}; build the folder again.")
    inputs, labels = inputs.astype(np.uint8), labels.astype(np.uint8)
    more = map(numbers.get, ("rating", "puzzle_id", "group"))
    return PuzzleSet(inputs, labels, task, *more, source=name, fingerprint=fingerprint)


def _grids(column: Any, what: str) -> np.ndarray:
    """Lists of whole numbers, or of rows of them, all equally long, as an array (N, S)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with contextlib.suppress(pa.ArrowException):
        sizes, cells = pc.list_value_length(column).unique().to_pylist(), column.flatten()
        if len(sizes) == 1 and sizes[0] and not cells.null_count:
            if pa.types.is_nested(cells.type):
                return _grids(cells, what).reshape(len(column), -1)
            cells = cells if pa.types.is_integer(cells.type) else cells.cast(pa.int16())
            return cells.to_numpy(zero_copy_only=False).reshape(len(column), sizes[0])
    raise ValueError(f"{what} must hold a list of tokens in every row, all equally long and no field of them empty.")
