"""What a model has caption_hits: captions against a naive loop, ties, and pictures that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imret import Encoder
from imret.errors import DataError
from imret.evaluation import retention
from imret.evaluation.dataset import encode_captions
from imret.evaluation.retention import captioned_in, retention_of
from imret.models.encoder import TextTruncated
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


def _captioned(folder: Path, n: int = 12) -> Path:
    """n pictures with 1 to 3 captions each."""
    lines = ["path,caption"]
    for i in range(n):
        draw_picture(folder / "images" / f"{i}.png", seed=i)
        lines += [f"{i}.png,thing {i} of kind {j}" for j in range(1 + i % 3)]
    (folder / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "captions.csv"


@pytest.mark.parametrize("chunk", [5, 256])
def test_captions_find_pictures_as_in_a_naive_loop(
    tmp_path: Path, encoder: Encoder, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_QUERIES", chunk)
    captioned = captioned_in(_captioned(tmp_path))
    caption_hits = retention_of(captioned, encoder)
    images = encoder.encode_images([captioned.root / path for path in captioned.paths])
    scores = encoder.encode_texts([caption for caption, _ in captioned.captions]) @ images.T
    own = [i for _, i in captioned.captions]
    text_ranks = [sorted(range(12), key=lambda i: (-row[i], i)).index(own[t]) for t, row in enumerate(scores)]
    image_ranks = []
    for i in range(12):
        order = sorted(range(len(own)), key=lambda t: (-scores[t, i], t))
        image_ranks.append(min(order.index(t) for t in range(len(own)) if own[t] == i))
    for k in (1, 5, 10):
        assert caption_hits.report.hit_rate[k] == pytest.approx(np.mean(np.array(text_ranks) < k), abs=1e-4)
        assert caption_hits.report.image_to_text.hit_rate[k] == pytest.approx(
            np.mean(np.array(image_ranks) < k), abs=1e-4
        )
    assert caption_hits.hits.tolist() == [rank < 10 for rank in text_ranks]
    assert caption_hits.own.tolist() == own
    assert (caption_hits.report.queries, caption_hits.report.images, caption_hits.report.cut) == (24, 12, 0)


def test_a_model_that_says_the_same_of_everything_keeps_nothing(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = np.eye(1, 32, dtype=np.float32)
    monkeypatch.setattr(encoder, "encode_pixels", lambda pixels: np.repeat(one, len(pixels), axis=0))
    monkeypatch.setattr(encoder, "encode_texts", lambda texts: np.repeat(one, len(texts), axis=0))
    report = retention_of(captioned_in(_captioned(tmp_path)), encoder).report
    assert report.hit_rate[1] == pytest.approx(1 / 24, abs=1e-4)
    assert report.image_to_text.hit_rate[1] == pytest.approx(1 / 12, abs=1e-4)


def test_captions_that_were_cut_are_counted_without_a_warning_for_each(encoder: Encoder) -> None:
    long = "mushroom " * 200
    vectors, cut = encode_captions(encoder, [long, "short", long + "!"])
    assert vectors.shape == (3, 32)
    assert cut == 2
    with pytest.warns(TextTruncated, match="was cut"):
        encoder.encode_texts([long])


def test_so_few_pictures_that_every_caption_finds_its_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names 10 pictures: every caption finds its own among the first 10"):
        captioned_in(_captioned(tmp_path, 10))
    assert len(captioned_in(_captioned(tmp_path, 11)).paths) == 11


def test_a_captioned_picture_that_cannot_be_read_is_named(tmp_path: Path, encoder: Encoder) -> None:
    file = _captioned(tmp_path)
    (tmp_path / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"'3\.png' of the captions file cannot be used: not a picture"):
        retention_of(captioned_in(file), encoder)
