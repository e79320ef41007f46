"""A user's own code: a class or function in a Python file, which is run here."""

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Any, NamedTuple

import torch

from certtrain.errors import CerttrainError
from certtrain.storage import check_source

USER_ERRORS = (Exception, SystemExit)  # all that a user's file can raise, apart from an interrupt
NOT_USER_FILES = ("<", str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))  # how their names begin


class UserCallable(NamedTuple):
    """A user's class or function, its name in messages, and the hash of its file; None if it is not from a file."""

    make: Callable[..., Any]
    title: str
    sha256: str | None


@contextmanager
def user_code() -> Iterator[None]:
    """A context for the user's code: what it prints goes to the error stream, and it has random numbers of its own."""
    with torch.random.fork_rng(devices=[]), redirect_stdout(sys.stderr):
        torch.manual_seed(0)
        yield


def callable_from(source: str | Callable[..., Any], error: type[CerttrainError]) -> UserCallable:
    """The callable that `source` names, like "my.py:MyNet", or is. Runs the file; raises `error`."""
    if not isinstance(source, str):
        return UserCallable(source, _title(source), None)
    file, _, name = source.rpartition(":")
    check_source(Path(file), error)
    content = Path(file).read_bytes()
    names = _run(Path(file), content, error)
    if name not in names:
        known = [key for key, value in names.items() if callable(value) and not key.startswith("_")]
        raise error(f"{file} has no {name!r}; it has {', '.join(known) or 'no class or function'}")
    if not callable(names[name]):
        raise error(f"{source} is not a class or function but {names[name]!r}")
    return UserCallable(names[name], source, hashlib.sha256(content).hexdigest())


def call(
    maker: UserCallable, arguments: dict[str, Any], error: type[CerttrainError], first: tuple[Any, ...] = ()
) -> Any:
    """The callable's result for its `first` arguments, which messages leave out, and these; raises `error`."""
    try:
        return maker.make(*first, **arguments)
    except USER_ERRORS as raised:
        words = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise error(f"{maker.title}({words}) raises {error_text(raised)}") from raised


def error_text(error: BaseException) -> str:
    """The error in words, and the line of the user's code that raised it."""
    text = f"{type(error).__name__}: {error}"
    files = ((frame.filename, frame.lineno) for frame in extract_tb(error.__traceback__))
    in_user_code = not isinstance(error, SyntaxError)
    lines = [(file, line) for file, line in files if in_user_code and not file.startswith(NOT_USER_FILES)]
    return f"{text} ({lines[-1][0]}, line {lines[-1][1]})" if lines else text


def _title(make: Callable[..., Any]) -> str:
    try:
        return str(make.__qualname__)
    except AttributeError:
        return type(make).__name__


class _Loader(SourceLoader):
    """Runs bytes that were read before, so that the code that runs is the code that was hashed, without a cache."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content

    def get_filename(self, fullname: str) -> str:
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        return self.content


def _run(file: Path, content: bytes, error: type[CerttrainError]) -> dict[str, Any]:
    """The names that a Python file defines. It may import modules from its own folder."""
    name = f"certtrain_source_{file.stem}"
    spec = spec_from_file_location(name, file, loader=_Loader(file, content))
    assert spec is not None  # since there is a loader
    assert spec.loader is not None
    sys.modules[name] = code = module_from_spec(spec)
    sys.path.insert(0, str(file.parent.absolute()))
    try:
        spec.loader.exec_module(code)
    except USER_ERRORS as raised:
        raise error(f"{file} cannot be run: {error_text(raised)}") from raised
    return vars(code)
