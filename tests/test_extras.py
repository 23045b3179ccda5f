"""What needs an optional library says which extra to install; everything else does without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.models import write_random_model
from tests.fakes.pictures import draw_picture


def _without(module: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which a library is not installed."""
    hidden = f"import sys\nsys.modules[{module!r}] = None\n{code}"
    return subprocess.run(
        [sys.executable, "-c", hidden, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments", [["export", "photos", "a.parquet", "--db", "db"], ["import", "a.parquet", "--db", "db"]]
)
def test_without_pyarrow_collections_name_the_extra(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"")
    done = _without("pyarrow", "from imret.cli.main import main\nmain()", "collections", *arguments)
    assert done.returncode == 1
    assert "Parquet" in done.stderr
    assert "pip install 'imret[parquet]'" in done.stderr


def test_without_pyarrow_a_parquet_manifest_names_the_extra_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    code = (
        "from finetune.data.manifest import read_manifest\nfrom imret.errors import DataError\n"
        "try:\n    read_manifest(sys.argv[1])\nexcept DataError as error:\n    print(error)"
    )
    done = _without("pyarrow", code, tmp_path / "train.parquet")
    assert "train.parquet' is Parquet, which needs: pip install 'imret[parquet]'" in done.stdout, done.stderr


@pytest.mark.parametrize("source", ["s3://bucket/photos", "a.parquet"])
def test_without_pyarrow_an_object_store_and_parquet_pictures_name_the_extra(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    model = write_random_model(tmp_path / "model", seed=0)
    code = "from imret.cli.main import main\nmain()"
    done = _without("pyarrow", code, "ingest", source, "--db", "db", "--model", model)
    assert "pip install 'imret[remote]'" in done.stderr


def test_without_pyarrow_a_benchmark_in_parquet_names_the_extra_and_the_file(tmp_path: Path) -> None:
    (tmp_path / "test.parquet").write_bytes(b"")
    code = "from imret.cli.main import main\nmain()"
    done = _without("pyarrow", code, "benchmark", tmp_path / "test.parquet")
    assert done.returncode == 1
    assert "test.parquet' is Parquet, which needs: pip install 'imret[parquet]'" in done.stderr


def test_without_ray_an_ingest_that_shall_be_spread_names_the_extra(tmp_path: Path) -> None:
    code = (
        "from ingest.spread import check_store\nfrom imret.errors import DataError\n"
        "class Server:\n    engine, address = 'server', 'http://localhost:6333'\n"
        "try:\n    check_store(Server())\nexcept DataError as error:\n    print(error)"
    )
    done = _without("ray", code)
    assert done.stdout == "--ray needs Ray: pip install 'imret[ray]'\n", done.stderr


def test_without_matplotlib_a_run_has_no_plot_and_the_reason_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "parts": {}}) + "\n", encoding="utf-8")
    code = (
        "from pathlib import Path\nfrom finetune.reporting.plots import save_plot\n"
        "from imret.errors import DataError\n"
        "try:\n    save_plot(Path(sys.argv[1]), {})\nexcept DataError as error:\n    print(error)"
    )
    done = _without("matplotlib", code, tmp_path)
    assert done.stdout == "training.png is drawn by matplotlib: pip install 'imret[plots]'.\n", done.stderr
    assert not (tmp_path / "training.png").exists()


@pytest.mark.parametrize(
    ("text_cfg", "what"),
    [
        ({"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}, "the tokenizer of"),
        ({"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base"}, "the text tower and the"),
    ],
)
def test_without_transformers_finetune_names_the_extra_before_it_decodes_a_picture(
    text_cfg: dict[str, str], what: str, tmp_path: Path
) -> None:
    model = _with_text_cfg(tmp_path / "model", text_cfg)
    for category in ("aves", "fungi"):
        (tmp_path / "photos" / category).mkdir(parents=True)
        (tmp_path / "photos" / category / "damaged.jpg").write_bytes(b"no picture")
    code = "from imret.cli.main import main\nmain()"
    for options in (["--check"], ["--output", tmp_path / "tuned"]):
        done = _without("transformers", code, "finetune", tmp_path / "photos", "--model", model, *options)
        assert done.returncode == 1
        assert what in done.stderr
        assert "transformers, which is not installed: pip install 'imret[transformers]'" in done.stderr
        assert "damaged" not in done.stderr
    assert not (tmp_path / "tuned").exists()


def test_without_transformers_a_text_names_the_extra_and_pictures_are_encoded(tmp_path: Path) -> None:
    model = _with_text_cfg(tmp_path / "model", {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"})
    draw_picture(tmp_path / "picture.png")
    code = (
        "from imret import Encoder\nfrom imret.errors import ModelError\n"
        "encoder = Encoder(sys.argv[1], device='cpu')\nprint(encoder.encode_images([sys.argv[2]]).shape)\n"
        "try:\n    encoder.encode_texts(['a bird'])\nexcept ModelError as error:\n    print(error)"
    )
    done = _without("transformers", code, model, tmp_path / "picture.png")
    assert done.stdout.startswith("(1, 32)\nthe tokenizer of model"), done.stderr
    assert done.stdout.endswith("pip install 'imret[transformers]'\n")


def _with_text_cfg(folder: Path, text_cfg: dict[str, str]) -> Path:
    write_random_model(folder, seed=0)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text_cfg
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
