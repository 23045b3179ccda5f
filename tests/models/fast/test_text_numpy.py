"""Texts encoded without torch: the same vectors, messages and hits, and the way back."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from threadpoolctl import ThreadpoolController, threadpool_limits

import imret
from imret.errors import ModelError
from imret.models import lazy_encoder
from imret.models.embedding import unit_mean
from imret.models.encoder import Encoder
from imret.models.fast import text_numpy
from imret.models.fast.text_numpy import NumpyTextTower, gelu, open_text_tower, quick_gelu
from imret.models.fast.tokenizer import TextTruncated
from imret.models.lazy_encoder import LazyEncoder, RowBudget
from imret.models.resolve import resolve_model
from tests.fakes.pictures import draw_picture

TEXTS = ["a mushroom", "x", "", "Ein Pilz &amp; ein Baum — café naïve", "猫 🍄 <b>bold</b>", "red " * 90]
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def _write(
    folder: Path,
    model: Path,
    tensors: dict[str, torch.Tensor] | None = None,
    *,
    cfg: dict[str, Any] | None = None,
    text_cfg: dict[str, Any] | None = None,
) -> Path:
    folder.mkdir()
    config = json.loads((model / CONFIG).read_text())
    config["model_cfg"].update(cfg or {})
    config["model_cfg"]["text_cfg"].update(text_cfg or {})
    (folder / CONFIG).write_text(json.dumps(config))
    save_file(load_file(model / WEIGHTS) if tensors is None else tensors, folder / WEIGHTS)
    return folder


def _light(model: Path) -> NumpyTextTower:
    light = open_text_tower(resolve_model(model))
    assert light is not None
    return light


def _torch(model: Path, texts: list[str]) -> NDArray[np.float32]:
    return Encoder(model, device="cpu", precision="fp32").encode_texts(texts)


# ---- The same vectors ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:A text is longer")
@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_vectors_are_those_of_torch(
    random_model: Path, tmp_path: Path, dtype: torch.dtype, quick_gelu: bool
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(random_model / WEIGHTS).items()}
    folder = _write(tmp_path / "model", random_model, tensors, cfg={"quick_gelu": quick_gelu})
    rows = _light(folder).encode_texts(TEXTS)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, _torch(folder, TEXTS), atol=1e-5)
    # Alone, a text has fewer positions than beside a longer one.
    np.testing.assert_allclose(_light(folder).encode_texts(TEXTS[:1]), rows[:1], atol=1e-6)


def test_both_activations_make_a_difference(random_model: Path, tmp_path: Path) -> None:
    quick = _write(tmp_path / "model", random_model, cfg={"quick_gelu": True})
    apart = np.abs(_light(quick).encode_texts(["x"]) - _light(random_model).encode_texts(["x"])).max()
    assert apart > 1e-4


def test_vectors_of_a_real_model_are_those_of_torch(shared_data: Path) -> None:
    texts = ["a photo of a mushroom.", "two dogs run over a beach", "snow"]
    model = shared_data / "tiny-clip"
    assert (_light(model).encode_texts(texts) * _torch(model, texts)).sum(axis=1).min() > 0.99999


def test_weights_that_begin_at_an_odd_byte_are_read(random_model: Path, tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", random_model)
    data = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    (folder / WEIGHTS).write_bytes(
        (size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :]
    )
    np.testing.assert_array_equal(
        _light(folder).encode_texts(TEXTS[:2]), _light(random_model).encode_texts(TEXTS[:2])
    )


def test_activations_are_those_of_torch_wherever_they_are_used() -> None:
    x = np.concatenate([np.linspace(-12, 12, 200_001), [0.0, -0.0, 1e-20, -1e30, 1e30]]).astype(np.float32)
    exact = np.array([value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.astype(float).tolist()])
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(gelu(x), exact, atol=1e-6, rtol=3e-7)
        wanted = torch.from_numpy(x) * torch.sigmoid(1.702 * torch.from_numpy(x))
        np.testing.assert_allclose(quick_gelu(x), wanted, atol=1e-6, rtol=1e-6)


def _blas_threads() -> list[int]:
    """The number of threads of each BLAS that this process has loaded."""
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library.num_threads for library in libraries]


def test_several_threads_get_their_own_texts_and_numpy_its_threads_back(random_model: Path) -> None:
    light = _light(random_model)
    before = _blas_threads()
    expected = [light.encode_texts([text])[0] for text in TEXTS[:4]]
    rows: dict[int, NDArray[np.float32]] = {}

    def encode(i: int) -> None:
        for _ in range(5):
            rows[i] = light.encode_texts([TEXTS[i]])[0]

    threads = [threading.Thread(target=encode, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, row in enumerate(expected):
        np.testing.assert_array_equal(rows[i], row)
    assert _blas_threads() == before


def test_a_text_tower_that_is_a_part_of_its_own_is_read_by_its_own_names(
    random_model: Path, tmp_path: Path
) -> None:
    native = load_file(random_model / WEIGHTS)
    own = {
        name if name.startswith(("visual.", "logit_")) else f"text.{name}": tensor
        for name, tensor in native.items()
    }
    folder = _write(tmp_path / "own", random_model, own, cfg={"custom_text": True})
    rows = _light(folder).encode_texts(TEXTS[:3])
    np.testing.assert_array_equal(rows, _light(random_model).encode_texts(TEXTS[:3]))
    np.testing.assert_allclose(rows, _torch(folder, TEXTS[:3]), atol=1e-5)
    converted = _write(tmp_path / "converted", random_model, native, cfg={"custom_text": True})
    assert open_text_tower(resolve_model(converted)) is None  # open_clip renames them


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_share_a_product_and_change_nothing(
    random_model: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    seen: set[int] = set()
    product = text_numpy._Products.product

    def watched(self: text_numpy._Products, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.update(_blas_threads())
        return product(self, name, x)

    monkeypatch.setattr(text_numpy._Products, "product", watched)
    with threadpool_limits(threads, user_api="blas"):
        light = _light(random_model)
        assert light._products._threads == threads
        rows = light.encode_texts(TEXTS[:5])
        assert seen == {1}
        assert set(_blas_threads()) == {threads}
    np.testing.assert_allclose(rows, _torch(random_model, TEXTS[:5]), atol=1e-5)


# ---- The same messages ---------------------------------------------------------------------------------


def test_a_text_that_does_not_fit_is_told_and_warned_of_where_it_was_asked(random_model: Path) -> None:
    light = _light(random_model)
    assert light.truncated(["a mushroom", "red " * 90, "red " * 75]) == ["red " * 90]
    with pytest.warns(TextTruncated, match=r"longer than the 77 tokens.*'red red"):
        light.encode_texts(["a mushroom", "red " * 90])


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_weights_without_a_direction_are_refused_as_by_torch(
    random_model: Path, tmp_path: Path, value: float
) -> None:
    tensors = load_file(random_model / WEIGHTS)
    tensors["text_projection"][:] = value
    folder = _write(tmp_path / "model", random_model, tensors)
    with pytest.raises(ModelError, match="gave no direction for text number 1 ") as theirs:
        _torch(folder, ["x", "y"])
    with pytest.raises(ModelError, match=re.escape(str(theirs.value))):
        _light(folder).encode_texts(["x", "y"])


# ---- What is left to torch -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"proj_bias": False},
        {"no_causal_mask": False},
        {"mlp_ratio": 4.0},
        {"eos_id": 2},
        {"hf_tokenizer_name": "bert"},
        {"tokenizer_kwargs": {"clean": "whitespace"}},
        {"heads": 3},
        {"vocab_size": None},
        {"vocab_size": 1000},
    ],
)
def test_a_tower_described_otherwise_is_left_to_torch(
    random_model: Path, tmp_path: Path, text_cfg: dict[str, Any]
) -> None:
    folder = _write(tmp_path / "model", random_model, text_cfg=text_cfg)
    assert open_text_tower(resolve_model(folder)) is None


def _spoilt(model: Path, fault: str) -> dict[str, torch.Tensor]:
    """The tensors of a model with one fault; as they are, where it is a fault of the file."""
    tensors = load_file(model / WEIGHTS)
    if fault == "missing":
        del tensors["ln_final.bias"]
    elif fault == "unknown":
        tensors["transformer.extra"] = torch.zeros(1)
    elif fault == "misshapen":
        tensors["text_projection"] = torch.zeros(32, 31)
    elif fault == "float64":
        tensors["text_projection"] = tensors["text_projection"].double()
    elif fault == "no scale":
        del tensors["logit_scale"]
    return tensors


@pytest.mark.parametrize(
    "fault", ["missing", "unknown", "misshapen", "float64", "torch.save", "cut off", "absent", "no scale"]
)
def test_weights_that_are_not_as_expected_are_left_to_torch(
    random_model: Path, tmp_path: Path, fault: str
) -> None:
    tensors = _spoilt(random_model, fault)
    files = resolve_model(_write(tmp_path / "model", random_model, tensors))
    if fault == "torch.save":
        torch.save(tensors, files.weights)
        files.weights.rename(files.weights.with_suffix(".pt"))
        files = resolve_model(f"ViT-B-32:{files.weights.with_suffix('.pt')}")
    elif fault == "cut off":
        files.weights.write_bytes(files.weights.read_bytes()[:-1])
    elif fault == "absent":
        files.weights.unlink()
    assert open_text_tower(files) is None


def test_leftovers_of_old_checkpoints_are_no_obstacle(random_model: Path, tmp_path: Path) -> None:
    tensors = load_file(random_model / WEIGHTS)
    tensors["attn_mask"] = torch.zeros(77, 77)
    folder = _write(tmp_path / "model", random_model, tensors)
    np.testing.assert_array_equal(
        _light(folder).encode_texts(["x"]), _light(random_model).encode_texts(["x"])
    )


# ---- Which way a process takes -------------------------------------------------------------------------


@pytest.fixture
def _no_torch_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let queries be asked as in a process that has not imported torch."""
    monkeypatch.setattr(lazy_encoder, "_has_torch", lambda: False)
    monkeypatch.setattr(LazyEncoder, "row_budget", RowBudget(10_000))
    monkeypatch.setenv("IMRET_QUERY_CACHE", "off")


@pytest.mark.usefixtures("_no_torch_yet")
def test_a_new_text_needs_no_torch_and_a_device_or_precision_or_the_switch_brings_it(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Encoder(random_model, device="cpu", precision="fp32").encode_mean(TEXTS[:2])
    given: list[dict[str, str]] = [{}, {"precision": "fp32"}, {"device": "cpu"}]
    for options in given:
        encoder = LazyEncoder(random_model, **options)
        np.testing.assert_allclose(encoder.encode_mean(TEXTS[:2]), expected, atol=1e-5)
        rows = encoder.encode_texts(TEXTS[:2])
        np.testing.assert_array_equal(encoder.encode_bank(TEXTS[:2]), rows)
        np.testing.assert_array_equal(unit_mean(rows, TEXTS[:2], ""), encoder.encode_mean(TEXTS[:2]))
        assert not encoder.is_loaded, options
    rounded = LazyEncoder(random_model, device="cpu", precision="bf16")
    rounded.encode_mean(TEXTS[:2])
    assert rounded.is_loaded
    with pytest.raises(ModelError, match="'cuda:99' cannot be used"):
        LazyEncoder(random_model, device="cuda:99").encode_mean(TEXTS[:2])
    monkeypatch.setenv("IMRET_LIGHT_TEXT", "off")
    encoder = LazyEncoder(random_model, device="cpu", precision="fp32")
    np.testing.assert_array_equal(encoder.encode_mean(TEXTS[:2]), expected)
    assert encoder.is_loaded


def test_a_process_that_has_torch_uses_it(random_model: Path) -> None:
    encoder = LazyEncoder(random_model, device="cpu", precision="fp32")
    encoder.encode_mean(TEXTS[:2])
    assert encoder.is_loaded


@pytest.mark.usefixtures("_no_torch_yet")
def test_a_process_that_asks_much_goes_over_to_torch_whatever_its_encoders(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 50 a call, for reading the weights
    monkeypatch.setattr(LazyEncoder, "row_budget", RowBudget(85 + 3 * 50))
    wanted = Encoder(random_model, device="cpu", precision="fp32")
    # "a mushroom" is 4 rows, a text that is cut 77, and two texts twice those of the longer.
    for texts, heavy in (
        (["a mushroom"], False),
        (["red " * 90], False),
        (["x", "a mushroom"], True),
        (["a mushroom"], False),
        (["x"], True),
    ):
        encoder = LazyEncoder(random_model, device="cpu", precision="fp32")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mean = encoder.encode_mean(texts)
        assert [warning.category for warning in caught] == [TextTruncated] * (texts[0] == "red " * 90)
        assert encoder.is_loaded == heavy, texts
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextTruncated)
            np.testing.assert_allclose(mean, wanted.encode_mean(texts), atol=1e-5)


@pytest.mark.usefixtures("_no_torch_yet")
def test_an_encoder_that_has_loaded_torch_for_pictures_has_it_for_texts(
    random_model: Path, tmp_path: Path
) -> None:
    encoder = LazyEncoder(random_model, device="cpu", precision="fp32")
    pictures = [draw_picture(tmp_path / "a.png")]
    assert len(imret.classify(pictures, ["mushroom", "bird"], encoder=encoder)) == 1
    assert sorted(encoder.encoder._towers) == ["image", "text"]


@pytest.mark.usefixtures("_no_torch_yet")
def test_a_mean_without_a_direction_is_refused_as_by_torch(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = LazyEncoder(random_model, device="cpu", precision="fp32")
    with pytest.raises(ValueError, match="mean of no texts"):
        encoder.encode_mean([])
    rows = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    monkeypatch.setattr(NumpyTextTower, "encode_texts", lambda self, texts: rows)
    with pytest.raises(ModelError, match=r"no direction for the mean of \['x', 'y'\]"):
        encoder.encode_mean(["x", "y"])


@pytest.mark.usefixtures("_no_torch_yet")
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"missing: ln_final\.bias"),
        ("unknown", r"unknown: transformer\.extra"),
        ("misshapen", r"other shape: text_projection \(32, 31\) where \(32, 32\) belongs"),
        ("cut off", "is not a whole safetensors file"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_torch_with_its_message(
    random_model: Path, tmp_path: Path, fault: str, message: str
) -> None:
    tensors = _spoilt(random_model, fault)
    folder = _write(tmp_path / "model", random_model, tensors)
    if fault == "cut off":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(ModelError, match=message):
        LazyEncoder(folder, device="cpu").encode_mean(["a mushroom"])


SEARCH = """
import sys
from imret.cli.main import main
try:
    main()
finally:
    print({"torch", "open_clip", "torchvision", "timm", "PIL"} & set(sys.modules), file=sys.stderr)
"""


def test_a_search_for_a_new_text_imports_no_torch_and_finds_what_torch_finds(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(6):
        draw_picture(tmp_path / "photos" / f"kind{seed % 2}" / f"{seed}.png", seed=seed)
    encoder = Encoder(random_model, device="cpu", precision="fp32")
    monkeypatch.setenv("IMRET_QUERY_CACHE", "off")
    db = str(tmp_path / "db")
    with imret.open_store(db) as store:
        imret.ingest(store, [imret.FolderSource(tmp_path / "photos")], encoder=encoder)

    def search(query: str) -> tuple[list[dict[str, Any]], str]:
        command = [sys.executable, "-c", SEARCH, "search", query, "--format", "json", "--db", db]
        done = subprocess.run([*command, "--precision", "fp32"], capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.splitlines()[-1]

    query = "a mushroom in the very wet grass"
    found, loaded = search(query)
    assert loaded == "set()"
    with imret.open_store(db) as store:
        expected = [(hit.path, hit.score) for hit in imret.search(store, query, encoder=encoder)]
    assert len(expected) == 6
    assert [hit["path"] for hit in found] == [path for path, _ in expected]
    scores = [score for _, score in expected]
    np.testing.assert_allclose([hit["score"] for hit in found], scores, atol=1e-5)
    assert search("a mushroom")[1] == "set()"  # put into templates
    monkeypatch.setenv("IMRET_LIGHT_TEXT", "off")
    heavy, loaded = search(query)
    assert "'torch'" in loaded
    assert [hit["path"] for hit in heavy] == [path for path, _ in expected]
    np.testing.assert_allclose([hit["score"] for hit in heavy], scores, atol=1e-5)
