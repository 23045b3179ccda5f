"""What people call a category, and the sentences that ask for it.

Shared by training, which must not use the sentences that it is judged with, and by evaluation. A file of
names may say otherwise than the table here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from imret.datasets.names_csv import name_key
from imret.output.console import announce

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder

# Every name is true of the whole group (a newt is no frog), except where everyday speech has only the
# narrower word. The first is the name a query is made of; the others take turns with it in training.
# CLIP knows common names two to five times better than scientific ones: Parashar et al. (2023), "Prompting
# Scientific Names for Zero-Shot Species Recognition", https://arxiv.org/abs/2310.09929
COMMON_NAMES: dict[str, tuple[str, ...]] = {
    "actinopterygii": ("fish", "ray-finned fish"),
    "amphibia": ("amphibian", "frog or salamander"),
    "animalia": ("animal",),
    "arachnida": ("arachnid", "spider or scorpion"),
    "aves": ("bird",),
    "chromista": ("seaweed or kelp",),
    "fungi": ("mushroom", "fungus"),
    "insecta": ("insect", "bug"),
    "mammalia": ("mammal",),
    "mollusca": ("mollusk", "snail or shellfish"),
    "plantae": ("plant",),
    "protozoa": ("slime mold",),
    "reptilia": ("reptile",),
}

# Averaged to ask for a category. None of them is a training style, so that a score on validation does not
# measure how well a wording was memorised.
EVALUATION_TEMPLATES: tuple[str, ...] = (
    "a photo of the {name}.",
    "a picture showing {}.",
    "one photo of {}, outdoors.",
)


def common_names(category: str, names: Mapping[str, Sequence[str]] | None = None) -> tuple[str, ...]:
    """Return what people call a category: "aves" gives ("bird",); an unknown name is used as words.

    Args:
        category: Name of its folder.
        names: From `read_names`; what is in it comes before what is known here.
    """
    key = name_key(category)
    if names and key in names:
        return tuple(names[key])
    words = " ".join(category.replace("_", " ").split())
    return COMMON_NAMES.get(key) or (words or category,)


def fill(template: str, name: str) -> str:
    """Put a name into a template: `{}` becomes "an owl", `{name}` becomes "owl"."""
    article = "an" if name[:1].lower() in tuple("aeiou") else "a"
    # In one pass: a name may itself hold braces.
    return re.sub(r"\{(name)?\}", lambda slot: name if slot[1] else f"{article} {name}", template)


def evaluation_queries(category: str, names: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return the sentences whose averaged embedding asks for a category; `names` as in `common_names`."""
    return [fill(template, common_names(category, names)[0]) for template in EVALUATION_TEMPLATES]


# CLIP learnt from captions, which are rarely one bare word. Radford et al. (2021), "Learning Transferable
# Visual Models From Natural Language Supervision", section 3.1.4, measured what such frames bring.
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "a close-up photo of a {}.",
    "a photo of the {}.",
    "a photo of one {}.",
    "a photo of many {}.",
)


TEMPLATE_MAX_WORDS = 3


def wordings(query: str, *, template: bool = True) -> list[str]:
    """Return the texts that a text query is encoded as.

    A query of up to three words is put into each of `TEMPLATES`. A longer one is a caption already and is
    taken as it is.
    """
    words = " ".join(query.split())
    if not template or len(words.split()) > TEMPLATE_MAX_WORDS:
        return [words]
    return [frame.format(words) for frame in TEMPLATES]


Names = Mapping[str, Sequence[str]]


# A label of more words is a phrase already; sentences are made around shorter ones.
LABEL_MAX_WORDS = 3


_ARTICLES = ("a", "an", "the")


def label_texts(label: str, names: Names | None = None) -> list[str]:
    """Return the texts whose averaged embedding asks for a label.

    A category that has a name (in `names`, or known to `imret.retrieval.prompts`) and a label of up to three
    words, an article aside, are put into the sentences of `imret.retrieval.prompts.evaluation_queries`. A
    longer label is a phrase already and is taken as it is.
    """
    key = label.strip().lower()
    if key in COMMON_NAMES or (names and key in names):
        return evaluation_queries(label, names)
    words = label.replace("_", " ").split()
    # The sentences bring an article of their own.
    bare = words[1:] if len(words) > 1 and words[0].lower() in _ARTICLES else words
    return [" ".join(words)] if len(bare) > LABEL_MAX_WORDS else evaluation_queries(" ".join(bare), names)


def recorded_names(encoder: QueryEncoder) -> dict[str, tuple[str, ...]]:
    """Return what the categories were called when a model was tuned, where that is not the built-in name.

    A folder that `imret finetune` wrote keeps it in training.json; any other model says nothing of it.
    """
    try:
        training = json.loads((encoder.files.weights.parent / "training.json").read_text(encoding="utf-8"))
        categories = training["data"]["categories"]
        # "names" are all there are; older folders have only the first of them, "called".
        found = {
            name_key(str(category)): tuple(map(str, about.get("names") or [about["called"]]))
            for category, about in categories.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {category: names for category, names in found.items() if names[0] != common_names(category)[0]}


def names_for(encoder: QueryEncoder, given: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return what categories are called: as in the file, else as the model was tuned."""
    pass

    recorded = {key: names for key, names in recorded_names(encoder).items() if key not in given}
    if recorded:
        shown = ", ".join(f"{key} = {names[0]}" for key, names in list(recorded.items())[:5])
        more = f" and {len(recorded) - 5} more" if len(recorded) > 5 else ""
        announce(f"asking by the names that the model was tuned with: {shown}{more} (--names overrides)")
    return {**recorded, **given}
