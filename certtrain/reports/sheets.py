"""Sheets of test images as PNG files: verdicts by class, and clean images beside attacked ones.

Every function that draws writes a file. It raises StorageError if the file cannot be written.
"""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certtrain.palette import PALETTE
from certtrain.storage import write_atomic

if TYPE_CHECKING:  # so that a page can show sheets without torch
    from torch import Tensor, nn

    from certtrain.data import ImageSet
    from certtrain.verdicts import Verdict
    from certtrain.verification.samples import Sample
    from certtrain.verification.verify import Report

SHEETS = "pictures"  # the folder of a run's sheets
VERDICTS_SHEET, ATTACKS_SHEET = "verdicts.png", "attacks.png"
SAMPLES = 8  # for each verdict on the sheet of attacks
VERDICT_ORDER: "tuple[Verdict, ...]" = ("certified", "open", "falsified", "misclassified")
COLUMNS, MOST_CLASSES = 20, 20  # of the sheet of verdicts
LEAST_PIXELS = 48  # the width of an image on a sheet; smaller ones are enlarged by a whole factor
FRAME_PIXELS, SPACE = 4, 4  # pixels
DPI = 100
NO_CHANGE = 0.5  # of the picture of a perturbation: no change


def write_sheets(model: "nn.Module", images: "ImageSet", report: "Report", folder: Path) -> list[Path]:
    """Draw both sheets of a verification into `folder`; gives the files.

    Without an attack, and if all examples are misclassified, there is no sheet of attacks.
    """
    from certtrain.verification.samples import attacked_samples

    files = [folder / VERDICTS_SHEET]
    draw_verdicts(images, report.verdicts, files[0])
    samples = attacked_samples(model, images, report.results, report.eps, SAMPLES, report.arithmetic)
    if samples and report.attack["name"] != "none":
        files.append(folder / ATTACKS_SHEET)
        draw_attacks(samples, report.eps, images.class_names, files[1])
    return files


def draw_verdicts(images: "ImageSet", verdicts: "dict[int, Verdict]", path: Path) -> None:
    """Draw a row of images of each class, in frames of the colours of their verdicts, which are by their numbers.

    In each row the shares of the four verdicts are those of the whole class, as nearly as the number of images allows;
    the images are the first of their class and verdict. Of many classes, some are drawn, evenly spread. The share of
    certified images stands beside each row.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels.tolist()):
        if index in verdicts:
            members.setdefault(label, []).append(index)
    labels = sorted(members)[:: -(-len(members) // MOST_CLASSES) or 1]
    rows, texts = [], []
    for label in labels:
        own = [verdicts[index] for index in members[label]]
        chosen = [members[label][place] for place in chosen_places(own, COLUMNS)]
        rows.append([_framed(_picture(images.images[index]), verdicts[index]) for index in chosen])
        texts.append(f"{images.class_names[label]}  {100 * own.count('certified') / len(own):.0f} %")
    _save(_mosaic(rows, COLUMNS), path, texts)


def chosen_places(verdicts: "Sequence[Verdict]", count: int) -> list[int]:
    """The places of `count` of these verdicts, or of all, in the order of VERDICT_ORDER and in about their shares."""
    counts, count = Counter(verdicts), min(count, len(verdicts))
    exact = {verdict: count * counts[verdict] / len(verdicts) for verdict in VERDICT_ORDER}
    shares = {verdict: int(share) for verdict, share in exact.items()}
    by_remainder = sorted(VERDICT_ORDER, key=lambda verdict: shares[verdict] - exact[verdict])
    for verdict in by_remainder[: count - sum(shares.values())]:
        shares[verdict] += 1
    places = {name: [place for place, verdict in enumerate(verdicts) if verdict == name] for name in VERDICT_ORDER}
    return [place for name in VERDICT_ORDER for place in places[name][: shares[name]]]


def draw_attacks(samples: "Sequence[Sample]", eps: float, class_names: Sequence[str], path: Path) -> None:
    """Draw the samples in a group for each verdict: clean images, the same attacked, and the perturbations.

    In the picture of a perturbation grey is no change, and black and white are a change of ε in a channel; with ε = 0
    all is grey. Below each column stand the right class and, of a falsified example, the class under attack.
    """
    rows, texts, captions = [], [], []
    columns = max(sum(s.result.verdict == verdict for s in samples) for verdict in VERDICT_ORDER)
    for verdict in VERDICT_ORDER:
        group = [sample for sample in samples if sample.result.verdict == verdict]
        if not group:
            continue
        parts = zip(*[_parts(sample, eps) for sample in group], strict=True)
        rows += [[_framed(part, verdict) for part in row] for row in parts]
        texts += [f"{verdict}: clean", "attacked", "perturbation"]
        captions += [[], [], [_caption(sample, class_names) for sample in group]]
    _save(_mosaic(rows, columns), path, texts, captions)


def _parts(sample: "Sample", eps: float) -> tuple[Any, Any, Any]:
    """The three pictures of a sample."""
    from certtrain.data import to_unit

    change = sample.attacked - to_unit(sample.clean.unsqueeze(0))[0]
    amplified = (NO_CHANGE + (change * (0.5 / eps) if eps > 0 else 0 * change)).clamp(0, 1)
    return _picture(sample.clean), _picture(sample.attacked * 255), _picture(amplified * 255)


def _caption(sample: "Sample", class_names: Sequence[str]) -> str:
    right, shown = class_names[sample.result.label], class_names[sample.shown_as]
    return right if right == shown else f"{right}\n→ {shown}"


# --- pixels ----------------------------------------------------------------------------------------------


def _picture(levels: "Tensor") -> Any:
    """Levels 0 to 255 (C, H, W), with one channel or three, as an enlarged array (H, W, 3) of uint8."""
    pixels = levels.detach().cpu().float().round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    factor = -(-LEAST_PIXELS // min(pixels.shape[:2]))
    grown = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    return grown.repeat(3, axis=2) if grown.shape[2] == 1 else grown


def _framed(picture: Any, verdict: str) -> Any:
    """The picture in a frame of the verdict's colour."""
    import numpy as np

    colour = PALETTE[verdict].light
    height, width, _ = picture.shape
    framed = np.empty((height + 2 * FRAME_PIXELS, width + 2 * FRAME_PIXELS, 3), np.uint8)
    framed[:] = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    framed[FRAME_PIXELS:-FRAME_PIXELS, FRAME_PIXELS:-FRAME_PIXELS] = picture
    return framed


def _mosaic(rows: Sequence[Sequence[Any]], columns: int) -> Any:
    """The pictures, all of one size, as one array (R, columns, H, W, 3); what is missing is white."""
    import numpy as np

    height, width, _ = rows[0][0].shape
    sheet = np.full((len(rows), columns, height, width, 3), 255, np.uint8)
    for number, row in enumerate(rows):
        sheet[number, : len(row)] = np.stack(row)
    return sheet


def _save(sheet: Any, path: Path, texts: Sequence[str], captions: Sequence[Sequence[str]] = ()) -> None:
    """Write the mosaic with a text beside each row, captions below pictures, and the meaning of the frames."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, columns, height, width, _ = sheet.shape
    below = [30 if captions and captions[row] else SPACE for row in range(count)]  # pixels of space
    left, total = 9 * max(map(len, texts)) + 16, sum(below) + count * height
    size = (left + columns * (width + SPACE), total + 34)
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
    axes.axis("off")
    top = 2
    for row, text in enumerate(texts):
        axes.text(left - 8, top + height / 2, text, ha="right", va="center", fontsize=9, parse_math=False)
        for column in range(columns):
            x = left + column * (width + SPACE)
            place = (x, x + width, top + height, top)
            axes.imshow(sheet[row, column], extent=place, interpolation="none", aspect="auto")
            if captions and column < len(captions[row]):
                middle, words = x + width / 2, captions[row][column]
                axes.text(middle, top + height + 2, words, ha="center", va="top", fontsize=7, parse_math=False)
        top += height + below[row]
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    handles = [Patch(color=PALETTE[verdict].light, label=verdict) for verdict in VERDICT_ORDER]
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI)
    write_atomic(path, data.getvalue())
