"""Text queries of many clients in one pass through the model.

While one batch is encoded, the queries that arrive gather for the next: nobody waits for a batch to fill, and
under load batches grow by themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.images.decode import Source
from imret.models.fingerprint import ModelFiles
from imret.models.lazy_encoder import CachedEncoder
from imret.web.metrics import Telemetry, stage
from imret.web.pool.threads import run_in_background

if TYPE_CHECKING:
    from imret.models.encoder import Encoder

# Queries in one pass: the larger, the longer the first of them waits.
MAX_BATCH = 64
# Vectors of texts that were asked before, 4 KB each at 1,024 dimensions.
KEPT = 8192
# The thread ends after so long without a query, and begins with the next: an encoder that nobody uses any
# more is then held by nothing.
IDLE_S = 10.0

_Wordings: TypeAlias = tuple[str, ...]
_Vector: TypeAlias = "Future[NDArray[np.float32]]"


class BatchingEncoder(CachedEncoder):
    """An encoder whose `encode_mean`, called from many threads, encodes all that wait at once.

    What was asked before, or is being encoded for someone else, is not encoded again. A vector differs from
    the one that the texts have alone by what the arithmetic rounds differently in a larger batch: some 1e-7
    in fp32, 1e-3 in bf16. Pictures are encoded one by one, as without it.
    """

    def __init__(self, model: ModelFiles, *, device: str, precision: str, telemetry: Telemetry) -> None:
        super().__init__(model, device=device, precision=precision)
        self._telemetry = telemetry
        # By hash: six wordings of the longest text are as large as ten vectors.
        self._known: OrderedDict[bytes, _Vector] = OrderedDict()
        self._waiting: SimpleQueue[tuple[_Wordings, _Vector] | None] = SimpleQueue()  # None: no more
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._is_encoding = False
        self._is_stopped = False

    @cached_property
    def encoder(self) -> Encoder:
        """See `CachedEncoder.encoder`; made once, also where many threads ask for it at once."""
        with self._making:  # cached_property has no lock of its own since Python 3.12
            return super().encoder

    @property
    def depth(self) -> int:
        """How many queries wait to be encoded."""
        return self._waiting.qsize()

    def submit(self, texts: Sequence[str]) -> _Vector:
        """Return the future of `encode_mean`, which many may share: do not cancel it."""
        key = _key(texts)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
            vector: _Vector = Future()
            self._known[key] = vector
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
            self._waiting.put((tuple(texts), vector))
            if not self._is_encoding:
                self._is_encoding = True
                run_in_background("imret-encode", self._encode_while_asked, stop=self._stop)
        return vector

    def encode_mean(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what `Encoder.encode_mean` does, encoded together with what others wait for."""
        vector = self.submit(texts)
        if vector.done():
            return vector.result()
        with stage(self._telemetry, "encode"):
            return vector.result()

    def encode_images(self, images: Iterable[Source], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_images`."""
        with stage(self._telemetry, "encode"):
            return super().encode_images(images, batch_size=batch_size)

    def _stop(self) -> None:
        self._is_stopped = True
        self._waiting.put(None)

    def _encode_while_asked(self) -> None:
        while not self._is_stopped:
            try:
                waiting = [self._waiting.get(timeout=IDLE_S)]
            except Empty:
                with self._lock:
                    if self._waiting.empty():
                        self._is_encoding = False
                        return
                continue
            with contextlib.suppress(Empty):
                while len(waiting) < MAX_BATCH:
                    waiting.append(self._waiting.get_nowait())
            if not self._is_stopped:
                self._encode([one for one in waiting if one is not None])

    def _encode(self, batch: list[tuple[_Wordings, _Vector]]) -> None:
        self._telemetry.observe_batch(len(batch))
        try:
            rows = self.encoder.encode_texts([text for texts, _ in batch for text in texts])
        except Exception as error:
            if len(batch) > 1:  # one of them may have spoilt it for the others
                for one in batch:
                    self._encode([one])
                return
            self._fail(*batch[0], error)
            return
        start = 0
        for texts, vector in batch:
            mine = rows[start : start + len(texts)]
            start += len(texts)
            try:
                vector.set_result(self.encoder.unit_mean(mine, texts))
            except Exception as error:
                self._fail(texts, vector, error)

    def _fail(self, texts: _Wordings, vector: _Vector, error: Exception) -> None:
        with self._lock:
            self._known.pop(_key(texts), None)  # the next time may go well
        vector.set_exception(error)


def _key(texts: Sequence[str]) -> bytes:
    return hashlib.sha256(repr(tuple(texts)).encode("ascii", "backslashreplace")).digest()
