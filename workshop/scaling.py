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
PRODUCTS = 798e12  # operations a second in large bf16 products, measured on an H100; an H200 is near it
PRODUCTS_SHARE = 34 / 66  # of a step: full-size Sudoku takes 34 ms of products, 66 ms with all between them
LAUNCHES = 10 * 5e-6  # seconds a layer and pass: about ten kernels of five microseconds each, an assumption
NVLINK, NETWORK = 450e9, 50e9  # bytes a second and GPU, one direction: data sheets of HGX H200 and of a 400 Gb/s port


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
    return Path(__file__).with_name("scaling.md").read_text().format(
        rows="\n".join(row(name, gpus) for name in names for gpus in (1, 8, 64)),
        products=PRODUCTS / 1e12, share=PRODUCTS_SHARE, nvlink=NVLINK / 1e9, network=NETWORK / 1e9,
        batch=recipe.train.batch_size, params=weights / 1e6, megabytes=size, eight=size * traffic(8),
        many=size * traffic(64), peak=PEAK_TFLOPS["H200"],
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
