"""Time and memory of the attention and freeze studies beside plain solving, on the same device in the same run.

    python benchmarks/analysis.py                                     # full-size Sudoku model, a few puzzles on a CPU
    python benchmarks/analysis.py --task maze --max-act-steps 2       # memory of the 900 x 900 maps
    python benchmarks/analysis.py --puzzles 1000 --device cuda        # the whole study on a GPU
    python benchmarks/analysis.py --output results/analysis.json

Rounds alternate plain solving, attention and freeze; the ratio is that of the medians. On a CPU, processor time is
taken (others may be using the machine), on a GPU the clock. Weights and puzzles are random: neither matters here,
except that mazes have about as many path cells as real ones (112), for these are the queries.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import numpy as np
import torch

from air_model import AirConfig, AirModel
from air_model.analysis.attention import PUBLISHED_STEPS, attention_study
from air_model.analysis.common import Study
from air_model.analysis.freeze import freeze_study
from air_model.processing_air import task_from_config
from air_model.records import environment, write_json


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--task", choices=["sudoku", "maze"], default="sudoku")
    add("--variant", default="Lx_H")
    add("--puzzles", type=int, help="default: 8 Sudokus or 2 mazes on a CPU, 1,000 on a GPU")
    add(
        "--max-act-steps",
        type=int,
        help="default: the model's 16; the share of steps that are looked at stays one half",
    )
    add("--rounds", type=int, default=3)
    add("--batch-size", type=int)
    add("--hidden-size", type=int, default=512)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=1, help="on a CPU")
    add("--what", nargs="+", choices=["attention", "freeze"], default=["attention", "freeze"])
    add("--output", type=Path)
    return parser.parse_args(argv)


def study_of(args: argparse.Namespace) -> Study:
    """A random model and random grids with a typical number of queries."""
    fields: dict[str, Any] = {"task": args.task, "hidden_size": args.hidden_size}
    if args.max_act_steps:
        fields["halt_max_steps"] = args.max_act_steps
    torch.manual_seed(0)
    model = AirModel(AirConfig.from_variant(args.variant, **fields)).to(args.device)
    task, rng = task_from_config(model.config), np.random.default_rng(0)
    n = args.puzzles or (1000 if args.device == "cuda" else {"sudoku": 8, "maze": 2}[args.task])
    if args.task == "sudoku":
        labels = rng.integers(2, task.vocab_size, (n, task.seq_len))
        inputs = np.where(rng.random(labels.shape) < 0.69, 1, labels)  # 25 clues of 81
    else:
        inputs = np.where(rng.random((n, task.seq_len)) < 0.37, task.WALL, task.SPACE)
        inputs[:, 0], inputs[:, -1] = task.START, task.GOAL
        labels = inputs.copy()
        for row in labels:
            row[rng.choice(np.flatnonzero(row == task.SPACE), 112, replace=False)] = task.PATH
    return Study(model, inputs, labels, batch_size=args.batch_size)


def steps_of(study: Study) -> tuple[int, ...]:
    """Half of the ACT steps, the last among them, as in the paper."""
    most = study.config.halt_max_steps
    if most == 16:
        return PUBLISHED_STEPS
    return tuple(range(most - 1, -1, -2))[::-1]


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_gib(device: str) -> float:
    """Peak memory so far: of the GPU, or of this process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    study = study_of(args)
    steps = steps_of(study)
    work: dict[str, Callable[[], Any]] = {"plain": lambda: study.solve()}
    if "attention" in args.what:
        work["attention"] = lambda: attention_study(study, steps)
    if "freeze" in args.what:
        work["freeze"] = lambda: freeze_study(study)
    study.part(slice(0, min(2, len(study)))).solve(max_act_steps=1)  # warm up
    times: dict[str, list[float]] = {name: [] for name in work}
    memory = {}
    for _ in range(args.rounds):
        for name, run in work.items():
            if args.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times[name].append(seconds(run, args.device))
            memory[name] = round(peak_gib(args.device), 3)
    median = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "benchmark": "analysis",
        "command": " ".join(["python", "benchmarks/analysis.py", *(sys.argv[1:] if argv is None else argv)]),
        "task": args.task,
        "variant": args.variant,
        "puzzles": len(study),
        "batch_size": study.slots(),
        "hidden_size": args.hidden_size,
        "act_steps": study.config.halt_max_steps,
        "steps_looked_at": list(steps),
        "threads": args.threads if args.device == "cpu" else None,
        "clock": "wall" if args.device == "cuda" else "processor",
        "rounds": args.rounds,
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "seconds_of_every_round": {name: [round(v, 3) for v in values] for name, values in times.items()},
        "times_plain": {name: round(value / median["plain"], 3) for name, value in median.items()},
        "puzzles_per_second": {name: round(len(study) / value, 3) for name, value in median.items()},
        # Of a CPU process: the highest so far, plain solving first.
        "peak_gib": memory,
        "environment": environment(torch.device(args.device), 1),
    }
    print(json.dumps(result, indent=1))
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
