"""How many bytes it takes to decode a picture, told before it is."""

from __future__ import annotations

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from imret.images.formats.tiff.open import SampledTiff
from imret.images.hdr import needs_tone_map

# Bytes of a pixel from the decoder to RGB by mode, which in Pillow takes four itself; what is not here goes
# through RGBA or floats, several times. And what the decoders of some formats hold beside it.
_MODE_BYTES = {"RGB": 4, "L": 5, "1": 5, "P": 5, "RGBX": 8, "CMYK": 8, "YCbCr": 8, "RGBA": 9}
_ANY_MODE_BYTES = 18
_DECODER_BYTES = {"TIFF": 4, "GIF": 8, "WEBP": 12, "AVIF": 8, "HEIF": 8}


def bytes_of(image: Image.Image, full: tuple[int, int], *, is_turned: bool) -> int:
    """Return about how many bytes it will take to decode a file that is open, at most.

    Args:
        image: As Pillow has opened it; of a JPEG, at the size that it will be decoded at.
        full: The size of the whole picture.
        is_turned: Whether it will be, by its orientation.
    """
    if isinstance(image, SampledTiff):
        return image.bytes_to_decode + (4 * image.size[0] * image.size[1] if is_turned else 0)
    is_plain = image.mode in _MODE_BYTES and "transparency" not in image.info
    each = _MODE_BYTES[image.mode] if is_plain else _ANY_MODE_BYTES
    each += _DECODER_BYTES.get(image.format or "", 0)
    if is_turned:
        each += 4  # turned, it is there twice
    if image.info.get("cicp") and needs_tone_map(*image.info["cicp"]):
        each += 4
    n_bytes = image.size[0] * image.size[1] * each
    if isinstance(image, JpegImageFile) and has_scans(image):
        # All scans come together before a pixel does: two bytes for each component, at any fraction.
        n_bytes += full[0] * full[1] * 2 * max(1, image.layers)
    return n_bytes


def has_scans(image: JpegImageFile) -> bool:
    """Whether a JPEG comes in several scans: progressive, or each component by itself.

    Ask first when it has just been opened.
    """
    if "has_scans" not in image.info:
        image.info["has_scans"] = "progressive" in image.info or _is_first_of_several(image)
    return bool(image.info["has_scans"])


def _is_first_of_several(image: JpegImageFile) -> bool:
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
