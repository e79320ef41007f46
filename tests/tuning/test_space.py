"""Spaces read from TOML: what they hold, and what is refused."""

from pathlib import Path

import pytest

from certtrain.errors import PresetError
from certtrain.tuning.space import (
    Choices,
    Range,
    Space,
    all_settings,
    check_space,
    described_space,
    distinct_settings,
    limited_trials,
    read_space,
)


def space_of(tmp_path: Path, text: str) -> dict[str, Range | Choices]:
    file = tmp_path / "space.toml"
    file.write_text(text, encoding="utf-8")
    return read_space(file)


def test_fields_are_named_by_dots_or_sections(tmp_path: Path) -> None:
    text = """
    "train.learning_rate" = { low = 1e-4, high = 1e-2, log = true }
    [train]
    batch_size = [32, 64]
    epochs = { low = 10, high = 30, step = 10 }
    """
    space = space_of(tmp_path, text)
    assert space == {
        "train.learning_rate": Range(1e-4, 1e-2, log=True),
        "train.batch_size": Choices((32, 64)),
        "train.epochs": Range(10, 30, step=10),
    }
    assert isinstance(space["train.epochs"], Range)
    assert space["train.epochs"].whole
    assert list(described_space(space)) == sorted(space)
    check_space(space, "digits", {"train.milestones": [5]})


def test_choices_may_be_lists() -> None:
    choices = Choices(([35, 45], [25, 40]))
    assert choices.holds([25, 40])
    assert not choices.holds([25])
    assert choices.names["[25, 40]"] == [25, 40]


@pytest.mark.parametrize("value", [5e-4, 1e-2, 1])
def test_a_range_holds_its_ends_and_nothing_beyond(value: float) -> None:
    assert Range(5e-4, 1e-2).holds(value) == (value <= 1e-2)
    assert not Range(0, 1).holds(True)
    assert not Range(0, 1).holds(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no field"),
        ("a = [1]", "write a list of values"),
        ("a = 1", "write a list of values"),
        ("a = { low = 1 }", "write a list of values"),
        ("a = { low = 1, high = 2, steps = 3 }", "write a list of values"),
        ("a = { low = 2, high = 1 }", "low must be below high"),
        ("a = { low = 0, high = 1, log = true }", "above zero"),
        ("a = { low = 1, high = 2, log = true, step = 1 }", "without a step"),
        ("a = { low = 1, high = 2, step = 0 }", "step must be above zero"),
        ("a = { low = 'x', high = 2 }", "must be numbers"),
        ("a = ", "cannot be read"),
    ],
)
def test_what_is_no_space_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PresetError, match=message):
        space_of(tmp_path, text)


@pytest.mark.parametrize("field", ["train.learning_rat", "train.decay", "eps.max"])
def test_every_end_must_make_a_valid_preset(field: str) -> None:
    with pytest.raises(PresetError):
        check_space({field: Range(0.5, 2.0)}, "digits", {})


def test_the_settings_of_a_space_are_counted_where_they_can_be() -> None:
    lists: Space = {"seed": Choices((0, 1)), "train.learning_rate": Range(0.1, 0.35, step=0.1), "epochs": Range(2, 5)}
    assert distinct_settings(lists) == 2 * 3 * 4 == len(list(all_settings(lists)))
    assert limited_trials(lists, 50) == 24
    assert limited_trials(lists, 5) == 5
    assert distinct_settings(lists | {"l1": Range(0.1, 0.3)}) is None
    assert limited_trials({"l1": Range(1e-4, 1e-2, log=True)}, 50) == 50
