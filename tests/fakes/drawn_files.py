"""Files of one drawn scene in kinds that readers of pictures take wrongly, with the pixels that are right."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tests.fakes.profiles import rgb_profile


def scene(width: int = 160, height: int = 120) -> Image.Image:
    """Draw a sky, a sun, a house: ordinary colours, smooth and with edges."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([60 + x * 120 // width, 90 + y * 100 // height, 200 - y * 150 // height], axis=-1)
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width * 0.15, height * 0.2, width * 0.5, height * 0.75), fill=(220, 40, 30))
    draw.rectangle((width * 0.6, height * 0.5, width * 0.9, height * 0.95), fill=(30, 120, 40))
    return image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """Return a chunk of a PNG."""
    checksum = zlib.crc32(kind + body) if crc is None else crc
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    """Return a PNG with chunks before its pixels."""
    return data[:33] + b"".join(chunks) + data[33:]


def raw_png(levels: NDArray[Any], bits: int, colour_type: int, *chunks: bytes) -> bytes:
    """Return a PNG of levels, (H, W) or (H, W, C), with chunks before its pixels."""
    height, width = levels.shape[:2]
    rows = levels.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8)
    elif bits == 8:
        packed = rows.astype(np.uint8)
    else:
        each = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(each.reshape(height, -1).astype(np.uint8), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in packed)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    )


_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def _light(image: Image.Image) -> NDArray[Any]:
    levels = np.asarray(image) / 255.0
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) @ _TO_BT2020.T


def in_pq(image: Image.Image, white: float = 203.0) -> Image.Image:
    """Return a picture as levels of BT.2020 with PQ, its white at so many cd/m2."""
    root = np.maximum(_light(image) * white / 10_000, 0.0) ** 0.1593017578125
    levels = ((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root)) ** 78.84375
    return Image.fromarray(np.rint(levels * 255).astype(np.uint8))


def in_hlg(image: Image.Image, white: float = 203.0) -> Image.Image:
    """Return a picture as levels of BT.2020 with HLG, its white at so many cd/m2 of a display of 1,000."""
    light = _light(image) * white / 1000
    luminance = light @ np.array([0.2627, 0.6780, 0.0593])
    scene_light = light * np.maximum(luminance, 1e-6)[..., None] ** (-1 / 6)
    bright = 0.17883277 * np.log(np.maximum(12 * scene_light - 0.28466892, 1e-9)) + 0.55991073
    levels = np.where(scene_light <= 1 / 12, np.sqrt(3 * scene_light), bright)
    return Image.fromarray(np.rint(levels * 255).clip(0, 255).astype(np.uint8))


def avif(image: Image.Image, primaries: int, transfer: int) -> bytes:
    """Return an AVIF that states these primaries and this transfer; Pillow always writes those of sRGB."""
    data = bytearray(encoded(image, "AVIF", quality=95))
    at = data.index(b"nclx") + 4
    data[at : at + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


def keyed_pngs() -> dict[str, tuple[bytes, NDArray[Any]]]:
    """Return PNGs one of whose levels is transparent, by kind, with their pixels over white."""
    grey = np.asarray(scene().convert("L"))
    made: dict[str, tuple[bytes, NDArray[Any]]] = {}
    for bits in (1, 2, 4, 8, 16):
        levels = grey.astype(np.uint16) * 257 >> (16 - bits)
        key = int(levels[60, 60])
        shown = np.rint(levels * (255 / ((1 << bits) - 1)))
        shown[levels == key] = 255
        trns = chunk(b"tRNS", struct.pack(">H", key))
        made[f"grey of {bits} bits"] = (raw_png(levels, bits, 0, trns), np.stack([shown] * 3, axis=-1))
    colours = np.asarray(scene())
    for bits in (8, 16):
        levels = colours.astype(np.uint16) * (257 if bits == 16 else 1)
        shown = colours.copy()
        shown[(colours == colours[60, 60]).all(axis=2)] = 255
        trns = chunk(b"tRNS", struct.pack(">3H", *map(int, levels[60, 60])))
        made[f"RGB of {bits} bits"] = (raw_png(levels, bits, 2, trns), shown)
    return made


def small_frame_gif() -> tuple[bytes, NDArray[Any]]:
    """Return a GIF whose only frame covers a quarter of it, and its pixels over white."""
    frame = scene(80, 60).quantize(64)
    data = bytearray(encoded(frame, "GIF"))
    data[6:10] = struct.pack("<HH", 160, 120)
    with Image.open(io.BytesIO(encoded(frame, "GIF"))) as plain:
        shown = np.full((120, 160, 3), 255, np.uint8)
        shown[:60, :80] = np.asarray(plain.convert("RGB"))
    return bytes(data), shown


def bmp(alpha: int) -> bytes:
    """Return a BMP of 32 bits that says it has alpha, and has this one everywhere."""
    pixels = np.asarray(scene())[::-1, :, ::-1]
    height, width = pixels.shape[:2]
    body = np.dstack([pixels, np.full((height, width), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, 32, 3, len(body), 2835, 2835, 0, 0)
    head += masks + b"BGRs" + bytes(48)
    at = 14 + len(head)
    return b"BM" + struct.pack("<IHHI", at + len(body), 0, 0, at) + head + body


def shown_alike() -> dict[str, tuple[str, bytes, float]]:
    """Return files whose pixels are the same in a browser, with type and how far they may be apart.

    Levels of 255, on average. What is left as it is by its profile, though browsers apply it, is not here.
    """
    plain = encoded(scene(), "PNG")
    shown: dict[str, tuple[str, bytes, float]] = {
        f"PNG, transparent level: {kind}": ("png", data, 0.6) for kind, (data, _) in keyed_pngs().items()
    }
    for name, made in (("PQ", in_pq), ("HLG", in_hlg)):
        numbers = (9, 16 if name == "PQ" else 18)
        shown[f"AVIF in {name}"] = ("avif", avif(made(scene()), *numbers), 1.0)
        cicp = chunk(b"cICP", bytes((*numbers, 0, 1)))
        profile = rgb_profile("BT.2020", cicp=numbers)
        shown[f"PNG in {name} by its profile"] = (
            "png",
            encoded(made(scene()), "PNG", icc_profile=profile),
            1.0,
        )
        shown[f"PNG in {name}"] = ("png", with_chunks(encoded(made(scene()), "PNG"), cicp), 1.0)
    shown["PNG in PQ up to 4,000 cd/m2"] = (
        "png",
        with_chunks(
            encoded(in_pq(scene(), 1000.0), "PNG"),
            chunk(b"cICP", bytes((9, 16, 0, 1))),
            chunk(b"cLLI", struct.pack(">II", 4000 * 10_000, 100 * 10_000)),
        ),
        4.0,
    )
    shown["AVIF of BT.2020"] = ("avif", avif(scene(), 9, 1), 1.0)
    shown["AVIF of linear light"] = ("avif", avif(scene(), 1, 8), 1.0)
    shown["PNG of gamma 1"] = ("png", with_chunks(plain, chunk(b"gAMA", struct.pack(">I", 100_000))), 1.0)
    shown["GIF, a small first frame"] = ("gif", small_frame_gif()[0], 0.1)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    shown["JPEG turned by XMP alone"] = ("jpeg", encoded(scene(), "JPEG", xmp=xmp), 0.5)
    for space in ("ProPhoto", "BT.2020", "Wide Gamut", "linear"):
        data = encoded(scene(), "JPEG", quality=95, icc_profile=rgb_profile(space))
        shown[f"JPEG in {space}"] = ("jpeg", data, 1.0)
    for kind, odd in odd_chunks().items():
        shown[f"PNG, {kind}"] = ("png", with_chunks(plain, odd), 0.1)
    return shown


def odd_chunks() -> dict[str, bytes]:
    """Return ancillary chunks of PNGs that are large or broken, by what they are."""
    text = b"Title\0x"
    return {
        "a packed text of 2 MB": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b'{"nodes": 1}' * 170_000)),
        "an international text of 2 MB": chunk(
            b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x>abc</x>" * 200_000)
        ),
        "a text of 2 MB": chunk(b"tEXt", b"prompt\0" + b"a" * 2_000_000),
        "a profile of 2 MB": chunk(b"iCCP", b"press\0\0" + zlib.compress(bytes(2_000_000))),
        "a text with a wrong checksum": chunk(b"tEXt", text, crc=1),
        "a resolution with a wrong checksum": chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1), crc=1),
        "a packed text of an unknown method": chunk(b"zTXt", b"Title\0\x78abc"),
        "a profile of an unknown method": chunk(b"iCCP", b"p\0\x01abc"),
        "a profile without a name": chunk(b"iCCP", b"\0\0" + zlib.compress(b"x")),
        "a broken profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x" * 200)),
        "chromaticities that are cut": chunk(b"cHRM", bytes(8)),
        "an empty sRGB": chunk(b"sRGB", b""),
        "an empty gamma": chunk(b"gAMA", b""),
        "an empty time": chunk(b"tIME", b""),
        "an unknown chunk": chunk(b"prVt", b"x" * 100),
    }
