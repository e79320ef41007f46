"""The table of certificates: its rows add up, and a tighter method or ideal arithmetic is never worse."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from certtrain.bounds.methods import METHODS
from certtrain.data import load_images, to_unit
from certtrain.network.assembly import describe, make_network
from certtrain.network.modelfile import write_model
from certtrain.spec.preset import load_preset

FILE = Path(__file__).parents[2] / "benchmarks" / "certificates.py"
SMALL = {"model.name": "mlp", "model.hidden": (16, 16), "model.batch_norm": False, "eps.max": 0.02}


@pytest.fixture(scope="module")
def certificates() -> ModuleType:
    """The command's own functions."""
    spec = importlib.util.spec_from_file_location("certificates", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["certificates"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network on the digits, trained naturally, so that intervals are loose."""
    preset, train = load_preset("digits", SMALL), load_images("digits", "train")
    network, _ = make_network(preset, train, "kaiming")
    optimizer, x = torch.optim.Adam(network.parameters(), 1e-2), to_unit(train.images)
    for _ in range(60):
        loss = F.cross_entropy(network(x), train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("certificates") / "model.safetensors"
    write_model(path, network.eval(), describe(preset, train))
    return path


def tables(text: str) -> list[dict[str, list[str]]]:
    """The cells of each table's rows by their first cell, without its head."""
    found: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    split = [[[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]] for lines in found if lines]
    return [{row[0]: row[1:] for row in rows} for rows in split]


def test_rows_add_up_and_tighter_methods_and_ideal_arithmetic_are_never_worse(
    certificates, model: Path, capsys: pytest.CaptureFixture[str]
):
    certificates.main([str(model), "--limit", "40", "--pgd-steps", "5"])
    text = capsys.readouterr().out
    methods, arithmetics = tables(text)
    assert list(methods) == [*METHODS, "auto"]
    assert all(sum(map(int, row[:4])) == 40 for row in methods.values())
    certified = [int(methods[name][0]) for name in METHODS]
    assert certified == sorted(certified)
    assert certified[0] < certified[-1] == int(methods["auto"][0])
    for name, row in arithmetics.items():
        counts = [int(cell.split()[0]) for cell in row if cell != "–"]
        assert counts == sorted(counts, reverse=True)
        assert counts[2] == int(methods[name][0])
    for line in (line for line in text.splitlines() if line.startswith("- ")):
        lost = [float(part.split()[1]) for part in line.split(": ")[1].split(", ")]
        assert 0 < lost[0] < lost[1]  # real, float32
        assert lost == sorted(lost)
    assert text.count("\n- ") == len(METHODS)
    assert "peak memory of the process:" in text


def test_every_point_is_bounded_if_asked_for(certificates, model: Path, capsys: pytest.CaptureFixture[str]):
    certificates.main([str(model), "--limit", "8", "--every-point", "--methods", "crown", "--arithmetics", "float32"])
    text = capsys.readouterr().out
    methods, arithmetics = tables(text)
    assert list(methods) == list(arithmetics) == ["crown"]
    certified, falsified, left, misclassified = methods["crown"][:4]
    assert falsified == "–"
    assert int(certified) + int(left) + int(misclassified) == 8
    assert "Of 8 examples bounded" in text


def test_as_many_radii_as_models(certificates, model: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        certificates.main([str(model), "--eps", "0.1", "0.2"])
    assert "one value for each model" in capsys.readouterr().err
