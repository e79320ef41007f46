"""Verification of single images: the class, the certificate, the largest certified radius, the counterexample."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
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
from certtrain.verification.cascade import DEFAULT_LIMITS, Limits, OnExamples, OnRound, OnWork, Work
from certtrain.verification.certificate import DEFAULT_ARITHMETIC, Certifier
from certtrain.verification.results import ExampleResult, count
from certtrain.verification.verify import network_of, verify

RADIUS_STEP = 1 / 2550  # a tenth of a grey level: how exactly the largest certified radius is found
SHARE_OF_VERDICT = 0.75  # of an image's time: the rest is kept for its largest radius
RADIUS = "largest certified ε"  # the name of this work where progress is shown


@dataclass(frozen=True)
class PictureResult:
    """What is known about one image.

    predicted: its class by inference, and label: the class that is certified, both as numbers. radius: the largest ε at
    which the class is certified, by bisection in tenths of a grey level, or `eps` where that is more; 0 if none is
    known. cut: whether the
    image's time ended the bisection, so that a larger one may be certified. unfinished: whether the verdict is open
    since its time ran out. requested: the method that was asked for. counterexample: uint8 (C, H, W), rounded to
    256 levels, and shown_as: its class after this rounding.
    """

    predicted: int
    label: int
    verdict: Verdict
    method: str | None
    eps: float
    radius: float
    cut: bool = False
    unfinished: bool = False
    requested: str = "ibp"
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
            "out_of_time": self.cut or self.unfinished,
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
    on_examples: OnExamples = lambda results: None,
    on_round: OnRound = lambda names, examples: None,
    on_work: OnWork = lambda work: None,
) -> list[PictureResult]:
    """Verify `pictures`, uint8 (N, C, H, W), of the class `label`; None for the class that inference gives each.

    The largest radius is by the bound `method`; by "alpha-crown" for methods that search, which would take long. The
    timeout of `limits` is for all of an image: three quarters of it for the verdict, and what is left then for the
    radius. `stop` and what begins with on_ are as in `verify`, whose errors are raised too; the search for the largest
    radii is a round of its own.
    """
    chosen = network_of(model, network)
    predicted = _classes(chosen, pictures, arithmetic)
    labels = predicted if label is None else torch.full_like(predicted, label)
    images = ImageSet("images", "test", pictures, labels, tuple(model.metadata.class_names))
    options: dict[str, Any] = {"arithmetic": arithmetic, "bounds": bounds, "limits": _for_verdicts(limits)}
    watch: dict[str, Any] = {"stop": stop, "on_examples": on_examples, "on_round": on_round, "on_work": on_work}
    found = verify(model, images, eps, attack=attack, method=method, network=network, **options, **watch).results
    certifier = Certifier(chosen, _bound(method), arithmetic=arithmetic, settings=bounds)
    on_round((RADIUS,), len(found))
    described = []
    for result in found:
        search = _RadiusSearch(certifier, images, result, limits.timeout, stop, on_work)
        one = _described(chosen, result, int(predicted[result.index]), eps, search)
        described.append(replace(one, requested=method))
        on_examples([result])
    return described


def _for_verdicts(limits: Limits) -> Limits:
    timeout = None if limits.timeout is None else SHARE_OF_VERDICT * limits.timeout
    return replace(limits, timeout=timeout)


def _bound(method: str) -> str:
    return method if method in METHODS else "alpha-crown"


class _RadiusSearch:
    """The bisection for the largest radius at which one image is certified, in what its verdict left of its time.

    Each radius that is tried may take an equal share of the time that is left, so that the first ones, which are large
    and seldom certified, leave time for the others.
    """

    def __init__(
        self,
        certifier: Certifier,
        images: ImageSet,
        result: ExampleResult,
        timeout: float | None,
        stop: Callable[[], bool],
        on_work: OnWork,
    ) -> None:
        device = device_of(certifier.model)
        row = slice(result.index, result.index + 1)
        self.certifier, self.stop, self.on_work, self.cut = certifier, stop, on_work, False
        self.x, self.label = to_unit(images.images[row].to(device)), images.labels[row].to(device)
        left = None if timeout is None else max(timeout - sum(result.tried.values()), 0.0)
        self.deadline = Deadline.after(left, stop)
        self.work = Work(RADIUS, [result.index], math.inf if left is None else left)

    def largest(self, known: float, most: float) -> float:
        """As `largest_radius`."""
        self.on_work(self.work)
        return largest_radius(self._certified, known, most)

    def _certified(self, radius: float, steps: int) -> bool:
        if self.deadline.over():
            self.cut = True
            return False
        self.on_work(self.work._replace(radius=radius))
        left = self.deadline.left
        own = Deadline.after(None if left is None else left / steps, self.stop)
        proved = bool(self.certifier.proved(self.x, self.label, radius, own)[0])
        self.cut |= not proved and own.over()
        return proved


def _described(
    model: Classifier, result: ExampleResult, predicted: int, eps: float, search: _RadiusSearch
) -> PictureResult:
    unfinished = result.verdict == "open" and len(result.cut) > 0
    found = PictureResult(predicted, result.label, result.verdict, result.method, eps, 0.0, unfinished=unfinished)
    if result.verdict == "misclassified":
        return found
    known = eps if result.verdict == "certified" else 0.0
    most = eps if result.verdict == "falsified" else 1.0
    radius = search.largest(known, most)
    found = replace(found, radius=radius, cut=search.cut)
    if result.counterexample is None:
        return found
    shown = to_levels(result.counterexample)
    shown_as = _classes(model, shown.unsqueeze(0), search.certifier.rounding.name)
    return replace(found, counterexample=shown, shown_as=int(shown_as))


def summary_of(results: Sequence[PictureResult]) -> dict[str, Any]:
    """The number of images with each verdict, and the median of the largest certified radii; None without images."""
    radii = [result.radius for result in results]
    counts: dict[str, Any] = {str(verdict): number for verdict, number in count(results).items()}
    return counts | {"median_largest_certified_eps": median(radii) if radii else None}


def largest_radius(
    certified: Callable[[float, int], bool], known: float, most: float, step: float = RADIUS_STEP
) -> float:
    """The largest radius for which `certified` returned True in a bisection between `known` and `most`.

    `known` is certified already, or 0, and is returned if no larger one is. The bisection tries multiples of `step`, so
    that its result does not depend on `known`. `certified` also gets the number of radii that are left to try at most,
    this one included.
    """
    low, high = math.floor(known / step), math.ceil(most / step)
    while high - low > 1:
        middle, left = (low + high) // 2, math.ceil(math.log2(high - low))
        low, high = (middle, high) if certified(middle * step, left) else (low, middle)
    return max(known, low * step)


@torch.no_grad()
def _classes(model: Classifier, pictures: Tensor, arithmetic: str) -> Tensor:
    """The class (N,) of each picture by inference, on the CPU."""
    device = device_of(model)
    with computing_in(arithmetic, device.type):
        logits: Tensor = model(to_unit(pictures.to(device)))
    return logits.argmax(dim=1).cpu()
