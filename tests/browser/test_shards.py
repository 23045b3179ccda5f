"""Pictures of shards on the page: of a folder, and of a bucket below a root that the command names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import Visit, Watch, imret_serve
from tests.fakes.object_store import served_bucket
from tests.fakes.pictures import draw_picture
from tests.fakes.shards import write_tar

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
expect = playwright.expect

pytestmark = pytest.mark.browser

PICTURES = 6


@pytest.fixture(params=["folder", "bucket"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of `imret serve` over a shard that it ingests itself."""
    members = {
        f"aves/{i}.png": draw_picture(tmp_path / "drawn" / f"{i}.png", seed=i, size=(64, 48)).read_bytes()
        for i in range(PICTURES)
    }
    shard = write_tar(tmp_path / "shards" / "0.tar", members)
    options = (str(tmp_path / "db"), str(tmp_path / "shards"), "--model", str(random_model))
    if request.param == "folder":
        with imret_serve(Path(options[0]), tmp_path, *options[1:]) as url:
            yield url
        return
    with served_bucket(monkeypatch) as bucket:
        bucket.put("shards/0.tar", shard.read_bytes())
        root = f"s3://{bucket.name}/shards"
        with imret_serve(Path(options[0]), tmp_path, root, *options[2:]) as url:
            yield url


def test_pictures_of_a_shard_show_and_open(served: str, visit: Visit, watch: Watch) -> None:
    watch.allow("404")  # until there is a collection
    page = visit(f"{served}/")
    cards = page.locator(".card[data-id]")
    expect(cards).to_have_count(PICTURES, timeout=60_000)
    for at in range(PICTURES):
        picture = cards.nth(at).locator("img")
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") == 64
    cards.first.click()
    expect(page.locator("#lightbox")).not_to_have_attribute("data-loading", "")
    assert page.locator("#box-picture").evaluate("image => image.naturalWidth") == 64
    expect(page.locator("#box-fields")).to_contain_text("0.tar")
