"""The reports of a run while it trains: events for its steps and epochs, and the metrics in its folder."""

from collections.abc import Iterator

from certtrain.diagnostics.findings import InUse
from certtrain.errors import NonFiniteError
from certtrain.network.assembly import Images
from certtrain.runs.checkpoint import RunFolder, RunProgress
from certtrain.runs.epoch import Epoch
from certtrain.spec.preset import Preset
from certtrain.training.context import RunContext
from certtrain.training.evaluation import epoch_accuracies
from certtrain.training.events import EpochDone, Note, Started, StepDone, Stopped
from certtrain.training.failures import not_finite
from certtrain.training.layer_diagnostics import LayerDiagnostics
from certtrain.training.measures import averages
from certtrain.training.step import Stepper


class Reporter:
    """Emits the events of a run, and writes its metrics."""

    def __init__(
        self, preset: Preset, folder: RunFolder, images: Images, context: RunContext, stepper: Stepper
    ) -> None:
        self.preset, self.folder, self.images, self.context, self.stepper = preset, folder, images, context, stepper
        self.schedules, self.per_epoch = stepper.schedules, stepper.schedules.steps_per_epoch
        self.steps = preset.train.epochs * self.per_epoch
        batch_size = preset.train.batch_size // context.group.size
        self.diagnostics = LayerDiagnostics(stepper.result, images.train, batch_size, context.pacing)

    def started(self, step: int, compilation: str, seconds_left: float | None, forecast: str) -> None:
        """Report that a run begins or is resumed at `step`; `compilation` says whether its steps are compiled.

        seconds_left, forecast: as in `Started`.
        """
        self.context.emit(
            Started(
                preset=self.preset,
                folder=self.folder.path,
                device=self.context.device,
                parameters=sum(p.numel() for p in self.stepper.network.parameters()),
                examples=len(self.images.train),
                steps_per_epoch=self.per_epoch,
                step=step,
                steps=self.steps,
                seconds_left=seconds_left,
                forecast=forecast,
            )
        )
        for text in self._notes(compilation):
            self.context.emit(Note(text))

    def _notes(self, compilation: str) -> Iterator[str]:
        if compilation:
            yield f"the step is {compilation}"
        if self.context.group.size > 1:
            yield f"{self.context.group.size} processes share each batch"
        eps = self.preset.eps
        if eps.start + eps.length > self.preset.train.epochs:
            yield f"ε reaches {eps.max:g} in epoch {eps.start + eps.length}, after the end of this run"

    def step(self, progress: RunProgress) -> None:
        """Report a step, with recent states of the layers; at the end of an epoch they are computed again.

        Raises NonFiniteError if the bounds at a layer are not finite.
        """
        done, last = progress.step, progress.step - 1
        if done % self.per_epoch == 0 or self.diagnostics.due():
            self._diagnose(last)
        eps, rate = self.schedules.eps(last), self.schedules.learning_rate(last)
        epoch, numbers = last // self.per_epoch + 1, averages(progress.sums)
        self.context.emit(StepDone(done, epoch, eps, rate, numbers, self.diagnostics.layers))

    def _diagnose(self, step: int) -> None:
        """Compute the states of the layers after the 0-based `step`."""
        try:
            self.diagnostics.update(self.schedules.positive_eps(step))
        except NonFiniteError as error:
            raise not_finite(f"step {step}: after its update {error}", self.folder.last_good) from error
        in_use = InUse.by(self.preset, self.schedules.eps(step))
        if self.schedules.eps(step) > 0 and (sentence := self.diagnostics.new_explosion(in_use)):
            self.context.emit(Note(f"epoch {step // self.per_epoch + 1}: {sentence}"))

    def epoch(self, progress: RunProgress) -> None:
        """Report a finished epoch, and write its line of the metrics. Raises StorageError."""
        step = progress.step
        measured = {"learning_rate": self.schedules.learning_rate(step - 1)} | averages(progress.sums)
        number, eps = step // self.per_epoch, self.schedules.eps(step - 1)
        network, device = self.stepper.result, self.context.device
        measured |= epoch_accuracies(network, self.images, self.preset, device, eps=eps, known=measured)
        measured |= {"seconds": progress.seconds}
        record = Epoch(number, step, eps, measured, self.diagnostics.layers)
        self.folder.log(record.to_dict())
        self.context.emit(EpochDone(record))

    def stopped(self, reason: str, step: int, seconds_left: float | None, *, estimated: bool = False) -> None:
        """Report that the run stops after `step` steps, and about how long the others will take, as in `Stopped`."""
        data_dir = self.context.data_dir
        self.context.emit(Stopped(reason, step, self.steps, self.folder.path, data_dir, seconds_left, estimated))
