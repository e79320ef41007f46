"""The compiled step: the same numbers as the reference's, one graph for all phases, and when it is made."""

import logging
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from certtrain import train
from certtrain.bounds.box import input_box
from certtrain.bounds.methods import method_named
from certtrain.bounds.supported import checked_graph
from certtrain.cli.stopping import Stopper
from certtrain.diagnostics.layer_states import relu_units
from certtrain.errors import DeviceError
from certtrain.network.models import InputSpec, build_model
from certtrain.runs.checkpoint import RunFolder
from certtrain.spec.preset import Preset, load_preset
from certtrain.training.compilation import Compiler, Wrap, check_compile, has_compiler, will_compile
from certtrain.training.events import Event, Stopped
from certtrain.training.schedules import ActiveTerms, Controls
from certtrain.training.step import Stepper
from helpers.oracles import EPS, EVALUATED, LOSSES, TRAINED, assert_close, below, inputs, network, without_own_column
from helpers.small_runs import frequent
from helpers.small_runs import small as tiny_run

needs_compiler = pytest.mark.skipif(not has_compiler("cpu"), reason="there is no C++ compiler")
quiet = pytest.mark.filterwarnings("ignore")  # torch's own, of its internals, while it compiles
NO_COMPILER = {"cpp.cxx": ("no-such-compiler",)}  # pytest's own way to set it would delete it at the end
# The graph of the forward pass, or those of both passes, run by PyTorch: no C++ is made of them, which takes longest.
FORWARD_ONLY, GRAPHS_ONLY = "eager", "aot_eager"
# C++ of one network takes up to half a minute where nothing is cached. The residual one has every layer of the
# reference's networks, and linear bounds are made of interval bounds. Of the others the graphs are enough.
STEPPED = [("cnn4_bn", GRAPHS_ONLY), ("residual_bn", "inductor")]
BOUNDED = [("cnn4_bn", "IBP", GRAPHS_ONLY), ("residual_bn", "CROWN-IBP", "inductor")]


# --- the reference's values ------------------------------------------------------------------------------


@quiet
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("net", "backend"), STEPPED)
def test_a_compiled_training_step_gives_the_references_values(net: str, backend: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    preset = load_preset("digits", {"eps.max": "8/255"})
    model, (x, labels) = network(net).train(), inputs(net)
    stepper = Stepper(preset, model, 10, compile=True)
    assert stepper.compiler is not None
    compiled = stepper.compiler.use(lambda wrap: wrap(stepper._loss))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _, eps in (case for case in TRAINED if case[0] == net):
        model.load_state_dict(start)
        model.zero_grad()
        weight = 0.5 * (1 - EPS[eps] / (8 / 255))
        values = (max(EPS[eps], 1e-6), float(EPS[eps] > 0), weight, weight, 0.0)
        controls = Controls(*torch.tensor(values, dtype=torch.float64).unbind())
        active = ActiveTerms(regularizers=True, fading=False)
        total, measured = compiled(x, labels, controls, active, None, ())
        total.backward()
        expected = below(net, f"train/eps={eps}/")
        names = {
            "robust_ce": "robust_loss",
            "natural_ce": "natural_loss",
            "loss": "loss",
            "tightness": "tightness_loss",
        }
        names["relu_balance"] = "relu_balance_loss"
        assert_close({key: measured[name] for key, name in names.items()}, {key: expected[key] for key in LOSSES})
        gradients = below(net, f"train/eps={eps}/grad/")
        largest = max(gradient.abs().max().item() for gradient in gradients.values())
        assert_close({name: p.grad for name, p in model.named_parameters()}, gradients, scale=largest)
        if statistics := below(net, f"train/eps={eps}/after/"):
            assert_close(dict(model.named_buffers()), statistics)


@quiet
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("net", "method", "backend"), BOUNDED)
def test_compiled_bounds_give_the_references_values(
    net: str, method: str, backend: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model, (x, labels) = network(net), inputs(net)
    graph, bound = checked_graph(model), method_named(method.lower())

    def bounds(x: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        found = bound(graph, input_box(x, eps))
        return *found.ends(), found.margins(labels)

    fast = Compiler(pytest.fail).use(lambda compiled: compiled(bounds))
    for eps in (eps for name, eps, by in EVALUATED if (name, by) == (net, method)):
        with torch.no_grad():
            lower, upper, margins = fast(x, torch.tensor(EPS[eps], dtype=torch.float64))
        found = {"logits_lower": lower, "logits_upper": upper, "margins_lower": without_own_column(margins, labels)}
        expected = below(net, f"eval/eps={eps}/{method}/")
        assert_close(found, {name: expected[name] for name in found})


def test_cuda_graphs_change_nothing_without_a_gpu():
    x = torch.linspace(-1, 1, 8)
    compiler = Compiler(pytest.fail, cuda_graphs=True)
    assert compiler.mode == "reduce-overhead"
    assert torch.equal(compiler.use(lambda compiled: compiled(torch.relu)(x)), x.relu())


# --- a run of steps --------------------------------------------------------------------------------------


# A block with and one without a convolution beside it, and a grouped one.
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [8]},
    "cnn": {"channels": [4], "kernels": [3], "strides": [2], "linear": [8]},
    "wide-resnet": {"stem": 2, "widen_factor": 1, "blocks": [2], "strides": [2], "linear_size": 8},
    "resnext": {"stem": 4, "bottleneck_width": 2, "blocks": [1], "strides": [2], "linear_size": 8},
}


def small(network: str = "cnn", bounds: dict[str, object] | None = None, **changes: object) -> Preset:
    settings: dict[str, Any] = {"eps.start": 2, "eps.length": 2, "train.epochs": 5, "train.batch_size": 12}
    settings["model.name"] = network
    settings |= {f"model.{name}": value for name, value in NETWORKS[network].items()}
    settings |= {f"objective.{name}": value for name, value in (bounds or {}).items()}
    return load_preset("digits", settings | {f"train.{name}": value for name, value in changes.items()})


def stepped(preset: Preset, *, compile: bool) -> tuple[nn.Module, dict[str, float]]:
    """A small network in float64 after a step at zero ε, one in the ramp, a smaller one, and one after the ramp."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_model(preset.model, InputSpec((1, 8, 8), 10, (0.5,), (0.25,))).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(10, (12,), generator=generator)
    stepper = Stepper(preset, network.to(memory_format=torch.channels_last), 10, compile=compile)
    for step, size in ((5, 12), (15, 12), (19, 7), (35, 12)):
        stepper.run(step, x[:size], labels[:size])
    return network, stepper.read().sums


@quiet
@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "statistics", "bounds", "graphs", "backend"),
    [
        ("cnn", "clean", {}, 1, FORWARD_ONLY),  # the reference's values above are those of C++
        ("wide-resnet", "clean", {}, 1, FORWARD_ONLY),
        ("resnext", "centre", {}, 1, FORWARD_ONLY),
        ("mlp", "clean", {"name": "crown-ibp"}, 2, "inductor"),  # without linear bounds after the ramp
        ("mlp", "centre", {"name": "crown-ibp", "loss_fusion": False}, 2, GRAPHS_ONLY),
    ],
)
def test_compiled_and_eager_steps_are_equal_and_one_graph_serves_every_phase(
    network: str,
    statistics: str,
    bounds: dict[str, object],
    graphs: int,
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    preset = small(network, bounds, batch_norm_statistics=statistics)
    (model, sums), (twin, others) = (stepped(preset, compile=compile) for compile in (True, False))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert not torch._dynamo.utils.counters["graph_break"]
    for name in ("tightness_loss", "relu_balance_loss"):
        assert sums.pop(name) >= others.pop(name) * (1 - 1e-9)  # the eager step leaves out what has no weight
    sums.pop("layers_without_balance"), others.pop("layers_without_balance")
    robust, other = sums.pop("robust_loss"), others.pop("robust_loss")
    assert robust == pytest.approx(other, rel=1e-4 if bounds else 1e-9)  # nor linear bounds, while ε is zero
    assert sums == pytest.approx(others, rel=1e-9)
    for (name, mine), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-7, atol=1e-9), name


@quiet
@needs_compiler
@pytest.mark.slow
def test_a_compiler_that_fails_is_done_without():
    torch.compiler.reset()
    reasons: list[str] = []
    compiler = Compiler(reasons.append)

    def double(x: Tensor) -> Tensor:
        return torch.sin(x) * 2 + 12345

    with torch._inductor.config.patch(NO_COMPILER):
        for _ in range(2):
            found = compiler.use(lambda compiled: compiled(double)(torch.ones(3)))
            assert torch.equal(found, torch.sin(torch.ones(3)) * 2 + 12345)
    assert len(reasons) == 1
    assert reasons[0].startswith("torch.compile failed")


@quiet
@needs_compiler
@pytest.mark.slow
def test_a_compiler_that_fails_in_the_backward_pass_is_done_without():
    torch.compiler.reset()
    reasons: list[str] = []
    compiler = Compiler(reasons.append)

    def cube(x: Tensor) -> Tensor:
        return (torch.sin(x) ** 3 + 54321).sum()

    def gradient(compiled: Wrap) -> Tensor | None:
        leaf = torch.ones(3, requires_grad=True)
        total = compiled(cube)(leaf)
        with torch._inductor.config.patch(NO_COMPILER):
            total.backward()
        return leaf.grad

    one = torch.ones(3)
    for _ in range(2):
        torch.testing.assert_close(compiler.use(gradient), 3 * torch.sin(one) ** 2 * torch.cos(one))
    assert len(reasons) == 1
    assert reasons[0].startswith("torch.compile failed")


# --- a stop while the step is compiled -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reached", "reason"),
    [
        ("this process", "interrupted"),
        ("the compiler", "interrupted"),
        ("the end of the time", "the time budget is spent"),
    ],
)
def test_a_stop_ends_the_compilation_at_once_and_keeps_the_run(
    reached: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("certtrain.training.compilation.has_compiler", lambda device: True)
    monkeypatch.setattr("certtrain.training.trainer.WORTH_TIMING", 0)
    stop, events = Stopper(None, on_interrupt=lambda: None), list[Event]()

    def compiled(*anything: object, **options: object) -> None:
        if reached == "the end of the time":
            time.sleep(60)
            pytest.fail("the compilation went on")
        if reached == "this process":
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the compilation went on")
        stop.interrupted = True
        raise torch._dynamo.exc.TorchDynamoException("the compiler was ended by a signal")

    monkeypatch.setattr(torch, "compile", compiled)

    @contextmanager
    def interruptible() -> Iterator[None]:
        if reached == "the end of the time":  # it comes while the step is compiled
            stop.seconds = time.monotonic() - stop.start + 0.05
        with stop.at_once():
            yield

    context = frequent(should_stop=stop.reason, emit=events.append, interruptible=interruptible)
    try:
        assert train(tiny_run(train__compile="on"), tmp_path / "run", context) is None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert isinstance(events[-1], Stopped)
    assert (events[-1].reason, events[-1].step) == (reason, 0)
    assert events[-1].seconds_left is not None, "by the estimate from before the first step"
    assert events[-1].estimated
    assert len(RunFolder(tmp_path / "run").checkpoints()) == 1
    assert not stop.raises


def test_an_interrupt_of_python_itself_is_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("certtrain.training.compilation.has_compiler", lambda device: True)
    monkeypatch.setattr(torch, "compile", lambda *anything, **options: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(train__compile="on"), tmp_path / "run", frequent())


# --- when a step is compiled -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "steps", "compiles", "says"),
    [
        ("off", 10**9, False, "not compiled, as chosen"),
        ("on", 1, True, "compiled, as chosen"),
        ("auto", 400, False, ""),
        ("auto", 1000, False, "not compiled: that takes up to a minute, and saves about 12 s in this run"),
        ("auto", 4999, False, "not compiled: that takes up to a minute, and saves about 1 min in this run"),
        ("auto", 5001, True, "compiled: that takes up to a minute, and saves about 1 min in this run"),
        ("auto", 10**5, True, "compiled: that takes up to a minute, and saves about 20 min in this run"),
    ],
)
def test_the_choice_follows_from_the_length_of_the_run(
    choice: str, steps: int, compiles: bool, says: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("certtrain.training.compilation.has_compiler", lambda device: True)
    decision, reason = will_compile(choice, steps=steps, relu_inputs=10**6, device="cpu")
    assert decision == compiles
    assert reason.startswith(says)
    assert bool(reason) == bool(says), "what saves next to nothing is not mentioned"


def test_without_a_compiler_auto_trains_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    decision, reason = will_compile("auto", steps=10**6, relu_inputs=10**6, device="cpu")
    assert not decision
    assert "needs a C++ compiler" in reason
    with pytest.raises(DeviceError, match="install it, or choose --compile off"):
        check_compile("on", "cpu")


def test_relu_units_are_counted():
    preset = load_preset("mnist-cpu")
    network = build_model(preset.model, InputSpec((1, 28, 28), 10, (0.5,), (0.25,)))
    before = network.state_dict()["conv1_bn.running_mean"].clone()
    assert relu_units(network, torch.rand(3, 1, 28, 28)) == 16 * 14 * 14 + 32 * 7 * 7 + 100
    assert torch.equal(network.state_dict()["conv1_bn.running_mean"], before)


def test_torchs_warning_about_a_missing_gpu_does_not_stand_between_our_lines(caplog: pytest.LogCaptureFixture):
    Compiler(lambda reason: None)
    log = logging.getLogger("torch.utils.cpp_extension")
    log.warning("No CUDA runtime is found, using CUDA_HOME='/usr/local/cuda'")
    log.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
