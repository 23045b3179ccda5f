"""Documents of an embedded store: kills, several programs, what cannot be written to, what is damaged."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from imret.errors import ChangedMeanwhile, DataError, StoreError
from imret.store import documents, open_store
from imret.store.check import check_documents
from imret.store.embedded.locks import switching
from imret.store.embedded.store import EdgeStore
from tests import ROOT
from tests.fakes.edge_points import store_points


def program(text: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **options,  # type: ignore[call-overload]
    )


# What it acknowledges is there afterwards; large, so that a kill comes in the middle of a file.
WRITER = """
import sys
from imret.store.embedded.store import EdgeStore
with EdgeStore(sys.argv[1]) as store:
    n = 0
    while True:
        n = int((store.document("photos", "concepts") or b"0")[:9]) + 1
        store.change_document("photos", "concepts", lambda old: b"%09d" % n + bytes([n % 256]) * 3_000_000)
        print(n, flush=True)
"""


def test_a_kill_leaves_the_old_document_or_the_new_one_and_no_file_for_good(tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = tmp_path / "db" / "photos"
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        n_left, before = 0, sorted(os.listdir(folder))
        for _ in range(12):
            writer = program(WRITER, tmp_path / "db")
            assert writer.stdout is not None
            said = [int(writer.stdout.readline())]
            time.sleep(rng.uniform(0, 0.05))
            writer.kill()
            said += map(int, writer.communicate()[0].split())
            n_left += any(name.endswith(".part") for name in os.listdir(folder))
            content = store.document("photos", "concepts")
            assert content is not None
            n = int(content[:9])
            assert n in (said[-1], said[-1] + 1), "what was acknowledged is there"
            assert content[9:] == bytes([n % 256]) * 3_000_000
        assert n_left, "no kill came in the middle of a file, which proves nothing"
        assert (store.collections(), store.incomplete()) == (["photos"], [])
        store.change_document("photos", "concepts", lambda _: b"1")
        assert set(os.listdir(folder)) - set(before) == {"concepts.document"}
        store.drop("photos")
    assert os.listdir(tmp_path / "db") == ["imret-store.json"]


ADDER = """
import sys
from imret.store.embedded.store import EdgeStore
with EdgeStore(sys.argv[1]) as store:
    for i in range(40):
        store.change_document("photos", "names", lambda old: (old or b"") + f"{sys.argv[2]}.{i}\\n".encode())
"""


def test_two_programs_that_change_at_once_lose_neither_s_change(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db", share=True) as store:
        store_points(store, range(3))
        with closing(store.open("photos")):  # as imret serve has it
            adders = [program(ADDER, tmp_path / "db", who) for who in "ab"]
            marks = {store.document_mark("photos", "names")}
            while any(adder.poll() is None for adder in adders):
                marks.add(store.document_mark("photos", "names"))
                time.sleep(0.005)
            assert [adder.wait() for adder in adders] == [0, 0]
            for adder in adders:
                adder.communicate()
        lines = (store.document("photos", "names") or b"").decode().split()
        assert sorted(lines) == sorted(f"{who}.{i}" for who in "ab" for i in range(40))
        assert len(marks) > 2, "a program that serves the collection sees that it changed"


CLIENT = """
import sys
from contextlib import closing
from imret.store.embedded.store import EdgeStore
with EdgeStore(sys.argv[1]) as store, closing(store.open("photos")) as photos:
    store.change_document("photos", "names", lambda old: old + b" and a client's")
    print(photos.count(), store.document("photos", "names").decode(), flush=True)
"""


def test_a_client_of_a_program_that_shares_reads_and_changes_documents(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db", share=True) as store:
        store_points(store, range(3))
        with closing(store.open("photos")):
            store.change_document("photos", "names", lambda _: b"the owner's")
            client = program(CLIENT, tmp_path / "db")
            assert client.communicate()[0] == "3 the owner's and a client's\n"
            assert store.document("photos", "names") == b"the owner's and a client's"


def test_a_document_of_ten_thousand_concepts_is_quick(tmp_path: Path) -> None:
    content = np.random.default_rng(0).standard_normal((10_000, 1_024), np.float32).tobytes()
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        store.change_document("photos", "concepts", lambda _: content)
        assert store.document("photos", "concepts") == content
        begun = time.perf_counter()
        for _ in range(100):
            store.document_mark("photos", "concepts")
        assert time.perf_counter() - begun < 1, "a mark is asked at every search"


def test_documents_are_files_that_are_read_without_writing(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        store.change_document("photos", "names", lambda _: b"kept")
    places = [tmp_path / "db", *(tmp_path / "db").rglob("*")]
    modes = {place: place.stat().st_mode for place in places}
    for place in places:
        place.chmod(modes[place] & ~0o222)
    try:
        with open_store(tmp_path / "db", create=False) as store:
            assert store.document("photos", "names") == b"kept"
            assert store.document_mark("photos", "names") != ""
            assert store.document("photos", "concepts") is None
            if os.getuid() != 0:  # whom no permission stops
                with pytest.raises(StoreError, match="cannot write to the collection 'photos'"):
                    store.change_document("photos", "names", lambda _: b"new")
                with pytest.raises(StoreError, match="cannot write to the collection 'photos'"):
                    store.remove_document("photos", "names")
                assert store.document("photos", "names") == b"kept"
    finally:
        for place in places:
            place.chmod(modes[place])


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_document_that_may_not_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        store.change_document("photos", "names", lambda _: b"kept")
        (tmp_path / "db" / "photos" / "names.document").chmod(0)
        for act in (
            lambda: store.document("photos", "names"),
            lambda: store.document_mark("photos", "names"),
            lambda: check_documents(store, "photos", remove=True),
        ):
            with pytest.raises(StoreError, match=r"cannot read .*names\.document") as caught:
                act()
            assert not isinstance(caught.value, documents.BrokenDocument)
            assert str(tmp_path) not in caught.value.public
        (tmp_path / "db" / "photos" / "names.document").chmod(0o600)
        assert store.document("photos", "names") == b"kept"


@pytest.mark.parametrize("how", ["empty", "cut short", "no header", "a folder", "a byte", "longer"])
def test_a_damaged_file_is_named_and_can_be_removed(how: str, tmp_path: Path) -> None:
    file = tmp_path / "db" / "photos" / "names.document"
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        store.change_document("photos", "names", lambda _: b"kept" * 100)
        whole = file.read_bytes()
        if how == "a folder":
            file.unlink()
            file.mkdir()
        else:
            file.write_bytes(
                {
                    "empty": b"",
                    "cut short": whole[:-7],
                    "no header": b"{}",
                    "a byte": whole[:-1] + b"?",
                    "longer": whole + b"!",
                }[how]
            )
        with pytest.raises(documents.BrokenDocument, match=r"names\.document.*(?s:.)*check photos --remove"):
            store.document("photos", "names")
        assert store.document_mark("photos", "names") != "", "what is there is asked for, and told"
        assert (store.collections(), store.incomplete()) == (["photos"], [])
        assert list(check_documents(store, "photos", remove=True)) == ["names"]
        assert (store.document("photos", "names"), store.document_mark("photos", "names")) == (None, "")
        store.rename("photos", "holidays")
        assert store.collections() == ["holidays"]


def test_a_change_in_a_collection_that_goes_away_meanwhile_is_refused(tmp_path: Path) -> None:
    with EdgeStore(tmp_path / "db") as maker:
        for name in ("photos", "renamed"):
            store_points(maker, range(3), name=name)
    with EdgeStore(tmp_path / "db") as store, EdgeStore(tmp_path / "db") as other:

        def deleting(old: bytes | None) -> bytes:
            other.drop("photos")
            return b"1"

        with pytest.raises((ChangedMeanwhile, DataError), match="photos"):
            store.change_document("photos", "names", deleting)

        def renaming(old: bytes | None) -> bytes:
            if "renamed" in other.collections():
                other.rename("renamed", "other")
            return b"1"

        with pytest.raises((ChangedMeanwhile, DataError), match="renamed"):
            store.change_document("renamed", "names", renaming)
        assert store.collections() == ["other"]
        assert os.listdir(tmp_path / "db" / "other").count("names.document") == 0
        assert sorted(os.listdir(tmp_path / "db")) == ["imret-store.json", "other"]


def test_a_change_may_use_the_store(tmp_path: Path) -> None:
    """Whoever learns may look at the collection; no lock is held that others, or it itself, wait for."""
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))

        def change(old: bytes | None) -> bytes:
            store.finish("photos", store.state("photos"))
            store.change_document("photos", "concepts", lambda _: b"also")
            return b"1"

        store.change_document("photos", "names", change)
        assert (store.document("photos", "names"), store.document("photos", "concepts")) == (b"1", b"also")


def test_the_lock_of_a_folder_that_was_renamed_meanwhile_is_not_that_of_the_one_in_its_place(
    tmp_path: Path,
) -> None:
    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        photos = tmp_path / "db" / "photos"
        with switching(photos):
            waiting = program(
                "import sys; from pathlib import Path; from imret.store.embedded.locks import switching\n"
                "print('waits', flush=True)\n"
                "with switching(Path(sys.argv[1])): print(sorted(__import__('os').listdir(sys.argv[1])))",
                photos,
            )
            assert waiting.stdout is not None
            assert waiting.stdout.readline() == "waits\n"
            time.sleep(0.3)
            photos.rename(tmp_path / "db" / "holidays")
            photos.mkdir()
        assert waiting.communicate()[0] == "['.switch.lock']\n"


def test_a_disk_that_is_full_leaves_the_old_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    with EdgeStore(tmp_path / "db") as store:
        store_points(store, range(3))
        store.change_document("photos", "names", lambda _: b"kept")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(StoreError, match=r"cannot write .*names\.document.*[Ff]ile too large"):
                store.change_document("photos", "names", lambda _: bytes(1_000_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
        assert store.document("photos", "names") == b"kept"
