"""Which values of a deep picture are shown as black and as white, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imret.images.decode import load_image
from imret.images.levels import Levels, used_levels


def ramp(low: float, high: float, kind: str, shape: tuple[int, int] = (40, 50)) -> NDArray[Any]:
    return np.linspace(low, high, shape[0] * shape[1]).reshape(shape).astype(kind)


@pytest.mark.parametrize(
    ("values", "bits", "black", "white"),
    [
        (ramp(0, 65535, "u2"), None, 0, 65535),
        (
            ramp(0, 8191, "u2"),
            None,
            3,
            8187,
        ),  # less than an eighth, and one in a thousand left out at each end
        (ramp(0, 8300, "u2"), None, 0, 65535),
        (ramp(100, 160, "u1"), None, 0, 255),
        (ramp(0, 4095, "u2"), 12, 0, 4095),
        (ramp(0, 127, "i1"), None, 0, 127),
        (ramp(0, 32767, "i2"), None, 0, 32767),
        (ramp(0, 255, "i4"), None, 0, 255),
        (ramp(0, 1000, "i4"), None, 0, 1000),
        (ramp(0, 65535, "u4"), None, 0, 65535),
        (ramp(0, 2**32 - 1, "u4"), None, 0, 2**32 - 1),
        (ramp(0, 1, "f4"), None, 0, 1),
        (ramp(0, 200, "f4"), None, 0, 255),
        (ramp(0, 60000, "f4"), None, 0, 65535),
        (ramp(0, 1e6, "f4"), None, 0, 1e6),
        (ramp(-1, 1, "f4"), None, -1, 1),
        (np.full((4, 4), 7, "u2"), None, 0, 65535),
        (np.full((4, 4), -3.0, "f4"), None, -3, 0),
        (np.full((4, 4), np.nan, "f4"), None, 0, 1),
    ],
)
def test_black_and_white_are_the_type_s_or_the_range_in_use(
    values: NDArray[Any], bits: int | None, black: float, white: float
) -> None:
    levels = used_levels(values, bits=bits)
    # A value in two thousand is left out at each end, where there are so many.
    slack = (white - black) / 1000 + (1 if values.dtype.kind != "f" else 0) if levels.note else 0
    assert levels.black == pytest.approx(black, abs=slack)
    assert levels.white == pytest.approx(white, abs=slack)
    assert levels.to_bytes(values).dtype == np.uint8


@pytest.mark.parametrize("kind", ["<u2", ">u2", "i2", "u4", "f4", "f8"])
def test_values_become_bytes_by_a_straight_line_that_is_cut_at_both_ends(kind: str) -> None:
    values = np.array([[0, 99, 100, 201, 300, 301, 30000]], dtype=kind)
    assert Levels(100, 300).to_bytes(values).tolist() == [[0, 0, 0, 129, 255, 255, 255]]


def test_of_a_large_picture_the_range_is_found_by_chance_but_always_the_same() -> None:
    values = np.full((1500, 2000), 20000, "u2")
    values[:, 1::2] = 21000  # stripes: each second column would miss them
    values[700, 700] = 0
    levels = used_levels(values)
    assert (levels.black, levels.white) == (20000, 21000)
    assert used_levels(values) == levels
    shown = levels.to_bytes(values)
    assert shown[0, :4].tolist() == [0, 255, 0, 255]
    assert shown[700, 700] == 0


@pytest.mark.parametrize(("mode", "kind"), [("I;16", "<u2"), ("I;16B", ">u2"), ("I", "<i4"), ("F", "<f4")])
def test_a_narrow_picture_of_pillow_s_is_stretched_with_a_note(mode: str, kind: str) -> None:
    values = ramp(1000, 1100, kind, (1, 101))
    notes: list[str] = []
    image = load_image(Image.frombytes(mode, (101, 1), values.tobytes()), on_note=notes.append)
    assert notes == ["its values are from 1000 to 1100, shown stretched from black to white"]
    np.testing.assert_allclose(np.asarray(image)[0, :, 0], np.linspace(0, 255, 101), atol=2)
