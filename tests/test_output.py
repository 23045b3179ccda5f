"""What a search writes is a contract: four formats, copies that overwrite nothing, a sheet, a viewer."""

from __future__ import annotations

import io
import json
import re
import stat
import unicodedata
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import draw_picture
from hypothesis import given
from hypothesis import strategies as st

from imret.errors import DataError
from imret.output import (
    copy_hits,
    deliver,
    display_width,
    open_hits,
    shortened,
    tsv,
    write_facets,
    write_hits,
)
from imret.retrieval import Facet, Hit

ODD = Hit(2, 0.25, "id-2", "/photos/a\tb\n\\\udce9.jpg", None, {"width": 3}, folded=2)
HITS = [Hit(1, 0.5, "id-1", "/photos/fungi/a.jpg", "fungi", {"width": 4}), ODD]


def written(output: str, hits: list[Hit] = HITS, **options: object) -> str:
    stream = io.StringIO()
    write_hits(hits, output, stream, **options)  # type: ignore[arg-type]
    return stream.getvalue()


# ---- Formats --------------------------------------------------------------------------------------------


def test_json_is_one_object_per_line_that_opens_the_file() -> None:
    first, second = map(json.loads, written("json").splitlines())
    assert first == {
        "rank": 1,
        "score": 0.5,
        "category": "fungi",
        "path": "/photos/fungi/a.jpg",
        "id": "id-1",
    }
    assert (second["path"], second["category"], second["folded"]) == (ODD.path, None, 2)
    assert json.loads(written("json", payload=True).splitlines()[1])["payload"] == {"width": 3}


def test_tsv_has_a_header_and_no_stray_separators() -> None:
    assert written("tsv").splitlines() == [
        "rank\tscore\tcategory\tpath",
        "1\t0.500000\tfungi\t/photos/fungi/a.jpg",
        "2\t0.250000\t\t/photos/a\\tb\\n\\\\\udce9.jpg",
    ]


@given(st.text())
def test_a_value_of_tsv_is_one_field_and_can_be_read_back(value: str) -> None:
    field = tsv(value)
    assert not set(field) & set("\t\n\r")
    back = re.sub(r"\\(.)", lambda m: {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}[m[1]], field)
    assert back == value


def test_paths_are_the_bytes_of_the_file_names() -> None:
    assert written("paths") == "/photos/fungi/a.jpg\n" + ODD.path + "\n"
    assert written("paths", null=True).split("\0") == ["/photos/fungi/a.jpg", ODD.path, ""]


def test_a_table_passes_no_control_characters_to_the_terminal() -> None:
    lines = written("table").splitlines()
    assert lines[0] == "   1  0.500  fungi  /photos/fungi/a.jpg"
    assert lines[1] == r"   2  0.250  -      /photos/a\x09b\x0a\\xe9.jpg  +2"
    hostile = Hit(1, 0.5, "i", "/a\x1b[2J\u202egpj.exe", "c\x07", {})
    assert written("table", [hostile]) == "   1  0.500  c\\x07  /a\\x1b[2J\\u202egpj.exe\n"


def test_a_table_fits_the_terminal_and_keeps_the_end_of_the_name() -> None:
    hit = Hit(1, 0.5, "i", f"/{'folder/' * 20}写真-{'x' * 30}.jpg", "fungi", {}, folded=3)
    for width in (40, 60, 79, 200, 400):
        (line,) = written("table", [hit], width=width).splitlines()
        assert display_width(line) <= width
        assert line.endswith(".jpg  +3")
        assert ("…" in line) == (width < 220)
    assert "…" not in written("table", [hit])


@given(st.text(max_size=60), st.integers(12, 40))
def test_a_shortened_text_has_room_and_its_ends(text: str, room: int) -> None:
    short = shortened(text, room)
    assert display_width(short) <= room
    if short != text:
        head, tail = short.split("…") if text.count("…") == 0 else ("", "")
        assert text.startswith(head)
        assert text.endswith(tail)


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert [display_width(text) for text in ("abc", "写真", "é", unicodedata.normalize("NFD", "é"))] == [
        3,
        4,
        1,
        1,
    ]


def test_columns_are_in_line_also_with_wide_characters() -> None:
    hits = [Hit(1, 0.5, "i", "/a", "鳥", {}), Hit(2, 0.4, "j", "/b", "fungi", {})]
    assert written("table", hits) == "   1  0.500  鳥     /a\n   2  0.400  fungi  /b\n"


def test_a_thumbnail_stands_above_its_row() -> None:
    table = written("table", thumbnail=lambda hit: f"<{hit.id}>\n")
    assert [line.split()[0] for line in table.splitlines()] == ["<id-1>", "1", "<id-2>", "2"]


def test_facets_have_formats_too() -> None:
    facets = [Facet("fungi", 3, 1200), Facet("a\tb", 0, 1)]

    def of(output: str) -> str:
        stream = io.StringIO()
        write_facets(facets, output, stream)
        return stream.getvalue()

    assert of("tsv") == "category\thits\timages\nfungi\t3\t1200\na\\tb\t0\t1\n"
    assert json.loads(of("json").splitlines()[0]) == {"category": "fungi", "hits": 3, "images": 1200}
    assert of("table").splitlines() == [
        "category       hits     images",
        "fungi             3      1,200",
        "a\\x09b            0          1",
    ]


# ---- Files ----------------------------------------------------------------------------------------------


@pytest.fixture
def hits(tmp_path: Path) -> list[Hit]:
    files = [
        draw_picture(tmp_path / "photos" / name, seed=i) for i, name in enumerate(("owl.png", "a b.png"))
    ]
    return [Hit(i, 0.5, f"id-{i}", str(file), "aves", {}) for i, file in enumerate(files, start=1)]


def test_copies_are_named_by_rank_and_whole(hits: list[Hit], tmp_path: Path) -> None:
    assert copy_hits(hits, tmp_path / "new" / "out") == (2, [])
    out = sorted((tmp_path / "new" / "out").iterdir())
    assert [file.name for file in out] == ["001_owl.png", "002_a b.png"]
    for hit, file in zip(hits, out, strict=True):
        assert file.read_bytes() == Path(hit.path).read_bytes()
        assert file.stat().st_mtime == pytest.approx(Path(hit.path).stat().st_mtime)


def test_a_second_copy_changes_nothing_and_another_file_of_that_name_stays(
    hits: list[Hit], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "001_owl.png").write_text("mine")
    for _ in range(2):
        assert copy_hits(hits, out) == (2, [])
        assert sorted(file.name for file in out.iterdir()) == ["001_owl-2.png", "001_owl.png", "002_a b.png"]
    assert (out / "001_owl.png").read_text() == "mine"
    assert (out / "001_owl-2.png").read_bytes() == Path(hits[0].path).read_bytes()


def test_a_file_that_is_gone_is_told_and_the_rest_is_copied(
    hits: list[Hit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(hits[0].path).unlink()
    assert deliver(hits, query="owl", output="paths", copy_to=str(tmp_path / "out")) == 1
    out, err = capsys.readouterr()
    assert out == "".join(f"{hit.path}\n" for hit in hits)
    assert f"not copied: {hits[0].path}: No such file or directory" in err
    assert f"1 pictures copied to {tmp_path / 'out'}, 1 not" in err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["002_a b.png"]


def test_a_copy_that_fails_half_way_leaves_nothing(
    hits: list[Hit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_data: object, out: io.BufferedWriter) -> None:
        out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    copied, failed = copy_hits(hits, tmp_path / "out")
    assert (copied, [reason for _, reason in failed]) == (0, ["No space left on device"] * 2)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(hits: list[Hit], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot make the folder '.*file/out': Not a directory"):
        copy_hits(hits, tmp_path / "file" / "out")


def test_a_sheet_shows_every_hit_and_opens_its_file(
    hits: list[Hit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Hit(3, 0.1, "id-3", str(tmp_path / "gone<b>.png"), "<script>", {}, folded=4)
    sheet = tmp_path / "sheet.html"
    assert deliver([*hits, gone], query="owl & <co>", note="--category aves", html=str(sheet)) == 0
    page = sheet.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2
    assert "owl &amp; &lt;co&gt;" in page
    assert "--category aves" in page
    assert "<script>" not in page
    assert "3. 0.100 +4" in page
    assert "cannot be read any more" in page
    links = re.findall(r'href="file://([^"]+)"', page)
    assert [unquote(link) for link in links] == [*(hit.path for hit in hits), gone.path]
    assert f"Contact sheet: {sheet}" in capsys.readouterr().err
    with pytest.raises(DataError, match="cannot write the contact sheet"):
        deliver(hits, query="owl", html=str(tmp_path / "no" / "sheet.html"))


def test_the_viewer_gets_all_pictures_at_once(
    hits: list[Hit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer, seen = tmp_path / "my viewer", tmp_path / "seen"
    viewer.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {seen}\n')
    viewer.chmod(viewer.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMRET_VIEWER", f"'{viewer}' --fast")
    open_hits(hits, query="owl")
    assert seen.read_text().splitlines() == ["--fast", *(hit.path for hit in hits)]


def test_without_a_viewer_or_a_browser_it_says_what_to_do(
    hits: list[Hit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRET_VIEWER", "/no/such/viewer")
    with pytest.raises(DataError, match=r"cannot start the viewer '/no/such/viewer' \(from IMRET_VIEWER\)"):
        open_hits(hits, query="owl")
    monkeypatch.delenv("IMRET_VIEWER")
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: asked.append(url))
    with pytest.raises(DataError, match=r"there is no browser .*--html FILE"):
        open_hits(hits, query="owl")
    page = Path(unquote(asked[0].removeprefix("file://")))
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 2
    page.unlink()
