"""What `scripts/analyze.py` does: load models and puzzles, run one study per model, write results, tables and figures.

Under the output folder: `analysis.json` (in the shape of the golden files: task, variant, puzzles, and one entry per
study), tables in Markdown, figures, parquet tables on request, and `cache/` (finished chunks; a killed run goes on). A
report also leaves `summary.json`: its numbers without puzzles, small enough to keep. With several models, each has its
own folder, and the top one holds what is said about them together.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from air_model.analysis import attention, figures, findings, freeze, geometry, plots, report, rollout
from air_model.analysis.common import (
    Study,
    markdown_table,
    number,
    plus_minus,
    variant_name,
    write_parquet,
)
from air_model.analysis.interventions import parse_intervention
from air_model.processing_air import GridTask, make_task, task_from_config
from air_model.records import write_json, write_text
from air_model.solving_air import AirRollout


@dataclass
class Options:
    """What the command line decides; see `scripts/analyze.py --help`."""

    models: list[str]
    data: str
    output_dir: Path
    split: str = "test"
    limit: int | None = None
    batch_size: int | None = None
    steps: list[int] | None = None
    interventions: list[str] = field(default_factory=list)
    pictures: int = 2
    device: str | None = None
    dtype: str | None = None
    figures: bool = True
    parquet: bool = False
    cache: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be 1 or more, got {self.limit}.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size must be 1 or more, got {self.batch_size}.")


def load_study(model: str, options: Options, output_dir: Path) -> Study:
    """The model and its puzzles.

    Raises:
        FileNotFoundError, ValueError: no such model or data, or data of another task than the model's.
    """
    from air_model.datasets_builders.loading import load_puzzles
    from air_model.pipeline_air import load_model

    air = load_model(model, options.device)
    own = task_from_config(air.config)
    try:
        found = load_puzzles(options.data, options.split, limit=1).task
    except ValueError:
        found = own  # a rectangle cannot be guessed from its letters; the full reading names damaged rows
    if found != own and (found.name, found.seq_len) != (own.name, own.seq_len):
        raise ValueError(
            f"The model solves {own!r} but {options.data} holds {found!r}: give data of the model's task and size."
        )
    puzzles = load_puzzles(options.data, options.split, task=own, limit=options.limit)
    ids = None if air.config.num_puzzle_identifiers < 2 else puzzles.puzzle_ids
    return Study(
        air,
        puzzles.inputs,
        puzzles.labels,
        ids,
        puzzles.task,
        options.batch_size,
        None if options.dtype is None else getattr(torch, options.dtype),
        output_dir / "cache" if options.cache else None,
        options.progress,
        puzzles.source or str(options.data),
    )


def record(study: Study, output_dir: Path, **results: Any) -> dict[str, Any]:
    """Add results to the folder's analysis.json; entries of another model or other puzzles are dropped."""
    path = output_dir / "analysis.json"
    key = study.fingerprint()
    kept: dict[str, Any] = {}
    if path.exists():
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            kept = {}
        kept = kept if kept.get("study") == key else {}
    labels = study.labels if study.labels is not None else [None] * len(study)
    head = {
        "task": study.task.name,
        "variant": variant_name(study.config),
        "study": key,
        "source": study.source,
        "n_puzzles": len(study),
        "puzzles": [
            [study.task.decode(p.numpy()), None if a is None else study.task.decode(a.numpy())]
            for p, a in zip(study.inputs, labels)
        ],
    }
    whole = {**kept, **head, **results}
    write_json(path, whole)
    return whole


# ---- the studies ---------------------------------------------------------------------------------------------------


def run_rollout(study: Study, options: Options, out: Path) -> list[str]:
    """Decoded roll-outs of all puzzles; pictures of the first few. Returns the sections of a Markdown report."""
    result = rollout.rollout_study(study, keep=max(1, options.pictures))
    curves = result.curves()
    grids = [
        {
            "puzzle": i,
            **{
                name: [study.task.decode(tokens) for tokens in result.tokens[state][i]]
                for state, name in freeze.STATES.items()
            },
        }
        for i in range(len(result.tokens["h"]))
    ]
    record(study, out, rollout={"updates": result.updates, "curves": curves, "first_puzzles": grids})
    shape = (len(result.updates), study.task.height, study.task.width)
    np.savez_compressed(
        out / "rollout_first_puzzle.npz",
        stage=np.array([level.upper() for level in result.updates]),
        z_H=result.tokens["h"][0].reshape(shape),
        z_L=result.tokens["l"][0].reshape(shape),
    )
    if options.parquet:
        write_parquet(out / "rollout.parquet", result.columns())
    if options.figures:
        draw_rollouts(study, result, out)
    rows = []
    for state, by in curves.items():
        last = {name: 100 * float(np.asarray(values["mean"])[-1]) for name, values in by.items()}
        error = {name: 100 * float(np.asarray(values["sem"])[-1]) for name, values in by.items()}
        rows.append(
            [state]
            + [plus_minus(last.get(m), error.get(m), 1) for m in ("accuracy", "exact", "blank", "pad")]
            + [number(last["margin"] / 100, 2)]
        )
    blank = "free cells" if study.task.name == "maze" else "blank"
    table = markdown_table(
        ["state", "cells right, %", "grids right, %", f"{blank}, %", "PAD, %", "margin of the best logit"], rows
    )
    text = (
        f"## Roll-out\n\nAfter the last of {len(result.updates)} updates, mean ± SEM over {len(result)} puzzles.\n\n"
    )
    sections = [text + table, held_back_sentence(curves, study.task)]
    write_text(out / "rollout.md", "\n".join(sections))
    return sections


def held_back_sentence(curves: dict[str, Any], task: GridTask) -> str:
    """Which state holds more cells back, as measured; a free cell of a maze is an answer, a Sudoku's blank is not."""
    kinds = ("pad",) if task.name == "maze" else ("blank", "pad")
    share = {s: sum(float(np.mean(by[kind]["mean"])) for kind in kinds) for s, by in curves.items()}
    more, less = ("z_L", "z_H") if share["z_L"] >= share["z_H"] else ("z_H", "z_L")
    return (
        f"Over the roll-out {more} leaves {100 * share[more]:.2f} % of its cells "
        f"{' or '.join('PAD' if kind == 'pad' else kind for kind in kinds)}, {less} {100 * share[less]:.2f} %.\n"
    )


CURVES = (
    ("accuracy", "cells right, %", 100.0),
    ("exact", "grids right, %", 100.0),
    ("margin", "best minus second logit", 1.0),
    ("blank", "decoded blank, %", 100.0),
    ("pad", "decoded PAD, %", 100.0),
    ("changed", "cells changed, %", 100.0),
)


def draw_rollouts(study: Study, result: rollout.RolloutResult, out: Path) -> None:
    """Curves over all puzzles; board, film strip and animation of each kept one."""
    folder = out / "figures"
    for stale in folder.glob("rollout_[0-9]*"):  # of an earlier call with more pictures or other puzzles
        stale.unlink()
    named = [(m, "decoded free, %" if m == "blank" and study.task.name == "maze" else t, f) for m, t, f in CURVES]
    plots.state_curves(result.curves(), named, folder / "rollout_curves.png", per_step=result.per_step)
    for i in range(len(result.tokens["h"])):
        label = None if study.labels is None else study.labels[i].numpy()
        common: dict[str, Any] = {"label": label, "row": i, "per_step": result.per_step}
        puzzle = study.inputs[i].numpy()
        figures.draw_rollout(result.rollout, puzzle, study.task, folder / f"rollout_{i}.png", **common)
        figures.draw_film_strip(result.rollout, puzzle, study.task, folder / f"rollout_{i}_strip.png", **common)
        figures.animate_rollout(result.rollout, puzzle, study.task, folder / f"rollout_{i}.gif", **common)


def run_freeze(study: Study, options: Options, out: Path) -> list[str]:
    """Normal and frozen runs, and the interventions asked for."""
    more = [parse_intervention(text) for text in options.interventions]
    for one in more:
        one.check(study.config.halt_max_steps)
    result = freeze.freeze_study(study, more)
    summary, series = result.summary(), result.series()
    record(study, out, freeze=result.records(), freeze_summary=summary, freeze_series=series)
    if options.parquet:
        write_parquet(out / "freeze.parquet", result.columns())
    if options.figures:
        folder = out / "figures"
        note = f"mean over {len(result)} puzzles; bars: std over puzzles"
        plots.freeze_bars(summary, folder / "freeze.png", title=note)
        plots.freeze_series(series, study.updates, folder / "freeze_series.png")
        if result.exact is not None:
            rows = [
                (run.replace("freeze_z_", "freeze z_"), summary[f"{run}.z_H"]["exact_accuracy"]["mean"],
                 summary[f"{run}.z_H"]["exact_accuracy"]["sem"])
                for run in result.flips
            ]  # fmt: skip
            plots.intervention_bars(rows, folder / "interventions.png")
    table = freeze.freeze_table(summary, freeze.published(study.task))
    lead = (
        f"## Freeze\n\nTotals per puzzle over {len(result.updates)} decodes ({len(result.updates) - 1} comparisons), "
        f"mean ± std over {len(result)} puzzles; published: mean ± std over five seeds. There the spread between "
        "seeds is as large as some of the effects.\n\n"
    )
    sections = [lead + table, freeze_sentence(summary)]
    write_text(out / "freeze.md", "\n".join(sections))
    return sections


def freeze_sentence(summary: dict[str, Any]) -> str:
    """How freezing changes the content changes of the state that still moves."""
    parts = []
    for frozen, moving in (("z_H", "z_L"), ("z_L", "z_H")):
        normal = summary[f"normal.{moving}"]["content_changes"]["mean"]
        held = summary[f"freeze_{frozen}.{moving}"]["content_changes"]["mean"]
        parts.append(f"with {frozen} frozen, content changes of {moving} go from {normal:,.1f} to {held:,.1f}")
    return f"Here {'; '.join(parts)} per puzzle.\n"


def run_attention(study: Study, options: Options, out: Path) -> list[str]:
    """Attention contrasts of all layers and heads."""
    result = attention.attention_study(study, options.steps)
    tables = {name: result.tables(name) for name in attention.AGGREGATIONS}
    by_step, per_head = result.by_step(), result.per_head()
    record(
        study,
        out,
        attention=tables["pooled"],
        attention_per_puzzle=tables["per_puzzle"],
        attention_per_puzzle_mean_heads=tables["per_puzzle_mean_heads"],
        attention_by_step=by_step,
        attention_per_head=per_head,
        attention_settings={
            "act_steps": list(result.steps),
            "aggregations": {
                f"attention{'' if k == 'pooled' else '_' + k}": v for k, v in attention.AGGREGATIONS.items()
            },
            "rows_without_mass": {
                "L": result.empty_rows[:, 0],
                "H": result.empty_rows[:, 1],
                "per": "layer, all heads",
            },
            "examples": result.examples,
        },
    )
    if options.parquet:
        write_parquet(out / "attention.parquet", result.columns())
    if options.figures:
        draw_attention(study, result, tables, by_step, per_head, out)
    sections = [f"## Attention\n\nL- against H-updates at ACT steps {', '.join(map(str, result.steps))}.\n"]
    for name, note in attention.AGGREGATIONS.items():
        sections.append(f"\n### {note}\n\n" + attention_table(tables[name]))
    empty = result.empty_rows.sum()
    sections.append(f"{int(empty):,} attention rows held no mass on any cell in float32 and count as uniform.\n")
    sections.append(attention_sentence(tables["pooled"], result.geometry.metrics[0]))
    write_text(out / "attention.md", "\n".join(sections))
    return sections


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
    """Whether L-updates look closer than H-updates, per layer, as measured."""
    nearer, farther = [], []
    for layer, classes in table.items():
        entries = [entry for entry in classes.values() if entry["n_queries"]]
        total = sum(entry["n_queries"] for entry in entries)
        if total:
            mean = sum(entry["n_queries"] * entry["metrics"][metric]["mean"] for entry in entries) / total
            (nearer if mean > 0 else farther).append(layer)
    parts = []
    if nearer:
        parts.append(
            f"in layer{'s' if len(nearer) > 1 else ''} {', '.join(nearer)} L-updates look nearer than H-updates"
        )
    if farther:
        parts.append(f"in layer{'s' if len(farther) > 1 else ''} {', '.join(farther)} they do not")
    return f"Averaged over all rows, {' and '.join(parts) or 'there is nothing to compare'} ({metric}).\n"


def draw_attention(
    study: Study, result: attention.AttentionResult, tables: dict[str, Any], by_step: dict[str, Any],
    per_head: dict[str, Any], out: Path,
) -> None:  # fmt: skip
    folder = out / "figures"
    for name, note in attention.AGGREGATIONS.items():
        plots.attention_bars(tables[name], folder / f"attention_{name}.png", title=note)
    plots.attention_by_step(by_step, folder / "attention_by_step.png")
    for name in result.geometry.classes:
        plots.attention_heads(per_head, name, folder / f"attention_heads_{name}.png")
    if not result.examples:
        return
    best = result.examples[0]
    row, query, step = best["puzzle"], best["query"], best["act_step"]
    maps = attention.attention_maps(study, row, best["layer"], best["head"], result.steps)
    at = maps.steps.index(step)
    label = None if study.labels is None else study.labels[row].numpy()
    where = f"layer {best['layer']}, head {best['head']}, {study.task.cell(query)}"
    title = f"puzzle {row}, {where}, score {best['score']:.3f}"
    common: dict[str, Any] = {"puzzle": study.inputs[row].numpy(), "label": label}
    plots.attention_example(
        maps.l[at], maps.h[at], maps.decoded[at], query, study.task, folder / "attention_example.png",
        title=f"{title}, ACT step {step}", **common,
    )  # fmt: skip
    plots.attention_evolution(
        maps.l, maps.h, maps.decoded, maps.steps, query, study.task, folder / "attention_evolution.png",
        title=title, **common,
    )  # fmt: skip


GEOMETRY_CURVES = (
    ("norm", "norm of a cell's state", 1.0),
    ("step", "distance moved by the update", 1.0),
    ("cosine", "cosine between $z_H$ and $z_L$", 1.0),
)


def run_geometry(study: Study, options: Options, out: Path) -> list[str]:
    """State geometry, convergence, halting, failures and probes; a figure and a sentence of numbers each."""
    result = geometry.geometry_study(study)
    curves, convergence = result.curves(), result.convergence()
    halting, failures, paths = result.halting(), result.failures(), result.trajectories()
    probed = geometry.probes(study)
    record(
        study,
        out,
        geometry={
            "curves": curves,
            "convergence": convergence,
            "halting": halting,
            "failures": failures,
            "explained_variance": {name: paths[name]["explained"] for name in ("z_H", "z_L")},
            "probes": probed,
        },
    )
    if options.parquet:
        n, updates = result.cosine.shape
        columns: dict[str, Any] = {
            "puzzle": np.repeat(np.arange(n), updates),
            "update": np.tile(np.arange(updates), n),
            "cosine": result.cosine.reshape(-1),
        }
        for state, name in freeze.STATES.items():
            columns[f"norm_{name}"] = result.norm[state].reshape(-1)
            columns[f"step_{name}"] = result.step[state].reshape(-1)
        write_parquet(out / "geometry.parquet", columns)
    if options.figures:
        folder = out / "figures"
        plots.state_curves(curves, GEOMETRY_CURVES, folder / "geometry.png", per_step=result.per_step)
        plots.convergence_curves(convergence, folder / "convergence.png")
        plots.trajectories_figure(paths, folder / "trajectories.png")
        if halting is not None and failures is not None:
            plots.halting_figure(halting, folder / "halting.png")
            plots.failures_figure(failures, folder / "failures.png")
        if probed["auc"]:
            plots.probes_figure(probed, folder / "probes.png")
    parts = (
        ("Geometry of the states", geometry.say_geometry(curves)),
        ("Convergence", geometry.say_convergence(convergence)),
        ("Trajectories", geometry.say_trajectories(paths)),
        ("Halting", geometry.say_halting(halting)),
        ("Failures", geometry.say_failures(failures)),
        ("Probes", geometry.say_probes(probed)),
    )
    sections = [f"## {title}\n\n{sentence}\n" for title, sentence in parts]
    write_text(out / "geometry.md", "\n".join(sections))
    return sections


STUDIES: dict[str, Callable[[Study, Options, Path], list[str]]] = {
    "rollout": run_rollout,
    "freeze": run_freeze,
    "attention": run_attention,
    "geometry": run_geometry,
}


def analyze(command: str, options: Options) -> Path:
    """Run one command for every model; returns the folder with the results."""
    names = _folder_names(options.models)
    entries = []
    for model, name in zip(options.models, names):
        out = options.output_dir / name if len(names) > 1 else options.output_dir
        study = load_study(model, options, out)
        commands = list(STUDIES) if command == "report" else [command]
        if command == "report" and study.config.token_mixer != "attention":
            commands.remove("attention")  # such a model has none; the report says so
        out.mkdir(parents=True, exist_ok=True)
        sections = {one: STUDIES[one](study, options, out) for one in commands}
        print("\n".join(text for part in sections.values() for text in part))
        entries.append(report.Entry(name, out, describe(study, model), sections))
        if command == "report":
            size = sum(p.numel() for p in study.model.parameters())
            about = findings.describe(study.config, Path(model).name, size)
            whole = json.loads((out / "analysis.json").read_text(encoding="utf-8"))
            write_text(out / "summary.json", json.dumps(findings.summarize(whole, about)) + "\n")
    if len(names) > 1 and command in ("freeze", "report"):
        together(options, names, study.task)
    if command == "report":
        summary = options.output_dir / "freeze_runs.md"
        overall = summary.read_text(encoding="utf-8") if len(names) > 1 else ""
        report.write(options.output_dir, entries, overall)
    return options.output_dir


def describe(study: Study, model: str) -> str:
    """Markdown: what was studied, for the head of a report."""
    config = study.config
    rule = variant_name(config) or "a rule of its own"
    size = sum(p.numel() for p in study.model.parameters())
    depth = config.num_hidden_layers if config.shared_block else f"{config.l_layers} + {config.h_layers}"
    lines = [
        f"- model: `{model}`, variant {rule}, {size:,} parameters, width {config.hidden_size}, layers {depth}, "
        f"{config.num_attention_heads} heads, {config.halt_max_steps} ACT steps of `{config.schedule}`",
        f"- puzzles: {len(study):,} of {study.source} ({study.task!r})",
        f"- computed on {study.device.type}, {'default precision' if study.dtype is None else study.dtype}",
    ]
    if config.token_mixer != "attention":
        lines.append("- this model mixes positions by a SwiGLU: it has no attention to analyse")
    return "\n".join(lines) + "\n"


def redraw_published(folder: Path, output_dir: Path, dpi: int = figures.DPI) -> list[Path]:
    """Draw the paper's figures from its own numbers, by the functions that draw ours.

    Args:
        folder: freeze_5runs.json, attention_bars.json, attention_{sudoku,maze}_{example,evolution}.npz and .json,
            and rollout_sudoku_*.json.gz, all as the public repository has them; what is missing is left out.
    """
    folder, output_dir, out = Path(folder), Path(output_dir), []

    def stored(name: str) -> Any:
        opener = gzip.open if name.endswith(".gz") else open
        with opener(folder / name, "rt", encoding="utf-8") as stream:
            return json.load(stream)

    for name in ("sudoku", "maze"):
        task = make_task(name)
        if (folder / "freeze_5runs.json").exists():
            table = freeze.from_published(stored("freeze_5runs.json"), name)
            note = "published: mean ± std over five seeds (dots), 1,000 puzzles each"
            out.append(plots.freeze_bars(table, output_dir / f"freeze_{name}.png", title=note, dpi=dpi))
        if (folder / "attention_bars.json").exists():
            bars = plots.attention_from_published(stored("attention_bars.json"), name)
            note = attention.AGGREGATIONS["per_puzzle"] if name == "sudoku" else "all heads averaged"
            path = output_dir / f"attention_bars_{name}.png"
            out.append(plots.attention_bars(bars, path, title=f"published: {note}", dpi=dpi))
        for kind in ("example", "evolution"):
            if not (folder / f"attention_{name}_{kind}.npz").exists():
                continue
            where, maps = stored(f"attention_{name}_{kind}.json"), np.load(folder / f"attention_{name}_{kind}.npz")
            decoded = next(maps[key] for key in maps.files if key.startswith("decoded"))
            common: dict[str, Any] = {
                "puzzle": maps["input_grid"].ravel() if "input_grid" in maps.files else None,
                "label": maps["label_grid"].ravel() if "label_grid" in maps.files else None,
                "title": f"published: puzzle {where['puzzle']}, layer {where['layer']}, head {where['head']}",
                "dpi": dpi,
            }
            path, query = output_dir / f"attention_{kind}_{name}.png", where["query_idx"]
            if kind == "example":
                out.append(plots.attention_example(maps["l_map"], maps["h_map"], decoded, query, task, path, **common))
            else:
                grids = decoded.reshape(len(decoded), -1)
                out.append(
                    plots.attention_evolution(
                        maps["l_maps"], maps["h_maps"], grids, maps["cycles"].tolist(), query, task, path, **common
                    )
                )
    for path in sorted(folder.glob("rollout_sudoku_*.json.gz")):
        run = stored(path.name)
        traces = [trace for step in run["act_steps"] for trace in step["recursive_traces"]]
        grids = {key: np.array([t[key] for t in traces]).reshape(len(traces), -1) for key in ("pred_H", "pred_L")}
        rolled = AirRollout(grids["pred_H"], grids["pred_L"], [t["stage"].lower() for t in traces])
        puzzle, label = np.array(run["input"]).ravel(), np.array(run["solution"]).ravel()
        target = output_dir / path.name.replace(".json.gz", ".png")
        out.append(figures.draw_film_strip(rolled, puzzle, make_task("sudoku"), target, label=label, dpi=dpi))
    if not out:
        raise FileNotFoundError(f"{folder} holds none of the published result files: see redraw_published.")
    return out


def _folder_names(models: Sequence[str]) -> list[str]:
    """A folder name per model, unique."""
    names = [Path(model).name or "model" for model in models]
    if len(set(names)) == len(names):
        return names
    return [f"{i}-{name}" for i, name in enumerate(names)]


def together(options: Options, names: Sequence[str], task: GridTask) -> None:
    """Freeze tables of several checkpoints as mean ± std over them."""
    results = [json.loads((options.output_dir / name / "analysis.json").read_text()) for name in names]
    if len({result["task"] for result in results}) > 1:
        raise ValueError("The models solve different tasks: their results have no common mean.")
    table = freeze.across_runs([result["freeze_summary"] for result in results])
    runs = {"task": results[0]["task"], "models": list(names), "runs": table}
    write_json(options.output_dir / "freeze_runs.json", runs)
    if options.figures:
        note = f"mean ± std over {len(names)} checkpoints"
        plots.freeze_bars(table, options.output_dir / "figures" / "freeze_runs.png", title=note)
    lead = f"## Freeze\n\nMean ± std over {len(names)} checkpoints; published: over five.\n\n"
    text = lead + freeze.freeze_table(table, freeze.published(task))
    write_text(options.output_dir / "freeze_runs.md", text)
    print(text)
