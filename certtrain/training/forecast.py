"""How long a run on a CPU will take, judged by a few examples and then by its first steps, and what would be faster."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from math import isclose
from typing import NamedTuple

import torch
from torch import Tensor, nn

from certtrain.bounds.chunks import inference_work
from certtrain.bounds.supported import checked_graph
from certtrain.data import ImageSet
from certtrain.errors import CerttrainError
from certtrain.formats import about, number, roughly
from certtrain.network.assembly import make_network
from certtrain.runtime.precision import has_bf16_instructions
from certtrain.spec.architecture import CNN3, CNN5, CNN7
from certtrain.spec.choices import BatchNormStatistics, Precision
from certtrain.spec.objective import CrownIBPSection, IBPSection
from certtrain.spec.preset import Preset, load_preset
from certtrain.spec.preset_file import preset_names
from certtrain.training.compilation import has_compiler
from certtrain.training.pacing import Stopwatch
from certtrain.training.step import Stepper

MEASURED_SECONDS, MEASURED_STEPS = 3.0, 2  # the least that is measured, after the first step, which may be compiled
FEW_EXAMPLES, MORE_EXAMPLES = 2, 16  # examples of the steps that are timed before the run
TIMING = 1.5  # seconds in which these are repeated; each size is timed once at least
WORTH_TIMING = 1e11  # multiplications of inference for all examples of a run, below which it takes minutes at most
WORTH_SAYING = 120.0  # seconds: the run says of itself that it takes at least as much
WORTH_ADVICE = 3600.0  # seconds: from here on it says what would be faster
NIGHT = 12 * 3600.0  # seconds: the width that is advised is the first one with which a run takes no longer
HALVINGS, LEAST_WIDTH = 2, 16  # but the width is halved at most so often, and not below this
SMALLER = ("cnn5", "cnn3")  # networks to advise where there is no width, the larger first
MUCH_SMALLER = 0.5  # the largest share of the work that is worth another network


class Way(NamedTuple):
    """How a step is computed: compiled or not, the arithmetic, and the statistics of BatchNorm."""

    compiled: bool
    precision: Precision
    statistics: BatchNormStatistics


EAGER = Way(False, "fp32", "clean")
# The time of a step by IBP, as a multiple of that of a standard step: CNN-7 at CIFAR-10's shape, batch 64, on two cores
# with instructions for bfloat16. From benchmarks/RESULTS.md, "A step".
STANDARD_STEPS = {
    EAGER: 3.24,
    Way(False, "bf16", "clean"): 2.04,
    Way(True, "fp32", "clean"): 2.78,
    Way(True, "bf16", "clean"): 1.48,
    Way(False, "fp32", "centre"): 2.40,
    Way(False, "bf16", "centre"): 1.59,
    Way(True, "fp32", "centre"): 1.93,
    Way(True, "bf16", "centre"): 1.06,
}


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


def _way_of(preset: Preset, *, compiled: bool) -> Way:
    """How the steps of the preset are computed on this CPU. Without instructions for bf16 that counts as fp32."""
    precision: Precision = "bf16" if preset.train.precision == "bf16" and has_bf16_instructions() else "fp32"
    return Way(compiled, precision, preset.train.batch_norm_statistics)


def estimated_seconds_per_step(
    preset: Preset, network: nn.Module, steps_per_epoch: int, x: Tensor, labels: Tensor, *, compiled: bool
) -> float:
    """About how long a step with the pixels `x` (B, C, H, W) takes on a CPU, in the middle of the ramp.

    It follows from eager steps in fp32 of a few of the examples, with a copy of the network, and from
    `STANDARD_STEPS`. Attacks are in these steps.
    """
    train = preset.train.model_copy(update={"precision": EAGER.precision, "batch_norm_statistics": EAGER.statistics})
    middle = (preset.eps.start - 1) * steps_per_epoch + preset.eps.length * steps_per_epoch // 2
    with torch.random.fork_rng(devices=[]):
        stepper = Stepper(preset.model_copy(update={"train": train}), deepcopy(network), steps_per_epoch)
        few, more = _shortest(lambda count: stepper.run(middle, x[:count], labels[:count]))
    added = max(len(x[:MORE_EXAMPLES]) - FEW_EXAMPLES, 1)
    each = max(more - few, 0.0) / added  # the rest of a step does not depend on its examples
    eager = few + each * max(len(x) - FEW_EXAMPLES, 0)
    return eager * STANDARD_STEPS[_way_of(preset, compiled=compiled)] / STANDARD_STEPS[EAGER]


def _shortest(run: Callable[[int], None]) -> tuple[float, float]:
    """The shortest times of `run` with a few examples and with more; another program makes some steps longer."""
    watch, rounds = Stopwatch(), list[tuple[float, float]]()
    run(FEW_EXAMPLES)  # which also allocates memory
    while not rounds or watch.seconds() + sum(rounds[-1]) < TIMING:
        rounds.append((_seconds(run, FEW_EXAMPLES), _seconds(run, MORE_EXAMPLES)))
    few, more = zip(*rounds, strict=True)
    return min(few), min(more)


def _seconds(run: Callable[[int], None], count: int) -> float:
    watch = Stopwatch()
    run(count)
    return watch.seconds()


def estimate_sentence(preset: Preset, images: ImageSet, seconds: float, *, compiled: bool, begun: bool = False) -> str:
    """How long the run takes by `estimated_seconds_per_step`, and what would be faster; empty if not long.

    begun: whether `seconds` are for the rest of a run, whose settings stay as they are.
    """
    if seconds < WORTH_SAYING:
        return ""
    what = "the rest of this run" if begun else "this run"
    sentence = f"{what} takes about {roughly(seconds)} on this CPU"
    return sentence if begun else sentence + _advice(preset, images, seconds, compiled=compiled)


def forecast_sentence(
    preset: Preset, images: ImageSet, seconds_per_step: float, steps: int, *, compiled: bool, advice: bool = True
) -> str:
    """How long the `steps` steps that are left will take by the first ones, and what would be faster.

    Empty if it is not long.
    """
    seconds = seconds_per_step * steps
    if seconds < WORTH_SAYING:
        return ""
    sentence = f"the run will take about {about(seconds)} more on this CPU, at {number(seconds_per_step)} s a step"
    return sentence + _advice(preset, images, seconds, compiled=compiled) if advice else sentence


def _advice(preset: Preset, images: ImageSet, seconds: float, *, compiled: bool) -> str:
    """What would be faster than a run of this time, as the end of a sentence; empty if it is not long."""
    faster = [] if seconds < WORTH_ADVICE else [*_faster(preset, images, seconds, compiled=compiled)]
    return f". Faster: {'; '.join(faster)}" if faster else ""


def _faster(preset: Preset, images: ImageSet, seconds: float, *, compiled: bool) -> Iterator[str]:
    options, best = _faster_way(preset, compiled=compiled)
    if options:
        share = STANDARD_STEPS[best] / STANDARD_STEPS[_way_of(preset, compiled=compiled)]
        yield f"about {roughly(share * seconds)} with {' '.join(options)}"
    if smaller := _smaller_network(preset, images, seconds):
        name, share = smaller
        yield f"about {roughly(share * seconds)} with a smaller network, --set {name}"
    if made_for_cpus := _cpu_preset(preset):
        yield f"--preset {made_for_cpus}, which is made for CPUs"


def _cpu_preset(preset: Preset) -> str | None:
    """certtrain's preset for CPUs of the same data set, radius and objective, if there is another one."""
    name = f"{preset.data.name}-cpu"
    if preset.name == name or name not in preset_names():
        return None
    other = load_preset(name)
    same = isclose(other.eps.max, preset.eps.max) and other.objective.name == preset.objective.name
    return name if same else None


def _faster_way(preset: Preset, *, compiled: bool) -> tuple[list[str], Way]:
    """The options that are not in use and make steps faster on this machine, and the way of the steps with them."""
    settings, best = preset.train, _way_of(preset, compiled=compiled)
    in_parts, options = settings.micro_batch is not None, list[str]()
    if settings.precision != "bf16" and has_bf16_instructions():
        options, best = ["--precision bf16"], best._replace(precision="bf16")
    if not compiled and not in_parts and has_compiler("cpu"):
        options, best = [*options, "--compile on"], best._replace(compiled=True)
    bounds_only = isinstance(preset.objective, IBPSection | CrownIBPSection)
    if settings.batch_norm_statistics == "clean" and bounds_only and not in_parts:
        options, best = [*options, "--set train.batch_norm_statistics=centre"], best._replace(statistics="centre")
    return options, best


def _smaller_network(preset: Preset, images: ImageSet, seconds: float) -> tuple[str, float] | None:
    """The setting of a network to advise, and its share of the preset's work: a smaller width, or another network."""
    own, found = _work(preset, images), None
    for name, value in _smaller_settings(preset):
        try:
            share = _work(load_preset(preset.model_dump(mode="json"), {name: value}), images) / own
        except CerttrainError:  # it shrinks these images to nothing
            continue
        if share <= MUCH_SMALLER:
            found = f"{name}={value}", share
            if share * seconds <= NIGHT or name == "model.name":
                break
    return found


def _smaller_settings(preset: Preset) -> list[tuple[str, str | int]]:
    model = preset.model
    if isinstance(model, CNN7 | CNN5 | CNN3):
        widths = [model.width // 2**halving for halving in range(1, HALVINGS + 1)]
        if widths[0] >= LEAST_WIDTH:
            return [("model.width", width) for width in widths if width >= LEAST_WIDTH]
    return [("model.name", name) for name in SMALLER]


def _work(preset: Preset, images: ImageSet) -> int:
    """About how many multiplications inference of the preset's network takes for one image."""
    with torch.random.fork_rng(devices=[]):
        network, _ = make_network(preset, images)
    return inference_work(checked_graph(network, images.input_shape), torch.zeros(1, *images.input_shape))
