"""Train one AIR model on one puzzle task: a recipe, overridden where you like, into a folder.

    python train_accelerate.py --recipe sudoku_6x6 --output-dir runs/small               # a laptop CPU, minutes
    accelerate launch train_accelerate.py --recipe recipes/sudoku_extreme.yaml --output-dir runs/sudoku
    accelerate launch train_accelerate.py --recipe maze_hard --output-dir runs/maze variant=L_H2x seed=3
    accelerate launch train_accelerate.py --recipe sudoku_extreme --output-dir runs/sudoku --resume
    accelerate launch --config_file recipes/accelerate/8_gpus.yaml train_accelerate.py --recipe maze_hard ...
    torchrun --nproc_per_node 2 train_accelerate.py --recipe sudoku_6x6 ...              # several CPU processes
    python train_accelerate.py --recipe sudoku_extreme --output-dir runs/try --smoke     # tiny, seconds

Any key of TrainConfig (training/recipe.py) or AirConfig may follow as key=value. Under --output-dir: run.json,
metrics.jsonl, curve.png, checkpoints/checkpoint_N, model/ (the best evaluated one, for AutoModel) and model_last/.
A killed run goes on with --resume, to the same weights bit for bit on a CPU. SIGTERM saves and exits with status 0.
"""

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

if not __package__:
    from scripts import _checkout  # noqa: F401  makes this checkout importable as air_model

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from air_model.configuration_air import AirConfig
from air_model.modeling_air import AirModel
from air_model.optim_air import WeightEMA, build_optimizers, lr_factor
from air_model.pipeline_air import save_release
from air_model.processing_air import AirProcessor, make_task
from air_model.records import append_runs_to, command_line, earlier_runs, environment, write_json
from air_model.solving_air import is_out_of_memory
from air_model.training.batches import HALTED_METRICS, LOSSES, PuzzleSampler, Slots, exploration, halt, step_metrics
from air_model.training.checkpoints import CheckpointStore, read_state, read_tensors, save_tensors
from air_model.training.cost import (
    compile_mode,
    matmul_tflops,
    peak_tflops,
    slow_products,
    training_flops,
    use_onednn,
)
from air_model.training.launch import TAKEN, FolderTaken, alone_in
from air_model.training.recipe import (
    FREE_ON_RESUME,
    MODEL_FIELDS,
    Recipe,
    TrainConfig,
    few_heads,
    make_recipe,
    model_config,
    read_recipe,
    recipe_differences,
)
from air_model.training.start import widened

# What --smoke sets on top of a recipe (and below the command line): every part of a run, in seconds.
SMOKE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "halt_max_steps": 4,
    "puzzle_embedding_size": None, "prefix_length": None, "l_layers": None, "h_layers": None,
    "max_steps": 20, "batch_size": 16, "accumulation": 1, "warmup_steps": 2, "train_size": None, "cycles": None,
    "eval_limit": 16, "eval_every": 10, "save_every": 10, "log_every": 5, "trackers": "none", "compile": "off",
}  # fmt: skip


class RunError(ValueError):
    """Something that the user can put right; `main` prints it as one message and exits with status 1."""


class BadLoss(RunError):
    """The loss stopped being a number."""


class Trainer:
    """One run: everything that is made once, and the loop over optimizer steps."""

    def __init__(self, recipe: Recipe, output_dir: Path, train_set: Any, eval_set: Any | None) -> None:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        self.recipe, self.train, self.output_dir = recipe, recipe.train, output_dir
        config = self.train
        num_ids = 1 + max(int(s.puzzle_ids.max(initial=0)) for s in (train_set, eval_set) if s is not None)
        self.config = model_config(recipe, train_set.task, num_ids)
        if eval_set is not None and eval_set.task != train_set.task:
            raise RunError(f"The evaluation data ({eval_set.task!r}) is of another kind than {train_set.task!r}.")

        fsdp = drop_fsdp()
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
        asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.bf16 = config.mixed_precision == "bf16" or (
            config.mixed_precision == "auto" and (self.device.type == "cuda" or asked == "bf16")
        )
        self.sampler = PuzzleSampler(
            train_set,
            config.batch_size,
            seed=config.seed,
            augment=config.augment,
            easier_share=config.easier_share,
            easier_most=config.easier_most,
            rank=self.rank,
            world=self.world,
            device=self._data_device(train_set),
            ignore_index=self.config.ignore_index,
        )
        self.max_steps = config.steps(self.sampler.num_puzzles)
        self.eval_set = eval_set
        self.data = {"train": _describe(train_set), "eval": None if eval_set is None else _describe(eval_set)}

        torch.manual_seed(config.seed)  # on the CPU, so that every machine starts from the same weights
        self.model = AirModel(self.config)
        if config.activation_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.to(self.device).train()
        if self.bf16 and self.device.type == "cpu" and self.config.num_stack_positions <= 200:
            # torch's fused attention trains slowly in bf16 on CPUs: over 82 positions plain products take a quarter of
            # its time, over 145 two fifths, over 197 as long, over 226 a third longer (results/LOG.md).
            self.model.set_attn_implementation("eager")
        if self.device.type == "cuda" and self.config.head_relations:
            # A mask goes to cuDNN as a bias, which nobody has tried on these shapes; the kernel after it is known.
            torch.backends.cuda.enable_cudnn_sdp(False)
        if self.device.type == "cpu" and not self.bf16 and slow_products():
            use_onednn(self.model)
        self.optimizers = build_optimizers(
            self.model,
            config.optimizer,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            atan2_scale=config.atan2_scale,
            muon_lr=config.muon_lr,
            muon_weight_decay=config.muon_weight_decay,
            puzzle_lr=config.puzzle_lr,
            puzzle_weight_decay=config.puzzle_weight_decay,
        )
        self.ema = self._new_ema()
        self.stacks = self._compile()
        # The puzzle table's gradient travels as rows (PuzzleSignSGD), not as a dense table.
        self.model._ddp_params_and_buffers_to_ignore = [n for n, _ in self.model.named_parameters() if "puzzle" in n]
        self.wrapped = self.accelerator.prepare_model(self.model) if self.world > 1 else self.model
        self.slots = Slots(self.model, self.local_batch, self.config.seq_len, self.device)
        self.explorer = torch.Generator(self.device)
        fewer = set(config.act_steps_curriculum().values()) - {self.config.halt_max_steps}
        if fewer and self.config.q_continue:
            raise RunError(
                f"train_act_steps={min(fewer)} differs from halt_max_steps={self.config.halt_max_steps}, but the "
                "target of q_continue looks at the latter. Set q_continue=false, or leave train_act_steps out."
            )

        self.store = CheckpointStore(output_dir / "checkpoints", config.total_limit)
        self.step = 0
        self.totals = torch.zeros(1 + len(HALTED_METRICS) + len(LOSSES), device=self.device)
        self.first_bad = torch.zeros((), dtype=torch.long, device=self.device)  # first step whose loss is no number
        self.since_log = 0
        self.best: dict[str, Any] = {}
        self.seconds = 0.0  # of training, over all sessions of the run
        # Optimizer steps, their seconds without evaluations and saving, and their operations: over all sessions too.
        self.speed = {"steps": 0, "seconds": 0.0, "flops": 0.0, "puzzles": 0}
        self.earlier_runs: list[dict[str, Any]] = []  # that made the weights of init_from
        self.pause = 0.0  # seconds of this session that were no training steps
        self.stop_reason = ""

    # ---- making things ----------------------------------------------------------------------------------------------

    def _new_ema(self) -> WeightEMA | None:
        return WeightEMA(self.model, self.train.ema, self.train.ema_warmup) if self.train.ema else None

    def begin(self) -> None:
        """What a run does once, at its start: take the weights of `init_from`. A resumed run needs them no more."""
        if self.train.init_from:
            self.say(start_from(self.model, self.train.init_from))
            self.ema = self._new_ema()
            self.earlier_runs = earlier_runs(self.train.init_from)
            self.step = self.train.start_step

    def _data_device(self, train_set: Any) -> torch.device:
        """The device, unless the puzzles would take more than a quarter of its free memory."""
        if self.device.type != "cuda":
            return torch.device("cpu") if self.device.type == "cpu" else self.device
        copies = 8 if self.train.augment == "symmetries" and train_set.task.name == "maze" else 1
        size = 2 * copies * train_set.inputs.size
        return self.device if size < torch.cuda.mem_get_info(self.device)[0] / 4 else torch.device("cpu")

    def _compile(self) -> list[nn.Module]:
        """Compile the blocks in place (names of weights stay as they are); returns what was compiled."""
        whole_run = training_flops(self.config, self.train.batch_size) * self.max_steps
        mode = self.compile_mode = compile_mode(self.train.compile, self.device.type, whole_run)
        if mode == "off":
            return []
        stacks = self.model.stacks
        # DDP would cut the blocks' graph where its buckets end, to send gradients early; but all updates share these
        # weights, whose gradients are complete at the very end only.
        torch._dynamo.config.optimize_ddp = False
        for stack in stacks:
            stack.compile(mode=mode, dynamic=False)
        return stacks

    def _undo_compile(self, error: Exception) -> None:
        for stack in self.stacks:
            stack._compiled_call_impl = None
        self.stacks = []
        self.say(f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); going on without it.")

    def say(self, text: str) -> None:
        if self.is_main:
            print(text, file=Patient(sys.stderr), flush=True)

    # ---- one step ---------------------------------------------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()

    def train_step(self) -> None:
        """One ACT step of all slots and one update of all weights. Nothing in here waits for the device."""
        step, config, slots = self.step + 1, self.train, self.slots
        if (cycles := config.cycles_at(step)) is not None:
            self.config.l_cycles, self.config.h_cycles = cycles
        act_steps = config.act_steps_at(step, self.config.halt_max_steps)
        fresh = self.sampler.draw(step)
        if (
            self.sampler.device.type != self.device.type
        ):  # the puzzles did not fit: a copy from pinned memory does not wait
            fresh = type(fresh)(*(t.pin_memory().to(self.device, non_blocking=True) for t in fresh))
        slots.refill(self.model, fresh)
        if self.stacks and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # the carry was copied just now: graphs may reuse its memory

        pieces = []
        size = self.local_batch // config.accumulation
        for first in range(0, self.local_batch, size):
            rows = slice(first, first + size)
            puzzles = type(fresh)(*(t[rows] for t in slots.puzzles))
            carry = type(slots.carry)(**{k: v[rows] for k, v in slots.carry.items()})
            last = first + size == self.local_batch
            with contextlib.nullcontext() if last or self.world == 1 else self.wrapped.no_sync():
                with self.autocast():
                    out = self.wrapped(puzzles.inputs, puzzles.ids, puzzles.labels, carry)
                # Mean over the slots of the piece -> mean over those of the process; DDP averages over processes.
                (out.loss * (size / self.local_batch)).backward()
            pieces.append(out)
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.optimizers.params, config.grad_clip)

        losses = torch.stack([_mean_of(pieces, name, self.device) for name in LOSSES])
        bad = ~torch.isfinite(losses[0])
        if self.device.type == "cpu" and self.world == 1 and bad:  # costs nothing here, and keeps the weights clean
            self.optimizers.zero_grad()
            raise BadLoss(f"The loss of optimizer step {step} is {losses[0].item()}.")
        self.first_bad = torch.where(bad & (self.first_bad == 0), step, self.first_bad)

        factor = lr_factor(
            step,
            max_steps=self.max_steps,
            warmup_steps=config.warmup_steps,
            min_ratio=config.lr_min_ratio,
            schedule=config.schedule,
            tail_share=config.tail_share,
        )
        self.optimizers.set_lr_factor(factor)
        self.optimizers.step(slots.puzzles.ids)
        self.optimizers.zero_grad()
        if self.ema is not None:
            self.ema.update(step)

        with torch.no_grad():
            q_halt = torch.cat([out.q_halt_logits.detach() for out in pieces])
            q_continue = torch.cat([out.q_continue_logits.detach() for out in pieces])
            slots.carry = type(slots.carry)(
                **{k: torch.cat([out.carry[k] for out in pieces]) for k in ("z_h", "z_l", "steps")}
            )
            min_steps = exploration(
                self.explorer,
                config.seed,
                step,
                config.batch_size,
                config.halt_exploration_prob,
                act_steps,
            )[self.sampler.rows]
            slots.halted = halt(
                slots.carry.steps,
                q_halt,
                q_continue if self.config.q_continue else None,
                min_steps,
                act_steps,
            )
            logits = torch.cat([out.logits.detach() for out in pieces])
            sums = step_metrics(
                logits, slots.puzzles.labels, q_halt, slots.carry.steps, slots.halted, self.config.ignore_index
            )
            self.totals += torch.cat([sums, losses])
        self.step = step
        self.since_log += 1

    # ---- the loop ---------------------------------------------------------------------------------------------------

    def run(self, signals: "Signals") -> None:
        """Train from self.step to the end, or until a signal or the time limit."""
        from tqdm import tqdm

        config, self.signals = self.train, signals
        if self.step < self.max_steps and self.agree(signals.received):  # before the first step, which may compile
            self.stop_reason = "signal"
            return
        begin, begin_step, begin_seconds = time.perf_counter(), self.step, self.seconds
        before, self.pause = dict(self.speed), 0.0
        bar = tqdm(
            total=self.max_steps, initial=self.step, desc=config.run_name or self.output_dir.name, unit="step",
            disable=not self.is_main, dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 30.0,
            file=Patient(sys.stderr),
        )  # fmt: skip
        try:
            self.evaluation_owed = self.evaluation_owed and bool(config.eval_every)  # no longer wanted
            if self.evaluation_owed:
                with self.pausing():
                    self.evaluate(bar)
            while self.step < self.max_steps:
                try:
                    self.train_step()
                except Exception as error:  # a compiler that fails on its first use is no reason to lose the run
                    if not self.stacks or self.step > begin_step or not _is_compiler_error(error):
                        raise
                    self._undo_compile(error)
                    self.optimizers.zero_grad()
                    continue
                bar.update()
                self.speed["flops"] += training_flops(self.config, config.batch_size)
                if not self.first_step_seconds:
                    self.first_step_seconds = time.perf_counter() - self.born
                done = self.step >= self.max_steps
                if self.step % config.log_every == 0 or done:
                    if self.device.type == "cuda":
                        torch.cuda.synchronize(self.device)  # the clock is read after the steps in flight
                    self._count(before, begin_step, begin, begin_seconds)
                    self.log(bar, (self.step - begin_step) / max(1e-9, self.speed["seconds"] - before["seconds"]))
                if config.eval_every and self.step % config.eval_every == 0 and not done:
                    with self.pausing():
                        try:
                            self.evaluate(bar)
                        except Exception:
                            # The steps since the last checkpoint are good. Other processes may wait in a collective.
                            if self.world == 1:
                                self.evaluation_owed = True
                                self._count(before, begin_step, begin, begin_seconds)
                                self.save()
                                self.tell(self.seconds - begin_seconds)
                            raise
                late = bool(config.max_minutes) and time.perf_counter() - begin > 60 * config.max_minutes
                stop = self.agree(signals.received or late, every=1 if self.evaluation_owed else config.log_every)
                if self.step % config.save_every == 0 or done or stop:
                    with self.pausing():
                        self._count(before, begin_step, begin, begin_seconds)
                        self.save()
                        if not done:
                            self.tell(self.seconds - begin_seconds)
                if stop and not done:
                    self.stop_reason = "time limit" if late else "signal"
                    break
        finally:
            self.seconds = begin_seconds + time.perf_counter() - begin
            bar.close()

    def tell(self, session_seconds: float) -> None:
        """run.json of a run that goes on: whoever takes a checkpoint's weights learns how far they have come."""
        if self.is_main:
            with contextlib.suppress(OSError):  # a full disk stops no run
                write_json(self.output_dir / "run.json", self.report("running", session_seconds))

    def _count(self, before: dict[str, float], begin_step: int, begin: float, begin_seconds: float) -> None:
        """Bring the clocks up to now."""
        session = time.perf_counter() - begin
        self.seconds = begin_seconds + session
        self.speed["steps"] = before["steps"] + self.step - begin_step
        self.speed["seconds"] = before["seconds"] + session - self.pause

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """What happens here is no training step. Waits first, so that steps in flight count as such."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.pause += time.perf_counter() - start

    def agree(self, wish: bool, every: int = 1) -> bool:
        """Whether any process wishes so. On GPUs only looked at every `every` steps: asking waits for the device."""
        if self.world == 1:
            return wish
        if self.device.type == "cuda" and self.step % every and self.step < self.max_steps:
            return False
        flag = torch.tensor(float(wish), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag.item())

    def check_loss(self) -> None:
        """Read the device's note of the first bad loss; raises BadLoss on every process alike."""
        first = self.first_bad.clone()
        if self.world > 1:
            first = torch.where(first == 0, torch.iinfo(torch.long).max, first)
            dist.all_reduce(first, op=dist.ReduceOp.MIN)
            first = torch.where(first == torch.iinfo(torch.long).max, 0, first)
        if int(first):
            raise BadLoss(f"The loss of optimizer step {int(first)} is not a finite number.")

    def log(self, bar: Any, steps_per_second: float) -> None:
        """Read the sums off the device and write them to the bar, metrics.jsonl and the trackers."""
        self.check_loss()
        totals = self.totals.double() if self.device.type != "mps" else self.totals
        if self.world > 1:
            dist.all_reduce(totals)
        totals = totals.tolist()
        count, halted, losses = totals[0], totals[1 : 1 + len(HALTED_METRICS)], totals[1 + len(HALTED_METRICS) :]
        values = {name: value / count if count else None for name, value in zip(HALTED_METRICS, halted)}
        values |= {name: value / (self.since_log * self.world) for name, value in zip(LOSSES, losses)}
        # Slots that finished per second; each optimizer step advances batch_size slots by one ACT step.
        values["puzzles_per_second"] = count / self.since_log * steps_per_second
        values["slot_steps_per_second"] = self.train.batch_size * steps_per_second
        values["lr"] = self.optimizers.main[0].param_groups[0]["lr"]
        self.totals.zero_()
        self.since_log = 0
        if "puzzles" in self.speed:
            self.speed["puzzles"] += int(count)
        self.last_metrics = values
        self.record({f"train/{name}": value for name, value in values.items()})
        exact = "-" if values["exact_accuracy"] is None else f"{values['exact_accuracy']:.3f}"
        bar.set_postfix_str(f"loss {values['loss']:.3f}, exact {exact}, {self.rate() or 0:.0f} puzzles/s")

    def rate(self) -> float | None:
        """Puzzles finished per second of training, over the run: slots finish in bursts, so few steps say little."""
        if "puzzles" not in self.speed:  # a checkpoint of an earlier release did not count them
            return self.last_metrics.get("puzzles_per_second")
        return self.speed["puzzles"] / max(1e-9, self.speed["seconds"])

    def record(self, values: dict[str, Any]) -> None:
        if not self.is_main:
            return
        numbers = {k: v for k, v in values.items() if v is not None}
        path = self.output_dir / "metrics.jsonl"
        size = path.stat().st_size if path.is_file() else 0
        try:
            with path.open("a") as file:
                file.write(json.dumps({"step": self.step, **numbers}) + "\n")
        except OSError as error:  # a full disk costs this line, not the run
            with contextlib.suppress(OSError):
                os.truncate(path, size)  # half a line would spoil the next one
            self.say(f"WARNING: metrics.jsonl could not be written ({error}).")
        for tracker in list(self.trackers):
            try:
                tracker.log(numbers, step=self.step)
            except OSError as error:
                self.trackers.remove(tracker)
                self.say(f"WARNING: {type(tracker).__name__} could not write ({error}); going on without it.")

    # ---- evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, bar: Any | None = None, final: bool = False) -> dict[str, float]:
        """Exact and cell accuracy on the evaluation subset, all ACT steps; keeps the best model under model/.

        A signal to stop ends it early: then nothing is recorded, and `evaluation_owed` says so until it is made.
        """
        if self.eval_set is None or not len(self.eval_set.inputs):
            return {}
        limit = self.train.eval_limit
        if final and self.train.final_eval_limit not in (None, limit):
            # Which model is the best is settled on the puzzles of the evaluations on the way.
            self.evaluate(bar)
            if self.evaluation_owed:
                return {}
            limit = self.train.final_eval_limit
        start = time.perf_counter()
        with self.ema.applied() if self.ema is not None else contextlib.nullcontext(), self.uncaptured():
            sums = evaluate_model(
                self.model,
                self.eval_set.select(slice(limit or None)),
                batch_size=self.train.eval_batch_size or self.local_batch,
                rank=self.rank,
                world=self.world,
                dtype=torch.bfloat16 if self.bf16 else torch.float32,
                stop=lambda: self.signals is not None and self.signals.received,
            )
            self.evaluation_owed = self.agree(sums is None)
            if self.evaluation_owed:
                return {}
            if self.world > 1:
                total = torch.tensor(list(sums.values()), dtype=torch.float64).to(self.device, torch.float32)
                dist.all_reduce(total)
                sums = dict(zip(sums, total.tolist()))
            n = sums.pop("n")
            result = {name: value / n for name, value in sums.items()}
            self.record({f"eval/{name}": value for name, value in result.items()})
            # A final evaluation on other puzzles does not compare with those on the way; a resumed run may have
            # changed how many those are, and then the comparison starts anew.
            apart = final and limit != self.train.eval_limit
            best = not self.best or (n != self.best["n"] or result["exact_accuracy"] >= self.best["exact_accuracy"])
            if best and not (apart and self.best):
                failure = None
                try:
                    self.save_model("model")
                except (OSError, SafetensorError) as error:
                    failure = error
                if self.agree(failure is not None):
                    self.say(f"WARNING: the best model so far could not be written ({failure}). Free some disk space.")
                else:
                    self.best = {"step": self.step, "n": int(n), **result}
        text = ", ".join(f"{name} {value:.4f}" for name, value in result.items())
        line = f"step {self.step}: {text} ({int(n)} puzzles, {time.perf_counter() - start:.1f} s)"
        if bar is not None and self.is_main:
            bar.write(line, file=bar.fp)
        else:
            self.say(line)
        return {"n": int(n), **result}

    def uncaptured(self) -> contextlib.AbstractContextManager:
        """Eager blocks where the compiled ones are CUDA graphs: solving keeps states that a graph would overwrite."""
        captured = self.stacks and self.compile_mode in ("reduce-overhead", "max-autotune")
        return torch.compiler.set_stance("force_eager") if captured else contextlib.nullcontext()

    def plain_recipe(self) -> dict[str, Any]:
        """The recipe as run.json holds it."""
        return json.loads(json.dumps(self.recipe.flat(), default=str))

    def save_model(self, name: str) -> None:
        """A model folder as the Hub wants it: weights, config, processor and the code that travels."""
        if not self.is_main:
            return
        target = self.output_dir / name
        temporary, old = (self.output_dir / f".{name}.{end}" for end in ("tmp", "old"))
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        write_model_folder(self.model, self.config, temporary)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old, ignore_errors=True)

    def tidy_models(self, restore: bool) -> None:
        """Put right what a kill left while a model folder was written: the one before, and no parts of a new one.

        Without `restore` nothing comes back: a run that starts anew has no model yet.
        """
        for name in ("model", "model_last"):
            target, old = self.output_dir / name, self.output_dir / f".{name}.old"
            if restore and old.is_dir() and not target.exists():
                os.replace(old, target)
        for left in self.output_dir.glob(".*model*"):  # `..model.tmp.tmp-…` is save_release's own
            if re.match(r"\.+model(_last)?\.(tmp|old)", left.name):
                shutil.rmtree(left, ignore_errors=True)

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> bool:
        """Write checkpoint_<step>; a full disk costs this checkpoint, not the run."""
        self.check_loss()
        if not all(torch.stack([torch.isfinite(p).all() for p in self.model.parameters()]).tolist()):
            # A finite loss says nothing of the update that followed it.
            raise BadLoss(f"The update of optimizer step {self.step} left weights that are no finite numbers.")
        if self.agree(self.is_main and self.store.holds(self.step)):
            return True
        for attempt in (1, 2):
            error = self._try_save()
            failed = self.agree(error is not None)
            if not failed:
                return True
            if self.is_main:
                self.store.sweep()
                if attempt == 1 and len(self.store.found()) > 1:
                    self.say(f"Checkpoint {self.step} could not be written ({error}); deleting older ones.")
                    self.store.prune(1)
                    continue
            if self.world > 1 and attempt == 1:
                continue
            break
        self.say(
            f"WARNING: checkpoint {self.step} could not be written ({error}). Training goes on; the newest complete "
            f"one is {self.store.found()[-1][1] if self.store.found() else 'none'}. Free some disk space."
        )
        return False

    def _try_save(self) -> Exception | None:
        step, error = self.step, None
        temporary = self.store.folder / f".checkpoint_{step}.tmp"
        try:
            if self.is_main:
                self.store.begin(step)
        except (OSError, SafetensorError) as failure:
            error = failure
        self.accelerator.wait_for_everyone()
        try:
            if error is None:
                save_tensors(self._rank_state(), temporary / f"carry_{self.rank}.safetensors")
                if self.is_main:
                    self._save_shared(temporary)
        except (OSError, SafetensorError) as failure:
            error = failure
        if self.world > 1 and self.agree(error is not None):
            return error or OSError(errno.EIO, "another process could not write its part")
        try:
            if error is None and self.is_main:
                self.store.finish(temporary, step)
        except OSError as failure:
            error = failure
        return error

    def _rank_state(self) -> dict[str, Tensor]:
        state = {**self.slots.state(), "totals": self.totals, "rng.cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _save_shared(self, folder: Path) -> None:
        save_tensors(self.model.state_dict(), folder / "model.safetensors")
        tensors, values = self.optimizers.state()
        save_tensors(tensors, folder / "optimizer.safetensors")
        if self.ema is not None:
            save_tensors(self.ema.shadow, folder / "ema.safetensors")
        state = {
            "step": self.step,
            "since_log": self.since_log,
            "world_size": self.world,
            "best": self.best,
            "seconds": self.seconds,
            "speed": self.speed,
            "last_metrics": self.last_metrics,
            "first_step_seconds": self.first_step_seconds,
            "earlier_runs": self.earlier_runs,
            "evaluation_owed": self.evaluation_owed,
            "bf16": self.bf16,
            "optimizer_values": values,
            "recipe": self.recipe.flat(),
            "model_config": self.config.to_dict(),
            "max_steps": self.max_steps,
            "data": self.data,
            "sampler": {"seed": self.train.seed, "next_step": self.step + 1},
        }
        (folder / "state.json").write_text(json.dumps(state, indent=1))

    def resume(self) -> bool:
        """Go on from the newest complete checkpoint; False where there is none."""
        path = self.store.newest()
        self.accelerator.wait_for_everyone()  # everybody has looked
        if self.is_main and self.store.folder.is_dir():
            self.store.set_aside(-1 if path is None else read_state(path)["step"])
        if path is None:
            return False
        state = read_state(path)
        self._refuse_changes(path, state)
        if state["step"] > self.max_steps:
            raise RunError(f"{path} has done {state['step']} steps already, more than max_steps={self.max_steps}.")
        if state.get("bf16", self.bf16) != self.bf16:
            now, then = ("bf16", "fp32") if self.bf16 else ("fp32", "bf16")
            self.say(f"WARNING: the run was computed in {then} and goes on in {now}; mixed_precision= decides.")
        self.model.load_state_dict(read_tensors(path / "model.safetensors"))
        self.optimizers.load_state(read_tensors(path / "optimizer.safetensors"), state["optimizer_values"])
        if self.ema is not None:
            self.ema.load(read_tensors(path / "ema.safetensors"))
        self.step, self.since_log = state["step"], state["since_log"]
        self.best, self.seconds = state["best"], state["seconds"]
        self.speed = state.get("speed", self.speed)
        self.last_metrics = state.get("last_metrics", self.last_metrics)
        self.first_step_seconds = state.get("first_step_seconds", self.first_step_seconds)
        self.earlier_runs = state.get("earlier_runs", self.earlier_runs)
        self.evaluation_owed = state.get("evaluation_owed", False)
        if (state["data"]["eval"] or {}).get("fingerprint") != (self.data["eval"] or {}).get("fingerprint"):
            self.best = {}  # of other puzzles
        if (cycles := self.train.cycles_at(self.step)) is not None:
            self.config.l_cycles, self.config.h_cycles = cycles
        if state["world_size"] == self.world:
            mine = read_tensors(path / f"carry_{self.rank}.safetensors")
            self.slots.load(mine)
            self.totals.copy_(mine["totals"])
            torch.set_rng_state(mine["rng.cpu"])
            if self.device.type == "cuda" and "rng.cuda" in mine:
                torch.cuda.set_rng_state(mine["rng.cuda"], self.device)
        else:
            self.since_log = 0
            self.say(
                f"The checkpoint was written by {state['world_size']} processes, now there are {self.world}: its "
                "carry is dropped, every slot starts a fresh puzzle. Weights, optimizers and step go on."
            )
        self.say(f"Resumed from {path}: {self.step} of {self.max_steps} steps done.")
        return True

    def _refuse_changes(self, path: Path, state: dict[str, Any]) -> None:
        allowed = set(FREE_ON_RESUME)
        # With a rate that does not depend on the last step, a longer or shorter budget changes no weight.
        if self.train.lr_min_ratio == 1.0:
            allowed |= {"max_steps", "epochs"}
        # A checkpoint of an older version lacks keys that came since: it ran with what is now their default.
        old = {**asdict(TrainConfig(max_steps=1)), "max_steps": None, **state["recipe"]}
        new = self.recipe.flat()
        same_data = state["data"]["train"]["fingerprint"] == self.data["train"]["fingerprint"]
        if same_data:
            allowed.add("data")  # the same puzzles may lie elsewhere
        # A model key that only one side names is compared with what the other side's config has there.
        for named, other, config in ((new, old, state.get("model_config")), (old, new, self.config.to_dict())):
            for key in MODEL_FIELDS:
                if key in named and key not in other and key in (config or {}):
                    other[key] = config[key]
        changed = recipe_differences(old, new, allowed)
        if not changed and not same_data:
            changed = ["the training data has changed since"]
        if changed:
            raise RunError(
                f"{path} was written with another recipe, so the run cannot go on from it:\n  "
                + "\n  ".join(changed)
                + "\nResume with the old values, or start a new run in another --output-dir."
            )

    def _forget_after(self, step: int) -> None:
        """Drop lines of metrics.jsonl that the resumed run will write again."""
        path = self.output_dir / "metrics.jsonl"
        if path.is_file():
            lines = []
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the line that a kill cut in half
                    row = json.loads(line)
                    # Of this step an evaluation that is owed, or the final one, is made again.
                    owed = row["step"] == step and (step >= self.max_steps or self.evaluation_owed)
                    again = owed and any(key.startswith("eval/") for key in row)
                    if row["step"] <= step and not again:
                        lines.append(line + "\n")
            temporary = path.with_name(".metrics.jsonl.tmp")
            temporary.write_text("".join(lines))
            os.replace(temporary, path)

    # ---- the end ----------------------------------------------------------------------------------------------------

    trackers: list[Any] = []
    signals: "Signals | None" = None
    evaluation_owed = False  # an evaluation of this step was cut short by a signal
    last_metrics: dict[str, Any] = {}
    born = 0.0  # when the run began to set itself up
    first_step_seconds = 0.0

    def report(self, status: str, wall_seconds: float, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """The contents of run.json."""
        seconds = max(1e-9, self.speed["seconds"])
        tflops = self.speed["flops"] / seconds / 1e12
        peak = peak_tflops(self.device)
        machine = None
        if status == "finished":
            machine = matmul_tflops(self.device, torch.bfloat16 if self.bf16 else torch.float32)
        return {
            "status": status,
            "name": self.train.run_name or self.output_dir.name,
            "task": self.config.task,
            "grid": [self.config.grid_height, self.config.grid_width],
            "variant": self.recipe.model["variant"],
            "seed": self.train.seed,
            "command": command_line(),
            "steps": self.step,
            "max_steps": self.max_steps,
            "metrics": {"eval": evaluation or None, "best": self.best or None, "train": self.last_metrics or None},
            "wall_seconds": round(self.seconds, 2),
            "session_seconds": round(wall_seconds, 2),
            "earlier_runs": self.earlier_runs,
            "seconds_to_first_step": round(self.first_step_seconds, 2),
            "steps_per_second": self.speed["steps"] / seconds,
            "puzzles_per_second": self.rate(),
            "tflops": tflops,
            "tflops_peak_of_device": peak,
            "share_of_peak": None if peak is None else tflops / (peak * self.world),
            "tflops_of_large_matmul": machine,
            "share_of_large_matmul": None if not machine else tflops / (machine * self.world),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "precision": "bf16 states, fp32 weights" if self.bf16 else "fp32",
            "peak_memory_bytes": peak_memory(self.device),
            "data": self.data,
            "config": self.recipe.flat(),
            "model_config": self.config.to_dict(),
            **environment(self.device, self.world),
        }


def start_from(model: AirModel, source: str) -> str:
    """Copy the weights of another model; what has another shape (tokens, places of another grid) stays fresh.

    A model of half the width is widened, so that it computes what it did (`widened`).

    Returns a sentence that says so. Raises RunError if no block fits.
    """
    from air_model.pipeline_air import load_model

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
    return f"Starting from {source}{how}" + (
        f"; fresh because of another shape: {', '.join(fresh)}." if fresh else "."
    )


def _describe(puzzles: Any) -> dict[str, Any]:
    return {"source": puzzles.source, "n": len(puzzles), "fingerprint": puzzles.fingerprint}


def _mean_of(pieces: list[Any], name: str, device: torch.device) -> Tensor:
    values = [getattr(piece, name) for piece in pieces]
    if values[0] is None:
        return torch.zeros((), device=device)
    return torch.stack([v.detach() for v in values]).float().mean()


def _is_compiler_error(error: Exception) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")) or "compil" in str(error)


def evaluate_model(
    model: AirModel,
    puzzles: Any,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    dtype: torch.dtype | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Sums over this process's share of the puzzles, after all ACT steps: n, exact, cell and valid accuracy.

    `stop` is asked before every batch; None if it said yes.
    """
    mine = puzzles.select(slice(rank, None, world))
    inputs, labels, n = mine.inputs, mine.labels, len(mine)
    keys = ("n", "exact_accuracy", "cell_accuracy", "valid_accuracy")
    if n == 0:
        return dict.fromkeys(keys, 0.0)
    batch_size = min(batch_size, n)
    # A last batch of another size would make a compiled model compile again: fill it up, and do not count those.
    padded = np.resize(np.arange(n), -(-n // batch_size) * batch_size)
    pieces = []
    for rows in padded.reshape(-1, batch_size):
        if stop():
            return None
        solution = model.solve(
            torch.from_numpy(inputs[rows]).long(),
            torch.from_numpy(mine.puzzle_ids[rows]).long(),
            batch_size=batch_size,
            dtype=dtype,
            return_logits=False,
        )
        pieces.append(solution.predictions)
    answers = torch.cat(pieces)[:n].cpu().numpy().astype(np.uint8)
    known = labels != 0
    right = (answers == labels) & known
    valid = mine.task.verdicts(inputs, answers).valid
    values = (n, (right == known).all(1).sum(), (right.sum(1) / known.sum(1).clip(1)).sum(), np.sum(valid))
    return dict(zip(keys, map(float, values)))


def write_model_folder(model: AirModel, config: AirConfig, folder: Path) -> None:
    """save_pretrained of the model and of its processor; the travelling code files come with them."""
    from transformers.utils import logging

    bar, _ = logging.is_progress_bar_enabled(), logging.disable_progress_bar()
    try:
        save_release(model, folder, AirProcessor.from_config(config))
    finally:
        if bar:
            logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------------------------------
# The world outside


class Patient:
    """A stream whose writes may fail: a log on a full disk, or a reader that has gone, is no reason to stop."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Signals:
    """SIGTERM (Slurm preemption, `kill`) and Ctrl-C ask for a checkpoint and a clean end; a second Ctrl-C ends now.

    A second SIGTERM is nothing new: under Slurm a process gets one from Slurm and one from its launcher.
    """

    def __init__(self) -> None:
        self.received = False
        self.before: dict[int, Any] = {}

    def install(self, *numbers: int) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in numbers:
                self.before[number] = signal.signal(number, self)

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


def end_with_launcher() -> None:
    """`accelerate launch` of one process does not pass SIGTERM on: ask Linux to, when the launcher dies."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # 1 = PR_SET_PDEATHSIG


def drop_fsdp() -> bool:
    """Whether the launcher asked for FSDP; from then on it is DDP.

    Sharding saves memory that models of this size do not need, and Muon wants whole matrices.
    """
    return os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")


def refuse_lonely_process(world: int, script: str = "train_accelerate.py") -> None:
    """`accelerate launch --cpu --num_processes 2` starts ONE process and says nothing: refuse to work alone then."""
    if world > 1:
        return
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    asked = None
    if launched and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        asked = "accelerate launch was given more than one process or machine"
    elif int(os.environ.get("WORLD_SIZE") or 1) > 1:
        asked = f"WORLD_SIZE={os.environ['WORLD_SIZE']}"
    elif int(os.environ.get("SLURM_NTASKS") or 1) > 1 and "SLURM_STEP_ID" in os.environ and not launched:
        # Inside srun (not just sbatch): every task would train the whole run by itself, into the same folder.
        asked = f"SLURM_NTASKS={os.environ['SLURM_NTASKS']}"
    if asked:
        raise RunError(
            f"More processes were asked for ({asked}), but only this one was started, so it would work alone. Start "
            f"CPU processes with `torchrun --nproc_per_node N {script} ...`, several GPUs with `accelerate "
            "launch --config_file recipes/accelerate/8_gpus.yaml ...`, or ask for one process."
        )


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def lasting_id(output_dir: Path) -> str:
    """The id under which every session of a run reports to W&B."""
    path = output_dir / ".wandb_id"
    if not path.is_file():
        path.write_text(uuid.uuid4().hex[:12])
    return path.read_text()


def make_trackers(names: str, output_dir: Path, config: dict[str, Any], run_name: str, step: int = 0) -> list[Any]:
    """Accelerate's trackers: "auto" is tensorboard where it is installed; none is required or asks for an account."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    if names == "none" or not names:
        return []
    wanted = ["tensorboard"] if names == "auto" else [name.strip() for name in names.split(",")]
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    for name in wanted:
        if name not in known:
            raise RunError(f"There is no tracker {name!r}. Known: {', '.join(known)}, or none.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = {str(kind): LOGGER_TYPE_TO_CLASS[str(kind)] for kind in filter_trackers(wanted, output_dir)}
    if missing := [name for name in wanted if name not in classes and names != "auto"]:
        raise RunError(f"The tracker {missing[0]} is not installed. Run `pip install {missing[0]}`, or trackers=none.")
    trackers = []
    for kind in classes.values():
        # One folder whatever the run's name, so that nothing of the run's own is in its way; the others have a
        # project, and the run's name within it. What a resumed run does again must not be there twice.
        if str(kind.name) == "tensorboard":
            tracker = kind("tensorboard", logging_dir=output_dir, purge_step=step + 1)
        elif kind.requires_logging_directory:
            tracker = kind(run_name or "air", logging_dir=output_dir / "trackers")
        elif str(kind.name) == "wandb":
            tracker = kind("air", name=run_name or output_dir.name, resume="allow", id=lasting_id(output_dir))
        elif str(kind.name) == "trackio":
            tracker = kind("air", name=run_name or output_dir.name, resume="allow")
        else:
            tracker = kind("air")
        if hasattr(tracker, "start"):
            tracker.start()
        # Tensorboard takes no lists or None.
        flat = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in config.items()}
        tracker.store_init_configuration(flat)
        trackers.append(tracker)
    return trackers


def draw_curve(metrics: Path, target: Path) -> None:
    """The learning curve of metrics.jsonl as a PNG: loss, and exact accuracy of training and evaluation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = []
    for line in metrics.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # half a line, of a kill
            rows.append(json.loads(line))
    rows = [row for row in rows if isinstance(row, dict) and "step" in row]

    def series(key: str) -> tuple[list[int], list[float]]:
        points = [(row["step"], row[key]) for row in rows if key in row]
        return [p[0] for p in points], [p[1] for p in points]

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.plot(*series("train/loss"), color="#000000", linewidth=1)
    left.set(xlabel="optimizer step", ylabel="training loss")
    right.plot(*series("train/exact_accuracy"), color="#0072B2", linewidth=1, label="training, halted slots")
    right.plot(*series("eval/exact_accuracy"), color="#D55E00", marker="o", markersize=3, label="evaluation")
    cells = series("eval/cell_accuracy")
    right.plot(
        *cells, color="#009E73", linestyle="--", marker="o", markersize=3, linewidth=1, label="evaluation, cells"
    )
    right.set(xlabel="optimizer step", ylabel="accuracy", ylim=(0, 1.02))
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    temporary = target.with_name(f".{target.name}.tmp")
    figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    os.replace(temporary, target)


def leave_curve(output_dir: Path) -> None:
    """Write curve.png if there is anything to draw; a picture that cannot be made costs no finished run."""
    try:
        if (output_dir / "metrics.jsonl").is_file():
            draw_curve(output_dir / "metrics.jsonl", output_dir / "curve.png")
    except ImportError:
        pass
    except (OSError, ValueError, TypeError) as error:
        print(
            f"WARNING: curve.png could not be drawn ({error}); the same command with --resume tries again.",
            file=Patient(sys.stderr),
        )


def load_data(recipe: Recipe, smoke: bool = False) -> tuple[Any, Any | None]:
    """(training set, evaluation set or None), cut to the sizes that the recipe asks for."""
    from air_model.datasets_builders import load_puzzles

    config = recipe.train
    if not config.data:
        raise RunError("The recipe names no data. Add data=...: a Hub id, a folder of build_dataset.py, or a CSV.")
    task = _task_of(recipe)
    train_set = load_puzzles(config.data, config.train_split, task=task)
    if config.train_size is not None and config.train_size < len(train_set):
        rows = np.random.default_rng(config.data_seed).permutation(len(train_set))[: config.train_size]
        train_set = train_set.select(np.sort(rows))
    elif config.train_size is not None and config.train_size > len(train_set):
        print(f"train_size={config.train_size}, but {config.data} has {len(train_set)} training rows: all are used.",
              file=sys.stderr)  # fmt: skip
    if config.eval_data is None and Path(config.data).is_file():
        print(
            f"{config.data} is one file: nothing is held out to evaluate on. Give eval_data=... for that.",
            file=sys.stderr,
        )
        return train_set, None
    limits = [config.eval_limit, config.eval_limit if config.final_eval_limit is None else config.final_eval_limit]
    source, limit = config.eval_data or config.data, max(limits) if all(limits) else None
    if config.eval_split != "auto":
        return train_set, load_puzzles(source, config.eval_split, task=task, limit=limit)
    try:
        return train_set, load_puzzles(source, "dev", task=task, limit=limit)
    except FileNotFoundError:
        return train_set, load_puzzles(source, "test", task=task, limit=limit)


def _task_of(recipe: Recipe) -> Any | None:
    """The task as far as the recipe itself fixes it; None leaves it to the data."""
    m = recipe.model
    if m.get("task") in ("sudoku", "maze") and m.get("grid_height"):
        return make_task(m["task"], m["grid_height"], m.get("grid_width"), m.get("box_height"), m.get("box_width"))
    return None


def run_training(
    recipe: Recipe,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    append_runs: Path | None = None,
    data: tuple[Any, Any | None] | None = None,
) -> dict[str, Any]:
    """A whole run: data, training, checkpoints, evaluation, files. Returns the contents of run.json.

    Args:
        resume: go on from the newest complete checkpoint under output_dir, or start where there is none.
        overwrite: delete an earlier run in output_dir. append_runs: a .jsonl to which run.json is appended at the end.
        data: (training, evaluation) PuzzleSets instead of those that the recipe names.
    """
    start = time.perf_counter()
    output_dir = Path(output_dir)
    refuse_lonely_process(int(os.environ.get("WORLD_SIZE") or 1))
    first_process = os.environ.get("RANK", "0") == "0"
    if append_runs is not None and first_process:
        Path(append_runs).parent.mkdir(parents=True, exist_ok=True)  # a wrong place is found before the training
    signals = Signals()
    with alone_in(output_dir) if first_process else contextlib.nullcontext():
        try:
            # From the start and to the very end; Ctrl-C only once there is something to save.
            signals.install(signal.SIGTERM)
            return _run_training(
                recipe, output_dir, resume, overwrite, append_runs, data, start, first_process, signals
            )
        finally:
            signals.restore()


def _run_training(
    recipe: Recipe,
    output_dir: Path,
    resume: bool,
    overwrite: bool,
    append_runs: Path | None,
    data: tuple[Any, Any | None] | None,
    start: float,
    first_process: bool,
    signals: Signals,
) -> dict[str, Any]:
    if (output_dir / "run.json").exists() and not resume:
        if not overwrite:
            raise RunError(
                f"{output_dir} already holds a run. Add --resume to go on with it, --overwrite to delete it, or "
                "choose another --output-dir."
            )
    earlier = {}
    with contextlib.suppress(OSError, ValueError):
        earlier = json.loads((output_dir / "run.json").read_text())
    earlier = earlier if isinstance(earlier, dict) else {}
    train_set, eval_set = data or load_data(recipe)
    trainer = Trainer(recipe, output_dir, train_set, eval_set)
    trainer.born = start
    if overwrite and not resume and first_process:  # only now: a recipe that cannot run costs no earlier run
        earlier = {}
        for name in (
            "checkpoints",
            "model",
            "model_last",
            "tensorboard",
            "trackers",
            ".wandb_id",
            "metrics.jsonl",
            "run.json",
            "curve.png",
        ):
            path = output_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()
    output_dir.mkdir(parents=True, exist_ok=True)
    if trainer.is_main:
        trainer.store.sweep()
    resumed = resume and trainer.resume()
    if trainer.is_main:
        trainer.tidy_models(restore=resumed)
    if resume and not resumed:
        trainer.say(f"No complete checkpoint under {output_dir}: starting from the beginning.")
    if not resumed:
        if trainer.is_main:
            trainer.store.set_aside(-1)  # of a run that left no run.json
        trainer.begin()
    if resumed:
        # The final evaluation comes after the last checkpoint: what it settled is in run.json alone.
        settled = (earlier.get("metrics") or {}).get("best") or {}
        same = (earlier.get("data") or {}).get("eval") == trainer.data["eval"]
        if same and trainer.best.get("step", -1) < settled.get("step", -1) <= trainer.step:
            trainer.best = settled
        done = earlier.get("status") == "finished" and earlier.get("steps") == trainer.step == trainer.max_steps
        if done and (output_dir / "model_last").is_dir() and (earlier.get("config") or {}) == trainer.plain_recipe():
            trainer.say(f"This run has finished already: {output_dir / 'run.json'}.")
            if trainer.is_main:
                if append_runs is not None:
                    append_runs_to(append_runs, [earlier])
                if not (output_dir / "curve.png").exists():
                    leave_curve(output_dir)
            trainer.accelerator.wait_for_everyone()
            return earlier
    if trainer.is_main:
        trainer._forget_after(trainer.step)
        trainer.trackers = make_trackers(
            recipe.train.trackers, output_dir, recipe.flat(), recipe.train.run_name, trainer.step
        )
        write_json(output_dir / "run.json", trainer.report("running", 0.0))
    signals.install(signal.SIGINT)
    end_with_launcher()
    evaluation: dict[str, float] = {}
    try:
        trainer.run(signals)
        status = "stopped" if trainer.stop_reason else "finished"
        if status == "finished":
            evaluation = trainer.evaluate(final=True)
            if trainer.evaluation_owed:
                status, trainer.stop_reason = "stopped", "signal"
        if status == "finished":
            try:
                with trainer.ema.applied() if trainer.ema is not None else contextlib.nullcontext():
                    trainer.save_model("model_last")
                    if trainer.is_main and not (output_dir / "model").is_dir():
                        trainer.save_model("model")
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"Training is done, but the model could not be written ({error}). Free some disk space and run "
                    "the same command with --resume: it goes on from the last checkpoint."
                ) from error
        else:
            trainer.say(f"Stopped by {trainer.stop_reason} after step {trainer.step}; --resume goes on from here.")
    except BadLoss as error:
        kept = keep_last_good(trainer)
        if trainer.is_main:
            write_json(output_dir / "run.json", trainer.report("failed", time.perf_counter() - start))
        raise BadLoss(f"{error} {kept} Try a lower learning rate, a longer warm-up or grad_clip=1.") from None
    finally:
        if trainer.is_main:
            for tracker in trainer.trackers:
                try:
                    tracker.finish()
                except OSError as error:
                    trainer.say(f"WARNING: {type(tracker).__name__} could not write its end ({error}).")
    report = trainer.report(status, time.perf_counter() - start, evaluation)
    if trainer.is_main:
        write_json(output_dir / "run.json", report)
        if append_runs is not None and status == "finished":
            append_runs_to(append_runs, [report])
        leave_curve(output_dir)
    trainer.accelerator.wait_for_everyone()
    return report


def keep_last_good(trainer: Trainer) -> str:
    """After a bad loss: keep the weights in memory if they are still good, and say what there is to go on from."""
    good = trainer.world == 1 and all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    if good and trainer.device.type == "cpu" and trainer.step and not int(trainer.first_bad):
        trainer.save()
    newest = trainer.store.found()
    return f"The last good state is {newest[-1][1]}." if newest else "No checkpoint had been written before it."


def smoke_data(task: str, folder: Path) -> dict[str, Any]:
    """Recipe values for a handful of 4 x 4 Sudokus or 6 x 6 mazes, written to `folder`."""
    from air_model.scripts.run_grid import mini_data

    if os.environ.get("RANK", "0") == "0":
        mini_data(task, folder)
    while not (folder / "test.csv").is_file():  # another process of this run writes it
        time.sleep(0.1)
    shape = dict.fromkeys(("grid_height", "grid_width", "box_height", "box_width", "vocab_size"))
    return {**shape, "data": str(folder), "eval_data": None, "eval_split": "auto"}


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True, help="a name in recipes/, or a path to a YAML file")
    parser.add_argument("--output-dir", type=Path, required=True, help="everything that the run writes")
    parser.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint, or start")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in --output-dir")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, 20 steps: does everything work here?")
    parser.add_argument("--append-runs", type=Path, metavar="FILE.jsonl", help="append run.json to this file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of TrainConfig or AirConfig")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        recipe = read_recipe(arguments.recipe, arguments.overrides)
        if arguments.smoke:
            given = {text.partition("=")[0].strip().lstrip("-").replace("-", "_") for text in arguments.overrides}
            small = {**SMOKE, "num_attention_heads": few_heads(recipe.model)}
            small = {k: v for k, v in small.items() if k not in given}
            if "epochs" in given and "max_steps" not in given:
                small["max_steps"] = None
            else:
                small["epochs"] = None
            if "data" not in given:  # needs no network, and no data set
                task = recipe.model.get("task", "sudoku")
                small |= smoke_data(task, arguments.output_dir / f"smoke_data_{task}")
            recipe = make_recipe({**recipe.flat(), **small})
        run_training(
            recipe,
            arguments.output_dir,
            resume=arguments.resume,
            overwrite=arguments.overwrite,
            append_runs=arguments.append_runs,
        )
    except (ValueError, OSError, ImportError, RuntimeError, MemoryError) as error:
        known = not isinstance(error, (RuntimeError, MemoryError)) or is_out_of_memory(error)
        if os.environ.get("AIR_TRACEBACK") or not known:
            raise
        advice = ""
        if isinstance(error, (RuntimeError, MemoryError)):
            advice = (
                " Out of memory. A new run with accumulation=2 computes the same batch in two parts, one with "
                "activation_checkpointing=true keeps less of each; else choose a smaller batch_size. If an evaluation "
                "needed it, --resume with a smaller eval_batch_size goes on."
            )
            error = str(error).partition("\n")[0] or type(error).__name__
        print(f"error: {error}{advice}", file=Patient(sys.stderr))
        return TAKEN if isinstance(error, FolderTaken) else 1
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
