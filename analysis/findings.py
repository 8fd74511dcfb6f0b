"""What the trained models show: docs/findings.md, its five figures and the Space's table of it, all out of results/.

    python scripts/make_tables.py            # reads results/studies/*.json, results/small_runs*.jsonl, published.json

A study is what `scripts/analyze.py report` leaves in summary.json, kept as results/studies/CHECKPOINT.json. Sentences
are made of their own numbers, so that none outlives the file it came from.
"""

import itertools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from air_model.analysis.common import markdown_table, number, plus_minus, share, summary
from air_model.analysis.figures import FAINT, INK, MUTED, OURS, STATE_COLOURS, STATE_NAMES, THEIRS, panels, save
from air_model.configuration_air import AirConfig
from air_model.records import plain, read_json, read_lines
from air_model.training.sweep import RUNGS, SMALL_SUITES

Study = dict[str, Any]  # what `summarize` returns
Studies = dict[str, Study]  # by the checkpoint's name
Run = dict[str, Any]  # a line of results/small_runs*.jsonl
Size = tuple[str, int]  # grid, layers
Gap = tuple[float, float | None, int]  # mean, half of its 95 % interval (None of one seed), seeds
TABLE: Size = ("4x4", 2)
LADDERS: list[Size] = [TABLE, ("6x6", 2)]
SYMMETRIC = ("Lx_Hx", "L2x_H2x")
# Student's t, 97.5 %; beyond the table it is smaller still, and the last serves.
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
RUNG_WORDS = {
    "published": "published arithmetic",
    "rope2d": "+ positions in two dimensions",
    "relations": "+ heads by relation",
    "muon": "+ Muon",
    "qk_norm": "+ normalised queries and keys",
    "one_forward": "+ no second forward",
    "all_gradients": "+ gradient through all updates",
}


# ---- studies of checkpoints ----------------------------------------------------------------------------------------


def _short(value: Any) -> Any:
    """Numbers with five significant digits, at any depth."""
    return json.loads(json.dumps(plain(value)), parse_float=lambda text: float(f"{float(text):.5g}"))


def summarize(analysis: dict[str, Any], config: AirConfig, name: str, parameters: int) -> Study:
    """The numbers of a report (analysis.json) without puzzles, some kilobytes, behind what the model is.

    `variant` is the injection's name, whatever else the recipe has.
    """
    out = {
        "model": name,
        "variant": config.injection,
        "injections": [config.l_injection, config.h_injection],
        "grid": [config.grid_height, config.grid_width],
        "schedule": config.schedule,
        "parameters": parameters,
        **{key: analysis[key] for key in ("task", "source", "n_puzzles")},
    }
    curves, runs = analysis["rollout"]["curves"], analysis["freeze_summary"]
    out["rollout"] = {s: {name: values["mean"] for name, values in by.items()} for s, by in curves.items()}
    out["freeze"] = {run: {name: {k: values[k] for k in ("mean", "std")} for name, values in by.items()}
                     for run, by in runs.items()}  # fmt: skip
    out |= {name: analysis.get(name) for name in ("attention", "attention_per_puzzle")}
    if found := analysis.get("geometry"):
        settled = found["convergence"].items()
        out["geometry"] = {
            "cosine": found["curves"]["both"]["cosine"]["mean"],
            "fixed_point": {state: one["fixed_point"] for state, one in settled},
            "relative_change": {state: one["relative_change"]["mean"] for state, one in settled},
            "probes": found["probes"],
        }
    return _short(out)


def read_results(results: Path) -> tuple[Studies, list[Run]]:
    """The studies by name, and the small sweeps' runs (lines of `run_grid.py --curves`, a file for each grid)."""
    studies = {path.stem: read_json(path) for path in sorted((results / "studies").glob("*.json"))}
    return studies, [row for path in sorted(results.glob("small_runs*.jsonl")) for row in read_lines(path)]


def title(name: str, study: Study) -> str:
    """'sudoku-9x9 `Lx_Hx`', or 'sudoku-9x9 twin `Lx_H`' where the rule is part of the checkpoint's name."""
    variant = study["variant"] or name
    return f"{name.removeprefix('air-').replace(f'-{variant}', ' twin')} `{variant}`"


def open_cells(study: Study) -> dict[str, np.ndarray]:
    """Share of cells that each state leaves open after every update: blank or PAD (of a maze PAD alone)."""
    kinds = ("pad",) if study["task"] == "maze" else ("blank", "pad")
    return {state: sum(np.array(by[kind]) for kind in kinds) for state, by in study["rollout"].items()}


def held_back(study: Study) -> dict[str, float]:
    """Mean share of open cells, from the second ACT step on: in the first, z_H is still its random beginning."""
    first = len(study["schedule"])
    return {state: float(curve[first:].mean()) for state, curve in open_cells(study).items()}


def near(entry: dict[str, Any]) -> dict[str, float]:
    """The contrast of neighbourhood mass, L minus H, of one layer and class."""
    return next(iter(entry["metrics"].values()))


def distance(study: Study) -> float | None:
    """Mean of `near` over layers and classes, rows pooled; None without attention."""
    layers = (study.get("attention") or {}).values()
    pairs = [(e["n_queries"], near(e)["mean"]) for classes in layers for e in classes.values() if e["n_queries"]]
    return sum(n * mean for n, mean in pairs) / sum(n for n, _ in pairs) if pairs else None


def solved(study: Study) -> list[str]:
    """Puzzles solved, in percent: by z_H with both states, by z_L with z_H frozen, by z_H with z_L frozen."""
    runs = ("normal.z_H", "freeze_z_H.z_L", "freeze_z_L.z_H")
    return [share(100 * study["freeze"][run]["exact_accuracy"]["mean"]) for run in runs]


FREEZE_KEYS = ("normal.z_L", "freeze_z_H.z_L", "normal.z_H", "freeze_z_L.z_H")


def content_changes(study: Study) -> list[float]:
    """Per puzzle: of z_L, of z_L with z_H frozen, of z_H, of z_H with z_L frozen."""
    return [study["freeze"][run]["content_changes"]["mean"] for run in FREEZE_KEYS]


def published_part(published: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    """{task or layer: its numbers} of one of the published studies."""
    return {name: numbers for name, numbers in published[part].items() if name != "unit"}


def published_freeze(published: dict[str, Any]) -> dict[str, tuple[list[int], list[float]]]:
    """{task: (content changes as of `content_changes`, accuracies as of `solved`)}."""
    out = {}
    for task, runs in published_part(published, "freeze").items():
        n, h, fl = (runs[name] for name in ("normal", "freeze_z_h", "freeze_z_l"))
        out[task] = [n["z_l"], h["z_l"], n["z_h"], fl["z_h"]], [run["accuracy"] for run in (n, h, fl)]
    return out


def states_table(studies: Studies) -> str:
    """A row a model: what each state is, how far either gets alone, how much nearer L-updates look (`distance`)."""
    rows = []
    for name, study in studies.items():
        held, last, cosine = held_back(study), study["rollout"], study["geometry"]["cosine"][-1]
        rows.append([
            title(name, study), f"{study['n_puzzles']:,}",
            *(f"{100 * held[s]:.1f}" for s in ("z_H", "z_L")),
            *(share(100 * last[s]["exact"][-1]) for s in ("z_H", "z_L")),
            *solved(study)[1:], f"{cosine:.2f}", number(distance(study)),
        ])  # fmt: skip
    header = ["model", "puzzles", "z_H held back, %", "z_L held back, %", "z_H right, %", "z_L right, %",
              "z_L right, z_H frozen, %", "z_H right, z_L frozen, %", "cosine of the two", "nearer"]  # fmt: skip
    return markdown_table(header, rows, left=1)


def freeze_table(studies: Studies, published: dict[str, Any]) -> str:
    """Content changes and accuracy, normal and frozen, the paper's two models first."""
    rows = [[f"the paper's, {task}", *(f"{c:,}" for c in changes), *(f"{a:.1f}" for a in accuracies)]
            for task, (changes, accuracies) in published_freeze(published).items()]  # fmt: skip
    for name, study in studies.items():
        rows.append([title(name, study), *(f"{c:,.1f}" for c in content_changes(study)), *solved(study)])
    header = ["model", "z_L changes", "z_H frozen", "z_H changes", "z_L frozen", "grids right, %", "z_H frozen",
              "z_L frozen"]  # fmt: skip
    return markdown_table(header, rows, left=1)


def attention_table(studies: Studies, published: dict[str, Any]) -> str:
    """Contrasts per layer, rows pooled, heads averaged, the paper's rows first."""
    rows = []
    for layer, entry in published_part(published, "attention").items():
        cells = (f"{entry[metric][0]:.3f}" for metric in ("delta_nbr", "delta_ent", "delta_viol"))
        rows.append(["the paper's, sudoku 9x9 `Lx_H`", layer, *cells])
    for name, study in studies.items():
        for layer, classes in (study.get("attention") or {}).items():
            beside, control = classes.values()
            contrasts = near(control), list(control["metrics"].values())[-2], list(beside["metrics"].values())[-1]
            rows.append([title(name, study), layer, *(plus_minus(m["mean"], m["ci95"]) for m in contrasts)])
    header = ["model", "layer", "Δ_nbr, control", "Δ_ent, control", "Δ_viol, beside a fault"]
    return markdown_table(header, rows)


# ---- the sweep -----------------------------------------------------------------------------------------------------


def of_size(runs: Sequence[Run], size: Size) -> list[Run]:
    """The runs on these grids with so many layers."""
    return [run for run in runs if (run["grid"], run["layers"]) == size]


def on(runs: Sequence[Run], rung: str) -> list[Run]:
    """The runs of a rung; those of the table are the lowest of a ladder of their size."""
    return [run for run in runs if (run["rung"] or "published") == rung]


def budgets(runs: Sequence[Run], rung: str = "published") -> list[int]:
    """About half the steps and all of them: the rate is constant, so the first half of a run is the shorter run."""
    steps = sorted({int(step) for run in on(runs, rung) for step in run["exact"]})
    return sorted({min(steps, key=lambda s: abs(2 * s - steps[-1])), steps[-1]}) if steps else []


def of_rung(runs: Sequence[Run], rung: str, variant: str, steps: int) -> dict[int, float]:
    """{seed: exact accuracy in percent}."""
    found = [run for run in on(runs, rung) if run["variant"] == variant]
    return {run["seed"]: 100 * run["exact"][str(steps)] for run in found if str(steps) in run["exact"]}


def paired(a: dict[int, float], b: dict[int, float]) -> Gap | None:
    """a - b over common seeds, with Student's interval."""
    gaps = [a[seed] - b[seed] for seed in a.keys() & b.keys()]
    if not gaps:
        return None
    n = len(gaps)
    half = T95[min(n - 1, 9)] * statistics.stdev(gaps) / math.sqrt(n) if n > 1 else None
    return statistics.mean(gaps), half, n


def gap_text(gap: Gap | None) -> str:
    """'+3.1 ± 2.0 (5)'."""
    if gap is None:
        return ""
    mean, half, n = gap
    return f"{mean:+.1f}" + (f" ± {half:.1f}" if half is not None else "") + f" ({n})"


def published_sudoku(published: dict[str, Any], variant: str) -> dict[str, float]:
    return (published["injection"].get(variant) or published["level-token"].get(variant))["sudoku"]


def sweep_table(runs: Sequence[Run], published: dict[str, Any]) -> str:
    """The published tables at the size of one CPU core, and each variant's paired gap to `Lx_Hx`."""
    both = budgets(runs)
    if not both:
        return ""
    rows = []
    for variant in SMALL_SUITES["small"]:
        cells = []
        for steps in both:
            mine, reference = (of_rung(runs, "published", name, steps) for name in (variant, "Lx_Hx"))
            gap = "" if variant == "Lx_Hx" else gap_text(paired(mine, reference))
            cells += [summary(list(mine.values())), len(mine) or "", gap]
        rows.append([f"`{variant}`", f"{published_sudoku(published, variant)['mean']:.1f}", *cells])
    header = ["variant", "the paper's, 9x9, %"]
    for steps in both:
        header += [f"{steps:,} steps, %", "seeds", "minus `Lx_Hx`"]
    return markdown_table(header, rows, left=1)


def injections_by_group() -> tuple[list[str], list[str]]:
    """The asymmetric injections of the published table, and the symmetric ones, each without level tokens."""
    rules = {name: AirConfig.from_variant(name) for name in SMALL_SUITES["small"]}
    plain = {name: rule for name, rule in rules.items() if rule.shared_block and rule.level_token == "none"}
    groups: tuple[list[str], list[str]] = [], []
    for name, rule in plain.items():
        groups[rule.l_injection == rule.h_injection].append(name)
    return groups


def group_gap(runs: Sequence[Run], steps: int) -> Gap | None:
    """Paired gap of the mean of all asymmetric injections to that of all symmetric ones, without level tokens."""
    means = []
    for names in injections_by_group():
        found = [of_rung(runs, "published", name, steps) for name in names]
        seeds = set.intersection(*map(set, found))
        means.append({seed: statistics.mean(one[seed] for one in found) for seed in seeds})
    return paired(*means)


def ladder(runs: Sequence[Run]) -> dict[str, list[tuple[int, Gap | None]]]:
    """{rung: (steps, paired gap `Lx_H` minus `Lx_Hx`) at each of its budgets}, of the rungs that were run."""
    out = {}
    for rung in RUNGS:
        gaps = [(n, paired(*(of_rung(runs, rung, v, n) for v in ("Lx_H", "Lx_Hx")))) for n in budgets(runs, rung)]
        out |= {rung: gaps} if gaps else {}
    return out


def size_words(size: Size) -> str:
    """'6x6, 2 layers'."""
    return f"{size[0]}, {size[1]} layer" + "s" * (size[1] > 1)


def ladder_table(runs: Sequence[Run]) -> str:
    rows = []
    for size in LADDERS:
        mine = of_size(runs, size)
        for rung, gaps in ladder(mine).items():
            for n, gap in gaps:
                exact = [summary(list(of_rung(mine, rung, v, n).values())) for v in SMALL_SUITES["ladder"]]
                rows.append([size_words(size), RUNG_WORDS[rung], f"{n:,}", *exact, gap_text(gap)])
    header = ["size", "recipe", "steps", *(f"`{v}`, %" for v in SMALL_SUITES["ladder"])]
    header.append("`Lx_H` minus `Lx_Hx` (seeds)")
    return markdown_table(header, rows, left=2) if rows else ""


def gaps_table(runs: Sequence[Run]) -> str:
    """`Lx_H` minus `Lx_Hx` on every rung at the shorter and the longer budget; bold: the interval leaves out 0."""
    rows = {rung: [words] for rung, words in RUNG_WORDS.items()}
    for size, rung in itertools.product(LADDERS, rows):
        gaps = ladder(of_size(runs, size)).get(rung, [])
        for steps, gap in (gaps[0], gaps[-1]) if gaps else ():
            sure = gap is not None and gap[1] is not None and abs(gap[0]) > gap[1]
            rows[rung] += [f"{steps:,}", f"**{gap_text(gap)}**" if sure else gap_text(gap)]
        rows[rung] += [""] * (4 * LADDERS.index(size) + 5 - len(rows[rung]))
    header = ["recipe", *(text for grid, _ in LADDERS for text in (f"{grid}: steps", "gap", "steps", "gap"))]
    return markdown_table(header, list(rows.values()), left=1)


def rules_table(runs: Sequence[Run]) -> str:
    """Lowest to highest mean of the rules in which both updates see the puzzle, and of the others, a rung a row."""
    rows = {rung: [words] for rung, words in RUNG_WORDS.items() if rung != "published"}
    for size, rung in itertools.product(LADDERS, rows):
        mine = of_size(runs, size)
        means: dict[bool, list[float]] = {True: [], False: []}
        for variant in SMALL_SUITES["ladder"] if (steps := budgets(mine, rung)[:1]) else ():
            rule, found = AirConfig.from_variant(variant), of_rung(mine, rung, variant, steps[0]).values()
            means[bool(rule.l_injection and rule.h_injection)] += [statistics.mean(found)] if found else []
        known = len(means[True]) + len(means[False]) == len(SMALL_SUITES["ladder"])
        rows[rung] += [f"{min(values):.0f} to {max(values):.0f}" if known else "" for values in means.values()]
    header = ["recipe", *(f"{grid}: {who}" for grid, _ in LADDERS for who in ("both see it", "one does"))]
    return markdown_table(header, list(rows.values()), left=1)


# ---- sentences -----------------------------------------------------------------------------------------------------


def say_roles(study: Study) -> str:
    """One model's part of this, for its card."""
    held, last = held_back(study), study["rollout"]
    right = {state: share(100 * last[state]["exact"][-1]) for state in last}
    _, *alone = solved(study)
    return (
        f"On {study['n_puzzles']:,} puzzles ({study['source']}) z_L keeps {100 * held['z_L']:.1f} % of its cells "
        f"open, z_H {100 * held['z_H']:.1f} %, from the second ACT step on. In the end z_H is the right grid for "
        f"{right['z_H']} % and z_L for {right['z_L']} % of the puzzles; the cosine between the two is "
        f"{study['geometry']['cosine'][-1]:.2f}. With z_H frozen from the start z_L solves {alone[0]} %, "
        f"with z_L frozen z_H solves {alone[1]} %."
    )


def say_groups(runs: Sequence[Run], published: dict[str, Any]) -> str:
    """Whether asymmetric injections are ahead as a group, here and in the paper."""
    texts = [f"{gap_text(gap)} points after {n:,} steps" for n in budgets(runs) if (gap := group_gap(runs, n))]
    means = [[published_sudoku(published, name)["mean"] for name in group] for group in injections_by_group()]
    theirs = f"{statistics.mean(means[0]) - statistics.mean(means[1]):+.1f} (9x9)"
    what = "The asymmetric injections together minus the symmetric ones, each without level tokens, by seed"
    return f"{what}: {', '.join(texts)}; the paper's {theirs}." if texts else ""


def tables(results: Path, published: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """{name: (title, table)}, for results/TABLES.md and the markers of docs/findings.md."""
    studies, runs = read_results(results)
    return {
        "states": ("Findings: the two states of every model", states_table(studies)),
        "freeze": (
            "Findings: content changes per puzzle of each state, and grids right, with the other state frozen",
            freeze_table(studies, published),
        ),
        "attention": ("Findings: attention, L- minus H-updates", attention_table(studies, published)),
        "sweep": (
            "Findings: the published tables under the published arithmetic at a size for one CPU core",
            sweep_table([run for run in of_size(runs, TABLE) if not run["rung"]], published),
        ),
        "ladder": ("Findings: one thing at a time from there to our own small recipes", ladder_table(runs)),
    }


def parts_of_the_page(results: Path, published: dict[str, Any]) -> dict[str, str]:
    """{name: Markdown} that docs/findings.md has besides."""
    runs = read_results(results)[1]
    expected = len(SMALL_SUITES["small"]) * 5, len(SMALL_SUITES["ladder"]) * (len(RUNGS) - 1) * 3
    mine = of_size(runs, TABLE)
    table, rungs = ([run for run in mine if bool(run["rung"]) == climbs] for climbs in (False, True))
    so_far = f"Runs so far: {len(table)} of {expected[0]} of the table, {len(rungs)} of {expected[1]} of the ladder."
    said = f"{say_groups(table, published)} {so_far}"
    return {"gaps": gaps_table(runs), "say-sweep": said, "rules": rules_table(runs)}


# ---- figures -------------------------------------------------------------------------------------------------------


def _clean(ax: Axes, title: str = "", **labels: Any) -> None:
    ax.set(**labels)
    ax.set_title(title, fontsize=10, loc="left", color=INK)
    ax.tick_params(length=0, labelsize=8, colors=MUTED)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=FAINT, lw=0.6, alpha=0.6)
    ax.set_axisbelow(True)


def draw_sweep(runs: Sequence[Run], published: dict[str, Any]) -> Figure:
    """The paper's table above, ours below at both budgets; symmetric variants hatched."""
    runs, variants = of_size(runs, TABLE), SMALL_SUITES["small"]
    both = budgets(runs)
    figure, ((theirs,), (mine,)) = panels(8, 4.6, 2, sharex=True)
    for i, variant in enumerate(variants):
        entry = published_sudoku(published, variant)
        look = {"ec": "white", "hatch": "///" if variant in SYMMETRIC else None}
        theirs.bar(i, entry["mean"], 0.6, yerr=entry.get("std"), capsize=2, color=THEIRS, **look)
        for j, steps in enumerate(both):
            values = list(of_rung(runs, "published", variant, steps).values())
            x = i + 0.34 * (j - (len(both) - 1) / 2)
            if values:
                mine.bar(x, statistics.mean(values), 0.3, color=OURS, alpha=0.5 + 0.5 * j, **look)
                mine.plot([x] * len(values), values, "o", ms=2.5, color=INK)
    _clean(theirs, "the paper: Sudoku-Extreme, 13.6 M parameters, 5 seeds", ylabel="exact, %", ylim=(40, 65))
    steps = " and ".join(f"{n:,}" for n in both)
    _clean(mine, f"ours: {size_words(TABLE)}, {steps} steps; dots are seeds", ylabel="exact, %")
    mine.set_xticks(range(len(variants)), [v.removeprefix("L2x_H2x_") for v in variants], rotation=30, ha="right")
    return figure


def draw_ladder(runs: Sequence[Run]) -> Figure:
    """Gap `Lx_H` minus `Lx_Hx` on every rung, 95 % intervals over paired seeds; a panel a size."""
    sizes = [size for size in LADDERS if any(run["rung"] for run in of_size(runs, size))] or LADDERS[:1]
    figure, (axes,) = panels(3 + 3.5 * len(sizes), 4.4, columns=len(sizes))
    for ax, size in zip(axes, sizes):
        rungs = ladder(of_size(runs, size))
        for i, gaps in enumerate(rungs.values()):
            for j, (_, gap) in enumerate((gaps[0], gaps[-1])):
                if gap is not None:
                    mean, half, n = gap
                    y = i + 0.16 * (2 * j - 1)
                    ax.errorbar(mean, y, xerr=half, fmt="o", ms=5, capsize=2, color=OURS, alpha=0.45 + 0.55 * j)
                    ax.annotate(f"n = {n}", (mean, y), (0, 4), textcoords="offset points", fontsize=6, ha="center")
        ax.axvline(0, color=INK, lw=0.8)
        steps = [" and ".join(f"{n:,}" for n, _ in gaps) for gaps in rungs.values()]
        ax.set_yticks(range(len(rungs)), [f"{RUNG_WORDS[r]}\n({n} steps)" for r, n in zip(rungs, steps)])
        ax.set_ylim(len(rungs) - 0.5, -0.5)
        ax.set_xlim(-100, 100)  # intervals of two seeds go far beyond what a gap can be
        _clean(ax, f"{size_words(size)} (pale: half the steps)", xlabel="Lx_H minus Lx_Hx, exact, points")
    return figure


def draw_states(studies: Studies) -> Figure:
    """Per model: cells right and cells held back after every update, both states."""
    wide = min(4, len(studies))  # more do not fit on a page
    lines = math.ceil(len(studies) / wide)
    figure, axes = panels(2.7 * wide, 3.6 * lines, 2 * lines, wide)
    top = max(10, *(140 * held_back(study)["z_L"] for study in studies.values()))
    for ax in axes[-2:, (len(studies) - 1) % wide + 1 :].flat:
        ax.set_visible(False)
    for i, (name, study) in enumerate(studies.items()):
        right, held = axes[i // wide * 2 : i // wide * 2 + 2, i % wide]
        for state, curve in open_cells(study).items():
            level, right_cells = state[-1].lower(), np.array(study["rollout"][state]["accuracy"])
            x = (np.arange(len(curve)) + 1) / len(study["schedule"])
            style = {"color": STATE_COLOURS[level], "label": STATE_NAMES[level], "lw": 1.5}
            right.plot(x, 100 * right_cells, **style)
            held.plot(x, 100 * curve, **style)
        _clean(right, title(name, study).replace("`", ""), ylim=(-5, 105))
        _clean(held, xlabel="ACT step", ylim=(-1, top))
        if i % wide == 0:
            right.set_ylabel("cells right, %")
            held.set_ylabel("cells held back, %")
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def draw_freeze(studies: Studies, published: dict[str, Any]) -> Figure:
    """Content changes of both states, normal and with the other frozen; a group of bars per model."""
    groups = {f"paper, {task}": changes for task, (changes, _) in published_freeze(published).items()}
    groups |= {title(name, study).replace("`", ""): content_changes(study) for name, study in studies.items()}
    figure, ((ax,),) = panels(8, 3.2)
    labels = ("$z_L$", "$z_L$, $z_H$ frozen", "$z_H$", "$z_H$, $z_L$ frozen")
    for k, label in enumerate(labels):
        colour = STATE_COLOURS["l" if k < 2 else "h"]
        style = {"alpha": 0.4, "hatch": "///", "ec": "white"} if k % 2 else {}
        x = np.arange(len(groups)) + 0.2 * (k - 1.5)
        ax.bar(x, [max(values[k], 0.1) for values in groups.values()], 0.19, color=colour, label=label, **style)
    ax.set_yscale("log")
    ax.set_xticks(range(len(groups)), list(groups), rotation=20, ha="right")
    _clean(ax, ylabel="content changes per puzzle\n(none is drawn as 0.1)")
    ax.legend(frameon=False, fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def draw_attention(studies: Studies, published: dict[str, Any]) -> Figure:
    """Neighbourhood mass, L minus H, by depth: one line per model, and the paper's."""
    figure, ((ax,),) = panels(6, 3.4)
    theirs = [entry["delta_nbr"][0] for entry in published_part(published, "attention").values()]
    depth = lambda n: np.linspace(0, 1, n)  # noqa: E731
    ax.plot(depth(len(theirs)), theirs, "o--", color=THEIRS, label="the paper's, sudoku 9x9 Lx_H")
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#117733")
    for (marker, colour), (name, study) in zip(itertools.cycle(itertools.product("os^", colours)), studies.items()):
        if study.get("attention"):
            layers = [near(layer["control"]) for layer in study["attention"].values()]
            means = [(m["mean"], m["ci95"]) for m in layers if m["mean"] is not None]
            label = title(name, study).replace("`", "")
            ax.errorbar(depth(len(means)), *np.array(means).T, fmt=f"{marker}-", capsize=2, color=colour, label=label)
    ax.axhline(0, color=INK, lw=0.8)
    ax.set_xticks([0, 1], ["first layer", "last layer"])
    _clean(ax, "L-updates look nearer above 0, farther below", ylabel="Δ neighbourhood mass, control")
    ax.legend(frameon=False, fontsize=8)
    return figure


def draw(results: Path, published: dict[str, Any], folder: Path) -> list[Path]:
    """The five figures of docs/findings.md; those of which nothing is known yet are left out."""
    studies, runs = read_results(results)
    made = {"sweep": draw_sweep(runs, published), "ladder": draw_ladder(runs)} if runs else {}
    if studies:
        made |= {"states": draw_states(studies), "freeze": draw_freeze(studies, published)}
        made |= {"attention": draw_attention(studies, published)}
    return [save(figure, folder / f"findings_{name}.png", 120, tight=True) for name, figure in made.items()]


def for_the_space(results: Path) -> dict[str, Any]:
    """What the Space's Learn tab shows in tables: a row for each model studied, and the smaller budget of each rung.

    Returns:
        models: {checkpoint: asymmetric, puzzles, held_back (percent of z_H's and z_L's cells), solved (as `solved`),
        nearer (as `distance`)}. ladder: rows of recipe, steps, seeds, and by variant the mean exact accuracy in %.
    """
    studies, runs = read_results(results)
    models = {
        name: {"asymmetric": len(set(study["injections"])) > 1, "puzzles": study["n_puzzles"], "solved": solved(study),
               "held_back": [f"{100 * x:.1f}" for x in held_back(study).values()], "nearer": _short(distance(study))}
        for name, study in studies.items()
    }  # fmt: skip
    mine = of_size(runs, TABLE)
    rungs = []
    for rung, ((steps, _), *_) in ladder(mine).items():
        exact = {v: of_rung(mine, rung, v, steps) for v in ("Lx_H", "Lx_Hx")}
        means = {v: round(statistics.mean(by.values()), 1) for v, by in exact.items() if by}
        rungs.append({"recipe": RUNG_WORDS[rung], "steps": steps, "seeds": len(exact["Lx_H"]), **means})
    return {"models": models, "ladder": rungs}
