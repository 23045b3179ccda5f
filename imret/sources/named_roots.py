"""Buckets, read below the URLs that a user named and nowhere else.

A URL of a payload is never parsed: it has to begin with a named one, and what follows is a key of the same
bucket, whatever it holds. Keys and endpoints come from the environment alone. Hides which handles are open,
and tells errors without the names of hosts, buckets and keys. No store of these redirects.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

from imret.errors import DataError, ImageError
from imret.places import stores
from imret.places.names import SCHEMES, canonical

MAX_FETCH_S = 30.0  # for one picture, in all, beside what the last request takes
AWAY_S = 5.0  # in which a store that did not answer is not asked again, as for each thumbnail of a page
_CHUNK_BYTES = 4 << 20  # of one request: most pictures take a single one
_KEPT_HANDLES = 64

GONE_SINCE = "it has changed or gone since; ingest again: imret ingest"
_NO_ANSWER = "its store does not answer"
# Of what S3 says as pyarrow tells it, where an object that is open has gone or is shorter by now.
_GONE_IN_S3 = ("NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "InvalidRange", "INVALID_RANGE")


class NotReachable(ImageError):
    """A store that holds a picture does not answer, or not to this process."""


class NotThere(ImageError):
    """What was ingested is not there any more, or is something else by now."""


def is_bucket(url: str) -> bool:
    """Whether a URL is one as ingest stores it: of a scheme that is read, and nothing in it leads away."""
    scheme, mark, rest = url.partition("://")
    if scheme not in SCHEMES or not mark or not rest.isprintable():
        return False
    bucket, *parts = rest.split("/")
    is_plain = bool(bucket) and not set("@:?#") & set(bucket)
    return is_plain and not any(part in ("", ".", "..") for part in parts)


class NamedRoots:
    """What lies below some URLs. Thread-safe; nothing is connected before it is needed."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Remember the URLs.

        Raises:
            DataError: If one is none of a bucket.
        """
        self._roots = tuple(map(_root, urls))
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, Any] = OrderedDict()  # used longest ago first
        self._away_until: dict[str, float] = {}

    def holds(self, url: str) -> bool:
        """Whether a URL is one of the roots or lies below one."""
        return self._root_of(url) is not None

    def check(self) -> None:
        """Ask for each of them.

        Raises:
            DataError: If its store does not answer, or has nothing there; or there is no pyarrow.
        """
        for root in self._roots:
            if stores.look_up([root])[0] is None:
                raise DataError(f"nothing is at {root!r}. Check the name.")

    def chunks(self, url: str, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from an offset of the object at a URL, in few pieces.

        Raises:
            NotThere: If there is no such object, or it ends before that.
            NotReachable: If its store does not give it, or not in MAX_FETCH_S.
            ImageError: If it lies below none of the roots.
        """
        until = time.monotonic() + MAX_FETCH_S
        end = offset + length
        while offset < end:
            if time.monotonic() > until:
                raise NotReachable(f"its store takes longer than {MAX_FETCH_S:g} s to give it")
            chunk = self._read(url, offset, min(_CHUNK_BYTES, end - offset))
            if not chunk:
                raise NotThere(GONE_SINCE)
            offset += len(chunk)
            yield chunk

    def open(self, url: str) -> Any:
        """Return a file of pyarrow's, open for random access, kept for the next who asks; `told` reads it.

        Raises:
            As `chunks`.
        """
        with self._lock:
            handle = self._handles.get(url)
            if handle is not None:
                self._handles.move_to_end(url)
                return handle
        with self.told(url):
            handle = stores.open_object(url, is_waited_for=True)
        with self._lock:
            # Not closed when they go: another thread may be reading. They close with their last user.
            self._handles[url] = handle
            while len(self._handles) > _KEPT_HANDLES:
                self._handles.popitem(last=False)
        return handle

    def forget(self, url: str) -> None:
        """Open the object at a URL anew the next time: it may have been replaced."""
        with self._lock:
            self._handles.pop(url, None)

    @contextlib.contextmanager
    def told(self, url: str) -> Iterator[None]:
        """Tell faults as `chunks`; a store that did not answer a moment ago is asked only after a while."""
        root = self._root_of(url)
        if root is None:
            raise ImageError("it lies below no URL that was named")
        if time.monotonic() < self._away_until.get(root, 0.0):
            raise NotReachable(_NO_ANSWER)
        try:
            yield
        except stores.NotThere as error:
            raise NotThere(GONE_SINCE) from error
        except stores.Refused as error:
            raise NotReachable("its store refuses to give it; look at the credentials") from error
        except (DataError, OSError) as error:
            if any(mark in str(error) for mark in _GONE_IN_S3):
                raise NotThere(GONE_SINCE) from error
            self._away_until[root] = time.monotonic() + AWAY_S
            raise NotReachable(_NO_ANSWER) from error

    def _read(self, url: str, offset: int, length: int) -> bytes:
        is_old = url in self._handles
        handle = self.open(url)
        try:
            with self.told(url):
                if offset >= handle.size():
                    raise NotThere(GONE_SINCE)
                data: bytes = handle.read_at(length, offset)
                return data
        except ImageError:
            self.forget(url)
            if not is_old:
                raise
        self._away_until.pop(self._root_of(url) or "", None)
        return self._read(url, offset, length)  # what was open may be of an object that has been replaced

    def _root_of(self, url: str) -> str | None:
        return next((root for root in self._roots if url == root or url.startswith(f"{root}/")), None)


def _root(url: str) -> str:
    root = canonical(url)
    if not is_bucket(root):
        raise DataError(f"{root!r} is no URL of a bucket. Write it as s3://BUCKET/PREFIX.")
    return root
