"""Environment variables and folders of imret: everything that is set outside a call.

    read_settings().query_cache       # whether IMRET_QUERY_CACHE leaves the cache of query vectors on

The environment is read when it is asked for, so a program may change it between two calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__version__ = "0.1.0"

# What phones write is decoded by default: JPEGs of 200 megapixels at an eighth, in 20 MB; others of up to 108
# whole, in 1 GB as PNG and in 2 as HEIC.
MAX_PIXELS = 128_000_000


@dataclass(frozen=True)
class Settings:
    """What the environment variables of imret say.

    Attributes:
        db: IMRET_DB: address of the store, for commands that are given none. None where it is not set.
        home: IMRET_HOME: folder of everything that imret keeps by itself, instead of the platform's.
        token: IMRET_TOKEN: the token that `imret serve` asks for.
        roots: IMRET_ROOTS: URLs of buckets, separated by spaces, below which pictures may be fetched.
        viewer: IMRET_VIEWER: command that shows pictures; empty for the system's viewer.
        preview: IMRET_PREVIEW: how thumbnails are shown in the terminal; "auto" judges it.
        debug: IMRET_DEBUG: whether an error shows its traceback.
        use_server: IMRET_SERVER=off turns it off: searches through a running `imret serve`.
        query_cache: IMRET_QUERY_CACHE=off turns it off: query vectors kept on disk.
        light_text: IMRET_LIGHT_TEXT=off turns it off: texts encoded without torch.
        exact_resize: IMRET_RESIZE=exact turns it on: pixels as open_clip's own transform makes them.
        plain_towers: IMRET_TOWERS=plain turns it on: image towers as open_clip builds them.
        max_pixels: IMRET_MAX_PIXELS: as it is set; `pixel_limit` says what it means.
    """

    db: str | None = None
    home: Path | None = None
    token: str | None = None
    roots: tuple[str, ...] = ()
    viewer: str = ""
    preview: str = "auto"
    debug: bool = False
    use_server: bool = True
    query_cache: bool = True
    light_text: bool = True
    exact_resize: bool = False
    plain_towers: bool = False
    max_pixels: str = ""


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return what the environment says now.

    Args:
        environ: Such as os.environ, which is the default.
    """
    env = os.environ if environ is None else environ

    def word(name: str) -> str:
        return env.get(name, "").strip().lower()

    def is_on(name: str) -> bool:
        return word(name) not in ("off", "0", "no", "false")

    home = env.get("IMRET_HOME")
    return Settings(
        db=env.get("IMRET_DB") or None,
        home=Path(home).expanduser() if home else None,
        token=env.get("IMRET_TOKEN") or None,
        roots=tuple(env.get("IMRET_ROOTS", "").split()),
        viewer=env.get("IMRET_VIEWER", "").strip(),
        preview=word("IMRET_PREVIEW") or "auto",
        debug=bool(env.get("IMRET_DEBUG")),
        use_server=is_on("IMRET_SERVER"),
        query_cache=is_on("IMRET_QUERY_CACHE"),
        light_text=is_on("IMRET_LIGHT_TEXT"),
        exact_resize=word("IMRET_RESIZE") == "exact",
        plain_towers=word("IMRET_TOWERS") == "plain",
        max_pixels=env.get("IMRET_MAX_PIXELS", "").strip(),
    )


# Below what is no folder, so that nothing is found or made there: what stands for a folder of a user who has
# no home, as in a container under a number that nobody has, or whose HOME is no absolute path.
NO_HOME = Path(os.devnull, "no-home-folder")


def pixel_limit() -> int | None:
    """Return how many pixels a picture may be decoded to; None where IMRET_MAX_PIXELS is no number.

    Of that variable alone, for each picture asks.
    """
    digits = os.environ.get("IMRET_MAX_PIXELS", "").strip().replace("_", "").replace(",", "")
    if not digits:
        return MAX_PIXELS
    is_number = digits.isascii() and digits.isdecimal() and len(digits) < 20 and int(digits) > 0
    return int(digits) if is_number else None


def set_max_pixels(max_pixels: int) -> Callable[[], None]:
    """Have IMRET_MAX_PIXELS be another in this process and those that it starts; return what undoes that."""
    name, before = "IMRET_MAX_PIXELS", os.environ.get("IMRET_MAX_PIXELS")
    os.environ[name] = str(max_pixels)

    def undo() -> None:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

    return undo


# platformdirs is imported where it is used: a search with IMRET_HOME, --db or a running server needs none.


def cache_dir() -> Path:
    """Return the folder of what can be made again: IMRET_HOME/cache, or the platform's cache folder."""
    if home := read_settings().home:
        return home / "cache"
    import platformdirs

    return _folder_of(lambda: platformdirs.user_cache_dir("imret"))


def store_dir() -> Path:
    """Return the folder of this user's embedded store: IMRET_HOME/store, or below the user data folder."""
    if home := read_settings().home:
        return home / "store"
    import platformdirs

    return _folder_of(lambda: platformdirs.user_data_dir("imret", appauthor=False)) / "store"


def state_dir() -> Path:
    """Return the folder of what a running program leaves for others: IMRET_HOME, or the user state folder."""
    if home := read_settings().home:
        return home
    import platformdirs

    return _folder_of(lambda: platformdirs.user_state_dir("imret", appauthor=False))


def _folder_of(platform: Callable[[], str]) -> Path:
    """Return a folder of the platform's; not one that would be made in whatever folder a command runs."""
    try:
        folder = platform()
    except RuntimeError:  # platformdirs finds no home; an older one returns "~/..."
        return NO_HOME
    return Path(folder) if os.path.isabs(folder) else NO_HOME
