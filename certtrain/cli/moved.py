"""Options of `verify` that are commands of their own now."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from certtrain.cli.check import check_command
from certtrain.cli.decide import decide_command
from certtrain.cli.options import options_for, wrong_usage


@dataclass(frozen=True)
class MovedOptions:
    """These options, which are hidden."""

    check: Annotated[Path | None, typer.Option(hidden=True, help="See `certtrain check`.")] = None
    vnnlib: Annotated[Path | None, typer.Option(hidden=True, help="See `certtrain decide`.")] = None

    def refuse(self, context: typer.Context, given_model: Path | None) -> None:
        """End with the command to use instead, if one of these options is given."""
        if self.check is not None and self.vnnlib is not None:
            wrong_usage("--check and --vnnlib are two commands now", "certtrain", "check", "--help")
        model = given_model or context.params.get("weights") or "MODEL"
        if self.check is not None:
            words = ["certtrain", "check", self.check, model, *options_for(check_command, context)]
            wrong_usage("certificates have a command of their own", *words)
        if self.vnnlib is not None:
            words = ["certtrain", "decide", model, self.vnnlib, *options_for(decide_command, context)]
            wrong_usage("properties have a command of their own", *words)
