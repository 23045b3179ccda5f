"""A shard's files, brought into memory before the engine maps them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def read_ahead(shard: Path) -> None:
    """Read from start to end what the engine is about to map: it touches pages one by one, in no order.

    All but vectors and payloads, of which a search takes a few. From a disk, 100,000 x 1,024 open in 0.5 s
    instead of 2.2; where the files are in memory already, it costs 0.1.
    """
    buffer = bytearray(1 << 20)
    for parent, folders, names in os.walk(shard / "segments"):
        folders[:] = set(folders) - {"payload_storage", "vectors"}  # those of a segment without an index
        for name in set(names) - {"matrix.dat"}:  # and those of one that has an index
            with suppress(OSError), open(os.path.join(parent, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
