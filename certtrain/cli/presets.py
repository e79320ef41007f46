"""certtrain presets: list the presets, or show one with all its fields."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.options import AsJson, completed_presets

if TYPE_CHECKING:
    from certtrain.spec.preset import Preset


def presets_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME|FILE]",
            help="A shipped preset, or a .toml file: show it alone.",
            autocompletion=completed_presets,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the presets that ship with certtrain, or show one with every field and what it means.

    What is shown of one preset is a TOML file: save it as mine.toml, change it, and train with --preset mine.toml.
    """
    from certtrain import render

    if name is not None:
        _show(name, as_json)
        return
    from certtrain.spec.preset import load_preset, preset_names

    presets = [load_preset(preset) for preset in preset_names()]
    if as_json:
        render.show_json([_row(preset) for preset in presets])
    else:
        render.show_presets(presets)


def _show(name: str, as_json: bool) -> None:
    from certtrain import render
    from certtrain.spec.explained import explained_preset, toml_lines

    explained = explained_preset(name)
    if as_json:
        render.show_json(explained.to_dict())
    else:
        render.show_toml(toml_lines(explained, render.toml_width()))


def _row(preset: "Preset") -> dict[str, Any]:
    from certtrain.spec.preset_file import leading_comment

    what = {"name": preset.name, "data": preset.data.name, "eps": preset.eps.max, "objective": preset.objective.name}
    what |= {"network": preset.model.name, "epochs": preset.train.epochs}
    return what | {"description": preset.description, "source": leading_comment(preset.name)}
