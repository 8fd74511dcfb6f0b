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

import torch

from air_model.records import read_lines, whole, write_lines
from air_model.training.launch import RunError, say


class Clock:
    """Time and work of a run over all its sessions.

    `seconds`: all of it. `work`: optimizer steps, their seconds without evaluations and saving, their operations, and
    the puzzles that they finished.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.work = {"steps": 0, "seconds": 0.0, "flops": 0.0, "puzzles": 0}
        self.setting_up = time.perf_counter()  # when the run began to set itself up
        self.first_step_seconds = 0.0
        self.start_session(0)

    def start_session(self, step: int) -> None:
        self.first_step, self.paused = step, 0.0
        self.seconds_before, self.work_before = self.seconds, dict(self.work)
        self.session_start = time.perf_counter()

    def update(self, step: int) -> None:
        """Bring the times up to now, after optimizer step `step`."""
        session = time.perf_counter() - self.session_start
        self.seconds = self.seconds_before + session
        self.work["steps"] = self.work_before["steps"] + step - self.first_step
        self.work["seconds"] = self.work_before["seconds"] + session - self.paused

    def count_step(self, flops: float) -> None:
        self.work["flops"] += flops
        if not self.first_step_seconds:
            self.first_step_seconds = time.perf_counter() - self.setting_up

    def wait_for_device(self) -> None:
        """So that steps in flight count as such."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """What happens here is no training step."""
        self.wait_for_device()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - start

    @property
    def session_seconds(self) -> float:
        return self.seconds - self.seconds_before

    def steps_per_second(self, step: int) -> float:
        """Of this session."""
        return (step - self.first_step) / max(1e-9, self.work["seconds"] - self.work_before["seconds"])

    def puzzles_per_second(self) -> float:
        """Puzzles finished per second of training, over the run: slots finish in bursts, so few steps say little."""
        return self.work["puzzles"] / max(1e-9, self.work["seconds"])

    def state(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "work": self.work, "first_step_seconds": self.first_step_seconds}

    def load(self, state: dict[str, Any]) -> None:
        self.seconds, self.work = state["seconds"], state["work"]
        self.first_step_seconds = state["first_step_seconds"]


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
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **numbers}) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # half a line would spoil the next one
            say(f"WARNING: metrics.jsonl could not be written ({error}).")
        for tracker in list(self.trackers):
            try:
                tracker.log(numbers, step=step)
            except OSError as error:
                self.trackers.remove(tracker)
                say(f"WARNING: {type(tracker).__name__} could not write ({error}); going on without it.")

    def forget_after(self, step: int, evaluation_again: bool) -> None:
        """Drop lines that a resumed run will write again: later ones, and this step's evaluation where it is made
        again."""
        if not self.path.is_file():
            return
        again = {step} if evaluation_again else set()
        rows = [
            row
            for row in read_lines(self.path)
            if row.get("step", step + 1) <= step
            and not (row["step"] in again and any(key.startswith("eval/") for key in row))
        ]
        write_lines(self.path, rows)

    def close(self) -> None:
        for tracker in self.trackers:
            try:
                tracker.finish()
            except OSError as error:
                say(f"WARNING: {type(tracker).__name__} could not write its end ({error}).")


def lasting_id(output_dir: Path) -> str:
    """The id under which every session of a run reports to W&B."""
    path = output_dir / ".wandb_id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text()


def make_trackers(names: str, output_dir: Path, config: dict[str, Any], run_name: str, step: int = 0) -> list[Any]:
    """Accelerate's trackers: "auto" is tensorboard where it is installed; none is required or asks for an account."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    if names == "none" or not names:
        return []
    wanted = ["tensorboard"] if names == "auto" else [name.strip() for name in names.split(",")]
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    for name in wanted:
        if name not in known:
            raise RunError(f"There is no tracker {name!r}. Known: {', '.join(known)}, or none.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = [str(kind) for kind in filter_trackers(wanted, output_dir)]
    if missing := [name for name in wanted if name not in there and names != "auto"]:
        raise RunError(f"The tracker {missing[0]} is not installed. Run `pip install {missing[0]}`, or trackers=none.")
    trackers = []
    for name in there:
        kind = LOGGER_TYPE_TO_CLASS[name]
        # One folder whatever the run's name, so that nothing of the run's own is in its way; the others have a
        # project, and the run's name within it. What a resumed run does again must not be there twice.
        project, options = "air", {}
        if name == "tensorboard":
            project, options = "tensorboard", {"logging_dir": output_dir, "purge_step": step + 1}
        elif kind.requires_logging_directory:
            project, options = run_name or "air", {"logging_dir": output_dir / "trackers"}
        elif name in ("wandb", "trackio"):
            options = {"name": run_name or output_dir.name, "resume": "allow"}
            options |= {"id": lasting_id(output_dir)} if name == "wandb" else {}
        tracker = kind(project, **options)
        if hasattr(tracker, "start"):
            tracker.start()
        # Tensorboard takes no lists or None.
        flat = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in config.items()}
        tracker.store_init_configuration(flat)
        trackers.append(tracker)
    return trackers


def draw_curve(metrics: Path, target: Path) -> None:
    """The learning curve of metrics.jsonl as a PNG: loss, and exact accuracy of training and evaluation."""
    from matplotlib.figure import Figure

    rows = [row for row in read_lines(metrics) if "step" in row]

    def draw(axes: Any, key: str, color: str, **style: Any) -> None:
        points = [(row["step"], row[key]) for row in rows if key in row]
        axes.plot([step for step, _ in points], [value for _, value in points], color=color, **style)

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, "train/loss", "#000000", linewidth=1)
    left.set(xlabel="optimizer step", ylabel="training loss")
    dots = {"marker": "o", "markersize": 3}
    draw(right, "train/exact_accuracy", "#0072B2", linewidth=1, label="training, halted slots")
    draw(right, "eval/exact_accuracy", "#D55E00", **dots, label="evaluation")
    draw(right, "eval/cell_accuracy", "#009E73", **dots, linestyle="--", linewidth=1, label="evaluation, cells")
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
