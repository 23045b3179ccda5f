"""Thirty kinds of bad or odd input: none stops a run, each has its line, nothing good is lost."""

from __future__ import annotations

import os
import re
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imret import Encoder, open_store
from imret.store.payload import file_of
from ingest.pipeline import ingest
from ingest.report import Report
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture

Build = Callable[[Path], Path]


def _truncated(folder: Path) -> Path:
    file = draw_picture(folder / "truncated.jpg", size=(400, 300))
    file.write_bytes(file.read_bytes()[:900])
    return file


def _truncated_png(folder: Path) -> Path:
    file = draw_picture(folder / "truncated.png", size=(400, 300))
    file.write_bytes(file.read_bytes()[:-700])
    return file


def _written(name: str, data: bytes) -> Build:
    def build(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return build


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(b"\0"))
        + _chunk(b"IEND", b"")
    )


def _saved(name: str, image: Image.Image, **options: object) -> Build:
    def build(folder: Path) -> Path:
        image.save(folder / name, **options)
        return folder / name

    return build


def _named(name: str | bytes) -> Build:
    def build(folder: Path) -> Path:
        picture = draw_picture(folder / "plain.png", seed=9)
        target = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        target.parent.mkdir(parents=True, exist_ok=True)
        return picture.rename(target)

    return build


def _exif_rotated(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), "red").save(folder / "rotated.jpg", exif=exif)
    return folder / "rotated.jpg"


def _broken_exif(folder: Path) -> Path:
    Image.new("RGB", (60, 40), "red").save(
        folder / "exif.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40
    )
    return folder / "exif.jpg"


def _animated(folder: Path) -> Path:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "green", "blue")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    return folder / "animated.gif"


def _dangling(folder: Path) -> Path:
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    return folder / "dangling.jpg"


def _looping_file(folder: Path) -> Path:
    (folder / "loop.jpg").symlink_to("loop.jpg")
    return folder / "loop.jpg"


def _looping_folder(folder: Path) -> Path:
    (folder / "up").symlink_to(folder.parent)
    return folder / "up"


def _folder_named_as_picture(folder: Path) -> Path:
    (folder / "folder.jpg").mkdir()
    return folder / "folder.jpg"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jpg")
    return folder / "pipe.jpg"


def _unreadable(folder: Path) -> Path:
    # Permissions do not stop root, who runs most containers; reading this file fails for everybody.
    (folder / "unreadable.jpg").symlink_to("/proc/self/mem")
    return folder / "unreadable.jpg"


def _forbidden(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    file = draw_picture(folder / "forbidden.jpg")
    file.chmod(0)
    return file


def _duplicates(folder: Path) -> Path:
    first = draw_picture(folder / "one.png", seed=5)
    (folder / "two.png").write_bytes(first.read_bytes())
    return folder / "two.png"


def _bomb(folder: Path) -> Path:
    Image.new("1", (16_000, 9_000)).save(folder / "bomb.png")  # 144 million pixels in some kilobytes
    return folder / "bomb.png"


GREY16 = Image.fromarray(np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16))
PICTURE = Image.new("RGB", (64, 48), (200, 30, 30))

SKIPPED: dict[str, tuple[Build, str]] = {
    "truncated jpeg": (_truncated, "truncated"),
    "truncated png": (_truncated_png, "truncated|broken"),
    "zero bytes": (_written("empty.jpg", b""), "empty"),
    "text named .jpg": (_written("text.jpg", b"this is no picture\n" * 50), "not a picture"),
    "html named .png": (_written("page.png", b"<!doctype html><title>404</title>"), "not a picture"),
    "zip named .webp": (_written("zip.webp", b"PK\x03\x04" + b"\0" * 100), "not a picture"),
    "postscript named .jpg": (
        _written("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "not a picture",
    ),
    "50,000 x 50,000 png header": (_written("huge.png", _huge_png()), r"50,?000 x 50,?000"),
    "decompression bomb": (_bomb, r"16,?000 x 9,?000"),
    "jpeg of markers only": (
        _written("markers.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xd9"),
        ".",
    ),
    "unreadable file": (_unreadable, "read|not a picture|empty"),
    "forbidden file": (_forbidden, "[Pp]ermission"),
    "folder named a.jpg": (_folder_named_as_picture, "a folder, not a picture"),
    "named pipe": (_pipe, "not a regular file"),
    "dangling symlink": (_dangling, "dangling symlink"),
    "symlink to itself": (_looping_file, "symlink loop"),
    "symlink to a folder above": (_looping_folder, "symlink loop"),
}
TAKEN: dict[str, Build] = {
    "cmyk": _saved("cmyk.jpg", PICTURE.convert("CMYK")),
    "16-bit grey png": _saved("grey16.png", GREY16),
    "16-bit grey tiff": _saved("grey16.tiff", GREY16),
    "one bit": _saved("bit.bmp", PICTURE.convert("1")),
    "palette": _saved("palette.gif", PICTURE.convert("P")),
    "alpha": _saved("alpha.png", PICTURE.convert("RGBA")),
    "grey and alpha": _saved("la.png", PICTURE.convert("LA")),
    "one pixel": _saved("pixel.png", Image.new("RGB", (1, 1))),
    "a line of 1 x 20,000": _saved("line.png", Image.new("RGB", (1, 20_000))),
    "animated": _animated,
    "exif-rotated": _exif_rotated,
    "broken exif": _broken_exif,
    "png named .jpg": _saved("png.jpg", PICTURE, format="PNG"),
    "upper-case extension": _named("LOUD.PNG"),
    "spaces": _named("with  two spaces .png"),
    "quotes": _named('it\'s "quoted".png'),
    "newline": _named("new\nline.png"),
    "emoji": _named("🍄🦊.png"),
    "undecodable bytes": _named(b"caf\xe9 \xff.png"),
    "backslash": _named("back\\slash.png"),
    "name of 250 bytes": _named("n" * 246 + ".png"),
    "category like ..": _named("../..fungi/a.png"),
    "category of 200 characters": _named("../" + "c" * 200 + "/a.png"),
    "category with quotes and a newline": _named('../it\'s "odd"\n/a.png'),
    "two files with one content": _duplicates,
}


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


def _run(folder: Path, db: Path, encoder: Encoder) -> tuple[Report, set[bytes]]:
    """Ingest, and return the report and the files that the collection then holds."""
    with open_store(str(db)) as store:
        report = ingest(store, [FolderSource(folder)], encoder=encoder)
        stored = [point for points in store.open("photos").scan() for point in points]
    return report, {os.fsencode(file_of(point.payload)) for point in stored}


def _good(folder: Path) -> set[bytes]:
    return {
        os.fsencode(draw_picture(folder / "fungi" / name, seed=seed))
        for seed, name in enumerate(("a.jpg", "z.png"))
    }


@pytest.mark.parametrize("kind", SKIPPED)
def test_what_cannot_be_taken_is_skipped_with_its_reason(kind: str, tmp_path: Path, encoder: Encoder) -> None:
    build, reason = SKIPPED[kind]
    good = _good(tmp_path / "photos")
    bad = build(tmp_path / "photos" / "fungi")
    report, stored = _run(tmp_path / "photos", tmp_path / "db", encoder)
    assert stored == good
    assert report.complete
    (skip,) = report.skipped
    assert skip["path"] == str(bad)
    assert re.search(reason, skip["reason"]), skip["reason"]


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_odd_but_good_is_stored(kind: str, tmp_path: Path, encoder: Encoder) -> None:
    good = _good(tmp_path / "photos")
    odd = os.path.normpath(TAKEN[kind](tmp_path / "photos" / "fungi"))
    report, stored = _run(tmp_path / "photos", tmp_path / "db", encoder)
    assert report.skipped == []
    assert stored >= good | {os.fsencode(odd)}
    assert report.added == len(stored)


def test_a_file_deleted_during_the_run_is_skipped_and_the_rest_is_stored(
    tmp_path: Path, encoder: Encoder
) -> None:
    folder = tmp_path / "photos"
    good = _good(folder)
    doomed = draw_picture(folder / "fungi" / "m.png", seed=7)

    class Vanishing(FolderSource):
        def entries(self):  # type: ignore[no-untyped-def]
            for entry in super().entries():
                if entry.path == "fungi/m.png":
                    doomed.unlink()
                yield entry

    with open_store(str(tmp_path / "db")) as store:
        source = Vanishing(folder)
        draw_picture(doomed, seed=7)
        # The first look only asks whether there is any picture; the file goes during the second.
        report = ingest(store, [source], encoder=encoder)
        stored = {os.fsencode(file_of(p.payload)) for points in store.open("photos").scan() for p in points}
    assert stored == good
    assert [(s["path"], s["reason"]) for s in report.skipped] == [
        (str(doomed), "gone while the folder was read")
    ]


def test_a_picture_that_breaks_later_keeps_what_was_stored_for_it(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "photos"
    good = _good(folder)
    _run(folder, tmp_path / "db", encoder)
    (folder / "fungi" / "a.jpg").write_bytes(b"no picture any more")
    report, stored = _run(folder, tmp_path / "db", encoder)
    assert stored == good
    assert len(report.skipped) == 1
    assert report.unchanged == 1


def test_files_that_appear_while_the_folder_is_read_do_no_harm(tmp_path: Path, encoder: Encoder) -> None:
    folder = tmp_path / "photos"
    _good(folder)
    stop = threading.Event()

    def churn() -> None:
        seed = 100
        while not stop.is_set():
            draw_picture(folder / "fungi" / f"churn{seed % 5}.png", seed=seed)
            seed += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        report, _ = _run(folder, tmp_path / "db", encoder)
    finally:
        stop.set()
        thread.join()
    assert report.complete
    last, stored = _run(folder, tmp_path / "db", encoder)
    assert last.skipped == []
    assert stored == {os.fsencode(file) for file in (folder / "fungi").iterdir()}
