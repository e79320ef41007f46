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


AttackSettings = PGD | APGD


def described(settings: AttackSettings | None) -> dict[str, int | str]:
    """The settings as in reports and certificate files; None for no attack."""
    return {"name": NONE} if settings is None else settings.to_dict()


# By name: PGD, AutoAttack's two gradient attacks (apgd-ce, apgd-t), and APGD with the untargeted ratio.
ATTACKS: dict[str, Callable[[], AttackSettings]] = {
    "pgd": PGD,
    "pgd-t": lambda: PGD(targets=9),
    "apgd-ce": APGD,
    "apgd-dlr": lambda: APGD("dlr"),
    "apgd-t": lambda: APGD("dlr", targets=9),
}


def named(name: str, **changes: int | None) -> AttackSettings:
    """The attack of that name; `changes` replace steps, restarts, seed or targets where they are not None.

    Raises MethodError for an unknown name or a number that is too small.
    """
    if name not in ATTACKS:
        raise MethodError(f"attack {name!r} is not known; choose from: {', '.join(ATTACKS)}")
    given: dict[str, Any] = {field: value for field, value in changes.items() if value is not None}
    return replace(ATTACKS[name](), **given)


def _check(settings: AttackSettings) -> None:
    for field, least in (("steps", 1), ("restarts", 1), ("seed", 0), ("targets", 0)):
        if asdict(settings)[field] < least:
            raise MethodError(f"{field} of an attack is {asdict(settings)[field]}; it must be at least {least}")
