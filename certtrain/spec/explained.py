"""A preset with all its fields, each with what its docstring says, as values and as a TOML file; without torch."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from certtrain.spec.epsilon import exact_eps
from certtrain.spec.preset import Preset, load_preset
from certtrain.spec.preset_file import extended_presets, leading_comment, preset_fields

LineKind = Literal["section", "field", "default", "comment", ""]
DEFAULTS_REMARK = "A field right behind a # is not set; that is its default. Without a value it has none."


@dataclass(frozen=True)
class ExplainedField:
    """A field of a preset: its dotted path, its value, what it means, and whether the preset sets it."""

    path: str
    value: Any
    meaning: str
    is_set: bool

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {"field": self.path, "value": self.value, "set": self.is_set, "meaning": self.meaning}


@dataclass(frozen=True)
class ExplainedSection:
    """A section of a preset, or its top level, which has the path "": its fields without those of its own sections."""

    path: str
    meaning: str
    fields: tuple[ExplainedField, ...]


@dataclass(frozen=True)
class ExplainedPreset:
    """A preset, the comment at the head of its file, the presets that it extends, and its sections."""

    preset: Preset
    comment: str
    extends: tuple[str, ...]
    sections: tuple[ExplainedSection, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        fields = [field.to_dict() for section in self.sections for field in section.fields]
        head = {"name": self.preset.name, "description": self.preset.description, "source": self.comment}
        return head | {"extends": list(self.extends), "fields": fields}


@dataclass(frozen=True)
class TomlLine:
    """A line of a TOML file, and what is in it; nothing in an empty one."""

    text: str
    kind: LineKind


def explained_preset(source: str | Path) -> ExplainedPreset:
    """The preset of that name or in that file, with what it takes from those that it extends. Raises PresetError."""
    preset, given = load_preset(source), preset_fields(source)
    sections = tuple(_sections(preset, given, ""))
    return ExplainedPreset(preset, leading_comment(source), tuple(extended_presets(source)), sections)


def toml_lines(explained: ExplainedPreset, width: int = 100) -> Iterator[TomlLine]:
    """The preset as a TOML file with comments of at most `width` characters; it loads as the same preset."""
    head = [explained.comment] if explained.comment else []
    if explained.extends:
        head.append(f"It extends {', which extends '.join(explained.extends)}; all fields are here.")
    for text in [*head, DEFAULTS_REMARK]:
        yield from _comment(text, width)
    for section in explained.sections:
        yield TomlLine("", "")
        if section.path:
            yield from _comment(section.meaning, width)
            yield TomlLine(f"[{section.path}]", "section")
        for field in section.fields:
            yield from _comment(field.meaning, width)
            yield _assignment(field)


def field_meanings(section: type[BaseModel]) -> dict[str, str]:
    """What the docstring under each field of a section says, in one line; a field without one is left out."""
    meanings = dict[str, str]()
    for owner in reversed(section.__mro__):
        if issubclass(owner, BaseModel) and owner is not BaseModel:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
            assert isinstance(tree, ast.ClassDef)
            for field, text in pairwise(tree.body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and (said := _text(text)):
                    meanings[field.target.id] = _one_line(said)
    return meanings


def toml_value(value: Any) -> str:
    """A value as TOML: a string, a number, a list, or a mapping as an inline table. None has no TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case Mapping():
            inside = ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items() if v is not None)
            return f"{{ {inside} }}" if inside else "{}"
    return f"[{', '.join(map(toml_value, value))}]"


def _sections(section: BaseModel, given: Mapping[str, Any], path: str) -> Iterator[ExplainedSection]:
    """The section, then those in it. `given` are the fields that the preset sets."""
    values, meanings = {"name": None} | dict(section), field_meanings(type(section))  # the name first
    values = {name: value for name, value in values.items() if name in type(section).model_fields}
    inside = {name: value for name, value in values.items() if isinstance(value, BaseModel)}
    fields = [_field(section, name, path, meanings, given) for name in values if name not in inside]
    yield ExplainedSection(path, _one_line(inspect.getdoc(type(section)) or ""), tuple(fields))
    for name, value in inside.items():
        own = given.get(name)
        yield from _sections(value, own if isinstance(own, Mapping) else {}, f"{path}.{name}".lstrip("."))


def _field(
    section: BaseModel, name: str, path: str, meanings: Mapping[str, str], given: Mapping[str, Any]
) -> ExplainedField:
    value = section.model_dump(mode="json", include={name})[name]
    full = f"{path}.{name}".lstrip(".")
    value = exact_eps(value) if full == "eps.max" else value
    required = type(section).model_fields[name].is_required()
    return ExplainedField(full, value, meanings.get(name, ""), required or name in given)


def _assignment(field: ExplainedField) -> TomlLine:
    name = _key(field.path.rpartition(".")[2])
    if field.value is None:
        return TomlLine(f"#{name} =", "default")
    text = f"{name} = {toml_value(field.value)}"
    return TomlLine(text, "field") if field.is_set else TomlLine(f"#{text}", "default")


def _comment(text: str, width: int) -> Iterator[TomlLine]:
    for line in textwrap.wrap(text, width, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False):
        yield TomlLine(line, "comment")


def _text(node: ast.stmt) -> str:
    """The string that stands alone in a line of code; empty for any other line."""
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return str(ast.literal_eval(node.value)) if alone and isinstance(node, ast.Expr) else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name)
