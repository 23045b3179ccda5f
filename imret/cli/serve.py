"""`imret serve` around `imret.web.app`: options, what is said, how it ends. The command is `ingest.serve`."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from imret.cli.numbers import Whole
from imret.cli.options import (
    arch_option,
    collection_option,
    db_option,
    device_option,
    max_pixels_option,
    model_option,
    precision_option,
)
from imret.cli.stopping import stopping_by
from imret.output.console import announce
from imret.retrieval.limits import MAX_BODY_BYTES

if TYPE_CHECKING:
    from imret.web.filling import Filling
    from imret.web.pool.collections import CollectionPool
    from imret.web.security.http import App

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_PORT = 8750


_OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at."),
    click.option(
        "--port", type=Whole(0, 65535), default=DEFAULT_PORT, show_default=True, help="0 for a free one."
    ),
    click.option(
        "--allow-host",
        "allow_hosts",
        multiple=True,
        metavar="NAME",
        help="A name that browsers call this server by, such as that of a reverse proxy; may be repeated.",
    ),
    click.option(
        "--public-url",
        metavar="URL",
        help="The address that browsers use, behind a reverse proxy: https://nas.example:8443/photos. "
        "Allows its host and its pages, and sets --root-path.",
    ),
    click.option(
        "--root-path",
        metavar="PATH",
        help="The path below which a reverse proxy puts this server, such as /photos. The proxy may strip "
        "it or leave it.",
    ),
    click.option(
        "--token-file",
        metavar="FILE",
        help="The token that clients have to show, in a file.  [env IMRET_TOKEN holds it itself]",
    ),
    click.option(
        "--root",
        "roots",
        multiple=True,
        metavar="DIR|URL",
        help="Show only pictures below this folder, or this URL of a bucket; may be repeated. Default: below "
        "whatever folders were ingested, and of buckets those of IMRET_ROOTS. For a Qdrant server that "
        "others write to, and for pictures in buckets.",
    ),
    click.option("--preload", is_flag=True, help="Load the whole model before answering anything."),
    click.option("--open", "open_page", is_flag=True, help="Open the page in the browser."),
    click.option(
        "--max-upload",
        type=Whole(1),
        default=MAX_BODY_BYTES // 1_000_000,
        show_default=True,
        metavar="MB",
        help="Refuse larger requests.",
    ),
    click.option(
        "--thumbnail-cache",
        type=Whole(0),
        default=1000,
        show_default=True,
        metavar="MB",
        help="Disk space for thumbnails.",
    ),
    db_option,
    collection_option,
    model_option("Model to encode queries for that collection with. Default: the one it was built with."),
    arch_option,
    max_pixels_option,
    device_option,
    precision_option,
)


def serve_options(command: F) -> F:
    """Add the options of `serve` to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def serve(
    *,
    host: str,
    port: int,
    allow_hosts: tuple[str, ...],
    public_url: str | None,
    root_path: str | None,
    token_file: str | None,
    roots: tuple[str, ...],
    preload: bool,
    open_page: bool,
    max_upload: int,
    thumbnail_cache: int,
    db: str | None,
    collection: str,
    fill: Callable[[CollectionPool], Filling] | None = None,
    urls: Sequence[str] = (),
    **encoding: Any,
) -> None:
    """Serve until Ctrl-C or SIGTERM; the arguments are those of the command.

    Args:
        fill: Begins an ingest into the collection, with the store and the model of the searches.
        urls: Sources in buckets that it fills it from, whose pictures may be shown, too.
        encoding: model, arch, device and precision.
    """
    _require_web_extra()
    from imret.settings import cache_dir
    from imret.store import resolve_address
    from imret.web.app import create_app
    from imret.web.images.files import ImageFiles
    from imret.web.security.hosts import check_binding
    from imret.web.security.public_address import parse_public_address
    from imret.web.server import listen

    hide_queries()
    token = _read_token(token_file)
    check_binding(host, token, port=port)
    public = parse_public_address(public_url, root_path)
    _check_roots(roots)
    image_files = ImageFiles(
        cache_dir() / "thumbnails", max_bytes=thumbnail_cache * 1_000_000, roots=roots or None, urls=urls
    )
    address, reason = resolve_address(db, collection=collection)
    with contextlib.closing(listen(host, port)) as listener:
        pool = _open_pool(address, collection, is_filled=fill is not None, **encoding)
        with contextlib.closing(pool):
            announce(reason or f"store {address} ({pool.store.engine})")
            if fill is None or pool.store.live(collection) is not None:
                _announce_collection(pool, collection, preload=preload)
            filling = None if fill is None else fill(pool)
            app = create_app(
                pool,
                default=collection,
                image_files=image_files,
                host=host,
                port=listener.getsockname()[1],
                token=token,
                allow_hosts=allow_hosts,
                public=public,
                filling=filling,
                max_body_bytes=max_upload * 1_000_000,
            )
            about: dict[str, Any] = {"host": host, "address": address, "token": token}
            page = f"{public.origin}{public.root_path}/" if public.origin else ""
            with _stopped_with_us(filling) as stop:
                _run(app, listener, open_page=open_page, page=page, stop=stop, **about)
            announce("imret serve has ended")


def _check_roots(roots: Sequence[str]) -> None:
    from imret.errors import DataError
    from imret.places.names import is_url
    from imret.sources.named_roots import NamedRoots

    for root in roots:
        if is_url(root):
            NamedRoots([root]).check()
        elif not os.path.isdir(root):
            raise DataError(f"--root {root!r} is no folder.")


@contextlib.contextmanager
def _stopped_with_us(filling: Filling | None) -> Iterator[Callable[[], None]]:
    """Yield what stops an ingest, if one runs; when the block is left, it has ended, or soon will."""
    if filling is None:
        yield lambda: None
        return
    try:
        yield filling.stop
    finally:
        filling.join()


def hide_queries() -> None:
    """Let no warning that quotes a text be printed: queries are nobody's business."""
    from imret.models.fast.tokenizer import TextTruncated

    warnings.filterwarnings("ignore", category=TextTruncated)


def _require_web_extra() -> None:
    from imret.errors import DataError

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DataError(f"imret serve needs {error.name}: pip install 'imret[web]'") from error


def _open_pool(
    address: str,
    collection: str,
    *,
    is_filled: bool,
    model: str | None,
    arch: str | None,
    device: str,
    precision: str,
) -> CollectionPool:
    from imret.errors import StoreError
    from imret.settings import store_dir
    from imret.store import Store, open_store
    from imret.web.pool.collections import CollectionPool

    # The user's own store may still be to come, and the page then says how; a folder that was named and is
    # not there is a mistake, unless it is to be filled.
    may_be_made = is_filled or address == str(store_dir())

    def open_shared() -> Store:
        try:
            return open_store(address, create=may_be_made, share=True)
        except StoreError as error:
            # Whatever else is wrong is raised again; only sharing can be done without.
            store = open_store(address, create=may_be_made, share="if possible")
            announce(f"Warning: {error}\n(Without that, other commands have to wait for this one.)")
            return store

    return CollectionPool(
        open_shared,
        device=device,
        precision=precision,
        keep=collection,
        models={collection: model} if model else {},
        arch=arch,
        notify=announce,
    )


def _run(
    app: App,
    listener: socket.socket,
    *,
    host: str,
    address: str,
    token: str | None,
    open_page: bool,
    page: str,
    stop: Callable[[], None],
) -> None:
    """Serve until Ctrl-C or SIGTERM, found by the searches of this user for the store at address."""
    from imret.client import discovery
    from imret.errors import DataError
    from imret.web.server import bracketed, local_url, make_server, raise_file_limit

    server = make_server(app, max_connections=raise_file_limit())
    port = listener.getsockname()[1]
    url = local_url(host, port)
    with contextlib.ExitStack() as registered:
        try:
            registered.enter_context(discovery.register(url=url, address=address, token=token))
        except DataError as error:  # as where this user has no home
            announce(f"Warning: {error}\n(It serves all the same; imret search does not find it.)")
        here = f"http://{bracketed(host)}:{port}"
        announce(f"the page is at {f'{page}, here at ' if page else ''}{here}  (Ctrl-C ends)")
        if open_page:
            webbrowser.open(url)

        def end() -> None:
            server.should_exit = True
            stop()

        with stopping_by(end):
            server.run(sockets=[listener])


def _announce_collection(pool: CollectionPool, collection: str, *, preload: bool) -> None:
    """Open the collection, or say what is missing: a page that says so is better than no server."""
    from imret.errors import ImretError, ModelError
    from imret.web.pool.threads import run_in_background

    started = time.monotonic()
    try:
        with pool.use(collection) as served:
            announce(f"{collection}: {served.collection.count():,} pictures, model {served.identity.model}")
            if preload:
                served.load(pictures=True)
                encoder = served.encoder
                announce(
                    f"model loaded on {encoder.device} in {encoder.precision} "
                    f"in {time.monotonic() - started:.1f} s"
                )
    except ModelError:
        raise
    except ImretError as error:
        if preload:
            raise
        announce(f"Warning: {error}\n(The page will say so, and take it up when it is there.)")
        return

    def load() -> None:
        # The first query should not have to wait; whatever goes wrong, it will say.
        with contextlib.suppress(ImretError), pool.use(collection) as served:
            served.load()

    if not preload:
        run_in_background("imret-preload", load)


def _read_token(file: str | None) -> str | None:
    from imret.errors import DataError
    from imret.settings import read_settings

    if file is None:
        return read_settings().token
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise DataError(f"cannot read the token in {file!r}: {reason}.") from error
    if not token:
        raise DataError(f"the token file {file!r} is empty.")
    return token
