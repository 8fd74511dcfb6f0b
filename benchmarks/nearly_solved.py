"""How many nearly solved grids a Sudoku model finishes in one pass, by every halting rule.

    python benchmarks/nearly_solved.py --model checkpoints/air-sudoku-6x6 --data sudoku-6x6/test.csv
    python benchmarks/nearly_solved.py --model checkpoints/NAME --data 6x6.csv --output results/nearly_solved.json

Each grid is the solution of a row of the data with 1 to 12 cells left open, drawn with a fixed seed.
"""

from pathlib import Path

import numpy as np
from bench import accuracies, arguments, held, in_sentences

from air_model import load_model, solve_puzzles
from air_model.datasets_builders.loading import load_for_models
from air_model.records import command_line, environment, write_json


def nearly_solved(solutions: np.ndarray, blank: int, seed: int = 0) -> np.ndarray:
    """Solutions (N, S) with 1 to 12 cells each blanked."""
    rng = np.random.default_rng(seed)
    open_cells = rng.random(solutions.shape).argsort(1).argsort(1) < rng.integers(1, 13, len(solutions))[:, None]
    return np.where(open_cells, blank, solutions).astype(np.uint8)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="as for scripts/evaluate.py")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=1000)
    args = parser.parse_args()
    model = load_model(args.model)
    puzzles = load_for_models([model], args.data, args.split, args.limit)
    grids, found = nearly_solved(puzzles.labels, puzzles.task.blank_token), {}
    for halt in ("max", "q", "rules"):
        answers = solve_puzzles(model, puzzles.task, grids, halt=halt, progress=True)
        found[halt] = {"n": len(grids), **accuracies(answers, puzzles.labels)}
        print(f"{args.model}, halt={halt}: {found[halt]}", flush=True)
    if args.output:  # results of other models in it are kept
        about = {"data": Path(args.data).name, "command": command_line(), "environment": environment(model.device, 1)}
        known = held(args.output) | {Path(args.model).name: {**about, "results": found}}
        write_json(args.output, known)


if __name__ == "__main__":
    in_sentences(main)
