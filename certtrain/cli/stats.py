"""certtrain stats: show the states of a network's ReLUs and the growth of its bounds."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from certtrain.cli.networks import ForeignOptions
from certtrain.cli.options import (
    AsJson,
    BatchSize,
    DataDir,
    DeviceOption,
    Eps,
    Force,
    Limit,
    PlotFile,
    SplitOption,
    Threads,
    check_targets,
    compute_device,
    data_folder,
    newest_if_none,
)

if TYPE_CHECKING:
    from certtrain.diagnostics.comparison import ComparisonOptions
    from certtrain.network.modelfile import Classifier

Models = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Model files, checkpoints, or run folders, for their model or, without one, their newest checkpoint. "
        "Several are shown side by side. If none is given, the newest run in the folder runs.",
    ),
]


@dataclass(frozen=True)
class StatsData:
    """The data."""

    eps: Eps = None
    data_dir: DataDir = None
    split: SplitOption = "train"
    limit: Limit = 1000
    batch_size: BatchSize = 200
    device: DeviceOption = "auto"
    threads: Threads = None


@dataclass(frozen=True)
class StatsOutput:
    """What is shown and written."""

    by_epoch: Annotated[
        bool,
        typer.Option(
            "--by-epoch", help="Show one run, given by its folder, epoch by epoch, with the networks that it kept."
        ),
    ] = False
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the HTML report of one run, given by its folder, and do nothing else.",
        ),
    ] = None
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the numbers to this CSV file.")
    ] = None
    plot: PlotFile = None
    force: Force = False
    as_json: AsJson = False

    def check(self, models: int) -> None:
        """Raise BadParameter if an option for one run is given several, or --html is combined with other output."""
        if self.by_epoch and models > 1:
            raise typer.BadParameter("it shows one run; give one folder", param_hint="--by-epoch")
        if self.html is not None and (models > 1 or self.by_epoch or self.csv_file or self.plot or self.as_json):
            raise typer.BadParameter("it writes the report of one run, and nothing else", param_hint="--html")


def stats_command(data: StatsData, output: StatsOutput, foreign: ForeignOptions, given_models: Models = None) -> None:
    """Show each layer's ReLU states, bound widths and balance ratios (Shi et al. 2021), over data at radius ε.

    For a run, also its objective and what that measured in the last epoch.
    Several models are compared on the same data at the same ε, which is the first model's unless given.
    """
    models = given_models or [newest_if_none(foreign.file(None))]
    output.check(len(models))
    if output.html is not None:
        _write_page(models[0], output.html, output.force)
        return
    _check_sources(models, output.by_epoch)
    for model in filter(foreign.reads, models) if any(map(foreign.reads, models)) else models:
        foreign.check(model, data.eps)
    check_targets(output.force, output.csv_file, output.plot)
    _write_results(_results(models, data, foreign, output.by_epoch), output)


def _results(models: Sequence[Path], data: StatsData, foreign: ForeignOptions, by_epoch: bool) -> "_Results":
    from certtrain import render

    def open_foreign(path: Path) -> "Classifier | None":
        chosen = path in models and foreign.reads(path)
        return foreign.open(path, data.eps, data.device, data.data_dir, data.split) if chosen else None

    with render.loading("reading the network") as report:
        from certtrain.diagnostics.comparison import ComparisonOptions  # which loads torch, for some seconds

        device, folder = compute_device(data.device), data_folder(data.data_dir, models[0])
        callbacks = (report, render.note, open_foreign)
        options = ComparisonOptions(data.eps, data.split, data.limit, data.batch_size, device, folder, *callbacks)
        return _run(models[0], options) if by_epoch else _models(models, options)


def _write_results(results: "_Results", output: StatsOutput) -> None:
    """Show the results, and write the files that the options name."""
    from certtrain import render

    if output.as_json:
        render.show_json(results.json)
    else:
        results.show()
    if output.csv_file is not None:
        _write_csv(output.csv_file, results.rows)
    if output.plot is not None:
        results.draw(output.plot)
    if not output.as_json:
        for path in filter(None, (output.csv_file, output.plot)):
            render.say(f"wrote {path}")


class _Results(NamedTuple):
    """The results: for JSON, for CSV, and the functions that show and draw them."""

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
        render.show_trained(compared.models)

    def draw(path: Path) -> None:
        from certtrain.reports.plot import plot_states

        plot_states(path, compared.models, compared.title)

    return _Results(compared.to_dict(), model_rows(compared), show, draw)


def _run(run: Path, options: "ComparisonOptions") -> _Results:
    """One run, epoch by epoch."""
    from certtrain import render
    from certtrain.diagnostics.comparison import compare_epochs, epoch_rows
    from certtrain.diagnostics.epochs import epoch_summary, read_trained

    history, compared = compare_epochs(run, options)
    networks = () if compared is None else compared.models
    titles = f"{run.absolute().name}: as it was trained", "" if compared is None else f"its networks: {compared.title}"
    epochs, trained = [epoch_summary(epoch) for epoch in history.epochs], read_trained(run)

    def show() -> None:
        render.show_history(history, networks, titles)
        render.show_progress(trained.progress)

    def draw(path: Path) -> None:
        from certtrain.reports.plot import plot_history

        plot_history(path, history, networks, titles)

    return _Results(
        {"run": str(run), "finished": trained.finished, "epochs": epochs, "networks": compared and compared.to_dict()},
        epoch_rows(history, compared),
        show,
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
    """Check, before torch is loaded, that the models or the run exist. Raises ModelFileError and RunError."""
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
