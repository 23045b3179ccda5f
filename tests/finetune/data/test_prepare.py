"""What is trained on is told and checked first: copies, labels, leaks, texts that do not fit, odd bases."""

from __future__ import annotations

import contextlib
import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from finetune.callbacks import Callbacks
from finetune.config import FinetuneConfig
from finetune.data.prepare import Data, prepare
from finetune.data.sources import find_sources
from finetune.model.base_model import find_base
from finetune.run import check, finetune
from finetune.validation import Validation
from imret.cli.main import cli
from imret.errors import DataError
from imret.images.decode import load_image
from imret.images.preprocess import Preprocess
from imret.images.resize import fit_image, load_pixels
from imret.retrieval.prompts import evaluation_queries
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

CONFIG = FinetuneConfig.of("scratch", epochs=1, batch_size=8, validation_share=0.2)
SCRATCH: dict[str, Any] = {"model": "imret-tiny", "from_scratch": True, "config": CONFIG}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two categories of ten pictures, all of them different."""
    for c, category in enumerate(("aves", "fungi")):
        for i in range(10):
            draw_picture(tmp_path / "photos" / category / f"{i}.png", seed=100 * c + i, size=(96, 96))
    return tmp_path / "photos"


@pytest.fixture
def gathered() -> Iterator[Callable[..., Data]]:
    """A function that finds and decodes, as a run does."""
    with contextlib.ExitStack() as opened:

        def gather_all(train: Path, **options: Any) -> Data:
            base = find_base("imret-tiny", from_scratch=True)
            return prepare(find_sources(train, **options), base, CONFIG, opened=opened)

        yield gather_all


def save_anew(source: Path, target: Path) -> None:
    """Write a picture as a JPEG of medium quality."""
    target.parent.mkdir(parents=True, exist_ok=True)
    load_image(source).save(target, "JPEG", quality=70)


# ---- Copies, labels, leaks -------------------------------------------------------------------------------


def test_copies_are_told_and_never_straddle_train_and_validation(
    photos: Path, gathered: Callable[..., Data]
) -> None:
    for i in range(5):
        shutil.copy(photos / "aves" / f"{i}.png", photos / "aves" / f"{i} again.png")
        save_anew(photos / "fungi" / f"{i}.png", photos / "fungi" / f"{i} anew.jpg")
    data = gathered(photos)
    copies = data.report.duplicates
    assert sorted(copies.exact) == [[f"aves/{i} again.png", f"aves/{i}.png"] for i in range(5)]
    assert sorted(copies.near) == [[f"fungi/{i} anew.jpg", f"fungi/{i}.png"] for i in range(5)]
    assert copies.conflicts == []
    train, validation = (
        {path.path.split(".")[0].split(" ")[0] for path in pictures.records}
        for pictures in (data.train, data.validation)
    )
    assert not train & validation
    assert {path.split("/")[0] for path in validation} == {"aves", "fungi"}
    assert len(data.train.records) + len(data.validation.records) == 30


def test_one_picture_in_two_categories_is_a_label_conflict(
    photos: Path, gathered: Callable[..., Data]
) -> None:
    shutil.copy(photos / "aves" / "3.png", photos / "fungi" / "bird.png")
    report = gathered(photos).report
    assert report.duplicates.exact == report.duplicates.conflicts == [["aves/3.png", "fungi/bird.png"]]
    assert "1 label conflicts" in report.text()
    assert "correct its label: aves/3.png, fungi/bird.png" in report.text()


def test_pictures_of_the_test_folder_are_not_trained_on(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    test = tmp_path / "test"
    (test / "aves").mkdir(parents=True)
    shutil.copy(photos / "aves" / "0.png", test / "aves" / "same.png")
    save_anew(photos / "fungi" / "4.png", test / "loose.jpg")
    draw_picture(test / "other.png", seed=999, size=(96, 96))
    data = gathered(photos, against=test)
    assert [(leak.path, leak.like) for leak in data.report.leaks] == [
        ("aves/0.png", "aves/same.png"),
        ("fungi/4.png", "loose.jpg"),
    ]
    paths = {record.path for pictures in (data.train, data.validation) for record in pictures.records}
    assert len(paths) == 18
    assert not paths & {"aves/0.png", "fungi/4.png"}
    assert "left out of training: fungi/4.png is like loose.jpg" in data.report.text()
    for folder in (photos, photos.parent):
        with pytest.raises(DataError, match=r"is the training folder .* or lies above it"):
            gathered(photos, against=folder)
    with pytest.raises(DataError, match="is no folder"):
        gathered(photos, against=tmp_path / "nothing")
    shutil.copytree(photos, tmp_path / "three")
    shutil.copy(draw_picture(test / "other.png", seed=999), tmp_path / "three" / "aves")
    draw_picture(tmp_path / "three" / "mollusca" / "only.png", seed=999)
    report = gathered(tmp_path / "three", against=test).report
    assert report.lost == ["mollusca"]
    assert "no picture is left of mollusca" in report.text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        gathered(photos, against=tmp_path / "empty")


def test_test_pictures_that_cannot_be_read_are_told_and_not_counted_as_compared(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    draw_picture(tmp_path / "test" / "good.png", seed=999)
    (tmp_path / "test" / "bad.png").write_bytes(b"")
    report = gathered(photos, against=tmp_path / "test").report
    assert report.against == 1
    assert [skip.path for skip in report.skipped] == [str(tmp_path / "test" / "bad.png")]


def captioned(folder: Path, n: int) -> Path:
    """n pictures of other things, in a captions file."""
    for i in range(n):
        draw_picture(folder / f"{i}.png", seed=500 + i, size=(96, 96))
    rows = [f"{file.name},thing {file.name}" for file in sorted(folder.iterdir())]
    (folder / "captions.csv").write_text("\n".join(["path,caption", *rows]), encoding="utf-8")
    return folder / "captions.csv"


def test_pictures_of_validation_and_test_are_not_replayed_either(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    judged = photos / gathered(photos).validation.records[0].path
    draw_picture(tmp_path / "test" / "test.png", seed=999, size=(96, 96))
    save_anew(judged, tmp_path / "replay" / "of validation.jpg")
    save_anew(tmp_path / "test" / "test.png", tmp_path / "replay" / "of the test.jpg")
    file = captioned(tmp_path / "replay", 10)
    data = gathered(photos, replay=file, against=tmp_path / "test")
    assert data.replay is not None
    assert data.captioned is not None
    names = {record.path for images in (data.replay, data.captioned) for record in images.records}
    assert names == {f"{i}.png" for i in range(10)}
    assert {leak.path for leak in data.report.leaks} == {"of validation.jpg", "of the test.jpg"}


def test_copies_of_a_captioned_picture_are_replayed_or_measured_on_and_not_both(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    for i in range(10):
        draw_picture(tmp_path / "replay" / f"{i} again.png", seed=500 + i, size=(96, 96))
    data = gathered(photos, replay=captioned(tmp_path / "replay", 10))
    assert data.replay is not None
    assert data.captioned is not None
    shown, kept = (
        {record.path[0] for record in pictures.records} for pictures in (data.replay, data.captioned)
    )
    assert not shown & kept
    assert (len(data.replay.records), len(data.captioned.records)) == (16, 4)


def test_a_replay_of_which_nothing_is_left_is_refused(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    (tmp_path / "replay").mkdir()
    (tmp_path / "replay" / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match="of the 1 captioned pictures to replay none can be read"):
        gathered(photos, replay=captioned(tmp_path / "replay", 0))


def test_a_manifest_says_what_is_validation_and_what_is_left_for_a_test(
    photos: Path, gathered: Callable[..., Data]
) -> None:
    shutil.copy(photos / "aves" / "9.png", photos / "aves" / "a copy.png")  # of a picture for validation
    rows = [
        f"{category}/{i}.png,{category},{'val' if i == 9 else 'test' if i > 6 else 'train'}"
        for category in ("aves", "fungi")
        for i in range(10)
    ]
    manifest = photos / "list.csv"
    manifest.write_text("\n".join(["path,category,split", *rows, "aves/a copy.png,aves,train"]))
    data = gathered(manifest)
    assert [record.path for record in data.validation.records] == ["aves/9.png", "fungi/9.png"]
    assert [record.path.split("/")[1] for record in data.train.records] == [f"{i}.png" for i in range(7)] * 2
    assert [(leak.path, leak.like) for leak in data.report.leaks] == [("aves/a copy.png", "aves/9.png")]
    assert data.report.test == 4
    assert "4 pictures are meant for a test" in data.report.text()


# ---- What is hardly a category ----------------------------------------------------------------------------


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """A data set with its splits, each with the categories."""
    for s, split in enumerate(("train", "valid", "test")):
        for c, category in enumerate(("aves", "fungi")):
            for i in range(3):
                draw_picture(tmp_path / "my root" / split / category / f"{i}.png", seed=100 * s + 10 * c + i)
    return tmp_path / "my root"


def test_splits_of_a_data_set_are_not_trained_on_as_categories(splits: Path, tmp_path: Path) -> None:
    for run in (check, lambda train, **options: finetune(train, tmp_path / "model", **options)):
        with pytest.raises(DataError) as caught:
            run(splits, **SCRATCH)
        said = str(caught.value)
        assert "categories (test, train, valid) named like the splits" in said
        assert "'a photograph of a test'" in said
        assert f"imret finetune '{splits}/train' --against '{splits}/test'" in said
        assert "lines such as test,test" in said
    assert not (tmp_path / "model").exists()
    assert check(splits / "train", **SCRATCH, against=splits / "test").against == 6
    shutil.rmtree(splits / "valid")
    shutil.rmtree(splits / "test")
    with pytest.raises(DataError, match=r"one category .*'train'.*imret finetune '.*my root/train'"):
        check(splits, **SCRATCH)


def test_a_manifest_with_splits_for_categories_is_told_where_they_go(photos: Path) -> None:
    rows = [
        f"{path.relative_to(photos.parent)},{('train', 'test')[i % 2]}"
        for i, path in enumerate(photos.rglob("*.png"))
    ]
    (photos.parent / "list.csv").write_text("\n".join(["path,category", *rows]))
    with pytest.raises(
        DataError, match=r"categories \(test, train\) .* Write what they are into a column split"
    ):
        check(photos.parent / "list.csv", **SCRATCH)


def test_splits_and_numbers_that_are_given_names_are_categories(splits: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("category,name\nTrain,train\ntest,test\n")
    with pytest.raises(DataError, match=r"a category \(valid\) named like the splits"):
        check(splits, **SCRATCH, names=names)
    names.write_text("category,name\ntrain,train\ntest,sea urchin\nvalid,stamp\n")
    report = check(splits, **SCRATCH, names=names)
    assert {category: about["called"] for category, about in report.as_json()["categories"].items()} == {
        "test": "sea urchin",
        "train": "train",
        "valid": "stamp",
    }


@pytest.mark.parametrize("categories", [("0", "1"), ("00000", "00001"), (0, 1), (0.0, 3.0)])
@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_numbers_are_not_trained_on_as_categories(
    photos: Path, tmp_path: Path, categories: tuple[Any, Any], kind: str
) -> None:
    paths = [f"{old}/{i}.png" for old in ("aves", "fungi") for i in range(10)]
    train = photos
    if kind == "folder":
        for old, new in zip(("aves", "fungi"), categories, strict=True):
            (photos / old).rename(photos / str(new))
    elif kind == "csv":
        train = photos / "list.csv"
        rows = [f"{path},{categories[i // 10]}" for i, path in enumerate(paths)]
        train.write_text("\n".join(["path,category", *rows]))
    else:
        train = photos / "list.parquet"
        parquet.write_table(
            pa.table({"path": paths, "category": [categories[i // 10] for i in range(20)]}), train
        )
    first = str(categories[0])
    with pytest.raises(DataError) as caught:
        check(train, **SCRATCH)
    assert f"'a photograph of a {first}'" in str(caught.value)
    assert f"lines such as {first},owl" in str(caught.value)
    names = tmp_path / "names.csv"
    names.write_text("category,name\n" + "".join(f"{c},thing {i}\n" for i, c in enumerate(categories)))
    assert len(check(train, **SCRATCH, names=names).train) == 16


# ---- The report ------------------------------------------------------------------------------------------


def test_the_report_is_a_table_of_categories_names_numbers_captions_and_files(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    (photos / "fungi" / "0.png").write_bytes(b"")
    captions = tmp_path / "captions.csv"
    captions.write_text("path,caption\naves/0.png,a hoopoe on a lawn\n")
    names = tmp_path / "names.csv"
    names.write_text("category,name\nfungi,toadstool\n")
    lines = gathered(photos, captions=captions, names=names).report.text().splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["category", "called", "train", "validation", "a", "caption", "first", "file"],
        ["aves", "bird", "8", "2", "a", "hoopoe", "on", "a", "lawn", "aves/0.png"],
        ["fungi", "toadstool", "7", "2", "a", "photograph", "of", "a", "toadstool", "fungi/1.png"],
        ["total", "15", "4"],
    ]
    assert lines[4].startswith("1 unreadable, 0 identical files, 0 near copies, 0 label conflicts, 0 leaks")
    assert lines[5] == "skipped fungi/0.png: the file is empty"


def test_what_is_noted_of_a_picture_is_told_and_it_is_trained_on(
    photos: Path, gathered: Callable[..., Data]
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    file = photos / "fungi" / "cut.jpg"
    noise.save(file, quality=95)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.97)])
    report = gathered(photos).report
    assert report.skipped == []
    ((path, note),) = [(one.path, one.note) for one in report.noted]
    assert (path, note.endswith("% are missing")) == ("fungi/cut.jpg", True)
    assert f"noted of fungi/cut.jpg: {note}" in report.text()
    assert report.as_json()["noted"] == [{"path": path, "note": note}]


def test_categories_of_one_name_are_told(photos: Path, tmp_path: Path, gathered: Callable[..., Data]) -> None:
    draw_picture(photos / "bird" / "0.png", seed=700)
    draw_picture(photos / "bird" / "1.png", seed=701)
    sentence = "aves, bird are all called 'bird'"
    assert sentence in gathered(photos).report.text()
    (tmp_path / "names.csv").write_text("category,name\nbird,pet bird\n")
    assert sentence not in gathered(photos, names=tmp_path / "names.csv").report.text()


def test_a_name_is_shown_without_what_a_terminal_would_obey(
    photos: Path, gathered: Callable[..., Data]
) -> None:
    draw_picture(photos / "new\nline" / "0.png", seed=700)
    (photos / "new\nline" / "\x1b[31m.png").write_bytes(b"")
    text = gathered(photos).report.text()
    assert "\x1b" not in text
    assert r"new\x0aline/0.png" in text
    assert r"skipped new\x0aline/\x1b[31m.png" in text


def test_check_prints_the_report_on_stdout_and_builds_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.model.base_model.Base.build", None)
    result = CliRunner().invoke(
        cli, ["finetune", str(photos), "--from-scratch", "--check"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("category  called ")
    assert "0 unreadable" in result.stdout


def test_without_an_output_a_run_is_wrong_usage(photos: Path) -> None:
    result = CliRunner().invoke(cli, ["finetune", str(photos), "--from-scratch"])
    assert result.exit_code == 2
    assert "--output" in result.stderr


def test_the_report_comes_before_the_first_step_and_stays_in_the_model_folder(
    photos: Path, tmp_path: Path
) -> None:
    shutil.copy(photos / "aves" / "3.png", photos / "aves" / "again.png")
    names = tmp_path / "names.csv"
    names.write_text("category,name\nfungi,toadstool\nfungi,puffball\nreptilia,snake\n")
    messages: list[str] = []
    finetune(photos, tmp_path / "model", **SCRATCH, names=names, callbacks=Callbacks(messages.append))
    table = next(i for i, text in enumerate(messages) if text.startswith("category"))
    assert table < next(i for i, text in enumerate(messages) if "before training" in text)
    assert any(
        "names of 1 categories that there are no pictures of, the first 'reptilia'" in t for t in messages
    )
    data = json.loads((tmp_path / "model" / "training.json").read_text())["data"]
    assert data["copies"]["exact"] == [["aves/3.png", "aves/again.png"]]
    assert data["categories"]["aves"]["names"] == ["bird"]
    assert data["categories"]["fungi"]["names"] == ["toadstool", "puffball"]
    assert data["categories"]["fungi"]["called"] == "toadstool"
    assert data["lengths"]["context"] == 24
    assert data["leaks"] == []


def test_other_names_or_test_pictures_are_another_run(photos: Path, tmp_path: Path) -> None:
    finetune(photos, tmp_path / "model", **SCRATCH)
    names = tmp_path / "names.csv"
    names.write_text("category,name\nfungi,toadstool\n")
    draw_picture(tmp_path / "test" / "other.png", seed=999)
    for changed in ({"names": names}, {"against": tmp_path / "test"}):
        with pytest.raises(DataError, match="differs in its pictures or texts"):
            finetune(photos, tmp_path / "model", **SCRATCH, **changed)


def test_names_of_no_category_are_refused(photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("category,name\nbirds,bird\n")
    with pytest.raises(DataError, match=r"names none of the categories, which are aves, fungi.*'birds'"):
        check(photos, **SCRATCH, names=names)


def test_validation_asks_for_categories_by_the_names_they_are_given(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    names = tmp_path / "names.csv"
    names.write_text("category,name,name\nfungi,toadstool,puffball\n")
    data = gathered(photos, names=names)
    queries: list[str] = []

    class Towers:
        def encode_images(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), 4)

        def encode_texts(self, texts: Sequence[str]) -> Tensor:
            queries.extend(texts)
            return torch.ones(len(texts), 4)

    validation = Validation(data.validation, None, phrases=["a street"], batch_size=4, names=data.names)
    validation.encode_texts(Towers())
    assert queries[:-1] == [
        *evaluation_queries("aves"),
        *(
            "a photo of a toadstool.",
            "a picture of a toadstool.",
            "a close-up photo of a toadstool.",
            "a photo of the toadstool.",
            "a photo of one toadstool.",
            "a photo of many toadstool.",
        ),
    ]


def test_a_category_of_one_picture_is_trained_on_and_said_to_have_no_validation(
    photos: Path, tmp_path: Path
) -> None:
    draw_picture(photos / "mollusca" / "only.png", seed=77)
    messages: list[str] = []
    training = finetune(photos, tmp_path / "model", **SCRATCH, callbacks=Callbacks(messages.append))
    assert training["data"]["categories"]["mollusca"]["train"] == 1
    assert training["data"]["categories"]["mollusca"]["validation"] == 0
    assert any("no validation picture of mollusca" in text for text in messages)


def test_validation_of_one_category_is_told_to_say_nothing_and_does_not_bring_back_the_base(
    tmp_path: Path, random_model: Path
) -> None:
    draw_picture(tmp_path / "photos" / "mollusca" / "only.png", seed=77)
    for i in range(10):
        draw_picture(tmp_path / "photos" / "aves" / f"{i}.png", seed=i)
    messages: list[str] = []
    training = finetune(
        tmp_path / "photos",
        tmp_path / "model",
        model=str(random_model),
        config=FinetuneConfig(epochs=1, batch_size=4),
        device="cpu",
        callbacks=Callbacks(messages.append),
    )
    assert training["data"]["categories"]["aves"]["validation"] == 1
    assert any("only aves has validation pictures" in text for text in messages)
    assert training["validation"] == {"before": None, "after": None}


# ---- Species ---------------------------------------------------------------------------------------------


def test_species_of_a_manifest_are_trained_on_and_told(photos: Path, tmp_path: Path) -> None:
    rows = [f"aves/{i}.png,aves,Pica pica,magpie" for i in range(5)]
    rows += [f"aves/{i}.png,aves,Corvus corax,raven" for i in range(5, 10)]
    rows += [f"fungi/{i}.png,fungi,," for i in range(10)]
    (photos / "list.csv").write_text("\n".join(["path,category,species,common_name", *rows]))
    training = finetune(photos / "list.csv", tmp_path / "model", **SCRATCH)
    assert training["data"]["species"] == 2
    assert training["data"]["lengths"]["species_kinds"] == ["common", "scientific", "scientific+common"]
    text = check(photos / "list.csv", **SCRATCH).text()
    assert "2 species, told by texts that are common, scientific, scientific+common" in text


def test_a_kind_of_species_text_that_does_not_fit_is_not_used(
    photos: Path, gathered: Callable[..., Data]
) -> None:
    long = "Animalia Chordata Aves Passeriformes Corvidae".replace(" ", ",")
    rows = [f"aves/{i}.png,aves,Pica hudsonia,black-billed magpie,{long},Pica" for i in range(10)]
    rows += [f"fungi/{i}.png,fungi,,,,,,,," for i in range(10)]
    header = "path,category,species,common_name,kingdom,phylum,class,order,family,genus"
    (photos / "list.csv").write_text("\n".join([header, *rows]))
    lengths = gathered(photos / "list.csv").report.lengths
    assert lengths.too_long_kinds == ("taxonomic+common",)
    assert lengths.species_kinds == ("common", "scientific", "taxonomic", "scientific+common")


# ---- Lengths ---------------------------------------------------------------------------------------------


def test_captions_longer_than_the_context_are_cut_and_told(photos: Path, tmp_path: Path) -> None:
    long = "a bird " * 15  # 30 words and two tokens more, where the model reads 24
    captions = tmp_path / "captions.csv"
    captions.write_text(f"path,caption\naves/0.png,short\naves/2.png,{long}\naves/3.png,{long} and more\n")
    messages: list[str] = []
    training = finetune(
        photos, tmp_path / "model", **SCRATCH, captions=captions, callbacks=Callbacks(messages.append)
    )
    lengths = training["data"]["lengths"]
    assert (lengths["cut"], lengths["longest"], lengths["context"]) == (2, 34, 24)
    assert lengths["first"] == "aves/2.png"
    sentence = "2 captions are longer than the 24 tokens that the model reads and are trained on cut; "
    assert any(sentence + "the longest has 34, the first is one of aves/2.png" in text for text in messages)


def test_replayed_captions_that_are_too_long_are_counted_too(
    photos: Path, tmp_path: Path, gathered: Callable[..., Data]
) -> None:
    draw_picture(tmp_path / "replay" / "street.png", seed=44)
    rows = "path,caption\nstreet.png," + "a very long street " * 9
    (tmp_path / "replay" / "captions.csv").write_text(rows)
    lengths = gathered(photos, replay=tmp_path / "replay" / "captions.csv").report.lengths
    assert (lengths.cut, lengths.longest, lengths.first) == (1, 38, "street.png")


def test_a_category_name_longer_than_the_context_is_refused(photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("category,name\nfungi," + "very long " * 12 + "mushroom\n")
    with pytest.raises(
        DataError, match=r"of category 'fungi' makes sentences of 3\d tokens.*reads 24.*--names"
    ):
        check(photos, **SCRATCH, names=names)


# ---- A base with its own preprocessing -------------------------------------------------------------------


def squashing(folder: Path) -> Path:
    """A base of 32 x 32 pixels that squashes pictures."""
    model = write_random_model(folder, seed=0)
    config = json.loads((model / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {
        **{"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        **{"interpolation": "bicubic", "resize_mode": "squash"},
    }
    (model / "open_clip_config.json").write_text(json.dumps(config))
    return model


def test_the_preprocessing_of_the_base_is_honoured_said_and_kept(photos: Path, tmp_path: Path) -> None:
    wide = draw_picture(photos / "aves" / "wide.png", seed=5, size=(160, 40))
    base = squashing(tmp_path / "base")
    with contextlib.ExitStack() as opened:
        every = FinetuneConfig(validation_share=0)
        data = prepare(find_sources(photos), find_base(str(base)), every, opened=opened)
        paths = [record.path for record in data.train.records]
        shown = data.train.batch([paths.index("aves/wide.png")])[0].numpy()
    np.testing.assert_array_equal(shown, fit_image(load_image(wide), size=(36, 36), resize_mode="squash"))

    messages: list[str] = []
    config = FinetuneConfig(epochs=1, batch_size=8, blend=False)
    finetune(photos, tmp_path / "model", model=str(base), config=config, callbacks=Callbacks(messages.append))
    assert "pictures are fitted the base's way: 32x32, squash, bicubic, mean 0.5, std 0.25" in messages
    written, stated = (
        json.loads((folder / "open_clip_config.json").read_text())["preprocess_cfg"]
        for folder in (tmp_path / "model", base)
    )
    assert {key: written[key] for key in stated} == stated


def test_a_run_decodes_a_picture_of_validation_twice_however_often_it_is_scored(
    photos: Path, random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: Counter[tuple[str, tuple[int, int]]] = Counter()

    def count(path: Path, preprocess: Preprocess, **options: Any) -> Any:
        decoded[path.relative_to(photos).as_posix(), preprocess.size] += 1
        return load_pixels(path, preprocess, **options)

    monkeypatch.setattr("finetune.data.pixels.load_pixels", count)
    config = FinetuneConfig.of("light", epochs=1, least_steps=0, batch_size=8)
    messages: list[str] = []
    callbacks = Callbacks(messages.append)
    training = finetune(
        photos, tmp_path / "model", model=str(random_model), config=config, callbacks=callbacks
    )
    assert len(training["validation"]["blends"]) > 1  # scored before, after, and as eleven blends
    scored = {path for path, size in decoded if size == (32, 32)}
    assert len(scored) == training["data"]["validation"] == 2
    assert set(decoded.values()) == {1}  # each at the size of training, and those at the model's
    assert not any("fit in memory" in message for message in messages)


def test_what_does_not_fit_in_memory_is_said_and_scores_the_same(
    photos: Path, random_model: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    validations = []
    for mib in (4096, 0):
        config = FinetuneConfig.of("light", epochs=1, least_steps=0, batch_size=8, cache_mib=mib)
        output = tmp_path / str(mib)
        callbacks = Callbacks(messages.append)
        training = finetune(photos, output, model=str(random_model), config=config, callbacks=callbacks)
        validations.append(training["validation"])
    assert validations[0] == validations[1]
    expected = "of 2 validation pictures 0 fit in memory; the others are decoded anew whenever they are"
    assert messages.count(f"{expected} scored") == 1


def test_a_run_is_not_gone_on_with_from_a_base_that_fits_pictures_otherwise(
    photos: Path, tmp_path: Path
) -> None:
    base, output = squashing(tmp_path / "base"), tmp_path / "model"
    config = FinetuneConfig(epochs=2, batch_size=8, blend=False, checkpoint_s=0)

    def stop(step: Any, _pictures: int) -> None:
        if step.step == 2:
            raise RuntimeError("stopped by the test")

    with pytest.raises(RuntimeError, match="stopped"):
        finetune(photos, output, model=str(base), config=config, callbacks=Callbacks(on_step=stop))
    file = base / "open_clip_config.json"
    file.write_text(file.read_text().replace('"squash"', '"shortest"'))
    with pytest.raises(DataError, match="unfinished run that differs in the model it started from"):
        finetune(photos, output, model=str(base), config=config)


def test_pictures_of_one_colour_are_no_obstacle(tmp_path: Path, gathered: Callable[..., Data]) -> None:
    for category, color in (("aves", (200, 0, 0)), ("fungi", (0, 0, 200))):
        for i in range(3):
            (tmp_path / "flat" / category).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40 + i), color).save(tmp_path / "flat" / category / f"{i}.png")
    report = gathered(tmp_path / "flat").report
    assert len(report.duplicates.near) == 2
    assert report.duplicates.conflicts == []


def test_a_folder_from_a_mac_is_trained_on_with_captions_and_names_as_they_are_typed(
    photos: Path, tmp_path: Path
) -> None:
    decomposed = unicodedata.normalize("NFD", "Vögel")
    (photos / "aves").rename(photos / decomposed)
    captions, names = tmp_path / "c.csv", tmp_path / "n.csv"
    captions.write_text(f"path,caption\nVögel/0.png,a gull\n{decomposed}/1.png,a tern\n", encoding="utf-8")
    names.write_text("category,name\nvögel,birds\n", encoding="utf-8")
    (photos.parent / unicodedata.normalize("NFD", "Prüfung")).mkdir()
    draw_picture(photos.parent / unicodedata.normalize("NFD", "Prüfung") / "1.png", seed=999)
    found = find_sources(photos, captions=captions, names=names, against=photos.parent / "Prüfung")
    assert {record.category for record in found.labelled.records} == {"Vögel", "fungi"}
    captioned = {record.path: record.captions for record in found.labelled.records if record.captions}
    assert captioned == {f"{decomposed}/0.png": ("a gull",), f"{decomposed}/1.png": ("a tern",)}
    assert found.names == {"vögel": ("birds",)}
    assert found.test_set is not None
    assert [record.path for record in found.test_set.records] == ["1.png"]
