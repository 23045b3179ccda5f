"""The drawn data set: the same bytes every time, balanced, and truthfully described."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from imret.demo import draw as drawing
from imret.demo.dataset import attribute_queries, category_queries, write_dataset
from imret.demo.draw import CATEGORIES, SUBJECTS, Attributes, choose
from imret.demo.pen import COLORS, shade_of
from imret.demo.scenes import BACKGROUNDS
from imret.demo.words import CATEGORY_WORDS, captions
from imret.errors import DataError

SMALL = 48  # pixels: drawn in a fraction of the time of the default size
SHOWN = Attributes("fungi", "mushroom", "red", "spots", "white", 1, "large", "plain")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    assert write_dataset(folder, train=64, test=43, size=SMALL, workers=1) == 107
    return folder


def described(n: int, split: str = "train") -> list[tuple[Attributes, list[str]]]:
    """Attributes and captions of many pictures, without drawing them."""
    shown = [choose(index, Random(f"{split}/{index}")) for index in range(n)]
    return [(one, captions(one, Random(f"{split}/{index}/c"))) for index, one in enumerate(shown)]


def test_two_workers_write_the_same_bytes_as_one(small_set: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again", train=64, test=43, size=SMALL, workers=2)
    assert digests(tmp_path / "again") == digests(small_set)


def test_categories_are_balanced_with_the_remainder_spread(small_set: Path) -> None:
    for split, n in (("train", 64), ("test", 43)):
        counts = Counter(path.parent.name for path in (small_set / split).rglob("*.jpg"))
        assert set(counts) == set(CATEGORIES)
        assert set(counts.values()) == {n // 10, n // 10 + 1}
    assert len(CATEGORIES) == 10


def test_every_picture_is_a_readable_jpeg_with_one_row_of_attributes_and_several_captions(
    small_set: Path,
) -> None:
    for split in ("train", "test"):
        paths = {
            path.relative_to(small_set / split).as_posix() for path in (small_set / split).rglob("*.jpg")
        }
        shown = rows(small_set / split / "attributes.csv")
        told = Counter(row["path"] for row in rows(small_set / split / "captions.csv"))
        assert [row["path"].split("/")[0] for row in shown] == [row["category"] for row in shown]
        assert {row["path"] for row in shown} == paths == set(told)
        assert len(shown) == len(paths)
        assert set(told.values()) == {6}
        for path in paths:
            with Image.open(small_set / split / path) as image:
                image.load()
                assert image.format == "JPEG"
                assert image.mode == "RGB"
                assert max(image.size) == SMALL
                assert 0.74 < image.width / image.height < 1.36


def test_train_and_test_pictures_come_from_different_random_streams(small_set: Path) -> None:
    train, test = digests(small_set / "train"), digests(small_set / "test")
    pictures = [{d for path, d in split.items() if path.endswith(".jpg")} for split in (train, test)]
    assert not pictures[0] & pictures[1]
    shown = [rows(small_set / split / "attributes.csv")[:43] for split in ("train", "test")]
    same = sum(a["color"] == b["color"] for a, b in zip(*shown, strict=True))
    assert same < 15  # about 4 of 43 by chance


def test_another_seed_draws_other_pictures_and_the_split_size_changes_none(
    small_set: Path, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "other", train=10, test=10, seed=1, size=SMALL, workers=1)
    write_dataset(tmp_path / "fewer", train=10, test=10, seed=0, size=SMALL, workers=1)
    whole = digests(small_set)
    for path, digest in digests(tmp_path / "other").items():
        assert not path.endswith(".jpg") or digest != whole[path]
    for path, digest in digests(tmp_path / "fewer").items():
        assert not path.endswith(".jpg") or digest == whole[path]


def test_a_complete_data_set_is_left_as_it_is(small_set: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob("*")}
    assert write_dataset(small_set, train=64, test=43, size=SMALL) == 0
    assert {path: path.stat().st_mtime_ns for path in small_set.rglob("*")} == before


def test_a_half_written_data_set_is_completed(small_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    write_dataset(folder, train=64, test=43, size=SMALL, workers=1)
    marker = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(marker | {"complete": False}))
    lost = sorted((folder / "train").rglob("*.jpg"))[::3]
    for path in lost:
        path.unlink()
    (folder / "test" / "attributes.csv").unlink()
    assert write_dataset(folder, train=64, test=43, size=SMALL) == len(lost)
    assert digests(folder) == digests(small_set)


def test_a_writer_killed_at_any_moment_leaves_only_whole_pictures_and_the_next_run_completes_it(
    small_set: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    keywords = {"train": 64, "test": 43, "size": SMALL, "workers": 1}
    writer = multiprocessing.get_context("spawn").Process(
        target=write_dataset, args=(folder,), kwargs=keywords
    )
    writer.start()
    deadline = time.monotonic() + 30
    while len(list(folder.rglob("*.jpg"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.002)
    writer.kill()
    writer.join()
    whole = digests(small_set)
    left = digests(folder)
    assert 20 <= sum(path.endswith(".jpg") and not Path(path).name.startswith(".") for path in left) < 107
    for path, digest in left.items():
        assert not path.endswith(".jpg") or digest == whole[path]
    write_dataset(folder, train=64, test=43, size=SMALL)
    assert {path: d for path, d in digests(folder).items() if not path.endswith(".part")} == whole


def test_a_new_generator_draws_its_own_older_data_set_anew(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "older"
    monkeypatch.setattr("imret.demo.dataset.GENERATOR", -1)
    write_dataset(folder, train=64, test=43, size=SMALL, workers=1)
    monkeypatch.undo()
    assert write_dataset(folder, train=64, test=43, size=SMALL, workers=1) == 107
    assert digests(folder) == digests(small_set)


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        write_dataset(tmp_path, train=10, test=10)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_dataset_json_of_someone_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('["theirs"]')
    with pytest.raises(DataError, match=r"dataset\.json"):
        write_dataset(tmp_path, train=10, test=10)
    assert (tmp_path / "dataset.json").read_text() == '["theirs"]'


def test_a_folder_with_another_drawn_data_set_is_refused_naming_both(small_set: Path) -> None:
    before = digests(small_set)
    with pytest.raises(DataError, match=r"train 64.*train 65"):
        write_dataset(small_set, train=65, test=43, size=SMALL)
    assert digests(small_set) == before


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        write_dataset(tmp_path / "file" / "set", train=10, test=10)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": 0}, {"workers": 0}, {"size": 8}])
def test_numbers_out_of_range_are_value_errors(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need"):
        write_dataset(tmp_path / "set", **({"train": 10, "test": 10} | wrong))


def test_every_subject_can_be_drawn_in_every_look_and_place() -> None:
    looks = [(p, c) for p in drawing.PATTERNS for c in ("black", "white", "red")]
    for i, subject in enumerate(SUBJECTS):
        for j, (pattern, color) in enumerate(looks):
            shown = Attributes(
                subject.category,
                subject.name,
                color,
                pattern,
                "" if pattern == "plain" else "yellow",
                1 + (i + j) % 4,
                drawing.SIZES[j % 3],
                BACKGROUNDS[(i + j) % len(BACKGROUNDS)],
            )
            image = drawing.draw(shown, size=64, rng=Random(f"{i}/{j}"))
            assert max(image.size) == 64
            assert np.asarray(image).std() > 4


@pytest.mark.parametrize("size", [32, 97, 320])
def test_a_picture_has_the_size_asked_for_and_depends_on_its_random_stream_only(size: int) -> None:
    first, again = (np.asarray(drawing.draw(SHOWN, size=size, rng=Random("one"))) for _ in range(2))
    other = np.asarray(drawing.draw(SHOWN, size=size, rng=Random("another")))
    assert max(first.shape[:2]) == size
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def close_to(image: Image.Image, name: str) -> float:
    """Share of pixels in one of the shades that go by a colour's name."""
    pixels = np.asarray(image, dtype=np.float32).reshape(-1, 3)
    shades = np.array([shade_of(name, Random(k)) for k in range(12)], dtype=np.float32)
    return float((np.linalg.norm(pixels[:, None] - shades, axis=2).min(axis=1) < 60).mean())


@pytest.mark.parametrize("name", ["red", "orange", "green", "blue", "purple", "black"])
def test_a_picture_shows_the_colour_it_is_said_to_show(name: str) -> None:
    for k in range(4):
        plain = replace(SHOWN, color=name, pattern="plain", pattern_color="")
        other = replace(plain, color="blue" if name in ("red", "orange") else "orange")
        drawn, contrast = (
            close_to(drawing.draw(one, size=96, rng=Random(k)), name) for one in (plain, other)
        )
        assert drawn > contrast + 0.04


def test_a_large_subject_covers_more_of_the_picture_than_a_small_one() -> None:
    def covered(shown: Attributes) -> float:
        return float(
            np.mean([close_to(drawing.draw(shown, size=96, rng=Random(k)), "blue") for k in range(6)])
        )

    small = replace(SHOWN, color="blue", pattern="plain", pattern_color="", size="small")
    assert covered(replace(small, size="large")) > 1.5 * covered(small)


def test_colour_and_pattern_are_independent_of_the_category() -> None:
    shown = [one for one, _ in described(4000)]
    for category in CATEGORIES:
        own = [one for one in shown if one.category == category]
        colors = Counter(one.color for one in own)
        assert set(colors) == set(COLORS)
        assert max(colors.values()) < 0.2 * len(own)  # a tenth each, plus chance
        assert 0.4 < sum(one.pattern == "plain" for one in own) / len(own) < 0.53
        assert {one.background for one in own} == set(BACKGROUNDS)
        assert {one.count for one in own} == {1, 2, 3, 4}


def test_a_pattern_has_a_colour_of_its_own_and_a_plain_subject_none() -> None:
    for one, _ in described(1000):
        assert (one.pattern == "plain") == (one.pattern_color == "")
        assert one.pattern_color != one.color


def test_captions_tell_only_what_the_picture_shows() -> None:
    numbers = {"two": 2, "three": 3, "four": 4}
    for shown, told in described(600):
        for caption in told:
            words = set(re.findall(r"[a-z]+", caption))
            before = caption.split(" with ")[0]
            assert {c for c in COLORS if re.search(rf"\b{c}\b", before.replace("green meadow", ""))} <= {
                shown.color
            }
            assert all(numbers[word] == shown.count for word in words & set(numbers))
            assert words & {"small", "large"} <= {shown.size}
            assert words & {"spots", "stripes"} <= {shown.pattern}
            if "with" in words:
                assert f"with {shown.pattern_color} {shown.pattern}" in caption


def test_captions_name_the_subject_the_category_and_every_attribute_in_turn() -> None:
    for shown, told in described(100):
        subject = drawing.subject_named(shown.subject)
        name = subject.plural if shown.count > 1 else subject.name
        assert len(told) == 6
        assert shown.color in told[0]
        assert name in told[0]
        assert shown.pattern == "plain" or f"with {shown.pattern_color} {shown.pattern}" in told[0]
        assert name in told[3]
        assert shown.color not in told[3]
        assert CATEGORY_WORDS[shown.category][shown.count > 1] in told[4]
        assert shown.category in told[5]


def test_queries_use_no_word_that_the_captions_never_use() -> None:
    known = {word for _, told in described(2000) for text in told for word in re.findall(r"[a-z]+", text)}
    asked = [query.text for query in attribute_queries()] + list(category_queries().values())
    assert {word for text in asked for word in re.findall(r"[a-z]+", text)} <= known


def test_category_queries_ask_for_each_category_once() -> None:
    queries = category_queries()
    assert tuple(queries) == CATEGORIES
    assert len(set(queries.values())) == 10


def test_attribute_queries_need_values_that_exist_and_a_picture_answers_as_its_row_says() -> None:
    queries = attribute_queries()
    assert 40 <= len(queries) <= 60
    assert len({query.text for query in queries}) == len(queries)
    shown = [{**vars(one), "count": str(one.count)} for one, _ in described(3000)]
    known = {column: {row[column] for row in shown} for column in shown[0]}
    for query in queries:
        assert all(value in known[column] for column, value in query.needs.items()), query.text
        expected = [all(row[column] == value for column, value in query.needs.items()) for row in shown]
        assert [query.matches(row) for row in shown] == expected
        assert sum(expected) < 0.1 * len(shown), query.text


def test_an_attribute_query_says_in_words_what_it_needs() -> None:
    for query in attribute_queries():
        words = set(re.findall(r"[a-z]+", query.text))
        for column in ("color", "pattern", "pattern_color"):
            assert query.needs.get(column, next(iter(words))) in words
        if "subject" in query.needs:
            subject = drawing.subject_named(query.needs["subject"])
            assert words & {subject.name, subject.plural}
        if "count" in query.needs:
            assert {"2": "two", "3": "three", "4": "four"}[query.needs["count"]] in words


def test_the_red_mushroom_with_white_spots_is_among_the_queries() -> None:
    query = next(query for query in attribute_queries() if query.text == "a red mushroom with white spots")
    row = {key: str(value) for key, value in vars(SHOWN).items()}
    assert query.matches(row)
    assert not query.matches(row | {"color": "blue"})
    assert not query.matches(row | {"pattern": "plain", "pattern_color": ""})


def test_a_picture_of_default_size_takes_milliseconds() -> None:
    started = time.process_time()
    for index in range(30):
        drawing.draw(choose(index, Random(index)), size=320, rng=Random(index))
    assert (
        time.process_time() - started
    ) / 30 < 0.06  # about 0.01 s on one core of 2023; room for a slow one
