"""Evaluate a model on a split; one JSON with accuracies, intervals, steps and speed.

    python scripts/evaluate.py --model checkpoints/air-sudoku --data sapientinc/sudoku-extreme --output eval.json
    python scripts/evaluate.py --model runs/small/model --data data/sudoku --split test --limit 1000 --halt q
    python scripts/evaluate.py --model DIR --data dev.csv.gz --attempts 512 --halt rules --by-rating   # search by pins
    python scripts/evaluate.py --model DIR --data dev.csv.gz --attempts 8 --retry views --halt q
    python scripts/evaluate.py --model DIR --data dev.csv.gz --calibration-plot calibration.png
    python scripts/evaluate.py --model DIR --data dev.csv.gz --limit 200 --max-act-steps 64 --attempts 8 --curve c.png
    torchrun --nproc_per_node 8 scripts/evaluate.py --model DIR --data sapientinc/sudoku-extreme --output eval.json

exact_accuracy is the published protocol with --halt max and one attempt (the defaults: a single pass), but that an
answer's givens are the puzzle's own. --attempts K tries what is still unsolved again: Sudokus by a search of up to K
nodes, else by symmetric views; the rules of the puzzle, never a label, decide which answer stands. Run a killed
evaluation again with the same settings and --output: it goes on from the parts beside that file.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

if not __package__:
    import _checkout  # noqa: F401

from air_model.attempts_air import retry_of
from air_model.pipeline_air import in_size, load_model
from air_model.records import environment, write_json
from air_model.solving_air import bf16_is_fast

PICTURES = (".png", ".pdf", ".svg", ".jpg")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="model folder or Hub id; several are asked one after another")
    add(
        "--data",
        required=True,
        help="Hub data set, folder of build_dataset.py, or a table (CSV, JSON, parquet, ...) with question,answer or "
        "puzzle,solution[,rating]",
    )
    add("--values", choices=["digits", "tokens"], help="what numbers are, where --data holds lists of them")
    add("--split", default="test")
    add("--limit", type=int, help="only the first N puzzles")
    add(
        "--halt",
        choices=["max", "q", "rules"],
        default="max",
        help="max: all steps; q: a puzzle stops when q_halt says so; rules: at the first answer that the rules accept",
    )
    add("--max-act-steps", type=int, help="default: the model's halt_max_steps; more is allowed")
    add("--attempts", type=int, default=1, help="attempts at each puzzle, the puzzle itself first; default: one pass")
    add("--retry", choices=["pins", "views"], help="further attempts: search by pins (Sudokus' default), or views")
    add("--noise", type=float, default=0.0, help="noise on the states from the second attempt on (their RMS is 1)")
    add(
        "--selection",
        choices=["auto", "q", "vote"],
        default="auto",
        help="which attempt's answer stands: auto, the first "
        "that the rules accept; vote, the most frequent (of little use for mazes: views bring other shortest paths)",
    )
    add("--seed", type=int, default=0, help="of views and noise")
    add("--batch-size", type=int, help="puzzles at a time; default: what suits the device")
    add("--dtype", help="float32 or bfloat16; default: bfloat16 on a GPU, float32 on a CPU")
    add("--device", help="default: the GPU if there is one")
    add("--compile", action="store_true", help="torch.compile the stack: pays on a GPU over some thousand puzzles")
    add("--by-rating", action="store_true", help="also accuracy per bucket of difficulty")
    add("--output", type=Path, help="JSON file; default: print only")
    add("--calibration-plot", type=Path, metavar="PNG", help="how far sigmoid(q_halt) can be trusted")
    add(
        "--curve",
        type=Path,
        metavar="PNG",
        help="only this: accuracy against ACT steps and attempts; its numbers go to --output, else beside it",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        return evaluate(args)
    except (ValueError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1


def evaluate(args: argparse.Namespace) -> int:
    from air_model.analysis.evaluation import Evaluation, draw_calibration
    from air_model.datasets_builders.loading import load_for_models
    from air_model.training.launch import join_processes

    check_args(args)
    rank, world, device, wait = join_processes(args.device, "scripts/evaluate.py")
    if world > 1 and args.output is None:
        raise ValueError("Several processes meet in the parts beside --output: give that file.")
    models = [load_model(source, device) for source in args.model]
    puzzles = load_for_models(models, args.data, args.split, args.limit, args.values)
    models = [in_size(model, puzzles.task) for model in models]
    if args.compile:
        for model in models:
            for stack in model.stacks:
                stack.compile()
    if args.curve is not None:
        return curve(args, models, puzzles) if rank == 0 else 0
    names = ("halt", "max_act_steps", "attempts", "retry", "noise", "selection", "seed", "dtype", "batch_size")
    options: dict[str, Any] = {name: getattr(args, name) for name in names}
    options["max_act_steps"] = args.max_act_steps or models[0].config.halt_max_steps
    options["retry"] = retry_of(puzzles.task, args.retry, args.noise, args.selection) if args.attempts > 1 else None
    searches_in_bf16 = options["retry"] == "pins" and bf16_is_fast()  # what `solve_puzzles` then takes by itself
    output = args.output or Path(tempfile.gettempdir()) / f"air-evaluate-{os.getpid()}.json"
    parts = output.with_name(f"{output.name}.parts")
    evaluation = Evaluation(models, puzzles, parts, rank=rank, world=world, wait=wait, progress=rank == 0, **options)
    evaluation.run()
    wait()
    if rank:
        return 0
    result = evaluation.result()
    if not args.by_rating:
        result.pop("by_rating", None)
    elif "by_rating" not in result:
        print(f"evaluate: {args.data} has no ratings, so there is no accuracy per rating.", file=sys.stderr)
    result["settings"] = {
        "model": args.model,
        "variant": models[0].config.variant,
        "parameters": sum(p.numel() for p in models[0].parameters()),
        "data": args.data,
        "split": args.split,
        "limit": args.limit,
        "task": repr(puzzles.task),
        "data_fingerprint": puzzles.fingerprint,
        **options,
        "dtype": args.dtype or ("bfloat16" if device.type == "cuda" or searches_in_bf16 else "float32"),
        "batch_size": evaluation.stats.get("batch_size", args.batch_size),
        "fill": evaluation.stats.get("fill"),
        "processes": world,
        "compile": args.compile,
    }
    result |= environment(device, world)
    if args.output:
        write_json(args.output, result)
    if args.calibration_plot:
        draw_calibration(result["calibration"], args.calibration_plot, Path(args.model[0]).name)
    evaluation.clear()
    report(result, args)
    return 0


def check_args(args: argparse.Namespace) -> None:
    """What can be said before anything is loaded or written. Raises ValueError."""
    for name in ("limit", "max_act_steps", "attempts", "batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be 1 or more, got {value}.")
    if args.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {args.seed}.")
    for path in (args.output, args.curve, args.calibration_plot):
        if path is not None and path.is_dir():
            raise ValueError(f"{path} is a folder: give the file to write.")
    for path in (args.curve, args.calibration_plot):
        if path is not None and path.suffix.lower() not in PICTURES:
            raise ValueError(f"{path} is no picture that can be drawn: use {', '.join(PICTURES)}.")
    if args.curve is not None:
        defaults = {"halt": "max", "retry": None, "noise": 0.0, "selection": "auto", "dtype": None, "by_rating": False}
        defaults["calibration_plot"] = None
        said = ["--" + name.replace("_", "-") for name, value in defaults.items() if getattr(args, name) != value]
        if said:
            raise ValueError(f"--curve runs every step of every view by itself: leave out {', '.join(said)}.")


def curve(args: argparse.Namespace, models: list, puzzles: Any) -> int:
    from air_model.analysis.evaluation import draw_thought_curve, thought_curve

    given = {"attempts": args.attempts, "batch_size": args.batch_size, "seed": args.seed, "progress": True}
    # Trainers call every folder "model": then the whole paths tell them apart.
    names = [Path(name).name for name in args.model]
    curves = {}
    for name, model in zip(names if len(set(names)) == len(names) else args.model, models):
        steps = args.max_act_steps or 4 * model.config.halt_max_steps
        curves[name] = thought_curve(model, puzzles, max_act_steps=steps, **given)
    draw_thought_curve(curves, args.curve)
    numbers = args.output or args.curve.with_suffix(".json")
    about = {"data": args.data, "split": args.split, "data_fingerprint": puzzles.fingerprint}
    write_json(numbers, {**about, "curves": curves})
    print(f"{args.curve} and {numbers}")
    return 0


def report(result: dict[str, Any], args: argparse.Namespace) -> None:
    def share(value: float, interval: list[float]) -> str:
        return f"{value:8.2%}   (95 %: {interval[0]:.2%} to {interval[1]:.2%})"

    print(f"n                    {result['n']:8}")
    notes = {"valid_accuracy": "   by the rules, whatever the label", "cell_accuracy": "   clues included"}
    for name in ("exact_accuracy", "valid_accuracy", "cell_accuracy", "blank_cell_accuracy"):
        if name in result:
            print(f"{name:21}{share(result[name], result[f'{name}_ci95'])}{notes.get(name, '')}")
    print(
        f"mean_act_steps       {result['mean_act_steps']:8.2f}   over {result['mean_attempts']:.2f} attempts a puzzle"
    )
    if result["puzzles_per_second"]:
        print(f"puzzles_per_second   {result['puzzles_per_second']:8.3g}")
    for row in result.get("by_rating", []):
        exact = share(row["exact_accuracy"], row["ci95"])
        print(f"  rating {row['rating']:>8}  n {row['n']:6}  exact {exact}")
    for path in (args.output, args.calibration_plot):
        if path:
            print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
