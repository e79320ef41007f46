"""certtrain decide: decide one property of one network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.options import AsJson, AttackSeed, PgdRestarts, memory_size, seconds, wrong_usage
from certtrain.spec.choices import PropertyMethodName

if TYPE_CHECKING:
    from certtrain.attack import PGD
    from certtrain.properties.decide import Decision

DecidedNetwork = Annotated[
    Path, typer.Argument(metavar="NETWORK", help="An ONNX file, or a model file that certtrain wrote.")
]
PropertyFile = Annotated[Path, typer.Argument(metavar="PROPERTY", help="A VNN-LIB file.")]
PropertyMethod = Annotated[
    PropertyMethodName,
    typer.Option(
        help="What is tried after the bounds and the attack. crown-ibp: nothing. complete: branch and bound, until the "
        "property is decided. milp: a mixed-integer program, as a second opinion; for networks with few ReLUs."
    ),
]
PropertyTimeout = Annotated[
    float | None, typer.Option(parser=seconds, metavar="TIME", help="Time limit for the property, like 30s.")
]
PropertyMemory = Annotated[
    int | None,
    typer.Option(
        parser=memory_size,
        metavar="SIZE",
        help="Memory limit for the open domains of complete, like 500MB; 1GiB if not given. Beyond it, the result is "
        "unknown.",
    ),
]
PgdSteps = Annotated[int, typer.Option(min=1, help="Steps of the attack, projected gradient descent.")]


def decide_command(
    network: DecidedNetwork,
    property_file: PropertyFile,
    method: PropertyMethod = "crown-ibp",
    timeout: PropertyTimeout = None,
    memory: PropertyMemory = None,
    pgd_steps: PgdSteps = 20,
    pgd_restarts: PgdRestarts = 1,
    seed: AttackSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Decide whether a network has a property. The result is named as in the verification competition (VNN-COMP).

    unsat: no input in the box violates the property. sat: one does, and it is shown. unknown: neither was found.
    """
    _check_files(network, property_file)
    from certtrain import render
    from certtrain.attack import PGD

    found = _decision(network, property_file, method, PGD(pgd_steps, pgd_restarts, seed), timeout, memory)
    if as_json:
        render.show_json({"model": str(network), "property": str(property_file), **found.to_dict()})
    else:
        render.show_decision(found)


def _check_files(network: Path, property_file: Path) -> None:
    """Check, before torch is loaded, that both files exist and are given in the right order."""
    from certtrain.interchange.packed import ending
    from certtrain.storage import check_model_file, check_property_file

    if ending(network) == ".vnnlib" != ending(property_file):
        wrong_usage("the network comes first, then the property", "certtrain", "decide", property_file, network)
    check_model_file(network)
    check_property_file(property_file)


def _decision(
    network: Path, property_file: Path, method: str, attack: "PGD", timeout: float | None, memory: int | None
) -> "Decision":
    from certtrain.bounds.settings import DEFAULT
    from certtrain.interchange.onnxfile import open_network
    from certtrain.interchange.vnnlib import read_property
    from certtrain.properties.decide import decide

    stated = read_property(property_file)
    model, shape = open_network(network)
    memory = memory or DEFAULT.memory
    return decide(model, shape, stated, method=method, attack=attack, time_limit=timeout, memory=memory)
