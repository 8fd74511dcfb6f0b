"""The loop over optimizer steps, and everything that is made once for it. How batches come about: batches.py."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from air_model.answers_air import keep_givens
from air_model.configuration_air import AirConfig
from air_model.metrics.puzzle_accuracy.scores import score
from air_model.modeling_air import AirModel, widest
from air_model.optim_air import WeightEMA, build_optimizers, lr_factor
from air_model.records import command_line, earlier_runs, environment, write_json
from air_model.solving_air import bf16_is_fast
from air_model.training.batches import (
    HALTED_METRICS,
    LOSSES,
    Puzzles,
    PuzzleSampler,
    Slots,
    exploration,
    joined,
    misled,
    seeded,
    slots_to_refill,
    step_metrics,
    uniforms,
)
from air_model.training.checkpoints import CheckpointStore, save_checkpoint, write_model_folder
from air_model.training.cost import (
    compile_mode,
    matmul_tflops,
    peak_memory,
    peak_tflops,
    slow_products,
    training_flops,
    use_onednn,
)
from air_model.training.journal import Clock, Journal
from air_model.training.launch import RunError, Signals, TolerantStream, launcher_precision, refuse_lonely_process
from air_model.training.recipe import Recipe, model_config
from air_model.training.start import start_from


class BadLoss(RunError):
    """The loss stopped being a number."""


HALVES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class Trainer:
    """One run: everything that is made once, and the loop over optimizer steps."""

    act_steps = 1.0  # of an optimizer step, with gradient

    def __init__(self, recipe: Recipe, output_dir: Path, train_set: Any, eval_set: Any | None) -> None:
        self.recipe, self.train, self.output_dir = recipe, recipe.train, output_dir
        num_ids = 1 + max(int(s.puzzle_ids.max(initial=0)) for s in (train_set, eval_set) if s is not None)
        self.config = model_config(recipe, train_set.task, num_ids)
        if eval_set is not None and eval_set.task != train_set.task:
            raise RunError(f"The evaluation data ({eval_set.task!r}) is of another kind than {train_set.task!r}.")
        fewer = self.train.train_act_steps
        if fewer not in (None, self.config.halt_max_steps) and self.config.q_continue:
            raise RunError(
                f"train_act_steps={fewer} differs from halt_max_steps={self.config.halt_max_steps}, but the "
                "target of q_continue looks at the latter. Set q_continue=false, or leave train_act_steps out."
            )
        self.stream = TolerantStream(sys.stderr)  # of the bar, and of what is said beside it
        self._join_processes()
        self.bf16 = self._choose_precision()
        self._make_sampler(train_set)
        self.eval_set = eval_set
        self.data = {"train": _describe(train_set), "eval": None if eval_set is None else _describe(eval_set)}
        self.max_steps = self.train.steps(self.sampler.num_puzzles)
        if self.train.start_step >= self.max_steps:
            raise RunError(f"start_step={self.train.start_step} leaves nothing to train of {self.max_steps} steps.")

        torch.manual_seed(self.train.seed)  # on the CPU, so that every machine starts from the same weights
        self._make_model()
        self.stacks = self._compile()
        # The puzzle table's gradient travels as rows (PuzzleSignSGD), not as a dense table.
        tables = [name for name, _ in self.trained.named_parameters() if "puzzle" in name]
        self.trained._ddp_params_and_buffers_to_ignore = tables
        self.wrapped = self.accelerator.prepare_model(self.trained) if self.world > 1 else self.trained
        self.slots = Slots(self.trained, self.local_batch, self.config.seq_len, self.device)
        self.explorer = torch.Generator(self.device)

        self.store = CheckpointStore(output_dir / "checkpoints", self.train.total_limit)
        self.journal, self.clock = Journal(output_dir), Clock(self.device)
        self.signals: Signals | None = None
        self.step = self.since_log = 0
        self.totals = torch.zeros(1 + len(HALTED_METRICS) + len(LOSSES), device=self.device)
        self.no_loss = torch.zeros((), device=self.device)  # in place of one that the model does not have
        self.best: dict[str, Any] = {}
        self.last_metrics: dict[str, Any] = {}
        self.earlier_runs: list[dict[str, Any]] = []  # that made the weights of init_from
        self.evaluation_owed = False  # an evaluation of this step was cut short by a signal
        self.stop_reason = ""

    # ---- making things ----------------------------------------------------------------------------------------------

    def _join_processes(self) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.launcher_bf16 = launcher_precision(self.train.mixed_precision, self.train.accumulation) == "bf16"
        # DDP in its place: sharding saves memory that these models do not need, and Muon wants whole matrices.
        fsdp = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
        # One bf16 decision for every launcher; Accelerate's own autocast would wrap the carry as well.
        self.accelerator = Accelerator(
            cpu=not (torch.cuda.is_available() or torch.backends.mps.is_available()),
            mixed_precision="no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                    # A kept level token starts the carry, which is detached: it gets no gradient.
                    find_unused_parameters=self.config.level_token == "prepend_keep",
                )
            ],
        )
        self.device, self.rank = self.accelerator.device, self.accelerator.process_index
        self.world, self.is_main = self.accelerator.num_processes, self.accelerator.is_main_process
        refuse_lonely_process(self.world)
        if fsdp:
            self.say("FSDP was asked for; so small models do not need it: every process keeps all weights (DDP).")

    def _choose_precision(self) -> bool:
        """Whether the states are computed in bfloat16; says what `auto` chose."""
        if self.train.mixed_precision != "auto":
            return self.train.mixed_precision == "bf16"
        bf16, why = self.launcher_bf16, "as accelerate launch asks"
        if not bf16:
            bf16 = bf16_is_fast(self.device.type)
            why = "which this device is fast in" if bf16 else "since this device is no faster in bfloat16"
        self.say(f"mixed_precision=auto: {'bfloat16' if bf16 else 'float32'}, {why}.")
        return bf16

    def _values(self, *names: str) -> dict[str, Any]:
        """Values of the recipe, for what takes them under their own names."""
        return {name: getattr(self.train, name) for name in names}

    def _make_sampler(self, train_set: Any) -> None:
        """Share the batch out, and prepare the puzzles: on the device if a quarter of its free memory holds them."""
        config, device = self.train, self.device
        if config.batch_size % self.world:
            raise RunError(
                f"batch_size={config.batch_size} cannot be shared by {self.world} processes: it is the global batch. "
                "Choose a multiple of the number of processes."
            )
        self.local_batch = config.batch_size // self.world
        if self.local_batch % config.accumulation:
            raise RunError(
                f"accumulation={config.accumulation} does not divide the {self.local_batch} slots of a process. "
                "Choose a divisor."
            )
        if config.corrupted_share and train_set.task.name != "sudoku":
            raise RunError(
                f"corrupted_share={config.corrupted_share} is for Sudokus, and the data holds {train_set.task!r}: "
                "leave it out."
            )
        if device.type == "cuda":
            copies = 8 if config.augment == "symmetries" and train_set.task.name == "maze" else 1
            if 2 * copies * train_set.inputs.size >= torch.cuda.mem_get_info(device)[0] / 4:
                device = torch.device("cpu")
        self.sampler = PuzzleSampler(
            train_set,
            config.batch_size,
            **self._values("seed", "augment", "easier_share", "easier_most", "nearly_share"),
            rank=self.rank,
            world=self.world,
            device=device,
            ignore_index=self.config.ignore_index,
        )

    def _make_model(self) -> None:
        config = self.train
        self.model = AirModel(self.config)
        if config.activation_checkpointing:
            self.model.gradient_checkpointing_enable()
        if self.device.type == "cuda" and self.config.head_relations:
            # A mask goes to cuDNN as a bias, which nobody has tried on these shapes; the kernel after it is known.
            torch.backends.cuda.enable_cudnn_sdp(False)
        if self.device.type == "cpu" and not self.bf16 and slow_products():
            use_onednn(self.model)
        self.trained = self._module().to(self.device).train()
        self.optimizers = build_optimizers(
            self.trained,
            config.optimizer,
            betas=(config.beta1, config.beta2),
            **self._values("lr", "weight_decay", "atan2_scale", "muon_lr", "muon_weight_decay"),
            **self._values("puzzle_lr", "puzzle_weight_decay"),
        )
        self.ema = WeightEMA(self.trained, config.ema, config.ema_warmup) if config.ema else None

    def _module(self) -> nn.Module:
        """All that is trained: its forward takes a batch and a carry, and returns losses."""
        return self.model

    def _compile(self) -> list[nn.Module]:
        """Compile the blocks in place (names of weights stay as they are); returns what was compiled."""
        whole_run = self._flops() * self.max_steps
        mode = self.compile_mode = compile_mode(self.train.compile, self.device.type, whole_run)
        if mode == "off":
            return []
        # DDP would cut the blocks' graph where its buckets end, to send gradients early; but all updates share these
        # weights, whose gradients are complete at the very end only.
        torch._dynamo.config.optimize_ddp = False
        for stack in self.model.stacks:
            stack.compile(mode=mode, dynamic=False)
        return self.model.stacks

    def _flops(self) -> float:
        """Operations of an optimizer step."""
        return self.act_steps * training_flops(self.config, self.train.batch_size)

    def take_initial_weights(self) -> None:
        """Those of `init_from`, once, at the start of a run. A resumed run needs them no more."""
        if self.train.init_from:
            self.say(start_from(self.model, self.train.init_from))
            if self.ema is not None:
                self.ema = WeightEMA(self.trained, self.train.ema, self.train.ema_warmup)
            self.earlier_runs = earlier_runs(self.train.init_from)
            self.step = self.train.start_step

    def say(self, text: str) -> None:
        if self.is_main:
            tqdm.write(text, file=self.stream)

    # ---- one step ---------------------------------------------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def train_step(self) -> None:
        """One ACT step of all slots and one update of all weights. Nothing in here waits for the device."""
        step = self.step + 1
        fresh = self._draw(step)
        self.slots.refill(fresh, self._start(step, fresh))
        if self.stacks and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the carry was copied just now: graphs may reuse its memory
        pieces = self._gradients()
        found = [torch.stack([out.get(name, self.no_loss).detach() for out in pieces]) for name in LOSSES]
        losses = torch.stack([values.float().mean() for values in found])
        if self.device.type == "cpu" and self.world == 1 and not torch.isfinite(losses[0]):
            # To ask costs nothing here, and keeps the weights clean.
            self.optimizers.zero_grad()
            raise BadLoss(f"The loss of optimizer step {step} is {losses[0].item()}.")
        self._update_weights(step)
        self._advance_slots(step, pieces, losses)
        self.step = step
        self.since_log += 1

    def _draw(self, step: int) -> Puzzles:
        fresh = self.sampler.draw(step)
        if self.sampler.device.type == self.device.type:
            return fresh
        # The puzzles did not fit on the device: a copy from pinned memory does not wait.
        return Puzzles(*(t.pin_memory().to(self.device, non_blocking=True) for t in fresh))

    def _start(self, step: int, fresh: Puzzles) -> Any:
        """The states that fresh puzzles begin with."""
        config, start = self.train, self.trained.initial_carry(self.local_batch, self.device)
        if not config.corrupted_share:
            return start
        return misled(self.trained, start, fresh, self._uniform(6, step), config.corrupted_share)

    def _uniform(self, *key: int) -> Callable[..., Tensor]:
        """`uniforms` of this process's slots, a function of the seed and the key."""
        generator = seeded(self.explorer, self.train.seed, *key)
        return uniforms(generator, self.train.batch_size, self.sampler.rows)

    def _gradients(self) -> list[Any]:
        """Forward and backward of all slots, piece by piece; returns the outputs of the pieces."""
        pieces, slots = [], self.slots
        size = self.local_batch // self.train.accumulation
        for first in range(0, self.local_batch, size):
            rows = slice(first, first + size)
            puzzles = Puzzles(*(t[rows] for t in slots.puzzles))
            carry = type(slots.carry)(**{k: v[rows] for k, v in slots.carry.items()})
            last = first + size == self.local_batch
            with contextlib.nullcontext() if last or self.world == 1 else self.wrapped.no_sync():
                with self.autocast():
                    out = self.wrapped(puzzles.inputs, puzzles.ids, puzzles.labels, carry)
                # Mean over the slots of the piece -> mean over those of the process; DDP averages over processes.
                (out["loss"] * (size / self.local_batch)).backward()
            pieces.append(out)
        if self.train.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.optimizers.params, self.train.grad_clip)
        return pieces

    def _update_weights(self, step: int) -> None:
        config = self.train
        values = self._values("warmup_steps", "schedule", "tail_share")
        factor = lr_factor(step, max_steps=self.max_steps, min_ratio=config.lr_min_ratio, **values)
        self.optimizers.set_lr_factor(factor)
        self.optimizers.step(self.slots.puzzles.ids)
        self.optimizers.zero_grad()
        if self.ema is not None:
            self.ema.update(step)

    @torch.no_grad()
    def _advance_slots(self, step: int, pieces: list[Any], losses: Tensor) -> None:
        """New states, which slots halt, and the sums of what they score."""
        config, slots = self.train, self.slots
        logits, q_halt, q_continue = joined(pieces, "logits", "q_halt_logits", "q_continue_logits")
        slots.carry = type(slots.carry)(*joined([out["carry"] for out in pieces], "z_h", "z_l", "steps"))
        steps, labels = slots.carry.steps, slots.puzzles.labels
        most, prob = config.train_act_steps or self.config.halt_max_steps, config.halt_exploration_prob
        least = exploration(self.explorer, config.seed, step, config.batch_size, prob, most)[self.sampler.rows]
        slots.halted = slots_to_refill(steps, q_halt, q_continue if self.config.q_continue else None, least, most)
        sums = step_metrics(logits, labels, q_halt, steps, slots.halted, self.config.ignore_index)
        self.totals += torch.cat([sums, losses])

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self, signals: Signals) -> None:
        """Train from self.step to the end, or until a signal or the time limit."""
        self.signals = signals
        if self.step < self.max_steps and self.agree(signals.received):  # before the first step, which may compile
            self.stop_reason = "signal"
            return
        self.clock.start_session()
        self.evaluation_owed = self.evaluation_owed and bool(self.train.eval_every)  # else no longer wanted
        with tqdm(
            total=self.max_steps, initial=self.step, desc=self.train.run_name or self.output_dir.name, unit="step",
            disable=not self.is_main, dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 30.0,
            file=self.stream,
        ) as self.bar:  # fmt: skip
            if self.evaluation_owed:
                with self.clock.pausing():
                    self.evaluate()
            while self.step < self.max_steps and not self.stop_reason:
                self._try_step()
                self.clock.count_step(self._flops())
                self.bar.update()
                self._after_step()

    def _try_step(self) -> None:
        """A step; a compiler that fails on its first use is no reason to lose the run, which goes on without it."""
        try:
            self.train_step()
        except Exception as error:
            first = self.clock.work["steps"] == self.clock.before["steps"]
            of_compiler = type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton"))
            if not (self.stacks and first and (of_compiler or "compil" in str(error))):
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self.say(f"torch.compile failed ({reason}); going on without it.")
            for stack in self.stacks:
                stack._compiled_call_impl = None
            self.stacks = []
            self.optimizers.zero_grad()
            self.train_step()

    def _after_step(self) -> None:
        """What is due after this step: log, evaluation, checkpoint, a stop."""
        config, clock = self.train, self.clock
        done = self.step >= self.max_steps
        if self.step % config.log_every == 0 or done:
            clock.wait_for_device()
            clock.update()
            self.log()
        if config.eval_every and self.step % config.eval_every == 0 and not done:
            with clock.pausing():
                try:
                    self.evaluate()
                except Exception:  # the steps since the last checkpoint are good
                    if self.world == 1:  # else other processes may wait in a collective
                        self.evaluation_owed = True
                        save_checkpoint(self)
                        self.write_progress()
                    raise
        late = bool(config.max_minutes) and time.perf_counter() - clock.session_start > 60 * config.max_minutes
        stop = self.agree(self.signals.received or late, every=1 if self.evaluation_owed else config.log_every)
        if self.step % config.save_every == 0 or done or stop:
            with clock.pausing():
                save_checkpoint(self)
                if not done:
                    self.write_progress()
        if stop and not done:
            self.stop_reason = "time limit" if late else "signal"

    def write_progress(self) -> None:
        """run.json of a run that goes on: whoever takes a checkpoint's weights learns how far they have come."""
        with contextlib.suppress(OSError):  # a full disk stops no run
            self.write_report("running")

    def agree(self, wish: bool, every: int = 1) -> bool:
        """Whether any process wishes so. On GPUs only looked at every `every` steps: asking waits for the device."""
        if self.world == 1:
            return wish
        if self.device.type == "cuda" and self.step % every and self.step < self.max_steps:
            return False
        flag = torch.tensor(float(wish), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def check_loss(self, weights: bool = False) -> None:
        """Raises BadLoss, on every process alike, where a loss since the last `log` is no number.

        With `weights` also where one of those is none: a finite loss says nothing of the update that followed it.
        """
        if self.agree(not torch.isfinite(self.totals).all()):
            first = self.step - self.since_log + 1
            raise BadLoss(f"A loss of optimizer steps {first} to {self.step} is not a finite number.")
        if weights and not self.weights_are_finite():
            raise BadLoss(f"The update of optimizer step {self.step} left weights that are no finite numbers.")

    def weights_are_finite(self) -> bool:
        return all(torch.stack([torch.isfinite(p).all() for p in self.trained.parameters()]).tolist())

    def log(self) -> None:
        """Read the sums off the device and write them to the bar, metrics.jsonl and the trackers."""
        self.check_loss()
        totals = widest(self.totals)
        if self.world > 1:
            dist.all_reduce(totals)
        (count, *sums), speed = totals.tolist(), self.clock.steps_per_second()
        values = {name: total / count if count else None for name, total in zip(HALTED_METRICS, sums)}
        losses = zip(LOSSES, sums[len(HALTED_METRICS) :])
        values |= {name: total / (self.since_log * self.world) for name, total in losses}
        # Slots that finished per second; each optimizer step advances batch_size slots by one ACT step.
        values["puzzles_per_second"] = count / self.since_log * speed
        values["slot_steps_per_second"] = self.train.batch_size * speed
        values["lr"] = self.optimizers.main[0].param_groups[0]["lr"]
        self.totals.zero_()
        self.since_log = 0
        self.clock.work["puzzles"] += int(count)
        self.last_metrics = values
        if self.is_main:
            self.journal.record(self.step, {f"train/{name}": value for name, value in values.items()})
        exact = "-" if values["exact_accuracy"] is None else f"{values['exact_accuracy']:.3f}"
        rate = self.clock.puzzles_per_second()
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}, exact {exact}, {rate:.0f} puzzles/s")

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, final: bool = False) -> dict[str, float]:
        """Exact, cell and valid accuracy on the evaluation subset, all ACT steps; keeps the best model under model/.

        A signal to stop ends it early: then nothing is recorded, and `evaluation_owed` says so until it is made.
        """
        if self.eval_set is None or not len(self.eval_set.inputs):
            return {}
        limit = self.train.eval_limit
        if final and self.train.final_eval_limit not in (None, limit):
            # Which model is the best is settled on the puzzles of the evaluations on the way.
            self.evaluate()
            if self.evaluation_owed:
                return {}
            limit = self.train.final_eval_limit
        start = time.perf_counter()
        # Eager blocks where the compiled ones are CUDA graphs: solving keeps states that a graph would overwrite.
        captured = self.stacks and self.compile_mode in ("reduce-overhead", "max-autotune")
        eager = torch.compiler.set_stance("force_eager") if captured else contextlib.nullcontext()
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext(), eager:
            result = self._scores(limit)
            if result is None:
                return {}
            n = result.pop("n")
            if self.is_main:
                self.journal.record(self.step, {f"eval/{name}": value for name, value in result.items()})
            # A final evaluation on other puzzles does not compare with those on the way; a resumed run may have
            # changed how many those are, and then the comparison starts anew.
            apart = final and limit != self.train.eval_limit
            best = not self.best or (n != self.best["n"] or result["exact_accuracy"] >= self.best["exact_accuracy"])
            if best and not (apart and self.best):
                self._keep_best({"step": self.step, "n": n, **result})
        text = ", ".join(f"{name} {value:.4f}" for name, value in result.items())
        self.say(f"step {self.step}: {text} ({n} puzzles, {time.perf_counter() - start:.1f} s)")
        return {"n": n, **result}

    def _scores(self, limit: int) -> dict[str, Any] | None:
        """Accuracies on the first `limit` puzzles (0: all), of all processes; None where a signal cut them short."""
        result = evaluate_model(
            self.model,
            self.eval_set.select(slice(limit or None)),
            batch_size=self.train.eval_batch_size or self.local_batch,
            rank=self.rank,
            world=self.world,
            dtype=torch.bfloat16 if self.bf16 else torch.float32,
            stop=lambda: self.signals is not None and self.signals.received,
            gather=self._gathered,
        )
        self.evaluation_owed = result is None
        return result

    def _gathered(self, answers: np.ndarray | None) -> np.ndarray | None:
        """The answers (N, S) of all processes, out of each one's share; None where a signal cut one of them short."""
        if self.world == 1:
            return answers
        if self.agree(answers is None):
            return None
        shares: list[Any] = [None] * self.world
        dist.all_gather_object(shares, answers)
        whole = np.concatenate(shares)
        for rank, share in enumerate(shares):
            whole[rank :: self.world] = share
        return whole

    def _keep_best(self, best: dict[str, Any]) -> None:
        failure = None
        try:
            self.save_model("model")
        except (OSError, SafetensorError) as error:
            failure = error
        if self.agree(failure is not None):
            self.say(f"WARNING: the best model so far could not be written ({failure}). Free some disk space.")
        else:
            self.best = best

    def save_model(self, name: str) -> None:
        if self.is_main:
            write_model_folder(self.model, self.output_dir / name)

    # ---- the record -------------------------------------------------------------------------------------------------

    def write_report(self, status: str, evaluation: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write run.json; returns its contents."""
        report = self.report(status, evaluation)
        if self.is_main:
            write_json(self.output_dir / "run.json", report)
        return report

    def report(self, status: str, evaluation: dict[str, Any] | None = None) -> dict[str, Any]:
        work = self.clock.work
        seconds = max(1e-9, work["seconds"])
        tflops, peak = work["flops"] / seconds / 1e12, peak_tflops(self.device)
        with self.autocast():
            dtype = self.model.activation_dtype(self.device.type)
        machine = matmul_tflops(self.device, dtype) if status == "finished" else None
        variant, rule = self.recipe.model["variant"], self.config.injection
        return {
            "status": status,
            "name": self.train.run_name or self.output_dir.name,
            "task": self.config.task,
            "grid": [self.config.grid_height, self.config.grid_width],
            # Injections given one by one make another variant of it.
            "variant": variant if AirConfig.from_variant(variant).injection == rule else rule,
            "seed": self.train.seed,
            "command": command_line(),
            "steps": self.step,
            "max_steps": self.max_steps,
            "metrics": {"eval": evaluation or None, "best": self.best or None, "train": self.last_metrics or None},
            "wall_seconds": round(self.clock.seconds, 2),
            "session_seconds": round(time.perf_counter() - self.clock.setting_up, 2),
            "earlier_runs": self.earlier_runs,
            "seconds_to_first_step": round(self.clock.first_step_seconds, 2),
            "steps_per_second": work["steps"] / seconds,
            "puzzles_per_second": self.clock.puzzles_per_second(),
            "tflops": tflops,
            "tflops_peak_of_device": peak,
            "share_of_peak": None if peak is None else tflops / (peak * self.world),
            "tflops_of_large_matmul": machine,
            "share_of_large_matmul": None if not machine else tflops / (machine * self.world),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "precision": f"{HALVES[dtype]} states, fp32 weights" if dtype in HALVES else "fp32",
            "peak_memory_bytes": peak_memory(self.device),
            "data": self.data,
            "config": self.recipe.flat(),
            "model_config": self.config.to_dict(),
            **environment(self.device, self.world),
        }


def _describe(puzzles: Any) -> dict[str, Any]:
    return {"source": puzzles.source, "n": len(puzzles), "fingerprint": puzzles.fingerprint}


def evaluate_model(
    model: AirModel,
    puzzles: Any,
    *,
    batch_size: int,
    dtype: torch.dtype | None = None,
    stop: Callable[[], bool] = lambda: False,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[np.ndarray | None], np.ndarray | None] = lambda answers: answers,
) -> dict[str, Any] | None:
    """Accuracies after all ACT steps: n puzzles with labels, exact, cell and valid accuracy (of a task without rules
    only labels tell). As everywhere, an answer keeps what its puzzle gave.

    Of several processes each solves a share, `puzzles[rank::world]`, and `gather` makes all answers of the shares'.
    `stop` is asked before every batch; if it said yes, `gather` is given None, and None is what comes back.
    """
    mine = puzzles.select(slice(rank, None, world))
    n = len(mine)
    batch_size = max(1, min(batch_size, n))
    # A last batch of another size would make a compiled model compile again: fill it up, and do not count those.
    padded = np.resize(np.arange(n), -(-n // batch_size) * batch_size)
    pieces: list[np.ndarray] | None = [mine.inputs[:0]]
    for rows in padded.reshape(-1, batch_size):
        if stop():
            pieces = None
            break
        solution = model.solve(
            torch.from_numpy(mine.inputs[rows]).long(),
            torch.from_numpy(mine.puzzle_ids[rows]).long(),
            batch_size=batch_size,
            dtype=dtype,
            return_logits=False,
        )
        pieces.append(solution.predictions.cpu().numpy().astype(np.uint8))
    answers = gather(None if pieces is None else np.concatenate(pieces)[:n])
    if answers is None:
        return None
    task, inputs = puzzles.task, puzzles.inputs
    answers = keep_givens(task, inputs, answers)
    scores = score(answers, puzzles.labels, valid=task.verdicts(inputs, answers).valid)
    keys = ["n", "exact_accuracy", "cell_accuracy"] + ["valid_accuracy"] * task.has_rules
    return {key: scores[key] for key in keys}
