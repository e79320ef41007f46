"""certtrain decide: one property of one network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.options import AsJson, AttackSeed, PgdRestarts, memory_size, say_what_to_type, seconds
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
        help="What comes after bounds and attack: with crown-ibp nothing; complete splits until the property is "
        "decided; milp, a second opinion, takes few ReLUs."
    ),
]
PropertyTimeout = Annotated[
    float | None, typer.Option(parser=seconds, metavar="TIME", help="Most time for the property, like 30s.")
]
PropertyMemory = Annotated[
    int | None,
    typer.Option(
        parser=memory_size,
        metavar="SIZE",
        help="Most memory for the open domains of complete, like 500MB; by itself 1GiB. Beyond that it gives up.",
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
    """Decide a property of a network, in the words of the verification competition.

    unsat: no input of the box violates it. sat: one does, and is shown. unknown: neither was found.
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
    """Before torch is loaded, see that both files are there, and not each in the other's place."""
    from certtrain.interchange.packed import ending
    from certtrain.storage import check_model_file, check_property_file

    if ending(network) == ".vnnlib" != ending(property_file):
        say_what_to_type("the network comes first, then the property", "certtrain", "decide", property_file, network)
    check_model_file(network)
    check_property_file(property_file)


def _decision(
    network: Path, property_file: Path, method: str, attack: "PGD", timeout: float | None, memory: int | None
) -> "Decision":
    from certtrain.bounds.settings import DEFAULT
    from certtrain.interchange.onnxfile import open_network
    from certtrain.interchange.vnnlib import read_property
    from certtrain.properties.decide import decide

    asked = read_property(property_file)
    opened, shape = open_network(network)
    most = memory or DEFAULT.memory
    return decide(opened, shape, asked, method=method, attack=attack, time_limit=timeout, memory=most)
