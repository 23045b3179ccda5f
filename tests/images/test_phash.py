"""Copies of a picture are found however they were saved; different pictures are not taken for one."""

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
from imret.images.phash import MOST_BITS, Look, alike, group, look_at
from imret.images.resize import fit_image
from tests.fakes.pictures import draw_picture


def drawn(folder: Path, seed: int) -> Image.Image:
    return load_image(draw_picture(folder / f"{seed}.png", seed=seed, size=(320, 240)))


def saved_anew(image: Image.Image, quality: int = 40) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return load_image(file.getvalue())


def look(image: Image.Image) -> Look:
    return look_at(fit_image(image, size=(252, 252)))


def test_a_picture_saved_anew_made_smaller_or_brighter_looks_alike(tmp_path: Path) -> None:
    for seed in range(20):
        image = drawn(tmp_path, seed)
        brighter = Image.fromarray((np.asarray(image) * 0.85).astype(np.uint8))
        copies = [saved_anew(image), saved_anew(image.resize((120, 90))), brighter]
        assert len(alike([look(image)], [look(copy) for copy in copies])) == 3


def test_different_pictures_do_not_look_alike(tmp_path: Path) -> None:
    assert alike([look(drawn(tmp_path, seed)) for seed in range(150)]) == []


def test_one_shape_in_two_colours_is_two_pictures() -> None:
    noise = np.random.default_rng(0).integers(-30, 30, (64, 64, 3))
    red, blue = (
        look_at((np.array(color) + noise).astype(np.uint8)) for color in ((200, 60, 60), (60, 60, 200))
    )
    assert (red.bits ^ blue.bits).bit_count() <= MOST_BITS
    assert alike([red, blue]) == []


def test_pictures_of_one_colour_are_told_apart_by_it() -> None:
    red, also_red, blue = (
        look_at(np.full((size, size, 3), color, dtype=np.uint8))
        for size, color in ((64, (200, 30, 30)), (50, (201, 31, 30)), (64, (30, 30, 200)))
    )
    assert red.bits == blue.bits == 0
    assert alike([red, also_red, blue]) == [(0, 1)]


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
    assert look_at(pixels).bits == int(expected, 2)


@pytest.mark.parametrize("n", [1, 40, 300])
def test_pairs_are_those_of_a_loop_over_all_pairs(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imret.images.phash._BLOCK", 1000)  # several blocks
    monkeypatch.setattr("imret.images.phash._COLOUR_BLOCK", 7)
    rng = np.random.default_rng(n)
    colours = np.full((8, 8, 3), 100, dtype=np.uint8)
    centres = rng.integers(0, 1 << 63, 10)
    looks = [
        Look(int(rng.choice(centres)) ^ sum(1 << int(b) for b in rng.choice(64, 6, replace=False)), colours)
        for _ in range(n)
    ]
    near = [
        (i, j) for i in range(n) for j in range(n) if (looks[i].bits ^ looks[j].bits).bit_count() <= MOST_BITS
    ]
    assert alike(looks) == [(i, j) for i, j in near if i < j]
    assert alike(looks, looks) == near
    assert alike([], looks) == alike(looks, []) == alike([]) == []


def test_what_pairs_link_through_others_is_one_group_named_by_its_first() -> None:
    assert group(7, [(5, 6), (1, 4), (4, 6)]).tolist() == [0, 1, 2, 3, 1, 1, 1]
    assert group(2, []).tolist() == [0, 1]


def test_thousands_of_one_placeholder_are_one_group_and_not_millions_of_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    colours = np.full((8, 8, 3), 100, dtype=np.uint8)
    placeholder, near, other = Look(0, colours), Look(1, colours), Look((1 << 40) - 1, colours)
    looks = [other, *[placeholder] * 3000, near, other]
    found: list[int] = []

    def counted(*these: Sequence[Look]) -> list[tuple[int, int]]:
        pairs = alike(*these)
        found.append(len(pairs))
        return pairs

    monkeypatch.setattr("finetune.data.duplicates.alike", counted)
    assert find_groups(looks).tolist() == [0, *[1] * 3001, 0]
    records = [Record(f"{i}.jpg", "", (), 1) for i in range(3003)]
    leaks = find_leaks(records, looks, records[1:4], looks[1:4])
    assert leaks == {i: Leak(f"{i}.jpg", "1.jpg") for i in range(1, 3002)}
    assert found == [1, 2]
    assert find_groups([]).tolist() == []


def test_distinct_photos_of_one_kind_are_not_taken_for_copies(shared_data: Path) -> None:
    files = sorted((shared_data / "nature10" / "train" / "amphibia").iterdir())
    assert alike([look(load_image(file)) for file in files]) == []
