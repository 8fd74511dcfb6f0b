"""A whole run: data, training, checkpoints, the final evaluation, and the files that are left of it."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from air_model.processing_air import SIZES, make_task
from air_model.records import append_runs_to, make_folder, read_run
from air_model.training.checkpoints import load_checkpoint, save_checkpoint, tidy_model_folders
from air_model.training.journal import leave_curve, make_trackers
from air_model.training.lattices import LatticeTrainer
from air_model.training.launch import (
    RunError,
    Signals,
    alone_in,
    already_there,
    end_with_launcher,
    is_first_process,
    refuse_lonely_process,
    say,
)
from air_model.training.recipe import Recipe, recipe_differences
from air_model.training.trainer import BadLoss, Trainer

# What a run leaves in its folder.
FILES = (
    "checkpoints", "model", "model_last", "tensorboard", "trackers", ".wandb_id", "metrics.jsonl", "run.json",
    "curve.png",
)  # fmt: skip


def load_data(recipe: Recipe) -> tuple[Any, Any | None]:
    """(training set, evaluation set or None), cut to the sizes that the recipe asks for."""
    from air_model.datasets_builders import load_puzzles

    config = recipe.train
    if not config.data:
        raise RunError("The recipe names no data. Add data=...: a Hub id, a folder of build_dataset.py, or a CSV.")
    m, task = recipe.model, None  # the task as far as the recipe itself fixes it; None leaves it to the data
    if m.get("task") == "grid" or m.get("task") and m.get("grid_height"):
        task = make_task(m["task"], *map(m.get, SIZES))
    train_set = load_puzzles(config.data, config.train_split, task=task)
    if config.train_size is not None and config.train_size < len(train_set):
        rows = np.random.default_rng(config.data_seed).permutation(len(train_set))[: config.train_size]
        train_set = train_set.select(np.sort(rows))
    elif config.train_size is not None and config.train_size > len(train_set):
        say(f"train_size={config.train_size}, but {config.data} has {len(train_set)} training rows: all are used.")
    if config.eval_data is None and Path(config.data).is_file():
        say(f"{config.data} is one file: nothing is held out to evaluate on. Give eval_data=... for that.")
        return train_set, None
    limits = [config.eval_limit, config.eval_limit if config.final_eval_limit is None else config.final_eval_limit]
    source, limit = config.eval_data or config.data, max(limits) if all(limits) else None
    if config.eval_split != "auto":
        return train_set, load_puzzles(source, config.eval_split, task=task, limit=limit)
    try:
        return train_set, load_puzzles(source, "dev", task=task, limit=limit)
    except FileNotFoundError:
        return train_set, load_puzzles(source, "test", task=task, limit=limit)


def run_training(
    recipe: Recipe,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    append_runs: Path | None = None,
    signals: Signals | None = None,
) -> dict[str, Any]:
    """A whole run: data, training, checkpoints, evaluation, files. Returns the contents of run.json.

    Args:
        resume: go on from the newest complete checkpoint under output_dir, or start where there is none.
        overwrite: delete an earlier run in output_dir. append_runs: a .jsonl to which run.json is appended at the end.
        signals: the caller's, who wants to know afterwards whether one came.
    """
    start, output_dir = time.perf_counter(), Path(output_dir)
    refuse_lonely_process(int(os.environ.get("WORLD_SIZE") or 1))
    first_process = is_first_process()
    if append_runs is not None and first_process:
        make_folder(Path(append_runs).parent)  # a wrong place is found before the training
    with alone_in(output_dir) if first_process else contextlib.nullcontext(), signals or Signals() as signals:
        if (output_dir / "run.json").exists() and not (resume or overwrite):
            raise already_there(output_dir)
        earlier = read_run(output_dir)
        kind = LatticeTrainer if recipe.train.lattices else Trainer
        trainer = kind(recipe, output_dir, *load_data(recipe))
        trainer.clock.setting_up = start
        if overwrite and not resume and first_process:  # only now: a recipe that cannot run costs no earlier run
            earlier = {}
            for path in map(output_dir.joinpath, FILES):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        resumed = _set_out(trainer, resume)
        report = earlier if resumed and _is_finished(trainer, earlier) else _train(trainer, signals)
        if trainer.is_main:
            if append_runs is not None and report["status"] == "finished":
                append_runs_to(append_runs, [report])
            if report is not earlier or not (output_dir / "curve.png").exists():
                leave_curve(output_dir)
        trainer.accelerator.wait_for_everyone()
        return report


def _train(trainer: Trainer, signals: Signals) -> dict[str, Any]:
    """Train to the end or a stop; returns what run.json then holds."""
    if trainer.is_main:
        # Of this step an evaluation that is owed, or the final one, is made again.
        again = trainer.step >= trainer.max_steps or trainer.evaluation_owed
        trainer.journal.forget_after(trainer.step, evaluation_again=again)
        trainer.journal.trackers = make_trackers(
            trainer.train.trackers, trainer.output_dir, trainer.recipe.flat(), trainer.train.run_name, trainer.step
        )
        trainer.write_report("running")
    signals.install(signal.SIGINT)  # only now is there something to save
    end_with_launcher()
    evaluation: dict[str, Any] = {}
    try:
        trainer.run(signals)
        if not trainer.stop_reason:
            evaluation = _finish(trainer)
        if trainer.stop_reason:
            trainer.say(f"Stopped by {trainer.stop_reason} after step {trainer.step}; --resume goes on from here.")
    except BadLoss as error:
        trainer.clock.update()
        if trainer.world == 1 and trainer.device.type == "cpu" and trainer.step and trainer.weights_are_finite():
            save_checkpoint(trainer)
        newest = trainer.store.found()
        kept = f"The last good state is {newest[-1][1]}." if newest else "No checkpoint had been written before it."
        trainer.write_report("failed")
        raise BadLoss(f"{error} {kept} Try a lower learning rate, a longer warm-up or grad_clip=1.") from None
    finally:
        trainer.journal.close()
    return trainer.write_report("stopped" if trainer.stop_reason else "finished", evaluation)


def _set_out(trainer: Trainer, resume: bool) -> bool:
    """Load the newest checkpoint, or begin at the start; whether it was the former."""
    trainer.accelerator.wait_for_everyone()
    trainer.output_dir.mkdir(parents=True, exist_ok=True)
    if trainer.is_main:
        trainer.store.sweep()
    resumed = resume and load_checkpoint(trainer)
    if trainer.is_main:
        tidy_model_folders(trainer.output_dir, restore=resumed)
    if not resumed:
        if resume:
            trainer.say(f"No complete checkpoint under {trainer.output_dir}: starting from the beginning.")
        if trainer.is_main:
            trainer.store.set_aside(-1)  # of a run that left no run.json
        trainer.take_initial_weights()
    return resumed


def _is_finished(trainer: Trainer, earlier: dict[str, Any]) -> bool:
    """Whether nothing is left to do for a resumed run; takes over from its run.json which model was the best."""
    # The final evaluation comes after the last checkpoint: what it settled is in run.json alone.
    settled = (earlier.get("metrics") or {}).get("best") or {}
    same = (earlier.get("data") or {}).get("eval") == trainer.data["eval"]
    if same and trainer.best.get("step", -1) < settled.get("step", -1) <= trainer.step:
        trainer.best = settled
    done = (
        earlier.get("status") == "finished"
        and earlier.get("steps") == trainer.step == trainer.max_steps
        and (trainer.output_dir / "model_last").is_dir()
        and not recipe_differences(earlier["config"], trainer.recipe.flat())
    )
    if done:
        trainer.say(f"This run has finished already: {trainer.output_dir / 'run.json'}.")
    return done


def _finish(trainer: Trainer) -> dict[str, Any]:
    """The final evaluation and the model folders; a signal meanwhile is noted in `stop_reason`."""
    evaluation = trainer.evaluate(final=True)
    if trainer.evaluation_owed:
        trainer.stop_reason = "signal"
        return evaluation
    try:
        with trainer.ema.applied() if trainer.ema is not None else contextlib.nullcontext():
            trainer.save_model("model_last")
            # Where nothing was ever evaluated, the last weights are the best that is known.
            if trainer.is_main and not (trainer.best and (trainer.output_dir / "model").is_dir()):
                trainer.save_model("model")
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"Training is done, but the model could not be written ({error}). Free some disk space and run "
            "the same command with --resume: it goes on from the last checkpoint."
        ) from error
    return evaluation
