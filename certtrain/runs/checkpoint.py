"""A run's folder, and its checkpoints, which contain the whole state of the run.

preset.json             the preset with all its fields
metrics.jsonl           one line for each epoch
checkpoints/*.safetensors   the last two
epochs/*.safetensors    the network each train.keep_every epochs, as a model file, if this is set
model.safetensors       the trained network, written when the run is finished
report.json             its results
report.html             the report for people
README.md               the model card
pictures/*.png          sheets of test images, with their verdicts and under attack
data.json               the folder with the run's images, if one was given
tracking.json           the run's ids in MLflow and Weights & Biases, and the last epoch that they have
.lock                   exists while a process trains the run
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from certtrain.errors import ModelFileError, RunError
from certtrain.locking import locked
from certtrain.network.modelfile import Classifier, Metadata, fill_network
from certtrain.runs.agreement import check_unchanged
from certtrain.runs.runfiles import DATA, TRACKING
from certtrain.spec.preset import Preset, load_preset
from certtrain.storage import (
    append_line,
    check_new_run,
    check_unfinished_run,
    make_folder,
    truncate,
    write_atomic,
    write_json,
)

Networks = Mapping[str, nn.Module]  # by the names that their tensors have in a checkpoint
PRESET, LOCK = "preset.json", ".lock"
# The errors that reading a damaged checkpoint may raise.
UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError)
CHECKPOINTS_KEPT = 2  # so that there is an older one if the newest cannot be read


@contextmanager
def locked_run(path: Path, *, new: bool) -> Iterator[None]:
    """A context in which no other process writes into the run in the folder `path`; a `new` run's folder is made.

    Raises RunError if another process trains the run now, or if the folder is not that of a new or an unfinished run,
    and StorageError.
    """
    if new:
        check_new_run(path)
        make_folder(path)
    else:
        check_unfinished_run(path)
    with locked(path / LOCK, taken_run(path)):
        yield


def taken_run(path: Path) -> RunError:
    """The error for a run that another process trains."""
    return RunError(
        f"another process is training the run in {path}; wait until it ends, or stop it, then use --resume {path}"
    )


@dataclass
class RunProgress:
    """How far a run is.

    step: number of steps done. metrics_bytes: length of the metrics. seconds: time of training so far. data: the
    fingerprint of the images. sums: the sums of the measures in this epoch. preset: all fields of the preset that the
    run began with; none in checkpoints of an earlier version. kept: the channels that steps do not leave out, by the
    names of their ReLU layers; empty if all take part.
    """

    step: int = 0
    metrics_bytes: int = 0
    seconds: float = 0.0
    data: str = ""
    sums: dict[str, float] = field(default_factory=dict)
    preset: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)


class RunFolder:
    """The files of one run. Every method may raise StorageError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.model = path / "model.safetensors"
        self.report = path / "report.json"
        self.page = path / "report.html"
        self.last_good: Path | None = None
        """The checkpoint that was last written or restored by this object."""

    def create(self, preset: Preset) -> None:
        """Start a run with `preset` in this folder. Raises RunError if the folder is not empty."""
        check_new_run(self.path)
        write_json(self.path / PRESET, preset.model_dump(mode="json"))

    def resumable_preset(self) -> Preset:
        """The preset of the run, which is to be resumed.

        Raises RunError if there is no run, if it is finished, or if its preset was changed.
        """
        check_unfinished_run(self.path)
        file = self.path / PRESET
        preset = load_preset(str(file))
        if began := self._began_with():
            check_unchanged(began, preset, file)
        return preset

    def discard(self) -> None:
        """Delete the files of a run that failed before its first step, and the folder if it is then empty."""
        for name in (PRESET, TRACKING, DATA):
            (self.path / name).unlink(missing_ok=True)
        for name in ("checkpoints", "tensorboard", "wandb"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        with suppress(OSError):
            (self.path / LOCK).unlink()
            self.path.rmdir()

    def _began_with(self) -> dict[str, Any]:
        """The fields of the preset in the newest checkpoint that can be read; none without such a checkpoint."""
        for path in reversed(self.checkpoints()):
            with suppress(*UNREADABLE), safe_open(path, framework="pt") as file:
                return _progress(file).preset
        return {}

    def checkpoints(self) -> list[Path]:
        """The checkpoints, the oldest first."""
        return sorted((self.path / "checkpoints").glob("step-*.safetensors"))

    def save_checkpoint(self, networks: Networks, optimizer: torch.optim.Optimizer, progress: RunProgress) -> Path:
        """Write a checkpoint, then delete all but the two newest."""
        path = self.path / "checkpoints" / f"step-{progress.step:09d}.safetensors"
        progress.metrics_bytes = self.metrics.stat().st_size if self.metrics.exists() else 0
        tensors = state_tensors(networks, optimizer)
        write_atomic(path, save(tensors, {"progress": json.dumps(asdict(progress))}))
        self.last_good = path
        for old in self.checkpoints()[:-CHECKPOINTS_KEPT]:
            old.unlink(missing_ok=True)
        return path

    def restore(self, networks: Networks, optimizer: torch.optim.Optimizer) -> tuple[RunProgress, list[Path]]:
        """Load the newest checkpoint that can be read, and remove later lines from the metrics.

        Returns the run's progress, and the newer checkpoints, which are damaged.
        Without any checkpoint the run starts at step 0. Raises RunError if there are
        checkpoints and none can be read.
        """
        damaged: list[Path] = []
        for path in reversed(self.checkpoints()):
            try:
                progress = _load(path, networks, optimizer)
            except UNREADABLE:
                damaged.append(path)
                continue
            truncate(self.metrics, progress.metrics_bytes)
            self.last_good = path
            return progress, damaged
        if damaged:
            raise RunError(f"no checkpoint in {self.path / 'checkpoints'} can be read; start a new run")
        truncate(self.metrics, 0)
        return RunProgress(), damaged

    def epoch(self, number: int) -> Path:
        """The model file of the network after `number` epochs."""
        return self.path / "epochs" / f"epoch-{number:04d}.safetensors"

    def log(self, record: dict[str, Any]) -> None:
        """Add one line to the metrics."""
        append_line(self.metrics, json.dumps(record, allow_nan=False))


def load_checkpoint(path: Path, metadata: Metadata) -> Classifier:
    """The network in a checkpoint, in evaluation mode; `metadata` describes it.

    If the run has an average of the weights, that is the network. Raises ModelFileError if the file is no
    checkpoint, is damaged, or contains another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            prefix = "average/" if any(name.startswith("average/") for name in names) else "network/"
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
        return Classifier(fill_network(metadata, tensors), metadata).eval()
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"checkpoint {path} cannot be read: {error}") from error
    except ValueError as error:
        raise ModelFileError(f"checkpoint {path} does not contain the network of its run: {error}") from error


def state_tensors(networks: Networks, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a run's state, by name, on the CPU."""
    tensors = {f"{key}/{name}": t for key, network in networks.items() for name, t in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load(path: Path, networks: Networks, optimizer: torch.optim.Optimizer) -> RunProgress:
    with safe_open(path, framework="pt") as file:
        progress = _progress(file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    load_state(tensors, networks, optimizer)
    return progress


def _progress(file: Any) -> RunProgress:
    """The progress in an open checkpoint. Raises one of the errors `UNREADABLE` if there is none."""
    return RunProgress(**json.loads(file.metadata()["progress"]))


def load_state(tensors: dict[str, Tensor], networks: Networks, optimizer: torch.optim.Optimizer) -> None:
    """Load the tensors of `state_tensors`. Raises KeyError, ValueError or RuntimeError if they do not fit."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = _with_strides_of(parameters[int(index)], tensor)
    for key, network in networks.items():
        network.load_state_dict({n.removeprefix(f"{key}/"): t for n, t in tensors.items() if n.startswith(f"{key}/")})
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _with_strides_of(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A moment of the optimiser with the strides of its parameter, as fused optimisers expect."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
