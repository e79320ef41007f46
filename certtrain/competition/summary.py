"""What came out of a run: counts for each category, and contradictions to expected verdicts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from certtrain.competition.instances import Instance, Key
from certtrain.competition.results import WORDS, InstanceResult


@dataclass
class Tally:
    """The results of a category.

    words: how many instances have which result. absent: how many lack a file and were not run. expected: of how many
    decided ones a verdict was expected; differing: how many of these have the other one. seconds: their sum.
    """

    category: str
    words: Counter[str] = field(default_factory=Counter)
    absent: int = 0
    expected: int = 0
    differing: int = 0
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        """How many instances have a result."""
        return self.words.total()

    def add(self, instance: Instance, result: InstanceResult) -> None:
        """Count the result of an instance."""
        self.words[result.word] += 1
        self.seconds += result.seconds
        self.expected += instance.expected is not None and result.word in ("sat", "unsat")
        self.differing += contradicts(instance, result)

    def with_others(self, others: "Iterable[Tally]") -> "Tally":
        """The counts of this tally and others together, under its category."""
        whole = replace(self, words=self.words.copy())
        for other in others:
            whole.words += other.words
            whole.absent += other.absent
            whole.expected += other.expected
            whole.differing += other.differing
            whole.seconds += other.seconds
        return whole

    def to_dict(self) -> dict[str, Any]:
        """All counts as plain values."""
        counts = {word: self.words[word] for word in WORDS}
        return {
            "instances": self.tried,
            **counts,
            "absent": self.absent,
            "expected": self.expected,
            "contradictions": self.differing,
            "seconds": self.seconds,
        }


def contradicts(instance: Instance, result: InstanceResult) -> bool:
    """Whether the result is sat and unsat was expected, or the other way round."""
    return {instance.expected, result.word} == {"sat", "unsat"}


def tallies(instances: Iterable[Instance], results: Mapping[Key, InstanceResult]) -> list[Tally]:
    """The tally of each category, in the order of the instances; instances without a result are absent if a file is."""
    found: dict[str, Tally] = {}
    for instance in instances:
        tally = found.setdefault(instance.key.category, Tally(instance.key.category))
        if instance.key in results:
            tally.add(instance, results[instance.key])
        elif instance.network is None or instance.property is None:
            tally.absent += 1
    return list(found.values())


def contradictions(instances: Iterable[Instance], results: Mapping[Key, InstanceResult]) -> list[Instance]:
    """The instances whose results contradict the expected verdicts."""
    return [each for each in instances if each.key in results and contradicts(each, results[each.key])]
