"""Networks opened for comparison: model files as they are, checkpoints with the help of their run's preset."""

from collections.abc import Callable, Sequence
from pathlib import Path

from certtrain.data import Progress, load_images
from certtrain.errors import ModelFileError
from certtrain.network.assembly import describe
from certtrain.network.modelfile import Classifier, Metadata, load_model
from certtrain.runs.checkpoint import load_checkpoint
from certtrain.runs.runfiles import Source
from certtrain.spec.preset import load_preset


class Opener:
    """Opens networks.

    data_dir, on_progress: as for `load_images`. on_note: told of each checkpoint that was damaged.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        on_progress: Progress | None = None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.data_dir, self.on_progress, self.on_note = data_dir, on_progress, on_note
        self._described: dict[Path, Metadata] = {}

    def open(self, source: Source) -> Classifier:
        """The network, in evaluation mode.

        Raises ModelFileError if it is damaged or foreign, PresetError or DataError if a run's own are missing.
        """
        if source.run is None:
            return load_model(source.file)
        return load_checkpoint(source.file, self.describe(source.run))

    def describe(self, run: Path) -> Metadata:
        """What the networks of a run are; the training images that its preset names are read for it, once."""
        if run not in self._described:
            preset = load_preset(str(run / "preset.json"))
            train = load_images(preset.data.name, "train", data_dir=self.data_dir, on_progress=self.on_progress)
            self._described[run] = describe(preset, train, note=f"from a checkpoint of the run {run.name}")
        return self._described[run]

    def open_newest(self, sources: Sequence[Source]) -> tuple[Source, Classifier]:
        """The first of `sources` that is not damaged, which there must be."""
        for source in sources[:-1]:
            try:
                return source, self.open(source)
            except ModelFileError as error:
                self.on_note(f"{error}; looking at an older one")
        return sources[-1], self.open(sources[-1])
