"""Records of runs, until they lie in records.py."""

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside the target, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(temporary, path)


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
