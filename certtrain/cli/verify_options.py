"""The options of `verify`, in groups: certificates, attack, data, an image of one's own, limits and output."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.options import (
    NO_TIMEOUT,
    AsJson,
    AttackSeed,
    DataDir,
    DeviceOption,
    Force,
    Limit,
    Memory,
    PgdRestarts,
    SplitOption,
    Threads,
    example_limit,
    given,
    seconds,
    seconds_or_none,
)
from certtrain.cli.radii import Radii, file_at
from certtrain.cli.sheets import PicturesFolder
from certtrain.runtime.deadline import DEFAULT_TIMEOUT
from certtrain.spec.choices import ArithmeticName, AttackName, MethodName, NetworkName

if TYPE_CHECKING:
    from certtrain.attack import AttackSettings
    from certtrain.verification.cascade import Limits

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
