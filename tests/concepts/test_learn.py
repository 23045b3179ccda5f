"""Examples to concepts: what they are told from, what is refused, where they are kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imret import Encoder
from imret.concepts.examples import (
    Example,
    embed_files,
    examples_by_category,
    examples_by_id,
    other_examples,
)
from imret.concepts.learn import (
    Lesson,
    Taught,
    forget_in_collection,
    keep_in_collection,
    keep_in_folder,
    learn,
)
from imret.errors import DataError
from imret.retrieval.concept_query import FILE_NAME, ask_with_concepts, known_concepts, read_model_concepts
from imret.retrieval.concepts import MAX_NAME_CHARS, Concepts
from imret.retrieval.query_vector import query_vector
from imret.store import Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


def _examples(encoder: Encoder, n: int, *, seed: int = 0, around: int = 0) -> list[Example]:
    """Return made-up pictures that lie around a point of their own."""
    rng = np.random.default_rng([around, seed])
    centre = np.random.default_rng(around).normal(size=encoder.dim)
    rows = centre + 0.7 * rng.normal(size=(n, encoder.dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return [Example(f"{around}-{seed}-{i}", row[None].astype(np.float32)) for i, row in enumerate(rows)]


def _lesson(encoder: Encoder, *names: str, n: int = 12) -> Lesson:
    taught = [Taught(name, (), _examples(encoder, n, around=i)) for i, name in enumerate(names)]
    return learn(encoder, taught, others=_examples(encoder, 20, around=99))


@pytest.fixture
def store(tmp_path: Path, encoder: Encoder) -> Iterator[Store]:
    for category in ("aves", "fungi"):
        for i in range(4):
            draw_picture(tmp_path / "photos" / category / f"{i}.png", seed=hash_of(category) + i)
    with open_store(tmp_path / "db") as opened:
        ingest(opened, [FolderSource(tmp_path / "photos")], encoder=encoder, collection="photos")
        yield opened


def hash_of(text: str) -> int:
    return sum(map(ord, text))


# ---- What is learnt ------------------------------------------------------------------------------------


def test_a_name_is_asked_by_its_pictures_and_scores_like_its_text(encoder: Encoder) -> None:
    lesson = _lesson(encoder, "heron", "toadstool")
    concepts = lesson.concepts
    text = query_vector(encoder, "heron")
    answer = ask_with_concepts(concepts, "a heron", text, encoder, lambda name: query_vector(encoder, name))
    assert [(use.name, use.whole, use.images) for use in answer.uses] == [("heron", True, 12)]
    others = np.concatenate([e.vectors for e in _examples(encoder, 50, seed=5, around=99)])
    own = np.concatenate([e.vectors for e in _examples(encoder, 50, seed=5, around=0)])
    assert (own @ answer.vector).mean() > (others @ answer.vector).max() - 0.05
    together = np.concatenate([own, others])
    assert (together @ answer.vector + answer.offset).std() < 5 * (together @ text).std() + 0.05


def test_a_query_that_holds_a_name_is_moved_by_as_much_as_was_gained(encoder: Encoder) -> None:
    concepts = _lesson(encoder, "heron", "toadstool").concepts
    heron, toadstool = concepts.concepts["heron"], concepts.concepts["toadstool"]
    assert heron.vector is not None
    assert toadstool.vector is not None
    assert heron.held_out is not None
    assert heron.strength == pytest.approx(np.clip(heron.held_out[1] - heron.held_out[0], 0, 1))
    text = query_vector(encoder, "a heron on a toadstool")
    answer = ask_with_concepts(
        concepts, "a heron on a toadstool", text, encoder, lambda name: query_vector(encoder, name)
    )
    expected = text + sum(
        one.strength * (one.vector - query_vector(encoder, one.name)) for one in (heron, toadstool)
    )
    assert np.allclose(answer.vector, expected, atol=1e-5)
    assert answer.offset == pytest.approx(
        heron.strength * heron.offset + toadstool.strength * toadstool.offset
    )
    assert [use.name for use in answer.uses] == ["heron", "toadstool"]


@pytest.mark.parametrize(
    "text", ["herons' nest box", "sea", "toad stool", "HER ON", "an old man and the sea"]
)
def test_a_query_without_a_name_is_the_very_same_vector(encoder: Encoder, text: str) -> None:
    concepts = _lesson(encoder, "grey heron", "toadstool").concepts
    vector = query_vector(encoder, text)
    answer = ask_with_concepts(concepts, text, vector, encoder, lambda name: query_vector(encoder, name))
    assert answer.vector is vector
    assert not answer.uses


def test_a_picture_that_comes_twice_counts_once_and_one_of_two_names_for_none(encoder: Encoder) -> None:
    first, second = _examples(encoder, 6, around=0), _examples(encoder, 6, around=1)
    lesson = learn(
        encoder, [Taught("heron", (), [*first, first[0]]), Taught("toadstool", (), [*second, first[1]])]
    )
    assert [row.images for row in lesson.rows] == [5, 6]
    assert "1 picture came again" in lesson.notes[0]
    assert "1 picture came under two names" in lesson.notes[1]


def test_other_pictures_that_are_examples_too_are_no_others(encoder: Encoder) -> None:
    own = _examples(encoder, 8, around=0)
    rest = _examples(encoder, 8, around=1)
    taught = [Taught("heron", (), own)]
    assert np.array_equal(
        learn(encoder, taught, others=[*rest, *own]).concepts.concepts["heron"].vector,
        learn(encoder, taught, others=rest).concepts.concepts["heron"].vector,
    )


def test_one_picture_is_learnt_and_nothing_is_claimed_of_it(encoder: Encoder) -> None:
    lesson = learn(
        encoder, [Taught("rex", (), _examples(encoder, 1, around=0))], others=_examples(encoder, 1, around=1)
    )
    (row,) = lesson.rows
    assert (row.text, row.learnt, row.gain) == (None, None, None)
    assert lesson.learnt is None
    assert lesson.concepts.concepts["rex"].vector is not None


def test_one_thing_alone_is_refused_with_what_to_give(encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"'rex' is the only thing .* --others FOLDER"):
        learn(encoder, [Taught("rex", (), _examples(encoder, 5))])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "the name is empty"),
        ("  ", "the name is empty"),
        ("x" * 10_000, f"10,000 characters, and at most {MAX_NAME_CHARS}"),
        ("rex\x1b[31m", "control characters"),
        ("r\u202eex", "control characters"),
        ("!?", "no word to ask for"),
    ],
)
def test_a_name_that_nobody_can_ask_by_is_refused(encoder: Encoder, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as raised:
        learn(encoder, [Taught(name, (), _examples(encoder, 3))], others=_examples(encoder, 3, around=1))
    assert "\x1b" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_two_that_are_called_alike_are_refused(encoder: Encoder) -> None:
    taught = [
        Taught("Grey Heron", (), _examples(encoder, 3)),
        Taught("grey_heron", (), _examples(encoder, 3, around=1)),
    ]
    with pytest.raises(DataError, match="'Grey Heron' and 'grey_heron' are one name"):
        learn(encoder, taught)


def test_a_name_whose_pictures_are_all_of_another_is_refused(encoder: Encoder) -> None:
    own = _examples(encoder, 3)
    with pytest.raises(DataError, match=r"no picture of .*heron.* under another name, too"):
        learn(encoder, [Taught("heron", (), own), Taught("bird", (), own)])


def test_learning_twice_gives_the_same_to_the_bit(encoder: Encoder) -> None:
    first, second = (_lesson(encoder, "heron", "toadstool").concepts for _ in range(2))
    assert first.to_bytes() == second.to_bytes()


# ---- The document --------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(encoder: Encoder) -> None:
    concepts = _lesson(encoder, "heron", "toadstool", n=40).concepts
    assert concepts.calibrations
    again = Concepts.from_bytes(concepts.to_bytes(), "here")
    assert again.to_bytes() == concepts.to_bytes()
    assert again.calibrations == concepts.calibrations
    for name, concept in concepts.concepts.items():
        other = again.concepts[name]
        assert np.array_equal(concept.vector, other.vector)
        assert (
            replace(concept, vector=None, text=None).__dict__
            == replace(other, vector=None, text=None).__dict__
        )


def test_what_is_no_document_is_refused_in_a_sentence(encoder: Encoder) -> None:
    good = _lesson(encoder, "heron", "toadstool").concepts.to_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(400):
        broken = bytearray(good)
        if n % 2:
            broken = broken[: int(rng.integers(len(good)))]
        else:
            for at in rng.integers(0, 900, 3):
                broken[int(at)] = int(rng.integers(256))
        try:
            Concepts.from_bytes(bytes(broken), "'here'")
        except DataError as error:
            refused += "'here'" in str(error)
        else:
            continue  # a letter of a name may be another
    assert refused > 250


def test_numbers_that_are_none_are_refused(encoder: Encoder) -> None:
    concepts = _lesson(encoder, "heron", "toadstool").concepts
    heron = concepts.concepts["heron"]
    for bad in (
        replace(heron, vector=np.full(encoder.dim, np.nan, dtype=np.float32)),
        replace(heron, vector=np.zeros(encoder.dim, dtype=np.float32)),
        replace(heron, strength=2.0),
        replace(heron, offset=float("inf")),
    ):
        content = replace(concepts, concepts={"heron": bad}).to_bytes()
        with pytest.raises(DataError, match="holds no concepts of imret's"):
            Concepts.from_bytes(content, "here")


def test_a_newer_format_is_left_alone(encoder: Encoder) -> None:
    content = _lesson(encoder, "heron", "toadstool").concepts.to_bytes()
    newer = content.replace(b"imret-concepts-1", b"imret-concepts-9")
    with pytest.raises(DataError, match="Upgrade imret"):
        Concepts.from_bytes(newer, "here")


# ---- Where they are kept -------------------------------------------------------------------------------


def test_a_collection_knows_what_was_learnt_and_forgets_it(store: Store, encoder: Encoder) -> None:
    assert known_concepts(store, "photos", encoder).concepts is None
    keep_in_collection(store, "photos", _lesson(encoder, "heron", "toadstool").concepts)
    known = known_concepts(store, "photos", encoder)
    assert known.concepts is not None
    assert set(known.concepts.concepts) == {"heron", "toadstool"}
    assert not known.remarks
    forget_in_collection(store, "photos", ["herons"])  # in any number
    left = known_concepts(store, "photos", encoder).concepts
    assert left is not None
    assert set(left.concepts) == {"toadstool"}
    with pytest.raises(DataError, match=r"no concept 'heron'.*toadstool"):
        forget_in_collection(store, "photos", ["heron"])
    forget_in_collection(store, "photos", ["toadstool"])
    assert store.document("photos", "concepts") is None


def test_a_name_that_is_learnt_again_takes_the_place_of_the_old(store: Store, encoder: Encoder) -> None:
    keep_in_collection(store, "photos", _lesson(encoder, "heron", "toadstool").concepts)
    again = learn(
        encoder, [Taught("heron", (), _examples(encoder, 3, around=7))], others=_examples(encoder, 9)
    )
    notes = keep_in_collection(store, "photos", again.concepts)
    assert notes == ["learnt again: heron"]
    known = known_concepts(store, "photos", encoder).concepts
    assert known is not None
    assert {name: one.images for name, one in known.concepts.items()} == {"heron": 3, "toadstool": 12}
    assert not known.calibrations  # of two that were learnt together one is another now


def test_a_name_that_is_anothers_synonym_becomes_its_own(store: Store, encoder: Encoder) -> None:
    others = _examples(encoder, 9, around=9)
    bird = learn(encoder, [Taught("bird", ("aves", "heron"), _examples(encoder, 9))], others=others)
    keep_in_collection(store, "photos", bird.concepts)
    heron = learn(encoder, [Taught("heron", ("aves",), _examples(encoder, 3, around=7))], others=others)
    notes = keep_in_collection(store, "photos", heron.concepts)
    assert notes == [
        "heron is no name of 'bird' any more, but another's",
        "aves is no name of 'heron' any more, but another's",
    ]
    known = known_concepts(store, "photos", encoder).concepts
    assert known is not None
    assert not known.index.ambiguous
    assert (known.index.exact("aves"), known.index.exact("heron")) == ("bird", "heron")


def test_concepts_of_another_encoder_are_not_used_and_that_is_said(
    store: Store, encoder: Encoder, tmp_path: Path
) -> None:
    other = Encoder(str(write_random_model(tmp_path / "other", seed=5)), device="cpu", precision="fp32")
    theirs = _lesson(other, "heron", "toadstool").concepts
    store.change_document("photos", "concepts", lambda _: theirs.to_bytes())
    known = known_concepts(store, "photos", encoder)
    assert known.concepts is None
    (remark,) = known.remarks
    assert "learnt with" in remark
    assert "imret learn --collection photos" in remark
    notes = keep_in_collection(store, "photos", _lesson(encoder, "rex", "tom").concepts)
    assert "2 concepts learnt with" in notes[0]
    mine = known_concepts(store, "photos", encoder).concepts
    assert mine is not None
    assert set(mine.concepts) == {"rex", "tom"}


def test_a_broken_document_stops_no_search(store: Store, encoder: Encoder) -> None:
    store.change_document("photos", "concepts", lambda _: b"nothing of the kind")
    known = known_concepts(store, "photos", encoder)
    assert known.concepts is None
    assert "went without the concepts of collection 'photos'" in known.remarks[0]


def test_a_models_folder_knows_them_for_every_collection_and_a_collections_own_come_first(
    tmp_path: Path,
) -> None:
    folder = write_random_model(tmp_path / "model", seed=3)
    encoder = Encoder(str(folder), device="cpu", precision="fp32")
    draw_picture(tmp_path / "photos" / "0.png")
    with open_store(tmp_path / "db") as store:
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder, collection="photos")
        before = known_concepts(store, "photos", encoder)
        assert before.concepts is None
        keep_in_folder(folder, _lesson(encoder, "heron", "toadstool").concepts)
        assert (folder / FILE_NAME).is_file()
        again = Encoder(str(folder), device="cpu", precision="fp32")
        assert again.fingerprint == encoder.fingerprint  # the weights are what they were
        known = known_concepts(store, "photos", again).concepts
        assert known is not None
        assert set(known.concepts) == {"heron", "toadstool"}
        own = learn(
            encoder, [Taught("heron", (), _examples(encoder, 2))], others=_examples(encoder, 9, around=3)
        )
        keep_in_collection(store, "photos", own.concepts)
        both = known_concepts(store, "photos", again).concepts
        assert both is not None
        assert {name: one.images for name, one in both.concepts.items()} == {"heron": 2, "toadstool": 12}


def test_stock_open_clip_loads_a_folder_with_concepts(tmp_path: Path) -> None:
    import open_clip
    import torch

    folder = write_random_model(tmp_path / "model", seed=3)
    encoder = Encoder(str(folder), device="cpu", precision="fp32")
    keep_in_folder(folder, _lesson(encoder, "heron", "toadstool").concepts)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(["a heron"])
    with torch.no_grad():
        theirs = model.eval().encode_text(tokens, normalize=True).numpy()
    assert np.allclose(theirs, encoder.encode_texts(["a heron"]), atol=1e-5)


def test_a_kill_while_they_are_written_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=3)
    script = (
        "import sys\nfrom tests.concepts.test_learn import _lesson\nfrom imret import Encoder\n"
        "from imret.concepts.learn import keep_in_folder\n"
        "encoder = Encoder(sys.argv[1], device='cpu', precision='fp32')\n"
        "lessons = [_lesson(encoder, 'heron', 'toadstool', n=n).concepts for n in (5, 6)]\n"
        "print('ready', flush=True)\n"
        "while True:\n    for one in lessons:\n        keep_in_folder(sys.argv[1], one)\n"
    )
    for n in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.3 + 0.07 * n)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = read_model_concepts(folder)
        assert found is not None
        assert {one.images for one in found.concepts.values()} in ({5}, {6})


def test_what_is_broken_in_a_folder_is_replaced_and_what_is_newer_is_not(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=3)
    encoder = Encoder(str(folder), device="cpu", precision="fp32")
    concepts = _lesson(encoder, "heron", "toadstool").concepts
    (folder / FILE_NAME).write_bytes(b"nothing of the kind")
    (note,) = keep_in_folder(folder, concepts)
    assert "could not be read, and are replaced" in note
    newer = concepts.to_bytes().replace(b"imret-concepts-1", b"imret-concepts-9")
    (folder / FILE_NAME).write_bytes(newer)
    with pytest.raises(DataError, match="Upgrade imret"):
        keep_in_folder(folder, concepts)
    assert (folder / FILE_NAME).read_bytes() == newer


def test_what_a_newer_imret_kept_with_a_collection_is_not_replaced(store: Store, encoder: Encoder) -> None:
    concepts = _lesson(encoder, "heron", "toadstool").concepts
    newer = concepts.to_bytes().replace(b"imret-concepts-1", b"imret-concepts-9")
    store.change_document("photos", "concepts", lambda _: newer)
    with pytest.raises(DataError, match="Upgrade imret"):
        keep_in_collection(store, "photos", concepts)
    assert store.document("photos", "concepts") == newer


def test_two_that_teach_one_folder_at_once_lose_no_name(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=3)
    encoder = Encoder(str(folder), device="cpu", precision="fp32")
    lessons = [_lesson(encoder, f"bird {i}", f"stone {i}", n=3).concepts for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: keep_in_folder(folder, one), lessons))
    found = read_model_concepts(folder)
    assert found is not None
    assert len(found.concepts) == 12


def test_a_synonym_that_is_another_name_of_the_same_lesson_is_that_ones(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", seed=3)
    encoder = Encoder(str(folder), device="cpu", precision="fp32")
    taught = [
        Taught("insect", ("bug", "beetle"), _examples(encoder, 4)),
        Taught("beetle", (), _examples(encoder, 4, around=1)),
    ]
    learnt = learn(encoder, taught).concepts
    assert learnt.index.ambiguous  # as it was asked for; it is settled where they are kept
    notes = keep_in_folder(folder, learnt)
    kept = read_model_concepts(folder)
    assert kept is not None
    assert not kept.index.ambiguous
    assert kept.index.exact("beetles") == "beetle"
    assert notes == ["beetle is no name of 'insect' any more, but another's"]


def test_numbers_beyond_all_and_names_twice_are_refused(encoder: Encoder) -> None:
    content = _lesson(encoder, "heron", "toadstool").concepts.to_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for change in (
        lambda about: about.update(dim=float("inf")),
        lambda about: about["concepts"][0].update(images=float("inf")),
        lambda about: about["concepts"][0].update(name=about["concepts"][1]["name"]),
        lambda about: about.update(
            calibrations=[{"biases": {}, "scale": float("inf"), "error_before": 0, "error": 0}]
        ),
    ):
        about = json.loads(header["__metadata__"]["concepts"])
        change(about)
        changed = json.dumps({**header, "__metadata__": {"concepts": json.dumps(about)}}).encode()
        broken = len(changed).to_bytes(8, "little") + changed + content[8 + size :]
        with pytest.raises(DataError, match="holds no concepts of imret's"):
            Concepts.from_bytes(broken, "here")


# ---- Where examples come from --------------------------------------------------------------------------


def _all_vectors(store: Store) -> dict[str, NDArray[np.float32]]:
    with closing(store.open("photos")) as collection:
        points = [point for some in collection.scan(vectors=True) for point in some]
    return {str(one.payload["sha256"]): one.vector for one in points if one.vector is not None}


def test_what_a_collection_holds_is_not_embedded_again(
    store: Store, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes((tmp_path / "photos" / "aves" / "0.png").read_bytes())
    monkeypatch.setattr(encoder, "encode_pixels", lambda *_, **__: pytest.fail("embedded again"))
    with closing(store.open("photos")) as collection:
        found = embed_files([str(moved)], encoder, collection=collection)
    assert found.n_stored == 1
    (example,) = found.examples.values()
    assert np.array_equal(example.vectors[0], _all_vectors(store)[example.sha256])


def test_new_pictures_are_seen_in_three_views_the_first_as_they_are(encoder: Encoder, tmp_path: Path) -> None:
    files = [str(draw_picture(tmp_path / f"{i}.png", seed=i)) for i in range(3)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    missing = str(tmp_path / "gone.png")
    found = embed_files([*files, str(tmp_path / "broken.png"), missing], encoder)
    assert set(found.skipped) == {str(tmp_path / "broken.png"), missing}
    expected = encoder.encode_images(files)
    for row, file in zip(expected, files, strict=True):
        vectors = found.examples[file].vectors
        assert vectors.shape == (3, encoder.dim)
        assert np.allclose(vectors[0], row, atol=1e-5)
        assert not np.allclose(vectors[1], row, atol=1e-4)


def test_a_collections_categories_are_examples(store: Store) -> None:
    with closing(store.open("photos")) as collection:
        found = examples_by_category(collection, 3)
        assert {name: len(some) for name, some in found.items()} == {"aves": 3, "fungi": 3}
        others = other_examples(collection, called=["Aves", "no such"])
        assert len(others) == 4
        assert not {one.sha256 for one in others} & {one.sha256 for one in found["aves"]}
        assert len(other_examples(collection, but=[others[0].sha256], most=100)) == 7
        # By any name that the category goes by: its pictures are of what is taught.
        assert len(other_examples(collection, called=["birds"])) == 4
        assert len(other_examples(collection, called=["toadstool"])) == 8
        assert len(other_examples(collection, called=["toadstool"], names={"fungi": ["toadstool"]})) == 4


def test_stored_pictures_that_are_gone_are_named(store: Store) -> None:
    with closing(store.open("photos")) as collection:
        ids = [point.id for some in collection.scan() for point in some]
        assert len(examples_by_id(collection, [*ids[:2], ids[0]])) == 2
        collection.delete([ids[0]])
        with pytest.raises(DataError, match=f"1 of the 2 pictures .* any more: {ids[0]}"):
            examples_by_id(collection, ids[:2])
