"""What is known of an activation: a layer that acts on each value by itself and is not linear."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from certtrain.bounds.box import Box
from certtrain.bounds.forms import FunctionForm, OnnxForm
from certtrain.bounds.layer_errors import PointwiseError
from certtrain.bounds.lines import Lines
from certtrain.bounds.rounding import Rounding
from certtrain.spec.layer_section import ElementwiseSection


class Accuracy(NamedTuple):
    """How near the exact function what torch computes is, on every device and in float32 as in float64.

    units: so many units in the last place, of what `statement` names.
    statement: the assumption, as every certificate of a network with this layer has it.
    """

    units: int
    statement: str | None


# Nothing but comparisons, sums and products, of which each arithmetic says itself how they round.
BASIC = Accuracy(0, None)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The record of one activation. Every part must be given: none has a default.

    layer: its class; rules are by exact type, as a subclass may compute something else.
    section: the layer as data, in `certtrain.spec.activations`.
    refusal: why a layer of this class has no rule, to follow its name; None if it has one.
    monotone: whether it never falls when its input rises.
    interval: the box of its results from the box of its inputs.
    lines: lines below and above it over a box of inputs.
    bends: where in a box (B, …) these lines are not exact, so that a tighter box would help.
    rectifier: the slope s of max(x, sx), whose sign complete verification may split and whose line α-CROWN turns;
        None if it is no rectifier.
    accuracy: the assumption about what torch computes.
    error: what rounds in it, with the units of the accuracy.
    functions: the functions and methods of tensors that equal it.
    onnx: how it is written in ONNX, and read.
    """

    layer: type[nn.Module]
    section: type[ElementwiseSection]
    refusal: Callable[[Any], str | None]
    monotone: bool
    interval: Callable[[Any, Box], Box]
    lines: Callable[[Any, Box], Lines]
    bends: Callable[[Any, Box], Tensor]
    rectifier: Callable[[Any], float] | None
    accuracy: Accuracy
    error: Callable[[Rounding, Any, int], PointwiseError]
    functions: Mapping[object, FunctionForm]
    onnx: OnnxForm

    def rounding(self, arithmetic: Rounding, layer: nn.Module) -> PointwiseError:
        """What rounds in the layer in that arithmetic, by the accuracy that is stated and no other."""
        return self.error(arithmetic, layer, self.accuracy.units)


def never(layer: object) -> None:
    """The refusal of an activation that has a rule whatever its arguments are."""
    return


def everywhere(layer: object, box: Box) -> Tensor:
    """The bends of a curve: its lines are exact only where the box has no width."""
    return box.lower < box.upper
