"""Speed and memory of the data path: solver, generators, copies, batches for training, building.

    python benchmarks/data.py --real REAL.csv.gz --output results/benchmarks/data.json
    python benchmarks/data.py --only solver,feed   # without real rows: benchmark-like ones are made
    python benchmarks/data.py --quick              # a tenth of the work

Every figure is given by the clock and by CPU time (all threads): on a machine that other work shares, rows per CPU
second times the number of cores is what an idle machine would do. Compilation is done before the clock starts.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import _checkout  # noqa: E402, F401  (makes this checkout importable as air_model)

from air_model.datasets_builders import PuzzleSet, load_puzzles  # noqa: E402
from air_model.datasets_builders.generate_maze import make_mazes  # noqa: E402
from air_model.datasets_builders.generate_sudoku import make_puzzles, random_grids, seeds_for  # noqa: E402
from air_model.datasets_builders.sudoku_solver import solve  # noqa: E402
from air_model.processing_air import MazeTask, SudokuTask  # noqa: E402
from air_model.records import cpu_name, write_json  # noqa: E402
from air_model.training.batches import PuzzleSampler  # noqa: E402

CASES = ("solver", "sudokus", "mazes", "feed", "copies", "memory")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process and its children)."""
    usage = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (0, resource.RUSAGE_CHILDREN))  # noqa: E731
    wall, cpu = time.perf_counter(), usage()
    work()
    return time.perf_counter() - wall, usage() - cpu


def figure(count: int, seconds: tuple[float, float], cores: int, unit: str) -> dict:
    wall, cpu = seconds
    return {
        "count": count,
        "unit": unit,
        "wall_s": round(wall, 3),
        "cpu_s": round(cpu, 3),
        "per_wall_s": round(count / wall, 1),
        "per_cpu_s": round(count / cpu, 1),
        "per_s_on_idle_cores": round(count / cpu * cores, 1),
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties averaged."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


# VmHWM, not ru_maxrss: a started process inherits the latter from the one that started it.
MEASURED = """
import re, sys
sys.path.insert(0, "scripts")
import _checkout
from air_model.scripts import build_dataset
assert build_dataset.main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_memory(*arguments: str) -> float:
    """Peak resident MiB of a process that runs scripts/build_dataset.py with these arguments (Linux)."""
    command = [sys.executable, "-c", MEASURED, *map(str, arguments), "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return round(int(done.stdout.split()[-1]) / 1024, 1)


def write_copies(target: Path, puzzles: np.ndarray, grids: np.ndarray, count: int) -> None:
    """A CSV of `count` Sudokus, each another symmetric copy of one of the given ones."""
    task = SudokuTask()
    letters = np.frombuffer(task.alphabet.encode(), np.uint8)
    with target.open("wb") as file:
        file.write(b"question,answer,rating\n")
        for first in range(0, count, 10_000):
            symmetries = task.random_symmetries(np.random.default_rng(first), min(10_000, count - first))
            at = np.arange(first, first + len(symmetries.cells)) % len(puzzles)
            inputs, labels = symmetries.apply(puzzles[at]), symmetries.apply(grids[at])
            rows = [letters[inputs], letters[labels]]
            comma, end = (np.tile(np.frombuffer(text, np.uint8), (len(inputs), 1)) for text in (b",", b",0\n"))
            file.write(np.concatenate([rows[0], comma, rows[1], end], axis=1).tobytes())


def memory(puzzles: np.ndarray, grids: np.ndarray, folder: Path, few: int) -> dict:
    """Peak memory of builds of `few` rows and of ten times as many."""
    peaks: dict[str, dict[str, float]] = {"rows of a CSV": {}, "copies of 1,000 puzzles": {}}
    base = folder / "thousand.csv"
    write_copies(base, puzzles, grids, 1000)
    for count in (few, 10 * few):
        source, target = folder / f"{count}.csv", folder / "built"
        write_copies(source, puzzles, grids, count)
        build = ("sudoku-extreme", "--force", "--output-dir", target, "--source")
        peaks["rows of a CSV"][f"{count:,}"] = peak_memory(*build, source)
        source.unlink()
        peaks["copies of 1,000 puzzles"][f"{count:,}"] = peak_memory(*build, base, "--num-aug", count // 1000 - 1)
    return {"peak_MiB_of_a_build": peaks}


def run(args: argparse.Namespace) -> dict:
    out, cores, scale = {}, args.threads, 0.1 if args.quick else 1.0
    sudoku, maze = SudokuTask(), MazeTask()
    thousand = int(1000 * scale)
    real = load_puzzles(args.real, "train") if args.real else None
    if real is None:
        grids = random_grids(sudoku, seeds_for(0, 0, 0, thousand))
        rows = make_puzzles(sudoku, grids, seeds_for(0, 1, 0, thousand), "benchmark").puzzles
    else:
        rows, grids = real.inputs, real.labels
    if "solver" in args.only:
        solve(rows[:10], sudoku)
        many = np.tile(rows, (int(20 * scale), 1))
        out["solver"] = figure(len(many), timed(lambda: solve(many, sudoku, threads=cores)), cores, "puzzles proved")
        counts, guesses, answers = solve(rows, sudoku)
        out["solver"] |= {"rows": "real" if real else "generated", "one_solution": int((counts == 1).sum())}
        if real is not None:
            correlation = np.corrcoef(ranks(guesses), ranks(real.rating))[0, 1]
            out["solver"]["rank_correlation_with_real_rating"] = round(float(correlation), 4)
            out["solver"]["ratings_equal"] = round(float((guesses == real.rating).mean()), 4)
    if "sudokus" in args.only:
        seeds = seeds_for(1, 0, 0, args.sudokus or thousand)
        make_puzzles(sudoku, random_grids(sudoku, seeds[:2]), seeds[:2], "benchmark")
        made = []
        work = lambda: made.append(make_puzzles(sudoku, random_grids(sudoku, seeds, cores), seeds, "benchmark", cores))  # noqa: E731
        out["sudokus"] = figure(len(seeds), timed(work), cores, "benchmark-like Sudokus")
        r = made[0].ratings
        bounds = {"0": (0, 0), "1-9": (1, 9), "10-19": (10, 19), "20-49": (20, 49), "50+": (50, 1 << 30)}
        out["sudokus"]["rating_shares"] = {
            k: round(float(((r >= a) & (r <= b)).mean()), 3) for k, (a, b) in bounds.items()
        }
        out["sudokus"]["mean_clues"] = round(float((made[0].puzzles > 1).sum(-1).mean()), 2)
    if "mazes" in args.only:
        make_mazes(MazeTask(5), seeds_for(0, 0, 0, 2))
        work = lambda: make_mazes(maze, seeds_for(0, 0, 0, thousand), threads=cores)  # noqa: E731
        out["mazes"] = figure(thousand, timed(work), cores, "30x30 mazes")
    if "feed" in args.only:
        for name, options in (("symmetries", {}), ("symmetries and easier copies", {"easier_share": 0.5})):
            sampler = PuzzleSampler(PuzzleSet(rows, grids, sudoku), 768, seed=0, **options)
            batches = int(2000 * scale)
            work = lambda: [sampler.draw(k + 1) for k in range(batches)]  # noqa: B023, E731
            out[f"feed: {name}"] = figure(batches, timed(work), 1, "batches of 768 on one thread")
    with tempfile.TemporaryDirectory() as folder:
        if "copies" in args.only:
            from air_model.datasets_builders.build import BuildConfig, build

            source = Path(folder) / "base.csv"
            with source.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["question", "answer"])
                writer.writerows((sudoku.decode(p), sudoku.decode(g)) for p, g in zip(rows[:thousand], grids))
            config = BuildConfig(
                dataset="sudoku-extreme", source=str(source), num_aug=1000, num_proc=cores, progress=False
            )
            seconds = timed(lambda: build(config, Path(folder) / "copies"))
            out["copies"] = figure(1001 * min(thousand, len(rows)), seconds, 1, "rows written with their copies")
        if "memory" in args.only:
            out["memory"] = memory(rows, grids, Path(folder), 10_000 if args.quick else 100_000)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", help="CSV of real Sudoku rows")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES), help=",".join(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sudokus", type=int, help="benchmark-like Sudokus to make (default 1,000)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--output", type=Path, help="JSON to write; figures of other cases in it are kept")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(CASES):
        parser.error(f"unknown cases {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    load = os.getloadavg()[0]
    results = run(args)
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    about = {
        "command": "python benchmarks/data.py " + " ".join(argv if argv is not None else sys.argv[1:]),
        "commit": git.stdout.strip(),
        "date": date.today().isoformat(),
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores visible, {args.threads} threads used",
        "load_before": round(load, 2),
        "python": platform.python_version(),
    }
    for name, numbers in results.items():
        print(name, json.dumps(numbers))
    if args.output:
        old = json.loads(args.output.read_text()) if args.output.exists() else {}
        old |= {name: {**numbers, **about} for name, numbers in results.items()}
        write_json(args.output, old)
    return 0


if __name__ == "__main__":
    sys.exit(main())
