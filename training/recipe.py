"""Recipes: recipes/NAME.yaml and key=value words, read and checked, become a model's and a training's values."""

import contextlib
import dataclasses
import difflib
import json
import math
import os
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from air_model.configuration_air import VARIANTS, AirConfig
from air_model.optim_air import OPTIMIZERS, SCHEDULES
from air_model.processing_air import SIZES

RECIPES = Path(__file__).parent.parent / "recipes"
COMPILE_MODES = ("auto", "off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (  # keys, what holds for each, in words
    ("batch_size accumulation log_every save_every total_limit", lambda v: v >= 1, "1 or more"),
    ("train_size train_act_steps", lambda v: v >= 1, "1 or more"),
    ("max_steps epochs", lambda v: v > 0, "above 0"),
    (
        "easier_share easier_most nearly_share corrupted_share halt_exploration_prob",
        lambda v: 0 <= v <= 1,
        "between 0 and 1",
    ),
    ("lr_min_ratio tail_share", lambda v: 0 <= v <= 1, "between 0 and 1"),
    ("beta1 beta2", lambda v: 0 <= v < 1, "at least 0 and below 1"),
    ("lr muon_lr puzzle_lr weight_decay muon_weight_decay puzzle_weight_decay", lambda v: v >= 0, "0 or more"),
    ("atan2_scale warmup_steps grad_clip ema max_minutes", lambda v: v >= 0, "0 or more"),
    ("seed data_seed", lambda v: 0 <= v < 2**63, "from 0 to below 2**63"),
    ("eval_every eval_limit final_eval_limit eval_batch_size", lambda v: v >= 0, "0 or more"),
)


@dataclass
class TrainConfig:
    """Every training value of a recipe; the other keys of a recipe are fields of AirConfig and `variant`.

    The unit of time is the optimizer step; one step is one ACT step of all slots.
    """

    data: str = ""  # Hub id[:CONFIG], folder of build_dataset.py, of CSVs or of the public code's arrays, or a CSV
    train_split: str = "train"
    train_size: int | None = None  # puzzles drawn from the training split; None takes all
    data_seed: int = 0  # decides which puzzles train_size draws, for every training seed alike
    augment: str = "symmetries"  # a fresh random symmetry for every copy (mazes: turned and re-labelled), or "none"
    easier_share: float = 0.0  # share of copies with a random number of further solution cells filled in
    easier_most: float = 1.0  # the most of the open cells that such a copy shows: 0.2 keeps it near the hard ones
    nearly_share: float = 0.0  # share of copies that are shown nearly solved, 1 to 12 open cells left
    corrupted_share: float = 0.0  # Sudokus: share of fresh puzzles that begin with a partly wrong answer in z_H
    lattices: bool = False  # Sudokus: train on what cells may still hold, narrowed down by the model (lattices.py)
    eval_data: str | None = None  # None: `data`
    eval_split: str = "auto"  # "auto": dev where there is one, else test
    eval_limit: int = 512  # puzzles evaluated while training; 0 for all
    final_eval_limit: int | None = None  # puzzles of the evaluation at the end; None: eval_limit, 0: all
    eval_batch_size: int = 0  # 0: batch_size of a process

    # Model folder or Hub id whose weights the run starts from (fine-tuning); one of half the width is widened.
    init_from: str = ""
    start_step: int = 0  # the step that init_from has reached: schedule and puzzles go on there, the optimizer anew

    max_steps: int | None = None  # the budget, in optimizer steps ...
    epochs: float | None = None  # ... or in passes over the base puzzles; give one of the two
    batch_size: int = 768  # slots, over all processes
    accumulation: int = 1  # pieces that a process cuts its slots into to save memory; the result is the same
    seed: int = 0

    optimizer: str = "adam_atan2"
    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 1.0
    atan2_scale: float = 1.27  # a of Adam-atan2; HRM's own kernel has 1
    muon_lr: float = 5e-3
    muon_weight_decay: float = 0.0
    puzzle_lr: float = 1e-4
    puzzle_weight_decay: float = 1.0
    schedule: str = "cosine"
    warmup_steps: int = 2000
    lr_min_ratio: float = 1.0
    tail_share: float = 0.3  # schedule=linear_tail: share of the steps over which the rate falls
    grad_clip: float = 0.0
    ema: float = 0.0
    ema_warmup: bool = False
    halt_exploration_prob: float = 0.1
    train_act_steps: int | None = None  # at most; None: halt_max_steps. Slots that leave sooner see more puzzles

    mixed_precision: str = "auto"  # "auto": bf16 where it is fast, else float32; "bf16"; "no"
    compile: str = "auto"  # "auto": "default" on CUDA and for long runs on a CPU; "off", or a mode of torch.compile
    activation_checkpointing: bool = False

    save_every: int = 1000
    eval_every: int = 1000  # 0: only at the end
    log_every: int = 50
    total_limit: int = 2  # complete checkpoints kept
    max_minutes: float = 0.0  # stop after this time with a checkpoint, as on SIGTERM; 0: never
    trackers: str = "auto"  # "auto": tensorboard where installed; "none", or names joined by commas
    run_name: str = ""

    def __post_init__(self) -> None:
        for name, choices in {
            "augment": ("symmetries", "none"),
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "mixed_precision": ("auto", "bf16", "no"),
            "compile": COMPILE_MODES,
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known. Choose one of {', '.join(choices)}.")
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError(
                f"Give the budget once: max_steps={self.max_steps}, epochs={self.epochs}. Set exactly one of them."
            )
        for names, holds, what in RANGES:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not (math.isfinite(value) and holds(value)):
                    raise ValueError(f"{name}={value} must be a number, {what} and finite.")
        if self.start_step and not (self.init_from and 0 < self.start_step < (self.max_steps or math.inf)):
            raise ValueError(
                f"start_step={self.start_step} must lie between 0 and max_steps={self.max_steps}, and needs "
                "init_from: the weights that have come so far."
            )
        if self.run_name in (".", "..") or set(self.run_name) & set("/\\"):
            raise ValueError(f"run_name={self.run_name!r} names a folder of logs: leave / and \\ out.")

    def steps(self, num_puzzles: int) -> int:
        """Optimizer steps of the whole run; one epoch draws every base puzzle once, as in the public code."""
        return self.max_steps or max(1, int(self.epochs * num_puzzles / self.batch_size))


TRAIN_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


# Fields of AirConfig that a recipe may set: its own ones, without bookkeeping.
MODEL_FIELDS = [
    field.name
    for field in dataclasses.fields(AirConfig)
    if field.name in AirConfig.__annotations__
    and field.name not in ("model_type", "code_version", "custom_pipelines", "pad_token_id", "ignore_index")
]


# Changing these leaves every weight of the run as it was, so a resumed run may.
FREE_ON_RESUME = {
    "save_every", "eval_every", "log_every", "total_limit", "max_minutes", "trackers", "run_name",
    "eval_data", "eval_split", "eval_limit", "final_eval_limit", "eval_batch_size",
}  # fmt: skip


class Recipe(NamedTuple):
    """A recipe, read and checked: `variant` and fields of AirConfig in `model`, the rest in `train`."""

    model: dict[str, Any]
    train: TrainConfig

    def flat(self) -> dict[str, Any]:
        return {**self.model, **dataclasses.asdict(self.train)}


def read_recipe(name: str | os.PathLike, overrides: list[str] | dict[str, Any] | None = None) -> Recipe:
    """Read recipes/NAME.yaml (or a path) and apply `key=value` overrides.

    Raises:
        FileNotFoundError: no such recipe. ValueError: an unknown key (names the nearest one), a value of the
        wrong type or range, or a recipe in stages.
    """
    values = recipe_values(name)
    if "stages" in values:
        raise ValueError(f"{name} has stages, which only train_accelerate.py runs. Name a recipe of one run here.")
    overrides = overrides if isinstance(overrides, dict) else override_values(overrides or [])
    return make_recipe(override(values, overrides))


def recipe_values(name: str | os.PathLike) -> dict[str, Any]:
    """What stands in a recipe: a path, or a name in recipes/ or recipes/shipped/."""
    path, places = Path(name), (RECIPES, RECIPES / "shipped")
    if not path.is_file():
        known = {found.stem: found for place in reversed(places) for found in place.glob("*.yaml")}
        if path.suffix not in ("", ".yaml") or path.stem not in known:
            raise FileNotFoundError(
                f"There is no recipe {str(name)!r}. Known: {', '.join(sorted(known))}, or give a path."
            )
        path = known[path.stem]
    values = _yaml(path.read_text(encoding="utf-8"), path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: expected lines of the form 'key: value'.")
    return values


def override(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe with others in their place."""
    values = dict(values)
    # The budget is one choice: naming one way replaces the other one.
    for mine, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if overrides.get(mine) is not None and other not in overrides:
            values.pop(other, None)
    # A variant brings its whole row: the recipe's cycles are not those of TRM, say.
    for key in VARIANTS.get(str(overrides.get("variant")), {}):
        values.pop(key, None)
    return {**values, **overrides}


def override_values(words: list[str]) -> dict[str, Any]:
    """`key=value` words as recipe values, in YAML's spelling of them."""
    values = {}
    for text in words:
        key, value = split_word(text)
        if "=" not in text:
            raise ValueError(f"Cannot read {text!r}: overrides look like key=value, for example batch_size=32.")
        values[key] = _yaml(value, text) if value else ""
    return values


def split_word(text: str) -> tuple[str, str]:
    """`--batch-size=32` -> ("batch_size", "32")."""
    key, _, value = text.partition("=")
    return key.strip().lstrip("-").replace("-", "_"), value


def as_words(values: dict[str, Any]) -> list[str]:
    """Recipe values as `key=value` words of a command line."""
    return [f"{key}={'null' if value is None else value}" for key, value in values.items()]


def _yaml(text: str, where: Any) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = getattr(error, "problem", None) or "a syntax error"
        raise ValueError(
            f"Cannot read {str(where)!r} as YAML: {reason}. Quote text with special characters."
        ) from None


# What other trainers call it, where spelling leads elsewhere.
OTHER_NAMES = {
    "learning_rate": "lr", "wd": "weight_decay", "bs": "batch_size", "steps": "max_steps", "num_steps": "max_steps",
    "gradient_accumulation_steps": "accumulation", "num_train_epochs": "epochs", "save_steps": "save_every",
    "eval_steps": "eval_every", "logging_steps": "log_every", "report_to": "trackers",
    "per_device_train_batch_size": "batch_size", "global_batch_size": "batch_size", "bf16": "mixed_precision",
}  # fmt: skip


def make_recipe(values: dict[str, Any]) -> Recipe:
    """Sort the keys of a recipe into model and training values, and check both."""
    known = [*TRAIN_FIELDS, *MODEL_FIELDS, "variant"]
    for key in values:
        if key not in known:
            word, ours = str(key).lower(), {name.lower(): name for name in known}
            match = [OTHER_NAMES[name] for name in difflib.get_close_matches(word, OTHER_NAMES, n=1, cutoff=0.8)]
            match = match or [ours[name] for name in difflib.get_close_matches(word, ours, n=1, cutoff=0.5)]
            hint = f" Did you mean {match[0]!r}?" if match else ""
            raise ValueError(f"Unknown key {key!r} in the recipe or on the command line.{hint}")
    hints = {f.name: f.type for f in (*dataclasses.fields(AirConfig), *dataclasses.fields(TrainConfig))}
    hints["variant"] = str
    values = {key: _coerce(key, value, hints[key]) for key, value in values.items()}
    train = TrainConfig(**{k: v for k, v in values.items() if k in TRAIN_FIELDS})
    model = {"variant": "Lx_H", **{k: v for k, v in values.items() if k not in TRAIN_FIELDS}}
    if model["variant"] not in VARIANTS:
        AirConfig.from_variant(model["variant"])  # raises, naming the nearest one
    return Recipe(model, train)


def _coerce(key: str, value: Any, hint: Any) -> Any:
    """The value as the type of its field: YAML reads 1e-4 as text, and 3 for a float as an integer."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = {typing.get_origin(kind) or kind for kind in (typing.get_args(hint) if union else (hint,))}
    if str in kinds and value is False:  # YAML's idea of no and off
        return "off" if key == "compile" else "no"
    if isinstance(value, float) and value.is_integer() and int in kinds:
        return int(value)
    if type(value) in kinds or typing.Literal in kinds:  # AirConfig checks its own choices
        return value
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            if float in kinds:
                return float(value)
            if str in kinds:
                return str(value)
    names = " or ".join(sorted(kind.__name__ for kind in kinds - {type(None)}))
    raise ValueError(f"{key}={value!r} is not of the right type: expected {names}.")


def model_config(recipe: Recipe, task: Any, num_puzzle_ids: int = 1) -> AirConfig:
    """The AirConfig of a recipe, its grid taken from the data where the recipe does not say."""
    values = dict(recipe.model)
    variant = values.pop("variant")
    if recipe.train.lattices:
        values["q_lost"] = True
    values.setdefault("num_puzzle_identifiers", num_puzzle_ids)
    for key, value in zip(("task", *SIZES), (task.name, *task.sizes)):
        if values.get(key) is None:
            values[key] = value
        elif values[key] != value:
            raise ValueError(
                f"The recipe says {key}={values[key]}, the data has {key}={value}. Leave {key} out of the recipe, or "
                "give other data."
            )
    return AirConfig.from_variant(variant, **values)


def free_on_resume(old: dict[str, Any], new: dict[str, Any], folder: Path) -> set[str]:
    """Keys of the flat recipe of a run in `folder` that may change without making it another run."""
    before, now = (Path(values.get("init_from") or "") for values in (old, new))
    # A stage starts from another one beside it, wherever the folder of their chain has been moved.
    moved = before.parts[-2:] == now.parts[-2:] and now.parent.parent == folder.parent
    return FREE_ON_RESUME | {"init_from"} if moved else FREE_ON_RESUME


def has_finished(report: dict[str, Any], flat: dict[str, Any], folder: Path) -> bool:
    """Whether run.json tells of a finished run of this recipe; the same folder with other values is another run."""
    if report.get("status") != "finished":
        return False
    return not recipe_differences(report["config"], flat, free_on_resume(report["config"], flat, folder))


def recipe_differences(old: dict[str, Any], new: dict[str, Any], allowed: set[str] = frozenset()) -> list[str]:
    """'key: old -> new' for every key in which two flat recipes differ, those of `allowed` left out."""
    lines = []
    for key in sorted({*old, *new} - set(allowed)):
        # As JSON would hold them; 1 and 1.0 are the same. What is not set is left to its default, as None is.
        a, b = (json.loads(json.dumps(values.get(key), default=str)) for values in (old, new))
        if a != b:
            lines.append(f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}")
    return lines
