"""A model as one safetensors file, with metadata that describe it."""

from collections import OrderedDict
from importlib import metadata as packages
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from certtrain.errors import DataError, ModelFileError, NetworkError
from certtrain.network.models import InputSpec, build_model
from certtrain.spec.architecture import Architecture
from certtrain.spec.preset import explain
from certtrain.storage import check_model_file, write_atomic

KEY = "certtrain"  # the entry of the file's header with the metadata
LONGEST_HEADER = 2**22  # bytes, many times that of a network with a thousand layers; a hostile file may have more


Side = Annotated[int, Field(ge=1, le=4096)]  # a limit for the header of a hostile file


class Metadata(BaseModel):
    """The metadata of a model file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    architecture: Architecture
    input_shape: tuple[Side, Side, Side]
    """(C, H, W)."""
    class_names: tuple[str, ...] = Field(min_length=2)
    dataset: str = Field(max_length=100)
    eps: float = Field(gt=0, le=1)
    """The radius for which the network was trained."""
    seed: int
    versions: dict[str, str]
    preset: dict[str, Any]
    """The preset of its run."""
    note: str = ""
    """The origin of the weights, if they are not simply those of a finished training."""
    results: dict[str, Any] | None = None
    """The results of the verification at the end of the training; None before."""

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What certificates of this network assume beside those of its layers."""
        return ()

    def check_arithmetic(self, name: str) -> None:
        """Raise MethodError if no certificate of this network can be in that arithmetic; any can by itself."""


class Classifier(nn.Sequential):
    """A network with the metadata of its file. It maps pixels (B, C, H, W) in [0, 1] to logits (B, K)."""

    def __init__(self, network: nn.Sequential, metadata: Metadata) -> None:
        super().__init__(OrderedDict(network.named_children()))
        self.metadata = metadata


def write_model(path: Path, network: nn.Sequential, metadata: Metadata) -> None:
    """Write `network` with `metadata` to `path`, completely or not at all. Raises StorageError."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomic(path, save(tensors, {KEY: metadata.model_dump_json()}))


def read_model(path: str | Path) -> Classifier:
    """The network in that model file, in evaluation mode, with its `metadata`.

    Raises ModelFileError if the file is missing or damaged, was not written by
    certtrain, or has weights that do not fit its metadata or are not finite.
    """
    path = Path(path)
    check_model_file(path)
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a complete safetensors file: {error}{_hint(path)}") from error
    metadata = _parse(path, header)
    try:
        return Classifier(fill_network(metadata, tensors), metadata).eval()
    except ValueError as error:
        raise ModelFileError(f"{path} does not contain the network that its header describes: {error}") from error


def _hint(path: Path) -> str:
    """What to do with a file of `torch.save`."""
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
    except OSError:  # the error before says what is wrong
        return ""
    kind = ". It is a zip archive, as torch.save writes: certtrain verify FILE --module my.py:MyNet reads its weights"
    return kind if is_archive else ""


def fill_network(metadata: Metadata, tensors: dict[str, Tensor]) -> nn.Sequential:
    """The network that `metadata` describes, with `tensors` by name; weights may be kept in bfloat16.

    It is first built without memory, so that the header of a huge network costs nothing.
    Raises ValueError if the tensors do not fit.
    """
    channels = metadata.input_shape[0]
    spec = InputSpec(metadata.input_shape, len(metadata.class_names), (0.0,) * channels, (1.0,) * channels)
    try:
        with torch.device("meta"):
            network = build_model(metadata.architecture, spec)
    except (DataError, NetworkError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    tensors = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in tensors.items()}
    _check_tensors(network, tensors)
    network.load_state_dict(tensors, assign=True)
    return network


def versions() -> dict[str, str]:
    """The versions of the packages on which results depend."""
    from certtrain.version import __version__

    return {"certtrain": __version__, **{name: packages.version(name) for name in ("torch", "torchvision")}}


def check_header(path: Path) -> None:
    """Raise ModelFileError if reading the header would take minutes. The file begins with its length, in 8 bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if LONGEST_HEADER < length < path.stat().st_size:
        raise ModelFileError(f"{path} has a header of {length:,} bytes; certtrain reads at most {LONGEST_HEADER:,}")


def _parse(path: Path, header: dict[str, str]) -> Metadata:
    if "progress" in header:
        raise ModelFileError(
            f"{path} is a checkpoint, which does not describe its network; `certtrain stats` reads it in the folder "
            "of its run, which has a preset.json"
        )
    if KEY not in header:
        raise ModelFileError(f"{path} was not written by certtrain: its header does not describe a network")
    try:
        return Metadata.model_validate_json(header[KEY])
    except ValidationError as error:
        raise ModelFileError(f"{path} has a header that certtrain cannot read:\n{explain(error)}") from error


def _check_tensors(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    wanted = network.state_dict()
    if missing := sorted(wanted.keys() ^ tensors.keys()):
        raise ValueError(f"its tensors differ in {', '.join(missing[:5])}")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (wanted[name].shape, wanted[name].dtype):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity")
        if name.endswith(("running_var", ".std")) and bool((tensor < 0).any()):
            raise ValueError(f"{name} is negative")
        if name.endswith(".std") and not bool((tensor > 0).all()):
            raise ValueError(f"{name} holds a zero")
