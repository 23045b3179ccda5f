"""`imret serve` behind a real nginx and a real Caddy: below a path, stripped or not, by TLS and without."""

from __future__ import annotations

import io
import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin
from urllib.request import HTTPCookieProcessor, HTTPSHandler, Request, build_opener

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="needs the extra web")

from imret import Encoder
from imret.store import open_store
from imret.web.app import create_app
from imret.web.images.files import ImageFiles
from imret.web.pool.collections import CollectionPool
from imret.web.security.public_address import parse_public_address
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture
from tests.fakes.proxies import PATH, Proxy, a_proxy, documented, running
from tests.fakes.web_server import serving

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[CollectionPool]:
    folder = tmp_path_factory.mktemp("behind")
    for seed in range(6):
        draw_picture(folder / "photos" / "fungi" / f"{seed}.png", seed=seed)
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    with open_store(folder / "db") as store:
        ingest(store, [FolderSource(folder / "photos")], encoder=encoder)
    pool = CollectionPool(lambda: open_store(folder / "db", create=False), device="cpu", precision="fp32")
    yield pool
    pool.close()


class Browser:
    """As much of a browser as it takes: cookies by their path, relative addresses, an Origin to posts."""

    def __init__(self, page: str) -> None:
        self.page = page
        self.origin = re.match(r"https?://[^/]+", page)[0]  # type: ignore[index]
        trusting = ssl._create_unverified_context()
        self.cookies = CookieJar()
        self._opener = build_opener(HTTPSHandler(context=trusting), HTTPCookieProcessor(self.cookies))

    def ask(self, address: str, body: bytes | None = None, **headers: str) -> tuple[int, str, bytes]:
        """Return status, where it led, and the body; what is posted names its Origin, as browsers do."""
        if body is not None:
            headers = {"Origin": self.origin} | headers
        request = Request(urljoin(self.page, address), body, headers)
        try:
            with self._opener.open(request, timeout=30) as answer:
                return answer.status, answer.url, answer.read()
        except HTTPError as refused:
            with refused:
                return refused.code, refused.url, refused.read()

    def answer(self, address: str) -> Any:
        status, _, body = self.ask(address)
        assert status == 200, body
        return json.loads(body)


@contextmanager
def behind(
    proxy: Proxy, pool: CollectionPool, folder: Path, *, public_url: str | None, site: str | None = None
) -> Iterator[Browser]:
    """Serve the pool behind a proxy, with a token."""
    app = create_app(
        pool,
        default="photos",
        image_files=ImageFiles(folder / "thumbnails"),
        host="127.0.0.1",
        port=8750,
        token=TOKEN,
        public=parse_public_address(public_url, None),
    )
    with serving(app) as server, running(proxy, folder, upstream=server.port, site=site):
        yield Browser(f"{proxy.origin}{PATH}/")


def everything_works(browser: Browser) -> None:
    """Log in by the form, then take what the page takes: files, searches, thumbnails, an upload."""
    where = urljoin(browser.page, "./")
    status, login, _ = browser.ask("./?q=red")
    assert (status, login.partition("?")[0]) == (200, f"{where}login")
    status, _, _ = browser.ask(login, urlencode({"token": "wrong" * 4}).encode())
    assert status == 401
    status, landed, page = browser.ask(login, urlencode({"token": TOKEN}).encode())
    assert (status, landed) == (200, f"{where}?q=red")
    (cookie,) = browser.cookies
    assert cookie.path == PATH
    assert cookie.secure == browser.origin.startswith("https:")
    files = re.findall(rb'(?:src|href)="([^"#]+)"', page)
    assert len(files) == 4
    for file in files:
        assert browser.ask(urljoin(landed, file.decode()))[0] == 200
    found = browser.answer("api/v1/search?q=red&limit=3")
    assert len(found["hits"]) == 3
    status, _, thumbnail = browser.ask(f"api/v1/thumbnails/{found['hits'][0]['id']}?size=320")
    assert status == 200
    with Image.open(io.BytesIO(thumbnail)) as picture:
        assert picture.format == "JPEG"
    form = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\n%b\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    status, _, answer = browser.ask("api/v1/search", form % thumbnail, **kind)
    assert status == 200, answer
    assert json.loads(answer)["hits"]
    stranger = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert browser.ask("api/v1/search", form % thumbnail, **kind, **stranger)[0] == 403
    status, left, _ = browser.ask("logout", b"")
    assert (status, left) == (200, f"{where}login")
    assert not list(browser.cookies)


@pytest.mark.parametrize("program", ["nginx", "caddy"])
def test_below_a_path_everything_works_with_the_configuration_of_the_docs(
    pool: CollectionPool, tmp_path: Path, program: str
) -> None:
    proxy = a_proxy(program)
    with behind(proxy, pool, tmp_path, public_url=f"{proxy.origin}{PATH}") as browser:
        status, page, _ = browser.ask(PATH)  # without the slash
        assert (status, page.partition("?")[0]) == (200, f"{browser.page}login")
        everything_works(browser)
        assert not list(browser.cookies)


PLAIN = "server {{ listen 8443; location /photos/ {{ proxy_pass {upstream}; {headers} }} }}"
STRIPPED, LEFT = "http://127.0.0.1:8750/", "http://127.0.0.1:8750"


@pytest.mark.parametrize("upstream", [STRIPPED, LEFT], ids=["stripped", "left"])
@pytest.mark.parametrize(
    "headers", ["", "proxy_set_header Host $host;", "proxy_set_header Host $host:$server_port;"]
)
def test_the_public_url_is_all_it_takes_whatever_nginx_makes_of_host_and_path(
    pool: CollectionPool, tmp_path: Path, upstream: str, headers: str
) -> None:
    proxy = a_proxy(scheme="http")
    site = PLAIN.format(upstream=upstream, headers=headers)
    with behind(proxy, pool, tmp_path, public_url=f"{proxy.origin}{PATH}", site=site) as browser:
        everything_works(browser)
        _, _, document = browser.ask("api/v1/openapi.json", Authorization=f"Bearer {TOKEN}")
        assert json.loads(document)["servers"] == [{"url": PATH}]


def test_a_proxy_that_strips_the_path_and_passes_host_needs_no_option(
    pool: CollectionPool, tmp_path: Path
) -> None:
    site = PLAIN.format(upstream=STRIPPED, headers="proxy_set_header Host $http_host;")
    with behind(a_proxy(scheme="http"), pool, tmp_path, public_url=None, site=site) as browser:
        everything_works(browser)


def test_by_https_the_browsers_own_word_makes_up_for_a_host_without_port(
    pool: CollectionPool, tmp_path: Path
) -> None:
    proxy = a_proxy()
    site = documented("nginx").replace("$http_host", "$host")
    with behind(proxy, pool, tmp_path, public_url=None, site=site) as browser:
        login = f"{browser.page}login"
        body = urlencode({"token": TOKEN}).encode()
        status, _, answer = browser.ask(login, body)
        assert (status, b"--public-url " + proxy.origin.encode() in answer) == (403, True)
        status, landed, _ = browser.ask(login, body, **{"Sec-Fetch-Site": "same-origin"})
        assert (status, landed) == (200, browser.page)
