"""Accuracy by class, and the confusion of classes under attack."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from certtrain.attack.criterion import computing_in
from certtrain.data import ImageSet, to_unit
from certtrain.runtime.device import device_of
from certtrain.verification.certificate import DEFAULT_ARITHMETIC
from certtrain.verification.results import ExampleResult, count

BATCH = 200  # examples at a time


@dataclass(frozen=True)
class ClassResults:
    """Counts by the right class k of K.

    examples, natural, attacked, certified: how many examples there are, how many are classified correctly, how many no
        attack falsified, and how many are certified.
    confusion: confusion[k][j] is the number of examples of class k that the network gives class j under attack. A
        falsified example has the class of its counterexample, a misclassified one its own without perturbation, and
        every other one its right class.
    """

    class_names: tuple[str, ...]
    examples: tuple[int, ...]
    natural: tuple[int, ...]
    attacked: tuple[int, ...]
    certified: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """The accuracies of each class, None for one without examples, and the matrix."""
        return {
            "classes": [self._class(number) for number in range(len(self.class_names))],
            "confusion": self.confusion,
        }

    def _class(self, number: int) -> dict[str, Any]:
        total = self.examples[number]
        counts = {"natural": self.natural, "attacked": self.attacked, "certified": self.certified}
        shares = {f"{name}_accuracy": each[number] / total if total else None for name, each in counts.items()}
        return {"class": self.class_names[number], "examples": total, **shares}


def class_results(
    model: nn.Module, images: ImageSet, results: Sequence[ExampleResult], arithmetic: str = DEFAULT_ARITHMETIC
) -> ClassResults:
    """The results of a verification of `images` by class.

    Inference runs in `arithmetic` on the misclassified examples and on the counterexamples. A tie of the right class
    and another one counts as the other.
    """
    names = images.class_names
    found = [count(result for result in results if result.label == label) for label in range(len(names))]
    confusion = [[0] * len(names) for _ in names]
    for result, shown in zip(results, shown_classes(model, images, results, arithmetic), strict=True):
        confusion[result.label][shown] += 1
    return ClassResults(
        tuple(names),
        examples=tuple(sum(counts.values()) for counts in found),
        natural=tuple(sum(counts.values()) - counts["misclassified"] for counts in found),
        attacked=tuple(counts["certified"] + counts["open"] for counts in found),
        certified=tuple(counts["certified"] for counts in found),
        confusion=tuple(map(tuple, confusion)),
    )


def shown_classes(
    model: nn.Module, images: ImageSet, results: Sequence[ExampleResult], arithmetic: str = DEFAULT_ARITHMETIC
) -> list[int]:
    """The class of each example under attack, as `ClassResults` describes it."""
    shown = [result.label for result in results]
    wrong = [place for place, result in enumerate(results) if result.verdict in ("misclassified", "falsified")]
    for first in range(0, len(wrong), BATCH):
        places = wrong[first : first + BATCH]
        inputs = torch.stack([_attacked(images, results[place]) for place in places])
        labels = torch.tensor([shown[place] for place in places])
        for place, other in zip(places, _other_classes(model, inputs, labels, arithmetic), strict=True):
            shown[place] = other
    return shown


def _attacked(images: ImageSet, result: ExampleResult) -> Tensor:
    """The counterexample (C, H, W), or else the image itself."""
    if result.counterexample is not None:
        return result.counterexample
    return to_unit(images.images[result.index : result.index + 1].cpu())[0]


@torch.no_grad()
def _other_classes(model: nn.Module, inputs: Tensor, labels: Tensor, arithmetic: str) -> list[int]:
    """For misclassified inputs (n, C, H, W), the class with the largest logit apart from the label."""
    device = device_of(model)
    with computing_in(arithmetic, device.type):
        logits: Tensor = model(inputs.to(device))
    classes: list[int] = logits.float().cpu().scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1).tolist()
    return classes
