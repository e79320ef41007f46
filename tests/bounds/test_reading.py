"""How a forward pass is read: what asks for shapes is followed, what could differ from what is read is refused."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as calling
from torch.nn.utils import parametrizations, prune

import certtrain
from certtrain import certify, ibp_init_, objective_terms, output_bounds, propagate
from certtrain.bounds.reading import read_layers
from certtrain.bounds.supported import checked_graph
from certtrain.errors import DataError, UnsupportedLayer
from helpers.activation_cases import ACTIVATED
from helpers.functional_networks import Net, X, assert_follows, fc

SHAPE = (2, 4, 4)
Forward = Callable[[Net, Tensor], Any]


def flat(net: Net, x: Tensor) -> Tensor:
    return net.fc(x.flatten(1))


# --- shapes ----------------------------------------------------------------------------------------------


def unpacks(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    b, c, h, w = y.shape
    assert (c, h, w) == (2, 4, 4)
    return net.fc(y.view(b, c * h * w))


def asserts(net: Net, x: Tensor) -> Tensor:
    assert x.dim() == 4, "images only"
    assert x.ndim == 4
    assert x.shape[1:] == (2, 4, 4)
    torch._assert(x.size(-1) == 4, "four pixels wide")
    return flat(net, net.conv(x))


def adds_a_batch(net: Net, x: Tensor) -> Tensor:
    if x.dim() == 3:
        x = x.unsqueeze(0)
    return flat(net, net.conv(x))


def projects_if_shapes_differ(net: Net, x: Tensor) -> Tensor:
    y = F.max_pool2d(net.conv(x), 2)
    if x.shape != y.shape:
        x = F.avg_pool2d(net.other(x), 2)
    if x.shape == y.shape:
        y = x + y
    return net.pooled(y.flatten(1))


def by_the_weights_shape(net: Net, x: Tensor) -> Tensor:
    return net.fc(net.conv(x).reshape(-1, net.fc.weight.shape[1]))


SHAPES: dict[str, Forward] = {
    "view(-1, n)": lambda net, x: net.fc(net.conv(x).view(-1, 32)),
    "reshape(-1, n)": lambda net, x: net.fc(net.conv(x).reshape(-1, 32)),
    "reshape of a tuple": lambda net, x: net.fc(net.conv(x).reshape((-1, 32))),
    "torch.reshape(-1, n)": lambda net, x: net.fc(torch.reshape(net.conv(x), (-1, 32))),
    "torch.reshape by name": lambda net, x: net.fc(torch.reshape(input=net.conv(x), shape=(-1, 32))),
    "view(-1, features)": lambda net, x: net.fc(net.conv(x).view(-1, net.fc.in_features)),
    "view(size, n)": lambda net, x: net.fc(net.conv(x).view(x.size(0), 32)),
    "view(len, -1)": lambda net, x: net.fc(net.conv(x).view(len(x), -1)),
    "reshape(len, n)": lambda net, x: net.fc(net.conv(x).reshape(len(x), 32)),
    "view(*shape, -1)": lambda net, x: net.fc(net.conv(x).view(*x.shape[:1], -1)),
    "view of some sides": lambda net, x: net.fc(net.conv(x).view(-1, 2, 16).view(len(x), 32)),
    "view of one -1": lambda net, x: net.fc(net.conv(x).view(x.size(0), 2, -1).flatten(1)),
    "view of the same": lambda net, x: flat(net, net.conv(x).view(x.shape)),
    "view by sides": lambda net, x: net.fc(x.view(-1, x.size(1) * x.size(2) * x.size(3))),
    "contiguous": lambda net, x: net.fc(net.conv(x).contiguous().view(-1, 32)),
    "flatten(2)": lambda net, x: flat(net, net.conv(x).flatten(2)),
    "flatten(2, 3)": lambda net, x: flat(net, torch.flatten(net.conv(x), 2, end_dim=3)),
    "unpacked": unpacks,
    "asserted": asserts,
    "size by name": lambda net, x: net.fc(net.conv(x).view(-1, x.size(dim=1) * 16)),
    "a batch added": adds_a_batch,
    "shapes compared": projects_if_shapes_differ,
    "by the weight's shape": by_the_weights_shape,
    "no attribute": lambda net, x: x.logits if hasattr(x, "logits") else net.conv(x),
}


@pytest.mark.parametrize("name", SHAPES)
def test_questions_for_shapes_are_followed(name: str):
    """For batches of every size, the smallest too."""
    net = Net(SHAPES[name]).eval()
    graph = read_layers(net, SHAPE)
    for batch in (1, 2, 3):
        *_, found = graph.results(X[:batch])
        torch.testing.assert_close(found, net(X[:batch]))
    assert_follows(net)


MIXING = r"one example has 32 values, so this would mix examples.*x\.flatten\(1\)"
NOT_SHAPES: dict[str, tuple[Forward, str]] = {
    "half": (lambda net, x: net.conv(x).view(-1, 16), rf"shape \(-1, 16\): {MIXING}"),
    "twice": (lambda net, x: net.conv(x).view(-1, 64), MIXING),
    "wrong": (lambda net, x: net.conv(x).view(len(x), 16), MIXING),
    "wrong with -1": (lambda net, x: net.conv(x).view(len(x), 5, -1), MIXING),
    "all in one": (lambda net, x: net.conv(x).view(-1), r"view\(\) with shape \(-1,\)"),
    "two -1": (lambda net, x: net.conv(x).view(-1, -1), "batch must stay in front"),
    "batch behind": (lambda net, x: net.conv(x).view(-1, x.size(0)), "sizes after the batch's must be numbers"),
    "batch halved": (lambda net, x: net.conv(x).view(x.size(0) // 2, -1), r"calls x // y.*no rule"),
    "batch fixed": (lambda net, x: net.conv(x).view(3, 32), "batch must stay in front, as x.size"),
    "images": (lambda net, x: net.conv(x).view(-1, 4, 2, 4), r"\(2, 4, 4\) of an example to \(4, 2, 4\): only joining"),
    "batch asked": (lambda net, x: net.conv(x) if x.shape[0] == 1 else x, "nor on how many of them there are"),
    "length asked": (lambda net, x: net.conv(x) if len(x) > 1 else x, "nor on how many of them there are"),
    "loop over the batch": (lambda net, x: sum(net.conv(x) for _ in range(len(x))), "cannot be traced: TypeError"),
    "loop over examples": (lambda net, x: torch.stack([net.conv(y) for y in x]), "cannot be traced: TraceError"),
    "no such side": (lambda net, x: x.view(-1, x.shape[4]), "cannot be traced: IndexError"),
    "batch as a value": (lambda net, x: F.leaky_relu(net.conv(x), x.size(0)), "'size', which is known only when"),
    "device": (lambda net, x: net.conv(x) if x.device.type == "cpu" else x, "cannot be traced"),
    "device as a value": (lambda net, x: F.leaky_relu(net.conv(x), x.device), r"reads x\.device"),
    "assertion": (lambda net, x: net.conv(x) if x.dim() == 4 else 1 / 0, "cannot be traced: ZeroDivisionError"),
    "unknown layer": (lambda net, x: net.conv(x) if net.odd(x).shape[1] else x, "'odd' is a Mish.*bounded: .*ReLU"),
    "layer that does not fit": (lambda net, x: net.fc(x).shape[1] and x, "'fc' is given values"),
    "numel": (lambda net, x: net.conv(x).view(-1, x.numel()), r"numel"),
}


@pytest.mark.parametrize("name", NOT_SHAPES)
def test_what_depends_on_the_batch_or_fits_no_layer_is_refused(name: str):
    forward, message = NOT_SHAPES[name]
    net = Net(forward).eval()
    net.odd = nn.Mish()
    x = X if name != "assertion" else X.unsqueeze(1)
    with pytest.raises((UnsupportedLayer, DataError), match=f"(?s){message}"):
        propagate(net, x, 0.1)
    assert len([1, 2]) == 2  # as it was


@pytest.mark.parametrize("function", [function for function in vars(math).values() if callable(function)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_function_of_math_takes_the_number_of_inputs(function: Callable[..., Any], count: int):
    def forward(net: Net, x: Tensor) -> Tensor:
        function(*[x.size(0)] * count)
        return net.conv(x)

    with pytest.raises(UnsupportedLayer, match=r"cannot be traced: (Type|Trace)Error|uses the number of inputs as"):
        propagate(Net(forward).eval(), X, 0.1)


def test_len_is_pythons_own_again_after_any_end():
    import builtins

    read_layers(Net(SHAPES["view(len, -1)"]), SHAPE)
    assert type(builtins.len) is type(builtins.iter)


def test_layers_read_for_one_shape_do_for_another_if_none_was_asked():
    x = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    graph = checked_graph(Net(lambda net, x: net.conv(x).contiguous().view(x.size(0), -1)), SHAPE)
    assert graph.shape is None
    graph.check_input(x.shape)
    asked = checked_graph(Net(SHAPES["view(-1, n)"]), SHAPE)
    assert asked.shape == SHAPE
    asked.check_input(X.shape)
    with pytest.raises(DataError, match=r"read for inputs of shape \(B, 2, 4, 4\).*have shape \(1, 2, 6, 6\)"):
        asked.check_input(x.shape)


def test_a_certifier_refuses_inputs_of_another_shape_than_its_network_was_read_for():
    from certtrain.verification.certificate import Certifier

    net = Net(lambda net, x: net.conv(x).mean((-1, -2))).eval()
    labels = net(X).argmax(1)
    certifier = Certifier(net, shape=SHAPE)
    assert len(certifier.certify(X, labels, 0.0).verdicts) == 3
    with pytest.raises(DataError, match=r"read for inputs of shape \(B, 2, 4, 4\)"):
        certifier.certify(X[:, :, :3], labels, 0.0)


def test_where_the_shape_is_not_known_that_is_said():
    net = Net(SHAPES["unpacked"])
    with pytest.raises(
        UnsupportedLayer, match=r"not known here. Give it, as in ibp_init_\(model, shape=.*x.flatten\(1\)"
    ):
        ibp_init_(net)
    with pytest.raises(UnsupportedLayer, match="which needs the input's shape, and that is not known here; write"):
        ibp_init_(Net(SHAPES["view(-1, n)"]))
    assert [record.name for record in ibp_init_(net, shape=SHAPE)] == ["conv"]
    assert ibp_init_(Net(SHAPES["view(len, -1)"]))


@pytest.mark.parametrize("forward", [SHAPES["unpacked"], SHAPES["view(-1, n)"]], ids=["unpacked", "view"])
def test_every_call_knows_the_inputs_shape(forward: Forward):
    net, labels = Net(forward), torch.tensor([0, 1, 2])
    assert objective_terms(net, X, labels, 0.1, eps_max=0.1).total.isfinite()
    net.eval()
    assert propagate(net, X, 0.1).clean.shape == (3, 3)
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        assert certtrain.margin_bounds(net, X, labels, 0.01, method=method).shape == (3, 3)
        assert len(certify(net, X, labels, 0.01, method=method).verdicts) == 3


# --- functions and methods -------------------------------------------------------------------------------

FUNCTIONS: dict[str, Forward] = {
    "F.dropout": lambda net, x: flat(net, F.dropout(net.conv(x), 0.3, net.training)),
    "F.dropout by name": lambda net, x: flat(net, F.dropout(net.conv(x), p=0.5, training=net.training)),
    "F.dropout of none": lambda net, x: flat(net, F.dropout(net.conv(x), 0.0)),
    "F.avg_pool2d": lambda net, x: net.pooled(F.avg_pool2d(net.conv(x), 3, stride=2, ceil_mode=True).flatten(1)),
    "F.avg_pool2d padded": lambda net, x: net.pooled(
        F.avg_pool2d(net.conv(x), 2, 3, 1, count_include_pad=False).flatten(1)
    ),
    "F.avg_pool2d divisor": lambda net, x: net.pooled(F.avg_pool2d(net.conv(x), 2, divisor_override=3).flatten(1)),
    "F.max_pool2d by position": lambda net, x: net.pooled(F.max_pool2d(net.conv(x), 3, 2, 0, 1, True).flatten(1)),
    "F.max_pool2d dilated": lambda net, x: net.pooled(F.max_pool2d(net.conv(x), 2, 1, dilation=2).flatten(1)),
    "mean((2, 3))": lambda net, x: net.conv(x).mean((2, 3)),
    "mean([-1, -2])": lambda net, x: net.conv(x).mean(dim=[-1, -2]),
    "mean kept": lambda net, x: net.conv(x).mean((2, 3), keepdim=True).flatten(1),
    "torch.mean": lambda net, x: torch.mean(net.conv(x), (-2, -1)),
    "torch.mean by name": lambda net, x: torch.mean(input=net.conv(x), dim=(2, 3)),
    "mean twice": lambda net, x: net.conv(x).mean((2, 3)) + net.other(x).mean((2, 3)),
    "x.add": lambda net, x: flat(net, net.conv(x).add(net.other(x))),
    "x.add_": lambda net, x: flat(net, net.conv(x).add_(net.other(x))),
    "torch.add of alpha 1": lambda net, x: flat(net, torch.add(net.conv(x), net.other(x), alpha=1)),
    "torch.add all by name": lambda net, x: flat(net, torch.add(input=net.conv(x), other=net.other(x))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_methods_are_their_layers(name: str):
    assert_follows(Net(FUNCTIONS[name]).eval())


CALLS = {name: call for each in ACTIVATED.values() for name, call in each.calls.items()}


@pytest.mark.parametrize("name", CALLS)
def test_functions_and_methods_are_their_activations(name: str):
    assert_follows(Net(lambda net, x: flat(net, CALLS[name](net.conv(x)))).eval())


NOT_FUNCTIONS: dict[str, tuple[Forward, str]] = {
    "weighted sum": (lambda net, x: torch.add(net.conv(x), net.other(x), alpha=2), "torch.add with alpha = 2"),
    "weighted method": (lambda net, x: net.conv(x).add(net.other(x), alpha=2), r"x\.add\(\) with alpha = 2"),
    "out=": (lambda net, x: torch.add(net.conv(x), x, out=net.other(x)), "torch.add with .*'out'"),
    "constant": (lambda net, x: net.conv(x).add(1), r"x\.add\(\) with the constant 1"),
    "unsqueeze": (lambda net, x: net.conv(x).unsqueeze(1), r"calls x\.unsqueeze\(\), for which there is no rule"),
    "mish": (lambda net, x: F.mish(net.conv(x)), "mish.*no rule"),
    "another GELU": (lambda net, x: flat(net, F.gelu(net.conv(x), approximate="tanh")), "GELU with approximate='tanh'"),
    "clamp by a tensor": (lambda net, x: net.conv(x).clamp(min=net.constant), "'constant' is used outside a layer"),
    "clamp by a value": (lambda net, x: net.conv(x).clamp(max=x.size(0)), "which is known only when the network runs"),
    "clamp to nothing": (
        lambda net, x: flat(net, net.conv(x).clamp(2.0, 1.0)),
        "clamps to 2 and 1, of which the first",
    ),
    "hardtanh of one value": (lambda net, x: F.hardtanh(net.conv(x), 1.0, 1.0), "the first must be below the second"),
    "clamped in place": (lambda net, x: (lambda h: h.clamp_(0, 1) + h)(net.conv(x)), "'clamp_' overwrites a value"),
    "product": (lambda net, x: net.conv(x) * net.other(x), r"calls x \* y, .*no rule"),
    "index": (lambda net, x: net.conv(x)[:, 0], r"calls x\[…\], .*no rule"),
    "F.linear": (lambda net, x: F.linear(x.flatten(1), net.fc.weight), r"'fc.weight' is used outside .*F\.linear"),
    "F.conv2d": (lambda net, x: F.conv2d(x, net.conv.weight), r"'conv.weight' is used outside a layer"),
    "F.batch_norm": (
        lambda net, x: F.batch_norm(net.conv(x), net.norm.running_mean, net.norm.running_var),
        "'norm.running_mean' is used outside a layer",
    ),
    "attribute": (lambda net, x: net.conv(x) + net.constant, "'constant' is used outside a layer"),
    "new tensor": (lambda net, x: net.conv(x) + torch.ones(4), "is used outside a layer"),
    "mean of all": (lambda net, x: net.conv(x).mean(), r"dim = None: only the mean over rows and columns"),
    "mean of channels": (lambda net, x: net.conv(x).mean(1), "dim = 1: only the mean over rows and columns"),
    "mean of features": (lambda net, x: flat(net, x).mean((-1, -2)), r"only the mean over rows and columns"),
    "mean in float64": (lambda net, x: net.conv(x).mean((2, 3), dtype=torch.float64), "'dtype'"),
    "dropout that trains": (lambda net, x: F.dropout(net.conv(x), 0.5), "random in training"),
    "indices": (lambda net, x: F.max_pool2d(net.conv(x), 2, return_indices=True), "no rule|returns indices"),
    "overwritten by a method": (
        lambda net, x: (lambda h: h.relu_() + h)(net.conv(x)),
        "'relu_' overwrites a value that is used elsewhere",
    ),
    "added into by a method": (
        lambda net, x: (lambda h: h.add_(x) + h)(net.conv(x)),
        "'add_' overwrites a value that is used elsewhere",
    ),
    "overwritten behind contiguous": (
        lambda net, x: (lambda h: h.contiguous().relu_() + h)(net.conv(x)),
        "overwrites a value that is used elsewhere",
    ),
    "overwritten behind dropout": (
        lambda net, x: (lambda h: F.dropout(h, 0.5, net.training).relu_() + h)(net.conv(x)),
        "overwrites a value that is used elsewhere",
    ),
}


@pytest.mark.parametrize("name", NOT_FUNCTIONS)
def test_other_functions_are_refused_by_their_names(name: str):
    forward, message = NOT_FUNCTIONS[name]
    net = Net(forward)
    net.norm, net.constant = nn.BatchNorm2d(2), torch.ones(1)
    with pytest.raises(UnsupportedLayer, match=f"(?s){message}"):
        propagate(net.eval(), X, 0.1)


def test_the_list_of_functions_names_methods_as_methods():
    with pytest.raises(UnsupportedLayer, match=r"torch\.sigmoid, .*x \+ y, .*x\.add\(\), .*x\.view\(\)\.$"):
        read_layers(Net(lambda net, x: x.exp()))


# --- modules that compute something else -----------------------------------------------------------------


class Block(nn.Sequential):
    """A Sequential with a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Calling(nn.Module):
    """What it computes is more than its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def __call__(self, x: Tensor) -> Tensor:
        return -super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Half(Tensor):
    """A tensor with its own arithmetic."""


class Switching(nn.Module):
    """Every other call is another function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.calls = nn.Linear(4, 3), nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.one(x) if self.calls % 2 else self.two(x)


class Counting(Switching):
    """The same by a buffer that is changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.one(x) if self.count % 2 else self.two(x)


class First(Switching):
    """The first call is another function than all later ones."""

    seen: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.seen:
            return self.one(x)
        self.seen = True
        return self.two(x)


class Training(Switching):
    """Its BatchNorm is always in training, whatever model.eval() says."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return self.one(self.norm(x))


class Casting(Switching):
    """It computes in another precision than whoever calls it asks for."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.one(x)


class Typed(Switching):
    """It asks for the class of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if isinstance(x, Tensor) else self.two(x)


class Keeping(Switching):
    """Its values are kept for whoever wants to look at them; that changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        self.width, self.features = x.shape[1], self.one(x)
        return self.features


def plain() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3)).eval()


def spoilt(spoil: Callable[[nn.Sequential], object]) -> nn.Sequential:
    model = plain()
    spoil(model)
    return model


def set_on(path: str, name: str, value: object) -> nn.Sequential:
    return spoilt(lambda model: vars(model.get_submodule(path)).update({name: value}))


def hooked(path: str, *, before: bool) -> nn.Sequential:
    def spoil(model: nn.Sequential) -> None:
        module = model.get_submodule(path)
        if before:
            module.register_forward_pre_hook(lambda layer, given: (-given[0],))
        else:
            module.register_forward_hook(lambda layer, given, result: -result)

    return spoilt(spoil)


def with_forward_before_norm() -> nn.Sequential:
    return spoilt(lambda model: nn.utils.weight_norm(model[1]))


def negated(x: Tensor) -> Tensor:
    return -x


def with_affine_switched() -> nn.Sequential:
    model = nn.Sequential(nn.BatchNorm1d(4)).eval()
    model[0].affine = False
    return model


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "hook": (lambda: hooked("1", before=False), "layer '1' has a forward hook.*remove it"),
    "pre-hook": (lambda: hooked("1", before=True), "layer '1' has a forward hook"),
    "hook on a container": (lambda: hooked("0", before=False), "layer '0' has a forward hook"),
    "pre-hook on a container": (lambda: hooked("0", before=True), "layer '0' has a forward hook"),
    "hook on all": (lambda: hooked("", before=False), "Sequential has a forward hook"),
    "forward of a layer": (lambda: set_on("1", "forward", negated), "'1' has another 'forward' than its class Linear"),
    "forward of a container": (lambda: set_on("0", "forward", negated), "'0' has another 'forward'.*in a class"),
    "forward of all": (lambda: set_on("", "forward", negated), "Sequential has another 'forward'"),
    "call of a container": (lambda: set_on("0", "_call_impl", negated), "'0' has another '_call_impl'"),
    "method of a layer": (
        lambda: spoilt(lambda m: m.append(nn.Conv2d(3, 3, 1)) and vars(m[2]).update(_conv_forward=negated)),
        "'2' has another '_conv_forward' than its class Conv2d",
    ),
    "class that overrides the call": (Calling, "Calling is a Calling, whose class overrides __call__"),
    "the same inside": (lambda: nn.Sequential(Calling()), "layer '0' is a Calling, whose class overrides __call__"),
    "parameter of a subclass": (
        lambda: spoilt(lambda m: setattr(m[1], "bias", nn.Parameter(torch.zeros(3).as_subclass(Half)))),
        "layer '1' keeps 'bias' as a Half.*plain nn.Parameter",
    ),
    "buffer of a subclass": (
        lambda: spoilt(lambda m: m[0].register_buffer("mean", torch.zeros(3).as_subclass(Half))),
        "layer '0' keeps 'mean' as a Half",
    ),
    "weight as an attribute": (
        lambda: spoilt(lambda m: (delattr(m[1], "weight"), setattr(m[1], "weight", torch.zeros(3, 4)))),
        "layer '1' keeps 'weight' as a plain tensor",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)), "layer '0' has no weights yet; run the network once"),
    "pruned": (lambda: spoilt(lambda m: prune.l1_unstructured(m[1], "weight", 0.5)), r"'1' has.*hook.*prune\.remove"),
    "spectral norm": (
        lambda: spoilt(lambda m: parametrizations.spectral_norm(m[1])),
        "'1' is a ParametrizedLinear, .*no bound rule",
    ),
    "weight norm": (
        lambda: spoilt(lambda m: parametrizations.weight_norm(m[1])),
        "'1' is a ParametrizedLinear, .*no bound rule",
    ),
    "state by an attribute": (Switching, "changes 'calls', so that its next call may compute something different"),
    "state by a buffer": (Counting, "changes 'count'"),
    "state of the first call": (First, "changes 'seen'"),
    "state of a layer": (Training, "changes 'norm.training'"),
    "autocast": (Casting, "forward pass switches autocast on or off.*name the arithmetic"),
    "class asked": (Typed, "asks for the class of a value, as by isinstance; remove that"),
    "affine switched": (with_affine_switched, "'0' has affine = False, but its weight says otherwise"),
    "parallel": (lambda: nn.DataParallel(plain()), r"DataParallel around the network; give .*model\.module"),
    "scripted": (lambda: torch.jit.script(plain()), "compiled by torch.jit.*give the module that it was made from"),
    "traced": (lambda: torch.jit.trace(plain(), torch.rand(1, 4)), "compiled by torch.jit"),
    "a part scripted": (lambda: nn.Sequential(torch.jit.script(plain())), "layer '0' was compiled by torch.jit"),
    "compiled": (lambda: torch.compile(plain()), r"OptimizedModule.*give the network, model\._orig_mod"),
    "a part compiled": (lambda: nn.Sequential(torch.compile(plain())), "layer '0' is a OptimizedModule"),
    "compiled in place": (lambda: spoilt(lambda m: m.compile()), r"Sequential was compiled in place by compile\(\)"),
    "a part compiled in place": (lambda: spoilt(lambda m: m[0].compile()), "layer '0' was compiled in place"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_what_may_compute_something_else_is_refused_by_every_call(name: str):
    make, message = OTHERS[name]
    model, x, labels = make().eval(), torch.rand(3, 4), torch.tensor([0, 1, 2])
    calls: list[Callable[[], object]] = [
        lambda: propagate(model, x, 0.1),
        lambda: output_bounds(model, x, 0.1, method="crown"),
        lambda: certify(model, x, labels, 0.1),
        lambda: objective_terms(model, x, labels, 0.1, eps_max=0.1),
        lambda: checked_graph(model),
    ]
    for call in [*calls, *([] if "no bound rule" in message else [lambda: ibp_init_(model)])]:
        with pytest.raises(UnsupportedLayer, match=f"(?s){message}"):
            call()


@pytest.mark.parametrize("name", ["compiled", "compiled in place", "hook", "forward of a layer"])
def test_verify_and_properties_refuse_the_same(name: str):
    from certtrain.properties.cases import Case, Property
    from certtrain.properties.decide import decide
    from helpers.tiny_classifier import classifier, images

    spoil: dict[str, Callable[[Any], Any]] = {
        "compiled": torch.compile,
        "compiled in place": lambda model: model.compile() or model,
        "hook": lambda model: model.register_forward_hook(lambda *given: None) and model,
        "forward of a layer": lambda model: vars(model[-1]).update(forward=negated) or model,
    }
    model = spoil[name](classifier())
    with pytest.raises(UnsupportedLayer):
        certtrain.verify(model, images(), 0.01, attack=None)
    size = images().images[0].numel()
    case = Case(torch.zeros(size), torch.ones(size), torch.ones(1, 3), torch.zeros(1))
    with pytest.raises(UnsupportedLayer):
        decide(model, images().input_shape, Property(size, 3, (case,)))


@pytest.mark.parametrize("register", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_global_hooks_are_refused(register: str):
    hook = getattr(calling, register)(lambda *given: None)
    try:
        for model in (plain(), nn.Linear(4, 3)):
            with pytest.raises(UnsupportedLayer, match=r"a global forward hook is registered.*remove it"):
                certify(model, torch.rand(3, 4), torch.tensor([0, 1, 2]), 0.1)
    finally:
        hook.remove()
    assert certify(plain(), torch.rand(3, 4), torch.tensor([0, 1, 2]), 0.1)


def test_a_forward_that_was_replaced_in_torchs_own_class_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: -F.linear(x, layer.weight, layer.bias))
    with pytest.raises(UnsupportedLayer, match=r"'0.0' is a Linear, whose forward was replaced in torch's own class"):
        propagate(plain(), torch.rand(3, 4), 0.1)


def test_what_changes_nothing_is_followed_and_leaves_no_symbols():
    model, x = Keeping().eval(), torch.rand(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(propagate(model, x, 0.1).clean, model.one(x))
    assert not vars(model).keys() & {"width", "features"}
    before = copy.copy(vars(model))
    with pytest.raises(UnsupportedLayer):
        read_layers(Switching())
    assert vars(model).keys() == before.keys()


def test_one_layer_under_two_names_is_one_layer():
    shared = nn.Linear(4, 4)
    model, x = nn.Sequential(shared, nn.ReLU(), shared), torch.rand(3, 4)
    assert [call.layer is shared for call in read_layers(model).calls] == [True, False, True]
    with torch.no_grad():
        torch.testing.assert_close(propagate(model, x, 0.1).clean, model(x))


def test_a_sequential_with_its_own_forward_is_followed():
    model, x = nn.Sequential(Block(nn.Linear(4, 4), nn.ReLU())), torch.rand(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(propagate(model, x, 0.1).clean, model(x))


def test_graph_modules_of_torch_fx_are_followed():
    model, x = torch.fx.symbolic_trace(plain()), torch.rand(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(propagate(model, x, 0.1).clean, model(x))


def test_half_precision_is_computed_in_and_not_certified():
    model, x = plain().bfloat16(), torch.rand(3, 4).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(propagate(model, x, 0.0).clean, model(x))
    with pytest.raises(UnsupportedLayer, match=r"'0.0.weight' is torch.bfloat16.*model.float\(\)"):
        certify(model, x, torch.tensor([0, 1, 2]), 0.1)


@pytest.mark.parametrize("flatten", [nn.Flatten(2), nn.Flatten(2, 3), nn.Flatten(1, 2), nn.Flatten(2, -1)], ids=str)
def test_flattening_may_begin_behind_the_channels(flatten: nn.Flatten):
    model = fc(flatten)
    assert_follows(model)
    labels = torch.tensor([0, 1, 2])
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        expected = certify(fc(), X, labels, 0.01, method=method).margin
        torch.testing.assert_close(certify(model, X, labels, 0.01, method=method).margin, expected, rtol=0, atol=1e-6)


# --- modes of torch --------------------------------------------------------------------------------------

MODES = {"inference mode": torch.inference_mode, "no_grad": torch.no_grad}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", ["ibp", "crown-ibp", "crown", "alpha-crown"])
def test_bounds_are_the_same_in_modes_without_gradients(mode: str, method: str):
    labels = torch.tensor([0, 1, 2])
    ends = output_bounds(fc(nn.ReLU()), X, 0.1, method=method)
    margin = certify(fc(nn.ReLU()), X, labels, 0.1, method=method).margin
    with MODES[mode]():
        model, x = fc(nn.ReLU()), X.clone()  # in inference mode, of tensors without gradients
        for mine, theirs in zip(output_bounds(model, x, 0.1, method=method), ends, strict=True):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-7)
            assert not mine.requires_grad
        assert torch.equal(certify(model, x, labels.clone(), 0.1, method=method).margin, margin)
        assert torch.equal(certify(model.double(), x.double(), labels, 0.1, method=method).margin, margin)
        assert propagate(model.float(), x, 0.1).clean.shape == (3, 3)
    for mine, theirs in zip(output_bounds(model, x, 0.1, method=method), ends, strict=True):  # and outside of it
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


def test_bounds_have_gradients_where_they_are_wanted():
    model = fc(nn.ReLU())
    output_bounds(model, X, 0.1)[0].sum().backward()
    assert model.conv.weight.grad is not None


@pytest.mark.parametrize("method", ["auto", "alpha-crown", "complete"])
def test_verify_works_in_inference_mode(method: str):
    from certtrain.attack import PGD
    from helpers.tiny_classifier import classifier, images

    attack = PGD(steps=3, restarts=1)
    expected = certtrain.verify(classifier(), images(), 0.02, attack=attack, method=method)
    with torch.inference_mode():
        found = certtrain.verify(classifier(), images(), 0.02, attack=attack, method=method)
    assert (found.certified, found.open, found.falsified) == (expected.certified, expected.open, expected.falsified)
