"""Builds either data set as a folder: parquet shards, a data card, and `air_dataset.json`.

Rows stream from the source to the shards in chunks, so memory does not grow with their number (except the few numbers
that a random choice of rows needs). Everything random follows from (seed, split, row), so the bytes do not depend on
the number of threads. The folder appears at once, by renaming, when all of it is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from air_model.datasets_builders.cards import card, features
from air_model.datasets_builders.files import ENDINGS
from air_model.datasets_builders.loading import (
    CHUNK,
    META,
    BadRows,
    encode_many,
    hub_folder,
    pair_faults,
    parse_ratings,
    read_rows,
    task_for,
    task_to_meta,
)
from air_model.processing_air import GridTask, MazeTask, SudokuTask, make_task

HUB = {
    # repository, pinned revision (the commit that the published numbers were measured on)
    "sudoku-extreme": ("sapientinc/sudoku-extreme", "58942f96"),
    "maze-hard": ("sapientinc/maze-30x30-hard-1k", "549754de"),
}
TASKS = {"sudoku-extreme": "sudoku", "maze-hard": "maze"}
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
    files = sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS) and p.name != META)
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
    for questions, answers, ratings, sources, first_row in read_rows(path, bad):  # noqa: B007
        inputs, faults = encode_many(questions, task, config.values)
        labels, more = encode_many(answers, task, config.values)
        faults |= {i: f"answer: {reason}" for i, reason in more.items() if i not in faults}
        rating = parse_ratings(ratings, faults)
        pairs = pair_faults(task, inputs, labels, faults)
        good = np.ones(len(inputs), bool) if keep is None else keep[first_row - 1 : first_row - 1 + len(inputs)].copy()
        # Rows that are not used are read, but their solutions are not counted.
        skip = {int(i): "" for i in np.flatnonzero(~good)} | faults
        for i, reason in rule_faults(task, inputs, labels, skip, config.num_proc).items():
            # What is wrong with the puzzle itself comes first, then where the answer departs from it.
            faults[i] = pairs.get(i, reason) if reason.startswith("the answer") else reason
        faults |= {i: reason for i, reason in pairs.items() if i not in faults}
        bad += [(first_row + i, first_row + i + 1, reason) for i, reason in sorted(faults.items())]
        if rating is None and config.min_rating is not None:
            raise ValueError(f"{path} has no ratings, so --min-rating cannot choose by them.")
        rating = np.zeros(len(inputs), np.int32) if rating is None else rating
        good[list(faults)] = False
        if config.min_rating is not None:
            good &= rating >= config.min_rating
        yield Rows(inputs, labels, rating, sources).take(good)


def rule_faults(
    task: GridTask, inputs: np.ndarray, labels: np.ndarray, skip: dict[int, str], threads: int | None
) -> dict[int, str]:
    """Rows that break the rules of the task, {index: reason}."""
    faults: dict[int, str] = {}
    rows = np.array([i for i in range(len(inputs)) if i not in skip], np.int64)
    if not len(rows):
        return faults
    if isinstance(task, SudokuTask):
        from air_model.datasets_builders.sudoku_solver import solve

        clash = task.conflicts(inputs[rows]).any(-1)
        for i in rows[clash]:
            faults[int(i)] = _fault_of(task.check_puzzle, inputs[i])
        rows = rows[~clash]
        counts, _, answers = solve(inputs[rows], task, threads=threads)
        for i, count, answer in zip(rows, counts, answers):
            if count != 1:
                faults[int(i)] = "the puzzle has no solution" if count == 0 else "the puzzle has two or more solutions"
            elif (answer != labels[i]).any():
                cell = int(np.flatnonzero(answer != labels[i])[0])
                faults[int(i)] = (
                    f"the answer is not the solution: {task.cell(cell)} is {task.alphabet[answer[cell]]}, not"
                    f" {task.alphabet[labels[i][cell]]}"
                )
        return faults
    if isinstance(task, MazeTask):
        ends = [(inputs[rows] == token).sum(-1) == 1 for token in (task.START, task.GOAL)]
        sound = ends[0] & ends[1] & ~(inputs[rows] == task.PATH).any(-1)
        for i in rows[~sound]:
            faults[int(i)] = _fault_of(task.check_puzzle, inputs[i])
        rows = rows[sound]
        start = np.argmax(inputs[rows] == task.START, axis=-1)
        stuck = task.distances(inputs[rows])[np.arange(len(rows)), start] < 0
        for i in rows[stuck]:
            faults[int(i)] = _fault_of(task.check_solvable, inputs[i])
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


def _count_rows(path: Path, min_rating: int | None) -> np.ndarray:
    """bool per row of a CSV: does it reach the rating?"""
    parts = []
    for _, _, ratings, _, _ in read_rows(path, []):
        faults: dict[int, str] = {}
        rating = parse_ratings(ratings, faults)
        ok = np.ones(len(ratings), bool)
        if min_rating is not None:
            if rating is None:
                raise ValueError(f"{path} has no ratings, so --min-rating cannot choose by them.")
            ok = rating >= min_rating
        parts.append(ok)
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
    single = len(files) == 1
    for split, path in files.items():
        wanted = config.num_train if split == "train" else config.num_test if split == "test" else None
        keep = None
        if single and config.num_test:
            eligible = _count_rows(path, config.min_rating)
            test = _choose(eligible, config.num_test, [config.seed, STREAMS["test"]], str(path))
            keep = eligible & ~test
            if wanted is not None:
                keep = _choose(keep, wanted, [config.seed, STREAMS["train"]], str(path))
            bad["test"] = []
            out["test"] = checked_rows(path, task, test, bad["test"], config)
        elif wanted is not None:
            keep = _choose(
                _count_rows(path, config.min_rating), wanted, [config.seed, STREAMS.get(split, 3)], str(path)
            )
        bad[split] = []
        out[split] = checked_rows(path, task, keep, bad[split], config)
    return task, dict(sorted(out.items(), key=lambda item: item[0] != "train"))


def generated(config: BuildConfig) -> tuple[GridTask, dict[str, Iterator[Rows]]]:
    """Task and streams of generated puzzles.

    Sudoku, difficulty: "benchmark" (default at 9x9) follows Sudoku-Extreme's ratings, "mixed" (default elsewhere) and
    "minimal" as in generate_sudoku. hold_out="grids" keeps every solved grid of the test split, in all its symmetric
    copies, out of training; "puzzles" only the puzzles themselves.
    """
    task = config.task()
    counts = {"train": config.num_train or 1000, "test": 1000 if config.num_test is None else config.num_test}
    if isinstance(task, MazeTask):
        make = _generated_mazes
    else:
        make = _generated_sudokus
    return task, make(config, task, {split: count for split, count in counts.items() if count})


def _generated_mazes(config: BuildConfig, task: MazeTask, counts: dict[str, int]) -> dict[str, Iterator[Rows]]:
    from air_model.datasets_builders.canonical import canonical_mazes
    from air_model.datasets_builders.generate_maze import make_mazes
    from air_model.datasets_builders.generate_sudoku import seeds_for

    seen: set[bytes] = set()  # hashes of the test mazes up to symmetry, then of the training mazes as they come

    def stream(split: str) -> Iterator[Rows]:
        made, number = 0, 0
        while made < counts[split]:
            count = min(CHUNK // 10, counts[split] - made)
            seeds = seeds_for(config.seed, STREAMS[split], number, count)
            bar = f"{split} mazes" if config.progress else None
            mazes, labels = make_mazes(task, seeds, config.min_path, config.num_proc, bar)
            number += count
            new = _unseen(canonical_mazes(mazes, task), seen)
            moves = ((labels == task.PATH).sum(-1) + 1).astype(np.int32)
            made += int(new.sum())
            yield Rows(mazes, labels, moves, ["generated"] * count).take(new)
            if number > 50 * counts[split] + 1000:
                raise ValueError(
                    f"{task} has fewer than {counts[split]:,} different mazes of this kind: ask for less."
                )

    return _test_first(stream, counts)


def _generated_sudokus(config: BuildConfig, task: SudokuTask, counts: dict[str, int]) -> dict[str, Iterator[Rows]]:
    from air_model.datasets_builders.canonical import canonical
    from air_model.datasets_builders.generate_sudoku import make_puzzles, random_grids, seeds_for

    difficulty = config.difficulty or ("benchmark" if task.height == 9 and task.box_height == 3 else "mixed")
    if difficulty == "benchmark" and not (task.height == 9 and task.box_height == 3):
        raise ValueError("Benchmark ratings exist for 9x9 Sudokus only: choose --difficulty mixed or minimal.")
    few = task.height <= 6  # so few grids that splits share them unless whole classes are held out
    test_classes = _held_out_classes(config, task) if few and config.hold_out == "grids" and "test" in counts else None
    seen: set[bytes] = set()
    grids_of_test: set[bytes] = set()

    def stream(split: str) -> Iterator[Rows]:
        made, number = 0, 0
        while made < counts[split]:
            count = min(5000, max(64, int((counts[split] - made) * (1.3 if test_classes is None else 6))))
            seeds = seeds_for(config.seed, STREAMS[split], number, count)
            grids = random_grids(task, seeds, config.num_proc)
            number += count
            classes = canonical(grids, task)
            keep = np.ones(count, bool)
            if test_classes is not None:
                keep = np.array([(c.tobytes() in test_classes) == (split == "test") for c in classes], bool)
            elif classes is not None and split == "test":
                grids_of_test.update(_digests(classes))
            elif classes is not None and config.hold_out == "grids":
                keep = np.array([d not in grids_of_test for d in _digests(classes)], bool)
            at = np.flatnonzero(keep)[: counts[split] - made + 64]
            if not len(at):
                continue
            bar = f"{split} Sudokus" if config.progress else None
            batch = make_puzzles(task, grids[at], seeds[at] ^ np.uint64(0x5DEECE66D), difficulty, config.num_proc, bar)
            forms = canonical(batch.grids, task, batch.puzzles)
            new = _unseen(batch.puzzles if forms is None else forms, seen)
            new &= np.cumsum(new) <= counts[split] - made
            made += int(new.sum())
            yield Rows(batch.puzzles, batch.grids, batch.ratings, ["generated"] * len(at)).take(new)
            if number > 400 * counts[split] + 100_000:
                raise ValueError(
                    f"{task} has fewer than {counts[split]:,} different puzzles of this kind: ask for less."
                )

    return _test_first(stream, counts)


def _held_out_classes(config: BuildConfig, task: SudokuTask) -> set[bytes]:
    """A fifth (at least one) of the solved grids up to symmetry: 4x4 has 2, 6x6 has 49."""
    from air_model.datasets_builders.canonical import canonical
    from air_model.datasets_builders.generate_sudoku import random_grids, seeds_for

    grids = random_grids(task, seeds_for(config.seed, STREAMS["grids"], 0, 4000), config.num_proc)
    classes = np.unique(canonical(grids, task), axis=0)
    chosen = np.random.default_rng([config.seed, STREAMS["grids"]]).permutation(len(classes))
    return {classes[i].tobytes() for i in chosen[: max(1, len(classes) // 5)]}


def _test_first(stream: Callable[[str], Iterator[Rows]], counts: dict[str, int]) -> dict[str, Iterator[Rows]]:
    """Streams in the order test, train: training leaves out what the test split holds."""
    return {split: stream(split) for split in ("test", "train") if split in counts}


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
    from air_model.datasets_builders.maze_kernels import label

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
        self.stats: dict[str, list] = {"rating": [], "given": [], "moves": []}

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
    files += [here.parent / f"{name}_air.py" for name in ("processing", "reading", "search")]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def content_hash(config: BuildConfig) -> str:
    """Hash of the options, the code and the source's bytes: equal hash, equal data set."""
    options = {k: v for k, v in asdict(config).items() if k not in ("num_proc", "progress", "source")}
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode() + code_hash().encode())
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
        meta = json.loads((output / META).read_text())
        if not force and meta.get("content_hash") == key and _complete(output, meta):
            return meta
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and was not written by build_dataset.py: name an empty or a new folder.")
    output.parent.mkdir(parents=True, exist_ok=True)
    for stale in output.parent.glob(f".{output.name}.part-*"):  # of a build that was killed
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.part-", dir=output.parent))
    try:
        meta = _write(config, work)
        meta["content_hash"] = key
        (work / META).write_text(json.dumps(meta, indent=2) + "\n")
        (work / "README.md").write_text(card(meta))
        work.chmod(0o755)
        old = None
        if output.exists():
            old = output.with_name(f".{output.name}.old-{os.getpid()}")
            output.rename(old)
        work.rename(output)
        if old is not None:
            shutil.rmtree(old)
    finally:
        shutil.rmtree(work, ignore_errors=True)
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
        writer, stats = _Writer(folder, split, task), Statistics(task)
        group = 0
        with tqdm(desc=f"{split} rows", unit=" rows", disable=not config.progress) as bar:
            for rows in stream:
                stats.add(rows)
                if split == "train":
                    for part, groups in expanded(rows, group, config, task):
                        writer.write(part, groups)
                        bar.update(len(part))
                else:
                    writer.write(rows, np.arange(group, group + len(rows), dtype=np.int32))
                    bar.update(len(rows))
                group += len(rows)
        if writer.count == 0 and not any(bad.values()):
            raise ValueError(f"The split {split!r} has no rows: nothing reaches the options given.")
        if writer.count:
            splits[split], statistics[split] = writer.finish(), stats.summary()
    if "test" in bad and len(set(source_files(config).values())) == 1:  # one file, read once per split
        bad["train"] = sorted({*bad["train"], *bad.pop("test")})
    faults = [(split, row) for split, rows in bad.items() for row in rows]
    if faults and not config.skip_bad:
        where = {split: str(path) for split, path in source_files(config).items()}
        errors = [BadRows(where.get(split, where["train"]), rows) for split, rows in bad.items() if rows]
        raise _merged(errors)
    order = sorted(splits, key=lambda name: (name != "train", name))
    repo = HUB[config.dataset] if config.source == "hub" else None
    return {
        "dataset": config.dataset,
        "task": task_to_meta(task),
        "default_config": config.config_name,
        "configs": {config.config_name: {"splits": {s: splits[s] for s in order}}},
        "statistics": {s: statistics[s] for s in order},
        "source": f"{repo[0]}@{config.revision or repo[1]}" if repo else _source_name(config),
        "options": {
            k: v for k, v in asdict(replace(config, source="")).items() if k not in ("source", "progress", "num_proc")
        },
        "seed": config.seed,
        "code_hash": code_hash(),
        "skipped_rows": {split: [list(row) for row in rows] for split, rows in bad.items() if rows},
    }


def _source_name(config: BuildConfig) -> str:
    return "generate" if config.source == "generate" else Path(config.source).name


def _merged(errors: list[BadRows]) -> BadRows:
    """One error that lists the bad rows of every file."""
    rows = sum(len(error.rows) for error in errors)
    out = BadRows(errors[0].where, errors[0].rows)
    body = [line for error in errors for line in str(error).splitlines()[1:]]
    out.args = (
        "\n".join(
            [f"{rows} bad row{'s' if rows > 1 else ''}; nothing was written. --skip-bad leaves them out.", *body]
        ),
    )
    out.rows = [row for error in errors for row in error.rows]
    return out


class Statistics:
    """Numbers of base puzzles for the card: ratings, clues or walls, path lengths; histograms, so memory is flat."""

    def __init__(self, task: GridTask):
        self.task = task
        self.counts: dict[str, dict[int, int]] = {"rating": {}, "clues" if task.name == "sudoku" else "walls": {}}
        if task.name == "maze":
            self.counts["moves"] = {}

    def add(self, rows: Rows) -> None:
        values = {"rating": rows.rating}
        if isinstance(self.task, MazeTask):
            values |= {"walls": (rows.inputs == 1).sum(-1), "moves": (rows.labels == self.task.PATH).sum(-1) + 1}
        else:
            values["clues"] = (rows.inputs != self.task.blank_token).sum(-1)
        for name, array in values.items():
            for value, count in zip(*np.unique(array, return_counts=True)):
                self.counts[name][int(value)] = self.counts[name].get(int(value), 0) + int(count)

    def summary(self) -> dict:
        """{name: {mean, min, median, max}}, and for Sudoku ratings the shares of the benchmark's buckets."""
        out = {}
        for name, counts in self.counts.items():
            if not counts:
                continue
            values = np.array(sorted(counts))
            weights = np.array([counts[v] for v in values])
            middle = np.searchsorted(np.cumsum(weights), weights.sum() / 2)
            out[name] = {
                "mean": round(float((values * weights).sum() / weights.sum()), 3),
                "min": int(values[0]),
                "median": int(values[middle]),
                "max": int(values[-1]),
            }
        if isinstance(self.task, SudokuTask) and self.counts["rating"]:
            total = sum(self.counts["rating"].values())
            bounds = [(0, 0), (1, 9), (10, 19), (20, 49), (50, 1 << 30)]
            out["rating_shares"] = {
                f"{low}" if low == high else f"{low}-{high}" if high < 1 << 30 else f"{low}+": round(
                    sum(c for v, c in self.counts["rating"].items() if low <= v <= high) / total, 4
                )
                for low, high in bounds
            }
        return out
