"""Certificates: verdicts by hand, and what they say of themselves."""

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

from certtrain import certify, margin_bounds, propagate
from certtrain.data import to_unit
from certtrain.errors import DataError, EpsilonError, MethodError, UnsupportedLayer
from certtrain.verdicts import VERDICTS
from certtrain.verification.certificate import Certifier
from helpers.tiny_classifier import classifier, images, mostly_right


def threshold() -> nn.Sequential:
    """Two logits, x and 1 − x, of one pixel: class 0 where the pixel is above a half."""
    layer = nn.Linear(1, 2)
    layer.load_state_dict({"weight": torch.tensor([[1.0], [-1.0]]), "bias": torch.tensor([0.0, 1.0])})
    return nn.Sequential(layer)


X = torch.tensor([[0.9], [0.6], [0.5], [0.1], [0.9]])
Y = torch.tensor([0, 0, 0, 1, 1])


def test_verdicts_and_margins_by_hand():
    found = certify(threshold(), X, Y, 0.2)
    assert found.verdicts == ("certified", "open", "misclassified", "certified", "misclassified")
    # The margin is ±(2x − 1); over the box, cut to [0, 1], it loses 2ε.
    assert found.margin.tolist() == pytest.approx([0.4, -0.2, -0.4, 0.4, -1.0], abs=1e-6)
    assert found.certified.tolist() == [True, False, False, True, False]


def test_boxes_are_cut_to_pixels():
    found = certify(threshold(), torch.tensor([[1.0]]), torch.tensor([1]), 0.2)
    assert found.margin.tolist() == pytest.approx([-1.0])


def test_without_eps_what_is_correct_is_certified():
    assert certify(threshold(), X, Y, 0.0).verdicts == (
        "certified", "certified", "misclassified", "certified", "misclassified"
    )  # fmt: skip


def test_a_certificate_says_what_it_rests_on():
    found = certify(threshold(), X, Y, 0.2)
    assert (found.eps, found.method, found.margin.dtype) == (0.2, "ibp", torch.float64)
    assert found.arithmetic == "float32"
    assert "float32" in found.assumptions[0]
    assert any("float64" in assumption for assumption in found.assumptions)
    assert "[0, 1]" in found.assumptions[-1]
    assert set(found.verdicts) <= set(VERDICTS)


def test_margins_are_computed_in_float64():
    model, x = classifier(), to_unit(images().images)
    labels = images().labels
    found = certify(model, x, labels, 0.05, arithmetic="real")
    exact = margin_bounds(classifier().double(), x.double(), labels, 0.05)
    smallest = exact.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
    torch.testing.assert_close(found.margin, smallest, rtol=0, atol=1e-12)
    assert next(model.parameters()).dtype == torch.float32


def test_the_memory_layout_of_network_and_images_changes_no_certificate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    x, labels = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    plain = certify(model.eval(), x, labels, 0.01)
    other = Certifier(model.to(memory_format=torch.channels_last))
    found = other.certify(x.contiguous(memory_format=torch.channels_last), labels, 0.01)
    assert found.verdicts == plain.verdicts
    torch.testing.assert_close(found.margin, plain.margin, rtol=0, atol=1e-14)
    convolution = other.graph.calls[0].layer
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.weight.is_contiguous()


class Broken(nn.Module):
    """A layer list whose weights hold `value`."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.layers = threshold()
        with torch.no_grad():
            self.layers[0].bias[0] = value

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("label", [0, 1])
def test_what_is_not_finite_never_certifies(value: float, label: int):
    found = certify(Broken(value), X, torch.full((5,), label), 0.0)
    assert not found.certified.any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bounds_that_overflow_never_certify(value: float):
    model = threshold()
    certifier = Certifier(model)
    with torch.no_grad():  # the copy that bounds are computed with is damaged, the model itself is not
        certifier.graph.calls[0].layer.weight.fill_(value)
    assert certifier.certify(X, Y, 0.1).verdicts == ("open", "open", "misclassified", "open", "misclassified")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"eps": 2}, EpsilonError, "outside"),
        ({"eps": "8/0"}, EpsilonError, "not a number"),
        ({"x": X * 255}, DataError, r"finite and in \[0, 1\]"),
        ({"x": X - 1}, DataError, r"finite and in \[0, 1\]"),
        ({"x": X * torch.nan}, DataError, r"finite and in \[0, 1\]"),
        ({"x": torch.zeros(5, 3)}, DataError, "shape"),
        ({"labels": Y + 1}, DataError, "outside the 2 classes"),
        ({"labels": Y - 1}, DataError, "outside the 2 classes"),
        ({"labels": Y[:2]}, DataError, "shape"),
        ({"method": "magic"}, MethodError, "'magic' is not known"),
        ({"model": nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)).train()}, UnsupportedLayer, "training mode"),
        ({"model": nn.Sequential(nn.Linear(1, 2), nn.Mish())}, UnsupportedLayer, "Mish"),
    ],
)
def test_wrong_arguments_are_named_errors(arguments: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        certify(**{"model": threshold(), "x": X, "labels": Y, "eps": 0.1} | arguments)


def test_little_memory_changes_no_certificate_and_none_is_refused():
    model, x, labels = classifier(), to_unit(images().images), images().labels
    found = [certify(model, x, labels, 0.02, method="crown", memory=memory) for memory in (2**30, 1)]
    assert found[0].verdicts == found[1].verdicts
    assert torch.allclose(found[0].margin, found[1].margin, rtol=0, atol=1e-9)
    with pytest.raises(MethodError, match="memory is 0"):
        certify(model, x, labels, 0.02, memory=0)


def test_a_network_that_cannot_be_copied_is_refused():
    model = nn.Sequential(nn.Linear(1, 2)).eval()
    model.kept = model(X)
    with pytest.raises(UnsupportedLayer, match=r"cannot be copied.*detached tensors"):
        certify(model, X, Y, 0.1)


def test_a_pruned_network_is_refused_until_its_weights_are_written():
    model = nn.Sequential(nn.Linear(1, 2))
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", amount=0.5)
    model(X)
    with pytest.raises(UnsupportedLayer, match=r"'0' has a forward hook.*prune\.remove"):
        certify(model.eval(), X, Y, 0.1)
    torch.nn.utils.prune.remove(model[0], "weight")
    assert len(certify(model, X, Y, 0.1).verdicts) == 5


def test_auto_is_a_name_of_the_cascade_alone():
    with pytest.warns(DeprecationWarning, match='method="ibp"'):
        found = certify(threshold(), X, Y, 0.2, method="auto")
    assert found.method == certify(threshold(), X, Y, 0.2).method == "ibp"


def test_what_python_shows_of_certificates_and_bounds_is_one_short_line():
    model, data = mostly_right(10)
    x = to_unit(data.images)
    found = certify(model, x, data.labels, 0.05)
    counts = [f"{found.verdicts.count(name)} {name}" for name in ("certified", "open") if name in found.verdicts]
    assert repr(found).startswith("<Certificates: 10 examples, ε = 0.05, ibp, float32: ")
    assert all(count in repr(found) for count in counts)
    assert repr(propagate(model, x, 0.05)) == "<BoundTrace: 10 examples, 3 logits>"
