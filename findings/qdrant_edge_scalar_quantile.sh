#!/bin/sh
# qdrant-edge-py 0.9.0: the quantile of scalar quantization does not help where one component is large in every vector.
#
# Embeddings of CLIP have a component that is large in every vector. A good engineer would guess that quantile=0.99,
# which leaves out extreme values, keeps the 256 steps for the others: in 256 dimensions that one component is 0.4 %
# of all values. Recall@10 of int8 falls just as far with the quantile as without: from 1.00 to 0.96 where the
# component is 0.95 and 20 candidates are compared again as float32 (oversampling 2). TurboQuant with 8 bits, the same
# size, loses nothing; oversampling 4 gives int8 back what it lost.
#
# Installs into a temporary folder (a minute), and ends with 1 if the behaviour is another.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check qdrant-edge-py==0.9.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PYTHON'
import os
import uuid

import numpy as np
import qdrant_edge as qe

N, DIM, QUERIES, K = 8_000, 256, 200, 10
INT8 = {"type": qe.ScalarType.Int8}
CONFIGS = {
    "int8, quantile 0.99": qe.ScalarQuantizationConfig(**INT8, quantile=0.99),
    "int8": qe.ScalarQuantizationConfig(**INT8),
    "turbo, 8 bits": qe.TurboQuantQuantizationConfig(bits=qe.TurboQuantBitSize.Bits8),
}


def draw(rng, count, large):
    rows = rng.standard_normal((count, DIM))
    rows[:, 0] = 0
    rows *= np.sqrt(1 - large**2) / np.linalg.norm(rows, axis=1, keepdims=True)
    rows[:, 0] = large
    return rows.astype(np.float32)


def recall(name, large, oversampling):
    rng = np.random.default_rng(0)
    vectors, queries = draw(rng, N, large), draw(rng, QUERIES, large)
    nearest = np.argsort(-queries @ vectors.T, axis=1)[:, :K]
    folder = f"{name}-{large}-{oversampling}".replace(" ", "_")
    os.makedirs(folder)
    shard = qe.EdgeShard.create(
        folder,
        qe.EdgeConfig(
            vectors=qe.EdgeVectorParams(size=DIM, distance=qe.Distance.Cosine),
            quantization_config=CONFIGS[name],
            optimizers=qe.EdgeOptimizersConfig(indexing_threshold=1_000),
        ),
    )
    points = [qe.Point(id=str(uuid.UUID(int=i)), vector=row, payload={}) for i, row in enumerate(vectors)]
    shard.update(qe.UpdateOperation.upsert_points(points))
    shard.optimize()
    again = qe.QuantizationSearchParams(ignore=False, rescore=True, oversampling=oversampling)
    params = qe.SearchParams(hnsw_ef=512, quantization=again)
    hits = [
        {uuid.UUID(str(hit.id)).int for hit in shard.query(
            qe.QueryRequest(query=qe.Query.Nearest(query), limit=K, params=params))}
        for query in queries
    ]
    shard.close()
    return np.mean([len(found & set(best.tolist())) / K for found, best in zip(hits, nearest)])


figures = {}
for name, large, oversampling in [
    ("int8, quantile 0.99", 0.0, 2.0),
    ("int8, quantile 0.99", 0.95, 2.0),
    ("int8", 0.95, 2.0),
    ("turbo, 8 bits", 0.95, 2.0),
    ("int8, quantile 0.99", 0.95, 4.0),
]:
    figures[name, large, oversampling] = value = recall(name, large, oversampling)
    print(f"{name:20} component {large:4}, oversampling {oversampling:g}: recall@10 {value:.3f}")
plain, with_quantile, without, turbo, more = figures.values()
assert plain >= 0.995 and turbo >= 0.995 and more >= 0.99, "it is another: the finding is stale"
assert with_quantile < 0.975 and abs(with_quantile - without) < 0.01, "it is another: the finding is stale"
PYTHON
echo "as described"
