"""One loop for every method: from a preset to a verified model in a run folder.

A step depends on (preset, step) and the state alone, so a run that was killed
and resumed is the run that was not killed, on a CPU bit for bit.
Several processes take the same steps, each with its share of every batch. The
first of them decides what depends on the clock, speaks, writes and verifies.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certtrain.attack import PGD
from certtrain.data import Augmentation, Batches
from certtrain.diagnostics.findings import STATE_EXAMPLES, findings_at, first_sentence
from certtrain.diagnostics.layer_states import layer_states, relu_units
from certtrain.diagnostics.model_states import traces_over
from certtrain.errors import CerttrainError, DeviceError, NonFiniteError, RunError
from certtrain.network.assembly import Images, describe, load_run_images, make_network
from certtrain.network.modelfile import Classifier, save_model
from certtrain.network.source import changed_source, resolve_module
from certtrain.reports.report import write_report
from certtrain.runs.checkpoint import Progress, RunFolder, collect, locked_run, put_back
from certtrain.runs.epoch import Epoch, LayerState
from certtrain.runtime.device import choose_device
from certtrain.runtime.precision import check_precision, tensor_cores
from certtrain.spec.preset import Preset
from certtrain.storage import write_json
from certtrain.training.compilation import check_compile, will_compile
from certtrain.training.distributed import ALONE, Group
from certtrain.training.evaluation import certified_accuracy, natural_accuracy
from certtrain.training.events import (
    Compiling,
    EpochDone,
    Event,
    Finished,
    Listener,
    Loading,
    Note,
    Started,
    StepDone,
    Stopped,
    Verifying,
)
from certtrain.training.objective import SMALLEST_EPS
from certtrain.training.step import Stepper
from certtrain.verification.results import Point
from certtrain.verification.verify import Report, check_fit, verify

# How often, in seconds. None of it changes what is trained.
READ_SECONDS = 0.25  # between two readings of the measurements, each of which waits for the device
LOOK_SECONDS = 20.0  # between two looks at the ReLU states; the end of an epoch has one too
LOOK_SHARE = 0.05  # of the time, at most, if looking takes longer
EPOCH_CHECKPOINT_SECONDS = 20.0  # from one checkpoint to the next at the end of an epoch
CHECKPOINT_SECONDS = 300.0  # and within an epoch
SAVE_SHARE = 0.01  # of the time, at most, if saving takes longer

NATURAL_EXAMPLES = 2000  # on which natural accuracy is measured at the end of an epoch, where no step measures it


@dataclass(frozen=True)
class RunContext:
    """What a run works with that does not decide its result.

    data_dir: where the data are, as for `load_images`. device: "cpu", "cuda" or "auto".
    should_stop: asked before each step; a reason stops the run at a checkpoint.
    emit: hears of everything that happens.
    group: the processes that train together; `should_stop` and `emit` are used in the first of them alone.
    """

    data_dir: str | Path | None = None
    device: str = "cpu"
    should_stop: Callable[[], str | None] = lambda: None
    emit: Listener = lambda event: None
    group: Group = ALONE

    def tell(self, event: Event) -> None:
        """Let whoever listens hear of it, from the leading process."""
        if self.group.leads:
            self.emit(event)


def train(preset: Preset, out: str | Path, context: RunContext = RunContext()) -> Report | None:
    """Train by `preset` into the new folder `out`, verify on the test set, and write model, results and report.

    The code of a network of the user's own is run here, and its layers are kept
    with the run. The result is None if the run was stopped. Raises a CerttrainError.
    """
    context = _placed(context)
    images = _prepare(preset, context)  # the folder comes last, so that no error before it leaves one behind
    preset = context.group.lead(lambda: resolve_module(preset, images.train))
    trainer = Trainer(preset, RunFolder(Path(out)), images, context)
    with _locked(Path(out), context.group, new=True):
        trainer.folder = context.group.lead(lambda: RunFolder.create(Path(out), preset))
        return _run_or_discard(trainer)


def resume(out: str | Path, context: RunContext = RunContext()) -> Report | None:
    """Go on with the run in `out` from its last checkpoint, with the layers it began with. As `train` otherwise."""
    context = _placed(context)
    with _locked(Path(out), context.group, new=False):
        folder, preset = context.group.lead(lambda: RunFolder.open(Path(out)))
        if file := changed_source(preset):
            context.tell(Note(f"{file} has changed; the run goes on with the network as it was when it began"))
        return Trainer(preset, folder, _prepare(preset, context), context).run()


@contextmanager
def _locked(out: Path, group: Group, *, new: bool) -> Iterator[None]:
    """The leading process keeps all others but the group's from writing into the run's folder."""
    with ExitStack() as held:
        group.lead(lambda: held.enter_context(locked_run(out, new=new)))
        yield


def _run_or_discard(trainer: "Trainer") -> Report | None:
    """Run a new training; where it fails before its first step, nothing stays that is in the way of the next try."""
    try:
        return trainer.run()
    except BaseException:
        if trainer.progress.step == 0 and trainer.group.leads:
            trainer.folder.discard()
        raise


def _placed(context: RunContext) -> RunContext:
    return replace(context, device=choose_device(context.device))


def _prepare(preset: Preset, context: RunContext) -> Images:
    """The run's images, once it is known that the machine can train in the way that is asked for."""
    check_precision(preset.train.precision, context.device)
    check_compile(preset.train.compile, context.device)

    def report(what: str, done: int, total: int) -> None:
        context.tell(Loading(what, done, total))

    return context.group.leader_first(lambda: load_run_images(preset, context.data_dir, report))


class Trainer:
    """A run's network, optimiser and data, and the loop over its steps."""

    def __init__(self, preset: Preset, folder: RunFolder, images: Images, context: RunContext) -> None:
        self.preset, self.folder, self.images, self.data_dir = preset, folder, images, context.data_dir
        self.device, self.emit, self.should_stop = context.device, context.tell, context.should_stop
        self.group = context.group
        network, _ = make_network(preset, images.train)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batches = Batches(
            images.train.images,
            images.train.labels,
            batch_size=preset.train.batch_size,
            seed=preset.seed,
            augmentation=Augmentation(preset.data.flip, preset.data.crop_padding),
            device=self.device,
            rank=self.group.rank,
            ranks=self.group.size,
        )
        self.final = images.part(preset.data.verify_on)
        self.steps = preset.train.epochs * self.batches.steps_per_epoch
        examples = preset.train.batch_size // self.group.size
        per_batch = examples * relu_units(self.network, self.batches.whole_batch(0, 0)[0])
        self.compile, self.compile_note = will_compile(
            preset.train.compile,
            steps=self.steps,
            relu_inputs=per_batch,
            device=self.device,
            in_parts=preset.train.micro_batch is not None,
        )
        self.stepper = Stepper(
            preset,
            self.network,
            self.batches.steps_per_epoch,
            compile=self.compile,
            on_failure=self._no_compiler,
            group=self.group,
        )
        average = self.stepper.average
        self.networks = {"network": self.network} if average is None else {"network": self.network, "average": average}
        self.progress = Progress()
        self.layers: tuple[LayerState, ...] = ()
        self.exploding = False
        self.look_pause, self.save_pause = LOOK_SECONDS, EPOCH_CHECKPOINT_SECONDS
        self.reading, self.looking, self.saving, self.clock = (_Stopwatch() for _ in range(4))

    def run(self) -> Report | None:
        """Train from the last checkpoint to the end, verify, and write the results; None if stopped."""
        self._begin()
        while self.progress.step < self.steps:
            if self._stops():
                return None
            self._step()
            self._look_after()
        return self.group.lead(self._finish)

    def _stops(self) -> bool:
        """Whether the run ends here, at a checkpoint."""
        reason = self.should_stop() if self.group.leads else None
        if not self.group.agree(reason is not None):
            return False
        self._save()
        self._say_stopped(str(reason))
        return True

    def _look_after(self) -> None:
        """What comes between two steps: read, report, save, each where it is due."""
        ends_epoch = self.progress.step % self.batches.steps_per_epoch == 0
        if ends_epoch or self._due(self.reading, READ_SECONDS):
            self._report()
        if ends_epoch:
            self._end_epoch()
        over = self.progress.step == self.steps
        if over or self._due(self.saving, self.save_pause if ends_epoch else CHECKPOINT_SECONDS):
            self._save()

    def _due(self, watch: "_Stopwatch", seconds: float) -> bool:
        return self.group.agree(watch.seconds() >= seconds)

    # --- before and after --------------------------------------------------------------------------------

    def _begin(self) -> None:
        for path in self._restore():
            self.emit(Note(f"checkpoint {path} is damaged; going on from an older one"))
        self._check_data()
        self.progress.preset = self.preset.model_dump(mode="json")
        check_fit(self._classifier(), self.final)
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
        self.emit(Note(f"the step is {self.compile_note}"))
        if self.group.size > 1:
            self.emit(Note(f"{self.group.size} processes share each batch"))
        ramp = self.preset.eps.start + self.preset.eps.length
        if ramp > self.preset.train.epochs:
            self.emit(Note(f"ε reaches {self.preset.eps.max:g} in epoch {ramp}, after the end of this run"))
        self.stepper.set_sums(self.progress.sums)
        self.clock.restart()
        if self.folder.last_good is None:
            self._save()  # so that a failure in the first epoch leaves something to go on from
        if self.compile and self.progress.step < self.steps:
            self.emit(Compiling())

    def _restore(self) -> list[Path]:
        """Put everybody where the run stands; the checkpoints that were damaged."""
        networks, optimizer = self.networks, self.stepper.optimizer
        if self.group.size == 1:
            self.progress, damaged = self.folder.restore(networks, optimizer)
            return damaged

        def restored() -> tuple[Progress, list[Path], RunFolder, dict[str, Tensor]]:
            return *self.folder.restore(networks, optimizer), self.folder, collect(networks, optimizer)

        self.progress, damaged, self.folder, tensors = self.group.lead(restored)
        put_back(tensors, networks, optimizer)
        return damaged

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
        del results["stages"]  # seconds again: with them, a resumed run's model would not be the same file
        save_model(self.folder.model, self._result(), describe(self.preset, self.images.train, results=results))
        training: dict[str, Any] = {"steps": self.steps, "seconds": self.progress.seconds, "device": self.device}
        training["processes"] = self.group.size
        training["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"preset": self.preset.name, "seed": self.preset.seed, "results": results, "training": training}
        metadata = describe(self.preset, self.images.train)
        write_json(self.folder.report, record | {"verification_seconds": seconds, "versions": metadata.versions})
        self.emit(Finished(self.folder.model, report, self.progress.seconds, self._write_page()))
        return report

    def _write_page(self) -> Path | None:
        try:
            write_report(self.folder.path, self.folder.page)
        except Exception as error:  # the results are safe by now, and no picture is worth a run that ends in an error
            what = str(error) if isinstance(error, CerttrainError) else f"{type(error).__name__}: {error}"
            self.emit(Note(f"there is no {self.folder.page}: {what}"))
            return None
        return self.folder.page

    def _verify(self) -> Report:
        done, total = 0, len(self.final)

        def on_points(points: list[Point]) -> None:
            nonlocal done
            done += len(points)
            self.emit(Verifying(self.preset.data.verify_on, done, total))
            if done < total and (reason := self.should_stop()):
                raise _StopVerifying(reason)

        eps = self.preset.eps.max
        return verify(self._classifier(), self.final, eps, attack=PGD(), method="ibp", on_points=on_points)

    def _classifier(self) -> Classifier:
        return Classifier(self._result(), describe(self.preset, self.images.train)).eval()

    def _result(self) -> nn.Sequential:
        result = self.stepper.result
        assert isinstance(result, nn.Sequential)  # as the network that was given
        return result

    def _save(self) -> None:
        self._read()
        self.saving.restart()
        self.folder.last_good = self.group.lead(self._write_checkpoint)
        self.save_pause = max(EPOCH_CHECKPOINT_SECONDS, self.saving.restart() / SAVE_SHARE)

    def _write_checkpoint(self) -> Path:
        for name, tensor in self.network.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise self._not_finite(f"step {self.progress.step - 1}: its update made {name!r} infinite or NaN")
        return self.folder.save_checkpoint(self.networks, self.stepper.optimizer, self.progress)

    def _step(self) -> None:
        x, labels = self._batch(self.progress.step)
        share = self.batches.share(self.progress.step % self.batches.steps_per_epoch)
        try:
            self.stepper.run(self.progress.step, x, labels, share)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"the memory of {self.device} does not hold a batch of {len(labels)} examples. "
                f"Try a smaller train.batch_size, {self._smaller_step()}, or --device cpu"
            ) from error
        self.progress.step += 1

    def _smaller_step(self) -> str:
        if self.preset.bounds.method == "ibp":
            return "train.micro_batch for the same step in less memory"
        return "bounds.loss_fusion = true" if not self.preset.bounds.loss_fusion else 'bounds.method = "ibp"'

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.batches.batch(*divmod(step, self.batches.steps_per_epoch))

    def _read(self) -> None:
        """Bring the progress up to date, on all ranks together.

        Raises NonFiniteError if a step has failed since the last reading.
        """
        reading = self.stepper.read()
        if reading.failed is not None:
            raise self._not_finite(self.stepper.explain(reading.failed, *self._batch(reading.failed)))
        self.progress.sums = reading.sums
        self.progress.seconds += self.clock.restart()
        self.reading.restart()

    def _report(self) -> None:
        self._read()
        self.group.lead(self._tell_step)

    def _tell_step(self) -> None:
        done, per_epoch = self.progress.step, self.batches.steps_per_epoch
        if not self.layers or done % per_epoch == 0 or self.looking.seconds() >= self.look_pause:
            self._look(done - 1)
        eps, rate = self.stepper.eps(done - 1), self.stepper.learning_rate(done - 1)
        self.emit(StepDone(done, (done - 1) // per_epoch + 1, eps, rate, self._averages(), self.layers))

    def _no_compiler(self, reason: str) -> None:
        if self.preset.train.compile == "on":
            raise DeviceError(f"{reason}; mend the compiler, or choose --compile off")
        self.emit(Note(f"{reason}; training goes on without it"))

    def _not_finite(self, what: str) -> NonFiniteError:
        return NonFiniteError(
            f"{what}. The last good checkpoint is {self.folder.last_good or 'none: the initial weights are at fault'}. "
            "A smaller train.learning_rate and a longer eps.length help, and so do "
            'init = "ibp" and BatchNorm in every layer.'
        )

    # --- bookkeeping -------------------------------------------------------------------------------------

    def _averages(self) -> dict[str, float]:
        sums = self.progress.sums
        return {name: total / sums["examples"] for name, total in sums.items() if name != "examples"}

    def _look(self, step: int) -> None:
        """See how the layers stand after `step`, by what `stats` would say of the network at the same ε."""
        self.looking.restart()
        eps = max(self.stepper.eps(step), SMALLEST_EPS)
        images, size = self.images.train.take(STATE_EXAMPLES), min(200, self.preset.train.batch_size // self.group.size)
        try:
            with tensor_cores(False):
                self.layers = tuple(layer_states(traces_over(self._result(), images, eps, size)))
        except NonFiniteError as error:
            raise self._not_finite(f"step {step}: after its update {error}") from error
        self.look_pause = max(LOOK_SECONDS, self.looking.restart() / LOOK_SHARE)
        exploding = findings_at(self.stepper.eps(step), self.layers, ["exploding"])
        if exploding and not self.exploding:
            self.emit(Note(f"epoch {step // self.batches.steps_per_epoch + 1}: {first_sentence(exploding)}"))
        self.exploding = bool(exploding)

    def _end_epoch(self) -> None:
        self.group.lead(self._tell_epoch)
        self.progress.sums = {}
        self.stepper.set_sums({})

    def _tell_epoch(self) -> None:
        epoch = self.progress.step // self.batches.steps_per_epoch
        step = self.progress.step
        measured = {"learning_rate": self.stepper.learning_rate(step - 1), **self._averages(), **self._evaluate()}
        measured["seconds"] = self.progress.seconds
        record = Epoch(epoch, step, self.stepper.eps(step - 1), measured, self.layers)
        self.folder.log(record.to_dict())
        self._keep(epoch)
        self.emit(EpochDone(record))

    def _keep(self, epoch: int) -> None:
        """Put the network by as a model file, if it is the turn of this epoch."""
        settings = self.preset.train
        if settings.keep_every is not None and epoch % settings.keep_every == 0:
            described = describe(self.preset, self.images.train, note=f"after epoch {epoch} of {settings.epochs}")
            save_model(self.folder.epoch(epoch), self._result(), described)

    def _evaluate(self) -> dict[str, float]:
        """What the steps do not measure: natural accuracy if they carry no clean batch, and the held-out examples."""
        network, held_out, found = self.stepper.result, self.images.validation, dict[str, float]()
        if self.preset.train.batch_norm_statistics != "clean":
            few = self.images.train.take(NATURAL_EXAMPLES)
            found["natural_accuracy"] = natural_accuracy(network, few, self.device)
        if held_out is not None:
            natural, certified = certified_accuracy(network, held_out, self.preset.eps.max, self.device)
            found |= {"validation_natural_accuracy": natural, "validation_certified_accuracy": certified}
        return found


class _Stopwatch:
    def __init__(self) -> None:
        self.start = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def restart(self) -> float:
        """The seconds until now, from which it starts again."""
        seconds = self.seconds()
        self.start += seconds
        return seconds


class _StopVerifying(Exception):
    pass
