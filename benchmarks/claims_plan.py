"""The runs of `claims.py`: its own plan on MNIST, or the same methods on the network and the data of any preset."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from certtrain.data import ImageSet, load_images
from certtrain.errors import PresetError
from certtrain.network.source import resolve_module
from certtrain.spec.epsilon import format_eps
from certtrain.spec.preset import Preset, load_preset
from certtrain.storage import write_atomic

Changes = dict[str, Any]

SEEDS = (0, 1, 2)
HELD_OUT = 5  # one of so many training examples is held out, if the preset holds out none
FILE = "plan.json"  # in the folder, beside the results
NETWORK: Changes = {
    "model.channels": [8, 8, 16, 16],
    "model.kernels": [3, 3, 3, 3],
    "model.strides": [2, 1, 2, 1],
    "model.linear": [64],
}
# Epoch 1 is natural training, then comes the ramp; the other epochs are at the full radius.
WARM_UPS: dict[str, Changes] = {
    "short": {"eps.start": 2, "eps.length": 4},
    "long": {"eps.start": 2, "eps.length": 8},
}
COMMON: Changes = {
    "train.epochs": 12,
    "train.milestones": [10, 11],
    "train.batch_size": 64,
    "train.learning_rate": 1e-3,
    "train.batch_norm_statistics": "clean",
    "train.compile": "off",
    "data.examples": 10000,
    "data.validation": 2500,
    "data.verify_on": "validation",
}
NO_NORM: Changes = {"model.batch_norm": False}
NO_REGULARIZERS: Changes = {"regularizer.tightness": False, "regularizer.relu_balance": False}
VANILLA: Changes = {"init": "xavier", **NO_REGULARIZERS}
CROWN: Changes = {**VANILLA, "objective.name": "crown-ibp"}
METHODS: dict[str, Changes] = {
    "vanilla IBP": VANILLA | NO_NORM,
    "vanilla IBP with BatchNorm": VANILLA,
    "CROWN-IBP": CROWN | NO_NORM,
    "CROWN-IBP with BatchNorm": CROWN,
    "fast": {},
    "fast without IBP initialisation": {"init": "xavier"},
    "fast without BatchNorm": NO_NORM,
    "fast without tightness": {"regularizer.tightness": False},
    "fast without balance": {"regularizer.relu_balance": False},
}
ALL_ON: Changes = {
    "init": "ibp",
    "objective.name": "ibp",
    "regularizer.tightness": True,
    "regularizer.relu_balance": True,
}


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    warm_up: str
    eps: float
    seed: int

    def file(self, folder: Path) -> Path:
        """The file for its result."""
        words = f"{self.method} {self.warm_up} {self.eps} {self.seed}"
        return folder / f"{words.replace(' ', '-')}.json"


@dataclass(frozen=True)
class Plan:
    """A preset, and the changes of each run to it.

    preset: the name of a shipped preset, or fields. common: the changes of all runs. about: the data, the network and
    the epochs in words. left_out: why methods are left out. largest_class: its share of the training examples.
    """

    preset: str | dict[str, Any]
    common: Changes
    methods: dict[str, Changes]
    warm_ups: dict[str, Changes]
    radii: tuple[float, ...]
    epochs: int
    about: str
    largest_class: float
    left_out: str = ""

    def changes(self, run: Run) -> Changes:
        """The changes of a run to the preset."""
        own = self.methods[run.method] | self.warm_ups[run.warm_up]
        return self.common | own | {"eps.max": run.eps, "seed": run.seed}

    def preset_of(self, run: Run) -> Preset:
        """The preset of a run. Raises PresetError."""
        return load_preset(self.preset, self.changes(run))

    def has(self, run: Run) -> bool:
        """Whether the plan has this method and warm-up."""
        return run.method in self.methods and run.warm_up in self.warm_ups

    @property
    def remarks(self) -> list[str]:
        """The sentences about what is trained."""
        return [text for text in (self.about, self.left_out) if text]

    @property
    def total(self) -> int:
        """The number of runs with all seeds."""
        return len(self.methods) * len(self.warm_ups) * len(self.radii) * len(SEEDS)


MNIST = Plan(
    preset="mnist-cpu",
    common=NETWORK | COMMON,
    methods=METHODS,
    warm_ups=WARM_UPS,
    radii=(0.3, 0.4),
    epochs=COMMON["train.epochs"],
    about="MNIST, 10,000 training examples, a network of four convolutions and two linear layers, equally many steps "
    "for all methods; errors on 2,500 held-out examples. The short warm-up takes 4 epochs of 12, the long one 8 of "
    "12; both begin after one natural epoch.",
    largest_class=6742 / 60000,
)


def plan_for(source: str, data_dir: Path | None, radii: tuple[float, ...] = ()) -> Plan:
    """The plan for a preset's data, network, epochs and ε; its ramp is the long warm-up, half of it the short one.

    If the preset holds out no examples, a fifth of the training examples is held out. Raises CerttrainError.
    """
    preset = load_preset(source)
    train = load_images(preset.data.name, "train", data_dir=data_dir)
    preset = resolve_module(preset, train)
    if preset.eps.length < 2:
        raise PresetError(f"preset {source!r} has eps.length = {preset.eps.length}: a short and a long warm-up need 2")
    held_out = preset.data.validation or len(train) // HELD_OUT
    lengths = {"short": preset.eps.length // 2, "long": preset.eps.length}
    methods, left_out = _methods("batch_norm" in type(preset.model).model_fields)
    return Plan(
        preset=preset.model_dump(mode="json"),
        common={"data.validation": held_out, "data.verify_on": "validation"},
        methods=methods,
        warm_ups={name: {"eps.start": preset.eps.start, "eps.length": length} for name, length in lengths.items()},
        radii=radii or (preset.eps.max,),
        epochs=preset.train.epochs,
        about=_about(preset, held_out, lengths),
        largest_class=_largest_class(train),
        left_out=left_out,
    )


def _methods(switch: bool) -> tuple[dict[str, Changes], str]:
    """The methods, with every improvement set explicitly; and, without a field batch_norm, why some are left out."""
    if switch:
        return {name: {**ALL_ON, "model.batch_norm": True} | own for name, own in METHODS.items()}, ""
    as_it_is = {name: own for name, own in METHODS.items() if "BatchNorm" not in name}
    methods = {name: ALL_ON | {k: v for k, v in own.items() if k not in NO_NORM} for name, own in as_it_is.items()}
    return methods, (
        "The network is given as code or as layers and has no batch_norm switch: what is with or without BatchNorm is "
        "left out, and every method, vanilla IBP and CROWN-IBP too, has the network as it is."
    )


def _about(preset: Preset, held_out: int, lengths: Mapping[str, int]) -> str:
    return (
        f"{preset.name}: the data set {preset.data.name}, equally many steps for all methods; errors on {held_out:,} "
        f"held-out examples. The short warm-up takes {lengths['short']} of {preset.train.epochs} epochs, the long one "
        f"{lengths['long']}; both begin in epoch {preset.eps.start}."
    )


def _largest_class(train: ImageSet) -> float:
    return float(train.labels.bincount().max()) / len(train)


# --- the file --------------------------------------------------------------------------------------------


def check_plan(folder: Path, plan: Plan) -> None:
    """Exit if the folder has results of another plan."""
    if (folder / FILE).exists() and read_plan(folder) != _plain(plan):
        raise SystemExit(f"{folder} holds the results of another preset, or of other radii: choose another --folder")


def save_plan(folder: Path, plan: Plan) -> None:
    """Write a plan beside its results; the plan on MNIST needs no file."""
    if plan != MNIST:
        write_atomic(folder / FILE, json.dumps(asdict(plan)).encode())


def read_plan(folder: Path) -> Plan:
    """The plan of the results in the folder: that on MNIST if there is no file."""
    path = folder / FILE
    if not path.exists():
        return MNIST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Plan(**values | {"radii": tuple(values["radii"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SystemExit(
            f"{path} is damaged ({error}): run claims.py with the same --preset in another folder"
        ) from None


def _plain(plan: Plan) -> Plan:
    """The plan as it is read from a file."""
    return Plan(**json.loads(json.dumps(asdict(plan))) | {"radii": plan.radii})


def setting(eps: float, warm_up: str = "") -> str:
    """ε and, if given, the warm-up, in words."""
    decimal = f"{eps:g}"  # 0.4 stays 0.4, though it is 102/255 too
    return ", ".join(filter(None, [f"ε = {decimal if float(decimal) == eps else format_eps(eps)}", warm_up]))
