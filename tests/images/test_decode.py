"""What imret.images.decode accepts, what it makes of it, and what it refuses with which reason."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
import threading
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFilter, features

from imret.errors import ImageError
from imret.images.decode import IMAGE_EXTENSIONS, lift_pillow_limit, load_image, load_to_cover, read_header
from imret.images.resize import fit_image
from imret.images.thumbnails import to_jpeg

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(width: int = 64, height: int = 48, *, seed: int = 0) -> Image.Image:
    """Draw smooth colours with a noisy patch: something every codec has to work on."""
    ramp = np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 2, 3]) % 256
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3))
    ramp[height // 4 : height // 4 + height // 4, width // 4 : width // 4 + width // 4] = noise
    return Image.fromarray(ramp.astype(np.uint8))


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def flag() -> Image.Image:
    """Draw a 40 x 20 picture whose left half is red and right half is blue."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    return image


def near(pixel: Any, colour: tuple[int, int, int], tolerance: int = 6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, colour, strict=True))


def png(width: int, height: int, rows: bytes, *, bits: int = 8, colour_type: int = 2) -> bytes:
    """Build a PNG by hand, for headers that no encoder would write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "maker"
    return tags.tobytes()


def samples() -> dict[str, bytes]:
    """Encode one picture in every format, and in the variants of each that take another path."""
    image = picture()
    turned = image.rotate(180)
    grey16 = np.asarray(image)[..., 0].astype(np.uint16) * 257
    made = {
        "jpeg": encoded(image, "JPEG", exif=exif(6)),
        "progressive": encoded(image, "JPEG", progressive=True, icc_profile=b"x" * 200),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "mpo": encoded(image, "MPO", save_all=True, append_images=[turned]),
        "png": encoded(image, "PNG", exif=exif(8)),
        "palette": encoded(image.quantize(16), "PNG", transparency=b"\0\x80"),
        "png16": encoded(Image.fromarray(grey16), "PNG"),
        "rgba": encoded(image.convert("RGBA"), "PNG"),
        "apng": encoded(image, "PNG", save_all=True, append_images=[turned]),
        "webp": encoded(image, "WEBP", exif=exif(3)),
        "lossless": encoded(image, "WEBP", lossless=True),
        "webp animation": encoded(image, "WEBP", save_all=True, append_images=[turned]),
        "gif": encoded(image.quantize(32), "GIF"),
        "gif animation": encoded(
            image.quantize(32), "GIF", save_all=True, append_images=[turned.quantize(32)]
        ),
        "bmp": encoded(image, "BMP"),
        "bmp1": encoded(image.convert("1"), "BMP"),
        "tiff": encoded(image, "TIFF", tiffinfo={274: 6}),
        "lzw": encoded(image, "TIFF", compression="tiff_lzw"),
        "float": encoded(image.convert("F"), "TIFF"),
        "lab": encoded(Image.frombytes("LAB", image.size, image.tobytes()), "TIFF"),
    }
    if features.check("avif"):
        made["avif"] = encoded(image, "AVIF", exif=exif(6))
    return made


SAMPLES = samples()


# ---- What is read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_gives_an_rgb_image(name: str) -> None:
    image = load_image(SAMPLES[name])
    assert image.mode == "RGB"
    assert sorted(image.size) == [48, 64]


def test_heic_is_read_where_pillow_heif_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    heif.from_pillow(flag()).save(stream)
    image = load_image(stream.getvalue())
    assert image.size == (40, 20)
    assert near(image.getpixel((5, 10)), RED, 12)
    assert "HEIF" not in Image.OPEN, "the plugin must not be registered for the whole process"


def test_heic_without_pillow_heif_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # what an absent package looks like to import
    with pytest.raises(ImageError, match=r"pip install 'imret\[heic\]'"):
        load_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64)


def test_a_path_bytes_a_stream_and_a_pil_image_give_the_same_pixels(tmp_path: Path) -> None:
    data = encoded(picture(), "PNG")
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    reference = np.asarray(picture())
    with path.open("rb") as stream, Image.open(io.BytesIO(data)) as opened:
        sources: list[Any] = [path, str(path), data, stream, opened]
        for source in sources:
            np.testing.assert_array_equal(np.asarray(load_image(source)), reference)


def test_a_stream_that_cannot_seek_is_read() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as writer:
        writer.write(encoded(picture(16, 16), "PNG"))
    with os.fdopen(read_end, "rb") as stream:
        assert load_image(stream).size == (16, 16)


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "photo.gif"
    path.write_bytes(encoded(picture(), "JPEG"))
    assert load_image(path).size == (64, 48)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_exif_orientation_comes_out_upright(file_format: str, orientation: int) -> None:
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # tag 6 asks the viewer for 90 degrees clockwise
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    upright = Image.new("RGB", (48, 32), WHITE)
    upright.paste(RED, (0, 0, 24, 16))
    upright.paste(BLUE, (24, 16, 48, 32))
    stored = upright if undo is None else upright.transpose(undo)
    image = load_image(encoded(stored, file_format, exif=exif(orientation)))
    assert image.size == (48, 32)
    assert near(image.getpixel((6, 4)), RED, 40)
    assert near(image.getpixel((42, 28)), BLUE, 40)
    assert near(image.getpixel((42, 4)), WHITE, 40)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_that_was_loaded_is_not_turned_again(file_format: str) -> None:
    if file_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    upright = load_image(encoded(picture(), file_format, exif=exif(6)))
    assert load_image(upright).size == upright.size == (48, 64)


@pytest.mark.parametrize(
    "broken",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40,
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",  # orientation "six"
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_refuse_a_good_picture(file_format: str, broken: bytes) -> None:
    payload = broken if file_format != "PNG" else broken[6:]
    image = load_image(encoded(Image.new("RGB", (40, 20), RED), file_format, exif=payload))
    assert image.size == (40, 20)
    assert near(image.getpixel((5, 10)), RED, 12)


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert load_image(encoded(clear, "PNG")).getpixel((0, 0)) == WHITE
    assert near(load_image(encoded(half, "PNG")).getpixel((0, 0)), (255, 127, 127), 1)
    assert near(load_image(encoded(half, "WEBP", lossless=True)).getpixel((0, 0)), (255, 127, 127), 1)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBa"])
def test_the_rarer_alpha_modes_are_laid_over_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    for step in {"LA": ["LA"], "La": ["LA", "La"], "PA": ["PA"], "RGBa": ["RGBa"]}[mode]:
        image = image.convert(step)
    assert image.mode == mode
    assert load_image(image).getpixel((1, 1)) == WHITE


def test_a_transparent_palette_entry_and_a_colour_key_are_white() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert load_image(encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == WHITE
    assert load_image(encoded(palette, "GIF", transparency=1)).getpixel((0, 0)) == WHITE
    assert load_image(encoded(palette, "PNG")).getpixel((0, 0)) == RED
    keyed = encoded(Image.new("RGB", (4, 4), GREEN), "PNG", transparency=GREEN)
    assert load_image(keyed).getpixel((0, 0)) == WHITE
    grey = encoded(Image.new("L", (4, 4), 7), "PNG", transparency=7)
    assert load_image(grey).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_bilevel_become_rgb(mode: str) -> None:
    assert load_image(encoded(Image.new(mode, (4, 4), 255), "PNG")).getpixel((0, 0)) == WHITE


def test_cmyk_and_lab_keep_their_colours() -> None:
    cyan = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG")
    assert near(load_image(cyan).getpixel((8, 8)), (0, 255, 255), 6)
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(Image.new("RGB", (8, 8), (200, 40, 60)), to_lab)
    assert lab is not None
    assert near(load_image(encoded(lab, "TIFF")).getpixel((4, 4)), (200, 40, 60), 4)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I;16", np.array([[0, 257 * 100, 65535]], "<u2"), [0, 100, 255]),
        ("I;16B", np.array([[0, 257 * 12, 65535]], ">u2"), [0, 12, 255]),
        ("I", np.array([[0, 100, 200]], "<i4"), [0, 100, 200]),
        ("I", np.array([[0, 257 * 100, 65535]], "<i4"), [0, 100, 255]),
        ("I", np.array([[-1000, 0, 1000]], "<i4"), [0, 128, 255]),
        ("F", np.array([[0.0, 0.5, 1.0]], "<f4"), [0, 128, 255]),
        ("F", np.array([[0.0, 100.0, 255.0]], "<f4"), [0, 100, 255]),
        ("F", np.array([[np.nan, np.inf, 1.0]], "<f4"), [0, 0, 255]),
        ("F", np.array([[0.0, 0.0, 0.0]], "<f4"), [0, 0, 0]),
    ],
)
def test_more_than_eight_bits_are_scaled_to_eight(
    mode: str, values: NDArray[Any], expected: list[int]
) -> None:
    channels = np.asarray(load_image(Image.frombytes(mode, (3, 1), values.tobytes())))
    np.testing.assert_allclose(channels[0, :, 0], expected, atol=1)
    assert (channels == channels[..., :1]).all()


def test_sixteen_bit_files_keep_their_brightness() -> None:
    grey = Image.fromarray(np.full((4, 4), 257 * 90, np.uint16))
    assert load_image(encoded(grey, "PNG")).getpixel((0, 0)) == (90, 90, 90)
    assert load_image(encoded(grey, "TIFF")).getpixel((0, 0)) == (90, 90, 90)
    rgb = png(1, 1, b"\0" + struct.pack(">3H", 2570, 5140, 7710), bits=16, colour_type=2)
    rgba = png(1, 1, b"\0" + struct.pack(">4H", 2570, 5140, 7710, 65535), bits=16, colour_type=6)
    assert load_image(rgb).getpixel((0, 0)) == (10, 20, 30)
    assert load_image(rgba).getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_only_the_first_frame_of_several_is_read(file_format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert near(load_image(data).getpixel((16, 16)), RED, 12)


def test_extensions_are_lower_case_with_a_dot() -> None:
    assert all(ext.startswith(".") and ext == ext.lower() for ext in IMAGE_EXTENSIONS)
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tiff", ".avif", ".heic"} <= IMAGE_EXTENSIONS


# ---- What is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("share", [0.02, 0.4])
def test_a_truncated_file_is_refused(name: str, share: float) -> None:
    with pytest.raises(ImageError, match=r"truncated|not a picture"):
        # Of a file with several frames, this is less than the first.
        load_image(SAMPLES[name][: int(len(SAMPLES[name]) * share)])


def test_a_broken_later_frame_does_not_refuse_the_first() -> None:
    assert load_image(SAMPLES["apng"][:-50]).size == (64, 48)
    assert load_image(SAMPLES["gif animation"][:-50]).size == (64, 48)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(ImageError, match=r"^the file is empty$"):
        load_image(path)


@pytest.mark.parametrize(
    "data",
    [
        b"hello, I am text",
        b"%PDF-1.7\n",
        b"PK\3\4" + b"\0" * 90,
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg/>",
        b"x",
    ],
)
def test_what_is_no_picture_is_refused_whatever_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="not a picture"):
        load_image(path)


def test_a_giant_is_refused_by_its_header_before_anything_is_decoded() -> None:
    giant = png(50_000, 50_000, b"\0" * 64)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match=r"50000 x 50000 pixels .* limit of 128,000,000"):
            load_image(giant)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_is_the_callers_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(picture(), "PNG")
    with pytest.raises(ImageError, match=r"64 x 48 pixels .* limit of 3,071"):
        load_image(data, max_pixels=3071)
    assert load_image(data, max_pixels=3072).size == (64, 48)
    # As if the picture were larger than what Image.open refuses.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    files = {name: encoded(picture(), name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}
    for name in ("PNG", "JPEG", "GIF", "BMP"):
        assert load_image(files[name]).size == (64, 48)
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ImageError, match="TIFF picture of more pixels than its reader takes"):
        load_image(files["TIFF"])
    lift_pillow_limit(3072)
    assert load_image(files["TIFF"]).size == load_image(files["WEBP"]).size == (64, 48)


def test_a_picture_without_pixels_is_refused() -> None:
    for width, height in ((0, 5), (5, 0)):
        with pytest.raises(ImageError):
            load_image(png(width, height, b""))
    with pytest.raises(ImageError, match="no pixels"):
        load_image(Image.new("RGB", (0, 4)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jpg", "no such file"),
        ("folder.jpg", "folder|not a regular file"),
        ("dangling.jpg", "no such file"),
        ("loop.jpg", "leads back to itself"),
        ("pipe.jpg", "not a regular file"),
        ("a" * 300, "path is too long"),
        ("nul\0byte.jpg", "not a usable path"),
    ],
)
def test_faults_of_the_file_system_say_what_is_wrong(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opened without care, it waits for a writer for ever
    with pytest.raises(ImageError, match=reason):
        load_image(f"{tmp_path}/{name}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(picture(), "PNG"))
    path.chmod(0)
    with pytest.raises(ImageError, match="no permission"):
        load_image(path)


def test_a_read_error_of_the_disk_is_refused_with_its_reason() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(ImageError, match="read error"):
        load_image(Failing(encoded(picture(), "PNG")))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow only text in names")
def test_names_that_are_no_text_are_opened(tmp_path: Path) -> None:
    for name in (b"caf\xe9 \xff.png", b"new\nline.png", "\N{MUSHROOM} 'q\".png".encode()):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(encoded(picture(), "PNG"))
        assert load_image(path).size == (64, 48)


def damaged(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield copies of a file cut, flipped, aimed at its header, overwritten and spliced."""
    chance = random.Random(seed)
    for index in range(count):
        copy = bytearray(data)
        at = chance.randrange(len(copy))
        if index % 4 == 0:
            copy = copy[:at]
        elif index % 4 == 1:
            for _ in range(chance.choice((1, 2, 5, 20))):
                copy[chance.randrange(len(copy))] = chance.randrange(256)
        elif index % 4 == 2:
            for _ in range(chance.choice((1, 3))):
                copy[chance.randrange(min(200, len(copy)))] = chance.choice((0, 255, 128))
        else:
            length = chance.randrange(1, 40)
            copy[at : at + length] = chance.randbytes(length * (index % 8 < 4))
        yield bytes(copy)


@pytest.mark.parametrize("name", SAMPLES)
def test_hostile_bytes_give_an_image_or_an_image_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    reasons = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data in damaged(SAMPLES[name], 300, seed=len(name)):
            try:
                # The smaller limit keeps the test quick: a flipped header may claim a legal 99 megapixels.
                assert load_image(data, max_pixels=1_000_000).mode == "RGB"
            except ImageError as error:
                reasons.append(str(error))
    assert len(reasons) > 50
    assert all(reason and "\n" not in reason for reason in reasons)
    capfd.readouterr()  # libtiff writes complaints of its own to the process's stderr


def test_warnings_of_pillow_are_off_only_while_a_picture_is_read() -> None:
    odd = encoded(
        flag(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\xff\xff\0\0\xff\xff\xff\xff"
    )
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [load_image(odd) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


# ---- To the model's size -------------------------------------------------------------------------------


def stock(size: tuple[int, int], mode: str, interpolation: str, fill: int) -> Callable[[Image.Image], Any]:
    """Return open_clip's own transform, without its normalisation, as uint8 (H, W, 3)."""
    from open_clip.transform import image_transform

    transform: Any = image_transform(
        size,
        is_train=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=fill,
    )
    return lambda image: (transform(image) * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 48)])
def test_fitting_is_open_clips_transform_bit_for_bit(
    size: tuple[int, int], mode: str, interpolation: str
) -> None:
    chance = random.Random(1)
    sizes = [(64, 64), (80, 48), (1, 1), (3, 200), (200, 3), (500, 375), (375, 500), (65, 64), (1, 40)]
    sizes += [(chance.randrange(1, 300), chance.randrange(1, 300)) for _ in range(30)]
    reference = stock(size, mode, interpolation, 7)
    for index, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise)
        fitted = fit_image(image, size=size, interpolation=interpolation, resize_mode=mode, fill_color=7)
        assert fitted.dtype == np.uint8
        assert fitted.shape == (*size, 3)
        try:
            expected = reference(image)
        except ValueError:  # open_clip rounds the short side of a long picture to nothing, and fails
            assert mode == "longest"
            assert max(width, height) > 40 * min(width, height)
            continue
        np.testing.assert_array_equal(fitted, expected, err_msg=f"{width} x {height}")


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(1, 50_000), (50_000, 1), (3, 90_000)])
def test_a_very_long_picture_takes_little_memory(mode: str, shape: tuple[int, int]) -> None:
    resource = pytest.importorskip("resource")
    image = Image.new("RGB", shape, RED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted = fit_image(image, size=(224, 224), resize_mode=mode)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert fitted.shape == (224, 224, 3)
    assert fitted[111:113, 111:113].max(axis=(0, 1)).tolist() == list(RED)
    assert grown_kb < 100_000  # resizing the whole to 224 wide would take 7.5 GB


def test_resampling_only_what_the_crop_keeps_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, height in ((9, 2000), (2000, 9), (31, 4001)):
        image = picture(width, height).filter(ImageFilter.GaussianBlur(1))
        whole = fit_image(image, size=(64, 64)).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr("imret.images.resize._MAX_RESIZED_PIXELS", 0)
            boxed = fit_image(image, size=(64, 64)).astype(int)
        assert abs(whole - boxed).max() <= 2


def test_an_unknown_mode_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="resize mode"):
        fit_image(picture(), size=(8, 8), resize_mode="stretch")
    with pytest.raises(ValueError, match="interpolation"):
        fit_image(picture(), size=(8, 8), interpolation="lanczos")


def test_real_photos_are_fitted_as_open_clip_does(shared_data: Path) -> None:
    paths = sorted((shared_data / "nature10" / "test").glob("*/*.jpg"))[::6]
    assert len(paths) >= 30
    reference = stock((224, 224), "shortest", "bicubic", 0)
    for path in paths:
        with Image.open(path) as image:
            expected = reference(image)
        np.testing.assert_array_equal(fit_image(load_image(path), size=(224, 224)), expected)


# ---- Small, and for a browser ----------------------------------------------------------------------------


def differs(one: Image.Image, other: Image.Image) -> float:
    """Return the mean absolute difference of two pictures of one size, in levels."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize("shape", [(1600, 1200), (1200, 1600), (3000, 40), (1601, 1199), (300, 200)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_hint_of_the_size_changes_only_how_much_of_a_jpeg_is_decoded(
    shape: tuple[int, int], orientation: int
) -> None:
    # No sharp edges: a side that is no multiple of the fraction is off by less than a pixel of the fraction.
    smooth = picture(32, 24).resize(shape, Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=95, exif=exif(orientation))
    whole, hinted = load_image(data), load_image(data, max_side=100)
    assert max(hinted.size) >= min(200, max(shape))
    assert (hinted.size == whole.size) == (max(shape) < 400)
    small, reference = (
        Image.open(io.BytesIO(to_jpeg(image, max_side=100, quality=95))) for image in (hinted, whole)
    )
    assert max(small.size) == 100
    assert differs(small, reference) < 3


def test_a_hint_of_the_size_changes_nothing_else() -> None:
    data = encoded(picture(800, 600), "PNG")
    np.testing.assert_array_equal(load_image(data, max_side=10), load_image(data))
    jpeg = encoded(picture(800, 600), "JPEG")
    with Image.open(io.BytesIO(jpeg)) as opened:
        assert load_image(opened, max_side=10).size == (800, 600)
    # Judged by what is decoded of it, but where all of it is in memory before.
    assert load_image(jpeg, max_pixels=10_000, max_side=10).size == (100, 75)
    for data, side in ((jpeg, None), (encoded(picture(800, 600), "JPEG", progressive=True), 10)):
        with pytest.raises(ImageError, match="800 x 600 pixels"):
            load_image(data, max_pixels=10_000, max_side=side)
    with pytest.raises(ImageError, match="truncated"):
        load_image(jpeg[: len(jpeg) // 2], max_side=10)


@pytest.mark.parametrize("orientation", [0, 9, 200])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture(), "JPEG", exif=exif)
    assert load_image(data).size == load_to_cover(data, 10).size == (64, 48)
    assert read_header(io.BytesIO(data)).orientation == 1


@pytest.mark.parametrize("name", SAMPLES)
def test_a_header_tells_format_and_orientation_without_decoding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_decoding(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "transpose", no_decoding)
    monkeypatch.setattr(Image, "_getdecoder", no_decoding)
    header = read_header(io.BytesIO(SAMPLES[name]))
    monkeypatch.undo()
    with Image.open(io.BytesIO(SAMPLES[name])) as stock:
        assert header.format == {"MPO": "JPEG"}.get(stock.format or "", stock.format)
        assert header.mode == {"F": "L"}.get(stock.mode, stock.mode)  # a TIFF of floats comes as bytes
        assert header.orientation == stock.getexif().get(0x0112, 1)


def test_a_header_of_no_picture_or_of_a_giant_is_refused() -> None:
    for data, reason in (
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known format"),
        (png(50_000, 50_000, b"\0" * 64), "50000 x 50000 pixels"),
        (b"BM and some text that begins like a bitmap", "truncated BMP"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_header(io.BytesIO(data))


def test_a_jpeg_is_made_smaller_never_larger() -> None:
    for shape, fitted in (
        ((640, 480), (320, 240)),
        ((480, 640), (240, 320)),
        ((320, 20), (320, 20)),
        ((20, 10), (20, 10)),
        ((9000, 1), (320, 1)),
    ):
        with Image.open(io.BytesIO(to_jpeg(Image.new("RGB", shape, RED), max_side=320))) as made:
            assert (made.format, made.mode, made.size) == ("JPEG", "RGB", fitted)
            assert near(made.getpixel((0, 0)), RED)
    with Image.open(io.BytesIO(to_jpeg(Image.new("RGB", (70_000, 700), RED)))) as made:
        assert made.size == (65_500, 655)  # no JPEG is wider


def test_a_jpeg_that_is_made_carries_no_metadata() -> None:
    place = Image.Exif()
    place[0x0112] = 6
    place[0x010F] = "secret camera"
    place.get_ifd(0x8825)[1] = "N"
    data = encoded(
        picture(), "JPEG", exif=place.tobytes(), comment=b"secret comment", xmp=b"<secret/>", dpi=(300, 300)
    )
    assert data.count(b"secret") == 3
    for max_side in (None, 16):
        made = to_jpeg(load_image(data), max_side=max_side)
        assert b"secret" not in made
        with Image.open(io.BytesIO(made)) as image:
            assert dict(image.getexif()) == {}
            assert set(image.info) == {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_a_colour_profile_for_rgb_goes_along_and_srgb_is_left_out(file_format: str) -> None:
    wide = b"\0" * 16 + b"RGB XYZ " + b"\0" * 500
    for profile, kept in (
        (wide, wide),
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None),
        (wide.replace(b"RGB ", b"CMYK"), None),
        (wide.replace(b"RGB ", b"GRAY"), None),
        (wide + b"\0" * 20_000, None),
        (b"x", None),
    ):
        mode = "RGB" if file_format == "JPEG" else "RGBA"
        data = encoded(picture().convert(mode), file_format, icc_profile=profile)
        with Image.open(io.BytesIO(to_jpeg(load_image(data), max_side=32))) as made:
            assert made.info.get("icc_profile") == kept
