"""The lines of a certificate file: a header, a record for each example, and a seal. Format 1.

Every line is a JSON object. The header describes the task. A record has the result
for one example; a later record of the same example replaces an earlier one, which
must be open. The last line, the seal, has the counts of the verdicts and the hash
of all lines before it. A file without a seal is not finished, and `verify` can
continue it.
"""

import base64
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from certtrain.bounds.activations.gated import GELU_STATEMENT
from certtrain.bounds.rounding import EXACT_NETWORK
from certtrain.bounds.settings import DEFAULT, Settings
from certtrain.errors import EpsilonError
from certtrain.network.reading import FileReading
from certtrain.spec.choices import NetworkName, SplitName
from certtrain.spec.epsilon import parse_eps
from certtrain.verdicts import Verdict
from certtrain.verification.complete import COMPLETE
from certtrain.verification.milp import SECOND_OPINION
from certtrain.verification.steps import INFERENCE

# Assumptions in the words of earlier versions, which say the same as those of this version.
REWORDED = {
    "arithmetic real: the network without any rounding, which none that runs is": EXACT_NETWORK,
    "GELU, as x·Φ(x), is within 16 units in the last place of x, its input: below zero that is no relative error": (
        GELU_STATEMENT
    ),
    "a solver in float64 with tolerances, 1e-5 of which are taken off: a second opinion and no proof": SECOND_OPINION,
}

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Name = Annotated[str, Field(max_length=1000)]
Assumption = Annotated[Name, AfterValidator(lambda text: REWORDED.get(text, text))]
MOST_STEPS = 100_000
MOST_INT32 = 2**31 - 1
Size = Annotated[int, Field(ge=0, le=MOST_INT32)]


class Line(BaseModel):
    """The base of all lines: no field may be unknown, missing, of another type, NaN or infinite."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ModelHashes(Line):
    """SHA-256 of the model's file, of its tensors, and of the architecture in its header."""

    file: Digest
    tensors: Digest
    architecture: Digest


class Data(Line):
    """The examples: the data set's name, its split, how many of its first examples, and their `fingerprint`."""

    name: Name
    split: SplitName
    examples: int = Field(ge=1)
    sha256: Digest


class EpsRecord(Line):
    """ε as text, such as 8/255, and as the number used in computations."""

    text: Name
    value: float

    @model_validator(mode="after")
    def _same(self) -> Self:
        try:
            same = parse_eps(self.text) == self.value
        except EpsilonError as error:
            raise ValueError(str(error)) from error
        if not same:
            raise ValueError(f"text {self.text!r} and value {self.value!r} are two radii")
        return self


MOST_RATE = 1e6  # of an optimisation; more is no rate that float32 can compute with


class BoundSettings(Line):
    """The settings that a margin depends on; `iterations` is at most `MOST_STEPS`, so that a check ends."""

    dense: Size
    iterations: int = Field(ge=0, le=MOST_STEPS)
    learning_rate: float = Field(gt=0, le=MOST_RATE)
    decay: float = Field(gt=0, le=1)
    neurons: Size
    early_stop: bool
    domains: int = Field(ge=1, le=MOST_INT32)

    def settings(self, memory: int = DEFAULT.memory) -> Settings:
        """The settings for recomputation, with `memory` bytes."""
        return Settings(**self.model_dump(), memory=memory)


class Header(Line):
    """The task of the file: everything that the results depend on."""

    kind: Literal["header"] = "header"
    format: Literal[1] = 1
    model: ModelHashes
    network: NetworkName
    data: Data
    eps: EpsRecord
    inputs: tuple[float, float]
    method: Name
    bounds: BoundSettings
    arithmetic: Name
    assumptions: tuple[Assumption, ...]
    attack: dict[Name, int | float | Name]
    batch_size: int = Field(ge=1)
    versions: dict[Name, Name]
    reading: FileReading | None = None
    """How the file of a network that certtrain did not train is read; left out for certtrain's own."""


class Record(Line):
    """The result for one example: an `ExampleResult`, with the hash of the example. An empty `cut` is left out."""

    kind: Literal["point"] = "point"
    index: Count
    label: Count
    verdict: Verdict
    margin: float | None
    method: Name | None
    tried: dict[Name, Seconds]
    sha256: Digest
    counterexample: str | None
    trees: dict[int, str]
    cut: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.method is None) != (self.verdict == "open"):
            raise ValueError("an example has a method if it is decided, and none while it is open")
        if self.method not in (None, *self.tried):
            raise ValueError(f"{self.method!r} is not among the methods that were tried")
        if (self.verdict == "misclassified") != (self.method == INFERENCE):
            raise ValueError("only inference decides that an example is misclassified")
        if (self.counterexample is not None) != (self.verdict == "falsified"):
            raise ValueError("falsified examples have a counterexample, and no others do")
        if bool(self.trees) != (self.verdict == "certified" and self.method == COMPLETE):
            raise ValueError(f"examples certified by {COMPLETE!r} have trees, and no others do")
        if self.cut and (self.verdict != "open" or not set(self.cut) <= self.tried.keys()):
            raise ValueError("only steps that were tried on an open example ran out of its time")
        if self.verdict == "certified" and not (self.margin or 0) > 0:
            raise ValueError("a certified example has a margin above zero")
        return self


def continues(earlier: Record, later: Record) -> bool:
    """Whether a later record of the same example may follow an earlier one.

    The earlier one is open. Its steps stay as they are; only those that ran out of time may have been tried again.
    """
    kept = {name: seconds for name, seconds in earlier.tried.items() if name not in earlier.cut}
    more = later.tried != earlier.tried and earlier.tried.keys() <= later.tried.keys()
    return earlier.verdict == "open" and more and kept.items() <= later.tried.items()


class Seal(Line):
    """How many examples have each verdict, and the SHA-256 of all lines before, including line ends."""

    kind: Literal["seal"] = "seal"
    counts: dict[Verdict, Count]
    sha256: Digest


def encode(pixels: Tensor) -> str:
    """Pixels (C, H, W) as Base64 of their float32 numbers, in little-endian order."""
    return base64.b64encode(pixels.float().cpu().contiguous().numpy().astype("<f4").tobytes()).decode()


def decode(text: str, shape: tuple[int, ...]) -> Tensor:
    """Pixels of that shape (C, H, W) from what `encode` wrote. Raises ValueError."""
    data = base64.b64decode(text, validate=True)
    if len(data) != 4 * torch.Size(shape).numel():
        raise ValueError(f"it holds {len(data)} bytes, not four for each of {torch.Size(shape).numel()} numbers")
    return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape)


def differences(recorded: Header, wanted: Header) -> list[str]:
    """The differences of two headers, as phrases."""
    names = {
        "model": "the model",
        "network": "the network (saved or folded)",
        "data": "the data",
        "eps": "ε",
        "inputs": "the range of inputs",
        "method": "the method",
        "bounds": "the settings of the bounds",
        "arithmetic": "the arithmetic",
        "assumptions": "the assumptions",
        "attack": "the attack",
        "batch_size": "the batch size",
        "versions": "the versions of certtrain and torch",
        "reading": "how the network's file is read",
    }
    before, now = recorded.model_dump(), wanted.model_dump()
    return [_difference(words, before[name], now[name]) for name, words in names.items() if before[name] != now[name]]


def _difference(words: str, before: Any, now: Any) -> str:
    """One difference, with both values; without them for the assumptions."""
    if isinstance(before, dict) and isinstance(now, dict):
        fields = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        pairs = [f"{name} {before.get(name)} in the file, {now.get(name)} here" for name in fields]
        return f"{words} ({'; '.join(pairs)})"
    return words if isinstance(before, tuple) else f"{words} ({before} in the file, {now} here)"
