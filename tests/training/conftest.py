"""What several tests of trainings need."""

from collections.abc import Iterator

import pytest

from helpers.small_runs import without_pages


@pytest.fixture(scope="module")
def no_page() -> Iterator[None]:
    """Runs write a page without drawing it."""
    with without_pages():
        yield
