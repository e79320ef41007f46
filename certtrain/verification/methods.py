"""Verification methods by name, and their rounds of steps."""

from torch import nn

from certtrain.attack import AttackSettings, targeted_after
from certtrain.bounds.methods import METHODS
from certtrain.bounds.settings import Settings as BoundSettings
from certtrain.errors import MethodError
from certtrain.network.modelfile import Classifier
from certtrain.verification.certificate import FASTEST, Certifier
from certtrain.verification.complete import COMPLETE, CompleteStep
from certtrain.verification.milp import MILP, MilpStep
from certtrain.verification.steps import (
    ATTACK,
    INFERENCE,
    AttackStep,
    BoundStep,
    InferenceStep,
    Round,
    VerificationStep,
)

AUTO = "auto"
TARGETED = "pgd-t"  # the step of the second attack in "auto"
BEFORE_TARGETED = "crown-ibp"  # the last method that takes less time than that attack
SLOW_DIVISOR = 10  # batches of methods other than intervals are this much smaller, so that time is checked more often
ONE_BY_ONE = (COMPLETE, MILP)


def methods_of(method: str) -> tuple[str, ...]:
    """The methods that a name means: "auto" is all of certtrain's own, the fastest first. Raises MethodError."""
    if method == AUTO:
        return (*METHODS, COMPLETE)
    if method not in (*METHODS, *ONE_BY_ONE):
        raise MethodError(f"method {method!r} is not known; choose from: {', '.join((AUTO, *METHODS, *ONE_BY_ONE))}")
    return (method,)


def names_of(method: str, attack: AttackSettings | None) -> tuple[str, ...]:
    """The names of the steps of `method`, in order, with inference and the attacks. Raises MethodError."""
    names = [INFERENCE, *([ATTACK] if attack else []), *methods_of(method)]
    if _second_attack(method, attack) is not None:
        names.insert(names.index(BEFORE_TARGETED) + 1, TARGETED)
    return tuple(names)


def _second_attack(method: str, attack: AttackSettings | None) -> AttackSettings | None:
    """In "auto", the targeted attack on what an untargeted `attack` and the fastest bounds leave open; else None."""
    return targeted_after(attack) if method == AUTO and attack is not None else None


def rounds_of(
    model: nn.Module, method: str, attack: AttackSettings | None, size: int, arithmetic: str, settings: BoundSettings
) -> list[Round]:
    """The rounds of `method`: all fast steps, in batches of `size` examples, then one round for each slow step.

    `attack` may be None, for no attack.
    """
    steps = {name: step_named(model, method, name, arithmetic, settings) for name in methods_of(method)}
    fast = [steps.pop(FASTEST)] if FASTEST in steps else []
    attacks = [] if attack is None else [AttackStep(model, attack, arithmetic)]
    first = Round((InferenceStep(model, arithmetic), *attacks, *fast), size)
    if (second := _second_attack(method, attack)) is not None:
        steps[TARGETED] = AttackStep(model, second, arithmetic, TARGETED, timed=True)
    slow = [name for name in names_of(method, attack) if name in steps]
    return [first, *(Round((steps[name],), examples_at_once(name, size), name in ONE_BY_ONE) for name in slow)]


def step_named(model: nn.Module, method: str, name: str, arithmetic: str, settings: BoundSettings) -> VerificationStep:
    """The step for the method `name`, one of the methods of `method`. Raises MethodError.

    In the cascade, a bound method gets the examples that faster methods leave open, and does not repeat those methods.
    """
    if name == COMPLETE:
        return CompleteStep(model, arithmetic, settings)
    if name == MILP:
        return MilpStep(model, arithmetic)
    return BoundStep(model, name, arithmetic, settings, skip_faster=method == AUTO)


def examples_at_once(method: str, size: int) -> int:
    """The batch size of a method, where `size` is that of the fast steps."""
    if method in ONE_BY_ONE:
        return 1
    return size if method in (FASTEST, TARGETED) else max(1, size // SLOW_DIVISOR)


def assumptions_of(model: nn.Module, method: str, arithmetic: str) -> tuple[str, ...]:
    """What certificates of a network by that method, in that arithmetic, assume. Raises MethodError."""
    methods_of(method)
    found = Certifier(model, FASTEST, arithmetic=arithmetic).assumptions
    found = (*found, *model.metadata.assumptions) if isinstance(model, Classifier) else found
    return (*MilpStep(model, arithmetic).assumptions, *found) if method == MILP else found
