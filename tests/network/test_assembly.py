"""From a preset to its images, its network and its metadata."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from certtrain.data import ImageSet
from certtrain.errors import DataError, ModelFileError, NetworkError
from certtrain.network import assembly as assemble
from certtrain.network.assembly import Images, describe, load_run_images, load_split, make_network
from certtrain.spec.preset import Preset, load_preset


def digits(**changes: Any) -> Preset:
    """The digits preset; underscores stand for dots."""
    return load_preset("digits", {name.replace("__", "."): value for name, value in changes.items()})


def images(**changes: Any) -> Images:
    return load_run_images(digits(**changes), None)


def test_without_validation_all_training_images_are_trained_on():
    found = images()
    assert (len(found.train), found.validation, len(found.test)) == (1437, None, 360)


def test_validation_images_come_out_of_the_training_set():
    found, whole = images(data__validation=100), images()
    assert found.validation is not None
    assert (len(found.train), len(found.validation), len(found.test)) == (1337, 100, 360)
    assert torch.equal(found.test.images, whole.test.images)
    parts = torch.cat([found.train.images, found.validation.images]).flatten(1).tolist()
    assert sorted(parts) == sorted(whole.train.images.flatten(1).tolist())


def test_the_seed_decides_what_is_held_out():
    first, same, other = (images(data__validation=100, seed=seed).validation for seed in (0, 0, 1))
    assert torch.equal(first.images, same.images)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_model_files_splits_are_those_of_its_run(seed: int):
    preset = digits(data__validation=100, seed=seed)
    run = load_run_images(preset, None)
    metadata = describe(preset, run.train)
    for split, expected in (("train", run.train), ("validation", run.validation), ("test", run.test)):
        assert torch.equal(load_split(metadata, split, None).images, expected.images)


def test_a_run_that_held_nothing_out_has_no_validation_split():
    metadata = describe(digits(), images().train)
    assert len(load_split(metadata, "train", None)) == 1437
    with pytest.raises(DataError, match="held no validation examples out"):
        load_split(metadata, "validation", None)


def test_a_model_file_s_preset_that_cannot_be_read_is_one_error():
    metadata = describe(digits(), images().train).model_copy(update={"preset": {"name": "own"}})
    with pytest.raises(ModelFileError, match=r"holds a preset that certtrain cannot read:\n  data: must be given"):
        load_split(metadata, "test", None)


def test_a_network_is_not_made_from_code():
    preset = load_preset("digits", {"model": {"name": "module", "source": "mynet.py:MyNet"}})
    with pytest.raises(NetworkError, match="code, which is run only when a run begins"):
        make_network(preset, images().train)


def test_training_and_test_images_must_fit_each_other(monkeypatch: pytest.MonkeyPatch):
    original = assemble.load_images

    def load(name: str, split: str, **options: Any) -> ImageSet:
        found = original(name, split, **options)
        return replace(found, images=found.images[:, :, :7]) if split == "test" else found

    monkeypatch.setattr(assemble, "load_images", load)
    with pytest.raises(DataError, match=r"training images of digits have shape \(1, 8, 8\)"):
        images()


def test_the_seed_decides_the_weights_and_nothing_else_does():
    train = images().train
    first, same, other = (make_network(digits(seed=seed), train)[0].conv1.weight for seed in (0, 0, 1))
    torch.rand(1)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_the_scheme_is_the_presets_or_another():
    train = images().train
    assert {record.scheme for record in make_network(digits(init="xavier"), train)[1]} == {"xavier"}
    assert {record.scheme for record in make_network(digits(init="xavier"), train, "ibp")[1]} == {"ibp"}


def test_the_normalisation_is_the_presets_or_the_data_sets():
    train = images().train
    assert make_network(digits(), train)[0].normalize.std.item() == 1.0
    own = make_network(digits(data__mean=[0.5], data__std=[0.25]), train)[0].normalize
    assert (own.mean.item(), own.std.item()) == (0.5, 0.25)


def test_the_metadata_say_what_the_run_was():
    preset = digits(seed=4, eps__max=0.2)
    found = describe(preset, images().train, note="untrained", results={"certified": 1})
    assert (found.seed, found.eps, found.dataset, found.note) == (4, 0.2, "digits", "untrained")
    assert (found.input_shape, len(found.class_names), found.results) == ((1, 8, 8), 10, {"certified": 1})
    assert Preset.model_validate(found.preset) == preset
    assert set(found.versions) >= {"certtrain", "torch"}


def test_a_run_may_train_on_a_part_of_its_images():
    part, whole = images(data__examples=50, data__validation=100), images(data__validation=100)
    assert (len(part.train), len(part.validation)) == (50, 100)
    assert torch.equal(part.validation.images, whole.validation.images)
    left = {tuple(image) for image in whole.train.images.flatten(1).tolist()}
    assert {tuple(image) for image in part.train.images.flatten(1).tolist()} <= left
    other = images(data__examples=50, data__validation=100, seed=1)
    assert not torch.equal(part.train.images, other.train.images)


def test_the_training_split_of_such_a_model_is_what_it_trained_on():
    preset = digits(data__examples=50)
    run = load_run_images(preset, None)
    assert torch.equal(load_split(describe(preset, run.train), "train", None).images, run.train.images)


def test_more_examples_than_there_are_is_an_error():
    with pytest.raises(DataError, match="digits has 1,337 examples to train on, not 1,400"):
        images(data__examples=1400, data__validation=100)
