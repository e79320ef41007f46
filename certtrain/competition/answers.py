"""The competition's answer for one instance: a word, and the counterexample after "sat"."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from certtrain.storage import write_atomic

if TYPE_CHECKING:  # so that a result can be read without loading torch
    from certtrain.properties.cases import Variable
    from certtrain.properties.decide import Decision

ANSWERS = ("sat", "unsat", "unknown", "timeout")
NEARLY = 0.9  # the share of a time limit after which "unknown" means that the time was too short


def answer(found: Decision, seconds: float, time_limit: float | None) -> str:
    """The competition's word for a decision after so many seconds: as certtrain's, or "timeout"."""
    late = time_limit is not None and seconds >= NEARLY * time_limit
    return "timeout" if found.result == "unknown" and late else found.result


def counterexample(found: Decision, variables: tuple[Variable, Variable] | None = None) -> str | None:
    """The counterexample as ((X_0 v) … (Y_0 v) …), a line for each value; None if there is none.

    For `variables` of VNN-LIB 2.0, a line for each tensor with its name, type and shape, and its values below it. A
    value is the shortest decimal number that reads back as the same float64.
    """
    if found.counterexample is None or found.outputs is None:
        return None
    values = (found.counterexample.tolist(), found.outputs.tolist())
    if variables is not None:
        pairs = zip(variables, values, strict=True)
        return "".join(f"{_head(variable)}\n" + "".join(f"{value!r}\n" for value in own) for variable, own in pairs)
    named = zip("XY", values, strict=True)
    return "(" + "\n ".join(f"({name}_{i} {value!r})" for name, own in named for i, value in enumerate(own)) + ")\n"


def _head(variable: Variable) -> str:
    return f"{variable.name} {variable.type} [{','.join(map(str, variable.shape))}]"


def write_answer(path: Path, word: str, example: str | None) -> None:
    """Write the result file of an instance: the word, and after "sat" the counterexample. Raises StorageError."""
    write_atomic(path, f"{word}\n{example or ''}".encode())


def read_answer(path: Path) -> str | None:
    """The word in a result file; None if there is no such file, or no word of the competition in it."""
    try:
        word = path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        return None
    return word if word in ANSWERS else None
