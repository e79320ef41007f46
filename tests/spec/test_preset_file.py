"""A preset that extends another: what it takes over, what it replaces, and what cannot be extended."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from certtrain.errors import PresetError
from certtrain.spec.architecture import CNN5, WideResNet
from certtrain.spec.objective import (
    AttackSection,
    CrownIBPSection,
    ExpIBPSection,
    IBPSection,
    MTLIBPSection,
    SABRSection,
    STAPSSection,
    TAPSSection,
)
from certtrain.spec.preset import Preset, load_preset

OWN = {"name", "description"}


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def extending(base: str, **sections: dict[str, Any]) -> dict[str, Any]:
    return {"name": "own", "extends": base, **sections}


# --- what is taken over ----------------------------------------------------------------------------------


def test_only_what_the_file_says_differs(tmp_path: Path):
    own = write(tmp_path / "own.toml", 'name = "own"\nextends = "cifar10-160ep"\n[eps]\nmax = "2/255"\n')
    found, base = load_preset(own), load_preset("cifar10-160ep")
    assert found.eps == base.eps.model_copy(update={"max": 2 / 255})
    assert found.model_dump(exclude={*OWN, "eps"}) == base.model_dump(exclude={*OWN, "eps"})


def test_name_and_description_are_the_files_own(tmp_path: Path):
    assert load_preset(extending("digits")).name == "own"
    assert load_preset(extending("digits")).description == ""
    nameless = write(tmp_path / "nameless.toml", 'extends = "digits"\n')
    with pytest.raises(PresetError, match=r"nameless\.toml.*\n  name: must be given"):
        load_preset(nameless)


def test_sections_are_merged_at_every_depth():
    objective = {"name": "sabr", "attack": {"steps": 3}}
    base = load_preset("cifar10-2-255-sabr").objective
    found = load_preset(extending("cifar10-2-255-sabr", objective=objective)).objective
    assert isinstance(base, SABRSection)
    assert base.attack.steps != 3
    assert found == base.model_copy(update={"attack": base.attack.model_copy(update={"steps": 3})})


def test_a_list_replaces_a_list():
    assert load_preset(extending("digits", train={"milestones": [9]})).train.milestones == (9,)
    assert load_preset(extending("digits", train={"milestones": []})).train.milestones == ()


def test_a_chain_of_files_in_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "shared/first.toml", 'name = "first"\nextends = "digits"\n[train]\nepochs = 7\nbatch_size = 9\n')
    write(tmp_path / "mine/second.toml", 'name = "second"\nextends = "../shared/first.toml"\n[train]\nepochs = 8\n')
    write(tmp_path / "third.toml", 'name = "third"\nextends = "mine/second.toml"\nseed = 5\n')
    monkeypatch.chdir(tmp_path / "mine")  # paths are relative to the files, wherever the command runs
    for third in ("../third.toml", str(tmp_path / "third.toml")):
        found = load_preset(third)
        assert (found.name, found.seed, found.train.epochs, found.train.batch_size) == ("third", 5, 8, 9)
        assert found.model == load_preset("digits").model


def test_a_json_file_extends_too(tmp_path: Path):
    write(tmp_path / "base.toml", 'name = "base"\nextends = "digits"\nseed = 3\n')
    own = write(tmp_path / "own.json", json.dumps(extending("base.toml", eps={"max": "1/255"})))
    assert (load_preset(own).seed, load_preset(own).eps.max) == (3, 1 / 255)


def test_fields_from_python_extend_too_and_are_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "base.toml", 'name = "base"\nextends = "digits"\nseed = 3\n')
    monkeypatch.chdir(tmp_path)
    fields = extending("./base.toml", train={"epochs": 4})
    before = json.dumps(fields)
    assert (load_preset(fields).seed, load_preset(fields).train.epochs) == (3, 4)
    assert json.dumps(fields) == before


def test_the_loaded_preset_has_all_fields_and_extends_nothing(tmp_path: Path):
    found = load_preset(extending("digits"))
    dumped = found.model_dump(mode="json")
    assert "extends" not in dumped
    assert dumped["train"] == load_preset("digits").model_dump(mode="json")["train"]
    assert Preset.model_validate(dumped) == found
    assert load_preset(write(tmp_path / "preset.json", json.dumps(dumped))) == found


def test_overrides_come_last():
    fields = extending("cifar10-2-255-mtl-ibp", train={"epochs": 180})
    overrides = {"train.epochs": 170, "objective.name": "cc-ibp", "model.name": "cnn5"}
    found = load_preset(fields, overrides)
    assert (found.train.epochs, found.objective.name, found.objective.alpha) == (170, "cc-ibp", 0.01)
    assert found.model == CNN5(name="cnn5")


# --- another network, another objective ------------------------------------------------------------------


@pytest.mark.parametrize("base", ["cifar10-vanilla-ibp", "cifar10-160ep"])
def test_another_network_takes_over_only_whether_there_is_batch_norm(base: str):
    norm = load_preset(base).model.batch_norm
    found = load_preset(extending(base, model={"name": "wide-resnet", "stem": 8})).model
    assert found == WideResNet(name="wide-resnet", stem=8, batch_norm=norm)


def test_the_same_network_takes_over_its_fields():
    for model in ({"stem": 8}, {"name": "resnext", "stem": 8}):
        found, base = (
            load_preset(extending("tinyimagenet-resnext", model=model)).model,
            load_preset("tinyimagenet-resnext").model,
        )
        assert found == base.model_copy(update={"stem": 8})


def test_another_objective_takes_over_only_what_it_has_too_with_the_same_default():
    base = load_preset("cifar10-2-255-mtl-ibp").objective
    assert isinstance(base, MTLIBPSection)
    kept = {"natural_share": base.natural_share}
    assert base.natural_share > 0
    assert load_preset(extending("cifar10-2-255-mtl-ibp", objective={"name": "ibp"})).objective == IBPSection(
        name="ibp", **kept
    )
    found = load_preset(extending("cifar10-2-255-mtl-ibp", objective={"name": "sabr", "relu_shrinkage": 0.5})).objective
    assert found == SABRSection(name="sabr", relu_shrinkage=0.5, **kept)
    assert found.attack.steps == 8 != base.attack.steps
    found = load_preset("cifar10-2-255-mtl-ibp", {"objective.name": "exp-ibp", "objective.attack.steps": 2}).objective
    assert found == ExpIBPSection(
        name="exp-ibp", alpha=base.alpha, attack=base.attack.model_copy(update={"steps": 2}), **kept
    )
    shrunk = load_preset("cifar10-2-255-sabr", {"objective.name": "taps"}).objective
    assert shrunk == TAPSSection(name="taps", relu_shrinkage=0.8)


def test_an_attack_that_is_given_in_part_has_the_objectives_own_values_in_the_other_fields():
    found = load_preset("digits", {"objective.name": "staps", "objective.attack.restarts": 3}).objective
    assert isinstance(found, STAPSSection)
    assert found.attack == AttackSection(steps=8, restarts=3)
    found = load_preset(extending("digits", objective={"name": "taps", "latent_attack": {"keep": "best"}})).objective
    assert isinstance(found, TAPSSection)
    assert found.latent_attack == AttackSection(steps=10, keep="best")
    own = {"name": "custom", "source": "mine.py:Mine", "attack": {"restarts": 2}}
    assert load_preset(extending("digits", objective=own)).objective.attack == AttackSection(restarts=2)  # type: ignore[union-attr]
    with pytest.raises(PresetError, match=r"objective\.attack\.stepz: there is no such field"):
        load_preset("digits", {"objective.name": "sabr", "objective.attack.stepz": 3})


# --- fields without effect -------------------------------------------------------------------------------

IDLE = [
    ({"train.momentum": 0.5}, r'train\.momentum has no effect with train\.optimizer = "adam": .*choose "sgd"'),
    ({"train.warmup": 1}, r'train\.warmup has no effect with train\.schedule = "steps": .* "linear" or "cosine"'),
    ({"train.schedule": "cosine", "train.milestones": [2]}, r"train\.milestones has no effect"),
    ({"train.schedule": "linear", "train.decay": 0.5}, r"train\.decay has no effect"),
    ({"model.batch_norm": False, "train.batch_norm_refresh": True}, r"refresh has no effect .*batch_norm = false"),
]


@pytest.mark.parametrize(("changes", "message"), IDLE)
def test_a_field_that_is_set_without_effect_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(PresetError, match=rf"^preset 'digits' is not valid:\n  .*{message}"):
        load_preset("digits", changes)
    lines = [f"{path} = {json.dumps(value)}" for path, value in changes.items()]
    own = write(tmp_path / "own.toml", "\n".join(['name = "own"', 'extends = "digits"', *lines]))
    with pytest.raises(PresetError, match=message):
        load_preset(own)


@pytest.mark.parametrize(("changes", "message"), IDLE)
def test_a_saved_preset_with_such_a_field_is_read(changes: dict[str, Any], message: str, tmp_path: Path):
    fields = load_preset("digits").model_dump(mode="json")
    for path, value in changes.items():
        section, name = path.split(".")
        fields[section][name] = value
    assert message
    write(tmp_path / "preset.json", json.dumps(fields))
    assert load_preset(str(tmp_path / "preset.json")) == load_preset(fields) == Preset.model_validate(fields)


def test_a_field_of_a_base_or_with_its_default_is_no_wish(tmp_path: Path):
    assert load_preset("digits", {"train.schedule": "cosine"}).train.milestones == (35, 45)
    assert load_preset("digits", {"train.schedule": "cosine", "train.milestones": []}).train.milestones == ()
    text = 'name = "own"\nextends = "digits"\n[train]\noptimizer = "sgd"\nmomentum = 0.5\nbatch_norm_refresh = true\n'
    own = write(tmp_path / "own.toml", text)
    assert load_preset(own, {"train.optimizer": "adam"}).train.momentum == 0.5
    assert load_preset(own, {"model.batch_norm": False}).train.batch_norm_refresh


# --- old names -------------------------------------------------------------------------------------------


def test_an_override_by_an_old_name_says_the_new_one():
    for old, new in (("bounds.method", "objective.name"), ("bounds.loss_fusion", "objective.loss_fusion")):
        with pytest.raises(PresetError, match=rf"^'{old}' is now '{new}': write {new}=…$"):
            load_preset("digits", {old: "crown-ibp"})


def test_a_preset_that_extends_another_needs_its_own_name(tmp_path: Path):
    own = write(tmp_path / "own.toml", 'extends = "digits"\n')
    with pytest.raises(PresetError, match=r"  name: must be given: a preset has a name of its own"):
        load_preset(own)
    assert load_preset(own, {"name": "mine"}).name == "mine"


def test_the_same_objective_takes_over_its_fields():
    base = load_preset("cifar10-2-255-staps").objective
    for objective in ({"gradient_scale": 3}, {"name": "staps", "gradient_scale": 3}):
        found = load_preset(extending("cifar10-2-255-staps", objective=objective)).objective
        assert isinstance(found, STAPSSection)
        assert found == base.model_copy(update={"gradient_scale": 3})


# --- files of earlier versions ---------------------------------------------------------------------------


def test_each_file_is_migrated_by_itself(tmp_path: Path):
    text = 'name = "base"\nextends = "digits"\n[bounds]\nmethod = "crown-ibp"\nloss_fusion = false\n'
    write(tmp_path / "old.toml", text)  # without a format it has the first
    new = write(tmp_path / "new.toml", 'format = 2\nname = "new"\nextends = "old.toml"\nseed = 1\n')
    assert load_preset(new).objective == CrownIBPSection(name="crown-ibp", loss_fusion=False)
    older = write(tmp_path / "older.toml", 'name = "older"\nextends = "new.toml"\n[bounds]\nmethod = "ibp"\n')
    assert load_preset(older).objective == IBPSection(name="ibp")


def test_a_base_of_a_later_version_is_named(tmp_path: Path):
    write(tmp_path / "later.toml", 'format = 99\nname = "later"\n')
    own = write(tmp_path / "own.toml", 'name = "own"\nextends = "later.toml"\n')
    with pytest.raises(PresetError, match=r"later\.toml' is not valid:\n  format: 99 is newer"):
        load_preset(own)


# --- what cannot be extended -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [5, ["digits"], {"name": "digits"}, True, None])
def test_what_is_extended_must_be_named(value: Any):
    with pytest.raises(PresetError) as caught:
        load_preset({"name": "own", "extends": value})
    must = "extends must be the name of a preset or the path of a .toml file"
    assert str(caught.value) == f"preset 'own': {must}, not {value!r}"


@pytest.mark.parametrize("base", ["digit", "", "Digits", ".."])
def test_a_preset_that_does_not_ship_cannot_be_extended(base: str):
    with pytest.raises(PresetError, match=rf"^preset 'own' extends '{base}', but no preset of that name is shipped$"):
        load_preset(extending(base))


@pytest.mark.parametrize("base", ["missing.toml", "../missing.toml", "folder/", "/missing.json"])
def test_a_missing_file_is_named_with_its_place(base: str, tmp_path: Path):
    own = write(tmp_path / "here/own.toml", f'name = "own"\nextends = "{base}"\n')
    place = re.escape(str((tmp_path / "here" / base).resolve()))
    with pytest.raises(PresetError, match=rf"own\.toml' extends '{base}', but there is no file {place}$"):
        load_preset(own)


def test_a_base_that_cannot_be_read_is_named(tmp_path: Path):
    write(tmp_path / "broken.toml", "name = ")
    own = write(tmp_path / "own.toml", 'name = "own"\nextends = "broken.toml"\n')
    with pytest.raises(PresetError, match=r"broken\.toml' cannot be read"):
        load_preset(own)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_preset_must_not_extend_itself(length: int, tmp_path: Path):
    for number in range(length):
        write(tmp_path / f"{number}.toml", f'name = "p{number}"\nextends = "{(number + 1) % length}.toml"\n')
    chain = " → ".join(re.escape(str(tmp_path / f"{number % length}.toml")) for number in range(length + 1))
    with pytest.raises(PresetError, match=rf"extends itself: {chain}$"):
        load_preset(str(tmp_path / "0.toml"))


def test_a_circle_that_a_file_leads_into_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a.toml", 'name = "a"\nextends = "sub/../b.toml"\n')
    write(tmp_path / "b.toml", 'name = "b"\nextends = "a.toml"\n')
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PresetError, match=r"a\.toml → .*b\.toml → .*a\.toml$"):
        load_preset(extending("./a.toml"))


def test_what_a_preset_extends_is_no_field():
    with pytest.raises(PresetError, match="extends: there is no such field"):
        load_preset("digits", {"extends": "mnist-cpu"})


def test_a_wrong_field_of_a_base_is_an_error_of_the_preset(tmp_path: Path):
    write(tmp_path / "base.toml", 'name = "base"\nextends = "digits"\n[train]\nepocs = 3\n')
    own = write(tmp_path / "own.toml", 'name = "own"\nextends = "base.toml"\n')
    with pytest.raises(PresetError, match=r"own\.toml' is not valid:\n  train\.epocs: .*'train\.epochs'"):
        load_preset(own)


@pytest.mark.parametrize("section", ["train", "model", "objective"])
def test_what_is_no_section_is_an_error(section: str):
    with pytest.raises(PresetError, match=section):
        load_preset(extending("digits", **{section: 5}))  # type: ignore[arg-type]
    for name in (["ibp"], 5, "unknown"):
        if section != "train":
            with pytest.raises(PresetError, match=section):
                load_preset(extending("digits", **{section: {"name": name}}))
