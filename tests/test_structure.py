"""The script that holds the shape of the code finds what it is for."""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    path = Path(__file__).parents[1] / ".ci/structure.py"
    if not path.is_file():
        pytest.skip("not in a checkout")
    spec = importlib.util.spec_from_file_location("structure", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(structure: ModuleType, **sources: str):
    """Modules of certtrain by their sources; two underscores stand for a dot, and `root` for the package itself."""
    names = {key: "certtrain" + ("" if key == "root" else "." + key.replace("__", ".")) for key in ["root", *sources]}
    texts = {"root": ""} | sources
    parents = {name.rpartition(".")[0] for name in names.values()}
    return {name: structure.Module(name, name in parents, ast.parse(texts[key])) for key, name in names.items()}


@pytest.mark.parametrize(
    "sources",
    [
        {"a": "from certtrain.b import x", "b": "from certtrain.a import y"},
        {
            "a": "def f():\n    import certtrain.b",
            "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import certtrain.a",
        },
        {"p": "from certtrain.p.a import x", "p__a": "from certtrain.p import x"},
        {"root": "from certtrain.a import x", "a": "from certtrain import __version__"},
    ],
)
def test_circles_are_found(structure: ModuleType, sources: dict[str, str]):
    assert structure.circle(package(structure, **sources))


def test_a_package_that_shows_names_of_its_modules_is_no_circle(structure: ModuleType):
    assert (
        structure.circle(package(structure, p="from certtrain.p.a import x", p__a="", b="from certtrain.p import x"))
        == []
    )


def test_relative_imports_are_refused(structure: ModuleType):
    with pytest.raises(ValueError, match="relative import"):
        structure.circle(package(structure, a="from .b import x", b=""))


def test_names_of_two_modules_are_found(structure: ModuleType):
    known = package(
        structure, a="class X: ...\nY = 1", b="if True:\n    async def X(): ...", c="_Y = 1\nfor Z in (): ..."
    )
    assert structure.repeated_names(known) == {"X": ["certtrain.a", "certtrain.b"]}


def test_lines_of_functions_are_counted_without_docstrings_and_with_strings(structure: ModuleType):
    source = 'def f():\n    """Doc\n    string."""\n    # why\n\n    return """a\n    b\n    c"""\n'
    (found,) = structure.functions(package(structure, a=source))
    assert (found.place, found.lines) == ("certtrain.a.f", 4)
