"""ONNX files made by hand and of layers, and whether they are read as what they compute."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds.reading import read_layers
from certtrain.bounds.supported import checked_graph
from certtrain.interchange import export as exporting
from certtrain.interchange.onnxfile import Imported, read_onnx
from helpers.exports import close

onnx = pytest.importorskip("onnx", reason='ONNX is not installed: pip install "certtrain[onnx]"')
runtime = pytest.importorskip("onnxruntime", reason='ONNX is not installed: pip install "certtrain[onnx]"')

Sizes = list[int | str]


def save(
    folder: Path, nodes: list[Any], given: Sizes, made: Sizes, *, opset: int = 13, kind: int = 1, **constants: Tensor
) -> Path:
    """An ONNX file of these nodes, from "x" to "y", float32 or (kind 11) float64."""
    initializers = [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in constants.items()]
    ends = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in (("x", given), ("y", made))]
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], initializers)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def exported(layers: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """Layers as certtrain writes them, for inputs (batch, *shape)."""
    nodes, constants = exporting._translate(read_layers(layers), shape)
    ends = [onnx.helper.make_tensor_value_info("pixels", 1, ["batch", *shape])]
    made = [onnx.helper.make_tensor_value_info("logits", 1, ["batch", "values"])]
    graph = onnx.helper.make_graph(nodes, "net", ends, made, constants)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, inputs.split(), output.split(), name=f"the {kind} {output}", **attributes)


def run(path: Path, x: Tensor) -> Tensor:
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def agrees(path: Path, *, count: int = 3) -> Imported:
    """What is read computes what ONNX Runtime does, and can be bounded."""
    found = read_onnx(path)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    sides = [side if isinstance(side, int) else count for side in given.shape]
    dtype = torch.float64 if given.type == "tensor(double)" else torch.float32
    x = random(*sides).to(dtype)
    expected = run(path, x)
    outputs = found.network(x.reshape(-1, *found.shape)).detach()
    assert outputs.dtype == dtype
    assert outputs.shape[1:] == (found.outputs,)
    assert outputs.numel() == expected.numel()
    assert close(outputs.reshape(expected.shape), expected)
    checked_graph(found.network)
    return found
