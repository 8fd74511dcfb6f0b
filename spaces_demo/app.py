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
import contextvars
import functools
import itertools
import json
import time
import traceback
import urllib.parse
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

try:
    import gradio as gr
except ModuleNotFoundError as error:
    sys.exit(f"{error}. Install what the page needs: pip install 'air-model[demo]'.")
import numpy as np

import air_model
from air_model.attempts_air import NODES
from air_model.spaces_demo.engine import Engine, Events, Job, Stream, attention, find_checkpoints, run
from air_model.spaces_demo.examples import new_puzzle, usual_level
from air_model.spaces_demo.turns import Turns

# Seconds between two messages of a roll-out: updates that come faster travel together, and the page plays them one
# by one. Short at first, so that something moves at once; each one costs the server and the browser time.
FIRST_PACE, PACE = 0.05, 0.25

ENGINE: Engine
TURNS = Turns()
SLICES: deque[float] = deque([0.1], maxlen=20)  # seconds that the last turns at the model took
LESSONS: dict[str, Events] = {}  # a prepared run per checkpoint, which the page opens with
LESSON_SEED = 7


# ZeroGPU lends a GPU for the duration of a call; elsewhere nothing changes.
on_gpu = spaces.GPU(duration=60) if spaces else lambda function: function


@on_gpu
def run_here(job: Job, frames: bool) -> Stream:
    # With ZeroGPU the work happens in another process, which lends its turn to nobody.
    yield from run(ENGINE, job, frames, pauses=spaces is None)


@on_gpu
def attention_here(job: Job, step: Any, cell: Any) -> Stream:
    yield [{"t": "attention", **attention(ENGINE, job, step, cell)}]


# ---- the model, one job at a time -----------------------------------------------------------------------------------


def waiting(place: int) -> dict[str, Any]:
    """What is told to a job at a place in line, and in how many seconds its turn may come."""
    return {"t": "wait", "place": place, "seconds": round(place * sum(SLICES) / len(SLICES), 1)}


async def in_turns(stream: Stream, visitor: str) -> AsyncIterator[Events]:
    """Wait for a turn, then let the model work; {"t": "wait", ...} is told while others have theirs."""
    async with aclosing(TURNS.wait(visitor)) as places:
        async for place in places:
            yield [waiting(place)]
    # The stream's steps, one after another; ZeroGPU asks the context whose request they are for.
    loop, steps, run_step = asyncio.get_running_loop(), ThreadPoolExecutor(1), contextvars.copy_context().run
    start = began = time.monotonic()
    sent = 0.0
    ours, held = True, []  # the turn; events that wait to travel together
    try:
        while (events := await loop.run_in_executor(steps, run_step, next, stream, None)) is not None:
            held += [event for event in events if event["t"] != "pause"]
            now = time.monotonic()
            if events[-1]["t"] == "pause":  # others come first, and then it goes on
                SLICES.append(now - began)
                ours = False
                async with aclosing(TURNS.step_aside(visitor)) as places:
                    async for place in places:
                        yield [*held, waiting(place)]
                        held = []
                ours, began = True, time.monotonic()
            if held and held[-1]["t"] != "attempt" and now - sent > (FIRST_PACE if now - start < PACE else PACE):
                yield held
                held, sent = [], time.monotonic()
        SLICES.append(time.monotonic() - began)
        if held:
            yield held
    finally:
        closed = loop.run_in_executor(steps, run_step, stream.close)  # after the step that may still run
        if ours:
            closed.add_done_callback(lambda _: TURNS.release())
        steps.shutdown(wait=False)


async def job_of(puzzle: Any, settings: Any) -> Job:
    """`Engine.job`, in a thread: reading a long text takes a while, and the page lives on meanwhile."""
    return await asyncio.to_thread(ENGINE.job, puzzle, settings)


def events_of(job: Job, visitor: str, frames: bool = True) -> AsyncIterator[Events]:
    return in_turns(run_here(job, frames), visitor)


def visitor_of(request: gr.Request) -> str:
    """Who takes turns: a page or a client has one session; calls without one share the line of their address."""
    return str(getattr(request, "session_hash", None) or getattr(request.client, "host", "unknown"))


def sentence(error: Exception) -> str:
    """What a visitor is told. Faults of ours go to the log, not to the page."""
    if isinstance(error, ValueError):
        return str(error)
    traceback.print_exception(error)
    return "Something broke here; it has been written to the log. The page lives on: please try again."


# ---- what the page asks (lines of JSON) -----------------------------------------------------------------------------


def in_lines(answer: Callable[[dict[str, Any], str], AsyncIterator[Events]]) -> Callable[..., AsyncIterator[str]]:
    """The handler of a wire. Its answer grows by lines of JSON: the question's id, so that the page knows its own,
    then the events that `answer(data, visitor)` yields in lists, or a sentence about what was wrong."""

    async def handler(event: gr.EventData, request: gr.Request) -> AsyncIterator[str]:
        data = event._data if isinstance(event._data, dict) else {}
        text = ""

        def grown(*events: dict[str, Any]) -> str:
            return text + "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)

        yield (text := grown({"t": "start", "id": str(data.get("id"))[:40]}))
        try:
            async with aclosing(answer(data, visitor_of(request))) as stream:
                async for events in stream:
                    yield (text := grown(*events))
        except Exception as error:
            yield grown({"t": "error", "message": sentence(error)})

    return handler


async def on_run(data: dict[str, Any], visitor: str) -> AsyncIterator[Events]:
    """A roll-out, update by update."""
    job = await job_of(data.get("puzzle"), data.get("settings"))
    async with aclosing(events_of(job, visitor)) as stream:
        async for events in stream:
            yield events


async def on_attention(data: dict[str, Any], visitor: str) -> AsyncIterator[Events]:
    """Where a cell looks."""
    job = await job_of(data.get("puzzle"), data.get("settings"))
    async with aclosing(in_turns(attention_here(job, data.get("step"), data.get("cell")), visitor)) as stream:
        async for events in stream:
            yield events


async def on_puzzle(data: dict[str, Any], visitor: str) -> AsyncIterator[Events]:
    """A new puzzle, or a visitor's text read into the grid."""
    yield [await asyncio.to_thread(puzzle_for, data)]


def puzzle_for(data: dict[str, Any]) -> dict[str, Any]:
    action, text, note, halt = data.get("action"), data.get("text"), "", None
    if action == "new":
        checkpoint = ENGINE.place(str(data.get("checkpoint")))
        tokens = new_puzzle(checkpoint.task, str(data.get("level")), np.random.default_rng())
    elif action == "link":
        settings = data.get("settings")
        named = settings.get("checkpoint") if isinstance(settings, dict) else None
        checkpoint, tokens = ENGINE.read(text, named)
        note = checkpoint.missing
        if not checkpoint.vacant:
            note = "Puzzle and settings come from the link."
            if named:
                try:
                    ENGINE.checkpoint(str(named))
                except ValueError as error:  # links live longer than names of checkpoints
                    settings, note = settings | {"checkpoint": None}, f"{error} {checkpoint.key} took its puzzle."
            job = ENGINE.job(text, settings)
            checkpoint, halt = ENGINE.checkpoint(job.checkpoint), job.halt
    else:
        checkpoint, tokens, note = ENGINE.read_loosely(text, data.get("checkpoint"))
    answer = {"t": "puzzle", "puzzle": checkpoint.task.decode(tokens), "checkpoint": checkpoint.key}
    return {**answer, "note": note, "halt": halt, "about": ENGINE.describe(checkpoint)}


async def on_learn(data: dict[str, Any], visitor: str) -> AsyncIterator[Events]:
    """The prepared run of a checkpoint, its puzzle first, the same for everybody; of its own size computed once."""
    checkpoint = ENGINE.checkpoint(str(data.get("checkpoint")))
    if checkpoint.key in LESSONS:
        yield LESSONS[checkpoint.key]
        return
    task = checkpoint.task
    tokens = await asyncio.to_thread(new_puzzle, task, usual_level(task), np.random.default_rng(LESSON_SEED))
    job = await job_of(task.decode(tokens), {"checkpoint": checkpoint.key})
    lesson = [{"t": "lesson", "puzzle": job.puzzle}]
    yield lesson
    async with aclosing(events_of(job, visitor)) as stream:
        async for events in stream:
            events = [event for event in events if event["t"] != "wait"]
            lesson = lesson + events
            yield events
    if not checkpoint.base:  # of other sizes there are thousands
        LESSONS[checkpoint.key] = lesson


# ---- the API --------------------------------------------------------------------------------------------------------


async def finished(puzzle: str, settings: dict[str, Any], request: gr.Request, frames: bool) -> dict[str, Any]:
    """The end of a job, with the roll-out if asked; errors become Gradio's, whose text reaches every client."""
    try:
        job = await job_of(puzzle, settings)
        if frames and job.nodes:
            raise ValueError(
                f"A search of {job.nodes} nodes has no roll-out to return: leave out nodes, or ask /think."
            )
        async with aclosing(events_of(job, visitor_of(request), frames)) as stream:
            *shown, end = [event async for events in stream for event in events]
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from None
    end.pop("t")
    if not frames:
        return end
    at = shown.index({"t": "attempt", "view": end["view"]})  # the one whose answer was taken
    taken = [*itertools.takewhile(lambda event: event["t"] != "attempt", shown[at + 1 :])]
    names = {"updates": "lv", "z_h": "h", "z_l": "l"}
    states = {name: [event[key] for event in taken if event["t"] == "f"] for name, key in names.items()}
    return {**end, **states, "halt_probability": [event["p"] for event in taken if event["t"] == "q"]}


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
    """As /solve, but where the answer is refused a search by pins goes on, up to 256 nodes (less with `nodes`).

    Adds to the JSON: pins (row, column and digit of each guess that led to the answer; of a maze, the cells that were
    walled up, with the letter #); attempts counts the nodes.
    """
    return await finished(puzzle, {"nodes": nodes}, request, frames=False)


# ---- the page -------------------------------------------------------------------------------------------------------


def static(name: str) -> str:
    """A file of static/, in the package: in a Space this file lies beside it."""
    return (Path(air_model.__file__).parent / "spaces_demo" / "static" / name).read_text(encoding="utf-8")


html = functools.partial(gr.HTML, apply_default_css=False)


def board(name: str, task: dict[str, Any], state: str | None = None) -> gr.HTML:
    """A grid whose value is text, one letter per cell, row-major: the editor, or state "h" or "l" as decoded.

    What the visitor types or paints fires `change`; a click or Enter on a cell of a state fires `select` with its
    index. task: as `engine.describe` has it; the page may set another later.
    """
    role = {"h": "proposal", "l": "scratchpad", None: "puzzle"}[state]
    letter = f'<b class="z z-{state}">z<sub>{state.upper()}</sub></b>' if state else '<b class="z">x</b>'
    style, script = json.dumps(static("board.css")), static("board.js")
    return html(
        html_template=f'<figure class="fig"><figcaption>{letter}<span>{role}</span></figcaption>'
        '<div class="air-board"></div><p class="fig-note"></p></figure>',
        js_on_load="window.AirBoard.mount(element, props, trigger, watch)",
        head=f"<script>window.AIR_BOARD_STYLE = {style};\n{script}</script>",
        elem_id=f"board-{name}",
        # Props of the script:
        name=name,
        mode="state" if state else "edit",
        state=state,
        task=task,
        title=f"State z_{state.upper()}, {role}" if state else "Puzzle",
    )


def view(name: str, **options: Any) -> gr.HTML:
    """A part of the page that page.js draws."""
    part = f'<div class="air-view"><div data-view="{name}"></div></div>'
    return html(html_template=part, js_on_load="window.AIR.addView(element)", **options)


def wire(name: str, value: str = "") -> gr.HTML:
    """A hidden line to Python: the page triggers `submit` with a dictionary, the answer comes as lines of JSON."""
    script = f"window.AIR.addWire({json.dumps(name)}, props, trigger, watch)  // 'submit' 'stop'"
    return html(value, html_template="<i></i>", js_on_load=script, elem_classes="air-wire", elem_id=f"wire-{name}")


def build(engine: Engine) -> gr.Blocks:
    """The whole page for an engine. Layout is Python's, drawing is page.js's, looks are style.css's."""
    global ENGINE
    ENGINE = engine
    catalog = engine.catalog()
    task = catalog["checkpoints"][0]["task"]
    answers = {"solve": on_run, "whatif": on_run, "puzzle": on_puzzle, "attention": on_attention, "learn": on_learn}

    title = "AIR: watch two states think"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as demo:
        view("header")
        wire("catalog", json.dumps(catalog))
        for name, answer in answers.items():
            line = wire(name)
            # The page itself knows which answer it waits for, so a new question need not wait for an old answer. The
            # model serves one job at a time (TURNS); here many may wait, so that each page can show its place in line.
            asked = line.submit(
                in_lines(answer), None, line, api_visibility="private", show_progress="hidden",
                trigger_mode="multiple", concurrency_limit=None,
            )  # fmt: skip
            line.stop(lambda: None, None, None, cancels=[asked], queue=False, api_visibility="private")
        # Panels of the tab list that page.js draws; Gradio's own tabs mount their parts only when opened.
        # Solve and Explore show the same run, so they share its boards; style.css says what else either of them shows.
        with gr.Column(elem_id="panel-run", elem_classes=["air-panel", "air-page"]):
            with gr.Column(elem_classes=["air-card", "at-setup", "in-solve"]):
                view("setup")
            with gr.Column(elem_classes=["air-card", "at-stage"]):
                view("loop")
                with gr.Column(elem_classes="air-pairs"):
                    for run in "ab":  # this run, and one to compare with
                        with gr.Column(elem_classes=["air-pair", f"pair-{run}"]):
                            view(f"title-{run}")
                            board(f"{run}-h", task, "h")
                            board(f"{run}-l", task, "l")
                    view("look", elem_classes="pair-look")
                view("player")
                view("verdict")
            with gr.Column(elem_classes=["air-card", "at-edit", "in-solve"]):
                board("editor", task)
                view("tools")
            with gr.Column(elem_classes=["air-card", "at-side", "in-explore"]):
                view("whatif")
                view("charts")
        with gr.Column(elem_id="panel-learn", elem_classes=["air-panel", "air-page", "air-hidden"]):
            with gr.Column(elem_classes="air-card"):
                html(f'<div class="air-view">{static("learn.html")}</div>')
            for name in ("figure", "measured"):
                with gr.Column(elem_classes="air-card"):
                    view(name)
        with gr.Column(elem_id="panel-share", elem_classes=["air-panel", "air-page", "air-hidden"]):
            with gr.Column(elem_classes="air-card"):
                view("share")
        for function in (solve, think, rollout, what_if):
            gr.api(function, api_name=function.__name__, concurrency_limit=None)
    demo.queue(max_size=256, default_concurrency_limit=2)
    return demo


def launch(demo: gr.Blocks, **overrides: Any) -> Any:
    """Start the server; loopback unless GRADIO_SERVER_NAME says otherwise."""
    scripts = "\n".join(static(name) for name in ("share.js", "stage.js", "page.js"))
    icon = urllib.parse.quote(static("icon.svg").strip())
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    return demo.launch(
        head=f'<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{icon}"><script>{scripts}</script>',
        css=static("style.css"),
        theme=gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"]),
        ssr_mode=False,
        share=False,
        allowed_paths=[],
        max_file_size="200kb",  # the page itself uploads nothing
        show_error=True,  # errors are sentences; `sentence` keeps tracebacks out of them
        footer_links=[],
        quiet=True,
        **overrides,
    )


def main() -> int:
    try:
        engine = Engine(find_checkpoints(os.environ.get("AIR_MODEL")))
        engine.model(next(iter(engine.checkpoints)))
    except (ValueError, OSError) as error:
        print(f"app: {error}", file=sys.stderr)
        return 1
    engine.learn_to_rate()
    demo = build(engine)
    print(f"AIR Space with {', '.join(engine.checkpoints)}", flush=True)
    _, url, _ = launch(demo, prevent_thread_lock=True)
    print(f"Running on {url}", flush=True)
    demo.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
