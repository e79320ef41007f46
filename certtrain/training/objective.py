"""The training loss of one batch: natural or certified cross-entropy, and the warm-up's regularisers.

An objective maps a trace to a robust loss, margins and named measures: here `robust_loss` and `measures`.
`combined_terms` adds the natural loss and the regularisers; it is the same for every objective.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.bounds.box import PIXEL_RANGE, input_box
from certtrain.bounds.checks import check_dtype, check_input, check_labels, shape_errors_as_data_errors
from certtrain.bounds.linear import margins as linear_margins
from certtrain.bounds.methods import check_training_method
from certtrain.bounds.statistics import statistics_by_mode, update_running_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.errors import EpsilonError
from certtrain.spec.epsilon import parse_eps
from certtrain.spec.schedule import warmup_weight
from certtrain.training.fusion import fused_cross_entropy
from certtrain.training.regularizers import regularizer_losses, sums_of, width_of
from certtrain.verdicts import certified_examples, correct_examples

SMALLEST_EPS = 1e-6  # the regularisers' ε while that of the schedule is zero


@dataclass(frozen=True)
class LossTerms:
    """Scalar tensors: `total` is what training minimises, the others are its terms.

    `skipped_layers` is the number of layers without a balance ratio. Without
    regularisers the last three scalars are zero. `margins` (B, K) are the
    lower bounds from which the robust loss is computed.
    """

    total: Tensor
    robust: Tensor
    natural: Tensor
    tightness: Tensor
    relu_balance: Tensor
    skipped_layers: Tensor
    margins: Tensor


@dataclass(frozen=True)
class LinearShare:
    """The weight w of linear bounds in the robust loss (interval bounds have 1 − w), and whether loss fusion is on."""

    weight: float | Tensor
    fused: bool


@dataclass(frozen=True)
class Regularizers:
    """The weight of each regulariser in this step, and their tolerance τ."""

    tightness: float | Tensor
    relu_balance: float | Tensor
    tolerance: float


def objective_terms(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    eps_max: float,
    weight: float = 0.5,
    tolerance: float = 0.5,
    method: str = "ibp",
    loss_fusion: bool = True,
) -> LossTerms:
    """The loss terms of one training-mode pass of `x` (B, …) with `labels` (B,) at radius `eps`.

    total = robust + λ (1 − ε/ε_max) (tightness + balance), with λ the `weight`
    (Shi et al. 2021, eq. 12). While ε is zero, the natural cross-entropy replaces
    the robust one. With `method` "crown-ibp", linear bounds have weight 1 − ε/ε_max
    in the robust loss (Zhang et al. 2020, eq. 9): with `loss_fusion` they bound the
    loss itself, else the margins. Raises as `propagate`, and MethodError.
    """
    check_training_method(method)
    check_input(x, PIXEL_RANGE)
    eps, eps_max, graph = parse_eps(eps), parse_eps(eps_max), checked_graph(model, tuple(x.shape[1:]))
    check_dtype(model, x)
    if not 0 < eps_max >= eps:
        raise EpsilonError(f"eps_max is {eps_max:g}; it must be above zero and at least ε, which is {eps:g}")
    with shape_errors_as_data_errors(x):
        box = input_box(x, max(eps, SMALLEST_EPS), with_clean=True)
        trace = trace_bounds(graph, box, statistics=statistics_by_mode)
    check_labels(labels, trace.logits.box.centre.shape)
    update_running_statistics(trace.statistics)
    warm = warmup_weight(eps, eps_max=eps_max)
    regularizers = Regularizers(weight * warm, weight * warm, tolerance)
    linear = LinearShare(warm, loss_fusion) if method == "crown-ibp" and warm > 0 else None
    return loss_terms(trace, labels, certified=float(eps > 0), regularizers=regularizers, linear=linear)


def loss_terms(
    trace: BoundTrace,
    labels: Tensor,
    *,
    certified: float | Tensor,
    regularizers: Regularizers | None,
    linear: LinearShare | None = None,
    all_reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> LossTerms:
    """The loss terms from one trace; `certified` is 1 for the certified cross-entropy, 0 for the natural one.

    Without a clean batch in the trace, the natural cross-entropy is that of the
    logits' centres. If the trace is of this process's part of a batch, `all_reduce`
    adds the sums of the other parts for the regularisers, which depend on the whole
    batch; all other terms are of this part.
    """
    logits = trace.logits.box.centre if trace.clean is None else trace.clean
    sums = None if regularizers is None or not trace.relu_boxes else all_reduce(trace_sums(trace))
    robust, margins = robust_loss(trace, labels, linear)
    return combined_terms(logits, robust, margins, sums, labels, certified=certified, regularizers=regularizers)


def robust_loss(trace: BoundTrace, labels: Tensor, linear: LinearShare | None = None) -> tuple[Tensor, Tensor]:
    """The certified cross-entropy, and the margins (B, K) from which it is computed.

    Fused linear bounds have no margins: the two losses are then mixed, and the margins are those of the intervals.
    """
    margins = trace.margins(labels)
    if linear is None:
        return certified_cross_entropy(margins, labels), margins
    if linear.fused:
        fused = fused_cross_entropy(trace, labels).mean()
        return torch.lerp(certified_cross_entropy(margins, labels).to(fused), fused, linear.weight), margins
    by_class = linear_margins(trace, labels)
    margins = torch.lerp(margins.to(by_class), by_class, linear.weight)
    return certified_cross_entropy(margins, labels), margins


def trace_sums(trace: BoundTrace) -> Tensor:
    """What the regularisers need, (L + 1, 9): `width_of` of the network's input, and `sums_of` of L ReLU inputs."""
    return torch.cat([width_of(trace.input).unsqueeze(0), sums_of([box for _, box in trace.relu_boxes])])


def combined_terms(
    logits: Tensor,
    robust: Tensor,
    margins: Tensor,
    sums: Tensor | None,
    labels: Tensor,
    *,
    certified: float | Tensor,
    regularizers: Regularizers | None,
) -> LossTerms:
    """The loss terms from the logits and the margins (B, K) and, for the regularisers, `trace_sums`."""
    natural = F.cross_entropy(logits, labels)
    total = torch.lerp(natural.to(robust), robust, certified)
    zero = torch.zeros_like(total)
    if regularizers is None or sums is None:
        return LossTerms(total, robust, natural, zero, zero, zero, margins)
    tightness, balance, skipped = regularizer_losses(sums, regularizers.tolerance)
    total = total + regularizers.tightness * tightness + regularizers.relu_balance * balance
    return LossTerms(total, robust, natural, tightness, balance, skipped, margins)


def certified_cross_entropy(margins: Tensor, labels: Tensor) -> Tensor:
    """An upper bound of the worst-case cross-entropy in the box: that of the logits −margins (B, K) and `labels`.

    Wong and Kolter 2018, theorem 2; Gowal et al. 2018, eq. 11.
    """
    return F.cross_entropy(-margins, labels)


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
            "certified_accuracy": certified_examples(terms.margins, labels).float().mean(),
        }
        if clean is not None:
            natural = correct_examples(clean, labels).float().mean()
            measured |= {"natural_loss": terms.natural, "natural_accuracy": natural}
        return {name: value.detach() for name, value in measured.items()}
