"""The options for networks that certtrain did not train, and how a command opens a network of any kind."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from certtrain.cli.options import compute_device, open_model
from certtrain.errors import DataError
from certtrain.interchange.packed import ending
from certtrain.spec.choices import DatasetName, DeviceName, Layout, NetworkName
from certtrain.storage import is_folder

if TYPE_CHECKING:
    from certtrain.network.modelfile import Classifier
    from certtrain.network.reading import FileReading
    from certtrain.verification.verify import Report

WHOLE_NETWORKS = (".onnx", ".pt2")
WEIGHTS = (".pt", ".pth")  # as torch.save's files are mostly called


@dataclass(frozen=True)
class ChannelNumbers:
    """A number for each channel, or one for all."""

    values: tuple[float, ...]


def channel_numbers(text: str) -> ChannelNumbers:
    """Numbers from 0.5, 0.4914,0.4822,0.4465 or 1/255."""
    try:
        return ChannelNumbers(tuple(_number(part) for part in str(text).split(",")))
    except (ValueError, ZeroDivisionError) as error:
        raise typer.BadParameter(f"{text!r} is not a number for each channel, like 0.4914,0.4822,0.4465") from error


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(text)


ModuleOption = Annotated[
    str | None,
    typer.Option(
        "--module",
        metavar="FILE.py:NAME",
        help="The class or function that makes the network, whose weights alone are in the file: a state dict of "
        "torch.save, or .safetensors. The code in FILE.py is run.",
    ),
]


@dataclass(frozen=True)
class ForeignOptions:
    """Networks that certtrain did not train"""

    dataset: Annotated[
        DatasetName | None,
        typer.Option("--data", help="The data set of a network in an .onnx or .pt2 file, or of a --module."),
    ] = None
    module: ModuleOption = None
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The weights of a --module, which can also be given as MODEL.")
    ] = None
    mean: Annotated[
        ChannelNumbers | None,
        typer.Option(
            parser=channel_numbers,
            metavar="NUMBERS",
            help="The mean that is subtracted from pixels in [0, 1] before they enter the network: a number for each "
            "channel, like 0.4914,0.4822,0.4465, or one for all; 0 if not given.",
        ),
    ] = None
    std: Annotated[
        ChannelNumbers | None,
        typer.Option(
            parser=channel_numbers,
            metavar="NUMBERS",
            help="The standard deviation by which they are then divided; 1 if not given. For a network that "
            "takes 0 to 255: 1/255.",
        ),
    ] = None
    layout: Annotated[
        Layout | None,
        typer.Option(
            help="The order of an image's values, if the network takes them in a row: channel by channel, pixel by "
            "pixel, or channel by channel and in columns, as MATLAB does. If not given, the input's shape says it."
        ),
    ] = None

    def file(self, model: Path | None) -> Path | None:
        """The file with the network, from MODEL or --weights. Raises BadParameter."""
        if self.weights is None:
            if model is None and self.module is not None:
                raise typer.BadParameter("missing: the file with the weights of the --module", param_hint="--weights")
            return model
        if model is not None or self.module is None:
            raise typer.BadParameter("it goes with --module, and takes the place of MODEL", param_hint="--weights")
        return self.weights

    def reads(self, path: Path) -> bool:
        """Whether a file holds a network that certtrain did not train."""
        return (self.module is not None or ending(path) in WHOLE_NETWORKS) and not is_folder(path)

    def check(self, path: Path, eps: object, network: NetworkName = "saved") -> None:
        """Raise BadParameter if an option is missing for the network in that file, or has no effect on it."""
        given = {"--data": self.dataset, "--mean": self.mean, "--std": self.std, "--layout": self.layout}
        if not self.reads(path):
            if ending(path) in WEIGHTS:
                raise typer.BadParameter(
                    f"missing: {path} holds weights alone; name the class that takes them, like my.py:MyNet",
                    param_hint="--module",
                )
            for name in (name for name, value in given.items() if value is not None):
                raise typer.BadParameter("certtrain's own files say this themselves", param_hint=name)
            return
        if self.dataset is None:
            raise typer.BadParameter(f"missing: {path} does not say which images it classifies", param_hint="--data")
        if eps is None:
            raise typer.BadParameter(f"missing: {path} does not name a radius", param_hint="--eps")
        if network == "folded":
            raise typer.BadParameter("only certtrain's own networks are folded", param_hint="--network")

    def open(
        self, path: Path, eps: float | None, device: DeviceName, data_dir: Path | None, split: str
    ) -> "Classifier":
        """The network in a file of any kind. Raises ModelFileError, and what `load_network` raises."""
        if not self.reads(path):
            return open_model(path, device, data_dir)
        assert self.dataset is not None  # as `check` found
        assert eps is not None
        from certtrain import render
        from certtrain.interchange.foreign import load_network

        with render.loading() as report:
            found = load_network(
                path,
                dataset=self.dataset,
                eps=eps,
                data_dir=data_dir,
                split=split,
                module=self.module,
                mean=None if self.mean is None else self.mean.values,
                std=None if self.std is None else self.std.values,
                layout=self.layout,
                on_progress=report,
            )
        return found.to(compute_device(device))


def say_if_guessing(report: "Report", classes: int) -> None:
    """Note that a network is hardly better than guessing, which mostly means that it expects other values."""
    from certtrain import render
    from certtrain.formats import percent

    if report.is_near_guessing(classes):
        render.note(
            f"a natural accuracy of {percent(report.natural_accuracy)} is close to guessing: it may take normalised "
            "images (--mean, --std), or their values in another order (--layout)"
        )


def options_of(reading: "FileReading", dataset: str, module: str | None) -> ForeignOptions:
    """The options with which a network is read as a certificate file says. Raises BadParameter."""
    if (reading.kind == "module") != (module is not None):
        what = "missing: the certificates are about weights of a module" if module is None else "they need none"
        raise typer.BadParameter(what, param_hint="--module")
    mean, std = ChannelNumbers(reading.mean), ChannelNumbers(reading.std)
    return ForeignOptions(_known(dataset), module, None, mean, std, reading.layout)


def _known(name: str) -> DatasetName:
    for known in get_args(DatasetName):
        if name == known:
            return name  # type: ignore[return-value]
    raise DataError(f"the certificates are about {name!r}, which is no data set; known are {get_args(DatasetName)}")
