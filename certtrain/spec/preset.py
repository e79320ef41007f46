"""Presets: everything that decides the result of a run, validated; without torch.

A preset is a TOML file, which may extend another. Overrides name a field by its dotted path. A preset
is saved with all its fields in the run's folder and in the model file.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from certtrain.errors import EpsilonError, PresetError
from certtrain.formats import count_of
from certtrain.spec.architecture import NETWORKS, Architecture, Residual
from certtrain.spec.choices import BatchNormStatistics
from certtrain.spec.choices import Compile as Compile
from certtrain.spec.choices import DatasetName as DatasetName
from certtrain.spec.choices import Precision as Precision
from certtrain.spec.choices import Scheme as Scheme
from certtrain.spec.epochs import SCALED, Change, scaled_fields
from certtrain.spec.epsilon import parse_eps
from certtrain.spec.idle import idle_fields
from certtrain.spec.layers import SECTIONS, Graph, ModuleSection
from certtrain.spec.messages import problem_text, suggestion
from certtrain.spec.migration import FORMAT, RENAMED, migrated
from certtrain.spec.objective import OBJECTIVES, AnyObjective, AttackSection, CrownIBPSection, IBPSection
from certtrain.spec.preset_file import change_network, change_objective, own_fields, preset_fields
from certtrain.spec.preset_file import preset_names as preset_names
from certtrain.spec.section import Positive, Section


def _radius(value: Any) -> float:
    try:
        return parse_eps(value)
    except EpsilonError as error:
        raise ValueError(str(error)) from error


PresetRadius = Annotated[float, BeforeValidator(_radius), Field(gt=0, le=1)]


class DataSection(Section):
    """The data set and what is done to its images."""

    name: DatasetName
    """Which data set; "folder" reads train/<class>/* and test/<class>/* under the data folder."""
    validation: int = Field(0, ge=0)
    """Number of training examples to hold out and measure accuracy on during training; the test set is not used."""
    examples: int | None = Field(None, ge=2)
    """Number of training examples to use, drawn at random from those that are not held out; by default all."""
    verify_on: Literal["test", "validation"] = "test"
    """On which examples the trained network is verified; use "validation" while you choose settings."""
    flip: bool = False
    """Mirror each training image with probability one half."""
    crop_padding: int = Field(0, ge=0)
    """Pad each side of a training image by this many pixels, which repeat the edge, and crop it at a random place."""
    mean: tuple[float, ...] | None = None
    """Channel means of the normalisation layer; by default the data set's own."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Channel standard deviations of the normalisation layer; by default the data set's own."""


class EpsSection(Section):
    """The radius and its ramp."""

    max: PresetRadius
    """The radius ε in pixels of [0, 1], as a fraction like "8/255" or a number."""
    start: Positive = 2
    """Epoch, counted from 1, in which the ramp starts; before it ε is zero."""
    length: int = Field(80, ge=0)
    """Number of epochs of the ramp."""
    train_factor: float = Field(1.0, ge=1.0)
    """The ramp ends at this multiple of ε; the network is verified at ε itself."""


class RegularizerSection(Section):
    """The regularisers of the warm-up."""

    weight: float = Field(0.5, ge=0)
    """λ, the weight at ε = 0; it falls to zero as ε reaches its largest value."""
    tolerance: float = Field(0.5, gt=0, le=1)
    """τ; layers whose ratio is at least this are not penalised."""
    tightness: bool = True
    """Penalise bounds that grow from the network's input to a layer."""
    relu_balance: bool = True
    """Penalise layers whose active and inactive ReLUs are out of balance."""


class TrainSection(Section):
    """The optimisation."""

    epochs: Positive
    """Number of passes over the training set."""
    batch_size: int = Field(128, ge=2)
    """Number of examples in a step."""
    learning_rate: float = Field(5e-4, gt=0)
    """The optimiser's learning rate."""
    optimizer: Literal["adam", "adamw", "radam", "sgd"] = "adam"
    """The optimiser, as torch has it; what has no field here has torch's default."""
    weight_decay: float = Field(0.0, ge=0)
    """The optimiser's weight decay. adam and sgd add it to the gradient, as the derivative of an L2 norm; adamw and
    radam shrink the weights by it, in proportion to the learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """The momentum of sgd."""
    l1: float = Field(0.0, ge=0)
    """Weight in the loss of the L1 norm of all weights of convolutions and linear layers, their biases apart."""
    schedule: Literal["steps", "linear", "cosine"] = "steps"
    """steps: the rate is multiplied by `decay` at each of the `milestones`. linear, cosine: it rises for `warmup`
    epochs, then falls to zero at the end, along a line or half a cosine."""
    warmup: float = Field(0.0, ge=0)
    """Number of epochs in which a linear or cosine rate rises; fewer than all epochs."""
    milestones: tuple[Positive, ...] = ()
    """With steps, the epochs after which the learning rate is multiplied by `decay`."""
    decay: float = Field(0.2, gt=0, le=1)
    """With steps, the factor of the learning rate at each of the `milestones`."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay per step of a moving average of the weights, which is then the trained network; 0 for no average."""
    average_from: Positive | None = None
    """The trained network is the mean of the networks after this epoch and all later ones (Izmailov et al. 2018),
    BatchNorm's running statistics included; until this epoch ends it is the network itself."""
    batch_norm_refresh: bool = False
    """After each epoch, compute BatchNorm's running statistics anew, over the whole training set without
    augmentation, in batches of `batch_size`; training itself does not use them. This costs a forward pass over the set
    each epoch, and with an average of the weights a second one."""
    clip_norm: float = Field(10.0, gt=0)
    """Largest norm of the gradient; larger gradients are clipped."""
    batch_norm_statistics: BatchNormStatistics = "clean"
    """Statistics for BatchNorm: those of the clean batch, as in Shi et al. 2021, or those of the boxes' centres, which
    save the clean pass, a third of a step's arithmetic."""
    micro_batch: Positive | None = None
    """Number of examples that are bounded at a time, for GPUs with little memory; the step is still that of the whole
    batch. With several processes, the number in each process."""
    skip_inactive: bool = False
    """From the end of the ramp on, leave out of the steps the channels and units that are inactive in the boxes of
    5,000 training images, so that steps cost less. Their weights stay as they are; every 5 epochs all are looked at
    again. For networks of convolutions and linear layers in a row that IBP or CROWN-IBP trains in one process."""
    keep_every: Positive | None = None
    """Each time this many epochs are done, keep the network as a model file in the run's folder `epochs`, so that
    `certtrain stats RUN --by-epoch` can compare them at one ε. Without it, a run keeps only its newest checkpoints."""
    precision: Precision = "fp32"
    """Arithmetic of convolutions and linear layers in training; tf32 is for NVIDIA GPUs. Verification does not use
    it."""
    compile: Compile = "auto"
    """Compile the step with torch.compile; auto does so if that saves time overall."""


class StartSection(Section):
    """The weights that a run starts from."""

    file: str = Field(min_length=1)
    """A model file; its network must be the preset's. The run takes its normalisation too."""
    sha256: str | None = None
    """The hash of the file, written into the preset of a run when it begins."""


class Preset(Section):
    """Everything that decides the result of one run."""

    format: Literal[2] = FORMAT
    """The format of these fields; `migration.py` reads earlier ones."""
    name: str = Field(pattern=r"^[\w.-]+$")
    """Letters, digits, dots, dashes and underscores; the name of the run's folder begins with it."""
    description: str = ""
    """What the preset is for, in a few words."""
    seed: int = Field(0, ge=0, lt=2**63)
    """The random seed of the weights, the order of the data and the augmentation."""
    init: Scheme = "ibp"
    """The initialisation of the weights."""
    start: StartSection | None = None
    """The weights that the run starts from, in place of those of `init`; `certtrain train --from` sets it."""
    data: DataSection
    model: Annotated[Architecture | ModuleSection, Field(discriminator="name")]
    eps: EpsSection
    train: TrainSection
    objective: AnyObjective = IBPSection(name="ibp")
    regularizer: RegularizerSection = RegularizerSection()

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_versions(cls, values: Any) -> Any:
        return migrated(values) if isinstance(values, Mapping) else values

    @model_validator(mode="before")
    @classmethod
    def _named_objective(cls, values: Any) -> Any:
        """Fields of an objective without a name are those of IBP."""
        objective = values.get("objective") if isinstance(values, Mapping) else None
        return {**values, "objective": {"name": "ibp", **objective}} if isinstance(objective, Mapping) else values

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if (self.data.mean is None) != (self.data.std is None):
            raise ValueError("data.mean and data.std go together: give both or neither")
        if self.train.micro_batch is not None and self.train.batch_norm_statistics != "clean":
            raise ValueError(
                'train.micro_batch needs train.batch_norm_statistics = "clean": centres come from whole boxes'
            )
        if self.train.micro_batch is not None and self.train.compile == "on":
            raise ValueError('train.micro_batch is never compiled: leave train.compile at "auto" or "off"')
        bounds_only = isinstance(self.objective, IBPSection | CrownIBPSection)
        if self.train.batch_norm_statistics == "centre" and not bounds_only:
            raise ValueError(
                f'objective.name = "{self.objective.name}" needs train.batch_norm_statistics = "clean": '
                "attacked inputs are normalised by the statistics of the clean batch"
            )
        if self.train.skip_inactive and (reason := self._steps_are_whole(bounds_only)):
            raise ValueError(f"train.skip_inactive {reason}")
        if self.train.schedule != "steps" and self.train.warmup >= self.train.epochs:
            raise ValueError("train.warmup must be shorter than train.epochs, so that the rate can fall")
        if (first := self.train.average_from) is not None and first > self.train.epochs:
            raise ValueError(
                f"train.average_from is {first}, but the run has {count_of(self.train.epochs, 'epoch')}: choose one of "
                "them, or leave it out for no average"
            )
        if self.train.average > 0 and self.train.average_from is not None:
            raise ValueError("train.average and train.average_from exclude each other: choose one average")
        if self.data.verify_on == "validation" and not self.data.validation:
            raise ValueError('data.verify_on = "validation" needs held-out examples: set data.validation')
        return self

    def _steps_are_whole(self, bounds_only: bool) -> str:
        """Why no channel can be left out of the steps; empty if some can."""
        if isinstance(self.model, Residual | Graph | ModuleSection):
            return f'is for networks of convolutions and linear layers in a row, and model.name is "{self.model.name}"'
        if not bounds_only:
            return f'is for IBP and CROWN-IBP, and objective.name is "{self.objective.name}"'
        settings = self.train
        others = {"average": settings.average > 0, "average_from": settings.average_from is not None}
        others |= {"micro_batch": settings.micro_batch is not None, "l1": settings.l1 > 0}
        found = [f"train.{name}" for name, given in others.items() if given]
        return f"does not go with {' and '.join(found)}" if found else ""


def load_preset(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, *, epochs: int | None = None
) -> Preset:
    """The preset of that name, in that .toml or .json file, or with these fields; `overrides` replace some fields.

    With `epochs` it has that many, and the ramp of ε and the learning rate are scaled with them (`epoch_changes`),
    apart from what `overrides` set.

    A preset may extend another (`preset_fields`); the result has the fields of both.
    Fields are nested as in a file ({"train": {"epochs": 3}, …}); `overrides` maps
    dotted paths to values ({"train.epochs": 3}). If they name another network, it has
    its own defaults; only batch_norm, which means the same in every network, is kept.
    If they name another objective, it keeps the fields that it has too with the same
    default. Raises PresetError, which names the file and each wrong field, and each
    field that the file or an override sets without effect (`idle`).
    """
    title, values = source.get("name", "given") if isinstance(source, Mapping) else str(source), preset_fields(source)
    for path, change in (epoch_changes(source, epochs) if epochs is not None else {}).items():
        _replace(values, path, change.after)
    if overrides and "model.name" in overrides:
        change_network(values, overrides["model.name"])
    if overrides and "objective.name" in overrides:
        change_objective(values, overrides["objective.name"])
    for path, value in (overrides or {}).items():
        if now := RENAMED.get(path):
            raise PresetError(f"{path!r} is now {now!r}: write {now}=…")
        _replace(values, path, value)
    try:
        preset = Preset.model_validate(values)
    except ValidationError as error:
        raise PresetError(f"preset {title!r} is not valid:\n{explain(error)}") from error
    if idle := _idle_fields(preset, source, overrides or {}):
        raise PresetError(f"preset {title!r} is not valid:\n" + "\n".join(f"  {sentence}" for sentence in idle))
    return preset


def epoch_changes(source: str | Path | Mapping[str, Any], epochs: int) -> dict[str, Change]:
    """The fields of a preset, by dotted path, that change if it has this many epochs, train.epochs among them.

    Raises PresetError as `load_preset` if a file cannot be read.
    """
    values = preset_fields(source)
    sections: dict[str, type[Section]] = {"eps": EpsSection, "train": TrainSection}
    known = {name: values[name] if isinstance(values.get(name), dict) else {} for name in sections}
    fields = dict[str, Any]()
    for path in SCALED:
        section, _, name = path.partition(".")
        fields[path] = known[section].get(name, sections[section].model_fields[name].default)
    before = known["train"].get("epochs")
    of_preset = scaled_fields(fields, before, epochs) if isinstance(before, int) and before > 0 else {}
    return {"train.epochs": Change(before, epochs)} | of_preset


def _idle_fields(preset: Preset, source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """A sentence for each field that the preset's file or the overrides set without effect."""
    fields = TrainSection.model_fields
    values = {f"train.{name}": value for name, value in preset.train if value != fields[name].default}
    values |= {f"model.{name}": value for name, value in preset.model}
    values |= {"train.optimizer": preset.train.optimizer, "train.schedule": preset.train.schedule}
    return idle_fields(values, _paths(own_fields(source)), {*overrides, *_paths(overrides)})


def _paths(fields: Mapping[str, Any]) -> list[str]:
    """The dotted paths of the fields in sections."""
    return [f"{name}.{field}" for name, values in fields.items() if isinstance(values, Mapping) for field in values]


def parse_override(text: str) -> tuple[str, Any]:
    """("train.epochs", 3) from "train.epochs=3"; the value is TOML, or a string if it is not valid TOML.

    Raises PresetError if there is no "=" or no field.
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise PresetError(f"{text!r} is not field=value; write it like train.epochs=20")
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), value.strip()


def _replace(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, field = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise PresetError(f"cannot set {path!r}: {section!r} is not a section")
    values[field] = value


def explain(error: ValidationError) -> str:
    """A line for each wrong field, with its dotted path and what is wrong; for fields that disagree, without a path."""
    lines = []
    for problem in error.errors():
        variant, path = _place(problem["loc"])
        unknown = problem["type"] == "extra_forbidden"
        message = _suggest(path, variant) if unknown else _message(problem)
        lines.append(f"  {'.'.join(path)}: {message}" if path else f"  {message}")
    return "\n".join(lines)


def _message(problem: ErrorDetails) -> str:
    if problem["type"] == "missing" and problem["loc"] == ("name",):
        return 'must be given: a preset has a name of its own, like "mine", and takes none from one that it extends'
    return problem_text(problem)


def _place(location: tuple[int | str, ...]) -> tuple[str | None, list[str]]:
    """The name of the network or objective if the field is its own, and the path without it; pydantic puts it there."""
    path = [str(part) for part in location]
    if path and path[0] in ("model", "architecture", "objective") and len(path) > 1:
        return path[1] if len(path) == 3 else None, [path[0], *path[2:]]
    return None, path


def _suggest(path: Sequence[str], variant: str | None) -> str:
    """For a field that does not exist: a similar one by its whole path, of the same section if possible."""
    *section, field = path
    variants: dict[str, type[Section]] = {**NETWORKS, "graph": Graph, "module": ModuleSection, **OBJECTIVES}
    if variant is not None:
        known = list(variants[variant].model_fields)
        return f"there is no such field{suggestion(field, known) or f'; {variant!r} has ' + ', '.join(known)}"
    here = ".".join(section)
    paths = _field_paths(here)
    names = difflib.get_close_matches(field, {path.rpartition(".")[2] for path in paths}, n=1)
    places = [path for path in paths if path.rpartition(".")[2] in names]
    near = next((path for path in places if path.rpartition(".")[0] == here), next(iter(places), None))
    return "there is no such field" + (f"; did you mean {near!r}?" if near else "")


def _field_paths(here: str) -> list[str]:
    """The dotted paths of all fields; those of layers as if they were in the section `here`."""
    places: list[tuple[str, type[Section]]] = [
        ("", Preset),
        ("data", DataSection),
        ("eps", EpsSection),
        ("train", TrainSection),
        ("regularizer", RegularizerSection),
        ("start", StartSection),
        ("objective.attack", AttackSection),
    ]
    networks: list[type[Section]] = [*NETWORKS.values(), Graph, ModuleSection]
    places += [("model", network) for network in networks]
    places += [("objective", objective) for objective in OBJECTIVES.values()]
    places += [(here, layer) for layer in SECTIONS.values() if "layers" in here]
    return [f"{place}.{name}".lstrip(".") for place, section in places for name in section.model_fields]
