"""What is built and installed holds the whole package."""

import subprocess
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for path in sorted((ROOT / "certtrain").rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def test_no_file_of_the_package_is_ignored():
    # hatchling leaves out of a wheel whatever .gitignore names, whether git has it or not.
    command = ["git", "check-ignore", "--no-index", "--stdin", "--verbose"]
    names = "".join(f"{path.relative_to(ROOT)}\n" for path in [*FILES, *(ROOT / "presets").iterdir()])
    found = subprocess.run(command, cwd=ROOT, input=names, capture_output=True, text=True)
    if found.returncode == 128:
        pytest.skip(f"no checkout of git: {found.stderr}")
    assert (found.stdout, found.returncode) == ("", 1)


def test_a_wheel_holds_every_module(tmp_path: Path):
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds wheels, is not installed")
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as packed:
        held = set(packed.namelist())
    assert {path.relative_to(ROOT).as_posix() for path in FILES} <= held
    assert {f"certtrain/_presets/{path.name}" for path in (ROOT / "presets").iterdir()} <= held
