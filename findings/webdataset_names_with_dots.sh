#!/bin/sh
# webdataset 1.0.2: photos whose names hold a dot ("holiday.001.jpg") become one sample, and are then left out.
#
# A good engineer would guess that a sample's extension is what follows the last dot, as os.path.splitext has it:
# cameras, scanners and observation portals write names such as IMG.0001.jpg or 2024.05.17.jpg. webdataset takes the
# name up to the first dot as the key of a sample and all that follows as its kind. So consecutive photos that share
# what stands before the first dot are one sample with the kinds "001.jpg", "001.txt", "002.jpg" and so on. What asks
# for "jpg" and "txt" finds neither: by default that raises, and with the handler that data loaders set so that one
# bad sample does not end a run (warn_and_continue; clip-benchmark 1.6.2 reads retrieval sets with it) all of those
# photos are dropped with one warning. A score is then of the photos that are left.
# What to do: name the members of a shard by a key without a dot, such as a number; count the samples that come out.
#
# Installs into a temporary folder (seconds), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
  webdataset==1.0.2 braceexpand==0.1.7 numpy==2.4.6 pyyaml==6.0.3
cd "$folder"
venv/bin/python - <<'PYTHON'
import io
import tarfile
import warnings

import webdataset as wds

NAMES = ("holiday.001", "holiday.002", "holiday.003", "lake")


def add(shard, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


with tarfile.open("0.tar", "w") as shard:
    for name in NAMES:
        add(shard, f"{name}.jpg", b"picture of " + name.encode())
        add(shard, f"{name}.txt", b"caption of " + name.encode())

samples = list(wds.WebDataset("0.tar", shardshuffle=False))
kinds = {sample["__key__"]: sorted(key for key in sample if not key.startswith("__")) for sample in samples}
print(f"{len(NAMES)} photos with a caption each are {len(samples)} samples: {kinds}")
assert list(kinds) == ["holiday", "lake"], kinds
assert kinds["holiday"] == [f"00{n}.{kind}" for n in (1, 2, 3) for kind in ("jpg", "txt")], kinds

try:
    list(wds.WebDataset("0.tar", shardshuffle=False).to_tuple("jpg", "txt"))
except ValueError as error:
    print(f"asked for jpg and txt: ValueError: {error}")
else:
    raise SystemExit("asked for jpg and txt, it no longer raises")

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    pipeline = wds.WebDataset("0.tar", shardshuffle=False).to_tuple("jpg", "txt", handler=wds.warn_and_continue)
    left = list(pipeline)
told = [one for one in told if "didn't find" in str(one.message)]
print(f"with warn_and_continue {len(left)} of {len(NAMES)} photos are left, after {len(told)} warning")
assert left == [(b"picture of lake", b"caption of lake")], left
assert len(told) == 1, told
PYTHON
