"""Vision transformers run from their weights: the features of open_clip's, without open_clip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from imret.errors import ModelError
from imret.models.clip import load_clip
from imret.models.encoder import Encoder
from imret.models.fast.vit import VisionTransformer, load_vision_transformer
from imret.models.resolve import resolve_model
from tests import ROOT
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture
from tests.models.test_encoder import COCA, VIT, custom, native, write_model

CPU = torch.device("cpu")
WEIGHTS = "open_clip_model.safetensors"

PLAIN = {
    "as it is": native(),
    "two towers": custom(),
    "QuickGELU": native(quick_gelu=True),
    "scaled terms": native(vision_cfg={**VIT, "ls_init_value": 0.3}),
    "no norm before": native(vision_cfg={**VIT, "no_ln_pre": True}),
    "mean of places": native(vision_cfg={**VIT, "pool_type": "avg"}),
    "mean of places, then its norm": native(
        vision_cfg={**VIT, "pool_type": "avg", "final_ln_after_pool": True}
    ),
    "class token, then its norm": native(vision_cfg={**VIT, "final_ln_after_pool": True}),
    "another epsilon": native(vision_cfg={**VIT, "norm_kwargs": {"eps": 0.01}}),
    "positions that are not learned": native(vision_cfg={**VIT, "pos_embed_type": "sin_cos_2d"}),
    "a narrow MLP": native(vision_cfg={**VIT, "mlp_ratio": 2.5}),
    "pictures that are not square": native(vision_cfg={**VIT, "image_size": [32, 48]}),
    "dropout that is for training": native(vision_cfg={**VIT, "patch_dropout": 0.5}),
}
OTHERS = {
    "a ResNet": native(vision_cfg={"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}),
    "timm's": custom(timm="test_vit"),
    "CoCa": COCA,
    "normed queries": native(vision_cfg={**VIT, "qk_norm": True, "block_type": "custom"}),
    "an activation with options": native(vision_cfg={**VIT, "act_kwargs": {"approximate": "tanh"}}),
}


def lived_in(folder: Path) -> Path:
    """Give each norm, scale and bias values of its own, as training does."""
    state = load_file(folder / WEIGHTS)
    torch.manual_seed(7)
    for name, tensor in state.items():
        if name.startswith("visual.") and tensor.dim() == 1 and "class" not in name:
            if name.endswith("bias"):
                state[name] = 0.3 * torch.randn(tensor.shape)
            else:
                state[name] = tensor * torch.exp(0.5 * torch.randn(tensor.shape))
    save_file(state, folder / WEIGHTS)
    return folder


def both(folder: Path, dtype: torch.dtype) -> tuple[VisionTransformer, Any, torch.Tensor]:
    """Return the tower, open_clip's, and pixels for them."""
    files = resolve_model(folder)
    vision = load_vision_transformer(files, device=CPU, dtype=dtype)
    assert vision is not None
    pixels = torch.randn(3, 3, *files.preprocess.size, generator=torch.Generator().manual_seed(1))
    return vision, load_clip(files, towers=("image",), dtype=dtype), pixels.to(dtype)


@pytest.mark.parametrize("name", PLAIN)
@torch.inference_mode()
def test_features_are_those_of_open_clip(name: str, tmp_path: Path) -> None:
    vision, stock, pixels = both(lived_in(write_model(tmp_path / "model", PLAIN[name])), torch.float32)
    torch.testing.assert_close(vision.encode_image(pixels), stock.encode_image(pixels), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
@torch.inference_mode()
def test_in_bfloat16_they_are_as_near_to_float32_as_open_clips(name: str, tmp_path: Path) -> None:
    folder = lived_in(write_model(tmp_path / "model", PLAIN[name]))
    _, exact, pixels = both(folder, torch.float32)
    vision, stock, rounded = both(folder, torch.bfloat16)
    expected = exact.encode_image(pixels)

    def distance(features: torch.Tensor) -> float:
        return float(1 - torch.nn.functional.cosine_similarity(features.float(), expected).mean())

    assert distance(vision.encode_image(rounded)) < 1.5 * distance(stock.encode_image(rounded)) + 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_other_towers_are_left_to_open_clip(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", OTHERS[name])
    assert load_vision_transformer(resolve_model(folder), device=CPU, dtype=torch.float32) is None
    encoder = Encoder(folder, device="cpu", precision="fp32")
    assert not isinstance(encoder._tower("image"), VisionTransformer)


@pytest.mark.parametrize("fault", ["missing", "unknown", "other shape"])
def test_weights_that_do_not_fit_are_left_to_open_clip_and_its_message(fault: str, tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=0)
    state = load_file(folder / WEIGHTS)
    name = "visual.transformer.resblocks.0.mlp.c_fc.bias"
    if fault == "unknown":
        state["visual.extra"] = state[name].clone()
    elif fault == "missing":
        del state[name]
    else:
        state[name] = state[name][:-1].clone()
    save_file(state, folder / WEIGHTS)
    assert load_vision_transformer(resolve_model(folder), device=CPU, dtype=torch.float32) is None
    with pytest.raises(ModelError, match=fault):
        Encoder(folder, device="cpu").encode_pixels(np.zeros((1, 32, 32, 3), dtype=np.uint8))


def test_towers_are_plain_where_they_are_asked_to_be(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    quick = Encoder(random_model, device="cpu", precision="fp32")
    rows = quick.encode_pixels(pixels)
    assert isinstance(quick._tower("image"), VisionTransformer)
    monkeypatch.setenv("IMRET_TOWERS", "plain")
    plain = Encoder(random_model, device="cpu", precision="fp32")
    np.testing.assert_allclose(rows, plain.encode_pixels(pixels), atol=1e-5)
    assert not isinstance(plain._tower("image"), VisionTransformer)


def test_pictures_are_encoded_without_open_clip(random_model: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from imret.models.encoder import Encoder\n"
        "rows = Encoder(sys.argv[1], device='cpu').encode_images([sys.argv[2]])\n"
        "assert rows.shape[0] == 1\n"
        "print(*sorted({'open_clip', 'torchvision', 'timm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(random_model), str(draw_picture(tmp_path / "a.png"))],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.split() == []
