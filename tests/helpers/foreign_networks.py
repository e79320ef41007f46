"""A small network of the digits as other programs keep it: ONNX, torch.export, a state dict, and its module's code."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from certtrain.data import load_images, to_unit

MEAN, STD = 0.25, 0.5
CODE = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.avg_pool2d(F.relu(self.again(x) + x), 2)
        return self.head(torch.flatten(x, 1))
"""


class Net(nn.Module):
    """The network of `CODE`, for normalised digits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.avg_pool2d(F.relu(self.again(x) + x), 2)
        return self.head(torch.flatten(x, 1))


def trained_net() -> Net:
    """The network after a few steps of adversarial noise, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own, images = Net(), load_images("digits", "train")
        x, optimizer = to_unit(images.images), torch.optim.Adam(own.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(own((x + 0.05 * torch.randn_like(x) - MEAN) / STD), images.labels).backward()
            optimizer.step()
    return own.eval()


def save_program(network: nn.Module, path: Path, shape: tuple[int, ...] = (1, 8, 8), batch: int = 2) -> Path:
    """The network as `torch.export.save` writes it, for any batch."""
    x = torch.randn(batch, *shape)
    dynamic = None if batch == 1 else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(network, (x,), dynamic_shapes=dynamic), path)
    return path


def changed_program(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive of a program with each entry changed; one that becomes None is left out."""
    other = path.with_name("other.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            if (data := change(name, source.read(name))) is not None:
                target.writestr(name, data)
    return other


def in_json(change: Callable[[Any], None], ending: str = "models/model.json") -> Callable[[str, bytes], bytes]:
    """The change of an entry with that ending, whose JSON `change` changes."""

    def changed(name: str, data: bytes) -> bytes:
        if not name.endswith(ending):
            return data
        found = json.loads(data)
        change(found)
        return json.dumps(found).encode()

    return changed
