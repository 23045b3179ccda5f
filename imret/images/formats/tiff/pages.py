"""Which of the pictures in a TIFF file is the photo: not its thumbnail, a mask, or a sensor's view.

Source: TIFF Revision 6.0, NewSubfileType; Adobe's Digital Negative specification 1.4, chapter 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from imret.errors import ImageError
from imret.images.formats.spliced import size_of
from imret.images.formats.tiff import directory as tags
from imret.images.formats.tiff.directory import DamagedTiffError, Directory, TiffHeader
from imret.images.formats.tiff.layout import CFA, LINEAR_RAW, RAW_COMPRESSIONS

_REDUCED, _MASK = 1, 4  # bits of NewSubfileType
_OLD_REDUCED = 2  # a value of SubfileType

_MAX_PAGES, _MAX_SUB_IFDS, _MAX_DIRECTORIES = 64, 16, 128
# Below that it is none, where the file holds much more than it needs.
_SMALL_PREVIEW = 640
_MUCH_MORE = 1_000_000
# A preview whose longer side has this is as good as the photo, for a model and to look at.
_GOOD_PREVIEW = 1024


@dataclass(frozen=True, slots=True)
class Photo:
    """The photo of a file.

    Attributes:
        directory: Its own.
        note: What a person should know of the choice, None if it was clear.
    """

    directory: Directory
    note: str | None = None


def find_photo(file: IO[bytes]) -> Photo:
    """Return which picture of a file is its photo: the first that is not a smaller version of another.

    Args:
        file: Open, and can seek.

    Raises:
        EOFError: If the file ends before its first directory does.
        DamagedTiffError: If that contradicts itself.
        ImageError: If there is nothing but a small preview of what only the makers of cameras read.
    """
    header = TiffHeader.read(file)
    pages = _Pages(file, header)
    first = Directory(file, header, header.first)
    if not _is_reduced(first) and not _is_raw(first) and tags.SUB_IFDS not in first:
        return Photo(first)
    known = list(pages.all_from(first))
    raws = [one for one in known if _is_raw(one)]
    plain = [one for one in known if not _is_raw(one) and not _is_mask(one) and _n_pixels(one) > 0]
    if raws:
        return _preview(plain, max(raws, key=_n_pixels))
    whole = [one for one in plain if not _is_reduced(one)]
    # A thumbnail that is larger than the photo is none.
    if whole and _n_pixels(whole[0]) >= _n_pixels(first):
        return Photo(whole[0])
    best = max(plain, key=_n_pixels) if plain else first
    n_bytes = size_of(file)
    if max(_size_of(best)) < _SMALL_PREVIEW and n_bytes > _MUCH_MORE + 8 * sum(map(_n_pixels, plain)):
        raise ImageError(
            f"holds only a preview of {_size_text(best)}; what else is in its {n_bytes:,} bytes is not read. "
            f"A RAW picture? Export it as JPEG or TIFF"
        )
    return Photo(best)


class _Pages:
    """The directories of a file, in its order, each once, and not more than there may be."""

    def __init__(self, file: IO[bytes], header: TiffHeader) -> None:
        self._file, self._header = file, header
        self._seen = {header.first}

    def all_from(self, first: Directory) -> Iterator[Directory]:
        directory: Directory | None = first
        for _ in range(_MAX_PAGES):
            if directory is None:
                return
            yield directory
            for offset in directory.numbers(tags.SUB_IFDS, _MAX_SUB_IFDS).tolist():
                below = self._at(offset)
                if below is not None:
                    yield below
            directory = self._at(directory.next)

    def _at(self, offset: int) -> Directory | None:
        if offset <= 0 or offset in self._seen or len(self._seen) >= _MAX_DIRECTORIES:
            return None
        self._seen.add(offset)
        try:
            return Directory(self._file, self._header, offset)
        except (EOFError, DamagedTiffError):
            return None  # what comes after the photo may be anything


def _preview(plain: list[Directory], raw: Directory) -> Photo:
    """Return the best preview of a RAW picture, if it is good enough to stand for it."""
    size = _size_text(raw)
    if not plain:
        raise ImageError(f"holds only a RAW picture of {size}, which is not read: export it as JPEG or TIFF")
    best = max(plain, key=_n_pixels)
    if 4 * _n_pixels(best) < _n_pixels(raw) and max(_size_of(best)) < _GOOD_PREVIEW:
        raise ImageError(
            f"holds only a preview of {_size_text(best)} of a RAW picture of {size}, which is not read: "
            f"export it as JPEG or TIFF"
        )
    note = f"the preview of {_size_text(best)} of a RAW picture of {size}, which is not read itself"
    return Photo(best, note)


def _is_reduced(directory: Directory) -> bool:
    is_old = directory.number(tags.SUBFILE_TYPE) == _OLD_REDUCED
    return bool(directory.number(tags.NEW_SUBFILE_TYPE) & _REDUCED) or is_old


def _is_mask(directory: Directory) -> bool:
    return bool(directory.number(tags.NEW_SUBFILE_TYPE) & _MASK)


def _is_raw(directory: Directory) -> bool:
    is_sensor = directory.number(tags.PHOTOMETRIC) in (CFA, LINEAR_RAW)
    return is_sensor or directory.number(tags.COMPRESSION) in RAW_COMPRESSIONS


def _size_of(directory: Directory) -> tuple[int, int]:
    return directory.number(tags.IMAGE_WIDTH), directory.number(tags.IMAGE_LENGTH)


def _size_text(directory: Directory) -> str:
    width, height = _size_of(directory)
    return f"{width:,} x {height:,} pixels".replace(",", "")


def _n_pixels(directory: Directory) -> int:
    width, height = _size_of(directory)
    return width * height
