"""Only pictures below ingested folders leave, upright; what is kept of them is bounded and never stale."""

from __future__ import annotations

import base64
import io
import os
import random
import socket
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from imret.disk_cache import DiskCache
from imret.errors import ImageError
from imret.images.decode import load_image
from imret.store.payload import make_payload
from imret.web.images.files import ImageFiles
from imret.web.images.thumbnails import THUMBNAIL_SIZES, ImageResponse, round_up_size
from imret.web.images.uploads import Uploads

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def drawing(width: int = 800, height: int = 600, *, seed: int = 0) -> Image.Image:
    """Draw soft spots of colour, which survive every codec."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC)


def write(file: Path, image: Image.Image | None = None, file_format: str = "JPEG", **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or drawing()).save(file, file_format, **options)
    return file


def payload_of(source: str | os.PathLike[str], path: str, **fields: Any) -> dict[str, Any]:
    """Make the payload that ingest would store for this place."""
    values: dict[str, Any] = {"sha256": "0" * 64, "width": 1, "height": 1, "size_bytes": 1, "modified": ""}
    return make_payload(source=os.fspath(source), path=path, category=None, **(values | fields))


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def opened(served: ImageResponse) -> Image.Image:
    data = served.read()
    assert len(data) == served.size
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def difference(image: Image.Image, other: Image.Image) -> float:
    assert image.size == other.size
    return float(np.abs(np.asarray(image, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder that was ingested, with one picture in it, and one beside it that was not."""
    write(tmp_path / "private" / "secret.jpg", drawing(seed=99))
    write(tmp_path / "photos" / "fungi" / "1.jpg")
    return tmp_path / "photos"


@pytest.fixture
def pictures(tmp_path: Path) -> ImageFiles:
    return ImageFiles(tmp_path / "kept")


def refused(pictures: ImageFiles, payload: Any, reason: str) -> None:
    """Check that all three ways to a picture are closed, and that no message tells a place."""
    for ask in (pictures.original, lambda it: pictures.thumbnail(it, 320), pictures.etag):
        with pytest.raises(ImageError, match=reason) as caught:
            ask(payload)
        for told in ("pytest", "/etc", "/dev", "/tmp", "private", "secret"):
            assert told not in str(caught.value), caught.value


# ---- Which files ---------------------------------------------------------------------------------------


def test_a_picture_is_given_from_below_its_source(photos: Path, pictures: ImageFiles) -> None:
    payload = payload_of(photos, "fungi/1.jpg")
    assert pictures.original(payload).read() == (photos / "fungi/1.jpg").read_bytes()
    assert opened(pictures.thumbnail(payload, 320)).size == (320, 240)


STRANGE = "the stored place of this picture is not one that imret ingest writes"


@pytest.mark.parametrize(
    "change",
    [
        {"path": "../private/secret.jpg"},
        {"path": "fungi/../../private/secret.jpg"},
        {"path": "fungi/.."},
        {"path": "./fungi/1.jpg"},
        {"path": "fungi//1.jpg"},
        {"path": "fungi/"},
        {"path": ""},
        {"path": "/etc/passwd"},
        {"path": "fungi/1.jpg\0.png"},
        {"path": "\ud800.jpg"},
        {"path": None},
        {"path": 7},
        {"path": ["fungi", "1.jpg"]},
        {"path": "a/" * 3_000_000 + "1.jpg"},
        {"path": "a" * 4096},
        {"source": ""},
        {"source": "."},
        {"source": "photos"},
        {"source": "~"},
        {"source": "/photos\0"},
        {"source": "\udfff"},
        {"source": None},
        {"source": {"a": "b"}},
        {"file_base64": base64.b64encode(b"/etc/passwd").decode()},
        {"file_base64": base64.b64encode(b"fungi/1.jpg").decode()},
        {"file_base64": base64.b64encode(b"/").decode()},
        {"file_base64": ""},
        {"file_base64": "no base 64 é"},
        {"file_base64": 7},
        {"file_base64": base64.b64encode(b"/a\0b/fungi/1.jpg").decode()},
    ],
    ids=lambda change: ascii(change)[:50],
)
def test_a_place_that_ingest_does_not_write_is_refused(
    photos: Path, pictures: ImageFiles, change: dict[str, Any]
) -> None:
    refused(pictures, payload_of(photos, "fungi/1.jpg") | change, STRANGE)
    # Whatever the caller allows: these are no places at all.
    refused(
        ImageFiles(photos.parent / "kept", roots=["/"]), payload_of(photos, "fungi/1.jpg") | change, STRANGE
    )


def test_a_payload_without_a_place_is_refused(pictures: ImageFiles) -> None:
    refused(pictures, {}, STRANGE)
    refused(pictures, {"path": "1.jpg"}, STRANGE)
    refused(pictures, {"source": "/photos"}, STRANGE)


@pytest.mark.parametrize("source", ["/", "//", "/.", "/../", "/proc/self/root"])
def test_the_whole_file_system_is_no_source(photos: Path, pictures: ImageFiles, source: str) -> None:
    if not os.path.isdir(source):
        pytest.skip(f"no {source} here")
    path = os.fspath(photos / "fungi" / "1.jpg")[1:]
    with pytest.raises(ImageError, match="the whole file system"):
        pictures.original({"source": source, "path": path})
    named = ImageFiles(photos.parent / "kept", roots=[photos])
    assert named.original({"source": source, "path": path}).read() == (photos / "fungi/1.jpg").read_bytes()


def test_a_link_within_the_source_is_followed_and_one_that_leads_out_is_not(
    photos: Path, pictures: ImageFiles
) -> None:
    (photos / "again").symlink_to("fungi")
    (photos / "copy.jpg").symlink_to(photos / "again" / "1.jpg")
    (photos / "out.jpg").symlink_to(photos.parent / "private" / "secret.jpg")
    (photos / "away").symlink_to("../private")
    (photos / "round.jpg").symlink_to(photos.parent / "private" / "back.jpg")
    (photos.parent / "private" / "back.jpg").symlink_to(photos / "fungi" / "1.jpg")
    (photos / "passwd.jpg").symlink_to("/etc/passwd")
    content = (photos / "fungi" / "1.jpg").read_bytes()
    for path in ("again/1.jpg", "copy.jpg", "round.jpg"):  # where it ends counts, not the way
        assert pictures.original(payload_of(photos, path)).read() == content
    for path in ("out.jpg", "away/secret.jpg", "passwd.jpg"):
        reason = "it leads out of the folder that was ingested$"
        for ask in (pictures.original, pictures.etag):
            with pytest.raises(ImageError, match=reason):
                ask(payload_of(photos, path))
    # A folder whose name only begins alike is another folder.
    write(photos.parent / "photos-private" / "1.jpg")
    (photos / "beside.jpg").symlink_to(photos.parent / "photos-private" / "1.jpg")
    refused(pictures, payload_of(photos, "beside.jpg"), "leads out of")


def test_a_source_that_was_moved_and_linked_still_holds_its_pictures(
    photos: Path, pictures: ImageFiles
) -> None:
    photos.rename(photos.parent / "disk")
    photos.symlink_to("disk")
    assert opened(pictures.original(payload_of(photos, "fungi/1.jpg"))).size == (800, 600)


def test_named_roots_decide_alone(photos: Path, tmp_path: Path) -> None:
    (photos / "out.jpg").symlink_to(tmp_path / "private" / "secret.jpg")
    outside = payload_of(tmp_path / "private", "secret.jpg")
    linked = payload_of(photos, "out.jpg")
    inside = payload_of(photos, "fungi/1.jpg")
    assert ImageFiles(tmp_path / "kept").original(outside).read()  # a forged source is believed
    image_files = ImageFiles(tmp_path / "kept", roots=[photos])
    assert image_files.original(inside).read()
    for payload in (outside, linked):
        for ask in (image_files.original, image_files.etag, lambda it: image_files.thumbnail(it, 320)):
            with pytest.raises(ImageError, match=r"it leads out of the folders that may be shown$"):
                ask(payload)
    both = ImageFiles(tmp_path / "kept", roots=[photos, str(tmp_path / "private")])
    assert both.original(outside).read() == both.original(linked).read()
    none = ImageFiles(tmp_path / "kept", roots=[])
    refused(none, inside, "leads out of the folders that may be shown")


def test_a_thumbnail_that_is_kept_is_not_given_to_who_may_not_see_the_picture(
    photos: Path, tmp_path: Path
) -> None:
    outside = payload_of(tmp_path / "private", "secret.jpg")
    assert ImageFiles(tmp_path / "kept").thumbnail(outside, 320).size > 0
    image_files = ImageFiles(tmp_path / "kept", roots=[photos])
    with pytest.raises(ImageError, match="leads out of"):
        image_files.thumbnail(outside, 320)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(photos: Path, pictures: ImageFiles) -> None:
    os.mkfifo(photos / "pipe.jpg")
    (photos / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(photos)  # the address of a socket is short
        try:
            server.bind("socket.jpg")
        finally:
            os.chdir(here)
        for path in ("pipe.jpg", "folder.jpg", "socket.jpg"):
            refused(pictures, payload_of(photos, path), f"^{path}: not a regular file$")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    refused(pictures, payload_of(photos, "loop.jpg"), "^loop.jpg: not a regular file$")
    for device in ("null", "zero"):
        refused(pictures, {"source": "/dev", "path": device}, f"^{device}: not a regular file$")


def test_what_is_gone_says_what_to_do(photos: Path, pictures: ImageFiles) -> None:
    gone = "no such file any more; bring the collection up to date: imret ingest$"
    refused(pictures, payload_of(photos, "fungi/2.jpg"), f"^fungi/2.jpg: {gone}")
    refused(pictures, payload_of(photos, "aves/1.jpg"), f"^aves/1.jpg: {gone}")
    refused(pictures, payload_of(photos, "fungi/1.jpg/2.jpg"), f"^fungi/1.jpg/2.jpg: {gone}")
    (photos / "dangling.jpg").symlink_to("nothing.jpg")
    refused(pictures, payload_of(photos, "dangling.jpg"), f"^dangling.jpg: {gone}")
    reason = (
        "^1.jpg: the folder that was ingested is not there; if its drive is mounted, bring the collection"
    )
    refused(pictures, payload_of(photos / "unplugged", "1.jpg"), reason)


def test_a_message_holds_no_control_characters_and_no_long_name(photos: Path, pictures: ImageFiles) -> None:
    with pytest.raises(ImageError) as caught:
        pictures.original(payload_of(photos, "\x1b[31m\u202eevil\n.jpg"))
    assert str(caught.value).startswith("\\x1b[31m\\u202eevil\\x0a.jpg: no such file")
    with pytest.raises(ImageError) as caught:
        pictures.original(payload_of(photos, "a/" * 1500 + "1.jpg"))
    assert len(str(caught.value)) < 300
    assert "/1.jpg: " in str(caught.value)


def test_undecodable_names_are_opened(tmp_path: Path, pictures: ImageFiles) -> None:
    source = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    write(Path(source) / os.fsdecode(b"\xff.jpg"))
    payload = payload_of(source, os.fsdecode(b"\xff.jpg"))
    assert "file_base64" in payload
    assert opened(pictures.thumbnail(payload, 320)).size == (320, 240)
    refused(pictures, payload_of(source, os.fsdecode(b"\xfe.jpg")), r"^\\xfe.jpg: no such file any more")
    # The name that opens must be the one that is shown.
    exact = os.fsencode(source) + b"/../private/secret.jpg"
    forged = payload | {"file_base64": base64.b64encode(exact).decode()}
    refused(pictures, forged, STRANGE)


def test_a_file_that_may_not_be_read_is_refused(photos: Path, pictures: ImageFiles) -> None:
    payload = payload_of(photos, "fungi/1.jpg")
    (photos / "fungi" / "1.jpg").chmod(0)
    user = os.geteuid()
    if user == 0:  # who reads every file
        os.seteuid(65534)
    try:
        refused(pictures, payload, "^fungi/1.jpg: no permission to read it$")
    finally:
        os.seteuid(user)
    # A folder that may be passed through need not be one that may be listed.
    (photos / "fungi" / "1.jpg").chmod(0o600)
    (photos / "fungi").chmod(0o100)
    try:
        assert pictures.original(payload).read()
    finally:
        (photos / "fungi").chmod(0o700)


@pytest.mark.parametrize("swapped", ["fungi", "1.jpg"])
@pytest.mark.parametrize("moment", ["fungi", "1.jpg"])
def test_a_link_laid_between_check_and_open_is_not_followed(
    photos: Path, pictures: ImageFiles, monkeypatch: pytest.MonkeyPatch, swapped: str, moment: str
) -> None:
    write(photos.parent / "private" / "1.jpg", drawing(seed=99))
    before = (photos / "fungi" / "1.jpg").read_bytes()
    really_open = os.open

    def open_late(path: Any, flags: int, *args: Any, **options: Any) -> int:
        # Right before the folder, or the file, of the resolved path is opened.
        if path == moment and options.get("dir_fd") is not None:
            monkeypatch.setattr(os, "open", really_open)
            place = photos / "fungi" if swapped == "fungi" else photos / "fungi" / "1.jpg"
            place.rename(photos / "moved")
            place.symlink_to(photos.parent / "private" / ("" if swapped == "fungi" else "1.jpg"))
        return really_open(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", open_late)
    if (swapped, moment) == ("fungi", "1.jpg"):
        # The folder was open already: its file is still the one that lay below the source.
        assert pictures.original(payload_of(photos, "fungi/1.jpg")).read() == before
    else:
        with pytest.raises(ImageError, match=r"^fungi/1.jpg: "):
            pictures.original(payload_of(photos, "fungi/1.jpg"))
    assert os.open is really_open, "the hook was not reached"


def test_a_place_that_flickers_between_file_and_link_never_gives_what_the_link_leads_to(
    photos: Path, pictures: ImageFiles
) -> None:
    place, secret = photos / "fungi" / "1.jpg", photos.parent / "private" / "secret.jpg"
    right, wrong = place.read_bytes(), secret.read_bytes()
    done = threading.Event()

    def flicker() -> None:
        link, file = photos / "link", photos / "file"
        while not done.is_set():
            link.symlink_to(secret)
            link.rename(place)
            file.write_bytes(right)
            file.rename(place)

    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        given = []
        for _ in range(1500):
            try:
                given.append(pictures.original(payload_of(photos, "fungi/1.jpg")).read())
            except ImageError:
                given.append(b"")
    finally:
        done.set()
        thread.join()
    assert wrong not in given
    assert right in given


# ---- What is sent --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"root:x:0:0:root:/root:/bin/bash\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"<!doctype html><script>alert(1)</script>",
        b"BM: minutes of a meeting, long enough to be taken for a header " * 4,
        b"GIF89a",
        b"%PDF-1.7",
        b"MZ" + b"\0" * 100,
        b"",
    ],
)
def test_only_pictures_are_given_out_whatever_their_name(
    photos: Path, pictures: ImageFiles, data: bytes
) -> None:
    (photos / "1.jpg").write_bytes(data)
    for ask in (pictures.original, lambda it: pictures.thumbnail(it, 320)):
        with pytest.raises(ImageError, match=r"^1.jpg: ") as caught:
            ask(payload_of(photos, "1.jpg"))
        assert os.fspath(photos) not in str(caught.value)
    assert not [name for _, _, names in os.walk(photos.parent / "kept") for name in names]


def browser_formats() -> Iterator[tuple[str, str, dict[str, Any]]]:
    yield "JPEG", "image/jpeg", {"exif": exif(6)}
    yield "JPEG", "image/jpeg", {"progressive": True}
    yield "PNG", "image/png", {}
    yield "WEBP", "image/webp", {}
    yield "GIF", "image/gif", {}
    yield "BMP", "image/bmp", {}
    if features.check("avif"):
        yield "AVIF", "image/avif", {"exif": exif(6)}


@pytest.mark.parametrize(("file_format", "media_type", "options"), list(browser_formats()))
def test_what_browsers_show_is_sent_as_it_is(
    photos: Path, pictures: ImageFiles, file_format: str, media_type: str, options: dict[str, Any]
) -> None:
    file = write(photos / "any.name", drawing(80, 60), file_format, **options)
    served = pictures.original(payload_of(photos, "any.name"))
    assert (served.media_type, served.size, served.data) == (media_type, file.stat().st_size, None)
    assert served.read() == file.read_bytes()
    assert served.file is not None
    assert served.file.closed


def test_what_browsers_do_not_show_is_sent_as_an_upright_jpeg_without_metadata(
    photos: Path, pictures: ImageFiles
) -> None:
    image = drawing(80, 60)
    tags = Image.Exif()
    tags[0x0112], tags[0x010F] = 6, "secret camera"
    write(photos / "a.tif", image, "TIFF", exif=tags)
    write(photos / "b.jpg", image.convert("CMYK"), "JPEG", exif=tags)
    write(photos / "c.png", image.convert("RGBA"), "PNG", exif=tags)
    write(photos / "d.webp", image, "WEBP", exif=tags)
    for name in ("a.tif", "b.jpg", "c.png", "d.webp"):
        file = photos / name
        assert b"secret camera" in file.read_bytes()
        served = pictures.original(payload_of(photos, name))
        assert served.media_type == "image/jpeg"
        assert served.data is not None
        assert b"secret camera" not in served.data
        image = opened(served)
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (60, 80))
        assert image.getexif().get(0x0112) is None
        assert difference(image, load_image(file)) < 4


def test_heic_is_sent_as_jpeg_where_pillow_heif_is_installed(photos: Path, pictures: ImageFiles) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(drawing()).save(photos / "a.heic")
    payload = payload_of(photos, "a.heic")
    whole, small = pictures.original(payload), pictures.thumbnail(payload, 320)
    assert whole.media_type == small.media_type == "image/jpeg"
    assert difference(opened(whole), load_image(photos / "a.heic")) < 4
    assert opened(small).size == (320, 240)


def test_an_animation_moves_at_full_size_and_stands_still_as_a_thumbnail(
    photos: Path, pictures: ImageFiles
) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in (RED, BLUE)]
    for name, file_format in (("a.gif", "GIF"), ("a.webp", "WEBP"), ("a.png", "PNG")):
        write(photos / name, frames[0], file_format, save_all=True, append_images=frames[1:], duration=100)
        payload = payload_of(photos, name)
        assert getattr(opened(pictures.original(payload)), "n_frames", 1) == 2
        small = opened(pictures.thumbnail(payload, 320))
        assert getattr(small, "n_frames", 1) == 1
        assert difference(small, frames[0]) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_thumbnail_is_upright(
    photos: Path, pictures: ImageFiles, file_format: str, orientation: int
) -> None:
    file = write(photos / "a.jpg", drawing(1200, 700, seed=orientation), file_format, exif=exif(orientation))
    small = opened(pictures.thumbnail(payload_of(photos, "a.jpg"), 160))
    reference = load_image(file).resize(small.size, Image.Resampling.LANCZOS)
    assert small.size == ((160, 93) if orientation < 5 else (93, 160))
    assert difference(small, reference) < 4
    assert small.getexif().get(0x0112) is None


def test_a_thumbnail_lays_transparency_over_white_and_keeps_the_brightness_of_16_bits(
    photos: Path, pictures: ImageFiles
) -> None:
    write(photos / "clear.png", Image.new("RGBA", (400, 300), (255, 0, 0, 0)), "PNG")
    write(photos / "palette.gif", Image.new("P", (400, 300)), "GIF", transparency=0)
    grey = Image.fromarray(np.full((300, 400), 32768, dtype=np.uint16))
    write(photos / "deep.png", grey, "PNG")
    for name, colour in (("clear.png", 255), ("palette.gif", 255), ("deep.png", 127)):
        small = opened(pictures.thumbnail(payload_of(photos, name), 320))
        assert small.size == (320, 240)
        assert abs(np.asarray(small, dtype=int) - colour).max() <= 2


def test_sizes_are_rounded_up_to_few_steps(photos: Path, pictures: ImageFiles) -> None:
    assert list(THUMBNAIL_SIZES) == sorted(set(THUMBNAIL_SIZES))
    for size, step in ((1, 160), (160, 160), (161, 320), (321, 640), (2048, 2048), (10**9, 2048)):
        assert round_up_size(size) == step
    payload = payload_of(photos, "fungi/1.jpg")
    assert opened(pictures.thumbnail(payload, 200)).size == (320, 240)
    assert opened(pictures.thumbnail(payload, 10**9)).size == (800, 600)  # never enlarged
    tags = {pictures.thumbnail(payload, size).etag for size in range(1, 3000, 7)}
    assert len(tags) == len(THUMBNAIL_SIZES)
    for size in (0, -1):
        for ask in (pictures.thumbnail, pictures.etag):
            with pytest.raises(ValueError, match="at least 1 pixel"):
                ask(payload, size)


def test_a_bomb_is_refused_by_its_header(photos: Path, pictures: ImageFiles) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000))
    (photos / "a.png").write_bytes(bomb)
    for ask in (pictures.original, lambda it: pictures.thumbnail(it, 160)):
        with pytest.raises(ImageError, match=r"^a.png: 50000 x 50000 pixels are more than the limit"):
            ask(payload_of(photos, "a.png"))
    tight = ImageFiles(photos.parent / "kept", max_pixels=800 * 600 - 1)
    (photos / "b.png").write_bytes(encoded(drawing(800, 600)))
    with pytest.raises(ImageError, match="800 x 600 pixels are more than the limit of 479,999"):
        tight.thumbnail(payload_of(photos, "b.png"), 160)
    assert tight.thumbnail(payload_of(photos, "fungi/1.jpg"), 160).data  # libjpeg decodes a part of it


def test_a_damaged_picture_has_no_thumbnail_and_is_tried_again(photos: Path, pictures: ImageFiles) -> None:
    file = photos / "fungi" / "1.jpg"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    payload = payload_of(photos, "fungi/1.jpg")
    with pytest.raises(ImageError, match=r"^fungi/1.jpg: a (damaged or )?truncated"):
        pictures.thumbnail(payload, 320)
    assert not [name for _, _, names in os.walk(photos.parent / "kept") for name in names]
    file.write_bytes(whole)
    assert opened(pictures.thumbnail(payload, 320)).size == (320, 240)


def test_a_file_that_shrinks_while_it_is_sent_breaks_off(photos: Path, pictures: ImageFiles) -> None:
    file = photos / "fungi" / "1.jpg"
    n_bytes = file.stat().st_size
    served = pictures.original(payload_of(photos, "fungi/1.jpg"))
    os.truncate(file, n_bytes // 2)
    with pytest.raises(OSError, match="became shorter"):
        served.read()
    assert served.file is not None
    assert served.file.closed
    # And one that grows ends where it was said to end.
    write(file, drawing())
    served = pictures.original(payload_of(photos, "fungi/1.jpg"))
    with file.open("ab") as more:
        more.write(b"more")
    assert len(b"".join(served.chunks(1000))) == served.size == n_bytes


# ---- What is kept --------------------------------------------------------------------------------------


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """A list that grows with each picture that is decoded, really decoded."""
    sides: list[int | None] = []

    def counting(source: Any, *, max_side: int | None = None, **options: Any) -> Image.Image:
        sides.append(max_side)
        return load_image(source, max_side=max_side, **options)

    monkeypatch.setattr("imret.images.decode_memory.load_image", counting)
    return sides


def test_a_thumbnail_is_made_once_and_kept_for_other_processes(
    photos: Path, tmp_path: Path, decoded: list[int | None]
) -> None:
    payload = payload_of(photos, "fungi/1.jpg")
    first = ImageFiles(tmp_path / "kept").thumbnail(payload, 320)
    again = ImageFiles(tmp_path / "kept").thumbnail(payload, 200)
    assert (first.etag, first.read()) == (again.etag, again.read())
    assert decoded == [320]
    kept = [Path(folder, name) for folder, _, names in os.walk(tmp_path / "kept") for name in names]
    assert len(kept) == 1
    assert stat.S_IMODE(kept[0].stat().st_mode) == 0o600
    for folder in (tmp_path / "kept", kept[0].parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not decoded[1:]


def test_the_entity_tag_is_there_without_decoding_and_changes_with_the_file(
    photos: Path, pictures: ImageFiles, decoded: list[int | None]
) -> None:
    file, payload = photos / "fungi" / "1.jpg", payload_of(photos, "fungi/1.jpg")
    tag, whole = pictures.etag(payload, 320), pictures.etag(payload)
    assert not decoded
    assert tag.startswith('"')
    assert tag.endswith('"')
    assert tag != whole
    assert tag == pictures.thumbnail(payload, 300).etag == pictures.thumbnail(payload, 300).etag
    with pictures.original(payload) as served:
        assert whole == served.etag
    old = opened(pictures.thumbnail(payload, 320))
    # Another picture at the same place, of the same size and time, as rsync --times leaves it.
    info, data = file.stat(), file.read_bytes()
    other = write(file.with_name("new"), drawing(seed=5)).read_bytes()
    longer = max(len(data), len(other))
    file.write_bytes(data.ljust(longer, b"\0"))
    os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    before = pictures.etag(payload, 320)
    file.with_name("new").write_bytes(other.ljust(longer, b"\0"))
    os.utime(file.with_name("new"), ns=(info.st_atime_ns, info.st_mtime_ns))
    file.with_name("new").rename(file)
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (longer, info.st_mtime_ns)
    assert len({tag, before, pictures.etag(payload, 320)}) == 3
    assert difference(old, opened(pictures.thumbnail(payload, 320))) > 20


def test_a_file_that_is_written_while_it_is_read_is_not_kept(
    photos: Path, tmp_path: Path, pictures: ImageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(source: Any, **options: Any) -> Image.Image:
        image = load_image(source, **options)
        with (photos / "fungi" / "1.jpg").open("ab") as file:
            file.write(b"more")
        return image

    monkeypatch.setattr("imret.images.decode_memory.load_image", slow)
    assert pictures.thumbnail(payload_of(photos, "fungi/1.jpg"), 320).size > 0
    assert not [name for _, _, names in os.walk(tmp_path / "kept") for name in names]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:],
        lambda data: bytes(len(data)),  # as a file system gives a file back after a crash
    ],
)
def test_a_damaged_entry_is_made_again(
    photos: Path,
    tmp_path: Path,
    pictures: ImageFiles,
    decoded: list[int | None],
    damage: Callable[[bytes], bytes],
) -> None:
    payload = payload_of(photos, "fungi/1.jpg")
    right = pictures.thumbnail(payload, 320).read()
    [entry] = [Path(folder, name) for folder, _, names in os.walk(tmp_path / "kept") for name in names]
    entry.write_bytes(damage(entry.read_bytes()))
    for _ in range(2):
        assert pictures.thumbnail(payload, 320).read() == right
    assert len(decoded) == 2
    # Nor is one that took another's name believed.
    other = pictures.thumbnail(payload, 640).read()
    for file in (Path(folder, name) for folder, _, names in os.walk(tmp_path / "kept") for name in names):
        if file != entry:
            entry.write_bytes(file.read_bytes())
    assert pictures.thumbnail(payload, 320).read() == right != other


@pytest.mark.parametrize("trouble", ["a file in its place", "a file above it", "a link to nowhere", "full"])
def test_a_disk_that_keeps_nothing_is_no_error(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    folder = tmp_path / "kept"
    if trouble == "a file in its place":
        folder.write_bytes(b"mine")
    elif trouble == "a file above it":
        folder.write_bytes(b"mine")
        folder = folder / "thumbnails"
    elif trouble == "a link to nowhere":
        folder.symlink_to("/proc/nowhere/at/all")
    else:

        def no_room(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", no_room)
    pictures = ImageFiles(folder)
    for _ in range(2):
        assert opened(pictures.thumbnail(payload_of(photos, "fungi/1.jpg"), 320)).size == (320, 240)
    if trouble == "full":
        assert not [name for _, _, names in os.walk(folder) for name in names]
    elif trouble != "a link to nowhere":
        assert (tmp_path / "kept").read_bytes() == b"mine"


def test_without_room_nothing_is_kept(photos: Path, tmp_path: Path, decoded: list[int | None]) -> None:
    pictures = ImageFiles(tmp_path / "kept", max_bytes=0)
    for _ in range(2):
        assert pictures.thumbnail(payload_of(photos, "fungi/1.jpg"), 320).size > 0
    assert len(decoded) == 2
    with pytest.raises(ValueError, match="max_bytes"):
        ImageFiles(tmp_path / "kept", max_bytes=-1)


def key_of(number: int) -> str:
    return random.Random(number).randbytes(32).hex()


def kept_bytes(folder: Path) -> int:
    """Add up what all files below a folder take, in blocks, by walking it."""
    files = [Path(above, name) for above, _, names in os.walk(folder) for name in names]
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in files)


def test_the_bound_holds_after_every_one_of_many_writes(tmp_path: Path) -> None:
    kept = DiskCache(tmp_path, 200_000)
    for number in range(150):
        kept.put(key_of(number), random.Random(number).randbytes(100 * (number % 97) + 1))
        assert kept_bytes(tmp_path) <= 200_000
        assert kept.get(key_of(number)) == random.Random(number).randbytes(100 * (number % 97) + 1)
    assert kept_bytes(tmp_path) > 180_000  # and it is made use of
    # An entry larger than all does not throw the others out.
    before = kept_bytes(tmp_path)
    kept.put(key_of(1000), bytes(200_000))
    assert kept.get(key_of(1000)) is None
    assert kept_bytes(tmp_path) == before


def test_entries_that_an_older_version_kept_beside_the_shards_are_removed(tmp_path: Path) -> None:
    for name in (key_of(1), "other", "README"):
        (tmp_path / name).write_bytes(b"kept")
    kept = DiskCache(tmp_path, 1 << 20)
    key = key_of(2)
    kept.put(key, b"data")
    assert kept.get(key) == b"data"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["README", "other"]


def test_the_bound_holds_over_many_shards_and_when_it_is_changed(tmp_path: Path) -> None:
    large = DiskCache(tmp_path, 40 << 20)
    for number in range(60):
        large.put(key_of(number), bytes(1 << 20))
        assert kept_bytes(tmp_path) <= 40 << 20
    assert len(os.listdir(tmp_path)) == 5
    assert sum(large.get(key_of(number)) is not None for number in range(60)) > 25
    (tmp_path / "00004" / "not ours.txt").write_text("kept")
    small = DiskCache(tmp_path, 9 << 20)
    small.put(key_of(100), bytes(1 << 20))
    assert kept_bytes(tmp_path) <= 9 << 20
    assert small.get(key_of(100)) is not None
    assert sorted(os.listdir(tmp_path)) == ["00000", "00004"]
    assert os.listdir(tmp_path / "00004") == ["not ours.txt"]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    kept = DiskCache(tmp_path, 10 * 8192)
    for number in range(10):
        kept.put(key_of(number), bytes(8000))
        os.utime(next(tmp_path.rglob(key_of(number))), (1000 + number, 1000 + number))
    assert kept.get(key_of(0)) is not None  # a use: now the youngest
    for number in range(10, 14):
        kept.put(key_of(number), bytes(8000))
    there = {number for number in range(14) if kept.get(key_of(number)) is not None}
    assert there == {0, 5, 6, 7, 8, 9, 10, 11, 12, 13}


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    kept = DiskCache(tmp_path, 1 << 20)
    kept.put(key_of(0), b"x")
    shard = next(tmp_path.rglob(key_of(0))).parent
    old, new = f".{key_of(2)}.part", f".{key_of(3)}.part"
    for name, age in ((old, 7200), (new, 60)):
        (shard / name).write_bytes(b"half")
        os.utime(shard / name, (os.stat(shard).st_mtime - age,) * 2)
    kept.put(key_of(1), b"y")
    assert sorted(path.name for path in shard.glob(".*.part")) == [new]
    assert kept.get(key_of(0)) == b"x"


def test_threads_and_two_handles_on_one_folder_do_each_other_no_harm(tmp_path: Path) -> None:
    handles = [DiskCache(tmp_path, 100_000), DiskCache(tmp_path, 100_000)]

    def work(seed: int) -> int:
        chance, kept, n_found = random.Random(seed), handles[seed % 2], 0
        for _ in range(150):
            number = chance.randrange(40)
            data = kept.get(key_of(number))
            if data is None:
                kept.put(key_of(number), bytes([number]) * 5000)
            else:
                assert data == bytes([number]) * 5000
                n_found += 1
        return n_found

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) > 100
    handles[0].put(key_of(99), b"x")
    assert kept_bytes(tmp_path) <= 100_000
    assert not list(tmp_path.rglob(".*.part"))


def test_many_kept_thumbnails_are_not_walked_over_for_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = DiskCache(tmp_path, 800 << 20)
    for number in range(400):
        kept.put(key_of(number), b"x")
    seen: list[int] = []
    really_scan = os.scandir

    def scan(path: Any) -> Any:
        seen.append(len(os.listdir(path)))
        return really_scan(path)

    monkeypatch.setattr(os, "scandir", scan)
    kept.put(key_of(400), b"x")
    assert len(seen) == 1
    assert seen[0] <= 20  # of 400, over 100 shards


def test_all_who_wait_for_a_picture_that_cannot_be_read_are_told(photos: Path, pictures: ImageFiles) -> None:
    (photos / "a.jpg").write_bytes(b"no picture")

    def ask(_: int) -> str:
        with pytest.raises(ImageError) as caught:
            pictures.thumbnail(payload_of(photos, "a.jpg"), 320)
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(ask, range(32)))
    assert told == {"a.jpg: not a picture of a known format, whatever its name says"}


def test_no_file_stays_open(photos: Path, pictures: ImageFiles) -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc here")
    (photos / "a.jpg").write_bytes(b"no picture")
    os.mkfifo(photos / "pipe.jpg")
    write(photos / "b.tif", drawing(40, 30), "TIFF")
    before = len(os.listdir("/proc/self/fd"))
    for path in ("fungi/1.jpg", "b.tif", "a.jpg", "pipe.jpg", "gone.jpg"):
        for ask in (pictures.original, lambda it: pictures.thumbnail(it, 320), pictures.etag):
            try:
                served = ask(payload_of(photos, path))
                if isinstance(served, ImageResponse):
                    served.close()
                    served.close()
            except ImageError:
                pass
    assert len(os.listdir("/proc/self/fd")) == before


# ---- Pictures that were sent ---------------------------------------------------------------------------


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def test_what_was_sent_is_found_by_its_hash() -> None:
    uploads = Uploads()
    data = encoded(drawing(80, 60))
    upload = uploads.add("owl.png", data)
    assert (upload.name, upload.data, len(upload.sha256)) == ("owl.png", data, 64)
    assert uploads.get(upload.sha256) == upload
    assert uploads.get("0" * 64) is None
    assert uploads.thumbnail("0" * 64, 320) is None
    assert uploads.add("same.png", data).sha256 == upload.sha256
    kept = uploads.get(upload.sha256)
    assert kept is not None
    assert kept.name == "same.png"


@pytest.mark.parametrize("data", [b"", b"<svg/>", encoded(drawing(80, 60), "JPEG")[:900]])
def test_what_is_no_whole_picture_is_not_kept(data: bytes) -> None:
    uploads = Uploads()
    with pytest.raises(ImageError, match=r"^a.jpg: "):
        uploads.add("/home/me/a.jpg", data)
    with pytest.raises(ImageError, match=r"^a.png: 80 x 60 pixels are more than the limit of 4,799 pixels"):
        Uploads(max_pixels=4799).add("a.png", encoded(drawing(80, 60)))


def test_the_newest_are_kept_and_those_asked_for() -> None:
    noise = [np.random.default_rng(seed).integers(0, 256, (30, 30, 3), dtype=np.uint8) for seed in range(5)]
    files = [encoded(Image.fromarray(pixels), "BMP") for pixels in noise]  # of one size
    uploads = Uploads(max_bytes=3 * len(files[0]))
    hashes = [uploads.add(f"{number}.bmp", data).sha256 for number, data in enumerate(files[:3])]
    assert uploads.get(hashes[0]) is not None
    hashes.append(uploads.add("3.bmp", files[3]).sha256)
    assert [uploads.get(sha256) is not None for sha256 in hashes] == [True, False, True, True]
    with pytest.raises(
        ImageError, match=r"^large.bmp: its 2,814 bytes are more than the limit of 2,813 bytes$"
    ):
        Uploads(max_bytes=2813).add("large.bmp", files[0])
    assert Uploads(max_bytes=2814).add("fits.bmp", files[0])


def test_an_upload_has_upright_thumbnails_that_are_made_once_and_count(decoded: list[int | None]) -> None:
    data = encoded(drawing(), "JPEG", exif=exif(6))
    uploads = Uploads(max_bytes=len(data) + 30_000)
    sha256 = uploads.add("a.jpg", data).sha256
    first, again = uploads.thumbnail(sha256, 300), uploads.thumbnail(sha256, 320)
    assert first is not None
    assert again is not None
    assert (first.etag, first.data, first.media_type) == (again.etag, again.data, "image/jpeg")
    assert decoded == [2048, 320]
    reference = load_image(data).resize((240, 320), Image.Resampling.LANCZOS)
    assert difference(opened(first), reference) < 4
    smaller = uploads.thumbnail(sha256, 160)
    assert smaller is not None
    assert smaller.etag != first.etag
    with pytest.raises(ValueError, match="at least 1 pixel"):
        uploads.thumbnail(sha256, 0)
    # There is room for the picture, not for its thumbnails too: they are made, and it stays.
    tight = Uploads(max_bytes=len(data))
    tight.add("a.jpg", data)
    for _ in range(2):
        assert tight.thumbnail(sha256, 320) is not None
    assert tight.get(sha256) is not None
    # Thumbnails make room for pictures.
    other = encoded(drawing(seed=1), "JPEG")
    both = Uploads(max_bytes=len(data) + len(other))
    both.add("a.jpg", data)
    both.add("b.jpg", other)
    assert both.thumbnail(sha256, 320) is not None
    assert both.get(sha256) is not None
    assert both._n_bytes <= len(data) + len(other)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("owl.png", "owl.png"),
        ("/home/me/owl.png", "owl.png"),
        ("C:\\Users\\me\\owl.png", "owl.png"),
        ("../../etc/passwd", "passwd"),
        ("a\x00b\x1b[31m\r\n.png", "ab[31m.png"),
        ("gnp.\u202elwo\u2066.png", "gnp.lwo.png"),
        ("\ud800x.png", "x.png"),
        ("سنجاب\u200cها.png", "سنجاب\u200cها.png"),
        ("<script>.png", "<script>.png"),
        ("x" * 5000, "x" * 100),
        ("", "picture"),
        ("folder/", "picture"),
        (" \n ", "picture"),
    ],
)
def test_the_name_of_an_upload_is_only_a_label(name: str, label: str) -> None:
    upload = Uploads().add(name, encoded(Image.new("RGB", (2, 2))))
    assert upload.name == label
    upload.name.encode()


def test_threads_that_send_and_ask_keep_the_count_right() -> None:
    files = [encoded(drawing(60, 40, seed=seed), "PNG") for seed in range(12)]
    uploads = Uploads(max_bytes=4 * max(map(len, files)))

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            upload = uploads.add("a.png", files[chance.randrange(12)])
            uploads.thumbnail(upload.sha256, chance.choice(THUMBNAIL_SIZES))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    sent = sum(len(upload.data) for upload in uploads._kept.values())
    thumbnail_bytes = sum(len(data) for steps in uploads._thumbnails.values() for data in steps.values())
    assert uploads._n_bytes == sent + thumbnail_bytes <= 4 * max(map(len, files))
    assert set(uploads._thumbnails) <= set(uploads._kept)


def test_real_photos_have_small_upright_thumbnails(shared_data: Path, pictures: ImageFiles) -> None:
    source = shared_data / "nature10" / "test"
    paths = sorted(path.relative_to(source).as_posix() for path in source.glob("*/*.jpg"))[::12]
    assert len(paths) >= 15
    for path in paths:
        served = pictures.thumbnail(payload_of(source, path), 160)
        assert served.size < 30_000
        whole = load_image(source / path)
        small = opened(served)
        assert max(small.size) == min(160, max(whole.size))
        reference = io.BytesIO()
        whole.resize(small.size, Image.Resampling.LANCZOS).save(reference, "JPEG", quality=80)
        assert difference(small, Image.open(reference)) < 3
