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

GFLOP/s count products only, as ANCHORS section 2b does (220 GFLOP for a 9x9 puzzle at 16 steps); "share" is theirs of
the large product's rate, measured before and after each row and averaged. Speed does not depend on the weights, so
without --model they are random, and halting is simulated: a puzzle stops at each step with probability --halt-rate.
A trained model without --data gets generated puzzles, of solution grids that build_dataset.py keeps for test splits.
"""

import argparse
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    import bench  # noqa: F401

import torch

from air_model.attempts_air import solve_puzzles
from air_model.benchmarks.bench import Rows, arguments, forget_peak, in_sentences, peak_gib, save, seconds
from air_model.blocks_air import forward_flops
from air_model.configuration_air import AirConfig
from air_model.datasets_builders.build import BuildConfig, build
from air_model.datasets_builders.loading import PuzzleSet, load_puzzles
from air_model.modeling_air import AirModel
from air_model.pipeline_air import device_of, load_model
from air_model.processing_air import GridTask, task_from_config
from air_model.publishing.export import export_int8, export_onnx, onnx_step, solve_with
from air_model.training.cost import matmul_tflops


class Bench:
    """A model, its puzzles and a clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = device_of(args.device)
        self.clock: Callable[[], float] = time.process_time if args.cpu_time else time.perf_counter
        if args.model:
            self.model = load_model(args.model, self.device)
        else:
            torch.manual_seed(0)
            fields = {key: _value(text) for key, text in (word.split("=", 1) for word in args.overrides)}
            self.model = AirModel(AirConfig.from_variant(args.variant, **fields)).to(self.device).eval()
        self.config = self.model.config
        if args.compile:
            for stack in self.model.stacks:
                stack.compile()
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, self.config.vocab_size, (args.puzzles, self.config.seq_len), generator=generator)
        self.step_flops = forward_flops(self.config) * len(self.config.schedule)
        self.dtypes = [getattr(torch, name) for name in args.dtypes.split(",")] if args.dtypes else [None]

    def matmul(self) -> float:
        """FLOP/s of a large product in the precision of the states."""
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return 1e12 * matmul_tflops(self.device, dtype, self.clock)

    def row(self, name: str, puzzles: int, steps: int, dtype: torch.dtype | None, **options: Any) -> dict[str, Any]:
        """`puzzles` puzzles for `steps` steps by the engine."""
        ids = self.ids[torch.arange(puzzles) % len(self.ids)]
        work = {"max_act_steps": steps, "dtype": dtype, "return_logits": False, **options}
        self.model.solve(ids[: options.get("batch_size") or puzzles], **{**work, "max_act_steps": 1})  # warm up

        def run() -> tuple[int, dict[str, Any]]:
            solution = self.model.solve(ids, **work)
            return int(solution.act_steps.sum()), {key: solution.stats[key] for key in ("batch_size", "fill")}

        return self.best_of(name, str(dtype or "default").removeprefix("torch."), puzzles, run)

    def best_of(
        self, name: str, dtype: str, puzzles: int, run: Callable[[], tuple[int, dict[str, Any]]]
    ) -> dict[str, Any]:
        """The best of --rounds, with the large product measured before and after each; `run` counts its ACT steps."""
        best: dict[str, Any] = {}
        for _ in range(self.args.rounds):
            before = self.matmul()
            forget_peak(self.device)  # the large product needs memory too
            spent_seconds, (spent, stats) = seconds(run, self.device, self.clock)
            peak = 1024 * peak_gib(self.device)
            time.sleep(0.2)  # ONNX Runtime's threads spin for a while after their work, and would slow the product
            rate = (before + self.matmul()) / 2
            done = self.step_flops * spent / spent_seconds
            if not best or done / rate > best["share_of_matmul"]:
                best = {"what": name, "dtype": dtype, "puzzles": puzzles, **stats, "act_steps": spent}
                best |= {"seconds": spent_seconds, "puzzles_per_second": puzzles / spent_seconds}
                best |= {"gflops": done / 1e9, "matmul_gflops": rate / 1e9, "share_of_matmul": done / rate}
                best["peak_mib"] = peak
        return best

    def batches(self) -> Rows:
        rows = []
        default = self.model.default_batch_size()
        sizes = [int(part) for part in self.args.batch_size.split(",")] if self.args.batch_size else [1, 4, 8, default]
        for dtype, size in itertools.product(self.dtypes, sorted(set(sizes))):
            steps = self.args.steps or max(1, 16 // size)
            rows.append(show(self.row("batch", size, steps, dtype, batch_size=size)))
        return rows

    def one_puzzle(self) -> Rows:
        steps = self.config.halt_max_steps
        return [show(_against_products(self.row("one puzzle", 1, steps, dtype))) for dtype in self.dtypes]

    def exported(self) -> Rows:
        """One puzzle by publishing/export.py's graphs in ONNX Runtime."""
        rows, ids, steps = [], self.ids[:1].numpy(), self.config.halt_max_steps
        model = self.model.float().cpu().requires_grad_(False)
        with tempfile.TemporaryDirectory() as folder:
            paths = {"float32": Path(folder) / "model.onnx", "int8": Path(folder) / "model_int8.onnx"}
            export_onnx(model, paths["float32"])
            export_int8(paths["float32"], paths["int8"])
            for dtype, path in paths.items():
                step = onnx_step(path, torch.get_num_threads())
                solve_with(step, model, ids, 1)  # warm up

                def run(step: Callable = step) -> tuple[int, dict[str, Any]]:
                    return int(solve_with(step, model, ids, steps)[1].sum()), {"batch_size": 1, "fill": 1.0}

                rows.append(show(_against_products(self.best_of("one, ONNX", dtype, 1, run))))
        return rows

    def halting(self) -> Rows:
        """halt=q (and halt=rules) against halt=max: time against the share of steps that are left."""
        args, model, task = self.args, self.model, task_from_config(self.config)
        labels = None
        if args.model:
            puzzles = self.unseen(task)
            ids, labels = torch.from_numpy(puzzles.inputs), puzzles.labels
        else:
            ids, generator = self.ids.to(torch.uint8), torch.Generator().manual_seed(1)
            model.halts = lambda q, _: (torch.rand(len(q), generator=generator) < args.halt_rate).to(q.device)
        size = int(args.batch_size.split(",")[0]) if args.batch_size else None
        halts = ("max", "q", "rules") if args.model and task.name != "grid" else ("max", "q")
        best: dict[tuple, tuple] = {}
        solve_puzzles(model, task, ids[:64], halt="q", batch_size=size, check=False)  # warm up
        for _ in range(args.rounds):  # in turns, as other work on the machine comes and goes
            for key in itertools.product(self.dtypes, halts):
                work = functools.partial(solve_puzzles, model, task, ids, batch_size=size, check=False)
                run = seconds(functools.partial(work, dtype=key[0], halt=key[1]), self.device, self.clock)
                if key not in best or run[0] < best[key][0]:
                    best[key] = run
        rows = []
        for (dtype, halt), (spent, answers) in best.items():
            row = {"what": f"halt={halt}", "dtype": str(dtype or "default").removeprefix("torch.")}
            row |= {"puzzles": len(ids), "seconds": spent, **answers.stats}
            row["mean_act_steps"] = float(answers.act_steps.mean())
            if labels is not None:
                row["exact_accuracy"] = float((answers.tokens == labels).all(1).mean())
                row["valid_accuracy"] = float(answers.verdict.valid.mean())
            if rows:
                row["speedup"] = rows[0]["seconds"] / spent
                row["ideal_speedup"] = rows[0]["mean_act_steps"] / row["mean_act_steps"]
                row["share_of_ideal"] = row["speedup"] / row["ideal_speedup"]
            if rows and labels is not None:
                # The target: at accuracy within 0.2 points, at least 85 % of the ideal; the batch 95 % full.
                lost = rows[0]["valid_accuracy"] - row["valid_accuracy"]
                row["equally_accurate"] = bool(lost <= 0.002)
                row["meets_target"] = bool(lost <= 0.002 and row["share_of_ideal"] >= 0.85 and row["fill"] >= 0.95)
            rows.append(row)
        for row in rows:
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))
        return rows

    def unseen(self, task: GridTask) -> PuzzleSet:
        """Puzzles for a trained model: --data, or generated ones, of grids that build_dataset.py holds out."""
        if self.args.data:
            return load_puzzles(self.args.data, self.args.split, task=task, limit=self.args.puzzles)
        name = {"sudoku": "sudoku-extreme", "maze": "maze-hard"}[task.name]
        box = None if task.box_height is None else (task.box_height, task.box_width)
        size = {"grid": (task.height, task.width), "box": box, "num_train": 1, "num_test": self.args.puzzles}
        with tempfile.TemporaryDirectory() as folder:
            build(BuildConfig(dataset=name, source="generate", **size, progress=False), Path(folder) / "data")
            return load_puzzles(str(Path(folder) / "data"), "test", task=task)


def _against_products(row: dict[str, Any]) -> dict[str, Any]:
    """The target of one puzzle: at most 1.2 times the products' own time at the matmul rate."""
    return {**row, "times_matmul_time": 1 / row["share_of_matmul"]}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def show(row: dict[str, Any]) -> dict[str, Any]:
    print(
        f"{row['what']:>10} {row['dtype']:>9}  batch {row['batch_size']:4}  {row['puzzles_per_second']:9.3g} puzzles/s"
        f"  {row['gflops']:9.1f} GFLOP/s of {row['matmul_gflops']:.1f} ({row['share_of_matmul']:.0%})"
        f"  {row['seconds']:.2f} s  peak {row['peak_mib']:.0f} MiB",
        flush=True,
    )
    return row


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="key=value", help="AirConfig fields, without --model")
    add("--model", help="folder or Hub id; default: random weights")
    add("--variant", default="Lx_H")
    add("--batch-size", help="comma-separated; default 1,4,8 and the engine's own")
    add("--dtypes", help="comma-separated: float32,bfloat16")
    add("--puzzles", type=int, default=64)
    add("--steps", type=int, help="ACT steps per row; default about 16 puzzle-steps")
    add("--rounds", type=int, default=3, help="each row is the best of so many")
    add("--halting", action="store_true", help="instead: halt=q against halt=max")
    add("--halt-rate", type=float, default=0.2)
    add("--data", help="with --halting: puzzles with answers; default: generated ones")
    add("--split", default="test")
    add("--compile", action="store_true")
    add("--onnx", action="store_true", help="also one puzzle by the exported graphs in ONNX Runtime (CPU)")
    add("--device")
    add("--cpu-time", action="store_true", help="measure CPU seconds of this process, not the wall clock")
    args = parser.parse_intermixed_args(argv)
    if word := next((word for word in args.overrides if "=" not in word), None):
        parser.error(f"{word!r} is no key=value.")
    try:
        timing = Bench(args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows = timing.halting() if args.halting else timing.batches() + timing.one_puzzle()
    if args.onnx:
        rows += timing.exported()
    clock = "CPU seconds of the process" if args.cpu_time else "wall clock"
    save(args.output, rows, timing.device, clock=clock, load_average=os.getloadavg()[0])
    return 0


if __name__ == "__main__":
    sys.exit(in_sentences(main))
