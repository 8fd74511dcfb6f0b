"""docs/scaling.md: what 1, 8 and 64 GPUs should give, computed from the recipes. Nothing in it is measured.

python workshop/scaling.py              # writes the page
"""

import sys
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import _checkout  # noqa: F401

import torch

from air_model.configuration_air import AirConfig
from air_model.modeling_air import AirModel
from air_model.processing_air import make_task
from air_model.training.cost import PEAK_TFLOPS, training_flops, training_passes
from air_model.training.recipe import Recipe, model_config, read_recipe

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
PRODUCTS = (
    798e12  # operations a second of large bf16 products, measured on an H100; an H200 is about the same (PERF.md)
)
PRODUCTS_SHARE = 34 / 66  # of a step: full-size Sudoku takes 34 ms of products, 66 ms with all between them (PERF.md)
LAUNCHES = 10 * 5e-6  # seconds a layer and pass: about ten kernels of five microseconds each, an assumption
NVLINK, NETWORK = 450e9, 50e9  # bytes a second and GPU, one direction: data sheets of HGX H200 and of a 400 Gb/s port

TEXT = """# Several GPUs: what to expect

Written by `python workshop/scaling.py`. **Computed, not measured**: no full-size run has been made. Batch, weights and
operations come from the recipes (`training/cost.py`); the rest is assumed: {products:.0f} TFLOP/s in large bf16
products (an H100 measured by itself; an H200 is about the same), which are {share:.0%} of a step (the rest moves data
between them), ten kernels of 5 µs a layer and pass, {nvlink:.0f} GB/s between the GPUs of a machine and
{network:.0f} GB/s a GPU between machines (data sheets). Eight H200 are one machine, 64 are eight. Times in ms.

| recipe | GPUs | slots a GPU | TFLOP a step | compute | launches | gradients | step | of peak | whole run |
|---|---|---|---|---|---|---|---|---|---|
{rows}

- **Batch.** `batch_size` is of all GPUs together and stays {batch}: more GPUs give the same run sooner, not another
  one (two and four processes give the weights of one to 1e-6, a slow test). It must be a multiple of their number.
- **Step.** The larger of compute and launches (the host queues kernels while the GPU works), plus the gradients.
  Blocks share their weights over all updates, so gradients are complete only at the end: DDP sends none meanwhile.
- **Gradients.** {params:.1f} M float32 numbers are {megabytes:.1f} MB; a ring moves 2 (n - 1) / n of that,
  {eight:.0f} MB a GPU and step with 8, {many:.0f} MB with 64. The puzzle table's travel as rows and are left out.
- **Of peak**: `training_flops` against {peak} TFLOP/s a GPU (dense bf16 of the data sheet).
- **Whole run** is training alone, without evaluations, compiling and data. The publication names about 4 hours on
  one H200 for Sudoku and about 3 on eight for mazes, evaluations included: expect to land between.

**What breaks first.** With 8 GPUs nothing: launches still hide behind the compute. With 64, Sudoku has 12 slots a GPU:
kernels end sooner than the host starts the next ones, and the gradients cross the network in the open. First try
`compile=reduce-overhead` (CUDA graphs), then fewer GPUs: eight runs on 8 each are worth more than one on 64. Mazes
keep 64 GPUs busy. A larger batch would fill them, but is another recipe. Beyond that an evaluation ends with its
slowest process, the log reads sums off all GPUs every `log_every` steps, and one process writes the checkpoint while
the others wait.

Launch files: `recipes/accelerate/`. On a machine without GPUs they train on the CPU (a slow test runs both, with two
processes). `accelerate launch --cpu` starts one process whatever the file says; the trainer refuses that, and names
`torchrun`.
"""


def row(recipe_name: str, gpus: int) -> str:
    """One line of the table: a recipe on so many GPUs."""
    recipe, config, weights = of(recipe_name)
    flops = training_flops(config, recipe.train.batch_size)
    compute = flops / gpus / PRODUCTS / PRODUCTS_SHARE
    launches = training_passes(config) * config.num_hidden_layers * LAUNCHES
    gradients = 4 * weights * traffic(gpus) / (NVLINK if gpus <= 8 else NETWORK)
    step = max(compute, launches) + gradients
    share = flops / gpus / step / (PEAK_TFLOPS["H200"] * 1e12)
    times = " | ".join(f"{1000 * seconds:.1f}" for seconds in (compute, launches, gradients, step))
    slots, hours = recipe.train.batch_size // gpus, recipe.train.max_steps * step / 3600
    return f"| {recipe_name} | {gpus} | {slots} | {flops / 1e12:.1f} | {times} | {share:.0%} | {hours:.2f} h |"


def of(recipe_name: str) -> tuple[Recipe, AirConfig, int]:
    """A recipe, its config, and how many weights have gradients that travel as a whole."""
    recipe = read_recipe(recipe_name)
    config = model_config(recipe, make_task(recipe.model["task"]))
    with torch.device("meta"):
        model = AirModel(config)
    return recipe, config, sum(p.numel() for name, p in model.named_parameters() if "puzzle" not in name)


def traffic(gpus: int) -> float:
    """How many times over a ring moves the gradients."""
    return 2 * (gpus - 1) / gpus


def page() -> str:
    recipe, _, weights = of("sudoku_extreme")
    size = 4e-6 * weights
    names = ("sudoku_extreme", "sudoku_best", "maze_hard")
    return TEXT.format(
        rows="\n".join(row(name, gpus) for name in names for gpus in (1, 8, 64)),
        products=PRODUCTS / 1e12, share=PRODUCTS_SHARE, nvlink=NVLINK / 1e9, network=NETWORK / 1e9,
        batch=recipe.train.batch_size, params=weights / 1e6, megabytes=size, eight=size * traffic(8),
        many=size * traffic(64), peak=PEAK_TFLOPS["H200"],
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
