"""Checks a built folder again, row by row, and writes verification.json, verification.md and verification.png.

Sudoku: exactly one solution, and it is the label. Maze: the label is a shortest path, and the one of the Down, Left,
Right, Up rule. Both: no puzzle twice in a split (groups of copies aside), none of a split in training, up to symmetry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from tqdm import tqdm

from air_model.datasets_builders.build import _digests, rule_faults
from air_model.datasets_builders.canonical import canonical, canonical_mazes, searchable
from air_model.datasets_builders.files import CHUNK
from air_model.datasets_builders.loading import META, load_puzzles, task_from_meta
from air_model.processing_air import GridTask, MazeTask
from air_model.records import read_json, whole, write_json, write_text

LISTED = 100  # faults written out per split; the number of all is given too


def _batches(folder: Path, config: str, split: str):
    """(inputs, labels, rating, group) of every chunk of a split."""
    for file in sorted((folder / config).glob(f"{split}-*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(CHUNK, columns=["inputs", "labels", "rating", "group"]):
            grids = [batch.column(i).flatten().to_numpy().reshape(len(batch), -1) for i in (0, 1)]
            yield *grids, batch.column(2).to_numpy(), batch.column(3).to_numpy()


def _features(task: GridTask, inputs: np.ndarray, labels: np.ndarray, rating: np.ndarray | None) -> dict:
    """The quantities that are plotted, one value per puzzle."""
    if isinstance(task, MazeTask):
        return {
            "walls, share of cells": (inputs == task.WALL).mean(-1),
            "shortest path, moves": (labels == task.PATH).sum(-1) + 1.0,
        }
    clues = (inputs != task.blank_token).sum(-1).astype(float)
    return {"clues": clues} if rating is None else {"clues": clues, "rating, guesses": rating.astype(float)}


@dataclass
class Found:
    """What the rows of one split turned out to be."""

    rows: int = 0
    faults: list[tuple[int, str]] = field(default_factory=list)
    other_rule: int = 0  # sound maze labels that do not follow Down, Left, Right, Up
    originals: int = 0  # sound first rows of groups
    puzzles: set[bytes] = field(default_factory=set)  # their forms up to symmetry
    grids: set[bytes] = field(default_factory=set)
    values: dict[str, np.ndarray] = field(default_factory=dict)

    def report(self, expected: int, task: GridTask) -> dict:
        return {
            "rows": self.rows,
            "rows_expected": expected,
            "puzzles": self.originals,
            "faults": len(self.faults),
            "faulty_rows": [{"row": number, "reason": reason} for number, reason in self.faults[:LISTED]],
            "equivalent_to_another_of_the_split": self.originals - len(self.puzzles),
        } | ({"labels_of_another_rule": self.other_rule} if isinstance(task, MazeTask) else {})


def read_split(folder: Path, config: str, split: str, task: GridTask, num_proc: int | None, bar: tqdm) -> Found:
    """Check all rows of a split, chunk by chunk."""
    found, last_group, parts = Found(), -1, []
    for inputs, labels, rating, group in _batches(folder, config, split):
        faults = rule_faults(task, inputs, labels, np.arange(len(inputs)), num_proc)
        found.faults += [(found.rows + i + 1, reason) for i, reason in sorted(faults.items())]
        sound = np.ones(len(inputs), bool)
        sound[list(faults)] = False
        if isinstance(task, MazeTask):
            found.other_rule += int((task.label(inputs[sound]) != labels[sound]).any(-1).sum())
        first = np.diff(group, prepend=last_group) != 0  # of each group: the original
        own = sound & first
        for forms, seen in zip(_forms(task, inputs[own], labels[own]), (found.puzzles, found.grids)):
            seen.update(forms)
        found.originals += int(own.sum())
        parts.append(_features(task, inputs[first], labels[first], rating[first]))
        last_group = int(group[-1])
        found.rows += len(inputs)
        bar.update(len(inputs))
    found.values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found


def overlaps(found: dict[str, Found]) -> dict:
    """How many puzzles and solved grids of each other split are in training, up to symmetry."""
    train = found.get("train")
    return {
        f"train and {split}": {
            "puzzles_up_to_symmetry": len(train.puzzles & other.puzzles),
            "solved_grids_up_to_symmetry": len(train.grids & other.grids) if train.grids else None,
        }
        for split, other in found.items()
        if train is not None and split != "train"
    }


def verify(
    folder: str | Path, reference: str | None = None, num_proc: int | None = None, progress: bool = True
) -> dict:
    """Check every row of a built folder.

    Args:
        folder: what build_dataset.py wrote.
        reference: real puzzles (CSV, folder or Hub id) to compare the statistics with.

    Returns:
        the report: {"ok", "summary", "splits": {split: {rows, faults, ...}}, "overlaps", "statistics", "reference"}.
    """
    folder = Path(folder)
    if not (folder / META).exists():
        raise FileNotFoundError(f"{folder} was not written by build_dataset.py ({META} is missing).")
    meta = read_json(folder / META)
    task, config = task_from_meta(meta), meta["default_config"]
    expected = {split: info["rows"] for split, info in meta["configs"][config]["splits"].items()}
    found = {}
    for split in sorted(expected, key=lambda split: split != "train"):
        with tqdm(total=expected[split], desc=f"verify {split}", unit=" rows", disable=not progress) as bar:
            found[split] = read_split(folder, config, split, task, num_proc, bar)
    report: dict = {
        "folder": folder.name,
        "splits": {split: one.report(expected[split], task) for split, one in found.items()},
        "overlaps": overlaps(found),
        "symmetry": "complete" if searchable(task) else "none: the group is too large to search",
        "statistics": {split: {name: _numbers(v) for name, v in one.values.items()} for split, one in found.items()},
    }
    real = None
    if reference is not None:
        puzzles = load_puzzles(reference, "train", task=task)
        real = _features(task, puzzles.inputs, puzzles.labels, puzzles.rating)
        statistics = {name: _numbers(v) for name, v in real.items()}
        report["reference"] = {"source": Path(reference).name, "rows": len(puzzles), "statistics": statistics}
    report["ok"] = all(
        s["faults"] == 0 and s["rows"] == s["rows_expected"] and not s.get("labels_of_another_rule")
        for s in report["splits"].values()
    ) and not any(o["puzzles_up_to_symmetry"] for o in report["overlaps"].values())
    report["summary"] = _summary(report)
    values = {split: one.values for split, one in found.items()}
    _plot(values, real, folder / "verification.png", meta["source"] == "generate")
    write_json(folder / "verification.json", report)
    write_text(folder / "verification.md", _markdown(report))
    return report


def _forms(task: GridTask, inputs: np.ndarray, labels: np.ndarray) -> tuple[list[bytes], list[bytes]]:
    """Digests of the puzzles, and of the solved grids of Sudokus, up to symmetry."""
    if not len(inputs):
        return [], []
    if isinstance(task, MazeTask):
        return _digests(canonical_mazes(inputs, task)), []
    forms = canonical(labels, task, inputs)
    if forms is None:
        return _digests(inputs), _digests(labels)
    return _digests(forms), _digests(np.ascontiguousarray(forms[:, : task.seq_len]))


def _numbers(values: np.ndarray) -> dict[str, float]:
    quantiles = np.percentile(values, [0, 10, 50, 90, 100])
    names = ("min", "p10", "median", "p90", "max")
    return {"mean": round(float(values.mean()), 4)} | {n: round(float(q), 4) for n, q in zip(names, quantiles)}


def _summary(report: dict) -> str:
    lines = []
    for split, s in report["splits"].items():
        lines.append(
            f"{split}: {s['rows']:,} rows, {s['puzzles']:,} puzzles, {s['faults']} faulty,"
            f" {s['equivalent_to_another_of_the_split']} equivalent to another"
            + (f", {s['labels_of_another_rule']} labels of another rule" if "labels_of_another_rule" in s else "")
        )
        lines += [f"  row {f['row']}: {f['reason']}" for f in s["faulty_rows"]]
    for pair, o in report["overlaps"].items():
        shared = o["solved_grids_up_to_symmetry"]
        lines.append(
            f"{pair}: {o['puzzles_up_to_symmetry']} puzzles in common up to symmetry"
            + ("" if shared is None else f", {shared} solved grids")
        )
    lines.append("Everything holds." if report["ok"] else "NOT everything holds: see above.")
    return "\n".join(lines)


def _markdown(report: dict) -> str:
    lines = ["# Verification", "", "```", report["summary"], "```", "", "| | quantity | mean | 10 % | median | 90 % |"]
    lines.append("|---|---|---|---|---|---|")
    tables = dict(report["statistics"])
    if "reference" in report:
        tables[f"reference ({report['reference']['source']})"] = report["reference"]["statistics"]
    for where, quantities in tables.items():
        for name, n in quantities.items():
            lines.append(f"| {where} | {name} | {n['mean']} | {n['p10']} | {n['median']} | {n['p90']} |")
    return "\n".join([*lines, "", "![distributions](verification.png)", ""])


def _plot(values: dict, real: dict | None, target: Path, generated: bool) -> None:
    """Histograms of every quantity: the splits as lines, the real puzzles filled."""
    names = list(next(iter(values.values())))
    colours = dict(zip(values, ("#0072B2", "#D55E00", "#009E73", "#CC79A7")))
    figure = Figure(figsize=(4.5 * len(names), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    for name, ax in zip(names, axes[0]):
        pools = [v[name] for v in values.values()] + ([real[name]] if real and name in real else [])
        every = np.concatenate(pools)
        top = np.percentile(every, 99.5)
        bins = np.linspace(every.min(), max(top, every.min() + 1e-3), 40)
        if np.all(every == np.round(every)) and top - every.min() < 80:
            bins = np.arange(every.min() - 0.5, top + 1.5)
        if real and name in real:
            ax.hist(real[name].clip(max=bins[-1]), bins, density=True, color="#BBBBBB", label="reference")
        for split, quantities in values.items():
            label = f"{split}{' (generated)' if generated else ''}"
            ax.hist(quantities[name].clip(max=bins[-1]), bins, density=True, histtype="step", label=label,
                    color=colours.get(split, "#000000"))  # fmt: skip
        ax.set(xlabel=name, ylabel="density")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8)
    with whole(target) as partial:
        figure.savefig(partial, dpi=150, metadata={"Software": None})
