"""Token counts of a run's texts against the context of its text tower, checked before the first step.

A text that is too long is cut, and what it says past the cut is never learned. Names of categories must fit;
captions are cut and counted; a kind of species text that would be cut is not used, since species could differ
only in what is cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from finetune.data.records import Record
from finetune.data.species import TEXT_KINDS
from imret.errors import DataError
from imret.retrieval.prompts import SEARCH_TEMPLATES, TRAINING_TEMPLATES, common_names, fill


@dataclass(frozen=True)
class TokenLengths:
    """Which texts are too long for the model.

    Attributes:
        context: Tokens that the text tower reads, the first and the last included.
        cut: How many different captions are longer.
        longest: Tokens of the longest of them; 0 if there is none.
        first: Path of the first picture that has one; empty if there is none.
        species_kinds: Kinds of text that name species, of those that some species has and that fit.
        too_long_kinds: Kinds that some species has and that do not fit.
    """

    context: int
    cut: int = 0
    longest: int = 0
    first: str = ""
    species_kinds: tuple[str, ...] = ()
    too_long_kinds: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """Return what a person should know; nothing if everything fits."""
        sentences = []
        if self.cut:
            sentences.append(
                f"{self.cut:,} captions are longer than the {self.context} tokens that the model reads and "
                f"are trained on cut; the longest has {self.longest}, the first is one of {self.first}"
            )
        if self.too_long_kinds:
            sentences.append(
                f"texts of species that are {' or '.join(self.too_long_kinds)} are left out: some are longer "
                f"than the {self.context} tokens that the model reads"
            )
        return sentences


def measure_token_lengths(
    records: Sequence[Record],
    replayed: Sequence[Record],
    count: Callable[[str], int],
    *,
    context: int,
    names: Mapping[str, Sequence[str]] | None = None,
) -> TokenLengths:
    """Count the tokens of every text that training or validation may use.

    Args:
        records: The pictures of categories.
        replayed: Captioned pictures of no category.
        count: Gives the tokens of a text, the first and the last included.
        context: Tokens that the text tower reads.
        names: What categories are called, where it is not what imret.retrieval.prompts says.

    Raises:
        DataError: If the name of a category does not fit in every sentence that names it.
    """
    for category in sorted({record.category for record in records}):
        for name in common_names(category, names):
            n = max(count(fill(template, name)) for template in (*TRAINING_TEMPLATES, *SEARCH_TEMPLATES))
            if n > context:
                shown = name if len(name) <= 60 else name[:59] + "\u2026"
                raise DataError(
                    f"the name {shown!r} of category {category!r} makes sentences of {n} tokens, "
                    f"and the model reads {context}. Give it a shorter one: --names FILE with the line "
                    f"{category},NAME"
                )
    tokens: dict[str, int] = {}
    first = ""
    for record in (*records, *replayed):
        for caption in record.captions:
            if caption not in tokens:
                tokens[caption] = count(caption)
            if tokens[caption] > context:
                first = first or record.path
    too_long = [n for n in tokens.values() if n > context]
    taxa = {record.taxon for record in records if record.taxon is not None}
    known = [kind for kind in TEXT_KINDS if any(taxon.has(kind) for taxon in taxa)]
    fits = {
        kind: all(count(text) <= context for text in {taxon.text(kind) for taxon in taxa}) for kind in known
    }
    return TokenLengths(
        context,
        cut=len(too_long),
        longest=max(too_long, default=0),
        first=first,
        species_kinds=tuple(kind for kind in known if fits[kind]),
        too_long_kinds=tuple(kind for kind in known if not fits[kind]),
    )
