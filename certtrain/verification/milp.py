"""Mixed-integer programming as a step of the cascade: a second opinion about networks without rounding."""

import copy
import math

import torch
from torch import Tensor, nn

from certtrain.bounds.box import box_ends
from certtrain.bounds.guard import check_margins
from certtrain.errors import MethodError
from certtrain.properties.cases import robustness
from certtrain.properties.milp import TOLERANCE, minimum
from certtrain.runtime.deadline import Deadline
from certtrain.verdicts import Verdict
from certtrain.verification.steps import ExampleBatch, StepResult, correctly_classified, misclassified_in_batch_of_one

MILP = "milp"
SECOND_OPINION = "a solver in float64 with tolerances, of which 1e-5 is subtracted: a second opinion, not a proof"


class MilpStep:
    """SciPy's HiGHS, one example and one class after the other."""

    name, assumptions = MILP, (SECOND_OPINION,)

    def __init__(self, model: nn.Module, arithmetic: str) -> None:
        """Raises MethodError for an arithmetic that rounds."""
        if arithmetic != "real":
            raise MethodError(
                f"milp solves the network without rounding, so its answers do not hold for {arithmetic}; "
                "choose arithmetic real, or method complete"
            )
        self.model, self.arithmetic = model, arithmetic
        self.exact: nn.Module | None = None

    def __call__(self, batch: ExampleBatch) -> StepResult:
        """As `VerificationStep`."""
        found, cut = list[tuple[Verdict, float, Tensor]](), list[bool]()
        for row in range(len(batch.labels)):
            deadline = batch.deadline()
            found.append(self._solved(batch, row, deadline))
            cut.append(deadline.over() and not batch.budget.over())
        verdicts, margins, points = zip(*found, strict=True)
        bounds = torch.tensor(margins, dtype=torch.float64)
        return StepResult(verdicts, bounds, torch.cat(points), complete=not batch.budget.over(), cut=cut)

    def _solved(self, batch: ExampleBatch, row: int, deadline: Deadline) -> tuple[Verdict, float, Tensor]:
        x, label = batch.x[row : row + 1], batch.labels[row : row + 1]
        if not bool(correctly_classified(self.model, x, label, self.arithmetic)):
            return "misclassified", math.nan, x
        exact, margins = self._exact(), list[float]()
        cases = robustness(x[0].cpu(), int(label), batch.eps, exact(x.cpu().double()).shape[1]).cases
        for case in cases:
            if deadline.over():
                return "open", math.nan, x
            found = minimum(exact, x.shape[1:], case, deadline=deadline)
            margins.append(found.proved)
            if (
                found.point is not None
                and (input_ := self._counterexample(found.point, x, label, batch.eps)) is not None
            ):
                return "falsified", math.nan, input_
            if not 0 < found.proved < math.inf:
                return "open", math.nan, x
        proved = torch.tensor([[min(margins)]], dtype=torch.float64)
        with torch.no_grad():
            check_margins(exact, x.cpu().double(), label.cpu(), batch.eps, proved, tolerance=TOLERANCE)
        return "certified", min(margins), x

    def _counterexample(self, point: Tensor, x: Tensor, label: Tensor, eps: float) -> Tensor | None:
        """The solver's input (N,), rounded into the box of `x` (1, …), if inference misclassifies it; else None."""
        lower, upper = box_ends(x, eps)
        near = point.to(x).view_as(x).clamp(lower, upper)
        return near if misclassified_in_batch_of_one(self.model, near[0], label[0], self.arithmetic) else None

    def _exact(self) -> nn.Module:
        if self.exact is None:
            self.exact = copy.deepcopy(self.model).double().cpu()
        return self.exact
