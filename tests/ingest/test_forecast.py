"""What an ingest says before it embeds: how many pictures, how long, and what would be quicker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imret.models import speed
from imret.models.choices import CHOICES
from imret.models.lazy_encoder import LazyEncoder
from imret.models.speed import Speed
from imret.store import Store, open_store
from ingest.forecast import Forecast
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.hub import put_into_cache
from tests.fakes.pictures import draw_picture


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(30):
        draw_picture(tmp_path / "photos" / f"{i}.jpg", seed=i)
    return tmp_path / "photos"


def told(store: Store, folder: Path, model: str | Path, *, rebuild: bool = False) -> str:
    encoder = LazyEncoder(model, device="cpu", precision="fp32")
    return Forecast(store, "photos", [FolderSource(folder)], rebuild=rebuild).told(encoder)


def test_a_first_ingest_says_how_many_pictures_and_how_long(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    with open_store(tmp_path / "db") as store:
        said = told(store, photos, random_model)
        assert re.fullmatch(
            rf"30 pictures to embed, about \d+ seconds? with {random_model} on cpu in fp32", said
        )


def test_only_what_is_new_is_counted_unless_all_is_embedded_again(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    with open_store(tmp_path / "db") as store:
        ingest(store, [FolderSource(photos)], encoder=LazyEncoder(random_model, device="cpu"))
        draw_picture(photos / "new.jpg", seed=99)
        assert told(store, photos, random_model).startswith("1 picture to embed with ")
        assert told(store, photos, random_model, rebuild=True).startswith("31 pictures to embed, about ")


def test_where_it_takes_long_the_quicker_model_is_named_before_it_is_too_late(
    photos: Path, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    put_into_cache(tmp_path / "hub", CHOICES["huge"].repo, random_model)
    monkeypatch.setattr(speed, "estimate_speed", lambda cfg, **where: Speed(0.1, "cpu", "fp32"))
    monkeypatch.setattr(speed, "speed_of", lambda name, **where: Speed(2.0, "cpu", "fp32"))
    with open_store(tmp_path / "db") as store:
        assert told(store, photos, "huge") == (
            "30 pictures to embed, about 5 minutes with ViT-H-14/laion2b_s32b_b79k on cpu in fp32; "
            "with --model base about 15 seconds (to choose that, stop this now with Ctrl-C: "
            "a collection keeps its first model)"
        )
        # A collection that there is keeps its model.
        ingest(store, [FolderSource(photos)], encoder=LazyEncoder(random_model, device="cpu"))
        assert "--model" not in told(store, photos, "huge", rebuild=True)
