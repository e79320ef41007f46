"""A check of the machine and its result; without torch."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from certtrain.errors import CerttrainError, MissingExtra

Status = Literal["pass", "absent", "fails"]


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: its name, its status, what was found, and what to do about it.

    needed: certtrain cannot do without it, so that "fails" means that certtrain does not work here.
    """

    name: str
    status: Status
    found: str
    advice: str = ""
    needed: bool = False

    @property
    def broken(self) -> bool:
        """Whether something fails without which certtrain does not work."""
        return self.needed and self.status == "fails"

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


class Check(NamedTuple):
    """A check: its name, a function that returns what it finds, what to do if that fails, whether it is needed."""

    name: str
    work: Callable[[], str]
    advice: str
    needed: bool = False

    def run(self) -> CheckResult:
        """Run the check. Whatever exception it raises, that is its result."""
        try:
            return CheckResult(self.name, "pass", self.work(), needed=self.needed)
        except Absent as absent:
            return CheckResult(self.name, "absent", absent.found, absent.advice, self.needed)
        except MissingExtra as missing:
            found, _, advice = str(missing).partition(": ")
            return CheckResult(self.name, "absent", found, advice, self.needed)
        except CerttrainError as error:
            return self._failed(str(error))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            return self._failed(f"{type(error).__name__}: {reason}")

    def _failed(self, found: str) -> CheckResult:
        return CheckResult(self.name, "fails", found, self.advice, self.needed)


class Absent(Exception):
    """Something that certtrain can do without is not there; `advice` says how to get it."""

    def __init__(self, found: str, advice: str = "") -> None:
        super().__init__(found)
        self.found, self.advice = found, advice
