"""What training starts from: a pretrained model, or an architecture with random weights.

Hides the difference between the two, and the tokenizer. Pretrained models are found and loaded by imret.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip.factory
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from imret.errors import ModelError
from imret.images.preprocess import Preprocess
from imret.models.checkpoint import Checkpoint, name_dtype
from imret.models.encoder import load_clip
from imret.models.fast.tokenizer import shortened
from imret.models.fingerprint import ModelFiles
from imret.models.resolve import resolve_model
from imret.models.tokenizer import load_tokenizer, require_transformers

# Zhai et al. (2023), "Sigmoid Loss for Language Image Pre-Training", section 3.1; so does open_clip.
_SIGMOID_LOGIT_SCALE = math.log(10)
_ARCHITECTURES = Path(__file__).parent.parent / "architectures"


@dataclass(frozen=True)
class Base:
    """A model to start from, not yet built.

    Attributes:
        model_id: Name to find it by again.
        fingerprint: Hash of weights, architecture and preprocessing; without weights, of the other two.
        model_cfg: open_clip's architecture configuration.
        preprocess: What the image tower expects.
        files: Where the weights are; None to start from scratch.
        tokenizer_source: What `open_clip.get_tokenizer` takes for this model.
    """

    model_id: str
    fingerprint: str
    model_cfg: Mapping[str, Any]
    preprocess: Preprocess
    files: ModelFiles | None
    tokenizer_source: str

    @property
    def images_of(self) -> dict[str, Any] | None:
        """What training.json says of the image tower of a model that kept this one's; None from scratch.

        See `ModelFiles.images_fingerprint`: whose it is, and in which precision it lies there, by which what
        is kept of it can be known again.
        """
        if self.files is None:
            return None
        record = self.files.training_record.get("images_of")
        if isinstance(record, dict) and record.get("image_tower") == self.files.images_fingerprint:
            return {key: record[key] for key in ("image_tower", "dtypes") if key in record}  # of its own base
        tensors = Checkpoint(self.files.weights).tensors.items()
        dtypes = {name: name_dtype(tensor) for name, tensor in tensors if name.startswith("visual.")}
        shorter = {name: dtype for name, dtype in dtypes.items() if dtype in ("F16", "BF16")}
        if len(shorter) == len(dtypes) and len(set(shorter.values())) == 1:
            shorter = {"": next(iter(shorter.values()))}
        return {"image_tower": self.files.images_fingerprint, "dtypes": shorter}

    @property
    def context_length(self) -> int:
        """Tokens that the text tower reads, the first and the last included."""
        return int(self.model_cfg["text_cfg"].get("context_length", 77))

    def build(self, device: torch.device, *, seed: int) -> nn.Module:
        """Return the model in float32 on a device; from scratch, with the weights that `seed` draws.

        Raises:
            ModelError: If it cannot be built or its weights cannot be read.
        """
        if self.files is not None:
            return load_clip(self.files, device=device, dtype=torch.float32)
        cfg = deepcopy(dict(self.model_cfg))
        custom_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
        if cfg.get("init_logit_bias") is not None:  # a sigmoid's scale begins lower than a softmax's
            cfg.setdefault("init_logit_scale", _SIGMOID_LOGIT_SCALE)
        kind = CustomTextCLIP if custom_text else CLIP
        torch.manual_seed(seed)
        try:
            model: nn.Module = kind(**cfg)
        except Exception as error:  # whatever timm or open_clip finds wrong with a configuration
            raise ModelError(
                f"cannot build the architecture {self.model_id!r}: {str(error).splitlines()[0]}."
            ) from error
        return model.to(device)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, as a search with the tuned model will load it; longer texts are cut.

        Raises:
            ModelError: If it cannot be loaded.
        """
        return load_tokenizer(self.tokenizer_source, self.model_cfg["text_cfg"], model_id=self.model_id)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the (B, context length) token ids of B texts; longer ones are cut.

        Raises:
            ModelError: If the tokenizer cannot be loaded.
        """
        tokens: Tensor = self.tokenizer(list(map(shortened, texts)), context_length=self.context_length)
        return tokens


def find_base(
    model: str,
    *,
    from_scratch: bool = False,
    arch: str | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Base:
    """Find what to start from.

    Args:
        model: A model's name as `imret.models.resolve.resolve_model` takes it; from scratch, an
            architecture: one of open_clip's, or `imret-tiny`.
        from_scratch: Whether to begin with random weights.
        arch: Architecture of a bare checkpoint file.
        notify: Called with a sentence before a download starts.

    Raises:
        ModelError: If there is no such model, or it is of a kind that cannot be trained here.
    """
    base = (
        _architecture(model) if from_scratch else _pretrained(resolve_model(model, arch=arch, notify=notify))
    )
    if "multimodal_cfg" in base.model_cfg:
        raise ModelError(
            f"{model!r} is a CoCa model, whose captioner this trainer would spoil. "
            "Start from a CLIP with two towers, such as the default."
        )
    require_transformers(base.model_cfg["text_cfg"], base.model_id)
    return base


def _pretrained(files: ModelFiles) -> Base:
    return Base(files.model_id, files.fingerprint, files.model_cfg, files.preprocess, files, files.tokenizer)


def _architecture(name: str) -> Base:
    own = {path.stem: path for path in _ARCHITECTURES.glob("*.json")}
    if name in own:
        config = json.loads(own[name].read_text(encoding="utf-8"))
        model_cfg, stated = config["model_cfg"], config["preprocess_cfg"]
        shapes = {key: tuple(stated[key]) for key in ("size", "mean", "std")}
        preprocess = Preprocess(**{**stated, **shapes})
    else:
        model_cfg = open_clip.factory.get_model_config(name)  # type: ignore[no-untyped-call]
        if model_cfg is None:
            known = [*own, *open_clip.factory.list_models()]  # type: ignore[no-untyped-call]
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(own)
            raise ModelError(
                f"{name!r} is no architecture to train from scratch. Nearest: {', '.join(nearest)}. "
                "To start from a pretrained model, leave out --from-scratch."
            )
        size = model_cfg["vision_cfg"].get("image_size", 224)
        preprocess = Preprocess(size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[1])))
    for tower, key in (("vision_cfg", "timm_model_pretrained"), ("text_cfg", "hf_model_pretrained")):
        if key in model_cfg[tower]:
            model_cfg[tower][key] = False
    canonical = json.dumps({"model_cfg": model_cfg, "preprocess": asdict(preprocess)}, sort_keys=True)
    return Base(name, hashlib.sha256(canonical.encode()).hexdigest(), model_cfg, preprocess, None, name)
