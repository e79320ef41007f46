"""Downloads by torchvision into certtrain's cache folder, without its output."""

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from http.client import HTTPException
from io import StringIO
from pathlib import Path

from certtrain.data.request import Request
from certtrain.errors import DataError


def download(name: str, folder: Path, fetch: Callable[[], object], request: Request) -> None:
    """Run `fetch`, which downloads the data set `name` into `folder`.

    Raises:
        DataError: the download failed.
    """
    request.report(f"downloading {name}", 0, 1)
    try:
        # torchvision writes a progress bar, but only `certtrain.render` decides what the user sees.
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            fetch()
    except (OSError, RuntimeError, HTTPException) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{name} could not be downloaded into {folder}: {reason} "
            f"If you have the data, give their folder with --data-dir."
        ) from error
    request.report(f"downloading {name}", 1, 1)
