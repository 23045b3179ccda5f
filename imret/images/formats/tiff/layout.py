"""How the pixels of a TIFF picture lie in its file, and whether that is a kind that is read here.

Source: TIFF Revision 6.0 (1992), and libtiff's tiff.h for what came later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imret.images.formats.tiff import directory as tags
from imret.images.formats.tiff.directory import DamagedTiffError, Directory, not_supported

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR, CIELAB, ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
CFA, LINEAR_RAW = 32803, 34892  # what a camera's sensor saw, in DNG and the like
UINT, INT, FLOAT, VOID = 1, 2, 3, 4
NO_COMPRESSION, WEBP = 1, 50001
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of alpha

# What libtiff can undo byte for byte: LZW, Deflate by two numbers, PackBits, LZMA, Zstandard.
BYTE_COMPRESSIONS = frozenset((5, 8, 32946, 32773, 34925, 50000))
_PREDICTED = BYTE_COMPRESSIONS - {32773}  # PackBits has none, whatever is said
# What only makes sense with its pixels: CCITT's, JPEG as it was and as it is. Pillow and libtiff read it.
PICTURE_COMPRESSIONS = frozenset((2, 3, 4, 6, 7, 32771))
RAW_COMPRESSIONS = frozenset(
    (32767, 32769, 32770, 34713, 65000, 65535)
)  # Sony, Nikon, Samsung, Kodak, Pentax

_COMPRESSIONS = {
    **{1: "no", 2: "CCITT", 3: "CCITT group 3", 4: "CCITT group 4", 5: "LZW", 6: "old JPEG", 7: "JPEG"},
    **{8: "Deflate", 32946: "Deflate", 32773: "PackBits", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"},
    **{33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 33004: "JPEG 2000", 34887: "LERC"},
    **{50002: "JPEG XL", 52546: "JPEG XL", 34676: "LogLuv", 34677: "LogLuv", 32766: "NeXT", 9: "JBIG"},
    **{10: "JBIG", 34661: "JBIG", 32809: "ThunderScan", 22610: "JPEG XR", 34933: "PNG", 34934: "JPEG XR"},
    **{
        32908: "Pixar film",
        32909: "Pixar log",
        32947: "Kodak DCS",
        34892: "lossy DNG",
        34926: "old Zstandard",
    },
}
_PHOTOMETRICS = {
    **{
        0: "grey",
        1: "grey",
        2: "RGB",
        3: "palette",
        4: "mask",
        5: "CMYK",
        6: "YCbCr",
        8: "Lab",
        9: "ICC Lab",
    },
    **{10: "ITU Lab", CFA: "raw sensor", LINEAR_RAW: "raw sensor", 32844: "LogL", 32845: "LogLuv"},
}
_FORMATS = {INT: "signed", FLOAT: "float", 5: "complex integer", 6: "complex float"}
_N_COLORS = {0: 1, 1: 1, RGB: 3, PALETTE: 1, SEPARATED: 4, CIELAB: 3, ICCLAB: 3}

# Of one strip or tile as it is in memory. Not a strip of Photoshop's for 100 megapixels in 16 bits is larger.
_MAX_CHUNK_BYTES = 1 << 30
_MAX_ROW_BYTES = 1 << 28
_MAX_CHUNKS = 500_000
# Unpacked at a time; a row, if that is more.
BAND_SAMPLES = 1_000_000
_MAX_SAMPLES = 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """How pixels lie in a file.

    Attributes:
        width: In pixels, as stored.
        height: Likewise.
        bits: Of each sample.
        n_samples: Of each pixel.
        is_planar: Whether each of them has a plane of its own.
        sample_format: UINT, INT or FLOAT.
        photometric: What the samples mean.
        compression: By its number.
        predictor: 1 for none, 2 for differences of integers, 3 of floats.
        is_reversed: Whether the first pixel is in a byte's lowest bits.
        alpha: The sample that says how opaque a pixel is, None if there is none.
        is_associated: Whether the colours are already multiplied by it.
        chunk: (width, height) of a tile, or of a strip.
        is_tiled: Whether the chunks are tiles, all of one size, beyond the picture's edges too.
    """

    width: int
    height: int
    bits: int
    n_samples: int
    is_planar: bool
    sample_format: int
    photometric: int
    compression: int
    predictor: int
    is_reversed: bool
    alpha: int | None
    is_associated: bool
    chunk: tuple[int, int]
    is_tiled: bool

    @property
    def n_colors(self) -> int:
        """How many samples are colours."""
        return _N_COLORS[self.photometric]

    @property
    def channels(self) -> tuple[int, ...]:
        """The samples that are wanted: colours, and the alpha."""
        return (*range(self.n_colors), *(() if self.alpha is None else (self.alpha,)))

    @property
    def in_chunk(self) -> int:
        """How many samples of a pixel lie together."""
        return 1 if self.is_planar else self.n_samples

    @property
    def row_bytes(self) -> int:
        """Of a chunk, decompressed."""
        return (self.chunk[0] * self.in_chunk * self.bits + 7) // 8

    @property
    def kept_type(self) -> np.dtype[np.generic]:
        """Of the samples in memory: at most 32 bits, however many the file has."""
        if self.sample_format == FLOAT or self.bits > 32:
            return np.dtype(np.float32)
        size = next(size for size in (8, 16, 32) if self.bits <= size)
        return np.dtype(f"{'i' if self.sample_format == INT else 'u'}{size // 8}")

    @property
    def bytes_to_decode(self) -> int:
        """About how many bytes it takes to read the picture, at most."""
        n_pixels = self.width * self.height
        # Samples, the same as bytes, a picture of those and one in RGB, each of them four bytes in Pillow.
        kept = n_pixels * (len(self.channels) * (self.kept_type.itemsize + 1) + 9)
        if self.is_associated:
            kept += 8 * n_pixels  # white is added to it
        unpacking = 16 * max(BAND_SAMPLES, self.chunk[0] * self.in_chunk)
        return kept + unpacking + (0 if self.compression == NO_COMPRESSION else self._chunk_bytes)

    @property
    def _chunk_bytes(self) -> int:
        """Of a chunk, compressed (at most about as much) and not."""
        return 2 * self.chunk[1] * self.row_bytes

    def describe(self) -> str:
        """Return its kind in words, such as "16-bit float RGB, JPEG XL compression"."""
        kind = f"{self.bits}-bit {_FORMATS.get(self.sample_format, '')}".strip()
        meaning = _PHOTOMETRICS.get(self.photometric, f"photometric {self.photometric}")
        name = _COMPRESSIONS.get(self.compression, f"compression {self.compression}")
        extra = f" of {self.n_samples} samples" if self.n_samples not in (1, 3, 4) else ""
        return f"{kind} {meaning}{extra}, {name} compression"


def read_layout(directory: Directory) -> Layout:
    """Read how the pixels of a picture lie; nothing is looked for yet whether that is a kind that is read.

    Raises:
        DamagedTiffError: If what is said contradicts itself.
        ImageError: If it is a kind that cannot be said in a `Layout`.
    """
    width, height = directory.number(tags.IMAGE_WIDTH), directory.number(tags.IMAGE_LENGTH)
    if width < 1 or height < 1:
        raise DamagedTiffError(f"a picture of {width} x {height} pixels")
    compression = directory.number(tags.COMPRESSION, NO_COMPRESSION)
    n_samples = directory.number(tags.SAMPLES_PER_PIXEL, 1)
    if not 1 <= n_samples <= _MAX_SAMPLES:
        raise not_supported(f"{n_samples:,} samples a pixel")
    photometric = directory.number(tags.PHOTOMETRIC, _photometric_of(n_samples, compression))
    if photometric == YCBCR and n_samples == 1:
        photometric = MIN_IS_BLACK
    bits = _alike(directory, tags.BITS_PER_SAMPLE, n_samples, 1, "bits a sample")
    sample_format = _alike(directory, tags.SAMPLE_FORMAT, n_samples, UINT, "formats of samples")
    is_planar = directory.number(tags.PLANAR_CONFIGURATION, 1) == 2 and n_samples > 1
    alpha, is_associated = _alpha_of(directory, photometric, n_samples)
    is_tiled = tags.TILE_WIDTH in directory
    if is_tiled:
        chunk = (directory.number(tags.TILE_WIDTH), directory.number(tags.TILE_LENGTH))
    else:
        rows = directory.number(tags.ROWS_PER_STRIP, height)
        chunk = (width, height if rows < 1 else min(rows, height))
    if min(chunk) < 1:
        raise DamagedTiffError(f"tiles of {chunk[0]} x {chunk[1]} pixels")
    return Layout(
        width=width,
        height=height,
        bits=bits,
        n_samples=n_samples,
        is_planar=is_planar,
        sample_format=UINT if sample_format == VOID else sample_format,
        photometric=photometric,
        compression=compression,
        predictor=directory.number(tags.PREDICTOR, 1) if compression in _PREDICTED else 1,
        is_reversed=directory.number(tags.FILL_ORDER, 1) == 2,
        alpha=alpha,
        is_associated=is_associated,
        chunk=chunk,
        is_tiled=is_tiled,
    )


def check_readable(layout: Layout) -> None:
    """Refuse what `imret.images.formats.tiff.samples` does not read.

    Raises:
        ImageError: If it is a kind that is not read.
        DamagedTiffError: If its chunks are of sizes that make no sense.
    """
    is_webp = layout.compression == WEBP
    bits, kind = layout.bits, layout.sample_format
    # Integers below 8, 16, 32 or 64 bits are packed tightly, without a sign.
    is_number = {UINT: 1 <= bits <= 25 or bits in (32, 64), INT: bits in (8, 16, 32, 64)}
    if layout.photometric not in _N_COLORS or not is_number.get(kind, kind == FLOAT and bits in (16, 32, 64)):
        raise not_supported(layout.describe())
    if layout.n_samples < layout.n_colors or (layout.photometric == PALETTE and (kind != UINT or bits > 16)):
        raise not_supported(layout.describe())
    lab = {CIELAB: kind == FLOAT or bits in (8, 16), ICCLAB: kind != FLOAT and bits in (8, 16)}
    if not lab.get(layout.photometric, True):
        raise not_supported(layout.describe())
    if not is_webp and layout.compression not in (NO_COMPRESSION, *BYTE_COMPRESSIONS):
        raise not_supported(layout.describe())
    if is_webp and (bits != 8 or layout.is_planar or layout.n_samples not in (3, 4)):
        raise not_supported(layout.describe())
    can_predict = {1: True, 2: bits in (8, 16, 32, 64), 3: kind == FLOAT}
    if not can_predict.get(layout.predictor, False) and not is_webp:
        raise not_supported(f"{layout.describe()}, predictor {layout.predictor}")
    if layout.row_bytes > _MAX_ROW_BYTES:
        raise not_supported(f"rows of more than {_MAX_ROW_BYTES:,} bytes")
    if layout.row_bytes * layout.chunk[1] > _MAX_CHUNK_BYTES and layout.compression != NO_COMPRESSION:
        raise not_supported(f"strips or tiles of more than {_MAX_CHUNK_BYTES:,} bytes")
    across, down = -(-layout.width // layout.chunk[0]), -(-layout.height // layout.chunk[1])
    if across * down * (1 + max(layout.channels if layout.is_planar else (0,))) > _MAX_CHUNKS:
        raise not_supported(f"more than {_MAX_CHUNKS:,} strips or tiles")
    if layout.is_tiled and max(layout.chunk) > 2 * max(layout.width, layout.height, 4096):
        raise DamagedTiffError(f"tiles of {layout.chunk[0]:,} x {layout.chunk[1]:,} pixels")


def _photometric_of(n_samples: int, compression: int) -> int:
    """Return what a file means that does not say it, as libtiff takes it."""
    if compression in (2, 3, 4, 32771):
        return MIN_IS_WHITE
    return RGB if n_samples >= 3 else MIN_IS_BLACK


def _alike(directory: Directory, tag: int, n: int, default: int, what: str) -> int:
    """Return the value that all samples share; one may stand for all."""
    values = set(directory.numbers(tag, n).tolist())
    if len(values) > 1:
        raise not_supported(f"different {what} ({', '.join(map(str, sorted(values)))})")
    return values.pop() if values else default


def _alpha_of(directory: Directory, photometric: int, n_samples: int) -> tuple[int | None, bool]:
    """Return which sample is the alpha, and whether the colours are multiplied by it."""
    n_colors = _N_COLORS.get(photometric, 3)
    kinds = directory.numbers(tags.EXTRA_SAMPLES, n_samples).tolist()
    if not kinds and photometric == RGB and n_samples == 4:
        return 3, False  # writers that forget to say it, which Pillow knows
    for index, kind in enumerate(kinds):
        if kind in (ASSOCIATED, UNASSOCIATED) and n_colors + index < n_samples:
            return n_colors + index, kind == ASSOCIATED
    return None, False
