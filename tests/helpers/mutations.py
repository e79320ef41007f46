"""Files of networks with one thing or two changed to what no exporter writes."""

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE_NAMES = ("", "\x1b[31m", "a" * 5000, "../x", "{}", "\n", "ε", "__class__", "input", "x.y", "relu1", "0")
WHOLE = (0, -1, 1, 2, 3, 7, -(2**31), 2**31, 2**62, -(2**63), 2**63 - 1)
REAL = (0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1e38, 1e-45)

Change = Callable[[Any, random.Random], object]


def mutated_onnx(proto: Any, seed: int) -> Any:
    """The network with some of `ONNX_CHANGES` made."""
    draw = random.Random(seed)
    for _ in range(draw.choice((1, 1, 2, 3))):
        draw.choice(ONNX_CHANGES)(proto.graph, draw)
    return proto


def _attribute(graph: Any, draw: random.Random) -> None:
    """Another value of one of its kind, another length of a list, another kind, or none."""
    found = [entry for node in graph.node for entry in node.attribute]
    if not found:
        return
    entry = draw.choice(found)
    if entry.ints:
        numbers = list(entry.ints)
        numbers[draw.randrange(len(numbers))] = draw.choice(WHOLE)
        del entry.ints[:]
        entry.ints.extend(draw.choice((numbers, numbers[:-1], [*numbers, 1], numbers * 3, [])))
    elif entry.floats or entry.type == 1:
        entry.f = draw.choice(REAL)
    elif entry.type == 3:
        entry.s = draw.choice((b"", b"\xff\xfe", b"SAME_UPPER", b"VALID", b"x" * 3000))
    else:
        entry.i = draw.choice(WHOLE)
    if draw.random() < 0.1:
        entry.type = draw.choice((1, 2, 3, 4, 6, 7))


def _added_attribute(graph: Any, draw: random.Random) -> None:
    entry = draw.choice(graph.node).attribute.add()
    entry.name, entry.type, entry.i = draw.choice(("axis", "group", "alpha", "epsilon", "ceil_mode", "perm")), 2, -5


def _weight(graph: Any, draw: random.Random) -> None:
    """Another shape, or numbers that are none."""
    tensor = draw.choice(graph.initializer)
    if draw.random() < 0.5 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(WHOLE)
    elif draw.random() < 0.3:
        tensor.dims.append(draw.choice((0, 1, 2)))
    elif tensor.data_type == 1:
        tensor.raw_data = draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f")) * (len(tensor.raw_data) // 4)
    else:
        tensor.raw_data = draw.choice(WHOLE).to_bytes(8, "little", signed=True) * (len(tensor.raw_data) // 8)


def _name(graph: Any, draw: random.Random) -> None:
    node = draw.choice(graph.node)
    match draw.randrange(4):
        case 0:
            node.name = draw.choice(HOSTILE_NAMES)
        case 1:
            node.op_type = draw.choice((*HOSTILE_NAMES, "Loop", "If", "Relu", "Conv", "Concat", "Resize", "Identity"))
        case 2:
            node.domain = draw.choice(HOSTILE_NAMES)
        case _:
            _renamed(graph, draw.choice(node.output), draw.choice(HOSTILE_NAMES))


def _renamed(graph: Any, before: str, after: str) -> None:
    """Another name of a value wherever it is used."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == before:
                    names[place] = after
    for end in (*graph.input, *graph.output):
        if end.name == before:
            end.name = after


def _wire(graph: Any, draw: random.Random) -> None:
    """Cycles, missing inputs, outputs twice."""
    node, values = draw.choice(graph.node), [name for node in graph.node for name in (*node.input, *node.output)]
    names = node.input if node.input and draw.random() < 0.7 else node.output
    match draw.randrange(4):
        case 0:
            names[draw.randrange(len(names))] = draw.choice(values)
        case 1:
            del names[draw.randrange(len(names))]
        case 2:
            names.append(draw.choice(values))
        case _:
            names[draw.randrange(len(names))] = ""


def _order(graph: Any, draw: random.Random) -> None:
    nodes = list(graph.node)
    match draw.randrange(3):
        case 0:
            draw.shuffle(nodes)
        case 1:
            nodes.append(draw.choice(nodes))
        case _:
            del nodes[draw.randrange(len(nodes))]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _end(graph: Any, draw: random.Random) -> None:
    """Other inputs and outputs."""
    end = draw.choice((*graph.input, *graph.output))
    sides = end.type.tensor_type.shape.dim
    match draw.randrange(5):
        case 0 if sides:
            draw.choice(sides).dim_value = draw.choice(WHOLE)
        case 1:
            end.type.tensor_type.elem_type = draw.choice((0, 1, 6, 7, 10, 11, 16, 99))
        case 2:
            sides.add().dim_value = draw.choice(WHOLE)
        case 3:
            draw.choice((graph.input, graph.output)).add().CopyFrom(end)
        case _:
            del draw.choice((graph.input, graph.output))[:]


ONNX_CHANGES: tuple[Change, ...] = (
    _attribute,
    _attribute,
    _attribute,
    _added_attribute,
    _weight,
    _weight,
    _name,
    _wire,
    _order,
    _end,
)


def mutated_program(good: Path, seed: int, path: Path) -> Path:
    """The program of torch.export with a few values of its JSON changed, removed or exchanged, at `path`."""
    draw = random.Random(seed)
    with zipfile.ZipFile(good) as before, zipfile.ZipFile(path, "w") as after:
        chosen = draw.choice([name for name in before.namelist() if name.endswith(".json")] + ["model.json"] * 3)
        for name in before.namelist():
            data = before.read(name)
            if name.endswith(chosen):
                found = json.loads(data)
                for _ in range(draw.choice((1, 1, 2, 4))):
                    _change_json(found, draw)
                data = json.dumps(found).encode()
            after.writestr(name, data)
    return path


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a value of JSON with each of its keys."""
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    own = [(value, key) for key in keys]
    return own + [place for _, key in own for place in _places(value[key])]


def _change_json(found: Any, draw: random.Random) -> None:
    # nodes are a small part of the file, but most of what is read
    places = [place for place in _places(found) if place[1] == "nodes"]
    places = _places(places[0][0]["nodes"] if places and draw.random() < 0.7 else found)
    if not places:
        return
    container, key = draw.choice(places)
    value = container[key]
    if draw.random() < 0.15:
        del container[key]
    elif draw.random() < 0.15:
        container[key] = json.loads(json.dumps(draw.choice([holder[place] for holder, place in places])))
    elif isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, int):
        container[key] = draw.choice(WHOLE)
    elif isinstance(value, float):
        container[key] = draw.choice(REAL)
    elif isinstance(value, str):
        container[key] = draw.choice(HOSTILE_NAMES)
    elif isinstance(value, list):
        container[key] = draw.choice(([], value * 2, value[::-1], value[:-1]))
    else:
        container[key] = draw.choice(([], {}, None, 0, "x", -1.5))
