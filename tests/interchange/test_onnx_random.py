"""Random ONNX graphs: what is read computes what ONNX Runtime does and has bounds that hold; the rest is refused."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from certtrain import output_bounds
from certtrain.errors import UnsupportedLayer
from certtrain.interchange.onnxfile import Imported, read_onnx
from helpers.sampling import points_inside

onnx = pytest.importorskip("onnx", reason='ONNX is not installed: pip install "certtrain[onnx]"')
runtime = pytest.importorskip("onnxruntime", reason='ONNX is not installed: pip install "certtrain[onnx]"')

GRAPHS, PARTS = 320, 8
FIRST = 10_000  # the first seed


def values(path: Path, free: int, seed: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Inputs and ONNX Runtime's outputs for them; None if it does not run the graph."""
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        sides = [side if isinstance(side, int) else free for side in given.shape]
        x = torch.randn(sides, generator=torch.Generator().manual_seed(seed))
        x = x.double() if given.type == "tensor(double)" else x
        return x, torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])
    except Exception:  # ONNX Runtime's own, which have no common base: it lacks some operators of some versions
        return None


def assert_bounded(found: Imported, x: torch.Tensor, seed: int) -> None:
    network, x = found.network.double(), x.double()
    for method in ("ibp", "crown-ibp", "crown"):
        lower, upper = output_bounds(network, x, 0.1, method=method, clip=None)
        with torch.no_grad():
            for point in points_inside(x - 0.1, x + 0.1, count=6):
                outputs = network(point)
                slack = 1e-7 * (1 + outputs.abs().amax())
                assert bool(((lower - slack <= outputs) & (outputs <= upper + slack)).all()), f"seed {seed}, {method}"


def outcome(seed: int, folder: Path) -> str:
    """What came of the graph of that seed."""
    from helpers.random_onnx import drawn

    path, made = drawn(seed, folder)
    ran = values(path, made.draw.choice([1, 3]), seed)
    if ran is None or not bool(ran[1].isfinite().all()):
        return "not run"
    try:
        found = read_onnx(path)
    except UnsupportedLayer:
        return "refused"
    x, expected = ran[0].reshape(-1, *found.shape), ran[1]
    outputs = found.network(x).detach()
    assert outputs.numel() == expected.numel(), f"seed {seed}"
    slack = 1e-4 * max(1.0, float(expected.abs().max()))
    assert bool(((outputs.flatten() - expected.flatten()).abs() <= slack).all()), f"seed {seed}, opset {made.opset}"
    assert_bounded(found, x, seed)
    return "read"


@pytest.mark.parametrize("part", range(PARTS))
def test_a_random_graph_is_read_as_what_it_computes_or_refused(part: int, tmp_path: Path) -> None:
    size = GRAPHS // PARTS
    first = FIRST + part * size
    print(f"seeds {first} to {first + size - 1}")  # shown where it fails
    counts = Counter(outcome(seed, tmp_path) for seed in range(first, first + size))
    assert counts["read"] >= 0.5 * size  # some have numbers, or a part of the batch, that are always refused
    assert counts["not run"] <= 0.15 * size
