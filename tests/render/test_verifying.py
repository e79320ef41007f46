"""The progress of a verification: it tells what is being done, and never is wider than the terminal."""

import io
import time
from typing import Any

import pytest
from rich.console import Console

from certtrain.render import verification
from certtrain.render.verification import VerifyingView, verifying
from certtrain.verification.cascade import SearchState, Work
from certtrain.verification.results import ExampleResult

NAMES = ("inference", "attack", "ibp")


def view(**changes: Any) -> VerifyingView:
    """A view in the middle of a search, ten seconds after its start."""
    shown = VerifyingView([ExampleResult(index, 0, "certified", 1.0) for index in range(9000)])
    shown.begin(("complete",), 12_000)
    shown.add([ExampleResult(index, 0, "open", None) for index in range(9000, 10_000)])
    shown.work_on(Work("complete", [10_017], 30.0))
    shown.work_since -= 10
    shown.since -= 75
    shown.work_on(Work("complete", [10_017], 30.0, SearchState(1234, 56, -0.01234)))
    return shown


def lines(shown: VerifyingView, width: int) -> list[str]:
    """What a terminal of that width shows."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(shown)
    return capture.get().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_number_is_shown_at_every_width(width: int) -> None:
    found = lines(view(), width)
    assert max(map(len, found)) <= width
    words = " ".join(" ".join(found).split())
    for part in ("1,000/12,000 examples", "1:15", "certified 9,000", "open 1,000", "misclassified 0"):
        assert part in words
    for part in ("example 10017", "10 s of 30 s", "domains: 1,234 closed", "56 open", "bound -0.0123"):
        assert part in words


@pytest.mark.parametrize("width", [60, 80, 120])
def test_an_image_is_named_with_its_number_and_the_radius_that_is_tried(width: int) -> None:
    shown = VerifyingView(images=["six.png", "seven.png", "eight.png"])
    shown.begin(("largest certified ε",), 3)
    shown.add([ExampleResult(0, 6, "open", None)])
    work = Work("largest certified ε", [1], 20.0)
    shown.work_on(work)
    shown.work_since -= 5
    shown.work_on(work._replace(radius=0.0625))
    found = lines(shown, width)
    assert max(map(len, found)) <= width
    words = " ".join(" ".join(found).split())
    for part in ("1/3 images", "largest certified ε: image 2 of 3, seven.png", "5 s of 20 s", "ε = 0.0625"):
        assert part in words


def test_the_clock_goes_on_while_a_step_computes() -> None:
    shown = view()
    before = lines(shown, 100)
    shown.work_since -= 2
    shown.since -= 2
    after = lines(shown, 100)
    assert "10 s of 30 s" in before[-1]
    assert "12 s of 30 s" in after[-1]
    assert (before[0].split()[-1], after[0].split()[-1]) == ("1:15", "1:17")


def test_no_time_left_is_shown_where_none_is_known() -> None:
    shown = view()
    assert "left" not in " ".join(lines(shown, 120))
    shown.begin(NAMES, 100)
    shown.since -= 20
    assert "left" not in " ".join(lines(shown, 120)), "nothing is done yet"
    shown.add([ExampleResult(index, 0, "open", None) for index in range(4)])
    assert "left" not in " ".join(lines(shown, 120)), "four examples say little about the others"
    shown.add([ExampleResult(index, 0, "open", None) for index in range(4, 50)])
    assert "0:20 left" in " ".join(lines(shown, 120))


def test_an_interrupt_is_answered_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = view()
    shown.stop()
    assert "stopping…" in lines(shown, 80)[-1]
    assert "stopping…" in capsys.readouterr().err  # since it is no terminal


def test_a_log_has_a_line_about_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with verifying() as shown:
        shown.begin(("inference", "attack"), 40)
        shown.work_on(Work("attack", [0, 1], 30.0))
        assert capsys.readouterr().err == "", "a minute is not over"
        monkeypatch.setattr("certtrain.render.verification.LOG_PAUSE", 0.0)
        shown.add([ExampleResult(0, 1, "open", None), ExampleResult(1, 1, "certified", 0.5)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("inference, attack: 2/40  certified 1  falsified 0  open 1  misclassified 0  0:0")


def test_a_batch_names_its_step_and_its_size() -> None:
    shown = VerifyingView([])
    shown.begin(("alpha-crown",), 40)
    shown.work_on(Work("alpha-crown", list(range(20)), 30.0))
    assert not any("20 examples" in line for line in lines(shown, 80)), "it has just begun"
    shown.work_since = time.monotonic() - 3
    assert lines(shown, 80)[-1] == "alpha-crown: 20 examples  3 s"
    assert verification.REFRESHES >= 1
