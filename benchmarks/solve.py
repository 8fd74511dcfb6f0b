"""Speed and memory of solving, beside this machine's own large matrix product measured in the same run.

    python benchmarks/solve.py                                             # full-size Sudoku: batch sizes, one puzzle
    python benchmarks/solve.py --variant Lx_H task=maze --batch-size 1,2,4
    python benchmarks/solve.py --dtypes float32,bfloat16 --output results/benchmarks/solve_cpu.json
    python benchmarks/solve.py --halting --puzzles 200                     # halt=q against halt=max, simulated halting
    python benchmarks/solve.py --halting --model checkpoints/air-sudoku-6x6 --puzzles 4000 --rounds 2  # a trained one
    python benchmarks/solve.py --halting --model DIR --data dev.csv.gz --dtypes float32,bfloat16   # on data of yours
    python benchmarks/solve.py --compile --batch-size 1024,3196            # a GPU
    python benchmarks/solve.py --onnx --batch-size 1 --dtypes float32,bfloat16 # one puzzle, exported graphs too
    OMP_NUM_THREADS=1 python benchmarks/solve.py --cpu-time                # on a busy machine: seconds of this process

GFLOP/s count products only (220 GFLOP for a 9x9 puzzle at 16 steps); "share" is theirs of
the large product's rate, measured before and after each row and averaged. Speed does not depend on the weights, so
without --model they are random, and halting is simulated: a puzzle stops at each step with probability --halt-rate.
A trained model without --data gets generated puzzles, of solution grids that build_dataset.py keeps for test splits.
"""

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import bench
import torch

from air_model.attempts_air import solve_puzzles
from air_model.blocks_air import forward_flops
from air_model.configuration_air import AirConfig
from air_model.datasets_builders.build import BuildConfig, build
from air_model.datasets_builders.loading import PuzzleSet, load_puzzles
from air_model.modeling_air import AirModel
from air_model.pipeline_air import device_of, load_model
from air_model.processing_air import GridTask, task_from_config
from air_model.publishing.export import export_int8, export_onnx, onnx_step, solve_with
from air_model.training.cost import matmul_tflops
from air_model.training.recipe import override_values


class Case(NamedTuple):
    """What is timed: `work` takes so many puzzles through so many ACT steps each."""

    what: str
    dtype: str | None
    puzzles: int
    steps: int
    work: Callable[[], Any]


def model_of(args: argparse.Namespace) -> AirModel:
    """The model of --model, else one with random weights."""
    if args.model:
        model = load_model(args.model, args.device)
    else:
        torch.manual_seed(0)
        config = AirConfig.from_variant(args.variant, **override_values(args.overrides))
        model = AirModel(config).to(args.device).eval()
    if args.compile:
        for stack in model.stacks:
            stack.compile()
    return model


def random_puzzles(model: AirModel, count: int) -> torch.Tensor:
    generator, shape = torch.Generator().manual_seed(0), (count, model.config.seq_len)
    return torch.randint(1, model.config.vocab_size, shape, generator=generator)


def by_engine(model: AirModel, args: argparse.Namespace) -> Iterator[Case]:
    """Batches for a few ACT steps, then one puzzle for all of them."""
    sizes = sorted(set(args.batch_size or (1, 4, 8, model.default_batch_size())))
    batches = [("batch", size, args.steps or max(1, 16 // size)) for size in sizes]
    one = ("one puzzle", 1, model.config.halt_max_steps)
    for dtype, (what, size, steps) in itertools.product(args.dtypes, [*batches, one]):
        work = partial(model.solve, random_puzzles(model, size), dtype=dtype, batch_size=size, return_logits=False)
        work(max_act_steps=1)  # warm up
        yield Case(what, dtype, size, steps, partial(work, max_act_steps=steps))


def by_onnx(model: AirModel) -> Iterator[Case]:
    """One puzzle by publishing/export.py's graphs in ONNX Runtime."""
    ids, steps = random_puzzles(model, 1).numpy(), model.config.halt_max_steps
    model = model.float().cpu().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"float32": Path(folder) / "model.onnx", "int8": Path(folder) / "model_int8.onnx"}
        export_onnx(model, paths["float32"])
        export_int8(paths["float32"], paths["int8"])
        for dtype, path in paths.items():
            work = partial(solve_with, onnx_step(path), model, ids)
            work(1)  # warm up
            yield Case("one, ONNX", dtype, 1, steps, partial(work, steps))


def best_of(case: Case, config: AirConfig, args: argparse.Namespace) -> dict[str, Any]:
    """The best of --rounds as a row, with the large product measured before and after each."""
    states = torch.bfloat16 if args.device.type == "cuda" else torch.float32
    product = partial(matmul_tflops, args.device, states, bench.CLOCKS[args.clock])
    best: dict[str, Any] = {"share_of_matmul": 0.0}
    for _ in range(args.rounds):
        before = product()
        spent, solution, peak = bench.timed(case.work, args.device, bench.CLOCKS[args.clock])
        time.sleep(0.2)  # ONNX Runtime's threads spin for a while after their work, and would slow the product
        rate = 1e12 * (before + product()) / 2
        steps, stats = case.puzzles * case.steps, getattr(solution, "stats", {"batch_size": 1, "fill": 1.0})
        done = forward_flops(config) * len(config.schedule) * steps / spent
        if done / rate > best["share_of_matmul"]:
            best = {"what": case.what, "dtype": case.dtype or "default", "puzzles": case.puzzles}
            best |= {"batch_size": stats["batch_size"], "fill": stats["fill"], "act_steps": steps}
            best |= {"seconds": spent, "puzzles_per_second": case.puzzles / spent}
            best |= {"gflops": done / 1e9, "matmul_gflops": rate / 1e9, "share_of_matmul": done / rate}
            best["peak_mib"] = 1024 * peak
    if case.what != "batch":  # the target of one puzzle: at most 1.2 times the products' own time at the matmul rate
        best["times_matmul_time"] = 1 / best["share_of_matmul"]
    print(
        f"{best['what']:>10} {best['dtype']:>9}  batch {best['batch_size']:4}  "
        f"{best['puzzles_per_second']:9.3g} puzzles/s  {best['gflops']:9.1f} GFLOP/s of {best['matmul_gflops']:.1f} "
        f"({best['share_of_matmul']:.0%})  {best['seconds']:.2f} s  peak {best['peak_mib']:.0f} MiB",
        flush=True,
    )
    return best


def halting(model: AirModel, args: argparse.Namespace) -> bench.Rows:
    """halt=q (and halt=rules) against halt=max: time against the share of steps that are left."""
    task, halts, labels = task_from_config(model.config), ["max", "q"], None
    if args.model:
        puzzles = unseen(task, args)
        ids, labels = puzzles.inputs, puzzles.labels
        halts += ["rules"] * task.has_rules
    else:
        ids, generator = random_puzzles(model, args.puzzles).byte(), torch.Generator().manual_seed(1)
        model.halts = lambda q, _: (torch.rand(len(q), generator=generator) < args.halt_rate).to(q.device)
    size = args.batch_size[0] if args.batch_size else None
    work = partial(solve_puzzles, model, task, batch_size=size, check=False)
    work(ids[:64], halt="q")  # warm up
    ways = {key: partial(work, ids, dtype=key[0], halt=key[1]) for key in itertools.product(args.dtypes, halts)}
    rows: bench.Rows = []
    for (dtype, halt), runs in bench.in_turns(ways, args.rounds, args.device, bench.CLOCKS[args.clock]).items():
        spent, answers, _ = min(runs, key=lambda run: run.seconds)
        row = {"what": f"halt={halt}", "dtype": dtype or "default", "puzzles": len(ids), "seconds": spent}
        row |= {**answers.stats, "mean_act_steps": float(answers.act_steps.mean())}
        row |= bench.accuracies(answers, labels) if labels is not None else {}
        if rows:
            row["speedup"] = rows[0]["seconds"] / spent
            row["ideal_speedup"] = rows[0]["mean_act_steps"] / row["mean_act_steps"]
            row["share_of_ideal"] = row["speedup"] / row["ideal_speedup"]
        if rows and labels is not None:
            # The target: at accuracy within 0.2 points, at least 85 % of the ideal; the batch 95 % full.
            row["equally_accurate"] = rows[0]["valid_accuracy"] - row["valid_accuracy"] <= 0.002
            row["meets_target"] = row["equally_accurate"] and row["share_of_ideal"] >= 0.85 and row["fill"] >= 0.95
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))
        rows.append(row)
    return rows


def unseen(task: GridTask, args: argparse.Namespace) -> PuzzleSet:
    """Puzzles for a trained model: --data, or generated ones, of grids that build_dataset.py holds out."""
    if args.data:
        return load_puzzles(args.data, args.split, task=task, limit=args.puzzles)
    name = {"sudoku": "sudoku-extreme", "maze": "maze-hard"}[task.name]
    box = None if task.box_height is None else (task.box_height, task.box_width)
    size = {"grid": (task.height, task.width), "box": box, "num_train": 1, "num_test": args.puzzles}
    with tempfile.TemporaryDirectory() as folder:
        build(BuildConfig(dataset=name, source="generate", **size, progress=False), Path(folder) / "data")
        return load_puzzles(str(Path(folder) / "data"), "test", task=task)


def main() -> None:
    parser = bench.arguments(__doc__, clock=True)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="AirConfig fields, without --model")
    add("--model", help="folder or Hub id; default: random weights")
    add("--variant", default="Lx_H")
    add("--batch-size", type=bench.listed(int), help="comma-separated; default 1,4,8 and the engine's own")
    add("--dtypes", type=bench.listed(), default=[None], help="comma-separated: float32,bfloat16")
    add("--puzzles", type=int, default=64)
    add("--steps", type=int, help="ACT steps per row; default about 16 puzzle-steps")
    add("--rounds", type=int, default=3, help="each row is the best of so many")
    add("--halting", action="store_true", help="instead: halt=q against halt=max")
    add("--halt-rate", type=float, default=0.2)
    add("--data", help="with --halting: puzzles with answers; default: generated ones")
    add("--split", default="test")
    add("--compile", action="store_true")
    add("--onnx", action="store_true", help="also one puzzle by the exported graphs in ONNX Runtime (CPU)")
    add("--device", type=device_of, default=device_of())
    args = parser.parse_intermixed_args()
    model = model_of(args)
    if args.halting:
        rows = halting(model, args)
    else:
        rows = [best_of(case, model.config, args) for case in by_engine(model, args)]
    if args.onnx:
        rows += [best_of(case, model.config, args) for case in by_onnx(model)]
    bench.save(args.output, rows, args.device, clock=args.clock, load_average=os.getloadavg()[0])


if __name__ == "__main__":
    bench.in_sentences(main)
