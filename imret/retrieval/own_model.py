"""The model that a collection names itself: found, unless it is one that its user has never chosen.

Whoever wrote a collection chose that name: another user of a shared server, or the sender of a folder or of a
Parquet file. Before anything of such a model is read or downloaded, its user is asked, or told how to say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imret.errors import ModelUnknown
from imret.models.known_models import doubt_of_notes, is_known_model, is_known_name, note_model
from imret.models.resolve import is_path, resolve_model
from imret.store import Identity

if TYPE_CHECKING:
    from imret.models.fingerprint import ModelFiles


def find_own_model(
    collection: str,
    identity: Identity,
    *,
    advice: str,
    arch: str | None = None,
    ask: Callable[[str], bool] | None = None,
    notify: Callable[[str], None] | None = None,
    rebuild: bool = False,
) -> ModelFiles:
    """Return the files of the model that a collection names.

    It is the default model, or one that this user has used before by that name. Of a folder or file that
    holds another model since, it is only returned unasked where it does not fit the collection any more, so
    that `check_same_encoder` refuses it.

    Args:
        collection: Name.
        identity: Of the collection.
        advice: How to name the model, as the end of a sentence, for the error.
        arch: Architecture, where the model is a bare checkpoint file.
        ask: Asks the user a question that is answered by yes or no; None where nobody can be asked.
        notify: Called with lines for the user.
        rebuild: Whether the model is to be used also where it fits the collection no more.

    Raises:
        ModelUnknown: If the user has not chosen it, and does not when asked.
        ModelError: If it cannot be found.
    """
    name = identity.model

    def confirm(what: str, question: str) -> None:
        if ask is None or not ask(f"{what}. {question}"):
            raise ModelUnknown(
                f"{what}. Nothing of it was loaded.\nIf you trust where it comes from, {advice}"
            )

    doubt = doubt_of_notes()
    if not is_known_name(name):
        does = "be loaded from this machine" if is_path(name) else "be downloaded and loaded"
        confirm(
            f"collection {collection!r} names the model {name!r}, which you have not used before"
            f"{f' (or had; {doubt})' if doubt else ''}: it was chosen by whoever wrote the collection",
            f"It would {does}. Use it?",
        )
        files = resolve_model(name, arch=arch, notify=notify)
        note_model(files, name=name, notify=notify)
        return files
    files = resolve_model(name, arch=arch, notify=notify)
    if is_known_model(name, files):
        return files
    fits = files.as_made(identity.fingerprint).embeds_as(identity.fingerprint)
    if files.model_id == name and not fits and not rebuild:
        return files
    confirm(
        f"the model {name!r} that collection {collection!r} names is another than when you used it last",
        "Load it as it is now?",
    )
    note_model(files, name=name, notify=notify)
    return files
