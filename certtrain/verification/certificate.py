"""Certificates: what is proved for each example, by which method, under which assumptions."""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from certtrain.bounds.activations import statements_of
from certtrain.bounds.box import PIXEL_RANGE, input_box
from certtrain.bounds.checks import (
    check_dtype,
    check_evaluation_mode,
    check_input,
    check_labels,
    check_tensor,
    shape_errors_as_data_errors,
)
from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.guard import check_centres, check_margins
from certtrain.bounds.inference import outside_inference_mode, plain_model, plain_tensor
from certtrain.bounds.methods import method_named, up_to
from certtrain.bounds.modules import check_modules
from certtrain.bounds.rounding import Rounding, arithmetic_named
from certtrain.bounds.settings import VERDICT_SETTINGS, Settings
from certtrain.bounds.supported import checked_copy
from certtrain.deprecation import warn_renamed
from certtrain.errors import UnsupportedLayer
from certtrain.formats import count_of
from certtrain.network.modelfile import Classifier
from certtrain.runtime.deadline import NEVER, Deadline
from certtrain.runtime.precision import arithmetic as run_in
from certtrain.spec.epsilon import format_eps, parse_eps
from certtrain.spec.preset import Precision
from certtrain.spec.shapes import Shape
from certtrain.verdicts import VERDICTS, Verdict, certified_examples, correct_examples

DEFAULT_ARITHMETIC = "float32"
FASTEST = "ibp"
PIXEL_INPUTS = "inputs are pixels in [0, 1]: each box is cut to that range"
# For intervals, which cost little more than inference, the guard checks this many of a batch; for other methods all.
MOST_GUARDED = 4
OBSERVED_IN_FLOAT64 = 1e-9  # the float64 rounding error that an observed value may have, as a share; for "real"

AS_GIVEN = "the network computes layer by layer, as given: folding BatchNorm into other layers changes its rounding"


@dataclass(frozen=True, repr=False)
class Certificates:
    """The certificates of one batch.

    verdicts: for each example, "certified" (correct, and every margin's lower
        bound finite and above zero), "misclassified", or "open".
    margin: (B,) float64, the smallest lower bound of logit[y] − logit[j].
    method: the bound method; assumptions: what the certificates assume.
    arithmetic: what the network computes in; every certificate is for the logits
        in this arithmetic.
    """

    verdicts: tuple[Verdict, ...]
    margin: Tensor
    eps: float
    method: str
    assumptions: tuple[str, ...]
    arithmetic: str

    def __repr__(self) -> str:
        """What was proved, as counts."""
        counts = [f"{self.verdicts.count(name):,} {name}" for name in VERDICTS if name in self.verdicts]
        about = (
            f"{count_of(len(self.verdicts), 'example')}, ε = {format_eps(self.eps)}, {self.method}, {self.arithmetic}"
        )
        return f"<Certificates: {about}: {', '.join(counts)}>"

    @property
    def certified(self) -> Tensor:
        """Which examples (B,) are certified."""
        return torch.tensor([verdict == "certified" for verdict in self.verdicts])


def certify(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    method: str = "ibp",
    arithmetic: str = DEFAULT_ARITHMETIC,
    memory: int = VERDICT_SETTINGS.memory,
) -> Certificates:
    """Try to prove that no input within `eps` of each of `x` (B, …) changes the class from `labels` (B,).

    `x` are pixels in [0, 1]; the model must be in evaluation mode. `method` is a
    bound: "ibp", intervals; "crown-ibp", "crown" and "alpha-crown" are each tighter on most networks, and
    slower. Each takes the largest of its own margins and those of the methods before it.
    The cascade of all methods, "auto", is in `verify`.
    `arithmetic` is what the deployed network computes in: "float32", "tf32",
    "bf16" (under torch.autocast), or "real" for a network that never rounds.
    `memory` is how many bytes the linear bounds may take at once, besides the
    network and its boxes; where that is less, they take longer.
    Raises UnsupportedLayer, MethodError, EpsilonError or DataError, and
    SoundnessError where inference contradicts a bound.
    """
    check_tensor(x)  # before its shape is used
    if method == "auto":
        warn_renamed('method="auto" of certify', f'method="{FASTEST}"')
        method = FASTEST
    settings = replace(VERDICT_SETTINGS, memory=memory)
    shape = tuple(x.shape[1:])
    return Certifier(model, method, arithmetic=arithmetic, settings=settings, shape=shape).certify(x, labels, eps)


class Certifier:
    """`certify` for many batches of one model, whose float64 copy it makes once.

    settings: of the bound methods; the rounding is replaced by that of `arithmetic`.
    skip_faster: do not run the faster methods first, because they have already left these examples open.
    shape: of one input, without the batch, for a network whose forward pass reads shapes.
    """

    @outside_inference_mode()
    def __init__(
        self,
        model: nn.Module,
        method: str = FASTEST,
        *,
        arithmetic: str = DEFAULT_ARITHMETIC,
        settings: Settings = VERDICT_SETTINGS,
        skip_faster: bool = False,
        shape: Shape | None = None,
    ) -> None:
        self.rounding = arithmetic_named(arithmetic)
        if isinstance(model, Classifier):
            model.metadata.check_arithmetic(arithmetic)
        self.settings = replace(settings, rounding=self.rounding)
        self.method = method
        self.bound = (method_named if skip_faster else up_to)(self.method)
        check_modules(model)  # before it is copied, since a copy loses hooks and wrappers
        self.model = plain_model(model)
        # Float64 convolutions are a tenth slower in channels-last memory.
        self.exact = _copied(model).double().to(memory_format=torch.contiguous_format)
        self.graph = checked_copy(self.exact, self.model, shape)
        check_evaluation_mode(self.graph)
        _check_precision(model)
        self.assumptions = _assumptions(self.rounding, self.graph)

    @outside_inference_mode()
    @torch.no_grad()
    def certify(self, x: Tensor, labels: Tensor, eps: float) -> Certificates:
        """As the function `certify`."""
        check_input(x, PIXEL_RANGE)
        if not (self.rounding.name == "bf16" and x.dtype == torch.bfloat16):  # autocast takes bfloat16 inputs
            check_dtype(self.model, x)
        eps = parse_eps(eps)
        with shape_errors_as_data_errors(x):
            logits = self.infer(x)
        check_labels(labels, logits.shape)
        margins = self._margins(x, labels, eps)
        proved, margin = certified_examples(margins, labels), _smallest(margins, labels)
        if self.rounding.name != "real":
            check_centres(logits, labels, margins)
        verdicts = [
            _verdict(c, p) for c, p in zip(correct_examples(logits, labels).tolist(), proved.tolist(), strict=True)
        ]
        return Certificates(tuple(verdicts), margin, eps, self.method, self.assumptions, self.rounding.name)

    @outside_inference_mode()
    @torch.no_grad()
    def proved(self, x: Tensor, labels: Tensor, eps: float, deadline: Deadline = NEVER) -> tuple[Tensor, Tensor]:
        """Which examples (B,) have lower bounds above zero for all margins, and the smallest bounds (B,).

        Examples whose bounds are not computed by the deadline are not proved; their bound is −∞.
        """
        margins = self._margins(x, labels, eps, deadline)
        return certified_examples(margins, labels), _smallest(margins, labels)

    def guard(self, x: Tensor, labels: Tensor, eps: float, bounds: Tensor) -> None:
        """Raise SoundnessError if inference finds a margin below its bound (B, K), or the smallest margin (B, 1)."""
        if self.rounding.name == "real":
            check_margins(self.exact, x.double(), labels, eps, bounds, tolerance=OBSERVED_IN_FLOAT64)
        else:
            check_margins(self.infer, x, labels, eps, bounds)

    def _margins(self, x: Tensor, labels: Tensor, eps: float, deadline: Deadline = NEVER) -> Tensor:
        """Lower bounds (B, K) of the margins, after the guard has checked some or all of them."""
        x, settings = plain_tensor(x), replace(self.settings, deadline=deadline)
        with shape_errors_as_data_errors(x):
            box = input_box(x.double().contiguous(), eps)
            margins = self.bound(self.graph, box, settings).margins(labels)
        rows = _spread(certified_examples(margins, labels), MOST_GUARDED if self.method == FASTEST else len(x))
        self.guard(x[rows], labels[rows], eps, margins[rows])
        return margins

    def infer(self, x: Tensor) -> Tensor:
        """The network's logits (B, K), in the named arithmetic if this device has it, else in float32."""
        name = self.rounding.name
        precision: Precision = "bf16" if name == "bf16" else "tf32" if name == "tf32" and x.is_cuda else "fp32"
        with run_in(precision, x.device.type):
            logits: Tensor = self.model(x.clone())  # its first layer may work in place
            return logits


def _smallest(margins: Tensor, labels: Tensor) -> Tensor:
    """The smallest margin (B,) with another class, of margins (B, K)."""
    return margins.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1)


def _spread(proved: Tensor, most: int) -> Tensor:
    """At most `most` row numbers out of (B,), evenly spread; rows that are proved come first."""
    order = proved.to(torch.uint8).argsort(descending=True, stable=True)
    first = int(proved.sum()) or len(proved)
    if most >= len(proved):
        return order
    steps = torch.arange(min(most, first), device=proved.device) * first // min(most, first)
    return order[steps]


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # as for a stored tensor that has a gradient history
        raise UnsupportedLayer(
            f"the network cannot be copied: {error}; let its modules keep plain parameters and detached tensors"
        ) from error


def _check_precision(model: nn.Module) -> None:
    """Raise UnsupportedLayer if a weight has a precision that no arithmetic covers."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise UnsupportedLayer(
                f"{name!r} is {tensor.dtype}, but certificates are for networks saved in float32; call model.float(), "
                "and name the arithmetic that it runs in"
            )


def _assumptions(rounding: Rounding, graph: LayerGraph) -> tuple[str, ...]:
    accuracies = statements_of([call.layer for call in graph.calls])
    return (*rounding.assumptions, *accuracies, *([] if rounding.name == "real" else [AS_GIVEN]), PIXEL_INPUTS)


def _verdict(correct: bool, proved: bool) -> Verdict:
    if not correct:
        return "misclassified"
    return "certified" if proved else "open"
