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

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:
    import bench  # noqa: F401

from air_model.benchmarks.bench import ROOT, arguments, in_sentences, table
from air_model.records import cpu_name, write_json, write_text
from air_model.scripts import build_dataset
from air_model.scripts.quickstart import CONFIRMED, DATA

PROCESSORS = {
    "as it is": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
}
OUTPUT = ROOT / "results" / "quickstart_processors.json"
SHOWN = (
    "device", "processor", "environment", "threads", "seed", "precision", "steps", "exact_accuracy", "cpu_seconds",
)  # fmt: skip


def run(folder: Path, data: Path, processor: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train and evaluate once; a row of the table."""
    values = [f"data={data}", f"seed={seed}", "final_eval_limit=0", "trackers=none", *overrides]
    start = [sys.executable, str(ROOT / "train_accelerate.py"), "--recipe", "quickstart", "--output-dir", str(folder)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*start, *values], check=True, env={**os.environ, **PROCESSORS[processor]})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    record = json.loads((folder / "run.json").read_text())
    return {
        "processor": processor,
        "environment": " ".join(f"{name}={value}" for name, value in PROCESSORS[processor].items()),
        "threads": record["hardware"]["threads"],
        "seed": seed,
        "overrides": " ".join(overrides),
        "precision": record["precision"],
        "steps": record["steps"],
        "n": record["metrics"]["eval"]["n"],
        "exact_accuracy": record["metrics"]["eval"]["exact_accuracy"],
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        **{name: record[name] for name in ("commit", "date", "versions")},
        "device": record["hardware"]["device"],
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


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__, OUTPUT)
    parser.add_argument("--processors", default=",".join(PROCESSORS), help=f"of {', '.join(PROCESSORS)}")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="passed on to train_accelerate.py")
    args = parser.parse_args(argv)
    if unknown := set(args.processors.split(",")) - set(PROCESSORS):
        parser.error(f"unknown processors {sorted(unknown)}: choose from {', '.join(PROCESSORS)}.")
    rows = json.loads(args.output.read_text())["rows"] if args.output.is_file() else []
    same = ("processor", "seed", "overrides", "threads", "device")
    known = {tuple(row[name] for name in same) for row in rows}
    threads = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        build_dataset.main([*DATA, "--output-dir", str(data)])
        for processor in args.processors.split(","):
            for seed in map(int, args.seeds.split(",")):
                if (processor, seed, " ".join(args.overrides), threads, cpu_name()) in known:
                    continue
                rows.append(run(Path(folder) / f"{processor}-{seed}", data, processor, seed, args.overrides))
                print(json.dumps(rows[-1]), flush=True)
                write_json(args.output, {"rows": rows})
                write_text(args.output.with_suffix(".md"), page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(in_sentences(main))
