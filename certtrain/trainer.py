"""One loop for every method: from a preset to a verified model in a run folder.

A step depends on (preset, step) and the state alone, so a run that was killed
and resumed is the run that was not killed, bit for bit, on the same device.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certtrain.assemble import Images, describe, load_run_images, make_network
from certtrain.attack import PGD
from certtrain.bounds.trace import BoundTrace
from certtrain.certificate import Certifier, Verdict
from certtrain.checkpoint import Progress, RunFolder
from certtrain.data import Augmentation, Batches, to_unit
from certtrain.diagnostics import LayerState, layer_states
from certtrain.errors import DeviceError, NonFiniteError, RunError
from certtrain.events import EpochDone, Finished, Listener, Loading, Note, Started, StepDone, Stopped, Verifying
from certtrain.modelfile import Classifier, save_model
from certtrain.preset import Preset
from certtrain.step import Stepper, StepResult
from certtrain.storage import write_json
from certtrain.verify import Point, Report, check_fit, verify

LAYERS_EVERY = 50  # steps between two looks at the ReLU states; the last step of an epoch is always looked at
CHECKPOINT_SECONDS = 300.0  # within an epoch; at its end there is always a checkpoint


@dataclass(frozen=True)
class Surroundings:
    """What a run works with that does not decide its result.

    data_dir: where the data are, as for `load_images`. device: "cpu" or "cuda".
    should_stop: asked before each step; a reason stops the run at a checkpoint.
    emit: hears of everything that happens.
    """

    data_dir: Path | None = None
    device: str = "cpu"
    should_stop: Callable[[], str | None] = lambda: None
    emit: Listener = lambda event: None


def train(preset: Preset, out: Path, surroundings: Surroundings = Surroundings()) -> Report | None:
    """Train by `preset` into the new folder `out`, verify on the test set, and write model and report.

    The result is None if the run was stopped. Raises a CerttrainError.
    """
    images = _load(preset, surroundings)  # first, so that missing data leave no folder behind
    return Trainer(preset, RunFolder.create(out, preset), images, surroundings).run()


def resume(out: Path, surroundings: Surroundings = Surroundings()) -> Report | None:
    """Go on with the run in `out` from its last checkpoint. As `train` otherwise."""
    folder, preset = RunFolder.open(out)
    return Trainer(preset, folder, _load(preset, surroundings), surroundings).run()


def _load(preset: Preset, surroundings: Surroundings) -> Images:
    def report(what: str, done: int, total: int) -> None:
        surroundings.emit(Loading(what, done, total))

    return load_run_images(preset, surroundings.data_dir, report)


class Trainer:
    """A run's network, optimiser and data, and the loop over its steps."""

    def __init__(self, preset: Preset, folder: RunFolder, images: Images, surroundings: Surroundings) -> None:
        self.preset, self.folder, self.images, self.data_dir = preset, folder, images, surroundings.data_dir
        self.device, self.emit, self.should_stop = surroundings.device, surroundings.emit, surroundings.should_stop
        network, _ = make_network(preset, images.train)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches = Batches(
            images.train.images,
            images.train.labels,
            batch_size=preset.train.batch_size,
            seed=preset.seed,
            augmentation=Augmentation(preset.data.flip, preset.data.crop_padding),
            device=self.device,
        )
        self.stepper = Stepper(preset, self.network, self.batches.steps_per_epoch)
        self.steps = preset.train.epochs * self.batches.steps_per_epoch
        self.progress = Progress()
        self.layers: tuple[LayerState, ...] = ()

    def run(self) -> Report | None:
        """Train from the last checkpoint to the end, verify, and write the results; None if stopped."""
        self._begin()
        saved = time.monotonic()
        while self.progress.step < self.steps:
            if reason := self.should_stop():
                self._stop(reason)
                return None
            self._step()
            if self.progress.step % self.batches.steps_per_epoch == 0:
                self._end_epoch()
            elif time.monotonic() - saved < CHECKPOINT_SECONDS:
                continue
            self._save()
            saved = time.monotonic()
        return self._finish()

    # --- before and after --------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.progress, damaged = self.folder.restore(self.network, self.stepper.optimizer)
        for path in damaged:
            self.emit(Note(f"checkpoint {path} is damaged; going on from an older one"))
        self._check_data()
        check_fit(self._classifier(), self.images.test)
        self.emit(
            Started(
                preset=self.preset,
                folder=self.folder.path,
                device=self.device,
                parameters=sum(p.numel() for p in self.network.parameters()),
                examples=len(self.images.train),
                steps_per_epoch=self.batches.steps_per_epoch,
                step=self.progress.step,
                steps=self.steps,
            )
        )
        ramp = self.preset.eps.start + self.preset.eps.length
        if ramp > self.preset.train.epochs:
            self.emit(Note(f"ε reaches {self.preset.eps.max:g} in epoch {ramp}, after the end of this run"))
        if self.progress.step == 0:
            self._save()  # so that a failure in the first epoch leaves something to go on from

    def _check_data(self) -> None:
        """A run goes on with the data it began with, or it would not be the same run."""
        sets = (self.images.train, self.images.validation, self.images.test)
        data = " ".join(images.fingerprint()[:16] for images in sets if images is not None)
        if self.progress.data not in ("", data):
            raise RunError(
                f"the images of {self.preset.data.name} are not those that the run in {self.folder.path} began with; "
                "give the same --data-dir, or start a new run"
            )
        self.progress.data = data

    def _stop(self, reason: str) -> None:
        self._save()
        self._say_stopped(reason)

    def _say_stopped(self, reason: str) -> None:
        self.emit(Stopped(reason, self.progress.step, self.steps, self.folder.path, self.data_dir))

    def _finish(self) -> Report | None:
        try:
            report = self._verify()
        except _StopVerifying as stop:
            self._say_stopped(str(stop))
            return None
        results = report.to_dict()
        seconds = results.pop("seconds")
        save_model(self.folder.model, self.network, describe(self.preset, self.images.train, results=results))
        training = {"steps": self.steps, "seconds": self.progress.seconds, "device": self.device}
        record = {"preset": self.preset.name, "seed": self.preset.seed, "results": results, "training": training}
        metadata = describe(self.preset, self.images.train)
        write_json(self.folder.report, record | {"verification_seconds": seconds, "versions": metadata.versions})
        self.emit(Finished(self.folder.model, report, self.progress.seconds))
        return report

    def _verify(self) -> Report:
        done, total = 0, len(self.images.test)

        def on_points(points: list[Point]) -> None:
            nonlocal done
            done += len(points)
            self.emit(Verifying(done, total))
            if done < total and (reason := self.should_stop()):
                raise _StopVerifying(reason)

        return verify(self._classifier(), self.images.test, self.preset.eps.max, attack=PGD(), on_points=on_points)

    def _classifier(self) -> Classifier:
        return Classifier(self.network, describe(self.preset, self.images.train)).eval()

    def _save(self) -> None:
        for name, tensor in self.network.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise self._not_finite(f"step {self.progress.step - 1}: its update made {name!r} infinite or NaN")
        self.folder.save_checkpoint(self.network, self.stepper.optimizer, self.progress)

    def _step(self) -> None:
        start = time.monotonic()
        epoch, index = divmod(self.progress.step, self.batches.steps_per_epoch)
        x, labels = self.batches.batch(epoch, index)
        measured, trace = self._run(x, labels)
        self._account(measured, len(labels), time.monotonic() - start)
        done = self.progress.step
        eps, rate = self.stepper.eps(done - 1), self.stepper.learning_rate(done - 1)
        if index % LAYERS_EVERY == 0 or index == self.batches.steps_per_epoch - 1:
            self._look(trace, epoch, eps)
        self.emit(StepDone(done, epoch + 1, eps, rate, self._averages(), self.layers))

    def _run(self, x: Tensor, labels: Tensor) -> StepResult:
        try:
            return self.stepper.run(self.progress.step, x, labels)
        except NonFiniteError as error:
            raise self._not_finite(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"the memory of {self.device} does not hold a batch of {len(labels)} examples. "
                "Try a smaller train.batch_size, or --device cpu"
            ) from error

    def _not_finite(self, what: str) -> NonFiniteError:
        return NonFiniteError(
            f"{what}. The last good checkpoint is {self.folder.last_good or 'none: the initial weights are at fault'}. "
            'Try a smaller train.learning_rate, a longer eps.length or init = "ibp".'
        )

    # --- bookkeeping -------------------------------------------------------------------------------------

    def _account(self, measured: dict[str, float], examples: int, seconds: float) -> None:
        sums = self.progress.sums
        for name, value in measured.items():
            sums[name] = sums.get(name, 0.0) + value * examples
        sums["examples"] = sums.get("examples", 0.0) + examples
        self.progress.seconds += seconds
        self.progress.step += 1

    def _averages(self) -> dict[str, float]:
        sums = self.progress.sums
        return {name: total / sums["examples"] for name, total in sums.items() if name != "examples"}

    def _look(self, trace: BoundTrace, epoch: int, eps: float) -> None:
        was_exploding = any(layer.exploding for layer in self.layers)
        self.layers = tuple(layer_states([trace]))
        worst = max(self.layers, key=lambda layer: layer.growth or 0.0, default=None)
        if eps > 0 and worst is not None and worst.exploding and not was_exploding:
            where = f"at {worst.name!r} they are {worst.growth:.1e} times as wide as the input"
            self.emit(Note(f"bounds explode in epoch {epoch + 1}: {where}"))

    def _end_epoch(self) -> None:
        epoch = self.progress.step // self.batches.steps_per_epoch
        step = self.progress.step
        record: dict[str, Any] = {"epoch": epoch, "step": step, "eps": self.stepper.eps(step - 1)}
        record |= {"learning_rate": self.stepper.learning_rate(step - 1)} | self._averages() | self._validate()
        record["seconds"] = self.progress.seconds
        self.folder.log(record | {"layers": [layer.to_dict() for layer in self.layers]})
        self.progress.sums = {}
        self.emit(EpochDone(epoch, record, self.layers))

    def _validate(self) -> dict[str, float]:
        """Natural and certified accuracy on the held-out examples, at the target ε."""
        images = self.images.validation
        if images is None:
            return {}
        self.network.eval()
        certifier, verdicts = Certifier(self.network), list[Verdict]()
        for first in range(0, len(images), 500):
            x = to_unit(images.images[first : first + 500].to(self.device))
            labels = images.labels[first : first + 500].to(self.device)
            verdicts += certifier.certify(x, labels, self.preset.eps.max).verdicts
        wrong, proved = verdicts.count("misclassified"), verdicts.count("certified")
        return {
            "validation_natural_accuracy": 1 - wrong / len(verdicts),
            "validation_certified_accuracy": proved / len(verdicts),
        }


class _StopVerifying(Exception):
    pass
