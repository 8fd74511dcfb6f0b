"""Every number of the public code's tiny models: ACT steps, training losses, gradients, targets.

Rounding grows along a roll-out (in TRM_mlp a thousandfold a step), so no tolerance fits a whole one on every
processor. Each step starts from the recorded carry of the step before instead, and the model runs in float64, where
the distance to the recorded numbers is that of their own rounding. What float32 may add is measured, not chosen: the
distance that errors of its size make when they are put into a float64 run.
"""

import contextlib
import copy
import json

import pytest
import torch
from air_rounding import rounding
from conftest import GOLDEN
from safetensors.torch import load_file

from air_model import AirCarry, AirModel
from air_model.publishing.convert import convert

NAMES = sorted(p.parent.name for p in GOLDEN.glob("*/golden.safetensors"))
TOLERANCE = 2e-5
MARGIN = 10  # an update rounds at some ten places for each product that is perturbed


def load_golden(name, folder):
    """(model, recorded numbers, spec) of a public checkpoint."""
    source = GOLDEN / name
    torch.save(load_file(source / "step_10.safetensors"), folder / "step_10")
    (folder / "all_config.yaml").write_text((source / "all_config.yaml").read_text())
    spec = json.loads((source / "spec.json").read_text())
    return convert(folder / "step_10", spec["seq_len"]), load_file(source / "golden.safetensors"), spec


@pytest.fixture(scope="module", params=NAMES)
def golden(request, tmp_path_factory):
    model, numbers, _ = load_golden(request.param, tmp_path_factory.mktemp("golden"))
    return model, numbers


@contextlib.contextmanager
def in_float64(model):
    """A copy of the model that computes everything in float64."""
    wide, narrow = copy.deepcopy(model).double(), torch.Tensor.float
    wide.config.activation_dtype = None
    torch.Tensor.float = torch.Tensor.double  # norms and the q head ask for float32
    try:
        yield wide
    finally:
        torch.Tensor.float = narrow


def distance(ours, theirs):
    """Relative, over all entries at once."""
    theirs = theirs.detach().double()
    return float((ours.detach().double() - theirs).norm() / theirs.norm().clamp_min(1e-12))


def farthest(ours, theirs):
    """The largest distance of all numbers of a step, and whose it is."""
    return max((distance(ours[key], theirs[key]), key) for key in ours if key in theirs)


def without_losses(numbers):
    """In float32 a small loss of the q head is the difference of two large numbers; its logits are compared."""
    return {key: value for key, value in numbers.items() if not key.startswith("metric.")}


def act_steps(model, numbers, free=False, steps=4):
    """ACT steps in the weights' precision, each from the recorded carry, or free: from our own."""
    found, carry, count = [], None, len(numbers["inputs"])
    for step in range(steps):
        if step and not free:
            z_h, z_l = (numbers[f"eval.{step - 1}.z_{level}"].to(model.dtype) for level in "HL")
            carry = AirCarry(z_h=z_h, z_l=z_l, steps=torch.full((count,), step, dtype=torch.int32))
        with torch.no_grad():
            out = model.eval()(numbers["inputs"], numbers["puzzle_identifiers"], numbers["labels"], carry)
        carry = out.carry
        found.append(
            {
                "logits": out.logits,
                "q_halt_logits": out.q_halt_logits,
                "q_continue_logits": out.q_continue_logits,
                "z_H": carry.z_h,
                "z_L": carry.z_l,
                "metric.lm_loss": out.lm_loss[None] * count,
                "metric.q_halt_loss": out.q_halt_loss[None] * count,
            }
        )
    return found


def recorded(numbers, step, keys):
    return {key: numbers[f"eval.{step}.{key}"].float() for key in keys}


def growth(run, exact):
    """Per step, how far errors of float32's size in every product, put into the float64 `run`, carry its numbers."""
    perturbed = []
    for seed in range(3):
        with rounding(seed, 2**-23):
            perturbed.append(run())
    return [max(farthest(other[step], exact[step])[0] for other in perturbed) for step in range(len(exact))]


def check_steps(model, numbers, steps=4):
    """Raises where an ACT step from the recorded carry does not give the recorded numbers."""
    with in_float64(model) as wide:
        found = act_steps(wide, numbers, steps=steps)
    for step, ours in enumerate(found):
        error, key = farthest(ours, recorded(numbers, step, ours))
        assert error <= TOLERANCE, f"step {step}, {key}: {error:.1e}"


def check_roll_out(model, numbers, steps=4):
    """Raises where a free roll-out, in float32 or the recorded one, leaves float64's by more than rounding does."""
    narrow = act_steps(model, numbers, True, steps)
    with in_float64(model) as wide:
        exact = act_steps(wide, numbers, True, steps)
        allowed = growth(lambda: act_steps(wide, numbers, True, steps), exact)
    for step, ours in enumerate(exact):
        for whose, theirs in (("float32", narrow[step]), ("recorded", recorded(numbers, step, ours))):
            error, key = farthest(ours, without_losses(theirs))
            assert error <= MARGIN * allowed[step], f"{whose} step {step}, {key}: {error:.1e}, {allowed[step]:.1e}"


def test_every_act_step_from_the_recorded_carry_has_the_public_numbers(golden):
    check_steps(*golden)


def test_a_free_roll_out_strays_from_float64_no_more_than_rounding_makes_it(golden):
    check_roll_out(*golden)


def test_every_float32_act_step_is_float64s_up_to_rounding(golden):
    model, numbers = golden
    narrow = act_steps(model, numbers)
    with in_float64(model) as wide:
        exact = act_steps(wide, numbers)
        allowed = growth(lambda: act_steps(wide, numbers), exact)
    for step, bound in enumerate(allowed):
        error, key = farthest(narrow[step], without_losses(exact[step]))
        assert error <= MARGIN * bound, f"step {step}, {key}: {error:.1e}, {bound:.1e}"
        assert bound <= TOLERANCE * 2, f"one step multiplies rounding by {bound / 2**-23:.0f}"


UPDATE, RECUR = AirModel.update, AirModel.recur
MUTATIONS = {
    "the puzzle with a wrong sign": ("update", lambda self, level, z_h, z_l, x: UPDATE(self, level, z_h, z_l, -x)),
    "no puzzle injected": ("update", lambda self, level, z_h, z_l, x: UPDATE(self, level, z_h, z_l, 0 * x)),
    "states swapped at the start": ("recur", lambda self, z_h, z_l, *rest: RECUR(self, z_l, z_h, *rest)),
    "states swapped at the end": ("recur", lambda self, *rest: RECUR(self, *rest)[::-1]),
    "states with a wrong sign": ("recur", lambda self, z_h, z_l, *rest: RECUR(self, -z_h, -z_l, *rest)),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_model_is_no_rounding_error(golden, mutation, monkeypatch):
    monkeypatch.setattr(AirModel, *MUTATIONS[mutation])
    for check in (check_steps, check_roll_out):
        with pytest.raises(AssertionError, match="step 0"):
            check(*golden, steps=1)


def check_training_step(model, numbers):
    with in_float64(model) as wide:
        wide.train()
        count = len(numbers["inputs"])
        out = wide(numbers["inputs"], numbers["puzzle_identifiers"], numbers["labels"])
        out.loss.backward()
        gradients = [p.grad for n, p in wide.named_parameters() if p.grad is not None and "puzzle" not in n]
    ours = {
        "loss": out.loss * count,
        "metric.lm_loss": out.lm_loss * count,
        "metric.q_halt_loss": out.q_halt_loss * count,
        "grad_norm": torch.stack([g.norm() for g in gradients]).norm(),
        "logits": out.logits,
    }
    if "train.0.target_q_continue" in numbers:
        ours["target_q_continue"] = out.target_q_continue
        ours["metric.q_continue_loss"] = out.q_continue_loss * count
    else:
        assert out.target_q_continue is None and out.q_continue_loss is None
    error, key = farthest(ours, {key: numbers[f"train.0.{key}"].reshape(ours[key].shape) for key in ours})
    assert error <= TOLERANCE, f"{key}: {error:.1e}"
    assert out.carry.steps.tolist() == numbers["train.0.steps"].tolist()


def test_a_training_step_has_the_public_losses_target_and_gradient_norm(golden):
    check_training_step(*golden)
