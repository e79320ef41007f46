"""A command line as a test gives it, and what it leaves behind."""

from collections.abc import Callable
from typing import NamedTuple

TINY = ["--set", "model={name='mlp', hidden=[8]}", "--set", "eps={max=0.02, start=1, length=1}"]
QUICK = ["train", "--preset", "digits", "--epochs", "2", *TINY]


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]
