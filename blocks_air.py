"""The block: what `AirModel` repeats. Linear layers, norms, rotary positions, attention, heads by relation, SwiGLU.

Shapes: B puzzles, S cells, T positions of a state, D hidden size, H heads; S cells are the last of T positions.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_air import AirConfig

Table = Tensor | None  # what only some configs have

# Most updates carry no gradient. There the elementwise stages below overwrite what they were given: on a CPU, where
# nothing fuses them, each new tensor of an update costs as much as reading and writing it once more. Where a compiler
# fuses them, overwriting costs instead: it must then write what was overwritten (five times the elementwise work).


def may_overwrite() -> bool:
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def add_norm(h: Tensor, change: Tensor, eps: float) -> Tensor:
    """RMSNorm(h + change) over the last dimension, without weight, in float32. `change` may be overwritten."""
    # Summing in another memory layout would round otherwise than the reference does.
    dtype, in_place = h.dtype, may_overwrite() and change.stride() == h.stride()
    wide = (change.add_(h) if in_place else h + change).float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide.mul_(scale) if in_place else wide * scale).to(dtype)


def rotate(h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions by the rotate-half form: (a, b) -> (a cos - b sin, b cos + a sin) for the halves of a head.

    `sin` comes with its first half negated (`AirRotaryEmbedding`), which saves a pass over h.
    """
    if torch.compiler.is_compiling():  # a roll compiles to scalar loops, halves cost more where nothing fuses them
        (a, b), c, s = h.chunk(2, -1), *(table.chunk(2, -1)[1] for table in (cos, sin))
        return torch.cat([a * c - b * s, b * c + a * s], dim=-1).to(h.dtype)
    # The float32 tables promote the product; the result goes back to the states' precision.
    return (h * cos).add_(h.roll(h.shape[-1] // 2, -1) * sin).to(h.dtype)


def attend_to_all(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)


def attend_to_neighbours(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, width: int, edges: Tensor
) -> Tensor:
    """The cells' attention to themselves, the four cells around, and the positions that are no cells.

    The grid's neighbours are the same keys moved by one cell or one row. In float32, as the fused kernels compute.
    """
    cells, dtype = len(edges), query.dtype
    query, key, value = (h.transpose(1, 2).float() for h in (query[:, :, -cells:], key, value))  # (B, S, h, D / H)
    others = key.shape[1] - cells

    def seen(h: Tensor) -> list[Tensor]:
        padded = F.pad(h[:, others:], (0, 0, 0, 0, width, width))
        moved = [padded[:, width + by : width + by + cells] for by in (-width, -1, 0, 1, width)]
        return moved + [h[:, i : i + 1] for i in range(others)]

    # The keys of a cell come first in the tensor: a softmax over six numbers that lie side by side is slow.
    scores = torch.stack([(query * k).sum(-1) for k in seen(key)])  # (5 + others, B, S, h)
    hidden = F.pad(edges, (0, others)).t()[:, None, :, None]
    first, *rest = (scores * scaling + hidden).softmax(0).unsqueeze(-1)
    value, *values = seen(value)
    out = first * value
    for weight, value in zip(rest, values):
        out = torch.addcmul(out, weight, value)
    return out.to(dtype)


def attend_in_boxes(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, grid: tuple[int, int], box: tuple[int, int]
) -> Tensor:
    """The cells' attention within boxes that tile the grid (a row and a column are boxes too), and to no cells."""
    (height, width), (a, b) = grid, box
    others, groups = query.shape[2] - height * width, height * width // (a * b)

    def gather(h: Tensor) -> Tensor:  # (B, h, S, D / H) -> (B * groups, h, a * b, D / H)
        h = h[:, :, others:].unflatten(2, (height // a, a, width // b, b))
        return h.permute(0, 2, 4, 1, 3, 5, 6).flatten(0, 2).flatten(2, 3)

    key, value = (torch.cat([h[:, :, :others].repeat_interleave(groups, 0), gather(h)], dim=2) for h in (key, value))
    out = F.scaled_dot_product_attention(gather(query), key, value, scale=scaling)
    out = out.view(len(query), height // a, width // b, -1, a, b, out.shape[-1])
    return out.permute(0, 1, 4, 2, 5, 3, 6).flatten(1, 4)  # (B, S, h, D / H)


def attend_by_groups(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, config: AirConfig, edges: Tensor
) -> Tensor:
    """Attention of heads by relation, each to the cells that it sees: (B, H, T, D / H) each -> (B, T, H, D / H)."""
    height, width = grid = (config.grid_height, config.grid_width)
    boxes = {"row": (1, width), "column": (height, 1), "box": (config.box_height, config.box_width)}
    others, parts = query.shape[2] - height * width, []
    for name, heads in itertools.groupby(enumerate(relations_of_heads(config)), key=lambda pair: pair[1]):
        heads = [head for head, _ in heads]
        q, k, v = (h[:, heads[0] : heads[-1] + 1] for h in (query, key, value))
        if name == "all":
            parts.append(attend_to_all(q, k, v, scaling))
            continue
        if name == "adjacent":
            out = attend_to_neighbours(q, k, v, scaling, width, edges)
        else:
            out = attend_in_boxes(q, k, v, scaling, grid, boxes[name])
        parts.append(torch.cat([attend_to_all(q[:, :, :others], k, v, scaling), out], dim=1) if others else out)
    return torch.cat(parts, dim=2)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention; (B, H, T, D / H) each -> (B, T, H, D / H) and the weights (B, H, T, T)."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class HeldWeight:
    """A linear layer's weight in one precision, while calls of `solve` use it: they may run side by side."""

    def __init__(self, weight: Tensor, packed: Tensor | None) -> None:
        self.weight, self.packed, self.users = weight, packed, 0  # packed: in oneDNN's own layout, on a CPU


class AirLinear(nn.Linear):
    """A linear layer without bias whose weight is cast to its input: float32 weights serve bfloat16 states."""

    product: Callable[[Tensor, Tensor], Tensor] = staticmethod(F.linear)  # training on some CPUs takes a faster one

    def __init__(self, features_in: int, features_out: int) -> None:
        super().__init__(features_in, features_out, bias=False)
        self.held: dict[torch.dtype, HeldWeight] = {}

    def forward(self, h: Tensor) -> Tensor:
        held = None if torch.compiler.is_compiling() else self.held.get(h.dtype)
        if held is not None and held.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(h, held.packed, None, "none", [], "")
        return self.product(h, self.weight.to(h.dtype) if held is None else held.weight)


class AirPuzzleEmbedding(nn.Embedding):
    """One row per puzzle, zero at first; trained by sign-SGD on the rows seen, never by Adam (`optim_air.py`)."""


class AirQHead(nn.Linear):
    """(q_halt, q_continue) in float32; starts at zero weight and bias -5, so that nothing halts early in training."""

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h.float(), self.weight.float(), self.bias.float())


class AirLevelToken(nn.Module):
    """A learned vector (D,) that tells an L-update from an H-update; zero at first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))


class AirHeadNorm(nn.RMSNorm):
    """RMSNorm of queries or keys over each head (..., D / H), in float32, with learned gains that start at 1."""

    def forward(self, h: Tensor) -> Tensor:
        return F.rms_norm(h.float(), self.normalized_shape, self.weight.float(), self.eps).to(h.dtype)


class AirTables(nn.Module):
    """Float32 tables that follow from the config alone; they are in no state dict and no file."""

    def __init__(self, config: AirConfig) -> None:
        super().__init__()
        self.config = config
        for name, table in self.tables(config).items():
            self.register_buffer(name, table, persistent=False)

    @staticmethod
    def tables(config: AirConfig) -> dict[str, Tensor]:
        raise NotImplementedError

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        # What moves, casts or empties a model comes by here. `.to(bfloat16)` is for weights: tables stay float32, as
        # in the reference; and after `to_empty` no state dict would bring them back.
        super()._apply(fn, recurse)
        tables = self.tables(self.config)
        for name, old in list(self._buffers.items()):
            if name not in tables:  # `AirRelations.pairs` makes it again when it is asked for
                del self._buffers[name]
            elif old.device.type != "meta":
                setattr(self, name, tables[name].to(old.device))
        return self


def places_of_cells(config: AirConfig, device: torch.device | str) -> dict[str, Tensor]:
    """The row, the column and in a Sudoku the box of each cell, (S,) int64 each, counted from 0."""
    index = torch.arange(config.seq_len, device=device)
    places = {"row": index // config.grid_width, "column": index % config.grid_width}
    if config.task == "sudoku":
        boxes = places["row"] // config.box_height * (config.grid_width // config.box_width)
        places["box"] = boxes + places["column"] // config.box_width
    return places


class AirRotaryEmbedding(AirTables):
    """Float32 tables cos, sin (positions, D / H) for `rotate`, one- or two-dimensional; sin starts negated."""

    @staticmethod
    def tables(config: AirConfig) -> dict[str, Tensor]:
        extra = config.num_stack_positions - config.seq_len
        if config.position_embedding == "rope":
            coordinates = [torch.arange(config.num_stack_positions, device="cpu")]
        else:
            # Cells stand at (row + 1, column + 1), the positions before them in row 0.
            at, before = places_of_cells(config, "cpu"), torch.arange(extra, device="cpu")
            coordinates = [torch.cat([before * 0, at["row"] + 1]), torch.cat([before, at["column"] + 1])]
        size = config.head_dim // len(coordinates)
        frequencies = 1.0 / config.rope_theta ** (torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size)
        angles = torch.cat([torch.outer(c.float(), frequencies) for c in coordinates], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return {"cos": torch.cat([cos, cos], dim=-1), "sin": torch.cat([-sin, sin], dim=-1)}


def relations_of_heads(config: AirConfig) -> list[str]:
    """The relation of each head, in turn from `head_relations`."""
    names = config.head_relations or ["all"]
    return [names[head % len(names)] for head in range(config.num_attention_heads)]


def by_groups(config: AirConfig) -> bool:
    """Whether heads by relation look at the cells they see alone, instead of at all cells with most of them hidden."""
    # Measured on a CPU, forward and backward: a mask costs in proportion to the positions squared, groups do not, and
    # they meet at about 256 (results/LOG.md). Eager attention gives whole maps, so there the mask stays.
    return config._attn_implementation == "sdpa" and config.num_stack_positions > 256


class AirRelations(AirTables):
    """What is added to the scores: 0 where a head looks, -inf where it does not.

    bias (1, H, positions, positions): for every pair of positions. edges (S, 5): for a cell and the cell above, the
    one to the left, itself, the one to the right, and the one below.
    """

    @classmethod
    def tables(cls, config: AirConfig) -> dict[str, Tensor]:
        row, column, *_ = places_of_cells(config, "cpu").values()
        last_row, last_column = config.grid_height - 1, config.grid_width - 1
        near = torch.stack([row > 0, column > 0, row >= 0, column < last_column, row < last_row], dim=-1)
        # Heads on their groups need no pairs, and there are many: 3 GB for a maze of 100x100.
        return {"edges": _hidden(near)} | ({} if by_groups(config) else {"bias": cls.of_pairs(config)})

    @staticmethod
    def seen_from(config: AirConfig, cells: Tensor) -> Tensor:
        """What each head sees from cells (Q,): bool (H, Q, positions), on their device."""
        places = places_of_cells(config, cells.device)
        apart = {name: place[cells, None] - place for name, place in places.items()}
        seen = {name: distance == 0 for name, distance in apart.items()}
        seen["adjacent"] = apart["row"].abs() + apart["column"].abs() <= 1
        seen["all"] = torch.ones_like(seen["row"])
        heads = torch.stack([seen[name] for name in relations_of_heads(config)])
        extra = config.num_stack_positions - config.seq_len  # these are seen by every head, and see every cell
        return F.pad(heads, (extra, 0), value=True)

    @classmethod
    def of_pairs(cls, config: AirConfig) -> Tensor:
        heads = cls.seen_from(config, torch.arange(config.seq_len, device="cpu"))
        return _hidden(F.pad(heads, (0, 0, config.num_stack_positions - config.seq_len, 0), value=True)[None])

    def pairs(self) -> Tensor:
        """bias, also where `by_groups` held when this was made."""
        if "bias" not in self._buffers:
            self.register_buffer("bias", self.of_pairs(self.config).to(self.edges.device), persistent=False)
        return self.bias

    def for_states(self, dtype: torch.dtype) -> Tensor:
        """What the blocks take: bias, or where `by_groups` holds edges, which are all that heads need there."""
        return self.edges if by_groups(self.config) else self.pairs().to(dtype)


def _hidden(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, dtype=torch.float32, device="cpu").masked_fill(~seen, -torch.inf)


class AirHeadScales(AirTables):
    """of_heads (H, 1, 1): what each head's scores are multiplied by, after `log_scale_positions`."""

    @staticmethod
    def tables(config: AirConfig) -> dict[str, Tensor]:
        factor = math.log(config.num_stack_positions) / math.log(config.log_scale_positions)
        of_heads = [factor if name == "all" else 1.0 for name in relations_of_heads(config)]
        return {"of_heads": torch.tensor(of_heads, device="cpu")[:, None, None]}


# torch's fused attention trains slowly in bfloat16 on CPUs: over 82 positions plain products take a quarter of its
# time, over 145 two fifths, over 197 as long, over 226 a third longer; float32 half of it or less (results/LOG.md).
FEW_POSITIONS = 200


class AirAttention(nn.Module):
    """Bidirectional multi-head attention through transformers' interface (eager, sdpa, flex, flash)."""

    def __init__(self, config: AirConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        self.head_dim, self.scaling = config.head_dim, config.head_dim**-0.5
        self.is_causal, self.num_key_value_groups = False, 1
        self.qkv_proj = AirLinear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = AirLinear(config.hidden_size, config.hidden_size)
        if config.qk_norm:
            self.q_norm, self.k_norm = (AirHeadNorm(config.head_dim, config.rms_norm_eps) for _ in "qk")
        self.scales = AirHeadScales(config) if config.log_scale_positions else None
        self.observer: Callable | None = None

    def forward(self, h: Tensor, cos: Table, sin: Table, bias: Table = None) -> tuple[Tensor, Tensor | None]:
        qkv = self.qkv_proj(h).view(*h.shape[:-1], 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if cos is not None:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.scales is not None:
            query = query * self.scales.of_heads.to(query.dtype)
        if self.observer is not None:
            self.observer(self.layer, query, key, self.scaling)
        implementation = self.config._attn_implementation
        slow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and torch.is_grad_enabled()
        if implementation == "sdpa" and slow:
            if query.shape[2] > FEW_POSITIONS:
                query, key, value = query.float(), key.float(), value.float()
                bias = None if bias is None else bias.float()
            else:
                implementation = "eager"
        if bias is not None and implementation not in ("eager", "sdpa"):
            raise ValueError(
                f"attn_implementation={implementation!r} cannot hide cells from a head, and this model's config has "
                f"head_relations={self.config.head_relations}. Use 'sdpa' or 'eager'."
            )
        if bias is not None and by_groups(self.config):
            out = attend_by_groups(query, key, value, self.scaling, self.config, bias)
            return self.o_proj(out.flatten(2).to(h.dtype)), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        out, weights = attend(self, query, key, value, bias, scaling=self.scaling, dropout=0.0, is_causal=False)
        return self.o_proj(out.reshape(h.shape).to(h.dtype)), weights


class AirSwiGLU(nn.Module):
    """down(silu(gate) * up) over the last dimension."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = AirLinear(size, 2 * inner)
        self.down_proj = AirLinear(inner, size)

    def forward(self, h: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(h).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate, inplace=True).mul_(up) if may_overwrite() else F.silu(gate) * up)


class AirBlock(GradientCheckpointingLayer):
    """Post-norm: h <- norm(h + mix(h)); h <- norm(h + swiglu(h)); mix is attention or a SwiGLU over positions."""

    def __init__(self, config: AirConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.mlp_mixer = config.token_mixer == "mlp"
        if self.mlp_mixer:
            positions = config.num_stack_positions
            self.mlp_t = AirSwiGLU(positions, config.swiglu_width(positions))
        else:
            self.self_attn = AirAttention(config, layer)
        self.mlp = AirSwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, h: Tensor, cos: Table = None, sin: Table = None, bias: Table = None) -> Tensor:
        if self.mlp_mixer:
            across = h.transpose(1, 2)  # (B, D, T)
            h = add_norm(across, self.mlp_t(across), self.eps).transpose(1, 2)
        else:
            h = add_norm(h, self.self_attn(h, cos, sin, bias)[0], self.eps)
        return add_norm(h, self.mlp(h), self.eps)


class AirStack(nn.Module):
    """f: the blocks one after another. `model.stack.compile()` compiles it in place."""

    def __init__(self, config: AirConfig, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AirBlock(config, layer) for layer in range(layers))

    def forward(self, h: Tensor, cos: Table = None, sin: Table = None, bias: Table = None) -> Tensor:
        for layer in self.layers:
            h = layer(h, cos, sin, bias)
        return h


def forward_flops(config: AirConfig) -> float:
    """Floating-point operations of one pass of one puzzle through one stack: 27.93 M a position
    for full-size Sudoku. A multiply-add counts as two; norms, embeddings and heads are left out, and so is what heads
    do that look at a few cells alone (`by_groups`)."""
    t, d = config.num_stack_positions, config.hidden_size
    if config.token_mixer == "mlp":
        mixing = 2 * 3 * d * t * config.swiglu_width(config.num_state_positions)
    else:
        heads = relations_of_heads(config) if config.head_relations and by_groups(config) else ["all"]
        mixing = t * (2 * 4 * d * d) + 4 * t * t * d * heads.count("all") / len(heads)
    layer = mixing + t * 2 * 3 * d * config.intermediate_size
    layers = config.num_hidden_layers
    if not config.shared_block:  # the mean of both stacks, weighted by how often each runs
        runs = config.schedule
        counts = (runs.count("l") * (config.l_layers or layers), runs.count("h") * (config.h_layers or layers))
        layers = sum(counts) / len(runs)
    return layer * layers
