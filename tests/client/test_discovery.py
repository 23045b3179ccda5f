"""The record by which a search finds the server that runs over its store."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from imret.client import discovery
from imret.client.discovery import canonical_address, find_server, register
from imret.errors import DataError
from imret.models.known_models import FOLDER

URL = "http://127.0.0.1:8750"

# A server of its own process, which says when it is registered and lives until it is killed.
SERVER = """
import sys
from imret.client.discovery import register
with register(url=sys.argv[1], address=sys.argv[2], token="secret"):
    print("registered", flush=True)
    sys.stdin.read()
"""


def serve(url: str, address: str) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, url, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "registered\n"
    return server


def folder() -> Path:
    (child,) = set(Path(os.environ["IMRET_HOME"]).iterdir()) - {Path(os.environ["IMRET_HOME"], FOLDER)}
    return child


def notes() -> list[Path]:
    return sorted(folder().iterdir())


def test_a_server_is_found_while_it_runs_and_not_after(tmp_path: Path) -> None:
    assert find_server(tmp_path) is None
    with register(url=URL, address=tmp_path, token="secret") as said:
        server = find_server(tmp_path)
        assert server == said
        assert (server.url, server.address, server.pid, server.token) == (
            URL,
            str(tmp_path),
            os.getpid(),
            "secret",
        )
        assert "secret" not in repr(server)
        assert find_server(tmp_path / "other") is None
    assert find_server(tmp_path) is None
    assert notes() == []


def test_a_note_goes_when_the_server_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), register(url=URL, address=tmp_path):
        raise KeyboardInterrupt
    assert notes() == []


def test_a_note_is_for_this_user_alone(tmp_path: Path) -> None:
    with register(url=URL, address=tmp_path, token="secret"):
        assert stat.S_IMODE(folder().stat().st_mode) == 0o700
        assert [stat.S_IMODE(note.stat().st_mode) for note in notes()] == [0o600]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_note_that_others_can_read_or_write_is_passed_over(tmp_path: Path, mode: int) -> None:
    with register(url=URL, address=tmp_path):
        assert find_server(tmp_path) is not None
        notes()[0].chmod(mode)
        assert find_server(tmp_path) is None


def test_a_folder_that_others_can_enter_is_passed_over_and_made_private_by_the_next_server(
    tmp_path: Path,
) -> None:
    with register(url=URL, address=tmp_path):
        folder().chmod(0o755)
        assert find_server(tmp_path) is None
        with register(url=URL, address=tmp_path):
            assert stat.S_IMODE(folder().stat().st_mode) == 0o700
            assert find_server(tmp_path) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_note_and_a_folder_of_another_user_are_passed_over(tmp_path: Path) -> None:
    with register(url=URL, address=tmp_path):
        os.chown(notes()[0], 12345, -1)
        assert find_server(tmp_path) is None
        os.chown(notes()[0], 0, -1)
        assert find_server(tmp_path) is not None
        os.chown(folder(), 12345, -1)
        assert find_server(tmp_path) is None
        with (
            pytest.raises(DataError, match=r"belongs to another user\. Set IMRET_HOME"),
            register(url=URL, address=tmp_path),
        ):
            pass


def test_a_server_that_was_killed_is_not_found_and_its_note_goes_with_the_next(tmp_path: Path) -> None:
    server = serve(URL, str(tmp_path))
    found = find_server(tmp_path)
    assert found is not None
    assert found.pid == server.pid
    server.send_signal(signal.SIGKILL)
    server.communicate()
    (left,) = notes()
    assert find_server(tmp_path) is None
    with register(url="http://127.0.0.1:8751", address=tmp_path / "other"):
        assert not left.exists()
        assert find_server(tmp_path) is None
        assert len(notes()) == 1


def test_starting_a_server_leaves_the_notes_of_others_that_live(tmp_path: Path) -> None:
    server = serve(URL, str(tmp_path))
    with register(url="http://127.0.0.1:8751", address=tmp_path / "other"):
        found = find_server(tmp_path)
        assert found is not None
        assert found.pid == server.pid
    server.communicate()


def test_of_two_servers_the_newer_counts_and_then_the_older_again(tmp_path: Path) -> None:
    with register(url=URL, address=tmp_path):
        with register(url="http://127.0.0.1:8751", address=tmp_path):
            newer = find_server(tmp_path)
            assert newer is not None
            assert newer.url == "http://127.0.0.1:8751"
        older = find_server(tmp_path)
        assert older is not None
        assert older.url == URL


def test_a_store_has_one_server_however_it_is_spelt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "link").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with register(url=URL, address="store"):
        for name in ("store/", "./store", str(store), "link", "~/store", store / ".." / "store"):
            assert find_server(name) is not None, name
        assert find_server("stores") is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("http://localhost", "http://localhost:6333"),
        ("http://LocalHost:6333/", "http://localhost:6333"),
        ("HTTPS://example.org/qdrant/", "https://example.org:443/qdrant"),
        ("http://example.org/a/b", "http://example.org:80/a/b"),
        ("http://example.org:6333/qdrant", "http://example.org:6333/qdrant"),
        ("https://example.org/", "https://example.org:6333"),
        ("http://[::1]", "http://[::1]:6333"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_url_has_one_spelling(typed: str, meant: str) -> None:
    assert canonical_address(typed) == meant
    assert canonical_address(meant) == meant


def test_a_folder_of_any_bytes_is_found(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    with register(url=URL, address=name):
        server = find_server(name)
        assert server is not None
        assert server.address == name


@pytest.mark.parametrize("left", ["", "{", "[]", '{"url": 3}', "null", "\xff"])
def test_what_is_no_note_is_passed_over_and_swept_away(tmp_path: Path, left: str) -> None:
    with register(url=URL, address=tmp_path) as said:
        (note,) = notes()
        name = note.name
        key = name[: name.index("-") + 1]
        other = note.parent / f"{key}0.json"
        other.write_bytes(left.encode("latin-1"))
        other.chmod(0o600)
        (note.parent / f"{key}link.json").symlink_to("/dev/zero")
        os.mkfifo(note.parent / f"{key}pipe.json", 0o600)
        assert find_server(tmp_path) == said
        with register(url=URL, address=tmp_path / "other"):
            assert len(notes()) == 2
            assert find_server(tmp_path) == said


def test_a_note_is_never_seen_without_its_lock_and_its_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    rename = os.replace

    def replace(source: str, target: str) -> None:
        seen.append(find_server(tmp_path))
        rename(source, target)
        seen.append(find_server(tmp_path))

    monkeypatch.setattr(os, "replace", replace)
    with register(url=URL, address=tmp_path) as said:
        assert seen == [None, said]


def test_without_locks_a_server_lives_if_it_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:  # as on some network file systems
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with register(url=url, address=tmp_path) as said:
            assert find_server(tmp_path) == said
            server.close()
            assert find_server(tmp_path) is None
    assert notes() == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("IMRET_HOME", str(tmp_path / "home"))
    assert find_server(tmp_path) is None
    with (
        pytest.raises(
            DataError, match=r"cannot note in '.*home/running.*' that a server runs: .*\n.*IMRET_HOME"
        ),
        register(url=URL, address=tmp_path),
    ):
        pass


def test_without_imret_home_notes_lie_below_the_users_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("IMRET_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with register(url=URL, address=tmp_path):
        assert find_server(tmp_path) is not None
        written = [path for path in tmp_path.rglob("*.json") if json.loads(path.read_text())["url"] == URL]
        assert len(written) == 1
        assert written[0].parent == discovery._folder()


def test_looking_for_a_server_loads_neither_numpy_nor_what_fetches() -> None:
    code = (
        "import sys, imret.client.discovery; imret.client.discovery.find_server('x')\n"
        "print({'numpy', 'torch', 'urllib.request', 'ssl', 'http.client', 'socket'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
