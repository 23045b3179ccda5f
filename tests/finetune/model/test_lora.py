"""Low-rank adapters act on what the model computes, begin as nothing, and fold away."""

from __future__ import annotations

import copy
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor, nn

from finetune.model.lora import LowRank, add_lora, merge_lora
from finetune.weight_blending import blend_states


@pytest.fixture
def model(random_model: Path) -> nn.Module:
    built: nn.Module = open_clip.create_model_and_transforms(f"local-dir:{random_model}")[0]
    return built.eval()


def features(model: nn.Module) -> tuple[Tensor, Tensor]:
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = open_clip.tokenize(["a bird", "two dogs play in the snow"])
    return model.encode_image(images), model.encode_text(tokens)  # type: ignore[operator]


def stir(model: nn.Module) -> None:
    """Give every adapter something to say."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_a_new_adapter_changes_nothing_to_the_bit(model: nn.Module) -> None:
    plain = features(model)
    add_lora(model, rank=4, alpha=4, seed=0)
    for before, after in zip(plain, features(model), strict=True):
        assert torch.equal(before, after)


def test_every_adapter_gets_a_gradient(model: nn.Module) -> None:
    names = add_lora(model, rank=4, alpha=4, seed=0)
    stir(model)
    image, text = features(model)
    (image.square().sum() + text.square().sum()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(names)
    for name, parameter in trained.items():
        assert name.endswith((".A", ".B"))
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("grad", [True, False], ids=["with gradients", "on the inference fast path"])
def test_the_output_projection_of_attention_acts_although_its_module_is_never_called(
    model: nn.Module, grad: bool
) -> None:
    attention = model.visual.transformer.resblocks[0].attn
    called = []
    attention.out_proj.register_forward_hook(lambda *_: called.append(1))
    add_lora(model, rank=4, alpha=4, seed=0)
    with torch.set_grad_enabled(grad):
        before = features(model)[0]
        adapter = attention.out_proj.parametrizations.weight[0]
        with torch.no_grad():
            adapter.B.copy_(torch.randn(adapter.B.shape, generator=torch.Generator().manual_seed(3)))
        after = features(model)[0]
    assert not called  # the trap: what wraps the module would never have run
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("grad", [True, False], ids=["with gradients", "without"])
def test_merged_weights_give_what_the_adapters_gave(model: nn.Module, random_model: Path, grad: bool) -> None:
    add_lora(model, rank=4, alpha=8, seed=0)
    stir(model)
    with torch.set_grad_enabled(grad):
        adapted = features(model)
    merge_lora(model)
    stock = open_clip.create_model_and_transforms(f"local-dir:{random_model}")[0].eval()
    stock.load_state_dict(copy.deepcopy(model.state_dict()), strict=True)
    for before, after in zip(adapted, features(stock), strict=True):
        torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
def test_a_blend_of_base_and_merged_weights_is_the_adapters_at_a_smaller_scale(
    model: nn.Module, random_model: Path, alpha: float
) -> None:
    base, scaled = (
        open_clip.create_model_and_transforms(f"local-dir:{random_model}")[0].eval() for _ in range(2)
    )
    theta_0 = copy.deepcopy(base.state_dict())
    names = add_lora(model, rank=4, alpha=8, seed=0)
    assert add_lora(scaled, rank=4, alpha=8, seed=0) == names
    stir(model)
    stir(scaled)
    for module in scaled.modules():
        if isinstance(module, LowRank):
            module.scale *= alpha
    merge_lora(scaled)
    merge_lora(model)
    blended = blend_states(theta_0, model.state_dict(), alpha)
    assert blended.keys() == scaled.state_dict().keys()
    for name, weight in scaled.state_dict().items():
        torch.testing.assert_close(blended[name], weight, atol=1e-6, rtol=1e-6)
    differ = {name for name in theta_0 if not torch.allclose(theta_0[name], blended[name], atol=1e-6)}
    assert differ == (set(names) if alpha else set())
    base.load_state_dict(blended)
    for ours, other in zip(features(base), features(scaled), strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)


def test_query_key_and_value_have_adapters_of_their_own(model: nn.Module) -> None:
    add_lora(model, rank=4, alpha=4, seed=0)
    adapter = model.visual.transformer.resblocks[0].attn.parametrizations.in_proj_weight[0]
    assert adapter.A.shape == (3, 4, 64)
    assert adapter.B.shape == (3, 64, 4)
    with torch.no_grad():
        adapter.B[1].fill_(1.0)  # the key's
        delta = adapter(torch.zeros(3 * 64, 64))
    assert delta[:64].abs().max() == 0
    assert delta[64:128].abs().max() > 0
    assert delta[128:].abs().max() == 0


def test_the_image_tower_can_have_adapters_alone(model: nn.Module) -> None:
    names = add_lora(model, rank=4, alpha=4, seed=0, towers=("image",))
    assert names
    assert all(name.startswith("visual.") for name in names)


def test_the_same_seed_draws_the_same_adapters(random_model: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = open_clip.create_model_and_transforms(f"local-dir:{random_model}")[0]
        add_lora(model, rank=2, alpha=2, seed=seed)
        drawn.append(model.visual.transformer.resblocks[1].mlp.c_fc.parametrizations.weight[0].A)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("vision_cfg", "left"),
    [
        ({"timm_model_name": "swin_tiny_patch4_window7_224"}, "relative_position_bias_table"),
        ({"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}, "attn_pool.latent"),
        ({"timm_model_name": "fastvit_mci0"}, ".gamma"),
    ],
)
def test_tables_of_positions_tokens_and_gains_of_timms_towers_are_left_as_they_are(
    vision_cfg: dict[str, str], left: str
) -> None:
    with torch.device("meta"):
        model = open_clip.CLIP(embed_dim=64, vision_cfg=vision_cfg, text_cfg={"layers": 1, "vocab_size": 8})
    names = [name for name, _ in model.named_parameters() if name.endswith(left)]
    assert names
    adapted = add_lora(model, rank=4, alpha=4, seed=0, towers=("image",))
    assert adapted
    assert not set(names) & set(adapted)
