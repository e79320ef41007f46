"""Networks looked at over the same data at the same ε: several side by side, or those of one run in their order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from certtrain.data import ImageSet, Progress
from certtrain.diagnostics.epochs import History, read_history
from certtrain.diagnostics.model_states import ModelStates, inspect_model
from certtrain.diagnostics.networks import Opener
from certtrain.errors import DataError, ModelFileError, RunError
from certtrain.network.assembly import load_split
from certtrain.network.modelfile import Classifier
from certtrain.runs.runfiles import check_run, find_sources, find_stages, short_names
from certtrain.spec.epsilon import format_eps
from certtrain.spec.preset import load_preset


@dataclass(frozen=True)
class Look:
    """How to look, and who hears of it.

    eps: None for the radius that the first network was trained for. limit: the first so many examples; None for all.
    on_progress: told what is done, how much of it and of how much. on_note: told of what is left out.
    """

    eps: float | None = None
    split: str = "train"
    limit: int | None = 1000
    batch_size: int = 200
    device: str = "cpu"
    data_dir: Path | None = None
    on_progress: Progress = lambda what, done, total: None
    on_note: Callable[[str], None] = lambda text: None

    def opener(self) -> Opener:
        """That reads the same data and tells the same people."""
        return Opener(self.data_dir, self.on_progress, self.on_note)

    def images(self, network: Classifier) -> ImageSet:
        """The data that the network's file names."""
        return load_split(network.metadata, self.split, self.data_dir, self.on_progress).take(self.limit)

    def states(self, name: str, file: Path, network: Classifier, images: ImageSet, eps: float) -> ModelStates:
        """The state of the network's layers."""

        def on_progress(done: int) -> None:
            self.on_progress(f"looking at {name}", done, len(images))

        network = network.to(self.device)
        layers = inspect_model(network, images, eps, batch_size=self.batch_size, on_progress=on_progress)
        return ModelStates(name, file, layers)


@dataclass(frozen=True)
class Looked:
    """What was found in networks, and what they were looked at on."""

    models: tuple[ModelStates, ...]
    dataset: str
    split: str
    examples: int
    eps: float

    @property
    def title(self) -> str:
        """The data and ε in words."""
        return f"{self.dataset}, {self.split} set, {self.examples:,} examples, ε = {format_eps(self.eps)}"

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        facts = {"dataset": self.dataset, "split": self.split, "examples": self.examples, "eps": self.eps}
        return facts | {"models": [model.to_dict() for model in self.models]}


def look_at(paths: Sequence[Path], look: Look = Look()) -> Looked:
    """The models at `paths`, each as `find_sources` takes it, over the first one's data.

    Raises ModelFileError or RunError if there is no network at a path, DataError if their images' shapes differ or
    the data do not fit, NonFiniteError if bounds are not finite.
    """
    candidates, names, opener = [find_sources(path) for path in paths], short_names(paths), look.opener()
    opened = [opener.open_newest(sources) for sources in candidates]
    networks = [network for _, network in opened]
    _check_same_shape(names, networks)
    radii = [network.metadata.eps for network in networks]
    eps = radii[0] if look.eps is None else look.eps
    if look.eps is None and len(set(radii)) > 1:
        told = ", ".join(f"{name} {format_eps(radius)}" for name, radius in zip(names, radii, strict=True))
        look.on_note(f"trained for different ε ({told}); all are looked at at ε = {format_eps(eps)}, or at --eps")
    images = look.images(networks[0])
    models = [
        look.states(name, source.file, network, images, eps)
        for name, (source, network) in zip(names, opened, strict=True)
    ]
    return Looked(tuple(models), images.name, images.split, len(images), eps)


def follow(run: Path, look: Look = Look()) -> tuple[History, Looked | None]:
    """A run's epochs as they were trained, and what there is of its networks, all at one ε; None if there are none.

    A network that is damaged is left out, with a note. Raises RunError if `run` is no run or there is nothing in it
    yet, DataError if its data are not there.
    """
    check_run(run)
    preset, history = load_preset(str(run / "preset.json")), read_history(run)
    if history.cut_short:
        look.on_note(f"the last line of {run / 'metrics.jsonl'} has not been written whole; it is left out")
    stages = find_stages(run, history.steps_per_epoch, preset.train.epochs)
    opener, images, models = look.opener(), None, list[ModelStates]()
    eps = preset.eps.max if look.eps is None else look.eps
    for stage in stages:
        name = stage.source.file.stem
        try:
            network = opener.open(stage.source)
        except ModelFileError as error:
            look.on_note(f"{error}; it is left out")
            continue
        images = images or look.images(network)
        states = look.states(name, stage.source.file, network, images, eps)
        models.append(replace(states, step=stage.step, epoch=stage.epoch))
    if images is None and not history.epochs:
        raise RunError(f"the run in {run} has neither a finished epoch nor a whole checkpoint yet; look again later")
    looked = None if images is None else Looked(tuple(models), images.name, images.split, len(images), eps)
    return history, looked


def _check_same_shape(names: Sequence[str], networks: Sequence[Classifier]) -> None:
    first = networks[0].metadata.input_shape
    for name, network in zip(names, networks, strict=True):
        if network.metadata.input_shape != first:
            raise DataError(
                f"{name} takes images of shape {network.metadata.input_shape} (channels, height, width), {names[0]} "
                f"of shape {first}; only models for images of one shape can be compared"
            )


def model_rows(looked: Looked) -> list[dict[str, Any]]:
    """A row for each model and layer."""
    return [{"model": model.name, **layer.to_dict()} for model in looked.models for layer in model.layers]


def epoch_rows(history: History, looked: Looked | None) -> list[dict[str, Any]]:
    """A row for each epoch and layer as it was trained, then for each network and layer."""
    rows: list[dict[str, Any]] = []
    for record in history.epochs:
        facts = record.model_dump(exclude={"layers"})
        rows += [{"network": "in training", **facts, **layer.to_dict()} for layer in record.layers]
    if looked is None:
        return rows
    blank = dict.fromkeys(("natural_accuracy", "certified_accuracy", "validation_certified_accuracy"))
    for model in looked.models:
        facts = {"epoch": model.epoch, "step": model.step, "eps": looked.eps, **blank}
        rows += [{"network": model.name, **facts, **layer.to_dict()} for layer in model.layers]
    return rows
