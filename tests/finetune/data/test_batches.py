"""A folder becomes records, a split, balanced batches and augmented pixels; what cannot be read is told."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.data.augment import augment, normalised
from finetune.data.batches import Batches
from finetune.data.pixels import ImageSet
from finetune.data.records import Record, manifest_hash, read_records, split_records
from finetune.data.species import TEXT_KINDS, Taxon
from imret.errors import DataError
from imret.images.decode import load_image
from imret.images.preprocess import Preprocess
from imret.images.resize import fit_image, load_pixels

PREPROCESS = Preprocess(size=(32, 32), resize_mode="squash")


def paint(path: Path, color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (60, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.name.encode())).integers(0, 60, (*size[::-1], 3))
    Image.fromarray((pixels + np.array(color) // 2).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        paint(tmp_path / "aves" / f"{i:02}.png", (200, 30, 30))
    for i in range(5):
        paint(tmp_path / "fungi" / "deep" / f"{i:02}.jpg", (30, 200, 30))
    paint(tmp_path / "insecta" / "only one.webp", (30, 30, 200))
    return tmp_path


def make_records(**counts: int) -> list[Record]:
    return [Record(f"{name}/{i:03}.jpg", name, i) for name, count in counts.items() for i in range(count)]


# ---- Folder to records -----------------------------------------------------------------------------------


def test_the_category_is_the_first_folder_below_the_root(folder: Path) -> None:
    records = read_records(folder)
    assert Counter(record.category for record in records) == {"aves": 12, "fungi": 5, "insecta": 1}
    assert records[12].path == "fungi/deep/00.jpg"
    assert [record.path for record in records] == sorted(record.path for record in records)


def test_hidden_files_loose_pictures_and_other_files_are_left_out(folder: Path) -> None:
    paint(folder / "loose.png")
    paint(folder / "aves" / ".hidden.png")
    paint(folder / ".cache" / "a.png")
    paint(folder / "@eaDir" / "a.png")
    (folder / "aves" / "notes.txt").write_text("not a picture")
    assert len(read_records(folder)) == 18


def test_a_dangling_symlink_is_reported_like_any_picture_that_cannot_be_read(folder: Path) -> None:
    (folder / "aves" / "dangling.jpg").symlink_to(folder / "nothing")
    pictures = ImageSet(
        folder, read_records(folder), size=(16, 16), preprocess=Preprocess(), budget_bytes=1 << 20
    )
    try:
        (skipped,) = pictures.load()
    finally:
        pictures.close()
    assert skipped.path == "aves/dangling.jpg"
    assert len(pictures.records) == 18


def test_a_symlink_loop_ends(folder: Path) -> None:
    (folder / "aves" / "again").symlink_to(folder, target_is_directory=True)
    assert len(read_records(folder)) == 18


def test_captions_go_with_their_pictures(folder: Path) -> None:
    records = read_records(folder, {"aves/03.png": ("a red bird", "a bird")})
    assert [record.captions for record in records if record.captions] == [("a red bird", "a bird")]


def test_captions_of_other_pictures_are_refused_with_their_number_and_the_first(folder: Path) -> None:
    with pytest.raises(DataError, match=r"1 of the 1 .*'train/aves/03.png'.*'aves/00.png'"):
        read_records(folder, {"train/aves/03.png": ("a red bird",)})
    captions = {"aves/03.png": ("a bird",), "gone.png": ("nothing",), "aves/99.png": ("nothing",)}
    with pytest.raises(DataError, match=r"2 of the 3 .*'gone.png'"):
        read_records(folder, captions)


def test_a_folder_without_two_categories_of_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "nothing")
    with pytest.raises(DataError, match="is not a folder"):
        read_records(paint(tmp_path / "file.png"))
    with pytest.raises(DataError, match="1 picture in no category"):
        read_records(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures"):
        read_records(tmp_path / "empty")
    paint(tmp_path / "aves" / "a.png")
    with pytest.raises(DataError, match=r"one category .* 'aves'"):
        read_records(tmp_path)


def test_the_manifest_hash_changes_with_paths_sizes_and_captions_only(folder: Path) -> None:
    first = manifest_hash(read_records(folder))
    os.utime(folder / "aves" / "00.png", (0, 0))
    assert manifest_hash(read_records(folder)) == first
    assert manifest_hash(read_records(folder, {"aves/00.png": ("a bird",)})) != first
    (folder / "aves" / "00.png").rename(folder / "aves" / "00b.png")
    assert manifest_hash(read_records(folder)) != first


# ---- Validation ------------------------------------------------------------------------------------------


def test_validation_takes_the_same_share_of_every_category_and_at_least_one_picture() -> None:
    records = make_records(aves=100, fungi=30, insecta=2, mollusca=1)
    train, validation = split_records(records, share=0.1, seed=0)
    assert Counter(records[i].category for i in validation) == {"aves": 10, "fungi": 3, "insecta": 1}
    assert sorted(train + validation) == list(range(len(records)))
    assert split_records(records, share=0.1, seed=0) == (train, validation)
    assert split_records(records, share=0.1, seed=1)[1] != validation
    assert split_records(records, share=0, seed=0)[1] == []


def test_copies_stay_on_one_side_and_validation_is_as_large_as_without_them() -> None:
    records = make_records(aves=40, fungi=40)
    groups = [i - i % 4 if i < 40 else i for i in range(80)]  # birds in tens of four copies
    for seed in range(10):
        train, validation = split_records(records, share=0.2, seed=seed, groups=groups)
        assert not {groups[i] for i in train} & {groups[i] for i in validation}
        assert Counter(records[i].category for i in validation) == {"aves": 8, "fungi": 8}
        assert split_records(records, share=0.2, seed=seed, groups=groups) == (train, validation)


def test_every_category_of_two_groups_has_a_picture_on_either_side() -> None:
    records = make_records(aves=5, fungi=4, insecta=30)
    two_lumps, one_lump = [0, 0, 0, 1, 1], [5, 5, 5, 5]
    for share in (0.01, 0.1, 0.9):
        train, validation = split_records(
            records, share=share, seed=0, groups=[*two_lumps, *one_lump, *range(9, 39)]
        )
        for side in (train, validation):
            assert {"aves", "insecta"} <= {records[i].category for i in side}
        assert {i for i in train if records[i].category == "fungi"} == {5, 6, 7, 8}
        assert sorted(train + validation) == list(range(39))


def test_a_group_in_two_categories_stays_on_one_side_and_leaves_neither_without_validation() -> None:
    records = make_records(aves=30, fungi=2)
    groups = list(range(32))
    groups[30] = 4  # the first mushroom is a copy of a bird
    for seed in range(20):
        train, validation = split_records(records, share=0.1, seed=seed, groups=groups)
        assert (4 in validation) == (30 in validation)
        assert (30 in validation) != (31 in validation)
        assert {"aves", "fungi"} <= {records[i].category for i in train}
        assert len(validation) == 4


def test_without_copies_the_split_is_what_it_was_before_there_were_groups() -> None:
    records = make_records(aves=50, fungi=9, insecta=3)
    expected = []
    for number, (start, n) in enumerate(((0, 50), (50, 9), (59, 3))):
        order = np.random.default_rng((5, 2, number)).permutation(n)
        expected += sorted(start + i for i in order[: max(1, round(0.1 * n))])
    assert split_records(records, share=0.1, seed=5)[1] == expected
    assert split_records(records, share=0.1, seed=5, groups=range(62))[1] == expected


def test_pictures_that_are_meant_for_validation_are_it_instead_of_carved_ones() -> None:
    records = [Record(f"a/{i}.jpg", "a", 1, split="validation" if i in (2, 5) else "train") for i in range(9)]
    assert split_records(records, share=0.5, seed=0) == ([0, 1, 3, 4, 6, 7, 8], [2, 5])


# ---- Pixels ----------------------------------------------------------------------------------------------


def pictures(folder: Path, budget_bytes: int) -> ImageSet:
    return ImageSet(
        folder, read_records(folder), size=(36, 36), preprocess=PREPROCESS, budget_bytes=budget_bytes
    )


def test_pixels_kept_in_memory_and_decoded_anew_are_the_same(folder: Path) -> None:
    kept, decoded = pictures(folder, 1 << 30), pictures(folder, 0)
    assert (kept.room, decoded.room) == (len(kept.records), 0)
    assert kept.load() == decoded.load() == []
    kept.select([17, 3, 5, 0])
    decoded.select([17, 3, 5, 0])
    assert torch.equal(kept.batch([1, 0, 3, 1]), decoded.batch([1, 0, 3, 1]))
    expected = fit_image(load_image(folder / "aves" / "03.png"), size=(36, 36), resize_mode="squash")
    assert np.abs(kept.batch([1])[0].numpy().astype(int) - expected).max() <= 2  # another rounding
    kept.close()
    decoded.close()


def test_as_many_pictures_as_fit_are_decoded_once_and_the_others_for_every_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []

    def count(path: Path, preprocess: Preprocess, **options: Any) -> Any:
        decoded.append(path.name)
        return load_pixels(path, preprocess, **options)

    monkeypatch.setattr("finetune.data.pixels.load_pixels", count)
    some, none = pictures(folder, 3 * 36 * 36 * 3), pictures(folder, 0)
    some.select([0, 1, 2, 3, 4])
    none.select([0, 1, 2, 3, 4])
    batches = [[2, 0], [2, 2, 3], [3, 4, 0], [4, 1, 2]]  # of which 2, 0 and 3 are met first
    expected = [none.batch(batch) for batch in batches]
    decoded.clear()
    assert all(
        torch.equal(some.batch(batch), pixels) for batch, pixels in zip(batches, expected, strict=True)
    )
    names = Counter(decoded)
    assert [names[Path(record.path).name] for record in some.records] == [1, 1, 1, 1, 2]
    some.close()
    none.close()


def test_a_large_photo_is_trained_on_as_it_will_be_ingested(folder: Path) -> None:
    noise = np.random.default_rng(5).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    path = folder / "aves" / "00.jpg"
    Image.fromarray(noise).resize((800, 600), Image.Resampling.BICUBIC).save(path, quality=95)
    loaded = pictures(folder, 1 << 30)
    loaded.load()
    position = [record.path for record in loaded.records].index("aves/00.jpg")
    ingested = load_pixels(path, replace(PREPROCESS, size=(36, 36)))[0]
    np.testing.assert_array_equal(loaded.batch([position])[0].numpy(), ingested)
    loaded.close()


@pytest.mark.parametrize("budget_bytes", [0, 1 << 30])
def test_unreadable_pictures_are_skipped_with_a_reason_and_the_rest_keep_their_pixels(
    folder: Path, budget_bytes: int
) -> None:
    whole = (folder / "aves" / "05.png").read_bytes()
    (folder / "aves" / "05.png").write_bytes(whole[: len(whole) // 2])
    (folder / "aves" / "06.png").write_bytes(b"")
    (folder / "aves" / "07.png").write_text("text")
    loaded = pictures(folder, budget_bytes)
    count = []
    skipped = loaded.load(lambda: count.append(1))
    assert [skip.path for skip in skipped] == ["aves/05.png", "aves/06.png", "aves/07.png"]
    assert all(skip.reason for skip in skipped)
    assert len(count) == 18
    assert len(loaded.records) == 15
    position = [record.path for record in loaded.records].index("aves/08.png")
    expected = fit_image(load_image(folder / "aves" / "08.png"), size=(36, 36), resize_mode="squash")
    assert np.abs(loaded.batch([position])[0].numpy().astype(int) - expected).max() <= 2  # another rounding
    loaded.close()


def test_a_picture_that_goes_during_the_run_is_named(folder: Path) -> None:
    loaded = pictures(folder, 0)
    loaded.load()
    (folder / "aves" / "00.png").unlink()
    with pytest.raises(DataError, match=r"aves/00\.png"):
        loaded.batch([0])
    loaded.close()


# ---- Batches ---------------------------------------------------------------------------------------------


def test_batches_are_balanced_and_show_every_picture_before_any_again() -> None:
    records = make_records(aves=40, fungi=20, insecta=5)
    batches = Batches(records, batch_size=12, seed=0)
    drawn: list[int] = []
    for step in range(10):
        positions = batches.draw(step).positions
        counts = Counter(records[i].category for i in positions)
        assert set(counts.values()) == {4}
        drawn += positions.tolist()
    times = Counter(drawn)
    # 40 draws from each category: every bird once, every mushroom twice, every insect eight times
    assert {times[i] for i in range(40)} == {1}
    assert {times[i] for i in range(40, 60)} == {2}
    assert {times[i] for i in range(60, 65)} == {8}


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    records = [
        Record(f"{c}/{i}.jpg", c, 1, captions=(f"a {c} {i}", f"a {c}"))
        for c in ("aves", "fungi")
        for i in range(20)
    ]
    forwards = Batches(records, batch_size=7, seed=3, category_share=0.5)
    backwards = Batches(records, batch_size=7, seed=3, category_share=0.5)
    other = Batches(records, batch_size=7, seed=4, category_share=0.5)
    later = [backwards.draw(step) for step in reversed(range(20))][::-1]
    differs = 0
    for step, theirs in enumerate(later):
        ours = forwards.draw(step)
        np.testing.assert_array_equal(ours.positions, theirs.positions)
        for mine, its in zip(ours.text_sets, theirs.text_sets, strict=True):
            assert mine.captions == its.captions
            assert torch.equal(mine.match, its.match)
        differs += ours.positions.tolist() != other.draw(step).positions.tolist()
    assert differs > 15


def test_without_captions_every_batch_names_categories_once_each() -> None:
    batches = Batches(make_records(aves=20, fungi=20), batch_size=10, seed=0, category_share=0.0)
    for step in range(5):
        (texts,) = batches.draw(step).text_sets
        assert len(texts.captions) == 2
        assert texts.counts.tolist() == [5.0, 5.0]
        assert texts.match.sum(dim=0).tolist() == [5, 5]


def test_a_text_matches_every_picture_it_is_true_of_and_equal_texts_are_one() -> None:
    captions_of = [
        ("a red bird", "a bird"),
        ("A bird.",),
        ("a blue bird", "a bird"),
        ("a mushroom",),
        ("a mushroom",),
    ]
    records = [
        Record(f"c{i > 2}/{i}.jpg", f"c{i > 2}", 1, captions=captions)
        for i, captions in enumerate(captions_of)
    ]
    batches = Batches(records, batch_size=5, seed=0, category_share=0.0)
    for step in range(20):
        batch = batches.draw(step)
        (texts,) = batch.text_sets
        assert texts.counts.sum() == 5
        assert len(texts.captions) == len({text.lower().rstrip(".") for text in texts.captions})
        for column, text in enumerate(texts.captions):
            expected = [
                text.lower().rstrip(".") in {caption.lower().rstrip(".") for caption in captions_of[i]}
                for i in batch.positions
            ]
            assert texts.match[:, column].tolist() == expected
        assert texts.match.any(dim=0).all()
        assert texts.match.any(dim=1).all()


def test_a_text_set_holds_captions_of_one_place_and_sets_of_a_batch_differ_in_it() -> None:
    records = [
        Record(f"{c}/{i}.jpg", c, 1, captions=(f"a {c} {i} in detail", f"a {c} {i}", f"{c} bare"))
        for c in ("aves", "fungi")
        for i in range(10)
    ]
    batches = Batches(records, batch_size=6, seed=0, category_share=0.0, captions_per_picture=2)
    met = set()
    for step in range(10):
        batch = batches.draw(step)
        places = []
        for texts in batch.text_sets:
            of = {
                next(p for p in range(3) if text in {r.captions[p] for r in records})
                for text in texts.captions
            }
            assert len(of) == 1
            places += of
        assert len(set(places)) == 2
        met |= set(places)
    assert met == {0, 1, 2}


def test_no_more_text_sets_are_drawn_than_pictures_have_captions() -> None:
    records = [
        Record(f"{c}/{i}.jpg", c, 1, captions=(f"a {c}",)) for c in ("aves", "fungi") for i in range(5)
    ]
    batches = Batches(records, batch_size=4, seed=0, category_share=0.0, captions_per_picture=3)
    assert len(batches.draw(0).text_sets) == 1


def of_species() -> list[Record]:
    """Birds of three species, mushrooms of one, insects of none; rows know different names of one bird."""
    crow, magpie = Taxon("Corvus corax", "raven", ("Animalia", "Corvus")), Taxon("Pica pica", "magpie")
    taxa = [crow, crow, magpie, Taxon("Pica pica", "", ("Animalia", "Pica")), Taxon("", "owl")]
    taxa_of = {"aves": taxa, "fungi": [Taxon("Amanita muscaria", "fly agaric")] * 5, "insecta": [None] * 5}
    return [
        Record(f"{category}/{i}.jpg", category, 1, captions=(f"{category} {i}",), taxon=taxon)
        for category, group in taxa_of.items()
        for i, taxon in enumerate(group)
    ]


def test_a_species_text_matches_every_picture_of_the_species_and_no_other() -> None:
    records = of_species()
    batches = Batches(records, batch_size=15, seed=0, species_share=1.0, captions_per_picture=1)
    kinds_met = set()
    for step in range(40):
        batch = batches.draw(step)
        (texts,) = batch.text_sets
        assert texts.counts.sum() == 15
        shown = [records[i] for i in batch.positions]
        for column, text in enumerate(texts.captions):
            of = [record for record in records if record.taxon and text in map(record.taxon.text, TEXT_KINDS)]
            if of:
                key = of[0].taxon.key if of[0].taxon else ""
                expected = [record.taxon is not None and record.taxon.key == key for record in shown]
            else:  # an insect of no known species goes by its category
                expected = [record.category == "insecta" for record in shown]
            assert texts.match[:, column].tolist() == expected
        kinds_met.add(next(text for text in texts.captions if "muscaria" in text or "agaric" in text))
    assert kinds_met == {"a photo of a fly agaric", "a photo of Amanita muscaria"} | {
        "a photo of Amanita muscaria with common name fly agaric"
    }


def test_one_kind_of_text_serves_a_whole_set_of_species() -> None:
    records = [
        record for record in of_species() if record.taxon and record.taxon.species and record.taxon.ranks
    ]
    others = [Record("b/1.jpg", "b", 1, taxon=Taxon("Bufo bufo", "toad", ("Animalia", "Bufo")))]
    batches = Batches([*records, *others], batch_size=4, seed=0, species_share=1.0)
    for step in range(20):
        texts = batches.draw(step).text_sets[0].captions
        assert len({"Animalia" in text for text in texts}) == 1


def test_the_share_of_sets_at_the_level_of_species_is_the_one_asked_for() -> None:
    batches = Batches(of_species(), batch_size=15, seed=0, category_share=0.0, species_share=0.25)
    drawn = [batches.draw(step).text_sets[0].captions for step in range(400)]
    at_species = sum(any("muscaria" in text or "agaric" in text for text in texts) for texts in drawn)
    assert 70 < at_species < 130
    assert all(
        "fungi 0" in texts for texts in drawn if not any("agaric" in t or "muscaria" in t for t in texts)
    )


def test_the_share_of_species_changes_no_batch_where_no_species_is_known() -> None:
    records = [
        Record(f"{c}/{i}.jpg", c, 1, captions=(f"a {c} {i}", f"a {c}"))
        for c in ("aves", "fungi")
        for i in range(9)
    ]
    without, with_share = (
        Batches(
            records, batch_size=6, seed=1, category_share=0.5, captions_per_picture=2, species_share=share
        )
        for share in (0.0, 1.0)
    )
    for step in range(20):
        ours, theirs = without.draw(step), with_share.draw(step)
        assert [texts.captions for texts in ours.text_sets] == [texts.captions for texts in theirs.text_sets]


def test_batches_call_categories_what_they_are_told() -> None:
    batches = Batches(
        make_records(aves=5, fungi=5), batch_size=4, seed=0, names={"aves": ("owl",), "fungi": ("morel",)}
    )
    for step in range(8):
        assert {text.rstrip(".").split()[-1] for text in batches.draw(step).text_sets[0].captions} <= {
            "owl",
            "morel",
            "nature",
        }


def test_a_batch_is_no_larger_than_the_data() -> None:
    batches = Batches(make_records(aves=4, fungi=3), batch_size=100, seed=0)
    assert batches.batch_size == 7
    assert batches.steps_per_epoch == 1


# ---- Augmentation ----------------------------------------------------------------------------------------


def test_a_whole_crop_unmirrored_is_the_picture() -> None:
    pixels = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    same = augment(pixels, size=(16, 16), seed=0, step=0, min_scale=1.0, max_ratio=1.0, flip=False)
    torch.testing.assert_close(same, pixels.permute(0, 3, 1, 2).float() / 255, rtol=0, atol=1e-5)


def test_mirroring_turns_about_half_of_the_pictures_round() -> None:
    pixels = torch.zeros(400, 8, 8, 3, dtype=torch.uint8)
    pixels[:, :, :4] = 255  # white on the left
    images = augment(pixels, size=(8, 8), seed=0, step=0, min_scale=1.0, max_ratio=1.0)
    left = (images[:, :, :, 0] > 0.5).all(dim=(1, 2))
    right = (images[:, :, :, -1] > 0.5).all(dim=(1, 2))
    assert (left ^ right).all()
    assert 0.4 < left.float().mean() < 0.6


def test_crops_stay_inside_the_picture_and_cover_the_area_asked_for() -> None:
    # Red is the column and green the row, so that a crop's corners tell where it was taken.
    n, size = 500, 64
    ramp = torch.linspace(0, 255, size).round().to(torch.uint8)
    pixels = torch.zeros(n, size, size, 3, dtype=torch.uint8)
    pixels[..., 0] = ramp[None, None, :]
    pixels[..., 1] = ramp[None, :, None]
    images = augment(pixels, size=(32, 32), seed=1, step=5, min_scale=0.5, flip=False)
    red, green = images[:, 0, 0], images[:, 1, :, 0]  # along the top, down the left side
    width, height = (red[:, -1] - red[:, 0]) * 32 / 31, (green[:, -1] - green[:, 0]) * 32 / 31
    area = width * height
    # Where a crop would be wider or taller than the picture, it is cut to it.
    assert 0.42 < area.min() < 0.55
    assert area.max() < 1.05
    assert (width > 0).all()
    assert red.min() < 0.02
    assert red.max() > 0.98


def test_augmentation_repeats_with_seed_and_step() -> None:
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    first = augment(pixels, size=(12, 12), seed=0, step=7)
    assert torch.equal(first, augment(pixels, size=(12, 12), seed=0, step=7))
    assert not torch.equal(first, augment(pixels, size=(12, 12), seed=0, step=8))
    assert not torch.equal(first, augment(pixels, size=(12, 12), seed=1, step=7))


def test_normalising_is_that_of_the_model() -> None:
    images = torch.rand(2, 3, 4, 4)
    stated = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = (images[1, 2, 3, 0] - 0.3) / 0.7
    torch.testing.assert_close(normalised(images, stated)[1, 2, 3, 0], expected)
