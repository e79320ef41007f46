"""Whether the results support a claim: differences of means, compared with the spread over seeds.

A difference is significant if it exceeds twice the pooled standard deviation, in
either direction and for every claim alike. With fewer than three seeds on a side
there is no verdict. By chance alone, two equal methods with three seeds each
differ so much in one comparison of fourteen, in either direction (Student's t of
2.45 with four degrees of freedom).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from claims_found import COLLAPSED, Cell, Found, listing
from claims_plan import setting

from certtrain.diagnostics.growth import DepthSweep
from certtrain.formats import number

FEWEST = 3  # seeds on either side
FACTOR = 2  # times the pooled standard deviation
RULE = (
    f"One rule for all claims: a difference of means is significant if it exceeds {FACTOR} times the pooled standard "
    "deviation. Then the claim shows, or its opposite does. A difference that is not significant does not mean that "
    "both sides are equal, and a claim of “no greater” shows only if the difference is significant and below zero. "
    f"With fewer than {FEWEST} seeds on a side there is no verdict. Differences are in percentage points, of what the "
    "claim names first minus the other, and (±) is the limit that they must exceed. "
    f"A dagger ({COLLAPSED}): a run among them has collapsed."
)

Outcome = Literal["shows", "not significant", "opposite", "too few runs"]
Direction = Literal["greater", "less"]


@dataclass(frozen=True)
class Comparison:
    """Values, one for each seed, that a claim says are greater, or less, than others.

    collapsed: how many of them are of collapsed runs.
    """

    first: Sequence[float]
    second: Sequence[float]
    says: Direction = "greater"
    collapsed: int = 0

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds on both sides."""
        return min(len(self.first), len(self.second)) >= FEWEST

    @property
    def difference(self) -> float:
        """The mean of the first minus that of the second."""
        return statistics.fmean(self.first) - statistics.fmean(self.second)

    @property
    def limit(self) -> float:
        """The limit that the difference must exceed."""
        squares = [(len(side) - 1) * statistics.variance(side) for side in (self.first, self.second)]
        pooled: float = sum(squares) / (len(self.first) + len(self.second) - 2)
        return FACTOR * pooled**0.5

    @property
    def outcome(self) -> Outcome:
        """The outcome by the rule."""
        if not self.enough:
            return "too few runs"
        if abs(self.difference) <= self.limit:
            return "not significant"
        return "shows" if (self.difference > 0) == (self.says == "greater") else "opposite"

    @property
    def points(self) -> str:
        """The difference in percentage points, with a dagger if a run has collapsed."""
        return signed(self.difference) + COLLAPSED * bool(self.collapsed)

    def __str__(self) -> str:
        if not self.enough:
            return f"too few runs ({len(self.first)}, {len(self.second)})"
        return f"{self.points} (±{self.limit:.1f}) {self.outcome}"


@dataclass(frozen=True)
class Part:
    """A claim about one method, in each of its settings."""

    method: str
    comparisons: dict[str, Comparison]

    @property
    def judged(self) -> dict[str, Comparison]:
        """The comparisons with enough runs."""
        return {setting: comparison for setting, comparison in self.comparisons.items() if comparison.enough}

    @property
    def verdict(self) -> str:
        """The verdict over all settings."""
        outcomes = {comparison.outcome for comparison in self.judged.values()}
        if len(outcomes) < 2:
            return outcomes.pop() if outcomes else "too few runs"
        return "shows in part" if "shows" in outcomes else "does not show"

    def count(self, outcome: Outcome) -> int:
        """The number of settings with this outcome."""
        return sum(comparison.outcome == outcome for comparison in self.comparisons.values())

    def __str__(self) -> str:
        """The method and its differences: each with its setting if there are few or the outcomes differ."""
        if not self.judged:
            return self.method
        alike = len({comparison.outcome for comparison in self.judged.values()}) == 1
        if len(self.judged) > FEW:
            words = [f"{self._range}", *([] if alike else self._by_outcome())]
        else:
            words = [
                f"{comparison.points} at {where}" + ("" if alike else f", {comparison.outcome}")
                for where, comparison in self.judged.items()
            ]
        return f"{self.method} ({'; '.join(words)})"

    @property
    def _range(self) -> str:
        """The smallest and the largest difference."""
        ordered = sorted(self.judged.values(), key=lambda comparison: comparison.difference)
        dagger = COLLAPSED * any(comparison.collapsed for comparison in ordered)
        extremes = dict.fromkeys(signed(comparison.difference) for comparison in (ordered[0], ordered[-1]))
        return " to ".join(extremes) + dagger

    def _by_outcome(self) -> list[str]:
        """The settings in which the claim does not show, by outcome."""
        others: dict[Outcome, list[str]] = {"not significant": [], "opposite": []}
        for where, comparison in self.judged.items():
            if comparison.outcome in others:
                others[comparison.outcome].append(where)
        words = {"not significant": "not significant", "opposite": "the opposite"}
        return [f"{words[outcome]} at {listing(settings)}" for outcome, settings in others.items() if settings]


@dataclass(frozen=True)
class Claim:
    """A claim about several methods, and its verdict in one sentence."""

    topic: str
    statement: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """The verdict over the parts with enough runs."""
        verdicts = {part.verdict for part in self.parts} - {"too few runs"}
        if not verdicts:
            return "too few runs"
        if len(verdicts) > 1:
            return "shows in part" if verdicts & {"shows", "shows in part"} else "does not show at this scale"
        return AT_THIS_SCALE.get(verdict := verdicts.pop(), verdict)

    @property
    def sentence(self) -> str:
        """The claim, its verdict, the parts by their verdicts, and the missing and the collapsed runs."""
        parts = {words: [str(part) for part in self.parts if part.verdict == verdict] for verdict, words in FOR.items()}
        clauses = [f"{words} {listing(names)}" for words, names in parts.items() if names]
        comparisons = [comparison for part in self.parts for comparison in part.comparisons.values()]
        missing = sum(not comparison.enough for comparison in comparisons)
        collapsed = sum(bool(comparison.collapsed) for comparison in comparisons if comparison.enough)
        clauses += [f"{missing} of {len(comparisons)} comparisons have too few runs"] * bool(missing)
        clauses += [f"{collapsed} of {len(comparisons)} comparisons ({COLLAPSED}) rest on collapsed runs"] * bool(
            collapsed
        )
        return "; ".join([f"{self.topic}, {self.verdict}: “{self.statement}”", *clauses]) + "."


FEW = 2  # at most so many settings are named one by one in a sentence
FOR = {
    "shows": "it shows for",
    "shows in part": "in part for",
    "not significant": "not significant for",
    "opposite": "the opposite shows for",
    "does not show": "not for",
}
AT_THIS_SCALE = {
    "not significant": "not significant at this scale",
    "opposite": "the opposite shows",
    "does not show": "does not show at this scale",
}


def signed(difference: float) -> str:
    """The difference with its sign, with a minus instead of a hyphen; without a sign if it rounds to zero."""
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
    methods = found.plan.methods
    baselines = [method for method in methods if not method.startswith("fast")]
    return [
        _imbalance(found, "Dead units", "dead", "units are dead"),
        _imbalance(found, "Inactive ReLUs", "inactive", "ReLUs are off"),
        Claim(
            "Each improvement",
            "without any one of them the verified error is greater than with all (fast)",
            tuple(Part(method, _against_fast(found, method)) for method in _removals(found)),
        ),
        Claim(
            "Short warm-up of fast",
            "with all improvements the short warm-up's verified error is no greater than the long one's",
            (Part("fast", _short_against_long(found, "fast", says="less")),),
        ),
        Claim(
            "Short warm-up of the baselines",
            "without the improvements the short warm-up's verified error is greater than the long one's",
            tuple(Part(method, _short_against_long(found, method)) for method in baselines),
        ),
        Claim(
            "Short against long",
            "the baselines' verified error with the long warm-up is greater than that of fast with the short one",
            tuple(Part(method, _long_against_fast(found, method)) for method in baselines),
        ),
    ]


def _imbalance(found: Found, topic: str, state: str, what: str) -> Claim:
    """Vanilla IBP, and fast without BatchNorm or a regulariser, compared with fast."""
    methods = ["vanilla IBP", *(method for method in _removals(found) if "initialisation" not in method)]
    parts = []
    for method in methods:
        comparisons = {}
        for eps, warm_up in product(found.plan.radii, found.plan.warm_ups):
            cells = found.cell(method, warm_up, eps), found.cell("fast", warm_up, eps)
            first, second = (cell.shares(state) for cell in cells)
            comparisons[setting(eps, warm_up)] = Comparison(first, second, collapsed=_collapsed(cells))
        parts.append(Part(method, comparisons))
    statement = f"by vanilla IBP, and without BatchNorm or a regulariser, more {what} than by the whole method (fast)"
    return Claim(topic, statement, tuple(parts))


def _against_fast(found: Found, method: str) -> dict[str, Comparison]:
    return {
        setting(eps, warm_up): _errors(found.cell(method, warm_up, eps), found.cell("fast", warm_up, eps))
        for eps, warm_up in product(found.plan.radii, found.plan.warm_ups)
    }


def _short_against_long(found: Found, method: str, says: Direction = "greater") -> dict[str, Comparison]:
    cells = {eps: [found.cell(method, warm_up, eps) for warm_up in ("short", "long")] for eps in found.plan.radii}
    return {setting(eps): _errors(*pair, says) for eps, pair in cells.items()}


def _long_against_fast(found: Found, method: str) -> dict[str, Comparison]:
    return {
        setting(eps): _errors(found.cell(method, "long", eps), found.cell("fast", "short", eps))
        for eps in found.plan.radii
    }


def _removals(found: Found) -> list[str]:
    return [method for method in found.plan.methods if method.startswith("fast ")]


def _errors(first: Cell, second: Cell, says: Direction = "greater") -> Comparison:
    """The comparison of the verified errors."""
    values = (cell.errors("certified_accuracy") for cell in (first, second))
    return Comparison(*values, says, _collapsed((first, second)))


def _collapsed(cells: Sequence[Cell]) -> int:
    return sum(len(cell.collapsed) for cell in cells)
