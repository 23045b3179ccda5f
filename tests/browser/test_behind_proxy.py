"""The page in a real Chromium through a real nginx, below a path, as docs/serve.md says to set it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.conftest import Watch, imret_serve
from tests.browser.test_page import card, search, wait_for_results
from tests.fakes.proxies import PATH, Proxy, a_proxy, documented, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]'")
expect = playwright.expect

pytestmark = pytest.mark.browser

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def open_page(chromium: Browser, watch: Watch) -> Iterator[Callable[[str], Page]]:
    """Open an address in a browser without a past that takes a certificate of our own make."""
    context = chromium.new_context(ignore_https_errors=True, viewport={"width": 1200, "height": 900})
    context.set_default_timeout(15_000)

    def open_page(address: str) -> Page:
        page = context.new_page()
        watch.listen(page)
        page.goto(address)
        return page

    yield open_page
    context.close()


def _log_in(page: Page, proxy: Proxy) -> None:
    page.get_by_label("Token of this server").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{proxy.origin}{PATH}/?q=red")
    wait_for_results(page)
    (cookie,) = page.context.cookies()
    assert (cookie["path"], cookie["secure"]) == (PATH, proxy.scheme == "https")


def _use(page: Page, proxy: Proxy, photos: Path) -> None:
    """Search by words and by a picture, look at one, go back, reload: all below the path."""
    root = f"{proxy.origin}{PATH}/"
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url))
    search(page, "blue")
    expect(card(page, 0).locator("img")).to_have_js_property("complete", True)
    assert card(page, 0).locator("img").evaluate("picture => picture.naturalWidth") > 0
    card(page, 0).locator("a").click()
    expect(page.locator("#box-picture")).to_be_visible()
    assert page.locator("#box-open").evaluate("link => link.href").startswith(f"{root}api/v1/images/")
    page.keyboard.press("Escape")
    page.locator("#file").set_input_files(photos / "loose.png")
    expect(page.locator("#term-list .chip").last).to_contain_text("loose.png")
    wait_for_results(page)
    page.reload()
    wait_for_results(page)
    expect(page.locator("#term-list .chip")).to_have_count(2)
    page.locator("#home").click()
    expect(page).to_have_url(root)
    assert len(elsewhere) > 10
    assert [url for url in elsewhere if not url.startswith((root, "blob:", "data:"))] == []


def test_below_a_path_and_by_tls_the_page_does_all_that_it_does_elsewhere(
    open_page: Callable[[str], Page], drawn_store: Path, tmp_path: Path, photos: Path, watch: Watch
) -> None:
    proxy = a_proxy()
    url = f"{proxy.origin}{PATH}"
    with (
        imret_serve(drawn_store, tmp_path, "--public-url", url, token=TOKEN) as server,
        running(proxy, tmp_path, upstream=int(server.rpartition(":")[2])),
    ):
        page = open_page(f"{url}/?q=red")
        _log_in(page, proxy)
        _use(page, proxy, photos)
        # A session that has ended leads to the login, and from there back to what was looked at.
        watch.allow("status of 401")
        page.context.clear_cookies()
        page.goto(f"{url}/?q=red")
        _log_in(page, proxy)
        page.close()  # before the proxy ends, which what is still loading would complain of


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_through_a_proxy_that_drops_the_port_pictures_are_sent_and_the_login_passes(
    open_page: Callable[[str], Page], drawn_store: Path, tmp_path: Path, photos: Path, scheme: str
) -> None:
    """Without any option: to localhost and by TLS, Chromium says itself that the page is the server's own."""
    proxy = a_proxy(scheme=scheme)
    site = documented("nginx").replace("$http_host", "$host")
    if scheme == "http":
        site = "\n".join(line for line in site.replace("8443 ssl", "8443").splitlines() if "ssl_" not in line)
    with (
        imret_serve(drawn_store, tmp_path, token=TOKEN) as server,
        running(proxy, tmp_path, upstream=int(server.rpartition(":")[2]), site=site),
    ):
        page = open_page(f"{proxy.origin}{PATH}/?q=red")
        _log_in(page, proxy)
        _use(page, proxy, photos)
        page.close()
