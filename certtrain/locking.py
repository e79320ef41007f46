"""Locks on what two processes must not write at once. A lock ends with the process that holds it, however that ends."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from certtrain.errors import CerttrainError, StorageError


@contextmanager
def locked(path: Path, taken: CerttrainError) -> Iterator[None]:
    """Hold the lock whose file is `path`, in a folder that is there, for as long as the context lasts.

    Raises `taken` if another holds it, and StorageError if the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise taken from None
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"cannot lock {path}: {error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # where a file that is open cannot be taken away, it stays
            path.unlink()
        lock.release()
