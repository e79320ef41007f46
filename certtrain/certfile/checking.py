"""Checks of certificate files: every claim in a file is computed again."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from certtrain.bounds.box import PIXEL_RANGE, box_ends
from certtrain.bounds.methods import SEARCH_METHODS
from certtrain.bounds.settings import DEFAULT
from certtrain.certfile.lines import Header, Record, decode
from certtrain.certfile.reading import Contents
from certtrain.certfile.writing import data_of, hash_model, reading_of
from certtrain.data import ImageSet, Progress, to_unit
from certtrain.errors import CertificateError, FailedCheck
from certtrain.formats import count_of
from certtrain.network.modelfile import Classifier
from certtrain.runtime.device import device_of
from certtrain.runtime.precision import tensor_cores
from certtrain.spec.epsilon import format_eps
from certtrain.verification.complete import COMPLETE, CompleteStep
from certtrain.verification.methods import assumptions_of, examples_at_once, methods_of, step_named
from certtrain.verification.results import count
from certtrain.verification.steps import INFERENCE, ExampleBatch, correctly_classified, misclassified_in_batch_of_one
from certtrain.verification.verify import check_fit, network_of

# Two machines may sum the same float64 terms in different orders. A sum of 10⁴ terms up to 10³ is then uncertain by
# 10³ · 10⁴ · 2⁻⁵³ ≈ 10⁻⁹; larger margins are sums of larger terms.
RELATIVE, ABSOLUTE = 1e-6, 1e-9
# An optimisation stops at a margin above zero, and its steps depend on the last digits of sums. Without an early
# stop it reaches the margin at which it stopped on another machine, up to differences in the slopes. These cost less
# than this share of the margin: the optimisation itself stops where ten steps gain a hundredth of the share.
SEARCHED_RELATIVE = 1e-3
MOST_SHOWN = 5  # disagreements that an error message lists


@dataclass(frozen=True)
class Checked:
    """The result for a valid file: the `examples` in it, how many were `checked`, and counts of their verdicts."""

    file: str
    examples: int
    checked: int
    counts: dict[str, int]
    eps: float
    method: str
    arithmetic: str
    network: str
    assumptions: tuple[str, ...]
    written_with: dict[str, str]
    seconds: float

    @property
    def partial(self) -> bool:
        """Whether some examples were not checked."""
        return self.checked < self.examples

    def to_dict(self) -> dict[str, Any]:
        """All fields, whether the check was partial, and the accuracies of the checked examples; ε also as text."""
        open_ones, certified = self.counts["open"], self.counts["certified"]
        accuracies = {
            "natural_accuracy": (self.checked - self.counts["misclassified"]) / self.checked,
            "attacked_accuracy": (certified + open_ones) / self.checked,
            "certified_accuracy": certified / self.checked,
            "eps_text": format_eps(self.eps),
        }
        return asdict(self) | accuracies | {"partial": self.partial}


@tensor_cores(False)
def check(
    path: Path,
    contents: Contents,
    model_file: Path,
    model: Classifier,
    images: ImageSet,
    *,
    limit: int | None = None,
    memory: int = DEFAULT.memory,
    on_progress: Progress = lambda what, done, total: None,
) -> Checked:
    """Recompute the certificates of `contents`, read from `path`, for the first `limit` examples or all.

    `images` are as many examples of the named split as the header says. A certified
    example must be certified again by the same method, with the recorded margin; for
    a method that optimises, the margin may be at most what the optimisation reaches.
    A counterexample must be in the exact box, and inference must misclassify it.
    Exactly the examples that are recorded as misclassified must be misclassified.
    `memory` is for linear bounds, in bytes. `on_progress` is called with the name of
    the step that is computed again, how many records are checked and how many there are.

    Raises CertificateError if the model or the data differ, and FailedCheck if a
    record is about another example or its claim does not hold.
    """
    start = time.monotonic()
    check_fit(model, images)
    if not contents.sealed:
        raise CertificateError(f"{path} is not finished; run the command that wrote it again, which continues it")
    _check_header(path, contents.header, model_file, model, images)
    records = [contents.records[index] for index in range(len(images))]
    wrong = list(_other_examples(records, images))
    if not wrong:
        records = records[:limit]
        recheck = _Recheck(contents.header, network_of(model, contents.header.network), images, memory)
        wrong = list(recheck.disagreements(records, on_progress))
    if wrong:
        more = f"; and {len(wrong) - MOST_SHOWN} more" if len(wrong) > MOST_SHOWN else ""
        raise FailedCheck(f"{path} does not hold: {'; '.join(wrong[:MOST_SHOWN])}{more}")
    return _outcome(path, contents, records, time.monotonic() - start)


def _outcome(path: Path, contents: Contents, records: list[Record], seconds: float) -> Checked:
    header = contents.header
    return Checked(
        file=str(path),
        examples=header.data.examples,
        checked=len(records),
        counts={str(verdict): number for verdict, number in count(records).items()},
        eps=header.eps.value,
        method=header.method,
        arithmetic=header.arithmetic,
        network=header.network,
        assumptions=header.assumptions,
        written_with=header.versions,
        seconds=seconds,
    )


def _check_header(path: Path, header: Header, model_file: Path, model: Classifier, images: ImageSet) -> None:
    """Raise CertificateError if the header describes other data, another model, or a task that is not supported."""
    check_model(path, header, model_file, model)
    if header.data.model_dump() != data_of(images):
        raise CertificateError(
            f"{path} is about other data: the {count_of(header.data.examples, 'example')} of the "
            f"{header.data.split} set of {header.data.name} have another SHA-256 here; give the same --data-dir"
        )
    if header.inputs != PIXEL_RANGE:
        known = f"certtrain certifies pixels in {PIXEL_RANGE}"
        raise CertificateError(f"{path} is about inputs in {header.inputs}; {known}")
    if header.reading != reading_of(model):
        raise CertificateError(f"{path} says that the network's file is read in another way than it is read here")
    if header.assumptions != assumptions_of(network_of(model, header.network), header.method, header.arithmetic):
        raise CertificateError(f"{path} states assumptions that are not those of its certificates")
    methods_of(header.method)


def check_model(path: Path, header: Header, model_file: Path, model: Classifier) -> None:
    """Raise CertificateError if the header describes another model."""
    here = hash_model(model_file, model)
    if header.model != here:
        raise CertificateError(f"{path} is about another model than {model_file}: {_which(header, here)}")


def _which(header: Header, here: Any) -> str:
    if header.model.tensors != here.tensors:
        return "the weights differ"
    if header.model.architecture != here.architecture:
        return "the architecture differs"
    return "the weights and the architecture are the same, but the rest of the file is not"


def _other_examples(records: Sequence[Record], images: ImageSet) -> Iterator[str]:
    """Errors for records whose label or image differs from the example of their number."""
    for record, label in zip(records, images.labels.tolist(), strict=True):
        if record.label != label:
            yield f"example {record.index} has label {label}, not {record.label}"
        elif record.sha256 != images.example_fingerprint(record.index):
            yield f"example {record.index} is another image"


RecordCheck = Callable[[Sequence[Record]], Iterator[str]]


@dataclass(frozen=True)
class _Recheck:
    """The recomputation of the records of one file."""

    header: Header
    model: Classifier
    images: ImageSet
    memory: int

    def disagreements(self, records: Sequence[Record], on_progress: Progress) -> Iterator[str]:
        """A message for each claim that does not hold.

        A record of a certified example is checked when its bound is computed again, any other after inference.
        """
        done = 0
        for name, check_records, batch in self._batches(records):
            on_progress(name, done, len(records))
            yield from check_records(batch)
            done += sum(name != INFERENCE or record.verdict != "certified" for record in batch)
        on_progress("", done, len(records))

    def _batches(self, records: Sequence[Record]) -> Iterator[tuple[str, RecordCheck, Sequence[Record]]]:
        """The batches of each step that is computed again, with its name and its check: inference first."""
        size = self.header.batch_size
        yield from ((INFERENCE, self._inference, part) for part in _parts(records, size))
        certified = [record for record in records if record.verdict == "certified"]
        for method in dict.fromkeys(str(record.method) for record in certified):
            group, check_records = [record for record in certified if record.method == method], self._check_of(method)
            yield from ((method, check_records, part) for part in _parts(group, examples_at_once(method, size)))

    def _check_of(self, method: str) -> RecordCheck:
        if method not in methods_of(self.header.method):
            return _other_method(method)
        return self._trees() if method == COMPLETE else self._bounds(method)

    def _inference(self, records: Sequence[Record]) -> Iterator[str]:
        batch = self._batch(records)
        correct = correctly_classified(self.model, batch.x, batch.labels, self.header.arithmetic).tolist()
        for record, x, label, is_correct in zip(records, batch.x, batch.labels, correct, strict=True):
            wrong = record.verdict == "misclassified"
            # A batch of another size may round sums differently, so agreement in a batch of one is enough.
            if (
                is_correct == wrong
                and misclassified_in_batch_of_one(self.model, x, label, self.header.arithmetic) != wrong
            ):
                here = _classification(is_correct)
                yield f"example {record.index} is recorded as {record.verdict}, but is {here} here"
            elif record.counterexample is not None:
                yield from self._counterexample(record, record.counterexample, x, label)

    def _counterexample(self, record: Record, counterexample: str, x: Tensor, label: Tensor) -> Iterator[str]:
        found, (low, high) = decode(counterexample, tuple(x.shape)).to(x), box_ends(x, self.header.eps.value)
        if not bool(((found >= low) & (found <= high)).all()):
            yield f"example {record.index} has a counterexample outside its box"
        elif not misclassified_in_batch_of_one(self.model, found, label, self.header.arithmetic):
            yield f"example {record.index} has a counterexample that is correctly classified"

    def _bounds(self, method: str) -> RecordCheck:
        def check_records(records: Sequence[Record]) -> Iterator[str]:
            found = bound(self._batch(records))
            assert found.margins is not None
            for record, verdict, margin in zip(records, found.verdicts, found.margins.tolist(), strict=True):
                if verdict != "certified":
                    yield f"example {record.index} is recorded as certified, but is {verdict} by {method} here"
                elif not (
                    _reached(record.margin, margin) or (method in SEARCH_METHODS and self._search_reaches(record))
                ):
                    yield f"example {record.index} has the recorded margin {record.margin!r}, but {margin!r} here"

        settings = self.header.bounds.settings(self.memory)
        bound = step_named(self.model, self.header.method, method, self.header.arithmetic, settings)
        return check_records

    def _trees(self) -> RecordCheck:
        """The check of trees: each leaf of each tree is bounded again, from its splits alone."""
        step = CompleteStep(self.model, self.header.arithmetic, self.header.bounds.settings(self.memory))

        def check_records(records: Sequence[Record]) -> Iterator[str]:
            batch = self._batch(records)
            for row, record in enumerate(records):
                wrong = step.recheck(batch, row, record.trees, record.margin or 0.0)
                if wrong is not None:
                    yield f"example {record.index} is certified by {COMPLETE}, but {wrong}"

        return check_records

    def _search_reaches(self, record: Record) -> bool:
        """Whether a recorded margin is at most the one found without an early stop."""
        assert record.margin is not None
        settings = replace(self.header.bounds.settings(self.memory), early_stop=False)
        asked = (self.header.method, str(record.method), self.header.arithmetic)
        found = step_named(self.model, *asked, settings)(self._batch([record])).margins
        return found is not None and record.margin <= found.item() * (1 + SEARCHED_RELATIVE) + ABSOLUTE

    def _batch(self, records: Sequence[Record]) -> ExampleBatch:
        device, rows = device_of(self.model), [record.index for record in records]
        x = to_unit(self.images.images[rows].to(device))
        return ExampleBatch(rows, x, self.images.labels[rows].to(device), self.header.eps.value)


def _parts(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    return (records[first : first + size] for first in range(0, len(records), size))


def _other_method(method: str) -> RecordCheck:
    return lambda records: (
        f"example {record.index} is certified by {method!r}, which is not part of the file's method"
        for record in records
    )


def _reached(recorded: float | None, margin: float) -> bool:
    """Whether a recorded margin is at most the one found here; less is a weaker claim, as of an earlier version."""
    return recorded is not None and recorded <= margin + RELATIVE * max(abs(recorded), abs(margin)) + ABSOLUTE


def _classification(correct: bool) -> str:
    return "correctly classified" if correct else "misclassified"
