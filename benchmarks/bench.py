"""What the benchmarks share: this checkout as `air_model`, arguments, clocks, memory, tables and records."""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import torch

from air_model.analysis.common import markdown_table
from air_model.records import command_line, environment, write_json, write_text

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
Rows = list[dict[str, Any]]


def arguments(text: str, output: Path | None = None) -> argparse.ArgumentParser:
    """A parser with the module's docstring as help, and --output."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=output, help="a .json; a table goes beside it as .md")
    return parser


def in_sentences(main: Callable[[], int]) -> int:
    """The exit status of a benchmark; what its user got wrong is said without a traceback."""
    try:
        return main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def seconds(
    work: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter, repeats: int = 1
) -> tuple[float, Any]:
    """Seconds of one call, and what the last returned: on a GPU the mean of calls that do not wait for each other."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = clock()
    for _ in range(repeats):
        result = work()
    wait()
    return (clock() - start) / repeats, result


def forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gib(device: torch.device) -> float:
    """Peak memory: of the GPU since `forget_peak`, or of this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


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


def table(rows: Rows, names: Sequence[str] = ()) -> str:
    """Some columns of the rows in Markdown; by default all of the first row's."""
    names = names or list(rows[0])
    return markdown_table(names, [[row.get(name) for name in names] for row in rows], left=len(names))
