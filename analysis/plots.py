"""Curves, bars and attention maps: the figures of the analyses that are not boards.

Every function takes results in the shape that the analyses return; published results are brought into that shape by
the `from_published` functions, so the paper's figures and ours come from the same code.
"""

from __future__ import annotations

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
    STATE_NAMES,
    grid_lines,
    new_figure,
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


def _level(state: str) -> str:
    """'z_H' -> 'h'."""
    return state[-1].lower()


def _band(
    ax: Axes, x: Any, stats: dict[str, Any], colour: str, label: str, factor: float = 1, style: str = "-",
    spread: str = "sem", **line: Any,
) -> None:  # fmt: skip
    """Mean ± spread as a line with a band."""
    mean, error = (factor * np.asarray(stats[key], float) for key in ("mean", spread))
    ax.plot(x, mean, style, color=colour, label=label, **{"lw": 1.5, **line})
    ax.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, lw=0)


# ---- attention -----------------------------------------------------------------------------------------------------


def attention_from_published(file: dict[str, Any], task: str) -> dict[str, Any]:
    """One task of the published `attention_bars.json` in the shape of `AttentionResult.tables`."""
    names = {"delta_neighborhood": "neighborhood", "delta_entropy": "entropy", "delta_violation": "violation"}
    out: dict[str, Any] = {}
    for layer, block in file[task].items():
        out[layer] = {}
        for name, entry in block.get("classes", block).items():
            metrics = entry.get("metrics") or {k: v for k, v in entry.items() if isinstance(v, dict)}
            out[layer][name] = {
                "n_queries": entry.get("n_cells"),
                "n_puzzles": entry["n_puzzles"],
                "metrics": {names.get(k, k): {"mean": v["mean"], "ci95": v["ci95"]} for k, v in metrics.items()},
            }
    return out


def attention_bars(tables: dict[str, Any], path: str | Path, *, title: str | None = None) -> Path:
    """One panel per layer, bars per class: contrasts with 95 % intervals. Maze densities have their own scale (left).

    Args:
        tables: {layer: {class: {"n_puzzles", "metrics": {name: {"mean", "ci95"}}}}}.
    """
    layers = list(tables)
    classes = list(dict.fromkeys(name for layer in layers for name in tables[layer]))
    metrics = list(dict.fromkeys(m for l in layers for c in tables[l].values() for m in c["metrics"]))  # noqa: E741
    dense = [m for m in metrics if m in ("nbr4", "nbr8", "window5")]
    plain = [m for m in metrics if m not in dense]
    rows = [part for part in (dense, plain) if part]
    figure = new_figure(0.9 + 2.7 * len(layers), 0.95 + 2.65 * len(rows))
    axes = figure.subplots(len(rows), len(layers), squeeze=False, sharey="row")
    for r, names in enumerate(rows):
        for c, layer in enumerate(layers):
            _contrast_bars(axes[r][c], tables[layer], classes, names)
            if r == 0:
                axes[r][c].set_title(f"Layer {layer}", fontsize=12, weight="bold", color=INK)
        axes[r][0].set_ylabel("difference of mass per cell, L − H" if names == dense else "difference", fontsize=9)
    handles = [Patch(facecolor=METRICS[m][1], edgecolor=INK, lw=0.6, label=METRICS[m][0]) for m in metrics]
    figure.legend(handles=handles, loc="upper center", ncol=len(metrics), frameon=False, fontsize=11)
    if title:
        figure.text(0.5, 0.005, title, ha="center", va="bottom", fontsize=8.5, color=MUTED)
    height = figure.get_size_inches()[1]
    figure.tight_layout(rect=(0, 0.25 / height if title else 0, 1, 1 - 0.4 / height))
    return save(figure, path)


def _contrast_bars(ax: Axes, table: dict[str, Any], classes: Sequence[str], names: Sequence[str]) -> None:
    width = 0.78 / len(names)
    for i, metric in enumerate(names):
        for x, name in enumerate(classes):
            entry = table.get(name, {}).get("metrics", {}).get(metric, {})
            if entry.get("mean") is None:
                continue
            at = x + (i - (len(names) - 1) / 2) * width
            ax.bar(at, entry["mean"], width * 0.9, color=METRICS[metric][1], edgecolor=INK, lw=0.6, zorder=3)
            ax.errorbar(at, entry["mean"], yerr=entry["ci95"], color=INK, capsize=3, lw=1.2, zorder=4)
    ax.grid(axis="y", color=GRID, lw=0.8, zorder=0)
    counts = [table.get(name, {}).get("n_puzzles", 0) for name in classes]
    labels = [f"{CLASS_LABELS.get(name, name)}\n($n$ = {n})" for name, n in zip(classes, counts)]
    ax.set_xticks(range(len(classes)), labels, fontsize=9)
    ax.set_xlim(-0.55, len(classes) - 0.45)
    ax.axhline(0, color=INK, lw=0.9, zorder=5)
    styled(ax, size=9)


def _outline(cells: np.ndarray, width: int) -> list[list[tuple[float, float]]]:
    """Line segments around a set of cells (S,) bool of a grid."""
    grid = np.pad(cells.reshape(-1, width), 1)
    across = np.argwhere(grid[1:] != grid[:-1])
    down = np.argwhere(grid[:, 1:] != grid[:, :-1])
    segments = [[(c - 1.5, r - 0.5), (c - 0.5, r - 0.5)] for r, c in across]
    return segments + [[(c - 0.5, r - 1.5), (c - 0.5, r - 0.5)] for r, c in down]


def _neighbourhood(task: GridTask, query: int) -> np.ndarray:
    """(S,) bool: the first of the task's neighbourhoods, that of the contrasts."""
    return next(iter(task.neighbours.values()))[query]


def _attention_panel(
    ax: Axes, row: np.ndarray, task: GridTask, query: int, faults: np.ndarray, puzzle: np.ndarray | None,
    label: np.ndarray | None, top: float,
) -> Any:  # fmt: skip
    """One attention row as a heat map: query, neighbourhood, faults, and for a maze its walls and right path."""
    height, width = task.height, task.width
    image = ax.imshow(row.reshape(height, width), cmap="YlOrRd", vmin=0, vmax=top, zorder=1)
    near = _neighbourhood(task, query)
    if task.name == "sudoku":
        boxes = grid_lines(task, task.box_height, task.box_width)
        ax.add_collection(LineCollection(boxes, colors="#9AA1AB", linewidths=0.8, zorder=2))
    else:
        near = near | (np.arange(task.seq_len) == query)
    if task.name == "maze" and puzzle is not None:
        shade = np.zeros((task.seq_len, 4))
        shade[puzzle == task.WALL] = (0.2, 0.22, 0.24, 0.45)
        ax.imshow(shade.reshape(height, width, 4), zorder=1.5)
    if task.name == "maze" and label is not None:
        way = np.flatnonzero(label == task.PATH)
        ax.plot(way % width, way // width, ".", color="black", ms=2.5, mew=0, zorder=3)
    ax.add_collection(LineCollection(_outline(near, width), colors=STATE_COLOURS["l"], linewidths=1.6, zorder=4))
    wrong = np.flatnonzero(faults)
    cell = 72 * ax.get_position().width * ax.figure.get_size_inches()[0] / width
    ax.plot(wrong % width, wrong // width, "x", color="#CC0000", ms=0.3 * cell, mew=max(0.5, 0.05 * cell), zorder=5)
    corner = query % width - 0.5, query // width - 0.5
    ax.add_patch(Rectangle(corner, 1, 1, facecolor="none", edgecolor=INK, lw=2.4, zorder=6))
    ax.tick_params(length=0, labelsize=8, colors=MUTED)
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MultipleLocator(1 if width <= 16 else 5))
        axis.set_major_formatter(lambda value, _: f"{int(value) + 1}")
    return image


def _attention_legend(figure: Figure, task: GridTask, labelled: bool, **where: Any) -> None:
    sudoku = task.name == "sudoku"
    near, fault = ("row, column and box", "breaks a rule") if sudoku else ("4-neighbourhood", "is wrong")
    handles: list[Any] = [
        Patch(facecolor="none", edgecolor=INK, lw=2, label="query cell"),
        Patch(facecolor="none", edgecolor=STATE_COLOURS["l"], lw=1.6, label=near),
        Line2D([], [], marker="x", ls="", color="#CC0000", mew=1.4, label=f"$z_H$ {fault}"),
    ]
    if task.name == "maze":
        handles.append(Patch(facecolor="#9A9DA1", label="wall"))
        if labelled:
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
    puzzle: np.ndarray | None = None, label: np.ndarray | None = None, title: str | None = None,
) -> Path:  # fmt: skip
    """One query cell: where the L-update and the H-update look, side by side on one colour scale.

    Args:
        l_map, h_map: (S, S) attention of one head, or the query's rows (S,).
        decoded: (S,) z_H after the H-update; its faults are crossed. query: cell number.
        puzzle, label: (S,) tokens; of a maze they show its walls and right path.
    """
    rows = [_query_row(m, query, task) for m in (l_map, h_map)]
    faults, near = task.conflicts(np.asarray(decoded).reshape(-1), label), _neighbourhood(task, query)
    figure = new_figure(9.2, 5.0)
    for ax, row, level in zip(figure.subplots(1, 2), rows, "lh"):
        image = _attention_panel(ax, row, task, query, faults, puzzle, label, max(r.max() for r in rows))
        ax.set_title(f"{level.upper()}-update", fontsize=13, weight="bold", color=STATE_COLOURS[level])
        ax.set_xlabel(f"mass on the neighbourhood: {row[near].sum():.3f}", fontsize=10, color=MUTED)
    figure.subplots_adjust(left=0.04, right=0.9, top=0.84, bottom=0.1, wspace=0.1)
    bar = figure.colorbar(image, cax=figure.add_axes((0.92, 0.14, 0.016, 0.66)))
    bar.set_label("attention weight", fontsize=10, color=MUTED)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9, colors=MUTED)
    _attention_legend(figure, task, label is not None, bbox_to_anchor=(0.48, 1.0))
    if title:
        figure.text(0.48, 0.01, title, ha="center", fontsize=9, color=MUTED)
    return save(figure, path)


def attention_evolution(
    l_maps: np.ndarray, h_maps: np.ndarray, decoded: np.ndarray, steps: Sequence[int], query: int, task: GridTask,
    path: str | Path, *, puzzle: np.ndarray | None = None, label: np.ndarray | None = None, title: str | None = None,
) -> Path:  # fmt: skip
    """The example over ACT steps: L above H, a column per step.

    Args: as `attention_example`, with a leading axis of ACT steps on l_maps, h_maps and decoded.
    """
    figure = new_figure(0.8 + 1.75 * len(steps), 4.7)
    axes = figure.subplots(2, len(steps), squeeze=False)
    near = _neighbourhood(task, query)
    for i, step in enumerate(steps):
        faults = task.conflicts(np.asarray(decoded[i]).reshape(-1), label)
        rows = [_query_row(m[i], query, task) for m in (l_maps, h_maps)]
        for ax, row, level in zip(axes[:, i], rows, "lh"):
            # One scale per step: later maps may be much flatter.
            _attention_panel(ax, row, task, query, faults, puzzle, label, max(r.max() for r in rows))
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(f"nbr {row[near].sum():.2f}", fontsize=8.5, color=MUTED, labelpad=2)
            if i == 0:
                ax.set_ylabel(f"{level.upper()}-update", fontsize=11, weight="bold", color=STATE_COLOURS[level])
        axes[0, i].set_title(f"ACT step {step}", fontsize=10, color=INK)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.84, bottom=0.08, wspace=0.06, hspace=0.18)
    _attention_legend(figure, task, label is not None)
    if title:
        figure.text(0.5, 0.005, title, ha="center", fontsize=9, color=MUTED)
    return save(figure, path)


def attention_by_step(by_step: dict[str, Any], path: str | Path) -> Path:
    """Contrasts against the ACT step: a row per metric, a column per layer, a line per class."""
    steps = list(by_step)
    layers = list(by_step[steps[0]])
    classes = list(by_step[steps[0]][layers[0]])
    metrics = list(by_step[steps[0]][layers[0]][classes[0]]["metrics"])
    figure = new_figure(0.8 + 2.4 * len(layers), 0.6 + 1.55 * len(metrics))
    axes = figure.subplots(len(metrics), len(layers), squeeze=False, sharex=True, sharey="row")
    x = np.array([int(s) for s in steps])
    for (r, c), ax in np.ndenumerate(axes):
        metric, layer = metrics[r], layers[c]
        for name, colour in zip(classes, (PALETTE[6], PALETTE[2])):
            cells = [by_step[s][layer][name]["metrics"][metric] for s in steps]
            stats = {key: np.array([e[key] for e in cells], float) for key in ("mean", "ci95")}  # None becomes NaN
            _band(ax, x, stats, colour, CLASS_LABELS.get(name, name), style="-o", spread="ci95", ms=3)
        ax.axhline(0, color=INK, lw=0.7)
        ax.set_xticks(x)
        styled(ax, x="ACT step" if r == len(metrics) - 1 else "")
        if r == 0:
            ax.set_title(f"Layer {layer}", fontsize=11, weight="bold")
        if c == 0:
            ax.set_ylabel(METRICS[metric][0], fontsize=10)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=2, frameon=False, fontsize=10)
    return save(figure, path)


def attention_heads(per_head: dict[str, Any], name: str, path: str | Path) -> Path:
    """Contrasts of every head (columns) and layer (rows) of one class as a coloured table, a panel per metric."""
    layers = list(per_head)
    heads = list(per_head[layers[0]][name])
    metrics = list(per_head[layers[0]][name][heads[0]])
    figure = new_figure(0.6 + (1.0 + 0.5 * len(heads)) * len(metrics), 1.3 + 0.5 * len(layers))
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    for ax, metric in zip(axes, metrics):
        cells = [[per_head[l][name][h][metric]["mean"] for h in heads] for l in layers]  # noqa: E741
        values = np.array(cells, float)  # None becomes NaN
        top = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 1.0
        ax.imshow(values, cmap="PuOr_r", vmin=-top or -1, vmax=top or 1, aspect="auto")
        for (r, c), value in np.ndenumerate(values):
            if np.isfinite(value):
                ax.text(c, r, f"{value:.2g}", ha="center", va="center", fontsize=6.5,
                        color="white" if abs(value) > 0.7 * top else INK)  # fmt: skip
        ax.set_title(METRICS[metric][0], fontsize=11)
        ax.set_xticks(range(len(heads)), heads, fontsize=8)
        ax.set_yticks(range(len(layers)), layers, fontsize=8)
        ax.set_xlabel("head", fontsize=9, color=MUTED)
        ax.tick_params(length=0)
    axes[0].set_ylabel("layer", fontsize=9, color=MUTED)
    return save(figure, path, tight=True)


# ---- freeze --------------------------------------------------------------------------------------------------------

RUN_LABELS = {"normal": "normal", "freeze_z_H": "$z_H$ frozen", "freeze_z_L": "$z_L$ frozen"}


def freeze_bars(table: dict[str, Any], path: str | Path, *, title: str | None = None) -> Path:
    """Mask flips, content changes and exact accuracy of each state, normal and with the other state frozen.

    Args:
        table: {run.state: {measure: {"mean", "std"}}} of `across_runs`, of `from_published`, or of a summary.
    """
    measures = {"mask_flips": "mask flips per puzzle", "content_changes": "content changes per puzzle",
                "exact_accuracy": "exact accuracy, %"}  # fmt: skip
    bars = [("normal", "z_L"), ("freeze_z_H", "z_L"), ("normal", "z_H"), ("freeze_z_L", "z_H")]
    figure = new_figure(10.5, 3.7)
    axes = figure.subplots(1, len(measures))
    for ax, (measure, label) in zip(axes, measures.items()):
        scale = 100 if measure == "exact_accuracy" else 1
        ax.grid(axis="y", color=GRID, lw=0.8, zorder=0)
        for x, (run, state) in enumerate(bars):
            entry = table.get(f"{run}.{state}", {}).get(measure)
            if entry is None:
                continue
            colour, mean = STATE_COLOURS[_level(state)], scale * entry["mean"]
            fill = colour if run == "normal" else tint(colour, 0.35)
            ax.bar(x, mean, 0.72, color=fill, edgecolor=colour, lw=1.2, zorder=3)
            ax.errorbar(x, mean, yerr=scale * entry["std"], color=INK, capsize=3, lw=1.1, zorder=4)
            for i, value in enumerate(entry.get("runs", [])):
                ax.plot(x + 0.05 * (i - 2), scale * value, "o", ms=3, mfc="white", mec=INK, mew=0.8, zorder=5)
        names = [f"{STATE_NAMES[_level(state)]}\n{RUN_LABELS[run]}" for run, state in bars]
        ax.set_xticks(range(len(bars)), names, fontsize=9)
        ax.set_title(label, fontsize=11, color=INK)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        styled(ax, size=9)
    if title:
        figure.text(0.5, 0.01, title, ha="center", fontsize=9, color=MUTED)
    figure.tight_layout(rect=(0, 0.05 if title else 0, 1, 1))
    return save(figure, path)


def freeze_series(series: dict[str, Any], path: str | Path) -> Path:
    """Mask flips and content changes after every update, mean ± SEM over puzzles, normal against frozen."""
    figure = new_figure(10.5, 5.2)
    axes = figure.subplots(2, 2, sharex=True)
    for column, (state, frozen) in zip(axes.T, (("z_L", "freeze_z_H"), ("z_H", "freeze_z_L"))):
        level = _level(state)
        for ax, measure in zip(column, ("mask_flips", "content_changes")):
            for run, style in (("normal", "-"), (frozen, "--")):
                entry = series[f"{run}.{state}"][measure]
                x = np.arange(1, len(entry["mean"]) + 1)
                _band(ax, x, entry, STATE_COLOURS[level], RUN_LABELS[run], style=style)
            ax.set_ylim(bottom=0)
            styled(ax, y=measure.replace("_", " "), size=9)
        column[0].set_title(STATE_NAMES[level], fontsize=13, color=STATE_COLOURS[level])
        column[0].legend(frameon=False, fontsize=9)
        column[1].set_xlabel("update", fontsize=9, color=MUTED)
    return save(figure, path, tight=True)


def intervention_bars(rows: Sequence[tuple[str, float, float]], path: str | Path) -> Path:
    """Exact accuracy of z_H (share, standard error) under each intervention."""
    figure = new_figure(7.5, 0.9 + 0.36 * len(rows))
    ax, colour = figure.subplots(), STATE_COLOURS["h"]
    for y, (_, mean, error) in enumerate(rows):
        ax.barh(y, 100 * mean, 0.65, color=colour if y == 0 else tint(colour, 0.45), zorder=3)
        ax.errorbar(100 * mean, y, xerr=100 * error, color=INK, capsize=3, lw=1, zorder=4)
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
        measures: (name, label, factor) of each panel; those that are missing are left out.
        per_step: updates of an ACT step.
    """
    present = [m for m in measures if any(m[0] in by for by in curves.values())]
    columns = min(3, len(present))
    lines = -(-len(present) // columns)
    figure = new_figure(0.3 + 3.5 * columns, 0.5 + 2.3 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for ax in axes[len(present) :]:
        ax.set_visible(False)
    for ax, (name, label, factor) in zip(axes, present):
        for state, by in curves.items():
            if name in by:
                level = _level(state) if state.startswith("z_") else ""
                x = (np.arange(len(by[name]["mean"])) + 1) / per_step
                _band(ax, x, by[name], STATE_COLOURS.get(level, INK), STATE_NAMES.get(level, state), factor)
        if factor == 100 and ax.get_ylim()[1] < 5:
            ax.set_ylim(min(0.0, ax.get_ylim()[0]), 5)  # no drama out of shares near 0
        styled(ax, label, "ACT step")
    axes[0].legend(frameon=False, fontsize=10)
    return save(figure, path, tight=True)


# ---- geometry ------------------------------------------------------------------------------------------------------


def convergence_curves(convergence: dict[str, Any], path: str | Path) -> Path:
    """How far each state moves over an ACT step, and the share of puzzles whose decode is final."""
    figure = new_figure(9.0, 3.2)
    axes = figure.subplots(1, 2)
    for name, entry in convergence.items():
        level = _level(name)
        for ax, key, factor in ((axes[0], "relative_change", 1), (axes[1], "decode_final", 100)):
            x = np.arange(len(entry[key]["mean"]))
            _band(ax, x, entry[key], STATE_COLOURS[level], STATE_NAMES[level], factor, lw=1.6)
    axes[0].set_yscale("log")
    styled(axes[0], "relative change of the state over the ACT step", "ACT step")
    styled(axes[1], "puzzles whose decode is final, %", "after ACT step")
    axes[1].set_ylim(-3, 103)
    axes[0].legend(frameon=False, fontsize=10)
    return save(figure, path, tight=True)


def halting_figure(halting: dict[str, Any], path: str | Path) -> Path:
    """Reliability of the halting probability, and when puzzles are first solved against when the model would stop."""
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    bins = halting["calibration"]["bins"]
    left.plot([0, 1], [0, 1], color=FAINT, lw=1.2)
    total = sum(b["n"] for b in bins)
    left.scatter([b["confidence"] for b in bins], [b["accuracy"] for b in bins], zorder=3, color=STATE_COLOURS["h"],
                 s=[20 + 300 * b["n"] / total for b in bins], edgecolor=INK, lw=0.6)  # fmt: skip
    left.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    error = 100 * halting["calibration"]["expected_calibration_error"]
    styled(left, f"calibration (error {error:.1f} points; area: how often)", "sigmoid(q_halt)", "share solved")
    steps = np.arange(len(halting["stops_at"]))
    right.bar(steps - 0.2, halting["first_solved_at"], 0.38, color=PALETTE[2], label="first solved")
    right.bar(steps + 0.2, halting["stops_at"], 0.38, color=STATE_COLOURS["h"], label="would stop")
    styled(right, "puzzles by ACT step", "ACT step")
    right.legend(frameon=False, fontsize=9)
    return save(figure, path, tight=True)


def failures_figure(failures: dict[str, Any], path: str | Path) -> Path:
    """Cells right over the ACT steps in solved and failed puzzles, and what became of the failed ones' wrong cells."""
    figure = new_figure(9.0, 3.2)
    left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
    solved = failures["n"] - failures["n_failed"]
    ends = {"right_solved": (PALETTE[2], "solved in the end", solved)}
    ends["right_failed"] = (PALETTE[6], "failed", failures["n_failed"])
    for key, (colour, label, n) in ends.items():
        if failures[key]["mean"] is not None:
            x = np.arange(len(failures[key]["mean"]))
            _band(left, x, failures[key], colour, f"{label} ($n$ = {n})", 100, lw=1.6)
    styled(left, "cells of $z_H$ that are right, %", "after ACT step")
    left.legend(frameon=False, fontsize=9)
    names = ("never_right", "lost")
    values = [100 * (failures[name]["mean"] or 0) for name in names]
    right.bar([0, 1], values, 0.6, color=[PALETTE[6], PALETTE[0]])
    right.set_xticks([0, 1], ["never right", "right, then lost"], fontsize=9)
    right.set_ylim(0, 100)
    styled(right, "wrong cells of failed puzzles, %")
    return save(figure, path, tight=True)


def trajectories_figure(trajectories: dict[str, Any], path: str | Path) -> Path:
    """Each puzzle's mean state after every ACT step on two principal axes; solved green, failed purple."""
    figure = new_figure(9.0, 4.2)
    axes = figure.subplots(1, 2)
    solved = trajectories["solved"]
    for ax, name in zip(axes, ("z_H", "z_L")):
        points, explained = np.asarray(trajectories[name]["points"]), np.asarray(trajectories[name]["explained"])
        for i, path_of_one in enumerate(points):
            colour = MUTED if solved is None else PALETTE[2] if solved[i] else PALETTE[6]
            ax.plot(*path_of_one.T, color=colour, lw=0.6, alpha=0.45)
            ax.plot(*path_of_one[-1], "o", color=colour, ms=3)
        level = _level(name)
        styled(ax, x=f"axis 1 ({100 * explained[0]:.0f} %)", y=f"axis 2 ({100 * explained[1]:.0f} %)")
        ax.set_title(STATE_NAMES[level], color=STATE_COLOURS[level], fontsize=14)
    if solved is not None:
        handles = [
            Line2D([], [], color=PALETTE[i], marker="o", ms=4, label=t) for i, t in ((2, "solved"), (6, "failed"))
        ]
        axes[0].legend(handles=handles, frameon=False, fontsize=9)
    return save(figure, path, tight=True)


def probes_figure(probes: dict[str, Any], path: str | Path) -> Path:
    """AUC of linear probes on each state (and on the puzzle's cell alone) after some ACT steps."""
    figure = new_figure(5.6, 3.3)
    ax = figure.subplots()
    colours = {"z_H": STATE_COLOURS["h"], "z_L": STATE_COLOURS["l"], "input": HELD}
    names = list(probes["auc"])
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        x = np.arange(len(probes["steps"])) + (i - (len(names) - 1) / 2) * width
        label = {"input": "puzzle's cell alone"}.get(name, STATE_NAMES.get(_level(name), name))
        bars = ax.bar(x, probes["auc"][name], width * 0.92, color=colours.get(name, PALETTE[i]), label=label)
        ax.bar_label(bars, fmt="%.2f", fontsize=7.5, color=MUTED, padding=1)
    ax.set_xticks(range(len(probes["steps"])), [str(s) for s in probes["steps"]], fontsize=9)
    ax.axhline(0.5, color=INK, lw=0.8, ls=":")
    ax.set_ylim(0.4, 1.08)
    styled(ax, f"linear probe: {probes['what']} (AUC)", "after ACT step")
    ax.legend(frameon=False, fontsize=9, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return save(figure, path, tight=True)
