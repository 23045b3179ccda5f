"""Batch norms in the convolutions before them: which are folded, which must not be, and the same vectors."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d
from torch import nn

from imret.models.encoder import Encoder
from imret.models.fast.fuse_batch_norm import fuse_batch_norms
from tests.fakes.pictures import draw_picture

PIXELS = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) - 0.5


def lived_in(tower: nn.Module) -> nn.Module:
    """Give a tower's batch norms statistics, as training would have, and put it into eval mode."""
    generator = torch.Generator().manual_seed(2)
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for value in (module.running_mean, module.running_var, module.weight, module.bias):
                if value is not None:
                    value.data.uniform_(0.5, 1.5, generator=generator)
    return tower.eval()


def norms_in(tower: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in tower.modules())


def folded(tower: nn.Module) -> int:
    """Fold; check that the tower gives what it gave, also for pixels it was not tried on; return how many."""
    others = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        before = tower(others)
        n = fuse_batch_norms(tower, tower, PIXELS)
        torch.testing.assert_close(tower(others), before, atol=1e-4, rtol=1e-4)
    return n


def row(*modules: nn.Module) -> nn.Module:
    return lived_in(nn.Sequential(*modules))


@pytest.mark.parametrize(
    "tower",
    [
        row(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)),
        row(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)),
        row(nn.Conv2d(3, 6, 3, stride=2, padding=1), BatchNormAct2d(6, act_layer=nn.SiLU)),
        row(nn.Conv2d(3, 6, 5), nn.BatchNorm2d(6, affine=False)),
        row(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 5, 3)),
        lived_in(ModifiedResNet((1, 1, 1, 1), 16, heads=2, image_size=32, width=4)),
    ],
    ids=["two", "grouped", "with its activation", "without weights", "one first", "ResNet"],
)
def test_what_a_convolution_feeds_is_folded_and_the_features_stay(tower: nn.Module) -> None:
    n = norms_in(tower)
    first = isinstance(tower, nn.Sequential) and isinstance(tower[0], nn.BatchNorm2d)
    assert folded(tower) == n - first
    assert norms_in(tower) == first


class Residual(nn.Module):
    """Adds what its convolution made once more, behind the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.out_norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x)
        return torch.as_tensor(self.out_norm(self.out(self.norm(features) + features)))


class Twice(nn.Module):
    """Uses one convolution before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.two(self.conv(self.one(self.conv(x)))))


class Forked(nn.Module):
    """Feeds a batch norm and another convolution from one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.aside = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x)
        return torch.as_tensor(self.norm(features) + self.aside(features))


@pytest.mark.parametrize(
    "tower",
    [
        lived_in(Residual()),
        lived_in(Twice()),
        lived_in(Forked()),
        row(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        row(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["residual", "twice", "forked", "behind an activation", "statistics of the batch"],
)
def test_a_batch_norm_that_cannot_be_folded_stays_with_all_that_was_there(tower: nn.Module) -> None:
    state = {name: value.clone() for name, value in tower.state_dict().items()}
    n = norms_in(tower)
    assert folded(tower) == 0
    assert norms_in(tower) == n
    torch.testing.assert_close(tower.state_dict(), state, atol=0, rtol=0)


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a small MobileNet from timm, random weights, and statistics in its batch norms."""
    folder = tmp_path_factory.mktemp("models")
    vision = {"timm_model_name": "mobilenetv2_050", "timm_model_pretrained": False, "timm_pool": "avg"}
    model_cfg = {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {**vision, "timm_proj": "linear", "image_size": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(
        **{name: value for name, value in model_cfg.items() if name != "custom_text"}  # type: ignore[arg-type]
    )
    preprocess_cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "size": 64}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(lived_in(model).state_dict(), folder / "open_clip_model.safetensors")
    return folder


def rows_of(model: Path, files: list[Path]) -> tuple[Encoder, np.ndarray]:
    encoder = Encoder(model, device="cpu")
    return encoder, encoder.encode_images(files)


def test_an_encoder_gives_the_vectors_of_the_plain_tower(
    mobile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [draw_picture(tmp_path / f"{seed}.png", seed=seed) for seed in range(9)]
    quick, rows = rows_of(mobile, files)
    monkeypatch.setenv("IMRET_TOWERS", "plain")
    plain, expected = rows_of(mobile, files)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert norms_in(quick._tower("image")) == 0
    assert norms_in(plain._tower("image")) > 30


def test_pictures_spread_over_threads_keep_their_order_and_torch_its_threads(mobile: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 64, 64, 3), dtype=np.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encoder = Encoder(mobile, device="cpu")
        rows = encoder.encode_pixels(pixels)
        assert encoder.calls_at_once > 1
        assert encoder._step_threads is not None
        assert {encoder._step_threads.submit(torch.get_num_threads).result() for _ in range(9)} == {1}
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(encoder.encode_pixels, [pixels[i:] for i in range(4)]))
    finally:
        torch.set_num_threads(before)
    each = np.concatenate([encoder.encode_pixels(pixels[i : i + 1]) for i in range(len(pixels))])
    np.testing.assert_allclose(rows, each, atol=1e-5)
    for i, some in enumerate(together):
        np.testing.assert_allclose(some, each[i:], atol=1e-5)


def test_plain_towers_take_as_many_pictures_at_a_time_as_asked_for(
    mobile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((9, 64, 64, 3), dtype=np.uint8)
    sizes: list[int] = []
    for switch in ("", "plain"):
        monkeypatch.setenv("IMRET_TOWERS", switch)
        encoder = Encoder(mobile, device="cpu")
        encoder.encode_pixels(pixels[:1])
        encoder._tower("image").get_submodule("visual").register_forward_hook(
            lambda module, given, made: sizes.append(len(given[0]))
        )
        encoder.encode_pixels(pixels)
        sizes.append(0)
    assert sorted(sizes[: sizes.index(0)]) == [1, 4, 4]
    assert sizes[sizes.index(0) + 1 :] == [9, 0]


def test_real_photos_keep_their_vectors(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((shared_data / "nature10" / "test").rglob("*.jpg"))[::20]
    quick, rows = rows_of(shared_data / "tiny-clip", files)
    monkeypatch.setenv("IMRET_TOWERS", "plain")
    _, expected = rows_of(shared_data / "tiny-clip", files)
    assert norms_in(quick._tower("image")) == 0
    assert (rows * expected).sum(axis=1).min() > 0.99999


def test_in_bfloat16_nothing_is_folded(mobile: Path) -> None:
    encoder = Encoder(mobile, device="cpu", precision="bf16")
    assert norms_in(encoder._tower("image")) > 30
