"""Seeds for independent random streams, derived from one seed and a name."""

import hashlib
import json


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, on its type and on the order of the parts.

    `derive_seed(0, "order", 3)` is the same number in every process and on every platform,
    which Python's `hash` does not guarantee.
    """
    # In JSON, 1 and "1" differ, and so do ("ab", "c") and ("a", "bc").
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
