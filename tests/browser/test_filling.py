"""The page of `imret serve FOLDER`: how far the ingest is, and pictures that appear while somebody looks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from tests.browser.conftest import SIZES, Visit, Watch, both_sizes, imret_serve
from tests.fakes.pictures import draw_picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
expect = playwright.expect

pytestmark = pytest.mark.browser

RUNNING: dict[str, Any] = {
    "state": "running",
    "stage": "pictures",
    "collection": "photos",
    "folders": ["/photos"],
    "done": 120,
    "total": 812,
    "images_per_s": 14.2,
    "seconds_left": 49.0,
    "error": "",
    "counts": {},
    "not_taken": [],
    "left_out": "",
    "notes": [],
}


def test_pictures_appear_as_they_are_taken_in(
    chromium: Browser, watch: Watch, tmp_path: Path, random_model: Path
) -> None:
    photos = tmp_path / "photos"
    for seed in range(12):
        draw_picture(photos / "fungi" / f"{seed:02d}.png", seed=seed)
    (photos / "fungi" / "broken.jpg").write_bytes(b"no picture")
    large = photos / "zoo" / "large-00.png"
    large.parent.mkdir()
    Image.new("RGB", (4000, 3000), (200, 30, 30)).save(large)
    for number in range(1, 24):
        large.with_name(f"large-{number:02d}.png").write_bytes(large.read_bytes())
    watch.allow("404")  # until there is a collection
    with imret_serve(tmp_path / "db", tmp_path, str(photos), "--model", str(random_model)) as url:
        context = chromium.new_context(base_url=url, locale="en-GB", **SIZES["desktop"])
        page = context.new_page()
        watch.listen(page)
        page.goto("/")
        said = page.locator("#filling-text")
        expect(said).to_have_text(re.compile(r"^Adding pictures: \d+ of 37"))
        expect(page.locator("#filling-bar")).to_be_visible()
        expect(page.locator(".card[data-id]").first).to_be_visible()
        few = page.locator(".card[data-id]").count()
        assert 0 < few < 36
        expect(said).to_have_text("36 added; 1 picture could not be taken.", timeout=60_000)
        expect(page.locator(".card[data-id]")).to_have_count(36)
        expect(page.locator("#count")).to_have_text("36 pictures")
        expect(page.locator("#filling-bar")).to_be_hidden()
        page.get_by_text("What was left out, and why").click()
        expect(page.locator("#filling-more li").first).to_have_text(re.compile(r"broken\.jpg \S+"))
        page.get_by_role("button", name="Close").first.click()
        expect(page.locator("#filling")).to_be_hidden()
        context.close()


def tell(page: Any, *answers: dict[str, Any]) -> None:
    """Have the server say this of its ingest, one after the other, the last for good."""
    left = list(answers)

    def answer(route: Any) -> None:
        route.fulfill(json={**RUNNING, **(left.pop(0) if len(left) > 1 else left[0])})

    page.route("**/api/v1/ingest", answer)


@both_sizes
def test_it_says_how_far_it_is_and_how_long_it_takes(visit: Visit, size: str) -> None:
    page = visit(size=size, before=lambda page: tell(page, {}))
    expect(page.locator("#filling-text")).to_have_text(
        "Adding pictures: 120 of 812 \u00b7 14 a second \u00b7 49 s left"
    )
    assert page.locator("#filling-bar").evaluate("bar => bar.value") == pytest.approx(120 / 812)


def test_where_a_page_is_full_the_new_ones_are_shown_when_somebody_asks_for_them(visit: Visit) -> None:
    page = visit(before=lambda page: tell(page, {"done": 0}, {"done": 0}, {"done": 40}))
    expect(page.locator(".card[data-id]").first).to_be_visible()
    button = page.get_by_role("button", name="Show the new ones")
    expect(button).to_be_visible()
    with page.expect_request("**/api/v1/images?*"):
        button.click()
    expect(button).to_be_hidden()


def test_an_answer_is_asked_for_anew_once_there_are_more_pictures(visit: Visit) -> None:
    page = visit("/?q=owl", before=lambda page: tell(page, {"done": 0}, {"done": 40}, {"done": 80}))
    expect(page.locator(".card[data-id]").first).to_be_visible()
    page.locator("#home").click()
    expect(page.locator("#filling-text")).to_contain_text("80 of 812")
    with page.expect_request("**/api/v1/search?*"):
        page.go_back()


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ({"stage": "folders"}, "Looking for pictures\u2026"),
        ({"stage": "model"}, "Getting the model ready\u2026"),
        ({"stage": "index"}, "Building the index: searches may wait for it a moment\u2026"),
        ({"state": "failed", "error": "The disk is full."}, "Adding pictures has failed. The disk is full."),
        ({"state": "stopped"}, "Stopped at 120 pictures. Start imret serve again to go on."),
        (
            {"state": "done", "counts": {"added": 1, "updated": 2, "skipped": 0}},
            "1 added, 2 renewed.",
        ),
    ],
)
def test_each_state_is_said_in_a_sentence(visit: Visit, told: dict[str, Any], text: str) -> None:
    page = visit(before=lambda page: tell(page, told))
    expect(page.locator("#filling-text")).to_have_text(text)
    expect(page.locator("#filling-said")).to_have_text(text)


@pytest.mark.parametrize("told", [{"state": "none"}, {"state": "done", "counts": {"unchanged": 9}}])
def test_nothing_is_said_where_nothing_is_new(visit: Visit, told: dict[str, Any]) -> None:
    page = visit(before=lambda page: tell(page, told))
    expect(page.locator(".card[data-id]").first).to_be_visible()
    expect(page.locator("#filling")).to_be_hidden()


def test_before_the_first_picture_it_says_that_they_are_on_their_way(visit: Visit, watch: Watch) -> None:
    watch.allow("404")

    def nothing(page: Any) -> None:
        tell(page, {"done": 0})
        page.route(
            "**/api/v1/collections",
            lambda route: route.fulfill(json={"default": "photos", "collections": []}),
        )
        for pattern in ("**/api/v1/images?*", "**/api/v1/categories*"):
            page.route(pattern, lambda route: route.fulfill(status=404, json={"detail": "none"}))

    page = visit(before=nothing)
    expect(page.get_by_role("heading", name="No pictures yet: 0 of 812")).to_be_visible()
