"""Encoding against stock open_clip on the same weights, and everything a checkpoint can get wrong."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

import imret.models.device
import imret.models.encoder
from imret.errors import ImageError, ModelError
from imret.models.checkpoint import CheckpointWarning
from imret.models.encoder import Encoder, TextTruncated, load_clip
from imret.models.fast.text_numpy import open_text_tower
from imret.models.resolve import resolve_model
from tests import ROOT
from tests.fakes.models import write_random_model

stock: Any = open_clip  # its functions carry no types

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
TEXTS = ["a mushroom", "x", "a very small red bird sits on the branch of a tree, in the rain", ""]

VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TIMM = {"timm_pool": "avg", "timm_proj": "linear", "image_size": 160}


@pytest.fixture(autouse=True)
def _exact_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare models, not ways to resize: tests/images/test_resize.py compares those."""
    monkeypatch.setenv("IMRET_RESIZE", "exact")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on a busy machine, several that wait for each other take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def native(**changes: Any) -> dict[str, Any]:
    return {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT, **changes}


def custom(text: dict[str, Any] | None = None, timm: str | None = None) -> dict[str, Any]:
    vision = VIT if timm is None else {**TIMM, "timm_model_name": timm}
    return native(custom_text=True, vision_cfg=vision, text_cfg={**TEXT, **(text or {})})


COCA = {
    **custom({"embed_cls": True, "output_tokens": True}),
    "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "multimodal_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}

ARCHITECTURES = {
    "native": native(),
    "native with QuickGELU": native(quick_gelu=True),
    "native read at a stated end token": native(text_cfg={**TEXT, "pool_type": "eos", "eos_id": 49407}),
    "native with a ResNet": native(
        vision_cfg={"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}
    ),
    "native with a logit bias": native(init_logit_bias=-10.0, nonscalar_logit_scale=True),
    "two towers": custom(),
    "timm vision transformer": custom(timm="test_vit"),
    "timm with batch norm": custom(timm="test_efficientnet"),
    "timm with unsaved tables": custom(timm="test_vit_relpos"),
    "text with both directions": custom({"no_causal_mask": True, "pool_type": "last", "proj_bias": True}),
    "text read at the end of the context": custom({"pool_type": "last"}),
    "CoCa": COCA,
}


def write_model(folder: Path, model_cfg: dict[str, Any], *, seed: int = 0) -> Path:
    """Write a model that stock open_clip has made with random weights."""
    torch.manual_seed(seed)
    cfg = json.loads(json.dumps(model_cfg))
    kind: Any = open_clip.model.CLIP
    if cfg.pop("custom_text", False):
        kind = open_clip.coca_model.CoCa if "multimodal_cfg" in cfg else open_clip.model.CustomTextCLIP
    model = kind(**cfg)
    for module in model.modules():  # statistics that a trained model would have
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": model_cfg}))
    save_file(model.state_dict(), folder / WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return {name: write_model(folder / name, cfg) for name, cfg in ARCHITECTURES.items()}


def pictures() -> list[Image.Image]:
    shapes = [(40, 60, 3), (200, 100, 3), (32, 32, 3)]
    return [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
        for seed, shape in enumerate(shapes)
    ]


def stock_rows(folder: Path, images: list[Any], texts: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Encode with open_clip's own loading, transform, tokenizer and forward pass."""
    name = f"local-dir:{folder}"
    model, _, transform = stock.create_model_and_transforms(name)
    tokenize = stock.get_tokenizer(name)
    with torch.inference_mode():
        inputs = torch.stack([transform(image) for image in images])
        rows = [model.eval().encode_image(inputs), model.encode_text(tokenize(texts))]
    image_rows, text_rows = (torch.nn.functional.normalize(row, dim=-1).numpy() for row in rows)
    return image_rows, text_rows


# ---- The same vectors as open_clip ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_embeddings_are_those_of_stock_open_clip(zoo: dict[str, Path], name: str) -> None:
    image_rows, text_rows = stock_rows(zoo[name], pictures(), TEXTS)
    encoder = Encoder(zoo[name], device="cpu", precision="fp32")
    for rows, expected in (
        (encoder.encode_images(pictures()), image_rows),
        (encoder.encode_texts(TEXTS), text_rows),
    ):
        assert rows.dtype == np.float32
        assert rows.shape == (len(expected), encoder.dim)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)
        np.testing.assert_allclose(rows, expected, atol=1e-4 if name != "CoCa" else 2e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bf16_stays_near_fp32(zoo: dict[str, Path], name: str) -> None:
    image_rows, text_rows = stock_rows(zoo[name], pictures(), TEXTS)
    encoder = Encoder(zoo[name], device="cpu", precision="bf16")
    assert (encoder.encode_texts(TEXTS) * text_rows).sum(axis=1).min() > 0.99
    assert (encoder.encode_images(pictures()) * image_rows).sum(axis=1).min() > 0.98


def test_real_photos_agree_with_stock_open_clip(shared_data: Path) -> None:
    folder = shared_data / "tiny-clip"
    paths = sorted((shared_data / "nature10" / "test").glob("*/*.jpg"))[::4]
    assert len(paths) >= 60
    images = []
    for path in paths:
        with Image.open(path) as image:
            image.load()
            images.append(image)
    image_rows, text_rows = stock_rows(folder, images, TEXTS)
    for precision in sorted({"fp32", Encoder(folder, device="cpu", precision="auto").precision}):
        encoder = Encoder(folder, device="cpu", precision=precision)
        cosines = (encoder.encode_images(paths) * image_rows).sum(axis=1)
        assert np.median(cosines) >= 0.999
        assert cosines.min() >= 0.99
        assert (encoder.encode_texts(TEXTS) * text_rows).sum(axis=1).min() > 0.999


def test_batching_changes_nothing_but_rounding(random_model: Path) -> None:
    encoder = Encoder(random_model, device="cpu", precision="fp32")
    images = pictures() * 3
    whole = encoder.encode_images(iter(images))
    np.testing.assert_allclose(encoder.encode_images(images, batch_size=2), whole, atol=1e-5)
    texts = TEXTS * 5
    np.testing.assert_allclose(
        encoder.encode_texts(texts, batch_size=3), encoder.encode_texts(texts), atol=1e-5
    )


def test_paths_images_and_pixels_give_one_embedding(random_model: Path, tmp_path: Path) -> None:
    encoder = Encoder(random_model, device="cpu", precision="fp32")
    image = pictures()[2]
    image.save(tmp_path / "a.png")
    by_path = encoder.encode_images([tmp_path / "a.png"])
    np.testing.assert_array_equal(encoder.encode_images([str(tmp_path / "a.png")]), by_path)
    np.testing.assert_array_equal(encoder.encode_images([image]), by_path)
    np.testing.assert_array_equal(encoder.encode_pixels(np.asarray(image)[None]), by_path)


def test_nothing_in_gives_no_rows(random_model: Path) -> None:
    encoder = Encoder(random_model, device="cpu")
    assert encoder.encode_texts([]).shape == (0, 32)
    assert encoder.encode_images([]).shape == (0, 32)
    assert encoder.encode_pixels(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 32)
    assert encoder._towers == {}


def test_a_bare_string_or_wrong_pixels_are_programming_errors(random_model: Path) -> None:
    encoder = Encoder(random_model, device="cpu")
    with pytest.raises(TypeError, match="list of texts"):
        encoder.encode_texts("a mushroom")
    with pytest.raises(TypeError, match="list of pictures"):
        encoder.encode_images("a.jpg")
    for wrong in (np.zeros((1, 32, 32, 3), np.float32), np.zeros((1, 3, 32, 32), np.uint8)):
        with pytest.raises(ValueError, match="expected uint8 pixels"):
            encoder.encode_pixels(wrong)
    with pytest.raises(ValueError, match="precision"):
        Encoder(random_model, precision="fp16")


def test_a_bad_picture_is_named(random_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ImageError, match=r"text\.jpg': not a picture"):
        Encoder(random_model, device="cpu").encode_images([tmp_path / "text.jpg"])


# ---- Texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["native", "native read at a stated end token", "two towers"])
def test_no_more_positions_are_computed_than_the_longest_text_needs(
    zoo: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encoder = Encoder(zoo[name], device="cpu", precision="fp32")
    tower: Any = encoder._tower("text")
    transformer = getattr(tower, "text", tower).transformer
    transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    encoder.encode_texts(["mushroom"])  # begin, one word, end
    encoder.encode_texts(["mushroom", "a red mushroom in the grass"])
    assert seen == [3, 8]


@pytest.mark.parametrize("name", ["text read at the end of the context", "text with both directions"])
def test_other_text_towers_get_the_whole_context(zoo: dict[str, Path], name: str) -> None:
    seen: list[int] = []
    encoder = Encoder(zoo[name], device="cpu", precision="fp32")
    tower: Any = encoder._tower("text")
    tower.text.transformer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    encoder.encode_texts(["mushroom"])
    assert seen == [24]


def test_a_text_longer_than_the_context_is_cut_with_a_warning(zoo: dict[str, Path]) -> None:
    encoder = Encoder(zoo["native"], device="cpu", precision="fp32")
    fits, too_long = "red " * 22, "red " * 23  # with begin and end: 24 and 25 tokens
    rows = encoder.encode_texts([fits])
    with pytest.warns(TextTruncated, match=r"longer than the 24 tokens.*'red red") as caught:
        cut = encoder.encode_texts(["short", too_long])
    assert len(caught) == 1
    np.testing.assert_allclose(cut[1:], rows, atol=1e-5)


# ---- What is loaded when -------------------------------------------------------------------------------


class _Letters:
    """A tokenizer as open_clip wraps those of transformers: of letters, which it cleans first."""

    def __init__(self, cleaning: str) -> None:
        self.clean_fn = stock.tokenizer.get_clean_fn(cleaning)

    def tokenizer(self, text: str, *, verbose: bool = True) -> Any:
        return SimpleNamespace(input_ids=[ord(letter) % 300 for letter in text])

    def __call__(self, texts: list[str], context_length: int) -> torch.Tensor:
        rows = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = self.tokenizer(self.clean_fn(text)).input_ids[:context_length]
            row[: len(ids)] = torch.tensor(ids)
        return rows


@pytest.mark.parametrize("cleaning", ["whitespace", "canonicalize"])
def test_a_text_that_cleaning_makes_short_enough_is_not_said_to_be_cut(
    zoo: dict[str, Path], cleaning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resolve_model(zoo["text with both directions"])
    text_cfg = {**files.model_cfg["text_cfg"], "hf_tokenizer_name": "letters"}
    files = replace(files, model_cfg={**files.model_cfg, "text_cfg": text_cfg})
    monkeypatch.setattr("imret.models.tokenizer.require_transformers", lambda *_: None)
    monkeypatch.setattr("open_clip.factory.get_tokenizer", lambda name, **options: _Letters(cleaning))
    encoder = Encoder(files, device="cpu", precision="fp32")
    short = "a   red \t bird," + " " * 40 if cleaning == "whitespace" else "a red, red bird" + "!" * 40
    assert encoder.truncated([short, 25 * "a", 24 * "b"]) == [25 * "a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_texts([short])


def test_naming_an_encoder_reads_no_weights(random_model: Path, tmp_path: Path) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    encoder = Encoder(tmp_path / "model", device="cpu")
    (tmp_path / "model" / WEIGHTS).unlink()
    assert encoder.dim == 32
    assert encoder.model_id == str(tmp_path / "model")
    assert encoder.preprocess.size == (32, 32)
    assert str(tmp_path) in repr(encoder)
    assert encoder.encode_texts([]).shape == (0, 32)
    with pytest.raises(ModelError, match=r"Cannot read the weights .*No such file"):
        encoder.encode_texts(["a mushroom"])


def test_each_tower_is_loaded_by_the_first_call_that_needs_it(
    zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRET_TOWERS", "plain")
    for name in ("native", "two towers", "timm vision transformer", "CoCa"):
        encoder = Encoder(zoo[name], device="cpu", precision="fp32")
        encoder.encode_texts(["a mushroom"])
        assert list(encoder._towers) == ["text"]
        encoder.encode_images(pictures())
        assert list(encoder._towers) == ["text", "image"]
        whole = load_file(zoo[name] / WEIGHTS)
        held = {kind: dict(tower.named_parameters()) for kind, tower in encoder._towers.items()}
        scale = {"logit_scale"}
        assert {key for key in held["image"] if not key.startswith("visual.")} == scale
        assert not any(key.startswith(("visual.", "text_decoder.")) for key in held["text"])
        expected = {key for key in whole if not key.startswith("text_decoder.")}
        buffers = {key for tower in encoder._towers.values() for key, _ in tower.named_buffers()}
        assert set(held["image"]) | set(held["text"]) | buffers >= expected


def test_threads_that_need_a_tower_at_once_load_it_once(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[tuple[str, ...]] = []

    def counted(*args: Any, towers: tuple[str, ...], **options: Any) -> torch.nn.Module:
        loads.append(towers)
        return load_clip(*args, towers=towers, **options)

    monkeypatch.setattr(imret.models.encoder, "load_clip", counted)
    encoder = Encoder(random_model, device="cpu", precision="fp32")
    rows: list[NDArray[np.float32]] = []
    threads = [threading.Thread(target=lambda: rows.append(encoder.encode_texts(["x"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [("text",)]
    assert len(rows) == 4
    assert all((row == rows[0]).all() for row in rows)


def test_the_logit_scale_is_the_models(zoo: dict[str, Path]) -> None:
    for name in ("native", "native with a logit bias"):
        encoder = Encoder(zoo[name], device="cpu")
        assert encoder.logit_scale == pytest.approx(1 / 0.07)
        assert encoder._towers == {}


def test_no_weight_is_drawn_at_random_before_it_is_loaded(
    zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[torch.device] = []
    normal = torch.nn.init.normal_

    def watched(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        drawn.append(tensor.device)
        return normal(tensor, *args, **options)

    monkeypatch.setattr(torch.nn.init, "normal_", watched)
    load_clip(resolve_model(zoo["native"]))
    load_clip(resolve_model(zoo["timm vision transformer"]))
    assert set(drawn) == {torch.device("meta")}


# What a checkpoint does not hold is computed as the tower is built: rotary positions, masks of windows, and
# of a stem of convolutions the size of what it gives.
@pytest.mark.parametrize(
    "timm",
    ["eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384", "swin_tiny_patch4_window7_224", "hybrid"],
)
def test_towers_that_compute_while_they_are_built_are_those_of_stock_open_clip(
    tmp_path: Path, timm: str
) -> None:
    name = "vitamin_small_224" if timm == "hybrid" else timm
    cfg = custom(timm=name)
    cfg["vision_cfg"] = {**cfg["vision_cfg"], "image_size": 384 if name.endswith("384") else 224}
    folder = write_model(tmp_path / "model", cfg)
    images, texts = stock_rows(folder, pictures(), TEXTS)
    encoder = Encoder(folder, device="cpu", precision="fp32")
    np.testing.assert_allclose(encoder.encode_images(pictures()), images, atol=2e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), texts, atol=1e-5)


@pytest.mark.parametrize("kind", ["Roberta", "MT5", "M2M100"])  # M2M-100 is NLLB's
def test_text_towers_of_transformers_give_what_they_gave_before_they_were_saved(
    tmp_path: Path, kind: str
) -> None:
    transformers: Any = pytest.importorskip("transformers")
    small = {
        "Roberta": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "MT5": {"d_model": 32, "num_layers": 2, "d_kv": 16, "num_heads": 2, "d_ff": 64},
        "M2M100": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "decoder_layers": 1},
    }
    config = getattr(transformers, f"{kind}Config")(vocab_size=300, **small[kind])
    config.save_pretrained(tmp_path / "text")
    text_cfg = {
        "hf_model_name": str(tmp_path / "text"),
        "hf_tokenizer_name": str(tmp_path / "text"),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
        "hf_model_pretrained": False,
    }
    cfg = {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": text_cfg}
    torch.manual_seed(0)
    whole: Any = open_clip.model.CustomTextCLIP(**json.loads(json.dumps(cfg))).eval()
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": cfg}))
    torch.save(whole.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    loaded: Any = load_clip(resolve_model(tmp_path), towers=("text",))
    tokens = torch.randint(5, 300, (3, 20))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.encode_text(tokens), whole.encode_text(tokens))


def test_a_parameter_of_two_modules_stays_one_and_other_threads_make_their_own(
    zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip.model

    made: dict[str, Any] = {}
    init = open_clip.model.CLIP.__init__

    def sharing(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        shared = torch.nn.Parameter(torch.ones(2))
        self.one, self.two = torch.nn.Module(), torch.nn.Module()
        self.one.weight, self.two.weight = shared, shared
        made["tied"] = self.one.weight is self.two.weight
        made["on meta"] = self.one.weight.is_meta
        with ThreadPoolExecutor(1) as thread:
            made["elsewhere"] = thread.submit(torch.nn.Linear, 2, 2).result()
        del self.one, self.two

    monkeypatch.setattr(open_clip.model.CLIP, "__init__", sharing)
    load_clip(resolve_model(zoo["native"]))
    assert (made["tied"], made["on meta"]) == (True, True)
    assert not made["elsewhere"].weight.is_meta
    assert not torch.nn.Linear(2, 2).weight.is_meta


BUILD = """
import sys
import torch
from imret.models.clip import has_batch_norm
from imret.models.resolve import resolve_model

def peak():
    with open("/proc/self/status") as status:
        return int(next(line.split()[1] for line in status if line.startswith("VmHWM"))) >> 10

has_batch_norm(resolve_model(sys.argv[1], arch="ViT-S-16"))
import open_clip, timm
files = resolve_model(sys.argv[1], arch=sys.argv[2])
before = peak()
has_batch_norm(files)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("arch", ["EVA02-L-14", "PE-Core-B-16", "swin_base_patch4_window7_224", "ViTamin-L"])
def test_building_an_architecture_holds_none_of_its_weights(random_model: Path, arch: str) -> None:
    """They are 1,631, 1,707, 681 and 1,743 MiB, both towers together."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(random_model / WEIGHTS), arch],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert int(done.stdout) < 200


# ---- Device and precision ------------------------------------------------------------------------------


def test_auto_takes_bf16_where_the_hardware_and_the_tower_stand_it(
    zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imret.models.encoder, "computes_in_bf16", lambda device: True)
    chosen = {name: Encoder(folder, device="cpu").precision for name, folder in zoo.items()}
    assert {name for name, precision in chosen.items() if precision == "fp32"} == {
        "native with a ResNet",
        "timm with batch norm",
    }
    monkeypatch.setattr(imret.models.encoder, "computes_in_bf16", lambda device: False)
    assert Encoder(zoo["native"], device="cpu").precision == "fp32"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_a_cpu_computes_in_bf16_if_its_flags_say_so() -> None:
    words = Path("/proc/cpuinfo").read_text().split()
    expected = "avx512_bf16" in words or "amx_bf16" in words
    assert imret.models.device.computes_in_bf16(torch.device("cpu")) is expected


def test_a_device_that_is_not_there_is_a_model_error(random_model: Path) -> None:
    with pytest.raises(ModelError, match=r"Device 'cuda:99' cannot be used.*--device cpu"):
        Encoder(random_model, device="cuda:99")
    with pytest.raises(ModelError, match=r"no device 'no such thing'\. Use cpu, cuda, cuda:0"):
        Encoder(random_model, device="no such thing")


def test_bf16_keeps_layer_norms_in_float32_and_all_else_in_bf16(zoo: dict[str, Path]) -> None:
    model = load_clip(resolve_model(zoo["native"]), dtype=torch.bfloat16)
    wide = {name for name, tensor in model.named_parameters() if tensor.dtype == torch.float32}
    assert wide
    assert all(".ln_" in f".{name}" or name == "logit_scale" for name in wide)
    narrow = {name for name, tensor in model.named_parameters() if tensor.dtype == torch.bfloat16}
    assert {"token_embedding.weight", "positional_embedding", "visual.conv1.weight"} <= narrow


@pytest.mark.gpu
def test_cuda_gives_the_embeddings_of_the_cpu(zoo: dict[str, Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for folder in zoo.values():
        expected = Encoder(folder, device="cpu", precision="fp32")
        for precision, least in (("fp32", 0.9999), ("auto", 0.99)):
            encoder = Encoder(folder, precision=precision)
            assert encoder.device.type == "cuda"
            for rows, reference in (
                (encoder.encode_images(pictures()), expected.encode_images(pictures())),
                (encoder.encode_texts(TEXTS), expected.encode_texts(TEXTS)),
            ):
                assert (rows * reference).sum(axis=1).min() > least


# ---- Checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(random_model: Path, tmp_path: Path) -> Path:
    """A copy of the random model that a test may spoil."""
    shutil.copytree(random_model, tmp_path / "model")
    return tmp_path / "model"


def texts_of(folder: Path) -> NDArray[np.float32]:
    return Encoder(folder, device="cpu", precision="fp32").encode_texts(TEXTS[:2])


@pytest.mark.parametrize("wrapped", ["bare", "state_dict", "module", "old format"])
def test_a_torch_checkpoint_loads_in_every_wrapping(folder: Path, wrapped: str) -> None:
    expected = texts_of(folder)
    state: dict[str, Any] = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    if wrapped == "module":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    checkpoint = state if wrapped == "bare" else {"epoch": 3, "name": "run", "state_dict": OrderedDict(state)}
    torch.save(
        checkpoint,
        folder / "open_clip_pytorch_model.bin",
        _use_new_zipfile_serialization=wrapped != "old format",
    )
    np.testing.assert_array_equal(texts_of(folder), expected)


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        (("state_dict",), None),
        (("model",), None),
        (("model_state_dict",), None),
        (("module",), None),
        (("model", "state_dict"), None),
        (("ema",), "'ema' are taken, its only ones"),
        (("model_ema",), "'model_ema' are taken, its only ones"),
        (("ema", "module"), "'ema' are taken, its only ones"),
    ],
)
@pytest.mark.parametrize("file", ["open_clip_pytorch_model.bin", "epoch=3.ckpt"])
def test_weights_are_found_under_the_keys_that_training_programs_save_them_by(
    folder: Path, keys: tuple[str, ...], taken: str | None, file: str
) -> None:
    expected = texts_of(folder)
    saved: dict[str, Any] = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for key in reversed(keys):
        saved = {key: saved, "epoch": 3, "hyper_parameters": {"lr": 1e-3}}
    torch.save(saved, folder / file)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        np.testing.assert_array_equal(texts_of(folder), expected)
    assert all(taken is not None and taken in str(one.message) for one in said)
    assert bool(said) == (taken is not None)


def test_of_several_sets_of_weights_the_trained_ones_are_taken_and_it_is_said(folder: Path) -> None:
    expected = texts_of(folder)
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    other = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict_ema": other, "model": state}, folder / "open_clip_pytorch_model.bin")
    with pytest.warns(CheckpointWarning, match="under 'model' are taken, and not 'state_dict_ema'"):
        np.testing.assert_array_equal(texts_of(folder), expected)


@pytest.mark.parametrize("owner", ["model.", "clip.", "net.", "whatever_holds_it.", "model._orig_mod."])
@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
def test_the_attribute_that_held_the_model_is_left_off_its_names(
    folder: Path, owner: str, ending: str
) -> None:
    expected = texts_of(folder)
    state = {f"{owner}{name}": tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    if ending == ".bin":
        torch.save({"state_dict": state}, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / WEIGHTS)
    np.testing.assert_array_equal(texts_of(folder), expected)


def test_a_checkpoint_without_weights_says_what_it_holds(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no tensors by name.*It holds epoch \(int\), optimizer \(dict\)"):
        texts_of(folder)


def _wrapped(name: str, wrapping: str) -> str:
    """Return the name that torch's wrappers leave in a checkpoint."""
    root, dot, rest = name.partition(".")
    return {
        "compiled tower": f"visual._orig_mod.{rest}" if root == "visual" else name,
        "parallel tower": f"visual.module.{rest}" if root == "visual" else name,
        "compiled parallel tower": f"visual._orig_mod.module.{rest}" if root == "visual" else name,
        "compiled blocks": name.replace(".ln_1.", "._orig_mod.ln_1."),
        "checkpointed blocks": name.replace(".ln_1.", "._checkpoint_wrapped_module.ln_1."),
        "sharded": f"_fsdp_wrapped_module.{root}{dot}{'_fsdp_wrapped_module.' if dot else ''}{rest}",
    }.get(wrapping, wrapping + name)


@pytest.mark.parametrize("ending", [".bin", ".safetensors"])
@pytest.mark.parametrize(
    "wrapping",
    [
        *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."),
        *("compiled tower", "parallel tower", "compiled parallel tower", "compiled blocks"),
        *("checkpointed blocks", "sharded"),
    ],
)
def test_names_that_training_wrapped_are_those_of_the_model(
    folder: Path, wrapping: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, pixels = texts_of(folder), np.full((1, 32, 32, 3), 77, np.uint8)
    picture = Encoder(folder, device="cpu", precision="fp32").encode_pixels(pixels)
    state = {_wrapped(name, wrapping): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    if ending == ".bin":
        torch.save({"epoch": 3, "state_dict": state}, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / WEIGHTS)
    np.testing.assert_array_equal(texts_of(folder), expected)
    for towers in ("auto", "plain"):
        monkeypatch.setenv("IMRET_TOWERS", towers)
        rows = Encoder(folder, device="cpu", precision="fp32").encode_pixels(pixels)
        np.testing.assert_allclose(rows, picture, atol=1e-5)
    tower = open_text_tower(resolve_model(folder))
    assert (tower is None) == (ending == ".bin")
    if tower is not None:
        np.testing.assert_allclose(tower.encode_texts(TEXTS[:2]), expected, atol=1e-5)


def test_a_tensor_under_two_names_is_refused(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["_orig_mod.visual.proj"] = state["visual.proj"] + 1
    save_file(state, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"'visual\.proj' twice, as '.*' and as '.*'"):
        Encoder(folder, device="cpu").encode_texts(["x"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_stored_in_another_precision_load_into_fp32_and_bf16(
    folder: Path, dtype: torch.dtype
) -> None:
    expected = texts_of(folder)
    state = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    assert (texts_of(folder) * expected).sum(axis=1).min() > 0.999
    in_bf16 = Encoder(folder, device="cpu", precision="bf16").encode_texts(TEXTS[:2])
    assert (in_bf16 * expected).sum(axis=1).min() > 0.99


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_never_runs_code(folder: Path, tmp_path: Path, zipped: bool) -> None:
    sprung = tmp_path / "sprung"
    (folder / WEIGHTS).unlink()
    checkpoint = folder / "open_clip_pytorch_model.bin"
    if zipped:
        torch.save({"logit_scale": torch.zeros(()), "x": Trap(sprung)}, checkpoint)
    else:
        checkpoint.write_bytes(pickle.dumps({"state_dict": Trap(sprung)}))
    with pytest.raises(ModelError, match="runs no code"):
        texts_of(folder)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap itself must work"


def test_a_torchscript_archive_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    archive = folder / "open_clip_pytorch_model.bin"
    # What tells such an archive apart is this entry; making one needs a deprecated part of torch.
    import zipfile

    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/constants.pkl", b"")
        file.writestr("archive/data.pkl", b"")
        file.writestr("archive/version", b"3")
    with pytest.raises(ModelError, match="Cannot read the weights"):
        texts_of(folder)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(
            (WEIGHTS, damage)
            for damage in ("half", "empty", "text", "header", "endless header", "wrong offsets")
        ),
        *(("open_clip_pytorch_model.bin", damage) for damage in ("half", "empty", "text", "endless header")),
    ],
)
def test_a_damaged_checkpoint_is_a_model_error(folder: Path, name: str, damage: str) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    path = folder / name
    if name == WEIGHTS:
        save_file(state, path)
    else:
        torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "half": data[: len(data) // 2],
            "empty": b"",
            "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "header": data[:200] + b"\xff" * 50 + data[250:],
            "endless header": b"\xff" * 8 + data[8:],
            "wrong offsets": data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,'),
        }[damage]
    )
    with pytest.raises(ModelError):
        texts_of(folder)


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    for change, message in {
        "missing": r"missing: ln_final\.weight",
        "unknown": r"unknown: something\.else",
        "shape": r"other shape: text_projection \(32, 31\) where \(32, 32\) belongs",
    }.items():
        spoiled = dict(state)
        if change == "missing":
            del spoiled["ln_final.weight"]
        elif change == "unknown":
            spoiled["something.else"] = torch.zeros(3)
        else:
            spoiled["text_projection"] = torch.zeros(32, 31)
        save_file(spoiled, folder / WEIGHTS)
        with pytest.raises(ModelError, match=message):
            load_clip(resolve_model(folder))
    # What old checkpoints carry and nothing reads is let pass.
    save_file(
        {**state, "attn_mask": torch.zeros(77, 77), "context_length": torch.tensor(77)}, folder / WEIGHTS
    )
    load_clip(resolve_model(folder))


def test_weights_of_another_architecture_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="do not fit the architecture of 'ViT-B-32"):
        Encoder(folder / WEIGHTS, arch="ViT-B-32", device="cpu").encode_texts(["x"])
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["nonsense"] = 1
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"Cannot build the architecture.*nonsense"):
        texts_of(folder)


def test_weights_without_a_direction_are_refused(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    for value in (float("nan"), 0.0):
        save_file({**state, "text_projection": torch.full((32, 32), value)}, folder / WEIGHTS)
        with pytest.raises(ModelError, match="no direction for text number 1"):
            texts_of(folder)


def test_a_file_of_a_native_clip_loads_into_two_towers(folder: Path, tmp_path: Path) -> None:
    expected = texts_of(folder)
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["custom_text"] = True
    (folder / CONFIG).write_text(json.dumps(config))
    np.testing.assert_allclose(texts_of(folder), expected, atol=1e-6)


def test_positions_are_interpolated_as_open_clip_does(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = 48
    config["model_cfg"]["text_cfg"]["context_length"] = 40
    (folder / CONFIG).write_text(json.dumps(config))
    image_rows, text_rows = stock_rows(folder, pictures(), TEXTS)
    encoder = Encoder(folder, device="cpu", precision="fp32")
    np.testing.assert_allclose(encoder.encode_images(pictures()), image_rows, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), text_rows, atol=1e-5)


@pytest.mark.parametrize("stored", ["safetensors", "bin"])
def test_a_loaded_model_trains_and_its_file_stays_as_it_was(folder: Path, stored: str) -> None:
    if stored == "bin":
        torch.save(load_file(folder / WEIGHTS), folder / "open_clip_pytorch_model.bin")
        (folder / WEIGHTS).unlink()
    files = resolve_model(folder)
    before = files.weights.read_bytes()
    model: Any = load_clip(files).train()
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = stock.tokenize(TEXTS[:2])
    losses = []
    for _ in range(8):
        image, text, scale = model(
            torch.ones(2, 3, 32, 32) * torch.tensor([0.1, 0.9])[:, None, None, None], tokens
        )
        loss = torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = [name for name, tensor in model.named_parameters() if not torch.equal(tensor, start[name])]
    assert len(moved) > 40
    assert files.weights.read_bytes() == before
    assert torch.equal(load_clip(files).state_dict()["text_projection"], start["text_projection"])
    save_file(model.state_dict(), folder / "new.safetensors")
    (folder / "new.safetensors").replace(folder / WEIGHTS)  # as a trainer does at its end
    assert not torch.equal(
        load_clip(resolve_model(folder)).state_dict()["text_projection"], start["text_projection"]
    )


def test_a_model_written_by_imret_loads_in_stock_open_clip(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=3)
    save_file(load_clip(resolve_model(folder)).state_dict(), tmp_path / "again.safetensors")
    (tmp_path / "again.safetensors").replace(folder / WEIGHTS)
    _, text_rows = stock_rows(folder, pictures(), TEXTS)
    np.testing.assert_allclose(texts_of(folder), text_rows[:2], atol=1e-5)
