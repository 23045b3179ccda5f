#!/bin/sh
# usearch 2.26.6: an index with dtype="i8" uses fewer of its 256 levels the more dimensions the vectors have, and loses
# recall.
#
# A good engineer would guess that one byte a component costs about the same recall at any width, as it does with a
# scale that fits the numbers. usearch divides each vector by its length and multiplies by 127: in 1,024 dimensions the
# components of a vector of length 1 are about 0.03, so two dozen levels are left. Recall@10 of an exact search over
# 5,000 random directions is 0.94 in 64 dimensions and 0.78 in 1,024, where bf16 has 0.99 and int8 scaled by each
# vector's largest component 0.97. To multiply the vectors first changes nothing: the length is divided out again.
# What to do: scale each vector so that its largest component is 127, round, and give usearch int8 arrays; cosine does
# not depend on the scale. Or use bf16.
#
# Installs into a temporary folder (a minute), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check usearch==2.26.6 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import numpy as np
from usearch.index import Index

N, QUERIES, K = 5_000, 100, 10


def directions(dim):
    rows = np.random.default_rng(0).standard_normal((N + QUERIES, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:N], rows[N:]


def scaled(rows):
    return np.round(rows * 127 / np.abs(rows).max(axis=1, keepdims=True)).astype(np.int8)


def recall(vectors, queries, dtype, nearest):
    index = Index(ndim=vectors.shape[1], metric="cos", dtype=dtype)
    index.add(np.arange(N), vectors)
    hits = index.search(queries, K, exact=True).keys
    levels = len(np.unique(index.get(0, dtype=np.int8))) if dtype == "i8" else None
    return np.mean([len({*found} & {*best}) / K for found, best in zip(hits.tolist(), nearest.tolist())]), levels


figures = {}
for dim in (64, 1024):
    vectors, queries = directions(dim)
    nearest = np.argsort(-queries @ vectors.T, axis=1)[:, :K]
    for name, change, dtype in [
        ("bf16", np.asarray, "bf16"),
        ("i8", np.asarray, "i8"),
        ("i8, times 20", lambda rows: rows * 20, "i8"),
        ("i8, scaled int8", scaled, "i8"),
    ]:
        figures[dim, name] = recall(change(vectors), change(queries), dtype, nearest)
        value, levels = figures[dim, name]
        print(f"{dim:5} dimensions, {name:16} recall@{K} {value:.3f}" + (f", {levels} levels" if levels else ""))
narrow, wide, times_20, own = (figures[at] for at in [(64, "i8"), (1024, "i8"), (1024, "i8, times 20"), (1024, "i8, scaled int8")])
assert figures[1024, "bf16"][0] > 0.98 and own[0] > 0.95, "it is another: the finding is stale"
assert narrow[0] > 0.92 and wide[0] < 0.83 and wide[1] < 32, "it is another: the finding is stale"
assert abs(times_20[0] - wide[0]) < 0.005, "it is another: the finding is stale"
PYTHON
echo "as described"
