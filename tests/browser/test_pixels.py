"""What a browser shows of a file is what a model gets of it, for kinds that are easily taken wrongly."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import features

from imret.images.decode import load_image
from tests.fakes.drawn_files import shown_alike

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF"),
]

FILES = shown_alike() if features.check("avif") else {}

PIXELS = """
async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  let text = "";
  for (let at = 0; at < data.length; at += 8192) {
    text += String.fromCharCode(...data.subarray(at, at + 8192));
  }
  return [canvas.width, canvas.height, btoa(text)];
}
"""


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
    width, height, pixels = blank.evaluate(PIXELS, f"data:image/{media_type};base64,{encoded}")
    shown = np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(height, width, 4)[..., :3]
    ours = np.asarray(load_image(data))
    assert ours.shape == shown.shape
    assert np.abs(ours.astype(int) - shown).mean() <= bound
