"""The end of a run: verify the trained network, and write the model file, the results and the report."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from certtrain.attack import PGD
from certtrain.errors import CerttrainError
from certtrain.formats import percent
from certtrain.network.assembly import Images, describe
from certtrain.network.modelfile import Classifier, write_model
from certtrain.reports.card import CARD, write_card
from certtrain.reports.report import write_report
from certtrain.reports.sheets import SHEETS, write_sheets
from certtrain.runs.checkpoint import RunFolder
from certtrain.spec.epsilon import format_eps
from certtrain.spec.preset import Preset
from certtrain.storage import write_json
from certtrain.training.context import RunContext
from certtrain.training.events import Finished, Note, Verifying
from certtrain.verification.classes import class_results
from certtrain.verification.results import ExampleResult
from certtrain.verification.verify import Report, check_fit, verify

HARDLY_LEARNED = (
    "a natural accuracy of {} is close to guessing among {} classes: ε = {} may be too large for these images, or the "
    "training too short (docs/epsilon.md)"
)


class VerificationStopped(Exception):
    """The run was stopped during its verification; the text is the reason."""


class Completion:
    """Saves and verifies the trained `network` of a run."""

    def __init__(
        self, preset: Preset, folder: RunFolder, images: Images, context: RunContext, network: nn.Module
    ) -> None:
        assert isinstance(network, nn.Sequential)  # every network of a preset is one
        self.preset, self.folder, self.images, self.context, self.network = preset, folder, images, context, network

    def check_fit(self) -> None:
        """Raise DataError, before any training, if the images of the verification do not fit the network."""
        check_fit(self._classifier(), self.images.part(self.preset.data.verify_on))

    def save_epoch(self, epoch: int) -> None:
        """Save the network after `epoch` as a model file, if train.keep_every says so. Raises StorageError."""
        settings = self.preset.train
        if settings.keep_every is not None and epoch % settings.keep_every == 0:
            described = describe(self.preset, self.images.train, note=f"after epoch {epoch} of {settings.epochs}")
            write_model(self.folder.epoch(epoch), self.network, described)

    def run(self, steps: int, seconds: float) -> Report:
        """Verify the network, which was trained with `steps` steps in `seconds` seconds, and write all results.

        Raises VerificationStopped, and StorageError.
        """
        report = self._verify()
        results = report.to_dict()
        verification_seconds = results.pop("seconds")
        del results["steps"]  # they contain seconds too, by which the model file of a resumed run would differ
        write_model(self.folder.model, self.network, describe(self.preset, self.images.train, results=results))
        record = {"preset": self.preset.name, "seed": self.preset.seed, "results": results}
        record |= {"training": self._training(steps, seconds), "verification_seconds": verification_seconds}
        record |= {"versions": describe(self.preset, self.images.train).versions}
        write_json(self.folder.report, record | self._by_class(report))
        self._guarded(self.folder.path / SHEETS, lambda: self._draw_sheets(report))
        card = self.folder.path / CARD
        if not card.exists():  # a card that its user has edited stays
            self._guarded(card, lambda: write_card(self.folder.path, card))
        wrote = self._guarded(self.folder.page, lambda: write_report(self.folder.path, self.folder.page))
        classes = len(self.images.train.class_names)
        if report.is_near_guessing(classes):
            eps = format_eps(self.preset.eps.max)
            self.context.emit(Note(HARDLY_LEARNED.format(percent(report.natural_accuracy), classes, eps)))
        self.context.emit(Finished(self.folder.model, report, seconds, self.folder.page if wrote else None))
        return report

    def _by_class(self, report: Report) -> dict[str, Any]:
        images = self.images.part(self.preset.data.verify_on)
        return class_results(self._classifier(), images, report.results).to_dict()

    def _draw_sheets(self, report: Report) -> None:
        images = self.images.part(self.preset.data.verify_on)
        write_sheets(self._classifier(), images, report, self.folder.path / SHEETS)

    def _training(self, steps: int, seconds: float) -> dict[str, Any]:
        """Steps, seconds, device, number of processes and date of the training, for the report."""
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        machine = {"device": self.context.device, "processes": self.context.group.size}
        return {"steps": steps, "seconds": seconds, **machine, "finished": finished}

    def _verify(self) -> Report:
        split, eps = self.preset.data.verify_on, self.preset.eps.max
        images = self.images.part(split)
        done, total = 0, len(images)

        def on_round(names: tuple[str, ...], examples: int) -> None:
            nonlocal done, total
            done, total = 0, examples

        def on_examples(results: list[ExampleResult]) -> None:
            nonlocal done
            done += len(results)
            self.context.emit(Verifying(split, done, total))
            if done < total and (reason := self.context.should_stop()):
                raise VerificationStopped(reason)

        chosen = self.context.verification
        return verify(
            self._classifier(),
            images,
            eps,
            attack=PGD(),
            method=chosen.method,
            limits=chosen.limits,
            on_examples=on_examples,
            on_round=on_round,
        )

    def _classifier(self) -> Classifier:
        return Classifier(self.network, describe(self.preset, self.images.train)).eval()

    def _guarded(self, path: Path, write: Callable[[], None]) -> bool:
        """Write something for people; whether that was possible."""
        try:
            write()
        except Exception as error:  # the results are written by now, so a run must not fail because of its page
            what = str(error) if isinstance(error, CerttrainError) else f"{type(error).__name__}: {error}"
            self.context.emit(Note(f"{path} was not written: {what}"))
            return False
        return True
