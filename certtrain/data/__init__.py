"""Data sets as one uint8 tensor, and seeded batches from it.

Nothing here prints: progress is passed to a callback, an unwritable cache gives a `CacheWarning`, and files that are
left out give a `LeftOutWarning`.
"""

from certtrain.data.batches import Augmentation, Batches, part_of
from certtrain.data.cache import CacheWarning
from certtrain.data.images import ImageSet, pixel_statistics, split_validation, to_unit
from certtrain.data.listing import LeftOutWarning
from certtrain.data.load import NORMALIZATION, load_images
from certtrain.data.request import Progress
from certtrain.data.seeds import derive_seed

__all__ = [
    "NORMALIZATION",
    "Augmentation",
    "Batches",
    "CacheWarning",
    "ImageSet",
    "LeftOutWarning",
    "Progress",
    "derive_seed",
    "load_images",
    "part_of",
    "pixel_statistics",
    "split_validation",
    "to_unit",
]
