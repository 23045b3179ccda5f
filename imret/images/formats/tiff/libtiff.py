"""What libtiff complains of: with the picture that it read, not on the terminal.

libtiff prints its errors to the process's stderr, thousands of lines for one odd fax, and Pillow has no way
to ask for them. So its handler is set, in the very library that this Pillow uses, found as the linker found
it. Where that is hidden (a Pillow with libtiff built in), libtiff prints as before.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_MOST_CHARACTERS = 300
_local = threading.local()


class Complaints:
    """What libtiff said while one picture was read: the first of it, and how much it was."""

    def __init__(self) -> None:
        self.first = ""
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def __str__(self) -> str:
        more = f" (and {self.count - 1:,} more such lines)" if self.count > 1 else ""
        return self.first + more


@contextmanager
def libtiff_complaints() -> Iterator[Complaints]:
    """Collect what libtiff complains of in this thread until the end of the block."""
    _set_handler()
    before = getattr(_local, "complaints", None)
    _local.complaints = complaints = Complaints()
    try:
        yield complaints
    finally:
        _local.complaints = before


@functools.cache
def _set_handler() -> object:
    """Have libtiff call us, in all threads and from now on; returns what must not be freed."""
    try:
        import PIL._imaging

        pillow = ctypes.CDLL(PIL._imaging.__file__)
        set_handler = pillow.TIFFSetErrorHandler
        vsnprintf = pillow.vsnprintf
    except (ImportError, OSError, AttributeError):
        return None
    # A va_list is handed on as one pointer on x86-64 and on arm64, by Linux and by macOS.
    vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p]

    before: int | None = None

    def handle(module: bytes | None, text: bytes, values: int | None) -> None:
        complaints: Complaints | None = getattr(_local, "complaints", None)
        if complaints is None:  # another part of the program reads or writes: as if we were not here
            if before:
                prototype(before)(module, text, values)
            return
        complaints.count += 1
        if complaints.count == 1:
            buffer = ctypes.create_string_buffer(_MOST_CHARACTERS)
            vsnprintf(buffer, _MOST_CHARACTERS, text, values)
            name = (module or b"").decode("latin-1")
            said = " ".join(buffer.value.decode("latin-1").split()).rstrip(".")
            # Pillow opens each file by a name of its own.
            complaints.first = said if name in ("", "tempfile.tif", "filename") else f"{name}: {said}"

    prototype: Any = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
    handler = prototype(handle)
    set_handler.argtypes, set_handler.restype = [prototype], ctypes.c_void_p
    before = set_handler(handler)
    return handler
