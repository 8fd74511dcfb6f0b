"""AirConfig: everything that decides which function an AIR model computes, and the table of published variants.

A variant is a row of `VARIANTS`: what differs from the default, `Lx_H`. Training values live in the recipes.

    >>> AirConfig.from_variant("L2x_H2x_prepend", task="maze").schedule
    'llhllh'

Source of the rules: AIR (arXiv:2605.17811); HRM (arXiv:2506.21734) and TRM (arXiv:2510.04871) are rows of the same
family.
"""

import copy
import dataclasses
import difflib
import functools
import math
import os
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import PreTrainedConfig
from transformers.utils import logging

from .processing_air import SIZES, AirProcessor, make_task

__version__ = "0.1.0"

logger = logging.get_logger(__name__)

# What differs from the default configuration, one row per variant of the papers.
VARIANTS: dict[str, dict[str, Any]] = {
    # Injection asymmetry: copies of the encoded puzzle in the L-update and in the H-update.
    "Lx_H": {},
    "L_Hx": {"l_injection": 0, "h_injection": 1},
    "L_H2x": {"l_injection": 0, "h_injection": 2},
    "L2x_H": {"l_injection": 2, "h_injection": 0},
    "Lx_H2x": {"l_injection": 1, "h_injection": 2},
    "L2x_Hx": {"l_injection": 2, "h_injection": 1},
    "Lx_Hx": {"l_injection": 1, "h_injection": 1},
    "L2x_H2x": {"l_injection": 2, "h_injection": 2},
    # Level tokens on the symmetric base.
    "L2x_H2x_add": {"l_injection": 2, "h_injection": 2, "level_token": "add"},
    "L2x_H2x_prepend": {"l_injection": 2, "h_injection": 2, "level_token": "prepend_strip"},
    "L2x_H2x_prepend_no_strip": {"l_injection": 2, "h_injection": 2, "level_token": "prepend_keep"},
    # Other operators on the injected puzzle.
    "minus_x": {"input_operator": "negate"},
    "gx_linear": {"input_operator": "linear"},
    "gx_nonlinear": {"input_operator": "tanh_linear"},
    "had_prod": {"input_operator": "hadamard"},
    # Relatives: two stacks (HRM), and one tiny stack with more cycles and deeper gradients (TRM).
    "HRM": {"shared_block": False},
    "TRM": {
        "num_hidden_layers": 2,
        "l_cycles": 6,
        "h_cycles": 3,
        "gradient_scope": "last_cycle",
        "q_continue": False,
        "prefix_length": 16,
    },
}
VARIANTS["TRM_mlp"] = {**VARIANTS["TRM"], "token_mixer": "mlp", "position_embedding": "none"}

# How the puzzle comes in and who is told which update it is; and all that makes two configs the same variant.
INJECTION_FIELDS = ("l_injection", "h_injection", "input_operator", "level_token", "shared_block", "token_mixer")
RULE_FIELDS = (*INJECTION_FIELDS, "gradient_scope", "q_continue")
# Fields that must be 1 or more.
COUNTS = (
    *("hidden_size", "num_hidden_layers", "l_layers", "h_layers", "num_attention_heads", "intermediate_size"),
    *("l_cycles", "h_cycles", "num_puzzle_identifiers", "halt_max_steps"),
)

# The source files that go to the Hub with a model, beside its weights: it loads there without this package.
TRAVELLING_FILES = (
    "configuration_air.py",
    "blocks_air.py",
    "modeling_air.py",
    "solving_air.py",
    "processing_air.py",
    "reading_air.py",
    "search_air.py",
    "answers_air.py",
    "attempts_air.py",
    "pipeline_air.py",
)

CUSTOM_PIPELINES = {
    "puzzle-solving": {
        "impl": "pipeline_air.PuzzleSolvingPipeline",
        "pt": ["AutoModel"],
        "default": {},
        "type": "text",
    }
}


def nearest(name: str, known: list[str]) -> str:
    """A half-sentence for error messages: the closest known name, or nothing."""
    match = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


@strict
class AirConfig(PreTrainedConfig):
    r"""Configuration of an [`AirModel`].

    Args:
        task: "sudoku", "maze", or "grid" (any other token grid; `vocab_size` is then required).
        grid_height, grid_width: cells; default 9 x 9 (sudoku) or 30 x 30 (maze).
        box_height, box_width: Sudoku box; default the most square one (9 -> 3 x 3, 6 -> 2 x 3).
        vocab_size: default side + 2 (sudoku: PAD, blank, digits) or 6 (maze: PAD, wall, space, S, G, path).
        hidden_size, num_attention_heads, expansion, intermediate_size: width d, heads, and the SwiGLU's inner width;
            that defaults to expansion * d * 2/3, rounded up to a multiple of 256.
        num_hidden_layers: layers of the shared stack; of both stacks unless l_layers, h_layers say otherwise.
        l_layers, h_layers: with `shared_block=False` only (HRM).
        l_cycles, h_cycles: one ACT step is h_cycles times (l_cycles L-updates, then one H-update).
        l_injection, h_injection: copies n of the encoded puzzle x in that update; any real number, 0-2 published.
        input_operator: what x becomes before injection: "identity", "negate", "linear" (W x), "tanh_linear"
            (tanh(W x)), or "hadamard" (the L-update is z_l + (z_h + z_l) * x; published at (1, 0) only).
        level_token: a learned token that tells the L-update from the H-update: "none", "add" (to each position),
            "prepend_strip" (its own position in the stack), "prepend_keep" (its own position in the state).
        shared_block: one stack for both updates (AIR), or one each (HRM).
        gradient_scope: "last_updates" (the last L- and H-update), "last_cycle" (the last H-cycle, TRM), "all".
        q_continue: train q_continue with a second forward; without it a puzzle halts on q_halt > 0.
        q_lost: the q head's second number says instead that the cells filled in have lost the solution, as training on
            candidate lattices teaches it; a search then follows such guesses last (extension).
        token_mixer: "attention", or "mlp" (a SwiGLU across positions, TRM_mlp).
        position_embedding: "rope", "learned", "none", or "rope2d" (half of each head rotates with the row, half with
            the column; an extension that no publication used).
        cell_embedding: add learned row, column (and Sudoku box) embeddings to the input (extension).
        head_relations: which cells each attention head sees, in turn over the heads: "row", "column", "box" (Sudoku),
            "adjacent" (the four neighbours), each with the cell itself, or "all". Default: every head sees all cells
            (extension). Positions that are no cells see and are seen by every head.
        qk_norm: RMSNorm of each head's queries and keys before rotation, with learned gains (extension; Qwen3's form).
        log_scale_positions: heads that see all cells multiply their scores by log(positions) / log(this number), so
            that they look as sharply on a larger grid as on one of so many positions (extension; log-length scaling,
            arXiv:2202.12172). Default: never.
        puzzle_embedding_size: e; default hidden_size; 0 for none. num_puzzle_identifiers: rows of that table.
        prefix_length: positions P that hold the puzzle embedding; default ceil(e / d).
        halt_max_steps: ACT steps of the published protocol.
        loss_type: "stablemax_cross_entropy" (float64) or "softmax_cross_entropy".
        activation_dtype: of states and activations where no autocast is on; None: as the weights.

    Raises:
        ValueError: unknown fields, or a combination that cannot work; the message says what to change.
    """

    model_type = "air"
    _auto_class = "AutoConfig"  # save_pretrained then copies this file and writes auto_map
    keys_to_ignore_at_inference = ["carry", "lm_loss", "q_halt_loss", "q_continue_loss", "target_q_continue"]
    attribute_map = {"d_model": "hidden_size"}

    task: Literal["sudoku", "maze", "grid"] = "sudoku"
    grid_height: int | None = None
    grid_width: int | None = None
    box_height: int | None = None
    box_width: int | None = None
    vocab_size: int | None = None
    hidden_size: int = 512
    num_hidden_layers: int = 4
    l_layers: int | None = None
    h_layers: int | None = None
    num_attention_heads: int = 8
    expansion: int | float = 4
    intermediate_size: int | None = None
    l_cycles: int = 2
    h_cycles: int = 2
    l_injection: int | float = 1
    h_injection: int | float = 0
    input_operator: Literal["identity", "negate", "linear", "tanh_linear", "hadamard"] = "identity"
    level_token: Literal["none", "add", "prepend_strip", "prepend_keep"] = "none"
    shared_block: bool = True
    gradient_scope: Literal["last_updates", "last_cycle", "all"] = "last_updates"
    q_continue: bool = True
    q_lost: bool = False
    token_mixer: Literal["attention", "mlp"] = "attention"
    position_embedding: Literal["rope", "rope2d", "learned", "none"] = "rope"
    cell_embedding: bool = False
    head_relations: list[str] | None = None
    qk_norm: bool = False
    log_scale_positions: int | None = None
    rope_theta: int | float = 10000.0
    puzzle_embedding_size: int | None = None
    num_puzzle_identifiers: int = 1
    prefix_length: int | None = None
    halt_max_steps: int = 16
    loss_type: Literal["stablemax_cross_entropy", "softmax_cross_entropy"] = "stablemax_cross_entropy"
    rms_norm_eps: float = 1e-5
    activation_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    pad_token_id: int | None = 0
    ignore_index: int = -100
    code_version: str = __version__
    custom_pipelines: dict | None = None
    # Set by the installed package: transformers asks for trust_remote_code wherever `custom_pipelines` is not empty.
    pipeline_is_registered: ClassVar[bool] = False

    def __post_init__(self, **kwargs: Any) -> None:
        # PreTrainedConfig stores any keyword it is given, so a typo would silently train the default model.
        if unknown := self._foreign(kwargs):
            fields = [field.name for field in dataclasses.fields(self)]
            hints = "".join(nearest(name, fields) for name in unknown)
            raise ValueError(f"Unknown AirConfig fields {unknown}.{hints} See AirConfig for the list.")
        self.grid_height = self.grid_width if self.grid_height is None else self.grid_height
        task = make_task(self.task, *(getattr(self, name) for name in SIZES))
        for name, size in zip(SIZES, task.sizes):
            setattr(self, name, size)
        if self.intermediate_size is None:
            self.intermediate_size = self.swiglu_width(self.hidden_size)
        if self.puzzle_embedding_size is None:
            self.puzzle_embedding_size = self.hidden_size
        if self.prefix_length is None:
            self.prefix_length = math.ceil(self.puzzle_embedding_size / max(self.hidden_size, 1))
        if self.pipeline_is_registered:
            self.custom_pipelines = {}
        elif not self.custom_pipelines:  # what a folder says may name another repository, or a checkout
            self.custom_pipelines = copy.deepcopy(CUSTOM_PIPELINES)
        super().__post_init__(**kwargs)

    @classmethod
    def _foreign(cls, names: Iterable[str]) -> list[str]:
        known = {field.name for field in dataclasses.fields(cls)} | _INHERITED_KEYS
        return sorted(name for name in names if name not in known and not name.startswith("_"))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """As PreTrainedConfig.save_pretrained, and processor_config.json: it follows from the config.

        A model's save_pretrained comes by here too, between its list of the files that were there before and its
        upload of what is new: so the processor goes along to a folder and to the Hub.
        """
        super().save_pretrained(save_directory, **kwargs)
        AirProcessor.from_config(self).save_pretrained(save_directory)

    def to_dict(self) -> dict[str, Any]:
        # Always saved, or a later plain `push_to_hub` of the model would drop the pipeline.
        return super().to_dict() | {"custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES)}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any):
        """As PreTrainedConfig.from_dict; fields that a newer transformers or AIR may have written are left out."""
        if foreign := cls._foreign(config_dict):
            logger.warning(
                f"config.json (AIR {config_dict.get('code_version', 'of unknown version')}) has fields that AIR "
                f"{__version__} does not know: {foreign}. They are ignored; upgrade air-model to use them."
            )
            config_dict = {k: v for k, v in config_dict.items() if k not in foreign}
        # To from_pretrained `variant` names weights (model.fp16.safetensors), here a property.
        files = {"variant": kwargs.pop("variant")} if "variant" in kwargs else {}
        found = super().from_dict(config_dict, **kwargs)
        return (found[0], found[1] | files) if kwargs.get("return_unused_kwargs") else found

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "AirConfig":
        """The configuration of a published variant; any field may be overridden.

        Raises:
            ValueError: an unknown variant or field name, or a combination that cannot work.
        """
        if name not in VARIANTS:
            raise ValueError(
                f"Unknown variant {name!r}.{nearest(name, list(VARIANTS))} Known variants: {', '.join(VARIANTS)}."
            )
        return cls(**{**VARIANTS[name], **overrides})

    @property
    def variant(self) -> str | None:
        """Name of the row of VARIANTS that this rule equals (sizes and positions aside), or None."""
        return self._row(RULE_FIELDS)

    @property
    def injection(self) -> str | None:
        """Name of the first row of VARIANTS that injects the puzzle so, whatever the gradients, or None."""
        return self._row(INJECTION_FIELDS)

    @property
    def rule_name(self) -> str:
        """What a reader is told: the variant, else how the puzzle is injected (gradients aside), else "own rule"."""
        return self.variant or self.injection or "own rule"

    def _row(self, fields: Iterable[str]) -> str | None:
        mine, default = ([getattr(of, field) for field in fields] for of in (self, type(self)))
        same = (name for name, row in VARIANTS.items() if mine == list(map(row.get, fields, default)))
        return next(same, None)

    def swiglu_width(self, width: int) -> int:
        """Inner width of a SwiGLU over `width` features: expansion * width * 2/3, up to a multiple of 256."""
        return -(-round(self.expansion * width * 2 / 3) // 256) * 256

    @property
    def seq_len(self) -> int:
        """S: cells of the grid, row-major."""
        return self.grid_height * self.grid_width

    @property
    def num_prefix_positions(self) -> int:
        """Positions of a state that are no cells: a kept level token and the puzzle embedding's P."""
        return self.prefix_length + (self.level_token == "prepend_keep")

    @property
    def num_state_positions(self) -> int:
        """T: positions of z_h and z_l."""
        return self.num_prefix_positions + self.seq_len

    @property
    def num_stack_positions(self) -> int:
        """Positions that the blocks see: T, and one more for a level token that is stripped afterwards."""
        return self.num_state_positions + (self.level_token == "prepend_strip")

    @property
    def head_dim(self) -> int:
        # transformers reads this before the sizes are checked: no heads are a fault to name, not one of arithmetic.
        return self.hidden_size // max(self.num_attention_heads, 1)

    @property
    def schedule(self) -> str:
        """Updates of one ACT step, in order: "llhllh" for 2 and 2 cycles."""
        return ("l" * self.l_cycles + "h") * self.h_cycles

    @property
    def first_gradient_update(self) -> int:
        """Index in `schedule` of the first update that carries gradient."""
        if self.gradient_scope == "all":
            return 0
        return len(self.schedule) - (self.l_cycles + 1 if self.gradient_scope == "last_cycle" else 2)

    def validate_sizes(self) -> None:
        for name in COUNTS:
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name}={count} must be 1 or more.")
        for name in ("rope_theta", "rms_norm_eps", "expansion"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0, and finite.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                f"{self.num_attention_heads}. Change one of them."
            )
        unit = {"rope": 2, "rope2d": 4}.get(self.position_embedding, 1)
        if self.token_mixer == "attention" and self.head_dim % unit:
            raise ValueError(
                f"position_embedding={self.position_embedding!r} needs a head size that is a multiple of {unit}, got "
                f"{self.hidden_size}/{self.num_attention_heads} = {self.head_dim}. Change hidden_size or the heads."
            )
        if self.puzzle_embedding_size < 0 or self.prefix_length < 0:
            raise ValueError("puzzle_embedding_size and prefix_length must be 0 or more.")
        if self.puzzle_embedding_size > self.prefix_length * self.hidden_size:
            raise ValueError(
                f"A puzzle embedding of {self.puzzle_embedding_size} numbers does not fit into prefix_length="
                f"{self.prefix_length} positions of {self.hidden_size}. Raise prefix_length or leave it out."
            )

    def validate_rule(self) -> None:
        if self.q_continue and self.q_lost:
            raise ValueError(
                "q_continue and q_lost (which lattices=true sets) are both the q head's second number: set "
                "q_continue=False."
            )
        if self.l_injection == self.h_injection == 0:
            raise ValueError(
                "l_injection=0 and h_injection=0: the puzzle never reaches the model. Set one of them to 1 or 2."
            )
        if not (math.isfinite(self.l_injection) and math.isfinite(self.h_injection)):
            raise ValueError("l_injection and h_injection must be finite numbers.")
        if self.input_operator == "hadamard" and (self.l_injection, self.h_injection) != (1, 0):
            raise ValueError(
                "input_operator='hadamard' is defined for l_injection=1, h_injection=0 only, got "
                f"{self.l_injection} and {self.h_injection}."
            )
        if self.shared_block and (self.l_layers is not None or self.h_layers is not None):
            raise ValueError(
                "l_layers and h_layers belong to separate stacks: set shared_block=False, or use num_hidden_layers."
            )
        if self.token_mixer == "mlp" and self.position_embedding in ("rope", "rope2d"):
            raise ValueError(
                f"token_mixer='mlp' has no attention to rotate: position_embedding={self.position_embedding!r} would "
                "do nothing. Use 'none' or 'learned'."
            )
        lacks = {"qk_norm": "queries and keys", "log_scale_positions": "scores to scale", "head_relations": "heads"}
        for name, what in lacks.items():
            if self.token_mixer == "mlp" and getattr(self, name):
                raise ValueError(f"token_mixer='mlp' has no {what}: leave {name} out.")
        if self.log_scale_positions is not None and self.log_scale_positions < 2:
            raise ValueError(f"log_scale_positions={self.log_scale_positions} must be 2 or more, or left out.")
        if self.head_relations is not None:
            known = ["all", "row", "column", "adjacent"] + ["box"] * (self.task == "sudoku")
            for name in self.head_relations:
                if name not in known:
                    raise ValueError(
                        f"head_relations={self.head_relations} names {name!r}.{nearest(str(name), known)} "
                        f"Known for task={self.task!r}: {', '.join(known)}."
                    )
            if not 1 <= len(self.head_relations) <= self.num_attention_heads:
                raise ValueError(
                    f"head_relations={self.head_relations} must name 1 to num_attention_heads="
                    f"{self.num_attention_heads} relations. Leave it out for heads that see everything."
                )


_INHERITED_KEYS = {
    *(field.name for field in dataclasses.fields(PreTrainedConfig)),
    "use_cache",  # transformers.Trainer writes it into the config of every model
    *("architectures", "attn_implementation", "auto_map", "d_model", "experts_implementation", "model_type"),
    *("name_or_path", "num_labels", "output_attentions", "return_dict", "torch_dtype", "transformers_version"),
}

_checked_init = AirConfig.__init__


@functools.wraps(_checked_init)
def _init(self: AirConfig, *args: Any, **kwargs: Any) -> None:
    """hub's strict dataclasses raise an error of their own, wrapped in two lines; users get a plain ValueError."""
    try:
        _checked_init(self, *args, **kwargs)
    except StrictDataclassClassValidationError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    except StrictDataclassFieldValidationError as error:
        raise ValueError(" ".join(str(error).split())) from error


AirConfig.__init__ = _init
