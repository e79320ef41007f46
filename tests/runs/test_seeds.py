"""The record of several seeds, and what may be added to it."""

from pathlib import Path

import pytest

from certtrain.errors import RunError
from certtrain.runs.comparing import read_comparison
from certtrain.runs.seeds import SeedRuns, is_of_seeds, new_or_more_seeds, read_seeds
from certtrain.spec.preset import load_preset
from helpers.run_folders import RESULTS, write_run

PRESET = load_preset("digits")


def test_the_record_is_read_back(tmp_path: Path) -> None:
    assert not is_of_seeds(tmp_path / "many")
    SeedRuns(tmp_path / "many", PRESET, (0, 7)).write()
    assert is_of_seeds(tmp_path / "many")
    found = read_seeds(tmp_path / "many")
    assert (found.seeds, found.preset, found.finished) == ((0, 7), PRESET, [])
    assert found.preset_of(7).seed == 7
    assert found.folder(7) == tmp_path / "many" / "seed-7"


def test_seeds_are_added_to_the_same_settings_alone(tmp_path: Path) -> None:
    SeedRuns(tmp_path, PRESET, (0, 7)).write()
    assert new_or_more_seeds(tmp_path, load_preset("digits", {"seed": 5}), [7, 3]).seeds == (0, 7, 3)
    with pytest.raises(RunError, match=r"other settings: train\.batch_size was 64 and is 32"):
        new_or_more_seeds(tmp_path, load_preset("digits", {"train.batch_size": 32}), [1])
    assert new_or_more_seeds(tmp_path / "new", PRESET, [1]).seeds == (1,)


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="holds no runs of several seeds"):
        new_or_more_seeds(tmp_path, PRESET, [1])
    (tmp_path / "seeds.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be read"):
        read_seeds(tmp_path)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_are_different_ones(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    with pytest.raises(RunError, match="different ones"):
        SeedRuns(tmp_path, PRESET, seeds)


# --- mean and spread ---------------------------------------------------------------------------------------


def runs_of(tmp_path: Path, *certified: float, **fields: object) -> list[Path]:
    results = [RESULTS | {"certified_accuracy": value} for value in certified]
    return [
        write_run(tmp_path / f"seed-{number}", [], results=found, seed=number, **fields)
        for number, found in enumerate(results)
    ]


def test_mean_and_standard_deviation_of_a_sample(tmp_path: Path) -> None:
    spread = {each.figure: each for each in read_comparison(runs_of(tmp_path, 0.3, 0.4, 0.5)).spread()}
    found = spread["certified"]
    assert (found.mean, found.lowest, found.highest) == (pytest.approx(0.4), 0.3, 0.5)
    assert found.deviation == pytest.approx(0.1), "with n - 1; with n it is 0.0816"
    assert spread["natural"].deviation == 0


def test_runs_that_differ_in_more_than_seeds_have_no_mean(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, 0.3, 0.4)
    assert read_comparison(runs).spread()
    assert not read_comparison([runs[0], runs[0]]).spread(), "the same seed twice"
    assert not read_comparison(runs[:1]).spread()
    other = write_run(tmp_path / "other", [], seed=5, train__batch_size=32)
    assert not read_comparison([*runs, other]).spread()
    shifted = write_run(tmp_path / "shifted", [], results=RESULTS | {"eps": 0.1}, seed=5)
    assert not read_comparison([*runs, shifted]).spread()


def test_unfinished_runs_are_left_out_of_the_mean(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, 0.3, 0.5)
    unfinished = write_run(tmp_path / "more", [], finished=False, seed=9)
    (mean,) = [each.mean for each in read_comparison([*runs, unfinished]).spread() if each.figure == "certified"]
    assert mean == pytest.approx(0.4)
