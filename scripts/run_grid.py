"""Run a grid of trainings: the published sweeps, or any product of recipe keys; resumable, locally or under Slurm.

    python scripts/run_grid.py --suite injection --task sudoku --seeds 0-4         # 8 variants x 5 seeds
    python scripts/run_grid.py --suite injection --task maze --seeds 0-4 --gpus-per-run 8 --launcher slurm
    python scripts/run_grid.py --suite level-token --task sudoku --seeds 0-4 --append-runs results/runs.jsonl
    python scripts/run_grid.py --suite operator --task sudoku --mini               # small, on a CPU, minutes
    python scripts/run_grid.py --recipe sudoku_6x6 --grid variant=Lx_H,HRM --grid lr=1e-3,3e-3 --seeds 0,1
    python scripts/run_grid.py --suite injection --task sudoku --dry-run                # only print the commands
    python scripts/run_grid.py --suite small --seeds 0-4 --launcher here data=DIR       # their tables on one CPU core
    python scripts/run_grid.py --suite ladder --seeds 0-2 --launcher here data=DIR      # from there to our recipes

Run the same command again to go on with a half-done grid: finished runs are kept, others resume from their newest
checkpoint. A failed run is tried again (--retries); one that another process still trains is waited for. Each run is a
folder of train_accelerate.py under --output-dir, beside log.txt with its output. Local runs take one GPU each (or
--gpus-per-run), and run one after another on a CPU.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

if not __package__:
    import _checkout  # noqa: F401

from air_model.records import append_runs_to
from air_model.scripts.door import in_sentences
from air_model.training.sweep import (
    RECIPES,
    SMALL_SUITES,
    SUITES,
    Here,
    Local,
    Slurm,
    make_runs,
    run_grid,
    without_known,
    write_curves,
)


@in_sentences("run_grid", extra="train")
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--suite", choices=[*SUITES, *SMALL_SUITES], help="a published sweep over variants")
    add("--grid", action="append", default=[], metavar="KEY=V,V", help="one axis of your own grid")
    add("--task", choices=sorted(RECIPES), help="chooses the published recipe")
    add("--recipe", help="another recipe")
    add("--seeds", default="0", help="0-4, or 0,1,5")
    add("--output-dir", type=Path, default=Path("runs"), help="default: runs/")
    how = "processes of this machine, one after another in this process (for runs of seconds), or jobs"
    add("--launcher", choices=["local", "here", "slurm"], default="local", help=how)
    add("--mini", action="store_true", help="small model, small generated puzzles: minutes on a CPU")
    add("--gpus-per-run", type=int, default=1, help="processes (and GPUs) of one run")
    add("--parallel", type=int, help="runs at a time on a machine without GPUs, default 1")
    add("--retries", type=int, default=1, help="how often a failed run is tried again")
    add("--append-runs", type=Path, metavar="FILE.jsonl", help="append every finished run's run.json")
    curves = "write every finished run's evaluations; runs that it holds are not made again"
    add("--curves", type=Path, metavar="FILE.jsonl", help=curves)
    add("--partition", help="of Slurm")
    add("--hours", type=int, default=24, help="Slurm's time limit of a job; it resumes in a new one")
    add("--cpus-per-run", type=int, default=4, help="of a Slurm job")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="any other sbatch option")
    add("--dry-run", action="store_true", help="print the commands and stop")
    add("overrides", nargs="*", metavar="key=value", help="recipe keys, for every run")
    arguments = parser.parse_intermixed_args(argv)
    try:
        runs = make_runs(arguments)
        if arguments.curves:
            asked, runs = len(runs), without_known(runs, arguments.curves)
            if not runs:
                print(f"All {asked} runs are in {arguments.curves}: nothing to do.")
                return 0
        if arguments.dry_run:
            for run in runs:
                print(shlex.join(run.command("python")))
            return 0
        if arguments.launcher == "slurm":
            launcher: Any = Slurm(arguments, runs[0].folder.parent)
        elif arguments.launcher == "here":
            launcher = Here()
        else:
            launcher = Local(arguments.gpus_per_run, arguments.parallel)
        # As Ctrl-C does; not by raising SIGINT, which a shell's `&` and nohup have ignored.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            states = run_grid(runs, launcher, retries=arguments.retries)
        finally:
            signal.signal(signal.SIGTERM, before)
    except KeyboardInterrupt:
        if arguments.curves:
            write_curves(runs, arguments.curves)
        return 130
    if arguments.curves:
        print(f"runs in {arguments.curves}: {write_curves(runs, arguments.curves)}")
    if arguments.append_runs:
        added = append_runs_to(arguments.append_runs, [run.report() for run in runs if run.finished()])
        print(f"{added} runs appended to {arguments.append_runs}")
    failed = [run for run in runs if states[run.name] == "failed"]
    for run in failed:
        print(f"failed: {run.name}; its output is in {run.folder / 'log.txt'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
