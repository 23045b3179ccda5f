"""Model names to files on disk: architecture, preprocessing, weights, and the fingerprint of the three.

Names are open_clip's. Downloads run open_clip's and huggingface_hub's own code, so their cache, environment
variables and progress bars apply. Nothing here reads a tensor, or imports torch for a model that is on disk:
what only open_clip knows of a name is asked once and kept. `imret.models.clip` turns the files into a module.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from imret.defaults import DEFAULT_MODEL
from imret.errors import ModelError, summary
from imret.files import irregular, write_atomically
from imret.images.preprocess import parse_preprocess
from imret.models.choices import CHOICES, choice_of
from imret.models.configuration import checked_model_cfg, read_config
from imret.models.download import TOKENIZER_FILES, Wanted, cached_file, fetch, smaller_in_words
from imret.models.fingerprint import ModelFiles
from imret.models.published import CONFIG_NAME, read_as_published
from imret.models.safetensors_map import INDEX_ENDING
from imret.models.text_files import LOCAL_PREFIX
from imret.settings import cache_dir

HUB_PREFIX = "hf-hub:"
CHECKPOINT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})(\.\w+)")  # as transformers calls the files of one checkpoint
_HUB_NAME = re.compile(
    r"(?:(?:https?://)?(?:huggingface\.co|hf\.co)/|hf[-_]?(?:hub)?:/*)?([\w.-]+/[\w.-]+)(?:/.*)?",
    re.IGNORECASE,
)

# What open_clip looks for in a model folder, first found first taken.
_FOLDER_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)

# What a hub repository of open_clip's calls its weights, first found first taken (open_clip.constants, which
# cannot be read without importing torch).
_HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def resolve_model(
    name: str | os.PathLike[str],
    *,
    arch: str | None = None,
    notify: Callable[[str], None] | None = None,
    advice: Callable[[str], str] | None = None,
) -> ModelFiles:
    """Find a model's files by name, downloading them on first use.

    A name is one of: a short one of `imret.models.choices`, a folder in open_clip's layout (`PATH` or
    `local-dir:PATH`), a checkpoint file (`PATH` with `arch`, or `ARCH:PATH`), `hf-hub:ORG/REPO`, or
    `ARCH/TAG` of open_clip's list. What exists on disk wins over a tag of the same spelling; not over a short
    name, beside which a folder is `./small`.

    Args:
        name: The model.
        arch: open_clip architecture of a checkpoint file; allowed only with one. `ARCH/TAG` says that it is
            like the weights of that tag; asked for where an architecture's weights differ.
        notify: Called with a sentence before a download starts, the place to tell a person about 4 GB; and
            where a checkpoint file could be read in another way.
        advice: Called with the model's whole name for what that sentence ends with.

    Raises:
        ModelError: If the name is unknown, the folder incomplete, or the hub cannot be reached.
    """
    text = os.fspath(name)
    if not text:
        raise ModelError(f"The model name is empty. Name a model folder, or for example {DEFAULT_MODEL}.")
    if text in CHOICES:
        _refuse_arch(text, arch)
        if notify is not None and os.path.isfile(os.path.join(text, CONFIG_NAME)):
            notify(f"model {text} is {CHOICES[text].model}; the folder of that name here is --model ./{text}")
        text = CHOICES[text].model
    if text.startswith(HUB_PREFIX):
        _refuse_arch(text, arch)
        return _from_hub(text, notify, advice)
    if text.startswith(LOCAL_PREFIX):
        _refuse_arch(text, arch)
        return _from_folder(Path(text[len(LOCAL_PREFIX) :]))
    path = Path(os.path.expanduser(text))
    if os.path.isdir(path):  # unlike Path's own, it takes whatever a name may be
        _refuse_arch(text, arch)
        return _from_folder(path)
    if os.path.isfile(path):
        return _from_checkpoint(path, arch, notify)
    prefix, colon, rest = text.partition(":")
    if colon and arch is None and os.path.isfile(os.path.expanduser(rest)):
        return _from_checkpoint(Path(os.path.expanduser(rest)), prefix, notify, is_id=True)
    for named in (path, Path(os.path.expanduser(rest))) if colon else (path,):
        if os.path.exists(named) and not os.path.isdir(named):
            _regular(named)
    if "/" not in text and (meant := difflib.get_close_matches(text.lower(), CHOICES, n=1, cutoff=0.75)):
        # Before open_clip is imported; its architectures are not called like that.
        raise ModelError(
            f"Unknown model '{text}'. Did you mean --model {meant[0]}? That is {CHOICES[meant[0]].model}; "
            "imret models lists the others."
        )
    if _looks_like_path(text):
        raise ModelError(
            f"Model '{text}' was not found: no such folder or file. Where it is now: --model FOLDER"
        )
    _refuse_arch(text, arch)
    return _from_tag(text, notify, advice)


def check_name(name: str, *, arch: str | None = None) -> None:
    """Refuse what can be seen to be no model without a download and without importing open_clip.

    Args:
        name: As for `resolve_model`.
        arch: As for `resolve_model`.

    Raises:
        ModelError: If it is a folder or a file that is not there or holds no model, or a misspelt short name.
    """
    if name not in CHOICES and not name.startswith(HUB_PREFIX) and (is_path(name) or "/" not in name):
        resolve_model(name, arch=arch)


def fetch_weights(name: str, notify: Callable[[str], None]) -> None:
    """Download a model now, if it is of a kind that can be without open_clip, and not here yet.

    Args:
        name: As for `resolve_model`, which does it for all.
        notify: Called with a sentence before a download starts.

    Raises:
        ModelError: If it cannot be had.
    """
    if os.path.exists(os.path.expanduser(name)) and name not in CHOICES:
        return
    if (choice := choice_of(name)) is not None:
        _fetch(choice.model, choice.repo, "", notify, smaller_in_words)
    elif name.startswith(HUB_PREFIX):
        _fetch(name, name[len(HUB_PREFIX) :], "", notify, smaller_in_words)


def is_path(name: str) -> bool:
    """Whether a model's name is one of a folder or a file, not of something that can be downloaded."""
    path = name.removeprefix(LOCAL_PREFIX)
    if path != name or _looks_like_path(name) or os.path.exists(os.path.expanduser(name)):
        return True
    return name.lower().endswith(CHECKPOINT_SUFFIXES) or Path(name.partition(":")[2]).is_absolute()


def _refuse_arch(name: str, arch: str | None) -> None:
    if arch is not None:
        raise ModelError(
            f"Architecture '{arch}' was given with '{name}', which brings its own. "
            "Give an architecture only with a checkpoint file."
        )


def _looks_like_path(name: str) -> bool:
    is_file = name.lower().endswith((*CHECKPOINT_SUFFIXES, INDEX_ENDING))
    return name.startswith((".", "/", "~", os.sep)) or is_file


# ---- Folders and files -------------------------------------------------------------------------


def _from_folder(folder: Path) -> ModelFiles:
    folder = Path(os.path.expanduser(folder)).absolute()
    if not os.path.isdir(folder):
        raise ModelError(f"Model folder '{folder}' was not found.")
    config = read_config(folder / CONFIG_NAME)
    weights = _weights_in(folder)
    model_cfg = checked_model_cfg(config.get("model_cfg"), str(folder / CONFIG_NAME))
    return ModelFiles(
        model_id=str(folder),
        model_cfg=model_cfg,
        preprocess=parse_preprocess(config.get("preprocess_cfg") or {}, model_cfg, str(folder / CONFIG_NAME)),
        weights=weights,
        tokenizer=f"{LOCAL_PREFIX}{folder}",
    )


def _weights_in(folder: Path) -> Path:
    for name in _FOLDER_WEIGHTS:
        if (folder / name).exists():
            return _regular(folder / name).resolve()
    # Not open_clip's: the same names of what was saved in several files. The index is beside them, where a
    # link that is resolved is not.
    for name in _FOLDER_WEIGHTS:
        if (folder / (name + INDEX_ENDING)).exists():
            return _regular(folder / (name + INDEX_ENDING))
    # As open_clip: any other checkpoint, safetensors first, then by name.
    if indexes := sorted(folder.glob(f"*{INDEX_ENDING}")):
        return _regular(indexes[0])
    others = [path for path in folder.iterdir() if path.suffix in CHECKPOINT_SUFFIXES]
    if not others:
        raise ModelError(
            f"Model folder '{folder}' has {CONFIG_NAME} but no weights: expected {_FOLDER_WEIGHTS[0]}."
        )
    first = min(others, key=lambda path: (path.suffix != ".safetensors", path.name))
    _refuse_shard(first)
    return _regular(first).resolve()


def _refuse_shard(path: Path) -> None:
    """Refuse one file of several that a checkpoint is in, as long as nothing names the others."""
    if found := _SHARD.fullmatch(path.name):
        index = path.with_name(f"{found[1]}{found[3]}{INDEX_ENDING}")
        raise ModelError(
            f"'{path}' is one of {int(found[2])} files of a sharded checkpoint. "
            + (
                f"Name its index: '{index}'."
                if index.is_file()
                else f"Put the index beside it ('{index.name}'), which names them all, and the other files."
            )
        )


def _regular(path: Path) -> Path:
    """Refuse what is no file: to read a pipe or a device may take for ever."""
    if fault := irregular(path):
        raise ModelError(f"'{path}' holds no weights: it is {fault}, not a file.")
    return path


def _from_checkpoint(
    path: Path, arch: str | None, notify: Callable[[str], None] | None, *, is_id: bool = False
) -> ModelFiles:
    path = path.absolute()
    _refuse_shard(path)
    is_index = path.name.endswith(INDEX_ENDING)
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES and not is_index:
        raise ModelError(
            f"'{path}' is not a checkpoint: expected a file ending in {', '.join(CHECKPOINT_SUFFIXES)}."
        )
    if arch is None:
        raise ModelError(
            f"Checkpoint '{path}' does not say its architecture. Name it with --arch, for example "
            f"--arch ViT-B-32, or put {CONFIG_NAME} beside it and pass the folder."
        )
    known, tag, model_cfg, tags = _published_of(arch)
    if tag:
        tags = {tag: tags[tag]}
    published_cfg, preprocess = read_as_published(
        known, model_cfg, tags, path, notify=None if tag else notify, is_id=is_id
    )
    files = ModelFiles(
        model_id=f"{known}/{tag}:{path}" if tag else f"{known}:{path}",
        model_cfg=published_cfg,
        preprocess=preprocess,
        weights=path if is_index else path.resolve(),  # its files lie beside it, not beside what it links to
        tokenizer=known,
    )
    default = replace(files, model_cfg=model_cfg, preprocess=parse_preprocess({}, model_cfg, known))
    return files if tag or default == files else replace(files, by_default=default)


def _published_of(arch: str) -> tuple[str, str, dict[str, Any], dict[str, dict[str, Any]]]:
    """Return an architecture's name, the tag that was given with it, its configuration, and all tags of it.

    Raises:
        ModelError: If there is no such architecture or tag.
    """
    known, tag = arch.replace("/", "-"), ""
    entry = _ask_once("published", known, lambda: _published(known))
    if entry is None and "/" in arch:
        head, _, tag = arch.rpartition("/")
        known, tag = head.replace("/", "-"), tag.lower().replace("-", "_")  # as open_clip reads it
        entry = _ask_once("published", known, lambda: _published(known))
    if entry is None:
        _architecture(arch)
        raise AssertionError("unreachable")
    if tag and tag not in entry["tags"]:
        raise _unknown_tag(known, tag)
    return known, tag, checked_model_cfg(entry["model_cfg"], known), entry["tags"]


def _published(known: str) -> dict[str, Any] | None:
    """Return what open_clip says of an architecture and of all weights that it lists for it."""
    from open_clip import pretrained

    model_cfg = _model_config(known)
    if model_cfg is None:
        return None
    tags = pretrained.list_pretrained_tags_by_model(known)
    return {
        "model_cfg": model_cfg,
        "tags": {tag: dict(pretrained.get_pretrained_cfg(known, tag)) for tag in tags},
    }


# ---- The hub and open_clip's tags --------------------------------------------------------------


def _from_tag(
    name: str, notify: Callable[[str], None] | None, advice: Callable[[str], str] | None
) -> ModelFiles:
    arch, slash, tag = name.rpartition("/")
    if not slash:
        from open_clip import pretrained

        known, _ = _architecture(name)
        tags = pretrained.list_pretrained_tags_by_model(known)
        raise ModelError(
            f"Model '{name}' names an architecture but no weights. "
            + (f"Add a tag: {', '.join(f'{known}/{tag}' for tag in tags)}." if tags else "It has no tags.")
        )
    known, choice = arch.replace("/", "-"), choice_of(name)
    if choice is not None:  # before open_clip is asked, which is imported for that
        _fetch(name, choice.repo, "", notify, advice)
    entry = _ask_once("tag", f"{known}/{tag}", lambda: _tagged(known, tag))
    if entry is None:
        raise _unknown_tag(arch, tag, asked=name)
    model_cfg, tag_cfg = checked_model_cfg(entry["model_cfg"], known), entry["tag_cfg"]
    # A tag states the activation its weights were trained with; the plain architecture may state another.
    # open_clip only warns and then encodes with the wrong one.
    model_cfg = {**model_cfg, "quick_gelu": True} if tag_cfg.get("quick_gelu") else model_cfg
    repo, filename = os.path.split(tag_cfg.get("hf_hub", ""))
    weights = _fetch(name, repo, filename, notify, advice) if repo else _from_elsewhere(tag_cfg)
    return ModelFiles(
        model_id=f"{known}/{tag}",
        model_cfg=model_cfg,
        preprocess=parse_preprocess(tag_cfg, model_cfg, name),
        weights=weights,
        tokenizer=known,
    )


def _tagged(known: str, tag: str) -> dict[str, Any] | None:
    """Return what open_clip says of a tag: its architecture, and how its weights differ; None if unknown."""
    from open_clip import pretrained

    model_cfg, tag_cfg = _model_config(known), pretrained.get_pretrained_cfg(known, tag)
    return {"model_cfg": model_cfg, "tag_cfg": dict(tag_cfg)} if model_cfg and tag_cfg else None


def _unknown_tag(arch: str, tag: str, *, asked: str = "") -> ModelError:
    from open_clip import pretrained

    known, _ = _architecture(arch, asked=asked)  # which raises if that is what is unknown
    tags = pretrained.list_pretrained_tags_by_model(known)
    nearest = _nearest(tag, tags)
    return ModelError(
        f"Architecture '{known}' has no weights tagged '{tag}'."
        + (f" Nearest: {', '.join(f'{known}/{near}' for near in nearest)}." if nearest else "")
        + (f" Known tags: {', '.join(tags)}." if tags else " It has none; pass a checkpoint file.")
    )


def _from_elsewhere(tag_cfg: dict[str, Any]) -> Path:
    """Return the weights of a tag that a program has added to open_clip's, and that are not on the hub."""
    from open_clip import pretrained

    try:
        return Path(pretrained.download_pretrained(tag_cfg)).resolve()
    except Exception as error:  # of another place on the network, or of none
        raise ModelError(f"Cannot get the weights of {tag_cfg.get('url')}: {summary(error)}.") from error


def _from_hub(
    name: str, notify: Callable[[str], None] | None, advice: Callable[[str], str] | None
) -> ModelFiles:
    repo = name[len(HUB_PREFIX) :]
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ModelError(f"'{name}' is not a hub repository: write {HUB_PREFIX}ORG/REPO.")
    config = read_config(fetch(Wanted(name, repo, (CONFIG_NAME,), beside=_HUB_WEIGHTS[:1], is_weights=False)))
    model_cfg = checked_model_cfg(config.get("model_cfg"), f"{CONFIG_NAME} of {name}")
    weights = _fetch(name, repo, "", notify, advice)
    return ModelFiles(
        model_id=name,
        model_cfg=model_cfg,
        preprocess=parse_preprocess(config.get("preprocess_cfg") or {}, model_cfg, name),
        weights=weights,
        tokenizer=name,
    )


def cached_weights(repo: str) -> Path | None:
    """Return the weights of a repository of the hub in open_clip's layout, if they are downloaded."""
    return cached_file(repo, _HUB_WEIGHTS)


def _fetch(
    name: str,
    repo: str,
    filename: str,
    notify: Callable[[str], None] | None,
    advice: Callable[[str], str] | None,
) -> Path:
    """Return the weights that open_clip's download would end with."""
    files = (filename,) if filename else _HUB_WEIGHTS
    if filename.endswith((".bin", ".pth")):
        files = (f"{filename[:-4]}.safetensors", filename)
    choice = choice_of(name)
    beside: tuple[str, ...] = (CONFIG_NAME,) if name.startswith(HUB_PREFIX) else ()
    if choice is not None and choice.extra == "transformers":
        beside += TOKENIZER_FILES
    return fetch(
        Wanted(name, repo, files, beside), notify, advice=None if advice is None else lambda: advice(name)
    )


def _hub_hint(name: str) -> str:
    """Say how a repository of the hub is named, where a name may be one."""
    found = _HUB_NAME.fullmatch(name)
    if not found:
        return ""
    return f"\nIf it is a repository of the Hugging Face hub, name it so: --model {HUB_PREFIX}{found[1]}"


def _architecture(name: str, *, asked: str = "") -> tuple[str, dict[str, Any]]:
    """Return an architecture's name as open_clip lists it, and its configuration.

    Args:
        name: The architecture.
        asked: The whole name that it stands in.

    Raises:
        ModelError: If there is none of that name.
    """
    known = name.replace("/", "-")
    model_cfg = _ask_once("architecture", known, lambda: _model_config(known))
    if model_cfg is None:
        from open_clip import factory

        registry: Any = factory  # its functions carry no types
        nearest = _nearest(known, [*CHOICES, *registry.list_models()])
        hint = f" Nearest: {', '.join(nearest)}." if nearest else ""
        hub = "" if nearest else _hub_hint(asked or name)
        raise ModelError(
            f"Unknown model '{asked or name}': neither a folder, a file, nor an architecture of open_clip."
            f"{hint} The default is {DEFAULT_MODEL}; imret models lists a few worth choosing.{hub}"
        )
    return known, checked_model_cfg(model_cfg, known)


def _model_config(known: str) -> dict[str, Any] | None:
    from open_clip import factory

    registry: Any = factory
    config: dict[str, Any] | None = registry.get_model_config(known)
    return config


def _ask_once(kind: str, name: str, ask: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return what open_clip says of a name: itself where it is loaded, else what it said last time.

    Importing it takes seconds, which a query answered from the cache need not wait for. A name that it does
    not know is asked for again.
    """
    if "open_clip" in sys.modules:  # whose registry the program may have added to
        return ask()
    digest = hashlib.sha256("\0".join((kind, name, open_clip_version())).encode()).hexdigest()
    entry = cache_dir() / "open_clip" / f"{digest}.json"
    with contextlib.suppress(OSError, ValueError):
        answer = json.loads(entry.read_text(encoding="ascii"))
        if isinstance(answer, dict) and answer:
            return answer
    answer = ask()
    if answer:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the run
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(entry, json.dumps(answer))
    return answer


def open_clip_version() -> str:
    """Return the version of open_clip that would be imported, without importing it; empty if it hides it."""
    # importlib.metadata would do, and takes 30 ms.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        return ""
    with contextlib.suppress(OSError):
        return Path(spec.origin).with_name("version.py").read_text(encoding="utf-8").strip()
    return ""


def _nearest(word: str, known: list[str]) -> list[str]:
    by_lower = {name.lower(): name for name in known}
    return [by_lower[near] for near in difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.5)]
