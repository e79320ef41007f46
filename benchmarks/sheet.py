"""A sheet of test images, one row for each class, in frames that show their verdicts in a certificate file.

In each row the shares of the four verdicts are those of the whole class, as nearly as the number of images allows; the
images are the first of their class and verdict. The share of certified images of each class stands beside it.

python benchmarks/sheet.py CERTIFICATES MODEL --data-dir DATA --out sheet.png
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from certtrain import load_model
from certtrain.certfile.reading import read_certificates
from certtrain.data import ImageSet
from certtrain.network.assembly import load_split
from certtrain.palette import PALETTE

COLUMNS = 20
VERDICTS = ("certified", "open", "falsified", "misclassified")


def chosen(verdicts: Sequence[str], columns: int) -> list[int]:
    """The places of `columns` of these verdicts, which come in the order of VERDICTS, in about the same shares."""
    counts = Counter(verdicts)
    exact = {verdict: columns * counts[verdict] / len(verdicts) for verdict in VERDICTS}
    shares = {verdict: int(share) for verdict, share in exact.items()}
    by_remainder = sorted(VERDICTS, key=lambda verdict: shares[verdict] - exact[verdict])
    for verdict in by_remainder[: columns - sum(shares.values())]:
        shares[verdict] += 1
    places = {name: [place for place, verdict in enumerate(verdicts) if verdict == name] for name in VERDICTS}
    return [place for name in VERDICTS for place in places[name][: shares[name]]]


def draw(images: ImageSet, verdicts: Sequence[str], out: Path) -> None:
    """Draw the sheet; `verdicts` are those of `images`, in the same order."""
    mpl.use("svg" if out.suffix == ".svg" else "agg")
    names = images.class_names
    figure, axes = plt.subplots(len(names), COLUMNS, figsize=(COLUMNS * 0.5 + 1.7, len(names) * 0.53 + 0.4))
    for label, row in enumerate(axes):
        members = [index for index, wanted in enumerate(images.labels.tolist()) if wanted == label]
        own = [verdicts[index] for index in members]
        for axis, place in zip(row, chosen(own, COLUMNS), strict=False):
            show(axis, images, members[place], own[place])
        text = f"{names[label]}  {100 * own.count('certified') / len(own):.0f} %"
        row[0].text(-0.25, 0.5, text, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
        for axis in row:
            axis.set_xticks([])
            axis.set_yticks([])
    handles = [plt.Rectangle((0, 0), 1, 1, color=PALETTE[verdict].light) for verdict in VERDICTS]
    figure.legend(handles, VERDICTS, loc="lower center", ncols=4, frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.14, right=0.995, top=0.995, bottom=0.06, wspace=0.08, hspace=0.08)
    figure.savefig(out, dpi=110)


def show(axis: plt.Axes, images: ImageSet, index: int, verdict: str) -> None:
    pixels = images.images[index].permute(1, 2, 0)
    axis.imshow(pixels.squeeze(-1).numpy(), cmap="grey", vmin=0, vmax=255)
    for spine in axis.spines.values():
        spine.set(color=PALETTE[verdict].light, linewidth=2.5)


def main() -> None:
    """Parse the arguments, read the certificates, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("certificates", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    metadata = load_model(arguments.model).metadata
    contents = read_certificates(arguments.certificates, metadata.input_shape)
    images = load_split(metadata, contents.header.data.split, arguments.data_dir)
    draw(images, [contents.records[index].verdict for index in range(len(images))], arguments.out)


if __name__ == "__main__":
    main()
