"""Speed and memory of the data path: solver, generators, copies, batches for training, building.

    python benchmarks/data.py --real REAL.csv.gz --output results/benchmarks/data.json
    python benchmarks/data.py --only solver,feed   # without real rows: benchmark-like ones are made
    python benchmarks/data.py --quick              # a tenth of the work

Every figure is given by the clock and by CPU time (all threads): on a machine that other work shares, rows per CPU
second times the number of cores is what an idle machine would do. Compilation is done before the clock starts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench import ROOT, arguments, held, in_sentences, listed

from air_model.analysis.geometry import ranks
from air_model.datasets_builders import PuzzleSet, load_puzzles
from air_model.datasets_builders.build import BuildConfig, build
from air_model.datasets_builders.generate_maze import make_mazes
from air_model.datasets_builders.generate_sudoku import make_puzzles, random_grids, seeds_for
from air_model.datasets_builders.sudoku_solver import solve
from air_model.processing_air import MazeTask, SudokuTask
from air_model.records import command_line, cpu_name, source_state, write_json
from air_model.training.batches import PuzzleSampler

TASK = SudokuTask()
# VmHWM, not ru_maxrss: a started process inherits the latter from the one that started it.
MEASURED = """
import re, sys
sys.path.insert(0, "scripts")
import _checkout
from air_model.scripts import build_dataset
assert build_dataset.main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
"""


class Given:
    """What every case works on: Sudokus, those of --real or made here, and their solutions, (N, 81) each."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.cores = args, folder, args.threads
        self.thousand = 100 if args.quick else 1000
        self.real = load_puzzles(args.real, "train") if args.real else None
        if self.real is None:
            grids, seeds = (seeds_for(0, stream, 0, self.thousand) for stream in (0, 1))
            # Whose solutions are not the grids they began as.
            self.rows, self.grids, _ = make_puzzles(TASK, random_grids(TASK, grids), seeds, "benchmark")
        else:
            self.rows, self.grids = self.real.inputs, self.real.labels


def rate(work: Callable[[], Any], count: int, unit: str, cores: int = 1) -> dict[str, Any]:
    """How many a second, by the clock and by the CPU time of this process and its children."""
    used = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (0, resource.RUSAGE_CHILDREN))  # noqa: E731
    wall, cpu = time.perf_counter(), used()
    work()
    wall, cpu = time.perf_counter() - wall, used() - cpu
    figures = {"wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "per_wall_s": round(count / wall, 1)}
    each = {"per_cpu_s": round(count / cpu, 1), "per_s_on_idle_cores": round(count / cpu * cores, 1)}
    return {"count": count, "unit": unit, **figures, **each}


def solver(given: Given) -> dict[str, dict]:
    rows, real = given.rows, given.real
    solve(rows[:10], TASK)
    many = np.tile(rows, (given.thousand // 50, 1))
    out = rate(partial(solve, many, TASK, threads=given.cores), len(many), "puzzles proved", given.cores)
    counts, guesses, _ = solve(rows, TASK)
    out |= {"rows": "real" if real else "generated", "one_solution": int((counts == 1).sum())}
    if real is not None:
        correlation = np.corrcoef(ranks(guesses), ranks(real.rating))[0, 1]
        out["rank_correlation_with_real_rating"] = round(float(correlation), 4)
        out["ratings_equal"] = round(float((guesses == real.rating).mean()), 4)
    return {"solver": out}


def sudokus(given: Given) -> dict[str, dict]:
    count, made = given.args.sudokus or given.thousand, []
    seeds = seeds_for(1, 0, 0, count)
    make_puzzles(TASK, random_grids(TASK, seeds[:2]), seeds[:2], "benchmark")

    def work() -> None:
        grids = random_grids(TASK, seeds, given.cores)
        made.extend(make_puzzles(TASK, grids, seeds, "benchmark", given.cores))

    out = rate(work, count, "benchmark-like Sudokus", given.cores)
    shares = np.histogram(made[2], (0, 1, 10, 20, 50, 1 << 30))[0] / count
    names = ("0", "1-9", "10-19", "20-49", "50+")
    out["rating_shares"] = {name: round(float(share), 3) for name, share in zip(names, shares)}
    return {"sudokus": out | {"mean_clues": round(float((made[0] > 1).sum(-1).mean()), 2)}}


def mazes(given: Given) -> dict[str, dict]:
    make_mazes(MazeTask(5), seeds_for(0, 0, 0, 2))
    work = partial(make_mazes, MazeTask(), seeds_for(0, 0, 0, given.thousand), threads=given.cores)
    return {"mazes": rate(work, given.thousand, "30x30 mazes", given.cores)}


def feed(given: Given) -> dict[str, dict]:
    puzzles, batches = PuzzleSet(given.rows, given.grids, TASK), 2 * given.thousand
    out = {}
    for name, share in (("feed: symmetries", 0.0), ("feed: symmetries and easier copies", 0.5)):
        sampler = PuzzleSampler(puzzles, 768, seed=0, easier_share=share)
        work = lambda sampler=sampler: [sampler.draw(k + 1) for k in range(batches)]  # noqa: E731
        out[name] = rate(work, batches, "batches of 768 on one thread")
    return out


def write_copies(target: Path, given: Given, count: int) -> Path:
    """A CSV of `count` Sudokus, each another symmetric copy of one of the given ones."""
    letters = np.frombuffer(TASK.alphabet.encode(), np.uint8)
    with target.open("wb") as file:
        file.write(b"question,answer,rating\n")
        for first in range(0, count, 10_000):
            at = np.arange(first, min(first + 10_000, count)) % len(given.rows)
            symmetries = TASK.random_symmetries(np.random.default_rng(first), len(at))
            copies = (letters[symmetries.apply(own[at])] for own in (given.rows, given.grids))
            file.writelines(b"%b,%b,0\n" % (puzzle.tobytes(), grid.tobytes()) for puzzle, grid in zip(*copies))
    return target


def copies(given: Given) -> dict[str, dict]:
    source, cores = write_copies(given.folder / "base.csv", given, given.thousand), given.cores
    config = BuildConfig(dataset="sudoku-extreme", source=str(source), num_aug=1000, num_proc=cores, progress=False)
    work = partial(build, config, given.folder / "copies")
    return {"copies": rate(work, 1001 * given.thousand, "rows written with their copies")}


def memory(given: Given) -> dict[str, dict]:
    """Peak resident MiB (Linux) of scripts/build_dataset.py with a number of rows and with ten times as many."""
    base = write_copies(given.folder / "thousand.csv", given, 1000)
    peaks: dict[str, dict[str, float]] = {"rows of a CSV": {}, "copies of 1,000 puzzles": {}}
    for count in (100 * given.thousand, 1000 * given.thousand):
        source = write_copies(given.folder / "many.csv", given, count)
        more = ("--num-aug", str(count // 1000 - 1))
        for own, words in zip(peaks.values(), ([source], [base, *more])):
            command = [sys.executable, "-c", MEASURED, "sudoku-extreme", "--force", "--quiet", "--output-dir"]
            command += [given.folder / "built", "--source", *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            own[f"{count:,}"] = round(int(done.stdout.split()[-1]) / 1024, 1)
    return {"memory": {"peak_MiB_of_a_build": peaks}}


CASES = {case.__name__: case for case in (solver, sudokus, mazes, feed, copies, memory)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--real", help="CSV of real Sudoku rows")
    parser.add_argument("--only", type=listed(known=CASES), default=list(CASES), help=",".join(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sudokus", type=int, help="benchmark-like Sudokus to make (default 1,000)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    args = parser.parse_args()
    about = {"load_before": round(os.getloadavg()[0], 2), "command": command_line(), **source_state()}
    about["hardware"] = f"{cpu_name()}, {os.cpu_count()} cores visible, {args.threads} threads used"
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        given = Given(args, Path(folder))
        for name in args.only:
            for part, numbers in CASES[name](given).items():
                print(part, json.dumps(numbers), flush=True)
                results[part] = {**numbers, **about}
    if args.output:  # figures of other cases in it are kept
        write_json(args.output, held(args.output) | results)


if __name__ == "__main__":
    in_sentences(main)
