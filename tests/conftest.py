"""One thread for all tests: their tensors are small."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("helpers")  # its assertions say as much as those of a test
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """None but this process for files that are named, done before others would have begun; else one for each core."""
    return 0 if all(Path(name.partition("::")[0]).is_file() for name in config.args) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, in their order, so that no process is left alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that CERTTRAIN_TEST_DATA names."""
    folder = os.environ.get("CERTTRAIN_TEST_DATA")
    if folder is None:
        pytest.skip("CERTTRAIN_TEST_DATA does not name a folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def real_cifar10(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the real CIFAR-10, unpacked if need be."""
    if (real_data / "cifar10").is_dir():
        return real_data
    archives = [real_data / f"cifar10-{part}.zip" for part in (1, 2)]
    if not all(archive.is_file() for archive in archives):
        pytest.skip("CERTTRAIN_TEST_DATA holds neither cifar10/ nor cifar10-1.zip and cifar10-2.zip")
    folder = tmp_path_factory.mktemp("cifar10")
    for archive in archives:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    return folder
