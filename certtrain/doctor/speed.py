"""How fast a training step of a preset is on this machine, on random images of the preset's shape."""

import time
from statistics import median
from typing import TYPE_CHECKING

from certtrain.doctor.checking import Absent, Check
from certtrain.errors import is_out_of_memory
from certtrain.formats import duration
from certtrain.spec.choices import Precision

if TYPE_CHECKING:
    from certtrain.data import ImageSet
    from certtrain.spec.preset import Preset

STEP_PRESET = "digits"
LONGEST, MOST, LEAST = 3.0, 30, 2  # seconds for the steps that are measured, and their number
SHAPES = {  # image shape, classes and number of training images of each data set
    "digits": ((1, 8, 8), 10, 1437),
    "mnist": ((1, 28, 28), 10, 60000),
    "fashion-mnist": ((1, 28, 28), 10, 60000),
    "cifar10": ((3, 32, 32), 10, 50000),
    "tinyimagenet": ((3, 64, 64), 200, 100000),
}


def step_check(preset: str, device: str, precision: Precision) -> Check:
    """The check that takes steps of a preset in this arithmetic. It is needed in fp32."""
    name = f"step of {preset}" + (f" in {precision}" if precision != "fp32" else "")
    advice = "try a smaller train.batch_size or --device cpu" if precision == "fp32" else "train with --precision fp32"
    return Check(name, lambda: _step(preset, device, precision), advice, needed=precision == "fp32")


def step_seconds(preset: "Preset", images: "ImageSet", device: str) -> float:
    """The median seconds of a step in the middle of the ramp, not compiled, until the device has finished it.

    Raises DeviceError if the batch does not fit into memory.
    """
    import torch

    from certtrain.data import Augmentation, Batches
    from certtrain.network.assembly import make_network
    from certtrain.training.failures import out_of_memory
    from certtrain.training.step import Stepper

    size, augmentation = preset.train.batch_size, Augmentation(preset.data.flip, preset.data.crop_padding)
    batches = Batches(images.images, images.labels, batch_size=size, seed=0, augmentation=augmentation, device=device)
    network = make_network(preset, images)[0].to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    stepper = Stepper(preset, network, batches.steps_per_epoch)
    middle = (preset.eps.start - 1) * batches.steps_per_epoch + preset.eps.length * batches.steps_per_epoch // 2
    times, began = list[float](), time.perf_counter()
    while len(times) <= LEAST or (len(times) <= MOST and time.perf_counter() - began < LONGEST):
        start = time.perf_counter()
        try:
            stepper.run(middle, *batches.batch(0, 0))
            stepper.read()  # waits for the device
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(preset, device, size) from error
        times.append(time.perf_counter() - start)
    return median(times[1:])  # the first one also allocates memory


def _step(name: str, device: str, precision: Precision) -> str:
    from certtrain.network.source import resolve_module
    from certtrain.runtime.device import choose_device
    from certtrain.runtime.threads import threads_for
    from certtrain.spec.preset import load_preset

    preset, place = load_preset(name, {"train.precision": precision, "train.compile": "off"}), choose_device(device)
    if preset.data.name not in SHAPES:
        raise Absent(f"the images of {preset.data.name!r} are not known here", "name a preset with a data set by name")
    images = _random_images(preset)
    preset = resolve_module(preset, images)
    with threads_for(_work(preset, images), place):
        seconds = step_seconds(preset, images, place)
    steps = _steps(preset)
    where = "the CPU" if place == "cpu" else "the GPU"
    pace = f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
    return f"{pace} on {where}, not compiled; {steps:,} steps are about {duration(steps * seconds)}"


def _steps(preset: "Preset") -> int:
    """The steps of a whole run."""
    from certtrain.data.batches import steps_in_epoch

    _, _, known = SHAPES[preset.data.name]
    examples = preset.data.examples or known - preset.data.validation
    return preset.train.epochs * steps_in_epoch(examples, preset.train.batch_size)


def _work(preset: "Preset", images: "ImageSet") -> int:
    """About how many multiplications inference takes for a batch."""
    from certtrain.bounds.chunks import inference_work
    from certtrain.bounds.supported import checked_graph
    from certtrain.data import to_unit
    from certtrain.network.assembly import make_network

    network = make_network(preset, images)[0]
    x = to_unit(images.images[:1])
    return inference_work(checked_graph(network, images.input_shape), x) * preset.train.batch_size


def _random_images(preset: "Preset") -> "ImageSet":
    import torch

    from certtrain.data import ImageSet

    shape, classes, _ = SHAPES[preset.data.name]
    generator, count = torch.Generator().manual_seed(0), preset.train.batch_size
    images = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (count,), generator=generator)
    return ImageSet(preset.data.name, "train", images, labels, tuple(map(str, range(classes))))
