"""`imret serve` as a person runs it: what it says, how it ends, and what an ingest beside it changes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from imret import Encoder
from imret.cli.main import cli
from imret.cli.serve import hide_queries
from imret.errors import ImretError
from imret.models.fast.tokenizer import TextTruncated
from imret.store import open_store
from imret.web.server import GRACE_S
from ingest import pipeline
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import QdrantOverHTTP

IMRET = (sys.executable, "-m", "imret")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(12):
        draw_picture(folder / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    return folder


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, photos: Path, random_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("filled") / "db"
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    with open_store(str(folder)) as store:
        pipeline.ingest(store, [FolderSource(photos)], encoder=encoder)
    return folder


@pytest.fixture
def db(tmp_path: Path, filled: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "db"))


def ingest(db: str | Path, *arguments: str | Path) -> None:
    subprocess.run([*IMRET, "ingest", *map(str, arguments), "--db", str(db)], check=True, capture_output=True)


class Process:
    """A running server, and what it has said so far."""

    def __init__(self, *arguments: str | Path) -> None:
        self._process = subprocess.Popen(
            [*IMRET, "serve", "--port", "0", *map(str, arguments)], stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self.port = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.said.append(line.rstrip())
            if found := re.search(r"the page is at http://.*:(\d+)", line):
                self.port = int(found[1])

    def until(self, true: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not true():
            assert time.monotonic() < deadline, self.said
            assert self._process.poll() is None, self.said
            time.sleep(0.02)

    def get(self, target: str, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            is_json = "json" in answer.headers.get("content-type", "")
            return answer.status, json.loads(body) if is_json else body
        finally:
            connection.close()

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        if self._process.poll() is None:
            self._process.send_signal(with_signal)
        code = self._process.wait(30)
        self._reader.join()
        self._process.stderr.close()  # type: ignore[union-attr]
        return code


@contextmanager
def serving(*arguments: str | Path) -> Iterator[Process]:
    process = Process(*arguments)
    try:
        process.until(lambda: process.port)
        yield process
    finally:
        process.end()


def test_it_says_what_it_serves_answers_and_ends_in_peace(db: Path, random_model: Path) -> None:
    with serving("--db", db, "--preload") as server:
        assert server.said[0] == f"store {db} (embedded)"
        assert server.said[1] == f"photos: 12 pictures, model {random_model}"
        assert re.match(r"model loaded on cpu in \w+ in [0-9.]+ s", server.said[2])
        assert server.get("/readyz") == (200, b"ready\n")
        status, page = server.get("/")
        assert status == 200
        assert b"<title>imret" in page
        status, answer = server.get("/api/v1/search?q=owl&limit=3")
        assert (status, len(answer["hits"])) == (200, 3)
        assert server.end(signal.SIGINT) == 0
        assert server.said[-1] == "imret serve has ended"
    with open_store(str(db)) as store:  # nobody holds it any more
        assert store.open("photos").count() == 12


def test_without_a_folder_to_write_to_it_serves_all_the_same(
    db: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRET_HOME", "/dev/null/nowhere")
    with serving("--db", db, "--model", random_model) as server:
        status, answer = server.get("/api/v1/search?q=owl&limit=3")
        assert (status, len(answer["hits"])) == (200, 3)
        assert server.get(f"/api/v1/thumbnails/{answer['hits'][0]['id']}")[0] == 200
        said = "\n".join(server.said)
        assert said.count("cannot note in '/dev/null/nowhere/running-") == 1
        assert said.count("It serves all the same") == 1
    search = [*IMRET, "search", "owl", "--db", str(db), "--model", str(random_model), "--format", "paths"]
    done = subprocess.run(search, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 10)
    assert done.stderr.count("cannot") == 1


def test_a_store_that_may_only_be_read_is_served(db: Path, random_model: Path) -> None:
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root, to mount a folder so that it may only be read")
    mounted = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 77; exec "$@"'
    serve = [*IMRET, "serve", "--port", "0", "--db", str(db), "--model", str(random_model)]
    process = subprocess.Popen(
        ["unshare", "-m", "bash", "-c", mounted, str(db), *serve], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"the page is at (http://\S+)", line):
                break
        else:
            pytest.skip("nothing can be mounted here")
        for _ in range(2):
            with urllib.request.urlopen(f"{found[1]}/api/v1/search?q=owl&limit=3", timeout=60) as answer:
                assert len(json.load(answer)["hits"]) == 3
    finally:
        process.send_signal(signal.SIGINT)
        process.stderr.close()
        process.wait(30)


def test_requests_that_run_are_answered_before_it_ends(db: Path) -> None:
    with serving("--db", db) as server:
        # The first search loads the model, so it still runs when the signal comes.
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", "/api/v1/search?q=a+red+owl")
        assert server.get("/healthz")[0] == 200  # came after it, so the search is at work
        asked = time.monotonic()
        assert server.end() == 0
        waited = time.monotonic() - asked
        # On a very busy machine the model is not loaded in the time that the end waits for requests.
        assert connection.getresponse().status == (200 if waited < GRACE_S else 503)
        connection.close()


@pytest.mark.parametrize("engine", ["embedded", "server"])
def test_a_new_version_is_taken_up_without_a_failed_request(
    engine: str, request: pytest.FixtureRequest, photos: Path, random_model: Path, tmp_path: Path
) -> None:
    other = write_random_model(tmp_path / "other", seed=1)
    with contextlib.ExitStack() as ending:
        if engine == "embedded":
            address = str(request.getfixturevalue("db"))
        else:  # which removes the old version as soon as the new one is live, whoever reads it
            address = ending.enter_context(QdrantOverHTTP()).url
            ingest(address, photos, "--model", str(random_model))
        server = ending.enter_context(serving("--db", address, "--preload"))
        stop = threading.Event()
        failures: list[Any] = []
        models: list[str] = []

        def client(number: int) -> None:
            i = 0
            while not stop.is_set():
                i += 1
                status, answer = server.get(f"/api/v1/search?q=text:{number}+{i}")
                if status != 200 or len(answer["hits"]) != 10:
                    failures.append(answer)
                models.append(answer.get("model", ""))

        def browser() -> None:
            while not stop.is_set():
                status, answer = server.get("/api/v1/images?limit=3")
                if status != 200 or answer["images"] != 12:
                    failures.append(answer)
                    continue
                id = answer["pictures"][0]["id"]
                for target in (
                    f"/api/v1/similar/{id}",
                    f"/api/v1/thumbnails/{id}",
                    "/api/v1/categories",
                ):
                    status, answer = server.get(target)
                    if status != 200:
                        failures.append(answer)

        clients = [threading.Thread(target=client, args=(number,)) for number in range(3)]
        clients.append(threading.Thread(target=browser))
        for thread in clients:
            thread.start()
        ingest(address, photos, "--model", str(other), "--rebuild")  # another process, the same store
        server.until(lambda: models and models[-1] == str(other))
        stop.set()
        for thread in clients:
            thread.join()
        assert failures == []
        assert set(models) == {str(random_model), str(other)}


def test_pictures_that_an_ingest_adds_are_found_while_it_runs(db: Path, photos: Path, tmp_path: Path) -> None:
    new = draw_picture(tmp_path / "more" / "aves" / "new.png", seed=77)
    with serving("--db", db) as server:
        ingest(db, tmp_path / "more")
        query = quote("stored:aves/new.png")
        status, answer = server.get(f"/api/v1/search?q={query}&include_self=true&limit=1")
        assert (status, answer["hits"][0]["path"]) == (200, str(new))


def test_what_another_process_fills_is_served_and_stays_when_that_ends(db: Path) -> None:
    with open_store(str(db), share=True) as store:  # as `imret ingest` does
        filled = store.open("photos")
        filled.delete([next(filled.scan(batch_size=1))[0].id])
        with serving("--db", db) as server:
            assert server.get("/api/v1/images")[1]["images"] == 11
            store.close()
            assert server.get("/api/v1/images")[1]["images"] == 11


def test_a_collection_that_is_not_there_yet_is_said_and_taken_up_when_it_comes(
    tmp_path: Path, photos: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRET_HOME", str(tmp_path / "home"))
    with serving() as server:
        assert any(line.startswith("Warning: no collection 'photos'") for line in server.said)
        status, answer = server.get("/api/v1/images")
        assert status == 404
        assert "imret ingest FOLDER" in answer["detail"]
        assert server.get("/readyz")[0] == 503
        ingest(tmp_path / "home" / "store", photos, "--model", str(random_model))
        assert server.get("/api/v1/images")[1]["images"] == 12
        assert server.get("/readyz")[0] == 200


def test_a_token_is_asked_of_everybody_but_the_command_line_which_knows_it(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "correct horse battery staple".replace(" ", "-")
    (tmp_path / "token").write_text(token + "\n")
    with serving("--db", db, "--host", "0.0.0.0", "--token-file", tmp_path / "token") as server:
        assert server.get("/api/v1/search?q=owl")[0] == 401
        assert server.get("/api/v1/search?q=owl", Authorization="Bearer wrong-horse-battery")[0] == 401
        assert server.get("/metrics")[0] == 401
        assert server.get("/api/v1/search?q=owl", Authorization=f"Bearer {token}")[0] == 200
        assert server.get("/healthz")[0] == 200
        search = subprocess.run(
            [*IMRET, "search", "owl", "--db", str(db), "--format", "json"], capture_output=True, text=True
        )
        assert len(search.stdout.splitlines()) == 10
        assert "answered by imret serve" in search.stderr


def test_only_pictures_below_the_roots_are_shown(db: Path, photos: Path) -> None:
    with serving("--db", db, "--root", photos / "aves") as server:
        pictures = server.get("/api/v1/images")[1]["pictures"]
        for picture in pictures:
            expected = 200 if picture["category"] == "aves" else 422
            assert server.get(f"/api/v1/images/{picture['id']}")[0] == expected
            assert server.get(f"/api/v1/thumbnails/{picture['id']}")[0] == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["--host", "0.0.0.0"], {}, "IMRET_TOKEN"),
        (["--host", "0.0.0.0"], {"IMRET_TOKEN": "short"}, "has 5 characters, and needs at least 16"),
        (["--token-file", "nowhere"], {}, "cannot read the token in 'nowhere': No such file"),
        (["--host", "no.such.host.invalid"], {"IMRET_TOKEN": "x" * 20}, "no address 'no.such.host.invalid'"),
        (["--root", "nowhere"], {}, "--root 'nowhere' is no folder"),
        (["--db", "nowhere"], {}, "there is no store at"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(
    arguments: list[str],
    environment: dict[str, str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner(env=environment).invoke(cli, ["serve", "--port", "0", *arguments])
    assert isinstance(result.exception, ImretError)
    assert says in str(result.exception)


def test_a_port_that_is_taken_is_said_with_the_next(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli, ["serve", "--port", str(port)])
        assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in str(result.exception)
        assert f"--port {port + 1}" in str(result.exception)


@pytest.mark.parametrize("missing", ["fastapi", "prometheus_client", "python_multipart", "uvicorn"])
def test_without_the_web_extra_it_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    result = CliRunner().invoke(cli, ["serve"])
    assert isinstance(result.exception, ImretError)
    assert str(result.exception) == f"imret serve needs {missing}: pip install 'imret[web]'"


def test_everything_else_works_without_the_web_extra() -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        "extra = ('fastapi', 'starlette', 'uvicorn', 'python_multipart', 'pydantic')\n"
        "sys.modules.update(dict.fromkeys((*extra[:-1], 'prometheus_client')))\n"
        "import imret\n"
        "names = [module.name for module in pkgutil.walk_packages(imret.__path__, 'imret.')]\n"
        "apart = [name for name in names if not name.startswith('imret.web')]\n"
        "apart += ['ingest.cli', 'finetune.cli']\n"
        "for name in apart: importlib.import_module(name)\n"
        "from imret.cli.main import main\n"
        "sys.argv = ['imret', '--help']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


def test_help_is_instant_and_loads_no_server() -> None:
    code = "import sys; from imret.cli.main import main; sys.argv = ['imret', 'serve', '--help']\n"
    code += "try: main()\nexcept SystemExit: print({'fastapi', 'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.endswith("set()\n"), done.stderr


def test_no_query_is_printed_whatever_the_warning_of_it_says() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        hide_queries()
        warnings.warn("my secret wish is too long, in whatever words", TextTruncated, stacklevel=1)
        warnings.warn("another thing", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in shown] == ["another thing"]
