"""What surrounds a run: callbacks of the first process alone, a device that is there, and its earlier name."""

import inspect

import pytest
import torch

import certtrain
from certtrain.errors import DeviceError
from certtrain.training.context import RunContext
from certtrain.training.distributed import Group
from certtrain.training.events import Event, Note


def test_only_the_first_process_calls_back():
    for rank in range(2):
        events: list[Event] = []
        context = RunContext(emit=events.append, should_stop=lambda: "stop", group=Group(rank=rank, size=2)).resolved()
        context.emit(Note("a note"))
        assert [events, context.should_stop()] == ([[Note("a note")], "stop"] if rank == 0 else [[], None])


def test_the_device_is_chosen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert RunContext(device="auto").resolved().device == "cpu"
    with pytest.raises(DeviceError, match="there is no CUDA device"):
        RunContext(device="cuda").resolved()


def test_it_is_shown_by_what_is_not_the_default() -> None:
    assert repr(RunContext()) == "RunContext()"
    assert repr(RunContext(device="cpu", data_dir="d")) == "RunContext(data_dir='d', device='cpu')"
    assert "lambda" not in str(inspect.signature(certtrain.train))
