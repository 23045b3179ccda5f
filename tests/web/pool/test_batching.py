"""Many text queries become few passes through the model, each with the vector it would have alone."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imret import Encoder
from imret.errors import ModelError
from imret.models.lazy_encoder import LazyEncoder
from imret.web.metrics import Telemetry, stage, timings
from imret.web.pool import batching
from imret.web.pool.batching import BatchingEncoder
from imret.web.pool.executors import BoundedExecutor, Busy
from tests import ROOT


@pytest.fixture
def encoder(random_model: Path) -> BatchingEncoder:
    return BatchingEncoder(LazyEncoder(random_model, device="cpu", precision="fp32"), Telemetry())


def _held(encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """Let each pass through the model wait for an event, and note how many texts it has."""
    go, sizes, encode = threading.Event(), [], encoder.inner.encoder.encode_texts

    def waiting(texts: list[str], **how: Any) -> Any:
        go.wait(10)
        sizes.append(len(texts))
        return encode(texts, **how)

    monkeypatch.setattr(encoder.inner.encoder, "encode_texts", waiting)
    return go, sizes


@pytest.mark.parametrize(("precision", "rounding"), [("fp32", 1e-6), ("bf16", 0.01)])
def test_queries_that_wait_are_encoded_together_as_each_would_be_alone(
    precision: str, rounding: float, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = BatchingEncoder(LazyEncoder(random_model, device="cpu", precision=precision), Telemetry())
    go, sizes = _held(encoder, monkeypatch)
    queries = [[f"a photo of {i} owls.", f"{i} owls"] for i in range(40)]
    waiting = [encoder.submit(query) for query in queries]
    go.set()
    vectors = [vector.result(10) for vector in waiting]
    assert len(sizes) <= 3  # the first may have been taken alone, before the others came
    assert sum(sizes) == 80
    alone = Encoder(random_model, device="cpu", precision=precision)
    for query, vector in zip(queries, vectors, strict=True):
        np.testing.assert_allclose(vector, alone.encode_mean(query), atol=rounding)


def test_the_model_is_made_once_though_many_ask_for_it_at_once(
    encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: list[Encoder] = []
    others = threading.Barrier(2)

    def make(*arguments: Any, **how: Any) -> Encoder:
        with contextlib.suppress(threading.BrokenBarrierError):
            others.wait(0.2)  # for another that makes one, too
        encoders.append(Encoder(*arguments, **how))
        return encoders[-1]

    monkeypatch.setattr("imret.models.encoder.Encoder", make)
    with ThreadPoolExecutor(2) as pool:
        assert {id(loaded) for loaded in pool.map(lambda _: encoder.inner.encoder, range(2))} == {
            id(encoders[0])
        }
    assert len(encoders) == 1


def test_a_query_that_is_being_encoded_or_known_is_not_encoded_again(
    encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, sizes = _held(encoder, monkeypatch)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(encoder.encode_mean, ["an owl"]) for _ in range(8)]
        go.set()
        assert all(answer.result(10) is answers[0].result() for answer in answers)
    assert encoder.encode_mean(["an owl"]) is answers[0].result()
    assert sizes == [1]


def test_the_vectors_of_the_oldest_queries_are_forgotten(
    encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "KEPT", 4)
    first = encoder.encode_mean(["owl 0"])
    for i in range(1, 6):
        encoder.encode_mean([f"owl {i}"])
    again = encoder.encode_mean(["owl 0"])
    assert again is not first
    np.testing.assert_allclose(again, first, atol=1e-6)


def test_a_query_that_cannot_be_encoded_fails_alone(
    encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = encoder.inner.encoder.encode_texts
    go = threading.Event()

    def failing(texts: list[str], **how: Any) -> Any:
        go.wait(10)
        if "bad" in texts:
            raise ModelError("no direction")
        return encode(texts, **how)

    monkeypatch.setattr(encoder.inner.encoder, "encode_texts", failing)
    waiting = [encoder.submit([text]) for text in ("good", "bad", "fine")]
    go.set()
    assert waiting[0].result(10).shape == waiting[2].result(10).shape == (32,)
    with pytest.raises(ModelError, match="no direction"):
        waiting[1].result(10)
    monkeypatch.undo()
    assert encoder.encode_mean(["bad"]).shape == (32,)  # a failure is not remembered


def test_the_thread_ends_when_nobody_asks_and_begins_with_the_next_query(
    encoder: BatchingEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "IDLE_S", 0.01)
    before = set(threading.enumerate())
    encoder.encode_mean(["an owl"])
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert encoder.encode_mean(["another owl"]).shape == (32,)


def test_batches_are_measured(encoder: BatchingEncoder) -> None:
    with timings() as seconds:
        encoder.encode_mean(["an owl"])
    assert seconds["encode"] > 0
    exposed = encoder._telemetry.exposition().decode()
    assert 'imret_stage_seconds_count{stage="encode"} 1.0' in exposed
    assert "imret_batch_queries_count 1.0" in exposed


# ---- Lanes --------------------------------------------------------------------------------------


def test_a_full_lane_refuses_and_is_free_again_afterwards() -> None:
    async def scenario() -> None:
        lane, go = BoundedExecutor("queries", threads=1, waiting=2, retry_after_s=3), threading.Event()
        held = [asyncio.ensure_future(lane.run(go.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        assert lane.depth == 2
        with pytest.raises(Busy, match=r"queries.*3 s") as refused:
            await lane.run(int)
        assert refused.value.retry_after_s == 3
        go.set()
        assert await asyncio.gather(*held) == [True] * 3
        assert await lane.run(int) == 0
        await asyncio.sleep(0)
        assert lane.depth == 0
        lane.close()

    asyncio.run(scenario())


def test_a_client_that_goes_leaves_the_queue_and_takes_no_place_for_ever() -> None:
    async def scenario() -> None:
        lane, go = BoundedExecutor("queries", threads=1, waiting=1), threading.Event()
        running = asyncio.ensure_future(lane.run(go.wait, 10))
        waiting = asyncio.ensure_future(lane.run(int))
        await asyncio.sleep(0.01)
        waiting.cancel()
        running.cancel()
        await asyncio.gather(waiting, running, return_exceptions=True)
        with pytest.raises(Busy):  # the thread is still at work for the one that has gone
            await asyncio.gather(lane.run(int), lane.run(int))
        go.set()
        while True:
            try:
                assert await lane.run(int) == 0
                break
            except Busy:
                await asyncio.sleep(0.01)
        lane.close()

    asyncio.run(scenario())


def test_stages_of_a_request_are_told_apart_from_those_of_another() -> None:
    async def scenario() -> None:
        telemetry = Telemetry()
        lane = BoundedExecutor("queries", threads=2, waiting=2)
        meet = threading.Barrier(2)

        def work(name: str) -> None:
            meet.wait(10)
            with stage(telemetry, name):
                pass

        async def request(name: str) -> dict[str, float]:
            with timings() as seconds:
                await lane.run(work, name)
            return seconds

        one, other = await asyncio.gather(request("store"), request("thumbnail"))
        assert set(one) == {"store"}
        assert set(other) == {"thumbnail"}
        lane.close()

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore:A text is longer")
def test_long_texts_are_known_by_their_hash(encoder: BatchingEncoder) -> None:
    for i in range(4):
        encoder.submit([f"{i}" + "owl" * 10_000]).result(60)
    assert sum(map(len, encoder._known)) == 4 * 32


def test_a_process_may_end_while_texts_are_encoded(random_model: Path) -> None:
    # A daemon thread that is in C++ code while the interpreter ends aborts the process.
    code = """
import atexit, sys, threading, time
atexit.register(lambda: print(*[thread.name for thread in threading.enumerate()]))  # the last to be called
from imret.models.lazy_encoder import LazyEncoder
from imret.web.pool.batching import BatchingEncoder
from imret.web.metrics import Telemetry
encoder = BatchingEncoder(LazyEncoder(sys.argv[1], device="cpu", precision="fp32"), Telemetry())
encoder.encode_mean(["warm"])
for i in range(2_000):
    encoder.submit([f"a text of some words, the {i}th"])
time.sleep(float(sys.argv[2]))
"""
    for delay_s in (0.02, 0.1, 5):  # at 5 seconds all are encoded, and the thread waits
        done = subprocess.run(
            [sys.executable, "-c", code, str(random_model), str(delay_s)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "MainThread\n", "")
