"""The record of an activation: a nonlinear layer that acts on each value separately."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from certtrain.bounds.box import Box
from certtrain.bounds.forms import FunctionForm, OnnxForm
from certtrain.bounds.layer_errors import PointwiseError
from certtrain.bounds.lines import FreeLines, Lines
from certtrain.bounds.rounding import Rounding
from certtrain.spec.layer_section import ElementwiseSection


class Accuracy(NamedTuple):
    """How accurately torch computes the function, on every device, in float32 and in float64.

    units: the largest error, in units in the last place of what `statement` names.
    statement: the assumption, as it stands in every certificate of a network with this layer.
    """

    units: int
    statement: str | None


# For functions made of comparisons, sums and products, whose rounding each arithmetic states.
BASIC = Accuracy(0, None)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """The record of one activation. No part has a default.

    layer: the class. Rules go by exact type, since a subclass may compute something else.
    section: the layer as data, in `certtrain.spec.activations`.
    refusal: why a layer of this class has no rule, as a phrase that follows its name; None if it has one.
    monotone: whether the function is nondecreasing.
    interval: the box of the results from the box of the inputs.
    lines: the lower and upper line over a box of inputs.
    free_lines: the lines with numbers to choose, which α-CROWN optimises; None where no neuron has a choice.
    unstable: which neurons (B, …) have lines that are not exact over the box, so that a tighter box would help.
    splittable: whether complete verification splits neurons by the sign of their input.
    rectifier: the slope s of max(x, sx), which is a line on each side of zero. None if it is not a rectifier.
    accuracy: the assumption about what torch computes.
    error: the rounding error of the layer, from the units of the accuracy.
    functions: the functions and tensor methods that equal the layer.
    onnx: how the layer is written in ONNX, and read.
    """

    layer: type[nn.Module]
    section: type[ElementwiseSection]
    refusal: Callable[[Any], str | None]
    monotone: bool
    interval: Callable[[Any, Box], Box]
    lines: Callable[[Any, Box], Lines]
    free_lines: Callable[[Any, Box], FreeLines | None]
    unstable: Callable[[Any, Box], Tensor]
    splittable: bool
    rectifier: Callable[[Any], float] | None
    accuracy: Accuracy
    error: Callable[[Rounding, Any, int], PointwiseError]
    functions: Mapping[object, FunctionForm]
    onnx: OnnxForm

    def rounding(self, arithmetic: Rounding, layer: nn.Module) -> PointwiseError:
        """The rounding error of the layer in that arithmetic, by the accuracy that the record states."""
        return self.error(arithmetic, layer, self.accuracy.units)


def no_refusal(layer: object) -> None:
    """The refusal of an activation that has a rule for all arguments."""
    return


def nonzero_width(layer: object, box: Box) -> Tensor:
    """Which neurons of a curved function are unstable: lines are exact only where the box has no width."""
    return box.lower < box.upper
