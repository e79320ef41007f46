"""The search for an input that violates a property: projected gradient descent in the box of each case."""

from collections.abc import Sequence

import torch
from torch import Tensor

from certtrain.attack import PGD
from certtrain.attack.criterion import Work
from certtrain.attack.descent import run
from certtrain.attack.state import AttackState
from certtrain.bounds.chunks import GRADIENT_WORK, between_checks, inference_work
from certtrain.properties.cases import Case, stacked
from certtrain.properties.exact import Subject, dtype_of
from certtrain.runtime.deadline import NEVER, Deadline

AT_A_TIME = 256  # cases that are searched together


def search(subject: Subject, cases: Sequence[Case], attack: PGD, deadline: Deadline = NEVER) -> Tensor | None:
    """A confirmed input (N,) that reaches one of the cases; None if none is found by the deadline.

    Each case is searched from the centre of its box and from `attack.restarts` random starts.
    """
    size = cases_at_a_time(subject, deadline)
    for first in range(0, len(cases), size):
        found = _search(Violation(subject, cases[first : first + size], deadline), attack, first)
        if found is not None:
            return found
    return None


@torch.no_grad()
def cases_at_a_time(subject: Subject, deadline: Deadline) -> int:
    """How many cases go through the network together, so that the deadline is looked at in time."""
    if not deadline.limited:
        return AT_A_TIME
    work = inference_work(subject.graph, torch.zeros(1, *subject.shape, dtype=torch.float64))
    return between_checks(AT_A_TIME, GRADIENT_WORK * work, deadline)


class Violation:
    """The criterion of an attack on several cases at once: an input that reaches its own case.

    found: the first one that was confirmed, in float64 and in the network's precision; after it no other is looked for.
    The examples' labels are the cases' numbers.
    """

    def __init__(self, subject: Subject, cases: Sequence[Case], deadline: Deadline) -> None:
        self.subject, self.cases, self.deadline = subject, cases, deadline
        self.stacked, self.dtype = stacked(cases), dtype_of(subject.network)
        self.found: Tensor | None = None

    def work(self) -> Work:
        """A row for each case, in float64."""
        lower = torch.stack([case.lower for case in self.cases])
        upper = torch.stack([case.upper for case in self.cases])
        numbers = torch.arange(len(self.cases))
        return Work((lower + upper) / 2, lower, upper, (upper - lower) / 2, numbers, numbers, numbers)

    def outputs(self, x: Tensor) -> Tensor:
        """As `Criterion`, in the network's own precision."""
        outputs: Tensor = self.subject.network(x.to(self.dtype).view(-1, *self.subject.shape))
        return outputs

    def loss(self, outputs: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Minus the largest function of each case: it is not negative where the case is reached."""
        return -self.stacked.largest(outputs, labels)

    def robust(self, outputs: Tensor, work: Work) -> Tensor:
        """As `Criterion`; NaN reaches no case."""
        return ~(self.stacked.largest(outputs, work.labels) <= 0)

    def confirmed(self, point: Tensor, example: Work) -> bool:
        """As `Criterion`."""
        if self.over():
            return False
        self.found = self.subject.confirmed(self.cases[int(example.labels)], point[0])
        return self.found is not None

    def over(self) -> bool:
        """Whether the search may end."""
        return self.found is not None or self.deadline.over()


def _search(criterion: Violation, attack: PGD, first: int) -> Tensor | None:
    work = criterion.work()
    state = AttackState(criterion, work, work.rows + first, criterion.over)
    for restart in range(attack.restarts + 1):
        draws = state.random(work, "property", attack.seed, restart) if restart else 0.5
        run(state, work, draws, criterion.loss, attack.steps)
        if criterion.found is not None:
            break
    return criterion.found
