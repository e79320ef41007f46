"""Networks with hostile attributes, names, shapes and wires: each is read as what it computes, or is a clear error."""

import copy
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import certtrain
from certtrain.data import load_images, to_unit
from certtrain.errors import CerttrainError, UnsupportedLayer
from certtrain.interchange.onnxfile import read_onnx
from certtrain.interchange.program import read_program
from certtrain.spec.messages import readable
from helpers.foreign_networks import Net, changed_program, in_json, save_program
from helpers.mutations import mutated_onnx, mutated_program
from helpers.onnx_files import exported, node, onnx, random, save

FOREIGN_WORDS = re.compile(
    r"validation error|pydantic|Input should|String should|Traceback|zip\(\)|division|[\x00-\x09\x0b-\x1f]"
)
SECONDS = 20.0  # which no file takes, also on a busy machine


def written(folder: Path) -> Path:
    """A network of many operators, as no exporter would write it."""
    nodes = [
        node("Conv", "x w b", "c", strides=[2, 2], pads=[1, 0, 0, 1], group=1, kernel_shape=[3, 3]),
        node("BatchNormalization", "c s s m v", "n", epsilon=1e-4),
        node("LeakyRelu", "n", "r", alpha=0.1),
        node("AveragePool", "r", "p", kernel_shape=[2, 2], strides=[1, 1], count_include_pad=1, ceil_mode=0),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
        node("Slice", "t first last axes", "sl"),
        node("Pad", "sl pads", "pd"),
        node("Concat", "pd pd", "cc", axis=3),
        node("ReduceMean", "cc", "rm", axes=[1], keepdims=1),
        node("Flatten", "rm", "f", axis=1),
        node("Gemm", "f g h", "ge", alpha=1.0, beta=1.0, transB=1),
        node("Clip", "ge low high", "cl"),
        node("Mul", "cl k", "y"),
    ]
    places = {"first": [0], "last": [3], "axes": [2], "pads": [0, 0, 0, 0, 0, 1, 0, 0]}
    constants = {name: torch.tensor(numbers) for name, numbers in places.items()}
    constants |= {"w": random(4, 1, 3, 3), "b": random(4), "s": random(4), "m": random(4), "v": random(4).abs()}
    constants |= {"g": random(10, 24), "h": random(10), "k": random(10)}
    return save(folder, nodes, ["N", 1, 8, 8], ["N", 10], low=torch.tensor(-1.0), high=torch.tensor(1.0), **constants)


def tried(path: Path, seed: int) -> str:
    """What became of the file: "read", or the kind of the error. Anything that is not a clear error fails."""
    start, message = time.monotonic(), ""
    try:
        model = certtrain.load_network(path, dataset="digits", eps=0.01)
        images = load_images("digits", "test").take(2)
        certtrain.certify(model, to_unit(images.images), images.labels, 0.01, method="crown-ibp")
        found = "read"
    except CerttrainError as error:
        found, message = type(error).__name__, str(error)
    assert not FOREIGN_WORDS.search(message), seed
    assert len(message) < 2500, seed
    assert time.monotonic() - start < SECONDS, seed
    return found


@pytest.mark.parametrize("make", [lambda folder: exported(Net().eval(), (1, 8, 8), folder), written])
def test_mutated_onnx_files_are_clear_errors(make: Any, tmp_path: Path) -> None:
    good, found = onnx.load(make(tmp_path)), Counter[str]()
    for seed in range(150):
        path = tmp_path / "mutated.onnx"
        path.write_bytes(mutated_onnx(copy.deepcopy(good), seed).SerializeToString())
        found[tried(path, seed)] += 1
    assert found.keys() >= {"read", "ModelFileError", "UnsupportedLayer"}
    assert "SoundnessError" not in found, "nothing is read as something else"


def test_mutated_programs_are_clear_errors(tmp_path: Path) -> None:
    good, found = save_program(Net().eval(), tmp_path / "net.pt2"), Counter[str]()
    for seed in range(200):
        found[tried(mutated_program(good, seed, tmp_path / "mutated.pt2"), seed)] += 1
    assert found.keys() >= {"read", "ModelFileError", "UnsupportedLayer"}


@pytest.mark.parametrize(
    ("argument", "numbers"),
    [("stride", [0, 1]), ("stride", [-1, 1]), ("padding", [-1, 0]), ("stride", [1, 1, 1]), ("padding", [1])],
)
def test_a_convolution_of_a_program_with_impossible_numbers_is_refused(
    argument: str, numbers: list[int], tmp_path: Path
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3, stride=(1, 1), padding=(1, 1)), nn.Flatten(), nn.Linear(128, 10))
    path = save_program(network.eval(), tmp_path / "net.pt2")

    def change(program: Any) -> None:
        entries = program["graph_module"]["graph"]["nodes"][0]["inputs"]
        while len(entries) < 5:
            entries.append(copy.deepcopy(entries[-1]))
        for entry, name in zip(entries[3:], ("stride", "padding"), strict=True):
            own = numbers if name == argument else [1, 1]
            entry.update(name=name, arg={"as_ints": own}, kind=1)

    with pytest.raises(UnsupportedLayer, match=r"its (window|padding)|padding must|stride"):
        read_program(changed_program(path, in_json(change)))


@pytest.mark.parametrize(
    "changed",
    [
        {"group": 0},
        {"group": -1},
        {"strides": [0, 1]},
        {"strides": [1]},
        {"dilations": [0, 1]},
        {"pads": [-1, 0, 0, 0]},
        {"pads": [2**62, 0, 0, 0]},
        {"pads": [2**40] * 4},
        {"kernel_shape": [0, 3]},
    ],
)
def test_a_convolution_of_onnx_with_impossible_numbers_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c", **changed), node("Flatten", "c", "y", axis=1)]
    path = save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 10], w=random(4, 1, 3, 3))
    with pytest.raises(UnsupportedLayer, match=r"net\.onnx") as caught:
        read_onnx(path)
    assert not FOREIGN_WORDS.search(str(caught.value))


@pytest.mark.parametrize("name", ["", "a" * 3000, "..", "../x"])
def test_a_hostile_name_of_a_program_has_an_error_in_own_words(name: str, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    path = save_program(network, tmp_path / "net.pt2")

    def change(_: str, data: bytes) -> bytes:
        return data.replace(b'"flatten"', f'"{name}"'.encode())

    with pytest.raises(UnsupportedLayer, match=r"must be a name of letters|at most 200 characters") as caught:
        read_program(changed_program(path, change))
    assert len(str(caught.value)) < 600


def test_outputs_that_overflow_are_no_fault_of_certtrain(tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f g", "h"), node("Gemm", "h k", "y")]
    path = save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 10], g=1e25 * random(64, 10), k=1e25 * random(10, 10))
    with pytest.raises(UnsupportedLayer, match="NaN or infinity"):
        certtrain.load_network(path, dataset="digits", eps=0.01)


def test_the_text_of_a_file_is_cut_and_controls_no_terminal() -> None:
    assert readable("a\x1b[31mb\x07\nε") == "a\\x1b[31mb\\x07\nε"
    assert readable(f"node {'a' * 500} (Conv)") == f"node {'a' * 79}… (Conv)"
    assert len(readable("ab " * 5000)) == 1500
