"""certtrain verify: natural accuracy, accuracy under attack and certified accuracy over a data set."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.moved import MovedOptions
from certtrain.cli.networks import ForeignOptions, say_if_guessing
from certtrain.cli.options import (
    NO_TIMEOUT,
    AsJson,
    AttackSeed,
    DataDir,
    DeviceOption,
    Force,
    Limit,
    Memory,
    ModelOrNewest,
    PgdRestarts,
    SplitOption,
    Threads,
    check_targets,
    data_folder,
    example_limit,
    given,
    network_file,
    newest_if_none,
    open_split,
    seconds,
    seconds_or_none,
)
from certtrain.cli.pictures import TakenPictures, show_pictures
from certtrain.cli.radii import Radii, file_at, verify_at_radii
from certtrain.cli.sheets import PicturesFolder, by_class, check_pictures, write_pictures
from certtrain.cli.stopping import Stopper, how_to_continue
from certtrain.cli.workers import Ranks, ranks_of
from certtrain.runtime.deadline import DEFAULT_TIMEOUT
from certtrain.spec.choices import ArithmeticName, AttackName, MethodName, NetworkName

if TYPE_CHECKING:
    from certtrain.attack import AttackSettings
    from certtrain.certfile import Header, Writer
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier
    from certtrain.render.verification import VerifyingView
    from certtrain.verification.cascade import Limits
    from certtrain.verification.results import ExampleResult
    from certtrain.verification.shares import Shares
    from certtrain.verification.verify import Report

DATA_SET_OPTIONS = ("split", "limit", "out", "sheets", "html", "time_budget", "batch_size", "workers")
ATTACK_OPTIONS = ("pgd_steps", "pgd_restarts", "seed")


@dataclass(frozen=True)
class CertificateOptions:
    """What is certified, and how."""

    eps: Radii = None
    method: Annotated[
        MethodName,
        typer.Option(
            help="How to certify. auto tries all methods but milp, fast ones first, and a targeted attack, on the "
            "examples that are still open. complete is branch and bound, until each example is decided or its "
            "--timeout is over. milp is a second opinion, for --arithmetic real and networks with few ReLUs."
        ),
    ] = "ibp"
    network: Annotated[
        NetworkName,
        typer.Option(help="The network as saved, or with BatchNorm folded, as `certtrain export` writes it."),
    ] = "saved"
    arithmetic: Annotated[
        ArithmeticName,
        typer.Option(help="The arithmetic in which the network runs; real means without any rounding."),
    ] = "float32"

    def check(self) -> None:
        """Raise BadParameter for a method in an arithmetic that it does not support."""
        if self.method == "milp" and self.arithmetic != "real":
            raise typer.BadParameter("milp ignores rounding; it needs --arithmetic real", param_hint="--method")

    @property
    def several(self) -> bool:
        """Whether there are several radii."""
        return self.eps is not None and len(self.eps) > 1

    def files(self, out: Path | None) -> list[Path]:
        """The certificate files for --out: one for each radius."""
        if out is None:
            return []
        return [file_at(out, eps) for eps in self.eps] if self.several else [out]

    def check_one_radius(self, option: str) -> None:
        """Raise BadParameter if there are several radii, with an option that is about one."""
        if self.several:
            raise typer.BadParameter("it takes one radius; --eps has several", param_hint=option)


@dataclass(frozen=True)
class AttackOptions:
    """The attack."""

    attack: Annotated[
        AttackName,
        typer.Option(
            help="Attack for the upper limit; the apgd attacks take longer than pgd. strong runs pgd, pgd-t, apgd-ce "
            "and apgd-t in this order, each on the examples that the ones before did not falsify: cheap attacks first, "
            "then AutoAttack's gradient attacks."
        ),
    ] = "pgd"
    pgd_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each attack; if not given, 20 for pgd and 100 for apgd.")
    ] = None
    pgd_restarts: PgdRestarts = 1
    seed: AttackSeed = 0

    def check(self, context: typer.Context) -> None:
        """Raise BadParameter for an option of the attack with --attack none."""
        unused = [spelling for name, spelling in given(context).items() if name in ATTACK_OPTIONS]
        if self.attack == "none" and unused:
            raise typer.BadParameter("it has no effect with --attack none", param_hint=unused[0])

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
class PictureOptions:
    """Images of your own."""

    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Verify this image, or those in this folder, instead of a data set; more may follow, as in --image "
            "*.png. Shows the class, whether it is certified, and the largest ε at which it is, and writes a "
            "counterexample beside it. An image of another size is resized (bilinear, antialiased), and colours turn "
            "to grey for a model of grey images; a line says so.",
        ),
    ] = None
    label: Annotated[
        str | None, typer.Option(metavar="CLASS", help="The right class of the images; the predicted one if not given.")
    ] = None
    invert: Annotated[
        bool,
        typer.Option(
            "--invert",
            help="Turn black into white and white into black, for ink on paper where a model was trained on "
            "white on black, as in MNIST.",
        ),
    ] = False

    def check(self, context: typer.Context) -> None:
        """Raise BadParameter for options that have no effect with --image, or without."""
        if self.image is None and (self.label is not None or self.invert):
            raise typer.BadParameter("it needs --image", param_hint="--invert" if self.label is None else "--label")
        unused = [spelling for name, spelling in given(context).items() if name in DATA_SET_OPTIONS]
        if self.image is not None and unused:
            raise typer.BadParameter("it is about a data set; it has no effect with --image", param_hint=unused[0])

    def check_one_process(self) -> None:
        """Raise BadParameter for images that several processes would verify."""
        if self.image is not None:
            raise typer.BadParameter("one process verifies images of your own", param_hint="--image")


@dataclass(frozen=True)
class LimitOptions:
    """Time and memory."""

    timeout: Annotated[
        float | None,
        typer.Option(
            parser=seconds_or_none,
            metavar="TIME|none",
            help="Time limit for each example in the methods beyond ibp, like 5s or 10m; "
            f"{DEFAULT_TIMEOUT:.0f}s if not given. auto keeps three quarters of it for complete. With --image, it is "
            "for all that is done with an image, and a quarter is kept for its largest ε. With --out, the same command "
            "with a longer limit tries those again that ran out of time.",
        ),
    ] = None
    time_budget: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Time limit for the whole verification, like 9m; what is not decided by then stays open.",
        ),
    ] = None
    batch_size: Annotated[
        int, typer.Option(min=1, help="Number of examples at a time; a tenth of it for methods other than ibp.")
    ] = 200
    memory: Memory = None
    device: DeviceOption = "auto"
    threads: Threads = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of processes on this machine that share the examples; 1 if not given. On several machines: "
            "torchrun --nnodes … -m certtrain verify …",
        ),
    ] = None

    def check(self, method: str, image: object) -> None:
        """Raise BadParameter if there is a limit for methods that are not used."""
        if self.timeout is not None and method == "ibp" and image is None:
            raise typer.BadParameter(NO_TIMEOUT.format("--method auto"), param_hint="--timeout")

    def limits(self) -> "Limits":
        """The limits of time."""
        from certtrain.verification.cascade import Limits

        return Limits(example_limit(self.timeout), self.time_budget)


@dataclass(frozen=True)
class CertificateOutput:
    """What is written."""

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the certificates to this file, or continue it if it exists. Several radii have a file each, "
            "such as c-8_255.jsonl for c.jsonl.",
        ),
    ] = None
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With several radii, write a page with the curves to this file.")
    ] = None
    sheets: PicturesFolder = None
    force: Force = False
    as_json: AsJson = False


def verify_command(
    context: typer.Context,
    certificates: CertificateOptions,
    attack: AttackOptions,
    data: VerificationData,
    foreign: ForeignOptions,
    pictures: PictureOptions,
    limits: LimitOptions,
    output: CertificateOutput,
    moved: MovedOptions,
    model: ModelOrNewest = None,
) -> None:
    """Measure natural accuracy, accuracy under attack and certified accuracy of a model.

    The last two are an upper and a lower limit on its robust accuracy. With --out, a verification that Ctrl-C or a
    time limit stopped continues when the same command is given again.
    """
    moved.refuse(context, model)
    certificates.check()
    attack.check(context)
    pictures.check(context)
    limits.check(certificates.method, pictures.image)
    _check_output(certificates, pictures, output)
    if limits.workers not in (None, 1):
        certificates.check_one_radius("--workers")
    file = network_file(newest_if_none(foreign.file(model)))
    foreign.check(file, certificates.eps, certificates.network)
    with ranks_of(limits.workers) as ranks:
        _verify(ranks, file, certificates, attack, data, foreign, pictures, limits, output)


def _verify(
    ranks: Ranks,
    file: Path,
    certificates: CertificateOptions,
    attack: AttackOptions,
    data: VerificationData,
    foreign: ForeignOptions,
    pictures: PictureOptions,
    limits: LimitOptions,
    output: CertificateOutput,
) -> None:
    """Verify as one of the ranks."""
    if ranks.size > 1:
        certificates.check_one_radius("torchrun")
        pictures.check_one_process()
    ranks.take_device(limits.device)
    eps = None if certificates.eps is None else certificates.eps[0]
    saved = foreign.open(file, eps, limits.device, data.data_dir, data.split)
    if pictures.image is not None:
        options = _arguments(saved, certificates, limits) | {"attack": attack.settings(), "limits": limits.limits()}
        del options["batch_size"]
        taken = TakenPictures(pictures.image, pictures.label, pictures.invert, output.force)
        show_pictures(saved, file, taken, options, as_json=output.as_json)
        return
    images = open_split(saved, data.split, data_folder(data.data_dir, file), data.limit)
    task = _Task(file, saved, images, attack.settings(), _arguments(saved, certificates, limits), output, ranks)
    if certificates.several:
        _at_radii(task, certificates.eps, limits)
        return
    ranks.ready()
    report = _verified(task, limits)
    if not ranks.leads:
        return
    _show(report, task)
    if foreign.reads(file):
        say_if_guessing(report, len(saved.metadata.class_names))
    if report.interrupted:
        _say_stopped(report, output.out)
        raise typer.Exit(ExitCode.INTERRUPTED)


def _at_radii(task: "_Task", radii: tuple[float, ...], limits: LimitOptions) -> None:
    for eps in radii:  # now, not after hours at another radius
        task.at(eps).check_earlier_file()
    verify_at_radii(
        task.model,
        task.file,
        task.images,
        radii,
        {name: value for name, value in task.arguments.items() if name != "eps"}
        | {"attack": task.attack, "limits": limits.limits()},
        out=task.output.out,
        writer=lambda eps: task.at(eps).writer(),
        html=task.output.html,
        as_json=task.output.as_json,
    )


def _check_output(certificates: CertificateOptions, pictures: PictureOptions, output: CertificateOutput) -> None:
    """Raise BadParameter or StorageError for what cannot be written."""
    if output.sheets is not None:
        certificates.check_one_radius("--pictures")
    if pictures.image is not None:
        certificates.check_one_radius("--image")
    if output.html is not None and not certificates.several:
        raise typer.BadParameter("it is for several radii, as in --eps 0.1,0.2", param_hint="--html")
    check_targets(True, *certificates.files(output.out))
    check_targets(output.force, output.html)
    check_pictures(output.sheets, output.force)


@dataclass(frozen=True)
class _Task:
    """A verification: the `model` from `file` on `images`, under `attack`; `arguments` are the others of `verify`."""

    file: Path
    model: "Classifier"
    images: "ImageSet"
    attack: "AttackSettings | None"
    arguments: dict[str, Any]
    output: CertificateOutput
    ranks: Ranks

    @contextmanager
    def writer(self) -> "Iterator[Writer | None]":
        """The writer of a new certificate file, or of an existing one that is continued; None without --out.

        No other process writes the file meanwhile.
        """
        if self.output.out is None or not self.ranks.leads:
            yield None
            return
        from certtrain.certfile import Writer, locked_certificates

        header = self.header()
        new = self.output.force or not self.output.out.exists()
        with locked_certificates(self.output.out):
            yield (Writer if new else Writer.resume)(self.output.out, header, self.images)

    def at(self, eps: float) -> "_Task":
        """The same at one of several radii, whose certificates have a file of their own."""
        out = None if self.output.out is None else file_at(self.output.out, eps)
        return replace(self, arguments=self.arguments | {"eps": eps}, output=replace(self.output, out=out))

    def check_earlier_file(self) -> None:
        """Raise CertificateError if --out names a file that does not continue."""
        from certtrain.certfile import check_same_task, read_header

        out = self.output.out
        if out is not None and out.exists() and not self.output.force:
            check_same_task(out, read_header(out), self.header())

    def header(self) -> "Header":
        """The header of its certificates. Raises DataError."""
        from certtrain.attack import described
        from certtrain.certfile import describe_task
        from certtrain.verification.verify import check_fit

        check_fit(self.model, self.images)
        return describe_task(self.file, self.model, self.images, attack=described(self.attack), **self.arguments)

    def shares(self) -> "Shares":
        """The share of this process. Raises RunError if another one has another task."""
        from certtrain.verification.shares import ALONE

        shared = self.ranks.share(self.images)
        if shared is None:
            return ALONE
        shared.agree(self.header())
        return shared


def _arguments(model: "Classifier", certificates: CertificateOptions, limits: LimitOptions) -> dict[str, Any]:
    """The arguments of `verify` that certificate files record too."""
    from certtrain.bounds.settings import VERDICT_SETTINGS

    bounds = VERDICT_SETTINGS if limits.memory is None else replace(VERDICT_SETTINGS, memory=limits.memory)
    return {
        "eps": model.metadata.eps if certificates.eps is None else certificates.eps[0],
        "method": certificates.method,
        "network": certificates.network,
        "arithmetic": certificates.arithmetic,
        "batch_size": limits.batch_size,
        "bounds": bounds,
    }


@dataclass(frozen=True)
class _Batches:
    """Writes and shows each batch of results."""

    writer: "Writer | None"
    view: "VerifyingView"

    def add(self, results: "Sequence[ExampleResult]") -> None:
        if self.writer is not None:
            self.writer.add(results)
        self.view.add(results)


def _verified(task: _Task, limits: LimitOptions) -> "Report":
    """The report of the verification; its certificates are written to the file that --out names."""
    from certtrain import render

    with task.writer() as writer:
        known = () if writer is None else tuple(writer.results.values())
        with render.verifying(known) as view:
            stop = Stopper(None, view.stop)
            report = _report(task, limits, known, _Batches(writer, view), stop)
        if writer is not None and not report.interrupted:
            writer.seal()
    return report


def _report(
    task: _Task, limits: LimitOptions, known: "Sequence[ExampleResult]", batches: _Batches, stop: Stopper
) -> "Report":
    from certtrain.verification.verify import verify

    return verify(
        task.model,
        task.images,
        attack=task.attack,
        limits=limits.limits(),
        known=known,
        on_examples=batches.add,
        on_round=batches.view.begin,
        on_work=batches.view.work_on,
        stop=lambda: stop.interrupted,
        shares=task.shares(),
        **task.arguments,
    )


def _say_stopped(report: "Report", out: Path | None) -> None:
    """Say how far a verification came that an interrupt ended, and how to continue it."""
    from certtrain import render

    examples = report.examples + report.unreached
    left = report.open + report.unreached
    render.note(f"stopped with {examples - left:,} of {examples:,} examples decided; {how_to_continue(out)}")


def _show(report: "Report", task: _Task) -> None:
    from certtrain import render

    if not report.examples:  # stopped before the first result
        return
    output, about = task.output, (task.model, task.images, report)
    pictures = [] if output.sheets is None else write_pictures(*about, output.sheets)
    if output.as_json:
        files = {"out": output.out and str(output.out), "pictures": pictures}
        render.show_json({"model": str(task.file), **report.to_dict(), **by_class(*about), **files})
        return
    render.show_report(report)
    for written in [*([] if output.out is None else [output.out]), *pictures]:
        render.say(f"wrote {written}")
