"""Thumbnails in a terminal: which protocol, and escape text that independent decoders turn back to pixels."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import io
import os
import pty
import random
import re
import select
import shutil
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imret.errors import DataError, ImageError
from imret.output import terminal_images as module
from imret.output.terminal_images import CELL_PIXELS, PROTOCOLS, cell_pixels, preview, protocol_of, render
from tests.fakes.pictures import draw_picture

SHOWN = [name for name in PROTOCOLS if name != "none"]
GRAPHICS = ["kitty", "iterm2", "sixel"]
BLOCKS = ["blocks", "blocks256"]
PLACEHOLDER = "\U0010eeee"


def picture(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Draw smooth colours with a noisy corner."""
    down, across = np.mgrid[0:height, 0:width]
    ramp = np.stack(
        [across * 255 // max(1, width - 1), down * 255 // max(1, height - 1), (across + down) % 256]
    )
    pixels = ramp.transpose(1, 2, 0).astype(np.uint8)
    corner = pixels[: height // 3, : width // 3]
    corner[:] = np.random.default_rng(seed).integers(0, 256, corner.shape)
    return Image.fromarray(pixels)


# ---- Independent decoders ------------------------------------------------------------------------------

_CODES = re.compile(
    r"\x1b\[(?P<csi>[0-9;]*[A-Za-z])|\x1bP(?P<dcs>(?:[^\x1b]|\x1b\x1b)*)\x1b\\|\x1b_(?P<apc>[^\x1b]*)\x1b\\"
    r"|\x1b\](?P<osc>[^\x1b\x07]*)\x07|\x1b(?P<esc>[78])|(?P<text>[^\x1b]+)",
    re.DOTALL,
)


def tokens(text: str) -> list[tuple[str, str]]:
    """Split text into what a terminal sees: (kind, body); anything else fails."""
    found, end = [], 0
    for match in _CODES.finditer(text):
        assert match.start() == end, f"no escape code: {text[end : end + 20]!r}"
        end = match.end()
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
    assert end == len(text), f"no escape code: {text[end : end + 20]!r}"
    return found


def bodies(text: str, kind: str) -> list[str]:
    return [body for found, body in tokens(text) if found == kind]


def walk(text: str) -> tuple[int, int, list[tuple[int, int]]]:
    """Follow the cursor as a terminal would: (row, column) at the end, and where each drawing began."""
    row = column = 0
    saved = (0, 0)
    drawn = []
    for kind, body in tokens(text):
        if kind == "csi" and body[-1] in "AB":
            row += int(body[:-1]) * (1 if body[-1] == "B" else -1)
        elif kind == "esc":
            if body == "7":
                saved = (row, column)
            else:
                row, column = saved
        elif kind in ("apc", "osc", "dcs"):
            drawn.append((row, column))
            row, column = row + 5, column + 7  # terminals differ; none may be relied on
        elif kind == "text":
            for char in body:
                if char == "\n":
                    row, column = row + 1, 0
                elif char == "\r":
                    column = 0
                elif not unicodedata.combining(char):
                    column += 1
    return row, column, drawn


def decode_sixel(data: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Run a sixel string as a VT340 would: pixels, and how often each was painted."""
    head, _, body = data.partition("q")
    assert head == "0;1;0"
    raster = re.match(r'"(\d+);(\d+);(\d+);(\d+)', body)
    assert raster is not None
    assert raster[1] == raster[2] == "1", "pixels are square"
    width, height = int(raster[3]), int(raster[4])
    pixels = np.zeros((height, width, 3), np.uint8)
    painted = np.zeros((height, width), np.int64)
    registers: dict[int, tuple[int, ...]] = {}
    colour = x = top = 0
    at = raster.end()
    while at < len(body):
        if define := re.compile(r"#(\d+);2;(\d+);(\d+);(\d+)").match(body, at):
            percent = [int(define[index]) for index in (2, 3, 4)]
            assert all(0 <= value <= 100 for value in percent)
            registers[int(define[1])] = tuple(round(value * 255 / 100) for value in percent)
            at = define.end()
        elif select_ := re.compile(r"#(\d+)").match(body, at):
            colour, at = int(select_[1]), select_.end()
        elif body[at] == "$":
            x, at = 0, at + 1
        elif body[at] == "-":
            x, top, at = 0, top + 6, at + 1
        else:
            run = re.compile(r"(?:!(\d+))?([?-~])").match(body, at)
            assert run is not None, body[at : at + 20]
            count, bits, at = int(run[1] or 1), ord(run[2]) - 63, run.end()
            for bit in range(6):
                if bits >> bit & 1:
                    assert x + count <= width, "nothing is drawn outside"
                    assert top + bit < height, "nothing is drawn outside"
                    pixels[top + bit, x : x + count] = registers[colour]
                    painted[top + bit, x : x + count] += 1
            x += count
    assert len(registers) <= 256
    return pixels, painted


def decode_kitty(codes: list[str]) -> tuple[dict[str, str], Image.Image]:
    """Reassemble the chunks of one transmission: the keys of the first, and the picture."""
    payload = ""
    first: dict[str, str] = {}
    for index, code in enumerate(codes):
        assert code[0] == "G"
        head, _, data = code[1:].partition(";")
        keys = dict(pair.split("=") for pair in head.split(","))
        last = index == len(codes) - 1
        assert keys["m"] == ("0" if last else "1")
        assert keys["q"] == "2", "a terminal must not answer: that would arrive as typing"
        assert len(data) <= 4096
        assert last or len(data) % 4 == 0
        if index == 0:
            first = keys
        else:
            assert set(keys) == {"m", "q"}
        payload += data
    return first, Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))


def decode_iterm2(code: str) -> tuple[dict[str, str], Image.Image]:
    match = re.fullmatch(r"1337;File=([^:]*):(.*)", code)
    assert match is not None
    data = base64.b64decode(match[2], validate=True)
    keys = dict(pair.split("=") for pair in match[1].split(";"))
    assert int(keys["size"]) == len(data)
    return keys, Image.open(io.BytesIO(data))


def xterm_colour(number: int) -> tuple[int, int, int]:
    if number >= 232:
        return (8 + 10 * (number - 232),) * 3
    levels = (0, 95, 135, 175, 215, 255)
    red, green, blue = (number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6
    return levels[red], levels[green], levels[blue]


def decode_blocks(text: str) -> list[list[tuple[Any, Any]]]:
    """Return for each line the (upper, lower) colour of each cell; None is the terminal's own background."""
    lines: list[list[tuple[Any, Any]]] = [[]]
    fore: Any = None
    back: Any = None
    for kind, body in tokens(text):
        if kind == "csi":
            assert body[-1] == "m"
            numbers = [int(number) for number in body[:-1].split(";")]
            while numbers:
                code = numbers.pop(0)
                if code == 0:
                    fore = back = None
                elif code == 49:
                    back = None
                else:
                    assert code in (38, 48)
                    if numbers.pop(0) == 2:
                        colour, numbers = tuple(numbers[:3]), numbers[3:]
                    else:
                        colour = xterm_colour(numbers.pop(0))
                    fore, back = (colour, back) if code == 38 else (fore, colour)
            continue
        assert kind == "text"
        for char in body:
            if char == "\n":
                assert fore is None, "colours end with the line"
                assert back is None, "colours end with the line"
                lines.append([])
            else:
                assert char == "▀"
                lines[-1].append((fore, back))
    assert lines.pop() == []
    return lines


def drawn_size(text: str, protocol: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (columns, rows) that a picture takes and its size in pixels without padding."""
    if protocol in BLOCKS:
        lines = decode_blocks(text)
        odd = all(lower is None for _, lower in lines[-1])
        return (len(lines[0]), len(lines)), (len(lines[0]), 2 * len(lines) - odd)
    if protocol == "sixel":
        pixels, _ = decode_sixel(bodies(text, "dcs")[0])
        height, width, _ = pixels.shape
        return (-(-width // CELL_PIXELS[0]), -(-height // CELL_PIXELS[1])), (width, height)
    if protocol == "iterm2":
        keys, image = decode_iterm2(bodies(text, "osc")[0])
        cells = int(keys["width"]), int(keys["height"])
    else:
        codes = bodies(text, "apc") if protocol == "kitty" else passed_through(text)
        keys, image = decode_kitty(codes)
        cells = int(keys["c"]), int(keys["r"])
    assert image.size == (cells[0] * CELL_PIXELS[0], cells[1] * CELL_PIXELS[1])
    box = image.getchannel("A").getbbox() if image.mode == "RGBA" else (0, 0, *image.size)
    assert box is not None
    assert box[:2] == (0, 0)
    return cells, (box[2], box[3])


def passed_through(text: str) -> list[str]:
    """Unwrap what tmux hands on: the doubled ESC becomes one again."""
    codes = []
    for body in bodies(text, "dcs"):
        assert body.startswith("tmux;")
        codes += bodies(body.removeprefix("tmux;").replace("\x1b\x1b", "\x1b"), "apc")
    return codes


# ---- Pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(320, 240), (317, 233), (320, 7), (11, 240), (1, 1)])
def test_sixel_decodes_to_the_picture(size: tuple[int, int]) -> None:
    image = picture(*size)
    # One pixel a cell: the picture fits as it is, so that nothing is resized.
    text = render(image, "sixel", columns=size[0], rows=size[1], cell=(1, 1))
    pixels, painted = decode_sixel(bodies(text, "dcs")[0])
    assert (painted == 1).all()
    reference = np.asarray(image.quantize(256, method=Image.Quantize.FASTOCTREE).convert("RGB")).astype(int)
    assert np.abs(pixels - reference).max() <= 2  # a channel has 101 levels instead of 256
    assert np.abs(pixels - np.asarray(image).astype(int)).mean() < 12  # of noise, in 256 colours


def test_sixel_keeps_few_colours_exactly_and_short() -> None:
    image = Image.new("RGB", (300, 60), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 60))
    image.paste((255, 255, 255), (200, 30, 300, 60))
    text = render(image, "sixel", columns=300, rows=60, cell=(1, 1))
    pixels, _ = decode_sixel(bodies(text, "dcs")[0])
    np.testing.assert_array_equal(pixels, np.asarray(image))
    assert len(text) < 600  # run lengths: 18,000 pixels


def test_a_real_photo_survives_sixel(shared_data: Path) -> None:
    path = sorted((shared_data / "nature10" / "test").glob("*/*.jpg"))[0]
    with Image.open(path) as photo:
        image = photo.convert("RGB").resize((200, 150))
    pixels, painted = decode_sixel(
        bodies(render(image, "sixel", columns=200, rows=150, cell=(1, 1)), "dcs")[0]
    )
    assert (painted == 1).all()
    assert np.abs(pixels - np.asarray(image).astype(int)).mean() < 6


@pytest.mark.parametrize("protocol", ["kitty", "kitty+tmux", "iterm2"])
def test_a_png_arrives_pixel_for_pixel(protocol: str) -> None:
    image = picture(320, 240)
    text = render(image, protocol, columns=32, rows=12)
    if protocol == "iterm2":
        keys, sent = decode_iterm2(bodies(text, "osc")[0])
        assert keys["inline"] == "1", "or it would be downloaded"
    else:
        codes = bodies(text, "apc") if protocol == "kitty" else passed_through(text)
        assert len(codes) > 5
        keys, sent = decode_kitty(codes)
        assert keys["a"] == "T"
        assert keys["f"] == "100"
        assert keys.get("C") == ("1" if protocol == "kitty" else None)
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("protocol", ["kitty", "iterm2"])
def test_the_padding_to_whole_cells_is_transparent(protocol: str) -> None:
    image = picture(313, 233)
    text = render(image, protocol, columns=32, rows=12)
    sent = (
        decode_kitty(bodies(text, "apc"))[1]
        if protocol == "kitty"
        else decode_iterm2(bodies(text, "osc")[0])[1]
    )
    assert sent.size == (320, 240)
    alpha = np.asarray(sent.getchannel("A"))
    assert set(np.unique(alpha)) == {0, 255}
    assert (alpha[:238, :320] == 255).all()
    assert (alpha[239:] == 0).all()


@pytest.mark.parametrize("size", [(20, 14), (20, 13), (1, 1)])
def test_half_blocks_hold_two_pixels_each(size: tuple[int, int]) -> None:
    image = picture(*size)
    pixels = np.asarray(image)
    lines = decode_blocks(render(image, "blocks", columns=size[0], rows=-(-size[1] // 2), cell=(10, 20)))
    assert len(lines) == -(-size[1] // 2)
    for row, line in enumerate(lines):
        assert len(line) == size[0]
        for column, (upper, lower) in enumerate(line):
            assert upper == tuple(pixels[2 * row, column])
            below = tuple(pixels[2 * row + 1, column]) if 2 * row + 1 < size[1] else None
            assert lower == below


def test_256_colours_are_the_nearest_there_are() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    pixels[:5] = pixels[:5, :, :1]  # greys
    palette = np.array([xterm_colour(number) for number in range(16, 256)])
    lines = decode_blocks(render(Image.fromarray(pixels), "blocks256", columns=50, rows=20))
    for row in range(40):
        for column in range(50):
            distances = ((palette - pixels[row, column].astype(int)) ** 2).sum(axis=1)
            shown = np.array(lines[row // 2][column][row % 2])
            assert ((shown - pixels[row, column]) ** 2).sum() == distances.min()


def test_a_colour_is_not_said_twice() -> None:
    text = render(Image.new("RGB", (40, 40), (1, 2, 3)), "blocks", columns=40, rows=20)
    assert text == ("\x1b[38;2;1;2;3;48;2;1;2;3m" + "▀" * 40 + "\x1b[0m\n") * 20


def test_transparency_and_palettes_are_shown_as_they_are_searched() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode_blocks(render(clear, "blocks", columns=4, rows=2))[0][0][0] == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert decode_blocks(render(palette, "blocks", columns=4, rows=2))[0][0][0] == (9, 8, 7)


# ---- Sizes and places ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", SHOWN)
def test_a_picture_fits_its_box_touches_it_and_keeps_its_aspect(protocol: str) -> None:
    chooser = random.Random(protocol)
    for _ in range(12):
        size = chooser.choice([1, 3, 40, 333, 900]), chooser.choice([1, 2, 55, 240, 700])
        columns, rows = chooser.choice([1, 2, 9, 30]), chooser.choice([1, 3, 8, 13])
        text = render(Image.new("RGB", size, (9, 99, 199)), protocol, columns=columns, rows=rows)
        (across, down), (width, height) = drawn_size(text, protocol)
        assert 1 <= across <= columns
        assert 1 <= down <= rows
        # In half blocks a cell is 1 x 2 pixels; otherwise as many as CELL_PIXELS says.
        cell = (1, 2) if protocol in BLOCKS else CELL_PIXELS
        box = columns * cell[0], rows * cell[1]
        scale = min(box[0] / size[0], box[1] / size[1])
        assert abs(width - max(1, size[0] * scale)) <= 1
        assert abs(height - max(1, size[1] * scale)) <= 1
        assert width == box[0] or height == box[1]


@pytest.mark.parametrize("protocol", BLOCKS)
def test_half_blocks_correct_for_cells_that_are_not_one_to_two(protocol: str) -> None:
    lines = decode_blocks(render(picture(100, 100), protocol, columns=40, rows=40, cell=(10, 30)))
    assert (len(lines[0]), len(lines)) == (40, 14)  # 400 pixels across; 400 / 30 rows down


def test_sixel_takes_the_pixels_of_the_cell() -> None:
    text = render(picture(100, 100), "sixel", columns=10, rows=10, cell=(7, 15))
    pixels, _ = decode_sixel(bodies(text, "dcs")[0])
    assert pixels.shape == (70, 70, 3)


@pytest.mark.parametrize("protocol", SHOWN)
@pytest.mark.parametrize("size", [(320, 240), (50, 300), (300, 50)])
def test_the_cursor_ends_at_the_start_of_the_line_below(protocol: str, size: tuple[int, int]) -> None:
    text = render(picture(*size), protocol, columns=16, rows=6)
    (_, down), _ = drawn_size(text, protocol)
    if protocol == "kitty+tmux":  # here the picture is in the text; what is passed through moves nothing
        text = re.sub(r"\x1bPtmux;(?:[^\x1b]|\x1b\x1b)*\x1b\\", "", text)
    row, column, drawn = walk(text)
    assert (row, column) == (down, 0)
    if protocol in GRAPHICS:
        assert drawn[0] == (0, 0)
        assert text.startswith("\n" * down), "room is made first: drawing must not scroll"


@pytest.mark.parametrize("protocol", SHOWN)
def test_the_same_picture_gives_the_same_text(protocol: str) -> None:
    assert render(picture(99, 77), protocol, columns=9, rows=7) == render(
        picture(99, 77), protocol, columns=9, rows=7
    )


def test_nothing_is_drawn_for_none() -> None:
    assert render(picture(9, 9), "none", columns=9, rows=9) == ""


def test_a_protocol_or_box_that_makes_no_sense_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="unknown protocol 'ascii'"):
        render(picture(9, 9), "ascii", columns=9, rows=9)
    for box in (
        {"columns": 0, "rows": 9},
        {"columns": 9, "rows": -1},
        {"columns": 1, "rows": 1, "cell": (0, 9)},
    ):
        with pytest.raises(ValueError, match="holds nothing"):
            render(picture(9, 9), "blocks", **box)  # type: ignore[arg-type]


def test_in_tmux_every_cell_of_the_picture_is_a_placeholder_in_its_colour() -> None:
    text = render(picture(300, 200), "kitty+tmux", columns=20, rows=5)
    keys, _ = decode_kitty(passed_through(text))
    assert keys["U"] == "1"
    number = int(keys["i"])
    assert 0 < number < 1 << 24
    colour = f"\x1b[38;2;{number >> 16};{number >> 8 & 255};{number & 255}m"
    lines = text[text.rindex("\x1b\\") + 2 :].splitlines()
    marks = row_marks()
    assert len(lines) == int(keys["r"])
    for row, line in enumerate(lines):
        assert line.startswith(f"{colour}{PLACEHOLDER}{marks[row]}{marks[0]}")
        assert line.endswith("\x1b[0m")
        assert line.count(PLACEHOLDER) == int(keys["c"])
    other, _ = decode_kitty(
        passed_through(render(picture(300, 200, seed=1), "kitty+tmux", columns=20, rows=5))
    )
    assert other["i"] != keys["i"], "two pictures must not replace each other"


def row_marks() -> str:
    """Derive the marks by the rule that kitty states, from Python's own copy of the Unicode data."""
    fused = {0x653, 0x654}  # these, and Greek and Latin accents, which all have codes below 0x305 or here:
    fused |= {0x306, 0x307, 0x308, 0x309, 0x30A, 0x30B, 0x30C, 0x30F, 0x311, 0x313, 0x314, 0x342}
    return "".join(
        chr(code)
        for code in range(0x305, 0x74B)
        if unicodedata.combining(chr(code)) == 230
        and unicodedata.category(chr(code)) == "Mn"
        and not unicodedata.decomposition(chr(code))
        and code not in fused
    )


def test_the_row_marks_are_those_of_the_protocol() -> None:
    assert row_marks().startswith(module._ROW_MARKS)
    assert len(module._ROW_MARKS) == 100
    text = render(Image.new("RGB", (1, 900)), "kitty+tmux", columns=5, rows=500)
    assert text.count("\n") == 100


# ---- Files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", SHOWN)
def test_a_file_is_shown_and_its_name_never_gets_into_the_text(tmp_path: Path, protocol: str) -> None:
    evil = draw_picture(tmp_path / "evil\x1b]0;evil\x07.png")
    plain = draw_picture(tmp_path / "plain.png")
    text = preview(evil, protocol)
    assert text == preview(plain, protocol) == preview(plain.read_bytes(), protocol)
    tokens(text)
    assert "evil" not in preview(tmp_path / "evil\x1b[31m gone.png", protocol)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"\x1b[31mtext", "not a picture of a known format, whatever its name says"),
        ("cut", "truncated PNG picture"),
        ("folder", "not a regular file"),
        ("large", "3,072 pixels are more than the limit"),
    ],
)
def test_a_file_that_is_gone_or_damaged_gives_a_note(tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "a\x1b.png"
    if content == "folder":
        path.mkdir()
        reason = "it is a folder, not a file"
    elif content in ("cut", "large"):
        data = draw_picture(tmp_path / "whole.png").read_bytes()
        path.write_bytes(data[:80] if content == "cut" else data)
        reason = "more than the limit of 100 pixels" if content == "large" else "truncated"
    elif content is not None:
        path.write_bytes(content)
    note = preview(path, "kitty", max_pixels=100 if content == "large" else 10_000)
    assert note.startswith("(no preview: ")
    assert note.endswith(")\n")
    assert reason in note
    assert note.strip().isprintable()
    assert preview(path, "none") == ""


def test_an_impossible_path_gives_a_note() -> None:
    assert preview("a\0b.png", "blocks").startswith("(no preview: not a usable path")


def test_a_note_is_short_and_passes_no_control_characters_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ImageError("a damaged TIFF picture: \x1b]0;title\x07" + "x" * 500)

    monkeypatch.setattr(module, "load_image", refuse)
    note = preview("a.tif", "kitty")
    assert note.startswith("(no preview: a damaged TIFF picture: ?]0;title?xxx")
    assert len(note) < 120


# ---- Choosing ------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    """A real terminal device, 80 x 24 cells of 9 x 18 pixels."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 720, 432))
    with open(slave, "w") as stream:
        yield stream
    os.close(master)


XTERM = {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor"}, "kitty"),
        ({"TERM": "xterm-kitty"}, "kitty"),  # through ssh
        ({"TERM": "xterm-kitty", "TERM_PROGRAM": "iTerm.app"}, "kitty"),  # kitty started from iTerm2
        ({**XTERM, "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({**XTERM, "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({**XTERM, "TERM_PROGRAM": "iTerm.app", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({**XTERM, "LC_TERMINAL": "iTerm2"}, "iterm2"),  # through ssh
        ({**XTERM, "TERM_PROGRAM": "WezTerm", "WEZTERM_PANE": "0"}, "iterm2"),
        ({**XTERM, "WEZTERM_PANE": "0"}, "iterm2"),
        ({"TERM": "xterm", "TERM_PROGRAM": "mintty"}, "iterm2"),
        ({**XTERM, "TERM_PROGRAM": "vscode", "COLORTERM": "truecolor"}, "blocks"),
        ({**XTERM, "TERM_PROGRAM": "vscode", "KITTY_WINDOW_ID": "1"}, "blocks"),  # VS Code started from kitty
        ({**XTERM, "TERM_PROGRAM": "Apple_Terminal"}, "blocks256"),
        ({**XTERM, "KONSOLE_VERSION": "220401", "COLORTERM": "truecolor"}, "kitty"),
        ({**XTERM, "KONSOLE_VERSION": "210800", "COLORTERM": "truecolor"}, "blocks"),
        ({**XTERM, "VTE_VERSION": "7600", "COLORTERM": "truecolor"}, "blocks"),
        ({**XTERM, "VTE_VERSION": "7600", "KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "foot-extra"}, "sixel"),
        ({"TERM": "mlterm-256color"}, "sixel"),
        ({**XTERM, "MLTERM": "3.9.3"}, "sixel"),
        ({"TERM": "xterm+sixel"}, "sixel"),
        ({"TERM": "xterm-sixel"}, "sixel"),
        ({"TERM": "contour-latest"}, "sixel"),
        ({"TERM": "yaft-256color"}, "sixel"),
        ({"TERM": "vt340"}, "sixel"),
        ({"TERM": "some-sixel-term"}, "sixel"),
        ({**XTERM, "COLORTERM": "truecolor"}, "blocks"),
        ({**XTERM, "COLORTERM": "24bit"}, "blocks"),
        ({"TERM": "xterm-direct"}, "blocks"),
        (XTERM, "blocks256"),
        ({"TERM": "xterm"}, "blocks256"),
        ({"TERM": "linux"}, "blocks256"),
        ({"WT_SESSION": "x"}, "blocks"),
        ({"TERM": "alacritty", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "dumb"}, "none"),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "none"),
        ({"TERM": "vt100"}, "none"),
        ({}, "none"),
        # Multiplexers, whatever the terminal around them.
        ({"TERM": "screen-256color", "STY": "1.pts", "COLORTERM": "truecolor"}, "blocks256"),
        ({"TERM": "screen", "STY": "1.pts", "KITTY_WINDOW_ID": "1"}, "blocks256"),
        ({**XTERM, "STY": "1.pts", "KITTY_WINDOW_ID": "1"}, "blocks256"),
        ({"TERM": "tmux-256color", "COLORTERM": "truecolor"}, "blocks"),  # through ssh: no TMUX to ask
        ({"TERM": "xterm-kitty", "ZELLIJ": "0", "COLORTERM": "truecolor"}, "blocks"),
        # A terminal that was started from inside tmux is not in it.
        ({"TERM": "xterm-kitty", "TMUX": "x,1,0"}, "kitty"),
    ],
)
def test_the_protocol_is_what_the_terminal_says_it_can(
    terminal: TextIO, environ: dict[str, str], expected: str
) -> None:
    assert protocol_of(environ, terminal) == expected


def test_what_is_no_terminal_gets_nothing_whatever_is_set(tmp_path: Path) -> None:
    for environ in ({"TERM": "xterm-kitty"}, {"TERM": "xterm-kitty", "IMRET_PREVIEW": "kitty"}):
        assert protocol_of(environ, io.StringIO()) == "none"
        with (tmp_path / "out.txt").open("w") as file:
            assert protocol_of(environ, file) == "none"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({**XTERM, "IMRET_PREVIEW": "sixel"}, "sixel"),
        ({**XTERM, "IMRET_PREVIEW": " Kitty "}, "kitty"),
        ({**XTERM, "IMRET_PREVIEW": "iterm2"}, "iterm2"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": "none"}, "none"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": "blocks"}, "blocks"),
        ({**XTERM, "IMRET_PREVIEW": "blocks"}, "blocks256"),
        ({"TERM": "dumb", "IMRET_PREVIEW": "blocks"}, "blocks256"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": "auto"}, "kitty"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": ""}, "kitty"),
        ({"TERM": "tmux-256color", "TMUX": "x,1,0", "IMRET_PREVIEW": "kitty"}, "kitty+tmux"),
        ({"TERM": "tmux-256color", "TMUX": "x,1,0", "IMRET_PREVIEW": "sixel"}, "sixel"),
    ],
)
def test_imret_preview_overrides_what_is_found(
    terminal: TextIO, environ: dict[str, str], expected: str
) -> None:
    assert protocol_of(environ, terminal) == expected


def test_an_unknown_imret_preview_lists_the_known(terminal: TextIO) -> None:
    with pytest.raises(DataError) as caught:
        protocol_of({**XTERM, "IMRET_PREVIEW": "ascii"}, terminal)
    assert str(caught.value) == (
        "IMRET_PREVIEW is 'ascii', which is no way to show pictures.\n"
        "Set it to one of auto, kitty, iterm2, sixel, blocks, none."
    )


def test_every_protocol_that_is_chosen_can_be_drawn(terminal: TextIO) -> None:
    for choice in ("kitty", "iterm2", "sixel", "blocks", "none", "auto"):
        assert protocol_of({**XTERM, "IMRET_PREVIEW": choice}, terminal) in PROTOCOLS


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("xterm-kitty 1", "kitty+tmux"),
        ("xterm-kitty on", "kitty+tmux"),
        ("xterm-ghostty all", "kitty+tmux"),
        ("xterm-kitty 0", "blocks256"),
        ("xterm-kitty off", "blocks256"),
        ("xterm-kitty ", "blocks256"),  # before tmux 3.3
        ("xterm-256color on", "blocks256"),
        ("", "blocks256"),
    ],
)
def test_in_tmux_graphics_are_used_where_it_lets_them_through(
    terminal: TextIO, tmp_path: Path, answer: str, expected: str
) -> None:
    asked = tmp_path / "asked"
    program = tmp_path / "tmux"
    program.write_text(f'#!/bin/sh\necho "$@" > {asked}\necho "{answer}"\n')
    program.chmod(0o755)
    environ = {
        "TERM": "tmux-256color",
        "TMUX": "x,1,0",
        "TMUX_PANE": "%7",
        "PATH": f"{tmp_path}:/usr/bin:/bin",
    }
    environ["KITTY_WINDOW_ID"] = "1"  # of the terminal that tmux was started in, long gone perhaps
    assert protocol_of(environ, terminal) == expected
    assert "-t %7" in asked.read_text()


def test_a_tmux_that_is_missing_or_hangs_means_half_blocks(
    terminal: TextIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"TERM": "tmux-256color", "TMUX": "x,1,0", "PATH": str(tmp_path), "COLORTERM": "truecolor"}
    assert protocol_of(environ, terminal) == "blocks"
    program = tmp_path / "tmux"
    program.write_text("#!/bin/sh\nexec /bin/sleep 5\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "_TMUX_TIMEOUT_S", 0.2)
    start = time.monotonic()
    assert protocol_of(environ, terminal) == "blocks"
    assert time.monotonic() - start < 3


def test_the_cell_is_as_large_as_the_terminal_says(terminal: TextIO, tmp_path: Path) -> None:
    assert cell_pixels(terminal) == (9, 18)
    fcntl.ioctl(terminal.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    assert cell_pixels(terminal) == CELL_PIXELS
    assert cell_pixels(io.StringIO()) == CELL_PIXELS
    with (tmp_path / "out.txt").open("w") as file:
        assert cell_pixels(file) == CELL_PIXELS


# ---- A real tmux ---------------------------------------------------------------------------------------


class Tmux:
    """A tmux with one pane, shown in a terminal of ours that says it is kitty."""

    def __init__(self, folder: Path) -> None:
        entry = subprocess.run(
            ["infocmp", "xterm-256color"], capture_output=True, text=True, check=True
        ).stdout
        (folder / "entry").write_text(entry.replace("xterm-256color|", "xterm-kitty|", 1))
        subprocess.run(
            ["tic", "-x", "-o", str(folder), str(folder / "entry")], check=True, capture_output=True
        )
        self.environ = {
            "PATH": os.environ["PATH"],
            "TERMINFO": str(folder),
            "TERM": "xterm-kitty",
            "TMUX_TMPDIR": str(folder),
            "LC_ALL": "C.UTF-8",
        }
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execvpe("tmux", ["tmux", "-u", "-f", "/dev/null", "new-session", "cat"], self.environ)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 1000, 800))

    def ask(self, *command: str) -> str:
        run = subprocess.run(["tmux", *command], env=self.environ, capture_output=True, text=True)
        return run.stdout.strip()

    def shown_until(self, end: str, seconds: float = 8.0) -> str:
        """Return what the terminal has received up to and including `end`."""
        received = b""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    received += os.read(self.master, 65_536)
            if end.encode() in received:
                return received.decode("utf-8", "replace")
        raise AssertionError(f"{end!r} did not come: {received[-500:]!r}")

    def close(self) -> None:
        self.ask("kill-server")
        os.close(self.master)
        os.waitpid(self.pid, 0)


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    for program in ("tmux", "infocmp", "tic"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    with contextlib.closing(Tmux(tmp_path)) as session:
        for _ in range(100):
            if session.ask("display-message", "-p", "#{client_termname}") == "xterm-kitty":
                break
            time.sleep(0.02)
        yield session


def test_a_picture_gets_through_a_real_tmux(tmux: Tmux, terminal: TextIO, tmp_path: Path) -> None:
    inside = {**tmux.environ, "TERM": "tmux-256color"}
    inside["TMUX"] = tmux.ask("display-message", "-p", "#{socket_path},#{pid},0")
    inside["TMUX_PANE"] = tmux.ask("display-message", "-p", "#{pane_id}")
    tmux.ask("set", "-g", "allow-passthrough", "off")
    assert protocol_of(inside, terminal) == "blocks256"
    tmux.ask("set", "-g", "allow-passthrough", "on")
    if not tmux.ask("show", "-gv", "allow-passthrough"):
        pytest.skip("this tmux is older than allow-passthrough")
    assert protocol_of(inside, terminal) == "kitty+tmux"
    image = picture(200, 100)
    (tmp_path / "text").write_text(render(image, "kitty+tmux", columns=20, rows=5) + "the end")
    tmux.ask("respawn-pane", "-k", f"cat '{tmp_path / 'text'}'; exec sleep 60")
    shown = tmux.shown_until("the end")
    codes = re.findall(r"\x1b_([^\x1b]*)\x1b\\", shown)
    assert len(codes) > 1
    keys, sent = decode_kitty(codes)
    assert (keys["c"], keys["r"]) == ("20", "5")
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image))
    assert shown.count(PLACEHOLDER) >= 100
