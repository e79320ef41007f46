"""What a user may choose about how bounds are computed."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from certtrain.errors import MethodError
from certtrain.runtime.deadline import NEVER, Deadline

if TYPE_CHECKING:
    from certtrain.bounds.rounding import Rounding


@dataclass(frozen=True)
class Settings:
    """How a bound method computes.

    rounding: the arithmetic whose rounding the bounds must hold for, this program's own included; None for none.
    memory: bytes that the linear bounds of one step back may take, besides the
        network and its boxes; more functions or examples than that are taken
        one part after the other. One function of one example is never parted.
    dense: CROWN bounds all inputs of a nonlinear layer that has at most this
        many, as it is written; of a larger one only the unstable ones, which is
        much faster, and tighter where it differs.
    iterations: steps of the search for the slopes of α-CROWN.
    learning_rate, decay: the first step's length in α ∈ [0, 1], and its factor from step to step.
    neurons: α-CROWN also searches slopes for the bounds of a layer's own
        inputs, one set for each bound, where an example has at most this many
        inputs whose sign is open there; 0 leaves it to CROWN's bounds there.
    early_stop: α-CROWN leaves a margin once it is above zero, and an example
        once all of them are. Verdicts stay the same, margins are less tight.
    domains: complete verification leaves an example open after so many domains.
    deadline: until when all this may take. Linear bounds that are not computed by then are minus infinity, and boxes
        stay as wide as they are.
    """

    rounding: "Rounding | None" = None
    memory: int = 2**30
    dense: int = 1024
    iterations: int = 50
    learning_rate: float = 0.1
    decay: float = 0.98
    neurons: int = 256
    early_stop: bool = False
    domains: int = 100_000
    deadline: Deadline = NEVER

    def __post_init__(self) -> None:
        for name, least in (("memory", 1), ("dense", 0), ("iterations", 0), ("neurons", 0), ("domains", 1)):
            value = vars(self)[name]
            if value < least:
                raise MethodError(f"{name} is {value}; it must be at least {least}")
        if not (self.learning_rate > 0 and 0 < self.decay <= 1):
            raise MethodError(
                f"learning_rate {self.learning_rate:g} must be above 0, and decay {self.decay:g} in (0, 1]"
            )

    def deciding(self) -> dict[str, Any]:
        """What decides a bound that is computed: all but `rounding`, `memory`, which decides none, and `deadline`."""
        values = asdict(replace(self, rounding=None))
        return {name: value for name, value in values.items() if name not in ("memory", "rounding", "deadline")}


DEFAULT = Settings()
# A verdict needs no more than margins above zero, nor CROWN's bounds where intervals know the sign.
VERDICTS_ALONE = Settings(dense=0, early_stop=True)
