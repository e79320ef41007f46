"""Options in groups. Typer reads a function's parameters; here a parameter may be a dataclass of several options.

Help names the values of options as METAVARS does, and shows no type for switches.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from typer import BadParameter
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from certtrain.spec.messages import problem_text

MOST_CHOICES = 16  # characters of choices where an option's value stands
METAVARS: dict[Any, str] = {bool: "", int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


class Subcommand(TyperCommand):
    """A command whose help shows no type for switches, its own --help included, and whose errors are in our words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except BadParameter as error:
            if isinstance(cause := error.__cause__, ValidationError):  # Typer passes pydantic's words on
                error.message = problem_text(cause.errors(include_url=False)[0])
            raise

    def get_params(self, ctx: Any) -> list[Any]:
        return _untyped_switches(super().get_params(ctx))


class Program(TyperGroup):
    """The program, with such a help."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _untyped_switches(super().get_params(ctx))


def _untyped_switches(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if parameter.param_type_name == "option" and parameter.is_flag:
            parameter.metavar = ""
    return parameters


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a parameter for each field of the dataclasses among its own parameters.

    The help shows the first dataclass's fields as the command's own options, and those of each other one in a panel
    with its docstring as the title.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {
        name: own.annotation for name, own in signature.parameters.items() if is_dataclass(own.annotation)
    }

    @wraps(command)
    def grouped(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    titles = {name: _title(group) for name, group in list(groups.items())[1:]}
    flat = [part for name, own in signature.parameters.items() for part in _expanded(own, titles.get(name))]
    grouped.__signature__ = signature.replace(parameters=flat)  # type: ignore[attr-defined]
    grouped.__annotations__ = {own.name: own.annotation for own in flat}
    grouped.__doc__ = _unwrapped(inspect.getdoc(command) or "")
    return grouped


def _unwrapped(text: str) -> str:
    """The text with each paragraph in one line, which a terminal breaks where it needs to."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _title(group: Any) -> str:
    return (inspect.getdoc(group) or "").removesuffix(".")


def _expanded(own: Parameter, title: str | None) -> list[Parameter]:
    """The parameter itself, or one for each field of its dataclass; all are keyword-only, since those need no order."""
    if not is_dataclass(own.annotation):
        return [own.replace(kind=Parameter.KEYWORD_ONLY, annotation=_with_metavar(own.annotation))]
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=_titled(field, title))
        for field in fields(own.annotation)
    ]


def _titled(field: Field[Any], title: str | None) -> Any:
    """The field's annotation, with its option in the panel of that title."""
    kind, option = get_args(_with_metavar(field.type))
    assert isinstance(option, OptionInfo)
    option.rich_help_panel = title
    return Annotated[kind, option]


def _with_metavar(annotation: Any) -> Any:
    """The annotation of an option, with the name of its values.

    Help lists a few short choices in place of a name; others, which it would break anywhere, are listed in the text.
    """
    kind, *about = get_args(annotation) or (annotation,)
    if not about or not isinstance(about[0], OptionInfo):
        return annotation
    option = copy.copy(about[0])
    (value,) = [part for part in get_args(kind) if part is not type(None)] if _may_be_none(kind) else [kind]
    choices = get_args(value) if get_origin(value) is Literal else ()
    if len("|".join(choices)) > MOST_CHOICES:
        option.metavar, option.help = "NAME", f"{option.help} One of: {', '.join(choices)}."
    option.metavar = METAVARS.get(value) if option.metavar is None else option.metavar
    return Annotated[kind, option]


def _may_be_none(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)
