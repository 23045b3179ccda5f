"""Concepts in a search: what they change, that they change nothing else to the bit, what is said of them."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from imret import Encoder
from imret.errors import StoreError
from imret.models.lazy_encoder import LazyEncoder
from imret.retrieval.concept_query import FILE_NAME
from imret.retrieval.concepts import Concept, Concepts
from imret.retrieval.notes import notes_of, on_command_line
from imret.retrieval.query import Query, Term
from imret.retrieval.query_vector import query_vector
from imret.retrieval.results import ConceptUse, Hits, SearchWarning
from imret.retrieval.search import search
from imret.retrieval.subtraction import WORDS
from imret.store import Collection, Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests import ROOT
from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture

CATEGORIES = ("fungi", "aves", "insecta")


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(24):
        draw_picture(folder / CATEGORIES[seed % 3] / f"{seed:02}.png", seed=seed)
    with open_store(str(tmp_path_factory.mktemp("db"))) as store:
        ingest(store, [FolderSource(folder)], encoder=encoder)
        yield store


@pytest.fixture(autouse=True)
def _no_concepts_of_another_test(store: Store) -> Iterator[None]:
    yield
    store.remove_document("photos", "concepts")


def direction(seed: int, length: float) -> NDArray[np.float32]:
    vector = np.random.default_rng(seed).standard_normal(32)
    return (length * vector / np.linalg.norm(vector)).astype(np.float32)


def concept(encoder: Encoder, name: str, *names: str, length: float = 0.4, strength: float = 0.5) -> Concept:
    """Return one of a made up direction, another for each name."""
    vector = direction(sum(map(ord, name)), length)
    return Concept(name, (name, *names), vector, query_vector(encoder, name), 0.05, strength, 43)


def teach(store: Store, encoder: Encoder, *concepts: Concept) -> None:
    content = Concepts.of(encoder, concepts).to_bytes()
    store.change_document("photos", "concepts", lambda _: content)


class Seen:
    """Records the vectors that a collection is asked with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.vectors: list[NDArray[np.float32]] = []
        search = Collection.search

        def noted(collection: Collection, vector: NDArray[np.float32], **options: object) -> object:
            self.vectors.append(vector)
            return search(collection, vector, **options)  # type: ignore[arg-type]

        patch.setattr(Collection, "search", noted)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return Seen(monkeypatch)


def asked_with(seen: Seen, store: Store, query: Query, encoder: Encoder, **options: bool) -> bytes:
    seen.vectors.clear()
    search(store, query, encoder=encoder, **options)  # type: ignore[arg-type]
    return seen.vectors[0].tobytes()


TEXTS = (
    *("wing", "a wing", "a red thing on a table", "birdcage", "jailbird", "bird-like", "sealed", "b i r d"),
    *(
        "mushroo",
        "photo",
        "two words",
        "some more than three words",
        "\u9ce5",
        "oiseau",
        "\x00\x01",
        "  wing ",
    ),
    *("aves" * 30, "bir\u0301d", "16:9", "black-and-white", "BIRDSx", "a", "the", "x " * 5_000),
)


@pytest.mark.filterwarnings("ignore:.*tokens")
@pytest.mark.parametrize("template", [True, False])
def test_queries_that_name_no_concept_ask_with_the_same_vector_to_the_bit(
    store: Store, encoder: Encoder, seen: Seen, template: bool
) -> None:
    queries: list[Query] = [*TEXTS, [Term("wing"), Term("red", weight=-0.5), Term("tree", weight=3)]]
    before = [asked_with(seen, store, query, encoder, template=template) for query in queries]
    teach(
        store,
        encoder,
        concept(encoder, "bird", "aves"),
        concept(encoder, "seal"),
        concept(encoder, "mushroom"),
    )
    assert [asked_with(seen, store, query, encoder, template=template) for query in queries] == before


@pytest.mark.parametrize("template", [True, False])
def test_with_concepts_turned_off_every_query_asks_with_the_same_vector_to_the_bit(
    store: Store, encoder: Encoder, seen: Seen, template: bool
) -> None:
    queries: list[Query] = ["bird", "Birds", "a bird on a mushroom", [Term("bird"), Term("wing", weight=-1)]]
    before = [asked_with(seen, store, query, encoder, template=template) for query in queries]
    teach(store, encoder, concept(encoder, "bird"), concept(encoder, "mushroom"))
    off = {"template": template, "concepts": False}
    assert [asked_with(seen, store, query, encoder, **off) for query in queries] == before
    on = [asked_with(seen, store, query, encoder, template=template) for query in queries]
    assert not set(on) & set(before)


def test_the_name_of_a_concept_asks_with_what_was_learnt_and_scores_stay_cosines(
    store: Store, encoder: Encoder, seen: Seen
) -> None:
    bird = concept(encoder, "bird", "aves")
    teach(store, encoder, bird)
    assert bird.vector is not None
    for typed in ("bird", "Birds", "the bird", "aves"):
        hits = search(store, typed, encoder=encoder, limit=24)
        np.testing.assert_allclose(seen.vectors[-1], bird.vector / 0.4, atol=1e-6)
        assert hits.concepts == (ConceptUse("bird", True, 1.0, 43),)
    with closing(store.open("photos")) as collection:
        points = collection.get([hit.id for hit in hits], vectors=True)
    cosines = [float(points[hit.id].vector @ seen.vectors[-1]) for hit in hits]  # type: ignore[operator]
    np.testing.assert_allclose([hit.score for hit in hits], cosines, atol=1e-4)
    assert hits.notes == ['"bird" was asked as learnt from 43 pictures (concepts=False asks the words alone)']


def test_two_concepts_in_one_text_both_move_it_and_both_are_told(
    store: Store, encoder: Encoder, seen: Seen
) -> None:
    bird, mushroom = concept(encoder, "bird"), concept(encoder, "mushroom", strength=0.25)
    teach(store, encoder, bird, mushroom)
    hits = search(store, "a bird on a mushroom", encoder=encoder)
    text = query_vector(encoder, "a bird on a mushroom")
    assert bird.vector is not None
    assert mushroom.vector is not None
    expected = text + 0.5 * (bird.vector - bird.text) + 0.25 * (mushroom.vector - mushroom.text)
    np.testing.assert_allclose(seen.vectors[-1], expected / np.linalg.norm(expected), atol=1e-6)
    assert [use.name for use in hits.concepts] == ["bird", "mushroom"]
    assert notes_of(hits, on_command_line) == [
        '"bird" was moved to what was learnt from 43 pictures (--no-concepts asks the words alone)',
        '"mushroom" was moved to what was learnt from 43 pictures (--no-concepts asks the words alone)',
    ]


def test_concepts_are_added_and_subtracted_as_they_are(store: Store, encoder: Encoder, seen: Seen) -> None:
    bird, mushroom = concept(encoder, "bird", length=0.3), concept(encoder, "mushroom", length=2.0)
    teach(store, encoder, bird, mushroom)
    hits = search(
        store, [Term("wing"), Term("bird", weight=2), Term("mushroom", weight=-0.5)], encoder=encoder
    )
    assert bird.vector is not None
    assert mushroom.vector is not None
    expected = query_vector(encoder, "wing") + 2 * bird.vector - 0.5 * WORDS * mushroom.vector
    np.testing.assert_allclose(seen.vectors[-1], expected / np.linalg.norm(expected), atol=1e-6)
    assert [use.name for use in hits.concepts] == ["bird", "mushroom"]


def test_phrases_are_compared_with_scores_of_the_size_that_the_words_have(
    store: Store, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    bird = concept(encoder, "bird", length=0.1)
    teach(store, encoder, bird)
    from imret.retrieval import relevance

    given = {}
    cut = relevance.cut

    def noted(
        scores: NDArray[np.float32], best: NDArray[np.float32], *others: object, **options: object
    ) -> float:
        given.update(scores=scores, best=best, end=cut(scores, best, *others, **options))  # type: ignore[arg-type]
        return float(given["end"])

    monkeypatch.setattr(relevance, "cut", noted)
    hits = search(store, "bird", encoder=encoder, relevant=True, limit=24)
    with closing(store.open("photos")) as collection:
        points = next(collection.scan(vectors=True, batch_size=512))
    pictures = np.stack([point.vector for point in points if point.vector is not None])
    assert bird.vector is not None
    np.testing.assert_allclose(given["scores"], pictures @ bird.vector + 0.05, atol=1e-5)
    np.testing.assert_allclose(given["best"], np.sort(pictures @ bird.vector)[::-1][:3] + 0.05, atol=1e-4)
    for hit in hits:
        assert hit.score * 0.1 + 0.05 >= given["end"] - 1e-5


def test_a_name_that_became_ambiguous_asks_with_the_words(store: Store, encoder: Encoder, seen: Seen) -> None:
    alone = asked_with(seen, store, "bird", encoder)
    teach(store, encoder, concept(encoder, "bird"))
    assert asked_with(seen, store, "bird", encoder) != alone
    teach(store, encoder, concept(encoder, "bird"), concept(encoder, "parrot", "bird"))
    assert asked_with(seen, store, "bird", encoder) == alone
    assert search(store, "parrot", encoder=encoder).concepts


def test_concepts_that_are_taught_and_removed_meanwhile_are_taken_up(
    store: Store, encoder: Encoder, seen: Seen
) -> None:
    with closing(store.open("photos")) as collection:
        alone = search(collection, "bird", encoder=encoder)
        teach(store, encoder, concept(encoder, "bird"))
        taught = search(collection, "bird", encoder=encoder)
        store.remove_document("photos", "concepts")
        again = search(collection, "bird", encoder=encoder)
    assert alone == again != taught
    assert taught.concepts
    assert not again.concepts


def test_concepts_of_another_encoder_are_left_out_and_that_is_said(
    store: Store, encoder: Encoder, tmp_path: Path, seen: Seen
) -> None:
    alone = asked_with(seen, store, "bird", encoder)
    other = Encoder(str(write_random_model(tmp_path / "other", seed=5)), device="cpu")
    teach(store, other, concept(encoder, "bird"))
    with pytest.warns(
        SearchWarning, match="without the concepts of collection 'photos': they were learnt with"
    ):
        assert asked_with(seen, store, "bird", encoder) == alone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(store, "bird", encoder=encoder, concepts=False)


@pytest.mark.parametrize("content", [b"", b"no", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_broken_document_is_left_out_and_that_is_said(
    store: Store, encoder: Encoder, content: bytes, seen: Seen
) -> None:
    alone = asked_with(seen, store, "bird", encoder)
    store.change_document("photos", "concepts", lambda _: content)
    for _ in range(2):
        with pytest.warns(SearchWarning, match="without the concepts of collection 'photos'"):
            assert asked_with(seen, store, "bird", encoder) == alone


@pytest.mark.parametrize("name", ["bird\x1b[31m", "", "x" * 201, "bird\u202e"])
def test_names_that_nobody_may_be_shown_are_not_taken_from_a_document(
    store: Store, encoder: Encoder, name: str
) -> None:
    bird = concept(encoder, "bird")
    teach(store, encoder, Concept(name, bird.names, bird.vector, bird.text, 0.0, 1.0, 3))
    with pytest.warns(SearchWarning, match="without the concepts of collection 'photos'") as told:
        assert not search(store, "bird", encoder=encoder).concepts
    assert all(line.isprintable() for warning in told for line in str(warning.message).splitlines())


@pytest.mark.parametrize("length", [1e7, 1e38, math.inf, math.nan])
def test_vectors_whose_sums_would_be_no_numbers_are_not_taken_from_a_document(
    store: Store, encoder: Encoder, length: float
) -> None:
    alone = search(store, "a bird on a branch", encoder=encoder)
    teach(store, encoder, concept(encoder, "bird", length=length))
    with pytest.warns(SearchWarning, match="without the concepts of collection 'photos'"):
        assert search(store, "a bird on a branch", encoder=encoder) == alone


def test_a_document_that_cannot_even_be_looked_at_is_left_out_and_that_is_said(
    store: Store, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = search(store, "bird", encoder=encoder)

    def refuse(*of: object) -> str:
        raise StoreError("its disk does not answer")

    monkeypatch.setattr(type(store), "document", refuse)
    monkeypatch.setattr(type(store), "document_mark", refuse)
    with pytest.warns(SearchWarning, match="its disk does not answer"):
        assert search(store, "bird", encoder=encoder) == alone


def test_a_picture_that_is_asked_with_looks_for_no_concepts(
    store: Store, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits = search(store, "wing", encoder=encoder)
    monkeypatch.setattr(type(store), "document_mark", lambda *of: pytest.fail("nothing is asked of them"))
    assert search(store, Term(hits[0].id, "id"), encoder=encoder)
    assert search(store, "bird", encoder=encoder, concepts=False)


def test_without_concepts_a_search_costs_one_look_at_the_mark(
    store: Store, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(store, "wing", encoder=encoder)
    looks, reads = [], []
    mark, read = type(store).document_mark, type(store).document
    monkeypatch.setattr(type(store), "document_mark", lambda *of: looks.append(of) or mark(*of))
    monkeypatch.setattr(type(store), "document", lambda *of: reads.append(of) or read(*of))
    search(store, [Term("wing"), Term("tree"), Term("red")], encoder=encoder)
    assert [kind for *_, kind in looks] == ["concepts"]
    assert "concepts" not in [kind for *_, kind in reads]


def test_concepts_of_the_model_are_used_and_those_of_the_collection_come_before_them(
    tmp_path: Path, seen: Seen
) -> None:
    model = write_random_model(tmp_path / "model", seed=3)
    encoder = Encoder(str(model), device="cpu")
    draw_picture(tmp_path / "photos" / "a.png", seed=1)
    bird, other = concept(encoder, "bird"), concept(encoder, "bird", "avian", length=0.7)
    (model / FILE_NAME).write_bytes(Concepts.of(encoder, [bird, concept(encoder, "seal")]).to_bytes())
    with open_store(str(tmp_path / "db")) as store:
        ingest(store, [FolderSource(tmp_path / "photos")], encoder=encoder)
        assert [use.name for use in search(store, "bird", encoder=encoder).concepts] == ["bird"]
        teach(store, encoder, Concept("bird", ("bird",), direction(7, 1.0), other.text, 0.0, 1.0, 3))
        hits = search(store, [Term("bird"), Term("seal")], encoder=encoder)
        assert [(use.name, use.images) for use in hits.concepts] == [("bird", 3), ("seal", 43)]


def test_a_text_that_was_asked_before_is_asked_by_a_concept_without_torch(
    store: Store, encoder: Encoder, random_model: Path
) -> None:
    teach(store, encoder, concept(encoder, "bird"))
    LazyEncoder(str(random_model)).encode_mean([f"{words} a bird" for words in ("on", "under")])
    program = (
        "import sys, imret\n"
        "from imret.models.lazy_encoder import LazyEncoder\n"
        f"store = imret.open_store({store.address!r})\n"
        f"encoder = LazyEncoder({str(random_model)!r})\n"
        "hits = imret.search(store, 'a bird', encoder=encoder)\n"
        "assert hits.concepts[0].whole, hits\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_what_is_typed_may_be_long_or_hold_controls(store: Store, encoder: Encoder) -> None:
    teach(store, encoder, concept(encoder, "bird"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is cut to what the model reads
        hits = search(store, "bird " * 2_000, encoder=encoder)
    assert isinstance(hits, Hits)
    assert [use.name for use in hits.concepts] == ["bird"]
    assert search(store, "bi\x00rd", encoder=encoder).concepts[0].whole
