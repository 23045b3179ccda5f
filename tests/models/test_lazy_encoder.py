"""Query vectors on disk: a hit is what was computed and loads no torch; no damage or race changes that."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imret import settings
from imret.errors import ModelError
from imret.models import lazy_encoder
from imret.models.encoder import Encoder, TextTruncated
from imret.models.lazy_encoder import LazyEncoder, entry_key, load_vector, save_vector
from imret.retrieval.prompts import SEARCH_TEMPLATES, fill
from imret.retrieval.query_vector import query_vector
from tests import ROOT
from tests.fakes.models import write_random_model

TEXTS = ["a photo of a mushroom.", "a picture of a mushroom."]
VECTOR = np.arange(32, dtype=np.float32)
KEY = "0" * 64


def _entries() -> list[Path]:
    folder = settings.cache_dir() / "queries"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _whole_entries() -> list[Path]:
    return [path for path in _entries() if not path.name.startswith(".")]


def _cached(model: Path, **options: Any) -> LazyEncoder:
    return LazyEncoder(model, device="cpu", **{"precision": "fp32", **options})


def _forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(Encoder, "encode_texts", refused)
    monkeypatch.setattr(Encoder, "truncated", refused)


# ---- What is answered ----------------------------------------------------------------------------------


def test_a_text_asked_before_is_answered_to_the_bit_without_the_model(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Encoder(random_model, device="cpu", precision="fp32").encode_mean(TEXTS)
    np.testing.assert_array_equal(_cached(random_model).encode_mean(TEXTS), expected)
    _forbid_encoding(monkeypatch)
    vector = _cached(random_model).encode_mean(TEXTS)
    np.testing.assert_array_equal(vector, expected)
    assert vector.dtype == np.float32
    vector *= 2  # a caller may write to what it was given


def test_a_mean_is_the_unit_mean_of_unit_vectors(random_model: Path) -> None:
    encoder = Encoder(random_model, device="cpu", precision="fp32")
    rows = [encoder.encode_texts([text])[0].astype(float) for text in TEXTS]
    total = rows[0] + rows[1]
    np.testing.assert_allclose(encoder.encode_mean(TEXTS), total / np.sqrt(total @ total), atol=1e-6)
    with pytest.raises(ValueError, match="mean of no texts"):
        encoder.encode_mean([])


def test_texts_whose_embeddings_cancel_out_are_refused(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opposite(self: Encoder, texts: list[str]) -> NDArray[np.float32]:
        return np.stack([VECTOR, -VECTOR])

    monkeypatch.setattr(Encoder, "encode_texts", opposite)
    with pytest.raises(ModelError, match="no direction for the mean of"):
        Encoder(random_model, device="cpu").encode_mean(TEXTS)


def test_a_query_is_kept_with_its_templates_applied(
    random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = _cached(random_model)
    framed = query_vector(encoder, "red mushroom")
    bare = query_vector(encoder, "red mushroom", template=False)
    assert len(_entries()) == 2
    _forbid_encoding(monkeypatch)
    np.testing.assert_array_equal(query_vector(encoder, " red  mushroom "), framed)
    np.testing.assert_array_equal(query_vector(encoder, "red mushroom", template=False), bare)
    np.testing.assert_array_equal(
        encoder.encode_mean([fill(template, "red mushroom") for template in SEARCH_TEMPLATES]), framed
    )
    with pytest.raises(AssertionError, match="the model was asked"):
        query_vector(encoder, "Red mushroom")


def test_another_model_device_or_precision_is_another_entry(random_model: Path, tmp_path: Path) -> None:
    _cached(random_model).encode_mean(TEXTS)
    other = write_random_model(tmp_path / "other", seed=5)
    expected = Encoder(other, device="cpu", precision="fp32").encode_mean(TEXTS)
    np.testing.assert_array_equal(_cached(other).encode_mean(TEXTS), expected)
    assert len(_entries()) == 2
    rounded = _cached(random_model, precision="bf16").encode_mean(TEXTS)
    assert len(_entries()) == 3
    assert not np.array_equal(rounded, _cached(random_model).encode_mean(TEXTS))
    assert len({entry_key("f", device, "fp32", TEXTS) for device in ("cpu", "cuda", "auto")}) == 3
    # Boundaries count: two texts are not one, and none reaches into its neighbour.
    assert len({entry_key("f", "cpu", "fp32", texts) for texts in (["ab", "c"], ["a", "bc"], ["abc"])}) == 3


def test_another_release_of_imret_or_open_clip_asks_the_model_again(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {entry_key("f", "cpu", "fp32", TEXTS)}
    monkeypatch.setattr(lazy_encoder, "__version__", "99.0")
    keys.add(entry_key("f", "cpu", "fp32", TEXTS))
    monkeypatch.setattr(lazy_encoder, "open_clip_version", lambda: "99.0")
    keys.add(entry_key("f", "cpu", "fp32", TEXTS))
    assert len(keys) == 3


def test_a_text_that_is_cut_warns_each_time(random_model: Path) -> None:
    for _ in range(2):
        with pytest.warns(TextTruncated):
            _cached(random_model).encode_mean(["very " * 100])
    assert _entries() == []


def test_the_logit_scale_that_was_asked_before_costs_no_model(random_model: Path) -> None:
    first = _cached(random_model).logit_scale
    again = _cached(random_model)
    assert again.logit_scale == first == Encoder(random_model, device="cpu", precision="fp32").logit_scale
    assert not again.is_loaded


def test_it_stands_in_for_the_encoder(random_model: Path, tmp_path: Path) -> None:
    from tests.fakes.pictures import draw_picture

    light, heavy = _cached(random_model), Encoder(random_model, device="cpu", precision="fp32")
    assert (light.model_id, light.dim, light.fingerprint) == (heavy.model_id, heavy.dim, heavy.fingerprint)
    assert (light.images_fingerprint, light.preprocess) == (heavy.images_fingerprint, heavy.preprocess)
    assert (light.device, light.precision) == (heavy.device, heavy.precision)
    assert (light.logit_scale, light.logit_bias) == (heavy.logit_scale, heavy.logit_bias)
    picture = draw_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(light.encode_images([picture]), heavy.encode_images([picture]))
    np.testing.assert_array_equal(light.encode_texts(TEXTS), heavy.encode_texts(TEXTS))
    pixels = np.zeros((1, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(light.encode_pixels(pixels), heavy.encode_pixels(pixels))
    assert str(random_model) in repr(light)
    with pytest.raises(ValueError, match="precision must be"):
        _cached(random_model, precision="fp8")
    with pytest.raises(ModelError, match="'cuda:99' cannot be used"):
        LazyEncoder(random_model, device="cuda:99").encode_mean(TEXTS)


# ---- What is kept --------------------------------------------------------------------------------------


def test_texts_cannot_be_read_in_the_cache_nor_by_other_users(random_model: Path) -> None:
    _cached(random_model).encode_mean(["zanzibar"])
    (entry,) = _entries()
    assert b"zanzibar" not in entry.read_bytes() + os.fsencode(entry)
    assert entry.stat().st_mode & 0o077 == 0
    for folder in (entry.parent, entry.parent.parent):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_damaged_entry_is_thrown_away_and_the_right_vector_computed(random_model: Path) -> None:
    expected = _cached(random_model).encode_mean(TEXTS)
    (entry,) = _entries()
    whole = entry.read_bytes()
    rng = np.random.default_rng(0)
    flipped = [bytearray(whole) for _ in range(20)]
    for copy in flipped:
        copy[int(rng.integers(len(copy)))] ^= 1 << int(rng.integers(8))
    for damaged in [b"", whole[:-1], whole + b"\0", bytes(len(whole)), *map(bytes, flipped)]:
        entry.write_bytes(damaged)
        assert load_vector(entry.name, 32) is None
        assert not entry.exists()
        np.testing.assert_array_equal(_cached(random_model).encode_mean(TEXTS), expected)
        assert entry.read_bytes() == whole
    # Another entry's content under this name is damage too.
    save_vector(KEY, VECTOR)
    (other,) = [path for path in _entries() if path.name == KEY]
    other.replace(entry)
    assert load_vector(entry.name, 32) is None


def test_a_vector_of_another_length_is_no_answer() -> None:
    save_vector(KEY, VECTOR)
    assert load_vector(KEY, 64) is None


def test_entries_used_longest_ago_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_encoder, "MAX_CACHE_BYTES", 20 * 4096)  # an entry takes a block of the disk
    keys = [f"{i:064x}" for i in range(21)]
    for i, key in enumerate(keys[:20]):
        save_vector(key, VECTOR + i)
        os.utime(_entries()[i], (1000 + i, 1000 + i))
    assert load_vector(keys[0], 32) is not None  # used just now
    folder = _entries()[0].parent
    abandoned, in_use = (folder / f".{i:064x}.part" for i in (100, 101))
    abandoned.touch()
    os.utime(abandoned, (1000, 1000))
    in_use.touch()
    save_vector(keys[20], VECTOR)
    assert {path.name for path in _entries()} == {keys[0], *keys[2:21], in_use.name}


def test_it_can_be_turned_off(random_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_vector(KEY, VECTOR)
    monkeypatch.setenv("IMRET_QUERY_CACHE", "off")
    assert load_vector(KEY, 32) is None
    _cached(random_model).encode_mean(TEXTS)
    assert [path.name for path in _entries()] == [KEY]


@pytest.mark.parametrize("home", ["a file", "read-only", "below a file", "missing"])
def test_a_home_that_cannot_be_written_means_no_cache_and_no_error(
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    if home == "read-only" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    place = tmp_path / "home"
    if home == "read-only":
        place.mkdir(mode=0o500)
    elif home != "missing":
        place.touch()
    monkeypatch.setenv("IMRET_HOME", str(place / "below" if home == "below a file" else place))
    expected = Encoder(random_model, device="cpu", precision="fp32").encode_mean(TEXTS)
    for _ in range(2):
        np.testing.assert_array_equal(_cached(random_model).encode_mean(TEXTS), expected)
    assert bool(_entries() if home == "missing" else []) == (home == "missing")


def test_a_full_disk_is_no_error_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    save_vector(KEY, VECTOR)
    assert _entries() == []


def test_many_threads_and_processes_at_once_see_whole_vectors_only() -> None:
    # Two processes and two threads write one entry by turns with two contents of its length; we read.
    code = (
        "import sys, numpy as np; from imret.models.lazy_encoder import save_vector\n"
        f"for i in range(300): save_vector({KEY!r}, np.full(32, float(i % 2), np.float32))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda: [save_vector(KEY, np.ones(32, np.float32)) for _ in range(100)])
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    seen = 0
    while any(writer.poll() is None for writer in writers) or any(t.is_alive() for t in threads):
        vector = load_vector(KEY, 32)
        if vector is not None:
            seen += 1
            assert (vector == vector[0]).all()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen > 100
    assert [path.name for path in _entries()] == [KEY]


def test_a_process_killed_while_it_writes_leaves_whole_entries() -> None:
    code = (
        "import itertools, numpy as np; from imret.models.lazy_encoder import save_vector\n"
        "for i in itertools.count(): save_vector(f'{i % 50:064x}', np.full(32, float(i % 50), np.float32))"
    )
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        deadline = time.monotonic() + 60
        while len(_whole_entries()) < 50 and time.monotonic() < deadline:
            time.sleep(0.005)
        writer.kill()
        writer.wait()
        whole = _whole_entries()
        assert len(whole) == 50
        for path in whole:
            vector = load_vector(path.name, 32)
            assert vector is not None
            assert (vector == int(path.name, 16)).all()
            path.unlink()


# ---- What a hit loads ----------------------------------------------------------------------------------

ASK = """
import sys
from imret.models.lazy_encoder import LazyEncoder
encoder = LazyEncoder(sys.argv[1])
print(encoder.images_fingerprint, encoder.encode_mean(["a mushroom"]).tobytes().hex())
print({"torch", "open_clip", "PIL", "qdrant_client"} & set(sys.modules) or "light")
"""


def _ask(model: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, model],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hit_loads_neither_torch_nor_open_clip(random_model: Path) -> None:
    first, loaded = _ask(str(random_model), IMRET_LIGHT_TEXT="off")
    assert "torch" in loaded
    assert _ask(str(random_model)) == [first, "light"]


def test_real_queries_are_answered_as_the_model_answers_them(shared_data: Path) -> None:
    encoder = Encoder(shared_data / "tiny-clip", device="cpu", precision="fp32")
    for query in ("mushroom", "a red mushroom with white spots", "Vögel im Schnee"):
        light = _cached(shared_data / "tiny-clip")
        np.testing.assert_array_equal(query_vector(light, query), query_vector(encoder, query))
        np.testing.assert_array_equal(query_vector(light, query), query_vector(encoder, query))
    assert len(_entries()) == 3
