"""Tests of bounds and certificates of random networks by sampling, attacks and exact minimisation.

Each network is tested with every bound method in real arithmetic; with certificates in every arithmetic; with complete
verification by `verify`, as saved or with BatchNorm folded; with splits of its inputs and of its neurons; in training
mode with the statistics of a batch; and, if it is piecewise linear and small, against the exact minimum from a
mixed-integer program.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from random_networks import RandomNetwork, Shape, describe, drawn_networks
from torch import Generator, Tensor, nn

import certtrain
from certtrain.attack.criterion import computing_in
from certtrain.bounds import linear
from certtrain.bounds.box import box_ends, input_box
from certtrain.bounds.methods import METHODS
from certtrain.bounds.reading import read_layers
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.bounds.settings import Settings
from certtrain.bounds.statistics import BatchNorm
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import NONLINEAR, BoundTrace
from certtrain.branching.bounds import domain_bounds, optimised
from certtrain.branching.boxes import crown_prefix
from certtrain.branching.clipping import NeuronBounds, clipped, neuron_bounds
from certtrain.branching.input_domains import InputProblem
from certtrain.branching.inputs import FEW_INPUTS, InputSearch
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound
from certtrain.data import ImageSet, to_unit
from certtrain.errors import CerttrainError, SoundnessError
from certtrain.network.graphs import graph_of
from certtrain.network.modelfile import Classifier, Metadata
from certtrain.network.models import InputSpec, build_model
from certtrain.properties.cases import robustness
from certtrain.properties.milp import RULES, minimum
from certtrain.runtime.deadline import NEVER, Deadline
from certtrain.spec.choices import NetworkName
from certtrain.verdicts import correct_examples
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import network_of, verify

RADII = (0.002, 0.02, 0.08, 0.3)
EXAMPLES, POINTS = 3, 24  # boxes for each network; uniform points for each box, and as many corners
STARTS, STEPS = 2, 4  # of each attack
ALPHA_EVERY = 3  # only one of so many networks is bounded by alpha-crown too, which is slowest
SMALL = Settings(domains=60, dense=0, early_stop=True)
TINY_INPUTS, TINY_UNITS = 12, 24  # the largest networks that are minimised exactly
EXACT = 1e-9  # tolerance for rounding in float64, relative to the largest value


@dataclass
class Trial:
    """One network, the number of claims that were tested, and the faults that were found."""

    number: int
    network: RandomNetwork
    shape: Shape
    claims: int = 0
    certified: int = 0
    faults: list[str] = field(default_factory=list)

    def report(self, what: str) -> None:
        """Add a fault: something contradicts a claim."""
        self.faults.append(f"network {self.number}, {what}: {describe(self.network)}")


def try_network(number: int, network: RandomNetwork, shape: Shape) -> Trial:
    """All tests of one network. An error of any kind is a fault too."""
    trial, generator = Trial(number, network, shape), Generator().manual_seed(number)
    x = torch.rand(EXAMPLES, *shape, generator=generator)
    eps = RADII[number % len(RADII)]
    steps = (real_bounds, certificates, complete_verification, input_splits, neuron_splits, in_training, exact_minima)
    for step in steps:
        try:
            step(trial, x, eps, generator)
        except SoundnessError as error:
            trial.report(f"{step.__name__}: SoundnessError: {error}")
        except CerttrainError as error:
            trial.report(f"{step.__name__}: refused: {error}")
        except Exception as error:  # a traceback is a fault, whatever it is
            trial.report(f"{step.__name__}: {type(error).__name__}: {error}")
    return trial


# --- points ----------------------------------------------------------------------------------------------


def sample_points(network: nn.Module, x: Tensor, eps: float, generator: Generator) -> Tensor:
    """Points (P, B, …) in the boxes around `x` (B, …): centres, uniform points, corners, and steps of attacks."""
    lower, upper = box_ends(x, eps)
    share = torch.rand(2 * POINTS, *x.shape, generator=generator).to(x)
    share[:POINTS] = share[:POINTS].round()
    points = [x.unsqueeze(0), torch.lerp(lower, upper, share).clamp(lower, upper)]
    return torch.cat([*points, attack_points(network, x, lower, upper, generator)])


def attack_points(network: nn.Module, x: Tensor, lower: Tensor, upper: Tensor, generator: Generator) -> Tensor:
    """The points of signed gradient ascent and descent on outputs and on differences of two outputs.

    They start from the centres and from random points.
    """
    outputs = network(x).shape[1]
    each = torch.eye(outputs).to(x)
    functions = torch.cat([each, -each, each[:1] - each[1:], each[1:] - each[:1]])
    found = []
    for start in range(STARTS):
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


# --- the tests -------------------------------------------------------------------------------------------


def jumps(network: nn.Module) -> bool:
    """Whether a Softplus jumps at its threshold: close to it the bounds hold both branches, however narrow the box."""
    layers = [call.layer for call in read_layers(network).calls]
    return any(isinstance(layer, nn.Softplus) and layer.threshold < 15 for layer in layers)


def real_bounds(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Test every method's bounds of logits and margins in float64; for boxes without width they must be the value."""
    exact, x = copy.deepcopy(trial.network).double(), x.double()
    seen = outputs_at(exact, sample_points(exact, x, eps, generator))
    labels, graph = seen[0].argmax(1), checked_graph(exact, trial.shape)
    for name in METHODS if trial.number % ALPHA_EVERY == 0 else [m for m in METHODS if m != "alpha-crown"]:
        bounds = METHODS[name](graph, input_box(x, eps))
        compare(trial, f"{name}, bounds of the logits", seen, *bounds.ends())
        compare(trial, f"{name}, bounds of the margins", label_gaps(seen, labels), bounds.margins(labels), None)
        points = METHODS[name](graph, input_box(x, 0.0)).ends()
        tolerance = 1e-7 * max(1.0, float(seen.abs().max()))
        if not jumps(exact) and not all(torch.allclose(end, seen[0], rtol=0, atol=tolerance) for end in points):
            trial.report(f"{name}: bounds of a box without width are not the network's value")


def compare(
    trial: Trial, what: str, seen: Tensor, lower: Tensor, upper: Tensor | None, relative: float = EXACT
) -> None:
    """Report bounds (B, K) that are violated by a value (P, B, K) by more than rounding."""
    trial.claims += lower.numel()
    tolerance = relative * max(1.0, float(seen.abs().max()))
    if not bool((seen >= lower - tolerance).all()):
        trial.report(f"{what}: a value is {float((lower - seen).max()):g} below its lower bound")
    if upper is not None and not bool((seen <= upper + tolerance).all()):
        trial.report(f"{what}: a value is {float((seen - upper).max()):g} above its upper bound")


def certificates(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Test `certify` in every arithmetic by inference in the same arithmetic."""
    points, exact = sample_points(trial.network, x, eps, generator), copy.deepcopy(trial.network).double()
    labels, methods = trial.network(x).argmax(1), list(METHODS)
    for number, arithmetic in enumerate(ARITHMETICS):
        real = arithmetic == "real"
        gaps = label_gaps(
            outputs_at(*(exact, points.double()) if real else (trial.network, points), arithmetic), labels
        )
        method = methods[(trial.number + number) % len(methods)]
        found = certtrain.certify(trial.network, x, labels, eps, method=method, arithmetic=arithmetic)
        contradict(trial, f"certify by {method} in {arithmetic}", gaps, labels, found, EXACT if real else 0.0)


def contradict(trial: Trial, what: str, gaps: Tensor, labels: Tensor, found: Any, relative: float) -> None:
    """Report certificates whose margin is above an observed one in `gaps` (P, B, K)."""
    others = gaps.scatter(2, labels.view(1, -1, 1).expand(len(gaps), -1, 1), torch.inf)
    smallest, bound = others.amin(2).amin(0), found.margin
    tolerance = relative * max(1.0, float(others.isfinite().mul(others.nan_to_num(0.0)).abs().max()))
    below = bound.isfinite() & ~(smallest >= bound - tolerance)
    broken = found.certified & ~(smallest > 0)
    trial.claims += len(bound)
    trial.certified += int(found.certified.sum())
    if bool((below | broken).any()):
        row = int((below | broken).nonzero()[0])
        trial.report(f"{what}: a margin of {float(smallest[row]):g} below {float(bound[row]):g}")


def complete_verification(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Test `verify` on images by one method, with the network as saved or folded, without an attack."""
    if len(trial.shape) != 3:
        return
    model = classifier(trial)
    pixels = (x * 255).round().to(torch.uint8)
    with torch.no_grad():
        labels = model(to_unit(pixels)).argmax(1)
    images = ImageSet("folder", "test", pixels, labels, model.metadata.class_names)
    network: NetworkName = "folded" if trial.number % 2 else "saved"
    method = ("complete", "auto", "ibp", "complete")[trial.number // 2 % 4]
    results = list[ExampleResult]()
    verify(model, images, eps, attack=None, method=method, network=network, bounds=SMALL, on_examples=results.extend)
    judge(trial, f"{method}, {network}", network_of(model, network), images, results, eps, generator)


def input_splits(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Test branch and bound over few inputs, for random cases that are nearly violated by some observed point."""
    if x[0].numel() > FEW_INPUTS:
        return
    arithmetic = "real" if trial.number % 2 else "float32"
    real = arithmetic == "real"
    network = copy.deepcopy(trial.network).double() if real else trial.network
    points = sample_points(network, x[:1].double() if real else x[:1], eps, generator)
    seen = outputs_at(network, points, arithmetic)[:, 0]
    cases = [nearly_violated(seen, generator) for _ in range(1 + trial.number % 3)]
    graph = checked_graph(copy.deepcopy(trial.network).double(), trial.shape)
    box, rounding = input_box(x[:1].double(), eps), ARITHMETICS[arithmetic]
    problem = InputProblem.of(graph, box.lower, box.upper, cases, rounding)
    search = InputSearch(problem, replace(SMALL, domains=10, rounding=rounding), keep_tree=trial.number % 4 < 2)
    outcome = search.run()
    trial.claims += 1
    trial.certified += outcome.proved
    tolerance = EXACT * max(1.0, float(seen.abs().max())) if real else 0.0
    for functions, offsets in cases if outcome.proved else []:
        values = (seen @ functions.T + offsets).amax(1)
        if not bool((values > -tolerance).all()):
            trial.report(f"splits of inputs in {arithmetic}: proved, but a value is {float(values.min()):g}")


def neuron_splits(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Test branch and bound over neurons, and the clipped ends of their inputs, for a case that is nearly violated."""
    arithmetic = "real" if trial.number % 2 else "float32"
    real = arithmetic == "real"
    own = behind_a_rectifier(trial.network, x[:1], generator) if trial.number % 3 else trial.network
    network = copy.deepcopy(own).double() if real else own
    points = sample_points(network, x[:1].double() if real else x[:1], eps, generator)
    seen = outputs_at(network, points, arithmetic)[:, 0]
    functions, offsets = nearly_violated(seen, generator)
    settings = replace(SMALL, domains=20, rounding=ARITHMETICS[arithmetic])
    graph = checked_graph(copy.deepcopy(own).double(), trial.shape)
    prefix = crown_prefix(graph, input_box(x[:1].double(), eps), settings)
    problem = Problem(prefix, functions, offsets, settings.rounding)
    values, tolerance = (seen @ functions.T + offsets), EXACT * max(1.0, float(seen.abs().max())) if real else 0.0
    search = BranchAndBound(problem, settings)
    outcome = search.run()
    trial.claims += 1
    trial.certified += outcome.proved
    least = float(values.amax(1).min())
    if outcome.proved and not least > outcome.bound - tolerance:
        trial.report(f"splits of neurons in {arithmetic}: proved {outcome.bound:g}, but a value is {least:g}")
    if problem.neurons and (known := neuron_bounds(problem, settings)) is not None:
        clipped_ends(trial, search, known, points[:, 0], values)
    upper_planes(trial, search, points[:, 0], values, generator)


def clipped_ends(trial: Trial, search: BranchAndBound, known: NeuronBounds, points: Tensor, values: Tensor) -> None:
    """Test the ends of neurons' inputs at the points whose largest value is at most some threshold."""
    problem = search.problem
    inputs = (problem if points.dtype == torch.float64 else problem.in_float32()).run(points)[1].double()
    for threshold in values.amax(1).clamp(min=0).double().quantile(torch.tensor([0.2, 0.6]).double()).tolist():
        domain = optimised(search.fast, search.first(torch.zeros(1, problem.neurons)), 5)
        for _ in range(3):
            domain = clipped(problem, known, domain, threshold, NEVER)
            small = inputs[values.amax(1) <= threshold]
            slack = EXACT * inputs.abs().amax(0) if points.dtype == torch.float64 else 0.0
            trial.claims += problem.neurons
            if not bool(((small >= domain.lower.double() - slack) & (small <= domain.upper.double() + slack)).all()):
                trial.report(f"clipped ends at threshold {threshold:g}")
            domain = optimised(search.fast, domain, 5)


@torch.no_grad()
def behind_a_rectifier(network: nn.Module, x: Tensor, generator: Generator) -> nn.Module:
    """The network after an affine layer and a rectifier, whose inputs are near zero around `x`: they have planes."""
    conv = x.dim() == 4 and bool(torch.rand((), generator=generator) < 0.7)
    first = nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1) if conv else nn.Linear(x.shape[-1], x.shape[-1])
    first.weight.normal_(generator=generator)
    assert first.bias is not None
    first.bias.sub_(first(x).transpose(1, -1).flatten(0, -2).mean(0) if conv else first(x).flatten(0, -2).mean(0))
    slope = 0.3 * float(torch.rand((), generator=generator).round())
    return nn.Sequential(first, nn.LeakyReLU(slope) if slope else nn.ReLU(), network).eval()


def upper_planes(trial: Trial, search: BranchAndBound, points: Tensor, values: Tensor, generator: Generator) -> None:
    """Test the bounds of domains with random shares of upper planes at the points that have the domains' signs."""
    problem = search.problem
    inputs = (problem if points.dtype == torch.float64 else problem.in_float32()).run(points)[1]
    for count in (0, 1, 3):
        fixed = torch.rand(problem.neurons, generator=generator).argsort()[:count]
        signs = torch.zeros(1, problem.neurons)
        signs[0, fixed] = (inputs[0, fixed] >= 0) * 2.0 - 1
        domain = optimised(search.fast, search.planes.with_shares(search.first(signs)), 3 * count)
        if not domain.shares.shape[1]:
            return
        assert problem.hull is not None
        shares = torch.rand(domain.shares.shape, generator=generator).clamp(problem.hull.slope, 1.0)
        for each in (domain, domain._replace(shares=shares), domain._replace(shares=shares.round())):
            bound, fits = float(domain_bounds(problem, each)), ((inputs * signs >= 0) | (signs == 0)).all(1)
            weights = each.weights[0].double()  # as the bound is computed
            summed = values[fits].double() @ (weights / weights.sum())
            slack = EXACT * max(1.0, float(values.abs().max())) if points.dtype == torch.float64 else 0.0
            trial.claims += 1
            if not float(summed.min()) >= bound - slack:
                trial.report(f"upper planes: bound {bound:g}, but a value is {float(summed.min()):g}")


def nearly_violated(seen: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Functions (S, K) and offsets (S,) whose largest value at the outputs `seen` (P, K) is a little above zero."""
    count = 1 + int(torch.randint(3, (), generator=generator))
    functions = torch.randn(count, seen.shape[1], generator=generator, dtype=torch.float64)
    offsets = -torch.quantile(seen @ functions.T, float(torch.rand((), generator=generator)), dim=0)
    values = (seen @ functions.T + offsets).amax(1)
    above = float(values.max() - values.min()) * 10 ** -float(3 * torch.rand((), generator=generator))
    return functions, offsets - values.min() + above


def judge(
    trial: Trial,
    what: str,
    model: nn.Module,
    images: ImageSet,
    results: list[ExampleResult],
    eps: float,
    generator: Generator,
) -> None:
    """Report verdicts that inference in the boxes contradicts; only the last verdict of each example counts."""
    x = to_unit(images.images)
    gaps = label_gaps(outputs_at(model, sample_points(model, x, eps, generator)), images.labels)
    smallest = gaps.scatter(2, images.labels.view(1, -1, 1).expand(len(gaps), -1, 1), torch.inf).amin(2).amin(0)
    lower, upper = box_ends(x, eps)
    for result in {result.index: result for result in results}.values():
        trial.claims += 1
        trial.certified += result.verdict == "certified"
        least = float(smallest[result.index])
        if result.verdict == "certified" and not (least > 0 and result.margin is not None and least >= result.margin):
            trial.report(f"{what}: certified with margin {result.margin}, but {least:g} was observed")
        if result.counterexample is not None:
            found, row = result.counterexample, result.index
            inside = bool(((found >= lower[row]) & (found <= upper[row])).all())
            if not inside or bool(correct_examples(model(found.unsqueeze(0)), images.labels[row : row + 1])):
                trial.report(f"{what}: a wrong counterexample")


def classifier(trial: Trial) -> Classifier:
    """The network as it would be loaded from a model file: built from its layers as data."""
    network = copy.deepcopy(trial.network)
    found = graph_of(read_layers(network))
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
        trial.report("the network that is built from its data computes something else")
    return result


def in_training(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Test the bounds of a training step: with the statistics of the batch they hold for every input in the boxes."""
    network = copy.deepcopy(trial.network).double().train()
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    calls = [call.layer for call in read_layers(network).calls if isinstance(call.layer, BatchNorm)]
    if not calls or len(set(calls)) < len(calls):  # a layer that is called twice has two sets of statistics
        return
    x = x.double()
    trace = certtrain.propagate(network, x, eps)
    for layer, mean, variance, _ in trace.statistics.values():
        layer.running_mean, layer.running_var = mean.detach(), variance.detach()
    seen = outputs_at(network.eval(), sample_points(network, x, eps, generator))
    labels = seen[0].argmax(1)
    compare(trial, "in training, ibp", seen, trace.lower.detach(), trace.upper.detach())
    compare(trial, "in training, crown-ibp", label_gaps(seen, labels), linear_margins(trace, labels), None)


def linear_margins(trace: BoundTrace, labels: Tensor) -> Tensor:
    """The margins by linear bounds over the boxes of the trace."""
    return linear.margins(trace, labels).detach()


# The layers for which the mixed-integer program has no rule.
CURVED = tuple(layer for layer in NONLINEAR if layer not in RULES)


def exact_minima(trial: Trial, x: Tensor, eps: float, generator: Generator) -> None:
    """Test every method's bounds against the exact minimum of each margin in one box."""
    exact = copy.deepcopy(trial.network).double()
    calls = read_layers(exact).calls
    if x[0].numel() > TINY_INPUTS or any(isinstance(call.layer, CURVED) for call in calls):
        return
    one = x[:1].double()
    label = exact(one).argmax(1)
    stated = robustness(x[0], int(label), eps, exact(one).shape[1])
    bounds = {method: certtrain.margin_bounds(exact, one, label, eps, method=method)[0] for method in METHODS}
    others = [j for j in range(stated.outputs) if j != int(label)]
    for j, case in zip(others, stated.cases, strict=True):
        least = minimum(exact, trial.shape, case, deadline=Deadline.after(2.0))
        tolerance = 1e-5 * max(1.0, abs(least.reached))
        for method, found in bounds.items():
            trial.claims += 1
            if found[j].item() > least.reached + tolerance:
                trial.report(f"{method}: the bound {found[j].item():g} is above the minimum {least.reached:g}")
        if least.unstable > TINY_UNITS:
            return


@dataclass
class Total:
    """The claims and faults of all networks."""

    networks: int = 0
    claims: int = 0
    certified: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Add one network."""
        self.networks, self.claims = self.networks + 1, self.claims + trial.claims
        self.certified += trial.certified
        self.faults += trial.faults


@torch.enable_grad()
def random_campaign(count: int, seed: int, progress: Callable[[Total], None] = lambda total: None) -> Total:
    """Test `count` networks; `progress` is called after each."""
    total = Total()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        for number, network, shape in drawn_networks(count, seed):
            total.add(try_network(number, network, shape))
            progress(total)
    return total
