"""How many threads compute, and how they wait: read by OpenMP when torch is loaded, so seen from a fresh process."""

import os
import subprocess
import sys

import pytest
import torch

from certtrain.runtime.threads import SMALL, threads_for, use_threads


def waiting(**chosen: str) -> str:
    """OMP_WAIT_POLICY as a process finds it after `import certtrain`, started with those variables."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    environment = {key: value for key, value in os.environ.items() if key not in names} | chosen
    code = "import certtrain, os; print(os.environ.get('OMP_WAIT_POLICY'))"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_threads_wait_passively_unless_the_user_has_chosen():
    assert waiting() == "PASSIVE"
    assert waiting(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
    assert waiting(GOMP_SPINCOUNT="1000") == "None"


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("work", "device", "threads"), [(SMALL - 1, "cpu", 1), (SMALL, "cpu", 2), (1, "cuda", 2)], ids=str
)
def test_small_steps_have_one_thread(work: int, device: str, threads: int):
    with threads_for(work, device):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_users_number_of_threads_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with threads_for(1, "cpu"):
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_number_of_threads_that_is_asked_for_stands_for_small_and_large_work(monkeypatch: pytest.MonkeyPatch):
    use_threads(None)
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # so that it is restored after the test
    use_threads(3)
    assert (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()) == ("3", 3)
    for work in (1, SMALL):
        with threads_for(work, "cpu"):
            assert torch.get_num_threads() == 3


@pytest.mark.parametrize("words", [["verify", "none"], ["stats", "none"], ["train", "--preset", "none"]])
def test_commands_take_the_number_of_threads_before_torch_is_loaded(words: list[str]):
    code = (
        "import os, sys; from certtrain import cli; from certtrain.errors import CerttrainError\n"
        f"sys.argv = {['certtrain', *words, '--threads', '3']!r}\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    print(os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["3", "False"]
