"""The work of an ingest spread over the machines of a Ray cluster: the one module that imports Ray.

What travels is a unit in, and an account out; pictures, pixels and vectors never do. An actor holds the model
and a connection to the store, and does with a unit what one process does. The queue is this module's own and
not that of Ray Data: then it is known which unit an actor died over, an attempt is given back where its node
went and not the actor, and nothing waits for an actor that cannot start.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from imret.errors import DataError, ModelError, ModelMismatch, StoreError, counted
from imret.store import Identity, Store, open_store
from imret.store.ledger import Ledger
from ingest.unit_work import UnitResult, UnitTask, UnitWorker, give_back

if TYPE_CHECKING:
    from typing_extensions import Self

    from ingest.pipeline import Run

INSTALL = "pip install 'imret[ray]'"
_LOCAL_OBJECTS_BYTES = 256 << 20  # slices of listings are all that lies there
_POLL_S = 0.5
_START_PATIENCE_S = 180.0  # for a first actor, which loads the model's files
_STARTS = 3  # of actors in a row that did not come about

Pending = tuple[Literal["begin", "work", "probe"], "UnitTask | None"]


@dataclass(frozen=True)
class Shape:
    """How many actors there are, and what each has of its node.

    Attributes:
        actors: How many.
        cpus: Cores of each.
        gpus: GPUs of each, or a part of one.
    """

    actors: int
    cpus: int
    gpus: float


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

    def begin(self, cpus: int) -> tuple[str, str, str]:
        """Find the model and open the store.

        Args:
            cpus: Cores of its own.

        Returns:
            The node that it is on; then, if it cannot begin, the kind of the error and the error.
        """
        import ray

        node = str(ray.get_runtime_context().get_node_id())
        try:
            self._begin(cpus)
            return node, "", ""
        except ModelMismatch as error:
            return node, "mismatch", str(error)
        except ModelError as error:
            return node, "model", str(error)
        except StoreError as error:
            return node, "store", str(error)

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


@dataclass
class _Actor:
    """An actor as the driver knows it."""

    handle: Any
    node: str = ""


class RayHands:
    """Actors that ingest units: see `ingest.units.Hands`. Close it, for its actors to end.

    Args:
        setup: For each actor.
        shape: How many there are, and of what.
        ledger: Of the version.
    """

    def __init__(self, setup: Setup, shape: Shape, ledger: Ledger) -> None:
        import ray

        self._setup, self._shape, self._ledger = setup, shape, ledger
        self._actor_class = ray.remote(num_cpus=shape.cpus, num_gpus=shape.gpus, max_restarts=0)(UnitActor)
        self._idle: deque[_Actor] = deque()
        self._pending: dict[Any, tuple[_Actor, Pending]] = {}
        self._n_starting = self._n_failed_starts = 0
        self._waits_since = time.monotonic()
        self._died_of: dict[str, str] = {}  # actors, by the unit that they had

    def results(self, tasks: Iterator[UnitTask]) -> Generator[UnitResult, None, None]:
        """Hand tasks out, one to each actor, and yield how they ended; a task whose actor dies, again.

        Raises:
            ModelMismatch: If a node has other weights.
            ModelError: If a node does not have the model, or the encoder fails.
            StoreError: If no actor comes about.
        """
        # As many actors as there are units; where all are done, none.
        again = deque(islice(tasks, self._shape.actors))
        is_listed = len(again) < self._shape.actors
        for _ in range(len(again) - len(self._idle) - len(self._pending)):
            self._start()
        try:
            while True:
                while self._idle and not (is_listed and not again):
                    task = again.popleft() if again else next(tasks, None)
                    if task is None:
                        is_listed = True
                    else:
                        actor = self._idle.popleft()
                        self._pending[actor.handle.ingest.remote(task)] = (actor, ("work", task))
                if is_listed and not again and not self._has_work():
                    return
                yield from self._ended(again)
        finally:
            self._give_back_all()

    def _has_work(self) -> bool:
        return any(kind != "begin" for _, (kind, _) in self._pending.values())

    def _ended(self, again: deque[UnitTask]) -> Iterator[UnitResult]:
        """Wait a moment for what ends, and yield what units became of it."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayError

        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=_POLL_S)
        if not ready:
            self._check_started()
        for ref in ready:
            actor, (kind, task) = self._pending.pop(ref)
            self._n_starting -= kind == "begin"
            try:
                answer = ray.get(ref)
            except ActorUnavailableError:
                # Its process, its node or the network between: who knows says so in a moment.
                self._probe(actor, kind, task)
            except RayError as error:
                if task is not None:
                    if _is_by_node(error, actor.node):
                        give_back(self._ledger, task)
                    self._died_of[task.name] = _in_short(error)
                    again.append(replace(task, anew=False))
                self._replace(actor, _in_short(error))
            else:
                yield from self._answered(actor, kind, task, answer, again)

    def _answered(
        self, actor: _Actor, kind: str, task: UnitTask | None, answer: Any, again: deque[UnitTask]
    ) -> Iterator[UnitResult]:
        if kind == "begin":
            actor.node, failure, error = answer
            self._refuse(failure, error, actor.node)
            if failure:
                self._replace(actor, error)
                return
            self._n_failed_starts = 0
        elif kind == "probe":
            if task is not None:  # what became of it nobody has heard; done twice it is the same
                again.append(replace(task, anew=False))
        else:
            result, error = answer
            if result is None:
                raise ModelError(f"the encoder failed on the node {_short(actor.node)}: {error}")
            self._idle.append(actor)
            if result.failure == "attempts" and (why := self._died_of.get(result.task.name)):
                result.error += f" ({why})"
            yield result
            return
        self._idle.append(actor)

    def _refuse(self, failure: str, error: str, node: str) -> None:
        if failure == "mismatch":
            raise ModelMismatch(
                f"on the node {_short(node)} {error}. All nodes have to have the model that this one has: "
                "name one of a hub, or put the same folder on each."
            )
        if failure == "model":
            raise ModelError(f"on the node {_short(node)} the model cannot be used: {error}")

    def _start(self) -> None:
        actor = _Actor(self._actor_class.remote(self._setup))
        self._n_starting += 1
        self._pending[actor.handle.begin.remote(self._shape.cpus)] = (actor, ("begin", None))
        self._waits_since = time.monotonic()

    def _replace(self, actor: _Actor, why: str) -> None:
        """Have another actor in the place of one that is gone, wherever there is room for it."""
        import ray

        with suppress(Exception):  # it is gone, and so it shall be
            ray.kill(actor.handle)
        if not actor.node:
            self._n_failed_starts += 1
            if self._n_failed_starts >= _STARTS:
                raise StoreError(
                    f"{counted(_STARTS, 'actor')} in a row could not start; the last said: {why}"
                )
        self._start()

    def _probe(self, actor: _Actor, kind: str, task: UnitTask | None) -> None:
        time.sleep(_POLL_S)
        again: Pending = ("begin", None) if kind == "begin" else ("probe", task)
        self._n_starting += kind == "begin"
        call = actor.handle.begin.remote(self._shape.cpus) if kind == "begin" else actor.handle.ping.remote()
        self._pending[call] = (actor, again)

    def _check_started(self) -> None:
        """Raise where nobody works and nobody comes: Ray itself would wait for ever."""
        if self._idle or self._has_work():
            self._waits_since = time.monotonic()
        elif time.monotonic() - self._waits_since > _START_PATIENCE_S:
            raise StoreError(
                f"no actor of {_of_each(self._shape)} has started in {_START_PATIENCE_S:.0f} s: ray status "
                "says what the nodes are busy with. What is done stays: run the same command again."
            )

    def _give_back_all(self) -> None:
        """End what is in work: of a run that ends early, no unit is to blame."""
        import ray

        for ref, (actor, (_, task)) in list(self._pending.items()):
            if task is not None:
                with suppress(Exception):
                    ray.kill(actor.handle)
                give_back(self._ledger, task)
                del self._pending[ref]

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in (*self._idle, *(actor for actor, _ in self._pending.values())):
            with suppress(Exception):
                ray.kill(actor.handle)
        self._idle.clear()
        self._pending.clear()


def check_address(address: str, store: Store) -> None:
    """Refuse what Ray cannot do, before anything is looked for.

    Raises:
        DataError: For the address of a client, which Ray's own pages warn against for such work; where the
            store is a folder, which other machines do not see; and where Ray is not installed.
    """
    if address.startswith("ray://"):
        host = address.removeprefix("ray://").partition(":")[0] or "HOST"
        raise DataError(
            f"{address!r} is the address of Ray's client, which is not made for a run of hours: it ends with "
            "the connection. Have the cluster itself run it:\n"
            f"ray job submit --address http://{host}:8265 -- imret ingest SOURCE --db {store.address} --ray auto"
        )
    if store.engine != "server":
        raise DataError(
            f"--ray needs a store that other machines can reach, and {store.address!r} is a folder of this "
            "one. Name a Qdrant server: --db http://HOST:6333"
        )
    try:
        import ray  # noqa: F401
    except ImportError:
        raise DataError(f"--ray needs Ray: {INSTALL}") from None


class Spreading:
    """Actors for a run, on a cluster that is joined for it: for `ingest.units.ByUnits`. A context manager.

    Args:
        store: That the run fills.
        address: "auto" for the cluster that this machine belongs to, "local", or "HOST:PORT".
        actors: How many; None for as many as there is room for.
        gpus_per_actor: GPUs of each; None for one where there are some.
        running: `device`, `precision`, `check_content`, `batch_size`, `workers` and `max_pixels` of `Setup`.

    Raises:
        DataError: On entering, if no cluster answers, or has no room for what is asked.
    """

    def __init__(
        self,
        store: Store,
        address: str,
        *,
        actors: int | None = None,
        gpus_per_actor: float | None = None,
        **running: Any,
    ) -> None:
        check_address(address, store)
        self._store, self._address, self._running = store, address, running
        self._asked = actors, gpus_per_actor
        self._opened = ExitStack()
        self._hands: tuple[str, RayHands] | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(connected(self._address))
            self.shape = fitting_shape(*self._asked)
            self._opened = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close_hands()
        self._opened.close()

    def __call__(self, run: Run) -> RayHands:
        """Return actors that fill the version of a run; the same ones for the same version."""
        target = run.target
        if self._hands is None or self._hands[0] != target.version:
            self._close_hands()
            setup = Setup(
                address=self._store.address,
                collection=target.name,
                version=target.version,
                identity=target.identity,
                fingerprint=run.encoder.images_fingerprint,
                model=run.encoder.model_id,
                **self._running,
            )
            ledger = self._store.ledger(target.name, target.version)
            self._hands = target.version, RayHands(setup, self.shape, ledger)
        return self._hands[1]

    def _close_hands(self) -> None:
        if self._hands is not None:
            self._hands[1].close()
            self._hands = None


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Join a cluster, or make one of this machine, for as long as a block runs.

    Args:
        address: "auto" for the cluster that this machine belongs to, "local", or "HOST:PORT".

    Raises:
        DataError: If no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody, unless asked for
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if address == "local":
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _LOCAL_OBJECTS_BYTES,
        }
    else:
        options |= {"address": address}
    is_ours = not ray.is_initialized()
    try:
        if is_ours:
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"no Ray cluster answers at {address!r}: {first}\nStart one (ray start --head), run this on a "
            "machine of one, or use this machine alone: --ray local"
        ) from error
    try:
        yield
    finally:
        if is_ours:
            ray.shutdown()


def fitting_shape(actors: int | None, gpus_per_actor: float | None) -> Shape:
    """Return what actors the cluster has room for.

    Raises:
        DataError: If it has none for what is asked: Ray itself would wait for ever.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    shape = shape_of(nodes, actors, gpus_per_actor)
    free = ray.available_resources()
    if free.get("CPU", 0.0) < shape.cpus or free.get("GPU", 0.0) < shape.gpus:
        raise DataError(
            f"an actor needs {_of_each(shape)}, and of the cluster's {_total(nodes, 'CPU'):g} CPUs and "
            f"{_total(nodes, 'GPU'):g} GPUs others hold all but {free.get('CPU', 0.0):g} and "
            f"{free.get('GPU', 0.0):g}. Wait for them, or ask for less: --actors, --gpus-per-actor"
        )
    return shape


def shape_of(nodes: Sequence[Mapping[str, float]], actors: int | None, gpus_per_actor: float | None) -> Shape:
    """Return how many actors run on nodes, and what each gets.

    By default one for each GPU, with a fair share of the node's cores; without GPUs one for each node, with
    the cores of the smallest.

    Args:
        nodes: What each has: "CPU", "GPU".
        actors: How many; None for as many as there is room for.
        gpus_per_actor: GPUs of each; None for one where there are some.

    Raises:
        DataError: If there is no room.
    """
    cpus, gpus = _total(nodes, "CPU"), _total(nodes, "GPU")
    has = f"the cluster has {counted(len(nodes), 'node')} with {cpus:g} CPUs and {gpus:g} GPUs"
    each = (1.0 if gpus else 0.0) if gpus_per_actor is None else gpus_per_actor
    wanted = 1 if actors is None else actors
    if each > 0:
        slots = [int(node.get("GPU", 0.0) / each + 1e-9) for node in nodes]
        room = sum(slots)
        shares = [int(node.get("CPU", 0.0)) // n for node, n in zip(nodes, slots, strict=True) if n]
        share = min(shares, default=0)
    else:
        shares = [int(node.get("CPU", 0.0)) for node in nodes if node.get("CPU", 0.0) >= 1]
        share = min(shares, default=0)
        while actors is not None and share > 1 and sum(n // share for n in shares) < actors:
            share -= 1
        room = sum(n // share for n in shares) if share else 0
    if room < wanted or share < 1:
        what = f"{counted(wanted, 'actor')} with " + (f"{each:g} GPUs and " if each else "") + "a CPU each"
        raise DataError(f"there is no room for {what}: {has}. Ask for less: --actors, --gpus-per-actor")
    return Shape(room if actors is None else actors, share, each)


def _total(nodes: Sequence[Mapping[str, float]], what: str) -> float:
    return sum(node.get(what, 0.0) for node in nodes)


def _of_each(shape: Shape) -> str:
    return f"{counted(shape.cpus, 'CPU')}" + (f" and {shape.gpus:g} GPUs" if shape.gpus else "")


def _short(node: str) -> str:
    return node[:8]


def _is_by_node(error: Exception, node: str) -> bool:
    """Whether an actor died because its node did, which is no unit's fault."""
    import ray
    from ray.exceptions import RayActorError

    if not isinstance(error, RayActorError):
        return False
    return "its node has died" in str(error) or any(
        one["NodeID"] == node and not one["Alive"] for one in ray.nodes()
    )


def _in_short(error: Exception) -> str:
    """Return what happened, in a line: Ray's own errors are pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if line.startswith("The actor is dead because")), None)
    line = told or (lines[-1] if lines else type(error).__name__)
    return line.partition(" Worker exit type")[0][:200]
