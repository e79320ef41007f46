"""Seeds for independent random streams, derived from one seed and a name."""

import hashlib
import json


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part, on its type and on the order of the parts.

    `derive_seed(0, "order", 3)` is the same number in every process and on every platform,
    which Python's own `hash` does not promise.
    """
    # JSON keeps 1 apart from "1" and ("ab", "c") from ("a", "bc").
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
