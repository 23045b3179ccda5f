#!/bin/sh
# Pillow 13.0.0: a TIFF of 16-bit RGB whose planes lie apart (PlanarConfiguration 2), uncompressed, opens without a
# word, and its pixels are noise.
#
# A good engineer would guess that a kind that Pillow cannot read is refused, as it refuses the same pixels with 12
# bits ("unknown pixel mode"). Pillow reads two bytes as two pixels of 8 bits: the upper and lower half of each number
# side by side, so that a smooth picture becomes coloured noise of the right size and mode. libtiff, tifffile and
# libvips read such a file rightly; microscopes and scientific programs write it, tifffile on request.
# The neighbour is as silent: of grey in 16 bits where 0 is white (PhotometricInterpretation 0) comes the negative.
# What to do: look at PlanarConfiguration, BitsPerSample and PhotometricInterpretation before Pillow's pixels are used.
#
# Installs into a temporary folder (a minute), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
import tifffile
from PIL import Image

ramp = np.linspace(0, 65535, 64).astype(np.uint16)
picture = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[::-1], (48, 1)), np.full((48, 64), 30000, np.uint16)])
tifffile.imwrite("planes.tif", picture, photometric="rgb", planarconfig="separate")
right = (picture.transpose(1, 2, 0) >> 8).astype(int)
assert (tifffile.imread("planes.tif") == picture).all()
with Image.open("planes.tif") as image:
    read = np.asarray(image.convert("RGB")).astype(int)
    print("planes apart:", image.mode, image.size, "mean difference in levels of 255:", np.abs(read - right).mean().round(1))
assert read.shape == right.shape and np.abs(read - right).mean() > 30, "it is another: the finding is stale"

grey = np.tile(ramp, (48, 1))
tifffile.imwrite("inverted.tif", 65535 - grey, photometric="miniswhite")  # 0 is white: this is the ramp itself
with Image.open("inverted.tif") as image:
    levels = np.asarray(image).astype(int)
    print("0 is white:", image.mode, "first and last level of a ramp from black to white:", levels[0, 0], levels[0, -1])
assert levels[0, 0] > levels[0, -1], "it is another: the finding is stale"
PYTHON
echo "as described"
