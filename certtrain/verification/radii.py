"""Verification at several radii: accuracies against ε, and the largest of the radii at which an example is certified.

The box of an image, cut to the range of pixels, lies in its box of any larger radius. So a certificate at a radius
holds at every smaller one, and a counterexample is one at every larger one. What follows in this way is not computed.
The radii are taken in the order of a bisection, so that much follows.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

from certtrain.attack import AttackSettings
from certtrain.data import ImageSet
from certtrain.deprecation import LIMITS_BELONG, arguments_elsewhere
from certtrain.errors import EpsilonError, SoundnessError
from certtrain.network.modelfile import Classifier
from certtrain.runtime.deadline import never
from certtrain.spec.epsilon import parse_eps
from certtrain.verification.cascade import DEFAULT_LIMITS, Limits, OnExamples
from certtrain.verification.results import ExampleResult
from certtrain.verification.shares import ALONE, Shares
from certtrain.verification.verify import DEFAULT_ATTACK, Report, verify, with_results

LEAST_BUDGET = 1e-3  # seconds; with less, a radius has no time for more than inference anyway


@dataclass(frozen=True)
class RadiusResults:
    """The results at one radius: its report, and how many of the examples have a verdict that follows from another."""

    report: Report
    implied: int

    def to_dict(self) -> dict[str, Any]:
        """What depends on the radius, for JSON."""
        found = self.report.to_dict()
        return {name: found[name] for name in PER_RADIUS} | {"implied": self.implied}


PER_RADIUS = (
    *("eps", "eps_text", "natural_accuracy", "attacked_accuracy", "certified_accuracy", "verified_error"),
    *("certified", "open", "falsified", "misclassified", "certified_by", "unfinished", "seconds"),
)
SHARED = ("dataset", "split", "examples", "method", "attack", "network", "arithmetic", "assumptions")


@dataclass(frozen=True)
class RadiusSweep:
    """The results at several radii, in ascending order.

    missing: the radii that were not verified to their end, because the verification was stopped. seconds: of all.
    stopped: what is known at the radius at which it was stopped, if anything.
    """

    radii: tuple[RadiusResults, ...]
    missing: tuple[float, ...]
    seconds: float
    stopped: Report | None = None

    @property
    def reports(self) -> list[Report]:
        """The report of each radius."""
        return [radius.report for radius in self.radii]

    def certified_radii(self) -> dict[int, float | None]:
        """By the number of each example, the largest of the radii at which it is certified; None if at none."""
        return {index: max(found, default=None) for index, found in self._by_example("certified").items()}

    def falsified_radii(self) -> dict[int, float | None]:
        """By the number of each example, the smallest of the radii at which it has a counterexample; None if at none.

        Misclassified examples have none: they are wrong without any perturbation.
        """
        return {index: min(found, default=None) for index, found in self._by_example("falsified").items()}

    def _by_example(self, verdict: str) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {result.index: [] for report in self.reports for result in report.results}
        for report in self.reports:
            for result in report.results:
                if result.verdict == verdict:
                    found[result.index].append(report.eps)
        return found

    @property
    def mean_certified_radius(self) -> float:
        """The mean over all examples; an example that is certified at no radius counts as zero."""
        found = self.certified_radii().values()
        return sum(radius or 0.0 for radius in found) / max(len(found), 1)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; examples are in the order of their numbers."""
        shared = self.reports[0].to_dict() if self.radii else {}
        head = {name: shared[name] for name in SHARED if name in shared}
        head |= {"radii": [radius.to_dict() for radius in self.radii], "missing": list(self.missing)}
        head |= {"mean_certified_radius": float(f"{self.mean_certified_radius:.9g}"), "seconds": self.seconds}
        return head | {"certified_radius": self._examples()}

    def _examples(self) -> list[dict[str, Any]]:
        certified, falsified = self.certified_radii(), self.falsified_radii()
        return [
            {"index": index, "certified_eps": certified[index], "falsified_eps": falsified[index]}
            for index in sorted(certified)
        ]


class Records(Protocol):
    """What keeps the results at one radius, such as the writer of a certificate file."""

    results: dict[int, ExampleResult]

    def add(self, results: Sequence[ExampleResult]) -> None:
        """Keep new results."""

    def seal(self) -> None:
        """Called when every example has a result."""


def not_recorded(eps: float) -> AbstractContextManager[None]:
    """No records."""
    return nullcontext()


@arguments_elsewhere(**LIMITS_BELONG)
def verify_radii(
    model: Classifier,
    images: ImageSet,
    radii: Sequence[float],
    *,
    attack: AttackSettings | None = DEFAULT_ATTACK,
    limits: Limits = DEFAULT_LIMITS,
    on_radius: Callable[[float, Sequence[ExampleResult]], None] = lambda eps, known: None,
    on_examples: OnExamples = lambda results: None,
    stop: Callable[[], bool] = never,
    records: Callable[[float], AbstractContextManager[Records | None]] = not_recorded,
    shares: Callable[[float], Shares] = lambda eps: ALONE,
    leads: bool = True,
    **options: Any,
) -> RadiusSweep:
    """Verify at each of the radii; arguments and errors are those of `verify`, which verifies at one.

    No accuracy is looser than by `verify` at that radius alone: what follows from another radius is certified or
    falsified there too. `limits.timeout` is for an example at one radius, `limits.budget` for all radii. `on_radius`
    is called before each radius, with the results that are known at it. Raises EpsilonError without radii.

    `records` gives what keeps the results at a radius, and may have earlier ones. What is kept is then computed at its
    own radius, so that it can be checked alone; only where that leaves an example open, a verdict from another radius
    is taken over. Raises SoundnessError if two verdicts contradict each other. `shares` gives the share of this process
    at a radius. leads: whether it is the first of several processes. Only the first one's sweep has all results, and
    only it says what is known at a radius and keeps records: the others know a part, and get the rest from it.
    """
    wanted, start, found = sorted({parse_eps(eps) for eps in radii}), time.monotonic(), dict[float, RadiusResults]()
    if not wanted:
        raise EpsilonError("there is no radius to verify at")

    def at(eps: float, kept: Records | None) -> RadiusResults:
        known = _known(found, eps) if kept is None else list(kept.results.values())
        known = known if leads else []
        on_radius(eps, known)
        given: dict[str, Any] = {"known": known, "on_examples": _also_kept(on_examples, kept), "stop": stop, **options}
        left = _left(limits, start)
        report = verify(model, images, eps, attack=attack, limits=left, shares=shares(eps), **given)
        return RadiusResults(report, len(known) if kept is None else 0)

    recorded, stopped = False, None
    for place in bisection_order(len(wanted)):
        if stop():
            break
        eps = wanted[place]
        with records(eps) as kept:
            result, recorded = at(eps, kept), kept is not None
            if result.report.interrupted:
                stopped = result.report if result.report.examples else None
            else:
                found[eps] = result
                if kept is not None:
                    kept.seal()
    if recorded and leads:
        found = _taken_over(found)
    missing = tuple(eps for eps in wanted if eps not in found)
    done = tuple(found[eps] for eps in wanted if eps in found)
    return RadiusSweep(done, missing, time.monotonic() - start, stopped)


def _known(found: Mapping[float, RadiusResults], eps: float) -> list[ExampleResult]:
    return implied_results({at: radius.report.results for at, radius in found.items()}, eps)


def _also_kept(on_examples: OnExamples, kept: Records | None) -> OnExamples:
    if kept is None:
        return on_examples

    def both(results: list[ExampleResult]) -> None:
        kept.add(results)
        on_examples(results)

    return both


def _taken_over(found: Mapping[float, RadiusResults]) -> dict[float, RadiusResults]:
    """The results at each radius, of which none depends on another, with the verdicts that follow from others."""
    return {eps: _with_implied(radius.report, _known(found, eps)) for eps, radius in found.items()}


def _with_implied(report: Report, implied: Sequence[ExampleResult]) -> RadiusResults:
    own, taken = {result.index: result for result in report.results}, 0
    for result in implied:
        here = own[result.index]
        if {here.verdict, result.verdict} == {"certified", "falsified"}:
            raise SoundnessError(
                f"example {here.index} is {here.verdict} at ε = {report.eps}, and {result.verdict} by what was found "
                "at another radius. A bound is wrong: do not trust this model's certificates."
            )
        if here.verdict == "open":
            own[here.index] = replace(result, tried=here.tried)
            taken += 1
    return RadiusResults(with_results(report, tuple(own.values())), taken)


def bisection_order(count: int) -> list[int]:
    """The places 0 to count − 1, each once: the middle, then the middles of both halves, and so on."""
    spans, order = [(0, count)], list[int]()
    for first, end in spans:  # which grows meanwhile
        if first < end:
            middle = (first + end) // 2
            order.append(middle)
            spans += [(first, middle), (middle + 1, end)]
    return order


def implied_results(results: Mapping[float, Sequence[ExampleResult]], eps: float) -> list[ExampleResult]:
    """The results at radius `eps` that follow from those at others, in the order of the examples' numbers.

    An example is certified if it is at a larger radius, falsified if it is at a smaller one. Without any perturbation
    it is misclassified at every radius. Steps that were tried at other radii were not tried at this one.
    """
    found: dict[int, ExampleResult] = {}
    for radius, known in results.items():
        for result in known:
            larger, smaller = radius > eps, radius < eps
            follows = {"misclassified": True, "certified": larger, "falsified": smaller, "open": False}
            if follows[result.verdict]:
                found[result.index] = replace(result, tried={}, cut=())
    return [result for _, result in sorted(found.items())]


def _left(limits: Limits, start: float) -> Limits:
    """The limits for one radius, when that of the whole verification began at `start`."""
    if limits.budget is None:
        return limits
    return replace(limits, budget=max(limits.budget - (time.monotonic() - start), LEAST_BUDGET))
