"""What `certtrain verify` adds about classes, and `--pictures`: sheets of test images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from certtrain.data import ImageSet
    from certtrain.network.modelfile import Classifier
    from certtrain.verification.verify import Report

PicturesFolder = Annotated[
    Path | None,
    typer.Option(
        "--pictures",
        metavar="FOLDER",
        help="Write sheets of test images into this folder: verdicts.png has images of each class in frames of the "
        "colours of their verdicts, attacks.png has clean and attacked images and the amplified perturbations.",
    ),
]


def check_pictures(folder: Path | None, force: bool) -> None:
    """Raise StorageError if the sheets cannot be written, or exist and `force` is not set."""
    from certtrain.cli.options import check_targets
    from certtrain.reports.sheets import ATTACKS_SHEET, VERDICTS_SHEET

    if folder is not None:
        check_targets(force, folder / VERDICTS_SHEET, folder / ATTACKS_SHEET)


def by_class(model: "Classifier", images: "ImageSet", report: "Report") -> dict[str, Any]:
    """The accuracies by class, and the confusion under attack, for JSON."""
    from certtrain.verification.classes import class_results
    from certtrain.verification.verify import network_of

    return class_results(network_of(model, report.network), images, report.results, report.arithmetic).to_dict()


def write_pictures(model: "Classifier", images: "ImageSet", report: "Report", folder: Path) -> list[str]:
    """Write the sheets into `folder`; gives their paths."""
    from certtrain.reports.sheets import write_sheets
    from certtrain.verification.verify import network_of

    return [str(file) for file in write_sheets(network_of(model, report.network), images, report, folder)]
