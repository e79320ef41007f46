"""certtrain init"""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Eps,
    Force,
    Overrides,
    PresetName,
    Seed,
    check_targets,
    resolve_preset,
)
from certtrain.epsilon import format_eps

if TYPE_CHECKING:
    from certtrain.preset import Scheme as SchemeName


class Scheme(StrEnum):
    """How weights start."""

    ibp = "ibp"
    kaiming = "kaiming"
    xavier = "xavier"
    orthogonal = "orthogonal"


def init(
    preset: PresetName = None,
    scheme: Annotated[Scheme | None, typer.Option(help="How weights start; the preset's if not given.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The model file; <preset>-<scheme>.safetensors if not given.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show all schemes side by side.")] = False,
    eps: Eps = None,
    seed: Seed = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Initialise a preset's network, save it, and show how its bounds grow from the input."""
    resolved = resolve_preset(preset, overrides, init=scheme and scheme.value, eps__max=eps, seed=seed)
    out = out or Path(f"{resolved.name}-{resolved.init}.safetensors")
    check_targets(force, out)
    from certtrain import render
    from certtrain.assemble import describe
    from certtrain.data import load_images
    from certtrain.inspection import inspect_initial
    from certtrain.modelfile import save_model

    with render.loading() as report:
        images = load_images(resolved.data.name, "train", data_dir=data_dir, on_progress=report)
    others: list[SchemeName] = [s.value for s in Scheme if s.value != resolved.init] if compare else []
    names = [resolved.init, *others]
    networks = [inspect_initial(resolved, images, name, resolved.eps.max) for name in names]
    note = f"initialised by the {resolved.init} scheme, not trained"
    save_model(out, networks[0].network, describe(resolved, images, note=note))
    if as_json:
        render.show_json({"model": str(out), "eps": resolved.eps.max, "schemes": [n.to_dict() for n in networks]})
        return
    render.show_records(networks[0])
    title = f"{resolved.name}: mean width over the input's at each ReLU, ε = {format_eps(resolved.eps.max)}"
    render.show_initial(networks, title)
    render.say(f"wrote {out}")
