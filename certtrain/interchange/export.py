"""Export of trained networks: weights with BatchNorm folded, and ONNX, each compared with the original.

The ONNX graph is written node by node from the layer graph, not by
torch.onnx.export. That function's operators for a network (a Flatten as one Reshape,
or as Shape, Gather, Concat and Reshape), its output, and the operator sets it can
write change from release to release. Its nodes also contain stack traces with
folder names. Verifiers support few, old and plain operators.
"""

import copy
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.forms import Operator
from certtrain.bounds.graph import LayerCall, LayerGraph
from certtrain.bounds.reading import read_layers
from certtrain.data import ImageSet, to_unit
from certtrain.errors import MissingExtra, SoundnessError, StorageError, UnsupportedLayer
from certtrain.formats import count_of
from certtrain.interchange.operators import operators_of
from certtrain.network.folding import fold_batch_norm
from certtrain.network.modelfile import Classifier, Metadata, read_model, versions, write_model
from certtrain.storage import write_atomic
from certtrain.verification.verify import check_fit

INPUT, OUTPUT = "pixels", "logits"
OPSET = 13  # the meaning of these operators has not changed since, and old tools support it
IR_VERSION = 7  # the file format of that time
TOLERANCE_FACTOR = (
    20.0  # times the measured rounding; for random networks the ratio reaches 7 on one image, 4 on twenty
)
MEASURED_EXAMPLES = 64  # enough to measure the rounding, since float64 is slow
COMPARISON_BATCH = 32  # float64 convolutions unfold the batch: 0.6 GB for the widest layer at 64×64 pixels

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Comparison:
    """How an export's logits differ from the original's on real images."""

    what: str
    """The export: "folded weights" or "ONNX"."""
    examples: int
    largest_difference: float
    """Over all examples and classes."""
    largest_logit: float
    """The original's largest logit in absolute value."""
    tolerance: float
    """The difference that rounding can explain."""
    same_classes: int
    """How many examples both assign to the same class."""

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def export(
    model: Classifier, images: ImageSet, *, weights: Path | None = None, onnx: Path | None = None
) -> list[Comparison]:
    """Write `model` to `weights` (a model file) and `onnx`, where given, and compare each with it on `images`.

    A file gets its name only after every check has passed; until then an
    earlier file of that name stays. Raises SoundnessError if a check fails,
    MissingExtra without the packages for ONNX, DataError if the images do not
    fit, UnsupportedLayer, or StorageError.
    """
    if weights is not None and weights == onnx:
        raise StorageError(f"the weights and the ONNX network cannot both be written to {weights}; name two files")
    for package in ("onnx", "onnxruntime") if onnx is not None else ():
        _extra(package)  # raise before the work starts
    reference, comparisons = _reference(model, images), []
    with ExitStack() as drafts:
        if weights is not None:
            folded = export_weights(model, drafts.enter_context(_draft(weights)))
            comparisons.append(_compare(reference, folded, images, "folded weights"))
        if onnx is not None:
            draft = drafts.enter_context(_draft(onnx))
            export_onnx(model, draft)
            comparisons.append(_compare(reference, onnx_runner(draft), images, "ONNX"))
    return comparisons


def export_weights(model: Classifier, path: Path) -> Classifier:
    """Write `model` with BatchNorm folded as a model file; returns the model in the file.

    Raises UnsupportedLayer, StorageError, or ModelFileError if a folded weight is too large for float32.
    """
    folded = fold_batch_norm(model)
    write_model(path, folded, folded.metadata)
    return read_model(path)


def export_onnx(model: Classifier, path: Path) -> None:
    """Write `model` with BatchNorm folded as one ONNX file.

    Input "pixels", float32 (batch, C, H, W) in [0, 1]; output "logits",
    float32 (batch, K); any batch size. The file's properties say where it
    comes from. Raises MissingExtra, UnsupportedLayer or StorageError.
    """
    checker = _extra("onnx.checker")
    folded = fold_batch_norm(model)
    proto = _onnx_model(read_layers(folded), folded.metadata)
    checker.check_model(proto, full_check=True)
    write_atomic(path, proto.SerializeToString())


def onnx_runner(path: Path) -> Network:
    """The network in that ONNX file, run by ONNX Runtime on the CPU: pixels (B, C, H, W) to logits (B, K).

    It uses as many threads as torch does. Raises MissingExtra.
    """
    runtime = _extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> Tensor:
        (logits,) = session.run([OUTPUT], {INPUT: x.numpy(force=True)})
        return torch.from_numpy(logits)

    return run


def compare(original: Classifier, candidate: Network, images: ImageSet, what: str) -> Comparison:
    """Run both on all `images`, on the CPU in float32, and check that their logits differ by no more than rounding.

    The rounding depends on the network: on its depth, on the lengths of its sums,
    and on cancellation in them. Bounds for every order of summation grow with each
    layer and would not detect a wrong weight, so the rounding is measured: it is the
    largest difference between the original in float32 and in float64, and at least
    the spacing of floats at the largest logit. The export has as many roundings, in
    another order, and one more for each weight. Its tolerance is twenty times the
    measured value.

    Raises SoundnessError if the difference is larger or a logit is not finite,
    and DataError if the images do not fit.
    """
    return _compare(_reference(original, images), candidate, images, what)


class _Reference(NamedTuple):
    """The original network's logits (N, K), and their measured rounding error."""

    logits: Tensor
    rounding: float


def _reference(original: Classifier, images: ImageSet) -> _Reference:
    check_fit(original, images)
    network = copy.deepcopy(original).cpu().eval()
    logits, few = _logits(network, images), images.take(MEASURED_EXAMPLES)
    _check_finite("the model itself gives", logits)
    measured = _distance(logits[:MEASURED_EXAMPLES], _logits(network.double(), few, torch.float64))
    return _Reference(logits, max(measured, torch.finfo(torch.float32).eps * float(logits.abs().max())))


def _compare(reference: _Reference, candidate: Network, images: ImageSet, what: str) -> Comparison:
    expected, found = reference.logits, _logits(candidate, images)
    if found.shape != expected.shape:
        raise SoundnessError(
            f"the exported {what} give logits of shape {tuple(found.shape)}, not {tuple(expected.shape)}"
        )
    _check_finite(f"the exported {what} give", found)
    difference, tolerance = _distance(found, expected), TOLERANCE_FACTOR * reference.rounding
    if not difference <= tolerance:
        raise SoundnessError(
            f"the logits of the exported {what} differ from the original's by up to {difference:.3g}, but rounding "
            f"explains no more than {tolerance:.3g}. The export is wrong and was not kept: please report it."
        )
    same = int((expected.argmax(1) == found.argmax(1)).sum())
    return Comparison(what, len(images), difference, float(expected.abs().max()), tolerance, same)


def _check_finite(title: str, logits: Tensor) -> None:
    if bad := (~logits.isfinite().all(dim=1)).nonzero().flatten().tolist():
        raise SoundnessError(
            f"{title} NaN or infinity for {count_of(len(bad), 'example')}, the first being example {bad[0]}"
        )


@torch.no_grad()
def _logits(network: Network, images: ImageSet, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, K), computed batch by batch."""
    chunks = (images.images[first : first + COMPARISON_BATCH] for first in range(0, len(images), COMPARISON_BATCH))
    return torch.cat([network(to_unit(chunk.cpu()).to(dtype)) for chunk in chunks])


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())


@contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A file name on the same disk as `path`. The file is moved to `path` if no error occurs."""
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    with folder as name:
        draft = Path(name) / path.name
        yield draft
        with _storage_errors(path):
            draft.replace(path)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}. Nothing there was changed.") from error


def _extra(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f'ONNX export needs more packages ({error}): pip install "certtrain[onnx]"') from error


def _onnx_model(graph: LayerGraph, metadata: Metadata) -> Any:
    """The ModelProto of a network of these layers."""
    helper = _extra("onnx.helper")
    nodes, constants = _translate(graph, metadata.input_shape)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "certtrain",
            inputs=[helper.make_tensor_value_info(INPUT, 1, ["batch", *metadata.input_shape])],
            outputs=[helper.make_tensor_value_info(OUTPUT, 1, ["batch", len(metadata.class_names)])],
            initializer=constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="certtrain",
        producer_version=versions()["certtrain"],
    )
    helper.set_model_props(model, _properties(metadata))
    return model


def _properties(metadata: Metadata) -> dict[str, str]:
    return {
        "certtrain": versions()["certtrain"],
        "dataset": metadata.dataset,
        "eps": repr(metadata.eps),
        "class_names": json.dumps(metadata.class_names, ensure_ascii=False),
        "seed": str(metadata.seed),
        "note": metadata.note,
    }


def _translate(graph: LayerGraph, input_shape: tuple[int, int, int]) -> tuple[list[Any], list[Any]]:
    """The nodes in order, and their constants, all named after their layers."""
    shapes = _shapes(graph, input_shape)
    values = [INPUT, *(call.name for call in graph.calls[:-1]), OUTPUT]
    nodes: list[Any] = []
    constants: list[Any] = []
    for call, output in zip(graph.calls, values[1:], strict=True):
        results = [[values[i] for i in call.inputs]]  # the layer's inputs, then the result of each of its operators
        for operator, result in _steps(call, shapes[call.inputs[0]], output):
            takes = results[-1] if operator.takes is None else [results[number][0] for number in operator.takes]
            nodes.append(_node(operator, takes + _names(call.name, operator), result))
            constants.extend(_constants(call.name, operator))
            results.append([result])
    return nodes, constants


@torch.no_grad()
def _shapes(graph: LayerGraph, input_shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """The shape of each value for one image, without the batch's dimension."""
    return [input_shape, *(tuple(result.shape[1:]) for result in graph.results(torch.zeros(1, *input_shape)))]


def _steps(call: LayerCall, given: tuple[int, ...], output: str) -> Iterator[tuple[Operator, str]]:
    """The operators of a layer, each with the name of its result; that of the last is `output`."""
    try:
        operators = operators_of(call.layer, given)
    except UnsupportedLayer as error:
        raise UnsupportedLayer(f"{call.name!r} is not exported: {error}") from error
    between = [f"{call.name}.{operator.type.lower()}" for operator in operators[:-1]]
    return zip(operators, [*between, output], strict=True)


def _names(name: str, operator: Operator) -> list[str]:
    """The names of the constants; an omitted one before another has an empty name."""
    names = [f"{name}.{key}" if tensor is not None else "" for key, tensor in operator.constants.items()]
    while names and not names[-1]:
        del names[-1]
    return names


def _constants(name: str, operator: Operator) -> list[Any]:
    from_array = _extra("onnx.numpy_helper").from_array
    given = ((key, tensor) for key, tensor in operator.constants.items() if tensor is not None)
    return [from_array(tensor.numpy(force=True), f"{name}.{key}") for key, tensor in given]


def _node(operator: Operator, inputs: list[str], output: str) -> Any:
    make_node = _extra("onnx.helper").make_node
    return make_node(operator.type, inputs, [output], name=f"{output}/{operator.type}", **operator.attributes)
