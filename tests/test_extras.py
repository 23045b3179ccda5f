"""What needs an optional library says which extra to install; everything else does without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


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
