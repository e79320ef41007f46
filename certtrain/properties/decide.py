"""Whether a property of a network holds: by linear bounds, by a search for a counterexample, and by exact methods.

The words are the competition's: "unsat" if no input of the box breaks the
property, "sat" with an input that does, "unknown" if neither was found.
"""

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor, nn

from certtrain.attack import PGD
from certtrain.bounds import linear
from certtrain.bounds.box import box_between
from certtrain.bounds.checks import check_evaluation_mode, shape_errors_as_data_errors
from certtrain.bounds.chunks import GRADIENT, dense, in_parts, inference_work, row_work, soon
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.guard import Claims, check_claims
from certtrain.bounds.inference import outside_inference_mode, plain_model
from certtrain.bounds.interval import checked_graph, interval_pass
from certtrain.bounds.modules import check_modules
from certtrain.bounds.rounding import UNIT64
from certtrain.bounds.trace import NONLINEAR, BoundTrace, Logits
from certtrain.data import derive_seed
from certtrain.errors import MethodError, PropertyError, UnsupportedLayer
from certtrain.properties.cases import Case, Property
from certtrain.properties.exact import EXACTLY, REAL, Subject, confirmed, dtype_of, run_at
from certtrain.properties.milp import TOLERANCE as MILP_TOLERANCE
from certtrain.runtime.deadline import NEVER, Deadline
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.choices import PropertyMethodName
from certtrain.verification.certificate import VERDICTS_ALONE

Result = Literal["unsat", "sat", "unknown"]
PROPERTY_METHODS: tuple[PropertyMethodName, ...] = get_args(PropertyMethodName)
AT_A_TIME = 256  # cases that are searched together
SLACK = 1e-7  # of float64's rounding in observed values
SLACKS = {"milp": MILP_TOLERANCE}  # of methods that compute less exactly

ASSUMPTIONS: dict[Result, tuple[str, ...]] = {
    "unsat": ("real arithmetic: the bounds are computed in float64, and its own rounding is added to them",),
    "sat": ("inference in float64 at the input, and in the network's own precision at the nearest input of that",),
    "unknown": (),
}
MILP = ("where the bounds alone did not do, a solver in float64 with tolerances: a second opinion and no proof",)


@dataclass(frozen=True)
class Decision:
    """What was found of one property.

    by: what decided it: "crown-ibp", "attack", "complete" or "milp"; None if nothing did.
    bound: over the cases, the smallest of the best lower bounds found; above
        zero it proves the property. counterexample: (N,) float64, inside its
        case's box, and outputs: (K,) float64, what the network gives for it;
        None unless the result is "sat".
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
        """What the result rests on."""
        return ASSUMPTIONS[self.result] + (MILP if self.result == "unsat" and self.by == "milp" else ())

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
    asked: Property,
    *,
    method: str = "crown-ibp",
    attack: PGD | None = None,
    time_limit: float | None = None,
    memory: int = VERDICTS_ALONE.memory,
) -> Decision:
    """Bound each case of `asked`, and search those that stay open for inputs that reach them.

    `network` takes inputs (B, *shape) and is in evaluation mode. With the
    methods "complete" and "milp" what is still open goes to branch and bound,
    or to an exact solver. All this takes at most `time_limit` seconds, to within one, after which what is open stays
    so. Open domains of "complete" may take so many bytes of `memory`. Raises
    PropertyError if the property is of another number of inputs or outputs,
    MethodError, UnsupportedLayer, MissingExtra.
    """
    if method not in PROPERTY_METHODS:
        raise MethodError(f"method {method!r} is not known for a property; choose from: {', '.join(PROPERTY_METHODS)}")
    start, deadline = time.monotonic(), Deadline.after(time_limit)
    check_modules(network)  # a copy does not have all that can be put around a network
    network = plain_model(network)
    exact = copy.deepcopy(network).double()
    with torch.no_grad():  # as inference is
        graph = checked_graph(exact, tuple(shape))
        if checked_graph(network, tuple(shape)).said() != graph.said():
            raise UnsupportedLayer("the network computes something else in float64 than in its own precision")
    check_evaluation_mode(graph)
    _check_sizes(network, shape, asked)
    bounds = case_bounds(graph, shape, asked.cases, deadline)
    guard(exact, shape, asked.cases, bounds, deadline=deadline)
    left = [number for number, bound in enumerate(bounds) if not _proves(bound)]
    by = "attack" if left else "crown-ibp"
    open_cases = [asked.cases[number] for number in left]
    found = search(network, exact, shape, open_cases, attack or PGD(), deadline)
    if found is None and left and method in EXACTLY:
        by, cases = method, {number: asked.cases[number] for number in left}
        found = _exactly(method, Subject(network, exact, graph, shape, memory), cases, bounds, deadline)
    result: Result = "sat" if found is not None else "unsat" if all(map(_proves, bounds)) else "unknown"
    outputs = None if found is None else run_at(exact, shape, found)
    seconds = time.monotonic() - start
    return Decision(result, method, None if result == "unknown" else by, _smallest(bounds), found, outputs, seconds)


@torch.no_grad()
def guard(
    exact: nn.Module,
    shape: Sequence[int],
    cases: Sequence[Case],
    bounds: list[float],
    *,
    slack: float = SLACK,
    deadline: Deadline = NEVER,
) -> None:
    """Raise SoundnessError if inference in float64 finds the largest function of a case below its bound.

    A bound that could not be held against inference by the deadline becomes −∞: it is not claimed.
    """
    size = _at_a_time(exact, shape, deadline)
    for first in range(0, len(cases), size):
        if deadline.over():
            bounds[first:] = [-torch.inf] * (len(cases) - first)
            return
        some = cases[first : first + size]
        lower = torch.stack([case.lower for case in some]).view(-1, *shape)
        upper = torch.stack([case.upper for case in some]).view(-1, *shape)
        proved = torch.tensor(bounds[first : first + size], dtype=torch.float64).unsqueeze(1)
        centre = ((lower + upper) / 2).clamp(lower, upper)
        check_claims(exact, Claims(centre, lower, upper, partial(largest, some), proved), slack=slack)


def largest(cases: Sequence[Case], outputs: Tensor) -> Tensor:
    """The largest function of each case at its own outputs (N, K), as (N, 1)."""
    rows = zip(cases, outputs.unsqueeze(1), strict=True)
    return torch.stack([case.values(row).amax(1) for case, row in rows])


def _proves(bound: float) -> bool:
    """Whether a lower bound closes its case; NaN and infinity do not."""
    return 0 < bound < torch.inf


@torch.no_grad()
def case_bounds(
    graph: LayerGraph, shape: Sequence[int], cases: Sequence[Case], deadline: Deadline = NEVER
) -> list[float]:
    """For each case, a lower bound of its largest function over its box: above zero, it cannot be reached.

    By intervals and CROWN-IBP, the larger, for the network in real arithmetic; float64's own rounding is taken off.
    −∞ after the deadline.
    """
    found: list[float] = []
    for group in _by_box(cases):
        if deadline.over():
            found += [-torch.inf] * len(group)
            continue
        trace = trace_box(graph, group[0].lower.view(1, *shape), group[0].upper.view(1, *shape))
        functions = torch.cat([case.functions for case in group])
        offsets = torch.cat([case.offsets for case in group])
        both = (_lower_bounds(trace, functions, deadline), trace.logits.below(functions.unsqueeze(0)))
        best = torch.fmax(*both)[0]
        lower = best + offsets - 4 * UNIT64 * (best.abs() + offsets.abs())  # of this sum
        found += [float(part.max()) for part in torch.split(lower, [len(case.offsets) for case in group])]
    return found


def _lower_bounds(trace: BoundTrace, functions: Tensor, deadline: Deadline) -> Tensor:
    """Lower bounds (1, S) of `functions` (S, K) by CROWN-IBP."""
    prefix, count = linear.Prefix(trace.records, trace.start), len(functions)
    rows = soon(count, row_work(prefix), deadline)
    bound = partial(linear.backsubstitute, rounding=REAL)
    return in_parts(bound, prefix, dense(functions.unsqueeze(0)), (1, count), rows, deadline)


def trace_box(graph: LayerGraph, lower: Tensor, upper: Tensor) -> BoundTrace:
    """Carry the boxes from `lower` to `upper` (B, …) through the network in one pass, in real arithmetic."""
    box = box_between(lower, upper, REAL)
    passed = interval_pass(graph, box, watch=NONLINEAR, rounding=REAL)
    return BoundTrace(box, box, passed.records, Logits(passed.output, graph.head, passed.head_input, REAL))


def search(
    network: nn.Module,
    exact: nn.Module,
    shape: Sequence[int],
    cases: Sequence[Case],
    attack: PGD,
    deadline: Deadline = NEVER,
) -> Tensor | None:
    """An input (N,) that reaches one of the cases, found by projected gradient descent; None if none was in time.

    The largest function of each case is descended by signed gradients, from
    the box's centre first and then from random starts. `exact` is the network
    in float64; see `confirmed` for what counts.
    """
    generator = Generator().manual_seed(derive_seed(attack.seed, "property"))
    size = _at_a_time(network, shape, deadline)
    for first in range(0, len(cases), size):
        found = _search(network, exact, shape, cases[first : first + size], attack, generator, deadline)
        if found is not None:
            return found
    return None


@torch.no_grad()
def _at_a_time(network: nn.Module, shape: Sequence[int], deadline: Deadline) -> int:
    """How many cases a step of the search, or the guard, takes together."""
    if not deadline.limited:
        return AT_A_TIME
    work = inference_work(checked_graph(network, tuple(shape)), torch.zeros(1, *shape, dtype=dtype_of(network)))
    return soon(AT_A_TIME, GRADIENT * work, deadline)


def _search(
    network: nn.Module,
    exact: nn.Module,
    shape: Sequence[int],
    cases: Sequence[Case],
    attack: PGD,
    generator: Generator,
    deadline: Deadline,
) -> Tensor | None:
    dtype = dtype_of(network)
    lower = torch.stack([case.lower for case in cases])
    width = torch.stack([case.upper for case in cases]) - lower
    for restart in range(attack.restarts + 1):
        share = torch.rand(lower.shape, generator=generator, dtype=lower.dtype) if restart else 0.5
        point = lower + width * share
        for step in range(attack.steps + 1):
            if deadline.over():
                return None
            values, gradient = _descent(network, shape, cases, point.to(dtype))
            for number in (values <= 0).nonzero().flatten().tolist():
                if deadline.over():
                    return None
                found = confirmed(network, exact, shape, cases[number], point[number])
                if found is not None:
                    return found
            size = width / 4 * (1 - step / (attack.steps + 1))
            point = (point - size * gradient.double().sign()).clamp(lower, lower + width)
    return None


def _descent(network: nn.Module, shape: Sequence[int], cases: Sequence[Case], point: Tensor) -> tuple[Tensor, Tensor]:
    """The largest function of each case (B,), and its gradient (B, N), at inputs (B, N)."""
    point = point.detach().requires_grad_()
    outputs = network(point.view(-1, *shape))
    values = largest(cases, outputs).squeeze(1)
    return values.detach(), torch.autograd.grad(values.sum(), point)[0]


def _exactly(
    method: str,
    subject: Subject,
    cases: Mapping[int, Case],
    bounds: list[float],
    deadline: Deadline,
) -> Tensor | None:
    """Decide the open cases one by one, raise their bounds in place, and stop at a counterexample.

    What raises a bound is held against inference, whatever time is left.
    """
    for number, case in cases.items():
        if deadline.over():
            return None
        answer = EXACTLY[method](subject, case, deadline)
        if answer.bound > bounds[number]:
            bounds[number] = answer.bound
            guard(subject.exact, subject.shape, [case], [answer.bound], slack=SLACKS.get(method, SLACK))
        if answer.point is not None:
            return answer.point
    return None


def _check_sizes(network: nn.Module, shape: Sequence[int], asked: Property) -> None:
    x = torch.zeros(1, *shape, dtype=dtype_of(network))
    with shape_errors_as_data_errors(x), torch.no_grad():
        outputs = network(x)
    if (x.numel(), *outputs.shape) != (asked.inputs, 1, asked.outputs):
        raise PropertyError(
            f"the property has {asked.inputs} inputs and {asked.outputs} outputs, "
            f"but the network takes {x.numel()} and gives {outputs[0].numel()}"
        )


def _by_box(cases: Sequence[Case]) -> Iterator[list[Case]]:
    """The cases in order, those in a row together that have one box."""
    group: list[Case] = []
    for case in cases:
        if group and not (torch.equal(case.lower, group[0].lower) and torch.equal(case.upper, group[0].upper)):
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def _smallest(bounds: Sequence[float]) -> float:
    """NaN, where a bound is NaN."""
    return float(torch.tensor(bounds, dtype=torch.float64).min())
