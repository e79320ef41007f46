"""Draw the live view of a training as an SVG, from the metrics of a run.

COLUMNS=120 LINES=40 python docs/picture.py RUN --epoch 82 --out docs/cifar10/training.svg
"""

import argparse
import io
from pathlib import Path

from certtrain.render.console import out
from certtrain.render.training_live import LiveView
from certtrain.runs.history import read_run
from certtrain.training.events import EpochDone, Started, StepDone


def main() -> None:
    """Parse the arguments, show the view as it was at the end of the epoch, and write what it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    run = read_run(arguments.run)
    record = run.epochs[arguments.epoch - 1]
    per_epoch, preset = run.epochs[0].step, run.preset
    out.file, out.record = io.StringIO(), True
    view = LiveView()
    steps = per_epoch * preset.train.epochs
    view.started = Started(preset, arguments.run, "cuda", 0, 0, per_epoch, 0, steps)
    view(EpochDone(record))
    view(
        StepDone(
            record.step, record.epoch, record.eps, record.measured["learning_rate"], record.measured, record.layers
        )
    )
    out.print(view._panel(view.step))
    title = f"certtrain train --preset {preset.name}"
    arguments.out.write_text(out.export_svg(title=title), encoding="utf-8")


if __name__ == "__main__":
    main()
