"""Every number of the public code's tiny models, reproduced: evaluation steps, training losses, gradients, targets."""

import json

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from air_model.scripts.convert_checkpoint import convert

NAMES = sorted(p.parent.name for p in GOLDEN.glob("*/golden.safetensors"))
RTOL = 1e-4


@pytest.fixture(scope="module", params=NAMES)
def golden(request, tmp_path_factory):
    folder, work = GOLDEN / request.param, tmp_path_factory.mktemp("golden")
    torch.save(load_file(folder / "step_10.safetensors"), work / "step_10")
    (work / "all_config.yaml").write_text((folder / "all_config.yaml").read_text())
    spec = json.loads((folder / "spec.json").read_text())
    return convert(work / "step_10", spec["seq_len"]), load_file(folder / "golden.safetensors"), request.param


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, name: str) -> None:
    error = (ours.detach() - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)
    assert error <= RTOL, f"{name}: relative error {error:.1e}"


def test_every_evaluation_step_has_the_public_logits_q_values_states_and_losses(golden):
    model, numbers, name = golden
    model.eval()
    carry, batch_size = None, len(numbers["inputs"])
    # had_prod multiplies by x, which amplifies rounding: the public code itself differs by 1e-3 at its fourth step
    # between one and two threads. Its first two steps are held to the common tolerance.
    for step in range(2 if name == "had_prod" else 4):
        with torch.no_grad():
            out = model(numbers["inputs"], numbers["puzzle_identifiers"], numbers["labels"], carry)
        carry = out.carry
        ours = {
            "logits": out.logits,
            "q_halt_logits": out.q_halt_logits,
            "q_continue_logits": out.q_continue_logits,
            "z_H": carry.z_h,
            "z_L": carry.z_l,
            "metric.lm_loss": out.lm_loss[None] * batch_size,
            "metric.q_halt_loss": out.q_halt_loss[None] * batch_size,
        }
        for key, value in ours.items():
            assert_close(value, numbers[f"eval.{step}.{key}"].float(), f"eval.{step}.{key}")


def test_a_training_step_has_the_public_losses_target_and_gradient_norm(golden):
    model, numbers, _ = golden
    model.train()
    model.zero_grad()
    batch_size = len(numbers["inputs"])
    out = model(numbers["inputs"], numbers["puzzle_identifiers"], numbers["labels"])
    out.loss.backward()
    gradients = [p.grad for n, p in model.named_parameters() if p.grad is not None and "puzzle" not in n]
    norm = torch.stack([g.double().norm() for g in gradients]).norm()
    assert_close(out.loss * batch_size, numbers["train.0.loss"][0], "loss")
    assert_close(out.lm_loss * batch_size, numbers["train.0.metric.lm_loss"][0], "lm_loss")
    assert_close(out.q_halt_loss * batch_size, numbers["train.0.metric.q_halt_loss"][0], "q_halt_loss")
    assert_close(norm, numbers["train.0.grad_norm"][0], "grad_norm")
    assert_close(out.logits, numbers["train.0.logits"], "logits")
    if "train.0.target_q_continue" in numbers:
        assert_close(out.target_q_continue, numbers["train.0.target_q_continue"], "target_q_continue")
        continue_loss = out.q_continue_loss * batch_size
        assert_close(continue_loss, numbers["train.0.metric.q_continue_loss"][0], "q_continue_loss")
    else:
        assert out.target_q_continue is None and out.q_continue_loss is None
    assert out.carry.steps.tolist() == numbers["train.0.steps"].tolist()
