"""Presets: all that ship are valid, wrong fields are named, overrides replace single fields."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest

from certtrain.errors import PresetError
from certtrain.spec.architecture import CNN, NETWORKS, WideResNet
from certtrain.spec.objective import OBJECTIVES, CrownIBPSection, SABRSection, described_objective
from certtrain.spec.preset import Preset, load_preset, parse_override, preset_names

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "presets").rglob("*.toml"))


# --- what ships ------------------------------------------------------------------------------------------


def test_presets_are_found_in_a_checkout():
    assert "digits" in preset_names()
    assert preset_names() == sorted(file.stem for file in SHIPPED)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_preset_is_valid_and_named_as_its_file(file: Path):
    preset = load_preset(file.stem)
    assert preset.name == file.stem
    assert preset.description
    assert preset == load_preset(str(file))
    assert all(milestone < preset.train.epochs for milestone in preset.train.milestones)
    assert preset.eps.start + preset.eps.length <= preset.train.epochs


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_resolved_preset_survives_json(file: Path, tmp_path: Path):
    preset = load_preset(file.stem)
    (tmp_path / "preset.json").write_text(json.dumps(preset.model_dump(mode="json")), encoding="utf-8")
    assert load_preset(str(tmp_path / "preset.json")) == preset


# Epochs, batch, milestones, start and length of the ramp, ε, λ: as the paper has them.
PAPER = {
    "cifar10-160ep": (160, 128, (120, 140), 2, 80, 8 / 255, 0.5),
    "cifar10-70ep": (70, 128, (50, 60), 2, 20, 8 / 255, 0.5),
    "mnist-70ep": (70, 256, (50, 60), 1, 20, 0.4, 0.5),
    "tinyimagenet-80ep": (80, 128, (61, 71), 2, 20, 1 / 255, 0.2),
}
OTHER_NETWORKS = {
    "cifar10-wide-resnet": "cifar10-160ep",
    "cifar10-resnext": "cifar10-160ep",
    "tinyimagenet-wide-resnet": "tinyimagenet-80ep",
    "tinyimagenet-resnext": "tinyimagenet-80ep",
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_presets_have_the_papers_numbers(name: str):
    preset = load_preset(name)
    train, eps = preset.train, preset.eps
    found = (train.epochs, train.batch_size, train.milestones, eps.start, eps.length, eps.max)
    assert (*found, preset.regularizer.weight) == PAPER[name]
    assert (train.learning_rate, train.decay, train.clip_norm, preset.init) == (5e-4, 0.2, 10.0, "ibp")
    assert (preset.model.name, preset.model.width, preset.model.linear_size) == ("cnn7", 64, 512)
    assert (preset.regularizer.tightness, preset.regularizer.relu_balance) == (True, True)


@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_another_network_is_trained_as_cnn7_is(name: str):
    preset, other = load_preset(name), load_preset(OTHER_NETWORKS[name])
    own = {"name", "description", "model"}
    assert preset.model_dump(exclude=own) == other.model_dump(exclude=own)
    assert preset.model.batch_norm
    assert "not yet measured" in preset.description


def test_vanilla_ibp_differs_in_the_three_improvements_alone():
    preset, other = load_preset("cifar10-vanilla-ibp"), load_preset("cifar10-160ep")
    assert (preset.init, preset.model.batch_norm) == ("xavier", False)
    assert (preset.regularizer.tightness, preset.regularizer.relu_balance) == (False, False)
    undone = {"init": "ibp", "model.batch_norm": True, "regularizer.tightness": True, "regularizer.relu_balance": True}
    own = {"name", "description"}
    assert load_preset(preset.name, undone).model_dump(exclude=own) == other.model_dump(exclude=own)


def test_crown_ibp_differs_from_vanilla_ibp_in_its_objective_alone():
    preset, other = load_preset("cifar10-crown-ibp"), load_preset("cifar10-vanilla-ibp")
    assert preset.objective == CrownIBPSection(name="crown-ibp", loss_fusion=True)
    own = {"name", "description", "objective"}
    assert preset.model_dump(exclude=own) == other.model_dump(exclude=own)


def test_attacks_need_the_statistics_of_the_clean_batch():
    with pytest.raises(PresetError, match=r'"mtl-ibp" needs train.batch_norm_statistics = "clean"'):
        load_preset("mnist-cpu", {"objective.name": "mtl-ibp"})


def test_another_objective_keeps_the_fields_that_it_has_too_with_the_same_default():
    mtl = {"name": "mtl-ibp", "alpha": 0.1, "natural_share": 0.2, "attack": {"steps": 3}}
    values = {**load_preset("digits").model_dump(mode="json"), "objective": mtl}
    found = load_preset(values, {"objective.name": "sabr", "objective.subselection_ratio": 0.3}).objective
    assert isinstance(found, SABRSection)
    assert (found.natural_share, found.attack.steps, found.subselection_ratio) == (0.2, 8, 0.3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_defaults(name: str):
    custom = {"objective.source": "my.py:Mine"} if name == "custom" else {}
    assert load_preset("digits", {"objective.name": name} | custom).objective.name == name
    assert OBJECTIVES[name].model_fields["name"].annotation == Literal[name]


def test_the_bounds_of_an_earlier_format_name_the_objective():
    values = load_preset("digits").model_dump(mode="json")
    del values["format"], values["objective"]
    crown = load_preset(values | {"bounds": {"method": "crown-ibp", "loss_fusion": False}})
    assert crown.objective == CrownIBPSection(name="crown-ibp", loss_fusion=False)
    assert load_preset(values | {"bounds": {"method": "ibp", "loss_fusion": True}}).objective.name == "ibp"
    assert load_preset(values | {"bounds": {}}).objective.name == "ibp"
    with pytest.raises(PresetError, match=r"write the fields of \[bounds\] in \[objective\]"):
        load_preset(values | {"bounds": {"method": "ibp"}, "objective": {"name": "ibp"}})
    with pytest.raises(PresetError, match="no such field"):
        load_preset(values | {"bounds": {"method": "ibp", "speed": 1}})


# --- what ships for each objective and radius ------------------------------------------------------------

BASES = ("mnist-0.1", "mnist-0.3", "cifar10-2-255", "cifar10-8-255", "tinyimagenet-1-255")
CTRAIN = [file.stem for file in SHIPPED if file.stem.endswith("-ctrain")]


def named_objective(preset: str) -> str:
    """The objective in the name of a preset; IBP if there is none."""
    found = [objective for objective in OBJECTIVES if f"-{objective}-" in f"-{preset}-"]
    return max(found, key=len, default="ibp")


def extended(file: Path) -> str | None:
    """What the preset in the file extends."""
    found: str | None = tomllib.loads(file.read_text(encoding="utf-8")).get("extends")
    return found


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_preset_has_the_objective_of_its_name_and_extends_one_that_ships(file: Path):
    assert load_preset(file.stem).objective.name == named_objective(file.stem)
    assert extended(file) in (None, *preset_names())
    assert file.read_text(encoding="utf-8").startswith("# ")  # where its settings come from


def test_each_radius_has_a_preset_for_each_objective():
    ours = {(base, objective) for base in BASES for objective in OBJECTIVES if objective != "custom"}
    found = {(extended(file), named_objective(file.stem)) for file in SHIPPED if extended(file) in BASES}
    assert found | {("cifar10-8-255", "ibp")} == ours
    assert load_preset("cifar10-8-255").objective.name == "ibp"  # which needs no preset beside its base


MEASURED = {"cifar10-8-255-ibp-ctrain"}  # benchmarks/RESULTS.md has a run of it


def test_the_presets_of_a_radius_have_its_data_radius_and_network():
    for file in SHIPPED:
        if (base := extended(file)) in BASES:
            preset, other = load_preset(file.stem), load_preset(base)
            assert (preset.data, preset.model, preset.eps.max) == (other.data, other.model, other.eps.max)
            assert preset.name.startswith(f"{base}-")
            assert ("not yet measured" in preset.description) == (file.stem not in MEASURED)


# Epochs, batch, milestones, start and length of the ramp, factor of ε, λ of the regularisers.
COMMON = {
    "mnist-0.1": (70, 256, (50, 60), 1, 20, 2.0, 0.5),
    "mnist-0.3": (70, 256, (50, 60), 1, 20, 1.0, 0.5),
    "cifar10-2-255": (160, 128, (120, 140), 2, 80, 1.0, 0.5),
    "cifar10-8-255": (240, 128, (200, 220), 2, 120, 1.0, 0.5),
    "tinyimagenet-1-255": (160, 128, (120, 140), 2, 80, 1.0, 0.2),
}


def schedule(preset: Preset) -> tuple[Any, ...]:
    train, eps = preset.train, preset.eps
    ramp = (eps.start, eps.length, eps.train_factor)
    return (train.epochs, train.batch_size, train.milestones, *ramp, preset.regularizer.weight)


@pytest.mark.parametrize("base", COMMON)
def test_the_schedules_are_those_of_ctbench(base: str):
    preset = load_preset(base)
    assert schedule(preset) == COMMON[base]
    train = preset.train
    assert (train.learning_rate, train.decay, train.clip_norm, train.optimizer) == (5e-4, 0.2, 10.0, "adam")
    assert (train.l1, train.batch_norm_refresh, preset.init, preset.model.name) == (0, True, "ibp", "cnn7")


# What differs from preset to preset: weight of the L1 norm, first epoch of the average, share of the natural loss.
PUBLISHED = {
    "mnist-0.1-ibp": (2e-6, None, 0.3),
    "mnist-0.1-crown-ibp": (5e-6, None, 0.3),
    "mnist-0.1-sabr": (1e-6, None, 0.3),
    "mnist-0.1-taps": (2e-6, None, 0.3),
    "mnist-0.1-staps": (5e-6, None, 0.3),
    "mnist-0.1-mtl-ibp": (1e-5, 65, 0.3),
    "mnist-0.1-cc-ibp": (1e-5, 65, 0.3),
    "mnist-0.1-exp-ibp": (1e-5, 65, 0.3),
    "mnist-0.1-pgd": (1e-5, None, 0.0),
    "mnist-0.3-ibp": (2e-6, None, 0.3),
    "mnist-0.3-crown-ibp": (1e-6, None, 0.3),
    "mnist-0.3-sabr": (2e-6, None, 0.0),
    "mnist-0.3-taps": (0.0, None, 0.0),
    "mnist-0.3-staps": (1e-5, None, 0.0),
    "mnist-0.3-mtl-ibp": (1e-6, 65, 0.0),
    "mnist-0.3-cc-ibp": (3e-6, None, 0.0),
    "cifar10-2-255-ibp": (1e-6, None, 0.2),
    "cifar10-2-255-crown-ibp": (3e-6, None, 0.0),
    "cifar10-2-255-sabr": (1e-6, None, 0.0),
    "cifar10-2-255-taps": (2e-6, None, 0.0),
    "cifar10-2-255-staps": (1e-6, None, 0.0),
    "cifar10-2-255-mtl-ibp": (3e-6, 150, 0.1),
    "cifar10-2-255-cc-ibp": (3e-6, None, 0.0),
    "cifar10-2-255-exp-ibp": (4e-6, None, 0.0),
    "cifar10-8-255-crown-ibp": (0.0, None, 0.0),
    "cifar10-8-255-sabr": (0.0, None, 0.0),
    "cifar10-8-255-taps": (0.0, None, 0.0),
    "cifar10-8-255-staps": (0.0, None, 0.0),
    "cifar10-8-255-mtl-ibp": (0.0, 225, 0.0),
    "cifar10-8-255-cc-ibp": (0.0, None, 0.0),
    "cifar10-8-255-exp-ibp": (0.0, None, 0.0),
    "tinyimagenet-1-255-ibp": (1e-5, None, 0.0),
    "tinyimagenet-1-255-crown-ibp": (2e-5, 150, 0.0),
    "tinyimagenet-1-255-sabr": (5e-5, None, 0.0),
    "tinyimagenet-1-255-taps": (5e-5, None, 0.3),
    "tinyimagenet-1-255-staps": (5e-5, None, 0.0),
    "tinyimagenet-1-255-mtl-ibp": (5e-5, 150, 0.3),
    "tinyimagenet-1-255-cc-ibp": (5e-5, 150, 0.3),
    "tinyimagenet-1-255-exp-ibp": (1e-6, None, 0.0),
}
# Of each family the presets' own field, in the order of BASES: α, λ, and where the network is split with which scale.
WEIGHTS = {
    "mtl-ibp": (0.02, 0.5, 0.01, 0.6, 0.05),
    "cc-ibp": (0.02, 0.3, 0.01, 0.5, 0.05),
    "exp-ibp": (0.02, 0.5, 0.095, 0.5, 0.4),
    "sabr": (0.4, 0.9, 0.1, 0.9, 0.4),
    "staps": (0.4, 0.6, 0.1, 0.9, 0.6),
}
SPLITS = {
    "taps": [("conv3_relu", 4), ("conv4_relu", 4), ("conv1_relu", 4), ("flatten", 2), ("flatten", 8)],
    "staps": [("flatten", 4), ("flatten", 4), ("flatten", 2), ("flatten", 2), ("flatten", 4)],
}
# Steps, starts and radius of the attack, where it is CTBench's.
ATTACKS = {
    "sabr": [(10, 3, 1), (5, 3, 1), (5, 3, 1), (5, 3, 1), (1, 3, 1)],
    "mtl-ibp": [(10, 3, 1), (1, 3, 1), (1, 3, 2), (1, 3, 1), (1, 3, 1.5)],
    "pgd": [(10, 3, 1), (5, 3, 1), (8, 3, 1), (10, 3, 1), (1, 3, 1)],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weights_in_the_loss_are_the_published_ones(name: str):
    preset = load_preset(name)
    assert (preset.train.l1, preset.train.average_from, preset.objective.natural_share) == PUBLISHED[name]


def test_the_objectives_have_the_published_fields():
    for number, base in enumerate(BASES):
        for name, values in WEIGHTS.items():
            objective = load_preset(f"{base}-{name}").objective
            weight = objective.alpha if hasattr(objective, "alpha") else objective.subselection_ratio
            assert weight == values[number], (base, name)
        for name, places in SPLITS.items():
            objective = load_preset(f"{base}-{name}").objective
            assert (objective.split, objective.gradient_scale) == places[number], (base, name)
        for name, attacks in ATTACKS.items():
            attack = load_preset(f"{base}-{name}").objective.attack
            assert (attack.steps, attack.restarts, attack.radius, attack.keep) == (*attacks[number], "best")


# Optimiser, rate, epochs, ramp (start and length), factor of ε, milestones and decay, λ of the regularisers, L1.
TUNED = {
    "cifar10-8-255-mtl-ibp-ctrain": ("adamw", 1.15e-3, 260, 5, 111, 1.1, (214,), 0.0115, 0.37, 3.6e-7),
    "cifar10-8-255-ibp-ctrain": ("adamw", 1.07e-3, 260, 5, 163, 1.47, (215, 233), 0.065, 0.43, 9.5e-8),
    "cifar10-2-255-mtl-ibp-ctrain": ("radam", 5.84e-3, 160, 6, 83, 1.17, (100, 129), 0.115, 0.41, 1.4e-6),
    "cifar10-2-255-sabr-ctrain": ("radam", 1.54e-3, 160, 4, 108, 1.53, (142, 154), 0.114, 0.39, 4.4e-6),
    "tinyimagenet-1-255-mtl-ibp-ctrain": ("radam", 2.53e-3, 160, 6, 87, 1.3, (111, 147), 0.055, 0.32, 7.3e-6),
    "mnist-0.3-ibp-ctrain": ("adamw", 2.6e-3, 70, 2, 32, 1.06, (57,), 0.016, 0.2, 3.2e-7),
}


def test_ctrains_presets_have_its_numbers_and_say_how_they_were_chosen():
    assert sorted(TUNED) == CTRAIN
    for name in CTRAIN:
        preset = load_preset(name)
        train, eps = preset.train, preset.eps
        found = (train.optimizer, train.learning_rate, train.epochs, eps.start, eps.length, eps.train_factor)
        assert (*found, train.milestones, train.decay, preset.regularizer.weight, train.l1) == TUNED[name]
        assert (train.batch_size, train.clip_norm) == (512, 10.0)
        assert train.weight_decay == (0.01 if train.optimizer == "adamw" else 0)  # PyTorch's defaults
        assert "tuned on the test set" in preset.description
        assert "tuned on the test set by its authors" in (ROOT / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def test_a_mean_of_epochs_that_never_begins_is_refused():
    message = r"train\.average_from is 11, but the run has 10 epochs: choose one of them, or leave it out"
    with pytest.raises(PresetError, match=message):
        load_preset("digits", {"train.epochs": 10, "train.average_from": 11})
    assert load_preset("digits", {"train.epochs": 10, "train.average_from": 10}).train.average_from == 10


def test_two_averages_are_refused():
    with pytest.raises(PresetError, match=r"exclude each other: choose one average"):
        load_preset("digits", {"train.average": 0.9, "train.average_from": 2})


def test_the_preset_module_needs_no_torch():
    code = "import sys; from certtrain.spec import preset; preset.load_preset('digits'); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.slow
def test_presets_ship_in_the_wheel_and_are_found_there(tmp_path: Path):
    unpacked = unpack_wheel(tmp_path)
    shipped = {file.name: file.read_bytes() for file in (unpacked / "certtrain" / "_presets").iterdir()}
    assert shipped == {file.name: file.read_bytes() for file in SHIPPED}
    code = """
import certtrain
from certtrain.spec import preset
print(certtrain.__file__, *preset.preset_names())
preset.load_preset("digits")
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, *names = result.stdout.split()
    assert Path(where).is_relative_to(unpacked)
    assert names == sorted(file.stem for file in SHIPPED)


def unpack_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"no wheel can be built here: {result.stderr.strip().splitlines()[-1:]}")
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


# --- what is wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.epocs": 3}, r"train\.epocs: .*'train\.epochs'"),
        ({"trian.epochs": 3}, r"trian: .*'train'"),
        ({"train.epochs": "many"}, r"train\.epochs: must be a whole number"),
        ({"train.epochs": 0}, r"train\.epochs: must be at least 1"),
        ({"train.batch_size": 1}, r"train\.batch_size: must be at least 2"),
        ({"train.learning_rate": -1}, r"train\.learning_rate: must be above 0"),
        ({"train.learning_rate": float("nan")}, r"train\.learning_rate"),
        ({"train.milestones": 5}, r"train\.milestones"),
        ({"eps.max": "8/0"}, r"eps\.max: .*'8/0' is not a number"),
        ({"eps.max": 8}, r"eps\.max: .*outside \[0, 1\]"),
        ({"eps.max": 0}, r"eps\.max: must be above 0"),
        ({"eps.max": [0.1]}, r"eps\.max: .*is not a number"),
        ({"eps.start": 0}, r"eps\.start"),
        ({"init": "he"}, r"init: .*'ibp'"),
        ({"data.name": "svhn"}, r"data\.name: .*'digits'"),
        ({"model.name": "resnet"}, r"model: .*'cnn7'"),
        ({"model.strides": [1]}, r"model: .*the same length"),
        ({"model.paddings": [1]}, r"model: paddings must have the same length as channels"),
        ({"model.paddings": [-1, 0]}, r"model\.paddings\.0: must be at least 0"),
        ({"model.chanels": [1, 2]}, r"model\.chanels: .*'channels'"),
        ({"model.widen_factor": 2}, r"model\.widen_factor: .*'cnn' has name, channels, kernels"),
        ({"model.name": "mlp"}, r"model\.hidden: must be given"),
        ({"model.name": "wide-resnet", "model.blocks": [1]}, r"model: blocks and strides must have the same length"),
        ({"model.name": "resnext", "model.blocks": [65, 1, 1]}, r"model\.blocks\.0: .*64"),
        ({"model.name": "resnext", "model.channels": [1]}, r"model\.channels: .*'resnext' has .*cardinality"),
        ({"data.mean": [0.5]}, r"data\.mean and data\.std go together"),
        ({"seed": -1}, r"seed"),
        ({"name": "a/b"}, r"name"),
        ({"train": 5}, r"train"),
        ({"eps.max.x": 5}, r"cannot set 'eps\.max\.x': 'max' is not a section"),
    ],
)
def test_a_wrong_field_is_named(overrides: dict[str, Any], message: str):
    with pytest.raises(PresetError, match=message):
        load_preset("digits", overrides)


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(PresetError) as caught:
        load_preset("digits", {"train.epochs": 0, "eps.max": 2, "seeds": 1})
    assert all(field in str(caught.value) for field in ("'digits'", "train.epochs", "eps.max", "seeds"))


def test_a_missing_field_is_named(tmp_path: Path):
    (tmp_path / "own.toml").write_text('name = "own"\n', encoding="utf-8")
    with pytest.raises(PresetError, match=r"own\.toml.*\n(.*\n)*  data: must be given"):
        load_preset(str(tmp_path / "own.toml"))


@pytest.mark.parametrize("name", ["", "my-own-settings"])
def test_an_unknown_preset_lists_the_known_ones(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PresetError, match=r"there is no preset .*Presets: .*digits.*or give a \.toml file"):
        load_preset(name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bad.toml", b"name = "),
        ("bad.toml", b"\xff\xfe"),
        ("bad.json", b"{"),
        ("bad.json", b""),
        ("bad.json", b"[1]"),
        ("bad.json", b"5"),
        ("bad.json", b'"text"'),
    ],
)
def test_an_unreadable_file_is_an_error(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PresetError, match=rf"{name}' cannot be read"):
        load_preset(str(tmp_path / name))


def test_milestones_beyond_the_last_epoch_do_no_harm():
    assert load_preset("digits", {"train.epochs": 2}).train.milestones == load_preset("digits").train.milestones


def test_a_preset_does_not_change():
    preset = load_preset("digits")
    with pytest.raises(ValueError, match="frozen"):
        preset.seed = 1


# --- overrides -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.epochs=3", "train.epochs", 3),
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("eps.max=8/255", "eps.max", "8/255"),
        ("eps.max=0.3", "eps.max", 0.3),
        ("data.flip=true", "data.flip", True),
        ("model.channels=[4, 8]", "model.channels", [4, 8]),
        ('init="ibp"', "init", "ibp"),
        ("init=kaiming", "init", "kaiming"),
        (" seed = 7 ", "seed", 7),
        ("description=a = b", "description", "a = b"),
        ("description=", "description", ""),
    ],
)
def test_an_override_is_read(text: str, path: str, value: object):
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["train.epochs", "", "=3", " = 3", "--epochs 3"])
def test_what_is_no_override(text: str):
    with pytest.raises(PresetError, match=r"is not field=value; write it like train\.epochs=20"):
        parse_override(text)


def test_overrides_replace_single_fields():
    texts = ["train.epochs=3", "eps.max=8/255", "model.channels=[4,8]", "data.flip=true", "regularizer.weight=0.2"]
    before, after = load_preset("digits"), load_preset("digits", dict(map(parse_override, texts)))
    assert (after.train.epochs, after.eps.max, after.data.flip, after.regularizer.weight) == (3, 8 / 255, True, 0.2)
    assert isinstance(after.model, CNN)
    assert after.model.channels == (4, 8)
    assert after.train.batch_size == before.train.batch_size
    assert after.data.name == before.data.name


def test_an_override_of_a_whole_section_replaces_it():
    preset = load_preset("digits", {"model": {"name": "mlp", "hidden": [5]}})
    assert preset.model.model_dump() == {"name": "mlp", "hidden": (5,), "batch_norm": True}


@pytest.mark.parametrize("name", ["cnn7", "cnn5", "cnn3", "dm-small", "dm-medium", "wide-resnet", "resnext"])
@pytest.mark.parametrize("preset", ["digits", "cifar10-160ep", "tinyimagenet-resnext"])
def test_one_word_puts_another_network_into_a_preset_with_its_own_defaults(preset: str, name: str):
    if load_preset(preset).model.name != name:
        assert load_preset(preset, {"model.name": name}).model == NETWORKS[name](name=name)


def test_the_same_network_keeps_its_fields():
    before = load_preset("tinyimagenet-resnext")
    assert load_preset(before.name, {"model.name": "resnext"}) == before


def test_another_network_keeps_whether_there_is_batch_norm():
    assert not load_preset("cifar10-vanilla-ibp", {"model.name": "wide-resnet"}).model.batch_norm
    assert load_preset("cifar10-vanilla-ibp", {"model.name": "resnext", "model.batch_norm": True}).model.batch_norm


def test_another_networks_fields_may_come_before_its_name():
    fields = [("model.stem", 4), ("model.name", "wide-resnet"), ("model.linear_size", 8)]
    for overrides in (fields, fields[::-1]):
        found = load_preset("digits", dict(overrides)).model
        assert found == WideResNet(name="wide-resnet", stem=4, linear_size=8)


def test_seed_zero_is_a_seed():
    assert load_preset("digits", {"seed": 0}).seed == 0
    assert Preset.model_validate(load_preset("digits", {"seed": 5}).model_dump()).seed == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "ibp"}, "ibp"),
        ({"name": "mtl-ibp"}, "mtl-ibp: alpha 0.5"),
        ({"name": "sabr", "attack.steps": 3, "natural_share": 0.2}, None),
    ],
)
def test_an_objective_is_described_in_one_line(changes: dict[str, Any], words: str | None):
    objective = load_preset("digits", {f"objective.{name}": value for name, value in changes.items()}).objective
    expected = "sabr: natural share 0.2, attack (steps 3), subselection ratio 0.4, relu shrinkage 0.0"
    assert described_objective(objective) == (words or expected)


# --- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epochs=3", "epochs: there is no such field; did you mean 'train.epochs'?"),
        ("learning_rate=3", "learning_rate: there is no such field; did you mean 'train.learning_rate'?"),
        ("train.epoch=3", "train.epoch: there is no such field; did you mean 'train.epochs'?"),
        ("data.epochs=3", "data.epochs: there is no such field; did you mean 'train.epochs'?"),
        (
            "regularizer.tolerence=1",
            "regularizer.tolerence: there is no such field; did you mean 'regularizer.tolerance'?",
        ),
        ("train.epochs=abc", "train.epochs: must be a whole number, not 'abc'"),
        ("train.epochs=3.5", "train.epochs: must be a whole number, not 3.5"),
        ("train.epochs=0", "train.epochs: must be at least 1, not 0"),
        ("train.learning_rate=fast", "train.learning_rate: must be a number, not 'fast'"),
        ("train.learning_rate=0", "train.learning_rate: must be above 0.0, not 0"),
        ("train.learning_rate=inf", "train.learning_rate: must be a finite number, not inf"),
        ("train.decay=3", "train.decay: must be at most 1.0, not 3"),
        ("train.momentum=1", "train.momentum: must be below 1.0, not 1"),
        ("train.milestones=5", "train.milestones: must be a list, like [1, 2], not 5"),
        ("train.schedule=cosin", "train.schedule: must be 'steps', 'linear' or 'cosine', not 'cosin'"),
        ("data.flip=maybe", "data.flip: must be true or false, not 'maybe'"),
        ("description=5", "description: must be text, not 5"),
        ("name=a b", "name: must be letters, digits, dots, dashes and underscores, not 'a b'"),
        ("train=5", "train: must be a section with fields, not 5"),
        ("model=foo", "model: must be a section with fields, not 'foo'"),
        ("model={hidden=[3]}", "model: must be a section with fields, 'name' among them, not {'hidden': [3]}"),
        ("objective.name=mtl", "objective: 'mtl' is not known; choose from: 'ibp', 'crown-ibp'"),
        ("model.kernels=[]", "model: channels, kernels and strides must have the same length"),
        (f"description={[7] * 50}", f"description: must be text, not [{12 * '7, '}7,…"),
    ],
)
def test_what_is_wrong_is_said_in_our_words_and_with_the_value(text: str, line: str):
    with pytest.raises(PresetError) as raised:
        load_preset("digits", dict([parse_override(text)]))
    assert f"  {line}" in str(raised.value)
    words = ("Input", "tag", "valid integer", "tuple", "parse", "pattern", "dictionary")
    assert not [word for word in words if word in str(raised.value)]


def test_an_unknown_name_has_similar_ones_and_a_file_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(PresetError, match=r"did you mean 'cifar10-8-255' or 'cifar10-2-255-ibp' or "):
        load_preset("cifar10-8-255-ibp")
    with pytest.raises(PresetError, match=r"^there is no preset 'digit'; did you mean 'digits'\?$"):
        load_preset("digit")
    with pytest.raises(PresetError, match=r"^the preset .*mine\.toml cannot be read: there is no such file; give a"):
        load_preset(tmp_path / "mine.toml")
    with pytest.raises(PresetError, match=r"cannot be read: it is a folder; give a \.toml file"):
        load_preset(str(tmp_path))
    for name in ("no/such/file", "../presets/digits"):
        with pytest.raises(PresetError, match=rf"^the preset {name} cannot be read: there is no such file"):
            load_preset(name)


# --- messages --------------------------------------------------------------------------------------------

OF_PYDANTIC = re.compile(r"Value error|should (be|have|match)|Extra inputs|Field required|Input tag|unable to|valid ")
WRONG_VALUES = ["x y", "", [1], [[]], {"x": 1}, -1, 3.5, True, 10**30, float("nan")]


def places() -> dict[str, tuple[dict[str, Any], type]]:
    """The sections of presets with the overrides that bring each about."""
    sections: dict[str, type] = {"": Preset} | {
        name: field.annotation for name, field in Preset.model_fields.items() if isinstance(field.annotation, type)
    }
    found = {name: ({}, section) for name, section in sections.items() if hasattr(section, "model_fields")}
    found |= {f"objective of {name}": ({"objective.name": name}, section) for name, section in OBJECTIVES.items()}
    return found | {f"model of {name}": ({"model": {"name": name}}, section) for name, section in NETWORKS.items()}


@pytest.mark.parametrize("place", places())
def test_no_message_about_a_field_is_in_the_words_of_pydantic(place: str):
    first, section = places()[place]
    path, messages = place.partition(" of ")[0], list[str]()
    for field in section.model_fields:
        for value in WRONG_VALUES:
            try:
                load_preset("digits", {**first, f"{path}.{field}".lstrip("."): value})
            except PresetError as error:
                messages += str(error).split("\n")[1:]
    assert len(messages) >= len(WRONG_VALUES) / 2
    assert [message for message in messages if OF_PYDANTIC.search(message)] == []
