"""The engine reproduces, in float64, what the field's reference implementation computes."""

import pytest
from torch import Tensor

from certtrain import eps_at, margin_bounds, objective_terms, output_bounds, propagate
from helpers.oracle_networks import NETS
from helpers.oracles import (
    EPS,
    EVALUATED,
    FOLDER,
    LOSSES,
    REACHED,
    SEARCHED,
    TOLERANCE,
    TRAINED,
    assert_close,
    below,
    cases,
    inputs,
    network,
    schedules,
    tensors,
    without_own_column,
)


def test_all_networks_are_there():
    assert sorted(NETS) == sorted(path.stem for path in FOLDER.glob("*.safetensors") if "objectives" not in path.stem)
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
