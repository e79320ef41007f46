"""torch's Adam without the wrappers that are meant for torch.compile; here no optimiser is compiled.

torch wraps an optimiser's methods so that torch.compile does not compile them.
The wrappers load torch._dynamo at their first call, which takes a third of the
time from the start of a command to its first training step
(`benchmarks/startup.py`).
"""

from inspect import unwrap

import torch


class Adam(torch.optim.Adam):
    """torch's Adam, with the same results to the last bit; it must not be compiled."""

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
    zero_grad = unwrap(torch.optim.Adam.zero_grad)
