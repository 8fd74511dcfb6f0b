"""Records on disk: run.json and lists of runs, written so that no reader sees half a file; where a run was made."""

import contextlib
import datetime
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside the target, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(temporary, path)


def append_runs_to(target: Path, reports: list[dict[str, Any]]) -> int:
    """Append a line for every run that the .jsonl does not hold yet, told by name and date; returns how many."""
    target, known = Path(target), set()
    if target.is_file():
        for line in target.read_text().splitlines():
            with contextlib.suppress(
                ValueError, KeyError, TypeError
            ):  # lines that are no such record stay as they are
                row = json.loads(line)
                known.add((row["name"], row["date"]))
    new = [json.loads(json.dumps(report, default=str)) for report in reports]
    new = [row for row in new if (row["name"], row["date"]) not in known]
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(portable(row)) + "\n" for row in new)
    with target.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # an editor may have left the last line open
                lines = "\n" + lines
        if new:
            file.write(lines.encode())
    return len(new)


def earlier_runs(source: str) -> list[dict[str, Any]]:
    """The runs that made the model a run starts from (`init_from`), oldest first: name, steps and seconds of each.

    Read from the run.json in the model's folder, or beside it where training left it. Without a readable one: [].
    """
    for file in (Path(source) / "run.json", Path(source).parent / "run.json") if source else ():
        # It is only a record: whatever is wrong with it must not cost the run that goes on.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            run = json.loads(file.read_text())
            return [*run.get("earlier_runs", []), {k: run.get(k) for k in ("name", "steps", "wall_seconds")}]
    return []


def all_seconds(run: dict[str, Any]) -> float:
    """Wall seconds of a run and of those that it went on from."""
    return sum(part.get("wall_seconds") or 0.0 for part in (*run.get("earlier_runs", []), run))


def portable(value: Any) -> Any:
    """A record as it may be shared: absolute paths of this machine cut to their last part."""
    if isinstance(value, dict):
        return {k: portable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [portable(v) for v in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def command_line() -> str:
    """What this process was started with, absolute paths cut to their last part."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(["python", *("=".join(map(portable, word.split("=", 1))) for word in words)])


@functools.cache  # of the code that runs: a commit made while the run goes on is not its own
def source_state() -> dict[str, Any]:
    """The commit of this checkout, and whether it has no changes."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return None

    return {
        "commit": git("rev-parse", "HEAD"),
        "commit_is_clean": git("status", "--porcelain", "--untracked-files=no") == "",
    }


def environment(device: torch.device, world: int) -> dict[str, Any]:
    """Commit, versions and hardware, for run.json."""
    import accelerate
    import transformers

    return {
        **source_state(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
        },
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            "processes": world,
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
        },
    }


def cpu_name(field: str = "model name") -> str:
    """What Linux says of its first processor ("model name", "vendor_id"); elsewhere the platform's own words."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return platform.processor() or platform.machine()
