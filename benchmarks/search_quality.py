"""What searches find on real photos: words, pictures, both; where the answers end; and queries without any.

    python benchmarks/search_quality.py DATA

DATA holds nature10 (train and test, a folder per category), captions500 (photos of other things) and
tiny-clip (a model that knows both). Both splits are made collections.

- Precision at 10 of each category: asked for by its name; by pictures of the other split; by both.
- A picture of one category and the name of another: how much of each is among the first 10.
- `relevant`: precision and recall of what is left of each category, and how often a query that has no answer
  is told so. Captions of captions500 on their own photos: how often the right one is left.

The rule of imret.retrieval.relevance was chosen while looking at both splits, at the captions and at the
queries CHOSEN_WITH; the queries FRESH were written afterwards, before they were first asked.

Writes benchmarks/results/search_quality-DATE.md and .json.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imret import Encoder
from imret.datasets.phrases import read_phrases
from imret.retrieval.prompts import common_names
from imret.retrieval.query import Term
from imret.retrieval.query_vector import query_vector
from imret.retrieval.search import search
from imret.store import Store, open_store
from ingest.pipeline import ingest
from ingest.sources import FolderSource

# Nothing of the ten categories is asked for in these, and the model was trained on captions of such things.
CHOSEN_WITH = (
    *("a red sports car", "a man riding a bicycle", "a football player", "people on a city street"),
    *("a laptop on a desk", "a skyscraper at night", "a man playing a guitar", "a child on a swing"),
    *("a crowd at a concert", "a woman in a wedding dress", "a boat on a lake", "a skier in the snow"),
    *("a bowl of soup", "a basketball game", "a man climbing a rock", "a train at a station"),
    *("a baby in a crib", "a surfer on a wave", "two men boxing", "a construction worker"),
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
                "relevant": relevant(store, encoder, split),
                "none_chosen_with": told(store, encoder, split, CHOSEN_WITH),
                "none_fresh": told(store, encoder, split, FRESH),
                "none_captions": told(store, encoder, split, list(captions.values())),
                "none_pictures": told(
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
    return float(np.mean([hit.category == category for hit in hits]))


def precision(store: Store, encoder: Encoder, split: str, other: Path) -> dict[str, dict[str, float]]:
    """Return precision at 10 by category: of words, of pictures, of both together."""
    found = {}
    for category in categories_of(other):
        name = common_names(category)[0]
        pictures = sorted((other / category).glob("*.jpg"))[:20]
        found[category] = {
            "text": right_in_10(store, encoder, split, name, category),
            "picture": float(
                np.mean([right_in_10(store, encoder, split, one, category) for one in pictures])
            ),
            "both": float(
                np.mean(
                    [
                        right_in_10(store, encoder, split, [Term(name), Term(str(one), "image")], category)
                        for one in pictures
                    ]
                )
            ),
        }
    return found


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
                of_picture.append(np.mean([hit.category == category for hit in hits]))
                of_words.append(np.mean([hit.category == named for hit in hits]))
                both.append(of_picture[-1] > 0 and of_words[-1] > 0)
    return {
        "picture": float(np.mean(of_picture)),
        "words": float(np.mean(of_words)),
        "both_present": float(np.mean(both)),
        "queries": len(both),
    }


def relevant(store: Store, encoder: Encoder, split: str) -> dict[str, dict[str, float]]:
    """Return precision and recall of what `relevant` leaves of each category."""
    with_all = search(store, "animal", collection=split, encoder=encoder, limit=10_000)
    found = {}
    for category in sorted({hit.category or "" for hit in with_all}):
        name = common_names(category)[0]
        hits = search(store, name, collection=split, encoder=encoder, limit=10_000, relevant=True)
        right = sum(hit.category == category for hit in hits)
        there = sum(hit.category == category for hit in with_all)
        found[category] = {
            "images": there,
            "kept": len(hits),
            "precision": right / len(hits) if hits else 1.0,
            "recall": right / there,
        }
    return found


def told(store: Store, encoder: Encoder, split: str, queries: Sequence[str | Path]) -> dict[str, float]:
    """Return how many queries without an answer find nothing, and what the others find."""
    kept = [
        len(search(store, query, collection=split, encoder=encoder, limit=10_000, relevant=True))
        for query in queries
    ]
    return {
        "queries": len(kept),
        "empty": float(np.mean([n == 0 for n in kept])),
        "mean_kept": float(np.mean(kept)),
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
        "own_kept": float(np.mean(mine)),
        "empty": float(np.mean([n == 0 for n in kept])),
        "median_kept": float(np.median(kept)),
    }


def alternatives(store: Store, encoder: Encoder, split: str, other: Path) -> dict[str, Any]:
    """Return what simpler rules would give: for the cut, and for words and a picture in one query."""
    with closing(store.open(split)) as collection:
        points = [point for batch in collection.scan(vectors=True) for point in batch]
    vectors = np.stack([point.vector for point in points if point.vector is not None])
    category = np.array([point.payload["category"] for point in points])
    phrases = vectors @ encoder.encode_bank(read_phrases()).T
    names = {one: query_vector(encoder, common_names(one)[0]) for one in categories_of(other)}
    nothing = [query_vector(encoder, text) for text in CHOSEN_WITH]

    def spreads(scores: Any) -> Any:
        middle = np.median(scores)
        return (scores - middle) / (1.4826 * np.median((middle - scores)[scores <= middle]))

    def discovered(scores: Any) -> Any:
        chance = np.array([0.5 * math.erfc(z / math.sqrt(2)) for z in spreads(scores)])
        order = np.argsort(chance)
        good = np.flatnonzero(chance[order] <= 0.1 * np.arange(1, len(order) + 1) / len(order))
        kept = np.zeros(len(order), dtype=bool)
        kept[order[: good[-1] + 1 if len(good) else 0]] = True
        return kept

    rules: dict[str, Callable[[Any], Any]] = {
        "score above 0.3": lambda scores: scores > 0.3,
        "score above 0.4": lambda scores: scores > 0.4,
        "2.5 spreads above the median": lambda scores: spreads(scores) > 2.5,
        "false discovery rate of 0.1": discovered,
        "nearer than every phrase": lambda scores: scores > phrases.max(axis=1),
    }
    cuts = {}
    for what, rule in rules.items():
        kept = {one: rule(vectors @ vector) for one, vector in names.items()}
        right = {one: (kept[one] & (category == one)).sum() for one in names}
        cuts[what] = {
            "precision": float(
                np.mean([right[one] / kept[one].sum() if kept[one].any() else 1 for one in names])
            ),
            "recall": float(np.mean([right[one] / (category == one).sum() for one in names])),
            "empty": float(np.mean([not rule(vectors @ vector).any() for vector in nothing])),
        }

    means = vectors.mean(axis=0), encoder.encode_bank(read_phrases()).mean(axis=0)

    def unit(vector: Any) -> Any:
        return vector / np.linalg.norm(vector)

    sums: dict[str, Callable[[Any, Any], Any]] = {
        "plain sum": lambda words, picture: words + picture,
        "each without its mean": lambda words, picture: unit(words - means[1]) + unit(picture - means[0]),
        "balanced, as in imret": lambda words, picture: (
            words / (vectors @ words).std() + picture / (vectors @ picture).std()
        ),
    }
    pictures = {one: encoder.encode_images(sorted((other / one).glob("*.jpg"))[:4]) for one in names}
    mixes = {}
    for what, add in sums.items():
        shares = []
        for one in names:
            for picture in pictures[one]:
                for named, words in names.items():
                    first = category[np.argsort(-(vectors @ unit(add(words, picture))))[:10]]
                    shares.append((named == one, (first == one).mean(), (first == named).mean()))
        differ = [(a, b) for same, a, b in shares if not same]
        mixes[what] = {
            "agree": float(np.mean([a for same, a, _ in shares if same])),
            "picture": float(np.mean([a for a, _ in differ])),
            "words": float(np.mean([b for _, b in differ])),
            "both_present": float(np.mean([a > 0 and b > 0 for a, b in differ])),
        }
    return {"cuts": cuts, "sums": mixes}


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
        one = measured[split]
        lines += [
            "",
            f"## Collection: nature10/{split}",
            "",
            "| category | images | P@10 text | P@10 picture | P@10 both | relevant: kept | precision "
            "| recall |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for category, p in one["precision"].items():
            r = one["relevant"][category]
            lines.append(
                f"| {category} | {r['images']} | {p['text']:.2f} | {p['picture']:.2f} | {p['both']:.2f} "
                f"| {r['kept']} | {r['precision']:.2f} | {r['recall']:.2f} |"
            )
        means = [np.mean([p[key] for p in one["precision"].values()]) for key in ("text", "picture", "both")]
        cut = [np.mean([r[key] for r in one["relevant"].values()]) for key in ("precision", "recall")]
        lines += [
            f"| mean | | {means[0]:.2f} | {means[1]:.2f} | {means[2]:.2f} | | {cut[0]:.2f} | {cut[1]:.2f} |",
            "",
            f"A picture and the name of another category ({one['mixed']['queries']} queries), of the first "
            f"10: {one['mixed']['picture']:.2f} are of the picture's, {one['mixed']['words']:.2f} of the "
            f"named; both are there in {one['mixed']['both_present']:.2f} of the queries.",
            "",
            "| queries without an answer, with `relevant` | queries | find nothing | mean of hits |",
            "|---|---|---|---|",
        ]
        for key, what in (
            ("none_chosen_with", "words that the rule was chosen with"),
            ("none_fresh", "other words, never asked before"),
            ("none_captions", "captions of captions500"),
            ("none_pictures", "photos of captions500"),
        ):
            n = one[key]
            lines.append(f"| {what} | {n['queries']} | {n['empty']:.2f} | {n['mean_kept']:.1f} |")
        lines += [
            "",
            "| simpler rules for the cut | precision | recall | unanswerable (chosen with) find nothing |",
            "|---|---|---|---|",
        ]
        for what, a in one["alternatives"]["cuts"].items():
            lines.append(f"| {what} | {a['precision']:.2f} | {a['recall']:.2f} | {a['empty']:.2f} |")
        lines += [
            "",
            "| words + picture, first ten | of one category: right | of two: of the picture's | of the named "
            "| both present |",
            "|---|---|---|---|---|",
        ]
        for what, a in one["alternatives"]["sums"].items():
            lines.append(
                f"| {what} | {a['agree']:.2f} | {a['picture']:.2f} | {a['words']:.2f} "
                f"| {a['both_present']:.2f} |"
            )
    c = measured["captions"]
    lines += [
        "",
        "## Collection: captions500",
        "",
        f"{c['queries']} captions, each of one photo, with `relevant`: the photo is left in "
        f"{c['own_kept']:.2f}, nothing in {c['empty']:.2f}; the median of hits is {c['median_kept']:.0f}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
