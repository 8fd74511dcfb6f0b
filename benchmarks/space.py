"""Start-up, latency and memory of the Space, measured on the running page; writes results/space.json.

    python benchmarks/space.py                              # the full-size model with random weights, and 500 solves
    python benchmarks/space.py --model checkpoints/air-sudoku-6x6 --solves 100
    python benchmarks/space.py --only memory                # or latency: the other half of the file stays as it was

Measured: seconds from the command to the first answered request; from the click to the first update on screen and to
the verdict (Chromium, if installed); the page's time for all ACT steps over that of plain `solve` in this process, the
two taking turns; memory of the server while it solves different puzzles one after another, asked by a program and then
clicked on one page, whose own memory is read too.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from bench import CPU, ROOT, arguments, held, in_sentences, timed

from air_model import AirConfig, AirModel
from air_model.pipeline_air import load_model, save_release
from air_model.processing_air import task_from_config
from air_model.records import environment, write_json
from air_model.spaces_demo.examples import levels, new_puzzle

CHROMIUM = shutil.which("chromium")


@contextlib.contextmanager
def space(model: Path, port: int) -> Iterator[tuple[psutil.Popen, str, float]]:
    """The Space as a process of its own, its address, and the seconds until it answered."""
    variables = {**os.environ, "AIR_MODEL": str(model), "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    began, url = time.perf_counter(), f"http://127.0.0.1:{port}/"
    command = [sys.executable, str(ROOT / "spaces_demo" / "app.py")]
    process = psutil.Popen(command, env=variables, stdout=subprocess.DEVNULL)
    answered = False
    try:
        while not answered:
            if process.poll() is not None or time.perf_counter() - began > 300:
                raise OSError("The Space did not start.")
            time.sleep(0.05)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=5).read()
                answered = True
        yield process, url, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


@contextlib.contextmanager
def open_page(url: str, *flags: str) -> Iterator[Any]:
    """The Space's page in Chromium, told to run all ACT steps."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ("--no-sandbox", "--disable-gpu", *flags)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(flags))
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(url)
        page.wait_for_selector("html[data-air=ready]")
        page.uncheck("#air-halt")
        yield page
        browser.close()


def new_on(page: Any) -> None:
    """Another puzzle on the page."""
    before = page.evaluate("AIR.S.boards.editor.text")
    page.click("#air-new")
    page.wait_for_function("text => AIR.S.boards.editor.text !== text", arg=before)


# Timed inside the page, so that the driver's own delays do not count.
TIMED_CLICK = """() => new Promise((done) => {
    const began = performance.now(), times = {};
    const look = () => {
        if (!times.first && AIR.S.at >= 0) times.first = performance.now() - began;
        if (document.querySelector("[data-view=verdict] .verdict")) {
            times.verdict = performance.now() - began;
            times.server = AIR.S.run.end.seconds;
            done(times);
        } else setTimeout(look, 20); // asking in every frame would make the browser draw every frame
    };
    document.querySelector("#air-solve").click();
    look();
})"""


def timed_clicks(url: str, clicks: int) -> dict[str, Any]:
    """Seconds from the click on Solve to the first update on screen, and to the verdict, when all have been played."""
    times = []
    with open_page(url) as page:
        for _ in range(clicks):
            new_on(page)
            page.wait_for_timeout(300)
            times.append(page.evaluate(TIMED_CLICK))
    first, verdict = ([round(t[key] / 1000, 3) for t in times] for key in ("first", "verdict"))
    return {
        "clicks": clicks, "first_update_s": first, "verdict_s": verdict, "server_s": [t["server"] for t in times],
    }  # fmt: skip


def latency(folder: Path, port: int, clicks: int) -> dict[str, Any]:
    """Start-up, the page, and plain `solve` of the same model."""
    model, rng, plain = load_model(folder), np.random.default_rng(0), []
    task = task_from_config(model.config)
    with space(folder, port) as (process, url, seconds):
        used = process.cpu_times()  # unlike the clock, it hardly depends on what else runs
        result = {"start_up_s": round(seconds, 2), "start_up_cpu_s": round(used.user + used.system, 2)}
        if CHROMIUM:
            result["page"] = timed_clicks(url, clicks)
        for _ in range(clicks):
            puzzle = torch.from_numpy(new_puzzle(task, levels(task)[0], rng).astype(np.int64))[None]
            plain.append(round(timed(lambda puzzle=puzzle: model.solve(puzzle)).seconds, 3))
    result["plain_solve_s"] = plain
    if CHROMIUM:
        result["page_over_plain"] = round(median(result["page"]["verdict_s"]) / median(plain), 3)
    return result


def memory(folder: Path, port: int, solves: int) -> dict[str, Any]:
    """Megabytes of the server while it solves puzzles asked over the API, then as many clicked on one page."""
    from gradio_client import Client

    task, rng = task_from_config(AirConfig.from_pretrained(folder)), np.random.default_rng(1)
    with space(folder, port) as (process, url, _):
        resident = lambda: process.memory_info().rss / 2**20  # noqa: E731
        result: dict[str, Any] = {"at_start_mb": round(resident(), 1)}
        client = Client(url, verbose=False)

        def ask(number: int) -> None:
            puzzle = task.decode(new_puzzle(task, levels(task)[number % len(levels(task))], rng))
            assert client.predict(puzzle, api_name="/rollout")["puzzle"] == puzzle

        result["over_api"] = curves(ask, solves, server_mb=resident)
        if CHROMIUM:
            with open_page(url, "--js-flags=--expose-gc", "--enable-precise-memory-info") as page:

                def click(number: int) -> None:
                    new_on(page)
                    page.click("#air-solve")
                    page.wait_for_selector("[data-view=verdict] .verdict")

                script = lambda: page.evaluate("gc(), performance.memory.usedJSHeapSize / 2 ** 20")  # noqa: E731
                result["on_page"] = curves(click, solves, server_mb=resident, script_mb=script)
    return result


def curves(solve: Callable[[int], None], solves: int, **read: Callable[[], float]) -> dict[str, Any]:
    """What is read after every tenth of the solves, and how much the server's memory grew once it was warm."""
    found: dict[str, Any] = {"solves": solves, **{name: [] for name in read}}
    for number in range(solves):
        solve(number)
        if (number + 1) % max(1, solves // 10) == 0:
            for name, megabytes in read.items():
                found[name].append(round(megabytes(), 1))
    server = found["server_mb"]
    if len(server) >= 4:  # warming up is over after a fifth
        found["growth_after_a_fifth"] = round(server[-1] / server[1] - 1, 4)
    return found


def main() -> None:
    parser = arguments(__doc__, ROOT / "results" / "space.json")
    parser.add_argument("--model", type=Path, help="model folder; default: full size, random weights, 9x9 Sudoku")
    parser.add_argument("--only", choices=["latency", "memory"], help="default: both")
    parser.add_argument("--solves", type=int, default=500, help="puzzles for the memory curve, default 500")
    parser.add_argument("--memory-model", type=Path, help="model folder for the memory curve; default: a small 9x9")
    parser.add_argument("--clicks", type=int, default=5, help="timed clicks (default 5)")
    parser.add_argument("--port", type=int, default=7950)
    args = parser.parse_args()
    result = held(args.output) if args.only else {}
    small = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    with tempfile.TemporaryDirectory() as folder:
        for part, measure, given, name, sizes, *how in (
            ("latency", latency, args.model, "full-size-random", {}, args.port, args.clicks),
            ("memory", memory, args.memory_model, "small-random", small, args.port + 1, args.solves),
        ):
            if args.only in (None, part):
                if given is None:
                    torch.manual_seed(0)
                    save_release(AirModel(AirConfig(**sizes)), given := Path(folder) / name)
                load = {"load_average": round(os.getloadavg()[0], 2), "nice": os.nice(0), "model": given.name}
                result[part] = {**environment(CPU, 1), **load, **measure(given, *how)}
    write_json(args.output, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    in_sentences(main)
