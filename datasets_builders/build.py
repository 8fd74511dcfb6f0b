"""Builds either data set as a folder: parquet shards, a data card, and `air_dataset.json`.

Rows stream from the source to the shards in chunks, so memory does not grow with their number (except the few numbers
that a random choice of rows needs). Everything random follows from (seed, split, row), so the bytes do not depend on
the number of threads. The folder appears at once, by renaming, when all of it is right.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from air_model.datasets_builders.canonical import canonical, canonical_mazes
from air_model.datasets_builders.cards import card, features
from air_model.datasets_builders.files import CHUNK, read_rows
from air_model.datasets_builders.generate_maze import make_mazes
from air_model.datasets_builders.generate_sudoku import BENCHMARK_BUCKETS, make_puzzles, random_grids, seeds_for
from air_model.datasets_builders.loading import (
    META,
    BadRows,
    encode_pairs,
    hub_folder,
    pair_faults,
    parse_ratings,
    tables_in,
    task_for,
    task_to_meta,
)
from air_model.datasets_builders.maze_kernels import label
from air_model.datasets_builders.sudoku_solver import solve
from air_model.processing_air import GridTask, MazeTask, SudokuTask, make_task
from air_model.records import read_json, whole_folder

HUB = {
    # repository, pinned revision (the commit that the published numbers were measured on)
    "sudoku-extreme": ("sapientinc/sudoku-extreme", "58942f96"),
    "maze-hard": ("sapientinc/maze-30x30-hard-1k", "549754de"),
}
TASKS = {"sudoku-extreme": "sudoku", "maze-hard": "maze"}
CONFIGS = {  # the published tables and a stand-in: name -> options
    "1k": {"num_train": 1000},
    "1k-aug-1000": {"num_train": 1000, "num_aug": 1000},
    "full": {},
    "generated": {"source": "generate"},
}
ROWS_PER_SHARD = 500_000
STREAMS = {"train": 0, "test": 1, "grids": 2}


@dataclass(kw_only=True)
class Options:
    """What to build; everything here and the source's content decide the bytes.

    num_train, num_test: rows to keep (a seeded random choice), or to generate; None = all (generate: 1,000 each).
    num_aug: symmetric copies per training puzzle, beside the original. easier: one easier copy beside every training
    row. difficulty and hold_out: see `generated`. values: what numbers in a source are, "digits" or "tokens".
    """

    source: str = "generate"
    grid: tuple[int, int] | None = None
    box: tuple[int, int] | None = None
    num_train: int | None = None
    num_test: int | None = None
    num_aug: int = 0
    easier: bool = False
    min_rating: int | None = None
    seed: int = 0
    difficulty: str | None = None
    min_path: int | None = None
    hold_out: str = "grids"
    revision: str | None = None
    skip_bad: bool = False
    values: str | None = None


@dataclass(kw_only=True)
class BuildConfig(Options):
    """Options of one data set. `num_proc` and `progress` do not decide any byte."""

    dataset: str
    name: str | None = None
    num_proc: int | None = field(default=None, compare=False)
    progress: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        if self.dataset not in TASKS:
            raise ValueError(f"Unknown data set {self.dataset!r}. Known: {', '.join(TASKS)}.")
        for what in ("num_train", "num_test", "num_aug", "num_proc"):
            value = getattr(self, what)
            least = 1 if what in ("num_train", "num_proc") else 0
            if value is not None and value < least:
                raise ValueError(f"{what} is {value}: give a number of at least {least}.")
        if self.hold_out not in ("grids", "puzzles"):
            raise ValueError(f"hold_out is 'grids' or 'puzzles', got {self.hold_out!r}.")
        if self.is_maze and (self.easier or self.box or self.difficulty or self.min_rating is not None and
                             self.source == "generate"):  # fmt: skip
            raise ValueError("Easier copies, boxes and difficulties belong to Sudokus; leave them out for mazes.")
        if self.is_maze and self.num_aug > 7:
            raise ValueError(
                f"A maze has 7 symmetric copies beside itself (3 in a rectangle), got num_aug={self.num_aug}."
            )
        if self.source == "generate" and self.min_rating is not None:
            raise ValueError(
                "--min-rating chooses among rows of a source; generated Sudokus have --difficulty instead."
            )
        if not self.is_maze and self.min_path is not None:
            raise ValueError("A shortest path (--min-path) belongs to mazes; leave it out for Sudokus.")
        if self.seed < 0:
            raise ValueError(f"The seed must be 0 or more, got {self.seed}.")

    @property
    def is_maze(self) -> bool:
        return TASKS[self.dataset] == "maze"

    @property
    def config_name(self) -> str:
        """Name of the table: generated, full, 1k, 1k-aug-1000, ..."""
        if self.name:
            return self.name
        count = self.num_train
        short = f"{count // 1000}k" if count and count % 1000 == 0 else str(count)
        base = "generated" if self.source == "generate" else "full" if count is None else short
        return base + (f"-aug-{self.num_aug}" if self.num_aug else "") + ("-easier" if self.easier else "")

    def deciding(self) -> dict:
        """The options that decide the bytes, beside the source."""
        return {k: v for k, v in asdict(self).items() if k not in ("num_proc", "progress", "source")}

    def task(self) -> GridTask | None:
        """The task as far as the options say it; None leaves it to the first puzzle."""
        if self.grid is None and self.source == "generate":
            return make_task(TASKS[self.dataset], *((None, None) if self.is_maze else (9, 9, *(self.box or ()))))
        if self.grid is None:
            return make_task("sudoku", 9, 9, *self.box) if self.box else None
        return make_task(TASKS[self.dataset], *self.grid, *(self.box or ()))


@dataclass
class Rows:
    """A chunk of base puzzles on their way: arrays of equal length; `source` is a list of texts."""

    inputs: np.ndarray
    labels: np.ndarray
    rating: np.ndarray
    source: list[str]

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: np.ndarray) -> Rows:
        at = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Rows(self.inputs[at], self.labels[at], self.rating[at], [self.source[i] for i in at])


# ---- sources


def source_files(config: BuildConfig) -> dict[str, Path]:
    """The CSV of each split. A single CSV is the split train (part of it test, when num_test is given)."""
    path = Path(config.source)
    if config.source == "hub":
        repo, revision = HUB[config.dataset]
        path = hub_folder(repo, None, config.revision or revision)
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no file or folder {config.source!r}. --source is hub, generate, or the path of a CSV or folder."
        )
    found: dict[str, Path] = {}
    files = tables_in(path)
    for file in [p for p in files if p.name.endswith((".csv", ".csv.gz"))] or files:
        split = re.match(r"[A-Za-z]*", file.name)[0].lower()
        if split in found:
            raise ValueError(f"{path} has two files for the split {split!r}: {found[split].name} and {file.name}.")
        found[split] = file
    if "train" not in found:
        raise FileNotFoundError(
            f"{path} has no train*.csv, .csv.gz, .jsonl, ...; it has:"
            f" {', '.join(p.name for p in found.values()) or 'none'}."
        )
    return found


def checked_rows(
    path: Path, task: GridTask, keep: np.ndarray | None, bad: list[tuple[int, int, str]], config: BuildConfig
) -> Iterator[Rows]:
    """Chunks of good rows of a CSV. Everything wrong with a row is found: letters, length, contradictions, the number
    of solutions of a Sudoku, the path of a maze; bad rows go to `bad` and not into the chunks."""
    first_row = 1
    for questions, answers, ratings, sources, first_row in read_rows(path, bad):
        inputs, labels, faults = encode_pairs(questions, answers, task, config.values)
        reached, rating = _ratings(path, ratings, config.min_rating, faults)
        pairs = pair_faults(task, inputs, labels, faults)
        good = np.ones(len(inputs), bool) if keep is None else keep[first_row - 1 : first_row - 1 + len(inputs)].copy()
        # Rows that are not used are read, but their solutions are not counted.
        skip = {int(i): "" for i in np.flatnonzero(~good)} | faults
        for i, reason in rule_faults(task, inputs, labels, skip, config.num_proc).items():
            # What is wrong with the puzzle itself comes first, then where the answer departs from it.
            faults[i] = pairs.get(i, reason) if reason.startswith("the answer") else reason
        faults = pairs | faults
        bad += [(first_row + i, first_row + i + 1, reason) for i, reason in sorted(faults.items())]
        good[list(faults)] = False
        yield Rows(inputs, labels, rating, sources).take(good & reached)


def _ratings(path: Path, texts: list[str], least: int | None, faults: dict[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows reach the least rating, bool (N,), and their ratings, int32 (N,); 0 where there are none."""
    rating = parse_ratings(texts, faults)
    if rating is None and least is not None:
        raise ValueError(f"{path} has no ratings, so --min-rating cannot choose by them.")
    rating = np.zeros(len(texts), np.int32) if rating is None else rating
    return rating >= (np.iinfo(np.int32).min if least is None else least), rating


def rule_faults(
    task: GridTask, inputs: np.ndarray, labels: np.ndarray, skip: dict[int, str], threads: int | None
) -> dict[int, str]:
    """Rows that break the rules of the task, {index: reason}."""
    rows = np.array([i for i in range(len(inputs)) if i not in skip], np.int64)
    faults_of = {SudokuTask: _sudoku_faults, MazeTask: _maze_faults}.get(type(task))
    return faults_of(task, inputs, labels, rows, threads) if len(rows) and faults_of else {}


def _sudoku_faults(
    task: SudokuTask, inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray, threads: int | None
) -> dict[int, str]:
    clash = task.conflicts(inputs[rows]).any(-1)
    faults = {int(i): _fault_of(task.check_puzzle, inputs[i]) for i in rows[clash]}
    rows = rows[~clash]
    for i, count, answer in zip(rows.tolist(), *solve(inputs[rows], task, threads=threads)[::2]):
        if count != 1:
            faults[i] = "the puzzle has no solution" if count == 0 else "the puzzle has two or more solutions"
        elif (answer != labels[i]).any():
            cell = int(np.flatnonzero(answer != labels[i])[0])
            right, wrong = (task.alphabet[tokens[cell]] for tokens in (answer, labels[i]))
            faults[i] = f"the answer is not the solution: {task.cell(cell)} is {right}, not {wrong}"
    return faults


def _maze_faults(
    task: MazeTask, inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray, threads: int | None
) -> dict[int, str]:
    ends = [(inputs[rows] == token).sum(-1) == 1 for token in (task.START, task.GOAL)]
    sound = ends[0] & ends[1] & ~(inputs[rows] == task.PATH).any(-1)
    faults = {int(i): _fault_of(task.check_puzzle, inputs[i]) for i in rows[~sound]}
    rows = rows[sound]
    stuck = (task.distances(inputs[rows])[inputs[rows] == task.START] < 0) if len(rows) else np.zeros(0, bool)
    faults |= {int(i): _fault_of(task.check_solvable, inputs[i]) for i in rows[stuck]}
    rows = rows[~stuck]
    for i in rows[~task.verdicts(inputs[rows], labels[rows]).valid]:
        faults[int(i)] = "the answer is not a shortest path: " + task.verdict(inputs[i], labels[i]).message
    return faults


def _fault_of(check: Callable, grid: np.ndarray) -> str:
    try:
        check(grid)
    except ValueError as error:
        return str(error)
    raise AssertionError("the vectorised rules and the check of one puzzle disagree")


def _eligible(path: Path, least: int | None) -> np.ndarray:
    """bool per row of a file: does it reach the rating?"""
    parts = [_ratings(path, ratings, least, {})[0] for _, _, ratings, _, _ in read_rows(path, [])]
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def _choose(eligible: np.ndarray, count: int, seed: list[int], where: str) -> np.ndarray:
    """A random subset of `count` eligible rows, bool."""
    rows = np.flatnonzero(eligible)
    if len(rows) < count:
        raise ValueError(f"{where} has {len(rows):,} rows to choose from, {count:,} were asked for.")
    out = np.zeros(len(eligible), bool)
    out[np.random.default_rng(seed).choice(rows, count, replace=False)] = True
    return out


def csv_splits(config: BuildConfig, bad: dict[str, list]) -> tuple[GridTask, dict[str, Iterator[Rows]]]:
    """Task and, per split, the stream of checked rows."""
    files = source_files(config)
    task = config.task()
    if task is None:
        for questions, *_ in read_rows(files["train"], []):
            task = task_for(questions[0], None, str(files["train"]))
            break
        if task is None:
            raise ValueError(f"{files['train']} holds no puzzles below its header.")
    if task.name != TASKS[config.dataset]:
        raise ValueError(f"{files['train']} holds {task}, but {config.dataset} needs {TASKS[config.dataset]} puzzles.")
    out: dict[str, Iterator[Rows]] = {}

    def use(split: str, path: Path, keep: np.ndarray | None) -> None:
        bad[split] = []
        out[split] = checked_rows(path, task, keep, bad[split], config)

    for split, path in files.items():
        wanted = {"train": config.num_train, "test": config.num_test}.get(split)
        cut = config.num_test if len(files) == 1 else None  # test rows out of the only file
        keep = _eligible(path, config.min_rating) if cut or wanted is not None else None
        if cut:
            test = _choose(keep, cut, [config.seed, STREAMS["test"]], str(path))
            use("test", path, test)
            keep &= ~test
        if wanted is not None:
            keep = _choose(keep, wanted, [config.seed, STREAMS.get(split, 3)], str(path))
        use(split, path, keep)
    return task, dict(sorted(out.items(), key=lambda item: item[0] != "train"))


def generated(config: BuildConfig) -> tuple[GridTask, dict[str, Iterator[Rows]]]:
    """Task and streams of generated puzzles.

    Sudoku, difficulty: "benchmark" (default at 9x9) follows Sudoku-Extreme's ratings, "mixed" (default elsewhere) and
    "minimal" as in generate_sudoku. hold_out="grids" keeps every solved grid of the test split, in all its symmetric
    copies, out of training; "puzzles" only the puzzles themselves.
    """
    task = config.task()
    counts = {"test": 1000 if config.num_test is None else config.num_test, "train": config.num_train or 1000}
    counts = {split: count for split, count in counts.items() if count}
    make = (_maze_maker if isinstance(task, MazeTask) else _sudoku_maker)(config, task, set(counts))
    seen: set[bytes] = set()  # of the test split up to symmetry, then of the training split as it comes

    def stream(split: str) -> Iterator[Rows]:
        made, number = 0, 0
        while made < counts[split]:
            rows, forms, tried = make(split, number, counts[split] - made)
            number += tried
            new = _unseen(forms, seen)
            new &= np.cumsum(new) <= counts[split] - made
            made += int(new.sum())
            yield rows.take(new)
            if number > 400 * counts[split] + 100_000:
                what = f"{counts[split]:,} different {'mazes' if config.is_maze else 'puzzles'} of this kind"
                raise ValueError(f"{task} has fewer than {what}: ask for less.")

    return task, {split: stream(split) for split in counts}  # test first: training leaves out what it holds


# Makes a batch for (split, number of the first, puzzles still wanted): rows, their forms up to symmetry, numbers used.
Maker = Callable[[str, int, int], tuple[Rows, np.ndarray, int]]


def _maze_maker(config: BuildConfig, task: MazeTask, splits: set[str]) -> Maker:
    def make(split: str, number: int, wanted: int) -> tuple[Rows, np.ndarray, int]:
        count = min(CHUNK // 10, wanted)
        seeds = seeds_for(config.seed, STREAMS[split], number, count)
        bar = f"{split} mazes" if config.progress else None
        mazes, labels = make_mazes(task, seeds, config.min_path, config.num_proc, bar)
        moves = ((labels == task.PATH).sum(-1) + 1).astype(np.int32)
        return Rows(mazes, labels, moves, ["generated"] * count), canonical_mazes(mazes, task), count

    return make


def _sudoku_maker(config: BuildConfig, task: SudokuTask, splits: set[str]) -> Maker:
    standard = task.height == 9 and task.box_height == 3
    difficulty = config.difficulty or ("benchmark" if standard else "mixed")
    if difficulty == "benchmark" and not standard:
        raise ValueError("Benchmark ratings exist for 9x9 Sudokus only: choose --difficulty mixed or minimal.")
    few = task.height <= 6  # so few grids that splits share them unless whole classes are held out
    test_classes = _held_out_classes(config, task) if few and config.hold_out == "grids" and "test" in splits else None
    grids_of_test: set[bytes] = set()

    def kept(split: str, grids: np.ndarray) -> np.ndarray:
        """Which solved grids the split may use, bool (N,)."""
        classes = canonical(grids, task)
        if test_classes is not None:
            return np.array([(c.tobytes() in test_classes) == (split == "test") for c in classes], bool)
        if classes is not None and split == "test":
            grids_of_test.update(_digests(classes))
        elif classes is not None and config.hold_out == "grids":
            return np.array([digest not in grids_of_test for digest in _digests(classes)], bool)
        return np.ones(len(grids), bool)

    def make(split: str, number: int, wanted: int) -> tuple[Rows, np.ndarray, int]:
        count = min(5000, max(64, int(wanted * (1.3 if test_classes is None else 6))))
        seeds = seeds_for(config.seed, STREAMS[split], number, count)
        grids = random_grids(task, seeds, config.num_proc)
        at = np.flatnonzero(kept(split, grids))[: wanted + 64]
        bar = f"{split} Sudokus" if config.progress else None
        batch = make_puzzles(task, grids[at], seeds[at] ^ np.uint64(0x5DEECE66D), difficulty, config.num_proc, bar)
        forms = canonical(batch.grids, task, batch.puzzles)
        rows = Rows(batch.puzzles, batch.grids, batch.ratings, ["generated"] * len(at))
        return rows, batch.puzzles if forms is None else forms, count

    return make


def _held_out_classes(config: BuildConfig, task: SudokuTask) -> set[bytes]:
    """A fifth (at least one) of the solved grids up to symmetry: 4x4 has 2, 6x6 has 49."""
    grids = random_grids(task, seeds_for(config.seed, STREAMS["grids"], 0, 4000), config.num_proc)
    classes = np.unique(canonical(grids, task), axis=0)
    chosen = np.random.default_rng([config.seed, STREAMS["grids"]]).permutation(len(classes))
    return {classes[i].tobytes() for i in chosen[: max(1, len(classes) // 5)]}


def _digests(rows: np.ndarray) -> list[bytes]:
    return [hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in rows]


def _unseen(forms: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """bool (N,): first of its kind; `seen` grows."""
    out = np.zeros(len(forms), bool)
    for i, digest in enumerate(_digests(forms)):
        if digest not in seen:
            seen.add(digest)
            out[i] = True
    return out


# ---- copies


def expanded(rows: Rows, first_group: int, config: BuildConfig, task: GridTask) -> Iterator[tuple[Rows, np.ndarray]]:
    """A training chunk with its copies: each original, its easier copy, then `num_aug` copies (and their easier ones),
    together with the group (base puzzle) of each row."""
    copies = config.num_aug + 1
    share = 2 if config.easier else 1
    per_step = max(1, CHUNK // (copies * share))
    for start in range(0, len(rows), per_step):
        part = rows.take(np.arange(start, min(start + per_step, len(rows))))
        at = np.repeat(np.arange(len(part)), copies)
        inputs, labels = part.inputs[at], part.labels[at]
        rng = np.random.default_rng([config.seed, 7, first_group + start])
        turned = np.tile(np.arange(copies), len(part)) > 0
        if config.num_aug and isinstance(task, MazeTask):
            if copies > len(task.dihedral):
                raise ValueError(f"{task} has {len(task.dihedral) - 1} symmetric copies: lower num_aug.")
            which = np.tile(np.arange(copies) % len(task.dihedral), len(part))
            inputs = np.take_along_axis(inputs, task.dihedral[which], axis=1)
            labels[turned] = label(inputs[turned], task.height, task.width)
        elif config.num_aug:
            symmetries = task.random_symmetries(rng, int(turned.sum()))
            inputs[turned], labels[turned] = symmetries.apply(inputs[turned]), symmetries.apply(labels[turned])
        if config.easier:
            easy = easier(inputs, labels, task, rng)
            at = np.repeat(at, 2)
            inputs = np.stack([inputs, easy], axis=1).reshape(-1, task.seq_len)
            labels = np.repeat(labels, 2, axis=0)
        yield (
            Rows(inputs, labels, part.rating[at], [part.source[i] for i in at]),
            (first_group + start + at).astype(np.int32),
        )


def easier(inputs: np.ndarray, labels: np.ndarray, task: GridTask, rng: np.random.Generator) -> np.ndarray:
    """The puzzles with k random blanks filled from the answer, k uniform in 1 ... blanks - 1 (arXiv:2601.10679)."""
    blank = inputs == task.blank_token
    k = 1 + (rng.random(len(inputs)) * np.maximum(blank.sum(-1) - 1, 0)).astype(int)
    order = np.where(blank, rng.random(inputs.shape), 2.0).argsort(-1).argsort(-1)  # rank among the blanks
    # Of a puzzle with one blank nothing may be filled.
    return np.where(blank & (order < np.minimum(k, blank.sum(-1) - 1)[:, None]), labels, inputs)


# ---- writing


class _Writer:
    """Parquet shards of one split, written in chunks; counts, statistics and a fingerprint of the content."""

    def __init__(self, folder: Path, split: str, task: GridTask):
        self.folder, self.split, self.task = folder, split, task
        self.schema = features(task.seq_len).arrow_schema
        self.count = self.groups = self.in_shard = 0
        self.files: list[Path] = []
        self.writer = None
        self.digest = hashlib.sha256(repr(task._key()).encode())

    def write(self, rows: Rows, groups: np.ndarray) -> None:
        if not len(rows):
            return
        if self.writer is None or self.in_shard >= ROWS_PER_SHARD:
            self.close_shard()
            self.files.append(self.folder / f"{self.split}-{len(self.files):05d}.part")
            self.writer = pq.ParquetWriter(
                self.files[-1], self.schema, compression="zstd", compression_level=1,
                use_dictionary=["rating", "source", "puzzle_id", "group"], store_schema=True,
            )  # fmt: skip
            self.in_shard = 0
        size = self.task.seq_len
        cells = [
            pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(part).reshape(-1)), size)
            for part in (rows.inputs, rows.labels)
        ]
        ids = np.zeros(len(rows), np.int32)  # one puzzle id for all (SPEC): 0
        columns = [*cells, *map(pa.array, (rows.rating, rows.source, ids, groups))]
        self.writer.write_table(pa.table(columns, schema=self.schema))
        for part in (rows.inputs, rows.labels, rows.rating, groups):
            self.digest.update(np.ascontiguousarray(part).data)
        self.count += len(rows)
        self.in_shard += len(rows)
        self.groups = int(groups.max()) + 1

    def close_shard(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def finish(self) -> dict:
        self.close_shard()
        for i, file in enumerate(self.files):
            file.rename(self.folder / f"{self.split}-{i:05d}-of-{len(self.files):05d}.parquet")
        size = sum(p.stat().st_size for p in self.folder.glob(f"{self.split}-*.parquet"))
        return {
            "rows": self.count,
            "puzzles": self.groups,
            "shards": len(self.files),
            "bytes": size,
            "fingerprint": self.digest.hexdigest()[:16],
        }


def code_hash() -> str:
    """Hash of the code that decides the bytes."""
    here = Path(__file__).parent
    names = ["build", "loading", "files", "canonical", "sudoku_solver", "maze_kernels"]
    names += ["generate_sudoku", "generate_maze", "cards"]
    files = [here / f"{name}.py" for name in names]
    files += [here / "data_card.md", *(here.parent / f"{name}_air.py" for name in ("processing", "reading", "search"))]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def content_hash(config: BuildConfig) -> str:
    """Hash of the options, the code and the source's bytes: equal hash, equal data set."""
    digest = hashlib.sha256(json.dumps(config.deciding(), sort_keys=True).encode() + code_hash().encode())
    if config.source != "generate":
        for split, path in sorted(source_files(config).items()):
            digest.update(split.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def build(config: BuildConfig, output_dir: str | Path, *, force: bool = False) -> dict:
    """Build into `output_dir` and return its metadata; an unchanged folder (same content hash) is left as it is.

    Raises:
        BadRows: rows of the source that cannot be used, all of them (unless config.skip_bad); nothing is written.
        FileNotFoundError, ValueError: the source or the options do not fit.
    """
    output = Path(output_dir)
    key = content_hash(config)
    if (output / META).exists():
        meta = read_json(output / META)
        if not force and meta.get("content_hash") == key and _complete(output, meta):
            return meta
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and was not written by build_dataset.py: name an empty or a new folder.")
    with whole_folder(output) as work:
        meta = _write(config, work)
        meta["content_hash"] = key
        (work / META).write_text(json.dumps(meta, indent=2) + "\n")
        (work / "README.md").write_text(card(meta))
    return meta


def _complete(output: Path, meta: dict) -> bool:
    return all(
        len(list((output / name).glob(f"{split}-*.parquet"))) == info["shards"]
        for name, table in meta["configs"].items()
        for split, info in table["splits"].items()
    )


def _write(config: BuildConfig, work: Path) -> dict:
    bad: dict[str, list[tuple[int, int, str]]] = {}
    task, streams = generated(config) if config.source == "generate" else csv_splits(config, bad)
    folder = work / config.config_name
    folder.mkdir()
    splits, statistics = {}, {}
    for split, stream in streams.items():
        writer, values, group = _Writer(folder, split, task), [], 0
        with tqdm(desc=f"{split} rows", unit=" rows", disable=not config.progress) as bar:
            for rows in stream:
                values.append(_quantities(task, rows))
                groups = np.arange(group, group + len(rows), dtype=np.int32)
                for part, of in expanded(rows, group, config, task) if split == "train" else [(rows, groups)]:
                    writer.write(part, of)
                    bar.update(len(part))
                group += len(rows)
        if writer.count == 0 and not any(bad.values()):
            raise ValueError(f"The split {split!r} has no rows: nothing reaches the options given.")
        if writer.count:
            splits[split], statistics[split] = writer.finish(), _summary(task, values)
    files = source_files(config) if bad else {}
    if "test" in bad and len(files) == 1:  # one file, read once per split
        bad["train"] = sorted({*bad["train"], *bad.pop("test")})
    skipped = {split: rows for split, rows in bad.items() if rows}
    if skipped and not config.skip_bad:
        where = {str(files.get(split, files["train"])): rows for split, rows in skipped.items()}
        raise BadRows(where, "; nothing was written. --skip-bad leaves them out.")
    order = sorted(splits, key=lambda name: (name != "train", name))
    source = "generate" if config.source == "generate" else Path(config.source).name
    if config.source == "hub":
        repo, revision = HUB[config.dataset]
        source = f"{repo}@{config.revision or revision}"
    return {
        "dataset": config.dataset,
        "task": task_to_meta(task),
        "default_config": config.config_name,
        "configs": {config.config_name: {"splits": {s: splits[s] for s in order}}},
        "statistics": {s: statistics[s] for s in order},
        "source": source,
        "options": config.deciding(),
        "seed": config.seed,
        "code_hash": code_hash(),
        "skipped_rows": {split: [list(row) for row in rows] for split, rows in skipped.items()},
    }


def _quantities(task: GridTask, rows: Rows) -> dict[str, np.ndarray]:
    """What the card says of base puzzles, int (N,) each."""
    if isinstance(task, MazeTask):
        moves = (rows.labels == task.PATH).sum(-1) + 1
        return {"rating": rows.rating, "walls": (rows.inputs == task.WALL).sum(-1), "moves": moves}
    return {"rating": rows.rating, "clues": (rows.inputs != task.blank_token).sum(-1)}


def _summary(task: GridTask, parts: list[dict[str, np.ndarray]]) -> dict:
    """{name: {mean, min, median, max}}, and for Sudoku ratings the shares of the benchmark's buckets."""
    out = {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        least, median, most = np.quantile(values, [0, 0.5, 1], method="inverted_cdf").tolist()
        out[name] = {"mean": round(float(values.mean()), 3), "min": least, "median": median, "max": most}
        if name == "rating" and isinstance(task, SudokuTask):
            shares = {}
            for low, high, _ in BENCHMARK_BUCKETS:
                bucket = f"{low}" if low == high else f"{low}-{high}" if high < 1 << 30 else f"{low}+"
                shares[bucket] = round(float(((low <= values) & (values <= high)).mean()), 4)
    return out | ({"rating_shares": shares} if isinstance(task, SudokuTask) else {})
