"""Pixels that mean other colours than sRGB: profiles, high dynamic range, transparency easily missed."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from imret.images.decode import load_image, read_header
from imret.images.formats.isobmff import read_colours
from imret.images.thumbnails import to_jpeg
from tests.fakes.drawn_files import (
    avif,
    bmp,
    chunk,
    encoded,
    in_hlg,
    in_pq,
    keyed_pngs,
    odd_chunks,
    scene,
    small_frame_gif,
    with_chunks,
)
from tests.fakes.profiles import RGB_SPACES, cmyk_profile, grey_profile, rgb_profile

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def apart(one: Any, other: Any) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(np.asarray(one).astype(float) - np.asarray(other)).mean())


# ---- Transparency ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", keyed_pngs())
def test_a_transparent_level_of_any_depth_is_white(kind: str) -> None:
    data, expected = keyed_pngs()[kind]
    assert apart(load_image(data), expected) < 0.6


def test_around_a_first_frame_that_is_smaller_there_is_nothing() -> None:
    data, expected = small_frame_gif()
    np.testing.assert_array_equal(np.asarray(load_image(data)), expected)


def test_a_bitmap_whose_alpha_is_zero_everywhere_has_none() -> None:
    np.testing.assert_array_equal(np.asarray(load_image(bmp(0))), np.asarray(scene()))
    np.testing.assert_array_equal(np.asarray(load_image(bmp(255))), np.asarray(scene()))
    half = np.asarray(scene()).astype(float) * (128 / 255) + 255 * (127 / 255)
    assert apart(load_image(bmp(128)), half) < 1


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_alone_turns_nothing(file_format: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'
    data = encoded(scene(), file_format, xmp=xmp)
    if file_format == "PNG":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp
        data = with_chunks(encoded(scene(), "PNG"), chunk(b"iTXt", text))
    assert load_image(data).size == scene().size
    assert read_header(io.BytesIO(data)).orientation == 1
    with Image.open(io.BytesIO(data)) as opened:
        before = dict(opened.info)
        assert load_image(opened).size == scene().size
        assert set(before) <= set(opened.info), "the caller's picture is left as it was"


# ---- High dynamic range ----------------------------------------------------------------------------------


@needs_avif
@pytest.mark.parametrize(("made", "transfer"), [(in_pq, 16), (in_hlg, 18)])
def test_pq_and_hlg_are_brought_to_an_ordinary_display(made: Any, transfer: int) -> None:
    shown = load_image(avif(made(scene()), 9, transfer))
    # A white page keeps half of its light, as much again is there for what is brighter: 187 of 255.
    levels = np.asarray(scene()) / 255.0
    light = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4) / 2
    expected = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert apart(shown, expected) < 4
    assert apart(made(scene()), expected) > 15, "taken for sRGB"
    png = with_chunks(encoded(made(scene()), "PNG"), chunk(b"cICP", bytes((9, transfer, 0, 1))))
    assert apart(load_image(png), expected) < 1


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_in_heic_is_as_in_avif(transfer: int) -> None:
    heif = pytest.importorskip("pillow_heif")
    made = {16: in_pq, 18: in_hlg}[transfer](scene())
    stream = io.BytesIO()
    heif.from_pillow(made).save(
        stream,
        quality=95,
        color_primaries=9,
        transfer_characteristics=transfer,
        matrix_coefficients=9,
        full_range_flag=1,
    )
    png = with_chunks(encoded(made, "PNG"), chunk(b"cICP", bytes((9, transfer, 0, 1))))
    assert apart(load_image(stream.getvalue()), load_image(png)) < 3


def test_a_picture_that_was_brought_to_srgb_is_not_again() -> None:
    png = with_chunks(encoded(in_pq(scene()), "PNG"), chunk(b"cICP", bytes((9, 16, 0, 1))))
    for data in (
        png,
        encoded(scene(), "JPEG", icc_profile=rgb_profile("ProPhoto")),
        with_chunks(encoded(scene(), "PNG"), chunk(b"gAMA", struct.pack(">I", 100_000))),
    ):
        once = load_image(data)
        np.testing.assert_array_equal(np.asarray(load_image(once)), np.asarray(once))


@needs_avif
def test_ordinary_numbers_change_nothing() -> None:
    plain = np.asarray(load_image(avif(scene(), 1, 13)))
    for primaries, transfer in ((1, 1), (12, 13), (2, 2), (6, 6)):
        np.testing.assert_array_equal(np.asarray(load_image(avif(scene(), primaries, transfer))), plain)


@needs_avif
def test_broken_boxes_state_nothing() -> None:
    data = avif(scene(), 9, 16)
    assert read_colours(io.BytesIO(data)) == ((9, 16), None)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        broken = bytearray(data[:400])
        for at in generator.integers(0, 400, 3):
            broken[at] = int(generator.integers(0, 256))
        read_colours(io.BytesIO(bytes(broken)))
    assert read_colours(io.BytesIO(b"")) == (None, None)
    endless = struct.pack(">I4s", 1, b"meta") + b"\xff" * 8
    assert read_colours(io.BytesIO(endless)) == (None, None)


# ---- Profiles --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", RGB_SPACES)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_profiles_far_from_srgb_are_applied_and_no_others(space: str, file_format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {"quality": 95}
    profile = rgb_profile(space)
    plain = load_image(encoded(scene(), file_format, **options))
    image = load_image(encoded(scene(), file_format, icc_profile=profile, **options))
    if space in ("sRGB", "Display P3", "Adobe RGB"):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))
        assert image.info["icc_profile"] == profile
        return
    assert apart(image, plain) > 8
    assert "icc_profile" not in Image.open(io.BytesIO(to_jpeg(image))).info, "it is in sRGB now"
    if space == "linear":
        light = np.asarray(plain) / 255.0
        right = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
        assert apart(image, right) < 1


def test_a_profile_of_inks_is_applied_to_cmyk() -> None:
    inks = Image.new("CMYK", (32, 32), (0, 0, 0, 0))
    inks.paste((255, 0, 0, 0), (16, 0, 32, 32))
    plain = load_image(encoded(inks, "JPEG", quality=95))
    assert apart(plain.getpixel((28, 16)), (0, 255, 255)) < 3
    image = load_image(encoded(inks, "JPEG", quality=95, icc_profile=cmyk_profile()))
    assert apart(image.getpixel((4, 16)), (255, 255, 255)) < 3
    assert apart(image.getpixel((28, 16)), (255, 0, 0)) < 12, "the first ink of this press is red"
    assert "icc_profile" not in image.info


def test_grey_profiles_are_applied_where_they_are_far() -> None:
    grey = scene().convert("L")
    plain = load_image(encoded(grey, "PNG"))
    np.testing.assert_array_equal(
        np.asarray(load_image(encoded(grey, "PNG", icc_profile=grey_profile(2.2)))), np.asarray(plain)
    )
    lit = load_image(encoded(grey, "PNG", icc_profile=grey_profile(1.0)))
    light = np.asarray(plain) / 255.0
    right = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert apart(lit, right) < 1


@pytest.mark.parametrize("profile", [b"x", b"\0" * 200, rgb_profile("ProPhoto")[:200], cmyk_profile()])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_profile_that_is_broken_or_of_other_channels_changes_nothing(profile: bytes, mode: str) -> None:
    if mode == "CMYK" and profile == cmyk_profile():
        return
    image = scene().convert(mode)
    np.testing.assert_array_equal(
        np.asarray(load_image(encoded(image, "JPEG", icc_profile=profile))),
        np.asarray(load_image(encoded(image, "JPEG"))),
    )


def test_a_gamma_of_one_is_linear_light_but_where_something_better_is_stated() -> None:
    data, gamma = encoded(scene(), "PNG"), chunk(b"gAMA", struct.pack(">I", 100_000))
    plain = np.asarray(scene())
    assert apart(load_image(with_chunks(data, gamma)), plain) > 40
    for better in (chunk(b"sRGB", b"\0"), chunk(b"cICP", bytes((1, 13, 0, 1)))):
        np.testing.assert_array_equal(np.asarray(load_image(with_chunks(data, gamma, better))), plain)
    usual = chunk(b"gAMA", struct.pack(">I", 45_455))
    np.testing.assert_array_equal(np.asarray(load_image(with_chunks(data, usual))), plain)


# ---- Chunks of PNGs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", odd_chunks())
@pytest.mark.parametrize("is_behind", [False, True])
def test_an_odd_chunk_beside_the_pixels_of_a_png_does_not_matter(kind: str, is_behind: bool) -> None:
    data, odd = encoded(scene(), "PNG"), odd_chunks()[kind]
    data = data[:-12] + odd + data[-12:] if is_behind else with_chunks(data, odd)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.asarray(scene()))
    assert read_header(io.BytesIO(data)).format == "PNG"


def test_a_broken_chunk_of_the_pixels_themselves_still_counts() -> None:
    from imret.errors import ImageError

    palette = encoded(scene().quantize(16), "PNG")
    at = palette.index(b"PLTE")
    broken = palette[: at + 5] + b"\x99" + palette[at + 6 :]
    with pytest.raises(ImageError):
        load_image(broken)


def test_a_chunk_that_changes_pixels_counts_only_if_it_is_whole() -> None:
    image = Image.new("RGB", (8, 8), "red")
    data = encoded(image, "PNG")
    key = struct.pack(">3H", 255, 0, 0)
    assert load_image(with_chunks(data, chunk(b"tRNS", key))).getpixel((0, 0)) == (255, 255, 255)
    for broken in (chunk(b"tRNS", key, crc=1), chunk(b"tRNS", key[:4])):
        assert load_image(with_chunks(data, broken)).getpixel((0, 0)) == (255, 0, 0)


def test_orientation_of_a_png_counts_before_and_behind_its_pixels() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    exif = chunk(b"eXIf", tags.tobytes().removeprefix(b"Exif\0\0"))
    data = encoded(scene(), "PNG")
    assert load_image(with_chunks(data, exif)).size == (120, 160)
    assert load_image(data[:-12] + exif + data[-12:]).size == (120, 160)
    assert load_image(with_chunks(data, exif[:-1] + b"\0")).size == (160, 120)
