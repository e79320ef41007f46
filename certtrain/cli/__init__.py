"""The command line. Typer lives only here; torch is imported only by the commands that need it.

Each command has a file; `options` holds what they have in common.
"""

import sys
import warnings
from typing import Annotated

import typer

from certtrain import __version__
from certtrain.cli.export import export
from certtrain.cli.init import init
from certtrain.cli.output import adapt_streams, drop_unwritten
from certtrain.cli.stats import stats
from certtrain.cli.train import train
from certtrain.cli.verify import verify
from certtrain.errors import CerttrainError

app = typer.Typer(
    name="certtrain",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (init, train, verify, stats, export):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"certtrain {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train image classifiers whose robustness is proved, and look into the proof."""


def main() -> None:
    """Run the command line; an error that a user can cause ends it with one message and exit code 1."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    adapt_streams()
    try:
        app()
    except CerttrainError as error:
        from certtrain import render

        render.error(str(error))
        drop_unwritten()
        sys.exit(1)


def _show_warning(message: Warning | str, *place: object) -> None:
    from certtrain import render

    render.note(str(message))
