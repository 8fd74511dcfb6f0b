"""Another maker's kernels, emulated: linear layers' outputs move by a rounding error, the same for the same shapes.

`AIR_ROUNDING_SEED=3 pytest` runs all tests so (`tests/conftest.py`, and `sitecustomize.py` here for the processes that
they start). Golden tests perturb float64 runs with it to measure how rounding grows.
"""

import atexit
import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

SIZE = {
    torch.float32: 1e-7,
    torch.float64: 1e-16,
}  # standard deviation, a share of the output


@functools.lru_cache(maxsize=4096)
def _noise(seed: int, *shape: int) -> Tensor:
    # By shape and not by value: as between real kernels, a row rounds otherwise in a batch of another size.
    return torch.randn(shape, generator=torch.Generator().manual_seed(hash((seed, shape)) % 2**63))


@contextlib.contextmanager
def rounding(seed: int, size: float | None = None) -> Iterator[None]:
    """Inside, every linear layer's output is multiplied by 1 + size * noise; `size` is by default the dtype's own."""

    def emulate(module: nn.Module, _: Any, out: Any) -> Tensor | None:
        # What a compiler made, or an exporter traces, is another code path already.
        if not isinstance(module, nn.Linear) or out.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        held = getattr(module, "held", {}).get(out.dtype)
        packed = held is not None and held.packed is not None
        noise = _noise(seed + (2 if packed else 1) * 1000, *out.shape)
        if out.dtype in SIZE:
            return out * (1 + noise.to(out.dtype) * (size or SIZE[out.dtype]))
        # A sum in float32 that ends up beyond the middle of two neighbours: one in ten thousand outputs.
        return torch.where(noise.abs() > 3.9, out * (1 + noise.sign() * torch.finfo(out.dtype).eps), out).to(out.dtype)

    handle = nn.modules.module.register_module_forward_hook(emulate)
    try:
        yield
    finally:
        handle.remove()


@functools.cache
def start() -> None:
    """Once, for the rest of this process, with the seed in AIR_ROUNDING_SEED."""
    running = contextlib.ExitStack()
    running.enter_context(rounding(int(os.environ["AIR_ROUNDING_SEED"])))
    atexit.register(running.close)  # and keeps it alive
