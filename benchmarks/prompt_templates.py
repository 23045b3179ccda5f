"""Which sentences few words are best put into: single ones, and averages.

    python benchmarks/prompt_templates.py DATA MODEL...

DATA holds nature10/train (a folder per category) and captions800 (captions.csv, images), neither
of them a test set: the templates may be chosen by what this shows.

- Categories of nature10: mean average precision over all pictures, asked for by their common names.
- Words of captions800: those that stand after an article and before a preposition, a verb or the end, in at
  least 10 captions. A picture has what two of its five captions name; words of 5 to 200 pictures are asked.
- Long captions are asked as they are, whatever the templates: how often the first ten hold their own picture.

Intervals (95 %) are of the difference to the six sentences of a search, by 2,000 paired draws of queries.
Writes benchmarks/results/prompt_templates-DATE.md.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path

import numpy as np
from machine import cores
from numpy.typing import NDArray

from imret import Encoder
from imret.datasets.labelled import read_labelled
from imret.evaluation.dataset import embed, encode, encode_captions
from imret.evaluation.metrics import average_precision
from imret.evaluation.retention import captioned_in
from imret.retrieval.prompts import CLIP_TEMPLATES, common_names, fill

_ENDS = "in|on|is|with|at|of|sitting|standing|near|by|that|are|to"
_NOUN = re.compile(rf"\b(?:an?|the) ([a-z]{{3,}})(?= (?:{_ENDS})\b| ?[.,]| ?$)")
_OWN = "This is a photo of {}."

SETS: dict[str, tuple[str, ...]] = {
    "the six of a search": CLIP_TEMPLATES,
    "the bare word": ("{name}",),
    "a photo of a {name}.": ("a photo of a {name}.",),
    _OWN: (_OWN,),
    "the three that evaluate asked before": (
        "a photo of the {name}.",
        "a picture showing {}.",
        "one photo of {}, outdoors.",
    ),
    "the six and the bare word": (*CLIP_TEMPLATES, "{name}"),
    f"the six and {_OWN!r}": (_OWN, *CLIP_TEMPLATES),
}


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    parts = [
        "# Sentences for few words",
        f"{date.today()}; {cores()}. Command: `python benchmarks/prompt_templates.py DATA MODEL...`.\n"
        "What is compared and how is in that file. Training pictures and captions800 alone; no test picture.",
        *(_measured(arguments.data, model) for model in arguments.models),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    (arguments.output / f"prompt_templates-{date.today()}.md").write_text(text, encoding="utf-8")


def _measured(data: Path, model: str) -> str:
    """Return the table of one model."""
    encoder = Encoder(model, precision="fp32")
    nature = embed(read_labelled(data / "nature10" / "train"), encoder)
    captioned = captioned_in(data / "captions800" / "captions.csv")
    photos, _, _ = encode(captioned.root, captioned.paths, encoder)
    asked = _nouns(captioned.captions)
    relevant = np.array([[i in pictures for i in range(len(photos))] for pictures in asked.values()])
    names = [common_names(category)[0] for category in nature.categories]
    is_of = np.arange(len(names))[:, None] == nature.labels
    aps = {
        name: (
            average_precision(_queries(encoder, names, templates) @ nature.vectors.T, is_of),
            average_precision(_queries(encoder, list(asked), templates) @ photos.T, relevant),
        )
        for name, templates in SETS.items()
    }
    captions, _ = encode_captions(encoder, [text for text, _ in captioned.captions])
    own = np.array([picture for _, picture in captioned.captions])
    found = (captions @ photos.T).argsort(axis=1)[:, ::-1][:, :10] == own[:, None]
    first = next(iter(SETS))
    rows = [
        f"| {name} | {' | '.join(_cell(ap, base) for ap, base in zip(aps[name], aps[first], strict=True))} |"
        for name in SETS
    ]
    return "\n".join(
        [
            f"## {Path(model).name}\n",
            f"{len(names)} categories, {len(nature.paths)} pictures; {len(asked)} words, {len(photos)} "
            f"pictures: {', '.join(asked)}. "
            f"Captions as they are: hit rate@10 {found.any(axis=1).mean():.3f}.\n",
            "| few words in | nature10/train, mAP | words of captions800, mAP |",
            "|---|---|---|",
            *rows,
        ]
    )


def _queries(encoder: Encoder, names: list[str], templates: tuple[str, ...]) -> NDArray[np.float32]:
    return np.stack([encoder.encode_mean([fill(template, name) for template in templates]) for name in names])


def _cell(ap: NDArray[np.float64], base: NDArray[np.float64]) -> str:
    """Return a mean and, of what is compared, how it differs."""
    if ap is base:
        return f"{ap.mean():.4f}"
    draws = np.random.default_rng(0).integers(0, len(ap), (2000, len(ap)))
    low, high = np.percentile((ap - base)[draws].mean(axis=1), [2.5, 97.5])
    return f"{ap.mean():.4f} ({(ap - base).mean():+.4f}, {low:+.4f} to {high:+.4f})"


def _nouns(captions: list[tuple[str, int]]) -> dict[str, set[int]]:
    """Return words to ask for, and the pictures that have them, of captions and the picture of each."""
    times: defaultdict[str, Counter[int]] = defaultdict(Counter)
    heads: Counter[str] = Counter()
    for caption, picture in captions:
        heads.update(set(_NOUN.findall(caption.lower())))
        for word in set(re.findall(r"[a-z]+", caption.lower())):
            times[word][picture] += 1
    found = {
        word: {picture for picture, n in times[word].items() if n > 1}
        for word in sorted(heads)
        if heads[word] > 9
    }
    return {word: pictures for word, pictures in found.items() if 5 <= len(pictures) <= 200}


if __name__ == "__main__":
    main()
