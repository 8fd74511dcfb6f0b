"""Time and memory of a training step, beside this machine's own large matrix product measured in the same run.

    python benchmarks/train_step.py                                        # full-size Sudoku, this machine
    python benchmarks/train_step.py --public ../air --rounds 3             # the public code in turn with ours
    python benchmarks/train_step.py --batch-size 96,768,4608               # the memory table (one GPU)
    python benchmarks/train_step.py --recipe maze_hard --batch-size 96
    python benchmarks/train_step.py q_continue=false                       # without the second forward
    python benchmarks/train_step.py --sweep --output results/sweep.json    # grid sizes and layers, with a plot
    python benchmarks/train_step.py --cycles --batch-size 4,16,64          # memory against batch and number of cycles
    python benchmarks/train_step.py --recipe sudoku_9x9_cpu --widths 64,128,256,512 --batch-size 64 compile=default

TFLOP/s count products only, as ANCHORS section 2b does: 16 passes for the published step (28.1 TFLOP at batch 768). A
step is the trainer's own: fresh puzzles, refill, forward, second forward, backward, optimizers, metrics.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    import bench  # noqa: F401

import numpy as np
import torch

from air_model.analysis.figures import new_figure
from air_model.analysis.figures import save as save_figure
from air_model.benchmarks.bench import Rows, arguments, forget_peak, in_sentences, peak_gib, save, seconds, table
from air_model.datasets_builders import PuzzleSet
from air_model.datasets_builders.generate_maze import make_mazes
from air_model.processing_air import make_task
from air_model.training.cost import matmul_tflops, onednn_linear, slow_products, training_flops
from air_model.training.recipe import Recipe, read_recipe
from air_model.training.trainer import Trainer


def puzzles_for(recipe: Recipe, n: int = 1000) -> PuzzleSet:
    """Puzzles of the right shape, so that nothing must be downloaded: speed does not depend on their content."""
    model = recipe.model
    task = make_task(model.get("task", "sudoku"), model.get("grid_height"), model.get("grid_width"))
    rng = np.random.default_rng(0)
    if task.name == "sudoku":
        side, h, w = task.height, task.box_height, task.box_width
        rows = [[(r % h * w + r // h + c) % side + 2 for c in range(side)] for r in range(side)]
        labels = task.random_symmetries(rng, n).apply(np.tile(np.array(rows, np.uint8).reshape(1, -1), (n, 1)))
        return PuzzleSet(np.where(rng.random(labels.shape) < 0.7, 1, labels).astype(np.uint8), labels, task)
    # A path of any length: augmentation labels the mazes anew, so there must be one, and short ones are quickly found.
    return PuzzleSet(*make_mazes(task, np.arange(n, dtype=np.uint64), min_path=1), task)


def build(options: argparse.Namespace, batch_size: int, **more: Any) -> Trainer:
    torch._dynamo.reset()  # or the graphs of earlier sizes count towards the limit, after which nothing is compiled
    values = {**dict(text.partition("=")[::2] for text in options.overrides), **more, "batch_size": batch_size}
    recipe = read_recipe(
        options.recipe, [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in values.items()]
    )
    return Trainer(recipe, Path("unused"), puzzles_for(recipe), None)


def busy_seconds(step: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of a step in which the GPU computes; the rest of the step is overhead of the host."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(repeats):
            step()
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


def measure(options: argparse.Namespace, batch_size: int, **more: Any) -> dict[str, Any]:
    """One row: step time and rate at one batch size, in turn with the public code and with the large product."""
    begin = time.perf_counter()
    clock = time.process_time if options.cpu_time else time.perf_counter
    try:
        trainer = build(options, batch_size, **more)
        device = trainer.device
        forget_peak(device)
        seconds(trainer.train_step, device)
        first = time.perf_counter() - begin
        trainer.train_step()
        memory = peak_gib(device)  # before the public code and the large product, which need memory of their own
        steps = {"ours": trainer.train_step}
        if options.public:
            steps["public, eager"] = public_step(options.public, trainer, compiled=False)
            if not options.no_public_compile:
                steps["public, compiled"] = public_step(options.public, trainer, compiled=True)
        for step in steps.values():
            seconds(step, device, repeats=options.warmup)
        times: dict[str, list[float]] = {name: [] for name in steps}
        products = []
        dtype = torch.bfloat16 if trainer.bf16 else torch.float32
        for _ in range(options.rounds):
            products.append(matmul_tflops(device, dtype, clock=clock))
            for name, step in steps.items():
                times[name].append(seconds(step, device, clock, options.steps)[0])
        busy = busy_seconds(trainer.train_step) if device.type == "cuda" else None
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"batch_size": batch_size, "out_of_memory": True}
    flop = training_flops(trainer.config, batch_size)
    product = statistics.median(products)
    row: dict[str, Any] = {"batch_size": batch_size, **more, "teraflop_per_step": flop / 1e12}
    row |= {"seconds_to_first_step": first, "matmul_tflops": product, "peak_memory_gib": memory}
    if device.type == "cpu" and not trainer.bf16 and slow_products():
        row["onednn_tflops"] = matmul_tflops(device, dtype, clock=clock, product=onednn_linear)
    for name, values in times.items():
        best = statistics.median(values)
        row[name] = {
            "ms": best * 1e3, "all_ms": [v * 1e3 for v in values], "tflops": flop / best / 1e12,
            "share_of_matmul": flop / best / 1e12 / product, "puzzle_steps_per_second": batch_size / best,
        }  # fmt: skip
    if busy is not None:
        row |= {"gpu_busy_ms": busy * 1e3, "host_overhead": row["ours"]["ms"] / (busy * 1e3) - 1}
    return row


def saved_bytes(options: argparse.Namespace, batch_size: int, h_cycles: int, l_cycles: int) -> int:
    """Bytes that autograd keeps for one backward pass: what decides the peak memory of a step."""
    trainer = build(options, batch_size, h_cycles=h_cycles, l_cycles=l_cycles)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    fresh = trainer.sampler.draw(1)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), trainer.autocast():
        loss = trainer.model(*(t.to(trainer.device) for t in (fresh.inputs, fresh.ids, fresh.labels))).loss
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    del loss
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def show(row: dict[str, Any]) -> None:
    if row.get("out_of_memory"):
        print(f"batch {row['batch_size']:5d}: out of memory")
        return
    onednn = f", oneDNN's {row['onednn_tflops']:.3f}" if "onednn_tflops" in row else ""
    print(f"large matrix product: {row['matmul_tflops']:.3f} TFLOP/s{onednn}")
    for name in ("ours", "public, eager", "public, compiled"):
        if name in row:
            r = row[name]
            extra = ", ".join(
                f"{k}={v}" for k, v in row.items() if k in ("grid_height", "num_hidden_layers", "hidden_size")
            )
            print(
                f"batch {row['batch_size']:5d} {extra} {name:16s}: {r['ms']:9.2f} ms, {r['tflops']:8.3f} TFLOP/s "
                f"({r['share_of_matmul']:6.1%} of the product), {r['puzzle_steps_per_second']:8.1f} puzzle steps/s"
            )
    memory = row["peak_memory_gib"]
    line = f"peak memory {memory:.2f} GiB, first step after {row['seconds_to_first_step']:.1f} s"
    if "gpu_busy_ms" in row:
        line += f", GPU busy {row['gpu_busy_ms']:.2f} ms (host overhead {row['host_overhead']:.1%})"
    print(line)


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
    hardware = record["hardware"]
    return (
        f"# A training step against the width\n\n`{record['recipe']}`, batch {record['rows'][0]['batch_size']}, "
        f"{record['clock']}, {hardware['threads']} thread(s) of an {hardware['device']}, {record['date'][:10]}, "
        f"commit {record['commit'][:7]}. Products only are counted; the large product is this processor's own "
        f"at the same moment, in the precision of the run.\n\n`{record['command']}`\n\n{table(rows)}\n"
    )


def plot(rows: Rows, target: Path) -> None:
    """Step time against cells and against layers, one panel each."""
    figure = new_figure(8, 3.2)
    panels = (("grid_height", 2, "cells of the grid"), ("num_hidden_layers", 1, "layers"))
    for axis, (key, power, label) in zip(figure.subplots(1, 2), panels):
        swept = [(row[key] ** power, row["ours"]["ms"]) for row in rows if row["swept"] == key]
        axis.plot(*zip(*sorted(swept)), marker="o", color="#0072B2")
        axis.set(xlabel=label, ylabel="ms a step", ylim=(0, None), xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    figure.set_layout_engine("constrained")
    save_figure(figure, target)


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    on_gpu = torch.cuda.is_available()
    parser = arguments(__doc__)
    add = parser.add_argument
    add("--recipe", default="sudoku_extreme")
    add("--batch-size", type=integers, default="768" if on_gpu else "16", help="one or several, joined by commas")
    add("--steps", type=int, default=20 if on_gpu else 1, help="steps timed together")
    add("--rounds", type=int, default=3, help="the median of so many rounds counts")
    add("--warmup", type=int, default=10 if on_gpu else 1, help="steps before timing")
    add("--public", type=Path, help="a checkout of the public AIR code, to time in turn with ours")
    add("--no-public-compile", action="store_true", help="time the public code uncompiled only")
    add("--cpu-time", action="store_true", help="this process's CPU seconds: fair on a busy CPU, with one thread")
    add("--sweep", action="store_true", help="grid sizes and layers at a fixed width, and a plot beside --output")
    add("--widths", type=integers, help="hidden sizes joined by commas; a table beside --output")
    add("--cycles", action="store_true", help="memory kept for the backward pass against cycles")
    add("overrides", nargs="*", metavar="key=value", help="any key of the recipe")
    options = parser.parse_intermixed_args(argv)
    rows: Rows = []
    if options.cycles:
        for batch_size, (h_cycles, l_cycles) in itertools.product(
            options.batch_size, ((1, 1), (2, 2), (3, 6), (8, 8))
        ):
            mib = saved_bytes(options, batch_size, h_cycles, l_cycles) / 2**20
            rows.append({"batch_size": batch_size, "h_cycles": h_cycles, "l_cycles": l_cycles, "saved_mib": mib})
            print(f"batch {batch_size}, {h_cycles} x {l_cycles} cycles: {mib:9.1f} MiB for the backward pass")
    elif options.sweep:
        grids = [{"grid_height": n, "num_hidden_layers": 4} for n in (4, 6, 9, 12, 16)]
        layers = [{"grid_height": 9, "num_hidden_layers": n} for n in (1, 2, 4, 8)]
        for swept, points in (("grid_height", grids), ("num_hidden_layers", layers)):
            for point in points:
                rows.append({"swept": swept, **measure(options, options.batch_size[0], **point)})
                show(rows[-1])
    elif options.widths:
        for width in options.widths:
            sizes = {"hidden_size": width, "intermediate_size": 3 * width}
            rows.append(measure(options, options.batch_size[0], **sizes))
            show(rows[-1])
    else:
        for batch_size in options.batch_size:
            rows.append(measure(options, batch_size))
            show(rows[-1])
    about = {"recipe": options.recipe, "overrides": options.overrides}
    about["clock"] = "CPU seconds of the process" if options.cpu_time else "wall clock"
    about["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")
    page = widths_page if options.widths else None
    save(options.output, rows, torch.device("cuda" if on_gpu else "cpu"), page, **about)
    if options.output and options.sweep:
        plot(rows, options.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(in_sentences(main))
