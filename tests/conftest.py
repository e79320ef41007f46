"""One thread for all tests: their tensors are small. This folder is on the import path for the helpers in it."""

import torch

torch.set_num_threads(1)
