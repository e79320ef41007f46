"""What surrounds a training: the data's place, the device, the processes, and the callbacks of whoever started it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from certtrain.runtime.device import choose_device
from certtrain.training.distributed import ALONE, Group
from certtrain.training.events import Listener
from certtrain.training.pacing import DEFAULT_PACING, Pacing


@dataclass(frozen=True)
class RunContext:
    """What a run works with that does not decide its result.

    data_dir: where the data are, as for `load_images`. device: "cpu", "cuda" or "auto".
    should_stop: called before each step; a reason stops the run at a checkpoint.
    emit: called with each event of the run. group: the processes that train together; `should_stop` and `emit` are
    called in the first of them alone. pacing: how often the run reads, diagnoses and saves.
    """

    data_dir: str | Path | None = None
    device: str = "cpu"
    should_stop: Callable[[], str | None] = lambda: None
    emit: Listener = lambda event: None
    group: Group = ALONE
    pacing: Pacing = DEFAULT_PACING

    def resolved(self) -> Self:
        """The same with a device that is there, and on all ranks but the first without callbacks.

        Raises DeviceError.
        """
        context = replace(self, device=choose_device(self.device))
        return context if self.group.is_leader else replace(context, should_stop=lambda: None, emit=lambda event: None)


DEFAULT_CONTEXT = RunContext()
