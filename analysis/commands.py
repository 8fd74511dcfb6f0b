"""What `scripts/analyze.py` does: load models and puzzles, run one study per model, write results, tables and figures.

Under the output folder: `analysis.json` (in the shape of the golden files: task, variant, puzzles, and one entry per
study), tables in Markdown, figures, parquet tables on request, and `cache/` (finished chunks; a killed run goes on). A
report also leaves `summary.json`: its numbers without puzzles, small enough to keep. With several models, each has its
own folder, and the top one holds what is said about them together.
"""

import argparse
import contextlib
import gzip
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from air_model.analysis import attention, figures, findings, freeze, geometry, plots, report, rollout
from air_model.analysis.common import Study, markdown_table, number, plus_minus
from air_model.analysis.interventions import parse_intervention
from air_model.datasets_builders.loading import load_for_models
from air_model.pipeline_air import in_size, load_model
from air_model.processing_air import GridTask, make_task
from air_model.records import make_folder, model_name, read_json, whole, write_json, write_text
from air_model.solving_air import AirRollout

Options = argparse.Namespace  # of scripts/analyze.py; in a study, output_dir is the model's own folder


def load_study(model: str, options: Options) -> Study:
    """The model and its puzzles; FileNotFoundError or ValueError where they are not there, or of different tasks."""
    air = load_model(model, options.device)
    puzzles = load_for_models([air], options.data, options.split, options.limit, options.values)
    return Study(
        in_size(air, puzzles.task),
        puzzles.inputs,
        puzzles.labels,
        puzzles.ids_for(air),
        batch_size=options.batch_size,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        cache_dir=options.output_dir / "cache" if options.cache else None,
        progress=options.progress,
        source=puzzles.source or str(options.data),
    )


def deliver(study: Study, options: Options, name: str, result: Any, sections: list[str], **entries: Any) -> list[str]:
    """Write what a study found: entries of analysis.json, every row as parquet if wanted, and Markdown, given back.

    Entries of another model or other puzzles are dropped from analysis.json.
    """
    path, key = options.output_dir / "analysis.json", study.fingerprint()
    kept: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        kept = read_json(path)
    head = {
        "task": study.task.name,
        "variant": study.config.variant,
        "study": key,
        "source": study.source,
        "n_puzzles": len(study),
        "puzzles": [[study.task.decode(grid.numpy()) for grid in pair] for pair in zip(study.inputs, study.labels)],
    }
    write_json(path, {**(kept if kept.get("study") == key else {}), **head, **entries})
    if options.parquet:
        import pyarrow.parquet

        with whole(options.output_dir / f"{name}.parquet") as partial:
            pyarrow.parquet.write_table(pyarrow.table(result.columns()), partial)
    write_text(options.output_dir / f"{name}.md", "\n".join(sections))
    return sections


# ---- the studies ---------------------------------------------------------------------------------------------------


def run_rollout(study: Study, options: Options) -> list[str]:
    """Decoded roll-outs of all puzzles; pictures of the first few. Returns the sections of a Markdown report."""
    result = rollout.rollout_study(study, keep=max(1, options.pictures))
    curves = result.curves()
    tokens = {name: result.tokens[state] for state, name in freeze.STATES.items()}
    grids = [{"puzzle": i, **{name: [study.task.decode(grid) for grid in kept[i]] for name, kept in tokens.items()}}
             for i in range(len(tokens["z_H"]))]  # fmt: skip
    if options.figures:
        draw_rollouts(study, result, options.output_dir / "figures")
    rows = []
    for state, by in curves.items():
        ends = [(by[m]["mean"][-1], by[m]["sem"][-1]) for m in ("accuracy", "exact", "blank", "pad")]
        margin = number(by["margin"]["mean"][-1], 2)
        rows.append([state, *(plus_minus(*end, digits=1, scale=100) for end in ends), margin])
    blank = BLANKS[study.task.name]
    header = ["state", "cells right, %", "grids right, %", f"{blank}, %", "PAD, %", "margin of the best logit"]
    lead = f"After the last of {len(result.updates)} updates, mean ± SEM over {len(result)} puzzles."
    text = f"## Roll-out\n\n{lead}\n\n{markdown_table(header, rows, left=1)}"
    entry = {"updates": result.updates, "curves": curves, "first_puzzles": grids}
    sections = [text, held_back_sentence(curves, study.task)]
    return deliver(study, options, "rollout", result, sections, rollout=entry)


def held_back_sentence(curves: dict[str, Any], task: GridTask) -> str:
    """Which state holds more cells back, as measured; of the tasks a Sudoku alone has blanks that are no answer."""
    kinds = {"blank": "blank", "pad": "PAD"} if task.name == "sudoku" else {"pad": "PAD"}
    share = {s: sum(float(np.mean(by[kind]["mean"])) for kind in kinds) for s, by in curves.items()}
    more, less = ("z_L", "z_H") if share["z_L"] >= share["z_H"] else ("z_H", "z_L")
    return (
        f"Over the roll-out {more} leaves {100 * share[more]:.2f} % of its cells {' or '.join(kinds.values())}, "
        f"{less} {100 * share[less]:.2f} %.\n"
    )


BLANKS = {"sudoku": "blank", "maze": "free cells", "grid": "token 1"}  # what the measure "blank" counts, by task
CURVES = (
    ("accuracy", "cells right, %", 100.0),
    ("exact", "grids right, %", 100.0),
    ("margin", "best minus second logit", 1.0),
    ("blank", "decoded {blank}, %", 100.0),
    ("pad", "decoded PAD, %", 100.0),
    ("changed", "cells changed, %", 100.0),
)


def draw_rollouts(study: Study, result: rollout.RolloutResult, folder: Path) -> None:
    """Curves over all puzzles; board, film strip and animation of each kept one."""
    for stale in folder.glob("rollout_[0-9]*"):  # of an earlier call with more pictures or other puzzles
        stale.unlink()
    named = [(m, t.format(blank=BLANKS[study.task.name]), f) for m, t, f in CURVES]
    plots.state_curves(result.curves(), named, folder / "rollout_curves.png", result.per_step)
    rolled = AirRollout(result.tokens["h"], result.tokens["l"], result.updates)
    for i in range(len(rolled.z_h)):
        which = {"label": study.labels[i].numpy(), "row": i, "per_step": result.per_step}
        given = (rolled, study.inputs[i].numpy(), study.task)
        figures.draw_rollout(*given, folder / f"rollout_{i}.png", **which)
        figures.draw_film_strip(*given, folder / f"rollout_{i}_strip.png", **which)
        figures.animate_rollout(*given, folder / f"rollout_{i}.gif", **which)


def run_freeze(study: Study, options: Options) -> list[str]:
    """Normal and frozen runs, and the interventions asked for."""
    more = [parse_intervention(text) for text in options.interventions]
    for one in more:
        one.check(study.config.halt_max_steps)
    result = freeze.freeze_study(study, more)
    summary, series = result.summary(), result.series()
    if options.figures:
        folder = options.output_dir / "figures"
        note = f"mean over {len(result)} puzzles; bars: std over puzzles"
        plots.freeze_bars(summary, folder / "freeze.png", title=note)
        plots.freeze_series(series, folder / "freeze_series.png")
        exact = {run: summary[f"{run}.z_H"]["exact_accuracy"] for run in result.flips}
        rows = [(run.replace("freeze_z_", "freeze z_"), e["mean"], e["sem"]) for run, e in exact.items()]
        plots.intervention_bars(rows, folder / "interventions.png")
    table = freeze.freeze_table(summary, freeze.published(study.task))
    lead = (
        f"## Freeze\n\nTotals per puzzle over {len(result.updates)} decodes ({len(result.updates) - 1} comparisons), "
        f"mean ± std over {len(result)} puzzles.\n\n"
    )
    entries = {"freeze": result.records(), "freeze_summary": summary, "freeze_series": series}
    return deliver(study, options, "freeze", result, [lead + table, freeze_sentence(summary)], **entries)


def freeze_sentence(summary: dict[str, Any]) -> str:
    """How freezing changes the content changes of the state that still moves."""
    parts = []
    for frozen, moving in (("z_H", "z_L"), ("z_L", "z_H")):
        normal = summary[f"normal.{moving}"]["content_changes"]["mean"]
        held = summary[f"freeze_{frozen}.{moving}"]["content_changes"]["mean"]
        parts.append(f"with {frozen} frozen, content changes of {moving} go from {normal:,.1f} to {held:,.1f}")
    return f"Here {'; '.join(parts)} per puzzle.\n"


def run_attention(study: Study, options: Options) -> list[str]:
    """Attention contrasts of all layers and heads."""
    result = attention.attention_study(study, options.steps)
    tables = {name: result.tables(name) for name in attention.AGGREGATIONS}
    names = {name: "attention" + ("" if name == "pooled" else f"_{name}") for name in tables}
    by_step, per_head = result.by_step(), result.per_head()
    if options.figures:
        folder = options.output_dir / "figures"
        for name, note in attention.AGGREGATIONS.items():
            plots.attention_bars(tables[name], folder / f"attention_{name}.png", title=note)
        plots.attention_by_step(by_step, folder / "attention_by_step.png")
        for name in result.geometry.classes:
            plots.attention_heads(per_head, name, folder / f"attention_heads_{name}.png")
        if result.examples:
            draw_example(study, result.examples[0], result.steps, folder)
    sections = [f"## Attention\n\nL- against H-updates at ACT steps {', '.join(map(str, result.steps))}.\n"]
    sections += [f"\n### {note}\n\n{attention_table(tables[name])}" for name, note in attention.AGGREGATIONS.items()]
    empty = int(result.empty_rows.sum())
    sections.append(f"{empty:,} attention rows held no mass on any cell in float32 and count as uniform.\n")
    sections.append(attention_sentence(tables["pooled"], result.geometry.metrics[0]))
    settings = {
        "act_steps": list(result.steps),
        "aggregations": {names[name]: note for name, note in attention.AGGREGATIONS.items()},
        "rows_without_mass": {"L": result.empty_rows[:, 0], "H": result.empty_rows[:, 1], "per": "layer, all heads"},
        "examples": result.examples,
    }
    own = {"attention_by_step": by_step, "attention_per_head": per_head, "attention_settings": settings}
    entries = {names[name]: table for name, table in tables.items()} | own
    return deliver(study, options, "attention", result, sections, **entries)


def attention_table(table: dict[str, Any]) -> str:
    """Markdown: a line per layer and class, mean ± 95 % interval per contrast; empty cells where n = 0."""
    metrics = list(next(iter(next(iter(table.values())).values()))["metrics"])
    rows = []
    for layer, classes in table.items():
        for name, entry in classes.items():
            cells = [plus_minus(entry["metrics"][m]["mean"], entry["metrics"][m]["ci95"], 4) for m in metrics]
            rows.append([layer, name, f"{entry['n_queries']:,}", f"{entry['n_puzzles']:,}", *cells])
    return markdown_table(["layer", "class", "rows", "puzzles", *metrics], rows)


def attention_sentence(table: dict[str, Any], metric: str) -> str:
    """Where L-updates look, beside H-updates, per layer, as measured; nothing where the 95 % interval holds 0."""
    ends: dict[str, list[str]] = {"nearer": [], "farther": [], "neither nearer nor farther": []}
    nearer, farther, neither = ends.values()
    for layer, classes in table.items():
        pairs = [(e["n_queries"], e["metrics"][metric]) for e in classes.values() if e["n_queries"]]
        if pairs:  # sums over all rows: means add, and intervals of separate rows by their squares
            total, half = sum(n * m["mean"] for n, m in pairs), math.hypot(*(n * m["ci95"] for n, m in pairs))
            (neither if abs(total) <= half else nearer if total > 0 else farther).append(layer)
    parts = [f"{how} in layer{'s' * (len(at) > 1)} {', '.join(at)}" for how, at in ends.items() if at]
    said = f"L-updates look {' and '.join(parts)} than H-updates" if parts else "there is nothing to compare"
    return f"Averaged over all rows, {said} ({metric}).\n"


def draw_example(study: Study, best: dict[str, Any], steps: Sequence[int], folder: Path) -> None:
    """The most telling query, at its ACT step and over all of them."""
    row, query, step = best["puzzle"], best["query"], best["act_step"]
    maps = attention.attention_maps(study, row, best["layer"], best["head"], steps)
    at, grids = steps.index(step), {"puzzle": study.inputs[row].numpy(), "label": study.labels[row].numpy()}
    where = f"layer {best['layer']}, head {best['head']}, {study.task.cell(query)}"
    title = f"puzzle {row}, {where}, score {best['score']:.3f}"
    one = (maps.l[at], maps.h[at], maps.decoded[at], query, study.task, folder / "attention_example.png")
    plots.attention_example(*one, title=f"{title}, ACT step {step}", **grids)
    every = (maps.l, maps.h, maps.decoded, query, study.task, folder / "attention_evolution.png")
    plots.attention_evolution(*every, steps=steps, title=title, **grids)


GEOMETRY_CURVES = (
    ("norm", "norm of a cell's state", 1.0),
    ("step", "distance moved by the update", 1.0),
    ("cosine", "cosine between $z_H$ and $z_L$", 1.0),
)


def run_geometry(study: Study, options: Options) -> list[str]:
    """State geometry, convergence, halting, failures and probes; a figure and a sentence of numbers each."""
    result = geometry.geometry_study(study)
    found = {name: getattr(result, name)() for name in ("curves", "convergence", "halting", "failures")}
    paths, probed = result.trajectories(), geometry.probes(study)
    if options.figures:
        folder = options.output_dir / "figures"
        plots.state_curves(found["curves"], GEOMETRY_CURVES, folder / "geometry.png", result.per_step)
        plots.convergence_curves(found["convergence"], folder / "convergence.png")
        plots.trajectories_figure(paths, folder / "trajectories.png")
        plots.halting_figure(found["halting"], folder / "halting.png")
        plots.failures_figure(found["failures"], folder / "failures.png")
        if probed["auc"]:
            plots.probes_figure(probed, folder / "probes.png")
    said = geometry.sentences(found, paths, probed)
    sections = [f"## {title}\n\n{sentence}\n" for title, sentence in said.items()]
    explained = {name: paths[name]["explained"] for name in ("z_H", "z_L")}
    entry = {**found, "explained_variance": explained, "probes": probed}
    return deliver(study, options, "geometry", result, sections, geometry=entry)


STUDIES: dict[str, Callable[[Study, Options], list[str]]] = {
    "rollout": run_rollout,
    "freeze": run_freeze,
    "attention": run_attention,
    "geometry": run_geometry,
}


def analyze(command: str, options: Options) -> Path:
    """Run one command for every model; returns the folder with the results."""
    names = list(map(model_name, options.models))
    if len(set(names)) < len(names):
        names = [f"{i}-{name}" for i, name in enumerate(names)]
    several, entries = len(names) > 1, []
    for model, name in zip(options.models, names):
        out = options.output_dir / name if several else options.output_dir
        own = argparse.Namespace(**{**vars(options), "output_dir": out})
        study = load_study(model, own)
        attends = study.config.token_mixer == "attention"  # where a model has none, its report says so
        every = [one for one in STUDIES if attends or one != "attention"]
        make_folder(out)
        sections = {one: STUDIES[one](study, own) for one in (every if command == "report" else [command])}
        print("\n".join(text for part in sections.values() for text in part))
        entries.append(report.Entry(name, out, describe(study, model), sections))
        if command == "report":
            about = study.config, model_name(model), study.model.num_parameters()
            found = findings.summarize(read_json(out / "analysis.json"), *about)
            write_text(out / "summary.json", json.dumps(found) + "\n")
    overall = together(options, names, study.task) if several and command in ("freeze", "report") else ""
    if command == "report":
        report.write(options.output_dir, entries, overall)
    return options.output_dir


def describe(study: Study, model: str) -> str:
    """Markdown: what was studied, for the head of a report."""
    config = study.config
    rule = config.variant or "a rule of its own"
    depth = config.num_hidden_layers if config.shared_block else f"{config.l_layers} + {config.h_layers}"
    lines = [
        f"- model: `{model}`, variant {rule}, {study.model.num_parameters():,} parameters, width "
        f"{config.hidden_size}, layers {depth}, {config.num_attention_heads} heads, {config.halt_max_steps} ACT steps "
        f"of `{config.schedule}`",
        f"- puzzles: {len(study):,} of {study.source} ({study.task!r})",
        f"- computed on {study.device.type}, {'default precision' if study.dtype is None else study.dtype}",
    ]
    if config.token_mixer != "attention":
        lines.append("- this model mixes positions by a SwiGLU: it has no attention to analyse")
    return "\n".join(lines) + "\n"


def redraw_published(folder: Path, output_dir: Path) -> list[Path]:
    """Draw the paper's figures from its own numbers, by the functions that draw ours.

    Args:
        folder: freeze_5runs.json, attention_bars.json, attention_{sudoku,maze}_{example,evolution}.npz and .json,
            and rollout_sudoku_*.json.gz, all as the public repository has them; what is missing is left out.
    """

    def stored(name: str) -> Any:
        """The contents of a file, None where it is missing."""
        if not (folder / name).exists():
            return None
        with (gzip.open if name.endswith(".gz") else open)(folder / name, "rt", encoding="utf-8") as stream:
            return json.load(stream)

    out: list[Path] = []
    freezes, bars = stored("freeze_5runs.json"), stored("attention_bars.json")
    for name in ("sudoku", "maze"):
        if freezes:
            note = "published: mean ± std over five seeds (dots), 1,000 puzzles each"
            table = freeze.from_published(freezes, name)
            out.append(plots.freeze_bars(table, output_dir / f"freeze_{name}.png", title=note))
        if bars:
            note = attention.AGGREGATIONS["per_puzzle"] if name == "sudoku" else "all heads averaged"
            path, table = output_dir / f"attention_bars_{name}.png", plots.attention_from_published(bars, name)
            out.append(plots.attention_bars(table, path, title=f"published: {note}"))
        for kind in ("example", "evolution"):
            if where := stored(f"attention_{name}_{kind}.json"):
                maps = dict(np.load(folder / f"attention_{name}_{kind}.npz"))
                path = output_dir / f"attention_{kind}_{name}.png"
                out.append(_redraw_attention(maps, where, make_task(name), path))
    for path in sorted(folder.glob("rollout_sudoku_*.json.gz")):
        run = stored(path.name)
        traces = [trace for step in run["act_steps"] for trace in step["recursive_traces"]]
        grids = [np.array([t[key] for t in traces]).reshape(len(traces), -1) for key in ("pred_H", "pred_L")]
        rolled = AirRollout(*grids, [t["stage"].lower() for t in traces])
        puzzle, label = np.array(run["input"]).ravel(), np.array(run["solution"]).ravel()
        target = output_dir / path.name.replace(".json.gz", ".png")
        out.append(figures.draw_film_strip(rolled, puzzle, make_task("sudoku"), target, label=label))
    if not out:
        raise FileNotFoundError(f"{folder} holds none of the published result files: see redraw_published.")
    return out


def _redraw_attention(maps: dict[str, np.ndarray], where: dict[str, Any], task: GridTask, path: Path) -> Path:
    decoded = next(grids for key, grids in maps.items() if key.startswith("decoded"))
    grids = {"puzzle": "input_grid", "label": "label_grid"}
    given: dict[str, Any] = {name: maps[key].ravel() for name, key in grids.items() if key in maps}
    given["title"] = f"published: puzzle {where['puzzle']}, layer {where['layer']}, head {where['head']}"
    rest = (decoded, where["query_idx"], task, path)
    if "l_map" in maps:
        return plots.attention_example(maps["l_map"], maps["h_map"], *rest, **given)
    return plots.attention_evolution(maps["l_maps"], maps["h_maps"], *rest, steps=maps["cycles"].tolist(), **given)


def together(options: Options, names: Sequence[str], task: GridTask) -> str:
    """Freeze tables of several checkpoints as mean ± std over them, in Markdown; also written."""
    results = [read_json(options.output_dir / name / "analysis.json") for name in names]
    if len({result["task"] for result in results}) > 1:
        raise ValueError("The models solve different tasks: their results have no common mean.")
    table = freeze.across_runs([result["freeze_summary"] for result in results])
    write_json(options.output_dir / "freeze_runs.json", {"task": task.name, "models": names, "runs": table})
    if options.figures:
        note = f"mean ± std over {len(names)} checkpoints"
        plots.freeze_bars(table, options.output_dir / "figures" / "freeze_runs.png", title=note)
    text = f"## Freeze\n\nMean ± std over {len(names)} checkpoints.\n\n"
    text += freeze.freeze_table(table, freeze.published(task))
    write_text(options.output_dir / "freeze_runs.md", text)
    print(text)
    return text
