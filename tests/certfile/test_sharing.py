"""Examples handed out among processes: every one exactly once, and nothing lost but what an ended process held."""

import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from certtrain.attack import PGD
from certtrain.certfile import heartbeats, sharing
from certtrain.certfile.sharing import Shared, handed_out
from certtrain.data import ImageSet
from certtrain.errors import CerttrainError, RunError, SoundnessError
from certtrain.network.modelfile import Classifier
from certtrain.runtime.precision import tensor_cores
from certtrain.verification.cascade import Limits
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import Report, verify
from helpers.tiny_classifier import images, mostly_right

UNLIMITED = Limits(timeout=None)
EPS = 0.05


CASES = [(0, 20, 2), (1, 20, 4), (100, 20, 2), (1000, 20, 64), (7, 1, 3)]


@pytest.mark.parametrize(("examples", "size", "ranks"), CASES)
def test_parts_hold_every_example_once_and_get_smaller(examples: int, size: int, ranks: int) -> None:
    parts = handed_out(examples, size, ranks)
    assert [number for part in parts for number in part] == list(range(examples))
    lengths = [len(part) for part in parts]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths, default=0) <= size
    assert lengths[-ranks:] == [1] * min(ranks, examples)


class Ended(Exception):
    """A process ends in the middle of its work."""


def together(
    size: int,
    model: Classifier,
    data: ImageSet,
    ends: Callable[[int, list[int]], bool] = lambda rank, part: False,
    limits: Limits = UNLIMITED,
) -> tuple[Report, list[ExampleResult]]:
    """The report of rank 0, and the results that it was given one after the other; a thread stands for each process.

    One thread runs at a time, since torch cannot trace in two; they take turns where a process would wait.
    """
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    ended: set[int] = set()
    kept: list[ExampleResult] = []
    reports: dict[int, Report] = {}
    turn = threading.Lock()

    def let_others_run(seconds: float) -> None:
        turn.release()
        time.sleep(seconds)
        turn.acquire()

    class Ending(Shared):
        def parts(self, examples: Any, size: int) -> Any:
            for part in super().parts(examples, size):
                let_others_run(0.001)
                if ends(self.rank, part):
                    raise Ended
                yield part

    def work(rank: int) -> None:
        shares = Ending(store, rank, size, data, lambda: frozenset(ended))
        told = kept.extend if rank == 0 else lambda results: None
        about = {"attack": PGD(5), "method": "auto", "limits": limits, "batch_size": 20}
        with turn:
            try:
                reports[rank] = verify(model, data, EPS, shares=shares, on_examples=told, **about)
            except Ended:
                pass
            finally:
                ended.add(rank)

    others = [threading.Thread(target=work, args=(rank,)) for rank in range(1, size)]
    # The flags of tensor cores belong to the whole process, so that threads would put back each other's.
    with tensor_cores(False), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "time", SimpleNamespace(sleep=let_others_run, monotonic=time.monotonic))
        for thread in others:
            thread.start()
        work(0)
        for thread in others:
            thread.join()
    return reports[0], kept


@pytest.fixture(scope="module")
def tiny() -> tuple[Classifier, ImageSet, Report]:
    model, data = mostly_right(60)
    return model, data, verify(model, data, EPS, attack=PGD(5), method="auto", limits=UNLIMITED, batch_size=20)


@pytest.mark.parametrize(("size", "limits"), [(2, UNLIMITED), (4, UNLIMITED), (2, Limits(timeout=600.0))])
def test_several_processes_have_the_verdicts_of_one(
    size: int, limits: Limits, tiny: tuple[Classifier, ImageSet, Report]
) -> None:
    model, data, alone = tiny
    report, kept = together(size, model, data, limits=limits)
    assert report.verdicts == alone.verdicts
    assert [result.method for result in report.results] == [result.method for result in alone.results]
    for found, expected in zip(report.results, alone.results, strict=True):
        assert found.margin == expected.margin or found.margin == pytest.approx(expected.margin, rel=1e-6, abs=1e-9)
        assert found.tried.keys() == expected.tried.keys()
    assert {result.index for result in kept} == set(range(len(data)))
    decided = [result.index for result in kept if result.verdict != "open"]
    assert len(decided) == len(set(decided)), "no example is decided twice"


def test_the_examples_of_a_process_that_ends_are_done_by_rank_0(tiny: tuple[Classifier, ImageSet, Report]) -> None:
    model, data, alone = tiny
    taken: list[list[int]] = []

    def ends(rank: int, part: list[int]) -> bool:
        if rank == 1:
            taken.append(part)
        return rank == 1 and len(taken) > 1

    report, _ = together(3, model, data, ends)
    assert len(taken) == 2, "the process did one part, and ended with the next one in its hands"
    assert report.verdicts == alone.verdicts


def shared(store: Any, rank: int, data: ImageSet) -> Shared:
    return Shared(store, rank, 2, data)


def test_an_error_of_another_process_is_raised_by_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LOOK_AFTER", 0.0)
    store, data = dist.HashStore(), images(4)  # type: ignore[attr-defined]
    shared(store, 1, data).fail(SoundnessError("a bound is wrong"))
    with pytest.raises(SoundnessError, match="a bound is wrong"):
        shared(store, 0, data).stopped()
    store = dist.HashStore()  # type: ignore[attr-defined]
    shared(store, 1, data).fail(RunError("gone"))
    with pytest.raises(CerttrainError, match="gone"):
        shared(store, 0, data).stopped()


def test_a_result_about_another_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LOOK_AFTER", 0.0)
    store = dist.HashStore()  # type: ignore[attr-defined]
    data = images(4)
    first, other = shared(store, 0, data), shared(store, 1, replace(data, images=255 - data.images))
    first.begin([0], {}, lambda results: None)
    other.begin([], {}, lambda results: None)
    other.send([ExampleResult(0, int(data.labels[0]), "open", None, tried={"ibp": 1.0})])
    with pytest.raises(RunError, match="another image"):
        first.stopped()


def test_a_stop_reaches_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "LOOK_AFTER", 0.0)
    monkeypatch.setattr(sharing, "PATIENCE", 0.05)
    store, data = dist.HashStore(), images(4)  # type: ignore[attr-defined]
    first, other = shared(store, 0, data), shared(store, 1, data)
    first.begin([0, 1], {}, lambda results: None)
    assert not other.stopped()
    next(other.parts(other.begin([], {}, lambda results: None), 1))
    assert list(first.parts([0, 1], 1)) == [[1]]
    assert first.end(lambda: True) == [], "the other one still holds an example, but rank 0 was stopped"
    assert other.stopped()
    assert other.begin([], {}, lambda results: None) == []


def test_rank_0_does_not_wait_for_a_process_that_holds_no_example() -> None:
    store, data = dist.HashStore(), images(4)  # type: ignore[attr-defined]
    first, other = shared(store, 0, data), shared(store, 1, data)
    first.begin([0, 1, 2, 3], {}, lambda results: None)
    assert other.begin([], {}, lambda results: None) == [0, 1, 2, 3]
    taken = other.parts([0, 1, 2, 3], 1)
    assert next(taken) == [0]
    assert list(first.parts([0, 1, 2, 3], 1)) == [[1], [2], [3]]
    assert first.end(_on_call(3, lambda: next(taken, None))) == []


def _on_call(number: int, act: Callable[[], object]) -> Callable[[], bool]:
    """What never asks for a stop, but acts when it is called for the `number`th time, and fails soon after."""
    calls = itertools.count(1)

    def stop() -> bool:
        call = next(calls)
        assert call <= number + 1, "it still waits"
        if call == number:
            act()
        return False

    return stop


def test_what_a_process_given_up_sends_later_is_ignored(tiny: tuple[Classifier, ImageSet, Report]) -> None:
    _, data, alone = tiny
    kept: list[ExampleResult] = []
    store = dist.HashStore()  # type: ignore[attr-defined]
    first, other = Shared(store, 0, 2, data, lambda: frozenset({1})), shared(store, 1, data)
    first.begin([0, 1, 2, 3], {}, kept.extend)
    taken = other.parts(other.begin([], {}, lambda results: None), 1)
    next(taken)
    assert list(first.parts([0, 1, 2, 3], 1)) == [[1], [2], [3]]
    assert first.end(lambda: False) == [0], "rank 0 does the example of the one that was given up"
    other.send([alone.results[0]])
    first._collect()
    first.begin([0], {}, kept.extend)
    first._collect()
    assert kept == [], "it would stand in the certificate file twice"


def test_a_process_that_gives_no_sign_of_life_is_silent_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(heartbeats, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    store = dist.HashStore()  # type: ignore[attr-defined]
    beats = heartbeats.Heartbeats(store, 3)

    def after(seconds: int, *alive: int) -> frozenset[int]:
        found = beats.silent()
        for _ in range(seconds):
            clock[0] += 1.0
            for rank in alive:
                store.add(f"alive/{rank}", 1)
            found = beats.silent()
        return found

    assert after(29, 1) == frozenset()
    assert after(3, 1) == {2}
    clock[0] += 300.0
    assert beats.silent() == frozenset(), "rank 0 did not look, so the silence counts from now on"
    assert after(32, 1, 2) == frozenset()
    assert after(32, 2) == {1}


def test_a_process_gives_signs_of_life_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT", 0.001)
    store = dist.HashStore()  # type: ignore[attr-defined]
    heartbeats.start_beating(store, 1)
    end = time.monotonic() + 30
    while store.add("alive/1", 0) < 3 and time.monotonic() < end:
        sum(range(10_000))
    assert store.add("alive/1", 0) >= 3


def test_messages_are_plain_json(tiny: tuple[Classifier, ImageSet, Report]) -> None:
    _, data, alone = tiny
    store = dist.HashStore()  # type: ignore[attr-defined]
    other = Shared(store, 1, 2, data)
    other.send(list(alone.results[:3]))
    message = json.loads(store.get("message/0"))
    assert [record["index"] for record in message["records"]] == [0, 1, 2]
