"""Write every table of the README out of results/runs.jsonl, published values beside ours, and draw bar charts.

    python scripts/make_tables.py                          # README.md, results/TABLES.md and results/figures/*.png
    python scripts/make_tables.py --check                  # write nothing; exit 1 where a table is out of date
    python scripts/make_tables.py --runs my/runs.jsonl --file my_report.md

A file asks for a table by two comment lines, and what stands between them is replaced:

    <!-- table: injection -->
    <!-- /table -->

Published values come from results/published.json, which names its source. Ours are means over the training seeds of
full runs of the published recipes: other sizes are other experiments, and have the table `small`. A run that was not
done is an empty cell.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import statistics
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

if not __package__:
    import _checkout  # noqa: F401

from air_model.configuration_air import VARIANTS, AirConfig
from air_model.training_air import FREE_ON_RESUME, MODEL_FIELDS, all_seconds, read_recipe

ROOT = Path(__file__).resolve().parent.parent
SUITES = {
    "injection": ["L_Hx", "Lx_H", "L_H2x", "L2x_H", "Lx_H2x", "L2x_Hx", "Lx_Hx", "L2x_H2x", "HRM"],
    "level-token": ["L2x_H2x", "L2x_H2x_add", "L2x_H2x_prepend", "L2x_H2x_prepend_no_strip"],
    "operator": ["Lx_H", "minus_x", "gx_linear", "gx_nonlinear", "had_prod"],
}
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
# What a run may change and still count as a reproduction: nothing of it changes the method, the size or the budget.
# `data` is a path, and the same rows lie under many; that a run saw the right ones is for its author to say.
FREE = FREE_ON_RESUME - {"eval_data", "eval_split"} | {
    "variant", "seed", "run_name", "data", "mixed_precision", "compile", "activation_checkpointing", "accumulation",
}  # fmt: skip


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Finished runs, the newest of each (configuration, seed).

    Raises:
        ValueError: a line that is not JSON, or not a run record; names the line.
    """
    newest: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            run = json.loads(line)
            # How often it saved or logged does not make another run of it; what it was evaluated on does.
            told = FREE_ON_RESUME - {"eval_data", "eval_split", "eval_limit", "final_eval_limit"}
            key = json.dumps({k: v for k, v in run["config"].items() if k not in told}, sort_keys=True)
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


@functools.cache
def published_recipe(task: str, variant: str) -> dict[str, Any]:
    """Every key of the published recipe of a task for a variant, defaults written out; {} for other tasks."""
    name = {"sudoku": "sudoku_extreme", "maze": "maze_hard"}.get(task)
    if name is None or variant not in VARIANTS:
        return {}
    recipe = read_recipe(name, [f"variant={variant}"])
    model = {k: v for k, v in recipe.model.items() if k != "variant"}
    grid = {"sudoku": 9, "maze": 30}[task]
    config = AirConfig.from_variant(variant, **{"grid_height": grid, "grid_width": grid, **model})
    return {**dataclasses.asdict(recipe.train), **{key: getattr(config, key, None) for key in MODEL_FIELDS}}


def is_published_protocol(run: dict[str, Any]) -> bool:
    """Whether a run is a full run of the published recipe of its task (whatever its variant and seed)."""
    reference, config = published_recipe(run.get("task"), run["variant"]), run["config"]
    if not reference or config.get("hidden_size") is None:
        return False

    def same(key: str, value: Any) -> bool:
        if key == "train_size" and value is None:  # all that there are
            return ((run.get("data") or {}).get("train") or {}).get("n") in (None, reference[key])
        if value is None or value == "":  # left to its default
            return True
        if key in ("max_steps", "epochs"):  # the budget in either unit; the steps done are looked at below
            return True
        if key in ("l_layers", "h_layers") and value == reference["num_hidden_layers"]:  # the default, written out
            return True
        if key in ("eval_split", "eval_data"):  # of the test rows or the dev rows, never of those that were trained on
            return value in ("auto", "test", "dev", reference.get(key))
        if key == "atan2_scale" and run["variant"] == "HRM" and value == 1.0:  # that of HRM's own optimizer
            return True
        wanted = reference.get(key)
        return value == wanted or json.dumps(value, default=str) == json.dumps(wanted, default=str)

    plain = all(same(key, value) for key, value in config.items() if key not in FREE)
    # 20,000 epochs of 1,000 puzzles are 26,041 steps of 768, of which the public code makes 26,040.
    steps = run.get("steps")
    return plain and steps is not None and steps == run.get("max_steps") and abs(steps - reference["max_steps"]) <= 1


def share(percent: float) -> str:
    """A percentage with one decimal, or as many as keep 99.97 from being 100."""
    for digits in (1, 2, 3):
        text = f"{percent:.{digits}f}"
        if float(text) not in (0.0, 100.0) or percent in (0.0, 100.0):
            break
    return text


def summary(values: list[float]) -> str:
    """mean ± sample standard deviation; one value stands alone, none is an empty cell."""
    if not values:
        return ""
    mean = share(statistics.mean(values))
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def published_text(entry: dict[str, Any] | None) -> str:
    if not entry:
        return ""
    return f"{entry['mean']:.1f}" + (f" ± {entry['std']:.1f}" if "std" in entry else "")


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]], left: int = 1) -> str:
    """A Markdown table; the first `left` columns are left-aligned, the others right-aligned."""
    header = list(header)
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def full_runs(runs: list[dict[str, Any]], variant: str, task: str) -> list[tuple[float, int]]:
    """`accuracy` of the full runs of a variant, one a seed: the newest."""
    found = [r for r in runs if r["variant"] == variant and r["task"] == task and is_published_protocol(r)]
    by_seed = {r["seed"]: value for r in found if (value := accuracy(r)) is not None}
    return [by_seed[seed] for seed in sorted(by_seed)]


def ours(runs: list[dict[str, Any]], variant: str, task: str) -> list[float]:
    """Exact accuracies in percent of the full runs of a variant, one a seed."""
    return [percent for percent, _ in full_runs(runs, variant, task)]


def evaluated_on(counts: Iterable[int]) -> str:
    """How many puzzles stand behind the accuracies of several runs: '1,175' or '512 to 1,175'."""
    counts = sorted(set(counts))
    return " to ".join(f"{n:,}" for n in counts[:: max(1, len(counts) - 1)])


def with_counts(table: str, runs: list[dict[str, Any]], variants: Iterable[str], tasks: Iterable[str]) -> str:
    """The table, and below it on how many puzzles our runs were evaluated: a run may have looked at a part only."""
    lines = []
    for task in tasks:
        counts = {n for variant in variants for _, n in full_runs(runs, variant, task)}
        if counts:
            lines.append(f"Ours, {task}: each run evaluated on {evaluated_on(counts)} puzzles.")
    return "\n\n".join([table, *lines])


def injection_table(runs: list[dict[str, Any]], published: dict[str, Any]) -> str:
    rows = []
    groups = (("asymmetric", SUITES["injection"][:6]), ("symmetric", SUITES["injection"][6:8]), ("", ["HRM"]))
    for group, variants in groups:
        means: dict[tuple[str, str], list[float]] = {}
        for variant in variants:
            config = AirConfig.from_variant(variant)
            n_l, n_h = config.l_injection, config.h_injection
            code = variant == "HRM"
            cells = [f"`{variant}`" + (" (two networks)" if code else ""), n_l, n_h, abs(n_l - n_h)]
            for task in ("sudoku", "maze"):
                entry, values = published["injection"].get(variant, {}).get(task), ours(runs, variant, task)
                cells += [published_text(entry), summary(values), len(values) or ""]
                if entry:
                    means.setdefault((task, "published"), []).append(entry["mean"])
                if values:
                    means.setdefault((task, "ours"), []).append(statistics.mean(values))
            rows.append(cells)
        if group:
            cells = [f"*mean, {group}*", "", "", ""]
            for task in ("sudoku", "maze"):
                for who in ("published", "ours"):
                    complete = len(means.get((task, who), [])) == len(variants)
                    cells.append(f"*{statistics.mean(means[task, who]):.1f}*" if complete else "")
                cells.append("")
            rows.append(cells)
    header = [
        "variant",
        "n_L",
        "n_H",
        "Δ",
        "Sudoku, published",
        "Sudoku, ours",
        "n",
        "Maze, published",
        "Maze, ours",
        "n",
    ]
    return with_counts(markdown(header, rows), runs, SUITES["injection"], ("sudoku", "maze"))


def published_of(published: dict[str, Any], suite: str, variant: str, task: str) -> dict[str, Any] | None:
    """The published value; the operators' default rule was published with the injections."""
    entry = published.get(suite, {}).get(variant, {}).get(task)
    if entry is None and suite == "operator":
        return published.get("injection", {}).get(variant, {}).get(task)
    return entry


def suite_table(suite: str, runs: list[dict[str, Any]], published: dict[str, Any]) -> str:
    """Level tokens or operators; with columns for mazes, of which little was published, once there is a run."""
    variants = SUITES[suite]
    tasks = ["sudoku", *(["maze"] if any(ours(runs, v, "maze") for v in variants) else [])]
    rows = []
    for variant in variants:
        config = AirConfig.from_variant(variant)
        n_l, n_h = config.l_injection, config.h_injection
        cells = [f"`{variant}`", RULES[variant], n_l, n_h, abs(n_l - n_h)]
        for task in tasks:
            values = ours(runs, variant, task)
            cells += [
                published_text(published_of(published, suite, variant, task)),
                summary(values),
                len(values) or "",
            ]
        rows.append(cells)
    head = "level token" if suite == "level-token" else "what is injected"
    header = ["variant", head, "n_L", "n_H", "Δ"]
    for task in tasks:
        header += [f"{task.capitalize()}, published", f"{task.capitalize()}, ours", "n"]
    return with_counts(markdown(header, rows, left=2), runs, variants, tasks)


def scale_of(run: dict[str, Any]) -> tuple:
    """What two runs must share to stand in one table: everything but variant, seed, names and what a variant fixes."""
    own = {"variant", "seed", "run_name", "l_layers", "h_layers", "atan2_scale", *VARIANTS[run["variant"]]}
    config = {k: v for k, v in run["config"].items() if k not in own}
    return (run["task"], tuple(run["grid"]), json.dumps(config, sort_keys=True))


def small_sweeps(runs: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What the experiment is -> variant -> its runs: groups of runs that differ in variant and seed alone."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for run in runs:
        if run["variant"] in VARIANTS and accuracy(run) is not None and not is_published_protocol(run):
            groups.setdefault(scale_of(run), []).append(run)
    sweeps: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for (task, grid, _), members in groups.items():
        mine = {v: [r for r in members if r["variant"] == v] for v in VARIANTS}
        if sum(map(bool, mine.values())) < 2:
            continue
        config = members[0]["config"]
        what = f"{task} {grid[0]}x{grid[1]}, d {config.get('hidden_size', 512)}, {members[0]['steps']:,} steps"
        while what in sweeps:  # they differ in something that this name does not tell
            what += " (another recipe)"
        sweeps[what] = {variant: found for variant, found in mine.items() if found}
    return sweeps


def small_table(runs: list[dict[str, Any]], published: dict[str, Any]) -> str:
    """Own sweeps at other sizes."""
    rows = []
    for what, variants in small_sweeps(runs).items():
        for variant, mine in variants.items():
            values, counts = zip(*map(accuracy, mine))
            puzzles = evaluated_on(counts)
            full = AirConfig.from_variant(variant)
            injections = [full.l_injection, full.h_injection, abs(full.l_injection - full.h_injection)]
            rows.append([what, f"`{variant}`", *injections, summary(values), len(values), puzzles])
    header = ["experiment", "variant", "n_L", "n_H", "Δ", "exact, %", "n (seeds)", "puzzles"]
    return markdown(header, rows, left=2) if rows else ""


def runs_table(runs: list[dict[str, Any]], published: dict[str, Any]) -> str:
    """Every finished run: what it was, what it cost, what it reached."""
    rows = []
    for run in sorted(runs, key=lambda r: r["date"]):
        result, hardware = accuracy(run), run.get("hardware", {})
        best = (run.get("metrics") or {}).get("best") or {}
        tflops = run.get("tflops")
        rows.append([
            f"`{run['name']}`", f"{run['task']} {run['grid'][0]}x{run['grid'][1]}", f"`{run['variant']}`", run["seed"],
            f"{run['steps']:,}", f"{run['wall_seconds'] / 60:.1f}", hardware.get("device", ""),
            "" if tflops is None else f"{tflops:.3g}",
            "" if result is None else share(result[0]),
            "" if best.get("exact_accuracy") is None else share(100 * best['exact_accuracy']),
            "" if result is None else f"{result[1] or best.get('n', 0):,}", run["date"][:10],
        ])  # fmt: skip
    header = [
        "run", "task", "variant", "seed", "steps", "minutes", "hardware", "TFLOP/s", "exact at the end, %", "best, %",
        "puzzles", "date",
    ]  # fmt: skip
    return markdown(header, rows, left=3) if rows else ""


def checkpoints_table(runs: list[dict[str, Any]], published: dict[str, Any], folder: Path | None = None) -> str:
    """Every shipped checkpoint and each evaluation that lies beside it."""
    rows = []
    for path in sorted((folder or ROOT / "checkpoints").glob("*/config.json")):
        config, home = json.loads(path.read_text()), path.parent
        run = json.loads((home / "run.json").read_text()) if (home / "run.json").is_file() else {}
        cost = f"{all_seconds(run) / 60:.0f} min, {run['hardware']['device']}" if run.get("wall_seconds") else ""
        size = f"{run['parameters'] / 1e6:.2f} M" if run.get("parameters") else ""
        name = f"[`{home.name}`](checkpoints/{home.name})"
        what = f"{config['task']} {config['grid_height']}x{config['grid_width']}"
        found = []
        for file in sorted(home.rglob("*.json")):
            content = json.loads(file.read_text())
            content = content if isinstance(content, dict) else {}
            found += [
                e for e in (content, *content.values()) if isinstance(e, dict) and "exact_accuracy" in e and "n" in e
            ]
        found = [e for e in found if e.get("halt") or (e.get("settings") or {}).get("halt")]
        for entry in found or [{}]:
            settings = {**entry, **(entry.get("settings") or {})}
            attempts = settings.get("attempts") or 1
            how = "" if not entry else ("all steps" if settings.get("halt") == "max" else "adaptive halting")
            most = settings.get("max_act_steps")
            how += f", {most} at most" if most and most != config.get("halt_max_steps", most) else ""
            how += f", {attempts} attempts" if attempts > 1 else ""
            percent = [entry.get(k) for k in ("exact_accuracy", "valid_accuracy")]
            rows.append([
                name, what, size, Path(str(settings.get("data", ""))).name, how,
                f"{entry['n']:,}" if entry else "", *("" if p is None else share(100 * p) for p in percent),
                "" if entry.get("mean_act_steps") is None else f"{entry['mean_act_steps']:.1f}", cost,
            ])  # fmt: skip
    header = [
        "checkpoint", "task", "parameters", "evaluated on", "how", "n", "exact, %", "valid, %", "ACT steps",
        "training",
    ]  # fmt: skip
    return markdown(header, rows, left=2) if rows else ""


def attention_table(runs: list[dict[str, Any]], published: dict[str, Any]) -> str:
    names = ("delta_nbr", "delta_ent", "delta_viol")
    rows = [
        [layer, *(f"{entry[name][0]:.3f} ± {entry[name][1]:.3f}" for name in names)]
        for layer, entry in published["attention"].items()
        if layer != "unit"
    ]
    return markdown(["layer", "Δ_nbr (control)", "Δ_ent (control)", "Δ_viol (violation-adjacent)"], rows)


def freeze_table(runs: list[dict[str, Any]], published: dict[str, Any]) -> str:
    rows = []
    for task in ("sudoku", "maze"):
        for name, entry in published["freeze"][task].items():
            rows.append([task, name.replace("_", " "), *(entry.get(k, "") for k in ("z_l", "z_h", "accuracy"))])
    return markdown(["task", "intervention", "z_L changes", "z_H changes", "final accuracy, %"], rows, left=2)


TABLES = {
    "checkpoints": checkpoints_table,
    "injection": injection_table,
    "level-token": lambda runs, published: suite_table("level-token", runs, published),
    "operator": lambda runs, published: suite_table("operator", runs, published),
    "small": small_table,
    "runs": runs_table,
    "published-attention": attention_table,
    "published-freeze": freeze_table,
}
TITLES = {
    "checkpoints": "Shipped checkpoints",
    "injection": "Injection asymmetry: exact accuracy in %, mean ± standard deviation over n training seeds",
    "level-token": "Level tokens on the symmetric base: exact accuracy in %",
    "operator": "Operators on the injected puzzle: exact accuracy in %",
    "small": "Own sweeps at other sizes (not comparable with the published numbers)",
    "runs": "Every finished run",
    "published-attention": "Published attention contrasts, Sudoku",
    "published-freeze": "Published freeze study: content changes per puzzle",
}


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
    return pattern.sub(lambda m: m[1] + (f"{tables[m[2]]}\n" if tables[m[2]] else "") + m[3], text)


def bar_charts(runs: list[dict[str, Any]], published: dict[str, Any], folder: Path) -> list[Path]:
    """One chart a suite and task, published bars beside ours, and one an own sweep; none where there is nothing."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []

    def finish(figure: Any, variants: Collection[str], title: str, name: str) -> None:
        axes = figure.axes[0]
        axes.set_xticks(range(len(variants)), variants, rotation=30, ha="right", fontsize=8)
        axes.set(ylabel="exact accuracy, %", ylim=(0, 101), title=title)
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")  # bars may reach to the top
        axes.spines[["top", "right"]].set_visible(False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / name, dpi=130, metadata={"Software": None})
        plt.close(figure)
        written.append(folder / name)

    for suite, variants in SUITES.items():
        for task in ("sudoku", "maze"):
            theirs = {v: published_of(published, suite, v, task) for v in variants}
            mine = {v: ours(runs, v, task) for v in variants}
            own = any(published.get(suite, {}).get(v, {}).get(task) for v in variants)
            if not own and not any(mine.values()):
                continue
            figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
            for i, variant in enumerate(variants):
                if entry := theirs[variant]:
                    axes.bar(i - 0.2, entry["mean"], 0.38, yerr=entry.get("std"), color="#999999", capsize=2)
                if values := mine[variant]:
                    spread = statistics.stdev(values) if len(values) > 1 else None
                    axes.bar(i + 0.2, statistics.mean(values), 0.38, yerr=spread, color="#D55E00", capsize=2)
                    axes.text(i + 0.2, 1, f"n={len(values)}", ha="center", fontsize=6, color="white")
            if any(theirs.values()):  # the published value of HRM alone comes without a spread
                axes.bar(0, 0, color="#999999", label="published, ± s.d.\nof 5 seeds")
            if any(mine.values()):
                axes.bar(0, 0, color="#D55E00", label="ours")
            finish(figure, variants, f"{suite}, {task}", f"{suite}_{task}.png")
    for what, variants in small_sweeps(runs).items():
        figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
        for i, mine in enumerate(variants.values()):
            values = [accuracy(r)[0] for r in mine]
            axes.bar(i, statistics.mean(values), 0.6, color="#D55E00", label=None if i else "mean")
            axes.plot([i] * len(values), values, "o", color="black", markersize=3, label=None if i else "a seed")
        slug = re.sub(r"[^a-z0-9]+", "_", what.replace(",", "").lower()).strip("_")
        finish(figure, variants, what, f"sweep_{slug}.png")
    return written


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="run records; default: results/runs.jsonl")
    parser.add_argument("--published", type=Path, default=ROOT / "results" / "published.json")
    parser.add_argument("--file", type=Path, action="append", help="a file with markers; default: README.md")
    parser.add_argument("--tables", type=Path, default=ROOT / "results" / "TABLES.md", help="all tables in one file")
    parser.add_argument("--figures", type=Path, default=ROOT / "results" / "figures", help="folder of the bar charts")
    parser.add_argument("--no-figures", action="store_true")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 where something is out of date")
    arguments = parser.parse_args(argv)
    files = arguments.file or [ROOT / "README.md"]
    try:
        if arguments.runs is not None and not arguments.runs.is_file():
            raise ValueError(f"--runs {arguments.runs}: there is no such file. Nothing was written.")
        runs, published = (
            read_runs(arguments.runs or ROOT / "results" / "runs.jsonl"),
            json.loads(arguments.published.read_text()),
        )
        tables = {name: make(runs, published) for name, make in TABLES.items()}
        page = (
            "# Tables\n\nWritten by `scripts/make_tables.py`; do not edit. Published values: "
            + published["source"]
            + ".\n"
        )
        for name, table in tables.items():
            page += f"\n## {TITLES[name]}\n\n{table or 'No run yet.'}\n"
        wanted = {path: fill(path.read_text(), tables, path.name) for path in files}
    except (ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # The tables' links are the README's; this page lies elsewhere.
    up = os.path.relpath(ROOT, arguments.tables.resolve().parent)
    wanted[arguments.tables] = page.replace("](checkpoints/", f"]({up}/checkpoints/")
    arguments.tables.parent.mkdir(parents=True, exist_ok=True)
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text() != text]
    if arguments.check:
        for path in stale:
            print(f"{path} is out of date: run python scripts/make_tables.py")
        return 1 if stale else 0
    for path in stale:
        write(path, wanted[path])
        print(f"wrote {path}")
    if not arguments.no_figures:
        for path in bar_charts(runs, published, arguments.figures):
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
