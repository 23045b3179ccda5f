"""Duplicates are found however they were saved; different pictures are not taken for duplicates."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.duplicates import Leak, find_groups, find_leaks
from finetune.data.records import Record
from imret.images.decode import load_image
from imret.images.phash import MAX_BITS, ImageHash, cluster, compute_hash, near_duplicates
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
        assert len(near_duplicates([hash_of(image)], [hash_of(copy) for copy in copies])) == 3


def test_different_pictures_do_not_look_alike(tmp_path: Path) -> None:
    assert near_duplicates([hash_of(drawn(tmp_path, seed)) for seed in range(150)]) == []


def test_one_shape_in_two_colours_is_two_pictures() -> None:
    noise = np.random.default_rng(0).integers(-30, 30, (64, 64, 3))
    red, blue = (
        compute_hash((np.array(color) + noise).astype(np.uint8)) for color in ((200, 60, 60), (60, 60, 200))
    )
    assert (red.bits ^ blue.bits).bit_count() <= MAX_BITS
    assert near_duplicates([red, blue]) == []


def test_pictures_of_one_colour_are_told_apart_by_it() -> None:
    red, also_red, blue = (
        compute_hash(np.full((size, size, 3), color, dtype=np.uint8))
        for size, color in ((64, (200, 30, 30)), (50, (201, 31, 30)), (64, (30, 30, 200)))
    )
    assert red.bits == blue.bits == 0
    assert near_duplicates([red, also_red, blue]) == [(0, 1)]


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


@pytest.mark.parametrize("n", [1, 40, 300])
def test_pairs_are_those_of_a_loop_over_all_pairs(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imret.images.phash._BLOCK", 1000)  # several blocks
    monkeypatch.setattr("imret.images.phash._COLOUR_BLOCK", 7)
    rng = np.random.default_rng(n)
    colours = np.full((8, 8, 3), 100, dtype=np.uint8)
    centres = rng.integers(0, 1 << 63, 10)
    hashes = [
        ImageHash(
            int(rng.choice(centres)) ^ sum(1 << int(b) for b in rng.choice(64, 6, replace=False)), colours
        )
        for _ in range(n)
    ]
    near = [
        (i, j)
        for i in range(n)
        for j in range(n)
        if (hashes[i].bits ^ hashes[j].bits).bit_count() <= MAX_BITS
    ]
    assert near_duplicates(hashes) == [(i, j) for i, j in near if i < j]
    assert near_duplicates(hashes, hashes) == near
    assert near_duplicates([], hashes) == near_duplicates(hashes, []) == near_duplicates([]) == []


def test_what_pairs_link_through_others_is_one_group_named_by_its_first() -> None:
    assert cluster(7, [(5, 6), (1, 4), (4, 6)]).tolist() == [0, 1, 2, 3, 1, 1, 1]
    assert cluster(2, []).tolist() == [0, 1]


def test_thousands_of_one_placeholder_are_one_group_and_not_millions_of_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    colours = np.full((8, 8, 3), 100, dtype=np.uint8)
    placeholder, near, other = ImageHash(0, colours), ImageHash(1, colours), ImageHash((1 << 40) - 1, colours)
    hashes = [other, *[placeholder] * 3000, near, other]
    n_pairs: list[int] = []

    def counted(*hashes: Sequence[ImageHash]) -> list[tuple[int, int]]:
        pairs = near_duplicates(*hashes)
        n_pairs.append(len(pairs))
        return pairs

    monkeypatch.setattr("finetune.data.duplicates.near_duplicates", counted)
    assert find_groups(hashes).tolist() == [0, *[1] * 3001, 0]
    records = [Record(f"{i}.jpg", "", 1) for i in range(3003)]
    leaks = find_leaks(records, hashes, records[1:4], hashes[1:4])
    assert leaks == {i: Leak(f"{i}.jpg", "1.jpg") for i in range(1, 3002)}
    assert n_pairs == [1, 2]
    assert find_groups([]).tolist() == []


def test_distinct_photos_of_one_kind_are_not_taken_for_duplicates(shared_data: Path) -> None:
    files = sorted((shared_data / "nature10" / "train" / "amphibia").iterdir())
    assert near_duplicates([hash_of(load_image(file)) for file in files]) == []
