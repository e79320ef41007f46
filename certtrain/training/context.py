"""The context of a run: the data folder, the device, the processes, and the caller's callbacks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

from certtrain.runtime.device import choose_device
from certtrain.training.distributed import SINGLE_PROCESS, Group
from certtrain.training.events import Listener
from certtrain.training.pacing import DEFAULT_PACING, Pacing
from certtrain.verification.cascade import DEFAULT_LIMITS, Limits


@dataclass(frozen=True)
class FinalVerification:
    """How a run verifies the trained network at its end; the fields are those of `certtrain.verify`."""

    method: str = "ibp"
    limits: Limits = DEFAULT_LIMITS


DEFAULT_VERIFICATION = FinalVerification()


@dataclass(frozen=True, repr=False)
class RunContext:
    """What a run needs that does not change the network that it trains.

    data_dir: the data folder, as for `load_images`. device: "cpu", "cuda", or "auto" for a GPU
    if there is one.
    should_stop: called before each step; if it returns a reason, the run stops at a checkpoint.
    interruptible: makes a context in which a stop raises KeyboardInterrupt at once; the step is compiled in it.
    emit: called with each event of the run. group: the processes that train together; `should_stop` and `emit` are
    called on rank 0 only. pacing: how often the run reads measures, computes diagnostics and saves checkpoints.
    verification: how the trained network is verified; by default by intervals.
    """

    data_dir: str | Path | None = None
    device: str = "auto"
    should_stop: Callable[[], str | None] = lambda: None
    emit: Listener = lambda event: None
    group: Group = SINGLE_PROCESS
    pacing: Pacing = DEFAULT_PACING
    verification: FinalVerification = DEFAULT_VERIFICATION
    interruptible: Callable[[], AbstractContextManager[None]] = nullcontext

    def __repr__(self) -> str:
        """The fields that are not as by default: the callbacks of others would fill a page of help."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        defaults = {each.name: each.default for each in fields(self)}
        shown = (f"{name}={value!r}" for name, value in given.items() if value is not defaults[name])
        return f"{type(self).__name__}({', '.join(shown)})"

    def resolved(self) -> Self:
        """The same context with the device that "auto" stands for, and without callbacks unless this is rank 0.

        Raises DeviceError.
        """
        context = replace(self, device=choose_device(self.device))
        return context if self.group.is_leader else replace(context, should_stop=lambda: None, emit=lambda event: None)


DEFAULT_CONTEXT = RunContext()
