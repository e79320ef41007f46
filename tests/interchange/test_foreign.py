"""Networks of other programs as classifiers of pixels: the same network in every form, and the order of values."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import certtrain
from certtrain.attack import PGD
from certtrain.bounds.rounding import gamma
from certtrain.data import load_images, to_unit
from certtrain.errors import DataError, MethodError, ModelFileError, NetworkError, SoundnessError, UnsupportedLayer
from certtrain.interchange import foreign
from certtrain.interchange.onnxpatterns import ONE, ZERO
from certtrain.interchange.onnxruns import check_runs_as_read
from certtrain.interchange.onnxvalues import OnnxValue
from certtrain.network.modelfile import Classifier
from certtrain.network.reading import ONNX_SIGMOID, ForeignMetadata, chosen_layout
from certtrain.verification.methods import assumptions_of
from helpers.foreign_networks import CODE, MEAN, STD, Net, save_program, trained_net
from helpers.onnx_files import exported, node, random, run, save

EPS = 4 / 255
ABOUT = {"dataset": "digits", "eps": EPS, "mean": (MEAN,), "std": (STD,)}


@pytest.fixture(scope="module")
def network() -> Net:
    return trained_net()


@pytest.fixture(scope="module")
def forms(network: Net, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str | None]]:
    """The network's files, each with the module's name if it needs one."""
    folder = tmp_path_factory.mktemp("forms")
    (folder / "net.py").write_text(CODE)
    source = f"{folder / 'net.py'}:Net"
    torch.save(network.state_dict(), folder / "weights.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, folder / "checkpoint.pth")
    save_file(network.state_dict(), folder / "weights.safetensors")
    return {
        "onnx": (exported(network, (1, 8, 8), folder), None),
        "pt2": (save_program(network, folder / "net.pt2"), None),
        "pt2 for one": (save_program(network, folder / "one.pt2", batch=1), None),
        "state dict": (folder / "weights.pt", source),
        "checkpoint": (folder / "checkpoint.pth", source),
        "safetensors": (folder / "weights.safetensors", source),
    }


@pytest.fixture(scope="module")
def own(network: Net, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """The network as a model file of certtrain."""
    path = tmp_path_factory.mktemp("own") / "model.safetensors"
    certtrain.save_model(network, path, dataset="digits", eps=EPS, mean=(MEAN,), std=(STD,))
    return certtrain.load_model(path)


FORMS = ("onnx", "pt2", "pt2 for one", "state dict", "checkpoint", "safetensors")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_verdicts_of_the_model_file(
    form: str, forms: dict[str, tuple[Path, str | None]], own: Classifier
) -> None:
    path, module = forms[form]
    found, images = certtrain.load_network(path, module=module, **ABOUT), load_images("digits", "test").take(60)
    reports = [certtrain.verify(model, images, EPS, attack=PGD(), method="crown-ibp") for model in (own, found)]
    assert reports[0].verdicts == reports[1].verdicts
    assert 0 < reports[0].certified < reports[0].examples, "the case decides nothing otherwise"
    margins = [[result.margin for result in report.results] for report in reports]
    for expected, margin in zip(*margins, strict=True):
        assert margin == expected if expected is None else margin == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert set(reports[0].assumptions) < set(reports[1].assumptions)
    assert any(f"mean {MEAN}, std {STD}" in line for line in reports[1].assumptions)


def test_an_onnx_file_with_sigmoid_says_that_onnx_runtime_is_less_accurate(tmp_path: Path) -> None:
    said: list[bool] = []
    for kind in ("Sigmoid", "Tanh"):
        nodes = [node("MatMul", "x w", "h"), node(kind, "h", "y")]
        file = save(tmp_path, nodes, ["N", 64], ["N", 10], w=random(64, 10))
        model = certtrain.load_network(file, dataset="digits", eps=EPS)
        said.append(ONNX_SIGMOID in assumptions_of(model, "ibp", "float32"))
    assert said == [True, False]


def test_onnx_runtimes_sigmoid_is_less_accurate_than_torchs(tmp_path: Path) -> None:
    x = torch.linspace(-18, 18, 1001).unsqueeze(1)
    exact = x.double().sigmoid()
    error = (run(save(tmp_path, [node("Sigmoid", "x", "y")], ["N", 1], ["N", 1]), x).double() - exact).abs()
    assert bool((error <= 2.0**-22).all())
    assert bool((error > 8 * 2.0**-23 * exact).any()), "the assumption is not needed any more"
    assert bool(((x.sigmoid().double() - exact).abs() <= 8 * 2.0**-23 * exact).all())


def test_a_flat_network_is_given_the_values_in_its_order(tmp_path: Path) -> None:
    """Weights for one order, permuted for another, are the same network in that order."""
    torch.manual_seed(0)
    weight, orders = random(10, 48), {"chw": (0, 1, 2), "hwc": (1, 2, 0), "cwh": (0, 2, 1)}
    images = replace(
        load_images("digits", "test").take(8),
        images=torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "load_images", lambda *a, **k: images)
        found: list[Tensor] = []
        for layout, order in orders.items():
            moved = weight.view(10, 3, 4, 4).permute(0, *(place + 1 for place in order)).reshape(10, 48)
            file = save(tmp_path, [node("MatMul", "x w", "y")], ["N", 48], ["N", 10], w=moved.T.contiguous())
            model = certtrain.load_network(file, dataset="digits", eps=EPS, layout=layout)
            found.append(model(to_unit(images.images)))
            with pytest.raises(DataError, match="say --layout"):
                certtrain.load_network(file, dataset="digits", eps=EPS)
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert torch.allclose(found[0], found[2], atol=1e-5)
    assert torch.allclose(found[0], to_unit(images.images).flatten(1) @ weight.T, atol=1e-5)


def test_the_order_follows_from_the_shape_where_it_can() -> None:
    assert chosen_layout((3, 4, 5), (3, 4, 5), None) == "chw"
    assert chosen_layout((3, 4, 5), (1, 3, 4, 5), None) == "chw"
    assert chosen_layout((3, 4, 5), (4, 5, 3), None) == "hwc"
    assert chosen_layout((1, 4, 5), (20,), None) == "chw"
    assert chosen_layout((1, 4, 5), (20, 1), None) == "chw"
    assert chosen_layout((3, 4, 5), (3, 5, 4), "cwh") == "cwh"
    for wanted, layout in (((60,), None), ((3, 5, 4), None), ((3, 4, 5), "hwc"), ((59,), "chw")):
        with pytest.raises(DataError):
            chosen_layout((3, 4, 5), wanted, layout)
    for sides in ((4, 2, 2), (2, 8), (2, 2, 4)):  # parts of one image in an order that nobody knows
        with pytest.raises(DataError, match="the network takes"):
            chosen_layout((1, 4, 4), sides, None)


@pytest.mark.parametrize("sides", [["N", 1, 8, 8], [1, 1, 8, 8], [2, 1, 8, 8], [1, 64, 1], [64], ["N", 8, 8, 1]])
def test_inputs_of_other_shapes_are_taken(sides: list[int | str], tmp_path: Path) -> None:
    weight = random(64, 10)
    rows = [2] if sides[0] == 2 else [1] if len(sides) < 4 or sides[0] == 1 else ["N"]
    flat = torch.tensor([2 if sides[0] == 2 else 1 if rows == [1] else -1, 64])
    nodes = [node("Reshape", "x s", "f"), node("MatMul", "f w", "y")]
    model = certtrain.load_network(
        save(tmp_path, nodes, sides, [*rows, 10], w=weight, s=flat), dataset="digits", eps=EPS
    )
    x = to_unit(load_images("digits", "test").take(3).images)
    assert torch.allclose(model(x), x.flatten(1) @ weight, atol=1e-4)


def test_normalisation_inside_the_file_is_certified_with_it(tmp_path: Path) -> None:
    """The same network with Sub and Div of the file, and with mean and std given, has nearly the same margins."""
    weight, images = random(64, 10) / 8, load_images("digits", "test").take(20)
    head = [node("Flatten", "n", "f"), node("MatMul", "f w", "y")]
    inside = [node("Sub", "x m", "d"), node("Div", "d s", "n"), *head]
    constants = {"m": torch.tensor(MEAN), "s": torch.tensor(STD), "w": weight}
    first = certtrain.load_network(
        save(tmp_path, inside, ["N", 1, 8, 8], ["N", 10], **constants), dataset="digits", eps=EPS
    )
    plain = [node("Identity", "x", "n"), *head]
    second = certtrain.load_network(save(tmp_path, plain, ["N", 1, 8, 8], ["N", 10], w=weight), **ABOUT)
    x = to_unit(images.images)
    margins = [certtrain.certify(model, x, images.labels, EPS).margin for model in (first, second)]
    assert torch.allclose(*margins, atol=1e-4)


REFUSED_SUMS = {
    "a sum that is taken back": [node("Add", "x c", "a"), node("Sub", "a c", "n")],
    "factors whose product is one": [node("Mul", "x c", "a"), node("Div", "a c", "n")],
    "sums that nearly cancel": [node("Add", "x c", "a"), node("Sub", "a d", "n")],
    "a tiny factor between": [node("Mul", "x t", "a"), node("Div", "a t", "b"), node("Add", "b d", "n")],
}


@pytest.mark.parametrize("case", REFUSED_SUMS)
def test_combined_operators_that_round_more_than_certificates_add_are_refused(case: str, tmp_path: Path) -> None:
    nodes = [*REFUSED_SUMS[case], node("Flatten", "n", "f"), node("MatMul", "f w", "y")]
    constants = {"c": torch.tensor(100.0), "d": torch.tensor(99.5), "t": torch.tensor(1e-30), "w": random(64, 10)}
    file = save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 10], **constants)
    with pytest.raises(UnsupportedLayer, match="round more than"):
        certtrain.load_network(file, dataset="digits", eps=EPS)


def test_the_rounding_of_separate_operators_is_inside_the_bounds(tmp_path: Path) -> None:
    """Each step in float32 by itself, at the pixels and with ε = 0: its result is within the bounds that were added."""
    constants = {"m": torch.tensor(0.3333), "s": torch.tensor(0.0071), "k": torch.tensor(1.7)}
    nodes = [node("Sub", "x m", "d"), node("Div", "d s", "e"), node("Mul", "e k", "n"), node("Flatten", "n", "y")]
    x = torch.rand(2, 1, 2, 5, generator=torch.Generator().manual_seed(1))
    images = replace(load_images("digits", "test").take(2), images=torch.zeros(2, 1, 2, 5, dtype=torch.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign, "load_images", lambda *a, **k: images)
        file = save(tmp_path, nodes, ["N", 1, 2, 5], ["N", 10], **constants)
        model = certtrain.load_network(file, dataset="digits", eps=EPS)
    steps = (((x - constants["m"]) / constants["s"]) * constants["k"]).flatten(1)
    labels = steps.argmin(1)
    found = certtrain.certify(model, x, labels, 0.0).margin
    rows = steps.gather(1, labels.unsqueeze(1)) - steps
    computed = rows.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)
    assert bool((found <= computed.double()).all())
    exact = (((x.double() - constants["m"].double()) / constants["s"].double()) * constants["k"].double()).flatten(1)
    assert bool(((steps.double() - exact).abs() > 0).any()), "nothing rounds otherwise"


@pytest.mark.parametrize("seed", range(40))
def test_steps_that_are_within_a_batch_norms_rounding_are(seed: int) -> None:
    """Random chains of sums and products, each rounded to float32, against the affine function in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2000, generator=generator)
    value, computed = OnnxValue("x", (1,)), x
    for _ in range(int(torch.randint(1, 7, (), generator=generator))):
        constant = (torch.randn((), generator=generator) * 10 ** torch.randn((), generator=generator)).float()
        if bool(torch.rand((), generator=generator) < 0.5):
            computed, value = computed + constant, value.affine(ONE, constant.double())
        else:
            computed, value = computed * constant, value.affine(constant.double(), ZERO)
    assert value.steps is not None
    if value.scale is None or value.shift is None or not value.steps.within(value.scale, value.shift):
        return
    scale, shift = (part.float().double() for part in (value.scale, value.shift))  # as the layer has them
    allowed = gamma(16, 2.0**-24) * (scale.abs() * x.double() + shift.abs()) + 1e-37
    assert bool(((computed.double() - (scale * x.double() + shift)).abs() <= allowed).all())


def test_some_chains_are_within_and_some_are_not() -> None:
    value = OnnxValue("x", (1,)).affine(ONE, -ONE / 3).affine(ONE * 7, ZERO)
    assert value.steps is not None
    assert value.steps.within(value.scale, value.shift)
    value = value.affine(ONE, ONE * 7 / 3 + 1e-4)
    assert value.steps is not None
    assert not value.steps.within(value.scale, value.shift)


def test_a_file_that_runs_differently_is_a_fault(tmp_path: Path) -> None:
    constants = {"w": random(64, 10)}
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "y")]
    file = save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 10], **constants)
    model = certtrain.load_network(file, dataset="digits", eps=EPS)
    save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 10], w=constants["w"] * 1.01)
    with pytest.raises(SoundnessError, match="differ by"):
        check_runs_as_read(file, model)


def test_what_does_not_fit_is_refused(forms: dict[str, tuple[Path, str | None]], tmp_path: Path) -> None:
    path, source = forms["state dict"]
    assert source is not None
    with pytest.raises(DataError, match="std"):
        certtrain.load_network(forms["onnx"][0], dataset="digits", eps=EPS, std=(0.0,))
    with pytest.raises(DataError, match="1 channels"):
        certtrain.load_network(forms["onnx"][0], dataset="digits", eps=EPS, mean=(0.1, 0.2))
    with pytest.raises(ModelFileError, match=r"neither an \.onnx file"):
        certtrain.load_network(path, dataset="digits", eps=EPS)
    with pytest.raises(ModelFileError, match="whole network"):
        certtrain.load_network(forms["onnx"][0], dataset="digits", eps=EPS, module=source)
    with pytest.raises(DataError, match="permute"):
        certtrain.load_network(path, dataset="digits", eps=EPS, module=source, layout="hwc")
    with pytest.raises(NetworkError, match="has no 'Nut'"):
        certtrain.load_network(path, dataset="digits", eps=EPS, module=source.replace(":Net", ":Nut"))
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "y")]
    file = save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 9], w=random(64, 9))
    with pytest.raises(DataError, match="9 outputs, but digits has 10"):
        certtrain.load_network(file, dataset="digits", eps=EPS)
    file = save(tmp_path, nodes, ["N", 1, 8, 8], ["N", 10], kind=11, w=random(64, 10).double())
    with pytest.raises(UnsupportedLayer, match="float64"):
        certtrain.load_network(file, dataset="digits", eps=EPS)


def test_batch_norm_of_a_file_is_not_folded(forms: dict[str, tuple[Path, str | None]]) -> None:
    """Folded, it would not be the operators of the file, about which its certificates are."""
    model, images = certtrain.load_network(forms["onnx"][0], **ABOUT), load_images("digits", "test").take(2)
    with pytest.raises(NetworkError, match="only certtrain's own networks are folded"):
        certtrain.verify(model, images, EPS, attack=None, method="ibp", network="folded")


def test_autocast_is_no_arithmetic_of_an_onnx_file(forms: dict[str, tuple[Path, str | None]]) -> None:
    images = load_images("digits", "test").take(4)
    for form in ("onnx", "pt2"):
        model = certtrain.load_network(forms[form][0], **ABOUT)
        about = (model, to_unit(images.images), images.labels, EPS)
        if form == "pt2":
            assert len(certtrain.certify(*about, arithmetic="bf16").verdicts) == 4
            continue
        with pytest.raises(MethodError, match=r"torch\.autocast"):
            certtrain.certify(*about, arithmetic="bf16")


def test_weights_that_are_not_finite_or_of_another_network_are_refused(tmp_path: Path, network: Net) -> None:
    (tmp_path / "net.py").write_text(CODE)
    about = {"dataset": "digits", "eps": EPS, "module": f"{tmp_path / 'net.py'}:Net"}
    state = network.state_dict()
    torch.save({**state, "head.bias": torch.full((10,), torch.nan)}, tmp_path / "nan.pt")
    with pytest.raises((ModelFileError, UnsupportedLayer), match=r"NaN|not finite"):
        certtrain.load_network(tmp_path / "nan.pt", **about)
    torch.save({**state, "head.bias": torch.zeros(9)}, tmp_path / "shape.pt")
    with pytest.raises(ModelFileError, match=r"head\.bias"):
        certtrain.load_network(tmp_path / "shape.pt", **about)
    del state["head.bias"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ModelFileError, match=r"head\.bias"):
        certtrain.load_network(tmp_path / "less.pt", **about)


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path, network: Net) -> None:
    (tmp_path / "net.py").write_text(CODE)
    about = {"dataset": "digits", "eps": EPS, "module": f"{tmp_path / 'net.py'}:Net"}
    touched = tmp_path / "touched"
    torch.save({"state_dict": network.state_dict(), "more": Payload(touched)}, tmp_path / "bad.pt")
    with pytest.raises(ModelFileError, match="nothing of it was run; it asks for 'getattr'") as caught:
        certtrain.load_network(tmp_path / "bad.pt", **about)
    assert "weights_only" not in str(caught.value), "torch advises to run it"
    assert not touched.exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert touched.exists(), "the file is harmless otherwise"
    torch.save(network, tmp_path / "whole.pt")
    with pytest.raises(ModelFileError, match="Save the weights alone"):
        certtrain.load_network(tmp_path / "whole.pt", **about)
    for content in (b"", b"PK\x03\x04", b"\x80\x02]q\x00.", b"not a file of torch"):
        (tmp_path / "broken.pt").write_bytes(content)
        with pytest.raises(ModelFileError):
            certtrain.load_network(tmp_path / "broken.pt", **about)


def test_a_file_that_is_cut_short_is_refused(
    forms: dict[str, tuple[Path, str | None]], tmp_path: Path, network: Net
) -> None:
    for path, module in forms.values():
        data = path.read_bytes()
        for length in (0, 10, len(data) // 2, len(data) - 10):
            (tmp_path / path.name).write_bytes(data[:length])
            with pytest.raises((ModelFileError, UnsupportedLayer)):
                certtrain.load_network(tmp_path / path.name, module=module, **ABOUT)


def test_the_metadata_say_how_the_file_was_read(forms: dict[str, tuple[Path, str | None]]) -> None:
    metadata = certtrain.load_network(forms["pt2"][0], **ABOUT).metadata
    assert isinstance(metadata, ForeignMetadata)
    found = json.loads(metadata.reading.model_dump_json())
    assert found == {"kind": "pt2", "mean": [MEAN], "std": [STD], "layout": "chw"}


def test_a_module_whose_forward_is_more_than_its_layers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n\n\nclass Odd(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.head = nn.Linear(64, 10)\n\n    def forward(self, x):\n"
        "        return self.head(x.flatten(1)) * 2\n"
    )
    torch.save(nn.ModuleDict({"head": nn.Linear(64, 10)}).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UnsupportedLayer, match=r"x \* y"):
        certtrain.load_network(tmp_path / "w.pt", dataset="digits", eps=EPS, module=f"{tmp_path / 'odd.py'}:Odd")
