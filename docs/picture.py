"""Draw the pictures of the README: the live view of a training, and a report in a browser.

COLUMNS=120 LINES=40 python docs/picture.py view RUN --epoch 82 --out docs/cifar10/training.svg
python docs/picture.py page docs/cifar10/report.html --out docs/cifar10/report.png

Without RUN, the preset digits is trained for the view. A page is drawn by Chromium, and its picture holds the page's
hash, so that a test sees when the page has changed since.
"""

import argparse
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from certtrain.render.console import out
from certtrain.render.sessions import train
from certtrain.render.training_live import LiveView
from certtrain.runs.history import read_run
from certtrain.training.events import EpochDone, Started, StepDone

BROWSERS = "chromium", "chromium-browser", "google-chrome"
SIZE = 1120, 1345
SOURCE = "Source"  # PNG's own key for where a picture comes from
# What the picture leaves out of a page: assumptions, settings and explanations.
SHORTENED = """<style>
main ul, main > p:not(.legend), .facts, details, .tiles ~ .bar + .legend + .wide, h2:nth-of-type(2) { display: none }
body { margin-top: 0 }
</style>"""


def main() -> None:
    """Parse the arguments, and draw what they ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    view = kinds.add_parser("view", help="the live view of a training, as SVG")
    view.add_argument("run", type=Path, nargs="?")
    view.add_argument("--epoch", type=int, help="the last one if not given")
    view.add_argument("--out", type=Path, required=True)
    view.set_defaults(draw=draw_view)
    page = kinds.add_parser("page", help="a page, as PNG")
    page.add_argument("page", type=Path)
    page.add_argument("--out", type=Path, required=True)
    page.set_defaults(draw=draw_page)
    arguments = parser.parse_args()
    arguments.draw(arguments)


def draw_view(arguments: argparse.Namespace) -> None:
    """Draw the live view of a run, or of one that is made for it, as it was at the end of an epoch."""
    if arguments.run is not None:
        arguments.out.write_text(view_of(arguments.run, arguments.epoch), encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        train("digits", Path(folder) / "run", progress=False)
        arguments.out.write_text(view_of(Path(folder) / "run", arguments.epoch), encoding="utf-8")


def view_of(folder: Path, epoch: int | None = None) -> str:
    """The live view of the run in the folder, as it was at the end of that epoch, as SVG."""
    run = read_run(folder)
    record = run.epochs[-1 if epoch is None else epoch - 1]
    per_epoch, preset = run.epochs[0].step, run.preset
    out.file, out.record = io.StringIO(), True
    view = LiveView()
    steps = per_epoch * preset.train.epochs
    view.started = Started(preset, folder, "cuda", 0, 0, per_epoch, 0, steps)
    view(EpochDone(record))
    step = StepDone(
        record.step, record.epoch, record.eps, record.measured["learning_rate"], record.measured, record.layers
    )
    view(step)
    out.print(view._panel(step))
    return out.export_svg(title=f"certtrain train --preset {preset.name}")


def draw_page(arguments: argparse.Namespace) -> None:
    """Draw the page as a browser shows it, without its settings and explanations, and with the page's hash."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"there is no browser to draw the page with; install one of {', '.join(BROWSERS)}")
    with tempfile.TemporaryDirectory() as folder:
        short, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        text = arguments.page.read_text(encoding="utf-8")
        short.write_text(text.replace("</head>", f"{SHORTENED}</head>"), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE[0]},{SIZE[1]}"]
        subprocess.run([browser, *options, f"--screenshot={shot}", short.as_uri()], check=True, capture_output=True)
        about = PngInfo()
        about.add_text(SOURCE, hash_of(arguments.page))
        with Image.open(shot) as image:
            image.convert("RGB").quantize(128).save(arguments.out, pnginfo=about, optimize=True)


def hash_of(page: Path) -> str:
    """The SHA-256 of a page."""
    return hashlib.sha256(page.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
