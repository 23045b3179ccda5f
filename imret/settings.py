"""Environment variables that turn a fast way off, so that its result can be compared with the plain one."""

from __future__ import annotations

import os


def is_off(variable: str) -> bool:
    """Whether an environment variable says off, 0, no or false."""
    return os.environ.get(variable, "").strip().lower() in ("off", "0", "no", "false")


def wants(variable: str, way: str) -> bool:
    """Whether an environment variable names this way of doing it."""
    return os.environ.get(variable, "").strip().lower() == way
