"""The arithmetic of a training step. The bounds for certificates never use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from certtrain.errors import DeviceError
from certtrain.spec.preset import Precision

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # as Linux names them, the last one on ARM


def check_precision(precision: Precision, device: str) -> None:
    """Raise DeviceError if the device does not have this arithmetic."""
    if precision == "tf32" and device != "cuda":
        raise DeviceError("precision tf32 is an arithmetic of NVIDIA GPUs; on a CPU choose fp32 or bf16")


def has_bf16_instructions() -> bool:
    """Whether this processor has instructions for bfloat16; False where that is not known, which is not on Linux."""
    try:
        words = set(CPU_INFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return not words.isdisjoint(BF16_FLAGS)


@contextmanager
def arithmetic(precision: Precision, device: str) -> Iterator[None]:
    """A context in which convolutions and linear layers compute in `precision`, the last layer and its margins too.

    BatchNorm, the ReLUs after it, the sums for the regularisers and cross-entropies are computed in float32.
    """
    with tensor_cores(precision == "tf32"), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        yield


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """A context that says whether a GPU may round float32 to TF32; by default PyTorch does so in convolutions.

    In the context, products of bfloat16 are summed in float32, as certificates for
    bf16 assume; by default PyTorch may use less precision. NNPACK is off, because
    its convolutions on a CPU transform their operands, which the rounding bounds
    of certificates do not cover.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction
    try:
        matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = allowed, allowed, False
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction = before
