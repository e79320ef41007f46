"""certtrain verify"""

from pathlib import Path
from typing import Annotated

import typer

from certtrain.cli.options import (
    AsJson,
    DataDir,
    Device,
    DeviceName,
    Eps,
    Force,
    Limit,
    ModelFile,
    Split,
    check_targets,
    open_model,
    open_split,
)


def verify(
    model: ModelFile,
    eps: Eps = None,
    data_dir: DataDir = None,
    split: Annotated[Split, typer.Option(help="Which part of the data.")] = Split.test,
    limit: Limit = None,
    pgd_steps: Annotated[int, typer.Option(min=1, help="Steps of the attack.")] = 20,
    pgd_restarts: Annotated[int, typer.Option(min=1, help="Random starts of the attack.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the attack's random starts.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at a time.")] = 200,
    points: Annotated[Path | None, typer.Option(help="Write a JSON line for each example to this file.")] = None,
    device: DeviceName = Device.auto,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Natural, attacked and certified accuracy of a model: a bracket around its robust accuracy."""
    check_targets(force, points)
    network = open_model(model, device)
    images = open_split(network, split, data_dir, limit)
    from certtrain import render
    from certtrain.attack import PGD
    from certtrain.verify import Point, to_json_lines
    from certtrain.verify import verify as verify_model

    found: list[Point] = []
    radius = network.metadata.eps if eps is None else eps
    attack = PGD(pgd_steps, pgd_restarts, seed)
    with render.progress("verifying") as report:

        def on_points(batch: list[Point]) -> None:
            found.extend(batch)
            report(len(found), len(images))

        result = verify_model(network, images, radius, attack=attack, batch_size=batch_size, on_points=on_points)
    if as_json:
        render.show_json({"model": str(model), **result.to_dict()})
    else:
        render.show_report(result)
    if points is not None:
        to_json_lines(points, found)
