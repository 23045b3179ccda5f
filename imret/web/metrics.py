"""What the server measures: how long the stages of a request take, for its answer and for Prometheus."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

# Seconds. Searches take milliseconds, a first query loads a model.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

STAGES = ("encode", "store", "thumbnail")


class Telemetry:
    """The metrics of one server."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter(
            "imret_requests", "Requests answered.", ("route", "status"), registry=self._registry
        )
        self.latency = Histogram(
            "imret_request_seconds",
            "From the whole request to the whole answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        stages = Histogram(
            "imret_stage_seconds",
            "Time in one stage of a request.",
            ("stage",),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._stages = {name: stages.labels(name) for name in STAGES}
        self._depth = Gauge(
            "imret_queue_depth", "Requests that wait for a thread.", ("queue",), registry=self._registry
        )
        self._batch = Histogram(
            "imret_batch_queries",
            "Text queries that were encoded together.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self._registry,
        )

    def watch_queue(self, name: str, depth: Callable[[], int]) -> None:
        """Report the depth of a queue each time the metrics are read."""
        self._depth.labels(name).set_function(depth)

    def observe(self, stage: str, seconds: float) -> None:
        """Count the duration of a stage."""
        self._stages[stage].observe(seconds)

    def observe_batch(self, queries: int) -> None:
        """Count a batch of text queries."""
        self._batch.observe(queries)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)


_timings: contextvars.ContextVar[dict[str, float] | None] = contextvars.ContextVar("timings", default=None)


@contextlib.contextmanager
def timings() -> Iterator[dict[str, float]]:
    """Collect how long each stage takes until the end of the block: seconds by name."""
    collected: dict[str, float] = {}
    token = _timings.set(collected)
    try:
        yield collected
    finally:
        _timings.reset(token)


@contextlib.contextmanager
def stage(telemetry: Telemetry, name: str) -> Iterator[None]:
    """Time the block as a stage of the request that it belongs to, and of all requests."""
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - started
        telemetry.observe(name, seconds)
        collected = _timings.get()
        if collected is not None:
            collected[name] = collected.get(name, 0.0) + seconds
