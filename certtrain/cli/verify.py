"""certtrain verify: natural accuracy, accuracy under attack and certified accuracy over a data set."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.moved import MovedOptions
from certtrain.cli.networks import ForeignOptions, say_if_guessing
from certtrain.cli.options import (
    ModelOrNewest,
    check_targets,
    data_folder,
    network_file,
    newest_if_none,
    open_split,
)
from certtrain.cli.pictures import TakenPictures, show_pictures
from certtrain.cli.radii import file_at, verify_at_radii
from certtrain.cli.sheets import by_class, check_pictures, write_pictures
from certtrain.cli.stopping import Stopper, how_to_continue
from certtrain.cli.verify_options import (
    AttackOptions,
    CertificateOptions,
    CertificateOutput,
    LimitOptions,
    PictureOptions,
    VerificationData,
)
from certtrain.cli.workers import Ranks, ranks_of
from certtrain.formats import count_of

if TYPE_CHECKING:
    from certtrain.attack import AttackSettings
    from certtrain.certfile import Header, Writer
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier
    from certtrain.render.verification import VerifyingView
    from certtrain.verification.results import ExampleResult
    from certtrain.verification.shares import Shares
    from certtrain.verification.verify import Report


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
    file = network_file(newest_if_none(foreign.file(model)))
    foreign.check(file, certificates.eps, certificates.network)
    options = _Options(certificates, attack, data, foreign, pictures, limits, output)
    with ranks_of(limits.workers) as ranks:
        _verify(ranks, file, options)


@dataclass(frozen=True)
class _Options:
    """All options, in their groups."""

    certificates: CertificateOptions
    attack: AttackOptions
    data: VerificationData
    foreign: ForeignOptions
    pictures: PictureOptions
    limits: LimitOptions
    output: CertificateOutput

    def network(self, file: Path) -> "Classifier":
        """The network in the file."""
        eps = None if self.certificates.eps is None else self.certificates.eps[0]
        return self.foreign.open(file, eps, self.limits.device, self.data.data_dir, self.data.split)

    def arguments(self, model: "Classifier") -> dict[str, Any]:
        """The arguments of `verify` that certificate files record too."""
        from certtrain.bounds.settings import VERDICT_SETTINGS

        certificates, memory = self.certificates, self.limits.memory
        bounds = VERDICT_SETTINGS if memory is None else replace(VERDICT_SETTINGS, memory=memory)
        return {
            "eps": model.metadata.eps if certificates.eps is None else certificates.eps[0],
            "method": certificates.method,
            "network": certificates.network,
            "arithmetic": certificates.arithmetic,
            "batch_size": self.limits.batch_size,
            "bounds": bounds,
        }


def _verify(ranks: Ranks, file: Path, options: _Options) -> None:
    """Verify as one of the ranks."""
    if ranks.size > 1:
        options.pictures.check_one_process()
    ranks.take_device(options.limits.device)
    model = options.network(file)
    if options.pictures.image is None:
        _verify_images(ranks, file, model, options)
    else:
        _verify_pictures(file, model, options)


def _verify_pictures(file: Path, model: "Classifier", options: _Options) -> None:
    """Verify images of one's own."""
    arguments = options.arguments(model) | {"attack": options.attack.settings(), "limits": options.limits.limits()}
    del arguments["batch_size"]
    pictures, output = options.pictures, options.output
    taken = TakenPictures(pictures.image or (), pictures.label, pictures.invert, output.force)
    show_pictures(model, file, taken, arguments, as_json=output.as_json)


def _verify_images(ranks: Ranks, file: Path, model: "Classifier", options: _Options) -> None:
    """Verify a data set, at one radius or at several."""
    data, output = options.data, options.output
    images = open_split(model, data.split, data_folder(data.data_dir, file), data.limit)
    task = _Task(file, model, images, options.attack.settings(), options.arguments(model), output, ranks)
    if options.certificates.several:
        _at_radii(task, options.certificates.eps, options.limits)
        return
    ranks.ready()
    report = _verified(task, options.limits)
    if not ranks.leads:
        return
    _show(report, task)
    if options.foreign.reads(file):
        say_if_guessing(report, len(model.metadata.class_names))
    if report.interrupted:
        _say_stopped(report, output.out)
        raise typer.Exit(ExitCode.INTERRUPTED)


def _at_radii(task: "_Task", radii: tuple[float, ...], limits: LimitOptions) -> None:
    if task.ranks.leads:
        for eps in radii:  # now, not after hours at another radius
            task.at(eps).check_earlier_file()
    task.ranks.ready()
    verify_at_radii(
        task.model,
        task.file,
        task.images,
        radii,
        {name: value for name, value in task.arguments.items() if name != "eps"}
        | {"attack": task.attack, "limits": limits.limits()},
        out=task.output.out,
        writer=lambda eps: task.at(eps).writer(),
        shares=lambda eps: task.at(eps).shares(),
        leads=task.ranks.leads,
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
        if known:
            results = count_of(len(known), "result")
            render.note(f"{results} taken from {task.output.out} unchecked; `certtrain check` computes them again")
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
    render.show_report(report, task.file)
    for written in [*([] if output.out is None else [output.out]), *pictures]:
        render.say(f"wrote {written}")
