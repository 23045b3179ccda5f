"""Thumbnails in a terminal: which protocol, and escape text that independent decoders turn back to pixels."""

from __future__ import annotations

import base64
import fcntl
import io
import os
import random
import re
import struct
import termios
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pytest
from PIL import Image

from imret.errors import DataError, ImageError
from imret.output.terminal_images import CELL_PIXELS, PROTOCOLS, cell_pixels, preview, protocol_of, render
from tests.fakes.pictures import draw_picture

SHOWN = [name for name in PROTOCOLS if name != "none"]
GRAPHICS = ["kitty", "iterm2"]
BLOCKS = ["blocks", "blocks256"]


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
    r"\x1b\[(?P<csi>[0-9;]*[A-Za-z])|\x1b_(?P<apc>[^\x1b]*)\x1b\\"
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
        elif kind in ("apc", "osc"):
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
    if protocol == "iterm2":
        keys, image = decode_iterm2(bodies(text, "osc")[0])
        cells = int(keys["width"]), int(keys["height"])
    else:
        keys, image = decode_kitty(bodies(text, "apc"))
        cells = int(keys["c"]), int(keys["r"])
    assert image.size == (cells[0] * CELL_PIXELS[0], cells[1] * CELL_PIXELS[1])
    box = image.getchannel("A").getbbox() if image.mode == "RGBA" else (0, 0, *image.size)
    assert box is not None
    assert box[:2] == (0, 0)
    return cells, (box[2], box[3])


# ---- Pixels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", GRAPHICS)
def test_a_png_arrives_pixel_for_pixel(protocol: str) -> None:
    image = picture(320, 240)
    text = render(image, protocol, columns=32, rows=12)
    if protocol == "iterm2":
        keys, sent = decode_iterm2(bodies(text, "osc")[0])
        assert keys["inline"] == "1", "or it would be downloaded"
    else:
        codes = bodies(text, "apc")
        assert len(codes) > 5
        keys, sent = decode_kitty(codes)
        assert keys["a"] == "T"
        assert keys["f"] == "100"
        assert keys["C"] == "1"
    np.testing.assert_array_equal(np.asarray(sent), np.asarray(image))


@pytest.mark.parametrize("protocol", GRAPHICS)
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


@pytest.mark.parametrize("protocol", SHOWN)
@pytest.mark.parametrize("size", [(320, 240), (50, 300), (300, 50)])
def test_the_cursor_ends_at_the_start_of_the_line_below(protocol: str, size: tuple[int, int]) -> None:
    text = render(picture(*size), protocol, columns=16, rows=6)
    (_, down), _ = drawn_size(text, protocol)
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

    monkeypatch.setattr("imret.images.decode_memory.load_image", refuse)
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
        ({"TERM": "foot"}, "blocks"),
        ({"TERM": "contour-latest"}, "blocks"),
        ({"TERM": "mlterm-256color"}, "blocks256"),
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
        ({"TERM": "tmux-256color", "TMUX": "x,1,0", "KITTY_WINDOW_ID": "1"}, "blocks256"),
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
        ({**XTERM, "IMRET_PREVIEW": " Kitty "}, "kitty"),
        ({**XTERM, "IMRET_PREVIEW": "iterm2"}, "iterm2"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": "none"}, "none"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": "blocks"}, "blocks"),
        ({**XTERM, "IMRET_PREVIEW": "blocks"}, "blocks256"),
        ({"TERM": "dumb", "IMRET_PREVIEW": "blocks"}, "blocks256"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": "auto"}, "kitty"),
        ({"TERM": "xterm-kitty", "IMRET_PREVIEW": ""}, "kitty"),
        ({"TERM": "tmux-256color", "TMUX": "x,1,0", "IMRET_PREVIEW": "kitty"}, "kitty"),
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
        "Set it to one of auto, kitty, iterm2, blocks, none."
    )


def test_every_protocol_that_is_chosen_can_be_drawn(terminal: TextIO) -> None:
    for choice in ("kitty", "iterm2", "blocks", "none", "auto"):
        assert protocol_of({**XTERM, "IMRET_PREVIEW": choice}, terminal) in PROTOCOLS


def test_the_cell_is_as_large_as_the_terminal_says(terminal: TextIO, tmp_path: Path) -> None:
    assert cell_pixels(terminal) == (9, 18)
    fcntl.ioctl(terminal.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    assert cell_pixels(terminal) == CELL_PIXELS
    assert cell_pixels(io.StringIO()) == CELL_PIXELS
    with (tmp_path / "out.txt").open("w") as file:
        assert cell_pixels(file) == CELL_PIXELS
