"""A collection's own model is read as it was when the collection was made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from numpy.typing import NDArray

from imret import Encoder
from imret.errors import ModelMismatch
from imret.images.preprocess import parse_preprocess
from imret.models.fingerprint import ModelFiles
from imret.models.known_models import note_model
from imret.models.lazy_encoder import LazyEncoder
from imret.models.resolve import resolve_model
from imret.retrieval.collection_encoder import check_same_encoder, collection_encoder
from imret.retrieval.kept_encoders import kept_encoder
from imret.retrieval.search import search
from imret.store import Identity, Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path / "db") as store:
        yield store


def read_by_default(model: Path, arch: str) -> ModelFiles:
    """A checkpoint as imret read it before it asked what is published."""
    get_model_config: Any = open_clip.get_model_config
    weights, cfg = model / "open_clip_model.safetensors", get_model_config(arch)
    return ModelFiles(f"{arch}:{weights}", cfg, parse_preprocess({}, cfg, arch), weights, arch)


def make_collection(store: Store, model_id: str, fingerprint: str, dim: int) -> Identity:
    identity = Identity(model_id, fingerprint, dim)
    note_model(resolve_model(model_id))
    store.open_version("photos", identity).close()
    store.promote("photos", identity)
    return identity


@pytest.mark.parametrize("bound_to", ["bytes", "tensors"])
@pytest.mark.parametrize(
    ("arch", "differs"),
    [
        ("RN50", "quick_gelu False instead of True"),
        ("ViT-L-14-336", "quick_gelu False instead of True"),
        ("roberta-ViT-B-32", "quick_gelu True instead of False"),
        ("ViT-B-16-SigLIP", "resize_mode shortest instead of squash"),
        ("MobileCLIP-S1", "interpolation bicubic instead of bilinear"),
    ],
)
def test_a_checkpoint_is_read_as_it_was_for_the_collection_that_was_made_so(
    store: Store, random_model: Path, arch: str, differs: str, bound_to: str
) -> None:
    former = read_by_default(random_model, arch)
    by_bytes = bound_to == "bytes"
    fingerprint = former.former_images_fingerprint if by_bytes else former.images_fingerprint
    identity = make_collection(store, former.model_id, fingerprint, former.dim)
    published = resolve_model(former.model_id)
    assert not published.embeds_as(fingerprint)
    told: list[str] = []
    named: list[dict[str, Any]] = [{}, {"model": former.model_id}]
    for options in named:
        encoder = collection_encoder(store, "photos", notify=told.append, **options)
        assert encoder.files == former
        assert encoder.embeds_as(fingerprint)
    assert len(told) == 2
    assert differs in told[0]
    assert told[0].endswith(f"imret ingest SOURCE --collection photos --model {former.model_id} --rebuild")
    assert collection_encoder(store, "photos", rebuild=True).files == published
    with closing(store.open("photos")) as collection:
        assert kept_encoder(store, collection).files == former
        check_same_encoder(collection, encoder)
        with pytest.raises(ModelMismatch, match=r"open_clip's defaults(.|\n)* are the same\.\n.*rebuild"):
            check_same_encoder(collection, LazyEncoder(published))
    assert store.live("photos") == identity


def test_a_collection_of_the_published_reading_or_of_other_weights_is_told_nothing(
    store: Store, random_model: Path
) -> None:
    published = resolve_model(random_model / "open_clip_model.safetensors", arch="ViT-B-16-SigLIP")
    make_collection(store, published.model_id, published.images_fingerprint, published.dim)
    told: list[str] = []
    assert collection_encoder(store, "photos", notify=told.append).files == published
    other = make_collection(store, published.model_id, "0" * 64, published.dim)
    encoder = collection_encoder(store, "photos", notify=told.append)
    assert encoder.files == published
    assert told == []
    with (
        closing(store.open_version("photos", other)) as collection,
        pytest.raises(ModelMismatch, match="has changed since"),
    ):
        check_same_encoder(collection, encoder)


def test_such_a_collection_is_searched_as_before_until_it_is_rebuilt(
    store: Store, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = json.loads((random_model / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny-test.json").write_text(json.dumps(cfg))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    like_siglip = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-test", {"web": {"url": "", **like_siglip}})
    former = read_by_default(random_model, "tiny-test")
    for seed in range(6):
        draw_picture(tmp_path / "photos" / f"{seed}.png", seed=seed)
    photos = FolderSource(tmp_path / "photos")
    made_with = Encoder(former, device="cpu", precision="fp32")
    ingest(store, [photos], encoder=made_with)

    def scores(encoder: Encoder | None = None) -> NDArray[np.float32]:
        hits = search(store, "wing", limit=6, encoder=encoder)
        return np.array([hit.score for hit in sorted(hits, key=lambda hit: hit.path)], np.float32)

    before = scores(made_with)
    np.testing.assert_allclose(scores(), before, atol=5e-3)  # which may round to bf16
    assert ingest(store, [photos], encoder=collection_encoder(store, "photos")).unchanged == 6
    published = resolve_model(former.model_id)
    with pytest.raises(ModelMismatch, match="SOURCE"):
        scores(Encoder(published, device="cpu"))
    with pytest.raises(ModelMismatch, match=r"weights of 'tiny-test:.*' are the same\.\n.*--rebuild"):
        ingest(store, [photos], encoder=Encoder(published, device="cpu"))
    new = collection_encoder(store, "photos", model=former.model_id, rebuild=True)
    assert ingest(store, [photos], encoder=new, rebuild=True).added == 6
    assert store.live("photos") == Identity(former.model_id, published.images_fingerprint, 32)
    told: list[str] = []
    assert collection_encoder(store, "photos", notify=told.append).files == published
    assert told == []
    assert np.abs(scores() - before).max() > 2e-2
