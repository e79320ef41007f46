"""The weights of a model file as those from which a run starts."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from certtrain.bounds.graph import Normalize
from certtrain.data import ImageSet
from certtrain.errors import ModelFileError
from certtrain.network.modelfile import Classifier, read_model
from certtrain.spec.architecture import Architecture
from certtrain.spec.preset import Preset
from certtrain.storage import check_model_file


def with_start_hash(preset: Preset) -> Preset:
    """The preset with the whole path and the hash of the file that the run starts from, if it names one.

    Raises ModelFileError if there is no such file, or if it is not the one whose hash the preset has.
    """
    start = preset.start
    if start is None:
        return preset
    file = Path(start.file).absolute()
    found = _hash(file)
    if start.sha256 not in (None, found):
        raise ModelFileError(f"{file} has changed: it is not the file that the preset starts from")
    return preset.model_copy(update={"start": start.model_copy(update={"file": str(file), "sha256": found})})


def load_start_(network: nn.Module, preset: Preset, train: ImageSet) -> None:
    """Give the network of a run the weights of the preset's file, and its normalisation and statistics, in place.

    Raises ModelFileError if the file holds another network than the preset's, or one for other images or classes.
    """
    if preset.start is None:
        return
    model = read_model(preset.start.file)
    if problem := _misfit(model, preset, train):
        raise ModelFileError(f"{preset.start.file} holds no weights for this run: {problem}")
    network.load_state_dict(model.state_dict())


def _misfit(model: Classifier, preset: Preset, train: ImageSet) -> str:
    """Why the model does not fit the run; empty if it does."""
    found = model.metadata
    if differing := _differing(found.architecture, preset):
        return f"its network differs from the preset's in {differing}"
    if found.input_shape != train.input_shape:
        return f"it takes images (C, H, W) of {found.input_shape}, and these are {train.input_shape}"
    if len(found.class_names) != len(train.class_names):
        return f"it has {len(found.class_names)} classes, and the data {len(train.class_names)}"
    if preset.data.mean is not None and not _normalizes(model, preset.data.mean, preset.data.std or ()):
        return "it normalises images in another way; leave data.mean and data.std out to take its own"
    return ""


def _differing(architecture: Architecture, preset: Preset) -> str:
    """The fields in which the architectures differ, with dots; the code that a graph was read from is none."""
    of_file, of_run = (a.model_dump(mode="json", exclude={"origin"}) for a in (architecture, preset.model))
    names = [name for name in of_file | of_run if of_file.get(name) != of_run.get(name)]
    return ", ".join(f"model.{name} ({_short(of_file.get(name))}, not {_short(of_run.get(name))})" for name in names)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _normalizes(model: Classifier, mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    """Whether the model normalises by these, in float32."""
    own, wanted = model.state_dict(), Normalize(mean, std).state_dict()
    return all(torch.equal(own[f"normalize.{name}"], tensor) for name, tensor in wanted.items())


def _hash(file: Path) -> str:
    check_model_file(file)
    return hashlib.sha256(file.read_bytes()).hexdigest()
