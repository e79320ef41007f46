"""Options in groups. Typer reads a function's parameters; here a parameter may be a dataclass of several options."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any, get_args

from typer.models import OptionInfo


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
    return grouped


def _title(group: Any) -> str:
    return (inspect.getdoc(group) or "").removesuffix(".")


def _expanded(own: Parameter, title: str | None) -> list[Parameter]:
    """The parameter itself, or one for each field of its dataclass; all are keyword-only, since those need no order."""
    if not is_dataclass(own.annotation):
        return [own.replace(kind=Parameter.KEYWORD_ONLY)]
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=_titled(field, title))
        for field in fields(own.annotation)
    ]


def _titled(field: Field[Any], title: str | None) -> Any:
    """The field's annotation, with its option in the panel of that title."""
    kind, option = get_args(field.type)
    option = copy.copy(option)
    assert isinstance(option, OptionInfo)
    option.rich_help_panel = title
    return Annotated[kind, option]
