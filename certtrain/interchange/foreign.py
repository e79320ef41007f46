"""Networks that certtrain did not train, as classifiers of pixels: from ONNX, torch.export, or a module and weights."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from certtrain.data import Progress, load_images
from certtrain.errors import DataError, ModelFileError, NetworkError, UnsupportedLayer
from certtrain.interchange.onnxfile import read_onnx
from certtrain.interchange.onnxruns import check_runs_as_read
from certtrain.interchange.packed import ending
from certtrain.interchange.program import read_program
from certtrain.interchange.statedict import read_state_dict
from certtrain.network.graphs import NetworkData
from certtrain.network.modelfile import Classifier
from certtrain.network.reading import FileKind, FileReading, ForeignMetadata, chosen_layout, taking_images
from certtrain.network.saving import (
    check_same,
    classifier_of,
    in_evaluation_mode,
    layers_as_data,
    metadata_of_network,
)
from certtrain.network.source import make_network_from
from certtrain.spec.choices import Layout
from certtrain.spec.epsilon import parse_eps
from certtrain.spec.messages import readable
from certtrain.spec.preset import explain
from certtrain.spec.shapes import ImageShape, Shape
from certtrain.storage import check_model_file


class RoundedWeightsWarning(UserWarning):
    """Weights in another precision were rounded to float32."""


FOREIGN_NOTE = "read from a file of another program; not trained by certtrain"
ENDINGS: dict[str, FileKind] = {".onnx": "onnx", ".pt2": "pt2"}


def load_network(
    path: str | Path,
    *,
    dataset: str,
    eps: str | float,
    data_dir: str | Path | None = None,
    split: str = "test",
    module: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: Layout | None = None,
    on_progress: Progress | None = None,
) -> Classifier:
    """A network that certtrain did not train, with its preprocessing, as a classifier of pixels in [0, 1].

    `verify` certifies it over the data set, as it does certtrain's own networks.

    Args:
        path: an .onnx or .onnx.gz file, a .pt2 file of `torch.export.save`, or, with a `module`, a file of weights:
            .safetensors, or a state dict of `torch.save`. Nothing but tensors and plain values is unpickled.
        dataset: the data set that the network classifies, as for `[data]` of a preset, such as "mnist". Its classes
            are the network's outputs, in that order.
        eps: the radius of the L∞ ball in pixels of [0, 1], like "2/255".
        data_dir, split: where the data are, and the split of which the images' shape is taken.
        module: the class or function that makes the module, like "my.py:MyNet". This file's code is run.
        mean, std: of each channel, or one number for all: what was subtracted from pixels in [0, 1] before the
            network, and what they were divided by; without both, the network takes the pixels.
        layout: "chw", "hwc" or "cwh" (as MATLAB flattens), the order in which the network takes the values of an
            image, where its input does not decide it. None: as the input's shape says.
        on_progress: as for `load_images`.

    Raises ModelFileError if the file is missing, damaged or not finite; UnsupportedLayer for an operator without a
    bound rule; NetworkError, DataError, EpsilonError, MissingExtra; SoundnessError if ONNX Runtime computes something
    else.
    """
    path = Path(path)
    check_model_file(path)
    kind = _kind(path, module)
    images = load_images(dataset, "test" if split == "test" else "train", data_dir=data_dir, on_progress=on_progress)
    shape, classes = images.input_shape, images.class_names
    network = None if module is None else _module(module, path, shape, len(classes))
    data, wanted, outputs = _read(kind, path, network, shape, len(classes))
    if outputs != len(classes):
        raise DataError(f"{path} gives {outputs} outputs, but {dataset} has {len(classes)} classes")
    reading = _reading(kind, shape, wanted, mean, std, layout)
    data = data._replace(graph=taking_images(data.graph, shape, wanted, reading.layout))
    normalization = reading.mean, reading.std
    radius = parse_eps(eps) or 1.0  # a radius of 0 can be verified, but no file can name it as its own
    metadata = metadata_of_network(data.graph, shape, classes, dataset, normalization, radius, FOREIGN_NOTE)
    try:
        model = classifier_of(data, ForeignMetadata(**dict(metadata), reading=reading), normalization)
    except NetworkError as error:
        raise ModelFileError(f"{path}: {error}") from error
    _check(kind, path, model, network)
    return model


def _reading(
    kind: FileKind,
    shape: ImageShape,
    wanted: Shape,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: Layout | None,
) -> FileReading:
    if kind == "module" and layout not in (None, "chw"):
        raise DataError("a module is given images (B, C, H, W); permute them in its forward")
    by_channel = _by_channel("mean", mean, 0.0, shape), _by_channel("std", std, 1.0, shape)
    try:
        return FileReading(
            kind=kind, mean=by_channel[0], std=by_channel[1], layout=chosen_layout(shape, wanted, layout)
        )
    except ValidationError as error:
        raise DataError(f"mean and std do not fit:\n{explain(error)}") from error


def _kind(path: Path, module: str | None) -> FileKind:
    if module is not None:
        if ending(path) in ENDINGS:
            raise ModelFileError(f"{path} holds a whole network; a module goes with a file of weights")
        return "module"
    if ending(path) not in ENDINGS:
        raise ModelFileError(
            f"{path} is neither an .onnx file nor a .pt2 file of torch.export.save; for weights alone name the module "
            "that takes them, like my.py:MyNet"
        )
    return ENDINGS[ending(path)]


def _by_channel(name: str, values: Sequence[float] | None, default: float, shape: ImageShape) -> tuple[float, ...]:
    given = tuple(float(value) for value in values or (default,))
    given = given * shape[0] if len(given) == 1 else given
    if len(given) != shape[0]:
        raise DataError(f"{name} has {len(given)} numbers; the images have {shape[0]} channels")
    return given


def _read(
    kind: FileKind, path: Path, network: nn.Module | None, shape: ImageShape, classes: int
) -> tuple[NetworkData, Shape, int]:
    """The network as data, the shape of its input, and the number of its outputs."""
    if network is not None:
        with in_evaluation_mode(network):
            return layers_as_data(network, shape), shape, classes
    if kind == "pt2":
        return read_program(path)
    found = read_onnx(path)
    state = found.network.state_dict()
    _check_arithmetic(path, found.combined, {tensor.dtype for tensor in state.values() if tensor.is_floating_point()})
    return NetworkData(found.graph, state), found.shape, found.outputs


def _check_arithmetic(path: Path, combined: Sequence[str], dtypes: set[torch.dtype]) -> None:
    """Raise UnsupportedLayer for a network in float64, or with operators whose rounding is not covered."""
    if dtypes - {torch.float32}:
        raise UnsupportedLayer(f"{path} computes in float64, but images come in float32; export it in float32")
    if combined:
        raise UnsupportedLayer(
            f"{path}: at node {readable(combined[0])!r} operators with constants are combined. One by one, they "
            "round more than certificates add. `certtrain decide` reads such a network, in real arithmetic"
        )


def _module(source: str, weights: Path, shape: ImageShape, classes: int) -> nn.Module:
    """The module that the user's code makes, with the weights, in evaluation mode."""
    tensors = read_state_dict(weights)
    network = make_network_from(source, shape, classes)
    try:
        network.load_state_dict(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelFileError(f"{weights} does not hold the weights of {source}: {error}") from error
    _warn_of_rounding(weights, tensors)
    return network.eval()


def _warn_of_rounding(weights: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Warn if weights have more bits than float32 keeps."""
    finer = [name for name, tensor in tensors.items() if tensor.dtype == torch.float64]
    if any((tensors[name].float().double() != tensors[name]).any() for name in finer):
        message = f"{weights} has weights in float64; what follows is about the network with them rounded to float32"
        warnings.warn(RoundedWeightsWarning(message), stacklevel=2)


def _check(kind: FileKind, path: Path, model: Classifier, network: nn.Module | None) -> None:
    """Raise UnsupportedLayer or SoundnessError if the network that was read computes something else than the file's."""
    assert isinstance(model.metadata, ForeignMetadata)
    if network is not None:
        check_same(network, model, (model.metadata.reading.mean, model.metadata.reading.std))
    elif kind == "onnx":
        check_runs_as_read(path, model)
