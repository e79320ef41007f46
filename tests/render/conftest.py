"""What is printed, on a terminal of 200 columns."""

from collections.abc import Callable

import pytest


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Gives what has been printed since it was last called."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda: capsys.readouterr().out
