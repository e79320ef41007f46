"""certtrain verify: natural, attacked and certified accuracy over a data set."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.check import check_command
from certtrain.cli.decide import decide_command
from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.options import (
    AsJson,
    AttackSeed,
    DataDir,
    DeviceOption,
    Eps,
    Force,
    Limit,
    Memory,
    ModelFile,
    PgdRestarts,
    SplitOption,
    check_targets,
    given,
    open_model,
    open_split,
    options_for,
    say_what_to_type,
    seconds,
)
from certtrain.cli.stopping import Stopper
from certtrain.spec.choices import ArithmeticName, AttackName, MethodName, NetworkName

if TYPE_CHECKING:
    from certtrain.attack import AttackSettings
    from certtrain.certfile import Writer
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier
    from certtrain.render.verification import VerifyingView
    from certtrain.verification.results import ExampleResult
    from certtrain.verification.verify import Report

OF_ATTACK = ("pgd_steps", "pgd_restarts", "seed")


@dataclass(frozen=True)
class CertificateOptions:
    """What is certified, and how."""

    eps: Eps = None
    method: Annotated[
        MethodName,
        typer.Option(
            help="Bounds to certify with. auto tries each, cheap ones first, on the examples that are still open, "
            "which may take long: see --timeout. complete splits until an example is decided. milp, a second opinion, "
            "takes --arithmetic real and few ReLUs."
        ),
    ] = "ibp"
    network: Annotated[
        NetworkName,
        typer.Option(help="The network as saved, or with BatchNorm folded as `certtrain export` writes it."),
    ] = "saved"
    arithmetic: Annotated[
        ArithmeticName,
        typer.Option(help="What the network computes in when it runs; real is a network that never rounds."),
    ] = "float32"

    def check(self) -> None:
        """Raise BadParameter for a method in an arithmetic that it does not know."""
        if self.method == "milp" and self.arithmetic != "real":
            raise typer.BadParameter("milp knows no rounding; it takes --arithmetic real", param_hint="--method")


@dataclass(frozen=True)
class AttackOptions:
    """The attack."""

    attack: Annotated[
        AttackName,
        typer.Option(help="Attack that gives the upper limit; the apgd ones take longer than pgd."),
    ] = "pgd"
    pgd_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the attack; by itself pgd takes 20 and apgd 100.")
    ] = None
    pgd_restarts: PgdRestarts = 1
    seed: AttackSeed = 0

    def check(self, context: typer.Context) -> None:
        """Raise BadParameter for a setting of an attack that there is not."""
        unused = [spelling for name, spelling in given(context).items() if name in OF_ATTACK]
        if self.attack == "none" and unused:
            raise typer.BadParameter("there is no attack to set this for", param_hint=unused[0])

    def settings(self) -> "AttackSettings | None":
        """The attack; None for none."""
        from certtrain.attack import named

        if self.attack == "none":
            return None
        return named(self.attack, steps=self.pgd_steps, restarts=self.pgd_restarts, seed=self.seed)


@dataclass(frozen=True)
class VerificationData:
    """The data."""

    data_dir: DataDir = None
    split: SplitOption = "test"
    limit: Limit = None


@dataclass(frozen=True)
class LimitOptions:
    """Time and memory."""

    timeout: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Most time for an example in the methods beyond attack and ibp, like 30s.",
        ),
    ] = None
    time_budget: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="TIME", help="Most time in all, like 9m; what is not decided stays open."),
    ] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time; a tenth of it in methods beyond ibp.")] = (
        200
    )
    memory: Memory = None
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class CertificateOutput:
    """What is written."""

    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the certificates to this file, or go on with it if it is there."),
    ] = None
    force: Force = False
    as_json: AsJson = False


@dataclass(frozen=True)
class MovedOptions:
    """What other commands do now; its options are hidden."""

    check: Annotated[Path | None, typer.Option(hidden=True, help="See `certtrain check`.")] = None
    vnnlib: Annotated[Path | None, typer.Option(hidden=True, help="See `certtrain decide`.")] = None

    def refuse(self, context: typer.Context, model: Path) -> None:
        """End with the command line that does what is asked."""
        if self.check is not None:
            words = ["certtrain", "check", self.check, model, *options_for(check_command, context)]
            say_what_to_type("certificates are checked by a command of their own", *words)
        if self.vnnlib is not None:
            words = ["certtrain", "decide", model, self.vnnlib, *options_for(decide_command, context)]
            say_what_to_type("properties are decided by a command of their own", *words)


def verify_command(
    context: typer.Context,
    model: ModelFile,
    certificates: CertificateOptions,
    attack: AttackOptions,
    data: VerificationData,
    limits: LimitOptions,
    output: CertificateOutput,
    moved: MovedOptions,
) -> None:
    """Natural, attacked and certified accuracy of a model: a bracket around its robust accuracy.

    Stopped by Ctrl-C or a time limit, a verification with --out goes on when the command is given again.
    """
    moved.refuse(context, model)
    certificates.check()
    attack.check(context)
    check_targets(True, output.out)
    saved = open_model(model, limits.device)
    images = open_split(saved, data.split, data.data_dir, data.limit)
    task = _Task(model, saved, images, attack.settings(), _how(saved, certificates, limits), output)
    _show(_verified(task, limits), model, output)


@dataclass(frozen=True)
class _Task:
    """What is verified: the network in `file` on `images`, against `attack`; `how` are verify's other arguments."""

    file: Path
    model: "Classifier"
    images: "ImageSet"
    attack: "AttackSettings | None"
    how: dict[str, Any]
    output: CertificateOutput

    @contextmanager
    def writer(self) -> "Iterator[Writer | None]":
        """A new certificate file, or the one that is there, to go on with; no other process writes it meanwhile.

        None without --out.
        """
        if self.output.out is None:
            yield None
            return
        from certtrain.attack import described
        from certtrain.certfile import Writer, describe_task, locked_certificates
        from certtrain.verification.verify import check_fit

        check_fit(self.model, self.images)
        header = describe_task(self.file, self.model, self.images, attack=described(self.attack), **self.how)
        new = self.output.force or not self.output.out.exists()
        with locked_certificates(self.output.out):
            yield (Writer if new else Writer.resume)(self.output.out, header, self.images)


def _how(model: "Classifier", certificates: CertificateOptions, limits: LimitOptions) -> dict[str, Any]:
    """How examples are certified: arguments of `verify` that certificate files record as well."""
    from certtrain.bounds.settings import VERDICTS_ALONE

    bounds = VERDICTS_ALONE if limits.memory is None else replace(VERDICTS_ALONE, memory=limits.memory)
    return {
        "eps": model.metadata.eps if certificates.eps is None else certificates.eps,
        "method": certificates.method,
        "network": certificates.network,
        "arithmetic": certificates.arithmetic,
        "batch_size": limits.batch_size,
        "bounds": bounds,
    }


class _Interrupted(Exception):
    pass


@dataclass(frozen=True)
class _Batches:
    """What is done with each batch of examples: it is written and shown, and then Ctrl-C ends the verification."""

    writer: "Writer | None"
    view: "VerifyingView"
    stop: Stopper

    def add(self, points: "Sequence[ExampleResult]") -> None:
        if self.writer is not None:
            self.writer.add(points)
        self.view.add(points)
        if self.stop.interrupted:
            raise _Interrupted


def _verified(task: _Task, limits: LimitOptions) -> "Report":
    """The report; the certificates are in the file that --out names."""
    from certtrain import render

    stop = Stopper(None)
    with task.writer() as writer:
        known = () if writer is None else tuple(writer.results.values())
        with render.verifying(len(task.images), known) as view:
            try:
                report = _report(task, limits, known, _Batches(writer, view, stop))
            except _Interrupted:
                view.close()
                _say_stopped(writer, len(task.images))
                raise typer.Exit(ExitCode.INTERRUPTED) from None
        if writer is not None:
            writer.seal()
    return report


def _report(task: _Task, limits: LimitOptions, known: "Sequence[ExampleResult]", batches: _Batches) -> "Report":
    from certtrain.verification.cascade import Limits
    from certtrain.verification.verify import verify

    return verify(
        task.model,
        task.images,
        attack=task.attack,
        limits=Limits(limits.timeout, limits.time_budget),
        known=known,
        on_examples=batches.add,
        on_round=batches.view.begin,
        **task.how,
    )


def _say_stopped(writer: "Writer | None", examples: int) -> None:
    from certtrain import render

    if writer is None:
        render.note("stopped; without --out FILE nothing is kept")
        return
    decided = sum(point.verdict != "open" for point in writer.results.values())
    again = shlex.join(["certtrain", *(word for word in sys.argv[1:] if word != "--force")])
    render.note(f"stopped with {decided:,} of {examples:,} examples decided; go on with: {again}")


def _show(report: "Report", model: Path, output: CertificateOutput) -> None:
    from certtrain import render

    if output.as_json:
        render.show_json({"model": str(model), **report.to_dict(), "out": output.out and str(output.out)})
        return
    render.show_report(report)
    if output.out is not None:
        render.say(f"wrote {output.out}")
