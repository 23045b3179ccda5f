"""Whatever fits the API's document, and what does not, is answered: never with a server's error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error

from imret import Encoder
from imret.store import open_store
from imret.store.payload import point_id
from imret.web.app import create_app
from imret.web.images.files import ImageFiles
from imret.web.pool.collections import CollectionPool
from imret.web.server import MAX_HEAD_BYTES
from ingest.pipeline import ingest
from ingest.sources import FolderSource
from tests.fakes.pictures import draw_picture
from tests.fakes.web_server import serving


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(6):
        draw_picture(folder / ("fungi", "aves")[seed % 2] / f"{seed}.png", seed=seed)
    db = str(tmp_path_factory.mktemp("db") / "store")
    with open_store(db) as store:
        ingest(
            store, [FolderSource(folder)], encoder=Encoder(str(random_model), device="cpu", precision="fp32")
        )
    pool = CollectionPool(lambda: open_store(db, create=False), device="cpu", precision="fp32")
    app = create_app(
        pool, default="photos", image_files=ImageFiles(folder / ".thumbnails"), host="127.0.0.1", port=0
    )
    known = point_id(os.path.realpath(folder), "fungi/0.png")

    with serving(app) as server:
        document = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/api/v1/openapi.json")
        document.hook(_known_ids(known))
        yield document
    pool.close()


def _known_ids(known: str) -> Any:
    def map_path_parameters(context: Any, parameters: Any) -> Any:
        # Random text is hardly ever an id: two of three are one, of a picture or of none.
        if parameters and "id" in parameters:
            choice = len(str(parameters["id"])) % 3
            parameters["id"] = (parameters["id"], known, "00000000-0000-0000-0000-000000000000")[choice]
        return parameters

    return map_path_parameters


# What a client meant well, and what one got wrong.
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


# Not schemathesis's own parametrization: its plugin does not know this pytest.
@pytest.mark.filterwarnings("ignore::imret.models.fast.tokenizer.TextTruncated")  # as `imret serve` does
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name.lower())
def test_no_request_makes_the_server_fail(api: Any, mode: schemathesis.GenerationMode) -> None:
    tried: set[str] = set()
    for operation in (result.ok() for result in api.get_all_operations()):

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=30,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def answers(case: schemathesis.Case) -> None:
            try:
                case.call_and_validate(checks=[not_a_server_error])
            except requests.RequestException:
                # The answer to a head that is refused before its end may be lost to the connection's reset.
                assert len(case.as_curl_command()) > MAX_HEAD_BYTES
            tried.add(case.operation.label)

        with contextlib.suppress(Unsatisfiable):  # nothing can be wrong where nothing is sent
            answers()
    assert len(tried) == (15 if mode == schemathesis.GenerationMode.POSITIVE else 13)
