"""Fixtures that more than one test file leans on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_imret_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's own store, cache and settings."""
    monkeypatch.setenv("IMRET_HOME", str(tmp_path_factory.mktemp("imret-home")))
    for name in ("IMRET_DB", "IMRET_SERVER", "QDRANT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and small real models beside the checkout; absent on most machines."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real photos and models of ../shared/data, which are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real CLIP with random weights, small enough for milliseconds, in open_clip's folder layout."""
    return write_random_model(tmp_path_factory.mktemp("models") / "random", seed=0)


def write_random_model(folder: Path, *, seed: int, dim: int = 32) -> Path:
    """Write a CLIP of 32 pixels with random weights; another seed is another encoder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    model_cfg = {
        "embed_dim": dim,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    preprocess_cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": 32}
    torch.manual_seed(seed)
    model = open_clip.CLIP(**model_cfg)
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The default architecture at full size, ViT-H/14, with 986 M random weights; 4 GB on disk."""
    folder = write_full_size(tmp_path_factory.mktemp("full-size"))
    yield folder
    (
        folder / "open_clip_model.safetensors"
    ).unlink()  # pytest keeps the folders of three runs; not 4 GB of each


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


def draw_picture(file: Path, *, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    """Write a picture that no other seed makes: a few random rectangles."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = int(rng.integers(0, size[0] - 8)), int(rng.integers(0, size[1] - 8))
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.rectangle(
            (left, top, left + int(rng.integers(4, 40)), top + int(rng.integers(4, 30))), fill=colour
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return file
