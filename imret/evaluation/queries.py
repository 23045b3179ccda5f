"""What is asked of the models under judgement: sentences for each category, captions, and their embeddings.

Every model of a report is asked in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

Names = Mapping[str, Sequence[str]]
