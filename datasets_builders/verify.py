"""Checks a built folder again, row by row, and writes verification.json, verification.md and verification.png.

Sudoku: exactly one solution, and it is the label. Maze: the label is a shortest path, and the one of the Down, Left,
Right, Up rule. Both: no puzzle of another split in training, up to symmetry. How many are in their own split twice
(groups of copies aside) is told; sources may have some.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from air_model.datasets_builders.build import _digests, rule_faults
from air_model.datasets_builders.canonical import canonical, canonical_mazes, searchable
from air_model.datasets_builders.files import CHUNK
from air_model.datasets_builders.loading import META, UNRATED, PuzzleSet, load_puzzles
from air_model.processing_air import GridTask, MazeTask
from air_model.records import read_json, whole, write_json, write_text

LISTED = 100  # faults written out per split; the number of all is given too


def _features(puzzles: PuzzleSet) -> dict[str, np.ndarray]:
    """The quantities that are plotted, one value per puzzle."""
    task = puzzles.task
    if isinstance(task, MazeTask):
        moves = (puzzles.labels == task.PATH).sum(-1) + 1.0
        return {"walls, share of cells": (puzzles.inputs == task.WALL).mean(-1), "shortest path, moves": moves}
    clues = {"clues": (puzzles.inputs != task.blank_token).sum(-1).astype(float)}
    if puzzles.rating is None:
        return clues
    return clues | {"rating, guesses": puzzles.rating[puzzles.rating != UNRATED].astype(float)}


@dataclass
class Found:
    """What the rows of one split turned out to be."""

    report: dict
    values: dict[str, np.ndarray]  # of `_features`
    puzzles: set[bytes] = field(default_factory=set)  # their forms up to symmetry
    grids: set[bytes] = field(default_factory=set)


def read_split(puzzles: PuzzleSet, expected: int, num_proc: int | None, bar: tqdm) -> Found:
    """Check all rows of a split, of which there should be `expected`."""
    task, faults = puzzles.task, {}
    first = np.diff(puzzles.groups, prepend=-1) != 0  # of each group: the original
    found = Found({}, _features(puzzles.select(first)))
    other_rule = originals = 0
    for start in range(0, len(puzzles), CHUNK):
        inputs, labels = (part[start : start + CHUNK] for part in (puzzles.inputs, puzzles.labels))
        wrong = rule_faults(task, inputs, labels, np.arange(len(inputs)), num_proc)
        faults |= {start + i + 1: reason for i, reason in sorted(wrong.items())}
        sound = ~np.isin(np.arange(len(inputs)), list(wrong))
        if isinstance(task, MazeTask) and sound.any():
            other_rule += int((task.label(inputs[sound]) != labels[sound]).any(-1).sum())
        own = sound & first[start : start + CHUNK]
        originals += int(own.sum())
        for forms, seen in zip(_forms(task, inputs[own], labels[own]), (found.puzzles, found.grids)):
            seen.update(forms)
        bar.update(len(inputs))
    found.report = {
        "rows": len(puzzles),
        "rows_expected": expected,
        "puzzles": originals,
        "faults": len(faults),
        "faulty_rows": [{"row": row, "reason": reason} for row, reason in list(faults.items())[:LISTED]],
        "equivalent_to_another_of_the_split": originals - len(found.puzzles),
    } | ({"labels_of_another_rule": other_rule} if isinstance(task, MazeTask) else {})
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
    splits = meta["configs"][meta["default_config"]]["splits"]
    found = {}
    for split in sorted(splits, key=lambda split: split != "train"):
        puzzles, expected = load_puzzles(folder, split), splits[split]["rows"]
        with tqdm(total=expected, desc=f"verify {split}", unit=" rows", disable=not progress) as bar:
            found[split] = read_split(puzzles, expected, num_proc, bar)
    values = {split: one.values for split, one in found.items()}
    statistics = {split: {name: _numbers(v) for name, v in by.items()} for split, by in values.items()}
    report: dict = {
        "folder": folder.name,
        "splits": {split: one.report for split, one in found.items()},
        "overlaps": overlaps(found),
        "symmetry": "complete" if searchable(puzzles.task) else "none: the group is too large to search",
        "statistics": statistics,
    }
    real = None
    if reference is not None:
        real = _features(load_puzzles(reference, "train", task=puzzles.task))
        numbers = {name: _numbers(v) for name, v in real.items()}
        rows = len(next(iter(real.values())))
        report["reference"] = {"source": Path(reference).name, "rows": rows, "statistics": numbers}
    report["ok"] = all(
        s["faults"] == 0 and s["rows"] == s["rows_expected"] and not s.get("labels_of_another_rule")
        for s in report["splits"].values()
    ) and not any(o["puzzles_up_to_symmetry"] for o in report["overlaps"].values())
    report["summary"] = _summary(report)
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
    figure = Figure(figsize=(4.5 * len(names), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)
    note = " (generated)" if generated else ""
    styles = [{"color": colour, "histtype": "step"} for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7")]
    sets = [(f"{split}{note}", by, style) for (split, by), style in zip(values.items(), itertools.cycle(styles))]
    sets = ([("reference", real, {"color": "#BBBBBB"})] if real else []) + sets
    for name, ax in zip(names, axes[0]):
        shown = [(label, by[name], style) for label, by, style in sets if name in by]
        every = np.concatenate([pool for _, pool, _ in shown])
        top = np.percentile(every, 99.5)
        bins = np.linspace(every.min(), max(top, every.min() + 1e-3), 40)
        if np.all(every == np.round(every)) and top - every.min() < 80:
            bins = np.arange(every.min() - 0.5, top + 1.5)
        for label, pool, style in shown:
            ax.hist(pool.clip(max=bins[-1]), bins, density=True, label=label, **style)
        ax.set(xlabel=name, ylabel="density")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8)
    with whole(target) as partial:
        figure.savefig(partial, dpi=150, metadata={"Software": None})
