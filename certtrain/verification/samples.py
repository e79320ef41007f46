"""Test images to look at: clean, attacked, and the perturbation between them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certtrain.attack.criterion import AttackBatch, Misclassification, batch_of
from certtrain.attack.descent import run_pgd
from certtrain.attack.losses import margin
from certtrain.attack.state import AttackState
from certtrain.data import ImageSet, to_unit
from certtrain.runtime.deadline import never
from certtrain.runtime.device import device_of
from certtrain.verdicts import Verdict
from certtrain.verification.certificate import DEFAULT_ARITHMETIC
from certtrain.verification.classes import shown_classes
from certtrain.verification.results import ExampleResult

SHOWN_VERDICTS: tuple[Verdict, ...] = ("certified", "open", "falsified")
PGD_STEPS, CENTRE = 20, 0.5  # of PGD, which starts at the centre of each box


@dataclass(frozen=True)
class Sample:
    """An example that is classified correctly: its image uint8 (C, H, W), and where an attack ended in its box.

    attacked: float32 (C, H, W) pixels; a counterexample if it is falsified. shown_as: the class of these.
    """

    result: ExampleResult
    clean: Tensor
    attacked: Tensor
    shown_as: int


def attacked_samples(
    model: nn.Module,
    images: ImageSet,
    results: Sequence[ExampleResult],
    eps: float,
    count: int,
    arithmetic: str = DEFAULT_ARITHMETIC,
) -> list[Sample]:
    """The first `count` examples that are certified, those that are open and those that are falsified, in this order.

    The attacked image of an example without a counterexample is the input with the smallest margin in 20 steps of
    PGD from the centre of its box: for pictures only.
    """
    chosen = [result for verdict in SHOWN_VERDICTS for result in [r for r in results if r.verdict == verdict][:count]]
    if not chosen:
        return []
    clean = images.images[[result.index for result in chosen]].cpu()
    ended = _ends_of_attack(model, to_unit(clean), torch.tensor([result.label for result in chosen]), eps, arithmetic)
    shown = shown_classes(model, images, chosen, arithmetic)
    return [
        Sample(result, image, end if result.counterexample is None else result.counterexample, label)
        for result, image, end, label in zip(chosen, clean, ended, shown, strict=True)
    ]


def _ends_of_attack(model: nn.Module, x: Tensor, labels: Tensor, eps: float, arithmetic: str) -> Tensor:
    """The inputs (n, C, H, W) with the smallest margin that PGD found, on the CPU."""
    device = device_of(model)
    x, labels = x.to(device), labels.to(device)
    found = _SmallestMargins(Misclassification(model, arithmetic), x, labels)
    state = AttackState(found, batch_of(x, labels, eps), torch.arange(len(x)), never)
    run_pgd(state, state.batch, CENTRE, margin, PGD_STEPS)
    return found.point.cpu()


class _SmallestMargins:
    """A `Criterion` for which nothing is a counterexample; it keeps the inputs (n, …) with the smallest margins."""

    def __init__(self, network: Misclassification, x: Tensor, labels: Tensor) -> None:
        self.network, self.labels, self.point = network, labels, x
        with torch.no_grad():
            self.margins = margin(network.outputs(x), labels, labels)

    def outputs(self, x: Tensor) -> Tensor:
        outputs = self.network.outputs(x)
        margins = margin(outputs.detach(), self.labels, self.labels)
        better = margins > self.margins
        self.margins = torch.where(better, margins, self.margins)
        self.point = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x.detach(), self.point)
        return outputs

    def robust(self, outputs: Tensor, batch: AttackBatch) -> Tensor:
        return torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)

    def confirmed(self, point: Tensor, example: AttackBatch) -> bool:
        return False
