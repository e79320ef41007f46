"""A training as it runs: a live view on a terminal, lines in a log, or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from certtrain.diagnostics.epochs import epoch_findings
from certtrain.render.console import out, say_stopping
from certtrain.render.results import show_json
from certtrain.render.training_lines import PlainView
from certtrain.render.training_live import LiveView
from certtrain.runs.epoch import Epoch
from certtrain.spec.preset import Preset
from certtrain.training.events import EpochDone, Event, Finished, Listener, Note, Started, Stopped, Stopping


class JsonView:
    """Writes a line with a JSON object for each event, apart from those that only show progress."""

    def __init__(self) -> None:
        self.preset: Preset | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self.preset = event.preset
                facts = {"folder": str(event.folder), "device": event.device, "step": event.step, "steps": event.steps}
                facts |= {"seconds_left": event.seconds_left, "forecast": event.forecast}
                self._say("started", facts | {"preset": event.preset.model_dump(mode="json")})
            case EpochDone():
                self._say("epoch", _epoch(event.record, self.preset))
            case Note():
                self._say("note", {"text": event.text})
            case Stopping():
                say_stopping()
            case Stopped():
                facts = {"reason": event.reason, "step": event.step, "steps": event.steps}
                facts |= {"seconds_left": event.seconds_left}
                self._say("stopped", facts | {"folder": str(event.folder)})
            case Finished():
                files = {"model": str(event.model), "page": event.page and str(event.page)}
                self._say("finished", files | {"seconds": event.seconds, "results": event.report.to_dict()})

    def _say(self, name: str, values: dict[str, Any]) -> None:
        show_json({"event": name, **values}, indent=None)


def _epoch(record: Epoch, preset: Preset | None) -> dict[str, Any]:
    """The epoch's line in metrics.jsonl, with its findings before the layers."""
    values = record.to_dict()
    layers = values.pop("layers")
    return values | {"findings": [finding.to_dict() for finding in epoch_findings(record, preset)], "layers": layers}


@contextmanager
def training_view(as_json: bool, *, silent: bool = False) -> Iterator[Listener]:
    """JSON if `as_json`, a live view on a terminal, else lines; nothing if `silent`."""
    if silent:
        yield lambda event: None
        return
    if as_json:
        yield JsonView()
        return
    with LiveView() if out.is_terminal else PlainView() as view:
        yield view
