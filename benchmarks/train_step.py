"""Time and memory of a training step, beside this machine's own large matrix product measured in the same run.

    python benchmarks/train_step.py                                        # full-size Sudoku, this machine
    python benchmarks/train_step.py --public ../air --rounds 3             # the public code in turn with ours
    python benchmarks/train_step.py --batch-size 96,768,4608               # the memory table (one GPU)
    python benchmarks/train_step.py --recipe maze_hard --batch-size 96
    python benchmarks/train_step.py q_continue=false                       # without the second forward
    python benchmarks/train_step.py --sweep --output results/sweep.json    # grid sizes and layers, with a plot
    python benchmarks/train_step.py --cycles --batch-size 4,16,64          # memory against batch and number of cycles
    python benchmarks/train_step.py --recipe sudoku_9x9_cpu --widths 64,128,256,512 --batch-size 64 compile=default

TFLOP/s count products only: 16 passes for the published step (28.1 TFLOP at batch 768). A
step is the trainer's own: fresh puzzles, refill, forward, second forward, backward, optimizers, metrics.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from air_model.analysis.figures import new_figure, save
from air_model.datasets_builders import PuzzleSet
from air_model.datasets_builders.generate_maze import make_mazes
from air_model.datasets_builders.generate_sudoku import random_grids, seeds_for
from air_model.processing_air import make_task
from air_model.training.cost import matmul_tflops, onednn_linear, slow_products, training_flops
from air_model.training.recipe import Recipe, override_values, read_recipe
from air_model.training.trainer import Trainer


def puzzles_for(recipe: Recipe, n: int = 1000) -> PuzzleSet:
    """Puzzles of the right shape, so that nothing must be downloaded: speed does not depend on their content."""
    model, seeds = recipe.model, seeds_for(0, 0, 0, n)
    task = make_task(model.get("task", "sudoku"), model.get("grid_height"), model.get("grid_width"))
    if task.name == "maze":
        # Augmentation labels the mazes anew, so there must be a path; short ones are quickly found.
        return PuzzleSet(*make_mazes(task, seeds, min_path=1), task)
    labels = random_grids(task, seeds)
    open_cells = np.random.default_rng(0).random(labels.shape) < 0.7
    return PuzzleSet(np.where(open_cells, task.blank_token, labels).astype(np.uint8), labels, task)


def build(options: argparse.Namespace, batch_size: int, **more: Any) -> Trainer:
    """The trainer of --recipe with overrides; `commits.py` calls it too, that of each commit."""
    torch._dynamo.reset()  # or the graphs of earlier sizes count towards the limit, after which nothing is compiled
    recipe = read_recipe(options.recipe, {**override_values(options.overrides), **more, "batch_size": batch_size})
    return Trainer(recipe, Path("unused"), puzzles_for(recipe), None)


def repeat(step: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        step()


def busy_seconds(step: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of a step in which the GPU computes; the rest of the step is overhead of the host."""
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        repeat(step, repeats)
        torch.cuda.synchronize()
    events = [e for e in trace.key_averages() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return sum(event.self_device_time_total for event in events) / 1e6 / repeats


def public_step(folder: Path, trainer: Trainer, compiled: bool) -> Callable[[], None]:
    """The public code's training step (Lx_H) on the same sizes and device; only called with --public."""
    from adam_atan2_pytorch import AdamAtan2

    sys.path.insert(0, str(folder))
    from models.air.air_1net_Lx_H import AIR
    from models.losses import ACTLossHead
    from models.sparse_embedding import CastedSparseEmbeddingSignSGD_Distributed

    config, train = trainer.config, trainer.train
    with torch.device(trainer.device):
        model = ACTLossHead(
            AIR(
                {
                    "batch_size": train.batch_size, "seq_len": config.seq_len, "vocab_size": config.vocab_size,
                    "num_puzzle_identifiers": 1, "causal": False, "H_cycles": config.h_cycles,
                    "L_cycles": config.l_cycles, "H_layers": config.num_hidden_layers,
                    "L_layers": config.num_hidden_layers, "hidden_size": config.hidden_size,
                    "num_heads": config.num_attention_heads, "expansion": config.expansion,
                    "puzzle_emb_ndim": config.puzzle_embedding_size, "pos_encodings": "rope",
                    "halt_max_steps": 16, "halt_exploration_prob": 0.1,
                    "forward_dtype": "bfloat16" if trainer.bf16 else "float32",
                }
            ),
            "stablemax_cross_entropy",
        )  # fmt: skip
    model.train()
    buffers = model.model.puzzle_emb.buffers()
    sparse = CastedSparseEmbeddingSignSGD_Distributed(buffers, lr=1e-4, weight_decay=1.0, world_size=1)
    adam = AdamAtan2(model.parameters(), lr=1e-4, weight_decay=1.0, betas=(0.9, 0.95))
    run = torch.compile(model, dynamic=False) if compiled else model
    fresh = trainer.sampler.draw(1)
    batch = {"inputs": fresh.inputs.int(), "labels": fresh.labels.int(), "puzzle_identifiers": fresh.ids.int()}
    batch = {k: v.to(trainer.device) for k, v in batch.items()}
    with torch.device(trainer.device):
        state = {"carry": model.initial_carry(batch)}

    def step() -> None:
        state["carry"], loss, metrics, _, _ = run(return_keys=[], carry=state["carry"], batch=batch)
        (loss / train.batch_size).backward()
        for optimizer in (sparse, adam):
            optimizer.step()
            optimizer.zero_grad()
        torch.stack([v.float() for _, v in sorted(metrics.items())]).cpu()  # it reads its metrics in every step

    return step


def step_times(options: argparse.Namespace, batch_size: int, **more: Any) -> dict[str, Any]:
    """Step time and rate at one size, in turn with the public code and with the large product."""
    begin, clock = time.perf_counter(), bench.CLOCKS[options.clock]
    trainer = build(options, batch_size, **more)
    device, dtype = trainer.device, torch.bfloat16 if trainer.bf16 else torch.float32
    # Before the public code and the large product, which need memory of their own.
    memory = bench.timed(trainer.train_step, device).peak_gib
    first = time.perf_counter() - begin
    memory = max(memory, bench.timed(trainer.train_step, device).peak_gib)
    steps: dict[str, Callable[[], Any]] = {"ours": trainer.train_step}
    if options.public:
        steps["public, eager"] = public_step(options.public, trainer, compiled=False)
        if not options.no_public_compile:
            steps["public, compiled"] = public_step(options.public, trainer, compiled=True)
    for step in steps.values():
        repeat(step, options.warmup)
    work = {"matmul": partial(matmul_tflops, device, dtype, clock)}
    work |= {name: partial(repeat, step, options.steps) for name, step in steps.items()}
    runs = bench.in_turns(work, options.rounds, device, clock)
    teraflop = training_flops(trainer.config, batch_size) / 1e12
    product = statistics.median(run.result for run in runs.pop("matmul"))
    row: dict[str, Any] = {"teraflop_per_step": teraflop, "seconds_to_first_step": first, "matmul_tflops": product}
    row["peak_memory_gib"] = memory
    if device.type == "cpu" and not trainer.bf16 and slow_products():
        row["onednn_tflops"] = matmul_tflops(device, dtype, clock=clock, product=onednn_linear)
    for name, own in runs.items():
        seconds = [run.seconds / options.steps for run in own]
        middle = statistics.median(seconds)
        row[name] = {
            "ms": middle * 1e3, "all_ms": [s * 1e3 for s in seconds], "tflops": teraflop / middle,
            "share_of_matmul": teraflop / middle / product, "puzzle_steps_per_second": batch_size / middle,
        }  # fmt: skip
    if device.type == "cuda":
        busy = 1e3 * busy_seconds(trainer.train_step)
        row |= {"gpu_busy_ms": busy, "host_overhead": row["ours"]["ms"] / busy - 1}
    return row


def kept_memory(options: argparse.Namespace, batch_size: int, **more: int) -> dict[str, Any]:
    """What autograd keeps for one backward pass, which decides the peak memory of a step."""
    trainer = build(options, batch_size, **more)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    fresh = trainer.sampler.draw(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), trainer.autocast():
        trainer.model(*(t.to(trainer.device) for t in (fresh.inputs, fresh.ids, fresh.labels)))
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    return {"saved_mib": sum(size for pointer, size in kept.items() if pointer not in weights) / 2**20}


# What is printed of a row that has the key.
LINES = {
    "out_of_memory": "out of memory",
    "saved_mib": "{saved_mib:.1f} MiB for the backward pass",
    "matmul_tflops": "large matrix product: {matmul_tflops:.3f} TFLOP/s",
    "onednn_tflops": "oneDNN's product: {onednn_tflops:.3f} TFLOP/s",
    "peak_memory_gib": "peak memory {peak_memory_gib:.2f} GiB, first step after {seconds_to_first_step:.1f} s",
    "gpu_busy_ms": "GPU busy {gpu_busy_ms:.2f} ms (host overhead {host_overhead:.1%})",
}
RATE = (
    "{ms:.2f} ms, {tflops:.3f} TFLOP/s ({share_of_matmul:.1%} of the product), "
    "{puzzle_steps_per_second:.1f} puzzle steps/s"
)


def show(row: dict[str, Any]) -> None:
    sizes = ("grid_height", "num_hidden_layers", "hidden_size", "h_cycles", "l_cycles")
    print(", ".join([f"batch {row['batch_size']}", *(f"{key}={row[key]}" for key in sizes if key in row)]))
    lines = [line.format_map(row) for key, line in LINES.items() if key in row]
    lines += [f"{name}: {RATE.format_map(found)}" for name, found in row.items() if isinstance(found, dict)]
    print(*lines, sep="\n", flush=True)


def widths_page(record: dict[str, Any]) -> str:
    rows = [
        {
            "hidden size": row["hidden_size"], "ms a step": round(row["ours"]["ms"]),
            "puzzle steps a second": round(row["ours"]["puzzle_steps_per_second"], 1),
            "TFLOP/s": round(row["ours"]["tflops"], 3), "large product, TFLOP/s": round(row["matmul_tflops"], 3),
            "share of it, %": round(100 * row["ours"]["share_of_matmul"], 1),
        }
        for row in record["rows"]
    ]  # fmt: skip
    return bench.headed(
        "A training step against the width", record,
        f"`{record['recipe']}`, batch {record['rows'][0]['batch_size']}, {record['clock']}. Products only are counted;"
        " the large product is this processor's own at the same moment, in the precision of the run.",
        bench.table(rows),
    )  # fmt: skip


def plot(rows: bench.Rows, target: Path) -> None:
    """Step time against cells and against layers, one panel each."""
    figure = new_figure(8, 3.2)
    panels = (("grid_height", 2, "cells of the grid"), ("num_hidden_layers", 1, "layers"))
    for axis, (key, power, label) in zip(figure.subplots(1, 2), panels):
        swept = [(row[key] ** power, row["ours"]["ms"]) for row in rows if row["swept"] == key]
        axis.plot(*zip(*sorted(swept)), marker="o", color="#0072B2")
        axis.set(xlabel=label, ylabel="ms a step", ylim=(0, None), xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    save(figure, target)


def points(options: argparse.Namespace) -> bench.Rows:
    """The sizes that are measured, as values of the recipe; `swept` names the one that a sweep changes."""
    sizes = [{"batch_size": size} for size in options.batch_size]
    if options.cycles:
        cycles = [{"h_cycles": h, "l_cycles": l} for h, l in ((1, 1), (2, 2), (3, 6), (8, 8))]
        return [size | own for size, own in itertools.product(sizes, cycles)]
    if options.sweep:
        grids = [{"swept": "grid_height", "grid_height": n, "num_hidden_layers": 4} for n in (4, 6, 9, 12, 16)]
        layers = [{"swept": "num_hidden_layers", "grid_height": 9, "num_hidden_layers": n} for n in (1, 2, 4, 8)]
        return [sizes[0] | own for own in grids + layers]
    widths = [{"hidden_size": width, "intermediate_size": 3 * width} for width in options.widths]
    return [sizes[0] | own for own in widths] or sizes


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = bench.arguments(__doc__, clock=True)
    add = parser.add_argument
    add("--recipe", default="sudoku_extreme")
    add("--batch-size", type=bench.listed(int), default="768" if on_gpu else "16", help="several: joined by commas")
    add("--steps", type=int, default=20 if on_gpu else 1, help="steps timed together")
    add("--rounds", type=int, default=3, help="the median of so many rounds counts")
    add("--warmup", type=int, default=10 if on_gpu else 1, help="steps before timing")
    add("--public", type=Path, help="a checkout of the public AIR code, to time in turn with ours")
    add("--no-public-compile", action="store_true", help="time the public code uncompiled only")
    add("--sweep", action="store_true", help="grid sizes and layers at a fixed width, and a plot beside --output")
    add("--widths", type=bench.listed(int), default=[], help="hidden sizes joined by commas; a table beside --output")
    add("--cycles", action="store_true", help="memory kept for the backward pass against cycles")
    add("overrides", nargs="*", metavar="key=value", help="any key of the recipe")
    options = parser.parse_intermixed_args()
    rows: bench.Rows = []
    for point in points(options):
        try:
            values = {key: value for key, value in point.items() if key != "swept"}
            rows.append(point | (kept_memory if options.cycles else step_times)(options, **values))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append(point | {"out_of_memory": True})
        show(rows[-1])
    about = {"recipe": options.recipe, "overrides": options.overrides, "clock": options.clock}
    about["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")
    page = widths_page if options.widths else None
    bench.save(options.output, rows, torch.device("cuda" if on_gpu else "cpu"), page, **about)
    if options.output and options.sweep:
        plot(rows, options.output.with_suffix(".png"))


if __name__ == "__main__":
    bench.in_sentences(main)
