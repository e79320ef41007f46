"""The parts of a run, made from its preset: its images, its network, its metadata."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Generator, nn

from certtrain.data import (
    NORMALIZATION,
    ImageSet,
    Progress,
    derive_seed,
    load_images,
    pixel_statistics,
    split_validation,
)
from certtrain.errors import DataError, ModelFileError, NetworkError
from certtrain.network.initialization import InitRecord, initialize_
from certtrain.network.modelfile import Metadata, versions
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.architecture import Architecture
from certtrain.spec.layers import ModuleSection
from certtrain.spec.preset import Preset, Scheme, explain


@dataclass(frozen=True)
class Images:
    """The three sets of a run. The test set is used only once, after the training."""

    train: ImageSet
    validation: ImageSet | None
    test: ImageSet

    def part(self, name: str) -> ImageSet:
        """The test set for "test", else the held-out examples, which must exist."""
        if name == "test":
            return self.test
        assert self.validation is not None  # checked by the preset
        return self.validation


def load_run_images(preset: Preset, data_dir: str | Path | None, on_progress: Progress | None = None) -> Images:
    """The training, validation and test images of a preset.

    Raises DataError, before any training, if one of them is missing, or if their
    shapes or classes differ.
    """
    train = load_images(preset.data.name, "train", data_dir=data_dir, on_progress=on_progress)
    channels = train.input_shape[0]
    test = load_images(preset.data.name, "test", data_dir=data_dir, channels=channels, on_progress=on_progress)
    if (train.input_shape, train.class_names) != (test.input_shape, test.class_names):
        raise DataError(
            f"the training images of {preset.data.name} have shape {train.input_shape} and "
            f"{len(train.class_names)} classes, its test images {test.input_shape} and {len(test.class_names)}"
        )
    return Images(*_training_parts(preset, train), test)


def _training_parts(preset: Preset, train: ImageSet) -> tuple[ImageSet, ImageSet | None]:
    """The examples on which a preset trains, and those that it holds out of the training set."""
    validation = None
    if preset.data.validation:
        train, validation = split_validation(train, preset.data.validation, preset.seed)
    return train.sample(preset.data.examples, preset.seed), validation


def load_split(metadata: Metadata, split: str, data_dir: Path | None, on_progress: Progress | None = None) -> ImageSet:
    """One split of the data set that a model file names: train, validation (as held out in its run), or test.

    Raises DataError, also for the validation split of a run that held nothing
    out, or ModelFileError if the file's preset cannot be read.
    """
    channels, preset = metadata.input_shape[0], _preset_of(metadata)
    source = "test" if split == "test" else "train"
    images = load_images(metadata.dataset, source, data_dir=data_dir, channels=channels, on_progress=on_progress)
    if split == "test":
        return images
    trained_on, held_out = _training_parts(preset, images)
    if split == "train":
        return trained_on
    if held_out is None:
        raise DataError("the model's run held no validation examples out (data.validation = 0); use --split train")
    return held_out


def _preset_of(metadata: Metadata) -> Preset:
    try:
        return Preset.model_validate(metadata.preset)
    except ValidationError as error:
        raise ModelFileError(f"the model file holds a preset that certtrain cannot read:\n{explain(error)}") from error


def make_network(
    preset: Preset, train: ImageSet, scheme: Scheme | None = None
) -> tuple[nn.Sequential, list[InitRecord]]:
    """The preset's network for these images, initialised with the preset's seed by its scheme, or by `scheme`.

    It is in evaluation mode, also during training: a training pass takes the statistics of the batch as an argument.
    """
    mean, std = _normalization(preset, train)
    spec = InputSpec(train.input_shape, len(train.class_names), mean, std)
    network = build_model(_architecture(preset), spec).eval()
    generator = Generator().manual_seed(derive_seed(preset.seed, "weights"))
    return network, initialize_(network, scheme or preset.init, generator)


def describe(preset: Preset, train: ImageSet, *, note: str = "", results: dict[str, Any] | None = None) -> Metadata:
    """The metadata of a model file of a run with this preset."""
    return Metadata(
        architecture=_architecture(preset),
        input_shape=train.input_shape,
        class_names=train.class_names,
        dataset=preset.data.name,
        eps=preset.eps.max,
        seed=preset.seed,
        versions=versions(),
        preset=preset.model_dump(mode="json"),
        note=note,
        results=results,
    )


def _architecture(preset: Preset) -> Architecture:
    if isinstance(preset.model, ModuleSection):  # `resolve_module` replaces it by layers when a run begins
        raise NetworkError(f"the network of preset {preset.name!r} is code, which is run only when a run begins")
    return preset.model


def _normalization(preset: Preset, train: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if preset.data.mean is not None and preset.data.std is not None:
        return preset.data.mean, preset.data.std
    return NORMALIZATION.get(preset.data.name) or pixel_statistics(train.images)
