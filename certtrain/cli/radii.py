"""`certtrain verify --eps` with several radii: accuracies against ε."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.stopping import Stopper, how_to_continue
from certtrain.errors import EpsilonError
from certtrain.spec.epsilon import exact_eps, format_eps, parse_radii

if TYPE_CHECKING:
    from collections.abc import Sequence

    from certtrain.certfile import Writer
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier
    from certtrain.render.verification import VerifyingView
    from certtrain.verification.radii import RadiusSweep
    from certtrain.verification.results import ExampleResult
    from certtrain.verification.shares import Shares


def _radii(text: str | tuple[float, ...]) -> tuple[float, ...]:
    try:
        return parse_radii(str(text))
    except EpsilonError as error:
        raise typer.BadParameter(str(error)) from error


Radii = Annotated[
    Any,
    typer.Option(
        "--eps",
        parser=_radii,
        metavar="RADII",
        help="Radius ε of the box, like 8/255 or 0.3. Several, in a list 0.1,0.2 or a range FIRST..LAST:COUNT like "
        "0.05..0.3:6, give accuracies against ε and each image's largest certified radius among them.",
    ),
]


def file_at(out: Path, eps: float) -> Path:
    """The certificate file of one of several radii: certificates-8_255.jsonl beside certificates.jsonl."""
    return out.with_name(f"{out.stem}-{exact_eps(eps).replace('/', '_')}{out.suffix}")


def verify_at_radii(
    model: "Classifier",
    file: Path,
    images: "ImageSet",
    radii: tuple[float, ...],
    options: dict[str, Any],
    *,
    out: Path | None,
    writer: "Callable[[float], AbstractContextManager[Writer | None]]",
    shares: "Callable[[float], Shares]",
    leads: bool,
    html: Path | None,
    as_json: bool,
) -> None:
    """Verify the images at these radii, and show accuracies against ε; `options` are those of `verify`.

    writer: gives the writer of the certificate file of a radius, which is `file_at(out, eps)`; None without `out`.
    shares: the share of this process at a radius. leads: whether it is the one that has all results and shows them.
    """
    from certtrain import render
    from certtrain.verification.radii import verify_radii

    with render.verifying() as view:
        stop = Stopper(None, view.stop)
        watch: dict[str, Any] = {"on_examples": view.add, "on_round": view.begin, "on_work": view.work_on}
        watch |= {"on_radius": _restart(view), "stop": lambda: stop.interrupted, "records": writer}
        found = verify_radii(model, images, radii, shares=shares, leads=leads, **options, **watch)
    if not leads:
        return
    files = [] if out is None else [str(file_at(out, report.eps)) for report in found.reports]
    if as_json:
        render.show_json({"model": str(file), **found.to_dict(), "out": files})
    elif found.radii:
        render.show_radii(found)
        for path in files:
            render.say(f"wrote {path}")
    if found.stopped is not None and not as_json:
        render.show_stopped(found.stopped)
    if html is not None and found.radii:
        _write(found, file, html, as_json=as_json)
    if found.missing:
        left = ", ".join(format_eps(eps) for eps in found.missing)
        render.note(f"stopped; these radii are missing: {left}; {how_to_continue(out)}")
        raise typer.Exit(ExitCode.INTERRUPTED)


def _restart(view: "VerifyingView") -> Any:
    def restart(eps: float, known: "Sequence[ExampleResult]") -> None:
        view.restart(known, f"ε = {format_eps(eps)}")

    return restart


def _write(found: "RadiusSweep", file: Path, html: Path, *, as_json: bool) -> None:
    from certtrain import render
    from certtrain.reports.radii import write_radii

    write_radii(found, str(file), html)
    if not as_json:
        render.say(f"wrote {html}")
