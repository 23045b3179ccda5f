"""What was left out is told by kind, most first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imret.datasets.kinds import holds_picture, in_words, kind_of
from tests.fakes.pictures import draw_picture


def test_kinds_are_counted_together_and_told_most_first() -> None:
    names = ["a.NEF", "b.nef", "c.cr2", "d.psd", "README", "e.mov", "f.tar.gz", "Thumbs.db", "desktop.ini"]
    ignored: dict[str, int] = {"hidden": 40, "system folder": 2, "photo library": 1, "excluded": 1_200}
    for name in names:
        ignored[kind_of(name)] = ignored.get(kind_of(name), 0) + 1
    assert in_words(ignored) == (
        "1,200 excluded by a pattern, 3 RAW (.nef, .cr2), 2 system folders, 1 photo library, 1 .psd, "
        "1 without a suffix, 1 video (.mov), 1 .gz"
    )
    assert in_words({"hidden": 3, kind_of("Thumbs.db"): 1}) == ""
    assert in_words({kind_of(f"a.{n}"): 1 for n in range(10)}).endswith("1 .7 and 2 more")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif"])
def test_a_picture_is_known_by_its_first_bytes(tmp_path: Path, suffix: str) -> None:
    file = draw_picture(tmp_path / f"a{suffix}").rename(tmp_path / "a")
    assert holds_picture(str(file))
    file.write_bytes(b"II")
    assert not holds_picture(str(file))
    assert not holds_picture(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    assert not holds_picture(str(tmp_path / "pipe"))
