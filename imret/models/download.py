"""Weights of the Hugging Face Hub: from its cache, or downloaded, or an error within seconds that says why.

The hub is asked once, and given seconds, before huggingface_hub's own code downloads, which tries six times
for each of two names of a file: for minutes, where a network swallows what it is sent. Its cache, its
environment variables and its progress bar apply; its log does not.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imret.errors import ModelError, summary
from imret.escape import quoted
from imret.models.choices import choice_of, gigabytes, smaller_than

# How long the hub may take to answer whether it has a file; the second is for what no timeout ends, such as a
# name server that does not answer.
_ANSWER_S, _AT_MOST_S = 5.0, 8.0
_SPARE_BYTES = 100_000_000  # that a download leaves free

# Of a tokenizer of transformers, the one first that each has.
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json")

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is to be had from the hub.

    Attributes:
        model: Name of the model, for messages.
        repo: Of the hub.
        files: Names that the file may have there, the first that is there is taken.
        beside: Other files that the model needs of that repository: to name them, they are not fetched.
        is_weights: Whether it is the large file, which a person is told of.
    """

    model: str
    repo: str
    files: tuple[str, ...]
    beside: tuple[str, ...] = ()
    is_weights: bool = True


def hub_cache() -> Path:
    """Return the folder that huggingface_hub keeps downloads in (HF_HUB_CACHE, or HF_HOME/hub)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_file(repo: str, files: Sequence[str]) -> Path | None:
    """Return the first of some files that huggingface_hub's cache has, without asking the hub for news.

    A model in use stays what it is, its collections stay valid, and nothing waits for a network.
    """
    from huggingface_hub import try_to_load_from_cache

    for name in files if repo else ():
        path = try_to_load_from_cache(repo, name)
        if isinstance(path, str) and os.path.isfile(path):
            return Path(path).resolve()
    return None


def cached_folder(repo: str, files: Sequence[str]) -> Path | None:
    """Return the folder of the cache that has all of some files of a repository; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    paths = [try_to_load_from_cache(repo, name) for name in files]
    folders = {Path(path).parent for path in paths if isinstance(path, str)}
    return folders.pop() if len(folders) == 1 and all(isinstance(path, str) for path in paths) else None


def fetch(wanted: Wanted, notify: Notify | None = None, *, advice: Callable[[], str] | None = None) -> Path:
    """Return a file of the hub, from the cache or downloaded.

    Args:
        wanted: Which.
        notify: Called with a sentence before a download of weights.
        advice: Called for what that sentence ends with, once it is sure that there is a download.

    Raises:
        ModelError: If the hub cannot be reached or does not have it, if there is no room for it, or if the
            download breaks off for longer than huggingface_hub bears.
    """
    found = cached_file(wanted.repo, wanted.files)
    if found is not None:
        return found
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _unavailable(wanted, "HF_HUB_OFFLINE is set, so that the hub is not asked")
    name, size = _ask_hub(wanted)
    _refuse_full_disk(wanted, size)
    if wanted.is_weights and notify is not None:
        about = f"{gigabytes(size)} " if size else ""
        more = advice() if advice is not None else ""
        notify(f"Downloading {wanted.model}: {about}to {hub_cache()}, once{f'; {more}' if more else ''}")
    return _download(wanted, name)


def advice_for(*, device: Any = "auto", precision: str = "auto") -> Callable[[str], str]:
    """Return what tells of a model that will embed pictures how long that takes here, and what is smaller.

    Args:
        device: As for `imret.Encoder`.
        precision: As for `imret.Encoder`.
    """

    def advice(model: str) -> str:
        from imret.models.speed import advice_before_download  # which imports torch

        return advice_before_download(model, device=device, precision=precision)

    return advice


def smaller_in_words(model: str) -> str:
    """Return the smaller choice for who finds a download too large; empty if there is none."""
    smaller = smaller_than(model)
    return f"Smaller: --model {smaller.name} ({gigabytes(smaller.size_bytes)})" if smaller else ""


# ---- Before --------------------------------------------------------------------------------------------


def _ask_hub(wanted: Wanted) -> tuple[str, int | None]:
    """Return the name of the file that the hub has, and its size in bytes if that is told.

    Raises:
        ModelError: If it does not answer soon, or has no such file.
    """
    outcome: list[tuple[str, int | None] | BaseException] = []

    def ask() -> None:
        try:
            outcome.append(_answer(wanted))
        except BaseException as error:  # told by the thread that waits
            outcome.append(error)

    # In a thread: looking up a name has no time limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_AT_MOST_S)
    if not outcome:
        raise _unavailable(wanted, f"{_host()} does not answer")
    if isinstance(outcome[0], ModelError):
        raise outcome[0]
    if isinstance(outcome[0], BaseException):
        raise _unavailable(wanted, f"{_host()} cannot be reached ({_cause(outcome[0])})") from outcome[0]
    return outcome[0]


def _answer(wanted: Wanted) -> tuple[str, int | None]:
    import huggingface_hub
    from huggingface_hub import get_session, hf_hub_url

    utils: Any = huggingface_hub.utils
    session: Any = get_session()  # of requests or of httpx, as the version of huggingface_hub has it
    for name in wanted.files:
        url = hf_hub_url(wanted.repo, name)
        answer = session.head(url, headers=utils.build_hf_headers(), timeout=_ANSWER_S)
        code = str(answer.headers.get("x-error-code", ""))
        if answer.status_code < 400:
            size = answer.headers.get("x-linked-size") or answer.headers.get("content-length")
            is_redirect = answer.status_code >= 300 and "x-linked-size" not in answer.headers
            return name, None if is_redirect or not size else int(size)
        if answer.status_code != 404 or code not in ("", "EntryNotFound"):
            raise _refused(wanted, int(answer.status_code), code)
    raise ModelError(
        f"Cannot get model '{wanted.model}': the repository {wanted.repo} of the hub has no file "
        f"{' or '.join(wanted.files)}, so it is not one in open_clip's layout."
    )


def _refused(wanted: Wanted, status: int, code: str) -> ModelError:
    """Say what an answer of the hub means that is no file."""
    what = f"Cannot get model '{wanted.model}': "
    if code == "GatedRepo" or status == 403:
        return ModelError(
            f"{what}its authors let in only who has asked them, at {_endpoint()}/{wanted.repo}. "
            "Then show who you are: hf auth login, or HF_TOKEN=..."
        )
    if status in (401, 404):  # the hub answers 401 for a repository that there is not
        return ModelError(
            f"{what}{_host()} has no repository {wanted.repo}, or only for those who show a token "
            "(HF_TOKEN). Is the name right? The models worth choosing from: imret models"
        )
    if status == 429 or status >= 500:
        return _unavailable(wanted, f"{_host()} is out of order or too busy (it answers {status})")
    return ModelError(f"{what}{_host()} answers {status} for {wanted.repo}.")


def _refuse_full_disk(wanted: Wanted, size: int | None) -> None:
    """Refuse a download that has no room, or a folder that cannot be written to.

    Raises:
        ModelError: If so.
    """
    cache = hub_cache()
    folder = cache
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    elsewhere = "or keep models in another folder: HF_HOME=/path/to/folder imret ..."
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ModelError(
            f"Cannot download model '{wanted.model}': '{folder}' is protected from writing. "
            f"Change that, {elsewhere}"
        )
    if size is None:
        return
    free = shutil.disk_usage(folder).free
    if size + _SPARE_BYTES > free:
        raise ModelError(
            f"Cannot download model '{wanted.model}': it takes {gigabytes(size)} in '{cache}', where "
            f"{gigabytes(free)} are free. Make room, {elsewhere}"
            + (f"\n{smaller}" if (smaller := smaller_in_words(wanted.model)) else "")
        )


# ---- The download ----------------------------------------------------------------------------------------


def _download(wanted: Wanted, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        with _without_log():
            return Path(hf_hub_download(wanted.repo, name)).resolve()
    except (
        Exception
    ) as error:  # HTTP, connection and offline errors of two HTTP stacks, OSError for a full disk
        raise ModelError(
            f"The download of model '{wanted.model}' broke off: {_cause(error)}. "
            "It was taken up again several times; run the same command when the network is better."
        ) from error


@contextmanager
def _without_log() -> Iterator[None]:
    """Keep from the terminal what huggingface_hub logs of each try; what came of it is told."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


# ---- What is told ----------------------------------------------------------------------------------------


def _unavailable(wanted: Wanted, why: str) -> ModelError:
    """Return the error for a model that is not here and cannot be had, with how to bring it here."""
    choice = choice_of(wanted.model)
    size = f" ({gigabytes(choice.size_bytes)})" if choice is not None and wanted.is_weights else ""
    again = " without HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in why else ""
    files = " ".join((wanted.files[0], *wanted.beside))
    cache, folder = hub_cache(), f"models--{wanted.repo.replace('/', '--')}"
    return ModelError(
        f"Cannot get model '{wanted.model}'{size}: {why}, and it is not in {cache} (HF_HOME sets that).\n"
        f"With a network, run the same command again{again}. Without one, fetch it where there is one, "
        "and bring it here:\n"
        f"  there:  pip install huggingface_hub  &&  hf download {wanted.repo} {files}\n"
        f"  there:  tar -C ~/.cache/huggingface/hub -cf model.tar {folder}\n"
        f"  here:   mkdir -p {quoted(str(cache))}  &&  tar -C {quoted(str(cache))} -xf model.tar\n"
        "Or name a model folder of this machine: --model PATH"
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _host() -> str:
    return _endpoint().partition("://")[2] or _endpoint()


def _cause(error: BaseException) -> str:
    """Return why something on the network failed, without the numbers and classes around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = summary(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    lower = text.lower()
    if any(sign in lower for sign in ("name or service", "name resolution", "getaddrinfo", "nodename")):
        return "its name cannot be looked up: there is no network"
    if "timed out" in lower or "timeout" in type(error).__name__.lower():
        return "it does not answer"
    return text[0].lower() + text[1:] if text[:2].istitle() else text
