"""A labelled set of images as one uint8 tensor."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certtrain.data.seeds import derive_seed
from certtrain.errors import DataError
from certtrain.formats import count_of

_CHUNK = 4096
# One grey level. The deviation of a constant channel is zero; with a smaller floor, normalisation
# would multiply a perturbation of that channel by a huge factor.
_STD_FLOOR = 1.0 / 255.0


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their labels, which are checked when the set is made.

    `images` is uint8 (N,C,H,W) with N > 0, `labels` int64 (N,), each in [0, K) where K is
    the number of `class_names`. Both are on the same device.

    Raises:
        DataError: a shape, a type or a label is wrong.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_shapes(f"{self.name} ({self.split})", self.images, self.labels)
        _check_labels(f"{self.name} ({self.split})", self.labels, len(self.class_names))

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def take(self, limit: int | None) -> "ImageSet":
        """The first `limit` examples, or all of them if there are fewer or `limit` is None.

        Raises:
            DataError: `limit` is below 1.
        """
        if limit is None:
            return self
        if limit < 1:
            raise DataError(f"cannot take the first {limit} of {self.name} ({self.split}); take 1 or more.")
        return replace(self, images=self.images[:limit], labels=self.labels[:limit])

    def sample(self, count: int | None, seed: int) -> "ImageSet":
        """`count` examples, chosen at random by `seed`, in the set's order; all for None.

        Raises:
            DataError: there are fewer.
        """
        if count is None:
            return self
        if count > len(self):
            raise DataError(f"{self.name} has {count_of(len(self), 'example')} to train on, not {count:,}.")
        generator = torch.Generator().manual_seed(derive_seed(seed, "examples"))
        chosen = torch.randperm(len(self), generator=generator)[:count].sort().values.to(self.labels.device)
        return _select(self, chosen, self.split)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with its tensors on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the pixels' bytes followed by the labels' bytes."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def example_fingerprint(self, index: int) -> str:
        """SHA-256, in hexadecimal, of one example's pixels followed by the eight bytes of its label."""
        return self._slice(index).fingerprint()

    def _slice(self, index: int) -> "ImageSet":
        return replace(self, images=self.images[index : index + 1], labels=self.labels[index : index + 1])


def split_validation(train: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split `count` random examples off `train`: (the rest, the validation set).

    The choice depends on `seed` and the size of the set only. Both parts keep the set's order.

    Raises:
        DataError: `count` would leave one of the two parts empty.
    """
    if not 1 <= count < len(train):
        raise DataError(
            f"cannot hold {count} validation examples out of the {len(train)} of {train.name} "
            f"({train.split}); choose 1 to {len(train) - 1}."
        )
    generator = torch.Generator().manual_seed(derive_seed(seed, "validation"))
    order = torch.randperm(len(train), generator=generator).to(train.labels.device)
    rest, held_out = order[count:].sort().values, order[:count].sort().values
    return _select(train, rest, train.split), _select(train, held_out, "validation")


def pixel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 (N,C,H,W) images, in units of [0, 1].

    The sums are exact integers, so the result depends neither on the device nor on the order of
    the images. They are added up in chunks, to save memory. The deviation is that of the population, and at
    least 1/255.
    """
    channels = images.shape[1]
    totals = torch.zeros(channels, dtype=torch.int64, device=images.device)
    squares = torch.zeros_like(totals)
    for start in range(0, len(images), _CHUNK):
        levels = images[start : start + _CHUNK].long()
        totals += levels.sum((0, 2, 3))
        squares += levels.square().sum((0, 2, 3))
    count = images.numel() // channels
    moments = list(zip(totals.tolist(), squares.tolist(), strict=True))
    mean = tuple(total / count / 255.0 for total, _ in moments)
    # n Σx² − (Σx)² in Python's unbounded integers is exact, so it is never negative.
    std = tuple((count * square - total * total) ** 0.5 / count / 255.0 for total, square in moments)
    return mean, tuple(max(value, _STD_FLOOR) for value in std)


def to_unit(images: Tensor) -> Tensor:
    """uint8 levels 0..255 as float32 pixels in [0, 1], each the float nearest to level/255.

    The memory format is kept.
    """
    # The divisor is a tensor on the same device: for a Python number, CUDA would multiply by a
    # rounded 1/255, and a pixel could differ from that on a CPU in its last bit.
    return images.float().div_(torch.full((), 255.0, device=images.device))


def _select(source: ImageSet, index: Tensor, split: str) -> ImageSet:
    return replace(source, split=split, images=source.images[index], labels=source.labels[index])


def _check_shapes(title: str, images: Tensor, labels: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(f"{title}: images must be uint8 (N,C,H,W), not {images.dtype} {tuple(images.shape)}.")
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise DataError(f"{title}: labels must be int64 (N,), not {labels.dtype} {tuple(labels.shape)}.")
    if len(images) != len(labels):
        raise DataError(f"{title}: there are {len(images)} images but {len(labels)} labels.")
    if images.numel() == 0:
        raise DataError(f"{title}: the set is empty, its shape is {tuple(images.shape)}.")


def _check_labels(title: str, labels: Tensor, classes: int) -> None:
    outside = ((labels < 0) | (labels >= classes)).nonzero()
    if len(outside):
        first = int(outside[0])
        raise DataError(f"{title}: label {int(labels[first])} of example {first} is outside the {classes} classes.")
