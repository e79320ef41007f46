"""The numbers of a run as TensorBoard, MLflow and Weights & Biases get them: their names, and which they are."""

from typing import Any

from certtrain.runs.epoch import Epoch, LayerState

LAYER_NUMBERS = ("active", "unstable", "inactive", "dead", "width", "growth")
RESULTS = ("natural_accuracy", "attacked_accuracy", "certified_accuracy", "verified_error")


def logged_numbers(record: Epoch) -> dict[str, float]:
    """The numbers of an epoch that are known, by names like accuracy/certified_accuracy and dead/conv1_relu."""
    numbers = {_tag(name): value for name, value in record.numbers.items() if name != "step"}
    for layer in map(LayerState.to_dict, record.layers):
        numbers |= {f"{name}/{layer['name']}": layer[name] for name in LAYER_NUMBERS}
    return {tag: value for tag, value in numbers.items() if value is not None}


def result_numbers(results: dict[str, Any]) -> dict[str, float]:
    """The accuracies at the end of a run, by names like result/test_certified_accuracy."""
    return {f"result/{results['split']}_{name}": results[name] for name in RESULTS}


def _tag(name: str) -> str:
    """A number's name, after the group in which it is shown."""
    if name.endswith("accuracy"):
        return f"accuracy/{name}"
    if name.endswith("loss"):
        return f"loss/{name}"
    return f"training/{name}"
