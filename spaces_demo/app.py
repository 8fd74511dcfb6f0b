"""The AIR Space: watch two states think.

    python spaces_demo/app.py                                            # the shipped checkpoints, 127.0.0.1:7860
    AIR_MODEL=USER/air-sudoku GRADIO_SERVER_PORT=8000 python spaces_demo/app.py
    AIR_MODEL=runs/a/model,runs/b/model python spaces_demo/app.py        # several, to compare

AIR_MODEL names Hub ids or folders, separated by commas; without it the page offers every checkpoint that ships with
the package. Host and port are Gradio's GRADIO_SERVER_NAME (default 127.0.0.1) and GRADIO_SERVER_PORT.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__" and len(sys.argv) > 1:  # before the imports, which take seconds
    print(__doc__)
    sys.exit(0 if {"-h", "--help"} & set(sys.argv[1:]) else 2)
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import spaces  # ZeroGPU; must come before torch
except ImportError:
    spaces = None

if not __package__:
    root = Path(__file__).resolve().parent.parent
    if (root / "configuration_air.py").exists():  # a checkout, installed or not
        sys.path.insert(0, str(root / "scripts"))
        import _checkout  # noqa: F401
    # In a Space the package lies beside this file, or is installed.

import asyncio
import json
import threading
import time
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import gradio as gr
import numpy as np

from air_model.attempts_air import NODES
from air_model.spaces_demo.board import STATIC, Board, View, Wire
from air_model.spaces_demo.engine import Engine, Job, attention, find_checkpoints, run
from air_model.spaces_demo.examples import new_puzzle, usual_level
from air_model.spaces_demo.turns import Turns

# Seconds between two messages of a roll-out: updates that come faster travel together, and the page plays them one
# by one. Short at first, so that something moves at once; each one costs the server and the browser time.
FIRST_PACE, PACE = 0.05, 0.25
TITLE = "AIR: watch two states think"


class Meter:
    """How long the job at the model may still take, by the updates that it has done of those that it may do."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, updates: int) -> None:
        self.started, self.updates, self.done = time.monotonic(), updates, 0

    def waiting(self, place: int) -> dict[str, Any]:
        """What is told to a job at a place in line; the seconds are those of the job at the model alone."""
        event: dict[str, Any] = {"t": "wait", "place": place}
        if self.done:
            spent = time.monotonic() - self.started
            event["seconds"] = round(spent * max(self.updates - self.done, 0) / self.done, 1)
        return event


ENGINE: Engine
TURNS = Turns()
METER = Meter()
LESSONS: dict[str, str] = {}  # a prepared run per checkpoint, which the page opens with, as lines of JSON
LESSON_SEED = 7


def on_gpu(function: Any) -> Any:
    """ZeroGPU lends a GPU for the duration of the decorated call; elsewhere nothing changes."""
    return function if spaces is None else spaces.GPU(duration=60)(function)


@on_gpu
def run_here(job: Job, frames: bool) -> Iterator[list[dict[str, Any]]]:
    yield from run(ENGINE, job, frames)


@on_gpu
def attention_here(job: Job, step: Any, cell: Any) -> dict[str, Any]:
    return attention(ENGINE, job, step, cell)


# ---- the model, one job at a time -----------------------------------------------------------------------------------


async def events_of(job: Job, visitor: str, frames: bool = True) -> AsyncIterator[list[dict[str, Any]]]:
    """Wait for a turn, then run a job; yields lists of events (and {"t": "wait", "place": n} before)."""
    async with aclosing(TURNS.wait(visitor)) as places:
        async for place in places:
            yield [METER.waiting(place)]
    config = ENGINE.checkpoint(job.checkpoint).config
    METER.begin((job.max_act_steps or config.halt_max_steps) * len(config.schedule) * job.attempts)
    stop, lock, go = threading.Event(), threading.Lock(), threading.Semaphore(0)
    # With ZeroGPU the work happens in another process, which no event reaches; it ends by itself.
    stream = run(ENGINE, job, frames, stop, go) if spaces is None else run_here(job, frames)

    def more() -> list[dict[str, Any]] | None:
        with lock:
            return next(stream, None)

    def finish() -> None:
        try:
            with lock:  # a step that still runs in another thread sees `stop` and ends soon
                stream.close()
        finally:
            if ours:
                TURNS.release()

    start = told = time.monotonic()
    ours, held = True, []  # the turn; events that wait to travel together
    try:
        while (events := await asyncio.to_thread(more)) is not None:
            held += [event for event in events if event["t"] != "pause"]
            METER.done += sum(event["t"] == "f" for event in events)
            if events[-1]["t"] == "pause":  # a search: the others come first, and then it goes on
                ours = False
                async with aclosing(TURNS.step_aside(visitor)) as places:
                    async for place in places:
                        yield [*held, METER.waiting(place)]
                        held = []
                ours = True
                METER.begin(0)
                go.release()
                if time.monotonic() - told < PACE:
                    continue
            yield held
            held, told = [], time.monotonic()
            if frames and not job.nodes:
                await asyncio.sleep(FIRST_PACE if time.monotonic() - start < PACE else PACE)
    finally:
        stop.set()
        asyncio.get_running_loop().run_in_executor(None, finish)


def visitor_of(request: gr.Request | None) -> str:
    """Who takes turns: a page or a client has one session; calls without one share the line of their address."""
    if request is None:
        return "local"
    return str(getattr(request, "session_hash", None) or getattr(request.client, "host", "unknown"))


# ---- what the page asks (lines of JSON) -----------------------------------------------------------------------------


class Lines:
    """An answer that grows: the first line carries the question's id, so that the page knows its own."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.text = ""
        self.add({"t": "start", "id": str(data.get("id"))[:40]})

    def add(self, *events: dict[str, Any]) -> str:
        self.text += "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)
        return self.text

    def error(self, error: Exception) -> str:
        return self.add({"t": "error", "message": sentence(error)})


def sentence(error: Exception) -> str:
    """What a visitor is told. Faults of ours go to the log, not to the page."""
    if isinstance(error, ValueError):
        return str(error)
    traceback.print_exception(error)
    return "Something broke here; it has been written to the log. The page lives on: please try again."


def data_of(event: gr.EventData) -> dict[str, Any]:
    data = event._data
    return data if isinstance(data, dict) else {}


async def on_run(event: gr.EventData, request: gr.Request) -> AsyncIterator[str]:
    """A roll-out, update by update."""
    data = data_of(event)
    lines = Lines(data)
    yield lines.text
    try:
        job = ENGINE.job(data.get("puzzle"), data.get("settings"))
        async with aclosing(events_of(job, visitor_of(request))) as stream:
            async for events in stream:
                yield lines.add(*events)
    except Exception as error:
        yield lines.error(error)


async def on_attention(event: gr.EventData, request: gr.Request) -> AsyncIterator[str]:
    """Where a cell looks."""
    data = data_of(event)
    lines = Lines(data)
    yield lines.text
    try:
        job = ENGINE.job(data.get("puzzle"), data.get("settings"))
        async with aclosing(TURNS.wait(visitor_of(request))) as places:
            async for _ in places:
                pass
        call = asyncio.ensure_future(asyncio.to_thread(attention_here, job, data.get("step"), data.get("cell")))
        call.add_done_callback(lambda _: TURNS.release())
        yield lines.add({"t": "attention", **await asyncio.shield(call)})
    except Exception as error:
        yield lines.error(error)


def on_puzzle(event: gr.EventData) -> Iterator[str]:
    """A new puzzle, or a visitor's text read into the grid."""
    data = data_of(event)
    lines = Lines(data)
    yield lines.text
    try:
        found = puzzle_for(data)
        yield lines.add({"t": "puzzle", **found, "about": ENGINE.describe(ENGINE.place(found["checkpoint"]))})
    except Exception as error:
        yield lines.error(error)


def puzzle_for(data: dict[str, Any]) -> dict[str, Any]:
    action = data.get("action")
    if action == "new":
        checkpoint = ENGINE.place(str(data.get("checkpoint")))
        tokens = new_puzzle(checkpoint.task, str(data.get("level")), np.random.default_rng())
        return {"puzzle": checkpoint.task.decode(tokens), "checkpoint": checkpoint.key}
    if action == "link":
        checkpoint, tokens = ENGINE.read(data.get("text"), vacant=True)
        if checkpoint.vacant:
            return {"puzzle": checkpoint.task.decode(tokens), "checkpoint": checkpoint.key, "note": checkpoint.missing}
        job = ENGINE.job(data.get("text"), data.get("settings"))
        return {"puzzle": job.puzzle, "checkpoint": job.checkpoint, "halt": job.halt,
                "note": "Puzzle and settings come from the link."}  # fmt: skip
    checkpoint, tokens, note = ENGINE.read_loosely(data.get("text"), data.get("checkpoint"))
    return {"puzzle": checkpoint.task.decode(tokens), "checkpoint": checkpoint.key, "note": note}


async def on_learn(event: gr.EventData, request: gr.Request) -> AsyncIterator[str]:
    """The prepared run of a checkpoint, its puzzle first; computed once, the same for everybody."""
    data = data_of(event)
    lines = Lines(data)
    yield lines.text
    try:
        checkpoint = ENGINE.checkpoint(str(data.get("checkpoint")))
        if checkpoint.key not in LESSONS:
            task = checkpoint.task
            tokens = new_puzzle(task, usual_level(task), np.random.default_rng(LESSON_SEED))
            job = ENGINE.job(task.decode(tokens), {"checkpoint": checkpoint.key})
            lesson = Lines({})
            lesson.text = ""
            yield lines.text + lesson.add({"t": "lesson", "puzzle": job.puzzle})
            async with aclosing(events_of(job, visitor_of(request))) as stream:
                async for events in stream:
                    lesson.add(*(e for e in events if e["t"] != "wait"))
            LESSONS[checkpoint.key] = lesson.text
        yield lines.text + LESSONS[checkpoint.key]
    except Exception as error:
        yield lines.error(error)


# ---- the API --------------------------------------------------------------------------------------------------------


async def finished(puzzle: str, settings: dict[str, Any], request: gr.Request | None, frames: bool) -> dict[str, Any]:
    """The end of a job, with the roll-out if asked; errors become Gradio's, whose text reaches every client."""
    result: dict[str, Any] = {}
    rollout: dict[int, dict[str, list]] = {}  # of each attempt
    current: dict[str, list] = {}
    try:
        job = ENGINE.job(puzzle, settings)
        async with aclosing(events_of(job, visitor_of(request), frames)) as stream:
            async for events in stream:
                for event in events:
                    kind = event["t"]
                    if kind == "attempt":
                        current = {"updates": [], "z_h": [], "z_l": [], "halt_probability": []}
                        rollout[event["view"]] = current
                    elif kind == "f":
                        for name, key in (("updates", "lv"), ("z_h", "h"), ("z_l", "l")):
                            current[name].append(event[key])
                    elif kind == "q":
                        current["halt_probability"].append(event["p"])
                    elif kind == "end":
                        result = {key: value for key, value in event.items() if key != "t"}
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from None
    return {**result, **rollout.get(result.get("view"), {})} if frames else result


async def solve(puzzle: str, request: gr.Request) -> dict[str, Any]:
    """Solve one puzzle given as text (one letter per cell, row by row; . for a blank or free cell).

    Returns JSON: solution (text), solved (the rules accept it), complete, consistent, valid, message, confidence
    (0 to 1), act_steps, attempts, seconds, checkpoint, task. A text that is no puzzle gives an error in one sentence.
    """
    return await finished(puzzle, {}, request, frames=False)


async def rollout(puzzle: str, request: gr.Request) -> dict[str, Any]:
    """As /solve, but all ACT steps are run, and both states come along after every update.

    Adds to the JSON: updates ("l" or "h"), z_h and z_l (texts, one per update), halt_probability (one per ACT step).
    """
    return await finished(puzzle, {"halt": "max"}, request, frames=True)


async def what_if(puzzle: str, settings: dict[str, Any], request: gr.Request) -> dict[str, Any]:
    """As /rollout, with settings, all optional: checkpoint, halt ("q" or "max"), steps (ACT steps, up to 64), freeze
    ("none", "z_h" or "z_l"), from (ACT steps before the freeze), attempts (up to 16 symmetric views).
    """
    settings = {"halt": "max", **settings} if isinstance(settings, dict) else settings
    return await finished(puzzle, settings, request, frames=True)


async def think(puzzle: str, request: gr.Request, nodes: int = NODES) -> dict[str, Any]:
    """As /solve, but a Sudoku whose answer is refused is searched by pins, up to 256 nodes (less with `nodes`).

    Adds to the JSON: pins (row, column and digit of each guess that led to the answer); attempts counts the nodes.
    """
    return await finished(puzzle, {"nodes": nodes}, request, frames=False)


# ---- the page -------------------------------------------------------------------------------------------------------


def build(engine: Engine) -> gr.Blocks:
    """The whole page for an engine. Layout is Python's, drawing is page.js's, looks are style.css's."""
    global ENGINE
    ENGINE = engine
    task = engine.catalog()["checkpoints"][0]["task"]

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as demo:
        View("header")
        Wire("catalog", value=json.dumps(engine.catalog()))
        wires = {name: Wire(name) for name in ("solve", "whatif", "puzzle", "attention", "learn")}
        # Panels of the tab list that page.js draws; Gradio's own tabs mount their parts only when opened.
        # Solve and Explore show the same run, so they share its boards; style.css says what else either of them shows.
        with gr.Column(elem_id="panel-run", elem_classes=["air-panel", "air-page"]):
            with gr.Column(elem_classes=["air-card", "at-setup", "in-solve"]):
                View("setup")
            with gr.Column(elem_classes=["air-card", "at-stage"]):
                View("loop")
                with gr.Column(elem_classes="air-pairs"):
                    for run in "ab":  # this run, and one to compare with
                        with gr.Column(elem_classes=["air-pair", f"pair-{run}"]):
                            View(f"title-{run}")
                            Board(f"{run}-h", state="h", task=task)
                            Board(f"{run}-l", state="l", task=task)
                View("player")
                View("look")
                View("verdict")
            with gr.Column(elem_classes=["air-card", "at-edit", "in-solve"]):
                Board("editor", mode="edit", task=task)
                View("tools")
            with gr.Column(elem_classes=["air-card", "at-side", "in-explore"]):
                View("whatif")
                View("charts")
        with gr.Column(elem_id="panel-learn", elem_classes=["air-panel", "air-page", "air-hidden"]):
            with gr.Column(elem_classes="air-card"):
                gr.HTML(learn_text(), apply_default_css=False)
            with gr.Column(elem_classes="air-card"):
                View("figure")
        with gr.Column(elem_id="panel-share", elem_classes=["air-panel", "air-page", "air-hidden"]):
            with gr.Column(elem_classes="air-card"):
                View("share")

        # The page itself knows which answer it waits for, so a new question need not wait for an old answer.
        private: dict[str, Any] = {
            "api_visibility": "private", "show_progress": "hidden", "trigger_mode": "multiple"
        }  # fmt: skip
        # The model serves one job at a time (TURNS); here many may wait, so that each page can show its place in line.
        for name in ("solve", "whatif"):
            running = wires[name].submit(on_run, None, wires[name], concurrency_limit=None, **private)
            wires[name].stop(lambda: None, None, None, cancels=[running], queue=False, api_visibility="private")
        wires["attention"].submit(on_attention, None, wires["attention"], concurrency_limit=None, **private)
        wires["learn"].submit(on_learn, None, wires["learn"], concurrency_limit=None, **private)
        wires["puzzle"].submit(on_puzzle, None, wires["puzzle"], concurrency_limit=2, **private)
        for function in (solve, think, rollout, what_if):
            gr.api(function, api_name=function.__name__, concurrency_limit=None)
    demo.queue(max_size=256, default_concurrency_limit=2)
    return demo


def learn_text() -> str:
    return f'<div class="air-view">{(STATIC / "learn.html").read_text()}</div>'


def launch(demo: gr.Blocks, **overrides: Any) -> Any:
    """Start the server; loopback unless GRADIO_SERVER_NAME says otherwise."""
    scripts = "\n".join((STATIC / name).read_text() for name in ("share.js", "stage.js", "page.js"))
    icon = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><rect x='2' y='2' width='13' height='28' rx='4' "
        "fill='#D55E00'/><rect x='17' y='2' width='13' height='28' rx='4' fill='#0072B2'/></svg>"
    )
    head = (
        f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{urllib.parse.quote(icon)}">'
        f"<script>{scripts}</script>"
    )
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    options: dict[str, Any] = {
        "head": head,
        "css": (STATIC / "style.css").read_text(),
        "theme": gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
        "ssr_mode": False,
        "share": False,
        "allowed_paths": [],
        "max_file_size": "200kb",  # the page itself uploads nothing
        "show_error": True,  # errors are sentences; `sentence` keeps tracebacks out of them
        "footer_links": [],
        "quiet": True,
        "max_threads": 40,
    }
    return demo.launch(**{**options, **overrides})


def main() -> int:
    try:
        engine = Engine(find_checkpoints(os.environ.get("AIR_MODEL")))
        engine.model(engine.default)
    except (ValueError, OSError) as error:
        print(f"app: {error}", file=sys.stderr)
        return 1
    engine.learn_to_rate()
    demo = build(engine)
    names = ", ".join(engine.checkpoints)
    print(f"AIR Space with {names}", flush=True)
    _, url, _ = launch(demo, prevent_thread_lock=True)
    print(f"Running on {url}", flush=True)
    demo.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
