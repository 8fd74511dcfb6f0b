"""Train one AIR model on one puzzle task: a recipe, overridden where you like, into a folder.

    python train_accelerate.py --recipe sudoku_6x6 --output-dir runs/small               # a laptop CPU, minutes
    accelerate launch train_accelerate.py --recipe recipes/sudoku_extreme.yaml --output-dir runs/sudoku
    accelerate launch train_accelerate.py --recipe maze_hard --output-dir runs/maze variant=L_H2x seed=3
    accelerate launch train_accelerate.py --recipe sudoku_extreme --output-dir runs/sudoku --resume
    accelerate launch --config_file recipes/accelerate/8_gpus.yaml train_accelerate.py --recipe maze_hard ...
    torchrun --nproc_per_node 2 train_accelerate.py --recipe sudoku_6x6 ...              # several CPU processes
    python train_accelerate.py --recipe sudoku_extreme --output-dir runs/try --smoke     # tiny, seconds
    python train_accelerate.py --recipe air-sudoku-9x9 --output-dir runs/9x9 --resume data=...   # all its stages

Any key of TrainConfig (training/recipe.py) or AirConfig may follow as key=value. Under --output-dir: run.json,
metrics.jsonl, curve.png, checkpoints/checkpoint_N, model/ (the best evaluated one, for AutoModel) and model_last/.
A killed run goes on with --resume, to the same weights bit for bit on a CPU, and may get another max_steps until its
learning rate begins to fall. SIGTERM saves and exits with status 0.
On a CPU one process is the fastest way to one run: on two cores, 9x9, 69 puzzle steps a second with torch's own two
threads, 57 by two processes, 53 with accumulation=2, 44 by one thread.
recipes/shipped/ holds the recipes in stages that made checkpoints/; their runs lie in stage_N/ (training/stages.py).
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:
    from scripts import _checkout  # noqa: F401  makes this checkout importable as air_model

import torch.distributed as dist

from air_model.solving_air import is_out_of_memory
from air_model.training.launch import TAKEN, FolderTaken, say
from air_model.training.miniature import miniature, on_miniature_data
from air_model.training.recipe import Recipe, make_recipe, override_values, read_recipe
from air_model.training.run import run_training
from air_model.training.stages import read_stages, run_stages


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a name in recipes/, or a path to a YAML file")
    parser.add_argument("--output-dir", type=Path, required=True, help="everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint, or start")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in --output-dir")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, 20 steps: does everything work here?")
    parser.add_argument("--append-runs", type=Path, metavar="FILE.jsonl", help="append run.json to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of TrainConfig or AirConfig")
    return parser.parse_intermixed_args(argv)


def smoke_recipe(recipe: Recipe, given: set[str], output_dir: Path) -> Recipe:
    """A miniature of a recipe, the keys `given` on the command line left as they are."""
    small = {k: v for k, v in miniature(recipe.model).items() if k not in given}
    small["max_steps" if "epochs" in given and "max_steps" not in given else "epochs"] = None
    if "data" not in given:  # needs no network, and no data set
        task = recipe.model.get("task", "sudoku")
        small |= on_miniature_data(task, output_dir / f"smoke_data_{task}")
    return make_recipe({**recipe.flat(), **small})


def explain(error: Exception) -> str:
    """What went wrong, and what to do next."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. Install what training needs: pip install 'air-model[train]'."
    if not isinstance(error, (RuntimeError, MemoryError)):
        return str(error)
    first_line = str(error).partition("\n")[0] or type(error).__name__
    return (
        f"{first_line} Out of memory. A new run with accumulation=2 computes the same batch in two parts, one with "
        "activation_checkpointing=true keeps less of each; else choose a smaller batch_size. If an evaluation "
        "needed it, --resume with a smaller eval_batch_size goes on."
    )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        how = {name: getattr(arguments, name) for name in ("resume", "overwrite", "append_runs")}
        given = override_values(arguments.overrides)
        stages = read_stages(arguments.recipe, given)
        recipes = [stage.recipe for stage in stages] or [read_recipe(arguments.recipe, given)]
        if arguments.smoke:
            recipes = [smoke_recipe(recipe, set(given), arguments.output_dir) for recipe in recipes]
        if stages:
            stages = [stage._replace(recipe=recipe) for stage, recipe in zip(stages, recipes)]
            run_stages(stages, arguments.output_dir, **how)
        else:
            run_training(recipes[0], arguments.output_dir, **how)
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        known = not isinstance(error, (RuntimeError, MemoryError)) or is_out_of_memory(error)
        if os.environ.get("AIR_TRACEBACK") or not known:
            raise
        say(f"error: {explain(error)}")
        return TAKEN if isinstance(error, FolderTaken) else 1
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
