"""What two processes do that train together: in a module of its own, since each of them imports it."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certtrain import resume, train
from certtrain.data import Batches
from certtrain.errors import RunError
from certtrain.spec.preset import Preset
from certtrain.training.batch_norm_refresh import BatchNormRefresh
from certtrain.training.context import RunContext
from certtrain.training.distributed import Group, process_group
from certtrain.training.events import Event, Note, Started, Stopped
from certtrain.training.step import Reading, Stepper
from certtrain.training.trainer import Trainer
from helpers.objective_oracles import EXAMPLES, given, oracles, preset_of
from helpers.oracles import inputs
from helpers.oracles import network as reference_network
from helpers.small_runs import small, stop_before
from helpers.small_steps import PER_EPOCH, SHAPE, batch, network, preset

RANKS = 2

SETTINGS: dict[str, dict[str, Any]] = {
    "clean": {},
    "centre": {"batch_norm_statistics": "centre"},
    "in parts": {"micro_batch": 2},
    "two losses": {"objective": {"name": "mtl-ibp", "attack.steps": 2, "attack.restarts": 2, "natural_share": 0.2}},
    "a latent attack": {"objective": {"name": "staps", "split": "conv2_relu", "latent_attack.steps": 2}},
    "a latent attack in parts": {"objective": {"name": "taps", "latent_attack.steps": 2}, "micro_batch": 2},
    "with L1": {"l1": 0.01},
    "with L1, in parts": {"l1": 0.01, "micro_batch": 2},
}

MOMENTS = [4, 15, 25]  # while ε is 0, in its ramp, and when it is whole


def stepped(settings: Preset, steps: list[int], group: Group) -> tuple[dict[str, Tensor], dict[str, Tensor], Reading]:
    """Weights, last gradient and reading after these steps, each rank with its part of a batch of 11."""
    stepper = Stepper(settings, network(settings), PER_EPOCH, group=group)
    part = slice(group.rank * 11 // group.size, (group.rank + 1) * 11 // group.size)
    for step in steps:
        x, labels = batch(step)
        stepper.run(step, x[part], labels[part], len(labels[part]) / 11)
    gradients = {name: p.grad for name, p in stepper.network.named_parameters() if p.grad is not None}
    return dict(stepper.network.state_dict()), gradients, stepper.read()


def not_finite(group: Group) -> tuple[int | None, str]:
    """What a step says that fails on the last rank alone."""
    settings = preset()
    stepper = Stepper(settings, network(settings), PER_EPOCH, group=group)
    x, labels = batch()
    part = slice(group.rank * 11 // group.size, (group.rank + 1) * 11 // group.size)
    if group.rank == group.size - 1:
        x = x.clone()
        x[10, 0, 0, 0] = torch.nan
    before = stepper.network.head.weight.clone()
    stepper.run(12, x[part], labels[part], len(labels[part]) / 11)
    assert torch.equal(before, stepper.network.head.weight)
    return stepper.read().failed, stepper.explain(12, x[part], labels[part])


def everything(group: Group) -> dict[str, Any]:
    """What two ranks and one should agree on."""
    torch.set_default_dtype(torch.float64)
    try:
        return {
            name: [stepped(preset(**changes), [moment], group) for moment in MOMENTS]
            + [stepped(preset(**changes), list(range(0, 30, 5)), group)]
            for name, changes in SETTINGS.items()
        } | {"not finite": not_finite(group)}
    finally:
        torch.set_default_dtype(torch.float32)


def referenced(group: Group) -> list[tuple[dict[str, Tensor], dict[str, float]]]:
    """Gradients and measures of a step of each reference, of whose examples each rank has its part."""
    torch.set_default_dtype(torch.float64)
    part, found = slice(group.rank * EXAMPLES // group.size, (group.rank + 1) * EXAMPLES // group.size), []
    for oracle in oracles():
        model, (x, labels) = reference_network(oracle.net), inputs(oracle.net)
        stepper = Stepper(preset_of(oracle), model, 10, group=group)
        stepper.objective = given(oracle, stepper.graph)
        stepper.run(0, x[part], labels[part], len(labels[part]) / EXAMPLES)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((gradients, stepper.read().sums))
    torch.set_default_dtype(torch.float32)
    return found


def among_ranks(group: Group) -> dict[str, Any]:
    """What only several ranks have."""
    mine = torch.tensor([1.0, 2.0]) * (group.rank + 1)

    def gradient(total: Callable[[Tensor], Tensor]) -> Tensor | None:
        leaf = mine.clone().requires_grad_()
        (total(leaf) * (group.rank + 1)).sum().backward()
        return leaf.grad

    order: list[int] = []
    found = {
        "sum": group.sum(mine),
        "gradient": gradient(group.sum),
        "compiled gradient": gradient(torch.compile(lambda leaf: group.sum(leaf), backend="eager", fullgraph=True)),
        "gathered": group.gather(mine),
        "agree": (group.agree(group.rank == 0), group.agree(group.rank == 1)),
        "on leader": group.on_leader(lambda: f"from {group.rank}"),
        "first text": (
            group.first_text(None),
            group.first_text("mine" if group.rank == 1 else None),
            group.first_text(str(group.rank)),
        ),
        "leader first": group.leader_first(lambda: order.append(group.rank) or time.monotonic()),
    }
    added = [mine.clone(), torch.ones(2, 3).T]
    group.sum_in_place(added)
    return found | {"added": added, "order": order}


def runs(group: Group, folder: Path) -> dict[str, Any]:
    """A run that two ranks stop, go on with and stop again; and one that cannot start."""
    events: list[Event] = []
    out, error = folder / "run", ""
    results = [
        train(small(), out, RunContext(group=group, should_stop=stop_before(13), emit=events.append)),
        resume(out, RunContext(group=group, should_stop=stop_before(5), emit=events.append)),
    ]
    try:
        train(small(), out, RunContext(group=group))
    except RunError as found:
        error = str(found)
    kept = [event for event in events if isinstance(event, Note | Started | Stopped)]
    return {"results": results, "events": kept, "error": error}


def refreshed(group: Group) -> list[Tensor]:
    """BatchNorm's running statistics over 40 images in batches of 11, of which each rank has every second."""
    images = torch.randint(0, 256, (40, *SHAPE), generator=torch.Generator().manual_seed(0)).byte()
    labels, model = torch.zeros(40, dtype=torch.int64), network(preset()).float().eval()
    batches = Batches(images, labels, batch_size=11, seed=0, rank=group.rank, ranks=group.size)
    BatchNormRefresh([model], batches, group).run()
    return [tensor for name, tensor in model.state_dict().items() if "running" in name]


def joined(rank: int, port: int) -> AbstractContextManager[Group]:
    """The group of all ranks, in a process that torchrun has not started."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    return process_group("cpu")


def dying(rank: int, port: int, folder: Path) -> None:
    """One rank of a run, in the sixth step of which the second rank ends."""

    def step(trainer: Trainer) -> None:
        if rank == 1 and trainer.progress.step == 5:
            os._exit(3)
        whole_step(trainer)

    whole_step = Trainer._step
    Trainer._step = step  # type: ignore[method-assign]
    with joined(rank, port) as group:
        train(small(), folder / "out", RunContext(group=group))


def work(rank: int, port: int, folder: Path) -> None:
    """One rank; what it found is left in the folder."""
    with joined(rank, port) as group:
        found = {"everything": everything(group), "among": among_ranks(group), "runs": runs(group, folder)}
        found |= {"refreshed": refreshed(group), "references": referenced(group)}
        assert (group.rank, group.size) == (rank, RANKS)
    torch.save(found, folder / f"{rank}.pt")
