"""certtrain init: initialise networks, and show how their bounds grow."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    DeviceOption,
    Eps,
    Force,
    Overrides,
    PlotFile,
    PresetName,
    Seed,
    check_data,
    check_targets,
    compute_device,
    resolve_preset,
)
from certtrain.spec.choices import Scheme
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:
    from certtrain.data import ImageSet
    from certtrain.diagnostics.growth import SchemeGrowth
    from certtrain.spec.preset import Preset

DEEPEST_PLAIN = 512  # layers of a network in a depth sweep
FEW_SEEDS = 3
MANY, FEW = 256, 16  # examples; deep networks take long


def _depths(text: str) -> tuple[int, ...]:
    """(2, 4, 8) from "2,4,8": sorted, without duplicates."""
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of depths; write it like 2,4,8,16") from error
    if len(depths) < 2:
        raise typer.BadParameter("a sweep needs two depths or more, like 2,4,8,16")
    if not 1 <= depths[0] <= depths[-1] <= DEEPEST_PLAIN:
        raise typer.BadParameter(f"depths go from 1 to {DEEPEST_PLAIN} layers")
    return tuple(depths)


@dataclass(frozen=True)
class SchemeOptions:
    """The network."""

    preset: PresetName = None
    scheme: Annotated[
        Scheme | None,
        typer.Option(help="Initialisation of the weights; the preset's if not given. A comparison shows it first."),
    ] = None
    eps: Eps = None
    seed: Seed = None
    overrides: Overrides = None

    def resolved(self) -> "Preset":
        """The preset, with what the options change. Raises PresetError."""
        return resolve_preset(self.preset, self.overrides, init=self.scheme, eps__max=self.eps, seed=self.seed)


@dataclass(frozen=True)
class SchemeComparison:
    """Comparisons."""

    compare: Annotated[
        bool, typer.Option("--compare", help="Show all initialisations side by side, over several seeds.")
    ] = False
    sweep_depth: Annotated[
        Any,
        typer.Option(
            parser=_depths,
            metavar="N,N,…",
            help="Compare the initialisations on plain networks of these depths, as wide as the preset's, without "
            "BatchNorm: is the growth exponential or constant?",
        ),
    ] = None
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help=f"Number of seeds in a comparison, starting with --seed; {FEW_SEEDS} if not given."),
    ] = None

    @property
    def several(self) -> bool:
        """Whether several networks are compared."""
        return bool(self.compare or self.sweep_depth)

    def check(self, out: Path | None) -> None:
        """Raise BadParameter for options that need a comparison, or that do not fit one."""
        if self.seeds is not None and not self.several:
            raise typer.BadParameter("it is for --compare and --sweep-depth", param_hint="--seeds")
        if out is not None and self.sweep_depth:
            raise typer.BadParameter(
                "a depth sweep uses other networks than the preset's, so it writes no model", param_hint="--out"
            )


@dataclass(frozen=True)
class InitData:
    """The data."""

    data_dir: DataDir = None
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Number of examples, starting with the first; {MANY} if not given, {FEW} in a depth sweep."
        ),
    ] = None
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class InitOutput:
    """What is written."""

    out: Annotated[
        Path | None,
        typer.Option(help="The model file; if not given, <preset>-<scheme>.safetensors, or none in a comparison."),
    ] = None
    plot: PlotFile = None
    force: Force = False
    as_json: AsJson = False

    def model_file(self, preset: "Preset", comparison: bool) -> Path | None:
        """Where the model is written; None if it is not."""
        return self.out or (None if comparison else Path(f"{preset.name}-{preset.init}.safetensors"))


def init_command(network: SchemeOptions, comparison: SchemeComparison, data: InitData, output: InitOutput) -> None:
    """Initialise a preset's network, save it, and show how its bounds grow from layer to layer.

    A comparison of initialisations writes no model file unless --out names one.
    """
    comparison.check(output.out)
    preset = network.resolved()
    check_data(preset, data.data_dir)
    out = output.model_file(preset, comparison.several)
    check_targets(output.force, out, output.plot)
    preset, images = _loaded(preset, data, output)
    numbers = _show(preset, images, comparison, data, output)
    if out is not None:
        _save(preset, images, out)
    _finish(preset, out, numbers, output)


def _loaded(preset: "Preset", data: InitData, output: InitOutput) -> "tuple[Preset, ImageSet]":
    """The training images, and the preset, in which a network from the user's code is replaced by its layers."""
    from certtrain import render
    from certtrain.data import load_images
    from certtrain.network.source import resolve_module

    with render.loading() as report:
        images = load_images(preset.data.name, "train", data_dir=data.data_dir, on_progress=report)
    return resolve_module(preset, images), images


def _show(
    preset: "Preset", images: "ImageSet", comparison: SchemeComparison, data: InitData, output: InitOutput
) -> dict[str, Any]:
    """Show what the options choose. Returns its numbers for JSON."""
    seeds = range(preset.seed, preset.seed + (comparison.seeds or FEW_SEEDS))
    view = _View(preset, images, seeds, data.limit, compute_device(data.device), output.plot, output.as_json)
    if comparison.sweep_depth:
        return view.sweep(comparison.sweep_depth)
    return view.compare() if comparison.compare else view.show()


def _finish(preset: "Preset", out: Path | None, numbers: dict[str, Any], output: InitOutput) -> None:
    from certtrain import render

    if output.as_json:
        common = {"preset": preset.name, "model": out and str(out), "eps": preset.eps.max}
        render.show_json(common | numbers)
        return
    for path in filter(None, (out, output.plot)):
        render.say(f"wrote {path}")


@dataclass(frozen=True)
class _View:
    """Shows and draws networks before training. Each method returns its numbers for JSON."""

    preset: "Preset"
    images: "ImageSet"
    seeds: range
    limit: int | None
    device: str
    plot: Path | None
    as_json: bool

    def show(self) -> dict[str, Any]:
        """The preset's own network."""
        from certtrain import render
        from certtrain.diagnostics.findings import AT_START, ranked_findings
        from certtrain.diagnostics.growth import SchemeGrowth
        from certtrain.diagnostics.model_states import initial_network

        examples, preset = self._examples(MANY), self.preset
        network = initial_network(preset, self.images, preset.init, examples=examples, device=self.device)
        title = self._title("growth of the bounds before training", f"seed {preset.seed}")
        if not self.as_json:
            render.show_initial(network, title, ranked_findings(network.by_weights, AT_START))
        self._draw_growth([SchemeGrowth(preset.init, (network,))], title)
        return {"examples": examples, "schemes": [network.to_dict()]}

    def compare(self) -> dict[str, Any]:
        """The preset's network by every initialisation."""
        from certtrain import render
        from certtrain.diagnostics.growth import compare_schemes

        examples = self._examples(MANY)
        with self._progress() as report:
            schemes = compare_schemes(
                self.preset,
                self.images,
                self._schemes(),
                self.seeds,
                examples=examples,
                device=self.device,
                on_progress=report,
            )
        title = self._title("growth of the bounds before training", self._seeds())
        if not self.as_json:
            render.show_compared(schemes, title)
        self._draw_growth(schemes, title)
        return {"examples": examples, "seeds": list(self.seeds), "schemes": [scheme.to_dict() for scheme in schemes]}

    def sweep(self, depths: Sequence[int]) -> dict[str, Any]:
        """Plain networks of several depths by every initialisation."""
        from certtrain import render
        from certtrain.diagnostics.growth import describe_plain, plain_preset, sweep_depth

        examples = self._examples(FEW)
        with self._progress() as report:
            sweeps = sweep_depth(
                self.preset,
                self.images,
                self._schemes(),
                self.seeds,
                depths,
                examples=examples,
                device=self.device,
                on_progress=report,
            )
        layers = describe_plain(plain_preset(self.preset, self.images, depths[-1]))
        title = self._title(f"growth at the last ReLU of networks of {layers}", self._seeds())
        if not self.as_json:
            render.show_sweep(sweeps, title)
        if self.plot is not None:
            from certtrain.reports.plot import plot_sweep

            plot_sweep(self.plot, sweeps, title)
        numbers = {"examples": examples, "seeds": list(self.seeds), "network": layers}
        return numbers | {"schemes": [sweep.to_dict() for sweep in sweeps]}

    def _schemes(self) -> list[Scheme]:
        """All of them, the preset's own first."""
        own = self.preset.init
        return [own, *(scheme for scheme in get_args(Scheme) if scheme != own)]

    def _examples(self, usual: int) -> int:
        return min(self.limit or usual, len(self.images))

    def _seeds(self) -> str:
        first, last = self.seeds[0], self.seeds[-1]
        return f"seed {first}" if first == last else f"seeds {first} to {last}"

    def _title(self, what: str, seeds: str) -> str:
        return f"{self.preset.name}: {what}, ε = {format_eps(self.preset.eps.max)}, {seeds}"

    def _progress(self) -> "AbstractContextManager[Callable[[int, int], None]]":
        from certtrain import render

        return render.progress("networks")

    def _draw_growth(self, schemes: "Sequence[SchemeGrowth]", title: str) -> None:
        if self.plot is not None:
            from certtrain.reports.plot import plot_growth

            plot_growth(self.plot, schemes, title)


def _save(preset: "Preset", images: "ImageSet", out: Path) -> None:
    from certtrain.network.assembly import describe, make_network
    from certtrain.network.modelfile import write_model

    network, _ = make_network(preset, images)
    write_model(out, network, describe(preset, images, note=f"initialised by the {preset.init} scheme, not trained"))
