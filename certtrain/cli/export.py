"""certtrain export"""

from pathlib import Path
from typing import Annotated

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    Force,
    Limit,
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


def export(
    model: ModelFile,
    weights: FoldedFile = None,
    onnx: OnnxFile = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data the exports are checked on.")] = Split.test,
    limit: Limit = 1000,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write the network with BatchNorm folded in, as safetensors and ONNX, each checked on real data."""
    if weights is None and onnx is None:
        weights, onnx = model.with_name(f"{model.stem}-folded.safetensors"), model.with_suffix(".onnx")
    check_targets(force, weights, onnx)
    network = open_model(model, Device.cpu)
    images = open_split(network, split, data_dir, limit)
    from certtrain import render
    from certtrain.export import export as export_model

    comparisons = export_model(network, images, weights=weights, onnx=onnx)
    files = [str(path) for path in (weights, onnx) if path is not None]
    if as_json:
        pairs = zip(files, comparisons, strict=True)
        render.show_json([{"file": file, **comparison.to_dict()} for file, comparison in pairs])
        return
    render.show_comparisons(comparisons)
    for file in files:
        render.say(f"wrote {file}")
