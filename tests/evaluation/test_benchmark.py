"""Published benchmarks: hand-worked figures of judged lists and captions, and oracles for whole runs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imret import Encoder
from imret.datasets.judged import read_judged
from imret.datasets.webdataset import Shards
from imret.errors import DataError
from imret.evaluation import benchmark
from imret.evaluation.benchmark import benchmark_captions, benchmark_judged, find_benchmark
from imret.evaluation.metrics import ap_at_k, average_precision, ndcg_at_k, reciprocal_rank_at_k
from imret.evaluation.retention import caption_ranks, captioned_in, retention_of
from imret.images.resize import load_pixels
from tests import SHARED_DATA
from tests.fakes.benchmark_files import (
    drawn_inquire,
    drawn_webdataset,
    inquire_row,
    picture_bytes,
    sample,
    write_parquet,
    write_tar,
    write_webdataset,
)


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder(str(random_model), device="cpu", precision="fp32")


class _Vectors:
    """What a model would be that embeds pictures and texts as it is told."""

    def __init__(self, texts: dict[str, Sequence[float]]) -> None:
        self._texts = texts

    model_id, fingerprint, device, precision = "told", "0" * 64, "cpu", "fp32"

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([self._texts[text] for text in texts], np.float32)


def _run_told(
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    inputs: Any,
    images: dict[str, Sequence[float]],
    texts: dict[str, Sequence[float]],
    ks: tuple[int, ...],
) -> Any:
    """Run a benchmark whose pictures and texts have the vectors that are given, by name."""

    def told(pictures: Any, *_: Any, **__: Any) -> Any:
        names = [picture[0] for picture in pictures]
        return np.array([images[name] for name in names], np.float32), names, []

    monkeypatch.setattr(benchmark, "encode_named", told)
    return kind(inputs, encoder=_Vectors(texts), ks=ks, resamples=100)


def _judged(folder: Path, lists: dict[str, dict[int, int]]) -> Any:
    rows = [
        inquire_row(query, image, relevant, b"x")
        for query, judged in lists.items()
        for image, relevant in judged.items()
    ]
    return read_judged([write_parquet(folder / "a.parquet", rows)])


# ---- Arithmetic, by hand --------------------------------------------------------------------------


def test_ap_at_k_is_out_of_what_k_pictures_could_have() -> None:
    scores = np.array([[0.9, 0.8, 0.7, 0.6, 0.5]])
    relevant = np.array([[True, False, True, False, True]])
    by_k = {
        1: 1.0,
        2: 1 / 2,
        3: (1 + 2 / 3) / 3,
        4: (1 + 2 / 3) / 3,
        5: (1 + 2 / 3 + 3 / 5) / 3,
    }
    for k, expected in by_k.items():
        assert ap_at_k(scores, relevant, k)[0] == pytest.approx(expected)
    assert ap_at_k(scores, relevant, 5) == pytest.approx(average_precision(scores, relevant))
    assert ap_at_k(-scores, np.array([[True, False, False, False, False]]), 4)[0] == 0


def test_the_reciprocal_rank_is_of_the_first_relevant_within_k() -> None:
    scores = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]])
    relevant = np.array([[False, True, True], [False, False, True]])
    assert reciprocal_rank_at_k(scores, relevant, 3).tolist() == [1 / 2, 1 / 3]
    assert reciprocal_rank_at_k(scores, relevant, 2).tolist() == [1 / 2, 0]
    with pytest.raises(ValueError, match="k must lie in"):
        reciprocal_rank_at_k(scores, relevant, 4)


def test_captions_and_pictures_rank_each_other_as_in_a_naive_loop_also_without_captions() -> None:
    rng = np.random.default_rng(0)
    texts, images = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    own = np.array([0, 0, 1, 2, 2, 2, 4, 5, 5])  # nothing is said of picture 3
    text_ranks, image_ranks = caption_ranks(texts, images, own)
    scores = texts @ images.T
    for t in range(9):
        assert text_ranks[t] == sorted(range(6), key=lambda i: (-scores[t, i], i)).index(own[t])
    for i in range(6):
        order = sorted(range(9), key=lambda t: (-scores[t, i], t))
        ranks = [order.index(t) for t in range(9) if own[t] == i]
        assert image_ranks[i] == (min(ranks) if ranks else np.iinfo(np.int64).max)


# ---- Judged lists ---------------------------------------------------------------------------------


def test_judged_lists_are_scored_as_worked_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Scores of fox: 1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6; of owl, which has a list of its own: 3: 0.9, 2: 0.1.
    judged = _judged(tmp_path, {"fox": {4: 1, 3: 0, 2: 1, 1: 0}, "owl": {2: 0, 3: 1}})
    images = {"1": (0.9, 0), "2": (0.8, 0.1), "3": (0.7, 0.9), "4": (0.6, 0)}
    report = _run_told(
        monkeypatch, benchmark_judged, judged, images, {"fox": (1, 0), "owl": (0, 1)}, ks=(1, 3)
    )
    ap = (1 / 2 + 2 / 4) / 2
    ndcg = (1 / log2(3) + 1 / log2(5)) / (1 + 1 / log2(3))
    ndcg_3 = (1 / log2(3)) / (1 + 1 / log2(3))
    expected = {
        "map": (ap + 1) / 2,
        "ndcg": (ndcg + 1) / 2,
        "mrr": (1 / 2 + 1) / 2,
        "map@1": (0 + 1) / 2,
        "ndcg@1": (0 + 1) / 2,
        "mrr@1": (0 + 1) / 2,
        "map@3": ((1 / 2) / 2 + 1) / 2,
        "ndcg@3": (ndcg_3 + 1) / 2,
        "mrr@3": (1 / 2 + 1) / 2,
    }
    assert {key: figure.value for key, figure in report.figures.items()} == {
        key: pytest.approx(value, abs=5e-5) for key, value in expected.items()
    }
    fox, owl = report.per_query
    assert (fox.query, fox.images, fox.relevant, owl.images, owl.relevant) == ("fox", 4, 2, 2, 1)
    assert (fox.figures["ap"], fox.figures["rr"], owl.figures["ap@3"]) == (0.5, 0.5, 1.0)
    assert report.data.notes == ["lists of fewer than 3 pictures, which end there: 1"]
    # Two queries: a resample has either twice or each once.
    assert report.figures["map"].interval == (0.5, 1.0)
    assert report.drawn == "queries"


def test_equal_scores_rank_what_is_not_relevant_first_whatever_the_order_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lists in ({1: 1, 2: 0, 3: 0}, {3: 0, 2: 0, 1: 1}, {2: 0, 1: 1, 3: 0}):
        judged = _judged(tmp_path, {"fox": lists})
        images = dict.fromkeys(("1", "2", "3"), (1.0, 0.0))
        report = _run_told(monkeypatch, benchmark_judged, judged, images, {"fox": (1, 0)}, ks=())
        figures = {key: figure.value for key, figure in report.figures.items()}
        assert figures == {"map": 0.3333, "ndcg": 0.5, "mrr": 0.3333}


def test_a_query_without_a_relevant_picture_is_left_out_of_the_means_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = {"1": (1, 0), "2": (0.5, 0)}
    texts = {"fox": (1, 0), "owl": (1, 0)}
    judged = _judged(tmp_path, {"fox": {1: 0, 2: 0}, "owl": {1: 1, 2: 0}})
    report = _run_told(monkeypatch, benchmark_judged, judged, images, texts, ks=())
    assert report.figures["map"].value == 1
    assert report.data.queries == 1
    assert report.per_query[0].figures == {}
    assert "left out of the means: 1 query, the first 'fox'" in report.data.notes[0]
    judged = _judged(tmp_path, {"fox": {1: 0, 2: 0}})
    with pytest.raises(DataError, match="none of 1 query has a relevant picture"):
        _run_told(monkeypatch, benchmark_judged, judged, images, texts, ks=())


def test_a_run_over_parquet_gives_what_a_naive_loop_gives(tmp_path: Path, encoder: Encoder) -> None:
    judged = find_benchmark([drawn_inquire(tmp_path / "set")])
    assert not isinstance(judged, Shards)
    seen: list[int] = []
    report = benchmark_judged(judged, encoder=encoder, ks=(3,), on_picture=lambda: seen.append(1))
    ids = list(judged.pictures)
    pictures = [picture_bytes(tmp_path, int(image)) for image in ids]
    images = encoder.encode_pixels(
        np.stack([load_pixels(one, encoder.preprocess, exact=True)[0] for one in pictures])
    )
    found: dict[str, list[float]] = {"map": [], "ndcg": [], "mrr": [], "map@3": []}
    for query, listed in judged.lists.items():
        score = {
            image: float(encoder.encode_texts([query])[0] @ images[ids.index(image)]) for image, _ in listed
        }
        ranking = [label for _, label in sorted(listed, key=lambda one: -score[one[0]])]
        ranks = [rank for rank, label in enumerate(ranking, start=1) if label]
        precisions = [(i + 1) / rank for i, rank in enumerate(ranks)]
        found["map"].append(sum(precisions) / len(ranks))
        found["ndcg"].append(
            sum(1 / log2(rank + 1) for rank in ranks) / sum(1 / log2(i + 2) for i in range(len(ranks)))
        )
        found["mrr"].append(1 / ranks[0])
        within = [p for p, rank in zip(precisions, ranks, strict=True) if rank <= 3]
        found["map@3"].append(sum(within) / min(3, len(ranks)))
    for key, values in found.items():
        assert report.figures[key].value == pytest.approx(np.mean(values), abs=5e-5)
        low, high = report.figures[key].interval
        assert low <= report.figures[key].value <= high
    assert (report.data.images, len(seen), report.data.left_out) == (len(ids), len(ids), [])


def test_a_broken_picture_leaves_its_lists_and_is_named(tmp_path: Path, encoder: Encoder) -> None:
    rows = [inquire_row("fox", n, int(n > 1), picture_bytes(tmp_path, n)) for n in range(4)]
    rows[2] |= {"image": {"bytes": b"no picture", "path": None}}
    rows[3] |= {"image": None}
    rows.append(inquire_row("fox", 4, 1, picture_bytes(tmp_path, 4)))
    report = benchmark_judged(read_judged([write_parquet(tmp_path / "a.parquet", rows)]), encoder=encoder)
    assert sorted(one.path for one in report.data.left_out) == ["2", "3"]
    assert report.per_query is not None
    assert (report.per_query[0].images, report.per_query[0].relevant) == (3, 1)


# ---- Captions -------------------------------------------------------------------------------------


def test_captions_are_scored_as_worked_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [["a1", "a2"], ["b1"], []]
    shards = Shards(
        [write_tar(tmp_path / "0.tar", [f for i in range(3) for f in sample(i, b"x", captions[i])])]
    )
    images = {"0.tar/s0000000": (1, 0, 0), "0.tar/s0000001": (0, 1, 0), "0.tar/s0000002": (0, 0, 1)}
    # By rows, scores of pictures 0, 1, 2. a1 finds its picture at rank 1, a2 at 3, b1 at 2.
    texts = {"a1": (0.9, 0.5, 0.1), "a2": (0.2, 0.8, 0.7), "b1": (0.1, 0.6, 0.9)}
    report = _run_told(monkeypatch, benchmark_captions, shards, images, texts, ks=(1, 2, 5))
    # Picture 0 finds a1 at rank 1. Picture 1: a2 0.8, b1 0.6: rank 2. Of picture 2 nothing is said.
    assert {key: figure.value for key, figure in report.figures.items()} == {
        "image_retrieval_recall@1": 0.3333,
        "image_retrieval_recall@2": 0.6667,
        "image_retrieval_recall@5": 1.0,
        "text_retrieval_recall@1": 0.3333,
        "text_retrieval_recall@2": 0.6667,
        "text_retrieval_recall@5": 0.6667,
    }
    assert (report.data.queries, report.data.images, report.drawn) == (3, 3, "pictures")
    assert report.data.notes == [
        "without any caption, and counted as finding none: 1 picture",
        "of 3 pictures every caption finds its own among the first 5, whatever the model",
    ]


def test_any_of_several_captions_is_enough_and_it_is_no_share_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [*sample(0, b"x", ["a1", "a2", "a3"]), *sample(1, b"x", ["b1", "b2", "b3"])]
    images = {"0.tar/s0000000": (1, 0), "0.tar/s0000001": (0, 1)}
    texts = {
        "a1": (0.9, 0),
        "a2": (0.1, 0),
        "a3": (0.2, 0),
        "b1": (0.5, 0.6),
        "b2": (0.4, 0.1),
        "b3": (0.3, 0.2),
    }
    shards = Shards([write_tar(tmp_path / "0.tar", members)])
    report = _run_told(monkeypatch, benchmark_captions, shards, images, texts, ks=(1,))
    assert report.figures["text_retrieval_recall@1"].value == 1  # the share would be a third
    assert report.figures["image_retrieval_recall@1"].value == pytest.approx(4 / 6, abs=5e-5)


def test_equal_scores_of_a_constant_model_find_by_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"0.tar/s{i:07d}" for i in range(10)]
    shards = Shards(
        [write_tar(tmp_path / "0.tar", [f for i in range(10) for f in sample(i, b"x", [str(i)])])]
    )
    images = dict.fromkeys(names, (1.0, 0.0))
    texts = dict.fromkeys(map(str, range(10)), (1.0, 0.0))
    report = _run_told(monkeypatch, benchmark_captions, shards, images, texts, ks=(5,))
    assert {figure.value for figure in report.figures.values()} == {0.5}


def test_a_key_that_comes_again_is_another_picture(tmp_path: Path, encoder: Encoder) -> None:
    first, second = (sample(0, picture_bytes(tmp_path, i), [f"thing {i}"]) for i in range(2))
    between = sample(1, picture_bytes(tmp_path, 2), ["thing 2"])
    shards = Shards([write_tar(tmp_path / "0.tar", [*first, *between, *second])])
    report = benchmark_captions(shards, encoder=encoder)
    assert (report.data.images, report.data.queries) == (3, 3)


def test_tar_files_give_what_the_same_captions_give_as_retention(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMRET_RESIZE", "exact")
    folder = drawn_webdataset(tmp_path / "set")
    shards = find_benchmark([folder])
    assert isinstance(shards, Shards)
    report = benchmark_captions(shards, encoder=encoder)
    lines = ["path,caption"]
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(picture_bytes(tmp_path, i))
        lines += [f"{i}.jpg,thing {i} of kind {j}" for j in range(1 + i % 3)]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    _assert_same(report, tmp_path / "captions.csv", encoder)


def _assert_same(report: Any, captions: Path, encoder: Encoder) -> None:
    """Compare with what `imret evaluate --retention` finds, of the same pixels."""
    kept = retention_of(captioned_in(captions), encoder).report
    for k in (1, 5, 10):
        assert report.figures[f"image_retrieval_recall@{k}"].value == kept.hit_rate[k]
        assert report.figures[f"text_retrieval_recall@{k}"].value == kept.image_to_text.hit_rate[k]
    assert (report.data.queries, report.data.images, report.data.cut) == (kept.queries, kept.images, kept.cut)


def _packed(captions: Path, folder: Path) -> Path:
    """Pack a captions file and its pictures as a retrieval set of two shards."""
    said: dict[str, list[str]] = {}
    with open(captions, encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            said.setdefault(row["path"], []).append(" ".join(row["caption"].split()))
    samples = [
        sample(i, (captions.parent / path).read_bytes(), texts)
        for i, (path, texts) in enumerate(said.items())
    ]
    half = len(samples) // 2
    return write_webdataset(
        folder, [[f for s in part for f in s] for part in (samples[:half], samples[half:])]
    )


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs shared/data")
def test_real_photos_with_a_real_model_find_what_the_published_program_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = SHARED_DATA / "captions500" / "captions.csv"
    real = Encoder(str(SHARED_DATA / "tiny-clip"), device="cpu", precision="fp32")
    shards = find_benchmark([_packed(captions, tmp_path / "set")])
    assert isinstance(shards, Shards)
    report = benchmark_captions(shards, encoder=real)
    monkeypatch.setenv("IMRET_RESIZE", "exact")
    _assert_same(report, captions, real)
    # What clip_benchmark 1.6.2 gives for these files (webdataset 1.0.2, open_clip 3.3.0, a CPU, without amp).
    published = {
        "image_retrieval_recall@1": 0.1996,
        "image_retrieval_recall@5": 0.4640,
        "image_retrieval_recall@10": 0.5980,
        "text_retrieval_recall@1": 0.2760,
        "text_retrieval_recall@5": 0.5500,
        "text_retrieval_recall@10": 0.6660,
    }
    for key, value in published.items():
        assert report.figures[key].value == value, key


def test_pictures_that_cannot_be_read_leave_with_their_captions(tmp_path: Path, encoder: Encoder) -> None:
    members = [
        f for i in range(4) for f in sample(i, picture_bytes(tmp_path, i), [f"thing {i}", f"kind {i}"])
    ]
    members[2] = (members[2][0], b"no picture")
    report = benchmark_captions(Shards([write_tar(tmp_path / "0.tar", members)]), encoder=encoder)
    assert (report.data.images, report.data.queries) == (3, 6)
    assert [one.path for one in report.data.left_out] == ["0.tar/s0000001"]


def test_tar_files_without_a_picture_that_can_be_read_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    empty = write_tar(tmp_path / "0.tar", [])
    with pytest.raises(DataError, match=r"holds no captioned picture that can be read\.$"):
        benchmark_captions(Shards([empty]), encoder=encoder)
    broken = write_tar(tmp_path / "1.tar", sample(0, b"no picture", ["one"]))
    with pytest.raises(DataError, match=r"The first: '1.tar/s0000000': "):
        benchmark_captions(Shards([broken]), encoder=encoder)


# ---- Which benchmark ------------------------------------------------------------------------------


def test_what_lies_there_says_which_benchmark_it_is(tmp_path: Path) -> None:
    captions, judged = drawn_webdataset(tmp_path / "captions"), drawn_inquire(tmp_path / "judged")
    assert isinstance(find_benchmark([captions]), Shards)
    assert isinstance(find_benchmark([captions / "test" / "0.tar"]), Shards)
    assert not isinstance(find_benchmark([judged]), Shards)
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "empty").mkdir()
    for data, message in (
        ([captions, judged], "two benchmarks"),
        ([tmp_path / "words.txt"], "is no benchmark"),
        ([tmp_path / "gone"], "no such file or folder"),
        ([tmp_path / "empty"], "imret evaluate"),
    ):
        with pytest.raises(DataError, match=message):
            find_benchmark(data)
    with pytest.raises(DataError, match="--images is about CSV files"):
        find_benchmark([captions], images=tmp_path)


def test_ndcg_at_k_of_a_list_is_that_of_all_its_relevant_pictures() -> None:
    scores, relevant = np.array([[0.9, 0.8, 0.7]]), np.array([[False, True, True]])
    assert ndcg_at_k(scores, relevant, 2)[0] == pytest.approx((1 / log2(3)) / (1 + 1 / log2(3)))
