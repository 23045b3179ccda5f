"""Any picture file to an upright RGB image, and that to the pixels a model takes.

Hides formats, orientation, colour modes and damage: whatever is wrong with a file comes out as one ImageError
whose message is the reason. Colour profiles (ICC) are ignored, as open_clip ignores them. Of an animation or
a multi-page file, only the first frame is read.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from imret.errors import ImageError
from imret.images.color import to_rgb
from imret.images.notes import OnNote, ignore_note
from imret.images.tiff.open import SampledTiff, load_tiff, open_tiff

MAX_PIXELS = 100_000_000

IMAGE_EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif"),
        *(".bmp", ".dib", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif"),
    )
)

# Tried in this order, whatever the file's name says. Pillow reads many more, some of them through external
# programs: a photo search has no use for them and every parser is a door.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Where a picture becomes small in two steps, the first leaves this many times the pixels a side for LANCZOS.
REDUCING_GAP = 2.0
# The same for a model's size, to which it is resized by BICUBIC or BILINEAR with antialiasing.
_COVER_GAP = 1.5

Picture: TypeAlias = Image.Image
Resample: TypeAlias = Image.Resampling
Source: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | Image.Image


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture file says of itself before anything is decoded.

    Attributes:
        format: "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF" or "HEIF", by content.
        mode: Pillow's name of the pixels' kind, such as "RGB" or "CMYK".
        orientation: EXIF orientation in [1, 8]; 1 is upright. Of a PNG, only what stands before its pixels.
    """

    format: str
    mode: str
    orientation: int


def load_image(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int | None = None,
    reserve: Callable[[int], None] | None = None,
    on_note: OnNote = ignore_note,
) -> Image.Image:
    """Open a picture as it is meant to be seen: first frame, upright, RGB, transparency over white.

    Args:
        source: A path, the bytes of a file, an open binary file, or a PIL image.
        max_pixels: Refuse more, judged from the header before anything is decoded. Pillow's own limit does
            not apply, but for TIFF and WebP: see `lift_pillow_limit`. Decoding takes 4 to 18 bytes a pixel.
        max_side: What the longer side will be made after this. A large JPEG file then comes at a half, a
            quarter or an eighth of its size, never at less than twice this side: libjpeg skips the fine
            detail instead of decoding it. Other formats, and PIL images, come whole.
        reserve: Called with about how many bytes it will take to decode a file, before that begins; what it
            raises ends this. See `imret.images.decode_memory`.
        on_note: Told what a person should know of a picture that is returned; see `imret.images.notes`.

    Returns:
        A PIL image of mode RGB that holds no open file.

    Raises:
        ImageError: If there is no such file, or it is not a picture, is damaged, truncated, empty or too
            large. The message is the reason, without the path.
    """
    return _load(source, max_pixels, max_side=max_side, reserve=reserve, on_note=on_note).image


@dataclass(frozen=True, slots=True)
class Reduced:
    """A picture that was decoded at a fraction of its size, or whole.

    Attributes:
        image: As from `load_image`.
        size: (width, height) of the whole picture, upright.
        extent: How many of the image's pixels, with fractions, the whole picture takes: its last column and
            row may stand for less than the others.
    """

    image: Image.Image
    size: tuple[int, int]
    extent: tuple[float, float]


def load_to_cover(
    source: Source,
    side: int,
    *,
    max_pixels: int = MAX_PIXELS,
    reserve: Callable[[int], None] | None = None,
    on_note: OnNote = ignore_note,
) -> Reduced:
    """Open a picture whose shorter side will be made `side` pixels; a large JPEG comes at a fraction.

    Args:
        source: As for `load_image`.
        side: A JPEG file never comes with less than one and a half times that at its shorter side.
        max_pixels: As for `load_image`, of the whole picture.
        reserve: As for `load_image`.
        on_note: As for `load_image`.

    Raises:
        ImageError: As `load_image`.
    """
    return _load(source, max_pixels, min_side=side, reserve=reserve, on_note=on_note)


def read_header(file: BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Identify a picture by its content; nothing is decoded, and what follows the header is not looked at.

    Args:
        file: Open, and can seek; where it stands afterwards is undefined.
        max_pixels: As for `load_image`.

    Raises:
        ImageError: If it is not a picture that `load_image` knows, its header is damaged, or it is too large.
    """
    with _pillow_warnings_off(), _identify(file, _head(file)) as image:
        _check_size(image, max_pixels)
        # PngImageFile.getexif decodes the whole picture to find a chunk that stands behind the pixels.
        orientation = _orientation(image, Image.Image.getexif)
        return Header(image.format or "JPEG", image.mode, orientation if orientation in _UPRIGHT else 1)


def bytes_to_decode(file: BinaryIO, *, max_pixels: int = MAX_PIXELS, max_side: int | None = None) -> int:
    """Return about how many bytes `load_image` would take for a file at most; nothing is decoded.

    Args:
        file: As for `read_header`.
        max_pixels: As for `load_image`.
        max_side: As for `load_image`.

    Raises:
        ImageError: As `read_header`.
    """
    with _pillow_warnings_off(), _identify(file, _head(file)) as image:
        _check_size(image, max_pixels)
        full = image.size
        if isinstance(image, JpegImageFile):
            _reduce(image, max_side=max_side)
        return _bytes_of(image, full)


def lift_pillow_limit(max_pixels: int) -> None:
    """Let Pillow's own limit be no lower than ours. For programs: it is a setting of the whole process.

    `load_image` needs this only for TIFF and WebP files of more than twice PIL.Image.MAX_IMAGE_PIXELS
    (179 megapixels unless changed), whose readers ask that limit themselves.
    """
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)


# ---- Opening -----------------------------------------------------------------------------------


def _open_file(path: str | os.PathLike[str]) -> BinaryIO:
    def opener(name: str, flags: int) -> int:
        # Without O_NONBLOCK, opening a named pipe called a.jpg waits for a writer for ever.
        return os.open(name, flags | os.O_NONBLOCK)

    try:
        file = open(path, "rb", opener=opener)  # noqa: SIM115 - returned open; Path.open has no opener
    except (OSError, ValueError) as error:
        raise ImageError(_file_reason(error)) from error
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise ImageError("not a regular file")
    return file


def _file_reason(error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return f"not a usable path: {error}"
    known = {
        errno.ENOENT: "no such file",
        errno.EACCES: "no permission to read it",
        errno.EPERM: "no permission to read it",
        errno.EISDIR: "it is a folder, not a file",
        errno.ELOOP: "a symbolic link that leads back to itself",
        errno.ENAMETOOLONG: "the path is too long",
        errno.EIO: "the disk reports a read error",
        errno.ESTALE: "the network file system lost the file",
    }
    return known.get(error.errno or 0, f"cannot be read: {error.strerror or error}")


def _load(
    source: Source,
    max_pixels: int,
    *,
    max_side: int | None = None,
    min_side: int | None = None,
    reserve: Callable[[int], None] | None = None,
    on_note: OnNote = ignore_note,
) -> Reduced:
    """Return a picture; see `load_image` for one side, `load_to_cover` for the other."""

    def load(file: BinaryIO) -> Reduced:
        with _identify(file, _head(file)) as image:
            _check_size(image, max_pixels)
            full, part = image.size, 1
            if isinstance(image, JpegImageFile):
                part = _reduce(image, max_side=max_side, min_side=min_side)
            if reserve is not None:
                n_bytes = _bytes_of(image, full)
                # To cover a model's size is for the kernel of `imret.images.resize`, which takes an array.
                reserve(n_bytes if min_side is None else n_bytes + 3 * image.size[0] * image.size[1])
            # Only now: to find the orientation of a PNG is to decode it, and errors would be lost there.
            loaded = _finish(image, max_pixels, on_note, is_ours=True)
            size = full[::-1] if _orientation(image) >= 5 else full
            return Reduced(loaded, size, (size[0] / part, size[1] / part))

    with _pillow_warnings_off():
        if isinstance(source, Image.Image):
            image = _finish(source, max_pixels, on_note)
            return Reduced(image, image.size, image.size)
        if isinstance(source, bytes):
            return load(io.BytesIO(source))
        if isinstance(source, (str, os.PathLike)):
            with _open_file(source) as file:
                return load(file)
        return load(source if source.seekable() else io.BytesIO(source.read()))


def _reduce(image: JpegImageFile, *, max_side: int | None = None, min_side: int | None = None) -> int:
    """Have libjpeg decode at a fraction, as far as one of the sides allows; by which part, for `min_side`."""
    width, height = image.size
    if max_side is not None:
        scale = min(1.0, REDUCING_GAP * max_side / max(width, height))
        image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
    elif min_side is not None:
        part = _part_of(image, min_side)
        image.draft(None, (width // part, height // part))
        return part
    return 1


# Bytes of a pixel from the decoder to RGB by mode, which in Pillow takes four itself; what is not here goes
# through RGBA or floats, several times. And what the decoders of some formats hold beside it.
_MODE_BYTES = {"RGB": 4, "L": 5, "1": 5, "P": 5, "RGBX": 8, "CMYK": 8, "YCbCr": 8, "RGBA": 9}
_ANY_MODE_BYTES = 18
_DECODER_BYTES = {"TIFF": 4, "GIF": 8, "WEBP": 12, "AVIF": 8, "HEIF": 8}


def _bytes_of(image: Image.Image, full: tuple[int, int]) -> int:
    """Return about how many bytes it will take to decode a file that is open; see `bytes_to_decode`."""
    is_plain = image.mode in _MODE_BYTES and "transparency" not in image.info
    each = _MODE_BYTES[image.mode] if is_plain else _ANY_MODE_BYTES
    each += _DECODER_BYTES.get(image.format or "", 0)
    if _orientation(image, Image.Image.getexif) != 1:
        each += 4  # turned, it is there twice
    if isinstance(image, SampledTiff):
        each = 4 if _orientation(image) != 1 else 0
        return image.bytes_to_decode + image.size[0] * image.size[1] * each
    n_bytes = image.size[0] * image.size[1] * each
    if isinstance(image, JpegImageFile) and _has_scans(image):
        # All scans come together before a pixel does: two bytes for each component, at any fraction.
        n_bytes += full[0] * full[1] * 2 * max(1, image.layers)
    return n_bytes


def _has_scans(image: JpegImageFile) -> bool:
    """Whether a JPEG comes in several scans: progressive, or each component by itself."""
    if "progressive" in image.info:
        return True
    file = image.fp
    if file is None:
        return False
    # Pillow stops behind the header of the first scan: marker, length, number of components, two bytes each.
    length = 8 + 2 * image.layers
    at = file.tell()
    file.seek(max(0, at - length))
    header = file.read(length)
    file.seek(at)
    return header[:2] != b"\xff\xda" or header[4:5] != bytes([image.layers])


def _part_of(image: JpegImageFile, side: int) -> int:
    """Return by how much libjpeg may divide a picture's sides while it decodes: 1, 2, 4 or 8."""
    for part in (8, 4, 2):
        if min(image.size) / part >= _COVER_GAP * side:
            divides = image.size[0] % part == image.size[1] % part == 0
            # A last column that stands for less must stay the last.
            if divides or _orientation(image) == 1:
                return part
    return 1


def _head(file: BinaryIO) -> bytes:
    """Return the first bytes, by which formats are told apart."""
    try:
        file.seek(0)
        head = file.read(32)
    except OSError as error:
        raise ImageError(_file_reason(error)) from error
    if not head:
        raise ImageError("the file is empty")
    return head


def _identify(file: BinaryIO, head: bytes) -> Image.Image:
    """Read the header by content. Pillow's Image.open would, but it also applies its global pixel limit."""
    Image.init()
    fault: tuple[str, Exception] | None = None
    for name in _FORMATS:
        opener, accepts = Image.OPEN.get(name, (None, None))
        if name == "JPEG":
            # Not the registered opener: that turns camera files with previews into MPO, whose first frame
            # is this very JPEG.
            opener = JpegImageFile
        try:
            # Anything but True is a refusal, or the name of what this Pillow was built without.
            if opener is not None and accepts is not None and accepts(head[:16]) is True:
                return open_tiff(file) if name == "TIFF" else _header(opener, file)
        except ImageError:
            raise
        except Exception as error:
            fault = (name, error)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise ImageError("a HEIC picture, which needs: pip install 'imret[heic]'") from None
        try:
            return _header(HeifImageFile, file)
        except Exception as error:
            fault = ("HEIF", error)
    if fault is None:
        raise ImageError("not a picture of a known format, whatever its name says")
    raise _refusal(fault[1], fault[0]) from fault[1]


def _header(opener: Callable[..., Image.Image], file: BinaryIO) -> Image.Image:
    file.seek(0)
    image = opener(file, "")  # no name: given one, Pillow may map the file, and a shrinking file then kills
    return image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"the picture has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels are more than the limit of {max_pixels:,} pixels")


def _finish(image: Image.Image, max_pixels: int, on_note: OnNote, *, is_ours: bool = False) -> Image.Image:
    """Check the size, decode, convert, turn. What is ours, nobody else holds: it need not be copied."""
    _check_size(image, max_pixels)
    try:
        if is_ours and image.format == "TIFF":
            load_tiff(image, on_note)
        else:
            image.load()
        rgb = (
            image
            if is_ours and image.mode == "RGB" and "transparency" not in image.info
            else to_rgb(image, on_note)
        )
        if "icc_profile" in image.info:  # some conversions make a new picture
            rgb.info["icc_profile"] = image.info["icc_profile"]
    except ImageError:
        raise
    except Exception as error:
        # Decoders meet hostile bytes here; over the years they have raised nearly every built-in exception.
        raise _refusal(error, image.format) from error
    orientation = _orientation(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _refusal(error: Exception, format_name: str | None) -> ImageError:
    kind = f"{format_name} picture" if format_name else "picture"
    detail = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError):
        return ImageError(f"not enough memory to decode the {kind}")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"a {kind} of more pixels than its reader takes: {detail}")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(_file_reason(error))
    if "truncated" in detail.lower() or isinstance(error, (EOFError, struct.error)):
        return ImageError(f"a truncated {kind}" + (f": {detail}" if detail else ""))
    return ImageError(f"a damaged or truncated {kind}: {detail or type(error).__name__}")


def _orientation(
    image: Image.Image, getexif: Callable[[Image.Image], Image.Exif] = lambda image: image.getexif()
) -> int:
    """Return the EXIF orientation, 1 where there is none that can be read: a broken tag spoils no picture."""
    try:
        value = getexif(image).get(_ORIENTATION_TAG, 1)
        return int(value)
    except Exception:
        return 1


# ---- Warnings ----------------------------------------------------------------------------------

_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextlib.contextmanager
def _pillow_warnings_off() -> Iterator[None]:
    """Ignore Pillow's warnings about odd metadata while any thread decodes.

    Not warnings.catch_warnings: that saves and restores all filters, and two threads that overlap restore
    each other's. This adds and removes one filter, for Pillow's modules only.
    """
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                for entry in list(warnings.filters):
                    if entry[0] == "ignore" and getattr(entry[3], "pattern", None) == r"PIL\.":
                        with contextlib.suppress(ValueError, AttributeError):
                            warnings.filters.remove(entry)  # type: ignore[attr-defined]
