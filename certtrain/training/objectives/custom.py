"""A user's own objective, from a Python file."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from certtrain.bounds.graph import LayerGraph
from certtrain.errors import PresetError
from certtrain.spec.objective import CustomSection
from certtrain.training.objectives.base import Objective


def custom_objective(section: CustomSection, graph: LayerGraph) -> Objective:
    """The objective that the user's class makes, called with the network's layers and the section's arguments.

    Runs the user's file. Raises PresetError, which says what is wrong with it.
    """
    make, title = _class_of(section.source)
    attack = {} if section.attack is None else {"attack": section.attack}
    try:
        objective = make(graph, **attack, **section.arguments)
    except Exception as error:
        raise PresetError(f"objective {title} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(objective, Objective):
        raise PresetError(f"objective {title} made {objective!r}; it must be a certtrain.Objective")
    return objective


def _class_of(source: str | Callable[..., Any]) -> tuple[Callable[..., Any], str]:
    """The class, and its name in messages."""
    if not isinstance(source, str):
        return source, getattr(source, "__name__", repr(source))
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise PresetError(f"there is no file {file}, which objective.source names; the run needs it until it ends")
    spec = spec_from_file_location(f"certtrain_objective_{path.stem}", path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise PresetError(f"{file} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(found := getattr(module, name, None)):
        raise PresetError(f"{file} has no class {name}, which objective.source names")
    return found, source
