"""How long a run on a CPU will take, judged by a few examples and then by its first steps, and what would be faster."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from certtrain.bounds.chunks import inference_work
from certtrain.bounds.supported import checked_graph
from certtrain.data import ImageSet
from certtrain.errors import CerttrainError
from certtrain.formats import about, number, roughly
from certtrain.network.assembly import make_network
from certtrain.spec.objective import CrownIBPSection, IBPSection
from certtrain.spec.preset import Preset, load_preset
from certtrain.training.compilation import SAVED, has_compiler
from certtrain.training.pacing import Stopwatch
from certtrain.training.step import Stepper

MEASURED_SECONDS, MEASURED_STEPS = 3.0, 2  # the least that is measured, after the first step, which may be compiled
TIMED = (2, 2, 12)  # examples of the steps that are timed before the run; the first one also allocates memory
LEAST_LEFT = 1 / 3  # of the time of a step, at least as much is left when it is compiled
WORTH_TIMING = 1e11  # multiplications of inference for all examples of a run, below which it takes minutes at most
WORTH_SAYING = 120.0  # seconds: the run says of itself that it takes at least as much
WORTH_ADVICE = 3600.0  # seconds: from here on it says what would be faster
SMALLER = ("cnn5", "cnn3")  # networks to advise, the larger first
MUCH_SMALLER = 0.5  # the largest share of the work that is worth another network


class Forecast:
    """Times the steps of a run, apart from the first, and says once, early, how long each takes."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.said = -1, 0.0, False

    @contextmanager
    def timed(self) -> Iterator[None]:
        """The context of one step, at whose end the device must be done, as a CPU always is."""
        watch = Stopwatch()
        yield
        self.seconds += watch.seconds() if self.steps >= 0 else 0.0
        self.steps += 1

    @property
    def seconds_per_step(self) -> float | None:
        """The mean; None before the second step."""
        return self.seconds / self.steps if self.steps > 0 else None

    def first(self) -> float | None:
        """`seconds_per_step`, once, as soon as enough is measured; otherwise None."""
        if self.said or self.steps < MEASURED_STEPS or self.seconds < MEASURED_SECONDS:
            return None
        self.said = True
        return self.seconds_per_step


def rough_seconds_per_step(
    preset: Preset, network: nn.Module, steps_per_epoch: int, x: Tensor, labels: Tensor, *, relu_inputs: int = 0
) -> float:
    """About how long a step with the pixels `x` (B, C, H, W) takes on a CPU, from steps of a few of them with a copy of
    the network, in the middle of the ramp. `relu_inputs`, of the batch, if it is compiled, which the copy is not.
    """
    middle = (preset.eps.start - 1) * steps_per_epoch + preset.eps.length * steps_per_epoch // 2
    with torch.random.fork_rng(devices=[]):
        stepper = Stepper(preset, deepcopy(network), steps_per_epoch)
        _, few, more = (_timed(stepper, middle, x[:count], labels[:count]) for count in TIMED)
    each = max(more - few, 0.0) / (TIMED[2] - TIMED[1])  # the rest of a step does not depend on its examples
    eager = max(few + each * (len(x) - TIMED[1]), more)
    return max(eager - relu_inputs * SAVED["cpu"], LEAST_LEFT * eager)


def _timed(stepper: Stepper, step: int, x: Tensor, labels: Tensor) -> float:
    watch = Stopwatch()
    stepper.run(step, x, labels)
    return watch.seconds()


def forecast_sentence(
    preset: Preset,
    images: ImageSet,
    seconds_per_step: float,
    steps: int,
    *,
    compiled: bool,
    rough: bool = False,
    advice: bool = True,
) -> str:
    """How long the `steps` steps that are left will take on this CPU, and what would be faster; empty if not long.

    rough: whether `seconds_per_step` is that of `rough_seconds_per_step`.
    """
    seconds = seconds_per_step * steps
    if seconds < WORTH_SAYING:
        return ""
    sentence = f"the run will take about {about(seconds)} more on this CPU, at {number(seconds_per_step)} s a step"
    if rough:
        sentence = f"the run will take roughly {roughly(seconds)} on this CPU, judged by a few examples"
    if seconds < WORTH_ADVICE or not advice:
        return sentence
    return f"{sentence}. Faster: {'; '.join(_faster(preset, images, seconds, compiled=compiled))}"


def _faster(preset: Preset, images: ImageSet, seconds: float, *, compiled: bool) -> Iterator[str]:
    """What would be faster and is not in use. The shares are those of benchmarks/step.py for CNN-7."""
    settings = preset.train
    yield "a GPU"
    in_parts = settings.micro_batch is not None
    compilable = has_compiler("cpu") and not in_parts
    options = ["--precision bf16"] * (settings.precision != "bf16")
    options += ["--compile on"] * (compilable and not compiled)
    if "--precision bf16" in options and (compilable or compiled):
        yield f"{' '.join(options)}, about half the time if the processor has instructions for bfloat16"
    elif options:
        yield " ".join(options)
    bounds_only = isinstance(preset.objective, IBPSection | CrownIBPSection)
    if settings.batch_norm_statistics == "clean" and bounds_only and not in_parts:
        yield "--set train.batch_norm_statistics=centre, which saves a quarter to a third"
    if smaller := _smaller_network(preset, images):
        name, share = smaller
        yield f"a smaller network, such as --set model.name={name}, about {about(share * seconds)}"


def _smaller_network(preset: Preset, images: ImageSet) -> tuple[str, float] | None:
    """The largest network to advise that takes much less work than the preset's, with its share of the work."""
    own = _work(preset, images)
    for name in SMALLER:
        try:
            share = _work(load_preset(preset.model_dump(mode="json"), {"model.name": name}), images) / own
        except CerttrainError:  # it shrinks these images to nothing
            continue
        if share <= MUCH_SMALLER:
            return name, share
    return None


def _work(preset: Preset, images: ImageSet) -> int:
    """About how many multiplications inference of the preset's network takes for one image."""
    with torch.random.fork_rng(devices=[]):
        network, _ = make_network(preset, images)
    return inference_work(checked_graph(network, images.input_shape), torch.zeros(1, *images.input_shape))
