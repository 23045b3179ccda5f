"""The search page as somebody uses it: every control, its address, and what the server is asked."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from tests.browser.conftest import HOSTILE_CATEGORY, HOSTILE_NAME, Visit, Watch, both_sizes

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
expect = playwright.expect

pytestmark = pytest.mark.browser

ALL = 155  # pictures that the fixture draws and copies


def ask(server: str, path: str, **parameters: Any) -> Any:
    """Return what the API answers: the oracle for what the page shows."""
    query = urlencode(parameters, doseq=True)
    with urllib.request.urlopen(f"{server}/api/v1{path}?{query}") as response:
        return json.load(response)


def parameters(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def ids(page: Any) -> list[str]:
    ids: list[str] = page.locator(".card").evaluate_all("cards => cards.map((card) => card.dataset.id)")
    return ids


def card(page: Any, at: int) -> Any:
    return page.locator(".card[data-id]").nth(at)


def chips(page: Any) -> list[str]:
    """Return the terms as chips show them, each with its sign."""
    chips: list[str] = page.locator("#term-list .chip").evaluate_all(
        """chips => chips.map((chip) =>
            (chip.matches(".minus") ? "-" : "+") + chip.querySelector(".label").textContent)"""
    )
    return chips


def wait_for_results(page: Any) -> None:
    expect(page.locator("#pictures")).not_to_have_attribute("aria-busy", "true")
    expect(page.locator("#progress")).to_be_hidden()


def wait_until(page: Any, expression: str) -> None:
    # Playwright's own wait_for_function evaluates text in the page, which the policy forbids.
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never so: {expression}")


def search(page: Any, words: str, key: str = "Enter") -> None:
    page.locator("#words").fill(words)
    page.locator("#words").press(key)
    wait_for_results(page)


# ---- Opening --------------------------------------------------------------------------------------------


@both_sizes
def test_the_page_opens_on_the_collection(visit: Visit, server: str, size: str) -> None:
    page = visit(size=size)
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")
    assert ids(page) == [entry["id"] for entry in ask(server, "/images", limit=60)["pictures"]]
    counts = page.locator(".category-chip .count").all_text_contents()
    categories = ask(server, "/categories")["categories"]
    assert counts == [str(entry["images"]) for entry in categories]
    assert page.locator(".category-chip .label").all_text_contents() == [
        entry["category"] for entry in categories
    ]
    expect(page.locator("#options")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@both_sizes
def test_pictures_have_their_boxes_before_they_come(visit: Visit, size: str) -> None:
    held: list[Any] = []
    page = visit(
        size=size,
        before=lambda page: page.route("**/api/v1/thumbnails/**", lambda route: held.append(route)),
    )
    wait_for_results(page)
    boxes = "cards => cards.map((card) => JSON.stringify(card.getBoundingClientRect()))"
    before = page.locator(".card").evaluate_all(boxes)
    # Below the fold nothing is asked for.
    assert 0 < len(held) < 60
    page.evaluate("document.documentElement.style.overflow = 'hidden'")
    for route in held:
        route.continue_()
    expect(page.locator("img.loaded")).to_have_count(len(held))
    assert page.locator(".card").evaluate_all(boxes) == before
    assert page.evaluate("window.shifted") == []


@both_sizes
def test_rows_are_as_wide_as_the_page_and_keep_proportions(visit: Visit, size: str) -> None:
    page = visit(size=size)
    expect(card(page, 0)).to_be_visible()  # boxes stand for pictures first, and have ratios of their own
    wait_for_results(page)
    width = page.evaluate("Math.floor(document.querySelector('#pictures').getBoundingClientRect().width)")
    rows: dict[float, list[dict[str, float]]] = {}
    for box in page.locator(".card[data-id]").evaluate_all(
        """cards => cards.map((card) => {
            const frame = card.querySelector(".frame").getBoundingClientRect();
            return {top: card.offsetTop, left: frame.left, right: frame.right,
                    ratio: frame.width / frame.height};
        })"""
    ):
        rows.setdefault(box["top"], []).append(box)
    assert len(rows) > 5
    for row in rows.values():
        assert row[-1]["right"] - row[0]["left"] == pytest.approx(width, abs=0.01)
    drawn = {64 / 48, 48 / 64, 100 / 40, 1.0, 60 / 80}
    for row in rows.values():
        for box in row:
            assert min(abs(box["ratio"] - ratio) / ratio for ratio in drawn) < 0.03


def test_the_last_row_is_not_blown_up(visit: Visit) -> None:
    page = visit("/?collection=second")
    wait_for_results(page)
    heights = page.locator(".frame").evaluate_all("frames => frames.map((frame) => frame.offsetHeight)")
    assert heights == [216, 216, 216]


# ---- Asking in words ------------------------------------------------------------------------------------


@both_sizes
def test_words_find_what_the_api_finds(visit: Visit, server: str, size: str) -> None:
    page = visit(size=size)
    search(page, "a red square")
    answer = ask(server, "/search", q="a red square", limit=60, counts="true")
    assert parameters(page) == {"q": ["a red square"]}
    assert ids(page) == [hit["id"] for hit in answer["hits"]]
    first = answer["hits"][0]
    expect(card(page, 0).locator(".score")).to_have_text(f"{first['score']:.3f}")
    expect(card(page, 0).locator(".category")).to_have_text(first["category"])
    expect(card(page, 0).locator(".name")).to_have_text(Path(first["path"]).name)
    assert card(page, 0).locator(".caption").get_attribute("title") == first["path"]
    expect(page).to_have_title("\u201ca red square\u201d \u2013 imret")
    # The counts of this query, most hits first, and words alone need no chip.
    hits = sorted((entry["hits"] for entry in answer["counts"]["categories"]), reverse=True)
    assert page.locator(".category-chip .count").all_text_contents() == [str(number) for number in hits]
    expect(page.locator("#terms")).to_be_hidden()


def test_slash_goes_to_the_box_and_escape_leaves_it(visit: Visit) -> None:
    page = visit("/?q=red")
    wait_for_results(page)
    page.keyboard.press("/")
    expect(page.locator("#words")).to_be_focused()
    assert page.evaluate("getSelection().toString()") == "red"
    page.keyboard.type("blue")
    page.keyboard.press("Escape")
    expect(page.locator("#words")).to_have_value("red")
    expect(card(page, 0).locator("a")).to_be_focused()
    # In the box, "/" and "?" are letters.
    page.locator("#words").press("?")
    expect(page.locator("#keys")).to_be_hidden()


@both_sizes
def test_the_signs_in_the_box_add_and_subtract_words(visit: Visit, server: str, size: str) -> None:
    page = visit("/?q=red", size=size)
    wait_for_results(page)
    expect(page.locator("#add-words")).to_be_hidden()
    page.locator("#words").fill("2:round")
    page.locator("#add-words").click()
    wait_for_results(page)
    page.locator("#words").fill("green")
    page.locator("#subtract-words").click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", "2:round"], "not": ["green"]}
    assert chips(page) == ["+red", "+round", "-green"]
    expect(page.locator("#term-list .weight")).to_have_text(["\u00d71", "\u00d72", "\u00d71"])
    expect(page.locator("#words")).to_have_value("red")
    answer = ask(server, "/search", q=["red", "2:round"], **{"not": "green"}, limit=60)
    assert ids(page) == [hit["id"] for hit in answer["hits"]]


QUERIES = [
    ("q=red", "blue", ["+blue"]),
    ("q=red", "- blue", ["+red", "-blue"]),
    ("q=red", "\u2212 blue", ["+red", "-blue"]),
    ("q=red", "+ blue - dark", ["+red", "+blue", "-dark"]),
    ("q=red&not=green", "blue", ["+blue", "-green"]),
    ("q=red&not=green", "blue + round - dark", ["+blue", "+round", "-dark"]),
    ("q=red&not=green", "green", ["+green"]),
    ("q=red&q=round", "", ["+round"]),
    ("q=red", "  ", []),
    ("q=red", "black-and-white c++", ["+black-and-white c++"]),
    ("q=red", "2:red", ["+2:red"]),
    ("q=upload:0a&q=red", "blue", ["+blue", "+upload:0a"]),
    ("q=upload:0a&q=red", "blue + dark", ["+upload:0a", "+blue", "+dark"]),
    ("q=red", "https://example.org/pool.jpg", ["+red", "+https://example.org/pool.jpg"]),
    ("not=green", "red", ["+red", "-green"]),
]


def test_enter_asks_for_other_main_words_and_keeps_the_rest(visit: Visit) -> None:
    page = visit()
    for before, typed, after in QUERIES:
        terms = page.evaluate(
            """async ([before, typed]) => {
                const { readState } = await import("/static/state.js");
                const { asked } = await import("/static/query.js");
                const terms = asked(readState(`?${before}`).terms, typed);
                return terms.map(({ typed, minus }) => (minus ? "-" : "+") + typed);
            }""",
            [before, typed],
        )
        assert terms == after, (before, typed)


def test_terms_mean_what_they_mean_on_the_command_line(visit: Visit) -> None:
    from imret.retrieval.query import parse_term

    page = visit()
    id = "6e0a4d0e-6c1f-5d5c-9c53-0c7d3f4b8a11"
    words = ["red mushroom", "text:16:9", "text:https://example.org", "a:b", "id est"]
    weighted = ["2:fruit", "0.5:fruit", "1e-3:fruit", ".5:fruit", "2:text:2:3", f"2:id:{id}"]
    others = [id, f"id:{id}", "stored:aves/1 2.jpg", "https://example.org/a.jpg"]
    for typed in words + weighted + others:
        said = page.evaluate("async (typed) => (await import('/static/query.js')).parseTerm(typed)", typed)
        term = parse_term(typed)
        assert said == {"kind": term.kind, "value": term.value, "weight": term.weight}, typed


def test_keys_add_and_subtract_words(visit: Visit) -> None:
    page = visit("/?q=red")
    wait_for_results(page)
    search(page, "blue", "Shift+Enter")
    assert chips(page) == ["+red", "+blue"]
    search(page, "dark", "Alt+Enter")
    assert chips(page) == ["+red", "+blue", "-dark"]
    search(page, "green")
    assert chips(page) == ["+green", "+blue", "-dark"]


def test_words_keep_the_pictures_beside_them(visit: Visit, server: str) -> None:
    id = ask(server, "/images", limit=1)["pictures"][0]["id"]
    page = visit(f"/?q=id:{id}")
    wait_for_results(page)
    search(page, "red")
    assert parameters(page)["q"] == ["red", f"id:{id}"]
    search(page, "red + blue")
    assert parameters(page)["q"] == [f"id:{id}", "red", "blue"]


def test_chips_change_their_sign_and_go(visit: Visit) -> None:
    page = visit("/?q=red&q=round&not=green", size="phone")
    wait_for_results(page)
    page.get_by_role("button", name="Subtracted: green. Add it instead").click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", "round", "green"]}
    # The focus stays on the sign, which now does the opposite.
    expect(page.get_by_role("button", name="Added: green. Subtract it instead")).to_be_focused()
    page.get_by_role("button", name="Remove: round").click()
    wait_for_results(page)
    assert chips(page) == ["+red", "+green"]
    page.get_by_role("button", name="Added: green. Subtract it instead").click()
    wait_for_results(page)
    page.get_by_role("button", name="Remove: red").click()
    expect(page.get_by_role("heading", name="What are you looking for?")).to_be_visible()
    page.get_by_role("button", name="Say what to look for").click()
    expect(page.locator("#words")).to_be_focused()


def test_all_terms_go_at_once(visit: Visit) -> None:
    page = visit("/?q=red&q=round&not=green")
    wait_for_results(page)
    page.get_by_role("button", name="Clear", exact=True).click()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")
    assert parameters(page) == {}


def test_clearing_the_box_takes_the_words_back(visit: Visit) -> None:
    page = visit("/?q=red")
    wait_for_results(page)
    page.get_by_role("button", name="Clear the words").click()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")
    expect(page.locator("#words")).to_be_focused()


# ---- More and less like this ----------------------------------------------------------------------------


def test_more_and_less_appear_where_the_mouse_or_the_focus_is(visit: Visit) -> None:
    page = visit("/?q=red")
    wait_for_results(page)
    weigh = card(page, 3).locator(".weigh")
    expect(weigh).to_have_css("opacity", "0")
    card(page, 3).hover()
    expect(weigh).to_have_css("opacity", "1")
    page.mouse.move(5, 5)
    expect(weigh).to_have_css("opacity", "0")
    card(page, 3).locator("a").focus()
    expect(weigh).to_have_css("opacity", "1")
    page.keyboard.press("Tab")
    expect(card(page, 3).locator(".more")).to_be_focused()
    page.keyboard.press("Tab")
    expect(card(page, 3).locator(".less")).to_be_focused()


@both_sizes
def test_results_weigh_in(visit: Visit, server: str, size: str) -> None:
    page = visit("/?q=red", size=size)
    wait_for_results(page)
    liked, disliked = ids(page)[2], ids(page)[5]
    if size == "phone":
        expect(card(page, 2).locator(".weigh")).to_have_css("opacity", "1")
    else:
        card(page, 2).hover()
    card(page, 2).locator(".more").click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", f"id:{liked}"]}
    position = ids(page).index(disliked)
    card(page, position).hover()
    card(page, position).locator(".less").click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", f"id:{liked}"], "not": [f"id:{disliked}"]}
    answer = ask(server, "/search", q=["red", f"id:{liked}"], **{"not": f"id:{disliked}"}, limit=60)
    assert ids(page) == [hit["id"] for hit in answer["hits"]]
    labels = [term["label"] for term in answer["terms"]]
    assert [chip[1:] for chip in chips(page)] == labels
    # Pictures show what they are.
    expect(page.locator("#term-list img.preview")).to_have_count(2)


def test_the_same_once_more_takes_a_picture_back(visit: Visit, server: str) -> None:
    id = ask(server, "/search", q="red", limit=1)["hits"][0]["id"]
    page = visit(f"/?q=red&q=2:id:{id}&include_self=true")
    wait_for_results(page)
    button = page.locator(f'.card[data-id="{id}"] .more')
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red"], "include_self": ["true"]}


def test_nothing_can_be_subtracted_from_nothing(visit: Visit) -> None:
    page = visit()
    wait_for_results(page)
    expect(card(page, 0).locator(".less")).to_be_hidden()
    card(page, 0).locator("a").press("-")
    expect(page.locator("#toast")).to_have_text(
        "First search for something. Then you can subtract pictures from it."
    )
    assert parameters(page) == {}


# ---- Narrowing, cutting, sorting ------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "words"), [("phone", ""), ("desktop", "red")])
def test_a_category_narrows_then_is_left_out_then_comes_as_it_is(visit: Visit, size: str, words: str) -> None:
    page = visit(f"/?q={words}", size=size)
    wait_for_results(page)
    chip = page.locator('.category-chip[data-category="aves"]')
    counts = page.locator(".category-chip .count").all_text_contents()
    chip.click()
    wait_for_results(page)
    expect(chip).to_have_attribute("data-how", "only")
    assert parameters(page)["category"] == ["aves"]
    assert set(page.locator(".card .category").all_text_contents()) == {"aves"}
    assert "Only these." in (chip.get_attribute("aria-label") or "")
    chip.click()
    wait_for_results(page)
    expect(chip).to_have_attribute("data-how", "not")
    assert parameters(page)["not_category"] == ["aves"]
    assert "category" not in parameters(page)
    assert "aves" not in page.locator(".card .category").all_text_contents()
    # What is narrowed to changes neither the chips' order nor their counts.
    assert page.locator(".category-chip .count").all_text_contents() == counts
    chip.click()
    wait_for_results(page)
    assert "not_category" not in parameters(page)
    expect(chip).to_be_focused()


def test_what_an_address_leaves_out_is_seen_first(visit: Visit) -> None:
    page = visit("/?q=red&not_category=twins", size="phone")
    wait_for_results(page)
    first = page.locator(".category-chip").first
    expect(first.locator(".label")).to_have_text("twins")
    first.click()
    wait_for_results(page)
    # It stays below the finger.
    expect(first).to_have_attribute("data-how", "any")
    expect(first.locator(".label")).to_have_text("twins")


def test_keys_narrow_and_leave_out(visit: Visit) -> None:
    page = visit()
    wait_for_results(page)
    chip = page.locator('.category-chip[data-category="fungi"]')
    chip.press("-")
    expect(page.locator("#count")).to_have_text(re.compile(r"^74 pictures$"))
    chip.press("+")
    expect(page.locator("#count")).to_have_text(re.compile(r"^81 pictures$"))
    chip.press("Delete")
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")


def test_many_categories_are_folded_and_can_be_searched(visit: Visit) -> None:
    names = [f"category {number:03d}" for number in range(300)]
    listing = [{"category": name, "images": 300 - at} for at, name in enumerate(names)]
    page = visit(
        before=lambda page: page.route(
            "**/api/v1/categories*",
            lambda route: route.fulfill(json={"collection": "photos", "images": 1, "categories": listing}),
        )
    )
    expect(page.locator(".category-chip")).to_have_count(24)
    page.get_by_role("button", name="All 300 categories").click()
    expect(page.locator(".category-chip")).to_have_count(300)
    page.get_by_label("Find a category").fill("299")
    expect(page.locator(".category-chip:visible")).to_have_text([re.compile("category 299")])
    page.get_by_role("button", name="Fewer").click()
    expect(page.locator(".category-chip:visible")).to_have_count(24)


def test_the_cut_says_where_nothing_is_about_it(visit: Visit) -> None:
    # Whether a random model thinks so is chance; so the answer is made empty.
    def empty(route: Any) -> None:
        if "relevant=true" not in route.request.url:
            route.continue_()
            return
        said = route.fetch().json() | {"hits": [], "more": False}
        said["counts"] |= {"hits": 0, "uncategorised": 0, "categories": []}
        route.fulfill(json=said)

    page = visit(
        "/?q=a+sports+car", size="phone", before=lambda page: page.route("**/api/v1/search?*", empty)
    )
    wait_for_results(page)
    shown = ids(page)
    page.locator("#relevant").check()
    expect(page.get_by_role("heading", name="No good matches for \u201ca sports car\u201d")).to_be_visible()
    assert parameters(page) == {"q": ["a sports car"], "relevant": ["true"]}
    expect(page.locator("#count")).to_have_text("Nothing found")
    assert ids(page) == []
    page.get_by_role("button", name="Show the nearest pictures").click()
    wait_for_results(page)
    assert ids(page) == shown
    expect(page.locator("#relevant")).not_to_be_checked()


def test_the_cut_is_asked_of_the_server(visit: Visit, server: str) -> None:
    page = visit("/?q=red&relevant=true")
    wait_for_results(page)
    expect(page.locator("#relevant")).to_be_checked()
    answer = ask(server, "/search", q="red", relevant="true", limit=60)
    assert ids(page) == [hit["id"] for hit in answer["hits"]]


@pytest.mark.parametrize(("sort", "label"), [("date", "Newest first"), ("path", "By path")])
def test_the_best_are_sorted_otherwise(visit: Visit, server: str, sort: str, label: str) -> None:
    page = visit("/?q=red")
    wait_for_results(page)
    page.locator("#sort").select_option(label)
    wait_for_results(page)
    assert parameters(page) == {"q": ["red"], "sort": [sort]}
    hits = ask(server, "/search", q="red", limit=200)["hits"]
    if sort == "date":
        hits.sort(key=lambda hit: hit["payload"]["modified"], reverse=True)
        assert [hit["id"] for hit in hits] == ids(page)
    else:
        paths = page.locator(".caption").evaluate_all("captions => captions.map((caption) => caption.title)")
        assert paths == sorted(paths)
        assert len(paths) == ALL
    order = ", newest first" if sort == "date" else ", by path"
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures{order}")


def test_a_sort_says_that_it_is_of_the_best_only(visit: Visit) -> None:
    def more(route: Any) -> None:
        said = route.fetch().json() | {"more": True}
        said["counts"]["hits"] = 5_000
        route.fulfill(json=said)

    page = visit("/?q=red&sort=date", before=lambda page: page.route("**/api/v1/search?*", more))
    expect(page.locator("#count")).to_have_text(f"The best {ALL} of 5,000 pictures, newest first")
    expect(page.locator("#end-text")).to_have_text(
        "Only the best 200 are sorted. Sort by best first to see more."
    )
    expect(page.locator("#more")).to_be_hidden()


def test_duplicates_are_hidden(visit: Visit, server: str) -> None:
    page = visit("/?q=red&category=twins")
    expect(page.locator(".card")).to_have_count(3)
    page.locator("#unique").check()
    expect(page.locator(".card")).to_have_count(1)
    hits = ask(server, "/search", q="red", category="twins", unique="true")["hits"]
    assert ids(page) == [hit["id"] for hit in hits]
    expect(page.locator(".card .folded")).to_have_text("+2")
    assert "and 2 hidden duplicates" in (card(page, 0).locator("a").get_attribute("aria-label") or "")
    card(page, 0).locator("a").click()
    expect(page.locator("#box-summary")).to_contain_text("2 duplicates hidden")


@both_sizes
def test_what_a_search_left_undone_is_told_below_its_pictures(visit: Visit, size: str) -> None:
    # The folding of a collection of this size leaves nothing undone, so the notes are added on the way.
    notes = [
        "Duplicates are looked for among the first 1,000 hits.",
        "Of <img src=x> nothing was read.",
    ]

    def noted(route: Any) -> None:
        asked = parse_qs(urlsplit(route.request.url).query)
        route.fulfill(json=route.fetch().json() | {"notes": notes if asked.get("category") else []})

    page = visit(
        "/?q=red&unique=true&category=fungi",
        size=size,
        before=lambda page: page.route("**/api/v1/search?*", noted),
    )
    wait_for_results(page)
    told = page.locator("#end-text")
    expect(page.locator("#more")).to_be_visible()  # it is told though there are more, and when all are there
    expect(told).to_have_text(" ".join(notes))
    page.locator("#more").click()
    expect(page.locator("#more")).to_be_hidden()
    expect(told).to_be_visible()
    expect(told).to_have_text(" ".join(notes))
    page.locator('.category-chip[data-category="fungi"]').evaluate("chip => chip.click()")
    wait_for_results(page)
    expect(told).not_to_contain_text("Duplicates")


def test_a_condition_of_the_address_is_a_chip(visit: Visit) -> None:
    page = visit("/?where=width>=100")
    expect(page.locator("#count")).to_have_text("30 pictures")
    page.get_by_role("button", name="Remove: width>=100").click()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")


def test_another_collection_is_chosen(visit: Visit) -> None:
    page = visit("/?category=aves&q=red", size="phone")
    wait_for_results(page)
    page.locator("#collection").select_option("second")
    wait_for_results(page)
    # Words mean the same there; categories do not.
    assert parameters(page) == {"q": ["red"], "collection": ["second"]}
    expect(page.locator(".card")).to_have_count(3)
    expect(page.locator("#category-section")).to_be_hidden()
    page.locator("#home").click()
    expect(page.locator("#count")).to_have_text("3 pictures")
    page.locator("#collection").select_option("photos")
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")
    assert parameters(page) == {}


# ---- More pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "path"), [("desktop", "/"), ("phone", "/?q=red")])
def test_more_come_near_the_end_and_nothing_moves(visit: Visit, server: str, size: str, path: str) -> None:
    page = visit(path, size=size)
    wait_for_results(page)
    boxes = "cards => cards.slice(0, 60).map((card) => [card.offsetLeft, card.offsetTop, card.offsetWidth])"
    before = page.locator(".card").evaluate_all(boxes)
    for expected in (120, ALL):
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        expect(page.locator(".card")).to_have_count(expected)
    assert page.locator(".card").evaluate_all(boxes) == before
    assert page.evaluate("window.shifted") == []
    assert len(set(ids(page))) == ALL
    if path != "/":
        assert ids(page) == [hit["id"] for hit in ask(server, "/search", q="red", limit=200)["hits"]]
    expect(page.locator("#end")).to_be_hidden()


def test_a_page_that_failed_is_loaded_by_the_button(visit: Visit, watch: Watch) -> None:
    watch.allow("net::ERR_FAILED")
    page = visit(before=lambda page: page.route("**/images?*after=*", lambda route: route.abort()))
    wait_for_results(page)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#end-text")).to_have_text("The server does not answer.")
    page.unroute("**/images?*after=*")
    page.get_by_role("button", name="Try again").press("Enter")
    # The focus goes on with the first of the new.
    expect(card(page, 60).locator("a")).to_be_focused()


# ---- The history ----------------------------------------------------------------------------------------


def test_back_and_forward_show_what_was_there(visit: Visit) -> None:
    page = visit()
    wait_for_results(page)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".card")).to_have_count(120)
    place = page.evaluate("window.scrollTo(0, 1500), window.scrollY")
    page.locator('.category-chip[data-category="aves"]').evaluate("chip => chip.click()")
    expect(page.locator("#count")).to_have_text("50 pictures")
    assert page.evaluate("window.scrollY") == 0
    search(page, "red")
    reds = ids(page)
    page.go_back()
    expect(page.locator("#count")).to_have_text("50 pictures")
    expect(page.locator("#words")).to_have_value("")
    page.go_back()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")
    expect(page.locator(".card")).to_have_count(120)
    assert page.evaluate("window.scrollY") == place
    page.go_forward()
    page.go_forward()
    expect(page.locator("#words")).to_have_value("red")
    assert ids(page) == reds


def test_a_reload_shows_the_same_at_the_same_place(visit: Visit) -> None:
    page = visit("/?q=red&not=blue&category=fungi&unique=true", size="desktop")
    wait_for_results(page)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".card")).not_to_have_count(60)
    wait_for_results(page)
    before = ids(page), chips(page), page.evaluate("window.scrollTo(0, 900), window.scrollY")
    wait_until(page, "history.state.scroll === window.scrollY")
    page.reload()
    wait_for_results(page)
    expect(page.locator(".card")).to_have_count(len(before[0]))
    assert (ids(page), chips(page), page.evaluate("window.scrollY")) == before


def test_a_shared_address_shows_the_same_to_another(visit: Visit) -> None:
    mine = visit("/?q=red&not_category=aves&sort=date")
    wait_for_results(mine)
    theirs = visit(mine.url.partition("/?")[1] + mine.url.partition("/?")[2])
    wait_for_results(theirs)
    assert ids(theirs) == ids(mine)


# ---- One picture ----------------------------------------------------------------------------------------


@both_sizes
def test_the_lightbox_shows_all_that_is_stored(visit: Visit, server: str, size: str) -> None:
    page = visit("/?q=red", size=size, timezone_id="Europe/Berlin")
    wait_for_results(page)
    hit = ask(server, "/search", q="red", limit=60)["hits"][1]
    card(page, 1).locator("a").click()
    box = page.get_by_role("dialog", name=Path(hit["path"]).name)
    expect(box).to_be_visible()
    assert parameters(page)["picture"] == [hit["id"]]
    expect(page.locator("#box-summary")).to_contain_text(hit["category"])
    expect(page.locator("#box-summary")).to_contain_text(f"score {hit['score']:.3f}")
    fields = dict(
        page.locator("#box-fields > div").evaluate_all(
            "rows => rows.map((row) => [...row.children].map((part) => part.textContent))"
        )
    )
    payload = hit["payload"]
    assert fields["Path"] == payload["path"]
    assert fields["Folder"] == payload["source"]
    assert fields["Category"] == hit["category"]
    assert fields["Pixels"] == f"{payload['width']} \u00d7 {payload['height']}"
    assert fields["Size"] == f"{payload['size_bytes']} bytes"
    assert fields["SHA-256"] == payload["sha256"]
    assert re.fullmatch(r"\d{1,2} \w+ 202\d at \d\d:\d\d", fields["Changed"])
    assert set(fields) == {"Path", "Folder", "Category", "Changed", "Size", "Pixels", "SHA-256"}
    expect(page.locator("#lightbox")).not_to_have_attribute("data-loading", "")
    assert page.locator("#box-picture").evaluate("image => image.naturalWidth") == payload["width"]


def test_keys_lead_through_the_lightbox_and_back(visit: Visit) -> None:
    page = visit("/?q=red")
    wait_for_results(page)
    order = ids(page)
    card(page, 0).locator("a").press("Enter")
    position = page.locator("#box-position")
    expect(position).to_have_text("1 of 60 and more")
    expect(page.locator("#box-previous")).to_be_disabled()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(position).to_have_text("3 of 60 and more")
    page.keyboard.press("ArrowLeft")
    assert parameters(page)["picture"] == [order[1]]
    page.keyboard.press("End")
    expect(position).to_have_text("60 of 60 and more")
    page.keyboard.press("ArrowRight")
    expect(position).to_have_text("61 of 120 and more")
    page.keyboard.press("Home")
    expect(position).to_have_text("1 of 120 and more")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Escape")
    expect(page.locator("#lightbox")).to_be_hidden()
    # The focus is on the picture that was looked at last, and one step back is not the lightbox again.
    expect(page.locator(f'.card[data-id="{order[1]}"] a')).to_be_focused()
    assert "picture" not in parameters(page)
    page.go_back()
    assert page.url == "about:blank"


def test_back_closes_the_lightbox_and_forward_opens_it(visit: Visit) -> None:
    page = visit("/?q=red", size="phone")
    wait_for_results(page)
    page.evaluate("window.scrollTo(0, 400)")
    card(page, 8).locator("a").click()
    expect(page.locator("#lightbox")).to_be_visible()
    place = page.evaluate("window.scrollY")
    page.go_back()
    expect(page.locator("#lightbox")).to_be_hidden()
    assert page.evaluate("window.scrollY") == place > 0
    page.go_forward()
    expect(page.locator("#lightbox")).to_be_visible()
    page.reload()
    expect(page.locator("#lightbox")).to_be_visible()
    page.locator("#box-close").click()
    expect(page.locator("#lightbox")).to_be_hidden()
    assert parameters(page) == {"q": ["red"]}


def test_an_address_opens_a_picture_that_is_not_among_the_results(visit: Visit, server: str) -> None:
    last = ask(server, "/search", q="red", limit=200)["hits"][-1]
    page = visit(f"/?q=red&picture={last['id']}")
    expect(page.locator("#box-name")).to_have_text(Path(last["path"]).name)
    expect(page.locator("#box-next")).to_be_disabled()
    page.keyboard.press("Escape")
    expect(page.locator("#lightbox")).to_be_hidden()
    assert parameters(page) == {"q": ["red"]}


def test_an_address_of_a_picture_that_is_gone_says_so(visit: Visit, watch: Watch) -> None:
    watch.allow("404")
    page = visit("/?picture=00000000-0000-5000-8000-000000000000")
    expect(page.locator("#toast")).to_contain_text("no picture with the id")
    assert parameters(page) == {}


def test_the_lightbox_asks_for_more_less_and_only_such_pictures(visit: Visit) -> None:
    page = visit("/?q=red")
    wait_for_results(page)
    first, second = ids(page)[:2]
    card(page, 0).locator("a").click()
    page.get_by_role("button", name="More like this", exact=True).click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", f"id:{first}"]}
    expect(page.locator("#lightbox")).to_be_hidden()
    page.locator(f'.card[data-id="{second}"] a').click()
    page.keyboard.press("-")
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", f"id:{first}"], "not": [f"id:{second}"]}
    third = ids(page)[0]
    card(page, 0).locator("a").click()
    page.get_by_role("button", name="Only pictures like this").click()
    wait_for_results(page)
    assert parameters(page) == {"q": [f"id:{third}"]}


def test_the_path_is_copied_and_the_original_opened(visit: Visit, server: str) -> None:
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    wait_for_results(page)
    picture = ask(server, "/images", limit=1)["pictures"][0]
    card(page, 0).locator("a").click()
    page.get_by_role("button", name="Copy path").click()
    expect(page.locator("#toast")).to_have_text("Path copied")
    expect(page.locator("#box-position")).to_have_text(f"1 of {ALL}")
    assert page.evaluate("navigator.clipboard.readText()") == picture["path"]
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Open original").click()
    assert urlsplit(opened.value.url).path == f"/api/v1/images/{picture['id']}"
    assert opened.value.evaluate("opener") is None


def test_a_path_is_copied_where_there_is_no_clipboard(visit: Visit, server: str) -> None:
    # As on another machine's address without https.
    page = visit(before=lambda page: page.add_init_script("delete Navigator.prototype.clipboard"))
    wait_for_results(page)
    card(page, 0).locator("a").click()
    page.get_by_role("button", name="Copy path").click()
    expect(page.locator("#toast")).to_have_text("Path copied")
    page.keyboard.press("Escape")
    page.locator("#words").focus()
    page.keyboard.press("Control+v")
    expect(page.locator("#words")).to_have_value(ask(server, "/images", limit=1)["pictures"][0]["path"])


def test_a_picture_whose_file_is_gone_says_so(visit: Visit, watch: Watch) -> None:
    watch.allow("422")
    problem = {"title": "Unprocessable Content", "status": 422, "detail": "the file of this picture is gone."}
    page = visit(
        before=lambda page: page.route(
            re.compile("/api/v1/images/[^/?]+\\?"),
            lambda route: route.fulfill(status=422, json=problem, content_type="application/problem+json"),
        )
    )
    wait_for_results(page)
    card(page, 0).locator("a").click()
    expect(page.locator("#box-trouble")).to_have_text("the file of this picture is gone.")


def swipe(page: Any, start: tuple[int, int], end: tuple[int, int]) -> None:
    session = page.context.new_cdp_session(page)
    for kind, points in (
        ("touchStart", [start]),
        ("touchMove", [end]),
        ("touchEnd", []),
    ):
        session.send(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]}
        )


def test_a_swipe_goes_on_and_a_swipe_down_closes(visit: Visit) -> None:
    page = visit("/?q=red", size="phone")
    wait_for_results(page)
    card(page, 0).locator("a").tap()
    expect(page.locator("#box-position")).to_have_text("1 of 60 and more")
    swipe(page, (300, 200), (120, 210))
    expect(page.locator("#box-position")).to_have_text("2 of 60 and more")
    swipe(page, (120, 200), (300, 190))
    expect(page.locator("#box-position")).to_have_text("1 of 60 and more")
    swipe(page, (200, 200), (225, 205))
    expect(page.locator("#box-position")).to_have_text("1 of 60 and more")


# ---- Pictures to search with ----------------------------------------------------------------------------

_AS_FILE = """async ([name, type, data]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
"""


def as_argument(name: str, kind: str, data: bytes) -> list[str]:
    import base64

    return [name, kind, base64.b64encode(data).decode()]


def test_a_file_is_chosen_to_search_with(visit: Visit, server: str, photos: Path) -> None:
    page = visit("/?q=red&category=fungi", size="phone")
    wait_for_results(page)
    file = photos / "fungi" / "007.png"
    requests: list[str] = []
    page.on("request", lambda request: requests.append(f"{request.method} {urlsplit(request.url).path}"))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Search with a picture").click()
    chooser.value.set_files(file)
    term = f"upload:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    expect(page.locator("#term-list .chip")).to_have_count(2)
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", term], "category": ["fungi"]}
    assert chips(page) == ["+red", "+007.png"]
    expect(page.locator("#term-list img.preview")).to_be_visible()
    # What was posted is the answer; it is not asked for again.
    assert "POST /api/v1/search" in requests
    assert "GET /api/v1/search" not in requests
    answer = ask(server, "/search", q=["red", term], category="fungi", limit=60)
    assert ids(page) == [hit["id"] for hit in answer["hits"]]
    page.reload()
    wait_for_results(page)
    assert ids(page) == [hit["id"] for hit in answer["hits"]]
    expect(page.locator("#sending")).to_be_empty()


def test_a_picture_is_dropped_anywhere(visit: Visit, photos: Path) -> None:
    page = visit()
    wait_for_results(page)
    file = photos / "aves" / "081.png"
    drop = (
        _AS_FILE
        + """
        const event = (type) => document.querySelector("#pictures").dispatchEvent(
            new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        const untouched = event("dragover");
        const shown = !document.querySelector("#drop").hidden;
        event("drop");
        return [untouched, shown, document.querySelector("#drop").hidden];
    }"""
    )
    assert page.evaluate(drop, as_argument("081.png", "image/png", file.read_bytes())) == [False, True, True]
    expect(page.locator("#term-list .chip")).to_have_text(["081.png"])
    wait_for_results(page)
    # The collection has the very same picture, which is no news to who has it.
    expect(page.locator("#left-out")).to_contain_text("1 identical picture left out")
    page.get_by_role("button", name="Show it", exact=True).click()
    expect(card(page, 0).locator(".name")).to_have_text("081.png")
    expect(card(page, 0).locator(".score")).to_have_text("1.000")


def test_a_picture_is_pasted_even_into_the_box(visit: Visit, photos: Path) -> None:
    page = visit()
    wait_for_results(page)
    page.locator("#words").focus()
    paste = (
        _AS_FILE
        + """
        document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true}));
    }"""
    )
    data = (photos / "aves" / "085.png").read_bytes()
    page.evaluate(paste, as_argument("image.png", "image/png", data))
    expect(page.locator("#term-list .chip")).to_have_text(["image.png"])
    wait_for_results(page)
    expect(page.locator("#left-out")).to_contain_text("1 identical picture left out")


def test_what_is_no_picture_is_refused_with_the_reason(visit: Visit, watch: Watch, tmp_path: Path) -> None:
    watch.allow("status of 4")
    page = visit()
    wait_for_results(page)
    text = tmp_path / "letter.pdf"
    text.write_bytes(b"%PDF-1.7")
    page.locator("#file").set_input_files(text)
    expect(page.get_by_role("alert")).to_contain_text(
        "\u201cletter.pdf\u201d is not a picture (application/pdf)."
    )
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    page.locator("#file").set_input_files(broken)
    expect(page.get_by_role("alert")).to_contain_text("broken.png")
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    assert parameters(page) == {}


def test_a_large_picture_is_scaled_down_before_it_is_sent(visit: Visit, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (1500, 2600, 3), dtype=np.uint8)
    file = tmp_path / "large.png"
    Image.fromarray(noise).save(file, compress_level=0)
    assert file.stat().st_size > 11_000_000
    page = visit()
    wait_for_results(page)
    with page.expect_request(lambda request: request.method == "POST") as posted:
        page.locator("#file").set_input_files(file)
    expect(page.locator("#term-list .chip")).to_have_text(["large.png"])
    assert int(posted.value.all_headers()["content-length"]) < 5_000_000


def test_what_the_server_refuses_to_take_is_said(visit: Visit, watch: Watch, photos: Path) -> None:
    watch.allow("413")
    problem = {"status": 413, "detail": "the request has 40 MB; this server takes 32 MB at most."}

    def refuse(route: Any) -> None:
        if route.request.method == "POST":
            route.fulfill(status=413, json=problem, content_type="application/problem+json")
        else:
            route.continue_()

    page = visit(before=lambda page: page.route("**/api/v1/search", refuse))
    wait_for_results(page)
    page.locator("#file").set_input_files(photos / "loose.png")
    expect(page.get_by_role("alert")).to_contain_text(problem["detail"])
    page.unroute("**/api/v1/search")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#term-list .chip")).to_have_text(["loose.png"])


def test_sending_can_be_taken_back(visit: Visit, photos: Path) -> None:
    held: list[Any] = []
    page = visit(before=lambda page: page.route("**/api/v1/search", lambda route: held.append(route)))
    wait_for_results(page)
    page.locator("#file").set_input_files(photos / "loose.png")
    expect(page.locator("#sending")).to_contain_text("loose.png")
    expect(page.locator("#sending progress")).to_be_visible()
    page.get_by_role("button", name="Do not send").click()
    expect(page.locator("#sending")).to_be_empty()
    assert parameters(page) == {}


def test_a_picture_that_is_not_kept_any_more_can_be_sent_again(
    visit: Visit, watch: Watch, photos: Path
) -> None:
    watch.allow("404")
    page = visit(f"/?q=red&q=upload:{'0' * 64}")
    expect(page.locator(".notice")).to_contain_text("not kept any more. Send it again.")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose the picture again").click()
    chooser.value.set_files(photos / "loose.png")
    expect(page.locator("#term-list .chip .label")).to_have_text(["red", "loose.png"])
    assert len(parameters(page)["q"]) == 2


# ---- When there is nothing, and when things fail ---------------------------------------------------------


def problem_once(
    page: Any, pattern: str, status: int, detail: str, headers: dict[str, str] | None = None
) -> None:
    page.route(
        pattern,
        lambda route: route.fulfill(
            status=status,
            headers=headers or {},
            body=json.dumps({"title": "no", "status": status, "detail": detail}),
            content_type="application/problem+json",
        ),
        times=1,
    )


def test_a_busy_server_is_asked_again_by_itself(visit: Visit, watch: Watch) -> None:
    watch.allow("503")
    page = visit(
        "/?q=red",
        before=lambda page: problem_once(page, "**/search?*", 503, "too many wait.", {"Retry-After": "1"}),
    )
    expect(page.locator(".notice")).to_contain_text("Too many wait. Asking again in 1 second.")
    expect(page.locator(".card")).to_have_count(60)
    expect(page.locator("#notice")).to_be_hidden()


def test_a_failure_is_said_in_the_servers_words_and_retried(visit: Visit, watch: Watch) -> None:
    watch.allow("500")
    page = visit(
        "/?q=red", before=lambda page: problem_once(page, "**/search?*", 500, "The store is broken.")
    )
    expect(page.get_by_role("heading", name="Something went wrong")).to_be_visible()
    expect(page.locator(".notice")).to_contain_text("The store is broken.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".card")).to_have_count(60)


def test_a_lost_connection_comes_back(visit: Visit, watch: Watch) -> None:
    watch.allow("net::ERR_")
    page = visit()
    wait_for_results(page)
    page.context.set_offline(True)
    search(page, "red")
    expect(page.get_by_role("heading", name="No connection to imret")).to_be_visible()
    expect(page.locator(".notice code")).to_have_text("imret serve")
    page.context.set_offline(False)
    expect(page.locator(".card")).to_have_count(60)


def test_who_is_not_logged_in_is_led_there_and_back(visit: Visit, watch: Watch) -> None:
    watch.allow("401")
    page = visit()
    wait_for_results(page)
    page.route("**/login?*", lambda route: route.fulfill(body="log in", content_type="text/plain"))
    problem_once(page, "**/search?*", 401, "this server asks for its token")
    page.locator("#words").fill("red & blue")
    page.locator("#words").press("Enter")
    page.wait_for_url("**/login?*")
    assert parameters(page) == {"next": ["/?q=red+%26+blue"]}


def test_a_category_that_does_not_exist_can_be_taken_back(visit: Visit, watch: Watch) -> None:
    watch.allow("400")
    page = visit("/?category=aces")
    expect(page.locator(".notice")).to_contain_text("aces")
    expect(page.locator('.category-chip[data-category="aces"]')).to_be_visible()
    page.get_by_role("button", name="Search in all categories").click()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")


def test_a_collection_that_does_not_exist_leads_to_those_that_do(visit: Visit, watch: Watch) -> None:
    watch.allow("404")
    page = visit("/?collection=birds&q=red&category=owls")
    expect(page.locator(".notice")).to_contain_text("birds")
    expect(page.locator("#collection")).to_have_value("birds")
    page.get_by_role("button", name="Open \u201csecond\u201d").click()
    expect(page.locator(".card")).to_have_count(3)
    assert parameters(page) == {"q": ["red"], "collection": ["second"]}


def test_a_store_without_a_collection_says_how_to_begin(visit: Visit, watch: Watch) -> None:
    watch.allow("404")

    def nothing(page: Any) -> None:
        page.route(
            "**/api/v1/collections",
            lambda route: route.fulfill(json={"default": "photos", "collections": []}),
        )
        for pattern in ("**/api/v1/images?*", "**/api/v1/categories*"):
            page.route(
                pattern,
                lambda route: route.fulfill(status=404, json={"detail": "there is no collection 'photos'"}),
            )

    page = visit(before=nothing)
    expect(page.get_by_role("heading", name="No pictures yet")).to_be_visible()
    expect(page.locator(".notice code")).to_have_text("imret ingest photos")
    page.unroute_all()
    page.get_by_role("button", name="Look again").click()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")


def test_an_empty_collection_says_how_to_fill_it(visit: Visit) -> None:
    def empty(page: Any) -> None:
        said = {"collection": "my birds", "images": 0, "pictures": [], "next": None}
        page.route("**/api/v1/images?*", lambda route: route.fulfill(json=said))

    page = visit(before=empty)
    expect(page.get_by_role("heading", name="The collection \u201cmy birds\u201d is empty")).to_be_visible()
    expect(page.locator(".notice code")).to_have_text("imret ingest photos --collection 'my birds'")


def test_conditions_that_nothing_passes_can_be_taken_back(visit: Visit) -> None:
    page = visit("/?where=width>=9999")
    expect(page.get_by_role("heading", name="No picture meets these conditions")).to_be_visible()
    page.get_by_role("button", name="See all pictures").click()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")


def test_boxes_stand_where_pictures_will_be(visit: Visit) -> None:
    held: list[Any] = []
    page = visit(before=lambda page: page.route("**/api/v1/images?*", lambda route: held.append(route)))
    expect(page.locator("#pictures[data-skeleton] .frame").first).to_be_visible()
    expect(page.locator("#count")).to_have_text("Loading\u2026")
    expect(page.locator("#progress")).to_be_visible()
    held[0].continue_()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures")
    expect(page.locator("#pictures[data-skeleton]")).to_have_count(0)


def test_an_answer_that_comes_late_does_not_replace_a_later_one(visit: Visit) -> None:
    held: list[Any] = []
    page = visit()
    wait_for_results(page)
    page.route("**/search?q=slow*", lambda route: held.append(route))
    page.locator("#words").fill("slow")
    page.locator("#words").press("Enter")
    expect(page.locator("#count")).to_have_text("Searching\u2026")
    search(page, "quick")
    shown = ids(page)
    held[0].continue_()
    page.wait_for_timeout(100)
    assert ids(page) == shown
    expect(page).to_have_title("\u201cquick\u201d \u2013 imret")


# ---- Text is text ---------------------------------------------------------------------------------------


def test_script_in_names_categories_and_queries_is_text(visit: Visit) -> None:
    query = "<img src=x onerror=\"alert('query')\"><script>alert(3)</script>"
    page = visit("/?" + urlencode({"category": HOSTILE_CATEGORY}), size="desktop")
    wait_for_results(page)
    chip = page.locator('.category-chip[data-how="only"] .label')
    expect(chip).to_have_text(HOSTILE_CATEGORY)
    expect(card(page, 0).locator(".category")).to_have_text(HOSTILE_CATEGORY)
    page.goto("/?category=fungi")
    wait_for_results(page)
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".card")).to_have_count(81)
    named = page.locator(".name", has_text="onerror")
    expect(page.locator(".card", has=named)).to_have_count(1)
    expect(page.locator(".card").locator(named)).to_have_text(HOSTILE_NAME)
    page.locator(".card", has=named).locator("a").click()
    expect(page.locator("#box-name")).to_have_text(HOSTILE_NAME)
    expect(page.locator("#box-fields")).to_contain_text(f"fungi/{HOSTILE_NAME}")
    page.get_by_role("button", name="More like this", exact=True).click()
    wait_for_results(page)
    assert chips(page) == [f"+{HOSTILE_NAME}"]
    search(page, query)
    search(page, "- " + query.replace("query", "minus"))
    assert query in page.title()
    assert chips(page)[0] == f"+{query}"
    # Nothing of it became an element. That no dialog opened and no policy was breached, every test asserts.
    assert page.locator("img[src=x], svg[onload], main script").count() == 0
    page.locator("#relevant").check()
    wait_for_results(page)
