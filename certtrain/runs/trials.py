"""The trials of a search of settings, as plain values; without torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Goal = Literal["natural", "certified"]
GOALS: tuple[Goal, ...] = ("natural", "certified")
State = Literal["finished", "pruned", "running", "waiting", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """A trial: its number, its state, its settings by dotted path, and what was measured on held-out examples.

    reference: it has the preset's own settings. reason: why it was pruned or has failed. folder: the name of its run's
    folder; a trial that continues one that was stopped has the folder of that one.
    """

    number: int
    state: State
    settings: dict[str, Any]
    natural: float | None = None
    certified: float | None = None
    seconds: float | None = None
    reference: bool = False
    reason: str = ""
    folder: str = ""

    def value(self, goal: Goal) -> float:
        """The accuracy of a finished trial."""
        found = self.natural if goal == "natural" else self.certified
        assert found is not None
        return found


@dataclass(frozen=True)
class TrialRecords:
    """The trials of a study, the accuracies that it maximises, and what the figures are of."""

    preset: str
    goals: tuple[Goal, ...]
    examples: int
    """The number of held-out examples."""
    eps: float
    trials: tuple[TrialRecord, ...] = field(default=())

    @property
    def finished(self) -> list[TrialRecord]:
        """The trials that were trained to their end."""
        return [trial for trial in self.trials if trial.state == "finished"]

    @property
    def front(self) -> list[TrialRecord]:
        """The Pareto-optimal trials among the finished ones: no other is as good in each goal and better in one.

        In the order of their natural accuracy, the best certified one first.
        """
        best = [trial for trial in self.finished if not any(_beats(o, trial, self.goals) for o in self.finished)]
        return sorted(best, key=lambda trial: (trial.value("natural"), -trial.value("certified")))

    @property
    def reference(self) -> TrialRecord | None:
        """The finished trial with the preset's own settings, if there is one."""
        return next((trial for trial in self.finished if trial.reference), None)

    def sentences(self) -> list[str]:
        """For each goal, the best trial beside the preset's own settings."""
        if not self.finished:
            return ["no trial is finished yet"]
        return [_sentence(goal, self.front, self.reference) for goal in self.goals]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        head = {"preset": self.preset, "goals": list(self.goals), "examples": self.examples, "eps": self.eps}
        trials = [asdict(trial) for trial in self.trials]
        return head | {"front": [trial.number for trial in self.front], "trials": trials}


def _beats(one: TrialRecord, other: TrialRecord, goals: Sequence[Goal]) -> bool:
    pairs = [(one.value(goal), other.value(goal)) for goal in goals]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def _sentence(goal: Goal, front: Sequence[TrialRecord], reference: TrialRecord | None) -> str:
    best = max(front, key=lambda trial: trial.value(goal))
    value = f"{100 * best.value(goal):.2f}%"
    if reference is None:
        return f"best {goal} accuracy: {value}, by trial {best.number}; the preset's own settings were not tried"
    own = f"{100 * reference.value(goal):.2f}%"
    if best.value(goal) > reference.value(goal):
        return f"best {goal} accuracy: {value}, by trial {best.number}; the preset's own settings have {own}"
    return f"best {goal} accuracy: {own}, by the preset's own settings: no other trial beats them"
