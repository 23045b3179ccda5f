"""A checkpoint never runs code: neither by its weights nor by its tokenizer or its text tower."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune.model.base_model import find_base
from finetune.model.text_files import refuse_lost_tokenizer
from imret import Encoder
from imret.errors import ModelError
from imret.models.resolve import resolve_model
from tests.fakes.model_families import write_family
from tests.fakes.models import write_random_model

CONFIG_NAME = "open_clip_config.json"
OWN = """
open({marker!r}, "w").close()
from transformers import PretrainedConfig, PreTrainedTokenizerFast, PreTrainedModel
class Own(PreTrainedTokenizerFast):
    pass
class OwnConfig(PretrainedConfig):
    model_type = "own"
class OwnModel(PreTrainedModel):
    pass
"""


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("transformers")
    monkeypatch.setattr("builtins.input", lambda _prompt="": "y")  # as if somebody agreed
    return tmp_path / "it ran"


def with_code(folder: Path, marker: Path) -> Path:
    (folder / "own.py").write_text(OWN.format(marker=str(marker)))
    return folder


def change(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


def give(folder: Path, **options: object) -> None:
    change(folder / CONFIG_NAME, lambda it: it["model_cfg"]["text_cfg"].update(tokenizer_kwargs=options))


def uses(folder: Path) -> list[Callable[[], object]]:
    return [
        lambda: Encoder(folder, device="cpu").encode_texts(["a bird"]),
        lambda: resolve_model(folder).fingerprint and Encoder(folder, device="cpu").truncated(["a bird"]),
        lambda: refuse_lost_tokenizer(find_base(str(folder)), ["a bird"]),
    ]


def ask_for_own_tokenizer(folder: Path) -> None:
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    change(folder / "tokenizer_config.json", lambda it: it.update(own))


def ask_for_own_config(folder: Path) -> None:
    own = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoTokenizer": ["own.Own", None]},
    }
    change(folder / "config.json", lambda it: it.update(own))


@pytest.mark.parametrize("ask", [ask_for_own_tokenizer, ask_for_own_config])
@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_code_beside_a_tokenizer_is_not_run(
    tmp_path: Path, marker: Path, ask: Callable[[Path], None], options: dict[str, object]
) -> None:
    folder = with_code(write_family(tmp_path / "siglip", "siglip"), marker)
    ask(folder)
    if options:
        give(folder, **options)
    for use in uses(folder):
        with contextlib.suppress(ModelError):  # or it does without its code
            use()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trust_remote_code", True),
        ("trust_remote_code", 1),
        ("tokenizer_type", "bert"),
        ("tokenizer_file", "/dev/zero"),
        ("vocab_file", "/dev/zero"),
        ("bpe_path", "/dev/zero"),
        ("config", {"model_type": "own"}),
        ("code_revision", "main"),
        ("custom_generate", "own"),
        ("auto_map", {"AutoTokenizer": "own.Own"}),
        ("gguf_file", "a.gguf"),
        ("reduction_mask", "syntax"),
        ("cache_dir", "elsewhere"),
        ("clean", "nothing"),
        ("strip_sep_token", "yes"),
        ("additional_special_tokens", [1]),
    ],
)
def test_an_option_that_is_not_known_to_be_harmless_is_named(
    tmp_path: Path, random_model: Path, name: str, value: object
) -> None:
    folder = Path(shutil.copytree(random_model, tmp_path / "model"))
    give(folder, **{name: value})
    for use in uses(folder):
        with pytest.raises(ModelError) as error:
            use()
        assert repr(name) in str(error.value)
        assert str(folder / CONFIG_NAME) in str(error.value)


def test_options_that_published_models_have_are_taken(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=0)
    plain = Encoder(folder, device="cpu").encode_texts(["A red bird!"])
    give(folder, clean="canonicalize", additional_special_tokens=[], trust_remote_code=False)
    with pytest.raises(
        ModelError, match="trust_remote_code"
    ):  # which open_clip's own tokenizer does not take
        Encoder(folder, device="cpu").encode_texts(["A red bird!"])
    give(folder, clean="canonicalize")
    assert abs(Encoder(folder, device="cpu").encode_texts(["A red bird!"]) - plain).max() > 1e-4
    give(folder, clean="lower")
    assert abs(Encoder(folder, device="cpu").encode_texts(["A red bird!"]) - plain).max() < 1e-6


@pytest.mark.parametrize("kind", ["own", "gpt2", "clip"])
def test_code_beside_a_text_tower_is_not_run(tmp_path: Path, marker: Path, kind: str) -> None:
    folder = write_family(tmp_path / "mt5", "mt5")
    tower = with_code(tmp_path / "mt5-text-config", marker)
    own = {"model_type": kind, "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    if kind != "own":
        own["auto_map"] = {"AutoModel": "own.OwnModel"}
    change(tower / "config.json", lambda it: it.update(own))
    for use in (*uses(folder)[:1], lambda: find_base(str(folder)).build("cpu", seed=0)):  # type: ignore[arg-type]
        with pytest.raises(ModelError, match=r"custom code|of the kind|Cannot build"):
            use()
    assert not marker.exists()


def test_code_of_a_repository_is_not_run(tmp_path: Path, marker: Path) -> None:
    folder = with_code(write_family(tmp_path / "siglip", "siglip"), marker)
    ask_for_own_tokenizer(folder)
    (folder / "config.json").write_text("{}")  # or it would be looked for in the hub
    change(
        folder / CONFIG_NAME,
        lambda it: it["model_cfg"]["text_cfg"].update(hf_tokenizer_name="somebody/a-model"),
    )
    repository = tmp_path / "hub" / "hub" / "models--somebody--a-model"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    code = "import imret; imret.Encoder('hf-hub:somebody/a-model', device='cpu').encode_texts(['a bird'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="y\n" * 9,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
    )
    assert "ModelError" in done.stderr
    assert "runs no code" in done.stderr or "custom code" in done.stderr, done.stderr
    assert not marker.exists()
