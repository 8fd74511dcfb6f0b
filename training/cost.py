"""What training costs: operations of a step, when compiling is worth it, and which products a processor is fast at."""

import contextlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from air_model.blocks_air import AirLinear, forward_flops
from air_model.configuration_air import AirConfig
from air_model.records import cpu_name


def training_passes(config: AirConfig) -> int:
    """Passes through the stack in a training step: updates with gradient count thrice, the second forward once."""
    updates = len(config.schedule)
    with_gradient = updates - config.first_gradient_update
    return (updates - with_gradient) + 3 * with_gradient + (updates if config.q_continue else 0)


def training_flops(config: AirConfig, batch_size: int) -> float:
    """Operations of one optimizer step: 28.1e12 for full-size Sudoku, batch 768, published arithmetic."""
    return forward_flops(config) * training_passes(config) * batch_size


# Compiling on a CPU takes about half a minute and spares a tenth to a third of the time: worth it for runs of ten
# minutes and more (at the 50 GFLOP/s or so that a small machine sustains in fp32).
WORTH_COMPILING = 3e13


def compile_mode(asked: str, device_type: str, flops: float) -> str:
    """What `compile` of a recipe means for a run of so many operations: "off", or a mode of torch.compile.

    The operations are those of the whole run, so that a resumed run decides as its first session did.
    """
    if asked != "auto":
        return asked
    return "default" if device_type == "cuda" or (device_type == "cpu" and flops >= WORTH_COMPILING) else "off"


def slow_products() -> bool:
    """Whether torch's float32 products are slow here: they are MKL's, and this x86 processor is not Intel's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return platform.machine() in ("x86_64", "AMD64") and "Intel" not in cpu_name("vendor_id")


def use_onednn(model: nn.Module) -> None:
    """Train the linear layers of 64 and more on both sides with oneDNN's products; it is slower in narrower ones."""
    for module in model.modules():
        if isinstance(module, AirLinear) and min(module.weight.shape) >= 64:
            module.product = onednn_linear


@torch.library.custom_op("air::onednn_linear", mutates_args=())
def onednn_linear(h: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(h, weight)` in float32 by oneDNN, forward and backward: (..., in), (out, in) -> (..., out).

    On AMD processors it is about twice as fast as MKL's product, which torch takes (results/LOG.md).
    """
    return torch.ops.mkldnn._linear_pointwise(h, weight, None, "none", [], "")


@onednn_linear.register_fake
def _(h: Tensor, weight: Tensor) -> Tensor:
    return h.new_empty(*h.shape[:-1], len(weight))


def _onednn_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    h, weight = ctx.saved_tensors
    rows, seen = grad.flatten(0, -2), h.flatten(0, -2)
    # Narrow weights have few outputs to share out and long sums, where oneDNN is slower than MKL (results/LOG.md).
    of_weight = onednn_linear(rows.t(), seen.t()) if min(weight.shape) >= 256 else rows.t() @ seen
    return onednn_linear(grad, weight.t()), of_weight


onednn_linear.register_autograd(
    _onednn_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


# Dense bf16 peak of common cards, TFLOP/s, from the makers' data sheets; the first that is in a card's name counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "4090": 165,
    "5090": 209, "3090": 71,
}  # fmt: skip


def peak_tflops(device: torch.device) -> float | None:
    """bf16 peak of this GPU after its data sheet, or None where it is not in the table (CPUs, other cards)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAK_TFLOPS.items() if key in name), None)


def matmul_tflops(
    device: torch.device,
    dtype: torch.dtype,
    clock: Callable[[], float] = time.perf_counter,
    product: Any = torch.matmul,
) -> float:
    """This machine's own rate in a large square matrix product, TFLOP/s; where torch's is slow, steps exceed it."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    sync = torch.get_device_module(device).synchronize
    product(a, b)
    best, begin = 0.0, clock()
    while clock() - begin < 0.3:
        sync()
        start = clock()
        product(a, b)
        sync()
        best = max(best, 2 * n**3 / (clock() - start))
    return best / 1e12


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None
