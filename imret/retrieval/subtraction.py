"""What is subtracted from a query: how strongly, and of a picture, which part of it.

To subtract a whole picture is to subtract what was asked for: a picture of a mushroom is, before all else, a
mushroom. What makes it different from the other answers is what one does not want to see. So the mean of the
query's own best hits is taken from the picture first, as relevance feedback does (J. J. Rocchio, Relevance
feedback in information retrieval, 1971), and the rest is weighed by how far it spreads scores.

The strengths were chosen with two small CLIPs on photos of ten categories of nature: what is subtracted sinks
and what is asked for stays; benchmarks/search_quality.py shows what they give beside other rules.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of words: this share of the weight that was asked for.
WORDS = 0.5
# Of a picture: it spreads the scores of the collection by this share of what the query does.
PICTURE = 0.4
# So many of the best hits stand for what was asked for.
HITS = 10
# A hit is a copy of the subtracted picture, and not wanted either, if it is nearer than this share of how far
# the hits are from it at the median (1 - cosine). Models differ in how near all pictures are to each other.
COPY = 0.25


def less_like(
    picture: NDArray[np.float32],
    query: NDArray[np.float32],
    hits: NDArray[np.float32],
    sample: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return what to take from a query, once for a weight of 1, so that it asks for less like a picture.

    Args:
        picture: (D,) unit vector of what is subtracted.
        query: (D,) what is asked for, a mean of unit vectors.
        hits: (K, D) unit vectors of the best hits of the query; may hold the picture and its copies.
        sample: (N, D) unit vectors of the collection.

    Returns:
        (D,), with a length that goes with the query's.
    """
    distances = 1 - hits @ picture
    others = hits[distances >= COPY * np.median(distances)][:HITS] if len(hits) else hits
    difference = picture - others.mean(axis=0) if len(others) else picture
    spread, spread_query = float((sample @ difference).std()), float((sample @ query).std())
    # Of a collection of one picture, or of equal ones, no score tells anything.
    scale = spread_query / spread if spread > 1e-6 and spread_query > 1e-6 else 1.0
    return np.asarray(PICTURE * scale * difference, dtype=np.float32)
