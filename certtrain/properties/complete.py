"""Branch and bound for the cases of a property that have the same box."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from certtrain.bounds.box import Box, box_between
from certtrain.bounds.linear import Prefix
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.branching.alternation import BranchingSearch, Outcome, first_outcome
from certtrain.branching.boxes import crown_prefix, refined_prefix
from certtrain.branching.input_domains import InputProblem
from certtrain.branching.inputs import MORE_INPUTS, InputSearch
from certtrain.branching.problem import Problem
from certtrain.branching.search import BranchAndBound, by_few_domains
from certtrain.branching.tree import Tree
from certtrain.properties.cases import REAL, Case
from certtrain.properties.exact import Answers, PreparedNetwork
from certtrain.runtime.deadline import NEVER, Deadline


def decide_completely(prepared: PreparedNetwork, cases: Sequence[Case], deadline: Deadline) -> Answers:
    """Proofs of the cases, which have one box, or a counterexample; what is not decided by the deadline stays open.

    Few inputs are split, for all cases at once. In turn with that, and alone for more inputs, rectifiers are split, for
    one case after the other.
    """
    work = CasesOfOneBox(prepared, cases, deadline)
    outcome = first_outcome(list(work.searches()), deadline)
    bounds = [outcome.bound] * len(cases) if outcome.proved else work.bounds
    return Answers(bounds, work.counterexample)


class CasesOfOneBox:
    """The open cases of one box, what is proved of them, and a counterexample that any search has found."""

    def __init__(self, prepared: PreparedNetwork, cases: Sequence[Case], deadline: Deadline) -> None:
        self.prepared, self.cases = prepared, cases
        self.settings = replace(VERDICT_SETTINGS, rounding=REAL, memory=prepared.memory, deadline=deadline)
        self.bounds = [-torch.inf] * len(cases)
        self.counterexample: Tensor | None = None
        self.lower, self.upper = (end.view(1, *prepared.shape) for end in (cases[0].lower, cases[0].upper))

    @property
    def box(self) -> Box:
        """The box of all cases."""
        return box_between(self.lower, self.upper)

    @cached_property
    def crown(self) -> Prefix:
        """The records of all layers over the box, by CROWN."""
        return crown_prefix(self.prepared.graph, self.box, self.settings)

    @cached_property
    def refined(self) -> Prefix:
        """The same with tighter boxes, which take much longer; the splits of rectifiers start from them."""
        return refined_prefix(self.prepared.graph, self.box, self.crown, self.settings)

    def problem(self, number: int, prefix: Prefix) -> Problem:
        """One case, over the boxes of a prefix."""
        return Problem(prefix, self.cases[number].functions, self.cases[number].offsets, REAL)

    def search(self, number: int) -> BranchAndBound:
        """Splits of rectifiers for one case."""
        problem = self.problem(number, self.refined)
        return BranchAndBound(problem, self.settings, lambda inputs: self.falsified(inputs, [number]))

    def searches(self) -> Iterator[Callable[[], BranchingSearch]]:
        """The searches that decide all cases."""
        functions = [(case.functions, case.offsets) for case in self.cases]
        problem = InputProblem.of(self.prepared.graph, self.lower, self.upper, functions, REAL)
        if problem.free_inputs <= MORE_INPUTS:
            yield lambda: InputSearch(problem, self.settings, self.falsified)
        yield lambda: OneAfterTheOther(self)

    @torch.no_grad()
    def falsified(self, inputs: Tensor, numbers: Sequence[int] | None = None) -> bool:
        """Whether one of the inputs (D, …) is a counterexample of one of the cases, or of those with these numbers."""
        outputs = self.prepared.exact(inputs.double())  # a search may be in float32
        for number in range(len(self.cases)) if numbers is None else numbers:
            case = self.cases[number]
            for row in case.violated_by(outputs).nonzero().flatten().tolist():
                self.counterexample = self.prepared.confirmed(case, inputs[row].flatten().double())
                if self.counterexample is not None:
                    return True
        return False


class OneAfterTheOther:
    """Splits of rectifiers: a search for each case in turn. It is a `BranchingSearch` of all cases.

    What CROWN's boxes and optimised slopes are enough for is proved first, before any box is tightened for the others.
    """

    def __init__(self, work: CasesOfOneBox) -> None:
        self.work, self.outcome = work, Outcome(torch.inf, Tree(), 1, 0, False)
        self.search: BranchAndBound | None = None
        self.unbounded, self.left = list(range(len(work.cases))), list[int]()

    @property
    def ended(self) -> bool:
        """As `BranchingSearch.ended`."""
        return not (self.unbounded or self.left) or self.outcome.falsified

    def run(self, until: Deadline = NEVER) -> Outcome:
        """As `BranchingSearch.run`; a case that cannot be proved does not keep the next ones from their turn."""
        while not (self.ended or until.over() or self.work.settings.deadline.over()):
            if self.unbounded:
                self._bound(self.unbounded.pop(0))
            else:
                self._split(self.left[0], until)
        least = min(self.work.bounds)
        proved = least > 0
        return replace(self.outcome, bound=least if proved else torch.inf, open=0 if proved else 1)

    def _bound(self, number: int) -> None:
        """Prove one case by CROWN's boxes and few domains, if possible."""
        work = self.work
        problem = work.problem(number, work.crown)
        self.outcome = by_few_domains(problem, work.settings, lambda inputs: work.falsified(inputs, [number]))
        if self.outcome.proved:
            self.work.bounds[number] = self.outcome.bound
        else:
            self.left.append(number)

    def _split(self, number: int, until: Deadline) -> None:
        self.search = self.search or self.work.search(number)
        self.outcome = self.search.run(until)
        if self.outcome.proved:
            self.work.bounds[number] = self.outcome.bound
        if self.search.ended:
            self.search = None
            self.left.pop(0)
