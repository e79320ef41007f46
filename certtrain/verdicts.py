"""What can be said of a point, and when."""

from typing import Literal, get_args

from torch import Tensor

Verdict = Literal["certified", "open", "falsified", "misclassified"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def certified_points(margins: Tensor, labels: Tensor) -> Tensor:
    """Which points (B,) are certified: every margin (B, K) but the label's own is finite and above zero."""
    proved = (margins > 0) & margins.isfinite()
    return proved.scatter(1, labels.unsqueeze(1), True).all(dim=1)


def correct_points(logits: Tensor, labels: Tensor) -> Tensor:
    """Which points (B,) are classified correctly: the label's logit (B, K) is the one largest, and finite.

    A tie is an error: a certificate asks for a margin above zero as well.
    """
    return certified_points(logits.gather(1, labels.unsqueeze(1)) - logits, labels)
