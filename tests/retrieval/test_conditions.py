"""What is said of an answer: what was left out of it, and which condition left nothing."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imret import Encoder
from imret.defaults import DEFAULT_COLLECTION
from imret.retrieval.notes import notes_of, on_command_line
from imret.retrieval.query import Term
from imret.retrieval.results import Hits, WithoutCondition
from imret.retrieval.search import search
from imret.store import Filter, Match, Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture

CATEGORIES = ("fungi", "aves", "insecta")


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of each of three categories, one of which lies in another, too; one without category."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(15):
        draw_picture(folder / CATEGORIES[seed % 3] / f"{seed:02}.png", seed=seed)
    shutil.copy(folder / "fungi" / "00.png", folder / "aves" / "copy.png")
    draw_picture(folder / "loose.png", seed=50)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, photos: Path, encoder: Encoder) -> Iterator[Store]:
    with open_store(str(tmp_path_factory.mktemp("db"))) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        yield store


def one_reason(hits: Hits) -> WithoutCondition:
    assert hits == []
    (without,) = hits.emptied_by
    return without


@pytest.mark.parametrize("include_self", [False, True])
@pytest.mark.parametrize(
    ("query", "options", "left_out"),
    [
        (Term("wing"), {}, 0),
        (Term("PICTURE", "stored"), {}, 2),
        ([Term("wing"), Term("PICTURE", "image", weight=-1)], {}, 2),
        (Term("PICTURE", "image"), {"categories": ["fungi"]}, 1),
        (Term("PICTURE", "image"), {"categories": ["insecta"]}, 0),
        (Term("PICTURE", "image"), {"min_score": 0.9999}, 2),
        (Term("PICTURE", "image"), {"offset": 5, "limit": 1}, 2),
        (Term("PICTURE", "image"), {"group_by": "category", "limit": 1}, 2),
        ([Term("wing"), Term("PICTURE", "image")], {"min_score": 0.9999}, 0),
    ],
)
def test_identical_pictures_that_were_left_out_are_counted(
    store: Store,
    encoder: Encoder,
    photos: Path,
    query: Term | list[Term],
    options: dict[str, Any],
    left_out: int,
    include_self: bool,
) -> None:
    picture = str(photos / "fungi" / "00.png")
    terms = [
        replace(term, value=picture) if term.value == "PICTURE" else term
        for term in (query if isinstance(query, list) else [query])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is told by the answer alone
        hits = search(store, terms, encoder=encoder, include_self=include_self, **options)
    assert hits.left_out == (0 if include_self else left_out)


def test_a_group_is_only_left_what_is_in_one(store: Store, encoder: Encoder, photos: Path) -> None:
    loose = Term(str(photos / "loose.png"), "image")
    assert search(store, loose, encoder=encoder).left_out == 1
    assert search(store, loose, encoder=encoder, group_by="category").left_out == 0


def test_the_sentence_on_what_was_left_out_names_the_way_back(
    store: Store, encoder: Encoder, photos: Path
) -> None:
    hits = search(store, Term(str(photos / "fungi" / "00.png"), "image"), encoder=encoder)
    assert hits.notes == ["2 identical pictures left out (include_self=True)"]
    assert notes_of(hits, on_command_line) == ["2 identical pictures left out (--include-self)"]
    hits = search(store, Term(str(photos / "aves" / "01.png"), "image"), encoder=encoder)
    assert notes_of(hits, on_command_line) == ["1 identical picture left out (--include-self)"]
    assert search(store, "wing", encoder=encoder).notes == []


@pytest.mark.parametrize(
    ("options", "condition", "kept"),
    [
        ({"where": ["width>=9999"]}, ("where", "width>=9999"), 17),
        ({"where": ["width>=1", "path=gone.png"]}, ("where", "path=gone.png"), 17),
        ({"where": ["category=fungi", "path=gone.png"]}, ("where", "path=gone.png"), 5),
        ({"min_score": 0.99}, ("min_score", 0.99), 17),
        ({"min_score": 0.99, "unique": True, "categories": ["aves"]}, ("min_score", 0.99), 6),
        ({"filter": Filter((Match("path", ("gone.png",)),))}, ("filter", True), 17),
        ({"group_by": "category", "where": ["path=loose.png"]}, ("where", "path=loose.png"), 16),
    ],
)
def test_the_condition_that_left_none_is_named_with_the_best_without_it(
    store: Store, encoder: Encoder, options: dict[str, Any], condition: tuple[str, Any], kept: int
) -> None:
    hits = search(store, "wing", encoder=encoder, **options)
    assert hits == []
    without = next(one for one in hits.emptied_by if one.conditions == (condition,))
    assert without.kept == kept
    rest = {key: value for key, value in options.items() if key not in ("unique", condition[0])}
    if condition[0] == "where":
        rest["where"] = [text for text in options["where"] if text != condition[1]]
    best = search(store, "wing", encoder=encoder, **rest)[0]
    assert (without.path, without.score) == (best.path, pytest.approx(best.score))


def test_each_condition_that_would_do_is_named(store: Store, encoder: Encoder) -> None:
    hits = search(store, "wing", encoder=encoder, categories=["fungi"], where=["category=aves", "width>=1"])
    assert [one.conditions for one in hits.emptied_by] == [
        (("categories", ("fungi",)),),
        (("where", "category=aves"),),
    ]
    assert [one.kept for one in hits.emptied_by] == [6, 5]
    assert [note.split(";")[0] for note in notes_of(hits, on_command_line)] == [
        "no hits: --category fungi leaves none of 6 pictures",
        "no hits: --where category=aves leaves none of 5 pictures",
    ]


def test_conditions_that_only_together_leave_some_are_named_together(store: Store, encoder: Encoder) -> None:
    hits = search(store, "wing", encoder=encoder, where=["path=gone.png", "width>=9999"], min_score=-1)
    without = one_reason(hits)
    assert without.conditions == (("where", "path=gone.png"), ("where", "width>=9999"), ("min_score", -1))
    (best,) = search(store, "wing", encoder=encoder, limit=1)
    assert notes_of(hits, on_command_line, shown=lambda path: Path(path).name) == [
        "no hits: --where path=gone.png, --where 'width>=9999' and --min-score -1 together leave none of 17 "
        f"pictures; without them the best is {best.score:.3f} {Path(best.path).name}"
    ]


def test_an_offset_after_the_last_good_match_is_what_left_none(store: Store, encoder: Encoder) -> None:
    third = search(store, "wing", encoder=encoder, limit=3)[2]
    options: dict[str, Any] = {"min_score": third.score - 1e-6, "offset": 5, "where": ["width>=1"]}
    without = one_reason(search(store, "wing", encoder=encoder, **options))
    assert (without.conditions, without.kept, without.of) == ((("offset", 5),), 3, "min_score")


def test_of_a_picture_that_is_alone_nothing_is_left_but_itself(
    store: Store, encoder: Encoder, photos: Path
) -> None:
    picture = Term(str(photos / "fungi" / "00.png"), "image")
    hits = search(store, picture, encoder=encoder, where=["path=fungi/00.png"])
    assert hits.left_out == 1
    assert [one.conditions[0][0] for one in hits.emptied_by] == ["where", "include_self"]
    assert notes_of(hits, on_command_line, shown=lambda path: Path(path).name) == [
        "1 identical picture left out (--include-self)",
        f"no hits: --where path=fungi/00.png leaves none of 15 pictures; without it the best is "
        f"{hits.emptied_by[0].score:.3f} {Path(hits.emptied_by[0].path).name}",
        "no hits: nothing else is left of 1 picture; with --include-self the best is 1.000 00.png",
    ]


def test_pictures_without_a_group_are_in_none_and_that_is_said(encoder: Encoder, tmp_path: Path) -> None:
    draw_picture(tmp_path / "photos" / "loose.png", seed=1)
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder)
        hits = search(store, "wing", encoder=encoder, group_by="category")
    (note,) = notes_of(hits, on_command_line)
    assert note.startswith("no hits: --group-by category leaves none of 1 picture; without it the best is ")


def test_where_all_conditions_are_met_nothing_is_said(store: Store, encoder: Encoder) -> None:
    hits = search(store, "wing", encoder=encoder, categories=["fungi"], where=["width>=1"], min_score=-1)
    assert len(hits) == 5
    assert (hits.emptied_by, hits.notes) == ((), [])


def test_a_search_that_found_something_asks_the_store_no_more(
    store: Store, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    with closing(store.open(DEFAULT_COLLECTION)) as collection:
        search_ = collection.search
        monkeypatch.setattr(
            collection, "search", lambda *args, **kw: (asked.append(1), search_(*args, **kw))[1]
        )
        search(collection, "wing", encoder=encoder, categories=["fungi"], min_score=-1)
        assert len(asked) == 1
        search(collection, "wing", encoder=encoder, where=[f"width>={9000 + n}" for n in range(30)])
    assert len(asked) < 25  # however many conditions there are


# ---- What a good match is -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nature(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Encoder]]:
    encoder = Encoder(str(shared_data / "tiny-clip"), device="cpu", precision="fp32")
    with open_store(str(tmp_path_factory.mktemp("nature"))) as store:
        ingest(store, [FolderSource(shared_data / "nature10" / "test")], encoder=encoder)
        yield store, encoder


def test_good_matches_that_a_category_left_out_are_counted(nature: tuple[Store, Encoder]) -> None:
    store, encoder = nature
    answers = search(store, "a photo of a mushroom", encoder=encoder, relevant=True, limit=1000)
    missing = {"fungi", "aves", "mammalia", "plantae", "reptilia"} - {hit.category for hit in answers}
    assert missing  # else nothing is shown here
    category = min(missing)
    hits = search(store, "a photo of a mushroom", encoder=encoder, relevant=True, categories=[category])
    by_category, by_relevance = hits.emptied_by
    assert (by_category.kept, by_category.of) == (len(answers), "relevant")
    assert by_category.path == answers[0].path
    assert by_relevance.conditions == (("relevant", True),)
    first, second = notes_of(hits, on_command_line)
    assert first.startswith(f"no hits: --category {category} leaves none of {len(answers)} good match")
    assert "is a good match (--relevant); without it the best is " in second


def test_where_nothing_is_about_the_query_that_is_said(nature: tuple[Store, Encoder]) -> None:
    store, encoder = nature
    hits = search(store, "a page of a tax form", encoder=encoder, relevant=True)
    without = one_reason(hits)
    assert without.conditions == (("relevant", True),)
    (best,) = search(store, "a page of a tax form", encoder=encoder, limit=1)
    assert (without.path, without.score) == (best.path, pytest.approx(best.score))
