"""Do answers stay when a CPU multiplies in bfloat16? Every puzzle is solved in float32 and in bfloat16, and compared.

    python benchmarks/precision.py --model checkpoints/air-sudoku-9x9 --data dev.csv.gz
    python benchmarks/precision.py --model checkpoints/* --data a.csv b.csv.gz built/folder --limit 1000 \\
        --output results/cpu_precision.json     # one --data for each model; a .md table beside it

"changed" counts the puzzles whose two answers differ, "lost" those that float32 alone solves, "won" those that
bfloat16 alone does. Seconds are of this process (user and system).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:
    import bench  # noqa: F401

import torch

from air_model.benchmarks.bench import arguments, in_sentences, save, seconds, table
from air_model.datasets_builders import load_puzzles
from air_model.pipeline_air import load_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def compare(folder: str, data: str, split: str, limit: int, halt: str) -> dict[str, Any]:
    """One model's answers in both precisions: exact accuracies, counts and seconds."""
    model, puzzles = load_model(folder), load_puzzles(data, split, limit=limit)
    inputs = torch.from_numpy(puzzles.inputs)
    row: dict[str, Any] = {"model": Path(folder).name, "data": Path(data).name, "n": len(inputs), "halt": halt}
    answers, right = {}, {}
    for name, dtype in DTYPES.items():
        work = lambda dtype=dtype: model.solve(inputs, halt=halt, dtype=dtype, return_logits=False)  # noqa: E731
        spent, solution = seconds(work, model.device, time.process_time)
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
    """The rows in Markdown, under what made them."""
    where = f"{record['hardware']['device']}, commit {record['commit']}, {record['date']}"
    return f"# float32 and bfloat16 answers on a CPU\n\n`{record['command']}`\n\n{where}\n\n{table(record['rows'])}"


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--model", nargs="+", required=True, help="folders of models")
    parser.add_argument("--data", nargs="+", required=True, help="CSVs or built folders, one for each model")
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--halt", choices=["max", "q"], default="max")
    args = parser.parse_args(argv)
    if len(args.model) != len(args.data):
        parser.error(f"{len(args.model)} models and {len(args.data)} data sets: give one --data for each --model.")
    rows = []
    for model, data in zip(args.model, args.data):
        rows.append(compare(model, data, args.split, args.limit, args.halt))
        print(json.dumps(rows[-1]), flush=True)
    save(args.output, rows, page=page)
    return 0


if __name__ == "__main__":
    sys.exit(in_sentences(main))
