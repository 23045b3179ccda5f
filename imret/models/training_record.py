"""What `imret finetune` noted of a model, believed only beside the weights that it was written with.

Anyone can copy a training.json, or put other weights beside one: it says of which tensors it is.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from imret.files import read_regular
from imret.models.weights_digest import digest_bytes, digest_tensors

TRAINING_NAME = "training.json"
_MAX_BYTES = 256 << 20  # it lists every category


def read_training_record(weights: Path) -> dict[str, Any]:
    """Return the training.json that lies beside weights; empty if there is none, or it is not of these.

    Args:
        weights: The checkpoint file, or the index of several.

    Warns:
        UserWarning: If it says something of a model, and is of other weights or of it says not which.

    Raises:
        ModelError: If the weights cannot be read.
    """
    path = weights.parent / TRAINING_NAME
    try:
        record = json.loads(read_regular(path, max_bytes=_MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        warnings.warn(f"'{path}' is not read: {reason}", UserWarning, stacklevel=2)
        return {}
    if not isinstance(record, dict) or not record.keys() & {"data", "images_of", "run"}:
        return {}  # nothing of ours
    if _is_of(record, weights):
        return record
    warnings.warn(
        f"'{path}' is not believed: it is not of the weights beside it. Names of categories, and whose image "
        "tower a model kept, are taken from it only with the weights that it was written with",
        UserWarning,
        stacklevel=2,
    )
    return {}


def _is_of(record: dict[str, Any], weights: Path) -> bool:
    if "weights" in record:
        return bool(record["weights"] == digest_tensors(weights).tensors)
    # As imret wrote it before; of a model whose image tower was trained, it did not say.
    images_of = record.get("images_of")
    if not isinstance(images_of, dict):
        return False
    if "weights" in images_of:
        return bool(images_of["weights"] == digest_tensors(weights).tensors)
    return bool(images_of.get("weights_sha256") == digest_bytes(weights))
