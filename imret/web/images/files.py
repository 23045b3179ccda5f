"""The pictures that a page shows: from a stored payload to bytes that a browser can be given.

Hides formats that browsers do not show, and the thumbnails
kept on disk. Only what is a picture by its bytes ever leaves. Knows nothing of HTTP but media types and
entity tags.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from imret.disk_cache import DiskCache
from imret.escape import escape_control
from imret.images.decode import Header, bytes_to_decode, read_header
from imret.images.decode_memory import loaded
from imret.images.thumbnails import to_jpeg
from imret.settings import __version__
from imret.sources.opened import Door, Opened
from imret.sources.safe_open import stored_place
from imret.web.images.thumbnails import (
    FORMAT_VERSION,
    ORIGINAL_QUALITY,
    THUMBNAIL_QUALITY,
    ImageResponse,
    ToDecode,
    ToFetch,
    etag_of,
    jpeg_response,
    named_errors,
    round_up_size,
)

_ORIGINAL, _FETCHED = 0, -1  # in the place of a size

_MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
}
_MAX_LABEL = 200


class ImageFiles:
    """The pictures of collections, given out by the payloads of their points. Thread-safe.

    Which files may be given out is told by a guarded `imret.sources.opened.Door`.

    Attributes:
        door: That one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int = 1_000_000_000,
        roots: Sequence[str | os.PathLike[str]] | None = None,
        urls: Sequence[str] = (),
        max_pixels: int | None = None,
    ) -> None:
        """Remember where thumbnails are kept; nothing is made or read yet.

        Args:
            folder: For thumbnails alone; made when first needed, for this user only. If that cannot be, or
                the disk is full, nothing is kept and everything works.
            max_bytes: Of all kept thumbnails, counted in blocks of 4 KiB as file systems give them out. Those
                not used for longest go. 0 keeps none.
            roots: Folders below which pictures may be shown, resolved now, and URLs of buckets; None for
                folders that were ingested and the URLs of IMRET_ROOTS.
            urls: Further URLs of buckets below which pictures may be shown.
            max_pixels: Refuse pictures of more.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes must not be negative, got {max_bytes}")
        self._cache = DiskCache(Path(folder), max_bytes)
        self.door = Door(roots, urls=urls)
        self._max_pixels = max_pixels

    def etag(self, payload: Mapping[str, Any], size: int | None = None) -> str:
        """Return the entity tag that `thumbnail` (or `original`, without a size) would give.

        Costs a look at the file, not its content, so that "unchanged" is answered without decoding. Changes
        with the file's place, inode, size and times of change; not where a file is rewritten in place, to as
        many bytes, within one tick of the file system's clock.

        Raises:
            ImageError: As for `thumbnail`, as far as that shows without reading.
        """
        step = _ORIGINAL if size is None else round_up_size(size)
        with self._open(payload) as opened:
            return etag_of(opened.key(step))

    def thumbnail(self, payload: Mapping[str, Any], size: int) -> ImageResponse:
        """Return a JPEG that fits a square, upright, transparency over white, without metadata.

        Kept on disk. Decoding waits for memory: see `imret.images.decode_memory`.

        Args:
            payload: Of a stored point.
            size: Pixels of the square, at least 1, rounded up to one of `THUMBNAIL_SIZES`, the largest at
                most. A picture smaller than that keeps its size.

        Raises:
            ImageError: If the file is gone, may not be shown (see `ImageFiles`) or cannot be decoded. The
                message names the path below the source, never an absolute one.
            ValueError: If the size is not positive.
        """
        step = round_up_size(size)
        with self._open(payload) as opened:
            key = opened.key(step)
            data = self._cache.get(key)
            if data is None:
                with named_errors(opened.label):
                    data = self._make(opened, step, key)
        return jpeg_response(data, key)

    def ready(
        self, payload: Mapping[str, Any], size: int | None = None
    ) -> ImageResponse | ToDecode | ToFetch:
        """Return what `thumbnail` (or `original`, without a size) would, if it is there; or what that takes.

        Raises:
            ImageError: As for `thumbnail`, as far as the header of the file shows.
            ValueError: If the size is not positive.
        """
        with self._open(payload) as opened:
            return self._ready(opened, size, fetches=False)

    def at_hand(self, payload: Mapping[str, Any], size: int | None = None) -> ImageResponse | ToDecode:
        """Return what `ready` does of a picture that was fetched; it is fetched again if it was let go.

        Raises:
            As `ready`.
        """
        with self._open(payload) as opened:
            response = self._ready(opened, size, fetches=True)
        assert not isinstance(response, ToFetch)
        return response

    def fetch(self, payload: Mapping[str, Any]) -> None:
        """Fetch a picture that lies in a bucket, for `at_hand`.

        Raises:
            ImageError: As for `thumbnail`.
        """
        place = stored_place(payload)
        with named_errors(_label(place.path)):
            self.door.fetch(place)

    def _ready(
        self, opened: _OpenImage, size: int | None, *, fetches: bool
    ) -> ImageResponse | ToDecode | ToFetch:
        step = _ORIGINAL if size is None else round_up_size(size)
        key = opened.key(step)
        data = None if size is None else self._cache.get(key)
        if data is not None:
            return jpeg_response(data, key)
        if opened.opened.is_far and not fetches:
            return ToFetch(opened.key(_FETCHED))
        shown = self._as_it_is(opened, key) if size is None else None
        if shown is not None:
            return shown
        with named_errors(opened.label):
            n_bytes = bytes_to_decode(opened.file, max_pixels=self._max_pixels, max_side=size and step)
        return ToDecode(key, n_bytes)

    def original(self, payload: Mapping[str, Any]) -> ImageResponse:
        """Return the picture at its full size, upright, as browsers show it.

        JPEG, PNG, WebP, GIF, BMP and AVIF are the open file itself, animation, metadata and all: it is the
        user's own picture. Browsers turn a JPEG by its EXIF orientation and an AVIF by its own properties.
        What they do not show, or not alike, is made into a JPEG of the same size, without metadata but a
        colour profile: TIFF, HEIC, JPEG in CMYK, and PNG or WebP that EXIF turns. That is made anew each
        time; the entity tag lets browsers keep it.

        Raises:
            ImageError: As for `thumbnail`; but of a file that is given as it is, only the header is read.

        Source: CSS Images Module Level 3, image-orientation: the initial value is from-image (in all browsers
            since April 2020, according to MDN).
        """
        with self._open(payload) as opened:
            key = opened.key(_ORIGINAL)
            shown = self._as_it_is(opened, key)
            if shown is not None:
                return shown
            with named_errors(opened.label), loaded(opened.file, max_pixels=self._max_pixels) as image:
                return jpeg_response(to_jpeg(image, quality=ORIGINAL_QUALITY), key)

    def decoded(self, payload: Mapping[str, Any], size: int | None = None) -> ImageResponse | None:
        """Return what `ready` said has to be decoded, as bytes in memory, which many may be sent.

        None where the file has been replaced since by one that is given as it is: an open file is for one
        who asks alone, by `original`.

        Raises:
            ImageError: As for `thumbnail` and `original`.
            ValueError: If the size is not positive.
        """
        response = self.original(payload) if size is None else self.thumbnail(payload, size)
        if response.file is None:
            return response
        response.close()
        return None

    def _as_it_is(self, opened: _OpenImage, key: str) -> ImageResponse | None:
        with named_errors(opened.label):
            header = read_header(opened.file, max_pixels=self._max_pixels)
        media_type = _shown_as_it_is(header)
        if media_type is None:
            return None
        opened.file.seek(0)
        return ImageResponse(media_type, etag_of(key), opened.opened.size, file=opened.opened.keep())

    def _make(self, opened: _OpenImage, step: int, key: str) -> bytes:
        with loaded(opened.file, max_pixels=self._max_pixels, max_side=step) as image:
            data = to_jpeg(image, max_side=step, quality=THUMBNAIL_QUALITY)
        # Written while it was read: what was made may be half of each.
        if opened.opened.is_unchanged():
            self._cache.put(key, data)
        return data

    @contextlib.contextmanager
    def _open(self, payload: Mapping[str, Any]) -> Iterator[_OpenImage]:
        place = stored_place(payload)
        label = _label(place.path)
        with named_errors(label):
            opened = self.door.look(place)
        with opened:
            yield _OpenImage(label, opened)


@dataclass(frozen=True, slots=True)
class _OpenImage:
    """A picture file that may be shown, open."""

    label: str
    opened: Opened

    @property
    def file(self) -> BinaryIO:
        with named_errors(self.label):
            return self.opened.file

    def key(self, step: int) -> str:
        """Return 64 hex digits for this very content at a step of sizes."""
        parts = (FORMAT_VERSION, __version__, step, *self.opened.identity)
        return hashlib.sha256(repr(parts).encode()).hexdigest()


# ---- What is sent ------------------------------------------------------------------------------


def _label(path: str) -> str:
    label = escape_control(path)
    return label if len(label) <= _MAX_LABEL else "…" + label[-_MAX_LABEL + 1 :]


def _shown_as_it_is(header: Header) -> str | None:
    """Return the media type under which browsers show this file upright; None if they do not."""
    turned = header.orientation != 1 and header.format not in ("JPEG", "AVIF")
    return None if turned or header.mode == "CMYK" else _MEDIA_TYPES.get(header.format)
