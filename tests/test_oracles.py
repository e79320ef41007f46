"""The engine reproduces, in float64, what the field's reference implementation computes."""

import pytest
import torch
from oracles.nets import NETS
from reference import EPS, FOLDER, below, inputs, network, schedules, tensors
from torch import Tensor

from certtrain import eps_at, margin_bounds, objective_terms, output_bounds, propagate

TOLERANCE = 1e-9
SEARCHED = "alpha-CROWN"  # a figure to reach, not to equal
OURS = ("IBP", "CROWN-IBP", "CROWN")


def cases(*start: str) -> list[tuple[str, str]]:
    """Each (net, ε as the files write it) for which there are keys with such a `start`: kind, and method if any."""
    keys = [(net, key.split("/")) for net in NETS for key in tensors(net)]
    return sorted({(net, k[1].removeprefix("eps=")) for net, k in keys if k[0] == start[0] and start[1:] == _method(k)})


def _method(key: list[str]) -> tuple[str, ...]:
    return (key[2],) if key[0] == "eval" else ()


TRAINED = cases("train")
EVALUATED = [(net, eps, method) for method in OURS for net, eps in cases("eval", method)]
REACHED = cases("eval", SEARCHED)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], scale: float | None = None) -> None:
    """Every expected tensor is found, within the tolerance of `scale` or else of its own largest entry."""
    assert expected
    for name, value in expected.items():
        allowed = TOLERANCE * (value.abs().max().item() if scale is None else scale)
        assert found[name].shape == value.shape, name
        assert (found[name] - value).abs().max().item() <= allowed, name


def test_all_networks_are_there():
    assert sorted(NETS) == sorted(path.stem for path in FOLDER.glob("*.safetensors"))
    assert len(NETS) == 4
    assert {net for net, _ in TRAINED} == set(NETS)
    for method in ("IBP", "CROWN-IBP"):
        assert {net for net, _, name in EVALUATED if name == method} == set(NETS)


@pytest.mark.parametrize("net", NETS)
def test_no_key_of_this_engine_is_left_unchecked(net: str):
    checked = [f"eval/eps={eps}/{method}/" for n, eps, method in EVALUATED if n == net]
    checked += [f"train/eps={eps}/" for n, eps in TRAINED if n == net]
    others = [f"eval/eps={eps}/{SEARCHED}/" for n, eps in REACHED if n == net]
    left = [key for key in tensors(net) if not key.startswith((*checked, *others, "weight/"))]
    assert sorted(left) == ["x", "y"]


def without_own_column(margins: Tensor, labels: Tensor) -> Tensor:
    """The files leave out the label's column, where this engine has 0."""
    return torch.stack([torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(margins, labels.tolist(), strict=True)])


def evaluated(net: str, eps: float, method: str) -> dict[str, Tensor]:
    model, (x, labels) = network(net), inputs(net)
    lower, upper = output_bounds(model, x, eps, method=method.lower())
    margins = without_own_column(margin_bounds(model, x, labels, eps, method=method.lower()), labels)
    found = {"logits_lower": lower, "logits_upper": upper, "margins_lower": margins}
    for number, box in enumerate(propagate(model, x, eps).relu_inputs):
        found |= {f"relu{number}/lower": box.lower, f"relu{number}/upper": box.upper}
    return found


@pytest.mark.parametrize(("net", "eps", "method"), EVALUATED)
def test_bounds_in_evaluation_mode(net: str, eps: str, method: str):
    assert_close(evaluated(net, EPS[eps], method), below(net, f"eval/eps={eps}/{method}/"))


@pytest.mark.parametrize(("net", "eps"), REACHED)
def test_searched_slopes_are_at_least_as_good(net: str, eps: str):
    model, (x, labels) = network(net), inputs(net)
    margins = without_own_column(margin_bounds(model, x, labels, EPS[eps], method="alpha-crown"), labels)
    expected = below(net, f"eval/eps={eps}/{SEARCHED}/")
    assert set(expected) == {"margins_lower"}
    assert bool((margins >= expected["margins_lower"] - 1e-3).all())


def test_there_are_values_of_crown_and_of_searched_slopes():
    assert {net for net, _, method in EVALUATED if method == "CROWN"} == {"mlp", "cnn4_bn", "residual_bn"}
    assert {net for net, _ in REACHED} == {"mlp", "cnn4_bn"}


@pytest.mark.parametrize(("net", "eps"), cases("eval", "IBP"))
def test_all_relu_inputs_are_compared_where_there_are_any(net: str, eps: str):
    expected = [key for key in below(net, f"eval/eps={eps}/IBP/") if key.startswith("relu")]
    relus = len(propagate(network(net), inputs(net)[0], 0.0).relu_inputs)
    assert len(expected) == (2 * relus if eps == "0.007843" else 0)


@pytest.mark.parametrize(("net", "eps"), TRAINED)
def test_bounds_in_training_mode(net: str, eps: str):
    model, (x, labels) = network(net).train(), inputs(net)
    trace = propagate(model, x, EPS[eps])
    found = {"logits": trace.clean, "margins_lower": without_own_column(trace.margins(labels), labels)}
    expected = below(net, f"train/eps={eps}/")
    assert_close(found, {name: expected[name] for name in found})


LOSSES = {"robust_ce": "robust", "natural_ce": "natural", "loss": "total"}
LOSSES |= {name: name for name in ("tightness", "relu_balance")}


@pytest.mark.parametrize(("net", "eps"), TRAINED)
def test_one_training_step(net: str, eps: str):
    model, (x, labels) = network(net).train(), inputs(net)
    terms = objective_terms(model, x, labels, EPS[eps], eps_max=8 / 255)
    terms.total.backward()
    prefix = f"train/eps={eps}/"
    expected = below(net, prefix)
    assert_close({key: getattr(terms, name).detach() for key, name in LOSSES.items()}, {k: expected[k] for k in LOSSES})
    gradients = below(net, prefix + "grad/")
    assert gradients.keys() == dict(model.named_parameters()).keys()
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    assert_close({name: p.grad for name, p in model.named_parameters()}, gradients, scale=largest)
    if statistics := below(net, prefix + "after/"):
        assert_close(dict(model.named_buffers()), statistics)
        assert statistics.keys() >= {name for name, _ in model.named_buffers() if "running" in name}
    else:
        assert not list(model.buffers())


@pytest.mark.parametrize("setting", schedules(), ids=lambda s: f"{s['start_epoch']}-{s['ramp_epochs']}")
def test_eps_schedule(setting: dict):
    fixed = {"steps_per_epoch": setting["steps_per_epoch"], "eps_max": setting["eps_max"]}
    expected = setting["eps_by_step"]
    found = {s: eps_at(int(s), start=setting["start_epoch"], length=setting["ramp_epochs"], **fixed) for s in expected}
    assert len(expected) > 10
    assert found == pytest.approx(expected, rel=TOLERANCE, abs=0)


def test_five_settings_of_the_schedule_are_there():
    assert len(schedules()) == 5
