"""In which arithmetic a training step computes. Bounds that certify are never computed by it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from certtrain.errors import DeviceError
from certtrain.spec.preset import Precision


def check_precision(precision: Precision, device: str) -> None:
    """Raise DeviceError where the device has no such arithmetic."""
    if precision == "tf32" and device != "cuda":
        raise DeviceError("precision tf32 is an arithmetic of NVIDIA GPUs; on a CPU choose fp32 or bf16")


@contextmanager
def arithmetic(precision: Precision, device: str) -> Iterator[None]:
    """Within it, convolutions and linear layers compute in `precision`, the last layer and its margins among them.

    BatchNorm, ReLUs after it, the regularisers' sums and cross-entropies stay in float32.
    """
    with tensor_cores(precision == "tf32"), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Whether float32 may be cut to TF32 on a GPU. By default PyTorch allows it in convolutions.

    Within it, products of bfloat16 are summed in float32, as certificates for
    bf16 assume; PyTorch allows less there too. And NNPACK is off, whose
    convolutions on a CPU transform their operands, which no arithmetic here
    allows for.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = allowed, allowed, False
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before
