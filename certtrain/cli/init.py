"""certtrain init"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    DeviceName,
    Eps,
    Force,
    Overrides,
    PresetName,
    Seed,
    check_data,
    check_plots,
    check_targets,
    compute_device,
    png_file,
    resolve_preset,
)
from certtrain.spec.epsilon import format_eps

if TYPE_CHECKING:
    from certtrain.data import ImageSet
    from certtrain.diagnostics.growth import SchemeGrowth
    from certtrain.spec.preset import Preset
    from certtrain.spec.preset import Scheme as SchemeName

DEEPEST = 512  # layers of a depth sweep
FEW_SEEDS = 3
MANY, FEW = 256, 16  # examples looked at; deep networks take long


class Scheme(StrEnum):
    """How weights start."""

    ibp = "ibp"
    kaiming = "kaiming"
    xavier = "xavier"
    orthogonal = "orthogonal"


def _depths(text: str) -> tuple[int, ...]:
    """(2, 4, 8) from "2,4,8": in order, each once."""
    try:
        depths = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of depths; write it like 2,4,8,16") from error
    if len(depths) < 2:
        raise typer.BadParameter("a sweep needs two depths or more, like 2,4,8,16")
    if not 1 <= depths[0] <= depths[-1] <= DEEPEST:
        raise typer.BadParameter(f"depths go from 1 to {DEEPEST} layers")
    return tuple(depths)


Compare = Annotated[bool, typer.Option("--compare", help="Show all schemes side by side, over several seeds.")]
Depths = Annotated[
    Any,
    typer.Option(
        parser=_depths,
        metavar="N,N,…",
        help="Compare the schemes on plain networks of so many layers each, as wide as the preset's, without "
        "BatchNorm: is the growth exponential or constant?",
    ),
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help=f"How many seeds a comparison takes, from --seed on; {FEW_SEEDS} by default.")
]
OutFile = Annotated[
    Path | None,
    typer.Option(help="The model file; <preset>-<scheme>.safetensors if not given, and none in a comparison."),
]
Examples = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help=f"Look at the first so many examples; {MANY} if not given, {FEW} in a depth sweep."
    ),
]
PlotFile = Annotated[
    Path | None,
    typer.Option("--plot", parser=png_file, metavar="FILE.png", help="Draw growth against depth into this file."),
]
SchemeOption = Annotated[
    Scheme | None,
    typer.Option(help="How weights start; the preset's if not given. A comparison shows it first."),
]


def init(
    preset: PresetName = None,
    scheme: SchemeOption = None,
    out: OutFile = None,
    compare: Compare = False,
    sweep_depth: Depths = None,
    seeds: Seeds = None,
    plot: PlotFile = None,
    eps: Eps = None,
    seed: Seed = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    limit: Examples = None,
    device: DeviceName = Device.auto,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Initialise a preset's network, save it, and show how its bounds grow from the input.

    A comparison of the schemes writes no model file unless --out names one.
    """
    if seeds is not None and not (compare or sweep_depth):
        raise typer.BadParameter("several seeds are for --compare and --sweep-depth", param_hint="--seeds")
    if out is not None and sweep_depth:
        raise typer.BadParameter(
            "a depth sweep is of other networks than the preset's, so it writes no model", param_hint="--out"
        )
    resolved = resolve_preset(preset, overrides, init=scheme and scheme.value, eps__max=eps, seed=seed)
    check_data(resolved, data_dir)
    if not (compare or sweep_depth):
        out = out or Path(f"{resolved.name}-{resolved.init}.safetensors")
    check_targets(force, out, plot)
    from certtrain import render
    from certtrain.data import load_images
    from certtrain.network.source import resolve_module

    if plot is not None:
        check_plots()
    with render.loading() as report:
        images = load_images(resolved.data.name, "train", data_dir=data_dir, on_progress=report)
    resolved = resolve_module(resolved, images)
    numbers = range(resolved.seed, resolved.seed + (seeds or FEW_SEEDS))
    view = _View(resolved, images, numbers, limit, compute_device(device), plot, as_json)
    facts = view.sweep(sweep_depth) if sweep_depth else view.compare() if compare else view.show()
    if out is not None:
        _save(resolved, images, out)
    if as_json:
        common = {"preset": resolved.name, "model": out and str(out), "eps": resolved.eps.max}
        render.show_json(common | facts)
        return
    for path in filter(None, (out, plot)):
        render.say(f"wrote {path}")


@dataclass(frozen=True)
class _View:
    """What a look at initial networks needs. Each way to look shows and draws its numbers, and gives them for JSON."""

    preset: "Preset"
    images: "ImageSet"
    seeds: range
    limit: int | None
    place: str
    plot: Path | None
    as_json: bool

    def show(self) -> dict[str, Any]:
        """The preset's own network."""
        from certtrain import render
        from certtrain.diagnostics.findings import AT_START, ranked_findings
        from certtrain.diagnostics.growth import SchemeGrowth
        from certtrain.diagnostics.model_states import initial_network

        examples, preset = self._examples(MANY), self.preset
        network = initial_network(preset, self.images, preset.init, examples=examples, device=self.place)
        title = self._title("growth of the bounds before training", f"seed {preset.seed}")
        if not self.as_json:
            render.show_initial(network, title, ranked_findings(network.by_weights, AT_START))
        self._draw_growth([SchemeGrowth(preset.init, (network,))], title)
        return {"examples": examples, "schemes": [network.to_dict()]}

    def compare(self) -> dict[str, Any]:
        """The preset's network by all schemes."""
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
                device=self.place,
                on_progress=report,
            )
        title = self._title("growth of the bounds before training", self._seeds())
        if not self.as_json:
            render.show_compared(schemes, title)
        self._draw_growth(schemes, title)
        return {"examples": examples, "seeds": list(self.seeds), "schemes": [scheme.to_dict() for scheme in schemes]}

    def sweep(self, depths: Sequence[int]) -> dict[str, Any]:
        """Plain networks of several depths by all schemes."""
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
                device=self.place,
                on_progress=report,
            )
        layers = describe_plain(plain_preset(self.preset, self.images, depths[-1]))
        title = self._title(f"growth at the last ReLU of networks of {layers}", self._seeds())
        if not self.as_json:
            render.show_sweep(sweeps, title)
        if self.plot is not None:
            from certtrain.reports.plot import plot_sweep

            plot_sweep(self.plot, sweeps, title)
        facts = {"examples": examples, "seeds": list(self.seeds), "network": layers}
        return facts | {"schemes": [sweep.to_dict() for sweep in sweeps]}

    def _schemes(self) -> "list[SchemeName]":
        """The preset's own first."""
        own = self.preset.init
        return [own, *(scheme.value for scheme in Scheme if scheme.value != own)]

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
    from certtrain.network.modelfile import save_model

    network, _ = make_network(preset, images)
    save_model(out, network, describe(preset, images, note=f"initialised by the {preset.init} scheme, not trained"))
