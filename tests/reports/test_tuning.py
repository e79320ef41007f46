"""The page of a search of settings."""

from certtrain.reports.tuning import tuning_page
from certtrain.runs.trials import TrialRecord, TrialRecords
from helpers.html_pages import Page

TRIALS = (
    TrialRecord(0, "finished", {"train.learning_rate": 0.002}, 0.9, 0.5, 12.0, reference=True),
    TrialRecord(1, "finished", {"train.learning_rate": 0.00123456}, 0.8, 0.6, 12.0, folder="trial-0000"),
    TrialRecord(2, "finished", {"train.learning_rate": 0.5}, 0.7, 0.2, 12.0),
    TrialRecord(3, "pruned", {"train.learning_rate": 0.7}, reason="poor"),
)


def page(*trials: TrialRecord) -> str:
    return tuning_page(TrialRecords("digits", ("natural", "certified"), 143, 0.1, trials))


def test_the_page_has_the_front_the_other_trials_and_a_picture() -> None:
    text = page(*TRIALS)
    read = Page(text)
    best, others = read.tables
    assert [row[0] for row in best[1:]] == ["1", "0"]
    assert best[1] == ["1", "finished", "80.00%", "60.00%", "12.0 s", "trial-0000", "0.001235"]
    assert [row[:2] for row in others[1:]] == [["2", "finished"], ["3", "pruned"]]
    assert text.count("<svg") == 1
    assert "best certified accuracy: 60.00%, by trial 1; the preset's own settings have 50.00%" in read.text
    assert not [target for target in read.loads if not target.startswith("#")]


def test_the_page_without_finished_trials() -> None:
    read = Page(page(TRIALS[3]))
    assert "no trial is finished yet" in read.text
    assert read.headings[1:] == ["All others"]
