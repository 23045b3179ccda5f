"""Of the text tower only the words for categories learn, and every other text stays what it was."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor

from finetune.config import FinetuneConfig
from finetune.data.pixels import ImageSet
from finetune.data.records import read_records
from finetune.data.species import Taxon
from finetune.model.base_model import find_base
from finetune.model.token_mask import name_tokens
from finetune.trainer import Trainer
from tests.fakes.pictures import draw_picture


def words(tokens: Tensor) -> set[str]:
    return {open_clip.decode(torch.tensor([int(token)])).strip() for token in tokens}


def test_the_tokens_of_a_name_are_its_words_without_the_frames_around_it() -> None:
    tokens = words(name_tokens(open_clip.tokenize, ["bird", "frog or mushroom", "close-up photo"]))
    assert {"bird", "frog", "mushroom"} <= tokens
    assert not {"a", "photo", "or", "of", "close", "this"} & tokens


def test_species_are_named_in_every_kind_of_text() -> None:
    taxon = Taxon("Amanita muscaria", "fly agaric", ("Fungi", "Basidiomycota"))
    tokens = words(name_tokens(open_clip.tokenize, [], [taxon]))
    assert {"fly", "fungi"} <= tokens
    assert not {"with", "common", "name"} & tokens


@pytest.fixture
def trainer(random_model: Path, tmp_path: Path) -> Trainer:
    for i in range(12):
        draw_picture(tmp_path / ("aves", "fungi")[i % 2] / f"{i}.png", seed=i)
    base = find_base(str(random_model))
    pictures = ImageSet(
        tmp_path, read_records(tmp_path), size=(36, 36), preprocess=base.preprocess, budget_bytes=1 << 20
    )
    config = FinetuneConfig(
        epochs=3, batch_size=6, lr=1e-3, text_lr_factor=30, names_only=True, image_layers=1, ema=0.5
    )
    return Trainer(base, pictures, config=config, device=torch.device("cpu"))


def test_training_names_moves_names_and_leaves_every_other_text_alone_to_the_bit(trainer: Trainer) -> None:
    others = ["two dogs play in the snow", "a photo of a car", "a picture"]
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    names, rest = trainer.encoder.encode_texts(["a bird", "mushroom"]), trainer.encoder.encode_texts(others)
    for number in range(trainer.steps):
        trainer.step(number, trainer.prepare(number))
    trainer.finish()
    assert torch.equal(trainer.encoder.encode_texts(others), rest)
    assert (trainer.encoder.encode_texts(["a bird", "mushroom"]) - names).abs().amax(dim=1).min() > 1e-3
    moved = {
        name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert moved == {"token_embedding.weight", "visual.proj", "visual.ln_post.weight", "visual.ln_post.bias"}
    table = trainer.model.token_embedding.weight  # type: ignore[union-attr]
    rows = (table != before["token_embedding.weight"]).any(dim=1).nonzero()[:, 0]  # type: ignore[union-attr]
    assert words(rows) == {"bird", "mushroom", "fungus"}
