"""A model that only a collection names is loaded once its user has chosen it, and not before."""

from __future__ import annotations

import os
import pty
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import imret
from imret import Encoder
from imret.cli.main import cli
from imret.defaults import DEFAULT_MODEL
from imret.errors import ImretError, ModelError, ModelMismatch, ModelUnknown
from imret.models.known_models import FOLDER, is_known_model, note_model
from imret.models.resolve import resolve_model
from imret.retrieval.collection_encoder import collection_encoder
from imret.retrieval.kept_encoders import kept_encoder
from imret.settings import state_dir
from imret.store import Identity, open_store
from imret.web.errors import problem_for
from imret.web.pool.collections import CollectionPool
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

HUB = "hf-hub:somebody/a-model"


@pytest.fixture(autouse=True)
def _user_who_has_chosen_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMRET_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path: Path, random_model: Path) -> Path:
    return Path(shutil.copytree(random_model, tmp_path / "model"))


@pytest.fixture
def db(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that another user has filled."""
    mine = os.environ["IMRET_HOME"]
    monkeypatch.setenv("IMRET_HOME", str(tmp_path / "another user"))
    fill(tmp_path / "db", model)
    monkeypatch.setenv("IMRET_HOME", mine)
    return tmp_path / "db"


def fill(db: Path, model: Path) -> None:
    draw_picture(db.parent / "new.png", seed=99)  # which is not stored
    for seed in range(4):
        draw_picture(db.parent / "photos" / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    with open_store(db) as store:
        encoder = Encoder(model, device="cpu", precision="fp32")
        ingest(store, [FolderSource(db.parent / "photos")], encoder=encoder)


def naming(db: Path, name: str) -> Path:
    """Make an empty collection that names a model."""
    identity = Identity(name, "0" * 64, 32)
    with open_store(db) as store:
        store.open_version("photos", identity).close()
        store.promote("photos", identity)
    return db


def ask_of(db: Path, **options: Any) -> imret.LazyEncoder:
    with open_store(db) as store:
        return collection_encoder(store, "photos", **options)


def search_in_python(db: Path) -> None:
    with open_store(db) as store:
        imret.search(store, "wing")


def serve(db: Path) -> None:
    with closing(CollectionPool(lambda: open_store(db))) as pool, pool.use("photos"):
        pass


def command(*arguments: str | Path) -> Callable[[Path], None]:
    def run(db: Path) -> None:
        options = [str(argument).replace("PHOTOS", str(db.parent / "photos")) for argument in arguments]
        result = CliRunner().invoke(cli, [*options, "--db", str(db)])
        if isinstance(result.exception, ImretError):
            raise result.exception
        assert result.exit_code == 0, result.output

    return run


DOORS: dict[str, Callable[[Path], object]] = {
    "the encoder of a collection": ask_of,
    "the encoder that a store keeps": search_in_python,
    "a search": command("search", "wing"),
    "a search by a picture": command("similar", "PHOTOS/../new.png"),
    "an ingest": command("ingest", "PHOTOS"),
    "a rebuild": command("ingest", "PHOTOS", "--rebuild"),
    "an evaluation": command("evaluate", "--collection", "photos"),
    "a classification": command("classify", "PHOTOS/aves/1.png", "--labels", "a,b", "--collection", "photos"),
    "a server": serve,
    "a server as it starts": command("serve", "--port", "0"),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_a_stranger_wrote_chooses_no_model(db: Path, model: Path, door: str) -> None:
    with pytest.raises(ModelUnknown, match=r"not used before.*chosen by whoever wrote") as error:
        DOORS[door](db)
    assert str(model) in str(error.value)
    assert "Nothing of it was loaded" in str(error.value)
    assert "imret.Encoder(" in str(error.value) or "--model" in str(error.value)


def test_nothing_is_looked_for_or_downloaded_before_its_user_has_chosen_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    db = naming(tmp_path / "db", HUB)
    with pytest.raises(ModelUnknown, match=rf"--model {HUB}"):
        ask_of(db)
    asked: list[str] = []

    def say_yes(question: str) -> bool:
        asked.append(question)
        return True

    with pytest.raises(ModelError, match=r"somebody/a-model") as error:
        ask_of(db, ask=say_yes)
    assert not isinstance(error.value, ModelUnknown)
    assert len(asked) == 1
    assert "downloaded and loaded. Use it?" in asked[0]
    assert HUB in asked[0]


def test_whoever_says_yes_is_not_asked_again(db: Path, model: Path) -> None:
    asked: list[str] = []

    def answer(question: str) -> bool:
        asked.append(question)
        return len(asked) > 1

    with pytest.raises(ModelUnknown):
        ask_of(db, ask=answer)
    assert ask_of(db, ask=answer).model_id == str(model)
    assert ask_of(db, ask=answer).model_id == str(model)
    assert len(asked) == 2
    assert "would be loaded from this machine" in asked[0]
    for door in ("a search", "an evaluation", "a server", "the encoder that a store keeps"):
        DOORS[door](db)


NAMED: dict[str, tuple[str | Path, ...]] = {
    "a search": ("search", "wing"),
    "a classification": ("classify", "PHOTOS/aves/1.png", "--labels", "a,b", "--collection", "photos"),
    "an evaluation": ("evaluate", "--collection", "photos"),
}


@pytest.mark.parametrize("door", NAMED)
def test_a_model_that_was_named_once_is_known_from_then_on(db: Path, model: Path, door: str) -> None:
    command(*NAMED[door], "--model", model)(db)
    DOORS[door](db)


def test_whoever_ingests_is_never_asked(tmp_path: Path, model: Path) -> None:
    fill(tmp_path / "db", model)
    for door in DOORS:
        if door != "a server as it starts":
            DOORS[door](tmp_path / "db")


def test_the_default_model_is_known_but_not_a_folder_that_is_called_like_it(
    tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = naming(tmp_path / "db", DEFAULT_MODEL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as error:
        ask_of(db)
    assert not isinstance(error.value, ModelUnknown)  # it was looked for
    shutil.copytree(random_model, tmp_path / DEFAULT_MODEL)
    with pytest.raises(ModelUnknown, match="is another than"):
        ask_of(db)
    with pytest.raises(ModelUnknown, match="is another than"):
        search_with_vectors(db)


def search_with_vectors(db: Path) -> None:
    with open_store(db) as store, closing(store.open("photos")) as collection:
        kept_encoder(store, collection)


def test_another_model_in_the_same_folder_is_another_model(tmp_path: Path, db: Path, model: Path) -> None:
    command("search", "wing", "--model", model)(db)
    shutil.rmtree(model)
    write_random_model(model, seed=7)
    with pytest.raises(ModelMismatch, match="has changed since"):  # which loads nothing
        DOORS["a search"](db)
    with pytest.raises(ModelMismatch, match="has changed since"):
        DOORS["a classification"](db)
    with pytest.raises(ModelUnknown, match="is another than when you used it last"):
        DOORS["a rebuild"](db)
    # Whoever replaced it may have written a collection that fits it.
    naming_it = Identity(str(model), resolve_model(model).images_fingerprint, 32)
    with open_store(tmp_path / "other") as store:
        store.open_version("photos", naming_it).close()
        store.promote("photos", naming_it)
    with pytest.raises(ModelUnknown, match="is another than when you used it last"):
        ask_of(tmp_path / "other")
    ask_of(tmp_path / "other", model=str(model))
    ask_of(tmp_path / "other")


def test_a_picture_that_is_stored_needs_no_model_however_it_is_named(db: Path, tmp_path: Path) -> None:
    picture = next((tmp_path / "photos").rglob("*.png"))
    for typed in (("similar", picture), ("search", f"image:{picture}")):
        done = CliRunner().invoke(cli, [*map(str, typed), "--db", str(db), "--format", "paths"])
        assert done.exit_code == 0, done.output
        assert "model" not in done.stderr


def test_an_import_writes_a_collection_and_chooses_no_model(db: Path, tmp_path: Path, model: Path) -> None:
    with open_store(db) as store:
        imret.export_collection(store, "photos", tmp_path / "photos.parquet")
    shutil.rmtree(model)  # it is not needed for it, nor looked for
    result = CliRunner().invoke(
        cli,
        ["collections", "import", str(tmp_path / "photos.parquet"), "--db", str(tmp_path / "mine")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    with pytest.raises(ModelUnknown):
        DOORS["a search"](tmp_path / "mine")


def test_a_home_that_cannot_be_written_to_costs_a_sentence(db: Path, model: Path) -> None:
    state_dir().mkdir(parents=True, exist_ok=True)
    (state_dir() / FOLDER).write_text("no folder")
    told: list[str] = []
    assert ask_of(db, model=str(model), notify=told.append).model_id == str(model)
    assert len(told) == 1
    assert told[0].startswith("cannot note in")
    assert ask_of(db).model_id == str(model)  # of this process it is known
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-m", "imret", "search", "wing", "--db", str(db)]
    for options, code in ([], 1), (["--model", str(model)], 0), ([], 1):
        found = subprocess.run([*words, *options], capture_output=True, text=True, env=environ, check=False)
        assert found.returncode == code, found.stderr
        assert f"--model {model}" in found.stderr or "cannot note in" in found.stderr


def test_a_folder_that_others_can_write_to_is_not_believed(db: Path, model: Path) -> None:
    folder = state_dir() / FOLDER
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: note_model(resolve_model(model)), range(32)))
    (entry,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600
    code = (
        "import sys; from imret.models.known_models import is_known_model as k; "
        "from imret.models.resolve import resolve_model as r; print(k(sys.argv[1], r(sys.argv[1])))"
    )
    words = [sys.executable, "-c", code, str(model)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "True\n"
    folder.chmod(0o777)
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_name_is_known_as_the_model_it_was(model: Path, tmp_path: Path) -> None:
    note_model(resolve_model(model))
    assert is_known_model(str(model), resolve_model(model))
    other = write_random_model(tmp_path / "other", seed=3)
    assert not is_known_model(str(model), resolve_model(other))
    assert not is_known_model(str(other), resolve_model(other))


def test_a_client_from_afar_is_told_and_not_asked(db: Path, model: Path) -> None:
    with closing(CollectionPool(lambda: open_store(db), keep="photos")) as pool:
        with pytest.raises(ModelUnknown) as first, pool.use("photos"):
            pass
        assert "imret serve --collection photos --model" in str(first.value)
        answer = problem_for(first.value)
        assert answer.status_code == 409
        assert str(model.parent) not in bytes(answer.body).decode()  # as of every path
    with closing(CollectionPool(lambda: open_store(db), keep="other")) as pool:
        with pytest.raises(ModelUnknown, match="use it once where the server runs: imret search"):
            serve_of(pool)
        command("search", "wing", "--model", model)(db)
        serve_of(pool)


def serve_of(pool: CollectionPool) -> None:
    with pool.use("photos"):
        pass


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1)])
def test_whoever_sits_at_a_terminal_is_asked_there(db: Path, typed: str, code: int) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "imret", "search", "wing", "--db", str(db)]
    with subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        said, until = b"", time.monotonic() + 60
        while b"[y/N]" not in said and time.monotonic() < until:
            if select.select([ours], [], [], 1)[0]:
                said += os.read(ours, 4096)
        os.write(ours, typed.encode())
        hits = process.communicate(timeout=60)[0]
        assert process.returncode == code
    os.close(ours)
    assert b"not used before" in said
    assert bool(hits) == (code == 0)
