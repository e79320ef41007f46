"""A time limit as one value, which is passed to all work that can take long."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Self

DEFAULT_TIMEOUT = 30.0  # seconds for each example in a verification; enough for most, and no night for a few hard ones


def never() -> bool:
    """False: nothing asks for a stop."""
    return False


@dataclass(frozen=True)
class Deadline:
    """The end of a time limit, in seconds on the clock of `time.monotonic`; infinite for none.

    Work checks it between parts that each take well under a second, and stops
    after it: what is not computed by then stays unknown. `stop` is called at every
    check; once it returns True, as after Ctrl-C, the time is up too.
    """

    end: float = math.inf
    stop: Callable[[], bool] = field(default=never, compare=False)

    @classmethod
    def after(cls, seconds: float | None, stop: Callable[[], bool] = never) -> Self:
        """The deadline `seconds` from now; one that is never reached for None."""
        return cls(math.inf if seconds is None else time.monotonic() + seconds, stop)

    def earlier(self, other: Self) -> Self:
        """The earlier of the two. It is up when either asks for a stop."""
        first, last = sorted((self, other), key=lambda deadline: deadline.end)
        if last.stop in (never, first.stop):
            return first
        return replace(first, stop=lambda: first.stop() or last.stop())

    def over(self) -> bool:
        """Whether the time is up."""
        return self.stop() or (self.limited and time.monotonic() >= self.end)

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.end < math.inf

    @property
    def left(self) -> float | None:
        """The seconds that are left, at least 0; None without a limit."""
        return max(self.end - time.monotonic(), 0.0) if self.limited else None


NEVER = Deadline()
