#!/bin/sh
# safetensors 0.8.0: the same tensors and the same metadata give files of different bytes, from call to call.
#
# A good engineer would guess that a format whose header is JSON and whose tensors lie sorted is written the same
# way each time, so that two files of one content have one checksum: it is what reproducible builds, content-addressed
# caches and "did the model change?" by SHA-256 count on. The tensors are sorted, but entries of the metadata are kept
# in a hash map whose order is drawn anew for every file, and are written in that order. With two entries about half
# of all files differ, with six nearly all do, though every one of them loads to the same. Without metadata, or with
# one entry, the bytes are the same each time.
# What to do: put all metadata into one entry, as one JSON text; or hash what is loaded instead of the file.
#
# Installs into a temporary folder (seconds), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import hashlib

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load, save_file

CALLS = 50
tensors = {f"layer.{i}": np.arange(4, dtype=np.float32) + i for i in range(3)}


def checksums(entries):
    """Return the checksums of files of one content, which all load to it."""
    metadata = {f"key{i}": f"value {i}" for i in range(entries)} or None
    found = set()
    for _ in range(CALLS):
        save_file(tensors, "one.safetensors", metadata=metadata)
        with open("one.safetensors", "rb") as file:
            content = file.read()
        loaded = load(content)
        assert all(np.array_equal(loaded[name], value) for name, value in tensors.items())
        with safe_open("one.safetensors", "numpy") as opened:
            assert (opened.metadata() or None) == metadata
        found.add(hashlib.sha256(content).hexdigest())
    return found


counts = {entries: len(checksums(entries)) for entries in (0, 1, 2, 6)}
for entries, count in counts.items():
    print(f"{entries} entries of metadata: {count} different files of {CALLS} with one content")
assert counts[0] == counts[1] == 1, counts
assert counts[2] == 2, counts
assert counts[6] > CALLS // 2, counts
PYTHON
