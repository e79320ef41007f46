"""certtrain export"""

from pathlib import Path
from typing import Annotated, Any

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    Eps,
    Force,
    ModelFile,
    Split,
    check_targets,
    open_model,
    open_split,
)

FoldedFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Safetensors with BatchNorm folded; both files are written if neither is named."),
]
OnnxFile = Annotated[Path | None, typer.Option(metavar="FILE", help="ONNX file.")]
Properties = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for VNN-LIB 1.0 properties, one a point, with instances.csv and index.json; "
        "the ONNX file is put there as well if none is named.",
    ),
]
Count = Annotated[int | None, typer.Option(min=1, help="How many points get a property; 100 if not given.")]
First = Annotated[int | None, typer.Option(min=0, help="The first point's number; 0 if not given.")]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds that instances.csv grants for each property; 300 if not given.")
]


def export(
    model: ModelFile,
    weights: FoldedFile = None,
    onnx: OnnxFile = None,
    vnnlib: Properties = None,
    count: Count = None,
    first: First = None,
    eps: Eps = None,
    timeout: Timeout = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data: for the check and the points.")] = Split.test,
    limit: Annotated[int, typer.Option(min=1, help="Check the exports on the first so many examples.")] = 1000,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the network with BatchNorm folded in, as safetensors and ONNX, each checked on real data.

    With --vnnlib also what other verifiers need to judge points of the data: the box of radius ε around each.
    """
    _check_options(vnnlib, {"--count": count, "--first": first, "--eps": eps, "--timeout": timeout})
    if vnnlib is not None:
        from certtrain.storage import check_new_folder

        check_new_folder(vnnlib, force)
        onnx = vnnlib / f"{model.stem}.onnx" if onnx is None else onnx
    elif weights is None and onnx is None:
        weights, onnx = model.with_name(f"{model.stem}-folded.safetensors"), model.with_suffix(".onnx")
    check_targets(force, weights, onnx)
    network = open_model(model, Device.cpu)
    images = open_split(network, split, data_dir, None)
    from certtrain import render
    from certtrain.interchange.exchange import check_points, export_properties
    from certtrain.interchange.export import export as export_model

    check_points(images, first or 0, count)
    comparisons = export_model(network, images.take(limit), weights=weights, onnx=onnx)
    files: list[dict[str, Any]] = [{"file": str(path)} for path in (weights, onnx) if path is not None]
    found = [file | comparison.to_dict() for file, comparison in zip(files, comparisons, strict=True)]
    if not as_json:
        render.show_comparisons(comparisons)
        for file in found:
            render.say(f"wrote {file['file']}")
    if vnnlib is not None and onnx is not None:
        radius = network.metadata.eps if eps is None else eps
        written = export_properties(
            network,
            images,
            vnnlib,
            onnx=onnx,
            eps=radius,
            first=first or 0,
            count=count,
            timeout=timeout or 300.0,
        )
        found.append(written.to_dict())
        if not as_json:
            render.say(written.sentence())
    if as_json:
        render.show_json(found)


def _check_options(vnnlib: Path | None, options: dict[str, float | None]) -> None:
    """Options of the properties ask for them; a time limit is above zero."""
    given = [name for name, value in options.items() if value is not None]
    if vnnlib is None and given:
        raise typer.BadParameter("it is for properties: name their folder by --vnnlib", param_hint=given[0])
    timeout = options["--timeout"]
    if timeout is not None and not 0 < timeout < float("inf"):
        raise typer.BadParameter("it is a number of seconds above 0", param_hint="--timeout")
