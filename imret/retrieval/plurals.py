"""The other number of an English noun, by a few rules and a short table.

Names are nouns that people give to folders, so the rules are generous where they make a word that nobody
writes ("vulpe" of "vulpes"), and a table holds back where they would make another word ("new" of "news").
Other languages' plurals are not known here: a name is matched as it is written, or in a second name.
"""

from __future__ import annotations

# One and many. A word that ends in one of `_ENDINGS` goes like it ("dormouse", "jellyfish").
_IRREGULAR: tuple[tuple[str, str], ...] = (
    ("man", "men"),
    ("woman", "women"),
    ("child", "children"),
    ("person", "people"),
    ("foot", "feet"),
    ("tooth", "teeth"),
    ("mouse", "mice"),
    ("goose", "geese"),
    ("ox", "oxen"),
    ("fungus", "fungi"),
    ("cactus", "cacti"),
    ("octopus", "octopi"),
    ("hippopotamus", "hippopotami"),
    ("alga", "algae"),
    ("larva", "larvae"),
    ("pupa", "pupae"),
    ("nebula", "nebulae"),
    ("leaf", "leaves"),
    ("wolf", "wolves"),
    ("calf", "calves"),
    ("elf", "elves"),
    ("half", "halves"),
    ("hoof", "hooves"),
    ("knife", "knives"),
    ("loaf", "loaves"),
    ("scarf", "scarves"),
    ("shelf", "shelves"),
    ("thief", "thieves"),
    ("wife", "wives"),
)
_ENDINGS = {"mouse": "mice", "woman": "women", "child": "children", "tooth": "teeth"}

# Words that are both. What ends in -fish is, too, and has a plural in -es besides.
_SAME = """
    bison carp chromista cod deer elk fungi moose offspring plankton salmon series sheep shrimp
    species squid swine trout tuna
"""

# Not plurals, or not of a word that means one of them.
_NOT_PLURAL = """
    across always arms aves binoculars canvas christmas clothes glasses goods gymnastics
    headquarters jeans lens mars mathematics means news pants physics politics scissors series
    shorts species sports texas thanks this trousers yes
"""

_SHORTEST = 3  # letters of a word that has another number: "TV", "us"


def plurals_of(word: str) -> tuple[str, ...]:
    """Return the ways the plural of a noun may be written, the usual first: "bird" gives ("birds",).

    Args:
        word: One word, casefolded. A plural, a word of fewer than three letters, and one that does not end
            in a letter a to z have none.
    """
    known = tuple(many for one, many in _IRREGULAR if word == one)
    if not known and (word in _SAME.split() or len(word) < _SHORTEST or not "a" <= word[-1] <= "z"):
        return ()
    known = known or tuple(word[: -len(one)] + many for one, many in _ENDINGS.items() if word.endswith(one))
    if known and not word.endswith(("us", "a", "f")):  # "octopuses", "larvas" and "scarfs" are written, too
        return known
    return (*known, *_regular(word))


def singulars_of(word: str) -> tuple[str, ...]:
    """Return the words that a word may be the plural of: "butterflies" gives ("butterfly", "butterflie").

    Args:
        word: One word, casefolded.
    """
    known = tuple(one for one, many in _IRREGULAR if word == many)
    if not known and (word in _NOT_PLURAL.split() or len(word) <= _SHORTEST):
        return ()
    known = known or tuple(word[: -len(many)] + one for one, many in _ENDINGS.items() if word.endswith(many))
    if known or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return known
    stems = [word[:-1]]
    if word.endswith("es"):
        stems.append(word[:-2])
    if word.endswith("ies"):
        stems.insert(0, f"{word[:-3]}y")
    return tuple(stem for stem in stems if len(stem) >= _SHORTEST and word in _regular(stem))


def _regular(word: str) -> tuple[str, ...]:
    if word.endswith("fish"):
        return (f"{word}es",)
    if word.endswith("y") and len(word) > 1 and word[-2] not in "aeiou":
        return (f"{word[:-1]}ies",)
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return (f"{word}es",)
    if word.endswith("o") and word[-2] not in "aeiou":
        return (f"{word}es", f"{word}s")  # "tomatoes", "photos"
    return (f"{word}s",)
