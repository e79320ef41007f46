"""The results of `claims.py` by cell: one method, warm-up and radius, over the seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from claims_plan import MNIST, Plan, Run, setting

Record = dict[str, Any]
Epoch = dict[str, Any]
COLLAPSED = "†"
NEAR = 1.25  # times the share of the largest class: the natural accuracy that a constant guess can reach
SAME = 0.005  # if natural minus certified accuracy is smaller, the guess hardly depends on the image
STATES = {
    "active": "ReLUs with a lower bound above zero",
    "unstable": "ReLUs whose bounds have different signs",
    "inactive": "ReLUs with an upper bound of at most zero",
    "dead": "units that are inactive for every example; a part of the inactive",
}


@dataclass(frozen=True)
class Cell:
    """One method, warm-up and radius: the results of all seeds, including failed runs."""

    records: tuple[Record, ...]
    largest_class: float

    @property
    def whole(self) -> tuple[Record, ...]:
        """The finished runs."""
        return tuple(record for record in self.records if record["results"])

    @property
    def collapsed(self) -> tuple[Record, ...]:
        """The finished runs that guess one class whatever the image."""
        return tuple(record for record in self.whole if collapsed(record, self.largest_class))

    @property
    def failed(self) -> int:
        """The number of runs that ended with NaN or infinity."""
        return len(self.records) - len(self.whole)

    def missing(self, seeds: int) -> str:
        """In words: whether there are fewer than so many seeds, and how many runs failed."""
        words = [f"{len(self.records)} of {seeds} seeds"] * (len(self.records) < seeds)
        return ", ".join(words + [f"{self.failed} failed"] * bool(self.failed))

    def remark(self, seeds: int) -> str:
        """In words: what is missing, and how many runs have collapsed."""
        words = [f"{COLLAPSED} {len(self.collapsed)} collapsed"] * bool(self.collapsed)
        return ", ".join(filter(None, [self.missing(seeds), *words]))

    def errors(self, accuracy: str) -> list[float]:
        """The error of each seed in per cent."""
        return [100 * (1 - record["results"][accuracy]) for record in self.whole]

    def shares(self, state: str) -> list[float]:
        """The share of ReLUs in a state at the end of each seed's training, in per cent, as a mean over the layers."""
        return [100 * layer_mean(state)(record["epochs"][-1]) for record in self.whole]

    def by_epoch(self, value: Callable[[Epoch], float]) -> list[tuple[float, ...]]:
        """For each epoch, its value in each seed."""
        return list(zip(*([value(epoch) for epoch in record["epochs"]] for record in self.whole), strict=True))


@dataclass(frozen=True)
class Found:
    """The results so far, by run."""

    records: dict[Run, Record]
    plan: Plan = MNIST

    def cell(self, method: str, warm_up: str, eps: float) -> Cell:
        """The results of one cell of the tables, by seed."""
        runs = sorted((run for run in self.records if run == Run(method, warm_up, eps, run.seed)), key=lambda r: r.seed)
        return Cell(tuple(self.records[run] for run in runs), self.plan.largest_class)

    def methods(self, eps: float) -> list[str]:
        """The methods with results at this radius, in the plan's order."""
        return [
            name for name in self.plan.methods if any(run.method == name and run.eps == eps for run in self.records)
        ]

    def most_seeds(self, eps: float) -> int:
        """The largest number of seeds in a cell of this radius."""
        cells = (self.cell(method, warm_up, eps) for method, warm_up in product(self.plan.methods, self.plan.warm_ups))
        return max(len(cell.records) for cell in cells)

    @property
    def summary(self) -> str:
        """A sentence with the number of runs, and of failed runs."""
        failed = sum(not record["results"] for record in self.records.values())
        return f"{len(self.records)} of {self.plan.total} runs are done" + (
            f"; {failed} of them failed" if failed else ""
        )

    @property
    def collapse(self) -> str:
        """A sentence with the runs that guess one class whatever the image; empty if there are none."""
        guess = self.plan.largest_class
        runs = [run for run, record in self.records.items() if record["results"] and collapsed(record, guess)]
        if not runs:
            return ""
        names = [
            f"{run.method}, {setting(run.eps, run.warm_up)}, seed {run.seed} "
            f"({100 * self.records[run]['results']['natural_accuracy']:.2f} %)"
            for run in sorted(runs, key=lambda run: (run.eps, run.method, run.warm_up, run.seed))
        ]
        return (
            f"{len(runs)} of {len(self.records)} runs {'has' if len(runs) == 1 else 'have'} collapsed to a constant "
            "guess, with the share of one class as natural and certified accuracy. They are part of the means like all "
            f"others, and marked with a dagger ({COLLAPSED}): {'; '.join(names)}."
        )


def collapsed(record: Record, largest_class: float) -> bool:
    """Whether a run's network guesses one class whatever the image; `largest_class` is the largest class's share."""
    natural, certified = (record["results"][name] for name in ("natural_accuracy", "certified_accuracy"))
    return bool(natural <= NEAR * largest_class and natural - certified <= SAME)


def layer_mean(state: str) -> Callable[[Epoch], float]:
    """The mean of a share over the layers of an epoch."""
    return lambda epoch: fmean(layer[state] for layer in epoch["layers"])


def listing(words: Sequence[str]) -> str:
    """The words as a list within a sentence."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def short(method: str) -> str:
    """A short name for a picture: "fast − balance", "CROWN-IBP + BN"."""
    words = {" without ": " − ", " with ": " + ", "IBP initialisation": "IBP init", "BatchNorm": "BN"}
    for long, brief in words.items():
        method = method.replace(long, brief)
    return method
