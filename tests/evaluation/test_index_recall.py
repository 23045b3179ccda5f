"""A collection judged through its index and exactly, in the embedded store."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import imret
from imret import Encoder
from imret.errors import DataError, ModelMismatch
from imret.evaluation import index_recall
from imret.evaluation.evaluate import evaluate
from imret.evaluation.index_recall import evaluate_collection
from imret.evaluation.report import as_dict
from imret.evaluation.text_report import format_report
from imret.store import Store, open_store
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
    for seed in range(36):
        draw_picture(folder / ("aves", "fungi", "insecta")[seed % 3] / f"{seed}.png", seed=seed)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, photos: Path, encoder: Encoder):  # type: ignore[no-untyped-def]
    with open_store(str(tmp_path_factory.mktemp("db"))) as store:
        ingest(store, [FolderSource(photos)], encoder=encoder)
        yield store


def test_the_exact_figures_are_those_of_the_folder_that_was_ingested(
    store: Store, photos: Path, encoder: Encoder
) -> None:
    report = evaluate_collection(store, "photos", encoder=encoder)
    of_folder = evaluate(photos, encoder=encoder, resamples=100).models[0].text_to_image
    macro = {**as_dict(of_folder.macro), "map@100": of_folder.macro.map}  # of 36 pictures
    for metric, value in as_dict(report.exact).items():
        assert value == pytest.approx(macro[metric], abs=2e-4), metric
    for name, category in report.per_category.items():
        assert category.exact == pytest.approx(of_folder.per_category[name].ap, abs=2e-4)
        assert category.images == 12


def test_where_the_index_errs_not_the_difference_is_zero(store: Store, encoder: Encoder) -> None:
    report = evaluate_collection(store, "photos", encoder=encoder)
    assert report.through_index == report.exact
    assert set(as_dict(report.difference).values()) == {0.0}
    assert report.recall == {10: 1.0, 100: 1.0}
    assert (report.images, report.engine) == (36, "embedded")


class _Forgetful:
    """A collection whose index forgets the nearest picture, unless asked for all."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def search(self, vector: np.ndarray, *, limit: int, exact: bool = False) -> list:  # type: ignore[type-arg]
        points = self._inner.search(vector, limit=limit, exact=True)  # type: ignore[attr-defined]
        return points if exact or limit == 36 else points[1:]


def test_the_error_of_an_index_shows_as_the_difference(
    store: Store, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.open
    monkeypatch.setattr(index_recall, "_DEPTH", 20)
    monkeypatch.setattr(store, "open", lambda name: _Forgetful(whole(name)))
    report = evaluate_collection(store, "photos", encoder=encoder)
    assert report.recall[10] == pytest.approx(0.9)
    assert report.recall[100] == pytest.approx(0.95)
    assert report.difference.map == 0  # asked for all, it forgets nothing
    assert report.difference.map_at_100 != 0
    through, exact = as_dict(report.through_index), as_dict(report.exact)
    for metric, value in as_dict(report.difference).items():
        assert value == pytest.approx(through[metric] - exact[metric], abs=2e-4)
    text = format_report(None, report)
    assert "recall of the index @10 0.900" in text
    assert "difference" in text


def test_how_many_are_in_the_index_is_said_only_where_it_is_known(store: Store, encoder: Encoder) -> None:
    report = evaluate_collection(store, "photos", encoder=encoder)
    for indexed, size in (
        (report.images, f"{report.images} pictures, {report.images} in the index"),
        (1, f"{report.images} pictures, 1 in the index, the others scanned"),
        (None, f"{report.images} pictures"),  # a server's count proves nothing
    ):
        assert dataclasses.replace(report, indexed=indexed).size == size


def test_other_names_are_other_queries(store: Store, encoder: Encoder) -> None:
    plain = evaluate_collection(store, "photos", encoder=encoder)
    named = evaluate_collection(store, "photos", encoder=encoder, names={"aves": ("submarine",)})
    assert named.per_category["aves"] != plain.per_category["aves"]
    assert named.per_category["fungi"] == plain.per_category["fungi"]


def test_an_unknown_collection_another_model_and_a_single_category_are_refused(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="photos"):
        evaluate_collection(store, "fotos", encoder=encoder)
    other = Encoder(str(write_random_model(tmp_path / "other", seed=3)), device="cpu", precision="fp32")
    with pytest.raises(ModelMismatch):
        evaluate_collection(store, "photos", encoder=other)
    draw_picture(tmp_path / "one" / "aves" / "a.png")
    ingest(store, [FolderSource(tmp_path / "one")], encoder=encoder, collection="single")
    with pytest.raises(DataError, match="1 category, and two are needed"):
        evaluate_collection(store, "single", encoder=encoder)


def test_the_package_offers_it() -> None:
    assert imret.evaluate_collection is evaluate_collection
