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

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imret.errors import (
        DataError,
        ImageError,
        ImretError,
        ModelError,
        ModelMismatch,
        StoreError,
        StoreLocked,
        StoreUnavailable,
    )
    from imret.evaluation.evaluate import evaluate
    from imret.evaluation.index_error import evaluate_collection
    from imret.models.encoder import Encoder
    from imret.models.lazy_encoder import CachedEncoder
    from imret.retrieval.classify import Classification, Prediction, classify
    from imret.retrieval.filters import make_filter
    from imret.retrieval.query import Term
    from imret.retrieval.results import Facet, Hit
    from imret.retrieval.search import facets, search
    from imret.store import Collection, Filter, Ids, Match, Range, Store, open_store
    from imret.store.parquet import export_collection, import_collection


_HOME = {
    "CachedEncoder": "imret.models.lazy_encoder",
    "Classification": "imret.retrieval.classify",
    "Prediction": "imret.retrieval.classify",
    "classify": "imret.retrieval.classify",
    "Encoder": "imret.models.encoder",
    "evaluate": "imret.evaluation.evaluate",
    "evaluate_collection": "imret.evaluation.index_error",
    "Facet": "imret.retrieval.results",
    "facets": "imret.retrieval.search",
    "Hit": "imret.retrieval.results",
    "search": "imret.retrieval.search",
    "Term": "imret.retrieval.query",
    "make_filter": "imret.retrieval.filters",
    "Collection": "imret.store",
    "Filter": "imret.store",
    "Ids": "imret.store",
    "Match": "imret.store",
    "Range": "imret.store",
    "Store": "imret.store",
    "export_collection": "imret.store.parquet",
    "import_collection": "imret.store.parquet",
    "open_store": "imret.store",
    "ImretError": "imret.errors",
    "ImageError": "imret.errors",
    "ModelError": "imret.errors",
    "ModelMismatch": "imret.errors",
    "StoreError": "imret.errors",
    "StoreUnavailable": "imret.errors",
    "StoreLocked": "imret.errors",
    "DataError": "imret.errors",
}

# Of a package that imret does not import; loaded by name, as its command is.
_HOME.update({"FolderSource": "ingest.sources", "ingest": "ingest.pipeline"})

__all__ = [
    "CachedEncoder",
    "Classification",
    "Collection",
    "DataError",
    "Encoder",
    "Facet",
    "Filter",
    "FolderSource",
    "Hit",
    "Ids",
    "ImageError",
    "ImretError",
    "Match",
    "ModelError",
    "ModelMismatch",
    "Prediction",
    "Range",
    "Store",
    "StoreError",
    "StoreLocked",
    "StoreUnavailable",
    "Term",
    "classify",
    "evaluate",
    "evaluate_collection",
    "export_collection",
    "facets",
    "import_collection",
    "ingest",
    "make_filter",
    "open_store",
    "search",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module the first time it is asked for (PEP 562)."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'imret' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
