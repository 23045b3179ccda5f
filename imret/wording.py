"""What people call a category, and the sentences that ask for it.

Shared by training, which must not use the sentences that it is judged with, and by evaluation.
"""

from __future__ import annotations

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


def common_names(category: str) -> tuple[str, ...]:
    """Return what people call a category: "aves" gives ("bird",); an unknown name is used as words."""
    known = COMMON_NAMES.get(category.strip().lower())
    return known or (" ".join(category.replace("_", " ").split()),)


def fill(template: str, name: str) -> str:
    """Put a name into a template: `{}` becomes "an owl", `{name}` becomes "owl"."""
    article = "an" if name[:1].lower() in tuple("aeiou") else "a"
    return template.replace("{name}", name).replace("{}", f"{article} {name}")


def evaluation_queries(category: str) -> list[str]:
    """Return the sentences whose averaged embedding asks for a category."""
    return [fill(template, common_names(category)[0]) for template in EVALUATION_TEMPLATES]
