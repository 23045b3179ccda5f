"""Which store a command means that names none: the one that holds what it asks for."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from imret.cli.main import cli
from imret.settings import store_dir
from imret.store import Identity, open_store, resolve_address
from imret.store.server.store import ServerStore
from tests.fakes.models import share_known_models
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS
from tests.fakes.qdrant_over_http import QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(rule) for rule in LOCAL_MODE_WARNINGS]

MODEL = Identity("ViT-tiny", "a1" * 32, 8)


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[QdrantOverHTTP]:
    """A Qdrant at the port where a local one is looked for."""
    with QdrantOverHTTP() as qdrant:
        monkeypatch.setattr("imret.store.address.LOCAL_SERVER", qdrant.url)
        yield qdrant


def fill(address: str, *names: str) -> None:
    with open_store(address) as store:
        for name in names:
            store.open_version(name, MODEL).close()
            store.promote(name, MODEL)


@pytest.mark.parametrize(
    ("embedded", "server", "asked", "expected"),
    [
        ((), (), "photos", "server"),
        (("photos",), (), "photos", "embedded"),
        (("photos",), (), None, "embedded"),
        (("photos",), (), "birds", "embedded"),  # also to make one: the other holds none of imret's
        ((), ("photos",), "photos", "server"),
        (("photos",), ("birds",), "photos", "embedded"),
        (("photos",), ("birds",), "birds", "server"),
        (("photos",), ("birds",), "trees", "server"),
        (("photos",), ("birds",), None, "server"),
        (("photos",), ("photos",), "photos", "server"),
    ],
)
def test_the_store_that_holds_the_collection_is_found(
    local: QdrantOverHTTP, embedded: tuple[str, ...], server: tuple[str, ...], asked: str, expected: str
) -> None:
    local.engine.create_collection("of another program", vectors_config={})
    if embedded:
        fill(str(store_dir()), *embedded)
    if server:
        fill(local.url, *server)
    address, reason = resolve_address(collection=asked)
    assert address == {"embedded": str(store_dir()), "server": local.url}[expected]
    assert "\n" not in reason
    if expected == "embedded":
        said = f"it holds {asked!r}, and the Qdrant" if server else "holds no collection of imret's"
        assert reason.startswith(f"store {store_dir()} (embedded; ")
        assert said in reason


def test_what_an_ingest_has_begun_on_the_server_is_gone_on_with_there(local: QdrantOverHTTP) -> None:
    fill(str(store_dir()), "photos")
    with ServerStore(local.url) as store:
        store.open_version("birds", MODEL).close()  # cut short before it was live
    assert resolve_address(collection="birds")[0] == local.url
    assert resolve_address(collection="photos")[0] == str(store_dir())


def test_a_collection_that_was_renamed_on_the_server_is_found_by_its_name(local: QdrantOverHTTP) -> None:
    fill(str(store_dir()), "old")
    fill(local.url, "old")
    with ServerStore(local.url) as store:
        store.rename("old", "new")
    assert resolve_address(collection="new")[0] == local.url
    assert resolve_address(collection="old")[0] == str(store_dir())


@pytest.mark.parametrize("answer", [401, 500, 0, (200, '["no", "Qdrant"]')])
def test_a_server_that_does_not_say_what_it_holds_gives_way_to_what_is_known_to_be_there(
    local: QdrantOverHTTP, answer: int | tuple[int, str]
) -> None:
    fill(str(store_dir()), "photos")
    fill(local.url, "photos", "birds")
    local.fail = lambda method, path: None if path == "/" else answer
    address, reason = resolve_address(collection="photos")
    assert (address, "does not say what it holds" in reason) == (str(store_dir()), True)
    assert resolve_address(collection="birds")[0] == local.url


def test_the_key_is_shown_to_a_server_that_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fill(str(store_dir()), "photos")
    with QdrantOverHTTP(api_key="a key") as qdrant:
        monkeypatch.setattr("imret.store.address.LOCAL_SERVER", qdrant.url)
        assert "does not say" in resolve_address(collection="photos")[1]
        monkeypatch.setenv("QDRANT_API_KEY", "a key")
        fill(qdrant.url, "birds")
        assert resolve_address(collection="birds")[0] == qdrant.url
        assert "it holds 'photos'" in resolve_address(collection="photos")[1]


@pytest.mark.parametrize("at", ["/", "/aliases", "/collections"])
def test_a_server_that_hangs_costs_a_moment(local: QdrantOverHTTP, at: str) -> None:
    fill(str(store_dir()), "photos")
    go_on = threading.Event()

    def hang(method: str, path: str) -> None:
        if path == at:
            go_on.wait(20)

    local.fail = hang
    started = time.monotonic()
    assert resolve_address(collection="photos")[0] == str(store_dir())
    assert time.monotonic() - started < 4
    go_on.set()


def test_a_server_that_answers_letter_by_letter_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as slow:
        monkeypatch.setattr("imret.store.address.LOCAL_SERVER", f"http://127.0.0.1:{slow.getsockname()[1]}")

        connections: list[socket.socket] = []

        def trickle() -> None:
            for _ in range(2):  # the first only looks whether somebody listens
                connection, _ = slow.accept()
                connections.append(connection)
            with connections[0], connections[1]:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(100):
                    time.sleep(0.1)
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        started = time.monotonic()
        assert resolve_address()[0] == str(store_dir())
        assert time.monotonic() - started < 4
        thread.join()


def test_an_address_that_is_named_is_the_one(
    local: QdrantOverHTTP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(str(store_dir()), "photos")
    assert resolve_address(local.url, collection="photos") == (local.url, "")
    monkeypatch.setenv("IMRET_DB", local.url)
    assert resolve_address(collection="photos")[0] == local.url


def test_every_command_works_on_the_store_that_holds_the_collection(
    local: QdrantOverHTTP, tmp_path: Path, random_model: Path
) -> None:
    photos = tmp_path / "photos"
    for seed in range(3):
        draw_picture(photos / "fungi" / f"{seed}.png", seed=seed)
    share_known_models(tmp_path / "home")

    def imret(*arguments: str) -> str:
        done = CliRunner().invoke(cli, [*arguments])
        assert done.exit_code == 0, done.output + str(done.exception)
        return str(done.output)

    fill(local.url, "birds")  # so that neither store is without imret's
    model = ["--model", str(random_model)]
    imret("ingest", str(photos), *model, "--db", str(store_dir()))
    draw_picture(photos / "fungi" / "3.png", seed=3)
    why = f"store {store_dir()} (embedded; it holds 'photos', and the Qdrant at {local.url} does not)"
    assert why in imret("ingest", str(photos))
    assert why in imret("search", "owl", "--format", "paths")
    assert why in imret("collections", "show", "photos")
    assert "     4  present" in imret("sources")
    assert why in imret("collections", "rename", "photos", "mine")
    assert "mine" in imret("info", "--collection", "mine")
    assert imret("collections", "delete", "mine", "--yes").count("deleted mine") == 1
    assert local.engine.collection_exists(f"birds.{MODEL.version}")
    assert os.listdir(store_dir()) == ["imret-store.json"]
