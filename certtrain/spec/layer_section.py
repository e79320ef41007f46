"""The base class of the sections of layers, and the types of their fields."""

from collections.abc import Iterable
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from certtrain.spec.section import LARGEST_SIZE, Positive, Section

LARGEST_FLOAT = (2 - 2**-23) * 2.0**127  # the largest finite number in float32
MOST_NAME_PARTS = 8  # the most parts of a dotted name


def pair(value: Any) -> Any:
    """Height and width, from two numbers or from one for both."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return (value[0], value[0])
    return value if isinstance(value, (list, tuple)) else (value, value)


LayerName = Annotated[str, Field(max_length=200, pattern=rf"^\w+(\.\w+){{0,{MOST_NAME_PARTS - 1}}}$")]
Pair = Annotated[tuple[Positive, Positive], BeforeValidator(pair)]
NotNegative = Annotated[int, Field(ge=0, le=LARGEST_SIZE)]
Number = Annotated[float, Field(ge=-LARGEST_FLOAT, le=LARGEST_FLOAT)]
PositiveNumber = Annotated[float, Field(gt=0, le=LARGEST_FLOAT)]


class LayerSection(Section):
    """One layer, which is applied to the results of earlier ones."""

    name: LayerName
    """Dots separate groups, as in torch's names of nested modules."""
    type: str
    """The name of the layer's class."""
    inputs: tuple[LayerName, ...]
    """The names of earlier layers, or "input"; by default the name of the layer before."""


class ElementwiseSection(LayerSection):
    """A layer that acts on each value by itself, and keeps the shape."""


def by_type(sections: Iterable[type[LayerSection]]) -> dict[str, type[LayerSection]]:
    """The sections by their layers' names."""
    return {name: section for section in sections for name in get_args(section.model_fields["type"].annotation)}
