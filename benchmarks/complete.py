"""How many examples each method alone decides, and how long it takes for each.

Every example is attacked. Those that the attack leaves open are bounded by each method, or decided by complete
verification within the timeout. benchmarks/adversarial.py trains networks for this.

python benchmarks/complete.py pgd.safetensors --data-dir data --limit 200 --timeout 30
"""

import argparse
import statistics
from pathlib import Path

from certtrain.attack import PGD
from certtrain.bounds.methods import METHODS
from certtrain.network.assembly import load_split
from certtrain.network.modelfile import read_model
from certtrain.runtime.allocator import keep_freed_memory
from certtrain.spec.epsilon import parse_eps
from certtrain.verification.cascade import Limits
from certtrain.verification.complete import COMPLETE
from certtrain.verification.results import ExampleResult, count
from certtrain.verification.steps import ATTACK, INFERENCE
from certtrain.verification.verify import verify


def main() -> None:
    arguments = _arguments()
    keep_freed_memory()
    model = read_model(arguments.model)
    images = load_split(model.metadata, arguments.split, arguments.data_dir).take(arguments.limit)
    eps = model.metadata.eps if arguments.eps is None else parse_eps(arguments.eps)
    print("| method | certified | falsified | misclassified | open | decided | s/example, median | slowest |")
    print("|---|---|---|---|---|---|---|---|")
    for method in arguments.methods:
        results: dict[int, ExampleResult] = {}
        verify(
            model, images, eps, attack=PGD(restarts=arguments.restarts), method=method,
            limits=Limits(timeout=arguments.timeout),
            on_examples=lambda done, known=results: known.update({result.index: result for result in done}),
        )  # fmt: skip
        print(_row(method, list(results.values())), flush=True)


def _row(method: str, results: list[ExampleResult]) -> str:
    counts = count(results)
    cells = [counts[name] for name in ("certified", "falsified", "misclassified", "open")]
    spent = [sum(_bounding(result)) for result in results if _bounding(result)] or [0.0]
    decided = 1 - counts["open"] / len(results)
    times = f"{statistics.median(spent):.3g} | {max(spent):.3g}"
    return f"| {method} | {' | '.join(map(str, cells))} | {decided:.1%} | {times} |"


def _bounding(result: ExampleResult) -> list[float]:
    """The seconds of the steps that are neither inference nor attack."""
    return [seconds for name, seconds in result.tried.items() if name not in (INFERENCE, ATTACK)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--eps")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for each example")
    parser.add_argument("--restarts", type=int, default=1, help="restarts of the attack")
    parser.add_argument("--methods", nargs="+", default=[*METHODS, COMPLETE], choices=[*METHODS, COMPLETE, "auto"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
