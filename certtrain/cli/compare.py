"""certtrain compare: runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from certtrain.cli.options import AsJson, Force, check_targets


def compare_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of runs, finished or not, or of several seeds.")
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the curves of all runs to this file.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Show runs side by side: their results, what their last epochs measured, and the settings in which they differ."""
    check_targets(force, html)
    from certtrain import render
    from certtrain.runs.comparing import read_comparison

    compared = read_comparison(runs)
    if as_json:
        render.show_json(compared.to_dict())
    else:
        render.show_comparison(compared)
    if html is not None:
        from certtrain.reports.comparison import write_comparison

        write_comparison(compared, html)
        if not as_json:
            render.say(f"wrote {html}")
