"""A network's accuracy during training, on training examples and on held-out ones, never on the test set."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from certtrain.data import ImageSet, to_unit
from certtrain.network.assembly import Images
from certtrain.runs.epoch import END_EXAMPLES
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.preset import Preset
from certtrain.verdicts import Verdict, correct_examples
from certtrain.verification.certificate import Certifier

SIZE = 200  # examples at a time


def epoch_accuracies(
    network: nn.Module, images: Images, preset: Preset, device: str, *, eps: float, known: Collection[str]
) -> dict[str, float]:
    """The accuracies at the end of an epoch that its steps do not measure, by name; `known` are those that they do.

    On training examples these are natural accuracy if the steps have no clean batch, and certified accuracy by
    intervals at the epoch's ε if the objective has no bounds over the whole box; and both on the held-out examples.
    """
    accuracies, held_out = dict[str, float](), images.validation
    if "natural_accuracy" not in known:
        accuracies["natural_accuracy"] = natural_accuracy(network, images.train.take(END_EXAMPLES), device)
    if "certified_accuracy" not in known:
        _, accuracies["certified_accuracy"] = certified_accuracy(network, images.train.take(END_EXAMPLES), eps, device)
    if held_out is not None:
        natural, certified = certified_accuracy(network, held_out, preset.eps.max, device)
        accuracies |= {"validation_natural_accuracy": natural, "validation_certified_accuracy": certified}
    return accuracies


@torch.no_grad()
@tensor_cores(False)
def natural_accuracy(network: nn.Module, images: ImageSet, device: str) -> float:
    """The share of `images` that `network`, in evaluation mode, classifies correctly."""
    return sum(int(correct_examples(network(x), labels).sum()) for x, labels in _parts(images, device)) / len(images)


@tensor_cores(False)
def certified_accuracy(network: nn.Module, images: ImageSet, eps: float, device: str) -> tuple[float, float]:
    """The share of `images` that are classified correctly, and the share that is certified at radius `eps`."""
    certifier, verdicts = Certifier(network), list[Verdict]()
    for x, labels in _parts(images, device):
        verdicts += certifier.certify(x, labels, eps).verdicts
    wrong, proved = verdicts.count("misclassified"), verdicts.count("certified")
    return (len(verdicts) - wrong) / len(verdicts), proved / len(verdicts)


def _parts(images: ImageSet, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    for pixels, labels in zip(torch.split(images.images, SIZE), torch.split(images.labels, SIZE), strict=True):
        yield to_unit(pixels.to(device)), labels.to(device)
