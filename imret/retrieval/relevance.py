"""Where the answers to a query end: a cut that depends on the query, and none where there is no answer.

A flat threshold fails, because what scores alike is worth differs from query to query. Two questions are
asked instead. Where does this query's ranking fall off: between what it scores with pictures in general and
with its best hits. And are the best hits about it at all: of words, is a picture nearer to them than to what
else could be said of it, a bank of everyday phrases; of a query that is a picture, is it nearer than the
pictures of the collection are to each other.

A caption that is right is often beaten by some phrase that says the same in fewer words, and a word by the
phrase that it is. So a picture may also be nearer only than to the phrases that say something else, if it
scores far more than phrases do in general: more than the best of so many pictures would by chance.

The numbers below were chosen with two small CLIPs: those for pictures and names on photos of ten categories
of nature, captions of other photos, and queries without an answer (benchmarks/search_quality.py), those for
captions on other captions than they are judged by (benchmarks/relevance_captions.py); both show what they
give. A flat threshold, a multiple of the spread and the false discovery rate of a normal distribution were
tried: each needs another number for another query or another size of collection.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# The cut lies this far up from what a picture in general scores to what the best three score. Of a caption
# the right photo is less surely among the best than those of a category are of its name.
FALL = 0.6
FALL_OF_CAPTION = 0.45
BEST = 3
# Of phrases that were not asked for, a picture in general scores no more than this share of them at most: in
# a collection that is all about the query, its own median would be that of answers.
_GENERAL = 0.9
# A hit is about a query that is a picture if it is nearer than this share of the collection is to the hit.
_NEIGHBOURS = 0.9
# This share of the phrases, those least like a text, say something else than it does.
_ELSE = 0.6
# How much nearer a hit is to a caption than to every phrase, in logits: e^2 = 7 to 1 by the model's own odds.
# A name is asked in several wordings, whose mean is surer than one: there any difference counts.
CLEARLY = 2.0
# The best of n scores of a normal distribution lies about sqrt(2 ln n) deviations above its middle. A phrase
# and a picture that have nothing to do with each other spread by 2.5 to 3.5 logits in both models.
ABOVE_CHANCE = 2.7


def cut(
    scores: NDArray[np.float32],
    best: NDArray[np.float32],
    phrases: NDArray[np.float32] | None = None,
    *,
    fall: float = FALL,
) -> float:
    """Return the score at which the answers end.

    Args:
        scores: (N,) of the query with a sample of the collection.
        best: (at least 1,) the highest scores of the whole collection.
        phrases: (N, P) scores of everyday phrases with the sample, or None for a query that is a picture.
        fall: How far the cut lies from the score of a picture in general, 0, to that of the best, 1.
    """
    general = float(np.median(scores))
    if phrases is not None and phrases.size:
        general = min(general, float(np.quantile(phrases, _GENERAL)))
    return general + fall * (float(np.sort(best)[::-1][:BEST].mean()) - general)


def about_words(
    scores: NDArray[np.float32],
    phrases: NDArray[np.float32],
    *,
    likeness: NDArray[np.float32],
    usual: float,
    images: int,
    logit_scale: float,
    is_caption: bool,
) -> bool:
    """Whether hits are about words: most of them nearer to them than to phrases, as the module says.

    Args:
        scores: (K,) of the best hits with the words.
        phrases: (K, P) of the same hits with everyday phrases.
        likeness: (P,) how like the words each phrase is, in any unit.
        usual: What a phrase and a picture of the collection score in the middle.
        images: How many there are in the collection.
        logit_scale: Of the model: the size of its scores is its own, that of its logits hardly.
        is_caption: Whether the words are a sentence, asked as it is, and no name.
    """
    logit = 1 / max(logit_scale, 0.5)  # as a score, of which none differ by more than 2
    clearly = CLEARLY * logit if is_caption else 0.0
    if _most(phrases.max(axis=1) + clearly < scores):
        return True
    others = phrases[:, likeness <= np.quantile(likeness, _ELSE)]
    by_chance = ABOVE_CHANCE * math.sqrt(2 * math.log(max(images, 2))) * logit
    return _most(others.max(axis=1) < scores) and float(scores.mean()) >= usual + by_chance


def about_picture(scores: NDArray[np.float32], neighbours: NDArray[np.float32]) -> bool:
    """Whether hits are about a query that is a picture: most of them nearer to it than to the collection.

    Args:
        scores: (K,) of the best hits with the query.
        neighbours: (K, N) of the same hits with a sample of the collection, which may hold them.
    """
    others = np.where(neighbours > 0.9999, -1.0, neighbours)  # a hit is no neighbour of its own
    limits = np.quantile(others, _NEIGHBOURS, axis=1)
    return _most(limits < scores)


def _most(are: NDArray[np.bool_]) -> bool:
    return bool(are.mean() >= 0.5)
