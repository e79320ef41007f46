"""Small classifiers and image sets that several tests use."""

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from certtrain.data import ImageSet, to_unit
from certtrain.network.modelfile import Classifier, Metadata
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.architecture import MLP

SHAPE, CLASSES = (1, 2, 2), ("cat", "dog", "owl")


def metadata(**changes: Any) -> Metadata:
    """Of an MLP for three classes of 2×2 images, with fields replaced."""
    fields = {
        "architecture": MLP(name="mlp", hidden=(8,)),
        "input_shape": SHAPE,
        "class_names": CLASSES,
        "dataset": "folder",
        "eps": 0.1,
        "seed": 3,
        "versions": {"certtrain": "0"},
        "preset": {"name": "own"},
    }
    return Metadata(**(fields | changes))


def network(described: Metadata, seed: int = 0) -> nn.Sequential:
    """Untrained, with PyTorch's default weights; its BatchNorm has seen one batch."""
    spec = InputSpec(described.input_shape, len(described.class_names), (0.5,), (0.25,))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_model(described.architecture, spec)
        model.train()(torch.rand(16, *described.input_shape))
    return model.eval()


def classifier(seed: int = 0, **changes: Any) -> Classifier:
    """Such a network with its metadata, in evaluation mode."""
    described = metadata(**changes)
    return Classifier(network(described, seed), described).eval()


def images(count: int = 20, labels: Tensor | None = None, name: str = "folder") -> ImageSet:
    """Random 2×2 images; their labels are random as well unless they are given."""
    generator = Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *SHAPE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, len(CLASSES), (count,), generator=generator) if labels is None else labels
    return ImageSet(name, "test", pixels, labels, CLASSES)


@torch.no_grad()
def mostly_right(count: int = 100) -> tuple[Classifier, ImageSet]:
    """A model, and images of which it misclassifies every fifth."""
    model, data = classifier(seed=1), images(count)
    labels = model(to_unit(data.images)).argmax(1)
    return model, replace(data, labels=torch.where(torch.arange(count) % 5 == 0, (labels + 1) % 3, labels))
