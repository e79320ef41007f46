"""certtrain export: write the folded network as safetensors and ONNX, and properties for other verifiers."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Eps,
    Force,
    ModelOrNewest,
    SplitOption,
    check_targets,
    data_folder,
    network_file,
    newest_if_none,
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
            metavar="FILE",
            help="Safetensors file with BatchNorm folded. If neither file is named, both are written, the ONNX file if "
            "the packages for it are installed.",
        ),
    ] = None
    onnx: Annotated[Path | None, typer.Option(metavar="FILE", help="ONNX file.")] = None
    card: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Model card of a run, a README.md with metadata in YAML, as model hubs show it. `certtrain train` "
            "writes one beside the model. If only this file is named, nothing else is written.",
        ),
    ] = None
    limit: Annotated[
        int, typer.Option(min=1, help="Check the exports on this many examples, starting with the first.")
    ] = 1000
    force: Force = False
    as_json: AsJson = False


@dataclass(frozen=True)
class PropertyOptions:
    """Properties."""

    vnnlib: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder for VNN-LIB 1.0 properties, one for each example, with instances.csv and index.json. The ONNX "
            "file is written there too if --onnx does not name one.",
        ),
    ] = None
    first: Annotated[int | None, typer.Option(min=0, help="Number of the first example; 0 if not given.")] = None
    count: Annotated[int | None, typer.Option(min=1, help="Number of examples; 100 if not given.")] = None
    eps: Eps = None
    timeout: Annotated[
        float | None,
        typer.Option(help=f"Time limit of each property in instances.csv, in seconds; {TIMEOUT:g} if not given."),
    ] = None

    def check(self) -> None:
        """Raise BadParameter for options of properties without --vnnlib, and for a time limit that is not positive."""
        options = {"--count": self.count, "--first": self.first, "--eps": self.eps, "--timeout": self.timeout}
        unused = [spelling for spelling, value in options.items() if value is not None]
        if self.vnnlib is None and unused:
            raise typer.BadParameter("it is for properties; give their folder with --vnnlib", param_hint=unused[0])
        if self.timeout is not None and not 0 < self.timeout < float("inf"):
            raise typer.BadParameter("it must be a number of seconds above 0", param_hint="--timeout")


@dataclass(frozen=True)
class ExportData:
    """The data."""

    data_dir: DataDir = None
    split: SplitOption = "test"


class _Targets(NamedTuple):
    """The files for the network; a file that is None is not written."""

    weights: Path | None
    onnx: Path | None


def export_command(
    network: NetworkOptions, properties: PropertyOptions, data: ExportData, model: ModelOrNewest = None
) -> None:
    """Write the network with BatchNorm folded in, as safetensors and as ONNX, and check each file on real data.

    With --vnnlib, also write a property for each example, for other verifiers: its box of radius ε and its label.
    """
    properties.check()
    from certtrain.storage import check_model_file

    file = network_file(newest_if_none(model))
    check_model_file(file)
    if network.card is not None:
        _write_card(file, network.card, network)
        if network.weights is None and network.onnx is None and properties.vnnlib is None:
            return
    targets = _targets(file, network, properties.vnnlib)
    opened = open_model(file, "cpu", data.data_dir)
    images = open_split(opened, data.split, data_folder(data.data_dir, file), None)
    from certtrain import render
    from certtrain.interchange.exchange import check_examples

    check_examples(images, properties.first or 0, properties.count)
    written = _export_network(opened, images, targets, network)
    if properties.vnnlib is not None and targets.onnx is not None:
        written.append(_export_properties(opened, images, targets.onnx, properties, network.as_json))
    if network.as_json:
        render.show_json(written)


def _write_card(model: Path, card: Path, network: NetworkOptions) -> None:
    """Write the card of the run whose model this is. Raises RunError if it is no run's."""
    from certtrain import render
    from certtrain.errors import RunError
    from certtrain.reports.card import write_card
    from certtrain.runs.runfiles import MODEL

    if model.name != MODEL or not (model.parent / "report.json").is_file():
        raise RunError(f"{model} is not the model of a finished run; a card is made from the report.json beside that")
    check_targets(network.force, card)
    write_card(model.parent, card)
    if not network.as_json:
        render.say(f"wrote {card}")


def _targets(model: Path, network: NetworkOptions, vnnlib: Path | None) -> _Targets:
    """The files to write. Raises StorageError if one cannot be written, or exists already."""
    targets = _Targets(network.weights, network.onnx)
    if vnnlib is not None:
        from certtrain.storage import check_new_folder

        check_new_folder(vnnlib, network.force)
        targets = _Targets(network.weights, network.onnx or vnnlib / f"{model.stem}.onnx")
    elif network.weights is None and network.onnx is None:
        onnx = model.with_suffix(".onnx") if _has_onnx() else None
        targets = _Targets(model.with_name(f"{model.stem}-folded.safetensors"), onnx)
    check_targets(network.force, targets.weights, targets.onnx)
    return targets


def _has_onnx() -> bool:
    """Whether the packages for ONNX are installed; if not, say what to install."""
    if all(find_spec(package) is not None for package in ("onnx", "onnxruntime")):
        return True
    from certtrain import render

    render.note('no ONNX file is written; that needs more packages: pip install "certtrain[onnx]"')
    return False


def _export_network(
    model: "Classifier", images: "ImageSet", targets: _Targets, network: NetworkOptions
) -> list[dict[str, Any]]:
    """Write the network, and show how much the files differ from it. Returns the same for JSON."""
    from certtrain import render
    from certtrain.interchange.export import export

    with render.loading("writing and comparing"):
        comparisons = export(model, images.take(network.limit), weights=targets.weights, onnx=targets.onnx)
    files = [{"file": str(path)} for path in (targets.weights, targets.onnx) if path is not None]
    if not network.as_json:
        render.show_comparisons(comparisons)
        for file in files:
            render.say(f"wrote {file['file']}")
    return [file | comparison.to_dict() for file, comparison in zip(files, comparisons, strict=True)]


def _export_properties(
    model: "Classifier", images: "ImageSet", onnx: Path, properties: PropertyOptions, as_json: bool
) -> dict[str, Any]:
    """Write the properties, and say so. Returns the same for JSON."""
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
