"""Any module's forward pass becomes a list of layers, or an error that says what is in the way."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain import margin_bounds, output_bounds, propagate
from certtrain.bounds.graph import Add
from certtrain.bounds.reading import read_layers
from certtrain.bounds.shape_layers import Pad
from certtrain.bounds.supported import checked_graph
from certtrain.errors import UnsupportedLayer
from helpers.functional_networks import Net, X, assert_follows, fc

# --- what can be followed --------------------------------------------------------------------------------

# A functional form of the middle or the end of a network, and the module it equals.
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "torch.relu": (torch.relu, nn.ReLU()),
    "F.relu": (F.relu, nn.ReLU()),
    "F.relu in place": (lambda x: F.relu(x, inplace=True), nn.ReLU()),
    "F.relu in place, by position": (lambda x: F.relu(x, True), nn.ReLU()),
    "x.relu()": (lambda x: x.relu(), nn.ReLU()),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU(0.2)),
    "F.leaky_relu by name": (lambda x: F.leaky_relu(x, negative_slope=0.3), nn.LeakyReLU(0.3)),
    "F.leaky_relu in place": (lambda x: F.leaky_relu(x, 0.2, True), nn.LeakyReLU(0.2)),
    "torch.sigmoid": (torch.sigmoid, nn.Sigmoid()),
    "torch.tanh": (torch.tanh, nn.Tanh()),
}
POOLINGS: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]] = {
    "F.max_pool2d": (lambda x: F.max_pool2d(x, 2), nn.MaxPool2d(2)),
    "F.max_pool2d, ceil": (lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "F.max_pool2d, padded": (lambda x: F.max_pool2d(x, 2, stride=3, padding=1), nn.MaxPool2d(2, 3, 1)),
    "F.avg_pool2d": (lambda x: F.avg_pool2d(x, 2), nn.AvgPool2d(2)),
    "F.avg_pool2d, ceil": (lambda x: F.avg_pool2d(x, 3, 2, 0, True), nn.AvgPool2d(3, 2, ceil_mode=True)),
    "F.adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), nn.AdaptiveAvgPool2d(2)),
}
FLATTENINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.flatten": lambda x: torch.flatten(x, 1),
    "torch.flatten by name": lambda x: torch.flatten(x, start_dim=1),
    "x.flatten": lambda x: x.flatten(1),
    "view by size": lambda x: x.view(x.size(0), -1),
    "view by shape": lambda x: x.view(x.shape[0], -1),
    "view by a tuple": lambda x: x.view((x.size(0), -1)),
    "view by all of size": lambda x: x.view(x.size()[0], -1),
    "reshape by shape": lambda x: x.reshape(x.shape[0], -1),
    "reshape by size": lambda x: x.reshape(x.size(0), -1),
    "torch.reshape": lambda x: torch.reshape(x, (x.shape[0], -1)),
}


def assert_same_bounds(found: nn.Module, expected: nn.Module) -> None:
    assert_follows(found)
    for mine, theirs in zip(output_bounds(found, X, 0.1), output_bounds(expected, X, 0.1), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_functional_activations_equal_modules(name: str):
    function, module = ACTIVATIONS[name]
    net = Net(lambda net, x: net.fc(torch.flatten(function(net.conv(x)), 1)))
    assert_same_bounds(net, fc(module))


@pytest.mark.parametrize("name", POOLINGS)
def test_functional_pooling_equals_modules(name: str):
    function, module = POOLINGS[name]
    net = Net(lambda net, x: net.pooled(torch.flatten(function(net.conv(x)), 1)))
    assert_same_bounds(net, fc(module, pooled=True))


@pytest.mark.parametrize("name", FLATTENINGS)
def test_functional_flattening_equals_the_module(name: str):
    assert_same_bounds(Net(lambda net, x: net.fc(FLATTENINGS[name](net.conv(x)))), fc())


def added_in_place(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    h += net.other(x)
    return net.fc(torch.flatten(h, 1))


SUMS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "x + y": lambda net, x: net.fc(torch.flatten(net.conv(x) + net.other(x), 1)),
    "torch.add": lambda net, x: net.fc(torch.flatten(torch.add(net.conv(x), net.other(x)), 1)),
    "torch.add by name": lambda net, x: net.fc(torch.flatten(torch.add(net.conv(x), other=net.other(x)), 1)),
    "+=": added_in_place,
}


class SumOfModules(Net):
    """The sum of two convolutions, by the module."""

    def __init__(self) -> None:
        super().__init__(lambda net, x: net.fc(torch.flatten(net.add(net.conv(x), net.other(x)), 1)))
        self.add = Add()


@pytest.mark.parametrize("name", SUMS)
def test_sums_equal_the_module(name: str):
    assert_same_bounds(Net(SUMS[name]), SumOfModules())


def test_a_residual_sum_adds_both_boxes():
    net = Net(lambda net, x: net.conv(x) + x)
    lower, upper = output_bounds(net, X, 0.1)
    inner = output_bounds(Net(lambda net, x: net.conv(x)), X, 0.1)
    torch.testing.assert_close(lower, inner[0] + (X - 0.1).clamp(0, 1))
    torch.testing.assert_close(upper, inner[1] + (X + 0.1).clamp(0, 1))


def test_the_sum_of_a_value_with_itself_is_its_double():
    single, double = Net(lambda net, x: net.conv(x)), Net(lambda net, x: (lambda h: h + h)(net.conv(x)))
    for once, twice in zip(output_bounds(single, X, 0.1), output_bounds(double, X, 0.1), strict=True):
        torch.testing.assert_close(twice, 2 * once)


def residual_block(net: Net, x: Tensor) -> Tensor:
    """As torchvision writes them: the value that enters is used twice, all activations overwrite."""
    x = net.overwriting(net.conv(x))
    out = net.overwriting(net.other(x))
    out = net.conv(out)
    out += x
    return net.fc(torch.flatten(net.overwriting(out), 1))


def test_residual_blocks_may_overwrite_what_nothing_else_uses():
    assert_follows(Net(residual_block))


def flattened_by_its_own_size(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return net.fc(net.overwriting(h.view(h.size(0), -1)))


def test_asking_for_a_size_is_no_use_of_a_value():
    assert_follows(Net(flattened_by_its_own_size))


def pooled_twice(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return net.pooled(torch.flatten(F.avg_pool2d(h, 3, 2, 0, True) + F.max_pool2d(h, 3, 2, ceil_mode=True), 1))


def test_a_true_by_position_need_not_mean_in_place():
    assert_follows(Net(pooled_twice))


def test_a_layer_called_twice_is_two_calls_of_the_same_weights():
    graph = read_layers(Net(lambda net, x: net.relu(net.conv(net.relu(net.conv(x))))))
    assert [call.name for call in graph.calls] == ["conv", "relu", "conv_1", "relu_1"]
    assert graph.calls[0].layer is graph.calls[2].layer
    assert_follows(Net(lambda net, x: net.relu(net.conv(net.relu(net.conv(x))))))


def test_nested_modules_are_opened_and_named_by_their_path():
    inner = Net(lambda net, x: torch.relu(net.conv(x)))
    model = nn.Sequential(inner, nn.Sequential(nn.Flatten(), nn.Linear(32, 3)))
    assert [call.name for call in read_layers(model).calls] == ["0.conv", "relu", "1.0", "1.1"]
    assert_follows(model)


def test_a_model_may_be_a_single_layer():
    with torch.no_grad():
        layer = nn.Linear(2, 3)
        wrapped = nn.Sequential(layer)
        x = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
        for mine, theirs in zip(output_bounds(layer, x, 0.1), output_bounds(wrapped, x, 0.1), strict=True):
            assert torch.equal(mine, theirs)


def test_an_unused_second_argument_is_no_second_input():
    class Optional(Net):
        def forward(self, x: Tensor, unused: Tensor | None = None) -> Tensor:
            return self.conv(x)

    assert_follows(Optional(lambda net, x: x))


def test_a_result_that_nothing_uses_is_left_out():
    net = Net(lambda net, x: (net.conv(x), net.other(x))[0])
    assert [call.name for call in read_layers(net).calls] == ["conv"]
    assert_follows(net)


def test_the_list_stays_true_while_weights_change():
    net = Net(lambda net, x: net.conv(x))
    graph = read_layers(net)
    assert graph.calls[0].layer is net.conv


# --- two parts of one network ----------------------------------------------------------------------------


def residual() -> nn.Module:
    return Net(lambda net, x: net.fc(torch.flatten(torch.relu(net.other(net.relu(net.conv(x))) + net.conv(x)), 1)))


def test_a_network_can_be_split_only_where_one_value_alone_goes_on():
    graph = checked_graph(residual())
    names = [graph.calls[cut - 1].name for cut in graph.cuts()]
    assert names == ["add", "relu_1", "flatten"]
    for cut in graph.cuts():
        first, second = graph.split(cut)
        with torch.no_grad():
            (*_, between), (*_, whole) = first.results(X), graph.results(X)
            *_, result = second.results(between)
        assert torch.equal(result, whole)
        assert len(first.calls) + len(second.calls) == len(graph.calls)


@pytest.mark.parametrize("name", ["conv", "relu", "other", "fc"])
def test_another_split_is_an_error_that_says_where_there_are_some(name: str):
    graph = checked_graph(residual())
    with pytest.raises(UnsupportedLayer, match="it can be split after 'add', 'relu_1', 'flatten'"):
        graph.split(graph.value_of(name))
    with pytest.raises(UnsupportedLayer, match="cannot be split at value 0"):
        graph.split(0)


def test_a_layer_that_is_not_there_has_no_value():
    with pytest.raises(UnsupportedLayer, match=r"has no layer 'conv9'; it has conv, relu"):
        checked_graph(residual()).value_of("conv9")


# --- what cannot -----------------------------------------------------------------------------------------


def overwrites_through_a_view(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    return net.fc(net.overwriting(torch.flatten(h, 1))) + net.fc(torch.flatten(h, 1))


def adds_into_a_value_used_later(net: Net, x: Tensor) -> Tensor:
    h = kept = net.conv(x)
    h += net.other(x)
    return net.fc(torch.flatten(h + kept, 1))


def adds_into_a_viewed_value(net: Net, x: Tensor) -> Tensor:
    h = net.conv(x)
    view = torch.flatten(h, 1)
    h += net.other(x)
    return net.fc(view)


class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.conv(x) + y


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    model = fc()
    model.conv.register_forward_hook(lambda layer, inputs, output: -output)
    return model


def hooked_as_a_whole() -> nn.Module:
    model = fc()
    model.register_forward_hook(lambda layer, inputs, output: -output)
    return model


UNSUPPORTED: dict[str, tuple[nn.Module, str]] = {
    "unknown layer": (nn.Sequential(nn.Linear(4, 4), nn.Mish()), r"'1' is a Mish.*can be bounded: .*Linear"),
    "unknown function": (
        Net(lambda net, x: torch.exp(net.conv(x))),
        r"'exp' calls torch\.exp.*can be bounded: .*F\.relu",
    ),
    "unknown method": (Net(lambda net, x: net.conv(x).exp()), r"node 'exp' calls x\.exp\(\), .*can be bounded: .*relu"),
    "branch": (Net(lambda net, x: net.conv(x) if x.sum() > 0 else x), r"Net cannot be traced.*must not branch"),
    "length": (Net(lambda net, x: net.conv(x) if len(x) > 0 else x), r"Net cannot be traced.*how many of them"),
    "two inputs": (
        TwoInputs(lambda net, x: x),
        r"missing 1 .*argument: 'y'. It is called with one input",
    ),
    "tuple": (Net(lambda net, x: (net.conv(x), x)), r"must return one tensor"),
    "input returned": (Net(lambda net, x: x), r"no layer"),
    "constant": (Net(lambda net, x: net.conv(x) + 1), r"'add'.*constant 1.*sum of two layers"),
    "constant first": (Net(lambda net, x: 1 + net.conv(x)), r"'add'.*constant 1|'add'.*sum of two layers"),
    "sum()": (Net(lambda net, x: sum([net.conv(x), net.other(x)])), r"'add'.*sum of two layers"),
    "size as a value": (Net(lambda net, x: net.conv(x) + x.size(0)), r"'add'.*sum of two layers"),
    "weighted sum": (Net(lambda net, x: torch.add(net.conv(x), net.other(x), alpha=2)), r"node 'add'.*alpha"),
    "parameter": (Net(lambda net, x: net.conv(x) + net.pooled.bias), r"'pooled.bias' is used outside a layer"),
    "overwritten": (
        Net(lambda net, x: (lambda h: net.overwriting(h) + h)(net.conv(x))),
        r"'overwriting' overwrites a value that is used elsewhere; use inplace=False",
    ),
    "overwritten by F.relu": (
        Net(lambda net, x: (lambda h: F.relu(h, inplace=True) + h)(net.conv(x))),
        r"'relu' overwrites a value that is used elsewhere",
    ),
    "overwritten through a view": (Net(overwrites_through_a_view), r"'overwriting' overwrites"),
    "added into, then used": (Net(adds_into_a_value_used_later), r"overwrites a value that is used elsewhere"),
    "added into below a view": (Net(adds_into_a_viewed_value), r"overwrites a value that is used elsewhere"),
    "subclass": (nn.Sequential(Doubled(4, 3)), r"'0.weight' is used outside a layer"),
    "circular padding": (
        nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
        r"'0' pads by 'circular'; only 'zeros'",
    ),
    "indices": (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), r"'0' returns indices"),
    "flattened batch": (
        nn.Sequential(nn.Flatten(start_dim=0)),
        r"'0' flattens from dimension 0 .*batch; use start_dim=1",
    ),
    "flattened batch, torch.flatten": (Net(lambda net, x: torch.flatten(net.conv(x))), r"flattens from dimension 0"),
    "view of a fixed batch": (
        Net(lambda net, x: net.conv(x).view(3, -1)),
        r"'view'.*batch must stay in front.*x\.flatten\(1\)",
    ),
    "view by the channels": (Net(lambda net, x: net.conv(x).view(x.size(1), -1)), r"'view'.*batch must stay in front"),
    "view of images": (Net(lambda net, x: net.conv(x).view(x.size(0), 4, 8)), r"'view'.*\(2, 4, 4\).*only joining"),
    "padding by infinity": (nn.Sequential(nn.Linear(4, 3), Pad(1, 1, 0, -math.inf)), r"'1' pads by -inf; use a finite"),
    "falling leaky relu": (nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(-0.5)), r"'1' has a negative slope"),
    "negative divisor": (nn.Sequential(nn.AvgPool2d(2, divisor_override=-1)), r"'0'.*divisor"),
    "parametrised": (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))), r"ParametrizedLinear"),
    "hooked": (hooked(), r"'conv'.*hook"),
    "hooked as a whole": (hooked_as_a_whole(), r"hook"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_bounds_is_an_error_that_names_it(name: str):
    model, message = UNSUPPORTED[name]
    with pytest.raises(UnsupportedLayer, match=f"(?s){message}"):
        propagate(model.eval(), X, 0.1)


def test_dropout_in_training_mode_is_an_error():
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.Dropout(0.5))
    with pytest.raises(UnsupportedLayer, match=r"Dropout.*random in training"):
        propagate(model.train(), X, 0.1)
    assert_follows(model.eval())


def test_dropout_that_drops_nothing_may_train():
    assert_follows(nn.Sequential(nn.Flatten(), nn.Linear(32, 3), nn.Dropout(0.0)).train())


def test_batch_norm_without_running_statistics_has_no_bounds_in_evaluation_mode():
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(UnsupportedLayer, match="keeps no running statistics"):
        output_bounds(model.eval(), X, 0.1)
    assert_follows(model.train())


@pytest.mark.parametrize("part", ["all", "batch norm alone"])
def test_bounds_of_batch_norm_in_training_mode_are_an_error(part: str):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32), nn.Linear(32, 3)).eval()
    (model if part == "all" else model[1]).train()
    with pytest.raises(UnsupportedLayer, match=r"'1' is in training mode; call model.eval\(\) first"):
        output_bounds(model, X, 0.1)
    with pytest.raises(UnsupportedLayer, match=r"'1' is in training mode; call model.eval\(\) first"):
        margin_bounds(model, X, torch.tensor([0, 1, 2]), 0.1)
