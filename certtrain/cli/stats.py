"""certtrain stats"""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    DeviceName,
    Eps,
    Force,
    Limit,
    ModelFile,
    Split,
    check_targets,
    open_model,
    open_split,
)
from certtrain.epsilon import format_eps

if TYPE_CHECKING:
    from certtrain.diagnostics import LayerState


def _png(text: str) -> Path:
    if not text.endswith(".png"):
        raise typer.BadParameter(f"{text!r} does not end in .png")
    return Path(text)


PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", parser=_png, metavar="FILE.png", help="Draw states and growth into this file."),
]


def stats(
    model: ModelFile,
    eps: Eps = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.train,
    limit: Limit = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 200,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write the numbers to this CSV file.")] = None,
    plot: PlotFile = None,
    device: DeviceName = Device.auto,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """ReLU states, bound widths and the paper's balance ratios of each layer, over data at ε."""
    check_targets(force, csv_file, plot)
    network = open_model(model, device)
    images = open_split(network, split, data_dir, limit)
    from certtrain import render
    from certtrain.inspection import inspect_model

    radius = network.metadata.eps if eps is None else eps
    with render.progress("looking") as report:
        layers = inspect_model(
            network, images, radius, batch_size=batch_size, on_progress=lambda done: report(done, len(images))
        )
    title = f"{model.name}: {images.name}, {images.split} set, {len(images):,} examples, ε = {format_eps(radius)}"
    if as_json:
        facts = {"dataset": images.name, "split": images.split, "examples": len(images), "eps": radius}
        render.show_json({"model": str(model), **facts, "layers": [layer.to_dict() for layer in layers]})
    else:
        render.show_states(layers, title)
    if csv_file is not None:
        _write_csv(csv_file, layers)
    if plot is not None:
        from certtrain.plot import plot_states

        plot_states(plot, layers, title)


def _write_csv(path: Path, layers: "list[LayerState]") -> None:
    from certtrain.storage import write_atomic

    text = io.StringIO()
    rows = [layer.to_dict() for layer in layers]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
