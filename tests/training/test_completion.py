"""The end of a run: what is said about a network that has hardly learned anything."""

from pathlib import Path

import pytest

from certtrain import train
from certtrain.training.events import Event, Note
from helpers.small_runs import frequent, small


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("epochs", "eps", "said"), [(1, 0.5, True), (3, 0.01, False)])
def test_a_run_that_has_hardly_learned_anything_says_so(epochs: int, eps: float, said: bool, tmp_path: Path) -> None:
    events: list[Event] = []
    preset = small(train__epochs=epochs, eps__max=eps)
    report = train(preset, tmp_path / "out", frequent(emit=events.append))
    assert report is not None
    assert report.is_near_guessing(10) == said
    notes = [event.text for event in events if isinstance(event, Note) and "close to guessing among 10" in event.text]
    assert len(notes) == said
