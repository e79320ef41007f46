"""A time limit as one value, which is passed to all work that can take long."""

import math
import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Deadline:
    """The end of a time limit, in seconds on the clock of `time.monotonic`; infinite for none.

    Work checks it between parts that each take well under a second, and stops
    after it: what is not computed by then stays unknown.
    """

    end: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Self:
        """The deadline `seconds` from now; one that is never reached for None."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    def earlier(self, other: Self) -> Self:
        """The earlier of the two."""
        return min(self, other, key=lambda deadline: deadline.end)

    def over(self) -> bool:
        """Whether the time is up."""
        return self.limited and time.monotonic() >= self.end

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self.end < math.inf

    @property
    def left(self) -> float | None:
        """The seconds that are left, at least 0; None without a limit."""
        return max(self.end - time.monotonic(), 0.0) if self.limited else None


NEVER = Deadline()
