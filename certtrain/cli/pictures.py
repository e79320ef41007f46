"""`certtrain verify --image`: the class of a user's own images, and what is certified about it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.options import check_targets
from certtrain.cli.stopping import Stopper

if TYPE_CHECKING:
    from certtrain.network.modelfile import Classifier


def show_pictures(
    model: "Classifier", file: Path, paths: Sequence[Path], label: str | None, options: dict[str, Any], *, as_json: bool
) -> None:
    """Verify the images in `paths`, show what is known about each, and write counterexamples beside them.

    `options` are those of `verify_pictures`, and whether files may be replaced (`force`). Raises DataError.
    """
    import torch

    from certtrain import render
    from certtrain.data.pictures import counterexample_file, list_pictures, read_picture, write_picture
    from certtrain.verification.pictures import verify_pictures

    force, names = options.pop("force"), model.metadata.class_names
    number = None if label is None else _class_number(label, names)
    files = list_pictures(paths)
    pictures = torch.stack([read_picture(path, model.metadata.input_shape) for path in files])
    targets = [counterexample_file(path) for path in files]
    check_targets(force, *targets)
    with render.verifying() as view:
        stop = Stopper(None, view.stop)
        watch: dict[str, Any] = {"on_round": view.begin, "on_work": view.work_on, "stop": lambda: stop.interrupted}
        results = verify_pictures(model, pictures, number, **options, **watch)
    rows = []
    done = len(results)  # an interrupt leaves some out
    for path, target, result in zip(files[:done], targets[:done], results, strict=True):
        written = target if result.counterexample is not None else None
        if result.counterexample is not None:
            write_picture(target, result.counterexample)
        rows.append({"image": str(path), **result.to_dict(names), "counterexample": written and str(written)})
        if not as_json:
            render.show_picture(path, result, names, written)
    if as_json:
        render.show_json({"model": str(file), "images": rows})
    if stop.interrupted:
        render.note("stopped: images may be missing, and a largest certified ε may be smaller than what is certified")
        raise typer.Exit(ExitCode.INTERRUPTED)


def _class_number(label: str, names: Sequence[str]) -> int:
    """The class of that name, or else of that number. Raises BadParameter."""
    if label in names:
        return list(names).index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    known = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    raise typer.BadParameter(
        f"{label!r} is no class of the model; its classes are {known}, or 0 to {len(names) - 1}", param_hint="--label"
    )
