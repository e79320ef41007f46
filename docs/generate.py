"""Writes docs/commands/, a page for each command and an index, from the program itself, docs/presets.md and
docs/fields.md.

Run as python docs/generate.py.
"""

import inspect
import re
from collections.abc import Collection
from itertools import groupby
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command

from certtrain import cli
from certtrain.cli.examples import COMMAND_EXAMPLES
from certtrain.cli.exit_codes import EXPLANATIONS
from certtrain.spec.architecture import NETWORKS
from certtrain.spec.epsilon import format_eps
from certtrain.spec.explained import field_meanings, toml_value
from certtrain.spec.objective import OBJECTIVES, AttackSection, ObjectiveSection
from certtrain.spec.preset import (
    DataSection,
    EpsSection,
    Preset,
    RegularizerSection,
    StartSection,
    TrainSection,
    load_preset,
    preset_names,
)

FOLDER = Path(__file__).parent / "commands"
PRESETS = Path(__file__).parent / "presets.md"
FIELDS = Path(__file__).parent / "fields.md"
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
    "A preset of your own can [extend](quickstart.md#change-something) one of these and say only what differs. "
    "[The fields of a preset](fields.md) explains each field.",
)
ABOUT_FIELDS = (
    "A preset is a TOML file with these fields. `certtrain presets NAME` shows a shipped one with all of them, "
    "explained in the same words, and `--set SECTION.FIELD=VALUE` sets any one in a command. A field without a default "
    "must be given; a dash means that it has no value unless one is given.",
    "`[model]` and `[objective]` have a `name`, which decides what other fields they have.",
)
OWN_NETWORK = (
    '`name = "module"` is [a network of your own](own.md), and `name = "graph"` one that is listed layer by layer, as '
    "the files of a run hold it."
)
SECTIONS: dict[str, tuple[str, type[BaseModel]]] = {
    "The top of the file": ("", Preset),
    "Data": ("data", DataSection),
    "Radius": ("eps", EpsSection),
    "Training": ("train", TrainSection),
    "Regularisers": ("regularizer", RegularizerSection),
    "Weights to start from": ("start", StartSection),
}
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


def fields_page() -> str:
    """The page with every field of a preset: those of each section, objective and network."""
    parts = [
        "# The fields of a preset",
        "<!-- Written by docs/generate.py from the presets' own code. -->",
        *ABOUT_FIELDS,
    ]
    for title, (path, section) in SECTIONS.items():
        parts += [f"## {title}", *_section(path, section)]
    parts += ["## Objective", _meaning(ObjectiveSection), _field_table(ObjectiveSection)]
    parts += ["[Which objective to use](objectives.md) has the formulas, and what to expect."]
    for name, objective in OBJECTIVES.items():
        parts += [
            f"### `{name}`",
            _meaning(objective),
            *_own_fields(objective, {"name", *ObjectiveSection.model_fields}),
        ]
    parts += ["## Attack in the training step", *_section("objective.attack", AttackSection)]
    parts += ["## Network", OWN_NETWORK]
    for name, network in NETWORKS.items():
        parts += [f"### `{name}`", _meaning(network), *_own_fields(network, {"name"})]
    return "\n\n".join(parts) + "\n"


def _section(path: str, section: type[BaseModel]) -> list[str]:
    place = f"In `[{path}]`. " if path else ""
    return [place + _meaning(section), _field_table(section)]


def _meaning(section: type[BaseModel]) -> str:
    """What a section's docstring says, each paragraph in one line."""
    paragraphs = (inspect.getdoc(section) or "").split("\n\n")
    return _plain("\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs))


def _own_fields(section: type[BaseModel], known: set[str]) -> list[str]:
    """The table of the fields that are not `known`; nothing if there are none."""
    return [_field_table(section, known)] if section.model_fields.keys() - known else []


def _field_table(section: type[BaseModel], known: Collection[str] = ()) -> str:
    """A row for each field that is no section itself."""
    meanings = field_meanings(section)
    rows = [
        f"| `{name}` | {_default(field)} | {_plain(meanings.get(name, ''))}{_choices(field.annotation)} |"
        for name, field in section.model_fields.items()
        if name not in known and name in meanings
    ]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def _default(field: FieldInfo) -> str:
    """The default as in a TOML file; empty if there is none, a dash if there is no value then."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return f"`{toml_value(value.model_dump(exclude_defaults=True))}`"
    return "–" if value is None else f"`{toml_value(value)}`"


def _choices(annotation: Any) -> str:
    """Like " One of: `a`, `b`.", if there are only these values."""
    literal = get_origin(annotation) is Literal and all(isinstance(value, str) for value in get_args(annotation))
    return f" One of: {', '.join(f'`{value}`' for value in get_args(annotation))}." if literal else ""


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
    parts = re.split("(`[^`]*`)", text)  # code is shown as it is without more
    return "".join(part if part.startswith("`") else re.sub(r"([<*_])", r"\\\1", part) for part in parts)


def main() -> None:
    """Write all pages."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    PRESETS.write_text(presets_page(), encoding="utf-8")
    FIELDS.write_text(fields_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
