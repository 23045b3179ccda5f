"""A run makes a model folder that stock open_clip loads, and survives what interrupts it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from finetune.callbacks import Callbacks
from finetune.checkpoint import RunRecord, load_state, resolve_resume, save_state, sole_owner
from finetune.config import FinetuneConfig
from finetune.distributed import World
from finetune.model.base_model import find_base
from finetune.model.param_groups import parameter_groups
from finetune.run import finetune
from finetune.trainer import learning_rate
from imret import Encoder
from imret.cli.main import cli
from imret.errors import DataError, ModelError
from imret.models.known_models import is_known_model, is_known_name
from imret.models.resolve import resolve_model
from imret.models.weights_digest import digest_tensors
from tests import ROOT

WEIGHTS = "open_clip_model.safetensors"
COLORS = {"aves": (220, 40, 40), "fungi": (40, 200, 60), "plantae": (50, 60, 220)}
QUICK = FinetuneConfig.of("scratch", epochs=2, batch_size=12, validation_share=0.2)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are too small for two threads to help, and threads wait long where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def paint(path: Path, color: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-35, 36, (48, 64, 3))
    Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three categories of ten noisy pictures, told apart by colour."""
    folder = tmp_path_factory.mktemp("photos")
    for name, color in COLORS.items():
        for i in range(10):
            paint(folder / name / f"{i}.png", color, seed=i)
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of an undisturbed run of QUICK."""
    output = tmp_path_factory.mktemp("models") / "undisturbed"
    finetune(photos, output, model="imret-tiny", from_scratch=True, config=QUICK)
    return output


def scratch(photos: Path, output: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": "imret-tiny", "from_scratch": True, "config": QUICK, **changes}
    return finetune(photos, output, **arguments)


def same_weights(one: Path, other: Path) -> bool:
    """Whether two model folders hold the same tensors to the bit."""
    a, b = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- The model folder ------------------------------------------------------------------------------------


def test_the_folder_loads_in_stock_open_clip_and_gives_what_imret_gives(trained: Path, photos: Path) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{trained}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{trained}")
    model.eval()
    picture = photos / "aves" / "0.png"
    with torch.no_grad():
        stock_image = model.encode_image(transform(Image.open(picture))[None], normalize=True).numpy()
        stock_text = model.encode_text(tokenizer(["a photo of a bird"]), normalize=True).numpy()
    encoder = Encoder(trained, precision="fp32", device="cpu")
    assert (encoder.encode_images([picture]) * stock_image).sum() > 0.999
    np.testing.assert_allclose(encoder.encode_texts(["a photo of a bird"]), stock_text, atol=1e-5)


def test_a_collection_may_name_the_model_and_its_record_is_of_these_weights(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    files = resolve_model(trained)
    assert is_known_model(files.model_id, files)
    assert files.training_record["weights"] == digest_tensors(trained / WEIGHTS).tensors
    shutil.copytree(trained, tmp_path / "model")
    assert not is_known_name(str(tmp_path / "model"))
    tensors = load_file(trained / WEIGHTS)
    save_file({**tensors, "logit_scale": tensors["logit_scale"] + 1}, tmp_path / "model" / WEIGHTS)
    with (
        pytest.warns(UserWarning, match=r"training\.json' is not believed"),
        pytest.raises(DataError, match="holds files that no run made"),  # and not: there is nothing to do
    ):
        scratch(photos, tmp_path / "model")


def test_the_folder_says_how_it_came_about(trained: Path) -> None:
    training = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    assert training["base"]["model"] == "imret-tiny"
    assert training["base"]["from_scratch"]
    assert training["config"]["epochs"] == 2
    assert (training["data"]["train"], training["data"]["validation"]) == (24, 6)
    assert training["data"]["categories"]["aves"] == {
        "called": "bird",
        "names": ["bird"],
        "train": 8,
        "validation": 2,
    }
    assert training["steps"] == 4
    for moment in ("before", "after"):
        assert 0 < training["validation"][moment]["text_to_image_map"] <= 1
    assert {"imret", "python", "torch", "open_clip"} == training["versions"].keys()


def test_every_step_leaves_a_line_with_its_loss_and_floor(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["floor"] == pytest.approx(math.log(4), abs=1e-5)  # 12 pictures in three categories
        assert line["loss"] > line["floor"]
        assert 1 <= line["logit_scale"] <= 100


def test_nothing_but_the_model_is_left(trained: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == [
        "metrics.jsonl",
        "open_clip_config.json",
        WEIGHTS,
        "training.json",
        "training.png",
    ]
    assert (trained / WEIGHTS).stat().st_mode & 0o777 == (trained / "training.json").stat().st_mode & 0o777


def test_training_learns_to_find_categories_by_their_names(photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, epochs=12)
    training = scratch(photos, tmp_path / "model", config=config)
    assert training["validation"]["after"]["text_to_image_map"] > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_others(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    scratch(photos, tmp_path / "again")
    assert same_weights(tmp_path / "again", trained)
    scratch(photos, tmp_path / "other", config=dataclasses.replace(QUICK, seed=1))
    assert not same_weights(tmp_path / "other", trained)


def test_decoding_anew_for_every_batch_gives_the_same_weights(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    scratch(photos, tmp_path / "model", config=dataclasses.replace(QUICK, cache_mib=0))
    assert same_weights(tmp_path / "model", trained)


# ---- Pretrained models -----------------------------------------------------------------------------------


def test_tuning_moves_the_weights_and_keeps_logit_scale_and_batch_norm(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig(epochs=1, batch_size=12, blend=False)
    training = finetune(photos, tmp_path / "tuned", model=str(trained), config=config)
    assert training["base"]["fingerprint"] == Encoder(trained).fingerprint
    before, after = load_file(trained / WEIGHTS), load_file(tmp_path / "tuned" / WEIGHTS)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert statistics
    assert statistics | {"logit_scale"} <= kept
    moved = {name for name in before.keys() - kept if name.endswith("weight")}
    assert any(name.startswith("visual.") for name in moved)
    assert any(name.startswith(("transformer.", "text.transformer.")) for name in moved)


def test_a_real_small_clip_is_tuned_on_photos(shared_data: Path, tmp_path: Path) -> None:
    for category in ("aves", "fungi"):
        (tmp_path / "photos" / category).mkdir(parents=True)
        for file in sorted((shared_data / "nature10" / "train" / category).iterdir())[:10]:
            shutil.copy(file, tmp_path / "photos" / category)
    base = shared_data / "tiny-clip-base"
    config = FinetuneConfig(epochs=1, batch_size=9, lr=3e-5, blend=False)
    training = finetune(tmp_path / "photos", tmp_path / "tuned", model=str(base), config=config)
    before, after = (training["validation"][moment]["text_to_image_map"] for moment in ("before", "after"))
    assert after >= before
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'tuned'}")
    stock = open_clip.create_model_and_transforms(f"local-dir:{base}")[0].state_dict()
    for name, tensor in model.state_dict().items():
        if "running_" in name:
            assert torch.equal(tensor, stock[name])
    assert not torch.equal(model.state_dict()["visual.head.proj.weight"], stock["visual.head.proj.weight"])


# ---- Interruption ----------------------------------------------------------------------------------------

RUN = """
    import dataclasses, sys, time
    from finetune.run import Callbacks, finetune
    from finetune.trainer import FinetuneConfig
    config = FinetuneConfig.of("scratch", epochs=2, batch_size=12, validation_share=0.2, checkpoint_s=0)
    def told(step, pictures):
        print(step.step, flush=True)
        time.sleep(0.1)
    finetune(sys.argv[1], sys.argv[2], model="imret-tiny", from_scratch=True, config=config,
             callbacks=Callbacks(on_message=lambda text: print(text, flush=True), on_step=told))
"""


def start(photos: Path, output: Path) -> subprocess.Popen[str]:
    """Start QUICK in a process of its own, with a checkpoint after every step."""
    code = textwrap.dedent(RUN)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(photos), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # sums in another order are other sums
    )


def wait_for(process: subprocess.Popen[str], line: str) -> list[str]:
    """Read what the process says up to a line; return it."""
    assert process.stdout is not None
    messages = []
    for text in process.stdout:
        messages.append(text.strip())
        if messages[-1] == line:
            return messages
    assert process.stderr is not None
    raise AssertionError(f"{line!r} never came: {messages}\n{process.stderr.read()}")


def test_stopped_by_ctrl_c_then_killed_it_still_ends_with_the_undisturbed_weights(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    with start(photos, output) as process:
        wait_for(process, "1")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    state = load_state(output)
    assert state is not None
    done = state["progress"]["step"]
    assert done >= 1

    with start(photos, output) as process:
        assert f"going on after step {done} of 4" in wait_for(process, "3")
        process.send_signal(signal.SIGKILL)  # while step 3 is written, or just before or after
    assert not (output / "open_clip_config.json").exists()

    messages: list[str] = []
    scratch(photos, output, callbacks=Callbacks(on_message=messages.append))
    assert any(text.startswith(("going on after step 2", "going on after step 3")) for text in messages)
    assert same_weights(output, trained)
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    save_state(tmp_path, {"step": 1, "weights": torch.zeros(1000)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # writing past it fails as on a full disk
    try:
        with pytest.raises(DataError, match=r"cannot write .*checkpoint.*Make room"):
            save_state(tmp_path, {"step": 2, "weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["state.pt"]


def test_training_goes_on_where_no_checkpoint_can_be_written(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    messages: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(step: object, _pictures: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if getattr(step, "step", 0) == 4 else 100_000, hard))

    try:
        config = dataclasses.replace(QUICK, checkpoint_s=0)
        scratch(
            photos,
            tmp_path / "model",
            config=config,
            callbacks=Callbacks(on_message=messages.append, on_step=limit),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sum("Training goes on" in text for text in messages) == 3
    assert same_weights(tmp_path / "model", trained)


def test_a_run_that_cannot_be_drawn_is_a_model_all_the_same_and_is_drawn_by_the_next_command(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    messages: list[str] = []

    def stand_in_the_way(_step: object, _pictures: int) -> None:
        (output / ".training.png.part").mkdir(exist_ok=True)

    scratch(photos, output, callbacks=Callbacks(on_message=messages.append, on_step=stand_in_the_way))
    assert "training.png" in messages[-1]
    assert "The model is whole" in messages[-1]
    assert same_weights(output, trained)
    assert not (output / "training.png").exists()
    (output / ".training.png.part").rmdir()
    scratch(photos, output, callbacks=Callbacks(on_message=messages.append))
    assert "nothing to do" in messages[-1]
    assert (output / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_category_that_no_font_can_write_and_no_formula_is_drawn(photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "photos"
    shutil.copytree(photos, odd)
    for name, other in zip(sorted(os.listdir(photos)), (b"caf\xe9", b"cash $^$"), strict=False):
        (odd / name).rename(os.fsdecode(os.fsencode(odd) + b"/" + other))
    messages: list[str] = []
    scratch(odd, tmp_path / "model", callbacks=Callbacks(on_message=messages.append))
    assert not any("Warning" in text for text in messages)
    assert (tmp_path / "model" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_damaged_checkpoint_is_told_with_the_way_out(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "model" / "checkpoint").mkdir(parents=True)
    (tmp_path / "model" / "checkpoint" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match=r"cannot read the checkpoint .*--overwrite"):
        scratch(photos, tmp_path / "model")


# ---- What the output may hold ----------------------------------------------------------------------------


def test_a_finished_run_is_left_alone(trained: Path, photos: Path) -> None:
    before = (trained / WEIGHTS).stat().st_mtime_ns
    messages: list[str] = []
    training = scratch(photos, trained, callbacks=Callbacks(on_message=messages.append))
    assert "nothing to do" in messages[-1]
    assert training["steps"] == 4
    assert (trained / WEIGHTS).stat().st_mtime_ns == before
    assert not (trained / "checkpoint").exists()


def test_of_several_processes_only_the_first_speaks_of_a_finished_run(
    trained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "join", classmethod(lambda cls, _device: cls(1, 2)))
    monkeypatch.setattr(World, "barrier", lambda self: None)
    messages: list[str] = []
    assert scratch(photos, trained, callbacks=Callbacks(on_message=messages.append)) == {}
    assert messages == []


def test_another_run_is_refused_naming_the_difference_and_begun_anew_on_request(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    shutil.copytree(trained, output)
    longer = dataclasses.replace(QUICK, epochs=3, seed=5)
    with pytest.raises(DataError, match=r"epochs \(2, now 3\), seed \(0, now 5\).*--overwrite"):
        scratch(photos, output, config=longer)
    assert same_weights(output, trained)

    def look(_step: object, _pictures: int) -> None:
        assert same_weights(output, trained)  # the old model stays whole until the new one is done

    assert (
        scratch(photos, output, config=longer, overwrite=True, callbacks=Callbacks(on_step=look))["steps"]
        == 6
    )
    assert not same_weights(output, trained)


def test_a_run_with_a_setting_that_there_is_no_more_is_refused_saying_so(tmp_path: Path) -> None:
    record = RunRecord("b", "d", {"lr": 1.0})
    finished = {"run": {**record.inputs(), "config": {"lr": 1.0, "gone": 2}}}
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"differs in settings of another version of imret\. Give another"):
        resolve_resume(tmp_path, record, finished, overwrite=False)


def test_an_unfinished_run_of_another_command_is_refused(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"

    def stop(_step: object, _pictures: int) -> None:
        raise RuntimeError("stopped by the test")

    with pytest.raises(RuntimeError):
        scratch(photos, output, callbacks=Callbacks(on_step=stop))
    assert [path.name for path in output.iterdir()] == ["metrics.jsonl"]  # nothing to go on with

    (output / "checkpoint").mkdir()
    config = QUICK.identity() | {"lr": 0.5}
    save_state(output, {"run": {"base": "x", "data": "y", "config": config}})
    with pytest.raises(
        DataError, match=r"unfinished run .*model it started from, its pictures.*lr \(0.5, now"
    ):
        scratch(photos, output)


def test_places_that_would_do_harm_are_refused(trained: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would become a category"):
        scratch(photos, photos / "model")
    with pytest.raises(DataError, match="is the model to start from"):
        finetune(photos, trained, model=str(trained), overwrite=True)
    (tmp_path / "link").symlink_to(trained)
    with pytest.raises(DataError, match="is the model to start from"):
        finetune(photos, trained, model=str(tmp_path / "link"), overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        scratch(photos, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="files that no run made"):
        scratch(photos, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_folders_that_cannot_be_written_are_refused_before_a_model_is_looked_for(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.run.find_base", lambda *_, **__: pytest.fail("a model was looked for"))
    (tmp_path / "file").touch()
    for options in (
        {"output": tmp_path / "file" / "model"},
        {"output": tmp_path / "model", "tensorboard": tmp_path / "file"},
    ):
        with pytest.raises(DataError, match=r"which --(output|tensorboard) names: .*file' is a file"):
            finetune(photos, **options, model="nobody/has it")


def test_two_runs_do_not_share_an_output(photos: Path, tmp_path: Path) -> None:
    with sole_owner(tmp_path / "model"), pytest.raises(DataError, match="another imret finetune is writing"):
        scratch(photos, tmp_path / "model")


# ---- Bad pictures, bad numbers ---------------------------------------------------------------------------


def test_unreadable_pictures_are_skipped_and_reported(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "aves" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    messages: list[str] = []
    training = scratch(folder, tmp_path / "model", callbacks=Callbacks(on_message=messages.append))
    assert [skip["path"] for skip in training["data"]["skipped"]] == ["aves/broken.jpg"]
    assert any("skipped aves/broken.jpg: " in text for text in messages)


def test_a_second_category_of_unreadable_pictures_is_no_second_category(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "aves", tmp_path / "photos" / "aves")
    (tmp_path / "photos" / "fungi").mkdir()
    (tmp_path / "photos" / "fungi" / "broken.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="one category"):
        scratch(tmp_path / "photos", tmp_path / "model")


def test_captions_beside_the_pictures_are_used_and_said(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    rows = [f"{name}/{i}.png,a {name} of number {i}" for name in COLORS for i in range(10)]
    (tmp_path / "photos" / "captions.csv").write_text("\n".join(["path,caption", *rows]))
    messages: list[str] = []
    training = scratch(
        tmp_path / "photos", tmp_path / "model", callbacks=Callbacks(on_message=messages.append)
    )
    assert "captions of 30 pictures" in messages[0]
    assert training["data"]["captioned"] == 30


def test_divergence_stops_the_run_naming_the_step(photos: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, lr=1e30, warmup=0.0, weight_decay=0.0)
    with pytest.raises(ModelError, match=r"not a finite number in step [234] of 4.*--lr 3e\+29"):
        scratch(photos, tmp_path / "model", config=config)


def test_running_out_of_memory_gives_the_next_thing_to_try(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No CPU raises this; what is tested is what becomes of the error.
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("finetune.trainer.augment", lambda *_, **__: run_out())
    with pytest.raises(
        ModelError, match=r"out of memory in step 1, with 12 pictures at once.*--checkpointing"
    ):
        scratch(photos, tmp_path / "model")


def test_models_that_cannot_be_trained_from_scratch_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ModelError, match=r"Nearest: imret-tiny"):
        find_base("imret-tny", from_scratch=True)
    with pytest.raises(ModelError, match="CoCa"):
        find_base("coca_base", from_scratch=True)


# ---- Schedule and parameters -----------------------------------------------------------------------------


def test_the_learning_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, 100, peak=1.0, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates == rates[:10] + sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, peak=1.0, warmup=0.1) == 1.0


def test_vectors_and_the_logit_scale_do_not_decay_and_frozen_ones_are_not_trained() -> None:
    model = find_base("imret-tiny", from_scratch=True).build(torch.device("cpu"), seed=0)
    decaying, rest = parameter_groups(model, lr=1.0, weight_decay=0.3)
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert all(parameter.ndim >= 2 for parameter in decaying["params"])
    assert any(parameter is model.logit_scale for parameter in rest["params"])
    assert len(decaying["params"]) + len(rest["params"]) == len(list(model.parameters()))
    model.logit_scale.requires_grad_(False)  # type: ignore[union-attr]
    _, rest = parameter_groups(model, lr=1.0, weight_decay=0.3)
    assert not any(parameter is model.logit_scale for parameter in rest["params"])


def test_a_number_out_of_range_is_refused_by_name() -> None:
    for name, value in (("epochs", 0), ("lr", -1.0), ("warmup", 1.5), ("validation_share", 1.0)):
        with pytest.raises(ValueError, match=name):
            FinetuneConfig(**{name: value})


# ---- Command line ----------------------------------------------------------------------------------------


def test_the_help_loads_no_torch_and_ends_with_an_example() -> None:
    code = (
        "import sys; from finetune.cli import command\n"
        "command(['--help'], standalone_mode=False)\n"
        "assert not {'torch', 'open_clip', 'numpy', 'PIL'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout.rpartition("\n\n")[2]


def test_the_command_trains_and_says_what_comes_next(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    arguments = [str(photos), "--from-scratch", "--output", str(output), "--epochs", "1", "--device", "cpu"]
    result = CliRunner().invoke(cli, ["finetune", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "before training" in result.stderr
    assert f"imret ingest PICTURES --model {output}" in result.stderr
    assert (output / "open_clip_config.json").is_file()
