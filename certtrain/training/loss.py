"""The training loss of one batch: an objective's loss, the natural loss, and the warm-up's regularisers.

The mix is the same for every objective. The objectives are in `objectives/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from certtrain.bounds.box import PIXEL_RANGE
from certtrain.bounds.checks import check_dtype, check_input, check_labels, shape_errors_as_data_errors
from certtrain.bounds.contract import logits_shape
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import statistics_by_mode, update_running_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace
from certtrain.deprecation import renamed_argument
from certtrain.errors import EpsilonError, MethodError
from certtrain.spec.epsilon import parse_eps
from certtrain.spec.objective import AnyObjective
from certtrain.spec.preset import explain
from certtrain.spec.schedule import warmup_weight
from certtrain.training.compilation import as_it_is
from certtrain.training.objectives import objective_of
from certtrain.training.objectives.base import RobustLosses
from certtrain.training.passes import Clean, Passes, SignedAscent
from certtrain.training.regularizers import regularizer_losses, sums_of, width_of
from certtrain.verdicts import certified_examples, correct_examples

SMALLEST_EPS = 1e-6  # the regularisers' ε while that of the schedule is zero
_FIELDS: TypeAdapter[Any] = TypeAdapter(AnyObjective)


@dataclass(frozen=True)
class LossTerms:
    """Scalar tensors: `total` is what training minimises, the others are its terms.

    robust: the objective's loss. skipped_layers: the number of layers without a balance ratio. Without regularisers
    the last three scalars are zero. margins: (B, K), the lower bounds over the whole box; None if the objective has
    none. measures: means of what else the objective measures, by name.
    """

    total: Tensor
    robust: Tensor
    natural: Tensor
    tightness: Tensor
    relu_balance: Tensor
    skipped_layers: Tensor
    margins: Tensor | None
    measures: Mapping[str, Tensor]


@dataclass(frozen=True)
class Regularizers:
    """The weight of each regulariser in this step, and their tolerance τ."""

    tightness: float | Tensor
    relu_balance: float | Tensor
    tolerance: float


@renamed_argument("method", "objective")
def objective_terms(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    eps_max: float,
    weight: float = 0.5,
    tolerance: float = 0.5,
    objective: str | Mapping[str, Any] = "ibp",
    seed: int = 0,
) -> LossTerms:
    """The loss terms of one training-mode pass of `x` (B, …) with `labels` (B,) at radius `eps`.

    total = robust + λ (1 − ε/ε_max) (tightness + balance), with λ the `weight`
    (Shi et al. 2021, eq. 12). While ε is zero, the natural cross-entropy replaces
    the robust one. `objective` is a name, or the fields of a preset's `[objective]`
    ({"name": "mtl-ibp", "alpha": 0.1}); `seed` draws the starts of its attack. Raises
    as `propagate`, and MethodError for an objective that is not valid.
    """
    fields = _fields_of(objective)
    check_input(x, PIXEL_RANGE)
    eps, eps_max, graph = parse_eps(eps), parse_eps(eps_max), checked_graph(model, tuple(x.shape[1:]))
    check_dtype(model, x)
    if not 0 < eps_max >= eps:
        raise EpsilonError(f"eps_max is {eps_max:g}; it must be above zero and at least ε, which is {eps:g}")
    made, warm = objective_of(fields, graph), warmup_weight(eps, eps_max=eps_max)
    with shape_errors_as_data_errors(x):
        check_labels(labels, tuple(logits_shape(graph, x.shape)))
        clean = Clean(*plain_pass(graph, x, statistics=statistics_by_mode)) if made.attacks else None
        fading = warm if made.fades and warm > 0 else None
        passes = Passes(graph, x, labels, max(eps, SMALLEST_EPS), source=statistics_by_mode, clean=clean, warmup=fading)
        found = made.prepare(passes, SignedAscent(seed, len(x), slice(0, len(x)), as_it_is))
        robust = made.robust(passes, found)
    assert passes.clean is not None
    update_running_statistics(passes.statistics)
    regularizers = Regularizers(weight * warm, weight * warm, tolerance)
    share = float(eps > 0) * (1 - fields.share_at(eps, eps_max))
    return loss_terms(passes.clean.logits, robust, labels, robust_share=share, regularizers=regularizers)


def _fields_of(objective: str | Mapping[str, Any]) -> Any:
    try:
        return _FIELDS.validate_python({"name": objective} if isinstance(objective, str) else dict(objective))
    except ValidationError as error:
        raise MethodError(f"objective {objective!r} is not valid:\n{explain(error)}") from error


def loss_terms(
    logits: Tensor,
    robust: RobustLosses,
    labels: Tensor,
    *,
    robust_share: float | Tensor,
    regularizers: Regularizers | None,
    all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> LossTerms:
    """The loss terms from the clean logits (B, K) and an objective's results; `robust_share` is the objective's share.

    If these are of this process's part of a batch, `all_reduce` adds the sums of
    the other parts for the regularisers, which depend on the whole batch; all other
    terms are of this part.
    """
    sums = all_reduce(trace_sums(robust.traces)) if regularizers is not None and has_relus(robust.traces) else None
    return combined_terms(logits, robust, sums, labels, robust_share=robust_share, regularizers=regularizers)


def has_relus(traces: tuple[BoundTrace, ...]) -> bool:
    """Whether the regularisers have a layer to depend on."""
    return any(trace.relu_boxes for trace in traces)


def trace_sums(traces: tuple[BoundTrace, ...]) -> Tensor:
    """What the regularisers need, (L + 1, 9): `width_of` of the network's input, and `sums_of` of L ReLU inputs."""
    boxes = [box for trace in traces for _, box in trace.relu_boxes]
    return torch.cat([width_of(traces[0].input).unsqueeze(0), sums_of(boxes)])


def combined_terms(
    logits: Tensor,
    robust: RobustLosses,
    sums: Tensor | None,
    labels: Tensor,
    *,
    robust_share: float | Tensor,
    regularizers: Regularizers | None,
) -> LossTerms:
    """The loss terms from the clean logits (B, K), the objective's results and, for the regularisers, `trace_sums`."""
    natural, objective = F.cross_entropy(logits, labels), robust.losses.mean()
    total = torch.lerp(natural.to(objective), objective, robust_share)
    tightness = balance = skipped = torch.zeros_like(total)
    if regularizers is not None and sums is not None:
        tightness, balance, skipped = regularizer_losses(sums, regularizers.tolerance)
        total = total + regularizers.tightness * tightness + regularizers.relu_balance * balance
    measured = {name: values.detach().mean() for name, values in robust.measures.items()}
    return LossTerms(total, objective, natural, tightness, balance, skipped, robust.margins, measured)


def measures(terms: LossTerms, clean: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
    """The measures of a batch, scalars by name, from its loss terms and its clean logits (B, K), None without them.

    The measures are named only here: sums, metrics and views use these names.
    """
    with torch.no_grad():
        measured = {
            "loss": terms.total,
            "robust_loss": terms.robust,
            "tightness_loss": terms.tightness,
            "relu_balance_loss": terms.relu_balance,
            "layers_without_balance": terms.skipped_layers.to(terms.total.dtype),
            **terms.measures,
        }
        if terms.margins is not None:
            measured["certified_accuracy"] = certified_examples(terms.margins, labels).float().mean()
        if clean is not None:
            natural = correct_examples(clean, labels).float().mean()
            measured |= {"natural_loss": terms.natural, "natural_accuracy": natural}
        return {name: value.detach() for name, value in measured.items()}
