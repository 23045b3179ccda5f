"""Pictures that a client sends to search with, kept in memory for a while."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import unicodedata
from collections import OrderedDict
from dataclasses import dataclass

from imret.errors import ImageError
from imret.images.decode import bytes_to_decode
from imret.images.decode_memory import loaded
from imret.images.thumbnails import to_jpeg
from imret.settings import __version__
from imret.web.images.thumbnails import (
    FORMAT_VERSION,
    THUMBNAIL_QUALITY,
    THUMBNAIL_SIZES,
    ImageResponse,
    ToDecode,
    jpeg_response,
    named_errors,
    round_up_size,
)

_MAX_NAME = 100


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that was sent.

    Attributes:
        sha256: Hex digest of its bytes.
        name: What to call it; never a place. At most 100 characters, none of them control characters.
        data: The file's bytes.
    """

    sha256: str
    name: str
    data: bytes


class Uploads:
    """Pictures that were sent, in memory, by what they are. Thread-safe.

    Those that were sent or asked for last are kept, as many as `max_bytes` hold, with the thumbnails made of
    them.
    """

    def __init__(self, *, max_bytes: int = 128 << 20, max_pixels: int | None = None) -> None:
        """Begin with none.

        Args:
            max_bytes: Of all files and thumbnails kept.
            max_pixels: Refuse pictures of more.
        """
        self._max_bytes, self._max_pixels = max_bytes, max_pixels
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Upload] = OrderedDict()  # used longest ago first
        self._thumbnails: dict[str, dict[int, bytes]] = {}
        self._n_bytes = 0

    def add(self, name: str, data: bytes) -> Upload:
        """Keep a picture and return it; one that is kept already only gets the new name.

        Args:
            name: As the sender calls it: only a label.
            data: The bytes of the file.

        Raises:
            ImageError: If it is larger than all that is kept, or no picture that can be decoded to its end.
        """
        name = _clean_name(name)
        if len(data) > self._max_bytes:
            raise ImageError(
                f"{name}: its {len(data):,} bytes are more than the limit of {self._max_bytes:,} bytes"
            )
        upload = Upload(hashlib.sha256(data).hexdigest(), name, data)
        with self._lock:
            is_known = upload.sha256 in self._kept
        if not is_known:
            with named_errors(name), loaded(data, max_pixels=self._max_pixels, max_side=THUMBNAIL_SIZES[-1]):
                pass  # it can be decoded
        with self._lock:
            before = self._kept.get(upload.sha256)
            if before is not None:
                upload = Upload(upload.sha256, name, before.data)
            else:
                self._n_bytes += len(data)
            self._kept[upload.sha256] = upload
            self._kept.move_to_end(upload.sha256)
            self._make_room()
        return upload

    def get(self, sha256: str) -> Upload | None:
        """Return a picture that was sent, None if it is not, or no longer, kept."""
        with self._lock:
            upload = self._kept.get(sha256)
            if upload is not None:
                self._kept.move_to_end(sha256)
            return upload

    def thumbnail(self, sha256: str, size: int) -> ImageResponse | None:
        """Return what `ImageFiles.thumbnail` gives, of a picture that was sent; None if it is not kept.

        Raises:
            ValueError: If the size is not positive.
        """
        upload, response = self.get(sha256), self.ready(sha256, size)
        if upload is None or not isinstance(response, ToDecode):
            return response if isinstance(response, ImageResponse) else None
        with named_errors(upload.name):
            return jpeg_response(self._make(upload, round_up_size(size)), response.key)

    def ready(self, sha256: str, size: int) -> ImageResponse | ToDecode | None:
        """Return what `thumbnail` would, if it is there; or what that takes.

        Raises:
            ValueError: If the size is not positive.
        """
        step = round_up_size(size)
        upload = self.get(sha256)
        if upload is None:
            return None
        with self._lock:
            data = self._thumbnails.get(sha256, {}).get(step)
        key = hashlib.sha256(repr((FORMAT_VERSION, __version__, step, sha256)).encode()).hexdigest()
        if data is not None:
            return jpeg_response(data, key)
        file = io.BytesIO(upload.data)
        return ToDecode(key, bytes_to_decode(file, max_pixels=self._max_pixels, max_side=step))

    def _make(self, upload: Upload, step: int) -> bytes:
        with loaded(upload.data, max_pixels=self._max_pixels, max_side=step) as image:
            data = to_jpeg(image, max_side=step, quality=THUMBNAIL_QUALITY)
        with self._lock:
            by_size = self._thumbnails.setdefault(upload.sha256, {})
            # A thumbnail must not push out the very picture that it was made of.
            fits = len(upload.data) + sum(map(len, by_size.values())) + len(data) <= self._max_bytes
            if upload.sha256 in self._kept and step not in by_size and fits:
                by_size[step] = data
                self._n_bytes += len(data)
                self._make_room()
            elif not by_size:
                del self._thumbnails[upload.sha256]
        return data

    def _make_room(self) -> None:
        while self._n_bytes > self._max_bytes:
            sha256, upload = self._kept.popitem(last=False)
            self._n_bytes -= len(upload.data)
            self._n_bytes -= sum(len(data) for data in self._thumbnails.pop(sha256, {}).values())


def _clean_name(name: str) -> str:
    """Return the last part of a name, without what a page or terminal would obey or cannot encode."""
    last = re.split(r"[/\\]", name)[-1]
    # Format characters (Cf) turn the direction of text; the two joiners are part of Persian and of emoji.
    kept = "".join(
        char
        for char in last
        if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") or char in "\u200c\u200d"
    )
    return kept.strip()[:_MAX_NAME] or "picture"
