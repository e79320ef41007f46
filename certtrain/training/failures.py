"""The errors of a training step: values that are not finite, and too little memory; each says what may help."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from certtrain.bounds.trace import BoundTrace
from certtrain.errors import DeviceError, NonFiniteError
from certtrain.formats import count_of
from certtrain.spec.objective import CrownIBPSection
from certtrain.spec.preset import Preset

MACHINES = {"cpu": "this machine", "cuda": "the GPU"}


def not_finite(what: str, last_good: Path | None) -> NonFiniteError:
    """The error for a run in which `what` happened, with the last checkpoint from before."""
    return NonFiniteError(
        f"{what}. The last good checkpoint is {last_good or 'none: the initial weights are at fault'}. "
        "A smaller train.learning_rate and a longer eps.length help, and so do "
        'init = "ibp" and BatchNorm in every layer.'
    )


def out_of_memory(preset: Preset, device: str, examples: int) -> DeviceError:
    """The error for a batch of this many examples that does not fit into memory, with settings that need less."""
    other = "--device cpu" if device == "cuda" else "a smaller network"
    return DeviceError(
        f"a batch of {count_of(examples, 'example')} does not fit into the memory of {MACHINES[device]}. "
        f"Try a smaller train.batch_size, {_smaller_step(preset)}, or {other}"
    )


def _smaller_step(preset: Preset) -> str:
    objective = preset.objective
    if isinstance(objective, CrownIBPSection) and not objective.loss_fusion:
        return "objective.loss_fusion = true"
    return "train.micro_batch, which takes the same step in less memory"


def first_not_finite(traces: Iterable[BoundTrace], network: nn.Module) -> str | None:
    """A sentence on the first layer with a box, or else the first parameter with a gradient, that is not finite.

    None if all are finite.
    """
    boxes = ((name, box) for trace in traces for name, box in [*trace.relu_boxes, ("head", trace.logits.box)])
    for name, box in boxes:
        for what, tensor in (("clean values", box.clean), ("centres", box.centre), ("widths", box.radius)):
            if tensor is not None and not bool(tensor.isfinite().all()):
                return f"the first layer with a value that is not finite is {name!r} ({what})"
    for name, parameter in network.named_parameters():
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            return f"all bounds are finite, but the gradient of {name!r} is not"
    return None
