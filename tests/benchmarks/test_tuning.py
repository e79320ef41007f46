"""The search of digits' settings: what its command says of the trials, and that it can be searched."""

from pathlib import Path
from typing import Any

from certtrain.tuning.space import read_space
from helpers.commands_of_benchmarks import benchmark

tuning = benchmark("tuning")


def trial(number: int, natural: float, certified: float, **more: Any) -> dict[str, Any]:
    about = {"number": number, "natural": natural, "certified": certified, "settings": {"seed": number}}
    return about | {"state": "finished", "reference": False} | more


def test_the_best_trial_and_those_that_beat_the_preset_are_named() -> None:
    trials = [
        trial(0, 0.90, 0.80, reference=True),
        trial(1, 0.90, 0.80),
        trial(2, 0.92, 0.79),
        trial(3, 0.90, 0.85),
        trial(4, 0.95, 0.85, settings={"seed": 3}),
        trial(5, 0.0, 0.0) | {"state": "pruned", "natural": None, "certified": None},
    ]
    counted, own, best, beaten = tuning.summary(trials)
    assert counted == "6 trials: 5 finished, 1 pruned; 5 different settings"
    assert own.endswith("90.00% natural, 80.00% certified")
    assert best.startswith("the best by certified accuracy, trial 4: 95.00% natural, 85.00% certified")
    assert beaten.startswith("2 trials beat")


def test_the_space_is_one_that_can_be_searched(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text(tuning.SPACE)
    assert read_space(tmp_path / "space.toml").keys() == {
        "train.learning_rate",
        "train.batch_size",
        "objective.natural_share",
    }
