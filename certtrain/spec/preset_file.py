"""Preset files: where they are, what is in them, and what they take over from presets that they extend; no torch."""

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import takewhile
from pathlib import Path
from typing import Any

from certtrain.errors import PresetError, reason
from certtrain.spec.architecture import NETWORKS
from certtrain.spec.migration import migrated
from certtrain.spec.objective import OBJECTIVES

OWN = ("name", "description")  # the fields that a preset never takes from another


def preset_folder() -> Traversable:
    """The folder of the shipped presets: inside the installed package, or in the root of a checkout."""
    installed = resources.files("certtrain") / "_presets"
    return installed if installed.is_dir() else resources.files("certtrain") / ".." / "presets"


def preset_names() -> list[str]:
    """The names of the shipped presets, sorted."""
    return sorted(f.name.removesuffix(".toml") for f in preset_folder().iterdir() if f.name.endswith(".toml"))


def preset_fields(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the preset of that name, in that file, or with these fields, as this version names them.

    A preset with `extends` has all fields of the preset that it names, a shipped one or a file, and instead of some
    of them its own. A file's path is relative to the file that names it; for fields from Python, to the current
    folder. The result has no `extends`, and is not validated. Raises PresetError if a file cannot be read or is not
    there, or if a preset extends itself.
    """
    if isinstance(source, Mapping):
        return _extended(str(source.get("name", "given")), _copied(source), Path(), ())
    return _fields_of(str(source), ())


def own_fields(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a .toml file sets itself; none for .json and for fields from Python, which may be saved presets.

    A saved preset has all fields, whoever set them.
    """
    if isinstance(source, Mapping) or str(source).endswith(".json"):
        return {}
    return migrated(_read(str(source)))


def leading_comment(name_or_file: str | Path) -> str:
    """The comment at the head of the file of a preset, in one line; empty without one. Raises PresetError."""
    _read(str(name_or_file))
    lines = _file(str(name_or_file)).read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))


def extended_presets(name_or_file: str | Path) -> list[str]:
    """The presets that a preset extends: the one that it names, then what that one extends. Raises PresetError."""
    found, here = list[str](), str(name_or_file)
    while "extends" in (fields := _read(here)):
        here = _base(here, fields["extends"], Path(here).parent)
        found.append(here)
    return found


def change_network(values: dict[str, Any], name: Any) -> None:
    """Remove the fields of the network if it is another than `name`."""
    model = values.get("model")
    if isinstance(model, dict) and model.get("name") != name:
        kept = ["batch_norm"] if str(name) in NETWORKS else []
        values["model"] = {field: value for field, value in model.items() if field in kept}


def change_objective(values: dict[str, Any], name: Any) -> None:
    """Remove the fields that the objective `name` does not have, or for which it has another default.

    So the attack of MTL-IBP is also that of CC-IBP, and not that of SABR, which takes more steps.
    """
    objective = values.get("objective")
    if isinstance(objective, dict) and isinstance(name, str) and name in OBJECTIVES:
        before, known = _defaults(objective.get("name", "ibp")), _defaults(name)
        same = {field for field, default in known.items() if field in before and before[field] == default}
        values["objective"] = {field: value for field, value in objective.items() if field in same}


def _defaults(objective: Any) -> dict[str, Any]:
    """The default of each field of the objective of that name; nothing if there is no such objective."""
    known = isinstance(objective, str) and objective in OBJECTIVES
    return {name: field.default for name, field in OBJECTIVES[objective].model_fields.items()} if known else {}


def _fields_of(name_or_file: str, leading: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a preset; `leading` are the presets that extend it, each as `_key` has it."""
    chain = (*leading, _key(name_or_file))
    return _extended(name_or_file, _read(name_or_file), Path(name_or_file).parent, chain)


def _extended(title: str, values: dict[str, Any], folder: Path, chain: tuple[str, ...]) -> dict[str, Any]:
    """The fields `values` of a preset in `folder`, and those of the preset that it extends."""
    try:
        fields = migrated(values)  # each file by itself, since the one that it extends may have another format
    except ValueError as error:
        raise PresetError(f"preset {title!r} is not valid:\n  {error}") from error
    if "extends" not in fields:
        return fields
    base = _base(title, fields.pop("extends"), folder)
    if base in chain:
        raise PresetError(f"preset {title!r} extends itself: {' → '.join([*chain[chain.index(base) :], base])}")
    return _merged(_fields_of(base, chain), fields)


def _base(title: str, extends: Any, folder: Path) -> str:
    """The name or the path of the preset that the preset `title` extends."""
    if not isinstance(extends, str):
        raise PresetError(
            f"preset {title!r}: extends must be the name of a preset or the path of a .toml file, not {extends!r}"
        )
    base = _key(str(folder / extends)) if _is_path(extends) else extends
    if not _file(base).is_file():
        missing = f"there is no file {base}" if _is_path(extends) else "no preset of that name is shipped"
        raise PresetError(f"preset {title!r} extends {extends!r}, but {missing}")
    return base


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The fields of a preset that has the fields `own` and extends `base`.

    If it names another network or objective, it takes from the section of `base` what an override of the name keeps.
    """
    inherited = {field: value for field, value in base.items() if field not in OWN}
    for section, change in (("model", change_network), ("objective", change_objective)):
        if isinstance(own.get(section), dict) and "name" in own[section]:
            change(inherited, own[section]["name"])
    return _overlaid(inherited, own)


def _overlaid(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """All fields of both; where both have a section, all fields of both sections, and of fields that of `own`."""
    found = dict(base)
    for field, value in own.items():
        before = base.get(field)
        found[field] = _overlaid(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found


def _is_path(name_or_file: str) -> bool:
    return name_or_file.endswith((".toml", ".json")) or os.sep in name_or_file


def _file(name_or_file: str) -> Traversable:
    return Path(name_or_file) if _is_path(name_or_file) else preset_folder() / f"{name_or_file}.toml"


def _key(name_or_file: str) -> str:
    """The same for the same preset: the name of a shipped one, or the absolute path of a file."""
    return str(Path(name_or_file).resolve()) if _is_path(name_or_file) else name_or_file


def _read(name_or_file: str) -> dict[str, Any]:
    source = _file(name_or_file)
    if not source.is_file():
        raise PresetError(_not_found(name_or_file))
    try:
        text = source.read_text(encoding="utf-8")
        values = json.loads(text) if name_or_file.endswith(".json") else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise PresetError(f"preset {name_or_file!r} cannot be read: {reason(error)}") from error
    if not isinstance(values, dict):
        raise PresetError(f"preset {name_or_file!r} cannot be read: it must hold fields, not {values!r}")
    return values


def _not_found(name_or_file: str) -> str:
    """Why there is no such preset: no such file, or no shipped preset of that name, with similar ones if there are."""
    if _is_path(name_or_file) or (name_or_file and Path(name_or_file).is_dir()):
        what = "it is a folder" if Path(name_or_file).is_dir() else "there is no such file"
        return f"the preset {name_or_file} cannot be read: {what}; give a .toml file, or the name of a shipped preset"
    begun = [name for name in preset_names() if name_or_file.startswith(f"{name}-")]  # cifar10-8-255 is the one by IBP
    others = [name for name in preset_names() if name not in begun]
    similar = begun + difflib.get_close_matches(name_or_file, others, n=3)
    if similar:
        return f"there is no preset {name_or_file!r}; did you mean {' or '.join(map(repr, similar))}?"
    return f"there is no preset {name_or_file!r}. Presets: {', '.join(preset_names())}; or give a .toml file."


def _copied(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
