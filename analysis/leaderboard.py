"""What trained models reach: a row per checkpoint, every evaluation beside one, and public systems beside ours.

A single pass is one attempt with at most the ACT steps that the model was trained for, ended by their number or by the
model itself. More steps, several attempts (views, pins, noise), several checkpoints or the rules as judge are thought,
and every cell says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from air_model.analysis.common import markdown_table, number, share
from air_model.records import all_seconds, read_evaluations, read_json, run_record, setting

HALTS = {"max": "all steps", "q": "adaptive halting", "rules": "until the rules accept"}
BENCHMARKS = {  # task: name, size, and how a data set of it is called
    "sudoku": ("Sudoku-Extreme", (9, 9), ("sudoku-extreme",)),
    "maze": ("Maze-Hard", (30, 30), ("maze-hard", "maze-30x30-hard")),
}


@dataclass
class Evaluation:
    """One file of scripts/evaluate.py beside a checkpoint, its settings beside its numbers."""

    values: dict[str, Any]
    trained_steps: int

    def __getattr__(self, name: str) -> Any:
        return setting(self.values, name)

    @property
    def data_name(self) -> str:
        return Path(str(self.data or "")).name

    @property
    def checkpoints(self) -> int:
        return len(self.model) if isinstance(self.model, list) else 1

    @property
    def is_single_pass(self) -> bool:
        tries = max(self.attempts or 1, self.checkpoints)
        return tries == 1 and (self.max_act_steps or 0) <= self.trained_steps and self.halt in ("max", "q")

    @property
    def solved(self) -> float:
        """Share that the rules accept, where they can tell, else that is exactly right."""
        return self.exact_accuracy if self.valid_accuracy is None else self.valid_accuracy

    @property
    def how(self) -> str:
        """'adaptive halting, 64 at most, 8 views'."""
        parts = [HALTS.get(self.halt, str(self.halt))]
        if self.max_act_steps not in (None, self.trained_steps):
            parts.append(f"{self.max_act_steps} at most")
        if self.checkpoints > 1:
            parts.append(f"{self.checkpoints} checkpoints")
        if (self.attempts or 1) > 1:
            kind = "noisy attempts" if self.noise else {"pins": "nodes of search"}.get(self.retry, "views")
            parts.append(f"{self.attempts} {kind}")
        return ", ".join(parts)


@dataclass
class Checkpoint:
    """A shipped model as the tables name it, what its training took, and its evaluations."""

    link: str
    task: str
    size: tuple[int, int]
    parameters: str
    minutes: str
    training: str
    evaluations: list[Evaluation]

    @property
    def head(self) -> list[str]:
        return [self.link, "{} {}x{}".format(self.task, *self.size), self.parameters]


def best(on: Sequence[Evaluation]) -> tuple[Evaluation | None, Evaluation | None]:
    """The single pass (all steps before adaptive halting, on the most puzzles), and the best of more thought on the
    same data, as many of them as the single pass had where there is such an evaluation."""
    passes = [e for e in on if e.is_single_pass]
    single = max(passes, key=lambda e: (e.n, e.halt == "max"), default=None)
    more = [e for e in on if not e.is_single_pass]
    if single is not None:
        more = [e for e in more if (e.data_name, e.split) == (single.data_name, single.split)]
    return single, max(more, key=lambda e: (e.n, e.solved), default=None)


def training_text(run: dict[str, Any]) -> str:
    """'21 min, AMD EPYC (7.9e14 FLOP)'; the FLOP where all runs that made it recorded their rate."""
    if not run:
        return ""
    parts = [*run.get("earlier_runs", []), run]
    flop = [1e12 * (part.get("tflops") or 0) * (part.get("wall_seconds") or 0) for part in parts]
    total = f" ({sum(flop):.1e} FLOP)".replace("e+", "e") if all(flop) else ""
    return f"{all_seconds(run) / 60:.0f} min, {(run.get('hardware') or {}).get('device', '')}{total}"


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    """Every model of a folder of models, by name, with those of its evaluations that say how they halted."""
    found = []
    for path in sorted(folder.glob("*/config.json")):
        home, config, run = path.parent, read_json(path), run_record(path.parent) or {}
        parameters = f"{run['parameters'] / 1e6:.2f} M" if run.get("parameters") else ""
        training = f"{all_seconds(run) / 60:.0f}" if run else "", training_text(run)
        known = [one for one in read_evaluations(home).values() if setting(one, "halt")]
        evaluations = [Evaluation(one, config.get("halt_max_steps", 16)) for one in known]
        link, size = f"[`{home.name}`](checkpoints/{home.name})", (config["grid_height"], config["grid_width"])
        found.append(Checkpoint(link, config["task"], size, parameters, *training, evaluations))
    return found


def _of(value: float, evaluation: Evaluation, *notes: str) -> str:
    """'26.7 (64 at most, n = 1,175)'."""
    return f"{share(100 * value)} ({', '.join((*filter(None, notes), f'n = {evaluation.n:,}'))})"


def _any_path(evaluation: Evaluation) -> str:
    """Mazes have several shortest paths, of which the benchmark counts one."""
    valid, exact = evaluation.valid_accuracy, evaluation.exact_accuracy
    return "" if valid in (None, exact) else f"{share(100 * valid)} where any shortest path counts"


def percent(value: float | None) -> str:
    """A share in percent; an empty cell for None."""
    return "" if value is None else share(100 * value)


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> str:
    """One row per checkpoint: what one pass and what more thought solve."""
    rows = []
    for one in checkpoints:
        single, more = best(one.evaluations)
        exact = single and _of(single.exact_accuracy, single)
        solved = more and _of(more.solved, more, more.how)
        rows.append([*one.head, exact, solved, one.minutes])
    header = ["checkpoint", "task", "parameters", "single pass: exact, %", "with thought: solved, %"]
    return markdown_table([*header, "training, minutes"], rows) if rows else ""


EVALUATION_COLUMNS = {
    "evaluated on": lambda e: " ".join(filter(None, (e.data_name, e.split if e.split != "test" else None))),
    "kind": lambda e: "single pass" if e.is_single_pass else "thought",
    "how": lambda e: e.how,
    "n": lambda e: f"{e.n:,}",
    "exact, %": lambda e: percent(e.exact_accuracy),
    "valid, %": lambda e: percent(e.valid_accuracy),
    "ACT steps": lambda e: number(e.mean_act_steps, 1),
}


def evaluations_table(checkpoints: Sequence[Checkpoint]) -> str:
    """Every evaluation that lies beside a checkpoint; a row of empty cells where there is none."""
    rows = [
        [*one.head, *(e and cell(e) for cell in EVALUATION_COLUMNS.values()), one.training]
        for one in checkpoints
        for e in one.evaluations or [None]
    ]
    header = ["checkpoint", "task", "parameters", *EVALUATION_COLUMNS, "training"]
    return markdown_table(header, rows) if rows else ""


def leaderboard_table(systems: dict[str, Any], checkpoints: Sequence[Checkpoint]) -> str:
    """Public systems and ours on Sudoku-Extreme and Maze-Hard, exact %, the highest on Sudokus first.

    Args:
        systems: results/published_systems.json; every number names one of its sources.

    Raises:
        ValueError: a published number without a source.
    """
    rows = [_published_row(entry, systems["sources"]) for entry in systems["systems"]]
    rows += [row for one in checkpoints if (row := _own_row(one)) is not None]
    rows.sort(key=lambda row: -row[0])
    header = ["system", "parameters"]
    for name, *_ in BENCHMARKS.values():
        header += [f"{name}, single pass", f"{name}, with thought"]
    return markdown_table([*header, "training", "source"], [row[1:] for row in rows], left=1)


def _published_row(entry: dict[str, Any], sources: dict[str, Any]) -> list[Any]:
    cells, used, best = [], {}, -1.0
    for task, kind in product(BENCHMARKS, ("single", "thought")):
        found = entry.get(task, {}).get(kind)
        if found is None:
            cells.append(None)
            continue
        if found.get("source") not in sources:
            raise ValueError(f"{entry['system']}, {task}, {kind}: a published number needs a source that is listed.")
        source = sources[found["source"]]
        used[source["text"] + (", as quoted elsewhere" if source["quoted"] else "")] = None
        spread = f" ± {found['std']:.1f}" if "std" in found else ""
        cells.append(share(found["value"]) + spread + (f" ({found['how']})" if "how" in found else ""))
        best = max(best, found["value"]) if task == "sudoku" else best
    return [best, entry["system"], entry["parameters"], *cells, entry["training"], "; ".join(used)]


def _own_row(one: Checkpoint) -> list[Any] | None:
    """A row of a checkpoint that was evaluated on one of the benchmarks; None for the others."""
    _, size, names = BENCHMARKS.get(one.task, ("", (), ()))
    asked, made = ("{}x{}".format(*pair) for pair in (size or (0, 0), one.size))
    on = [e for e in one.evaluations if e.data_name.lower().replace("_", "-").startswith(names)]
    if one.size != size:  # a model may compute other sizes than its own
        on = [e for e in on if f"({asked}" in str(e.task)]
    if not on:
        return None
    single, more = best(on)
    other = "" if one.size == size else f"a model for {made}"
    own = [e and _of(e.exact_accuracy, e, "" if e is single else e.how, _any_path(e), f"{e.split} rows", other)
           for e in (single, more)]  # fmt: skip
    cells = [cell for name in BENCHMARKS for cell in (own if name == one.task else (None, None))]
    most = 100 * max(e.exact_accuracy for e in (single, more) if e) if one.task == "sudoku" else -1.0
    return [most, f"**{one.link}** (ours)", one.parameters, *cells, one.training, "results beside the checkpoint"]
