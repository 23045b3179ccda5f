"""The environment variables of imret, and the folders that it keeps things in."""

from __future__ import annotations

import pwd
import re
from dataclasses import fields
from pathlib import Path

import pytest

from imret import settings
from imret.disk_cache import DiskCache
from imret.errors import StoreError
from imret.settings import Settings, read_settings
from imret.store import resolve_address
from tests import ROOT


def test_an_empty_environment_gives_the_defaults() -> None:
    assert read_settings({}) == Settings()
    assert (
        read_settings({"IMRET_DB": "", "IMRET_HOME": "", "IMRET_TOKEN": "", "IMRET_PREVIEW": " "})
        == Settings()
    )


@pytest.mark.parametrize("word", ["off", "0", "no", "False", " OFF "])
def test_what_is_on_is_turned_off_by_any_word_for_it(word: str) -> None:
    off = read_settings({"IMRET_SERVER": word, "IMRET_QUERY_CACHE": word, "IMRET_LIGHT_TEXT": word})
    assert off == Settings(use_server=False, query_cache=False, light_text=False)


def test_the_plain_ways_are_chosen_by_their_names() -> None:
    assert read_settings({"IMRET_RESIZE": "Exact", "IMRET_TOWERS": "plain"}) == Settings(
        exact_resize=True, plain_towers=True
    )
    assert read_settings({"IMRET_RESIZE": "on", "IMRET_TOWERS": "off"}) == Settings()


def test_the_rest_is_taken_as_it_is() -> None:
    environ = {"IMRET_DB": "http://a:1", "IMRET_HOME": "~/x", "IMRET_VIEWER": " feh ", "IMRET_DEBUG": "1"}
    assert read_settings(environ) == Settings(
        db="http://a:1", home=Path.home() / "x", viewer="feh", debug=True
    )


def test_each_variable_is_described_by_its_field_and_read_nowhere_else() -> None:
    described = re.findall(r"^        (\w+): (IMRET_\w+)", Settings.__doc__ or "", flags=re.MULTILINE)
    assert [name for name, _ in described] == [field.name for field in fields(Settings)]
    code = re.compile(r"environ(\.get\(|\[)[^\n]*IMRET_|getenv")
    for package in ("imret", "ingest", "finetune"):
        for file in (ROOT / package).rglob("*.py"):
            if file != ROOT / "imret" / "settings.py":
                assert not code.search(file.read_text(encoding="utf-8")), file


def test_the_folders_lie_below_the_home_that_is_set_else_where_the_platform_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IMRET_HOME", str(tmp_path))
    assert settings.cache_dir() == tmp_path / "cache"
    assert settings.store_dir() == tmp_path / "store"
    assert settings.state_dir() == tmp_path
    monkeypatch.delenv("IMRET_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for folder in (settings.cache_dir(), settings.store_dir(), settings.state_dir()):
        assert folder.is_relative_to(tmp_path / "me")


@pytest.mark.parametrize("home", [None, "here"])
def test_without_a_home_nothing_is_kept_anywhere_and_a_store_has_to_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)  # as in a container under a number that nobody has
    for name in ("IMRET_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(tmp_path)
    for folder in (settings.cache_dir(), settings.state_dir(), settings.store_dir()):
        assert folder.is_relative_to(settings.NO_HOME)
    monkeypatch.setattr("imret.store.address.LOCAL_SERVER", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="--db FOLDER, or set IMRET_HOME"):
        resolve_address()
    cache = DiskCache(settings.cache_dir() / "queries", 1 << 20)
    cache.put("0" * 64, b"x")
    assert cache.get("0" * 64) is None
    assert list(tmp_path.iterdir()) == []
