"""Checkpoints: when a run saves its whole state, and how several processes save and restore it together."""

from pathlib import Path

import torch
from torch import Tensor

from certtrain.runs.checkpoint import Networks, RunFolder, RunProgress, load_state, state_tensors
from certtrain.training.distributed import Group
from certtrain.training.failures import not_finite
from certtrain.training.pacing import Pacing, Recurring


class Checkpointer:
    """Saves and restores a run's networks, optimiser and progress as checkpoints in `folder`. Only rank 0 writes."""

    def __init__(
        self, folder: RunFolder, networks: Networks, optimizer: torch.optim.Optimizer, group: Group, pacing: Pacing
    ) -> None:
        self.folder, self.networks, self.optimizer, self.group = folder, networks, optimizer, group
        self.within_epoch = pacing.checkpoint
        self.saving = Recurring(pacing.epoch_checkpoint, pacing.checkpoint_share)

    def due(self, *, ends_epoch: bool) -> bool:
        """Whether it is time for a checkpoint; at the end of an epoch that is sooner than within one."""
        return self.group.agree(self.saving.due(None if ends_epoch else self.within_epoch))

    def save(self, progress: RunProgress) -> None:
        """Write a checkpoint. Raises NonFiniteError if a weight is not finite, and StorageError."""
        with self.saving.timed():
            self.folder.last_good = self.group.on_leader(lambda: self._write(progress))

    def _write(self, progress: RunProgress) -> Path:
        for name, tensor in self.networks["network"].state_dict().items():
            if not bool(tensor.isfinite().all()):
                what = f"step {progress.step - 1}: its update made {name!r} infinite or NaN"
                raise not_finite(what, self.folder.last_good)
        return self.folder.save_checkpoint(self.networks, self.optimizer, progress)

    def restore(self) -> tuple[RunProgress, list[Path]]:
        """Restore all ranks from the newest checkpoint; returns the progress, and the checkpoints that were damaged.

        Raises RunError as `RunFolder.restore`.
        """
        if self.group.size == 1:
            return self.folder.restore(self.networks, self.optimizer)
        progress, damaged, self.folder.last_good, tensors = self.group.on_leader(self._restored)
        load_state(tensors, self.networks, self.optimizer)
        return progress, damaged

    def _restored(self) -> tuple[RunProgress, list[Path], Path | None, dict[str, Tensor]]:
        progress, damaged = self.folder.restore(self.networks, self.optimizer)
        return progress, damaged, self.folder.last_good, state_tensors(self.networks, self.optimizer)
