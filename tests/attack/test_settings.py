"""Attacks by name, as plain values."""

import pytest

from certtrain.attack import APGD, ATTACKS, PGD, AttackSettings, Strong, named
from certtrain.errors import MethodError


@pytest.mark.parametrize("name", ATTACKS)
def test_every_name_comes_back(name: str):
    assert named(name).name == name
    changed = named(name, steps=7, restarts=2, seed=5)
    assert changed.to_dict() | {"name": name, "steps": 7, "restarts": 2, "seed": 5} == changed.to_dict()


def test_what_is_none_stays_as_it_is():
    assert named("apgd-t", steps=None, targets=None) == APGD("dlr", targets=9)
    assert named("pgd-t", targets=3) == PGD(targets=3)


def test_the_strong_attack_is_the_union_of_pgd_and_autoattack_s_gradient_attacks():
    parts = named("strong", restarts=2, seed=3).parts  # type: ignore[union-attr]
    assert parts == tuple(named(name, restarts=2, seed=3) for name in ("pgd", "pgd-t", "apgd-ce", "apgd-t"))
    assert [part.steps for part in named("strong", steps=5).parts] == [5] * 4  # type: ignore[union-attr]


@pytest.mark.parametrize("settings", [PGD(), PGD(targets=2), APGD(), APGD("dlr"), APGD("ce", targets=4), Strong()])
def test_settings_are_plain_values(settings: AttackSettings):
    described = settings.to_dict()
    described.pop("name")
    assert type(settings)(**described) == settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: named("fgsm"),
            "attack 'fgsm' is not known; choose from: pgd, pgd-t, apgd-ce, apgd-dlr, apgd-t, strong",
        ),
        (lambda: Strong(restarts=0), "restarts of an attack is 0"),
        (lambda: named("strong", targets=3), "attack 'strong' has no targets of its own"),
        (lambda: APGD("cw"), "loss 'cw' of APGD is not known; choose from: ce, dlr"),
        (lambda: PGD(steps=0), "steps of an attack is 0; it must be at least 1"),
        (lambda: named("apgd-ce", restarts=0), "restarts of an attack is 0"),
        (lambda: APGD(targets=-1), "targets of an attack is -1; it must be at least 0"),
        (lambda: PGD(seed=-1), "seed of an attack is -1"),
    ],
)
def test_wrong_settings_are_named(make, message: str):
    with pytest.raises(MethodError, match=message):
        make()
