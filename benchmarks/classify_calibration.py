"""What the probabilities of `imret classify` are worth: expected calibration error on labelled photos.

    python benchmarks/classify_calibration.py MODEL DATA/test --train DATA/train

DATA/test holds a folder per category. With --train, one temperature is fitted on other pictures (by their
negative log likelihood) and judged on the test pictures. Prints a table; intervals are of 2,000 bootstrap
samples of the test pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from imret import Encoder
from imret.datasets.labelled import read_labelled
from imret.evaluation.dataset import Embedded, category_queries, embed
from imret.evaluation.metrics import calibration_error
from imret.retrieval.classify import probabilities

N_BINS = 15


def main() -> None:
    """Embed, classify, and print accuracy, confidence and calibration error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("test", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    encoder = Encoder(arguments.model, precision=arguments.precision)
    test = embed(read_labelled(arguments.test), encoder)
    scores = _scores(test, encoder)
    print(f"{encoder.model_id}: logit scale {encoder.logit_scale:.2f}, {len(test.paths)} pictures")
    print(f"{'':<28}{'top 1':>8}{'confidence':>12}{'ECE':>8}  95% interval    NLL")
    _row("as trained", test, probabilities(scores, encoder))
    if arguments.train:
        train = embed(read_labelled(arguments.train), encoder)
        factor = _fitted(_scores(train, encoder) * encoder.logit_scale, train.labels)
        _row("train pictures, as trained", train, probabilities(_scores(train, encoder), encoder))
        _row(f"scale times {factor:.2f} (train)", test, _softmax(scores * encoder.logit_scale * factor))
        best = _fitted(scores * encoder.logit_scale, test.labels)
        _row(f"scale times {best:.2f} (oracle)", test, _softmax(scores * encoder.logit_scale * best))


def _scores(embedded: Embedded, encoder: Encoder) -> NDArray[np.float64]:
    """Return (N, L) cosines of pictures and categories."""
    return np.asarray(embedded.vectors @ category_queries(encoder, embedded.categories).T, dtype=np.float64)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _nll(shares: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    return float(-np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-300)).mean())


def _fitted(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the factor on the logits that makes the labels most likely: a grid of 1%, so no optimiser."""
    factors = np.exp(np.arange(-300, 301) * 0.01)
    return float(factors[np.argmin([_nll(_softmax(logits * factor), labels) for factor in factors])])


def _row(name: str, embedded: Embedded, shares: NDArray[np.float64]) -> None:
    confidence, correct = shares.max(axis=1), shares.argmax(axis=1) == embedded.labels
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(correct), (2000, len(correct)))
    spread = [calibration_error(confidence[draw], correct[draw], N_BINS) for draw in draws]
    low, high = np.percentile(spread, [2.5, 97.5])
    print(
        f"{name:<28}{correct.mean():>8.3f}{confidence.mean():>12.3f}"
        f"{calibration_error(confidence, correct, N_BINS):>8.3f}  [{low:.3f}, {high:.3f}]"
        f"{_nll(shares, embedded.labels):>7.3f}"
    )


if __name__ == "__main__":
    main()
