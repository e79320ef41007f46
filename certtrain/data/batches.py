"""Seeded batches from one uint8 tensor, each a pure function of (seed, epoch, step)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from certtrain.data.images import to_unit
from certtrain.data.seeds import derive_seed
from certtrain.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image.

    flip: mirror it left to right with probability one half.
    crop_padding: number of pixels by which each side is padded, repeating the edge, before a crop of the
        original size is taken at a uniformly random place.

    Raises:
        DataError: `crop_padding` is negative.
    """

    flip: bool = False
    crop_padding: int = 0

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise DataError(f"crop_padding is {self.crop_padding}; it must be at least 0 pixels.")


_UNCHANGED = Augmentation()


class Batches:
    """The batches of a training set in every epoch. It has no state that a resumed run must restore.

    Images are uint8 (N,C,H,W), labels int64 (N,). The data stay where they are, or are moved once
    to `device`; batches are made there. A last batch of a single example is left out, since
    BatchNorm needs the variance of several; another example is left out in each epoch. If `ranks`
    processes share each batch, `batch` gives the part of the `rank`-th; order and augmentation are
    those of the whole batch.

    Raises:
        DataError: the set is too small for one batch, the two lengths differ,
            `batch_size` is below 1, or a batch has fewer examples than there are ranks.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation = _UNCHANGED,
        device: torch.device | str | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        _check(len(images), len(labels), batch_size)
        self._images = images if device is None else images.to(device)
        self._labels = labels.to(self._images.device)
        self._batch_size = batch_size
        self._seed = seed
        self._augmentation = augmentation
        self._rank, self._ranks = rank, ranks
        self._last_order: tuple[int, Tensor] | None = None
        self._check_ranks()

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return steps_in_epoch(len(self._labels), self._batch_size)

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Batch `step` of `epoch`, both counted from 0: images float32 (B,C,H,W) in [0,1], labels int64 (B,).

        Raises:
            IndexError: the epoch has no such step.
        """
        return self._make(epoch, step, part_of(self.size(step), self._rank, self._ranks))

    def whole_batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """As `batch`, for all ranks together."""
        return self._make(epoch, step, slice(None))

    def plain_batch(self, step: int) -> Tensor:
        """Images float32 (B,C,H,W) in [0,1] of batch `step`, for all ranks together, without augmentation.

        The order is the same in every epoch. The steps of an epoch give every image once: a last
        single image, which `batch` leaves out, is in the batch before it.

        Raises:
            IndexError: an epoch has no such step.
        """
        self._check_step(step)
        first, last = step * self._batch_size, step == self.steps_per_epoch - 1
        index = self._order(0)[first : None if last else first + self._batch_size]
        return to_unit(self._images.index_select(0, index))

    def size(self, step: int) -> int:
        """Number of examples in batch `step` of any epoch, over all ranks."""
        return min(self._batch_size, len(self._labels) - step * self._batch_size)

    def share(self, step: int) -> float:
        """The share of the examples of batch `step` that this rank has; over all ranks the shares add up to 1."""
        size = self.size(step)
        return len(range(size)[part_of(size, self._rank, self._ranks)]) / size

    def _make(self, epoch: int, step: int, part: slice) -> tuple[Tensor, Tensor]:
        self._check_step(step)
        index = self._order(epoch)[step * self._batch_size : (step + 1) * self._batch_size]
        return to_unit(self._gather(index, epoch, step, part)), self._labels[index[part]]

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch} steps")

    def _check_ranks(self) -> None:
        smallest = self.size(self.steps_per_epoch - 1)
        if smallest < self._ranks:
            raise DataError(
                f"the last batch of an epoch has {smallest} of {len(self._labels)} examples, too few for "
                f"{self._ranks} processes; choose another train.batch_size, or fewer processes"
            )

    def _order(self, epoch: int) -> Tensor:
        if self._last_order is None or self._last_order[0] != epoch:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "order", epoch))
            order = torch.randperm(len(self._labels), generator=generator)
            self._last_order = epoch, order.to(self._labels.device)
        return self._last_order[1]

    def _gather(self, index: Tensor, epoch: int, step: int, part: slice) -> Tensor:
        if self._augmentation == _UNCHANGED:
            return self._images.index_select(0, index[part])  # faster than indexing with brackets
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "augment", epoch, step))
        draws = _draw(len(index), self._augmentation, generator)[:, part].to(index.device, non_blocking=True)
        return gather_crops(self._images, index[part], draws[:2] - self._augmentation.crop_padding, draws[2].bool())


def part_of(size: int, rank: int, ranks: int) -> slice:
    """The part of a batch of `size` examples that the `rank`-th of `ranks` processes takes."""
    return slice(rank * size // ranks, (rank + 1) * size // ranks)


def gather_crops(images: Tensor, index: Tensor, shifts: Tensor, flips: Tensor) -> Tensor:
    """Select, mirror and shift images in a single indexing operation.

    From uint8 images (N,C,H,W), example `index[b]` is mirrored if `flips[b]`, then cropped by a
    window that is moved down by `shifts[0, b]` and right by `shifts[1, b]` pixels; outside the
    image its edge is repeated. Returns uint8 (B,C,H,W) in channels-last memory, with which
    convolutions are faster.
    """
    height, width = images.shape[2:]
    rows = _window(shifts[0], height)
    columns = _window(shifts[1], width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    picked = images[index[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _window(shift: Tensor, size: int) -> Tensor:
    places = torch.arange(size, device=shift.device) + shift[:, None]
    return places.clamp(0, size - 1)


def _draw(count: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Three rows of random numbers: the crop's offset down and right (0 to 2·padding), and whether to flip (0 or 1)."""
    # They are always drawn on the CPU and in this order, so that neither the device nor an
    # augmentation that is switched off changes the others.
    offsets = torch.randint(0, 2 * augmentation.crop_padding + 1, (2, count), generator=generator)
    flips = torch.randint(0, 2, (1, count), generator=generator)
    return torch.cat([offsets, flips * int(augmentation.flip)])


def steps_in_epoch(examples: int, batch_size: int) -> int:
    """Number of batches in an epoch: N/batch_size rounded up, without a last batch of a single example."""
    full, left_over = divmod(examples, batch_size)
    return full + (left_over > 1)


def _check(images: int, labels: int, batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; it must be at least 1.")
    if images != labels:
        raise DataError(f"there are {images} images but {labels} labels.")
    if images == 0:
        raise DataError("the training set is empty.")
    if images == 1 and batch_size > 1:
        raise DataError("the training set holds one example; a batch needs two, or batch_size 1.")
