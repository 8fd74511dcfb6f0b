"""Do answers stay when a CPU multiplies in bfloat16? Every puzzle is solved in float32 and in bfloat16, and compared.

    python benchmarks/precision.py --model checkpoints/air-sudoku-9x9 --data dev.csv.gz
    python benchmarks/precision.py --model checkpoints/* --data a.csv b.csv.gz built/folder --limit 1000 \\
        --output results/cpu_precision.json     # one --data for each model; a .md table beside it

"changed" counts the puzzles whose two answers differ, "lost" those that float32 alone solves, "won" those that
bfloat16 alone does. Seconds are of this process (user and system).
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench import arguments, headed, in_sentences, save_each, table, timed

from air_model.datasets_builders.loading import load_for_models
from air_model.pipeline_air import load_model


def compare(folder: str, data: str, split: str, limit: int, halt: str) -> dict[str, Any]:
    """One model's answers in both precisions: exact accuracies, counts and seconds."""
    model = load_model(folder)
    puzzles = load_for_models([model], data, split, limit)
    inputs = torch.from_numpy(puzzles.inputs)
    row: dict[str, Any] = {"model": Path(folder).name, "data": Path(data).name, "n": len(inputs), "halt": halt}
    answers, right = {}, {}
    for name in ("float32", "bfloat16"):
        work = partial(model.solve, inputs, halt=halt, dtype=name, return_logits=False)
        spent, solution, _ = timed(work, model.device, time.process_time)
        answers[name], row[f"seconds_{name}"] = solution.predictions.numpy(), round(spent, 1)
        # A maze has many shortest paths: right is what the rules accept.
        right[name] = puzzles.task.verdicts(puzzles.inputs, answers[name]).valid
        row[f"solved_{name}"] = int(right[name].sum())
        row[f"exact_{name}"] = int((answers[name] == puzzles.labels).all(1).sum())
    row["changed"] = int((answers["float32"] != answers["bfloat16"]).any(1).sum())
    row["lost"] = int((right["float32"] & ~right["bfloat16"]).sum())
    row["won"] = int((right["bfloat16"] & ~right["float32"]).sum())
    return row


def page(record: dict[str, Any]) -> str:
    return headed("float32 and bfloat16 answers on a CPU", record, table(record["rows"]))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", nargs="+", required=True, help="folders of models")
    parser.add_argument("--data", nargs="+", required=True, help="CSVs or built folders, one for each model")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--halt", choices=["max", "q"], default="max")
    args = parser.parse_args()
    if len(args.model) != len(args.data):
        parser.error(f"{len(args.model)} models and {len(args.data)} data sets: give one --data for each --model.")
    pairs = zip(args.model, args.data)
    save_each((compare(*pair, args.split, args.limit, args.halt) for pair in pairs), args.output, page)


if __name__ == "__main__":
    in_sentences(main)
