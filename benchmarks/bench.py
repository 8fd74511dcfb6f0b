"""What the benchmarks share: this checkout as `air_model`, arguments, clocks, memory, tables and records."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import numpy as np
import torch

from air_model.analysis.common import markdown_table
from air_model.attempts_air import Answers
from air_model.records import command_line, environment, read_json, write_json, write_text
from air_model.training.cost import peak_memory

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
CLOCKS = {"wall clock": time.perf_counter, "CPU seconds of the process": time.process_time}
Rows = list[dict[str, Any]]


def arguments(text: str, output: Path | None = None, clock: bool = False) -> argparse.ArgumentParser:
    """A parser with the module's docstring as help, --output, and --cpu-time where a clock of CLOCKS is asked for."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=output, help="a .json; a table goes beside it as .md")
    if clock:
        wall, cpu = CLOCKS
        about = "measure CPU seconds of this process: fair on a busy CPU, with one thread"
        parser.add_argument("--cpu-time", dest="clock", action="store_const", const=cpu, default=wall, help=about)
    return parser


def listed(kind: Callable[[str], Any] = str, known: Collection[str] = ()) -> Callable[[str], list[Any]]:
    """The type of an argument that joins values by commas."""

    def read(text: str) -> list[Any]:
        words = text.split(",")
        if unknown := sorted(set(words) - set(known or words)):
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; known: {', '.join(known)}.")
        return [kind(word) for word in words]

    return read


def in_sentences(main: Callable[[], None]) -> None:
    """Run a benchmark; what its user got wrong is said without a traceback."""
    try:
        main()
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


class Timed(NamedTuple):
    """A call: seconds, what it returned, and the peak of memory (of a CPU's process since its start) in GiB."""

    seconds: float
    result: Any
    peak_gib: float


def timed(
    work: Callable[[], Any], device: torch.device = CPU, clock: Callable[[], float] = time.perf_counter
) -> Timed:
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = clock()
    result = work()
    wait()
    return Timed(clock() - start, result, peak_memory(device) / 2**30)


def in_turns(work: dict[Any, Callable[[], Any]], rounds: int, *how: Any) -> dict[Any, list[Timed]]:
    """Every work in every round, as what else runs on the machine comes and goes."""
    runs: dict[Any, list[Timed]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, one in work.items():
            runs[name].append(timed(one, *how))
    return runs


def accuracies(answers: Answers, labels: np.ndarray) -> dict[str, float]:
    """Shares of the answers that are the labels (N, S) and that the rules accept, and the ACT steps they took."""
    exact, valid = (answers.tokens == labels).all(1), answers.verdict.valid
    names = ("exact_accuracy", "valid_accuracy", "mean_act_steps")
    return {name: float(values.mean()) for name, values in zip(names, (exact, valid, answers.act_steps))}


def held(output: Path | None) -> dict[str, Any]:
    """What a file of earlier results holds; {} where there is none."""
    return read_json(output) if output and output.is_file() else {}


def save(
    output: Path | None, rows: Any, device: torch.device = CPU, page: Callable[..., str] | None = None, **more: Any
) -> dict[str, Any]:
    """The record of a benchmark: command, rows and circumstances; written, with a page in Markdown, where asked."""
    record = {"command": command_line(), "rows": rows, **more, **environment(device, 1)}
    if output:
        write_json(output, record)
        if page:
            write_text(output.with_suffix(".md"), page(record))
    return record


def save_each(rows: Iterable[dict[str, Any]], output: Path | None, page: Callable[..., str], **more: Any) -> None:
    """Print each row when it has been measured, and save those so far."""
    done: Rows = []
    for row in rows:
        print(json.dumps(row), flush=True)
        done.append(row)
        save(output, done, page=page, **more)


def headed(title: str, record: dict[str, Any], *parts: str) -> str:
    """A page in Markdown: what was measured, by which command, where and when, and its parts."""
    hardware = record["hardware"]
    threads = "1 thread" if hardware["threads"] == 1 else f"{hardware['threads']} threads"
    where = f"{hardware['device']}, {threads}, commit {record['commit']}, {record['date']}"
    return "\n\n".join([f"# {title}", f"`{record['command']}`", where, *parts])


def table(rows: Rows, names: Sequence[str] = ()) -> str:
    """Some columns of the rows in Markdown; by default all of the first row's."""
    names = names or list(rows[0])
    return markdown_table(names, [[row.get(name) for name in names] for row in rows], left=len(names))
