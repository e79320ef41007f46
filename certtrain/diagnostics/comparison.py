"""Networks compared on the same data at the same ε: several side by side, or those of one run in order of time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from certtrain.data import ImageSet, Progress
from certtrain.diagnostics.epochs import EPOCH_ACCURACIES, History, Trained, epoch_numbers, read_history, read_trained
from certtrain.diagnostics.model_states import ModelStates, model_layer_states
from certtrain.diagnostics.networks import NetworkLoader
from certtrain.errors import DataError, ModelFileError, PresetError, RunError
from certtrain.formats import count_of
from certtrain.network.assembly import load_split
from certtrain.network.modelfile import Classifier
from certtrain.runs.history import METRICS
from certtrain.runs.runfiles import RunNetwork, check_run, find_networks, find_run_networks, short_names
from certtrain.spec.epsilon import format_eps
from certtrain.spec.preset import load_preset


@dataclass(frozen=True)
class ComparisonOptions:
    """The data, the radius and the device with which states are computed, and the callbacks.

    eps: None for the radius that the first network was trained for. limit: number of examples, starting with the first;
    None for all. on_progress: called with what is being done, how much is done and how much there is. on_note: called
    with a sentence about something that is left out. foreign: as for `NetworkLoader`.
    """

    eps: float | None = None
    split: str = "train"
    limit: int | None = 1000
    batch_size: int = 200
    device: str = "cpu"
    data_dir: Path | None = None
    on_progress: Progress = lambda what, done, total: None
    on_note: Callable[[str], None] = lambda text: None
    foreign: Callable[[Path], Classifier | None] = lambda path: None

    def loader(self) -> NetworkLoader:
        """A loader with the same data folder and callbacks."""
        return NetworkLoader(self.data_dir, self.on_progress, self.on_note, self.foreign)

    def images(self, network: Classifier) -> ImageSet:
        """The images of the data set that the network's file names."""
        return load_split(network.metadata, self.split, self.data_dir, self.on_progress).take(self.limit)

    def states(self, name: str, file: Path, network: Classifier, images: ImageSet, eps: float) -> ModelStates:
        """The states of the network's layers over `images`."""

        def on_progress(done: int) -> None:
            self.on_progress(f"layers of {name}", done, len(images))

        network = network.to(self.device)
        layers = model_layer_states(network, images, eps, batch_size=self.batch_size, on_progress=on_progress)
        return ModelStates(name, file, layers)


@dataclass(frozen=True)
class ModelComparison:
    """The states of several models' layers, and the data and ε for which they were computed."""

    models: tuple[ModelStates, ...]
    dataset: str
    split: str
    examples: int
    eps: float

    @property
    def title(self) -> str:
        """The data and ε in words."""
        return f"{self.dataset}, {self.split} set, {count_of(self.examples, 'example')}, ε = {format_eps(self.eps)}"

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        data = {"dataset": self.dataset, "split": self.split, "examples": self.examples, "eps": self.eps}
        return data | {"models": [model.to_dict() for model in self.models]}


def compare_models(paths: Sequence[Path], options: ComparisonOptions = ComparisonOptions()) -> ModelComparison:
    """Compare the models at `paths`, each as `find_networks` takes it, on the first one's data.

    Raises ModelFileError or RunError if there is no network at a path, DataError if their images' shapes differ or
    the data do not fit, NonFiniteError if bounds are not finite.
    """
    candidates, names, loader = [find_networks(path) for path in paths], short_names(paths), options.loader()
    loaded = [loader.load_newest(files) for files in candidates]
    networks = [network for _, network in loaded]
    _check_same_shape(names, networks)
    eps = _common_eps(names, networks, options)
    images = options.images(networks[0])
    models = [
        replace(options.states(name, file.path, network, images, eps), trained=_trained(path, options))
        for name, path, (file, network) in zip(names, paths, loaded, strict=True)
    ]
    return ModelComparison(tuple(models), images.name, images.split, len(images), eps)


def _trained(path: Path, options: ComparisonOptions) -> Trained | None:
    """How the run in the folder `path` trains; None for a file, and with a note if the run's files are damaged."""
    if not path.is_dir():
        return None
    try:
        return read_trained(path)
    except (RunError, PresetError) as error:
        options.on_note(f"{error}; the run's last epoch is left out")
        return None


def _common_eps(names: Sequence[str], networks: Sequence[Classifier], options: ComparisonOptions) -> float:
    """The radius from the options, or else the first network's, with a note if the others' differ."""
    if options.eps is not None:
        return options.eps
    radii = [network.metadata.eps for network in networks]
    if len(set(radii)) > 1:
        trained = ", ".join(f"{name} {format_eps(radius)}" for name, radius in zip(names, radii, strict=True))
        options.on_note(
            f"trained for different ε ({trained}); all are compared at ε = {format_eps(radii[0])}; --eps changes it"
        )
    return radii[0]


def _check_same_shape(names: Sequence[str], networks: Sequence[Classifier]) -> None:
    first = networks[0].metadata.input_shape
    for name, network in zip(names, networks, strict=True):
        if network.metadata.input_shape != first:
            raise DataError(
                f"{name} takes images of shape {network.metadata.input_shape} (channels, height, width), {names[0]} "
                f"of shape {first}; only models for images of one shape can be compared"
            )


def compare_epochs(
    run: Path, options: ComparisonOptions = ComparisonOptions()
) -> tuple[History, ModelComparison | None]:
    """A run's epochs as they were trained, and the networks that it kept, all at one ε; None if there are none.

    A damaged network is left out, with a note. Raises RunError if `run` is not a run or holds nothing yet, DataError if
    its data are missing.
    """
    check_run(run)
    preset, history = load_preset(str(run / "preset.json")), read_history(run)
    if history.cut_short:
        options.on_note(f"the last line of {run / METRICS} is incomplete; it is left out")
    eps = preset.eps.max if options.eps is None else options.eps
    networks = find_run_networks(run, history.steps_per_epoch, preset.train.epochs)
    models, images = _network_states(networks, eps, options)
    if images is None and not history.epochs:
        raise RunError(f"the run in {run} has neither a finished epoch nor a whole checkpoint yet; try again later")
    if images is None:
        return history, None
    return history, ModelComparison(tuple(models), images.name, images.split, len(images), eps)


def _network_states(
    networks: Sequence[RunNetwork], eps: float, options: ComparisonOptions
) -> tuple[list[ModelStates], ImageSet | None]:
    """The states of the networks that are not damaged, and the images for them; None if all are damaged."""
    loader, images, models = options.loader(), None, list[ModelStates]()
    for kept in networks:
        name, path = kept.file.path.stem, kept.file.path
        try:
            network = loader.load(kept.file)
        except ModelFileError as error:
            options.on_note(f"{error}; it is left out")
            continue
        images = images or options.images(network)
        states = options.states(name, path, network, images, eps)
        models.append(replace(states, step=kept.step, epoch=kept.epoch))
    return models, images


def model_rows(comparison: ModelComparison) -> list[dict[str, Any]]:
    """A row for each model and layer."""
    return [{"model": model.name, **layer.to_dict()} for model in comparison.models for layer in model.layers]


def epoch_rows(history: History, comparison: ModelComparison | None) -> list[dict[str, Any]]:
    """A row for each epoch and layer as it was trained, then for each network and layer."""
    rows: list[dict[str, Any]] = []
    for epoch in history.epochs:
        rows += [{"network": "in training", **epoch_numbers(epoch), **layer.to_dict()} for layer in epoch.layers]
    if comparison is None:
        return rows
    blank = dict.fromkeys(EPOCH_ACCURACIES)
    for model in comparison.models:
        numbers = {"epoch": model.epoch, "step": model.step, "eps": comparison.eps, **blank}
        rows += [{"network": model.name, **numbers, **layer.to_dict()} for layer in model.layers]
    return rows
