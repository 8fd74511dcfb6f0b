"""Recipes in stages: runs that go on from one another's weights, some averaged with those that they started from.

    base: sudoku_9x9_cpu        # its values hold in every stage, unless they are given here or there
    stages:
      - max_steps: 1500
      - max_steps: 7000         # starts from the weights that the stage before left
        l_cycles: 6
        average: true           # leaves the mean of its weights and of those that it started from

`start` of a stage is `last` (the default: the weights that the stage before left), `model` (its best evaluated ones)
or a model folder. Every stage is a run in stage_N/ of the chain's folder, beside the chain's own model/ and run.json.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from air_model.configuration_air import AirConfig
from air_model.modeling_air import AirModel
from air_model.pipeline_air import device_of, load_model
from air_model.records import append_runs_to, command_line, make_folder, read_run, whole_folder, write_json
from air_model.training.checkpoints import write_model_folder
from air_model.training.launch import (
    FolderTaken,
    RunError,
    already_there,
    is_first_process,
    is_taken,
    join_processes,
    say,
)
from air_model.training.recipe import Recipe, has_finished, make_recipe, model_config, override, recipe_values
from air_model.training.run import load_data, run_training
from air_model.training.trainer import evaluate_model

SUMMARY = ("name", "status", "steps", "wall_seconds", "tflops", "metrics", "average", "config")  # of a stage


class Stage(NamedTuple):
    """One run of a chain, its recipe without the start; `start`: "" for fresh weights."""

    recipe: Recipe
    start: str
    average: bool


def read_stages(name: str | os.PathLike, overrides: dict[str, Any]) -> list[Stage]:
    """The stages of a recipe, `overrides` on top of each; [] for a recipe of one run.

    Raises:
        ValueError: a stage that cannot be, named by its number.
    """
    values = recipe_values(name)
    if "stages" not in values:
        return []
    chain = values.pop("stages")
    if not (isinstance(chain, list) and chain and all(isinstance(stage, dict) for stage in chain)):
        raise ValueError(f"stages of {name} must be a list of the values of each stage, such as `- max_steps: 100`.")
    common = override(recipe_values(values.pop("base")), values) if "base" in values else values
    stages: list[Stage] = []
    for number, given in enumerate(chain, 1):
        given = dict(given)
        if stages and given.get("init_from"):
            raise ValueError(
                f"Stage {number} of {name}: a stage says what it begins from as start=, not as init_from=."
            )
        start, average = given.pop("start", "last" if stages else ""), bool(given.pop("average", False))
        try:
            recipe = make_recipe(override(override(common, given), overrides))
        except ValueError as error:
            raise ValueError(f"Stage {number} of {name}: {error}") from None
        stage = Stage(recipe, str(start), average)
        if not stages and stage.start in ("last", "model"):
            raise ValueError(f"start={stage.start} of the first stage of {name}: there is none before it.")
        if average and not (stages and _shapes(stages[-1].recipe) == _shapes(recipe)):
            raise ValueError(
                f"Stage {number} of {name} cannot be averaged with its start, whose weights are of other shapes."
            )
        stages.append(stage)
    return stages


def _shapes(recipe: Recipe) -> dict[str, torch.Size]:
    """Of all weights, by name."""
    values = dict(recipe.model)
    with torch.device("meta"):
        model = AirModel(AirConfig.from_variant(values.pop("variant"), **values))
    return {name: weight.shape for name, weight in model.state_dict().items()}


def run_stages(
    stages: list[Stage],
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    append_runs: Path | None = None,
) -> dict[str, Any]:
    """Run a chain; with `resume` finished stages are kept and a half-done one goes on. Returns the chain's run.json.

    Raises:
        RunError: the folder holds a run already, or a stage would go on from which the next one began. ValueError,
        FileNotFoundError: a stage that cannot run; nothing has been trained then.
    """
    output_dir, first_process = Path(os.path.abspath(output_dir)), is_first_process()
    folders = [output_dir / f"stage_{number}" for number in range(1, len(stages) + 1)]
    wait = join_processes(None, "train_accelerate.py")[-1]
    if not (resume or overwrite) and any(path.exists() for path in (output_dir / "run.json", *folders)):
        raise already_there(output_dir)
    wait()  # everybody has looked
    anew = overwrite and not resume
    if anew and first_process and (taken := [folder for folder in folders if is_taken(folder)]):
        raise FolderTaken(f"Another process is training into {taken[0]}: nothing was deleted.")
    for stage, folder in zip(stages, folders) if first_process else ():
        if anew or not folder.exists():  # one that cannot run costs neither an earlier run nor the stages before it
            _check(stage, output_dir)
    if anew and first_process:
        for path in (output_dir / "model", *output_dir.glob("stage_*")):
            shutil.rmtree(path, ignore_errors=True)
        (output_dir / "run.json").unlink(missing_ok=True)
    wait()  # nobody sees what is deleted
    record: dict[str, Any] = {}
    starts: dict[str, Path] = {}  # what the stage before left
    for number, (stage, folder) in enumerate(zip(stages, folders)):
        start = str(starts.get(stage.start, stage.start))
        recipe = make_recipe({**stage.recipe.flat(), "init_from": start}) if start else stage.recipe
        starts = {"last": folder / ("model_average" if stage.average else "model_last"), "model": folder / "model"}
        if first_process:
            say(f"Stage {number + 1} of {len(stages)}: {folder}")
        report = read_run(folder)
        if not has_finished(report, recipe.flat(), folder):
            if number + 1 < len(stages) and folders[number + 1].exists() and _is_longer(recipe, report):
                raise RunError(
                    f"{folder} would go on, but the stages after it began from what it left before. Resume with its "
                    f"old number of steps, remove those stages ({folders[number + 1].name} ...), or choose another "
                    "--output-dir."
                )
            torch.compiler.reset()  # graphs of the stage before would count towards the limit of recompilations
            report = run_training(recipe, folder, resume=resume)
        if report["status"] == "finished" and stage.average:
            report = _averaged(recipe, folder, report, first_process)
        part = {name: report.get(name) for name in SUMMARY} | {"start": stage.start}
        parts = [*record.get("stages", []), part]
        # `earlier_runs` of a report are its stages, so that the seconds of all add up.
        record = {**report, "name": output_dir.name, "command": command_line(), "stages": parts}
        if "average" in report:  # model/ is the mean, not what the last stage evaluated
            record["metrics"] = {**report["metrics"], "eval": report["average"], "best": report["average"]}
        if number + 1 < len(stages) and record["status"] == "finished":
            record["status"] = "running"
        if first_process:
            make_folder(output_dir)
            write_json(output_dir / "run.json", record)
        if report["status"] != "finished":
            return record
    if first_process:
        with whole_folder(output_dir / "model") as copy:
            shutil.copytree(folder / ("model_average" if stage.average else "model"), copy, dirs_exist_ok=True)
        if append_runs is not None:
            append_runs_to(append_runs, [record])
    return record


def _check(stage: Stage, output_dir: Path) -> None:
    """Raises what its run would: no data, no such model, nothing to start from."""
    model_config(stage.recipe, load_data(stage.recipe)[0].task)
    to_come = Path(os.path.abspath(stage.start)).is_relative_to(output_dir)  # an earlier stage will leave it
    if stage.start not in ("", "last", "model") and not to_come:
        load_model(stage.start, "cpu")


def _is_longer(recipe: Recipe, report: dict[str, Any]) -> bool:
    """Whether a finished run would now go on, as one may whose rate does not depend on its length."""
    now, before = recipe.flat(), report.get("config", {})
    return report.get("status") == "finished" and any(now[k] != before.get(k) for k in ("max_steps", "epochs"))


def _averaged(recipe: Recipe, folder: Path, report: dict[str, Any], first_process: bool) -> dict[str, Any]:
    """Write model_average/, evaluated; its scores stand under "average" in the stage's run.json."""
    while not first_process and "average" not in (report := read_run(folder)):
        time.sleep(0.1)
    if "average" in report:
        return report
    sources = str(folder / "model_last"), recipe.train.init_from
    model, start = (load_model(source, "cpu").float() for source in sources)
    theirs = start.state_dict()
    model.load_state_dict({name: torch.lerp(ours, theirs[name], 0.5) for name, ours in model.state_dict().items()})
    write_model_folder(model, folder / "model_average")
    scores, puzzles, train = None, load_data(recipe)[1], recipe.train
    if puzzles is not None:
        limit = train.eval_limit if train.final_eval_limit is None else train.final_eval_limit
        scores = evaluate_model(
            model.to(device_of()),
            puzzles.select(slice(limit or None)),
            batch_size=train.eval_batch_size or train.batch_size,
            dtype=torch.bfloat16 if report["precision"].startswith("bf16") else torch.float32,
        )
        say(f"The mean of its weights and its start: {scores}")
    report = {**report, "average": scores}
    write_json(folder / "run.json", report)
    return report
