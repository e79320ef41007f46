"""The 1,797 handwritten digits of 8x8 pixels that ship with certtrain.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licence CC BY 4.0. This is the test part of
that set, as scikit-learn hands it out; its 17 grey levels are stretched to 0..255.
`benchmarks/make_digits.py` makes the file.
"""

from importlib import resources

from safetensors.torch import load

from certtrain.data.images import ImageSet
from certtrain.data.request import Request

# The first four fifths, as is common with this copy. The file is ordered by writer, so the last
# fifth was written by other hands than almost all of the first.
_TRAIN_COUNT = 1437


def load_digits(request: Request) -> ImageSet:
    """The first 1,437 digits to train on, the last 360 to test on; needs no folder."""
    tensors = load((resources.files("certtrain.data") / "digits.safetensors").read_bytes())
    part = slice(_TRAIN_COUNT) if request.split == "train" else slice(_TRAIN_COUNT, None)
    names = tuple(str(digit) for digit in range(10))
    return ImageSet("digits", request.split, tensors["images"][part], tensors["labels"][part].long(), names)
