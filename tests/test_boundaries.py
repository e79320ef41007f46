"""What may import what: the engine knows nothing of the terminal, and `import certtrain` is light."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import certtrain

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "certtrain").rglob("*.py"))
SURFACE = {"cli", "render", "__main__"}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_surface(file: Path) -> bool:
    return file.relative_to(ROOT / "certtrain").parts[0].removesuffix(".py") in SURFACE


# Each imports from those before it, and from what stands outside of all, which is free to be imported anywhere.
PACKAGES = (
    "spec", "runtime", "data", "bounds", "attack", "branching", "network", "properties", "verification", "certfile",
    "runs", "diagnostics", "interchange", "competition", "reports", "training", "tuning", "doctor", "render", "cli",
)  # fmt: skip
ENGINE = [module_name(file) for file in FILES if not is_surface(file)]


def loaded_after(code: str) -> set[str]:
    """The top-level packages that a fresh Python has loaded once it has run `code`."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def imported_by(file: Path) -> set[str]:
    """The top-level packages named by all import statements of a file, nested ones too."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


def test_the_engine_is_found():
    assert {"certtrain", "certtrain.training.trainer", "certtrain.bounds.interval", "certtrain.data.load"} <= set(
        ENGINE
    )


def test_the_engine_loads_neither_rich_nor_typer():
    loaded = loaded_after("\n".join(f"import {name}" for name in ENGINE))
    assert "torch" in loaded
    assert not loaded & {"rich", "typer", "click", "matplotlib", "optuna", "tensorboard"}


LIGHT = [
    "certtrain",
    "certtrain.spec.architecture",
    "certtrain.spec.layers",
    "certtrain.spec.shapes",
    "certtrain.spec.preset",
    "certtrain.reports.comparison",
    "certtrain.reports.report",
    "certtrain.spec.explained",
    "certtrain.doctor.checks",
    "certtrain.reports.tuning",
    "certtrain.tuning.space",
    "certtrain.errors",
    "certtrain.spec.schedule",
    "certtrain.storage",
    "certtrain.runs.runfiles",
    "certtrain.runs.epoch",
    "certtrain.diagnostics.epochs",
    "certtrain.diagnostics.findings",
    "certtrain.palette",
]


def test_light_modules_load_no_torch():
    loaded = loaded_after("\n".join(f"import {module}" for module in LIGHT))
    assert "certtrain" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "rich", "typer"}


ARGUMENTS = [
    ("--help",),
    ("--version",),
    ("train", "--help"),
    ("train", "--epochs", "none"),
    ("train",),
    ("train", "--preset", "none"),
    ("train", "--preset", "digits", "--set", "train.epochs=0"),
    ("train", "--preset", "digits", "--out", "tests"),
    ("train", "--preset", "digits", "--set", "model={name='module', source='none.py:Net'}"),
    ("train", "--resume", "none"),
    ("train", "--preset", "digits", "--from", "none"),
    ("verify", "none"),
    ("verify", "tests"),
    ("verify", "pyproject.toml", "--check", "none"),
    ("verify", "net.onnx", "--vnnlib", "none"),
    ("verify", "pyproject.toml", "--method", "none"),
    ("check", "--help"),
    ("check", "none", "pyproject.toml"),
    ("check", "pyproject.toml", "none"),
    ("check", "pyproject.toml"),
    ("check", "model.safetensors", "certificates.jsonl"),
    ("decide", "--help"),
    ("decide", "none", "none"),
    ("decide", "pyproject.toml", "none"),
    ("decide", "pyproject.toml", "pyproject.toml", "--method", "crown"),
    ("decide", "property.vnnlib", "net.onnx"),
    ("bench", "--help"),
    ("bench", "none"),
    ("bench", "pyproject.toml"),
    ("stats", "none", "--eps", "2"),
    ("compare", "none"),
    ("presets", "none"),
    ("tune", "--help"),
    ("tune", "digits", "--space", "none"),
    ("tune", "digits", "--space", "pyproject.toml"),
    ("doctor", "--help"),
    ("doctor", "--preset", "none"),
    ("stats", "none"),
    ("stats", "tests", "--by-epoch"),
    ("stats", "one", "two", "--by-epoch"),
    ("export", "none"),
    ("init", "--preset", "digits", "--out", "pyproject.toml"),
    ("init", "--preset", "digits", "--compare", "--out", "pyproject.toml"),
    ("init", "--preset", "digits", "--sweep-depth", "4"),
    ("train", "--preset", "mnist-cpu", "--data-dir", "none"),
    ("init", "--preset", "mnist-cpu", "--data-dir", "none"),
]
ANSWER_ALL = """
import json, sys
from certtrain.cli import main
found, heavy = [], {"torch", "torchvision", "numpy"}
for words in json.loads(sys.argv[1]):
    code, sys.argv = "none", ["certtrain", *words]
    try:
        main()
    except SystemExit as end:
        code = end.code
    found.append((code, sorted(heavy & sys.modules.keys())))
    heavy -= sys.modules.keys()  # that of the first line is enough
print()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def answers() -> dict[tuple[str, ...], tuple[int | str | None, list[str]]]:
    """The exit code for each line of arguments, and what it loads that it should not; one process takes them all."""
    command = [sys.executable, "-c", ANSWER_ALL, json.dumps(ARGUMENTS)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout.splitlines()[-1])
    return {words: tuple(answer) for words, answer in zip(ARGUMENTS, found, strict=True)}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=" ".join)
def test_help_and_wrong_arguments_are_answered_without_torch(
    arguments: tuple[str, ...], answers: dict[tuple[str, ...], tuple[int | str | None, list[str]]]
):
    code, loaded = answers[arguments]
    assert code in ((None, 0) if arguments[-1] in ("--help", "--version") else (1, 2))
    assert not loaded


def test_an_eager_training_step_loads_no_compiler():
    code = """
import torch
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.preset import load_preset
from certtrain.training.step import Stepper
for optimizer in ("adam", "adamw", "radam", "sgd"):
    preset = load_preset("digits", {"train.optimizer": optimizer, "train.l1": 1e-5})
    network = build_model(preset.model, InputSpec((1, 8, 8), 10, (0.5,), (0.25,)))
    Stepper(preset, network, 10).run(0, torch.rand(4, 1, 8, 8), torch.arange(4))
import sys
if "torch._dynamo" in sys.modules:
    sys.exit("torch._dynamo is loaded")
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_eager_training_and_its_verification_load_no_compiler(tmp_path: Path):
    code = f"""
import sys
from certtrain import load_model, load_preset, train, verify
from certtrain.data import load_images
quick = {{"train.epochs": 1, "eps": {{"max": 0.02, "start": 1, "length": 0}}}}
quick["model"] = {{"name": "mlp", "hidden": [8]}}
report = train(load_preset("digits", quick), {str(tmp_path / "out")!r})
assert report.certified and report.falsified
verify(load_model({str(tmp_path / "out")!r}), load_images("digits", "test").take(60), 0.05, method="complete")
if "torch._dynamo" in sys.modules:
    sys.exit("torch._dynamo is loaded")
"""
    assert "torch" in loaded_after(code)


@pytest.mark.parametrize(("package", "home"), [("typer", "certtrain.cli"), ("rich", "certtrain.render")])
def test_only_one_place_imports_the_terminals_packages(package: str, home: str):
    found = [module_name(file) for file in FILES if package in imported_by(file)]
    assert found
    assert all(name == home or name.startswith(f"{home}.") for name in found), found


def package_of(module: str) -> str | None:
    """The package of certtrain that a module is in; None for one that stands outside of all."""
    parts = module.split(".")
    return parts[1] if parts[0] == "certtrain" and len(parts) > 1 and parts[1] in PACKAGES else None


def modules_of(code: str) -> set[str]:
    """What a file's import statements name, nested ones too: modules, and what is taken from them."""
    nodes = list(ast.walk(ast.parse(code)))
    taken = [(node.module, alias.name) for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {f"{module}.{name}" for module, name in taken if module}


def test_every_package_is_in_the_order():
    assert {file.parent.name for file in FILES if file.parent.parent == ROOT / "certtrain"} == set(PACKAGES)


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_point_one_way(file: Path):
    if file == ROOT / "certtrain" / "__init__.py" or file.name == "__main__.py":  # which import from all of them
        return
    own = package_of(module_name(file))
    allowed = (None, *PACKAGES[: PACKAGES.index(own) + 1]) if own else (None,)
    assert not [name for name in modules_of(file.read_text(encoding="utf-8")) if package_of(name) not in allowed]


@pytest.mark.parametrize(
    "code",
    [
        "import certtrain.cli",
        "from certtrain import cli",
        "from certtrain.cli import main",
        "def f():\n import certtrain.cli.options",
    ],
)
def test_every_form_of_import_is_seen(code: str):
    assert "cli" in {package_of(name) for name in modules_of(code)}


TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEST_FILES = {name for file in TESTS if file.stem.startswith("test_") for name in (file.stem, "tests", "conftest")}


@pytest.mark.parametrize("file", TESTS, ids=lambda file: str(file.relative_to(ROOT / "tests")))
def test_what_tests_share_is_in_helpers(file: Path):
    taken = {part for name in modules_of(file.read_text(encoding="utf-8")) for part in name.split(".")}
    assert not taken & TEST_FILES


def test_all_public_names_are_there():
    assert "propagate" in certtrain.__all__
    for name in certtrain.__all__:
        assert getattr(certtrain, name).__name__ == name
    assert set(certtrain.__all__) < set(dir(certtrain))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'certtrain' has no attribute 'nothing'"):
        _ = certtrain.nothing
