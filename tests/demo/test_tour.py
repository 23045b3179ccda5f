"""The tour: what it asks, what counts as right, and what its contact sheet shows of that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imret import Encoder
from imret.datasets.csv_rows import read_rows
from imret.demo.dataset import write_dataset
from imret.demo.tour import SHOWN, examples, measure
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "drawn"
    write_dataset(folder, train=10, test=60, size=48, workers=1)
    return folder


def test_what_the_tour_asks_is_what_most_pictures_of_the_test_set_show(drawn: Path) -> None:
    rows = [row for _, row in read_rows(drawn / "test" / "attributes.csv", ("path",), kind="attributes")]
    asked = dict(examples(drawn))
    birds = sum(row["category"] == "aves" and row["count"] == "4" for row in rows)
    fungi = sum(row["category"] == "fungi" and row["count"] == "3" for row in rows)
    insects = sum(row["category"] == "insecta" and row["count"] == "2" for row in rows)
    mollusks = sum(row["category"] == "mollusca" and row["count"] == "3" for row in rows)
    by_number = {
        "four birds": birds, "three fungi": fungi, "two insects": insects, "three mollusks": mollusks
    }  # fmt: skip
    (number,) = [text for text in asked if text in by_number]
    assert asked[number] == max(by_number.values()) > 0


def test_a_test_set_without_an_answer_is_not_asked(tmp_path: Path) -> None:
    write_dataset(tmp_path / "one", train=10, test=1, size=32, workers=1)
    assert all(pictures == 1 for _, pictures in examples(tmp_path / "one"))
    assert len(examples(tmp_path / "one")) <= 1


def test_the_sheet_marks_hits_up_to_the_last_right_one_and_none_after_it(
    drawn: Path, random_model: Path, tmp_path: Path
) -> None:
    encoder = Encoder(str(random_model), device="cpu", precision="fp32")
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(drawn / "test")], encoder=encoder, collection="demo")
    table = measure(drawn, tmp_path / "db", "demo", sheet=tmp_path / "sheet.html")
    assert re.search(r"attribute mAP  0\.\d{3}  \(\d+ queries", table)
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")

    strips = re.findall(r"<section>(.*?)</section>", page, re.DOTALL)
    for strip in strips:
        right = int(re.search(r", (\d+) right pictures?<", strip)[1])  # type: ignore[index]
        figures = re.findall(r"<figure.*?</figure>", strip, re.DOTALL)
        assert len(figures) == SHOWN
        marks = ["✓" if "✓" in one else "✗" if "✗" in one else "" for one in figures]
        found = marks.count("✓")
        assert found <= right
        # All right ones found: the last mark is one of them, the rest bear none. Else every hit is marked.
        marked = marks[: SHOWN - marks[::-1].index("✓")] if found == right else marks
        assert all(marked)
        assert not any(marks[len(marked) :])
        assert ["class=sure" in one for one in figures] == [bool(mark) for mark in marks]

    # Which chapters there are depends on the model: each holds what its heading says.
    chapters = re.split(r"<p class=chapter>(.*?)</p>", page)[1:]
    for heading, part in zip(chapters[::2], chapters[1::2], strict=True):
        figures = [
            re.findall(r"<figure.*?</figure>", strip, re.DOTALL)[0] for strip in part.split("<section>")[1:]
        ]
        begins_right = ["✓" in figure for figure in figures]
        if "right picture comes first" in heading:
            assert all(begins_right)
        elif "nother picture comes first" in heading:
            assert not any(begins_right)
        else:
            assert heading == "By category"
            assert len(figures) == 10
            continue
        assert f"{len(figures)} of {len(strips) - 10} queries" in heading
    assert chapters[-2] == "By category"
