"""An argument of the wrong kind is refused with what to write instead, in every call."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import certtrain
from certtrain.errors import DataError

Call = Callable[[nn.Module, Any, Any], object]
X, LABELS = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])
CALLS: dict[str, Call] = {
    "propagate": lambda model, x, labels: certtrain.propagate(model, x, 0.1),
    "output_bounds": lambda model, x, labels: certtrain.output_bounds(model, x, 0.1, method="crown"),
    "margin_bounds": lambda model, x, labels: certtrain.margin_bounds(model, x, labels, 0.1),
    "certify": lambda model, x, labels: certtrain.certify(model, x, labels, 0.1),
    "objective_terms": lambda model, x, labels: certtrain.objective_terms(model, x, labels, 0.1, eps_max=0.1),
}
WITH_LABELS = [name for name in CALLS if name not in ("propagate", "output_bounds")]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X.numpy(), r"inputs are a numpy\.ndarray, not a tensor; write torch\.as_tensor\(x, dtype=torch\.float32\)"),
        (X.tolist(), "inputs are a list, not a tensor"),
        ((X * 255).to(torch.uint8), r"inputs are torch\.uint8, not pixels in \[0, 1\]; .* write x\.float\(\) / 255"),
        (X.to(torch.int64), r"inputs are torch\.int64, not pixels"),
        (
            X.double(),
            r"inputs are torch\.float64, but the network's weights are torch\.float32; write x\.to\(torch\.fl",
        ),
        (X.half(), r"inputs are torch\.float16, but the network's weights are torch\.float32"),
    ],
)
def test_inputs_of_another_kind(name: str, x: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CALLS[name](network(), x, LABELS)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_without_weights_takes_float32_or_float64(name: str, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Flatten(), nn.ReLU()).eval()
    with pytest.raises(DataError, match=rf"inputs are {dtype}; write x\.float\(\)"):
        CALLS[name](model, X.to(dtype), LABELS)
    CALLS[name](model, X.double(), LABELS)


@pytest.mark.parametrize("name", CALLS)
def test_a_model_in_float64_takes_its_own_inputs_alone(name: str) -> None:
    model = network().double()
    with pytest.raises(
        DataError, match=r"weights are torch\.float64; write x\.to\(torch\.float64\), or model\.float\("
    ):
        CALLS[name](model, X, LABELS)
    CALLS[name](model, X.double(), LABELS)


@pytest.mark.parametrize("name", WITH_LABELS)
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels are a list, not a tensor; write torch\.as_tensor\(labels\)"),
        (np.array([0, 1]), r"labels are a numpy\.ndarray, not a tensor"),
        (LABELS.float(), r"labels are torch\.float32; classes must be torch\.int64"),
    ],
)
def test_labels_of_another_kind(name: str, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        CALLS[name](network(), X, labels)


def test_what_a_message_says_to_write_works() -> None:
    labels: Tensor = torch.as_tensor([0, 1])
    found = certtrain.certify(network(), torch.as_tensor(X.numpy().astype("float64"), dtype=torch.float32), labels, 0.1)
    assert len(found.verdicts) == 2


def test_bfloat16_inputs_stay_inputs_of_a_network_in_bfloat16() -> None:
    assert len(certtrain.certify(network(), X.bfloat16(), LABELS, 0.1, arithmetic="bf16").verdicts) == 2
    with pytest.raises(DataError, match="bfloat16"):
        certtrain.certify(network(), X.bfloat16(), LABELS, 0.1)
