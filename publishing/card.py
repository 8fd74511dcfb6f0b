"""Model cards: the template `model_card.md`, filled from a checkpoint's own config, run record and evaluations.

No number here is typed by hand. What was not measured is said to be not measured.
"""

from pathlib import Path, PurePath
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from air_model.analysis.leaderboard import Evaluation
from air_model.configuration_air import AirConfig
from air_model.pipeline_air import takes_size
from air_model.processing_air import make_task, task_from_config
from air_model.records import all_seconds, read_json
from air_model.spaces_demo.examples import new_puzzle, usual_level

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "model_card.md"
# Upper limits of board power in watts, from the vendors' data sheets; energy is bounded by them where not measured.
BOARD_WATTS = {"H200": 700, "H100 PCIe": 350, "H100": 700, "A100": 400, "L40S": 350, "RTX 5090": 575, "RTX 4090": 450}
# Data sets whose names are certainly Hub ids; a name like "data/mine" may as well be a folder.
HUB_DATASETS = {"sapientinc/sudoku-extreme", "sapientinc/maze-30x30-hard-1k"}
DATASET_NAMES = {"": "unnamed data", "sudoku_extreme": "Sudoku-Extreme", "maze_hard": "Maze-30x30-Hard"}
METRICS = {  # name in an evaluation: column of the table, title on the Hub
    "exact_accuracy": ("exact", "Exact accuracy (whole grid)"),
    "valid_accuracy": ("valid by the rules", "Valid accuracy (accepted by the rules)"),
    "cell_accuracy": ("cells", "Cell accuracy"),
}
# What of an evaluation decides whether two numbers compare.
PROTOCOL = ("n", "split", "max_act_steps", "mean_act_steps", "halt", "attempts", "retry", "noise", "limit", "dtype")
INPUTS = {  # input_operator: what is put into an update
    "identity": "the", "negate": "minus the", "linear": "a learned linear map of the",
    "tanh_linear": "tanh of a learned linear map of the", "hadamard": "the sum of both states, multiplied by the",
}  # fmt: skip
TOKENS = {"add": "added to every position", "prepend_strip": "before the state", "prepend_keep": "kept in the state"}
Record = dict[str, Any]


def model_card(
    config: AirConfig,
    counts: dict[str, int],
    run: Record | None,
    evaluations: dict[str, Record],
    pictures: list[tuple[str, str]],
    repo_id: str,
    datasets: list[str],
) -> str:
    """The README.md of a model repository.

    Args:
        counts: `parameters` and tensors per dtype, as read from the weights.
        run: the run record, evaluations: by name, both without machine paths.
        pictures: (path in the repository, caption).
        datasets: Hub ids that the publisher names.
    """
    measured = {name: Evaluation(values, config.halt_max_steps) for name, values in evaluations.items()}
    measured = measured or during_training(config, run)
    name, sources = repo_id.split("/")[-1], [((run or {}).get("config") or {}).get("data")]
    sources += [one.data for one in measured.values()]
    front_matter = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="puzzle-solving",
        tags=["air", "puzzle-solving", "reasoning", "recursive-reasoning", config.task, "arxiv:2605.17811"],
        datasets=sorted({*datasets, *(source for source in sources if source in HUB_DATASETS)}) or None,
        metrics=["accuracy"],
        model_name=name if measured else None,
        eval_results=eval_results(measured, run) or None,
    )
    size, task = f"{config.grid_height} x {config.grid_width}", {"sudoku": "Sudokus", "maze": "mazes"}.get(config.task)
    puzzles = f"{size} {task or 'puzzles'}"
    layers = str(config.num_hidden_layers)
    rule = f"Rule `{config.injection}`, own options" if config.injection else "An own rule"
    card = ModelCard.from_template(
        front_matter,
        template_path=TEMPLATE,
        name=name,
        repo_id=repo_id,
        load_lines=load_lines(config, repo_id),
        example=example_text(config),
        pictures=pictures,
        measured=measured,
        metrics=METRICS,
        data_name=data_name,
        how=how_text,
        interval=with_interval,
        rated=rated,
        seed=(run or {}).get("seed", ""),
        rule=f"Variant `{config.variant}`" if config.variant else rule,
        injection=injection_text(config),
        config=config,
        counts=counts,
        dtypes=", ".join(sorted(key for key in counts if key != "parameters")),
        layers=layers if config.shared_block else f"{config.l_layers or layers} and {config.h_layers or layers}",
        roles=roles_text(name),
        puzzles=puzzles,
        sizes=sizes_text(config),
        limits=limits_text(config, measured, run),
        training=training_text(run),
        cost=cost_text(run),
        version=AirConfig.code_version,
    )
    return str(card) + "\n"


def injection_text(config: AirConfig) -> str:
    """What the two updates get besides the states."""
    text = f"L-updates get {INPUTS[config.input_operator]} encoded puzzle times {config.l_injection:g}, "
    text += f"H-updates times {config.h_injection:g}"
    token = TOKENS.get(config.level_token)
    return f"{text}; a learned token, {token}, tells them apart" if token else text


def example_puzzle(config: AirConfig) -> str | None:
    """A puzzle of the model's size that nobody has to supply: one of the Space's, always the same one."""
    task = task_from_config(config)
    # Larger Sudokus take minutes to generate.
    if task.name not in ("sudoku", "maze") or (task.name == "sudoku" and task.height > 16):
        return None
    return task.decode(new_puzzle(task, usual_level(task), np.random.default_rng(0)))


def example_text(config: AirConfig) -> str:
    return example_puzzle(config) or ("1" if config.task == "grid" else ".") * config.seq_len  # blank cells


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


def data_name(evaluation: Evaluation) -> str:
    """The data set by its name: the folder that it lay in on some machine tells a reader nothing."""
    data = str(evaluation.data or evaluation.dataset or "")
    name = data if data in HUB_DATASETS else PurePath(data).name
    return DATASET_NAMES.get(name, name)


def how_text(evaluation: Evaluation) -> str:
    return "protocol not recorded" if evaluation.halt is None else evaluation.how


def during_training(config: AirConfig, run: Record | None) -> dict[str, Evaluation]:
    """The best evaluation that the training run made on its subset, where there is no other measurement."""
    best = ((run or {}).get("metrics") or {}).get("best")
    if not best or not best.get("n"):
        return {}
    source = (((run or {}).get("data") or {}).get("eval") or {}).get("source", "the run's evaluation split")
    split = "evaluation subset during training; the checkpoint was chosen by it"
    return {"run": Evaluation({**best, "data": source, "halt": "max", "split": split}, config.halt_max_steps)}


def eval_results(evaluations: dict[str, Evaluation], run: Record | None) -> list[Any]:
    """The measurements as entries of the card's `model-index`."""
    results = []
    for name, one in evaluations.items():
        facts = {key: getattr(one, key) for key in PROTOCOL} | {"evaluation_seed": one.seed}
        facts |= {"training_seed": (run or {}).get("seed"), "single_pass": one.is_single_pass}
        data = data_name(one)
        for metric, (_, title) in METRICS.items():
            if getattr(one, metric) is not None:
                results.append(
                    EvalResult(
                        task_type="puzzle-solving",
                        task_name="Puzzle solving",
                        dataset_type=data if data in HUB_DATASETS else "local",
                        dataset_name=data,
                        dataset_split=one.split,
                        # Results are merged by data and metric; the name keeps two evaluations apart.
                        dataset_config=name,
                        metric_type=metric,
                        metric_name=f"{title} ({how_text(one)})",
                        metric_value=round(float(getattr(one, metric)), 6),
                        metric_args={key: value for key, value in facts.items() if value is not None},
                        # A source needs a URL of its own; the files lie in results/.
                    )
                )
    return results


def with_interval(share: float | None, low_high: list[float] | None) -> str:
    """A share in percent with its 95 % interval, as far as they were measured."""
    if share is None:
        return ""
    return f"{100 * share:.2f} %" + (f" ({100 * low_high[0]:.2f}–{100 * low_high[1]:.2f})" if low_high else "")


def rated(evaluation: Evaluation) -> list[Record]:
    """Buckets of difficulty, where there is more than one."""
    rows = [row for row in evaluation.by_rating or [] if row.get("n")]
    return rows if len(rows) > 1 else []


def roles_text(name: str, studies: Path = ROOT / "results" / "studies") -> str:
    """What its two states do, where this checkpoint was studied (docs/findings.md)."""
    study = studies / f"{name}.json"
    if not study.is_file():
        return ""
    from air_model.analysis.findings import say_roles  # needs matplotlib

    return f"\n\n{say_roles(read_json(study))}"


def sizes_text(config: AirConfig) -> str:
    """Which grids it computes: its own size, and where no weight belongs to a cell others as well."""
    own = f"grids of {config.grid_height} x {config.grid_width} cells"
    if config.task == "maze" and takes_size(config, make_task("maze", config.grid_height + 1, config.grid_width + 1)):
        return f"{own} (and, less surely, of other sizes: see what was measured)"
    return own


def limits_text(config: AirConfig, evaluations: dict[str, Evaluation], run: Record | None) -> str:
    """What is known to fail, from the evaluations; what is not known is said to be unknown."""
    lines = []
    train = ((run or {}).get("data") or {}).get("train") or {}
    if train.get("n"):
        last = " last" if run.get("earlier_runs") else ""  # what those saw is not part of this record
        lines.append(
            f"- Trained{last} on {train['n']:,} puzzles; other distributions of difficulty were not part of it."
        )
    for name, one in evaluations.items():
        # A maze has many shortest paths: an answer that is another one than the label's is no failure.
        wrong = 1 - (one.solved if config.task == "maze" else one.exact_accuracy)
        where = f"{data_name(one)} ({how_text(one)}; {name}.json)"
        lines.append(f"- Fails on {with_interval(wrong, None)} of the {one.n:,} puzzles of {where}.")
        if wrong and (rows := rated(one)):
            worst = min(rows, key=lambda row: row["exact_accuracy"])
            share = f"{with_interval(worst['exact_accuracy'], None)} exact (n = {worst['n']:,})"
            lines.append(f"- Weakest at ratings {worst['rating']}: {share}.")
    if not evaluations:
        lines.append("- Where it fails was not measured.")
    lines.append(
        f"- It takes {sizes_text(config)} of this task only and always answers: a wrong answer looks like a right one."
        f" {'Only labels tell' if config.task == 'grid' else 'Let the rules decide (`valid`)'}, not the confidence."
    )
    if config.task == "sudoku":
        lines.append(
            "- A classical solver needs microseconds for such a puzzle (the project's own answers 24,400 of"
            " Sudoku-Extreme in a second on two cores). What this model shows is how far beliefs that were learned"
            " from examples carry; it was never told a rule."
        )
    return "\n".join(lines)


def training_text(run: Record | None) -> str:
    if run is None:
        return "No run record (`run.json`) came with this checkpoint: its training data and recipe are not documented."
    train = (run.get("data") or {}).get("train") or {}
    config = run.get("config") or {}
    source = config["data"] if config.get("data") in HUB_DATASETS else train.get("source", "not recorded")
    lines = [f"- Data: {source}, {train.get('n', 0):,} puzzles"
             f" (fingerprint `{train.get('fingerprint', 'not recorded')}`)."]  # fmt: skip
    if augment := config.get("augment"):
        augment = "none" if run.get("task") == "grid" else augment  # of a generic grid no symmetry is known
        most = config.get("easier_most", 1.0)
        lines.append(
            f"- Augmentation: {augment}; easier copies: {config.get('easier_share', 0)} of the batch"
            + ("." if most == 1.0 else f", which show at most {most:g} of the open cells.")
        )
    if config.get("lattices"):
        lines.append(
            "- Learned on candidate lattices: what cells may still hold, narrowed down by the model itself, as far as"
            " that goes without a guess, and by guesses of its own."
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


def cost_text(run: Record | None) -> str:
    """Hours from the run record; of energy a bound from the board's power, where that is known."""
    if run is None or not run.get("wall_seconds"):
        return "Not recorded."
    hardware = run.get("hardware") or {}
    device, processes = str(hardware.get("device", "unknown hardware")), hardware.get("processes") or 1
    hours = all_seconds(run) / 3600 * processes
    watts = next((watts for name, watts in BOARD_WATTS.items() if all(part in device for part in name.split())), None)
    gpu = watts is not None or "NVIDIA" in device
    text = f"{hours:.2f} {'GPU' if gpu else 'CPU process'} hours ({processes} × {device}). "
    if watts is None:
        return text + "Energy was not measured."
    bound = f"it is at most {hours * watts / 1000:.2f} kWh (boards only)."
    return text + f"Energy was not measured; at the boards' power limit of {watts} W {bound}"
