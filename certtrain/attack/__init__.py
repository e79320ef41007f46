"""Attacks: the search for a misclassified input in a box, which gives an upper limit on robust accuracy."""

from certtrain.attack.search import AttackResult, attack
from certtrain.attack.settings import APGD, ATTACKS, PGD, AttackSettings, Strong, described, named, targeted_after

__all__ = [
    "APGD",
    "ATTACKS",
    "PGD",
    "AttackResult",
    "AttackSettings",
    "Strong",
    "attack",
    "described",
    "named",
    "targeted_after",
]
