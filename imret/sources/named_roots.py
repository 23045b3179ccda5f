"""Buckets, read below the URLs that a user named and nowhere else.

A root may carry what its store needs (`?region=`, `?endpoint_override=`). What is read below it is only ever
a key of that root's own file system, never parsed as a URL: a forged place such as
`s3://bucket/photos/x?endpoint_override=evil.example` would else send requests, and credentials, elsewhere.
Hides pyarrow, its errors and its handles; no redirect is followed, for none of its stores has any.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from imret.errors import DataError, ImageError

SCHEMES = ("s3", "gs", "az")
_URL = re.compile(rf"({'|'.join(SCHEMES)})://[^/?#@:\s]+(/|$)")
_LIKE_A_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

MAX_FETCH_S = 30.0  # for one picture, in all
AWAY_S = 5.0  # in which a store that did not answer is not asked again, as for each thumbnail of a page
_CHUNK_BYTES = 4 << 20  # of one request: most pictures take a single one
_KEPT_HANDLES = 64


class NotReachable(ImageError):
    """A store that holds a picture does not answer, or not to this process."""


class NotThere(ImageError):
    """What was ingested is not there any more, or is something else by now."""


_NO_ANSWER = "its store does not answer"
GONE_SINCE = "it has changed or gone since; ingest again: imret ingest"


def is_url(text: str) -> bool:
    """Whether a source is a URL, of whatever scheme, rather than a folder."""
    return _LIKE_A_URL.match(text) is not None


def is_bucket(url: str) -> bool:
    """Whether a URL is one as ingest stores it of a bucket: a scheme that exists, no credentials, no port."""
    return _URL.match(url) is not None


def canonical_url(url: str) -> str:
    """Return a URL without what is not part of the place: credentials, query, fragment, the last slash.

    Raises:
        DataError: If it is none of a bucket.
    """
    parts = urlsplit(url)
    plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    if not is_bucket(plain):
        raise DataError(
            f"{plain!r} is no URL of a bucket. Give one such as s3://bucket/photos; the schemes are "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}."
        )
    return plain


@dataclass(frozen=True, slots=True)
class _Root:
    url: str
    files: Any  # a file system of pyarrow's
    path: str


class NamedRoots:
    """What lies below some URLs. Thread-safe; nothing is connected before it is needed."""

    def __init__(self, urls: Sequence[str]) -> None:
        """Remember the URLs.

        Raises:
            DataError: If one is none of a bucket.
        """
        self._urls = {canonical_url(url): url for url in urls}
        self._lock = threading.Lock()
        self._roots: dict[str, _Root] = {}
        self._handles: OrderedDict[str, Any] = OrderedDict()  # used longest ago first
        self._away_until: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._urls)

    def holds(self, url: str) -> bool:
        """Whether a URL is one of the roots or lies below one."""
        return self._root_url(url) is not None

    def check(self) -> None:
        """Connect to all of them.

        Raises:
            DataError: If a file system cannot be made, as where pyarrow lacks.
        """
        for root in self._urls:
            self._root(root)

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
        """Return a file of pyarrow's, open for random access, kept for the next who asks.

        Raises:
            As `chunks`.
        """
        with self._lock:
            handle = self._handles.get(url)
            if handle is not None:
                self._handles.move_to_end(url)
                return handle
        root = self._root(self._root_url(url))
        with self._told(root):
            handle = root.files.open_input_file(root.path + url[len(root.url) :])
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

    def _read(self, url: str, offset: int, length: int) -> bytes:
        is_old = url in self._handles
        handle = self.open(url)
        try:
            with self._told(self._root(self._root_url(url))):
                if offset >= handle.size():
                    raise NotThere(GONE_SINCE)
                data: bytes = handle.read_at(length, offset)
                return data
        except ImageError:
            self.forget(url)
            if not is_old:
                raise
        return self._read(url, offset, length)  # what was open may be of an object that has been replaced

    @contextlib.contextmanager
    def _told(self, root: _Root) -> Iterator[None]:
        """Tell faults as ImageErrors; ask a store that did not answer a moment ago only after a while."""
        if time.monotonic() < self._away_until.get(root.url, 0.0):
            raise NotReachable(_NO_ANSWER)
        try:
            with _named_faults():
                yield
        except NotReachable as error:
            if str(error) == _NO_ANSWER:
                self._away_until[root.url] = time.monotonic() + AWAY_S
            raise

    def _root_url(self, url: str) -> str | None:
        return next((root for root in self._urls if url == root or url.startswith(f"{root}/")), None)

    def _root(self, url: str | None) -> _Root:
        if url is None:
            raise ImageError("it lies below no URL that was named")
        with self._lock:
            root = self._roots.get(url)
        if root is None:
            files, path = _file_system(self._urls[url])
            with self._lock:
                root = self._roots[url] = _Root(url, files, path.rstrip("/"))
        return root


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from pyarrow.fs import FileSystem  # type: ignore[attr-defined]
    except ImportError as error:
        raise DataError(
            f"pictures of {canonical_url(url)!r} need {error.name}: pip install 'imret[parquet]'"
        ) from error
    try:
        files, path = FileSystem.from_uri(url)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{canonical_url(url)!r} cannot be opened: {error}.") from error
    return files, str(path)


# Of what S3 says, as pyarrow tells it: an object that is not there, or is shorter by now.
_GONE_IN_S3 = ("NO_SUCH_KEY", "NO_SUCH_BUCKET", "RESOURCE_NOT_FOUND", "InvalidRange", "INVALID_RANGE")
_REFUSED_BY_S3 = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "InvalidAccessKeyId")


@contextlib.contextmanager
def _named_faults() -> Iterator[None]:
    """Tell what pyarrow raises as ImageErrors that name no host, bucket or key."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotThere(GONE_SINCE) from error
    except OSError as error:
        said = str(error)
        if isinstance(error, PermissionError) or any(mark in said for mark in _REFUSED_BY_S3):
            raise NotReachable("its store refuses to give it; look at the credentials") from error
        if any(mark in said for mark in _GONE_IN_S3):
            raise NotThere(GONE_SINCE) from error
        raise NotReachable(_NO_ANSWER) from error
