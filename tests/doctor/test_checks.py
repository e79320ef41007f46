"""The checks of a machine: what passes here, what is absent, and what fails."""

import sys
from importlib import import_module

import pytest
import torch

from certtrain.data import load_images
from certtrain.doctor.checking import Absent, Check
from certtrain.doctor.checks import EXTRAS, NEEDED, all_checks
from certtrain.doctor.speed import SHAPES, step_check
from certtrain.errors import DeviceError


def check_named(name: str) -> Check:
    (found,) = [check for check in all_checks() if check.name == name]
    return found


@pytest.mark.parametrize("name", ["certtrain", *NEEDED, "processor", "bounds"])
def test_what_certtrain_needs_passes_here(name: str) -> None:
    result = check_named(name).run()
    assert (result.status, result.broken) == ("pass", False), result
    assert result.needed == (name != "processor")


@pytest.mark.parametrize(("name", "package"), [("pictures", "matplotlib"), ("ONNX", "onnxruntime")])
def test_tools_that_are_installed_work(name: str, package: str) -> None:
    pytest.importorskip(package, reason=f"the check is of {package}")
    result = check_named(name).run()
    assert result.status == "pass", result


def test_a_package_of_another_distribution_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As mlflow-skinny has the module mlflow."""
    monkeypatch.setitem(EXTRAS, "wandb", (("PIL",), "nothing"))  # the distribution pillow has it
    found = check_named("wandb").run()
    assert (found.status, found.found[:4]) == ("pass", "PIL ")


def test_every_extra_of_the_project_has_a_check() -> None:
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*EXTRAS, "onnx", "test", "dev"} == {*project["optional-dependencies"]}
    assert set(NEEDED) == {package.partition(">")[0] for package in project["dependencies"]}


@pytest.mark.parametrize("extra", list(EXTRAS))
def test_an_extra_that_is_absent_is_no_failure(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, EXTRAS[extra][0][0], None)
    result = check_named(extra).run()
    assert (result.status, result.broken) == ("absent", False)
    assert result.advice == f'pip install "certtrain[{extra}]"'


def test_a_missing_needed_package_breaks_certtrain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    result = check_named("filelock").run()
    assert (result.status, result.broken) == ("fails", True)
    assert "install it again" in result.advice


def test_wrong_bounds_break_certtrain(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = torch.zeros(1, 2), torch.ones(1, 2)
    monkeypatch.setattr(import_module("certtrain.bounds.api"), "output_bounds", lambda *args, **options: wrong)
    assert check_named("bounds").run().broken


def test_any_exception_is_a_result() -> None:
    def crash() -> str:
        raise RuntimeError("first\nsecond")

    result = Check("it", crash, "do this").run()
    assert (result.status, result.found, result.advice, result.broken) == (
        "fails",
        "RuntimeError: first",
        "do this",
        False,
    )

    def lack() -> str:
        raise Absent("not there", "get it")

    assert Check("it", lack, "", needed=True).run().status == "absent"


def test_no_compiler_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certtrain.training.compilation.has_compiler", lambda device: False)
    result = check_named("torch.compile").run()
    assert (result.status, "install a C++ compiler" in result.advice) == ("absent", True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_measured(precision: str) -> None:
    result = step_check("digits", "cpu", precision).run()
    assert result.status == "pass", result
    assert " ms on the CPU, not compiled; 1,150 steps are about " in result.found
    assert result.needed == (precision == "fp32")


def test_a_batch_that_is_too_large_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*args: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("certtrain.training.step.Stepper.run", run)
    result = step_check("digits", "cpu", "fp32").run()
    assert (result.status, "smaller train.batch_size" in result.found) == ("fails", True)


def test_the_shapes_are_those_of_the_data() -> None:
    images = load_images("digits", "train")
    assert SHAPES["digits"] == (images.input_shape, len(images.class_names), len(images))


def test_a_gpu_that_is_asked_for_and_absent_fails() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(DeviceError):
        step_check("digits", "cuda", "fp32").work()
