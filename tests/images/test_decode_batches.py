"""Pictures are decoded ahead in batches, and no more of them once nobody takes any."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from imret import Encoder, classify
from imret.images.decode_batches import BATCH_IMAGES, decode_batches
from imret.images.resize import load_pixels
from tests.fakes.pictures import draw_picture

THREADS = min(16, os.cpu_count() or 1)


class Counted(os.PathLike[str]):
    """The path of a picture that takes its time, as on a slow drive; counts how often such are opened."""

    opened = 0
    _lock = threading.Lock()

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        with self._lock:
            Counted.opened += 1
        time.sleep(0.01)
        return str(self._path)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    picture = draw_picture(tmp_path / "a.png", seed=1)
    monkeypatch.setattr(Counted, "opened", 0)
    return [Counted(picture) for _ in range(4 * BATCH_IMAGES)]


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(random_model, device="cpu", precision="fp32")


def test_batches_have_all_pictures_in_their_order_and_why_one_has_none(
    encoder: Encoder, tmp_path: Path
) -> None:
    files = [draw_picture(tmp_path / f"{seed}.png", seed=seed) for seed in range(BATCH_IMAGES + 3)]
    files[5].write_bytes(b"no picture")
    batches = list(decode_batches(files, encoder.preprocess))
    assert [len(batch) for batch in batches] == [BATCH_IMAGES, 3]
    decoded = [item for batch in batches for item in batch]
    assert [source for source, _ in decoded] == files
    for at, (_, pixels) in enumerate(decoded):
        if at == 5:
            assert isinstance(pixels, str)
            assert "not a picture" in pixels
        else:
            assert np.array_equal(pixels, load_pixels(files[at], encoder.preprocess)[0])


def test_a_batch_that_nobody_takes_any_more_is_not_decoded(encoder: Encoder, counted: list[Counted]) -> None:
    batches = decode_batches(counted, encoder.preprocess)
    next(batches)
    batches.close()
    assert Counted.opened <= BATCH_IMAGES + 2 * THREADS  # those that were being decoded are
    before = Counted.opened
    time.sleep(0.1)
    assert Counted.opened == before, "and nothing goes on behind the back"


def test_a_classification_that_fails_decodes_no_batch_for_nothing(
    encoder: Encoder, counted: list[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "encode_pixels", stopped)
    with pytest.raises(KeyboardInterrupt):
        classify(counted, ["fox", "owl"], encoder=encoder)
    assert Counted.opened <= BATCH_IMAGES + 2 * THREADS
