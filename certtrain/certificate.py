"""Certificates: what is proved about each point, by which method, under which assumptions."""

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from certtrain.bounds.checks import check_evaluation_mode, check_input, check_labels, fitting
from certtrain.bounds.interval import boundable
from certtrain.bounds.methods import up_to
from certtrain.bounds.settings import Settings
from certtrain.epsilon import parse_eps
from certtrain.objective import certified_points, correct_points
from certtrain.precision import tensor_cores

Verdict = Literal["certified", "open", "falsified", "misclassified"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
CLIP = (0.0, 1.0)
# A verdict needs no more than margins above zero, nor bounds where intervals know enough.
SETTINGS = Settings(dense=0, early_stop=True)

ASSUMPTIONS = (
    "real arithmetic: the bounds are computed in float64 and hold up to its rounding; "
    "the rounding of float32 inference is not covered",
    "inputs are pixels in [0, 1]: each box is cut to that range",
)


@dataclass(frozen=True)
class Certificates:
    """One batch's certificates.

    verdicts: for each point, "certified" (correct, and every margin's lower
        bound finite and above zero), "misclassified", or "open".
    margin: (B,) float64, the smallest lower bound of logit[y] − logit[j].
    method: the bound method behind them; assumptions: what they rest on.
    """

    verdicts: tuple[Verdict, ...]
    margin: Tensor
    eps: float
    method: str
    assumptions: tuple[str, ...]

    @property
    def certified(self) -> Tensor:
        """Which points (B,) are certified."""
        return torch.tensor([verdict == "certified" for verdict in self.verdicts])


def certify(model: nn.Module, x: Tensor, labels: Tensor, eps: float, *, method: str = "auto") -> Certificates:
    """Try to prove that no input within `eps` of each of `x` (B, …) changes the class from `labels` (B,).

    `x` are pixels in [0, 1]; the model must be in evaluation mode. `method`
    "auto" is "ibp", the interval bounds; "crown-ibp", "crown" and "alpha-crown" are each dearer, and tighter on most
    networks. Each takes the largest of its own margins and those of the methods before it.
    Raises UnsupportedLayer, MethodError, EpsilonError or DataError.
    """
    return Certifier(model, method).certify(x, labels, eps)


class Certifier:
    """`certify` for many batches of one model, whose float64 copy it makes once."""

    def __init__(self, model: nn.Module, method: str = "auto") -> None:
        self.method = "ibp" if method == "auto" else method
        self.bound = up_to(self.method)
        self.model = model
        exact = copy.deepcopy(model).double()
        # Convolutions in float64 lose a tenth of their speed in channels-last memory.
        self.graph = boundable(exact.to(memory_format=torch.contiguous_format))
        check_evaluation_mode(self.graph)

    @torch.no_grad()
    @tensor_cores(False)
    def certify(self, x: Tensor, labels: Tensor, eps: float) -> Certificates:
        """As the function `certify`."""
        check_input(x, CLIP)
        eps = parse_eps(eps)
        with fitting(x):
            logits, bounds = self.model(x), self.bound(self.graph, x.double().contiguous(), eps, CLIP, SETTINGS)
        check_labels(labels, logits.shape)
        with fitting(x):
            margins = bounds.margins(labels)
        correct, proved = correct_points(logits, labels), certified_points(margins, labels)
        verdicts = [_verdict(c, p) for c, p in zip(correct.tolist(), proved.tolist(), strict=True)]
        smallest = margins.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1)
        return Certificates(tuple(verdicts), smallest, eps, self.method, ASSUMPTIONS)


def _verdict(correct: bool, proved: bool) -> Verdict:
    if not correct:
        return "misclassified"
    return "certified" if proved else "open"
