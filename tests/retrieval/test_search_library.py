"""Queries become ranked hits: order, filters, templates, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import imret
from imret import Encoder
from imret.errors import DataError, ModelMismatch
from imret.retrieval.prompts import SEARCH_TEMPLATES, fill
from imret.retrieval.query_vector import query_vector
from imret.retrieval.search import search
from imret.store import Identity, Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(24):
        draw_picture(folder / ("fungi", "aves", "insecta")[seed % 3] / f"{seed}.png", seed=seed)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, photos: Path, encoder: Encoder):  # type: ignore[no-untyped-def]
    with open_store(str(tmp_path_factory.mktemp("db"))) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        yield store


def _exact(
    photos: Path, encoder: Encoder, query: str, categories: set[str] | None = None
) -> list[tuple[str, float]]:
    """The oracle: every picture against the query, in numpy."""
    files = [f for f in sorted(photos.rglob("*.png")) if categories is None or f.parent.name in categories]
    scores = encoder.encode_images(files) @ query_vector(encoder, query)
    return sorted(zip(map(str, files), scores.tolist(), strict=True), key=lambda pair: -pair[1])


def test_hits_are_ranked_as_an_exact_search_ranks_them(store: Store, photos: Path, encoder: Encoder) -> None:
    hits = search(store, "a red thing", encoder=encoder, limit=24)
    expected = _exact(photos, encoder, "a red thing")
    assert [hit.path for hit in hits] == [path for path, _ in expected]
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-4)
    assert [hit.rank for hit in hits] == list(range(1, 25))


def test_several_categories_mean_any_of_them(store: Store, photos: Path, encoder: Encoder) -> None:
    hits = search(store, "wing", encoder=encoder, categories=["aves", "insecta"], limit=24)
    assert [hit.path for hit in hits] == [
        path for path, _ in _exact(photos, encoder, "wing", {"aves", "insecta"})
    ]
    assert {hit.category for hit in hits} == {"aves", "insecta"}


def test_excluded_categories_conditions_and_a_filter_hold_together(store: Store, encoder: Encoder) -> None:
    hits = search(
        store,
        "wing",
        encoder=encoder,
        not_categories=["aves"],
        where=["path!=fungi/0.png"],
        filter=imret.Filter(must=(imret.Match("category", ("aves", "fungi")),)),
        limit=24,
    )
    assert sorted(Path(hit.path).name for hit in hits) == sorted(f"{seed}.png" for seed in range(3, 24, 3))
    with pytest.raises(DataError, match="no field 'wdth'"):
        search(store, "wing", encoder=encoder, where=["wdth=3"])


def test_limit_cuts_the_ranking(store: Store, photos: Path, encoder: Encoder) -> None:
    hits = search(store, "wing", encoder=encoder, limit=3)
    assert [hit.path for hit in hits] == [path for path, _ in _exact(photos, encoder, "wing")[:3]]


def test_the_collection_knows_its_model(store: Store, encoder: Encoder) -> None:
    named = search(store, "wing", encoder=Encoder(encoder.model_id), limit=5)
    assert search(store, "wing", limit=5) == named


def test_an_unknown_category_is_refused_with_those_that_exist_nearest_first(
    store: Store, encoder: Encoder
) -> None:
    with pytest.raises(
        DataError, match=r"no category 'fungy'.*Did you mean 'fungi'\?\nThere are: fungi, aves, insecta"
    ):
        search(store, "wing", encoder=encoder, categories=["fungy"])


def test_an_unknown_collection_is_refused_with_those_that_exist(store: Store, encoder: Encoder) -> None:
    with pytest.raises(DataError, match="photos"):
        search(store, "wing", encoder=encoder, collection="fotos")


def test_another_model_is_refused_also_when_dimensions_agree(store: Store, tmp_path: Path) -> None:
    other = Encoder(str(write_random_model(tmp_path / "other", seed=3)), device="cpu", precision="fp32")
    with pytest.raises(ModelMismatch, match=r"was built with '.*random'(.|\n)*Search with --model .*random"):
        search(store, "wing", encoder=other)


def test_a_collection_of_former_fingerprints_is_searched_and_filled_as_it_is(
    photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    former = encoder.files.former_images_fingerprint
    assert former != encoder.images_fingerprint
    identity = Identity(encoder.model_id, former, encoder.dim)
    with open_store(tmp_path / "db") as store:
        store.open_version("photos", identity).close()
        store.promote("photos", identity)
        report = ingest(store, [FolderSource(photos)], encoder=encoder)
        assert (report.added, report.fingerprint) == (24, former)
        assert store.live("photos") == identity
        assert [hit.path for hit in search(store, "a red thing", encoder=encoder, limit=24)] == [
            path for path, _ in _exact(photos, encoder, "a red thing")
        ]
        assert ingest(store, [FolderSource(photos)], encoder=encoder).unchanged == 24


@pytest.mark.parametrize("query", ["", "   ", "\n"])
def test_an_empty_query_is_refused(store: Store, encoder: Encoder, query: str) -> None:
    with pytest.raises(DataError, match="query is empty"):
        search(store, query, encoder=encoder)


def test_a_short_query_is_the_mean_of_its_templates_and_a_long_one_is_itself(encoder: Encoder) -> None:
    mean = encoder.encode_texts([fill(template, "red mushroom") for template in SEARCH_TEMPLATES]).mean(
        axis=0
    )
    np.testing.assert_allclose(
        query_vector(encoder, " red  mushroom "), mean / np.linalg.norm(mean), atol=1e-6
    )
    caption = "a red mushroom with white spots"
    np.testing.assert_allclose(query_vector(encoder, caption), encoder.encode_texts([caption])[0], atol=1e-6)
    bare = encoder.encode_texts(["mushroom"])[0]
    np.testing.assert_allclose(query_vector(encoder, "mushroom", template=False), bare, atol=1e-6)


def test_braces_in_a_query_are_text(encoder: Encoder) -> None:
    assert query_vector(encoder, "{0} {x}").shape == (32,)


def test_the_package_offers_the_same_search(store: Store, encoder: Encoder) -> None:
    assert imret.search(store, "wing", encoder=encoder) == search(store, "wing", encoder=encoder)
