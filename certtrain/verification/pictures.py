"""Verification of single images: the class, the certificate, the largest certified radius, the counterexample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from certtrain.attack import AttackSettings
from certtrain.attack.criterion import computing_in
from certtrain.bounds.methods import METHODS
from certtrain.bounds.settings import VERDICT_SETTINGS, Settings
from certtrain.data import ImageSet, to_unit
from certtrain.data.pictures import to_levels
from certtrain.network.modelfile import Classifier
from certtrain.runtime.deadline import Deadline, never
from certtrain.runtime.device import device_of
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.choices import NetworkName
from certtrain.verdicts import Verdict
from certtrain.verification.cascade import DEFAULT_LIMITS, Limits
from certtrain.verification.certificate import DEFAULT_ARITHMETIC, Certifier
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import network_of, verify

RADIUS_STEP = 1 / 2550  # a tenth of a grey level: how exactly the largest certified radius is found


@dataclass(frozen=True)
class PictureResult:
    """What is known about one image.

    predicted: its class by inference, and label: the class that is certified, both as numbers. radius: the largest ε at
    which the class is certified, by bisection, or more where `eps` itself is; 0 if none is known. counterexample: uint8
    (C, H, W), rounded to 256 levels, and shown_as: its class after this rounding.
    """

    predicted: int
    label: int
    verdict: Verdict
    method: str | None
    eps: float
    radius: float
    counterexample: Tensor | None = None
    shown_as: int | None = None

    def to_dict(self, class_names: Sequence[str]) -> dict[str, Any]:
        """All but the pixels, with the names of the classes."""
        return {
            "class": class_names[self.predicted],
            "label": class_names[self.label],
            "verdict": self.verdict,
            "method": self.method,
            "eps": self.eps,
            "largest_certified_eps": self.radius,
        }


@tensor_cores(False)
def verify_pictures(
    model: Classifier,
    pictures: Tensor,
    label: int | None,
    eps: float,
    *,
    attack: AttackSettings | None,
    method: str = "ibp",
    network: NetworkName = "saved",
    arithmetic: str = DEFAULT_ARITHMETIC,
    bounds: Settings = VERDICT_SETTINGS,
    limits: Limits = DEFAULT_LIMITS,
    stop: Callable[[], bool] = never,
    **watch: Any,
) -> list[PictureResult]:
    """Verify `pictures`, uint8 (N, C, H, W), of the class `label`; None for the class that inference gives each.

    The largest radius is by the bound `method`; by "alpha-crown" for methods that search, which would take long.
    `stop` and `watch` are as in `verify`, whose errors are raised too.
    """
    chosen = network_of(model, network)
    predicted = _classes(chosen, pictures, arithmetic)
    labels = predicted if label is None else torch.full_like(predicted, label)
    images = ImageSet("images", "test", pictures, labels, tuple(model.metadata.class_names))
    results: dict[int, ExampleResult] = {}

    def keep(done: list[ExampleResult]) -> None:
        results.update({result.index: result for result in done})

    options: dict[str, Any] = {"arithmetic": arithmetic, "bounds": bounds, "limits": limits, "on_examples": keep}
    verify(model, images, eps, attack=attack, method=method, network=network, stop=stop, **options, **watch)
    certifier = Certifier(chosen, _bound(method), arithmetic=arithmetic, settings=bounds)

    def certified(number: int, radius: float) -> bool:
        x, label = (part[number : number + 1].to(device_of(chosen)) for part in (pictures, labels))
        return bool(certifier.proved(to_unit(x), label, radius, Deadline.after(limits.timeout, stop))[0])

    return [
        _described(chosen, results[number], int(predicted[number]), eps, arithmetic, partial(certified, number))
        for number in sorted(results)
    ]


def _bound(method: str) -> str:
    return method if method in METHODS else "alpha-crown"


def _described(
    model: Classifier,
    result: ExampleResult,
    predicted: int,
    eps: float,
    arithmetic: str,
    certified: Callable[[float], bool],
) -> PictureResult:
    found = PictureResult(predicted, result.label, result.verdict, result.method, eps, 0.0)
    if result.verdict == "misclassified":
        return found
    known = eps if result.verdict == "certified" else 0.0
    most = eps if result.verdict == "falsified" else 1.0
    found = replace(found, radius=largest_radius(certified, known, most))
    if result.counterexample is None:
        return found
    shown = to_levels(result.counterexample)
    return replace(found, counterexample=shown, shown_as=int(_classes(model, shown.unsqueeze(0), arithmetic)))


def largest_radius(certified: Callable[[float], bool], known: float, most: float, step: float = RADIUS_STEP) -> float:
    """The largest radius for which `certified` returned True in a bisection between `known` and `most`.

    `known` is certified already, or 0. It ends where the interval is no wider than `step`.
    """
    while most - known > step:
        middle = (known + most) / 2
        known, most = (middle, most) if certified(middle) else (known, middle)
    return known


@torch.no_grad()
def _classes(model: Classifier, pictures: Tensor, arithmetic: str) -> Tensor:
    """The class (N,) of each picture by inference, on the CPU."""
    device = device_of(model)
    with computing_in(arithmetic, device.type):
        logits: Tensor = model(to_unit(pictures.to(device)))
    return logits.argmax(dim=1).cpu()
