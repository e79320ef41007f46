"""torch's Adam without what it does for torch.compile, which no optimiser here goes through.

torch wraps an optimiser's methods so that a compiler leaves them alone. The
wrappers load torch._dynamo at their first call, which makes a third of the
time from a command to its first training step (`benchmarks/startup.py`).
"""

from inspect import unwrap

import torch


class Adam(torch.optim.Adam):
    """torch's Adam, the same to the last bit; its steps are for eager code alone."""

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
    zero_grad = unwrap(torch.optim.Adam.zero_grad)
