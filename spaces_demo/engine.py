"""Checkpoints, jobs and the stream of updates behind the page; nothing here knows about Gradio.

A `Job` says what to run. `run(engine, job)` yields lists of plain dictionaries, which come in this order:

    {"t": "attempt", "view": 0}                                  once per attempt
    {"t": "f", "k": 0, "lv": "l", "h": "53..", "l": "5..."}      once per update: both states as text
    {"t": "q", "step": 1, "p": 0.02}                             once per ACT step: the wish to halt, as probability
    {"t": "end", "solution": ..., "solved": ..., ...}            once

A job with `nodes` thinks on instead: it searches by pins, and has in place of the first three

    {"t": "node", "n": 3, "parent": 1, "act_steps": 24, "answer": "53..", "pins": [[2, "4"]], "wrong": 6} once per node

All computing is `solve_puzzles` on `AirModel.solve`; the updates come out through its hook.
"""

import contextlib
import io
import json
import math
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import air_model
from air_model.analysis.attention import attention_rows
from air_model.analysis.common import INJECTION, variant_name
from air_model.analysis.interventions import Intervention
from air_model.answers_air import Answers, Node, keep_givens, pins_of, symmetric_views
from air_model.attempts_air import NODES, solve_puzzles
from air_model.configuration_air import AirConfig
from air_model.datasets_builders.files import puzzles_in
from air_model.modeling_air import AirModel
from air_model.pipeline_air import MOST_SIDE, describe, forecast, in_size, load_model, readings, takes_size
from air_model.processing_air import GridTask, MazeTask, Symmetry, make_task, task_from_config
from air_model.reading_air import as_text
from air_model.records import read_evaluations, setting
from air_model.solving_air import AirCarry, AirUpdate, Hook
from air_model.spaces_demo.examples import levels, usual_level

MAX_TEXT = 20_000  # characters of a pasted puzzle
MAX_STEPS = 64  # ACT steps of one job
MAX_ATTEMPTS = 16
SLICE = 0.1  # seconds of work before others have their turn
THINK_SECONDS = 50  # of computing for one search; a turn on ZeroGPU has 60
CARRY_BYTES = 24 << 20  # states kept for questions about attention
FREEZE = ("none", "z_h", "z_l")
KINDS = {"sudoku": "Sudoku", "maze": "Maze"}
VACANT_SIZES = {"sudoku": 9, "maze": 12}
SIZES = (12, 20, 30, 40, 60, MOST_SIDE)  # of mazes to choose from; 30 is the benchmark's


@dataclass
class Checkpoint:
    """One model that the page offers. `source` is a folder or a Hub id; None is an untrained stand-in.

    A vacant one stands for a kind of puzzle that no model here solves: such puzzles can be drawn, and nothing else.
    """

    key: str
    source: str | None
    config: AirConfig
    accuracy: float | None = None  # exact in a single pass, by the evaluation file that lies beside it
    searched: float | None = None  # the same of a search by pins
    by_rating: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of both files: "single", "searched"
    model: AirModel | None = field(default=None, repr=False)
    vacant: bool = False
    base: str | None = None  # of a model that computes grids of another size than its own: the key of the one it is

    @property
    def task(self) -> GridTask:
        return task_from_config(self.config)

    @property
    def trained(self) -> bool:
        return self.source is not None

    @property
    def missing(self) -> str:
        """What a visitor is told who brings a puzzle that no model here solves."""
        if not self.vacant:
            return ""
        kind = "maze" if self.task.name == "maze" else "Sudoku"
        return (
            f"No {kind} model is installed here, so a {kind} can be drawn but not solved. "
            "Name one with AIR_MODEL (a folder or a Hub id) and start the page again."
        )


@dataclass(frozen=True)
class Job:
    """What one visitor asks of a model.

    puzzle: text; checkpoint: its key; halt: "q" or "max"; max_act_steps: 0 = the model's own number; freeze: "none",
    "z_h" or "z_l", held from the ACT step `freeze_from` (counted from 0) on; attempts: symmetric views; nodes: of
    a search by pins, 0 = none.
    """

    puzzle: str
    checkpoint: str
    halt: str = "q"
    max_act_steps: int = 0
    freeze: str = "none"
    freeze_from: int = 0
    attempts: int = 1
    nodes: int = 0

    def states_key(self) -> tuple:
        """Jobs that agree in this walk through the same states, as far as they go."""
        return self.checkpoint, self.puzzle, self.freeze, self.freeze_from if self.freeze != "none" else 0


class Stopped(Exception):
    """The visitor left: the model stops at the next update."""


class Carries:
    """States at the start of ACT steps, kept within a fixed number of bytes; the oldest go first."""

    def __init__(self, limit: int = CARRY_BYTES) -> None:
        self.limit, self.bytes = limit, 0
        self.kept: OrderedDict[tuple, tuple[Tensor, Tensor]] = OrderedDict()
        self.lock = threading.Lock()

    def put(self, key: tuple, step: int, z_h: Tensor, z_l: Tensor) -> None:
        size = z_h.nbytes + z_l.nbytes
        with self.lock:
            if (key, step) in self.kept or size > self.limit // 4:
                return
            self.kept[key, step] = (z_h.clone(), z_l.clone())
            self.bytes += size
            while self.bytes > self.limit:
                _, (a, b) = self.kept.popitem(last=False)
                self.bytes -= a.nbytes + b.nbytes

    def get(self, key: tuple, step: int) -> tuple[Tensor, Tensor] | None:
        with self.lock:
            found = self.kept.get((key, step))
            if found is not None:
                self.kept.move_to_end((key, step))
            return found


class Engine:
    """The checkpoints of this page, loaded when first used, in float32 on a CPU."""

    def __init__(self, checkpoints: list[Checkpoint]) -> None:
        assert checkpoints, "an engine without checkpoints"
        self.checkpoints = {c.key: c for c in checkpoints}
        self.default = checkpoints[0].key
        present = {c.task.name for c in checkpoints}
        self.vacant = {f"no-{kind}-model": _vacant(kind) for kind in KINDS if kind not in present}
        self.carries = Carries()
        self.lock = threading.Lock()
        self.resized: OrderedDict[str, Checkpoint] = OrderedDict()
        self.rate: Callable[[np.ndarray], int] | None = None

    def checkpoint(self, key: str) -> Checkpoint:
        if found := re.fullmatch(r"(.+)@(\d{1,3})x(\d{1,3})", key):
            base, *shape = found.groups()
            return self.in_size(self.checkpoint(base), make_task("maze", *map(int, shape)))
        if key not in self.checkpoints:
            raise ValueError(f"There is no checkpoint {key[:80]!r} here. Known: {', '.join(self.checkpoints)}.")
        return self.checkpoints[key]

    def in_size(self, checkpoint: Checkpoint, task: GridTask) -> Checkpoint:
        """The same model for mazes of another size.

        Raises:
            ValueError: it cannot compute them.
        """
        if task == checkpoint.task:
            return checkpoint
        if not takes_size(checkpoint.config, task) or min(task.height, task.width) < 4:
            raise ValueError(f"{checkpoint.key} takes no {title(task)} here; mazes have 4 to {MOST_SIDE} rows.")
        key = f"{checkpoint.key}@{task.height}x{task.width}"
        with self.lock:
            if key not in self.resized:
                fields = {k: v for k, v in checkpoint.config.to_dict().items() if k != "transformers_version"}
                config = AirConfig(**fields | {"grid_height": task.height, "grid_width": task.width})
                self.resized[key] = Checkpoint(key, checkpoint.source, config, base=checkpoint.key)
                while len(self.resized) > 3:  # their masks are large
                    self.resized.popitem(last=False)
            return self.resized[key]

    def sizes(self, checkpoint: Checkpoint) -> list[int]:
        """Sides of the mazes that the page offers for a model, its own first."""
        if checkpoint.task.name != "maze":
            return []
        own = checkpoint.task.height
        return [own, *(n for n in SIZES if n != own and takes_size(checkpoint.config, make_task("maze", n)))]

    def model(self, key: str) -> AirModel:
        """The model of a checkpoint, loaded once."""
        checkpoint = self.checkpoint(key)
        if checkpoint.base and checkpoint.model is None:
            checkpoint.model = in_size(self.model(checkpoint.base), checkpoint.task)
        with self.lock:
            if checkpoint.model is None:
                if checkpoint.source is None:
                    torch.manual_seed(0)
                    checkpoint.model = AirModel(checkpoint.config).eval()
                else:
                    checkpoint.model = load_model(checkpoint.source)
        return checkpoint.model

    def place(self, key: str) -> Checkpoint:
        """A checkpoint, or the vacant place of a kind of puzzle that has none."""
        return self.vacant.get(key) or self.checkpoint(key)

    def read(self, text: Any, prefer: str | None = None, vacant: bool = False) -> tuple[Checkpoint, np.ndarray]:
        """A visitor's text -> the checkpoint that fits it (the preferred one if it does) and the tokens.

        Raises:
            ValueError: a sentence about what is wrong, where; also for a puzzle that only a vacant place fits, unless
                `vacant` asks for those too.
        """
        if not isinstance(text, str):
            raise ValueError(f"A puzzle is text, got {type(text).__name__}.")
        if len(text) > MAX_TEXT:
            raise ValueError(f"That is {len(text):,} characters; this page reads puzzles of up to {MAX_TEXT:,}.")
        if not text.strip() and len(text) not in {c.config.seq_len for c in self.checkpoints.values()}:
            raise ValueError("There is no puzzle in an empty text. Type or paste one, or ask for a new puzzle.")
        known = sorted(self.checkpoints.values(), key=lambda c: c.key != (prefer or self.default))
        order = [*known, *self.vacant.values()]
        sizes = ", ".join(dict.fromkeys(title(c.task) for c in known))
        try:
            found = readings([c.task for c in order], text)
        except ValueError as error:
            more = f" This page solves {sizes}." if "," in sizes else ""
            raise ValueError(f"{error}{more}") from None
        for task, tokens in found:
            for checkpoint in order:
                if task == checkpoint.task or not checkpoint.vacant and takes_size(checkpoint.config, task):
                    task.check_solvable(tokens)
                    if checkpoint.vacant and not vacant:
                        raise ValueError(checkpoint.missing)
                    return self.in_size(checkpoint, task), tokens
        largest = make_task("maze", MOST_SIDE)
        more = (
            f", and mazes of other sizes to {MOST_SIDE}×{MOST_SIDE}"
            if any(takes_size(c.config, largest) for c in known)
            else ""
        )
        raise ValueError(f"This is a {title(found[0][0])}; this page solves {sizes}{more}.")

    def read_loosely(self, text: Any, prefer: str | None = None) -> tuple[Checkpoint, np.ndarray, str]:
        """As `read` for drawing; of a file of several puzzles (a CSV or JSON too), the first that fits.

        The note says what was done.

        Raises:
            ValueError: as `read`.
        """
        try:
            checkpoint, tokens = self.read(text, prefer, vacant=True)
            return checkpoint, tokens, checkpoint.missing
        except ValueError as error:
            for number, puzzle in enumerate(self._several(text), start=1):
                with contextlib.suppress(ValueError):
                    found = self.read(puzzle, prefer)
                    return *found, f"This is puzzle {number} of the text; the rest was left out."
            raise error

    def _several(self, text: Any) -> list[str]:
        """The puzzles of a text that is not one puzzle by itself."""
        if not isinstance(text, str) or len(text) > MAX_TEXT:
            return []
        tasks = [checkpoint.task for checkpoint in self.checkpoints.values()]
        try:
            return [str(as_text(puzzle)) for puzzle in puzzles_in(io.BytesIO(text.encode()), "The text", tasks)]
        except ValueError:
            return []

    def job(self, text: Any, settings: dict[str, Any] | None = None) -> Job:
        """Validate a visitor's text and settings (keys: checkpoint, halt, steps, freeze, from, attempts, nodes)."""
        if settings is not None and not isinstance(settings, dict):
            raise ValueError(f"settings are a dictionary, got {type(settings).__name__}.")
        settings = dict(settings or {})
        known = {"checkpoint", "halt", "steps", "freeze", "from", "attempts", "nodes"}
        if unknown := sorted(str(k)[:40] for k in set(settings) - known):
            raise ValueError(f"Unknown settings {unknown}. Known: {', '.join(sorted(known))}.")
        prefer = settings.get("checkpoint") or None
        if prefer is not None:
            self.checkpoint(str(prefer))
        checkpoint, tokens = self.read(text, prefer)
        job = Job(
            puzzle=checkpoint.task.decode(tokens),
            checkpoint=checkpoint.key,
            halt=_one_of("halt", settings.get("halt", "q"), ("q", "max")),
            max_act_steps=_whole("steps", settings.get("steps", 0), 0, MAX_STEPS),
            freeze=_one_of("freeze", settings.get("freeze", "none"), FREEZE),
            freeze_from=_whole("from", settings.get("from", 0), 0, MAX_STEPS),
            attempts=_whole("attempts", settings.get("attempts", 1), 1, MAX_ATTEMPTS),
            nodes=_whole("nodes", settings.get("nodes", 0), 0, NODES),
        )
        if job.nodes and checkpoint.task.name != "sudoku":
            raise ValueError("Thinking on fills in digits, so it is for Sudokus; a maze takes more attempts.")
        if job.nodes and (job.freeze != "none" or job.attempts > 1):
            raise ValueError("Thinking on has nodes in place of attempts, and freezes nothing: leave those out.")
        return job

    def describe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the page must know about a checkpoint and its task."""
        config, task = checkpoint.config, checkpoint.task
        sudoku = task.name == "sudoku"
        return {
            **{
                name: getattr(checkpoint, name) for name in ("key", "base", "trained", "vacant", "missing", "accuracy")
            },
            **{name: getattr(config, name) for name in ("l_injection", "h_injection", "schedule")},
            "title": title(task),
            "variant": rule_name(config),
            "hub": checkpoint.source if checkpoint.source and not Path(checkpoint.source).exists() else None,
            "card": _card(checkpoint),
            "act_steps": config.halt_max_steps,
            "shared": config.shared_block,
            "input": config.input_operator,
            "twin": self.twin(checkpoint),
            "sizes": self.sizes(self.checkpoints.get(checkpoint.base or "", checkpoint)),
            "forecast": forecast(config) if checkpoint.base else "",
            "task": {
                "kind": task.name,
                "name": KINDS.get(task.name, "Grid"),
                "title": title(task),
                "height": task.height,
                "width": task.width,
                "box": [task.box_height, task.box_width] if sudoku else None,
                "alphabet": task.alphabet,
                "blank": task.alphabet[task.blank_token],
                # Decoded like this, a state holds the cell back: blank in a Sudoku, PAD in a maze.
                "held": task.alphabet[:2] if sudoku else task.alphabet[0],
                "units": task.units.tolist() if sudoku else None,
                "levels": levels(task),
                "level": usual_level(task),
            },
        }

    def learn_to_rate(self) -> None:
        """Have the solver of the data sets at hand, which rates a Sudoku; compiling it takes a while, so elsewhere."""
        rated = [c.task for c in self.checkpoints.values() if c.by_rating and c.config.seq_len == 81]
        if not rated:
            return

        def compile_solver() -> None:
            from air_model.datasets_builders.sudoku_solver import solve

            def rate(tokens: np.ndarray) -> int:
                return int(solve(tokens[None], rated[0])[1][0])

            rate(np.full(81, rated[0].blank_token, np.uint8))
            self.rate = rate

        threading.Thread(target=compile_solver, name="air-rate", daemon=True).start()

    def odds(self, checkpoint: Checkpoint, puzzle: np.ndarray) -> str:
        """One sentence on how often this model succeeds at a puzzle's difficulty, by its own evaluation files."""
        if checkpoint.accuracy is None:
            size = " at this size" if checkpoint.base else ""
            return f"How often this model is right{size} was not measured."
        thought = "" if checkpoint.searched is None else f", and {100 * checkpoint.searched:.4g} % when it thinks on"
        share = f"{100 * checkpoint.accuracy:.4g} % of its evaluation puzzles"
        everywhere = f"this model solves {share} in a single pass{thought}"
        if self.rate is None or len(puzzle) != 81 or not checkpoint.by_rating.get("single"):
            return f"Over all difficulties, {everywhere}."
        rating = self.rate(puzzle)
        rows = {name: _row_of(rows, rating) for name, rows in checkpoint.by_rating.items()}
        single, searched = rows["single"], rows.get("searched")
        if single is None:
            return f"Over all difficulties, {everywhere}."
        also = f" and {_solved(searched)} when it thinks on" if searched else ""
        guesses = {"0": "no guess", "1": "1 guess"}.get(single["rating"], f"{single['rating']} guesses")
        return (
            f"A solver needs {rating or 'no'} guess{'es' * (rating > 1)} for this puzzle. Of the puzzles that take "
            f"{guesses}, this model solved {_solved(single)} in a single pass{also}."
        )

    def twin(self, checkpoint: Checkpoint) -> str | None:
        """The key of the checkpoint that differs in one thing: whether the puzzle enters the H-update as well."""
        rule = _without_injection(checkpoint.config)
        for other in self.checkpoints.values():
            apart = bool(other.config.h_injection) != bool(checkpoint.config.h_injection)
            if apart and checkpoint.config.l_injection and _without_injection(other.config) == rule:
                return other.key
        return None

    def catalog(self) -> dict[str, Any]:
        """What the page must know about its checkpoints and tasks."""
        return {
            "default": self.default,
            "checkpoints": [self.describe(c) for c in self.checkpoints.values()],
            "vacant": [self.describe(c) for c in self.vacant.values()],
            "measured": json.loads((Path(__file__).parent / "static" / "findings.json").read_text()),
            "limits": {"text": MAX_TEXT, "steps": MAX_STEPS, "attempts": MAX_ATTEMPTS, "nodes": NODES},
            "version": air_model.__version__,
        }


def _without_injection(config: AirConfig) -> dict[str, Any]:
    """What a config computes, how often it adds the puzzle aside."""
    aside = "l_injection h_injection dtype transformers_version auto_map custom_pipelines code_version architectures"
    return {name: value for name, value in config.to_dict().items() if name not in aside.split()}


def _row_of(rows: list[dict[str, Any]], rating: int) -> dict[str, Any] | None:
    """The row of an evaluation by rating ("0", "1-9", "50+") that a rating falls into."""
    for row in rows:
        low, _, high = row["rating"].rstrip("+").partition("-")
        if int(low) <= rating <= (int(high) if high else math.inf if row["rating"].endswith("+") else int(low)):
            return row
    return None


def _solved(row: dict[str, Any]) -> str:
    return f"{round(row['exact_accuracy'] * row['n']):,} of {row['n']:,}"


def _vacant(kind: str) -> Checkpoint:
    config = AirConfig(task=kind, grid_height=VACANT_SIZES[kind])
    return Checkpoint(f"no-{kind}-model", None, config, vacant=True)


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {str(value)[:40]!r}.")
    return value


def _whole(name: str, value: Any, low: int, high: int) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = low - 1
    if not low <= number <= high or isinstance(value, float) and value != number:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {str(value)[:40]!r}.")
    return number


def title(task: GridTask) -> str:
    """'Sudoku 9×9': how the page calls a task."""
    return f"{KINDS.get(task.name, 'Grid')} {task.height}×{task.width}"


def _card(checkpoint: Checkpoint) -> str:
    """Text of the model card in a checkpoint's folder, without its front matter; empty where there is none."""
    path = Path(checkpoint.source or "", "README.md")
    if not checkpoint.source or not path.is_file():
        return ""
    text = path.read_text(errors="replace")[:MAX_TEXT]
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S).strip()


def rule_name(config: AirConfig) -> str:
    """The row of VARIANTS that a checkpoint follows; sizes, positions and how gradients ran aside."""
    return config.variant or variant_name(config, INJECTION) or "own rule"


# ---- finding checkpoints --------------------------------------------------------------------------------------------


def find_checkpoints(sources: str | None = None) -> list[Checkpoint]:
    """Those that AIR_MODEL names (Hub ids or folders, separated by commas), else the shipped ones, best first.

    Raises:
        FileNotFoundError, ValueError: a source that cannot be read; the sentence says which.
    """
    names = [name.strip() for name in (sources or "").split(",") if name.strip()]
    if names:
        return _with_unique_keys([_named(name) for name in names])
    folders = [Path(air_model.__file__).parent / "checkpoints", Path(__file__).parent / "checkpoints"]
    found = [_named(str(file.parent)) for folder in folders for file in sorted(folder.glob("*/config.json"))]
    if not found:
        config = AirConfig(task="sudoku", grid_height=6, hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
        return [Checkpoint("untrained-6x6", None, config)]
    # What a visitor meets: a puzzle of real size if a model solves most of them, then the best answers, then the size.
    return _with_unique_keys(sorted(found, key=_first_met))


def _first_met(checkpoint: Checkpoint) -> tuple:
    accuracy, config = checkpoint.accuracy or 0.0, checkpoint.config
    is_real = config.seq_len >= {"sudoku": 81, "maze": 900}.get(config.task, math.inf)
    return (not (is_real and accuracy >= 0.5), -round(accuracy, 1), -config.seq_len)


def _named(name: str) -> Checkpoint:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{name} holds no config.json: name a folder that save_pretrained wrote.")
        config = AirConfig.from_pretrained(folder)
        return Checkpoint(folder.resolve().name, str(folder), config, **_measured(folder, config))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name} is neither a folder nor a Hub id (USER/NAME): check AIR_MODEL.")
    try:
        config = AirConfig.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(f"{name} could not be loaded from the Hub: {str(error).splitlines()[0]}") from None
    return Checkpoint(name.split("/")[1], name, config)


def _with_unique_keys(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    seen: dict[str, int] = {}
    for checkpoint in checkpoints:
        seen[checkpoint.key] = seen.get(checkpoint.key, 0) + 1
        if seen[checkpoint.key] > 1:
            checkpoint.key += f"-{seen[checkpoint.key]}"
    return checkpoints


def _measured(folder: Path, config: AirConfig) -> dict[str, Any]:
    """What a single pass and a search by pins reach, by scripts/evaluate.py's files in the folder."""
    found: dict[str, list[dict[str, Any]]] = {"single": [], "searched": []}
    with contextlib.suppress(ValueError, OSError):  # a damaged file beside a model is no reason to show none
        for one in read_evaluations(folder).values():
            steps, attempts = setting(one, "max_act_steps"), setting(one, "attempts") or 1
            if attempts == 1 and steps in (None, config.halt_max_steps):
                found["single"].append(one)
            elif setting(one, "retry") == "pins":
                found["searched"].append(one)
    best = {name: max(files, key=lambda one: one["exact_accuracy"], default={}) for name, files in found.items()}
    return {
        "accuracy": best["single"].get("exact_accuracy"),
        "searched": best["searched"].get("exact_accuracy"),
        "by_rating": {name: one["by_rating"] for name, one in best.items() if "by_rating" in one},
    }


# ---- running --------------------------------------------------------------------------------------------------------


def run(
    engine: Engine,
    job: Job,
    frames: bool = True,
    stop: threading.Event | None = None,
    go: threading.Semaphore | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Run a job and yield its events as they happen; the model works in a thread of its own meanwhile.

    Each list holds what happened since the last one, so a slow reader gets fewer and longer lists. Setting `stop`, or
    closing the generator, ends the model's work at its next update. With `go`, every SLICE seconds of work end with
    {"t": "pause"}, and one of it is taken to go on: so the reader may let others work in between.
    """
    events: queue.SimpleQueue = queue.SimpleQueue()
    shift = Shift(events.put, stop or threading.Event(), go)

    def work() -> None:
        try:
            (_think if job.nodes else _work)(engine, job, frames, shift)
            events.put(None)
        except Stopped:
            events.put(None)
        except Exception as error:  # for the reader, who is in another thread
            events.put(error)

    worker = threading.Thread(target=work, name="air-solve", daemon=True)
    worker.start()
    try:
        ended = False
        while not ended:
            batch = [events.get()]
            while not events.empty():
                batch.append(events.get())
            if isinstance(batch[-1], Exception):
                raise batch[-1]
            if batch[-1] is None:
                ended = batch.pop() is None
            if batch:
                yield batch
    finally:
        shift.stop.set()
        if go is not None:
            go.release()
        worker.join()


class Shift:
    """The work of one job: where its events go, when it must stop, and when others have their turn."""

    def __init__(
        self, put: Callable[[dict[str, Any]], None], stop: threading.Event, go: threading.Semaphore | None
    ) -> None:
        self.put, self.stop, self.go = put, stop, go
        self.worked, self.since = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent working, without that of others."""
        return self.worked + time.perf_counter() - self.since

    def between_updates(self) -> None:
        if self.go is not None and time.perf_counter() - self.since > SLICE:
            self.worked = self.seconds
            self.put({"t": "pause"})
            self.go.acquire()
            self.since = time.perf_counter()
        if self.stop.is_set():
            raise Stopped


def _work(engine: Engine, job: Job, frames: bool, shift: Shift) -> None:
    model = engine.model(job.checkpoint)
    config, task = model.config, engine.checkpoint(job.checkpoint).task
    updates = len(config.schedule)
    puzzle = task.encode(job.puzzle)
    back = symmetric_views(task, job.attempts).inverse()
    freeze = what_if(model, job)
    current = -1

    def decode(z: Tensor, view: int) -> str:
        """A state of one view, in the puzzle's own orientation and with its givens."""
        tokens = model.decode_state(z)[0].argmax(-1).cpu().numpy().astype(np.uint8)
        if view:
            tokens = Symmetry(back.cells[view], back.tokens[view]).apply(tokens)
        return task.decode(keep_givens(task, puzzle, tokens))

    def hook(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
        nonlocal current
        shift.between_updates()
        changed = freeze(update, z_h, z_l)
        z_h, z_l = changed or (z_h, z_l)
        view, step = int(update.rows[0]), int(update.steps[0])
        if frames:
            if view != current:
                current = view
                shift.put({"t": "attempt", "view": view})
            k = step * updates + update.index
            shift.put({"t": "f", "k": k, "lv": update.level, "h": decode(z_h, view), "l": decode(z_l, view)})
            if update.index == updates - 1:
                q = model.q_head(z_h[:, 0])[0]
                shift.put({"t": "q", "step": step + 1, "p": round(float(q[0].sigmoid()), 6)})
                if view == 0:
                    engine.carries.put(job.states_key(), step + 1, z_h, z_l)
        return changed

    answers = solve_puzzles(
        model,
        task,
        puzzle[None],
        attempts=min(job.attempts, len(back.cells)),
        retry="views",  # the page draws views
        max_act_steps=job.max_act_steps or None,
        halt=job.halt,
        hook=hook,
    )
    shift.put(_end(engine, job, puzzle, answers, shift.seconds))


def _end(engine: Engine, job: Job, puzzle: np.ndarray, answers: Answers, seconds: float) -> dict[str, Any]:
    checkpoint = engine.checkpoint(job.checkpoint)
    task = checkpoint.task
    answer = describe(task, puzzle, answers, 0)
    may_be_solved = not answer["solved"] and answer["solutions"] not in (0, "several")
    answer["confidence"] = round(answer["confidence"], 6)
    return {
        "t": "end",
        **answer,
        "faults": [] if answer["solved"] else faults(task, answers.tokens[0]),
        "odds": engine.odds(checkpoint, puzzle) if checkpoint.trained and may_be_solved else "",
        "puzzle": job.puzzle,
        "view": int(answers.view[0]),
        "seconds": round(seconds, 3),
        "checkpoint": job.checkpoint,
        "task": title(task),
        "settings": {k: v for k, v in asdict(job).items() if k not in ("puzzle", "checkpoint")},
    }


def _think(engine: Engine, job: Job, frames: bool, shift: Shift) -> None:
    """Search by pins until the rules accept an answer, or nodes or seconds are spent; the best answer counts then."""
    model, task = engine.model(job.checkpoint), engine.checkpoint(job.checkpoint).task
    puzzle = task.encode(job.puzzle)
    told, spent = 0, 0

    def on_nodes(_: int, tree: list[Node]) -> None:
        nonlocal told, spent
        for at, node in enumerate(tree[told:], start=told):
            spent += node.act_steps
            wrong = int((task.conflicts(node.answer) | (node.answer <= task.blank_token)).sum())
            pins = [[cell, task.alphabet[token]] for cell, token in pins_of(tree, at)]
            answer = task.decode(node.answer)
            place = {"n": at + 1, "parent": node.parent + 1, "act_steps": spent}  # nodes count from 1; 0 is no parent
            shift.put({"t": "node", **place, "answer": answer, "pins": pins, "wrong": wrong})
        told = len(tree)
        if not tree[-1].accepted and shift.seconds > THINK_SECONDS:
            raise KeyboardInterrupt  # ends a search with the best answer so far

    answers = solve_puzzles(
        model,
        task,
        puzzle[None],
        attempts=job.nodes,
        retry="pins",
        max_act_steps=job.max_act_steps or None,
        halt="rules",
        hook=lambda *_: shift.between_updates(),
        on_nodes=on_nodes,
        interruptible=True,
    )
    end = _end(engine, job, puzzle, answers, shift.seconds)
    if answers.stats.get("interrupted"):
        end["message"] += f" The search ended after {THINK_SECONDS} seconds."
    shift.put(end)


def faults(task: GridTask, answer: np.ndarray) -> list[int]:
    """Cells of a refused answer (S,) that break a rule: equal digits in a unit; where a maze's path ends or forks."""
    if task.name == "sudoku":
        return np.flatnonzero(task.conflicts(answer)).tolist()
    if not isinstance(task, MazeTask):
        return []
    grid = answer.reshape(task.height, task.width)
    on = np.pad(np.isin(grid, (task.PATH, task.START, task.GOAL)), 1)
    near = on[:-2, 1:-1].astype(int) + on[2:, 1:-1] + on[1:-1, :-2] + on[1:-1, 2:]
    return np.flatnonzero(on[1:-1, 1:-1] & (near != np.where(grid == task.PATH, 2, 1))).tolist()


def what_if(model: AirModel, job: Job) -> Hook:
    """The hook of a job's what-if switch."""
    if job.freeze == "none":
        return lambda *_: None
    return Intervention("freeze", job.freeze, job.freeze_from).hook(model)


def attention(engine: Engine, job: Job, step: Any, cell: Any) -> dict[str, Any]:
    """Where one cell looks in ACT step `step` (from 0): first L-update and first H-update, every layer and head.

    Returns:
        l, h: [layer][head][cell], thousandths of the attention to cells (prefix positions dropped); neighbours:
        {name: cell numbers} of the task; cell, step as asked.

    Raises:
        ValueError: no such cell or step, or a model without attention.
    """
    model, task = engine.model(job.checkpoint), engine.checkpoint(job.checkpoint).task
    schedule = model.config.schedule
    cell = _whole("cell", cell, 0, task.seq_len - 1)
    step = _whole("step", step, 0, MAX_STEPS - 1)
    if model.config.token_mixer != "attention":
        raise ValueError(f"{job.checkpoint} mixes cells with an MLP instead of attention: there is nothing to draw.")
    # The states at the start of a step that was run before are at hand; else, and under a freeze, walk there again.
    states = engine.carries.get(job.states_key(), step) if step and job.freeze == "none" else None
    first, carry, device = 0, None, model.lm_head.weight.device
    if states is not None:
        steps = torch.zeros(1, dtype=torch.int32, device=device)
        first, carry = step, AirCarry(z_h=states[0], z_l=states[1], steps=steps)
    wanted = {schedule.index(level): level for level in "lh"}
    maps: dict[str, list] = {"l": [], "h": []}
    now = (0, 0)  # ACT step and update that compute next
    freeze = what_if(model, job)
    query = torch.tensor([[cell]], device=device)

    def observe(layer: int, q: Tensor, k: Tensor, scaling: float) -> None:
        if now[0] + first == step and now[1] in wanted:
            rows, _ = attention_rows(q, k, scaling, query, task.seq_len, model.seen_by_heads)
            maps[wanted[now[1]]].append((rows[0, :, 0] * 1000).round(decimals=1).tolist())

    def hook(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor] | None:
        nonlocal now
        changed = freeze(update, z_h, z_l)
        done, last = int(update.steps[0]), update.index == len(schedule) - 1
        now = (done + 1, 0) if last else (done, update.index + 1)
        if last and job.freeze == "none":
            engine.carries.put(job.states_key(), first + done + 1, z_h, z_l)
        return changed

    ids = torch.from_numpy(task.encode(job.puzzle).astype(np.int64))[None]
    with model.observe_attention(observe):
        model.solve(ids, max_act_steps=step - first + 1, hook=hook, carry=carry, return_logits=False)
    near = {name: np.flatnonzero(mask[cell]).tolist() for name, mask in task.neighbours.items()}
    return {"cell": cell, "step": step, "l": maps["l"], "h": maps["h"], "neighbours": near}
