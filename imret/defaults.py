"""The model and the collection that are meant where none is named."""

from __future__ import annotations

DEFAULT_MODEL = "ViT-H-14/laion2b_s32b_b79k"
DEFAULT_COLLECTION = "photos"
