"""Sentences made of names: what people call a category, and the templates that a name is put into.

Queries, and so the evaluation, which judges the sentences that queries are asked in, have a set of templates;
training has another, and a baseline candidates to choose from. Training must not use the sentences that it is
judged with. In a template `{}` takes a name with its article and `{name}` the bare name. A file of names may
say otherwise than the table of names here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from imret.datasets.names_csv import name_key
from imret.retrieval.names import ARTICLES

if TYPE_CHECKING:
    from imret.models.encoder import QueryEncoder
    from imret.retrieval.category_names import CategoryNames

Names: TypeAlias = Mapping[str, Sequence[str]]

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

# What a query of few words, and the name of a category, are put into, to be averaged. None of them is a
# training template, so that a score on validation does not measure how well a wording was memorised. CLIP
# learnt from captions, which are rarely one bare word. Radford et al. (2021), "Learning Transferable Visual
# Models From Natural Language Supervision", section 3.1.4, measured what such templates bring.
SEARCH_TEMPLATES: tuple[str, ...] = (
    "a photo of a {name}.",
    "a picture of a {name}.",
    "a close-up photo of a {name}.",
    "a photo of the {name}.",
    "a photo of one {name}.",
    "a photo of many {name}.",
)

# What training takes turns with. One template serves a whole batch: if they differed within it, a model could
# tell pictures of one category apart by wording, and would be pushed to.
TRAINING_TEMPLATES: tuple[str, ...] = (
    "a photograph of {}",
    "{name}",
    "a snapshot of {}",
    "{}",
    "a close-up of {}",
    "a photo of {} in nature",
    "an image of the {name}",
    "this is {}",
)

# What the baseline of tuned prompts chooses from, besides those of queries.
CANDIDATE_TEMPLATES: tuple[str, ...] = (
    "{name}",
    "a photo of {}",
    "a photo of {} in the wild",
    "a close-up photo of {}",
    "a nature photo of {}",
    "a photo of {}, a kind of living thing",
    "wildlife photography of {}",
    "an observation of {}",
)

# A text of more words is a caption or a phrase already, and is taken as it is.
TEMPLATE_MAX_WORDS = 3


def article_of(name: str) -> str:
    """Return "a" or "an", by the first letter of a name."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def fill(template: str, name: str) -> str:
    """Put a name into a template: `{}` becomes "an owl", `{name}` becomes "owl"."""
    article = article_of(name)
    # In one pass: a name may itself hold braces.
    return re.sub(r"\{(name)?\}", lambda slot: name if slot[1] else f"{article} {name}", template)


def search_prompts(query: str, *, template: bool = True, names: CategoryNames | None = None) -> list[str]:
    """Return the texts that a text query is encoded as.

    The name of a category, whichever of its names it is, is asked for by the first, as in
    `evaluation_queries`. Of any other text the names of folders give way to those that people use; then a
    query of up to three words is put into each of `SEARCH_TEMPLATES`, and a longer one taken as it is.

    Args:
        query: What was typed.
        template: False for that alone.
        names: What categories are called; None to take every name as it is.
    """
    words = " ".join(query.split())
    if not template:
        return [words]
    if names is not None:
        called = names.first_name(words)
        if called is not None:
            return _sentences(called)
        words = names.replaced(words)
    return [words] if len(words.split()) > TEMPLATE_MAX_WORDS else _sentences(words)


def evaluation_queries(category: str, names: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return the sentences whose averaged embedding asks for a category: those that a search for it asks.

    Args:
        category: Name of its folder; a name of more than three words that nobody gave another is a phrase
            already, and is taken as it is.
        names: As in `common_names`.
    """
    called = common_names(category, names)[0]
    key = name_key(category)
    return _sentences(called) if key in COMMON_NAMES or (names and key in names) else search_prompts(called)


def label_texts(label: str, names: Names | None = None) -> list[str]:
    """Return the texts whose averaged embedding asks for a label.

    A label is a category or words, which are asked for as such, an article aside.
    """
    key = name_key(label)
    words = label.replace("_", " ").split()
    has_article = len(words) > 1 and words[0].lower() in ARTICLES
    if key in COMMON_NAMES or (names and key in names) or not has_article:
        return evaluation_queries(label, names)
    # The sentences bring an article of their own.
    bare = evaluation_queries(" ".join(words[1:]), names)
    return bare if len(bare) > 1 else [" ".join(words)]


def _sentences(name: str) -> list[str]:
    return [fill(template, name) for template in SEARCH_TEMPLATES]


# ---- Names -------------------------------------------------------------------------------------


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


def recorded_names(encoder: QueryEncoder) -> dict[str, tuple[str, ...]]:
    """Return what the categories were called when a model was tuned, where that is not the built-in name.

    A folder that `imret finetune` wrote keeps it in training.json; any other model says nothing of it.
    """
    try:
        categories = encoder.files.training_record["data"]["categories"]
        # "names" are all there are; older folders have only the first of them, "called".
        recorded = {
            name_key(str(category)): tuple(map(str, about.get("names") or [about["called"]]))
            for category, about in categories.items()
        }
    except (KeyError, TypeError, AttributeError, IndexError):
        return {}
    return {category: names for category, names in recorded.items() if names[0] != common_names(category)[0]}


def resolve_names(
    encoder: QueryEncoder, given: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return what categories are called: as given, else as the model was tuned.

    Returns:
        All names, and those of them that the model brings.
    """
    recorded = {key: names for key, names in recorded_names(encoder).items() if key not in given}
    return {**recorded, **given}, recorded
