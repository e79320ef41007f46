"""Several runs side by side: their results, and the settings in which they differ; without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from certtrain.runs.agreement import flat_fields
from certtrain.runs.history import Results, Run, read_run
from certtrain.runs.runfiles import check_run, short_names
from certtrain.runs.seeds import run_folders
from certtrain.spec.epsilon import format_eps

NO_SETTINGS = ("description",)  # fields that decide nothing
ACCURACY_LABELS = {"natural_accuracy": "natural", "attacked_accuracy": "attacked", "certified_accuracy": "certified"}


@dataclass(frozen=True)
class Setting:
    """A field of a preset, by its dotted path, and its value in each run; None where a run has no such field."""

    field: str
    values: tuple[Any, ...]

    def to_dict(self) -> dict[str, Any]:
        """Both, for JSON."""
        return {"field": self.field, "values": list(self.values)}


@dataclass(frozen=True)
class SeedSpread:
    """A figure over several seeds: mean, standard deviation of a sample (with n − 1), smallest and largest value."""

    figure: str
    mean: float
    deviation: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class RunComparison:
    """Runs with their folders, and a short name for each."""

    folders: tuple[Path, ...]
    names: tuple[str, ...]
    runs: tuple[Run, ...]

    def settings(self) -> list[Setting]:
        """The fields in which the runs' presets differ."""
        return self._settings(self.runs)

    @staticmethod
    def _settings(runs: Sequence[Run]) -> list[Setting]:
        presets = [dict(flat_fields(run.preset.model_dump(mode="json"))) for run in runs]
        fields = dict.fromkeys(name for preset in presets for name in preset if name not in NO_SETTINGS)
        found = [Setting(field, tuple(preset.get(field) for preset in presets)) for field in fields]
        return [setting for setting in found if any(value != setting.values[0] for value in setting.values)]

    def notes(self) -> Iterator[str]:
        """Sentences about results that do not compare."""
        found = [run.report.results for run in self.runs if run.report is not None]
        different = {what: dict.fromkeys(values) for what, values in _conditions(found).items()}
        texts = [f"{what} ({', '.join(values)})" for what, values in different.items() if len(values) > 1]
        if texts:
            yield f"the results are of different {' and different '.join(texts)}, so they compare only with care"

    def spread(self) -> list[SeedSpread]:
        """Each accuracy over the finished runs, if these are several that differ in their seeds and in nothing else."""
        finished = [run for run in self.runs if run.report is not None]
        seeds = {run.preset.seed for run in finished}
        differing = {setting.field for setting in self._settings(finished)}
        if len(finished) < 2 or len(seeds) < len(finished) or differing != {"seed"} or [*self.notes()]:
            return []
        results = [run.report.results.model_dump() for run in finished if run.report is not None]
        return [_spread(label, [result[name] for result in results]) for name, label in ACCURACY_LABELS.items()]

    def to_dict(self) -> dict[str, Any]:
        """Everything that is compared, for JSON."""
        runs = [_numbers(*each) for each in zip(self.folders, self.names, self.runs, strict=True)]
        spread = [asdict(each) for each in self.spread()]
        return {"runs": runs, "settings": [setting.to_dict() for setting in self.settings()], "spread": spread}


def read_comparison(folders: Sequence[Path]) -> RunComparison:
    """The runs in these folders, which may be of several seeds, finished or not. Raises RunError or PresetError."""
    folders = [run for folder in folders for run in run_folders(folder)]
    for folder in folders:
        check_run(folder)
    return RunComparison(tuple(folders), tuple(short_names(folders)), tuple(map(read_run, folders)))


def _spread(figure: str, values: Sequence[float]) -> SeedSpread:
    return SeedSpread(figure, mean(values), stdev(values), min(values), max(values))


def progress_of(run: Run) -> str:
    """The number of epochs of a finished run; for another how many of them are done."""
    done, total = len(run.epochs), run.preset.train.epochs
    return str(total) if run.report is not None else f"{done} of {total}"


def _conditions(results: Sequence[Results]) -> dict[str, list[str]]:
    """What accuracies depend on beside the network, for each of the results."""
    return {
        "data sets": [each.dataset for each in results],
        "splits": [each.split for each in results],
        "numbers of examples": [f"{each.examples:,}" for each in results],
        "ε": [format_eps(each.eps) for each in results],
        "attacks": [" ".join(f"{name} {value}" for name, value in each.attack.items()) for each in results],
        "methods": [each.method for each in results],
    }


def _numbers(folder: Path, name: str, run: Run) -> dict[str, Any]:
    report, last = run.report, run.epochs[-1] if run.epochs else None
    found = {"run": str(folder), "name": name, "preset": run.preset.name, "seed": run.preset.seed}
    found |= {"finished": report is not None, "epochs": len(run.epochs), "epochs_of_the_run": run.preset.train.epochs}
    found["results"] = report and report.results.model_dump(mode="json")
    found["training"] = report and report.training.model_dump(mode="json")
    return found | {"last_epoch": last and {"epoch": last.epoch, **last.numbers}}
