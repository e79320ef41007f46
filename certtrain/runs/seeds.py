"""One preset trained with several seeds: a folder with a run for each seed, and a record of both; without torch.

seeds.json      the preset and the seeds
seed-0, …       the run of each seed
report.json     the results of all, with mean and standard deviation
report.html     the same for people
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certtrain.errors import RunError
from certtrain.runs.agreement import changed_fields
from certtrain.runs.history import REPORT
from certtrain.spec.preset import Preset, load_preset
from certtrain.storage import write_json

SEEDS, PAGE = "seeds.json", "report.html"


@dataclass(frozen=True)
class SeedRuns:
    """The folder of the runs, their preset, whose own seed means nothing here, and the seeds in the order of training.

    Raises RunError if a seed is there twice, or none is.
    """

    path: Path
    preset: Preset
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise RunError(f"seeds must be different ones, at least one, not {list(self.seeds)}")

    def folder(self, seed: int) -> Path:
        """The folder of the run with this seed."""
        return self.path / f"seed-{seed}"

    def preset_of(self, seed: int) -> Preset:
        """The preset of the run with this seed."""
        return self.preset.model_copy(update={"seed": seed})

    @property
    def finished(self) -> list[int]:
        """The seeds whose runs are finished."""
        return [seed for seed in self.seeds if (self.folder(seed) / REPORT).is_file()]

    def write(self) -> None:
        """Write the record. Raises StorageError."""
        write_json(self.path / SEEDS, {"preset": self.preset.model_dump(mode="json"), "seeds": list(self.seeds)})


def is_of_seeds(path: Path) -> bool:
    """Whether the folder is one of several seeds."""
    return (path / SEEDS).is_file()


def run_folders(path: Path) -> list[Path]:
    """The folders of the runs that have begun in a folder of several seeds; for another folder, itself."""
    if not is_of_seeds(path):
        return [path]
    runs = read_seeds(path)
    return [runs.folder(seed) for seed in runs.seeds if (runs.folder(seed) / "preset.json").is_file()]


def read_seeds(path: Path) -> SeedRuns:
    """What the record in the folder says. Raises RunError or PresetError."""
    try:
        record: dict[str, Any] = json.loads((path / SEEDS).read_text(encoding="utf-8"))
        seeds = tuple(int(seed) for seed in record["seeds"])
        preset = dict(record["preset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path / SEEDS} cannot be read: {error}") from error
    return SeedRuns(path, load_preset(preset), seeds)


def new_or_more_seeds(path: Path, preset: Preset, seeds: Sequence[int]) -> SeedRuns:
    """The runs of `seeds` in a new folder, or in one of this preset, whose other seeds stay.

    Raises RunError if the folder holds something else.
    """
    if not is_of_seeds(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} exists already and holds no runs of several seeds; choose another --out")
        return SeedRuns(path, preset, tuple(seeds))
    known = read_seeds(path)
    if changed := changed_fields(known.preset_of(0), preset.model_copy(update={"seed": 0})):
        raise RunError(f"{path} holds runs with other settings: {changed}; choose another --out")
    return SeedRuns(path, known.preset, tuple(dict.fromkeys([*known.seeds, *seeds])))
