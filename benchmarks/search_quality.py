"""What searches find on real photos: words, pictures, both; where the answers end; and queries without any.

    python benchmarks/search_quality.py DATA

DATA holds nature10 (train and test, a folder per category), captions500 (photos of other things) and
tiny-clip (a model that knows both). Both splits are made collections.

- Precision at 10 of each category: asked for by its name; by pictures of the other split; by both.
- A picture of one category and the name of another: how much of each is among the first 10.
- Less like a picture: each category by its name without its first right hit, of which copies are made, or
  without a word: how much of the first 10 is right, how many are copies, and how the word ranks them.
- `relevant`: precision and recall of what is left of each category, and how often a query that has no answer
  is told so; the same under conditions. Captions of captions500 on their own photos: how often the right one
  is left.

The rule of imret.retrieval.relevance was chosen while looking at both splits, at the captions and at the
queries CHOSEN_WITH; the queries FRESH were written afterwards, before they were first asked. What it has for
captions since December 2026 was chosen on others: benchmarks/relevance_captions.py has its curves.

Writes benchmarks/results/search_quality-DATE.md and .json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from imret import Encoder
from imret.datasets.phrases import read_phrases
from imret.retrieval.prompts import common_names
from imret.retrieval.query import Term
from imret.retrieval.query_vector import query_vector
from imret.retrieval.search import search
from imret.store import Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource

Vectors = NDArray[np.float32]  # (N, D), or one of (D,)

# Nothing of the ten categories is asked for in these, and the model was trained on captions of such things.
CHOSEN_WITH = (
    *("a red sports car", "a man riding a bicycle", "a football player", "people on a city street"),
    *("a laptop on a desk", "a skyscraper at night", "a man playing a guitar", "a child on a swing"),
    *("a crowd at a concert", "a woman in a wedding dress", "a boat on a lake", "a skier in the snow"),
    *("a bowl of soup", "a basketball game", "a man climbing a rock", "a train at a station"),
    *("a baby in a crib", "a surfer on a wave", "two men boxing", "a construction worker"),
)
# What is to be seen on many photos of nature, whatever they are of.
SUBTRACTED = (
    *("water", "flower", "green leaves", "close up", "ground", "tree", "night", "sky", "hand", "snow"),
)
FRESH = (
    *("a woman talking on a phone", "a boy jumping into a swimming pool", "a man in a suit and tie"),
    *("a street musician", "a red double-decker bus", "two girls laughing", "a hockey player on the ice"),
    *("a man cooking in a kitchen", "a motorcycle race", "a child with a balloon", "a tennis player"),
    *("a couple dancing", "a man reading a newspaper", "a playground slide", "a marching band"),
    *("a woman painting a wall", "a roller coaster", "a bar full of people", "a skateboard trick"),
    *("a birthday cake with candles",),
)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    data: Path = arguments.data
    encoder = Encoder(data / "tiny-clip", device="cpu", precision="fp32")
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, open_store(folder) as store:
        for split in ("train", "test"):
            ingest(store, [FolderSource(data / "nature10" / split)], encoder=encoder, collection=split)
        captioned = data / "captions500"
        ingest(store, [FolderSource(captioned)], encoder=encoder, collection="captions")
        captions = first_captions(captioned / "captions.csv")
        for split, other in (("train", "test"), ("test", "train")):
            measured[split] = {
                "precision": precision(store, encoder, split, data / "nature10" / other),
                "mixed": mixed(store, encoder, split, data / "nature10" / other),
                "less_like": less_like(store, encoder, split, Path(folder) / f"copies-{split}", data),
                "relevant": relevant(store, encoder, split),
                "conditions": conditions(store, encoder, split),
                "none_chosen_with": unanswered(store, encoder, split, CHOSEN_WITH),
                "none_fresh": unanswered(store, encoder, split, FRESH),
                "none_captions": unanswered(store, encoder, split, list(captions.values())),
                "none_pictures": unanswered(
                    store, encoder, split, [captioned / path for path in sorted(captions)[::5]]
                ),
            }
            measured[split]["alternatives"] = alternatives(store, encoder, split, data / "nature10" / other)
        measured["captions"] = own(store, encoder, captions)
    arguments.output.mkdir(exist_ok=True)
    stem = arguments.output / f"search_quality-{date.today().isoformat()}"
    text = table(measured)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    stem.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(text)


def first_captions(file: Path) -> dict[str, str]:
    """Return the first caption of every picture of a captions file."""
    with open(file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return {row["path"]: row["caption"] for row in reversed(rows)}


def categories_of(folder: Path) -> list[str]:
    """Return the categories of a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def right_in_10(store: Store, encoder: Encoder, split: str, query: Any, category: str) -> float:
    """Return the share of the first ten hits that are of a category."""
    hits = search(store, query, collection=split, encoder=encoder)
    return _mean(hit.category == category for hit in hits)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def precision(store: Store, encoder: Encoder, split: str, other: Path) -> dict[str, dict[str, float]]:
    """Return precision at 10 by category: of words, of pictures, of both together."""
    by_category = {}
    for category in categories_of(other):
        name = common_names(category)[0]
        pictures = sorted((other / category).glob("*.jpg"))[:20]
        by_category[category] = {
            "text": right_in_10(store, encoder, split, name, category),
            "picture": _mean(right_in_10(store, encoder, split, picture, category) for picture in pictures),
            "both": _mean(
                right_in_10(store, encoder, split, [Term(name), Term(str(picture), "image")], category)
                for picture in pictures
            ),
        }
    return by_category


def mixed(store: Store, encoder: Encoder, split: str, other: Path) -> dict[str, float]:
    """Return how much of the first ten is of the picture's category, and of the one named beside it."""
    categories = categories_of(other)
    of_picture, of_words, both = [], [], []
    for category in categories:
        for picture in sorted((other / category).glob("*.jpg"))[:4]:
            for named in categories:
                if named == category:
                    continue
                query = [Term(common_names(named)[0]), Term(str(picture), "image")]
                hits = search(store, query, collection=split, encoder=encoder)
                of_picture.append(_mean(hit.category == category for hit in hits))
                of_words.append(_mean(hit.category == named for hit in hits))
                both.append(of_picture[-1] > 0 and of_words[-1] > 0)
    return {
        "picture": _mean(of_picture),
        "words": _mean(of_words),
        "both_present": _mean(both),
        "queries": len(both),
    }


def less_like(
    store: Store, encoder: Encoder, split: str, made: Path, data: Path
) -> dict[str, dict[str, float]]:
    """Return, by rule, what is found of each category without its first right hit; and without words."""
    names = {category: common_names(category)[0] for category in categories_of(data / "nature10" / split)}
    first = {}
    for category, name in names.items():
        hits = search(store, name, collection=split, encoder=encoder, limit=1_000)
        right = [hit for hit in hits if hit.category == category]
        if len(right) > 10:
            first[category] = Path(right[0].path)
    for category, path in first.items():
        write_copies(path, made / category)
    copies = f"{split}-and-copies"
    folders = [FolderSource(data / "nature10" / split), FolderSource(made)]
    ingest(store, folders, encoder=encoder, collection=copies)
    with closing(store.open(copies)) as collection:
        points = [point for batch in collection.scan(vectors=True) for point in batch]
    vectors = np.stack([point.vector for point in points if point.vector is not None])
    labels = np.array([point.payload["category"] for point in points])
    is_copy = np.array([point.payload["source"] == str(made) for point in points])
    words = {name: query_vector(encoder, name) for name in (*names.values(), *SUBTRACTED)}
    plain: dict[str, float] = {"not subtracted": 0.0, "whole": 1.0, "whole, half": 0.5, "whole, 0.3": 0.3}
    measured = {
        rule: _less_like(
            lambda name, path, weight=weight: vectors  # type: ignore[misc]
            @ _plain_difference(words[name], encoder.encode_images([path])[0], vectors, weight),
            first, names, labels, is_copy,
        )
        for rule, weight in plain.items()
    }  # fmt: skip
    ids = {point.id: i for i, point in enumerate(points)}

    def scores(query: Sequence[Term]) -> Vectors:
        hits = search(store, query, collection=copies, encoder=encoder, limit=2_000, include_self=True)
        of = np.full(len(points), -1.0, dtype=np.float32)
        of[[ids[hit.id] for hit in hits]] = [hit.score for hit in hits]
        return of

    measured["as in imret"] = _less_like(
        lambda name, path: scores([Term(name), Term(str(path), "image", -1)]), first, names, labels, is_copy
    )
    for rule, row in measured.items():
        right, rank = [], []
        for category in first:
            for word in SUBTRACTED:
                if rule == "as in imret":
                    of = scores([Term(names[category]), Term(word, weight=-1)])
                else:
                    of = vectors @ _unit(words[names[category]] - plain[rule] * words[word])
                best = [i for i in np.argsort(-of)[:10] if labels[i] == category]
                right.append(len(best) / 10)
                of_word = vectors @ words[word]
                rank += [float((of_word[labels == category] < of_word[i]).mean()) for i in best]
        row.update(words_right=_mean(right), word_rank=_mean(rank))
    return measured


def _less_like(
    scores: Callable[[str, Path], Vectors],
    first: dict[str, Path],
    names: dict[str, str],
    labels: Any,
    is_copy: Any,
) -> dict[str, float]:
    right, left = [], []
    for category, path in first.items():
        best = np.argsort(-scores(names[category], path))[:10]
        right.append((labels[best] == category).mean())
        left.append(is_copy[best].sum())
    return {"right": _mean(right), "copies": _mean(left)}


def _plain_difference(words: Vectors, picture: Vectors, vectors: Vectors, weight: float) -> Any:
    """Return words without a whole picture, which is scaled so that both spread the scores alike."""
    return _unit(words - weight * (vectors @ words).std() / (vectors @ picture).std() * picture)


def write_copies(file: Path, folder: Path) -> None:
    """Write a picture a little smaller, stronger compressed, and without its edge."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    image.resize((width * 3 // 4, height * 3 // 4)).save(folder / f"small-{file.name}")
    image.save(folder / f"strong-{file.name}", quality=40)
    edge = (width // 25, height // 25, width - width // 25, height - height // 25)
    image.crop(edge).save(folder / f"cut-{file.name}")


def conditions(store: Store, encoder: Encoder, split: str) -> dict[str, float]:
    """Return how many hits `relevant` leaves of each category where its pictures are left out."""
    wrong, kept = [], []
    for category in {hit.category or "" for hit in search(store, "animal", collection=split, limit=10_000)}:
        name = common_names(category)[0]
        hits = search(store, name, collection=split, encoder=encoder, limit=10_000, relevant=True)
        without = search(
            store, name, collection=split, encoder=encoder, limit=10_000, relevant=True,
            not_categories=[category],
        )  # fmt: skip
        wrong.append(len(without))
        kept.append(sum(hit.category != category for hit in hits))
    return {"queries": len(wrong), "without_category": _mean(wrong), "others_of_all": _mean(kept)}


def relevant(store: Store, encoder: Encoder, split: str) -> dict[str, dict[str, float]]:
    """Return precision and recall of what `relevant` leaves of each category."""
    with_all = search(store, "animal", collection=split, encoder=encoder, limit=10_000)
    by_category = {}
    for category in sorted({hit.category or "" for hit in with_all}):
        name = common_names(category)[0]
        hits = search(store, name, collection=split, encoder=encoder, limit=10_000, relevant=True)
        right = sum(hit.category == category for hit in hits)
        there = sum(hit.category == category for hit in with_all)
        by_category[category] = {
            "images": there,
            "kept": len(hits),
            "precision": right / len(hits) if hits else 1.0,
            "recall": right / there,
        }
    return by_category


def unanswered(store: Store, encoder: Encoder, split: str, queries: Sequence[str | Path]) -> dict[str, float]:
    """Return how many queries without an answer find nothing, and what the others find."""
    kept = [
        len(search(store, query, collection=split, encoder=encoder, limit=10_000, relevant=True))
        for query in queries
    ]
    return {
        "queries": len(kept),
        "empty": _mean(n == 0 for n in kept),
        "mean_kept": _mean(kept),
    }


def own(store: Store, encoder: Encoder, captions: dict[str, str]) -> dict[str, float]:
    """Return how often a caption's own picture is left, and how many pictures are."""
    kept, mine = [], []
    for path, caption in captions.items():
        hits = search(store, caption, collection="captions", encoder=encoder, limit=10_000, relevant=True)
        kept.append(len(hits))
        mine.append(any(hit.path.endswith(path) for hit in hits))
    return {
        "queries": len(kept),
        "own_kept": _mean(mine),
        "empty": _mean(n == 0 for n in kept),
        "median_kept": float(np.median(kept)),
    }


def alternatives(store: Store, encoder: Encoder, split: str, other: Path) -> dict[str, Any]:
    """Return what simpler rules would give: for the cut, and for words and a picture in one query."""
    with closing(store.open(split)) as collection:
        points = [point for batch in collection.scan(vectors=True) for point in batch]
    vectors = np.stack([point.vector for point in points if point.vector is not None])
    labels = np.array([point.payload["category"] for point in points])
    phrases = encoder.encode_bank(read_phrases())
    names = {category: query_vector(encoder, common_names(category)[0]) for category in categories_of(other)}
    nothing = [query_vector(encoder, text) for text in CHOSEN_WITH]
    pictures = {
        category: encoder.encode_images(sorted((other / category).glob("*.jpg"))[:4]) for category in names
    }
    return {
        "cuts": other_cuts(vectors, labels, phrases, names, nothing),
        "sums": other_sums(vectors, labels, phrases, names, pictures),
    }


def other_cuts(
    vectors: Vectors, labels: Any, phrases: Vectors, names: dict[str, Vectors], nothing: list[Vectors]
) -> dict[str, dict[str, float]]:
    """Return precision and recall of simpler cuts, and how often they leave nothing where they should."""
    nearest_phrase = (vectors @ phrases.T).max(axis=1)
    rules: dict[str, Callable[[Any], Any]] = {
        "score above 0.3": lambda scores: scores > 0.3,
        "score above 0.4": lambda scores: scores > 0.4,
        "2.5 spreads above the median": lambda scores: _spreads(scores) > 2.5,
        "false discovery rate of 0.1": _discovered,
        "nearer than every phrase": lambda scores: scores > nearest_phrase,
    }
    cuts = {}
    for title, rule in rules.items():
        kept = {category: rule(vectors @ vector) for category, vector in names.items()}
        right = {category: (kept[category] & (labels == category)).sum() for category in names}
        cuts[title] = {
            "precision": _mean(right[c] / kept[c].sum() if kept[c].any() else 1 for c in names),
            "recall": _mean(right[c] / (labels == c).sum() for c in names),
            "empty": _mean(not rule(vectors @ vector).any() for vector in nothing),
        }
    return cuts


def _spreads(scores: Any) -> Any:
    """Return how far above the median scores are, in spreads of the half below it."""
    middle = np.median(scores)
    return (scores - middle) / (1.4826 * np.median((middle - scores)[scores <= middle]))


def _discovered(scores: Any) -> Any:
    """Return which scores Benjamini and Hochberg's procedure keeps."""
    chance = np.array([0.5 * math.erfc(z / math.sqrt(2)) for z in _spreads(scores)])
    order = np.argsort(chance)
    good = np.flatnonzero(chance[order] <= 0.1 * np.arange(1, len(order) + 1) / len(order))
    kept = np.zeros(len(order), dtype=bool)
    kept[order[: good[-1] + 1 if len(good) else 0]] = True
    return kept


def other_sums(
    vectors: Vectors, labels: Any, phrases: Vectors, names: dict[str, Vectors], pictures: dict[str, Vectors]
) -> dict[str, dict[str, float]]:
    """Return what is among the first ten by simpler sums of words and a picture."""
    mean_picture, mean_phrase = vectors.mean(axis=0), phrases.mean(axis=0)
    sums: dict[str, Callable[[Any, Any], Any]] = {
        "plain sum": lambda words, picture: words + picture,
        "each without its mean": lambda words, picture: (
            _unit(words - mean_phrase) + _unit(picture - mean_picture)
        ),
        "balanced, as in imret": lambda words, picture: (
            words / (vectors @ words).std() + picture / (vectors @ picture).std()
        ),
    }
    mixes = {}
    for title, add in sums.items():
        shares = []
        for category, of_category in pictures.items():
            for picture in of_category:
                for named, words in names.items():
                    first = labels[np.argsort(-(vectors @ _unit(add(words, picture))))[:10]]
                    shares.append((named == category, (first == category).mean(), (first == named).mean()))
        differ = [(a, b) for same, a, b in shares if not same]
        mixes[title] = {
            "agree": _mean(a for same, a, _ in shares if same),
            "picture": _mean(a for a, _ in differ),
            "words": _mean(b for _, b in differ),
            "both_present": _mean(a > 0 and b > 0 for a, b in differ),
        }
    return mixes


def _unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


def table(measured: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# What searches find on real photos",
        "",
        f"{date.today().isoformat()}; Python {platform.python_version()}, torch {torch.__version__}. "
        "Command: `python benchmarks/search_quality.py DATA`.",
        "Model: tiny-clip, 13.9 M parameters, trained on nature10/train and on photos like captions500. The",
        "rule of the cut was chosen while looking at both splits, the captions and one list of queries.",
    ]
    for split in ("train", "test"):
        of_split = measured[split]
        lines += [
            *("", f"## Collection: nature10/{split}", ""),
            *category_lines(of_split),
            "",
            *query_lines(of_split),
            "",
            *subtraction_lines(of_split["less_like"]),
            "",
            *alternative_lines(of_split["alternatives"]),
        ]
    c = measured["captions"]
    lines += [
        "",
        "## Collection: captions500",
        "",
        f"{c['queries']} captions, each of one photo, with `relevant`: the photo is left in "
        f"{c['own_kept']:.2f}, nothing in {c['empty']:.2f}; the median of hits is {c['median_kept']:.0f}.",
    ]
    return "\n".join(lines) + "\n"


def category_lines(of_split: dict[str, Any]) -> list[str]:
    """Return the table of precision at 10, and of what `relevant` leaves, by category."""
    precision, relevant = of_split["precision"], of_split["relevant"]
    lines = [
        "| category | images | P@10 text | P@10 picture | P@10 both | relevant: kept | precision | recall |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for category, p in precision.items():
        r = relevant[category]
        lines.append(
            f"| {category} | {r['images']} | {p['text']:.2f} | {p['picture']:.2f} | {p['both']:.2f} "
            f"| {r['kept']} | {r['precision']:.2f} | {r['recall']:.2f} |"
        )
    text, picture, both = (_mean(p[key] for p in precision.values()) for key in ("text", "picture", "both"))
    right, recall = (_mean(r[key] for r in relevant.values()) for key in ("precision", "recall"))
    lines.append(f"| mean | | {text:.2f} | {picture:.2f} | {both:.2f} | | {right:.2f} | {recall:.2f} |")
    return lines


def query_lines(of_split: dict[str, Any]) -> list[str]:
    """Return what queries of two categories find, and those without an answer."""
    mixed = of_split["mixed"]
    lines = [
        f"A picture and the name of another category ({mixed['queries']} queries), of the first "
        f"10: {mixed['picture']:.2f} are of the picture's, {mixed['words']:.2f} of the "
        f"named; both are there in {mixed['both_present']:.2f} of the queries.",
        "",
        "| queries without an answer, with `relevant` | queries | find nothing | mean of hits |",
        "|---|---|---|---|",
    ]
    for key, title in (
        ("none_chosen_with", "words that the rule was chosen with"),
        ("none_fresh", "other words, never asked before"),
        ("none_captions", "captions of captions500"),
        ("none_pictures", "photos of captions500"),
    ):
        n = of_split[key]
        lines.append(f"| {title} | {n['queries']} | {n['empty']:.2f} | {n['mean_kept']:.1f} |")
    c = of_split["conditions"]
    lines += [
        "",
        f"A category's name with `relevant`, its own pictures left out: {c['without_category']:.1f} hits; "
        f"without that condition {c['others_of_all']:.1f} of all hits are others (means of {c['queries']} "
        "categories).",
    ]
    return lines


def subtraction_lines(less_like: dict[str, dict[str, float]]) -> list[str]:
    """Return the table of what is found without a picture, and without a word."""
    return [
        "| a category's name | less its first right hit: right of ten | its copies among ten "
        "| less a word: right of ten | their rank by that word, 0 to 1 |",
        "|---|---|---|---|---|",
        *(
            f"| {rule} | {row['right']:.2f} | {row['copies']:.2f} | {row['words_right']:.2f} "
            f"| {row['word_rank']:.2f} |"
            for rule, row in less_like.items()
        ),
    ]


def alternative_lines(alternatives: dict[str, Any]) -> list[str]:
    """Return the tables of simpler rules."""
    return [
        "| simpler rules for the cut | precision | recall | unanswerable (chosen with) find nothing |",
        "|---|---|---|---|",
        *(
            f"| {title} | {a['precision']:.2f} | {a['recall']:.2f} | {a['empty']:.2f} |"
            for title, a in alternatives["cuts"].items()
        ),
        "",
        "| words + picture, first ten | of one category: right | of two: of the picture's | of the named "
        "| both present |",
        "|---|---|---|---|---|",
        *(
            f"| {title} | {a['agree']:.2f} | {a['picture']:.2f} | {a['words']:.2f} "
            f"| {a['both_present']:.2f} |"
            for title, a in alternatives["sums"].items()
        ),
    ]


if __name__ == "__main__":
    main()
