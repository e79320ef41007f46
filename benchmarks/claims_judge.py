"""Whether a claim shows in the results: differences of means, against the spread over seeds.

A difference shows if it is more than twice the pooled standard deviation of the
two sides. With fewer than three seeds on a side nothing is said. By chance
alone, two equal methods of three seeds each differ so much in one comparison of
fourteen, in either direction (Student's t of 2.45 with four degrees of freedom).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from claims import METHODS, RADII, WARM_UPS
from claims_found import Found, listing

from certtrain.formats import number
from certtrain.growth import DepthSweep

FEWEST = 3  # seeds on either side
FACTOR = 2  # times the pooled standard deviation
RULE = (
    f"A difference of means shows if it is more than {FACTOR} times the pooled standard deviation of its two sides; "
    f"with fewer than {FEWEST} seeds on a side nothing is said. Differences are in percentage points, and (±) is what "
    "they must exceed; a smaller one is not told from chance."
)

Outcome = Literal["shows", "within", "opposite", "too few runs"]
BASELINES = [method for method in METHODS if not method.startswith("fast")]
REMOVALS = [method for method in METHODS if method.startswith("fast ")]


@dataclass(frozen=True)
class Comparison:
    """Values, one a seed, that a claim says are larger than others; with `no_more`, that they are no larger."""

    first: Sequence[float]
    second: Sequence[float]
    no_more: bool = False

    @property
    def enough(self) -> bool:
        """Whether there are seeds enough on both sides."""
        return min(len(self.first), len(self.second)) >= FEWEST

    @property
    def difference(self) -> float:
        """First less second."""
        return statistics.fmean(self.first) - statistics.fmean(self.second)

    @property
    def limit(self) -> float:
        """What the difference must exceed."""
        squares = [(len(side) - 1) * statistics.variance(side) for side in (self.first, self.second)]
        pooled: float = sum(squares) / (len(self.first) + len(self.second) - 2)
        return FACTOR * pooled**0.5

    @property
    def outcome(self) -> Outcome:
        """What the rule says."""
        if not self.enough:
            return "too few runs"
        beyond = abs(self.difference) > self.limit
        if self.no_more:
            return "opposite" if beyond and self.difference > 0 else "shows"
        if not beyond:
            return "within"
        return "shows" if self.difference > 0 else "opposite"

    def __str__(self) -> str:
        if not self.enough:
            return f"too few runs ({len(self.first)}, {len(self.second)})"
        return f"{signed(self.difference)} (±{self.limit:.1f}) {self.outcome}"


@dataclass(frozen=True)
class Part:
    """A claim about one method, in each setting that it is said of."""

    method: str
    comparisons: dict[str, Comparison]

    def count(self, outcome: Outcome) -> int:
        """In how many settings it came out so."""
        return sum(comparison.outcome == outcome for comparison in self.comparisons.values())

    @property
    def judged(self) -> list[Comparison]:
        """Those with runs enough."""
        return [comparison for comparison in self.comparisons.values() if comparison.enough]

    @property
    def verdict(self) -> str:
        """Over the settings."""
        if not self.judged:
            return "too few runs"
        if self.count("shows") == len(self.judged):
            return "shows"
        return "shows in part" if self.count("shows") else "does not show"

    def __str__(self) -> str:
        """The method, the least and the greatest difference, and what the verdict does not say."""
        if not self.judged:
            return self.method
        told = [" to ".join(dict.fromkeys(signed(difference) for difference in self._extremes()))]
        told += [f"in {self.count('shows')} of {len(self.judged)} settings"] * (self.verdict == "shows in part")
        opposite = self.count("opposite")
        told += [f"the opposite in {opposite} of {len(self.judged)} settings"] * bool(opposite)
        return f"{self.method} ({'; '.join(told)})"

    def _extremes(self) -> tuple[float, float]:
        differences = [comparison.difference for comparison in self.judged]
        return min(differences), max(differences)


@dataclass(frozen=True)
class Claim:
    """A claim, what it says of each method, and what the results say of it in one sentence."""

    topic: str
    statement: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """Over the parts that there are runs enough for."""
        verdicts = {part.verdict for part in self.parts} - {"too few runs"}
        if not verdicts:
            return "too few runs"
        verdict = verdicts.pop() if len(verdicts) == 1 else "shows in part"
        return "does not show at this scale" if verdict == "does not show" else verdict

    @property
    def sentence(self) -> str:
        """The claim, its verdict, the parts by their verdicts, and how much is still to come."""
        parts = {words: [str(part) for part in self.parts if part.verdict == verdict] for verdict, words in FOR.items()}
        told = [f"{words} {listing(names)}" for words, names in parts.items() if names]
        missing = sum(part.count("too few runs") for part in self.parts)
        all_ = sum(len(part.comparisons) for part in self.parts)
        told += [f"{missing} of {all_} comparisons have too few runs"] * bool(missing)
        return "; ".join([f"{self.topic}, {self.verdict}: “{self.statement}”", *told]) + "."


FOR = {"shows": "it shows for", "shows in part": "in part for", "does not show": "not for"}


def signed(difference: float) -> str:
    """With its sign, which is a minus and no hyphen; a difference that rounds to zero has none."""
    return f"{difference:+.1f}".replace("-", "−") if round(difference, 1) else "0.0"


def judge_growth(sweeps: Sequence[DepthSweep]) -> str:
    """The first claim, by the growth before training."""
    exploding = {sweep.scheme: sweep.trend == "exponential" for sweep in sweeps}
    usual = [scheme for scheme in exploding if scheme != "ibp"]
    if all(exploding[scheme] for scheme in usual) and not exploding["ibp"]:
        verdict = "shows"
    else:
        others = [scheme for scheme in usual if not exploding[scheme]] + ["ibp"] * exploding["ibp"]
        verdict = f"does not show at this scale for {listing(others)}"
    rates = [f"{number(sweep.rate)} ({sweep.scheme})" for sweep in sweeps]
    return (
        f"Explosion, {verdict}: “before training, bounds explode with depth by the usual initialisations, and not by "
        f"the IBP initialisation”; each layer multiplies their width by {listing(rates)}."
    )


def claims(found: Found) -> list[Claim]:
    """The claims about training."""
    return [
        _imbalance(found, "Dead units", "dead", "units are dead"),
        _imbalance(found, "Inactive ReLUs", "inactive", "ReLUs are off"),
        Claim(
            "Each improvement",
            "without any one of them the verified error is greater than with all (fast)",
            tuple(Part(method, _against_fast(found, method)) for method in REMOVALS),
        ),
        Claim(
            "Short warm-up of fast",
            "with all improvements the short warm-up's verified error is no greater than the long one's",
            (Part("fast", _short_against_long(found, "fast", no_more=True)),),
        ),
        Claim(
            "Short warm-up of the baselines",
            "without the improvements the short warm-up's verified error is greater than the long one's",
            tuple(Part(method, _short_against_long(found, method)) for method in BASELINES),
        ),
        Claim(
            "Short against long",
            "the baselines' verified error with the long warm-up is greater than that of fast with the short one",
            tuple(Part(method, _long_against_fast(found, method)) for method in BASELINES),
        ),
    ]


def _imbalance(found: Found, topic: str, state: str, what: str) -> Claim:
    """Vanilla IBP, and fast without what is said to mend it, against fast."""
    unmended = ["vanilla IBP", *(method for method in REMOVALS if "initialisation" not in method)]
    parts = []
    for method in unmended:
        comparisons = {
            _setting(eps, warm_up): Comparison(
                found.cell(method, warm_up, eps).shares(state), found.cell("fast", warm_up, eps).shares(state)
            )
            for eps, warm_up in product(RADII, WARM_UPS)
        }
        parts.append(Part(method, comparisons))
    statement = f"by vanilla IBP, and without BatchNorm or a regulariser, more {what} than by the whole method (fast)"
    return Claim(topic, statement, tuple(parts))


def _against_fast(found: Found, method: str) -> dict[str, Comparison]:
    return {
        _setting(eps, warm_up): Comparison(_errors(found, method, warm_up, eps), _errors(found, "fast", warm_up, eps))
        for eps, warm_up in product(RADII, WARM_UPS)
    }


def _short_against_long(found: Found, method: str, no_more: bool = False) -> dict[str, Comparison]:
    return {
        f"ε = {eps}": Comparison(_errors(found, method, "short", eps), _errors(found, method, "long", eps), no_more)
        for eps in RADII
    }


def _long_against_fast(found: Found, method: str) -> dict[str, Comparison]:
    return {
        f"ε = {eps}": Comparison(_errors(found, method, "long", eps), _errors(found, "fast", "short", eps))
        for eps in RADII
    }


def _setting(eps: float, warm_up: str) -> str:
    return f"ε = {eps}, {warm_up}"


def _errors(found: Found, method: str, warm_up: str, eps: float) -> list[float]:
    return found.cell(method, warm_up, eps).errors("certified_accuracy")
