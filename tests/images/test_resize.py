"""The fast way from a file to a model's pixels gives what the exact one gives, but for a level or two."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from imret import Encoder
from imret.errors import ImageError
from imret.images.decode import load_image, load_to_cover
from imret.images.preprocess import Preprocess
from imret.images.resize import fit, fit_image, load_pixels


def _preprocess(**changes: Any) -> Preprocess:
    how = {"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0, **changes}
    return Preprocess(**{"size": (64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, **how})


def _scene(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture with detail of every scale, as photos have."""
    rng = np.random.default_rng(seed)
    layers = np.zeros((size[1], size[0], 3), np.float32)
    for scale in (2, 8, 32):
        small = rng.integers(0, 256, (max(1, size[1] // scale), max(1, size[0] // scale), 3), dtype=np.uint8)
        layers += np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.float32) / 3
    return Image.fromarray(layers.astype(np.uint8)).filter(ImageFilter.SHARPEN)


def _jpeg(image: Image.Image, **how: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90, **how)
    return data.getvalue()


def _exactly(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    return fit_image(
        image,
        size=preprocess.size,
        interpolation=preprocess.interpolation,
        resize_mode=preprocess.resize_mode,
        fill_color=preprocess.fill_color,
    )


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("out", [(64, 64), (48, 80)])
@pytest.mark.parametrize("size", [(200, 150), (150, 200), (64, 64), (40, 30), (64, 300), (1, 9), (700, 3)])
def test_pixels_are_those_of_the_exact_way_but_for_two_levels(
    mode: str, interpolation: str, out: tuple[int, int], size: tuple[int, int]
) -> None:
    preprocess = _preprocess(resize_mode=mode, interpolation=interpolation, size=out, fill_color=17)
    image = _scene(size)
    fast, exact = fit(image, preprocess), _exactly(image, preprocess)
    assert fast.shape == exact.shape == (*out, 3)
    assert fast.dtype == np.uint8
    assert fast.flags.c_contiguous
    assert np.abs(fast.astype(int) - exact).max() <= 2


def test_the_exact_way_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _jpeg(_scene((900, 700)))
    monkeypatch.setenv("IMRET_RESIZE", "exact")
    pixels, size = load_pixels(data, _preprocess())
    np.testing.assert_array_equal(pixels, _exactly(load_image(data), _preprocess()))
    assert size == (900, 700)


@pytest.mark.parametrize("size", [(2800, 2100), (1100, 1600), (640, 480), (300, 200)])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_jpeg_comes_at_a_fraction_that_is_enough(size: tuple[int, int], progressive: bool) -> None:
    data = _jpeg(_scene(size), progressive=progressive)
    reduced = load_to_cover(data, 64)
    image = reduced.image
    assert reduced.size == size
    assert min(image.size) >= min(96, *size)
    assert min(image.size) < 4 * 96 or image.size == size
    pixels, told = load_pixels(data, _preprocess())
    assert told == size
    exact = _exactly(load_image(data), _preprocess())
    assert np.abs(pixels.astype(int) - exact).mean() < 3


@pytest.mark.parametrize(
    ("size", "turned", "comes", "extent"),
    [
        ((1600, 1200), 1, (200, 150), (200, 150)),
        ((1103, 1601), 1, (138, 201), (137.875, 200.125)),
        ((1600, 1200), 6, (150, 200), (150, 200)),
        ((1100, 1604), 6, (401, 275), (401, 275)),
        ((1101, 1601), 3, (1101, 1601), (1101, 1601)),
    ],
)
def test_a_jpeg_whose_size_does_not_divide_is_not_stretched(
    size: tuple[int, int], turned: int, comes: tuple[int, int], extent: tuple[float, float]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    data = _jpeg(_scene(size), exif=exif)
    reduced = load_to_cover(data, 64)
    assert reduced.image.size == comes
    assert reduced.extent == extent
    for mode in ("shortest", "longest", "squash"):
        preprocess = _preprocess(resize_mode=mode)
        exact = _exactly(load_image(data), preprocess)
        assert np.abs(load_pixels(data, preprocess)[0].astype(int) - exact).mean() < 1.0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_upright_and_tells_its_upright_size(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _jpeg(_scene((1200, 800)), exif=exif)
    pixels, size = load_pixels(data, _preprocess())
    assert size == load_image(data).size
    exact = _exactly(load_image(data), _preprocess())
    assert np.abs(pixels.astype(int) - exact).mean() < 3


def test_what_is_no_picture_or_too_large_is_refused_as_elsewhere() -> None:
    with pytest.raises(ImageError, match="not a picture"):
        load_pixels(b"no picture", _preprocess())
    with pytest.raises(ImageError, match="more than the limit"):
        load_pixels(_scene((400, 300)), _preprocess(), max_pixels=100_000)
    whole = _jpeg(_scene((2000, 1500)))
    with pytest.raises(ImageError, match="truncated"):
        load_pixels(whole[: len(whole) // 2], _preprocess())


def test_embeddings_of_photos_agree(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((shared_data / "nature10" / "test").rglob("*.jpg"))[::8]
    large = []
    for file in files[::10]:  # as a camera gives them: twelve megapixels
        image = load_image(file)
        scale = (12_000_000 / (image.width * image.height)) ** 0.5
        size = (round(image.width * scale), round(image.height * scale))
        large.append(_jpeg(image.resize(size, Image.Resampling.BICUBIC)))
    encoder = Encoder(str(shared_data / "tiny-clip"), device="cpu", precision="fp32")
    pictures: list[Any] = [*files, *large]
    fast = encoder.encode_images(pictures)
    monkeypatch.setenv("IMRET_RESIZE", "exact")
    exact = encoder.encode_images(pictures)
    cosines = (fast * exact).sum(axis=1)
    assert np.median(cosines) > 0.999
    assert cosines.min() > 0.99
