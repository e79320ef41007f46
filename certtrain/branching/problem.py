"""A verification problem: one box, the network's bounds over it, and the neurons that can be split by sign."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from certtrain.bounds.activations import ACTIVATIONS, SPLITTABLE, slope_of
from certtrain.bounds.box import Box, containing_exact
from certtrain.bounds.linear import Prefix, backsubstitute
from certtrain.bounds.lines import FreeLines
from certtrain.bounds.relaxation import alpha_shape, free_lines
from certtrain.bounds.rounding import Rounding, backsubstitution_error
from certtrain.branching.domains import Domains
from certtrain.branching.hull import Hull


class Neuron(NamedTuple):
    """A neuron of an activation: the number of its record, and its flat index there."""

    record: int
    place: int


class Problem:
    """To prove: over one box, (1, …), the largest of some linear functions of the logits is above zero.

    prefix: the records of all layers over the box. functions: (S, K), linear in the logits. offsets: (S,), added to the
        functions. rounding: that of the prefix. A problem without rounding, in any precision, is enough for the search.

    The T neurons of all splittable activations are numbered in order: a tensor (D, T) has a value for each neuron in
    each of D domains. A tensor (D, A) has a value for each number α of the lines of all activations.
    ends: the lower and upper bounds (T,) of the neurons' inputs over the box. unstable: (T,), which of them have either
    sign in the box. stable: (T,), the signs of the others. relaxed: (T,), the neurons whose lines are not exact.
    scale: (T,), the size of Λ at each neuron, the unit of its multiplier.
    hull: the bounds from which the upper planes of domains with shares are made; None before a search asks for them.
    """

    def __init__(self, prefix: Prefix, functions: Tensor, offsets: Tensor, rounding: Rounding | None = None) -> None:
        self.prefix, self.functions, self.offsets, self.rounding = prefix, functions, offsets, rounding
        layers = {number: record.call.layer for number, record in enumerate(prefix.records)}
        self.numbers = [number for number, layer in layers.items() if isinstance(layer, SPLITTABLE)]
        self.parts = _parts({number: prefix.records[number].shape[1:] for number in self.numbers})
        self.neurons = sum(part.stop - part.start for part in self.parts.values())
        each = {number: layer for number, layer in layers.items() if type(layer) in ACTIVATIONS}
        self.alpha_shapes = {n: alpha_shape(layer, prefix.records[n].shape[1:]) for n, layer in each.items()}
        self.alpha_parts = _parts(self.alpha_shapes)
        self.alphas = sum(part.stop - part.start for part in self.alpha_parts.values())
        lower, upper = self.ends = self._ends()
        self.unstable = (lower < 0) & (upper > 0)
        self.stable = (lower >= 0) * 2 - 1
        self.relaxed = self._relaxed()
        self.scale = self._scale()
        self.hull: Hull | None = None

    def in_float32(self) -> "Problem":
        """The same in float32 and without rounding: for the search, not for proofs."""
        return Problem(self.prefix.in_float32(), self.functions.float(), self.offsets.float())

    def weighted(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Sums (D, 1, K) of the functions with weights (D, S) ≥ 0, whose sum becomes 1, and their offsets (D, 1).

        Where a sum is above zero, one function is: this is the Lagrangian dual of "all functions are at most zero".
        """
        count = weights.shape[1]
        if count == 1:
            return self.functions.expand(len(weights), 1, -1), self.offsets.expand(len(weights), 1)
        shares = weights / weights.sum(1, keepdim=True)
        functions, offsets = (shares @ self.functions).unsqueeze(1), (shares @ self.offsets).unsqueeze(1)
        error = self.prefix.records[-1].rounding_error
        if error is None:
            return functions, offsets
        # The last layer's record bounds the rounding of its results, and of their products and sums of about K terms.
        lost = (1 + count // self.functions.shape[1]) * ((shares @ self.functions.abs()) @ error[0])
        lost = lost + backsubstitution_error(count) * (shares @ self.offsets.abs())
        return functions, offsets - lost.unsqueeze(1)

    @torch.no_grad()
    def _scale(self) -> Tensor:
        """(T,) the mean |Λ| at the results of each neuron's layer, which its multipliers must be able to outweigh.

        Where it is 0, it is replaced by the largest of the others, or by 1, since Λ may not be 0 in every domain.
        """
        sizes: dict[int, Tensor] = {}

        def on_coefficients(value: int, coefficients: Tensor) -> None:
            if value - 1 in self.parts:
                sizes[value - 1] = coefficients.abs().mean().expand(1, *coefficients.shape[2:])

        functions = self.functions.unsqueeze(0)
        backsubstitute(self.prefix, functions, rounding=self.rounding, on_coefficients=on_coefficients)
        # A layer whose result is not used has no Λ.
        none = self.prefix.start.radius.new_zeros(1, 1)
        scale = self.flat({n: sizes.get(n, none.expand(1, p.stop - p.start)) for n, p in self.parts.items()})[0]
        largest = max(scale.tolist(), default=0.0) or 1.0
        return scale.where(scale != 0, largest)

    def run(self, x: Tensor, signs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The logits (D, K) of inputs (D, …), and the neurons' inputs (D, T).

        With `signs` (D, T), none of them 0, each neuron is replaced by its line on that side of zero; all must be those
        of rectifiers.
        """
        values, layer_inputs = {0: x}, {}
        for number, record in enumerate(self.prefix.records):
            layer, inputs = record.call.layer, [values[value] for value in record.call.inputs]
            layer_inputs[number] = inputs[0]
            if signs is None or number not in self.parts:
                # A layer that works in place would overwrite its input, which is a result here.
                in_place = vars(layer).get("inplace")
                values[number + 1] = layer(*(value.clone() for value in inputs) if in_place else inputs)
            else:
                rising = self.part(signs, number).squeeze(1) > 0
                values[number + 1] = inputs[0] * torch.where(rising, 1.0, slope_of(layer))
        return values[len(self.prefix.records)], self.flat(layer_inputs, len(x))

    def _ends(self) -> tuple[Tensor, Tensor]:
        found = {number: self.prefix.records[number].box for number in self.numbers}
        boxes = {number: box for number, box in found.items() if box is not None}
        lower, upper = ({n: getattr(box, end) for n, box in boxes.items()} for end in ("lower", "upper"))
        return self.flat(lower)[0], self.flat(upper)[0]

    def _relaxed(self) -> Tensor:
        records = {number: self.prefix.records[number] for number in self.numbers}
        layers = {n: ACTIVATIONS[type(v.call.layer)].unstable(v.call.layer, v.box) for n, v in records.items() if v.box}
        return self.flat(layers)[0]

    def flat(self, parts: dict[int, Tensor], rows: int = 1) -> Tensor:
        """(D, T) from tensors (D, …), one for each splittable layer. D is `rows` for a network without any."""
        flat = [parts[number].flatten(1) for number in self.numbers]
        return torch.cat(flat, 1) if flat else self.prefix.start.radius.new_zeros(rows, 0)

    def part(self, values: Tensor, number: int) -> Tensor:
        """The values (D, 1, …) of one layer's neurons, out of (D, T), for all functions."""
        shape = self.prefix.records[number].shape[1:]
        return values[:, self.parts[number]].view(len(values), 1, *shape)

    def alpha(self, alphas: Tensor, number: int) -> Tensor:
        """The α (D, 1, …) of one layer, out of (D, A), for all functions."""
        return alphas[:, self.alpha_parts[number]].view(len(alphas), 1, *self.alpha_shapes[number])

    def neuron(self, index: int) -> Neuron:
        """The neuron with this number among the T."""
        number = max(n for n in self.numbers if self.parts[n].start <= index)
        return Neuron(number, index - self.parts[number].start)

    def index(self, neuron: Neuron) -> int:
        """The neuron's number among the T. Raises ValueError if there is no such neuron."""
        part = self.parts.get(neuron.record)
        if part is None or not 0 <= neuron.place < part.stop - part.start:
            raise ValueError(f"the network has no neuron {neuron.record}:{neuron.place}")
        return int(part.start) + neuron.place

    def restricted(self, domains: Domains) -> Prefix:
        """The prefix over D domains, with the neurons' inputs restricted to their signs and clipped ends."""
        prefix = self.prefix.examples(torch.zeros_like(domains.nodes))
        records = list(prefix.records)
        ends = (domains.lower.to(prefix.start.radius), domains.upper.to(prefix.start.radius))
        for number in self.numbers:
            record = records[number]
            assert record.box is not None  # it is a nonlinear layer
            box = _clipped(record.box, *(self.part(end, number).squeeze(1) for end in ends))
            records[number] = record._replace(box=_halved(box, self.part(domains.signs, number).squeeze(1)))
        return prefix._replace(records=records)

    def known_signs(self, domains: Domains) -> Tensor:
        """The signs (D, T) of the neurons' inputs by splits or by clipping; 0 for the others."""
        clipped = (domains.lower >= 0).to(torch.int8) - (domains.upper <= 0).to(torch.int8)
        return torch.where(domains.signs != 0, domains.signs, clipped)

    def empty(self, domains: Domains) -> Tensor:
        """Which domains (D,) have no input where the clipped ends hold."""
        lower, upper = self.ends
        lower, upper = torch.maximum(domains.lower, lower), torch.minimum(domains.upper, upper)
        below, above = (domains.signs > 0) & (upper < 0), (domains.signs < 0) & (lower > 0)
        return ((lower > upper) | below | above).any(1)

    def free_lines(self, prefix: Prefix) -> dict[int, FreeLines]:
        """The lines of the activations that have a choice, by record."""
        records = {number: prefix.records[number] for number in self.alpha_shapes}
        found = {n: free_lines(v.call.layer, v.box) for n, v in records.items() if v.box is not None}
        return {number: lines for number, lines in found.items() if lines is not None}


def _parts(shapes: Mapping[int, Sequence[int]]) -> dict[int, slice]:
    """The place of each layer's numbers in a row of all layers' numbers."""
    ends = [0, *accumulate(prod(shape) for shape in shapes.values())]
    return {number: slice(a, b) for number, a, b in zip(shapes, ends[:-1], ends[1:], strict=True)}


def _clipped(box: Box, lower: Tensor, upper: Tensor) -> Box:
    """The intersection of `box` (1 or D, …) with the clipped ends; the unchanged box where they are not tighter."""
    tighter = (lower > box.lower) | (upper < box.upper)
    if not bool(tighter.any()):
        return box
    lower, upper = torch.maximum(box.lower, lower), torch.minimum(box.upper, upper)
    found = containing_exact(Box((lower + upper) / 2, ((upper - lower) / 2).clamp(min=0)))
    return Box(torch.where(tighter, found.centre, box.centre), torch.where(tighter, found.radius, box.radius))


def _halved(box: Box, signs: Tensor) -> Box:
    """The part of `box` (D, …) on the sign's side of zero; the unchanged box where the sign is 0."""
    ends = torch.where(signs > 0, box.upper, box.lower).where(signs != 0, 0.0) / 2
    unsplit = signs == 0
    return Box(torch.where(unsplit, box.centre, ends), torch.where(unsplit, box.radius, ends.abs()))
