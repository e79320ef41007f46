"""Another number of epochs: what counts epochs is scaled with them."""

from fractions import Fraction
from pathlib import Path

import pytest

from certtrain.spec.epochs import Change, scaled_fields, scaled_sentence
from certtrain.spec.preset import Preset, epoch_changes, load_preset, preset_names
from certtrain.spec.schedule import eps_at

FIELDS = {"eps.start": 2, "eps.length": 80, "train.milestones": (120, 140)}
FIELDS |= {"train.warmup": 0.0, "train.average_from": None}


def test_the_papers_run_at_a_quarter():
    found = scaled_fields(FIELDS, 160, 40)
    assert {path: change.after for path, change in found.items()} == {
        "eps.start": 1,  # a quarter of an epoch before the ramp is none
        "eps.length": 20,
        "train.milestones": [30, 35],
    }


def test_all_that_counts_epochs_is_scaled():
    fields = {**FIELDS, "eps.start": 11, "train.warmup": 3, "train.average_from": 150}
    found = scaled_fields(fields, 160, 320)
    after = {path: change.after for path, change in found.items()}
    assert after == {
        "eps.start": 21,
        "eps.length": 160,
        "train.milestones": [240, 280],
        "train.warmup": 6,
        "train.average_from": 300,
    }


def test_as_many_epochs_as_before_change_nothing():
    assert scaled_fields(FIELDS, 160, 160) == {}
    preset = load_preset("cifar10-160ep")
    assert load_preset("cifar10-160ep", epochs=160) == preset


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("share", [Fraction(1, 40), Fraction(1, 5), Fraction(1, 2), Fraction(3)])
def test_every_shipped_preset_reaches_its_largest_eps_within_the_run(name: str, share: Fraction):
    epochs = max(int(load_preset(name).train.epochs * share), 1)
    preset = load_preset(name, epochs=epochs)
    assert preset.train.epochs == epochs
    assert all(milestone <= epochs for milestone in preset.train.milestones)
    assert eps_after(preset, epochs) == pytest.approx(preset.eps.max)


def eps_after(preset: Preset, epochs: int) -> float:
    """ε after that many epochs of ten steps."""
    ramp = {"start": preset.eps.start, "length": preset.eps.length, "eps_max": preset.eps.max}
    return eps_at(epochs * 10, steps_per_epoch=10, **ramp)


def test_overrides_overrule():
    preset = load_preset("digits", {"eps.length": 7, "train.learning_rate": 0.1}, epochs=10)
    assert (preset.eps.start, preset.eps.length, preset.train.milestones) == (1, 7, (7, 9))
    assert load_preset("digits", {"train.milestones": [3]}, epochs=10).train.milestones == (3,)


def test_milestones_that_another_schedule_does_not_use_are_no_wish():
    preset = load_preset("digits", {"train.schedule": "linear", "train.warmup": 2}, epochs=10)
    assert preset.train.warmup == 2


def test_an_override_beyond_the_presets_own_epochs_is_allowed():
    assert load_preset("digits", {"train.average_from": 80}, epochs=100).train.average_from == 80


def test_a_file_without_some_fields_is_scaled_by_their_defaults(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\n[data]\nname = "digits"\n[model]\nname = "mlp"\nhidden = [4]\n'
        "[eps]\nmax = 0.1\n[train]\nepochs = 160\n",
        encoding="utf-8",
    )
    preset = load_preset(str(file), epochs=40)
    assert (preset.eps.start, preset.eps.length, preset.train.milestones) == (1, 20, ())


def test_fields_of_a_wrong_type_are_left_to_the_validation():
    wrong = {"eps.start": "2", "eps.length": True, "train.milestones": ["a"], "train.warmup": "x"}
    assert scaled_fields({**wrong, "train.average_from": "y"}, 10, 20) == {}


def test_the_sentence_has_the_values_before_and_after():
    changes = epoch_changes("digits", 10)
    epochs = changes.pop("train.epochs")
    assert epochs == Change(50, 10)
    assert scaled_sentence(epochs, changes) == (
        "with 10 epochs in place of 50, these fields are scaled too: eps.start 2 → 1, eps.length 20 → 4, "
        "train.milestones [35, 45] → [7, 9]; --set overrules each"
    )
