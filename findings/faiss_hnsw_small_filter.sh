#!/bin/sh
# faiss-cpu 1.15.1: HNSW with a selector of few ids leaves most of the answers out, and more of them the fewer ids
# there are.
#
# A good engineer would guess that a filter that lets 20 of 20,000 vectors through is the easy case: Qdrant and Lucene
# compare such a handful one by one. faiss walks the whole graph and drops what the selector refuses: of ten answers
# that exist it returns one with the default efSearch of 16, and seven with 256; the others are -1, without a word. A
# filter of 10 % has no -1, and more than half of its answers are not the best ten: recall@10 is 0.40 by default.
# What to do: where few ids pass, search them in a flat index (IndexFlat with the same selector, or numpy); where many
# do, raise efSearch by about the inverse of their share; count the -1.
#
# Installs into a temporary folder (a minute), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import faiss
import numpy as np

N, DIM, QUERIES, K = 20_000, 64, 100, 10
rng = np.random.default_rng(0)
vectors = rng.standard_normal((N, DIM)).astype(np.float32)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
queries = rng.standard_normal((QUERIES, DIM)).astype(np.float32)
graph, flat = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT), faiss.IndexFlatIP(DIM)
graph.hnsw.efConstruction = 100
graph.add(vectors)
flat.add(vectors)

figures = {}
for passing in (20, 2_000):
    ids = np.sort(rng.choice(N, passing, replace=False))
    selector = faiss.IDSelectorBatch(ids)
    _, truth = flat.search(queries, K, params=faiss.SearchParameters(sel=selector))
    for ef in (16, 256):
        _, found = graph.search(queries, K, params=faiss.SearchParametersHNSW(sel=selector, efSearch=ef))
        recall = np.mean([len({*a} & {*b}) / K for a, b in zip(found.tolist(), truth.tolist())])
        figures[passing, ef] = recall, float((found == -1).mean())
        print(f"{passing:5,} of {N:,} pass, efSearch {ef:3}: recall@{K} {recall:.2f}, {figures[passing, ef][1]:.0%} are -1")
assert (truth >= 0).all()
assert figures[20, 16][0] < 0.15 and figures[20, 256][0] < 0.9, "it is another: the finding is stale"
assert figures[2_000, 16][0] < 0.6 and figures[2_000, 16][1] == 0, "it is another: the finding is stale"
PYTHON
echo "as described"
