"""The command line. Typer lives only here; torch is imported only by the commands that need it.

Each command has a file. `options` holds the options that several commands share, `exit_codes` their exit codes.
"""

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from certtrain.cli.bench import bench_command
from certtrain.cli.check import check_command
from certtrain.cli.compare import compare_command
from certtrain.cli.decide import decide_command
from certtrain.cli.doctor import doctor_command
from certtrain.cli.examples import epilog
from certtrain.cli.exit_codes import exit_code, summary
from certtrain.cli.export import export_command
from certtrain.cli.groups import Program, Subcommand, with_groups
from certtrain.cli.init import init_command
from certtrain.cli.output import adapt_streams, drop_unwritten
from certtrain.cli.pictures import ImageCommand
from certtrain.cli.presets import presets_command
from certtrain.cli.stats import stats_command
from certtrain.cli.train import train_command
from certtrain.cli.tune import tune_command
from certtrain.cli.verify import verify_command
from certtrain.errors import CerttrainError, DeviceError, is_out_of_memory
from certtrain.version import __version__

MAIN = "Commands"
OTHERS = "Certificates, properties and benchmarks"
RESEARCH = "Many runs, presets and this machine"
COMMANDS: dict[str, tuple[str, Callable[..., None]]] = {  # each with the panel of the help that lists it
    "train": (MAIN, train_command),
    "verify": (MAIN, verify_command),
    "stats": (MAIN, stats_command),
    "export": (MAIN, export_command),
    "init": (MAIN, init_command),
    "check": (OTHERS, check_command),
    "decide": (OTHERS, decide_command),
    "bench": (OTHERS, bench_command),
    "compare": (RESEARCH, compare_command),
    "tune": (RESEARCH, tune_command),
    "presets": (RESEARCH, presets_command),
    "doctor": (RESEARCH, doctor_command),
}

LESS_MEMORY = {  # the options with which a command needs less memory, or which show that it trains
    "batch_size": "a smaller --batch-size",
    "memory": "a smaller --memory",
    "workers": "fewer --workers",
    "resume": "--set train.micro_batch=N (the same step in parts), a smaller train.batch_size",
    "limit": "a smaller --limit",
}

app = typer.Typer(
    name="certtrain",
    cls=Program,
    epilog=f"Begin with: certtrain train --preset digits\n\n{summary()}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, (panel, command) in COMMANDS.items():
    kind = ImageCommand if name == "verify" else Subcommand
    app.command(name, cls=kind, epilog=epilog(name), rich_help_panel=panel)(with_groups(command))


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
    """Train image classifiers with certified robustness, verify them, and show how tight their bounds are."""


def main() -> None:
    """Run the command line. An error that certtrain raises on purpose is shown as one message and an exit code."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    adapt_streams()
    try:
        app()
    except CerttrainError as error:
        _end(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _end(DeviceError(_out_of_memory(sys.argv[1:])))


def _end(error: CerttrainError) -> NoReturn:
    from certtrain import render

    render.error(str(error))
    drop_unwritten()
    sys.exit(exit_code(error))


def _out_of_memory(words: Sequence[str]) -> str:
    """That memory was not enough for the command in these words, and which of its options need less."""
    name = next((word for word in words if word in COMMANDS), "")
    options = inspect.signature(with_groups(COMMANDS[name][1])).parameters if name else {}
    advice = [text for option, text in LESS_MEMORY.items() if option in options]
    return f"the memory of this machine is not enough. Try {', '.join([*advice, 'or another machine'])}"


def _show_warning(message: Warning | str, *place: object) -> None:
    from certtrain import render

    render.note(str(message))
