"""A name is taught on the page, searched, turned off; by mouse and by keys."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import imret
from tests.browser.conftest import Visit, Watch, both_sizes
from tests.browser.test_page import ask, card, parameters, search, wait_for_results

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
expect = playwright.expect

pytestmark = pytest.mark.browser


@pytest.fixture(autouse=True)
def _nothing_stays_taught(server: str) -> Iterator[None]:
    yield
    for concept in ask(server, "/concepts")["concepts"]:
        address = f"{server}/api/v1/concepts?name={quote(concept['name'])}"
        urllib.request.urlopen(urllib.request.Request(address, method="DELETE")).close()


def texts(server: str, words: str, **parameters: Any) -> list[str]:
    return [hit["id"] for hit in ask(server, "/search", q=words, limit=60, **parameters)["hits"]]


def shown(page: Any) -> list[str]:
    ids: list[str] = page.locator(".card[data-id]").evaluate_all("cards => cards.map((it) => it.dataset.id)")
    return ids[:60]


@both_sizes
def test_a_name_is_taught_from_chosen_pictures_and_then_found(visit: Visit, server: str, size: str) -> None:
    page = visit(size=size)
    wait_for_results(page)
    first = card(page, 0).get_attribute("data-id")
    page.get_by_role("button", name="Teach a name").click()
    expect(page.locator("#teaching-count")).to_have_text("Choose pictures of one thing")
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
    card(page, 0).locator("a").click()
    card(page, 1).locator("a").click()
    expect(page.locator("#teaching-count")).to_have_text("2 pictures chosen")
    card(page, 1).locator("a").click()
    expect(page.locator("#teaching-count")).to_have_text("1 picture chosen")
    expect(page.locator("#lightbox")).to_be_hidden()
    assert card(page, 0).locator("a").get_attribute("aria-checked") == "true"
    # The choice is seen, and nothing is wider than the page.
    marked = "card => getComputedStyle(card.querySelector('a'), '::before').backgroundColor"
    assert card(page, 0).evaluate(marked) != card(page, 1).evaluate(marked)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    panel = page.locator("#teaching").bounding_box()
    assert panel is not None
    assert panel["y"] + panel["height"] <= page.viewport_size["height"] + 1

    page.get_by_label("What they show").fill("rex")
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.locator("#learnt")).to_contain_text("\u201crex\u201d as learnt from 1 picture")
    expect(page.locator("#toast")).to_contain_text("\u201crex\u201d was learnt from 1 picture.")
    expect(page.locator("#teaching")).to_be_hidden()
    wait_for_results(page)
    assert parameters(page) == {"q": ["rex"]}
    assert shown(page) == texts(server, "rex")
    (concept,) = ask(server, "/concepts")["concepts"]
    assert (concept["name"], concept["images"]) == ("rex", 1)
    assert first in shown(page)

    page.get_by_role("button", name="Ask the words alone").click()
    wait_for_results(page)
    expect(page.locator("#learnt")).to_contain_text("The words alone are asked")
    assert parameters(page) == {"q": ["rex"], "concepts": ["false"]}
    assert shown(page) == texts(server, "rex", concepts="false") != texts(server, "rex")
    page.get_by_role("button", name="Use what was learnt").click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["rex"]}
    page.evaluate("history.back()")
    expect(page.locator("#learnt")).to_contain_text("The words alone are asked")
    search(page, "a wing")
    expect(page.locator("#learnt")).to_contain_text("The words alone are asked")


def test_pictures_are_chosen_and_a_name_is_taught_with_keys_alone(visit: Visit, server: str) -> None:
    page = visit()
    wait_for_results(page)
    page.locator("#teach").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#teaching")).to_be_visible()
    expect(card(page, 0).locator("a")).to_be_focused()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#teaching-count")).to_have_text("2 pictures chosen")
    page.keyboard.press("Escape")
    expect(page.locator("#teaching")).to_be_hidden()
    expect(page.locator("#teach")).to_be_focused()
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator("#teaching-count")).to_have_text("Choose pictures of one thing")
    expect(card(page, 1).locator("a")).to_be_focused()
    page.keyboard.press("Space")
    page.locator("#teaching-name").focus()
    page.keyboard.type("16:9")
    page.keyboard.press("Enter")
    expect(page.locator("#learnt")).to_contain_text("\u201c16:9\u201d")
    assert parameters(page) == {"q": ["text:16:9"]}


def test_what_is_wrong_with_a_name_is_said_beside_it(visit: Visit, server: str, watch: Watch) -> None:
    watch.allow("status of 400")
    page = visit("/?collection=second")
    wait_for_results(page)
    page.get_by_role("button", name="Teach a name").click()
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.get_by_role("alert")).to_have_text("Say what the pictures show.")
    page.get_by_label("What they show").fill("<b>rex</b>")
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Choose some pictures first")
    for at in range(3):
        card(page, at).locator("a").click()
    page.get_by_role("button", name="Teach", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("'<b>rex</b>' is the only thing there are pictures of")
    expect(page.get_by_label("What they show")).to_have_value("<b>rex</b>")  # to be mended


@both_sizes
def test_concepts_that_cannot_be_used_are_told_on_the_page(
    visit: Visit, drawn_store: Path, size: str
) -> None:
    with imret.open_store(drawn_store) as store:
        store.change_document("photos", "concepts", lambda _: b"no concepts")
        try:
            page = visit("/?q=rex", size=size)
            expect(page.locator("#notes")).to_contain_text("Went without the concepts of collection 'photos'")
            assert page.evaluate(
                "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
            )
        finally:
            store.remove_document("photos", "concepts")
    search(page, "a wing")
    expect(page.locator("#notes")).to_be_hidden()
