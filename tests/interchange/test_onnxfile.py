"""Networks from ONNX: what ONNX Runtime computes is what is read, and the rest is an error that names the node."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain import output_bounds
from certtrain.bounds.reading import read_layers
from certtrain.bounds.shape_layers import Concat
from certtrain.errors import CerttrainError, ModelFileError, UnsupportedLayer
from certtrain.interchange import export as exporting
from certtrain.interchange.export import export_onnx
from certtrain.interchange.onnxfile import open_network, read_onnx
from certtrain.network.folding import fold_batch_norm
from helpers.exports import (
    ARCHITECTURES,
    LAYERS,
    OPERATORS,
    Block,
    Folded,
    classifier,
    close,
    every_architecture,
    listed,
)
from helpers.onnx_files import agrees, exported, node, onnx, random, run, save

# --- what certtrain writes -------------------------------------------------------------------------------


@every_architecture
def test_an_export_reads_back_as_the_same_network(architecture: Any, tmp_path: Path) -> None:
    model = classifier(architecture)
    export_onnx(model, tmp_path / "net.onnx")
    found = read_onnx(tmp_path / "net.onnx")
    assert found.shape == model.metadata.input_shape
    assert found.outputs == 3
    x = torch.rand(20, *found.shape)
    assert close(found.network(x), fold_batch_norm(model)(x), 1e-6)
    # No weight is rounded twice.
    weights = {tuple(w.shape): w for w in fold_batch_norm(model).parameters() if w.dim() > 1}
    own = {tuple(w.shape): w for w in found.network.parameters() if w.dim() > 1}
    assert all(torch.equal(weight, own[shape]) for shape, weight in weights.items())


def test_a_graph_with_shared_layers_and_batch_norm_reads_back(tmp_path: Path) -> None:
    model = listed(LAYERS)
    export_onnx(model, tmp_path / "net.onnx")
    x = torch.rand(20, *model.metadata.input_shape)
    assert close(read_onnx(tmp_path / "net.onnx").network(x), model(x))
    agrees(tmp_path / "net.onnx")


def test_a_residual_block_reads_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folded = Folded(Block()).eval()
    proto = exporting._onnx_model(read_layers(folded), classifier(ARCHITECTURES[0]).metadata)
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    agrees(tmp_path / "net.onnx")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, of speed
@pytest.mark.parametrize(("layer", "shape"), OPERATORS, ids=lambda value: str(value))
def test_every_layer_that_is_exported_reads_back(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    layers = nn.Sequential(layer, nn.Flatten()) if layer(random(2, *shape)).dim() > 2 else nn.Sequential(layer)
    agrees(exported(layers.eval(), shape, tmp_path))


class Stretched(nn.Module):
    """Sums that stretch sides: of images with one number a channel, and of features with one number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mean, self.one = nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(108, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        flat = torch.flatten(torch.relu(x + self.mean(x)), 1)
        return flat + self.one(flat)


class Joined(nn.Module):
    """Values side by side, in channels and in features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.images, self.features = nn.Conv2d(2, 3, 3, padding=1), Concat(1), Concat(1)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.flatten(self.images(torch.relu(self.conv(x)), x), 1)
        both: Tensor = self.features(flat, torch.relu(flat))
        return both


@pytest.mark.parametrize("network", [Stretched, Joined])
def test_layers_of_two_inputs_read_back(network: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    agrees(exported(network().eval(), (2, 8, 8), tmp_path))


def test_a_model_file_and_an_onnx_file_open_alike(tmp_path: Path) -> None:
    model = classifier(ARCHITECTURES[1])
    exporting.export_weights(model, tmp_path / "m.safetensors")
    export_onnx(model, tmp_path / "m.onnx")
    (a, shape), (b, other) = (open_network(tmp_path / name) for name in ("m.safetensors", "m.onnx"))
    x = torch.rand(3, *shape)
    assert shape == other
    assert close(a(x), b(x))


# --- what others write -----------------------------------------------------------------------------------


def test_mat_mul_with_a_bias_is_one_linear_layer(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Add", "b a", "c"), node("Relu", "c", "r"), node("MatMul", "r v", "y")]
    path = save(tmp_path, nodes, ["n", 4], ["n", 2], w=random(4, 3), b=random(3, seed=1), v=random(3, 2))
    agrees(path)
    assert [layer.type for layer in read_onnx(path).graph.layers] == ["Linear", "ReLU", "Linear"]


def test_a_bias_is_not_given_to_a_layer_that_something_else_uses(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Identity", "a", "i"), node("Add", "i b", "c"), node("Relu", "a", "r")]
    path = save(tmp_path, [*nodes, node("Add", "c r", "y")], ["n", 4], ["n", 3], w=random(4, 3), b=random(3, seed=1))
    agrees(path)


def test_gemm_with_factors(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "y", alpha=0.5, beta=-2.0)]
    agrees(save(tmp_path, nodes, [1, 4], [1, 3], w=random(4, 3), b=random(1, 3, seed=1)))


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("order", ["x c", "c x"])
@pytest.mark.parametrize("shape", [(1,), (2, 1, 1), (1, 2, 1, 1), (2, 4, 4), (1, 1, 1, 1)])
def test_arithmetic_with_constants(kind: str, order: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    nodes = [node(kind, order, "a"), node("Flatten", "a", "f"), node("MatMul", "f w", "y")]
    path = save(tmp_path, nodes, ["n", 2, 4, 4], ["n", 3], c=random(*shape).abs() + 0.5, w=random(32, 3))
    if (kind, order) == ("Div", "c x"):
        with pytest.raises(UnsupportedLayer, match=r"'the Div \w' \(Div\): its input 2 must be a constant"):
            read_onnx(path)
        return
    agrees(path)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
def test_constants_for_each_pixel_before_a_convolution(kind: str, tmp_path: Path) -> None:
    nodes = [node(kind, "x c", "a"), node("Conv", "a w", "b"), node("Flatten", "b", "y")]
    agrees(save(tmp_path, nodes, ["n", 2, 4, 4], ["n", 8], c=random(1, 2, 4, 4), w=random(2, 2, 3, 3)))


@pytest.mark.parametrize("pads", [(0, 0, 1, 1), (1, 0, 0, 2), (2, 1, 1, 0), (1, 1, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_uneven_padding_of_a_convolution_is_exact(pads: tuple[int, ...], stride: int, tmp_path: Path) -> None:
    nodes = [node("Conv", "x w b", "a", pads=pads, strides=[stride, stride]), node("Flatten", "a", "y")]
    agrees(save(tmp_path, nodes, ["n", 2, 5, 6], ["n", "m"], w=random(3, 2, 3, 2), b=random(3)))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(auto_pad: str, tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "a", auto_pad=auto_pad, strides=[2, 2]), node("Flatten", "a", "y")]
    agrees(save(tmp_path, nodes, ["n", 2, 6, 7], ["n", "m"], w=random(3, 2, 3, 2)))


def test_pooling_reshaping_dropout_and_constants(tmp_path: Path) -> None:
    shape = onnx.helper.make_node(
        "Constant", [], ["shape"], value=onnx.numpy_helper.from_array(torch.tensor([0, -1]).numpy())
    )
    nodes = [
        shape,
        node("MaxPool", "x", "a", kernel_shape=[2, 2], strides=[2, 2]),
        node("Dropout", "a", "b"),
        node("AveragePool", "b", "c", kernel_shape=[2, 2], pads=[1, 1, 1, 1]),
        node("LeakyRelu", "c", "d", alpha=0.2),
        node("Sigmoid", "d", "e"),
        node("Tanh", "e", "f"),
        node("Reshape", "f shape", "y"),
    ]
    agrees(save(tmp_path, nodes, ["n", 2, 8, 8], ["n", "m"]))
    nodes = [node("GlobalAveragePool", "x", "a"), node("Flatten", "a", "y")]
    agrees(save(tmp_path, nodes, ["n", 2, 8, 8], ["n", 2]))


def test_a_flat_input_may_be_made_an_image(tmp_path: Path) -> None:
    nodes = [node("Reshape", "x s", "a"), node("Conv", "a w", "b"), node("Relu", "b", "c"), node("Flatten", "c", "y")]
    path = save(tmp_path, nodes, [1, 18], [1, 4], s=torch.tensor([1, 2, 3, 3]), w=random(1, 2, 2, 2))
    found, x = read_onnx(path), random(1, 18)
    assert found.shape == (2, 3, 3)
    assert close(found.network(x.view(1, 2, 3, 3)).detach(), run(path, x))


def test_an_input_that_is_subtracted_flattened_and_multiplied_as_in_acas(tmp_path: Path) -> None:
    nodes = [node("Sub", "x c", "a"), node("Flatten", "a", "f"), node("MatMul", "f w", "m"), node("Add", "m b", "y")]
    agrees(save(tmp_path, nodes, [1, 1, 1, 5], [1, 3], c=random(1, 1, 1, 5), w=random(5, 3), b=random(3)))


# --- tensors without a batch, and fixed batches -----------------------------------------------------------


def test_a_column_is_multiplied_from_the_left_as_in_the_competitions_own_tests(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "w x", "a"),
        node("Add", "a b", "c"),
        node("Relu", "c", "d"),
        node("MatMul", "v d", "y"),
    ]
    weights = {"w": random(3, 2), "v": random(2, 3)}
    vector = agrees(save(tmp_path, nodes, [2], [2], b=random(3), **weights))
    assert (vector.shape, vector.outputs) == ((2,), 2)
    column = agrees(save(tmp_path, nodes, [2, 1], [2, 1], b=random(3, 1), **weights))
    assert (column.shape, column.outputs) == ((1, 2), 2)  # in the order in which they are multiplied


@pytest.mark.parametrize("sides", [[1, 3], [3, 1], [1, 1]])
def test_gemm_turns_a_single_input(sides: list[int], tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "a", transA=1), node("Relu", "a", "r"), node("Flatten", "r", "y", axis=0)]
    agrees(save(tmp_path, nodes, list(sides), [1, "k"], w=random(sides[0], 2), b=random(2)))
    nodes = [node("Gemm", "w x", "a", transA=1, transB=1), node("Flatten", "a", "y", axis=0)]
    agrees(save(tmp_path, nodes, list(sides), [1, "k"], w=random(sides[1], 2)))


def test_a_batch_of_several_is_kept_apart_or_refused(tmp_path: Path) -> None:
    found = agrees(save(tmp_path, [node("Gemm", "x w", "y")], [4, 3], [4, 2], w=random(3, 2)))
    assert (found.shape, found.outputs) == ((3,), 2)
    for operator in (
        node("Transpose", "x", "y", perm=[1, 0]),
        node("Flatten", "x", "y", axis=0),
        node("Add", "x c", "y"),
        node("Concat", "x x", "y", axis=0),
        node("Softmax", "x", "y"),
    ):
        constants = {"c": random(4, 3)} if operator.op_type == "Add" else {}
        path = save(tmp_path, [operator, node("Gemm", "y w", "z")], [4, 3], ["n", "k"], **constants, w=random(3, 2))
        proto = onnx.load(path)
        proto.graph.output[0].name = "z"
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(UnsupportedLayer):
            read_onnx(path)


def test_what_mixes_a_fixed_batch_is_one_input(tmp_path: Path) -> None:
    nodes = [node("ReduceMean", "x", "a", axes=[0]), node("Gemm", "a w", "y")]
    found = agrees(save(tmp_path, nodes, [4, 3], [1, 2], w=random(3, 2)))
    assert (found.shape, found.outputs) == ((4, 3), 2)


@pytest.mark.parametrize("free", ["n", 1])
def test_a_free_batch_is_never_mixed(free: int | str, tmp_path: Path) -> None:
    """A mean over the batch is one over nothing for a single input, and is not known where there may be more."""
    nodes = [node("ReduceMean", "x", "a", axes=[0], keepdims=1), node("Relu", "a", "y")]
    path = save(tmp_path, nodes, [free, 3], [1, 3])
    if free == 1:
        agrees(path)
        return
    with pytest.raises(UnsupportedLayer, match=r"\(ReduceMean\): it mixes the batch's dimension with others"):
        read_onnx(path)


def test_the_number_of_inputs_is_moved_but_not_computed_with(tmp_path: Path) -> None:
    sizes = [node("Shape", "x", "s"), node("Mul", "s two", "t"), node("Reshape", "x t", "y")]
    path = save(tmp_path, sizes, ["n", 4], ["n", 4], two=torch.tensor([1, 1]))
    with pytest.raises(UnsupportedLayer, match=r"\(Mul\): it computes with the number of inputs, which is not fixed"):
        read_onnx(path)
    cut = [node("Shape", "x", "s"), node("Slice", "x s e", "a"), node("Flatten", "a", "y")]
    path = save(tmp_path, cut, ["n", 4], ["n", 4], e=torch.tensor([2**31, 2**31]))
    with pytest.raises(UnsupportedLayer, match="its starts must not depend on the number of inputs"):
        read_onnx(path)


# --- what operators become --------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(-0.5, 0.75), (None, 0.25), (0.25, None), (0.0, 6.0), (0.75, -0.5), (-1e39, 1e39)])
def test_a_clip_has_exact_intervals(ends: tuple[float | None, float | None], tmp_path: Path) -> None:
    given = {name: torch.tensor(end) for name, end in zip(("low", "high"), ends, strict=True) if end is not None}
    names = [name if name in given else "" for name in ("low", "high")]
    clip = onnx.helper.make_node("Clip", ["x", *names], ["y"])
    found = agrees(save(tmp_path, [clip], ["n", 5], ["n", 5], **given))
    x = random(20, 5).double()
    low, high = output_bounds(found.network.double(), x, 0.4, clip=None)
    limits = {"min": given.get("low"), "max": given.get("high")}
    for end, shift in ((low, -0.4), (high, 0.4)):
        expected = torch.clamp(x + shift, **limits) if given else x + shift
        torch.testing.assert_close(end, expected, rtol=0, atol=1e-6)


def test_values_that_are_only_moved_become_one_layer(tmp_path: Path) -> None:
    nodes = [
        node("Unsqueeze", "x one", "a"),
        node("Transpose", "a", "b", perm=[0, 2, 1, 3]),
        node("Reshape", "b s", "c"),
        node("Transpose", "c", "d", perm=[0, 2, 1]),
        node("Mul", "d two", "e"),
        node("Flatten", "e", "y"),
    ]
    constants = {"one": torch.tensor([1]), "s": torch.tensor([-1, 2, 6]), "two": torch.tensor([2.0])}
    found = agrees(save(tmp_path, nodes, ["n", 3, 4], ["n", 12], **constants))
    assert [layer.type for layer in found.graph.layers] == ["Reshape", "Permute", "Flatten", "BatchNorm1d"]


def test_constants_that_change_nothing_become_no_layer(tmp_path: Path) -> None:
    nodes = [
        node("Mul", "x one", "a"),
        node("Sub", "a zero", "b"),
        node("Cast", "b", "c", to=1),
        node("Relu", "c", "y"),
    ]
    found = agrees(save(tmp_path, nodes, ["n", 3], ["n", 3], one=torch.ones(1), zero=torch.zeros(3)))
    assert [layer.type for layer in found.graph.layers] == ["ReLU"]


def test_a_network_of_float64_is_one_here(tmp_path: Path) -> None:
    weight = random(3, 2).double() / 3
    found = agrees(save(tmp_path, [node("MatMul", "x w", "y")], ["n", 3], ["n", 2], kind=11, w=weight))
    assert torch.equal(next(found.network.parameters()), weight.T)


def test_a_type_that_changes_on_the_way_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Cast", "x", "a", to=11), node("Cast", "a", "y", to=1)], ["n", 3], ["n", 3])
    with pytest.raises(UnsupportedLayer, match=r"\(Cast\): to = 11 changes the type of values"):
        read_onnx(path)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_by_values_is_refused(mode: str, tmp_path: Path) -> None:
    nodes = [node("Pad", "x p", "a", mode=mode), node("Flatten", "a", "y")]
    path = save(tmp_path, nodes, ["n", 3, 4], ["n", "k"], p=torch.tensor([0, 0, 1, 0, 0, 1]))
    with pytest.raises(UnsupportedLayer, match=r"\(Pad\): mode = .* is not read, only padding by a constant"):
        read_onnx(path)


# --- what is not read ------------------------------------------------------------------------------------

Build = Callable[[Path], Path]
W = random(3, 2, 3, 3)
UNREAD: dict[str, Build] = {
    r"'the Exp \w' \(Exp\): operator 'Exp' is not supported; supported are: Add, ": lambda folder: save(
        folder, [node("Exp", "x", "y")], ["n", 3], ["n", 3]
    ),
    r"'the Conv \w' \(Conv\): only convolutions over two dimensions": lambda folder: save(
        folder, [node("Conv", "x w", "y")], ["n", 2, 5], ["n", 3, 3], w=random(3, 2, 3)
    ),
    r"'the Conv \w' \(Conv\): it cannot be read as a Conv2d of values of shape \(4, 8, 8\)": lambda folder: save(
        folder, [node("Conv", "x w", "y")], ["n", 4, 8, 8], ["n", 3, 6, 6], w=W
    ),
    r"has shape \(3, 6, 6\) for one input; only logits": lambda folder: save(
        folder, [node("Conv", "x w", "y")], ["n", 2, 8, 8], ["n", 3, 6, 6], w=W
    ),
    r"'the Conv \w' \(Conv\): its numbers are NaN": lambda folder: save(
        folder, [node("Conv", "x w", "y")], ["n", 2, 8, 8], ["n", 3, 6, 6], w=W / 0
    ),
    r"strides = \[0, 1\]; it must be two numbers above zero": lambda folder: save(
        folder, [node("Conv", "x w", "y", strides=[0, 1])], ["n", 2, 8, 8], ["n", 3, 6, 6], w=W
    ),
    r"are allowed": lambda folder: save(
        folder, [node("Conv", "x w", "y", pads=[2**19] * 4)], ["n", 2, 8, 8], ["n", "a", "b", "c"], w=W
    ),
    r"differ by more than 64": lambda folder: save(
        folder, [node("Conv", "x w", "y", pads=[0, 0, 2**19, 0])], ["n", 2, 8, 8], ["n", "a", "b", "c"], w=W
    ),
    r"'the LeakyRelu \w' \(LeakyRelu\): it cannot be read as a LeakyReLU": lambda folder: save(
        folder, [node("LeakyRelu", "x", "y", alpha=-1.0)], ["n", 3], ["n", 3]
    ),
    r"it divides by zero": lambda folder: save(folder, [node("Div", "x c", "y")], ["n", 3], ["n", 3], c=torch.zeros(3)),
    r"a constant of shape \(4, 3\) does not fit": lambda folder: save(
        folder, [node("Add", "x c", "y")], ["n", 3], [4, 3], c=random(4, 3)
    ),
    r"'the MaxPool \w' .*tools differ in what it means": lambda folder: save(
        folder,
        [node("MaxPool", "x", "y", kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1)],
        ["n", 2, 4, 4],
        ["n", 2, "a", "b"],
    ),
    r"ceil_mode with windows that reach beyond": lambda folder: save(
        folder,
        [node("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1)],
        ["n", 2, 5, 5],
        ["n", 2, 3, 3],
    ),
    r"its output 'y' does not depend": lambda folder: save(
        folder, [node("Identity", "c", "y")], ["n", 3], ["n", 3], c=random(1, 3)
    ),
}


@pytest.mark.parametrize("message", UNREAD, ids=lambda text: text[:30])
def test_what_is_not_read_is_an_error_that_names_it(message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayer, match=f"net.onnx: .*{message}"):
        read_onnx(UNREAD[message](tmp_path))


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    export_onnx(classifier(ARCHITECTURES[1]), tmp_path / "net.onnx")
    whole = (tmp_path / "net.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "text.onnx").write_bytes(b"this is no network")
    for name in ("half", "empty", "text"):
        with pytest.raises(ModelFileError, match=rf"{name}\.onnx is not a complete ONNX file"):
            read_onnx(tmp_path / f"{name}.onnx")
    with pytest.raises(ModelFileError, match=r"none\.onnx cannot be read"):
        read_onnx(tmp_path / "none.onnx")


def test_weights_in_another_file_are_not_followed(tmp_path: Path) -> None:
    path = save(tmp_path, [node("MatMul", "x w", "y")], ["n", 4], ["n", 3], w=random(4, 3))
    proto = onnx.load(path)
    (tensor,) = proto.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError):
        read_onnx(path)


def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    export_onnx(classifier(ARCHITECTURES[1]), tmp_path / "net.onnx")
    whole, generator = (tmp_path / "net.onnx").read_bytes(), torch.Generator().manual_seed(0)
    messages = []
    for _ in range(150):
        data = bytearray(whole)
        for place in torch.randint(0, len(data), (3,), generator=generator).tolist():
            data[place] ^= 1 << int(torch.randint(0, 8, (), generator=generator))
        (tmp_path / "net.onnx").write_bytes(bytes(data))
        try:
            read_onnx(tmp_path / "net.onnx")
        except CerttrainError as error:
            messages.append(str(error))
    assert messages
    assert all("net.onnx" in message for message in messages)
