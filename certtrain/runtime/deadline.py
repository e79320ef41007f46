"""Until when work may take: one value, handed down to all that can take long."""

import math
import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Deadline:
    """A moment by the clock of `time.monotonic`, in seconds; infinity never comes.

    Work checks it between parts that each take well under a second, and
    breaks off once it is over: what is not computed by then is not known.
    """

    end: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Self:
        """So many seconds from now; None for never."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    def earlier(self, other: Self) -> Self:
        """The one of the two that comes first."""
        return min(self, other, key=lambda deadline: deadline.end)

    def over(self) -> bool:
        """Whether it has come."""
        return self.limited and time.monotonic() >= self.end

    @property
    def limited(self) -> bool:
        """Whether it ever comes."""
        return self.end < math.inf

    @property
    def left(self) -> float | None:
        """Seconds until then, 0 once it is over; None where it never comes."""
        return max(self.end - time.monotonic(), 0.0) if self.limited else None


NEVER = Deadline()
