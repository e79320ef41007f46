"""Published networks that certtrain did not train, certified over a data set: images of the test set in float32.

The files are those of the verification competition (benchmarks/foreign/README.md says where they come from); networks
whose file is not there are left out, and named. What each expects before its first layer is in NETWORKS. Every
certificate file is computed again by `certtrain check`.

python benchmarks/published.py --files ~/vnncomp --mnist data --cifar10 data --limit 100 --out published
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CIFAR10_MEAN, CIFAR10_STD = "0.4914,0.4822,0.4465", "0.2471,0.2435,0.2616"
SRI_STD = "0.2023,0.1994,0.2010"


class Network(NamedTuple):
    """A network: its file, data set and radius, and the options that say what it is given."""

    file: str
    data: str
    eps: str
    options: tuple[str, ...] = ()


NORMALIZED = ("--mean", CIFAR10_MEAN, "--std", CIFAR10_STD)
NETWORKS = (
    Network("22_mnist_fc/mnist-net_256x2.onnx", "mnist", "0.02"),
    Network("22_mnist_fc/mnist-net_256x4.onnx", "mnist", "0.02"),
    Network("25_cora_2024/mnist-point.onnx", "mnist", "0.01", ("--layout", "cwh")),
    Network("25_cora_2024/mnist-set.onnx", "mnist", "0.03", ("--layout", "cwh")),
    Network("25_cora_2024/mnist-trades.onnx", "mnist", "0.03", ("--layout", "cwh")),
    Network("21_eran/mnist_relu_9_200.onnx", "mnist", "0.015"),
    Network("21_eran/ffnnSIGMOID__Point_6x200.onnx", "mnist", "0.012"),
    Network("21_verivital/Convnet_avgpool.onnx", "mnist", "0.02"),
    Network("22_oval21/cifar_base_kw.onnx", "cifar10", "2/255", ("--mean", "0.485,0.456,0.406", "--std", "0.225")),
    Network("21_cifar10_resnet/resnet_2b.onnx", "cifar10", "1/255", NORMALIZED),
    Network(
        "22_sri_resnet_a/resnet_3b2_bn_mixup_adv_4.0_bs128_lr-1.onnx",
        "cifar10",
        "0.5/255",
        ("--mean", CIFAR10_MEAN, "--std", SRI_STD),
    ),
)


def main() -> None:
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(
        f"| network | ε | natural | under attack | certified in float32 | open | checked again | {arguments.method} |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for network in NETWORKS:
        path = arguments.files / network.file
        if path.is_file():
            print(_row(network, path, arguments), flush=True)
        else:
            print(f"{network.file} is not in {arguments.files}", file=sys.stderr)


def _row(network: Network, path: Path, arguments: argparse.Namespace) -> str:
    folder = {"mnist": arguments.mnist, "cifar10": arguments.cifar10}[network.data]
    out = arguments.out / f"{path.stem}.jsonl"
    options = [path, "--data", network.data, "--eps", network.eps, *network.options, "--method", arguments.method]
    options += ["--limit", arguments.limit, "--timeout", arguments.timeout, "--out", out, "--force"]
    data = [] if folder is None else ["--data-dir", folder]
    report = _certtrain("verify", *options, *data)
    checked = _certtrain("check", out, path, *data)
    shares = [report["natural_accuracy"], report["attacked_accuracy"], report["certified_accuracy"]]
    cells = [f"{share:.0%}" for share in shares] + [str(report["open"])]
    again = f"{checked['checked']} of {checked['examples']} hold"
    return f"| `{path.name}` | {network.eps} | {' | '.join(cells)} | {again} | {report['seconds']:.0f} s |"


def _certtrain(*words: object) -> dict[str, object]:
    command = [sys.executable, "-m", "certtrain", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--method", default="auto")
    parser.add_argument("--timeout", default="5s")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
