"""Other processes, forked from one that has loaded torch and run nothing yet."""

from typing import Any

import torch.multiprocessing

METHOD = "forkserver"


def context() -> Any:
    """That of multiprocessing, whose processes share one import of torch."""
    found = torch.multiprocessing.get_context(METHOD)
    found.set_forkserver_preload(["certtrain.training.api", "pytest"])
    return found
