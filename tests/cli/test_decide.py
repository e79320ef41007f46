"""certtrain decide: properties of networks, in ONNX files and our own."""

import gzip
import json
import re
from pathlib import Path

import pytest

from helpers.command_line import Run


@pytest.fixture
def properties(run: Run, model: Path, tmp_path: Path) -> Path:
    """The folder of an exported ONNX file, `model.onnx`, and a dozen properties of it at a large radius."""
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    assert run("export", str(model), "--vnnlib", "props", "--count", "12", "--eps", "0.3", "--limit", "20").code == 0
    return tmp_path / "props"


def test_properties_are_decided_alike_of_the_model_and_its_onnx_file(run: Run, model: Path, properties: Path) -> None:
    results = set()
    for path in sorted(properties.glob("*.vnnlib"))[:4]:
        found = json.loads(run("decide", properties / "model.onnx", path, "--json").out)
        assert (found["model"], found["property"]) == (str(properties / "model.onnx"), str(path))
        shown = run("decide", model, path)
        assert (shown.code, shown.err) == (0, "")
        assert shown.out.startswith(f"{found['result']}  ")
        results.add(found["result"])
    assert "sat" in results


def test_gzipped_files_are_taken_where_the_plain_ones_are_absent(run: Run, properties: Path) -> None:
    network, path = properties / "model.onnx", properties / "point_00000.vnnlib"
    before = json.loads(run("decide", network, path, "--json").out)["result"]
    for file in (network, path):
        Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert json.loads(run("decide", network, path, "--json").out)["result"] == before


def test_a_property_takes_a_method_and_limits(run: Run, properties: Path) -> None:
    words = ["decide", properties / "model.onnx", properties / "point_00000.vnnlib", "--json"]
    found = json.loads(run(*words, "--method", "complete", "--timeout", "30s", "--memory", "500MB").out)
    assert found["method"] == "complete"
    assert found["result"] in ("sat", "unsat")
    refused = run(*words, "--method", "crown")
    assert (refused.code, refused.out) == (2, "")
    assert "crown-ibp" in refused.err


def test_an_answer_is_written_as_the_competition_does(run: Run, properties: Path) -> None:
    Path("answer").write_text("no_result_in_file\n")
    for path in sorted(properties.glob("*.vnnlib"))[:4]:
        words = ["decide", properties / "model.onnx", path, "--results", "answer", "--counterexample", path.name]
        found = json.loads(run(*words, "--json").out)
        word, *rest = Path("answer").read_text().splitlines(keepends=True)
        assert word == f"{found['result']}\n"
        if found["result"] != "sat":
            assert not rest
            assert not Path(path.name).exists()
            continue
        assert Path(path.name).read_text() == "".join(rest)
        values = re.findall(r"\(([XY]_\d+) ([^)]+)\)", "".join(rest))
        expected = [(f"X_{i}", value) for i, value in enumerate(found["counterexample"])]
        expected += [(f"Y_{j}", value) for j, value in enumerate(found["outputs"])]
        assert [(name, float(value)) for name, value in values] == expected
        assert rest[0].startswith("((X_0 ")
        assert rest[-1].endswith("))\n")


def test_a_time_limit_that_is_over_makes_unknown_a_timeout(run: Run, properties: Path) -> None:
    words = ["decide", properties / "model.onnx", properties / "point_00000.vnnlib", "--results", "answer"]
    assert run(*words, "--timeout", "0.000001").out.startswith("unknown")
    assert Path("answer").read_text() == "timeout\n"
    refused = run(*words, "--results", properties / "model.onnx" / "answer")
    assert (refused.code, refused.out) == (1, "")


def test_files_of_a_property_that_are_none_are_named(run: Run, model: Path, tmp_path: Path) -> None:
    folder = run("decide", model, tmp_path)
    assert (folder.code, "is a folder; give one of its .vnnlib files" in folder.err) == (1, True)
    missing = run("decide", model, "none.vnnlib")
    assert (missing.code, "the property none.vnnlib does not exist" in missing.err) == (1, True)
    no_network = run("decide", "none.onnx", "none.vnnlib")
    assert (no_network.code, "there is no model file none.onnx" in no_network.err) == (1, True)
