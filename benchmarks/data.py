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
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:
    import bench  # noqa: F401

import numpy as np

from air_model.analysis.geometry import ranks
from air_model.benchmarks.bench import ROOT, arguments, in_sentences
from air_model.datasets_builders import PuzzleSet, load_puzzles
from air_model.datasets_builders.build import BuildConfig, build
from air_model.datasets_builders.generate_maze import make_mazes
from air_model.datasets_builders.generate_sudoku import make_puzzles, random_grids, seeds_for
from air_model.datasets_builders.sudoku_solver import solve
from air_model.processing_air import MazeTask, SudokuTask
from air_model.records import command_line, cpu_name, read_json, source_state, write_json
from air_model.training.batches import PuzzleSampler

CASES = ("solver", "sudokus", "mazes", "feed", "copies", "memory")


def timed(work: Callable[[], object], count: int, unit: str, cores: int = 1) -> dict:
    """How many a second, by the clock and by the CPU time of this process and its children."""
    usage = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (0, resource.RUSAGE_CHILDREN))  # noqa: E731
    wall, cpu = time.perf_counter(), usage()
    work()
    wall, cpu = time.perf_counter() - wall, usage() - cpu
    figures = {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "per_wall_s": round(count / wall, 1)}
    each = {"per_cpu_s": round(count / cpu, 1), "per_s_on_idle_cores": round(count / cpu * cores, 1)}
    return {"count": count, "unit": unit, **figures, **each}


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


def solver(rows: np.ndarray, real: PuzzleSet | None, scale: float, cores: int) -> dict:
    task = SudokuTask()
    solve(rows[:10], task)
    many = np.tile(rows, (int(20 * scale), 1))
    out = timed(lambda: solve(many, task, threads=cores), len(many), "puzzles proved", cores)
    counts, guesses, _ = solve(rows, task)
    out |= {"rows": "real" if real else "generated", "one_solution": int((counts == 1).sum())}
    if real is not None:
        correlation = np.corrcoef(ranks(guesses), ranks(real.rating))[0, 1]
        out["rank_correlation_with_real_rating"] = round(float(correlation), 4)
        out["ratings_equal"] = round(float((guesses == real.rating).mean()), 4)
    return out


def sudokus(count: int, cores: int) -> dict:
    task, seeds, made = SudokuTask(), seeds_for(1, 0, 0, count), []
    make_puzzles(task, random_grids(task, seeds[:2]), seeds[:2], "benchmark")
    work = lambda: made.append(make_puzzles(task, random_grids(task, seeds, cores), seeds, "benchmark", cores))  # noqa: E731
    out, edges = timed(work, count, "benchmark-like Sudokus", cores), (0, 1, 10, 20, 50, 1 << 30)
    names = ("0", "1-9", "10-19", "20-49", "50+")
    shares = np.histogram(made[0].ratings, edges)[0] / count
    out["rating_shares"] = {name: round(float(share), 3) for name, share in zip(names, shares)}
    return out | {"mean_clues": round(float((made[0].puzzles > 1).sum(-1).mean()), 2)}


def mazes(count: int, cores: int) -> dict:
    make_mazes(MazeTask(5), seeds_for(0, 0, 0, 2))
    work = lambda: make_mazes(MazeTask(), seeds_for(0, 0, 0, count), threads=cores)  # noqa: E731
    return timed(work, count, "30x30 mazes", cores)


def feed(puzzles: PuzzleSet, batches: int, **options: float) -> dict:
    sampler = PuzzleSampler(puzzles, 768, seed=0, **options)
    work = lambda: [sampler.draw(k + 1) for k in range(batches)]  # noqa: E731
    return timed(work, batches, "batches of 768 on one thread")


def copies(rows: np.ndarray, grids: np.ndarray, cores: int, folder: Path) -> dict:
    task, source = SudokuTask(), folder / "base.csv"
    with source.open("w", newline="") as file:
        pairs = ((task.decode(p), task.decode(g)) for p, g in zip(rows, grids))
        csv.writer(file).writerows([("question", "answer"), *pairs])
    config = BuildConfig(dataset="sudoku-extreme", source=str(source), num_aug=1000, num_proc=cores, progress=False)
    return timed(lambda: build(config, folder / "copies"), 1001 * len(rows), "rows written with their copies")


def run(args: argparse.Namespace) -> dict:
    out, cores, scale, task = {}, args.threads, 0.1 if args.quick else 1.0, SudokuTask()
    thousand = int(1000 * scale)
    real = load_puzzles(args.real, "train") if args.real else None
    if real is None:
        grids = random_grids(task, seeds_for(0, 0, 0, thousand))
        rows = make_puzzles(task, grids, seeds_for(0, 1, 0, thousand), "benchmark").puzzles
    else:
        rows, grids = real.inputs, real.labels
    if "solver" in args.only:
        out["solver"] = solver(rows, real, scale, cores)
    if "sudokus" in args.only:
        out["sudokus"] = sudokus(args.sudokus or thousand, cores)
    if "mazes" in args.only:
        out["mazes"] = mazes(thousand, cores)
    if "feed" in args.only:
        puzzles, batches = PuzzleSet(rows, grids, task), int(2000 * scale)
        out["feed: symmetries"] = feed(puzzles, batches)
        out["feed: symmetries and easier copies"] = feed(puzzles, batches, easier_share=0.5)
    with tempfile.TemporaryDirectory() as folder:
        if "copies" in args.only:
            out["copies"] = copies(rows[:thousand], grids[:thousand], cores, Path(folder))
        if "memory" in args.only:
            out["memory"] = memory(rows, grids, Path(folder), 10_000 if args.quick else 100_000)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--real", help="CSV of real Sudoku rows")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CASES), help=",".join(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sudokus", type=int, help="benchmark-like Sudokus to make (default 1,000)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - set(CASES):
        parser.error(f"unknown cases {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    about = {"load_before": round(os.getloadavg()[0], 2)}
    results = run(args)
    about |= {"command": command_line(), **source_state()}
    about["hardware"] = f"{cpu_name()}, {os.cpu_count()} cores visible, {args.threads} threads used"
    for name, numbers in results.items():
        print(name, json.dumps(numbers))
    if args.output:  # figures of other cases in it are kept
        old = read_json(args.output) if args.output.exists() else {}
        write_json(args.output, old | {name: {**numbers, **about} for name, numbers in results.items()})
    return 0


if __name__ == "__main__":
    sys.exit(in_sentences(main))
