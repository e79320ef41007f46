"""Examples of small networks, decided by certtrain and by other verifiers, which must not contradict each other.

Small networks are trained on the embedded digits and exported as ONNX, with a VNN-LIB property for each of the first
examples of the test set. Every property is decided by

- certtrain's bounds of the original network (`certify`), whose answer is "unsat" or "unknown",
- certtrain on the exported files, by every method for properties,
- Marabou (`pip install maraboupy` into an environment of its own), which reads the same files.

If certtrain answers "sat", ONNX Runtime must confirm the counterexample, or the run ends with an error. A table is
printed for each network. The exit code is 1 if one verifier answers "sat" and another one "unsat".

Weights below --smallest in absolute value are set to zero before the export, because Marabou 2.0.0 gives wrong answers
for networks with weights below 1e-4: it answered "unsat" for boxes that contain an input for which it answers "sat",
and "sat" after those weights were set to zero. `--count 30 --smallest 0` shows this.

python benchmarks/second_opinions.py --count 50 --marabou-python ~/marabou/bin/python --json second-opinions.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import certtrain
from certtrain.bounds.methods import METHODS as BOUNDS
from certtrain.data import ImageSet, to_unit
from certtrain.interchange.exchange import export_properties
from certtrain.interchange.export import export, onnx_runner
from certtrain.interchange.onnxfile import read_onnx
from certtrain.interchange.vnnlib import read_property
from certtrain.network.assembly import load_split
from certtrain.network.folding import fold_batch_norm
from certtrain.network.modelfile import Classifier, read_model
from certtrain.properties.decide import PROPERTY_METHODS, decide

# The networks are trained with a smaller radius than they are verified with, so that all answers occur.
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"model": {"name": "mlp", "hidden": [24, 16]}},
    "cnn": {"model": {"name": "cnn", "channels": [4, 6], "kernels": [3, 4], "strides": [1, 2], "linear": [16]}},
}
TRAINING = {"train.epochs": 12, "eps.max": 0.03, "eps.length": 6, "train.milestones": [9, 11]}
MARABOU = "import sys, maraboupy.MarabouCore as core; sys.exit(core.maraboupyMain(['Marabou', *sys.argv[1:]]))"

Verifier = Callable[[int, Path], str]


@dataclass(frozen=True)
class Opinion:
    """The answer of one verifier for one example."""

    network: str
    judge: str
    point: int
    verdict: str
    seconds: float


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    opinions = []
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            opinions += _judged(name, Path(folder), arguments)
        print(_table(name, [opinion for opinion in opinions if opinion.network == name]), flush=True)
    contradictions = _contradictions(opinions)
    for line in contradictions:
        print(line)
    if arguments.json is not None:
        text = json.dumps([vars(opinion) for opinion in opinions], indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")
    print(f"{len(contradictions)} contradictions")
    sys.exit(1 if contradictions else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--count", type=int, default=50, help="number of examples for each network")
    parser.add_argument("--eps", type=float, default=0.05)
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds for each example; for the MILP, for each class"
    )
    parser.add_argument("--smallest", type=float, default=1e-3, help="weights below it are set to zero")
    parser.add_argument("--marabou-python", type=Path, help="a Python that has maraboupy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict and its seconds to this file")
    arguments = parser.parse_args()
    if arguments.marabou_python is None:
        print("without --marabou-python, Marabou is left out, and certtrain is compared with the MILP only")
    return arguments


def _judged(name: str, folder: Path, arguments: argparse.Namespace) -> list[Opinion]:
    model = _without_small(_trained(name, folder), arguments.smallest)
    images = load_split(model.metadata, "test", None, lambda *progress: None).take(arguments.count)
    onnx, properties = folder / "exported/network.onnx", folder / "exported"
    export(model, images, onnx=onnx)
    export_properties(model, images, properties, onnx=onnx, eps=arguments.eps, count=len(images))
    judges = {f"certify {method}": _certify(model, images, method, arguments.eps) for method in BOUNDS}
    judges |= {method: _decide(onnx, method, arguments.timeout) for method in PROPERTY_METHODS}
    if arguments.marabou_python is not None:
        judges["Marabou"] = _marabou(arguments.marabou_python, onnx, arguments.timeout)
    opinions = []
    for number in range(len(images)):
        for judge, decide_one in judges.items():
            start = time.monotonic()
            verdict = decide_one(number, properties / f"point_{number:05}.vnnlib")
            opinions.append(Opinion(name, judge, number, verdict, time.monotonic() - start))
            print(opinions[-1], file=sys.stderr, flush=True)
    return opinions


def _trained(name: str, folder: Path) -> Classifier:
    certtrain.train(certtrain.load_preset("digits", NETWORKS[name] | TRAINING), folder / "run")
    return read_model(folder / "run/model.safetensors")


@torch.no_grad()
def _without_small(model: Classifier, smallest: float) -> Classifier:
    """The network with BatchNorm folded, and small weights set to zero."""
    folded = fold_batch_norm(model)
    for weight in folded.parameters():
        weight[weight.abs() < smallest] = 0.0
    return folded


def _certify(model: Classifier, images: ImageSet, method: str, eps: float) -> Verifier:
    def decide_one(number: int, path: Path) -> str:
        x, label = to_unit(images.images[number : number + 1]), images.labels[number : number + 1]
        return "unsat" if certtrain.certify(model, x, label, eps, method=method).certified.all() else "unknown"

    return decide_one


def _decide(onnx: Path, method: str, timeout: float) -> Verifier:
    imported = read_onnx(onnx)

    run = onnx_runner(onnx)

    def decide_one(number: int, path: Path) -> str:
        stated = read_property(path)
        found = decide(imported.network, imported.shape, stated, method=method, time_limit=timeout)
        if found.counterexample is not None:
            outputs = run(found.counterexample.float().view(1, *imported.shape))
            if not any(case.violated_by(outputs).all() for case in stated.cases):
                sys.exit(f"ONNX Runtime does not confirm the counterexample that {method} gives for {path.name}")
        return found.result

    return decide_one


def _marabou(python: Path, onnx: Path, timeout: float) -> Verifier:
    def decide_one(number: int, path: Path) -> str:
        command = [str(python), "-c", MARABOU, str(onnx), str(path), "--timeout", str(int(timeout))]
        try:  # Marabou does not always keep its own time limit
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout + 5)
        except subprocess.TimeoutExpired:
            return "unknown"
        words = [line for line in done.stdout.splitlines() if line in ("sat", "unsat", "TIMEOUT", "UNKNOWN")]
        if not words:
            sys.exit(f"Marabou does not answer for {path.name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return words[-1] if words[-1] in ("sat", "unsat") else "unknown"

    return decide_one


def _table(name: str, opinions: list[Opinion]) -> str:
    lines = [f"{name:<20}{'unsat':>8}{'sat':>8}{'unknown':>9}{'seconds':>10}{'slowest':>10}"]
    for judge in dict.fromkeys(opinion.judge for opinion in opinions):
        own = [opinion for opinion in opinions if opinion.judge == judge]
        counts, seconds = Counter(opinion.verdict for opinion in own), [opinion.seconds for opinion in own]
        numbers = "".join(f"{counts[word]:>{width}}" for word, width in (("unsat", 8), ("sat", 8), ("unknown", 9)))
        lines.append(f"{judge:<20}{numbers}{sum(seconds):>10.2f}{max(seconds):>10.2f}")
    return "\n".join(lines)


def _contradictions(opinions: list[Opinion]) -> list[str]:
    found = []
    for place in dict.fromkeys((opinion.network, opinion.point) for opinion in opinions):
        said = {opinion.judge: opinion.verdict for opinion in opinions if (opinion.network, opinion.point) == place}
        if {"sat", "unsat"} <= set(said.values()):
            found.append(f"{place[0]}, example {place[1]}: {said}")
    return found


if __name__ == "__main__":
    main()
