"""An ingest beside a search gives way to it, and is not starved by it."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any, cast

import numpy as np
import pytest

from imret.models.lazy_encoder import LazyEncoder
from ingest import priority


class Inner:
    device = "cpu"

    def encode_pixels(self, pixels: Any, *, batch_size: int) -> Any:
        return len(pixels), batch_size


def test_a_batch_waits_while_somebody_asks_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priority, "PATIENCE_S", 0.3)
    is_asked = threading.Event()
    encoder = priority.YieldingEncoder(cast(LazyEncoder, Inner()), is_asked.is_set)
    pixels = np.zeros((3, 1, 1, 3), dtype=np.uint8)
    assert encoder.device == "cpu"
    assert encoder.encode_pixels(pixels, batch_size=8) == (3, 8)
    is_asked.set()
    started = time.monotonic()
    assert encoder.encode_pixels(pixels, batch_size=8) == (3, 8)
    assert time.monotonic() - started >= 0.3
    monkeypatch.setattr(priority, "PATIENCE_S", 60.0)
    threading.Timer(0.1, is_asked.clear).start()
    started = time.monotonic()
    assert encoder.encode_pixels(pixels, batch_size=8) == (3, 8)
    assert time.monotonic() - started < 30


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_a_thread_that_gives_way_leaves_the_others_as_they_are() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []

    def work() -> None:
        priority.give_way()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        inner = threading.Thread(
            target=lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        inner.start()
        inner.join()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [priority.NICE, priority.NICE]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
