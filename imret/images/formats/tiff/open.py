"""A TIFF file to a picture: by Pillow where it reads the kind right, else from its samples.

What libtiff complains of goes with the picture, or into the reason why there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from imret.images.formats.spliced import Part, Spliced, size_of
from imret.images.formats.tiff import directory as tags
from imret.images.formats.tiff.directory import Directory, not_supported
from imret.images.formats.tiff.layout import (
    CIELAB,
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    NO_COMPRESSION,
    PICTURE_COMPRESSIONS,
    RGB,
    SEPARATED,
    UINT,
    WEBP,
    YCBCR,
    Layout,
    check_readable,
    read_layout,
)
from imret.images.formats.tiff.libtiff import libtiff_complaints
from imret.images.formats.tiff.pages import find_photo
from imret.images.formats.tiff.pixels import mode_of, to_picture
from imret.images.formats.tiff.samples import read_samples
from imret.images.notes import ignore_note

_LZW = 5
_MOST_IN_JPEG = 5  # CMYK with transparency
_CCITT = frozenset((2, 3, 4, 32771))
_MAX_PROFILE_BYTES = 1 << 24


class PlainTiff(TiffImageFile):
    """A picture of a kind that Pillow reads right.

    Attributes:
        note: What a person should know of the page that was chosen.
    """

    note: str | None = None


class SampledTiff(Image.Image):
    """A picture of another kind, not decoded before its pixels are asked for.

    Args:
        file: Open, until it is decoded.
        directory: The picture's.
        layout: Of that, which `check_readable` has let pass.
        note: What a person should know of the page that was chosen.

    Attributes:
        bytes_to_decode: About how many bytes it takes to decode it, at most.
        note: As given.
    """

    format = "TIFF"
    format_description = "TIFF by its samples"

    def __init__(self, file: IO[bytes], directory: Directory, layout: Layout, note: str | None) -> None:
        super().__init__()
        self._mode, self._size = mode_of(layout), (layout.width, layout.height)
        self.bytes_to_decode, self.note = layout.bytes_to_decode, note
        self._source: tuple[IO[bytes], Directory, Layout] | None = (file, directory, layout)
        profile = directory.data(tags.ICC_PROFILE, _MAX_PROFILE_BYTES)
        if profile:
            self.info["icc_profile"] = profile
        orientation = directory.number(tags.ORIENTATION, 1)
        self.getexif()[tags.ORIENTATION] = orientation if 1 <= orientation <= 8 else 1

    def load(self) -> Any:
        """Decode it, if it is not yet."""
        self.decode(ignore_note)
        return super().load()

    def decode(self, on_note: Callable[[str], object]) -> None:
        """Decode it, if it is not yet.

        Args:
            on_note: As for `imret.images.decode.load_image`.
        """
        if self._source is not None:
            file, directory, layout = self._source
            image = to_picture(read_samples(file, directory, layout), directory, layout, on_note)
            self.im, self._source = image.im, None


def open_tiff(file: IO[bytes]) -> PlainTiff | SampledTiff:
    """Return the photo of a file, not decoded yet.

    Args:
        file: Open, and can seek; it has to stay open until the photo is decoded.

    Raises:
        ImageError: If it is of a kind that is not read, or has no photo but a small preview of one.
        Exception: Whatever a damaged file makes of it.
    """
    photo = find_photo(file)
    directory = photo.directory
    layout = read_layout(directory)
    is_known_to_pillow = not (directory.header.is_big and directory.header.order == ">")
    if is_known_to_pillow and _is_for_pillow(directory, layout):
        image = _open_by_pillow(file, directory, layout)
        image.note = photo.note
        return image
    if directory.number(tags.INK_SET, 1) == 2:
        raise not_supported("inks other than CMYK")
    check_readable(layout)
    return SampledTiff(file, directory, layout, photo.note)


def load_tiff(image: Image.Image, on_note: Callable[[str], object]) -> None:
    """Decode what `open_tiff` returned.

    Args:
        image: Of this module.
        on_note: As for `imret.images.decode.load_image`.

    Raises:
        ImageError: If libtiff was built without what the file needs.
        Exception: Whatever a damaged file makes of it.
    """
    with libtiff_complaints() as complaints:
        try:
            if isinstance(image, SampledTiff):
                image.decode(on_note)
            else:
                image.load()
        except (OSError, ValueError) as error:
            if not complaints or (isinstance(error, OSError) and error.errno is not None):
                raise
            said = str(complaints)
            if "not configured" in said or "precision" in said:
                raise not_supported(said) from error
            raise OSError(said) from error
    note = getattr(image, "note", None)
    if note:
        on_note(note)
    if complaints:
        on_note(f"libtiff: {complaints}")


def _is_for_pillow(directory: Directory, layout: Layout) -> bool:
    """Whether Pillow reads a kind, and right."""
    if layout.compression in PICTURE_COMPRESSIONS:
        is_ccitt = layout.compression in _CCITT
        if layout.bits != (1 if is_ccitt else 8) or layout.n_samples > (1 if is_ccitt else _MOST_IN_JPEG):
            raise not_supported(layout.describe())
        return True
    if layout.photometric == YCBCR:
        is_whole = layout.bits == 8 and layout.n_samples == 3 and layout.sample_format == UINT
        return is_whole and layout.compression != WEBP
    if tags.PHOTOMETRIC not in directory or layout.is_planar or layout.sample_format != UINT:
        return False
    if layout.compression == WEBP:
        return False
    if directory.number(tags.PHOTOMETRIC) == YCBCR:
        return False  # luma alone, which Pillow takes for three where it is compressed
    if layout.photometric in (MIN_IS_WHITE, MIN_IS_BLACK):
        return layout.n_samples == 1 and layout.bits in (1, 2, 4, 8)
    if layout.n_samples == 4 and layout.photometric == RGB and tags.EXTRA_SAMPLES not in directory:
        return False  # transparency, or nothing: that is seen when it is decoded
    n = {RGB: (3, 4), CIELAB: (3,), SEPARATED: (4,)}.get(layout.photometric, ())
    is_cmyk = directory.number(tags.INK_SET, 1) == 1
    return layout.n_samples in n and layout.bits == 8 and not layout.is_reversed and is_cmyk


def _open_by_pillow(file: IO[bytes], directory: Directory, layout: Layout) -> PlainTiff:
    patches: dict[int, bytes] = {}
    if directory.offset != directory.header.first:
        is_big = directory.header.is_big
        order = "little" if directory.header.order == "<" else "big"
        patches[8 if is_big else 4] = directory.offset.to_bytes(8 if is_big else 4, order)  # type: ignore[arg-type]
    if tags.ORIENTATION in directory and not directory.is_short(tags.ORIENTATION):
        at, entry = directory.as_short(tags.ORIENTATION, directory.number(tags.ORIENTATION, 1) & 0xFFFF)
        patches[at] = entry
    if layout.photometric == YCBCR and layout.compression == NO_COMPRESSION and tags.COMPRESSION in directory:
        # Pillow has no thought of pixels that share their colour; to libtiff it gives what is compressed.
        at, entry = directory.as_short(tags.COMPRESSION, _LZW)
        patches[at] = entry
    file.seek(0)
    try:
        image = PlainTiff(_Patched(file, patches) if patches else file, "")  # type: ignore[arg-type]
    except (SyntaxError, KeyError) as error:
        if "unknown" in str(error) or isinstance(error.__cause__ or error, KeyError):
            raise not_supported(layout.describe()) from error
        raise
    # No browser, and no other reader, turns a picture by what XMP says.
    image.info.pop("xmp", None)
    return image


class _Patched(Spliced):
    """A file some of whose bytes read as others: how Pillow is led to a page, or around an odd type.

    libtiff, which Pillow has read the pixels, gets the file as it is.

    Args:
        file: Open, and can seek.
        patches: Bytes by their offset.
    """

    def __init__(self, file: IO[bytes], patches: Mapping[int, bytes]) -> None:
        parts: list[Part] = []
        at = 0
        for offset, patch in sorted(patches.items()):
            parts += [(at, offset), patch]
            at = offset + len(patch)
        super().__init__(file, [*parts, (at, size_of(file))])
        self._whole = file

    def fileno(self) -> int:
        """Return the descriptor of the file, from which libtiff reads."""
        return self._whole.fileno()

    def getvalue(self) -> bytes:
        """Return the whole file, for libtiff, where it has no descriptor."""
        self._whole.seek(0)
        return self._whole.read()
