"""Builds either data set as a folder: parquet shards, a data card, and `air_dataset.json`.

Rows stream from the source to the shards in chunks, so memory does not grow with their number (except the few numbers
that a random choice of rows needs). Everything random follows from (seed, split, row), so the bytes do not depend on
the number of threads. The folder appears at once, by renaming, when all of it is right.
"""

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
from air_model.datasets_builders.generate_sudoku import (
    BENCHMARK_BUCKETS,
    make_puzzles,
    random_grids,
    seeds_for,
    usual_difficulty,
)
from air_model.datasets_builders.loading import (
    META,
    OF_TASK,
    UNRATED,
    BadRows,
    Rows,
    contradiction,
    hub_folder,
    parse_ratings,
    read_chunks,
    tables_in,
    task_of,
)
from air_model.datasets_builders.sudoku_solver import solve
from air_model.processing_air import GridTask, MazeTask, SudokuTask, make_task
from air_model.records import read_json, whole_folder, write_text

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
BATCH = 5000  # puzzles generated at once
SPLITS = ("train", "test", "validation", "valid", "val", "dev")
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
        for what, least in (("num_train", 1), ("num_test", 0), ("num_aug", 0), ("num_proc", 1), ("seed", 0)):
            value = getattr(self, what)
            if value is not None and value < least:
                raise ValueError(f"{what} is {value}: give a number of at least {least}.")
        maze, hold_out, rated = self.is_maze, self.hold_out, self.min_rating is not None
        of_sudokus = "Easier copies, boxes and difficulties belong to Sudokus; leave them out for mazes."
        of_sources = "--min-rating chooses among rows of a source; what is generated has --difficulty or --min-path."
        of_squares = f"A maze has 7 symmetric copies beside itself (3 in a rectangle), got num_aug={self.num_aug}."
        of_mazes = "A shortest path (--min-path) belongs to mazes; leave it out for Sudokus."
        refused = (
            (self.dataset not in TASKS, f"Unknown data set {self.dataset!r}. Known: {', '.join(TASKS)}."),
            (hold_out not in ("grids", "puzzles"), f"hold_out is 'grids' or 'puzzles', got {hold_out!r}."),
            (maze and (self.easier or self.box or self.difficulty), of_sudokus),
            (maze and self.num_aug > 7, of_squares),
            (rated and self.source == "generate", of_sources),
            (self.min_path is not None and not maze, of_mazes),
        )
        for holds, sentence in refused:
            if holds:
                raise ValueError(sentence)

    @property
    def is_maze(self) -> bool:
        return TASKS.get(self.dataset) == "maze"

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
        if self.source != "generate" and not self.grid and not self.box:
            return None
        return make_task(TASKS[self.dataset], *(self.grid or (None, None)), *(self.box or ()))

    def hub(self) -> tuple[str, str]:
        """Repository and revision of the published data set."""
        repo, revision = HUB[self.dataset]
        return repo, self.revision or revision


# ---- sources


def source_files(config: BuildConfig) -> dict[str, Path]:
    """The CSV of each split. A single CSV is the split train (part of it test, when num_test is given)."""
    path = Path(config.source)
    if config.source == "hub":
        repo, revision = config.hub()
        path = hub_folder(repo, None, revision)
    if path.is_file():
        return {"train": path}
    if not path.is_dir():
        raise FileNotFoundError(
            f"There is no file or folder {config.source!r}. --source is hub, generate, or the path of a CSV or folder."
        )
    tables: dict[bool, dict[str, Path]] = {True: {}, False: {}}  # CSVs, and other forms
    for file in tables_in(path):
        splits = tables[file.name.endswith((".csv", ".csv.gz"))]
        split = re.match(r"[A-Za-z]*", file.name)[0].lower()
        if split in splits:
            raise ValueError(f"{path} has two files for the split {split!r}: {splits[split].name} and {file.name}.")
        splits[split] = file
    # Beside CSVs, other forms are copies of them, or JSON that is no data, unless their name is that of another split.
    others = {split: file for split, file in tables[False].items() if not tables[True] or split in SPLITS}
    found = others | tables[True]
    if nameless := found.keys() & {"", "all"}:  # `datasets` knows no such split
        raise ValueError(f"{found[nameless.pop()]} names no split: call it train, test or the like.")
    if "train" not in found:
        raise FileNotFoundError(
            f"{path} has no train*.csv, .csv.gz, .jsonl, ...; it has:"
            f" {', '.join(p.name for p in found.values()) or 'none'}."
        )
    return found


def checked_rows(
    path: Path, task: GridTask, keep: np.ndarray | None, bad: list[tuple[int, str]], config: BuildConfig
) -> Iterator[Rows]:
    """Chunks of good rows of a table. Everything wrong with a row is found: letters, length, contradictions, the
    number of solutions of a Sudoku, the path of a maze; bad rows go to `bad` and not into the chunks."""
    for part in read_chunks(path, task, config.values, bad):
        reached = _reached(path, part.rating, config.min_rating)
        good = np.ones_like(reached) if keep is None else keep[part.first_row - 1 :][: len(reached)].copy()
        # Rows that are not used are read, but their solutions are not counted.
        rows = np.array([i for i in np.flatnonzero(good).tolist() if i not in part.faults], np.int64)
        wrong = rule_faults(task, part.inputs, part.labels, rows, config.num_proc)
        part.faults = part.contradictions(task) | wrong | part.faults
        bad += part.fault_rows()
        good[list(part.faults)] = False
        yield part.take(good & reached)


def _reached(path: Path, rating: np.ndarray, least: int | None) -> np.ndarray:
    """Which rows reach the least rating, bool (N,)."""
    if least is None:
        return np.ones(len(rating), bool)
    if (rating == UNRATED).all():
        raise ValueError(f"{path} has no ratings, so --min-rating cannot choose by them.")
    return (rating != UNRATED) & (rating >= least)


def rule_faults(
    task: GridTask, inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray, threads: int | None
) -> dict[int, str]:
    """Those of some rows that break the rules of the task, {index: reason}."""
    if isinstance(task, MazeTask):
        return _maze_faults(task, inputs, labels, rows)
    return _sudoku_faults(task, inputs, labels, rows, threads)


def _sudoku_faults(
    task: SudokuTask, inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray, threads: int | None
) -> dict[int, str]:
    counts, _, answers = solve(inputs[rows], task, threads=threads)
    wrong = (counts != 1) | (answers != labels[rows]).any(-1)
    faults = {}
    for i, count, solution in zip(rows[wrong].tolist(), counts[wrong], answers[wrong]):
        if count != 1:
            several = "the puzzle has two or more solutions" if count else "the puzzle has no solution"
            faults[i] = _refusal(task, inputs[i]) or several
        else:
            cell = np.flatnonzero(solution != labels[i])[0]
            right, found = (task.alphabet[tokens[cell]] for tokens in (solution, labels[i]))
            departs = f"the answer is not the solution: {task.cell(cell)} is {right}, not {found}"
            faults[i] = contradiction(task, inputs[i], labels[i]) or departs
    return faults


def _maze_faults(task: MazeTask, inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> dict[int, str]:
    right = task.verdicts(inputs[rows], labels[rows]).valid  # of well-formed mazes, so:
    for token, count in ((task.START, 1), (task.GOAL, 1), (task.PATH, 0)):
        right &= (inputs[rows] == token).sum(-1) == count
    return {
        i: _refusal(task, inputs[i])
        or contradiction(task, inputs[i], labels[i])
        or "the answer is not a shortest path: " + task.verdict(inputs[i], labels[i]).message
        for i in rows[~right].tolist()
    }


def _refusal(task: GridTask, puzzle: np.ndarray) -> str | None:
    """What is wrong with a puzzle itself."""
    try:
        task.check_solvable(puzzle)
    except ValueError as error:
        return str(error)
    return None


def _eligible(path: Path, least: int | None) -> np.ndarray:
    """bool per row of a file: does it reach the rating?"""
    parts = [_reached(path, parse_ratings(ratings, {}), least) for _, _, ratings, _, _ in read_rows(path, [])]
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
    """Task and, per split, the stream of checked rows; `bad` collects the others, by the split of their file."""
    files = source_files(config)
    task = config.task() or task_of(files["train"])
    if task.name != TASKS[config.dataset]:
        raise ValueError(f"{files['train']} holds {task}, but {config.dataset} needs {TASKS[config.dataset]} puzzles.")
    out: dict[str, Iterator[Rows]] = {}
    for split, path in files.items():
        wanted = {"train": config.num_train, "test": config.num_test}.get(split)
        if wanted == 0 and len(files) > 1:
            continue
        bad[split] = []
        cut = config.num_test if len(files) == 1 else None  # test rows out of the only file
        keep = _eligible(path, config.min_rating) if cut or wanted is not None else None
        if cut:
            test = _choose(keep, cut, [config.seed, STREAMS["test"]], str(path))
            out["test"] = checked_rows(path, task, test, bad[split], config)
            keep &= ~test
        if wanted is not None:
            keep = _choose(keep, wanted, [config.seed, STREAMS.get(split, 3)], str(path))
        out[split] = checked_rows(path, task, keep, bad[split], config)
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
    make = _maze_maker(config, task) if isinstance(task, MazeTask) else _sudoku_maker(config, task, "test" in counts)
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


def _maze_maker(config: BuildConfig, task: MazeTask) -> Maker:
    def make(split: str, number: int, wanted: int) -> tuple[Rows, np.ndarray, int]:
        seeds = seeds_for(config.seed, STREAMS[split], number, min(BATCH, wanted))
        bar = f"{split} mazes" if config.progress else None
        mazes, labels = make_mazes(task, seeds, config.min_path, config.num_proc, bar)
        moves = ((labels == task.PATH).sum(-1) + 1).astype(np.int32)
        return Rows(mazes, labels, moves, ["generated"] * len(seeds)), canonical_mazes(mazes, task), len(seeds)

    return make


def _sudoku_maker(config: BuildConfig, task: SudokuTask, has_test: bool) -> Maker:
    usual = usual_difficulty(task.height, task.box_height)
    difficulty = config.difficulty or usual
    if difficulty == "benchmark" and usual != "benchmark":
        raise ValueError("Benchmark ratings exist for 9x9 Sudokus only: choose --difficulty mixed or minimal.")
    hold_out = has_test and config.hold_out == "grids"
    # From 10x10 on (5e23 grids up to symmetry) no two random ones are copies, and to compare takes far longer than to
    # make them.
    forms_of = canonical if task.height < 10 else (lambda *_: None)
    few = hold_out and task.height <= 6  # so few grids that splits share them unless whole classes are held out
    # Digests of the solved grids up to symmetry that belong to the test split: chosen here, or as they are made.
    of_test = _held_out_classes(config, task) if few else set()

    def make(split: str, number: int, wanted: int) -> tuple[Rows, np.ndarray, int]:
        seeds = seeds_for(config.seed, STREAMS[split], number, min(BATCH, max(64, int(wanted * (6 if few else 1.3)))))
        grids = random_grids(task, seeds, config.num_proc)
        kept = np.ones(len(grids), bool)
        classes = forms_of(grids, task) if hold_out else None
        if classes is not None:
            digests = _digests(classes)
            if split == "test" and not few:
                of_test.update(digests)
            kept = np.array([(digest in of_test) == (split == "test") for digest in digests])
        at = np.flatnonzero(kept)[: wanted + 64]
        bar = f"{split} Sudokus" if config.progress else None
        made = make_puzzles(task, grids[at], seeds[at] ^ np.uint64(0x5DEECE66D), difficulty, config.num_proc, bar)
        rows = Rows(*made, ["generated"] * len(at))
        forms = forms_of(rows.labels, task, rows.inputs)
        return rows, rows.inputs if forms is None else forms, len(seeds)

    return make


def _held_out_classes(config: BuildConfig, task: SudokuTask) -> set[bytes]:
    """A fifth (at least one) of the solved grids up to symmetry: 4x4 has 2, 6x6 has 49."""
    grids = random_grids(task, seeds_for(config.seed, STREAMS["grids"], 0, 4000), config.num_proc)
    classes = np.unique(canonical(grids, task), axis=0)
    chosen = np.random.default_rng([config.seed, STREAMS["grids"]]).permutation(len(classes))
    return set(_digests(classes[chosen[: max(1, len(classes) // 5)]]))


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
        part = rows.take(slice(start, start + per_step))
        at = np.repeat(np.arange(len(part)), copies)
        inputs, labels = part.inputs[at], part.labels[at]
        rng = np.random.default_rng([config.seed, 7, first_group + start])
        turned = np.tile(np.arange(copies), len(part)) > 0
        if config.num_aug and isinstance(task, MazeTask):
            if copies > len(task.dihedral):
                raise ValueError(f"{task} has {len(task.dihedral) - 1} symmetric copies: lower num_aug.")
            which = np.tile(np.arange(copies) % len(task.dihedral), len(part))
            inputs = np.take_along_axis(inputs, task.dihedral[which], axis=1)
            labels[turned] = task.label(inputs[turned])
        elif config.num_aug:
            symmetries = task.random_symmetries(rng, int(turned.sum()))
            inputs[turned], labels[turned] = symmetries.apply(inputs[turned]), symmetries.apply(labels[turned])
        if config.easier:
            easy = easier(inputs, labels, task, rng)
            at = np.repeat(at, 2)
            inputs = np.stack([inputs, easy], axis=1).reshape(-1, task.seq_len)
            labels = np.repeat(labels, 2, axis=0)
        yield Rows(inputs, labels, part.rating[at], part.source[at]), (first_group + start + at).astype(np.int32)


def easier(inputs: np.ndarray, labels: np.ndarray, task: GridTask, rng: np.random.Generator) -> np.ndarray:
    """The puzzles with k random blanks filled from the answer, k uniform in 1 ... blanks - 1 (arXiv:2601.10679)."""
    blank = inputs == task.blank_token
    k = 1 + (rng.random(len(inputs)) * np.maximum(blank.sum(-1) - 1, 0)).astype(int)
    order = np.where(blank, rng.random(inputs.shape), 2.0).argsort(-1).argsort(-1)  # rank among the blanks
    # Of a puzzle with one blank nothing may be filled.
    return np.where(blank & (order < np.minimum(k, blank.sum(-1) - 1)[:, None]), labels, inputs)


# ---- writing


class _Writer:
    """Parquet shards of one split, written in chunks; counts and a fingerprint of the content."""

    def __init__(self, folder: Path, split: str, task: GridTask):
        self.folder, self.split, self.task = folder, split, task
        self.schema = features(task.seq_len).arrow_schema
        self.count = self.groups = self.in_shard = 0
        self.shards: list[pq.ParquetWriter] = []
        self.digest = hashlib.sha256(repr(task._key()).encode())

    def write(self, rows: Rows, groups: np.ndarray) -> None:
        if not len(rows):
            return
        if not self.shards or self.in_shard >= ROWS_PER_SHARD:
            for full in self.shards:
                full.close()
            self.in_shard = 0
            part = self.folder / f"{self.split}-{len(self.shards):05d}.part"
            few = ["rating", "source", "puzzle_id", "group"]  # columns of few values
            options = {"compression": "zstd", "compression_level": 1, "use_dictionary": few, "store_schema": True}
            self.shards.append(pq.ParquetWriter(part, self.schema, **options))
        ids = np.zeros(len(rows), np.int32)  # one puzzle id for all (SPEC): 0
        grids = [np.ascontiguousarray(part).reshape(-1) for part in (rows.inputs, rows.labels)]
        columns = [pa.FixedSizeListArray.from_arrays(pa.array(grid), self.task.seq_len) for grid in grids]
        columns += map(pa.array, (rows.rating, rows.source, ids, groups))
        self.shards[-1].write_table(pa.table(columns, schema=self.schema))
        for part in (*grids, rows.rating, groups):
            self.digest.update(np.ascontiguousarray(part).data)
        self.count += len(rows)
        self.in_shard += len(rows)
        self.groups = int(groups.max()) + 1

    def finish(self) -> dict:
        size, total = 0, len(self.shards)
        for i, shard in enumerate(self.shards):
            shard.close()
            name = self.folder / f"{self.split}-{i:05d}"
            file = name.with_suffix(".part").rename(f"{name}-of-{total:05d}.parquet")
            size += file.stat().st_size
        fingerprint = self.digest.hexdigest()[:16]
        return {"rows": self.count, "puzzles": self.groups, "shards": total, "bytes": size, "fingerprint": fingerprint}


def code_hash() -> str:
    """Hash of the code that decides the bytes."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), here / "data_card.md"]
    files += [here.parent / f"{name}_air.py" for name in ("processing", "reading", "search")]
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
        meta = _write(config, work) | {"content_hash": key}
        (work / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        write_text(work / "README.md", card(meta))
    return meta


def _complete(output: Path, meta: dict) -> bool:
    return all(
        len(list((output / name).glob(f"{split}-*.parquet"))) == info["shards"]
        for name, table in meta["configs"].items()
        for split, info in table["splits"].items()
    )


def _write(config: BuildConfig, work: Path) -> dict:
    bad: dict[str, list[tuple[int, str]]] = {}
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
    skipped = {split: sorted(set(rows)) for split, rows in bad.items() if rows}
    if skipped and not config.skip_bad:
        files = source_files(config)
        where = {str(files[split]): rows for split, rows in skipped.items()}
        raise BadRows(where, "; nothing was written. --skip-bad leaves them out.")
    if "train" not in splits:
        raise ValueError(
            "No good row is left to train on; nothing was written. Without --skip-bad all faults are listed."
        )
    order = sorted(splits, key=lambda name: (name != "train", name))
    source = "@".join(config.hub()) if config.source == "hub" else Path(config.source).name
    return {
        "dataset": config.dataset,
        "task": {name: getattr(task, name) for name in OF_TASK},
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
    out, shares = {}, {}
    for name in parts[0]:
        values = np.concatenate([part[name] for part in parts])
        if name == "rating":  # of the rows that have one
            values = values[values != UNRATED]
        if not len(values):
            continue
        least, median, most = np.quantile(values, [0, 0.5, 1], method="inverted_cdf").tolist()
        out[name] = {"mean": round(float(values.mean()), 3), "min": least, "median": median, "max": most}
        if name == "rating" and isinstance(task, SudokuTask):
            for low, high, _ in BENCHMARK_BUCKETS:
                bucket = f"{low}" if low == high else f"{low}-{high}" if high < 1 << 30 else f"{low}+"
                shares[bucket] = round(float(((low <= values) & (values <= high)).mean()), 4)
    return out | ({"rating_shares": shares} if shares else {})
