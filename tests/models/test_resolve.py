"""Model names to files: what is found, what is refused with which way out, and what a fingerprint follows."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune.model.base_model import find_base
from imret import settings
from imret.errors import ModelError
from imret.models import resolve
from imret.models.encoder import Encoder
from imret.models.fingerprint import ModelFiles
from imret.models.resolve import resolve_model
from imret.models.weights_digest import digest_bytes, digest_tensors
from tests import ROOT
from tests.fakes.model_families import write_family
from tests.fakes.models import write_random_model

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"


def age(path: Path, seconds: float = 60.0) -> None:
    """Set a file's modification time back, past the time in which a hash is not yet kept."""
    then = time.time() - seconds
    os.utime(path, (then, then))


# ---- Names ---------------------------------------------------------------------------------------------


def test_a_folder_is_found_by_path_and_by_open_clips_prefix(random_model: Path) -> None:
    plain = resolve_model(random_model)
    assert plain == resolve_model(str(random_model)) == resolve_model(f"local-dir:{random_model}")
    assert plain.model_id == str(random_model)
    assert plain.weights == random_model / WEIGHTS
    assert plain.dim == 32
    assert plain.preprocess.size == (32, 32)
    assert plain.preprocess.mean == (0.5, 0.5, 0.5)


def test_a_relative_folder_is_named_by_its_absolute_path(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(random_model.parent)
    assert resolve_model(random_model.name).model_id == str(random_model)


def test_a_folder_takes_the_checkpoint_that_open_clip_would_take(random_model: Path, tmp_path: Path) -> None:
    from open_clip.factory import _find_checkpoint_in_dir

    shutil.copy(random_model / CONFIG, tmp_path)
    names = [
        "zebra.bin",
        "model.pth",
        "other.safetensors",
        "pytorch_model.bin",
        "open_clip_pytorch_model.bin",
        WEIGHTS,
    ]
    for name in names:
        (tmp_path / name).touch()
        weights = resolve_model(tmp_path).weights
        assert str(weights) == _find_checkpoint_in_dir(tmp_path)
    assert weights.name == WEIGHTS


def test_a_checkpoint_file_needs_its_architecture(random_model: Path) -> None:
    weights = random_model / WEIGHTS
    with pytest.raises(ModelError, match=r"does not say its architecture.*--arch"):
        resolve_model(weights)
    files = resolve_model(weights, arch="ViT-B-32")
    assert files.model_id == f"ViT-B-32:{weights}"
    assert files.dim == 512
    assert resolve_model(files.model_id) == files


OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("arch", "statistics", "interpolation", "resize_mode"),
    [
        ("ViT-B-16-SigLIP", HALF, "bicubic", "squash"),
        ("ViT-SO400M-16-SigLIP2-384", HALF, "bicubic", "squash"),
        ("nllb-clip-base-siglip", HALF, "bicubic", "squash"),
        ("ViT-H-14-CLIPA-336", IMAGENET, "bilinear", "squash"),
        ("MobileCLIP-S1", ((0.0,) * 3, (1.0,) * 3), "bilinear", "shortest"),
        ("MobileCLIP2-S3", OPENAI, "bilinear", "shortest"),
        ("PE-Core-B-16", HALF, "bilinear", "squash"),
        ("ViT-H-14-worldwide-378", OPENAI, "bicubic", "squash"),
        ("ViT-B-32", OPENAI, "bicubic", "shortest"),
        ("ViT-S-16", OPENAI, "bicubic", "shortest"),  # of which no weights are published
    ],
)
def test_a_checkpoint_is_shown_pictures_as_all_that_is_published_of_its_architecture(
    random_model: Path, arch: str, statistics: Any, interpolation: str, resize_mode: str
) -> None:
    files = resolve_model(random_model / WEIGHTS, arch=arch)
    taken = files.preprocess
    assert ((taken.mean, taken.std), taken.interpolation, taken.resize_mode) == (
        statistics,
        interpolation,
        resize_mode,
    )
    assert resolve_model(files.model_id) == files


@pytest.mark.parametrize(
    ("arch", "ways"),
    [
        (
            "ViT-H-14",
            ["laion2b_s32b_b79k: resize_mode shortest, quick_gelu False", "dfn5b: resize_mode squash"],
        ),
        ("ViT-L/14", ["openai: mean (0.48145466", "laion2b_s32b_b82k: mean (0.5, 0.5, 0.5)"]),
        ("ViT-H-14-quickgelu", ["metaclip_fullcc: resize_mode shortest", "dfn5b: resize_mode squash"]),
    ],
)
def test_where_what_is_published_differs_it_is_asked_which_the_checkpoint_is_like(
    random_model: Path, arch: str, ways: list[str]
) -> None:
    with pytest.raises(ModelError, match="differ in it") as raised:
        resolve_model(random_model / WEIGHTS, arch=arch)
    known = arch.replace("/", "-")
    assert all(f"\n  --arch {known}/{way}" in str(raised.value) for way in ways)


def test_a_collections_own_name_for_a_checkpoint_keeps_its_meaning_and_tells_of_the_doubt(
    random_model: Path,
) -> None:
    told: list[str] = []
    files = resolve_model(f"ViT-H-14:{random_model / WEIGHTS}", notify=told.append)
    assert files.preprocess == resolve_model(random_model / WEIGHTS, arch="ViT-B-32").preprocess
    assert "quick_gelu" not in files.model_cfg
    assert len(told) == 1
    assert "--arch ViT-H-14/dfn5b: resize_mode squash" in told[0]
    assert "open_clip's default" in told[0]


def test_a_tag_says_what_a_checkpoint_is_like(random_model: Path) -> None:
    weights = random_model / WEIGHTS
    squashed = resolve_model(weights, arch="ViT-H-14/dfn5b")
    assert (squashed.preprocess.resize_mode, squashed.model_cfg["quick_gelu"]) == ("squash", True)
    assert squashed.model_id == f"ViT-H-14/dfn5b:{weights}"
    assert squashed.tokenizer == "ViT-H-14"
    assert resolve_model(squashed.model_id) == squashed
    cropped = resolve_model(weights, arch="ViT-H/14/laion2b-s32b-b79k")
    assert (cropped.preprocess.resize_mode, "quick_gelu" in cropped.model_cfg) == ("shortest", False)
    assert cropped.model_id == f"ViT-H-14/laion2b_s32b_b79k:{weights}"
    with pytest.raises(
        ModelError, match=r"'ViT-H-14' has no weights tagged 'dfn5'\. Nearest: ViT-H-14/dfn5b"
    ):
        resolve_model(weights, arch="ViT-H-14/dfn5")
    with pytest.raises(ModelError, match=r"Unknown model 'ViT-X/dfn5b'"):
        resolve_model(weights, arch="ViT-X/dfn5b")


@pytest.mark.parametrize(
    ("arch", "quick", "says"),
    [
        ("ViT-B-32", False, "with GELU; if it was trained with QuickGELU, say --arch ViT-B-32/openai"),
        ("RN50", True, f"with QuickGELU; if it was trained with GELU, put {CONFIG} beside it"),
        ("ViT-B-32/openai", True, ""),
        ("ViT-B-32-quickgelu", True, ""),
        ("ViT-g-14", False, ""),
    ],
)
def test_the_activation_of_a_checkpoint_is_what_is_published_or_told(
    random_model: Path, arch: str, quick: bool, says: str
) -> None:
    from open_clip import factory

    get_model_config: Any = factory.get_model_config
    told: list[str] = []
    files = resolve_model(random_model / WEIGHTS, arch=arch, notify=told.append)
    stated: dict[str, Any] = get_model_config(arch.partition("/")[0])
    assert files.model_cfg == (stated if not quick else {**stated, "quick_gelu": True})
    assert len(told) == bool(says)
    assert says in "".join(told)


def test_an_architecture_is_given_only_with_a_checkpoint_file(random_model: Path) -> None:
    for name in (str(random_model), "ViT-B-32/laion2b_s34b_b79k", "hf-hub:org/repo"):
        with pytest.raises(ModelError, match="brings its own"):
            resolve_model(name, arch="ViT-B-32")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-H-14/laion2b_s32b_b79", r"no weights tagged.*Nearest: ViT-H-14/laion2b_s32b_b79k"),
        ("vit-h-14/laion2b_s32b_b79k", r"Unknown model.*Nearest: ViT-H-14"),
        ("ViT-H-14", r"names an architecture but no weights.*ViT-H-14/laion2b_s32b_b79k"),
        (
            "no-such-thing",
            r"neither a folder, a file, nor an architecture.*default is ViT-H-14.*imret models",
        ),
        (
            "timm/ViT-B-16-SigLIP",
            r"Unknown model 'timm/ViT-B-16-SigLIP'.*\n.*--model hf-hub:timm/ViT-B-16-SigLIP$",
        ),
        ("laion/CLIP-ViT-B-32-laion2B", r"\n.*hub, name it so: --model hf-hub:laion/CLIP-ViT-B-32-laion2B$"),
        ("https://huggingface.co/timm/ViT-B/tree/main", r"--model hf-hub:timm/ViT-B$"),
        ("hf_hub:timm/ViT-B", r"--model hf-hub:timm/ViT-B$"),
        ("hf://timm/ViT-B", r"--model hf-hub:timm/ViT-B$"),
        ("./models/gone", "no such folder or file"),
        ("gone.safetensors", "no such folder or file"),
        ("local-dir:/nowhere/at/all", "was not found"),
        ("hf-hub:just-a-name", "hf-hub:ORG/REPO"),
        ("hf-hub:../../etc", "hf-hub:ORG/REPO"),
        ("", "name is empty"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve_model(name)


def test_a_folder_that_is_no_model_says_what_it_lacks(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no open_clip_config\.json"):
        resolve_model(tmp_path)
    shutil.copy(random_model / CONFIG, tmp_path)
    with pytest.raises(ModelError, match=r"no weights: expected open_clip_model\.safetensors"):
        resolve_model(tmp_path)
    shutil.copy(random_model / WEIGHTS, tmp_path)
    for text in ("{", "[]", "{}", '{"model_cfg": {"embed_dim": "big"}}', '{"model_cfg": 7}', "\ufeff\x00"):
        (tmp_path / CONFIG).write_text(text)
        with pytest.raises(ModelError, match=CONFIG):
            resolve_model(tmp_path)


def test_a_preprocessing_that_open_clip_does_not_know_is_refused(random_model: Path, tmp_path: Path) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    config = json.loads((random_model / CONFIG).read_text())
    for key, value in {
        "mean": "grey",
        "std": [0.5, 0.5],
        "interpolation": "lanczos",
        "resize_mode": "stretch",
        "mode": "L",
    }.items():
        config["preprocess_cfg"] = {key: value}
        (tmp_path / "model" / CONFIG).write_text(json.dumps(config))
        with pytest.raises(ModelError, match="preprocessing"):
            resolve_model(tmp_path / "model")


def test_every_tag_states_the_preprocessing_and_activation_that_open_clip_uses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Walk all of open_clip's tags with the download replaced: what is compared is the configuration."""
    from open_clip import factory, pretrained
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    weights = tmp_path / "weights.bin"
    weights.touch()
    monkeypatch.setattr(resolve, "fetch", lambda *_, **__: weights)
    registry: Any = factory
    tags: list[tuple[str, str]] = pretrained.list_pretrained()
    assert len(tags) > 100
    for arch, tag in tags:
        files = resolve_model(f"{arch}/{tag}")
        tag_cfg = pretrained.get_pretrained_cfg(arch, tag)
        expected = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), tag_cfg))
        stated = files.preprocess
        assert (stated.interpolation, stated.resize_mode) == (expected.interpolation, expected.resize_mode)
        assert (stated.mean, stated.std) == (tuple(expected.mean), tuple(expected.std))
        size = registry.get_model_config(arch)["vision_cfg"]["image_size"]
        assert stated.size == ((size, size) if isinstance(size, int) else tuple(size))
        if tag_cfg.get("quick_gelu"):
            assert files.model_cfg["quick_gelu"] is True


def test_finding_a_folder_loads_neither_torch_nor_open_clip(random_model: Path) -> None:
    code = (
        "import sys; from imret.models.resolve import resolve_model;"
        "print(len(resolve_model(sys.argv[1]).fingerprint),"
        "{'torch', 'open_clip', 'numpy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(random_model)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "64 set()\n"


FIND = """
import sys
from imret.models.resolve import resolve_model
files = resolve_model(sys.argv[1])
print(files.model_id, files.tokenizer, files.weights, files.fingerprint)
print({"torch", "open_clip", "numpy", "PIL"} & set(sys.modules) or "light")
"""


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79k", "hf-hub:org/repo", "ViT-B-32:{weights}"])
def test_finding_any_model_on_disk_a_second_time_loads_neither_torch_nor_open_clip(
    random_model: Path, tmp_path: Path, name: str
) -> None:
    from open_clip import pretrained

    repo = pretrained.get_pretrained_cfg("ViT-B-32", "laion2b_s34b_b79k")["hf_hub"].rstrip("/")
    for repo_id in (repo, "org/repo"):  # as huggingface_hub lays out its cache
        folder = tmp_path / "hf" / "hub" / f"models--{repo_id.replace('/', '--')}"
        shutil.copytree(random_model, folder / "snapshots" / ("0" * 40))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
    named = name.format(weights=random_model / WEIGHTS)

    def find() -> list[str]:
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FIND, named],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=environment,
        ).stdout.splitlines()

    first = find()
    assert find() == [first[0], "light"]
    assert first[0].startswith(named)
    kept = list((settings.cache_dir() / "open_clip").glob("*"))
    assert len(kept) == (0 if name.startswith("hf-hub:") else 1)  # a hub repository brings its own words


def test_what_open_clip_said_is_asked_again_where_it_was_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    assert resolve._ask_once("kind", "name", lambda: {"a": 1}) == {"a": 1}
    assert resolve._ask_once("kind", "name", lambda: None) == {"a": 1}
    (entry,) = (settings.cache_dir() / "open_clip").iterdir()
    for damaged in ("{", "[]", "{}", ""):
        entry.write_text(damaged)
        assert resolve._ask_once("kind", "name", lambda: {"a": 2}) == {"a": 2}
        assert json.loads(entry.read_text()) == {"a": 2}
    assert resolve._ask_once("kind", "other", lambda: None) is None  # not kept: it may exist one day
    assert resolve._ask_once("kind", "other", lambda: {"a": 3}) == {"a": 3}


def test_where_open_clip_is_loaded_its_registry_is_asked(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip import factory

    config = json.loads((random_model / CONFIG).read_text())["model_cfg"]
    for dim in (32, 16):
        monkeypatch.setitem(factory._MODEL_CONFIGS, "of-my-own", {**config, "embed_dim": dim})
        assert resolve_model(random_model / WEIGHTS, arch="of-my-own").dim == dim


def test_the_names_of_a_repositorys_weights_are_open_clips() -> None:
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    assert (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME) == resolve._HUB_WEIGHTS


def test_the_version_of_open_clip_is_found_without_importing_it() -> None:
    import open_clip

    assert open_clip.__version__ in resolve.open_clip_version()


# ---- The hub -------------------------------------------------------------------------------------------


# ---- The fingerprint -----------------------------------------------------------------------------------


def test_the_same_model_in_another_place_has_the_same_fingerprint(random_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "somewhere else"
    shutil.copytree(random_model, copy)
    (copy / WEIGHTS).rename(copy / "model.safetensors")
    link = tmp_path / "link"
    link.symlink_to(copy)
    fingerprint = resolve_model(random_model).fingerprint
    assert len(bytes.fromhex(fingerprint)) == 32
    assert resolve_model(copy).fingerprint == resolve_model(link).fingerprint == fingerprint


def test_the_fingerprint_follows_weights_architecture_and_preprocessing(
    random_model: Path, tmp_path: Path
) -> None:
    base = resolve_model(random_model)
    other = resolve_model(write_random_model(tmp_path / "other", seed=1))
    quick = replace(base, model_cfg={**base.model_cfg, "quick_gelu": True})
    grey = replace(base, preprocess=replace(base.preprocess, mean=(0.4, 0.5, 0.5)))
    assert len({files.fingerprint for files in (base, other, quick, grey)}) == 4


def _saved_again(folder: Path, way: str) -> None:
    """Save the same tensors in another way."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / WEIGHTS)
    if way == "metadata":
        save_file(state, folder / WEIGHTS, metadata={"format": "pt", "note": "copied"})
    elif way == "leftovers":
        save_file({**state, "context_length": torch.tensor(77)}, folder / WEIGHTS)
    elif way == "wrapped":
        save_file({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, folder / WEIGHTS)
    elif way == "order":
        _write_in_order(folder / WEIGHTS, dict(reversed(list(state.items()))))
    elif way.startswith("sharded"):
        _save_sharded(folder, state, ".bin" if way.endswith("torch") else ".safetensors")
    else:
        (folder / WEIGHTS).unlink()
        state["visual.proj"] = state["visual.proj"].T.contiguous().T  # equal, and not row by row in memory
        saved = {"epoch": 3, "state_dict": state} if way == "training" else state
        new = way != "old format"
        torch.save(saved, folder / "open_clip_pytorch_model.bin", _use_new_zipfile_serialization=new)


def _save_sharded(folder: Path, state: dict[str, torch.Tensor], ending: str) -> list[Path]:
    """Save tensors in three files and an index, as transformers does."""
    from safetensors.torch import save_file

    (folder / WEIGHTS).unlink(missing_ok=True)
    names = list(state)
    shards = [folder / f"model-{i + 1:05}-of-00003{ending}" for i in range(3)]
    weight_map = {}
    for i, shard in enumerate(shards):
        part = {name: state[name] for name in names[i::3]}
        save_file(part, shard) if ending == ".safetensors" else torch.save(part, shard)
        weight_map |= dict.fromkeys(part, shard.name)
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}{ending}.index.json").write_text(json.dumps(index))
    return shards


def _write_in_order(path: Path, state: dict[str, torch.Tensor]) -> None:
    header, data = {}, b""
    for name, tensor in state.items():
        rows = tensor.numpy().tobytes()
        offsets = [len(data), len(data) + len(rows)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += rows
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


@pytest.mark.parametrize(
    "way",
    [
        *("metadata", "leftovers", "wrapped", "order", "sharded"),
        *("torch", "training", "old format", "sharded by torch"),
    ],
)
def test_the_same_tensors_saved_again_are_the_same_model(
    random_model: Path, tmp_path: Path, way: str
) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    _saved_again(tmp_path / "model", way)
    before, after = resolve_model(random_model), resolve_model(tmp_path / "model")
    assert before.weights.read_bytes() != after.weights.read_bytes()
    expected = Encoder(before, device="cpu", precision="fp32").encode_texts(["a mushroom"])
    found = Encoder(after, device="cpu", precision="fp32").encode_texts(["a mushroom"])
    assert (found == expected).all()
    assert after.fingerprint == before.fingerprint
    assert after.images_fingerprint == after.fingerprint


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_weights_in_several_files_are_one_model(random_model: Path, tmp_path: Path, ending: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(random_model, tmp_path / "model")
    shards = _save_sharded(tmp_path / "model", load_file(random_model / WEIGHTS), ending)
    for shard in shards:
        age(shard)
    (index,) = (tmp_path / "model").glob("*.index.json")
    age(index)
    files = resolve_model(tmp_path / "model")
    assert files.weights == index
    first, first_bytes = files.fingerprint, digest_bytes(index)
    pixels = np.full((1, 32, 32, 3), 77, np.uint8)
    row = Encoder(files, device="cpu", precision="fp32").encode_pixels(pixels)
    assert (row == Encoder(random_model, device="cpu", precision="fp32").encode_pixels(pixels)).all()
    state = load_file(shards[0]) if ending == ".safetensors" else torch.load(shards[0])
    changed = {name: tensor + 1 for name, tensor in state.items()}
    save_file(changed, shards[0]) if ending == ".safetensors" else torch.save(changed, shards[0])
    assert resolve_model(tmp_path / "model").fingerprint != first  # though the index is as it was
    assert digest_bytes(index) != first_bytes
    shards[0].rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"names 'model-00001-of-00003{ending}', which is not beside it"):
        _ = resolve_model(tmp_path / "model").fingerprint
    index.write_text(json.dumps({"weight_map": {"visual.proj": "../elsewhere"}}))
    with pytest.raises(ModelError, match=r"names '\.\./elsewhere', which is not beside it"):
        _ = resolve_model(tmp_path / "model").fingerprint
    index.write_text("{}")
    with pytest.raises(ModelError, match="no 'weight_map'"):
        _ = resolve_model(tmp_path / "model").fingerprint


def test_other_tensors_are_another_model_and_other_text_another_text_tower(
    random_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(random_model / WEIGHTS)
    proj, positions = state["visual.proj"].clone(), state["positional_embedding"].clone()
    proj[0, 0] += 1e-6
    positions[0, 0] += 1e-6
    changes = {
        "precision": {name: tensor.half() for name, tensor in state.items()},
        "image": {**state, "visual.proj": proj},
        "shape": {**state, "visual.proj": state["visual.proj"].T.contiguous()},
        "name": {("visual.other" if name == "visual.proj" else name): t for name, t in state.items()},
        "text": {**state, "positional_embedding": positions},
    }
    base = resolve_model(random_model)
    found = {}
    for name, changed in changes.items():
        shutil.copytree(random_model, tmp_path / name)
        save_file(changed, tmp_path / name / WEIGHTS)
        found[name] = resolve_model(tmp_path / name)
    assert len({base.fingerprint, *(files.fingerprint for files in found.values())}) == 6
    embed_alike = [name for name, files in found.items() if files.embeds_as(base.images_fingerprint)]
    assert embed_alike == ["text"]


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        ("siglip", "tokenizer.json"),
        ("siglip", "tokenizer_config.json"),
        ("roberta", "text_tower/config.json"),
    ],
)
def test_other_text_files_are_another_model_with_the_same_image_tower(
    tmp_path: Path, family: str, changed: str
) -> None:
    pytest.importorskip("transformers")
    folder = write_family(tmp_path / "model", family)
    if family == "roberta":  # as a tuned folder has it
        (tmp_path / "model-text-config").rename(folder / "text_tower")
    before = resolve_model(folder)
    (folder / "training.json").write_text("{}")
    assert resolve_model(folder).fingerprint == before.fingerprint
    path = folder / changed
    path.write_text(path.read_text().replace("}", " }", 1))
    after = resolve_model(folder)
    assert after.fingerprint[:32] != before.fingerprint[:32]
    assert after.fingerprint[32:] == before.fingerprint[32:]
    assert after.embeds_as(before.images_fingerprint)
    shutil.copytree(folder, tmp_path / "copy")
    assert resolve_model(tmp_path / "copy").fingerprint == after.fingerprint


def test_a_tokenizer_that_is_not_read_is_no_part_of_the_fingerprint(
    random_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")  # as beside many weights of the hub
    assert resolve_model(tmp_path / "model").fingerprint == resolve_model(random_model).fingerprint


def fingerprint_of_bytes(folder: Path) -> str:
    """The fingerprint as imret made it while it hashed files: an oracle of its own."""
    files = resolve_model(folder)
    identity = {
        "weights": hashlib.sha256(files.weights.read_bytes()).hexdigest(),
        "model_cfg": files.model_cfg,
        "preprocess": asdict(files.preprocess),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_a_collection_bound_to_the_bytes_of_the_file_knows_its_model(
    random_model: Path, tmp_path: Path
) -> None:
    former = fingerprint_of_bytes(random_model)
    assert resolve_model(random_model).embeds_as(former)
    assert not resolve_model(write_random_model(tmp_path / "other", seed=1)).embeds_as(former)
    shutil.copytree(random_model, tmp_path / "again")
    _saved_again(tmp_path / "again", "metadata")
    assert not resolve_model(tmp_path / "again").embeds_as(former)  # which other bytes cannot show


def _in_precision(folder: Path, dtypes: dict[str, torch.dtype]) -> None:
    """Round the image tower of a model to a precision, by the beginning of names, and save it so."""
    tensors = load_file(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if name.startswith("visual."):
            begin = max((begin for begin in dtypes if name.startswith(begin)), key=len, default="")
            tensors[name] = tensor.to(dtypes.get(begin, torch.float32))
    save_file(tensors, folder / WEIGHTS)


_PRECISIONS: dict[str, dict[str, torch.dtype]] = {
    "fp32": {},
    "bf16": {"visual.": torch.bfloat16},
    "fp16": {"visual.": torch.float16},
    "mixed": {"visual.": torch.float16, "visual.ln": torch.float32},
}


def _tune_text(base: Path, tuned: Path) -> dict[str, Any]:
    """Write a model that kept the image tower of another, in float32, as `imret finetune` does."""
    shutil.copytree(base, tuned)
    tensors = {name: tensor.float() for name, tensor in load_file(tuned / WEIGHTS).items()}
    tensors["text_projection"] += 1
    save_file(tensors, tuned / WEIGHTS)
    images_of = find_base(str(base)).images_of
    assert images_of is not None
    record = {"images_of": images_of, "weights": digest_tensors(tuned / WEIGHTS).tensors}
    (tuned / "training.json").write_text(json.dumps(record))
    return record


@pytest.mark.parametrize("precision", _PRECISIONS)
def test_a_tower_that_was_kept_is_the_bases_as_training_json_says(
    random_model: Path, tmp_path: Path, precision: str
) -> None:
    base = Path(shutil.copytree(random_model, tmp_path / "base"))
    _in_precision(base, _PRECISIONS[precision])
    record = _tune_text(base, tmp_path / "tuned")
    files, of_base = resolve_model(tmp_path / "tuned"), resolve_model(base)
    assert files.images_fingerprint == of_base.images_fingerprint
    assert files.fingerprint != of_base.fingerprint
    assert (files.fingerprint[32:] == of_base.fingerprint[32:]) == (precision == "fp32")
    _tune_text(tmp_path / "tuned", tmp_path / "tuned again")
    assert resolve_model(tmp_path / "tuned again").embeds_as(of_base.images_fingerprint)
    if precision != "mixed":  # as imret wrote it before
        del record["images_of"]["dtypes"]
        (tmp_path / "tuned" / "training.json").write_text(json.dumps(record))
        assert resolve_model(tmp_path / "tuned").embeds_as(of_base.images_fingerprint)


@pytest.mark.parametrize("said", ["of another model", "in another precision", "of other weights"])
def test_a_tower_that_was_not_kept_is_nobodys_whatever_training_json_says(
    random_model: Path, tmp_path: Path, said: str
) -> None:
    base = Path(shutil.copytree(random_model, tmp_path / "base"))
    _in_precision(base, _PRECISIONS["bf16"])
    record = _tune_text(base, tmp_path / "tuned")
    other = resolve_model(write_random_model(tmp_path / "other", seed=3))
    claimed = other.images_fingerprint
    if said == "of another model":
        record["images_of"]["image_tower"] = claimed
    elif said == "in another precision":
        claimed, record["images_of"]["dtypes"] = resolve_model(base).images_fingerprint, {"": "F16"}
    else:
        claimed = resolve_model(base).images_fingerprint
        shutil.copy(other.weights, tmp_path / "tuned")
    (tmp_path / "tuned" / "training.json").write_text(json.dumps(record))
    files = resolve_model(tmp_path / "tuned")
    with pytest.warns(UserWarning, match=r"and it is not: |is not believed"):
        assert not files.embeds_as(claimed)


def test_the_fingerprint_does_not_follow_names_order_or_training_settings(random_model: Path) -> None:
    base = resolve_model(random_model)
    vision = {**base.model_cfg["vision_cfg"], "timm_drop": 0.3, "timm_model_pretrained": True}
    shuffled = {key: base.model_cfg[key] for key in reversed(list(base.model_cfg))}
    same = replace(base, model_id="another name", model_cfg={**shuffled, "vision_cfg": vision})
    assert same.fingerprint == base.fingerprint


def test_the_hash_is_kept_by_path_size_and_time(random_model: Path, tmp_path: Path) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    weights = tmp_path / "model" / WEIGHTS
    age(weights)
    first = resolve_model(tmp_path / "model").fingerprint
    entries = list((settings.cache_dir() / "fingerprints").iterdir())
    assert len(entries) == 1
    entries[0].write_text("0" * 64)  # seen in the next fingerprint only if the entry is what is used
    assert resolve_model(tmp_path / "model").fingerprint != first
    entries[0].write_text("not a hash")
    assert resolve_model(tmp_path / "model").fingerprint == first
    age(weights, 30.0)
    assert resolve_model(tmp_path / "model").fingerprint == first
    assert len(list((settings.cache_dir() / "fingerprints").iterdir())) == 2


def test_weights_that_change_within_a_tick_of_the_clock_are_noticed(
    random_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    weights = tmp_path / "model" / WEIGHTS
    before = weights.stat()
    os.utime(weights)
    first = resolve_model(tmp_path / "model").fingerprint
    stamp = weights.stat().st_mtime_ns
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(stamp, stamp))
    assert weights.stat().st_size == before.st_size
    assert resolve_model(tmp_path / "model").fingerprint != first


def test_a_cache_that_cannot_be_written_is_no_fault(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(random_model, tmp_path / "model")
    age(tmp_path / "model" / WEIGHTS)
    expected = resolve_model(tmp_path / "model").fingerprint
    (tmp_path / "a file").touch()
    monkeypatch.setenv("IMRET_HOME", str(tmp_path / "a file"))
    assert resolve_model(tmp_path / "model").fingerprint == expected


def test_weights_that_cannot_be_read_are_a_model_error(random_model: Path) -> None:
    files = resolve_model(random_model)
    gone = ModelFiles(files.model_id, files.model_cfg, files.preprocess, Path("/nowhere"), files.tokenizer)
    with pytest.raises(ModelError, match="Cannot read the weights '/nowhere': No such file"):
        _ = gone.fingerprint


def test_imret_home_moves_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMRET_HOME", str(tmp_path))
    assert settings.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("IMRET_HOME")
    assert "imret" in str(settings.cache_dir())


def test_torch_checkpoints_are_found_like_safetensors(random_model: Path, tmp_path: Path) -> None:

    shutil.copy(random_model / CONFIG, tmp_path)
    torch.save(load_file(random_model / WEIGHTS), tmp_path / "open_clip_pytorch_model.bin")
    assert resolve_model(tmp_path).weights.name == "open_clip_pytorch_model.bin"


# ---- In several files -----------------------------------------------------------------------------------


def test_the_index_of_a_sharded_checkpoint_can_be_named_and_one_of_its_files_says_so(
    random_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(random_model, tmp_path / "model"))

    whole = resolve_model(random_model).fingerprint
    first, *_ = _save_sharded(folder, load_file(random_model / WEIGHTS), ".safetensors")
    index = folder / "model.safetensors.index.json"
    assert resolve_model(str(index), arch="ViT-B-32").weights == index
    with pytest.raises(
        ModelError, match=r"one of 3 files of a sharded checkpoint\. Name its index: '.*json'"
    ):
        resolve_model(str(first), arch="ViT-B-32")
    index.rename(folder / "clip.safetensors.index.json")  # by whatever name
    assert resolve_model(folder).fingerprint == whole
    (folder / "clip.safetensors.index.json").unlink()
    with pytest.raises(
        ModelError, match=r"one of 3 files.*Put the index beside it \('model\.safetensors\.index"
    ):
        resolve_model(folder)
