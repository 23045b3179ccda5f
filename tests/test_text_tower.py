"""The text path that leaves out open_clip: the same tokens, the same vectors, and the way back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw_picture
from open_clip.tokenizer import tokenize
from safetensors.torch import load_file, save_file

from imret.encoder import Encoder
from imret.errors import ModelError
from imret.text_tower import TextTower

TEXTS = ["a mushroom", "x", "", "Ein Pilz &amp; ein Baum — café naïve", "猫 🍄 <b>bold</b>", "red " * 90]
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.mark.filterwarnings("ignore:A text is longer")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 4e-3)])
def test_vectors_are_those_of_open_clips_tower(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, precision: str, tolerance: float
) -> None:
    lean = Encoder(random_model, device="cpu", precision=precision)
    rows = lean.encode_texts(TEXTS)
    monkeypatch.setenv("IMRET_LEAN_TEXT", "off")
    plain = Encoder(random_model, device="cpu", precision=precision)
    np.testing.assert_allclose(rows, plain.encode_texts(TEXTS), atol=tolerance)
    assert isinstance(lean._tower("text"), TextTower)
    assert not isinstance(plain._tower("text"), TextTower)


def test_vectors_of_a_real_model_are_those_of_open_clips_tower(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a photo of a mushroom.", "two dogs run over a beach", "snow"]
    lean = Encoder(shared_data / "tiny-clip", device="cpu")
    rows = lean.encode_texts(texts)
    monkeypatch.setenv("IMRET_LEAN_TEXT", "off")
    plain = Encoder(shared_data / "tiny-clip", device="cpu").encode_texts(texts)
    assert (rows * plain).sum(axis=1).min() > 0.9999


def test_the_tokens_are_open_clips(random_model: Path) -> None:
    code = (
        "import sys, json; from imret.text_tower import load_tokenize;"
        "print(json.dumps(load_tokenize()(json.load(sys.stdin)).tolist()));"
        "assert 'open_clip' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == tokenize(TEXTS).tolist()


def test_a_search_for_a_new_text_imports_neither_open_clip_nor_torchvision(
    random_model: Path, tmp_path: Path
) -> None:
    draw_picture(tmp_path / "photos" / "fungi" / "1.png")
    code = (
        "import sys\nfrom imret.cli import main\ntry: main()\nfinally: "
        "print({'torch', 'open_clip', 'torchvision', 'timm'} & set(sys.modules), file=sys.stderr)"
    )

    def imret(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments, "--db", str(tmp_path / "db")]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    imret("ingest", str(tmp_path / "photos"), "--model", str(random_model))
    found = imret("search", "a mushroom", "--format", "paths")
    assert found.stdout.endswith("1.png\n")
    assert found.stderr.splitlines()[-1] == "{'torch'}"


def _write(folder: Path, model: Path, cfg: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    config = json.loads((model / CONFIG).read_text())
    config["model_cfg"]["text_cfg"].update(cfg)
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    "cfg", [{"proj_bias": False}, {"no_causal_mask": False}, {"mlp_ratio": 4.0}, {"eos_id": 2}]
)
def test_a_tower_described_with_more_is_left_to_open_clip(
    random_model: Path, tmp_path: Path, cfg: dict[str, Any]
) -> None:
    folder = _write(tmp_path / "model", random_model, cfg, load_file(random_model / WEIGHTS))
    encoder = Encoder(folder, device="cpu", precision="fp32")
    assert not isinstance(encoder._tower("text"), TextTower)
    expected = Encoder(random_model, device="cpu", precision="fp32").encode_texts(["a mushroom"])
    np.testing.assert_allclose(encoder.encode_texts(["a mushroom"]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"missing: ln_final\.bias"),
        ("unknown", r"unknown: transformer\.extra"),
        ("misshapen", r"other shape: text_projection \(32, 31\) where \(32, 32\) belongs"),
    ],
)
def test_weights_that_do_not_fit_are_refused_as_before(
    random_model: Path, tmp_path: Path, fault: str, message: str
) -> None:
    tensors = load_file(random_model / WEIGHTS)
    if fault == "missing":
        del tensors["ln_final.bias"]
    elif fault == "unknown":
        tensors["transformer.extra"] = torch.zeros(1)
    else:
        tensors["text_projection"] = torch.zeros(32, 31)
    folder = _write(tmp_path / "model", random_model, {}, tensors)
    with pytest.raises(ModelError, match=message):
        Encoder(folder, device="cpu").encode_texts(["a mushroom"])
