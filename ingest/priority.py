"""Who goes first on the cores of a machine: an ingest beside a search is in no hurry."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

# Of a core that both want, a thread that has not given way gets three quarters. On cores that nobody else
# wants an ingest is as fast as ever.
NICE = 5


def give_way() -> None:
    """Let what else runs go first, in this thread and in those that it starts from now on.

    Where the system has no priority of a single thread, as all but Linux, nothing changes.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
