"""Find pictures by meaning: the public Python surface of imret.

    import imret

    encoder = imret.Encoder("models/nature")
    with imret.open_store("photos.db") as store:
        imret.ingest(store, [imret.FolderSource("photos")], encoder=encoder)
        query = [imret.Term("a red mushroom"), imret.Term("./grass.jpg", "image", weight=-0.5)]
        for hit in imret.search(store, query, categories=["fungi"], relevant=True):
            print(hit.rank, hit.score, hit.path)
    report = imret.evaluate("data/test", encoder=encoder, baseline=imret.Encoder("ViT-B-32/openai"))
    print(report.models[-1].text_to_image.macro.map)

Everything loads on first use: `import imret` itself loads neither torch nor Qdrant.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any


@functools.cache
def _homes() -> dict[str, str]:
    """Return the module of each public name, as the stub `__init__.pyi` says, which type checkers read."""
    import re
    from pathlib import Path

    stub = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    return {name: module for module, name in re.findall(r"^from (\S+) import (\w+) as", stub, re.MULTILINE)}


def __getattr__(name: str) -> Any:
    """Load a public name from its module the first time it is asked for (PEP 562)."""
    if name == "__all__":
        value: Any = sorted(public for public in _homes() if not public.startswith("_"))
    elif name in _homes():
        value = getattr(importlib.import_module(_homes()[name]), name)
    else:
        raise AttributeError(f"module 'imret' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__"), "__version__"})
