"""Model files to a torch module that holds only the towers asked for, in the precision asked for.

The module is one of open_clip's own, built with parameters on the meta device, so none is drawn at random. A
safetensors checkpoint is mapped: what can be used as stored stays a private copy-on-write view of the file,
what must be converted is read, converted and let go piece by piece.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from imret.errors import ModelError, some_of, summary
from imret.models.checkpoint import Checkpoint
from imret.models.fingerprint import ModelFiles
from imret.models.safetensors_map import LEFTOVER_ENDINGS, LEFTOVERS
from imret.models.text_files import text_tower_config
from imret.models.tokenizer import refuse_foreign_code, require_transformers

TOWERS = ("image", "text")

# In a folder that imret wrote: the configuration of a text tower of Hugging Face's, so that none is fetched.

# What open_clip's native CLIP keeps of its text tower on the root of the module.
_NATIVE_TEXT = (
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
    "text_projection",
    "attn_mask",
)


# What torch.nn.init writes values with.
_INITIALISERS = {
    *("normal_", "uniform_", "trunc_normal_", "zero_", "zeros_", "ones_", "fill_", "constant_"),
    *("erfinv_", "mul_", "add_", "clamp_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"),
}


def load_clip(
    files: ModelFiles,
    *,
    towers: tuple[str, ...] = TOWERS,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Build a model from its files with the towers asked for, in eval mode.

    The parameters are ordinary trainable tensors. On a CPU, those used as stored are private views of the
    checkpoint file: writing to them changes memory, never the file. While the model lives, the file may be
    removed or replaced by another (os.replace), but not rewritten in place.

    Args:
        files: What `resolve_model` found.
        towers: Any of "image" and "text"; the other is neither read nor held.
        device: Where the parameters live.
        dtype: torch.float32 or torch.bfloat16. In bfloat16 the parameters of normalisation layers that
            compute in float32 stay float32, as in open_clip.

    Returns:
        open_clip's CLIP, CustomTextCLIP or CoCa. A tower left out is None (`visual`, `text`), and for a
        native CLIP the text tower's parts on the root are None.

    Raises:
        ModelError: If the architecture cannot be built, the checkpoint cannot be read, or the two differ;
            the message names the tensors.
    """
    if not towers or not set(towers) <= set(TOWERS):
        raise ValueError(f"towers must be a non-empty subset of {TOWERS}, got {towers!r}")
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
    if "hf_model_name" in files.model_cfg["text_cfg"]:  # a tokenizer is needed only where there are texts
        require_transformers(files.model_cfg["text_cfg"], files.model_id)
    checkpoint = Checkpoint(files.weights)
    model = _build(files, towers, dtype)
    tensors = _tensors_for(model, checkpoint, files)
    dropped = _unused(model, towers)
    _drop(model, dropped)
    _fill(model, tensors, checkpoint, files, dropped=dropped, device=torch.device(device), dtype=dtype)
    return model.eval()


def has_batch_norm(files: ModelFiles) -> bool:
    """Whether the image tower normalises by batch statistics, as MobileNet, ResNet and FastViT do.

    They lose too much in bfloat16: batch norm scales by fixed statistics, so rounding adds up from layer to
    layer. Measured against float32, a MobileNetV2 CLIP fell to a cosine of 0.989 on real photos, where a
    vision transformer of 32 layers kept 0.9999.

    Raises:
        ModelError: If the architecture cannot be built.
    """
    vision_cfg = files.model_cfg["vision_cfg"]
    if "timm_model_name" not in vision_cfg:
        return isinstance(vision_cfg.get("layers"), (list, tuple))  # open_clip's own ResNet; else a ViT
    visual = cast(nn.Module, _build(files, (), torch.float32).visual)
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in visual.modules())


# ---- Building ----------------------------------------------------------------------------------


def _build(files: ModelFiles, towers: tuple[str, ...], dtype: torch.dtype) -> nn.Module:
    """Return the architecture with parameters on the meta device, and on the CPU what no checkpoint holds."""
    try:
        with _parameters_on_meta():
            model = _construct(files, dtype)
        if not _lacks_values(model, _unused(model, towers)):
            return model
    except Exception:
        # Some towers compute with parameters, or where these are, while they are built. The construction
        # below shows whether the configuration itself is at fault.
        pass
    try:
        with _Undrawn():
            return _construct(files, dtype)
    except Exception as error:
        raise ModelError(
            f"Cannot build the architecture of model '{files.model_id}': {summary(error)}."
        ) from error


_building = threading.local()  # `on_meta`: whether this thread builds a model whose weights a file brings


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Take every parameter that this thread gives a module to the meta device, before it is drawn at random.

    Their memory is asked for and never touched. Not all tensors, as `torch.device("meta")` would: tables that
    are computed as the module is built and that no checkpoint holds (rotary positions, indices, masks) are
    needed, and some towers compute with numbers of their own while they are built.
    """
    _watch_parameters()
    _building.on_meta = True
    try:
        yield
    finally:
        _building.on_meta = False


@functools.cache
def _watch_parameters() -> None:
    """Have torch show each new parameter, for good: removing it would disturb threads that make modules."""
    register_module_parameter_registration_hook(_to_meta)


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> Any:
    if not getattr(_building, "on_meta", False) or parameter.is_meta:
        return None
    moved: Any = vars(parameter)  # one that is given to two modules stays one
    if "on_meta" not in moved:
        moved["on_meta"] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return moved["on_meta"]


class _Undrawn(TorchFunctionMode):
    """Leave parameters that this thread makes as they are allocated: memory nobody writes to is not held."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        target = args[0] if args else named.get("tensor")
        if isinstance(target, nn.Parameter) and getattr(func, "__name__", "") in _INITIALISERS:
            return target
        return func(*args, **named)


def _construct(files: ModelFiles, dtype: torch.dtype) -> nn.Module:
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    model_cfg: dict[str, Any] = deepcopy(dict(files.model_cfg))
    custom_text = model_cfg.pop("custom_text", False) or "hf_model_name" in model_cfg["text_cfg"]
    # The checkpoint brings every weight: no tower may fetch its own.
    if "timm_model_name" in model_cfg["vision_cfg"]:
        model_cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in model_cfg["text_cfg"]:
        model_cfg["text_cfg"]["hf_model_pretrained"] = False
        own = text_tower_config(files.weights)
        if own.is_file():
            model_cfg["text_cfg"]["hf_model_name"] = str(own.parent)
        refuse_foreign_code(model_cfg["text_cfg"]["hf_model_name"])
    kind: Any = CLIP
    if custom_text:
        kind = CoCa if "multimodal_cfg" in model_cfg else CustomTextCLIP
    # cast_dtype makes open_clip choose layer norms that compute in float32.
    model = kind(**model_cfg, cast_dtype=None if dtype == torch.float32 else dtype)
    assert isinstance(model, nn.Module)
    return model


def _lacks_values(model: nn.Module, unused: tuple[str, ...]) -> bool:
    """Whether a tensor that no checkpoint brings was made of a parameter's values, which there are none of.

    That is a buffer left out of checkpoints, or a tensor held as a plain attribute.
    """
    for name, module in model.named_modules():
        if name.startswith(unused):
            continue
        unsaved = (module._buffers[key] for key in module._non_persistent_buffers_set if key not in unused)
        if any(
            isinstance(tensor, torch.Tensor) and tensor.is_meta
            for tensor in (*unsaved, *vars(module).values())
        ):
            return True
    return False


def _unused(model: nn.Module, towers: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names on the root of what the towers asked for do not use."""
    unused: list[str] = []
    if "image" not in towers:
        unused += ["visual"]
    if "text" not in towers:
        unused += ["text"] if hasattr(model, "text") else _NATIVE_TEXT
    if hasattr(model, "text_decoder") and set(towers) != set(TOWERS):
        unused += ["text_decoder"]  # CoCa's captioner: no embedding passes through it; the whole model has it
    return tuple(unused)


def _drop(model: nn.Module, names: tuple[str, ...]) -> None:
    for name in names:
        # Through the registries, so that a parameter may become None without a type error.
        for registry in (model._modules, model._parameters, model._buffers):
            if name in registry:
                cast(dict[str, Any], registry)[name] = None


# ---- Reading -----------------------------------------------------------------------------------


def _tensors_for(model: nn.Module, checkpoint: Checkpoint, files: ModelFiles) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors under the model's own names and shapes, as open_clip does it."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    tensors: dict[str, torch.Tensor] = dict(checkpoint.tensors)
    try:
        tensors = convert_state_dict(cast(Any, model), tensors)
        if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
            tensors = convert_to_custom_text_state_dict(tensors)
        for name in ("logit_scale", "logit_bias"):
            parameter = getattr(model, name)
            if parameter is None:
                continue
            if name not in tensors and name == "logit_bias":
                tensors[name] = torch.zeros(parameter.shape)
            elif name in tensors and tensors[name].numel() == parameter.numel():
                tensors[name] = tensors[name].reshape(parameter.shape)
        # Checkpoints of another image size or context length: open_clip interpolates the positions.
        resize_pos_embed(tensors, model)
        resize_text_pos_embed(tensors, model)
    except Exception as error:
        raise ModelError(
            f"The weights '{checkpoint.path}' do not fit the architecture of '{files.model_id}': "
            f"{summary(error)}."
        ) from error
    return tensors


# ---- Filling -----------------------------------------------------------------------------------


def _fill(
    model: nn.Module,
    tensors: dict[str, torch.Tensor],
    checkpoint: Checkpoint,
    files: ModelFiles,
    *,
    dropped: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Put a tensor of the checkpoint in the place of every parameter and saved buffer."""
    slots = list(_slots(model))
    _refuse_differences(slots, tensors, files, dropped=dropped)
    shared: dict[int, nn.Parameter] = {}  # a parameter that two modules share stays one
    for name, module, key, old in slots:
        target = _stored_dtype(module, key, old, dtype)
        source = tensors.get(name)
        if source is None:  # a buffer that no checkpoint holds, or a batch counter that old ones lack
            value = old.new_zeros(old.shape, device="cpu") if old.is_meta else old
            value = value.to(device=device, dtype=target)
        else:
            value = checkpoint.place(source, device=device, dtype=target)
        if isinstance(old, nn.Parameter):
            if id(old) not in shared:
                shared[id(old)] = nn.Parameter(value, requires_grad=old.requires_grad)
            module._parameters[key] = shared[id(old)]
        else:
            module._buffers[key] = value


def _slots(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, torch.Tensor]]:
    """Yield (full name, module, own name, tensor) of every parameter and buffer."""
    for prefix, module in model.named_modules():
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                yield f"{prefix}.{key}" if prefix else key, module, key, tensor


def _refuse_differences(
    slots: list[tuple[str, nn.Module, str, torch.Tensor]],
    tensors: dict[str, torch.Tensor],
    files: ModelFiles,
    *,
    dropped: tuple[str, ...],
) -> None:
    expected = {name for name, *_ in slots}
    missing = [
        name
        for name, module, key, _ in slots
        if name not in tensors
        and key not in module._non_persistent_buffers_set
        and not name.endswith(LEFTOVER_ENDINGS)
    ]
    unexpected = [
        name
        for name in tensors
        if name not in expected
        and name not in LEFTOVERS
        and not name.endswith(LEFTOVER_ENDINGS)
        and not any(name == prefix or name.startswith(f"{prefix}.") for prefix in dropped)
    ]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} where {tuple(tensor.shape)} belongs"
        for name, _, _, tensor in slots
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults = [
        f"{what}: {_abridged(names)}"
        for what, names in (("missing", missing), ("unknown", unexpected), ("other shape", misshapen))
        if names
    ]
    if faults:
        raise ModelError(
            f"The weights '{files.weights}' do not fit the architecture of '{files.model_id}'; "
            f"{'; '.join(faults)}."
        )


def _abridged(names: list[str]) -> str:
    return some_of(names, 4)


def _stored_dtype(module: nn.Module, key: str, old: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to hold a tensor in: `dtype`, except where open_clip computes in float32."""
    from open_clip.transformer import LayerNormFp32

    if not old.dtype.is_floating_point:
        return old.dtype
    norm = isinstance(module, (LayerNormFp32, nn.modules.batchnorm._BatchNorm))
    return torch.float32 if norm or key in ("logit_scale", "logit_bias") else dtype


def encode_tokens(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Run (B, L) token ids through the text tower, over no more positions than the longest text needs.

    Exact where the mask is causal and the embedding is read at the end token: no position up to there sees
    one after it. Other towers get the full context.
    """
    from open_clip.model import CLIP
    from open_clip.transformer import text_global_pool

    native = isinstance(model, CLIP)  # keeps the parts of its text tower on its root
    tower: Any = model if native else model.text
    pool_type = getattr(tower, "text_pool_type" if native else "pool_type", None)
    end_id = getattr(tower, "text_eos_id" if native else "eos_id", None)
    ends = _end_positions(tokens, pool_type, end_id)
    plain = getattr(tower, "cls_emb", None) is None and not getattr(tower, "output_tokens", False)
    if ends is None or not plain or getattr(tower, "attn_mask", None) is None:
        whole: torch.Tensor = cast(Any, model).encode_text(tokens)
        return whole
    length = int(ends.max()) + 1
    tokens = tokens[:, :length]  # (B, L) -> (B, l)
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens).to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])  # (B, l, W)
    x = text_global_pool(tower.ln_final(x), tokens, cast(str, pool_type), eos_token_id=end_id)  # (B, W)
    if isinstance(tower.text_projection, nn.Linear):
        x = tower.text_projection(x)
    elif tower.text_projection is not None:
        x = x @ tower.text_projection
    return cast(torch.Tensor, x)


def _end_positions(tokens: torch.Tensor, pool_type: str | None, end_id: int | None) -> torch.Tensor | None:
    """Return (B,) the position each text is read at, or None where that is not its end token."""
    if pool_type == "argmax":  # the end token has the highest id
        return tokens.argmax(dim=-1)
    if pool_type == "eos":
        return torch.eq(tokens, end_id if end_id is not None else -1).int().argmax(dim=-1)
    return None
