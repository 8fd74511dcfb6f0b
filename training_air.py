"""What the training loop is made of: recipes, fresh puzzles, slots, metrics, checkpoints (loop: train_accelerate.py).

One optimizer step runs one ACT step for B slots. A slot holds a puzzle until it halts; then it gets a fresh puzzle
and fresh states. Everything of a step stays on the device: refilling is torch.where, metrics are summed there and read
every `log_every` steps. All randomness of step t comes from (seed, t) alone, so a resumed run needs no generator
state to draw the same numbers, and every process draws the same global batch and takes its own rows.

Shape letters: B slots (of this process), S cells, T state positions, D hidden, N puzzles, V tokens.
Source: SPEC sections 3 and 4.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import sys
import time
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from air_model.configuration_air import VARIANTS, AirConfig
from air_model.modeling_air import AirCarry, AirLinear, AirModel
from air_model.optim_air import OPTIMIZERS, SCHEDULES

RECIPES = Path(__file__).parent / "recipes"

# ---------------------------------------------------------------------------------------------------------------------
# Recipes


COMPILE_MODES = ("auto", "off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass
class TrainConfig:
    """Every training value of a recipe; the other keys of a recipe are fields of AirConfig and `variant`.

    The unit of time is the optimizer step; one step is one ACT step of all slots.
    """

    data: str = ""  # Hub id, folder of scripts/build_dataset.py, folder of CSVs, or a CSV (.gz)
    train_split: str = "train"
    train_size: int | None = None  # puzzles drawn from the training split; None takes all
    data_seed: int = 0  # decides which puzzles train_size draws, for every training seed alike
    augment: str = "symmetries"  # a fresh random symmetry for every copy (mazes: turned and re-labelled), or "none"
    easier_share: float = 0.0  # share of copies with a random number of further solution cells filled in
    easier_most: float = 1.0  # the most of the open cells that such a copy shows: 0.2 keeps it near the hard ones
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
    # ACT steps at most while training, or a curriculum of them, {first step: ACT steps}; None: halt_max_steps, as in
    # evaluation. A batch holds the more fresh puzzles the sooner they leave.
    train_act_steps: int | dict | None = None
    cycles: dict | None = None  # a curriculum, {first step: [l_cycles, h_cycles]}; None keeps those of the model

    mixed_precision: str = "auto"  # "auto": bf16 on CUDA, fp32 elsewhere; "bf16"; "no"
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
        for name in ("batch_size", "accumulation", "log_every", "save_every", "total_limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more.")
        for name in ("max_steps", "epochs"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be above 0, and finite.")
        for name in ("easier_share", "easier_most", "halt_exploration_prob", "lr_min_ratio", "tail_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1.")
        for name in (
            "lr", "muon_lr", "puzzle_lr", "weight_decay", "warmup_steps", "eval_every", "eval_limit", "ema",
            "grad_clip", "max_minutes", "final_eval_limit", "eval_batch_size", "puzzle_weight_decay",
            "muon_weight_decay", "atan2_scale", "seed", "data_seed",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value} must be a number of 0 or more.")
        if self.start_step and not (self.init_from and 0 < self.start_step < (self.max_steps or math.inf)):
            raise ValueError(
                f"start_step={self.start_step} must lie between 0 and max_steps={self.max_steps}, and needs "
                "init_from: the weights that have come so far."
            )
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1.")
        if self.run_name in (".", "..") or set(self.run_name) & set("/\\"):
            raise ValueError(f"run_name={self.run_name!r} names a folder of logs: leave / and \\ out.")
        if self.train_size is not None and self.train_size < 1:
            raise ValueError(f"train_size={self.train_size} must be 1 or more, or null for all puzzles.")
        if self.cycles is not None:
            self.cycles = _curriculum(
                "cycles", self.cycles, _pair, "[l_cycles, h_cycles]", "{0: [1, 1], 5000: [2, 2]}"
            )
        if isinstance(self.train_act_steps, dict):
            steps = self.train_act_steps
            self.train_act_steps = _curriculum("train_act_steps", steps, _count, "ACT steps", "{0: 2, 5000: 4}")
        elif self.train_act_steps is not None and self.train_act_steps < 1:
            raise ValueError(f"train_act_steps={self.train_act_steps} must be 1 or more.")

    def steps(self, num_puzzles: int) -> int:
        """Optimizer steps of the whole run; one epoch draws every base puzzle once (SPEC section 4)."""
        return self.max_steps or max(1, int(self.epochs * num_puzzles / self.batch_size))

    def cycles_at(self, step: int) -> tuple[int, int] | None:
        """(l_cycles, h_cycles) of optimizer step `step`, counted from 1, or None without a curriculum."""
        if self.cycles is None:
            return None
        return tuple(_reached(self.cycles, step))

    def act_steps_curriculum(self) -> dict[int, int]:
        """train_act_steps as {first step: ACT steps}; empty where the model's own number holds."""
        steps = self.train_act_steps
        return steps if isinstance(steps, dict) else {} if steps is None else {0: steps}

    def act_steps_at(self, step: int, halt_max_steps: int) -> int:
        """ACT steps that a puzzle gets at most in optimizer step `step`, counted from 1."""
        curriculum = self.act_steps_curriculum()
        return _reached(curriculum, step) if curriculum else halt_max_steps


def _count(value: Any) -> int:
    if int(value) < 1:
        raise ValueError
    return int(value)


def _pair(value: Any) -> list[int]:
    l_cycles, h_cycles = value
    return [_count(l_cycles), _count(h_cycles)]


def _curriculum(name: str, value: dict, entry: Callable[[Any], Any], what: str, example: str) -> dict[int, Any]:
    """{first step: value} as numbers, which recipes may have written as text; refused unless it begins with step 0."""
    try:
        curriculum = {int(first): entry(at) for first, at in value.items()}
        if min(curriculum) == 0:
            return curriculum
    except (TypeError, ValueError):  # no numbers, none above 0, too many, or nothing at all
        pass
    raise ValueError(
        f"{name}={value} must map first steps to {what}, 1 or more, and begin with step 0, as in {example}."
    )


def _reached(curriculum: dict[int, Any], step: int) -> Any:
    """What a curriculum {first step: value} says for optimizer step `step`, counted from 1."""
    return curriculum[max(first for first in curriculum if first < step)]


TRAIN_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
# Fields of AirConfig that a recipe may set: its own ones, without bookkeeping.
MODEL_FIELDS = [
    name
    for name in AirConfig.__annotations__
    if name in {f.name for f in dataclasses.fields(AirConfig)}
    and name not in ("model_type", "code_version", "custom_pipelines", "pad_token_id", "ignore_index")
]
# Changing these leaves every weight of the run as it was, so a resumed run may.
FREE_ON_RESUME = {
    "save_every", "eval_every", "log_every", "total_limit", "max_minutes", "trackers", "run_name",
    "eval_data", "eval_split", "eval_limit", "final_eval_limit", "eval_batch_size",
}  # fmt: skip


def few_heads(model: dict[str, Any]) -> int:
    """Heads of a miniature: two, or as many as the recipe has relations for."""
    return max(2, len(model.get("head_relations") or []))


class Recipe(NamedTuple):
    """A recipe, read and checked: `variant` and fields of AirConfig in `model`, the rest in `train`."""

    model: dict[str, Any]
    train: TrainConfig

    def flat(self) -> dict[str, Any]:
        return {**self.model, **dataclasses.asdict(self.train)}


def read_recipe(name: str | os.PathLike, overrides: list[str] | dict[str, Any] | None = None) -> Recipe:
    """Read recipes/NAME.yaml (or a path) and apply `key=value` overrides.

    Raises:
        FileNotFoundError: no such recipe. ValueError: an unknown key (names the nearest one), or a value of the wrong
        type or range.
    """
    path = Path(name)
    if not path.is_file():
        known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        path = RECIPES / f"{Path(name).stem}.yaml"
        if Path(name).suffix not in ("", ".yaml") or not path.is_file():
            raise FileNotFoundError(f"There is no recipe {str(name)!r}. Known: {', '.join(known)}, or give a path.")
    values = _yaml(path.read_text(), path) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: expected lines of the form 'key: value'.")
    if not isinstance(overrides, dict):
        pairs = {}
        for text in overrides or []:
            key, separator, value = text.partition("=")
            if not separator:
                raise ValueError(f"Cannot read {text!r}: overrides look like key=value, for example batch_size=32.")
            pairs[key.strip().lstrip("-").replace("-", "_")] = _yaml(value, text) if value else ""
        overrides = pairs
    # The budget is one choice: naming one way on the command line replaces the other one of the file.
    for mine, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if overrides.get(mine) is not None and other not in overrides:
            values.pop(other, None)
    # A variant named on the command line brings its whole row: the file's cycles are not those of TRM, say.
    for key in VARIANTS.get(str(overrides.get("variant")), {}):
        values.pop(key, None)
    return make_recipe({**values, **overrides})


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
    kinds = set(typing.get_args(hint)) if typing.get_origin(hint) in (types.UnionType, typing.Union) else {hint}
    if value is None and type(None) in kinds:
        return None
    if str in kinds and value is False:  # YAML's idea of no and off
        return "off" if key == "compile" else "no"
    if any(typing.get_origin(kind) is typing.Literal for kind in kinds):
        return value  # AirConfig checks its own choices
    try:
        if bool in kinds and isinstance(value, bool):
            return value
        if isinstance(value, bool) or value is None:
            raise TypeError
        if int in kinds and (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            return int(value)
        if float in kinds:
            return float(value)
        if str in kinds and isinstance(value, (str, int, float)):
            return str(value)
        if any(isinstance(value, kind) for kind in (dict, list) if kind in {typing.get_origin(k) or k for k in kinds}):
            return value
    except (TypeError, ValueError):
        pass
    names = " or ".join(sorted(getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not type(None)))
    raise ValueError(f"{key}={value!r} is not of the right type: expected {names}.")


def model_config(recipe: Recipe, task: Any, num_puzzle_ids: int = 1) -> AirConfig:
    """The AirConfig of a recipe, its grid taken from the data where the recipe does not say."""
    values = dict(recipe.model)
    variant = values.pop("variant")
    found = {
        "task": task.name,
        "grid_height": task.height,
        "grid_width": task.width,
        "box_height": getattr(task, "box_height", None),
        "box_width": getattr(task, "box_width", None),
        "vocab_size": task.vocab_size,
        "num_puzzle_identifiers": num_puzzle_ids,
    }
    for key, value in found.items():
        if values.setdefault(key, value) != value and key != "num_puzzle_identifiers":
            if values[key] is None:
                values[key] = value
                continue
            raise ValueError(
                f"The recipe says {key}={values[key]}, the data has {key}={value}. Leave {key} out of the recipe, or "
                "give other data."
            )
    return AirConfig.from_variant(variant, **values)


# ---------------------------------------------------------------------------------------------------------------------
# Fresh puzzles


def seeded(generator: torch.Generator, *key: int) -> torch.Generator:
    """The generator, set to a state that depends on the key alone. Host work only: nothing waits for the device."""
    digest = hashlib.blake2b(np.asarray(key, np.int64).tobytes(), digest_size=8).digest()
    return generator.manual_seed(int.from_bytes(digest, "little") >> 1)


class Puzzles(NamedTuple):
    """A batch: inputs (B, S) int64, labels (B, S) int64 with ignore_index where there is none, ids (B,) int64."""

    inputs: Tensor
    labels: Tensor
    ids: Tensor


class PuzzleSampler:
    """Endless fresh batches: every base puzzle once an epoch, each time another random copy.

    `draw(step)` depends on (seed, step) alone. Sudoku copies are drawn on the device: digits relabelled, bands,
    stacks, rows and columns permuted, the grid transposed where boxes are square: the distribution of the published
    1,000 copies, never the same one twice. Maze copies are the eight (rectangles: four) turns and mirrors, each
    re-labelled by the benchmark's rule, because a turned label would follow another one. Easier copies show k more
    cells of the solution (of a maze: cells of the path), k uniform on {1, ..., open cells - 1} (for Sudokus the data
    mixing of arXiv:2601.10679; for mazes our own); `easier_most` below 1 cuts that range short (our own).

    Args:
        puzzles: a PuzzleSet (inputs and labels uint8 (N, S), puzzle_ids, groups, task).
        batch_size: of all processes. rank, world: whose rows of it to return.
        device: where the puzzles live and the copies are made.
    """

    def __init__(
        self,
        puzzles: Any,
        batch_size: int,
        *,
        seed: int,
        augment: str = "symmetries",
        easier_share: float = 0.0,
        easier_most: float = 1.0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        ignore_index: int = -100,
    ) -> None:
        self.task, self.seed, self.batch_size, self.ignore_index = puzzles.task, seed, batch_size, ignore_index
        self.augment, self.easier_share, self.easier_most = augment, easier_share, easier_most
        self.rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self.device = torch.device(device)
        inputs, labels = np.asarray(puzzles.inputs, np.uint8), np.asarray(puzzles.labels, np.uint8)
        if not len(inputs):
            raise ValueError("The training data has no puzzles. Build or choose another data set.")
        # Rows of one group are stored copies of one base puzzle; below, each group's first row and number of rows.
        order = np.argsort(puzzles.groups, kind="stable")
        first, sizes = np.unique(puzzles.groups[order], return_index=True, return_counts=True)[1:]
        inputs, labels, ids = inputs[order], labels[order], np.asarray(puzzles.puzzle_ids)[order]
        self.num_puzzles = len(first)
        if augment == "symmetries" and self.task.name == "maze":
            copies = inputs[:, self.task.dihedral]  # (N, K, S)
            labels = np.stack([self.task.label(copies[:, k]) for k in range(copies.shape[1])], axis=1)
        else:
            copies, labels = inputs[:, None], labels[:, None]
        self.inputs, self.labels = torch.from_numpy(copies).to(self.device), torch.from_numpy(labels).to(self.device)
        self.ids, self.first, self.sizes = (torch.from_numpy(a).long().to(self.device) for a in (ids, first, sizes))
        self.generator = torch.Generator(self.device)
        self._orders: dict[int, Tensor] = {}

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}
            generator = seeded(self.generator, self.seed, 1, epoch)
            self._orders[epoch] = torch.randperm(self.num_puzzles, generator=generator, device=self.device)
        return self._orders[epoch]

    def indices(self, step: int) -> Tensor:
        """(B,) int64: the base puzzles of this process's slots in optimizer step `step`, counted from 1."""
        n, first = self.num_puzzles, (step - 1) * self.batch_size
        low, high = first + self.rows.start, first + self.rows.stop
        parts = []
        for epoch in range(low // n, (high - 1) // n + 1):
            parts.append(self._order(epoch)[max(0, low - epoch * n) : min(n, high - epoch * n)])
        return torch.cat(parts)

    def draw(self, step: int) -> Puzzles:
        """One fresh copy for every slot of this process."""
        index = self.indices(step)
        generator = seeded(self.generator, self.seed, 2, step)

        def uniform(*shape: int) -> Tensor:
            """Random numbers of the whole batch, this process's rows of them."""
            return torch.rand(self.batch_size, *shape, generator=generator, device=self.device)[self.rows]

        row = self.first[index] + (uniform() * self.sizes[index]).long()
        copy = (uniform() * self.inputs.shape[1]).long()
        inputs, labels = self.inputs[row, copy].long(), self.labels[row, copy].long()  # (B, S)
        if self.augment == "symmetries" and self.task.name == "sudoku":
            cells, tokens = sudoku_symmetries(self.task, uniform)
            inputs, labels = (tokens.gather(1, grid.gather(1, cells)) for grid in (inputs, labels))
        if self.easier_share:
            inputs = reveal(inputs, labels, uniform, self.easier_share, self.easier_most)
        return Puzzles(inputs, labels.masked_fill(labels == 0, self.ignore_index), self.ids[row])


def sudoku_symmetries(task: Any, uniform: Any) -> tuple[Tensor, Tensor]:
    """Random maps out[j] = tokens[in[cells[j]]]: cells (B, S), tokens (B, V). `uniform(*shape)` draws (B, *shape)."""
    n, height, width = task.height, task.box_height, task.box_width

    def lines(per_group: int) -> Tensor:  # (B, n): groups of lines permuted, and the lines within each
        groups = uniform(n // per_group).argsort(-1)
        within = uniform(n // per_group, per_group).argsort(-1)
        return (groups[:, :, None] * per_group + within).flatten(1)

    rows, columns = lines(height), lines(width)
    cells = rows[:, :, None] * n + columns[:, None, :]  # (B, n, n)
    if height == width:
        flip = uniform() < 0.5
        cells = torch.where(flip[:, None, None], cells.transpose(1, 2), cells)
    digits = uniform(n).argsort(-1) + 2
    fixed = torch.arange(2, device=digits.device).expand(len(digits), 2)  # PAD and blank
    return cells.flatten(1), torch.cat([fixed, digits], dim=1)


def reveal(inputs: Tensor, labels: Tensor, uniform: Any, share: float, most: float = 1.0) -> Tensor:
    """A `share` of the puzzles with k ~ U{1 .. most * (open cells - 1)} random open cells filled in, (B, S).

    Open is a cell whose label says something else than the input: a blank of a Sudoku, a path cell of a maze. k is 1
    at least.
    """
    empty = (inputs != labels) & (labels != 0)
    count = 1 + (uniform() * ((empty.sum(1) - 1) * most).floor().clamp(min=0)).long()
    order = uniform(inputs.shape[1]).masked_fill(~empty, 2.0).argsort(1)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, places)
    chosen = (uniform() < share)[:, None] & (rank < count[:, None]) & empty
    return torch.where(chosen, labels, inputs)


# ---------------------------------------------------------------------------------------------------------------------
# Slots


class Slots:
    """B puzzles in work and their states. All fields are tensors on the device; `halted` asks for a refill."""

    def __init__(self, model: nn.Module, batch_size: int, seq_len: int, device: torch.device) -> None:
        zeros = torch.zeros(batch_size, seq_len, dtype=torch.long, device=device)
        self.puzzles = Puzzles(zeros, zeros.clone(), zeros[:, 0].clone())
        self.carry = model.initial_carry(batch_size, device)
        self.halted = torch.ones(batch_size, dtype=torch.bool, device=device)

    @torch.no_grad()
    def refill(self, model: nn.Module, fresh: Puzzles) -> None:
        """Slots that halted take their row of `fresh`, the initial states and zero steps."""
        halted, column = self.halted, self.halted[:, None]
        self.puzzles = Puzzles(
            torch.where(column, fresh.inputs, self.puzzles.inputs),
            torch.where(column, fresh.labels, self.puzzles.labels),
            torch.where(halted, fresh.ids, self.puzzles.ids),
        )
        start = model.initial_carry(len(halted), halted.device, self.carry.z_h.dtype)
        z_h, z_l, steps = self.carry.z_h, self.carry.z_l, self.carry.steps
        self.carry = AirCarry(
            z_h=torch.where(column[:, None], start.z_h, z_h),
            z_l=torch.where(column[:, None], start.z_l, z_l),
            steps=torch.where(halted, torch.zeros_like(steps), steps),
        )

    def state(self) -> dict[str, Tensor]:
        """All tensors that a checkpoint keeps."""
        puzzles = {f"puzzles.{k}": v for k, v in self.puzzles._asdict().items()}
        return {**self.carry, "halted": self.halted, **puzzles}

    def load(self, tensors: dict[str, Tensor]) -> None:
        device = self.halted.device
        tensors = {k: v.to(device) for k, v in tensors.items()}
        self.puzzles = Puzzles(*(tensors[f"puzzles.{k}"] for k in Puzzles._fields))
        self.carry = AirCarry(z_h=tensors["z_h"], z_l=tensors["z_l"], steps=tensors["steps"])
        self.halted = tensors["halted"]


def halt(steps: Tensor, q_halt: Tensor, q_continue: Tensor | None, min_steps: Tensor, max_steps: int) -> Tensor:
    """Which slots stop after this ACT step while training, (B,) bool (SPEC section 3).

    Args:
        steps: (B,) ACT steps done, this one included. q_continue: None in a model without it (halt on q_halt > 0).
        min_steps: (B,) exploration: no halt before this many steps.
    """
    wants = q_halt > (0.0 if q_continue is None else q_continue)
    return (steps >= max_steps) | (wants & (steps >= min_steps))


def exploration(
    generator: torch.Generator, seed: int, step: int, batch_size: int, prob: float, max_steps: int
) -> Tensor:
    """min_steps of every slot of the global batch, (B,) int64: (u < prob) · U{2 .. max_steps}."""
    u = torch.rand(2, batch_size, generator=seeded(generator, seed, 3, step), device=generator.device)
    return (u[0] < prob) * (2 + (u[1] * (max_steps - 1)).long()).clamp(max=max_steps)


HALTED_METRICS = ("accuracy", "exact_accuracy", "q_halt_accuracy", "steps")
LOSSES = ("loss", "lm_loss", "q_halt_loss", "q_continue_loss")


@torch.no_grad()
def step_metrics(logits: Tensor, labels: Tensor, q_halt: Tensor, steps: Tensor, halted: Tensor, ignore: int) -> Tensor:
    """Sums over the slots that halt at this step: (5,) float32: their count, then HALTED_METRICS (SPEC section 3)."""
    known = labels != ignore
    count = known.sum(-1)
    right = (known & (logits.argmax(-1) == labels)).sum(-1)
    exact = right == count
    valid = halted & (count > 0)
    columns = [torch.ones_like(q_halt), right / count.clamp(min=1), exact, (q_halt >= 0) == exact, steps]
    return torch.stack([torch.where(valid, column.float(), 0.0).sum() for column in columns])


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic


def forward_flops(config: AirConfig, positions: int | None = None) -> float:
    """Floating-point operations of one pass of one puzzle through one stack (ANCHORS section 2b): 27.93 M a position
    for full-size Sudoku. A multiply-add counts as two; norms, embeddings and heads are left out."""
    t = config.num_stack_positions if positions is None else positions
    d, inner = config.hidden_size, config.intermediate_size
    if config.token_mixer == "mlp":
        mixing = 2 * 3 * d * t * config.swiglu_width(config.num_state_positions)
    else:
        mixing = t * (2 * 4 * d * d) + 4 * t * t * d
    layer = mixing + t * 2 * 3 * d * inner
    layers = config.num_hidden_layers
    if not config.shared_block:  # the mean of both stacks, weighted by how often each runs
        runs = config.schedule
        layers = (runs.count("l") * (config.l_layers or layers) + runs.count("h") * (config.h_layers or layers)) / len(
            runs
        )
    return layer * layers


def training_passes(config: AirConfig) -> int:
    """Passes through the stack in a training step: updates with gradient count thrice, the second forward once."""
    updates = len(config.schedule)
    with_gradient = updates - config.first_gradient_update
    return (updates - with_gradient) + 3 * with_gradient + (updates if config.q_continue else 0)


def training_flops(config: AirConfig, batch_size: int) -> float:
    """Operations of one optimizer step: 28.1e12 for full-size Sudoku, batch 768, published arithmetic."""
    return forward_flops(config) * training_passes(config) * batch_size


# Compiling on a CPU takes about half a minute and spares a tenth to a third of the time: worth it for runs of ten
# minutes and more (at the 50 GFLOP/s or so that a small machine sustains in fp32).
WORTH_COMPILING = 3e13


def compile_mode(asked: str, device_type: str, flops: float) -> str:
    """What `compile` of a recipe means for a run of so many operations: "off", or a mode of torch.compile.

    The operations are those of the whole run, so that a resumed run decides as its first session did.
    """
    if asked != "auto":
        return asked
    return "default" if device_type == "cuda" or (device_type == "cpu" and flops >= WORTH_COMPILING) else "off"


def processor(field: str = "model name") -> str:
    """What Linux says of its first processor ("model name", "vendor_id"); elsewhere the platform's own words."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return platform.processor() or platform.machine()


def slow_products() -> bool:
    """Whether torch's float32 products are slow here: they are MKL's, and this x86 processor is not Intel's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return platform.machine() in ("x86_64", "AMD64") and "Intel" not in processor("vendor_id")


def use_onednn(model: nn.Module) -> None:
    """Train the linear layers of 64 and more on both sides with oneDNN's products; it is slower in narrower ones."""
    for module in model.modules():
        if isinstance(module, AirLinear) and min(module.weight.shape) >= 64:
            module.product = onednn_linear


@torch.library.custom_op("air::onednn_linear", mutates_args=())
def onednn_linear(h: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(h, weight)` in float32 by oneDNN, forward and backward: (..., in), (out, in) -> (..., out).

    On AMD processors it is about twice as fast as MKL's product, which torch takes (results/LOG.md).
    """
    return torch.ops.mkldnn._linear_pointwise(h, weight, None, "none", [], "")


@onednn_linear.register_fake
def _(h: Tensor, weight: Tensor) -> Tensor:
    return h.new_empty(*h.shape[:-1], len(weight))


def _onednn_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    h, weight = ctx.saved_tensors
    rows, seen = grad.flatten(0, -2), h.flatten(0, -2)
    # Narrow weights have few outputs to share out and long sums, where oneDNN is slower than MKL (results/LOG.md).
    of_weight = onednn_linear(rows.t(), seen.t()) if min(weight.shape) >= 256 else rows.t() @ seen
    return onednn_linear(grad, weight.t()), of_weight


onednn_linear.register_autograd(
    _onednn_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


# Dense bf16 peak of common cards, TFLOP/s, from the makers' data sheets; the first that is in a card's name counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "4090": 165,
    "5090": 209, "3090": 71,
}  # fmt: skip


def peak_tflops(device: torch.device) -> float | None:
    """bf16 peak of this GPU after its data sheet, or None where it is not in the table (CPUs, other cards)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAK_TFLOPS.items() if key in name), None)


def matmul_tflops(
    device: torch.device,
    dtype: torch.dtype,
    seconds: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
) -> float:
    """This machine's own rate in a large square matrix product, TFLOP/s; where torch's is slow, steps exceed it."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    product(a, b)
    best, begin = 0.0, clock()
    while clock() - begin < seconds:
        sync()
        start = clock()
        product(a, b)
        sync()
        best = max(best, 2 * n**3 / (clock() - start))
    return best / 1e12


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: a folder of safetensors and JSON, written beside and renamed, with a manifest of sizes and hashes


class DamagedCheckpoint(ValueError):
    """A checkpoint folder that does not hold what its manifest says."""


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside the target, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")
    os.replace(temporary, path)


def earlier_runs(source: str) -> list[dict[str, Any]]:
    """The runs that made the model a run starts from (`init_from`), oldest first: name, steps and seconds of each.

    Read from the run.json in the model's folder, or beside it where training left it. Without a readable one: [].
    """
    for file in (Path(source) / "run.json", Path(source).parent / "run.json") if source else ():
        # It is only a record: whatever is wrong with it must not cost the run that goes on.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            run = json.loads(file.read_text())
            return [*run.get("earlier_runs", []), {k: run.get(k) for k in ("name", "steps", "wall_seconds")}]
    return []


def widened(model: AirModel, noise: float = 0.01, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a model twice as wide (hidden, intermediate and head size) that computes the same, plus `noise`.

    Every unit of a state, a SwiGLU and a head's values is there twice, and what reads it is shared out between the two
    at random, so that they learn apart (Net2WiderNet, arXiv:1511.05641). Queries and keys keep their frequencies and
    get new ones between them that weigh nothing at first. `noise` is relative to each matrix.
    """
    generator, heads = torch.Generator().manual_seed(seed), model.config.num_attention_heads

    def shared(weight: Tensor) -> Tensor:  # (out, in) -> (out, 2 in)
        part = 0.2 + 0.6 * torch.rand(weight.shape, generator=generator)
        return torch.cat([part * weight, (1 - part) * weight], dim=-1)

    def twice(weight: Tensor) -> Tensor:  # (out, ...) -> (2 out, ...)
        return torch.cat([weight, weight])

    wide = {}
    for name, weight in model.state_dict().items():
        weight, kind = weight.float().cpu(), name.split(".")[-2] if "." in name else name
        if ".mlp_t." in name or name == "q_head.bias":
            wide[name] = weight.clone()
        elif kind == "qkv_proj":
            d, size = weight.shape[1], weight.shape[0] // 3 // heads
            query, key, value = weight.view(3, heads, size, d)
            old = torch.zeros(2 * size, dtype=torch.bool)
            old[::2] = True  # frequency j of the narrow head is frequency 2 j of the wide one
            parts = []
            # A wide head divides by the root of 2 more.
            for one, of_new in ((query * 2**0.5, noise), (key, 1.0)):
                fresh = torch.randn(heads, 2 * size, 2 * d, generator=generator) * (0.3 * of_new * one.std() / 2**0.5)
                if model.config.qk_norm and one is key:  # new parts like the old ones leave a key's norm as it was
                    fresh[:, ~old] = shared(one)
                fresh[:, old] = shared(one)
                parts.append(fresh)
            parts.append(torch.cat([shared(value), shared(value)], dim=1))
            wide[name] = torch.stack(parts).flatten(0, 2)
        elif kind in ("q_norm", "k_norm"):
            wide[name] = weight.repeat_interleave(2)
        elif kind == "o_proj":
            wide[name] = twice(shared(weight.view(len(weight), heads, -1)).flatten(1))
        elif kind == "gate_up_proj":
            gate, up = weight.chunk(2)
            wide[name] = torch.cat([shared(gate), shared(gate), shared(up), shared(up)])
        elif kind in ("down_proj", "input_proj"):
            wide[name] = twice(shared(weight))
        elif kind in ("lm_head", "q_head"):
            wide[name] = shared(weight)
        elif kind == "puzzle_embedding":
            config = model.config
            cells = F.pad(weight, (0, config.prefix_length * config.hidden_size - weight.shape[1]))
            cells = cells.view(len(weight), config.prefix_length, -1)
            wide[name] = (torch.cat([cells, cells], dim=2) / 2**0.5).flatten(1)
        elif weight.dim() == 2:  # embeddings, which are scaled by the root of the width
            wide[name] = torch.cat([weight, weight], dim=1) / 2**0.5
        else:
            wide[name] = twice(weight)
        if kind.endswith("_proj"):
            wide[name] += noise * weight.std() / 2**0.5 * torch.randn(wide[name].shape, generator=generator)
    return wide


def all_seconds(run: dict[str, Any]) -> float:
    """Wall seconds of a run and of those that it went on from."""
    return sum(part.get("wall_seconds") or 0.0 for part in (*run.get("earlier_runs", []), run))


def portable(value: Any) -> Any:
    """A record as it may be shared: absolute paths of this machine cut to their last part."""
    if isinstance(value, dict):
        return {k: portable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [portable(v) for v in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def command_line() -> str:
    """What this process was started with, absolute paths cut to their last part."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return shlex.join(["python", *("=".join(map(portable, word.split("=", 1))) for word in words)])


def append_runs_to(target: Path, reports: list[dict[str, Any]]) -> int:
    """Append a line for every run that the .jsonl does not hold yet, told by name and date; returns how many."""
    target, known = Path(target), set()
    if target.is_file():
        for line in target.read_text().splitlines():
            with contextlib.suppress(
                ValueError, KeyError, TypeError
            ):  # lines that are no such record stay as they are
                row = json.loads(line)
                known.add((row["name"], row["date"]))
    new = [json.loads(json.dumps(report, default=str)) for report in reports]
    new = [row for row in new if (row["name"], row["date"]) not in known]
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(portable(row)) + "\n" for row in new)
    with target.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # an editor may have left the last line open
                lines = "\n" + lines
        if new:
            file.write(lines.encode())
    return len(new)


class FolderTaken(ValueError):
    """Another process trains into the folder. train_accelerate.py exits with status TAKEN then; a grid waits."""


TAKEN = 75  # EX_TEMPFAIL of sysexits.h


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second run out of a folder: both would sweep away each other's half-written checkpoints.

    Raises:
        FolderTaken: another process, on this machine or on the same network disk, trains into it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise FolderTaken(
            f"Another process is training into {folder}. Wait for it, stop it (SIGTERM saves a checkpoint), or choose "
            "another --output-dir."
        ) from None
    except OSError:
        pass  # a file system without locks
    try:
        yield
    finally:
        os.close(handle)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()  # nothing came of it


def is_taken(folder: Path) -> bool:
    """Whether a process trains into the folder now."""
    try:
        with alone_in(folder) if folder.is_dir() else contextlib.nullcontext():
            return False
    except FolderTaken:
        return True


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors wants contiguous tensors that share no memory, and lives on the CPU."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)


class CheckpointStore:
    """The folder `checkpoints/` of a run: checkpoint_N after N optimizer steps.

    A checkpoint is complete when its folder has its final name: it is written as `.checkpoint_N.tmp` and renamed last.
    """

    def __init__(self, folder: Path, total_limit: int = 2) -> None:
        self.folder, self.total_limit = Path(folder), total_limit

    def found(self) -> list[tuple[int, Path]]:
        """(step, folder) of all checkpoints under their final names, oldest first."""
        paths = self.folder.glob("checkpoint_*") if self.folder.is_dir() else []
        named = ((re.fullmatch(r"checkpoint_(\d+)", path.name), path) for path in paths)  # copies have other names
        return sorted((int(match[1]), path) for match, path in named if match)

    def sweep(self) -> None:
        """Remove what a kill left half written or half deleted."""
        for left in self.folder.glob(".checkpoint_*"):
            shutil.rmtree(left, ignore_errors=True)

    def begin(self, step: int) -> Path:
        """An empty temporary folder for checkpoint `step`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        temporary = self.folder / f".checkpoint_{step}.tmp"
        temporary.mkdir()
        return temporary

    def finish(self, temporary: Path, step: int) -> Path:
        """Write the manifest, flush to the disk, rename, and delete the oldest beyond `total_limit`."""
        files = sorted(p for p in temporary.iterdir() if p.name != "manifest.json")
        manifest = {p.name: {"bytes": p.stat().st_size, "sha256": _hash(p)} for p in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in [*files, temporary / "manifest.json"]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        target = self.folder / f"checkpoint_{step}"
        if target.exists():  # damaged since: `holds` said no
            shutil.rmtree(target)
        os.replace(temporary, target)
        self.prune(self.total_limit)
        return target

    def prune(self, keep: int) -> None:
        for _, path in self.found()[: -keep or None]:
            doomed = path.with_name(f".{path.name}.old")  # renamed first: a kill meanwhile leaves no half checkpoint
            shutil.rmtree(doomed, ignore_errors=True)
            os.replace(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def holds(self, step: int) -> bool:
        """Whether the step is saved already: to write it again would risk the good one for nothing."""
        path = self.folder / f"checkpoint_{step}"
        try:
            self.verify(path)
        except DamagedCheckpoint:
            return False
        return True

    def set_aside(self, after: int) -> None:
        """Rename the checkpoints after that step, which no run goes on from: they must not count for `total_limit`."""
        for step, path in self.found():
            if step > after:
                aside = path.with_name(f"unused_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)

    @staticmethod
    def verify(path: Path) -> None:
        """Raises DamagedCheckpoint unless every file of the manifest is there, with its size and hash."""
        try:
            manifest = json.loads((path / "manifest.json").read_text())
            for name, entry in manifest.items():
                file = path / name
                if not file.is_file():
                    raise DamagedCheckpoint(f"{name} is missing")
                if file.stat().st_size != entry["bytes"]:
                    raise DamagedCheckpoint(f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}")
                if _hash(file) != entry["sha256"]:
                    raise DamagedCheckpoint(f"{name} was changed since it was written")
            if "state.json" not in manifest:
                raise DamagedCheckpoint("state.json is missing")
        except DamagedCheckpoint:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DamagedCheckpoint(f"manifest.json cannot be read ({error})") from error

    def newest(self) -> Path | None:
        """The newest complete checkpoint; damaged ones are passed over with a warning."""
        for _, path in reversed(self.found()):
            try:
                self.verify(path)
                return path
            except DamagedCheckpoint as error:
                warnings.warn(f"Checkpoint {path} is damaged ({error}); trying the one before it.", stacklevel=2)
        return None


def read_state(path: Path) -> dict[str, Any]:
    return json.loads((path / "state.json").read_text())


def read_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.is_file() else {}


def recipe_differences(old: dict[str, Any], new: dict[str, Any], allowed: set[str] = frozenset()) -> list[str]:
    """'key: old -> new' for every key in which two flat recipes differ, those of `allowed` left out."""
    missing = object()
    lines = []
    for key in sorted({*old, *new} - set(allowed)):
        # JSON knows no integer keys or tuples: compare both sides as JSON would hold them; 1 and 1.0 are the same.
        a, b = (json.loads(json.dumps(v[key], default=str)) if key in v else missing for v in (old, new))
        if a != b:
            lines.append(f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}")
    return lines
