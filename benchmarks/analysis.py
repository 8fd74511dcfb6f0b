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
import statistics
import time

import numpy as np
import torch
from bench import arguments, in_sentences, in_turns, save

from air_model import AirConfig, AirModel
from air_model.analysis.attention import PUBLISHED_STEPS, attention_study
from air_model.analysis.common import Study
from air_model.analysis.freeze import freeze_study
from air_model.processing_air import task_from_config


def study_of(args: argparse.Namespace) -> Study:
    """A random model and random grids with a typical number of queries."""
    torch.manual_seed(0)
    config = AirConfig.from_variant(args.variant, task=args.task, halt_max_steps=args.max_act_steps)
    task, rng = task_from_config(config), np.random.default_rng(0)
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
    return Study(AirModel(config).to(args.device), inputs, labels, batch_size=args.batch_size)


def main() -> None:
    parser = arguments(__doc__)
    add = parser.add_argument
    add("--task", choices=["sudoku", "maze"], default="sudoku")
    add("--variant", default="Lx_H")
    add("--puzzles", type=int, help="default: 8 Sudokus or 2 mazes on a CPU, 1,000 on a GPU")
    add("--max-act-steps", type=int, default=16, help="the share of steps that are looked at stays one half")
    add("--rounds", type=int, default=3)
    add("--batch-size", type=int)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--what", nargs="+", choices=["attention", "freeze"], default=["attention", "freeze"])
    args = parser.parse_args()
    study, most = study_of(args), args.max_act_steps
    steps = PUBLISHED_STEPS if most == 16 else tuple(range((most - 1) % 2, most, 2))  # the last is among them
    studies = {"attention": lambda: attention_study(study, steps), "freeze": lambda: freeze_study(study)}
    study.part(slice(0, min(2, len(study)))).solve(max_act_steps=1)  # warm up
    clock = time.perf_counter if study.device.type == "cuda" else time.process_time
    work = {"plain": study.solve, **{name: studies[name] for name in args.what}}
    runs = in_turns(work, args.rounds, study.device, clock)
    median = {name: statistics.median(one.seconds for one in own) for name, own in runs.items()}
    rows = {
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "seconds_of_every_round": {name: [round(one.seconds, 3) for one in own] for name, own in runs.items()},
        "times_plain": {name: round(value / median["plain"], 3) for name, value in median.items()},
        "puzzles_per_second": {name: round(len(study) / value, 3) for name, value in median.items()},
        # Of a CPU process the highest so far: plain solving comes first.
        "peak_gib": {name: round(own[0].peak_gib, 3) for name, own in runs.items()},
    }
    about = {"task": args.task, "variant": args.variant, "puzzles": len(study), "batch_size": study.slots()}
    record = save(args.output, rows, study.device, **about, steps_looked_at=list(steps), rounds=args.rounds)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    in_sentences(main)
