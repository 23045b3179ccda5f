"""Pictures as thumbnails in a terminal: which graphics it can show, and the escape codes for one picture.

Hides the protocols: kitty graphics, iTerm2 inline images, and half-block characters elsewhere. What a
terminal can is judged from the environment variables that it sets; it is asked nothing, so no answer of its
can be mistaken for typing. Nothing but pixels enters the escape codes: no file name does.
"""

from __future__ import annotations

import base64
import io
import math
import struct
from collections.abc import Mapping
from typing import TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imret.errors import DataError, ImageError
from imret.images.decode import Source, load_image
from imret.images.decode_memory import loaded
from imret.settings import read_settings

# What `protocol_of` returns and `render` takes. "blocks": half blocks in 24-bit colour; "blocks256": in the
# 256 colours of xterm.
PROTOCOLS = ("kitty", "iterm2", "blocks", "blocks256", "none")

COLUMNS, ROWS = 32, 12  # of a thumbnail: 320 x 240 pixels where a cell has the usual 10 x 20

CELL_PIXELS = (10, 20)  # (width, height) where a terminal does not tell

_CHOICES = ("auto", "kitty", "iterm2", "blocks", "none")

# Terminals that say so in TERM, which the innermost of nested terminals always sets. Prefixes.
_KITTY_TERMS = ("xterm-kitty", "xterm-ghostty")
# VS Code draws images only where terminal.integrated.enableImages is set, which cannot be seen from here.
_BY_PROGRAM = {
    "iTerm.app": "iterm2",
    "WezTerm": "iterm2",
    "mintty": "iterm2",
    "ghostty": "kitty",
    "vscode": "blocks",
    "Apple_Terminal": "blocks",
}
# These have it even where COLORTERM did not come along, as through ssh.
_TERMS_WITH_24_BIT = (*_KITTY_TERMS, "foot", "contour")
_PROGRAMS_WITH_24_BIT = ("iTerm.app", "WezTerm", "vscode", "ghostty")
_WITHOUT_COLOUR = ("", "dumb", "unknown", "vt52", "vt100", "vt102", "vt220")
_KONSOLE_WITH_KITTY = 220400  # as KONSOLE_VERSION counts: 22.04.00

_KITTY_CHUNK = 4096  # characters of base64, the protocol's limit
_LEVELS = np.array((0, 95, 135, 175, 215, 255))  # of each channel in xterm's 6 x 6 x 6 colour cube
_NOTE_CHARACTERS = 100


# ---- Which protocol ----------------------------------------------------------------------------


def protocol_of(environ: Mapping[str, str], stream: TextIO) -> str:
    """Choose how to show pictures on a stream, from the environment that its terminal has set.

    IMRET_PREVIEW (kitty, iterm2, blocks, none or auto) overrides what is detected, but a stream that is no
    terminal gets nothing: escape codes would spoil a file or a pipe. tmux, GNU screen and Zellij get half
    blocks, whatever terminal is around them.

    Args:
        environ: Such as os.environ.
        stream: Where the pictures will be written.

    Returns:
        One of PROTOCOLS.

    Raises:
        DataError: If IMRET_PREVIEW holds anything else.
    """
    if not stream.isatty():
        return "none"
    term = environ.get("TERM", "")
    blocks = "blocks" if _has_24_bit_colour(environ, term) else "blocks256"
    choice = read_settings(environ).preview
    if choice not in _CHOICES:
        raise DataError(
            f"IMRET_PREVIEW is {choice!r}, which is no way to show pictures.\n"
            f"Set it to one of {', '.join(_CHOICES)}."
        )
    if choice == "auto":
        choice = _detected(environ, term)
    return blocks if choice == "blocks" else choice


def _detected(environ: Mapping[str, str], term: str) -> str:
    if term in _WITHOUT_COLOUR and "WT_SESSION" not in environ:
        return "none"
    if "ZELLIJ" in environ:  # leaves TERM as it was outside
        return "blocks"
    if term.startswith(_KITTY_TERMS):
        return "kitty"
    if term.startswith(("screen", "tmux")) or "STY" in environ or "TMUX" in environ:
        return "blocks"
    # Programs that were started from another terminal inherit that one's variables, so what is set by fewer
    # terminals comes later.
    if by_program := _BY_PROGRAM.get(environ.get("TERM_PROGRAM", "")):
        return by_program
    if environ.get("KONSOLE_VERSION", "").isdecimal():
        return "kitty" if int(environ["KONSOLE_VERSION"]) >= _KONSOLE_WITH_KITTY else "blocks"
    if "VTE_VERSION" in environ:
        return "blocks"
    if environ.get("LC_TERMINAL") == "iTerm2":  # unlike TERM_PROGRAM, this one comes along through ssh
        return "iterm2"
    if "WEZTERM_PANE" in environ:
        return "iterm2"
    if "KITTY_WINDOW_ID" in environ:
        return "kitty"
    return "blocks"


def _has_24_bit_colour(environ: Mapping[str, str], term: str) -> bool:
    if environ.get("COLORTERM") in ("truecolor", "24bit"):
        # GNU screen hands the variable on, but not the colours.
        return not (term.startswith("screen") and "TMUX" not in environ)
    return (
        term.startswith(_TERMS_WITH_24_BIT)
        or term.endswith("-direct")
        or environ.get("TERM_PROGRAM") in _PROGRAMS_WITH_24_BIT
        or "WT_SESSION" in environ
    )


def cell_pixels(stream: TextIO) -> tuple[int, int]:
    """Return the (width, height) of a character cell in pixels; CELL_PIXELS where that cannot be known."""
    try:
        import fcntl
        import termios
    except ImportError:  # Windows
        return CELL_PIXELS
    try:
        size = fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("HHHH", size)
    except (OSError, ValueError):  # no file; closed
        return CELL_PIXELS
    if min(rows, columns, width, height) < 1 or width < columns or height < rows:
        return CELL_PIXELS
    return width // columns, height // rows


# ---- One picture -------------------------------------------------------------------------------


def preview(
    source: Source,
    protocol: str,
    *,
    columns: int = COLUMNS,
    rows: int = ROWS,
    cell: tuple[int, int] = CELL_PIXELS,
    max_pixels: int | None = None,
) -> str:
    """Return the text that shows a picture file, or a note in its place if the file cannot be read any more.

    Args:
        source: What `imret.images.decode.load_image` takes.
        protocol: One of PROTOCOLS; for "none" the text is empty.
        columns: Width of the box to fit into, in cells; see `render`.
        rows: Height of the box, in cells.
        cell: (width, height) of a cell in pixels.
        max_pixels: A picture of more is not decoded; see `load_image`.

    Returns:
        Text that ends with the cursor at the start of the line below.

    Raises:
        ValueError: As `render`.
    """
    if protocol == "none":
        return ""
    side = max(1, columns * cell[0], rows * cell[1])
    try:
        with loaded(source, max_pixels=max_pixels, max_side=side) as image:
            return render(image, protocol, columns=columns, rows=rows, cell=cell)
    except ImageError as error:
        return no_preview(error)


def no_preview(error: ImageError) -> str:
    """Return what stands in the place of a picture that cannot be shown."""
    reason = "".join(char if char.isprintable() else "?" for char in str(error))
    return f"(no preview: {reason[:_NOTE_CHARACTERS]})\n"


def render(
    image: Image.Image, protocol: str, *, columns: int, rows: int, cell: tuple[int, int] = CELL_PIXELS
) -> str:
    """Return the escape text that draws a picture at the cursor, as large as fits a box of cells.

    The aspect ratio is kept. The text begins at the start of a line, first makes room below (so that drawing
    never scrolls), and ends with the cursor at the start of the line below the picture.

    Args:
        image: Any PIL image.
        protocol: One of PROTOCOLS.
        columns: Width of the box in cells, at least 1.
        rows: Height of the box in cells, at least 1.
        cell: (width, height) of a cell in pixels: `cell_pixels`.

    Returns:
        Text of ASCII characters, but for half blocks. Empty for "none".

    Raises:
        ValueError: If the protocol is unknown or a size is not positive.
        ImageError: If the image cannot be decoded.

    Source: https://sw.kovidgoyal.net/kitty/graphics-protocol/, https://iterm2.com/documentation-images.html
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}")
    if min(columns, rows, *cell) < 1:
        raise ValueError(f"a box of {columns} x {rows} cells of {cell[0]} x {cell[1]} pixels holds nothing")
    if protocol == "none":
        return ""
    if image.mode != "RGB":
        image = load_image(image)
    width, height = _fitted(image.size, (columns * cell[0], rows * cell[1]))
    if protocol in ("blocks", "blocks256"):
        # Each cell is two pixels, one above the other.
        grid = max(1, round(width / cell[0])), max(1, round(2 * height / cell[1]))
        return _blocks(np.asarray(_resized(image, grid)), deep=protocol == "blocks")
    across, down = math.ceil(width / cell[0]), math.ceil(height / cell[1])
    png = _png(_resized(image, (width, height)), (across * cell[0], down * cell[1]))
    if protocol == "iterm2":
        return _placed(_iterm2(png, across, down), down)
    # C=1: the cursor stays, as in a terminal that does not know the key, after ours moves it back.
    return _placed(_kitty(png, f"a=T,f=100,q=2,C=1,c={across},r={down}"), down)


def _fitted(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (width, height) in the ratio of `size` that fits into `box`, at least 1 x 1."""
    scale = min(box[0] / size[0], box[1] / size[1])
    return max(1, min(box[0], round(size[0] * scale))), max(1, min(box[1], round(size[1] * scale)))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _placed(drawing: str, rows: int) -> str:
    r"""Make room for a drawing of so many rows, draw it, and go to the line below it.

    Where a drawing leaves the cursor differs between terminals, so it is saved (ESC 7) and restored (ESC 8).
    """
    return "\n" * rows + f"\x1b[{rows}A\x1b7{drawing}\x1b8\x1b[{rows}B\r"


def _png(image: Image.Image, canvas: tuple[int, int]) -> bytes:
    """Encode a picture, padded with transparency to a canvas of whole cells.

    Terminals stretch to the whole cells that they are told; with the padding, that stretches nothing.
    """
    if image.size != canvas:
        padded = Image.new("RGBA", canvas, (0, 0, 0, 0))
        padded.paste(image)
        image = padded
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


# ---- Protocols ---------------------------------------------------------------------------------


def _kitty(png: bytes, keys: str) -> str:
    """Return the escape codes that transmit a PNG: the keys go with the first, `m` says if more follow."""
    text = base64.b64encode(png).decode("ascii")
    chunks = [text[start : start + _KITTY_CHUNK] for start in range(0, len(text), _KITTY_CHUNK)]
    last = len(chunks) - 1
    return "".join(
        f"\x1b_G{f'{keys},' if index == 0 else 'q=2,'}m={int(index < last)};{chunk}\x1b\\"
        for index, chunk in enumerate(chunks)
    )


def _iterm2(png: bytes, columns: int, rows: int) -> str:
    keys = f"inline=1;size={len(png)};width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={keys}:{base64.b64encode(png).decode('ascii')}\x07"


def _blocks(pixels: NDArray[np.uint8], *, deep: bool) -> str:
    """Write (H, W, 3) pixels as upper half blocks: text colour above, background colour below."""
    height, width, _ = pixels.shape
    codes = _colour_codes(pixels, deep=deep)
    lines = []
    for top in range(0, height, 2):
        line, current = [], ("", "")
        for column in range(width):
            upper = "38" + codes[top][column]
            lower = "48" + codes[top + 1][column] if top + 1 < height else "49"
            changed = [code for code, old in zip((upper, lower), current, strict=True) if code != old]
            line.append(f"\x1b[{';'.join(changed)}m▀" if changed else "▀")
            current = (upper, lower)
        lines.append("".join(line) + "\x1b[0m\n")
    return "".join(lines)


def _colour_codes(pixels: NDArray[np.uint8], *, deep: bool) -> list[list[str]]:
    if deep:
        return [[f";2;{red};{green};{blue}" for red, green, blue in row] for row in pixels.tolist()]
    return [[f";5;{number}" for number in row] for row in _nearest_of_256(pixels).tolist()]


def _nearest_of_256(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the nearest of xterm's colours 16 to 255: a 6 x 6 x 6 cube, then 24 greys.

    The first 16 are left out: themes change them.
    """
    wanted = pixels.astype(np.int64)
    steps = np.abs(wanted[..., None] - _LEVELS).argmin(axis=-1)
    cube = _LEVELS[steps]
    grey_steps = np.clip(np.rint((wanted.mean(axis=-1) - 8) / 10), 0, 23).astype(np.int64)
    greys = (8 + 10 * grey_steps)[..., None]
    cube_number = 16 + steps @ np.array((36, 6, 1))
    nearer_grey = ((wanted - greys) ** 2).sum(axis=-1) < ((wanted - cube) ** 2).sum(axis=-1)
    nearest: NDArray[np.int64] = np.where(nearer_grey, 232 + grey_steps, cube_number)
    return nearest
