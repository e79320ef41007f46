"""Presets explained: every field has a meaning, and the TOML file is the preset."""

from pathlib import Path

import pytest

from certtrain.errors import PresetError
from certtrain.spec.architecture import NETWORKS
from certtrain.spec.explained import explained_preset, field_meanings, toml_lines, toml_value
from certtrain.spec.objective import OBJECTIVES, AttackSection
from certtrain.spec.preset import (
    DataSection,
    EpsSection,
    Preset,
    RegularizerSection,
    StartSection,
    TrainSection,
    load_preset,
)
from certtrain.spec.preset import preset_names as names

SECTIONS = [StartSection, DataSection, EpsSection, RegularizerSection, TrainSection, AttackSection]


def text_of(name: str | Path, width: int = 100) -> str:
    return "\n".join(line.text for line in toml_lines(explained_preset(name), width)) + "\n"


def test_every_field_has_a_meaning() -> None:
    missing = {
        section.__name__: set(section.model_fields) - field_meanings(section).keys()
        for section in (*SECTIONS, *NETWORKS.values(), *OBJECTIVES.values())
    }
    assert all(fields <= {"name", "attack"} for fields in missing.values()), missing  # these have sections' own texts
    own = {name for name, field in Preset.model_fields.items() if name not in field_meanings(Preset)}
    assert own == {"data", "model", "eps", "train", "objective", "regularizer"}


@pytest.mark.parametrize("name", names())
def test_the_toml_of_a_preset_is_that_preset(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text_of(name), encoding="utf-8")
    assert load_preset(file) == load_preset(name)


def test_what_a_preset_sets_or_inherits_stands_out_from_defaults() -> None:
    text = text_of("cifar10-8-255-mtl-ibp")
    head, rest = text.split("\n\n", 1)
    assert head.startswith("# CTBench's settings (Mao et al. 2024).")
    assert "It extends cifar10-8-255, which extends cifar10-160ep; all fields are here." in head
    assert "\nalpha = 0.6\n" in rest
    assert '\nmax = "8/255"\n' in rest  # of the preset that it extends
    assert "\n[objective.attack]\n" in rest
    assert "\n#momentum = 0.9\n" in rest


def test_comments_are_as_wide_as_asked_and_values_are_whole() -> None:
    lines = text_of("digits", 60).splitlines()
    assert max(len(line) for line in lines if line.startswith("# ")) <= 60
    assert "channels = [32, 64]" in lines


def test_values_are_written_as_toml(tmp_path: Path) -> None:
    import tomllib

    value = {"a b": 'say "ε"\n\x7f', "n": 1e-05, "flag": True, "rows": [[1, 2], []], "none": {}}
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value


def test_an_unknown_preset_is_an_error() -> None:
    with pytest.raises(PresetError, match="there is no preset 'none'"):
        explained_preset("none")
