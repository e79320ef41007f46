"""What tracing cannot see: a network that runs otherwise than it was read is refused by every call."""

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import certtrain
from certtrain.errors import UnsupportedLayer
from certtrain.network.modelfile import Classifier
from helpers import tiny_classifier

REFUSED = (
    "uses the number of inputs as a key|depends on something that cannot be traced|cannot be traced|asks for the class"
)


class Net(nn.Module):
    """Two linear layers, and between them what `forward` says."""

    def __init__(self, between: "Callable[[Net, Tensor], Tensor]") -> None:
        super().__init__()
        self.first, self.last, self.between = nn.Linear(4, 8), nn.Linear(8, 3), between
        self.register_buffer("table", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def is_tensor(net: Net, h: Tensor) -> Tensor:
    return torch.relu(h) if torch.is_tensor(h) else h


def type_is(net: Net, h: Tensor) -> Tensor:
    return torch.relu(h) if type(h) is Tensor else h


def dtype_is(net: Net, h: Tensor) -> Tensor:
    return torch.relu(h) if h.dtype is torch.float32 or h.dtype is torch.float64 else h


def needs_gradient(net: Net, h: Tensor) -> Tensor:
    return torch.relu(h) if h.requires_grad is False else h


def data_assigned(net: Net, h: Tensor) -> Tensor:
    h.data = torch.relu(h)
    return h


def reordered(net: Net, h: Tensor) -> Tensor:
    return h.flip(1) if torch.is_tensor(h) else h


def swallowed(net: Net, h: Tensor) -> Tensor:
    try:
        assert isinstance(h, Tensor)
    except Exception:
        return h
    return torch.relu(h)


def looked_up(net: Net, h: Tensor) -> Tensor:
    return torch.relu(h) if tuple(h.shape) in {(2, 8), (1, 8)} else h


def spelt(net: Net, h: Tensor) -> Tensor:
    return torch.relu(h) if str(h.shape).startswith("torch.Size") else h


BRANCHES = [looked_up, spelt, is_tensor, type_is, dtype_is, needs_gradient, data_assigned, reordered, swallowed]


@pytest.mark.parametrize("between", BRANCHES, ids=lambda between: between.__name__)
def test_a_branch_that_tracing_loses_is_refused(between: Callable[[Net, Tensor], Tensor]):
    torch.manual_seed(0)
    model, x = Net(between).eval(), torch.rand(2, 4)
    calls: list[Callable[[], object]] = [
        lambda: certtrain.certify(model, x, torch.tensor([0, 1]), 0.1),
        lambda: certtrain.output_bounds(model, x, 0.1),
        lambda: certtrain.propagate(model, x, 0.1),
    ]
    for call in calls:
        with torch.no_grad(), pytest.raises(UnsupportedLayer, match=REFUSED):
            call()


def test_verify_refuses_such_a_network():
    class Flat(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

    described = tiny_classifier.metadata()
    model = Classifier(nn.Sequential(OrderedDict(network=Flat(is_tensor))), described).eval()
    with pytest.raises(UnsupportedLayer, match=REFUSED):
        certtrain.verify(model, tiny_classifier.images(), 0.1, attack=None, method="ibp")


def single_precision(net: Net, h: Tensor) -> Tensor:
    return torch.relu(h) if net.table.dtype == torch.float32 else h


def test_a_branch_on_the_precision_of_weights_is_refused_where_bounds_use_another():
    model, x = Net(single_precision).eval(), torch.rand(2, 4)
    with pytest.raises(UnsupportedLayer, match="something different in float64"):
        certtrain.certify(model, x, torch.tensor([0, 1]), 0.1)


class Optional(nn.Module):
    """A forward pass with arguments that have defaults, as many networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, act: nn.Module | None = None, scale: bool = True, *, skip: bool = False) -> Tensor:
        h = self.first(x)
        if act is None:
            h = torch.relu(h)
        if scale is True:
            h = torch.tanh(h)
        return h if skip else self.last(h)


def test_arguments_with_defaults_have_them():
    torch.manual_seed(0)
    model, x = Optional().eval(), torch.rand(3, 4)
    for method in ("ibp", "crown"):
        lower, upper = certtrain.output_bounds(model, x, 0.0, method=method)
        torch.testing.assert_close(lower, model(x))
        torch.testing.assert_close(upper, model(x))


def test_a_replay_leaves_statistics_and_random_numbers_alone():
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).train()
    torch.manual_seed(1)
    expected, before = torch.rand(1), model[1].running_mean.clone()
    torch.manual_seed(1)
    certtrain.bounds.supported.checked_graph(model, (4,))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(model[1].running_mean, before)
    assert int(model[1].num_batches_tracked) == 0


# --- branches in code that only runs outside of tracing --------------------------------------------------


def real(h: Tensor) -> bool:
    """Whether it is a tensor and no symbol, by a question that no symbol notices."""
    return type(h) is Tensor


def counted(net: Net, h: Tensor) -> bool:
    net.calls["number"] += 1
    return net.calls["number"] > 40


def counted_in_an_object(net: Net, h: Tensor) -> bool:
    net.state.number += 1
    return net.state.number > 40


def swallowed_class(net: Net, h: Tensor) -> bool:
    try:
        return isinstance(h, Tensor) and h.detach().numpy().mean() > 1e5
    except Exception:
        return False


def swallowed_numbers(net: Net, h: Tensor) -> bool:
    try:
        return real(h) and h.detach().numpy().mean() > 1e5
    except Exception:
        return False


def swallowed_count(net: Net, h: Tensor) -> bool:
    try:
        return {7: True}.get(h.size(0), False)
    except Exception:
        return False


def pointed_at(net: Net, h: Tensor) -> bool:
    if real(h):
        net.table.data = h.detach()
    return bool(real(h) and net.table.max() > 1e5)


# What each reads, and a condition that random inputs and other batches do not meet; then a result is negated.
HIDDEN: dict[str, tuple[str, Callable[[Net, Tensor], object]]] = {
    "numpy": ("reads 'numpy'", lambda net, h: real(h) and h.detach().numpy().mean() > 1e5),
    "array": ("reads '__array__'", lambda net, h: real(h) and np.asarray(h.detach())[0, 0] > 1e5),
    "dlpack": ("reads '__dlpack__'", lambda net, h: real(h) and np.from_dlpack(h.detach())[0, 0] > 1e5),
    "list": ("reads 'tolist'", lambda net, h: real(h) and h[0].tolist()[0] > 1e5),
    "truth": ("reads '__bool__'", lambda net, h: real(h) and h.detach().max() > 1e5),
    "text": ("reads '__repr__'", lambda net, h: real(h) and "e+05" in str(h.detach())),
    "equality": ("reads 'equal'", lambda net, h: real(h) and torch.equal(h, h + 1)),
    "memory": ("reads 'untyped_storage'", lambda net, h: real(h) and len(h.untyped_storage()) == 7),
    "order in memory": ("reads 'is_contiguous'", lambda net, h: real(h) and not h.is_contiguous()),
    "number of values": ("reads 'numel'", lambda net, h: real(h) and h.numel() == 56),
    "batch of seven": ("another result", lambda net, h: real(h) and len(h) == 7),
    "shape of seven": ("another result", lambda net, h: not isinstance(h, fx.Proxy) and h.shape[0] == 7),
    "batch of one": ("in a batch of one", lambda net, h: type(size := h.size(0)) is int and size == 1),
    "gradients": ("where gradients are on", lambda net, h: torch.is_grad_enabled()),
    "inference mode": ("in inference mode", lambda net, h: torch.is_inference_mode_enabled()),
    "a counter": ("changes 'calls'", counted),
    "a counter in an object": ("changes 'state'", counted_in_an_object),
    "a caught question": ("asks for the class", swallowed_class),
    "caught numbers": ("reads 'numpy'", swallowed_numbers),
    "a caught count": ("as a key", swallowed_count),
    "a weight pointed at a value": ("reads '__set__'", pointed_at),
    "gradient": ("reads 'grad_fn'", lambda net, h: real(h) and h.grad_fn is not None),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_branch_outside_of_tracing_is_refused(name: str):
    torch.manual_seed(0)
    message, condition = HIDDEN[name]
    model = Net(lambda net, h: -torch.relu(h) if condition(net, h) else torch.relu(h)).eval()
    model.calls, model.state = {"number": 0}, SimpleNamespace(number=0)
    with pytest.raises(UnsupportedLayer, match=message):
        certtrain.certify(model, torch.rand(2, 4), torch.tensor([0, 1]), 0.1)


# What limits a value that no random input reaches.
LIMITED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "gradients": ("where gradients are on", lambda h: h if torch.is_grad_enabled() else h.clamp(max=1e6)),
    "inference": ("in inference mode", lambda h: h if torch.is_inference_mode_enabled() else h.clamp(max=1e6)),
    "autocast": ("with autocast", lambda h: h if torch.is_autocast_enabled("cpu") else h.clamp(max=1e6)),
    "the limit": ("computes 'clamp' with other numbers", lambda h: h.clamp(0.0, 1e9 if real(h) else 1e6)),
    "a function": ("computes 'certtrain_tests::relu'", lambda h: own_relu(h) if real(h) else torch.relu(h)),
}


@torch.library.custom_op("certtrain_tests::relu", mutates_args=())
def own_relu(h: Tensor) -> Tensor:
    return torch.relu(h) if h.max() < 1e6 else -torch.relu(h)


@pytest.mark.parametrize("name", LIMITED)
def test_what_random_inputs_do_not_show_is_refused_by_its_operations(name: str):
    torch.manual_seed(0)
    message, between = LIMITED[name]
    model = Net(lambda net, h: torch.relu(between(h))).eval()
    with pytest.raises(UnsupportedLayer, match=message):
        certtrain.certify(model, torch.rand(2, 4), torch.tensor([0, 1]), 0.1)


def test_a_forward_pass_without_gradients_is_certified():
    class Frozen(Net):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    model, x = Frozen(lambda net, h: torch.relu(h)).eval(), torch.rand(2, 4)
    assert certtrain.certify(model, x, model(x).argmax(1), 1e-4).verdicts == ("certified",) * 2


def test_constants_and_containers_of_modules_may_be_read():
    def between(net: Net, h: Tensor) -> Tensor:
        assert len(net.constant) == net.constant.shape[0] == 3
        assert net.state_dict()["first.weight"].shape[0] == next(net.first.parameters()).data.size(0) == 8
        return torch.relu(h)

    torch.manual_seed(0)
    model, x = Net(between).eval(), torch.rand(2, 4)
    model.constant, model.registry = torch.ones(3), {"itself": None}
    model.registry["itself"] = model.registry
    assert certtrain.certify(model, x, model(x).argmax(1), 1e-4).verdicts == ("certified",) * 2


def test_shapes_and_weights_may_be_read():
    def between(net: Net, h: Tensor) -> Tensor:
        assert h.dim() == h.ndim == len(h.shape) == 2
        assert net.first.weight.shape[0] == h.size(-1) == 8
        count, *rest = h.size()
        return torch.relu(h.view(len(h), -1).reshape(count, *rest))

    torch.manual_seed(0)
    model, x = Net(between).eval(), torch.rand(3, 4)
    certificate = certtrain.certify(model, x, model(x).argmax(1), 1e-4)
    assert certificate.verdicts == ("certified",) * 3


# --- layers that bounds met badly ------------------------------------------------------------------------


def test_a_first_layer_that_works_in_place_is_certified_and_the_input_left_alone():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).eval(), torch.rand(3, 4)
    labels, before = model(x.clone()).argmax(1), x.clone()
    for method in ("ibp", "alpha-crown"):
        assert "certified" in certtrain.certify(model, x, labels, 1e-4, method=method).verdicts
    assert torch.equal(x, before)


class InPlaceSum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        h += self.other(x)
        return self.last(h)


IN_PLACE = {
    "after a rectifier": lambda: nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.LeakyReLU(0.1, inplace=True), nn.Linear(4, 3)
    ),
    "after a sigmoid": lambda: nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.ReLU(inplace=True), nn.Linear(4, 3)),
    "a sum": InPlaceSum,
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("method", ["ibp", "alpha-crown"])
def test_networks_that_no_gradient_could_train_are_certified(name: str, method: str):
    torch.manual_seed(0)
    model, x = IN_PLACE[name]().eval(), torch.rand(3, 4)
    labels = model(x).argmax(1)
    assert "certified" in certtrain.certify(model, x, labels, 1e-4, method=method).verdicts


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
def test_linear_bounds_of_a_convolution_that_reads_padding_alone(method: str):
    model = nn.Sequential(nn.Conv2d(1, 2, 1, stride=10, padding=3), nn.Flatten(), nn.Linear(2, 2)).double().eval()
    x = torch.rand(2, 1, 1, 1, dtype=torch.float64)
    lower, upper = certtrain.output_bounds(model, x, 0.1, method=method)
    torch.testing.assert_close(lower, model(x))
    torch.testing.assert_close(upper, model(x))


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
def test_the_lines_of_a_steep_leaky_relu_do_not_cancel(method: str):
    model = nn.Sequential(nn.LeakyReLU(1e8), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        model[1].bias.copy_(torch.tensor([0.3, -0.3]))
    x, label = torch.tensor([[0.5]]), torch.tensor([0])
    found = certtrain.margin_bounds(model, x, label, 0.1, method=method)[0, 1]
    assert found.item() == pytest.approx(-0.6, abs=1e-5)  # the margin at 0.6


@pytest.mark.parametrize("broken", ["bias", "running_mean"])
def test_a_batch_norm_that_lacks_a_part_is_refused_with_its_name(broken: str):
    layer = nn.BatchNorm1d(3)
    setattr(layer, broken, None)
    with pytest.raises(UnsupportedLayer, match="layer '1'"):
        certtrain.output_bounds(nn.Sequential(nn.Linear(4, 3), layer).eval(), torch.rand(2, 4), 0.1)
