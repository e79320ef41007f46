"""The verdicts about an example, and when they hold."""

from typing import Literal, get_args

from torch import Tensor

Verdict = Literal["certified", "open", "falsified", "misclassified"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def certified_examples(margins: Tensor, labels: Tensor) -> Tensor:
    """Which examples (B,) are certified: every margin (B, K) but the label's own is finite and above zero."""
    proved = (margins > 0) & margins.isfinite()
    return proved.scatter(1, labels.unsqueeze(1), True).all(dim=1)


def correct_examples(logits: Tensor, labels: Tensor) -> Tensor:
    """Which examples (B,) are classified correctly: the label's logit is larger than all others (B, K), and finite.

    A tie is not correct, since a certificate needs margins above zero too.
    """
    return certified_examples(logits.gather(1, labels.unsqueeze(1)) - logits, labels)
