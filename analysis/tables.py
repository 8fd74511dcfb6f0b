"""The tables and bar charts of README.md and results/TABLES.md, out of run records, evaluations and published values.

Published values come from results/published.json and results/published_systems.json, which name their sources. Ours
are means over the training seeds of full runs of the published recipes: other sizes are other experiments, and have
the table `small`. A run that was not done is an empty cell.
"""

import dataclasses
import json
import os
import re
import statistics
from collections.abc import Iterable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from air_model.analysis import leaderboard
from air_model.analysis.common import markdown_table, share, summary
from air_model.analysis.figures import OURS, THEIRS, panels, save
from air_model.configuration_air import VARIANTS, AirConfig
from air_model.processing_air import make_task
from air_model.training import sweep
from air_model.training.recipe import FREE_ON_RESUME, MODEL_FIELDS, model_config, read_recipe

Runs = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parent.parent
TASKS = tuple(sweep.RECIPES)
SUITES = {**sweep.SUITES, "injection": [*sweep.SUITES["injection"], "HRM"]}  # their two-network baseline as well
RULES = {
    "L2x_H2x": "symmetric base",
    "L2x_H2x_add": "token added to every cell",
    "L2x_H2x_prepend": "token prepended, attended to, stripped",
    "L2x_H2x_prepend_no_strip": "token prepended, kept",
    "Lx_H": "x",
    "minus_x": "−x",
    "gx_linear": "W x",
    "gx_nonlinear": "tanh(W x)",
    "had_prod": "(z_H + z_L) ⊙ x",
}
# What a run may change and still count as a reproduction: nothing of it changes the method, the size or the budget,
# which comes in steps or epochs (the steps done are looked at). `data` is a path, and the same rows lie under many;
# that a run saw the right ones is for its author to say.
FREE = FREE_ON_RESUME - {"eval_data", "eval_split"} | {
    "variant", "seed", "run_name", "data", "mixed_precision", "compile", "activation_checkpointing", "accumulation",
    "max_steps", "epochs",
}  # fmt: skip


def read_runs(path: Path) -> Runs:
    """Finished runs, the newest of each (configuration, seed).

    Raises:
        ValueError: a line that is not JSON, or not a run record; names the line.
    """
    newest: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
            # How often it saved or logged does not make another run of it; what it was evaluated on does.
            free = FREE_ON_RESUME - {"eval_data", "eval_split", "eval_limit", "final_eval_limit"}
            key = json.dumps({k: v for k, v in run["config"].items() if k not in free}, sort_keys=True)
            if run["status"] == "finished":
                for field in ("task", "variant", "seed", "steps", "grid", "name", "date", "wall_seconds"):
                    run[field]  # what the tables read
                newest.pop(key, None)  # so that the last line is also the last of all
                newest[key] = run
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number} is not a run record of train_accelerate.py ({error}).") from error
    return list(newest.values())


def accuracy(run: dict[str, Any]) -> tuple[float, int] | None:
    """(exact accuracy in percent, puzzles): of scripts/evaluate.py if it is recorded, else of the run's own end."""
    for place in (run.get("evaluation"), run.get("metrics", {}).get("eval")):
        if place and place.get("exact_accuracy") is not None:
            n = place.get("n") or (run.get("data", {}).get("eval") or {}).get("n") or 0
            return 100.0 * place["exact_accuracy"], int(n)
    return None


@cache
def published_recipe(task: str, variant: str) -> dict[str, Any]:
    """Every key of the published recipe of a task for a variant, defaults written out; {} for other tasks."""
    if task not in TASKS or variant not in VARIANTS:
        return {}
    recipe = read_recipe(sweep.RECIPES[task], [f"variant={variant}"])
    config = model_config(recipe, make_task(task))
    values = {**dataclasses.asdict(recipe.train), **{key: getattr(config, key, None) for key in MODEL_FIELDS}}
    return json.loads(json.dumps(values, default=str))  # as a run record holds them


def is_published_protocol(run: dict[str, Any]) -> bool:
    """Whether a run is a full run of the published recipe of its task (whatever its variant and seed)."""
    reference, config = published_recipe(run.get("task"), run["variant"]), dict(run["config"])
    if not reference or config.get("hidden_size") is None:
        return False
    if config.get("train_size") is None:  # all that there are
        config["train_size"] = ((run.get("data") or {}).get("train") or {}).get("n")
    rows = ("auto", "test", "dev")  # never those that were trained on
    depth = (reference["num_hidden_layers"],)  # the default, written out
    own = (1.0,) if run["variant"] == "HRM" else ()  # that of HRM's own optimizer
    also = {"eval_split": rows, "eval_data": rows, "l_layers": depth, "h_layers": depth, "atan2_scale": own}
    plain = all(
        value in (None, "", reference.get(key), *also.get(key, ()))  # None and "": left to its default
        for key, value in config.items()
        if key not in FREE
    )
    # 20,000 epochs of 1,000 puzzles are 26,041 steps of 768, of which the public code makes 26,040.
    steps = run.get("steps")
    return plain and steps is not None and steps == run.get("max_steps") and abs(steps - reference["max_steps"]) <= 1


def full_runs(runs: Runs, variant: str, task: str) -> list[tuple[float, int]]:
    """`accuracy` of the full runs of a variant, one a seed: the newest."""
    found = [r for r in runs if r["variant"] == variant and r["task"] == task and is_published_protocol(r)]
    by_seed = {r["seed"]: value for r in found if (value := accuracy(r)) is not None}
    return [by_seed[seed] for seed in sorted(by_seed)]


def ours(runs: Runs, variant: str, task: str) -> list[float]:
    """Exact accuracies in percent of the full runs of a variant, one a seed."""
    return [percent for percent, _ in full_runs(runs, variant, task)]


def evaluated_on(counts: Iterable[int]) -> str:
    """How many puzzles stand behind the accuracies of several runs: '1,175' or '512 to 1,175'."""
    counts = set(counts)
    return " to ".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))


def with_counts(table: str, runs: Runs, variants: Iterable[str], tasks: Iterable[str]) -> str:
    """The table, and below it on how many puzzles our runs were evaluated: a run may have looked at a part only."""
    counts = {task: [n for variant in variants for _, n in full_runs(runs, variant, task)] for task in tasks}
    lines = [f"Ours, {task}: each run evaluated on {evaluated_on(n)} puzzles." for task, n in counts.items() if n]
    return "\n\n".join([table.rstrip(), *lines])


def injections(variant: str) -> list[float]:
    """[n_L, n_H, |n_L - n_H|]."""
    config = AirConfig.from_variant(variant)
    return [config.l_injection, config.h_injection, abs(config.l_injection - config.h_injection)]


def published_of(published: dict[str, Any], suite: str, variant: str, task: str) -> dict[str, Any] | None:
    """The published value; the operators' default rule was published with the injections."""
    entry = published.get(suite, {}).get(variant) or published.get("injection", {}).get(variant, {})
    return entry.get(task)


def compared(runs: Runs, published: dict[str, Any], suite: str, variant: str, tasks: Iterable[str]) -> list[Any]:
    """Three cells a task, under `compared_header`: published, ours, how many seeds."""
    cells = []
    for task in tasks:
        entry, values = published_of(published, suite, variant, task), ours(runs, variant, task)
        spread = f" ± {entry['std']:.1f}" if entry and "std" in entry else ""
        cells += [entry and f"{entry['mean']:.1f}{spread}", summary(values), len(values) or ""]
    return cells


def compared_header(tasks: Iterable[str]) -> list[str]:
    return [head for task in map(str.capitalize, tasks) for head in (f"{task}, published", f"{task}, ours", "n")]


def injection_table(runs: Runs, published: dict[str, Any]) -> str:
    suite = SUITES["injection"]
    rows = []
    for group, variants in (("asymmetric", suite[:6]), ("symmetric", suite[6:8]), ("", ["HRM"])):
        for variant in variants:
            name = f"`{variant}`" + (" (two networks)" if variant == "HRM" else "")
            rows.append([name, *injections(variant), *compared(runs, published, "injection", variant, TASKS)])
        if group:
            rows.append([f"*mean, {group}*", "", "", ""])
            for task in TASKS:
                theirs = [e["mean"] for v in variants if (e := published_of(published, "injection", v, task))]
                mine = [statistics.mean(values) for v in variants if (values := ours(runs, v, task))]
                whole = [f"*{statistics.mean(m):.1f}*" if len(m) == len(variants) else "" for m in (theirs, mine)]
                rows[-1] += [*whole, ""]
    header = ["variant", "n_L", "n_H", "Δ", *compared_header(TASKS)]
    return with_counts(markdown_table(header, rows, left=1), runs, suite, TASKS)


def suite_table(suite: str, runs: Runs, published: dict[str, Any]) -> str:
    """Level tokens or operators; with columns for mazes, of which little was published, once there is a run."""
    variants = SUITES[suite]
    tasks = TASKS if any(ours(runs, variant, "maze") for variant in variants) else ["sudoku"]
    rows = [[f"`{v}`", RULES[v], *injections(v), *compared(runs, published, suite, v, tasks)] for v in variants]
    rule = "level token" if suite == "level-token" else "what is injected"
    header = ["variant", rule, "n_L", "n_H", "Δ", *compared_header(tasks)]
    return with_counts(markdown_table(header, rows), runs, variants, tasks)


def small_sweeps(runs: Runs) -> dict[str, dict[str, Runs]]:
    """What the experiment is -> variant -> its runs: groups of runs that differ in variant and seed alone."""
    groups: dict[str, Runs] = {}
    for run in runs:
        if run["variant"] in VARIANTS and accuracy(run) is not None and not is_published_protocol(run):
            # Names, and what a variant fixes, may differ as well.
            own = {"variant", "seed", "run_name", "l_layers", "h_layers", "atan2_scale", *VARIANTS[run["variant"]]}
            config = {k: v for k, v in run["config"].items() if k not in own and v is not None}
            groups.setdefault(json.dumps([run["task"], run["grid"], config], sort_keys=True), []).append(run)
    sweeps: dict[str, dict[str, Runs]] = {}
    for members in groups.values():
        mine = {v: found for v in VARIANTS if (found := [run for run in members if run["variant"] == v])}
        if len(mine) > 1:
            what = "{} {}x{}".format(members[0]["task"], *members[0]["grid"])
            what += f", d {members[0]['config'].get('hidden_size', 512)}, {members[0]['steps']:,} steps"
            while what in sweeps:  # they differ in something that this name does not tell
                what += " (another recipe)"
            sweeps[what] = mine
    return sweeps


def small_table(runs: Runs, published: dict[str, Any]) -> str:
    """Own sweeps at other sizes."""
    rows = []
    for what, variants in small_sweeps(runs).items():
        for variant, mine in variants.items():
            values, counts = zip(*map(accuracy, mine))
            cells = summary(values), len(values), evaluated_on(counts)
            rows.append([what, f"`{variant}`", *injections(variant), *cells])
    header = ["experiment", "variant", "n_L", "n_H", "Δ", "exact, %", "n (seeds)", "puzzles"]
    return markdown_table(header, rows) if rows else ""


def runs_table(runs: Runs, published: dict[str, Any]) -> str:
    """Every finished run: what it was, what it cost, what it reached."""
    rows = []
    for run in sorted(runs, key=lambda r: r["date"]):
        exact, n = accuracy(run) or (None, None)
        best = (run.get("metrics") or {}).get("best") or {}
        rows.append({
            "run": f"`{run['name']}`",
            "task": "{} {}x{}".format(run["task"], *run["grid"]),
            "variant": f"`{run['variant']}`" if run["variant"] else "own rule",
            "seed": run["seed"],
            "steps": f"{run['steps']:,}",
            "minutes": f"{run['wall_seconds'] / 60:.1f}",
            "hardware": run.get("hardware", {}).get("device"),
            "TFLOP/s": run.get("tflops") and f"{run['tflops']:.3g}",
            "exact at the end, %": None if exact is None else share(exact),
            "best, %": leaderboard.percent(best.get("exact_accuracy")),
            "puzzles": None if exact is None else f"{n or best.get('n', 0):,}",
            "date": run["date"][:10],
        })  # fmt: skip
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows], left=3) if rows else ""


TABLES = {  # name: title, and what makes it of runs and published values
    "injection": (
        "Injection asymmetry: exact accuracy in %, mean ± standard deviation over n training seeds",
        injection_table,
    ),
    "level-token": ("Level tokens on the symmetric base: exact accuracy in %", partial(suite_table, "level-token")),
    "operator": ("Operators on the injected puzzle: exact accuracy in %", partial(suite_table, "operator")),
    "small": ("Own sweeps at other sizes (not comparable with the published numbers)", small_table),
    "runs": ("Every finished run", runs_table),
}


def all_tables(
    runs: Runs, published: dict[str, Any], systems: dict[str, Any], checkpoints: Path
) -> dict[str, tuple[str, str]]:
    """{name: (title, table)}, in the order of results/TABLES.md."""
    found = leaderboard.read_checkpoints(checkpoints)
    protocol = (
        f"{systems['protocol']}. A single pass is one attempt with the ACT steps of the training; with thought: more "
        f"steps, several attempts or a search, as it says. Read {systems['read']}. {systems['left_out']}"
    )
    board = f"{leaderboard.leaderboard_table(systems, found)}\n{protocol}"
    out = {
        "leaderboard": ("Leaderboard: Sudoku-Extreme and Maze-Hard", board),
        "checkpoints": ("Shipped checkpoints", leaderboard.checkpoints_table(found)),
        "evaluations": ("Every evaluation of a shipped checkpoint", leaderboard.evaluations_table(found)),
    }
    return out | {name: (title, make(runs, published)) for name, (title, make) in TABLES.items()}


def page(tables: dict[str, tuple[str, str]], published: dict[str, Any], path: Path) -> str:
    """results/TABLES.md; the tables' links are the README's, and this page lies elsewhere."""
    text = f"# Tables\n\nWritten by `scripts/make_tables.py`; do not edit. Published values: {published['source']}.\n"
    text += "".join(f"\n## {title}\n\n{table.rstrip() or 'No run yet.'}\n" for title, table in tables.values())
    return text.replace("](checkpoints/", f"]({os.path.relpath(ROOT, path.resolve().parent)}/checkpoints/")


def fill(text: str, tables: dict[str, str], name: str) -> str:
    """The text with every marked table replaced.

    Raises:
        ValueError: a table that does not exist, or a marker that is not closed.
    """
    opened = re.findall(r"<!-- table: (.+?) -->", text)
    if len(opened) != len(re.findall(r"<!-- /table -->", text)):
        raise ValueError(f"{name}: every '<!-- table: NAME -->' needs a '<!-- /table -->' after it.")
    for table in opened:
        if table not in tables:
            raise ValueError(f"{name} asks for a table {table!r}. Known: {', '.join(tables)}.")
    pattern = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- /table -->)", re.S)
    return pattern.sub(lambda m: m[1] + (f"{tables[m[2]].rstrip()}\n" if tables[m[2]] else "") + m[3], text)


def bar_charts(runs: Runs, published: dict[str, Any], folder: Path) -> list[Path]:
    """One chart a suite and task: published bars beside ours; none where there is nothing."""
    charts = []
    for (suite, variants), task in product(SUITES.items(), TASKS):
        mine = {variant: ours(runs, variant, task) for variant in variants}
        if any(published.get(suite, {}).get(v, {}).get(task) for v in variants) or any(mine.values()):
            theirs = [published_of(published, suite, variant, task) for variant in variants]
            charts.append(_chart(theirs, mine, f"{suite}, {task}", folder / f"{suite}_{task}.png"))
    return charts


def _chart(theirs: list[dict[str, Any] | None], mine: dict[str, list[float]], title: str, path: Path) -> Path:
    figure, ((axes,),) = panels(7, 3.2)
    for i, (entry, values) in enumerate(zip(theirs, mine.values())):
        if entry:
            axes.bar(i - 0.2, entry["mean"], 0.38, yerr=entry.get("std"), color=THEIRS, capsize=2)
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            axes.bar(i + 0.2, statistics.mean(values), 0.38, yerr=spread, color=OURS, capsize=2)
            axes.text(i + 0.2, 1, f"n={len(values)}", ha="center", fontsize=6, color="white")
    if any(theirs):  # the published value of HRM alone comes without a spread
        axes.bar(0, 0, color=THEIRS, label="published, ± s.d.\nof 5 seeds")
    if any(mine.values()):
        axes.bar(0, 0, color=OURS, label="ours")
    axes.set_xticks(range(len(mine)), mine, rotation=30, ha="right", fontsize=8)
    axes.set(ylabel="exact accuracy, %", ylim=(0, 101), title=title)
    axes.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")  # bars may reach to the top
    return save(figure, path, 130)
