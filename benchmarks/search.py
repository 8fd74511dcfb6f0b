"""What more thought buys at Sudokus: a single pass, more steps, views, search by pins, and a classical solver.

    python benchmarks/search.py --model checkpoints/air-sudoku-9x9 --data dev_1175.csv.gz --limit 60 \\
        --output results/search.json            # a table beside it, results/search.md
    python benchmarks/search.py --model DIR --data dev.csv.gz --ways pins --nodes 512 --threads 2 --output out.json

Ways: single (all steps), rules (a single pass that stops where the rules accept), steps (as many ACT steps in one pass
as --more-steps), views (--views of them), uniform (the same search, but cell and digit chosen by the rules alone: the
fewest digits that do not clash, each as likely), pins (search by pins), classical (the solver of the data builders).
Seconds are of this process, user and system, divided by the puzzles: with several threads more than the clock shows.
"""

import argparse
import time
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench import arguments, headed, in_sentences, save_each

from air_model import attempts_air
from air_model.analysis.common import markdown_table
from air_model.attempts_air import solve_puzzles
from air_model.datasets_builders.loading import load_for_models
from air_model.datasets_builders.sudoku_solver import solve as solve_classically
from air_model.pipeline_air import load_model
from air_model.processing_air import GridTask

WAYS = ("single", "rules", "steps", "views", "uniform", "pins", "classical")


def uniform(task: GridTask, grids: np.ndarray, *unused: object) -> tuple[np.ndarray, list[dict[int, float]]]:
    """`attempts_air._split` without a model: the open cell with the fewest digits that clash with nothing."""
    digits = np.arange(2, task.vocab_size)
    seen = ((grids[:, None, :, None] == digits) & task.peers[None, :, :, None]).any(2)  # (R, S, n)
    count = np.where(grids == task.blank_token, (~seen).sum(-1), task.vocab_size)
    cells = count.argmin(-1)
    at = np.arange(len(cells)), cells
    costs = np.where(seen[at], -np.log(attempts_air.LEAST_BELIEF), np.log(np.maximum(count[at], 1))[:, None])
    some, costs = (grids == task.blank_token).any(-1), (costs + attempts_air.GUESS_COST).tolist()
    return cells, [dict(enumerate(row, start=2)) if more else {} for row, more in zip(costs, some)]


def run(way: str, model: Any, puzzles: Any, args: argparse.Namespace) -> dict[str, Any]:
    """One way of solving: exact and accepted share, nodes and ACT steps a puzzle, seconds."""
    task, n = puzzles.task, len(puzzles)
    options = {
        "single": {"halt": "max"},
        "steps": {"max_act_steps": args.more_steps},
        "views": {"attempts": args.views, "retry": "views"},
        "uniform": {"attempts": args.nodes, "retry": "pins"},
        "pins": {"attempts": args.nodes, "retry": "pins"},
    }.get(way, {})
    settings = {"halt": "rules", "progress": True, "dtype": args.dtype, "check": False, **options}
    work = partial(solve_puzzles, model, task, puzzles.inputs, **settings)
    if way == "classical":
        solve_classically(puzzles.inputs[:1], task, 1, 1)  # numba compiles
        work = partial(solve_classically, puzzles.inputs, task, 1, 1)
    guess = {"guess": uniform} if way == "uniform" else {}
    with mock.patch.dict(attempts_air.GUESSING, sudoku=attempts_air.GUESSING["sudoku"]._replace(**guess)):
        clock, start = time.perf_counter(), time.process_time()
        answers = work()
        spent = {"cpu_seconds_a_puzzle": time.process_time() - start, "seconds_a_puzzle": time.perf_counter() - clock}
    row: dict[str, Any] = {"way": way, "n": n}
    if way == "classical":
        _, guesses, tokens = answers
        row["guesses"] = round(float(guesses.mean()), 2)
    else:
        tokens = answers.tokens
        row |= {key: options[key] for key in ("attempts", "max_act_steps") if key in options}
        row |= {
            "mean_attempts": round(float(answers.attempts.mean()), 2),
            "median_attempts": float(np.median(answers.attempts)),
            "mean_act_steps": round(float(answers.act_steps.mean()), 1),
            "computed_act_steps": round(answers.stats["slot_steps"] / n, 1),
        }
    row |= {name: seconds / n for name, seconds in spent.items()}
    row["exact_accuracy"] = float((tokens == puzzles.labels).all(1).mean())
    row["valid_accuracy"] = float(task.verdicts(puzzles.inputs, tokens).valid.mean())
    return row


def page(record: dict[str, Any]) -> str:
    head = ["way", "n", "exact, %", "accepted, %", "nodes or views", "median", "ACT steps", "s a puzzle", "CPU s"]
    lines = []
    for row in record["rows"]:
        most = row.get("attempts") or row.get("max_act_steps")
        guesses = f"{row['guesses']} guesses" if "guesses" in row else row["mean_attempts"]
        lines.append([
            f"{row['way']}{f', at most {most}' if most else ''}", row["n"], f"{100 * row['exact_accuracy']:.1f}",
            f"{100 * row['valid_accuracy']:.1f}", guesses, row.get("median_attempts"), row.get("mean_act_steps"),
            f"{row['seconds_a_puzzle']:.2g}", f"{row['cpu_seconds_a_puzzle']:.2g}",
        ])  # fmt: skip
    return headed(
        "Search by pins, beside other ways to think more",
        record,
        markdown_table(head, lines)
        + "\nA classical solver takes microseconds for each of these puzzles. What the search shows is how far a\n"
        "network's own beliefs carry: they choose every guess, and the rules judge finished answers only.\n",
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--nodes", type=int, default=512)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--more-steps", type=int, default=256)
    parser.add_argument("--dtype", help="default: bfloat16 for a search where the processor has it, else float32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model)
    puzzles = load_for_models([model], args.data, args.split, args.limit)
    rows = (run(way, model, puzzles, args) for way in args.ways)
    save_each(rows, args.output, page, threads=args.threads)


if __name__ == "__main__":
    in_sentences(main)
