"""Checkpoints: a folder of safetensors and JSON, written beside and renamed, with a manifest of sizes and hashes.

A full disk costs a checkpoint, never the run. Model folders (model/, model_last/) are replaced in the same way.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from air_model.modeling_air import AirModel
from air_model.optim_air import lr_factor
from air_model.pipeline_air import save_release
from air_model.records import read_json, whole_folder
from air_model.training.launch import RunError
from air_model.training.recipe import MODEL_FIELDS, TrainConfig, free_on_resume, recipe_differences

# What of a trainer state.json keeps as it is.
STATE = ("step", "since_log", "best", "last_metrics", "earlier_runs", "evaluation_owed")
RATE = ("warmup_steps", "schedule", "tail_share")  # what else the rate follows from, beside budget and lr_min_ratio


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


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

    def finish(self, temporary: Path, step: int) -> None:
        """Write the manifest, flush to the disk, rename, and delete the oldest beyond `total_limit`."""
        files = sorted(temporary.iterdir())
        manifest = {p.name: {"bytes": p.stat().st_size, "sha256": _hash(p)} for p in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for path in [*files, temporary / "manifest.json"]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        target = self.folder / f"checkpoint_{step}"
        if target.exists():  # damaged: else it would not be written again
            shutil.rmtree(target)
        os.replace(temporary, target)
        self.prune(self.total_limit)

    def prune(self, keep: int) -> None:
        for _, path in self.found()[:-keep]:
            doomed = path.with_name(f".{path.name}.old")  # renamed first: a kill meanwhile leaves no half checkpoint
            os.replace(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def set_aside(self, after: int) -> None:
        """Rename the checkpoints after that step, which no run goes on from: they must not count for `total_limit`."""
        for step, path in self.found():
            if step > after:
                aside = path.with_name(f"unused_{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)

    def fault(self, step: int) -> str:
        """What is wrong with the checkpoint of that step; "" where every file of the manifest is there, unchanged."""
        path = self.folder / f"checkpoint_{step}"
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            for name, entry in manifest.items():
                file = path / name
                if not file.is_file():
                    return f"{name} is missing"
                if file.stat().st_size != entry["bytes"]:
                    return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
                if _hash(file) != entry["sha256"]:
                    return f"{name} was changed since it was written"
            return "" if "state.json" in manifest else "state.json is missing"
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            return f"manifest.json cannot be read ({error})"

    def newest(self) -> Path | None:
        """The newest complete checkpoint; damaged ones are passed over with a warning."""
        for step, path in reversed(self.found()):
            if not (fault := self.fault(step)):
                return path
            warnings.warn(f"Checkpoint {path} is damaged ({fault}); trying the one before it.", stacklevel=2)
        return None


def save_checkpoint(trainer: Any) -> bool:
    """Write checkpoint_<step> of a training.trainer.Trainer; a full disk costs this checkpoint, not the run."""
    store = trainer.store
    trainer.check_loss(weights=True)
    # To write a good one again would risk it for nothing.
    if trainer.agree(trainer.is_main and not store.fault(trainer.step)):
        return True
    error = _try_save(trainer)
    if trainer.agree(error is not None) and trainer.agree(trainer.is_main and len(store.found()) > 1):
        trainer.say(f"Checkpoint {trainer.step} could not be written ({error}); deleting older ones.")
        if trainer.is_main:
            store.prune(1)
        error = _try_save(trainer)
    failed = trainer.agree(error is not None)
    if failed and trainer.is_main:
        store.sweep()
        newest = store.found()[-1][1] if store.found() else "none"
        trainer.say(
            f"WARNING: checkpoint {trainer.step} could not be written ({error}). Training goes on; the newest "
            f"complete one is {newest}. Free some disk space."
        )
    return not failed


def _try_save(trainer: Any) -> Exception | None:
    """Every process writes its part, the first one what they share; returns what went wrong, here or elsewhere."""
    store, step = trainer.store, trainer.step
    temporary = store.folder / f".checkpoint_{step}.tmp"
    if trainer.is_main:
        store.sweep()
    trainer.accelerator.wait_for_everyone()
    error = _attempt(_save_parts, trainer, temporary)
    if trainer.agree(error is not None):
        return error or OSError(errno.EIO, "another process could not write its part")
    return _attempt(store.finish, temporary, step) if trainer.is_main else None


def _attempt(write: Callable[..., Any], *arguments: Any) -> Exception | None:
    try:
        write(*arguments)
    except (OSError, SafetensorError) as error:
        return error
    return None


def _save_parts(trainer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({**trainer.slots.state(), "totals": trainer.totals}, folder / f"carry_{trainer.rank}.safetensors")
    if not trainer.is_main:
        return
    save_tensors(trainer.trained.state_dict(), folder / "model.safetensors")
    tensors, values = trainer.optimizers.state()
    save_tensors(tensors, folder / "optimizer.safetensors")
    if trainer.ema is not None:
        save_tensors(trainer.ema.shadow, folder / "ema.safetensors")
    state = {
        **{name: getattr(trainer, name) for name in STATE},
        **trainer.clock.state(),
        "world_size": trainer.world,
        "bf16": trainer.bf16,
        "optimizer_values": values,
        "recipe": trainer.recipe.flat(),
        "model_config": trainer.config.to_dict(),
        "max_steps": trainer.max_steps,
        "data": trainer.data,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")


def load_checkpoint(trainer: Any) -> bool:
    """Go on from the newest complete checkpoint; False where there is none.

    Raises:
        RunError: it was written with another recipe or other data, or has done more steps than are asked for.
    """
    path = trainer.store.newest()
    trainer.accelerator.wait_for_everyone()  # everybody has looked
    if trainer.is_main and trainer.store.folder.is_dir():
        trainer.store.set_aside(-1 if path is None else read_json(path / "state.json")["step"])
    if path is None:
        return False
    state = read_json(path / "state.json")
    _refuse_changes(trainer, path, state)
    if state["step"] > trainer.max_steps:
        raise RunError(f"{path} has done {state['step']} steps already, more than max_steps={trainer.max_steps}.")
    if state["bf16"] != trainer.bf16:
        now, then = ("bf16", "fp32") if trainer.bf16 else ("fp32", "bf16")
        trainer.say(f"WARNING: the run was computed in {then} and goes on in {now}; mixed_precision= decides.")
    trainer.trained.load_state_dict(load_file(path / "model.safetensors"))
    trainer.optimizers.load_state(load_file(path / "optimizer.safetensors"), state["optimizer_values"])
    if trainer.ema is not None:
        trainer.ema.load(load_file(path / "ema.safetensors"))
    for name in STATE:
        setattr(trainer, name, state[name])
    trainer.clock.load(state)
    if (state["data"]["eval"] or {}).get("fingerprint") != (trainer.data["eval"] or {}).get("fingerprint"):
        trainer.best = {}  # of other puzzles
    if state["world_size"] == trainer.world:
        mine = load_file(path / f"carry_{trainer.rank}.safetensors")
        trainer.slots.load(mine)
        trainer.totals.copy_(mine["totals"])
    else:
        trainer.since_log = 0
        trainer.say(
            f"The checkpoint was written by {state['world_size']} processes, now there are {trainer.world}: its "
            "carry is dropped, every slot starts a fresh puzzle. Weights, optimizers and step go on."
        )
    trainer.say(f"Resumed from {path}: {trainer.step} of {trainer.max_steps} steps done.")
    return True


def _refuse_changes(trainer: Any, path: Path, state: dict[str, Any]) -> None:
    allowed = set(free_on_resume(state["recipe"], trainer.recipe.flat(), trainer.output_dir))
    same_data = state["data"]["train"]["fingerprint"] == trainer.data["train"]["fingerprint"]
    if same_data:
        allowed.add("data")  # the same puzzles may lie elsewhere
    # Model keys that a recipe leaves out are what the config has; those that a version had not yet are left alone.
    configs = state["model_config"], trainer.config.to_dict()
    old, new = ({key: config[key] for key in MODEL_FIELDS if key in configs[0]} for config in configs)
    # A checkpoint of an older version lacks keys that came since: it ran with what is now their default.
    old |= {**asdict(TrainConfig(max_steps=1)), "max_steps": None, **state["recipe"]}
    new |= trainer.recipe.flat()
    # Until the rate begins to fall, another budget or another fall changes no weight.
    if _rates(old, state["max_steps"], state["step"]) == _rates(new, trainer.max_steps, state["step"]):
        allowed |= {"epochs", "max_steps", "lr_min_ratio", *RATE}
    changed = recipe_differences(old, new, allowed)
    if not changed and not same_data:
        changed = ["the training data has changed since"]
    if changed:
        last = trainer.output_dir / "model_last"  # a run that was killed has none
        raise RunError(
            f"{path} was written with another recipe, so the run cannot go on from it:\n  "
            + "\n  ".join(changed)
            + "\nResume with the old values, or start a new run in another --output-dir"
            + (f"; there init_from={last} goes on from its last weights." if last.is_dir() else ".")
        )


def _rates(flat: dict[str, Any], max_steps: int, steps: int) -> list[float]:
    """What the learning rates were multiplied with in the first `steps` steps of a flat recipe."""
    values = {"max_steps": max_steps, "min_ratio": flat["lr_min_ratio"], **{name: flat[name] for name in RATE}}
    return [lr_factor(step, **values) for step in range(1, steps + 1)]


def write_model_folder(model: AirModel, target: Path) -> None:
    """A model folder as the Hub wants it (weights, config, processor, code), written beside and renamed."""
    with whole_folder(target) as folder:
        save_release(model, folder)


def tidy_model_folders(output_dir: Path, restore: bool) -> None:
    """Put right what a kill left while a model folder was written: the one before, and no parts of a new one.

    Without `restore` nothing comes back: a run that starts anew has no model yet.
    """
    for name in ("model", "model_last"):
        target, old = output_dir / name, output_dir / f".{name}.old"
        if restore and old.is_dir() and not target.exists():
            os.replace(old, target)
    for left in output_dir.glob(".*model*"):  # `..model.tmp.tmp-…` is save_release's own
        if re.match(r"\.+model(_last)?\.(tmp|old)", left.name):
            shutil.rmtree(left, ignore_errors=True)
