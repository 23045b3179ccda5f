"""Queries become ranked hits: order, filters, templates, and what is refused."""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import imret
import imret.models.encoder
from imret import Encoder
from imret.errors import DataError, ModelMismatch
from imret.models.known_models import note_model
from imret.models.resolve import resolve_model
from imret.retrieval.categories import with_stored_categories
from imret.retrieval.kept_encoders import kept_encoder
from imret.retrieval.prompts import CLIP_TEMPLATES, fill
from imret.retrieval.query_vector import query_vector
from imret.retrieval.search import search
from imret.store import Collection, Filter, Identity, Match, Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.model_families import write_family
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
    with pytest.raises(
        ModelMismatch, match=r"was built with '.*random'(.|\n)*Search with --model .*random"
    ) as refused:
        search(store, "wing", encoder=other)
    again = f"imret ingest SOURCE --db {store.address} --model {tmp_path / 'other'} --rebuild"
    assert str(refused.value).endswith(again)


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


def _searched_alone(
    store: Store | Collection, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[weakref.ref[Encoder]], Callable[[str], object]]:
    """Return where each model that is loaded is noted, and what searches without an encoder of one's own."""
    monkeypatch.setenv("IMRET_QUERY_CACHE", "off")
    loaded: list[weakref.ref[Encoder]] = []
    init = imret.models.encoder.Encoder.__init__

    def noting(self: Encoder, *args: Any, **options: Any) -> None:
        loaded.append(weakref.ref(self))
        init(self, *args, **options)

    monkeypatch.setattr("imret.models.encoder.Encoder.__init__", noting)
    return loaded, lambda query: search(store, query, limit=2)


def test_searches_that_name_no_encoder_share_one_until_the_store_is_closed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Encoder(write_random_model(tmp_path / "model", seed=0))
    queries = [f"wing number {i}" for i in range(12)]
    with open_store(tmp_path / "db") as store:
        ingest(store, [FolderSource(photos)], encoder=own)
        expected = [search(store, query, encoder=own, limit=2) for query in queries]
        loaded, ask = _searched_alone(store, monkeypatch)
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(ask, queries)) == expected
        assert len(loaded) == 1
        with closing(store.open("photos")) as collection:
            assert search(collection, "wing number 3", limit=2) == expected[3]
        assert len(loaded) == 1
        gc.collect()
        assert loaded[0]() is not None
    gc.collect()
    assert loaded[0]() is None, "a closed store keeps its model"


def test_a_model_whose_files_have_changed_is_not_the_one_that_was_kept(
    photos: Path, encoder: Encoder, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(random_model, tmp_path / "model")
    with open_store(tmp_path / "db") as store:
        ingest(store, [FolderSource(photos)], encoder=Encoder(model, device="cpu", precision="fp32"))
        loaded, ask = _searched_alone(store, monkeypatch)
        ask("wing")
        other = write_random_model(tmp_path / "other", seed=5)
        os.replace(other / "open_clip_model.safetensors", model / "open_clip_model.safetensors")
        again = rf"(?s)has changed since.*SOURCE --db {tmp_path / 'db'} --model {model} --rebuild"
        with pytest.raises(ModelMismatch, match=again):
            ask("wing")
        assert len(loaded) == 1


def test_an_encoder_is_not_kept_when_the_tokenizer_has_changed(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = write_family(tmp_path / "model", "siglip")
    identity = Identity(str(model), "0" * 64, 32)
    note_model(resolve_model(model))
    with open_store(tmp_path / "db") as store, closing(store.open_version("photos", identity)) as collection:
        first = kept_encoder(store, collection)
        assert kept_encoder(store, collection) is first
        tokenizer = model / "tokenizer.json"
        tokenizer.write_text(tokenizer.read_text() + " ")
        assert kept_encoder(store, collection) is not first


def test_a_model_that_is_kept_is_not_looked_up_again_while_its_files_are_the_same(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(random_model, tmp_path / "model")
    files = resolve_model(model)
    identity = Identity(str(model), files.images_fingerprint, files.dim)
    note_model(files)
    with open_store(tmp_path / "db") as store, closing(store.open_version("photos", identity)) as collection:
        first = kept_encoder(store, collection)
        listed: list[object] = []
        listdir = os.listdir

        def listing(*place: Any) -> list[str]:
            listed.append(place)
            return listdir(*place)

        monkeypatch.setattr(os, "listdir", listing)
        assert kept_encoder(store, collection) is first
        assert listed == []
        config = model / "open_clip_config.json"
        changed = json.loads(config.read_text())
        changed["preprocess_cfg"]["mean"] = [0.25, 0.25, 0.25]
        config.write_text(json.dumps(changed))
        other = kept_encoder(store, collection)
        assert other.files.preprocess.mean == (0.25, 0.25, 0.25)
        assert listed, "whether it is still the one that was chosen has been looked up"


def test_of_many_models_those_used_last_are_kept(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(tmp_path / "db") as store:
        for seed in range(3):
            model = write_random_model(tmp_path / str(seed), seed=seed)
            made = Encoder(model, device="cpu", precision="fp32")
            ingest(store, [FolderSource(photos)], encoder=made, collection=f"c{seed}")
        del made
        loaded, _ = _searched_alone(store, monkeypatch)
        for name in ("c0", "c1", "c0", "c1", "c2", "c1"):
            search(store, "wing", collection=name, limit=2)
        gc.collect()
        assert len(loaded) == 3
        assert [encoder() is not None for encoder in loaded] == [False, True, True]


@pytest.mark.parametrize("query", ["", "   ", "\n"])
def test_an_empty_query_is_refused(store: Store, encoder: Encoder, query: str) -> None:
    with pytest.raises(DataError, match="query is empty"):
        search(store, query, encoder=encoder)


def test_a_short_query_is_the_mean_of_its_templates_and_a_long_one_is_itself(encoder: Encoder) -> None:
    mean = encoder.encode_texts([fill(template, "red mushroom") for template in CLIP_TEMPLATES]).mean(axis=0)
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


def test_of_a_hundred_thousand_categories_a_message_names_a_few_at_once() -> None:
    class Many:
        name = "photos"

        def facet(self, field: str) -> dict[str, int]:
            return {f"category {i}": 1 for i in range(100_000)}

    began = time.perf_counter()
    with pytest.raises(DataError) as caught:
        with_stored_categories(cast(Collection, Many()), [Filter((Match("category", ("x" * 2000,)),))])
    with pytest.raises(
        DataError, match=r"no category 'categry 17' in .*Did you mean 'category 17'\?\nThere are: "
    ):
        with_stored_categories(cast(Collection, Many()), [Filter((Match("category", ("categry 17",)),))])
    assert time.perf_counter() - began < 5
    assert len(str(caught.value)) < 800
    assert str(caught.value).endswith(" and 99,980 more")
