"""The work of an ingest spread over the machines of a Ray cluster: the one module that imports Ray.

What travels is a unit in, and an account out; pictures, pixels and vectors never do. An actor holds the model
and a connection to the store, and does with a unit what one process does. The queue is this module's own and
not that of Ray Data: then it is known which unit an actor died over, an attempt is given back where its node
went and not the actor, and nothing waits for an actor that cannot start.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from imret.errors import DataError, ModelError, ModelMismatch, StoreError, counted
from imret.store import Store
from imret.store.ledger import Ledger
from ingest.cluster_room import Shape, of_each, shape_of, total
from ingest.unit_actor import Setup, UnitActor
from ingest.unit_work import UnitResult, UnitTask, give_back

if TYPE_CHECKING:
    from typing_extensions import Self

    from ingest.pipeline import Run

INSTALL = "pip install 'imret[ray]'"
_LOCAL_OBJECTS_BYTES = 256 << 20  # slices of listings are all that lies there
_POLL_S = 0.5
_START_PATIENCE_S = 180.0  # for a first actor, which loads the model's files
_FREE_PATIENCE_S = 3.0  # for what another run has just let go
_STARTS = 3  # of actors in a row that did not come about

Pending = tuple[Literal["begin", "work", "probe"], "UnitTask | None"]


class _OnNode(UnitActor):
    """Says where it is, too."""

    def started(self, cpus: int) -> tuple[str, str, str]:
        """Return its node, and what `begin` does."""
        import ray

        return (str(ray.get_runtime_context().get_node_id()), *self.begin(cpus))


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
        self._actor_class = ray.remote(num_cpus=shape.cpus, num_gpus=shape.gpus, max_restarts=0)(_OnNode)
        self._idle: deque[_Actor] = deque()
        self._pending: dict[Any, tuple[_Actor, Pending]] = {}
        self._n_failed_starts = 0
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
        self._pending[actor.handle.started.remote(self._shape.cpus)] = (actor, ("begin", None))
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
        call = (
            actor.handle.started.remote(self._shape.cpus) if kind == "begin" else actor.handle.ping.remote()
        )
        self._pending[call] = (actor, again)

    def _check_started(self) -> None:
        """Raise where nobody works and nobody comes: Ray itself would wait for ever."""
        if self._idle or self._has_work():
            self._waits_since = time.monotonic()
        elif time.monotonic() - self._waits_since > _START_PATIENCE_S:
            raise StoreError(
                f"no actor of {of_each(self._shape)} has started in {_START_PATIENCE_S:.0f} s: ray status "
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


def check_store(store: Store) -> None:
    """Refuse a store that is a folder, which other machines do not see, and to go on without Ray.

    Raises:
        DataError: If it is, or Ray is not installed.
    """
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
        check_store(store)
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
            handlers = {stop: signal.getsignal(stop) for stop in (signal.SIGINT, signal.SIGTERM)}
            ray.init(**options)
            if threading.current_thread() is threading.main_thread():
                for stop, handler in handlers.items():  # Ray puts its own there
                    signal.signal(stop, handler)
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
    free = _free_resources(shape)
    if not _is_room(free, shape):
        raise DataError(
            f"an actor needs {of_each(shape)}, and of the cluster's {total(nodes, 'CPU'):g} CPUs and "
            f"{total(nodes, 'GPU'):g} GPUs others hold all but {free.get('CPU', 0.0):g} and "
            f"{free.get('GPU', 0.0):g}. Wait for them, or ask for less: --actors, --gpus-per-actor"
        )
    return shape


def _free_resources(shape: Shape) -> dict[str, float]:
    """Return what nobody holds, when an actor fits into it, or a moment has passed.

    Nodes tell now and then: what a run held that has just ended may seem to be held still.
    """
    import ray

    deadline = time.monotonic() + _FREE_PATIENCE_S
    while True:
        free: dict[str, float] = ray.available_resources()
        if _is_room(free, shape) or time.monotonic() > deadline:
            return free
        time.sleep(0.1)


def _is_room(free: dict[str, float], shape: Shape) -> bool:
    return free.get("CPU", 0.0) >= shape.cpus and free.get("GPU", 0.0) >= shape.gpus


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
