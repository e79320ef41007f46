"""certtrain export: the folded network as safetensors and ONNX, and properties for other verifiers."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Eps,
    Force,
    ModelFile,
    SplitOption,
    check_targets,
    open_model,
    open_split,
)

if TYPE_CHECKING:
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier

TIMEOUT = 300.0  # seconds


@dataclass(frozen=True)
class NetworkOptions:
    """The network."""

    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Safetensors with BatchNorm folded; both files are written if neither is named."
        ),
    ] = None
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="ONNX file.")] = None
    limit: Annotated[int, typer.Option(min=1, help="Check the exports on the first so many examples.")] = 1000
    force: Force = False
    as_json: AsJson = False


@dataclass(frozen=True)
class PropertyOptions:
    """Properties."""

    vnnlib: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for VNN-LIB 1.0 properties, one an example, with instances.csv and index.json; "
            "the ONNX file is put there as well if none is named.",
        ),
    ] = None
    first: Annotated[int | None, typer.Option(min=0, help="The first example's number; 0 if not given.")] = None
    count: Annotated[int | None, typer.Option(min=1, help="How many examples get a property; 100 if not given.")] = None
    eps: Eps = None
    timeout: Annotated[
        float | None,
        typer.Option(help=f"Seconds that instances.csv grants for each property; {TIMEOUT:g} if not given."),
    ] = None

    def check(self) -> None:
        """Raise BadParameter for options without a folder, and for a time limit that is none."""
        options = {"--count": self.count, "--first": self.first, "--eps": self.eps, "--timeout": self.timeout}
        unused = [spelling for spelling, value in options.items() if value is not None]
        if self.vnnlib is None and unused:
            raise typer.BadParameter("it is for properties: name their folder by --vnnlib", param_hint=unused[0])
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise typer.BadParameter("it is a number of seconds above 0", param_hint="--timeout")


@dataclass(frozen=True)
class ExportData:
    """The data."""

    data_dir: DataDir = None
    split: SplitOption = "test"


class _Targets(NamedTuple):
    """The files of the network; None is not written."""

    weights: Path | None
    onnx: Path | None


def export_command(model: ModelFile, network: NetworkOptions, properties: PropertyOptions, data: ExportData) -> None:
    """Write the network with BatchNorm folded in, as safetensors and ONNX, each checked on real data.

    With --vnnlib also what other verifiers need to judge examples of the data: the box of radius ε around each.
    """
    properties.check()
    targets = _targets(model, network, properties.vnnlib)
    opened = open_model(model, "cpu")
    images = open_split(opened, data.split, data.data_dir, None)
    from certtrain import render
    from certtrain.interchange.exchange import check_examples

    check_examples(images, properties.first or 0, properties.count)
    found = _exported(opened, images, targets, network)
    if properties.vnnlib is not None and targets.onnx is not None:
        found.append(_properties_written(opened, images, targets.onnx, properties, network.as_json))
    if network.as_json:
        render.show_json(found)


def _targets(model: Path, network: NetworkOptions, vnnlib: Path | None) -> _Targets:
    """What is to be written. Raises StorageError if it cannot be, or is there already."""
    targets = _Targets(network.weights, network.onnx)
    if vnnlib is not None:
        from certtrain.storage import check_new_folder

        check_new_folder(vnnlib, network.force)
        targets = _Targets(network.weights, network.onnx or vnnlib / f"{model.stem}.onnx")
    elif network.weights is None and network.onnx is None:
        targets = _Targets(model.with_name(f"{model.stem}-folded.safetensors"), model.with_suffix(".onnx"))
    check_targets(network.force, targets.weights, targets.onnx)
    return targets


def _exported(
    model: "Classifier", images: "ImageSet", targets: _Targets, network: NetworkOptions
) -> list[dict[str, Any]]:
    """Write the network, and show how far the files differ from it; the same for JSON."""
    from certtrain import render
    from certtrain.interchange.export import export

    comparisons = export(model, images.take(network.limit), weights=targets.weights, onnx=targets.onnx)
    files = [{"file": str(path)} for path in (targets.weights, targets.onnx) if path is not None]
    if not network.as_json:
        render.show_comparisons(comparisons)
        for file in files:
            render.say(f"wrote {file['file']}")
    return [file | comparison.to_dict() for file, comparison in zip(files, comparisons, strict=True)]


def _properties_written(
    model: "Classifier", images: "ImageSet", onnx: Path, properties: PropertyOptions, as_json: bool
) -> dict[str, Any]:
    """Write the properties, and say so; the same for JSON."""
    from certtrain import render
    from certtrain.interchange.exchange import export_properties

    assert properties.vnnlib is not None
    written = export_properties(
        model,
        images,
        properties.vnnlib,
        onnx=onnx,
        eps=model.metadata.eps if properties.eps is None else properties.eps,
        first=properties.first or 0,
        count=properties.count,
        timeout=properties.timeout or TIMEOUT,
    )
    if not as_json:
        render.say(written.sentence())
    return written.to_dict()
