"""Who goes first on the cores of a machine: an ingest beside a search is in no hurry."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from imret.models.lazy_encoder import LazyEncoder

# Of a core that both want, a thread that has not given way gets three quarters. On cores that nobody else
# wants an ingest is as fast as ever.
NICE = 5
# How long a batch waits for searches that go on and on: then it has its turn.
PATIENCE_S = 1.0
_LOOK_EVERY_S = 0.01


def give_way() -> None:
    """Let what else runs go first, in this thread and in those that it starts from now on.

    Where the system has no priority of a single thread, as all but Linux, nothing changes.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


class YieldingEncoder:
    """An encoder whose batches of pictures do not begin while somebody waits for something else.

    All but that is the encoder itself.

    Args:
        inner: Encodes.
        is_asked: Whether somebody waits, this moment.
    """

    def __init__(self, inner: LazyEncoder, is_asked: Callable[[], bool]) -> None:
        self._inner, self._is_asked = inner, is_asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def encode_pixels(self, pixels: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_pixels`."""
        until = time.monotonic() + PATIENCE_S
        while self._is_asked() and time.monotonic() < until:
            time.sleep(_LOOK_EVERY_S)
        return self._inner.encode_pixels(pixels, batch_size=batch_size)
