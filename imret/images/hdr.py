"""Pictures of high dynamic range, and of wide gamut by their numbers (CICP), to sRGB as browsers show them.

HEIC and AVIF state primaries and transfer in a colr box, PNG in a cICP chunk, as ITU-T H.273 numbers them. PQ
and HLG taken for sRGB are grey and flat; so they are brought to light, its peak is brought to the white of
an ordinary display, and that to sRGB.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

_LINEAR, _PQ, _HLG = 8, 16, 18  # transfers of ITU-T H.273
_SRGB, _BT2020, _P3 = 1, 9, 12  # primaries
_GRID = 65  # colours a side of the table that a picture goes through; between them it is linear

_WHITE = 203.0  # cd/m2: what PQ and HLG give a white page. Source: Report ITU-R BT.2408
_PEAK = 1000.0  # cd/m2: of the display that HLG is made for; taken for that of a PQ picture that states none

_TO_XYZ = {
    _SRGB: ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)),
    _BT2020: ((0.6370, 0.1446, 0.1689), (0.2627, 0.6780, 0.0593), (0.0, 0.0281, 1.0610)),
    _P3: ((0.4866, 0.2657, 0.1982), (0.2290, 0.6917, 0.0793), (0.0, 0.0451, 1.0439)),
}


def needs_tone_map(primaries: int, transfer: int) -> bool:
    """Whether pixels of these numbers look otherwise than in sRGB: PQ, HLG, linear light or BT.2020.

    Display P3 by its numbers does not: as by its profile, it is left as it is.
    """
    return transfer in (_PQ, _HLG, _LINEAR) or primaries == _BT2020


def to_srgb(image: Image.Image, primaries: int, transfer: int, brightest: int | None = None) -> Image.Image:
    """Return an RGB picture in sRGB.

    Args:
        image: Of mode RGB.
        primaries: As ITU-T H.273 numbers them; unknown ones are those of BT.2020 for PQ and HLG, else sRGB's.
        transfer: Likewise; an unknown one is sRGB's.
        brightest: Light level of the brightest pixel in cd/m2, where a PQ picture states it.

    Source: SMPTE ST 2094-50, the reference white tone mapping operator, which Chromium shows such pictures by
        on ordinary displays (Skia, PopulateUsingRwtmo).
    """
    peak = 0.0 if transfer != _PQ else float(brightest or _PEAK)
    return image.filter(_table(primaries, transfer, peak))


@lru_cache(maxsize=8)
def _table(primaries: int, transfer: int, peak: float) -> ImageFilter.Color3DLUT:
    steps = np.linspace(0.0, 1.0, _GRID)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # red is the fastest in Pillow's table
    levels = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    is_hdr = transfer in (_PQ, _HLG)
    source = _matrix(primaries if primaries in _TO_XYZ else _BT2020 if is_hdr else _SRGB)
    light = _to_light(levels, transfer)  # 1 is white, but of HLG
    if is_hdr:
        light = np.clip(light @ (np.linalg.inv(_matrix(_BT2020)) @ source).T, 0.0, None)
        if transfer == _HLG:
            luminance = light @ _matrix(_BT2020)[1]
            light *= luminance[:, None] ** 0.2 * (_PEAK / _WHITE)  # the display's own curve: BT.2100, table 5
        highest = light.max(axis=1, keepdims=True)
        light *= _dimmed(highest, (peak or _PEAK) / _WHITE) / np.maximum(highest, 1e-12)
        source = _matrix(_BT2020)
    srgb = _srgb_of(np.clip(light @ (np.linalg.inv(_matrix(_SRGB)) @ source).T, 0.0, 1.0))
    return ImageFilter.Color3DLUT(_GRID, srgb.astype(np.float32).reshape(-1))


def _dimmed(light: NDArray[Any], peak: float) -> NDArray[Any]:
    """Return the light of an ordinary display, in [0, 1], for that of a picture, in [0, peak].

    Up to white it is in proportion; from there to the peak it follows a parabola.
    """
    if peak <= 1.0:
        return light
    white = 1.0 - 0.5 * min(1.0, np.log2(peak) / np.log2(_PEAK / _WHITE))
    middle = (0.35 + 0.65 / white, 0.35 * white + 0.65)
    a, b = 1.0 - 2.0 * middle[0] + peak, 2.0 * middle[0] - 2.0
    above = np.clip(light, 1.0, peak) - 1.0
    t = 2.0 * above / (b + np.sqrt(b * b + 4.0 * a * above))  # where the parabola has that light
    curve = white + (2.0 * middle[1] - 2.0 * white) * t + (white - 2.0 * middle[1] + 1.0) * t * t
    return np.asarray(np.where(light <= 1.0, light * white, curve))


def _matrix(primaries: int) -> NDArray[Any]:
    return np.array(_TO_XYZ[primaries])


def _to_light(levels: NDArray[Any], transfer: int) -> NDArray[Any]:
    """Return light for levels in [0, 1]. Source: Recommendation ITU-R BT.2100, tables 4 and 5."""
    if transfer == _PQ:
        root = levels ** (1 / 78.84375)
        ratio = np.maximum(root - 0.8359375, 0.0) / (18.8515625 - 18.6875 * root)
        return np.asarray(ratio ** (1 / 0.1593017578125) * (10_000 / _WHITE))
    if transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(levels <= 0.5, levels**2 / 3, (np.exp((levels - c) / a) + b) / 12)
    if transfer == _LINEAR:
        return levels
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _srgb_of(light: NDArray[Any]) -> NDArray[Any]:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
