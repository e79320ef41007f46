"""A setting of the C library that CPU training gains from.

glibc gives large freed blocks back to the system, and gets them again zeroed,
page by page, for the next tensor. Kept instead, a training step has almost no
page faults (`benchmarks/allocator.py` counts them and says what that is worth).
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt(3)
_NEVER = -1  # the largest number would still give back what is free above 2 GiB


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory rather than return it; False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, _NEVER))
