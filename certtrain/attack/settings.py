"""The settings of attacks, as plain values, without torch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from certtrain.errors import MethodError

APGD_LOSSES = ("ce", "dlr")
NONE = "none"  # the name of no attack


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent of the margin (Madry et al. 2018): steps of decreasing size from random starts.

    targets: 0 descends the smallest margin. A number n descends the margins
    against n wrong classes (or all), one after the other, in the order of their
    logits, the largest first.
    """

    steps: int = 20
    restarts: int = 1
    seed: int = 0
    targets: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def name(self) -> str:
        """As in `ATTACKS`."""
        return "pgd-t" if self.targets else "pgd"

    def to_dict(self) -> dict[str, int | str]:
        """The name and all settings."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class APGD:
    """Auto-PGD (Croce and Hein 2020, algorithm 1): an adaptive step size, momentum, and the best iterate.

    loss: "ce", cross-entropy, or "dlr", the difference of logits ratio.
    targets: 0 for the untargeted loss, else as in `PGD`; "dlr" with 9 targets
    is AutoAttack's APGD-T. The ratio needs three classes, or four if targeted;
    with fewer, the margin replaces it.
    """

    loss: str = "ce"
    steps: int = 100
    restarts: int = 1
    seed: int = 0
    targets: int = 0

    def __post_init__(self) -> None:
        if self.loss not in APGD_LOSSES:
            raise MethodError(f"loss {self.loss!r} of APGD is not known; choose from: {', '.join(APGD_LOSSES)}")
        _check(self)

    @property
    def name(self) -> str:
        """As in `ATTACKS`, which has no apgd-ce-t."""
        if not self.targets:
            return f"apgd-{self.loss}"
        return "apgd-t" if self.loss == "dlr" else f"apgd-{self.loss}-t"

    def to_dict(self) -> dict[str, int | str]:
        """The name and all settings."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Strong:
    """The union of several attacks: PGD, and AutoAttack's two gradient attacks (Croce and Hein 2020, section 5).

    They follow each other, the fast ones first, each on the examples that are still robust, so this is at least as
    strong as each of them. AutoAttack's FAB and Square attacks are not among them. steps: of every attack; 0 for each
    attack's own number. restarts, seed: as in `PGD`.
    """

    steps: int = 0
    restarts: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self, steps=0)

    @property
    def name(self) -> str:
        """As in `ATTACKS`."""
        return "strong"

    @property
    def parts(self) -> tuple["SingleAttack", ...]:
        """The attacks, in order."""
        each = PGD(), PGD(targets=9), APGD(), APGD("dlr", targets=9)
        return tuple(replace(a, steps=self.steps or a.steps, restarts=self.restarts, seed=self.seed) for a in each)

    def to_dict(self) -> dict[str, int | str]:
        """The name and all settings."""
        return {"name": self.name, **asdict(self)}


SingleAttack = PGD | APGD
AttackSettings = SingleAttack | Strong


def described(settings: AttackSettings | None) -> dict[str, int | str]:
    """The settings as in reports and certificate files; None for no attack."""
    return {"name": NONE} if settings is None else settings.to_dict()


# By name: PGD, AutoAttack's two gradient attacks (apgd-ce, apgd-t), APGD with the untargeted ratio, and their union.
ATTACKS: dict[str, Callable[[], AttackSettings]] = {
    "pgd": PGD,
    "pgd-t": lambda: PGD(targets=9),
    "apgd-ce": APGD,
    "apgd-dlr": lambda: APGD("dlr"),
    "apgd-t": lambda: APGD("dlr", targets=9),
    "strong": Strong,
}


def named(name: str, **changes: int | None) -> AttackSettings:
    """The attack of that name; `changes` replace steps, restarts, seed or targets where they are not None.

    Raises MethodError for an unknown name or a number that is too small.
    """
    if name not in ATTACKS:
        raise MethodError(f"attack {name!r} is not known; choose from: {', '.join(ATTACKS)}")
    given: dict[str, Any] = {field: value for field, value in changes.items() if value is not None}
    chosen = ATTACKS[name]()
    if "targets" in given and isinstance(chosen, Strong):
        raise MethodError(f"attack {name!r} has no targets of its own; it is a union of attacks")
    return replace(chosen, **given)


def targeted_after(attack: AttackSettings) -> PGD | None:
    """A targeted attack for the examples that an untargeted one left, with its restarts and seed; else None."""
    if isinstance(attack, Strong) or attack.targets:
        return None
    steps = attack.steps if isinstance(attack, PGD) else PGD().steps
    return PGD(steps, attack.restarts, attack.seed, targets=9)


def _check(settings: AttackSettings, steps: int = 1) -> None:
    values = asdict(settings)
    for field, least in {"steps": steps, "restarts": 1, "seed": 0, "targets": 0}.items():
        if values.get(field, least) < least:
            raise MethodError(f"{field} of an attack is {values[field]}; it must be at least {least}")
