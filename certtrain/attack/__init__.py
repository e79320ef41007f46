"""Attacks: the search for a misclassified input in a box, which gives an upper limit on robust accuracy."""

from certtrain.attack.search import AttackResult, attack
from certtrain.attack.settings import APGD, ATTACKS, PGD, AttackSettings, described, named

__all__ = ["APGD", "ATTACKS", "PGD", "AttackResult", "AttackSettings", "attack", "described", "named"]
