"""Optimizers: the public code's weights after two training steps, and what each optimizer must and must not touch."""

import json
import math

import pytest
import torch
from conftest import GOLDEN, tiny_batch, tiny_model
from safetensors.torch import load_file
from torch import nn

from air_model.optim_air import Muon, PuzzleSignSGD, WeightEMA, build_optimizers, lr_factor
from air_model.scripts.convert_checkpoint import convert, our_name
from air_model.training_air import Puzzles, Slots, halt

NAMES = sorted(p.parent.name for p in GOLDEN.glob("*/golden.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_of_both_optimizers_give_the_public_weights(name, tmp_path):
    folder = GOLDEN / name
    torch.save(load_file(folder / "step_10.safetensors"), tmp_path / "step_10")
    (tmp_path / "all_config.yaml").write_text((folder / "all_config.yaml").read_text())
    spec, numbers = json.loads((folder / "spec.json").read_text()), load_file(folder / "golden.safetensors")
    model, values = convert(tmp_path / "step_10", spec["seq_len"]).train(), spec["optimizer"]
    optimizers = build_optimizers(
        model,
        "adam_atan2",
        lr=values["lr"],
        betas=tuple(values["betas"]),
        weight_decay=values["weight_decay"],
        atan2_scale=values["atan2_a"],
        puzzle_lr=values["puzzle_emb_lr"],
        puzzle_weight_decay=values["puzzle_emb_weight_decay"],
    )
    batch = Puzzles(*(numbers[key].long() for key in ("inputs", "labels", "puzzle_identifiers")))
    slots = Slots(model, *batch.inputs.shape, torch.device("cpu"))
    for k in range(2):
        slots.refill(model, batch)
        out = model(slots.puzzles.inputs, slots.puzzles.ids, slots.puzzles.labels, slots.carry)
        out.loss.backward()
        norm = torch.stack([p.grad.norm() for p in optimizers.params if p.grad is not None]).norm()
        optimizers.step(slots.puzzles.ids)
        optimizers.zero_grad()
        slots.carry = out.carry
        q_continue = out.q_continue_logits if model.config.q_continue else None
        limit = model.config.halt_max_steps
        slots.halted = halt(out.carry.steps, out.q_halt_logits, q_continue, torch.zeros_like(out.carry.steps), limit)
        assert slots.halted.int().tolist() == numbers[f"train.{k}.halted"].tolist()
        assert slots.carry.steps.tolist() == numbers[f"train.{k}.steps"].tolist()
        torch.testing.assert_close(
            out.loss.detach()[None].float() * len(batch.ids), numbers[f"train.{k}.loss"], rtol=1e-4, atol=0
        )
        torch.testing.assert_close(norm[None], numbers[f"train.{k}.grad_norm"], rtol=1e-4, atol=0)
    ours = dict(model.named_parameters())
    for key in [key for key in numbers if key.startswith("after.")]:
        mine = (
            our_name(key.removeprefix("after.model.inner."))
            if key != "after.puzzle_emb"
            else "puzzle_embedding.weight"
        )
        mine = mine if mine in ours else mine.replace("l_stack.", "stack.")  # the only stack of TRM
        theirs = numbers[key].reshape(ours[mine].shape)
        # As a norm: atan2 turns the rounding of a gradient near zero into a visible part of one weight's step.
        difference = (ours[mine].detach() - theirs).norm() / theirs.norm().clamp_min(1e-12)
        assert difference <= 1e-4, f"{key}: {difference:.1e}"
