"""The weights that a run starts from: those of another model, widened where that is half as wide."""

import torch
from torch import Tensor
from torch.nn import functional as F

from air_model.modeling_air import AirModel
from air_model.pipeline_air import load_model
from air_model.training.launch import RunError


def start_from(model: AirModel, source: str) -> str:
    """Copy the weights of another model; what has another shape (tokens, places of another grid) stays fresh.

    A model of half the width is widened, so that it computes what it did (`widened`).

    Returns a sentence that says so. Raises RunError if no block fits.
    """
    other = load_model(source, "cpu").float()
    grown = other.config.hidden_size * 2 == model.config.hidden_size
    theirs, ours = widened(other) if grown else other.state_dict(), model.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in ours and ours[k].shape == v.shape}
    blocks = [k for k in ours if ".layers." in k]
    if missing := [k for k in blocks if k not in fitting]:
        raise RunError(
            f"init_from={source}: its blocks do not fit this recipe ({missing[0]} and {len(missing) - 1} more). Use "
            "its width (or twice its hidden_size and intermediate_size), heads, layers and variant."
        )
    model.load_state_dict({**ours, **fitting})
    fresh = sorted(set(ours) - set(fitting))
    how = f", widened from {other.config.hidden_size} to {model.config.hidden_size}" if grown else ""
    how += f"; fresh because of another shape: {', '.join(fresh)}" if fresh else ""
    return f"Starting from {source}{how}."


def widened(model: AirModel, noise: float = 0.01, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a model twice as wide (hidden, intermediate and head size) that computes the same, plus `noise`.

    Every unit of a state, a SwiGLU and a head's values is there twice, and what reads it is shared out between the two
    at random, so that they learn apart (Net2WiderNet, arXiv:1511.05641). Queries and keys keep their frequencies and
    get new ones between them that weigh nothing at first. `noise` is relative to each matrix.
    """
    generator, heads = torch.Generator().manual_seed(seed), model.config.num_attention_heads

    def shared(weight: Tensor) -> Tensor:  # (out, in) -> (out, 2 in)
        part = 0.2 + 0.6 * torch.rand(weight.shape, generator=generator)
        return torch.cat([part * weight, (1 - part) * weight], dim=-1)

    def twice(weight: Tensor) -> Tensor:  # (out, ...) -> (2 out, ...)
        return torch.cat([weight, weight])

    wide = {}
    for name, weight in model.state_dict().items():
        weight, kind = weight.float().cpu(), name.split(".")[-2] if "." in name else name
        if ".mlp_t." in name or name == "q_head.bias":
            wide[name] = weight.clone()
        elif kind == "qkv_proj":
            d, size = weight.shape[1], weight.shape[0] // 3 // heads
            query, key, value = weight.view(3, heads, size, d)
            old = torch.zeros(2 * size, dtype=torch.bool)
            old[::2] = True  # frequency j of the narrow head is frequency 2 j of the wide one
            parts = []
            # A wide head divides by the root of 2 more.
            for one, of_new in ((query * 2**0.5, noise), (key, 1.0)):
                fresh = torch.randn(heads, 2 * size, 2 * d, generator=generator) * (0.3 * of_new * one.std() / 2**0.5)
                if model.config.qk_norm and one is key:  # new parts like the old ones leave a key's norm as it was
                    fresh[:, ~old] = shared(one)
                fresh[:, old] = shared(one)
                parts.append(fresh)
            parts.append(torch.cat([shared(value), shared(value)], dim=1))
            wide[name] = torch.stack(parts).flatten(0, 2)
        elif kind in ("q_norm", "k_norm"):
            wide[name] = weight.repeat_interleave(2)
        elif kind == "o_proj":
            wide[name] = twice(shared(weight.view(len(weight), heads, -1)).flatten(1))
        elif kind == "gate_up_proj":
            gate, up = weight.chunk(2)
            wide[name] = torch.cat([shared(gate), shared(gate), shared(up), shared(up)])
        elif kind in ("down_proj", "input_proj"):
            wide[name] = twice(shared(weight))
        elif kind in ("lm_head", "q_head"):
            wide[name] = shared(weight)
        elif kind == "puzzle_embedding":
            config = model.config
            cells = F.pad(weight, (0, config.prefix_length * config.hidden_size - weight.shape[1]))
            cells = cells.view(len(weight), config.prefix_length, -1)
            wide[name] = (torch.cat([cells, cells], dim=2) / 2**0.5).flatten(1)
        elif weight.dim() == 2:  # embeddings, which are scaled by the root of the width
            wide[name] = torch.cat([weight, weight], dim=1) / 2**0.5
        else:
            wide[name] = twice(weight)
        if kind.endswith("_proj"):
            wide[name] += noise * weight.std() / 2**0.5 * torch.randn(wide[name].shape, generator=generator)
    return wide
