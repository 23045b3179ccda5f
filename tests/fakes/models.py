"""Real CLIPs with random weights, small and at full size, in open_clip's folder layout."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from imret.models.known_models import FOLDER


def write_random_model(folder: Path, *, seed: int, dim: int = 32, sigmoid: bool = False) -> Path:
    """Write a CLIP of 32 pixels with random weights; another seed is another encoder.

    With `sigmoid` it judges each pair on its own, by a scale and a bias such as those of SigLIP.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    model_cfg: dict[str, Any] = {
        "embed_dim": dim,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    if sigmoid:
        model_cfg["init_logit_bias"] = -10
    preprocess_cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": 32}
    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg)
    if sigmoid:
        model.logit_scale.data.fill_(math.log(117.3))
        model.logit_bias.data.fill_(-12.9)
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def write_training_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the training.json of a model folder as `imret finetune` does, of the weights in it."""
    from imret.models.weights_digest import digest_tensors

    weights = digest_tensors(folder / "open_clip_model.safetensors").tensors
    (folder / "training.json").write_text(json.dumps({**record, "weights": weights}))


def share_known_models(home: Path) -> Path:
    """Make a folder the home of a user who has chosen the models of the user that imret runs for."""
    known = Path(os.environ["IMRET_HOME"]) / FOLDER
    known.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    (home / FOLDER).symlink_to(known.resolve())
    return home


def write_full_size(folder: Path) -> Path:
    """Write a ViT-H/14 with random weights into a folder that exists, in open_clip's layout."""
    # Tensor by tensor: never more than one in memory.
    import torch
    from open_clip.factory import get_model_config
    from open_clip.model import CLIP

    registry: Any = get_model_config
    model_cfg = registry("ViT-H-14")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))
    with torch.device("meta"):
        state = CLIP(**model_cfg).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 986_109_441
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in state.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path = folder / "open_clip_model.safetensors"
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, tensor in state.items():
            if tensor.dim() == 0:
                values = torch.tensor(4.6052)
            elif ".ln_" in name or name.startswith("ln_"):
                values = torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)
            else:
                values = torch.empty(tensor.shape).normal_(generator=generator)
                values *= 0.02 if tensor.dim() < 2 or "embedding" in name else tensor.shape[-1] ** -0.5
            file.write(values.numpy().tobytes())
    return folder
