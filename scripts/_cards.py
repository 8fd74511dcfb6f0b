"""Model cards: the template `model_card.md`, filled from a checkpoint's own config, run record and evaluations.

No number here is typed by hand. What was not measured is said to be not measured.
"""

import re
from pathlib import Path, PurePath
from typing import Any

from air_model.configuration_air import AirConfig
from air_model.records import all_seconds

TEMPLATE = Path(__file__).resolve().parent.parent / "model_card.md"
# Upper limits of board power in watts, from the vendors' data sheets; energy is bounded by them where not measured.
BOARD_WATTS = {"H200": 700, "H100 PCIe": 350, "H100": 700, "A100": 400, "L40S": 350, "RTX 5090": 575, "RTX 4090": 450}
# Data sets whose names are certainly Hub ids; a name like "data/mine" may as well be a folder.
HUB_DATASETS = {"sapientinc/sudoku-extreme", "sapientinc/maze-30x30-hard-1k"}
PERCENT = {"exact_accuracy": "exact", "valid_accuracy": "valid by the rules", "cell_accuracy": "cells"}
METRIC_NAMES = {
    "exact_accuracy": "Exact accuracy (whole grid)",
    "valid_accuracy": "Valid accuracy (accepted by the rules)",
    "cell_accuracy": "Cell accuracy",
}


def example_text(config: AirConfig) -> str:
    from air_model.scripts._release import example_puzzle

    return example_puzzle(config) or "." * config.seq_len


def load_lines(config: AirConfig, repo_id: str, revision: str | None = None) -> str:
    """Five lines that load a model and solve with it."""
    pin = f', revision="{revision}"' if revision else ""
    return "\n".join(
        [
            "from transformers import AutoModel, AutoProcessor",
            f'model = AutoModel.from_pretrained("{repo_id}"{pin}, trust_remote_code=True)',
            f'processor = AutoProcessor.from_pretrained("{repo_id}"{pin}, trust_remote_code=True)',
            f'solution = model.solve(**processor("{example_text(config)}"))',
            "print(processor.format(solution.predictions[0]))",
        ]
    )


def setting(evaluation: dict[str, Any], *names: str) -> Any:
    """A setting of an evaluation file, at its top or under `settings`; None where it is not recorded."""
    for place in (evaluation, evaluation.get("settings") or {}):
        for name in names:
            if place.get(name) is not None:
                return place[name]
    return None


def protocol(evaluation: dict[str, Any], run: dict[str, Any] | None) -> dict[str, Any]:
    """How an evaluation was made, in the words of the card: what decides whether two numbers compare."""
    halt = setting(evaluation, "halt")
    facts = {
        "n": evaluation["n"],
        "split": setting(evaluation, "split"),
        "training_seed": None if run is None else run.get("seed"),
        "max_act_steps": setting(evaluation, "max_act_steps"),
        "mean_act_steps": setting(evaluation, "mean_act_steps"),
        "halt": halt,
        "attempts": setting(evaluation, "attempts"),
        "noise": setting(evaluation, "noise"),
        "evaluation_seed": setting(evaluation, "seed"),
        "limit": setting(evaluation, "limit"),
        "dtype": setting(evaluation, "dtype"),
    }
    if halt is not None:
        facts["protocol"] = "all ACT steps (published)" if halt == "max" else "adaptive halting"
    return {key: value for key, value in facts.items() if value is not None}


def data_name(evaluation: dict[str, Any]) -> str:
    """The data set by its name: the folder that it lay in on some machine tells a reader nothing."""
    data = setting(evaluation, "data", "dataset")
    if not data or data in HUB_DATASETS:
        return str(data) if data else "unnamed data"
    name = PurePath(str(data)).name
    return {"sudoku_extreme": "Sudoku-Extreme", "maze_hard": "Maze-30x30-Hard"}.get(name, name)


def during_training(run: dict[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """The best evaluation that the training run made on its subset, where there is no other measurement."""
    best = ((run or {}).get("metrics") or {}).get("best")
    if not best or not best.get("n"):
        return None
    source = (((run or {}).get("data") or {}).get("eval") or {}).get("source", "the run's evaluation split")
    return "run.json", {
        **best,
        "data": source,
        "halt": "max",
        "split": "evaluation subset during training; the checkpoint was chosen by it",
    }


def eval_results(evaluations: list[tuple[str, dict[str, Any]]], run: dict[str, Any] | None) -> list[Any]:
    """The measurements as entries of the card's `model-index`."""
    from huggingface_hub import EvalResult

    results = []
    for name, evaluation in evaluations:
        facts = protocol(evaluation, run)
        data = data_name(evaluation)
        label = ", ".join(f"{key} {value}" for key, value in facts.items() if key in ("halt", "attempts", "limit"))
        for metric, title in METRIC_NAMES.items():
            if evaluation.get(metric) is not None:
                results.append(
                    EvalResult(
                        task_type="puzzle-solving",
                        task_name="Puzzle solving",
                        dataset_type=data if data in HUB_DATASETS else "local",
                        dataset_name=data,
                        dataset_split=facts.get("split"),
                        # Results are merged by data and metric; the protocol keeps two evaluations apart.
                        dataset_config=name.removesuffix(".json"),
                        metric_type=metric,
                        metric_name=f"{title} ({label})" if label else title,
                        metric_value=round(float(evaluation[metric]), 6),
                        metric_args=facts,
                        # A source needs a URL of its own; the files lie in results/.
                    )
                )
    return results


def front_matter(
    config: AirConfig,
    repo_id: str,
    run: dict[str, Any] | None,
    evaluations: list[tuple[str, dict[str, Any]]],
    datasets: list[str],
) -> str:
    """The YAML block on top of the card; `datasets` are Hub ids that the publisher names."""
    from huggingface_hub import ModelCardData

    sources = [((run or {}).get("config") or {}).get("data")]
    sources += [setting(evaluation, "data", "dataset") for _, evaluation in evaluations]
    fields = {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "puzzle-solving",
        "tags": ["air", "puzzle-solving", "reasoning", "recursive-reasoning", config.task, "arxiv:2605.17811"],
        "datasets": sorted({*datasets, *(source for source in sources if source in HUB_DATASETS)}) or None,
        "metrics": ["accuracy"],
    }
    if results := eval_results(evaluations, run):
        fields |= {"model_name": repo_id.split("/")[-1], "eval_results": results}
    return ModelCardData(**{k: v for k, v in fields.items() if v is not None}).to_yaml()


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def with_interval(evaluation: dict[str, Any], metric: str) -> str:
    """A share with its 95 % interval, as far as they were measured."""
    if evaluation.get(metric) is None:
        return ""
    low_high = evaluation.get(f"{metric}_ci95")
    interval = f" ({100 * low_high[0]:.2f}–{100 * low_high[1]:.2f})" if low_high else ""
    return percent(evaluation[metric]) + interval


def measured_text(evaluations: list[tuple[str, dict[str, Any]]], run: dict[str, Any] | None) -> str:
    """A table with a row per evaluation file, or the sentence that there is none."""
    if not evaluations:
        return "**Nothing was measured**: no evaluation file came with this checkpoint, so this card makes no claim."
    columns = ["file", "data", "n", *PERCENT.values(), "protocol", "mean ACT steps", "training seed"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for name, evaluation in evaluations:
        facts = protocol(evaluation, run)
        how = [facts.get("protocol", "not recorded")]
        how += [f"{facts[key]} {word}" for key, word in (("max_act_steps", "steps at most"), ("attempts", "attempts"))
                if key in facts]  # fmt: skip
        values = [with_interval(evaluation, key) for key in PERCENT]
        steps = facts.get("mean_act_steps")
        where = f"`{name}`" if name == "run.json" else f"`results/{name}`"
        data = " ".join(str(x) for x in (data_name(evaluation), facts.get("split", "")) if x)
        row = [where, data, f"{evaluation['n']:,}", *values, ", ".join(how)]
        row += ["" if steps is None else f"{steps:.2f}", str(facts.get("training_seed", ""))]
        lines.append("| " + " | ".join(row) + " |")
    for name, evaluation in evaluations:
        if rows := [row for row in evaluation.get("by_rating") or [] if row.get("n")]:
            lines += ["", f"By rating (`{name}`):", "", "| rating | n | exact |", "|---|---|---|"]
            for row in rows:
                exact = with_interval({"exact": row["exact_accuracy"], "exact_ci95": row.get("ci95")}, "exact")
                lines.append(f"| {row['rating']} | {row['n']:,} | {exact} |")
    lines += [
        "",
        "Exact: the whole grid equals the label. Valid: the rules of the puzzle accept the answer, whatever the label;"
        " for mazes that means a connected shortest path. Empty cells were not measured. Intervals are 95 %.",
    ]
    return "\n".join(lines)


def architecture_text(config: AirConfig, counts: dict[str, int]) -> str:
    rule = f"Variant `{config.variant}`" if config.variant else "A combination of options without a name of its own"
    dtypes = ", ".join(sorted(key for key in counts if key != "parameters"))
    layers = str(config.num_hidden_layers)
    if not config.shared_block:
        layers = f"{config.l_layers or layers} and {config.h_layers or layers}"
    relations = f", heads that see {', '.join(config.head_relations)} (in turn)" if config.head_relations else ""
    stacks = "one shared stack" if config.shared_block else "separate stacks for L and H"
    return (
        f"{rule}: {counts['parameters']:,} parameters ({dtypes}), {stacks} of {layers} "
        f"layers, width {config.hidden_size}, {config.num_attention_heads} heads, {config.position_embedding} "
        f"positions{', row/column/box embeddings' if config.cell_embedding else ''}"
        f"{relations}. One ACT step runs the updates "
        f"`{config.schedule}`; L-updates see the puzzle {config.l_injection} times, H-updates {config.h_injection} "
        f'times. The published protocol runs {config.halt_max_steps} ACT steps; `halt="q"` stops earlier, '
        "puzzle by puzzle."
    )


def sizes_text(config: AirConfig) -> str:
    """Which grids it computes: its own size, and where no weight belongs to a cell others as well."""
    from air_model.pipeline_air import takes_size
    from air_model.processing_air import make_task

    own = f"grids of {config.grid_height} x {config.grid_width} cells"
    if config.task == "maze" and takes_size(config, make_task("maze", config.grid_height + 1, config.grid_width + 1)):
        return f"{own} (and, less surely, of other sizes: see what was measured)"
    return own


def limits_text(config: AirConfig, evaluations: list[tuple[str, dict[str, Any]]], run: dict[str, Any] | None) -> str:
    """What is known to fail, from the evaluations; what is not known is said to be unknown."""
    lines = []
    train = ((run or {}).get("data") or {}).get("train") or {}
    if train.get("n"):
        lines.append(f"- Trained on {train['n']:,} puzzles; other distributions of difficulty were not part of it.")
    for name, evaluation in evaluations:
        # A maze has many shortest paths: an answer that is another one than the label's is no failure.
        by_rules = config.task == "maze" and evaluation.get("valid_accuracy") is not None
        wrong = 1 - evaluation["valid_accuracy" if by_rules else "exact_accuracy"]
        how = protocol(evaluation, run).get("protocol", "protocol not recorded")
        where = f"{data_name(evaluation)} ({how}; {name})"
        lines.append(f"- Fails on {percent(wrong)} of the {evaluation['n']:,} puzzles of {where}.")
        if rows := [row for row in evaluation.get("by_rating") or [] if row.get("n")]:
            worst = min(rows, key=lambda row: row["exact_accuracy"])
            share = f"{percent(worst['exact_accuracy'])} exact (n = {worst['n']:,})"
            lines.append(f"- Weakest at ratings {worst['rating']}: {share}.")
    if not evaluations:
        lines.append("- Where it fails was not measured.")
    lines.append(
        f"- It takes {sizes_text(config)} of this task only, and it always answers: a"
        " wrong answer looks like a right one. Let the rules decide (`valid`), not the confidence."
    )
    return "\n".join(lines)


def training_text(run: dict[str, Any] | None) -> str:
    if run is None:
        return "No run record (`run.json`) came with this checkpoint: its training data and recipe are not documented."
    train = (run.get("data") or {}).get("train") or {}
    config = run.get("config") or {}
    source = config["data"] if config.get("data") in HUB_DATASETS else train.get("source", "not recorded")
    lines = [f"- Data: {source}, {train.get('n', 0):,} puzzles"
             f" (fingerprint `{train.get('fingerprint', 'not recorded')}`)."]  # fmt: skip
    if config.get("augment"):
        most = config.get("easier_most", 1.0)
        lines.append(
            f"- Augmentation: {config['augment']}; easier copies: {config.get('easier_share', 0)} of the batch"
            + ("." if most == 1.0 else f", which show at most {most:g} of the open cells.")
        )
    earlier, before = run.get("earlier_runs") or [], config.get("start_step") or 0
    if earlier:
        parts = ", ".join(f"`{part.get('name')}` ({part.get('steps') or 0:,} steps)" for part in earlier)
        total = sum(part.get("steps") or 0 for part in earlier) + run.get("steps", 0) - before
        lines.append(
            f"- It went on from the weights of earlier runs: {parts}; {total:,} steps in all. What follows, and the"
            " data above, are of the last run."
        )
    lines.append(
        f"- {run.get('steps', 0):,} optimizer steps in batches of {config.get('batch_size', '?')}, optimizer "
        f"{config.get('optimizer', 'not recorded')}, learning rate {config.get('lr', 'not recorded')}, seed "
        f"{run.get('seed', 'not recorded')}; status: {run.get('status', 'not recorded')}."
    )
    lines.append("- Everything else: `run.json` in this repository.")
    return "\n".join(lines)


def cost_text(run: dict[str, Any] | None) -> str:
    """Hours from the run record; energy where it was measured, else a bound from the board's power, else unknown."""
    if run is None or not run.get("wall_seconds"):
        return "Not recorded."
    hardware = run.get("hardware") or {}
    device, processes = str(hardware.get("device", "unknown hardware")), hardware.get("processes") or 1
    hours = all_seconds(run) / 3600 * processes
    watts = next((watts for name, watts in BOARD_WATTS.items() if all(part in device for part in name.split())), None)
    gpu = watts is not None or "NVIDIA" in device
    text = f"{hours:.2f} {'GPU' if gpu else 'CPU process'} hours ({processes} × {device}). "
    if run.get("energy_kwh") is not None:
        return text + f"Measured energy: {run['energy_kwh']:.2f} kWh."
    if watts is not None:
        return (
            text
            + f"Energy was not measured; at the boards' power limit of {watts} W it is at most "
            + (f"{hours * watts / 1000:.2f} kWh (boards only).")
        )
    return text + "Energy was not measured."


def model_card(
    config: AirConfig,
    counts: dict[str, int],
    run: dict[str, Any] | None,
    evaluations: list[tuple[str, dict[str, Any]]],
    pictures: list[tuple[str, str]],
    repo_id: str,
    datasets: list[str],
) -> str:
    """The README.md of a model repository.

    Args:
        counts: `parameters` and tensors per dtype, as read from the weights.
        run: the run record, evaluations: (file name, contents), both without machine paths.
        pictures: (path in the repository, caption).
    """
    if not evaluations and (fallback := during_training(run)):
        evaluations = [fallback]
    task = {"sudoku": "Sudokus", "maze": "mazes"}.get(config.task, "puzzles")
    size = f"{config.grid_height} x {config.grid_width}"
    values = {
        "name": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "summary": (
            f"An AIR model (Asymmetric Input Recurrence, [arXiv:2605.17811](https://arxiv.org/abs/2605.17811)) for "
            f"{size} {task}: a Transformer of two states that is applied again and again until it wants to stop."
        ),
        "load_lines": load_lines(config, repo_id),
        "example": example_text(config),
        "figures": "\n\n".join(f"![{caption}]({path})\n\n*{caption}*" for path, caption in pictures),
        "measured": measured_text(evaluations, run),
        "architecture": architecture_text(config, counts),
        "puzzles": f"{size} {task}",
        "sizes": sizes_text(config),
        "limits": limits_text(config, evaluations, run),
        "training": training_text(run),
        "cost": cost_text(run),
        "version": AirConfig.code_version,
        "release_title": "AIR in transformers",
    }
    text = TEMPLATE.read_text()

    def fill(match: re.Match) -> str:
        if match[1] not in values:
            raise ValueError(f"model_card.md asks for {match[1]!r}, which no one fills. Known: {sorted(values)}.")
        return values[match[1]]

    body = re.sub(r"\{\{(\w+)\}\}", fill, text)
    return f"---\n{front_matter(config, repo_id, run, evaluations, datasets)}\n---\n\n" + re.sub(
        r"\n{3,}", "\n\n", body
    )
