"""Verification at several radii: what follows from another radius is not computed, and nothing is looser."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from certtrain.attack import PGD
from certtrain.bounds.methods import METHODS
from certtrain.data import to_unit
from certtrain.errors import EpsilonError, SoundnessError
from certtrain.verification.cascade import UNLIMITED, Limits
from certtrain.verification.radii import RadiusSweep, bisection_order, implied_results, verify_radii
from certtrain.verification.results import ExampleResult
from certtrain.verification.shares import Alone, Receive
from certtrain.verification.verify import verify
from helpers.tiny_classifier import mostly_right

RADII = (0.01, 0.02, 0.04, 0.06, 0.1, 0.2)


def swept(radii: Sequence[float] = RADII, **options: Any) -> RadiusSweep:
    asked = {"attack": PGD(steps=10), "method": "ibp", "limits": UNLIMITED} | options
    return verify_radii(*mostly_right(), radii, **asked)


def alone(eps: float, **options: Any) -> Any:
    asked = {"attack": PGD(steps=10), "method": "ibp", "limits": UNLIMITED} | options
    return verify(*mostly_right(), eps, **asked)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 64])
def test_the_order_has_each_place_once_and_begins_in_the_middle(count: int):
    order = bisection_order(count)
    assert sorted(order) == list(range(count))
    assert order[0] == count // 2


def test_no_figure_is_looser_than_that_of_a_verification_at_that_radius_alone():
    sweep = swept()
    assert [radius.report.eps for radius in sweep.radii] == sorted(RADII)
    differing = 0
    for report in sweep.reports:
        single = alone(report.eps)
        for index, verdict in single.verdicts.items():
            assert verdict in ("open", report.verdicts[index])
            differing += verdict != report.verdicts[index]
        assert report.certified + report.open + report.falsified + report.misclassified == 100
    assert differing < 10, "of 600"


def test_accuracies_fall_with_the_radius_and_verdicts_are_monotone():
    reports = swept((*RADII, 0.5)).reports
    assert reports[0].certified > reports[-1].certified == 0
    for smaller, larger in pairwise(reports):
        assert smaller.natural_accuracy == larger.natural_accuracy == 0.8
        assert smaller.certified_accuracy >= larger.certified_accuracy
        assert smaller.attacked_accuracy >= larger.attacked_accuracy
        for index, verdict in larger.verdicts.items():
            assert verdict != "certified" or smaller.verdicts[index] == "certified"
            assert smaller.verdicts[index] != "falsified" or verdict == "falsified"


def test_no_input_within_the_certified_radius_has_another_class():
    model, data = mostly_right()
    generator = torch.Generator().manual_seed(0)
    radii = {index: radius for index, radius in swept().certified_radii().items() if radius is not None}
    assert len(radii) > 30
    for index, radius in radii.items():
        x, label = to_unit(data.images[index : index + 1]), data.labels[index]
        signs = torch.randint(0, 2, (100, *x.shape[1:]), generator=generator) * 2.0 - 1
        assert bool((model((x + radius * signs).clamp(0, 1)).argmax(1) == label).all())


def test_what_follows_is_not_bounded_again(monkeypatch: pytest.MonkeyPatch):
    bounded: list[int] = []
    method = METHODS["ibp"]

    def counted(graph: Any, box: Any, settings: Any) -> Any:
        bounded.append(len(box.centre))
        return method(graph, box, settings)

    monkeypatch.setitem(METHODS, "ibp", counted)
    sweep = swept()
    at_once = sum(bounded)
    bounded.clear()
    for eps in RADII:
        alone(eps)
    assert 0 < at_once < 0.75 * sum(bounded)
    assert sum(radius.implied for radius in sweep.radii) > 200
    assert [radius.implied for radius in sweep.radii if radius.implied == 0] == [0], "only the first has to do all"


def result(index: int, verdict: Any) -> ExampleResult:
    return ExampleResult(index, 0, verdict, None, "ibp", {"ibp": 1.0}, cut=("attack",))


def test_only_what_follows_is_implied():
    at = {0.1: [result(n, v) for n, v in enumerate(("certified", "falsified", "open", "misclassified"))]}
    larger, smaller = ({r.index: r.verdict for r in implied_results(at, eps)} for eps in (0.2, 0.05))
    assert larger == {1: "falsified", 3: "misclassified"}
    assert smaller == {0: "certified", 3: "misclassified"}
    assert all((r.tried, r.cut) == ({}, ()) for r in implied_results(at, 0.2))


def test_the_radii_of_examples_and_their_mean():
    sweep = swept()
    certified, falsified = sweep.certified_radii(), sweep.falsified_radii()
    for index in range(100):
        verdicts = {report.eps: report.verdicts[index] for report in sweep.reports}
        assert certified[index] == max((e for e, v in verdicts.items() if v == "certified"), default=None)
        assert falsified[index] == min((e for e, v in verdicts.items() if v == "falsified"), default=None)
        assert not (certified[index] and falsified[index]) or certified[index] < falsified[index]
    assert sweep.mean_certified_radius == pytest.approx(sum(radius or 0 for radius in certified.values()) / 100)


def test_everything_as_json():
    found = json.loads(json.dumps(swept((0.1, 0.02)).to_dict(), allow_nan=False))
    assert [each["eps"] for each in found["radii"]] == [0.02, 0.1]
    assert {"natural_accuracy", "attacked_accuracy", "certified_accuracy", "implied"} <= found["radii"][0].keys()
    assert (found["dataset"], found["examples"], found["missing"]) == ("folder", 100, [])
    assert [each["index"] for each in found["certified_radius"]] == list(range(100))


def test_a_stop_leaves_whole_radii_out_and_keeps_the_others():
    asked: list[float] = []
    sweep = swept(on_radius=lambda eps, known: asked.append(eps), stop=lambda: len(asked) > 2)
    assert len(asked) == 3
    assert [report.eps for report in sweep.reports] == sorted(asked[:2])
    assert set(sweep.missing) == set(RADII) - set(asked[:2])
    nothing = swept(stop=lambda: True)
    assert (nothing.radii, nothing.missing) == ((), RADII)
    assert nothing.to_dict()["radii"] == []


def test_the_budget_is_for_all_radii_and_leaves_examples_open():
    sweep = swept(limits=Limits(None, 1e-9))
    assert len(sweep.radii) == len(RADII)
    assert {report.natural_accuracy for report in sweep.reports} == {0.8}
    assert all(report.unfinished > 0 for report in sweep.reports)


@dataclass
class Kept:
    """Results at one radius, and whether all are there."""

    results: dict[int, ExampleResult] = field(default_factory=dict)
    sealed: bool = False

    def add(self, results: Sequence[ExampleResult]) -> None:
        self.results |= {result.index: result for result in results}

    def seal(self) -> None:
        self.sealed = True


def test_what_is_kept_is_computed_at_its_own_radius_and_the_figures_are_not_looser():
    kept = {eps: Kept() for eps in RADII}
    sweep, plain = swept(records=lambda eps: nullcontext(kept[eps])), swept()
    for eps, report in zip(RADII, sweep.reports, strict=True):
        assert kept[eps].sealed
        assert {index: result.verdict for index, result in kept[eps].results.items()} == alone(eps).verdicts
        assert report.verdicts.keys() == kept[eps].results.keys()
    for ours, theirs in zip(sweep.radii, plain.radii, strict=True):
        assert ours.report.certified >= theirs.report.certified
        assert ours.report.open <= theirs.report.open
    taken = [radius.implied for radius in sweep.radii]
    differing = [
        sum(kept[eps].results[n].verdict != v for n, v in report.verdicts.items())
        for eps, report in zip(RADII, sweep.reports, strict=True)
    ]
    assert taken == differing


def test_a_stopped_radius_is_not_sealed_and_goes_on_with_what_is_kept():
    kept, seen = {eps: Kept() for eps in RADII}, list[ExampleResult]()
    options = {"records": lambda eps: nullcontext(kept[eps]), "batch_size": 10}
    swept(on_examples=seen.extend, stop=lambda: len(seen) > 130, **options)
    assert sorted(bool(each.results) for each in kept.values()) == [False] * 4 + [True] * 2
    assert sum(each.sealed for each in kept.values()) == 1
    before, new = {eps: dict(each.results) for eps, each in kept.items()}, list[ExampleResult]()
    assert swept(on_examples=new.extend, **options).missing == ()
    assert all(each.sealed for each in kept.values())
    assert len(new) == 600 - sum(map(len, before.values()))


def test_verdicts_that_contradict_each_other_are_a_fault():
    kept = {eps: Kept() for eps in (0.02, 0.1)}
    swept((0.02, 0.1), records=lambda eps: nullcontext(kept[eps]))
    certified = next(result for result in kept[0.02].results.values() if result.verdict == "certified")
    kept[0.1].results[certified.index] = certified
    wrong = replace(certified, verdict="falsified", method="attack", counterexample=torch.zeros(1, 8, 8), trees={})
    kept[0.02].results[certified.index] = wrong
    with pytest.raises(SoundnessError, match=f"example {certified.index} is"):
        swept((0.02, 0.1), records=lambda eps: nullcontext(kept[eps]))


def test_no_radius_is_an_error():
    with pytest.raises(EpsilonError, match="no radius"):
        swept(())


class Second(Alone):
    """The share of a second process, which is handed every example, and what it sends to the first one."""

    def __init__(self) -> None:
        self.sent: dict[int, ExampleResult] = {}

    def begin(self, examples: list[int], known: dict[int, ExampleResult], receive: Receive) -> list[int]:
        assert not known, "only the first process says what is known"
        return list(range(100))

    def send(self, results: list[ExampleResult]) -> None:
        self.sent |= {result.index: result for result in results}


def test_another_process_computes_what_it_is_handed_at_every_radius() -> None:
    """What follows from its own results at other radii must not replace it: the first process may not know of it."""
    shares = {eps: Second() for eps in RADII}
    swept(shares=lambda eps: shares[eps], leads=False)
    for eps, share in shares.items():
        assert {index: result.verdict for index, result in share.sent.items()} == alone(eps).verdicts
