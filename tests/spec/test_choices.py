"""The names to choose from are the keys of the engine's tables."""

from typing import get_args

from certtrain.attack import ATTACKS, described
from certtrain.bounds.methods import METHODS
from certtrain.bounds.rounding import ARITHMETICS
from certtrain.network.initialization import SCHEMES
from certtrain.properties.decide import EXACT_METHODS
from certtrain.spec import choices
from certtrain.verification.methods import AUTO, ONE_BY_ONE


def test_methods():
    assert get_args(choices.MethodName) == (AUTO, *METHODS, *ONE_BY_ONE)
    assert get_args(choices.PropertyMethodName) == ("crown-ibp", *EXACT_METHODS)


def test_attacks():
    assert get_args(choices.AttackName) == (*ATTACKS, described(None)["name"])


def test_arithmetics():
    assert set(get_args(choices.ArithmeticName)) == set(ARITHMETICS)


def test_schemes():
    assert get_args(choices.Scheme) == tuple(SCHEMES)
