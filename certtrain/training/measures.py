"""Sums of what steps measure, kept on the device.

The objective decides which measures there are, and names them. Each step passes
its measures on, and they are summed, saved and logged by these names.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

EXAMPLES = "examples"  # the name of the number of examples among the sums


class MeasureSums:
    """The sum of each measure over examples, and the number of examples; `values` (M + 1,) float64 by their `names`.

    Nothing here waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.names: tuple[str, ...] = ()
        self.values = torch.zeros(0, dtype=torch.float64, device=device)

    def add(self, measured: Mapping[str, Tensor], examples: int) -> None:
        """Add one batch: scalars by name, each a mean over these `examples`."""
        scalars = list(measured.values())
        row = torch.stack([*scalars, torch.ones_like(scalars[-1])]).detach()
        self._use_names((*measured, EXAMPLES))
        self.values += row.double() * examples

    def set(self, sums: Mapping[str, float]) -> None:
        """Continue from these sums; a measure that is not given starts at zero."""
        self.names = tuple(sums) or self.names
        values = [sums.get(name, 0.0) for name in self.names]
        self.values = torch.tensor(values, dtype=torch.float64, device=self.values.device)

    def _use_names(self, names: tuple[str, ...]) -> None:
        """Use `names` from now on. They are new at the first step, or if another version saved the sums."""
        if names == self.names:
            return
        sums = dict(zip(self.names, self.values.unbind(), strict=True))
        self.values = torch.stack([sums.get(name, self.values.new_zeros(())) for name in names])
        self.names = names


def averages(sums: Mapping[str, float]) -> dict[str, float]:
    """The mean of each measure over the examples."""
    return {name: total / sums[EXAMPLES] for name, total in sums.items() if name != EXAMPLES}
