"""certtrain stats"""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    DeviceName,
    Eps,
    Force,
    Limit,
    Split,
    check_plots,
    check_targets,
    compute_device,
    png_file,
)

if TYPE_CHECKING:
    from certtrain.diagnostics.comparison import ComparisonOptions

Models = Annotated[
    list[Path],
    typer.Argument(
        metavar="MODEL",
        help="Model files, run folders (the model, or the newest checkpoint), or checkpoints in them. "
        "Several are shown side by side.",
    ),
]
ByEpoch = Annotated[
    bool,
    typer.Option(
        "--by-epoch", help="Follow one run, given by its folder, over its epochs and the checkpoints that it kept."
    ),
]
CsvFile = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the numbers to this CSV file.")]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", parser=png_file, metavar="FILE.png", help="Draw states and growth into this file."),
]


HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write the page of one run, given by its folder, from what the folder holds, and look at nothing else.",
    ),
]


def stats(
    models: Models,
    by_epoch: ByEpoch = False,
    html: HtmlFile = None,
    eps: Eps = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.train,
    limit: Limit = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 200,
    csv_file: CsvFile = None,
    plot: PlotFile = None,
    device: DeviceName = Device.auto,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """ReLU states, bound widths and the paper's balance ratios of each layer, over data at ε.

    Several models are looked at over the same data at the same ε: the first one's, if nothing else is asked for.
    """
    if by_epoch and len(models) > 1:
        raise typer.BadParameter("it follows one run; give one folder", param_hint="--by-epoch")
    if html is not None:
        if len(models) > 1 or by_epoch or csv_file or plot or as_json:
            raise typer.BadParameter("it writes the page of one run, and nothing else", param_hint="--html")
        _write_page(models[0], html, force)
        return
    _check_sources(models, by_epoch)
    check_targets(force, csv_file, plot)
    if plot is not None:
        check_plots()
    from certtrain import render
    from certtrain.diagnostics.comparison import ComparisonOptions

    with render.loading() as report:
        place = compute_device(device)
        options = ComparisonOptions(eps, split.value, limit, batch_size, place, data_dir, report, render.note)
        results = _run(models[0], options) if by_epoch else _models(models, options)
    if as_json:
        render.show_json(results.json)
    else:
        results.show()
    if csv_file is not None:
        _write_csv(csv_file, results.rows)
    if plot is not None:
        results.draw(plot)
    if not as_json:
        for path in filter(None, (csv_file, plot)):
            render.say(f"wrote {path}")


class _Results(NamedTuple):
    """What was found: for JSON, for CSV, and how to show and to draw it."""

    json: dict[str, Any]
    rows: list[dict[str, Any]]
    show: Callable[[], None]
    draw: Callable[[Path], None]


def _models(paths: Sequence[Path], options: "ComparisonOptions") -> _Results:
    """One model, or several side by side."""
    from certtrain import render
    from certtrain.diagnostics.comparison import compare_models, model_rows

    compared = compare_models(paths, options)

    def show() -> None:
        if len(compared.models) == 1:
            render.show_states(compared.models[0], f"{compared.models[0].name}: {compared.title}")
        else:
            render.show_models(compared.models, compared.title)

    def draw(path: Path) -> None:
        from certtrain.reports.plot import plot_states

        plot_states(path, compared.models, compared.title)

    return _Results(compared.to_dict(), model_rows(compared), show, draw)


def _run(run: Path, options: "ComparisonOptions") -> _Results:
    """One run over its epochs."""
    from certtrain import render
    from certtrain.diagnostics.comparison import compare_epochs, epoch_rows
    from certtrain.diagnostics.epochs import epoch_summary

    history, compared = compare_epochs(run, options)
    networks = () if compared is None else compared.models
    titles = f"{run.absolute().name}: as it was trained", "" if compared is None else f"its networks: {compared.title}"
    epochs = [epoch_summary(epoch) for epoch in history.epochs]

    def draw(path: Path) -> None:
        from certtrain.reports.plot import plot_history

        plot_history(path, history, networks, titles)

    return _Results(
        {"run": str(run), "epochs": epochs, "networks": compared and compared.to_dict()},
        epoch_rows(history, compared),
        lambda: render.show_history(history, networks, titles),
        draw,
    )


def _write_page(run: Path, path: Path, force: bool) -> None:
    from certtrain import render
    from certtrain.reports.report import write_report
    from certtrain.runs.runfiles import check_run

    check_run(run)
    check_targets(force, path)
    write_report(run, path)
    render.say(f"wrote {path}")


def _check_sources(paths: Sequence[Path], by_epoch: bool) -> None:
    """See, before torch is loaded, that there is something to look at."""
    from certtrain.runs.runfiles import check_run, find_networks

    for path in paths:
        if by_epoch:
            check_run(path)
        else:
            find_networks(path)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    from certtrain.storage import write_atomic

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
