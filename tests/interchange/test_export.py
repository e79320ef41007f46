"""Exports: BatchNorm folded exactly, ONNX that other tools can read, and a check that can fail."""

import copy
import importlib
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain.bounds.graph import Add
from certtrain.bounds.interval import INTERVAL_RULES
from certtrain.bounds.reading import read_layers
from certtrain.bounds.shape_layers import Concat
from certtrain.data import load_images, to_unit
from certtrain.errors import DataError, MissingExtra, SoundnessError, StorageError, UnsupportedLayer
from certtrain.interchange import export as exporting
from certtrain.interchange.export import compare, export, export_onnx, export_weights, onnx_runner
from certtrain.interchange.operators import OPERATORS as OPERATORS_OF_LAYERS
from certtrain.network.folding import _fold, fold_batch_norm
from certtrain.network.modelfile import Classifier, read_model
from certtrain.spec.architecture import Architecture
from certtrain.spec.layers import Graph, Origin, SharedSection
from helpers.activation_cases import CASES
from helpers.exports import (
    ARCHITECTURES,
    LAYERS,
    OPERATORS,
    SHAPE,
    Block,
    Folded,
    classifier,
    close,
    every_architecture,
    images,
    listed,
    scramble,
)

needs_onnx = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None,
    reason='ONNX is not installed: pip install "certtrain[onnx]"',
)

with_and_without = pytest.mark.parametrize("batch_norm", [True, False], ids=["batch norm", "plain"])


def points(count: int) -> Tensor:
    """Random pixels, and as many corners of the pixel box."""
    inside = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2))
    return torch.cat([inside, inside.round()])


@pytest.fixture
def cnn() -> Classifier:
    return classifier(ARCHITECTURES[1])


# --- folding -----------------------------------------------------------------------------------------------


def test_a_folding_worked_by_hand() -> None:
    norm = nn.BatchNorm1d(1, eps=0.0)
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, -2.0]]))
        linear.bias.fill_(3.0)
        norm.weight.fill_(-6.0)
        norm.bias.fill_(0.5)
    norm.running_mean, norm.running_var = torch.tensor([1.0]), torch.tensor([4.0])
    assert _fold(read_layers(nn.Sequential(linear, norm).eval()), (2,)) == {"1"}
    # s = −6/√4 = −3; weights (−3, 6); bias −3 · (3 − 1) + 0.5
    assert linear.weight.tolist() == [[-3.0, 6.0]]
    assert linear.bias.tolist() == [-5.5]


@every_architecture
@with_and_without
def test_the_folded_network_is_the_original_to_rounding(architecture: Architecture, batch_norm: bool) -> None:
    model = classifier(architecture, batch_norm)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    assert not any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in folded.modules())
    assert not folded.training
    assert all(tensor.dtype == torch.float32 for tensor in folded.state_dict().values())
    assert close(folded(points(20)), model(points(20)))
    # In float64 nothing is left but the one rounding of each weight.
    assert close(folded.double()(points(20).double()), copy.deepcopy(model).double()(points(20).double()), 3e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_folded_metadata_says_so(cnn: Classifier) -> None:
    made = fold_batch_norm(cnn).metadata
    assert made.architecture == cnn.metadata.architecture.model_copy(update={"batch_norm": False})
    assert "BatchNorm folded" in made.note
    assert made.model_copy(update={"architecture": cnn.metadata.architecture, "note": ""}) == cnn.metadata


def test_a_network_without_batch_norm_is_copied_bit_for_bit() -> None:
    model = classifier(ARCHITECTURES[1], batch_norm=False)
    folded = fold_batch_norm(model)
    assert folded.metadata == model.metadata
    assert folded is not model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in folded.state_dict().items())


def test_folding_draws_no_random_numbers(cnn: Classifier) -> None:
    state = torch.get_rng_state()
    fold_batch_norm(cnn)
    assert torch.equal(torch.get_rng_state(), state)


def test_residual_sums_are_folded_branch_by_branch() -> None:
    torch.manual_seed(0)
    block = Block().double()
    for norm in (block.bn1, block.bn2):
        scramble(norm)
    block.eval()
    expected = block(points(5).double())
    assert _fold(read_layers(block), SHAPE) == {"bn1", "bn2", "bn3"}
    assert close(Folded(block)(points(5).double()), expected, 1e-12)


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)], id="first"),
        pytest.param([nn.Conv2d(2, 2, 3), nn.ReLU(), nn.BatchNorm2d(2)], id="after a ReLU"),
        pytest.param([conv := nn.Conv2d(2, 2, 3), nn.ReLU(), conv, nn.BatchNorm2d(2)], id="used twice"),
    ],
)
def test_what_no_layer_can_take_in_is_not_folded(layers: list[nn.Module]) -> None:
    before = copy.deepcopy(conv.state_dict())
    assert _fold(read_layers(nn.Sequential(*layers).eval()), (2, 6, 6)) == set()
    assert all(torch.equal(tensor, before[name]) for name, tensor in conv.state_dict().items())


def test_a_linear_layer_over_rows_does_not_take_in_a_batch_norm_over_channels() -> None:
    """Both have two weights, so nothing but their shapes shows that they act on different axes."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    assert _fold(read_layers(layers), (2, 1, 2)) == {"4"}


def test_batch_norm_without_statistics_is_an_error_with_its_name() -> None:
    layers = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(UnsupportedLayer, match="'1' cannot be folded: it keeps no running statistics"):
        _fold(read_layers(layers.eval()), (2, 6, 6))


def test_a_value_that_something_else_uses_is_not_folded() -> None:
    class UsedTwice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            out: Tensor = self.bn(y) + y
            return out

    assert _fold(read_layers(UsedTwice().eval()), (2, 6, 6)) == set()


# --- folding a graph ---------------------------------------------------------------------------------------

KEPT = ["bn0", "bn1_again", "bn4"]


def test_a_graph_loses_what_is_folded_and_keeps_the_rest() -> None:
    model = listed(LAYERS)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model)
    architecture = folded.metadata.architecture
    assert isinstance(architecture, Graph)
    assert architecture.origin == Origin(source="mynet.py:MyNet")
    folded_away = ("part.bn1", "bn2", "bn2_again", "bn5")
    assert [layer.name for layer in architecture.layers] == [
        layer["name"] for layer in LAYERS if layer["name"] not in folded_away
    ]
    assert [layer.name for layer in architecture.layers if isinstance(layer, SharedSection)] == ["conv4_again"]
    assert architecture.layers[0].bias
    assert folded.metadata.note.startswith("BatchNorm folded where it follows a layer with weights")
    assert close(folded(points(20)), model(points(20)))
    assert close(folded.double()(points(20).double()), copy.deepcopy(model).double()(points(20).double()), 3e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_graph_may_lose_all_its_batch_norm() -> None:
    kept = [layer for layer in LAYERS if layer["name"] not in KEPT]
    folded = fold_batch_norm(listed(kept))
    assert not any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) for layer in folded.modules())
    assert folded.metadata.note.startswith("BatchNorm folded; the results")


def test_a_graph_without_foldable_batch_norm_is_copied_bit_for_bit() -> None:
    model = listed([LAYERS[1] | {"num_features": 2}, *LAYERS[-5:-4], LAYERS[-4] | {"in_features": 128}, *LAYERS[-2:]])
    folded = fold_batch_norm(model)
    assert folded.metadata == model.metadata
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in folded.state_dict().items())


@needs_onnx
def test_a_graph_is_exported_with_the_batch_norm_that_stays(tmp_path: Path) -> None:
    model = listed(LAYERS)
    done = export(model, images(), weights=tmp_path / "w.safetensors", onnx=tmp_path / "n.onnx")
    assert [comparison.same_classes for comparison in done] == [70, 70]
    operators = [node.op_type for node in exported(model, tmp_path).graph.node]
    assert operators.count("BatchNormalization") == len(KEPT)
    assert close(onnx_runner(tmp_path / "n.onnx")(points(20)), model(points(20)))
    loaded = read_model(tmp_path / "w.safetensors")
    assert torch.equal(loaded(points(4)), fold_batch_norm(model)(points(4)))


def test_the_weights_file_holds_the_folded_network(cnn: Classifier, tmp_path: Path) -> None:
    loaded = export_weights(cnn, tmp_path / "new" / "folded.safetensors")
    assert torch.equal(read_model(tmp_path / "new" / "folded.safetensors")(points(4)), loaded(points(4)))
    assert torch.equal(fold_batch_norm(cnn)(points(4)), loaded(points(4)))


# --- ONNX --------------------------------------------------------------------------------------------------


def exported(model: Classifier, folder: Path) -> Any:
    import onnx

    export_onnx(model, folder / "net.onnx")
    return onnx.load(folder / "net.onnx")


@needs_onnx
@every_architecture
@with_and_without
def test_onnx_runtime_agrees_on_any_batch_size(architecture: Architecture, batch_norm: bool, tmp_path: Path) -> None:
    model = classifier(architecture, batch_norm)
    export_onnx(model, tmp_path / "net.onnx")
    run = onnx_runner(tmp_path / "net.onnx")
    for count in (1, 3, 20):
        expected = model(points(count))
        assert run(points(count)).shape == expected.shape
        assert close(run(points(count)), expected)
    assert close(run(points(1)[:1]), model(points(1)[:1]))


@needs_onnx
def test_the_onnx_graph_is_small_plain_and_old(cnn: Classifier, tmp_path: Path) -> None:
    import onnx

    proto = exported(cnn, tmp_path)
    onnx.checker.check_model(proto, full_check=True)
    operators = [node.op_type for node in proto.graph.node]
    assert operators == ["Sub", "Conv", "Conv", "Relu", "Conv", "Relu", "Flatten", "Gemm", "Relu", "Gemm"]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 13)]
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["pixels", "logits"]
    dimensions = [d.dim_param or d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["batch", *SHAPE]
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]  # no data beside it


@needs_onnx
def test_the_onnx_file_says_what_it_is(cnn: Classifier, tmp_path: Path) -> None:
    from certtrain import __version__

    properties = {entry.key: entry.value for entry in exported(cnn, tmp_path).metadata_props}
    assert properties["certtrain"] == __version__
    assert float(properties["eps"]) == 8 / 255
    assert properties["dataset"] == "folder"
    assert json.loads(properties["class_names"]) == ["cat", "dog", "naïve"]
    assert "BatchNorm folded" in properties["note"]


@needs_onnx
def test_the_same_network_gives_the_same_bytes(cnn: Classifier, tmp_path: Path) -> None:
    export_onnx(cnn, tmp_path / "a.onnx")
    export_onnx(cnn, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@needs_onnx
def test_export_writes_nothing_to_the_terminal(
    cnn: Classifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    export(cnn, images(), weights=tmp_path / "w.safetensors", onnx=tmp_path / "n.onnx")
    assert capfd.readouterr() == ("", "")


@needs_onnx
def test_residual_sums_are_exported(cnn: Classifier, tmp_path: Path) -> None:
    torch.manual_seed(0)
    block = Block().eval()
    _fold(read_layers(block), SHAPE)
    folded = Folded(block)
    proto = exporting._onnx_model(read_layers(folded), cnn.metadata)
    assert [node.op_type for node in proto.graph.node].count("Add") == 1
    (tmp_path / "block.onnx").write_bytes(proto.SerializeToString())
    assert close(onnx_runner(tmp_path / "block.onnx")(points(3)), folded(points(3)))


@needs_onnx
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, of speed
@pytest.mark.parametrize(("layer", "shape"), OPERATORS, ids=lambda value: str(value))
def test_every_layer_is_exported_as_what_it_computes(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    import onnx

    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and layer.affine:
        scramble(layer)
    expected = layer.eval()(x)
    nodes, constants = exporting._translate(read_layers(layer), shape)
    given, found = (
        onnx.helper.make_tensor_value_info(name, 1, ["batch", *value.shape[1:]])
        for name, value in (("pixels", x), ("logits", expected))
    )
    graph = onnx.helper.make_graph(nodes, "layer", [given], [found], constants)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(proto, full_check=True)
    (tmp_path / "layer.onnx").write_bytes(proto.SerializeToString())
    assert close(onnx_runner(tmp_path / "layer.onnx")(x), expected.detach())


def test_every_layer_with_a_rule_has_operators() -> None:
    assert OPERATORS_OF_LAYERS.keys() == INTERVAL_RULES.keys()
    assert {type(layer) for layer, _ in OPERATORS} | {Add, Concat} == INTERVAL_RULES.keys()


NOT_EXPORTED: list[tuple[nn.Module, str]] = [
    (nn.Mish(), r"it is a Mish; only .*Conv2d.* can be exported"),
    (CASES["softplus of a low threshold"].layer, "its threshold is 1, and ONNX's Softplus has none"),
    (nn.Linear(8, 3), r"needs flat inputs, but these have shape \(2, 8, 8\)"),
    (nn.AdaptiveAvgPool2d(3), "8×8 values are not a multiple of its output's"),
    (nn.MaxPool2d(2, 2, 1, dilation=2, ceil_mode=True), "reach so far beyond the end"),
    (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), "pads by 'circular'"),
    (nn.BatchNorm2d(2, track_running_stats=False), "keeps no running statistics"),
]


@pytest.mark.parametrize(("layer", "message"), NOT_EXPORTED, ids=lambda value: str(value))
def test_a_layer_that_is_not_exported_is_named(layer: nn.Module, message: str) -> None:
    graph = read_layers(nn.Sequential(nn.Identity(), layer))
    with pytest.raises(UnsupportedLayer, match=f"'1' is not exported: .*{message}"):
        exporting._translate(graph, SHAPE)


@pytest.mark.parametrize("absent", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_and_nothing_is_written(
    absent: str, cnn: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> ModuleType:
        if name == absent:
            raise ModuleNotFoundError(f"No module named {absent!r}", name=absent)
        return ModuleType(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtra, match=rf'{absent}.*pip install "certtrain\[onnx\]"'):
        export(cnn, images(), weights=tmp_path / "w.safetensors", onnx=tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())
    export(cnn, images(), weights=tmp_path / "w.safetensors")  # the weights need no extra


# --- the check ---------------------------------------------------------------------------------------------


def nudged(model: Classifier, layer: str, by: float = 1e-3) -> Classifier:
    """A copy with one weight changed."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.get_parameter(f"{layer}.weight").view(-1)[0] += by
    return changed


@needs_onnx
@every_architecture
@pytest.mark.parametrize("count", [1, 70])
def test_an_export_is_within_rounding_of_the_original(architecture: Architecture, count: int, tmp_path: Path) -> None:
    for seed in range(3):
        model = classifier(architecture, seed=seed)
        done = export(model, images(count), weights=tmp_path / "w.safetensors", onnx=tmp_path / "n.onnx")
        assert [comparison.what for comparison in done] == ["folded weights", "ONNX"]
        for comparison in done:
            assert comparison.examples == comparison.same_classes == count
            assert comparison.largest_difference <= comparison.tolerance < 1e-3 * comparison.largest_logit
            assert comparison.to_dict()["tolerance"] == comparison.tolerance
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.onnx", "w.safetensors"]


@pytest.mark.parametrize("layer", ["conv1", "conv2", "linear1", "head"])
def test_one_weight_that_is_off_by_a_thousandth_fails(layer: str, cnn: Classifier) -> None:
    folded = fold_batch_norm(cnn)
    compare(cnn, folded, images(), "folded weights")
    with pytest.raises(SoundnessError, match="folded weights differ from the original's by up to"):
        compare(cnn, nudged(folded, layer), images(), "folded weights")


def test_the_comparison_of_a_network_with_itself_is_exact(cnn: Classifier) -> None:
    same = compare(cnn, cnn, images(40), "folded weights")
    assert (same.largest_difference, same.same_classes, same.examples) == (0.0, 40, 40)
    assert same.largest_logit == pytest.approx(cnn(to_unit(images(40).images)).abs().max().item())


BROKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN or infinity for 70 examples": lambda x: torch.full((len(x), 3), torch.nan),
    "NaN or infinity": lambda x: torch.full((len(x), 3), torch.inf),
    "of shape": lambda x: torch.zeros(len(x), 1),
}


@pytest.mark.parametrize("message", BROKEN)
def test_outputs_that_are_not_finite_or_of_another_shape_fail(message: str, cnn: Classifier) -> None:
    with pytest.raises(SoundnessError, match=message):
        compare(cnn, BROKEN[message], images(), "ONNX")


def test_a_model_that_is_not_finite_itself_has_an_error_of_its_own(cnn: Classifier) -> None:
    with torch.no_grad():
        cnn.get_parameter("head.bias")[0] = torch.inf
    with pytest.raises(SoundnessError, match="the model itself gives NaN or infinity"):
        compare(cnn, cnn, images(), "ONNX")


def test_images_of_another_data_set_are_refused(cnn: Classifier, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="digits has images of shape"):
        export(cnn, load_images("digits", "test").take(5), weights=tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())


@needs_onnx
@pytest.mark.parametrize("earlier", [b"an earlier export", None])
def test_a_failed_check_leaves_every_file_as_it_was(
    earlier: bytes | None, cnn: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, onnx_file = tmp_path / "w.safetensors", tmp_path / "n.onnx"
    if earlier is not None:
        weights.write_bytes(earlier)
        onnx_file.write_bytes(earlier)
    genuine = exporting.export_onnx
    monkeypatch.setattr(exporting, "export_onnx", lambda model, path: genuine(nudged(model, "head"), path))
    with pytest.raises(SoundnessError, match="exported ONNX differ"):
        export(cnn, images(), weights=weights, onnx=onnx_file)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == ({} if earlier is None else {"w.safetensors": earlier, "n.onnx": earlier})


def test_a_checked_export_replaces_an_earlier_file(cnn: Classifier, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"an earlier export")
    export(cnn, images(), weights=tmp_path / "w.safetensors")
    assert read_model(tmp_path / "w.safetensors").metadata.note
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_an_unwritable_place_is_a_clear_error(cnn: Classifier, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*w\.safetensors"):
        export(cnn, images(), weights=tmp_path / "file" / "w.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*folder"):
        export(cnn, images(), weights=tmp_path / "folder")
    with pytest.raises(StorageError, match="name two files"):
        export(cnn, images(), weights=tmp_path / "both", onnx=tmp_path / "both")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
