"""A folder from a Mac, whose names are decomposed, is found by what people type, which is composed."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest

from imret import Encoder, Term, open_store
from imret.errors import DataError
from imret.retrieval.results import Hit
from imret.retrieval.search import facets, search
from imret.sources.stored import find_source
from imret.store import Filter, Match, Store
from imret.store.server.store import ServerStore
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS, QdrantLikeAServer

pytestmark = [pytest.mark.filterwarnings(warning) for warning in LOCAL_MODE_WARNINGS]

TYPED = "Vögel"
ON_DISK = unicodedata.normalize("NFD", TYPED)


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed in range(3):
        draw_picture(tmp_path / "photos" / ON_DISK / f"Möwe{seed}.png", seed=seed)  # of a mixed path
        draw_picture(tmp_path / "photos" / "Pilze" / f"{seed}.png", seed=10 + seed)
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "db")) as opened:
        yield opened


def names(hits: list[Hit]) -> list[str]:
    return sorted(Path(hit.path).name for hit in hits)


def as_an_older_imret_stored_it(store: Store) -> None:
    """Give the pictures the category that their folder's name is on disk."""
    with closing(store.open("photos")) as opened:
        points = [point for batch in opened.scan() for point in batch if point.payload["category"] != "Pilze"]
        payloads = [{**point.payload, "category": ON_DISK} for point in points]
        opened.overwrite_payloads([point.id for point in points], payloads)


@pytest.mark.parametrize("stored_by", ["this", "an older"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_category_is_met_in_either_form(
    store: Store, photos: Path, encoder: Encoder, form: str, stored_by: str
) -> None:
    ingest(store, [FolderSource(photos)], encoder=encoder)
    if stored_by != "this":
        as_an_older_imret_stored_it(store)
    name = unicodedata.normalize(form, TYPED)  # type: ignore[arg-type]
    gulls = ["Möwe0.png", "Möwe1.png", "Möwe2.png"]
    for asked in (
        {"categories": [name]},
        {"where": [f"category={name}"]},
        {"filter": Filter(must=(Match("category", (name,)),))},
    ):
        found = search(store, "a bird", encoder=encoder, **asked)  # type: ignore[arg-type]
        assert (names(found), {hit.category for hit in found}) == (gulls, {TYPED})
    for asked in ({"not_categories": [name]}, {"where": [f"category!={name}"]}):
        found = search(store, "a bird", encoder=encoder, **asked)  # type: ignore[arg-type]
        assert names(found) == ["0.png", "1.png", "2.png"]
    everything = search(store, "a bird", encoder=encoder)
    assert {(facet.value, facet.hits, facet.images) for facet in facets(store, everything)} == {
        (TYPED, 3, 3),
        ("Pilze", 3, 3),
    }
    with pytest.raises(DataError) as error:
        search(store, "a bird", encoder=encoder, categories=["Vögeln"])
    assert f"Did you mean {TYPED!r}?" in str(error.value)


def test_the_next_ingest_writes_the_category_of_an_older_imret_as_it_is_typed(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    ingest(store, [FolderSource(photos)], encoder=encoder)
    as_an_older_imret_stored_it(store)
    report = ingest(store, [FolderSource(photos)], encoder=encoder)
    assert (report.updated, report.unchanged, report.encoded) == (3, 3, 0)
    with closing(store.open("photos")) as opened:
        assert opened.facet("category") == {TYPED: 3, "Pilze": 3}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_stored_picture_and_its_path_are_met_in_either_form(
    store: Store, photos: Path, encoder: Encoder, form: str
) -> None:
    ingest(store, [FolderSource(photos)], encoder=encoder)
    path = unicodedata.normalize(form, f"{TYPED}/Möwe1.png")  # type: ignore[arg-type]
    for asked in (path, str(photos / path)):
        found = search(store, [Term(asked, "stored")], encoder=encoder, include_self=True, limit=1)
        assert names(found) == ["Möwe1.png"]
        assert Path(found[0].path).is_file()
    assert names(search(store, "a bird", encoder=encoder, where=[f'path="{path}"'])) == ["Möwe1.png"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_picture_file_is_asked_with_in_either_form(
    store: Store, photos: Path, encoder: Encoder, form: str
) -> None:
    ingest(store, [FolderSource(photos)], encoder=encoder)
    typed = unicodedata.normalize(form, str(photos / TYPED / "Möwe1.png"))  # type: ignore[arg-type]
    for asked in (typed, f"file://{quote(typed)}"):
        found = search(store, [Term(asked, "image")], encoder=encoder, include_self=True, limit=1)
        assert names(found) == ["Möwe1.png"]


def test_of_two_stored_pictures_that_differ_only_in_the_form_the_one_that_is_typed_is_meant(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    draw_picture(photos / TYPED / "Möwe1.png", seed=77)
    assert ingest(store, [FolderSource(photos)], encoder=encoder).added == 7
    for folder in (TYPED, ON_DISK):
        (found,) = search(
            store, [Term(f"{folder}/Möwe1.png", "stored")], encoder=encoder, include_self=True, limit=1
        )
        assert found.path == str(photos / folder / "Möwe1.png")
    assert len(search(store, "a bird", encoder=encoder, categories=[TYPED])) == 4


def test_a_source_is_named_in_either_form(tmp_path: Path, photos: Path) -> None:
    root = photos.rename(tmp_path / ON_DISK)
    assert FolderSource(tmp_path / TYPED).root == str(root)
    assert find_source(str(tmp_path / TYPED), [str(root), "/other"]) == str(root)
    shutil.rmtree(root)  # also when it is gone
    assert find_source(str(tmp_path / TYPED), [str(root), "/other"]) == str(root)
    assert find_source(str(tmp_path / TYPED), [str(root), str(tmp_path / TYPED)]) == str(tmp_path / TYPED)


def test_a_server_meets_a_category_in_either_form(photos: Path, encoder: Encoder) -> None:
    with closing(ServerStore("http://memory", client=QdrantLikeAServer(), in_flight=1)) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        for name in (TYPED, ON_DISK):
            assert len(search(store, "a bird", encoder=encoder, categories=[name])) == 3
