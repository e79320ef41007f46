"""Tables on narrow terminals: no number is lost, and no word is broken."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from certtrain import render
from certtrain.certfile.checking import Checked
from certtrain.diagnostics.model_states import ModelStates
from certtrain.runs.epoch import LayerState
from certtrain.verification.radii import RadiusResults, RadiusSweep
from certtrain.verification.results import StepSummary
from certtrain.verification.verify import Report

ASSUMPTIONS = tuple(f"assumption number {number}" for number in range(7))
REPORT = Report(
    dataset="fashion-mnist",
    split="validation",
    eps=8 / 255,
    examples=10_000,
    certified=3456,
    open=1111,
    falsified=2222,
    misclassified=3211,
    method="auto",
    attack={"name": "apgd-ce", "steps": 100, "restarts": 5, "seed": 0},
    assumptions=ASSUMPTIONS,
    seconds=7384.6,
    stages=(
        StepSummary("inference", 10_000, 3211, 0.211),
        StepSummary("alpha-crown", 1234, 123, 4321.0),
        StepSummary("complete", 1111, 0, 33_330.0),
    ),
    unfinished=1111,
)
CHECKED = Checked(
    "c.jsonl",
    10_000,
    10_000,
    {"certified": 3456, "falsified": 2222, "open": 1111, "misclassified": 3211},
    8 / 255,
    "auto",
    "float32",
    "saved",
    ASSUMPTIONS,
    {},
    75.0,
)


SWEEP = RadiusSweep((RadiusResults(REPORT, 9876), RadiusResults(REPORT, 0)), (), 14769.2)


def states() -> ModelStates:
    layer = LayerState(
        name="conv_relu",
        units=32_768,
        active=0.217,
        unstable=0.084,
        inactive=0.699,
        dead=0.277,
        centre=0.1234,
        width=0.4567,
        growth=1940.4,
        mean_ratio=0.987,
        variance_ratio=1.234,
    )
    return ModelStates("cifar", None, (layer,))  # type: ignore[arg-type]


SHOWN: dict[str, tuple[Callable[[], None], str]] = {
    "report": (
        lambda: render.show_report(REPORT),
        "67.89% 32.11% 6,789 45.67% 54.33% 4,567 34.56% 65.44% 3,456 10,000 1,234 123 8/255 (11.11%) 1,111 21.1 µs "
        "3.5 s 30 2 h 3 min 7 assumptions",
    ),
    "checked": (lambda: render.show_checked(CHECKED), "3,456 2,222 1,111 3,211 10,000 1 min 15 s 7 assumptions"),
    "radii": (
        lambda: render.show_radii(SWEEP),
        "8/255 67.89% 45.67% 34.56% 1,111 9,876 4 h 6 min 0.0000;",
    ),
    "states": (
        lambda: render.show_states(states(), "cifar: the title"),
        "32,768 21.7% 8.4% 69.9% 27.7% 0.123 0.457 1,940× 0.987 1.23",
    ),
    "models": (
        lambda: render.show_models([states(), states()], "the title"),
        "1,940× 8.4% 69.9% 27.7% 0.987 1.23",
    ),
}


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", SHOWN)
def test_no_number_is_lost_and_no_word_is_broken(monkeypatch: pytest.MonkeyPatch, name: str, width: int) -> None:
    show, numbers = SHOWN[name]
    text = lines_at(monkeypatch, show, width)
    assert max(map(len, text.splitlines())) <= width
    words, whole = set(text.split()), set(lines_at(monkeypatch, show, 400).split())
    assert set(numbers.split()) <= words
    # Only names may be cut, and only on the narrowest terminal.
    cut = {word for word in words if word.endswith("…")}
    assert {word.rstrip("…").isidentifier() for word in cut} <= {True}
    assert not cut or (width, name) == (60, "models")
    assert words - cut <= whole, "a word is broken"


def lines_at(monkeypatch: pytest.MonkeyPatch, show: Callable[[], None], width: int) -> str:
    """What is shown on a terminal of that width."""
    shown = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    for module in ("cells", "console", "layers", "radii", "results", "verification"):
        monkeypatch.setattr(f"certtrain.render.{module}.out", shown)
    with shown.capture() as capture:
        show()
    return capture.get()
