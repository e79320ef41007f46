"""Accuracy by class, and the confusion under attack."""

import json

import torch
from torch import nn

from certtrain.attack import PGD
from certtrain.data import ImageSet, to_unit
from certtrain.verification.classes import class_results, shown_classes
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import verify
from helpers.tiny_classifier import mostly_right


class Brightest(nn.Module):
    """The class of a 1×1×3 image is its brightest pixel; equal logits where pixels are equal."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight


def pixels(*rows: tuple[int, int, int]) -> ImageSet:
    images = torch.tensor(rows, dtype=torch.uint8).view(-1, 1, 1, 3)
    return ImageSet("three", "test", images, torch.zeros(len(rows), dtype=torch.int64), ("a", "b", "c"))


def test_known_verdicts_in_known_cells():
    images = pixels((200, 100, 0), (200, 100, 0), (200, 100, 0), (0, 100, 200))
    shifted = torch.tensor([0.4, 0.6, 0.1]).view(1, 1, 3)
    results = [
        ExampleResult(0, 0, "certified", 1.0, "ibp"),
        ExampleResult(1, 0, "open", None),
        ExampleResult(2, 0, "falsified", None, "attack", counterexample=shifted),
        ExampleResult(3, 0, "misclassified", None, "inference"),
    ]
    found = class_results(Brightest(), images, results)
    assert found.confusion == ((2, 1, 1), (0, 0, 0), (0, 0, 0))
    assert (found.examples, found.natural) == ((4, 0, 0), (3, 0, 0))
    assert (found.attacked, found.certified) == ((2, 0, 0), (1, 0, 0))
    first, second, _ = found.to_dict()["classes"]
    accuracies = {"natural_accuracy": 0.75, "attacked_accuracy": 0.5, "certified_accuracy": 0.25}
    assert first == {"class": "a", "examples": 4} | accuracies
    assert second == {"class": "b", "examples": 0} | dict.fromkeys(accuracies)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_tie_is_not_the_right_class():
    images = pixels((100, 100, 0))
    assert shown_classes(Brightest(), images, [ExampleResult(0, 0, "misclassified", None, "inference")]) == [1]


def test_the_counts_add_up_to_those_of_the_report():
    model, images = mostly_right()
    report = verify(model, images, 0.05, attack=PGD(steps=10), method="ibp")
    found = class_results(model, images, report.results)
    assert sum(found.examples) == report.examples
    assert sum(found.natural) == report.examples - report.misclassified
    assert sum(found.attacked) == report.certified + report.open
    assert sum(found.certified) == report.certified
    assert [sum(row) for row in found.confusion] == list(found.examples)
    assert [found.confusion[k][k] for k in range(3)] == list(found.attacked)
    with torch.no_grad():
        classes = model(to_unit(images.images)).argmax(1)
    wrong = [r for r in report.results if r.verdict == "misclassified"]
    shown = shown_classes(model, images, wrong)
    assert shown == [int(classes[r.index]) for r in wrong]
