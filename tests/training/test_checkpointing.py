"""When a run is saved: at the ends of epochs sooner than within one, and never with weights that are not finite."""

from pathlib import Path

import pytest
import torch
from torch import nn

from certtrain.errors import NonFiniteError
from certtrain.runs.checkpoint import RunFolder, RunProgress
from certtrain.training import pacing
from certtrain.training.checkpointing import Checkpointer
from certtrain.training.distributed import SINGLE_PROCESS
from certtrain.training.pacing import Pacing


class Clock:
    """In place of the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        """What the test has set."""
        return self.now


def checkpointer(folder: Path, network: nn.Module) -> Checkpointer:
    optimizer = torch.optim.Adam(network.parameters())
    return Checkpointer(RunFolder(folder), {"network": network}, optimizer, SINGLE_PROCESS, Pacing())


def test_at_the_ends_of_epochs_a_checkpoint_is_due_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(pacing, "time", clock)
    checkpoints = checkpointer(tmp_path, nn.Linear(2, 2))
    checkpoints.save(RunProgress(step=3))
    due = []
    for _ in range(4):
        due.append((checkpoints.due(ends_epoch=True), checkpoints.due(ends_epoch=False)))
        clock.now += 101
    assert due == [(False, False), (True, False), (True, False), (True, True)]


def test_what_is_saved_is_restored(tmp_path: Path):
    network, other = nn.Linear(2, 2), nn.Linear(2, 2)
    checkpointer(tmp_path, network).save(RunProgress(step=3, sums={"loss": 2.0, "examples": 4.0}))
    fresh = checkpointer(tmp_path, other)
    progress, damaged = fresh.restore()
    assert (progress.step, progress.sums, damaged) == (3, {"loss": 2.0, "examples": 4.0}, [])
    assert torch.equal(network.weight, other.weight)
    assert fresh.folder.last_good == tmp_path / "checkpoints" / "step-000000003.safetensors"


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    network = nn.Linear(2, 2)
    checkpoints = checkpointer(tmp_path, network)
    checkpoints.save(RunProgress(step=3))
    nn.init.constant_(network.bias, torch.inf)
    message = r"step 4: its update made 'bias' infinite or NaN.*last good checkpoint is .*step-000000003\.safetensors"
    with pytest.raises(NonFiniteError, match=message):
        checkpoints.save(RunProgress(step=5))
    assert [path.stem for path in RunFolder(tmp_path).checkpoints()] == ["step-000000003"]
