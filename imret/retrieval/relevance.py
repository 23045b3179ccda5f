"""Where the answers to a query end: a cut that depends on the query, and none where there is no answer.

A flat threshold fails, because what scores alike are worth differs from query to query. Two questions are
asked instead. Where does this query's ranking fall off: between what it scores with pictures in general and
with its best hits. And are the best hits about it at all: is a picture nearer to this query than to
everything else that could be said of it, a bank of everyday phrases; of a query that is a picture: nearer
than the pictures of the collection are to each other.

The numbers below were chosen with one small CLIP on photos of ten categories of nature, captions of other
photos, and queries without an answer; benchmarks/search_quality.py shows what they give, there and on queries
that were never asked before. A flat threshold, a multiple of the spread and the false discovery rate of a
normal distribution were tried: each needs another number for another query or another size of collection.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The cut lies this far up from what a picture in general scores to what the best three score.
FALL = 0.6
BEST = 3
# Of phrases that were not asked for, a picture in general scores no more than this share of them at most: in
# a collection that is all about the query, its own median would be that of answers.
_GENERAL = 0.9
# A hit is about a query that is a picture if it is nearer than this share of the collection is to the hit.
_NEIGHBOURS = 0.9


def cut(
    scores: NDArray[np.float32], best: NDArray[np.float32], phrases: NDArray[np.float32] | None = None
) -> float:
    """Return the score at which the answers end.

    Args:
        scores: (N,) of the query with a sample of the collection.
        best: (at least 1,) the highest scores of the whole collection.
        phrases: (N, P) scores of everyday phrases with the sample, or None for a query that is a picture.
    """
    general = float(np.median(scores))
    if phrases is not None and phrases.size:
        general = min(general, float(np.quantile(phrases, _GENERAL)))
    return general + FALL * (float(np.sort(best)[::-1][:BEST].mean()) - general)


def about_words(scores: NDArray[np.float32], phrases: NDArray[np.float32]) -> bool:
    """Whether hits are about a query of words: most of them nearer to it than to every phrase.

    Args:
        scores: (K,) of the best hits with the query.
        phrases: (K, P) of the same hits with everyday phrases.
    """
    return bool((phrases.max(axis=1) < scores).mean() >= 0.5)


def about_picture(scores: NDArray[np.float32], neighbours: NDArray[np.float32]) -> bool:
    """Whether hits are about a query that is a picture: most of them nearer to it than to the collection.

    Args:
        scores: (K,) of the best hits with the query.
        neighbours: (K, N) of the same hits with a sample of the collection, which may hold them.
    """
    others = np.where(neighbours > 0.9999, -1.0, neighbours)  # a hit is no neighbour of its own
    limits = np.quantile(others, _NEIGHBOURS, axis=1)
    return bool((limits < scores).mean() >= 0.5)
