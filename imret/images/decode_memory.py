"""A bound on the memory in which pictures are decoded at the same time in this process.

A picture of 100 megapixels takes from 0.4 to 1.8 GB until it has been made small, whatever it is wanted for.
So whoever decodes for others (a server's clients, threads that compare pictures) first takes the bytes that
it will need here, and waits its turn where there is no room.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from PIL import Image

from imret.abandon import check_wanted
from imret.images.decode import Source, load_image
from imret.memory import give_back_memory, memory_bytes

# For all pictures at once: one of 100 megapixels in RGB, or twenty photos of 24 as PNG by half their size.
MAX_BYTES = 512_000_000
# Smaller ones do not wait: they are as many as there are threads, and no large one holds them up.
SMALL_BYTES = 32_000_000

_LOOK_S = 0.1  # between looks whether who waits is still waited for


class DecodeMemory:
    """Bytes that may be taken at the same time, in the order in which they were asked for. Thread-safe.

    Args:
        max_bytes: Of all who have taken some. One who needs more than that waits until there is nobody else.
        small_bytes: Whoever needs less takes them at once, and they are not counted.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, small_bytes: int = SMALL_BYTES) -> None:
        self._max_bytes, self._small_bytes = max_bytes, small_bytes
        self._taken = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserving(self) -> Iterator[Callable[[int], None]]:
        """Give what takes bytes, once, until the end of the block; then they go back, also to the system.

        What was decoded has to be let go within the block. The function that is given raises
        `imret.abandon.AbandonedError` if nobody waits for the work any more, and RuntimeError if it is called
        again: who holds some and waits for more would wait for itself.
        """
        taken, is_asked = 0, False

        def reserve(n_bytes: int) -> None:
            nonlocal taken, is_asked
            if is_asked:
                raise RuntimeError("memory to decode in is reserved once for a picture, and was before")
            is_asked = True
            if n_bytes >= self._small_bytes:
                self._take(n_bytes)
                taken = n_bytes

        try:
            yield reserve
        finally:
            if taken:
                give_back_memory()
                with self._changed:
                    self._taken -= taken
                    self._changed.notify_all()

    def _take(self, n_bytes: int) -> None:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                while self._waiting[0] is not turn or not self._has_room(n_bytes):
                    check_wanted()
                    self._changed.wait(_LOOK_S)
                self._taken += n_bytes
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()

    def _has_room(self, n_bytes: int) -> bool:
        return not self._taken or self._taken + n_bytes <= self._max_bytes


DECODE_MEMORY = DecodeMemory()


def of_this_machine() -> DecodeMemory:
    """Return a bound for a program that may take a quarter of the machine's memory, where that is more."""
    return DecodeMemory(max(MAX_BYTES, (memory_bytes() or 0) // 4))


@contextmanager
def released(image: Image.Image) -> Iterator[Image.Image]:
    """Give a picture until the end of the block, and then its memory back, whoever holds it still."""
    try:
        yield image
    finally:
        Image.Image.close(image)  # that of a picture from a file closes the file, which is not ours


@contextmanager
def loaded(
    source: Source, *, max_pixels: int | None = None, max_side: int | None = None
) -> Iterator[Image.Image]:
    """Give what `load_image` returns until the end of the block, once `DECODE_MEMORY` has room for it.

    Raises:
        ImageError: As `load_image`.
    """
    with (
        DECODE_MEMORY.reserving() as reserve,
        released(load_image(source, max_pixels=max_pixels, max_side=max_side, reserve=reserve)) as image,
    ):
        yield image
