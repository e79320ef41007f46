"""The objectives in a step: their limits, their order, their attacks; a step stays a function of its number."""

import copy
import shutil
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain import objective_terms
from certtrain.bounds.box import input_box
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import batch_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.errors import UnsupportedLayer
from certtrain.spec.objective import AttackSection
from certtrain.training.compilation import as_it_is
from certtrain.training.objectives.adversarial import InputAttack
from certtrain.training.objectives.taps import linked
from certtrain.training.passes import Clean, Passes, SignedAscent, steps_of
from certtrain.training.step import Stepper
from helpers.small_steps import BATCH, PER_EPOCH, WITHOUT_GRADIENT, batch, network, preset

NATURAL, RAMP, END = 4, 15, 25  # steps: while ε is 0, in its ramp, and when it is whole
EPS = 0.05

OBJECTIVES: dict[str, dict[str, Any]] = {
    "pgd": {"name": "pgd", "attack.steps": 3},
    "mtl-ibp": {"name": "mtl-ibp", "alpha": 0.3},
    "cc-ibp": {"name": "cc-ibp", "alpha": 0.3, "attack.restarts": 3},
    "exp-ibp": {"name": "exp-ibp", "alpha": 0.3, "attack.radius": 2.0},
    "sabr": {"name": "sabr", "attack.keep": "best", "attack.steps": 4},
    "sabr that shrinks": {"name": "sabr", "relu_shrinkage": 0.8},
    "taps": {"name": "taps", "split": "conv2_relu", "latent_attack.steps": 3},
    "staps": {"name": "staps", "latent_attack.steps": 3, "latent_attack.restarts": 2},
    "crown-ibp": {"name": "crown-ibp"},
    "crown-ibp by class": {"name": "crown-ibp", "loss_fusion": False},
}
EACH = pytest.mark.parametrize("name", OBJECTIVES)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def stepped(objective: dict[str, Any], steps: list[int], **train: Any) -> Stepper:
    """After these steps, with the last one's gradient still there."""
    settings = preset(objective, **train)
    stepper = Stepper(settings, network(settings), PER_EPOCH)
    for step in steps:
        stepper.run(step, *batch(step))
    return stepper


def weights(stepper: Stepper) -> dict[str, Tensor]:
    return dict(stepper.network.state_dict())


def assert_same_bits(one: Stepper, other: Stepper) -> None:
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, weights(other)[name]), name


def assert_close(one: Stepper, other: Stepper, rtol: float = 1e-9) -> None:
    for (name, parameter), twin in zip(one.network.named_parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad, rtol=rtol, atol=rtol / 100, msg=f"gradient of {name}")


# --- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [
        {"name": "mtl-ibp", "alpha": 1.0},
        {"name": "cc-ibp", "alpha": 1.0},
        {"name": "exp-ibp", "alpha": 1.0},
        {"name": "sabr", "subselection_ratio": 1.0},
        {"name": "ibp", "natural_share": 0.0},
    ],
)
def test_bounds_alone_are_ibp_bit_for_bit(objective: dict[str, Any]):
    assert_same_bits(stepped(objective, [NATURAL, RAMP, END]), stepped({"name": "ibp"}, [NATURAL, RAMP, END]))


@pytest.mark.parametrize("name", ["mtl-ibp", "cc-ibp", "exp-ibp"])
def test_the_attack_alone_is_adversarial_training_bit_for_bit(name: str):
    attack = {"attack.steps": 3, "attack.restarts": 2}
    found = stepped({"name": name, "alpha": 0.0, **attack}, [NATURAL, RAMP, END])
    assert_same_bits(found, stepped({"name": "pgd", **attack}, [NATURAL, RAMP, END]))


@pytest.mark.parametrize("name", ["mtl-ibp", "cc-ibp", "exp-ibp"])
@pytest.mark.parametrize(("alpha", "limit"), [(1 - 1e-12, {"name": "ibp"}), (1e-12, {"name": "pgd"})])
def test_a_weight_near_its_end_is_near_that_objective(name: str, alpha: float, limit: dict[str, Any]):
    # The regularisers are left out: adversarial training has none.
    assert_close(stepped({"name": name, "alpha": alpha}, [END]), stepped(limit, [END]), rtol=1e-6)


def test_a_small_box_of_almost_full_width_is_almost_ibp():
    near = stepped({"name": "sabr", "subselection_ratio": 1 - 1e-10}, [END])
    assert_close(near, stepped({"name": "ibp"}, [END]), rtol=1e-6)


def test_a_small_box_without_width_is_adversarial_training():
    attack = {"attack.steps": 8, "attack.keep": "best"}
    near = stepped({"name": "sabr", "subselection_ratio": 1e-10, **attack}, [END])
    assert_close(near, stepped({"name": "pgd", **attack}, [END]), rtol=1e-5)


def terms(objective: dict[str, Any]) -> dict[str, float]:
    """The losses of one network and batch, with those that the objective measures."""
    fields: dict[str, Any] = {}
    for path, value in objective.items():
        section, _, field = path.rpartition(".")
        (fields.setdefault(section, {}) if section else fields)[field] = value
    x, labels = batch()
    found = objective_terms(network(preset()).train(), x.double(), labels, EPS, eps_max=EPS, objective=fields)
    names = ("robust", "natural", "total")
    return {name: getattr(found, name).item() for name in names} | {n: v.item() for n, v in found.measures.items()}


def test_a_latent_attack_on_the_whole_network_attacks_its_inputs_for_each_class():
    found = terms({"name": "taps", "split": "input", "latent_attack.steps": 8, "latent_attack.keep": "best"})
    attacked = terms({"name": "pgd", "attack.steps": 8, "attack.keep": "best"})
    assert found["latent_loss"] >= attacked["robust"] * (1 - 1e-3)
    assert found["natural"] < found["latent_loss"] < found["interval_loss"]
    assert found["interval_loss"] == pytest.approx(terms({"name": "ibp"})["robust"])


@pytest.mark.parametrize("steps", [1, 8])
def test_a_latent_attack_on_the_inputs_of_two_classes_is_adversarial_training(steps: int):
    """Of two classes there is one margin, whose sign of the gradient is the cross-entropy's; all is second part."""
    model, attack = (
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2)),
        {"steps": steps, "start": 0},
    )
    x, labels = torch.rand(9, 1, 8, 8), torch.arange(9) % 2
    given = partial(objective_terms, model, x, labels, EPS, eps_max=EPS)
    found = given(objective={"name": "taps", "split": "input", "latent_attack": attack | {"restarts": 1}})
    attacked = given(objective={"name": "pgd", "attack": attack})
    assert attacked.robust > attacked.natural
    torch.testing.assert_close(found.measures["latent_loss"], attacked.robust, rtol=1e-12, atol=0)


def test_without_a_second_part_but_the_last_layer_the_latent_attack_is_exact():
    # Over the box before a linear layer, the attack reaches the corner of each margin: that of the elided intervals.
    split = {"name": "taps", "split": "linear1_relu", "latent_attack.steps": 1, "latent_attack.step_size": 2.0}
    found = terms(split)
    assert found["latent_loss"] == pytest.approx(found["interval_loss"], rel=1e-9)


# --- order -----------------------------------------------------------------------------------------------


def test_every_loss_lies_between_the_natural_one_and_that_of_the_whole_box():
    strong = {"attack.steps": 8, "attack.keep": "best"}
    whole, attacked = terms({"name": "ibp"})["robust"], terms({"name": "pgd", **strong})["robust"]
    assert terms({"name": "ibp"})["natural"] < attacked < whole
    for name in ("mtl-ibp", "cc-ibp", "exp-ibp"):
        found = terms({"name": name, "alpha": 0.4, **strong})
        assert attacked < found["robust"] < whole
        assert (found["adversarial_loss"], found["certified_loss"]) == pytest.approx((attacked, whole))
    small, shrunk = (terms({"name": "sabr", "relu_shrinkage": s, **strong})["robust"] for s in (0.0, 0.8))
    assert attacked < small < whole
    assert shrunk != small


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_natural_loss_has_its_share(share: float):
    found = terms({"name": "mtl-ibp", "natural_share": share})
    assert found["total"] == pytest.approx(share * found["natural"] + (1 - share) * found["robust"])


# --- in a step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "certifies"),
    [
        ({"name": "mtl-ibp"}, True),
        ({"name": "mtl-ibp", "alpha": 0.0}, False),
        ({"name": "taps", "latent_attack.steps": 1}, True),
        ({"name": "taps", "latent_attack.steps": 1, "relu_shrinkage": 0.5}, False),
        ({"name": "staps", "latent_attack.steps": 1, "attack.steps": 1}, False),
        ({"name": "sabr", "attack.steps": 1}, False),
    ],
)
def test_only_bounds_of_the_whole_box_are_called_certified(objective: dict[str, Any], certifies: bool):
    assert ("certified_accuracy" in stepped(objective, [RAMP]).read().sums) == certifies


@EACH
@pytest.mark.parametrize(("step", "size"), [(NATURAL, 4), (RAMP, 4), (RAMP, 1), (END, 4)])
def test_a_batch_in_parts_is_the_whole_batch(name: str, step: int, size: int):
    whole, parts = stepped(OBJECTIVES[name], [step]), stepped(OBJECTIVES[name], [step], micro_batch=size)
    assert_close(whole, parts, rtol=1e-8)
    for key, tensor in weights(whole).items():
        if key not in WITHOUT_GRADIENT:
            torch.testing.assert_close(weights(parts)[key], tensor, rtol=1e-7, atol=1e-9, msg=key)
    expected, found = whole.read().sums, parts.read().sums
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-8)


@EACH
def test_a_step_trains_every_weight_and_only_its_own_pass_moves_the_statistics(name: str):
    found, plain = stepped(OBJECTIVES[name], [END]), stepped({"name": "ibp"}, [END])
    for key, parameter in found.network.named_parameters():
        assert parameter.grad is not None
        assert key in WITHOUT_GRADIENT or float(parameter.grad.abs().max()) > 0, key
    for key, buffer in found.network.named_buffers():
        torch.testing.assert_close(buffer, dict(plain.network.named_buffers())[key], msg=key)


@EACH
def test_a_step_is_a_function_of_its_number(name: str):
    one = stepped(OBJECTIVES[name], [RAMP, END])
    settings = preset(OBJECTIVES[name])
    other = Stepper(settings, network(settings), PER_EPOCH)
    other.run(RAMP, *batch(RAMP))
    torch.manual_seed(12345)
    other.run(END, *batch(END))
    assert_same_bits(one, other)


def test_other_steps_and_seeds_start_their_attacks_elsewhere():
    (x, labels), attack = batch(), {"name": "pgd", "attack.step_size": 1e-9}
    settings = preset(attack)
    found = []
    for seed, step in ((0, RAMP), (0, RAMP + 1), (1, RAMP)):
        stepper = Stepper(settings.model_copy(update={"seed": seed}), network(settings), PER_EPOCH)
        stepper.optimizer.step = lambda: None
        stepper.run(step, x, labels)
        found.append(stepper.read().sums["robust_loss"])
    assert len(set(found)) == 3


# --- the attack ------------------------------------------------------------------------------------------


def attacked(settings: AttackSection, seed: int = 0, eps: float = EPS) -> tuple[Tensor, Passes, nn.Module]:
    model, (x, labels) = network(preset()), batch()
    graph = checked_graph(model)
    clean = Clean(*plain_pass(graph, x, statistics=batch_statistics))
    passes = Passes(graph, x, labels, eps, source=batch_statistics, clean=clean)
    ascent = SignedAscent(seed, BATCH, slice(0, BATCH), as_it_is)
    return InputAttack(graph, settings).inputs(passes, ascent), passes, model


def loss_at(passes: Passes, point: Tensor) -> Tensor:
    return F.cross_entropy(passes.outputs(point), passes.labels, reduction="none")


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_attacked_inputs_are_in_their_boxes_and_have_no_gradient(keep: str, restarts: int, start: float):
    point, passes, _ = attacked(AttackSection(steps=5, restarts=restarts, keep=keep, start=start))
    box = input_box(passes.x, EPS)
    assert not point.requires_grad
    assert bool(((point >= box.lower) & (point <= box.upper)).all())
    assert bool((loss_at(passes, point) > loss_at(passes, passes.x)).all())


def test_a_larger_radius_leaves_the_box_and_stays_in_the_image():
    point, passes, _ = attacked(AttackSection(radius=3.0))
    distance = (point - passes.x).abs()
    assert EPS < float(distance.max()) <= 3 * EPS * (1 + 1e-12)
    assert 0 <= float(point.min()) <= float(point.max()) <= 1


def test_one_step_of_two_half_widths_ends_in_a_corner():
    point, passes, _ = attacked(AttackSection(steps=1))
    box = input_box(passes.x, EPS)
    in_corner = ((point - box.centre).abs() - box.radius).abs() < 1e-12
    assert float(in_corner.float().mean()) > 0.99  # a few pixels have no gradient


def test_the_best_of_all_inputs_is_at_least_as_good_as_the_last():
    last, passes, _ = attacked(AttackSection(steps=6, step_size=1.5))
    best, _, _ = attacked(AttackSection(steps=6, step_size=1.5, keep="best"))
    several, _, _ = attacked(AttackSection(steps=6, step_size=1.5, keep="best", restarts=4))
    losses = [loss_at(passes, point).detach() for point in (last, best, several)]
    assert bool((losses[0] <= losses[1]).all())
    assert float(losses[2].mean()) >= float(losses[1].mean())
    assert float(losses[1].mean()) > float(losses[0].mean())


def test_the_lengths_of_steps_decay():
    assert steps_of(AttackSection(steps=8)).sizes == (0.25,) * 8
    assert steps_of(AttackSection(steps=1)).sizes == (2.0,)
    assert steps_of(AttackSection(steps=4, step_size=1.0, decay=0.5, decay_every=2)).sizes == (1.0, 1.0, 0.5, 0.5)


def test_an_attack_changes_nothing_in_the_network():
    _, _, model = attacked(AttackSection(steps=3))
    before = network(preset())
    for (name, tensor), twin in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, twin), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["conv9", "head"])
def test_a_layer_that_the_network_cannot_be_split_at_is_named(name: str):
    settings = preset({"name": "taps", "split": name})
    with pytest.raises(UnsupportedLayer, match=rf"objective\.split is '{name}'; .* split at: input, .*conv1_relu"):
        Stepper(settings, network(settings), PER_EPOCH)


# --- the link --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "link", "to_lower", "to_upper"),
    [
        (0.0, 0.5, 1.0, 0.0),
        (0.25, 0.5, 0.5, 0.0),
        (0.5, 0.5, 0.0, 0.0),
        (0.75, 0.5, 0.0, 0.5),
        (1.0, 0.5, 0.0, 1.0),
        (0.1, 0.2, 0.5, 0.0),
        (0.3, 0.2, 0.0, 0.0),
    ],
)
def test_a_latent_input_passes_its_gradient_to_the_nearer_end(
    place: float, link: float, to_lower: float, to_upper: float
):
    lower, upper = torch.tensor([1.0], requires_grad=True), torch.tensor([5.0], requires_grad=True)
    point = linked(lower, upper, torch.tensor([place]), link)
    assert point.item() == 1 + 4 * place
    point.backward(torch.tensor([2.0]))
    assert lower.grad is not None
    assert upper.grad is not None
    assert (lower.grad.item(), upper.grad.item()) == pytest.approx((2 * to_lower, 2 * to_upper))


def test_boxes_without_width_have_finite_gradients():
    (x, labels), model = batch(), network(preset()).train()
    for name in ("taps", "staps", "sabr", "exp-ibp"):
        twin = copy.deepcopy(model)
        fields = OBJECTIVES[name] | ({"split": "conv2_relu"} if name == "taps" else {})
        found = objective_terms(
            twin, x, labels, 1e-300, eps_max=EPS, objective={k: v for k, v in fields.items() if "." not in k}
        )
        found.total.backward()
        assert all(bool(p.grad.isfinite().all()) for p in twin.parameters() if p.grad is not None), name


# --- compiled --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's own, of its internals, while it compiles
@pytest.mark.parametrize(("name", "backend"), [("mtl-ibp", "aot_eager"), ("staps", "eager")])
def test_a_compiled_step_with_its_attack_is_the_eager_one(name: str, backend: str, monkeypatch: pytest.MonkeyPatch):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))  # no C++ is made of the graphs
    settings = preset(OBJECTIVES[name], batch_size=BATCH)
    found = []
    for compile in (True, False):
        stepper = Stepper(settings, network(settings), PER_EPOCH, compile=compile, on_failure=pytest.fail)
        for step in (NATURAL, RAMP, END):
            stepper.run(step, *batch(step))
        found.append(stepper)
    assert not torch._dynamo.utils.counters["graph_break"]
    # The clean batch, the loss, and an attack's gradient and losses; two attacks and the latent box for STAPS.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= (7 if name == "staps" else 4)
    assert_close(*found, rtol=1e-6)
    assert found[0].read().sums["robust_loss"] == pytest.approx(found[1].read().sums["robust_loss"], rel=1e-9)
