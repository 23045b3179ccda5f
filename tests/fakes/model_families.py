"""One small member of each family of open_clip's models: random weights, tokenizers made on the spot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.coca_model import CoCa
from safetensors.torch import save_file

from imret.datasets.phrases import read_phrases

_VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
_TEXT = {"context_length": 32, "width": 32, "heads": 2, "layers": 2}
_CLIP_TEXT = {**_TEXT, "context_length": 77, "vocab_size": 49408}


def _timm(name: str, size: int, **more: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_model_pretrained": False, "image_size": size, **more}


# By family: the architecture, and what its tokenizer is, "" for open_clip's own. An "hf" is the text tower's
# type of transformers.
FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {"embed_dim": 32, "vision_cfg": _VIT, "text_cfg": _CLIP_TEXT},
    "resnet": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": _CLIP_TEXT,
    },
    "convnext": {"embed_dim": 32, "vision_cfg": _timm("test_convnext", 160), "text_cfg": _CLIP_TEXT},
    "eva02": {
        "embed_dim": 32,
        "vision_cfg": _timm("eva02_tiny_patch14_224", 224, timm_pool="token", timm_proj=None),
        "text_cfg": _CLIP_TEXT,
        "custom_text": True,
    },
    "pe": {
        "embed_dim": 32,
        "vision_cfg": _timm("vit_pe_core_tiny_patch16_384", 384, timm_pool="map", timm_proj=None),
        "text_cfg": _CLIP_TEXT,
        "custom_text": True,
    },
    "mobileclip": {
        "embed_dim": 32,
        "vision_cfg": _timm("fastvit_mci0", 256, timm_pool="avg", timm_proj=None, timm_drop_path=0.0),
        "text_cfg": {**_CLIP_TEXT, "no_causal_mask": True},
        "custom_text": True,
    },
    "coca": {
        "embed_dim": 32,
        "vision_cfg": {**_VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**_CLIP_TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 76, "width": 32, "heads": 2, "layers": 1},
        "custom_text": True,
    },
    "siglip": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "vision_cfg": _timm("test_vit", 160, timm_pool="map", timm_proj="none"),
        "text_cfg": {
            **_TEXT,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "hf_tokenizer_name": "unigram",
            "tokenizer_kwargs": {"clean": "canonicalize"},
        },
        "custom_text": True,
    },
    "clipa": {
        "embed_dim": 32,
        "vision_cfg": {**_VIT, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {
            **_TEXT,
            "pool_type": "last",
            "no_causal_mask": True,
            "hf_tokenizer_name": "wordpiece",
            "tokenizer_kwargs": {"strip_sep_token": True},
        },
    },
    "worldwide": {
        "embed_dim": 32,
        "vision_cfg": _VIT,
        "text_cfg": {**_TEXT, "pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "bytes"},
    },
    "roberta": {
        "embed_dim": 32,
        "vision_cfg": _VIT,
        "text_cfg": {"hf_tokenizer_name": "bytes", "hf_model_name": "roberta", "hf_proj_type": "mlp"},
    },
    "xlm-roberta": {
        "embed_dim": 32,
        "vision_cfg": _VIT,
        "text_cfg": {"hf_tokenizer_name": "bytes", "hf_model_name": "xlm-roberta", "hf_proj_type": "linear"},
    },
    "mt5": {
        "embed_dim": 32,
        "vision_cfg": _VIT,
        "text_cfg": {"hf_tokenizer_name": "unigram", "hf_model_name": "mt5", "hf_proj_type": "linear"},
    },
    "nllb": {
        "embed_dim": 32,
        "vision_cfg": _VIT,
        "text_cfg": {"hf_tokenizer_name": "unigram", "hf_model_name": "m2m_100", "hf_proj_type": "linear"},
    },
}


def write_family(folder: Path, family: str, *, seed: int = 0) -> Path:
    """Write a member of a family in open_clip's folder layout; what is of transformers needs that package."""
    cfg = deepcopy(FAMILIES[family])
    text_cfg = cfg["text_cfg"]
    folder.mkdir(parents=True)
    if "hf_tokenizer_name" in text_cfg:
        tokenizer = _TOKENIZERS[text_cfg["hf_tokenizer_name"]]()
        tokenizer.save_pretrained(folder)
        if "hf_model_name" in text_cfg:
            tower = folder.with_name(f"{folder.name}-text-config")
            _text_tower_config(text_cfg["hf_model_name"], len(tokenizer)).save_pretrained(tower)
            text_cfg |= {"hf_model_name": str(tower), "hf_model_pretrained": False}
        else:
            text_cfg["vocab_size"] = len(tokenizer)
    torch.manual_seed(seed)
    model = build_model(cfg)
    for name, buffer in model.named_buffers():
        if name.endswith(
            "running_var"
        ):  # a random batch norm without statistics blows up from layer to layer
            buffer.fill_(1.0)
    if cfg.get("init_logit_bias") is not None:  # as SigLIP's were learnt
        model.logit_scale.data.fill_(math.log(117.3))  # type: ignore[union-attr, operator]
        model.logit_bias.data.fill_(-12.9)  # type: ignore[union-attr, operator]
    size = cfg["vision_cfg"]["image_size"]
    config = {
        "model_cfg": cfg,
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": size},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def build_model(model_cfg: dict[str, Any]) -> torch.nn.Module:
    """Return the model of an architecture, with random weights."""
    cfg = deepcopy(model_cfg)
    custom = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    kind: Any = CoCa if "multimodal_cfg" in cfg else open_clip.CustomTextCLIP if custom else open_clip.CLIP
    model: torch.nn.Module = kind(**cfg)
    return model


def _text_tower_config(kind: str, vocab_size: int) -> Any:
    import transformers

    if kind == "mt5":
        return transformers.MT5Config(
            vocab_size=vocab_size, d_model=32, d_kv=16, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0
        )
    if kind == "m2m_100":
        return transformers.M2M100Config(
            vocab_size=vocab_size,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            max_position_embeddings=80,
            pad_token_id=0,
        )
    config = {"roberta": transformers.RobertaConfig, "xlm-roberta": transformers.XLMRobertaConfig}[kind]
    return config(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=80,
        pad_token_id=1,
    )


# ---- Tokenizers ------------------------------------------------------------------------------------------


def _corpus() -> Iterator[str]:
    yield from read_phrases()
    yield from ("a photo of a bird", "a close-up of a mushroom", "a picture of a plant")


def unigram_tokenizer() -> Any:
    """Return a tokenizer of pieces, as T5, SigLIP, mT5 and NLLB have one: `text </s>`, filled with <pad>."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def wordpiece_tokenizer() -> Any:
    """Return a tokenizer of words and parts of words, as BERT and CLIPA have one."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return transformers.BertTokenizerFast(tokenizer_object=tokenizer)


def bytes_tokenizer() -> Any:
    """Return a tokenizer of byte pairs, as RoBERTa has one: `<s> text </s>`, filled with <pad>."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return transformers.RobertaTokenizerFast(tokenizer_object=tokenizer)


_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "unigram": unigram_tokenizer,
    "wordpiece": wordpiece_tokenizer,
    "bytes": bytes_tokenizer,
}
