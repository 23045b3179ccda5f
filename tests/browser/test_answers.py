"""What the page says of its answers is so: numbers, what is left out, groups, and what each term weighs."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from tests.browser.conftest import Visit, both_sizes
from tests.browser.test_page import ALL, ask, chips, ids, parameters, search, wait_for_results

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
expect = playwright.expect

pytestmark = pytest.mark.browser


def number_in(text: str) -> int:
    found = re.search(r"[\d,]+", text)
    return int(found[0].replace(",", "")) if found else 0


def scrolled(page: Any) -> int:
    """Return how many pictures there are for whoever scrolls to the end."""
    while page.locator("#more").is_visible():
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.wait_for_timeout(50)
    n: int = page.locator(".card[data-id]").count()
    return n


def numbers(page: Any) -> dict[str, int]:
    """Return what the chips of the categories say."""
    said: list[list[str]] = page.locator(".category-chip[data-category]").evaluate_all(
        "chips => chips.map((chip) => [chip.dataset.category, chip.querySelector('.count').textContent])"
    )
    return {category: number_in(text) for category, text in said}


def click(page: Any, category: str) -> Any:
    page.locator(".category-chip[data-category]").evaluate_all(
        "(chips, category) => chips.find((chip) => chip.dataset.category === category).click()", category
    )
    wait_for_results(page)


# ---- Numbers --------------------------------------------------------------------------------------------


def _conditions(server: str) -> list[str]:
    twin, other = (
        ask(server, "/images", category=category, limit=1)["pictures"][0]["id"]
        for category in ("twins", "aves")
    )
    return [
        "",
        "where=width>=100",
        "q=red&where=width<=64",
        f"q=id:{twin}&relevant=true",
        f"q=red&q=0.5:id:{other}&not=id:{twin}&not_category=aves",
        "q=red&not=blue&relevant=true",
    ]


def test_every_chip_says_how_many_pictures_a_click_shows(visit: Visit, server: str) -> None:
    for conditions in _conditions(server):
        page = visit(f"/?{conditions}")
        wait_for_results(page)
        said = numbers(page)
        left = set(parameters(page).get("not_category", []))
        without = page.locator(".uncategorised")
        loose = number_in(without.text_content() or "") if without.count() else 0
        total = sum(n for category, n in said.items() if category not in left) + loose
        if total:
            assert number_in(page.locator("#count").text_content()) == total == scrolled(page), conditions
        else:
            expect(page.locator(".notice")).to_be_visible()
        for category, n in said.items():
            for _ in range(1 + (category in left)):  # left out, then as it comes, then only it
                click(page, category)
            assert parameters(page)["category"] == [category]
            assert scrolled(page) == n, (conditions, category)
            assert numbers(page)[category] == n, (conditions, category)
            if n:
                assert number_in(page.locator("#count").text_content()) == n, (conditions, category)
            else:
                expect(page.locator(".notice")).to_be_visible()
            for _ in range(1 + (category in left)):
                page.go_back()
                wait_for_results(page)
        page.context.close()


def test_a_second_category_adds_as_many_as_its_chip_says(visit: Visit) -> None:
    page = visit("/?q=red&where=width>=60")
    wait_for_results(page)
    click(page, "fungi")
    first = scrolled(page)
    chip = page.locator('.category-chip[data-category="aves"]')
    assert (chip.locator(".count").text_content() or "").startswith("+")
    assert "Click to see these too" in (chip.get_attribute("aria-label") or "")
    added = numbers(page)["aves"]
    click(page, "aves")
    assert parameters(page)["category"] == ["fungi", "aves"]
    assert scrolled(page) == first + added
    assert number_in(page.locator("#count").text_content()) == first + added


def test_with_duplicates_hidden_a_chip_says_at_most(visit: Visit) -> None:
    page = visit("/?q=red&unique=true")
    wait_for_results(page)
    chip = page.locator('.category-chip[data-category="twins"]')
    expect(chip.locator(".count")).to_have_text("\u2264\u20093")
    assert "up to 3 pictures" in (chip.get_attribute("aria-label") or "")
    expect(page.locator("#count")).to_have_text(f"Up to {ALL} pictures, best first")
    click(page, "twins")
    expect(page.locator("#count")).to_have_text("1 picture, best first, 2 duplicates hidden")
    assert scrolled(page) == 1


def test_nothing_found_is_nothing_on_every_chip(visit: Visit) -> None:
    def empty(route: Any) -> None:
        said = route.fetch().json() | {"hits": [], "more": False}
        none = [entry | {"hits": 0} for entry in said["counts"]["categories"]]
        said["counts"] |= {"hits": 0, "uncategorised": 0, "categories": none}
        route.fulfill(json=said)

    page = visit("/?q=car&relevant=true", before=lambda page: page.route("**/api/v1/search?*", empty))
    expect(page.get_by_role("heading", name="No good matches for \u201ccar\u201d")).to_be_visible()
    assert set(numbers(page).values()) == {0}


def test_where_more_are_found_than_are_counted_numbers_are_at_least(visit: Visit) -> None:
    def many(route: Any) -> None:
        said = route.fetch(url=route.request.url.replace("relevant=true", "")).json()
        if said["counts"]:
            said["counts"] |= {"hits": 10_000, "complete": False}
        route.fulfill(json=said)

    page = visit("/?q=red&relevant=true", before=lambda page: page.route("**/api/v1/search?*", many))
    expect(page.locator("#count")).to_have_text("At least 10,000 good matches, best first")
    expect(page.locator('.category-chip[data-category="fungi"] .count')).to_have_text("\u2265\u200981")


def test_of_nothing_found_it_is_said_which_condition_left_nothing(visit: Visit, server: str) -> None:
    page = visit("/?q=red&category=twins&where=width>=100000")
    without = ask(server, "/search", q="red", category="twins", where="width>=100000")["emptied_by"]
    (wide,) = [one for one in without if [c["field"] for c in one["conditions"]] == ["where"]]
    expect(page.locator(".notice")).to_contain_text(
        f"Without the condition width>=100000: {wide['kept']} pictures, the best with {wide['score']:.3f}."
    )


def test_in_other_categories_there_are_some(visit: Visit) -> None:
    page = visit("/?q=red&category=twins&where=width>=100")
    expect(page.locator(".notice")).to_contain_text("In other categories there are")
    page.get_by_role("button", name="Search in all pictures").click()
    expect(page.locator("#count")).to_have_text(f"{ALL} pictures, best first")


# ---- What is left out -----------------------------------------------------------------------------------


@both_sizes
def test_the_picture_that_is_asked_with_is_left_out_said_and_shown(
    visit: Visit, server: str, size: str
) -> None:
    twins = ask(server, "/images", category="twins")["pictures"]
    page = visit(f"/?q=id:{twins[0]['id']}", size=size)
    wait_for_results(page)
    expect(page.locator("#left-out")).to_have_text("3 identical pictures left outShow them")
    assert not set(ids(page)) & {twin["id"] for twin in twins}
    page.get_by_role("button", name="Show them").press("Enter")
    wait_for_results(page)
    assert parameters(page)["include_self"] == ["true"]
    assert set(ids(page)[:3]) == {twin["id"] for twin in twins}
    back = page.get_by_role("button", name="Leave them out")
    expect(back).to_be_focused()
    back.click()
    wait_for_results(page)
    assert "include_self" not in parameters(page)
    expect(page.locator("#left-out")).to_contain_text("3 identical pictures left out")


def test_where_nothing_else_is_left_that_is_said(visit: Visit, server: str) -> None:
    twin = ask(server, "/images", category="twins")["pictures"][0]["id"]
    page = visit(f"/?q=id:{twin}&category=twins")
    expect(page.locator(".notice h2")).to_contain_text("No other picture for")
    expect(page.locator(".notice")).to_contain_text("3 identical pictures are left out.")
    page.locator(".notice").get_by_role("button", name="Show them").click()
    expect(page.locator(".card")).to_have_count(3)


def test_words_leave_nothing_out(visit: Visit) -> None:
    page = visit("/?q=red&include_self=true")
    wait_for_results(page)
    expect(page.locator("#left-out")).to_be_hidden()


# ---- Groups ---------------------------------------------------------------------------------------------


@both_sizes
def test_groups_have_headings_in_the_order_of_the_command(visit: Visit, server: str, size: str) -> None:
    from imret.output.formats import groups_of
    from imret.retrieval.results import Hit

    page = visit("/?q=red", size=size)
    wait_for_results(page)
    page.locator("#sort").select_option("By category")
    wait_for_results(page)
    assert parameters(page) == {"q": ["red"], "group_by": ["category"]}
    hits = ask(server, "/search", q="red", group_by="category", per_group=5, limit=60)["hits"]
    assert ids(page) == [hit["id"] for hit in hits]
    groups = groups_of([Hit(**hit) for hit in hits], "category")
    assert page.locator(".group h2").all_text_contents() == [heading for heading, _ in groups]
    expect(page.locator("#count")).to_have_text("The best 5 of each category")
    # Each heading stands above the pictures of its group, whose last row is not blown up.
    under = page.locator("#pictures > li").evaluate_all(
        """items => items.map((item) => item.matches(".group") ? item.querySelector("h2").textContent
            : item.querySelector(".category").textContent)"""
    )
    for heading, within in itertools.groupby(under, lambda text: text.removeprefix("category: ")):
        assert list(within)[1:] == [heading] * len(dict(groups)[f"category: {heading}"])
    page.reload()
    wait_for_results(page)
    expect(page.locator("#sort")).to_have_value("category")
    expect(page.locator(".group")).to_have_count(len(groups))


def test_a_heading_leads_to_all_of_its_group(visit: Visit) -> None:
    page = visit("/?q=red&group_by=category")
    wait_for_results(page)
    page.get_by_role("button", name="Show all of aves").click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red"], "category": ["aves"]}
    assert scrolled(page) == 50
    page.go_back()
    wait_for_results(page)
    said = numbers(page)["fungi"]
    click(page, "fungi")
    assert scrolled(page) == said == 81
    page.locator("#sort").select_option("By category")
    wait_for_results(page)
    assert parameters(page) == {"q": ["red"], "category": ["fungi"], "group_by": ["category"]}
    page.locator("#sort").select_option("By path")
    wait_for_results(page)
    assert parameters(page) == {"q": ["red"], "category": ["fungi"], "sort": ["path"]}


# ---- What a term weighs ---------------------------------------------------------------------------------


@both_sizes
def test_a_slider_weighs_a_term_and_the_address_keeps_it(visit: Visit, server: str, size: str) -> None:
    page = visit("/?q=red&not=green", size=size)
    wait_for_results(page)
    slider = page.get_by_role("slider", name="How much it counts: green")
    expect(slider).to_have_attribute("aria-valuetext", "normal")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", "2 times")
    page.wait_for_url("**not=2*")
    wait_for_results(page)
    assert parameters(page) == {"q": ["red"], "not": ["2:green"]}
    assert chips(page) == ["+red", "-green"]
    # The focus stays where it was, and goes on from there.
    expect(slider).to_be_focused()
    hits = ask(server, "/search", q="red", **{"not": "2:green"}, limit=60)["hits"]
    assert ids(page) == [hit["id"] for hit in hits]
    page.keyboard.press("Home")
    page.wait_for_url("**not=0.1*")
    wait_for_results(page)
    assert parameters(page)["not"] == ["0.1:green"]
    expect(page.locator("#term-list .chip.minus .weight")).to_have_text("\u00d70.1")
    page.reload()
    wait_for_results(page)
    expect(slider).to_have_value("0")
    page.get_by_role("button", name="Subtracted: green. Add it instead").click()
    wait_for_results(page)
    assert parameters(page) == {"q": ["red", "0.1:green"]}


def test_a_picture_that_weighs_more_is_still_that_picture(visit: Visit, server: str) -> None:
    id = ask(server, "/search", q="red", limit=1)["hits"][0]["id"]
    page = visit(f"/?q=red&q=id:{id}&include_self=true")
    wait_for_results(page)
    sliders = page.get_by_role("slider")
    expect(sliders).to_have_count(2)
    box = sliders.nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.wait_for_url("**q=5*")
    wait_for_results(page)
    assert parameters(page)["q"] == ["red", f"5:id:{id}"]
    mine = page.locator(f'.card[data-id="{id}"]')
    expect(mine.locator(".more")).to_have_attribute("aria-pressed", "true")
    mine.locator("a").press("-")
    wait_for_results(page)
    assert (parameters(page)["q"], parameters(page)["not"]) == (["red"], [f"5:id:{id}"])


def test_two_sliders_that_are_moved_at_once_both_count(visit: Visit) -> None:
    page = visit("/?q=red&q=round&not=green")
    wait_for_results(page)
    page.get_by_role("slider", name="How much it counts: red").press("ArrowRight")
    page.get_by_role("slider", name="How much it counts: round").press("ArrowLeft")
    page.wait_for_url("**0.75*")
    wait_for_results(page)
    assert parameters(page) == {"q": ["1.5:red", "0.75:round"], "not": ["green"]}


def test_a_term_alone_has_no_slider(visit: Visit, server: str) -> None:
    id = ask(server, "/images", limit=1)["pictures"][0]["id"]
    page = visit(f"/?q=id:{id}")
    wait_for_results(page)
    expect(page.locator("#term-list .chip")).to_have_count(1)
    expect(page.get_by_role("slider")).to_have_count(0)
    search(page, "red")
    expect(page.get_by_role("slider")).to_have_count(2)


WEIGHED = [
    ("red", 2, "2:red"),
    ("2:red", 1, "red"),
    ("0.5:id:1", 3, "3:id:1"),
    ("text:16:9", 2, "2:text:16:9"),
    ("2:16:9", 1, "text:16:9"),
    ("1e-3:upload:0a", 1, "upload:0a"),
    ("0:30", 2, "2:0:30"),
]


def test_a_weight_changes_nothing_else_of_a_term(visit: Visit) -> None:
    page = visit()
    for typed, weight, expected in WEIGHED:
        said = page.evaluate(
            """async ([typed, weight]) => {
                const { parseTerm, weighted } = await import("/static/query.js");
                return [weighted(typed, weight), parseTerm(typed), parseTerm(weighted(typed, weight))];
            }""",
            [typed, weight],
        )
        assert said[0] == expected
        assert said[2] == said[1] | {"weight": weight}
