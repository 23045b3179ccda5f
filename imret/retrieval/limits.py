"""Bounds of a search; the others are of the HTTP API: what a server refuses, its client does not ask it."""

from __future__ import annotations

MAX_HITS = 1_000_000_000  # that anybody may ask for, here or of a server: all there are
MAX_LIMIT = 500  # hits of one answer; more are had with `offset`
MAX_DEPTH = 10_000  # offset + limit
MAX_UNIQUE = (
    1_000  # the same where near copies are folded, which looks at two files for each; of groups: hits
)
MAX_TERMS = 16
MAX_TEXT = 2_000  # characters of a term, a category, a condition
MAX_WEIGHT = 1e6  # of a term
MAX_NAME = 100  # characters of a collection's name
MAX_CATEGORIES = 200
MAX_CONDITIONS = 200
MAX_PER_GROUP = 100
MAX_BODY_BYTES = 32_000_000  # of a request, unless a server was told otherwise
MAX_PICTURES_BYTES = 30_000_000  # of the pictures in one; the rest of it needs room, too
