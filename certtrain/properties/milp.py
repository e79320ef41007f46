"""Exact verification of small networks as mixed-integer linear programs (Tjeng et al. 2019), by SciPy's HiGHS.

Each value of the network is a linear function of the inputs and of r = relu(p) for
every unstable neuron, where p is the neuron's input and l < 0 < u are its bounds.
With a binary variable z for each of them, r is determined by r ≥ 0, r ≥ p,
r ≤ p − l(1 − z) and r ≤ uz. A stable neuron needs neither variable.

HiGHS computes in float64. It accepts constraints that are violated by about 1e-6,
and binaries that are as far from an integer; nothing here checks its arithmetic. So
a minimum may be wrong by that much, multiplied by the weights. `proved` is therefore
reduced by `TOLERANCE` times the function's size, and is still a second opinion, not a
proof. `reached` is the network's value at an input, independent of the solver.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.activations import RECTIFIERS, slope_of
from certtrain.bounds.activations.clamps import CLAMPS, limits_of
from certtrain.bounds.box import box_between
from certtrain.bounds.chunks import between_checks, layer_work
from certtrain.bounds.crown import intersected, tighten_by_crown
from certtrain.bounds.graph import Add, LayerCall, LayerGraph, Normalize
from certtrain.bounds.interval import LayerRecord
from certtrain.bounds.settings import Settings
from certtrain.bounds.shape_layers import Concat, Pad, Permute, Reshape, Slice
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import trace_bounds
from certtrain.errors import MethodError, MissingExtra, UnsupportedLayer
from certtrain.properties import highs
from certtrain.properties.cases import REAL, Case
from certtrain.runtime.deadline import NEVER, Deadline

MOST_UNSTABLE = 2000  # neurons; far fewer already take hours
MOST_ENTRIES = 2**26  # coefficients of one layer's linear functions: 0.5 GiB
TOLERANCE = 1e-5  # as a share of the largest magnitude that the function can have, and of at least 1
LARGE = 2**14  # coefficients; with a deadline, larger programs are solved in a process of their own
GRACE = 0.5  # seconds that this process may take beyond the deadline


@dataclass(frozen=True)
class Minimum:
    """The minimum of a case's largest function over its box.

    proved: a lower bound, minus the tolerance; −inf if none was found in time, or
        if a layer's bounds are not finite. reached: an upper bound, the network's
        value in float64 at the input `point` (N,); inf and None if there is none.
    """

    proved: float
    reached: float
    point: Tensor | None
    unstable: int
    seconds: float


@torch.no_grad()
def minimum(network: nn.Module, shape: Sequence[int], case: Case, *, deadline: Deadline = NEVER) -> Minimum:
    """The minimum of max(functions · y + offsets) over the box of `case`, solved by the deadline.

    `network` is in float64 and evaluation mode and takes inputs (B, *shape).
    Raises UnsupportedLayer if it has a layer that is not piecewise linear, or
    is too large, and MissingExtra without SciPy.
    """
    _extra("scipy.optimize")  # raise before the work starts
    start = time.monotonic()
    graph = checked_graph(network, tuple(shape))
    for call in graph.calls:
        if type(call.layer) not in RULES:
            known = ", ".join(sorted(layer.__name__ for layer in RULES))
            raise UnsupportedLayer(f"layer {call.name!r} is a {type(call.layer).__name__}; milp takes {known}")
    lower, upper = case.lower.view(1, *shape), case.upper.view(1, *shape)
    program = _Program(lower, upper, deadline)
    try:
        bound, point = _solved(graph, case, program)
    except _NoAnswer:
        bound, point = -torch.inf, None
    reached = torch.inf
    if point is not None:
        point = point.clamp(case.lower, case.upper)
        reached = float(case.values(network(point.view(1, *shape))).max())
    return Minimum(bound, reached, point, len(program.neurons), time.monotonic() - start)


class _NoAnswer(Exception):
    """There is no bound of the minimum: the time is over, or a layer's bounds are not finite."""


def _solved(graph: LayerGraph, case: Case, program: "_Program") -> tuple[float, Tensor | None]:
    """A lower bound, minus the tolerance, and the input (N,) where the solver found the least value."""
    outputs = _encode(graph, tightened_records(graph, *program.ends, program.deadline), program)
    functions = _Values(outputs.factors @ case.functions.T, outputs.constant @ case.functions.T + case.offsets)
    scale = max(1.0, float(program.largest(functions).abs().max()))
    bound, point = program.minimize(functions)
    return bound - TOLERANCE * scale, point


def tightened_records(graph: LayerGraph, lower: Tensor, upper: Tensor, deadline: Deadline = NEVER) -> list[LayerRecord]:
    """The record of each layer over one box (1, …), the boxes of nonlinear layers by CROWN and by intervals.

    The network must be in float64, and the boxes include its rounding. After the deadline, boxes are not tightened.
    """
    settings = Settings(rounding=REAL, deadline=deadline)
    tighten = intersected(tighten_by_crown(settings), settings)
    return trace_bounds(graph, box_between(lower, upper), rounding=REAL, tighten=tighten).records


# --- the program ---------------------------------------------------------------------------------------


class _Values(NamedTuple):
    """A layer's values (…) as linear functions of the variables so far: factors (V, …) and a constant (1, …)."""

    factors: Tensor
    constant: Tensor


class _Neuron(NamedTuple):
    """An unstable neuron: its input p as factors (V,) and a constant, and p's bounds."""

    factors: Tensor
    constant: float
    lower: float
    upper: float


class _Program:
    """The variables (the inputs, then one r for each unstable neuron) and their constraints."""

    def __init__(self, lower: Tensor, upper: Tensor, deadline: Deadline) -> None:
        self.ends, self.inputs, self.deadline = (lower, upper), lower.numel(), deadline
        self.lower, self.upper = lower.flatten().tolist(), upper.flatten().tolist()
        self.neurons: list[_Neuron] = []

    def check_time(self) -> None:
        """Raise _NoAnswer after the deadline."""
        if self.deadline.over():
            raise _NoAnswer

    def add(self, neuron: _Neuron) -> None:
        self.check_time()
        self.neurons.append(neuron)
        self.lower.append(0.0)
        self.upper.append(neuron.upper)
        if len(self.neurons) > MOST_UNSTABLE:
            raise UnsupportedLayer(
                f"more than {MOST_UNSTABLE:,} ReLUs are unstable in this box; milp is for small networks and small ε"
            )

    def largest(self, functions: _Values) -> Tensor:
        """The largest absolute value (S,) that each function can have by the variables' own bounds."""
        ends = torch.tensor([self.lower, self.upper], dtype=torch.float64).abs().amax(dim=0)
        return (functions.factors.abs() * ends[:, None]).sum(0) + functions.constant[0].abs()

    def minimize(self, functions: _Values) -> tuple[float, Tensor | None]:
        """A lower bound of the largest function, and the input (N,) where the solver found the least value."""
        if not self.neurons and functions.constant.shape[1] == 1:
            return self._corner(functions)
        binaries = len(self.neurons)
        variables = {
            "lower": [*self.lower, *[0.0] * binaries, -torch.inf],
            "upper": [*self.upper, *[1.0] * binaries, torch.inf],
            "cost": [0.0] * (len(self.lower) + binaries) + [1.0],
            "integrality": [0] * len(self.lower) + [1] * binaries + [0],
        }
        arrays = {name: torch.tensor(values, dtype=torch.float64).numpy() for name, values in variables.items()}
        found = _answer(arrays | self._rows(functions), self.deadline)
        return _lower_bound(found, binaries), _point(found, self.inputs)

    def _corner(self, functions: _Values) -> tuple[float, Tensor]:
        """The least value of one linear function over a box."""
        lower, upper = (torch.tensor(ends, dtype=torch.float64) for ends in (self.lower, self.upper))
        factors = functions.factors[:, 0]
        point = torch.where(factors > 0, lower, upper)
        return float(factors @ point + functions.constant[0, 0]), point

    def _rows(self, functions: _Values) -> dict[str, Any]:
        """The constraints. Variables: the inputs, all r, all z, and t, which is at least every function."""
        rows = _Rows(len(self.lower) + len(self.neurons) + 1)
        for number, neuron in enumerate(self.neurons):
            self.check_time()
            r, z = self.inputs + number, len(self.lower) + number
            rows.add(neuron.factors, {r: -1.0}, -neuron.constant)  # p ≤ r
            rows.add(-neuron.factors, {r: 1.0, z: -neuron.lower}, neuron.constant - neuron.lower)  # r ≤ p − l(1 − z)
            rows.add(None, {r: 1.0, z: -neuron.upper}, 0.0)  # r ≤ uz
        for factors, constant in zip(functions.factors.T, functions.constant[0].tolist(), strict=True):
            rows.add(factors, {rows.width - 1: -1.0}, -constant)
        return rows.arrays()


class _Rows:
    """The sparse rows of the constraints rows · x ≤ most."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.columns: list[Tensor] = []
        self.values: list[Tensor] = []
        self.most: list[float] = []

    def add(self, factors: Tensor | None, others: dict[int, float], most: float) -> None:
        """Add a row: `factors` of the first variables, and factors of `others`, which come after them."""
        used = torch.arange(0) if factors is None else factors.nonzero().flatten()
        values = torch.tensor(list(others.values()), dtype=torch.float64)
        self.columns.append(torch.cat([torch.tensor(list(others)), used]))
        self.values.append(values if factors is None else torch.cat([values, factors[used]]))
        self.most.append(most)

    def arrays(self) -> dict[str, Any]:
        """As `highs.solved` takes them."""
        starts = torch.tensor([0, *(len(columns) for columns in self.columns)]).cumsum(0)
        parts = {"values": torch.cat(self.values), "columns": torch.cat(self.columns), "starts": starts}
        most = torch.tensor(self.most, dtype=torch.float64)
        return {name: part.numpy() for name, part in (parts | {"most": most}).items()}


# --- the solver ------------------------------------------------------------------------------------------


def _answer(program: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
    """The answer of HiGHS for a program. Raises _NoAnswer if it comes too late."""
    left = deadline.left
    if deadline.over():
        raise _NoAnswer
    if left is not None and len(program["values"]) > LARGE:
        return _answer_in_subprocess(program, left)
    with _quiet():
        return highs.solved(program, left)


def _answer_in_subprocess(program: dict[str, Any], left: float) -> dict[str, Any]:
    """The same from a process of its own, which is ended soon after the deadline.

    The solver gets less time, since the process must start first.
    """
    limit = max(left - GRACE, left / 2)
    with TemporaryDirectory() as folder:
        source, target = Path(folder, "program.npz"), Path(folder, "answer.json")
        _extra("numpy").savez(source, **program)
        command = [sys.executable, "-P", highs.__file__, str(source), str(target), str(limit)]
        try:
            done = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=left + GRACE, check=False)
        except subprocess.TimeoutExpired:
            raise _NoAnswer from None
        if done.returncode:
            raise MethodError(f"HiGHS ended with code {done.returncode}; there may be too little memory for milp")
        answer: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return answer


def _lower_bound(found: dict[str, Any], binaries: int) -> float:
    """The solver's lower bound of all solutions; −inf if it gives none."""
    if binaries == 0:
        return float(found["fun"]) if found["status"] == 0 else -torch.inf
    bounds = [value for value in (found["bound"], found["fun"]) if value is not None]
    usable = found["status"] in (0, 1) and found["bound"] is not None
    return float(min(bounds)) if usable else -torch.inf


def _point(found: dict[str, Any], inputs: int) -> Tensor | None:
    return None if found["x"] is None else torch.tensor(found["x"][:inputs], dtype=torch.float64)


# --- from layers to linear functions ---------------------------------------------------------------------


def _encode(graph: LayerGraph, records: list[LayerRecord], program: _Program) -> _Values:
    """The network's outputs in the variables of `program`; adds the network's unstable neurons to it."""
    lower, _ = program.ends
    size = lower.numel()
    each = torch.eye(size, dtype=lower.dtype).view(size, *lower.shape[1:])
    values = {0: _Values(each, torch.zeros_like(lower))}
    for number, (record, done) in enumerate(zip(records, graph.last_uses(), strict=True)):
        given = [values[i] for i in record.call.inputs]
        values[number + 1] = RULES[type(record.call.layer)](record, program, *given)
        _check_size(record.call, values[number + 1])
        for value in done:
            del values[value]
    return _extended(values[len(records)], len(program.lower))


def _check_size(call: LayerCall, values: _Values) -> None:
    if values.factors.numel() > MOST_ENTRIES:
        raise UnsupportedLayer(
            f"layer {call.name!r} needs {values.factors.numel():,} coefficients, more than {MOST_ENTRIES:,}; "
            "milp is for small networks"
        )


def _affine(record: LayerRecord, program: _Program, given: _Values) -> _Values:
    """An affine layer: it maps the factors of the variables as a batch, minus its constant."""
    layer = record.call.layer
    own = layer(torch.zeros_like(given.constant))
    return _Values(_mapped(layer, given.factors, program) - own, layer(given.constant))


def _mapped(layer: nn.Module, factors: Tensor, program: _Program) -> Tensor:
    """The layer's results for a batch, in parts, so that the deadline is checked in between."""
    found = []
    for part in torch.split(factors, between_checks(len(factors), layer_work(layer, factors.shape), program.deadline)):
        program.check_time()
        found.append(layer(part))
    return torch.cat(found)


def _add(record: LayerRecord, program: _Program, left: _Values, right: _Values) -> _Values:
    count = max(len(left.factors), len(right.factors))
    left, right = _extended(left, count), _extended(right, count)
    return _Values(left.factors + right.factors, left.constant + right.constant)


def _concat(record: LayerRecord, program: _Program, left: _Values, right: _Values) -> _Values:
    count = max(len(left.factors), len(right.factors))
    left, right = _extended(left, count), _extended(right, count)
    layer = record.call.layer
    return _Values(layer(left.factors, right.factors), layer(left.constant, right.constant))


def _rectifier(record: LayerRecord, program: _Program, given: _Values) -> _Values:
    assert record.box is not None  # the boxes at all nonlinear layers are kept
    return _rectified(program, given, record.box.lower, record.box.upper, slope_of(record.call.layer))


def _rectified(program: _Program, given: _Values, lower: Tensor, upper: Tensor, slope: float) -> _Values:
    """max(p, sp) = sp + (1 − s) relu(p), for each neuron by its bounds."""
    lower, upper = lower.flatten(), upper.flatten()
    factors, constant = given.factors.flatten(1), given.constant.flatten()
    if not bool((lower.isfinite() & upper.isfinite()).all()):
        raise _NoAnswer  # a neuron with NaN as a bound would count as stable
    unstable = ((lower < 0) & (upper > 0)).nonzero().flatten().tolist()
    first = len(program.lower)
    for i in unstable:
        program.add(_Neuron(factors[:, i].clone(), float(constant[i]), float(lower[i]), float(upper[i])))
    scale = torch.where(lower >= 0, torch.ones_like(lower), torch.full_like(lower, slope))
    after = _extended(_Values(factors * scale, (constant * scale).unsqueeze(0)), len(program.lower))
    after.factors[range(first, len(program.lower)), unstable] = 1.0 - slope
    shape = given.constant.shape[1:]
    return _Values(after.factors.view(-1, *shape), after.constant.view(1, *shape))


def _clamped(record: LayerRecord, program: _Program, given: _Values) -> _Values:
    """max(p, a) = a + relu(p − a), and then min(p, b) = b − relu(b − p) of the result."""
    assert record.box is not None  # the boxes at all nonlinear layers are kept
    (least, most), lower, upper = limits_of(record.call.layer), record.box.lower, record.box.upper
    if least is not None:
        above = _rectified(program, _shifted(given, 1.0, -least), lower - least, upper - least, 0.0)
        given, lower, upper = _shifted(above, 1.0, least), lower.clamp(min=least), upper.clamp(min=least)
    if most is not None:
        given = _shifted(_rectified(program, _shifted(given, -1.0, most), most - upper, most - lower, 0.0), -1.0, most)
    return given


def _shifted(values: _Values, sign: float, number: float) -> _Values:
    """sign · values + number."""
    return _Values(sign * values.factors, sign * values.constant + number)


def _extended(values: _Values, count: int) -> _Values:
    """The same functions, of `count` variables."""
    missing = count - len(values.factors)
    zeros = values.factors.new_zeros(missing, *values.factors.shape[1:])
    return values._replace(factors=torch.cat([values.factors, zeros]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard the process's standard output within the context: HiGHS prints to it from C++, whatever its options."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _extra(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f'milp needs more packages ({error}): pip install "certtrain[milp]"') from error


# Layer → linear functions of its values, by exact type.
RULES: dict[type[nn.Module], Any] = {
    **dict.fromkeys((nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, Normalize), _affine),
    **dict.fromkeys((nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity, nn.Dropout), _affine),
    **dict.fromkeys((Reshape, Permute, Pad, Slice), _affine),
    Add: _add,
    Concat: _concat,
    **dict.fromkeys(RECTIFIERS, _rectifier),
    **dict.fromkeys(CLAMPS, _clamped),
}
