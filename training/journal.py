"""What a run writes down on its way: its clock, metrics.jsonl, the trackers, and the learning curve at the end."""

import contextlib
import json
import os
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from air_model.records import read_lines, whole, write_lines
from air_model.training.launch import RunError, say

CLOCK = ("seconds", "work", "first_step_seconds")  # what a checkpoint keeps of it


class Clock:
    """A stopwatch of a run over all its sessions.

    `seconds`: all of it. `work`: optimizer steps, their seconds without evaluations and saving, their operations, and
    the puzzles that they finished.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = self.first_step_seconds = 0.0
        self.work = {"steps": 0, "seconds": 0.0, "flops": 0.0, "puzzles": 0}
        self.setting_up = time.perf_counter()  # when the run began to set itself up
        self.start_session()

    def start_session(self) -> None:
        self.before, self.working = dict(self.work), True
        self.session_start = self.read = time.perf_counter()

    def update(self) -> None:
        """Bring the times up to now."""
        now = time.perf_counter()
        self.seconds += now - self.read
        self.work["seconds"] += (now - self.read) * self.working
        self.read = now

    def count_step(self, flops: float) -> None:
        self.work["steps"] += 1
        self.work["flops"] += flops
        self.first_step_seconds = self.first_step_seconds or time.perf_counter() - self.setting_up

    def wait_for_device(self) -> None:
        """So that steps in flight count as such."""
        torch.get_device_module(self.device).synchronize()

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """What happens here is no training step."""
        self.wait_for_device()
        self.update()
        self.working = False
        try:
            yield
        finally:
            self.update()
            self.working = True

    def steps_per_second(self) -> float:
        """Of this session."""
        steps, seconds = (self.work[name] - self.before[name] for name in ("steps", "seconds"))
        return steps / max(1e-9, seconds)

    def puzzles_per_second(self) -> float:
        """Puzzles finished per second of training, over the run: slots finish in bursts, so few steps say little."""
        return self.work["puzzles"] / max(1e-9, self.work["seconds"])

    def state(self) -> dict[str, Any]:
        self.update()
        return {name: getattr(self, name) for name in CLOCK}

    def load(self, state: dict[str, Any]) -> None:
        for name in CLOCK:
            setattr(self, name, state[name])


class Journal:
    """metrics.jsonl and the trackers of a run; written by one process alone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self.trackers: list[Any] = []

    def record(self, step: int, values: dict[str, Any]) -> None:
        """One line, without the values that are None. A full disk costs this line, not the run."""
        numbers = {k: v for k, v in values.items() if v is not None}
        size = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # half a line would spoil the next one
            say(f"WARNING: metrics.jsonl could not be written ({error}).")
        self._tell_trackers("log", numbers, step=step)

    def close(self) -> None:
        self._tell_trackers("finish")

    def _tell_trackers(self, what: str, *values: Any, **options: Any) -> None:
        for tracker in list(self.trackers):
            try:
                getattr(tracker, what)(*values, **options)
            except OSError as error:
                self.trackers.remove(tracker)
                say(f"WARNING: {type(tracker).__name__} could not write ({error}); going on without it.")

    def forget_after(self, step: int, evaluation_again: bool) -> None:
        """Drop lines that a resumed run will write again: later ones, and this step's evaluation if it is one."""

        def kept(row: dict[str, Any]) -> bool:
            again = evaluation_again and any(key.startswith("eval/") for key in row)
            return row.get("step", step + 1) <= step - again

        if self.path.is_file():
            write_lines(self.path, filter(kept, read_lines(self.path)))


def lasting_id(output_dir: Path) -> str:
    """The id under which every session of a run reports to W&B."""
    path = output_dir / ".wandb_id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8")


def make_trackers(names: str, output_dir: Path, config: dict[str, Any], run_name: str, step: int = 0) -> list[Any]:
    """Accelerate's trackers: "auto" is tensorboard where it is installed; none is required or asks for an account."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    kinds = {str(name): kind for name, kind in LOGGER_TYPE_TO_CLASS.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        installed = [str(name) for name in get_available_trackers()]
    if names == "auto":
        names = "tensorboard" if "tensorboard" in installed else "none"
    trackers = []
    for name in [] if names in ("none", "") else map(str.strip, names.split(",")):
        if name not in kinds:
            raise RunError(f"There is no tracker {name!r}. Known: {', '.join(kinds)}, or none.")
        if name not in installed:
            raise RunError(f"The tracker {name} is not installed. Run `pip install {name}`, or trackers=none.")
        # One folder whatever the run's name, so that nothing of the run's own is in its way; the others have a
        # project, and the run's name within it. What a resumed run does again must not be there twice.
        project, options = "air", {}
        if name == "tensorboard":
            project, options = "tensorboard", {"logging_dir": output_dir, "purge_step": step + 1}
        elif kinds[name].requires_logging_directory:
            project, options = run_name or "air", {"logging_dir": output_dir / "trackers"}
        elif name in ("wandb", "trackio"):
            options = {"name": run_name or output_dir.name, "resume": "allow"}
            options |= {"id": lasting_id(output_dir)} if name == "wandb" else {}
        trackers.append(kinds[name](project, **options))
        trackers[-1].start()
        # Tensorboard takes no lists or None.
        flat = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in config.items()}
        trackers[-1].store_init_configuration(flat)
    return trackers


def draw_curve(metrics: Path, target: Path) -> None:
    """The learning curve of metrics.jsonl as a PNG: loss, and exact accuracy of training and evaluation."""
    from matplotlib.figure import Figure

    rows = [row for row in read_lines(metrics) if "step" in row]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    dots = {"marker": "o", "markersize": 3}
    rings = dots | {"markersize": 6, "fillstyle": "none"}  # seen where both are 1
    for axes, key, color, style in (
        (left, "train/loss", "#000000", {"linewidth": 1}),
        (right, "train/exact_accuracy", "#0072B2", {"linewidth": 1, "label": "training, halted slots"}),
        (right, "eval/exact_accuracy", "#D55E00", {"label": "evaluation", **rings}),
        (right, "eval/cell_accuracy", "#009E73", {"label": "evaluation, cells", "ls": "--", "linewidth": 1, **dots}),
    ):
        points = [(row["step"], row[key]) for row in rows if key in row]
        axes.plot(*np.array(points).reshape(-1, 2).T, color=color, **style)
    left.set(xlabel="optimizer step", ylabel="training loss")
    right.set(xlabel="optimizer step", ylabel="accuracy", ylim=(0, 1.02))
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    with whole(target) as partial:
        figure.savefig(partial, dpi=150, format="png")


def leave_curve(output_dir: Path) -> None:
    """Write curve.png if there is anything to draw; a picture that cannot be made costs no finished run."""
    try:
        if (output_dir / "metrics.jsonl").is_file():
            draw_curve(output_dir / "metrics.jsonl", output_dir / "curve.png")
    except ImportError:
        pass
    except (OSError, ValueError, TypeError) as error:
        say(f"WARNING: curve.png could not be drawn ({error}); the same command with --resume tries again.")
