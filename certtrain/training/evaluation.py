"""How good a network is while it trains: on examples that it is not tested on."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from certtrain.data import ImageSet, to_unit
from certtrain.runtime.precision import tensor_cores
from certtrain.verdicts import Verdict, correct_points
from certtrain.verification.certificate import Certifier

SIZE = 200  # examples at a time


@torch.no_grad()
@tensor_cores(False)
def natural_accuracy(network: nn.Module, images: ImageSet, device: str) -> float:
    """Share of `images` that `network`, which is in evaluation mode, classifies correctly."""
    return sum(int(correct_points(network(x), labels).sum()) for x, labels in _parts(images, device)) / len(images)


@tensor_cores(False)
def certified_accuracy(network: nn.Module, images: ImageSet, eps: float, device: str) -> tuple[float, float]:
    """Shares of `images` that are classified correctly, and that are certified at radius `eps`."""
    certifier, verdicts = Certifier(network), list[Verdict]()
    for x, labels in _parts(images, device):
        verdicts += certifier.certify(x, labels, eps).verdicts
    wrong, proved = verdicts.count("misclassified"), verdicts.count("certified")
    return 1 - wrong / len(verdicts), proved / len(verdicts)


def _parts(images: ImageSet, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    for pixels, labels in zip(torch.split(images.images, SIZE), torch.split(images.labels, SIZE), strict=True):
        yield to_unit(pixels.to(device)), labels.to(device)
