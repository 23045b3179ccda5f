"""TIFF files of every kind, written by hand, come out as the picture that was drawn, or say why not."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imret.errors import ImageError
from imret.images.decode import bytes_to_decode, load_image, load_to_cover, read_header
from tests.fakes.tiff_files import (
    CFA,
    CMYK,
    COMPRESS,
    FLOAT,
    GREY,
    HEIGHT,
    INT,
    LAB,
    PALETTE,
    RGB,
    SCENE,
    SHADES,
    UINT,
    WIDTH,
    Tags,
    draw,
    lzw,
    pack_bits,
    packbits,
    scaled,
    tags_of,
    tiff,
)


def check(data: bytes, wanted: NDArray[Any], tolerance: int = 1) -> list[str]:
    """Compare what is read of a file with what was drawn; returns the notes."""
    notes: list[str] = []
    read = np.asarray(load_image(data, on_note=notes.append)).astype(int)
    wanted = np.dstack([wanted] * 3) if wanted.ndim == 2 else wanted
    assert read.shape == wanted.shape
    assert np.abs(read - wanted.astype(int)).max() <= tolerance
    return notes


# ---- Bits and formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 9, 10, 12, 14, 16, 24, 32])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_of_any_number_of_bits_is_read_and_zero_is_the_colour_that_is_said(
    bits: int, photometric: int, order: str
) -> None:
    values = scaled(SHADES, bits)
    shown = np.rint(values.astype(float) * 255 / ((1 << bits) - 1))
    assert check(draw(values, bits, photometric, order=order), shown if photometric else 255 - shown) == []


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("photometric", [0, 1])
def test_floats_are_read(bits: int, photometric: int, order: str) -> None:
    data = draw(scaled(SHADES, bits, FLOAT), bits, photometric, order=order, format=FLOAT)
    assert check(data, SHADES if photometric else 255 - SHADES) == []


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("kind", [UINT, INT])
def test_wide_integers_say_nowhere_what_is_white(bits: int, kind: int) -> None:
    letter = "u" if kind == UINT else "i"
    for white in (255, 65535, (1 << (bits - (kind == INT))) - 1):
        stored = np.array([value * white // 255 for value in range(256)], dtype=f"{letter}{bits // 8}")[
            SHADES
        ]
        assert check(draw(stored, bits, GREY, format=kind), SHADES) == []


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_integers_that_are_never_negative_span_the_half_above_zero(bits: int, order: str) -> None:
    assert check(draw(scaled(SHADES, bits, INT), bits, 1, order=order, format=INT), SHADES, 2) == []
    assert check(draw(scaled(SCENE, bits, INT), bits, RGB, order=order, format=INT), SCENE, 2) == []


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_negative_values_are_shown_from_the_lowest_to_the_highest_and_it_is_said(bits: int) -> None:
    values = (SHADES.astype(int) // 3 - 40).astype(f"i{bits // 8}")
    (note,) = check(draw(values, bits, 1, format=INT), np.rint((values.astype(float) + 40) * 3), 3)
    assert note == "its values are from -40 to 45, shown stretched from black to white"


@pytest.mark.parametrize(
    ("bits", "kind"), [(4, UINT), (12, UINT), (16, UINT), (32, UINT), (16, FLOAT), (32, FLOAT)]
)
@pytest.mark.parametrize("planar", [False, True])
def test_colours_of_other_bits_are_read(bits: int, kind: int, planar: bool) -> None:
    values = scaled(SCENE, bits, kind)
    shown = SCENE if kind == FLOAT else np.rint(values.astype(float) * 255 / ((1 << bits) - 1))
    assert check(draw(values, bits, RGB, format=kind, planar=planar), shown) == []


def test_doubles_beyond_what_a_float_holds_and_what_is_no_number_are_black() -> None:
    values = scaled(SHADES, 64, FLOAT)
    values[0, :4] = (np.nan, np.inf, -np.inf, 1e300)
    shown = SHADES.copy()
    shown[0, :4] = 0
    check(draw(values, 64, 1, format=FLOAT), shown)
    floats = scaled(SHADES, 32, FLOAT)
    floats[0, :4] = np.array([0x7F800001, 0xFFC00000, 0x7F800000, 0xFF800000], "u4").view("f4")
    check(draw(floats, 32, 1, format=FLOAT), shown)


# ---- Layouts -------------------------------------------------------------------------------------------

LAYOUTS: dict[str, dict[str, Any]] = {
    "one strip": {},
    "strips": {"rows": 7},
    "a strip a row": {"rows": 1},
    "tiles": {"tile": 16},
    "large tiles": {"tile": 64},
    "tiles of more than is unpacked at a time": {"tile": 1040},
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_sixteen_bits_are_read_in_any_layout(name: str, planar: bool, compression: int, order: str) -> None:
    more = LAYOUTS[name] | {"compression": compression, "compress": COMPRESS[compression], "planar": planar}
    assert check(draw(scaled(SCENE, 16), 16, RGB, order=order, **more), SCENE) == []


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", [{"rows": 7}, {"tile": 16}])
def test_the_predictor_of_integers_is_undone(
    bits: int, planar: bool, order: str, layout: dict[str, int]
) -> None:
    more = {"compression": 8, "compress": zlib.compress, "planar": planar, "predictor": 2, **layout}
    assert check(draw(scaled(SCENE, bits), bits, RGB, order=order, **more), SCENE) == []


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_predictor_of_floats_is_undone(bits: int, planar: bool, order: str) -> None:
    more = {"compression": 5, "compress": lzw, "planar": planar, "predictor": 3, "rows": 7, "format": FLOAT}
    assert check(draw(scaled(SCENE, bits, FLOAT), bits, RGB, order=order, **more), SCENE) == []


@pytest.mark.parametrize("compression", [1, 5])
@pytest.mark.parametrize("bits", [1, 4, 8, 12, 16])
def test_bits_that_are_the_other_way_round_are_turned(bits: int, compression: int) -> None:
    values = scaled(SCENE, bits)
    more: dict[str, Any] = {"fill": 2, "compression": compression}
    if compression == 5:  # what is turned is what is compressed, and not before
        more |= {"compress": lambda data: _turned(lzw(_turned(data)))}
    shown = np.rint(values.astype(float) * 255 / ((1 << bits) - 1))
    check(draw(values, bits, RGB, planar=True, **more), shown)


def _turned(data: bytes) -> bytes:
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (16, 1), (8, 5), (16, 5)])
def test_files_with_offsets_of_64_bits_are_read(order: str, bits: int, compression: int) -> None:
    more = {"compression": compression, "compress": COMPRESS[compression], "rows": 9}
    assert check(draw(scaled(SCENE, bits), bits, RGB, order=order, is_big=True, **more), SCENE) == []


def test_tiles_that_a_map_leaves_out_are_black() -> None:
    shades = SHADES.copy()
    tags = tags_of(WIDTH, HEIGHT, 1, 16, GREY) | {
        322: (4, [16]),
        323: (4, [64]),
        324: (4, [0, 8, 0, 0]),
        325: (4, [0, 2048, 0, 0]),
    }
    shades[:] = 0
    shades[:, 16:32] = 255
    data = tiff([(tags, [])])
    # The tile stands where the directory began, which moves behind it.
    data = data[:4] + struct.pack("<I", struct.unpack("<I", data[4:8])[0] + 2048) + b"\xff" * 2048 + data[8:]
    entries = bytearray(data)
    for tag, at in ((324, 16), (325, 16)):
        place = entries.find(struct.pack("<HHI", tag, 4, 4)) + 8
        where = struct.unpack("<I", entries[place : place + 4])[0]
        entries[place : place + 4] = struct.pack("<I", where + 2048)
        assert at == 16
    check(bytes(entries), shades)


# ---- What samples mean -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("each", [1, 257])
@pytest.mark.parametrize("rows", [HEIGHT, 5])
def test_palettes_of_eight_and_of_sixteen_bits_are_read(bits: int, each: int, rows: int) -> None:
    n = 1 << bits
    colors = np.random.default_rng(bits).integers(0, 256, (n, 3))
    colors[0] = (255, 0, 128)
    indices = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % n).astype(np.uint8)
    data = draw(indices, bits, PALETTE, rows=rows, tags={320: (3, (colors.T * each).ravel())})
    assert check(data, colors[indices], 0) == []


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("colors", [1, 3])
def test_transparency_is_over_white_and_what_is_no_transparency_is_left_out(
    colors: int, planar: bool, bits: int, kind: int
) -> None:
    opaque = np.full((HEIGHT, WIDTH), 255.0)
    opaque[:, 25:] = 102.0  # two fifths
    image = (SHADES[..., None] if colors == 1 else SCENE).astype(float)
    stored = image * (opaque[..., None] / 255 if kind == 1 else 1)
    samples = scaled(np.dstack([stored, opaque]).astype(np.uint8), bits)
    over_white = image if kind == 0 else image * opaque[..., None] / 255 + 255 - opaque[..., None]
    data = draw(samples, bits, GREY if colors == 1 else RGB, planar=planar, extra=[kind])
    check(data, over_white[..., 0] if colors == 1 else over_white, 2)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_a_fourth_sample_of_which_nothing_is_said_is_transparency_unless_it_is_nothing(
    bits: int, planar: bool
) -> None:
    for opaque in (0, 102, 255):
        samples = scaled(np.dstack([SCENE, np.full((HEIGHT, WIDTH), opaque, np.uint8)]), bits)
        over_white = SCENE * (opaque / 255) + 255 - opaque if opaque else SCENE
        check(draw(samples, bits, RGB, planar=planar), over_white, 2)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_inks_are_read_with_transparency_and_without(bits: int, planar: bool) -> None:
    inks = np.dstack([255 - SCENE, np.full((HEIGHT, WIDTH), 51, np.uint8)])
    shown = np.rint(SCENE * 0.8)
    check(draw(scaled(inks, bits), bits, CMYK, planar=planar), shown, 2)
    half = np.dstack([inks, np.full((HEIGHT, WIDTH), 51, np.uint8)])
    check(draw(scaled(half, bits), bits, CMYK, planar=planar, extra=[2]), shown * 0.2 + 204, 2)


def test_little_ink_is_a_pale_picture_that_is_not_stretched() -> None:
    inks = np.dstack([(255 - SCENE) // 20, np.zeros((HEIGHT, WIDTH), np.uint8)])
    assert check(draw(scaled(inks, 16), 16, CMYK), 255 - (255 - SCENE) // 20, 1) == []


@pytest.mark.parametrize("samples", [5, 8, 12])
@pytest.mark.parametrize("planar", [False, True])
def test_of_many_bands_the_colours_are_taken(samples: int, planar: bool) -> None:
    bands = np.dstack([SCENE, np.full((HEIGHT, WIDTH, samples - 3), 9, np.uint8)])
    assert check(draw(bands, 8, RGB, planar=planar, extra=[0] * (samples - 3)), SCENE) == []


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [False, True])
def test_lab_is_read(bits: int, planar: bool) -> None:
    lab = Image.new("LAB", (WIDTH, HEIGHT))
    lab.frombytes(np.broadcast_to(np.array([130, 60, 236], np.uint8), SCENE.shape).tobytes())
    shown = np.asarray(load_image(lab))  # littleCMS's, of Pillow's own picture
    values = np.broadcast_to(np.array([130, 60, 236], np.uint16), SCENE.shape)
    stored = (values << (bits - 8)).astype(np.uint8 if bits == 8 else np.uint16)
    check(draw(stored, bits, LAB, planar=planar), shown, 2)
    floats = np.broadcast_to(np.array([130 / 2.55, 60, 236 - 256], "f4"), SCENE.shape)
    check(draw(floats, 32, LAB, planar=planar, format=FLOAT), shown, 2)
    icc = np.broadcast_to(np.array([130, 60 + 128, 236 - 128], np.uint16), SCENE.shape)
    check(draw((icc << (bits - 8)).astype(stored.dtype), bits, 9, planar=planar), shown, 2)


def test_luma_without_colour_is_grey() -> None:
    for compression in (1, 5):
        check(draw(SHADES, 8, 6, compression=compression, compress=COMPRESS[compression]), SHADES)


def test_packbits_have_no_predictor_whatever_is_said() -> None:
    data = draw(scaled(SCENE, 16), 16, RGB, compression=32773, compress=packbits, tags={317: (3, [2])})
    check(data, SCENE)


@pytest.mark.parametrize("bits", [8, 16])
def test_an_orientation_that_there_is_not_turns_nothing(bits: int) -> None:
    for orientation in (0, 9, 300):
        data = draw(scaled(SCENE, bits), bits, RGB, tags={274: (3, [orientation])})
        check(data, SCENE)
        assert load_to_cover(io.BytesIO(data), 10).size == (WIDTH, HEIGHT)


def test_what_the_samples_mean_is_guessed_where_it_is_not_said() -> None:
    check(draw(SHADES, 8, None), SHADES)
    check(draw(SCENE, 8, None), SCENE)
    check(draw(scaled(SHADES, 16), 16, None), SHADES)


@pytest.mark.parametrize("shared", [(1, 1), (2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("compression", [1, 5])
def test_pixels_that_share_their_colour_are_read(shared: tuple[int, int], compression: int) -> None:
    across, down = shared
    height, width = 32, 48
    shades = SHADES[:height, :width]
    blocks = shades.reshape(height // down, down, width // across, across).transpose(0, 2, 1, 3)
    grey = np.full((*blocks.shape[:2], 2), 128, np.uint8)
    data = np.concatenate([blocks.reshape(*blocks.shape[:2], -1), grey], axis=2).tobytes()
    tags = tags_of(width, height, 3, 8, 6, compression=compression) | {530: (3, shared)}
    for order in "<>":
        for orientation in (1, 4, 6):
            turned = {**tags, 274: (3, [orientation])}
            wanted = UPRIGHT[orientation](np.dstack([shades] * 3))
            check(tiff([(turned, [COMPRESS[compression](data)])], order=order), wanted, 2)


# ---- Narrow ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "bits", "kind"),
    [
        (27000, 31000, 16, UINT),  # a thermal camera, hundredths of kelvin
        (0, 1023, 16, UINT),  # a sensor of 10 bits
        (300, 4000, 16, UINT),  # depth in millimetres
        (270.0, 310.0, 32, FLOAT),
        (0.40, 0.45, 32, FLOAT),
        (3.0, 5.5, 16, FLOAT),
        (70000.0, 90000.0, 64, FLOAT),
        (1000, 1200, 12, UINT),
        (0, 1 << 20, 32, UINT),
    ],
)
def test_a_picture_of_a_narrow_range_is_stretched_and_it_is_said(
    low: float, high: float, bits: int, kind: int
) -> None:
    values = low + SHADES / 255 * (high - low)
    size = max(1, -(-bits // 8)) if bits != 12 else 2
    stored = values.astype(f"f{size}") if kind == FLOAT else np.rint(values).astype(f"u{size}")
    (note,) = check(draw(stored, bits, GREY, format=kind), SHADES, 3)
    assert note.startswith("its values are from ")
    assert note.endswith(", shown stretched from black to white")


def test_colours_of_a_narrow_range_are_stretched_together() -> None:
    stored = np.rint(SCENE / 255.0 * 4095).astype(np.uint16)  # 12 bits in 16
    assert len(check(draw(stored, 16, RGB), SCENE, 2)) == 1
    assert len(check(draw(stored, 16, RGB, planar=True), SCENE, 2)) == 1


@pytest.mark.parametrize("fault", [0, 65535])
def test_a_dead_or_a_hot_pixel_does_not_make_a_flat_card(fault: int) -> None:
    stored = np.rint(27000 + SHADES / 255 * 4000).astype(np.uint16)
    stored[20, 20] = fault
    shown = SHADES.copy()
    shown[20, 20] = 255 if fault else 0
    assert len(check(draw(stored, 16, GREY), shown, 2)) == 1


def test_an_eighth_of_the_range_or_more_and_one_value_alone_are_left_as_they_are() -> None:
    assert check(draw(scaled(SHADES // 7, 16), 16, GREY), SHADES // 7) == []
    assert check(draw(np.full((9, 9), 1000, np.uint16), 16, GREY), np.full((9, 9), 4)) == []
    assert check(draw(SHADES // 16, 8, GREY), SHADES // 16) == [], "of 8 bits each value is meant"


@pytest.mark.parametrize(
    ("nothing", "kind", "said"),
    [
        (-9999.0, FLOAT, True),
        (-3.4028234663852886e38, FLOAT, False),
        (np.nan, FLOAT, False),
        (-32768, INT, True),
        (0, UINT, True),
    ],
)
def test_where_nothing_was_measured_does_not_count(nothing: float, kind: int, said: bool) -> None:
    bits = 32 if kind == FLOAT else 16
    stored = (1200 + SHADES.astype(float) * 2).astype({FLOAT: "f4", INT: "i2", UINT: "u2"}[kind])
    low, high = int(stored[9:].min()), int(stored.max())
    shown = np.rint((stored.astype(float) - low) * 255 / (high - low))
    stored[:9], shown[:9] = nothing, 0
    tags = {42113: (2, f"{nothing}\0".encode())} if said else {}
    (note,) = check(draw(stored, bits, GREY, format=kind, tags=tags), shown, 2)
    assert note == f"its values are from {low} to {high}, shown stretched from black to white"


def test_other_formats_of_sixteen_bits_are_stretched_too() -> None:
    values = np.rint(27000 + SHADES / 255 * 4000).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    assert len(check(file.getvalue(), SHADES, 2)) == 1


# ---- Orientation, pages ------------------------------------------------------------------------------------

# What turns a picture upright, by its orientation.
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image.transpose(1, 0, 2)[:, ::-1],
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", [1, 3, 4, 7])
@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (8, 5), (16, 1), (16, 8)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_counts_whatever_its_type(
    orientation: int, kind: int, bits: int, compression: int, order: str, tmp_path: Any
) -> None:
    more = {"compression": compression, "compress": COMPRESS[compression], "rows": 10}
    data = draw(scaled(SCENE, bits), bits, RGB, order=order, tags={274: (kind, [orientation])}, **more)
    wanted = UPRIGHT[orientation](SCENE)
    check(data, wanted)
    (tmp_path / "a.tif").write_bytes(data)
    with (tmp_path / "a.tif").open("rb") as file:
        assert read_header(file).orientation == orientation
        assert np.abs(np.asarray(load_image(file)).astype(int) - wanted).max() <= 1


def test_what_xmp_alone_says_does_not_turn_a_picture() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for bits in (8, 16):
        check(draw(scaled(SCENE, bits), bits, RGB, tags={700: (1, xmp)}), SCENE)


def page(image: NDArray[Any], bits: int = 8, photometric: int = RGB, **more: Any) -> tuple[Tags, list[bytes]]:
    n = 1 if image.ndim == 2 else image.shape[2]
    compress = COMPRESS.get(more.get("compression", 1), bytes)
    tags = tags_of(image.shape[1], image.shape[0], n, bits, photometric, **more) | more.get("tags", {})
    return tags, [compress(pack_bits(scaled(image, bits), bits, "<"))]


SMALL = SCENE[::6, ::5]


def jpeg_page(image: NDArray[np.uint8], **more: Any) -> tuple[Tags, list[bytes]]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    tags = tags_of(image.shape[1], image.shape[0], 3, 8, 6, compression=7, **more) | {530: (3, [1, 1])}
    return tags, [file.getvalue()]


@pytest.mark.parametrize(
    "photo",
    [
        page(SCENE),
        page(SCENE, 16),
        page(SCENE, compression=5),
        page(SCENE, 16, compression=8),
        jpeg_page(SCENE),
    ],
)
@pytest.mark.parametrize("place", ["second page", "third page", "below"])
@pytest.mark.parametrize("old", [False, True])
def test_a_thumbnail_that_comes_first_is_not_the_photo(
    photo: tuple[Tags, list[bytes]], place: str, old: bool, tmp_path: Any
) -> None:
    said = {"tags": {255: (3, [2])}} if old else {"subfile": 1}
    small = page(SMALL, **said)
    pages = {
        "second page": [small, photo],
        "third page": [small, page(SMALL, subfile=4), photo],
        "below": [({**small[0], 330: (13, [photo])}, small[1])],
    }[place]
    data = tiff(pages)
    check(data, SCENE, 40 if 7 in photo[0][259][1] else 1)
    (tmp_path / "a.tif").write_bytes(data)
    assert load_image(tmp_path / "a.tif").size == (WIDTH, HEIGHT)


def test_a_page_that_is_smaller_than_the_thumbnail_before_it_is_not_the_photo() -> None:
    check(tiff([page(SCENE, subfile=1), page(SMALL)]), SCENE)


def test_of_several_whole_pages_and_of_a_pyramid_the_first_is_taken() -> None:
    check(tiff([page(SCENE), page(255 - SCENE)]), SCENE)
    check(tiff([page(SCENE, 16), page(255 - SCENE)]), SCENE)
    check(tiff([page(SCENE), page(SMALL, subfile=1)]), SCENE)
    check(tiff([page(SMALL, subfile=1)]), SMALL)
    check(tiff([page(SMALL, subfile=1), page(SCENE, subfile=1)]), SCENE)


def test_pages_in_a_circle_end() -> None:
    data = bytearray(tiff([page(SMALL, subfile=1), page(SMALL, subfile=1)]))
    first = data[4:8]
    assert data[-4:] == bytes(4)
    data[-4:] = first
    check(bytes(data), SMALL)


def raw_page(width: int, height: int) -> tuple[Tags, list[bytes]]:
    return tags_of(width, height, 1, 16, CFA), [bytes(2 * width * 8)]


def test_a_file_with_nothing_but_a_small_preview_of_a_raw_picture_is_refused_and_says_so() -> None:
    preview = page(np.zeros((120, 160, 3), np.uint8), subfile=1)
    below = tiff([({**preview[0], 330: (4, [raw_page(6000, 4000)])}, preview[1])])
    after = tiff([preview, raw_page(6000, 4000)])
    for data in (below, after):
        with pytest.raises(
            ImageError, match="only a preview of 160 x 120 pixels of a RAW picture of 6000 x 4000"
        ):
            load_image(data)
    with pytest.raises(ImageError, match="only a RAW picture of 6000 x 4000 pixels, which is not read"):
        load_image(tiff([raw_page(6000, 4000)]))


def test_a_thumbnail_in_a_file_that_is_much_larger_is_no_photo() -> None:
    data = tiff([page(SMALL, subfile=1)])
    check(data + bytes(500_000), SMALL)
    with pytest.raises(ImageError, match="only a preview of 10 x 6 pixels; what else is in its 2,0"):
        load_image(data + bytes(2_000_000))
    check(tiff([page(SMALL)]) + bytes(2_000_000), SMALL)


def test_a_large_preview_of_a_raw_picture_is_taken_with_a_note() -> None:
    preview = page(np.full((800, 1200, 3), 200, np.uint8))
    small = page(SMALL, subfile=1)
    data = tiff([({**small[0], 330: (4, [raw_page(6000, 4000), preview])}, small[1])])
    (note,) = check(data, np.full((800, 1200, 3), 200))
    assert note == (
        "the preview of 1200 x 800 pixels of a RAW picture of 6000 x 4000 pixels, which is not read itself"
    )


# ---- What is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "tags"),
    [
        ("JPEG XL", {259: (3, [50002])}),
        ("JPEG 2000", {259: (3, [34712])}),
        ("compression 12345", {259: (3, [12345])}),
        ("8-bit LogLuv", {262: (3, [32845])}),
        ("photometric 99", {262: (3, [99])}),
        ("complex float", {339: (3, [6])}),
        ("different bits a sample (5, 6)", {258: (3, [5, 6, 5])}),
        ("40-bit", {258: (3, [40])}),
        ("24-bit float", {258: (3, [24]), 339: (3, [3])}),
        ("12-bit signed", {258: (3, [12]), 339: (3, [2])}),
        ("12-bit RGB, JPEG", {258: (3, [12]), 259: (3, [7])}),
        ("16 samples, JPEG", {277: (3, [16]), 259: (3, [7]), 258: (3, [8])}),
        ("2 samples, CCITT", {277: (3, [2]), 259: (3, [4]), 258: (3, [1])}),
        ("inks other than CMYK", {262: (3, [5]), 277: (3, [4]), 332: (3, [2]), 338: (3, [])}),
        ("9,999 samples a pixel", {277: (3, [9999])}),
        ("predictor 2", {258: (3, [12]), 259: (3, [5]), 317: (3, [2])}),
        ("predictor 3", {258: (3, [16]), 259: (3, [5]), 317: (3, [3])}),
    ],
)
def test_a_healthy_file_of_a_kind_that_is_not_read_is_not_called_damaged(what: str, tags: Tags) -> None:
    (whole, chunks) = page(SCENE)
    data = tiff([({tag: value for tag, value in {**whole, **tags}.items() if value[1]}, chunks)])
    with pytest.raises(ImageError) as caught:
        load_image(data)
    assert str(caught.value).startswith("not supported: a TIFF with ")
    assert what in str(caught.value)
    assert "damaged" not in str(caught.value)
    with pytest.raises(ImageError, match="not supported"):
        bytes_to_decode(io.BytesIO(data))


@pytest.mark.parametrize("layout", [{}, {"rows": 9}, {"rows": 7}, {"tile": 16}])
def test_webp_inside_is_read(layout: dict[str, int]) -> None:
    width = layout.get("tile", WIDTH)

    def compress(data: bytes) -> bytes:
        file = io.BytesIO()
        Image.frombytes("RGB", (width, len(data) // width // 3), data).save(file, "WEBP", lossless=True)
        return file.getvalue()

    check(draw(SCENE, 8, RGB, compression=50001, compress=compress, **layout), SCENE)


def test_webp_of_another_size_than_its_tile_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(SCENE).save(file, "WEBP", lossless=True)
    tags = tags_of(WIDTH, HEIGHT + 1, 3, 8, RGB, compression=50001)
    with pytest.raises(ImageError, match="WebP of 50 x 36"):
        load_image(tiff([(tags, [file.getvalue()])]))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("compression", [1, 5, 8])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_file_that_ends_too_early_is_called_truncated_or_damaged(
    bits: int, compression: int, part: float
) -> None:
    tags, chunks = page(SCENE, bits, compression=compression)
    whole = tiff([(tags, chunks)])
    start = len(whole) - len(chunks[0])
    # The directory comes first, so that only pixels are missing.
    head = tiff([({**tags, 273: (4, [start]), 279: (4, [len(chunks[0])])}, [])])
    data = head.ljust(start, b"\0") + chunks[0]
    check(data, np.rint(scaled(SCENE, bits).astype(float) * 255 / ((1 << bits) - 1)))
    with pytest.raises(ImageError, match="truncated"):
        load_image(data[: start + int(part * len(chunks[0]))])


@pytest.mark.parametrize("bits", [8, 16])
def test_what_libtiff_complains_of_is_in_the_reason_and_not_on_the_terminal(
    bits: int, capfd: pytest.CaptureFixture[str]
) -> None:
    tags, chunks = page(SCENE, bits, compression=5)
    spoilt = chunks[0][:200] + b"\xff" * (len(chunks[0]) - 200)
    with pytest.raises(ImageError, match="TIFF picture: Using code not yet in table"):
        load_image(tiff([(tags, [spoilt])]))
    assert capfd.readouterr() == ("", "")


def test_what_libtiff_says_to_other_parts_of_a_program_stays_where_it_was(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tags, chunks = page(SCENE, 8, compression=5)
    data = tiff([(tags, [chunks[0][:200] + b"\xff" * 3000])])
    with pytest.raises(ImageError):
        load_image(data)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(OSError, match="decoder error"):
        Image.open(io.BytesIO(data)).load()
    assert "not yet in table" in capfd.readouterr().err


def test_what_libtiff_complains_of_goes_with_its_own_picture_in_each_thread() -> None:
    tags, chunks = page(SCENE, 16, compression=5)
    data = {
        "short": tiff([(tags, [lzw(bytes(300))])]),
        "spoilt": tiff([(tags, [chunks[0][:200] + b"\xff" * 3000])]),
    }
    wanted = {"short": "Not enough data", "spoilt": "Using code not yet in table"}

    def read(index: int) -> bool:
        name = ("short", "spoilt")[index % 2]
        with pytest.raises(ImageError) as caught:
            load_image(data[name])
        return wanted[name] in str(caught.value)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))


def test_what_libtiff_complains_of_and_reads_all_the_same_is_a_note(
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = io.BytesIO()
    Image.new("1", (200, 500), 1).save(file, "TIFF", compression="group3")
    data = bytearray(file.getvalue())
    start = data.find(b"\0\0", 8) if data[4:8] == b"\x08\0\0\0" else 8
    data[start : start + 200] = np.random.default_rng(0).integers(0, 255, 200, dtype=np.uint8).tobytes()
    notes: list[str] = []
    assert load_image(bytes(data), on_note=notes.append).size == (200, 500)
    assert len(notes) == 1
    assert notes[0].startswith("libtiff: Fax3Decode")
    assert "more such lines" in notes[0]
    assert capfd.readouterr() == ("", "")


# ---- Hostile files -----------------------------------------------------------------------------------

HOSTILE: dict[str, Tags] = {
    "rows of gigabytes": {
        256: (4, [90_000_000]),
        257: (4, [1]),
        277: (3, [1000]),
        258: (3, [16]),
        338: (3, [0]),
    },
    "a tile larger than all": {322: (4, [1 << 30]), 323: (4, [1 << 30]), 258: (3, [16])},
    "tiles of one pixel": {256: (4, [9000]), 257: (4, [9000]), 322: (4, [1]), 323: (4, [1]), 258: (3, [16])},
    "a strip a pixel": {256: (4, [1]), 257: (4, [90_000_000]), 278: (4, [1]), 258: (3, [16])},
    "one large strip": {256: (4, [10000]), 257: (4, [9000]), 258: (3, [64]), 339: (3, [3]), 259: (3, [8])},
    "many samples": {256: (4, [5000]), 257: (4, [5000]), 277: (3, [900]), 258: (3, [16]), 259: (3, [5])},
    "many planes": {
        256: (4, [5000]),
        257: (4, [5000]),
        277: (3, [900]),
        258: (3, [16]),
        284: (3, [2]),
        278: (4, [1]),
    },
    "far away": {258: (3, [16]), 273: (4, [0xFFFFFFF0])},
    "an ocean of pixels": {256: (4, [0xFFFFFFFF]), 257: (4, [0xFFFFFFFF]), 258: (3, [16])},
    "no pixels": {256: (4, [0]), 258: (3, [16])},
    "fewer strips than said": {278: (4, [2]), 258: (3, [16])},
    "a palette without colours": {262: (3, [3]), 277: (3, [1]), 258: (3, [8])},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_claims_takes_neither_memory_nor_time(name: str) -> None:
    tags, chunks = page(SCENE)
    data = tiff([({**tags, **HOSTILE[name]}, chunks)])
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            load_image(data)
        assert tracemalloc.get_traced_memory()[1] < 700_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [5, 8])
def test_one_colour_in_one_large_strip_is_read_though_it_takes_few_bytes(compression: int) -> None:
    file = io.BytesIO()
    name = {5: "tiff_lzw", 8: "tiff_adobe_deflate"}[compression]
    bytes_of_it = Image.new("L", (5000 * 2, 2000), 77)
    bytes_of_it.save(file, "TIFF", compression=name, strip_size=1 << 30)
    with Image.open(file) as opened:
        offsets, sizes = opened.tag_v2[273], opened.tag_v2[279]  # type: ignore[attr-defined]
    assert len(offsets) == 1
    packed = file.getvalue()[offsets[0] : offsets[0] + sizes[0]]
    data = tiff([(tags_of(5000, 2000, 1, 16, GREY, compression=compression), [packed])])
    check(data, np.full((2000, 5000), 77))


def test_strips_that_all_claim_the_whole_file_are_not_read_whole_each() -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (400, 400), dtype=np.uint16)
    tags = tags_of(400, 400, 1, 16, GREY, compression=8, rows=1)
    chunks = [zlib.compress(row.tobytes()) for row in noise]
    data = tiff([({**tags, 279: (4, [1 << 30] * 400)}, chunks)])
    tracemalloc.start()
    check(data + bytes(10_000_000), np.rint(noise / 257))
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()


def damaged(data: bytes, count: int, seed: int) -> Iterable[bytes]:
    """Yield copies of a file with bytes changed, most of them where the directory is, and cut."""
    chance = random.Random(seed)
    (directory,) = struct.unpack("<I", data[4:8])
    for index in range(count):
        copy = bytearray(data)
        if index % 8 == 0:
            del copy[chance.randrange(len(copy)) :]
        for _ in range(chance.choice((1, 2, 4))):
            at = chance.randrange(directory, len(data)) if index % 2 else chance.randrange(len(data))
            if at < len(copy):
                copy[at] = chance.choice((0, 1, 2, 3, 5, 8, 16, 32, 127, 128, 255, chance.randrange(256)))
        yield bytes(copy)


KINDS: dict[str, bytes] = {
    "16 bits": draw(scaled(SCENE, 16), 16, RGB, rows=7),
    "planes": draw(scaled(SCENE, 16), 16, RGB, planar=True, rows=7, compression=5, compress=lzw),
    "tiles": draw(scaled(SCENE, 12), 12, RGB, tile=16, compression=8, compress=zlib.compress),
    "floats": draw(
        scaled(SCENE, 32, FLOAT), 32, RGB, predictor=3, format=FLOAT, compression=32773, compress=packbits
    ),
    "palette": draw(SHADES & 15, 4, PALETTE, tags={320: (3, np.arange(48) * 999)}),
    "alpha": draw(np.dstack([scaled(SCENE, 16)] * 2)[..., :4], 16, RGB, extra=[1], predictor=2, compression=8,
                  compress=zlib.compress),
    "thumbnail": tiff([page(SMALL, subfile=1), page(SCENE, 16)]),
    "raw": tiff([({**page(SMALL, subfile=1)[0], 330: (4, [raw_page(600, 400)])}, page(SMALL)[1])]),
    "jpeg": tiff([page(SMALL, subfile=1), jpeg_page(SCENE)]),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_damage_gives_an_image_or_an_image_error_and_nothing_on_the_terminal(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for data in damaged(KINDS[name], 400, seed=len(name)):
        notes: list[str] = []
        try:
            assert load_image(data, max_pixels=1_000_000, on_note=notes.append).mode == "RGB"
        except ImageError as error:
            notes.append(str(error))
        assert all(note and "\n" not in note for note in notes)
        with contextlib.suppress(ImageError):
            assert bytes_to_decode(io.BytesIO(data), max_pixels=1_000_000) > 0
    assert capfd.readouterr() == ("", "")
