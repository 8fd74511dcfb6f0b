"""Public training checkpoints (AIR, HRM, TRM) as AirModels: names, sizes and settings of the public code in ours.

A checkpoint is the public code's `step_N` beside its `all_config.yaml`; `scripts/convert_checkpoint.py` is the door.
"""

import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from air_model.configuration_air import VARIANTS, AirConfig
from air_model.modeling_air import AirModel

# The public code's model files -> rows of VARIANTS where the names differ.
ARCHITECTURES = {
    **{f"air.air_1net_{name}": name for name in VARIANTS if name not in ("HRM", "TRM", "TRM_mlp")},
    "air.air_1net_L2x_H2x_input_token_addition": "L2x_H2x_add",
    "air.air_1net_L2x_H2x_input_token_prepend": "L2x_H2x_prepend",
    "air.air_1net_L2x_H2x_input_token_prepend_no_strip": "L2x_H2x_prepend_no_strip",
    "air.air_1net_gx_non_linear": "gx_nonlinear",
    "hrm.hrm_act_v1": "HRM",
    "recursive_reasoning.trm": "TRM",
}
# Names under which training scripts keep the weights among other things in one file.
CONTAINERS = ("model_state_dict", "state_dict", "model")
# Fields of the public `arch` -> ours; the second ones may be missing, and then have the public code's own value.
FIELDS = {
    "hidden_size": "hidden_size", "num_heads": "num_attention_heads", "expansion": "expansion", "L_cycles": "l_cycles",
    "H_cycles": "h_cycles", "L_layers": "num_hidden_layers", "halt_max_steps": "halt_max_steps",
    "pos_encodings": "position_embedding",
}  # fmt: skip
DEFAULTS = {
    "rms_norm_eps": ("rms_norm_eps", 1e-5), "rope_theta": ("rope_theta", 10000.0),
    "forward_dtype": ("activation_dtype", "bfloat16"), "puzzle_emb_ndim": ("puzzle_embedding_size", 0),
}  # fmt: skip
# Fields that only training reads, or that the code never reads; and those of TRM alone.
IGNORED_FIELDS = {
    "batch_size", "halt_exploration_prob", "name", "loss", "vocab_size", "seq_len", "num_puzzle_identifiers",
    "H_layers",
}  # fmt: skip
TRM_FIELDS = {"mlp_t", "puzzle_emb_len", "no_ACT_continue"}


def variant_of(arch: dict[str, Any]) -> str:
    """The row of VARIANTS that a public `arch` section means; raises ValueError for one that is not known."""
    name = str(arch.get("name", "")).split("@")[0]
    if name not in ARCHITECTURES:
        raise ValueError(
            f"Unknown architecture {arch.get('name')!r} in all_config.yaml. Known: {', '.join(sorted(ARCHITECTURES))}."
        )
    variant = ARCHITECTURES[name]
    return "TRM_mlp" if variant == "TRM" and arch.get("mlp_t") else variant


def config_of(settings: Any, state: dict[str, Tensor], seq_len: int, task: str | None) -> AirConfig:
    """The AirConfig of a public run, sizes of the vocabulary and puzzle table from its weights."""
    arch = settings.get("arch") if isinstance(settings, dict) else None
    if not isinstance(arch, dict):
        raise ValueError("all_config.yaml has no `arch` section: is it the file that the training run wrote?")
    variant = variant_of(arch)
    trm = variant in ("TRM", "TRM_mlp")
    needed = [*FIELDS, *(["H_layers"] if variant == "HRM" else [])]
    if missing := [key for key in needed if key not in arch]:
        raise ValueError(f"all_config.yaml lacks arch.{missing[0]}, which {arch['name']} needs.")
    if unknown := sorted(set(arch) - {*FIELDS, *DEFAULTS, *IGNORED_FIELDS, *(TRM_FIELDS if trm else ())}):
        raise ValueError(f"all_config.yaml has arch fields that this converter does not know: {unknown}.")
    vocab_size = need_tensor(state, "embed_tokens.embedding_weight").shape[0]
    side = int(seq_len**0.5)
    height = side if side * side == seq_len else 1
    if task is None:
        digits = height == side and vocab_size == side + 2 and "maze" not in str(settings.get("data_path") or "")
        task = "sudoku" if digits else "maze" if vocab_size == 6 else "grid"
    if task != "grid" and height != side:
        raise ValueError(f"{seq_len} cells are no square {task}: only square ones can be converted, or --task grid.")
    fields = {ours: arch[public] for public, ours in FIELDS.items()}
    fields |= {ours: arch.get(public, default) for public, (ours, default) in DEFAULTS.items()}
    fields |= {"task": task, "grid_height": height, "grid_width": seq_len // height, "vocab_size": vocab_size}
    fields["loss_type"] = (arch.get("loss") or {}).get("loss_type", "stablemax_cross_entropy")
    for name in ("rms_norm_eps", "rope_theta"):
        fields[name] = float(fields[name])  # YAML reads 1e-5 as text
    if (position := fields["position_embedding"]) not in ("rope", "learned", "none"):
        raise ValueError(f"Unknown pos_encodings {position!r} in all_config.yaml. Known: rope, learned, none.")
    if variant == "HRM":
        fields |= {"l_layers": arch["L_layers"], "h_layers": arch["H_layers"]}
    if trm:
        fields["q_continue"] = not arch.get("no_ACT_continue", True)
        # 0 means "as long as the puzzle embedding needs", as in the other architectures.
        fields["prefix_length"] = arch.get("puzzle_emb_len", 16) or None
    if fields["puzzle_embedding_size"]:
        fields["num_puzzle_identifiers"] = need_tensor(state, "puzzle_emb.weights").shape[0]
    return AirConfig.from_variant(variant, **fields)


def need_tensor(state: dict[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise ValueError(f"The checkpoint lacks {key!r}: it is truncated, or of another architecture.")
    return state[key]


def our_name(key: str) -> str:
    """A public parameter name without its `model.inner.` -> ours."""
    rules = [
        (r"^f_level\.", "stack."),
        (r"^embed_tokens\.embedding_weight$", "embed_tokens.weight"),
        (r"^embed_pos\.embedding_weight$", "embed_positions.weight"),
        (r"^puzzle_emb\.weights$", "puzzle_embedding.weight"),
        (r"^input_token_([HL])$", lambda m: f"{m[1].lower()}_token.weight"),
        (r"^g_input\.", "input_proj."),
        (r"^([HL])_init$", lambda m: f"z_{m[1].lower()}_init"),
        (r"^([HL])_level\.", lambda m: f"{m[1].lower()}_stack."),
    ]
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a public `step_N`, under the names of its inner module. Raises ValueError where it holds none."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, LookupError, struct.error) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"{checkpoint} cannot be read as a checkpoint of tensors (truncated?): {reason}") from None
    if isinstance(state, dict) and (container := next((key for key in CONTAINERS if key in state), None)):
        state = state[container]  # beside it lie an optimizer's state, a step number and the like
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"{checkpoint} is no dictionary of tensors, so no checkpoint of the public code; nor does it hold one as "
            f"{' or '.join(map(repr, CONTAINERS))}."
        )
    # `_orig_mod.` is torch.compile's, `module.` DistributedDataParallel's, `model.inner.` the public wrappers'.
    return {re.sub(r"^(module\.)?(model\.)?(inner\.)?", "", k.replace("_orig_mod.", "")): v for k, v in state.items()}


def convert(checkpoint: Path, seq_len: int, task: str | None = None) -> AirModel:
    """Read a public checkpoint into an AirModel, in float32 or the checkpoint's own precision.

    Raises:
        ValueError, FileNotFoundError: anything that does not fit, in one sentence.
    """
    settings_file = checkpoint.parent / "all_config.yaml"
    for path in (checkpoint, settings_file):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist: --checkpoint must be a `step_N` beside its all_config.yaml."
            )
    if seq_len < 1:
        raise ValueError(f"--seq-len must be 1 or more, got {seq_len}.")
    try:
        settings = yaml.safe_load(settings_file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{settings_file} is no readable YAML: {' '.join(str(error).split())}") from None
    state = read_state(checkpoint)
    config = config_of(settings, state, seq_len, task)
    ours = {our_name(key): value for key, value in state.items()}
    if config.shared_block:  # TRM calls its only stack L_level
        ours = {re.sub(r"^l_stack\.", "stack.", key): value for key, value in ours.items()}
    model = AirModel(config).to(need_tensor(ours, "lm_head.weight").dtype)
    tokens = [name for name in model.state_dict() if name.endswith("_token.weight") and name in ours]
    try:
        ours |= {name: ours[name].reshape(model.get_parameter(name).shape) for name in tokens}
        model.load_state_dict(ours, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint} does not fit its all_config.yaml and --seq-len {seq_len}: {reason}") from None
    if not all(value.isfinite().all() for value in ours.values()):
        raise ValueError(f"{checkpoint} holds NaN or infinite weights.")
    model.config.dtype = model.dtype
    return model.eval()
