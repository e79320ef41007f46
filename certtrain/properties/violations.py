"""The search for an input that violates a property: projected gradient descent in the box of each case."""

from collections.abc import Sequence

import torch
from torch import Tensor

from certtrain.attack import PGD
from certtrain.attack.criterion import AttackBatch
from certtrain.attack.descent import run_pgd
from certtrain.attack.state import AttackState
from certtrain.bounds.chunks import GRADIENT_WORK, between_checks, inference_work
from certtrain.properties.cases import Case, stacked
from certtrain.properties.exact import PreparedNetwork, dtype_of
from certtrain.runtime.deadline import NEVER, Deadline

AT_A_TIME = 256  # cases in one batch


def search(prepared: PreparedNetwork, cases: Sequence[Case], attack: PGD, deadline: Deadline = NEVER) -> Tensor | None:
    """A confirmed counterexample (N,) in one of the cases, or None if none is found by the deadline.

    Each case is searched from the centre of its box and from `attack.restarts` random starts.
    """
    size = cases_at_a_time(prepared, deadline)
    for first in range(0, len(cases), size):
        found = _search(Violation(prepared, cases[first : first + size], deadline), attack, first)
        if found is not None:
            return found
    return None


@torch.no_grad()
def cases_at_a_time(prepared: PreparedNetwork, deadline: Deadline) -> int:
    """How many cases form a batch, so that they fit the memory and the deadline is checked often enough."""
    x = torch.zeros(1, *prepared.shape, dtype=torch.float64)
    most = max(1, min(AT_A_TIME, prepared.memory // case_bytes(prepared, x)))
    if not deadline.limited:
        return most
    return between_checks(most, GRADIENT_WORK * inference_work(prepared.graph, x), deadline)


def case_bytes(prepared: PreparedNetwork, x: Tensor) -> int:
    """About how many bytes an attack on one case takes: all values of an input like `x` (1, …), and their gradients."""
    return 2 * sum(value.numel() * value.element_size() for value in (x, *prepared.graph.results(x)))


class Violation:
    """The criterion of an attack on several cases at once: an input that is a counterexample in its own case.

    found: the first input that was confirmed, in float64 and in the network's precision; it ends the search.
    The labels of the examples are the numbers of the cases.
    """

    def __init__(self, prepared: PreparedNetwork, cases: Sequence[Case], deadline: Deadline) -> None:
        self.prepared, self.cases, self.deadline = prepared, cases, deadline
        self.stacked, self.dtype = stacked(cases), dtype_of(prepared.network)
        self.found: Tensor | None = None

    def boxes(self) -> AttackBatch:
        """A row for each case, in float64."""
        lower = torch.stack([case.lower for case in self.cases])
        upper = torch.stack([case.upper for case in self.cases])
        numbers = torch.arange(len(self.cases))
        return AttackBatch((lower + upper) / 2, lower, upper, (upper - lower) / 2, numbers, numbers, numbers)

    def outputs(self, x: Tensor) -> Tensor:
        """As `Criterion`, in the network's own precision."""
        outputs: Tensor = self.prepared.network(x.to(self.dtype).view(-1, *self.prepared.shape))
        return outputs

    def loss(self, outputs: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """Minus the largest function of each case. It is at least zero at a counterexample."""
        return -self.stacked.largest(outputs, labels)

    def robust(self, outputs: Tensor, work: AttackBatch) -> Tensor:
        """As `Criterion`; NaN is never a counterexample."""
        return ~(self.stacked.largest(outputs, work.labels) <= 0)

    def confirmed(self, point: Tensor, example: AttackBatch) -> bool:
        """As `Criterion`."""
        if self.over():
            return False
        self.found = self.prepared.confirmed(self.cases[int(example.labels)], point[0])
        return self.found is not None

    def over(self) -> bool:
        """Whether the search may end."""
        return self.found is not None or self.deadline.over()


def _search(criterion: Violation, attack: PGD, first: int) -> Tensor | None:
    batch = criterion.boxes()
    state = AttackState(criterion, batch, batch.rows + first, criterion.over)
    for restart in range(attack.restarts + 1):
        draws = state.random(batch, "property", attack.seed, restart) if restart else 0.5
        run_pgd(state, batch, draws, criterion.loss, attack.steps)
        if criterion.found is not None:
            break
    return criterion.found
