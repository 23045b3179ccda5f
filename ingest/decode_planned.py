"""What is planned, to pixels: read where it was not read before, and decoded, within bounds of memory."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imret.datasets.scan import Skipped
from imret.errors import ImageError
from imret.places.stores import NotThere
from ingest.decode_workers import Decoders, Encoded, Pixels
from ingest.reconcile import Planned, payload_of
from ingest.sources import UNKNOWN_SIZE

# Bytes of pictures that were read and wait to be decoded: from there on no more are taken ahead.
_HELD_BYTES = 256 << 20


@dataclass(frozen=True)
class Decoded:
    """A picture ready for the image tower: pixels (H, W, 3) uint8 at model size, payload and notes."""

    planned: Planned
    pixels: NDArray[np.uint8]
    payload: dict[str, Any]
    notes: tuple[str, ...] = ()


class DecodingPlanned:
    """Decodes what a plan asks for, and knows how many bytes wait for that.

    Args:
        decoders: Decode.
    """

    def __init__(self, decoders: Decoders) -> None:
        self._decoders = decoders
        self._lock, self._held_bytes = threading.Lock(), 0

    def taken(self, plan: Iterable[Planned]) -> Iterator[Planned]:
        """Yield what is planned, and count the bytes that come with it until it is decoded."""
        for planned in plan:
            with self._lock:
                self._held_bytes += planned.held_bytes
            yield planned

    def ahead(self, n: int) -> int:
        """Return how much to take ahead: n, or one where too many bytes wait already."""
        return 1 if self._held_bytes > _HELD_BYTES else n

    def decode(self, plan: list[Planned]) -> list[Decoded | Planned | Skipped]:
        """Decode pictures; those with a duplicate need none of it."""
        wanted = [planned for planned in plan if planned.duplicate is None]
        encoded = [_encoded(planned) for planned in wanted]
        results = iter(self._decoders.decode([one for one in encoded if not isinstance(one, Skipped)]))
        outcomes = iter(
            [
                one if isinstance(one, Skipped) else _decoded(planned, next(results), len(one))
                for planned, one in zip(wanted, encoded, strict=True)
            ]
        )
        with self._lock:
            self._held_bytes -= sum(planned.held_bytes for planned in plan)
        return [planned if planned.duplicate is not None else next(outcomes) for planned in plan]


def _encoded(planned: Planned) -> Encoded | Skipped:
    """Return the bytes of a picture, or the path that its decoder reads; or why there are none."""
    record = planned.record
    if planned.data is not None:
        return planned.data
    if record.file is not None:
        return record.file
    try:
        return record.read()
    except OSError as error:
        return Skipped(record.path, f"cannot be read: {error.strerror or error}")
    except (ImageError, NotThere) as error:
        return Skipped(record.path, str(error))


def _decoded(planned: Planned, result: Pixels | str, n_bytes: int) -> Decoded | Skipped:
    record = planned.record
    if isinstance(result, str):
        return Skipped(record.path, result)
    facts: dict[str, Any] = {"sha256": result.sha256, "width": result.width, "height": result.height}
    if record.size_bytes == UNKNOWN_SIZE:
        facts["size_bytes"] = n_bytes
    payload = payload_of(record, **facts)
    # It waits for its vector without its bytes.
    return Decoded(replace(planned, data=None), result.pixels, payload, result.notes)
