"""What a browser shows of a file is what a model gets of it, for kinds that are easily taken wrongly."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import features

from imret.images.decode import load_image
from tests.browser.canvas import PIXELS_OF_URL
from tests.fakes.drawn_files import shown_alike

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"),
]

FILES = shown_alike() if features.check("avif") else {}


@pytest.fixture(scope="module")
def blank(chromium: Browser) -> Iterator[Page]:
    page = chromium.new_page()
    page.goto("about:blank")
    yield page
    page.close()


@pytest.mark.parametrize("kind", FILES)
def test_a_model_gets_what_a_browser_shows(kind: str, blank: Any) -> None:
    media_type, data, bound = FILES[kind]
    encoded = base64.b64encode(data).decode("ascii")
    width, height, pixels = blank.evaluate(PIXELS_OF_URL, f"data:image/{media_type};base64,{encoded}")
    shown = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)[..., :3]
    ours = np.asarray(load_image(data))
    assert ours.shape == shown.shape
    assert np.abs(ours.astype(int) - shown).mean() <= bound
