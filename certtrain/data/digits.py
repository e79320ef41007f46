"""The 1,797 handwritten digits of 8x8 pixels that come with certtrain.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0. This is the test part of
that set, as scikit-learn distributes it; its 17 grey levels are scaled to 0..255.
`benchmarks/make_digits.py` makes the file.
"""

from importlib import resources

from safetensors.torch import load

from certtrain.data.images import ImageSet
from certtrain.data.request import Request

# The first four fifths, as is common with this data set. The file is sorted by writer, so the last
# fifth is by other writers than almost all of the training set.
_TRAIN_COUNT = 1437


def load_digits(request: Request) -> ImageSet:
    """The first 1,437 digits for training, or the last 360 for testing; no folder is needed."""
    tensors = load((resources.files("certtrain.data") / "digits.safetensors").read_bytes())
    part = slice(_TRAIN_COUNT) if request.split == "train" else slice(_TRAIN_COUNT, None)
    names = tuple(str(digit) for digit in range(10))
    return ImageSet("digits", request.split, tensors["images"][part], tensors["labels"][part].long(), names)
