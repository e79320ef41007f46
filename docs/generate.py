"""Writes docs/commands/, a page for each command and an index, from the program itself, and docs/presets.md.

Run as python docs/generate.py.
"""

import re
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typer.main import get_command

from certtrain import cli
from certtrain.cli.examples import COMMAND_EXAMPLES
from certtrain.cli.exit_codes import EXPLANATIONS
from certtrain.spec.epsilon import format_eps
from certtrain.spec.preset import Preset, load_preset, preset_names

FOLDER = Path(__file__).parent / "commands"
PRESETS = Path(__file__).parent / "presets.md"
SEE_ALSO = {
    "bench": "[Other verifiers](../exchange.md#run-a-benchmark) has the columns of the results.",
    "check": "[How to check one](../certfiles.md#how-to-check-one) says what is compared, and what is assumed.",
}
WRITTEN = "<!-- Written by docs/generate.py from the program's own help. -->"
ABOUT_PRESETS = (
    "`certtrain train --preset NAME` trains by one of these. The file of a preset says where its settings come from. "
    "Presets that are not yet measured have not been trained to the end with certtrain, so the figures in their files "
    "are those of others. Which objective suits which ε is in [Which objective to use](objectives.md).",
    "ε is the radius at which the network is certified; some presets train at a larger one (`eps.train_factor`). Names "
    "that end in `-ctrain` have settings that others tuned on the test set; figures from them do not compare with "
    "those of settings that were chosen without it.",
    "A preset of your own can [extend](quickstart.md#change-something) one of these and say only what differs.",
)
DATA_SETS = {"cifar10": "CIFAR-10", "digits": "Digits", "mnist": "MNIST", "tinyimagenet": "TinyImageNet"}


def pages() -> dict[str, str]:
    """Each page by the name of its file."""
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    return {"README.md": _index(commands)} | {f"{name}.md": _page(name, command) for name, command in commands.items()}


def presets_page() -> str:
    """The page with all shipped presets, in a table for each data set."""
    presets = [load_preset(name) for name in preset_names()]
    parts = ["# Presets", "<!-- Written by docs/generate.py from the presets themselves. -->", *ABOUT_PRESETS]
    for data, group in groupby(sorted(presets, key=lambda preset: preset.data.name), lambda preset: preset.data.name):
        head = ["| preset | network | ε | objective | epochs | |", "|---|---|---|---|---|---|"]
        parts += [f"## {DATA_SETS[data]}", "\n".join([*head, *map(_preset_row, group)])]
    return "\n\n".join(parts) + "\n"


def _preset_row(preset: Preset) -> str:
    name, eps, objective = preset.name, format_eps(preset.eps.max), preset.objective.name
    columns = [f"[`{name}`](../presets/{name}.toml)", f"`{preset.model.name}`", eps, f"`{objective}`"]
    return f"| {' | '.join(columns)} | {preset.train.epochs} | {preset.description} |"


def _index(commands: dict[str, Any]) -> str:
    """What each command does, and the exit codes."""
    rows = [f"| [{name}]({name}.md) | {_plain(command.help).splitlines()[0]} |" for name, command in commands.items()]
    codes = [f"| {code} | {explanation.long} |" for code, explanation in EXPLANATIONS.items()]
    parts = [
        "# Commands",
        WRITTEN,
        "\n".join(["| command | what it does |", "|---|---|", *rows]),
        "`certtrain COMMAND --help` has the same text as these pages. With `--json`, every command prints JSON.",
        "## Exit codes",
        "\n".join(["| code | meaning |", "|---|---|", *codes]),
    ]
    return "\n\n".join(parts) + "\n"


def _page(name: str, command: Any) -> str:
    hints = get_type_hints(command.callback, include_extras=True)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join(["certtrain", name, *map(_argument, arguments), "[OPTIONS]"])
    parts = [
        f"# certtrain {name}",
        WRITTEN,
        *_plain(command.help).split("\n\n"),
        f"```text\n{usage}\n```",
        f"```sh\n{COMMAND_EXAMPLES[name].strip()}\n```",
        *([SEE_ALSO[name]] if name in SEE_ALSO else []),
    ]
    if arguments:
        parts += ["## Arguments", "\n".join(f"- `{_argument(p)}`: {_plain(p.help)}" for p in arguments)]
    for title, group in groupby(options, lambda p: p.rich_help_panel):
        parts += [f"### {title}" if title else "## Options", "\n".join(_option(p, hints[p.name]) for p in group)]
    return "\n\n".join(parts) + "\n"


def _argument(parameter: Any) -> str:
    return f"{parameter.metavar}{'…' if parameter.nargs == -1 else ''}"


def _option(parameter: Any, hint: Any) -> str:
    """One line: names, value, help, limits, default, environment variable."""
    long, *others = sorted(parameter.opts, key=len, reverse=True)
    names = [f"`{long} {_value(parameter, hint)}".rstrip() + "`", *(f"`{name}`" for name in others)]
    texts = [_plain(parameter.help)]
    if (least := get_args(hint)[1].min) is not None:
        texts.append(f"At least {least}.")
    if parameter.multiple:
        texts.append("May be given several times.")
    if parameter.default is not None and parameter.default is not False:
        texts.append(f"Default: `{parameter.default}`.")
    if parameter.envvar:
        texts.append(f"Environment variable: `{parameter.envvar}`.")
    return f"- {', '.join(names)}: {' '.join(texts)}"


def _value(parameter: Any, hint: Any) -> str:
    """What stands after an option's name; nothing after a switch."""
    if parameter.metavar:
        return str(parameter.metavar)
    kind = get_args(hint)[0]
    if get_origin(kind) in (Union, UnionType):
        (kind,) = [part for part in get_args(kind) if part is not type(None)]
    return "|".join(get_args(kind)) if get_origin(kind) is Literal else str(parameter.metavar)


def _plain(text: str) -> str:
    """A help text as Markdown that shows every character as it is."""
    return re.sub(r"([<*_])", r"\\\1", text)


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    PRESETS.write_text(presets_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
