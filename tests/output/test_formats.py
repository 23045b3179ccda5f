"""What a search writes is a contract: four formats, a sheet, copies that overwrite nothing, a viewer."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imret.errors import DataError
from imret.output.copy_files import copy_hits
from imret.output.deliver import deliver, open_hits
from imret.output.formats import display_width, groups_of, shortened, tsv, write_facets, write_hits
from imret.output.viewer import show
from imret.retrieval.results import Facet, Hit
from tests.fakes.pictures import draw_picture

ODD = Hit(2, 0.25, "id-2", "/photos/a\tb\n\\\udce9.jpg", None, {"width": 3}, folded=2)
HITS = [Hit(1, 0.5, "id-1", "/photos/fungi/a.jpg", "fungi", {"width": 4}), ODD]
# What a terminal would obey: clear the screen, the same in one character (C1), turn the text round.
HOSTILE = Hit(1, -0.5, "i", "/a\x1b[2J\x9b2J\u202egpj.exe", "c\x07", {})

# Whatever can come from a file name, a category or a payload: any bytes, any Unicode.
ANY_TEXT = st.text() | st.binary().map(os.fsdecode)

MANY = 50_000  # lines: more than any pipe holds


def written(output: str, hits: list[Hit] = HITS, **options: object) -> bytes:
    """The bytes that a pipe gets: the encoding is the one that `imret` gives to stdout."""
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, encoding="utf-8", errors="surrogateescape", newline="")
    write_hits(hits, output, stream, **options)  # type: ignore[arg-type]
    stream.flush()
    return data.getvalue()


def table(hits: list[Hit], **options: object) -> list[str]:
    return written("table", hits, **options).decode().splitlines()


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Iterator[Callable[[], str]]:
    """A real terminal as stdout; gives a function that returns what has come to it."""
    leader, follower = os.openpty()
    monkeypatch.setenv("COLUMNS", str(columns))
    with os.fdopen(follower, "w", encoding="utf-8", errors="surrogateescape") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            yield lambda: os.read(leader, 100_000).decode().replace("\r\n", "\n")
        finally:
            monkeypatch.undo()
            os.close(leader)


# ---- Formats --------------------------------------------------------------------------------------------


def test_hits_in_groups_have_a_heading_each_in_a_table_and_in_nothing_for_programs() -> None:
    hits = [
        Hit(rank, 0.9 - rank / 10, str(rank), f"/photos/{rank}.jpg", category, {"category": category})
        for rank, category in enumerate(["fungi", "fungi", "aves\x1b[31m"], start=1)
    ]
    lines = table(hits, group_by="category")
    assert [line for line in lines if "photos" not in line] == [
        "category: fungi",
        "",
        "category: aves\\x1b[31m",
    ]
    assert [line.split()[0] for line in lines if "photos" in line] == ["1", "2", "3"]
    for output in ("tsv", "json", "paths"):
        assert written(output, hits, group_by="category") == written(output, hits)
    assert table([], group_by="category") == []


def test_hits_in_groups_have_a_heading_each_on_a_sheet(hits: list[Hit], tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.html"
    for hit, category in zip(hits, ("fungi", "a<b>"), strict=False):
        hit.payload["category"] = category
    deliver(hits, query="owl", html=str(sheet), group_by="category", output="json")
    page = sheet.read_text(encoding="utf-8")
    assert re.findall("<h2>(.*?)</h2>", page) == ["category: fungi", "category: a&lt;b&gt;"]
    assert [part.count("<figure ") for part in page.split("<section>")[1:]] == [1, 1]


def test_a_table_is_rank_score_category_and_path() -> None:
    assert written("table") == (
        b"   1  0.500  fungi  /photos/fungi/a.jpg\n   2  0.250  -      /photos/a\\x09b\\x0a\\\\xe9.jpg  +2\n"
    )


def test_tsv_is_a_header_and_a_line_for_each_hit() -> None:
    assert written("tsv") == (
        b"rank\tscore\tcategory\tpath\n"
        b"1\t0.500000\tfungi\t/photos/fungi/a.jpg\n"
        b"2\t0.250000\t\t/photos/a\\tb\\n\\\\\xe9.jpg\n"
    )


def test_json_is_one_object_per_line_that_opens_the_file() -> None:
    assert written("json") == (
        b'{"rank": 1, "score": 0.5, "category": "fungi", "path": "/photos/fungi/a.jpg", "id": "id-1", '
        b'"folded": 0, "left_out": 0}\n'
        b'{"rank": 2, "score": 0.25, "category": null, "path": "/photos/a\\tb\\n\\\\\\udce9.jpg", '
        b'"id": "id-2", "folded": 2, "left_out": 0}\n'
    )
    assert written("json", HITS[:1], payload=True, left_out=3) == (
        b'{"rank": 1, "score": 0.5, "category": "fungi", "path": "/photos/fungi/a.jpg", "id": "id-1", '
        b'"folded": 0, "left_out": 3, "payload": {"width": 4}}\n'
    )
    assert [json.loads(line)["path"] for line in written("json").splitlines()] == [hit.path for hit in HITS]


def test_paths_are_the_bytes_of_the_file_names() -> None:
    assert written("paths") == b"/photos/fungi/a.jpg\n/photos/a\tb\n\\\xe9.jpg\n"
    assert written("paths", null=True) == b"/photos/fungi/a.jpg\0/photos/a\tb\n\\\xe9.jpg\0"


def test_no_hits_are_no_output_but_the_header_of_tsv() -> None:
    assert [written(output, []) for output in ("table", "json", "paths")] == [b"", b"", b""]
    assert written("tsv", []) == b"rank\tscore\tcategory\tpath\n"


def test_no_table_tsv_or_json_holds_what_a_terminal_would_obey() -> None:
    assert written("table", [HOSTILE]) == b"   1  -0.500  c\\x07  /a\\x1b[2J\\x9b2J\\u202egpj.exe\n"
    assert written("tsv", [HOSTILE]).endswith(b"c\\x07\t/a\\x1b[2J\\x9b2J\\u202egpj.exe\n")
    line = written("json", [HOSTILE])
    assert b'"c\\u0007", "path": "/a\\u001b[2J\\u009b2J\\u202egpj.exe"' in line
    assert json.loads(line)["path"] == HOSTILE.path


@given(ANY_TEXT)
def test_json_is_one_line_of_printable_text_with_the_same_value(value: str) -> None:
    line = written("json", [Hit(1, 0.5, "i", value, value, {"note": value})], payload=True).decode()
    assert all(char.isprintable() or unicodedata.category(char) == "Zs" for char in line[:-1])
    assert len(line.splitlines()) == 1
    fields = json.loads(line)
    assert (fields["path"], fields["category"], fields["payload"]["note"]) == (value, value, value)


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), max_size=4))
def test_rows_of_tsv_parse_back_to_the_same_fields(values: list[tuple[str, str]]) -> None:
    hits = [Hit(i, 0.5, "i", path, category, {}) for i, (category, path) in enumerate(values, start=1)]
    header, *rows = written("tsv", hits).decode("utf-8", "surrogateescape").splitlines()
    assert header.split("\t") == ["rank", "score", "category", "path"]
    fields = [row.split("\t") for row in rows]
    assert [(int(row[0]), float(row[1])) for row in fields] == [(hit.rank, 0.5) for hit in hits]
    assert [(unescaped(row[2]), unescaped(row[3])) for row in fields] == values


def unescaped(field: str) -> str:
    """The reader that the format is made for: the escapes of Python's strings, and no others."""
    short = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    code = r"\\(?:([tnr\\])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))"
    return re.sub(code, lambda m: short[m[1]] if m[1] else chr(int(m[2] or m[3] or m[4], 16)), field)


def test_half_a_surrogate_pair_is_written_out_where_no_encoding_takes_it() -> None:
    assert tsv("a\ud83d") == "a\\ud83d"


def test_a_terminal_gets_a_table_that_fits_and_a_pipe_one_that_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hit = Hit(1, 0.5, "i", f"/{'folder/' * 20}photo.jpg", "fungi", {}, folded=3)
    with terminal(monkeypatch, 60) as seen:
        deliver([hit], query="x")
        assert seen() == "   1  0.500  fungi  /folder/fol…/folder/folder/photo.jpg  +3\n"
    deliver([hit], query="x")
    assert capsys.readouterr().out == f"   1  0.500  fungi  {hit.path}  +3\n"


@pytest.mark.parametrize("output", ["table", "tsv", "json", "paths"])
def test_no_format_sends_control_characters_to_a_terminal(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with terminal(monkeypatch, 80) as seen:
        deliver([HOSTILE], query="x", output=output)
        assert not set(seen()) & set("\x1b\x9b\x07\u202e")


@given(
    st.lists(st.tuples(ANY_TEXT, ANY_TEXT, st.integers(0, 99), st.floats(-1, 1)), max_size=4),
    st.integers(44, 120),
)
def test_no_row_is_wider_than_the_terminal(values: list[tuple[str, str, int, float]], width: int) -> None:
    hits = [
        Hit(i, score, "i", path, category, {}, folded)
        for i, (category, path, folded, score) in enumerate(values, start=1)
    ]
    rows = written("table", hits, width=width).decode().split("\n")[:-1]
    assert len(rows) == len(hits)
    assert all(display_width(row) <= width for row in rows)


def test_a_row_that_does_not_fit_keeps_the_end_of_its_name_and_its_mark() -> None:
    hit = Hit(1, 0.5, "i", f"/{'folder/' * 20}写真-{'x' * 30}.jpg", "fungi", {}, folded=3)
    whole = table([hit])
    for width in (40, 60, 79, display_width(whole[0]) - 1):
        (row,) = table([hit], width=width)
        assert row.endswith("x.jpg  +3")
        assert "…" in row
    assert table([hit], width=display_width(whole[0])) == whole


def test_a_long_category_gives_way_only_where_a_row_does_not_fit() -> None:
    hit = Hit(1, 0.5, "i", "/photos/2024/owl.jpg", "very-long-category-name", {})
    assert table([hit], width=60) == ["   1  0.500  very-long-category-name  /photos/2024/owl.jpg"]
    assert table([hit], width=40) == ["   1  0.500  ve…-name  /phot…024/owl.jpg"]


def test_columns_are_in_line_with_wide_names_negative_scores_and_high_ranks() -> None:
    hits = [
        Hit(1, 0.5, "i", "/a", "鳥", {}),
        Hit(2, -0.25, "j", "/b", "fungi", {}),
        Hit(12345, 0.1, "k", "/c", None, {}),
    ]
    assert table(hits) == [
        "    1   0.500  鳥     /a",
        "    2  -0.250  fungi  /b",
        "12345   0.100  -      /c",
    ]


@given(st.text(max_size=60), st.integers(1, 40))
def test_a_shortened_text_has_room_and_is_its_two_ends(text: str, room: int) -> None:
    short = shortened(text, room)
    assert display_width(short) <= room
    if short != text:
        assert any(
            text.startswith(short[:i]) and text.endswith(short[i + 1 :])
            for i, char in enumerate(short)
            if char == "…"
        )


@pytest.mark.parametrize(
    ("text", "width"), [("abc", 3), ("写真", 4), ("é", 1), ("한", 2), ("🦉", 2), ("น้ำ", 2), ("", 0)]
)
def test_width_is_that_of_a_terminal_also_for_the_decomposed_names_of_macos(text: str, width: int) -> None:
    assert display_width(text) == width
    assert text == "น้ำ" or display_width(unicodedata.normalize("NFD", text)) == width


def test_no_mark_of_a_letter_that_was_cut_off_combines_with_the_ellipsis() -> None:
    assert shortened("aaaaaaae\u0301bb", 4) == "a…bb"
    assert shortened("aaaaaae\u0301b", 4) == "a…e\u0301b"


def test_a_path_below_the_working_folder_is_shown_from_there_and_survives_its_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    hit = Hit(1, 0.5, "i", str(here / "fungi" / "a.jpg"), "fungi", {})
    assert table([hit]) == ["   1  0.500  fungi  fungi/a.jpg"]
    here.rmdir()
    assert table([hit]) == [f"   1  0.500  fungi  {hit.path}"]


def test_a_thumbnail_stands_above_its_row() -> None:
    assert [row.split()[0] for row in table(HITS, thumbnail=lambda hit: f"<{hit.id}>\n")] == [
        *("<id-1>", "1", "<id-2>", "2")
    ]


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


# ---- Closed pipes ---------------------------------------------------------------------------------------

_COMMANDS = """
import os, sys, click
from imret.cli import main as cli
from imret.output.deliver import deliver
from imret.retrieval.results import Hit

@cli.cli.command()
@click.argument("count", type=int)
@click.argument("output")
@click.argument("path")
@click.argument("folder", required=False)
@click.pass_context
def pears(ctx, count, output, path, folder):
    hits = [Hit(i, 0.5, "i", path, "c", {}) for i in range(1, count + 1)]
    ctx.exit(deliver(hits, query="q", output=output, copy_to=folder))

@cli.cli.command()
@click.argument("count", type=int)
def apples(count):
    for _ in range(count):
        print("a result")

@cli.cli.command()
def worm():
    mine = os.pipe()
    os.close(mine[0])
    os.write(mine[1], b"x")

cli.main()
"""


def _with_closed_pipe(*arguments: object, unbuffered: str = "") -> tuple[int, bytes]:
    """Run the real `main` with a reader of stdout that goes at once, or after a line as `head -1` does."""
    command = [sys.executable, "-c", _COMMANDS, *map(str, arguments)]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if MANY in arguments:
            process.stdout.readline()
        process.stdout.close()
        return process.wait(), process.stderr.read()


@pytest.mark.parametrize(
    "arguments",
    [
        ("pears", 3, "paths", "/a.jpg"),
        ("pears", MANY, "paths", "/a.jpg"),
        ("pears", MANY, "table", "/a.jpg"),
        ("apples", 3),
        ("apples", MANY),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_enough_ends_the_command_quietly(
    arguments: tuple[object, ...], unbuffered: str
) -> None:
    assert _with_closed_pipe(*arguments, unbuffered=unbuffered) == (0, b"")


def test_a_broken_pipe_that_is_not_stdout_is_an_error() -> None:
    done = subprocess.run([sys.executable, "-c", _COMMANDS, "worm"], capture_output=True)
    assert done.returncode == 1
    assert b"a process of imret's own has ended" in done.stderr


def test_pictures_are_copied_and_failures_told_also_when_nobody_reads_the_list(tmp_path: Path) -> None:
    picture = draw_picture(tmp_path / "owl.png")
    code, said = _with_closed_pipe("pears", 3, "paths", picture, tmp_path / "out")
    assert (code, said) == (0, f"3 pictures copied to {tmp_path / 'out'}\n".encode())
    assert len(list((tmp_path / "out").iterdir())) == 3
    picture.unlink()
    code, said = _with_closed_pipe("pears", 3, "paths", picture, tmp_path / "other")
    assert code == 1
    assert said.count(b"not copied: ") == 3


# ---- Copies ---------------------------------------------------------------------------------------------


@pytest.fixture
def hits(tmp_path: Path) -> list[Hit]:
    files = [
        draw_picture(tmp_path / "photos" / name, seed=i) for i, name in enumerate(("owl.png", "a b.png"))
    ]
    return [Hit(i, 0.5, f"id-{i}", str(file), "aves", {}) for i, file in enumerate(files, start=1)]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_copies_are_named_by_rank_and_whole(hits: list[Hit], tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    Path(hits[0].path).chmod(0o640)
    os.utime(hits[0].path, (1_000_000_000, 1_000_000_000))
    assert copy_hits(hits, out) == (2, [])
    assert names(out) == ["001_owl.png", "002_a b.png"]
    for hit, name in zip(hits, names(out), strict=True):
        assert (out / name).read_bytes() == Path(hit.path).read_bytes()
    kept = (out / "001_owl.png").stat()
    assert (kept.st_mtime, kept.st_mode & 0o777) == (1_000_000_000, 0o640)


def test_ranks_have_as_many_digits_as_keep_them_in_order(hits: list[Hit], tmp_path: Path) -> None:
    many = [Hit(rank, 0.5, "i", hits[0].path, None, {}) for rank in (2, 10_000)]
    copy_hits(many, tmp_path / "out")
    assert names(tmp_path / "out") == ["00002_owl.png", "10000_owl.png"]


def test_a_second_copy_changes_nothing_and_another_file_of_that_name_stays(
    hits: list[Hit], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "001_owl.png").write_text("mine")
    (out / "002_a b.png").symlink_to("nowhere")
    expected = ["001_owl-2.png", "001_owl.png", "002_a b-2.png", "002_a b.png"]
    for _ in range(2):
        assert copy_hits(hits, out) == (2, [])
        assert names(out) == expected
    assert (out / "001_owl.png").read_text() == "mine"
    assert os.readlink(out / "002_a b.png") == "nowhere"
    assert (out / "001_owl-2.png").read_bytes() == Path(hits[0].path).read_bytes()


def test_what_is_there_already_is_not_written_again(
    hits: list[Hit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_hits(hits, tmp_path / "out")
    monkeypatch.setattr("tempfile.mkstemp", None)  # would fail
    assert copy_hits(hits, tmp_path / "out") == (2, [])


def test_a_folder_without_hard_links_gets_the_same_copies(
    hits: list[Hit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what Linux says on FAT

    monkeypatch.setattr("os.link", refuse)
    out = tmp_path / "out"
    out.mkdir()
    (out / "001_owl.png").write_text("mine")
    for _ in range(2):
        assert copy_hits(hits, out) == (2, [])
        assert names(out) == ["001_owl-2.png", "001_owl.png", "002_a b.png"]
    assert (out / "001_owl.png").read_text() == "mine"


def test_a_file_that_comes_meanwhile_is_not_replaced(
    hits: list[Hit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copystat = tmp_path / "out", shutil.copystat

    def meanwhile(*paths: str) -> None:
        copystat(*paths)
        (out / "001_owl.png").write_text("just come")

    monkeypatch.setattr("shutil.copystat", meanwhile)
    assert copy_hits(hits[:1], out) == (1, [])
    assert (out / "001_owl.png").read_text() == "just come"
    assert names(out) == ["001_owl-2.png", "001_owl.png"]


@pytest.mark.parametrize(
    "name",
    [b"caf\xe9.png", b"line\nfeed.png", b"-rf.png", "写真🦉.png".encode(), b".png", b"no suffix", b'"q".png'],
)
def test_odd_names_are_kept(name: bytes, hits: list[Hit], tmp_path: Path) -> None:
    odd = Path(hits[0].path).rename(tmp_path / os.fsdecode(name))
    assert copy_hits([Hit(1, 0.5, "i", str(odd), None, {})], tmp_path / "out") == (1, [])
    assert os.listdir(os.fsencode(tmp_path / "out")) == [b"001_" + name]


def test_a_name_that_grows_too_long_loses_the_end_of_its_stem_in_whole_characters(
    hits: list[Hit], tmp_path: Path
) -> None:
    long = Path(hits[0].path).rename(tmp_path / f"{'写' * 83}.png")  # 253 bytes of 255
    hit = Hit(1, 0.5, "i", str(long), None, {})
    out = tmp_path / "out"
    out.mkdir()
    (out / f"001_{'写' * 82}.png").write_text("mine")
    assert copy_hits([hit], out) == (1, [])
    assert names(out) == [f"001_{'写' * 81}-2.png", f"001_{'写' * 82}.png"]


def test_what_is_gone_or_no_file_any_more_is_told_and_the_rest_is_copied(
    hits: list[Hit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(hits[0].path).unlink()
    pipe, folder = tmp_path / "pipe\x1b.png", tmp_path / "folder.png"
    os.mkfifo(pipe)
    folder.mkdir()
    more = [*hits, Hit(3, 0.1, "p", str(pipe), None, {}), Hit(4, 0.1, "f", str(folder), None, {})]
    assert deliver(more, query="owl", output="paths", copy_to=str(tmp_path / "out")) == 1
    out, err = capsys.readouterr()
    assert out == "".join(f"{hit.path}\n" for hit in more)
    assert err.splitlines() == [
        f"not copied: {hits[0].path}: no such file",
        f"not copied: {tmp_path}/pipe\\x1b.png: not a regular file",
        f"not copied: {folder}: it is a folder, not a file",
        f"1 picture copied to {tmp_path / 'out'}, 3 not",
    ]
    assert names(tmp_path / "out") == ["002_a b.png"]


def test_where_there_is_no_room_for_a_picture_nothing_of_it_is_left(hits: list[Hit], tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(bytes(3_000_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))  # a real failure after real writes
    try:
        done = copy_hits([Hit(3, 0.5, "i", str(large), None, {}), *hits], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done == (2, [(str(large), os.strerror(errno.EFBIG))])
    assert names(tmp_path / "out") == ["001_owl.png", "002_a b.png"]


def test_a_folder_that_cannot_be_made_or_written_is_an_error(hits: list[Hit], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        DataError, match=r"cannot make the folder '.*file/out': Not a directory\.\n.*--copy-to"
    ):
        copy_hits(hits, tmp_path / "file" / "out")
    if sys.platform == "linux":  # a folder in which not even root makes files
        with pytest.raises(DataError, match=r"cannot write to the folder '/proc': .*\.\n.*--copy-to DIR"):
            copy_hits(hits, "/proc")


# ---- Contact sheet --------------------------------------------------------------------------------------


def links(page: str) -> list[bytes]:
    """The files that the links of a page open, as bytes."""
    return [
        os.fsencode(unquote(link, errors="surrogateescape"))
        for link in re.findall(r'href="file://([^"]+)"', page)
    ]


def test_a_sheet_shows_every_hit_and_opens_its_file(
    hits: list[Hit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = Hit(3, 0.1, "id-3", str(tmp_path / "gone<b>.png"), "<script>", {}, folded=4)
    sheet = tmp_path / "sheet.html"
    assert deliver([*hits, gone], query="owl & <co>", note="--category aves", html=str(sheet)) == 0
    page = sheet.read_text(encoding="utf-8")
    assert "<title>owl &amp; &lt;co&gt;</title>" in page
    assert "<p>3 pictures · --category aves</p>" in page
    figures = re.findall(r"<figure.*?</figure>", page)
    assert len(figures) == 3
    for figure, hit in zip(figures, hits, strict=False):
        assert figure.count('<img src="data:image/jpeg;base64,') == 1
        assert f"<b>{hit.rank}</b> 0.500<div>aves</div><div><bdi>{Path(hit.path).name}</bdi>" in figure
    assert "cannot be read any more" in figures[2]
    assert ">+4</b><div>&lt;script&gt;</div><div><bdi>gone&lt;b&gt;.png</bdi>" in figures[2]
    assert "<script" not in page
    assert not re.search(r'(?:src|href)=(?!"(?:data|file):)', page)  # it fetches nothing
    assert links(page) == [os.fsencode(hit.path) for hit in hits]
    assert capsys.readouterr().err == f"Contact sheet: {sheet}\n"


@pytest.mark.parametrize(
    "name", [b"caf\xe9.png", b'"q" & <b>?#%41.png', "写真.png".encode(), b"line\nfeed\x1b.png"]
)
def test_a_sheet_opens_files_of_any_name(name: bytes, hits: list[Hit], tmp_path: Path) -> None:
    odd = Path(hits[0].path).rename(tmp_path / os.fsdecode(name))
    sheet = tmp_path / "sheet.html"
    deliver([Hit(1, 0.5, "i", str(odd), None, {})], query="caf\udce9", html=str(sheet), output="json")
    page = sheet.read_text(encoding="utf-8")
    assert links(page) == [os.fsencode(odd)]
    assert "<h1>caf\\xe9</h1>" in page
    assert "\x1b" not in page


def test_a_sheet_is_replaced_as_a_whole_or_stays(hits: list[Hit], tmp_path: Path) -> None:
    sheet, link = tmp_path / "sheet.html", tmp_path / "link.html"
    sheet.write_text("old")
    sheet.chmod(0o600)
    link.symlink_to(sheet)
    deliver(hits, query="owl", html=str(link))
    assert link.is_symlink()
    assert "<title>owl</title>" in sheet.read_text(encoding="utf-8")
    assert sheet.stat().st_mode & 0o777 == 0o600
    with pytest.raises(
        DataError, match=r"cannot write the contact sheet '.*': No such file .*\n.*--html FILE"
    ):
        deliver(hits, query="owl", html=str(tmp_path / "no" / "sheet.html"))
    with pytest.raises(DataError, match="cannot write the contact sheet"):
        deliver(hits, query="owl", html=str(tmp_path / "photos"))
    assert names(tmp_path) == ["link.html", "photos", "sheet.html"]


def test_a_sheet_goes_through_a_pipe_and_does_not_take_its_place(hits: list[Hit], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        deliver(hits, query="owl", html=str(pipe))
        assert b"<title>owl</title>" in reader.communicate()[0]
    assert pipe.is_fifo()


# ---- Viewer ---------------------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that puts a program on the PATH, else empty, and gives the file that its arguments go to."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DISPLAY", ":0")
    for name in ("WAYLAND_DISPLAY", "IMRET_VIEWER", "BROWSER"):
        monkeypatch.delenv(name, raising=False)

    def add(name: str, then: str = "") -> Path:
        seen = folder / "seen"
        (folder / name).write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {seen}\n{then}\n")
        (folder / name).chmod(0o755)
        return seen

    return add


def _no_page() -> Path:
    raise AssertionError("no page is needed")


def test_the_viewer_of_choice_gets_all_pictures_at_once_and_keeps_off_stdout(
    hits: list[Hit],
    programs: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen = programs("my viewer", "echo chatter")
    monkeypatch.setenv("IMRET_VIEWER", "'my viewer' --fast")
    monkeypatch.delenv("DISPLAY")  # it may be a program of the terminal
    open_hits(hits, query="owl")
    assert seen.read_text().splitlines() == ["--fast", *(hit.path for hit in hits)]
    assert capfd.readouterr() == ("", "chatter\n")


def test_one_picture_opens_in_the_systems_viewer(hits: list[Hit], programs: Callable[..., Path]) -> None:
    seen = programs("xdg-open")
    assert show([hits[0].path], _no_page, platform="linux") is None
    assert seen.read_text() == f"{hits[0].path}\n"


def test_several_pictures_open_as_one_page_that_only_this_user_can_read(
    hits: list[Hit], programs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = programs("xdg-open")
    deliver(hits, query="owl", output="paths", open_them=True)
    page = Path(seen.read_text().rstrip("\n"))
    assert page.read_text(encoding="utf-8").count("data:image/jpeg") == 2
    assert page.parent.stat().st_mode & 0o077 == 0
    assert capsys.readouterr().err == f"Contact sheet: {page}\n"
    page.unlink()
    page.parent.rmdir()


def test_a_sheet_that_is_written_anyway_is_the_one_that_opens(
    hits: list[Hit], programs: Callable[..., Path], tmp_path: Path
) -> None:
    seen = programs("xdg-open")
    deliver(hits, query="owl", html=str(tmp_path / "sheet.html"), open_them=True)
    assert seen.read_text() == f"{tmp_path / 'sheet.html'}\n"


def test_macos_opens_all_pictures_in_one_call(hits: list[Hit], programs: Callable[..., Path]) -> None:
    seen = programs("open")
    assert show([hit.path for hit in hits], _no_page, platform="darwin") is None
    assert seen.read_text().splitlines() == [hit.path for hit in hits]


def test_pictures_that_are_gone_are_left_out(
    hits: list[Hit], programs: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = programs("xdg-open")
    Path(hits[0].path).unlink()
    open_hits(hits, query="owl")
    assert seen.read_text() == f"{hits[1].path}\n"
    assert capsys.readouterr().err == "not shown: 1 picture whose files are gone\n"
    Path(hits[1].path).unlink()
    with pytest.raises(DataError, match="nothing to open: the files are gone"):
        open_hits(hits, query="owl")


def test_without_hits_nothing_opens(programs: Callable[..., Path]) -> None:
    assert deliver([], query="owl", open_them=True) == 0


@pytest.mark.parametrize(
    ("viewer", "says"),
    [
        (
            "/no/such/viewer -x",
            r"cannot start the viewer '/no/such/viewer', which IMRET_VIEWER names: No such",
        ),
        ("feh 'a", r"IMRET_VIEWER is \"feh 'a\", which is no command: No closing quotation"),
        ("broken", r"the viewer 'broken', which IMRET_VIEWER names, ended with exit code 7"),
    ],
)
def test_a_viewer_that_does_not_work_is_named(
    viewer: str,
    says: str,
    hits: list[Hit],
    programs: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs("broken", "exit 7")
    monkeypatch.setenv("IMRET_VIEWER", viewer)
    with pytest.raises(DataError, match=says):
        open_hits(hits, query="owl")


def test_without_a_display_it_says_what_to_do(hits: list[Hit], programs: Callable[..., Path]) -> None:
    programs("xdg-open")
    with pytest.raises(DataError, match=r"no display (.|\n)*--html FILE(.|\n)*--preview(.|\n)*IMRET_VIEWER"):
        show([hits[0].path], _no_page, environ={"PATH": os.environ["PATH"]}, platform="linux")


def test_without_a_program_of_the_system_it_says_what_to_do(
    hits: list[Hit], programs: Callable[..., Path]
) -> None:
    with pytest.raises(DataError, match=r"cannot start 'xdg-open': No such(.|\n)*IMRET_VIEWER(.|\n)*--html"):
        show([hits[0].path], _no_page, platform="linux")
    programs("xdg-open", "exit 3")
    with pytest.raises(DataError, match=r"xdg-open cannot show the pictures: it ended with exit code 3"):
        show([hits[0].path], _no_page, platform="linux")


def test_a_viewer_that_stays_open_is_not_waited_for(
    hits: list[Hit], programs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.output.viewer._GRACE_S", 0.3)
    seen = programs("xdg-open", "exec /bin/sleep 3")
    assert show([hits[0].path], _no_page, platform="linux") is None
    assert seen.read_text() == f"{hits[0].path}\n"


def test_a_heading_is_composed_and_both_spellings_of_a_name_are_under_one() -> None:
    names = ("cafe\u0301", "caf\u00e9", "aves")
    hits = [Hit(n, 0.5, f"id-{n}", f"/{n}.jpg", name, {"category": name}) for n, name in enumerate(names, 1)]
    groups = [(heading, [hit.rank for hit in group]) for heading, group in groups_of(hits, "category")]
    assert groups == [("category: caf\u00e9", [1, 2]), ("category: aves", [3])]
