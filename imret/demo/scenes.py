"""Paint the places that subjects are found in, and the little things in front of them.

A scene is reduced and enlarged again, so it lies softly out of focus behind the sharp subject. It hides how
the places vary: horizon, depth, planting, weather, time of day.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from imret.demo.pen import Rgb, mix, tone

Size = tuple[int, int]


def _gradient(size: Size, *stops: Rgb) -> Image.Image:
    """Return a vertical blend through the colours, top to bottom."""
    strip = np.array(stops, dtype=np.uint8)[:, None, :]
    # A column of n pixels, enlarged, stays flat for half a pixel at its ends; cut between the centres, not.
    n = len(stops)
    return Image.fromarray(strip).resize(size, Image.Resampling.BILINEAR, box=(0, 0.5, 1, n - 0.5))


def _vary(color: Rgb, rng: Random, span: float = 14) -> Rgb:
    r, g, b = (min(255, max(0, round(c + rng.uniform(-span, span)))) for c in color)
    return r, g, b


def _ridge(draw: ImageDraw.ImageDraw, size: Size, y: float, swell: float, color: Rgb, rng: Random) -> None:
    """A band of rolling land from height `y` (0 top, 1 bottom) down."""
    w, h = size
    a, b, f = rng.uniform(0, 6), rng.uniform(0, 6), rng.uniform(0.8, 1.6)
    line = [(x, h * (y + swell * (math.sin(a + f * 5 * x / w) + 0.5 * math.sin(b + f * 11 * x / w))))
            for x in range(0, w + 4, 4)]  # fmt: skip
    draw.polygon([*line, (w, h), (0, h)], fill=color)


def _forest(size: Size, rng: Random, ground: float) -> Image.Image:
    w, h = size
    far, near = _vary((170, 196, 150), rng), _vary((82, 108, 70), rng)
    image = _gradient(size, mix(far, near, 0.35), far, mix(far, near, 0.5))
    draw = ImageDraw.Draw(image)
    for depth in (0.25, 0.55, 0.9):
        for _ in range(rng.randint(3, 5)):
            x, half = rng.uniform(0, w), w * (0.008 + 0.022 * depth) * rng.uniform(0.7, 1.3)
            bark = mix(far, _vary((84, 66, 52), rng), 0.35 + 0.55 * depth)
            draw.polygon(
                [(x - half, 0), (x + half, 0), (x + half * 1.5, h * 0.9), (x - half * 1.5, h * 0.9)],
                fill=bark,
            )
    for _ in range(26):
        x, y, r = rng.uniform(0, w), rng.uniform(-0.06, 0.2) * h, rng.uniform(0.06, 0.14) * w
        draw.ellipse(
            (x - r, y - r * 0.7, x + r, y + r * 0.7), fill=_vary(mix(far, near, rng.uniform(0.3, 1)), rng)
        )
    _ridge(draw, size, min(ground, rng.uniform(0.66, 0.78)), 0.02, _vary((112, 116, 66), rng), rng)
    for _ in range(30):
        x, y, r = rng.uniform(0, w), rng.uniform(0.76, 1) * h, rng.uniform(0.01, 0.025) * w
        draw.ellipse((x - r, y - r * 0.5, x + r, y + r * 0.5), fill=_vary((128, 104, 62), rng, 26))
    return image


def _meadow(size: Size, rng: Random, ground: float) -> Image.Image:
    w, h = size
    horizon = min(ground, rng.uniform(0.3, 0.55))
    image = _gradient(
        size, _vary((140, 192, 232), rng), _vary((214, 232, 240), rng), _vary((226, 238, 226), rng)
    )
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 4)):
        x, y, r = rng.uniform(0, w), rng.uniform(0.04, 0.25) * h, rng.uniform(0.04, 0.09) * w
        for k in (-1, 0, 1):
            draw.ellipse((x + k * r - r, y - r * 0.5, x + k * r + r, y + r * 0.5), fill=(248, 250, 252))
    _ridge(draw, size, horizon, 0.03, _vary((158, 194, 128), rng), rng)
    _ridge(draw, size, horizon + 0.12, 0.025, _vary((142, 190, 98), rng), rng)
    _ridge(draw, size, horizon + 0.28, 0.02, _vary((124, 178, 84), rng), rng)
    for _ in range(rng.randint(14, 40)):
        x, y = rng.uniform(0, w), rng.uniform(horizon + 0.14, 1)
        r = w * 0.004 * (0.6 + 1.6 * y)
        bloom = rng.choice([(252, 250, 244), (250, 222, 96), (232, 150, 170), (176, 150, 214)])
        draw.ellipse((x - r, y * h - r, x + r, y * h + r), fill=bloom)
    for _ in range(60):
        x, y = rng.uniform(0, w), rng.uniform(horizon + 0.2, 1.05) * h
        draw.line((x, y, x + rng.uniform(-3, 3), y - h * 0.05), fill=_vary((104, 156, 70), rng), width=1)
    return image


def _desert(size: Size, rng: Random, ground: float) -> Image.Image:
    w, h = size
    sky = rng.choice([(150, 200, 226), (244, 206, 160), (186, 212, 224)])
    horizon = min(ground, rng.uniform(0.28, 0.5))
    image = _gradient(size, _vary(sky, rng), (250, 236, 208), (250, 236, 208))
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.5:
        x, y, r = rng.uniform(0.1, 0.9) * w, rng.uniform(0.06, 0.2) * h, 0.05 * w
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 246, 214))
    for step, color in ((0, (226, 186, 132)), (0.1, (236, 200, 144)), (0.25, (240, 210, 158))):
        _ridge(draw, size, horizon + step, 0.035, _vary(color, rng, 8), rng)
    for _ in range(9):
        x, y, long = rng.uniform(-0.1, 0.9) * w, rng.uniform(horizon + 0.3, 1) * h, rng.uniform(0.12, 0.3) * w
        draw.arc((x, y, x + long, y + h * 0.05), 190, 350, fill=(216, 180, 126), width=1)
    for _ in range(rng.randint(0, 6)):
        x, y, r = rng.uniform(0, w), rng.uniform(horizon + 0.2, 1) * h, rng.uniform(0.008, 0.025) * w
        draw.ellipse((x - r, y - r * 0.7, x + r, y + r * 0.7), fill=_vary((178, 146, 112), rng))
    return image


def _sea(size: Size, rng: Random, ground: float) -> Image.Image:
    w, h = size
    image = _gradient(
        size, _vary((150, 220, 226), rng), _vary((82, 176, 204), rng), _vary((40, 116, 164), rng)
    )
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.randint(2, 5)):
        x, wide, lean = rng.uniform(0, w), rng.uniform(0.03, 0.1) * w, rng.uniform(-0.25, 0.25) * w
        draw.polygon(
            [(x, 0), (x + wide, 0), (x + lean + 2 * wide, h), (x + lean - wide, h)], fill=(236, 255, 250, 38)
        )
    if rng.random() < 0.6:
        _ridge(draw, size, rng.uniform(0.8, 0.9), 0.015, _vary((206, 196, 150), rng), rng)
    for _ in range(rng.randint(0, 7)):
        x, high = rng.uniform(0, w), rng.uniform(0.12, 0.34) * h
        weed = [(x + w * 0.015 * math.sin(k * 1.2 + x), h - high * k / 6) for k in range(7)]
        draw.line(weed, fill=_vary((46, 128, 110), rng), width=max(2, w // 60))
    for _ in range(rng.randint(5, 22)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.004, 0.016) * w
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(236, 252, 255, 190), width=1)
    return image


def _night(size: Size, rng: Random, ground: float) -> Image.Image:
    w, h = size
    image = _gradient(
        size, _vary((26, 32, 78), rng, 8), _vary((48, 58, 116), rng, 8), _vary((88, 92, 150), rng, 8)
    )
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(30, 70)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, 0.75) * h, rng.choice([0.4, 0.6, 1.0]) * w / 220
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_vary((244, 240, 214), rng, 10))
    if rng.random() < 0.75:
        x, y, r = rng.uniform(0.08, 0.92) * w, rng.uniform(0.07, 0.26) * h, rng.uniform(0.04, 0.075) * w
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 244, 214))
        if rng.random() < 0.5:
            draw.ellipse(
                (x - r * 0.4, y - r * 1.1, x + r * 1.5, y + r * 0.8), fill=image.getpixel((1, int(y)))
            )
    _ridge(draw, size, min(ground, rng.uniform(0.74, 0.84)), 0.03, _vary((58, 66, 106), rng, 6), rng)
    _ridge(draw, size, 0.9, 0.02, _vary((46, 54, 88), rng, 6), rng)
    return image


def _snow(size: Size, rng: Random, ground: float) -> Image.Image:
    w, h = size
    image = _gradient(size, _vary((168, 192, 216), rng), _vary((206, 218, 230), rng), (222, 230, 238))
    draw = ImageDraw.Draw(image)
    horizon = min(ground, rng.uniform(0.34, 0.56))
    _ridge(draw, size, horizon, 0.035, (212, 222, 234), rng)
    for _ in range(rng.randint(2, 9)):
        x, y, high = rng.uniform(0, w), h * (horizon + rng.uniform(0.0, 0.1)), rng.uniform(0.08, 0.2) * h
        pine = _vary((108, 136, 140), rng)
        for k in range(3):
            top, half = y - high + k * high * 0.25, high * (0.14 + 0.09 * k)
            draw.polygon([(x, top), (x - half, top + high * 0.42), (x + half, top + high * 0.42)], fill=pine)
    _ridge(draw, size, horizon + 0.1, 0.03, (228, 236, 244), rng)
    _ridge(draw, size, horizon + 0.3, 0.02, (238, 243, 249), rng)
    for _ in range(rng.randint(25, 70)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.003, 0.009) * w
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(253, 254, 255))
    return image


def _plain(size: Size, rng: Random, ground: float) -> Image.Image:
    r, g, b = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.02, 0.2), rng.uniform(0.72, 0.92))
    base = (round(255 * r), round(255 * g), round(255 * b))
    return _gradient(size, tone(base, rng.uniform(0.1, 0.35)), base, tone(base, -rng.uniform(0.08, 0.22)))


_PAINTERS: dict[str, Callable[[Size, Random, float], Image.Image]] = {
    "forest": _forest,
    "meadow": _meadow,
    "desert": _desert,
    "sea": _sea,
    "night": _night,
    "snow": _snow,
    "plain": _plain,
}
BACKGROUNDS = tuple(_PAINTERS)


def paint(background: str, size: Size, rng: Random, *, ground: float = 1.0) -> Image.Image:
    """Return a scene, RGB of `size` = (width, height) pixels, softly out of focus by a varying degree.

    Args:
        background: One of BACKGROUNDS.
        size: (width, height) in pixels.
        rng: Decides everything else.
        ground: Height, 0 (top) to 1, at which there must be ground to stand on, where the place has any.
    """
    scene = _PAINTERS[background](size, rng, max(0.12, ground))
    return scene.reduce(rng.choice((2, 3, 4))).resize(size, Image.Resampling.BICUBIC)


def overlay(canvas: Image.Image, background: str, rng: Random) -> None:
    """Put the small things of a place in front: blades of grass, flakes, bubbles, pebbles."""
    w, h = canvas.size
    draw = ImageDraw.Draw(canvas)
    if background in ("meadow", "forest"):
        tall = rng.uniform(0.03, 0.12) * h
        for _ in range(rng.randint(20, 70)):
            x, lean = rng.uniform(0, w), rng.uniform(-0.03, 0.03) * w
            top, half = h - tall * rng.uniform(0.4, 1.3), w * 0.006
            blade = _vary((92, 146, 62) if background == "meadow" else (84, 112, 56), rng, 22)
            draw.polygon([(x - half, h), (x + half, h), (x + lean, top)], fill=blade)
    elif background == "snow":
        for _ in range(rng.randint(0, 30)):
            x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.003, 0.009) * w
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(252, 253, 255))
    elif background == "sea":
        for _ in range(rng.randint(0, 10)):
            x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.005, 0.018) * w
            draw.ellipse((x - r, y - r, x + r, y + r), outline=(238, 252, 255), width=max(1, w // 300))
    elif background == "desert":
        for _ in range(rng.randint(0, 12)):
            x, y, r = rng.uniform(0, w), rng.uniform(0.93, 1.01) * h, rng.uniform(0.006, 0.02) * w
            draw.ellipse((x - r, y - r * 0.7, x + r, y + r * 0.7), fill=_vary((190, 156, 116), rng, 18))
