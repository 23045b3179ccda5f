#!/bin/sh
# tifffile 2026.3.3: imwrite with 10, 12 or 14 bits a sample writes other numbers into a big-endian file than into a
# little-endian one: those with their bytes swapped, cut to so many bits.
#
# A good engineer would guess that byteorder changes how numbers are stored, not which. Packed bits have no byte order
# (TIFF 6.0: the first byte of a row begins with the upper bits of its first sample), so both files should have the
# same bytes of pixels. In the big-endian one a 1 is stored as 256, and of 256 nothing is left. Neither imwrite nor
# imread warns; a set of test files that is made so tests a reader against noise.
# What to do: write little-endian files where bitspersample is given, or read back what was written.
#
# Installs into a temporary folder (a minute), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import tifffile

for bits in (10, 12, 14):
    picture = (np.arange(48 * 64, dtype=np.uint16) % (1 << bits)).reshape(48, 64)
    stored = {}
    for order in "<>":
        file = f"{bits}{order}.tif"
        tifffile.imwrite(file, picture, bitspersample=bits, byteorder=order, photometric="minisblack")
        with tifffile.TiffFile(file) as tiff:
            at, size = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
        with open(file, "rb") as stream:
            stream.seek(at)
            row = np.unpackbits(np.frombuffer(stream.read(size), np.uint8))[: 64 * bits]
        stored[order] = row.reshape(64, bits).astype(int) @ (1 << np.arange(bits - 1, -1, -1))
        assert (tifffile.imread(file)[0] == stored[order]).all()
    print(f"{bits} bits: given {picture[0, :5]}, in < {stored['<'][:5]}, in > {stored['>'][:5]}")
    assert (stored["<"] == picture[0]).all()
    swapped = picture[0].byteswap() & ((1 << bits) - 1)
    assert (stored[">"] == swapped).all(), "it is another: the finding is stale"
PYTHON
echo "as described"
