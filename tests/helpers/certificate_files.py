"""A certificate file that a test may read and spoil."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from certtrain.certfile import Checked, check, read_certificates
from certtrain.data import ImageSet
from certtrain.network.modelfile import Classifier

SHAPE = (1, 2, 2)

Lines = list[dict[str, Any]]


class Case(NamedTuple):
    """A model in its file, its data, and a certificate file about them."""

    model_file: Path
    model: Classifier
    images: ImageSet
    file: Path

    def check(self, **options: Any) -> Checked:
        return check(
            self.file, read_certificates(self.file, SHAPE), self.model_file, self.model, self.images, **options
        )


def lines_of(case: Case) -> Lines:
    return [json.loads(line) for line in case.file.read_text(encoding="utf-8").splitlines()]


def put(case: Case, lines: Lines, *, seal: bool = True) -> None:
    """Write the lines as certtrain would, with a seal that fits: as someone who knows the format can."""
    texts = [json.dumps(line, separators=(",", ":")) + "\n" for line in lines]
    if seal:
        last = {line["index"]: line["verdict"] for line in lines[1:-1]}
        counts = {name: list(last.values()).count(name) for name in lines[-1]["counts"]}
        digest = hashlib.sha256("".join(texts[:-1]).encode()).hexdigest()
        texts[-1] = json.dumps({"kind": "seal", "counts": counts, "sha256": digest}, separators=(",", ":")) + "\n"
    case.file.write_text("".join(texts), encoding="utf-8")
