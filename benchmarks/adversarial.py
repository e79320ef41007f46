"""Train a small network on MNIST against PGD, as Madry et al. 2018 do, and save it as a model file.

The training uses no bounds, so the network is a task for verifiers. 2,000 training examples are held out, and
`certtrain verify --split validation` uses only these.

python benchmarks/adversarial.py --data-dir data --out pgd.safetensors
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import certtrain
from certtrain.data.batches import Batches
from certtrain.network.assembly import describe, load_run_images, make_network
from certtrain.network.modelfile import write_model

NETWORK = {"name": "cnn", "kernels": [4, 4], "strides": [2, 2], "paddings": [1, 1], "batch_norm": False}
RATE, BATCH = 2e-3, 128


def main() -> None:
    arguments = _arguments()
    torch.manual_seed(arguments.seed)
    model = NETWORK | {"channels": arguments.channels, "linear": arguments.linear}
    preset = certtrain.load_preset(
        "mnist-cpu",
        {"model": model, "data.validation": 2000, "eps.max": arguments.eps, "seed": arguments.seed, "init": "kaiming"},
    )
    images = load_run_images(preset, arguments.data_dir)
    network, _ = make_network(preset, images.train)
    batches = Batches(images.train.images, images.train.labels, batch_size=BATCH, seed=arguments.seed)
    steps = arguments.epochs * batches.steps_per_epoch
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=arguments.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(arguments.epochs):
        for step in range(batches.steps_per_epoch):
            x, labels = batches.batch(epoch, step)
            worst = _attacked(network, x, labels, arguments.eps, arguments.steps)
            loss = F.cross_entropy(network(worst), labels)
            (loss + arguments.sparsity * _weights(network)).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        print(f"epoch {epoch + 1} of {arguments.epochs}: the last batch's loss is {loss.item():.3f}", flush=True)
    note = f"trained against PGD by benchmarks/adversarial.py: {vars(arguments)}"
    write_model(arguments.out, network, describe(preset, images.train, note=note))


def _attacked(network: nn.Module, x: Tensor, labels: Tensor, eps: float, steps: int) -> Tensor:
    """The inputs after so many steps of gradient ascent on the cross-entropy, from a random start."""
    lower, upper = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    point = lower + (upper - lower) * torch.rand_like(x)
    for _ in range(steps):
        point.requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(network(point), labels), point)[0]
        point = (point.detach() + 2.5 * eps / steps * gradient.sign()).clamp(lower, upper)
    return point


def _weights(network: nn.Module) -> Tensor:
    """Σ|W|: with sparse weights fewer ReLUs are unstable (Xiao et al. 2019)."""
    return torch.stack([parameter.abs().sum() for parameter in network.parameters() if parameter.dim() > 1]).sum()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--channels", type=int, nargs=2, default=[8, 16])
    parser.add_argument("--linear", type=int, nargs="*", default=[64])
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=7, help="steps of the attack in training")
    parser.add_argument(
        "--sparsity", type=float, default=5e-4, help="weight of the sum of the weights' absolute values"
    )
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
