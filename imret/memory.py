"""The memory of this machine, and what this process has freed, back to it."""

from __future__ import annotations

import ctypes
import os


def give_back_memory() -> None:
    """Have the C library return what was freed to the system: glibc keeps it, as if it were asked for again.

    That is a hundred MB after an index, and gigabytes after large pictures in several threads. Takes
    milliseconds; does nothing where the C library has no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_bytes() -> int | None:
    """Return how much memory this machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
