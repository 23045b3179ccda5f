"""Any picture file to an upright RGB image, and that to the pixels a model takes.

Hides formats, orientation, colours and damage: whatever is wrong with a file comes out as one ImageError
whose message is the reason. Colour profiles near sRGB are ignored, as open_clip ignores all: see
`imret.images.icc`. Of an animation only the first frame is read, of a TIFF the first page that is the photo.
"""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, TypeAlias

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from imret.errors import DataError, ImageError
from imret.images.decode_bytes import bytes_of, has_scans
from imret.images.formats import jpeg, png
from imret.images.formats.incomplete import note_if_filled, refuse_zeros, what_is_there
from imret.images.formats.isobmff import read_colours
from imret.images.formats.spliced import spliced
from imret.images.formats.tiff.open import load_tiff, open_tiff
from imret.images.hdr import needs_tone_map, to_srgb
from imret.images.icc import cicp_of, cmyk_to_srgb, far_to_srgb, gamma_to_srgb
from imret.images.notes import OnNote, ignore_note
from imret.images.opening import file_reason, open_file, read_head
from imret.images.pillow_warnings import pillow_warnings_off
from imret.images.transparency import first_frame, over_white
from imret.settings import pixel_limit, read_settings

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

# What Pillow says of healthy files that it does not read.
_NOT_SUPPORTED = ("unsupported", "not supported", "cannot handle", "unknown compression")

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
    max_pixels: int | None = None,
    max_side: int | None = None,
    reserve: Callable[[int], None] | None = None,
    on_note: OnNote = ignore_note,
) -> Image.Image:
    """Open a picture as it is meant to be seen: first frame, upright, RGB, transparency over white.

    Args:
        source: A path, the bytes of a file, an open binary file, or a PIL image.
        max_pixels: Refuse more, judged before anything is decoded; None for the limit of the settings. A JPEG
            that is decoded at a fraction is judged by that, unless it comes in several scans. Pillow's own
            limit does not apply, but for TIFF and WebP: see `lift_pillow_limit`. Decoding takes 4 to 18 bytes
            a pixel.
        max_side: What the longer side will be made after this. A large JPEG file then comes at a half, a
            quarter or an eighth of its size, never at less than twice this side: libjpeg skips the fine
            detail instead of decoding it. Other formats, and PIL images, come whole.
        reserve: Called with about how many bytes it will take to decode a file, before that begins; what it
            raises ends this. See `imret.images.decode_memory`.
        on_note: Told what a person should know of a picture that is returned; see `imret.images.notes`.

    Returns:
        A PIL image of mode RGB that holds no open file.

    Raises:
        ImageError: If there is no such file, or it is not a picture, is damaged, empty or too large, or lacks
            too much (see `imret.images.formats.incomplete`). The message is the reason, without the path.
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
    max_pixels: int | None = None,
    reserve: Callable[[int], None] | None = None,
    on_note: OnNote = ignore_note,
) -> Reduced:
    """Open a picture whose shorter side will be made `side` pixels; a large JPEG comes at a fraction.

    Args:
        source: As for `load_image`.
        side: A JPEG file never comes with less than one and a half times that at its shorter side.
        max_pixels: As for `load_image`.
        reserve: As for `load_image`.
        on_note: As for `load_image`.

    Raises:
        ImageError: As `load_image`.
    """
    return _load(source, max_pixels, min_side=side, reserve=reserve, on_note=on_note)


def read_header(file: IO[bytes], *, max_pixels: int | None = None) -> Header:
    """Identify a picture by its content; nothing is decoded, and what follows the header is not looked at.

    Args:
        file: Open, and can seek; where it stands afterwards is undefined.
        max_pixels: As for `load_image`.

    Raises:
        ImageError: If it is not a picture that `load_image` knows, its header is damaged, or it is too large.
    """
    with pillow_warnings_off(), _identify(file, read_head(file), whole=False) as image:
        if not isinstance(image, JpegImageFile):  # at what fraction it will be decoded, is not known
            _check_size(image, image.size, max_pixels)
        # PngImageFile.getexif decodes the whole picture to find a chunk that stands behind the pixels.
        orientation = _orientation(image, Image.Image.getexif)
        return Header(image.format or "JPEG", image.mode, orientation if orientation in _UPRIGHT else 1)


def bytes_to_decode(file: IO[bytes], *, max_pixels: int | None = None, max_side: int | None = None) -> int:
    """Return about how many bytes `load_image` would take for a file at most; nothing is decoded.

    Args:
        file: As for `read_header`.
        max_pixels: As for `load_image`.
        max_side: As for `load_image`.

    Raises:
        ImageError: As `read_header`.
    """
    with pillow_warnings_off(), _identify(file, read_head(file), whole=False) as image:
        full = image.size
        if isinstance(image, JpegImageFile):
            _reduce(image, max_side=max_side)
        _check_size(image, full, max_pixels)
        return _bytes_of(image, full)


def _bytes_of(image: Image.Image, full: tuple[int, int]) -> int:
    # Not PngImageFile.getexif: that decodes.
    return bytes_of(image, full, is_turned=_orientation(image, Image.Image.getexif) != 1)


def lift_pillow_limit(max_pixels: int | None = None) -> None:
    """Let Pillow's own limit be no lower than ours. For programs: it is a setting of the whole process.

    `load_image` needs this only for TIFF and WebP files of more than twice PIL.Image.MAX_IMAGE_PIXELS
    (179 megapixels unless changed), whose readers ask that limit themselves.
    """
    if Image.MAX_IMAGE_PIXELS is not None:
        limit = _limit(max_pixels)
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)


# ---- Opening -----------------------------------------------------------------------------------


def _load(
    source: Source,
    max_pixels: int | None,
    *,
    max_side: int | None = None,
    min_side: int | None = None,
    reserve: Callable[[int], None] | None = None,
    on_note: OnNote = ignore_note,
) -> Reduced:
    """Return a picture; see `load_image` for one side, `load_to_cover` for the other."""

    def load(file: IO[bytes]) -> Reduced:
        with _identify(file, read_head(file)) as image:
            full, part = image.size, 1
            if isinstance(image, JpegImageFile):
                part = _reduce(image, max_side=max_side, min_side=min_side)
            _check_size(image, full, max_pixels)
            if reserve is not None:
                n_bytes = _bytes_of(image, full)
                # To cover a model's size is for the kernel of `imret.images.resize`, which takes an array.
                reserve(n_bytes if min_side is None else n_bytes + 3 * image.size[0] * image.size[1])
            refuse_zeros(image, file)
            # Only now: to find the orientation of a PNG is to decode it, and errors would be lost there.
            loaded = _finish(image, on_note, is_ours=True)
            size = full[::-1] if _orientation(image) >= 5 else full
            return Reduced(loaded, size, (size[0] / part, size[1] / part))

    with pillow_warnings_off():
        if isinstance(source, Image.Image):
            _check_size(source, source.size, max_pixels)
            image = _finish(source, on_note)
            return Reduced(image, image.size, image.size)
        if isinstance(source, bytes):
            return load(io.BytesIO(source))
        if isinstance(source, (str, os.PathLike)):
            with open_file(source) as file:
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


def _part_of(image: JpegImageFile, side: int) -> int:
    """Return by how much libjpeg may divide a picture's sides while it decodes: 1, 2, 4 or 8."""
    for part in (8, 4, 2):
        if min(image.size) / part >= _COVER_GAP * side:
            divides = image.size[0] % part == image.size[1] % part == 0
            # A last column that stands for less must stay the last.
            if divides or _orientation(image) == 1:
                return part
    return 1


def _identify(file: IO[bytes], head: bytes, *, whole: bool = True) -> Image.Image:
    """Read the header by content. Pillow's Image.open would, but it also applies its global pixel limit."""
    Image.init()
    fault: tuple[str, Exception] | None = None
    for name in _FORMATS:
        opener, accepts = Image.OPEN.get(name, (None, None))
        try:
            # Anything but True is a refusal, or the name of what this Pillow was built without.
            if name == "JPEG" and jpeg.accepts(head):
                return _open_jpeg(file)
            if name == "PNG" and head.startswith(png.SIGNATURE):
                return _open_png(file, whole=whole)
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
    if fault[0] == "JPEG" and (kind := jpeg.not_supported(file)) is not None:
        raise ImageError(f"not supported: {kind}") from fault[1]
    raise _refusal(fault[1], fault[0]) from fault[1]


def _header(opener: Callable[..., Image.Image], file: IO[bytes]) -> Image.Image:
    file.seek(0)
    image = opener(file, "")  # no name: given one, Pillow may map the file, and a shrinking file then kills
    if image.format in ("AVIF", "HEIF") and "icc_profile" not in image.info:
        image.info["cicp"], image.info["brightest"] = read_colours(file)
    return image


def _open_jpeg(file: IO[bytes]) -> JpegImageFile:
    # Not the registered opener: that turns camera files with previews into MPO, whose first frame is this
    # very JPEG.
    file.seek(0)
    try:
        return JpegImageFile(file, "")
    except Exception:
        plain = jpeg.without_oddities(file)
        if plain is None:
            raise
        return JpegImageFile(plain, "")


def _open_png(file: IO[bytes], *, whole: bool) -> Image.Image:
    chunks = png.read_chunks(file, to_pixels=not whole)
    image = _header(PngImageFile, file if len(chunks.parts) == 1 else spliced(file, chunks.parts))
    png.correct_info(image, chunks)
    return image


def _check_size(image: Image.Image, full: tuple[int, int], max_pixels: int | None) -> None:
    """Refuse what takes too much to decode.

    Args:
        image: Of a JPEG, at the fraction at which it will be decoded.
        full: The size of the whole picture.
        max_pixels: As for `load_image`.
    """
    limit = _limit(max_pixels)
    if image.format == "BMP" and full[0] >= 1 << 31:  # Pillow reads a width without its sign
        full = (full[0] - (1 << 32), full[1])
    if min(full) < 1:
        raise ImageError(f"the picture has no pixels ({full[0]} x {full[1]})")
    # All scans of a JPEG come together at its full size before a pixel does.
    width, height = full if isinstance(image, JpegImageFile) and has_scans(image) else image.size
    if width * height > limit:
        raise ImageError(
            f"{full[0]} x {full[1]} pixels are more than the limit of {limit:,} pixels, which --max-pixels "
            "or IMRET_MAX_PIXELS raises"
        )


def _limit(max_pixels: int | None) -> int:
    limit = pixel_limit() if max_pixels is None else max_pixels
    if limit is None:
        raise DataError(
            f"IMRET_MAX_PIXELS is {read_settings().max_pixels[:50]!r}, which is no number of pixels. "
            "Set one, such as 250000000, or none."
        )
    return limit


def _finish(image: Image.Image, on_note: OnNote, *, is_ours: bool = False) -> Image.Image:
    """Decode, convert, turn. What is ours, nobody else holds: it need not be copied."""
    try:
        frame = first_frame(image)
        decoded = _decoded(image, on_note) if is_ours else image
        decoded.load()
        rgb, profile = cmyk_to_srgb(decoded), None
        if rgb is None:
            is_plain = decoded.mode == "RGB" and "transparency" not in decoded.info
            rgb = decoded if is_ours and is_plain else over_white(decoded, on_note, frame)
            rgb, profile = _in_srgb(rgb, image.info)
    except ImageError:
        raise
    except Exception as error:
        # Decoders meet hostile bytes here; over the years they have raised nearly every built-in exception.
        raise _refusal(error, image) from error
    orientation = _orientation(image)
    upright = rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb
    # Nothing that has been applied may be applied again to a picture that comes back.
    upright.info = {} if profile is None else {"icc_profile": profile}
    return upright


def _decoded(image: Image.Image, on_note: OnNote) -> Image.Image:
    """Decode a file that is open, or what is there of it."""
    if image.format == "TIFF":
        load_tiff(image, on_note)
        return image
    file = image.fp if isinstance(image, ImageFile) else None  # Pillow lets go of it
    try:
        image.load()
    except (MemoryError, Image.DecompressionBombError):
        raise
    except Exception:
        found = None if file is None else what_is_there(image, file, on_note)
        if found is None:
            raise
        return found
    if isinstance(image, JpegImageFile) and file is not None:
        if jpeg.ends_in_zeros(file):  # which decode to anything
            return what_is_there(image, file, on_note) or image
        note_if_filled(image, file, on_note)
    if isinstance(image, PngImageFile) and file is not None and png.may_lack(image, file):
        return what_is_there(image, file, on_note) or image
    return image


def _in_srgb(
    rgb: Image.Image, info: Mapping[str | tuple[int, int], Any]
) -> tuple[Image.Image, object | None]:
    """Return a picture in sRGB where it says that it is in something far from that, and else its profile.

    Args:
        rgb: Of mode RGB.
        info: What its file says.
    """
    profile, converted = info.get("icc_profile"), None
    cicp = info.get("cicp") or cicp_of(profile)
    if cicp is not None and needs_tone_map(*cicp):
        converted = to_srgb(rgb, cicp[0], cicp[1], info.get("brightest"))
    elif info.get("cicp") is None and profile is not None:
        converted = far_to_srgb(rgb, profile)
    elif cicp is None and isinstance(info.get("gamma"), float) and "srgb" not in info:
        converted = gamma_to_srgb(rgb, info["gamma"])
    return (rgb, profile) if converted is None else (converted, None)


def _refusal(error: Exception, image: Image.Image | str) -> ImageError:
    format_name = image if isinstance(image, str) else image.format
    kind = f"{format_name} picture" if format_name else "picture"
    detail = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError):
        return ImageError(f"not enough memory to decode the {kind}")
    if isinstance(error, Image.DecompressionBombError):
        return ImageError(f"a {kind} of more pixels than its reader takes: {detail}")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(file_reason(error))
    if isinstance(error, NotImplementedError) or any(word in detail.lower() for word in _NOT_SUPPORTED):
        return ImageError(f"not supported: a {kind}: {detail}")
    if "truncated" in detail.lower() or isinstance(error, (EOFError, struct.error)):
        return ImageError(f"a truncated {kind}" + (f": {detail}" if detail else ""))
    return ImageError(f"a damaged or truncated {kind}: {detail or type(error).__name__}")


def _orientation(
    image: Image.Image, getexif: Callable[[Image.Image], Image.Exif] = lambda image: image.getexif()
) -> int:
    """Return the EXIF orientation, 1 where none can be read or is one: a broken tag spoils no picture.

    That of XMP, which Pillow would take where EXIF has none, is for programs that edit: no browser turns by
    it.
    """
    info = image.info
    hidden: dict[str | tuple[int, int], Any] = {
        name: info.pop(name) for name in ("xmp", "XML:com.adobe.xmp") if name in info
    }
    try:
        value = getexif(image).get(_ORIENTATION_TAG, 1)
        return int(value) if int(value) in _UPRIGHT else 1
    except Exception:
        return 1
    finally:
        info.update(hidden)
