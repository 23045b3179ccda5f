"""Duplicates are found however they were saved; different pictures are not taken for duplicates."""

from __future__ import annotations

import io
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.duplicates import Leak, find_leaks
from finetune.data.records import Record
from imret.images.decode import load_image
from imret.images.phash import (
    MAX_BITS,
    MAX_COLOUR_DISTANCE,
    ImageHash,
    cluster,
    compute_hash,
    first_near,
)
from imret.images.resize import fit_image
from tests.fakes.pictures import draw_picture


def drawn(folder: Path, seed: int) -> Image.Image:
    return load_image(draw_picture(folder / f"{seed}.png", seed=seed, size=(320, 240)))


def saved_anew(image: Image.Image, quality: int = 40) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return load_image(file.getvalue())


def hash_of(image: Image.Image) -> ImageHash:
    return compute_hash(fit_image(image, size=(252, 252)))


def test_a_picture_saved_anew_made_smaller_or_brighter_looks_alike(tmp_path: Path) -> None:
    for seed in range(20):
        image = drawn(tmp_path, seed)
        brighter = Image.fromarray((np.asarray(image) * 0.85).astype(np.uint8))
        copies = [saved_anew(image), saved_anew(image.resize((120, 90))), brighter]
        assert first_near([hash_of(copy) for copy in copies], [hash_of(image)]).tolist() == [0, 0, 0]


def test_different_pictures_do_not_look_alike(tmp_path: Path) -> None:
    assert cluster([hash_of(drawn(tmp_path, seed)) for seed in range(150)]).tolist() == list(range(150))


def test_one_shape_in_two_colours_is_two_pictures() -> None:
    noise = np.random.default_rng(0).integers(-30, 30, (64, 64, 3))
    red, blue = (
        compute_hash((np.array(color) + noise).astype(np.uint8)) for color in ((200, 60, 60), (60, 60, 200))
    )
    assert (red.bits ^ blue.bits).bit_count() <= MAX_BITS
    assert cluster([red, blue]).tolist() == [0, 1]


def test_pictures_of_one_colour_are_told_apart_by_it() -> None:
    red, also_red, blue = (
        compute_hash(np.full((size, size, 3), color, dtype=np.uint8))
        for size, color in ((64, (200, 30, 30)), (50, (201, 31, 30)), (64, (30, 30, 200)))
    )
    assert red.bits == blue.bits == 0
    assert cluster([red, also_red, blue]).tolist() == [0, 0, 2]


def test_the_hash_is_that_of_a_naive_cosine_transform() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    grey = pixels @ np.array([0.299, 0.587, 0.114])
    x = np.arange(32)
    frequencies = [
        (
            grey
            * np.cos(np.pi * (2 * x[:, None] + 1) * k / 64)
            * np.cos(np.pi * (2 * x[None, :] + 1) * m / 64)
        ).sum()
        for k in range(1, 9)
        for m in range(1, 9)
    ]
    expected = "".join("1" if value > np.median(frequencies) else "0" for value in frequencies)
    assert compute_hash(pixels).bits == int(expected, 2)


def are_near(one: ImageHash, other: ImageHash) -> bool:
    differences = one.colours.astype(np.float64) - other.colours
    return (one.bits ^ other.bits).bit_count() <= MAX_BITS and bool(
        np.sqrt((differences**2).mean()) <= MAX_COLOUR_DISTANCE
    )


def random_hashes(n: int) -> list[ImageHash]:
    """Of few kinds and colours, so that many are near, some of them only through others."""
    rng = np.random.default_rng(n)
    centres, colours = rng.integers(0, 1 << 63, 6), rng.integers(60, 200, (3, 8, 8, 3))
    return [
        ImageHash(
            int(rng.choice(centres)) ^ sum(1 << int(b) for b in rng.choice(64, 4, replace=False)),
            (rng.choice(colours) + rng.integers(-14, 15, (8, 8, 3))).astype(np.uint8),
        )
        for _ in range(n)
    ]


@pytest.mark.parametrize("n", [1, 40, 300])
def test_clusters_and_first_duplicates_are_those_of_a_loop_over_all_pairs(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.images.phash._COLOUR_BLOCK", 7)  # several blocks
    hashes = random_hashes(n)
    near = [[are_near(one, other) for other in hashes] for one in hashes]
    first = list(range(n))
    for _ in range(n):
        first = [min(first[j] for j in range(n) if near[i][j]) for i in range(n)]
    assert cluster(hashes).tolist() == first
    others = hashes[n // 2 :]
    found = [next((j for j, other in enumerate(others) if are_near(one, other)), -1) for one in hashes]
    assert first_near(hashes, others).tolist() == found
    assert n < 300 or (6 < len(set(first)) < 200 and max(Counter(first).values()) > 10), "chains and loners"


def test_of_nothing_nothing_is_near() -> None:
    one = random_hashes(1)
    assert cluster([]).tolist() == first_near([], one).tolist() == []
    assert first_near(one, []).tolist() == [-1]


def test_what_is_linked_through_others_is_one_cluster_named_by_its_first() -> None:
    colours = np.full((8, 8, 3), 100, dtype=np.uint8)
    chain = [ImageHash((1 << bits) - 1, colours) for bits in (0, 16, 40, 8)]
    assert cluster(chain).tolist() == [0, 0, 2, 0]


def test_nine_thousand_near_copies_are_one_cluster_at_once_and_in_little_memory() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(96, 104, (9000, 8, 8, 3)).astype(np.uint8)
    copies = [ImageHash(1 << i % 64, those) for i, those in enumerate(colours)]
    began = time.perf_counter()
    tracemalloc.start()
    assert not cluster(copies).any()
    assert first_near(copies[:500], copies).tolist() == [0] * 500
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60_000_000, "the pairs alone would be forty million"
    assert time.perf_counter() - began < 20.0


def test_thousands_of_one_placeholder_leak_and_cluster_like_one() -> None:
    colours = np.full((8, 8, 3), 100, dtype=np.uint8)
    placeholder, near, other = ImageHash(0, colours), ImageHash(1, colours), ImageHash((1 << 40) - 1, colours)
    hashes = [other, *[placeholder] * 3000, near, other]
    assert cluster(hashes).tolist() == [0, *[1] * 3001, 0]
    records = [Record(f"{i}.jpg", "", 1) for i in range(3003)]
    leaks = find_leaks(records, hashes, records[1:4], hashes[1:4])
    assert leaks == {i: Leak(f"{i}.jpg", "1.jpg") for i in range(1, 3002)}


def test_distinct_photos_of_one_kind_are_not_taken_for_duplicates(shared_data: Path) -> None:
    files = sorted((shared_data / "nature10" / "train" / "amphibia").iterdir())
    assert cluster([hash_of(load_image(file)) for file in files]).tolist() == list(range(len(files)))
