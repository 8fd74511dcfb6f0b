"""Records on disk: run.json, lists of runs, files of scripts/evaluate.py; no reader ever sees half a file."""

import contextlib
import datetime
import functools
import glob
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def make_folder(path: str | os.PathLike) -> Path:
    """The folder, with those above it, made where it was missing.

    Raises:
        ValueError: a file is in its way.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next(place for place in (path, *path.parents) if place.exists())
        raise ValueError(f"{file} is a file, not a folder: name another place than {path}.") from None
    return path


@contextlib.contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path` to write to: it takes its place at the end, so that a reader never sees half a file."""
    path = Path(path)
    make_folder(path.parent)
    partial = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder beside `path` to fill; it takes its place at the end. Between the two renames there is `.NAME.old`."""
    path = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced; "." gets its name
    make_folder(path.parent)
    partial, old = (path.with_name(f".{path.name}.{end}") for end in (f"tmp-{os.getpid()}", "old"))
    if old.is_dir() and not path.exists():  # killed between the two renames
        os.replace(old, path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.tmp*"):
        if left == partial or not _is_running(left.name.rpartition("-")[2]):
            shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)  # left where a kill came after the two renames
            os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: str) -> bool:
    """Whether a process of this machine has that number."""
    if not pid.isdecimal():
        return False
    if os.name != "nt":  # where the question would end the process
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass  # somebody else's process
    return True


def write_text(path: str | os.PathLike, text: str) -> Path:
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike, value: Any) -> Path:
    return write_text(path, json.dumps(plain(value), indent=1) + "\n")


def plain(value: Any) -> Any:
    """As JSON knows it: arrays as lists, what is not finite as None, so that every reader accepts the file."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # numpy's and torch's
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def read_json(path: str | os.PathLike) -> Any:
    """Raises ValueError, which names the file, where it is no JSON; FileNotFoundError where it is not there."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no readable JSON ({error}): write it again, or remove it.") from None


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a .jsonl, [] where there is none; what is no record, as the line that a kill cut, is left out."""
    records, path = [], Path(path)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


def write_lines(path: str | os.PathLike, records: Iterable[dict[str, Any]]) -> Path:
    return write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def run_record(model: str | os.PathLike) -> dict[str, Any] | None:
    """run.json of the run that made a model: in its folder, or beside it where training left it (`runs/x/model`)."""
    files = (folder / "run.json" for folder in (Path(model), Path(model).parent))
    return next((read_json(file) for file in files if file.is_file()), None)


def model_name(source: str | os.PathLike) -> str:
    """What a model is called among others: its folder or id, or its run where training left it (`runs/x/model`)."""
    place = Path(os.path.abspath(source))
    return place.parent.name if place.name == "model" else place.name


def read_evaluations(paths: Path | Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Name -> contents of files that scripts/evaluate.py wrote; what else there is, is passed over.

    Args:
        paths: files, or a model's folder: then those in it, in its `results/` and around it in the folder of its run
            are read. A file may hold several evaluations by name.

    Raises:
        ValueError: damaged JSON, or a number that no measurement can have.
    """
    if isinstance(paths, Path):
        # runs/x/model lies in a run's folder; anything else beside a model may belong to another one.
        around = [paths.parent] if (paths.parent / "run.json").is_file() else []
        paths = [file for folder in (paths, paths / "results", *around) for file in sorted(folder.glob("*.json"))]
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        content = read_json(path) if path.name not in ("run.json", "config.json") else None
        entries = {path.stem: content, **content} if isinstance(content, dict) else {}
        for name, entry in entries.items():
            if not (isinstance(entry, dict) and {"n", "exact_accuracy"} <= entry.keys()):
                continue
            n, exact = entry["n"], entry["exact_accuracy"]
            if not (isinstance(n, int) and n > 0 and isinstance(exact, (int, float)) and 0 <= exact <= 1):
                raise ValueError(f"{path} holds no measurement ({n = }, exact_accuracy = {exact}).")
            while found.get(name, entry) != entry:
                name = f"{path.parent.name}-{name}"
            found[name] = entry
    return dict(sorted(found.items()))


def setting(evaluation: dict[str, Any], name: str) -> Any:
    """A setting of an evaluation, at its top or under `settings`; None if not recorded."""
    found = evaluation.get(name)
    return (evaluation.get("settings") or {}).get(name) if found is None else found


def read_run(folder: Path) -> dict[str, Any]:
    """run.json of a folder; {} where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        if isinstance(found := read_json(folder / "run.json"), dict):
            return found
    return {}


def append_runs_to(target: Path, reports: list[dict[str, Any]]) -> int:
    """Append a line for every run that the .jsonl does not hold yet, told by name and date; returns how many."""
    target = Path(target)
    known = {(row.get("name"), row.get("date")) for row in read_lines(target)}
    new = [json.loads(json.dumps(report, default=str)) for report in reports]
    new = [row for row in new if (row["name"], row["date"]) not in known]
    target.parent.mkdir(parents=True, exist_ok=True)
    if new:
        last = target.read_bytes()[-1:] if target.exists() else b""
        lead = "" if last in (b"", b"\n") else "\n"  # an editor may have left the last line open
        with target.open("a", encoding="utf-8") as file:
            file.write(lead + "".join(json.dumps(portable(row)) + "\n" for row in new))
    return len(new)


def earlier_runs(source: str) -> list[dict[str, Any]]:
    """The runs that made the model a run starts from (`init_from`), oldest first: name, steps, seconds and rate."""
    # It is only a record: whatever is wrong with it must not cost the run that goes on.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if source and (run := run_record(source)):
            kept = {k: run.get(k) for k in ("name", "steps", "wall_seconds", "tflops")}
            return [*run.get("earlier_runs", []), kept]
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
    """What this process was started with: the script as the checkout's root sees it, absolute paths' last parts."""
    script, root = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parent
    words = [str(script.relative_to(root)) if script.is_relative_to(root) else script.name, *sys.argv[1:]]
    return shlex.join(["python", *("=".join(map(portable, word.split("=", 1))) for word in words)])


@functools.cache  # of the code that runs: a commit made while the run goes on is not its own
def source_state() -> dict[str, Any]:
    """The commit of this checkout, and whether it has no changes."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        return None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "commit_is_clean": changes == ""}


def environment(device: "torch.device", world: int) -> dict[str, Any]:
    """Commit, date, versions and hardware, for run.json and evaluation files."""
    import accelerate
    import torch
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
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{field}\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()
