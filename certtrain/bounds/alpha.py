"""α-CROWN: the lines that replace activations, optimised for each bound separately.

A number α chooses among the sound lines of a neuron: the slope of an unstable
rectifier's line through zero, or the point at which a line touches a curve. Each α
gives another bound. Gradient ascent of the bound finds good ones (Xu et al. 2021).
The bound of every step is sound, and the best is kept.

The bounds at the layers' inputs are optimised as well, layer by layer, where
there are few enough of them. The paper optimises them together with the final
bound. One layer at a time fits any memory, and the result serves every margin.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from certtrain.bounds.ascent import Ascent
from certtrain.bounds.box import Box
from certtrain.bounds.chunks import Bound, Functions, in_parts, rows_at_once
from certtrain.bounds.crown import LowerBounds, intersection, tighten
from certtrain.bounds.interval import LayerRecord, Tighten
from certtrain.bounds.linear import LinesOf, Prefix, backsubstitute
from certtrain.bounds.lines import FreeLines
from certtrain.bounds.relaxation import free_lines
from certtrain.bounds.settings import Settings

# The search for a bound has stalled if the bound rose by less than this share of its size in this many steps.
STALLED, STALLED_STEPS = 1e-5, 10


def alpha_lower_bounds(settings: Settings, *, stop_above: float = torch.inf) -> LowerBounds:
    """Lower bounds by optimised slopes, in parts that fit the memory; the search for one ends above `stop_above`."""
    return _lower_bounds(partial(slope_search_bounds, settings=settings, stop_above=stop_above), settings)


def quick_lower_bounds(settings: Settings) -> LowerBounds:
    """Lower bounds by slopes that are optimised in float32, in parts that fit the memory."""
    return _lower_bounds(partial(quick_slope_bounds, settings=settings), settings)


def _lower_bounds(bound: Bound, settings: Settings) -> LowerBounds:
    def lower_bounds(prefix: Prefix, functions: Functions, shape: tuple[int, int], size: int) -> Tensor:
        rows = rows_at_once(prefix, size, settings, gradients=True)
        return in_parts(bound, prefix, functions, shape, rows, settings.deadline)

    return lower_bounds


def tighten_by_alpha(
    boxes: Iterator[Box], settings: Settings, lower_bounds: Callable[[Settings], LowerBounds] = alpha_lower_bounds
) -> Tighten:
    """`boxes`, in layer order, intersected with the pass's and with optimised bounds where few neurons are unstable."""

    def tightened(layer: nn.Module, records: list[LayerRecord], start: Box, box: Box) -> Box:
        box = intersection(box, next(boxes), settings)
        if settings.deadline.over():
            return box
        found = tighten(layer, Prefix(records, start), box, lower_bounds(settings), settings, settings.neurons)
        return intersection(box, found, settings)

    return tightened


@torch.no_grad()
def slope_search_bounds(prefix: Prefix, functions: Tensor, settings: Settings, stop_above: float = torch.inf) -> Tensor:
    """Lower bounds (B, S) of `functions` (B, S, …) by the best slopes found, at least those of the initial lines.

    The search for a bound ends once this bound is above `stop_above` or stalls. It does not depend on the other bounds
    of the batch, so no bound changes if the functions are split into parts. After the deadline no further step is
    taken.
    """
    best = backsubstitute(prefix, functions, rounding=settings.rounding)
    done = ~functions.flatten(2).any(2) | (best > stop_above)  # a class has no margin to itself
    left, before = torch.arange(len(best), device=best.device), best.clone()
    search = SlopeSearch(prefix, functions, settings)
    for step in range(1, settings.iterations + 1):
        if not search.free or not len(left) or settings.deadline.over():
            break
        bounds = search.step()
        best[left] = torch.where((bounds > best[left]) & ~done[left], bounds, best[left])
        done |= best > stop_above
        if step % STALLED_STEPS == 0:
            done |= ~(best - before > STALLED * best.abs())
            before = best.clone()
        finished = done[left].all(1)
        if bool(finished.any()):
            left = left[~finished]
            search.keep(~finished)
    return best


@torch.no_grad()
def quick_slope_bounds(prefix: Prefix, functions: Tensor, settings: Settings) -> Tensor:
    """As `slope_search_bounds`, with the search in float32 and without rounding; only its best slopes are proved."""
    first = backsubstitute(prefix, functions, rounding=settings.rounding)
    search = SlopeSearch(prefix.in_float32(), functions.float(), replace(settings, rounding=None))
    best = torch.full(functions.shape[:2], -torch.inf, device=functions.device)
    kept = [alpha.clone() for alpha in search.ascent.values]
    for _ in range(settings.iterations if search.free else 0):
        if settings.deadline.over():
            break
        before = [alpha.clone() for alpha in search.ascent.values]
        bounds = search.step()
        better = bounds > best
        best = torch.where(better, bounds, best)
        for alpha, value in zip(kept, before, strict=True):
            alpha[better] = value[better]
    # A layer may have unstable neurons in one precision only; any slope in [0, 1] is sound in both.
    found, free = dict(zip(search.free, kept, strict=True)), SlopeSearch(prefix, functions, settings).free
    lines: LinesOf = {
        n: slopes.at(found[n].double().clamp(slopes.least, slopes.most)) for n, slopes in free.items() if n in found
    }
    return torch.fmax(first, backsubstitute(prefix, functions, lines=lines, rounding=settings.rounding))


class SlopeSearch:
    """Gradient ascent of the slopes of all functions (B, S, …) of a prefix."""

    def __init__(self, prefix: Prefix, functions: Tensor, settings: Settings) -> None:
        self.prefix, self.functions, self.settings = prefix, functions, settings
        self.free = self._free()
        shape = functions.shape[:2]
        alphas = [f.first.expand(*shape, *f.first.shape[2:]).clone() for f in self.free.values()]
        self.ascent = Ascent(alphas, [settings.learning_rate] * len(alphas), settings.decay)

    def step(self) -> Tensor:
        """The bounds (B, S) by the current slopes; the slopes then take one step."""
        with torch.enable_grad():
            alphas = [alpha.detach().requires_grad_() for alpha in self.ascent.values]
            lines: LinesOf = {n: f.at(alpha) for (n, f), alpha in zip(self.free.items(), alphas, strict=True)}
            bounds = backsubstitute(self.prefix, self.functions, lines=lines, rounding=self.settings.rounding)
            gradients = torch.autograd.grad(bounds.sum(), alphas)
        self.ascent.step(gradients)
        for alpha, free in zip(self.ascent.values, self.free.values(), strict=True):
            torch.clamp(alpha, free.least, free.most, out=alpha)
        return bounds.detach()

    def keep(self, examples: Tensor) -> None:
        """Keep only some of the examples."""
        self.prefix, self.functions = self.prefix.examples(examples), self.functions[examples]
        self.ascent.keep(examples)
        self.free = {n: f.examples(examples) for n, f in self.free.items()}

    def _free(self) -> dict[int, FreeLines]:
        records = ((n, self.prefix.records[n]) for n in self.prefix.used())
        found = {n: free_lines(v.call.layer, v.box) for n, v in records if v.box is not None}
        return {number: lines for number, lines in found.items() if lines is not None}
