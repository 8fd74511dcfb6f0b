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
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

if not __package__:
    import bench  # noqa: F401

import numpy as np
import torch

from air_model import AirConfig, AirModel
from air_model.benchmarks.bench import CPU, ROOT, arguments, in_sentences
from air_model.pipeline_air import load_model, save_release
from air_model.processing_air import task_from_config
from air_model.records import environment, read_json, write_json
from air_model.spaces_demo.examples import levels, new_puzzle

CHROMIUM = shutil.which("chromium")


@contextlib.contextmanager
def space(model: Path, port: int) -> Iterator[tuple[int, float]]:
    """The Space as a process of its own: its number, and the seconds until it answered."""
    environment = {**os.environ, "AIR_MODEL": str(model), "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "spaces_demo" / "app.py")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        while not _answers(port):
            if process.poll() is not None or time.perf_counter() - began > 300:
                raise RuntimeError("The Space did not start.")
            time.sleep(0.05)
        yield process.pid, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
        return True
    return False


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used: unlike the clock, it hardly depends on what else runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def open_page(port: int, *flags: str) -> Iterator[Any]:
    """The Space's page in Chromium, told to run all ACT steps."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ("--no-sandbox", "--disable-gpu", *flags)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(flags))
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"http://127.0.0.1:{port}/")
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


def timed_clicks(port: int, clicks: int) -> dict[str, Any]:
    """Seconds from the click on Solve to the first update on screen, and to the verdict, when all have been played."""
    times = []
    with open_page(port) as page:
        for _ in range(clicks):
            new_on(page)
            page.wait_for_timeout(300)
            times.append(page.evaluate(TIMED_CLICK))
    in_seconds = {f"{name}_s": [round(t[key] / 1000, 3) for t in times]
                  for name, key in (("first_update", "first"), ("verdict", "verdict"))}  # fmt: skip
    return {"clicks": clicks, **in_seconds, "server_s": [t["server"] for t in times]}


def circumstances() -> dict[str, Any]:
    return {**environment(CPU, 1), "load_average": round(os.getloadavg()[0], 2), "nice": os.nice(0)}


def latency(folder: Path, port: int, clicks: int) -> dict[str, Any]:
    """Start-up, the page, and plain `solve` of the same model."""
    model = load_model(folder)
    task, rng, plain = task_from_config(model.config), np.random.default_rng(0), []
    with space(folder, port) as (pid, seconds):
        result: dict[str, Any] = {"model": folder.name, "start_up_s": round(seconds, 2)}
        result["start_up_cpu_s"] = round(cpu_seconds(pid), 2)
        if CHROMIUM:
            result["page"] = timed_clicks(port, clicks)
        for _ in range(clicks):
            puzzle = torch.from_numpy(new_puzzle(task, levels(task)[0], rng).astype(np.int64))[None]
            began = time.perf_counter()
            model.solve(puzzle)
            plain.append(round(time.perf_counter() - began, 3))
    result["plain_solve_s"] = plain
    if CHROMIUM:
        result["page_over_plain"] = round(median(result["page"]["verdict_s"]) / median(plain), 3)
    return result


def memory(folder: Path, port: int, solves: int) -> dict[str, Any]:
    """Megabytes after every tenth of the solves: resident in the server, and of the page's script.

    First `solves` roll-outs over the API, then as many clicked on one page.
    """
    every = max(1, solves // 10)
    with space(folder, port) as (pid, _):
        result: dict[str, Any] = {"model": folder.name, "at_start_mb": round(resident_megabytes(pid), 1)}
        result["over_api"] = api_memory(pid, port, folder, solves, every)
        if CHROMIUM:
            result["on_page"] = page_memory(pid, port, solves, every)
    for part in (result["over_api"], result.get("on_page", {"server_mb": []})):
        curve = part["server_mb"]
        if len(curve) >= 4:  # warming up is over after a fifth
            part["growth_after_a_fifth"] = round(curve[-1] / curve[1] - 1, 4)
    return result


def api_memory(pid: int, port: int, folder: Path, solves: int, every: int) -> dict[str, Any]:
    from gradio_client import Client

    client = Client(f"http://127.0.0.1:{port}", verbose=False)
    task, rng = task_from_config(AirConfig.from_pretrained(folder)), np.random.default_rng(1)
    curve = []
    for i in range(solves):
        puzzle = task.decode(new_puzzle(task, levels(task)[i % len(levels(task))], rng))
        answer = client.predict(puzzle, api_name="/rollout")
        assert answer["puzzle"] == puzzle
        if (i + 1) % every == 0:
            curve.append(round(resident_megabytes(pid), 1))
    return {"solves": solves, "server_mb": curve}


def page_memory(pid: int, port: int, solves: int, every: int) -> dict[str, Any]:
    curve, script = [], []
    with open_page(port, "--js-flags=--expose-gc", "--enable-precise-memory-info") as page:
        for i in range(solves):
            new_on(page)
            page.click("#air-solve")
            page.wait_for_selector("[data-view=verdict] .verdict")
            if (i + 1) % every == 0:
                curve.append(round(resident_megabytes(pid), 1))
                script.append(round(page.evaluate("gc(), performance.memory.usedJSHeapSize / 2 ** 20"), 1))
    return {"solves": solves, "server_mb": curve, "script_mb": script}


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__, ROOT / "results" / "space.json")
    parser.add_argument("--model", type=Path, help="model folder; default: full size, random weights, 9x9 Sudoku")
    parser.add_argument("--only", choices=["latency", "memory"], help="default: both")
    parser.add_argument("--solves", type=int, default=500, help="puzzles for the memory curve, default 500")
    parser.add_argument("--memory-model", type=Path, help="model folder for the memory curve; default: a small 9x9")
    parser.add_argument("--clicks", type=int, default=5, help="timed clicks (default 5)")
    parser.add_argument("--port", type=int, default=7950)
    args = parser.parse_args(argv)

    result = read_json(args.output) if args.only and args.output.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        timed, small = args.model, args.memory_model
        if timed is None:
            save_release(AirModel(AirConfig()), timed := Path(folder) / "full-size-random")
        if small is None:
            config = AirConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
            save_release(AirModel(config), small := Path(folder) / "small-random")
        if args.only != "memory":
            result["latency"] = {**circumstances(), **latency(timed, args.port, args.clicks)}
        if args.only != "latency":
            result["memory"] = {**circumstances(), **memory(small, args.port + 1, args.solves)}
    write_json(args.output, result)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(in_sentences(main))
