"""One loop for every method: from a preset to a verified model in a run folder.

A step depends on the preset, its number and the state alone, so a run that was
stopped and resumed gives the same network as one that was not, on a CPU bit for
bit. Several processes take the same steps, each with its share of every batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from certtrain.bounds.chunks import inference_work
from certtrain.bounds.supported import checked_graph
from certtrain.data import Augmentation, Batches
from certtrain.diagnostics.layer_states import relu_units
from certtrain.errors import DeviceError, RunError, is_out_of_memory
from certtrain.network.assembly import Images, make_network
from certtrain.network.starting import load_start_, with_start_hash
from certtrain.runs.checkpoint import RunFolder, RunProgress
from certtrain.runtime.threads import threads_for
from certtrain.spec.preset import Preset
from certtrain.training.batch_norm_refresh import BatchNormRefresh
from certtrain.training.checkpointing import Checkpointer
from certtrain.training.compilation import CompileChoice, will_compile
from certtrain.training.completion import Completion, VerificationStopped
from certtrain.training.context import RunContext
from certtrain.training.events import Compiling, Note
from certtrain.training.failures import not_finite, out_of_memory
from certtrain.training.forecast import (
    WORTH_ADVICE,
    WORTH_TIMING,
    Forecast,
    estimate_sentence,
    estimated_seconds_per_step,
    forecast_sentence,
)
from certtrain.training.inactive import LOOK_EXAMPLES, STATISTICS_EXAMPLES, SmallerSteps, looks_after
from certtrain.training.pacing import Stopwatch
from certtrain.training.reporting import Reporter
from certtrain.training.step import Stepper
from certtrain.verification.verify import Report

ENOUGH_STEPS = 10  # for an estimate from the time of the whole training, whose first step takes longer


class _CompilationStopped(Exception):
    """The run was to stop while its step was compiled, so that this step was not taken."""


class Trainer:
    """The loop over a run's steps. `progress` is that of the last reading or checkpoint, with the current step."""

    def __init__(self, preset: Preset, folder: RunFolder, images: Images, context: RunContext) -> None:
        self.preset, self.folder, self.images, self.context, self.group = preset, folder, images, context, context.group
        self.batches = _batches(preset, images, context)
        self.steps = preset.train.epochs * self.batches.steps_per_epoch
        self.whole, self.compilation = self._make_stepper()
        self.smaller = self._smaller_steps()
        networks, optimizer = self.whole.networks, self.whole.optimizer
        refreshes = preset.train.batch_norm_refresh
        self.refresh = BatchNormRefresh(networks.values(), self.batches, self.group) if refreshes else None
        self.checkpoints = Checkpointer(folder, networks, optimizer, self.group, context.pacing)
        self.reporter = Reporter(preset, folder, images, context, self.whole)
        self.completion = Completion(preset, folder, images, context, self.whole.result)
        self.progress = RunProgress()
        self.saved_step, self.compiling, self.advised = 0, False, False
        self.estimate: float | None = None  # seconds of a step, before the first one
        self.clock, self.since_reading, self.forecast = Stopwatch(), Stopwatch(), Forecast()

    @property
    def stepper(self) -> Stepper:
        """The stepper that takes the steps: that of the whole network, or of a smaller one."""
        return self.whole if self.smaller is None else self.smaller.current

    def run(self) -> Report | None:
        """Train from the last checkpoint to the end, verify, and write the results; None if the run is stopped."""
        self.work = self._work()
        with threads_for(self.work, self.context.device):
            return self._run()

    def _run(self) -> Report | None:
        self._begin()
        while self.progress.step < self.steps:
            if self._stops():
                return None
            try:
                with self.forecast.timed():
                    self._step()
            except _CompilationStopped:
                self._report_stop(self.saved_step)
                return None
            self._foretell()
            self._between_steps()
        return self.group.on_leader(self._complete)

    # --- the loop ----------------------------------------------------------------------------------------

    def _stops(self) -> bool:
        """Whether the run is to stop here; if so, save a checkpoint and report it."""
        reason = self.context.should_stop()
        if not self.group.agree(reason is not None):
            return False
        self._save()
        self._report_stop(self.progress.step)
        return True

    def _report_stop(self, step: int) -> None:
        measured = self._measured_seconds_per_step()
        each = measured or self.estimate
        seconds = None if each is None else each * (self.steps - step)
        estimated = seconds is not None and measured is None
        self.reporter.stopped(str(self.context.should_stop()), step, seconds, estimated=estimated)

    def _measured_seconds_per_step(self) -> float | None:
        """The seconds of a step by those that were taken; None after too few."""
        each = self.forecast.seconds_per_step if self.context.device == "cpu" else None
        if each is None and self.progress.step >= ENOUGH_STEPS:
            each = self.progress.seconds / self.progress.step
        return each

    def _step(self) -> None:
        x, labels = self._batch(self.progress.step)
        share = self.batches.share(self.progress.step % self.batches.steps_per_epoch)
        try:
            with self._interruptible():
                self.stepper.run(self.progress.step, x, labels, share)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(self.preset, self.context.device, len(labels)) from error
        self.progress.step += 1

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """While the step is compiled, which may take a minute, a stop ends that at once. Raises _CompilationStopped."""
        if not self.compiling:
            yield
            return
        try:
            with self.context.interruptible():
                yield
        except KeyboardInterrupt:
            if self.context.should_stop() is None:  # Python's own, which is the caller's
                raise
            raise _CompilationStopped from None
        self.compiling = False

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.batches.batch(*divmod(step, self.batches.steps_per_epoch))

    def _between_steps(self) -> None:
        """Read and report the measures, end the epoch, and save a checkpoint, each if it is due."""
        ends_epoch = self.progress.step % self.batches.steps_per_epoch == 0
        if ends_epoch:
            self._finish_statistics()
        elif self.reporter.diagnostics.due():
            self._write_back()
        if ends_epoch or self.group.agree(self.since_reading.seconds() >= self.context.pacing.reading):
            self._read()
            self.group.on_leader(lambda: self.reporter.step(self.progress))
        if ends_epoch:
            self.group.on_leader(self._end_epoch)
            self._look_at_channels()
            self._set_sums({})
        if self.progress.step == self.steps or self.checkpoints.due(ends_epoch=ends_epoch):
            self._save()

    def _foretell(self) -> None:
        """On a CPU, say once how long the run will take by its first steps."""
        if self.context.device != "cpu" or (seconds := self.forecast.first()) is None:
            return
        left, compiled, images = self.steps - self.progress.step, self.compilation.compiled, self.images.train
        text = forecast_sentence(self.preset, images, seconds, left, compiled=compiled, advice=not self.advised)
        if text:
            self.context.emit(Note(text))

    def _start_forecast(self) -> tuple[float | None, str]:
        """On a CPU, the seconds that the steps will take, estimated before the first one, and a sentence about it."""
        left, alone, begun = self.steps - self.progress.step, self.group.size == 1, self.progress.step > 0
        self.advised = begun  # a run that has begun keeps its settings
        if self.context.device != "cpu" or not alone or self.work * left < WORTH_TIMING:
            return None, ""
        preset, compiled, batch = self.preset, self.compilation.compiled, self._batch(0)
        per_epoch, network = self.batches.steps_per_epoch, self.stepper.network
        self.estimate = estimated_seconds_per_step(preset, network, per_epoch, *batch, compiled=compiled)
        seconds = self.estimate * left
        self.advised |= seconds >= WORTH_ADVICE
        return seconds, estimate_sentence(preset, self.images.train, seconds, compiled=compiled, begun=begun)

    def _end_epoch(self) -> None:
        self.completion.save_epoch(self.progress.step // self.batches.steps_per_epoch)
        self.reporter.epoch(self.progress)

    def _complete(self) -> Report | None:
        try:
            return self.completion.run(self.steps, self.progress.seconds)
        except VerificationStopped as stop:
            self.reporter.stopped(str(stop), self.steps, 0.0)
            return None

    def _read(self) -> None:
        """Update the progress from the measures, on all ranks together.

        Raises NonFiniteError if a step has failed since the last reading.
        """
        reading = self.stepper.read()
        if reading.failed is not None:
            what = self.stepper.explain(reading.failed, *self._batch(reading.failed))
            raise not_finite(what, self.folder.last_good)
        self.progress.sums = reading.sums
        self.progress.seconds += self.clock.restart()
        self.since_reading.restart()

    def _save(self) -> None:
        self._write_back()
        self._read()
        self.checkpoints.save(self.progress)
        self.saved_step = self.progress.step

    # --- the channels that are left out ------------------------------------------------------------------

    def _finish_statistics(self) -> None:
        """At the end of an epoch, bring the whole network and BatchNorm's running statistics up to date."""
        if self.smaller is not None:
            self.smaller.end_epoch(self.progress.step - 1, self._next_images(STATISTICS_EXAMPLES))
        if self.refresh is not None:
            self.refresh.run()
            if self.smaller is not None:
                self.smaller.take_buffers()

    def _write_back(self) -> None:
        if self.smaller is not None:
            self.smaller.write_back()

    def _look_at_channels(self) -> None:
        """At the end of some epochs, choose the channels that the next steps leave out."""
        epoch = self.progress.step // self.batches.steps_per_epoch
        if self.smaller is None or self.progress.step == self.steps or not looks_after(epoch, self.preset.eps):
            return
        if self.smaller.look_again(self.progress.step, self._next_images(LOOK_EXAMPLES)):
            self.progress.kept = self.smaller.kept
            self._compiles()
            self.context.emit(Note(f"epoch {epoch + 1}: {self.smaller.sentence()}"))

    def _next_images(self, examples: int) -> Iterator[Tensor]:
        """The images of the next batches, at least so many, or those of an epoch."""
        batches = min(-(-examples // self.preset.train.batch_size), self.batches.steps_per_epoch)
        return (self._batch(self.progress.step + number)[0] for number in range(batches))

    def _smaller_steps(self) -> SmallerSteps | None:
        if not self.preset.train.skip_inactive:
            return None
        if self.group.size > 1:
            raise DeviceError("train.skip_inactive is for one process: leave it out, or train without torchrun")
        return SmallerSteps(self.whole, self._stepper_of, self.images.train.input_shape)

    def _stepper_of(self, network: nn.Module) -> Stepper:
        """A stepper of this run for a smaller network; it is compiled anew."""
        if self.compilation.compiled:
            torch.compiler.reset()  # it compiles a function for a few networks at most
        per_epoch, failed = self.batches.steps_per_epoch, self._without_compiler
        return Stepper(self.preset, network, per_epoch, compile=self.compilation.compiled, on_failure=failed)

    def _compiles(self) -> None:
        """Say that the next step is compiled, if it is."""
        if self.compilation.compiled:
            self.compiling = self.group.size == 1  # several processes stop together, after a step
            self.context.emit(Compiling())

    def _set_sums(self, sums: dict[str, float]) -> None:
        self.progress.sums = sums
        self.stepper.set_sums(sums)

    # --- the start of a run ------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.progress, damaged = self.checkpoints.restore()
        for path in damaged:
            self.context.emit(Note(f"checkpoint {path} is damaged; continuing from an older one"))
        self._check_data()
        self.progress.preset = self.preset.model_dump(mode="json")
        self.completion.check_fit()
        if self.smaller is not None and self.progress.kept:
            self.smaller.use(self.progress.kept)
        self.reporter.started(self.progress.step, self.compilation.reason, *self._start_forecast())
        self._set_sums(self.progress.sums)
        self.clock.restart()
        if self.folder.last_good is None:
            self._save()  # so that the run can be resumed after a failure in the first epoch
        self.saved_step = self.progress.step
        if self.progress.step < self.steps:
            self._compiles()

    def _check_data(self) -> None:
        """Raise RunError if the images are not those that the run began with."""
        sets = (self.images.train, self.images.validation, self.images.test)
        data = " ".join(images.fingerprint()[:16] for images in sets if images is not None)
        if self.progress.data not in ("", data):
            raise RunError(
                f"the images of {self.preset.data.name} are not those that the run in {self.folder.path} began with; "
                "give the same --data-dir, or start a new run"
            )
        self.progress.data = data

    def _make_stepper(self) -> tuple[Stepper, CompileChoice]:
        """The stepper with the run's network, and whether its steps are compiled."""
        settings, device, group = self.preset.train, self.context.device, self.group
        network, _ = make_network(self.preset, self.images.train)
        if not self.folder.checkpoints():  # else the weights come from there
            load_start_(network, with_start_hash(self.preset), self.images.train)
        network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.relu_inputs = relu_units(network, self.batches.whole_batch(0, 0)[0]) * (settings.batch_size // group.size)
        in_parts = settings.micro_batch is not None
        choice = will_compile(
            settings.compile, steps=self.steps, relu_inputs=self.relu_inputs, device=device, in_parts=in_parts
        )
        failed, per_epoch = self._without_compiler, self.batches.steps_per_epoch
        stepper = Stepper(self.preset, network, per_epoch, compile=choice.compiled, on_failure=failed, group=group)
        return stepper, choice

    def _work(self) -> int:
        """About how many multiplications inference takes for this process's part of a batch."""
        x = self.batches.whole_batch(0, 0)[0]
        graph = checked_graph(self.whole.network, tuple(x.shape[1:]))
        return inference_work(graph, x[:1]) * (self.preset.train.batch_size // self.group.size)

    def _without_compiler(self, reason: str) -> None:
        if self.group.size == 1 and self.context.should_stop() is not None:
            raise _CompilationStopped  # Ctrl-C reaches the compiler too, which then fails
        if self.preset.train.compile == "on":
            raise DeviceError(f"{reason}; repair the compiler, or choose --compile off in a new run")
        self.context.emit(Note(f"{reason}; training continues without it"))


def _batches(preset: Preset, images: Images, context: RunContext) -> Batches:
    """This rank's part of the run's batches."""
    return Batches(
        images.train.images,
        images.train.labels,
        batch_size=preset.train.batch_size,
        seed=preset.seed,
        augmentation=Augmentation(preset.data.flip, preset.data.crop_padding),
        device=context.device,
        rank=context.group.rank,
        ranks=context.group.size,
    )
