"""Networks loaded from model files, and from checkpoints, which need their run's preset too."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from certtrain.data import Progress, load_images
from certtrain.errors import ModelFileError
from certtrain.network.assembly import describe
from certtrain.network.modelfile import Classifier, Metadata, read_model
from certtrain.runs.checkpoint import load_checkpoint
from certtrain.runs.runfiles import NetworkFile, find_networks, recorded_data_folder
from certtrain.spec.preset import load_preset


def load_model(path: str | Path, data_dir: str | Path | None = None) -> Classifier:
    """The network in a model file, a checkpoint or the folder of a run, in evaluation mode, with its `metadata`.

    Of a run's folder it is the model or, if the run is not finished, the newest checkpoint that is not damaged. For a
    checkpoint the images of its run are read, from `data_dir` as `load_images` does or, without it, from where the run
    read them.
    Raises ModelFileError if a file is missing or damaged, was not written by certtrain, or has weights that do not fit
    its metadata or are not finite; RunError if the folder holds no run, or the run no network yet; for a checkpoint
    also PresetError and DataError.
    """
    loader = NetworkLoader(None if data_dir is None else Path(data_dir), on_note=warnings.warn)
    return loader.load_newest(find_networks(Path(path)))[1]


class NetworkLoader:
    """Loads networks.

    data_dir, on_progress: as for `load_images`. on_note: called with a sentence for each damaged checkpoint.
    foreign: loads a file that certtrain did not write; None for a file that it may have written.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        on_progress: Progress | None = None,
        on_note: Callable[[str], None] = lambda text: None,
        foreign: Callable[[Path], Classifier | None] = lambda path: None,
    ) -> None:
        self.data_dir, self.on_progress, self.on_note = data_dir, on_progress, on_note
        self.foreign = foreign
        self._described: dict[Path, Metadata] = {}

    def load(self, file: NetworkFile) -> Classifier:
        """The network, in evaluation mode.

        Raises ModelFileError if the file is damaged or was not written by certtrain, and PresetError or DataError if
        the preset or the data of a checkpoint's run are missing.
        """
        if file.run is not None:
            return load_checkpoint(file.path, self.describe(file.run))
        return self.foreign(file.path) or read_model(file.path)

    def describe(self, run: Path) -> Metadata:
        """The metadata of a run's networks. The training images that its preset names are read for it, once."""
        if run not in self._described:
            preset = load_preset(str(run / "preset.json"))
            folder = self.data_dir or recorded_data_folder(run)
            train = load_images(preset.data.name, "train", data_dir=folder, on_progress=self.on_progress)
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
