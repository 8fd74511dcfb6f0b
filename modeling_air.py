"""AIR: one shared Transformer block, two states, and the puzzle injected into one of their updates (arXiv:2605.17811).

    z_l <- f(z_l + z_h + n_l * x)        scratchpad, "L-update"
    z_h <- f(z_h + z_l + n_h * x)        proposal,   "H-update"

One ACT step runs the config's schedule ("llhllh"), then reads an answer and a wish to halt off z_h. `AirModel.forward`
is one ACT step; `solve` (solving_air.py) is the loop. Everything that watches or changes the states (roll-outs,
freezing, noise) is a hook on `recur`, the only recurrence.

Shapes: B puzzles, S cells, P prefix positions, T = P + S positions of a state, D hidden size, V tokens, H heads,
U updates of an ACT step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .blocks_air import (
    AirAttention,
    AirBlock,
    AirHeadNorm,
    AirLevelToken,
    AirLinear,
    AirPuzzleEmbedding,
    AirQHead,
    AirRelations,
    AirRotaryEmbedding,
    AirStack,
    AirTables,
    places_of_cells,
)
from .configuration_air import AirConfig
from .solving_air import AirCarry, AirUpdate, Hook, SolvingMixin


@dataclass
class AirOutput(ModelOutput):
    """One ACT step. Losses are scalars, means over the batch; loss = lm_loss + 0.5 * (q_halt_loss + q_continue_loss).

    logits (B, S, V); q_halt_logits, q_continue_logits and target_q_continue (B,), float32. On request (with
    `output_hidden_states`, `output_attentions`): what every block, and with eager attention every map, gave in order.
    """

    loss: torch.FloatTensor | None = None
    lm_loss: torch.FloatTensor | None = None
    q_halt_loss: torch.FloatTensor | None = None
    q_continue_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    q_halt_logits: torch.FloatTensor | None = None
    q_continue_logits: torch.FloatTensor | None = None
    target_q_continue: torch.FloatTensor | None = None
    carry: AirCarry | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


# Standard deviation of a unit normal cut at +-2: what `trunc_normal_` returns must be divided by it.
_TRUNCATED_STD = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill with a normal cut at two sigma whose result has the given standard deviation."""
    sigma = std / _TRUNCATED_STD
    return init.trunc_normal_(tensor, mean=0.0, std=sigma, a=-2 * sigma, b=2 * sigma, generator=generator)


def widest(tensor: Tensor) -> Tensor:
    """In float64; in float32 on Apple's GPUs, which have no float64."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def stablemax_log_probs(logits: Tensor) -> Tensor:
    """log(s / sum s) with s(v) = v + 1 for v >= 0 and 1 / (1 - v) below, in float64 (source: HRM; see `widest`)."""
    v = widest(logits)
    s = torch.where(v < 0, 1 / (1 - v.clamp(max=0)), v + 1)
    return torch.log(s / s.sum(-1, keepdim=True))


def inject(z_h: Tensor, z_l: Tensor, x: Tensor, n: float) -> tuple[Tensor, Tensor]:
    """Place n copies of the encoded puzzle on the states; all (B, T, D)."""
    # The first copy rides on z_h, the rest on z_l: bfloat16 sums depend on the order, and this is the reference's.
    if n > 1:
        z_l = z_l + (x if n == 2 else (n - 1) * x)
    if n:
        z_h = z_h + (x if n >= 1 else n * x)
    return z_h, z_l


class AirPreTrainedModel(PreTrainedModel):
    config_class = AirConfig
    config: AirConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AirBlock"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": AirBlock, "attentions": AirAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, AirQHead):
            init.zeros_(module.weight)
            init.constant_(module.bias, -5.0)
        elif isinstance(module, (AirPuzzleEmbedding, AirLevelToken)):
            init.zeros_(module.weight)
        elif isinstance(module, AirHeadNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Linear):
            truncated_normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            truncated_normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, AirTables):
            for name, table in module.tables(module.config).items():
                init.copy_(getattr(module, name), table)
        elif isinstance(module, AirModel):
            for name, state in module.initial_states(module.config).items():
                init.copy_(getattr(module, name), state)


class AirModel(SolvingMixin, AirPreTrainedModel):
    """A two-state recursive reasoner over a grid of tokens; builds on any device, variants differ by config alone."""

    _auto_class = "AutoModel"  # save_pretrained then copies this file and those it imports from, and writes auto_map

    def __init__(self, config: AirConfig) -> None:
        # Here, for that file needs this one. transformers finds the line, and brings and saves that file along.
        from .pipeline_air import register_pipeline

        register_pipeline()
        super().__init__(config)
        d = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, d)
        if config.puzzle_embedding_size:
            self.puzzle_embedding = AirPuzzleEmbedding(config.num_puzzle_identifiers, config.puzzle_embedding_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.prefix_length + config.seq_len, d)
        self.rotary = AirRotaryEmbedding(config) if config.position_embedding in ("rope", "rope2d") else None
        self.relations = AirRelations(config) if config.head_relations else None
        if config.cell_embedding:
            self.embed_rows = nn.Embedding(config.grid_height, d)
            self.embed_columns = nn.Embedding(config.grid_width, d)
            if config.task == "sudoku":
                self.embed_boxes = nn.Embedding(config.grid_height, d)
        if config.input_operator in ("linear", "tanh_linear"):
            self.input_proj = AirLinear(d, d)
        if config.level_token != "none":
            self.h_token, self.l_token = AirLevelToken(d), AirLevelToken(d)
        if config.shared_block:
            self.stack = AirStack(config, config.num_hidden_layers)
        else:
            self.l_stack = AirStack(config, config.l_layers or config.num_hidden_layers)
            self.h_stack = AirStack(config, config.h_layers or config.num_hidden_layers)
        self.lm_head = AirLinear(d, config.vocab_size)
        self.q_head = AirQHead(d, 2)
        for name, state in self.initial_states(config).items():
            self.register_buffer(name, state, persistent=True)
        self.post_init()

    @staticmethod
    def initial_states(config: AirConfig) -> dict[str, Tensor]:
        """The fixed random vectors (D,) of std 1 that every puzzle starts from; the same in every model of a width."""
        generator = torch.Generator("cpu").manual_seed(0)
        return {
            name: truncated_normal_(torch.empty(config.hidden_size, device="cpu"), 1.0, generator)
            for name in ("z_h_init", "z_l_init")
        }

    @property
    def seen_by_heads(self) -> Tensor | None:
        """What each head may look at, bool (1, H, positions, positions), or None where every head sees everything."""
        return None if self.relations is None else self.relations.pairs() == 0

    def seen_from(self, cells: Tensor) -> Tensor | None:
        """The rows of `seen_by_heads` for cells (Q,): bool (1, H, Q, positions). No table of all pairs is made."""
        return None if self.relations is None else self.relations.seen_from(self.config, cells)[None]

    @property
    def stacks(self) -> list[AirStack]:
        """What is worth compiling: the blocks that both updates share, or L's and H's own."""
        return [self.stack] if self.config.shared_block else [self.l_stack, self.h_stack]

    # ---- one ACT step ----------------------------------------------------------------------------------------------

    def encode(self, input_ids: Tensor, puzzle_ids: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The encoded puzzle x (B, T, D) that the updates inject; zero at a kept level token."""
        # Gathered in the weights' precision: thousands of blank cells share a row, and its gradient must not be a sum
        # in bfloat16 (on CUDA the gradient of an index would also add up one cell after another).
        return self.encode_cells(self.embed_tokens(input_ids.long()), puzzle_ids, dtype)

    def encode_cells(self, cells: Tensor, puzzle_ids: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`encode` of cells (B, S, D) that are embedded already."""
        config, cells = self.config, cells.to(dtype)
        if config.cell_embedding:
            tables = (self.embed_rows, self.embed_columns, *([self.embed_boxes] if config.task == "sudoku" else []))
            parts = [table(at) for table, at in zip(tables, places_of_cells(config, cells.device).values())]
            # Dividing by the root of the number of summands keeps the variance.
            cells = (cells + sum(parts).to(dtype)) * (len(parts) + 1) ** -0.5
        if config.prefix_length:
            prefix = cells.new_zeros(cells.shape[0], config.prefix_length * config.hidden_size)
            if config.puzzle_embedding_size:
                if puzzle_ids is None:
                    puzzle_ids = cells.new_zeros(cells.shape[0], dtype=torch.long)
                row = self.puzzle_embedding(puzzle_ids.long()).to(dtype)
                prefix = F.pad(row, (0, prefix.shape[1] - row.shape[1]))
            cells = torch.cat([prefix.view(cells.shape[0], config.prefix_length, -1), cells], dim=1)
        if config.position_embedding == "learned":
            cells = 0.707106781 * (cells + self.embed_positions.weight.to(dtype))
        x = math.sqrt(config.hidden_size) * cells
        if config.input_operator == "negate":
            x = -x
        elif config.input_operator in ("linear", "tanh_linear"):
            x = self.input_proj(x)
            x = torch.tanh(x) if config.input_operator == "tanh_linear" else x
        return F.pad(x, (0, 0, 1, 0)) if config.level_token == "prepend_keep" else x

    def update(self, level: str, z_h: Tensor, z_l: Tensor, x: Tensor) -> Tensor:
        """One L- or H-update: the new state of that level, (B, T, D)."""
        config, is_l = self.config, level == "l"
        n = config.l_injection if is_l else config.h_injection
        if n and config.input_operator == "hadamard":
            a, b = (z_h + z_l) * x, z_l  # x gates the states instead of shifting them
        else:
            a, b = inject(z_h, z_l, x, n)
        if config.level_token in ("add", "prepend_strip"):
            token = (self.l_token if is_l else self.h_token).weight.to(z_h.dtype)
        if config.level_token == "add":
            a, b = (a, b + token) if is_l else (a + token, b)
        h = a + b
        if config.level_token == "prepend_strip":
            h = torch.cat([token.expand(h.shape[0], 1, -1), h], dim=1)  # (B, 1 + T, D)
        stack = self.stack if config.shared_block else self.l_stack if is_l else self.h_stack
        cos, sin = (None, None) if self.rotary is None else (self.rotary.cos, self.rotary.sin)
        h = stack(h, cos, sin, None if self.relations is None else self.relations.for_states(h.dtype))
        return h[:, 1:] if config.level_token == "prepend_strip" else h

    def recur(
        self,
        z_h: Tensor,
        z_l: Tensor,
        x: Tensor,
        steps: Tensor | None = None,
        hook: Hook | None = None,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All updates of one ACT step, in the schedule's order; returns (z_h, z_l)."""
        for index, level in enumerate(self.config.schedule):
            # Only the last updates carry gradient (HRM's one-step approximation), so memory does not grow with cycles.
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.config.first_gradient_update):
                z = self.update(level, z_h, z_l, x)
            z_h, z_l = (z_h, z) if level == "l" else (z, z_l)
            if hook is not None and (states := hook(AirUpdate(index, level, steps, rows), z_h, z_l)) is not None:
                z_h, z_l = states
        return z_h, z_l

    def initial_carry(
        self, batch_size: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AirCarry:
        """The carry of `batch_size` fresh puzzles."""
        shape = (batch_size, self.config.num_state_positions, self.config.hidden_size)
        states = []
        for name in ("h", "l"):
            z = getattr(self, f"z_{name}_init").detach().to(device=device, dtype=dtype).expand(shape).clone()
            if self.config.level_token == "prepend_keep":
                z[:, 0] = getattr(self, f"{name}_token").weight.detach().to(z)
            states.append(z)
        steps = torch.zeros(batch_size, dtype=torch.int32, device=states[0].device)
        return AirCarry(z_h=states[0], z_l=states[1], steps=steps)

    def decode_state(self, z: Tensor) -> Tensor:
        """Logits (B, S, V) that the language head reads off any state (B, T, D)."""
        return self.lm_head(z[:, self.config.num_prefix_positions :])

    def halts(self, q_halt_logits: Tensor, q_continue_logits: Tensor) -> Tensor:
        """(B,) bool: where adaptive halting stops."""
        return q_halt_logits > (q_continue_logits if self.config.q_continue else 0)

    def activation_dtype(self, device_type: str) -> torch.dtype:
        """Precision of states: autocast's if it is on, else the config's, else the weights'."""
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        name = self.config.activation_dtype
        return self.lm_head.weight.dtype if name is None else getattr(torch, name)

    @capture_outputs  # does what the last three arguments say
    def forward(
        self,
        input_ids: Tensor,
        puzzle_ids: Tensor | None = None,
        labels: Tensor | None = None,
        carry: AirCarry | None = None,
        hook: Hook | None = None,
        dtype: torch.dtype | None = None,
        rows: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> AirOutput:
        """One ACT step.

        Args:
            input_ids: (B, S) tokens. puzzle_ids: (B,) rows of the puzzle embedding, default 0.
            labels: (B, S) tokens, or `ignore_index` or PAD where a cell does not count.
            carry: of the previous step; None starts fresh.
            hook: called after every update (see `Hook`). rows: passed on to it.
            dtype: of the states; default `activation_dtype`.

        Returns:
            AirOutput; in train() with q_continue also `target_q_continue`, from a second forward without gradient.

        Raises:
            ValueError: shapes, tokens or a carry that do not fit the config.
        """
        self.check_shapes(input_ids, puzzle_ids, labels, carry)
        device = input_ids.device
        dtype = dtype or self.activation_dtype(device.type)
        # Precision is explicit from here on: autocast would round the q head, and would lose the gradient of a weight
        # that it first cast, and cached, in an update without gradient.
        with torch.autocast(device.type, enabled=False):
            if carry is None:
                carry = self.initial_carry(len(input_ids), dtype=dtype)
            z_h, z_l = carry.z_h.to(dtype), carry.z_l.to(dtype)
            x = self.encode(input_ids, puzzle_ids, dtype)
            z_h, z_l = self.recur(z_h, z_l, x, carry.steps, hook, rows)
            logits, q = self.decode_state(z_h), self.q_head(z_h[:, 0])
            carry = AirCarry(z_h=z_h.detach(), z_l=z_l.detach(), steps=carry.steps + 1)
            output = AirOutput(logits=logits, q_halt_logits=q[:, 0], q_continue_logits=q[:, 1], carry=carry)
            if self.training and self.config.q_continue and self.config.halt_max_steps > 1:
                with torch.no_grad():
                    next_h, _ = self.recur(carry.z_h, carry.z_l, x.detach())
                    next_halt, next_continue = self.q_head(next_h[:, 0]).unbind(-1)
                    is_last = carry.steps >= self.config.halt_max_steps
                    best = torch.where(is_last, next_halt, torch.maximum(next_halt, next_continue))
                    output.target_q_continue = best.sigmoid()
            if labels is not None:
                self._add_losses(output, labels)
        return output

    def _add_losses(self, output: AirOutput, labels: Tensor) -> None:
        labels = labels.long()
        counted = (labels != self.config.ignore_index) & (labels != self.config.pad_token_id)
        target = torch.where(counted, labels, 0)
        if self.config.loss_type == "stablemax_cross_entropy":
            log_probs = stablemax_log_probs(output.logits)
        else:
            log_probs = F.log_softmax(output.logits.float(), dim=-1)
        cell_loss = torch.where(counted, -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1), 0)
        per_puzzle = (cell_loss / counted.sum(-1, keepdim=True).clamp_min(1)).sum(-1)
        solved = ((output.logits.argmax(-1) == labels) | ~counted).all(-1)
        output.lm_loss = per_puzzle.mean()
        wish_loss = F.binary_cross_entropy_with_logits
        output.q_halt_loss = wish_loss(output.q_halt_logits, solved.to(output.q_halt_logits))
        output.loss = output.lm_loss + 0.5 * output.q_halt_loss
        if output.target_q_continue is not None:
            output.q_continue_loss = wish_loss(output.q_continue_logits, output.target_q_continue)
            output.loss = output.loss + 0.5 * output.q_continue_loss

    def check_shapes(
        self, input_ids: Tensor, puzzle_ids: Tensor | None, labels: Tensor | None, carry: AirCarry | None
    ) -> None:
        """One sentence for everything that would otherwise end in a shape error far from its cause."""
        config = self.config
        if input_ids.dim() != 2 or input_ids.shape[1] != config.seq_len:
            raise ValueError(
                f"input_ids must be (batch, {config.seq_len}) for a {config.grid_height} x {config.grid_width} "
                f"{config.task}, got {tuple(input_ids.shape)}. Encode puzzles with the model's AirProcessor."
            )
        if input_ids.is_floating_point() or input_ids.is_complex():
            raise ValueError(f"input_ids must hold integer tokens, got {input_ids.dtype}.")
        shape, z_h, z_l = tuple(input_ids.shape), *((None, None) if carry is None else (carry.z_h, carry.z_l))
        states = (shape[0], config.num_state_positions, config.hidden_size)
        start = f" Start with carry=None, or model.initial_carry({shape[0]})."
        for what, found, expected, advice in (
            ("labels must have the shape", labels, shape, ""),
            ("puzzle_ids must be", puzzle_ids, shape[:1], ""),
            ("The carry's states must be", z_h, states, start),
            ("The carry's states must be", z_l, states, start),
        ):
            if found is not None and tuple(found.shape) != expected:
                raise ValueError(f"{what} {expected}, got {tuple(found.shape)}.{advice}")
        # Reading values would stall a GPU at every step; there, `solve` checks once.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            self.check_values(input_ids, puzzle_ids, labels)

    def check_values(self, input_ids: Tensor, puzzle_ids: Tensor | None, labels: Tensor | None = None) -> None:
        config = self.config
        if labels is not None:
            labels = labels[labels != config.ignore_index]
        if not config.puzzle_embedding_size:
            puzzle_ids = None
        for name, values, size, other in (
            ("input_ids", input_ids, config.vocab_size, ""),
            ("labels", labels, config.vocab_size, f" or be {config.ignore_index}"),
            ("puzzle_ids", puzzle_ids, config.num_puzzle_identifiers, ""),
        ):
            if values is not None and values.numel() and (values.min() < 0 or values.max() >= size):
                found = f"{int(values.min())}..{int(values.max())}"
                raise ValueError(f"{name} must lie in 0..{size - 1}{other}, got {found}.")

    @contextlib.contextmanager
    def observe_attention(self, observer: Callable[[int, Tensor, Tensor, float], None]) -> Iterator[None]:
        """Inside: observer(layer, q, k, scaling) at every attention, q and k (B, H, T, D / H) after norm and rotation.

        The maps are softmax(q @ k.mT * scaling). An update's attention comes before its hook.
        """
        modules = [module for module in self.modules() if isinstance(module, AirAttention)]
        for module in modules:
            module.observer = observer
        try:
            yield
        finally:
            for module in modules:
                module.observer = None
