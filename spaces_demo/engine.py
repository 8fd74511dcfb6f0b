"""Checkpoints, jobs and the stream of updates behind the page; nothing here knows about Gradio.

A `Job` says what to run. `run(engine, job)` yields lists of plain dictionaries, which come in this order:

    {"t": "attempt", "view": 0}                                  once per attempt
    {"t": "f", "lv": "l", "h": "53..", "l": "5..."}              once per update: both states as text
    {"t": "q", "step": 1, "p": 0.02}                             once per ACT step: the wish to halt, as probability
    {"t": "end", "solution": ..., "solved": ..., ...}            once

A job with `nodes` thinks on instead: it searches by pins, and has in place of the first three

    {"t": "node", "n": 3, "parent": 1, "act_steps": 24, "answer": "53..", "pins": [[2, "4"]], "wrong": 6} once per node

All computing is `solve_puzzles` on `AirModel.solve`; the updates come out through its hook.
"""

import contextlib
import functools
import io
import json
import math
import queue
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import air_model
from air_model.analysis.attention import attention_rows
from air_model.analysis.interventions import Intervention
from air_model.analysis.leaderboard import Evaluation, best
from air_model.answers_air import Answers, Node, keep_givens, pins_of, symmetric_views
from air_model.attempts_air import NODES, solve_puzzles
from air_model.configuration_air import AirConfig
from air_model.datasets_builders.files import puzzles_in
from air_model.modeling_air import AirModel
from air_model.pipeline_air import MOST_SIDE, describe, forecast, in_size, load_model, readings, takes_size
from air_model.processing_air import GridTask, MazeTask, Symmetry, make_task, task_from_config
from air_model.reading_air import as_text
from air_model.records import model_name, read_evaluations, setting
from air_model.solving_air import AirCarry, AirUpdate, Hook, chain
from air_model.spaces_demo.examples import levels, usual_level

MAX_TEXT = 20_000  # characters of a pasted puzzle
MAX_STEPS = 64  # ACT steps of one job
MAX_ATTEMPTS = 16
SLICE = 0.1  # seconds of work before others have their turn
THINK_SECONDS = 50  # of computing for one search; a turn on ZeroGPU has 60
CARRY_BYTES = 24 << 20  # states kept for questions about attention
KINDS = {"sudoku": "Sudoku", "maze": "Maze"}
VACANT_SIZES = {"sudoku": 9, "maze": 12}
SIZES = (12, 20, 30, 40, 60, MOST_SIDE)  # of mazes to choose from; 30 is the benchmark's
NINE = make_task("sudoku", 9)  # the Sudokus that are rated
Events = list[dict[str, Any]]
Stream = Generator[Events, None, None]
# What a visitor may set: the field of `Job`, and its choices or whole numbers.
SETTINGS: dict[str, tuple[str, tuple[str, ...] | range]] = {
    "halt": ("halt", ("q", "max")),
    "steps": ("max_act_steps", range(MAX_STEPS + 1)),
    "freeze": ("freeze", ("none", "z_h", "z_l")),
    "from": ("freeze_from", range(MAX_STEPS + 1)),
    "attempts": ("attempts", range(1, MAX_ATTEMPTS + 1)),
    "nodes": ("nodes", range(NODES + 1)),
}


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
        kind = "maze" if self.config.task == "maze" else "Sudoku"
        return (
            f"No {kind} model is installed here, so a {kind} can be drawn but not solved. "
            "Name one with AIR_MODEL (a folder or a Hub id) and start the page again."
        )

    @property
    def hub(self) -> str | None:
        """The Hub id of a model that lies in no folder here."""
        return self.source if self.source and not Path(self.source).exists() else None

    @property
    def card(self) -> str:
        """Text of the model card in its folder, without the front matter; empty where there is none."""
        path = Path(self.source or "", "README.md")
        found = self.trained and path.is_file()
        text = path.read_text(encoding="utf-8", errors="replace")[:MAX_TEXT] if found else ""
        return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S).strip()


@dataclass(frozen=True)
class Job:
    """What one visitor asks of a model."""

    puzzle: str
    checkpoint: str  # its key
    halt: str = "q"  # or "max"
    max_act_steps: int = 0  # 0: the model's own number
    freeze: str = "none"  # or "z_h" or "z_l"
    freeze_from: int = 0  # the ACT step, counted from 0, from which on that state is held
    attempts: int = 1  # symmetric views
    nodes: int = 0  # of a search by pins; 0: none


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
            self.kept[key, step] = z_h.clone(), z_l.clone()
            self.bytes += size
            while self.bytes > self.limit:
                self.bytes -= sum(state.nbytes for state in self.kept.popitem(last=False)[1])

    def get(self, key: tuple, step: int) -> tuple[Tensor, Tensor] | None:
        with self.lock:
            if found := self.kept.get((key, step)):
                self.kept.move_to_end((key, step))
            return found


class Engine:
    """The checkpoints of this page, loaded when first used, in float32 on a CPU."""

    def __init__(self, checkpoints: list[Checkpoint]) -> None:
        assert checkpoints, "an engine without checkpoints"
        self.checkpoints = {c.key: c for c in checkpoints}
        self.vacant: dict[str, Checkpoint] = {}
        for kind, side in VACANT_SIZES.items():
            if kind not in {c.config.task for c in checkpoints}:
                key = f"no-{kind}-model"
                self.vacant[key] = Checkpoint(key, None, AirConfig(task=kind, grid_height=side), vacant=True)
        self.carries = Carries()
        self.lock = threading.Lock()
        self.resized = functools.lru_cache(3)(lambda base, task: in_size(self.model(base), task))  # masks are large
        self.rate: Callable[[np.ndarray], int] | None = None

    def checkpoint(self, key: str) -> Checkpoint:
        found = re.fullmatch(r"(.+)@(\d{1,3})x(\d{1,3})", key)
        if found and found[1] in self.checkpoints:  # one size alone: each text names one model
            base, *shape = found.groups()
            return self.in_size(self.checkpoints[base], make_task("maze", *map(int, shape)))
        if key not in self.checkpoints:
            raise ValueError(f"There is no checkpoint {key[:80]!r} here. Known: {', '.join(self.checkpoints)}.")
        return self.checkpoints[key]

    def in_size(self, checkpoint: Checkpoint, task: GridTask) -> Checkpoint:
        """The same model for mazes of another size; ValueError where it cannot compute them."""
        if task == checkpoint.task:
            return checkpoint
        if not takes_size(checkpoint.config, task) or min(task.height, task.width) < 4:
            raise ValueError(f"{checkpoint.key} takes no {title(task)} here; mazes have 4 to {MOST_SIDE} rows.")
        size = {"grid_height": task.height, "grid_width": task.width}
        config = AirConfig.from_dict(checkpoint.config.to_dict() | size)
        key = f"{checkpoint.key}@{task.height}x{task.width}"
        return Checkpoint(key, checkpoint.source, config, base=checkpoint.key)

    def model(self, key: str) -> AirModel:
        """The model of a checkpoint, loaded once."""
        checkpoint = self.checkpoint(key)
        if checkpoint.base:
            return self.resized(checkpoint.base, checkpoint.task)
        with self.lock:
            if checkpoint.model is None and checkpoint.trained:
                checkpoint.model = load_model(checkpoint.source)
            elif checkpoint.model is None:
                torch.manual_seed(0)
                checkpoint.model = AirModel(checkpoint.config).eval()
            return checkpoint.model

    def at_work(self, job: Job) -> tuple[AirModel, GridTask, np.ndarray]:
        """What a job computes with: its model, the task, and the puzzle's tokens (S,)."""
        task = self.checkpoint(job.checkpoint).task
        return self.model(job.checkpoint), task, task.encode(job.puzzle)

    def place(self, key: str) -> Checkpoint:
        """A checkpoint, or the vacant place of a kind of puzzle that has none."""
        return self.vacant.get(key) or self.checkpoint(key)

    def read(self, text: Any, prefer: str | None = None) -> tuple[Checkpoint, np.ndarray]:
        """A visitor's text -> the checkpoint that fits it (the preferred one if it does) or a vacant one, and tokens.

        A text that is none raises a ValueError, which says what is wrong, where.
        """
        if not isinstance(text, str):
            raise ValueError(f"A puzzle is text, got {type(text).__name__}.")
        if len(text) > MAX_TEXT:
            raise ValueError(f"That is {len(text):,} characters; this page reads puzzles of up to {MAX_TEXT:,}.")
        if not text.strip() and len(text) not in {c.config.seq_len for c in self.checkpoints.values()}:
            raise ValueError("There is no puzzle in an empty text. Type or paste one, or ask for a new puzzle.")
        # "KEY@4x9" prefers the model KEY, and its size: the cells of a maze in one line may have several shapes.
        known = sorted(self.checkpoints.values(), key=lambda c: not f"{prefer}@".startswith(f"{c.key}@"))
        order = [*known, *self.vacant.values()]
        tasks = dict.fromkeys(c.task for c in order)
        with contextlib.suppress(ValueError):  # a model that is not here is no preference
            tasks = {self.checkpoint(str(prefer)).task: None} | tasks
        solves = ", ".join(dict.fromkeys(title(c.task) for c in known))
        try:
            found = readings(list(tasks), text)
        except ValueError as error:
            raise ValueError(f"{error} This page solves {solves}." if "," in solves else str(error)) from None
        for task, tokens in found:
            for checkpoint in order:
                if task == checkpoint.task or not checkpoint.vacant and takes_size(checkpoint.config, task):
                    task.check_solvable(tokens)
                    return self.in_size(checkpoint, task), tokens
        if any(takes_size(c.config, make_task("maze", MOST_SIDE)) for c in known):
            solves += f", and mazes of other sizes to {MOST_SIDE}×{MOST_SIDE}"
        raise ValueError(f"This is a {title(found[0][0])}; this page solves {solves}.")

    def read_loosely(self, text: Any, prefer: str | None = None) -> tuple[Checkpoint, np.ndarray, str]:
        """As `read`; of a file of several puzzles (a CSV or JSON too), the first that fits. A note says which."""
        try:
            checkpoint, tokens = self.read(text, prefer)
            return checkpoint, tokens, checkpoint.missing
        except ValueError:
            if not isinstance(text, str) or len(text) > MAX_TEXT:
                raise
            tasks = list(dict.fromkeys(checkpoint.task for checkpoint in self.checkpoints.values()))
            with contextlib.suppress(ValueError):  # it holds no puzzles: then the text is at fault as a whole
                for number, puzzle in enumerate(puzzles_in(io.BytesIO(text.encode()), "The text", tasks), start=1):
                    with contextlib.suppress(ValueError):
                        checkpoint, tokens = self.read(as_text(puzzle), prefer)
                        if not checkpoint.vacant:
                            return checkpoint, tokens, f"This is puzzle {number} of the text; the rest was left out."
            raise

    def job(self, text: Any, settings: dict[str, Any] | None = None) -> Job:
        """Validate a visitor's text and settings (keys: checkpoint, halt, steps, freeze, from, attempts, nodes)."""
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            raise ValueError(f"settings are a dictionary, got {type(settings).__name__}.")
        known = {"checkpoint", *SETTINGS}
        if unknown := sorted(str(k)[:40] for k in set(settings) - known):
            raise ValueError(f"Unknown settings {unknown}. Known: {', '.join(sorted(known))}.")
        if prefer := settings.get("checkpoint"):
            self.checkpoint(str(prefer))
        checkpoint, tokens = self.read(text, prefer)
        if checkpoint.vacant:
            raise ValueError(checkpoint.missing)
        given = {field: _allowed(k, settings[k], may) for k, (field, may) in SETTINGS.items() if k in settings}
        job = Job(checkpoint.task.decode(tokens), checkpoint.key, **given)
        if job.nodes and (job.freeze != "none" or job.attempts > 1):
            raise ValueError("Thinking on has nodes in place of attempts, and freezes nothing: leave those out.")
        return job

    def describe(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """What the page must know about a checkpoint and its task."""
        config, task = checkpoint.config, checkpoint.task
        sudoku = task.name == "sudoku"
        made_for = self.checkpoints.get(checkpoint.base or "", checkpoint)
        side = made_for.task.height
        others = [n for n in SIZES if n != side and takes_size(made_for.config, make_task("maze", n))]
        own = ("key", "base", "trained", "vacant", "missing", "accuracy", "hub", "card")
        rule = ("l_injection", "h_injection", "schedule", "halt_max_steps", "shared_block", "input_operator")
        return {
            **{name: getattr(checkpoint, name) for name in own},
            **{name: getattr(config, name) for name in rule},
            "variant": config.rule_name,
            "twin": next((key for key, other in self.checkpoints.items() if _are_twins(config, other.config)), None),
            "sizes": [side, *others] if task.name == "maze" else [],  # of mazes that this model takes, its own first
            "forecast": forecast(config) if checkpoint.base else "",
            "task": {
                **{name: getattr(task, name) for name in ("height", "width", "alphabet")},
                "kind": task.name,
                "name": KINDS.get(task.name, "Grid"),
                "title": title(task),
                "box": [task.box_height, task.box_width] if sudoku else None,
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

        def compile_solver() -> None:
            from air_model.datasets_builders.sudoku_solver import solve

            solve(np.full((1, 81), NINE.blank_token, np.uint8), NINE)
            self.rate = lambda tokens: int(solve(tokens[None], NINE)[1][0])

        if any(c.by_rating and c.task == NINE for c in self.checkpoints.values()):
            threading.Thread(target=compile_solver, name="air-rate", daemon=True).start()

    def odds(self, checkpoint: Checkpoint, puzzle: np.ndarray) -> str:
        """One sentence on how often this model succeeds at a puzzle's difficulty, by its own evaluation files."""
        if checkpoint.accuracy is None:
            return f"How often this model is right{' at this size' if checkpoint.base else ''} was not measured."
        rated = checkpoint.by_rating if self.rate and checkpoint.task == NINE else {}
        rating = self.rate(puzzle) if rated else 0
        rows = {name: row for name, rows in rated.items() if (row := _row_of(rows, rating))}
        solved = {name: f"{round(row['exact_accuracy'] * row['n']):,} of {row['n']:,}" for name, row in rows.items()}
        if "single" not in rows:
            share = f"{100 * checkpoint.accuracy:.4g} % of its evaluation puzzles in a single pass"
            if checkpoint.searched is not None:
                share += f", and {100 * checkpoint.searched:.4g} % when it thinks on"
            return f"Over all difficulties, this model solves {share}."
        also = f" and {solved['searched']} when it thinks on" if "searched" in rows else ""
        taken = rows["single"]["rating"]
        guesses = {"0": "no guess", "1": "1 guess"}.get(taken, f"{taken} guesses")
        return (
            f"A solver needs {rating or 'no'} guess{'es' * (rating > 1)} for this puzzle. Of the puzzles that take "
            f"{guesses}, this model solved {solved['single']} in a single pass{also}."
        )

    def catalog(self) -> dict[str, Any]:
        """What the page must know about its checkpoints and tasks."""
        return {
            "checkpoints": [self.describe(c) for c in self.checkpoints.values()],
            "vacant": [self.describe(c) for c in self.vacant.values()],
            "measured": json.loads((Path(__file__).parent / "static" / "findings.json").read_text(encoding="utf-8")),
            "limits": {"text": MAX_TEXT, "steps": MAX_STEPS, "attempts": MAX_ATTEMPTS, "nodes": NODES},
        }


def _are_twins(one: AirConfig, other: AirConfig) -> bool:
    """Whether two configs differ in one thing: the puzzle enters the L-update alone, or the H-update as well."""
    aside = "l_injection h_injection dtype transformers_version auto_map custom_pipelines code_version architectures"
    a, b = ({k: v for k, v in config.to_dict().items() if k not in aside.split()} for config in (one, other))
    return a == b and bool(one.l_injection) and bool(one.h_injection) != bool(other.h_injection)


def _row_of(rows: list[dict[str, Any]], rating: int) -> dict[str, Any] | None:
    """The row of an evaluation by rating ("0", "1-9", "50+", "unrated") that a rating falls into."""
    for row in rows:
        ends = [*map(int, re.findall(r"\d+", row["rating"]))] + [math.inf] * row["rating"].endswith("+")
        if ends and ends[0] <= rating <= ends[-1]:
            return row
    return None


def _allowed(name: str, value: Any, choices: tuple[str, ...] | range) -> Any:
    """A visitor's value if it is one of the choices; a whole number may come as text."""
    whole = isinstance(choices, range)
    if whole and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = int(value)
    if value not in choices:
        known = f"a whole number from {choices[0]} to {choices[-1]}" if whole else f"one of {', '.join(choices)}"
        raise ValueError(f"{name} must be {known}, got {str(value)[:40]!r}.")
    return int(value) if whole else value


def title(task: GridTask) -> str:
    """'Sudoku 9×9': how the page calls a task."""
    return f"{KINDS.get(task.name, 'Grid')} {task.height}×{task.width}"


# ---- finding checkpoints --------------------------------------------------------------------------------------------


def find_checkpoints(sources: str | None = None) -> list[Checkpoint]:
    """Those that AIR_MODEL names (Hub ids or folders, separated by commas), else the shipped ones, best first.

    Raises:
        FileNotFoundError, ValueError: a source that cannot be read; the sentence says which.
    """
    if names := [name.strip() for name in (sources or "").split(",") if name.strip()]:
        found = [_named(name) for name in names]
    else:
        folders = [Path(air_model.__file__).parent / "checkpoints", Path(__file__).parent / "checkpoints"]
        shipped = [_named(str(file.parent)) for folder in folders for file in sorted(folder.glob("*/config.json"))]
        found = sorted(shipped, key=_first_met)
    keys = [checkpoint.key for checkpoint in found]
    for at, key in enumerate(keys):
        if earlier := keys[:at].count(key):
            found[at].key = f"{key}-{earlier + 1}"
    small = {"task": "sudoku", "grid_height": 6, "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    return found or [Checkpoint("untrained-6x6", None, AirConfig(**small))]


def _first_met(checkpoint: Checkpoint) -> tuple:
    # A puzzle of real size if a model solves most of them, then the best answers, then the size.
    accuracy, config = checkpoint.accuracy or 0.0, checkpoint.config
    is_real = config.seq_len >= {"sudoku": 81, "maze": 900}.get(config.task, math.inf)
    return (not (is_real and accuracy >= 0.6), -round(accuracy, 1), -config.seq_len)


def _named(name: str) -> Checkpoint:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{name} holds no config.json: name a folder that save_pretrained wrote.")
        config = AirConfig.from_pretrained(folder)
        return Checkpoint(model_name(folder), str(folder), config, **_measured(folder, config))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name} is neither a folder nor a Hub id (USER/NAME): check AIR_MODEL.")
    try:
        config = AirConfig.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(f"{name} could not be loaded from the Hub: {str(error).splitlines()[0]}") from None
    return Checkpoint(name.split("/")[1], name, config)


def _measured(folder: Path, config: AirConfig) -> dict[str, Any]:
    """What a single pass and a search by pins reach, by the files of scripts/evaluate.py, as the tables say it."""
    own, found = repr(task_from_config(config)), {}
    with contextlib.suppress(ValueError, OSError):  # a damaged file beside a model is no reason to show none
        found = read_evaluations(folder)
    # A model may be asked for other sizes than its own.
    own_size = (one for one in found.values() if setting(one, "task") in (None, own))
    measured = [Evaluation(one, config.halt_max_steps) for one in own_size]
    single, searched = best([one for one in measured if one.is_single_pass or one.retry == "pins"])
    named = {name: one for name, one in (("single", single), ("searched", searched)) if one is not None}
    return {
        "accuracy": single and single.exact_accuracy,
        "searched": searched and searched.exact_accuracy,
        "by_rating": {name: one.by_rating for name, one in named.items() if one.by_rating},
    }


# ---- running --------------------------------------------------------------------------------------------------------


def run(engine: Engine, job: Job, frames: bool = True, pauses: bool = False) -> Stream:
    """Run a job and yield its events as they happen; the model works in a thread of its own meanwhile.

    Each list holds what happened since the last one, so a slow reader gets fewer and longer lists. Closing the
    generator ends the model's work at its next update. With `pauses`, a list ends with {"t": "pause"} after every
    SLICE seconds of work, which goes on when the next list is asked for: so the reader may let others work in between.
    """
    shift = Shift(engine, job, pauses)
    worker = threading.Thread(target=shift.work, args=(frames,), name="air-solve", daemon=True)
    worker.start()
    try:
        events: Events = []
        while not events or events[-1]["t"] != "end":
            events = [shift.events.get()]
            while not shift.events.empty():
                events.append(shift.events.get())
            if isinstance(events[-1], Exception):
                raise events[-1]
            yield events
            if events[-1]["t"] == "pause":
                shift.go.release()
    finally:
        shift.stop.set()
        shift.go.release()
        worker.join()


class Shift:
    """The work of one job: its events, when it must stop, and when others have their turn."""

    def __init__(self, engine: Engine, job: Job, pauses: bool) -> None:
        self.engine, self.job, self.pauses = engine, job, pauses
        self.events: queue.SimpleQueue = queue.SimpleQueue()  # also, at its end, what went wrong
        self.stop, self.go = threading.Event(), threading.Semaphore(0)
        self.worked, self.since = 0.0, time.perf_counter()
        self.view = -1  # the attempt that is being told
        self.nodes_told = self.steps_told = 0

    @property
    def seconds(self) -> float:
        """Time spent working, without that of others."""
        return self.worked + time.perf_counter() - self.since

    def between_updates(self, *_: Any) -> None:
        if self.pauses and time.perf_counter() - self.since > SLICE:
            self.worked = self.seconds
            self.events.put({"t": "pause"})
            self.go.acquire()
            self.since = time.perf_counter()
        if self.stop.is_set():
            raise Stopped

    def work(self, frames: bool) -> None:
        try:
            self.model, self.task, self.puzzle = self.engine.at_work(self.job)
            self.events.put(self.end(self.solve(frames)))
        except Exception as error:  # for the reader, who is in another thread; after a stop nobody reads it
            self.events.put(error)

    def solve(self, frames: bool) -> Answers:
        """By pins, until the rules accept an answer or nodes or seconds are spent; else in views, one by one."""
        job, model, task = self.job, self.model, self.task
        hooks = [self.between_updates, what_if(model, job)]
        if job.nodes:
            how: dict[str, Any] = {"attempts": job.nodes, "retry": "pins", "halt": "rules", "interruptible": True}
            how["on_nodes"] = self.tell_nodes
        else:
            self.back = symmetric_views(task, job.attempts).inverse()
            how = {"attempts": len(self.back.cells), "retry": "views", "halt": job.halt}
            hooks.append(self.tell_update if frames else None)
        steps = job.max_act_steps or None
        return solve_puzzles(model, task, self.puzzle[None], max_act_steps=steps, hook=chain(*hooks), **how)

    def tell_update(self, update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        view, step = int(update.rows[0]), int(update.steps[0])
        if view != self.view:
            self.view = view
            self.events.put({"t": "attempt", "view": view})
        self.events.put({"t": "f", "lv": update.level, "h": self.decode(z_h), "l": self.decode(z_l)})
        if update.index == len(self.model.config.schedule) - 1:
            q = self.model.q_head(z_h[:, 0])[0]
            self.events.put({"t": "q", "step": step + 1, "p": round(float(q[0].sigmoid()), 6)})
            if view == 0 and self.job.freeze == "none":
                self.engine.carries.put((self.job.checkpoint, self.job.puzzle), step + 1, z_h, z_l)

    def decode(self, z: Tensor) -> str:
        """A state (1, T, D) as text, in the puzzle's own orientation and with its givens."""
        tokens = self.model.decode_state(z)[0].argmax(-1).cpu().numpy().astype(np.uint8)
        if self.view:
            tokens = Symmetry(self.back.cells[self.view], self.back.tokens[self.view]).apply(tokens)
        return self.task.decode(keep_givens(self.task, self.puzzle, tokens))

    def tell_nodes(self, _: int, tree: list[Node]) -> None:
        task = self.task
        for at, node in enumerate(tree[self.nodes_told :], start=self.nodes_told):
            self.steps_told += node.act_steps
            if task.name == "sudoku":
                wrong = int((task.conflicts(node.answer) | (node.answer <= task.blank_token)).sum())
            else:
                wrong = 0 if node.accepted else max(1, len(faults(task, node.answer)))  # a longer way breaks no rule
            pins = [[cell, task.alphabet[token]] for cell, token in pins_of(tree, at)]
            found = {"answer": task.decode(node.answer), "pins": pins, "wrong": wrong}
            place = {"n": at + 1, "parent": node.parent + 1}  # nodes count from 1; 0 is no parent
            self.events.put({"t": "node", **place, "act_steps": self.steps_told, **found})
        self.nodes_told = len(tree)
        if not tree[-1].accepted and self.seconds > THINK_SECONDS:
            raise KeyboardInterrupt  # ends a search with the best answer so far

    def end(self, answers: Answers) -> dict[str, Any]:
        job, seconds, checkpoint = self.job, self.seconds, self.engine.checkpoint(self.job.checkpoint)
        answer = describe(self.task, self.puzzle, answers, 0)
        may_be_solved = not answer["solved"] and answer["solutions"] not in (0, "several")
        answer["confidence"] = round(answer["confidence"], 6)
        if answers.stats.get("interrupted"):
            answer["message"] += f" The search ended after {THINK_SECONDS} seconds."
        return {
            "t": "end",
            **answer,
            "faults": [] if answer["solved"] else faults(self.task, answers.tokens[0]),
            "odds": self.engine.odds(checkpoint, self.puzzle) if checkpoint.trained and may_be_solved else "",
            "puzzle": job.puzzle,
            "view": int(answers.view[0]),
            "seconds": round(seconds, 3),
            "checkpoint": job.checkpoint,
            "task": title(self.task),
            "settings": {field: getattr(job, field) for field, _ in SETTINGS.values()},
        }


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


def what_if(model: AirModel, job: Job) -> Hook | None:
    """The hook of a job's what-if switch."""
    return None if job.freeze == "none" else Intervention("freeze", job.freeze, job.freeze_from).hook(model)


def attention(engine: Engine, job: Job, step: Any, cell: Any) -> dict[str, Any]:
    """Where one cell looks in ACT step `step` (from 0): first L-update and first H-update, every layer and head.

    Returns:
        l, h: [layer][head][cell], thousandths of the attention to cells (prefix positions dropped); neighbours:
        {name: cell numbers} of the task; cell, step as asked.

    Raises:
        ValueError: no such cell or step, or a model without attention.
    """
    model, task, puzzle = engine.at_work(job)
    schedule, device = model.config.schedule, model.device
    cell, step = _allowed("cell", cell, range(task.seq_len)), _allowed("step", step, range(MAX_STEPS))
    if model.config.token_mixer != "attention":
        raise ValueError(f"{job.checkpoint} mixes cells with an MLP instead of attention: there is nothing to draw.")
    # The states at the start of a step that was run before are at hand; else, and under a freeze, walk there again.
    first, carry, free, key = 0, None, job.freeze == "none", (job.checkpoint, job.puzzle)
    if step and free and (states := engine.carries.get(key, step)):
        first, carry = step, AirCarry(*states, steps=torch.zeros(1, dtype=torch.int32, device=device))
    query = torch.tensor([[cell]], device=device)
    if (seen := model.seen_from(query[0])) is not None:
        seen = seen.expand(-1, -1, seen.shape[-1], -1)  # a view: only this cell's row is asked for
    calls: list[tuple[int, Tensor, Tensor, float]] = []  # of the update that computes
    maps: dict[str, list] = {}

    def hook(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        now = first + int(update.steps[0])
        if now == step and update.index == schedule.index(update.level):
            rows = [attention_rows(*call[1:], query, task.seq_len, seen)[0][0, :, 0] for call in calls]
            maps[update.level] = [(row * 1000).round(decimals=1).tolist() for row in rows]
        calls.clear()
        if update.index == len(schedule) - 1 and free:
            engine.carries.put(key, now + 1, z_h, z_l)

    options = {"hook": chain(what_if(model, job), hook), "carry": carry, "return_logits": False}
    with model.observe_attention(lambda *call: calls.append(call)):
        model.solve(torch.from_numpy(puzzle.astype(np.int64))[None], max_act_steps=step - first + 1, **options)
    near = {name: np.flatnonzero(mask).tolist() for name, mask in task.neighbours_of(np.array([cell])).items()}
    return {"cell": cell, "step": step, **maps, "neighbours": near}
