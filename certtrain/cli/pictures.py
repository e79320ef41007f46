"""`certtrain verify --image`: the class of a user's own images, and what is certified about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from certtrain.cli.exit_codes import ExitCode
from certtrain.cli.groups import Subcommand
from certtrain.cli.options import check_targets
from certtrain.cli.stopping import Stopper

if TYPE_CHECKING:
    from certtrain.data.pictures import FittedPicture
    from certtrain.network.modelfile import Classifier
    from certtrain.verification.pictures import PictureResult


class ImageCommand(Subcommand):
    """A command whose --image takes several words, as a shell makes them of *.png."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _each_with_option(args))


def _each_with_option(words: Sequence[str], option: str = "--image") -> list[str]:
    """The command line with the option before each of the images that follow it, so that each has one of its own."""
    spread = list[str]()
    for word in words:
        follows = spread[-2:-1] == [option]
        spread += [option, word] if follows and _is_for_image(Path(word)) else [word]
    return spread


def _is_for_image(path: Path) -> bool:
    """Whether a word without an option is an image, by its name, or a folder without a run; else it is the model."""
    if path.is_dir():
        return not (path / "preset.json").exists()
    return (guess_type(path.name)[0] or "").startswith("image/")


@dataclass(frozen=True)
class TakenPictures:
    """The images in `paths`, all of the class `label`, or of the predicted ones for None, and how they are read.

    force: whether files may be replaced that certtrain did not write.
    """

    paths: Sequence[Path]
    label: str | None
    invert: bool
    force: bool


def show_pictures(
    model: "Classifier", file: Path, taken: TakenPictures, options: dict[str, Any], *, as_json: bool
) -> None:
    """Verify images, show what is known about each and about all, and write counterexamples beside them.

    `options` are those of `verify_pictures`. Raises DataError, and StorageError for a file that must not be replaced.
    """
    import torch

    from certtrain import render
    from certtrain.data.pictures import list_pictures, read_picture
    from certtrain.verification.pictures import summary_of, verify_pictures

    names = model.metadata.class_names
    number = None if taken.label is None else _class_number(taken.label, names)
    files = list_pictures(taken.paths)
    pictures = [read_picture(path, model.metadata.input_shape, invert=taken.invert) for path in files]
    pictures = [_with_hint(picture, model.metadata.dataset, taken) for picture in pictures]
    foreign = _foreign_files(files, taken.force)
    with render.verifying(images=[path.name for path in files]) as view:
        stop = Stopper(None, view.stop)
        watch: dict[str, Any] = {"on_round": view.begin, "on_work": view.work_on, "on_examples": view.add}
        pixels = torch.stack([picture.pixels for picture in pictures])
        results = verify_pictures(model, pixels, number, stop=lambda: stop.interrupted, **options, **watch)
    reached = len(results)  # an interrupt leaves some out
    done = zip(files[:reached], pictures[:reached], results, strict=True)
    rows = [_shown(path, picture, result, names, foreign, quiet=as_json) for path, picture, result in done]
    if as_json:
        summary = summary_of(results)
        render.show_json({"model": str(file), "images": rows, "summary": summary, "label_given": number is not None})
    else:
        render.show_pictures_summary(results, labelled=number is not None)
    if stop.interrupted:
        render.note("stopped: images may be missing, and a largest certified ε may be smaller than what is certified")
        raise typer.Exit(ExitCode.INTERRUPTED)


def _with_hint(picture: "FittedPicture", dataset: str, taken: TakenPictures) -> "FittedPicture":
    """The image with a hint if it is probably dark on bright, where the model's data are not."""
    from certtrain.data.pictures import is_bright_where_data_are_dark

    if taken.invert or not is_bright_where_data_are_dark(picture.pixels, dataset):
        return picture
    hint = f"its background is bright, but the images of {dataset} are white on black: --invert swaps black and white"
    return picture._replace(hints=(hint,))


def _foreign_files(files: Sequence[Path], force: bool) -> set[Path]:
    """The files in the place of a counterexample that stay, since certtrain did not write them; none with `force`.

    Raises StorageError if a counterexample cannot be written.
    """
    from certtrain.data.counterexamples import counterexample_file, is_own

    targets = [counterexample_file(path) for path in files]
    check_targets(True, *targets)
    return set() if force else {target for target in targets if target.exists() and not is_own(target)}


def _shown(
    path: Path,
    picture: "FittedPicture",
    result: "PictureResult",
    names: Sequence[str],
    foreign: set[Path],
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Write the counterexample of an image, and show what is known about it. Returns the same for JSON."""
    from certtrain import render
    from certtrain.data.counterexamples import counterexample_file, is_own
    from certtrain.data.pictures import write_picture

    written, target = None, counterexample_file(path)
    if result.counterexample is not None and target in foreign:
        render.note(f"{target} is not certtrain's and stays; --force writes the counterexample there")
    elif result.counterexample is not None:
        written = target
        write_picture(written, result.counterexample)
    elif is_own(target):
        render.note(f"{target} is from an earlier verification")
    if not quiet:
        render.show_picture(path, (*picture.changes, *picture.hints), result, names, written)
    about = {"changes": list(picture.changes), "hints": list(picture.hints), **result.to_dict(names)}
    return {"image": str(path), **about, "counterexample": written and str(written)}


def _class_number(label: str, names: Sequence[str]) -> int:
    """The class of that name, or else of that number. Raises BadParameter."""
    if label in names:
        return list(names).index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    known = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    numbers = "" if list(names) == [str(number) for number in range(len(names))] else f", or 0 to {len(names) - 1}"
    raise typer.BadParameter(
        f"{label!r} is no class of the model; its classes are {known}{numbers}", param_hint="--label"
    )
