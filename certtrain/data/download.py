"""Downloads by torchvision, kept quiet, into certtrain's cache folder."""

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from http.client import HTTPException
from io import StringIO
from pathlib import Path

from certtrain.data.request import Request
from certtrain.errors import DataError


def download(name: str, folder: Path, fetch: Callable[[], object], request: Request) -> None:
    """Run `fetch`, which puts data set `name` under `folder`.

    Raises:
        DataError: it failed.
    """
    request.report(f"downloading {name}", 0, 1)
    try:
        # torchvision writes a progress bar; what a person sees is not this package's to decide.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            fetch()
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} could not be downloaded into {folder}: {reason} "
            f"If you have the data, name their folder with --data-dir."
        ) from error
    request.report(f"downloading {name}", 1, 1)
