"""Published benchmarks, run on the data as it is published: judged lists (INQUIRE-Rerank) and captions.

Queries are asked as they are written, in no template, and pixels are those of open_clip's own transform, for
so the published figures are made. Hides decoding and encoding; what the files are like is in
`imret.datasets.judged` and `imret.datasets.webdataset`.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imret.datasets.judged import JudgedLists, find_tables, pictures_of, read_judged
from imret.datasets.scan import Skipped
from imret.datasets.webdataset import Shards, find_shards, read_samples
from imret.errors import DataError, counted
from imret.evaluation.benchmark_report import BenchmarkData, BenchmarkReport, Figure, QueryFigures
from imret.evaluation.bootstrap import draw_counts
from imret.evaluation.dataset import encode_captions, encode_named
from imret.evaluation.metrics import ap_at_k, ndcg_at_k, reciprocal_rank_at_k
from imret.evaluation.report import Provenance, rounded
from imret.evaluation.retention import caption_ranks
from imret.evaluation.significance import bounds
from imret.settings import __version__

if TYPE_CHECKING:
    from imret.models.encoder import Encoder

# What CLIP_benchmark reports unless it is told otherwise is 5; papers have 1 and 10 beside it.
CAPTION_KS = (1, 5, 10)
_TEXTS = 256  # encoded between two signs of progress
_TABLES, _TAR = (".parquet", ".csv"), ".tar"


def find_benchmark(
    data: Sequence[str | os.PathLike[str]],
    *,
    split: str = "test",
    images: str | os.PathLike[str] | None = None,
) -> JudgedLists | Shards:
    """Find out what kind of benchmark some files are, and read what needs no model; no picture is read.

    Args:
        data: A folder as it was downloaded, or files of one kind: .parquet and .csv, or .tar.
        split: Which part of a folder.
        images: What paths in a CSV file are relative to; see `read_judged`.

    Raises:
        DataError: If they are of neither kind, or of both, or are not what they should be.
    """
    tables: list[Path] = []
    shards: list[Path] = []
    notes: list[str] = []
    for path in map(Path, data):
        if path.is_dir():
            found = find_shards(path, split)
            in_folder = find_tables(path, split)
            if found is None and not in_folder:
                raise DataError(
                    f"no benchmark in the folder {str(path)!r}: neither it nor its {split!r} holds .parquet "
                    "or .tar files. Labelled pictures in folders are measured by: imret evaluate "
                    f"{shlex.quote(str(path))}"
                )
            tables += in_folder
            shards += found.files if found else []
            notes += found.notes if found else []
        elif not path.exists():
            raise DataError(f"no such file or folder: {str(path)!r}.")
        elif path.suffix.lower() in _TABLES:
            tables.append(path)
        elif path.suffix.lower() == _TAR:
            shards.append(path)
        else:
            raise DataError(
                f"{str(path)!r} is no benchmark: one is in .parquet or .csv files (judged lists) or in .tar "
                "files (captions)."
            )
    if tables and shards:
        raise DataError(
            f"{str(tables[0])!r} has judged lists, and {str(shards[0])!r} captions: two benchmarks. Run one "
            "at a time."
        )
    if not shards:
        return read_judged(tables, images=images)
    if images is not None:
        raise DataError("--images is about CSV files: tar files hold their pictures.")
    return Shards(shards, notes)


# ---- Judged lists ---------------------------------------------------------------------------------


def benchmark_judged(
    judged: JudgedLists,
    *,
    encoder: Encoder,
    ks: Sequence[int] = (),
    resamples: int = 2000,
    seed: int = 0,
    on_picture: Callable[[], object] = lambda: None,
) -> BenchmarkReport:
    """Rank the pictures of each query by a model, and score the rankings as INQUIRE-Rerank is scored.

    mAP, nDCG and MRR are means over queries, over their whole lists and, with `ks`, over the first k: see
    `ap_at_k`, `ndcg_at_k` and `reciprocal_rank_at_k`. Of equal scores what is not relevant ranks first, so
    that no order of the file flatters a model; in the published script they share a threshold. A query to
    which nothing is relevant has no figure, and is told; in the published script every mean would be NaN. A
    list that is shorter than k ends there.

    Args:
        judged: From `read_judged`.
        encoder: The model.
        ks: Cut-offs in ranks, each >= 1.
        resamples: Bootstrap draws of queries, >= 1.
        seed: Of the draws.
        on_picture: Called for each picture that was encoded, or cannot be.

    Raises:
        DataError: If no query has a relevant picture that can be read.
        ModelError: If the model cannot be loaded.

    Source: https://github.com/inquire-benchmark/INQUIRE, src/eval_rerank_with_clip.py and src/metrics.py.
    """
    began = time.monotonic()
    vectors, names, left_out = encode_named(pictures_of(judged), encoder, on_picture, exact=True)
    at = {name: i for i, name in enumerate(names)}
    queries = list(judged.lists)
    texts, cut = encode_captions(encoder, queries)
    rows = []
    for query, text in zip(queries, texts, strict=True):
        listed = [(at[image], relevant) for image, relevant in judged.lists[query] if image in at]
        own = vectors[[i for i, _ in listed]] if listed else vectors[:0]
        relevant = np.array([is_relevant for _, is_relevant in listed], dtype=bool)
        rows.append(QueryFigures(query, len(listed), int(relevant.sum()), _of_list(own @ text, relevant, ks)))
    scored = [row for row in rows if row.figures]
    if not scored:
        raise DataError(
            f"none of {counted(len(queries), 'query', 'queries')} has a relevant picture that can be read"
            f"{_first(left_out)}"
        )
    notes = list(judged.notes)
    if len(scored) < len(rows):
        bare = [row.query for row in rows if not row.figures]
        notes.append(
            f"without a relevant picture, and left out of the means: "
            f"{counted(len(bare), 'query', 'queries')}, the first {bare[0][:100]!r}"
        )
    if ks and (short := sum(row.images < max(ks) for row in scored)):
        notes.append(f"lists of fewer than {max(ks):,} pictures, which end there: {short:,}")
    values = {key: np.array([row.figures[key] for row in scored]) for key in scored[0].figures}
    names_of_mean = {key: key.replace("ap", "map", 1).replace("rr", "mrr", 1) for key in values}
    draws = list(draw_counts(np.zeros(len(scored), dtype=np.int64), resamples, seed=seed))
    figures = {
        names_of_mean[key]: Figure(
            rounded(of.mean()), bounds(np.concatenate([counts @ of / len(of) for counts in draws]))
        )
        for key, of in values.items()
    }
    return _report(
        "judged lists",
        BenchmarkData([str(file) for file in judged.files], len(scored), len(names), cut, left_out, notes),
        encoder,
        figures,
        "queries",
        [
            QueryFigures(r.query, r.images, r.relevant, {k: rounded(v) for k, v in r.figures.items()})
            for r in rows
        ],
        (began, resamples, seed),
    )


def _of_list(scores: NDArray[np.float32], relevant: NDArray[np.bool_], ks: Sequence[int]) -> dict[str, float]:
    """Return the figures of one ranking, over all of it and at each k; none where nothing is relevant."""
    if not relevant.any():
        return {}
    order = np.argsort(relevant, kind="stable")  # equal scores rank by column
    listed = scores[order][None, :], relevant[order][None, :]
    figures = {}
    for k, ending in [(len(scores), ""), *((k, f"@{k}") for k in ks)]:
        depth = min(k, len(scores))
        for name, metric in (("ap", ap_at_k), ("ndcg", ndcg_at_k), ("rr", reciprocal_rank_at_k)):
            figures[name + ending] = float(metric(*listed, depth)[0])
    return figures


# ---- Captions -------------------------------------------------------------------------------------


def benchmark_captions(
    shards: Shards,
    *,
    encoder: Encoder,
    ks: Sequence[int] = CAPTION_KS,
    resamples: int = 2000,
    seed: int = 0,
    on_picture: Callable[[], object] = lambda: None,
    on_texts: Callable[[int], object] = lambda n: None,
) -> BenchmarkReport:
    """Let captions find their pictures and pictures their captions, scored as CLIP_benchmark scores it.

    image_retrieval_recall@k is the share of captions whose picture is among the k best of all pictures,
    text_retrieval_recall@k that of pictures with any of their captions among the k best of all captions: 0 or
    1 for each, not the share of what is relevant. A picture without a caption finds none, and counts. Equal
    scores rank by position. The intervals are over pictures, whose captions go along with them.

    Args:
        shards: From `find_shards`.
        encoder: The model.
        ks: Cut-offs in ranks, each >= 1.
        resamples: Bootstrap draws of pictures, >= 1.
        seed: Of the draws.
        on_picture: Called for each picture that was encoded, or cannot be.
        on_texts: Called with how many captions were encoded.

    Raises:
        DataError: If no captioned picture can be read, or the tar files are no captioned set.
        ModelError: If the model cannot be loaded.

    Source: https://github.com/LAION-AI/CLIP_benchmark, clip_benchmark/metrics/zeroshot_retrieval.py.
    """
    began = time.monotonic()
    captions_of: dict[str, tuple[str, ...]] = {}

    def pictures() -> Iterator[tuple[str, bytes] | Skipped]:
        for number, sample in enumerate(read_samples(shards.files)):
            if isinstance(sample, Skipped):
                yield sample
                continue
            # A key that comes again is another picture, as for WebDataset.
            name = sample.name if sample.name not in captions_of else f"{sample.name} (sample {number + 1})"
            captions_of[name] = sample.captions
            yield name, sample.picture

    images, names, left_out = encode_named(pictures(), encoder, on_picture, exact=True)
    texts = [caption for name in names for caption in captions_of[name]]
    own = np.repeat(np.arange(len(names)), [len(captions_of[name]) for name in names])
    if not texts:
        raise DataError(
            f"{str(shards.files[0])!r} holds no captioned picture that can be read{_first(left_out)}"
        )
    embedded, cut = [], 0
    for start in range(0, len(texts), _TEXTS):
        part = texts[start : start + _TEXTS]
        vectors, n_cut = encode_captions(encoder, part)
        embedded.append(vectors)
        cut += n_cut
        on_texts(len(part))
    text_ranks, image_ranks = caption_ranks(np.concatenate(embedded), images, own)
    figures = {}
    for k in ks:
        found = _interval_of(text_ranks < k, own, len(names), resamples, seed)
        figures[f"image_retrieval_recall@{k}"] = found
    for k in ks:
        found = _interval_of(image_ranks < k, np.arange(len(names)), len(names), resamples, seed)
        figures[f"text_retrieval_recall@{k}"] = found
    return _report(
        "captions",
        BenchmarkData(
            [str(file) for file in shards.files],
            len(texts),
            len(names),
            cut,
            left_out,
            [*shards.notes, *_caption_notes([captions_of[name] for name in names], max(ks, default=0))],
        ),
        encoder,
        figures,
        "pictures",
        None,
        (began, resamples, seed),
    )


def _interval_of(
    hits: NDArray[np.bool_], own: NDArray[np.int64], n_images: int, resamples: int, seed: int
) -> Figure:
    """Return the share of hits, and its interval over draws of the pictures that they belong to."""
    of_image, all_of_image = (
        np.bincount(own, weights=hits, minlength=n_images),
        np.bincount(own, minlength=n_images),
    )
    drawn = []
    for counts in draw_counts(np.zeros(n_images, dtype=np.int64), resamples, seed=seed):
        # Where only pictures without captions are drawn, there is nothing to find.
        drawn.append(counts @ of_image / np.maximum(counts @ all_of_image, 1))
    return Figure(rounded(hits.mean()), bounds(np.concatenate(drawn)))


def _caption_notes(captions: Sequence[tuple[str, ...]], depth: int) -> list[str]:
    notes = []
    if bare := sum(not texts for texts in captions):
        notes.append(f"without any caption, and counted as finding none: {counted(bare)}")
    if empty := sum(not text.strip() for texts in captions for text in texts):
        notes.append(f"empty lines among the captions, each asked for as it is: {empty:,}")
    if len(captions) <= depth:
        notes.append(
            f"of {counted(len(captions))} every caption finds its own among the first {depth}, whatever the "
            "model"
        )
    return notes


# ---- Both -----------------------------------------------------------------------------------------


def _first(left_out: Sequence[Skipped]) -> str:
    return f". The first: {left_out[0].path!r}: {left_out[0].reason}." if left_out else "."


def _report(
    kind: str,
    data: BenchmarkData,
    encoder: Encoder,
    figures: dict[str, Figure],
    drawn: str,
    per_query: list[QueryFigures] | None,
    run: tuple[float, int, int],
) -> BenchmarkReport:
    began, resamples, seed = run
    return BenchmarkReport(
        kind=kind,
        data=data,
        model_id=encoder.model_id,
        fingerprint=encoder.fingerprint,
        figures=figures,
        drawn=drawn,
        per_query=per_query,
        provenance=Provenance(
            imret=__version__,
            date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
            seconds=round(time.monotonic() - began, 1),
            device=str(encoder.device),
            precision=encoder.precision,
            resamples=resamples,
            seed=seed,
        ),
    )
