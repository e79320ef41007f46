"""What is claimed of one random network, and what sampling, attacks and exact minimisation say against it.

Each network is tried by every bound method in real arithmetic and, at its certificates, in every named arithmetic; by
complete verification, saved and with BatchNorm folded, through `verify` itself; in training mode with the statistics
of a batch; and, where it is piecewise linear and small, against the exact minimum by a mixed-integer programme.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from random_networks import Drawn, Shape, describe, drawn_networks
from torch import Generator, Tensor, nn

import certtrain
from certtrain.attack.criterion import computing_in
from certtrain.bounds import linear
from certtrain.bounds.box import box_ends
from certtrain.bounds.methods import METHODS
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.bounds.settings import Settings
from certtrain.bounds.statistics import BatchNorm
from certtrain.bounds.trace import NONLINEAR, BoundTrace
from certtrain.bounds.tracing import trace_layers
from certtrain.data import ImageSet, to_unit
from certtrain.errors import CerttrainError, SoundnessError
from certtrain.network.graphs import graph_of
from certtrain.network.modelfile import Classifier, Metadata
from certtrain.network.models import InputSpec, build_model
from certtrain.properties.cases import robustness
from certtrain.properties.milp import RULES, minimum
from certtrain.runtime.deadline import Deadline
from certtrain.spec.choices import NetworkName
from certtrain.verdicts import correct_points
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import network_of, verify

RADII = (0.002, 0.02, 0.08, 0.3)
EXAMPLES, POINTS = 3, 24  # boxes a network; uniform points a box, and as many corners
CLIMBS, STEPS = 2, 4  # attacks from so many starts, of so many steps
SEARCHED = 3  # every so many-th network is bounded by alpha-crown as well, which takes longest
SMALL = Settings(domains=60, dense=0, early_stop=True)
TINY_INPUTS, TINY_UNITS = 12, 24  # of networks that are minimised exactly
EXACT = 1e-9  # of float64's rounding, relative to the largest value


@dataclass
class Trial:
    """One network with what was tried and what was found against it."""

    number: int
    network: Drawn
    shape: Shape
    claims: int = 0
    certified: int = 0
    faults: list[str] = field(default_factory=list)

    def blame(self, what: str) -> None:
        """Something contradicts a claim."""
        self.faults.append(f"network {self.number}, {what}: {describe(self.network)}")


def try_network(number: int, network: Drawn, shape: Shape) -> Trial:
    """Everything that is tried with one network; a refusal or a crash counts as a fault as well."""
    trial, generator = Trial(number, network, shape), Generator().manual_seed(number)
    x = torch.rand(EXAMPLES, *shape, generator=generator)
    eps = RADII[number % len(RADII)]
    for step in (real_bounds, certificates, completely, in_training, exactly):
        try:
            step(trial, x, eps, generator)
        except SoundnessError as error:
            trial.blame(f"{step.__name__}: SoundnessError: {error}")
        except CerttrainError as error:
            trial.blame(f"{step.__name__}: refused: {error}")
        except Exception as error:  # a traceback is a fault, whatever it is
            trial.blame(f"{step.__name__}: {type(error).__name__}: {error}")
    return trial


# --- points ----------------------------------------------------------------------------------------------


def thrown(network: nn.Module, x: Tensor, eps: float, generator: Generator) -> Tensor:
    """Points (P, B, …) of the boxes around `x` (B, …): centres, uniform points, corners, and steps of attacks."""
    lower, upper = box_ends(x, eps)
    share = torch.rand(2 * POINTS, *x.shape, generator=generator).to(x)
    share[:POINTS] = share[:POINTS].round()
    points = [x.unsqueeze(0), torch.lerp(lower, upper, share).clamp(lower, upper)]
    return torch.cat([*points, climbed(network, x, lower, upper, generator)])


def climbed(network: nn.Module, x: Tensor, lower: Tensor, upper: Tensor, generator: Generator) -> Tensor:
    """Signed gradient steps up and down each output and each difference of two, from centres and random starts."""
    outputs = network(x).shape[1]
    each = torch.eye(outputs).to(x)
    functions = torch.cat([each, -each, each[:1] - each[1:], each[1:] - each[:1]])
    found = []
    for start in range(CLIMBS):
        share = torch.rand(len(functions), *x.shape, generator=generator).to(x) if start else torch.tensor(0.5).to(x)
        point = torch.lerp(lower, upper, share).clamp(lower, upper).expand(len(functions), *x.shape)
        for step in range(STEPS):
            point = point.detach().requires_grad_()
            values = network(point.flatten(0, 1)).view(len(functions), len(x), outputs)
            (gradient,) = torch.autograd.grad((values * functions.unsqueeze(1)).sum(), point)
            size = (upper - lower) if step == 0 else (upper - lower) / 4
            point = (point + size * gradient.sign()).clamp(lower, upper)
            found.append(point.detach())
    return torch.cat(found)


def outputs_at(network: nn.Module, points: Tensor, arithmetic: str = "float32") -> Tensor:
    """Logits (P, B, K) in float64 of points (P, B, …), by inference in that arithmetic."""
    with torch.no_grad(), computing_in(arithmetic, "cpu"):
        return network(points.flatten(0, 1)).double().view(*points.shape[:2], -1)


def label_gaps(logits: Tensor, labels: Tensor) -> Tensor:
    """logit[y] − logit[j] (P, B, K) of logits (P, B, K) for the classes y in `labels` (B,)."""
    column = labels.view(1, -1, 1).expand(len(logits), -1, 1)
    return logits.gather(2, column) - logits


# --- what is tried ---------------------------------------------------------------------------------------


def real_bounds(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Every method's bounds of the logits and margins, in float64; without width they are the value."""
    exact, x = copy.deepcopy(trial.network).double(), x.double()
    seen = outputs_at(exact, thrown(exact, x, eps, generator))
    labels = seen[0].argmax(1)
    for method in METHODS if trial.number % SEARCHED == 0 else [m for m in METHODS if m != "alpha-crown"]:
        ends = certtrain.output_bounds(exact, x, eps, method=method)
        compare(trial, f"{method}, bounds of the logits", seen, *ends)
        margins = certtrain.margin_bounds(exact, x, labels, eps, method=method)
        compare(trial, f"{method}, bounds of the margins", label_gaps(seen, labels), margins, None)
        points = certtrain.output_bounds(exact, x, 0.0, method=method)
        slack = 1e-7 * max(1.0, float(seen.abs().max()))
        if not all(torch.allclose(end, seen[0], rtol=0, atol=slack) for end in points):
            trial.blame(f"{method}: bounds of a point are not the network's value")


def compare(trial: Trial, what: str, seen: Tensor, lower: Tensor, upper: Tensor | None, slack: float = EXACT) -> None:
    """Blame bounds (B, K) that leave out a value (P, B, K) by more than rounding."""
    trial.claims += lower.numel()
    room = slack * max(1.0, float(seen.abs().max()))
    if not bool((seen >= lower - room).all()):
        trial.blame(f"{what}: a value is {float((lower - seen).max()):g} below its lower bound")
    if upper is not None and not bool((seen <= upper + room).all()):
        trial.blame(f"{what}: a value is {float((seen - upper).max()):g} above its upper bound")


def certificates(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """`certify` in every arithmetic, against inference in it."""
    points, exact = thrown(trial.network, x, eps, generator), copy.deepcopy(trial.network).double()
    labels, methods = trial.network(x).argmax(1), list(METHODS)
    for number, arithmetic in enumerate(ARITHMETICS):
        real = arithmetic == "real"
        gaps = label_gaps(
            outputs_at(*(exact, points.double()) if real else (trial.network, points), arithmetic), labels
        )
        method = methods[(trial.number + number) % len(methods)]
        found = certtrain.certify(trial.network, x, labels, eps, method=method, arithmetic=arithmetic)
        contradict(trial, f"certify by {method} in {arithmetic}", gaps, labels, found, EXACT if real else 0.0)


def contradict(trial: Trial, what: str, gaps: Tensor, labels: Tensor, found: Any, slack: float) -> None:
    """Blame certificates whose margin lies above an observed one, in gaps (P, B, K)."""
    others = gaps.scatter(2, labels.view(1, -1, 1).expand(len(gaps), -1, 1), torch.inf)
    smallest, bound = others.amin(2).amin(0), found.margin
    room = slack * max(1.0, float(others.isfinite().mul(others.nan_to_num(0.0)).abs().max()))
    below = bound.isfinite() & ~(smallest >= bound - room)
    broken = found.certified & ~(smallest > 0)
    trial.claims += len(bound)
    trial.certified += int(found.certified.sum())
    if bool((below | broken).any()):
        row = int((below | broken).nonzero()[0])
        trial.blame(f"{what}: a margin of {float(smallest[row]):g} below {float(bound[row]):g}")


def completely(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """`verify` from end to end on images, by one method, saved or folded, without attack."""
    if len(trial.shape) != 3:
        return
    model = classifier(trial)
    pixels = (x * 255).round().to(torch.uint8)
    with torch.no_grad():
        labels = model(to_unit(pixels)).argmax(1)
    images = ImageSet("folder", "test", pixels, labels, model.metadata.class_names)
    network: NetworkName = "folded" if trial.number % 2 else "saved"
    method = ("complete", "auto", "ibp", "complete")[trial.number // 2 % 4]
    points = list[ExampleResult]()
    verify(model, images, eps, attack=None, method=method, network=network, bounds=SMALL, on_examples=points.extend)
    judge(trial, f"{method}, {network}", network_of(model, network), images, points, eps, generator)


def judge(
    trial: Trial,
    what: str,
    model: nn.Module,
    images: ImageSet,
    points: list[ExampleResult],
    eps: float,
    generator: Generator,
) -> None:
    """Blame verdicts that inference at points of the boxes contradicts; the newest of each example counts."""
    x = to_unit(images.images)
    gaps = label_gaps(outputs_at(model, thrown(model, x, eps, generator)), images.labels)
    smallest = gaps.scatter(2, images.labels.view(1, -1, 1).expand(len(gaps), -1, 1), torch.inf).amin(2).amin(0)
    lower, upper = box_ends(x, eps)
    for point in {point.index: point for point in points}.values():
        trial.claims += 1
        trial.certified += point.verdict == "certified"
        least = float(smallest[point.index])
        if point.verdict == "certified" and not (least > 0 and point.margin is not None and least >= point.margin):
            trial.blame(f"{what}: certified with margin {point.margin}, but {least:g} was seen")
        if point.counterexample is not None:
            found, row = point.counterexample, point.index
            inside = bool(((found >= lower[row]) & (found <= upper[row])).all())
            if not inside or bool(correct_points(model(found.unsqueeze(0)), images.labels[row : row + 1])):
                trial.blame(f"{what}: a counterexample that is none")


def classifier(trial: Trial) -> Classifier:
    """The network as a model file holds it: layers as data, built again."""
    network = copy.deepcopy(trial.network)
    found = graph_of(trace_layers(network))
    classes = tuple(f"class {number}" for number in range(network(torch.zeros(1, *trial.shape)).shape[1]))
    described = Metadata(
        architecture=found.graph, input_shape=trial.shape, class_names=classes, dataset="folder", eps=0.1, seed=0,
        versions={}, preset={},
    )  # fmt: skip
    channels = trial.shape[0]
    model = build_model(found.graph, InputSpec(trial.shape, len(classes), (0.0,) * channels, (1.0,) * channels))
    model.load_state_dict({f"network.{name}": tensor for name, tensor in found.state.items()}, strict=False)
    result = Classifier(model, described).eval()
    x = torch.rand(4, *trial.shape, generator=Generator().manual_seed(trial.number))
    if not torch.allclose(result(x), network(x), rtol=0, atol=1e-4):
        trial.blame("built again from its data, the network computes something else")
    return result


def in_training(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """The pass of a training step: with a batch's statistics held, the bounds hold for every input of the boxes."""
    network = copy.deepcopy(trial.network).double().train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    calls = [call.layer for call in trace_layers(network).calls if isinstance(call.layer, BatchNorm)]
    if not calls or len(set(calls)) < len(calls):  # one layer twice normalises by two statistics
        return
    x = x.double()
    trace = certtrain.propagate(network, x, eps)
    for layer, mean, variance, _ in trace.statistics:
        layer.running_mean, layer.running_var = mean.detach(), variance.detach()
    seen = outputs_at(network.eval(), thrown(network, x, eps, generator))
    labels = seen[0].argmax(1)
    compare(trial, "in training, ibp", seen, trace.lower.detach(), trace.upper.detach())
    compare(trial, "in training, crown-ibp", label_gaps(seen, labels), linear_margins(trace, labels), None)


def linear_margins(trace: BoundTrace, labels: Tensor) -> Tensor:
    """By linear bounds over the trace's boxes."""
    return linear.margins(trace, labels).detach()


# What a mixed-integer programme has no rule for.
CURVED = tuple(layer for layer in NONLINEAR if layer not in RULES)


def exactly(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """The true minimum of each margin of one box, against every method's bound."""
    exact = copy.deepcopy(trial.network).double()
    calls = trace_layers(exact).calls
    if x[0].numel() > TINY_INPUTS or any(isinstance(call.layer, CURVED) for call in calls):
        return
    one = x[:1].double()
    label = exact(one).argmax(1)
    asked = robustness(x[0], int(label), eps, exact(one).shape[1])
    bounds = {method: certtrain.margin_bounds(exact, one, label, eps, method=method)[0] for method in METHODS}
    others = [j for j in range(asked.outputs) if j != int(label)]
    for j, case in zip(others, asked.cases, strict=True):
        least = minimum(exact, trial.shape, case, deadline=Deadline.after(2.0))
        room = 1e-5 * max(1.0, abs(least.reached))
        for method, found in bounds.items():
            trial.claims += 1
            if found[j].item() > least.reached + room:
                trial.blame(f"{method}: the bound {found[j].item():g} is above the minimum {least.reached:g}")
        if least.unstable > TINY_UNITS:
            return


@dataclass
class Total:
    """Over all networks: what was claimed, and what was found against it."""

    networks: int = 0
    claims: int = 0
    certified: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Count one network."""
        self.networks, self.claims = self.networks + 1, self.claims + trial.claims
        self.certified += trial.certified
        self.faults += trial.faults


@torch.enable_grad()
def random_campaign(count: int, seed: int, progress: Callable[[Total], None] = lambda total: None) -> Total:
    """Try `count` networks; `progress` is called after each."""
    total = Total()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        for number, network, shape in drawn_networks(count, seed):
            total.add(try_network(number, network, shape))
            progress(total)
    return total
