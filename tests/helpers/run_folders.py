"""A run folder written by hand, with numbers that are known."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from certtrain.spec.preset import load_preset

RESULTS = {
    "dataset": "digits",
    "split": "test",
    "eps": 8 / 255,
    "examples": 1000,
    "certified": 350,
    "open": 50,
    "falsified": 110,
    "misclassified": 490,
    "method": "ibp",
    "attack": {"steps": 20, "restarts": 3, "seed": 0},
    "assumptions": ["real arithmetic", "pixels < 1"],
    "natural_accuracy": 0.51,
    "attacked_accuracy": 0.4,
    "certified_accuracy": 0.35,
    "natural_error": 0.49,
    "verified_error": 0.65,
}
TRAINING = {"steps": 40, "seconds": 3725.0, "device": "cpu", "processes": 2, "finished": "2026-03-05T09:07:00+00:00"}
VERSIONS = {"certtrain": "0.1.0", "torch": "2.6.0"}


def layer(name: str, **changes: Any) -> dict[str, Any]:
    """A layer's line in the metrics, with fields replaced."""
    shares = {"active": 0.25, "inactive": 0.25, "unstable": 0.5, "dead": 0.125}
    widths = {"centre": -0.5, "width": 2.0, "growth": 40.0, "mean_ratio": 0.75, "variance_ratio": None}
    return {"name": name, "units": 1024} | shares | widths | changes


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    """An epoch's line in the metrics, with fields replaced; None in the place of a value takes the field away."""
    losses = {"loss": 2.5 / number, "robust_loss": 2.0 / number, "natural_loss": 1.0 / number}
    record = {"epoch": number, "step": 10 * number, "eps": 0.01 * number, "learning_rate": 5e-4, **losses}
    record |= {"tightness_loss": 0.5, "relu_balance_loss": 0.25, "natural_accuracy": 0.5, "certified_accuracy": 0.25}
    record |= {"gradient_norm": 4.0, "seconds": 1.5 * number, "layers": [layer("conv1_relu"), layer("linear1_relu")]}
    return record | changes


def write_run(
    folder: Path,
    epochs: list[dict[str, Any]],
    *,
    finished: bool = True,
    results: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A run folder of these epochs; `fields` are the preset's, with underscores for dots."""
    folder.mkdir(parents=True)
    changes = {"train.epochs": 4, "eps.max": "8/255", "eps.start": 2, "eps.length": 2}
    preset = load_preset("digits", changes | {name.replace("__", "."): value for name, value in fields.items()})
    (folder / "preset.json").write_text(preset.model_dump_json(), encoding="utf-8")
    lines = [json.dumps(record) + "\n" for record in epochs]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    if finished:
        record = {"preset": "digits", "seed": 0, "results": results or RESULTS, "training": TRAINING}
        record |= {"verification_seconds": 2.25, "versions": VERSIONS}
        (folder / "report.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def write_weights(path: Path, prefix: str = "", **about: Any) -> None:
    """A file of 3·4 + 5 trained numbers among others, and what it says of itself."""
    tensors = {"conv1.weight": torch.zeros(3, 4), "conv1.bias": torch.zeros(5), "normalize.mean": torch.zeros(1)}
    tensors |= {"conv1_bn.running_var": torch.zeros(3), "conv1_bn.num_batches_tracked": torch.tensor(3)}
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    others = {"optimizer/0/exp_avg": torch.zeros(100), "average/conv1.weight": torch.zeros(3, 4)} if prefix else {}
    path.parent.mkdir(exist_ok=True)
    save_file(named | others, path, {"certtrain": json.dumps(about)} if about else None)
