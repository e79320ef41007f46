"""A network as data: every layer there and back, shapes as torch has them, names that files and modules can have."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain import output_bounds
from certtrain.bounds.graph import Add, LayerCall, LayerGraph, Normalize
from certtrain.bounds.interval import INTERVAL_RULES
from certtrain.bounds.methods import METHODS
from certtrain.bounds.reading import read_layers
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.errors import NetworkError, PresetError, UnsupportedLayer
from certtrain.network.graphs import GraphNetwork, build_graph, graph_of
from certtrain.spec.layers import SECTIONS, Graph, SharedSection
from certtrain.spec.preset import load_preset
from certtrain.spec.shapes import SHAPE_OF, graph_shapes
from helpers.activation_cases import LAYERS as ACTIVATION_LAYERS
from helpers.sampling import assert_inside, points_inside

SHAPE = (2, 8, 8)


def graph(*layers: dict[str, Any]) -> Graph:
    return Graph(name="graph", layers=layers)


def rebuilt(module: nn.Module) -> GraphNetwork:
    """The network made from the module's layers as data, with the module's tensors; the data went through JSON."""
    found = graph_of(read_layers(module))
    network = GraphNetwork(Graph.model_validate_json(found.graph.model_dump_json()))
    network.load_state_dict(found.state)
    return network.train(module.training)


def points(count: int = 5, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


# --- layers ------------------------------------------------------------------------------------------------

# Each layer with arguments unlike the defaults, and what it takes.
LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(5, 3, bias=False), (5,)),
    (nn.Linear(5, 3), (4, 5)),
    (nn.Conv2d(2, 4, (3, 2), (2, 1), (1, 0), (1, 2), 2, bias=False), SHAPE),
    (nn.Conv2d(2, 3, 3, padding="same", dilation=2), SHAPE),
    (nn.Conv2d(2, 3, 3, padding="valid"), SHAPE),
    (nn.BatchNorm1d(5, eps=1e-3, momentum=None), (5,)),
    (nn.BatchNorm1d(5, affine=False), (5, 3)),
    (nn.BatchNorm2d(2, eps=0.1, momentum=0.3), SHAPE),
    (Normalize((0.1, 0.7), (0.3, 1.1)), SHAPE),
    (nn.AvgPool2d((3, 2), 2, (1, 0), ceil_mode=True, count_include_pad=False), SHAPE),
    (nn.AvgPool2d(3, divisor_override=4), SHAPE),
    (nn.AdaptiveAvgPool2d((3, None)), SHAPE),
    (nn.AdaptiveAvgPool2d(1), SHAPE),
    (nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True), SHAPE),
    (nn.MaxPool2d(2), SHAPE),
    (nn.Flatten(), SHAPE),
    (nn.Flatten(1, 2), SHAPE),
    (nn.Flatten(2), SHAPE),
    (nn.Flatten(2, 3), SHAPE),
    (Reshape((4, 32)), SHAPE),
    (Permute((3, 1, 2)), SHAPE),
    (Pad(2, 1, 0), SHAPE),
    (Pad(3, 0, 2, -1.5), SHAPE),
    (Slice(3, 1, 7, 2), SHAPE),
    (nn.Identity(), SHAPE),
    (nn.Dropout(0.2), SHAPE),
    (nn.ReLU(inplace=True), SHAPE),
    *((layer, SHAPE) for layer in ACTIVATION_LAYERS),
]
EACH = pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: str(value))


def test_what_data_can_say_is_what_has_a_rule():
    types = {layer.__name__ for layer in INTERVAL_RULES}
    assert SECTIONS.keys() == types | {"Shared"}
    assert SHAPE_OF.keys() == types
    assert {type(layer) for layer, _ in LAYERS} | {Add, Concat} == INTERVAL_RULES.keys()


@EACH
def test_a_layer_survives_as_data(layer: nn.Module, shape: tuple[int, ...]):
    model = nn.Sequential(layer).eval()
    again, x = rebuilt(model), points(shape=shape)
    assert torch.equal(again(x), model(x.clone()))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert graph_of(read_layers(again)).graph == graph_of(read_layers(model)).graph


@EACH
def test_its_shape_is_torchs(layer: nn.Module, shape: tuple[int, ...]):
    found = graph_of(read_layers(nn.Sequential(layer))).graph
    assert graph_shapes(found, shape)["0"] == tuple(layer.eval()(points(2, shape)).shape[1:])


def test_the_shapes_of_windows_are_torchs():
    checked = refused = 0
    windows = product((1, 2, 3, 4), (1, 2, 3, 5), (0, 1, 2), (1, 2), (False, True))
    for kernel, stride, padding, dilation, ceil in windows:
        made: list[nn.Module] = [nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)]
        made += [] if ceil else [nn.Conv2d(1, 1, kernel, stride, padding, dilation)]
        made += [nn.AvgPool2d(kernel, stride, padding, ceil)] if dilation == 1 else []
        for layer in made:
            if 2 * padding > kernel and not isinstance(layer, nn.Conv2d):
                continue  # what torch makes of it depends on the kernel that it chooses
            found = graph_of(read_layers(nn.Sequential(layer))).graph
            for size in (2, 5, 6, 7):
                try:
                    expected = tuple(layer(torch.zeros(1, 1, size, size + 1)).shape[1:])
                except RuntimeError:
                    refused += 1
                    with pytest.raises(NetworkError, match="layer '0' does not fit its input of shape"):
                        graph_shapes(found, (1, size, size + 1))
                    continue
                assert graph_shapes(found, (1, size, size + 1))["0"] == expected, layer
                checked += 1
    assert checked > 800
    assert refused > 50


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "features": ({"type": "Linear", "in_features": 5, "out_features": 3}, "it takes 5 features"),
    "channels": ({"type": "Conv2d", "in_channels": 3, "out_channels": 3, "kernel_size": 1}, "3 channels in 3 dim"),
    "large kernel": ({"type": "Conv2d", "in_channels": 2, "out_channels": 3, "kernel_size": 9}, "larger than that"),
    "large window": ({"type": "MaxPool2d", "kernel_size": 9}, "window is larger than that"),
    "padding": ({"type": "AvgPool2d", "kernel_size": 2, "padding": 2}, "more than half of its window"),
    "vectors": ({"type": "BatchNorm1d", "num_features": 2}, "2 channels in 1 dim"),
    "images": ({"type": "BatchNorm2d", "num_features": 3}, "3 channels in 3 dim"),
    "means": ({"type": "Normalize", "mean": [0.5, 0.5], "std": [1.0]}, "2 means and 1 deviations"),
    "other values": ({"type": "Reshape", "shape": [4, 4]}, "it takes 16 values"),
    "no order": ({"type": "Permute", "dims": [1, 3, 3]}, r"\(1, 3, 3\) is not a permutation of its dimensions"),
    "padded dimension": ({"type": "Pad", "dim": 4, "before": 1, "after": 0}, "no dimension 4 from 1 on"),
    "places": ({"type": "Slice", "dim": 1, "start": 0, "stop": 3}, "it takes places 0 to 2"),
    "dimension": ({"type": "Flatten", "end_dim": 5}, "no dimension 5"),
    "many values": ({"type": "AdaptiveAvgPool2d", "output_size": 2**19}, "has 549,755,813,888 values for one image"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_layer_that_does_not_fit_is_named(name: str):
    layer, message = MISFITS[name]
    head = {"name": "flat", "type": "Flatten"}, {"name": "out", "type": "Linear", "in_features": 128, "out_features": 3}
    with pytest.raises(NetworkError, match=f"layer 'odd' .*{message}"):
        build_graph(graph({"name": "odd"} | layer, *head), SHAPE, 3)


CONV = {"name": "odd", "type": "Conv2d", "in_channels": 2, "out_channels": 3, "kernel_size": 1}
IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "groups": (CONV | {"groups": 2}, "layer 'odd' cannot be made: out_channels must be divisible by groups"),
    "same": (CONV | {"padding": "same", "stride": 2}, "layer 'odd' cannot be made: .*same"),
    "attribute": ({"type": "ReLU", "name": "forward"}, "a layer cannot have the name 'forward', which torch"),
    "own attribute": ({"type": "ReLU", "name": "_graph.a"}, "a layer cannot have the name '_graph', which torch"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_layer_that_cannot_be_is_named(name: str):
    layer, message = IMPOSSIBLE[name]
    with pytest.raises(NetworkError, match=message):
        GraphNetwork(graph(layer))


def test_sums_of_unlike_shapes_do_not_fit():
    pooled = {"name": "pool", "type": "MaxPool2d", "kernel_size": 2}
    with pytest.raises(NetworkError, match=r"'sum' does not fit .*\(2, 8, 8\) and \(2, 4, 4\): their sides differ"):
        build_graph(graph(pooled, {"name": "sum", "type": "Add", "inputs": ["input", "pool"]}), SHAPE, 3)


class Rearranged(nn.Module):
    """Every layer that moves values, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.pad, self.slice, self.join = Pad(2, 1, 0), Slice(3, 1, 7, 2), Concat(1)
        self.order, self.shape, self.head = Permute((2, 3, 1)), Reshape((9, 12)), nn.Linear(108, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slice(self.pad(x))
        return self.head(torch.flatten(self.shape(self.order(self.join(x, torch.relu(x)))), 1))


def test_values_that_are_moved_come_out_as_data_and_are_bounded():
    torch.manual_seed(0)
    network, x, eps = Rearranged(), points(3), 0.02
    again = rebuilt(network)
    assert torch.equal(again(points()), network(points()))
    for method in METHODS:
        lower, upper = output_bounds(again, x, eps, method=method)
        for point in points_inside((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)):
            assert_inside(network(point), lower - 1e-5, upper + 1e-5)


def test_what_is_put_side_by_side_has_other_dimensions_alike():
    pooled = {"name": "pool", "type": "MaxPool2d", "kernel_size": 2}
    both = {"name": "both", "type": "Concat", "dim": 1, "inputs": ["input", "pool"]}
    with pytest.raises(
        NetworkError, match=r"'both' does not fit .*\(2, 8, 8\) and \(2, 4, 4\): they differ in another"
    ):
        build_graph(graph(pooled, both), SHAPE, 3)
    both["inputs"] = ["input", "input"]
    assert graph_shapes(graph(both), SHAPE)["both"] == (4, 8, 8)


def test_logits_must_be_one_for_each_class():
    wide = graph(
        {"name": "f", "type": "Flatten"}, {"name": "l", "type": "Linear", "in_features": 128, "out_features": 4}
    )
    assert build_graph(wide, SHAPE, 4)(points()).shape == (5, 4)
    with pytest.raises(NetworkError, match=r"values of shape \(2, 4\) for two images .* 3 classes have shape \(2, 3\)"):
        build_graph(wide, SHAPE, 3)


# --- networks ----------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """Pre-activation blocks in nested modules, one activation module for all, one convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.blocks = nn.ModuleList([self.block(), self.block()])
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.unused = nn.Linear(7, 7)
        self.head = nn.Linear(4, 3)

    @staticmethod
    def block() -> nn.Module:
        return nn.ModuleDict({"norm": nn.BatchNorm2d(4), "conv": nn.Conv2d(4, 4, 3, padding=1, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block["conv"](self.act(block["norm"](x)))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture
def residual() -> Residual:
    torch.manual_seed(0)
    network = Residual()
    network.train()(points(20))  # so that BatchNorm has something to do
    return network.eval()


def test_a_network_computes_the_same_as_data(residual: Residual):
    network, x = rebuilt(residual), points()
    assert torch.equal(network(x), residual(x))
    assert torch.equal(rebuilt(residual.train())(x), residual(x))


def test_its_tensors_keep_their_names(residual: Residual):
    expected = {key for key in residual.state_dict() if not key.startswith("unused")}
    assert rebuilt(residual).state_dict().keys() == expected
    residual.load_state_dict(rebuilt(residual).state_dict(), strict=False)


def test_its_layers_are_traced_as_any_others(residual: Residual):
    names = [call.name for call in read_layers(rebuilt(residual)).calls]
    assert names[:5] == ["stem", "blocks.0.norm", "act", "blocks.0.conv", "add"]
    assert graph_of(read_layers(rebuilt(residual))).graph == graph_of(read_layers(residual)).graph


def test_a_layer_called_twice_has_its_weights_once(residual: Residual):
    layers = graph_of(read_layers(residual)).graph.layers
    assert [layer.layer for layer in layers if isinstance(layer, SharedSection)] == ["twice"]
    assert [layer.name for layer in layers if layer.name.startswith("act")] == ["act", "act_1"]
    calls = read_layers(rebuilt(residual)).calls
    (first, second) = (call.layer for call in calls if isinstance(call.layer, nn.Conv2d) and "twice" in call.name)
    assert first is second


def test_a_copy_has_layers_of_its_own(residual: Residual):
    network = rebuilt(residual)
    copied, before = copy.deepcopy(network), network(points())
    with torch.no_grad():
        copied.get_parameter("stem.weight").zero_()
    assert torch.equal(network(points()), before)
    assert not torch.equal(copied(points()), before)


def test_bounds_of_the_rebuilt_network_hold(residual: Residual):
    network, x, eps = rebuilt(residual), points(3), 0.02
    lower, upper = output_bounds(network, x, eps)
    expected = output_bounds(residual, x, eps)
    assert torch.equal(lower, expected[0])
    assert torch.equal(upper, expected[1])
    for point in points_inside((x - eps).clamp(0, 1), (x + eps).clamp(0, 1)):
        assert_inside(network(point), lower, upper)


def test_layers_without_use_are_left_out():
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            torch.relu(self.b(x))
            return self.c(self.a(x))

    assert [layer.name for layer in graph_of(read_layers(Wasteful())).graph.layers] == ["a", "c"]


def test_names_are_made_fit_for_files_and_modules():
    given = ["relu", "relu.0", "a b", "a.b.c.d.e.f.g.h.i.j", "input", "x.forward", "a_b", "naïve", "_graph", "relu"]
    calls = tuple(LayerCall(name, nn.ReLU(), (value,)) for value, name in enumerate(given))
    found = graph_of(LayerGraph(calls)).graph
    assert [layer.name for layer in found.layers] == [
        "relu", "relu_0", "a_b", "a.b.c.d.e.f.g.h_i_j", "input_1", "x.forward_", "a_b_1", "na_ve", "_graph_", "relu_1"
    ]  # fmt: skip
    assert torch.equal(GraphNetwork(found)(points()), points())


def test_a_layer_that_data_cannot_say_is_an_error():
    with pytest.raises(UnsupportedLayer, match=r"(?s)layer '1' cannot be written to a file:.*approximate"):
        graph_of(read_layers(nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh"))))


def test_weights_in_common_are_an_error():
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(UnsupportedLayer, match="'0' and '2' share a weight; call one layer twice"):
        graph_of(read_layers(tied))


def test_too_many_layers_are_an_error():
    deep = LayerGraph(tuple(LayerCall(f"relu{value}", nn.ReLU(), (value,)) for value in range(1025)))
    with pytest.raises(UnsupportedLayer, match=r"cannot be written to a file:\n  layers: .*one to 1024 layers"):
        graph_of(deep)


def test_batch_norm_without_statistics_is_an_error():
    with pytest.raises(UnsupportedLayer, match="'0' keeps no running statistics"):
        graph_of(read_layers(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))))


# --- the data themselves -----------------------------------------------------------------------------------

RELU = {"name": "a", "type": "ReLU"}
WRONG: dict[str, tuple[Any, str]] = {
    "no layers": ([], r"model\.layers: it must be a list of one to 1024 layers"),
    "too many": ([RELU | {"name": f"a{i}"} for i in range(1025)], "one to 1024 layers"),
    "no list": ("ReLU", "one to 1024 layers"),
    "no layer": ([5], r"layers\.0: must be a section with fields, not 5"),
    "unknown type": ([RELU | {"type": "Mish"}], r"layers\.0: .*'Mish'.*'ReLU'"),
    "no type": ([{"name": "a"}], r"layers\.0: .*'type'"),
    "no name": ([{"type": "ReLU"}], r"layers\.0\.ReLU\.name: must be given"),
    "misspelt": (
        [RELU | {"inpts": ["input"]}],
        r"layers\.0\.ReLU\.inpts: .*mean 'model\.layers\.0\.ReLU\.inputs'",
    ),
    "bad name": ([RELU | {"name": "a b"}], r"layers\.0\.ReLU\.name"),
    "deep name": ([RELU | {"name": "a.b.c.d.e.f.g.h.i"}], r"layers\.0\.ReLU\.name"),
    "long name": ([RELU | {"name": "a" * 201}], r"layers\.0\.ReLU\.name.*200"),
    "same name": ([RELU, RELU], "two layers have the name 'a'"),
    "input": ([RELU | {"name": "input"}], "two layers have the name 'input'"),
    "group": ([RELU, RELU | {"name": "a.b"}], "the name of layer 'a.b' makes 'a' a group, but that is a layer"),
    "itself": ([RELU | {"inputs": ["a"]}], "layer 'a' has the input 'a', which is not an earlier layer"),
    "later": ([RELU | {"inputs": ["b"]}, RELU | {"name": "b"}], "'a' has the input 'b', which is not an earlier layer"),
    "two inputs": (
        [RELU | {"inputs": ["input", "input"]}],
        "'a' has 2 inputs; an Add and a Concat have two, all others one",
    ),
    "one summand": ([{"name": "a", "type": "Add"}], "'a' has 1 inputs; an Add and a Concat have two"),
    "alone": ([{"name": "a", "type": "Concat", "dim": 1}], "'a' has 1 inputs; an Add and a Concat have two"),
    "batch dimension": ([{"name": "a", "type": "Pad", "dim": 0, "before": 1, "after": 1}], r"Pad\.dim"),
    "padded by infinity": (
        [{"name": "a", "type": "Pad", "dim": 1, "before": 1, "after": 1, "value": float("inf")}],
        r"Pad\.value",
    ),
    "padded by too much": (
        [{"name": "a", "type": "Pad", "dim": 1, "before": 1, "after": 1, "value": -1e39}],
        r"Pad\.value",
    ),
    "backwards": ([{"name": "a", "type": "Slice", "dim": 1, "start": 0, "stop": 2, "step": -1}], r"Slice\.step"),
    "unused": ([RELU, RELU | {"name": "b", "inputs": ["input"]}], "no layer uses the result of 'a'"),
    "shares nothing": (
        [{"name": "a", "type": "Shared", "layer": "b"}],
        "shares 'b', which is not an earlier layer",
    ),
    "shares a relu": ([RELU, {"name": "b", "type": "Shared", "layer": "a"}], "not an earlier layer with weights"),
    "wide": ([{"name": "a", "type": "Linear", "in_features": 2**21, "out_features": 1}], r"Linear\.in_features"),
    "padding": (
        [{"name": "a", "type": "Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1, "padding": "some"}],
        r"Conv2d\.padding: 'some' must be one or two numbers from 0 to 1048576",
    ),
    "falling": ([{"name": "a", "type": "LeakyReLU", "negative_slope": -0.1}], r"LeakyReLU\.negative_slope"),
    "infinite": ([{"name": "a", "type": "LeakyReLU", "negative_slope": float("inf")}], "finite"),
    "another GELU": ([{"name": "a", "type": "GELU", "approximate": "tanh"}], r"GELU\.approximate: .*'none'"),
    "no ELU": ([{"name": "a", "type": "ELU", "alpha": 0.0}], r"ELU\.alpha: must be above 0"),
    "no softplus": ([{"name": "a", "type": "Softplus", "beta": -1.0}], r"Softplus\.beta: must be above 0"),
    "a late threshold": (
        [{"name": "a", "type": "Softplus", "threshold": 90.0}],
        r"Softplus\.threshold: .*most 80",
    ),
    "no interval": ([{"name": "a", "type": "Hardtanh", "min_val": 1.0}], "min_val must be below max_val"),
    "no limit": ([{"name": "a", "type": "Clamp"}], "it has neither min nor max"),
    "crossed limits": ([{"name": "a", "type": "Clamp", "min": 2.0, "max": 1.0}], "min must not be above max"),
    "a limit too large": ([{"name": "a", "type": "Clamp", "min": 1e39}], r"Clamp\.min"),
    "batch": ([{"name": "a", "type": "Flatten", "start_dim": 0}], r"Flatten\.start_dim"),
    "deviation": ([{"name": "a", "type": "Normalize", "mean": [0.0], "std": [0.0]}], r"Normalize\.std\.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_are_an_error_that_names_them(name: str):
    layers, message = WRONG[name]
    with pytest.raises(PresetError, match=message):
        load_preset("digits", {"model": {"name": "graph", "layers": layers}})


def test_a_layer_takes_the_one_before_it_by_default():
    conv = {"name": "conv", "type": "Conv2d", "in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1}
    short = graph(
        conv, RELU, {"name": "sum", "type": "Add", "inputs": ["a", "input"]}, {"name": "f", "type": "Flatten"}
    )
    assert [layer.inputs for layer in short.layers] == [("input",), ("conv",), ("a", "input"), ("sum",)]
    assert short.layers[0].kernel_size == (3, 3)
