"""What imret calls its versions on a Qdrant server: light, for whoever only asks which are there."""

from __future__ import annotations

import re

_VERSION = re.compile(r"[0-9a-f]{16}(-[1-9][0-9]*)?")


def is_version(physical: str) -> bool:
    """Whether a collection of Qdrant's is called as only imret's versions are."""
    return bool(_VERSION.fullmatch(physical.rpartition(".")[2]))
