"""Draw soft, shaded, outlined shapes in a subject's own coordinates.

A subject is drawn in a frame of about [-1, 1] x [-1, 1] with y pointing down; the pen puts it on the canvas
at any place, size, turn and mirror image, as vectors, so nothing is resampled. It hides smoothing, shading,
outlines, and how a pattern (spots, stripes) is clipped to the part that carries it.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Points = Sequence[tuple[float, float]] | NDArray[np.float64]
Mark = tuple[Points, Rgb]  # a polygon in the subject's frame, clipped to the part it decorates

# hue, saturation and value ranges: what a person would call by that one name
COLORS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((0.975, 1.005), (0.78, 0.92), (0.74, 0.90)),
    "orange": ((0.068, 0.088), (0.82, 0.95), (0.92, 1.00)),
    "yellow": ((0.137, 0.155), (0.72, 0.90), (0.94, 1.00)),
    "green": ((0.27, 0.38), (0.52, 0.78), (0.50, 0.74)),
    "blue": ((0.58, 0.63), (0.62, 0.88), (0.66, 0.92)),
    "purple": ((0.745, 0.79), (0.48, 0.72), (0.52, 0.76)),
    "pink": ((0.905, 0.95), (0.32, 0.48), (0.95, 1.00)),
    "brown": ((0.055, 0.08), (0.50, 0.66), (0.40, 0.52)),
    "black": ((0.55, 0.75), (0.05, 0.22), (0.15, 0.21)),
    "white": ((0.08, 0.16), (0.00, 0.05), (0.95, 1.00)),
}

CREAM: Rgb = (247, 234, 210)
LEAF: Rgb = (96, 148, 74)
INK: Rgb = (38, 30, 36)
_FINE = 7  # points drawn per control point of a smooth curve


def shade_of(name: str, rng: Random) -> Rgb:
    """Return one of the many shades that go by a colour's name."""
    hue, saturation, value = (rng.uniform(*span) for span in COLORS[name])
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    """Return `a` with a `share` of `b` in it, 0 to 1."""
    r, g, v = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return r, g, v


def tone(color: Rgb, step: float) -> Rgb:
    """Return a lighter (step > 0) or darker (step < 0) tone of a colour, -1 to 1."""
    return mix(color, (255, 252, 244), step) if step >= 0 else mix(color, (24, 16, 34), -step)


def luminance(color: Rgb) -> float:
    """Return the perceived lightness of a colour, 0 (black) to 1 (white)."""
    return (0.30 * color[0] + 0.59 * color[1] + 0.11 * color[2]) / 255


def accent(color: Rgb, step: float) -> Rgb:
    """Return a darker tone for a second part, or a lighter one where darker could not be seen."""
    return tone(color, -step) if luminance(color) > 0.22 else tone(color, step * 0.7)


def pale(color: Rgb, step: float) -> Rgb:
    """Return a lighter tone for a belly or a muzzle, or a darker one where lighter could not be seen."""
    return tone(color, step) if luminance(color) < 0.82 else tone(color, -0.1)


def crease(color: Rgb) -> Rgb:
    """Return a line colour that shows on `color`."""
    return tone(color, -0.6) if luminance(color) > 0.24 else tone(color, 0.45)


@dataclass(frozen=True)
class Look:
    """What one individual looks like: its main colour, and the pattern on its marked parts."""

    main: Rgb
    pattern: str = "plain"  # plain, spots or stripes
    mark: Rgb = (255, 255, 255)
    slant: float = 0.5  # direction of the stripes in the subject's frame, radians


@cache
def _spline_weights(fine: int) -> NDArray[np.float64]:
    """Catmull-Rom weights, (fine, 4): each row blends four neighbouring control points."""
    t = np.arange(fine)[:, None] / fine
    basis = np.array([[0, -1, 2, -1], [2, 0, -5, 3], [0, 1, 4, -3], [0, 0, -1, 1]]) / 2
    return np.asarray(np.concatenate([t**0, t, t**2, t**3], axis=1) @ basis.T)


def smooth(points: Points, *, closed: bool) -> NDArray[np.float64]:
    """Return a dense curve, (n, 2), that passes through all the control points."""
    p = np.asarray(points, dtype=np.float64)
    if closed:
        around = np.stack([np.roll(p, 1, axis=0), p, np.roll(p, -1, axis=0), np.roll(p, -2, axis=0)])
    else:
        padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
        around = np.stack([padded[:-3], padded[1:-2], padded[2:-1], padded[3:]])
    curve = np.einsum("fk,knd->nfd", _spline_weights(_FINE), around).reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, n: int = 28) -> NDArray[np.float64]:
    """Return the outline of an ellipse, (n, 2); `turn` in radians."""
    a = np.linspace(0, 2 * np.pi, n, endpoint=False)
    px, py = rx * np.cos(a), ry * np.sin(a)
    c, s = math.cos(turn), math.sin(turn)
    return np.stack([x + c * px - s * py, y + s * px + c * py], axis=1)


def ribbon(points: Points, widths: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the outline of a round-ended limb, and its spine with half-widths as (n, 3)."""
    spine = smooth(points, closed=False)
    steps = np.linspace(0, len(widths) - 1, len(spine))
    half = np.interp(steps, np.arange(len(widths)), widths) / 2
    along = np.gradient(spine, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    side = np.stack([-along[:, 1], along[:, 0]], axis=1) * half[:, None]
    turn = np.linspace(0, np.pi, 7)[1:-1, None]
    tip = spine[-1] + side[-1] * np.cos(turn) + along[-1] * half[-1] * np.sin(turn)
    root = spine[0] - side[0] * np.cos(turn) - along[0] * half[0] * np.sin(turn)
    outline = np.concatenate([spine + side, tip, (spine - side)[::-1], root])
    return outline, np.concatenate([spine, half[:, None]], axis=1)


@cache
def _falloff(kind: str, strength: float, mirrored: bool = False) -> Image.Image:
    """Return a 64 x 64 mask: how much darker ("shade") or brighter ("glow") a part gets, place by place.

    At most `strength`, 0 to 1. Enlarged where it is used. Cached, as the strengths are few.
    """
    y, x = np.mgrid[0:64, 0:64] / 31.5 - 1
    if mirrored:
        x = -x
    if kind == "shade":
        level = np.clip((x * 0.45 + y * 0.85 + 0.05), 0, 1) ** 1.2 + 0.5 * np.clip(
            np.hypot(x, y) - 0.75, 0, 1
        )
    elif kind == "glow":
        level = np.clip(1 - np.hypot((x + 0.38) * 1.5, (y + 0.45) * 1.6), 0, 1) ** 1.3
    else:  # "pool": a soft round patch, for shadows and halos
        level = np.clip(1 - np.hypot(x, y), 0, 1) ** 0.9
    return Image.fromarray((np.clip(level, 0, 1) * 255 * strength).astype(np.uint8))


class Pen:
    """Draws one individual onto a canvas, in the subject's own frame.

    Args:
        canvas: RGB image that is drawn on.
        at: Where the frame's origin goes, in canvas pixels.
        unit: Canvas pixels per unit of the frame.
        look: Colour and pattern of the individual.
        rng: Where poses and small differences come from.
        turn: Rotation in radians, clockwise.
        flip: Mirror left and right.
        squash: Width over height of a unit; 1 keeps the proportions.
        line: Width of an outline in units of the frame; 0 draws none.
        light_left: Whether the light comes from the canvas's left.
    """

    def __init__(
        self,
        canvas: Image.Image,
        at: tuple[float, float],
        *,
        unit: float,
        look: Look,
        rng: Random,
        turn: float = 0.0,
        flip: bool = False,
        squash: float = 1.0,
        line: float = 0.03,
        light_left: bool = True,
    ) -> None:
        self.look = look
        self.rng = rng
        self._canvas = canvas
        self._draw = ImageDraw.Draw(canvas)
        self._unit = unit
        self._line = max(2.0, line * unit) if line else 0.0
        self._light_left = light_left
        c, s = math.cos(turn), math.sin(turn)
        shape = np.diag([unit * squash * (-1 if flip else 1), unit / squash])
        self._matrix = np.array([[c, -s], [s, c]]) @ shape
        self._origin = np.array(at)

    def jitter(self, span: float) -> float:
        """Return a small random difference in [-span, span]."""
        return self.rng.uniform(-span, span)

    def _place(self, points: Points) -> NDArray[np.float64]:
        return np.asarray(np.asarray(points, dtype=np.float64) @ self._matrix.T + self._origin)

    def _outline(self, pixels: NDArray[np.float64], fill: Rgb, closed: bool = True) -> None:
        if self._line:
            edge = tone(fill, -0.62) if luminance(fill) > 0.24 else tone(fill, 0.34)
            path = np.concatenate([pixels, pixels[:2]]) if closed else pixels
            self._draw.line(path.ravel().tolist(), fill=edge, width=round(self._line), joint="curve")

    def blob(
        self,
        points: Points,
        fill: Rgb,
        *,
        marked: bool = False,
        marks: Iterable[Mark] = (),
        corners: bool = False,
        shade: float = 1.0,
        line: bool = True,
    ) -> None:
        """Draw a closed part through `points`.

        Args:
            points: Control points in the frame; the outline passes through them.
            fill: Colour of the part.
            marked: Whether the part carries the individual's pattern.
            marks: Further decoration, clipped to the part, drawn over the fill and under the pattern.
            corners: Keep the corners instead of rounding them off.
            shade: Strength of light and shadow, 0 (flat) to 1.
            line: Draw the outline.
        """
        frame = np.asarray(points, dtype=np.float64) if corners else smooth(points, closed=True)
        decoration = list(marks)
        if marked:
            decoration += self._pattern(frame)
        self._part(frame, fill, decoration, shade, line)

    def _part(
        self, frame: NDArray[np.float64], fill: Rgb, marks: list[Mark], shade: float, line: bool
    ) -> None:
        pixels = self._place(frame)
        low = np.floor(pixels.min(axis=0)).astype(int) - 1
        width, height = (np.ceil(pixels.max(axis=0)).astype(int) + 2 - low).tolist()
        if not marks and (shade == 0 or width * height < 500):  # too small for light to show
            self._draw.polygon(pixels.ravel().tolist(), fill=fill)
        else:
            mask = Image.new("L", (width, height))
            ImageDraw.Draw(mask).polygon((pixels - low).ravel().tolist(), fill=255)
            tile = Image.new("RGB", (width, height), fill)
            brush = ImageDraw.Draw(tile)
            for polygon, color in marks:
                brush.polygon((self._place(polygon) - low).ravel().tolist(), fill=color)
            if shade:
                self._light(tile, fill, shade)
            self._canvas.paste(tile, (int(low[0]), int(low[1])), mask)
        if line:
            self._outline(pixels, fill)

    def _light(self, tile: Image.Image, fill: Rgb, shade: float) -> None:
        dark = _falloff("shade", 0.52 * shade, not self._light_left)
        bright = _falloff("glow", (0.50 if luminance(fill) > 0.2 else 0.28) * shade, not self._light_left)
        deep = mix(tone(fill, -0.75), (44, 22, 66), 0.35)
        tile.paste(deep, mask=dark.resize(tile.size, Image.Resampling.BILINEAR))
        tile.paste((255, 252, 240), mask=bright.resize(tile.size, Image.Resampling.BILINEAR))

    def _pattern(self, frame: NDArray[np.float64]) -> list[Mark]:
        look, rng = self.look, self.rng
        if look.pattern == "plain":
            return []
        (x0, y0), (x1, y1) = frame.min(axis=0), frame.max(axis=0)
        span = max(0.35, min(1.0, math.sqrt((x1 - x0) * (y1 - y0))))  # small parts carry smaller marks
        if look.pattern == "spots":
            step = 0.36 * span
            marks: list[Mark] = []
            for row, y in enumerate(np.arange(y0 + 0.3 * step, y1, step * 0.88)):
                for x in np.arange(x0 + (0.2 + 0.5 * (row % 2)) * step, x1, step):
                    r = step * rng.uniform(0.25, 0.36)
                    cx, cy = x + self.jitter(0.14) * step, y + self.jitter(0.14) * step
                    marks.append((ellipse(cx, cy, r, r * rng.uniform(0.82, 1.0), n=14), look.mark))
            return marks
        step = 0.34 * span
        cx, cy, reach = (x0 + x1) / 2, (y0 + y1) / 2, math.hypot(x1 - x0, y1 - y0) / 2
        along = np.array([math.cos(look.slant), math.sin(look.slant)])
        across = np.array([-along[1], along[0]])
        t = np.linspace(-reach, reach, 9)[:, None]
        wave = across * 0.14 * step * np.sin(t * 5 / span + rng.uniform(0, 6))
        bands: list[Mark] = []
        for offset in np.arange(-reach + step * rng.uniform(0.2, 0.6), reach, step):
            middle = np.array([cx, cy]) + along * t + wave + across * offset
            half = across * step * rng.uniform(0.19, 0.25)
            bands.append((np.concatenate([middle + half, (middle - half)[::-1]]), look.mark))
        return bands

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: Rgb, *, turn: float = 0.0, **how: Any
    ) -> None:
        """Draw an ellipse part; `how` as in `blob`."""
        self.blob(ellipse(x, y, rx, ry, turn), fill, corners=True, **how)

    def limb(
        self,
        points: Points,
        widths: Sequence[float],
        fill: Rgb,
        *,
        marked: bool = False,
        shade: float = 1.0,
        line: bool = True,
    ) -> None:
        """Draw a bending, tapering limb along `points`; `widths` are spread evenly over its length."""
        outline, spine = ribbon(points, widths)
        marks: list[Mark] = []
        if marked:  # a trunk is decorated as a surface, an arm along its length
            marks = self._pattern(outline) if max(widths) > 0.42 else self._bands(spine)
        self._part(outline, fill, marks, shade, line)

    def _bands(self, spine: NDArray[np.float64]) -> list[Mark]:
        """The pattern of a limb follows it: rings for stripes, a row of dots for spots."""
        if self.look.pattern == "plain":
            return []
        path = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(spine[:, :2], axis=0).T))])
        step = max(0.16, 1.5 * float(spine[:, 2].max()))
        marks: list[Mark] = []
        for s in np.arange(step * 0.5, path[-1], step):
            x, y, half = (float(np.interp(s, path, spine[:, i])) for i in range(3))
            ahead = [float(np.interp(s + 0.02, path, spine[:, i])) for i in range(2)]
            turn = math.atan2(ahead[1] - y, ahead[0] - x)
            if self.look.pattern == "spots":
                marks.append((ellipse(x, y, half * 0.62, half * 0.55, turn, n=12), self.look.mark))
            else:
                marks.append((ellipse(x, y, step * 0.22, half * 1.6, turn, n=12), self.look.mark))
        return marks

    def thread(self, points: Points, fill: Rgb, width: float = 0.03, *, curved: bool = True) -> None:
        """Draw a thin line without outline: a whisker, an antenna, a crease."""
        frame = smooth(points, closed=False) if curved else points
        pixels = self._place(frame).ravel().tolist()
        self._draw.line(pixels, fill=fill, width=max(2, round(width * self._unit)), joint="curve")

    def dot(self, x: float, y: float, r: float, fill: Rgb) -> None:
        """Draw a small flat disc."""
        (px, py), reach = self._place([(x, y)])[0], max(1.0, r * self._unit)
        self._draw.ellipse((px - reach, py - reach, px + reach, py + reach), fill=fill)

    def eye(self, x: float, y: float, r: float, *, white: bool = True) -> None:
        """Draw an eye: a white with a dark pupil, or a dark bead, and a glint of light."""
        if white:
            self.dot(x, y, r + 0.022, INK)
            self.dot(x, y, r, (255, 255, 252))
            self.dot(x + 0.12 * r, y + 0.08 * r, 0.62 * r, (28, 22, 30))
        else:
            self.dot(x, y, r * 1.18, (236, 230, 226) if luminance(self.look.main) < 0.3 else INK)
            self.dot(x, y, r, (24, 18, 26))
        self.dot(x - 0.22 * r, y - 0.3 * r, 0.26 * r, (255, 255, 255))


def pool(
    canvas: Image.Image, at: tuple[float, float], rx: float, ry: float, color: Rgb, strength: float
) -> None:
    """Lay a soft elliptical patch of colour on the canvas: a shadow or a halo; `strength` 0 to 1."""
    box = (max(2, round(2 * rx)), max(2, round(2 * ry)))
    mask = _falloff("pool", strength).resize(box, Image.Resampling.BILINEAR)
    canvas.paste(color, (round(at[0] - rx), round(at[1] - ry)), mask)
