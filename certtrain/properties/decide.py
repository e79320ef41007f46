"""Whether a property of a network holds: by linear bounds, an attack, and exact methods.

The results are named as in the competition: "unsat" if no input in the box violates
the property, "sat" with an input that does, "unknown" if neither was found.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from certtrain.attack import PGD
from certtrain.bounds.box import box_between
from certtrain.bounds.checks import check_evaluation_mode, shape_errors_as_data_errors
from certtrain.bounds.guard import Claims, check_claims
from certtrain.bounds.inference import outside_inference_mode, plain_model
from certtrain.bounds.methods import crown_ibp_and_intervals
from certtrain.bounds.modules import check_modules
from certtrain.bounds.rounding import UNIT64
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.supported import checked_copy
from certtrain.errors import MethodError, PropertyError
from certtrain.properties.cases import REAL, Case, Property, stacked
from certtrain.properties.complete import decide_completely
from certtrain.properties.exact import Answers, PreparedNetwork, dtype_of, run_at
from certtrain.properties.milp import TOLERANCE as MILP_TOLERANCE
from certtrain.properties.violations import cases_at_a_time, search
from certtrain.runtime.deadline import NEVER, Deadline
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.choices import PropertyMethodName

Result = Literal["unsat", "sat", "unknown"]
PROPERTY_METHODS: tuple[PropertyMethodName, ...] = get_args(PropertyMethodName)
OBSERVED_ROUNDING = 1e-7  # the float64 rounding error that an observed value may have, as a share of its size
AT_ONCE = 10_000  # cases that are bounded and attacked together; of more, one group is decided after the other
TOLERANCES = {"milp": MILP_TOLERANCE}  # the same for less exact methods

ASSUMPTIONS: dict[Result, tuple[str, ...]] = {
    "unsat": ("real arithmetic: the bounds are computed in float64, and its own rounding is added to them",),
    "sat": (
        "inference in float64 at the input, and in the network's own precision at the nearest input of that precision",
    ),
    "unknown": (),
}
BY_SOLVER = ("where bounds were not enough, a solver in float64 with tolerances: a second opinion, not a proof",)


@dataclass(frozen=True)
class Decision:
    """The result for one property.

    by: what decided it: "crown-ibp", "attack", "complete" or "milp"; None if nothing did.
    bound: the smallest over the cases of the best lower bounds found; above zero it
        proves the property. The smallest normal float64 if no more than the sign is known.
    counterexample: (N,) float64, inside its case's box, and outputs: (K,) float64, the
        network's outputs for it; both None unless the result is "sat".
    """

    result: Result
    method: str
    by: str | None
    bound: float
    counterexample: Tensor | None
    outputs: Tensor | None
    seconds: float

    @property
    def assumptions(self) -> tuple[str, ...]:
        """The assumptions of the result."""
        return ASSUMPTIONS[self.result] + (BY_SOLVER if self.result == "unsat" and self.by == "milp" else ())

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; a bound that is not finite is None."""
        return {
            "result": self.result,
            "method": self.method,
            "by": self.by,
            "bound": self.bound if abs(self.bound) < torch.inf else None,
            "counterexample": None if self.counterexample is None else self.counterexample.tolist(),
            "outputs": None if self.outputs is None else self.outputs.tolist(),
            "assumptions": self.assumptions,
            "seconds": self.seconds,
        }


@outside_inference_mode()
@tensor_cores(False)
def decide(
    network: nn.Module,
    shape: Sequence[int],
    question: Property,
    *,
    method: str = "crown-ibp",
    attack: PGD | None = None,
    time_limit: float | None = None,
    memory: int = VERDICT_SETTINGS.memory,
) -> Decision:
    """Bound each case of `question`, and attack those that stay open.

    `network` takes inputs (B, *shape) and is in evaluation mode. With method
    "complete" or "milp", cases that are still open go to branch and bound, or to an
    exact solver. All this takes at most `time_limit` seconds, to within one; then open
    cases stay open. Linear bounds may take `memory` bytes, and so may the open domains
    of "complete". Raises PropertyError if the property has another number of inputs or
    outputs than the network, MethodError, UnsupportedLayer, MissingExtra.
    """
    if method not in PROPERTY_METHODS:
        raise MethodError(f"method {method!r} is not known for a property; choose from: {', '.join(PROPERTY_METHODS)}")
    start, deadline = time.monotonic(), Deadline.after(time_limit)
    prepared = _prepared(network, shape, memory)
    _check_sizes(prepared, question)
    whole = _Part("crown-ibp", None, torch.inf, True)
    for number, cases in enumerate(_groups(question.cases, AT_ONCE)):
        if number and deadline.over():
            whole = whole.with_next(_Part("crown-ibp", None, -torch.inf, False))
            break
        whole = whole.with_next(_decide_cases(prepared, cases, method, attack or PGD(), deadline))
        if whole.point is not None:
            break
    by, found, bound, proved = whole
    result: Result = "sat" if found is not None else "unsat" if proved else "unknown"
    outputs = None if found is None else run_at(prepared.exact, shape, found)
    seconds = time.monotonic() - start
    return Decision(result, method, None if result == "unknown" else by, bound, found, outputs, seconds)


class _Part(NamedTuple):
    """What some cases came to: the method, a counterexample, the smallest bound, and whether all are excluded."""

    by: str
    point: Tensor | None
    bound: float
    proved: bool

    def with_next(self, other: "_Part") -> "_Part":
        """The same for these cases and others, which are decided after them."""
        by = other.by if other.point is not None or other.by != "crown-ibp" else self.by
        return _Part(by, other.point, _smallest([self.bound, other.bound]), self.proved and other.proved)


def _decide_cases(
    prepared: PreparedNetwork, cases: Sequence[Case], method: str, attack: PGD, deadline: Deadline
) -> _Part:
    bounds = case_bounds(prepared, cases, deadline)
    guard(prepared, cases, bounds, deadline=deadline)
    left = {number: cases[number] for number, bound in enumerate(bounds) if not _proves(bound)}
    by, found = "attack" if left else "crown-ibp", search(prepared, list(left.values()), attack, deadline)
    if found is None and left and method in EXACT_METHODS:
        by, found = method, _by_exact_method(method, prepared, left, bounds, deadline)
    return _Part(by, found, _smallest(bounds), all(map(_proves, bounds)))


def _groups(cases: Iterable[Case], most: int) -> Iterator[list[Case]]:
    """The cases in order, in groups of at most `most`."""
    left = iter(cases)
    while group := list(islice(left, most)):
        yield group


def _prepared(network: nn.Module, shape: Sequence[int], memory: int) -> PreparedNetwork:
    """The network with its float64 copy. Raises UnsupportedLayer."""
    check_modules(network)  # before it is copied, since a copy loses hooks and wrappers
    network = plain_model(network)
    exact = copy.deepcopy(network).double()
    graph = checked_copy(exact, network, tuple(shape))
    check_evaluation_mode(graph)
    return PreparedNetwork(network, exact, graph, shape, memory)


@torch.no_grad()
def guard(
    prepared: PreparedNetwork,
    cases: Sequence[Case],
    bounds: list[float],
    *,
    tolerance: float = OBSERVED_ROUNDING,
    deadline: Deadline = NEVER,
) -> None:
    """Raise SoundnessError if inference in float64 finds the largest function of a case below its bound.

    A bound that is not checked by the deadline becomes −∞, so it is not claimed.
    """
    size = cases_at_a_time(prepared, deadline)
    for first in range(0, len(cases), size):
        if deadline.over():
            bounds[first:] = [-torch.inf] * (len(cases) - first)
            return
        _guard(prepared, cases[first : first + size], bounds[first : first + size], tolerance)


def _guard(prepared: PreparedNetwork, cases: Sequence[Case], bounds: Sequence[float], tolerance: float) -> None:
    lower = torch.stack([case.lower for case in cases]).view(-1, *prepared.shape)
    upper = torch.stack([case.upper for case in cases]).view(-1, *prepared.shape)
    all_cases, numbers = stacked(cases), torch.arange(len(cases))
    proved = torch.tensor(bounds, dtype=torch.float64).unsqueeze(1)
    centre = ((lower + upper) / 2).clamp(lower, upper)
    claims = Claims(centre, lower, upper, lambda outputs: all_cases.largest(outputs, numbers).unsqueeze(1), proved)
    check_claims(prepared.exact, claims, tolerance=tolerance)


def _proves(bound: float) -> bool:
    """Whether a lower bound excludes its case; NaN and infinity do not."""
    return 0 < bound < torch.inf


@torch.no_grad()
def case_bounds(prepared: PreparedNetwork, cases: Sequence[Case], deadline: Deadline = NEVER) -> list[float]:
    """For each case, a lower bound of its largest function over its box; above zero, the case is excluded.

    The larger of the interval and CROWN-IBP bounds, for the network in real arithmetic, with float64's own rounding
    subtracted; −∞ after the deadline.
    """
    settings = replace(VERDICT_SETTINGS, rounding=REAL, memory=prepared.memory, deadline=deadline)
    found: list[float] = []
    for numbers in _by_box(dict(enumerate(cases))):
        group = [cases[number] for number in numbers]
        if deadline.over():
            found += [-torch.inf] * len(group)
            continue
        lower, upper = (end.view(1, *prepared.shape) for end in (group[0].lower, group[0].upper))
        bounds = crown_ibp_and_intervals(prepared.graph, box_between(lower, upper), settings)
        functions = torch.cat([case.functions for case in group])
        offsets = torch.cat([case.offsets for case in group])
        best = bounds.lower_bounds_of(functions.unsqueeze(0))[0]
        least = best + offsets - 4 * UNIT64 * (best.abs() + offsets.abs())  # the rounding of this sum
        found += [float(part.max()) for part in torch.split(least, [len(case.offsets) for case in group])]
    return found


def _by_exact_method(
    method: str, prepared: PreparedNetwork, cases: Mapping[int, Case], bounds: list[float], deadline: Deadline
) -> Tensor | None:
    """Decide the open cases, those of one box at a time, increase their bounds in place, and stop at a counterexample.

    Every increased bound is checked against inference, even after the deadline.
    """
    for group in _by_box(cases):
        if deadline.over():
            return None
        answers = EXACT_METHODS[method](prepared, [cases[number] for number in group], deadline)
        for number, bound in zip(group, answers.bounds, strict=True):
            if bound > bounds[number]:
                bounds[number] = bound
                guard(prepared, [cases[number]], [bound], tolerance=TOLERANCES.get(method, OBSERVED_ROUNDING))
        if answers.point is not None:
            return answers.point
    return None


def _solve(prepared: PreparedNetwork, cases: Sequence[Case], deadline: Deadline) -> Answers:
    from certtrain.properties.milp import minimum

    bounds = [-torch.inf] * len(cases)
    for number, case in enumerate(cases):
        least = minimum(prepared.exact, prepared.shape, case, deadline=deadline)
        bounds[number], point = least.proved, None
        if least.point is not None:
            point = prepared.confirmed(case, least.point)
        if point is not None or deadline.over():
            return Answers(bounds, point)
    return Answers(bounds, None)


# Methods for the cases, all of one box, that the bounds and the attack leave open.
EXACT_METHODS: dict[str, Callable[[PreparedNetwork, Sequence[Case], Deadline], Answers]] = {
    "complete": decide_completely,
    "milp": _solve,
}


def _check_sizes(prepared: PreparedNetwork, question: Property) -> None:
    x = torch.zeros(1, *prepared.shape, dtype=dtype_of(prepared.network))
    with shape_errors_as_data_errors(x), torch.no_grad():
        outputs = prepared.network(x)
    if (x.numel(), *outputs.shape) != (question.inputs, 1, question.outputs):
        raise PropertyError(
            f"the property has {question.inputs} inputs and {question.outputs} outputs, "
            f"but the network takes {x.numel()} and gives {outputs[0].numel()}"
        )


def _by_box(cases: Mapping[int, Case]) -> Iterator[list[int]]:
    """The numbers of the cases in order; neighbours with the same box form a group."""
    group: list[int] = []
    for number, case in cases.items():
        first = cases[group[0]] if group else case
        if not (torch.equal(case.lower, first.lower) and torch.equal(case.upper, first.upper)):
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _smallest(bounds: Sequence[float]) -> float:
    """The smallest bound; NaN if any is NaN."""
    return float(torch.tensor(bounds, dtype=torch.float64).min())
