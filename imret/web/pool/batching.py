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
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.abandon import AbandonedError, check_wanted, left
from imret.images.decode import Source
from imret.models.fingerprint import ModelInfo
from imret.models.lazy_encoder import Delegated, LazyEncoder
from imret.web.metrics import Telemetry, stage
from imret.web.pool.threads import run_in_background

# Queries in one pass: the larger, the longer the first of them waits.
MAX_BATCH = 64
# Vectors of texts that were asked before, 4 KB each at 1,024 dimensions.
KEPT = 8192
# The thread ends after so long without a query, and begins with the next: an encoder that nobody uses any
# more is then held by nothing.
IDLE_S = 10.0

_Texts: TypeAlias = tuple[str, ...]
_Vector: TypeAlias = "Future[NDArray[np.float32]]"


@dataclass
class _Query:
    """Texts that wait to be encoded, and who waits for them: a flag each that says whether they have left."""

    texts: _Texts
    vector: _Vector
    asked_by: list[threading.Event | None]

    def is_wanted(self) -> bool:
        return any(left is None or not left.is_set() for left in self.asked_by)


class BatchingEncoder(ModelInfo):
    """An encoder whose `encode_mean`, called from many threads, encodes all that wait at once.

    What was asked before, or is being encoded for someone else, is not encoded again. A vector differs from
    the one that the texts have alone by what the arithmetic rounds differently in a larger batch: some 1e-7
    in fp32, 1e-3 in bf16. Pictures are encoded one by one, as without it.

    Args:
        inner: Encodes.
        telemetry: Where durations go.

    Attributes:
        inner: What was given.
        files: See `LazyEncoder`, and so for the five that follow.
        is_busy: Whether texts are being encoded this moment.
    """

    device = Delegated[Any]("inner")  # a torch.device
    precision = Delegated[str]("inner")
    calls_at_once = Delegated[int]("inner")
    logit_scale = Delegated[float]("inner")
    logit_bias = Delegated["float | None"]("inner")

    def __init__(self, inner: LazyEncoder, telemetry: Telemetry) -> None:
        self.inner, self.files = inner, inner.files
        self._telemetry = telemetry
        # By hash: six prompts of the longest text are as large as ten vectors.
        self._known: OrderedDict[bytes, _Query] = OrderedDict()
        self._waiting: SimpleQueue[_Query | None] = SimpleQueue()  # None: no more
        self._lock = threading.Lock()
        self._is_encoding = False
        self.is_busy = False
        self._is_stopped = False

    @property
    def depth(self) -> int:
        """How many queries wait to be encoded."""
        return self._waiting.qsize()

    def submit(self, texts: Sequence[str]) -> _Vector:
        """Return the future of `encode_mean`, which many may share: do not cancel it."""
        key = _key(texts)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                if not known.vector.done():
                    known.asked_by.append(left())
                return known.vector
            query = self._known[key] = _Query(tuple(texts), Future(), [left()])
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
            self._waiting.put(query)
            if not self._is_encoding:
                self._is_encoding = True
                run_in_background("imret-encode", self._encode_while_asked, stop=self._stop)
        return query.vector

    def encode_mean(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what `Encoder.encode_mean` does, encoded together with what others wait for."""
        check_wanted()
        vector = self.submit(texts)
        if vector.done():
            return vector.result()
        with stage(self._telemetry, "encode"):
            try:
                return vector.result()
            except CancelledError:  # as `_keeps` does it
                raise AbandonedError("whoever asked for this has left") from None

    def encode_images(self, images: Iterable[Source], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_images`."""
        check_wanted()
        with stage(self._telemetry, "encode"):
            return self.inner.encode_images(images, batch_size=batch_size)

    def encode_pixels(self, pixels: NDArray[np.uint8], *, batch_size: int = 32) -> NDArray[np.float32]:
        """See `Encoder.encode_pixels`."""
        check_wanted()
        with stage(self._telemetry, "encode"):
            return self.inner.encode_pixels(pixels, batch_size=batch_size)

    def load_image_tower(self) -> None:
        """See `Encoder.load_image_tower`."""
        self.inner.load_image_tower()

    def encode_bank(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `LazyEncoder.encode_bank`."""
        return self.inner.encode_bank(texts)

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
                self.is_busy = True
                self._encode([query for query in waiting if query is not None and self._keeps(query)])
                self.is_busy = False

    def _keeps(self, query: _Query) -> bool:
        """Whether somebody waits for a query; one that nobody does is forgotten."""
        with self._lock:  # nobody joins it meanwhile
            if query.is_wanted():
                return True
            self._known.pop(_key(query.texts), None)
        query.vector.cancel()
        return False

    def _encode(self, batch: list[_Query]) -> None:
        if not batch:
            return
        self._telemetry.observe_batch(len(batch))
        try:
            rows = self.inner.encoder.encode_texts([text for query in batch for text in query.texts])
        except Exception as error:
            if len(batch) > 1:  # one of them may have spoilt it for the others
                for query in batch:
                    self._encode([query])
                return
            self._fail(batch[0], error)
            return
        start = 0
        for query in batch:
            mine = rows[start : start + len(query.texts)]
            start += len(query.texts)
            try:
                query.vector.set_result(self.inner.encoder.unit_mean(mine, query.texts))
            except Exception as error:
                self._fail(query, error)
            query.asked_by = []

    def _fail(self, query: _Query, error: Exception) -> None:
        with self._lock:
            self._known.pop(_key(query.texts), None)  # the next time may go well
        query.vector.set_exception(error)


def _key(texts: Sequence[str]) -> bytes:
    return hashlib.sha256(repr(tuple(texts)).encode("ascii", "backslashreplace")).digest()
