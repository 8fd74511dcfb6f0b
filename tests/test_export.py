"""Exports of one ACT step equal the model."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_model

from air_model import save_release
from air_model.scripts import export

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("L2x_H2x_prepend", "L2x_H2x_prepend_no_strip", "HRM")]


@pytest.mark.parametrize("variant", ["Lx_H", "TRM_mlp", *SLOW])
def test_torch_export_equals_the_model_at_any_batch_size(variant):
    model = tiny_model(variant, l_cycles=1, h_cycles=1)
    module = export.export_torch(model).module()
    for batch_size in (1, 5):
        inputs = export.example(model, batch_size, seed=2)
        with torch.no_grad():
            wanted = export.OneStep(model)(*inputs)
            found = module(*inputs)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, found))


def test_one_step_is_forward():
    model = tiny_model()
    ids, puzzle_ids, z_h, z_l = export.example(model)
    with torch.no_grad():
        logits, q_halt, _, next_h, _ = export.OneStep(model)(ids, puzzle_ids, z_h, z_l)
        out = model(ids)
    assert torch.equal(logits, out.logits) and torch.equal(next_h, out.carry.z_h)
    assert torch.equal(q_halt, out.q_halt_logits)


@pytest.mark.slow
def test_onnx_solves_as_the_model_does_and_int8_nearly(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny_model()
    save_release(model, tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "out"), "--format", "onnx", "int8"]
    assert export.main([*words, "--check", "1...2...3...4..."]) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    exact = report["files"]["model.onnx"]
    assert max(exact["largest_difference"].values()) < 1e-4 and exact["answer"] == report["model_answer"]
    assert (tmp_path / "out" / "model_int8.onnx").is_file() and (tmp_path / "out" / "start.npz").is_file()
    step = export.onnx_step(tmp_path / "out" / "model.onnx", threads=1)
    ids = export.example(model, 4, seed=5)[0]
    for halt in ("max", "q"):
        answers, used = export.solve_with(step, model, ids.numpy(), 4, halt)
        solution = model.solve(ids, halt=halt)
        assert (answers == solution.predictions.numpy()).mean() > 0.99
        assert np.array_equal(used, solution.act_steps.numpy())
