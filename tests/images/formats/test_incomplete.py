"""Pictures a part of which is missing, JPEGs with odd headers, and what is said of either."""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imret.errors import ImageError
from imret.images.decode import load_image, load_to_cover
from tests.images.test_decode import encoded, picture, png

NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
END = b"\xff\xd9"

KINDS: dict[str, Any] = {
    "4:4:4": {"subsampling": 0},
    "4:2:0": {"subsampling": 2},
    "grey": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "restarts": {"restart_marker_rows": 1},
}


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    return encoded(NOISY.convert(mode), "JPEG", quality=80, **options)


def told(data: bytes, **options: Any) -> tuple[Image.Image, list[str]]:
    notes: list[str] = []
    return load_image(data, on_note=notes.append, **options), notes


def flat_share(image: Image.Image) -> float:
    """The share of rows at the end that are of one colour: what libjpeg has filled, in a picture of noise."""
    pixels = np.asarray(image)
    is_flat = (pixels == pixels[-1, -1]).all(axis=(1, 2))
    return float(np.argmin(is_flat[::-1]) / len(is_flat)) if not is_flat.all() else 1.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [None, 100])
def test_a_jpeg_is_taken_with_a_note_up_to_a_tenth_missing(kind: str, side: int | None) -> None:
    data = jpeg(**KINDS[kind])
    for missing in (0.02, 0.05, 0.085):
        image, (note,) = told(data[: int(len(data) * (1 - missing))], max_side=side)
        whole = load_image(data, max_side=side)
        assert image.size == whole.size
        percent = int(re.fullmatch(r"the last (\d+) % are missing", note)[1])  # type: ignore[index]
        # Noise takes as many bytes everywhere, but for the tables before it.
        assert missing * 100 - 1 <= percent <= missing * 100 + 2
        assert abs(flat_share(image) * 100 - percent) <= 7, "filled are whole rows of blocks"
        np.testing.assert_array_equal(
            np.asarray(image)[: int(image.height * 0.85)], np.asarray(whole)[: int(whole.height * 0.85)]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_lacks_more_is_refused_and_says_how_much(kind: str) -> None:
    data = jpeg(**KINDS[kind])
    for missing in (0.15, 0.5, 0.9):
        with pytest.raises(ImageError, match=r"truncated JPEG picture: the last") as caught:
            load_image(data[: int(len(data) * (1 - missing))])
        percent = int(re.search(r"(\d+) %", str(caught.value))[1])  # type: ignore[index]
        assert missing * 100 - 1 <= percent <= missing * 100 + 5


def test_zeros_in_the_place_of_the_end_count_as_missing() -> None:
    data = jpeg()
    for missing in (0.05, 0.5):
        end = int(len(data) * (1 - missing))
        padded = data[:end] + bytes(len(data) - end)
        if missing > 0.1:
            with pytest.raises(ImageError, match=r"truncated JPEG picture: the last 5\d % are missing"):
                load_image(padded)
        else:
            assert told(padded)[1] == told(data[:end])[1]
            np.testing.assert_array_equal(np.asarray(load_image(padded)), np.asarray(load_image(data[:end])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_was_closed_too_early_is_taken_and_noted(kind: str) -> None:
    data = jpeg(**KINDS[kind])
    for missing in (0.03, 0.5):
        image, (note,) = told(data[: int(len(data) * (1 - missing))] + END)
        percent = int(re.fullmatch(r"the last (\d+) % are missing", note)[1])  # type: ignore[index]
        assert missing * 100 - 1 <= percent <= missing * 100 + 5
        assert image.size == NOISY.size


@pytest.mark.parametrize("restarts", [{"restart_marker_rows": 1}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("behind", [-1, 0, 1, 2, 3])
def test_a_jpeg_that_was_cut_at_a_restart_says_how_much_is_missing(
    restarts: dict[str, int], behind: int
) -> None:
    data = jpeg(**restarts)
    marks = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", data)]
    for part in (0.45, 0.5, 0.55):
        cut = data[: marks[int(part * len(marks))] + behind]
        for broken in (cut, cut + bytes(len(data) - len(cut))):
            with pytest.raises(ImageError, match=r"truncated JPEG picture: the last") as caught:
                load_image(broken)
            percent = int(re.search(r"(\d+) %", str(caught.value))[1])  # type: ignore[index]
            assert abs(100 - 100 * part - percent) <= 4
        assert told(cut + END)[1] == [f"the last {percent} % are missing"]


@pytest.mark.parametrize("size", [(64, 48), (9, 7), (640, 480)])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_without_its_last_marker_is_whole(size: tuple[int, int], missing: int) -> None:
    data = encoded(picture(*size) if min(size) > 8 else Image.new("RGB", size, "red"), "JPEG", quality=90)
    image, notes = told(data[:-missing])
    np.testing.assert_array_equal(np.asarray(image), np.asarray(load_image(data)))
    assert notes == ["the file is cut off behind its last pixels"]


def test_a_picture_that_ends_in_grey_has_no_note() -> None:
    card = Image.new("RGB", (320, 240), (128, 128, 128))
    for image in (card, card.convert("L")):
        assert told(encoded(image, "JPEG"))[1] == []
    card.paste("red", (0, 0, 320, 40))
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        assert told(encoded(card, "JPEG", **options))[1] == []
        assert told(encoded(card, "JPEG", **options), max_side=20)[1] == []


def test_of_a_progressive_jpeg_only_fine_detail_may_be_missing() -> None:
    data = encoded(picture(320, 240), "JPEG", progressive=True)
    scans = [found.start() for found in re.finditer(rb"\xff\xda", data)]
    image, notes = told(data[: scans[-1] + 40])
    assert notes == ["the file is cut off: some of the finest detail is missing"]
    assert np.abs(np.asarray(image).astype(int) - np.asarray(load_image(data))).mean() < 6
    with pytest.raises(ImageError, match="truncated"):
        load_image(data[: scans[1] + 40])  # no channel has all of its spectrum


def test_a_photo_that_is_decoded_at_a_fraction_is_judged_alike() -> None:
    data = encoded(NOISY.resize((1600, 1200)), "JPEG")
    notes: list[str] = []
    reduced = load_to_cover(data[: int(len(data) * 0.95)], 100, on_note=notes.append)
    assert max(reduced.image.size) <= 400
    assert re.fullmatch(r"the last [4-8] % are missing", notes[0])


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_a_png_follows_the_same_rule(mode: str) -> None:
    pixels = NOISY if mode != "P" else NOISY.quantize(256)
    data = encoded(pixels.convert(mode) if mode != "P" else pixels, "PNG", compress_level=0)
    image, (note,) = told(data[: int(len(data) * 0.95)])
    assert note in ("the last 5 % are missing", "the last 6 % are missing")
    grey = np.asarray(image)[-20:]
    assert (grey == 128).all()
    whole = np.asarray(load_image(data))
    np.testing.assert_array_equal(np.asarray(image)[:440], whole[:440])
    with pytest.raises(ImageError, match=r"truncated PNG picture: the last (40|41) % are missing"):
        load_image(data[: int(len(data) * 0.6)])


def test_a_png_whose_end_alone_is_missing_is_whole() -> None:
    data = encoded(picture(), "PNG")
    for missing in (4, 12):
        np.testing.assert_array_equal(np.asarray(load_image(data[:-missing])), np.asarray(picture()))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


STRIDE = 1 + 3 * 640
ROWS = b"".join(b"\0" + row.tobytes() for row in np.asarray(NOISY))
HEAD = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 640, 480, 8, 2, 0, 0, 0))
CLOSE = chunk(b"IEND", b"")


def noisy_png(packed: bytes, *, close: bytes = CLOSE) -> bytes:
    """A PNG of packed rows in chunks of 64 KiB."""
    parts = [packed[at : at + (1 << 16)] for at in range(0, len(packed), 1 << 16)]
    return HEAD + b"".join(chunk(b"IDAT", part) for part in parts) + close


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_png_with_a_row_that_is_filtered_in_no_known_way_is_damaged(part: float) -> None:
    at = int(480 * part) * STRIDE
    with pytest.raises(ImageError, match=r"^a damaged PNG picture: its pixels do not match"):
        load_image(noisy_png(zlib.compress(ROWS[:at] + b"\x05" + ROWS[at + 1 :])))


@pytest.mark.parametrize("level", [0, 6])
@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.99])
def test_a_png_with_a_flipped_bit_is_damaged(level: int, part: float) -> None:
    flipped = bytearray(encoded(picture(640, 480), "PNG", compress_level=level))
    start = flipped.index(b"IDAT")
    flipped[start + 10 + int(part * (len(flipped) - start - 30))] ^= 0x10
    with pytest.raises(ImageError, match=r"^a damaged PNG picture: its pixels do not match"):
        load_image(bytes(flipped))


@pytest.mark.parametrize("mode", ["RGB", "P"])
@pytest.mark.parametrize("missing", [0.04, 0.3, 0.8])
def test_zeros_in_the_place_of_the_end_of_a_png_count_as_missing(mode: str, missing: float) -> None:
    noisy = NOISY if mode == "RGB" else NOISY.quantize(64)
    data = encoded(noisy, "PNG")
    cut = data[: int(len(data) * (1 - missing))]
    padded = cut + bytes(len(data) - len(cut))
    if missing < 0.1:
        assert told(padded)[1] == told(cut)[1]
        np.testing.assert_array_equal(np.asarray(load_image(padded)), np.asarray(load_image(cut)))
    else:
        with pytest.raises(ImageError, match=r"truncated PNG picture: the last \d+ % are missing"):
            load_image(padded)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("mode", [zlib.Z_FINISH, zlib.Z_FULL_FLUSH])
def test_a_png_that_was_closed_too_early_is_taken_and_noted(part: float, mode: int) -> None:
    n = int(480 * part)
    pack = zlib.compressobj()
    image, (note,) = told(noisy_png(pack.compress(ROWS[: n * STRIDE]) + pack.flush(mode)))
    assert note == f"the last {100 - round(100 * part)} % are missing"
    np.testing.assert_array_equal(np.asarray(image)[:n], np.asarray(NOISY)[:n])
    assert (np.asarray(image)[n:] == 128).all()


def test_a_png_of_one_colour_that_was_closed_too_early_is_counted_to_its_last_row() -> None:
    rows = (b"\0" + b"\xff\0\0" * 640) * 480
    pack = zlib.compressobj()
    data = noisy_png(pack.compress(rows[: 240 * STRIDE]) + pack.flush(zlib.Z_SYNC_FLUSH))
    image, notes = told(data)
    assert notes == ["the last 50 % are missing"]
    assert (np.asarray(image)[:240] == (255, 0, 0)).all()


def test_a_png_one_of_whose_checksums_is_right_is_whole() -> None:
    packed = bytearray(zlib.compress(ROWS))
    packed[-1] ^= 1
    wrong_inside = noisy_png(bytes(packed))
    wrong_outside = bytearray(noisy_png(zlib.compress(ROWS)))
    wrong_outside[len(HEAD) + 8 + (1 << 16)] ^= 1
    image, notes = told(bytes(wrong_outside))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(NOISY))
    assert notes == []
    image, notes = told(wrong_inside)  # by which Pillow loses the last row
    np.testing.assert_array_equal(np.asarray(image)[:-1], np.asarray(NOISY)[:-1])
    assert notes == ["the last 1 % are missing"]
    wrong_outside[len(HEAD) + 5000] ^= 1
    with pytest.raises(ImageError, match=r"^a damaged PNG picture"):
        load_image(bytes(wrong_outside))


@pytest.mark.parametrize("size", [(64, 48), (5, 3), (1, 1), (9, 1)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_a_png_that_ends_in_black_has_no_note(mode: str, size: tuple[int, int]) -> None:
    image, notes = told(encoded(Image.new(mode, size), "PNG"))
    assert image.size == size
    assert notes == []


@pytest.mark.parametrize(
    ("n", "is_transparent"), [(1, True), (2, True), (3, False), (256, False), (300, False)]
)
def test_transparency_of_more_colours_than_the_palette_has_is_left_out(n: int, is_transparent: bool) -> None:
    head = HEAD[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0))
    colours = chunk(b"PLTE", bytes((200, 0, 0, 0, 0, 200))) + chunk(b"tRNS", bytes(n))
    image = load_image(head + colours + chunk(b"IDAT", zlib.compress(bytes(5))) + CLOSE)
    assert image.getpixel((0, 0)) == ((255, 255, 255) if is_transparent else (200, 0, 0))


def test_a_bitmap_of_negative_width_is_told_by_that() -> None:
    data = bytearray(encoded(picture(), "BMP"))
    data[18:22] = struct.pack("<i", -4)
    with pytest.raises(ImageError, match=r"^the picture has no pixels \(-4 x \d+\)$"):
        load_image(bytes(data))


@pytest.mark.parametrize("missing", [0.05, 0.5])
def test_an_interlaced_png_that_lacks_a_part_is_refused(missing: float) -> None:
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    pixels = np.asarray(NOISY.convert("L"))
    rows = b"".join(b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx])
    head = HEAD[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 640, 480, 8, 0, 0, 0, 1))
    np.testing.assert_array_equal(
        np.asarray(load_image(head + chunk(b"IDAT", zlib.compress(rows)) + CLOSE))[..., 0], pixels
    )
    part = rows[: int(len(rows) * (1 - missing))]
    for data in (
        head + chunk(b"IDAT", zlib.compress(part)) + CLOSE,
        head + chunk(b"IDAT", zlib.compress(rows, 0)[: len(part)]),
    ):
        with pytest.raises(ImageError, match=r"truncated PNG picture: \d+ % of it are missing"):
            load_image(data)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "BMP"])
def test_what_else_ends_too_early_is_refused(file_format: str) -> None:
    data = encoded(NOISY.convert("RGB"), file_format)
    with pytest.raises(ImageError, match="truncated"):
        load_image(data[: int(len(data) * 0.97)])


def written(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """An encoded picture; the plugin for HEIC is not registered for it."""
    if file_format != "HEIF":
        return encoded(image, file_format, **options)
    stream = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(image).save(stream, **options)
    return stream.getvalue()


@pytest.mark.parametrize("file_format", ["WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("missing", [0.05, 0.3, 0.6])
def test_zeros_in_the_place_of_the_end_are_not_decoded(
    file_format: str, lossless: bool, missing: float
) -> None:
    data = written(NOISY, file_format, **({"lossless": lossless} if file_format == "WEBP" else {}))
    assert load_image(data).size == NOISY.size
    n = int(len(data) * missing)
    with pytest.raises(ImageError, match="its end is zeros, as a copy that was broken off leaves them"):
        load_image(data[:-n] + bytes(n))


@pytest.mark.parametrize("file_format", ["WEBP", "AVIF", "HEIF"])
@pytest.mark.parametrize("color", ["black", "white", "grey", "red"])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (1000, 500)])
def test_healthy_pictures_of_one_colour_and_zeros_behind_the_pixels_are_taken(
    file_format: str, color: str, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x9286] = bytes(5000)
    card = Image.new("RGB", size, color)
    for data in (written(card, file_format), written(card, file_format, exif=exif.tobytes())):
        assert told(data)[1] == []
        assert told(data + bytes(4096))[1] == []


# ---- JPEGs with odd headers, and of other kinds --------------------------------------------------------


def with_segment(segment: bytes) -> bytes:
    """The picture with something in the place of its JFIF segment."""
    data = encoded(picture(), "JPEG")
    end = 4 + int.from_bytes(data[4:6], "big")
    return data[:2] + segment + data[end:]


@pytest.mark.parametrize(
    "segment",
    [
        b"",
        b"\xff\xe0\0\x07JFIF\0",
        b"\xff\xe0\0\x02",
        b"\0" * 8,
        b"\xff\xe0\0\x07JFIF\0\xff\xe1\0\x09Exif\0\0x",
        b"\xff\xee\0\x07Adobe",
        b"\xff\xe2\0\x0eICC_PROFILE\0",
    ],
)
def test_a_jpeg_with_an_odd_segment_is_read_as_without_it(segment: bytes) -> None:
    expected = np.asarray(load_image(encoded(picture(), "JPEG")))
    np.testing.assert_array_equal(np.asarray(load_image(with_segment(segment))), expected)


def frame(marker: int, *, bits: int = 8, channels: int = 3) -> bytes:
    """A healthy-looking JPEG of another kind: nothing here can decode it."""
    data = encoded(picture(), "JPEG")
    at = data.index(b"\xff\xc0")
    body = struct.pack(">BHHB", bits, 48, 64, channels) + b"".join(
        bytes((i + 1, 0x11, 0)) for i in range(channels)
    )
    end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body + data[end:]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (frame(0xC1, bits=12), "a JPEG of 12 bits a channel"),
        (frame(0xC3, bits=16), "a JPEG of 16 bits a channel"),
        (frame(0xC3), "a lossless JPEG"),
        (frame(0xC5), "a hierarchical JPEG"),
        (frame(0xC0, channels=2), "a JPEG of 2 channels"),
    ],
)
def test_a_jpeg_of_a_kind_that_is_not_read_is_not_called_damaged(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=f"^not supported: {kind}$"):
        load_image(data)


def test_a_bitmap_of_a_kind_that_is_not_read_is_not_called_damaged() -> None:
    data = bytearray(encoded(picture(), "BMP"))
    data[30:34] = struct.pack("<I", 4)  # a JPEG within
    with pytest.raises(ImageError, match=r"^not supported: a BMP picture"):
        load_image(bytes(data))


def test_a_hostile_end_costs_neither_time_nor_memory() -> None:
    data = bytearray(encoded(Image.new("RGB", (64, 64), (200, 30, 30)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    with pytest.raises(ImageError, match=r"100 % are missing"):
        load_to_cover(bytes(data[:-20]), 224)
    # A PNG that unpacks to more than its header says is not unpacked further.
    short = png(10, 10, bytes(50_000_000))
    assert load_image(short).size == (10, 10)
