"""Steps without the inactive channels: a smaller network takes the steps of the whole one.

Training by interval bounds leaves many channels inactive. Where the upper bound of a ReLU's input is at most zero at
every place and for every example of a batch, the channel gives zeros, and no weight that it has or that reads it has a
gradient. So a step without the channel changes all other weights as the whole step does, up to rounding. Optimisers
without weight decay leave the channel's weights where they are too, once their moments have faded.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from certtrain.bounds.chunks import inference_work
from certtrain.bounds.statistics import BatchNorm, pooled_moments
from certtrain.bounds.supported import checked_graph
from certtrain.bounds.trace import BoundTrace
from certtrain.network.initialization import Weighted
from certtrain.spec.preset import EpsSection
from certtrain.training.batch_norm_refresh import row_of, set_running_statistics
from certtrain.training.step import Stepper

LOOK_EVERY, LOOK_EXAMPLES = 5, 5000  # epochs between two looks at all channels; training images that a look takes
STATISTICS_EXAMPLES = 1000  # training images for the running statistics of channels that are left out
WORTH_IT = 0.8  # the largest share of the work that is worth compiling the step again

Kept = dict[str, list[int]]  # the channels or units that are kept, by the names of their ReLU layers


@dataclass(frozen=True)
class Part:
    """The part of a tensor that belongs to the kept channels: some rows, and some columns; None means all."""

    rows: Tensor | None
    columns: Tensor | None

    def of(self, whole: Tensor) -> Tensor:
        """A copy of the part."""
        chosen = whole if self.rows is None else whole.index_select(0, self.rows)
        return chosen.clone() if self.columns is None else chosen.index_select(1, self.columns)

    def put(self, part: Tensor, whole: Tensor) -> None:
        """Write the part into the whole tensor."""
        if self.columns is None or self.rows is None:
            dimension, index = (0, self.rows) if self.columns is None else (1, self.columns)
            whole.copy_(part) if index is None else whole.index_copy_(dimension, index, part)
        else:
            whole[self.rows.unsqueeze(1), self.columns] = part


def looks_after(epoch: int, ramp: EpsSection) -> bool:
    """Whether all channels are looked at after this epoch, counted from 1: when the ramp ends, and then regularly."""
    since = epoch - (ramp.start + ramp.length - 1)
    return since >= 0 and since % LOOK_EVERY == 0


def active_channels(traces: Iterable[BoundTrace]) -> dict[str, Tensor]:
    """For each ReLU layer, whether a channel or unit (C,) is active somewhere in the box of some example, or NaN."""
    found: dict[str, Tensor] = {}
    for trace in traces:
        for name, box in trace.relu_boxes:
            active = ~(box.upper <= 0).transpose(0, 1).flatten(1).all(1)
            found[name] = active | found.get(name, active)
    return found


def kept_channels(active: Mapping[str, Tensor]) -> Kept:
    """The active channels; of a layer without any, the first, since a layer needs one."""
    return {name: channels.nonzero().flatten().tolist() or [0] for name, channels in active.items()}


def parts_of(network: nn.Sequential, kept: Kept) -> dict[str, Part]:
    """The part of each tensor of the network, by its name, that is left without the other channels.

    The network has convolutions and linear layers in a row, as `build_model` names them.
    """
    parts, rows, count = dict[str, Part](), None, 0
    for name, layer in network.named_children():
        if isinstance(layer, Weighted):
            columns = None if rows is None else _columns(rows, layer, count)
            rows, count = _index(kept.get(f"{name}_relu"), layer.weight), len(layer.weight)
            parts[f"{name}.weight"], parts[f"{name}.bias"] = Part(rows, columns), Part(rows, None)
        elif isinstance(layer, BatchNorm):
            parts |= {f"{name}.{key}": Part(rows, None) for key, tensor in layer.state_dict().items() if tensor.dim()}
    return parts


def _index(channels: list[int] | None, like: Tensor) -> Tensor | None:
    return None if channels is None else torch.tensor(channels, device=like.device)


def _columns(before: Tensor, layer: Weighted, count: int) -> Tensor:
    """The inputs that come from the kept ones of `count` channels; flattened, a channel's pixels follow one another."""
    pixels = layer.weight.shape[1] // count
    return (before.unsqueeze(1) * pixels + torch.arange(pixels, device=before.device)).flatten()


def smaller_network(network: nn.Sequential, parts: Mapping[str, Part]) -> nn.Sequential:
    """A network of the parts, with tensors of its own."""
    made = nn.Sequential()
    for name, layer in network.named_children():
        made.add_module(name, _smaller_layer(name, layer, parts))
    return made.train(network.training).to(memory_format=torch.channels_last)


def _smaller_layer(name: str, layer: nn.Module, parts: Mapping[str, Part]) -> nn.Module:
    small = copy.deepcopy(layer)
    for key, tensor in layer.state_dict().items():
        if part := parts.get(f"{name}.{key}"):
            value = part.of(tensor)
            setattr(small, key, nn.Parameter(value) if key in dict(layer.named_parameters()) else value)
    if isinstance(small, nn.Conv2d):
        small.out_channels, small.in_channels = small.weight.shape[:2]
    elif isinstance(small, nn.Linear):
        small.out_features, small.in_features = small.weight.shape
    elif isinstance(small, BatchNorm):
        small.num_features = len(small.weight)
    return small


class SmallerSteps:
    """Takes the steps of the stepper `whole` with a smaller network, while some channels are left out.

    make: a stepper of the same run for another network. shape: that of an image (C, H, W). current: the one that takes
    the steps. kept: the channels that its network has; empty for the whole network. The whole network and its optimiser
    do not have the last steps until `write_back` is called.
    """

    def __init__(self, whole: Stepper, make: Callable[[nn.Module], Stepper], shape: tuple[int, ...]) -> None:
        assert isinstance(whole.network, nn.Sequential)  # by the preset's rules
        self.whole, self.make, self.network, self.shape = whole, make, whole.network, shape
        self.current, self.kept, self.parts = whole, Kept(), dict[str, Part]()

    @torch.no_grad()
    def use(self, kept: Kept) -> None:
        """Take the next steps with these channels alone. What the steps before have changed must be written back."""
        self.kept, self.parts = kept, parts_of(self.network, kept)
        self.current = self.make(smaller_network(self.network, self.parts))
        self.whole.optimizer.zero_grad()  # whose memory is not needed while others take the steps
        for mine, other in self._parameters():
            state = self.whole.optimizer.state[mine[1]]
            moments = {key: self._moment(mine, value) for key, value in state.items()}
            self.current.optimizer.state[other] = moments

    def _moment(self, named: tuple[str, nn.Parameter], value: Tensor | float) -> Tensor | float:
        """The part of a moment of the optimiser; the number of its steps is one for the whole tensor."""
        if not isinstance(value, Tensor) or value.shape != named[1].shape:
            return value.clone() if isinstance(value, Tensor) else value
        small = self._part(named[0]).of(value)
        return small.contiguous(memory_format=torch.channels_last) if small.dim() == 4 else small

    @torch.no_grad()
    def write_back(self) -> None:
        """Write what the steps have changed into the whole network and its optimiser."""
        if self.current is self.whole:
            return
        small = self.current.network.state_dict()
        for name, tensor in self.network.state_dict().items():
            self._part(name).put(small[name], tensor)
        for mine, other in self._parameters():
            self._write_moments(mine, self.current.optimizer.state[other])

    def _write_moments(self, named: tuple[str, nn.Parameter], moments: Mapping[str, Tensor | float]) -> None:
        whole = self.whole.optimizer.state[named[1]]
        for key, value in moments.items():
            if not isinstance(value, Tensor):
                whole[key] = value
            elif whole[key].shape == named[1].shape:
                self._part(named[0]).put(value, whole[key])
            else:
                whole[key].copy_(value)

    @torch.no_grad()
    def end_epoch(self, step: int, batches: Iterable[Tensor]) -> None:
        """Write back, and give the channels that are left out the running statistics that they have in these batches.

        Their inputs change while the other weights do, and in evaluation they must stay as inactive as in the steps.
        The batches are (B, C, H, W), and take the ε of `step`.
        """
        self.write_back()
        if self.current is self.whole:
            return
        passes = [trace.statistics for x in batches for trace in self.whole.traces(step, x)]
        for name, (layer, *_) in passes[0].items():
            rows = torch.stack([row_of(taken[name]) for taken in passes]).double()
            set_running_statistics(layer, *pooled_moments(*rows.unbind(1)))
        self.write_back()

    @torch.no_grad()
    def take_buffers(self) -> None:
        """Take BatchNorm's running statistics from the whole network, where they were computed anew."""
        if self.current is not self.whole:
            whole = self.network.state_dict()
            for name, buffer in self.current.network.named_buffers():
                buffer.copy_(self._part(name).of(whole[name]))

    def _part(self, name: str) -> Part:
        return self.parts.get(name, Part(None, None))

    def _parameters(self) -> Iterator[tuple[tuple[str, nn.Parameter], nn.Parameter]]:
        """Each parameter of the whole network, with its name, and that of the smaller one."""
        return zip(self.network.named_parameters(), self.current.network.parameters(), strict=True)

    @torch.no_grad()
    def look_again(self, step: int, batches: Iterable[Tensor]) -> bool:
        """Find the channels that are active in these batches (B, C, H, W) at the ε of `step`; whether others are kept.

        They are if the steps then cost much less, or if a channel that was left out is active again.
        """
        kept = kept_channels(active_channels(trace for x in batches for trace in self.whole.traces(step, x)))
        revived = any(set(kept[name]) - set(channels) for name, channels in self.kept.items())
        changed = revived or self._work(kept) <= WORTH_IT * self._work(self.kept)
        if changed:
            self.use(kept)
        return changed

    def sentence(self) -> str:
        """How many channels and units take part, and about how much less work that is."""
        whole = sum(len(layer.weight) for name, layer in self._layers() if f"{name}_relu" in self.kept)
        kept, share = sum(map(len, self.kept.values())), self._work(self.kept) / self._work({})
        return f"{kept:,} of {whole:,} channels and units take part in the steps, which are {share:.0%} of the work"

    def _layers(self) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
        return ((name, layer) for name, layer in self.network.named_children() if isinstance(layer, Weighted))

    def _work(self, kept: Kept) -> int:
        network = smaller_network(self.network, parts_of(self.network, kept)).eval()  # for a batch of one
        return inference_work(checked_graph(network, self.shape), next(network.parameters()).new_zeros(1, *self.shape))
