"""What a browser is given of a picture: a response, and thumbnails of few sizes, each made once.

Knows nothing of HTTP but media types and entity tags.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from imret.errors import ImageError

# A size that is asked for is rounded up to one of these, so that a picture has at most so many thumbnails.
THUMBNAIL_SIZES = (160, 320, 640, 1280, 2048)
THUMBNAIL_QUALITY = 80  # of JPEG, 1 to 95
ORIGINAL_QUALITY = 92  # of originals that browsers do not show, made into a JPEG
# A new number where thumbnails are made in another way: those of before are then not found, and grow old.
FORMAT_VERSION = 2


@dataclass(frozen=True, slots=True)
class ImageResponse:
    """What is to be sent. Whoever gets it closes it, or reads it to its end.

    Attributes:
        media_type: Such as "image/jpeg".
        etag: Strong entity tag with its quotes. It stands for the file's identity and the size, not for the
            bytes alone, and tells nothing of either.
        size: Bytes.
        data: The bytes, if they are in memory; else None.
        file: The open file, at its start, if they are not; else None.
    """

    media_type: str
    etag: str
    size: int
    data: bytes | None = None
    file: BinaryIO | None = None

    def chunks(self, chunk_bytes: int = 1 << 18) -> Iterator[bytes]:
        """Yield exactly `size` bytes, then close.

        Raises:
            OSError: If the file has become shorter since it was opened, or the disk fails: the length is
                already announced by then, so the answer has to break off.
        """
        with self:
            if self.data is not None:
                yield self.data
                return
            assert self.file is not None
            left = self.size
            while left:
                chunk = self.file.read(min(chunk_bytes, left))
                if not chunk:
                    raise OSError("the file became shorter while it was sent")
                left -= len(chunk)
                yield chunk

    def read(self) -> bytes:
        """Return all bytes, and close."""
        return b"".join(self.chunks())

    def close(self) -> None:
        """Close the file, if there is one. May be called more than once."""
        if self.file is not None:
            self.file.close()

    def __enter__(self) -> ImageResponse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class ToDecode:
    """What has to be decoded before it can be sent.

    Attributes:
        key: The same for all who ask for the same.
        n_bytes: About how much memory that takes.
    """

    key: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ToFetch:
    """What has to be fetched from a bucket before it can be sent, or decoded.

    Attributes:
        key: The same for all who ask for the same picture, at whatever size.
    """

    key: str


def round_up_size(size: int) -> int:
    """Return the step of `THUMBNAIL_SIZES` that a size is rounded up to; the largest for all above.

    Raises:
        ValueError: If the size is not positive.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    return next((step for step in THUMBNAIL_SIZES if step >= size), THUMBNAIL_SIZES[-1])


def jpeg_response(data: bytes, key: str) -> ImageResponse:
    return ImageResponse("image/jpeg", etag_of(key), len(data), data=data)


def etag_of(key: str) -> str:
    return f'"{key[:32]}"'


@contextlib.contextmanager
def named_errors(label: str) -> Iterator[None]:
    """Put the name of the picture before the reason of an ImageError."""
    try:
        yield
    except ImageError as error:
        raise type(error)(f"{label}: {error}") from error
