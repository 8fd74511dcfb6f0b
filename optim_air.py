"""Everything that turns gradients into weights: optimizers, the puzzle table's sign-SGD, the schedule, the EMA.

    optimizers = build_optimizers(model, "adam_atan2", lr=1e-4, weight_decay=1.0, puzzle_lr=1e-4)
    loss.backward()
    optimizers.set_lr_factor(lr_factor(step, max_steps=26_040, warmup_steps=2_000))
    optimizers.step(puzzle_ids)      # ids of the puzzles in the batch: (B,) int64
    optimizers.zero_grad()

Adam-atan2 is the package that the AIR repository bundles (`adam-atan2-pytorch`); the rest is here.
Source: the public training code (github.com/juchengshen/air); the puzzle table's update is HRM's, arXiv:2506.21734.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

OPTIMIZERS = ("adam_atan2", "adamw", "muon", "muon_adamw")
SCHEDULES = ("cosine", "linear_tail")
ATAN2_SCALE = 1.27  # a of the published runs; HRM's own fused kernel has a = 1


def lr_factor(
    step: int,
    *,
    max_steps: int,
    warmup_steps: int = 0,
    min_ratio: float = 1.0,
    schedule: str = "cosine",
    tail_share: float = 0.3,
) -> float:
    """What the base learning rates are multiplied with in optimizer step `step`, counted from 1.

    "cosine": linear warm-up, then half a cosine down to `min_ratio` at `max_steps` (1.0, the published value, is
    constant). "linear_tail": linear warm-up, constant, then a straight line to `min_ratio` over the last `tail_share`.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "linear_tail":
        tail = max(1.0, tail_share * max_steps)
        return 1.0 - (1.0 - min_ratio) * min(1.0, max(0.0, step - (max_steps - tail)) / tail)
    if schedule != "cosine":
        raise ValueError(f"Unknown schedule {schedule!r}. Known: {', '.join(SCHEDULES)}.")
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def adam_atan2(
    params: list, *, lr: float, betas: tuple[float, float], weight_decay: float, scale: float = ATAN2_SCALE
) -> torch.optim.Optimizer:
    """Adam-atan2 as in the published runs: p <- p (1 - lr wd) - lr·scale·atan2(m̂, sqrt(v̂))."""
    try:
        from adam_atan2_pytorch import AdamAtan2
    except ImportError as error:
        raise ImportError(
            "optimizer=adam_atan2 needs the PyPI package adam-atan2-pytorch, which is not installed. Run "
            "`pip install adam-atan2-pytorch` (pure Python; on a machine without network carry its wheel over and "
            "`pip install --no-deps FILE.whl`), or train with optimizer=adamw or optimizer=muon_adamw."
        ) from error
    # The package refuses lr = 0 at construction; set_lr_factor writes the real rate before every step.
    # decoupled_wd would divide the decay by the first rate: left off, the factor is 1 - lr·wd as published.
    return AdamAtan2(params, lr=max(lr, 1e-12), betas=betas, weight_decay=weight_decay, a=scale, b=1.0)


class Muon(torch.optim.Muon):
    """torch.optim.Muon whose orthogonalisation runs in the dtype that the device multiplies fast.

    torch's version always casts to bfloat16, which is hundreds of times slower than float32 on a CPU without bf16
    instructions. On CUDA this class is torch's; on a CPU the same iteration runs in float32.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if any(p.is_cuda for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        assert closure is None
        for group in self.param_groups:
            params, grads, buffers = [], [], []
            self._init_group(group, params, grads, buffers)
            for p, grad, buffer in zip(params, grads, buffers):
                buffer.lerp_(grad, 1 - group["momentum"])
                update = grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = orthogonalise(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, p.shape[0] / p.shape[1])))
        return None


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix, (M, N) -> (M, N), in the given dtype."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class PuzzleSignSGD(torch.optim.Optimizer):
    """Sign-SGD on the rows of the puzzle table that the (global) batch used: p <- p (1 - lr wd) - lr sign(g).

    Adam's running averages would make every row of the table move in every step; this touches only the rows seen.
    A row that was seen but has no gradient still decays, as in the public code. The update has no state.
    Nothing here waits for the device: shapes never depend on the ids.
    """

    def __init__(self, table: nn.Parameter, lr: float, weight_decay: float) -> None:
        super().__init__([table], {"lr": lr, "weight_decay": weight_decay})
        self.table = table

    @torch.no_grad()
    def step(self, ids: Tensor) -> None:
        """ids: (B,) int64, the puzzles of this process in this step."""
        grad = self.table.grad
        if grad is None:
            return
        seen = torch.zeros(len(self.table), 1, dtype=grad.dtype, device=ids.device).index_fill_(0, ids, 1)
        if dist.is_available() and dist.is_initialized():
            # Whole tables travel: added up row by row in each process, sums could round, and tables grow, apart.
            dist.all_reduce(seen, op=dist.ReduceOp.MAX)
            dist.all_reduce(grad)
        lr, weight_decay = (self.param_groups[0][name] for name in ("lr", "weight_decay"))
        updated = self.table * (1.0 - lr * weight_decay) - lr * grad.sign()
        self.table.copy_(torch.where(seen > 0, updated, self.table))


class Optimizers:
    """The optimizers of a run as one: `main` (one or two torch optimizers) and that of the puzzle table, if any."""

    def __init__(self, main: list[torch.optim.Optimizer], puzzle: PuzzleSignSGD | None) -> None:
        self.main, self.puzzle = main, puzzle
        self.all = [*main, *([puzzle] if puzzle else [])]
        self.held = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in main]
        self.base_lrs = [(group, group["lr"]) for optimizer in self.all for group in optimizer.param_groups]

    def set_lr_factor(self, factor: float) -> None:
        """Every learning rate becomes its base value times `factor`."""
        for group, rate in self.base_lrs:
            group["lr"] = rate * factor

    def step(self, puzzle_ids: Tensor | None = None) -> None:
        for optimizer in self.main:
            optimizer.step()
        if self.puzzle is not None and puzzle_ids is not None:
            self.puzzle.step(puzzle_ids)

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    @property
    def params(self) -> list[Tensor]:
        """The parameters of the torch optimizers (not the puzzle table)."""
        return sum(self.held, [])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values) of all optimizers, for safetensors and JSON. Keys: OPTIMIZER.PARAM.NAME."""
        tensors, values = {}, {}
        for i, optimizer in enumerate(self.main):
            for j, p in enumerate(self.held[i]):
                for name, value in optimizer.state.get(p, {}).items():
                    (tensors if isinstance(value, Tensor) else values)[f"{i}.{j}.{name}"] = value
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """The inverse of `state`, into optimizers built with the same arguments."""
        for optimizer in self.main:
            optimizer.state.clear()
        for key, value in {**tensors, **values}.items():
            which, index, name = key.split(".", 2)
            optimizer, p = self.main[int(which)], self.held[int(which)][int(index)]
            if isinstance(value, Tensor):
                # AdamW's step count is a tensor on the CPU unless it is fused; moments live with the weights.
                stays = name == "step" and not optimizer.param_groups[0].get("fused")
                value = value.clone() if stays else value.to(p.device, copy=True)
            optimizer.state[p][name] = value


def build_optimizers(
    model: nn.Module,
    name: str = "adam_atan2",
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 1.0,
    atan2_scale: float = ATAN2_SCALE,
    muon_lr: float = 5e-3,
    muon_weight_decay: float = 0.0,
    puzzle_lr: float = 1e-4,
    puzzle_weight_decay: float = 1.0,
) -> Optimizers:
    """Optimizers of a model. The puzzle table ("puzzle" in its name) never goes to Adam or Muon.

    Args:
        name: "adam_atan2" (published) or "adamw" for all weights; "muon" or "muon_adamw": Muon for the matrices of
            the blocks, Adam-atan2 or AdamW for embeddings, heads, level tokens, biases and (undecayed) gains.
        lr, betas, weight_decay: of Adam-atan2 or AdamW. muon_lr, muon_weight_decay: of Muon.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {name!r}. Known: {', '.join(OPTIMIZERS)}.")
    kinds: dict[str, list] = {"table": [], "matrix": [], "gain": [], "rest": []}
    for n, p in model.named_parameters():
        is_matrix = name.startswith("muon") and ".layers." in n and p.ndim == 2
        is_gain = n.endswith(("q_norm.weight", "k_norm.weight"))
        if p.requires_grad:
            kinds["table" if "puzzle" in n else "matrix" if is_matrix else "gain" if is_gain else "rest"].append(p)
    tables, matrices, gains, rest = kinds.values()
    fused = any(p.is_cuda for p in rest)
    if gains:  # they are 1 where they do nothing: decay would pull them to 0, and attention to a mean of all cells
        rest = [{"params": rest}, {"params": gains, "weight_decay": 0.0}]
    if name in ("adamw", "muon_adamw"):
        main = [torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)]
    else:
        main = [adam_atan2(rest, lr=lr, betas=betas, weight_decay=weight_decay, scale=atan2_scale)]
    if matrices:
        main.append(Muon(matrices, lr=muon_lr, weight_decay=muon_weight_decay))
    assert len(tables) <= 1, "one puzzle table at most"
    puzzle = PuzzleSignSGD(tables[0], puzzle_lr, puzzle_weight_decay) if tables else None
    return Optimizers(main, puzzle)


class WeightEMA:
    """Exponential moving average of the weights: shadow <- decay·shadow + (1 - decay)·weight after every step.

    With `warmup` the decay starts at 0.1 and rises as (1 + t) / (10 + t), so that short runs forget their start.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"ema must lie between 0 and 1, got {decay}. Leave it at 0 in the recipe for no EMA.")
        self.decay, self.warmup = decay, warmup
        # The puzzle table is the newest one, as in the public code, where it is a buffer and not a parameter.
        self.weights = {n: p for n, p in model.named_parameters() if p.requires_grad and "puzzle" not in n}
        self.shadow = {n: p.detach().clone() for n, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(list(self.shadow.values()), [self.weights[n] for n in self.shadow], 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights."""
        backup = {n: p.detach().clone() for n, p in self.weights.items()}
        _copy(self.shadow, self.weights)
        try:
            yield
        finally:
            _copy(backup, self.weights)

    def load(self, tensors: dict[str, Tensor]) -> None:
        _copy(tensors, self.shadow)


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    assert source.keys() == target.keys()
    for name, tensor in target.items():
        tensor.copy_(source[name])
