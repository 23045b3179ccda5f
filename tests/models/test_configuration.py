"""What a model folder states is read with care: no pipe, no device, no number that no model has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imret.errors import ModelError
from imret.models.resolve import resolve_model
from tests.fakes.model_families import write_family

CONFIG_NAME, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
LOAD = """
import sys
from imret import Encoder
from imret.errors import ModelError
from imret.retrieval.prompts import recorded_names
try:
    encoder = Encoder(sys.argv[1], device="cpu", arch=sys.argv[2] or None)
    encoder.fingerprint, encoder.images_fingerprint, recorded_names(encoder)
    encoder.encode_texts(["a bird"])
except ModelError as error:
    print(error)
"""


@pytest.fixture
def model(tmp_path: Path, random_model: Path) -> Path:
    return Path(shutil.copytree(random_model, tmp_path / "model"))


def load(path: Path, arch: str = "") -> str:
    """Load a model in a process that is killed if it waits; return the error."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path), arch],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link_to_pipe(path: Path) -> None:
    pipe(path.with_name("elsewhere"))
    path.unlink(missing_ok=True)
    path.symlink_to("elsewhere")


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("name", "place", "what"),
    [
        (WEIGHTS, pipe, "a pipe"),
        (WEIGHTS, device, "a device"),
        (CONFIG_NAME, link_to_pipe, "a pipe"),
        (CONFIG_NAME, device, "a device"),
        ("training.json", pipe, "a pipe"),
        ("other.bin", pipe, ""),
        (f"{WEIGHTS}.index.json", device, ""),
    ],
)
def test_what_is_no_file_is_not_read(
    model: Path, name: str, place: Callable[[Path], None], what: str
) -> None:
    if name.startswith(("other", f"{WEIGHTS}.")):
        (model / WEIGHTS).unlink()
        what = "a device" if place is device else "a pipe"
    place(model / name)
    said = load(model)
    assert f"it is {what}" in said
    assert str(model) in said


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "merges.txt", "spiece.model"])
def test_a_tokenizer_that_is_no_file_is_not_read(tmp_path: Path, name: str) -> None:
    pytest.importorskip("transformers")
    folder = write_family(tmp_path / "siglip", "siglip")
    pipe(folder / name)
    with pytest.raises(ModelError, match=f"'{name}' is a pipe, not a file"):
        _ = resolve_model(folder).fingerprint
    assert f"{name!r} is a pipe, not a file" in load(folder)


def test_a_checkpoint_that_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.pt")
    for name in (f"{tmp_path}/weights.pt", f"ViT-B-32:{tmp_path}/weights.pt"):
        with pytest.raises(ModelError, match=r"weights.pt' holds no weights: it is a pipe, not a file"):
            resolve_model(name)
    with pytest.raises(ModelError, match="it is a device"):
        resolve_model("/dev/zero", arch="ViT-B-32")


def test_a_shard_that_is_no_file_is_not_read(model: Path) -> None:
    (model / WEIGHTS).unlink()
    pipe(model / "1.safetensors")
    (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    with pytest.raises(ModelError, match=r"1\.safetensors"):
        _ = resolve_model(model).fingerprint


@pytest.mark.parametrize("value", [0, -1, "512", 1.5, True, None, [512], 10**9, 10**400])
def test_a_dimension_that_no_model_has_is_named(model: Path, value: object) -> None:
    set_in(model, lambda cfg: cfg.update(embed_dim=value))
    with pytest.raises(ModelError, match="'embed_dim' is ") as error:
        resolve_model(model)
    assert str(model / CONFIG_NAME) in str(error.value)
    assert repr(value)[:60] in str(error.value)


@pytest.mark.parametrize(
    ("tower", "name", "value"),
    [
        ("text_cfg", "context_length", 0),
        ("text_cfg", "context_length", "77"),
        ("text_cfg", "context_length", 10**9),
        ("text_cfg", "layers", 10**9),
        ("text_cfg", "heads", -2),
        ("text_cfg", "vocab_size", 10**12),
        ("vision_cfg", "width", 0),
        ("vision_cfg", "layers", [1, 2, "3", 4]),
        ("vision_cfg", "patch_size", 0),
        ("vision_cfg", "image_size", 10**9),
        ("vision_cfg", "image_size", -224),
    ],
)
def test_a_size_that_no_tower_has_is_named(model: Path, tower: str, name: str, value: object) -> None:
    set_in(model, lambda cfg: cfg[tower].update({name: value}))
    with pytest.raises(ModelError, match=f"'{tower}.{name}' is "):
        resolve_model(model)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested deeper than 32 levels"),
        ('{"a":' * 100_000, "nested deeper than 32 levels"),
        ('{"a":' * 40 + "1" + "}" * 40, "nested deeper than 32 levels"),
        ("[]", "expected a JSON object"),
        ("3", "expected a JSON object"),
        ("", "Cannot read"),
        ("\udcff", "Cannot read"),
        ('{"model_cfg": {"embed_dim": NaN}}', "NaN"),
        ('{"model_cfg": {"embed_dim": 512, "vision_cfg": [], "text_cfg": {}}}', "'vision_cfg' is \\[\\]"),
        ('{"model_cfg": []}', "no 'model_cfg'"),
        ('{"model_cfg": {"embed_dim": ' + "9" * 5000 + "}}", "Cannot read"),
        (" " * (17 << 20), "more than 16,777,216 bytes"),
    ],
)
def test_a_configuration_that_is_none_is_refused(model: Path, text: str, reason: str) -> None:
    (model / CONFIG_NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=reason) as error:
        resolve_model(model)
    assert str(model / CONFIG_NAME) in str(error.value)


@pytest.mark.parametrize("stated", [[], "none", {"mean": "NaN"}, {"mean": [1e400, 0, 0]}, {"size": [[]]}])
def test_a_preprocessing_that_is_none_is_refused(model: Path, stated: object) -> None:
    config = json.loads((model / CONFIG_NAME).read_text())
    text = json.dumps({**config, "preprocess_cfg": stated}).replace("Infinity", "1e400")
    (model / CONFIG_NAME).write_text(text)
    if stated == []:
        resolve_model(model)  # nothing is stated
        return
    if stated == {"size": [[]]}:
        resolve_model(model)  # the image tower says it
        return
    with pytest.raises(ModelError, match="preprocess"):
        resolve_model(model)


def set_in(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((model / CONFIG_NAME).read_text())
    change(config["model_cfg"])
    (model / CONFIG_NAME).write_text(json.dumps(config))


@pytest.mark.parametrize(
    "name", ["~nobody-of-this-name/model", "a\0b", "x" * 5000, "\udcff", "ViT-B-32:~nobody-here/x.pt"]
)
def test_a_name_that_is_none_is_a_sentence(name: str) -> None:
    with pytest.raises(ModelError, match=r"was not found|Unknown model|no weights"):
        resolve_model(name)
