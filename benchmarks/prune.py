"""A smaller network from a trained one, without the channels and units that no training image makes active.

A network that is trained by interval bounds leaves many channels unused: for every training image and every point of
its box, the input of their ReLUs is at most zero. Without them the network is the same function on these images. The
weights are rounded to bfloat16, and kept as such. The new network is another network than the trained one, so its
figures are those of a verification of its own.

python benchmarks/prune.py MODEL --data-dir DATA --out SMALLER      # for cnn, cnn3, cnn5, cnn7 and the dm networks
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from certtrain import load_model, load_preset, propagate
from certtrain.data import ImageSet, to_unit
from certtrain.network.assembly import load_run_images
from certtrain.network.modelfile import Classifier, Metadata, fill_network, write_model
from certtrain.spec.architecture import CNN
from certtrain.training.inactive import Part, active_channels, kept_channels, parts_of

NOTE = "without the channels and units that are never active on training images; weights rounded to bfloat16"


@torch.no_grad()
def used_channels(model: Classifier, images: ImageSet, eps: float, size: int = 100) -> dict[str, Tensor]:
    """For each ReLU layer the channels or units (C,) that are active in the box of radius `eps` of some image."""
    return active_channels(propagate(model, to_unit(pixels), eps) for pixels in images.images.split(size))


def pruned(model: Classifier, used: Mapping[str, Tensor]) -> Classifier:
    """The network without the other channels and units."""
    parts, metadata = parts_of(model, kept_channels(used)), smaller(model, used)
    state = {name: parts.get(name, Part(None, None)).of(tensor) for name, tensor in model.state_dict().items()}
    return Classifier(fill_network(metadata, state), metadata).eval()


def smaller(model: Classifier, used: Mapping[str, Tensor]) -> Metadata:
    """The metadata with the numbers of channels and units that are left."""
    layers = {model.get_submodule(name.removesuffix("_relu")): int(keep.sum()) for name, keep in used.items()}
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    architecture = CNN(
        name="cnn",
        channels=tuple(layers[layer] for layer in convolutions),
        kernels=tuple(layer.kernel_size[0] for layer in convolutions),
        strides=tuple(layer.stride[0] for layer in convolutions),
        paddings=tuple(int(layer.padding[0]) for layer in convolutions),
        linear=tuple(count for layer, count in layers.items() if isinstance(layer, nn.Linear)),
    )
    return model.metadata.model_copy(update={"architecture": architecture, "note": NOTE, "results": None})


def round_weights_(network: nn.Module) -> None:
    """Round the weights of convolutions and linear layers to bfloat16."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight = nn.Parameter(layer.weight.detach().bfloat16())


def main() -> None:
    """Parse the arguments, find the channels, write the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, help="the number of training images, by default all")
    arguments = parser.parse_args()
    model = load_model(arguments.model)
    images = load_run_images(load_preset(model.metadata.preset), arguments.data_dir).train
    used = used_channels(model, images.sample(arguments.examples, seed=0), model.metadata.eps)
    for name, keep in used.items():
        print(f"{name}: {int(keep.sum())} of {len(keep)} are active on some image")
    network = pruned(model, used)
    round_weights_(network)
    write_model(arguments.out, network, network.metadata)


if __name__ == "__main__":
    main()
