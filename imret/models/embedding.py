"""Embeddings of unit length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from imret.errors import ModelError

Floats: TypeAlias = NDArray[np.float32]


def unit_mean(rows: Floats, texts: Sequence[str], model_id: str) -> Floats:
    """Return the mean of the (N, D) embeddings of texts, made unit again: (D,).

    Raises:
        ModelError: If they cancel out; it names the model.
    """
    mean = rows.mean(axis=0)
    norm = float(np.linalg.norm(mean))
    if norm < 1e-6:
        raise ModelError(f"Model '{model_id}' gives no direction for the mean of {list(texts)!r}.")
    return np.asarray(mean / norm, dtype=np.float32)
