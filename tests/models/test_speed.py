"""What is told of how long pictures will take: near enough to choose by."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from imret.models.choices import CHOICES
from imret.models.fast.vit import VisionTransformer, ViTConfig
from imret.models.lazy_encoder import LazyEncoder
from imret.models.speed import (
    Speed,
    advice_before_download,
    duration_in_words,
    estimate_speed,
    measure_speed,
    operations,
    rate_in_words,
    speed_of,
)
from tests.fakes.model_families import write_family

SMALL = {"embed_dim": 512, "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}}


@pytest.mark.parametrize(
    ("image_size", "layers", "width", "head_width", "patch", "dim", "billions"),
    [
        (224, 12, 768, 64, 32, 512, 8.82),
        (256, 12, 768, 64, 32, 512, 11.5),
        (224, 12, 768, 64, 16, 512, 35.13),
        (224, 24, 1024, 64, 14, 768, 162.03),
        (224, 32, 1280, 80, 14, 1024, 334.59),
    ],
)
def test_the_operations_of_a_tower_are_those_of_open_clips_profile(
    image_size: int, layers: int, width: int, head_width: int, patch: int, dim: int, billions: float
) -> None:
    vision = {"image_size": image_size, "layers": layers, "width": width, "patch_size": patch}
    config = ViTConfig.from_model_cfg({"embed_dim": dim, "vision_cfg": {**vision, "head_width": head_width}})
    assert config is not None
    assert operations(config) / 1e9 == pytest.approx(billions, rel=0.03)  # docs/model_profile.csv


def test_an_estimate_is_near_what_the_tower_takes() -> None:
    config = ViTConfig.from_model_cfg(SMALL)
    assert config is not None
    weights = {name: torch.randn(shape) / 50 for name, shape in config.tensor_shapes().items()}
    tower, pixels = VisionTransformer(config, weights), torch.rand(32, 3, 224, 224)

    def seconds_a_picture() -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            tower.encode_image(pixels)
        return (time.perf_counter() - started) / len(pixels)

    before = min(seconds_a_picture() for _ in range(2))
    speed = estimate_speed(SMALL, device="cpu", precision="fp32")
    after = min(seconds_a_picture() for _ in range(2))
    assert speed is not None
    assert (speed.device, speed.precision) == ("cpu", "fp32")
    # Other programs come and go between the two: near is within a factor of four here.
    assert min(before, after) / 4 < 1 / speed.pictures_per_s < 4 * max(before, after) + 0.2


def test_every_choice_has_an_estimate_and_other_towers_have_none() -> None:
    speeds = {name: speed_of(name, device="cpu") for name in CHOICES}
    assert all(speeds.values())
    rates = [speed.pictures_per_s for name in ("small", "base", "large", "huge") if (speed := speeds[name])]
    assert rates == sorted(rates, reverse=True)
    assert speed_of("hf-hub:org/repo") is None
    assert estimate_speed({"embed_dim": 8, "vision_cfg": {"layers": [3, 4, 6, 3], "width": 64}}) is None
    assert estimate_speed({"embed_dim": 8, "vision_cfg": {"timm_model_name": "convnext_base"}}) is None


def test_what_is_told_before_a_download_names_time_and_what_is_smaller() -> None:
    told = advice_before_download(CHOICES["huge"].model, device="cpu")
    assert told.startswith("on this machine about ")
    assert "1,000 take about " in told
    assert "Smaller: --model base (0.6 GB, about " in told
    assert "Smaller" not in advice_before_download(CHOICES["small"].model, device="cpu")
    assert advice_before_download("hf-hub:org/repo", device="cpu") == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 1 second"),
        (59, "about 59 seconds"),
        (100, "about 2 minutes"),
        (1680, "about 28 minutes"),
        (7200, "about 2 hours"),
        (200_000, "about 2 days"),
    ],
)
def test_a_time_is_told_in_one_unit(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.0417, "0.04 pictures/s"),
        (0.63, "0.6 pictures/s"),
        (9.04, "9.0 pictures/s"),
        (1234, "1,200 pictures/s"),
    ],
)
def test_a_rate_has_no_more_digits_than_it_is_worth(rate: float, words: str) -> None:
    assert rate_in_words(Speed(rate, "cpu", "fp32")) == words


def test_a_tower_of_any_kind_is_measured_by_encoding_a_few_pictures(tmp_path: Path) -> None:
    model = write_family(tmp_path / "convnext", "convnext")
    speed = measure_speed(LazyEncoder(model, device="cpu", precision="fp32"))
    assert (speed.device, speed.precision) == ("cpu", "fp32")
    assert 0.1 < speed.pictures_per_s < 10_000
