"""Networks that certtrain did not train, on the command line."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from certtrain.certfile import read_header
from certtrain.data import load_images
from certtrain.data.pictures import write_picture
from certtrain.interchange.foreign import RoundedWeightsWarning
from helpers.command_line import Run
from helpers.foreign_networks import CODE, MEAN, STD, save_program, trained_net
from helpers.onnx_files import exported, node, random, save

NORMALIZED = ("--mean", MEAN, "--std", STD)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, network = tmp_path_factory.mktemp("foreign"), trained_net()
    exported(network, (1, 8, 8), folder)
    save_program(network, folder / "net.pt2")
    (folder / "my.py").write_text(CODE)
    torch.save(network.state_dict(), folder / "w.pt")
    return folder


def test_a_module_needs_its_weights_and_weights_need_their_module(run: Run, files: Path) -> None:
    shutil.copytree(files, ".", dirs_exist_ok=True)
    shutil.copy("w.pt", "w.safetensors")
    about = ["--data", "digits", "--eps", "2/255"]
    without = run("verify", "--module", "my.py:Net", *about)
    assert (without.code, "the file with the weights of the --module" in without.words) == (2, True)
    alone = run("verify", "w.pt", *about)
    assert (alone.code, "w.pt holds weights alone; name the class" in alone.words) == (2, True)
    renamed = run("verify", "w.safetensors", "--eps", "2/255")
    assert (renamed.code, "It is a zip archive, as torch.save writes" in renamed.words) == (1, True)


def test_weights_in_float64_are_rounded_with_a_note(run: Run, files: Path) -> None:
    shutil.copytree(files, ".", dirs_exist_ok=True)
    doubled = {name: tensor.double() for name, tensor in torch.load("w.pt", weights_only=True).items()}
    words = ["verify", "w64.pt", "--module", "my.py:Net", "--data", "digits", "--eps", "2/255", "--limit", "5"]
    torch.save(doubled, "w64.pt")
    assert "in float64" not in run(*words).words
    torch.save({name: tensor * (1 + 1e-12) for name, tensor in doubled.items()}, "w64.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("always", RoundedWeightsWarning)
        assert "w64.pt has weights in float64" in run(*words).words


FORMS = {
    "onnx": (["net.onnx"], ["net.onnx"]),
    "pt2": (["net.pt2"], ["net.pt2"]),
    "module": (["--module", "my.py:Net", "--weights", "w.pt"], ["w.pt", "--module", "my.py:Net"]),
    "module, weights as MODEL": (["w.pt", "--module", "my.py:Net"], ["w.pt", "--module", "my.py:Net"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_certificates_of_a_foreign_network_are_written_and_checked(form: str, run: Run, files: Path) -> None:
    shutil.copytree(files, ".", dirs_exist_ok=True)
    verified, checked = FORMS[form]
    options = ["--data", "digits", "--eps", "2/255", *NORMALIZED, "--limit", "30", "--out", "c.jsonl"]
    done = run("verify", *verified, *options, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["certified"] > 0
    again = run("verify", *verified, *options, "--json")
    assert json.loads(again.out)["certified"] == report["certified"]
    whole = run("check", "c.jsonl", *checked)
    assert whole.code == 0, whole.err
    assert "all 30 records hold" in whole.out
    assert f"mean {MEAN}, std {STD}" in whole.err
    other = run("verify", *verified, *options[:4], "--limit", "30", "--out", "c.jsonl")
    assert (other.code, "how the network's file is read" in other.err) == (1, True), "without mean and std"


def test_a_check_finds_another_network_or_preprocessing(run: Run, files: Path) -> None:
    shutil.copytree(files, ".", dirs_exist_ok=True)
    options = ["--data", "digits", "--eps", "2/255", *NORMALIZED, "--limit", "20", "--out", "c.jsonl"]
    assert run("verify", "net.onnx", *options).code == 0
    assert "is about another model" in run("check", "c.jsonl", "net.pt2").err
    assert "--module" in run("check", "c.jsonl", "w.pt", "--module", "my.py:Net").err
    text = Path("c.jsonl").read_text()
    Path("c.jsonl").write_text(text.replace('"mean":[0.25]', '"mean":[0.5]', 1))
    changed = run("check", "c.jsonl", "net.onnx")
    assert changed.code != 0
    assert read_header(Path("c.jsonl")).reading is not None


def test_files_of_certtrains_own_networks_do_not_mention_it(run: Run, model: Path) -> None:
    assert run("verify", model, "--limit", "5", "--out", "c.jsonl").code == 0
    assert '"reading"' not in Path("c.jsonl").read_text()


def test_states_are_shown_beside_those_of_another_network(run: Run, files: Path, model: Path) -> None:
    options = ["--data", "digits", "--eps", "2/255", "--limit", "20"]
    done = run("stats", files / "net.onnx", model, *options, *NORMALIZED, "--json")
    assert done.code == 0, done.err
    assert [len(found["layers"]) for found in json.loads(done.out)["models"]] == [2, 1]
    module = ["--module", f"{files / 'my.py'}:Net", "--weights", files / "w.pt"]
    assert run("stats", *module, *options, *NORMALIZED).code == 0


WRONG = {
    "no data": (["net.onnx", "--eps", "0.1"], "--data"),
    "no radius": (["net.onnx", "--data", "digits"], "--eps"),
    "folded": (["net.onnx", "--data", "digits", "--eps", "0.1", "--network", "folded"], "--network"),
    "weights alone": (["--weights", "w.pt", "--data", "digits", "--eps", "0.1"], "--weights"),
    "not numbers": (["net.onnx", "--data", "digits", "--eps", "0.1", "--mean", "a"], "for each channel"),
    "another data set": (["net.onnx", "--data", "digit", "--eps", "0.1"], "--data"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_line_is_answered_at_once(case: str, run: Run, files: Path) -> None:
    shutil.copytree(files, ".", dirs_exist_ok=True)
    words, part = WRONG[case]
    done = run("verify", *words)
    assert (done.code, done.out) == (2, "")
    assert part in done.err


def test_options_for_foreign_networks_are_refused_for_others(run: Run, model: Path) -> None:
    done = run("verify", model, "--data", "digits")
    assert done.code == 2
    assert "say this themselves" in done.err


def test_a_network_that_guesses_is_mentioned(run: Run, tmp_path: Path) -> None:
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "y")]
    save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 10], w=random(64, 10) * 0)
    done = run("verify", "net.onnx", "--data", "digits", "--eps", "1/255", "--limit", "50")
    assert done.code == 0, done.err
    assert "close to guessing" in done.err


def test_an_image_of_ones_own_with_a_foreign_network(run: Run, files: Path, tmp_path: Path) -> None:
    write_picture(tmp_path / "digit.png", load_images("digits", "test").images[0])
    options = ["--data", "digits", "--eps", "2/255", *NORMALIZED, "--image", "digit.png"]
    done = run("verify", files / "net.onnx", *options)
    assert done.code == 0, done.err
    assert "digit.png" in done.out
