"""The checks of a machine, fast ones first. Each loads what it needs itself, so that a broken package is a finding."""

import os
import platform
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from importlib import metadata as packages
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from certtrain.doctor.checking import Absent, Check
from certtrain.doctor.speed import STEP_PRESET, step_check
from certtrain.errors import DeviceError

if TYPE_CHECKING:
    from torch import Tensor

NEEDED = ("torch", "torchvision", "typer", "rich", "pydantic", "safetensors", "filelock", "jinja2", "matplotlib")
EXTRAS = {  # packages by the name of the extra; what has a check of its own is not here
    "milp": (("scipy",), "exact answers by a mixed-integer program (--method milp)"),
    "vnnlib": (("vnnlib",), "properties in VNN-LIB 2.0"),
    "tensorboard": (("tensorboard",), "event files (train --tensorboard)"),
    "mlflow": (("mlflow", "sqlalchemy", "alembic"), "curves and results in MLflow (train --mlflow)"),
    "wandb": (("wandb",), "curves and results in Weights & Biases (train --wandb)"),
    "tune": (("optuna", "sqlalchemy"), "search of settings (certtrain tune)"),
}
REINSTALL = "install it again: pip install --force-reinstall {}"


def all_checks(preset: str = STEP_PRESET, device: str = "auto") -> Iterator[Check]:
    """Every check; the last ones take training steps of `preset` on `device`."""
    yield Check("certtrain", _version, "install certtrain again", needed=True)
    for name in NEEDED:
        yield Check(name, partial(_package, name), REINSTALL.format(name), needed=True)
    yield Check("processor", _processor, "set OMP_NUM_THREADS to the number of cores")
    yield Check("GPU", _gpu, "install the driver and the torch that fit each other, or use --device cpu")
    yield Check("bounds", _bounds, "certificates from this machine would be wrong; report it", needed=True)
    yield Check("pictures", _matplotlib, REINSTALL.format("matplotlib"))
    yield Check("ONNX", _onnx, REINSTALL.format("onnx onnxruntime"))
    for extra in EXTRAS:
        yield Check(extra, partial(_extra, extra), REINSTALL.format(f'"certtrain[{extra}]"'))
    yield Check("torch.compile", partial(_compile, device), "train with --compile off, which auto does by itself")
    yield step_check(preset, device, "fp32")
    yield step_check(preset, device, "bf16")


def _version() -> str:
    from certtrain.version import __version__

    system = f"{platform.system()} {platform.machine()}"
    return f"{__version__}, Python {platform.python_version()}, {system}, in {Path(__file__).parents[1]}"


def _package(name: str) -> str:
    import_module(name)
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:  # another distribution has the module, as mlflow-skinny has mlflow
        return packages.version(packages.packages_distributions()[name][0])


def _processor() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return f"{cores} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        built = "torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise Absent(built, "nothing, on a machine without an NVIDIA GPU; else install its driver and torch for CUDA")
    x = torch.ones(64, 64, device="cuda")
    if float((x @ x).sum()) != 64**3:
        raise ArithmeticError("a product of two matrices of ones is wrong")
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return "; ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {gpu.major}.{gpu.minor}" for gpu in found)


def _bounds() -> str:
    """Bounds of x ↦ (x₀ + x₁, x₀ − x₁) over the box of radius 1/2 around (1, 1), which are exact in float32."""
    import torch
    from torch import nn

    from certtrain.bounds.api import output_bounds

    linear = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    lower, upper = output_bounds(linear, torch.ones(1, 2), 0.5, method="ibp", clip=None)
    for found, exact in ((lower, (1.0, -1.0)), (upper, (3.0, 1.0))):
        if (found[0] - torch.tensor(exact)).abs().max() > 1e-5:
            raise ArithmeticError(f"the bounds of a linear layer are {found[0].tolist()} instead of {exact}")
    return "of a layer that is known by hand"


def _matplotlib() -> str:
    from certtrain.reports.svg import Curve, EpochAxis, draw_curves

    draw_curves("doctor", EpochAxis([1, 2]), [Curve("curve", [0.0, 1.0], "ink")], label="a curve")
    return f"{packages.version('matplotlib')}, draws curves"


def _onnx() -> str:
    """Write the digits' network as ONNX, and run it by onnxruntime; `export` compares its logits with torch's."""
    from certtrain.data import load_images
    from certtrain.interchange.export import export
    from certtrain.network.assembly import describe, make_network
    from certtrain.network.modelfile import Classifier
    from certtrain.spec.preset import load_preset

    preset, images = load_preset("digits"), load_images("digits", "test")
    model = Classifier(make_network(preset, images)[0], describe(preset, images)).eval()
    with TemporaryDirectory() as folder:
        export(model, images.take(8), onnx=Path(folder) / "net.onnx")
    versions = ", ".join(f"{name} {packages.version(name)}" for name in ("onnx", "onnxruntime"))
    return f"{versions}; an exported network computes the same"


def _extra(extra: str) -> str:
    names, purpose = EXTRAS[extra]
    try:
        return ", ".join(f"{name} {_package(name)}" for name in names)
    except ModuleNotFoundError as error:
        raise Absent(f"needed for {purpose}", f'pip install "certtrain[{extra}]"') from error


def _compile(device: str) -> str:
    import torch

    from certtrain.runtime.device import choose_device
    from certtrain.training.compilation import Compiler, has_compiler, needed_tools

    place = choose_device(device)
    if not has_compiler(place):
        raise Absent("training steps are not compiled", f"install {needed_tools(place)}, for faster steps")
    x = torch.linspace(-1, 1, 100, device=place)
    found = Compiler(_not_compiled).use(lambda compiled: compiled(_relu_of_square)(x))
    if not torch.allclose(found, _relu_of_square(x)):
        raise ArithmeticError("a compiled function computes something else")
    return f"compiles for {'the CPU' if place == 'cpu' else 'the GPU'}"


def _relu_of_square(x: "Tensor") -> "Tensor":
    return (x * x - 0.5).relu().sum()


def _not_compiled(reason: str) -> None:
    raise DeviceError(reason)
