"""Small networks of every kind with splittable neurons, their roots, and domains of them."""

import copy
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from certtrain.bounds.box import input_box
from certtrain.bounds.rounding import arithmetic_named
from certtrain.bounds.settings import VERDICT_SETTINGS, Settings
from certtrain.bounds.supported import checked_graph
from certtrain.branching.boxes import tightened_prefix
from certtrain.branching.domains import Domains
from certtrain.branching.problem import Problem
from helpers.sampling import points_inside

SETTINGS = replace(VERDICT_SETTINGS, iterations=5, neurons=8)
CLASSES = 3


class Residual(nn.Module):
    """Two branches and their sum, with rectifiers before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3))
        self.after = nn.LeakyReLU(0.1)
        self.last = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.after(self.second(x) + x))


def mlp(*between: nn.Module) -> nn.Sequential:
    """Linear layers of 8 units with these layers between, of inputs (1, 4, 4)."""
    layers = [layer for each in between for layer in (nn.Linear(8, 8), each)]
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), *layers, nn.Linear(8, CLASSES))


NETWORKS = {
    "mlp": lambda: mlp(nn.ReLU(), nn.ReLU()),
    "leaky": lambda: mlp(nn.LeakyReLU(0.2), nn.LeakyReLU(0.01)),
    "leaky above 1": lambda: mlp(nn.LeakyReLU(2.5), nn.ReLU(), nn.LeakyReLU(1.5)),
    "batch norm": lambda: mlp(nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.ReLU()),
    "curves": lambda: mlp(nn.Sigmoid(), nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1)),
    "bends": lambda: mlp(nn.GELU(), nn.ELU(2.0), nn.SiLU(), nn.Hardtanh(-0.5, 0.5), nn.Softplus()),
    "rectifier first": lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), *list(mlp(nn.ReLU()))[1:]),
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES),
    ),
    "max pool": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.LeakyReLU(0.1),
        nn.Flatten(), nn.Linear(4, CLASSES),
    ),
    "average pool": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    ),
    "residual": Residual,
}  # fmt: skip


@torch.no_grad()
def network(name: str, seed: int, offset: float = 0.0) -> nn.Module:
    """In float32 and evaluation mode, its weights, biases and statistics random.

    `offset` stands in all biases before a BatchNorm or a rectifier, and is taken off in none: it hides small numbers.
    """
    model, generator = NETWORKS[name]().eval(), Generator().manual_seed(seed)
    for layer in model.modules():
        for tensor in layer.parameters(recurse=False):
            fan_in = max(1, tensor[0].numel()) if tensor.dim() > 1 else 4
            tensor.normal_(generator=generator).mul_((2 / fan_in) ** 0.5)
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None:
            layer.bias.sub_(layer.weight.flatten(1).sum(1) / 2).add_(offset)  # inputs are around 1/2
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            layer.running_mean.normal_(generator=generator).mul_(0.3).add_(offset)
            layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return model


def pixels(seed: int, shape: tuple[int, ...] = (1, 1, 4, 4)) -> Tensor:
    return torch.rand(shape, generator=Generator().manual_seed(1000 + seed))


@torch.no_grad()
def samples_around(x: Tensor, eps: float, count: int) -> Tensor:
    """Inputs (count, …) of the box in float32, corners among them; those that rounding put outside are x."""
    lower, upper = (x[0].double() - eps).clamp(0, 1), (x[0].double() + eps).clamp(0, 1)
    points = points_inside(lower, upper, count).float()
    inside = (points.double() >= lower) & (points.double() <= upper)
    return torch.where(inside, points, x)


@torch.no_grad()
def root_of(
    model: nn.Module, x: Tensor, eps: float, arithmetic: str = "real", functions: Tensor | None = None
) -> Problem:
    """For `functions` (S, K) in the box around x (1, …); by itself logit[0] − logit[1]."""
    settings = replace(SETTINGS, rounding=arithmetic_named(arithmetic))
    box = input_box(x.double(), eps, (0.0, 1.0))
    prefix = tightened_prefix(checked_graph(copy.deepcopy(model).double()), box, settings)
    wanted = torch.eye(CLASSES).double()[:1] - torch.eye(CLASSES).double()[1:2] if functions is None else functions
    return Problem(prefix, wanted, wanted.new_zeros(len(wanted)), settings.rounding)


@torch.no_grad()
def hard_problem(seed: int, least: float) -> Problem:
    """A margin whose least value is about `least`, in a box with 64 unstable neurons of four pixels each."""
    generator = Generator().manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 2, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    for layer in (layers[0], layers[3], layers[5]):
        layer.weight.normal_(generator=generator).mul_((2 / layer.weight[0].numel()) ** 0.5)
        layer.bias.copy_(-layer.weight.flatten(1).sum(1) / 2)
    problem = root_of(layers, torch.full((1, 1, 4, 4), 0.5), 0.1, "float32")
    problem.offsets = problem.offsets - least_found(problem) + least
    return problem


def least_found(problem: Problem) -> float:
    """The least value of the first function by gradient steps from many inputs."""
    start, step = problem.prefix.start, 0.1
    x = samples_around(torch.full((1, 1, 4, 4), 0.5), 0.1, 400).double()
    for _ in range(60):
        with torch.enable_grad():
            x.requires_grad_()
            values = problem.run(x)[0] @ problem.functions[0]
            gradient = torch.autograd.grad(values.sum(), x)[0]
        x = (x.detach() - step * start.radius * gradient.sign()).clamp(start.lower, start.upper)
        step *= 0.97
    return float((problem.run(x)[0] @ problem.functions[0]).min())


def settings_of(problem: Problem) -> Settings:
    """To search it with."""
    return replace(SETTINGS, rounding=problem.rounding)


def domain(problem: Problem, signs: Tensor, generator: Generator, strength: float = 1.0) -> Domains:
    """Of these signs (D, T), with random slopes and multipliers, in float64."""
    alphas = torch.rand(len(signs), problem.alphas, generator=generator, dtype=torch.float64)
    betas = strength * torch.rand(signs.shape, generator=generator, dtype=torch.float64).square()
    weights = torch.rand(len(signs), len(problem.functions), generator=generator, dtype=torch.float64)
    return Domains.of(signs, alphas, betas, weights)


def some_signs(problem: Problem, inputs: Tensor, count: int, generator: Generator) -> Tensor:
    """Signs (1, T) of `count` open units, or of all if there are fewer, as they are at units' `inputs` (T,)."""
    order = torch.rand(problem.neurons, generator=generator).where(problem.unstable, 2.0).argsort()
    chosen = order[: min(count, int(problem.unstable.sum()))]
    signs = torch.zeros(1, problem.neurons, dtype=torch.int8)
    signs[0, chosen] = torch.where(inputs[chosen] >= 0, 1, -1).to(torch.int8)
    return signs


def inputs_with_signs(inputs: Tensor, signs: Tensor) -> Tensor:
    """Which of units' inputs (N, T) have the signs (1, T)."""
    return (inputs * signs >= 0).all(1)
