"""Verification of a model on a set of images, with its report."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

import torch
from torch import nn

from certtrain.attack import PGD, AttackSettings, described
from certtrain.bounds.checks import check_evaluation_mode, kind_of
from certtrain.bounds.inference import outside_inference_mode, plain_model
from certtrain.bounds.modules import check_modules
from certtrain.bounds.settings import VERDICT_SETTINGS
from certtrain.bounds.settings import Settings as BoundSettings
from certtrain.bounds.supported import checked_graph
from certtrain.data import ImageSet
from certtrain.deprecation import renamed_argument, warn_renamed
from certtrain.errors import DataError, MethodError, NetworkError
from certtrain.formats import count_of, percent
from certtrain.network.folding import fold_batch_norm
from certtrain.network.modelfile import Classifier
from certtrain.network.reading import ForeignMetadata
from certtrain.runtime.deadline import never
from certtrain.runtime.device import device_of
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.choices import NetworkName
from certtrain.spec.epsilon import format_eps, parse_eps
from certtrain.verdicts import VERDICTS, Verdict
from certtrain.verification.cascade import DEFAULT_LIMITS, Cascade, Limits, OnExamples, OnRound, OnWork
from certtrain.verification.certificate import DEFAULT_ARITHMETIC
from certtrain.verification.methods import assumptions_of, names_of, rounds_of
from certtrain.verification.results import ExampleResult, StepSummary, certified_by, count, step_summaries
from certtrain.verification.shares import ALONE, Shares

DEFAULT_ATTACK = PGD()  # that of the command


@dataclass(frozen=True, repr=False)
class Report:
    """Counts over a set, with accuracies and errors as shares of all examples.

    method: as requested. steps: a summary of each step, over all runs that the
        results come from. seconds: of this run.
    network: "saved", as in the model's file, or "folded", as `export` writes it.
    unfinished: how many open examples have not been through all steps to their end, for lack of time.
    interrupted: whether the verification was stopped before its end.
    unreached: how many examples have no result, for that reason; they are not in `examples`.
    certified_by: the number of certified examples by the step that certified them.
    results: the result of each example, in the order of their numbers; not in files and JSON.
    """

    dataset: str
    split: str
    eps: float
    examples: int
    certified: int
    open: int
    falsified: int
    misclassified: int
    method: str
    attack: dict[str, int | str]
    assumptions: tuple[str, ...]
    seconds: float
    steps: tuple[StepSummary, ...] = ()
    network: NetworkName = "saved"
    arithmetic: str = DEFAULT_ARITHMETIC
    unfinished: int = 0
    unreached: int = 0
    interrupted: bool = False
    certified_by: Mapping[str, int] = field(default_factory=dict)
    results: tuple[ExampleResult, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        """The accuracies, and the limits of the robust accuracy; without an attack there is none under attack."""
        shares = {"natural": self.natural_accuracy, "certified": self.certified_accuracy}
        if self.attack["name"] != described(None)["name"]:
            shares = {"natural": self.natural_accuracy, "under attack": self.attacked_accuracy, **shares}
        about = f"{self.dataset}, {self.split} set, {count_of(self.examples, 'example')}, ε = {format_eps(self.eps)}"
        accuracies = ", ".join(f"{name} {percent(share)}" for name, share in shares.items())
        missing = f", not reached {self.unreached:,}" if self.unreached else ""
        return f"<Report: {about}: {accuracies}, open {self.open:,}{missing}>"

    @property
    def verdicts(self) -> dict[int, Verdict]:
        """The verdict of each example, by its number."""
        return {result.index: result.verdict for result in self.results}

    def is_near_guessing(self, classes: int) -> bool:
        """Whether the natural accuracy is hardly better than guessing: less than a seventh of the way to 1."""
        return self.examples > 0 and self.natural_accuracy < 1 / classes + (1 - 1 / classes) / 7

    @property
    def natural_accuracy(self) -> float:
        """The share that is classified correctly."""
        return (self.examples - self.misclassified) / max(self.examples, 1)

    @property
    def attacked_accuracy(self) -> float:
        """The share that no attack falsified, an upper limit on robust accuracy; without one, the natural accuracy."""
        return (self.certified + self.open) / max(self.examples, 1)

    @property
    def pgd_accuracy(self) -> float:
        """The old name of `attacked_accuracy`."""
        warn_renamed("Report.pgd_accuracy", "Report.attacked_accuracy")
        return self.attacked_accuracy

    @property
    def stages(self) -> tuple[StepSummary, ...]:
        """The old name of `steps`."""
        warn_renamed("Report.stages", "Report.steps")
        return self.steps

    @property
    def certified_accuracy(self) -> float:
        """The share that is certified: a lower limit on robust accuracy."""
        return self.certified / max(self.examples, 1)

    @property
    def natural_error(self) -> float:
        """The share that is misclassified; like all shares from counts, since 1 − a share has a rounding error."""
        return self.misclassified / max(self.examples, 1)

    @property
    def verified_error(self) -> float:
        """The share that is not certified: an upper limit on robust error."""
        return (self.examples - self.certified) / max(self.examples, 1)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the accuracies and errors, beside the numbers of examples; ε also as text."""
        accuracies = {
            "eps": self.eps,
            "eps_text": format_eps(self.eps),
            "examples": self.examples,
            "natural_accuracy": self.natural_accuracy,
            "attacked_accuracy": self.attacked_accuracy,
            "certified_accuracy": self.certified_accuracy,
            "natural_error": self.natural_error,
            "verified_error": self.verified_error,
        }
        about = {"dataset": self.dataset, "split": self.split}
        own = asdict(replace(self, results=()))
        del own["results"]
        return about | accuracies | own | {"steps": tuple(step.to_dict() for step in self.steps)}


@renamed_argument("on_points", "on_examples")
@outside_inference_mode()
@tensor_cores(False)
def verify(
    model: Classifier,
    images: ImageSet,
    eps: float,
    *,
    attack: AttackSettings | None = DEFAULT_ATTACK,
    method: str = "auto",
    network: NetworkName = "saved",
    arithmetic: str = DEFAULT_ARITHMETIC,
    bounds: BoundSettings = VERDICT_SETTINGS,
    limits: Limits = DEFAULT_LIMITS,
    batch_size: int = 200,
    known: Sequence[ExampleResult] = (),
    on_examples: OnExamples = lambda results: None,
    on_round: OnRound = lambda names, examples: None,
    on_work: OnWork = lambda work: None,
    stop: Callable[[], bool] = never,
    shares: Shares = ALONE,
) -> Report:
    """Classify, attack and certify each example.

    `method` "auto" is the cascade: attack and interval bounds first, then each
    tighter method, and a targeted attack, on the examples that are still open. Any
    other name means that method only. The default `limits` give each open example 30 s;
    Limits(timeout=None) has no limit. `known` are earlier results: decided examples are
    not tried again, open ones only by methods that were not tried on them, or that ran
    out of time and may take longer now. Without an
    `attack` (None) no example is falsified. `bounds` are the settings of the bounds.

    `on_round` is called at the start of each round, with its steps' names and its
    number of examples; `on_examples` with the results of each batch, so once a round
    for an open example; `on_work` when a step begins on a batch, and on the way by
    searches. An exception that they raise ends the verification. `stop` is asked several
    times a second; once it returns True, the report is of the examples that have a result.
    `shares` are those of several processes that verify together (`certfile/sharing.py`); the report of the first
    one is of all results.

    Certificates are for the network in `arithmetic`, as for `certify`; inference and
    attack compute in it. Raises DataError if the images do not fit the model,
    MethodError, EpsilonError, UnsupportedLayer, and SoundnessError if a counterexample
    to a certificate was found, which means that a bound is wrong.
    """
    _check(model, images)
    _check_options(attack, limits, batch_size)
    start, eps = time.monotonic(), parse_eps(eps)
    model = network_of(plain_model(model), network)
    rounds = rounds_of(model, method, attack, batch_size, arithmetic, bounds)
    callbacks = (on_examples, on_round, on_work, stop)
    results = Cascade(model, images, eps, rounds, limits, known, *callbacks, shares).run()
    return Report(
        dataset=images.name,
        split=images.split,
        eps=eps,
        method=method,
        attack=described(attack),
        assumptions=assumptions_of(model, method, arithmetic),
        seconds=time.monotonic() - start,
        network=network,
        arithmetic=arithmetic,
        **_summary(results, names_of(method, attack), len(images), stop),
    )


def with_results(report: Report, results: Sequence[ExampleResult]) -> Report:
    """The report with these results of its examples; its time and its task stay."""
    steps = [step.name for step in report.steps]
    counted = _summary(results, steps, report.examples + report.unreached, lambda: report.interrupted)
    return replace(report, **counted)


def _check(model: Classifier, images: ImageSet) -> None:
    _check_kinds(model, images)
    check_fit(model, images)
    with torch.no_grad():  # the replay in `checked_graph` needs no gradients
        check_evaluation_mode(checked_graph(model, model.metadata.input_shape))


def _check_options(attack: AttackSettings | None, limits: Limits, batch_size: int) -> None:
    if not isinstance(attack, AttackSettings | None):
        raise MethodError(f"attack is {attack!r}; give settings, such as certtrain.attack.PGD(), or None for no attack")
    if not isinstance(limits, Limits):
        raise MethodError(f"limits is {limits!r}; give certtrain.Limits(timeout=…, budget=…)")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise MethodError(f"batch_size is {batch_size}; it must be a whole number from 1")


def _summary(
    results: Sequence[ExampleResult], steps: Sequence[str], total: int, stop: Callable[[], bool]
) -> dict[str, Any]:
    """The fields of a report that follow from the results of some of `total` examples."""
    counts, unreached = count(results), total - len(results)
    unfinished = sum(result.verdict == "open" and not all(map(result.finished, steps)) for result in results)
    return {
        "examples": len(results),
        **{verdict: counts[verdict] for verdict in VERDICTS},
        "steps": step_summaries(results, steps),
        "certified_by": certified_by(results, steps),
        "unfinished": unfinished,
        "unreached": unreached,
        "interrupted": stop() and unreached + unfinished > 0,
        "results": tuple(results),
    }


def network_of(model: Classifier, network: NetworkName) -> Classifier:
    """The network as saved, or with BatchNorm folded, on the same device. Raises UnsupportedLayer and NetworkError."""
    if network not in get_args(NetworkName):
        raise NetworkError(f"network is {network!r}; choose from: {', '.join(get_args(NetworkName))}")
    if network == "saved":
        return model
    if isinstance(model.metadata, ForeignMetadata):  # its certificates are about the operators of its file
        raise NetworkError("only certtrain's own networks are folded, not one from a file of another program")
    return fold_batch_norm(model).to(device_of(model))


def check_fit(model: Classifier, images: ImageSet) -> None:
    """Raise DataError unless the images have the shape and the classes that the model was made for."""
    made_for = model.metadata
    if images.input_shape != made_for.input_shape:
        raise DataError(
            f"{images.name} has images of shape {images.input_shape} (channels, height, width), "
            f"but the model takes {made_for.input_shape}"
        )
    if images.class_names != made_for.class_names:
        raise DataError(_other_classes(images, made_for.class_names))


def _other_classes(images: ImageSet, model: Sequence[str]) -> str:
    """How the classes of the images differ from the model's."""
    own = images.class_names
    if len(own) != len(model):
        return (
            f"{images.name} has {len(own)} classes ({', '.join(own[:3])}, …), "
            f"but the model has {len(model)} ({', '.join(model[:3])}, …)"
        )
    number = next(n for n, (there, here) in enumerate(zip(own, model, strict=True)) if there != here)
    return (
        f"{images.name} has other classes than the model: number {number} is {own[number]!r} there, "
        f"and {model[number]!r} in the model; both need the same names in the same order"
    )


def _check_kinds(model: Classifier, images: ImageSet) -> None:
    """Raise NetworkError or DataError that says what to give instead of something else."""
    if isinstance(model, nn.Module):
        check_modules(model)  # has a more helpful error for a compiled or scripted model
    if not isinstance(model, Classifier):
        raise NetworkError(
            f"the model is {kind_of(model)}; verify takes a Classifier, as load_model gives it. "
            "For any other network, certify certifies a batch"
        )
    if not isinstance(images, ImageSet):
        raise DataError(
            f"the images are {kind_of(images)}; verify takes a certtrain.data.ImageSet, which holds "
            "uint8 images (N, C, H, W) and int64 labels (N,). For tensors, use certify"
        )
    if any(tensor.dtype == torch.float64 for tensor in model.parameters()):
        raise NetworkError("the model's weights are torch.float64, but pixels come in float32; call model.float()")
