"""What pictures show: probabilities against hand-made oracles, labels as texts, and the command around it."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from imret import Encoder
from imret.cli.classify import command, read_labels, write_predictions
from imret.defaults import DEFAULT_MODEL
from imret.errors import DataError, ModelError
from imret.evaluation.metrics import calibration_error
from imret.models.encoder import TextTruncated
from imret.models.lazy_encoder import LazyEncoder
from imret.retrieval.classify import (
    Classification,
    Prediction,
    calibration_of,
    classify,
    classify_each,
    probabilities,
)
from imret.retrieval.concept_query import FILE_NAME
from imret.retrieval.concepts import Calibration, Concept, Concepts
from imret.retrieval.prompts import CLIP_TEMPLATES, evaluation_queries, label_texts
from imret.store import open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

LABELS = ["fungi", "owl", "a red mushroom with white spots"]


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    return [draw_picture(folder / f"{seed}.png", seed=seed) for seed in range(5)]


@pytest.fixture(scope="module")
def sigmoid_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, as if trained with a sigmoid: with a logit bias."""
    from safetensors.torch import load_file, save_file
    from torch import tensor

    folder = write_random_model(tmp_path_factory.mktemp("models") / "sigmoid", seed=0)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["init_logit_bias"] = -10
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["logit_scale"], weights["logit_bias"] = tensor(math.log(8.0)), tensor(-2.0)
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder


def _cosines(encoder: Encoder, photos: list[Path], labels: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    """The oracle: every picture against the averaged sentences of every label, one at a time."""
    rows = []
    for photo in photos:
        picture = encoder.encode_images([photo])[0].astype(float)
        row = []
        for label in labels:
            mean = np.mean([encoder.encode_texts([text])[0] for text in label_texts(label)], axis=0)
            row.append(float(picture @ mean / np.linalg.norm(mean)))
        rows.append(row)
    return np.array(rows)


# ---- The library ---------------------------------------------------------------------------------------


def test_the_label_of_the_highest_cosine_comes_first_with_the_softmax_of_the_scaled_cosines(
    encoder: Encoder, photos: list[Path]
) -> None:
    cosines = _cosines(encoder, photos, LABELS)
    scale = encoder.logit_scale
    for i, found in enumerate(classify(photos, LABELS, encoder=encoder, top_k=3)):
        order = sorted(range(3), key=lambda j: -cosines[i, j])
        total = sum(math.exp(scale * cosine) for cosine in cosines[i])
        assert found.picture == photos[i]
        assert [p.label for p in found.predictions] == [LABELS[j] for j in order]
        assert [p.score for p in found.predictions] == pytest.approx([cosines[i, j] for j in order], abs=1e-5)
        expected = [math.exp(scale * cosines[i, j]) / total for j in order]
        assert [p.probability for p in found.predictions] == pytest.approx(expected, abs=1e-3)
        assert sum(p.probability for p in found.predictions) == pytest.approx(1)


def test_a_model_trained_with_a_sigmoid_judges_each_label_on_its_own(
    sigmoid_model: Path, photos: list[Path]
) -> None:
    encoder = Encoder(str(sigmoid_model), device="cpu", precision="fp32")
    assert encoder.logit_bias == -2.0
    (found,) = classify(photos[:1], LABELS, encoder=encoder)
    for p in found.predictions:
        assert p.probability == pytest.approx(1 / (1 + math.exp(-(8 * p.score - 2))), abs=1e-5)
    (alone,) = classify(photos[:1], ["owl"], encoder=encoder)
    (owl,) = [p for p in found.predictions if p.label == "owl"]
    assert alone.predictions[0].probability == pytest.approx(owl.probability, abs=1e-5)


def test_logits_too_large_for_an_exponential_still_give_probabilities(
    encoder: Encoder, sigmoid_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigmoid = Encoder(str(sigmoid_model), device="cpu")
    for one in (encoder, sigmoid):
        monkeypatch.setitem(one.__dict__, "logit_scale", 1e6)
    np.testing.assert_array_equal(probabilities(np.array([[1.0, 0.0, -1.0]]), encoder), [[1, 0, 0]])
    np.testing.assert_array_equal(probabilities(np.array([[1.0, -1.0]]), sigmoid), [[1, 0]])


def test_a_sigmoid_models_file_without_a_bias_has_none_added_as_open_clip_loads_it(
    sigmoid_model: Path, tmp_path: Path
) -> None:
    folder = write_random_model(tmp_path / "model", seed=0)
    config = (sigmoid_model / "open_clip_config.json").read_text()
    (folder / "open_clip_config.json").write_text(config)
    assert Encoder(str(folder), device="cpu").logit_bias == 0.0


def test_weights_with_an_impossible_scale_or_none_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from torch import tensor

    folder = write_random_model(tmp_path / "model", seed=0)
    weights = load_file(folder / "open_clip_model.safetensors")
    for value, message in ((float("nan"), "damaged: 'logit_scale' is nan"), (800.0, "impossible")):
        save_file({**weights, "logit_scale": tensor(value)}, folder / "open_clip_model.safetensors")
        with pytest.raises(ModelError, match=message):
            _ = Encoder(str(folder), device="cpu").logit_scale
    del weights["logit_scale"]
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match="hold no 'logit_scale'"):
        _ = Encoder(str(folder), device="cpu").logit_scale


def test_a_path_an_image_and_the_bytes_of_a_file_are_one_picture(
    encoder: Encoder, photos: list[Path]
) -> None:
    forms = [str(photos[0]), photos[0], Image.open(photos[0]), photos[0].read_bytes()]
    results = classify(forms, LABELS, encoder=encoder)
    assert len({found.predictions for found in results}) == 1


def test_a_picture_that_cannot_be_read_has_a_reason_and_the_others_are_classified(
    encoder: Encoder, photos: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    found = classify([photos[0], bad, tmp_path / "gone.jpg", photos[1]], LABELS, encoder=encoder)
    assert [one.reason for one in found] == [
        None,
        "not a picture of a known format, whatever its name says",
        "no such file",
        None,
    ]
    assert [len(one.predictions) for one in found] == [3, 0, 0, 3]
    assert (
        found[3].predictions[0].label
        == classify([photos[1]], LABELS, encoder=encoder)[0].predictions[0].label
    )


def test_pictures_are_taken_only_some_batches_ahead(encoder: Encoder, photos: list[Path]) -> None:
    taken = []

    def endless():  # type: ignore[no-untyped-def]
        while True:
            taken.append(1)
            yield photos[len(taken) % 5]

    results = classify_each(endless(), LABELS, encoder=encoder, top_k=1)
    assert [next(results).picture for _ in range(3)] == [photos[1], photos[2], photos[3]]
    assert len(taken) <= 200


def test_top_k_is_at_most_how_many(encoder: Encoder, photos: list[Path]) -> None:
    (one,) = classify(photos[:1], LABELS, encoder=encoder, top_k=1)
    (all_three,) = classify(photos[:1], LABELS, encoder=encoder, top_k=99)
    assert one.predictions == all_three.predictions[:1]
    assert len(all_three.predictions) == 3
    with pytest.raises(ValueError, match="top_k must be at least 1, not 0"):
        classify(photos, LABELS, encoder=encoder, top_k=0)


@pytest.mark.parametrize(
    ("label", "texts"),
    [
        ("aves", [frame.replace("{name}", "bird").replace("{}", "a bird") for frame in CLIP_TEMPLATES]),
        ("owl", evaluation_queries("owl")),
        ("an owl", evaluation_queries("owl")),
        ("great_horned_owl", evaluation_queries("great horned owl")),
        (" a  red mushroom with white spots ", ["a red mushroom with white spots"]),
        ("a", evaluation_queries("a")),
    ],
)  # fmt: skip
def test_a_short_label_is_put_into_sentences_and_a_phrase_is_taken_as_it_is(
    label: str, texts: list[str]
) -> None:
    assert label_texts(label) == texts


def test_a_name_given_for_a_category_is_used_however_long_it_is() -> None:
    names = {"aves": ("a bird of some kind or other",)}
    assert label_texts("Aves", names) == evaluation_queries("aves", names)
    assert "a bird of some kind or other" in label_texts("Aves", names)[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "there are no labels"),
        (["owl"], "'owl' is the only label.*Give at least two"),
        (["owl", " "], "label number 2 is empty"),
        (["owl", "fox", "_"], "label number 3 is empty"),
        (["owl", "fox", "owl"], "label 'owl' is given twice"),
        (["owl", "an owl"], "labels 'owl' and 'an owl' ask for the same"),
        (["aves", "Bird"], "labels 'aves' and 'Bird' ask for the same, in the words 'a photo of a Bird.'"),
    ],
)
def test_labels_between_which_there_is_nothing_to_choose_are_refused(
    encoder: Encoder, photos: list[Path], labels: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        classify_each(photos, labels, encoder=encoder)  # by the call, before anything is asked of it


def test_a_label_longer_than_the_model_reads_is_cut_with_a_warning(
    encoder: Encoder, photos: list[Path]
) -> None:
    with pytest.warns(TextTruncated, match="longer than the 77 tokens"):
        classify(photos[:1], ["owl", "very " * 100 + "long"], encoder=encoder)


def test_one_picture_or_one_text_where_a_list_belongs_is_a_programming_error(
    encoder: Encoder, photos: list[Path]
) -> None:
    with pytest.raises(TypeError, match="list of pictures"):
        classify(str(photos[0]), LABELS, encoder=encoder)
    with pytest.raises(TypeError, match="list of labels"):
        classify(photos, "owl,fox", encoder=encoder)


def test_real_photos_are_named_as_often_as_evaluate_says(shared_data: Path) -> None:
    from imret.datasets.labelled import read_labelled
    from imret.evaluation.dataset import category_queries

    encoder = Encoder(str(shared_data / "tiny-clip"), device="cpu", precision="fp32")
    test = read_labelled(shared_data / "nature10" / "test")
    paths = [test.folder / path for path in test.paths[::6]]
    found = classify(paths, test.categories, encoder=encoder, top_k=1)
    scores = encoder.encode_images(paths) @ category_queries(encoder, test.categories).T
    expected = [test.categories[i] for i in scores.argmax(axis=1)]
    assert [one.predictions[0].label for one in found] == expected
    correct = [name == path.parent.name for name, path in zip(expected, paths, strict=True)]
    assert np.mean(correct) > 0.8
    confidence = np.array([one.predictions[0].probability for one in found])
    assert calibration_error(confidence, np.array(correct)) < 0.15


def test_the_calibration_error_is_the_gap_between_confidence_and_being_right() -> None:
    assert calibration_error(np.array([0.9, 0.9]), np.array([True, False])) == pytest.approx(0.4)
    # Bins (0, .5] and (.5, 1]: 0.5 belongs below. Gaps |0.45 - 0.5| and |0.8 - 1|, each half of the images.
    confidence, correct = np.array([0.4, 0.5, 0.7, 0.9]), np.array([True, False, True, True])
    assert calibration_error(confidence, correct, 2) == pytest.approx(0.5 * 0.05 + 0.5 * 0.2)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    rng = np.random.default_rng(0)
    confidence = rng.random(200_000)
    assert calibration_error(confidence, rng.random(200_000) < confidence) < 0.01
    with pytest.raises(ValueError, match="outside"):
        calibration_error(np.array([1.1]), np.array([True]))
    with pytest.raises(ValueError, match="one \\(N,\\)"):
        calibration_error(np.array([0.5]), np.array([True, False]))
    with pytest.raises(ValueError, match="n_bins"):
        calibration_error(np.array([0.5]), np.array([True]), 0)


# ---- The command ---------------------------------------------------------------------------------------

ODD = "/photos/a\tb\n\\\udce9.jpg"
RESULTS = [
    Classification(
        "a.jpg",
        (Prediction("owl", 0.75, 0.25), Prediction("a\tfox", 0.25, 0.2, learnt=True)),
        expected_error=0.01251,
    ),
    Classification("gone.jpg", (), "no such file"),
    Classification(ODD, (Prediction("owl", 1.0, 0.5),)),
]


def _written(output: str) -> str:
    stream = io.StringIO()
    assert write_predictions(iter(RESULTS), ["owl", "a\tfox"], output, stream) == 1
    return stream.getvalue()


def test_a_table_has_a_line_for_each_prediction_and_no_control_characters() -> None:
    assert _written("table").splitlines() == [
        "   1  0.750  owl       a.jpg",
        "   2  0.250  a\\x09fox  a.jpg",
        "   1  1.000  owl       /photos/a\\x09b\\x0a\\\\xe9.jpg",
    ]


def test_tsv_has_a_header_and_no_stray_separators() -> None:
    assert _written("tsv").splitlines() == [
        "rank\tprobability\tscore\tlabel\tpath",
        "1\t0.750000\t0.250000\towl\ta.jpg",
        "2\t0.250000\t0.200000\ta\\tfox\ta.jpg",
        "1\t1.000000\t0.500000\towl\t/photos/a\\tb\\n\\\\\udce9.jpg",
    ]


def test_json_is_one_object_for_each_picture() -> None:
    first, second = map(json.loads, _written("json").splitlines())
    assert first == {
        "path": "a.jpg",
        "predictions": [
            {"label": "owl", "probability": 0.75, "score": 0.25, "learnt": False},
            {"label": "a\tfox", "probability": 0.25, "score": 0.2, "learnt": True},
        ],
        "expected_error": 0.0125,
    }
    assert second["path"] == ODD
    assert second["expected_error"] is None


def test_what_cannot_be_read_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    _written("json")
    assert capsys.readouterr().err == "gone.jpg: no such file\n"


def test_labels_are_separated_by_commas_or_are_the_lines_of_a_file(tmp_path: Path) -> None:
    assert read_labels("owl, red fox,a") == ["owl", "red fox", "a"]
    assert read_labels("owl,,fox") == ["owl", "", "fox"]  # which classify refuses by number
    file = tmp_path / "labels.txt"
    file.write_text("\ufeffowl\n\n a dog, asleep \r\nélan\n", encoding="utf-8")
    assert read_labels(f"@{file}") == ["owl", "a dog, asleep", "élan"]
    with pytest.raises(DataError, match=r"cannot read the labels file '.*gone\.txt': No such file"):
        read_labels(f"@{tmp_path / 'gone.txt'}")
    file.write_text("\n \n")
    with pytest.raises(DataError, match="there are no labels in the file"):
        read_labels(f"@{file}")
    with pytest.raises(DataError, match=r"there are no labels\. Say what pictures may show"):
        read_labels(" ")
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="Save it as UTF-8"):
        read_labels(f"@{file}")


def _imret(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imret", "classify", *arguments],
        capture_output=True,
        text=True,
        env=os.environ.copy(),
    )


def test_the_command_classifies_files_and_folders_and_exits_with_1_if_one_could_not_be_read(
    random_model: Path, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    draw_picture(folder / "sub" / "b.png", seed=8)
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture by its name")
    (tmp_path / "empty").mkdir()
    arguments = [str(photos[0]), str(folder), str(tmp_path / "empty"), str(tmp_path / "gone.jpg")]
    done = _imret(
        *arguments, "--labels", "fox,owl", "-k", "9", "--format", "json", "--model", str(random_model)
    )
    assert done.returncode == 1, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["path"] for one in results] == [str(photos[0]), str(folder / "sub" / "b.png")]
    assert [len(one["predictions"]) for one in results] == [2, 2]
    for said in (
        "bad.jpg: not a picture",
        "gone.jpg: no such file",
        "empty: no pictures in this folder",
        "3 could not be read",
        "each picture gets 2 labels, not 9: there are no more",
    ):
        assert said in done.stderr
    assert "notes.txt" not in done.stderr
    assert "Traceback" not in done.stderr


def test_pictures_that_are_not_there_are_told_before_a_model_is_looked_for(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object, **__: object) -> None:
        raise ModelError("a model was looked for")

    monkeypatch.setattr("imret.models.lazy_encoder.LazyEncoder.__init__", look)
    done = _in_process("gone.jpg", "away.jpg", "--labels", "fox,owl")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "gone.jpg: no such file\naway.jpg: no such file\n2 could not be read\n"
    done = _in_process("gone.jpg", str(photos[0]), "--labels", "fox,owl")
    assert str(done.exception) == "a model was looked for"
    assert done.stderr == "gone.jpg: no such file\n"


def test_help_is_instant() -> None:
    code = (
        "import sys\nfrom imret.cli.main import cli\n"
        "try:\n    cli.main(['classify', '--help'], prog_name='imret')\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'open_clip', 'qdrant_client', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: imret classify")
    assert done.stdout.endswith("set()\n")


def _in_process(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_the_command_takes_labels_and_model_of_the_collection(
    encoder: Encoder, tmp_path: Path, photos: list[Path]
) -> None:
    db = str(tmp_path / "db")
    for seed in range(4):
        draw_picture(tmp_path / "photos" / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    bare = draw_picture(tmp_path / "bare" / "a.png", seed=9)
    with open_store(db) as store:
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder)
        ingest(store, [FolderSource(tmp_path / "bare")], encoder=encoder, collection="bare")
    done = _in_process(str(photos[0]), "--db", db, "--format", "tsv", "--precision", "fp32")
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.stdout.splitlines()[1:]]
    (expected,) = classify(photos[:1], ["aves", "fungi"], encoder=encoder)
    assert [(line[3], line[4]) for line in lines] == [(p.label, str(photos[0])) for p in expected.predictions]
    assert [float(line[1]) for line in lines] == pytest.approx(
        [p.probability for p in expected.predictions], abs=1e-3
    )
    done = _in_process(str(bare), "--db", db, "--collection", "bare")
    assert isinstance(done.exception, DataError)
    assert "'bare' have no categories" in str(done.exception)
    assert "--labels" in str(done.exception)
    # Labels, and the model of the collection.
    done = _in_process(str(bare), "--db", db, "--collection", "bare", "--labels", "fox,owl", "-k", "1")
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    assert encoder.model_id in done.stderr


def test_labels_are_looked_for_with_the_default_collections_model_and_that_is_said(
    encoder: Encoder, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(model: object, *_: object, **__: object) -> None:
        raise ModelError(f"{model} was looked for")

    db = str(tmp_path / "db")
    draw_picture(tmp_path / "photos" / "fungi" / "a.png")
    with open_store(db) as store:
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder)
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder, collection="other")
    done = _in_process(str(photos[0]), "--db", db, "--labels", "fox,owl", "-k", "1")
    assert done.exit_code == 0, done.output
    said = f"looking with the model of collection 'photos' in {db} (--model names another)\n"
    assert done.stderr.count(said) == 1
    assert f"model {encoder.model_id}, cpu" in done.stderr
    # Where there is no such collection, or another model is named, that is not said.
    monkeypatch.setattr("imret.models.lazy_encoder.LazyEncoder.__init__", lambda self, *a, **k: look(*a, **k))
    with open_store(db) as store:
        store.drop("photos")
    for option, model in (([], DEFAULT_MODEL), (["--model", "small"], "small")):
        done = _in_process(str(photos[0]), "--db", db, "--labels", "fox,owl", *option)
        assert str(done.exception) == f"{model} was looked for"
        assert "looking with" not in done.stderr
    monkeypatch.setenv("IMRET_DB", str(tmp_path / "no store"))
    done = _in_process(str(photos[0]), "--labels", "fox,owl")
    assert str(done.exception) == f"{DEFAULT_MODEL} was looked for"


def test_labels_asked_for_before_need_no_text_tower(random_model: Path, photos: list[Path]) -> None:
    expected = classify(photos, LABELS, encoder=LazyEncoder(random_model, device="cpu", precision="fp32"))
    light = LazyEncoder(random_model, device="cpu", precision="fp32")
    assert classify(photos, LABELS, encoder=light) == expected
    assert list(light.encoder._towers) == ["image"]


def test_the_command_needs_a_picture_and_labels() -> None:
    assert _in_process("--labels", "a,b").exit_code == 2
    assert "there are no labels" in str(_in_process("a.jpg", "--labels", "").exception)


# ---- Labels that were learnt -----------------------------------------------------------------------------


def _learnt(encoder: Encoder, *names: str) -> Concepts:
    """Return concepts of made-up pictures, calibrated by hand."""
    rng = np.random.default_rng(0)
    concepts = [
        Concept(
            name,
            (name, f"{name} of a kind"),
            None if name == "kept" else (0.5 * rng.normal(size=encoder.dim)).astype(np.float32),
            encoder.encode_texts([name])[0],
            0.0 if name == "kept" else 0.125,
            0.5,
            9,
        )
        for name in names
    ]
    biases = {name: 0.25 * number for number, name in enumerate(names)}
    return Concepts.of(encoder, concepts, Calibration(biases, 7.0, 0.4, 0.05))


def test_labels_that_were_learnt_together_are_calibrated(encoder: Encoder, photos: list[Path]) -> None:
    concepts = _learnt(encoder, "heron", "toadstool", "kept")
    labels = ["toadstools", "Kept", "a heron"]  # in any number, case and order
    found = classify(photos[:3], labels, encoder=encoder, concepts=concepts, top_k=3)
    own = [concepts.concepts[name] for name in ("toadstool", "kept", "heron")]
    rows = np.stack([one.text if one.vector is None else one.vector for one in own]).astype(np.float64)
    embedded = encoder.encode_images(photos[:3])
    logits = 7.0 * embedded @ rows.T + np.array([0.25, 0.5, 0.0])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cosines = embedded @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    for result, share, cosine in zip(found, shares, cosines, strict=True):
        by_label = {one.label: one for one in result.predictions}
        assert [by_label[label].probability for label in labels] == pytest.approx(share, abs=1e-5)
        assert [by_label[label].score for label in labels] == pytest.approx(cosine, abs=1e-5)
        ranked = [one.probability for one in result.predictions]
        assert ranked == sorted(ranked, reverse=True)
        assert [by_label[label].learnt for label in labels] == [True, False, True]
        assert result.expected_error == 0.05
    assert calibration_of(labels, concepts) is concepts.calibrations[0]


def test_some_of_those_learnt_together_share_out_the_same_odds(encoder: Encoder, photos: list[Path]) -> None:
    concepts = _learnt(encoder, "heron", "toadstool", "kept")
    (whole,) = classify(photos[:1], ["heron", "toadstool", "kept"], encoder=encoder, concepts=concepts)
    (part,) = classify(photos[:1], ["heron", "kept"], encoder=encoder, concepts=concepts)
    odds = [
        {one.label: one.probability for one in result.predictions}["heron"]
        / {one.label: one.probability for one in result.predictions}["kept"]
        for result in (whole, part)
    ]
    assert odds[0] == pytest.approx(odds[1], rel=1e-4)


def test_beside_a_label_that_was_not_learnt_scores_have_the_size_of_texts(
    encoder: Encoder, photos: list[Path]
) -> None:
    concepts = _learnt(encoder, "heron", "toadstool")
    heron = concepts.concepts["heron"]
    assert heron.vector is not None
    assert calibration_of(["heron", "teapot"], concepts) is None
    (found,) = classify(photos[:1], ["heron", "teapot"], encoder=encoder, concepts=concepts)
    embedded = encoder.encode_images(photos[:1])[0]
    teapot = encoder.encode_mean(label_texts("teapot"))
    logits = encoder.logit_scale * np.array([embedded @ heron.vector + heron.offset, embedded @ teapot])
    share = 1 / (1 + np.exp(logits[1] - logits[0]))
    assert {one.label: one.probability for one in found.predictions}["heron"] == pytest.approx(
        share, abs=1e-4
    )


def test_labels_that_nobody_taught_are_scored_as_ever(encoder: Encoder, photos: list[Path]) -> None:
    concepts = _learnt(encoder, "heron", "toadstool")
    labels = ["a dog", "teapot", "aves"]
    assert classify(photos[:2], labels, encoder=encoder, concepts=concepts) == classify(
        photos[:2], labels, encoder=encoder
    )


def test_a_label_is_what_was_taught_by_the_name_that_people_use(encoder: Encoder, photos: list[Path]) -> None:
    concepts = _learnt(encoder, "bird", "mushroom")
    folders, common = (
        classify(photos[:2], labels, encoder=encoder, concepts=concepts)
        for labels in (["aves", "fungi"], ["bird", "mushroom"])
    )
    for one, other in zip(folders, common, strict=True):
        assert [p.probability for p in one.predictions] == [p.probability for p in other.predictions]
        assert one.expected_error == other.expected_error == 0.05
    given = {"aves": ("owl",)}
    assert calibration_of(["aves", "fungi"], concepts, given) is None
    (owl,) = classify(photos[:1], ["aves", "fungi"], encoder=encoder, concepts=concepts, names=given)
    assert {p.label: p.learnt for p in owl.predictions} == {"aves": False, "fungi": True}


def test_two_labels_that_were_learnt_as_one_are_refused(encoder: Encoder, photos: list[Path]) -> None:
    concepts = _learnt(encoder, "heron", "toadstool")
    labels = ["heron", "toadstool", "heron of a kind"]
    with pytest.raises(DataError, match="'heron' and 'heron of a kind' ask for the same, which was"):
        classify(photos[:1], labels, encoder=encoder, concepts=concepts)
    assert len(classify(photos[:1], labels, encoder=encoder)[0].predictions) == 3


def test_a_model_of_a_sigmoid_judges_what_was_learnt_on_its_own(
    sigmoid_model: Path, photos: list[Path]
) -> None:
    encoder = Encoder(str(sigmoid_model), device="cpu", precision="fp32")
    concepts = Concepts.of(encoder, _learnt(encoder, "heron").concepts.values())
    heron = concepts.concepts["heron"]
    (found,) = classify(photos[:1], ["heron"], encoder=encoder, concepts=concepts)
    assert heron.vector is not None
    score = encoder.encode_images(photos[:1])[0] @ heron.vector + heron.offset
    logit = encoder.logit_scale * score + (encoder.logit_bias or 0)
    assert found.predictions[0].probability == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-3)
    assert found.expected_error is None


def test_the_command_says_what_scored_and_how_far_probabilities_are_off(
    random_model: Path, encoder: Encoder, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "taught"
    shutil.copytree(random_model, folder)
    (folder / FILE_NAME).write_bytes(_learnt(encoder, "heron", "toadstool").to_bytes())
    command = [str(photos[0]), "--model", str(folder), "--format", "json", "--labels"]
    done = _in_process(*command, "heron,toadstool")
    assert (
        "probabilities calibrated on pictures held out: expected calibration error 0.400 by the"
        in done.stderr
    )
    assert json.loads(done.stdout)["expected_error"] == 0.05
    mixed = _in_process(*command, "heron,teapot")
    assert "scored by what was learnt: heron (--no-concepts scores words); not calibrated" in mixed.stderr
    rows = json.loads(mixed.stdout)["predictions"]
    assert {row["label"]: row["learnt"] for row in rows} == {"heron": True, "teapot": False}
    words = _in_process(*command, "heron,toadstool", "--no-concepts")
    assert "learnt" not in words.stderr
    assert json.loads(words.stdout)["expected_error"] is None
