"""Optimizers: the public code's weights after two training steps, and what each optimizer must and must not touch."""

import contextlib
import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import own_process, tiny_model
from test_golden import MARGIN, NAMES, TOLERANCE, distance, in_float64, load_golden, rounding
from torch import nn

from air_model.optim_air import (
    OPTIMIZERS,
    Muon,
    Optimizers,
    PuzzleSignSGD,
    WeightEMA,
    build_optimizers,
    lr_factor,
)
from air_model.publishing.convert import our_name
from air_model.training.batches import Puzzles, Slots, slots_to_refill


class PublicRun:
    """The public code's training run on one batch: slots, optimizers and their published values."""

    def __init__(self, model, numbers, spec):
        self.model, values = model.train(), spec["optimizer"]
        self.optimizers = build_optimizers(
            model,
            "adam_atan2",
            lr=values["lr"],
            betas=tuple(values["betas"]),
            weight_decay=values["weight_decay"],
            atan2_scale=values["atan2_a"],
            puzzle_lr=values["puzzle_emb_lr"],
            puzzle_weight_decay=values["puzzle_emb_weight_decay"],
        )
        self.batch = Puzzles(*(numbers[key].long() for key in ("inputs", "labels", "puzzle_identifiers")))
        self.slots = Slots(model, *self.batch.inputs.shape, torch.device("cpu"))
        self.out = None

    def gradients(self):
        """By name; leaves them in the weights."""
        self.slots.refill(self.batch, self.model.initial_carry(len(self.batch.ids)))
        puzzles = self.slots.puzzles
        self.out = self.model(puzzles.inputs, puzzles.ids, puzzles.labels, self.slots.carry)
        self.out.loss.backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}

    def update(self):
        out, config = self.out, self.model.config
        self.optimizers.step(self.slots.puzzles.ids)
        self.optimizers.zero_grad()
        self.slots.carry, steps = out.carry, out.carry.steps
        q_continue = out.q_continue_logits if config.q_continue else None
        self.slots.halted = slots_to_refill(steps, out.q_halt_logits, q_continue, 0 * steps, config.halt_max_steps)

    def two_steps(self):
        """Every number that is recorded of two steps, under its recorded name."""
        found = {}
        for k in range(2):
            gradients = [g for name, g in self.gradients().items() if "puzzle" not in name]
            found[f"train.{k}.loss"] = self.out.loss * len(self.batch.ids)
            found[f"train.{k}.grad_norm"] = torch.stack([g.norm() for g in gradients]).norm()
            self.update()
            found[f"train.{k}.halted"], found[f"train.{k}.steps"] = self.slots.halted, self.slots.carry.steps
        for name, p in self.model.named_parameters():
            found[f"after.{name}"] = p
        return found


def recorded_numbers(numbers, names):
    """The numbers of the two steps, under our names."""
    ours = {key: value for key, value in numbers.items() if key in names}
    for key in [key for key in numbers if key.startswith("after.")]:
        name = our_name(key.removeprefix("after.model.inner.")) if key != "after.puzzle_emb" else PUZZLES
        name = name if f"after.{name}" in names else name.replace("l_stack.", "stack.")  # the only stack of TRM
        ours[f"after.{name}"] = numbers[key]
    return ours


PUZZLES = "puzzle_embedding.weight"
# Its recorded second step is itself 1e-3 from float64's: there, as far as errors of float32's size go may ours be off.
GROWS = "TRM_mlp"


def check_two_steps(name, model, numbers, spec):
    """Raises where two steps in float64 do not give the recorded losses, gradients and weights."""

    def run():
        with in_float64(model) as wide:
            return PublicRun(wide, numbers, spec).two_steps()

    found, perturbed = run(), []
    for seed in range(3 if name == GROWS else 0):
        with rounding(seed, 2**-23):
            perturbed.append(run())
    for key, theirs in recorded_numbers(numbers, found).items():
        ours = found[key]
        if key.endswith((".halted", ".steps")):
            assert ours.tolist() == theirs.tolist(), key
            continue
        off = max((distance(other[key], ours) for other in perturbed), default=0) if "train.0" not in key else 0
        # As a norm: atan2 turns the rounding of a gradient near zero into a visible part of one weight's step.
        error = distance(ours.reshape(theirs.shape), theirs)
        assert error <= max(TOLERANCE, MARGIN * off), f"{key}: {error:.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_both_optimizers_give_the_public_weights(name, tmp_path):
    check_two_steps(name, *load_golden(name, tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_and_updates_in_float32_are_float64s_from_the_same_weights(name, tmp_path):
    model, numbers, spec = load_golden(name, tmp_path)
    narrow = PublicRun(copy.deepcopy(model), numbers, spec)
    for k in range(2):
        ours = narrow.gradients()
        with in_float64(model) as wide:
            wide.load_state_dict({key: value.double() for key, value in narrow.model.state_dict().items()})
            runs = []
            for seed in (None, 0, 1, 2):
                run = PublicRun(copy.deepcopy(wide), numbers, spec)
                run.slots.load({key: copy.deepcopy(value) for key, value in narrow.slots.state().items()})
                run.slots.carry.z_h, run.slots.carry.z_l = (narrow.slots.carry[z].double() for z in ("z_h", "z_l"))
                with contextlib.nullcontext() if seed is None else rounding(seed, 2**-23):
                    runs.append(run.gradients())
        exact, *perturbed = runs
        assert ours.keys() == exact.keys()
        grown = max(distance(other[key], exact[key]) for other in perturbed for key in exact)
        for key, gradient in exact.items():
            error = distance(ours[key], gradient)
            assert error <= MARGIN * grown, f"step {k}, {key}: {error:.1e}, {grown:.1e}"
        narrow.update()


def test_an_update_in_float32_is_float64s_from_the_same_gradients(tmp_path):
    model, numbers, spec = load_golden("Lx_H", tmp_path)
    runs = [PublicRun(m, numbers, spec) for m in (copy.deepcopy(model).double(), model)]
    for _ in range(2):
        runs[1].gradients()
        for wide, narrow in zip(*(run.model.parameters() for run in runs)):
            wide.grad = narrow.grad.double()
        for run in runs:
            run.optimizers.step(runs[1].slots.puzzles.ids)
        runs[1].optimizers.zero_grad()
    for (name, ours), wide in zip(model.named_parameters(), runs[0].model.parameters()):
        assert distance(ours, wide) <= 1e-6, name


def reversed_gradients(self, ids=None):
    for p in [*self.params, self.puzzle.table]:
        p.grad = None if p.grad is None else -p.grad
    STEP(self, ids)


def without_decay(self, ids=None):
    for optimizer in self.main:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    STEP(self, ids)


def without_memory(self, ids=None):
    for optimizer in self.main:
        optimizer.state.clear()
    STEP(self, ids)


STEP = Optimizers.step
MUTATIONS = {
    "a step uphill": (Optimizers, "step", reversed_gradients),
    "no weight decay": (Optimizers, "step", without_decay),
    "averages that are not kept": (Optimizers, "step", without_memory),
    "a puzzle table that stays": (PuzzleSignSGD, "step", lambda self, ids: None),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_update_is_no_rounding_error(mutation, monkeypatch, tmp_path):
    monkeypatch.setattr(*MUTATIONS[mutation])
    with pytest.raises(AssertionError, match=r"after|train\.1"):
        check_two_steps("Lx_H", *load_golden("Lx_H", tmp_path))


@pytest.mark.parametrize("name", ["adam_atan2", "adamw", "muon", "muon_adamw"])
def test_no_optimizer_but_its_own_ever_holds_the_puzzle_table(name):
    model = tiny_model()
    optimizers = build_optimizers(model, name)
    held = [id(p) for p in optimizers.params]
    assert id(model.puzzle_embedding.weight) not in held
    everything = {id(p) for n, p in model.named_parameters() if "puzzle" not in n}
    assert set(held) == everything and len(held) == len(everything)


def test_muon_takes_the_matrices_of_the_blocks_and_leaves_embeddings_and_heads():
    model = tiny_model("L2x_H2x_prepend")
    others, matrices = build_optimizers(model, "muon").main
    inside = {id(p) for n, p in model.named_parameters() if n.startswith("stack.")}
    assert {id(p) for p in matrices.param_groups[0]["params"]} == inside
    assert not inside & {id(p) for p in others.param_groups[0]["params"]}


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_muon_on_a_cpu_follows_torchs_up_to_its_bfloat16(shape):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for _ in range(2)]
    weights[1].data.copy_(weights[0])
    arguments = {"lr": 0.1, "weight_decay": 0.1}
    optimizers = [Muon([weights[0]], **arguments), torch.optim.Muon([weights[1]], **arguments)]
    for _ in range(3):
        gradient = torch.randn(shape)
        for weight, optimizer in zip(weights, optimizers):
            weight.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(*weights, atol=0.02, rtol=0.02)


def test_sign_sgd_moves_and_decays_the_rows_of_the_batch_only():
    table = nn.Parameter(torch.ones(5, 3))
    table.grad = torch.zeros(5, 3)
    table.grad[1], table.grad[2], table.grad[4] = 7.0, -0.1, 3.0
    PuzzleSignSGD(table, lr=0.1, weight_decay=0.5).step(torch.tensor([1, 2, 1, 3]))
    moved = [1.0, 0.95 - 0.1, 0.95 + 0.1, 0.95, 1.0]  # row 3 was seen without a gradient, row 4 was not seen
    torch.testing.assert_close(table.detach(), torch.tensor(moved)[:, None].expand(5, 3))


def test_the_schedule_warms_up_stays_and_falls():
    published = {"max_steps": 100, "warmup_steps": 10, "min_ratio": 1.0}
    assert [lr_factor(s, **published) for s in (1, 5, 10, 99)] == [0.1, 0.5, 1.0, 1.0]
    cosine = {**published, "min_ratio": 0.1}
    assert lr_factor(55, **cosine) == pytest.approx(0.55) and lr_factor(100, **cosine) == pytest.approx(0.1)
    tail = {**published, "min_ratio": 0.0, "schedule": "linear_tail", "tail_share": 0.2}
    assert [lr_factor(s, **tail) for s in (50, 80, 90, 100)] == pytest.approx([1.0, 1.0, 0.5, 0.0])


def test_the_average_of_weights_applies_inside_and_nowhere_else():
    model = tiny_model()
    ema = WeightEMA(model, 0.9)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    ema.update(1)
    with ema.applied():
        torch.testing.assert_close(model.lm_head.weight.detach(), before["lm_head.weight"] + 0.1)
        torch.testing.assert_close(model.puzzle_embedding.weight.detach(), before["puzzle_embedding.weight"] + 1.0)
    torch.testing.assert_close(model.lm_head.weight.detach(), before["lm_head.weight"] + 1.0)


def test_adam_atan2_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "adam_atan2_pytorch", None)
    with pytest.raises(ImportError, match="pip install adam-atan2-pytorch"):
        build_optimizers(tiny_model(), "adam_atan2")


def test_an_unknown_optimizer_lists_the_known_ones():
    with pytest.raises(ValueError, match="adam_atan2"):
        build_optimizers(tiny_model(), "adam")


def move_puzzle_table(rank: int, world: int, folder: Path) -> None:
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    ids = torch.tensor([1, 0, 1, 1])[rank * 4 // world : (rank + 1) * 4 // world]
    for rows in (2, 50):
        table = nn.Parameter(torch.ones(rows, 2))
        signed = torch.tensor([[1.0, -3.0]]) * (1 + ids[:, None]) * (1 - 2 * rank)
        table.grad = torch.zeros(rows, 2).index_add_(0, ids, signed)
        if world == 1:
            table.grad = torch.tensor([[0.0, 0.0]] * rows)
            for i, g in ((1, 2.0), (0, 1.0), (1, -2.0), (1, -2.0)):
                table.grad[i] += g * torch.tensor([1.0, -3.0])
        PuzzleSignSGD(table, lr=0.1, weight_decay=0.5).step(ids)
        torch.save(table.data, f"{folder}/{rank}-{world}-{rows}.pt")


def test_two_processes_move_the_puzzle_table_as_one_does(tmp_path):
    move_puzzle_table(0, 1, tmp_path)
    processes = [own_process(move_puzzle_table, rank, 2, tmp_path) for rank in (0, 1)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    for rows in (2, 50):
        alone, first, second = (
            torch.load(tmp_path / f"{name}-{rows}.pt", weights_only=True) for name in ("0-1", "0-2", "1-2")
        )
        assert torch.equal(first, second) and torch.equal(first, alone) and not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gains_of_queries_and_keys_go_to_adam_without_decay_and_into_the_average(name):
    model = tiny_model(qk_norm=True)
    gains = {key: p for key, p in model.named_parameters() if "_norm." in key}
    assert len(gains) == 2 * len(model.stack.layers) and gains.keys() < WeightEMA(model, 0.9).weights.keys()
    optimizers = build_optimizers(model, name, lr=0.1, weight_decay=1.0)
    decayed, undecayed = optimizers.main[0].param_groups
    assert [id(p) for p in undecayed["params"]] == [id(p) for p in gains.values()] and not undecayed["weight_decay"]
    assert decayed["weight_decay"] == 1.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers.step()
    assert all(torch.equal(p, torch.ones_like(p)) for p in gains.values())
