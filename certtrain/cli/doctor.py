"""certtrain doctor: what works on this machine."""

from typing import Annotated

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.options import AsJson, DeviceOption, completed_presets


def doctor_command(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME|FILE",
            help="The preset whose training step is timed, on random images.",
            autocompletion=completed_presets,
        ),
    ] = "digits",
    device: DeviceOption = "auto",
    as_json: AsJson = False,
) -> None:
    """Check what works on this machine: packages, GPU, bf16, torch.compile, ONNX, pictures, and how fast a step is.

    The exit code is 0 unless something fails that certtrain cannot do without.
    """
    from certtrain import render
    from certtrain.doctor.checks import all_checks
    from certtrain.spec.preset import load_preset

    load_preset(preset)  # a wrong name says nothing about the machine
    checks = all_checks(preset, device)
    results = [check.run() for check in checks] if as_json else render.show_checks(checks)
    broken = any(result.broken for result in results)
    if as_json:
        render.show_json({"works": not broken, "checks": [result.to_dict() for result in results]})
    if broken:
        raise typer.Exit(ExitCode.ERROR)
