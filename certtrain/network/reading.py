"""How images reach a network that certtrain did not train: normalised, and in the order that its file takes them.

This is a part of what is certified: ε and the range of inputs are those of pixels in [0, 1], before all of it.
"""

from itertools import pairwise
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from certtrain.errors import DataError, MethodError
from certtrain.network.modelfile import Metadata
from certtrain.spec.choices import Layout
from certtrain.spec.layers import NETWORK_INPUT, SECTIONS, Graph
from certtrain.spec.shapes import ImageShape, Shape

FileKind = Literal["onnx", "pt2", "module"]
ORDERS: dict[Layout, tuple[int, int, int]] = {
    "chw": (1, 2, 3),
    "hwc": (2, 3, 1),
    "cwh": (1, 3, 2),
}  # as Permute has them
LAYOUT_NAMES: dict[Layout, str] = {
    "chw": "channels, rows, columns",
    "hwc": "rows, columns, channels",
    "cwh": "channels, columns, rows",
}
Deviation = Annotated[float, Field(gt=0)]

OPERATOR_BY_OPERATOR = {
    "onnx": "the operators of the ONNX file run one by one, in torch or another program; one that merges them, such as "
    "BatchNormalization into Conv, rounds differently (ONNX Runtime: graph_optimization_level ORT_DISABLE_ALL); an "
    "activation that the file writes as several operators is as accurate as that activation",
    "pt2": "the operators of the exported program run one by one, in torch, and are not merged by a compiler",
    "module": "the layers that the module's code made here run one by one, in torch, and are not merged by a compiler",
}

# MLAS, its kernels for CPUs, computes a function that is within 2^-22 of sigmoid, also where sigmoid itself is smaller.
ONNX_SIGMOID = (
    "ONNX Runtime's Sigmoid on a CPU is not that accurate below −2, where its error is up to 2^-22 and not relative: "
    "certificates do not cover it there"
)


class FileReading(BaseModel):
    """How a file is read as a network of pixels.

    kind: an ONNX file, a program of torch.export, or a module with a file of weights. mean, std: of each channel;
    pixels are normalised by them first. layout: the order in memory in which the network takes an image.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    kind: FileKind
    mean: tuple[float, ...] = Field(min_length=1, max_length=3)
    std: tuple[Deviation, ...]
    layout: Layout

    @model_validator(mode="after")
    def _by_channel(self) -> "FileReading":
        if len(self.mean) != len(self.std):
            raise ValueError("mean and std have one number for each channel")
        return self

    @property
    def assumptions(self) -> tuple[str, ...]:
        """In sentences, for certificates."""
        return OPERATOR_BY_OPERATOR[self.kind], self.preprocessing

    @property
    def preprocessing(self) -> str:
        """What happens to pixels before the network, in words."""
        plain = not any(self.mean) and set(self.std) == {1.0}
        mean, std = (", ".join(f"{value:.9g}" for value in values) for values in (self.mean, self.std))
        given = (
            "the pixels" if plain else f"(pixel − mean) / std, computed in the same arithmetic, mean {mean}, std {std},"
        )
        return f"the network is given {given} in the order {LAYOUT_NAMES[self.layout]}"


class ForeignMetadata(Metadata):
    """The metadata of a network that certtrain did not train, made when its file is read."""

    reading: FileReading

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What certificates of this network assume beside those of its layers."""
        kinds = {layer.type for layer in self.architecture.layers} if isinstance(self.architecture, Graph) else set()
        less_accurate = self.reading.kind == "onnx" and "Sigmoid" in kinds
        return (*self.reading.assumptions, *([ONNX_SIGMOID] if less_accurate else []))

    def check_arithmetic(self, name: str) -> None:
        """As `Metadata`: bf16 is what torch.autocast does, and rounds the result of each operator of a program."""
        if name == "bf16" and self.reading.kind == "onnx":
            raise MethodError("arithmetic bf16 is that of torch.autocast, which does not run ONNX files")


def chosen_layout(image: ImageShape, wanted: Shape, layout: Layout | None) -> Layout:
    """The order in which a network whose input has the shape `wanted` takes an image (C, H, W), if `layout` is None.

    Raises DataError if the shapes do not fit, or if they do not decide the order.
    """
    orders = {name: _ordered(image, name) for name in ORDERS}
    if prod(wanted) != prod(image):
        raise DataError(f"the images have shape {image} (channels, height, width), but the network takes {wanted}")
    if layout is not None:
        if _is_flat(wanted) or _sides(wanted) == _sides(orders[layout]):
            return layout
        raise DataError(f"the network takes values of shape {wanted}, which is not {LAYOUT_NAMES[layout]} of {image}")
    for name in ("chw", "hwc"):
        if _sides(wanted) == _sides(orders[name]) or (image[0] == 1 and _is_flat(wanted)):
            return name
    if _is_flat(wanted):
        raise DataError(
            f"the network takes {prod(wanted):,} values in a row, and images of shape {image} can be written in "
            "several orders: say --layout chw (channel by channel), hwc (pixel by pixel) or cwh (as MATLAB has them)"
        )
    raise DataError(f"the images have shape {image} (channels, height, width), but the network takes {wanted}")


def _ordered(image: ImageShape, layout: Layout) -> Shape:
    return tuple(image[place - 1] for place in ORDERS[layout])


def _sides(shape: Shape) -> Shape:
    """The sizes other than 1, which alone decide the order in memory."""
    return tuple(side for side in shape if side != 1)


def _is_flat(shape: Shape) -> bool:
    return len(_sides(shape)) <= 1


def taking_images(graph: Graph, image: ImageShape, wanted: Shape, layout: Layout) -> Graph:
    """The layers with others in front that turn an image (C, H, W) into the shape that the first layers take."""
    added = list[tuple[str, dict[str, Any]]]()
    shape: Shape = image
    if layout != "chw":
        added.append(("Permute", {"dims": ORDERS[layout]}))
        shape = _ordered(image, layout)
    if shape != wanted:
        added.append(("Flatten", {}) if len(wanted) == 1 else ("Reshape", {"shape": wanted}))
    if not added:
        return graph
    names = [NETWORK_INPUT, *(f"image_{kind.lower()}" for kind, _ in added)]
    front = [
        SECTIONS[kind].model_validate({"name": name, "type": kind, "inputs": (before,)} | fields)
        for (kind, fields), (before, name) in zip(added, pairwise(names), strict=True)
    ]
    moved = [
        layer.model_copy(
            update={"inputs": tuple(names[-1] if name == NETWORK_INPUT else name for name in layer.inputs)}
        )
        for layer in graph.layers
    ]
    return Graph(name="graph", layers=(*front, *moved), origin=graph.origin)
