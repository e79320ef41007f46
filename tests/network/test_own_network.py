"""A user's own network on their own images, from the command line and from Python, long after its code is gone."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import certtrain
from certtrain.errors import NetworkError
from certtrain.network.modelfile import KEY
from certtrain.spec.layers import Graph
from certtrain.training.compilation import has_compiler
from certtrain.training.events import Event, Note, Started
from helpers.command_line import Run, run_here
from helpers.small_runs import without_pages

RESIDUAL = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, channels, wider, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(wider), nn.Conv2d(wider, wider, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, wider, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        before = self.relu(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(self.conv1(before))))
        out += self.shortcut(before)
        return out

class MyNet(nn.Module):
    def __init__(self, input_shape, classes, width=8):
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2))
        self.twice = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = torch.relu(self.blocks(self.stem(x)))
        x = self.twice(torch.relu(self.twice(x)))
        return self.head(nn.functional.avg_pool2d(torch.relu(x), 3).flatten(1))
"""
FUNCTIONAL = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm1d(16)
        self.hidden, self.out = nn.Linear(4 * 9, 16), nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.a(x)) + self.b(x)
        x = nn.functional.max_pool2d(x, 2)
        x = nn.functional.leaky_relu(self.bn(self.hidden(x.flatten(1))), 0.1)
        return self.out(x)
"""
PRESET = """
name = "own"
[data]
name = "folder"
validation = 6
[model]
name = "module"
source = "mynet.py:MyNet"
arguments = {width = 3}
[eps]
max = "2/255"
start = 1
length = 1
[train]
epochs = 2
batch_size = 8
"""
TRAIN = ("train", "--preset", "own.toml", "--data-dir", "images")
FIRST = ("--set", "model.source='mynet.py:Small'", "--set", "model.arguments={}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: images of three classes, 6×6 pixels each, a preset, and the code of two networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CERTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 10), ("test", 4)):
        for number, name in enumerate(("blue", "green", "red")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 120, (6, 6, 3), dtype=torch.uint8, generator=generator)
                pixels[..., 2 - number] += 120
                Image.fromarray(pixels.numpy()).save(tmp_path / "images" / split / name / f"{index}.png")
    (tmp_path / "mynet.py").write_text(RESIDUAL + FUNCTIONAL, encoding="utf-8")
    (tmp_path / "own.toml").write_text(PRESET, encoding="utf-8")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process, in that folder."""
    monkeypatch.setenv("COLUMNS", "200")
    return run_here


@pytest.fixture
def no_page() -> Iterator[None]:
    """Runs write a page without drawing it."""
    with without_pages():
        yield


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[KEY])


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- from the command line ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("changes", [(), FIRST], ids=["residual", "functional"])
def test_a_network_is_trained_and_then_used_without_its_code(changes: tuple[str, ...], run: Run, folder: Path):
    pytest.importorskip("onnxruntime", reason="ONNX export needs the extra 'onnx'")
    done = run(*TRAIN, "--out", "run", *changes)
    assert done.code == 0, done.err
    assert ("mynet.py:Small with" if changes else "mynet.py:MyNet with") in done.out
    (folder / "mynet.py").unlink()
    first = json.loads((folder / "run" / "report.json").read_text())["results"]
    model = ("run/model.safetensors", "--data-dir", "images")
    again = json.loads(run("verify", *model, "--json").out)
    assert {name: again[name] for name in first} == first
    (states,) = json.loads(run("stats", *model, "--json").out)["models"]
    layers = states["layers"]
    assert len(layers) == (1 if changes else 7)
    exported = run("export", *model, "--json")
    assert exported.code == 0, exported.err
    assert [what["same_classes"] for what in json.loads(exported.out)] == [12, 12]
    folded = json.loads(run("verify", "run/model-folded.safetensors", "--data-dir", "images", "--json").out)
    assert folded["natural_accuracy"] == first["natural_accuracy"]
    assert run("verify", *model, "--split", "validation").code == 0


def test_the_run_and_its_model_hold_the_layers(run: Run, folder: Path):
    assert run(*TRAIN, "--out", "run").code == 0
    preset = json.loads((folder / "run" / "preset.json").read_text())
    found = header(folder / "run" / "model.safetensors")
    assert preset["model"] == found["architecture"] == found["preset"]["model"]
    assert found["architecture"]["name"] == "graph"
    assert found["architecture"]["origin"]["source"] == "mynet.py:MyNet"
    assert found["architecture"]["origin"]["arguments"] == {"width": 3}
    names = {"stem.weight", "blocks.0.bn1.running_mean", "blocks.1.conv1.weight", "twice.bias", "head.bias"}
    loaded = certtrain.load_model("run/model.safetensors").network.state_dict()
    assert names <= loaded.keys()
    assert "twice_1.weight" not in loaded
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "mynet.py:MyNet: width 3, 25 layers" in page


@pytest.mark.usefixtures("no_page")
def test_a_run_s_own_preset_trains_the_same_network_again(run: Run, folder: Path):
    assert run(*TRAIN, "--out", "run").code == 0
    (folder / "mynet.py").unlink()
    assert run("train", "--preset", "run/preset.json", "--data-dir", "images", "--out", "again").code == 0
    models = [(folder / name / "model.safetensors").read_bytes() for name in ("run", "again")]
    assert models[0] == models[1]


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("afterwards", ["deleted", "changed", "as it was"])
def test_a_run_goes_on_with_the_network_that_it_began_with(afterwards: str, run: Run, folder: Path):
    assert run(*TRAIN, "--out", "whole").code == 0
    assert "--resume parts" in run(*TRAIN, "--out", "parts", "--time-budget", "0.000001s").out
    match afterwards:
        case "deleted":
            (folder / "mynet.py").unlink()
        case "changed":
            (folder / "mynet.py").write_text("raise SystemExit('this code is not run')\n", encoding="utf-8")
    done = run("train", "--resume", "parts", "--data-dir", "images")
    assert done.code == 0, done.err
    assert ("mynet.py has changed; the run continues with the network" in done.out) == (afterwards == "changed")
    models = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert models[0] == models[1]


def test_init_shows_and_saves_it(run: Run, folder: Path):
    done = run("init", "--preset", "own.toml", "--data-dir", "images", "--json")
    assert done.code == 0, done.err
    (scheme,) = json.loads(done.out)["schemes"]
    assert [layer["name"] for layer in scheme["layers"]][:2] == ["network.stem", "network.blocks.0.conv1"]
    assert len(scheme["in_training"]) == 7  # it has BatchNorm, deep inside
    (folder / "mynet.py").unlink()
    assert run("verify", "own-ibp.safetensors", "--data-dir", "images").code == 0


@pytest.mark.usefixtures("no_page")
def test_a_source_that_prints_leaves_json_whole(run: Run, folder: Path):
    with (folder / "mynet.py").open("a", encoding="utf-8") as file:
        file.write("print('hello')\n")
    done = run(*TRAIN, "--out", "run", "--json")
    assert [json.loads(line)["event"] for line in done.out.splitlines()][-1] == "finished"
    assert "hello" in done.err


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "no file": (("--set", "model.source='other.py:MyNet'"), "source file other.py in the current folder"),
    "no name": (("--set", "model.source='mynet.py:Yours'"), "mynet.py has no 'Yours'; it has Block, MyNet, Small"),
    "argument": (("--set", "model.arguments={depth=3}"), "raises TypeError: MyNet.__init__() got an unexpected"),
    "value": (("--set", "model.arguments={width=-1}"), "raises RuntimeError: Trying to create tensor with negative"),
    "arguments": (("--set", "model.arguments=3"), "model.arguments"),
    "type": (("--set", "model={name='graph', layers=[{name='a', type='Mish'}]}"), "model.layers.0: "),
    "shape": (
        ("--set", "model={name='graph', layers=[{name='a', type='Linear', in_features=5, out_features=3}]}"),
        "layer 'a' does not fit its input of shape (3, 6, 6): it takes 5 features",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_trained_is_one_error_and_leaves_no_run(name: str, run: Run, folder: Path):
    changes, message = BAD[name]
    before = files(folder)
    done = run(*TRAIN, "--out", "run", *changes)
    assert done.code == 1
    assert message in " ".join(done.err.replace("│", " ").split())
    assert "Traceback" not in done.err
    assert files(folder) - {"cache"} == before


@pytest.mark.usefixtures("no_page")
def test_a_network_without_relu_has_no_states_to_show(run: Run):
    layers = (
        "{name='f', type='Flatten'}, {name='a', type='Linear', in_features=108, out_features=4}, "
        "{name='t', type='Tanh'}, {name='b', type='Linear', in_features=4, out_features=3}"
    )
    smooth = ("--set", f"model={{name='graph', layers=[{layers}]}}")
    done = run(*TRAIN, "--out", "run", *smooth, "--set", "train.micro_batch=4")
    assert done.code == 0, done.err
    stats = run("stats", "run/model.safetensors", "--data-dir", "images", "--csv", "s.csv")
    assert stats.code == 1
    assert "no ReLU layer" in stats.err


# --- from Python -------------------------------------------------------------------------------------------

SCRIPT = """
import torch
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

import certtrain


class MyNet(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(16 * width, classes)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).flatten(1))


preset = certtrain.load_preset({
    "name": "own",
    "data": {"name": "folder"},
    "model": {"name": "module", "source": MyNet, "arguments": {"width": 4}},
    "eps": {"max": "2/255", "start": 1, "length": 1},
    "train": {"epochs": 2, "batch_size": 10},
})
report = certtrain.train(preset, "run", certtrain.RunContext(data_dir="images"))
model = certtrain.load_model("run/model.safetensors")
images = ImageFolder("images/test", ToTensor())
x, labels = torch.stack([image for image, _ in images]), torch.tensor([label for _, label in images])
certificates = certtrain.certify(model, x, labels, 2 / 255)
assert int(certificates.certified.sum()) == report.certified
print("certified", report.certified, "of", report.examples)
"""


def test_a_script_trains_its_own_class(folder: Path):
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run([sys.executable, "-W", "error", "script.py"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("certified ")
    assert done.stdout.endswith(" of 12\n")


def stopped_after(steps: int) -> Callable[[], str | None]:
    asked = iter(range(10**6))
    return lambda: "enough" if next(asked) >= steps else None


@pytest.mark.usefixtures("no_page")
def test_train_and_resume_take_plain_paths(folder: Path):
    events: list[Event] = []
    preset = certtrain.load_preset(folder / "own.toml", {"train.epochs": 1})
    where = certtrain.RunContext(data_dir="images", device="auto", should_stop=stopped_after(1), emit=events.append)
    assert certtrain.train(preset, "run", where) is None
    (folder / "mynet.py").unlink()
    report = certtrain.resume("run", certtrain.RunContext(data_dir="images", emit=events.append))
    assert report is not None
    assert report.examples == 12
    assert [event.step for event in events if isinstance(event, Started)] == [0, 1]
    assert not [event for event in events if isinstance(event, Note) and "has changed" in event.text]


def test_a_preset_of_fields_is_that_of_a_file(folder: Path):
    fields = {
        "name": "own",
        "data": {"name": "folder", "validation": 6},
        "model": {"name": "module", "source": "mynet.py:MyNet", "arguments": {"width": 3}},
        "eps": {"max": "2/255", "start": 1, "length": 1},
        "train": {"epochs": 2, "batch_size": 8},
    }
    assert certtrain.load_preset(fields) == certtrain.load_preset("own.toml")
    changed = certtrain.load_preset(fields, {"train.epochs": 3, "model.arguments": {"width": 4}})
    assert (changed.train.epochs, changed.model.arguments) == (3, {"width": 4})
    assert fields["train"] == {"epochs": 2, "batch_size": 8}  # as they were
    with pytest.raises(certtrain.CerttrainError, match=r"preset 'own' is not valid:\n  train\.epochs: "):
        certtrain.load_preset(fields, {"train.epochs": 0})
    with pytest.raises(certtrain.CerttrainError, match="preset 'given' is not valid"):
        certtrain.load_preset({})


def test_a_network_in_the_place_of_its_class_is_an_error(folder: Path):
    model = {"name": "module", "source": torch.nn.Flatten()}
    preset = certtrain.load_preset("own.toml", {"model": model})
    with pytest.raises(NetworkError, match="Flatten is a network already"):
        certtrain.train(preset, "run", certtrain.RunContext(data_dir="images"))
    assert "run" not in files(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("no_page")
@pytest.mark.skipif(not has_compiler("cpu"), reason="compiling needs a C++ compiler")
def test_its_step_can_be_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # no C++, which takes longest
    preset = certtrain.load_preset("own.toml", {"train.compile": "on", "train.epochs": 1})
    events: list[Event] = []
    certtrain.train(preset, "run", certtrain.RunContext(data_dir="images", emit=events.append))
    assert next(event.text for event in events if isinstance(event, Note)).startswith("the step is compiled")
    eager = certtrain.load_preset("own.toml", {"train.compile": "off", "train.epochs": 1})
    certtrain.train(eager, "eager", certtrain.RunContext(data_dir="images"))
    models = [certtrain.load_model(folder / name / "model.safetensors") for name in ("run", "eager")]
    assert isinstance(models[0].metadata.architecture, Graph)
    x = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(models[0](x), models[1](x), rtol=1e-2, atol=1e-3)
