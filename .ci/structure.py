"""What the shape of the code is held to: no import circle, one module for each public name, short functions.

    python .ci/structure.py [--all]

Prints what breaks a rule and exits with 1, or the figures; --all lists the longest functions as well.
"""

import argparse
import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "certtrain"
MEDIAN, P90, LONGEST = 6, 15, 60

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef)


class Module(NamedTuple):
    """A file of the package, by its dotted name."""

    name: str
    is_package: bool
    tree: ast.Module


class Function(NamedTuple):
    """A function, and the lines of its body without docstring, blank lines and comments."""

    place: str
    lines: int


def modules() -> dict[str, Module]:
    """All of the package."""
    found = [_module(path) for path in sorted((ROOT / PACKAGE).rglob("*.py"))]
    return {module.name: module for module in found}


def _module(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return Module(".".join(parts[:-1] if is_package else parts), is_package, ast.parse(path.read_text("utf-8")))


# --- imports ---------------------------------------------------------------------------------------------


def imports(module: Module, known: dict[str, Module]) -> set[str]:
    """The package's modules that `module` imports anywhere: at its top, in functions, and for types alone.

    Raises ValueError for a relative import, whose target is not seen here.
    """
    found = set[str]()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{module.name}:{node.lineno} has a relative import; name the whole module")
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = inside & known.keys()
            found |= submodules if len(submodules) == len(inside) else submodules | {node.module}
    return (found & known.keys()) - {module.name}


def circle(known: dict[str, Module]) -> list[str]:
    """The modules of one import circle; empty without one."""
    edges = {name: imports(module, known) for name, module in known.items()}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


# --- names -----------------------------------------------------------------------------------------------


def repeated_names(known: dict[str, Module]) -> dict[str, list[str]]:
    """Public names that several modules define at their top, with those modules."""
    places = defaultdict(list)
    for module in known.values():
        for name in dict.fromkeys(_defined(module.tree)):
            places[name].append(module.name)
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


def _defined(tree: ast.Module | ast.If | ast.Try) -> Iterator[str]:
    for node in (*tree.body, *getattr(tree, "orelse", ())):
        if isinstance(node, (ast.If, ast.Try)):
            yield from _defined(node)
        if isinstance(node, (*FUNCTION_NODES, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_"))


# --- functions -------------------------------------------------------------------------------------------


def functions(known: dict[str, Module]) -> list[Function]:
    """All functions and methods of the package."""
    return [
        Function(f"{module.name}.{node.name}", _lines(node))
        for module in known.values()
        for node in ast.walk(module.tree)
        if isinstance(node, FunctionNode)
    ]


def _lines(node: FunctionNode) -> int:
    """Lines from the signature to the end, in which something stands that runs; docstrings are left out."""
    skipped = set[int]()
    for inner in ast.walk(node):
        if isinstance(inner, (FunctionNode, ast.ClassDef)) and ast.get_docstring(inner) is not None:
            text = inner.body[0]
            skipped |= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    used = set[int]()
    for inner in ast.walk(node):
        if isinstance(inner, (ast.expr, ast.stmt, ast.arg, ast.keyword, ast.excepthandler)):
            ends = (inner.lineno, inner.end_lineno or inner.lineno)
            used |= set(range(ends[0], ends[1] + 1)) if isinstance(inner, ast.Constant) else set(ends)
    return len({line for line in used if line >= node.lineno} - skipped)


def main() -> int:
    """Check everything; 1 if a rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="list the longest functions as well")
    arguments = parser.parse_args()
    known = modules()
    measured = sorted(functions(known), key=lambda function: -function.lines)
    lengths = [function.lines for function in measured]
    median, p90 = statistics.median(lengths), statistics.quantiles(lengths, n=10)[-1]
    wrong = []
    if found := circle(known):
        wrong.append("import circle: " + " → ".join(found))
    wrong += [f"{name} is defined in {', '.join(where)}" for name, where in repeated_names(known).items()]
    wrong += [f"{place} has {lines} lines, over {LONGEST}" for place, lines in measured if lines > LONGEST]
    if median > MEDIAN or p90 > P90:
        wrong.append(f"functions have a median of {median:g} lines and a 90th percentile of {p90:g}")
    for function in measured[:30] if arguments.all else []:
        print(f"{function.lines:4}  {function.place}")
    print(f"{len(known)} modules, {len(lengths)} functions: median {median:g} lines, 90th percentile {p90:g}")
    print("\n".join(wrong))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
