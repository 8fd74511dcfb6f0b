"""Time and memory of a training step, beside this machine's own large matrix product measured in the same run.

    python benchmarks/train_step.py                                        # full-size Sudoku, this machine
    python benchmarks/train_step.py --public ../air --rounds 3             # the public code in turn with ours
    python benchmarks/train_step.py --batch-size 96,768,4608               # the memory table (one GPU)
    python benchmarks/train_step.py --recipe maze_hard --batch-size 96
    python benchmarks/train_step.py q_continue=false                       # without the second forward
    python benchmarks/train_step.py --sweep --output results/sweep.json    # grid sizes and layers, with a plot
    python benchmarks/train_step.py --cycles --batch-size 4,16,64          # memory against batch and number of cycles

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
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import numpy as np
import torch

from air_model.datasets_builders import PuzzleSet
from air_model.datasets_builders.generate_maze import make_mazes
from air_model.processing_air import make_task
from air_model.records import environment, portable, write_json
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


def build(arguments: argparse.Namespace, batch_size: int, **more: Any) -> Trainer:
    torch._dynamo.reset()  # or the graphs of earlier sizes count towards the limit, after which nothing is compiled
    values = {**dict(text.partition("=")[::2] for text in arguments.overrides), **more, "batch_size": batch_size}
    recipe = read_recipe(
        arguments.recipe, [f"{k}={json.dumps(v) if not isinstance(v, str) else v}" for k, v in values.items()]
    )
    return Trainer(recipe, Path("unused"), puzzles_for(recipe), None)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    step: Callable[[], Any], device: torch.device, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds of one call: on a GPU the mean of `repeats` calls that do not wait for each other."""
    synchronize(device)
    start = clock()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (clock() - start) / repeats


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


def measure(arguments: argparse.Namespace, batch_size: int, **more: Any) -> dict[str, Any]:
    """One row: step time and rate at one batch size, in turn with the public code and with the large product."""
    begin = time.perf_counter()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    try:
        trainer = build(arguments, batch_size, **more)
        device = trainer.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train_step()
        synchronize(device)
        first = time.perf_counter() - begin
        trainer.train_step()
        # Before the public code and the large product, which need memory of their own.
        memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
        steps = {"ours": trainer.train_step}
        if arguments.public:
            steps["public, eager"] = public_step(arguments.public, trainer, compiled=False)
            if not arguments.no_public_compile:
                steps["public, compiled"] = public_step(arguments.public, trainer, compiled=True)
        for step in steps.values():
            seconds(step, device, arguments.warmup)
        times: dict[str, list[float]] = {name: [] for name in steps}
        products = []
        dtype = torch.bfloat16 if trainer.bf16 else torch.float32
        for _ in range(arguments.rounds):
            products.append(matmul_tflops(device, dtype, clock=clock))
            for name, step in steps.items():
                times[name].append(seconds(step, device, arguments.steps, clock))
        busy = busy_seconds(trainer.train_step) if device.type == "cuda" else None
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"batch_size": batch_size, "out_of_memory": True}
    flop = training_flops(trainer.config, batch_size)
    product = statistics.median(products)
    row: dict[str, Any] = {
        "batch_size": batch_size,
        **more,
        "teraflop_per_step": flop / 1e12,
        "seconds_to_first_step": first,
    }
    row["matmul_tflops"] = product
    if device.type == "cpu" and not trainer.bf16 and slow_products():
        row["onednn_tflops"] = matmul_tflops(device, dtype, clock=clock, product=onednn_linear)
    for name, values in times.items():
        best = statistics.median(values)
        row[name] = {
            "ms": best * 1e3, "all_ms": [v * 1e3 for v in values], "tflops": flop / best / 1e12,
            "share_of_matmul": flop / best / 1e12 / product, "puzzle_steps_per_second": batch_size / best,
        }  # fmt: skip
    if busy is not None:
        row["gpu_busy_ms"] = busy * 1e3
        row["host_overhead"] = row["ours"]["ms"] / (busy * 1e3) - 1
        row["peak_memory_gib"] = memory / 2**30
    else:
        row["peak_memory_gib"] = peak_of_process()
    return row


def peak_of_process() -> float | None:
    """GiB that this process held at most since it started."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def saved_bytes(arguments: argparse.Namespace, batch_size: int, h_cycles: int, l_cycles: int) -> int:
    """Bytes that autograd keeps for one backward pass: what decides the peak memory of a step."""
    trainer = build(arguments, batch_size, h_cycles=h_cycles, l_cycles=l_cycles)
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
            extra = ", ".join(f"{k}={v}" for k, v in row.items() if k in ("grid_height", "num_hidden_layers"))
            print(
                f"batch {row['batch_size']:5d} {extra} {name:16s}: {r['ms']:9.2f} ms, {r['tflops']:8.3f} TFLOP/s "
                f"({r['share_of_matmul']:6.1%} of the product), {r['puzzle_steps_per_second']:8.1f} puzzle steps/s"
            )
    memory = row["peak_memory_gib"]
    line = f"peak memory {memory:.2f} GiB, first step after {row['seconds_to_first_step']:.1f} s"
    if "gpu_busy_ms" in row:
        line += f", GPU busy {row['gpu_busy_ms']:.2f} ms (host overhead {row['host_overhead']:.1%})"
    print(line)


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """Step time against cells and against layers, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for axis, key, label in zip(axes, ("grid_height", "num_hidden_layers"), ("cells of the grid", "layers")):
        points = sorted(
            (r[key] ** 2 if key == "grid_height" else r[key], r["ours"]["ms"]) for r in rows if r["swept"] == key
        )
        axis.plot(*zip(*points), marker="o", color="#0072B2")
        axis.set(xlabel=label, ylabel="ms a step", ylim=(0, None), xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="sudoku_extreme")
    parser.add_argument("--batch-size", help="one or several, joined by commas; default: 16 on a CPU, 768 on a GPU")
    parser.add_argument("--steps", type=int, help="steps timed together; default 1 on a CPU, 20 on a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many rounds counts")
    parser.add_argument("--warmup", type=int, help="steps before timing; default 1 on a CPU, 10 on a GPU")
    parser.add_argument("--public", type=Path, help="a checkout of the public AIR code, to time in turn with ours")
    parser.add_argument("--no-public-compile", action="store_true", help="time the public code uncompiled only")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count this process's CPU seconds: fair on a busy CPU, with one thread"
    )
    parser.add_argument("--sweep", action="store_true", help="grid sizes and layers at a fixed width, and a plot")
    parser.add_argument("--cycles", action="store_true", help="memory kept for the backward pass against cycles")
    parser.add_argument("--output", type=Path, help="JSON file; the plot of --sweep goes beside it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the recipe")
    arguments = parser.parse_intermixed_args(argv)
    on_gpu = torch.cuda.is_available()
    arguments.steps = arguments.steps or (20 if on_gpu else 1)
    arguments.warmup = arguments.warmup or (10 if on_gpu else 1)
    batches = [int(part) for part in (arguments.batch_size or ("768" if on_gpu else "16")).split(",")]
    rows = []
    if arguments.cycles:
        for batch_size, (h_cycles, l_cycles) in itertools.product(batches, ((1, 1), (2, 2), (3, 6), (8, 8))):
            size = saved_bytes(arguments, batch_size, h_cycles, l_cycles)
            row = {"batch_size": batch_size, "h_cycles": h_cycles, "l_cycles": l_cycles, "saved_mib": size / 2**20}
            rows.append(row)
            print(
                ", ".join(f"{k} {v}" for k, v in list(row.items())[:3]),
                f"{size / 2**20:9.1f} MiB for the backward pass",
            )
    elif arguments.sweep:
        grids = [{"grid_height": n, "num_hidden_layers": 4} for n in (4, 6, 9, 12, 16)]
        layers = [{"grid_height": 9, "num_hidden_layers": n} for n in (1, 2, 4, 8)]
        for swept, points in (("grid_height", grids), ("num_hidden_layers", layers)):
            for point in points:
                rows.append({"swept": swept, **measure(arguments, batches[0], **point)})
                show(rows[-1])
    else:
        for batch_size in batches:
            rows.append(measure(arguments, batch_size))
            show(rows[-1])
    if arguments.output:
        device = torch.device("cuda" if on_gpu else "cpu")
        record = {"command": " ".join(map(portable, sys.argv)), "rows": rows, **environment(device, 1)}
        record["recipe"], record["overrides"] = arguments.recipe, arguments.overrides
        record["clock"] = "CPU seconds of the process" if arguments.cpu_time else "wall clock"
        record["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")
        write_json(arguments.output, record)
        if arguments.sweep:
            plot(rows, arguments.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
