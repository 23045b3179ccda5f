"""What a model folder holds for its texts besides weights: the tokenizer and the configuration of the tower.

Only text towers and tokenizers of Hugging Face's `transformers` need files: open_clip brings its own
tokenizer. Stock open_clip reads the tokenizer of a folder from that folder and from nowhere else.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.model.base_model import Base
from imret.errors import ModelError, summary
from imret.models.published import CONFIG_NAME
from imret.models.text_files import LOCAL_PREFIX, TEXT_TOWER_FOLDER
from imret.models.tokenizer import load_tokenizer

# Say where the base's tokenizer lay, and not how it reads texts.
_WHERE_IT_LAY = ("subfolder", "revision", "trust_remote_code")
# Besides the texts of a run: capitals, signs, other scripts, entities, spaces, and a text that is cut.
_ODD_TEXTS = (
    "A Red-backed BIRD!",
    "naïve café, 3.5 µm",
    "蘑菇 鸟",
    "fish &amp; chips\n  twice",
    "word " * 200,
)


def shipped_config(model_cfg: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return an architecture as a folder states it: nothing is fetched, and the tokenizer lies beside it.

    Args:
        model_cfg: open_clip's architecture configuration.
        tokenizer: `Base.tokenizer`.
    """
    cfg: dict[str, Any] = json.loads(json.dumps(dict(model_cfg)))
    text_cfg = cfg["text_cfg"]
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in text_cfg:
        text_cfg["hf_model_pretrained"] = False
    if not hasattr(tokenizer, "save_pretrained"):
        return cfg
    for key in _WHERE_IT_LAY:
        (text_cfg.get("tokenizer_kwargs") or {}).pop(key, None)
    if not text_cfg.get("hf_tokenizer_name"):
        # Known to open_clip by the name of the architecture, as SigLIP's was; a folder has no such name.
        text_cfg["hf_tokenizer_name"] = "tokenizer.json"
        text_cfg["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return cfg


def write_text_files(folder: Path, tokenizer: Any, text_tower: object) -> None:
    """Write the tokenizer, and the configuration of a text tower, as far as they are of transformers.

    Args:
        folder: Where to; it exists.
        tokenizer: `Base.tokenizer`.
        text_tower: Its `config` is written, if it has one.
    """
    if hasattr(tokenizer, "save_pretrained"):
        # What it was last asked to cut and to fill up is no part of it, and would be written.
        tokenizer.tokenizer("", padding=False, truncation=False)
        tokenizer.save_pretrained(folder)
        _name_class_for_all_versions(folder / "tokenizer_config.json")
    if hasattr(text_tower, "config"):
        text_tower.config.save_pretrained(folder / TEXT_TOWER_FOLDER)


def _name_class_for_all_versions(path: Path) -> None:
    """Call the class of a plain tokenizer by the name that transformers 4 and 5 both know."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_lost_tokenizer(base: Base, texts: Sequence[str]) -> None:
    """Check before anything is trained that the tokenizer, written to a folder, reads texts as it does now.

    Args:
        base: The model to start from.
        texts: To compare on, besides some odd ones.

    Raises:
        ModelError: If it cannot be loaded or written, or gives other tokens from the folder.
    """
    tokenizer = base.tokenizer
    if not hasattr(tokenizer, "save_pretrained"):  # open_clip's own, which it brings
        return
    texts = [*texts, *_ODD_TEXTS]
    with tempfile.TemporaryDirectory(prefix="imret-tokenizer-") as name:
        folder, cfg = Path(name), shipped_config(base.model_cfg, tokenizer)
        (folder / CONFIG_NAME).write_text(json.dumps({"model_cfg": cfg}), encoding="utf-8")
        try:
            write_text_files(folder, tokenizer, nn.Identity())
        except Exception as error:  # transformers raises what its many tokenizers raise
            raise ModelError(
                f"the tokenizer of {base.model_id!r} cannot be written into the folder of the tuned model: "
                f"{summary(error)}. Start from another model."
            ) from error
        again = load_tokenizer(f"{LOCAL_PREFIX}{folder}", cfg["text_cfg"], model_id=base.model_id)
        differing = [
            text
            for text, now, later in zip(
                texts, base.tokenize(texts), again(texts, context_length=base.context_length), strict=True
            )
            if not torch.equal(now, later)
        ]
    if differing:
        raise ModelError(
            f"the tokenizer of {base.model_id!r} reads {differing[0][:60]!r} otherwise once it is written "
            "into the folder of a tuned model, which would be searched with other words than it was trained "
            "on. Install another version of transformers, or start from another model."
        )
