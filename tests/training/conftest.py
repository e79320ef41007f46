"""What several tests of trainings need."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def no_page() -> Iterator[None]:
    """Runs write a page without drawing it: that is tested in reports/test_report.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("certtrain.training.completion.write_report", lambda run, path: path.write_text("drawn"))
        yield
