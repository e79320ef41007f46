"""Comparison of a network read from an ONNX file with what a program that runs such files computes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certtrain.errors import SoundnessError, UnsupportedLayer
from certtrain.interchange.onnxload import MOST_UNPACKED
from certtrain.interchange.onnxvalues import optional_module
from certtrain.interchange.packed import is_packed, read_whole
from certtrain.network.modelfile import Classifier
from certtrain.network.reading import ORDERS, ForeignMetadata
from certtrain.spec.messages import readable

RANDOM_INPUTS = 4
OUTPUTS_RELATIVE, OUTPUTS_ABSOLUTE = 1e-4, 1e-5  # rounding alone makes outputs differ


@torch.no_grad()
def check_runs_as_read(path: Path, model: Classifier) -> None:
    """Raise SoundnessError unless ONNX Runtime computes from that file what the model does, on random images.

    Raises UnsupportedLayer if ONNX Runtime cannot run the file or gives no finite numbers, and MissingExtra.
    """
    metadata = model.metadata
    assert isinstance(metadata, ForeignMetadata)
    x = torch.rand(RANDOM_INPUTS, *metadata.input_shape, generator=torch.Generator().manual_seed(0))
    expected, found = model(x), _outputs(path, model, x)
    if found.shape != expected.shape:
        raise SoundnessError(f"{path} gives outputs of shape {tuple(found.shape)}, not {tuple(expected.shape)}")
    if not bool(found.isfinite().all()):
        raise UnsupportedLayer(f"{path} gives NaN or infinity for images: its numbers are too large")
    most = float((found - expected).abs().max())
    if not most <= OUTPUTS_ABSOLUTE + OUTPUTS_RELATIVE * float(expected.abs().max()):
        raise SoundnessError(
            f"ONNX Runtime computes outputs from {path} that differ by {most:g} from those of the network that was "
            "read: do not trust certificates of it. This is a fault in certtrain; please report it."
        )


def _outputs(path: Path, model: Classifier, x: Tensor) -> Tensor:
    """The outputs (B, K) of the file for images (B, C, H, W), one after the other."""
    assert isinstance(model.metadata, ForeignMetadata)
    runtime, reading = optional_module("onnxruntime"), model.metadata.reading
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    x = model.get_submodule("normalize")(x)
    x = x.permute(0, *ORDERS[reading.layout])
    try:
        source = read_whole(path, MOST_UNPACKED) if is_packed(path) else str(path)
        session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return torch.stack([_run(session, image) for image in x.contiguous().numpy()])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        first = readable(str(error).partition("\n")[0])
        raise UnsupportedLayer(
            f"{path} was read, but ONNX Runtime, with which it is compared, cannot run it: {first}"
        ) from error


def _run(session: Any, image: "np.ndarray[Any, Any]") -> Tensor:
    """The outputs (K,) for one image, with which a fixed batch is filled."""
    given = session.get_inputs()[0]
    sides = [side if isinstance(side, int) else 1 for side in given.shape]
    copies = int(np.prod(sides)) // image.size
    (found,) = session.run(None, {given.name: np.stack([image] * copies).reshape(sides)})
    return torch.tensor(np.asarray(found, dtype=np.float32).reshape(copies, -1)[0])
