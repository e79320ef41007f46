"""The settings of bound methods that a user may choose."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from certtrain.errors import MethodError
from certtrain.runtime.deadline import NEVER, Deadline

if TYPE_CHECKING:
    from certtrain.bounds.rounding import Rounding


OnDomains = Callable[[int, int, float], None]
"""Called with the number of closed and of open domains of a search, and the least bound of the open ones."""


def ignore_domains(closed: int, opened: int, bound: float) -> None:
    """For searches that nobody watches."""


@dataclass(frozen=True)
class Settings:
    """How a bound method computes.

    rounding: the arithmetic whose rounding the bounds include, besides this program's own; None for no rounding.
    memory: bytes that one backsubstitution may take, besides the network, its
        boxes and, in complete verification, 256 MiB of neurons' linear bounds.
        More functions or examples than fit are computed in parts. One function
        of one example is never split.
    dense: CROWN bounds all neurons of a nonlinear layer that has at most this
        many, as in the paper. In a larger layer it bounds only those that are
        unstable by intervals, which is much cheaper, and tighter where it differs.
    iterations: optimisation steps for the slopes of α-CROWN.
    learning_rate, decay: the length of the first step in α ∈ [0, 1], and its factor from step to step.
    neurons: α-CROWN also optimises slopes for the bounds at a layer's input, one
        set for each bound, where an example has at most this many unstable
        neurons in the layer. With 0 it uses CROWN's bounds there.
    early_stop: α-CROWN stops for a margin that is above zero, and for an example
        whose margins all are. Verdicts stay the same; margins are less tight.
    domains: complete verification leaves an example open after this many domains.
    deadline: when to stop. Linear bounds that are not computed by then are minus infinity, and boxes are not tightened
        further.
    on_domains: called after each step of a search.
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
    on_domains: OnDomains = field(default=ignore_domains, compare=False)

    def __post_init__(self) -> None:
        for name, least in (("memory", 1), ("dense", 0), ("iterations", 0), ("neurons", 0), ("domains", 1)):
            value = vars(self)[name]
            if value < least:
                raise MethodError(f"{name} is {value}; it must be at least {least}")
        if not (self.learning_rate > 0 and 0 < self.decay <= 1):
            raise MethodError(
                f"learning_rate {self.learning_rate:g} must be above 0, and decay {self.decay:g} in (0, 1]"
            )

    def decisive_fields(self) -> dict[str, Any]:
        """The settings that a computed bound depends on, besides `rounding`: all but those of `UNDECISIVE`."""
        values = asdict(replace(self, rounding=None, deadline=NEVER, on_domains=ignore_domains))
        return {name: value for name, value in values.items() if name not in UNDECISIVE}


UNDECISIVE = ("memory", "rounding", "deadline", "on_domains")
DEFAULT = Settings()
# A verdict only needs margins above zero, and no CROWN bounds of neurons that are stable by intervals.
VERDICT_SETTINGS = Settings(dense=0, early_stop=True)
