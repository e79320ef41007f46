"""certtrain decide: decide one property of one network."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.options import (
    AsJson,
    AttackSeed,
    PgdRestarts,
    check_targets,
    memory_size,
    network_file,
    seconds,
    wrong_usage,
)
from certtrain.spec.choices import PropertyMethodName

if TYPE_CHECKING:
    from certtrain.attack import PGD
    from certtrain.properties.cases import Variable
    from certtrain.properties.decide import Decision

DecidedNetwork = Annotated[
    Path,
    typer.Argument(metavar="NETWORK", help="An ONNX file, a model file that certtrain wrote, or the folder of a run."),
]
PropertyFile = Annotated[Path, typer.Argument(metavar="PROPERTY", help="A VNN-LIB file.")]
PropertyMethod = Annotated[
    PropertyMethodName,
    typer.Option(
        help="What follows the bounds and the attack. crown-ibp: nothing more. complete: branch and bound, until the "
        "property is decided. milp: a mixed-integer program, as a second opinion; for networks with few ReLUs."
    ),
]
PropertyTimeout = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Time limit, like 30s, from the start of the command."),
]
PropertyMemory = Annotated[
    int | None,
    typer.Option(
        parser=memory_size,
        metavar="SIZE",
        help="Memory limit, like 500MB, for linear bounds, batches of the attack, and the open domains of complete, "
        "each by itself; 1GiB if not given. If the domains need more, the result is unknown.",
    ),
]
AnswerFile = Annotated[
    Path | None,
    typer.Option(
        "--results",
        metavar="FILE",
        help="Write the competition's result file: sat, unsat, unknown or timeout in its first line, and then the "
        "counterexample. An existing file is replaced.",
    ),
]
CounterexampleFile = Annotated[
    Path | None,
    typer.Option(
        "--counterexample",
        metavar="FILE",
        help="Write the counterexample in the competition's format, if there is one. An existing file is replaced.",
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
    results: AnswerFile = None,
    counterexample: CounterexampleFile = None,
    as_json: AsJson = False,
) -> None:
    """Decide whether a network has a property. The result is named as in the verification competition (VNN-COMP).

    unsat: no input in the box violates the property. sat: one does, and it is shown. unknown: neither was found.
    """
    start = time.monotonic()  # before torch is loaded
    network, property_file = _files(network_file(network), property_file)
    check_targets(True, results, counterexample)
    from certtrain import render
    from certtrain.attack import PGD
    from certtrain.competition import answers
    from certtrain.storage import write_atomic

    end = None if timeout is None else start + timeout
    found, variables = _decision(network, property_file, method, PGD(pgd_steps, pgd_restarts, seed), end, memory)
    example = answers.counterexample(found, variables)
    if counterexample is not None and example is not None:
        write_atomic(counterexample, example.encode())
    if results is not None:
        answers.write_answer(results, answers.answer(found, time.monotonic() - start, timeout), example)
    if as_json:
        render.show_json({"model": str(network), "property": str(property_file), **found.to_dict()})
    else:
        render.show_decision(found)


def _files(network: Path, property_file: Path) -> tuple[Path, Path]:
    """Both files, or their gzipped variants; checks, before torch is loaded, that they exist and are in this order."""
    from certtrain.interchange.packed import ending, present
    from certtrain.storage import check_model_file, check_property_file

    network, property_file = present(network) or network, present(property_file) or property_file
    if ending(network) == ".vnnlib" != ending(property_file):
        wrong_usage("the network comes first, then the property", "certtrain", "decide", property_file, network)
    check_model_file(network)
    check_property_file(property_file)
    return network, property_file


def _decision(
    network: Path, property_file: Path, method: str, attack: "PGD", end: float | None, memory: int | None
) -> "tuple[Decision, tuple[Variable, Variable] | None]":
    """The decision, by the time `end` on the clock of `time.monotonic`, and the variables of VNN-LIB 2.0."""
    from certtrain.bounds.settings import DEFAULT
    from certtrain.interchange.onnxfile import open_network
    from certtrain.interchange.vnnlib import read_property
    from certtrain.properties.decide import decide

    stated = read_property(property_file)
    model, shape = open_network(network)
    memory, limit = memory or DEFAULT.memory, None if end is None else max(end - time.monotonic(), 0.0)
    found = decide(model, shape, stated, method=method, attack=attack, time_limit=limit, memory=memory)
    return found, stated.variables
