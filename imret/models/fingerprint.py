"""What a model is made of, and the fingerprint that tells it from every other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from imret.errors import ModelError
from imret.files import write_atomically
from imret.images.preprocess import Preprocess
from imret.settings import cache_dir

# Keys that steer training or the download of a base model and leave every embedding as it is.
_WITHOUT_EFFECT = frozenset({"timm_model_pretrained", "timm_drop", "timm_drop_path", "hf_model_pretrained"})

# A file changed less than this ago could change again within one tick of its clock, unseen by its mtime.
_UNSETTLED_S = 2.0


@dataclass(frozen=True)
class ModelFiles:
    """One model on disk, complete enough to build it.

    Attributes:
        model_id: The name that resolves to this model again: as typed for a tag or a hub repository, an
            absolute path for a folder, `ARCH:PATH` for a checkpoint file.
        model_cfg: open_clip's architecture configuration.
        preprocess: What the image tower expects.
        weights: The checkpoint file, symbolic links resolved.
        tokenizer: What `open_clip.get_tokenizer` takes for this model.
    """

    model_id: str
    model_cfg: Mapping[str, Any]
    preprocess: Preprocess
    weights: Path
    tokenizer: str

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.model_cfg["embed_dim"])

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that change with the weights, the architecture or the preprocessing.

        The first call reads the weights once (a few seconds for 4 GB); the hash is kept in the cache folder
        by path, size and modification time. The file's name and place do not enter it.

        Raises:
            ModelError: If the weights cannot be read.
        """
        identity = {
            "weights": _weights_digest(self.weights),
            "model_cfg": _effective(self.model_cfg),
            "preprocess": asdict(self.preprocess),
        }
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def images_fingerprint(self) -> str:
        """The fingerprint of the model whose image tower this one has: its own, unless only text was tuned.

        Embeddings of pictures that were made by a model of the same images_fingerprint can be searched with
        this one. A folder that `imret finetune --tune text` wrote says in training.json whose tower it kept;
        the word counts only for the very weights it was written with.

        Raises:
            ModelError: If the weights cannot be read.
        """
        try:
            training = json.loads((self.weights.parent / "training.json").read_text(encoding="utf-8"))
            image_tower = training["images_of"]
            fingerprint, weights_sha256 = str(image_tower["fingerprint"]), image_tower["weights_sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return self.fingerprint
        if not re.fullmatch(r"[0-9a-f]{64}", fingerprint) or weights_sha256 != _weights_digest(self.weights):
            return self.fingerprint
        return fingerprint


class ModelInfo:
    """What the files of a model tell without loading it; shared by everything that encodes with one.

    Attributes:
        files: The model's files.
    """

    files: ModelFiles

    @property
    def model_id(self) -> str:
        """The name that gives this model again."""
        return self.files.model_id

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return self.files.dim

    @property
    def fingerprint(self) -> str:
        """64 hex digits over weights, architecture and preprocessing; see `ModelFiles.fingerprint`."""
        return self.files.fingerprint

    @property
    def images_fingerprint(self) -> str:
        """64 hex digits that a collection is bound to; see `ModelFiles.images_fingerprint`."""
        return self.files.images_fingerprint

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the input of the image tower."""
        return self.files.preprocess


def _effective(value: Any) -> Any:
    """Return a configuration without the keys that change no embedding."""
    if isinstance(value, Mapping):
        return {key: _effective(entry) for key, entry in value.items() if key not in _WITHOUT_EFFECT}
    return [_effective(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _weights_digest(path: Path) -> str:
    """Return the sha256 of a file, from the cache where path, size and mtime are unchanged."""
    try:
        stat = path.stat()
        key = f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}"
        entry = cache_dir() / "fingerprints" / f"{hashlib.sha256(os.fsencode(key)).hexdigest()}.txt"
        with contextlib.suppress(OSError, ValueError):
            cached = entry.read_text(encoding="ascii").strip()
            if re.fullmatch(r"[0-9a-f]{64}", cached):
                return cached
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
        settled = path.stat().st_mtime_ns == stat.st_mtime_ns and time.time() - stat.st_mtime > _UNSETTLED_S
    except OSError as error:
        raise ModelError(f"Cannot read the weights '{path}': {error.strerror or error}.") from error
    if settled:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(entry, digest.hexdigest())
    return digest.hexdigest()
