"""ε, learning rate and regulariser weight as pure functions of the step."""

from collections.abc import Sequence

RAMP_MIDPOINT = 0.25  # the share of the ramp that is quartic; the rest is linear


def eps_at(step: int, *, steps_per_epoch: int, start: int, length: int, eps_max: float) -> float:
    """ε at the 0-based `step`: zero, then a quartic and a linear ramp, then `eps_max`.

    The ramp begins with epoch `start` (counted from 1) and takes `length`
    epochs. Its first quarter is a·t⁴, the rest a straight line of the same
    slope where they meet (Xu et al. 2020, the smoothed schedule of auto_LiRPA;
    Shi et al. 2021, appendix). With `length` 0, ε jumps.
    """
    done = step - (start - 1) * steps_per_epoch
    ramp = length * steps_per_epoch
    if (done <= 0 and ramp > 0) or done < 0:
        return 0.0
    if done >= ramp:
        return eps_max
    middle = int(ramp * RAMP_MIDPOINT)
    if middle == 0:
        return eps_max * done / ramp
    rate = eps_max / (middle**3 * (4 * ramp - 3 * middle))
    return rate * done**4 if done < middle else rate * middle**3 * (4 * done - 3 * middle)


def learning_rate_at(epoch: int, *, base: float, milestones: Sequence[int], decay: float) -> float:
    """Learning rate in the 0-based `epoch`: `base`, times `decay` for each milestone reached."""
    return base * decay ** sum(epoch >= milestone for milestone in milestones)


def linear_rate_at(step: int, *, base: float, steps: int, warmup: int) -> float:
    """Learning rate at the 0-based `step`: it rises to `base` in `warmup` steps, then falls towards zero at `steps`."""
    if step < warmup:
        return base * (step + 1) / warmup
    return base * (steps - step) / max(steps - warmup, 1)


def warmup_weight(eps: float, *, eps_max: float) -> float:
    """1 − ε/ε_max: of what fades out with the warm-up.

    The regularisers (Shi et al. 2021, eq. 12), and CROWN-IBP's linear bounds (Zhang et al. 2020, eq. 9).
    """
    return 1 - eps / eps_max
