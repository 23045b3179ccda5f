"""Put what a picture shows into words: captions to train on, and queries with known answers to judge by.

Captions and queries share a vocabulary, as a small model cannot know a word it never met, but queries are
worded as people type them. It hides the templates and what the categories and backgrounds are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from imret.demo.draw import Attributes, subject_named

# Singular and plural of what anyone calls a member; the folder's name is a third word for it. "animalia" is
# the left-over group: a sea animal with a folder of its own, such as an octopus, goes by that one's word.
CATEGORY_WORDS: dict[str, tuple[str, str]] = {
    "amphibia": ("amphibian", "amphibians"),
    "animalia": ("sea animal", "sea animals"),
    "arachnida": ("arachnid", "arachnids"),
    "aves": ("bird", "birds"),
    "fungi": ("fungus", "fungi"),
    "insecta": ("insect", "insects"),
    "mammalia": ("mammal", "mammals"),
    "mollusca": ("mollusk", "mollusks"),
    "plantae": ("plant", "plants"),
    "reptilia": ("reptile", "reptiles"),
}
PLACES: dict[str, tuple[str, ...]] = {
    "forest": ("in a forest", "in the forest", "in the woods"),
    "meadow": ("in a meadow", "on a green meadow", "in the grass"),
    "desert": ("on sand", "in the desert"),
    "sea": ("in the sea", "under water"),
    "night": ("at night", "under the stars"),
    "snow": ("in the snow", "in winter"),
    "plain": ("on a plain background", "in a studio"),
}
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_STYLES = ("{}", "{}", "{}.", "a photo of {}", "a photo of {}.", "a picture of {}", "a close-up photo of {}")


@dataclass(frozen=True)
class AttributeQuery:
    """A query and what a picture must show to answer it.

    Attributes:
        text: What a person would type.
        needs: Column of attributes.csv -> required value; all must hold.
    """

    text: str
    needs: Mapping[str, str] = field(hash=False)

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Say whether a picture, given as its row of attributes.csv, answers the query."""
        return all(attributes[column] == value for column, value in self.needs.items())


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeio" else f"a {words}"


def _phrase(
    shown: Attributes,
    noun: tuple[str, str],
    *,
    color: bool = False,
    size: bool = False,
    pattern: bool = False,
) -> str:
    """Return such as "three small red mushrooms with white spots", with the attributes asked for."""
    words = [_NUMBERS[shown.count]] if shown.count > 1 else []
    if size and shown.size != "medium":
        words.append(shown.size)
    if color:
        words.append(shown.color)
    words.append(noun[shown.count > 1])
    if pattern and shown.pattern != "plain":
        words.append(f"with {shown.pattern_color} {shown.pattern}")
    text = " ".join(words)
    return text if shown.count > 1 else _with_article(text)


def captions(shown: Attributes, rng: Random) -> list[str]:
    """Return six captions of one picture, from all that it shows to the bare name of its category.

    Args:
        shown: What the picture shows.
        rng: Chooses wordings and which attributes are told; what is told is always true.
    """

    def sometimes(share: float) -> bool:
        return rng.random() < share

    subject = subject_named(shown.subject)
    names, kin = (subject.name, subject.plural), CATEGORY_WORDS[shown.category]
    place = f" {rng.choice(PLACES[shown.background])}"
    # From detailed to bare, and in this order for every picture: a batch compares captions of one kind.
    texts = [
        _phrase(shown, names, color=True, size=sometimes(0.5), pattern=True) + place,
        _phrase(shown, names, color=sometimes(0.7), size=sometimes(0.4), pattern=sometimes(0.6))
        + (place if sometimes(0.5) else ""),
        _phrase(shown, kin, color=sometimes(0.7), pattern=sometimes(0.5)) + (place if sometimes(0.4) else ""),
        _phrase(shown, names),
        _phrase(shown, kin),
        shown.category,
    ]
    return [rng.choice(_STYLES).format(text) for text in texts]


def category_queries() -> dict[str, str]:
    """Return the query that asks for each category, by the category's folder name."""
    return {category: singular for category, (singular, _) in CATEGORY_WORDS.items()}


def attribute_queries() -> list[AttributeQuery]:
    """Return queries about colour, pattern, number and place, each with what a picture must show.

    They are the same for every data set; a small test set may hold no answer to some of them.
    """
    return [
        AttributeQuery(text, dict(zip(columns.split(), values.split(), strict=True)))
        for columns, queries in _ATTRIBUTE_QUERIES.items()
        for text, values in queries
    ]


# columns of attributes.csv -> (query, the value that each of those columns must have)
_ATTRIBUTE_QUERIES: dict[str, tuple[tuple[str, str], ...]] = {
    "color subject": (
        ("red mushroom", "red mushroom"),
        ("blue butterfly", "blue butterfly"),
        ("green frog", "green frog"),
        ("yellow fish", "yellow fish"),
        ("black cat", "black cat"),
        ("white rabbit", "white rabbit"),
        ("purple octopus", "purple octopus"),
        ("pink flamingo", "pink flamingo"),
        ("brown rabbit", "brown rabbit"),
        ("orange jellyfish", "orange jellyfish"),
        ("blue mushroom", "blue mushroom"),
        ("red dragonfly", "red dragonfly"),
        ("yellow flower", "yellow flower"),
        ("black spider", "black spider"),
    ),
    "color category": (
        ("red bird", "red aves"),
        ("yellow plant", "yellow plantae"),
        ("blue reptile", "blue reptilia"),
        ("pink mammal", "pink mammalia"),
        ("white fungus", "white fungi"),
        ("purple insect", "purple insecta"),
        ("green amphibian", "green amphibia"),
        ("orange arachnid", "orange arachnida"),
    ),
    "subject pattern": (
        ("mushroom with spots", "mushroom spots"),
        ("fish with stripes", "fish stripes"),
        ("butterfly with spots", "butterfly spots"),
        ("snail with stripes", "snail stripes"),
        ("turtle with spots", "turtle spots"),
    ),
    "category pattern pattern_color": (
        ("mammal with black stripes", "mammalia stripes black"),
        ("bird with white spots", "aves spots white"),
        ("fungus with white spots", "fungi spots white"),
        ("insect with yellow stripes", "insecta stripes yellow"),
    ),
    "count subject": (
        ("two flamingos", "2 flamingo"),
        ("two cats", "2 cat"),
        ("two jellyfish", "2 jellyfish"),
        ("three butterflies", "3 butterfly"),
    ),
    "count category": (
        ("three fungi", "3 fungi"),
        ("two insects", "2 insecta"),
        ("four birds", "4 aves"),
        ("three mollusks", "3 mollusca"),
    ),
    "subject background": (
        ("cactus in the desert", "cactus desert"),
        ("turtle in the sea", "turtle sea"),
        ("cat at night", "cat night"),
        ("flower in the snow", "flower snow"),
        ("snail in the forest", "snail forest"),
    ),
    "category background": (
        ("mammal in the snow", "mammalia snow"),
        ("bird at night", "aves night"),
        ("insect in a meadow", "insecta meadow"),
        ("reptile on sand", "reptilia desert"),
    ),
    "color subject pattern pattern_color": (
        ("a red mushroom with white spots", "red mushroom spots white"),
        ("a green lizard with yellow stripes", "green lizard stripes yellow"),
    ),
    "color category pattern pattern_color": (
        ("a yellow bird with black stripes", "yellow aves stripes black"),
        ("a red fungus with white spots", "red fungi spots white"),
    ),
    "count color subject": (("two blue butterflies", "2 blue butterfly"),),
    "count color subject background": (("three yellow fish in the sea", "3 yellow fish sea"),),
    "color category background": (
        ("a green reptile in the desert", "green reptilia desert"),
        ("a white mammal in the snow", "white mammalia snow"),
        ("a black insect on a plain background", "black insecta plain"),
    ),
    "color subject background": (("an orange fish in the sea", "orange fish sea"),),
}
