"""Curves, bars and attention maps: the figures of the analyses that are not boards.

Every function takes results in the shape that the analyses return; published results are brought into that shape by
the `from_published` functions, so the paper's figures and ours come from the same code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MultipleLocator

from air_model.analysis.figures import (
    FAINT,
    GRID,
    HELD,
    INK,
    MUTED,
    PALETTE,
    STATE_COLOURS,
    grid_lines,
    panels,
    save,
    styled,
    tint,
)
from air_model.processing_air import GridTask

METRICS = {  # label and colour
    "neighborhood": (r"$\Delta_{\mathrm{nbr}}$", "#0072B2"),
    "nbr4": (r"$\Delta\rho$ (4 nearest)", "#0072B2"),
    "nbr8": (r"$\Delta\rho$ (8 nearest)", "#56B4E9"),
    "window5": (r"$\Delta\rho$ (5 × 5)", "#B5DDF3"),
    "entropy": (r"$\Delta_{\mathrm{ent}}$", "#009E73"),
    "violation": (r"$\Delta_{\mathrm{viol}}$", "#E69F00"),
}
CLASS_LABELS = {"violation-adjacent": "Viol.-adj.", "error-adjacent": "Error-adj.", "control": "Control"}
COLOURS = {"z_H": STATE_COLOURS["h"], "z_L": STATE_COLOURS["l"], "both": INK, "input": HELD}
ERROR = {"zorder": 3, "error_kw": {"ecolor": INK, "capsize": 3, "lw": 1.2, "zorder": 4}}  # of bars
NAMES = {"z_H": "$z_H$", "z_L": "$z_L$", "both": "both", "input": "puzzle's cell alone"}


def _band(
    ax: Axes, stats: dict[str, Any], colour: str, label: str, factor: float = 1, x: Any = None, **line: Any
) -> None:
    """Mean ± "sem" as a line with a band, against x or 0, 1, ...; None is a gap."""
    mean, error = (factor * np.asarray(stats[key], float) for key in ("mean", "sem"))
    x = range(len(mean)) if x is None else x
    ax.plot(x, mean, color=colour, label=label, **{"lw": 1.5, **line})
    ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, lw=0)


# ---- attention -----------------------------------------------------------------------------------------------------


def attention_from_published(file: dict[str, Any], task: str) -> dict[str, Any]:
    """One task of the published `attention_bars.json` in the shape of `AttentionResult.tables`."""
    out: dict[str, Any] = {}
    for layer, block in file[task].items():
        out[layer] = {}
        for name, entry in block.get("classes", block).items():
            metrics = entry.get("metrics") or {k: v for k, v in entry.items() if isinstance(v, dict)}
            metrics = {k.removeprefix("delta_"): {"mean": v["mean"], "ci95": v["ci95"]} for k, v in metrics.items()}
            out[layer][name] = {"n_queries": entry.get("n_cells"), "n_puzzles": entry["n_puzzles"], "metrics": metrics}
    return out


def attention_bars(tables: dict[str, Any], path: str | Path, *, title: str = "") -> Path:
    """One panel per layer, bars per class: contrasts with 95 % intervals. Maze densities have their own scale (above).

    tables: {layer: {class: {"n_puzzles", "metrics": {name: {"mean", "ci95"}}}}}.
    """
    metrics = list(next(iter(next(iter(tables.values())).values()))["metrics"])
    dense = [m for m in metrics if m in ("nbr4", "nbr8", "window5")]
    rows = [part for part in (dense, [m for m in metrics if m not in dense]) if part]
    width, height = 0.9 + 2.7 * len(tables), 0.95 + 2.65 * len(rows)
    figure, axes = panels(width, height, len(rows), len(tables), sharey="row")
    for names, line in zip(rows, axes):
        for ax, table in zip(line, tables.values()):
            _contrast_bars(ax, table, names)
        line[0].set_ylabel("difference of mass per cell, L − H" if names == dense else "difference", fontsize=9)
    for ax, layer in zip(axes[0], tables):
        ax.set_title(f"Layer {layer}", fontsize=12, weight="bold", color=INK)
    handles = [Patch(facecolor=METRICS[m][1], edgecolor=INK, lw=0.6, label=METRICS[m][0]) for m in metrics]
    figure.legend(handles=handles, loc="upper center", ncol=len(metrics), frameon=False, fontsize=11)
    figure.text(0.5, 0.005, title, ha="center", va="bottom", fontsize=8.5, color=MUTED)
    figure.tight_layout(rect=(0, 0.25 / height if title else 0, 1, 1 - 0.4 / height))
    return save(figure, path)


def _contrast_bars(ax: Axes, table: dict[str, Any], names: Sequence[str]) -> None:
    width = 0.78 / len(names)
    for i, metric in enumerate(names):
        entries = [one["metrics"][metric] for one in table.values()]
        mean, ci95 = (np.array([entry[key] for entry in entries], float) for key in ("mean", "ci95"))  # None: NaN
        at = np.arange(len(entries)) + (i - (len(names) - 1) / 2) * width
        ax.bar(at, mean, width * 0.9, yerr=ci95, color=METRICS[metric][1], edgecolor=INK, lw=0.6, **ERROR)
    ax.grid(axis="y", color=GRID, lw=0.8, zorder=0)
    labels = [f"{CLASS_LABELS.get(name, name)}\n($n$ = {one['n_puzzles']})" for name, one in table.items()]
    ax.set_xticks(range(len(labels)), labels, fontsize=9)
    ax.set_xlim(-0.55, len(labels) - 0.45)
    ax.axhline(0, color=INK, lw=0.9, zorder=5)
    styled(ax, size=9)


def _outline(cells: np.ndarray, width: int) -> list[list[tuple[float, float]]]:
    """Line segments around a set of cells (S,) bool of a grid."""
    grid = np.pad(cells.reshape(-1, width), 1)
    across = np.argwhere(grid[1:] != grid[:-1])
    down = np.argwhere(grid[:, 1:] != grid[:, :-1])
    segments = [[(c - 1.5, r - 0.5), (c - 0.5, r - 0.5)] for r, c in across]
    return segments + [[(c - 0.5, r - 1.5), (c - 0.5, r - 0.5)] for r, c in down]


def _attention_pair(
    axes: Sequence[Axes], maps: Sequence[np.ndarray], decoded: np.ndarray, query: int, task: GridTask,
    puzzle: np.ndarray | None, label: np.ndarray | None,
) -> tuple[Any, list[float]]:  # fmt: skip
    """The query's rows of an L- and an H-map as heat maps on one scale; returns an image and their masses nearby."""
    rows, near = [_query_row(m, query, task) for m in maps], next(iter(task.neighbours.values()))[query]
    wrong, top = np.flatnonzero(task.conflicts(np.asarray(decoded).reshape(-1), label)), max(map(np.max, rows))
    height, width = task.height, task.width
    for ax, row in zip(axes, rows):
        image = ax.imshow(row.reshape(height, width), cmap="YlOrRd", vmin=0, vmax=top, zorder=1)
        if task.name == "sudoku":
            boxes = grid_lines(task, task.box_height, task.box_width)
            ax.add_collection(LineCollection(boxes, colors="#9AA1AB", linewidths=0.8, zorder=2))
        if task.name == "maze":
            shade = np.zeros((task.seq_len, 4))
            shade[puzzle == task.WALL] = (0.2, 0.22, 0.24, 0.45)
            ax.imshow(shade.reshape(height, width, 4), zorder=1.5)
            way = np.flatnonzero(label == task.PATH)
            ax.plot(way % width, way // width, ".", color="black", ms=2.5, mew=0, zorder=3)
        frame = _outline(near | (np.arange(task.seq_len) == query), width)
        ax.add_collection(LineCollection(frame, colors=STATE_COLOURS["l"], linewidths=1.6, zorder=4))
        cell = 72 * ax.get_position().width * ax.figure.get_size_inches()[0] / width
        size = {"ms": 0.3 * cell, "mew": max(0.5, 0.05 * cell)}
        ax.plot(wrong % width, wrong // width, "x", color="#CC0000", zorder=5, **size)
        corner = query % width - 0.5, query // width - 0.5
        ax.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=INK, lw=2.4, zorder=6))
        ax.tick_params(length=0, labelsize=8, colors=MUTED)
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MultipleLocator(1 if width <= 16 else 5))
            axis.set_major_formatter(lambda value, _: f"{int(value) + 1}")
    return image, [row[near].sum() for row in rows]


def _attention_legend(figure: Figure, task: GridTask, **where: Any) -> None:
    sudoku = task.name == "sudoku"
    near, fault = ("row, column and box", "breaks a rule") if sudoku else ("4-neighbourhood", "is wrong")
    handles: list[Any] = [
        Patch(facecolor="none", edgecolor=INK, lw=2, label="query cell"),
        Patch(facecolor="none", edgecolor=STATE_COLOURS["l"], lw=1.6, label=near),
        Line2D([], [], marker="x", ls="", color="#CC0000", mew=1.4, label=f"$z_H$ {fault}"),
    ]
    if task.name == "maze":
        handles.append(Patch(facecolor="#9A9DA1", label="wall"))
        handles.append(Line2D([], [], marker=".", ls="", color="black", label="right path"))
    figure.legend(handles=handles, loc="upper center", ncol=5, frameon=False, fontsize=10, **where)


def _query_row(values: np.ndarray, query: int, task: GridTask) -> np.ndarray:
    """The query's row over the cells, as it is: maps from elsewhere may lack the mass of prefix positions."""
    row = np.asarray(values, np.float64)
    row = row[query] if row.ndim == 2 else row
    if row.shape != (task.seq_len,):
        raise ValueError(f"An attention row of this {task.name} has {task.seq_len} cells, got {row.shape}.")
    return row


def attention_example(
    l_map: np.ndarray, h_map: np.ndarray, decoded: np.ndarray, query: int, task: GridTask, path: str | Path, *,
    puzzle: np.ndarray | None = None, label: np.ndarray | None = None, title: str = "",
) -> Path:  # fmt: skip
    """One query cell: where the L-update and the H-update look, side by side on one colour scale.

    Args:
        l_map, h_map: (S, S) attention of one head, or the query's rows (S,).
        decoded: (S,) z_H after the H-update; its faults are crossed. query: cell number.
        puzzle, label: (S,) tokens, needed of a maze, for its walls and right path.
    """
    figure, (axes,) = panels(9.2, 5.0, columns=2)
    image, masses = _attention_pair(axes, (l_map, h_map), decoded, query, task, puzzle, label)
    for ax, mass, level in zip(axes, masses, "lh"):
        ax.set_title(f"{level.upper()}-update", fontsize=13, weight="bold", color=STATE_COLOURS[level])
        ax.set_xlabel(f"mass on the neighbourhood: {mass:.3f}", fontsize=10, color=MUTED)
    figure.subplots_adjust(left=0.04, right=0.9, top=0.84, bottom=0.1, wspace=0.1)
    bar = figure.colorbar(image, cax=figure.add_axes((0.92, 0.14, 0.016, 0.66)))
    bar.set_label("attention weight", fontsize=10, color=MUTED)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9, colors=MUTED)
    _attention_legend(figure, task, bbox_to_anchor=(0.48, 1.0))
    figure.text(0.48, 0.01, title, ha="center", fontsize=9, color=MUTED)
    return save(figure, path)


def attention_evolution(
    l_maps: np.ndarray, h_maps: np.ndarray, decoded: np.ndarray, query: int, task: GridTask, path: str | Path, *,
    steps: Sequence[int], puzzle: np.ndarray | None = None, label: np.ndarray | None = None, title: str = "",
) -> Path:  # fmt: skip
    """The example over ACT steps: L above H, a column per step.

    Arguments as of `attention_example`, with a leading axis of ACT steps on l_maps, h_maps and decoded.
    """
    figure, axes = panels(0.8 + 1.75 * len(steps), 4.7, 2, len(steps))
    for column, *maps, grid, step in zip(axes.T, l_maps, h_maps, decoded, steps):
        # One scale per step: later maps may be much flatter.
        _, masses = _attention_pair(column, maps, grid, query, task, puzzle, label)
        for ax, mass in zip(column, masses):
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(f"nbr {mass:.2f}", fontsize=8.5, color=MUTED, labelpad=2)
        column[0].set_title(f"ACT step {step}", fontsize=10, color=INK)
    for ax, level in zip(axes[:, 0], "lh"):
        ax.set_ylabel(f"{level.upper()}-update", fontsize=11, weight="bold", color=STATE_COLOURS[level])
    figure.subplots_adjust(left=0.03, right=0.995, top=0.84, bottom=0.08, wspace=0.06, hspace=0.18)
    _attention_legend(figure, task)
    figure.text(0.5, 0.005, title, ha="center", fontsize=9, color=MUTED)
    return save(figure, path)


def attention_by_step(by_step: dict[str, Any], path: str | Path) -> Path:
    """Contrasts against the ACT step: a row per metric, a column per layer, a line per class."""
    tables, x = list(by_step.values()), [int(step) for step in by_step]
    layers, classes = list(tables[0]), list(tables[0]["0"])
    metrics = list(tables[0]["0"][classes[0]]["metrics"])
    size = 0.8 + 2.4 * len(layers), 0.6 + 1.55 * len(metrics)
    figure, axes = panels(*size, len(metrics), len(layers), sharex=True, sharey="row")
    for (r, c), ax in np.ndenumerate(axes):
        for name, colour in zip(classes, (PALETTE[6], PALETTE[2])):
            cells = [table[layers[c]][name]["metrics"][metrics[r]] for table in tables]
            stats = {"mean": [cell["mean"] for cell in cells], "sem": [cell["ci95"] for cell in cells]}
            _band(ax, stats, colour, CLASS_LABELS.get(name, name), x=x, marker="o", ms=3)
        ax.axhline(0, color=INK, lw=0.7)
        ax.set_xticks(x)
        styled(ax, x="ACT step" if r == len(metrics) - 1 else "")
    for ax, layer in zip(axes[0], layers):
        ax.set_title(f"Layer {layer}", fontsize=11, weight="bold")
    for ax, metric in zip(axes[:, 0], metrics):
        ax.set_ylabel(METRICS[metric][0], fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=2, frameon=False, fontsize=10)
    return save(figure, path)


def attention_heads(per_head: dict[str, Any], name: str, path: str | Path) -> Path:
    """Contrasts of every head (columns) and layer (rows) of one class as a coloured table, a panel per metric."""
    tables = [classes[name] for classes in per_head.values()]
    heads, metrics = list(tables[0]), list(tables[0]["0"])
    size = 0.6 + (1.0 + 0.5 * len(heads)) * len(metrics), 1.3 + 0.5 * len(tables)
    figure, (axes,) = panels(*size, columns=len(metrics))
    for ax, metric in zip(axes, metrics):
        values = np.array([[table[h][metric]["mean"] for h in heads] for table in tables], float)  # None becomes NaN
        top = max(np.abs(values[np.isfinite(values)]), default=0) or 1
        ax.imshow(values, cmap="PuOr_r", vmin=-top, vmax=top, aspect="auto")
        for (r, c), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(c, r, f"{value:.2g}", ha="center", va="center", fontsize=6.5,
                        color="white" if abs(value) > 0.7 * top else INK)  # fmt: skip
        ax.set_title(METRICS[metric][0], fontsize=11)
        ax.set_xticks(range(len(heads)), heads, fontsize=8)
        ax.set_yticks(range(len(tables)), list(per_head), fontsize=8)
        ax.set_xlabel("head", fontsize=9, color=MUTED)
        ax.tick_params(length=0)
    axes[0].set_ylabel("layer", fontsize=9, color=MUTED)
    return save(figure, path, tight=True)


# ---- freeze --------------------------------------------------------------------------------------------------------

RUN_LABELS = {"normal": "normal", "freeze_z_H": "$z_H$ frozen", "freeze_z_L": "$z_L$ frozen"}
STUDIED = {"z_L": ("normal", "freeze_z_H"), "z_H": ("normal", "freeze_z_L")}  # a state, and the runs in which it moves


def freeze_bars(table: dict[str, Any], path: str | Path, *, title: str = "") -> Path:
    """Mask flips, content changes and exact accuracy of each state, normal and with the other state frozen.

    table: {run.state: {measure: {"mean", "std"}}} of `across_runs`, of `from_published`, or of a summary.
    """
    bars = [(run, state) for state, runs in STUDIED.items() for run in runs]
    figure, (axes,) = panels(10.5, 3.7, columns=3)
    labels = {"mask_flips": "mask flips per puzzle", "content_changes": "content changes per puzzle",
              "exact_accuracy": "exact accuracy, %"}  # fmt: skip
    for ax, (measure, label), scale in zip(axes, labels.items(), (1, 1, 100)):
        ax.grid(axis="y", color=GRID, lw=0.8, zorder=0)
        for x, (run, state) in enumerate(bars):
            if entry := table[f"{run}.{state}"].get(measure):
                colour, mean, std = COLOURS[state], scale * entry["mean"], scale * entry["std"]
                fill = colour if run == "normal" else tint(colour, 0.35)
                ax.bar(x, mean, 0.72, yerr=std, color=fill, edgecolor=colour, lw=1.2, **ERROR)
                for i, value in enumerate(entry.get("runs", [])):
                    ax.plot(x + 0.05 * (i - 2), scale * value, "o", ms=3, mfc="white", mec=INK, mew=0.8, zorder=5)
        ax.set_xticks(range(4), [f"{NAMES[state]}\n{RUN_LABELS[run]}" for run, state in bars], fontsize=9)
        ax.set_title(label, fontsize=11, color=INK)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        styled(ax, size=9)
    figure.text(0.5, 0.01, title, ha="center", fontsize=9, color=MUTED)
    figure.tight_layout(rect=(0, 0.05 if title else 0, 1, 1))
    return save(figure, path)


def freeze_series(series: dict[str, Any], path: str | Path) -> Path:
    """Mask flips and content changes after every update, mean ± SEM over puzzles, normal against frozen."""
    figure, axes = panels(10.5, 5.2, 2, 2, sharex=True)
    for column, (state, runs) in zip(axes.T, STUDIED.items()):
        for ax, measure in zip(column, ("mask_flips", "content_changes")):
            for run, style in zip(runs, ("-", "--")):
                entry = series[f"{run}.{state}"][measure]
                x = range(1, len(entry["mean"]) + 1)
                _band(ax, entry, COLOURS[state], RUN_LABELS[run], x=x, ls=style)
            ax.set_ylim(bottom=0)
            styled(ax, y=measure.replace("_", " "), size=9)
        column[0].set_title(NAMES[state], fontsize=13, color=COLOURS[state])
        column[0].legend(frameon=False, fontsize=9)
        column[1].set_xlabel("update", fontsize=9, color=MUTED)
    return save(figure, path, tight=True)


def intervention_bars(rows: Sequence[tuple[str, float, float]], path: str | Path) -> Path:
    """Exact accuracy of z_H (share, standard error) under each intervention."""
    figure, ((ax,),) = panels(7.5, 0.9 + 0.36 * len(rows))
    for y, (_, mean, error) in enumerate(rows):
        colour = COLOURS["z_H"] if y == 0 else tint(COLOURS["z_H"], 0.45)
        ax.barh(y, 100 * mean, 0.65, xerr=100 * error, color=colour, **ERROR)
    ax.set_yticks(range(len(rows)), [row[0] for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel("exact accuracy of $z_H$, %", fontsize=10, color=MUTED)
    ax.set_xlim(0, max(5.0, ax.get_xlim()[1]))
    ax.grid(axis="x", color=GRID, lw=0.8, zorder=0)
    styled(ax, size=9)
    ax.tick_params(colors="black")
    return save(figure, path, tight=True)


# ---- curves --------------------------------------------------------------------------------------------------------


def state_curves(
    curves: dict[str, dict[str, Any]], measures: Sequence[tuple[str, str, float]], path: str | Path, per_step: int
) -> Path:
    """Mean ± SEM of both states after every update, a panel per measure.

    Args:
        curves: {"z_H": {measure: {"mean" (U,), "sem" (U,)}}, "z_L": ...}.
        measures: (name, label, factor) of each panel, three in a row.
        per_step: updates of an ACT step.
    """
    lines = -(-len(measures) // 3)
    figure, axes = panels(10.8, 0.5 + 2.3 * lines, lines, 3)
    for ax, (name, label, factor) in zip(axes.flat, measures):
        for state, by in curves.items():
            if name in by:
                x = (np.arange(len(by[name]["mean"])) + 1) / per_step
                _band(ax, by[name], COLOURS[state], NAMES[state], factor, x)
        if factor == 100 and ax.get_ylim()[1] < 5:
            ax.set_ylim(min(0.0, ax.get_ylim()[0]), 5)  # no drama out of shares near 0
        styled(ax, label, "ACT step")
    axes[0, 0].legend(frameon=False, fontsize=10)
    return save(figure, path, tight=True)


# ---- geometry ------------------------------------------------------------------------------------------------------


def convergence_curves(convergence: dict[str, Any], path: str | Path) -> Path:
    """How far each state moves over an ACT step, and the share of puzzles whose decode is final."""
    figure, ((left, right),) = panels(9.0, 3.2, columns=2)
    for state, entry in convergence.items():
        for ax, key, factor in ((left, "relative_change", 1), (right, "decode_final", 100)):
            _band(ax, entry[key], COLOURS[state], NAMES[state], factor, lw=1.6)
    left.set_yscale("log")
    styled(left, "relative change of the state over the ACT step", "ACT step")
    styled(right, "puzzles whose decode is final, %", "after ACT step")
    right.set_ylim(-3, 103)
    left.legend(frameon=False, fontsize=10)
    return save(figure, path, tight=True)


def halting_figure(halting: dict[str, Any], path: str | Path) -> Path:
    """Reliability of the halting probability, and when puzzles are first solved against when the model would stop."""
    figure, ((left, right),) = panels(9.0, 3.4, columns=2)
    x, y, n = (np.array([b[key] for b in halting["calibration"]["bins"]]) for key in ("confidence", "accuracy", "n"))
    left.plot([0, 1], [0, 1], color=FAINT, lw=1.2)
    left.scatter(x, y, 20 + 300 * n / n.sum(), zorder=3, color=COLOURS["z_H"], edgecolor=INK, lw=0.6)
    left.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    error = 100 * halting["calibration"]["expected_calibration_error"]
    styled(left, f"calibration (error {error:.1f} points; area: how often)", "sigmoid(q_halt)", "share solved")
    steps = np.arange(len(halting["stops_at"]))
    right.bar(steps - 0.2, halting["first_solved_at"], 0.38, color=PALETTE[2], label="first solved")
    right.bar(steps + 0.2, halting["stops_at"], 0.38, color=COLOURS["z_H"], label="would stop")
    styled(right, "puzzles by ACT step", "ACT step")
    right.legend(frameon=False, fontsize=9)
    return save(figure, path, tight=True)


def failures_figure(failures: dict[str, Any], path: str | Path) -> Path:
    """Cells right over the ACT steps in solved and failed puzzles, and what became of the failed ones' wrong cells."""
    figure, ((left, right),) = panels(9.0, 3.2, columns=2, width_ratios=(1.6, 1))
    ends = (("right_solved", PALETTE[2], "solved in the end"), ("right_failed", PALETTE[6], "failed"))
    for key, colour, label in ends:
        if n := failures[key]["n"]:
            _band(left, failures[key], colour, f"{label} ($n$ = {n})", 100, lw=1.6)
    styled(left, "cells of $z_H$ that are right, %", "after ACT step")
    left.legend(frameon=False, fontsize=9)
    values = [100 * (failures[name]["mean"] or 0) for name in ("never_right", "lost")]
    right.bar([0, 1], values, 0.6, color=[PALETTE[6], PALETTE[0]])
    right.set_xticks([0, 1], ["never right", "right, then lost"], fontsize=9)
    right.set_ylim(0, 100)
    styled(right, "wrong cells of failed puzzles, %")
    return save(figure, path, tight=True)


def trajectories_figure(trajectories: dict[str, Any], path: str | Path) -> Path:
    """Each puzzle's mean state after every ACT step on two principal axes; solved green, failed purple."""
    figure, (axes,) = panels(9.0, 4.2, columns=2)
    solved, ends = trajectories["solved"], {True: (PALETTE[2], "solved"), False: (PALETTE[6], "failed")}
    for ax, name in zip(axes, ("z_H", "z_L")):
        explained = trajectories[name]["explained"]
        for way, right in zip(trajectories[name]["points"], solved):
            colour, _ = ends[bool(right)]
            ax.plot(*way.T, color=colour, lw=0.6, alpha=0.45)
            ax.plot(*way[-1], "o", color=colour, ms=3)
        styled(ax, x=f"axis 1 ({100 * explained[0]:.0f} %)", y=f"axis 2 ({100 * explained[1]:.0f} %)")
        ax.set_title(NAMES[name], color=COLOURS[name], fontsize=14)
    handles = [Line2D([], [], color=colour, marker="o", ms=4, label=label) for colour, label in ends.values()]
    axes[0].legend(handles=handles, frameon=False, fontsize=9)
    return save(figure, path, tight=True)


def probes_figure(probes: dict[str, Any], path: str | Path) -> Path:
    """AUC of linear probes on each state (and on the puzzle's cell alone) after some ACT steps."""
    figure, ((ax,),) = panels(5.6, 3.3)
    x, width = np.arange(len(probes["steps"])), 0.8 / 3
    for i, (name, areas) in enumerate(probes["auc"].items()):
        bars = ax.bar(x + (i - 1) * width, areas, width * 0.92, color=COLOURS[name], label=NAMES[name])
        ax.bar_label(bars, fmt="%.2f", fontsize=7.5, color=MUTED, padding=1)
    ax.set_xticks(x, [str(s) for s in probes["steps"]], fontsize=9)
    ax.axhline(0.5, color=INK, lw=0.8, ls=":")
    ax.set_ylim(0.4, 1.08)
    styled(ax, f"linear probe: {probes['what']} (AUC)", "after ACT step")
    ax.legend(frameon=False, fontsize=9, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return save(figure, path, tight=True)
