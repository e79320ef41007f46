"""Bounds of any network of supported layers: the public functions, which check their arguments."""

import torch
from torch import Tensor, nn

from certtrain.bounds.box import PIXEL_RANGE, Clip, input_box
from certtrain.bounds.checks import (
    check_dtype,
    check_evaluation_mode,
    check_input,
    check_labels,
    shape_errors_as_data_errors,
)
from certtrain.bounds.contract import check_order
from certtrain.bounds.inference import outside_inference_mode, plain_model, plain_tensor
from certtrain.bounds.methods import Bounds, method_named
from certtrain.bounds.modules import check_modules
from certtrain.bounds.statistics import statistics_by_mode, update_running_statistics
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace, trace_bounds
from certtrain.spec.epsilon import parse_eps


def propagate(model: nn.Module, x: Tensor, eps: float, *, clip: Clip = PIXEL_RANGE) -> BoundTrace:
    """Carry the clean batch `x` (B, …) and its L∞ boxes of radius `eps` through `model` in one pass.

    In training mode BatchNorm takes the clean batch's mean and biased variance
    for both, and its running statistics are updated once. `clip` cuts the boxes
    to the range that inputs can have; None leaves them as they are.

    Raises UnsupportedLayer, EpsilonError (ε outside [0, 1]), or DataError if
    `x` lies outside `clip` or does not fit the network.
    """
    check_input(x, clip)
    graph, eps = checked_graph(model, tuple(x.shape[1:])), parse_eps(eps)
    check_dtype(model, x)
    with shape_errors_as_data_errors(x):
        trace = trace_bounds(graph, input_box(x, eps, clip, with_clean=True), statistics=statistics_by_mode)
    update_running_statistics(trace.statistics)
    return trace


@outside_inference_mode()
def output_bounds(
    model: nn.Module, x: Tensor, eps: float, *, method: str = "ibp", clip: Clip = PIXEL_RANGE
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (B, K) of the logits over the box of radius `eps` around each of `x` (B, …).

    `method` is one of these, each tighter on most networks and slower than those before it:
    - "ibp": intervals from layer to layer;
    - "crown-ibp": linear bounds by backsubstitution from the logits, with
      interval bounds for the layers between (Zhang et al. 2020);
    - "crown": linear bounds for the layers between as well (Zhang et al. 2018);
    - "alpha-crown": the same with searched slopes (Xu et al. 2021), the
      tightest of these and all of the above. It takes 50 passes and more.
    They hold in real arithmetic; only the bounds of `certify` include rounding, here and in the network.
    On a GPU they are computed with TF32 wherever PyTorch allows it.
    A network with BatchNorm must be in evaluation mode, so that a bound does not
    depend on the rest of the batch. Raises what `propagate` raises, MethodError, and
    SoundnessError if a lower bound is above its upper bound by more than rounding.
    """
    bounds = _bounds(model, x, eps, method, clip)
    with shape_errors_as_data_errors(x):
        lower, upper = bounds.ends()
    check_order(lower.detach(), upper.detach(), "the logits", tolerance=torch.finfo(lower.dtype).eps ** 0.5)
    return lower, upper


@outside_inference_mode()
def margin_bounds(
    model: nn.Module, x: Tensor, labels: Tensor, eps: float, *, method: str = "ibp", clip: Clip = PIXEL_RANGE
) -> Tensor:
    """Lower bounds (B, K) of logit[y] − logit[j] over each box; column y is 0.

    `labels` (B,) are the classes y, `method` as for `output_bounds`. If all
    other columns are finite and above zero, no input in the box changes the
    class in real arithmetic. That is no certificate, since the network rounds and
    these bounds are computed in its precision: `certify` gives certificates.
    Raises what `output_bounds` raises, and DataError for a label outside the classes.
    """
    bounds = _bounds(model, x, eps, method, clip)
    check_labels(labels, bounds.shape)
    with shape_errors_as_data_errors(x):
        return bounds.margins(labels)


def _bounds(model: nn.Module, x: Tensor, eps: float, method: str, clip: Clip) -> Bounds:
    bound = method_named(method)
    check_input(x, clip)
    check_modules(model)
    graph = checked_graph(plain_model(model), tuple(x.shape[1:]))
    check_dtype(model, x)
    check_evaluation_mode(graph)
    eps = parse_eps(eps)
    with shape_errors_as_data_errors(x):
        return bound(graph, input_box(plain_tensor(x), eps, clip))
