"""How long a program that has a collection of an embedded store is waited for."""

from __future__ import annotations

import time

from imret.store.embedded.locks import LockOwner


class Patience:
    """So long for each program; for the next one anew, since things move on.

    Args:
        timeout_s: For one.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._owner: LockOwner | None = None
        self._deadline = time.monotonic() + timeout_s

    def has_ended(self, owner: LockOwner | None) -> bool:
        """Whether it has been long enough for this owner."""
        now = time.monotonic()
        if owner != self._owner:
            self._owner, self._deadline = owner, now + self._timeout_s
        return now >= self._deadline
