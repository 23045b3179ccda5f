"""The page for everybody: by keyboard alone, for screen readers, in dark and light, with little motion."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests import ROOT
from tests.browser.conftest import Visit, Watch, both_sizes
from tests.browser.test_page import ALL, card, ids, parameters, wait_for_results

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
expect = playwright.expect

pytestmark = pytest.mark.browser

STATIC = ROOT / "imret" / "web" / "static"
SCHEMES = ("light", "dark")
both_schemes = pytest.mark.parametrize("scheme", SCHEMES)


def focused(page: Any) -> str:
    """Return what has the focus: its accessible name, else its id."""
    name: str = page.evaluate(
        """() => {
            const element = document.activeElement;
            return element.getAttribute("aria-label") || element.labels?.[0]?.textContent.trim()
                || element.textContent.trim() || element.id;
        }"""
    )
    return name


def tab_to(page: Any, wanted: str) -> list[str]:
    """Press Tab until something of that name has the focus; return what had it on the way."""
    way = []
    for _ in range(60):
        page.keyboard.press("Tab")
        way.append(focused(page))
        if re.search(wanted, way[-1]):
            return way
    raise AssertionError(f"{wanted!r} is not reached by Tab: {way}")


# ---- By keyboard alone ----------------------------------------------------------------------------------


def test_everything_is_done_by_keyboard(visit: Visit) -> None:
    page = visit()
    wait_for_results(page)
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the pictures"
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(card(page, 0).locator("a")).to_be_focused()

    page.keyboard.press("/")
    page.keyboard.type("red")
    page.keyboard.press("Enter")
    wait_for_results(page)
    expect(page.locator("#words")).to_be_focused()
    way = tab_to(page, "^1, ")
    # On the way lie all controls, each with a name; the pictures are one stop.
    assert all(way)
    for control in ("with a picture", "Help", "fungi, ", "Collection", "Hide duplicates"):
        assert any(control in name for name in way), (control, way)

    page.keyboard.press("ArrowRight")
    expect(card(page, 1).locator("a")).to_be_focused()
    page.keyboard.press("+")
    wait_for_results(page)
    assert len(parameters(page)["q"]) == 2
    # The focus is with the pictures still.
    expect(card(page, 0).locator("a")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#lightbox")).to_be_visible()
    assert "Search for" not in tab_to(page, "Copy path")
    page.keyboard.press("Escape")
    expect(card(page, 0).locator("a")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert focused(page).startswith("Less like this")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    expect(card(page, 0).locator("a")).to_be_focused()

    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(card(page, 0).locator("a")).to_be_focused()


def test_arrows_go_through_the_rows_as_they_are_seen(visit: Visit) -> None:
    page = visit()
    wait_for_results(page)
    places = page.locator(".card").evaluate_all(
        "cards => cards.map((card) => [card.offsetTop, card.offsetLeft + card.offsetWidth / 2])"
    )
    rows = sorted({top for top, _ in places})
    position = "[...document.querySelectorAll('.card a')].indexOf(document.activeElement)"

    def nearest(row: int, middle: float) -> int:
        inside = [at for at, (top, _) in enumerate(places) if top == rows[row]]
        return min(inside, key=lambda at: abs(places[at][1] - middle))

    card(page, 2).locator("a").focus()
    page.keyboard.press("ArrowDown")
    below = nearest(1, places[2][1])
    assert page.evaluate(position) == below
    page.keyboard.press("ArrowUp")
    assert page.evaluate(position) == nearest(0, places[below][1])
    page.keyboard.press("End")
    assert places[page.evaluate(position)] == max(place for place in places if place[0] == rows[0])
    page.keyboard.press("ArrowRight")
    assert places[page.evaluate(position)][0] == rows[1]
    page.keyboard.press("Home")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    assert page.evaluate(position) == 0
    page.keyboard.press("ArrowUp")
    assert page.evaluate(position) == 0
    page.keyboard.press("Control+End")
    assert page.evaluate(position) >= 59


def test_what_has_the_focus_is_seen_and_not_below_the_top(visit: Visit) -> None:
    page = visit()
    wait_for_results(page)
    page.evaluate("window.scrollTo(0, 900)")
    card(page, 30).locator("a").focus()
    for _ in range(4):
        page.keyboard.press("ArrowUp")
        top, edge = page.evaluate(
            """() => [document.activeElement.getBoundingClientRect().top,
                      document.querySelector(".top").getBoundingClientRect().bottom]"""
        )
        assert top >= edge
        outline = page.evaluate("getComputedStyle(document.activeElement).outline")
        assert "solid" in outline
        assert "3px" in outline


def test_the_lightbox_keeps_the_focus_inside(visit: Visit) -> None:
    page = visit()
    wait_for_results(page)
    card(page, 0).locator("a").press("Enter")
    expect(page.locator("#box-close")).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate(
            "document.activeElement === document.body || !!document.activeElement.closest('#lightbox')"
        )


# ---- For screen readers ---------------------------------------------------------------------------------


def test_counts_are_announced(visit: Visit) -> None:
    page = visit()
    expect(page.get_by_role("status").filter(has_text=f"{ALL} pictures")).to_have_count(1)
    page.locator("#words").fill("red")
    page.locator("#words").press("Enter")
    expect(page.get_by_role("status").filter(has_text=f"{ALL} pictures, best first")).to_have_count(1)


def test_a_result_says_what_it_is(visit: Visit) -> None:
    page = visit("/?q=red&category=aves")
    wait_for_results(page)
    name = card(page, 0).locator("a").get_attribute("aria-label") or ""
    assert re.fullmatch(r"1, \d{3}\.png, aves, score -?\d\.\d{3}", name)
    expect(page.get_by_role("list", name="Pictures")).to_be_visible()


# ---- Found by axe ---------------------------------------------------------------------------------------


def open_lightbox(page: Any) -> None:
    card(page, 1).locator("a").click()
    expect(page.locator("#lightbox")).not_to_have_attribute("data-loading", "")


def open_keys(page: Any) -> None:
    page.evaluate("document.querySelector('#help').click()")
    expect(page.locator("#keys")).to_be_visible()


def complain(page: Any) -> None:
    page.locator("#file").set_input_files(
        {"name": "letter.pdf", "mimeType": "application/pdf", "buffer": b"%PDF"}
    )
    expect(page.get_by_role("alert")).to_be_visible()


def nothing(page: Any) -> None:
    pass


def ask_for_more_like_it(page: Any) -> None:
    card(page, 0).locator("a").press("+")
    expect(page.locator("#left-out")).to_be_visible()
    wait_for_results(page)


PLACES = {
    "browse": ("/", nothing),
    "results": ("/?q=red&q=2:round&not=green&category=twins&not_category=fungi&unique=true", nothing),
    "left out": ("/?q=red", ask_for_more_like_it),
    "groups": ("/?q=red&group_by=category&unique=true", nothing),
    "nothing found": ("/?q=red&category=twins&where=width>=9999", nothing),
    "lightbox": ("/?q=red&category=twins", open_lightbox),
    "keys": ("/?category=twins", open_keys),
    "no picture": ("/?where=width>=9999", nothing),
    "only subtracted": ("/?not=red", complain),
    "error": ("/?category=aces", nothing),
}


@both_sizes
@pytest.mark.parametrize("place", PLACES)
def test_axe_finds_nothing(visit: Visit, watch: Watch, size: str, place: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.base", reason="needs axe-core: pip install axe-playwright-python"
    )
    watch.allow("status of 400")
    path, prepare = PLACES[place]
    # axe is script of the test's, which the page's own policy would keep out.
    page = visit(path, size=size, bypass_csp=True, reduced_motion="reduce")
    wait_for_results(page)
    prepare(page)
    page.evaluate(axe.AXE_FILE_PATH.read_text(encoding="utf-8") + "\n;undefined")
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.wait_for_timeout(50)
        # Between the schemes, only colours differ.
        rules = {} if scheme == "light" else {"runOnly": ["color-contrast"]}
        found = page.evaluate("(rules) => axe.run({ resultTypes: ['violations'], ...rules })", rules)
        assert "color-contrast" in [rule["id"] for rule in found["passes"]], "axe did not look at colours"
        violations = [
            (rule["id"], [f"{node['html'][:160]} {node['failureSummary'][:200]}" for node in rule["nodes"]])
            for rule in found["violations"]
        ]
        assert violations == [], scheme


# ---- Colours, sizes, motion -----------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour such as #585d68. Source: WCAG 2.2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(color: str, other: str) -> float:
    light, dark = sorted((luminance(color), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_the_standard_does() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@both_schemes
def test_the_colours_have_contrast(visit: Visit, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    wait_for_results(page)
    colours = page.evaluate(
        """() => {
            const style = getComputedStyle(document.documentElement);
            const names = ["paper", "raised", "fill", "fill-strong", "ink", "quiet", "accent", "on-accent",
                "accent-fill", "minus", "minus-fill", "edge"];
            const colour = (name) => style.getPropertyValue(`--${name}`).trim();
            return Object.fromEntries(names.map((name) => [name, colour(name)]));
        }"""
    )
    grounds = ("paper", "raised", "fill", "fill-strong", "accent-fill", "minus-fill")
    text = [
        *(("ink", ground) for ground in grounds),
        *(("quiet", ground) for ground in grounds),
        *(("accent", ground) for ground in ("paper", "fill", "accent-fill")),
        *(("minus", ground) for ground in ("paper", "minus-fill")),
        ("on-accent", "accent"),
        ("paper", "ink"),
        ("paper", "minus"),
    ]
    for front, ground in text:
        assert contrast(colours[front], colours[ground]) >= 4.5, (front, ground)
    for ground in ("paper", "raised"):
        assert contrast(colours["edge"], colours[ground]) >= 3, ground


@both_schemes
def test_the_page_is_drawn_in_the_scheme(visit: Visit, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert (int(red) < 40) == (scheme == "dark")


@pytest.mark.parametrize("path", ["/?q=red&not=green", "/?q=red&picture=first", "/?where=width>=9999"])
def test_everything_is_large_enough_to_touch(visit: Visit, path: str) -> None:
    page = visit(path.replace("&picture=first", ""), size="phone")
    wait_for_results(page)
    if "picture" in path:
        open_lightbox(page)
    small = page.evaluate(
        """() => {
            const dialog = document.querySelector("dialog[open]");
            const hit = "button, select, a[href], input:not([type=file])";
            return [...(dialog ?? document).querySelectorAll(hit)]
                .filter((element) => element.checkVisibility() && !element.matches(".unseen, .skip"))
                .map((element) => element.closest("label") ?? element)
                .map((element) => [element.outerHTML.slice(0, 90), element.getBoundingClientRect()])
                .filter(([, box]) => box.height < 43.5 || box.width < 43.5)
                .map(([html, box]) => `${html}: ${box.width} x ${box.height}`);
        }"""
    )
    assert small == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_buttons_of_a_narrow_picture_stay_on_it(visit: Visit) -> None:
    page = visit("/?q=red", size="phone", viewport={"width": 320, "height": 640})
    wait_for_results(page)
    outside = page.locator(".card").evaluate_all(
        """cards => cards.filter((card) => {
            const inner = card.querySelector(".weigh").getBoundingClientRect();
            const outer = card.getBoundingClientRect();
            return inner.left < outer.left - 0.5 || inner.right > outer.right + 0.5;
        }).length"""
    )
    assert outside == 0
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_little_moves_for_who_wants_little_motion(visit: Visit) -> None:
    held: list[Any] = []
    page = visit(
        reduced_motion="reduce",
        before=lambda page: page.route("**/api/v1/images?*", lambda route: held.append(route)),
    )
    expect(page.locator("#progress")).to_be_visible()
    page.wait_for_timeout(100)
    assert page.evaluate("document.getAnimations().filter((one) => one.playState === 'running').length") == 0
    held[0].continue_()
    wait_for_results(page)


@pytest.mark.parametrize("zoom", [2, 4])
def test_the_page_can_be_zoomed(visit: Visit, zoom: int) -> None:
    # WCAG 2.2, 1.4.10: at 400 % of 1280 pixels there are 320 left, and nothing is to be scrolled across.
    page = visit(
        f"/?q={'red' * 60}&not={'green ' * 20}", viewport={"width": 1280 // zoom, "height": 1024 // zoom}
    )
    wait_for_results(page)
    assert ids(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


# ---- The files ------------------------------------------------------------------------------------------


def test_the_page_has_no_inline_script_or_style_and_nothing_from_other_hosts() -> None:
    for file in STATIC.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\sstyle=|<style|\son\w+=|<script(?![^>]*\ssrc=)", text), file.name
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        hosts = set(re.findall(r"https?://[\w.-]+|[\"'(]//\w[\w.-]+", text)) - {"http://www.w3.org"}
        assert not hosts, f"{file.name}: {hosts}"
        for parser in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "setHTMLUnsafe"):
            assert parser not in text, f"{file.name}: {parser}"


def test_every_module_says_what_it_holds_and_is_used() -> None:
    modules = {file.name: file.read_text(encoding="utf-8") for file in STATIC.glob("*.js")}
    imported = set(re.findall(r'from "\./([\w.-]+)"', "\n".join(modules.values())))
    assert imported == set(modules) - {"main.js"}
    for name, text in modules.items():
        assert text.startswith("// "), name
