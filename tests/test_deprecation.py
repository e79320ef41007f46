"""Names of an earlier version, taken with a warning."""

import inspect

import pytest
import torch
from torch import nn

import certtrain
from certtrain.deprecation import renamed_argument
from helpers import tiny_classifier


@renamed_argument("old", "new")
def doubled(other: int, new: int = 1) -> int:
    """Some function."""
    return other + 2 * new


def test_an_argument_is_taken_by_its_old_name_with_a_warning():
    with pytest.warns(DeprecationWarning, match="the argument old of doubled is now new") as caught:
        assert doubled(1, old=5) == 11
    assert [warning.filename for warning in caught] == [__file__]


def test_its_new_name_gives_no_warning():
    assert doubled(1, new=5) == doubled(1, 5) == 11
    assert list(inspect.signature(doubled).parameters) == ["other", "new"]


@pytest.mark.parametrize("named", [{"old": 1, "new": 2}, {"oldest": 1}])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_argument_is_given_once_and_known(named: dict[str, int]):
    with pytest.raises(TypeError):
        doubled(1, **named)


@pytest.mark.parametrize("call", [certtrain.train, certtrain.resume])
def test_trainings_take_their_context_as_surroundings(call):
    arguments = ["none"] * list(inspect.signature(call).parameters).index("context")
    with pytest.warns(DeprecationWarning, match="is now context"), pytest.raises(AttributeError, match="resolved"):
        call(*arguments, surroundings="no context")


def test_the_records_of_a_trace_are_its_visits_with_a_warning():
    trace = certtrain.propagate(nn.Linear(2, 2), torch.full((1, 2), 0.5), 0.1)
    with pytest.warns(DeprecationWarning, match=r"BoundTrace\.visits is now BoundTrace\.records") as caught:
        assert trace.visits is trace.records
    assert [warning.filename for warning in caught] == [__file__]


def test_a_class_is_taken_by_its_old_name_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"certtrain\.Surroundings is now certtrain\.RunContext") as caught:
        old = certtrain.Surroundings
    assert old is certtrain.RunContext
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(DeprecationWarning, match="RunContext"):
        from certtrain import Surroundings
    assert Surroundings is old
    assert "Surroundings" not in dir(certtrain)


@pytest.mark.parametrize(("old", "new"), [("Search", "SignedAscent"), ("Robust", "RobustLosses")])
def test_classes_of_objectives_are_taken_by_their_old_names(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"certtrain\.{old} is now certtrain\.{new}"):
        assert getattr(certtrain, old) is getattr(certtrain, new)


@pytest.mark.parametrize(("old", "new"), [("pgd_accuracy", "attacked_accuracy"), ("stages", "steps")])
def test_the_old_attributes_of_a_report_are_the_new_ones_with_a_warning(old: str, new: str):
    report = certtrain.verify(*tiny_classifier.mostly_right(10), 0.01, method="ibp")
    with pytest.warns(DeprecationWarning, match=rf"Report\.{old} is now Report\.{new}") as caught:
        assert getattr(report, old) == getattr(report, new)
    assert [warning.filename for warning in caught] == [__file__]
