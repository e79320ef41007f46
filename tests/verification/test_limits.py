"""Time limits: the clock is read within steps too, and what is not computed in time is never claimed."""

import time
from dataclasses import replace
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.attack import PGD
from certtrain.bounds import chunks
from certtrain.bounds.alpha import SlopeSearch, slope_search_bounds
from certtrain.bounds.box import box_between, input_box
from certtrain.bounds.chunks import dense, in_parts, inference_work, row_bytes, row_work
from certtrain.bounds.crown import tighten_by_crown
from certtrain.bounds.linear import Prefix, backsubstitute, logit_functions
from certtrain.bounds.methods import METHODS
from certtrain.bounds.settings import VERDICT_SETTINGS, Settings
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.branching import leaves, selection
from certtrain.branching.boxes import tightened_prefix
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound
from certtrain.branching.selection import branching_scores, chosen_neurons
from certtrain.data import ImageSet, to_unit
from certtrain.errors import MethodError
from certtrain.network.modelfile import Classifier
from certtrain.properties import milp
from certtrain.properties.cases import Property, robustness
from certtrain.properties.decide import case_bounds, decide
from certtrain.properties.exact import PreparedNetwork
from certtrain.properties.milp import minimum
from certtrain.properties.violations import search
from certtrain.runtime.deadline import Deadline
from certtrain.spec.architecture import CNN7, MLP
from certtrain.verification.cascade import BATCH_SECONDS, SHARE_BEFORE_LAST, Cascade, Limits
from certtrain.verification.certificate import Certifier
from certtrain.verification.results import ExampleResult
from certtrain.verification.steps import BoundStep, ExampleBatch, Round, StepResult, VerificationStep
from certtrain.verification.verify import Report, verify
from helpers.deadlines import CountedDeadline
from helpers.sampling import points_inside
from helpers.tiny_classifier import classifier, mostly_right

EPS = 0.1


def small() -> nn.Sequential:
    """Convolutions and linear layers in float64 that leave many signs open."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 4)).double().eval().requires_grad_(False)


def inputs(examples: int = 2) -> Tensor:
    return torch.rand(examples, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trace(settings: Settings) -> BoundTrace:
    tighten = tighten_by_crown(settings)
    return trace_bounds(checked_graph(small()), input_box(inputs(), EPS), tighten=tighten)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each function is a part of its own where there is a deadline."""
    monkeypatch.setattr(chunks, "WORK_BETWEEN_CHECKS", 1)


# --- between the parts of a layer ------------------------------------------------------------------------


def test_functions_after_the_deadline_have_no_bound():
    start = box_between(-torch.ones(2, 3), torch.ones(2, 3))
    functions = torch.arange(24.0).view(2, 4, 3)
    whole = functions.sum(2)
    for most in range(9):
        found = in_parts(
            lambda prefix, part: part.sum(2), Prefix([], start), dense(functions), (2, 4), 1, CountedDeadline(most)
        ).flatten()
        assert torch.equal(found[:most], whole.flatten()[:most])
        assert found[most:].eq(-torch.inf).all()


@pytest.mark.usefixtures("one_by_one")
def test_a_layer_keeps_its_intervals_where_bounds_come_too_late():
    best, wide = trace(Settings(dense=0)), trace(Settings(dense=0, deadline=CountedDeadline(0, limited=True)))
    widths = []
    for most in (0, 5, 15, 40, 80, 120, 10**6):
        found = trace(Settings(dense=0, deadline=CountedDeadline(most, limited=True)))
        for (_, box), (_, least), (_, greatest) in zip(found.relu_boxes, best.relu_boxes, wide.relu_boxes, strict=True):
            assert (box.radius >= least.radius - 1e-12).all()
            assert (box.radius <= greatest.radius + 1e-12).all()
        widths.append(float(sum(box.radius.sum() for _, box in found.relu_boxes)))
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 4
    assert widths[0] == pytest.approx(float(sum(box.radius.sum() for _, box in wide.relu_boxes)))
    assert widths[-1] == pytest.approx(float(sum(box.radius.sum() for _, box in best.relu_boxes)))


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
@pytest.mark.parametrize("most", [0, 10, 100, 300, 1000])
def test_what_there_was_time_for_holds_and_is_no_tighter_than_all(method: str, most: int):
    model, x, labels = small(), inputs(), torch.tensor([0, 1])
    settings = Settings(dense=0, iterations=5, deadline=CountedDeadline(most, limited=True))
    found = METHODS[method](checked_graph(model), input_box(x, EPS), settings).margins(labels)
    for row, label in enumerate(labels.tolist()):
        logits = model(points_inside((x[row] - EPS).clamp(0, 1), (x[row] + EPS).clamp(0, 1)))
        assert (logits[:, label : label + 1] - logits >= found[row] - 1e-9).all()
    if most == 0 and method == "crown-ibp":
        assert found.eq(-torch.inf).all()


def test_the_search_for_slopes_takes_no_step_after_the_deadline():
    found = trace(Settings())
    prefix, functions = Prefix(found.records, found.start), logit_functions(found).contiguous()
    bounds = [
        slope_search_bounds(prefix, functions, Settings(iterations=20, deadline=CountedDeadline(most)))
        for most in (0, 1, 5, 100)
    ]
    assert torch.equal(bounds[0], backsubstitute(prefix, functions))
    assert all((after >= before).all() for before, after in pairwise(bounds))
    assert float(bounds[2].sum()) > float(bounds[1].sum())
    assert torch.equal(bounds[3], slope_search_bounds(prefix, functions, Settings(iterations=20)))


def test_a_deadline_changes_no_bound_that_is_computed():
    for method in METHODS:
        given = checked_graph(small()), input_box(inputs(), EPS)
        labels = torch.tensor([0, 1])
        whole = METHODS[method](*given, Settings(iterations=5)).margins(labels)
        timed = METHODS[method](*given, Settings(iterations=5, deadline=Deadline.after(1000.0))).margins(labels)
        torch.testing.assert_close(timed, whole, rtol=1e-9, atol=1e-9)


def test_work_is_counted_in_multiplications():
    graph = checked_graph(nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(48, 5)))
    x = torch.zeros(1, 2, 8, 8)
    values = chunks.VALUE_WORK * (128 + 48 + 48)
    assert inference_work(graph, x) == 16 * (3 * 2 * 9) + 48 * 5 + values
    passed = trace_bounds(graph, input_box(x, EPS, None))
    assert row_work(Prefix(passed.records, passed.start)) == inference_work(graph, x)
    assert row_work(Prefix(passed.records, passed.start), gradients=True) == 3 * inference_work(graph, x)


def test_the_lines_of_curves_are_counted_where_each_function_has_its_own():
    graph = checked_graph(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
    passed = trace_bounds(graph, input_box(torch.zeros(1, 1, 2, 2), EPS, None))
    prefix = Prefix(passed.records, passed.start)
    assert row_work(prefix) == inference_work(graph, torch.zeros(1, 1, 2, 2))
    assert row_work(prefix, gradients=True) == 3 * (row_work(prefix) + 6 * chunks.CURVE_WORK)


LINES = [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.ELU(3.0), nn.Hardtanh()]


@pytest.mark.parametrize("layer", LINES, ids=lambda layer: type(layer).__name__)
def test_what_gradients_keep_fits_the_memory_of_a_function(layer: nn.Module):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 200), layer, nn.Linear(200, 200), layer)
    graph = checked_graph(model.double().requires_grad_(False))
    passed = trace_bounds(graph, input_box(torch.rand(1, 1, 4, 4).double(), EPS, None))
    prefix, kept = Prefix(passed.records, passed.start), dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    search = SlopeSearch(prefix, torch.randn(1, 50, 200).double(), Settings())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        search.step()
    numbers = 4 * sum(alpha.nbytes for alpha in search.ascent.values)  # with two moments and the gradient
    taken = numbers + sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert taken <= 1.1 * 50 * row_bytes(prefix, 200, gradients=True)


# --- branch and bound ------------------------------------------------------------------------------------


def problem(settings: Settings) -> Problem:
    box = box_between((inputs(1) - EPS).clamp(0, 1), (inputs(1) + EPS).clamp(0, 1))
    function = torch.tensor([[1.0, -1.0, 0.0, 0.0]]).double()
    return Problem(tightened_prefix(checked_graph(small()), box, settings), function, torch.zeros(1).double())


def test_few_domains_are_bounded_at_once_where_a_step_of_many_takes_long(monkeypatch: pytest.MonkeyPatch):
    settings = Settings(iterations=3)
    given = problem(settings)
    work = row_work(given.prefix, gradients=True)
    monkeypatch.setattr(chunks, "WORK_BETWEEN_CHECKS", 7 * work)
    assert BranchAndBound(given, settings).most > 7
    assert BranchAndBound(given, replace(settings, deadline=Deadline.after(1000.0))).most == 7


@pytest.mark.parametrize("most", [1, 2, 100])
def test_no_further_split_is_tried_after_the_deadline(most: int, monkeypatch: pytest.MonkeyPatch):
    given, tried = problem(Settings(iterations=3)), list[int]()
    found = BranchAndBound(given, Settings())
    domains = found.bound(found.first(torch.zeros(1, given.neurons)), 1)
    scores, measured = branching_scores(found.fast, domains), selection.domain_bounds
    monkeypatch.setattr(selection, "domain_bounds", lambda *a: (tried.append(1), measured(*a))[1])
    neurons = chosen_neurons(found.fast, domains, scores, CountedDeadline(most))
    assert bool(scores.unstable[0, neurons])
    assert len(tried) == 2 * min(most, selection.CANDIDATES)


@pytest.mark.usefixtures("one_by_one")
def test_a_leafs_linear_program_is_not_written_after_the_deadline(monkeypatch: pytest.MonkeyPatch):
    given = problem(Settings(iterations=3))
    units, asked = given.neurons, list[dict[str, Any]]()
    signs = torch.where(given.unstable, 1, 0).to(torch.int8)[None]
    nothing = torch.zeros(1, units).double()
    one = torch.ones(1, 1).double()
    leaf = Domains.of(signs, nothing, nothing, one)
    optimize = pytest.importorskip("scipy.optimize")
    solve = optimize.linprog
    monkeypatch.setattr(optimize, "linprog", lambda *a, **k: (asked.append(k["options"]), solve(*a, **k))[1])
    assert leaves.leaf_solution(given, leaf, CountedDeadline(30, limited=True)) is None
    assert not asked  # 65 inputs are run one by one, and thirty of them in time
    assert leaves.leaf_solution(given, leaf, Deadline.after(1000.0)) is not None
    assert 0 < asked[0]["time_limit"] <= 1000
    assert leaves.leaf_solution(given, leaf) is not None
    assert asked[1] == {"time_limit": None}


# --- properties ------------------------------------------------------------------------------------------


def subject(model: nn.Module) -> PreparedNetwork:
    return PreparedNetwork(model, model, checked_graph(model), (1, 8, 8))


def asked_of(network: nn.Module, shape: tuple[int, ...], eps: float, seed: int = 2) -> Property:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    outputs = network(x.to(next(network.parameters()).dtype)[None])
    return robustness(x, int(outputs.argmax()), eps, outputs.shape[1])


def test_the_search_for_an_input_looks_at_the_clock_before_each_step():
    model = small()
    asked, runs, about = asked_of(model, (1, 8, 8), 1e-4), list[int](), subject(model)
    model.register_forward_hook(lambda *given: runs.append(1))
    for most in (0, 1, 7):
        runs.clear()
        assert search(about, asked.cases, PGD(), CountedDeadline(most)) is None
        assert len(runs) == most


@pytest.mark.usefixtures("one_by_one")
def test_cases_after_the_deadline_have_no_bound():
    model = small()
    cases = asked_of(model, (1, 8, 8), 0.01).cases
    whole = case_bounds(subject(model), cases)
    intervals = case_bounds(subject(model), cases, CountedDeadline(1, limited=True))
    assert case_bounds(subject(model), cases, CountedDeadline(0)) == [-torch.inf] * 3
    assert all(low <= high + 1e-12 for low, high in zip(intervals, whole, strict=True))
    assert intervals != whole


@pytest.mark.parametrize("method", ["crown-ibp", "complete", "milp"])
def test_a_property_is_unknown_when_there_was_no_time(method: str):
    if method == "milp":
        pytest.importorskip("scipy")
    model = small().float()
    found = decide(model, (1, 8, 8), asked_of(model, (1, 8, 8), 0.01), method=method, time_limit=1e-9)
    assert (found.result, found.by, found.bound) == ("unknown", None, -torch.inf)


# --- the solver ------------------------------------------------------------------------------------------


def case_of(model: nn.Module) -> Any:
    pytest.importorskip("scipy")
    return asked_of(model, (1, 8, 8), 0.02).cases[0]


def test_the_solver_says_the_same_from_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch):
    model = small()
    here = minimum(model, (1, 8, 8), case_of(model))
    monkeypatch.setattr(milp, "LARGE", 0)
    there = minimum(model, (1, 8, 8), case_of(model), deadline=Deadline.after(300.0))
    assert there.proved == pytest.approx(here.proved, abs=1e-6)
    assert there.reached == pytest.approx(here.reached, abs=1e-6)
    assert here.unstable == there.unstable > 0


@pytest.mark.parametrize("most", [0, 2, 10, 100])
def test_a_program_that_is_not_written_in_time_claims_nothing(most: int, monkeypatch: pytest.MonkeyPatch):
    model = small()
    monkeypatch.setattr(chunks, "WORK_BETWEEN_CHECKS", 1)
    found = minimum(model, (1, 8, 8), case_of(model), deadline=CountedDeadline(most, limited=True))
    assert (found.proved, found.reached, found.point) == (-torch.inf, torch.inf, None)


def test_a_solver_that_overruns_its_limit_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = small()
    asked = case_of(model)
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(milp, "LARGE", 0)
    monkeypatch.setattr(milp.highs, "__file__", str(tmp_path / "sleeps.py"))
    start = time.monotonic()
    found = minimum(model, (1, 8, 8), asked, deadline=Deadline.after(1.0))
    assert time.monotonic() - start < 10
    assert (found.proved, found.point) == (-torch.inf, None)


def test_a_solver_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = small()
    asked = case_of(model)
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(milp, "LARGE", 0)
    monkeypatch.setattr(milp.highs, "__file__", str(tmp_path / "fails.py"))
    with pytest.raises(MethodError, match="HiGHS ended with code 3; there may be too little memory"):
        minimum(model, (1, 8, 8), asked, deadline=Deadline.after(60.0))


# --- sets of images --------------------------------------------------------------------------------------


class Slow:
    """A step that decides nothing and takes `seconds` for each point by the clock `now`."""

    def __init__(self, name: str, now: list[float], seconds: float) -> None:
        self.name, self.now, self.seconds = name, now, seconds
        self.batches: list[int] = []
        self.given: list[float] = []

    def __call__(self, batch: ExampleBatch) -> StepResult:
        self.given.append(batch.deadline(len(batch.numbers)).end - self.now[0])
        self.batches.append(len(batch.numbers))
        self.now[0] += self.seconds * len(batch.numbers)
        return StepResult(["open"] * len(batch.numbers))


def stepped(limits: Limits, monkeypatch: pytest.MonkeyPatch, seconds: float) -> tuple[list[Slow], list[ExampleResult]]:
    """Forty points through inference, attack and an expensive step, twenty at once without limits."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    steps = [Slow("inference", now, 0.0), Slow("attack", now, seconds), Slow("crown", now, seconds)]
    rounds = [Round(tuple[VerificationStep, ...](steps[:2]), 20), Round((steps[2],), 20)]
    return steps, Cascade(*mostly_right(40), EPS, rounds, limits).run()


def test_inference_comes_first_where_time_is_limited_in_all(monkeypatch: pytest.MonkeyPatch):
    (inference, attack, crown), points = stepped(Limits(budget=1.0), monkeypatch, 0.25)
    assert (inference.batches, attack.batches, crown.batches) == ([20, 20], [1, 2, 1], [])
    assert all("inference" in point.tried for point in points)


def test_batches_are_expected_to_take_well_under_a_second(monkeypatch: pytest.MonkeyPatch):
    (_, attack, crown), _ = stepped(Limits(budget=1000.0), monkeypatch, 0.125)
    most = int(BATCH_SECONDS / 0.125)
    assert attack.batches[:4] == crown.batches[:4] == [1, 2, 4, most]
    assert max(attack.batches + crown.batches) == most
    (_, attack, crown), _ = stepped(Limits(timeout=1000.0), monkeypatch, 0.125)
    assert attack.batches == [20, 20]  # which a point's own limit does not speak of
    assert crown.batches[:4] == [1, 2, 4, 8]  # until the time of one is known; a step stops at the time of its batch
    (_, attack, crown), _ = stepped(Limits(timeout=None), monkeypatch, 0.125)
    assert attack.batches == crown.batches == [20, 20]


def test_a_batch_has_the_time_of_all_its_points(monkeypatch: pytest.MonkeyPatch):
    (*_, crown), _ = stepped(Limits(timeout=3.0), monkeypatch, 0.1)
    assert crown.given == pytest.approx([3.0 * points for points in crown.batches])
    (*_, crown), _ = stepped(Limits(timeout=3.0, budget=10.0), monkeypatch, 0.1)
    assert max(crown.given) < 10.0 - 4.0  # the attack took four seconds


def test_a_round_that_others_follow_leaves_them_most_of_the_time(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    steps = [Slow(name, now, seconds) for name, seconds in {"inference": 0.0, "alpha": 1.0, "complete": 0.0}.items()]
    rounds = [Round((step,), 1) for step in steps]
    Cascade(*mostly_right(3), EPS, rounds, Limits(timeout=8.0)).run()
    assert steps[1].given == pytest.approx([8.0 * SHARE_BEFORE_LAST] * 3)
    assert steps[2].given == pytest.approx([8.0 - 1.0] * 3)


@pytest.mark.parametrize("method", ["crown-ibp", "crown", "alpha-crown"])
def test_a_bound_that_was_cut_off_was_tried_unless_the_whole_time_was_over(method: str):
    model, data = mostly_right(5)
    x, labels = to_unit(data.images), data.labels
    step = BoundStep(model, method, "float32", skip_faster=True)
    whole = step(ExampleBatch(range(5), x, labels, EPS))
    timed = step(ExampleBatch(range(5), x, labels, EPS, seconds=0.0))
    ended = step(ExampleBatch(range(5), x, labels, EPS, budget=Deadline(0.0)))
    assert (whole.complete, timed.complete, ended.complete) == (True, True, False)
    # α-CROWN has the intervals' own margins among its own, and these come first.
    cheap = {"certified", "open"} if method == "alpha-crown" else {"open"}
    assert set(timed.verdicts) == set(ended.verdicts) == cheap
    assert whole.margins is not None
    assert timed.margins is not None
    assert (whole.margins > timed.margins).all()


def test_cheaper_bounds_certify_where_tighter_ones_had_no_time():
    model, data = mostly_right(20)
    x, labels = to_unit(data.images), data.labels
    cheap = Certifier(model, "ibp").proved(x, labels, 0.02)[0]
    timed, margins = Certifier(model, "alpha-crown").proved(x, labels, 0.02, Deadline(0.0))
    assert bool(cheap.any())
    assert torch.equal(cheap, timed)
    assert not margins.isnan().any()


def test_a_deadline_is_not_among_what_decides_a_bound():
    settings = replace(VERDICT_SETTINGS, deadline=Deadline(5.0))
    assert settings.deadline.end == 5.0
    assert settings.decisive_fields() == VERDICT_SETTINGS.decisive_fields()


# --- large layers, by the clock --------------------------------------------------------------------------

LIMIT, SLACK = 0.5, 3.0  # seconds; a second is what is promised where nothing else runs
slow = pytest.mark.slow


def plain(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for given, made in pairwise(sizes):
        layers += [nn.Linear(given, made), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval().requires_grad_(False)


def convolutions() -> nn.Sequential:
    """65,000 units at 32 × 32 pixels and more behind them."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)]
    layers += [nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 256, 256), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(256, 10)).eval().requires_grad_(False)


LARGE = {
    "3 x 1024": (lambda: plain(784, 1024, 1024, 1024, 10), (1, 28, 28), 0.004),
    "many units": (lambda: plain(64, 4000, 4000, 10), (1, 8, 8), 0.1),
    "convolutions": (convolutions, (3, 32, 32), 0.02),
}


@slow
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("method", ["crown-ibp", "complete", "milp"])
def test_a_property_of_large_layers_ends_in_time(name: str, method: str):
    if method == "milp":
        pytest.importorskip("scipy")
    make, shape, eps = LARGE[name]
    network = make()
    asked, attack = asked_of(network, shape, eps / 10 if method == "milp" else eps), PGD(steps=1)
    start = time.monotonic()
    decide(network, shape, asked, method=method, attack=attack, time_limit=LIMIT)
    assert time.monotonic() - start < LIMIT + SLACK


@cache
def large(name: str, points: int = 1) -> tuple[Classifier, ImageSet]:
    names = tuple("abcdefghij")
    built: Any = MLP(name="mlp", hidden=(1024, 1024, 1024), batch_norm=False) if name == "mlp" else CNN7(name="cnn7")
    shape = (1, 28, 28) if name == "mlp" else (1, 32, 32)
    model = classifier(architecture=built, input_shape=shape, class_names=names)
    pixels = torch.randint(0, 256, (points, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        labels = model(to_unit(pixels)).argmax(1)
    return model, ImageSet("folder", "test", pixels, labels, names)


@slow
@pytest.mark.parametrize("name", ["mlp", "cnn7"])
@pytest.mark.parametrize("method", ["crown", "alpha-crown", "complete", "auto"])
@pytest.mark.parametrize("limits", [Limits(timeout=LIMIT), Limits(budget=LIMIT)], ids=["timeout", "budget"])
def test_a_point_of_a_large_network_ends_in_time(name: str, method: str, limits: Limits):
    model, data = large(name)
    start = time.monotonic()
    report: Report = verify(model, data, 0.004, attack=None, method=method, limits=limits)
    assert time.monotonic() - start < LIMIT + SLACK
    assert report.open == 1


@slow
def test_a_set_of_many_images_ends_in_time():
    model, data = large("cnn7", 60)
    start, seen = time.monotonic(), count()
    verify(model, data, 0.004, attack=PGD(), limits=Limits(budget=LIMIT), on_examples=lambda points: next(seen))
    assert time.monotonic() - start < LIMIT + SLACK
