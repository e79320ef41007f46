"""A setting of the C library that makes training on a CPU faster.

glibc returns large freed blocks to the system, and gets them back zeroed, page by
page, for the next tensor. If it keeps them instead, a training step has almost no
page faults (`benchmarks/allocator.py` counts them and measures the time saved).
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of mallopt(3)
_NEVER = -1  # the largest number would still give back what is free above 2 GiB


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory instead of returning it; False if the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, _NEVER))
