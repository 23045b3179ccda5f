"""The files of a model, besides its weights, that decide how it reads texts.

Only tokenizers and text towers of Hugging Face's `transformers` have any: open_clip brings its own tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imret.errors import ModelError
from imret.files import irregular

LOCAL_PREFIX = "local-dir:"
TEXT_TOWER_FOLDER = "text_tower"  # of a model folder; holds the configuration of a tower of transformers

# One of these in a folder is a vocabulary that transformers can read.
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
# What transformers reads beside it; config.json tells the class of a tokenizer that does not say it.
_BESIDE_IT = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "config.json",
)


def text_files(model_cfg: Mapping[str, Any], tokenizer: str, weights: Path) -> dict[str, Path]:
    """Return the files on disk that a model's texts are read with, by their names in its folder.

    Args:
        model_cfg: open_clip's architecture configuration.
        tokenizer: What `open_clip.get_tokenizer` takes for the model.
        weights: The checkpoint file, or the index of several.

    Raises:
        ModelError: If there is a pipe or a device among them.
    """
    text_cfg = model_cfg["text_cfg"]
    files: dict[str, Path] = {}
    if text_cfg.get("hf_tokenizer_name") and tokenizer.startswith(LOCAL_PREFIX):
        folder = Path(tokenizer.removeprefix(LOCAL_PREFIX))
        refuse_irregular_files(folder)
        files = {name: folder / name for name in (*VOCABULARIES, *_BESIDE_IT)}
    if "hf_model_name" in text_cfg:
        refuse_irregular_files(text_tower_config(weights).parent)
        files[f"{TEXT_TOWER_FOLDER}/config.json"] = text_tower_config(weights)
    return {name: path for name, path in files.items() if path.is_file()}


def refuse_irregular_files(folder: Path) -> None:
    """Refuse a folder of a tokenizer or a text tower with a pipe or a device in it.

    transformers reads more files than are named here, and from such a one it would read for ever.

    Raises:
        ModelError: If there is one.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.exists() and not path.is_dir() and (fault := irregular(path)):
            raise ModelError(f"Cannot use the model in '{folder}': {path.name!r} is {fault}, not a file.")


def text_tower_config(weights: Path) -> Path:
    """Return where the configuration of a text tower of transformers lies, if a model brings it."""
    return weights.parent / TEXT_TOWER_FOLDER / "config.json"
