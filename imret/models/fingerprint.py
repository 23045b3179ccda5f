"""What a model is made of, and the fingerprint that tells it from every other."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from imret.images.preprocess import Preprocess
from imret.models.text_files import text_files
from imret.models.training_record import TRAINING_NAME, read_training_record
from imret.models.weights_digest import digest_bytes, digest_image_tower_as, digest_tensors

# Keys that steer training or the download of a base model and leave every embedding as it is.
_WITHOUT_EFFECT = frozenset({"timm_model_pretrained", "timm_drop", "timm_drop_path", "hf_model_pretrained"})


_HALF = 32  # digits of a fingerprint


@dataclass(frozen=True)
class ModelFiles:
    """One model on disk, complete enough to build it.

    Attributes:
        model_id: The name that resolves to this model again: as typed for a tag or a hub repository, an
            absolute path for a folder, `ARCH:PATH` for a checkpoint file.
        model_cfg: open_clip's architecture configuration.
        preprocess: What the image tower expects.
        weights: The checkpoint file, symbolic links resolved; or the index of several, as it is called.
        tokenizer: What `open_clip.get_tokenizer` takes for this model.
        by_default: The same checkpoint with open_clip's defaults for what is published otherwise of its
            architecture; None where that is nothing. So imret read them once, and collections are made so.
    """

    model_id: str
    model_cfg: Mapping[str, Any]
    preprocess: Preprocess
    weights: Path
    tokenizer: str
    by_default: ModelFiles | None = field(default=None, compare=False, repr=False)

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.model_cfg["embed_dim"])

    @property
    def text_files(self) -> dict[str, Path]:
        """What texts are read with besides weights, by name; none of a model with open_clip's tokenizer."""
        return text_files(self.model_cfg, self.tokenizer, self.weights)

    @cached_property
    def training_record(self) -> dict[str, Any]:
        """What `imret finetune` noted of these very weights; empty if it did not make them.

        Raises:
            ModelError: If the weights cannot be read.
        """
        return read_training_record(self.weights)

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that change with the weights, the architecture, the preprocessing or the text files.

        The first 32 are of the whole model, the others of what makes embeddings of pictures alone. The first
        call reads the weights once (a few seconds for 4 GB); the hash is kept in the cache folder by path,
        size and modification time. Of the weights it is the tensors that count: the file's name, place and
        kind do not enter it.

        Raises:
            ModelError: If the weights cannot be read.
        """
        weights = digest_tensors(self.weights)
        read_with = {name: digest_bytes(path) for name, path in self.text_files.items()}
        whole = self._hashed(weights.tensors, self.model_cfg, text_files=read_with)
        return whole[:_HALF] + self._hash_of_tower(weights.image_tower)

    def _hash_of_tower(self, weights: str) -> str:
        image_tower = {
            "embed_dim": self.model_cfg["embed_dim"],
            "vision_cfg": self.model_cfg["vision_cfg"],
            "quick_gelu": bool(self.model_cfg.get("quick_gelu", False)),
        }
        return self._hashed(weights, image_tower)[:_HALF]

    @cached_property
    def images_fingerprint(self) -> str:
        """The fingerprint of the model whose image tower this one has: its own, unless only text was tuned.

        Embeddings of pictures that were made by a model of the same images_fingerprint can be searched with
        this one. A folder that `imret finetune --tune text` wrote says in training.json whose tower it kept,
        and in which precision that was; the word counts if this tower is that one, value by value.

        Raises:
            ModelError: If the weights cannot be read.
        """
        return self._kept_tower() or self.fingerprint

    @cached_property
    def former_images_fingerprint(self) -> str:
        """What `images_fingerprint` was until imret hashed tensors: of the bytes of the file, both towers.

        Raises:
            ModelError: If the weights cannot be read.
        """
        return self._hashed(digest_bytes(self.weights), self.model_cfg)

    def embeds_as(self, fingerprint: str) -> bool:
        """Whether pictures are embedded by this model as by the one that a collection is bound to.

        Args:
            fingerprint: Of the collection: an images_fingerprint, be it a former one.

        Raises:
            ModelError: If the weights cannot be read.
        """
        same_tower = fingerprint[_HALF:] == self.images_fingerprint[_HALF:]
        return same_tower or fingerprint == self.former_images_fingerprint

    def as_made(self, fingerprint: str) -> ModelFiles:
        """Return what embeds as a collection was: `by_default` if only that does, else this.

        Args:
            fingerprint: Of the collection.

        Raises:
            ModelError: If the weights cannot be read.
        """
        other = self.by_default
        if other is None or self.embeds_as(fingerprint) or not other.embeds_as(fingerprint):
            return self
        return other

    def _hashed(
        self, weights: str, model_cfg: Mapping[str, Any], *, text_files: Mapping[str, str] | None = None
    ) -> str:
        identity = {
            "weights": weights,
            "model_cfg": _effective(model_cfg),
            "preprocess": asdict(self.preprocess),
        }
        if text_files:
            identity["text_files"] = text_files
        canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _kept_tower(self) -> str | None:
        """Return the fingerprint of the model whose image tower this one kept, if training.json names one.

        None also if this tower is not that one, in the precision that it had there.
        """
        images_of = self.training_record.get("images_of")
        if not isinstance(images_of, dict):
            return None
        fingerprint = images_of.get("image_tower")
        if not isinstance(fingerprint, str) or not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
            return None
        # One for all tensors; older folders do not say it.
        stated = images_of.get("dtypes")
        for dtypes in [stated] if isinstance(stated, dict) else [{}, {"": "F16"}, {"": "BF16"}]:
            tower = digest_image_tower_as(self.weights, dtypes)
            if tower is not None and self._hash_of_tower(tower) == fingerprint[_HALF:]:
                return fingerprint
        warnings.warn(
            f"'{self.weights.parent / TRAINING_NAME}' says that the image tower is that of another model, "
            "and it is not: collections of that one are not searched with this",
            UserWarning,
            stacklevel=2,
        )
        return None


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

    def embeds_as(self, fingerprint: str) -> bool:
        """Whether this model made a collection of that fingerprint; see `ModelFiles.embeds_as`."""
        return self.files.embeds_as(fingerprint)

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes the input of the image tower."""
        return self.files.preprocess


def _effective(value: Any) -> Any:
    """Return a configuration without the keys that change no embedding."""
    if isinstance(value, Mapping):
        return {key: _effective(entry) for key, entry in value.items() if key not in _WITHOUT_EFFECT}
    return [_effective(entry) for entry in value] if isinstance(value, (list, tuple)) else value
