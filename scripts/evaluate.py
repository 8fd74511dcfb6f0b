"""Evaluate a model on a split; one JSON with accuracies, intervals, steps and speed.

    python scripts/evaluate.py --model checkpoints/air-sudoku-9x9 --data sapientinc/sudoku-extreme --output eval.json
    python scripts/evaluate.py --model runs/small/model --data data/sudoku --split test --limit 1000 --halt q
    python scripts/evaluate.py --model DIR --data dev.csv.gz --attempts 512 --halt rules --by-rating   # search by pins
    python scripts/evaluate.py --model DIR --data dev.csv.gz --attempts 8 --retry views --halt q
    python scripts/evaluate.py --model DIR --data dev.csv.gz --calibration-plot calibration.png
    python scripts/evaluate.py --model DIR --data dev.csv.gz --limit 200 --max-act-steps 64 --attempts 8 --curve c.png
    torchrun --nproc_per_node 8 scripts/evaluate.py --model DIR --data sapientinc/sudoku-extreme --output eval.json

exact_accuracy is the published protocol with --halt max and one attempt (the defaults: a single pass), but that an
answer's givens are the puzzle's own. --attempts K tries what is still unsolved again, by a search of up to K nodes or
by symmetric views; the rules of the puzzle, never a label, decide which answer stands. Run a killed evaluation again
with the same settings and --output: it goes on from the parts beside that file.
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
from air_model.records import environment, model_name, write_json
from air_model.scripts.door import add_solving_options, in_sentences, need_positive
from air_model.solving_air import bf16_is_fast

PICTURES = (".png", ".pdf", ".svg", ".jpg")
OPTIONS = ("halt", "max_act_steps", "attempts", "retry", "noise", "selection", "seed", "dtype", "batch_size")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", required=True, help="model folder or Hub id; several are asked one after another")
    text = "Hub data set (USER/NAME[:CONFIG]), folder of build_dataset.py, or a table (CSV, JSON, parquet, "
    add("--data", required=True, help=text + "...) with question,answer or puzzle,solution[,rating]")
    add("--split", default="test")
    add("--limit", type=int, help="only the first N puzzles")
    text = "max: all steps; q: a puzzle stops when q_halt says so; rules: at the first answer that the rules accept"
    add("--halt", choices=["max", "q", "rules"], default="max", help=text)
    add("--attempts", type=int, default=1, help="attempts at each puzzle, the puzzle itself first; default: one pass")
    add_solving_options(parser)
    text = "which attempt's answer stands: auto, the first that the rules accept; vote, the most frequent (of little "
    text += "use for mazes: views bring other shortest paths)"
    add("--selection", choices=["auto", "q", "vote"], default="auto", help=text)
    add("--compile", action="store_true", help="torch.compile the stack: pays on a GPU over some thousand puzzles")
    add("--by-rating", action="store_true", help="also accuracy per bucket of difficulty")
    add("--output", type=Path, help="JSON file; default: print only")
    add("--calibration-plot", type=Path, metavar="PNG", help="how far sigmoid(q_halt) can be trusted")
    text = "only this: accuracy against ACT steps and attempts; its numbers go to --output, else beside it"
    add("--curve", type=Path, metavar="PNG", help=text)
    args = parser.parse_args(argv)
    own = ("halt", "retry", "noise", "selection", "dtype", "by_rating", "calibration_plot")
    args.idle = [name for name in own if args.curve and getattr(args, name) != parser.get_default(name)]
    return args


def check_args(args: argparse.Namespace) -> None:
    """What can be said before anything is loaded or written. Raises ValueError."""
    need_positive(args, "limit", "max_act_steps", "attempts", "batch_size")
    if args.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {args.seed}.")
    for path in filter(None, (args.output, args.curve, args.calibration_plot)):
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give the file to write.")
        if path is not args.output and path.suffix.lower() not in PICTURES:
            raise ValueError(f"{path} is no picture that can be drawn: use {', '.join(PICTURES)}.")
    if args.idle:
        words = ", ".join("--" + name.replace("_", "-") for name in args.idle)
        raise ValueError(f"--curve runs every step of every view by itself: leave out {words}.")


@in_sentences("evaluate")
def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_args(args)
    from air_model.analysis.evaluation import Evaluation, draw_calibration
    from air_model.datasets_builders.loading import load_for_models
    from air_model.training.launch import join_processes

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
    options: dict[str, Any] = {name: getattr(args, name) for name in OPTIONS}
    own = {model.config.halt_max_steps for model in models}
    options["max_act_steps"] = args.max_act_steps or (min(own) if len(own) == 1 else None)  # None: each takes its own
    options["retry"] = retry_of(puzzles.task, args.retry, args.noise, args.selection) if args.attempts > 1 else None
    # What `solve_puzzles` takes by itself.
    halves = (device.type == "cuda" or options["retry"] == "pins") and bf16_is_fast(device.type)
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
        "variant": " + ".join(model.config.rule_name for model in models),
        "parameters": sum(p.numel() for model in models for p in model.parameters()),
        "data": args.data,
        "split": args.split,
        "limit": args.limit,
        "task": repr(puzzles.task),
        "data_fingerprint": puzzles.fingerprint,
        **options,
        "dtype": args.dtype or ("bfloat16" if halves else "float32"),
        "batch_size": evaluation.stats.get("batch_size", args.batch_size),
        "fill": evaluation.stats.get("fill"),
        "processes": world,
        "compile": args.compile,
    }
    result |= environment(device, world)
    if args.output:
        write_json(args.output, result)
    if args.calibration_plot:
        draw_calibration(result["calibration"], args.calibration_plot, model_name(args.model[0]))
    evaluation.clear()
    report(result)
    for path in filter(None, (args.output, args.calibration_plot)):
        print(f"wrote {path}")
    return 0


def curve(args: argparse.Namespace, models: list, puzzles: Any) -> int:
    from air_model.analysis.evaluation import draw_thought_curve, thought_curve

    names = list(map(model_name, args.model))  # where two are the same, the whole paths tell them apart
    options = {name: getattr(args, name) for name in ("attempts", "batch_size", "seed")}
    curves = {}
    for name, model in zip(names if len(set(names)) == len(names) else args.model, models):
        steps = args.max_act_steps or 4 * model.config.halt_max_steps
        curves[name] = thought_curve(model, puzzles, max_act_steps=steps, progress=True, **options)
    draw_thought_curve(curves, args.curve)
    about = {"data": args.data, "split": args.split, "data_fingerprint": puzzles.fingerprint}
    numbers = write_json(args.output or args.curve.with_suffix(".json"), {**about, "curves": curves})
    print(f"{args.curve} and {numbers}")
    return 0


def report(result: dict[str, Any]) -> None:
    def share(value: float, interval: list[float]) -> str:
        return f"{value:8.2%}   (95 %: {interval[0]:.2%} to {interval[1]:.2%})"

    print(f"n                    {result['n']:8}")
    notes = {"valid_accuracy": "   by the rules, whatever the label", "cell_accuracy": "   clues included"}
    for name in ("exact_accuracy", "valid_accuracy", "cell_accuracy", "blank_cell_accuracy"):
        if name in result:
            print(f"{name:20} {share(result[name], result[f'{name}_ci95'])}{notes.get(name, '')}")
    attempts = f"over {result['mean_attempts']:.2f} attempts a puzzle"
    print(f"mean_act_steps       {result['mean_act_steps']:8.2f}   {attempts}")
    if result["puzzles_per_second"]:
        print(f"puzzles_per_second   {result['puzzles_per_second']:8.3g}")
    for row in result.get("by_rating", []):
        exact = share(row["exact_accuracy"], row["ci95"])
        print(f"  rating {row['rating']:>8}  n {row['n']:6}  exact {exact}")


if __name__ == "__main__":
    sys.exit(main())
