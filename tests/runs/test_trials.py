"""Trials of a search: the Pareto front, and the comparison with the preset's own settings."""

from certtrain.runs.trials import Goal, TrialRecord, TrialRecords


def records(*points: tuple[float, float], goals: tuple[Goal, ...] = ("natural", "certified"), own: int = -1):
    trials = [TrialRecord(n, "finished", {}, a, b, 1.0, n == own) for n, (a, b) in enumerate(points)]
    return TrialRecords("digits", goals, 100, 0.1, (*trials, TrialRecord(99, "pruned", {}, reason="poor")))


def test_the_front_has_the_trials_that_no_other_one_beats() -> None:
    found = records((0.9, 0.5), (0.8, 0.6), (0.85, 0.4), (0.7, 0.6), (0.95, 0.1), (0.8, 0.6))
    assert [trial.number for trial in found.front] == [1, 5, 0, 4]
    assert [trial.number for trial in records((0.9, 0.5), (0.8, 0.6), goals=("certified",)).front] == [1]
    assert records().front == []


def test_the_best_are_compared_with_the_presets_own_settings() -> None:
    assert records((0.9, 0.5), (0.8, 0.6), own=0).sentences() == [
        "best natural accuracy: 90.00%, by the preset's own settings: no other trial beats them",
        "best certified accuracy: 60.00%, by trial 1; the preset's own settings have 50.00%",
    ]
    assert "were not tried" in records((0.9, 0.5)).sentences()[0]
    assert records().sentences() == ["no trial is finished yet"]
