"""What species a picture shows, and the texts that say so, from the plain to the taxonomic.

The kinds of text are those of BioCLIP: Stevens et al. (2024), "BioCLIP: A Vision Foundation Model for the
Tree of Life", https://arxiv.org/abs/2311.18803. Knows nothing of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imret.retrieval.prompts import fill

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
TEXT_KINDS = ("common", "scientific", "taxonomic", "scientific+common", "taxonomic+common")


@dataclass(frozen=True, slots=True)
class Taxon:
    """A species, as far as it is named.

    Attributes:
        species: Scientific name, genus first; empty if unknown.
        common_name: What people call it; empty if unknown. One of the two is known.
        ranks: Names of the ranks above the species, from the kingdom down, those that are known.
    """

    species: str
    common_name: str
    ranks: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What two pictures share if they show the same species."""
        return (self.species or self.common_name).lower()

    def has(self, kind: str) -> bool:
        """Whether all that a kind of text names is known."""
        return (
            bool(self.common_name or "common" not in kind)
            and bool(self.species or kind == "common")
            and bool(self.ranks or "taxonomic" not in kind)
        )

    def text(self, kind: str) -> str:
        """Return a text of one of TEXT_KINDS; what is not known is left out of it."""
        if not self.species or (kind == "common" and self.common_name):
            return fill("a photo of {}", self.common_name)
        name = self.species
        if "taxonomic" in kind and self.ranks:
            *above, last = self.ranks
            # The genus is the first word of the species' name and is not said twice.
            head = above if name.lower().startswith(f"{last.lower()} ") else self.ranks
            name = " ".join((*head, name))
        if "+common" in kind and self.common_name:
            name += f" with common name {self.common_name}"
        return f"a photo of {name}"


def read_taxon(row: Mapping[str, str]) -> Taxon | None:
    """Return the species that the columns species, common_name and the ranks name; None without one.

    A species that is one word is taken for the second half of its name, if the genus is known.
    """
    species, common_name = row.get("species", ""), row.get("common_name", "")
    if not (species or common_name):
        return None
    genus = row.get("genus", "")
    if species and genus and " " not in species:
        species = f"{genus} {species}"
    return Taxon(species, common_name, tuple(row[rank] for rank in RANKS if row.get(rank)))
