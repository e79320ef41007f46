"""The confusion of classes under attack, for a page: the whole matrix, or of many classes the most frequent pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

from certtrain.reports.pages import Table

MOST_IN_MATRIX = 20  # of a matrix
MOST_PAIRS = 20


@dataclass(frozen=True)
class Confusion:
    """The matrix: for each right class its name, and for each class the number of examples and their share of the row.

    pairs: in place of the rows of a large matrix, the most frequent pairs of different classes.
    """

    class_names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    pairs: Table | None = None

    @classmethod
    def of(cls, class_names: Sequence[str], counts: Sequence[Sequence[int]]) -> "Confusion":
        """From the counts by right class and by class under attack."""
        names = tuple(class_names)
        if len(names) > MOST_IN_MATRIX:
            return cls(names, (), _pairs(names, counts))
        rows = zip(names, counts, strict=True)
        return cls(names, tuple((name, _shares(row)) for name, row in rows))


def _shares(row: Sequence[int]) -> tuple[tuple[int, float], ...]:
    total = sum(row)
    return tuple((count, count / total if total else 0.0) for count in row)


def _pairs(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    found = [(count, k, j) for k, row in enumerate(counts) for j, count in enumerate(row) if k != j and count]
    best = sorted(found, key=lambda pair: (-pair[0], pair[1:]))[:MOST_PAIRS]
    rows = [(names[k], names[j], count) for count, k, j in best]
    return Table(("class", "taken for", "examples"), rows, "llr")
