"""A report from end to end: its parts agree with each other, and bad input is refused early."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import imret
from imret import Encoder
from imret.concepts.from_training import learn_from
from imret.concepts.learn import keep_in_folder
from imret.datasets.labelled import read_labelled
from imret.errors import DataError
from imret.evaluation.dataset import category_queries, category_scorer, embed
from imret.evaluation.evaluate import evaluate
from imret.evaluation.fitted import TrainingSet
from imret.evaluation.html_report import write_page
from imret.evaluation.metrics import average_precision
from imret.evaluation.report import EvaluationReport
from imret.evaluation.retention import asked_captions, captioned_in, retention_of
from imret.evaluation.text_report import format_report
from imret.models.encoder import TextTruncated
from imret.retrieval.classify import classify
from imret.retrieval.concept_query import FILE_NAME
from imret.retrieval.concepts import Calibration, Concept, Concepts
from imret.retrieval.prompts import evaluation_queries, recorded_names
from tests.fakes.models import write_random_model, write_training_record
from tests.fakes.pictures import draw_picture

FITTED = [
    "zero-shot, tuned prompts",
    "linear probe",
    "kNN (k=20)",
    "class centroid",
    "Tip-Adapter",
    "TaskRes",
]


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A model of other weights and other preprocessing."""
    folder = write_random_model(tmp_path_factory.mktemp("models") / "other", seed=1)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3], "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return Encoder(str(folder), device="cpu", precision="fp32")


def _photos(folder: Path, n: int = 24, *, seed: int = 0) -> Path:
    for i in range(n):
        draw_picture(folder / ("aves", "fungi", "insecta")[i % 3] / f"{i}.png", seed=seed + i)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _photos(tmp_path_factory.mktemp("photos"))
    (folder / "fungi" / "bad<b>.jpg").write_bytes(b"no picture")
    (folder / "aves" / "gone.jpg").symlink_to("nothing.jpg")
    draw_picture(folder / "stray.png")
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _photos(tmp_path_factory.mktemp("train"), seed=100)
    draw_picture(folder / "mammalia" / "extra.png", seed=7)  # a category that is not evaluated
    return folder


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned")
    lines = ["path,caption"]
    for i in range(15):
        draw_picture(folder / f"{i}.png", seed=200 + i)
        lines += [f"{i}.png,thing {i}", f"{i}.png,{'very ' * 100 * (i == 3)}odd {i}"]
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder / "captions.csv"


@pytest.fixture(scope="module")
def report(photos: Path, train: Path, captions: Path, encoder: Encoder, other: Encoder) -> EvaluationReport:
    with pytest.warns(TextTruncated, match="1 of 30 captions are longer than the baseline reads") as caught:
        report = evaluate(
            photos,
            encoder=encoder,
            baseline=other,
            also={"twin": encoder},
            names={"aves": ("owl",)},
            retention=captions,
            train=train,
            resamples=200,
        )
    assert len(caught) == 1
    return report


def test_a_report_is_json_and_comes_out_the_same_again(
    report: EvaluationReport, photos: Path, encoder: Encoder
) -> None:
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False)) == report.as_dict()
    model = report.as_dict()["models"][1]
    assert model["text_to_image"]["macro"]["p@10"] == report.models[1].text_to_image.macro.precision[10]
    assert [*model["text_to_image"]["per_category"]["aves"]] == [
        *("ap", "r_precision", "p@1", "p@5", "p@10", "p@20", "ndcg@10", "hit_rate@10", "curve", "ap_interval")
    ]
    assert report.as_dict()["data"].keys() >= {"copies_in_train", "skipped"}
    assert [*report.as_dict()["baselines"][1]] == [
        *("name", "on", "text_to_image", "zero_shot", "why_absent", "intervals")
    ]
    first, second = (evaluate(photos, encoder=encoder, resamples=100).as_dict() for _ in range(2))
    for one in (first, second):
        one["made"].pop("seconds")
    assert first == second


def test_the_figures_are_those_of_a_naive_ranking(
    report: EvaluationReport,
    photos: Path,
    encoder: Encoder,
) -> None:
    files = sorted(photos.glob("*/*.png"))
    images = encoder.encode_images(files)
    for category, name in (("aves", "owl"), ("fungi", "mushroom"), ("insecta", "insect")):
        sentences = [f"a {kind} of a {name}." for kind in ("photo", "picture", "close-up photo")]
        sentences += [f"a photo of {which} {name}." for which in ("the", "one", "many")]
        assert report.data.categories[category].queries == sentences
        mean = encoder.encode_texts(sentences).mean(axis=0)
        relevant = np.array([file.parent.name == category for file in files])
        ap = average_precision((images @ (mean / np.linalg.norm(mean)))[None], relevant[None])[0]
        of_model = report.models[1].text_to_image.per_category[category]
        assert of_model.ap == pytest.approx(ap, abs=1e-4)
        low, high = of_model.ap_interval
        assert low <= high


def test_what_could_not_be_taken_is_listed_with_the_reason(report: EvaluationReport) -> None:
    assert report.data.images == 24
    reasons = {picture.path: picture.reason for picture in report.data.skipped}
    assert reasons.keys() == {"fungi/bad<b>.jpg", "aves/gone.jpg", "stray.png"}
    assert "not a picture" in reasons["fungi/bad<b>.jpg"]
    assert "dangling" in reasons["aves/gone.jpg"]
    assert "no category" in reasons["stray.png"]


def test_every_row_is_compared_with_the_baseline_on_every_figure_that_both_have(
    report: EvaluationReport,
) -> None:
    assert [model.name for model in report.models] == ["baseline", "model", "twin"]
    assert [baseline.name for baseline in report.baselines] == FITTED
    compared = {(row.of, row.metric) for row in report.differences}
    by_text = {"text_to_image_map", "zero_shot_top1"}
    of_models = {*by_text, "image_to_image_map", "retention_hit_rate@10"}
    assert compared == {(name, m) for name in ("model", "twin") for m in of_models} | {
        (name, m) for name in FITTED for m in by_text
    }
    for row in report.differences:
        assert row.to == "baseline"
        assert row.difference == pytest.approx(row.value - row.reference, abs=1e-4)
        assert row.interval[0] - 0.05 <= row.difference <= row.interval[1] + 0.05
    rows = {(row.of, row.metric): row.interval for row in report.differences}
    assert all(rows["model", metric] == rows["twin", metric] for metric in of_models)


def test_a_model_compared_with_itself_differs_by_nothing(photos: Path, encoder: Encoder) -> None:
    rows = evaluate(photos, encoder=encoder, baseline=encoder, resamples=100).differences
    assert len(rows) == 3
    assert all(row.difference == 0 and row.interval == (0, 0) for row in rows)


def test_without_a_baseline_what_needs_no_tuning_is_compared_with_the_model(
    photos: Path, train: Path, encoder: Encoder
) -> None:
    report = evaluate(photos, encoder=encoder, train=train, resamples=100)
    assert report.reference == "model"
    assert {row.of for row in report.differences} == set(FITTED)
    assert set(report.baselines[0].prompts or ()) == {"aves", "fungi", "insecta"}


def test_without_training_pictures_what_needs_them_says_so(photos: Path, encoder: Encoder) -> None:
    report = evaluate(photos, encoder=encoder, resamples=100)
    assert all("--train" in (baseline.why_absent or "") for baseline in report.baselines)
    assert report.differences == []
    assert "linear probe" not in format_report(report)


def test_two_rows_of_one_name_are_refused(photos: Path, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="'linear probe' is the name of another row"):
        evaluate(photos, encoder=encoder, also={"linear probe": encoder})


def test_models_of_one_image_tower_share_its_embeddings(photos: Path, encoder: Encoder) -> None:
    calls: list[None] = []
    again = Encoder(encoder.model_id, device="cpu", precision="fp32")
    evaluate(
        photos, encoder=encoder, also={"again": again}, resamples=100, on_picture=lambda: calls.append(None)
    )
    assert len(calls) == 25


def test_pictures_that_are_in_the_training_set_too_are_told(
    photos: Path, tmp_path: Path, encoder: Encoder
) -> None:
    train = _photos(tmp_path / "train", seed=100)
    shutil.copy(photos / "fungi" / "1.png", train / "fungi" / "renamed.png")
    report = evaluate(photos, encoder=encoder, train=train, resamples=100)
    assert report.data.duplicates_in_train == ["fungi/1.png"]
    assert "1 picture is in --train, too: the rows fitted on it" in format_report(report)
    assert "flatters these rows" in write_page(tmp_path / "r.html", report).read_text(encoding="utf-8")


def test_two_pictures_are_enough_and_figures_that_need_more_are_left_out(
    tmp_path: Path, encoder: Encoder
) -> None:
    draw_picture(tmp_path / "aves" / "a.png", seed=1)
    draw_picture(tmp_path / "fungi" / "b.png", seed=2)
    report = evaluate(tmp_path, encoder=encoder, baseline=encoder, resamples=100)
    assert report.models[0].image_to_image.map is None
    assert {row.metric for row in report.differences} == {"text_to_image_map", "zero_shot_top1"}
    heads = format_report(report).splitlines()[0].split()
    assert "P@1" in heads
    assert not {"P@10", "img-img", "kept@10"} & set(heads)
    assert write_page(tmp_path / "r.html", report).is_file()


# ---- Concepts --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many training pictures as probabilities can be calibrated on."""
    return _photos(tmp_path_factory.mktemp("many"), 66, seed=300)


def _learnt(folder: Path, encoder: Encoder) -> Concepts:
    files = sorted(folder.glob("*/*.png"))
    categories = ["aves", "fungi", "insecta"]
    called = [("bird",), ("mushroom",), ("insect",)]
    labels = np.array([categories.index(file.parent.name) for file in files])
    vectors = encoder.encode_images(files)
    return learn_from(TrainingSet(encoder, categories, called, [*map(str, files)], labels, vectors))


def test_what_is_learnt_has_a_row_whose_ranking_is_its_own_and_whose_naming_is_that_of_classify(
    photos: Path, many: Path, encoder: Encoder
) -> None:
    report = evaluate(photos, encoder=encoder, train=many, learn=learn_from, resamples=100)
    assert [baseline.name for baseline in report.baselines] == [*FITTED, "concepts"]
    row = report.baselines[-1]
    assert row.text_to_image
    assert row.zero_shot
    concepts = _learnt(many, encoder)
    assert len(concepts.calibrations) == 1
    files = sorted(photos.glob("*/*.png"))
    images = encoder.encode_images(files)
    for category, name in (("aves", "bird"), ("fungi", "mushroom"), ("insecta", "insect")):
        concept = concepts.concepts[name]
        asked = concept.text if concept.vector is None else concept.vector
        relevant = np.array([file.parent.name == category for file in files])
        ap = average_precision((images @ asked)[None], relevant[None])[0]
        assert row.text_to_image.per_category[category].ap == pytest.approx(ap, abs=1e-4)
    named = classify(files, ["aves", "fungi", "insecta"], encoder=encoder, concepts=concepts, top_k=1)
    right = [one.predictions[0].label == file.parent.name for one, file in zip(named, files, strict=True)]
    assert row.zero_shot.top1 == pytest.approx(np.mean(right), abs=1e-4)
    assert ("concepts", "text_to_image_map") in {(one.of, one.metric) for one in report.differences}


def test_without_training_pictures_there_is_no_row_of_what_would_be_learnt(
    photos: Path, encoder: Encoder
) -> None:
    report = evaluate(photos, encoder=encoder, learn=learn_from, resamples=100)
    assert "--train" in (report.baselines[-1].why_absent or "")
    assert report.baselines[-1].name == "concepts"


def test_a_category_that_can_be_no_concept_costs_that_row_alone_and_is_told(
    photos: Path, train: Path, encoder: Encoder, tmp_path: Path
) -> None:
    names = {"aves": ("bird\x07",)}
    report = evaluate(photos, encoder=encoder, train=train, names=names, learn=learn_from, resamples=100)
    assert [row.name for row in report.baselines if row.text_to_image] == FITTED
    told = "no row of concepts: the name 'bird"
    assert told in format_report(report)
    page = write_page(tmp_path / "r.html", report).read_text(encoding="utf-8")
    assert "No row of concepts: the name" in page
    assert "The last 6 rows need no tuning" in page


@pytest.fixture
def taught(encoder: Encoder, many: Path, tmp_path: Path) -> Encoder:
    """A model folder that holds concepts of two of the categories, learnt by their folders' names, too."""
    folder = tmp_path / "taught"
    shutil.copytree(encoder.model_id, folder)
    model = Encoder(str(folder), device="cpu", precision="fp32")
    keep_in_folder(folder, _learnt(many, model).without(["insect"]))
    return model


def test_captions_that_hold_what_a_folder_has_learnt_are_moved_as_searches_are(
    photos: Path, captions: Path, taught: Encoder
) -> None:
    lines = captions.read_text().splitlines()
    lines[1:3] = ["0.png,a bird on a very thin wire", "0.png,mushroom"]
    with_names = captions.with_name("with_names.csv")
    with_names.write_text("\n".join(lines))
    with pytest.warns(TextTruncated):
        report = evaluate(photos, encoder=taught, retention=with_names, resamples=100)
    concepts = Concepts.from_bytes((Path(taught.model_id) / FILE_NAME).read_bytes(), "here")
    captioned = captioned_in(with_names)
    expected = retention_of(captioned, taught, concepts=concepts)
    assert report.models[0].retention == expected.report
    assert report.models[0].learnt == 2


def test_captions_that_hold_no_concept_ask_with_the_very_same_vector(encoder: Encoder, many: Path) -> None:
    concepts = _learnt(many, encoder)
    bird = dataclasses.replace(
        concepts.concepts["bird"], vector=np.ones(encoder.dim, np.float32), strength=0.5
    )
    concepts = Concepts.of(encoder, [bird])
    captions = ["a dog", "a bird on a very thin wire", "jailbird at large", "bird"]
    vectors = encoder.encode_texts(captions)
    asked = asked_captions(concepts, encoder, captions, vectors)
    assert [np.array_equal(one, other) for one, other in zip(asked, vectors, strict=True)] == [
        *(True, False, True, False)
    ]
    moved = vectors[1] + 0.5 * (np.ones(encoder.dim) - bird.text)
    np.testing.assert_allclose(asked[1], moved / np.linalg.norm(moved), atol=1e-6)
    np.testing.assert_allclose(asked[3], np.full(encoder.dim, encoder.dim**-0.5), atol=1e-6)


def test_concepts_of_another_encoder_in_the_folder_make_no_row_and_a_warning(
    photos: Path, taught: Encoder, other: Encoder
) -> None:
    shutil.copy(Path(taught.model_id) / FILE_NAME, Path(other.model_id) / FILE_NAME)
    try:
        with pytest.warns(UserWarning, match="the row of model: went without the concepts of its model's"):
            report = evaluate(photos, encoder=other, resamples=100)
    finally:
        (Path(other.model_id) / FILE_NAME).unlink()
    assert report.models[0].learnt == 0


def test_the_row_of_concepts_can_be_no_other_model_s(photos: Path, encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="'concepts' is the name of another row"):
        evaluate(photos, encoder=encoder, also={"concepts": encoder})


def test_a_concept_that_was_taught_by_what_people_say_is_asked_for_its_folder(
    photos: Path, encoder: Encoder
) -> None:
    bird = Concept(
        "bird", ("bird",), np.ones(encoder.dim, np.float32), encoder.encode_texts(["bird"])[0], 0, 1, 9
    )
    scorer = category_scorer(encoder, ["aves", "fungi"], None, Concepts.of(encoder, [bird]))
    np.testing.assert_allclose(scorer.vectors[0], np.full(encoder.dim, encoder.dim**-0.5), atol=1e-6)
    np.testing.assert_allclose(scorer.vectors[1], category_queries(encoder, ["fungi"])[0], atol=1e-6)


# ---- For people ------------------------------------------------------------------------------------------


def test_the_terminal_shows_every_system_and_interval(report: EvaluationReport) -> None:
    text = format_report(report)
    rows = {line[:24].strip(): line for line in text.split("\n\n")[0].splitlines()}
    for name in ("baseline", "model", "twin", *FITTED):
        assert name in rows
    assert rows["linear probe"].split()[-1] == "-"
    assert text.count("[") == len(report.differences)
    assert "3 pictures left out" in text


def test_the_page_is_whole_fetches_nothing_and_escapes_names(
    report: EvaluationReport, tmp_path: Path
) -> None:
    page = write_page(tmp_path / "r.html", report).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=(?![\"']?data:)", page)
    assert "bad&lt;b&gt;.jpg" in page
    assert "bad<b>" not in page
    assert page.count("<polyline") == 3 * (1 + 3)
    assert page.count("class=whisker") == 9
    assert page.count("class=dot") == len(report.differences)
    for name in ("twin", *FITTED):
        assert name in page
    assert {file.name for file in tmp_path.iterdir()} == {"r.html"}


def test_of_many_categories_the_page_draws_the_worst_and_lists_what_is_confused(
    report: EvaluationReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imret.evaluation.plots._MAX_CURVES", 2)
    monkeypatch.setattr("imret.evaluation.plots._MAX_MATRIX", 2)
    page = write_page(tmp_path / "r.html", report).read_text(encoding="utf-8")
    assert page.count("<polyline") == 3 * (1 + 2)
    assert "class=matrix" not in page
    zero_shot = report.models[1].zero_shot
    most = max((n, i, j) for i, row in enumerate(zero_shot.confusion) for j, n in enumerate(row) if i != j)
    total = sum(zero_shot.confusion[most[1]])
    assert f"{most[0]} of {total}" in page


# ---- What categories are called --------------------------------------------------------------------------


@pytest.mark.parametrize("about", [{"called": "owl"}, {"called": "owl", "names": ["owl", "night bird"]}])
def test_a_tuned_model_remembers_what_its_categories_were_called(
    tmp_path: Path,
    about: dict,  # type: ignore[type-arg]
) -> None:
    folder = write_random_model(tmp_path / "tuned", seed=0)
    assert recorded_names(Encoder(str(folder), device="cpu")) == {}
    categories = {"Aves": about, "fungi": {"called": "mushroom"}}
    write_training_record(folder, {"data": {"categories": categories}})
    names = recorded_names(Encoder(str(folder), device="cpu"))
    assert names == {"aves": tuple(about.get("names", ["owl"]))}
    assert evaluation_queries("Aves", names)[0] == "a photo of a owl."


@pytest.mark.parametrize("text", ["", "[]", '{"data": 1}', '{"data": {"categories": {"a": {}}}}'])
def test_a_training_record_that_says_nothing_of_names_is_no_error(tmp_path: Path, text: str) -> None:
    folder = write_random_model(tmp_path / "tuned", seed=0)
    if text.startswith('{"'):
        write_training_record(folder, json.loads(text))
        assert recorded_names(Encoder(str(folder), device="cpu")) == {}
        return
    (folder / "training.json").write_text(text)
    with pytest.warns(UserWarning, match="is not read") if not text else contextlib.nullcontext():
        assert recorded_names(Encoder(str(folder), device="cpu")) == {}


@pytest.mark.parametrize("how", ["copied", "with other weights", "of no weights"])
def test_a_training_record_is_believed_beside_its_own_weights_alone(tmp_path: Path, how: str) -> None:
    folder = write_random_model(tmp_path / "tuned", seed=0)
    record = {"data": {"categories": {"aves": {"called": "owl"}}}}
    write_training_record(folder, record)
    other = write_random_model(tmp_path / "other", seed=1)
    if how == "copied":
        shutil.copy(folder / "training.json", other)
    elif how == "with other weights":
        shutil.copy(other / "open_clip_model.safetensors", folder)
        other = folder
    else:
        (other / "training.json").write_text(json.dumps(record))
    with pytest.warns(
        UserWarning, match=r"training.json' is not believed: it is not of the weights beside it"
    ):
        assert recorded_names(Encoder(str(other), device="cpu")) == {}


# ---- Bad input -------------------------------------------------------------------------------------------


def test_data_that_is_no_folder_of_categories_is_refused(tmp_path: Path, encoder: Encoder) -> None:
    with pytest.raises(DataError, match="does not exist"):
        evaluate(tmp_path / "nothing", encoder=encoder)
    draw_picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="is not a folder"):
        evaluate(tmp_path / "a.png", encoder=encoder)
    with pytest.raises(DataError, match=r"no pictures in any category.*one sub-folder per category"):
        evaluate(tmp_path, encoder=encoder)
    draw_picture(tmp_path / "aves" / "a.png")
    with pytest.raises(DataError, match="1 picture all in 'aves'"):
        evaluate(tmp_path, encoder=encoder)


def test_pictures_of_which_only_one_category_can_be_read_are_refused(
    tmp_path: Path, encoder: Encoder
) -> None:
    draw_picture(tmp_path / "aves" / "a.png")
    (tmp_path / "fungi").mkdir()
    (tmp_path / "fungi" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"only 1 can be read, in 1 category, and.*'fungi/b\.png': not a pic"):
        evaluate(tmp_path, encoder=encoder)


def test_training_pictures_are_checked_before_anything_is_encoded(
    photos: Path, train: Path, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "encode_pixels", lambda *_: pytest.fail("encoded"))
    with pytest.raises(DataError, match="the very pictures that are evaluated"):
        evaluate(photos, encoder=encoder, train=f"{photos}/.")
    draw_picture(tmp_path / "aves" / "a.png")
    draw_picture(tmp_path / "fungi" / "a.png")
    with pytest.raises(DataError, match="no category insecta, which is evaluated"):
        evaluate(photos, encoder=encoder, train=tmp_path)


def test_embedding_goes_in_batches_and_keeps_the_order(
    photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imret.images.decode_batches.BATCH_IMAGES", 5)
    sizes = []
    whole = Encoder.encode_pixels
    monkeypatch.setattr(
        Encoder, "encode_pixels", lambda self, pixels: (sizes.append(len(pixels)), whole(self, pixels))[1]
    )
    calls: list[None] = []
    found = embed(read_labelled(photos), encoder, lambda: calls.append(None))
    monkeypatch.undo()
    np.testing.assert_allclose(
        found.vectors, encoder.encode_images([photos / p for p in found.paths]), atol=1e-5
    )
    assert max(sizes) == 5
    assert sum(sizes) == 24
    assert len(calls) == 25


def test_the_package_offers_evaluation() -> None:
    assert imret.evaluate is evaluate


# ---- On real photos --------------------------------------------------------------------------------------


def test_the_tuned_model_beats_its_base_on_real_photos(shared_data: Path, tmp_path: Path) -> None:
    """A tenth of nature10, so that it takes seconds: up to 6 photos of each category."""
    for folder in sorted((shared_data / "nature10" / "test").iterdir()):
        (tmp_path / folder.name).mkdir()
        for file in sorted(folder.iterdir())[:6]:
            (tmp_path / folder.name / file.name).symlink_to(file)
    tuned, base = (Encoder(str(shared_data / name), device="cpu") for name in ("tiny-clip", "tiny-clip-base"))
    report = evaluate(tmp_path, encoder=tuned, baseline=base, resamples=500)
    rows = {row.metric: row for row in report.differences}
    for metric in ("text_to_image_map", "zero_shot_top1", "image_to_image_map"):
        assert rows[metric].interval[0] > 0, rows[metric]
    assert category_queries(tuned, ["aves"]).shape == (1, tuned.dim)


def test_a_model_is_judged_by_what_its_folder_has_learnt_as_searches_ask(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=6)
    for seed in range(30):
        draw_picture(tmp_path / "data" / ("aves", "fungi")[seed % 2] / f"{seed}.png", seed=seed)
    encoder = Encoder(str(folder), device="cpu", precision="fp32")
    rng = np.random.default_rng(0)
    learnt = [
        Concept(
            name,
            (name, category),
            rng.normal(size=encoder.dim).astype(np.float32),
            encoder.encode_texts([name])[0],
            0.1,
            0.5,
            9,
        )
        for name, category in (("bird", "aves"), ("mushroom", "fungi"))
    ]
    concepts = Concepts.of(encoder, learnt, Calibration({"bird": 0.5, "mushroom": 0.0}, 3.0, 0.3, 0.1))
    (folder / FILE_NAME).write_bytes(concepts.to_bytes())
    report = evaluate(tmp_path / "data", encoder=encoder, resamples=100)
    paths = sorted((tmp_path / "data").glob("*/*.png"))
    scores = (
        np.stack([one.vector for one in learnt if one.vector is not None]) @ encoder.encode_images(paths).T
    )
    right = np.array([[path.parent.name == category for path in paths] for category in ("aves", "fungi")])
    (model,) = report.models
    assert model.learnt == 2
    assert model.text_to_image.macro.map == pytest.approx(average_precision(scores, right).mean(), abs=1e-4)
    named = (3 * scores + np.array([[0.5], [0.0]])).argmax(axis=0)
    assert model.zero_shot.top1 == pytest.approx(right[named, np.arange(len(paths))].mean(), abs=1e-4)
    assert "asks 2 of 2 categories by what was learnt" in format_report(report)
    plain = evaluate(tmp_path / "data", encoder=encoder, concepts=False, resamples=100)
    (folder / FILE_NAME).unlink()
    without = evaluate(tmp_path / "data", encoder=encoder, resamples=100)
    assert plain.models[0].text_to_image == without.models[0].text_to_image
    assert plain.models[0].learnt == 0
