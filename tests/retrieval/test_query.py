"""What is typed becomes terms: words, pictures, weights, sums; and anything else is refused with a reason."""

from __future__ import annotations

import math
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imret.errors import DataError
from imret.retrieval.query import KINDS, Term, parse_query, parse_term, terms_of

ID = "2b1c6d0e-6c1f-4d5c-9c53-0c7d3f4b8a11"


def term(value: str, kind: str = "text", weight: float = 1.0) -> Term:
    return Term(value, kind, weight)


@pytest.mark.parametrize(
    ("typed", "terms"),
    [
        (["mushroom"], [term("mushroom")]),
        (["red mushroom"], [term("red mushroom")]),
        (["red", "mushroom"], [term("red mushroom")]),
        (["black-and-white"], [term("black-and-white")]),
        (["a + b - c"], [term("a + b - c")]),
        (["golden retriever", "+", "./pool.jpg"], [term("golden retriever"), term("./pool.jpg", "image")]),
        (["animal", "-", "2:fruit"], [term("animal"), term("fruit", weight=-2)]),
        (["-", "fruit", "+", "animal"], [term("fruit", weight=-1), term("animal")]),
        (["0.5:red", "rose"], [term("red rose", weight=0.5)]),
        (["https://example.org/a.jpg"], [term("https://example.org/a.jpg", "url")]),
        ([".5:https://example.org/a.jpg"], [term("https://example.org/a.jpg", "url", 0.5)]),
        ([ID], [term(ID, "id")]),
        ([f"id:{ID}"], [term(ID, "id")]),
        (["stored:aves/17.jpg"], [term("aves/17.jpg", "stored")]),
        (["/photos/a b.jpg"], [term("/photos/a b.jpg", "image")]),
        (["~/a.jpg"], [term("~/a.jpg", "image")]),
        (["file:///a%20b.jpg"], [term("file:///a%20b.jpg", "image")]),
        ([r"C:\a.jpg"], [term(r"C:\a.jpg", "image")]),
        (["IMG_1234.JPG"], [term("IMG_1234.JPG", "image")]),
        (["image:picture"], [term("picture", "image")]),
        (["text:IMG_1234.JPG"], [term("IMG_1234.JPG")]),
        (["text:16:9"], [term("16:9")]),
        (["note: a bird"], [term("note: a bird")]),
        (["text:+"], [term("+")]),
    ],
    ids=str,
)
def test_what_is_typed_is_what_is_meant(typed: list[str], terms: list[Term]) -> None:
    assert parse_query(typed) == tuple(terms)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ([], r"the query is empty\. Say what to look for"),
        (["", " "], r"the query is empty"),
        (["cat", "+"], r"the query ends with '\+'\. Say what to add"),
        (["cat", "-"], r"the query ends with '-'\. Say what to subtract"),
        (["cat", "+", "-", "dog"], r"there is no term between '\+' and '-'"),
        (["-", "fruit"], r"only says what not to look for \(fruit\)\. Add what to look for"),
        (["0:fruit"], r"the weight '0' of '0:fruit' is no number above 0\. Write it as in 2:fruit"),
        (["nan:fruit"], r"the weight 'nan' of 'nan:fruit' is no number"),
        (["inf:fruit"], r"the weight 'inf'"),
        (["1,5:fruit"], r"the weight '1,5' of '1,5:fruit' is no number above 0"),
        (["1.2.3:fruit"], r"text:1\.2\.3:fruit"),
        (["-2:fruit"], r"the weight '-2'"),
        (["2:"], r"the term '2:' says nothing"),
        (["text:"], r"the term 'text:' says nothing"),
        (["id:17"], r"'id:17' names no point: an id has 36 characters"),
        (["./a.jpg", "bird"], r"'\./a\.jpg' and 'bird' stand side by side\. Put \+ or - between"),
        (["bird", "2:cat"], r"'bird' and 'cat' stand side by side"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_with_a_reason(typed: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_query(typed)


arguments = st.lists(
    st.one_of(
        st.text(),
        st.sampled_from(
            ["+", "-", "2:", "nan:x", "id:", "text:", "./", "~", "https://", "1e999:x", "-1:x", "C:\\"]
        ),
        st.builds("{}:{}".format, st.floats(), st.text()),
    ),
    max_size=6,
)


@given(arguments)
def test_nothing_that_can_be_typed_breaks_the_parser(typed: list[str]) -> None:
    try:
        terms = parse_query(typed)
    except DataError:
        return
    assert any(term.weight > 0 for term in terms)
    assert all(math.isfinite(term.weight) and term.weight != 0 and str(term.value).strip() for term in terms)


values = {
    "text": st.one_of(
        st.text(min_size=1), st.sampled_from(["+", "-", "2:x", "id:x", "text:y", "./a", ID, "a.png"])
    ),
    "image": st.one_of(st.text(min_size=1), st.sampled_from(["./a.jpg", "/b", "~/c"])),
    "url": st.one_of(st.text(min_size=1), st.sampled_from(["http://a/b", "HTTPS://x"])),
    "id": st.uuids().map(str),
    "stored": st.text(min_size=1),
}
terms_strategy = st.lists(
    st.sampled_from(KINDS).flatmap(
        lambda kind: st.builds(
            Term,
            values[kind].filter(lambda text: bool(text.strip())),
            st.just(kind),
            st.one_of(st.just(1.0), st.floats(1e-6, 1e6), st.floats(-1e6, -1e-6)),
        )
    ),
    min_size=1,
    max_size=5,
).filter(lambda terms: any(term.weight > 0 for term in terms))


def _typed(terms: list[Term]) -> list[str]:
    """Return terms as somebody would type them: with their kind in front only where that is needed."""
    arguments: list[str] = []
    for term in terms:
        if term.weight < 0 or arguments:
            arguments.append("-" if term.weight < 0 else "+")
        weight = "" if abs(term.weight) == 1 else f"{abs(term.weight)!r}:"
        bare = f"{weight}{term.value}"
        try:
            is_plain = parse_term(bare) == Term(term.value, term.kind, abs(term.weight))
        except DataError:
            is_plain = False
        is_plain = is_plain and bare not in ("+", "-")
        arguments.append(bare if is_plain else f"{weight}{term.kind}:{term.value}")
    return arguments


@given(terms_strategy)
def test_terms_that_are_written_out_are_read_as_the_same_terms(terms: list[Term]) -> None:
    assert parse_query(_typed(terms)) == tuple(terms)


def test_python_takes_words_paths_pictures_and_terms() -> None:
    picture = Image.new("RGB", (4, 4))
    assert terms_of("./a.jpg") == (Term("./a.jpg"),)  # a str is words, whatever it looks like
    assert terms_of(Path("a.jpg")) == (Term("a.jpg", "image"),)
    assert terms_of(picture) == (Term(picture, "image"),)
    assert terms_of(Term("a", weight=2)) == (Term("a", weight=2),)
    assert terms_of([Term("a"), Term("b", weight=-1)]) == (Term("a"), Term("b", weight=-1))


def test_python_refuses_what_is_no_query() -> None:
    for wrong in (17, ["a", "b"], None):
        with pytest.raises(TypeError, match="a query"):
            terms_of(wrong)
    for empty in ([], " ", ""):
        with pytest.raises(DataError, match="the query is empty"):
            terms_of(empty)
    with pytest.raises(DataError, match="only says what not"):
        terms_of([Term("a", weight=-1)])
    with pytest.raises(ValueError, match="a term is one of text, image"):
        Term("a", "words")
    for weight in (0.0, math.nan, math.inf):
        with pytest.raises(DataError, match="Give a number above 0"):
            Term("a", weight=weight)


def test_an_id_is_one_in_its_usual_form() -> None:
    assert parse_query([str(uuid.UUID(ID)).upper()]) == (Term(ID.upper()),)
