"""Operators mean what the declared opset says: the old ones by hand, since ONNX Runtime runs none before opset 7."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from certtrain.errors import CerttrainError, ModelFileError, UnsupportedLayer
from certtrain.interchange import onnxoperators
from certtrain.interchange.onnxfile import read_onnx
from certtrain.interchange.onnxoperators import READERS, checked
from certtrain.interchange.onnxvalues import Node
from helpers.exports import close
from helpers.onnx_files import agrees, node, random, save

onnx = pytest.importorskip("onnx", reason='ONNX is not installed: pip install "certtrain[onnx]"')

X = random(3, 3, 4, 3)
THREE = random(3, seed=1)
SQUARE = random(4, 3, seed=1)


def reads(path: Path, x: Tensor, expected: Tensor) -> None:
    found = read_onnx(path)
    assert close(found.network(x.reshape(-1, *found.shape)).detach(), expected.flatten(1))


def old(folder: Path, opset: int, kind: str, inputs: str, sides: list[Any], **more: Any) -> Path:
    """One operator of that opset, and a Flatten."""
    constants = {name: more.pop(name) for name in ("c", "w") if name in more}
    nodes = [node(kind, inputs, "a", **more), node("Flatten", "a", "y")]
    return save(folder, nodes, ["n", *sides], ["n", "k"], opset=opset, **constants)


# --- sums and products before opset 7 ----------------------------------------------------------------------

FUNCTIONS = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_the_second_operand_stands_at_the_axis_that_is_named(kind: str, opset: int, tmp_path: Path) -> None:
    """As in files that gave false answers: numpy's rule would put the three numbers along the last axis."""
    path = old(tmp_path, opset, kind, "x c", [3, 4, 3], c=THREE, broadcast=1, axis=1)
    reads(path, X, FUNCTIONS[kind](X, THREE.view(1, 3, 1, 1)))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_without_an_axis_it_stands_at_the_end(kind: str, tmp_path: Path) -> None:
    reads(old(tmp_path, 6, kind, "x c", [3, 4, 3], c=THREE, broadcast=1), X, FUNCTIONS[kind](X, THREE))
    path = old(tmp_path, 6, kind, "x c", [3, 4, 3], c=SQUARE, broadcast=1, axis=2)
    reads(path, X, FUNCTIONS[kind](X, SQUARE))
    number = torch.tensor([2.5])
    reads(old(tmp_path, 6, kind, "x c", [3, 4, 3], c=number, broadcast=1), X, FUNCTIONS[kind](X, 2.5))


def test_a_value_of_each_channel_is_added_to_images(tmp_path: Path) -> None:
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("Reshape", "p", "v", shape=[0, 3]),
        node("Add", "x v", "s", broadcast=1, axis=0),
        node("Flatten", "s", "y"),
    ]
    path = save(tmp_path, nodes, ["n", 3, 4, 3], ["n", 36], opset=4)
    reads(path, X, X + X.mean((2, 3), keepdim=True))


REFUSED: dict[str, dict[str, Any]] = {
    "no broadcast": {"c": THREE},
    "an axis and no broadcast": {"c": THREE, "axis": 1},
    "other sides": {"c": THREE, "broadcast": 1, "axis": 2},
    "too far": {"c": THREE, "broadcast": 1, "axis": 4},
    "before the first": {"c": SQUARE, "broadcast": 1, "axis": -1},
    "sides of 1, which are stretched from opset 7 on": {"c": random(1, 3), "broadcast": 1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_old_rule_does_not_allow_is_refused(name: str, tmp_path: Path) -> None:
    path = old(tmp_path, 6, "Add", "x c", [3, 4, 3], **REFUSED[name])
    with pytest.raises(UnsupportedLayer, match=r"\(Add\): it combines shapes \(batch, 3, 4, 3\) and .*in opset 6"):
        read_onnx(path)


def test_the_first_operand_is_never_stretched(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayer, match="it combines shapes"):
        read_onnx(old(tmp_path, 6, "Add", "c x", [3, 4, 3], c=THREE, broadcast=1))
    whole = random(1, 3, 4, 3)
    reads(old(tmp_path, 6, "Sub", "c x", [3, 4, 3], c=whole), X, whole - X)


def test_a_gemm_stretches_its_bias_if_it_says_so(tmp_path: Path) -> None:
    weight, x = random(4, 3), random(5, 4)
    nodes = [node("Gemm", "x w c", "y", broadcast=1)]
    reads(save(tmp_path, nodes, ["n", 4], ["n", 3], opset=6, w=weight, c=THREE), x, x @ weight + THREE)
    nodes = [node("Gemm", "x w c", "y")]
    with pytest.raises(UnsupportedLayer, match="with broadcast = 1 the second shape must be"):
        read_onnx(save(tmp_path, nodes, ["n", 4], ["n", 3], opset=6, w=weight, c=THREE))


# --- other operators that have changed ----------------------------------------------------------------------


def test_shapes_padding_limits_and_places_were_attributes(tmp_path: Path) -> None:
    reads(old(tmp_path, 4, "Reshape", "x", [3, 4, 3], shape=[0, 6, -1]), X, X)
    pads = [0, 0, 1, 0, 0, 0, 0, 2]
    padded = F.pad(X, (0, 2, 1, 0), value=0.5)
    reads(old(tmp_path, 1, "Pad", "x", [3, 4, 3], paddings=pads, value=0.5), X, padded)
    reads(old(tmp_path, 2, "Pad", "x", [3, 4, 3], pads=pads, value=0.5), X, padded)
    reads(old(tmp_path, 6, "Clip", "x", [3, 4, 3], min=-0.5, max=0.25), X, X.clamp(-0.5, 0.25))
    reads(old(tmp_path, 1, "Slice", "x", [3, 4, 3], starts=[1, 0], ends=[3, -1], axes=[1, 3]), X, X[:, 1:3, :, :-1])
    reads(old(tmp_path, 1, "ReduceMean", "x", [3, 4, 3], axes=[3], keepdims=0), X, X.mean(3))


@pytest.mark.parametrize(("kind", "expected"), [("Max", X.clamp(min=0.25)), ("Min", X.clamp(max=0.25))])
@pytest.mark.parametrize("inputs", ["x c", "c x"])
def test_the_larger_and_the_smaller_of_values_and_a_number_are_limits(
    kind: str, expected: Tensor, inputs: str, tmp_path: Path
) -> None:
    reads(old(tmp_path, 13, kind, inputs, [3, 4, 3], c=torch.tensor(0.25)), X, expected)


@pytest.mark.parametrize("number", [torch.tensor([0.1, 0.2, 0.3]), torch.rand(1, 1, 1, 1, 1), torch.tensor(1e6)])
def test_other_maxima_are_refused(number: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayer):
        read_onnx(old(tmp_path, 13, "Max", "x c", [3, 4, 3], c=number))
    with pytest.raises(UnsupportedLayer, match="one value and one constant"):
        read_onnx(old(tmp_path, 13, "Max", "x x", [3, 4, 3]))


def test_a_cast_to_the_type_of_another_value_is_read_where_it_changes_nothing(tmp_path: Path) -> None:
    reads(old(tmp_path, 15, "CastLike", "x c", [3, 4, 3], c=torch.tensor(1.0)), X, X)
    with pytest.raises(UnsupportedLayer, match="changes the type"):
        read_onnx(old(tmp_path, 15, "CastLike", "x c", [3, 4, 3], c=torch.tensor(1.0, dtype=torch.float64)))


def test_values_are_put_side_by_side_along_channels_before_opset_4(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "r"), node("Concat", "x r", "s"), node("Flatten", "s", "y")]
    reads(save(tmp_path, nodes, ["n", 3, 4, 3], ["n", 72], opset=1), X, torch.cat([X, X.relu()], 1))


@pytest.mark.parametrize("kind", ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Neg"])
def test_what_may_be_written_over_makes_no_difference(kind: str, tmp_path: Path) -> None:
    functions = {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Neg": torch.neg}
    expected = functions.get(kind, lambda x: F.leaky_relu(x, 0.01))(X)
    reads(old(tmp_path, 1, kind, "x", [3, 4, 3], consumed_inputs=[0]), X, expected)


def batch_norm(folder: Path, opset: int, outputs: str = "a", **more: Any) -> Path:
    parts = {"s": random(3), "b": random(3, seed=1), "m": random(3, seed=2), "v": random(3, seed=3).abs() + 0.5}
    nodes = [node("BatchNormalization", "x s b m v", outputs, **more), node("Flatten", "a", "y")]
    return save(folder, nodes, ["n", 3, 4, 3], ["n", 36], opset=opset, **parts)


def test_a_batch_norm_in_training_mode_is_refused_in_every_opset(tmp_path: Path) -> None:
    for path in (
        batch_norm(tmp_path, 6),
        batch_norm(tmp_path, 1, is_test=0, consumed_inputs=[0, 0, 0, 1, 1]),
        batch_norm(tmp_path, 9, "a mean var m2 v2"),
    ):
        with pytest.raises(UnsupportedLayer, match="it is in training mode: it normalises by the batch"):
            read_onnx(path)
    with pytest.raises(UnsupportedLayer, match="training_mode = 1 is not read"):
        read_onnx(batch_norm(tmp_path, 15, "a m2 v2", training_mode=1))
    with pytest.raises(UnsupportedLayer, match="spatial = 0 is not read"):
        read_onnx(batch_norm(tmp_path, 7, spatial=0))


def test_a_batch_norm_in_test_mode_is_read_in_every_opset(tmp_path: Path) -> None:
    expected = F.batch_norm(X, random(3, seed=2), random(3, seed=3).abs() + 0.5, random(3), random(3, seed=1))
    reads(batch_norm(tmp_path, 1, is_test=1, spatial=1, consumed_inputs=[0, 0, 0, 1, 1]), X, expected)
    reads(batch_norm(tmp_path, 6, is_test=1), X, expected)
    for opset in (7, 9, 14, 15):
        agrees(batch_norm(tmp_path, opset))


def test_a_dropout_before_opset_7_is_random_unless_it_says_that_it_tests(tmp_path: Path) -> None:
    reads(old(tmp_path, 6, "Dropout", "x", [3, 4, 3], is_test=1, ratio=0.3), X, X)
    with pytest.raises(UnsupportedLayer, match="it is in training mode: it is random"):
        read_onnx(old(tmp_path, 6, "Dropout", "x", [3, 4, 3], ratio=0.3))


def test_an_average_with_padding_is_read_where_it_is_said_whether_padding_counts(tmp_path: Path) -> None:
    window = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}
    with pytest.raises(UnsupportedLayer, match="an average with padding is read only from opset 7 on"):
        read_onnx(old(tmp_path, 6, "AveragePool", "x", [3, 4, 3], **window))
    agrees(old(tmp_path, 7, "AveragePool", "x", [3, 4, 3], **window))


def test_no_axes_mean_all_or_none(tmp_path: Path) -> None:
    agrees(old(tmp_path, 18, "ReduceMean", "x", [3, 4, 3], noop_with_empty_axes=1))
    with pytest.raises(UnsupportedLayer, match="mixes the batch's dimension with others"):
        read_onnx(old(tmp_path, 18, "ReduceMean", "x", [3, 4, 3]))


# --- what is not known --------------------------------------------------------------------------------------


def test_an_attribute_of_another_opset_is_an_error(tmp_path: Path) -> None:
    path = old(tmp_path, 13, "Add", "x c", [3, 4, 3], c=THREE, broadcast=1, axis=1)
    with pytest.raises(ModelFileError, match="Unrecognized attribute: "):  # ONNX's own check
        read_onnx(path)
    alone = Node("n", "Add", "", ("x", "c"), ("y",), {"axis": 1}, {}, 7)
    with pytest.raises(UnsupportedLayer, match=r"node 'n' \(Add\): its attribute 'axis' is not read in opset 7"):
        checked(alone)
    assert checked(alone._replace(opset=6)) is READERS["Add"]


@pytest.mark.parametrize("kind", READERS)
def test_every_attribute_that_onnx_knows_is_known_or_refused(kind: str) -> None:
    """In every opset: what the standard lists for an operator is in the table of just those opsets, or not read."""
    for opset in range(1, onnx.defs.onnx_opset_version() + 1):
        try:
            schema = onnx.defs.get_schema(kind, opset, "")
        except onnx.defs.SchemaError:
            continue
        known = {name for name, (first, last) in READERS[kind].attributes.items() if first <= opset <= last}
        unread = {"sparse_value", "value_string", "value_strings"} if kind == "Constant" else set()
        assert known == set(schema.attributes) - unread, f"opset {opset}"


def test_a_version_of_an_operator_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(READERS, "Relu", READERS["Relu"]._replace(newest=6))
    path = old(tmp_path, 14, "Relu", "x", [3, 4, 3])
    with pytest.raises(UnsupportedLayer, match="version 14 of this operator is newer than 6, the newest"):
        read_onnx(path)
    read_onnx(old(tmp_path, 12, "Relu", "x", [3, 4, 3]))
    assert onnxoperators.READERS["Relu"].newest == 6


def test_an_opset_or_a_domain_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CerttrainError, match=r"opset|Opset"):
        read_onnx(old(tmp_path, 1000, "Relu", "x", [3, 4, 3]))
    path = old(tmp_path, 13, "Relu", "x", [3, 4, 3])
    proto = onnx.load(path)
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedLayer, match=r"\(Relu\): operator 'com\.example\.Relu' is not supported"):
        read_onnx(path)


def test_an_operator_that_the_file_defines_itself_is_refused(tmp_path: Path) -> None:
    path = old(tmp_path, 13, "Relu", "x", [3, 4, 3])
    proto = onnx.load(path)
    body = [onnx.helper.make_node("Neg", ["a"], ["b"])]
    proto.functions.append(onnx.helper.make_function("", "Relu", ["a"], ["b"], body, proto.opset_import))
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CerttrainError, match="Relu"):
        read_onnx(path)
