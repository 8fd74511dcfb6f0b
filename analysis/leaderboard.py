"""What trained models reach: a row per checkpoint, every evaluation beside one, and public systems beside ours.

A single pass is one attempt with at most the ACT steps that the model was trained for, ended by their number or by the
model itself. More steps, several attempts (views, pins, noise), several checkpoints or the rules as judge are thought,
and every cell says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from air_model.analysis.common import markdown_table, share
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
    def is_single_pass(self) -> bool:
        tries = max(self.attempts or 1, len(self.model) if isinstance(self.model, list) else 1)
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
        if isinstance(self.model, list) and len(self.model) > 1:
            parts.append(f"{len(self.model)} checkpoints")
        if (self.attempts or 1) > 1:
            kind = "noisy attempts" if self.noise else {"pins": "nodes of search"}.get(self.retry, "views")
            parts.append(f"{self.attempts} {kind}")
        return ", ".join(parts)


@dataclass
class Checkpoint:
    """A shipped model: its folder's name, config, record of the training, and evaluations."""

    name: str
    config: dict[str, Any]
    run: dict[str, Any]
    evaluations: list[Evaluation]

    @classmethod
    def read(cls, home: Path) -> Checkpoint:
        config, found = read_json(home / "config.json"), read_evaluations(home).values()
        known = [Evaluation(one, config.get("halt_max_steps", 16)) for one in found if setting(one, "halt")]
        return cls(home.name, config, run_record(home) or {}, known)

    @property
    def link(self) -> str:
        return f"[`{self.name}`](checkpoints/{self.name})"

    @property
    def size(self) -> tuple[int, int]:
        return self.config["grid_height"], self.config["grid_width"]

    @property
    def task(self) -> str:
        return "{} {}x{}".format(self.config["task"], *self.size)

    @property
    def parameters(self) -> str:
        return f"{self.run['parameters'] / 1e6:.2f} M" if self.run.get("parameters") else ""

    @property
    def parts(self) -> list[dict[str, Any]]:
        """The runs that made it, one after another."""
        return [*self.run.get("earlier_runs", []), self.run] if self.run else []

    @property
    def minutes(self) -> str:
        return f"{all_seconds(self.run) / 60:.0f}" if self.run else ""

    @property
    def hardware(self) -> str:
        return (self.run.get("hardware") or {}).get("device", "")

    @property
    def training(self) -> str:
        """'21 min, AMD EPYC (7.9e14 FLOP)'."""
        if not self.parts:
            return ""
        rates = [(part.get("tflops"), part.get("wall_seconds")) for part in self.parts]
        known = all(rate and seconds for rate, seconds in rates)
        flop = f" ({sum(rate * 1e12 * seconds for rate, seconds in rates):.1e} FLOP)" if known else ""
        return f"{self.minutes} min, {self.hardware}{flop}".replace("e+", "e")

    def best(self, on: Sequence[Evaluation] | None = None) -> tuple[Evaluation | None, Evaluation | None]:
        """The single pass (all steps before adaptive halting, on the most puzzles), and the best of more thought on
        the same data, as many of them as the single pass had where there is such an evaluation."""
        on = self.evaluations if on is None else on
        passes = [e for e in on if e.is_single_pass]
        single = max(passes, key=lambda e: (e.n, e.halt == "max"), default=None)
        more = [e for e in on if not e.is_single_pass]
        if single is not None:
            more = [e for e in more if (e.data_name, e.split) == (single.data_name, single.split)]
        return single, max(more, key=lambda e: (e.n, e.solved), default=None)


def read_checkpoints(folder: Path) -> list[Checkpoint]:
    return [Checkpoint.read(path.parent) for path in sorted(folder.glob("*/config.json"))]


def _of(value: float, evaluation: Evaluation, *notes: str) -> str:
    """'26.7 (64 at most, n = 1,175)'."""
    return f"{share(100 * value)} ({', '.join((*filter(None, notes), f'n = {evaluation.n:,}'))})"


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> str:
    """One row per checkpoint: what one pass and what more thought solve."""
    rows = []
    for one in checkpoints:
        single, more = one.best()
        rows.append([
            one.link, one.task, one.parameters, single and _of(single.exact_accuracy, single),
            more and _of(more.solved, more, more.how), one.minutes,
        ])  # fmt: skip
    header = ["checkpoint", "task", "parameters", "single pass: exact, %", "with thought: solved, %",
              "training, minutes"]  # fmt: skip
    return markdown_table(header, rows, left=2) if rows else ""


def evaluations_table(checkpoints: Sequence[Checkpoint]) -> str:
    """Every evaluation that lies beside a checkpoint."""
    rows = []
    for one in checkpoints:
        head = [one.link, one.task, one.parameters]
        for e in one.evaluations:
            rows.append([
                *head, " ".join(filter(None, (e.data_name, e.split if e.split != "test" else None))),
                "single pass" if e.is_single_pass else "thought", e.how, f"{e.n:,}", share(100 * e.exact_accuracy),
                None if e.valid_accuracy is None else share(100 * e.valid_accuracy),
                None if e.mean_act_steps is None else f"{e.mean_act_steps:.1f}", one.training,
            ])  # fmt: skip
        if not one.evaluations:
            rows.append([*head, *[None] * 7, one.training])
    header = ["checkpoint", "task", "parameters", "evaluated on", "kind", "how", "n", "exact, %", "valid, %",
              "ACT steps", "training"]  # fmt: skip
    return markdown_table(header, rows, left=2) if rows else ""


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
    for task in BENCHMARKS:
        for kind in ("single", "thought"):
            number = entry.get(task, {}).get(kind)
            if number is None:
                cells.append(None)
                continue
            if number.get("source") not in sources:
                raise ValueError(
                    f"{entry['system']}, {task}, {kind}: a published number needs a source that is listed."
                )
            source = sources[number["source"]]
            used[source["text"] + (", as quoted elsewhere" if source["quoted"] else "")] = None
            spread = f" ± {number['std']:.1f}" if "std" in number else ""
            cells.append(share(number["value"]) + spread + (f" ({number['how']})" if "how" in number else ""))
            best = max(best, number["value"]) if task == "sudoku" else best
    return [best, entry["system"], entry["parameters"], *cells, entry["training"], "; ".join(used)]


def _own_row(one: Checkpoint) -> list[Any] | None:
    """A row of a checkpoint that was evaluated on one of the benchmarks; None for the others."""
    if one.config["task"] not in BENCHMARKS:
        return None
    _, size, names = BENCHMARKS[one.config["task"]]
    on = [e for e in one.evaluations if e.data_name.lower().replace("_", "-").startswith(names)]
    if one.size != size or not on:
        return None
    pair = dict(zip(("single", "thought"), one.best(on)))
    cells = []
    for task in BENCHMARKS:
        for kind in ("single", "thought"):
            e = pair[kind] if task == one.config["task"] else None
            cells.append(e and _of(e.exact_accuracy, e, "" if kind == "single" else e.how, f"{e.split} rows"))
    values = [e.exact_accuracy for e in pair.values() if e] if one.config["task"] == "sudoku" else []
    return [100 * max(values, default=-0.01), f"**{one.link}** (ours)", one.parameters, *cells, one.training,
            "results beside the checkpoint"]  # fmt: skip
