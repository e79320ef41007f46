"""Whether a search uses upper planes: a step with them takes longer, so a trial on some open domains decides."""

from functools import cached_property

import torch

from certtrain.bounds.settings import Settings
from certtrain.branching.bounds import optimised
from certtrain.branching.domains import Domains
from certtrain.branching.hull import Hull, hull_of
from certtrain.branching.problem import Problem

FIRST_TRIAL, TRIALS_APART = 8, 8  # domains before the first trial, and from one trial to the next
TRIED, TRIAL_STEPS = 8, 20  # domains of a trial, and its steps of ascent
PLANE_GAIN = 0.1  # what planes must gain in a trial, as a share of the bounds' distances from zero
MOST_OF_MEMORY = 4  # planes are not taken up where the shares of all open domains take one part in this many


class PlaneTrials:
    """The trials of one search, for its problem and for the same problem in float32, `fast`.

    used: whether all domains of the search have shares.
    """

    def __init__(self, problem: Problem, fast: Problem, settings: Settings) -> None:
        self.problem, self.fast, self.settings = problem, fast, settings
        self.used, self.next = False, FIRST_TRIAL

    @cached_property
    def hull(self) -> Hull | None:
        """That of the problem, which is computed when it is asked for first; None if there is none."""
        if self.problem.hull is None:
            self.problem.hull = hull_of(self.problem.prefix, self.problem.rounding, self.settings)
        self.fast.hull = None if self.problem.hull is None else self.problem.hull.in_float32()
        return self.fast.hull

    @property
    def size(self) -> int:
        """How many shares each domain has."""
        return self.hull.inputs.numel() if self.used and self.hull is not None else 0

    def with_shares(self, domains: Domains) -> Domains:
        """The domains with the shares of chords, unless they have shares or there are no planes."""
        if domains.shares.shape[1] or self.hull is None:
            return domains
        box = self.fast.restricted(domains).records[self.hull.record].box
        assert box is not None  # it is a nonlinear layer
        return domains._replace(shares=self.hull.chords(box))

    def due(self, domains: int) -> bool:
        """Whether it is time for a trial, after so many domains."""
        return not self.used and domains >= self.next

    def trial(self, domains: Domains, waiting: int) -> bool:
        """One trial: whether planes gain enough in some domains, and the shares of all that wait fit the memory."""
        self.next *= TRIALS_APART
        if self.hull is None or waiting * self.hull.bytes > self.settings.memory // MOST_OF_MEMORY:
            return False
        few, deadline = domains.take(slice(-TRIED, None)), self.settings.deadline
        both = (optimised(self.fast, each, TRIAL_STEPS, deadline) for each in (few, self.with_shares(few)))
        without, found = (torch.maximum(each.bounds, few.bounds.to(each.bounds)) for each in both)
        return float(((found - without) / few.bounds.abs()).clamp(max=1.0).mean()) > PLANE_GAIN
