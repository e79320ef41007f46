"""The page of several runs."""

from pathlib import Path

import pytest

from certtrain.reports.comparison import comparison_page, line_styles
from certtrain.runs.comparing import read_comparison
from helpers.html_pages import Page
from helpers.run_folders import epoch, write_run


def page(tmp_path: Path) -> str:
    first = write_run(tmp_path / "<first>", [epoch(1), epoch(2)], train__learning_rate=1e-3)
    other = write_run(tmp_path / "other", [epoch(1, validation_certified_accuracy=0.5)], finished=False)
    return comparison_page(read_comparison([first, other]))


def test_the_page_has_results_settings_and_a_curve_for_each_run(tmp_path: Path) -> None:
    text = page(tmp_path)
    read = Page(text)
    results, settings = read.tables
    assert [row[:2] for row in results[1:]] == [["<first>", "4"], ["other", "1 of 4"]]
    assert results[1][6:9] == ["51.00%", "40.00%", "35.00%"]
    assert results[2][6:] == ["–"] * 4
    assert settings == [["field", "<first>", "other"], ["train.learning_rate", "0.001", "0.002"]]
    assert text.count("<svg") == 8
    assert "Certified accuracy on held-out examples" in read.text
    assert len(read.ids) == len(set(read.ids))
    assert not [target for target in read.loads if not target.startswith("#")]


def test_a_page_before_the_first_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [], finished=False)
    read = Page(comparison_page(read_comparison([run])))
    assert "No epoch is finished yet." in read.text
    assert "Settings that differ" not in read.headings


@pytest.mark.parametrize("count", [1, 6, 7, 12, 13, 40])
def test_every_run_has_a_style_of_its_own(count: int) -> None:
    assert len(set(line_styles(count))) == count
