"""Locks on files that two processes must not write at once. A lock ends with its process, however that ends."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from certtrain.errors import CerttrainError, StorageError, reason


@contextmanager
def locked(path: Path, taken: CerttrainError) -> Iterator[None]:
    """A context that holds the lock with the file `path`, whose folder must exist.

    Raises `taken` if another process holds the lock, and StorageError if the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise taken from None
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"cannot lock {path}: {reason(error)}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # some systems do not delete an open file; it then stays
            path.unlink()
        lock.release()


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """A context that waits for the lock with the file `path`, whose folder must exist, and holds it.

    Raises StorageError if the file cannot be made.
    """
    from filelock import FileLock

    lock = FileLock(path)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"cannot lock {path}: {reason(error)}") from error
    try:
        yield
    finally:
        lock.release()
