"""The standard output, whose encoding may lack characters, whose disk may be full, and whose reader may be gone."""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from certtrain.errors import StorageError

# Written in place of a character that the encoding lacks; any other such character becomes "?".
REPLACEMENTS = {
    "ε": "eps", "α": "alpha", "β": "beta", "λ": "lambda", "τ": "tau", "−": "-", "–": "-", "─": "-", "…": "...",
    "×": "x", "·": "*", "±": "+-", "≤": "<=", "≥": ">=", "²": "^2", "→": "->", "∞": "inf", "█": "#", "▒": "=", "░": ".",
    "µ": "u",
}  # fmt: skip


class Output(io.TextIOWrapper):
    """The standard output. It raises StorageError if it cannot be written, unlike other failures of the system."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.stream = stream  # keep a reference: without one, the old stream would close the buffer

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
        except BrokenPipeError:  # no error: the reader has read enough, as after `| head`
            raise
        except OSError as error:
            raise StorageError(f"cannot write to the standard output: {error.strerror or error}") from error


def drop_unwritten() -> None:
    """Discard output that cannot be written: Python flushes again at exit, and would fail again."""
    try:
        sys.stdout.flush()
    except (OSError, StorageError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def adapt_streams() -> None:
    """Make both streams replace characters that their encoding lacks, and discard output to a closed stream."""
    codecs.register_error("certtrain.replace", _replacement)
    sys.stdout, sys.stderr = sys.stdout or _null_stream(), sys.stderr or _null_stream()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="certtrain.replace")
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = Output(sys.stdout)


def _replacement(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(REPLACEMENTS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def _null_stream() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")
