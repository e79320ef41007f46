"""The standard output as it may be: in an encoding of few characters, full, or closed by its reader."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from certtrain.errors import StorageError

# What is written where an encoding lacks a character; "?" stands for all others.
SPELT = {
    "ε": "eps", "α": "alpha", "β": "beta", "λ": "lambda", "τ": "tau", "−": "-", "–": "-", "─": "-", "…": "...",
    "×": "x", "·": "*", "±": "+-", "≤": "<=", "≥": ">=", "²": "^2", "→": "->", "∞": "inf", "█": "#", "▒": "=", "░": ".",
}  # fmt: skip


class Output(io.TextIOWrapper):
    """The standard output, which raises StorageError if it cannot be written: so its failures differ from others'."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.stream = stream  # which would close the buffer if nothing held it

    def write(self, text: str, /) -> int:
        with self._as_storage_error():
            return super().write(text)

    def flush(self) -> None:
        with self._as_storage_error():
            super().flush()

    @contextmanager
    def _as_storage_error(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # no error: the reader has what it wants, as after `| head`
            raise
        except OSError as error:
            raise StorageError(f"cannot write to the standard output: {error.strerror or error}") from error


def drop_unwritten() -> None:
    """Discard what cannot be written: Python flushes once more when it ends, and would fail once more."""
    try:
        sys.stdout.flush()
    except (OSError, StorageError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def adapt_streams() -> None:
    """Let both streams spell what their encoding lacks; what goes to one that was closed from the start is dropped."""
    codecs.register_error("certtrain.spell", _spell)
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="certtrain.spell")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = Output(sys.stdout)


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(SPELT.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")
