"""The competition's lists of instances: a network, a property and a time limit in each line."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from certtrain.errors import BenchmarkError
from certtrain.interchange.packed import is_packed, present

ExpectedVerdict = Literal["sat", "unsat"]
EXPECTED_WORDS: dict[str, ExpectedVerdict] = {"sat": "sat", "violated": "sat", "unsat": "unsat", "holds": "unsat"}
VERSION = re.compile(r"\d+\.\d+")  # of VNN-LIB: a folder between a benchmark's own and its list


class Key(NamedTuple):
    """What an instance is known by: its category, and both files as its list names them."""

    category: str
    network: str
    property: str


@dataclass(frozen=True)
class Instance:
    """A network and a property of it. `folder` is that of the list; time_limit: seconds, None for no limit."""

    key: Key
    folder: Path
    time_limit: float | None
    expected: ExpectedVerdict | None = None

    @property
    def network(self) -> Path | None:
        """The network's file; None if it is absent."""
        return present(self.folder / self.key.network)

    @property
    def property(self) -> Path | None:
        """The property's file; None if it is absent."""
        return present(self.folder / self.key.property)


def read_instances(path: Path) -> list[Instance]:
    """The instances in a list without a header: onnx,vnnlib,timeout in each line, paths relative to the list's folder.

    The timeout, in seconds, may be missing, and so may a fourth column, the expected verdict: sat, unsat or nothing.
    The category is the name of the list's folder. An instance that is listed again is dropped. Raises BenchmarkError.
    """
    folder = path.resolve().parent
    category = folder.parent.name if VERSION.fullmatch(folder.name) else folder.name
    found: dict[Key, Instance] = {}
    for number, row in _rows(path):
        try:
            instance = _instance(row, folder, category)
        except ValueError as error:
            raise BenchmarkError(f"{path}, line {number}: {error}") from error
        found.setdefault(instance.key, instance)
    if not found:
        raise BenchmarkError(f"{path} lists no instances; its lines are onnx,vnnlib,timeout")
    return list(found.values())


def limited(instances: Iterable[Instance], most: float | None) -> list[Instance]:
    """The instances with at most `most` seconds each; None leaves their limits as they are."""
    return [
        each if most is None else replace(each, time_limit=min(most, each.time_limit or most)) for each in instances
    ]


def read_expected(path: Path) -> list[tuple[Key, ExpectedVerdict]]:
    """The instances that a results file of the competition says are sat or unsat.

    Its lines are category,onnx,vnnlib,prepare time,result,run time; those of 2021 lack the time to prepare.
    Raises BenchmarkError.
    """
    found = []
    for number, row in _rows(path):
        if len(row) not in (5, 6):
            raise BenchmarkError(f"{path}, line {number}: a line is category,onnx,vnnlib,prepare time,result,run time")
        if verdict := EXPECTED_WORDS.get(row[-2].strip().lower()):
            found.append((Key(*(part.strip() for part in row[:3])), verdict))
    return found


def with_expected(instances: Iterable[Instance], known: Sequence[tuple[Key, ExpectedVerdict]]) -> list[Instance]:
    """The instances with the verdicts that are `known` of them.

    The paths of the other list may begin with more folders. A verdict from the same category goes before those of
    other ones; where several differ, none is expected.
    """
    return [_expecting(each, known) for each in instances]


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """The lines with anything in them, with their numbers."""
    try:
        lines = csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        return [(lines.line_num, row) for row in lines if any(part.strip() for part in row)]
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from error


def _instance(row: Sequence[str], folder: Path, category: str) -> Instance:
    """The instance in one line. Raises ValueError."""
    if not 2 <= len(row) <= 4:
        raise ValueError("a line is onnx,vnnlib,timeout")
    network, about, limit, expected, *_ = (*(part.strip() for part in row), "", "")
    if network.startswith("["):
        raise ValueError("it is about several networks; properties of one network are decided")
    if not network or not about:
        raise ValueError("a line names a network and a property")
    if expected and expected not in EXPECTED_WORDS:
        raise ValueError(f"the expected verdict {expected!r} is neither sat nor unsat")
    return Instance(Key(category, network, about), folder, _limit(limit), EXPECTED_WORDS.get(expected))


def _limit(text: str) -> float | None:
    try:
        limit = float(text or 1)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise ValueError(f"the timeout {text!r} is not a number of seconds above 0")
    return limit if text else None


def _expecting(instance: Instance, known: Sequence[tuple[Key, ExpectedVerdict]]) -> Instance:
    own = _plain(instance.key.network), _plain(instance.key.property)
    same = [
        (key.category, verdict) for key, verdict in known if _ends(key.network, own[0]) and _ends(key.property, own[1])
    ]
    nearest = [verdict for category, verdict in same if category == instance.key.category]
    verdicts = set(nearest or [verdict for _, verdict in same])
    return replace(instance, expected=verdicts.pop()) if len(verdicts) == 1 else instance


def _plain(name: str) -> tuple[str, ...]:
    """The parts of a path, without .gz."""
    path = PurePosixPath(name.replace("\\", "/"))
    return (path.with_suffix("") if is_packed(Path(name)) else path).parts


def _ends(name: str, last: tuple[str, ...]) -> bool:
    return _plain(name)[-len(last) :] == last
