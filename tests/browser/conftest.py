"""A real Chromium before a real `imret serve` over drawn pictures; and a watch on what it complains of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.canvas import CHROMIUM_NAMES, find_chromium
from tests.fakes.models import share_known_models
from tests.fakes.pictures import draw_picture

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PICTURES = 150
HOSTILE_CATEGORY = "<svg onload=alert('category')>"
HOSTILE_NAME = '"><img src=x onerror=alert(1)>.png'

SIZES: dict[str, dict[str, Any]] = {
    "desktop": {"viewport": {"width": 1440, "height": 900}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "has_touch": True,
        "is_mobile": True,
    },
}
both_sizes = pytest.mark.parametrize("size", SIZES)

# Breaches of the Content-Security-Policy become errors of the console, wherever they happen; and so do shifts
# of the layout a number that a test can read.
_WATCH = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy: ${event.violatedDirective}`);
});
window.shifted = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    for (const { node, previousRect, currentRect } of entry.sources) {
      const card = node?.nodeType === 1 ? node.closest(".card") : null;
      if (card) window.shifted.push([card.textContent, previousRect.y, currentRect.y]);
    }
  }
}).observe({ type: "layout-shift", buffered: true });
"""


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of drawn pictures: categories, one with a name that would be script, and none."""
    root = tmp_path_factory.mktemp("photos")
    sizes = ((64, 48), (48, 64), (100, 40), (64, 64), (60, 80))
    for seed in range(PICTURES):
        category = "fungi" if seed < 80 else "aves" if seed < 130 else HOSTILE_CATEGORY
        file = root / category / f"{seed:03d}.png"
        draw_picture(file, seed=seed, size=sizes[seed % len(sizes)])
        os.utime(file, (1_600_000_000 + 86_400 * ((seed * 37) % PICTURES),) * 2)
    draw_picture(root / "fungi" / HOSTILE_NAME, seed=1000)
    draw_picture(root / "loose.png", seed=1001)
    twin = draw_picture(root / "twins" / "one.png", seed=1002)
    for copy in ("two.png", "three.png"):
        shutil.copy(twin, twin.with_name(copy))
    return root


@pytest.fixture(scope="package")
def drawn_store(tmp_path_factory: pytest.TempPathFactory, photos: Path, random_model: Path) -> Path:
    """The folder of a store with the collections photos and second."""
    import imret

    folder = tmp_path_factory.mktemp("served")
    second = tmp_path_factory.mktemp("second")
    for seed in range(3):
        draw_picture(second / f"other {seed}.png", seed=2000 + seed)
    encoder = imret.Encoder(str(random_model), device="cpu")
    with imret.open_store(folder / "store") as store:
        imret.ingest(store, [imret.FolderSource(photos)], encoder=encoder)
        imret.ingest(store, [imret.FolderSource(second)], encoder=encoder, collection="second")
    return folder / "store"


@contextmanager
def imret_serve(store: Path, folder: Path, *options: str, token: str | None = None) -> Iterator[str]:
    """Run `imret serve` as a process of its own, at a free port, and give its URL.

    Args:
        store: Its store.
        folder: For its settings and its log.
        options: More of the command.
        token: IMRET_TOKEN.
    """
    pytest.importorskip("fastapi", reason="needs the extra web: pip install 'imret[web]'")
    log = folder / "log"
    environment = {
        **os.environ,
        "IMRET_HOME": str(share_known_models(folder / "home")),
        "PYTHONUNBUFFERED": "1",
    }
    for name in ("IMRET_TOKEN", "IMRET_DB"):
        environment.pop(name, None)
    if token is not None:
        environment["IMRET_TOKEN"] = token
    command = [sys.executable, "-m", "imret", "serve", "--port", "0", "--preload", "--db", str(store)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield _url_in(log, process)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, drawn_store: Path) -> Iterator[str]:
    """The URL of `imret serve` over the drawn store."""
    with imret_serve(drawn_store, tmp_path_factory.mktemp("server")) as url:
        yield url


def _url_in(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = re.search(r"http://\S+", log.read_text())
        if found:
            return found[0]
        assert process.poll() is None, f"imret serve ended:\n{log.read_text()}"
        time.sleep(0.05)
    raise AssertionError(f"imret serve did not start in two minutes:\n{log.read_text()}")


# Of the package, not of the session: while Playwright lives, its event loop runs in this thread, and the
# tests after it need one of their own.
@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """A headless Chromium, or a loud skip."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install -e '.[dev]' (the page is not tested)"
    )
    path = find_chromium()
    if path is None:
        pytest.skip(
            f"no browser ({', '.join(CHROMIUM_NAMES)}): apt install chromium (the page is not tested)"
        )
    sync_api.expect.set_options(timeout=15_000)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watch:
    """What a browser complains of: errors of the console and of scripts, breaches of the policy, dialogs."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.allowed: list[str] = []

    def listen(self, page: Page) -> None:
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.heard.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (self.heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.heard.append(f"{kind}: {text}")

    def allow(self, pattern: str) -> None:
        """Expect complaints such as that a resource came with the status 503."""
        self.allowed.append(pattern)

    @property
    def complaints(self) -> list[str]:
        return [text for text in self.heard if not any(re.search(pattern, text) for pattern in self.allowed)]


Visit = Callable[..., "Page"]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Fails a test in which the browser complained of anything that was not expected."""
    watch = Watch()
    yield watch
    assert watch.complaints == []


@pytest.fixture
def visit(chromium: Browser, server: str, watch: Watch) -> Iterator[Visit]:
    """Open the page at a path, in a browser without a past: `visit("/?q=dog", size="phone")`."""
    contexts = []

    def visit(path: str = "/", *, size: str = "desktop", before: Any = None, **options: Any) -> Page:
        context = chromium.new_context(base_url=server, locale="en-GB", **{**SIZES[size], **options})
        contexts.append(context)
        context.set_default_timeout(15_000)
        context.add_init_script(_WATCH)
        page = context.new_page()
        watch.listen(page)
        if before is not None:
            before(page)
        page.goto(path)
        return page

    yield visit
    for context in contexts:
        context.close()
