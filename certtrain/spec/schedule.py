"""ε, learning rate and regulariser weight as pure functions of the step."""

from collections.abc import Sequence
from math import cos, pi

QUARTIC_SHARE = 0.25  # of the ramp; the rest is linear


def eps_at(step: int, *, steps_per_epoch: int, start: int, length: int, eps_max: float) -> float:
    """ε at the 0-based `step`: zero, then a quartic and a linear ramp, then `eps_max`.

    The ramp begins with epoch `start` (counted from 1) and takes `length`
    epochs. Its first quarter is a·t⁴, the rest a straight line with the same
    slope where they meet (Xu et al. 2020, the smoothed schedule of auto_LiRPA;
    Shi et al. 2021, appendix). With `length` 0 there is no ramp: ε jumps to `eps_max`.
    """
    done = step - (start - 1) * steps_per_epoch
    ramp = length * steps_per_epoch
    if (done <= 0 and ramp > 0) or done < 0:
        return 0.0
    if done >= ramp:
        return eps_max
    middle = int(ramp * QUARTIC_SHARE)
    if middle == 0:
        return eps_max * done / ramp
    rate = eps_max / (middle**3 * (4 * ramp - 3 * middle))
    return rate * done**4 if done < middle else rate * middle**3 * (4 * done - 3 * middle)


def learning_rate_at(epoch: int, *, base: float, milestones: Sequence[int], decay: float) -> float:
    """The learning rate in the 0-based `epoch`: `base` times `decay` for each milestone that is reached."""
    return base * decay ** sum(epoch >= milestone for milestone in milestones)


def linear_rate_at(step: int, *, base: float, steps: int, warmup: int) -> float:
    """The learning rate at the 0-based `step`: it rises to `base` in `warmup` steps, then falls to zero at `steps`."""
    if step < warmup:
        return base * (step + 1) / warmup
    return base * (steps - step) / max(steps - warmup, 1)


def cosine_rate_at(step: int, *, base: float, steps: int, warmup: int) -> float:
    """The learning rate at the 0-based `step`: as `linear_rate_at`, but it falls along half a cosine.

    Loshchilov and Hutter 2017, eq. 5, without restarts.
    """
    if step < warmup:
        return linear_rate_at(step, base=base, steps=steps, warmup=warmup)
    return base * (1 + cos(pi * (step - warmup) / max(steps - warmup, 1))) / 2


def warmup_weight(eps: float, *, eps_max: float) -> float:
    """1 − ε/ε_max, the weight of the terms that fade out with the warm-up.

    These are the regularisers (Shi et al. 2021, eq. 12) and the linear bounds of CROWN-IBP (Zhang et al. 2020, eq. 9).
    """
    return 1 - eps / eps_max
