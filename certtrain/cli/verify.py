"""certtrain verify"""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    DeviceName,
    Eps,
    Force,
    Limit,
    ModelFile,
    Split,
    check_targets,
    memory_size,
    open_model,
    open_split,
)
from certtrain.cli.stopping import Stopper, seconds

if TYPE_CHECKING:
    from certtrain.certfile import Writer
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier
    from certtrain.verification.results import ExampleResult


class Method(StrEnum):
    """How points are certified."""

    auto = "auto"
    ibp = "ibp"
    crown_ibp = "crown-ibp"
    crown = "crown"
    alpha_crown = "alpha-crown"
    complete = "complete"
    milp = "milp"


class Attack(StrEnum):
    """How points are attacked; -t goes through nine other classes, one after the other; none is no attack."""

    pgd = "pgd"
    pgd_t = "pgd-t"
    apgd_ce = "apgd-ce"
    apgd_dlr = "apgd-dlr"
    apgd_t = "apgd-t"
    none = "none"


class Arithmetic(StrEnum):
    """In which the network computes."""

    float32 = "float32"
    tf32 = "tf32"
    bf16 = "bf16"
    real = "real"


class Network(StrEnum):
    """Of which network the certificates speak."""

    saved = "saved"
    folded = "folded"


WITH_PROPERTY = {"model", "vnnlib", "method", "timeout", "memory", "pgd_steps", "pgd_restarts", "seed", "as_json"}
WITH_CHECK = {"model", "check", "limit", "memory", "data_dir", "device", "as_json"}
MEMORY = 2**30
OF_ATTACK = {"pgd_steps", "pgd_restarts", "seed"}


def verify(
    context: typer.Context,
    model: ModelFile,
    eps: Eps = None,
    method: Annotated[
        Method,
        typer.Option(
            help="Bounds to certify with; auto tries each, cheap ones first, on the points still open, which may take "
            "long: see --timeout. complete splits until a point is decided; milp, a second opinion, takes --arithmetic "
            "real and few ReLUs. With --vnnlib crown-ibp, the default there, complete or milp."
        ),
    ] = Method.ibp,
    network: Annotated[
        Network, typer.Option(help="The network as saved, or with BatchNorm folded as `certtrain export` writes it.")
    ] = Network.saved,
    arithmetic: Annotated[
        Arithmetic,
        typer.Option(help="What the network computes in when it runs; real is a network that never rounds."),
    ] = Arithmetic.float32,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Most time for a point in the methods beyond attack and ibp, like 30s.",
        ),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="TIME", help="Most time in all, like 9m; what is not decided stays open."),
    ] = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    limit: Limit = None,
    attack: Annotated[
        Attack, typer.Option(help="Attack that gives the upper limit; apgd ones are dearer than pgd.")
    ] = Attack.pgd,
    pgd_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the attack; by itself pgd takes 20 and apgd 100.")
    ] = None,
    pgd_restarts: Annotated[int, typer.Option(min=1, help="Random starts of the attack.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the attack's random starts.")] = 0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Examples at a time; a tenth of it in methods beyond ibp.")
    ] = 200,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the certificates to this file, or go on with it if it is there."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Compute the certificates in this file again, and see that they hold."),
    ] = None,
    vnnlib: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Decide the property in this file; MODEL may then be an ONNX file too."),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(
            parser=memory_size,
            metavar="SIZE",
            help="Most memory for the linear bounds, like 500MB; by itself 1GiB. Bounds do not change, but complete "
            "gives up where the parts that are open take more.",
        ),
    ] = None,
    device: DeviceName = Device.auto,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Natural, attacked and certified accuracy of a model: a bracket around its robust accuracy.

    Stopped by Ctrl-C or a time limit, a verification with --out goes on when the command is given again.
    """
    if check is not None:
        # The file says what is checked: other options would be ignored.
        _refuse(context, lambda name: name not in WITH_CHECK, "this is taken from the file that --check names")
        _check(model, check, data_dir, device, as_json, limit=limit, memory=memory or MEMORY)
        return
    if vnnlib is not None:
        _refuse(context, lambda name: name not in WITH_PROPERTY, "this is not for the property that --vnnlib names")
        given = context.get_parameter_source("method")
        chosen = "crown-ibp" if given is not None and given.name == "DEFAULT" else method.value
        options = {"timeout": timeout, "memory": memory or MEMORY, "as_json": as_json}
        _decide(model, vnnlib, chosen, (pgd_steps or 20, pgd_restarts, seed), **options)
        return
    if method is Method.milp and arithmetic is not Arithmetic.real:
        raise typer.BadParameter("milp knows no rounding; it takes --arithmetic real", param_hint="--method")
    if attack is Attack.none:
        _refuse(context, lambda name: name in OF_ATTACK, "there is no attack to set this for")
    check_targets(True, out)
    saved = open_model(model, device)
    images = open_split(saved, split, data_dir, limit)
    from certtrain import render
    from certtrain.attack import described, named
    from certtrain.bounds.settings import VERDICTS_ALONE
    from certtrain.verification.cascade import Limits
    from certtrain.verification.verify import verify as verify_model

    radius = saved.metadata.eps if eps is None else eps
    numbers = {"steps": pgd_steps, "restarts": pgd_restarts, "seed": seed}
    settings = None if attack is Attack.none else named(attack.value, **numbers)
    asked: dict[str, Any] = {"method": method.value, "network": network.value, "arithmetic": arithmetic.value}
    asked |= {"batch_size": batch_size, "bounds": replace(VERDICTS_ALONE, memory=memory or MEMORY)}
    about = {"eps": radius, "attack": described(settings), **asked}
    stop, limits = Stopper(None), Limits(timeout, time_budget)
    with _writing(out, force, model, saved, images, **about) as writer:
        known = [] if writer is None else list(writer.points.values())
        with render.verifying(len(images), known) as view:

            def on_points(points: "list[ExampleResult]") -> None:
                if writer is not None:
                    writer.add(points)
                view.add(points)
                if stop.interrupted:
                    raise _Interrupted

            try:
                result = verify_model(
                    saved, images, radius, attack=settings, limits=limits, known=known,
                    on_examples=on_points, on_round=view.begin, **asked,
                )  # fmt: skip
            except _Interrupted:
                view.close()
                _say_stopped(writer, len(images))
                raise typer.Exit(128 + signal.SIGINT) from None
        if writer is not None:
            writer.seal()
    if as_json:
        render.show_json({"model": str(model), **result.to_dict(), "out": out and str(out)})
        return
    render.show_report(result)
    if out is not None:
        render.say(f"wrote {out}")


def _decide(model: Path, vnnlib: Path, method: str, attack: tuple[int, int, int], **options: Any) -> None:
    from certtrain.cli.property import check_property, verify_property

    check_property(model, vnnlib, method)
    from certtrain.attack import PGD

    verify_property(model, vnnlib, method=method, attack=PGD(*attack), **options)


class _Interrupted(Exception):
    pass


@contextmanager
def _writing(
    out: Path | None, force: bool, file: Path, model: "Classifier", images: "ImageSet", **asked: Any
) -> "Iterator[Writer | None]":
    """A new file, or the one that is there, to go on with; no other process writes it meanwhile. None without `out`."""
    if out is None:
        yield None
        return
    from certtrain.certfile import Writer, describe_task, locked_certificates
    from certtrain.verification.verify import check_fit

    check_fit(model, images)
    header = describe_task(file, model, images, **asked)
    with locked_certificates(out):
        yield Writer(out, header, images) if force or not out.exists() else Writer.resume(out, header, images)


def _say_stopped(writer: "Writer | None", examples: int) -> None:
    from certtrain import render

    if writer is None:
        render.note("stopped; without --out FILE nothing is kept")
        return
    decided = sum(point.verdict != "open" for point in writer.points.values())
    again = shlex.join(["certtrain", *(word for word in sys.argv[1:] if word != "--force")])
    render.note(f"stopped with {decided:,} of {examples:,} examples decided; go on with: {again}")


def _refuse(context: typer.Context, unwanted: Callable[[str], bool], why: str) -> None:
    """Raise BadParameter if an option of such a name was given: it would be ignored."""
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if unwanted(name) and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(why, param_hint=parameter.opts[0])


def _check(
    file: Path, check: Path, data_dir: Path | None, device: Device, as_json: bool, *, limit: int | None, memory: int
) -> None:
    from certtrain.storage import check_certificate_file

    check_certificate_file(check)
    model = open_model(file, device)
    from certtrain import render
    from certtrain.certfile import check as check_certificates
    from certtrain.certfile import check_model, read_certificates

    contents = read_certificates(check, model.metadata.input_shape)
    check_model(check, contents.header, file, model)
    data = contents.header.data
    images = open_split(model, Split(data.split), data_dir, data.examples)
    with render.progress("checking") as report:
        asked = (check, contents, file, model, images)
        outcome = check_certificates(*asked, limit=limit, memory=memory, on_progress=report)
    if as_json:
        render.show_json({"model": str(file), **outcome.to_dict()})
    else:
        render.show_checked(outcome)
