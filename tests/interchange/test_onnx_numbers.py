"""ONNX files with far numbers, and parts of a batch of free size: read as what they compute, or refused."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from certtrain.errors import UnsupportedLayer
from certtrain.interchange.onnxfile import Imported, read_onnx
from certtrain.properties.cases import Case, Property
from certtrain.properties.decide import decide
from helpers.onnx_files import Sizes, agrees, node, random, save

LOWEST = float(torch.finfo(torch.float32).min)
ONES = torch.ones(2, 1)


def reaches(found: Imported, least: float, method: str = "crown-ibp") -> str:
    """Whether an output is `least` or more for inputs between 0.25 and 0.75."""
    count = prod(found.shape)
    lower, upper = (torch.full((count,), end, dtype=torch.float64) for end in (0.25, 0.75))
    functions, offsets = (torch.tensor(values, dtype=torch.float64) for values in ([[-1.0]], [least]))
    case = Case(lower, upper, functions, offsets)
    return decide(found.network, found.shape, Property(count, 1, (case,)), method=method).result


# --- limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [6, 13])
@pytest.mark.parametrize("limits", [{"min": 0.0, "max": 1e30}, {"min": -1e30}, {"max": 1000.5}], ids=str)
def test_a_far_limit_is_refused(limits: dict[str, float], opset: int, tmp_path: Path) -> None:
    names = "a" if opset == 6 else " ".join(["a", *limits])
    if opset > 6 and "min" not in limits:
        limits = {"min": 0.0} | limits
        names = "a min max"
    clip = node("Clip", names, "y", **(limits if opset == 6 else {}))
    constants = {} if opset == 6 else {name: torch.tensor(end) for name, end in limits.items()}
    path = save(tmp_path, [node("MatMul", "x w", "a"), clip], ["n", 2], ["n", 1], opset=opset, w=ONES, **constants)
    with pytest.raises(UnsupportedLayer, match=r"\(Clip\): a limit of .* must be between -1000 and 1000, or infinite"):
        read_onnx(path)


@pytest.mark.parametrize("ends", [(0.0, 1000.0), (-1000.0, 1000.0), (LOWEST, -LOWEST), (-torch.inf, 1000.0)], ids=str)
def test_other_limits_are_read_as_what_they_do(ends: tuple[float, float], tmp_path: Path) -> None:
    low, high = map(torch.tensor, ends)
    nodes = [node("MatMul", "x w", "a"), node("Clip", "a low high", "y")]
    found = agrees(save(tmp_path, nodes, ["n", 2], ["n", 1], w=ONES, low=low, high=high))
    assert [reaches(found, least) for least in (1.0, 1.6)] == ["sat", "unsat"]


@pytest.mark.parametrize(("low", "high"), [(torch.inf, torch.inf), (-1.0, -torch.inf), (-LOWEST, -LOWEST)])
def test_a_limit_that_leaves_no_value_is_refused(low: float, high: float, tmp_path: Path) -> None:
    constants = {"low": torch.tensor(low), "high": torch.tensor(high)}
    path = save(tmp_path, [node("Clip", "x low high", "y")], ["n", 2], ["n", 2], **constants)
    with pytest.raises(UnsupportedLayer, match=r"\(Clip\): limits of .* are not read"):
        read_onnx(path)


# --- padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [10, 13])
@pytest.mark.parametrize("number", [LOWEST, -1e30, -0.3, 0.0])
def test_a_maximum_over_padding_is_that_of_the_values(number: float, opset: int, tmp_path: Path) -> None:
    pads, constant = [0, 0, 1, 1, 0, 0, 1, 1], torch.tensor(number)
    given: dict[str, Any] = {"pads": pads, "value": number} if opset == 10 else {}
    names, constants = ("a", {}) if opset == 10 else ("a p v", {"p": torch.tensor(pads), "v": constant})
    nodes = [
        node("Mul", "x two", "a"),
        node("Pad", names, "b", **given),
        node("MaxPool", "b", "c", kernel_shape=[3, 3]),
        node("Flatten", "c", "y"),
    ]
    path = save(tmp_path, nodes, ["n", 1, 1, 1], ["n", 1], opset=opset, two=torch.tensor(2.0), **constants)
    found = agrees(path)
    for method in ("crown-ibp", "complete"):
        assert [reaches(found, least, method) for least in (1.0, 1.6)] == ["sat", "unsat"]


@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_padding_by_no_number_is_refused(number: float, tmp_path: Path) -> None:
    constants = {"p": torch.tensor([0, 1, 0, 0]), "v": torch.tensor(number)}
    path = save(tmp_path, [node("Pad", "x p v", "y")], ["n", 2], ["n", 3], **constants)
    with pytest.raises(UnsupportedLayer, match=r"\(Pad\): its constant_value must be one number, of a magnitude"):
        read_onnx(path)


# --- constants that cancel -------------------------------------------------------------------------------


def chain(folder: Path, steps: list[tuple[str, float]]) -> Path:
    """x, and one operator after another with a constant."""
    names = ["x", *(f"v{place}" for place in range(len(steps) - 1)), "y"]
    nodes = [node(kind, f"{names[i]} c{i}", names[i + 1]) for i, (kind, _) in enumerate(steps)]
    constants = {f"c{i}": torch.tensor([number]) for i, (_, number) in enumerate(steps)}
    return save(folder, nodes, ["n", 3], ["n", 3], **constants)


LOST = {
    "taken away again": [("Add", 1e30), ("Sub", 1e30)],
    "between others": [("Add", 0.5), ("Add", 1e30), ("Sub", 1e30)],
    "beside small values": [("Mul", 1e-6), ("Add", 500.0), ("Sub", 500.0), ("Mul", 1e6)],
    "too large": [("Mul", 1e30), ("Mul", 1e30), ("Mul", 1e-30), ("Mul", 1e-30)],
    "too small": [("Mul", 1e-30), ("Mul", 1e-30), ("Mul", 1e30), ("Mul", 1e30)],
}


@pytest.mark.parametrize("name", LOST)
def test_constants_between_which_values_are_lost_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayer, match=r"adds and then subtracts|combined with those"):
        read_onnx(chain(tmp_path, LOST[name]))


def test_constants_that_lose_nothing_are_combined(tmp_path: Path) -> None:
    found = agrees(chain(tmp_path, [("Sub", 123.7), ("Div", 58.4), ("Mul", 58.4), ("Add", 123.7), ("Mul", 2.0)]))
    assert len(found.graph.layers) == 1


# --- parts of the batch ----------------------------------------------------------------------------------

PARTS = [(0, 1), (1, 2**31 - 1), (-1, 2**31 - 1), (0, -1), (0, 2), (2**31 - 1, 2**31 - 1), (5, 2)]


def sliced(folder: Path, batch: int | str, start: int, stop: int, opset: int = 13) -> Path:
    given: dict[str, Any] = {"starts": [start], "ends": [stop], "axes": [0]} if opset < 10 else {}
    constants: dict[str, Tensor] = {"s": torch.tensor([start]), "e": torch.tensor([stop]), "a": torch.tensor([0])}
    nodes = [node("Slice", "x" if given else "x s e a", "y", **given)]
    made: Sizes = ["m", 3]
    return save(folder, nodes, [batch, 3], made, opset=opset, **({} if given else constants))


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize(("start", "stop"), PARTS)
def test_a_part_of_a_free_batch_is_refused(start: int, stop: int, opset: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayer, match=r"\(Slice\): it slices the batch's dimension"):
        read_onnx(sliced(tmp_path, "n", start, stop, opset))


def test_all_of_a_batch_is_read(tmp_path: Path) -> None:
    for batch, stop in (("n", 2**31 - 1), ("n", 2**63 - 1), (3, 3), (1, 1)):
        agrees(sliced(tmp_path, batch, 0, stop))


def test_every_second_input_is_refused(tmp_path: Path) -> None:
    constants = {name: torch.tensor([number]) for name, number in zip("seat", (0, 2**31 - 1, 0, 2), strict=True)}
    path = save(tmp_path, [node("Slice", "x s e a t", "y")], ["n", 3], ["m", 3], **constants)
    with pytest.raises(UnsupportedLayer, match=r"it slices the batch's dimension, from 0 to .* in steps of 2"):
        read_onnx(path)


FIRST = [node("Shape", "x", "s"), node("Gather", "s zero", "first", axis=0), node("Unsqueeze", "first axes", "n")]
NUMBERS = {"zero": torch.tensor(0), "axes": torch.tensor([0]), "rest": torch.tensor([-1]), "four": torch.tensor([4])}
MIXED: dict[str, list[Any]] = {
    "in another place": [node("Concat", "four n", "t", axis=0), node("Reshape", "x t", "y")],
    "left over": [node("Concat", "rest n", "t", axis=0), node("Reshape", "x t", "y")],
    "three times": [node("Concat", "n n n rest", "t", axis=0), node("Reshape", "x t", "y")],
    "compared": [node("Equal", "n four", "t"), node("Where", "t x x", "y")],
    "multiplied": [node("Mul", "n four", "t"), node("Reshape", "x t", "y")],
    "of another type": [node("Cast", "n", "t", to=1), node("Mul", "x t", "y")],
    "a constant's side": [node("ConstantOfShape", "n", "t"), node("Add", "x t", "y")],
    "a place": [node("Gather", "four n", "t", axis=0), node("Reshape", "x t", "y")],
    "squeezed": [node("Squeeze", "x axes", "y")],
    "before it": [node("Unsqueeze", "x axes", "y")],
    "an end": [node("Slice", "x axes n axes", "y")],
    "a count": [node("Concat", "zero1 zero1 n zero1", "t", axis=0), node("Pad", "x t", "y")],
}


@pytest.mark.parametrize("name", MIXED)
def test_the_number_of_inputs_is_refused_wherever_it_matters(name: str, tmp_path: Path) -> None:
    constants = NUMBERS | {"zero1": torch.tensor([0])}
    path = save(tmp_path, [*FIRST, *MIXED[name]], ["n", 4], ["a", "b"], **constants)
    with pytest.raises(UnsupportedLayer, match=r"net\.onnx: node 'the \w+ \w'"):
        read_onnx(path)


def test_the_number_of_inputs_is_moved(tmp_path: Path) -> None:
    nodes = [*FIRST, node("Concat", "n two rest", "t", axis=0), node("Reshape", "x t", "a"), node("Flatten", "a", "y")]
    agrees(save(tmp_path, nodes, ["n", 4], ["n", 4], **NUMBERS, two=torch.tensor([2])))


def test_axes_that_are_none_are_refused(tmp_path: Path) -> None:
    nodes = [node("Squeeze", "x none", "y")]
    path = save(tmp_path, nodes, [3, 1, 4], ["a", "b"], none=torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UnsupportedLayer, match="its list of axes is empty"):
        read_onnx(path)


def test_rows_of_numbers_for_several_inputs_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Add", "x c", "y")], ["n", 4], ["n", 4], c=random(2, 4))
    with pytest.raises(UnsupportedLayer, match=r"a constant of shape \(2, 4\) does not fit"):
        read_onnx(path)
