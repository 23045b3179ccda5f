"""What an actor of a cluster does: finds the model, opens the store, and ingests one unit after the other.

Its answers are plain data. Knows nothing of Ray.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from imret.errors import ModelError, ModelMismatch, StoreError
from imret.store import Identity, open_store
from ingest.unit_work import UnitResult, UnitTask, UnitWorker


@dataclass(frozen=True)
class Setup:
    """What an actor needs to know. Pickles; holds no key: those are in the environment of each node.

    Attributes:
        address: Of the store.
        collection: Its name.
        version: The one that is filled.
        identity: The encoder of that.
        fingerprint: What the encoder of this process makes vectors by.
        model: What finds it on any node.
        device: As for `imret.Encoder`, and so is `precision`.
        check_content: As for `ingest`, and so are the others.
    """

    address: str
    collection: str
    version: str
    identity: Identity
    fingerprint: str
    model: str
    device: str
    precision: str
    check_content: bool
    batch_size: int | None
    workers: int | None
    max_pixels: int | None


class UnitActor:
    """Ingests units on a node. Its answers are plain data: an exception of Ray's would hide what it says."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._opened = ExitStack()
        self._worker: UnitWorker | None = None

    def begin(self, cpus: int) -> tuple[str, str]:
        """Find the model and open the store.

        Args:
            cpus: Cores of its own.

        Returns:
            If it cannot begin, the kind of the error and the error.
        """
        try:
            self._begin(cpus)
            return "", ""
        except ModelMismatch as error:
            return "mismatch", str(error)
        except ModelError as error:
            return "model", str(error)
        except StoreError as error:
            return "store", str(error)

    def _begin(self, cpus: int) -> None:
        from imret.models.lazy_encoder import LazyEncoder
        from imret.models.resolve import resolve_model
        from ingest.pipeline import Run
        from ingest.report import Counters, empty_report

        setup = self._setup
        files = resolve_model(setup.model).as_made(setup.identity.fingerprint)
        encoder = LazyEncoder(files, device=setup.device, precision=setup.precision)
        if encoder.images_fingerprint != setup.fingerprint:
            raise ModelMismatch(
                f"the model {setup.model!r} has other weights there "
                f"({encoder.images_fingerprint[:8]}, and {setup.fingerprint[:8]} here)"
            )
        store = self._opened.enter_context(open_store(setup.address))
        version = store.join(setup.collection, setup.identity, setup.version)
        self._opened.callback(version.close)
        run = Run(
            version,
            encoder,
            Counters(empty_report(store, version, [])),
            batch_size=setup.batch_size,
            workers=setup.workers or cpus,
            max_pixels=setup.max_pixels,
            gives_way=False,
            on_encoder=None,
            on_stage=None,
            on_stored=lambda: None,
        )
        self._opened.callback(run.decoders.close)
        # Processes from the first picture on: one that ends them ends no actor.
        run.decoders.spread(run.workers)
        run.decoders.await_processes()
        ledger = store.ledger(setup.collection, setup.version)
        self._worker = UnitWorker(run, ledger, check_content=setup.check_content, is_alone=False)

    def ingest(self, task: UnitTask) -> tuple[UnitResult | None, str]:
        """Ingest a unit; return how it ended, or what went wrong that is no fault of the unit's."""
        assert self._worker is not None
        try:
            return self._worker.ingest(task), ""
        except ModelError as error:
            return None, str(error)

    def ping(self) -> None:
        """Answer, which an actor does that lives, when it has done what it was asked before."""
