"""`imret ingest --dry-run`: what it tells, that it is what a run then does, and that nothing is written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from imret import Encoder, open_store
from imret.cli.main import cli
from imret.errors import DataError, StoreError, StoreUnavailable
from imret.models.lazy_encoder import LazyEncoder
from ingest.dry_run import dry_run
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_over_http import LOCAL_MODE_WARNINGS, QdrantOverHTTP

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LOCAL_MODE_WARNINGS]

COUNTS = (
    "added",
    "updated",
    "unchanged",
    "removed",
    "missing",
    "left_out",
    "taken_over",
    "ignored",
    "skipped",
)


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures in two categories, and what is left out."""
    for seed, category in enumerate(("aves", "aves", "fungi", "fungi")):
        draw_picture(tmp_path / "photos" / category / f"{seed}.png", seed=seed)
    (tmp_path / "photos" / "fungi" / "raw.NEF").touch()
    return tmp_path / "photos"


def digests(folder: Path) -> dict[str, str]:
    """Return the content of every file below a store, which is opened once before.

    The first program that opens what was written to, be it to search, has the engine tidy up its files.
    """
    with open_store(folder, create=False) as store, closing(store.open("photos")):
        pass
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def run(db: Path | str, encoder: Encoder, *folders: Path, **options: Any) -> Report:
    with open_store(str(db)) as store:
        return ingest(store, [FolderSource(one) for one in folders], encoder=encoder, **options)


def foretold(db: Path | str, *folders: Path, **options: Any) -> Report:
    with open_store(str(db), create=False, share="if possible") as store:
        return dry_run(store, [FolderSource(one) for one in folders], **options)


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["ingest", *map(str, arguments), "--dry-run"])


def test_without_a_store_all_is_new_and_none_is_made(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LazyEncoder, "__init__", lambda *_, **__: pytest.fail("a model was looked for"))
    done = typed(photos, "--db", photos.parent / "db")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "aves         2\n"
        "fungi        2\n"
        f"photos in {photos.parent}/db: 4 new\n"
        "  to embed: 4 pictures; which of them cannot be read shows only then\n"
        "  left out: 1 RAW (.nef)\n"
        "dry run: nothing was written\n"
    )
    assert "found 4 pictures in 2 categories: aves 2, fungi 2" in done.stderr
    assert not (photos.parent / "db").exists()
    (photos.parent / "db").mkdir()
    assert typed(photos, "--db", photos.parent / "db").exit_code == 0
    assert not list((photos.parent / "db").iterdir())


@pytest.mark.parametrize("prune", [False, True])
def test_a_dry_run_tells_what_the_run_then_does_and_writes_nothing(
    photos: Path, encoder: Encoder, prune: bool
) -> None:
    db = photos.parent / "db"
    run(db, encoder, photos)
    draw_picture(photos / "insecta" / "new.png", seed=10)
    draw_picture(photos / "aves" / "0.png", seed=11)
    os.utime(photos / "aves" / "1.png", (1, 1))  # touched, and the same
    (photos / "fungi" / "2.png").unlink()
    (photos / "fungi" / "folder.jpg").mkdir()
    before = digests(db)
    said = foretold(db, photos, prune=prune)
    assert digests(db) == before
    assert said.dry_run
    done = run(db, encoder, photos, prune=prune)
    for name in COUNTS:
        assert getattr(said, name) == getattr(done, name), name
    assert (said.added, said.updated, said.unchanged, len(said.skipped)) == (1, 1, 2, 1)
    assert (said.removed, said.missing) == ((1, 0) if prune else (0, 1))


def test_folders_that_moved_or_are_taken_in_are_foretold(photos: Path, encoder: Encoder) -> None:
    db, new = photos.parent / "db", photos.parent / "new"
    run(db, encoder, photos)
    photos.rename(new)
    with pytest.raises(DataError, match="Has it moved there"):
        foretold(db, new)
    before = digests(db)
    said = foretold(db, new, moved_from=[str(photos)])
    assert (said.taken_over, said.added, said.unchanged, said.missing) == ({str(photos): 4}, 0, 4, 0)
    run(db, encoder, new, moved_from=[str(photos)])
    around = foretold(db, new.parent)
    assert (around.taken_over, around.added, around.unchanged) == ({str(new): 4}, 0, 4)
    assert digests(db) != before


def test_other_content_under_an_old_time_is_foretold_when_asked_for(photos: Path, encoder: Encoder) -> None:
    db, file = photos.parent / "db", photos / "aves" / "0.png"
    run(db, encoder, photos)
    info = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert foretold(db, photos).updated == 0
    said = foretold(db, photos, check_content=True)
    assert (said.updated, said.unchanged, said.compared, said.other_content) == (1, 3, 4, 1)


def test_a_rebuild_and_another_model_are_told(photos: Path, encoder: Encoder, random_model: Path) -> None:
    db = photos.parent / "db"
    run(db, encoder, photos)
    assert "to embed" not in typed(photos, "--db", db).stdout
    assert "to embed: 4 pictures" in typed(photos, "--db", db, "--rebuild").stdout
    other = typed(photos, "--db", db, "--model", "ViT-B-32/openai").stdout
    assert f"the collection was made with {random_model}: if ViT-B-32/openai is another model" in other
    assert "another model" not in typed(photos, "--db", db, "--model", random_model).stdout


def test_a_dry_run_of_a_server_asks_it_and_says_where_none_answers(photos: Path) -> None:
    done = typed(photos, "--db", "http://127.0.0.1:1")
    assert isinstance(done.exception, StoreUnavailable)
    assert "http://127.0.0.1:1" in str(done.exception)


def test_a_dry_run_of_a_server_writes_nothing_there(photos: Path, encoder: Encoder) -> None:
    with QdrantOverHTTP() as qdrant:
        run(qdrant.url, encoder, photos)
        draw_picture(photos / "aves" / "new.png", seed=10)
        qdrant.requests.clear()
        said = foretold(qdrant.url, photos)
        assert (said.added, said.unchanged, said.engine) == (1, 4, "server")
        reads = ("/points", "/points/scroll", "/points/count", "/facet")
        assert qdrant.requests
        for method, path in qdrant.requests:
            assert method == "GET" or path.split("?")[0].endswith(reads), (method, path)
            assert method in ("GET", "POST")


def test_what_is_no_store_is_refused_as_a_run_would(photos: Path) -> None:
    done = typed(photos, "--db", photos)
    assert isinstance(done.exception, StoreError)


def test_the_report_of_a_dry_run_says_that_it_is_one(photos: Path) -> None:
    command = [sys.executable, "-m", "imret", "ingest", str(photos), "--dry-run", "--report"]
    file = photos.parent / "r.json"
    done = subprocess.run([*command, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(file.read_text())
    assert (told["dry_run"], told["complete"], told["added"], told["encoded"]) == (True, False, 4, 0)
    assert told["categories"] == {"aves": 2, "fungi": 2}
    assert not (Path(os.environ["IMRET_HOME"]) / "store").exists()


def test_a_dry_run_ends_as_the_run_would_where_something_is_wrong(photos: Path) -> None:
    empty = photos.parent / "empty"
    empty.mkdir()
    done = typed(photos, empty, "--db", photos.parent / "db")
    assert isinstance(done.exception, DataError)
    assert "no pictures in" in str(done.exception)
    assert "4 new" in done.stdout
    (photos / "fungi" / "folder.jpg").mkdir()
    assert typed(photos, "--db", photos.parent / "db", "--strict").exit_code == 3


def test_a_dry_run_loads_neither_torch_nor_qdrant_where_there_is_no_store(photos: Path) -> None:
    code = (
        "import sys\nfrom imret.cli.main import cli\n"
        f"typed = ['ingest', {str(photos)!r}, '--db', {str(photos.parent / 'db')!r}, '--dry-run']\n"
        "cli(typed, standalone_mode=False)\n"
        "print(sorted({'torch', 'open_clip', 'qdrant_client', 'qdrant_edge'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
