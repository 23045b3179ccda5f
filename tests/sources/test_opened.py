"""One door to stored pictures: what it opens, and that everything that shows pictures goes through it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

import imret
from imret.errors import ImageError
from imret.sources.opened import Door, own_door
from imret.store.payload import make_payload
from tests.fakes.pictures import draw_picture


def payload_of(source: str | os.PathLike[str], path: str) -> dict[str, Any]:
    return make_payload(
        source=os.fspath(source),
        path=path,
        category=None,
        sha256="0" * 64,
        width=1,
        height=1,
        size_bytes=1,
        modified="",
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw_picture(tmp_path / "private" / "secret.png", seed=1)
    draw_picture(tmp_path / "photos" / "fungi" / "1.png", seed=2)
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "private" / "secret.png")
    return tmp_path / "photos"


def test_a_guarded_door_opens_below_its_folders_alone_and_one_at_a_terminal_what_may_be_read(
    photos: Path,
) -> None:
    inside, linked = payload_of(photos, "fungi/1.png"), payload_of(photos, "link.png")
    for door in (Door(), Door([photos]), own_door()):
        with door.open(inside) as file:
            assert file.read() == (photos / "fungi" / "1.png").read_bytes()
    with own_door().open(linked) as file:
        assert file.read() == (photos / "link.png").read_bytes()
    for guarded, payload in ((Door(), linked), (Door([photos]), linked), (Door([photos / "no"]), inside)):
        with pytest.raises(ImageError, match="leads out"):
            guarded.open(payload)


def test_the_path_of_a_hit_is_opened_as_it_is(photos: Path) -> None:
    with own_door().open({}, str(photos / "fungi" / "1.png")) as file:
        assert file.seekable()
        assert file.tell() == 0
    with pytest.raises(ImageError, match=r"^no such file$"):
        own_door().open({}, str(photos / "gone.png"))
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(ImageError, match=r"^not a regular file$"):
        own_door().open({}, str(photos / "pipe.png"))


# Who opens a stored picture by its path, and why no door is needed: it is asked for the file, not shown.
_BESIDE_THE_DOOR = {
    "imret/client/search.py",  # the path of a hit
    "imret/retrieval/search.py",  # the same
    "imret/retrieval/conditions.py",  # the same
    "imret/retrieval/query_vector.py",  # names several in an error
    "imret/web/handlers.py",  # the path of a picture
    "imret/sources/opened.py",
    "imret/sources/safe_open.py",
    "imret/store/payload.py",
    "ingest/last_look.py",  # looks whether a file of its own source can be read
    "ingest/settle.py",  # compares places
}


def test_nothing_else_opens_pictures_by_their_payloads() -> None:
    root = Path(imret.__file__).parents[1]
    users = {
        file.relative_to(root).as_posix()
        for package in ("imret", "ingest", "finetune")
        for file in (root / package).rglob("*.py")
        if re.search(r"\bfile_of\b", file.read_text())
    }
    assert users == _BESIDE_THE_DOOR
