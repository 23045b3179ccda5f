"""Sums and exclusions, pictures as queries, cut-offs, copies, groups and facets, against numpy."""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imret import Encoder
from imret.errors import DataError, ImageError
from imret.images.decode import load_image, load_to_cover
from imret.retrieval.query import Term
from imret.retrieval.query_vector import query_vector
from imret.retrieval.ranking import best_of_groups
from imret.retrieval.results import Facet, Hit, SearchWarning
from imret.retrieval.search import facets, find_hits, search
from imret.retrieval.search_options import SearchOptions
from imret.retrieval.subtraction import COPY, HITS, PICTURE, WORDS
from imret.store import Collection, Filter, Identity, Ids, Match, Point, Range, Store, open_store
from imret.store.server.store import ServerStore
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests import ROOT
from tests.fakes.pictures import draw_picture
from tests.fakes.qdrant_engine import LOCAL_MODE_WARNINGS, QdrantLikeAServer

CATEGORIES = ("fungi", "aves", "insecta")
# Of the real photos: categories of more than ten pictures, by their common names.
NAMES = {
    "fish": "actinopterygii",
    "amphibian": "amphibia",
    "bird": "aves",
    "mushroom": "fungi",
    "insect": "insecta",
    "mammal": "mammalia",
    "plant": "plantae",
    "reptile": "reptilia",
}


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(24):
        draw_picture(folder / CATEGORIES[seed % 3] / f"{seed:02}.png", seed=seed)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, photos: Path, encoder: Encoder) -> Iterator[Store]:
    with open_store(str(tmp_path_factory.mktemp("db"))) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        yield store


@pytest.fixture(scope="module")
def files(photos: Path) -> list[Path]:
    return sorted(photos.rglob("*.png"))


@pytest.fixture(scope="module")
def vectors(files: list[Path], encoder: Encoder) -> NDArray[np.float32]:
    return encoder.encode_images(files)


def unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    return vector / np.linalg.norm(vector)


def unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ranked(files: list[Path], scores: NDArray[np.float32]) -> list[str]:
    return [str(files[i]) for i in np.argsort(-scores, kind="stable")]


def paths(hits: list[Hit]) -> list[str]:
    return [hit.path for hit in hits]


# ---- Terms ----------------------------------------------------------------------------------------------


def test_words_are_added_and_subtracted_as_unit_vectors_and_scores_stay_cosines(
    store: Store, encoder: Encoder, files: list[Path], vectors: NDArray[np.float32]
) -> None:
    terms = [Term("a red thing"), Term("a wing", weight=2), Term("one blue square", weight=-0.5)]
    red, wing, blue = (query_vector(encoder, str(term.value)) for term in terms)
    expected = unit(red + 2 * wing - 0.5 * WORDS * blue)
    hits = search(store, terms, encoder=encoder, limit=24)
    assert paths(hits) == ranked(files, vectors @ expected)
    np.testing.assert_allclose([hit.score for hit in hits], sorted(vectors @ expected)[::-1], atol=1e-4)
    assert max(abs(hit.score) for hit in hits) <= 1


def test_the_weight_of_a_single_term_changes_nothing(store: Store, encoder: Encoder) -> None:
    assert search(store, Term("wing", weight=7), encoder=encoder) == search(store, "wing", encoder=encoder)


def test_words_and_a_picture_spread_the_scores_alike(
    store: Store, encoder: Encoder, files: list[Path], vectors: NDArray[np.float32], tmp_path: Path
) -> None:
    other = draw_picture(tmp_path / "other.png", seed=99)
    words, picture = query_vector(encoder, "wing"), encoder.encode_images([other])[0]
    spread_words, spread_picture = (vectors @ words).std(), (vectors @ picture).std()
    assert not 0.9 < spread_words / spread_picture < 1.1  # else nothing is shown here
    expected = unit(3 * words + picture * spread_words / spread_picture)
    hits = search(store, [Term("wing", weight=3), Term(str(other), "image")], encoder=encoder, limit=24)
    assert paths(hits) == ranked(files, vectors @ expected)


def test_terms_that_cancel_out_are_an_error(store: Store, encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"the terms of the query cancel out \(wing wing\).*Leave one out"):
        search(store, [Term("wing"), Term("wing", weight=-1)], encoder=encoder)


def test_of_a_subtracted_picture_goes_what_makes_it_different_from_the_best_hits(
    store: Store, encoder: Encoder, files: list[Path], vectors: NDArray[np.float32]
) -> None:
    """By hand: the mean of ten best hits that are no copies is taken from it, the rest weighed by spread."""
    words = query_vector(encoder, "wing")
    best = np.argsort(-(vectors @ words))[: 2 * HITS]
    distances = 1 - vectors[best] @ vectors[5]
    no_copies = best[distances >= COPY * np.median(distances)][:HITS]
    different = vectors[5] - vectors[no_copies].mean(axis=0)
    weight = 2 * PICTURE * (vectors @ words).std() / (vectors @ different).std()
    expected = unit(words - weight * different)
    hits = search(store, [Term("wing"), Term(str(files[5]), "image", -2)], encoder=encoder, limit=24)
    assert paths(hits) == [path for path in ranked(files, vectors @ expected) if path != str(files[5])]


@pytest.mark.parametrize("n", [1, 2])
def test_in_a_collection_of_few_pictures_one_is_subtracted_too(
    n: int, encoder: Encoder, files: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "few").mkdir()
    for file in files[:n]:
        shutil.copy(file, tmp_path / "few")
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(tmp_path / "few")], encoder=encoder)
        terms = [Term("wing"), Term(str(files[0]), "image", -1)]
        hits = search(store, terms, encoder=encoder, include_self=True)
        assert len(hits) == n
        assert all(math.isfinite(hit.score) for hit in hits)


# ---- Pictures -------------------------------------------------------------------------------------------


def test_a_picture_finds_its_like_and_not_itself(
    store: Store, encoder: Encoder, files: list[Path], vectors: NDArray[np.float32]
) -> None:
    like = ranked(files, vectors @ vectors[5])
    assert like[0] == str(files[5])
    assert paths(search(store, files[5], encoder=encoder, limit=23)) == like[1:]
    assert paths(search(store, files[5], encoder=encoder, limit=24, include_self=True)) == like


def test_a_copy_elsewhere_is_the_same_picture(
    store: Store, encoder: Encoder, files: list[Path], tmp_path: Path
) -> None:
    shutil.copy(files[5], tmp_path / "copy.png")
    assert paths(search(store, tmp_path / "copy.png", encoder=encoder)) == paths(
        search(store, files[5], encoder=encoder)
    )


def test_a_picture_of_the_collection_needs_no_model(
    store: Store, encoder: Encoder, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = paths(search(store, files[3], encoder=encoder))
    (hit,) = search(store, files[3], encoder=encoder, limit=1, include_self=True)

    def none(*_: object, **__: object) -> Encoder:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("imret.retrieval.search._encoder_of", none)
    relative = f"{files[3].parent.name}/{files[3].name}"
    for query in (
        Term(str(files[3]), "image"),
        Term(hit.id, "id"),
        Term(str(files[3]), "stored"),
        Term(relative, "stored"),
    ):
        assert paths(search(store, query)) == expected


def test_a_picture_in_memory_and_one_on_the_web_are_queries(
    store: Store, encoder: Encoder, files: list[Path]
) -> None:
    expected = paths(search(store, files[7], encoder=encoder, include_self=True))
    assert paths(search(store, load_image(files[7]), encoder=encoder)) == expected
    urls = []

    def fetch(url: str) -> bytes:
        urls.append(url)
        return files[7].read_bytes()

    term = Term("https://example.org/7.png", "url")
    assert paths(search(store, term, encoder=encoder, fetch=fetch, include_self=True)) == expected
    assert paths(search(store, term, encoder=encoder, fetch=fetch)) == paths(
        search(store, files[7], encoder=encoder)
    )
    assert urls == ["https://example.org/7.png"] * 2


def test_a_picture_that_cannot_be_had_is_an_error_with_its_name(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    for path, says in (
        (tmp_path / "gone.jpg", r"gone\.jpg' does not exist\. If these are words: text:"),
        (tmp_path, r"is a folder\."),
        (tmp_path / "bad.jpg", r"cannot use the picture '.*bad\.jpg': not a picture of a known format"),
    ):
        with pytest.raises(ImageError, match=says):
            search(store, path, encoder=encoder)


def test_a_stored_picture_that_does_not_exist_is_an_error(store: Store) -> None:
    with pytest.raises(DataError, match=r"has no picture with the id 00000000-"):
        search(store, Term("00000000-0000-0000-0000-000000000000", "id"))
    with pytest.raises(DataError, match=r"has no picture at 'aves/99\.png'\. Give a path as in the hits"):
        search(store, Term("aves/99.png", "stored"))


def test_a_path_that_two_folders_have_must_be_whole(encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        draw_picture(tmp_path / name / "aves" / "a.png", seed=seed)
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(tmp_path / "one"), FolderSource(tmp_path / "two")], encoder=encoder)
        with pytest.raises(DataError, match=r"several pictures .* are at 'aves/a\.png': .*one.*two"):
            search(store, Term("aves/a.png", "stored"))
        assert len(search(store, Term(str(tmp_path / "two/aves/a.png"), "stored"))) == 1


# ---- Which, and in what order ---------------------------------------------------------------------------


def test_categories_and_a_filter_both_hold(store: Store, encoder: Encoder, files: list[Path]) -> None:
    not_these = Filter(must_not=(Match("path", ("aves/01.png", "aves/04.png")),))
    hits = search(store, "wing", encoder=encoder, categories=["aves"], filter=not_these, limit=24)
    assert sorted(paths(hits)) == [
        str(file) for file in files if file.parent.name == "aves" and file.name not in ("01.png", "04.png")
    ]


def test_an_offset_goes_on_where_the_hits_before_it_ended(store: Store, encoder: Encoder) -> None:
    whole = search(store, "wing", encoder=encoder, limit=24)
    parts = [search(store, "wing", encoder=encoder, limit=7, offset=start) for start in (0, 7, 14, 21)]
    assert [hit for part in parts for hit in part] == whole


def test_an_offset_past_the_end_says_where_the_end_is(store: Store, encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"offset 24 is past the end: 24 pictures of collection 'photos'"):
        search(store, "wing", encoder=encoder, offset=24)
    with pytest.raises(DataError, match=r"offset 8 is past the end: 8 pictures"):
        search(store, "wing", encoder=encoder, categories=["aves"], offset=8)
    with pytest.raises(DataError, match=r"offset 3 is past the end: 3 groups"):
        search(store, "wing", encoder=encoder, group_by="category", offset=3)


def test_hits_below_the_least_score_are_left_out(store: Store, encoder: Encoder) -> None:
    whole = search(store, "wing", encoder=encoder, limit=24)
    min_score = (whole[8].score + whole[9].score) / 2
    assert search(store, "wing", encoder=encoder, limit=24, min_score=min_score) == whole[:9]
    assert search(store, "wing", encoder=encoder, min_score=1.0) == []


def test_hits_are_listed_by_date_or_path_and_keep_their_ranks(
    encoder: Encoder, photos: Path, tmp_path: Path
) -> None:
    import os

    shutil.copytree(photos, tmp_path / "photos")
    files = sorted((tmp_path / "photos").rglob("*.png"))
    for i, file in enumerate(files):
        when = 1_600_000_000 + (i * 7919) % 1000
        os.utime(file, (when, when))
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder)
        best = search(store, "wing", encoder=encoder, limit=9)
        by_date = search(store, "wing", encoder=encoder, limit=9, sort="date")
        by_path = search(store, "wing", encoder=encoder, limit=9, sort="path")
    times = [Path(hit.path).stat().st_mtime for hit in by_date]
    assert times == sorted(times, reverse=True)
    assert paths(by_path) == sorted(paths(best))
    assert {(hit.rank, hit.path) for hit in by_date} == {(hit.rank, hit.path) for hit in best}


def test_groups_hold_the_best_of_each_in_the_order_of_the_best(store: Store, encoder: Encoder) -> None:
    whole = search(store, "wing", encoder=encoder, limit=24)
    order = list(dict.fromkeys(hit.category for hit in whole))
    hits = search(store, "wing", encoder=encoder, group_by="category", per_group=2, limit=2)
    assert [hit.id for hit in hits] == [
        hit.id for category in order[:2] for hit in [h for h in whole if h.category == category][:2]
    ]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4]


@pytest.fixture(scope="module", params=["embedded", "server"])
def many_groups(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Collection, list[Point]]]:
    """A collection of 60 categories of many sizes, one of them most of it, and pictures without any."""
    rng = np.random.default_rng(5)
    identity = Identity("tiny", "a1" * 32, 8)
    server = ServerStore("http://memory", client=QdrantLikeAServer(), in_flight=1)
    is_embedded = request.param == "embedded"
    with open_store(str(tmp_path_factory.mktemp("groups"))) if is_embedded else server as store:
        points = []
        for i in range(900):
            # Most are category 0 and near one direction; what is near another is in few large groups, too.
            category = 0 if i < 400 else None if i < 500 else int(rng.zipf(1.4)) % 60
            vector = rng.standard_normal(8) + (4.0 if category in (0, None) else 0.0)
            payload = {"path": f"{i}.jpg", "sha256": f"{i:064x}", "source": "/photos", "width": i}
            if category is not None:
                payload["category"] = f"category {category}"
            points.append(Point(str(uuid.UUID(int=i)), payload, unit(vector).astype(np.float32)))
        with closing(store.open_version("images", identity)) as collection:
            vectors = np.stack([point.vector for point in points if point.vector is not None])
            collection.upsert([p.id for p in points], vectors, [p.payload for p in points])
            store.promote("images", identity)
            yield collection, points


def best_groups(points: list[Point], query: NDArray[np.float32], **asked: Any) -> list[str]:
    """The definition: the best of each category, categories by their best, one at a time."""
    scores = {p.id: float(p.vector @ query) for p in points if p.vector is not None}
    passing = [p for p in points if scores[p.id] >= asked.get("min_score", -1) and asked["passes"](p)]
    ranked = sorted(passing, key=lambda p: (-scores[p.id], p.id))
    categories = list(dict.fromkeys(p.payload["category"] for p in ranked if "category" in p.payload))
    wanted = categories[asked["offset"] :][: asked["limit"]]
    of = {name: [p.id for p in ranked if p.payload.get("category") == name] for name in wanted}
    return [id for name in wanted for id in of[name][: asked["per_group"]]]


@pytest.mark.filterwarnings(*LOCAL_MODE_WARNINGS)
@pytest.mark.parametrize("seed", range(30))
def test_groups_are_those_of_one_search_a_category(
    many_groups: tuple[Collection, list[Point]], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.retrieval.ranking._WALK_MIN", 4)  # several rounds
    collection, points = many_groups
    rng = random.Random(seed)
    direction = np.random.default_rng(seed).standard_normal(8) + rng.choice([0.0, 0.0, 3.0, -3.0])
    query = unit(direction).astype(np.float32)
    wanted = {
        "limit": rng.choice([1, 1, 2, 5, 20, 500]),
        "offset": rng.choice([0, 0, 0, 1, 7, 30]),
        "per_group": rng.choice([1, 2, 3, 50]),
    }
    only, passes = rng.choice(
        [
            (None, lambda point: True),
            (Range("width", gte=450), lambda point: point.payload["width"] >= 450),
            (
                Match("category", tuple(f"category {i}" for i in range(9))),
                lambda point: point.payload.get("category", "") in [f"category {i}" for i in range(9)],
            ),
        ]
    )
    min_score = rng.choice([None, None, 0.3])
    options = SearchOptions(group_by="category", min_score=min_score, **wanted)
    points_found = best_of_groups(
        collection,
        query,
        Filter(must=() if only is None else (only,)),
        options,
        -math.inf if min_score is None else min_score,
        None,
    )
    expected = best_groups(points, query, passes=passes, min_score=min_score or -1, **wanted)
    assert [point.id for point, _ in points_found] == expected


def test_a_search_for_one_group_of_thousands_asks_the_store_a_few_times(tmp_path: Path) -> None:
    identity = Identity("tiny", "a1" * 32, 8)
    vectors = unit_rows(np.random.default_rng(0).standard_normal((4000, 8)))
    payloads = [
        {"path": f"{i}.jpg", "sha256": f"{i:064x}", "source": "/p", "category": f"c{i}"} for i in range(4000)
    ]
    with open_store(str(tmp_path / "db")) as store:
        with closing(store.open_version("images", identity)) as filled:
            filled.upsert([str(uuid.UUID(int=i)) for i in range(4000)], vectors, payloads)
            store.promote("images", identity)
        with closing(store.open("images")) as collection:
            counted = Counting(collection)
            options = SearchOptions(group_by="category", limit=1, per_group=1)
            [(point, _)] = best_of_groups(counted, vectors[7], Filter(), options, -1.0, None)
            assert point.payload["category"] == "c7"
            assert counted.calls <= 2
            counted.calls = 0
            options = SearchOptions(group_by="category", limit=20, per_group=3, offset=10)
            assert len(best_of_groups(counted, vectors[7], Filter(), options, -1.0, None)) == 20
            assert counted.calls <= 22


class Counting:
    """A collection that counts what it is asked."""

    def __init__(self, collection: Collection) -> None:
        self._collection, self.calls = collection, 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self._collection, name)


def test_facets_count_the_hits_and_the_whole_collection(store: Store, encoder: Encoder) -> None:
    hits = search(store, "wing", encoder=encoder, limit=5)
    counts = facets(store, hits)
    assert {facet.value: facet.images for facet in counts} == dict.fromkeys(CATEGORIES, 8)
    assert sum(facet.hits for facet in counts) == 5
    assert [facet.hits for facet in counts] == sorted((facet.hits for facet in counts), reverse=True)
    assert facets(store, hits, field="no_such_field") == []
    filter_ = Filter(must=(Match("category", ("aves",)),))
    assert facets(store, [], filter=filter_) == [Facet("aves", 0, 8)]


@pytest.fixture(scope="module")
def photos_with_copies(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, four of which are there twice more: byte for byte, and half as large as JPEG."""
    folder = tmp_path_factory.mktemp("copies")
    for i, file in enumerate(sorted((shared_data / "nature10" / "test" / "fungi").glob("*.jpg"))[:12]):
        shutil.copy(file, folder / f"{i:02}.jpg")
        if i < 4:
            shutil.copy(file, folder / f"{i:02}-same.jpg")
            image = load_image(file)
            half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
            half.save(folder / f"{i:02}-half.jpg", quality=75)
    return folder


def test_near_copies_are_folded_into_the_best_of_them(
    photos_with_copies: Path, encoder: Encoder, tmp_path: Path
) -> None:
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(photos_with_copies)], encoder=encoder)
        whole = search(store, "wing", encoder=encoder, limit=20)
        assert len(whole) == 20
        hits = search(store, "wing", encoder=encoder, limit=20, unique=True)
        page = search(store, "wing", encoder=encoder, limit=5, offset=2, unique=True)
        best: dict[str, Hit] = {}
        for hit in whole:
            best.setdefault(Path(hit.path).name[:2], hit)
        assert paths(hits) == [hit.path for hit in best.values()]
        assert [hit.folded for hit in hits] == [2 if int(name) < 4 else 0 for name in best]
        assert paths(page) == paths(hits)[2:7]
        assert [hit.folded for hit in whole] == [0] * 20
        for file in photos_with_copies.glob("*-half.jpg"):
            file.unlink()  # a file that cannot be read has its bytes alone
        assert len(search(store, "wing", encoder=encoder, limit=20, unique=True)) == 16


def test_a_search_that_asks_for_more_looks_at_each_file_once_and_at_few_at_a_time(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "photos"
    for seed in range(4):
        draw_picture(folder / f"{seed}.png", seed=seed)
    query = Image.open(folder / "0.png").convert("RGB")
    for quality in range(60, 90):  # so many copies that all the best hits are one picture
        query.save(folder / f"{quality}.jpg", quality=quality)
    looks: list[int] = []
    widths: list[int] = []
    inside, lock = [0], threading.Lock()

    def counting(source: Any, side: int, **options: Any) -> Any:
        with lock:
            looks.append(os.fstat(source.fileno()).st_ino if hasattr(source, "fileno") else 0)
            inside[0] += 1
            widths.append(inside[0])
        try:
            return load_to_cover(source, side, **options)
        finally:
            with lock:
                inside[0] -= 1

    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(folder)], encoder=encoder)
        monkeypatch.setattr("imret.images.decode.load_to_cover", counting)

        def ask(limit: int) -> list[int]:
            hits = search(store, query, encoder=encoder, limit=limit, unique=True)
            return [hit.folded for hit in hits]

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(ask, [3] * 4)) == [[30, 0, 0]] * 4
    mine = {file.stat().st_ino for file in folder.iterdir()}
    files = Counter(look for look in looks if look in mine)
    assert len(files) == 34
    assert set(files.values()) == {4}, "each search looks at a file once"
    assert max(widths) <= 8


def test_copies_by_the_thousand_are_looked_at_so_far_and_that_is_said(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.retrieval.dedupe.MAX_FURTHER", 25)
    folder = tmp_path / "photos"
    for seed in range(4):
        draw_picture(folder / f"{seed}.png", seed=seed)
    query = Image.open(folder / "0.png").convert("RGB")
    for quality in range(50, 90):
        query.save(folder / f"{quality}.jpg", quality=quality)
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(folder)], encoder=encoder)
        with pytest.warns(
            SearchWarning, match="duplicates were looked for among the best 31 hits only, and there are more"
        ):
            [hit] = search(store, query, encoder=encoder, limit=3, unique=True)
        assert hit.folded == 30
        notes: list[str] = []
        options = SearchOptions(limit=20, unique=True)
        hits = find_hits(store, query, options, encoder=encoder, notify=notes.append)
        assert [hit.folded for hit in hits] == [40, 0, 0, 0], "all were looked at: nothing to tell"
        assert notes == []
        hits = search(store, query, encoder=encoder, limit=1, unique=True)
        assert len(hits) == 1, "enough were found: nothing to tell"


# ---- Where the answers end ------------------------------------------------------------------------------


def test_the_answers_are_the_first_hits_or_none(store: Store, encoder: Encoder, files: list[Path]) -> None:
    for query in ("wing", files[5], [Term("wing"), Term(str(files[5]), "image")]):
        whole = search(store, query, encoder=encoder, limit=24)
        hits = search(store, query, encoder=encoder, limit=24, relevant=True)
        assert hits == whole[: len(hits)]
        assert len(hits) < 24


@pytest.fixture(scope="module")
def nature(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Encoder]]:
    encoder = Encoder(shared_data / "tiny-clip", device="cpu", precision="fp32")
    with open_store(str(tmp_path_factory.mktemp("db"))) as store:
        ingest(store, [FolderSource(shared_data / "nature10" / "test")], encoder=encoder)
        yield store, encoder


def test_a_query_without_an_answer_finds_nothing_and_one_with_answers_finds_them(
    nature: tuple[Store, Encoder],
) -> None:
    store, encoder = nature
    for query in ("a red sports car", "a man riding a bicycle", "people on a city street"):
        assert len(search(store, query, encoder=encoder)) == 10
        assert search(store, query, encoder=encoder, relevant=True) == []
    birds = search(store, "bird", encoder=encoder, limit=240, relevant=True)
    right = [hit.category == "aves" for hit in birds]
    assert len(right) > 10
    assert np.mean(right) > 0.6
    everywhere = facets(store, birds)
    (aves,) = [facet for facet in everywhere if facet.value == "aves"]
    assert aves.hits > 0.6 * aves.images


@pytest.mark.parametrize("category", ["aves", "mollusca", "arachnida", "reptilia"])
def test_a_filter_that_keeps_the_answers_out_leaves_none(
    nature: tuple[Store, Encoder], category: str
) -> None:
    store, encoder = nature
    assert search(store, "mushroom", encoder=encoder, relevant=True, limit=240)
    assert search(store, "mushroom", encoder=encoder, categories=[category], relevant=True) == []
    # Also where the best that is left scores below a picture in general.
    ranked = search(store, "mushroom", encoder=encoder, limit=240)
    worst = Filter(must=(Ids(tuple(hit.id for hit in ranked[-5:])),))
    assert search(store, "mushroom", encoder=encoder, filter=worst, relevant=True) == []


def test_conditions_do_not_change_what_is_relevant(nature: tuple[Store, Encoder]) -> None:
    """What is left of the answers passes the condition; what passes it is not judged by itself."""
    store, encoder = nature
    for query in ("bird", "mammal", "reptile", "insect"):
        relevant = search(store, query, encoder=encoder, relevant=True, limit=240)
        for hits_of in ({hit.category for hit in relevant}, {"aves"}, {"fungi", "plantae"}):
            names = sorted(str(name) for name in hits_of)
            kept = search(store, query, encoder=encoder, relevant=True, limit=240, categories=names)
            assert paths(kept) == [hit.path for hit in relevant if hit.category in hits_of]
            left = search(store, query, encoder=encoder, relevant=True, limit=240, not_categories=names)
            assert paths(left) == [hit.path for hit in relevant if hit.category not in hits_of]


def test_a_subtracted_picture_and_its_copies_sink_and_what_was_asked_for_stays(
    nature: tuple[Store, Encoder],
) -> None:
    store, encoder = nature
    precision = []
    for name, category in NAMES.items():
        (first, *_) = (hit for hit in search(store, name, encoder=encoder) if hit.category == category)
        terms = [Term(name), Term(first.path, "image", -1)]
        # The very picture is the nearest copy that there can be.
        hits = search(store, terms, encoder=encoder, include_self=True)
        assert first.path not in paths(hits), name
        precision.append(np.mean([hit.category == category for hit in hits]))
    assert np.mean(precision) >= 0.9


def test_where_all_pictures_are_answers_most_are_kept(nature: tuple[Store, Encoder]) -> None:
    store, encoder = nature
    hits = search(store, "bird", encoder=encoder, categories=["aves"], limit=240, relevant=True)
    assert len(hits) > 0.6 * len(search(store, "bird", encoder=encoder, categories=["aves"], limit=240))


def test_the_content_of_a_file_is_the_file(store: Store, encoder: Encoder, files: list[Path]) -> None:
    file = files[0]
    by_path = search(store, [Term(str(file), "image")], encoder=encoder)
    by_content = search(store, [Term(file.read_bytes(), "image")], encoder=encoder)
    assert by_content == by_path
    assert str(file) not in [hit.path for hit in by_content]


def test_an_open_collection_is_searched_and_stays_open(store: Store, encoder: Encoder) -> None:
    collection = store.open("photos")
    assert search(collection, "mushroom", encoder=encoder) == search(store, "mushroom", encoder=encoder)
    assert facets(collection, []) == facets(store, [])
    assert collection.count() > 0
    collection.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_folds_copies_with_threads_of_its_own(tmp_path: Path) -> None:
    draw_picture(tmp_path / "a.png", seed=0)
    program = """
import os, signal, sys, warnings
from imret.retrieval.dedupe import NearCopies
from imret.store import Point
points = [Point(name, {"source": sys.argv[1], "path": "a.png", "sha256": name}) for name in ("1", "2")]
assert [folded for _, folded in NearCopies().fold(points)] == [1]
warnings.simplefilter("ignore")  # Python's, of a fork beside threads
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if [folded for _, folded in NearCopies().fold(points)] == [1] else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], cwd=ROOT, timeout=120)
    assert done.returncode == 0
