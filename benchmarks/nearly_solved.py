"""How many nearly solved grids a Sudoku model finishes in one pass, by every halting rule.

    python benchmarks/nearly_solved.py --model checkpoints/air-sudoku-6x6 --data sudoku-6x6/test.csv
    python benchmarks/nearly_solved.py --model checkpoints/NAME --data 6x6.csv --output results/nearly_solved.json

Each grid is the solution of a row of the data with 1 to 12 cells left open, drawn with a fixed seed.
"""

import sys
from pathlib import Path

if not __package__:
    import bench  # noqa: F401

import numpy as np

from air_model import load_model, solve_puzzles
from air_model.benchmarks.bench import arguments, in_sentences
from air_model.datasets_builders.loading import load_puzzles
from air_model.records import command_line, environment, read_json, write_json


def nearly_solved(solutions: np.ndarray, blank: int, seed: int = 0) -> np.ndarray:
    """Solutions (N, S) with 1 to 12 cells each blanked."""
    rng = np.random.default_rng(seed)
    open_cells = rng.random(solutions.shape).argsort(1).argsort(1) < rng.integers(1, 13, len(solutions))[:, None]
    return np.where(open_cells, blank, solutions).astype(np.uint8)


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="as for scripts/evaluate.py")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=1000)
    args = parser.parse_args(argv)
    model, puzzles = load_model(args.model), load_puzzles(args.data, args.split)
    solutions = np.asarray(puzzles.labels)[: args.limit]
    grids, found = nearly_solved(solutions, puzzles.task.blank_token), {}
    for halt in ("max", "q", "rules"):
        answers = solve_puzzles(model, puzzles.task, grids, attempts=1, halt=halt, progress=True)
        right = (answers.tokens == solutions).all(1)
        found[halt] = {
            "n": len(grids),
            "exact_accuracy": float(right.mean()),
            "valid_accuracy": float(answers.verdict.valid.mean()),
            "mean_act_steps": float(answers.act_steps.mean()),
        }
        print(f"{args.model}, halt={halt}: {found[halt]}", flush=True)
    if args.output:  # results of other models in it are kept
        known = read_json(args.output) if args.output.is_file() else {}
        about = {"data": Path(args.data).name, "command": command_line(), "environment": environment(model.device, 1)}
        write_json(args.output, {**known, Path(args.model).name: {**about, "results": found}})
    return 0


if __name__ == "__main__":
    sys.exit(in_sentences(main))
