"""One thread for all tests: their tensors are small."""

import gc
import os
from pathlib import Path

import pytest
import torch

os.environ.pop("COLUMNS", None)
# A console that is made while COLUMNS is set keeps that width; so it is made here, before a test sets its own.
import certtrain.render.console  # noqa: F401

pytest.register_assert_rewrite("helpers")  # its assertions say as much as those of a test
# Of the programs that tests start: one thread, and certtrain compiled once, not by each of them.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """None but this process for files that are named, done before others would have begun; else one for each core."""
    return 0 if all(Path(name.partition("::")[0]).is_file() for name in config.args) else None


def pytest_collection_finish() -> None:
    """Let Python look for garbage rarely, and never in what was imported, half a million objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, in their order, so that no process is left alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
