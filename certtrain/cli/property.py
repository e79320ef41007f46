"""certtrain verify with --vnnlib: one property of one network."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from certtrain.attack import PGD

METHODS = ("crown-ibp", "complete", "milp")  # those of certtrain.properties.decide, which loads torch


def check_property(model: Path, vnnlib: Path, method: str) -> None:
    """Before torch is loaded, see that the files are there and the method is known."""
    from certtrain.storage import check_model_file, check_property_file

    if method not in METHODS:
        raise typer.BadParameter(f"{method!r} is none for a property; choose {' or '.join(METHODS)}")
    check_model_file(model)
    check_property_file(vnnlib)


def verify_property(
    model: Path, vnnlib: Path, *, method: str, attack: "PGD", timeout: float | None, memory: int, as_json: bool
) -> None:
    """Decide the property in the file `vnnlib` for the network in `model`, ONNX or certtrain's own, and show it."""
    from certtrain import render
    from certtrain.interchange.onnxfile import open_network
    from certtrain.interchange.vnnlib import read_property
    from certtrain.properties.decide import decide

    asked = read_property(vnnlib)
    network, shape = open_network(model)
    found = decide(network, shape, asked, method=method, attack=attack, time_limit=timeout, memory=memory)
    if as_json:
        render.show_json({"model": str(model), "property": str(vnnlib), **found.to_dict()})
    else:
        render.show_decision(found)
