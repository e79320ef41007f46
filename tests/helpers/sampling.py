"""Points of boxes, both corners and random ones, and whether bounds hold on them."""

import torch
from torch import Generator, Tensor


def points_inside(lower: Tensor, upper: Tensor, count: int = 200, seed: int = 0) -> Tensor:
    """`count` points (count, …) of the box [lower, upper] (…): first half corners, then uniform ones."""
    generator = Generator().manual_seed(seed)
    share = torch.rand(count, *lower.shape, generator=generator, dtype=lower.dtype)
    share[: count // 2] = share[: count // 2].round()
    return torch.lerp(lower, upper, share)


def ball(x: Tensor, eps: float, clip: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """Both ends of the box of radius `eps` around `x`, cut to `clip`."""
    ends = x - eps, x + eps
    return ends if clip is None else (ends[0].clamp(*clip), ends[1].clamp(*clip))


def assert_inside(values: Tensor, lower: Tensor, upper: Tensor, tolerance: float = 1e-12) -> None:
    """All `values` (count, …) lie within the bounds (…), but for `tolerance` of the bounds' own size."""
    gap = tolerance * max(1.0, lower.abs().max().item(), upper.abs().max().item())
    assert bool((values >= lower - gap).all()), f"below the lower bound by {(lower - values).max().item():g}"
    assert bool((values <= upper + gap).all()), f"above the upper bound by {(values - upper).max().item():g}"
