"""A user's trained network as a model file, so that every command takes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from certtrain.bounds.supported import checked_graph
from certtrain.data import load_images
from certtrain.data.load import FIXED_IMAGES
from certtrain.errors import NetworkError, UnsupportedLayer
from certtrain.network.graphs import NetworkData, graph_of
from certtrain.network.modelfile import Classifier, Metadata, fill_network, versions, write_model
from certtrain.network.models import InputSpec, build_model
from certtrain.runtime.device import device_of
from certtrain.runtime.user_code import USER_ERRORS, error_text
from certtrain.spec.epsilon import parse_eps
from certtrain.spec.layers import Graph
from certtrain.spec.preset import load_preset
from certtrain.spec.shapes import ImageShape

ORIGIN = "saved from Python; not trained by certtrain"
RANDOM_IMAGES = 8  # random images on which the saved network must compute what the given one does


def save_model(
    network: nn.Module,
    path: str | Path,
    *,
    dataset: str,
    eps: str | float,
    data_dir: str | Path | None = None,
    input_shape: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    note: str = ORIGIN,
) -> Classifier:
    """Write a trained network, which may come from any training loop, to the model file `path`, as certtrain writes it.

    Afterwards verify, check, stats, export, decide and `load_model` take the file. It holds the network's layers as
    data and its weights, in float32, and none of its code. The network stays as it is.

    Args:
        network: maps images (B, C, H, W) to logits (B, K), by layers for which certtrain has a rule; it is saved as it
            is in evaluation mode. Images are pixels in [0, 1], or normalised if `mean` and `std` are given.
        dataset: the data set that commands verify the network on, as for `[data]` of a preset, such as "mnist".
        eps: the radius that commands take if none is given, like "8/255".
        data_dir: the folder with the data, of which shape and classes are taken. Without it those of mnist,
            fashion-mnist and cifar10 are known, and nothing is loaded.
        input_shape, class_names: (C, H, W) and the names of the classes, in the order of the logits; if both are
            given, the data are not loaded.
        mean, std: of each channel, in pixels of [0, 1]: what the loop subtracted from images, and divided them by.
        note: where the weights come from; the file says so.

    Returns the network as `load_model` returns it. Raises NetworkError if the network does not fit the images, is not
    in float32 or holds NaN; UnsupportedLayer; DataError; EpsilonError; PresetError, as for a std of 0; StorageError.
    """
    shape, classes = _images(dataset, data_dir, input_shape, class_names)
    if (mean is None) != (std is None):
        raise NetworkError("mean and std go together: give both or neither")
    normalization = (mean or (0.0,) * shape[0], std or (1.0,) * shape[0])
    with in_evaluation_mode(network):
        found = layers_as_data(network, shape)
        metadata = metadata_of_network(found.graph, shape, classes, dataset, normalization, parse_eps(eps), note)
        model = classifier_of(found, metadata, normalization)
        check_same(network, model, normalization)
    write_model(Path(path), model, metadata)
    return model


def _images(
    dataset: str, data_dir: str | Path | None, shape: Sequence[int] | None, classes: Sequence[str] | None
) -> tuple[ImageShape, tuple[str, ...]]:
    """The shape of the images and the names of the classes."""
    if data_dir is None and dataset in FIXED_IMAGES:
        fixed = FIXED_IMAGES[dataset]
        shape, classes = shape or fixed[0], classes or fixed[1]
    if shape is None or classes is None:
        images = load_images(dataset, "test", data_dir=data_dir)
        shape, classes = shape or images.input_shape, classes or images.class_names
    if len(shape) != 3:
        raise NetworkError(f"input_shape is {tuple(shape)}; write channels, height and width, like (3, 32, 32)")
    channels, height, width = shape
    return (channels, height, width), tuple(map(str, classes))


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """A context in which the network is in evaluation mode; afterwards each of its modules is in its own again."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def layers_as_data(network: nn.Module, shape: ImageShape) -> NetworkData:
    """The layers and tensors of a network in evaluation mode. Raises NetworkError and UnsupportedLayer."""
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise NetworkError(f"{name!r} is {parameter.dtype}; a model file has float32: write network.float()")
    try:
        return graph_of(checked_graph(network, shape))
    except USER_ERRORS as error:
        if isinstance(error, UnsupportedLayer):
            raise
        raise UnsupportedLayer(f"the network's forward pass cannot be traced: {error_text(error)}") from error


Normalization = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each channel


def metadata_of_network(
    graph: Graph,
    shape: ImageShape,
    classes: tuple[str, ...],
    dataset: str,
    normalization: Normalization,
    eps: float,
    note: str,
) -> Metadata:
    """The metadata of a network that no run made. Its preset holds images, network and ε; it has no training.

    Raises PresetError, as for an unknown data set or a std of 0.
    """
    images: dict[str, Any] = {"name": dataset, "mean": [*normalization[0]], "std": [*normalization[1]]}
    fields = {"name": "own", "description": note, "data": images, "model": graph.model_dump(mode="json")}
    preset = load_preset(fields | {"eps": {"max": eps, "length": 0}, "train": {"epochs": 1}})
    return Metadata(
        architecture=graph,
        input_shape=shape,
        class_names=classes,
        dataset=preset.data.name,
        eps=eps,
        seed=preset.seed,
        versions=versions(),
        preset=preset.model_dump(mode="json"),
        note=note,
    )


def classifier_of(found: NetworkData, metadata: Metadata, normalization: Normalization) -> Classifier:
    """The network as a file has it, checked as when a file is loaded. Raises NetworkError, as for NaN."""
    mean, std = (tuple(map(float, values)) for values in normalization)
    spec = InputSpec(metadata.input_shape, len(metadata.class_names), mean, std)
    own = {f"network.{name}": tensor.detach().cpu().clone() for name, tensor in found.state.items()}
    tensors = build_model(found.graph, spec).state_dict() | own
    try:
        return Classifier(fill_network(metadata, tensors), metadata).eval()
    except ValueError as error:
        raise NetworkError(f"the network cannot be used: {error}") from error


@torch.no_grad()
def check_same(network: nn.Module, model: Classifier, normalization: Normalization) -> None:
    """Raise UnsupportedLayer unless the network made from data computes what the given one does, on random images."""
    x = torch.rand(RANDOM_IMAGES, *model.metadata.input_shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in normalization)
    device = device_of(network)
    expected = network(((x - mean) / std).to(device)).cpu()
    if not torch.allclose(model(x), expected, rtol=1e-4, atol=1e-5):
        raise UnsupportedLayer("the network computes something other than its layers do")
