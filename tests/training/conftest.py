"""What several tests of trainings need."""

from collections.abc import Iterator

import pytest

from helpers.small_runs import short_runs


@pytest.fixture(scope="module")
def short() -> Iterator[None]:
    """Runs are short where nothing is asked of it: see `short_runs`."""
    with short_runs():
        yield
