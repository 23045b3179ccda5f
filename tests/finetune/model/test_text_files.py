"""The tokenizer of a base goes into the tuned folder, or nothing is trained; no code of a model is run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import checkpoint
from finetune.checkpoint import save_model
from finetune.config import FinetuneConfig
from finetune.model.base_model import find_base
from finetune.model.text_files import refuse_lost_tokenizer, shipped_config, write_text_files
from finetune.run import check, finetune
from imret import Encoder
from imret.errors import DataError, ModelError
from imret.models.tokenizer import count_tokens
from tests.fakes.model_families import write_family
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

CONFIG_NAME = "open_clip_config.json"


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    pytest.importorskip("transformers")
    return write_family(tmp_path / "siglip", "siglip")


def change_text_cfg(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    config = json.loads((folder / CONFIG_NAME).read_text())
    change(config["model_cfg"]["text_cfg"])
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    return folder


def save(base_folder: Path, output: Path) -> set[str]:
    """Write a base as if it were tuned; return the names of what is there."""
    base = find_base(str(base_folder))
    output.mkdir(exist_ok=True)
    model = base.build(torch.device("cpu"), seed=0)
    save_model(
        output,
        model,
        model_cfg=base.model_cfg,
        preprocess=base.preprocess,
        training={},
        tokenizer=base.tokenizer,
    )
    return {path.name for path in output.iterdir()}


def test_nothing_of_an_earlier_tokenizer_or_tower_stays_in_the_folder(siglip: Path, tmp_path: Path) -> None:
    output, model = tmp_path / "tuned", {CONFIG_NAME, "open_clip_model.safetensors", "training.json"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert save(write_family(tmp_path / "roberta", "roberta"), output) == model | tokenizer | {"text_tower"}
    (output / "added_tokens.json").write_text("{}")
    training = json.loads((output / "training.json").read_text())
    assert training["text_files"] == ["text_tower/config.json", "tokenizer.json", "tokenizer_config.json"]
    training["text_files"].append("added_tokens.json")  # as another tokenizer would have left it
    (output / "training.json").write_text(json.dumps(training))
    assert save(siglip, output) == model | tokenizer
    assert Encoder(output, device="cpu").encode_texts(["a bird"]).shape == (1, 64)
    for name in ("vocab.txt", "config.json"):
        (output / name).write_text("somebody else's")
    assert save(write_random_model(tmp_path / "clip", seed=0), output) == model | {"vocab.txt", "config.json"}
    assert "text_files" not in json.loads((output / "training.json").read_text())


class Killed(BaseException):
    """What ends a process without a word."""


@pytest.mark.parametrize("last", ["tokenizer.json", "training.json", "config.json"])
def test_what_a_killed_run_placed_goes_with_the_next_tokenizer(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    output, model = tmp_path / "tuned", {CONFIG_NAME, "open_clip_model.safetensors", "training.json"}
    plain = write_random_model(tmp_path / "clip", seed=0)
    save(write_family(tmp_path / "roberta", "roberta") if last == "config.json" else plain, output)
    whole = checkpoint.write_whole

    def killed(path: Path, write: Callable[[Path], object]) -> None:
        if last == "training.json" and (output / "tokenizer.json").exists() and path.name == last:
            raise Killed
        whole(path, write)
        if path.name == last and last != "training.json":
            raise Killed

    monkeypatch.setattr(checkpoint, "write_whole", killed)
    with pytest.raises(Killed):
        save(tmp_path / "roberta" if last == "config.json" else siglip, output)
    monkeypatch.undo()
    assert (output / ("text_tower/config.json" if last == "config.json" else "tokenizer.json")).exists()
    assert not (output / CONFIG_NAME).exists()
    assert save(plain, output) == model


def test_a_file_of_ones_own_in_the_place_of_the_tokenizers_is_refused_and_kept(
    siglip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "tuned"
    plain = write_random_model(tmp_path / "clip", seed=0)
    before = save(plain, output)
    weights = (output / "open_clip_model.safetensors").read_bytes()
    (output / "tokenizer.json").write_text("mine")
    says = r"'tokenizer\.json'.*no run made.*\n.*Move it away"
    with pytest.raises(DataError, match=says):  # before anything is trained
        checkpoint.check_output(tmp_path / "photos", output, find_base(str(siglip)))
    with pytest.raises(DataError, match=says):  # it came meanwhile
        save(siglip, output)
    assert (output / "tokenizer.json").read_text() == "mine"
    assert (output / "open_clip_model.safetensors").read_bytes() == weights
    assert {path.name for path in output.iterdir()} == before | {"tokenizer.json"}
    checkpoint.check_output(tmp_path / "photos", output, find_base(str(plain)))
    (output / "tokenizer.json").unlink()
    save(siglip, output)
    checkpoint.check_output(tmp_path / "photos", output, find_base(str(siglip)))


def test_what_was_read_before_is_not_written_with_the_tokenizer(siglip: Path, tmp_path: Path) -> None:
    find_base(str(siglip)).tokenize(["a bird"])
    save(siglip, tmp_path / "one")
    base = find_base(str(siglip))
    base.tokenize(["a bird " * 50])
    (tmp_path / "two").mkdir()
    write_text_files(tmp_path / "two", base.tokenizer, None)
    one, two = (json.loads((tmp_path / name / "tokenizer.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert (two["truncation"], two["padding"]) == (None, None)


def test_a_plain_tokenizer_is_named_as_every_version_of_transformers_knows_it(
    siglip: Path, tmp_path: Path
) -> None:
    save(siglip, tmp_path / "tuned")
    config = json.loads((tmp_path / "tuned" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_tokenizer_in_a_sub_folder_of_the_base_lies_in_the_tuned_folder_itself(
    siglip: Path, tmp_path: Path
) -> None:
    (siglip / "words").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (siglip / name).rename(siglip / "words" / name)
    change_text_cfg(siglip, lambda cfg: cfg["tokenizer_kwargs"].update(subfolder="words"))
    base = find_base(str(siglip))
    refuse_lost_tokenizer(base, ["a bird"])
    save(siglip, tmp_path / "tuned")
    tuned = find_base(str(tmp_path / "tuned"))
    assert tuned.model_cfg["text_cfg"]["tokenizer_kwargs"] == {"clean": "canonicalize"}
    assert torch.equal(tuned.tokenize(["A red, RED bird!"]), base.tokenize(["A red, RED bird!"]))


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_texts_are_cleaned_for_training_as_they_are_for_a_search(
    clean: str, tmp_path: Path, random_model: Path
) -> None:
    folder = write_random_model(tmp_path / "clip", seed=0)
    change_text_cfg(folder, lambda cfg: cfg.update(tokenizer_kwargs={"clean": clean}))
    base = find_base(str(folder))
    tokens = base.tokenize(["A Red-backed  BIRD!"])
    assert torch.equal(tokens, Encoder(folder, device="cpu")._tokenize(["A Red-backed  BIRD!"]))
    assert count_tokens(base.tokenizer, "A Red-backed  BIRD!") == int((tokens != 0).sum())
    plain = find_base(str(random_model)).tokenize(["A Red-backed  BIRD!"])
    assert torch.equal(tokens, plain) == (clean == "lower")


def test_a_text_is_counted_as_it_is_read_and_only_what_is_cut_is_warned_of(siglip: Path) -> None:
    encoder, base = Encoder(siglip, device="cpu"), find_base(str(siglip))
    signs = "bird " + "!?; " * 40  # which are cleaned away
    assert count_tokens(base.tokenizer, signs) == count_tokens(base.tokenizer, "bird") < 32
    assert encoder.truncated([signs, "bird " * 40]) == ["bird " * 40]


def test_in_the_clips_mode_the_tokens_that_open_clip_adds_count(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = write_family(tmp_path / "clips", "clipa")

    def clips(cfg: dict[str, Any]) -> None:
        cfg.update(tokenizer_mode="clips", context_length=12, tokenizer_kwargs={})
        # open_clip takes them from the tokenizer, and BERT's has neither.
        cfg["tokenizer_kwargs"] = {"bos_token": "[CLS]", "eos_token": "[SEP]"}

    base = find_base(str(change_text_cfg(folder, clips)))
    refuse_lost_tokenizer(base, ["a bird"])
    words = ["bird"] * 30
    for n in range(1, 12):
        text = " ".join(words[:n])
        cut = not torch.equal(base.tokenize([text]), base.tokenize([" ".join(words[: n + 1])]))
        assert (count_tokens(base.tokenizer, text) < 12) == cut


def test_a_folder_without_its_tokenizer_says_how_to_get_it(siglip: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (siglip / name).unlink()
    with pytest.raises(ModelError, match="none of its files, such as") as raised:
        Encoder(siglip, device="cpu").encode_texts(["a bird"])
    assert f"T.from_pretrained('unigram').save_pretrained('{siglip}')" in str(raised.value)


def test_code_that_comes_with_a_tokenizer_is_never_run(siglip: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (siglip / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    config = json.loads((siglip / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (siglip / "tokenizer_config.json").write_text(json.dumps(config))
    change_text_cfg(siglip, lambda cfg: cfg["tokenizer_kwargs"].update(trust_remote_code=True))
    for use in (
        lambda: Encoder(siglip, device="cpu").encode_texts(["a bird"]),
        lambda: refuse_lost_tokenizer(find_base(str(siglip)), ["a bird"]),
    ):
        with pytest.raises(ModelError, match="imret runs no code that comes with a model"):
            use()
    assert not ran.exists()


def test_code_that_comes_with_a_text_tower_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    folder, ran = write_family(tmp_path / "mt5", "mt5"), tmp_path / "ran"
    tower = tmp_path / "mt5-text-config"
    (tower / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig\n"
        "class Own(PretrainedConfig):\n    model_type = 'own'\n"
    )
    (tower / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}})
    )
    monkeypatch.setattr("builtins.input", lambda _prompt="": "y")  # as if somebody agreed
    with pytest.raises(ModelError, match="contains custom code"):
        Encoder(folder, device="cpu").encode_texts(["a bird"])
    assert not ran.exists()


def test_a_tokenizer_that_is_not_the_same_once_written_is_refused_before_training(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_family(tmp_path / "other", "clipa")

    def write_another(self: Any, folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (Path(folder) / name).write_bytes((other / name).read_bytes())

    monkeypatch.setattr("open_clip.tokenizer.HFTokenizer.save_pretrained", write_another)
    for i in range(8):
        draw_picture(tmp_path / "photos" / ("aves", "fungi")[i % 2] / f"{i}.png", seed=i)
    with pytest.raises(ModelError, match="otherwise once it is written into the folder of a tuned model"):
        check(tmp_path / "photos", model=str(siglip))
    with pytest.raises(ModelError, match="otherwise once it is written"):
        finetune(tmp_path / "photos", tmp_path / "tuned", model=str(siglip), config=FinetuneConfig(epochs=1))
    assert not (tmp_path / "tuned").exists()


def test_a_tokenizer_known_by_the_name_of_its_architecture_is_named_in_the_folder() -> None:
    class OfSigLip:
        def save_pretrained(self, folder: Path) -> None: ...

    cfg = shipped_config({"embed_dim": 8, "vision_cfg": {}, "text_cfg": {"width": 8}}, OfSigLip())
    assert cfg["text_cfg"]["hf_tokenizer_name"]
    assert cfg["text_cfg"]["tokenizer_kwargs"] == {"clean": "canonicalize"}
