"""Names to choose from, for fields of a preset and for verifications.

The command line lists and checks them, so nothing here takes long to load. The engine's tables have these names as
their keys; `tests/spec/test_choices.py` holds both against each other.
"""

from typing import Literal

Scheme = Literal["ibp", "kaiming", "xavier", "orthogonal"]
"""How weights start."""

Precision = Literal["fp32", "tf32", "bf16"]
"""In which arithmetic a network is trained."""

Compile = Literal["auto", "on", "off"]
"""Whether the training step is compiled."""

MethodName = Literal["auto", "ibp", "crown-ibp", "crown", "alpha-crown", "complete", "milp"]
"""How examples are certified; "auto" is the cascade of all but "milp"."""

PropertyMethodName = Literal["crown-ibp", "complete", "milp"]
"""How a property is decided."""

AttackName = Literal["pgd", "pgd-t", "apgd-ce", "apgd-dlr", "apgd-t", "none"]
"""How examples are attacked; "none" is no attack."""

ArithmeticName = Literal["float32", "tf32", "bf16", "real"]
"""In which arithmetic the network computes."""

NetworkName = Literal["saved", "folded"]
"""Of which network certificates are: as it stands in its file, or with BatchNorm folded as `export` writes it."""

SplitName = Literal["train", "validation", "test"]
"""Which part of a data set."""

DeviceName = Literal["auto", "cpu", "cuda"]
"""Where to compute; "auto" takes a GPU where there is one."""
