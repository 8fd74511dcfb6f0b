"""Exports of one ACT step equal the model."""

import json

import numpy as np
import pytest
import torch
from conftest import tiny_model

from air_model import save_release
from air_model.publishing import export
from air_model.scripts.export import main as export_main


def test_one_step_is_forward():
    model = tiny_model()
    ids, puzzle_ids, z_h, z_l = export.example(model)
    with torch.no_grad():
        logits, q_halt, _, next_h, _ = export.OneStep(model)(ids, puzzle_ids, z_h, z_l)
        out = model(ids)
    assert torch.equal(logits, out.logits) and torch.equal(next_h, out.carry.z_h)
    assert torch.equal(q_halt, out.q_halt_logits)


def test_simplified_graphs_keep_their_numbers_without_splits_and_turned_weights(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    helper, rng = onnx.helper, np.random.default_rng(0)
    weights = [("w", rng.standard_normal((8, 3))), ("v", rng.standard_normal((4, 3)))]
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "turned"], ["both"]),
            helper.make_node("Split", ["both"], ["gate", "up"], axis=2, num_outputs=2),
            helper.make_node("Transpose", ["v"], ["other"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "other"], ["third"]),
            helper.make_node("Mul", ["gate", "up"], ["fourth"]),
            helper.make_node("Add", ["third", "fourth"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 5, 3])],
        [helper.make_tensor_value_info("y", 1, [1, 5, 4])],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights],
    )
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    x = rng.standard_normal((1, 5, 3)).astype(np.float32)
    answers = []
    for _ in range(2):
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"x": x})[0])
        export.simplify(path)
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-6)
    assert {node.op_type for node in onnx.load(path).graph.node} == {"MatMul", "Mul", "Add"}


@pytest.mark.slow
def test_onnx_solves_as_the_model_does_and_int8_nearly(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = tiny_model()
    save_release(model, tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--output-dir", str(tmp_path / "out"), "--format", "onnx", "int8"]
    assert export_main(words) == 0
    report = json.loads((tmp_path / "out" / "export.json").read_text())
    assert max(report["files"]["model.onnx"]["largest_difference"].values()) < 1e-4
    assert report["halts_where"] == "q_halt_logits > q_continue_logits"
    assert (tmp_path / "out" / "start.npz").is_file()
    onnx = pytest.importorskip("onnx")
    int8 = onnx.load(tmp_path / "out" / "model_int8.onnx").graph
    matrices = [tensor for tensor in int8.initializer if len(tensor.dims) == 2 and min(tensor.dims) > 8]
    assert matrices and {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in matrices} == {"INT8"}
    step = export.onnx_step(tmp_path / "out" / "model.onnx", threads=1)
    ids = export.example(model, 4, seed=5)[0]
    for halt in ("max", "q"):
        answers, used = export.solve_with(step, model, ids.numpy(), 4, halt)
        solution = model.solve(ids, halt=halt)
        assert (answers == solution.predictions.numpy()).mean() > 0.99
        assert np.array_equal(used, solution.act_steps.numpy())
