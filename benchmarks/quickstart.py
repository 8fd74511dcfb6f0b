"""The quickstart's recipe on emulated processors, several seeds each: does every run reach the mark?

    python benchmarks/quickstart.py                                     # all of PROCESSORS, seeds 0 to 2: 9 runs
    python benchmarks/quickstart.py --processors avx2 --seeds 3,4       # adds these runs to the table
    OMP_NUM_THREADS=2 python benchmarks/quickstart.py --processors default --seeds 0
    python benchmarks/quickstart.py --output try.json max_steps=500  # other values of the recipe

Each run trains from the start and judges the 500 held-out puzzles at 16 ACT steps, as scripts/quickstart.py does, in a
process of its own. Its seconds are those of the processor (user and system, evaluation included), which a busy machine
changes less than minutes by the clock. Runs that the output holds already are not repeated; the table is written anew
after every run. The environment limits the kernels, not the arithmetic of another maker's.
"""

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import ROOT, arguments, held, in_sentences, listed, table

from air_model.records import cpu_name, read_json, write_json, write_text
from air_model.scripts import build_dataset
from air_model.scripts.quickstart import CONFIRMED, DATA

PROCESSORS = {
    "as it is": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
}
SHOWN = (
    "device", "processor", "environment", "threads", "seed", "precision", "steps", "exact_accuracy", "cpu_seconds",
)  # fmt: skip


def run(folder: Path, data: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate once; a row of the table."""
    kernels, overrides = PROCESSORS[about["processor"]], about["overrides"].split()
    values = [f"data={data}", f"seed={about['seed']}", "final_eval_limit=0", "trackers=none", *overrides]
    start = [sys.executable, str(ROOT / "train_accelerate.py"), "--recipe", "quickstart", "--output-dir", str(folder)]
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # noqa: E731
    before = used()
    subprocess.run([*start, *values], check=True, env={**os.environ, **kernels})
    record = read_json(folder / "run.json")
    return {
        **about,
        "environment": " ".join(f"{name}={value}" for name, value in kernels.items()),
        "n": record["metrics"]["eval"]["n"],
        "exact_accuracy": record["metrics"]["eval"]["exact_accuracy"],
        "cpu_seconds": round(used() - before, 1),
        **{name: record["hardware"][name] for name in ("device", "threads")},
        **{name: record[name] for name in ("precision", "steps", "commit", "date", "versions")},
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, each with what made it."""
    last = rows[-1]
    reached = sum(row["exact_accuracy"] >= CONFIRMED for row in rows)
    return (
        f"# The quickstart on processors, as they are and emulated\n\n{reached} of {len(rows)} runs reach "
        f"{CONFIRMED:.0%} of {last['n']} held-out 6x6 Sudokus. `python benchmarks/quickstart.py`, "
        f"last run {last['date']}, commit {last['commit']}.\n\n{table(rows, SHOWN)}"
    )


def main() -> None:
    parser = arguments(__doc__, ROOT / "results" / "quickstart_processors.json")
    parser.add_argument("--processors", type=listed(known=PROCESSORS), default=list(PROCESSORS))
    parser.add_argument("--seeds", type=listed(int), default="0,1,2")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to train_accelerate.py")
    args = parser.parse_args()
    rows = held(args.output).get("rows", [])
    same = {"overrides": " ".join(args.overrides), "device": cpu_name()}
    same["threads"] = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build_dataset.main([*DATA, "--output-dir", str(data)])
        for processor, seed in itertools.product(args.processors, args.seeds):
            about = {"processor": processor, "seed": seed, **same}
            if any(row | about == row for row in rows):
                continue
            rows.append(run(Path(folder) / f"{processor}-{seed}", data, about))
            print(json.dumps(rows[-1]), flush=True)
            write_json(args.output, {"rows": rows})
            write_text(args.output.with_suffix(".md"), page(rows))


if __name__ == "__main__":
    in_sentences(main)
