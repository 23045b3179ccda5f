"""Pictures decoded at the same time stay within a bound of memory; nobody starves or waits in vain."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imret.abandon import AbandonedError, abandonable
from imret.images.decode import bytes_to_decode
from imret.images.decode_memory import DecodeMemory, loaded
from tests.fakes.web_server import until


def test_no_more_is_taken_than_there_is_and_all_get_their_turn() -> None:
    memory = DecodeMemory(100, small_bytes=10)
    taken, most, order, lock = [0], [0], [], threading.Lock()

    def work(number: int) -> None:
        n_bytes = (40, 70, 100, 25)[number % 4]
        with memory.reserving() as reserve:
            reserve(n_bytes)
            with lock:
                taken[0] += n_bytes
                most[0] = max(most[0], taken[0])
                order.append(number)
            time.sleep(0.002)
            with lock:
                taken[0] -= n_bytes

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(80)))
    assert most[0] <= 100
    assert sorted(order) == list(range(80))
    assert max(abs(at - number) for at, number in enumerate(order)) <= 32, "in order, but for the threads"


def test_one_that_is_larger_than_all_there_is_goes_alone_and_small_ones_do_not_wait_for_it() -> None:
    memory = DecodeMemory(100, small_bytes=10)
    inside, go = threading.Event(), threading.Event()
    got: list[str] = []

    def take(name: str, n_bytes: int, wait: bool = False) -> None:
        with memory.reserving() as reserve:
            reserve(n_bytes)
            got.append(name)
            inside.set()
            if wait:
                go.wait(20)

    threads = [threading.Thread(target=take, args=("first", 60, True))]
    threads[0].start()
    inside.wait(20)
    threads += [threading.Thread(target=take, args=("huge", 5000))]
    threads[1].start()
    time.sleep(0.1)
    threads += [threading.Thread(target=take, args=("medium", 20))]
    threads[2].start()
    take("small", 9)
    time.sleep(0.3)
    assert got == ["first", "small"], "medium would fit, but huge came before it"
    go.set()
    for thread in threads:
        thread.join(20)
    assert got == ["first", "small", "huge", "medium"]


def test_who_has_left_waits_no_more_and_leaves_the_others_their_turn() -> None:
    memory = DecodeMemory(100, small_bytes=10)
    left, go, inside = threading.Event(), threading.Event(), threading.Event()
    outcome: list[Any] = []

    def hold() -> None:
        with memory.reserving() as reserve:
            reserve(100)
            inside.set()
            go.wait(20)

    def leave() -> None:
        with abandonable(left), pytest.raises(AbandonedError), memory.reserving() as reserve:
            reserve(90)
        outcome.append("left")

    def stay() -> None:
        with memory.reserving() as reserve:
            reserve(90)
        outcome.append("stayed")

    threads = [threading.Thread(target=work) for work in (hold, leave, stay)]
    threads[0].start()
    inside.wait(20)
    threads[1].start()
    time.sleep(0.1)
    threads[2].start()
    left.set()
    until(lambda: outcome == ["left"])
    go.set()
    for thread in threads:
        thread.join(20)
    assert outcome == ["left", "stayed"]


@pytest.mark.parametrize(("first", "second"), [(60, 60), (20, 20), (5, 20), (20, 5)])
def test_taking_twice_in_one_block_is_refused_and_what_was_taken_first_goes_back(
    first: int, second: int
) -> None:
    memory = DecodeMemory(100, small_bytes=10)
    for _ in range(20):  # what leaked would add up
        with memory.reserving() as reserve:
            reserve(first)
            with pytest.raises(RuntimeError, match="once"):
                reserve(second)
    with abandonable(gone := threading.Event()), memory.reserving() as reserve:
        gone.set()  # whoever had to wait would be told
        reserve(100)


def test_what_is_taken_is_given_back_where_a_picture_cannot_be_decoded(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (4000, 3000)).save(file, "PNG")
    for _ in range(50):  # each takes 48 MB
        with pytest.raises(Exception, match="truncated"), loaded(file.getvalue()[:9000]):
            pass
    with loaded(file.getvalue()) as image:
        assert image.size == (4000, 3000)
    with pytest.raises(ValueError, match="closed image"):
        image.getpixel((0, 0))


# Decodes a file in a process of its own, and says by how much that grew at most.
_MEASURE = """
import json, resource, sys
from imret.images.decode import load_image
from imret.images.thumbnails import to_jpeg
from PIL import Image
Image.init()
try:
    import pillow_heif
    pillow_heif.HeifImageFile
except ImportError:
    pass
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
side = json.loads(sys.argv[2])
to_jpeg(load_image(sys.argv[3], max_side=side), max_side=side)  # a small one of the same kind
taken = []
before = peak()
image = load_image(sys.argv[1], max_side=side, reserve=taken.append)
data = to_jpeg(image, max_side=side)
print(json.dumps([taken[0], peak() - before]))
"""

_KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("RGB", {"format": "JPEG"}),
    "progressive": ("RGB", {"format": "JPEG", "progressive": True, "subsampling": 0}),
    "cmyk": ("CMYK", {"format": "JPEG"}),
    "turned": ("RGB", {"format": "JPEG", "exif": {0x0112: 6}}),
    "png": ("RGB", {"format": "PNG", "compress_level": 1}),
    "alpha": ("RGBA", {"format": "PNG", "compress_level": 1}),
    "palette": ("P", {"format": "PNG", "compress_level": 1}),
    "grey": ("L", {"format": "PNG", "compress_level": 1}),
    "grey and alpha": ("LA", {"format": "PNG", "compress_level": 1}),
    "16 bit": ("I;16", {"format": "PNG", "compress_level": 1}),
    "tiff": ("RGB", {"format": "TIFF"}),
    "tiff in deflate": ("RGB", {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
    "tiff of 16 bits": ("RGB;16", {}),
    "tiff of 16 bits in deflate": ("RGB;16", {"compression": 8}),
    "tiff of floats": ("F", {"format": "TIFF"}),
    "webp": ("RGB", {"format": "WEBP", "method": 0, "quality": 50}),
    "bmp": ("RGB", {"format": "BMP"}),
    "gif": ("P", {"format": "GIF"}),
}


def deep_tiff(values: NDArray[np.uint16], compression: int = 1) -> bytes:
    """Write a TIFF of 16 bits in one strip, which is what takes most."""
    height, width, samples = values.shape
    data = zlib.compress(values.tobytes(), 1) if compression == 8 else values.tobytes()
    tags = {256: width, 257: height, 258: 16, 259: compression, 262: 2, 273: 8, 277: samples, 278: height}
    tags[279] = len(data)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def write_picture(file: Path, mode: str, size: tuple[int, int], options: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 255, (64, 64), dtype=np.uint8)
    grey = np.tile(tile, (size[1] // 64 + 1, size[0] // 64 + 1))[: size[1], : size[0]]
    if mode == "RGB;16":
        file.write_bytes(deep_tiff(np.repeat(grey.astype(np.uint16)[..., None] * 257, 3, axis=2), **options))
        return
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB" if mode in ("RGBA", "CMYK") else mode)
        image = image.convert(mode)
    if "exif" in options:
        exif = Image.Exif()
        exif.update(options["exif"])
        options = options | {"exif": exif}
    image.save(file, **options)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure memory")
@pytest.mark.parametrize("side", [None, 320])
@pytest.mark.parametrize("kind", _KINDS)
def test_what_a_picture_is_said_to_take_is_what_it_takes(kind: str, side: int | None, tmp_path: Path) -> None:
    mode, options = _KINDS[kind]
    large, small = tmp_path / "large", tmp_path / "small"
    write_picture(large, mode, (6000, 4000), options)
    write_picture(small, mode, (64, 64), options)
    command = [sys.executable, "-c", _MEASURE, str(large), json.dumps(side), str(small)]
    said, took = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    # What the encoder of a JPEG writes, buffers, and the small picture that is made.
    assert took <= 1.15 * said + 24_000_000
    with large.open("rb") as file:
        assert bytes_to_decode(file, max_side=side) == said


def test_a_large_jpeg_is_said_to_take_little_where_little_of_it_is_wanted(tmp_path: Path) -> None:
    sizes = {}
    for kind in ("jpeg", "progressive"):
        mode, options = _KINDS[kind]
        write_picture(tmp_path / kind, mode, (6000, 4000), options)
        with (tmp_path / kind).open("rb") as file:
            sizes[kind] = [bytes_to_decode(file, max_side=side) for side in (None, 320)]
    assert sizes["jpeg"] == [24_000_000 * 4, 750 * 500 * 4]
    assert sizes["progressive"][1] > 24_000_000 * 6, "its scans come together first, all of them"
