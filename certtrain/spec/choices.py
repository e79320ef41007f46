"""The names that a preset field or an option of the command line can have.

This module must load fast, since the command line lists the names. They are also the keys of tables elsewhere;
`tests/spec/test_choices.py` checks that both agree.
"""

from typing import Literal

Scheme = Literal["ibp", "kaiming", "xavier", "orthogonal"]
"""The initialisation of the weights."""

Precision = Literal["fp32", "tf32", "bf16"]
"""The arithmetic of training steps."""

Compile = Literal["auto", "on", "off"]
"""Whether the training step is compiled."""

BatchNormStatistics = Literal["clean", "centre"]
"""What gives BatchNorm its statistics in training: the clean batch, or the centres of the boxes."""

MethodName = Literal["auto", "ibp", "crown-ibp", "crown", "alpha-crown", "complete", "milp"]
"""How examples are certified; "auto" tries all methods but "milp", fast ones first."""

PropertyMethodName = Literal["crown-ibp", "complete", "milp"]
"""How a property is decided."""

AttackName = Literal["pgd", "pgd-t", "apgd-ce", "apgd-dlr", "apgd-t", "strong", "none"]
"""How examples are attacked; "strong" is the union of several attacks, "none" is no attack."""

ArithmeticName = Literal["float32", "tf32", "bf16", "real"]
"""The arithmetic of the network that is certified."""

NetworkName = Literal["saved", "folded"]
"""Which network is certified: as saved in its file, or with BatchNorm folded, as `certtrain export` writes it."""

SplitName = Literal["train", "validation", "test"]
"""Which part of a data set."""

DatasetName = Literal["digits", "mnist", "fashion-mnist", "cifar10", "tinyimagenet", "folder"]
"""The data sets; "folder" is a folder of your own images."""

Layout = Literal["chw", "hwc", "cwh"]
"""The order of an image's values: channel by channel; pixel by pixel; or channel by channel, each in columns."""

DeviceName = Literal["auto", "cpu", "cuda"]
"""Where to compute; "auto" takes a GPU if there is one."""
