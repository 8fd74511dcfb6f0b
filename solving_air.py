"""The loop over ACT steps: `solve`, which `AirModel` inherits, and what goes around one step of it.

A carry goes from step to step, a hook sees (and may change) both states after every update, and the puzzles that stop
leave their slot of the batch to waiting ones.

Shapes: B puzzles, S cells, T positions of a state, D hidden size, V tokens, U updates of all ACT steps.
"""

import contextlib
import math
import numbers
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput, logging

from .blocks_air import AirLinear, HeldWeight

_HOLDING = threading.Lock()  # calls of `solve` in several threads share the held weights


class AirUpdate(NamedTuple):
    """Which update a hook sees. The states that come with it are those after the update."""

    index: int  # 0..U-1 within the ACT step
    level: str  # "l" or "h": the state that was updated
    steps: Tensor  # (B,) int32: ACT steps that each puzzle had completed before this one
    rows: Tensor | None = None  # (B,) int64: the puzzles' row numbers in the call of `solve`; None in a plain forward


# hook(update, z_h, z_l) -> None to leave the states (B, T, D) alone, or (z_h, z_l) to replace both
Hook = Callable[[AirUpdate, Tensor, Tensor], tuple[Tensor, Tensor] | None]


@dataclass
class AirCarry(ModelOutput):
    """What goes from one ACT step to the next: z_h and z_l (B, T, D), detached, and steps (B,) int32."""

    z_h: torch.FloatTensor | None = None
    z_l: torch.FloatTensor | None = None
    steps: torch.IntTensor | None = None


@dataclass
class AirRollout:
    """Both states decoded after every update: z_h and z_l (B, U, S) uint8 tokens; updates: their names, "l" or "h"."""

    z_h: Tensor
    z_l: Tensor
    updates: list[str]


@dataclass
class AirSolution:
    """Answers of `solve`, each as it was at the step at which its puzzle stopped.

    predictions (B, S) int64, logits (B, S, V) or None, q_halt_logits and q_continue_logits (B,), act_steps (B,) int32;
    stats: batch_size, passes (forward calls), slot_steps (ACT steps computed, over all slots), fill (mean share of
    the slots that held a puzzle).
    """

    predictions: Tensor
    logits: Tensor | None
    q_halt_logits: Tensor
    q_continue_logits: Tensor
    act_steps: Tensor
    rollout: AirRollout | None = None
    stats: dict[str, Any] = field(default_factory=dict)


def sum_of_stats(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The stats of several calls of `solve` as one."""
    stats = {name: sum(part[name] for part in parts) for name in ("slot_steps", "passes", "capacity")}
    stats["batch_size"] = max((part["batch_size"] for part in parts), default=0)
    return stats | {"fill": stats["slot_steps"] / stats["capacity"] if stats["capacity"] else 1.0}


class SolvingMixin:
    """`solve` for a model whose forward is one ACT step (see `AirModel`)."""

    @torch.no_grad()
    def solve(
        self,
        input_ids: Tensor,
        puzzle_ids: Tensor | None = None,
        max_act_steps: int | None = None,
        halt: str | Callable[[Tensor, Tensor, Tensor], Tensor] = "max",
        return_rollout: bool = False,
        freeze: str | None = None,
        *,
        batch_size: int | None = None,
        hook: Hook | None = None,
        carry: AirCarry | None = None,
        dtype: torch.dtype | str | None = None,
        return_logits: bool = True,
        progress: bool = False,
        on_finish: Callable[[Tensor, Tensor, tuple[Tensor, Tensor], Tensor, Tensor], Tensor | None] | None = None,
        queue: Tensor | None = None,
    ) -> AirSolution:
        """Solve puzzles by repeating ACT steps; puzzles that stop leave their slot to waiting ones.

        Args:
            input_ids: (B, S) tokens, any number of puzzles. puzzle_ids: (B,).
            max_act_steps: default `halt_max_steps`; more is allowed, memory stays the same.
            halt: "max" runs all steps (the published protocol); "q" stops a puzzle at the first step where training
                would halt it (q_halt > q_continue, or q_halt > 0 in a model without q_continue); a function of (rows,
                predictions, steps) says by itself which of them stop, (B,) bool; steps: ACT steps completed.
            return_rollout: decode both states after every update (see `AirRollout`).
            freeze: "z_h" or "z_l" holds that state at its start while the other keeps updating.
            batch_size: slots; default what suits the device. Out of memory halves it and goes on.
            hook: called after every update, after `freeze`. carry: start states, a row for each puzzle.
            dtype: of weights and states meanwhile; default see `solving_dtype`.
            return_logits: False saves B * S * V numbers. progress: show a bar.
            on_finish: called with (rows, predictions, (q_halt_logits, q_continue_logits), act_steps, logits) of what
                just stopped; may return further rows to solve, which go first. queue: the rows to begin with; default
                all.

        Returns:
            AirSolution, rows in the order of `input_ids`.
        """
        weight = self.lm_head.weight
        max_act_steps = self.config.halt_max_steps if max_act_steps is None else max_act_steps
        check_counts(max_act_steps=max_act_steps, batch_size=batch_size)
        if halt not in ("max", "q") and not callable(halt):
            raise ValueError(f"halt must be 'max', 'q' or a function ('rules' in solve_puzzles), got {halt!r}.")
        if freeze not in (None, "z_h", "z_l"):
            raise ValueError(f"freeze must be None, 'z_h' or 'z_l', got {freeze!r}.")
        dtype = solving_dtype(dtype, weight)
        input_ids = input_ids.to(weight.device)
        puzzle_ids = None if puzzle_ids is None else puzzle_ids.to(weight.device)
        self.check_shapes(input_ids, puzzle_ids, None, carry)
        self.check_values(input_ids, puzzle_ids)
        recorder = Recorder(self, len(input_ids), max_act_steps) if return_rollout else None
        hook = chain(freezer(self, freeze, carry), hook, recorder)
        loop = _Loop(self, input_ids, puzzle_ids, max_act_steps, halt, dtype, hook, carry, on_finish)
        loop.start(queue, batch_size, return_logits, progress)
        was_training = self.training
        self.eval()
        try:
            with self._weights_in(dtype), _attention_without_plans():
                loop.run()
        finally:
            loop.bar.close()
            self.train(was_training)
        if recorder is not None:
            loop.solution.rollout = recorder.rollout(loop.solution.act_steps * len(self.config.schedule))
        return loop.solution

    def default_batch_size(self, puzzles: int | None = None) -> int:
        """Slots that keep the device busy, evened out over so many puzzles: the last round is as full as any."""
        config, each, device = self.config, self.config.num_stack_positions, self.lm_head.weight.device
        if device.type == "cuda":  # up to 262,144 positions
            per_position = (6 * config.hidden_size + 4 * config.intermediate_size) * 4
            slots = min(2**18, int(torch.cuda.mem_get_info(device)[0] * 0.6) // per_position) // each
        else:
            # 1,024 positions are enough to reuse the weights, and beyond 130,000 numbers a state leaves the cache. In
            # between, 100 rounds keep the drain at the end short: the batch is fuller and the time the same. Wide
            # models: 12 full-size Sudokus, more were slower (results/benchmarks).
            least, most, limit = 1024 // each, 2**17 // config.hidden_size // each, 2**19 // config.hidden_size // each
            slots = min(limit, max(least, most if puzzles is None else min(most, puzzles // 100)))
        slots = max(1, slots)
        return slots if not puzzles else math.ceil(puzzles / math.ceil(puzzles / slots))

    @contextlib.contextmanager
    def _weights_in(self, dtype: torch.dtype) -> Iterator[None]:
        """Hold the linear layers' weights in `dtype`, cast once instead of in every update; on a CPU also packed.

        Beside the parameters, not in their place: another dtype behind `weight.data` drops the hooks by which DDP
        learns of a gradient. Compiled blocks cast by themselves: with other weights they would be compiled anew.
        """
        compiled = any(module._compiled_call_impl is not None for module in self.modules())
        linears = [module for module in self.modules() if isinstance(module, AirLinear) and not compiled]
        with _HOLDING:
            for linear in linears:
                if dtype not in linear.held:
                    weight = linear.weight.detach().to(dtype)
                    linear.held[dtype] = HeldWeight(weight, _pack(weight))
                linear.held[dtype].users += 1
        try:
            yield
        finally:
            with _HOLDING:
                for linear in linears:
                    linear.held[dtype].users -= 1
                    if not linear.held[dtype].users:
                        del linear.held[dtype]


def check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if count is not None and (not isinstance(count, numbers.Integral) or count < 1):
            raise ValueError(f"{name} must be 1 or more, a whole number; got {count!r}.")


# Values of ONEDNN_MAX_CPU_ISA without bfloat16 products.
_ISAS_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


def bf16_is_fast(device_type: str = "cpu") -> bool:
    """Whether this GPU (Ampere or newer; on a T4 it is emulated, and nothing compiles) or CPU multiplies bfloat16.

    A CPU needs AVX512-BF16 or AMX, and an environment that lets torch use it.
    ATEN_CPU_CAPABILITY limits torch's own kernels, ONEDNN_MAX_CPU_ISA its products: whoever sets one to less than
    AVX512-BF16 gets False. Without such instructions oneDNN emulates: a fifth of float32's speed with AVX512, a
    hundredth with AVX2.
    """
    if device_type != "cpu":
        return device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "all"
    # oneDNN's own answer is yes with plain AVX512; the processor's does not know what the environment limits.
    return (
        any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and isa.upper() not in _ISAS_WITHOUT_BF16
    )


def solving_dtype(dtype: torch.dtype | str | None, weight: Tensor) -> torch.dtype:
    """The dtype that `solve` computes in; by default float32 on a CPU, bfloat16 on CUDA where a GPU has products in it
    (else float32), elsewhere that of `weight`.

    On a CPU without instructions for them, bfloat16 products are up to a hundred times slower; with them
    (`bf16_is_fast`) nearly as many are solved in two thirds of the time, but not all answers stay as they are
    (results/cpu_precision.md), so it is for those to choose who can check them, as a search does.
    """
    if dtype is None:
        kind = weight.device.type
        halves = kind == "cuda" and bf16_is_fast(kind)
        return torch.bfloat16 if halves else torch.float32 if kind in ("cpu", "cuda") else weight.dtype
    if dtype in (torch.int8, "int8"):
        raise ValueError(
            "dtype='int8' is for exported graphs only. Run `python scripts/export.py --model DIR --output-dir OUT "
            "--format int8`: ONNX Runtime then computes in int8, faster than torch does."
        )
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype must be a floating-point type of torch, for example torch.float32 or 'bfloat16', got {dtype!r}."
        )
    return found


@dataclass
class _Loop:
    """The slots of one call of `solve`: filled from the waiting rows, stepped, and emptied of what stopped."""

    model: SolvingMixin
    input_ids: Tensor
    puzzle_ids: Tensor | None
    max_act_steps: int
    halt: str | Callable
    dtype: torch.dtype
    hook: Hook | None
    carry: AirCarry | None  # start states of all rows
    on_finish: Callable | None
    slots: AirCarry | None = None  # states of `rows`, the puzzles at work
    slot_steps: int = 0
    passes: int = 0
    capacity: int = 0  # slot steps that there was room for: running out of memory changes the batch

    def start(self, queue: Tensor | None, batch_size: int | None, return_logits: bool, progress: bool) -> None:
        model, config, device, total = self.model, self.model.config, self.input_ids.device, len(self.input_ids)
        self.batch_size = min(batch_size or model.default_batch_size(total), max(total, 1))
        logits_shape = (total, config.seq_len, config.vocab_size)
        self.solution = AirSolution(
            predictions=torch.zeros(total, config.seq_len, dtype=torch.long, device=device),
            logits=torch.zeros(logits_shape, dtype=self.dtype, device=device) if return_logits else None,
            q_halt_logits=torch.zeros(total, device=device),
            q_continue_logits=torch.zeros(total, device=device),
            act_steps=torch.zeros(total, dtype=torch.int32, device=device),
        )
        waiting = torch.arange(total, device=device) if queue is None else queue.to(device)
        if self.halt != "max" and config.task == "sudoku":
            # Few clues mean many steps: begun first, such puzzles do not run on in an empty batch at the end.
            waiting = waiting[(self.input_ids[waiting] == 1).sum(1).argsort(descending=True, stable=True)]
        self.waiting, self.rows = waiting, waiting[:0]
        self.announced = len(waiting)  # not read from the bar: it has no total where bars are switched off
        self.bar = logging.tqdm(total=self.announced, unit="puzzle", disable=not progress)

    def run(self) -> None:
        while len(self.rows) or len(self.waiting):
            self.advance()
        names = ("batch_size", "slot_steps", "passes", "capacity")
        self.solution.stats = sum_of_stats([{name: getattr(self, name) for name in names}])

    def advance(self) -> None:
        """One ACT step of everything in the slots."""
        count = min(self.batch_size, len(self.rows) + len(self.waiting))
        out = None
        try:
            self.fill()
            out = self.model(
                self.input_ids[self.rows],
                None if self.puzzle_ids is None else self.puzzle_ids[self.rows],
                carry=self.slots,
                hook=self.hook,
                dtype=self.dtype,
                rows=self.rows,
                return_dict=True,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or count == 1:
                raise
        if out is None:  # here the error, and with it the tensors of its frames, is gone
            self.halve(count)
            return
        self.slots, self.passes = out.carry, self.passes + 1
        self.slot_steps, self.capacity = self.slot_steps + len(self.rows), self.capacity + self.batch_size
        done = self.stopped(out)
        if done.any():
            self.collect(out, done)

    def fill(self) -> None:
        fresh = self.waiting[: max(0, self.batch_size - len(self.rows))]
        if not len(fresh):
            return
        new = self.model.initial_carry(len(fresh), dtype=self.dtype)
        if self.carry is not None:
            at = fresh.to(self.carry.z_h.device)
            new.z_h, new.z_l = (z[at].to(new.z_h) for z in (self.carry.z_h, self.carry.z_l))
        parts = new.to_tuple() if self.slots is None else map(torch.cat, zip(self.slots.to_tuple(), new.to_tuple()))
        self.slots, self.rows = AirCarry(*parts), torch.cat([self.rows, fresh])
        self.waiting = self.waiting[len(fresh) :]

    def halve(self, count: int) -> None:
        self.batch_size = count // 2
        warnings.warn(f"Out of memory with {count} puzzles at a time: going on with {self.batch_size}.")
        # All start anew: to keep half of the states would keep the memory of all of them.
        self.waiting, self.rows, self.slots = torch.cat([self.rows, self.waiting]), self.rows[:0], None
        if self.input_ids.device.type == "cuda":
            torch.cuda.empty_cache()

    def stopped(self, out: ModelOutput) -> Tensor:
        """(B,) bool: which of the slots are done."""
        done = self.slots.steps >= self.max_act_steps
        if self.halt == "q":
            return done | self.model.halts(out.q_halt_logits, out.q_continue_logits)
        if callable(self.halt):
            return done | self.halt(self.rows, out.logits.argmax(-1), self.slots.steps).to(done.device)
        return done

    def collect(self, out: ModelOutput, done: Tensor) -> None:
        """Move what is done from the slots into the solution."""
        solution, rows, steps = self.solution, self.rows[done], self.slots.steps[done]
        predictions = out.logits[done].argmax(-1)
        solution.predictions[rows], solution.act_steps[rows] = predictions, steps
        solution.q_halt_logits[rows] = out.q_halt_logits[done]
        solution.q_continue_logits[rows] = out.q_continue_logits[done]
        if solution.logits is not None:
            solution.logits[rows] = out.logits[done]
        self.bar.update(len(rows))
        more = None
        if self.on_finish is not None:
            q = out.q_halt_logits[done], out.q_continue_logits[done]
            more = self.on_finish(rows, predictions, q, steps, out.logits[done])
        if more is not None and len(more):
            # They go first: a chain of attempts that starts late would run on in an empty batch.
            self.waiting = torch.cat([more.to(rows.device), self.waiting])
            self.announced += len(more)
            self.bar.total = self.announced
        self.rows, self.slots = self.rows[~done], AirCarry(*(z[~done] for z in self.slots.to_tuple()))


@contextlib.contextmanager
def _attention_without_plans() -> Iterator[None]:
    """cuDNN plans its attention anew for every number of puzzles, and halting changes that number in every step."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _pack(weight: Tensor) -> Tensor | None:
    """A CPU weight in oneDNN's own layout: products with few rows get up to twice as fast. None where it cannot be."""
    # Small products gain nothing, and without it `solve` rounds exactly as `forward` does.
    if weight.device.type != "cpu" or weight.numel() < 2**17 or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, None)
    except (AttributeError, RuntimeError):  # not every build has it
        return None


def is_out_of_memory(error: Exception) -> bool:
    """CPU and MPS allocators, cuBLAS and older releases of torch raise a plain RuntimeError that says so."""
    text = str(error).lower()
    said = any(words in text for words in ("out of memory", "allocate memory", "alloc_failed"))
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


# ---- hooks ---------------------------------------------------------------------------------------------------------


def chain(*hooks: Hook | None) -> Hook | None:
    """One hook out of several, each seeing what the one before it left."""
    hooks = tuple(hook for hook in hooks if hook is not None)
    if not hooks:
        return None

    def chained(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor]:
        for hook in hooks:
            z_h, z_l = hook(update, z_h, z_l) or (z_h, z_l)
        return z_h, z_l

    return chained


def freezer(model: nn.Module, freeze: str | None, carry: AirCarry | None = None) -> Hook | None:
    """A hook that holds "z_h" or "z_l" at its start: that of `carry`, where each row has its own."""
    if freeze is None:
        return None

    def hold(update: AirUpdate, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, Tensor]:
        z = getattr(model.initial_carry(1, dtype=z_h.dtype) if carry is None else carry, freeze)
        start = (z if carry is None else z[update.rows.to(z.device)]).to(z_h).expand_as(z_h)
        return (start, z_l) if freeze == "z_h" else (z_h, start)

    return hold


def normal_of(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normals (B, *shape), float32, each row a function of its key (B,) int64 alone, on any device."""
    count = math.prod(shape)
    places = torch.arange(1, 2 * count + 1, device=keys.device)
    x = keys.unsqueeze(1) * -7046029254386353131 + places * 2862933555777941757
    # splitmix64's mixing steps; int64 products wrap, and the masks make the shifts logical.
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    uniform = (((x >> 40) & 0xFFFFFF).float() + 0.5) / 2**24
    a, b = uniform.view(len(keys), 2, count).unbind(1)
    return ((-2 * a.log()).sqrt() * (2 * math.pi * b).cos()).view(len(keys), *shape)


class Recorder:
    """A hook that decodes both states after every update into (B, U, S) uint8."""

    def __init__(self, model: nn.Module, total: int, max_act_steps: int) -> None:
        self.model, self.updates = model, list(model.config.schedule) * max_act_steps
        shape, device = (total, len(self.updates), model.config.seq_len), model.lm_head.weight.device
        self.z_h, self.z_l = (torch.zeros(shape, dtype=torch.uint8, device=device) for _ in "hl")

    def __call__(self, update: AirUpdate, z_h: Tensor, z_l: Tensor) -> None:
        at = update.steps.long() * len(self.model.config.schedule) + update.index
        for store, z in ((self.z_h, z_h), (self.z_l, z_l)):
            store[update.rows, at] = self.model.decode_state(z).argmax(-1).to(torch.uint8)

    def rollout(self, used: Tensor) -> AirRollout:
        """used: (B,) updates that each puzzle ran; later ones repeat the last."""
        last = used.long().clamp(min=1).unsqueeze(1) - 1
        at = torch.arange(len(self.updates), device=used.device).minimum(last)
        at = at.unsqueeze(-1).expand_as(self.z_h)
        return AirRollout(self.z_h.gather(1, at), self.z_l.gather(1, at), self.updates)
