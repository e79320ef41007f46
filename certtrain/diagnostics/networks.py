"""Networks loaded from model files, and from checkpoints, which need their run's preset too."""

from collections.abc import Callable, Sequence
from pathlib import Path

from certtrain.data import Progress, load_images
from certtrain.errors import ModelFileError
from certtrain.network.assembly import describe
from certtrain.network.modelfile import Classifier, Metadata, load_model
from certtrain.runs.checkpoint import load_checkpoint
from certtrain.runs.runfiles import NetworkFile
from certtrain.spec.preset import load_preset


class NetworkLoader:
    """Loads networks.

    data_dir, on_progress: as for `load_images`. on_note: called with a sentence for each damaged checkpoint.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        on_progress: Progress | None = None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.data_dir, self.on_progress, self.on_note = data_dir, on_progress, on_note
        self._described: dict[Path, Metadata] = {}

    def load(self, file: NetworkFile) -> Classifier:
        """The network, in evaluation mode.

        Raises ModelFileError if the file is damaged or was not written by certtrain, and PresetError or DataError if
        the preset or the data of a checkpoint's run are missing.
        """
        return load_model(file.path) if file.run is None else load_checkpoint(file.path, self.describe(file.run))

    def describe(self, run: Path) -> Metadata:
        """The metadata of a run's networks. The training images that its preset names are read for it, once."""
        if run not in self._described:
            preset = load_preset(str(run / "preset.json"))
            train = load_images(preset.data.name, "train", data_dir=self.data_dir, on_progress=self.on_progress)
            self._described[run] = describe(preset, train, note=f"from a checkpoint of the run {run.name}")
        return self._described[run]

    def load_newest(self, files: Sequence[NetworkFile]) -> tuple[NetworkFile, Classifier]:
        """The first of one or more `files` that is not damaged. Raises as `load` if all are damaged."""
        for file in files[:-1]:
            try:
                return file, self.load(file)
            except ModelFileError as error:
                self.on_note(f"{error}; an older one is used")
        return files[-1], self.load(files[-1])
