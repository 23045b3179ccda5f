"""Every family of models is tuned and searched, end to end, and stock open_clip reads what was written.

One small member of each, with random weights. Those whose texts are read by Hugging Face's transformers are
skipped where that is not installed.
"""

from __future__ import annotations

import dataclasses
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from finetune.callbacks import Callbacks
from finetune.config import FinetuneConfig
from finetune.model.base_model import find_base
from finetune.run import check, finetune
from imret import Encoder, search
from imret.datasets.phrases import read_phrases
from imret.errors import ModelError
from imret.retrieval.classify import classify
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.model_families import FAMILIES, write_family
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

# Towers of 224 pixels and more take seconds a step; xlm-roberta is built as roberta is.
_SLOW = ("eva02", "pe", "mobileclip", "xlm-roberta")
# Texts that a tokenizer could read otherwise once it is written: capitals, signs, another script, too long.
TEXTS = [*read_phrases()[:40], "A Red-backed BIRD!", "naïve café", "蘑菇", "a_b  c", "bird " * 300]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are too small for two threads to help, and threads wait long where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(20):
        draw_picture(folder / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Give a member of a family, on disk."""

    def write(family: str) -> Path:
        text_cfg = FAMILIES[family]["text_cfg"]
        if "hf_tokenizer_name" in text_cfg:
            pytest.importorskip("transformers")
        return write_family(tmp_path / "base", family)

    return write


def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address} was asked for")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


def _tune(photos: Path, base: Path, output: Path, recipe: str = "light", **changes: Any) -> dict[str, Any]:
    config = FinetuneConfig.of(recipe, **{"epochs": 1, "least_steps": 2, "batch_size": 8, **changes})
    return finetune(photos, output, model=str(base), config=config, device="cpu")


def _same_in_stock_open_clip(tuned: Path, photos: Path) -> None:
    """Compare tokens and embeddings of stock open_clip with imret's."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tuned}")
    model.eval()
    encoder = Encoder(tuned, device="cpu", precision="fp32")
    tokens = open_clip.get_tokenizer(f"local-dir:{tuned}")(TEXTS)
    assert torch.equal(tokens, find_base(str(tuned)).tokenize(TEXTS))
    picture = photos / "aves" / "0.png"
    with torch.no_grad():
        of_texts = model.encode_text(tokens, normalize=True).numpy()
        of_picture = model.encode_image(transform(Image.open(picture))[None], normalize=True).numpy()
    with pytest.warns(UserWarning, match="was cut"):  # the last of the texts
        np.testing.assert_allclose(encoder.encode_texts(TEXTS), of_texts, atol=1e-5)
    assert (encoder.encode_images([picture]) * of_picture).sum() > 0.999


def _families() -> list[Any]:
    return [
        pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name
        for name in FAMILIES
        if name != "coca"
    ]


@pytest.mark.parametrize("family", _families())
def test_a_tuned_model_is_read_by_stock_open_clip_and_searched_without_a_network(
    family: str,
    written: Callable[[str], Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, tuned = written(family), tmp_path / "tuned"
    check(photos, model=str(base))
    _tune(photos, base, tuned)
    _same_in_stock_open_clip(tuned, photos)

    # What is left is the folder: moved elsewhere, without its base, without a network.
    moved = tmp_path / "elsewhere" / "tuned"
    moved.parent.mkdir()
    shutil.move(tuned, moved)
    for path in tmp_path.glob("base*"):
        shutil.rmtree(path)
    _no_network(monkeypatch)
    encoder = Encoder(moved, device="cpu", precision="fp32")
    with open_store(str(tmp_path / "db")) as store:
        report = ingest(store, [FolderSource(photos)], encoder=encoder)
        assert report.encoded == 20
        assert len(search(store, "bird", encoder=encoder, limit=3)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["names", "lora", "full", "plain"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "coca"])
def test_every_recipe_trains_every_family(
    family: str, recipe: str, written: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    base, tuned = written(family), tmp_path / "tuned"
    training = _tune(photos, base, tuned, recipe, lr=1e-3, blend=False)
    before, after = Encoder(base, device="cpu"), Encoder(tuned, device="cpu")
    moved = np.abs(before.encode_texts(["a bird"]) - after.encode_texts(["a bird"])).max()
    assert moved > 1e-4
    assert ("images_of" in training) == (recipe == "names")


@pytest.mark.parametrize("from_scratch", [False, True])
def test_coca_is_refused_before_anything_is_decoded(
    from_scratch: bool, written: Callable[[str], Path], photos: Path, tmp_path: Path
) -> None:
    model = "coca_ViT-B-32" if from_scratch else str(written("coca"))
    refusal = "is a CoCa model, whose captioner this trainer would spoil. Start from a CLIP"
    with pytest.raises(ModelError, match=refusal):
        check(photos, model=model, from_scratch=from_scratch)
    with pytest.raises(ModelError, match=refusal):
        finetune(photos, tmp_path / "tuned", model=model, from_scratch=from_scratch)
    assert not (tmp_path / "tuned").exists()


def test_the_sigmoid_of_a_model_stays_and_with_it_what_classify_says(photos: Path, tmp_path: Path) -> None:
    base, tuned = write_random_model(tmp_path / "base", seed=0, sigmoid=True), tmp_path / "tuned"
    messages: list[str] = []
    config = FinetuneConfig.of("plain", epochs=1, batch_size=8, lr=1e-12, blend=False)
    training = finetune(
        photos,
        tuned,
        model=str(base),
        config=config,
        device="cpu",
        callbacks=Callbacks(messages.append),
    )
    assert training["loss"] == "sigmoid"
    assert sum("by a sigmoid, and is trained with that loss" in message for message in messages) == 1
    before, after = (Encoder(folder, device="cpu", precision="fp32") for folder in (base, tuned))
    assert (after.logit_scale, after.logit_bias) == (before.logit_scale, before.logit_bias)
    assert after.logit_scale == pytest.approx(117.3)
    pictures = sorted(photos.rglob("*.png"))[:4]
    of_base, of_tuned = (
        [[p.probability for p in one.predictions] for one in classify(pictures, ["bird", "fish"], encoder=e)]
        for e in (before, after)
    )
    np.testing.assert_allclose(of_tuned, of_base, rtol=1e-4)


def test_a_learnt_scale_is_never_cut_to_less_than_it_began_with(photos: Path, tmp_path: Path) -> None:
    base, tuned = write_random_model(tmp_path / "base", seed=0, sigmoid=True), tmp_path / "tuned"
    _tune(photos, base, tuned, "plain", lr=1e-6, learn_logit_scale=True, blend=False)
    before, after = Encoder(base, device="cpu"), Encoder(tuned, device="cpu")
    assert after.logit_scale == pytest.approx(117.3, rel=1e-4)  # CLIP's bound is 100
    assert after.logit_bias != before.logit_bias


def test_a_softmax_is_trained_as_one_and_that_is_recorded(
    random_model: Path, photos: Path, tmp_path: Path
) -> None:
    assert _tune(photos, random_model, tmp_path / "tuned")["loss"] == "softmax"


def test_a_sigmoid_model_from_scratch_begins_with_the_scale_and_bias_of_siglip() -> None:
    base = find_base("imret-tiny", from_scratch=True)
    sigmoid = dataclasses.replace(base, model_cfg={**base.model_cfg, "init_logit_bias": -10})
    model = sigmoid.build(torch.device("cpu"), seed=0)
    assert model.logit_scale.exp().item() == pytest.approx(10)  # type: ignore[union-attr, operator]
    assert model.logit_bias.item() == -10  # type: ignore[union-attr, operator]
    softmax = base.build(torch.device("cpu"), seed=0).logit_scale.exp()  # type: ignore[union-attr, operator]
    assert softmax.item() == pytest.approx(1 / 0.07)
