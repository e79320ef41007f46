"""TinyImageNet, as unpacked from its archive or rearranged as an image folder."""

from pathlib import Path

from certtrain.data.folders import read_listing
from certtrain.data.images import ImageSet
from certtrain.data.listing import Listing, check_same_classes, class_names, hidden, list_folder
from certtrain.data.request import Request, first_folder
from certtrain.errors import DataError

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_ADVICE = f"Unpack {_URL} and give the folder with --data-dir."
_ANNOTATIONS = "val_annotations.txt"
_BOXES = (".txt",)  # files with bounding boxes of objects, beside the images of each class


def load_tinyimagenet(request: Request) -> ImageSet:
    """TinyImageNet: 100,000 and 10,000 colour images of 64x64 pixels in 200 classes, sorted by wnid.

    The test split is the val part of the archive, since its test part has no labels. `data_dir`
    is the unpacked folder or its parent.

    Raises:
        DataError: the data are missing or damaged.
    """
    if request.data_dir is None:
        raise DataError(f"tinyimagenet is not downloaded automatically. {_ADVICE}")
    root = _root(request.data_dir)
    classes = class_names(root / "train")
    listing = list_folder(root / "train", beside=_BOXES) if request.split == "train" else _list_test(root, classes)
    return read_listing("tinyimagenet", listing, 3, request)


def _root(data_dir: Path) -> Path:
    candidates = [data_dir, data_dir / "tiny-imagenet-200", data_dir / "tinyimagenet"]
    try:
        return first_folder(candidates, "tinyimagenet", "train")
    except DataError as error:
        raise DataError(f"{error} {_ADVICE}") from error


def _list_test(root: Path, classes: tuple[str, ...]) -> Listing:
    folder = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if folder is None:
        raise DataError(f"tinyimagenet's test images not found: looked for val and test in {root}. {_ADVICE}")
    # Rearranged copies often keep the annotations, but not the folder of images.
    if (folder / "images").is_dir() and (folder / _ANNOTATIONS).is_file():
        return _list_annotated(folder, classes)
    check_same_classes(classes, folder)
    return list_folder(folder, beside=_BOXES)


def _list_annotated(folder: Path, classes: tuple[str, ...]) -> Listing:
    labels = _read_annotations(folder / _ANNOTATIONS, classes)
    present = {path.name for path in (folder / "images").iterdir() if not hidden(path.name)}
    if present != labels.keys():
        raise DataError(
            f"{folder}: images and {_ANNOTATIONS} disagree, first about {min(present ^ labels.keys())}. {_ADVICE}"
        )
    return Listing(folder / "images", tuple(labels), tuple(labels.values()), classes)


def _read_annotations(path: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """The label of each file name, in the file's order; a line has name, wnid and a box, separated by tabs."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels = {}
    for position, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in numbers:
            raise DataError(f"{path}, line {position}: {wnid!r} is not one of the {len(classes)} classes.")
        labels[name] = numbers[wnid]
    return labels
