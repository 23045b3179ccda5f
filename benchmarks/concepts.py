"""What names learnt from pictures find, beside other ways of using the same pictures; and what they cost.

    python benchmarks/concepts.py DATA [DRAWN...] [--tuned FOLDER]...

DATA holds nature10 (train and test, a folder per category), captions500 and captions800 (photos of other
things), tiny-clip and tiny-clip-base. Each DRAWN is a folder that `imret demo FOLDER --seed N --tour` filled.

- mAP of the ten categories by their names, with paired bootstrap intervals: the text, what
  `imret.concepts.learn` learns (one view and three; with and without photos of captions800 as others), and
  the fitted baselines.
- The same among photos of other things, and with few pictures a category (means of five draws).
- Captions of captions500, each as it is written: how many hold a name, and what they find. The others have to
  ask with the very same vector, or this ends with an error.
- Drawn pictures: categories, and queries for attributes such as "blue butterfly".
- Model folders that `imret finetune` made of tiny-clip-base, with the concepts that it learnt into them.
- Calibration on the test pictures, and how long ten names take to learn from 10,000 vectors.

Everything is chosen by cross-validation within the training pictures; the test pictures are looked at once,
for this table. Writes benchmarks/results/concepts-DATE.md, .json and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import cores
from matplotlib.figure import Figure
from numpy.typing import NDArray

from imret import Encoder
from imret.concepts.calibration import error_of, softmax
from imret.concepts.cross_validation import Examples, choose
from imret.concepts.examples import Example, embed_files
from imret.concepts.learn import Lesson, Taught, learn
from imret.datasets.csv_rows import read_rows
from imret.datasets.labelled import read_labelled
from imret.demo.dataset import attribute_queries, category_queries
from imret.evaluation.dataset import embed, encode_captions
from imret.evaluation.fitted import fitted_baselines, training_pictures
from imret.evaluation.metrics import average_precision
from imret.evaluation.retention import Captioned, caption_ranks, captioned_in, retention_of
from imret.evaluation.significance import MAP, System, resample
from imret.retrieval.concept_query import ask_with_concepts, read_model_concepts
from imret.retrieval.concepts import Concepts
from imret.retrieval.prompts import common_names
from imret.retrieval.query_vector import query_vector

RESAMPLES = 2000
SHOTS = (1, 2, 4, 8, 16, 32)
DRAWS = 5
OTHERS = 200
TEXT = "text"
Vectors = NDArray[np.float32]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("drawn", type=Path, nargs="*")
    parser.add_argument("--tuned", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    measured: dict[str, Any] = {
        name: Photos(arguments.data, name).measure() for name in ("tiny-clip-base", "tiny-clip")
    }
    measured["tuned"] = {folder.name: tuned(folder, arguments.data) for folder in arguments.tuned}
    measured["drawn"] = {f"seed {number}": drawn(folder) for number, folder in enumerate(arguments.drawn)}
    measured["seconds"], measured["load"] = [seconds() for _ in range(5)], os.getloadavg()[0]
    arguments.output.mkdir(exist_ok=True)
    stem = arguments.output / f"concepts-{date.today().isoformat()}"
    stem.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    text = table(measured)
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(measured, stem.with_suffix(".png"))
    print(text)


def asked(concepts: Concepts | None, text: str, vector: Vectors, encoder: Encoder) -> tuple[Vectors, bool]:
    """Return what a search asks with, and whether a concept had a part in it."""
    if concepts is None:
        return vector, False
    answer = ask_with_concepts(concepts, text, vector, encoder, lambda name: query_vector(encoder, name))
    return answer.vector, bool(answer.uses)


class Photos:
    """The photos of ten categories, as one model embeds them."""

    def __init__(self, data: Path, model: str) -> None:
        self.encoder = Encoder(data / model, device="cpu", precision="fp32")
        self.training = read_labelled(data / "nature10" / "train")
        tested = read_labelled(data / "nature10" / "test")
        self.test = embed(tested, self.encoder)
        self.fitted = fitted_baselines(
            training_pictures(data / "nature10" / "train", tested), self.encoder, self.test
        ).systems
        self.captions = captioned_in(data / "captions500" / "captions.csv")
        self.elsewhere = self._files(self.captions)
        files = [picture.file_in(self.training.folder) for picture in self.training.pictures]
        found = embed_files(files, self.encoder).examples
        self.own = {name: [] for name in self.training.categories}
        for picture, file in zip(self.training.pictures, files, strict=True):
            self.own[picture.category or ""].append(found[file])
        self.others = self._files(captioned_in(data / "captions800" / "captions.csv"))[:OTHERS]
        self.names = {category: common_names(category) for category in self.training.categories}

    def _files(self, captioned: Captioned) -> list[Example]:
        files = [str(captioned.root / path) for path in captioned.paths]
        found = embed_files(files, self.encoder, views=1).examples
        return [found[file] for file in files]

    def learn(self, *, views: int, others: bool, shots: int | None = None, seed: int = 0) -> Lesson:
        """Learn the categories, from all their pictures or from a draw of some."""
        rng = np.random.default_rng(seed)
        taught = []
        for category, pictures in self.own.items():
            drawn = (
                pictures if shots is None else [pictures[i] for i in rng.permutation(len(pictures))[:shots]]
            )
            seen = [Example(one.sha256, one.vectors[:views]) for one in drawn]
            taught.append(Taught(self.names[category][0], (*self.names[category][1:], category), seen))
        return learn(self.encoder, taught, others=self.others if others else (), seed=seed)

    def queries(self, concepts: Concepts | None) -> Vectors:
        """Return (Q, D) what a search for each category's folder asks with."""
        return np.stack(
            [
                asked(concepts, category, query_vector(self.encoder, category), self.encoder)[0]
                for category in self.test.categories
            ]
        )

    def measure(self) -> dict[str, Any]:
        """Return all figures of this model."""
        variants = {
            "concepts, 1 view": {"views": 1, "others": False},
            "concepts, 3 views": {"views": 3, "others": False},
            "concepts, 1 view, others": {"views": 1, "others": True},
            "concepts, 3 views, others": {"views": 3, "others": True},
        }
        lessons = {name: self.learn(**how) for name, how in variants.items()}  # type: ignore[arg-type]
        queries = {
            TEXT: self.queries(None),
            **{name: self.queries(one.concepts) for name, one in lessons.items()},
        }
        systems = [System(name, rows @ self.test.vectors.T) for name, rows in queries.items()] + self.fitted
        samples = resample(systems, self.test, RESAMPLES, 0)
        elsewhere = np.concatenate([one.vectors for one in self.elsewhere])
        both = np.concatenate([self.test.vectors, elsewhere])
        relevant = np.pad(self.test.relevant, ((0, 0), (0, len(elsewhere))))
        rows = {}
        for system in systems:
            precision = average_precision(system.scores, self.test.relevant)
            difference = samples[system.name].figures[MAP] - samples[TEXT].figures[MAP]
            rows[system.name] = {
                "map": float(precision.mean()),
                "interval": list(samples[system.name].intervals[MAP]),
                "difference": np.quantile(difference, (0.025, 0.975)).tolist(),
                "per_category": dict(zip(self.test.categories, precision.tolist(), strict=True)),
                "mixed": float(average_precision(queries[system.name] @ both.T, relevant).mean())
                if system.name in queries
                else None,
            }
        main = lessons["concepts, 3 views"].concepts
        return {
            "rows": rows,
            "few": {"all" if shots is None else str(shots): self.few(shots) for shots in (*SHOTS, None)},
            "captions": self.ask_captions(main),
            "calibration": self.calibration(main),
        }

    def few(self, shots: int | None) -> dict[str, Any]:
        """Return what few pictures of each category give, and how often a text would be better."""
        draws = 1 if shots is None else DRAWS
        text = average_precision(self.queries(None) @ self.test.vectors.T, self.test.relevant)
        measured: dict[str, Any] = {}
        for views in (1, 3):
            found = [
                average_precision(
                    self.queries(self.learn(views=views, others=False, shots=shots, seed=seed).concepts)
                    @ self.test.vectors.T,
                    self.test.relevant,
                )
                for seed in range(draws)
            ]
            measured[f"{views} views"] = float(np.mean(found))
            measured[f"{views} views, worse than text"] = int((np.array(found) < text - 1e-9).sum())
            measured["of"] = draws * len(text)
        return measured

    def ask_captions(self, concepts: Concepts) -> dict[str, Any]:
        """Return what captions of other photos find, and whether those that hold no name are bit-equal."""
        captions = [caption for caption, _ in self.captions.captions]
        vectors, _ = encode_captions(self.encoder, captions)
        own = np.array([at for _, at in self.captions.captions])
        moved = [
            asked(concepts, text, row, self.encoder) for text, row in zip(captions, vectors, strict=True)
        ]
        equal = all(
            used or np.array_equal(row, same) for (row, used), same in zip(moved, vectors, strict=True)
        )
        if not equal:
            raise SystemExit("a caption that holds no name asks with another vector: it has to be the same")
        after = np.stack([row / np.linalg.norm(row) if used else row for row, used in moved])
        images = np.concatenate([one.vectors for one in self.elsewhere])
        ranks, ranks_after = (caption_ranks(texts, images, own)[0] for texts in (vectors, after))
        used = np.array([used for _, used in moved])
        return {
            "captions": len(captions),
            "with a name": int(used.sum()),
            "hit rate@10": float((ranks < 10).mean()),
            "hit rate@10, concepts": float((ranks_after < 10).mean()),
            "of those with a name": [float((some[used] < 10).mean()) for some in (ranks, ranks_after)],
        }

    def calibration(self, concepts: Concepts) -> dict[str, float]:
        """Return expected calibration error and accuracy on the test pictures, of texts and of concepts."""
        (fitted,) = concepts.calibrations
        by_folder = [concepts.concepts[self.names[category][0]] for category in self.test.categories]
        rows = np.stack([one.text if one.vector is None else one.vector for one in by_folder])
        biases = np.array([fitted.biases[one.name] for one in by_folder])
        learnt = softmax(fitted.scale * (self.test.vectors @ rows.T) + biases)
        texts = softmax(self.encoder.logit_scale * (self.test.vectors @ self.queries(None).T))
        right = [float((shares.argmax(axis=1) == self.test.labels).mean()) for shares in (texts, learnt)]
        errors = [error_of(shares, self.test.labels) for shares in (texts, learnt)]
        return {
            "held out, texts": fitted.error_before,
            "held out": fitted.error,
            "test, texts": errors[0],
            "test": errors[1],
            "right, texts": right[0],
            "right": right[1],
        }


def tuned(folder: Path, data: Path) -> dict[str, float]:
    """Return mAP of categories by text and with the folder's concepts, and what captions lost to the base."""
    encoder, base = (
        Encoder(one, device="cpu", precision="fp32") for one in (folder, data / "tiny-clip-base")
    )
    test = embed(read_labelled(data / "nature10" / "test"), encoder)
    concepts = read_model_concepts(folder)
    captions = captioned_in(data / "captions500" / "captions.csv")
    text, learnt = (
        np.stack([asked(one, name, query_vector(encoder, name), encoder)[0] for name in test.categories])
        for one in (None, concepts)
    )
    hits = [retention_of(captions, one).report.hit_rate[10] for one in (base, encoder)]
    return {
        "mAP, text": float(average_precision(text @ test.vectors.T, test.relevant).mean()),
        "mAP": float(average_precision(learnt @ test.vectors.T, test.relevant).mean()),
        "hit rate@10, points": 100 * (hits[1] - hits[0]),
    }


def drawn(folder: Path) -> dict[str, float]:
    """Return mAP of categories and of attributes on drawn pictures, of texts and with concepts."""
    encoder = Encoder(folder / "model", device="cpu", precision="fp32")
    test = embed(read_labelled(folder / "test"), encoder)
    training = read_labelled(folder / "train")
    by_category: dict[str, list[str]] = {name: [] for name in training.categories}
    for picture in training.pictures:
        by_category[picture.category or ""].append(picture.file_in(training.folder))
    found = embed_files([file for files in by_category.values() for file in files], encoder).examples
    called = category_queries()
    taught = [
        Taught(called[name], (name,), [found[file] for file in files]) for name, files in by_category.items()
    ]
    concepts = learn(encoder, taught).concepts
    rows = {
        row["path"]: row
        for _, row in read_rows(folder / "test" / "attributes.csv", ("path",), kind="attributes")
    }
    attributes = [
        (query.text, np.array([query.matches(rows[path]) for path in test.paths]))
        for query in attribute_queries()
    ]
    attributes = [(text, right) for text, right in attributes if right.any()]
    categories = [(called[name], test.relevant[at]) for at, name in enumerate(test.categories)]
    result = {}
    for kind, queries in (("category", categories), ("attribute", attributes)):
        for what, known in (("", None), (", concepts", concepts)):
            vectors = [asked(known, text, query_vector(encoder, text), encoder)[0] for text, _ in queries]
            relevant = np.stack([right for _, right in queries])
            precision = average_precision(np.stack(vectors) @ test.vectors.T, relevant)
            result[f"{kind} mAP{what}"] = float(precision.mean())
    return result


def seconds() -> float:
    """Return how long ten names take to learn from 10,000 vectors as long as ViT-H/14's."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(10_000, 1024)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pictures = np.arange(len(vectors))
    examples = Examples(vectors, pictures, pictures % 10, np.ones(len(vectors)), vectors[:10])
    began = time.monotonic()
    choice = choose(examples)
    examples.sums().directions([choice.shrinkage])
    return time.monotonic() - began


# ---- What is written -----------------------------------------------------------------------------------


def table(measured: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# Names learnt from pictures",
        "",
        f"{date.today().isoformat()}, {cores()}, no GPU; Python {platform.python_version()}, torch "
        f"{torch.__version__}, numpy {np.__version__}. Command:",
        "`python benchmarks/concepts.py DATA DRAWN... --tuned FOLDER...`.",
        f"mAP of ten categories over 240 test photos; intervals of 95 %, {RESAMPLES:,} draws over photos.",
        "Chosen by cross-validation within the 697 training photos; the test photos were looked at once.",
        "Mixed: among 500 photos of other things, too. tiny-clip has seen the training photos,",
        "tiny-clip-base none.",
        "",
        *goals(measured),
    ]
    for model in ("tiny-clip-base", "tiny-clip"):
        of_model = measured[model]
        lines += [
            "",
            f"## {model}",
            "",
            "| what | mAP | 95 % | to the text, 95 % | mixed |",
            "|---|---|---|---|---|",
        ]
        for name, row in of_model["rows"].items():
            low, high = row["interval"]
            less, more = row["difference"]
            mixed = "" if row["mixed"] is None else f"{row['mixed']:.3f}"
            lines.append(
                f"| {name} | {row['map']:.3f} | [{low:.3f}, {high:.3f}] | [{less:+.3f}, {more:+.3f}] "
                f"| {mixed} |"
            )
        lines += ["", *few_rows(of_model), "", *caption_lines(of_model)]
    if measured["tuned"]:
        lines += ["", "## Tuned from tiny-clip-base, then concepts", "", *tuned_rows(measured["tuned"])]
    lines += ["", "## Drawn pictures", "", *drawn_rows(measured["drawn"]), ""]
    spent = measured["seconds"]
    lines.append(
        f"Ten names from 10,000 vectors of 1,024: {np.median(spent):.1f} s at the median of {len(spent)}, "
        f"{min(spent):.1f} to {max(spent):.1f} (load {measured['load']:.1f})."
    )
    return "\n".join(lines) + "\n"


def goals(measured: dict[str, Any]) -> Sequence[str]:
    """Return what was to be shown, beside what was before and what was reached."""
    base, known = measured["tiny-clip-base"], measured["tiny-clip"]
    tuned_folders, of_seeds = measured["tuned"].values(), measured["drawn"].values()
    main = "concepts, 3 views"
    few = base["few"]["16"]
    rows = [
        (
            "tiny-clip-base; captions without a name are the same to the bit",
            "recipe `names`: 0.637, -0.17 points",
            "0.84",
            f"{base['rows'][main]['map']:.3f}, of one view {base['rows']['concepts, 1 view']['map']:.3f}",
        ),
        (
            "16 pictures a category, and names worse than by text",
            "",
            "0.74, none",
            f"{few['3 views']:.3f} ({few['1 views']:.3f} of one view), "
            f"{few['3 views, worse than text']} of {few['of']}",
        ),
        ("tiny-clip", f"{known['rows'][TEXT]['map']:.3f}", "0.925", f"{known['rows'][main]['map']:.3f}"),
    ]
    if tuned_folders:
        maps = [row["mAP"] for row in tuned_folders]
        lost = [row["hit rate@10, points"] for row in tuned_folders]
        rows.append(
            (
                f"tuned, then concepts: {len(maps)} runs",
                "recipe `light`: 0.733, -1.21 points",
                "0.87, -0.5",
                f"{np.mean(maps):.3f} ({min(maps):.3f} to {max(maps):.3f}), {np.mean(lost):+.2f}",
            )
        )
    for kind in ("attribute", "category"):
        before, after = (
            [f"{row[f'{kind} mAP{what}']:.3f}" for row in of_seeds] for what in ("", ", concepts")
        )
        aim = "not below" if kind == "attribute" else "up"
        rows.append((f"drawn pictures, {kind} mAP", ", ".join(before), aim, ", ".join(after)))
    rows.append(("10 names from 10,000 x 1,024", "", "below 5 s", f"{np.median(measured['seconds']):.1f} s"))
    lines = ["| what | before | goal | reached |", "|---|---|---|---|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def few_rows(of_model: dict[str, Any]) -> Sequence[str]:
    """Return the table of few pictures a category."""
    lines = [
        "| pictures a category | 1 view | categories worse than the text | 3 views | categories worse |",
        "|---|---|---|---|---|",
    ]
    for shots, row in of_model["few"].items():
        worse = [f"{row[f'{views} views, worse than text']} of {row['of']}" for views in (1, 3)]
        lines.append(f"| {shots} | {row['1 views']:.3f} | {worse[0]} | {row['3 views']:.3f} | {worse[1]} |")
    return lines


def caption_lines(of_model: dict[str, Any]) -> Sequence[str]:
    """Return what is said of captions and of calibration."""
    captions, error = of_model["captions"], of_model["calibration"]
    before, after = captions["of those with a name"]
    return [
        f"Captions of other photos: {captions['with a name']} of {captions['captions']:,} hold a name "
        "that was learnt, the others ask with the same vector, to the bit. "
        f"Hit rate@10 {captions['hit rate@10']:.4f}, with concepts "
        f"{captions['hit rate@10, concepts']:.4f}; of those with a name {before:.3f} and {after:.3f}.",
        "",
        f"Expected calibration error on the test photos: {error['test, texts']:.3f} by the texts "
        f"({error['right, texts']:.3f} right), {error['test']:.3f} by concepts ({error['right']:.3f} right); "
        f"held out {error['held out, texts']:.3f} and {error['held out']:.3f}.",
    ]


def tuned_rows(of_folders: dict[str, Any]) -> Sequence[str]:
    """Return the table of model folders."""
    lines = [
        "| folder | mAP by text | mAP with concepts | hit rate@10 of captions, points to the base |",
        "|---|---|---|---|",
    ]
    for name, row in of_folders.items():
        lines.append(
            f"| {name} | {row['mAP, text']:.3f} | {row['mAP']:.3f} | {row['hit rate@10, points']:+.2f} |"
        )
    return lines


def drawn_rows(of_seeds: dict[str, Any]) -> Sequence[str]:
    """Return the table of drawn pictures."""
    columns = [f"{kind} mAP{what}" for kind in ("category", "attribute") for what in ("", ", concepts")]
    lines = [f"| seed | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for seed, row in of_seeds.items():
        lines.append(f"| {seed} | " + " | ".join(f"{row[column]:.3f}" for column in columns) + " |")
    return lines


def plot(measured: dict[str, Any], file: Path) -> None:
    """Draw what is gained by name against what captions of other photos lose."""
    of_model = measured["tiny-clip-base"]
    captions = of_model["captions"]
    lost = 100 * (captions["hit rate@10, concepts"] - captions["hit rate@10"])
    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.subplots()
    earlier = sorted((Path(__file__).parent / "results").glob("finetune_nature10-*.json"))
    if earlier:
        report = json.loads(earlier[-1].read_text(encoding="utf-8"))
        change = {
            row["of"]: 100 * row["difference"]
            for row in report["differences"]
            if row["metric"] == "retention_hit_rate@10"
        }
        for recipe, marker in zip(("names", "light", "lora", "full", "plain"), "svPXD", strict=True):
            spots = [
                (change[row["name"]], row["text_to_image"]["macro"]["map"])
                for row in report["models"]
                if row["name"].startswith(f"{recipe}, seed")
            ]
            if spots:
                axes.scatter(*zip(*spots, strict=True), marker=marker, s=45, label=f"tuned: {recipe}")
    for name, row in of_model["rows"].items():
        if name.startswith("concepts"):
            axes.scatter(lost, row["map"], marker="*", s=140, label=name)
        elif name == TEXT:
            axes.scatter(0, row["map"], color="black", s=50, label="the base, by text")
        else:
            axes.axhline(row["map"], color="#c2553a", lw=0.8, ls=":")
            axes.annotate(name, (-0.1, row["map"]), fontsize=7, color="#c2553a", va="bottom", ha="right")
    for name, row in measured["tuned"].items():
        axes.scatter(row["hit rate@10, points"], row["mAP"], marker="d", s=60, label=f"{name}, concepts")
    axes.set_xlabel("hit rate@10 of captions of other photos, change to the base in points")
    axes.set_ylabel("mAP of ten categories by name")
    axes.legend(fontsize=7, loc="lower left")
    axes.grid(alpha=0.25)
    figure.savefig(file)


if __name__ == "__main__":
    main()
