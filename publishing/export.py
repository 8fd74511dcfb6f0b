"""One ACT step for other runtimes: the ONNX graph, simplified, in int8, and the loop around it.

The graph is (input_ids, puzzle_ids, z_h, z_l) -> (logits, q_halt_logits, q_continue_logits, next_z_h, next_z_l),
float32, any batch size; `scripts/export.py` writes it.
"""

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from air_model.modeling_air import AirModel
from air_model.pipeline_air import load_model
from air_model.records import make_folder, write_json

INPUTS = ("input_ids", "puzzle_ids", "z_h", "z_l")
OUTPUTS = ("logits", "q_halt_logits", "q_continue_logits", "next_z_h", "next_z_l")
FORMATS = {"onnx": "model.onnx", "int8": "model_int8.onnx"}


class OneStep(nn.Module):
    """One ACT step without objects: tensors in, tensors out."""

    def __init__(self, model: AirModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, puzzle_ids: Tensor, z_h: Tensor, z_l: Tensor) -> tuple[Tensor, ...]:
        """(B, S) and (B,) int64, (B, T, D) twice -> (B, S, V), (B,), (B,), (B, T, D), (B, T, D)."""
        x = self.model.encode(input_ids, puzzle_ids, z_h.dtype)
        z_h, z_l = self.model.recur(z_h, z_l, x)
        q = self.model.q_head(z_h[:, 0])
        return self.model.decode_state(z_h), q[:, 0], q[:, 1], z_h, z_l


def example(model: AirModel, batch_size: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of the right shapes: random tokens and the start states."""
    generator = torch.Generator().manual_seed(seed)
    carry = model.initial_carry(batch_size)
    ids = torch.randint(1, model.config.vocab_size, (batch_size, model.config.seq_len), generator=generator)
    return ids, torch.zeros(batch_size, dtype=torch.long), carry.z_h, carry.z_l


def export_onnx(model: AirModel, path: Path) -> None:
    """The graph as the module says, simplified."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            OneStep(model),
            example(model),
            dynamo=True,
            dynamic_shapes=({0: batch},) * 4,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            verbose=False,
        )
        program.save(str(path), external_data=False)
    simplify(path)


def simplify(path: Path) -> None:
    """Write the graph for runtimes: weights as their products read them, and nothing that only moves data.

    Weights come out of the exporter with a transpose each, which hides them from the quantiser. A product whose result
    is only split in two, as SwiGLU's gate and up are, becomes two: ONNX Runtime copies both halves of a split, which
    took 3 to 5 % of a step. The numbers stay the same.
    """
    import onnx_ir
    from onnxscript import optimizer

    model, any_size = onnx_ir.load(path), 2**40
    optimizer.fold_constants(model, onnx_shape_inference=False, input_size_limit=any_size, output_size_limit=any_size)
    halves: dict[str, list[onnx_ir.Value]] = {}  # of weights by name; several updates share them
    for split in [node for node in model.graph if node.op_type == "Split" and len(node.outputs) == 2]:
        product, axis = split.inputs[0].producer(), split.attributes.get("axis")
        weight = product.inputs[1] if product is not None and product.op_type == "MatMul" else None
        alone = len(split.inputs[0].uses()) == 1 and axis is not None and axis.as_int() in (-1, 2)  # of (B, T, D)
        if weight is None or weight.const_value is None or not alone:
            continue
        if weight.name not in halves:
            parts = map(np.ascontiguousarray, np.split(weight.const_value.numpy(), 2, axis=1))
            made = [onnx_ir.tensor(part, name=f"{weight.name}.{i}") for i, part in enumerate(parts)]
            halves[weight.name] = [onnx_ir.Value(name=tensor.name, const_value=tensor) for tensor in made]
            for half in halves[weight.name]:
                model.graph.register_initializer(half)
        for half, output in zip(halves[weight.name], split.outputs):
            node = onnx_ir.node("MatMul", [product.inputs[0], half])
            model.graph.insert_before(split, node)
            onnx_ir.convenience.replace_all_uses_with(output, node.outputs[0])
    optimizer.remove_unused_nodes(model)
    onnx_ir.save(model, path)


def export_int8(source: Path, path: Path) -> None:
    """Weights in int8 with a scale per output; activations are quantised as they come."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source)
    # The exporter's notes on shapes are of before its own optimisations; the quantiser would trip over them.
    del graph.graph.value_info[:]
    quantize_dynamic(
        graph,
        str(path),
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # processors without VNNI add pairs of products in 16 bits, which 8-bit weights overflow
        op_types_to_quantize=["MatMul"],
    )


def onnx_step(path: Path, threads: int | None = None) -> Callable[..., list[np.ndarray]]:
    """The exported step as a function of numpy arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda *arrays: session.run(None, dict(zip(INPUTS, arrays)))


def solve_with(
    step: Callable[..., list[np.ndarray]],
    model: AirModel,
    input_ids: np.ndarray,
    max_act_steps: int,
    halt: str = "max",
) -> tuple[np.ndarray, np.ndarray]:
    """The ACT loop in numpy, to show how an export is used: predictions (B, S) and steps (B,)."""
    batch = len(input_ids)
    carry = model.initial_carry(batch)
    z_h, z_l, ids = carry.z_h.numpy(), carry.z_l.numpy(), np.zeros(batch, np.int64)
    predictions, used = np.zeros_like(input_ids), np.zeros(batch, np.int64)
    for count in range(1, max_act_steps + 1):
        logits, q_halt, q_continue, z_h, z_l = step(input_ids, ids, z_h, z_l)
        wants = (halt == "q") & (q_halt > (q_continue if model.config.q_continue else 0))
        stops = (used == 0) & (wants | (count == max_act_steps))
        predictions[stops], used[stops] = logits[stops].argmax(-1), count
        if (used > 0).all():
            break
    return predictions, used


def export(source: str, folder: Path, formats: list[str]) -> dict[str, Any]:
    """Write the graphs of a model folder or Hub id into `folder`; returns what export.json says.

    Raises:
        ValueError, FileNotFoundError: no such model.
        ImportError: ONNX is not installed.
    """
    # An exported program keeps its weights' wish for gradients, and would then refuse to overwrite temporaries.
    model = load_model(source, "cpu", torch.float32).requires_grad_(False)
    make_folder(folder)
    report: dict[str, Any] = {"model": source, "inputs": list(INPUTS), "outputs": list(OUTPUTS), "files": {}}
    report["halts_where"] = f"q_halt_logits > {'q_continue_logits' if model.config.q_continue else 0}"
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        export_onnx(model, place / FORMATS["onnx"])
        if "int8" in formats:
            export_int8(place / FORMATS["onnx"], place / FORMATS["int8"])
        if "onnx" not in formats:  # only made on the way
            (place / FORMATS["onnx"]).unlink()
        carry = model.initial_carry(1)
        np.savez(place / "start.npz", z_h=carry.z_h[0].numpy(), z_l=carry.z_l[0].numpy())
        inputs = example(model, batch_size=3, seed=1)  # not the size that it was exported with
        with torch.no_grad():
            wanted = OneStep(model)(*inputs)
        for path in sorted(place.glob("*.onnx")):
            found = onnx_step(path)(*(part.numpy() for part in inputs))
            off = {name: float(np.abs(a.numpy() - b).max()) for name, a, b in zip(OUTPUTS, wanted, found)}
            report["files"][path.name] = {"bytes": path.stat().st_size, "largest_difference": off}
        write_json(place / "export.json", report)
        for path in sorted(place.iterdir()):
            os.replace(path, folder / path.name)
    return report
