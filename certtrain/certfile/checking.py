"""Certificates computed again: nothing in the file is taken on trust."""

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
from certtrain.certfile.writing import data_of, hash_model
from certtrain.data import ImageSet, to_unit
from certtrain.errors import CertificateError, FailedCheck
from certtrain.network.modelfile import Classifier
from certtrain.runtime.device import device_of
from certtrain.runtime.precision import tensor_cores
from certtrain.verification.complete import COMPLETE, CompleteStep
from certtrain.verification.methods import assumptions_of, examples_at_once, methods_of, step_named
from certtrain.verification.results import count
from certtrain.verification.steps import ExampleBatch, correctly_classified, misclassified_alone
from certtrain.verification.verify import check_fit, network_of

# Two machines sum the same float64 terms in different orders. The sum of 10⁴ terms up to 10³ is then uncertain by
# 10³ · 10⁴ · 2⁻⁵³ ≈ 10⁻⁹; a greater margin comes from greater terms.
RELATIVE, ABSOLUTE = 1e-6, 1e-9
# A search stops at a margin above zero and steps by signs of gradients: where it ends hangs on the last digit of a sum.
# Not stopped, it passes where it stopped elsewhere, but for slopes that other roundings led to, which cost less than
# this share of the margin: the search itself gives up where ten steps gain a hundredth of it.
SEARCHED_RELATIVE = 1e-3
NAMED = 5  # disagreements that an error spells out


@dataclass(frozen=True)
class Checked:
    """A certificate file that holds: `examples` in it, `checked` of them, and the verdicts of those."""

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
        """Whether some points were not looked at."""
        return self.checked < self.examples

    def to_dict(self) -> dict[str, Any]:
        """All fields, and whether the check was partial."""
        return asdict(self) | {"partial": self.partial}


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
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checked:
    """Compute the certificates of `contents`, read from `path`, again, of the first `limit` examples or of all.

    `images` are as many of the named split as the header says. A certified
    point must be certified again by the same method, its margin as recorded, or
    for a method that searches at most what the search finds; a
    counterexample must lie in the box of real numbers, and plain inference must
    misclassify it; what is recorded as misclassified must be, and nothing else.
    `memory` is for linear bounds, in bytes.

    Raises CertificateError if the model or the data are others, and FailedCheck
    if a record is of another example or its claim does not hold.
    """
    start = time.monotonic()
    check_fit(model, images)
    if not contents.sealed:
        raise CertificateError(f"{path} is not finished; the command that wrote it goes on with it")
    _check_header(path, contents.header, model_file, model, images)
    records = [contents.records[index] for index in range(len(images))]
    wrong = list(_foreign(records, images))
    if not wrong:
        records = records[:limit]
        again = _Again(contents.header, network_of(model, contents.header.network), images, memory)
        wrong = list(again.disagreements(records, on_progress))
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise FailedCheck(f"{path} does not hold: {'; '.join(wrong[:NAMED])}{more}")
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
    """Raise CertificateError if the header speaks of something else, or of something that cannot be computed here."""
    check_model(path, header, model_file, model)
    if header.data.model_dump() != data_of(images):
        raise CertificateError(
            f"{path} is about other data: the {header.data.examples:,} examples of the {header.data.split} set of "
            f"{header.data.name} have another SHA-256 here; give the same --data-dir"
        )
    if header.inputs != PIXEL_RANGE:
        known = f"certtrain certifies pixels in {PIXEL_RANGE}"
        raise CertificateError(f"{path} is about inputs in {header.inputs}; {known}")
    if header.assumptions != assumptions_of(network_of(model, header.network), header.method, header.arithmetic):
        raise CertificateError(f"{path} states assumptions that are not those of its certificates")
    methods_of(header.method)


def check_model(path: Path, header: Header, model_file: Path, model: Classifier) -> None:
    """Raise CertificateError if the header speaks of another model."""
    here = hash_model(model_file, model)
    if header.model != here:
        raise CertificateError(f"{path} is about another model than {model_file}: {_which(header, here)}")


def _which(header: Header, here: Any) -> str:
    if header.model.tensors != here.tensors:
        return "the weights differ"
    if header.model.architecture != here.architecture:
        return "the architecture differs"
    return "the weights and the architecture are the same, but the rest of the file is not"


def _foreign(records: Sequence[Record], images: ImageSet) -> Iterator[str]:
    """Records that are about other examples than those of their numbers."""
    for record, label in zip(records, images.labels.tolist(), strict=True):
        if record.label != label:
            yield f"example {record.index} has label {label}, not {record.label}"
        elif record.sha256 != images.example_fingerprint(record.index):
            yield f"example {record.index} is another image"


Judge = Callable[[Sequence[Record]], Iterator[str]]


@dataclass(frozen=True)
class _Again:
    header: Header
    model: Classifier
    images: ImageSet
    memory: int

    def disagreements(self, records: Sequence[Record], on_progress: Callable[[int, int], None]) -> Iterator[str]:
        """A part of a sentence for each claim that does not hold."""
        size, done = self.header.batch_size, 0
        jobs: list[tuple[Judge, list[Record], int]] = [(self._inference, list(records), size)]
        certified = [record for record in records if record.verdict == "certified"]
        for method in dict.fromkeys(str(record.method) for record in certified):
            group = [record for record in certified if record.method == method]
            judge = self._trees() if method == COMPLETE else self._bounds(method)
            jobs.append(
                (
                    judge if method in methods_of(self.header.method) else _unasked(method),
                    group,
                    examples_at_once(method, size),
                )
            )
        for judge, group, at_once in jobs:
            for first in range(0, len(group), at_once):
                batch = group[first : first + at_once]
                yield from judge(batch)
                done += len(batch)
                on_progress(done, len(records) + len(certified))

    def _inference(self, records: Sequence[Record]) -> Iterator[str]:
        batch = self._batch(records)
        correct = correctly_classified(self.model, batch.x, batch.labels, self.header.arithmetic).tolist()
        for record, x, label, right in zip(records, batch.x, batch.labels, correct, strict=True):
            wrong = record.verdict == "misclassified"
            # Sums in another order may round the other way: what is so alone is so as well.
            if right == wrong and misclassified_alone(self.model, x, label, self.header.arithmetic) != wrong:
                yield f"example {record.index} is {record.verdict} there, but is {_rightly(right)} classified here"
            elif record.counterexample is not None:
                yield from self._attacked(record, record.counterexample, x, label)

    def _attacked(self, record: Record, counterexample: str, x: Tensor, label: Tensor) -> Iterator[str]:
        found, (low, high) = decode(counterexample, tuple(x.shape)).to(x), box_ends(x, self.header.eps.value)
        if not bool(((found >= low) & (found <= high)).all()):
            yield f"example {record.index} has a counterexample outside its box"
        elif not misclassified_alone(self.model, found, label, self.header.arithmetic):
            yield f"example {record.index} has a counterexample that is rightly classified"

    def _bounds(self, method: str) -> Judge:
        def judge(records: Sequence[Record]) -> Iterator[str]:
            found = bound(self._batch(records))
            assert found.margins is not None
            for record, verdict, margin in zip(records, found.verdicts, found.margins.tolist(), strict=True):
                if verdict != "certified":
                    yield f"example {record.index} is certified there, but {verdict} by {method} here"
                elif not (
                    _agree(record.margin, margin) or (method in SEARCH_METHODS and self._reached(record, margin))
                ):
                    yield f"example {record.index} has the margin {record.margin!r} there, but {margin!r} here"

        settings = self.header.bounds.settings(self.memory)
        bound = step_named(self.model, self.header.method, method, self.header.arithmetic, settings)
        return judge

    def _trees(self) -> Judge:
        """Each leaf of each tree is bounded again, from its splits alone."""
        step = CompleteStep(self.model, self.header.arithmetic, self.header.bounds.settings(self.memory))

        def judge(records: Sequence[Record]) -> Iterator[str]:
            batch = self._batch(records)
            for row, record in enumerate(records):
                wrong = step.recheck(batch, row, record.trees, record.margin or 0.0)
                if wrong is not None:
                    yield f"example {record.index} is certified by {COMPLETE}, but {wrong}"

        return judge

    def _reached(self, record: Record, margin: float) -> bool:
        """Whether a searched margin is at most that found here, `margin`, or by the search that does not stop early."""
        assert record.margin is not None
        if record.margin <= margin:
            return True
        settings = replace(self.header.bounds.settings(self.memory), early_stop=False)
        asked = (self.header.method, str(record.method), self.header.arithmetic)
        found = step_named(self.model, *asked, settings)(self._batch([record])).margins
        return found is not None and record.margin <= found.item() * (1 + SEARCHED_RELATIVE) + ABSOLUTE

    def _batch(self, records: Sequence[Record]) -> ExampleBatch:
        device, rows = device_of(self.model), [record.index for record in records]
        x = to_unit(self.images.images[rows].to(device))
        return ExampleBatch(rows, x, self.images.labels[rows].to(device), self.header.eps.value)


def _unasked(method: str) -> Judge:
    return lambda records: (
        f"example {record.index} is certified by {method!r}, which is not of its method" for record in records
    )


def _agree(recorded: float | None, margin: float) -> bool:
    return recorded is not None and abs(recorded - margin) <= RELATIVE * max(abs(recorded), abs(margin)) + ABSOLUTE


def _rightly(correct: bool) -> str:
    return "rightly" if correct else "wrongly"
