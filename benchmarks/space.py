"""Start-up, latency and memory of the Space, measured on the running page; writes results/space.json.

    python benchmarks/space.py                              # the full-size model with random weights, and 500 solves
    python benchmarks/space.py --model checkpoints/air-sudoku-6x6 --solves 100
    python benchmarks/space.py --only memory                # or latency: the other half of the file stays as it was

Measured: seconds from the command to the first answered request; from the click to the first update on screen and to
the verdict (Chromium, if installed); the page's time for all ACT steps over that of plain `solve` in this process, the
two taking turns; memory of the server while it solves different puzzles one after another, asked by a program and then
clicked on one page, whose own memory is read too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import _checkout  # noqa: F401
import numpy as np
import torch

from air_model import AirConfig, AirModel
from air_model.pipeline_air import load_model, save_release
from air_model.processing_air import task_from_config
from air_model.records import cpu_name, write_json
from air_model.spaces_demo.examples import levels, new_puzzle

ROOT = Path(__file__).resolve().parent.parent


def start(model: Path, port: int) -> tuple[subprocess.Popen, float]:
    """The Space as a process of its own, and the seconds until it answered."""
    environment = {**os.environ, "AIR_MODEL": str(model), "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "spaces_demo" / "app.py")], env=environment, stdout=subprocess.DEVNULL
    )
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            return process, time.perf_counter() - began
        except OSError:
            if process.poll() is not None or time.perf_counter() - began > 300:
                raise RuntimeError("The Space did not start.") from None
            time.sleep(0.05)


def resident_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used: unlike the clock, it hardly depends on what else runs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_browser(port: int, clicks: int) -> dict[str, Any] | None:
    """Seconds from the click on Solve to the first update on screen, and to the verdict, when all have been played."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    # Timed inside the page, so that the driver's own delays do not count.
    script = """() => new Promise((done) => {
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
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("html[data-air=ready]")
        page.uncheck("#air-halt")
        times = []
        for _ in range(clicks):
            before = page.evaluate("AIR.S.boards.editor.text")
            page.click("#air-new")
            page.wait_for_function("text => AIR.S.boards.editor.text !== text", arg=before)
            page.wait_for_timeout(300)
            times.append(page.evaluate(script))
        browser.close()
    return {
        "clicks": clicks,
        "first_update_s": [round(t["first"] / 1000, 3) for t in times],
        "verdict_s": [round(t["verdict"] / 1000, 3) for t in times],
        "server_s": [t["server"] for t in times],
    }


def circumstances() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpus": os.cpu_count(),
        "processor": cpu_name(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
        "load_average": round(os.getloadavg()[0], 2),
        "nice": os.nice(0),
    }


def latency(folder: Path, port: int, clicks: int) -> dict[str, Any]:
    """Start-up, the page, and plain `solve` of the same model."""
    process, seconds = start(folder, port)
    result: dict[str, Any] = {
        "model": folder.name,
        "start_up_s": round(seconds, 2),
        "start_up_cpu_s": round(cpu_seconds(process.pid), 2),
    }
    try:
        model = load_model(folder)
        task = task_from_config(model.config)
        plain = []
        rng = np.random.default_rng(0)
        page = in_browser(port, clicks)
        for _ in range(clicks):
            puzzle = new_puzzle(task, levels(task)[0], rng).astype(np.int64)
            began = time.perf_counter()
            model.solve(torch.from_numpy(puzzle)[None])
            plain.append(round(time.perf_counter() - began, 3))
        result["plain_solve_s"] = plain
        if page is not None:
            result["page"] = page
            result["page_over_plain"] = round(median(page["verdict_s"]) / median(plain), 3)
    finally:
        stop(process)
    return result


def memory(folder: Path, port: int, solves: int) -> dict[str, Any]:
    """Megabytes after every tenth of the solves: resident in the server, and of the page's script.

    First `solves` roll-outs over the API, then as many clicked on one page.
    """
    process, _ = start(folder, port)
    every = max(1, solves // 10)
    try:
        result: dict[str, Any] = {
            "model": folder.name,
            "at_start_mb": round(resident_megabytes(process.pid), 1),
            "over_api": api_memory(process.pid, port, folder, solves, every),
        }
        page = page_memory(process.pid, port, solves, every)
        if page is not None:
            result["on_page"] = page
    finally:
        stop(process)
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


def page_memory(pid: int, port: int, solves: int, every: int) -> dict[str, Any] | None:
    chromium = shutil.which("chromium")
    if chromium is None:
        return None
    from playwright.sync_api import sync_playwright

    curve, script = [], []
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--js-flags=--expose-gc", "--enable-precise-memory-info"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("html[data-air=ready]")
        page.uncheck("#air-halt")
        for i in range(solves):
            before = page.evaluate("AIR.S.boards.editor.text")
            page.click("#air-new")
            page.wait_for_function("text => AIR.S.boards.editor.text !== text", arg=before)
            page.click("#air-solve")
            page.wait_for_selector("[data-view=verdict] .verdict")
            if (i + 1) % every == 0:
                curve.append(round(resident_megabytes(pid), 1))
                script.append(round(page.evaluate("gc(), performance.memory.usedJSHeapSize / 2 ** 20"), 1))
        browser.close()
    return {"solves": solves, "server_mb": curve, "script_mb": script}


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait(30)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; default: full size, random weights, 9x9 Sudoku")
    parser.add_argument("--only", choices=["latency", "memory"], help="default: both")
    parser.add_argument("--solves", type=int, default=500, help="puzzles for the memory curve, default 500")
    parser.add_argument("--memory-model", type=Path, help="model folder for the memory curve; default: a small 9x9")
    parser.add_argument("--clicks", type=int, default=5, help="timed clicks (default 5)")
    parser.add_argument("--port", type=int, default=7950)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "space.json")
    args = parser.parse_args(argv)

    result: dict[str, Any] = {}
    if args.only and args.output.exists():
        result = json.loads(args.output.read_text())
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        timed, small = Path(folder) / "full-size-random", Path(folder) / "small-random"
        if args.model is None:
            save_release(AirModel(AirConfig()), timed)
        if args.memory_model is None:
            config = AirConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
            save_release(AirModel(config), small)
        timed, small = args.model or timed, args.memory_model or small

        if args.only != "memory":
            result["latency"] = {**circumstances(), **latency(timed, args.port, args.clicks)}
        if args.only != "latency":
            result["memory"] = {**circumstances(), **memory(small, args.port + 1, args.solves)}
    write_json(args.output, result)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
