"""Loading of an ONNX file, with tensors from other files in its folder, as a ModelProto that passes ONNX's checks."""

from collections.abc import Iterator
from itertools import chain
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from certtrain.errors import ModelFileError
from certtrain.interchange.onnxvalues import optional_module
from certtrain.interchange.packed import is_packed, read_whole
from certtrain.spec.messages import readable
from certtrain.spec.shapes import MOST_VALUES

MOST_FILE_BYTES = 2**31 - 1  # the limit of protobuf
MOST_UNPACKED = 2**30
EXTERNAL = 1  # TensorProto.EXTERNAL


def load_proto(path: Path) -> Any:
    """The ModelProto in that file, with all of its tensors.

    Raises MissingExtra, and ModelFileError if the file is missing, damaged or not
    ONNX, or if a tensor cannot be read from a file in the same folder.
    """
    onnx = optional_module("onnx")
    data = _bytes(path)
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's errors have no other base class
        raise _damaged(path, error) from error
    outside = _attach(proto.graph, path)
    try:
        optional_module("onnx.checker").check_model(proto if outside else data)
    except Exception as error:  # onnx's errors have no common base class
        raise _damaged(path, error) from error
    return proto


def _bytes(path: Path) -> bytes:
    try:
        return read_whole(path, MOST_UNPACKED if is_packed(path) else MOST_FILE_BYTES)
    except OSError as error:
        raise ModelFileError(f"the network {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelFileError(f"the network {path} is not read: {error}") from error


def _damaged(path: Path, error: Exception) -> ModelFileError:
    first = str(error).strip().partition("\n")[0]
    return ModelFileError(f"{path} is not a complete ONNX file: {readable(first)}")


# --- tensors in other files ------------------------------------------------------------------------------


def _attach(graph: Any, path: Path) -> int:
    """Put the tensors of other files into the graph; returns how many there are."""
    tensors = [tensor for tensor in _tensors(graph) if tensor.data_location == EXTERNAL]
    left = MOST_FILE_BYTES
    for tensor in tensors:
        try:
            data = _external(tensor, path.parent, left)
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ModelFileError(
                f"{path} keeps the tensor {readable(tensor.name)!r} in another file: {readable(str(what))}"
            ) from error
        left -= len(data)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = data
    return len(tensors)


def _tensors(graph: Any) -> Iterator[Any]:
    attributes = chain.from_iterable(node.attribute for node in graph.node)
    yield from graph.initializer
    yield from (attribute.t for attribute in attributes if attribute.HasField("t"))


def _external(tensor: Any, folder: Path, most: int) -> bytes:
    """A tensor's bytes. Raises OSError, or ValueError for a file or a part of it that must not be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if any(isinstance(text, bytes) for text in entries.values()):  # protobuf gives bytes for text that is not UTF-8
        raise ValueError(f"the file says {entries}, which is not text")
    size, offset = _size(tensor), int(entries.get("offset") or 0)
    if int(entries.get("length") or size) != size or offset < 0:
        raise ValueError(f"the file says {entries}, but a tensor of shape {tuple(tensor.dims)} has {size} bytes")
    if size > most:
        raise ValueError(f"its tensors have more than {MOST_FILE_BYTES >> 20:,} MiB, the limit")
    with _inside(folder, entries.get("location", "")).open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    if len(data) < size:
        raise ValueError(
            f"{entries['location']!r} ends too early: {size:,} bytes are expected from byte {offset:,} on. "
            "Copy both files completely"
        )
    return data


def _size(tensor: Any) -> int:
    """How many bytes a tensor has. Raises ValueError."""
    count = prod(tensor.dims)
    if any(side < 0 for side in tensor.dims) or count > MOST_VALUES:
        raise ValueError(f"its shape is {tuple(tensor.dims)}; {MOST_VALUES:,} values are the limit")
    try:
        return int(count * optional_module("onnx.helper").tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError as error:
        raise ValueError(f"its type {tensor.data_type} is not known") from error


def _inside(folder: Path, location: str) -> Path:
    """The regular file of that name inside `folder`. Raises ValueError if the name leads out, or there is none."""
    names = PurePosixPath(location), PureWindowsPath(location)
    if not location or any(name.is_absolute() or name.drive or ".." in name.parts for name in names):
        raise ValueError(f"{location!r} does not lie in the network's own folder, and only files there are read")
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{location!r} is a link that leads out of the network's own folder")
    if not path.is_file():
        raise ValueError(f"there is no file {location!r} beside it. Copy both files together")
    return path
