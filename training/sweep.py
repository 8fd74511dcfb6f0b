"""Sweeps: the runs of a grid, and what starts, resumes, retries and reports them. The door: scripts/run_grid.py."""

import argparse
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from air_model.configuration_air import AirConfig
from air_model.records import make_folder, read_lines, read_run, write_lines
from air_model.training.launch import TAKEN, FolderTaken, Signals, is_taken, say
from air_model.training.miniature import miniature, on_miniature_data
from air_model.training.recipe import Recipe, as_words, has_finished, read_recipe, split_word

ROOT = Path(__file__).resolve().parent.parent

# Rows of the published tables.
SUITES = {
    "injection": ["L_Hx", "Lx_H", "L_H2x", "L2x_H", "Lx_H2x", "L2x_Hx", "Lx_Hx", "L2x_H2x"],
    "level-token": ["L2x_H2x", "L2x_H2x_add", "L2x_H2x_prepend", "L2x_H2x_prepend_no_strip"],
    "operator": ["Lx_H", "minus_x", "gx_linear", "gx_nonlinear", "had_prod"],
}
# The same tables at a size for one CPU core, and the ladder from their arithmetic to that of our small recipes.
SMALL_SUITES = {
    "small": [*SUITES["injection"], *SUITES["level-token"][1:], "HRM"],
    "ladder": ["Lx_H", "Lx_Hx", "L_Hx", "L2x_H2x", "L2x_H2x_prepend"],
}
SMALL_RECIPE = "published_small"
# Each rung is the one before with one thing changed, and the steps that it takes; the lowest is the table "small".
RUNGS: dict[str, dict[str, Any]] = {
    "published": {},
    "rope2d": {"position_embedding": "rope2d", "cell_embedding": True, "max_steps": 320, "eval_every": 40},
    "relations": {
        "head_relations": ["row", "column", "box", "all"],
        "num_attention_heads": 4,
        "max_steps": 160,
        "eval_every": 20,
    },
    "muon": {"optimizer": "muon_adamw", "lr": 5e-3, "weight_decay": 0.0},
    "qk_norm": {"qk_norm": True},
    "one_forward": {"q_continue": False},
    "all_gradients": {"gradient_scope": "all"},
}
RECIPES = {"sudoku": "sudoku_extreme", "maze": "maze_hard"}


def rung_values(name: str) -> dict[str, Any]:
    """What a rung of the ladder changes, with all rungs below it."""
    if name not in RUNGS:
        raise ValueError(f"Unknown rung {name!r}. Known, from the lowest: {', '.join(RUNGS)}.")
    rungs = list(RUNGS)
    return {key: value for rung in rungs[: rungs.index(name) + 1] for key, value in RUNGS[rung].items()}


@dataclass
class Run:
    """One training of the grid: its folder, its overrides, and how it stands."""

    name: str
    folder: Path
    recipe: str
    overrides: dict[str, Any]
    processes: int = 1
    rung: str = ""
    attempts: int = 0
    begun_at: int = 0  # steps done when its newest process started
    not_before: float = 0.0  # time.monotonic() until which it is left alone
    job: Any = field(default=None, repr=False)  # what its launcher knows it by

    def command(self, python: str = sys.executable) -> list[str]:
        start = [python]
        if self.processes > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        script = [str(ROOT / "train_accelerate.py"), "--recipe", self.recipe, "--output-dir", str(self.folder)]
        return [*start, *script, "--resume", *as_words(self.overrides)]

    def log(self) -> TextIO:
        """log.txt in its folder, to append to."""
        make_folder(self.folder)
        return (self.folder / "log.txt").open("a", encoding="utf-8")

    def report(self) -> dict[str, Any]:
        return read_run(self.folder)

    def finished(self) -> bool:
        return has_finished(self.report(), self.read().flat(), self.folder)

    def read(self) -> Recipe:
        """Its recipe, from the words of its command line.

        Raises:
            ValueError, FileNotFoundError: the recipe or an override cannot be read.
        """
        return read_recipe(self.recipe, as_words(self.overrides))

    def check(self) -> None:
        """Raises ValueError or FileNotFoundError where the recipe or the model that it asks for cannot be."""
        model = {k: v for k, v in self.read().model.items() if v is not None}
        variant, side = model.pop("variant"), {"maze": 30}.get(model.get("task"), 9)
        if "grid_height" in model or not {"grid_width", "box_height", "box_width", "vocab_size"} & set(model):
            AirConfig.from_variant(variant, **{"grid_height": side, **model})
        # Else its sides belong to a grid that only the data names.

    def progress(self) -> tuple[int, float | None]:
        """(steps done, newest evaluation's exact accuracy), read off metrics.jsonl and run.json."""
        step, exact = self.report().get("steps", 0), None
        for row in read_lines(self.folder / "metrics.jsonl"):
            step, exact = max(step, row["step"]), row.get("eval/exact_accuracy", exact)
        return step, exact


def parse_seeds(text: str) -> list[int]:
    """'0-4' or '0,2,7-9' -> a list of seeds."""
    seeds = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
    except ValueError:
        raise ValueError(f"Cannot read --seeds {text!r}: write 0-4, or 0,1,5.") from None
    if not seeds:
        raise ValueError(f"--seeds {text!r} names no seed.")
    return seeds


def split_values(text: str) -> list[str]:
    """'1,2' -> ['1', '2'], as YAML divides a list; the values stay as they are written: '[row,all],null'."""
    import yaml

    try:
        found = yaml.compose(f"[{text}]", yaml.SafeLoader).value
    except yaml.YAMLError:
        raise ValueError(f"Cannot read {text!r} as values with commas between them.") from None
    return [text[value.start_mark.index - 1 : value.end_mark.index - 1] for value in found]


def make_runs(arguments: argparse.Namespace) -> list[Run]:
    """Every run of the grid, in the order in which they start: all variants of a seed before the next seed."""
    for name, least in (("gpus_per_run", 0), ("parallel", 1), ("retries", 0), ("hours", 1), ("cpus_per_run", 1)):
        if (value := getattr(arguments, name, None)) is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be {least} or more, got {value}.")
    axes: dict[str, list[str]] = {}
    if arguments.suite:
        axes |= {"rung": list(RUNGS)[1:]} if arguments.suite == "ladder" else {}
        axes["variant"] = {**SUITES, **SMALL_SUITES}[arguments.suite]
    named: set[str] = set()
    for text in arguments.grid:
        key, values = split_word(text)
        if not values:
            raise ValueError(f"Cannot read --grid {text!r}: write key=value,value,...")
        if key in named:
            raise ValueError(f"--grid {key} is given twice: join its values by commas.")
        named.add(key)
        axes[key] = split_values(values)
        if len(set(axes[key])) < len(axes[key]):
            raise ValueError(f"--grid {text!r} names a value twice.")
    seeds = list(dict.fromkeys(parse_seeds(arguments.seeds)))
    if not axes and len(seeds) < 2:
        raise ValueError(
            "Nothing to run: give --suite, --grid key=value,value (more than once for a product), or several --seeds."
        )
    recipe = arguments.recipe or (SMALL_RECIPE if arguments.suite in SMALL_SUITES else RECIPES.get(arguments.task))
    if recipe is None:
        raise ValueError("Give --task sudoku or --task maze, or a --recipe.")
    common: dict[str, Any] = dict(map(split_word, arguments.overrides))
    for key, instead in (("seed", "give --seeds 0-4"), ("run_name", "runs are named after their point of the grid")):
        if key in axes or key in common:
            raise ValueError(f"{key}= does not go with a grid: {instead}.")
    if twice := sorted(named & common.keys()):
        raise ValueError(f"{twice[0]}= is given to all runs and as --grid {twice[0]}: leave one of them out.")
    base = arguments.output_dir / (f"{arguments.suite or 'grid'}-{arguments.task or Path(recipe).stem}")
    if arguments.mini:
        model = read_recipe(recipe).model | (rung_values("relations") if arguments.suite == "ladder" else {})
        small = miniature(model, steps=60)
        small = {k: v for k, v in small.items() if not (k == "max_steps" and "epochs" in {**common, **axes})}
        if "data" not in common:
            write = not getattr(arguments, "dry_run", False)
            small |= on_miniature_data(model.get("task", "sudoku"), base / "data", write)
        common = {"easier_share": 0.0, **small, **common}
    elif arguments.suite in SUITES:
        common = {"final_eval_limit": 0, **common}  # the published numbers are those of the whole test set
    runs = []
    for seed in seeds:
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values))
            parts = [v if k == "variant" else f"{k}={v}" for k, v in point.items()]
            name = re.sub(r"[^\w.=,+-]+", "_", "-".join([*parts, f"seed{seed}"]))
            rung = point.pop("rung", "")
            changed = rung_values(rung) if rung else {}
            if "epochs" in {**common, **point}:
                changed.pop("max_steps", None)
            overrides = {**changed, **common, **point, "seed": seed, "run_name": name}
            if any(run.name == name for run in runs):
                raise ValueError(
                    f"Two points of the grid would both be called {name}: give values that differ in words."
                )
            runs.append(Run(name, base / name, recipe, overrides, arguments.gpus_per_run, rung))
            runs[-1].check()  # a wrong key or value is found now, not hours later
    return runs


class Local:
    """Runs as child processes: as many at a time as there are groups of GPUs, one on a CPU."""

    def __init__(self, gpus_per_run: int, parallel: int | None) -> None:
        self.free: list[list[str] | None] = [None] * (parallel or 1)
        self.taken: dict[str, list[str] | None] = {}
        if torch.cuda.is_available():
            devices = os.environ.get("CUDA_VISIBLE_DEVICES")
            ids = devices.split(",") if devices else [str(i) for i in range(torch.cuda.device_count())]
            each = max(1, gpus_per_run)
            self.free = [ids[i : i + each] for i in range(0, len(ids) - each + 1, each)]
            if not self.free:
                raise ValueError(f"--gpus-per-run {gpus_per_run}: this machine has {len(ids)} GPUs.")

    def start(self, run: Run) -> bool:
        """Start a run; False while every slot is taken."""
        if not self.free:
            return False
        devices = self.taken[run.name] = self.free.pop(0)
        environment = os.environ if devices is None else {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(devices)}
        with run.log() as log:
            # In the caller's folder: its relative paths of recipes, data and output stay right.
            run.job = subprocess.Popen(run.command(), stdout=log, stderr=log, env=environment)
        return True

    def ended(self, run: Run) -> int | None:
        """Exit status of a run that ended, else None."""
        status = run.job.poll()
        if status is not None:
            self.free.append(self.taken.pop(run.name))
        return status

    def stop(self, runs: list[Run]) -> None:
        """SIGTERM lets every run write a checkpoint."""
        for run in runs:
            run.job.terminate()
        for run in runs:
            run.job.wait()


class Here:
    """Runs one after another in this process: for runs of seconds, which would not outlast the start of a process."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}

    def start(self, run: Run) -> bool:
        """Run it whole; False while the grid has not yet taken note of the run before."""
        if self.codes:
            return False
        with run.log() as log, redirect_stdout(log), redirect_stderr(log):
            self.codes[run.name] = self.train(run, signals := Signals())
        if signals.received:  # meant for the grid, also where the run was already done
            raise KeyboardInterrupt
        return True

    @staticmethod
    def train(run: Run, signals: Signals) -> int:
        """What the run's command would do, and its exit status."""
        from air_model.training.run import run_training

        try:
            run_training(run.read(), run.folder, resume=True, signals=signals)
        except (ValueError, OSError, ImportError) as error:
            say(f"error: {error}")
            return TAKEN if isinstance(error, FolderTaken) else 1
        except Exception:  # the other runs go on
            traceback.print_exc()
            return 1
        finally:
            torch.compiler.reset()  # else the ninth model of a process is no longer compiled
        return 0

    def ended(self, run: Run) -> int | None:
        return self.codes.pop(run.name, None)

    def stop(self, runs: list[Run]) -> None:
        """Nothing runs beside the grid."""


class SlurmJob:
    """What a Slurm job does; pickled by submitit. A preempted or timed out job is queued again and resumes."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command, self.log = command, log

    def __call__(self) -> int:
        with open(self.log, "ab") as log:
            return subprocess.run(self.command, stdout=log, stderr=log).returncode

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class Slurm:
    """Every run is a job; Slurm decides when."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        import submitit

        self.executor = submitit.AutoExecutor(folder=str(folder / "slurm"), cluster="slurm")
        parameters = {
            "name": "air",
            "timeout_min": arguments.hours * 60,
            "nodes": 1,
            "tasks_per_node": 1,
            "cpus_per_task": arguments.cpus_per_run,
            "gpus_per_node": None if arguments.mini else arguments.gpus_per_run or None,
            "slurm_partition": arguments.partition,
        }
        extra = dict(text.partition("=")[::2] for text in arguments.slurm)
        given = {name: value for name, value in parameters.items() if value is not None}
        self.executor.update_parameters(**given, slurm_additional_parameters=extra)

    def start(self, run: Run) -> bool:
        import submitit

        run.log().close()  # makes its folder
        try:
            run.job = self.executor.submit(SlurmJob(run.command(), run.folder.absolute() / "log.txt"))
        except (submitit.core.utils.FailedJobError, FileNotFoundError) as error:
            raise ValueError(
                f"Slurm did not take the job: {str(error).strip()}. Check --partition and --slurm."
            ) from error
        return True

    def ended(self, run: Run) -> int | None:
        if run.finished():  # without Slurm's accounting, submitit notices ends late
            return 0
        if not run.job.done():
            return None
        try:
            return int(run.job.result())
        except Exception as error:  # submitit raises several kinds for a job that died
            with run.log() as log:
                log.write(f"{type(error).__name__}: {error}\n")
            return 1

    def stop(self, runs: list[Run]) -> None:
        for run in runs:
            run.job.cancel()


def run_grid(runs: list[Run], launcher: Any, *, retries: int = 1, poll_seconds: float = 2.0) -> dict[str, str]:
    """Run them all; returns name -> "finished" or "failed"."""
    states = {run.name: "finished" if run.finished() else "waiting" for run in runs}
    table = Table(runs)

    def of(*wanted: str) -> list[Run]:
        return [run for run in runs if states[run.name] in wanted]

    try:
        while of("waiting", "taken", "running"):
            for run in of("running"):
                status = launcher.ended(run)
                if status is None:
                    continue
                if run.finished():
                    states[run.name] = "finished"
                elif status == TAKEN:
                    states[run.name], run.not_before = "taken", time.monotonic() + 15 * poll_seconds
                else:
                    # Stopped by its own time limit or by SIGTERM, with a checkpoint further on: no failure.
                    went_on = run.report().get("status") == "stopped" and run.progress()[0] > run.begun_at
                    run.attempts += not (status == 0 and went_on)
                    states[run.name] = "waiting" if run.attempts <= retries else "failed"
            for run in of("waiting", "taken"):
                if run.finished():  # by a process that an earlier grid had left behind
                    states[run.name] = "finished"
                    continue
                if time.monotonic() < run.not_before or is_taken(run.folder):
                    states[run.name] = "taken"
                    continue
                run.begun_at = run.progress()[0]
                if not launcher.start(run):
                    break
                states[run.name] = "running"
            table.draw(states)
            if of("running", "taken"):
                time.sleep(poll_seconds)
    except BaseException:  # no child is left behind, whatever ended the grid
        if running := of("running"):
            print("Stopping: every run writes a checkpoint. Run the same command again to go on.", file=sys.stderr)
            launcher.stop(running)
        raise
    table.draw(states)
    return states


class Table:
    """The live table: on a terminal it is drawn over itself, elsewhere a line is printed when a run changes."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs, self.live = runs, sys.stdout.isatty()
        self.before: dict[str, str] = {}
        self.lines = 0

    def draw(self, states: dict[str, str]) -> None:
        if not self.live:
            for run in self.runs:
                if self.before.get(run.name) != states[run.name]:
                    print(self.row(run, states[run.name]), flush=True)
            self.before = dict(states)
            return
        width, height = shutil.get_terminal_size()
        room, shown = max(1, height - 3), self.runs
        if len(shown) > room:
            # A line that wraps, or one beyond the top, could not be drawn over: the runs that move come first.
            order = ("running", "taken", "failed", "waiting", "finished")
            shown = sorted(shown, key=lambda run: order.index(states[run.name]))[:room]
        rows = [self.row(run, states[run.name])[: width - 1] for run in shown]
        done, hidden = list(states.values()).count("finished"), len(self.runs) - len(rows)
        total = f"{done} of {len(self.runs)} finished" + (f", {hidden} not shown" if hidden else "")
        print("\x1b[F\x1b[K" * self.lines + "\n".join([*rows, total]), flush=True)
        self.lines = len(rows) + 1

    @staticmethod
    def row(run: Run, state: str) -> str:
        step, exact = run.progress()
        report = run.report()
        steps = f"{step}/{report['max_steps']}" if report.get("max_steps") else str(step)
        return f"{run.name:32s} {state:8s} step {steps:>13s}  exact {'-' if exact is None else f'{exact:.4f}':>6s}"


def without_known(runs: list[Run], curves: Path) -> list[Run]:
    """The runs of which the file of `write_curves` has no line; their folders may be long gone.

    Raises:
        ValueError: a folder, or a file of something else.
    """
    if curves.is_dir():
        raise ValueError(f"--curves {curves} is a folder: give a file, as {curves / 'curves.jsonl'}.")
    rows = read_lines(curves)
    if strange := next((row for row in rows if not {"suite", "name"} <= set(row)), None):
        raise ValueError(
            f"--curves {curves} holds a line without suite and name, {str(strange)[:80]}: it is no file of curves, "
            "or one of an earlier version. Give another file."
        )
    known = {(row["suite"], row["name"]) for row in rows}
    return [run for run in runs if (run.folder.parent.name, run.name) not in known]


def write_curves(runs: list[Run], target: Path) -> int:
    """One line per finished run: rung, variant, seed, and exact accuracy at every evaluation; returns how many.

    Lines of other runs in the file are kept.
    """
    rows = {(row["suite"], row["name"]): row for row in read_lines(target)}
    done = [run for run in runs if run.finished()]
    for run in done:
        report, suite = run.report(), run.folder.parent.name
        evaluations = [row for row in read_lines(run.folder / "metrics.jsonl") if "eval/exact_accuracy" in row]
        rows[suite, run.name] = {
            "suite": suite,
            "name": run.name,
            "rung": run.rung,
            "variant": report["variant"],
            "seed": report["seed"],
            "grid": "x".join(map(str, report["grid"])),
            "layers": report["model_config"]["num_hidden_layers"],  # a variant may bring its own
            "n": (report["metrics"]["eval"] or {}).get("n"),  # none, where nothing was held out
            "parameters": report["parameters"],
            "precision": report["precision"],
            "seconds": round(report["wall_seconds"]),
            "date": report["date"][:10],
            "exact": {row["step"]: round(row["eval/exact_accuracy"], 5) for row in evaluations},
        }
    write_lines(target, rows.values())
    return len(done)
