"""ICC profiles that are made, not kept: of primaries and a gamma, and of inks."""

from __future__ import annotations

import struct

# XYZ of red, green and blue for a white of D50, and the gamma.
RGB_SPACES: dict[str, tuple[tuple[tuple[float, float, float], ...], float]] = {
    "sRGB": (((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142)), 2.2),
    "Display P3": (((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)), 2.2),
    "Adobe RGB": (((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)), 2.2),
    "BT.2020": (((0.6734, 0.2790, -0.0019), (0.1657, 0.6753, 0.0300), (0.1251, 0.0456, 0.7967)), 2.2),
    "Wide Gamut": (((0.7164, 0.2587, 0.0), (0.1008, 0.7247, 0.0512), (0.1471, 0.0166, 0.7738)), 2.2),
    "ProPhoto": (((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)), 1.8),
    "linear": (((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142)), 1.0),
}


def rgb_profile(space: str, *, cicp: tuple[int, int] | None = None) -> bytes:
    """Return a profile of one of `RGB_SPACES`, which may state primaries and transfer by number, too."""
    primaries, gamma = RGB_SPACES[space]
    tags = [
        (name, _xyz(primary)) for name, primary in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)
    ]
    tags += [(name, _curve(gamma)) for name in (b"rTRC", b"gTRC", b"bTRC")]
    if cicp is not None:
        tags.append((b"cicp", b"cicp\0\0\0\0" + bytes((*cicp, 0, 1))))
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags)


def grey_profile(gamma: float) -> bytes:
    """Return a profile for grey."""
    return _profile(b"GRAY", b"XYZ ", b"mntr", [(b"kTRC", _curve(gamma))])


def cmyk_profile() -> bytes:
    """Return a profile for four inks whose first is red, in the place of cyan; all else of them is black."""
    white, red, black = bytes((255, 128, 128)), bytes((136, 208, 195)), bytes((0, 128, 128))  # as Lab
    grid = b"".join({0: white, 8: red}.get(corner, black) for corner in range(16))
    ramp = bytes(range(256))
    matrix = b"".join(_s15(1.0 if i % 4 == 0 else 0.0) for i in range(9))
    lut = (
        b"mft1\0\0\0\0"
        + bytes((4, 3, 2, 0))
        + matrix
        + ramp * 4  # of each ink
        + grid
        + ramp * 3
    )
    return _profile(b"CMYK", b"Lab ", b"prtr", [(b"A2B0", lut)])


def _s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(value: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_s15, value))


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + (
        struct.pack(">IH", 1, round(gamma * 256)) if gamma != 1 else struct.pack(">I", 0)
    )


def _profile(space: bytes, connection: bytes, kind: bytes, tags: list[tuple[bytes, bytes]]) -> bytes:
    white = (0.9642, 1.0, 0.8249)
    description = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(80)
    tags = [*tags, (b"wtpt", _xyz(white)), (b"desc", description), (b"cprt", b"text\0\0\0\0x\0\0\0")]
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytearray(128)
    head[8:12], head[12:16], head[16:20], head[20:24] = b"\x02\x40\0\0", kind, space, connection
    head[36:40], head[68:80] = b"acsp", b"".join(map(_s15, white))
    whole = bytes(head) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]
