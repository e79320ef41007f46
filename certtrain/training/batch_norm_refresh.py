"""BatchNorm's running statistics, computed anew over the whole training set.

The steps of an epoch leave a moving average of the statistics that BatchNorm had
while the weights changed, and an average of networks has an average of those.
What is computed here belongs to the weights as they are. It is a function of the
network, the images and the batch size alone, to the last bit, whatever the number
of processes.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from certtrain.bounds.graph import LayerGraph
from certtrain.bounds.plain import plain_pass
from certtrain.bounds.statistics import BatchNorm, Statistics, batch_statistics, pooled_moments
from certtrain.bounds.supported import checked_graph
from certtrain.data import Batches
from certtrain.runtime.precision import tensor_cores
from certtrain.training.distributed import Group

NamedBatchNorm = tuple[str, BatchNorm]


class BatchNormRefresh:
    """Computes the running statistics of networks of one architecture, the first of which is trained.

    Each pass takes the images without augmentation in whole batches, by turns on the ranks of `group`.
    """

    def __init__(self, networks: Iterable[nn.Module], batches: Batches, group: Group) -> None:
        self.graphs = [checked_graph(network) for network in networks]
        self.batches, self.group = batches, group

    def run(self) -> None:
        """Compute the statistics of all networks, on all ranks together: a forward pass over the set for each.

        A network with the weights of the first, as an average has before it begins, takes its statistics.
        """
        first, *others = self.graphs
        self._refresh(first)
        for graph in others:
            if _same_weights(first, graph):
                _copy_statistics(first, graph)
            else:
                self._refresh(graph)

    @torch.no_grad()
    @tensor_cores(False)
    def _refresh(self, graph: LayerGraph) -> None:
        calls = _batch_norm_calls(graph)
        if not calls:
            return
        moments = self._moments(graph, calls)
        for layer in dict.fromkeys(layer for _, layer in calls):
            parts = [moments[name] for name, found in calls if found is layer]
            set_running_statistics(layer, *pooled_moments(*torch.cat(parts).unbind(1)))

    def _moments(self, graph: LayerGraph, calls: list[NamedBatchNorm]) -> dict[str, Tensor]:
        """Size, mean and biased variance (N, 3, C) in each of the N batches, by the names of the calls."""
        channels = [layer.num_features for _, layer in calls]
        batches, device = self.batches.steps_per_epoch, next(calls[0][1].buffers()).device
        rows = torch.zeros(batches, 3, sum(channels), dtype=torch.float64, device=device)
        for step in range(self.group.rank, batches, self.group.size):
            x = self.batches.plain_batch(step).contiguous(memory_format=torch.channels_last)
            taken = plain_pass(graph, x, statistics=batch_statistics).statistics
            rows[step] = torch.cat([row_of(taken[name]) for name, _ in calls], dim=1)
        # Each batch is one rank's, and zero on the others, so the sum has the same bits for any number of ranks.
        columns = torch.split(self.group.sum(rows), channels, dim=2)
        return {name: column for (name, _), column in zip(calls, columns, strict=True)}


def _batch_norm_calls(graph: LayerGraph) -> list[NamedBatchNorm]:
    """The calls of BatchNorm layers that keep running statistics, each by its name."""
    layers = [(call.name, call.layer) for call in graph.calls if isinstance(call.layer, BatchNorm)]
    return [(name, layer) for name, layer in layers if layer.running_mean is not None]


def row_of(taken: Statistics) -> Tensor:
    """Size, mean and biased variance (3, C) of a batch's statistics."""
    assert taken.size is not None  # they are a batch's
    return torch.stack([torch.full_like(taken.mean, float(taken.size)), taken.mean, taken.variance])


def set_running_statistics(layer: BatchNorm, mean: Tensor, variance: Tensor, size: Tensor) -> None:
    """Set them to a mean and a biased variance (C,) of `size` (C,) values; as in torch, the unbiased one is kept."""
    for buffer, value in ((layer.running_mean, mean), (layer.running_var, variance * (size / (size - 1)))):
        assert buffer is not None  # by _batch_norm_calls
        buffer.copy_(value)


def _same_weights(one: LayerGraph, other: LayerGraph) -> bool:
    pairs = zip(_parameters(one), _parameters(other), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def _parameters(graph: LayerGraph) -> Iterator[nn.Parameter]:
    return (parameter for call in graph.calls for parameter in call.layer.parameters())


def _copy_statistics(source: LayerGraph, target: LayerGraph) -> None:
    for call, twin in zip(source.calls, target.calls, strict=True):
        if isinstance(call.layer, BatchNorm):
            twin.layer.load_state_dict(call.layer.state_dict())
